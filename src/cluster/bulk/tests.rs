//! Objects come whole or not at all, and who has not the key gets nothing.

mod speed;

use super::*;
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

/// Nothing takes so long, whatever else the machine does.
const LONG: Duration = Duration::from_secs(60);

fn object(number: u64) -> ObjectId {
    ObjectId { owner: ProcessId(7), number }
}

/// The bytes of object `number`, and there are `number` of them.
fn content(number: u64) -> Bytes {
    let mut random = fastrand::Rng::with_seed(number);
    std::iter::repeat_with(|| random.u8(..)).take(number as usize).collect()
}

/// Waits for as long as a machine that does much else may take.
fn plain() -> Config {
    Config { handshake: LONG, stall: LONG, ..Config::default() }
}

fn keyed() -> Config {
    Config { key: Some(Key::generate().expect("randomness")), ..plain() }
}

/// Has objects `0..=MOST`; each is as long as its number.
const MOST: u64 = 3 * RECORD as u64 + 5;

fn start(config: Config) -> Bulk {
    let all = content(MOST);
    let lookup = move |object: ObjectId| {
        Ok((object.number <= MOST).then(|| match object.number {
            MOST => all.clone(),
            number => content(number),
        }))
    };
    Bulk::start(config, lookup).expect("it starts")
}

#[track_caller]
fn fetch(to: &Bulk, from: &Bulk, number: u64) -> Vec<u8> {
    to.pull(from.address(), object(number), 0, vec![0; number as usize]).wait().expect("it is there")
}

#[track_caller]
fn error(to: &Bulk, from: &str, number: u64) -> PullError {
    to.pull(from, object(number), 0, vec![0; 1]).wait().expect_err("an error")
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(LONG)).expect("it is set");
    stream.set_write_timeout(Some(LONG)).expect("it is set");
    stream
}

/// What comes until the other side closes the connection.
fn read_to_end(stream: &mut TcpStream) -> usize {
    let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return total,
            Ok(length) => total += length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nobody closes it")
            }
            Err(_) => return total,
        }
    }
}

#[test]
fn objects_and_parts_of_them_come_with_and_without_a_key() {
    for config in [plain(), keyed()] {
        let (a, b) = (start(config.clone()), start(config));
        let record = RECORD as u64;
        for size in [0, 1, 1000, record - 1, record, record + 1, 2 * record, 2 * record + 1, 3 * record, MOST] {
            assert!(fetch(&a, &b, size) == content(size), "{size} bytes");
            assert!(fetch(&b, &a, size) == content(size), "{size} bytes");
        }
        let all = content(MOST);
        for (offset, length) in [(0, 1), (5, RECORD), (MOST - 1, 1), (MOST, 0), (record, 2 * RECORD)] {
            let part = a.pull(b.address(), object(MOST), offset, vec![0; length]).wait().expect("it is there");
            assert!(part == all[offset as usize..][..length], "{length} from {offset}");
        }
    }
}

#[test]
fn what_is_not_there_is_said_and_the_connection_goes_on() {
    let config = Config { per_peer: 1, ..keyed() };
    let (a, b) = (start(config.clone()), start(config));
    for _ in 0..3 {
        assert!(matches!(error(&a, b.address(), MOST + 1), PullError::Absent));
        assert!(matches!(error(&a, b.address(), 0), PullError::TooShort { size: 0 }));
        let far = a.pull(b.address(), object(9), u64::MAX, vec![0; 2]).wait().expect_err("it ends before");
        assert!(matches!(far, PullError::TooShort { size: 9 }), "{far}");
        assert_eq!(fetch(&a, &b, 9), content(9));
    }
}

#[test]
fn many_pull_at_once() {
    let config = keyed();
    let all: Vec<Bulk> = (0..4).map(|_| start(config.clone())).collect();
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let all = &all;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..3 {
                    let to = random.usize(..all.len());
                    let sizes: Vec<_> = (0..8).map(|_| random.u64(..MOST)).collect();
                    let pulls: Vec<_> = sizes
                        .iter()
                        .map(|size| {
                            let from = all[random.usize(..all.len())].address();
                            all[to].pull(from, object(*size), 0, vec![0; *size as usize])
                        })
                        .collect();
                    for (size, pull) in sizes.into_iter().zip(pulls) {
                        assert!(pull.wait().expect("it is there") == content(size), "seed {seed}, {size} bytes");
                    }
                }
            });
        }
    });
}

/// Says what a puller says, and reads nothing.
fn ask(address: &str, key: Option<&Key>, number: u64, length: u64) -> TcpStream {
    let mut stream = connect(address);
    let mut greeting = [0; HANDSHAKE];
    let mut request = Request { object: object(number), offset: 0, length }.encode().to_vec();
    match key {
        None => {
            stream.write_all(&plain_greeting()).expect("it is there");
            stream.read_exact(&mut greeting).expect("it answers");
        }
        Some(_) => {
            let (mut channel, first) = Channel::initiator(Purpose::Bulk, key).expect("it starts");
            stream.write_all(&first.expect("there is a key").concat()).expect("it is there");
            stream.read_exact(&mut greeting).expect("it answers");
            channel.open(vec![Bytes::copy_from_slice(&greeting)]).expect("the same key");
            let (mut sealing, _) = channel.split().expect("it is open").expect("there is a key");
            let tag = sealing.seal(&mut request).expect("it seals");
            request.extend(tag);
        }
    }
    stream.write_all(&request).expect("it is there");
    stream
}

/// Readers that do not read: others are served meanwhile, and those lose their connections and their room.
#[test]
fn a_slow_reader_hinders_nobody_and_is_dropped() {
    let size = 64 << 20;
    let huge = Bytes::from(vec![7; size]);
    let config = Config { stall: Duration::from_secs(3), served: 5, ..keyed() };
    let server = Bulk::start(config.clone(), move |_| Ok(Some(huge.clone()))).expect("it starts");
    let mut slow: Vec<_> = (0..4).map(|_| ask(server.address(), config.key.as_ref(), 1, size as u64)).collect();
    let client = start(Config { stall: LONG, per_peer: 1, ..config.clone() });
    let pulled = client.pull(server.address(), object(1), 0, vec![0; size]).wait().expect("it comes");
    assert!(pulled.iter().all(|byte| *byte == 7));
    // There is room for more than one when the slow ones are gone.
    let others: Vec<Bulk> = (0..4).map(|_| start(Config { stall: LONG, ..config.clone() })).collect();
    let start = std::time::Instant::now();
    for other in &others {
        while let Err(error) = other.pull(server.address(), object(1), 0, vec![0; 1]).wait() {
            assert!(matches!(error, PullError::Busy) && start.elapsed() < LONG, "{error}");
        }
    }
    assert!(slow.iter_mut().all(|stream| read_to_end(stream) < size));
}

/// With another key, without one, with garbage, with silence, with what somebody else has sent before.
#[test]
fn who_has_not_the_key_gets_nothing() {
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = lookups.clone();
    let config = Config { strangers: 16, handshake: Duration::from_secs(3), ..keyed() };
    let server = Bulk::start(config.clone(), move |_| {
        counted.fetch_add(1, SeqCst);
        Ok(Some(Bytes::from_static(b"secret")))
    })
    .expect("it starts");

    for key in [None, keyed().key] {
        let stranger = start(Config { key, ..plain() });
        let refused = error(&stranger, server.address(), 1);
        assert!(matches!(refused, PullError::Io(_) | PullError::Stalled(_)), "{refused}");
    }
    // A recording of what somebody with the key has said.
    let (mut channel, first) = Channel::initiator(Purpose::Bulk, config.key.as_ref()).expect("it starts");
    let first = first.expect("there is a key").concat();
    let mut honest = connect(server.address());
    honest.write_all(&first).expect("it is there");
    let mut greeting = [0; HANDSHAKE];
    honest.read_exact(&mut greeting).expect("it answers");
    channel.open(vec![Bytes::copy_from_slice(&greeting)]).expect("the same key");
    let (mut sealing, _) = channel.split().expect("it is open").expect("there is a key");
    let mut request = Request { object: object(1), offset: 0, length: 6 }.encode().to_vec();
    let tag = sealing.seal(&mut request).expect("it seals");
    request.extend(tag);
    let mut replayed = connect(server.address());
    replayed.write_all(&[first.clone(), request.clone()].concat()).expect("it is there");
    assert_eq!(read_to_end(&mut replayed), HANDSHAKE, "nothing follows the greeting");
    // One of the other kind of connection.
    let (_, other) = Channel::initiator(Purpose::Messages, config.key.as_ref()).expect("it starts");
    let mut message = connect(server.address());
    message.write_all(&other.expect("there is a key").concat()).expect("it is there");
    assert_eq!(read_to_end(&mut message), 0);
    // The right handshake and then garbage.
    let mut garbage = connect(server.address());
    garbage.write_all(&[first, vec![9; 1000]].concat()).expect("it is there");
    assert_eq!(read_to_end(&mut garbage), HANDSHAKE);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..100 {
        let mut stream = connect(server.address());
        let length = random.usize(56..4000);
        let garbage: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        let _ = stream.write_all(&garbage);
        assert_eq!(read_to_end(&mut stream), 0);
    }
    // Silent ones, many more than are kept.
    let mut silent: Vec<_> = (0..100).map(|_| connect(server.address())).collect();
    assert!(silent.iter_mut().all(|stream| read_to_end(stream) == 0));
    assert_eq!(lookups.load(SeqCst), 0, "nobody was listened to");

    // The honest one goes on where it was, if it was in time; and another one is served.
    let client = start(config);
    let secret = client.pull(server.address(), object(1), 0, vec![0; 6]).wait().expect("it has the key");
    assert_eq!((&secret[..], lookups.load(SeqCst)), (&b"secret"[..], 1));
}

/// Passes bytes on, with one bit changed at a place.
fn flipping_proxy(to: &str, at: usize) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let far = connect(to);
    std::thread::spawn(move || {
        let Ok((near, _)) = listener.accept() else { return };
        let (Ok(mut up), Ok(mut down)) = (near.try_clone(), far.try_clone()) else { return };
        std::thread::spawn(move || drop(std::io::copy(&mut up, &mut down)));
        let (mut near, mut far, mut seen) = (near, far, 0);
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = far.read(&mut buffer) {
            if (seen..seen + length).contains(&at) {
                buffer[at - seen] ^= 1;
            }
            seen += length;
            if near.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = near.shutdown(Shutdown::Both);
        let _ = far.shutdown(Shutdown::Both);
    });
    address
}

/// Wherever a bit is changed on the way, no wrong bytes come.
#[test]
fn bytes_that_were_changed_on_their_way_are_refused() {
    let config = keyed();
    let (client, server) = (start(config.clone()), start(config));
    let total = HANDSHAKE + Answer::BYTES + TAG + MOST as usize + 4 * TAG;
    let places = [0, 10, HANDSHAKE - 1, HANDSHAKE, HANDSHAKE + 9, HANDSHAKE + 25, 300_000, total - 1];
    for at in places {
        let address = flipping_proxy(server.address(), at);
        let pulled = client.pull(&address, object(MOST), 0, vec![0; MOST as usize]).wait();
        assert!(matches!(pulled, Err(PullError::Refused(_))), "{at}: {:?}", pulled.err());
    }
    let address = flipping_proxy(server.address(), total);
    let pulled = client.pull(&address, object(MOST), 0, vec![0; MOST as usize]).wait().expect("nothing was changed");
    assert!(pulled == content(MOST));
}

#[test]
fn what_came_before_a_pull_stopped_is_right_and_the_rest_is_fetched() {
    let config = keyed();
    let (client, server) = (start(config.clone()), start(config));
    for (at, expected) in [(0, 0), (300_000, RECORD), (600_000, 2 * RECORD)] {
        let address = flipping_proxy(server.address(), at);
        let stopped = client.pull(&address, object(MOST), 0, vec![0; MOST as usize]).wait_for_any();
        let Some((mut place, got)) = stopped.err().and_then(|stopped| stopped.part) else { panic!("it stops") };
        assert_eq!(got, expected, "stopped at {at}");
        let rest = vec![0; MOST as usize - got];
        let rest = client.pull(server.address(), object(MOST), got as u64, rest).wait().expect("it is there");
        place.truncate(got);
        assert!([place, rest].concat() == content(MOST), "stopped at {at}");
    }
}

/// A server that lies, is silent, or ends in between.
#[test]
fn a_bad_server_costs_its_pulls_only() {
    let client = start(plain());
    type IsRight = fn(&PullError) -> bool;
    let answers: [(&[u8], IsRight); 4] = [
        (&[4; 9], |error| matches!(error, PullError::Refused(_))),
        (&[0; 12], |error| matches!(error, PullError::Io(_))), // three bytes of eight
        (&[3; 9], |error| matches!(error, PullError::Busy)),
        (&[], |error| matches!(error, PullError::Io(_))),
    ];
    for (answer, is_right) in answers {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let pull = client.pull(&address, object(1), 0, vec![0; 8]);
        let (mut stream, _) = listener.accept().expect("it dials");
        let mut heard = [0; HANDSHAKE];
        stream.read_exact(&mut heard).expect("it greets");
        stream.write_all(&heard).expect("it is there");
        stream.read_exact(&mut [0; Request::BYTES]).expect("it asks");
        stream.write_all(answer).expect("it is there");
        drop(stream);
        let error = pull.wait().expect_err("it lied");
        assert!(is_right(&error), "{answer:?}: {error:?}");
    }
    // One that accepts and says nothing, and one that greets and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let client = start(Config { handshake: Duration::from_millis(200), ..plain() });
    let error = client.pull(&address, object(1), 0, vec![0; 8]).wait().expect_err("it is silent");
    assert!(matches!(error, PullError::Stalled("the handshake")), "{error}");
    let (first, _) = listener.accept().expect("it dialed");
    drop(first);
    let client = start(Config { stall: Duration::from_millis(200), ..plain() });
    let pull = client.pull(&address, object(1), 0, vec![0; 8]);
    let (mut stream, _) = listener.accept().expect("it dials");
    stream.write_all(&plain_greeting()).expect("it is there");
    assert!(matches!(pull.wait(), Err(PullError::Stalled("the answer"))));
}

/// The idle connections of a puller are those of the server's former life: it dials again.
#[test]
fn a_server_that_was_started_again_is_pulled_from() {
    let config = keyed();
    let client = start(config.clone());
    let mut server = start(config.clone());
    let address = server.address().to_string();
    for _ in 0..3 {
        assert_eq!(fetch(&client, &server, 100), content(100));
        drop(server);
        server = start(Config { bind: address.clone(), ..config.clone() });
    }
}

#[test]
fn idle_connections_are_closed_and_made_again() {
    let config = Config { idle: Duration::from_millis(20), ..keyed() };
    let (client, server) = (start(config.clone()), start(config));
    for _ in 0..5 {
        assert_eq!(fetch(&client, &server, 100), content(100));
        let start = std::time::Instant::now();
        while client.client.peers() > 0 {
            assert!(start.elapsed() < LONG, "nobody closes it");
            std::thread::yield_now();
        }
    }
}

/// A connection's keys open so much; then it is not used again.
#[test]
fn a_connection_that_has_brought_enough_is_not_used_again() {
    let config = Config { renew_after: 1_000, ..keyed() };
    let (client, server) = (start(config.clone()), start(config));
    for (size, is_kept) in [(500, true), (500, false), (500, true), (2_000, false), (0, true)] {
        assert_eq!(fetch(&client, &server, size), content(size));
        assert_eq!(client.client.idle() > 0, is_kept, "{size} bytes");
    }
}

#[test]
fn what_is_wanted_no_more_ends_and_so_does_all_at_the_close() {
    let size = 1 << 20;
    let huge = Bytes::from(vec![7; size]);
    let server = Bulk::start(plain(), move |_| Ok(Some(huge.clone()))).expect("it starts");
    let client = start(Config { per_peer: 2, ..plain() });
    for _ in 0..20 {
        drop(client.pull(server.address(), object(1), 0, vec![0; size]));
    }
    // They have not used up the room.
    assert_eq!(client.pull(server.address(), object(1), 0, vec![0; size]).wait().expect("it comes"), vec![7; size]);
    // Nobody answers this one.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let pull = client.pull(&mute.local_addr().expect("it is bound").to_string(), object(1), 0, vec![0; 1]);
    drop(client);
    assert!(matches!(pull.wait(), Err(PullError::Closed)));
}

#[test]
fn no_more_connections_are_served_than_may_be() {
    let config = Config { served: 2, ..keyed() };
    let server = start(config.clone());
    let clients: Vec<Bulk> = (0..3).map(|_| start(config.clone())).collect();
    assert_eq!(fetch(&clients[0], &server, 10), content(10));
    assert_eq!(fetch(&clients[1], &server, 10), content(10));
    assert!(matches!(error(&clients[2], server.address(), 10), PullError::Busy));
    drop(clients);
    let client = start(config);
    let start = std::time::Instant::now();
    while let Err(error) = client.pull(server.address(), object(10), 0, vec![0; 10]).wait() {
        assert!(matches!(error, PullError::Busy) && start.elapsed() < LONG, "{error}");
    }
}

#[test]
fn a_wider_bind_without_a_key_does_not_start() {
    let config = Config { bind: "0.0.0.0:0".into(), ..Config::default() };
    let error = Bulk::start(config, |_| Ok(None)).expect_err("no key").to_string();
    assert!(error.contains("cluster key"), "{error}");
    let taken = start(Config::default());
    let config = Config { bind: taken.address().into(), ..Config::default() };
    let error = Bulk::start(config, |_| Ok(None)).expect_err("it is in use").to_string();
    assert!(error.contains("could not listen on"), "{error}");
}
