//! Endpoints with real sockets, in one process and in several.

mod attacks;
mod log;
mod processes;
mod security;
mod speed;
#[cfg(feature = "transport-zeromq")]
mod zeromq;

use super::{threaded::Events, *};
use crate::cluster::transport::{memory::Network, omq::Omq};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
};

/// Nothing takes so long, whatever else the machine does.
const LONG: Duration = Duration::from_secs(60);

type Side = (Endpoint, Events);

fn start_with(config: Config) -> Side {
    Endpoint::start(config, Omq::new).expect("it starts")
}

fn start() -> Side {
    start_with(Config::default())
}

/// Frozen and dead peers are noticed soon.
fn impatient() -> Config {
    let link = link::Config {
        heartbeat: Duration::from_millis(100),
        silence: Duration::from_secs(2),
        lost_after: Duration::from_secs(5),
        ..link::Config::default()
    };
    Config { link, ..Config::default() }
}

fn numbered(number: u64) -> Message {
    Message::new(number.to_le_bytes().to_vec())
}

fn number(message: &Message) -> u64 {
    u64::from_le_bytes(message.header[..8].try_into().expect("a number"))
}

#[track_caller]
fn next(events: &mut Events) -> Event {
    events.recv_timeout(LONG).expect("an event")
}

/// The next event that does not say that there is room.
#[track_caller]
fn next_but_room(events: &mut Events) -> Event {
    loop {
        match next(events) {
            Event::Room(_) => {}
            event => return event,
        }
    }
}

#[track_caller]
fn next_up(events: &mut Events) -> Incarnation {
    match next(events) {
        Event::Up(peer) => peer,
        event => panic!("{event:?}"),
    }
}

/// Connects `a` to `b`.
#[track_caller]
fn join(a: &mut Side, b: &mut Side) {
    a.0.connect(b.0.address());
    assert_eq!(next_up(&mut a.1), b.0.incarnation());
    assert_eq!(next_up(&mut b.1), a.0.incarnation());
}

/// Sends numbered messages from `a` to `b` and sees them arrive.
#[track_caller]
fn exchange(a: &mut Side, b: &mut Side, count: u64) {
    for at in 0..count {
        a.0.send(b.0.incarnation(), numbered(at)).expect("there is room");
    }
    for at in 0..count {
        assert_eq!(next_but_room(&mut b.1), Event::Message(a.0.incarnation(), numbered(at)));
    }
}

#[test]
fn two_endpoints_talk_with_and_without_a_key() {
    for key in [None, Some(Key::generate().expect("randomness"))] {
        let config = Config { key, ..Config::default() };
        let (mut a, mut b) = (start_with(config.clone()), start_with(config));
        join(&mut a, &mut b);
        exchange(&mut a, &mut b, 1000);
        exchange(&mut b, &mut a, 1000);
        let large =
            Message { header: vec![1; 100].into(), payloads: vec![vec![2; 1 << 20].into(), vec![3; 100].into()] };
        a.0.send(b.0.incarnation(), large.clone()).expect("there is room");
        assert_eq!(next(&mut b.1), Event::Message(a.0.incarnation(), large));
    }
}

#[test]
fn a_close_drains_and_the_peer_learns_of_it() {
    let (mut a, mut b) = (start(), start());
    join(&mut a, &mut b);
    let (name, count) = (a.0.incarnation(), 10_000);
    for at in 0..count {
        a.0.send(b.0.incarnation(), numbered(at)).expect("there is room");
    }
    assert!(a.0.close(LONG), "it drains");
    for at in 0..count {
        assert_eq!(next(&mut b.1), Event::Message(name, numbered(at)));
    }
    assert_eq!(next(&mut b.1), Event::Lost(name, Reason::Finished));
    assert_eq!(b.0.send(name, numbered(0)), Err(SendError::Lost));
}

#[test]
fn a_wider_bind_without_a_key_does_not_start() {
    for bind in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0", "*:0"] {
        let config = Config { bind: bind.into(), ..Config::default() };
        let error = Endpoint::start(config, Omq::new).expect_err("no key").to_string();
        assert!(error.contains(bind) && error.contains("cluster key"), "{error}");
    }
    let key = Some(Key::generate().expect("randomness"));
    let (wide, _) = start_with(Config { bind: "0.0.0.0:0".into(), key, ..Config::default() });
    assert!(wide.address().starts_with("0.0.0.0:"), "{}", wide.address());
    let taken = Config { bind: start_and_leak_address(), ..Config::default() };
    let error = Endpoint::start(taken, Omq::new).expect_err("it is in use").to_string();
    assert!(error.contains("could not listen on"), "{error}");
}

/// An address in use, until the test process ends.
fn start_and_leak_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    std::mem::forget(listener);
    address
}

/// Both dial each other at once, again and again: one connection stays, and nothing is lost.
#[test]
fn two_that_dial_each_other_are_connected_once() {
    for _ in 0..10 {
        let (mut a, mut b) = (start(), start());
        a.0.connect(b.0.address());
        b.0.connect(a.0.address());
        assert_eq!(next_up(&mut a.1), b.0.incarnation());
        assert_eq!(next_up(&mut b.1), a.0.incarnation());
        exchange(&mut a, &mut b, 1000);
        exchange(&mut b, &mut a, 1000);
    }
}

/// One that reads nothing among ten: its queue fills, and the others do not notice.
#[test]
fn one_mute_peer_among_ten() {
    mute_one_of_ten(join);
}

/// All of them are behind one listening socket.
#[test]
fn one_mute_peer_among_ten_that_have_dialed() {
    mute_one_of_ten(|a, other| join(other, a));
}

fn mute_one_of_ten(join: impl Fn(&mut Side, &mut Side)) {
    let mut a = start();
    let mut mute = start();
    join(&mut a, &mut mute);
    let mut others: Vec<Side> = (0..9).map(|_| start()).collect();
    for other in &mut others {
        join(&mut a, other);
    }
    let message = Message { header: vec![0; 100].into(), payloads: vec![vec![0; 100_000].into()] };
    let mut sent = 0;
    loop {
        match a.0.send(mute.0.incarnation(), message.clone()) {
            Ok(()) => sent += 1,
            // It is full for good when nothing has become free although others have been served.
            Err(SendError::Full(_)) => {
                let before = sent;
                for other in &mut others {
                    exchange(&mut a, other, 100);
                }
                while a.0.send(mute.0.incarnation(), message.clone()).is_ok() {
                    sent += 1;
                }
                if sent == before {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    // Its queue here and its window there.
    let limit = link::Config::default();
    assert!(sent * message.cost() as u64 <= limit.queue.bytes + limit.window.bytes, "{sent} messages");
    for other in &mut others {
        exchange(&mut a, other, 1000);
        exchange(other, &mut a, 1000);
    }
    // It reads again, and has missed nothing.
    for _ in 0..sent {
        assert_eq!(next(&mut mute.1), Event::Message(a.0.incarnation(), message.clone()));
    }
    while a.0.send(mute.0.incarnation(), numbered(7)).is_err() {
        assert_eq!(next(&mut a.1), Event::Room(mute.0.incarnation()));
    }
    assert_eq!(next(&mut mute.1), Event::Message(a.0.incarnation(), numbered(7)));
}

#[test]
fn connections_in_memory_that_are_cut_stalled_and_lossy_lose_nothing() {
    let network = Network::default();
    let start = |bind: &str| {
        let transport = network.transport();
        let link = link::Config { resend_after: Duration::from_millis(50), ..link::Config::default() };
        Endpoint::start(Config { bind: bind.into(), link, ..Config::default() }, move || transport).expect("it starts")
    };
    let (mut a, mut b) = (start("localhost:1"), start("localhost:2"));
    join(&mut a, &mut b);
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..30 {
        let count = rng.u64(1..2000);
        network.stall("localhost:2", true);
        for at in 0..count {
            a.0.send(b.0.incarnation(), numbered(at)).expect("there is room");
        }
        match round % 3 {
            0 => network.cut_all(),
            1 => network.lose(rng.usize(..3)),
            _ => {}
        }
        network.stall("localhost:2", false);
        for at in 0..count {
            assert_eq!(next(&mut b.1), Event::Message(a.0.incarnation(), numbered(at)));
        }
    }
}

/// Passes connections on to an address, and breaks them.
struct Proxy {
    address: String,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn new(to: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let (to, streams) = (to.to_string(), Arc::new(Mutex::new(Vec::new())));
        let proxy = Proxy { address, streams: streams.clone() };
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(&to) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { continue };
                    std::thread::spawn(move || {
                        let mut buffer = vec![0; 64 << 10];
                        while let Ok(length @ 1..) = from.read(&mut buffer) {
                            if to.write_all(&buffer[..length]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                streams.lock().extend([near, far]);
            }
        });
        proxy
    }

    fn cut(&self) {
        for stream in self.streams.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The connection breaks thirty times under load in both directions.
#[test]
fn connections_that_break_under_load_lose_nothing() {
    let key = Some(Key::generate().expect("randomness"));
    let config = Config { key, ..Config::default() };
    let (mut a, mut b) = (start_with(config.clone()), start_with(config));
    let proxy = Proxy::new(b.0.address());
    a.0.connect(&proxy.address);
    assert_eq!(next_up(&mut a.1), b.0.incarnation());
    assert_eq!(next_up(&mut b.1), a.0.incarnation());
    let count = 60_000;
    let send_all = |from: &Endpoint, to: Incarnation| {
        let mut at = 0;
        while at < count {
            match from.send(to, numbered(at)) {
                Ok(()) => at += 1,
                Err(SendError::Full(_)) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    };
    let receive_all = |from: Incarnation, events: &mut Events| {
        let mut expected = 0;
        while expected < count {
            match next(events) {
                Event::Message(peer, message) => {
                    assert_eq!((peer, number(&message)), (from, expected));
                    expected += 1;
                    if expected % 2000 == 0 {
                        proxy.cut();
                    }
                }
                Event::Room(_) => {}
                event => panic!("{event:?}"),
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| send_all(&a.0, b.0.incarnation()));
        scope.spawn(|| send_all(&b.0, a.0.incarnation()));
        scope.spawn(|| receive_all(a.0.incarnation(), &mut b.1));
        scope.spawn(|| receive_all(b.0.incarnation(), &mut a.1));
    });
}

#[test]
fn both_may_close_at_once() {
    let (mut a, mut b) = (start(), start());
    join(&mut a, &mut b);
    let ends = [a.0, b.0].map(|endpoint| std::thread::spawn(move || endpoint.close(LONG)));
    assert!(ends.into_iter().all(|end| end.join().expect("it closes")));
}

/// Who answers there first accepts connections and closes them, or says nothing: what is sent later arrives once.
#[test]
fn connections_that_end_before_they_begin_lose_nothing() {
    let mut a = start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    a.0.connect(&address);
    for _ in 0..3 {
        drop(listener.accept().expect("it dials again"));
    }
    let (mut silent, _) = listener.accept().expect("it dials again");
    drop(listener);
    let mut b = start_with(Config { bind: address, ..Config::default() });
    assert!(attacks::is_closed(&mut silent), "it gives up");
    assert_eq!(next_up(&mut a.1), b.0.incarnation());
    assert_eq!(next_up(&mut b.1), a.0.incarnation());
    exchange(&mut a, &mut b, 50);
    exchange(&mut b, &mut a, 50);
}

/// Nobody dials an address any more that was given up; the peer that is connected stays.
#[test]
fn a_disconnected_address_is_not_dialed_again() {
    let (mut a, mut b) = (start_with(impatient()), start_with(impatient()));
    let proxy = Proxy::new(b.0.address());
    a.0.connect(&proxy.address);
    assert_eq!(next_up(&mut a.1), b.0.incarnation());
    assert_eq!(next_up(&mut b.1), a.0.incarnation());
    a.0.disconnect(&proxy.address);
    exchange(&mut a, &mut b, 10);
    proxy.cut();
    assert!(matches!(next(&mut a.1), Event::Lost(peer, Reason::Silent(_)) if peer == b.0.incarnation()));
}
