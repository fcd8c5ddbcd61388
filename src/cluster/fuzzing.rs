//! What reads bytes that others have sent, for fuzzers: `fuzz/` calls these with what libFuzzer makes up, and
//! the test below with damaged samples. An input may be refused; what is checked is that nothing panics or
//! overflows, and that nothing is taken for what it is not.

use super::{
    bulk, entry,
    function::{FunctionId, resolve},
    image::Image,
    link::{Config, Credit, Frame, Hello, Incarnation, Input, Link, Message, Now, codec::Batch},
    pack::{self, Pack},
    pipe::Receiver,
    protocol::{HEAD, Message as Control, ObjectId, ProcessId},
    secure::{Channel, Key, Opened, Purpose, TAG},
    station,
    wire::{Envelope, Letter, Site},
};
use bytes::Bytes;
use std::time::Duration;

/// Parts of a transport message: a length of two bytes before each, cut to what is there.
fn parts(mut input: &[u8]) -> Vec<Bytes> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (part, rest) = rest.split_at(length);
        parts.push(Bytes::copy_from_slice(part));
        input = rest;
    }
    parts
}

fn joined(parts: &[Bytes]) -> Vec<u8> {
    let each = parts.iter().flat_map(|part| [&(part.len() as u16).to_le_bytes()[..], part].concat());
    each.collect()
}

/// The frames of a link: what can be read is written as it was, and a link in any state survives it.
pub fn frames(input: &[u8]) {
    let parts = parts(input);
    if let Ok(frame) = Frame::decode(parts.clone()) {
        assert_eq!(Frame::decode(frame.encode()), Ok(frame));
    }
    // One that waits for a greeting, and one that has been greeted.
    for is_greeted in [false, true] {
        let mut link = Link::new(Now::ZERO, 1, Config::default());
        link.handle(Now::ZERO, Input::Attached);
        let _ = link.poll_transmit(Now::ZERO);
        if is_greeted {
            let credit = Credit { messages: 100, bytes: 100_000 };
            let hello = Hello { epoch: 2, known: 0, received: 0, credit };
            link.handle(Now::ZERO, Input::Received(Frame::Hello(hello).encode()));
            let _ = link.send(Message::new(&b"hello"[..]));
            let _ = link.poll_transmit(Now::ZERO);
        }
        // Whole, and its parts as frames of their own.
        link.handle(Now::ZERO, Input::Received(parts.clone()));
        for (at, part) in parts.iter().enumerate() {
            let now = Duration::from_millis(at as u64);
            link.handle(now, Input::Received(vec![part.clone()]));
            let _ = link.poll_transmit(now);
            let _ = link.deadline(true);
        }
    }
}

/// Handshakes and records: what was not made with the key opens nothing.
pub fn records(input: &[u8]) {
    let parts = parts(input);
    if let Ok(key) = Key::generate() {
        for purpose in [Purpose::Messages, Purpose::Bulk] {
            let mut responder = Channel::responder(purpose, Some(&key)).expect("no randomness is needed");
            assert!(responder.open(parts.clone()).is_err() && !responder.can_seal());
        }
    }
    let ends = || (Channel::with_keys([1; 32], [2; 32]), Channel::with_keys([2; 32], [1; 32]));
    let (mut a, mut b) = ends();
    if !parts.is_empty() {
        let sealed = a.seal(parts.clone()).expect("it has keys");
        assert_eq!(b.open(sealed.clone()), Ok(Opened::Message(parts.clone())));
        assert!(b.open(sealed).is_err(), "it was repeated");
    }
    let (_, mut b) = ends();
    assert!(b.open(parts).is_err() && !b.is_open());
    // A record with the input laid over it opens only if that changes nothing.
    let (mut a, mut b) = ends();
    let plain = Bytes::from_static(&[7; 100]);
    let sealed = a.seal(vec![plain]).expect("it has keys");
    let changed: Vec<u8> =
        sealed[0].iter().zip(input.iter().chain(std::iter::repeat(&0))).map(|(x, y)| x ^ y).collect();
    let is_same = input.iter().take(100 + TAG).all(|byte| *byte == 0);
    assert_eq!(b.open(vec![changed.into()]).is_ok(), is_same);
}

/// What a bulk connection reads: greetings, requests and answers.
pub fn bulk(input: &[u8]) {
    bulk::fuzz(input);
}

/// Function ids, as they come and with this executable's hash: nothing is found that is not a function.
pub fn functions(input: &[u8]) {
    if let Ok(id) = rmp_serde::from_slice::<FunctionId>(input) {
        let _ = resolve(&id);
    }
    let (words, _) = input.as_chunks::<8>();
    let (Some([offset, name_hash]), Ok(image)) = (words.first_chunk(), Image::current()) else { return };
    let (offset, name_hash) = (i64::from_le_bytes(*offset), u64::from_le_bytes(*name_hash));
    // Offsets of any size, and those of this size of program.
    for offset in [offset, offset & 0xff_ffff, offset & 0xff_fff8] {
        if let Ok(function) = resolve(&FunctionId { image: image.hash, offset, name_hash }) {
            assert!(!function.name().is_empty());
        }
    }
}

/// What a worker reads over its pipes.
pub fn calls(input: &[u8]) {
    let mut output = Vec::new();
    entry::serve(input, &mut output).expect("there is room in memory");
    assert!(output.len() < 100 * input.len() + 1000, "{} bytes of answers", output.len());
}

/// Letters: as a station reads those of others, alone and several together, and a node and its workers each other's.
/// And packs of tasks and of calls, which are in letters.
pub fn letters(input: &[u8]) {
    let parts = parts(input);
    if let Some((header, payload)) = parts.split_first() {
        let _ = Envelope::parse(header, payload.to_vec());
    }
    let _ = Envelope::parse(input, Vec::new());
    let mut rest = Bytes::copy_from_slice(input);
    let mut count = 0;
    while station::read_small(&mut rest).is_some() {
        count += 1;
        assert!(count <= input.len(), "letters of nothing");
    }
    let mut receiver = Receiver::with(None);
    let mut bytes = input;
    while receiver.read(&mut bytes).is_ok_and(|goes_on| goes_on) {
        while let Ok(Some(_)) = receiver.next() {}
    }
    // A pack is not longer than the number of bytes that it says it is of.
    let pack = Bytes::copy_from_slice(input);
    assert!(Pack::read(&pack).is_none_or(|read| read.members.len() <= input.len()));
    let _ = Pack::count(&pack);
}

/// Inputs that are good, or nearly.
pub fn samples() -> Vec<Vec<u8>> {
    let credit = Credit { messages: 3, bytes: 4 };
    let message = |size: usize| Message { header: vec![1; size].into(), payloads: vec![vec![2; size / 2].into()] };
    let frames = [
        Frame::Intro(Incarnation([5; 16])),
        Frame::Hello(Hello { epoch: 2, known: 1, received: 0, credit }),
        Frame::Batch(Batch { received: 0, credit, first: 0, messages: (0..5).map(|at| message(at * 9)).collect() }),
        Frame::Batch(Batch { received: 1, credit, first: 0, messages: vec![message(40_000)] }),
        Frame::Bye,
    ];
    let mut samples: Vec<Vec<u8>> = frames.iter().map(|frame| joined(&frame.encode())).collect();
    samples.extend([Purpose::Messages, Purpose::Bulk].map(|purpose| {
        let mut greeting = purpose.prologue().to_vec();
        greeting.resize(56, 0);
        greeting
    }));
    samples.push(joined(&[Bytes::from(samples[5].clone())]));
    let owner = ProcessId::station_from(9);
    let common = pack::Common { driver: owner, function: Site::default(), location: "here".into() };
    let mut packed = Vec::new();
    (0..3).for_each(|number| pack::write(&common, number, &[4; 8], number == 0, &mut packed));
    let object = ObjectId { owner, number: 1 };
    let letters = [
        (Letter::Control(Control::Free { object, attempt: 1, unseen: true }), vec![]),
        (Letter::Pack { first: object, kind: pack::PackKind::Tasks { is_granted: true } }, vec![packed.clone().into()]),
        (Letter::Leaving, vec![Bytes::from_static(&[3; 50]), Bytes::new()]),
    ];
    let (mut small, mut piped) = (Vec::new(), Vec::new());
    for (letter, payload) in letters {
        let envelope = Envelope { from: owner, to: HEAD, letter, payload };
        station::write_small(&envelope, &mut small);
        let mut header = Vec::new();
        envelope.write_header(&mut header);
        let lengths = envelope.payload.iter().map(|payload| (payload.len() as u64).to_le_bytes());
        piped.extend([header.len() as u32, envelope.payload.len() as u32].map(u32::to_le_bytes).concat());
        piped.extend(lengths.flatten());
        piped.extend(&header);
        envelope.payload.iter().for_each(|payload| piped.extend_from_slice(payload));
        samples.push(joined(&[&[Bytes::from(header.clone())], &envelope.payload[..]].concat()));
        samples.push(header);
    }
    samples.extend([packed, small, piped]);
    if let Ok(image) = Image::current() {
        let id = FunctionId { image: image.hash, offset: 4096, name_hash: 7 };
        let header = rmp_serde::to_vec(&(id, 1u64, "here")).expect("it is serializable");
        let lengths = [header.len() as u32, 3].map(u32::to_le_bytes).concat();
        samples.push([&lengths[..], &header, &[1, 2, 3]].concat());
        samples.push(header[1..].to_vec());
        samples.push(rmp_serde::to_vec(&id).expect("it is serializable"));
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In debug builds, where overflows are found, fewer: handshakes are slow there.
    const INPUTS: u64 = if cfg!(debug_assertions) { 500 } else { 100_000 };

    fn damaged(seed: u64, samples: &[Vec<u8>]) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut input = samples[random.usize(..samples.len())].clone();
        for _ in 0..random.usize(..6) {
            let at = random.usize(..=input.len());
            match random.u8(..7) {
                0 => input.truncate(at),
                1 => input.insert(at, random.u8(..)),
                2 => drop(input.splice(at.., samples[random.usize(..samples.len())].iter().copied()).count()),
                3 if at + 8 <= input.len() => input[at..at + 8].copy_from_slice(&random.u64(..).to_le_bytes()),
                4 if at + 4 <= input.len() => input[at..at + 4].fill(0xff),
                5 => input.extend(std::iter::repeat_with(|| random.u8(..)).take(at % 200)),
                _ if at < input.len() => input[at] ^= 1 << random.u8(..8),
                _ => {}
            }
        }
        input
    }

    fn all(name: &str, target: fn(&[u8])) {
        let samples = samples();
        for seed in 0..INPUTS {
            let input = damaged(seed, &samples);
            if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
                eprintln!("{name} failed with seed {seed}: {input:?}");
                std::panic::resume_unwind(panic);
            }
        }
    }

    #[test]
    fn fuzz_frames() {
        all("frames", frames);
    }

    #[test]
    fn fuzz_records() {
        all("records", records);
    }

    #[test]
    fn fuzz_bulk() {
        all("bulk", bulk);
    }

    #[test]
    fn fuzz_functions() {
        all("functions", functions);
    }

    #[test]
    fn fuzz_calls() {
        all("calls", calls);
    }

    #[test]
    fn fuzz_letters() {
        all("letters", letters);
    }

    /// What is damaged above is good at first.
    #[test]
    fn the_samples_of_letters_can_be_read() {
        let samples = samples();
        let found = |reads: fn(&[u8]) -> usize| samples.iter().map(|sample| reads(sample)).max();
        assert_eq!(
            found(|sample| Pack::read(&Bytes::copy_from_slice(sample)).map_or(0, |pack| pack.members.len())),
            Some(3)
        );
        let small = |sample: &[u8]| {
            let mut rest = Bytes::copy_from_slice(sample);
            std::iter::from_fn(|| station::read_small(&mut rest)).count()
        };
        assert_eq!(found(small), Some(3));
        let piped = |mut sample: &[u8]| {
            let mut receiver = Receiver::with(None);
            let _ = receiver.read(&mut sample);
            std::iter::from_fn(|| receiver.next().ok().flatten()).count()
        };
        assert_eq!(found(piped), Some(3));
    }
}
