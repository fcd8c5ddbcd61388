//! Memory that a worker shares with its node, for values on their way to it (unsafe code).
//!
//! ```text
//! a bit for each block, set as long as something is in it | blocks
//! ```
//!
//! The worker copies a value to blocks that are free, sets their bits, and says in its letter where it is. The node reads it there, and
//! clears the bits when nobody needs it any more ([`blocks`]). So a value of some kilobytes is not copied into a pipe and out of
//! it again, and letters stay small. What finds no room goes through the pipe, as what is shorter or longer does.
//!
//! A worker that dies leaves nothing to be put in order: its arena goes when its last value does.
//!
//! # What the unsafe code relies on
//! The memory has no name; only processes of this user reach it, by the node's descriptor. Both ends are the same
//! executable, or trust each other with it, as with a pipe, and keep to this:
//! - The worker writes to blocks only while their bits are clear, and sends the letter that names them after it has set them.
//! - The node reads blocks only from that letter on until it clears their bits, and clears only those.
//! - The memory is never made shorter: it is sealed against that.
//!
//! A worker that breaks the first rule changes values of its own program's while its node copies them to others. All the node reads of one
//! is whether it has handles inside, and whatever it takes from that is as true as what the worker says elsewhere.

use super::blocks::{self, OF_A_WORD, ones};
use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::{
    fs::File,
    io,
    ops::RangeInclusive,
    os::fd::AsRawFd,
    sync::{Arc, atomic::AtomicU64},
};

const BLOCK: usize = 1 << 10;
const WORDS: usize = 256;
/// Where the blocks begin: on a page of their own.
const START: usize = 4 << 10;
const SIZE: usize = START + WORDS * OF_A_WORD * BLOCK;

/// How many bytes a value here may have. What is shorter is sooner copied; what is longer does not fit a word of blocks.
const SIZES: RangeInclusive<usize> = BLOCK + 1..=OF_A_WORD * BLOCK;

/// Where a value is: its first block, and how many bytes it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) block: u32,
    pub(crate) bytes: u32,
}

impl Place {
    /// The word of its blocks, and their bits; `None`: there is no such place.
    fn bits(self) -> Option<(usize, u64)> {
        let (bytes, block) = (self.bytes as usize, self.block as usize);
        let (word, at, count) = (block / OF_A_WORD, block % OF_A_WORD, bytes.div_ceil(BLOCK));
        let is_there = SIZES.contains(&bytes) && word < WORDS && at + count <= OF_A_WORD;
        is_there.then(|| (word, ones(count) << at))
    }
}

struct Memory(MmapRaw);

impl Memory {
    fn map(file: &File) -> io::Result<Memory> {
        MmapOptions::new().len(SIZE).map_raw(file).map(Memory)
    }

    fn words(&self) -> &[AtomicU64] {
        const { assert!(WORDS * size_of::<AtomicU64>() <= START) };
        // SAFETY: the first `START` bytes are mapped as long as `self` is there, begin at a page, and are zero at first; both ends look
        // at them only as these atomics, which may have any bits.
        unsafe { std::slice::from_raw_parts(self.0.as_mut_ptr().cast(), WORDS) }
    }

    fn block(&self, block: usize) -> *mut u8 {
        self.0.as_mut_ptr().wrapping_add(START + block * BLOCK)
    }
}

/// The worker's end.
pub(crate) struct Writer(Memory);

impl Writer {
    /// What has [`Reader::path`].
    ///
    /// # Errors
    /// It cannot be opened, or mapped, or is no arena of this size.
    pub(crate) fn open(path: &str) -> io::Result<Writer> {
        let file = File::options().read(true).write(true).open(path)?;
        if file.metadata()?.len() != SIZE as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Memory::map(&file).map(Writer)
    }

    /// Copies a value to where there is room for it.
    pub(crate) fn put(&mut self, value: &[u8]) -> Option<Place> {
        if !SIZES.contains(&value.len()) {
            return None;
        }
        let block = blocks::take(self.0.words().iter(), value.len().div_ceil(BLOCK))?;
        // SAFETY: as many blocks as the value needs begin there, in this memory. They were free, and nobody else takes any: an arena
        // has one writer, borrowed alone. The node had read what it wanted before it gave them back, which `take` has seen.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), self.0.block(block), value.len()) };
        Some(Place { block: block as u32, bytes: value.len() as u32 })
    }
}

/// The node's end.
pub(crate) struct Reader {
    memory: Arc<Memory>,
    file: File,
}

impl Reader {
    /// A new arena. It takes no memory before something is put there.
    ///
    /// # Errors
    /// The system does not give one.
    pub(crate) fn new() -> io::Result<Reader> {
        let file = memfd_create("outray-arena", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, SIZE as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(file);
        Ok(Reader { memory: Arc::new(Memory::map(&file)?), file })
    }

    /// By which another process of this user opens it, as long as this is there.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The value at a place that the worker has named in a letter, once for each; `None`: there is none.
    pub(crate) fn take(&self, place: Place) -> Option<Bytes> {
        let (word, bits) = place.bits()?;
        let is_there = blocks::are_taken(&self.memory.words()[word], bits);
        is_there.then(|| Bytes::from_owner(Value { memory: self.memory.clone(), place, word, bits }))
    }
}

/// A value in the arena. Its blocks are given back when it is dropped.
struct Value {
    memory: Arc<Memory>,
    place: Place,
    word: usize,
    bits: u64,
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        let Place { block, bytes } = self.place;
        // SAFETY: there is such a place (`Place::bits`). The letter that named it was sent after it had been written to, and
        // nobody writes to it before this is dropped.
        unsafe { std::slice::from_raw_parts(self.memory.block(block as usize), bytes as usize) }
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        blocks::give(&self.memory.words()[self.word], self.bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    fn arena() -> (Writer, Reader) {
        let reader = Reader::new().unwrap();
        (Writer::open(&reader.path()).unwrap(), reader)
    }

    fn is_empty(reader: &Reader) -> bool {
        reader.memory.words().iter().all(|word| word.load(std::sync::atomic::Ordering::Acquire) == 0)
    }

    #[test]
    fn values_are_read_where_they_were_put_until_they_are_dropped() {
        let (mut writer, reader) = arena();
        assert_eq!((writer.put(&[1; BLOCK]), writer.put(&[1; 64 * BLOCK + 1])), (None, None));
        // More than there is room for.
        let all: Vec<_> = (0..300).map_while(|n| writer.put(&vec![n as u8; 64 * BLOCK])).collect();
        assert_eq!((all.len(), writer.put(&[1; BLOCK + 1])), (WORDS, None));
        let values: Vec<_> = all.iter().map(|place| reader.take(*place).unwrap()).collect();
        assert!(
            values
                .iter()
                .enumerate()
                .all(|(n, value)| value.len() == 64 * BLOCK && value.iter().all(|b| *b == n as u8))
        );
        let (last, before) = (values[WORDS - 1].slice(100..), values[WORDS - 2].clone());
        drop(values);
        assert_eq!((last[0], before[0], last.len()), (255, 254, 64 * BLOCK - 100));
        let next: Vec<_> = std::iter::from_fn(|| writer.put(&[7; 64 * BLOCK])).collect();
        assert_eq!(next.len(), WORDS - 2, "what somebody holds a part of is there");
        drop(next.iter().map(|place| reader.take(*place)).collect::<Vec<_>>());
        drop((last, before));
        assert!(is_empty(&reader));
        // It outlives its ends.
        let value = reader.take(writer.put(&[9; 5_000]).unwrap()).unwrap();
        drop((writer, reader));
        assert_eq!(value, vec![9; 5_000]);
    }

    #[test]
    fn a_place_where_nothing_is_is_refused() {
        let (mut writer, reader) = arena();
        let place = writer.put(&[1; 3 * BLOCK]).unwrap();
        let at = |block, bytes| reader.take(Place { block, bytes }).is_some();
        assert!(!at(place.block, 4 * BLOCK as u32) && !at(place.block + 1, 3 * BLOCK as u32));
        assert!(!at(u32::MAX, 2_000) && !at((WORDS * OF_A_WORD) as u32, 2_000) && !at(63, 2_000));
        assert!(!at(0, 0) && !at(0, 1) && !at(0, u32::MAX));
        assert!(at(place.block, 3 * BLOCK as u32));
        assert!(Writer::open("/proc/self/exe").is_err() && Writer::open("/proc/1/fd/none").is_err());
    }

    #[test]
    fn blocks_are_used_again_while_others_are_read() {
        let (mut writer, reader) = arena();
        let (sends, receives) = mpsc::sync_channel::<(Place, u64)>(64);
        let reads = thread::spawn(move || {
            let (mut random, mut held) = (fastrand::Rng::with_seed(3), Vec::new());
            for (place, seed) in receives {
                held.push((reader.take(place).unwrap(), seed));
                if held.len() > random.usize(..200) {
                    let (value, seed) = held.swap_remove(random.usize(..held.len()));
                    let mut expected = fastrand::Rng::with_seed(seed);
                    assert!(value.iter().all(|byte| *byte == expected.u8(..)), "seed {seed}");
                }
            }
            drop(held);
            assert!(is_empty(&reader));
        });
        let mut random = fastrand::Rng::with_seed(5);
        let mut refused = 0;
        for seed in 0..1_500 {
            let bytes = random.usize(SIZES);
            let mut content = fastrand::Rng::with_seed(seed);
            let value: Vec<u8> = std::iter::repeat_with(|| content.u8(..)).take(bytes).collect();
            match writer.put(&value) {
                Some(place) => sends.send((place, seed)).unwrap(),
                None => refused += 1,
            }
        }
        drop(sends);
        reads.join().unwrap();
        assert!(refused < 750, "{refused}");
    }
}
