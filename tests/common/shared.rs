//! Statics that all processes of a test share: what a task notes in a worker, the test reads.
//!
//! On a cluster the process that runs the tests maps a file without a name, and its cluster's processes map it
//! too. A static's place in it is its place in the executable, which is the same everywhere. In a local
//! runtime they are plain atomics. Only statics are shared.
#![allow(unsafe_code)] // one place, below

use memmap2::MmapRaw;
use std::{
    fs::{File, OpenOptions},
    os::fd::AsRawFd,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Names the file, for the cluster's processes.
pub(crate) const VARIABLE: &str = "OUTRAY_TEST_STATICS";
/// What all statics of a test's executable fit into, on either side of one of them.
const SIDE: usize = 8 << 20;

static MIDDLE: AtomicU64 = AtomicU64::new(0);

struct Statics {
    file: File,
    map: MmapRaw,
}

fn statics() -> Option<&'static Statics> {
    static STATICS: OnceLock<Option<Statics>> = OnceLock::new();
    let open = || {
        let file = match std::env::var_os(VARIABLE) {
            Some(path) => OpenOptions::new().read(true).write(true).open(path),
            None if super::on_cluster() => nameless(),
            None => return None,
        };
        let file = file.expect("the tests' statics");
        let map = MmapRaw::map_raw(&file).expect("the tests' statics");
        Some(Statics { file, map })
    };
    STATICS.get_or_init(open).as_ref()
}

/// Whether there are other processes.
pub(crate) fn are_shared() -> bool {
    statics().is_some()
}

/// A file that is gone when nobody has it open any more.
fn nameless() -> std::io::Result<File> {
    let path = super::Scratch::new("statics");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path.0)?;
    file.set_len(2 * SIDE as u64)?;
    Ok(file)
}

/// The file, for a process of the same user.
pub(crate) fn path() -> Option<String> {
    Some(format!("/proc/{}/fd/{}", std::process::id(), statics()?.file.as_raw_fd()))
}

/// What is shared is the difference from the value that the executable has for the static, so that all is 0 at
/// the start.
struct Word(AtomicU64);

impl Word {
    const fn new(first: u64) -> Self {
        Word(AtomicU64::new(first))
    }

    /// Its place, and what is to be added to what is there.
    fn place(&self) -> (&AtomicU64, u64) {
        let Some(statics) = statics() else { return (&self.0, 0) };
        let offset = (&raw const *self).addr().wrapping_sub((&raw const MIDDLE).addr()).wrapping_add(SIDE);
        assert!(offset < 2 * SIDE, "only a static can be shared");
        let place = statics.map.as_mut_ptr().wrapping_add(offset).cast();
        // SAFETY: the map is `2 * SIDE` bytes long, of which `offset` is one, lives as long as the process, and is
        // aligned to a page; `MIDDLE` and this are aligned as a word, and so is their distance. All
        // processes use it with atomic operations only.
        (unsafe { AtomicU64::from_ptr(place) }, self.0.load(Ordering::Relaxed))
    }

    fn load(&self, order: Ordering) -> u64 {
        let (place, first) = self.place();
        place.load(order).wrapping_add(first)
    }

    fn store(&self, value: u64, order: Ordering) {
        let (place, first) = self.place();
        place.store(value.wrapping_sub(first), order);
    }

    fn swap(&self, value: u64, order: Ordering) -> u64 {
        let (place, first) = self.place();
        place.swap(value.wrapping_sub(first), order).wrapping_add(first)
    }

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        let (place, first) = self.place();
        place.fetch_add(value, order).wrapping_add(first)
    }

    fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        let mut now = self.load(order);
        let (place, first) = self.place();
        while now < value {
            match place.compare_exchange(now.wrapping_sub(first), value.wrapping_sub(first), order, Ordering::Relaxed) {
                Ok(_) => break,
                Err(other) => now = other.wrapping_add(first),
            }
        }
        now
    }
}

/// An [`std::sync::atomic::AtomicUsize`] of all processes.
pub(crate) struct AtomicUsize(Word);

impl AtomicUsize {
    pub(crate) const fn new(value: usize) -> Self {
        AtomicUsize(Word::new(value as u64))
    }

    pub(crate) fn load(&self, order: Ordering) -> usize {
        self.0.load(order) as usize
    }

    pub(crate) fn store(&self, value: usize, order: Ordering) {
        self.0.store(value as u64, order);
    }

    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_add(value as u64, order) as usize
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_add((value as u64).wrapping_neg(), order) as usize
    }

    pub(crate) fn fetch_max(&self, value: usize, order: Ordering) -> usize {
        self.0.fetch_max(value as u64, order) as usize
    }
}

/// An [`std::sync::atomic::AtomicU32`] of all processes.
pub(crate) struct AtomicU32(Word);

impl AtomicU32 {
    pub(crate) const fn new(value: u32) -> Self {
        AtomicU32(Word::new(value as u64))
    }

    pub(crate) fn load(&self, order: Ordering) -> u32 {
        self.0.load(order) as u32
    }

    pub(crate) fn store(&self, value: u32, order: Ordering) {
        self.0.store(value.into(), order);
    }

    pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.0.fetch_add(value.into(), order) as u32
    }
}

/// An [`std::sync::atomic::AtomicBool`] of all processes.
pub(crate) struct AtomicBool(Word);

impl AtomicBool {
    pub(crate) const fn new(value: bool) -> Self {
        AtomicBool(Word::new(value as u64))
    }

    pub(crate) fn load(&self, order: Ordering) -> bool {
        self.0.load(order) != 0
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        self.0.store(value.into(), order);
    }

    pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
        self.0.swap(value.into(), order) != 0
    }

    pub(crate) fn fetch_or(&self, value: bool, order: Ordering) -> bool {
        self.0.fetch_max(value.into(), order) != 0
    }
}

/// A list that all processes append to, of at most `N` items.
pub(crate) struct Notes<const N: usize> {
    length: AtomicUsize,
    /// Each with 1 added; 0 is none yet.
    items: [AtomicUsize; N],
}

impl<const N: usize> Notes<N> {
    pub(crate) const fn new() -> Self {
        Notes { length: AtomicUsize::new(0), items: [const { AtomicUsize::new(0) }; N] }
    }

    pub(crate) fn push(&self, item: usize) {
        let at = self.length.fetch_add(1, Ordering::SeqCst);
        self.items[at].store(item + 1, Ordering::SeqCst);
    }

    /// What has been noted, in this order.
    pub(crate) fn all(&self) -> Vec<usize> {
        let items = self.items.iter().map(|item| item.load(Ordering::SeqCst));
        items.take_while(|item| *item > 0).map(|item| item - 1).collect()
    }
}
