//! Queues that many threads fill, one item at a time, and that are emptied a block at a time.
//!
//! A block goes from those who fill to those who empty and back, so that the queue itself does not
//! allocate for each item: memory that one thread takes and another gives back makes the two meet
//! in the allocator, which costs more than the queue.

use crate::sync::{AtomicUsize, Ordering, SpinLock};
use std::{collections::VecDeque, mem};

/// Items that are taken out at a time, at most.
pub(crate) const BLOCK: usize = 32;
/// Empty blocks that are kept.
const SPARE: usize = 16;

/// A queue in blocks.
pub(crate) struct Blocks<T> {
    /// The oldest first; none is empty.
    full: VecDeque<VecDeque<T>>,
    /// The one that is being filled.
    last: VecDeque<T>,
    spare: Vec<VecDeque<T>>,
}

impl<T> Blocks<T> {
    pub(crate) fn new() -> Self {
        Blocks { full: VecDeque::new(), last: VecDeque::new(), spare: Vec::new() }
    }

    pub(crate) fn push(&mut self, item: T) {
        if self.last.len() == BLOCK {
            let empty = self.spare.pop().unwrap_or_else(|| VecDeque::with_capacity(BLOCK));
            self.full.push_back(mem::replace(&mut self.last, empty));
        }
        self.last.push_back(item);
    }

    /// Exchanges an empty block for the oldest items, in their order; for none if there are none.
    pub(crate) fn take(&mut self, block: &mut VecDeque<T>) {
        debug_assert!(block.is_empty());
        match self.full.pop_front() {
            None => mem::swap(&mut self.last, block),
            Some(oldest) => {
                let empty = mem::replace(block, oldest);
                if self.spare.len() < SPARE && empty.capacity() >= BLOCK {
                    self.spare.push(empty);
                }
            }
        }
    }

    /// The oldest item.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let Some(oldest) = self.full.front_mut() else { return self.last.pop_front() };
        let item = oldest.pop_front();
        if oldest.is_empty() {
            self.full.pop_front();
        }
        item
    }

    /// The newest item, if it is one that is wanted.
    pub(crate) fn pop_newest_if(&mut self, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        self.last.back().is_some_and(is_wanted).then(|| self.last.pop_back())?
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_empty() && self.full.is_empty()
    }

    pub(crate) fn drain(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.pop()).collect()
    }
}

/// What comes from threads that are not workers, or goes behind everything else.
pub(crate) struct Injector<T> {
    /// How many there are, for those who only look; changed under the lock.
    len: AtomicUsize,
    blocks: SpinLock<Blocks<T>>,
}

impl<T> Injector<T> {
    pub(crate) fn new() -> Self {
        Injector { len: AtomicUsize::new(0), blocks: SpinLock::new(Blocks::new()) }
    }

    pub(crate) fn push(&self, item: T) {
        let mut blocks = self.blocks.lock();
        blocks.push(item);
        self.len.store(self.len() + 1, Ordering::Relaxed);
    }

    /// Exchanges an empty block for the oldest items, in their order.
    pub(crate) fn take(&self, block: &mut VecDeque<T>) {
        if self.is_empty() {
            return;
        }
        let mut blocks = self.blocks.lock();
        blocks.take(block);
        self.len.store(self.len() - block.len(), Ordering::Relaxed);
    }

    /// The oldest item.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut blocks = self.blocks.lock();
        let item = blocks.pop()?;
        self.len.store(self.len() - 1, Ordering::Relaxed);
        Some(item)
    }

    /// The newest item, if it is one that is wanted.
    pub(crate) fn pop_newest_if(&self, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let mut blocks = self.blocks.lock();
        let item = blocks.pop_newest_if(is_wanted)?;
        self.len.store(self.len() - 1, Ordering::Relaxed);
        Some(item)
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
