//! What `docs/security.md` says of connections, keys and what is shown of them.

use super::{
    attacks::{connect, is_closed, ready},
    processes::{Child, Setup},
    *,
};
use crate::cluster::{
    bulk::{self, Bulk},
    link::{Credit, Frame},
    protocol::{ObjectId, ProcessId},
    secure::{Channel, HANDSHAKE, Opened, Purpose},
};
use bytes::Bytes;
use std::path::PathBuf;

/// A key, and the file it is in, which goes with the test.
struct KeyFile {
    key: Key,
    directory: PathBuf,
}

impl KeyFile {
    fn new(name: &str) -> KeyFile {
        let key = Key::generate().expect("randomness");
        let directory = std::env::temp_dir().join(format!("outray-security-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory");
        let file = KeyFile { key, directory };
        file.key.save(&file.path()).expect("it is saved");
        file
    }

    fn path(&self) -> PathBuf {
        self.directory.join("cluster.key")
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Whether `bytes` have eight bytes of the key that follow each other: as they are, as hexadecimal
/// digits, or as a list of numbers.
fn shows(bytes: &[u8], key: &Key) -> bool {
    let contains = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    key.bytes().windows(8).any(|part| {
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = part.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        [part, hex.as_bytes(), hex.to_uppercase().as_bytes(), list.as_bytes()].into_iter().any(contains)
    })
}

#[test]
fn the_search_for_a_key_finds_one() {
    let key = Key::generate().expect("randomness");
    let hex: String = key.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    for text in [hex.to_uppercase(), hex, format!("{:?}", key.bytes())] {
        assert!(shows(text.as_bytes(), &key), "{text}");
    }
    assert!(shows(key.bytes(), &key) && !shows(&[0; 100], &key));
}

/// A message of ZMTP's with one part.
fn frame(part: &[u8]) -> Vec<u8> {
    [&[0, part.len() as u8], part].concat()
}

/// What it says after the connection is made, in turn; each waits for an answer of HANDSHAKE bytes
/// if there is one more.
fn attack(address: &str, says: &[Vec<u8>]) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(&says[0]).expect("it is there");
    for more in &says[1..] {
        let mut heard = Vec::new();
        let mut byte = [0];
        while !heard.windows(8).any(|bytes| bytes == Purpose::Messages.prologue()) {
            stream.read_exact(&mut byte).expect("it answers");
            heard.push(byte[0]);
        }
        stream.write_all(more).expect("it is there");
    }
    stream
}

fn first_of(key: &Key) -> (Channel, Vec<u8>) {
    let (channel, first) = Channel::initiator(Purpose::Messages, Some(key)).expect("it starts");
    (channel, first.expect("there is a key").concat())
}

/// Everything that one can say without having the key, as often as one likes: it is answered with the
/// greeting of the transport and at most one handshake message, and ends the connection.
fn strangers(address: &str, key: &Key, times: usize) {
    let other = Key::generate().expect("randomness");
    let plain = |frame: Frame| frame.encode().concat();
    let intro = plain(Frame::Intro(Incarnation([1; 16])));
    let hello = link::Hello { epoch: 1, known: 0, received: 0, credit: Credit { messages: 9, bytes: 9 } };
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..times {
        // What somebody with the key has said on another connection.
        let (_, recorded) = first_of(key);
        let garbage: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(200).collect();
        let kinds: [Vec<Vec<u8>>; 9] = [
            vec![garbage.clone()],
            vec![b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()],
            vec![[ready(), frame(&intro)].concat()],
            vec![[ready(), frame(&plain(Frame::Hello(hello)))].concat()],
            vec![[ready(), frame(&plain(Frame::Bye))].concat()],
            vec![[ready(), frame(&first_of(&other).1)].concat()],
            vec![[ready(), frame(&recorded[..HANDSHAKE - 1])].concat()],
            vec![[ready(), frame(&recorded)].concat(), frame(&garbage)],
            vec![[ready(), frame(&recorded), frame(&recorded)].concat()],
        ];
        for (kind, says) in kinds.iter().enumerate() {
            let mut stream = attack(address, says);
            // Who says what is no ZMTP at all may be kept until the handshake's time is over.
            let mut heard = vec![0; 4096];
            let mut total = 0;
            loop {
                match stream.read(&mut heard) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => total += length,
                }
            }
            assert!(total < 64 + 200 + HANDSHAKE, "kind {kind} got {total} bytes");
            assert!(is_closed(&mut stream));
        }
    }
}

#[test]
fn without_the_key_one_can_do_nothing_at_all() {
    log::collect();
    let key = Key::generate().expect("randomness");
    let config = Config { key: Some(key.clone()), handshake: LONG, ..Config::default() };
    let (mut a, mut b) = (start_with(config.clone()), start_with(config));
    join(&mut a, &mut b);
    strangers(b.0.address(), &key, 3);
    assert_eq!(b.1.recv_timeout(Duration::ZERO), None, "nobody was let in, and nobody heard of");
    exchange(&mut a, &mut b, 1000);
    exchange(&mut b, &mut a, 1000);
}

#[test]
fn strangers_cost_a_bounded_amount_of_memory_and_descriptors() {
    let file = KeyFile::new("strangers");
    let child = Child::start_as(&Setup { key: Some(&file.path()), ..Setup::default() });
    strangers(&child.address, &file.key, 1);
    let (before, descriptors) = (child.resident(), child.descriptors());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| strangers(&child.address, &file.key, 10));
        }
    });
    // 720 connections.
    assert!(child.resident() < before + 64, "{} MiB, {before} before", child.resident());
    let start = std::time::Instant::now();
    while child.descriptors() > descriptors + 8 {
        assert!(start.elapsed() < LONG, "{} descriptors, {descriptors} before", child.descriptors());
        std::thread::yield_now();
    }
    // Who has the key is served.
    let config = Config { key: Some(file.key.clone()), ..Config::default() };
    let (endpoint, mut events) = start_with(config);
    endpoint.connect(&child.address);
    let peer = next_up(&mut events);
    endpoint.send(peer, numbered(0)).expect("it is up");
    assert_eq!(next(&mut events), Event::Message(peer, numbered(0)));
}

/// Somebody who has the key and does not say who it is, or says what a link does not, is dropped too.
#[test]
fn the_right_handshake_and_then_garbage_ends_the_connection() {
    let key = Key::generate().expect("randomness");
    let (endpoint, mut events) = start_with(Config { key: Some(key.clone()), handshake: LONG, ..Config::default() });
    let garbage = vec![Bytes::from_static(b"\xff\xff\xff garbage")];
    let intro = Frame::Intro(Incarnation([9; 16])).encode();
    for says in
        [vec![garbage.clone()], vec![Frame::Bye.encode()], vec![intro.clone(), garbage], vec![intro.clone(), intro]]
    {
        let (mut channel, first) = first_of(&key);
        let mut stream = attack(endpoint.address(), &[[ready(), frame(&first)].concat(), Vec::new()]);
        let mut rest = [0; HANDSHAKE - 8];
        stream.read_exact(&mut rest).expect("it answers");
        let answer = [&Purpose::Messages.prologue()[..], &rest].concat();
        assert_eq!(channel.open(vec![answer.into()]), Ok(Opened::Handshake(None)));
        for message in says {
            let sealed = channel.seal(message).expect("it seals").concat();
            stream.write_all(&frame(&sealed)).expect("it is there");
        }
        assert!(is_closed(&mut stream));
    }
    assert_eq!(events.recv_timeout(Duration::ZERO), None, "nobody has greeted");
}

/// On the way messages are repeated, changed and lost: connections break, and nothing else happens.
#[test]
fn records_that_are_repeated_or_changed_on_their_way_break_a_connection_and_no_promise() {
    log::collect();
    let network = Network::default();
    let key = Some(Key::generate().expect("randomness"));
    let start = |bind: &str| {
        let transport = network.transport();
        let link = link::Config { resend_after: Duration::from_millis(50), ..link::Config::default() };
        let retry = (Duration::from_millis(1), Duration::from_millis(10));
        let config = Config { bind: bind.into(), key: key.clone(), link, retry, ..Config::default() };
        Endpoint::start(config, move || transport).expect("it starts")
    };
    let (mut a, mut b) = (start("localhost:1"), start("localhost:2"));
    join(&mut a, &mut b);
    for round in 0..40 {
        match round % 4 {
            0 => network.repeat(1),
            1 => network.change(1),
            2 => network.lose(1),
            _ => {}
        }
        exchange(&mut a, &mut b, 50);
        exchange(&mut b, &mut a, 50);
    }
    log::until("a record does not open");
}

/// A connection's keys seal so much and no more; the link goes on over another connection.
#[test]
fn a_connection_is_renewed_before_its_keys_have_sealed_too_much() {
    log::collect();
    let key = Some(Key::generate().expect("randomness"));
    let retry = (Duration::from_millis(1), Duration::from_millis(10));
    let config = Config { key, retry, renew_after: 50_000, ..Config::default() };
    let (mut a, mut b) = (start_with(config.clone()), start_with(config));
    join(&mut a, &mut b);
    for _ in 0..5 {
        exchange(&mut a, &mut b, 5_000);
        exchange(&mut b, &mut a, 5_000);
    }
    log::until("for new keys");
}

#[test]
fn no_log_line_and_no_debug_output_shows_a_key() {
    log::collect();
    let key = Key::generate().expect("randomness");
    let config = Config { key: Some(key.clone()), handshake: LONG, ..Config::default() };
    let (mut a, mut b) = (start_with(config.clone()), start_with(config.clone()));
    join(&mut a, &mut b);
    exchange(&mut a, &mut b, 100);
    strangers(b.0.address(), &key, 1);
    let bulk_config = bulk::Config { key: Some(key.clone()), ..bulk::Config::default() };
    let server = Bulk::start(bulk_config.clone(), |_| Ok(Some(Bytes::from_static(b"12345678")))).expect("it starts");
    let object = ObjectId { owner: ProcessId(1), number: 1 };
    let pull = server.pull(server.address(), object, 0, vec![0; 8]);
    let shown = [
        format!("{config:?} {config:#?} {bulk_config:?} {key:?}"),
        format!("{:?} {:?} {server:?} {pull:?}", a.0, a.1),
        format!("{:?}", Channel::initiator(Purpose::Bulk, Some(&key)).expect("it starts").0),
        format!("{:?}", Channel::with_keys(*key.bytes(), *key.bytes())),
        format!("{:?}", Channel::with_keys(*key.bytes(), *key.bytes()).split()),
    ];
    pull.wait().expect("it is there");
    let unusable = Config { bind: "no address".into(), ..config };
    let error = Endpoint::start(unusable, Omq::new).expect_err("it is none");
    let shown = shown.into_iter().chain([format!("{error} {error:?}")]).collect::<Vec<_>>();
    assert!(a.0.close(LONG));
    drop(b);
    let logged = log::all();
    assert!(logged.iter().any(|line| line.contains("peer is up")), "{} lines", logged.len());
    for line in shown.iter().chain(&logged) {
        assert!(!shows(line.as_bytes(), &key), "{line}");
    }
}

/// The key comes from a file, so that neither arguments nor the environment have it, here or in children.
#[test]
fn the_key_is_in_no_argument_and_no_environment() {
    let file = KeyFile::new("proc");
    let child = Child::start_as(&Setup { key: Some(&file.path()), ..Setup::default() });
    for name in ["cmdline", "environ", "comm"] {
        assert!(!shows(&child.file(name), &file.key), "{name}");
    }
}
