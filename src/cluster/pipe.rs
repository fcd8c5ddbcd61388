//! Letters over a pipe, between a node and one of its workers.
//!
//! ```text
//! frame = length of the header: u32, number of payloads: u32, of each its length or place: u64, header, payloads   (little-endian)
//! ```
//!
//! A payload of some kilobytes that a worker sends may lie in memory that it shares with its node ([`arena`]): then it has a place and
//! nothing in the pipe.
//!
//! Both ends are the same executable or trust each other with it; lengths are checked so that a worker that breaks
//! off in the middle of a frame, or writes garbage, costs its node nothing but that worker.

use super::{
    arena::{self, Place},
    pack::{self, Told},
    protocol::{ObjectId, ProcessId},
    wire::{Envelope, Letter},
};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use smallvec::SmallVec;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

/// The longest header, in bytes, and the most payloads.
const LONGEST: [u32; 2] = [256 << 20, 1 << 20];
/// So many bytes may wait between a node and a worker before the one that writes has to wait.
pub(crate) const ROOM: usize = 256 << 10;
/// The longest payloads together, in bytes.
const MOST: u64 = 1 << 40;
/// Of a word that is a place and no length.
const APART: u64 = 1 << 63;

/// The word of a payload that is in the arena.
fn apart(place: Place) -> u64 {
    APART | u64::from(place.block) << 32 | u64::from(place.bytes)
}

/// The place that a word stands for.
fn is_apart(word: u64) -> Option<Place> {
    let place = Place { block: (word >> 32) as u32 & (u32::MAX >> 1), bytes: word as u32 };
    (word & APART > 0).then_some(place)
}

/// The writing end, for any number of threads. Whoever finds nobody writing writes what there is, and what others add
/// meanwhile; so letters that come together go together, and no other thread is woken for one.
#[derive(Clone)]
pub(crate) struct Sender(Arc<Shared>);

struct Shared {
    output: Output,
    state: Mutex<State>,
}

enum Output {
    /// Writing may wait.
    Waiting(File),
    /// Writing never waits: what does not fit is left to a thread.
    Ready(UnixStream),
}

#[derive(Default)]
struct State {
    /// For payloads that need not go through the pipe.
    arena: Option<arena::Writer>,
    buffer: Vec<u8>,
    /// The memory of what was written last, for what comes next.
    spare: Vec<u8>,
    /// Where the last frame begins, if it is one of results, and for whom they are.
    results: Option<(usize, ProcessId)>,
    is_busy: bool,
    is_broken: bool,
}

impl Sender {
    /// For a worker, whose node always reads.
    pub(crate) fn waiting(file: File, arena: Option<arena::Writer>) -> Sender {
        let state = Mutex::new(State { arena, ..State::default() });
        Sender(Arc::new(Shared { output: Output::Waiting(file), state }))
    }

    /// For a node, which must not wait for a worker.
    pub(crate) fn ready(stream: UnixStream) -> io::Result<Sender> {
        stream.set_nonblocking(true)?;
        Ok(Sender(Arc::new(Shared { output: Output::Ready(stream), state: Mutex::default() })))
    }

    /// Sends a letter, after those before it. If the other end is gone nothing happens; whoever reads notices that.
    pub(crate) fn send(&self, envelope: &Envelope) {
        self.put(envelope);
        self.flush();
    }

    /// Sends what was put, and says whether there was anything.
    pub(crate) fn flush(&self) -> bool {
        {
            let state = &mut *self.0.state.lock();
            if state.buffer.is_empty() {
                return false;
            }
            if std::mem::replace(&mut state.is_busy, true) {
                return true;
            }
        }
        self.0.clone().write(false);
        true
    }

    /// Puts a letter behind those before it; somebody has to flush them. Says how many bytes wait.
    pub(crate) fn put(&self, envelope: &Envelope) -> usize {
        let state = &mut *self.0.state.lock();
        state.put(envelope);
        state.buffer.len()
    }

    /// The same for the result of a task that came in a pack, with others for the same owner.
    pub(crate) fn put_result(&self, from: ProcessId, object: ObjectId, took: u32, value: &[u8]) -> usize {
        let state = &mut *self.0.state.lock();
        let owner = object.owner;
        if state.is_broken {
            return 0;
        }
        let place = state.arena.as_mut().and_then(|arena| arena.put(value));
        let write = |out: &mut Vec<u8>| match place {
            Some(place) => Told::Apart(place).write(object.number, took, out),
            None => pack::write_value(object.number, took, value, out),
        };
        let at = match state.results.filter(|(_, to)| *to == owner) {
            Some((at, _)) => at,
            None => {
                let (at, to, letter) = (state.buffer.len(), from.station(), Letter::Results { owner });
                state.put(&Envelope { from, to, letter, payload: vec![Bytes::new()] });
                state.results = Some((at, owner));
                at
            }
        };
        let before = state.buffer.len();
        write(&mut state.buffer);
        let by = (state.buffer.len() - before) as u64;
        if let Some(length) = state.buffer.get_mut(at + 8..).and_then(|rest| rest.first_chunk_mut::<8>()) {
            *length = (u64::from_le_bytes(*length) + by).to_le_bytes();
        }
        state.buffer.len()
    }
}

impl State {
    fn put(&mut self, envelope: &Envelope) {
        if self.is_broken {
            return;
        }
        self.results = None;
        let buffer = &mut self.buffer;
        let at = buffer.len();
        buffer.extend([0; 4]);
        buffer.extend((envelope.payload.len() as u32).to_le_bytes());
        for payload in &envelope.payload {
            let place = self.arena.as_mut().and_then(|arena| arena.put(payload));
            buffer.extend(place.map_or(payload.len() as u64, apart).to_le_bytes());
        }
        let start = buffer.len();
        envelope.write_header(buffer);
        let length = (buffer.len() - start) as u32;
        buffer[at..at + 4].copy_from_slice(&length.to_le_bytes());
        let mut word = at + 8;
        for payload in &envelope.payload {
            if buffer[word..].first_chunk().is_some_and(|word| is_apart(u64::from_le_bytes(*word)).is_none()) {
                buffer.extend_from_slice(payload);
            }
            word += 8;
        }
    }
}

impl Shared {
    /// Writes all there is. `may_wait`: this thread has nothing else to do.
    fn write(self: Arc<Self>, may_wait: bool) {
        let mut rest = Vec::new();
        let mut at = 0;
        loop {
            if at == rest.len() {
                let state = &mut *self.state.lock();
                rest.clear();
                if rest.capacity() <= ROOM && rest.capacity() > state.spare.capacity() {
                    std::mem::swap(&mut rest, &mut state.spare);
                }
                if state.buffer.is_empty() {
                    state.is_busy = false;
                    return;
                }
                rest = std::mem::replace(&mut state.buffer, std::mem::take(&mut state.spare));
                state.results = None;
                at = 0;
            }
            let written = match &self.output {
                Output::Waiting(file) => (&*file).write(&rest[at..]),
                Output::Ready(stream) => (&*stream).write(&rest[at..]),
            };
            match written {
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !may_wait {
                        rest.drain(..at);
                        return self.leave(rest);
                    }
                    if let Output::Ready(stream) = &self.output {
                        let _ = poll(&mut [PollFd::new(stream, PollFlags::OUT)], None); // then it is tried again
                    }
                }
                Err(_) => {
                    let state = &mut *self.state.lock();
                    (state.is_broken, state.buffer) = (true, Vec::new());
                    return;
                }
            }
        }
    }

    /// The other end is slow: a thread does the rest.
    fn leave(self: Arc<Self>, mut rest: Vec<u8>) {
        {
            let state = &mut *self.state.lock();
            state.results = None;
            rest.append(&mut state.buffer);
            state.buffer = rest;
        }
        std::thread::spawn(move || self.write(true));
    }
}

/// The receiving end: what has arrived of the letters.
#[derive(Default)]
pub(crate) struct Receiver {
    /// What lies apart.
    arena: Option<Arc<arena::Reader>>,
    buffer: BytesMut,
    /// Where `read` reads to.
    chunk: Vec<u8>,
    /// Of the frame whose header and words are there: the length of the header, and of each payload its length or place.
    words: Option<(usize, Words)>,
}

/// Of each payload of a frame.
type Words = SmallVec<[u64; 2]>;

/// The bytes that a payload has in the pipe.
fn in_pipe(word: &u64) -> u64 {
    if is_apart(*word).is_some() { 0 } else { *word }
}

impl Receiver {
    /// Of letters from who has the other end of this arena.
    pub(crate) fn with(arena: Option<Arc<arena::Reader>>) -> Receiver {
        Receiver { arena, ..Receiver::default() }
    }

    /// Where bytes that arrive are to be put.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < 16 << 10 {
            self.buffer.reserve(64 << 10);
        }
        &mut self.buffer
    }

    /// The next letter that is complete.
    ///
    /// # Errors
    /// What has arrived is not one, and nothing after it can be read.
    pub(crate) fn next(&mut self) -> io::Result<Option<Envelope>> {
        let (header, words) = match self.words.take() {
            Some(words) => words,
            None => match self.words()? {
                Some(words) => words,
                None => return Ok(None),
            },
        };
        if self.buffer.len() < header + words.iter().map(in_pipe).sum::<u64>() as usize {
            self.words = Some((header, words));
            return Ok(None);
        }
        let header = self.buffer.split_to(header);
        let payloads = words.into_iter().map(|word| match is_apart(word) {
            Some(place) => self.arena.as_ref().and_then(|arena| arena.take(place)),
            None => Some(self.buffer.split_to(word as usize).freeze()),
        });
        let payloads: Option<Vec<Bytes>> = payloads.collect();
        let envelope = payloads.and_then(|payloads| Envelope::parse(&header, payloads));
        envelope.map(Some).ok_or_else(|| io::Error::other("a letter that cannot be read"))
    }

    /// The words at the front, once they have all arrived.
    fn words(&mut self) -> io::Result<Option<(usize, Words)>> {
        let Some(first) = self.buffer.first_chunk::<8>() else { return Ok(None) };
        let (lengths, _) = first.as_chunks::<4>();
        let [header, count] = [0, 1].map(|at| u32::from_le_bytes(lengths[at]));
        if header > LONGEST[0] || count > LONGEST[1] {
            return Err(io::Error::other("a frame that is too long"));
        }
        let Some(words) = self.buffer.get(8..8 + 8 * count as usize) else { return Ok(None) };
        let (words, _) = words.as_chunks::<8>();
        let words: Words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let total = words.iter().map(in_pipe).try_fold(0u64, |total, length| total.checked_add(length));
        if total.is_none_or(|total| total > MOST) {
            return Err(io::Error::other("a frame that is too long"));
        }
        self.buffer.advance(8 + 8 * count as usize);
        Ok(Some((header as usize, words)))
    }

    /// Waits for more from a pipe; `false` at its end.
    ///
    /// # Errors
    /// It cannot be read, or it has ended in the middle of a letter.
    pub(crate) fn read(&mut self, input: &mut impl Read) -> io::Result<bool> {
        self.chunk.resize(64 << 10, 0);
        loop {
            match input.read(&mut self.chunk) {
                Ok(0) => return self.ended().map(|()| false),
                Ok(count) => {
                    self.buffer.extend_from_slice(&self.chunk[..count]);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Nothing more will come.
    ///
    /// # Errors
    /// A letter is cut off.
    pub(crate) fn ended(&self) -> io::Result<()> {
        match self.buffer.is_empty() && self.words.is_none() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{protocol::HEAD, wire::Letter};

    /// The next letter; `None` at the end.
    fn next(receiver: &mut Receiver, input: &mut impl Read) -> io::Result<Option<Envelope>> {
        loop {
            if let Some(envelope) = receiver.next()? {
                return Ok(Some(envelope));
            }
            if !receiver.read(input)? {
                return Ok(None);
            }
        }
    }

    fn letter(size: usize) -> Envelope {
        let payload = vec![Bytes::from(vec![7; size]), Bytes::new()];
        Envelope { from: HEAD, to: HEAD, letter: Letter::Leaving, payload }
    }

    #[test]
    fn letters_come_in_order_from_many_threads_also_when_the_reader_is_slow() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let sender = Sender::ready(near).unwrap();
        // Much more than the socket holds, before anybody reads.
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let sender = sender.clone();
                std::thread::spawn(move || (0..200).for_each(|n| sender.send(&letter(thread * 1_000 + n))))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (mut at, mut receiver) = ([0; 4], Receiver::default());
        for _ in 0..800 {
            let size = next(&mut receiver, &mut far).unwrap().unwrap().payload[0].len();
            assert_eq!(size % 1_000, at[size / 1_000]);
            at[size / 1_000] += 1;
        }
        drop(far);
        (0..10).for_each(|_| sender.send(&letter(1_000))); // nobody reads it
    }

    #[test]
    fn payloads_lie_in_the_arena_as_long_as_there_is_room() {
        let reader = arena::Reader::new().unwrap();
        let writer = arena::Writer::open(&reader.path()).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        let sender = Sender::waiting(File::from(std::os::fd::OwnedFd::from(near)), Some(writer));
        let sizes = |n: usize| [n % 3_000, 5_000 + n, 70_000 * (n % 2), 60_000];
        const LETTERS: usize = 500;
        let sends = std::thread::spawn(move || {
            for n in 0..LETTERS {
                let payload = sizes(n).map(|size| Bytes::from(vec![n as u8; size])).into();
                sender.send(&Envelope { from: HEAD, to: HEAD, letter: Letter::Leaving, payload });
            }
        });
        let (mut receiver, mut held) = (Receiver::with(Some(Arc::new(reader))), Vec::new());
        for n in 0..LETTERS {
            let payload = next(&mut receiver, &mut far).unwrap().unwrap().payload;
            assert_eq!(payload.iter().map(Bytes::len).collect::<Vec<_>>(), sizes(n));
            held.push((n, payload));
        }
        sends.join().unwrap();
        assert!(next(&mut receiver, &mut far).unwrap().is_none());
        let is_right = |(n, payload): &(usize, Vec<Bytes>)| payload.iter().flatten().all(|byte| *byte == *n as u8);
        assert!(held.iter().all(is_right));
    }

    #[test]
    fn a_place_without_an_arena_or_outside_it_is_an_error() {
        let word = apart(Place { block: 5, bytes: 3_000 }).to_le_bytes();
        let frame = [&0u32.to_le_bytes()[..], &1u32.to_le_bytes(), &word].concat();
        for arena in [None, Some(Arc::new(arena::Reader::new().unwrap()))] {
            assert!(next(&mut Receiver::with(arena), &mut &frame[..]).is_err());
        }
    }

    #[test]
    fn a_frame_that_is_cut_off_is_an_error_and_the_end_is_none() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let sender = Sender::ready(near).unwrap();
        [0, 1, 50_000].into_iter().for_each(|size| sender.send(&letter(size)));
        drop(sender);
        let mut bytes = Vec::new();
        far.read_to_end(&mut bytes).unwrap();
        let (mut input, mut receiver) = (&bytes[..], Receiver::default());
        for size in [0, 1, 50_000] {
            let envelope = next(&mut receiver, &mut input).unwrap().unwrap();
            assert_eq!(envelope.payload.iter().map(Bytes::len).collect::<Vec<_>>(), [size, 0]);
        }
        assert!(next(&mut receiver, &mut input).unwrap().is_none());
        for cut in [1, 7, 20, bytes.len() - 1] {
            let (mut input, mut receiver) = (&bytes[..cut], Receiver::default());
            let mut reads = std::iter::repeat_with(|| next(&mut receiver, &mut input));
            let last = reads.find(|read| !matches!(read, Ok(Some(_)))).unwrap();
            assert!(last.is_err(), "cut at {cut}");
        }
    }
}
