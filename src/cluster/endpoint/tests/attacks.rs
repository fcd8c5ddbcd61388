//! What anybody can do who reaches the port and has no key.

use super::{
    processes::{Child, Setup},
    *,
};
use std::{
    io::ErrorKind,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// ZMTP 3.0's greeting and READY of a DEALER: what comes before the first message.
pub(super) fn ready() -> Vec<u8> {
    ready_as("DEALER", None)
}

fn ready_as(socket: &str, identity: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0];
    bytes.extend(b"NULL");
    bytes.resize(64, 0);
    let mut command = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", Some(socket.as_bytes())), ("Identity", identity)] {
        let Some(value) = value else { continue };
        command.push(name.len() as u8);
        command.extend(name.as_bytes());
        command.extend((value.len() as u32).to_be_bytes());
        command.extend(value);
    }
    bytes.extend([4, command.len() as u8]);
    bytes.extend(command);
    bytes
}

pub(super) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(LONG)).expect("it is set");
    stream.set_write_timeout(Some(LONG)).expect("it is set");
    stream
}

/// Whether the other side closes the connection.
pub(super) fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}

/// A peer joins a child and is answered.
#[track_caller]
fn join_child(child: &Child) {
    let (endpoint, mut events) = start();
    endpoint.connect(&child.address);
    let peer = next_up(&mut events);
    endpoint.send(peer, numbered(0)).expect("it is up");
    assert_eq!(next(&mut events), Event::Message(peer, numbered(0)));
}

/// Lengths that nobody has memory for: the process lives, and reserves nothing for them.
#[test]
fn declared_huge_lengths_cost_nothing() {
    let child = Child::start();
    let (before, reserved) = (child.resident(), child.reserved());
    let mut streams = Vec::new();
    for exponent in [21, 30, 31, 34, 40, 45, 62, 63] {
        for flags in [2, 3, 6] {
            for is_ready in [false, true] {
                let mut bytes = ready();
                if !is_ready {
                    bytes.truncate(64);
                }
                bytes.push(flags);
                bytes.extend((1u64 << exponent).to_be_bytes());
                bytes.extend([0; 100]);
                let mut stream = connect(&child.address);
                stream.write_all(&bytes).expect("it is there");
                streams.push(stream);
            }
        }
    }
    join_child(&child);
    assert!(streams.iter_mut().all(is_closed));
    assert!(child.resident() < before + 32, "{} MiB, {before} before", child.resident());
    assert!(child.reserved() < reserved + 512, "{} MiB, {reserved} before", child.reserved());
}

/// Frames that never end, and messages of frames that never end.
#[test]
fn endless_frames_cost_a_bounded_amount_of_memory() {
    let child = Child::start();
    let before = child.resident();
    let endless: [(bool, Vec<u8>); 4] = [
        (true, [1, 0].repeat(32 << 10)),              // empty parts of one message
        (true, [1, 1, 7].repeat(20 << 10)),           // small ones
        (true, [0, 1, 7].repeat(20 << 10)),           // messages
        (false, [4, 3, 1, b'X', 0].repeat(12 << 10)), // commands in the handshake
    ];
    for (is_ready, chunk) in endless {
        let mut stream = connect(&child.address);
        stream.write_all(&ready()[..if is_ready { ready().len() } else { 64 }]).expect("it is there");
        let mut written = 0;
        let error = loop {
            match stream.write_all(&chunk) {
                Ok(()) => written += chunk.len(),
                Err(error) => break error,
            }
            assert!(written < 200 << 20, "nobody closes it");
        };
        assert!(!matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "nobody closes it: {error}");
        assert!(child.resident() < before + 64, "{} MiB, {before} before", child.resident());
        join_child(&child);
    }
    // One frame as large as is allowed, sent but for its end, and then nothing.
    let mut bytes = ready();
    bytes.push(2);
    bytes.extend((1u64 << 20).to_be_bytes());
    bytes.resize(bytes.len() + (1 << 20) - 1, 0);
    let mut streams: Vec<_> = (0..32).map(|_| connect(&child.address)).collect();
    for stream in &mut streams {
        stream.write_all(&bytes).expect("it is there");
    }
    join_child(&child);
    assert!(streams.iter_mut().all(is_closed), "they are dropped in time");
    assert!(child.resident() < before + 128, "{} MiB, {before} before", child.resident());
}

/// Whoever is dialed says such things, too.
#[test]
fn a_listener_that_declares_lengths_or_never_ends_costs_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let child = Child::start_as(&Setup { dials: Some(&address), ..Setup::default() });
    let (before, reserved) = (child.resident(), child.reserved());
    let ready = ready_as("ROUTER", None);
    let accept = || {
        let (stream, _) = listener.accept().expect("it dials again");
        stream.set_read_timeout(Some(LONG)).expect("it is set");
        stream.set_write_timeout(Some(LONG)).expect("it is set");
        stream
    };
    for exponent in [21, 31, 45, 63] {
        for flags in [2, 3, 6] {
            let mut stream = accept();
            let length = (1u64 << exponent).to_be_bytes();
            // It may close before all is written.
            let _ = stream.write_all(&[&ready[..], &[flags], &length, &[0; 100]].concat());
            assert!(is_closed(&mut stream));
        }
    }
    for chunk in [[1, 0].repeat(32 << 10), [0, 1, 7].repeat(20 << 10)] {
        let mut stream = accept();
        let mut error = stream.write_all(&ready).err();
        let mut written = 0;
        while error.is_none() {
            error = stream.write_all(&chunk).err();
            written += chunk.len();
            assert!(written < 200 << 20, "nobody closes it");
        }
        let kind = error.expect("it ended").kind();
        assert!(!matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "nobody closes it: {kind}");
    }
    join_child(&child);
    assert!(child.resident() < before + 64, "{} MiB, {before} before", child.resident());
    assert!(child.reserved() < reserved + 512, "{} MiB, {reserved} before", child.reserved());
}

/// Thousands of strangers, and hundreds of peers that join and leave; one that stays is served all the while.
#[test]
fn thousands_of_connections_come_and_go() {
    let child = Child::start();
    let mut stays = start();
    stays.0.connect(&child.address);
    let peer = next_up(&mut stays.1);
    let all_came = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let strangers = [0, 1, 2, 3].map(|thread| {
            let address = &child.address;
            scope.spawn(move || {
                for at in 0..2500 {
                    let mut stream = connect(address);
                    match (at + thread) % 4 {
                        0 => {}
                        1 => drop(stream.write_all(&ready())),
                        2 => drop(stream.write_all(&[&ready()[..], &[0, 5], b"hello"].concat())),
                        _ => drop(stream.write_all(b"GET / HTTP/1.1\r\n\r\n")),
                    }
                }
            })
        });
        let peers = scope.spawn(|| (0..200).for_each(|_| join_child(&child)));
        scope.spawn(|| {
            let mut at = 0;
            while !all_came.load(Relaxed) {
                stays.0.send(peer, numbered(at)).expect("there is room");
                assert_eq!(next(&mut stays.1), Event::Message(peer, numbered(at)));
                at += 1;
            }
        });
        let ends = strangers.map(|strangers| strangers.join());
        let end = peers.join();
        all_came.store(true, Relaxed);
        assert!(end.is_ok() && ends.iter().all(Result::is_ok));
    });
    join_child(&child);
    // 85 MiB after 10,000 connections, and the same after 40,000: the allocator keeps them.
    assert!(child.resident() < 160, "{} MiB", child.resident());
    // Those that closed are closed; the last of them may not be seen yet.
    let start = std::time::Instant::now();
    while child.descriptors() > 64 {
        assert!(start.elapsed() < LONG, "{} descriptors", child.descriptors());
        std::thread::yield_now();
    }
}

/// 600 say nothing, and whenever one is dropped another comes, until the new peer has joined.
#[test]
fn silent_connections_keep_nobody_out_and_are_dropped() {
    let child = Child::start();
    let mut silent: Vec<_> = (0..600).map(|_| connect(&child.address)).collect();
    // Some go as far as one can without a key.
    for stream in silent.iter_mut().step_by(3) {
        stream.write_all(&ready()).expect("it is there");
    }
    let has_joined = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !has_joined.load(Relaxed) {
                for stream in &mut silent {
                    stream.set_nonblocking(true).expect("it is set");
                    let is_open = !is_closed(stream);
                    stream.set_nonblocking(false).expect("it is set");
                    if !is_open {
                        *stream = connect(&child.address);
                    }
                }
            }
        });
        let start = std::time::Instant::now();
        let joined = std::panic::catch_unwind(|| join_child(&child));
        has_joined.store(true, Relaxed);
        assert!(joined.is_ok());
        println!("joined beside 600 silent connections in {:?}", start.elapsed());
    });
    assert!(silent.iter_mut().all(is_closed));
}

/// A process that may open no more: those that are there are served, and when there is room again others join.
#[test]
fn without_descriptors_those_that_are_there_are_served() {
    let child = Child::start_as(&Setup { descriptors: Some(64), ..Setup::default() });
    let mut stays = start();
    stays.0.connect(&child.address);
    let peer = next_up(&mut stays.1);
    for round in 0..5 {
        let crowd: Vec<_> = (0..200).map(|_| connect(&child.address)).collect();
        for at in round * 100..(round + 1) * 100 {
            stays.0.send(peer, numbered(at)).expect("there is room");
            assert_eq!(next(&mut stays.1), Event::Message(peer, numbered(at)));
        }
        drop(crowd);
    }
    join_child(&child);
}

/// ZeroMQ lets a peer choose what it is called: nobody can be called as another is.
#[test]
fn nobody_takes_the_place_of_another() {
    let (mut a, mut b) = (start(), start());
    join(&mut a, &mut b);
    let numbers = (0..16_u32).map(|number| [&[0], &number.to_be_bytes()[..]].concat());
    let longer = (0..16_u64).map(|number| [&[0], &number.to_be_bytes()[..]].concat());
    let names = [b"same".to_vec(), b"same".to_vec(), b"same".to_vec(), vec![0], a.0.incarnation().0.to_vec()];
    let streams: Vec<_> = numbers
        .chain(longer)
        .chain(names)
        .map(|name| {
            let mut stream = connect(b.0.address());
            // Who is refused may be so before all is written.
            let _ = stream.write_all(&[&ready_as("DEALER", Some(&name))[..], &[0, 5], b"hello"].concat());
            stream
        })
        .collect();
    for mut stream in streams {
        assert!(is_closed(&mut stream));
        exchange(&mut a, &mut b, 10);
        exchange(&mut b, &mut a, 10);
    }
    for events in [&mut a.1, &mut b.1] {
        assert_eq!(events.recv_timeout(Duration::ZERO), None, "nobody was let in or lost");
    }
}

/// They are dropped and logged, and those who have the key go on.
#[test]
fn who_has_another_key_or_speaks_garbage_is_dropped() {
    log::collect();
    let key = || Some(Key::generate().expect("randomness"));
    let config = Config { key: key(), ..Config::default() };
    let (mut a, mut b) = (start_with(config.clone()), start_with(config));
    join(&mut a, &mut b);

    let wrong = start_with(Config { key: key(), ..Config::default() });
    wrong.0.connect(b.0.address());
    log::until("it has another cluster key");
    let none = start();
    none.0.connect(b.0.address());
    log::until("it does not start with outray's handshake");

    let garbage: [&[u8]; 4] = [b"\x00\x05hello", b"\x00\x00", b"\x01\x05hello\x00\x05hello", &[0; 3]];
    for garbage in garbage {
        let mut stream = connect(b.0.address());
        stream.write_all(&[&ready()[..], garbage].concat()).expect("it is there");
        assert!(is_closed(&mut stream));
    }
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..200 {
        let mut stream = connect(b.0.address());
        let mut bytes = ready();
        let at = rng.usize(..bytes.len());
        bytes[at] ^= rng.u8(1..);
        let more = rng.usize(..200);
        bytes.extend(std::iter::repeat_with(|| rng.u8(..)).take(more));
        let _ = stream.write_all(&bytes);
    }
    exchange(&mut a, &mut b, 1000);
    exchange(&mut b, &mut a, 1000);
    for events in [&mut a.1, &mut b.1] {
        assert_eq!(events.recv_timeout(Duration::ZERO), None, "nobody else was let in");
    }
}
