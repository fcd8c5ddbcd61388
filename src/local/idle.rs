//! Who may run, who looks for work, and who sleeps.
//!
//! # State
//! One word holds the free CPU capacity, in thousandths of a CPU, and the number of *searching*
//! workers. A thread needs a *seat* (one CPU) to run plain tasks: a searcher takes one when it
//! sees work, a thread from outside when it runs what it waits for. Whoever blocks gives its seat
//! back, so that another may run meanwhile, and takes one again without asking when it goes on.
//! The free capacity may therefore be negative for a while: then workers that come to the end of a
//! task give their seats up until it is not.
//!
//! # Protocol
//! - *Submit*: push the work, fence, then [`Idle::claim_wake`]: if nobody searches and a seat is
//!   free, count a new searcher and wake (or start) a thread for it.
//! - *Find*: a searcher that sees work exchanges its place among the searchers for a seat
//!   ([`Idle::sit_down`]); if it was the last searcher and there is more work it claims a wake, so
//!   that workers start one after the other while there is something to do. Without a free seat
//!   the work is left alone: whoever gives a seat back looks for work, like a submitter.
//! - *Sleep*: a searcher that found nothing enters itself among the sleepers and stops searching,
//!   fences, and then looks at the queues once more. If there is work it claims a wake like a
//!   submitter.
//!
//! # Which thread is woken
//! The system tends to wake a thread where it ran last, or where its waker runs. If all CPUs were busy lately it does not look
//! for an idle one, and two threads may take turns on one CPU for many milliseconds beside another that idles. So of those
//! who sleep one is woken that ran last on another CPU than the waker's, if that goes on; or on the same, if the waker
//! is about to block (see [`Place`]).
//!
//! # Why no work is forgotten
//! Both sides write, fence and then read what the other wrote. Either the submitter sees that
//! nobody searches, and wakes somebody, or the searcher's last look comes after the push and sees
//! the work. The same holds for whoever gives back a seat. `model::` explores the interleavings.

use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, Signal, fence, this_cpu};
use std::sync::Arc;

/// One CPU, in thousandths.
pub(crate) const SEAT: u32 = 1000;

fn free(word: u64) -> i32 {
    (word >> 32) as i32
}

fn searching(word: u64) -> u32 {
    word as u32
}

fn seats(thousandths: u32) -> u64 {
    u64::from(thousandths) << 32
}

/// A thread that sleeps until it is woken: to search, or with a job that brings its own share of
/// the CPUs.
pub(crate) type Sleeper<J> = Signal<Option<J>>;

/// Where a thread is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Place {
    /// On this thread's CPU, because this one is about to block.
    Here,
    Elsewhere,
}

impl Place {
    /// The last of those that ran on these CPUs and are at the right place for a thread `here`, or else the last of all.
    fn of(self, here: u32, cpus: impl DoubleEndedIterator<Item = u32> + ExactSizeIterator) -> Option<usize> {
        let last = cpus.len().checked_sub(1)?;
        let fitting = cpus.enumerate().rev().find(|(_, cpu)| (*cpu == here) == (self == Place::Here));
        Some(fitting.map_or(last, |(at, _)| at))
    }
}

pub(crate) struct Idle<J> {
    word: AtomicU64,
    /// While set, seats that become free are kept for a task that needs several.
    reserving: AtomicBool,
    /// With the CPU on which each ran last.
    sleepers: Mutex<Vec<(u32, Arc<Sleeper<J>>)>>,
}

impl<J> Idle<J> {
    pub(crate) fn new() -> Self {
        Idle { word: AtomicU64::new(0), reserving: AtomicBool::new(false), sleepers: Mutex::new(Vec::new()) }
    }

    /// Back to the start: nobody searches, `capacity` thousandths are free.
    pub(crate) fn reset(&self, capacity: u32) {
        self.word.store(seats(capacity), Ordering::SeqCst);
        self.reserving.store(false, Ordering::SeqCst);
        self.sleepers.lock().clear();
    }

    /// After work was pushed or a seat was given back: whether the caller must wake or start a
    /// searcher, which has been counted.
    #[inline]
    pub(crate) fn claim_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if searching(word) != 0 || free(word) < SEAT as i32 || self.reserving.load(Ordering::Relaxed) {
                return false;
            }
            match self.word.compare_exchange_weak(word, word + 1, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// A searcher has seen work and takes a seat, if one is free; it searches no more then.
    /// Returns whether it was the last searcher.
    pub(crate) fn sit_down(&self) -> Option<bool> {
        let take = |word: u64| {
            let free = free(word) >= SEAT as i32 && !self.reserving.load(Ordering::Relaxed);
            free.then(|| word.wrapping_sub(seats(SEAT) + 1))
        };
        let before = self.word.fetch_update(Ordering::SeqCst, Ordering::Relaxed, take).ok()?;
        Some(searching(before) == 1)
    }

    /// A worker has run out of work: it gives its seat back and searches.
    pub(crate) fn stand_up(&self, seat: u32) {
        self.word.fetch_add(seats(seat) + 1, Ordering::SeqCst);
    }

    /// Takes a seat without having searched.
    pub(crate) fn try_sit(&self) -> bool {
        !self.reserving.load(Ordering::Relaxed) && self.try_take(SEAT)
    }

    /// Takes some capacity, if it is free.
    pub(crate) fn try_take(&self, thousandths: u32) -> bool {
        let take = |word: u64| {
            let enough = i64::from(free(word)) >= i64::from(thousandths);
            enough.then(|| word.wrapping_sub(seats(thousandths)))
        };
        self.word.fetch_update(Ordering::SeqCst, Ordering::Relaxed, take).is_ok()
    }

    /// Takes capacity even if none is free: whoever was blocked goes on at once.
    pub(crate) fn take(&self, thousandths: u32) {
        self.word.fetch_sub(seats(thousandths), Ordering::SeqCst);
    }

    pub(crate) fn give(&self, thousandths: u32) {
        self.word.fetch_add(seats(thousandths), Ordering::SeqCst);
    }

    /// Whether a worker should give up its seat at the end of a task.
    #[inline]
    pub(crate) fn overdrawn(&self) -> bool {
        free(self.word.load(Ordering::Relaxed)) < 0 || self.reserving.load(Ordering::Relaxed)
    }

    pub(crate) fn set_reserving(&self, reserving: bool) {
        self.reserving.store(reserving, Ordering::SeqCst);
    }

    pub(crate) fn searchers(&self) -> u32 {
        searching(self.word.load(Ordering::Relaxed))
    }

    /// Free capacity, in thousandths of a CPU; never below zero.
    pub(crate) fn free(&self) -> u32 {
        free(self.word.load(Ordering::Relaxed)).max(0) as u32
    }

    /// The first half of going to sleep, for a searcher. Afterwards the caller must look at the
    /// queues once more, and then either [`Idle::leave`] or sleep.
    pub(crate) fn enter(&self, sleeper: &Arc<Sleeper<J>>) {
        let here = this_cpu();
        self.sleepers.lock().push((here, sleeper.clone()));
        self.word.fetch_sub(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// A searcher that was counted could not be started.
    pub(crate) fn search_no_more(&self) {
        self.word.fetch_sub(1, Ordering::SeqCst);
    }

    /// Takes the sleeper out again; `false` if somebody is waking it already.
    pub(crate) fn leave(&self, sleeper: &Arc<Sleeper<J>>) -> bool {
        let mut sleepers = self.sleepers.lock();
        let at = sleepers.iter().position(|(_, other)| Arc::ptr_eq(other, sleeper));
        at.map(|at| sleepers.swap_remove(at)).is_some()
    }

    /// The thread that fell asleep last, of those that are at the right place if there are any; the caller must wake it.
    pub(crate) fn pop(&self, place: Place) -> Option<Arc<Sleeper<J>>> {
        let here = this_cpu();
        let mut sleepers = self.sleepers.lock();
        let at = place.of(here, sleepers.iter().map(|(cpu, _)| *cpu))?;
        Some(sleepers.remove(at).1)
    }

    pub(crate) fn asleep(&self) -> usize {
        self.sleepers.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_woken_ran_last_where_it_is_wanted_if_there_is_one() {
        let of = |place: Place, cpus: &[u32]| place.of(1, cpus.iter().copied());
        assert_eq!(of(Place::Here, &[]), None);
        assert_eq!(of(Place::Here, &[1, 1, 0]), Some(1));
        assert_eq!(of(Place::Here, &[3, 0, 2]), Some(2));
        assert_eq!(of(Place::Elsewhere, &[2, 0, 1]), Some(1));
        assert_eq!(of(Place::Elsewhere, &[1, 1]), Some(1));
    }
}
