//! Page-locked blocks of host memory, for copies that run beside the host.
//!
//! A block is used again, or freed, only after the events of the copies that touch it: cudarc's own wait does nothing
//! while its event tracking is off. Blocks that wait for that are *retired*. What is page-locked is missing elsewhere on
//! the host, so there is a budget for all devices together.
#![allow(unsafe_code)]

use super::{
    GpuError,
    device::{Device, Event, Stream},
};
use cudarc::driver::{result, sys};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    ptr::NonNull,
    slice,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Blocks are multiples of it.
const GRAIN: usize = 64 << 10;

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool { budget: AtomicU64::new(quarter()), blocks: Mutex::default() });

/// Blocks and what is known of them, for all devices: any context may use them.
struct Pool {
    budget: AtomicU64,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// Bytes of all blocks: those in use, the idle and the retired.
    locked: u64,
    /// Of those, bytes of the blocks that hold buffers.
    kept: u64,
    idle: Vec<Locked>,
    /// In the order in which they were given back.
    retired: VecDeque<(Locked, Vec<Event>)>,
}

/// Memory from the driver. Given back with [`free`](Locked::free) alone.
#[derive(Debug)]
struct Locked {
    at: NonNull<u8>,
    bytes: usize,
    /// Its context was current when the block was made.
    device: Arc<Device>,
}

// SAFETY: plain memory that one owner has.
unsafe impl Send for Locked {}
// SAFETY: shared access reads only.
unsafe impl Sync for Locked {}

/// A block for one owner, who says which copies touch it.
#[derive(Debug)]
pub(super) struct Block {
    /// `None` only while it is dropped.
    locked: Option<Locked>,
    /// It holds a buffer.
    kept: bool,
    /// The copies that touch it: the last on each stream. `None` once it is not known of one when it is over.
    copies: Mutex<Option<Vec<Event>>>,
}

/// A quarter of the memory that the host can spare now.
fn quarter() -> u64 {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    available.map_or(1 << 30, |kib| (kib << 10) / 4)
}

/// Bytes that all blocks together may have.
pub(super) fn budget() -> u64 {
    POOL.budget.load(Ordering::Relaxed)
}

/// Whether a block of so many bytes can ever be had within the budget.
pub(super) fn fits(bytes: usize) -> bool {
    bytes.max(1).next_multiple_of(GRAIN) as u64 <= budget()
}

/// Bytes of all blocks now, those that wait to be used again with them.
pub(super) fn locked() -> u64 {
    POOL.blocks.lock().locked
}

/// Idle blocks beyond the new budget are freed.
pub(super) fn set_budget(bytes: u64) {
    POOL.budget.store(bytes, Ordering::Relaxed);
    let mut blocks = POOL.blocks.lock();
    blocks.reap();
    blocks.shrink(bytes);
}

impl Block {
    /// For a buffer that leaves a device. `None`: the budget has no room for it.
    pub(super) fn keep(device: &Arc<Device>, bytes: usize) -> Result<Option<Self>, GpuError> {
        Self::take(device, bytes, Some(budget()))
    }

    /// For a copy that is soon over; these are few, and stand outside of the budget.
    pub(super) fn stage(device: &Arc<Device>, bytes: usize) -> Result<Self, GpuError> {
        match Self::take(device, bytes, None)? {
            Some(block) => Ok(block),
            None => unreachable!("nothing limits it"),
        }
    }

    fn take(device: &Arc<Device>, bytes: usize, limit: Option<u64>) -> Result<Option<Self>, GpuError> {
        let bytes = bytes.max(1).next_multiple_of(GRAIN);
        let kept = limit.is_some();
        let mut blocks = POOL.blocks.lock();
        loop {
            blocks.reap();
            let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(blocks.kept));
            if bytes as u64 > room {
                return Ok(None);
            }
            // The smallest that fits, and not one much too large.
            let fits = |block: &&Locked| (bytes..=2 * bytes).contains(&block.bytes) && block.bytes as u64 <= room;
            if let Some(best) = blocks.idle.iter().filter(fits).map(|block| block.bytes).min()
                && let Some(place) = blocks.idle.iter().position(|block| block.bytes == best)
            {
                let locked = blocks.idle.swap_remove(place);
                blocks.kept += if kept { locked.bytes as u64 } else { 0 };
                return Ok(Some(Block::new(locked, kept)));
            }
            let Some(limit) = limit else { break };
            blocks.shrink(limit.saturating_sub(bytes as u64));
            let Some((_, copies)) = blocks.retired.front() else { break };
            if blocks.locked + bytes as u64 <= limit {
                break;
            }
            // It is idle soon: a copy is all that it waits for.
            let copies = copies.clone();
            drop(blocks);
            copies.iter().for_each(|copy| _ = copy.synchronize());
            blocks = POOL.blocks.lock();
        }
        blocks.locked += bytes as u64;
        blocks.kept += if kept { bytes as u64 } else { 0 };
        drop(blocks);
        Locked::new(device, bytes).map(|locked| Some(Block::new(locked, kept))).or_else(|error| {
            let mut blocks = POOL.blocks.lock();
            blocks.locked -= bytes as u64;
            blocks.kept -= if kept { bytes as u64 } else { 0 };
            match error {
                // The host has no more that can be locked: as if the budget were used up.
                GpuError::OutOfMemory { .. } if kept => Ok(None),
                error => Err(error),
            }
        })
    }

    fn new(locked: Locked, kept: bool) -> Self {
        Block { locked: Some(locked), kept, copies: Mutex::new(Some(Vec::new())) }
    }

    /// A copy was given to `stream`: the block is in use until the event.
    pub(super) fn copied(&self, stream: &Stream) -> Result<Event, GpuError> {
        let mut copies = self.copies.lock();
        let copy = stream.record();
        match (&copy, copies.as_mut()) {
            (Ok(copy), Some(copies)) => {
                copies.retain(|earlier| earlier.stream() != copy.stream());
                copies.push(copy.clone());
            }
            _ => *copies = None,
        }
        copy
    }

    /// # Safety
    /// No copy writes to it: the event of the last has been waited for by whoever reads the bytes, or by the stream that
    /// does.
    pub(super) unsafe fn bytes(&self, len: usize) -> &[u8] {
        match &self.locked {
            // SAFETY: so long or longer, filled when it was made, and lives as long as `self`.
            Some(locked) => unsafe { slice::from_raw_parts(locked.at.as_ptr(), len.min(locked.bytes)) },
            None => &[],
        }
    }

    /// # Safety
    /// No copy reads or writes it.
    pub(super) unsafe fn bytes_mut(&mut self, len: usize) -> &mut [u8] {
        match &mut self.locked {
            // SAFETY: as above, and `&mut` excludes others on the host.
            Some(locked) => unsafe { slice::from_raw_parts_mut(locked.at.as_ptr(), len.min(locked.bytes)) },
            None => &mut [],
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(locked) = self.locked.take() else { return };
        let copies = self.copies.get_mut().take();
        let mut blocks = POOL.blocks.lock();
        blocks.kept -= if self.kept { locked.bytes as u64 } else { 0 };
        match copies {
            Some(copies) => blocks.retired.push_back((locked, copies)),
            // Never used again, and not freed.
            None => blocks.locked -= locked.bytes as u64,
        }
        blocks.reap();
        blocks.shrink(budget());
    }
}

impl Blocks {
    /// What no copy touches any more is idle.
    fn reap(&mut self) {
        for _ in 0..self.retired.len() {
            let Some((locked, mut copies)) = self.retired.pop_front() else { return };
            let mut lost = false;
            copies.retain(|copy| match copy.is_complete() {
                Ok(complete) => !complete,
                Err(_) => {
                    lost = true;
                    true
                }
            });
            match (lost, copies.is_empty()) {
                // Nobody says what the copy of a lost context still does: never used again.
                (true, _) => self.locked -= locked.bytes as u64,
                (false, true) => self.idle.push(locked),
                (false, false) => self.retired.push_back((locked, copies)),
            }
        }
    }

    /// Frees idle blocks until there are no more bytes than `limit`.
    fn shrink(&mut self, limit: u64) {
        while self.locked > limit
            && let Some(locked) = self.idle.pop()
        {
            self.locked -= locked.bytes as u64;
            locked.free();
        }
    }
}

impl Locked {
    fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, GpuError> {
        device.bind()?;
        // Portable: usable from the contexts of all devices.
        // SAFETY: a context is bound.
        let at = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }
            .map_err(|error| device.error("cuMemHostAlloc", error))?;
        let Some(at) = NonNull::new(at.cast::<u8>()) else {
            return Err(GpuError::Driver { call: "cuMemHostAlloc".into(), code: 0 });
        };
        // SAFETY: so many bytes were just allocated. What the host reads must have been written once.
        unsafe { at.as_ptr().write_bytes(0, bytes) };
        Ok(Locked { at, bytes, device: device.clone() })
    }

    fn free(self) {
        // Of a lost context nothing can be freed.
        if self.device.bind().is_ok() {
            // SAFETY: from `malloc_host`, and no copy touches it: it was idle.
            let freed = unsafe { result::free_host(self.at.as_ptr().cast()) };
            _ = freed.map_err(|error| self.device.error("cuMemFreeHost", error));
        }
    }
}
