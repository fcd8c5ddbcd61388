//! An actor's mailbox: the calls that wait, and who may take them out.
//!
//! # Modes
//! ```text
//! Starting --open--> Idle --push--> Scheduled --claim--> Running --refill finds nothing--> Idle
//!                                       ^                  |  |
//!                                       |                  |  '--must wait--> WaitingForReaders
//!                                       |                  '-----exclusive--> Exclusive
//!                                       '------ reader done / exclusive done / give up ----'
//! ```
//! In `Scheduled` exactly one job for this actor is on its way to a worker, and a `get` may be
//! quicker. Whoever claims it is the only *runner*: the only one that takes calls out, runs
//! `&mut self` methods and starts `&self` ones. A future of an `async fn(&mut self)` keeps all
//! others out in `Exclusive`. A job that comes too late finds nothing to claim.
//!
//! # Invariants
//! - Calls wait in a mailbox that is `Idle` never: the push that finds it idle schedules it.
//! - There is at most one runner, and none while the mode is not `Running`.
//! - Mode and calls change under one lock, which is held for a few instructions.
//! - A poke that arrives while a runner runs is seen by that runner before it goes idle.
//! - `shared` may be late only in saying that a reader is still there: only the runner adds readers.

use super::inbox::Blocks;
use crate::sync::{AtomicBool, AtomicUsize, Ordering, SpinLock};
use crossbeam_utils::CachePadded;
use std::{collections::VecDeque, mem};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// There is no state yet.
    Starting,
    Idle,
    Scheduled,
    Running,
    /// An asynchronous call has the state for itself.
    Exclusive,
    /// A call that wants the state for itself waits for the calls that share it.
    WaitingForReaders,
    /// The actor is dead.
    Closed,
}

struct Inner<C> {
    mode: Mode,
    calls: Blocks<C>,
    /// Calls that share the state now.
    readers: usize,
    /// Something changed that the runner should look at.
    poked: bool,
}

pub(crate) struct Mailbox<C> {
    inner: SpinLock<Inner<C>>,
    /// How many calls there are, for those who only look; changed under the lock.
    waiting: AtomicUsize,
    /// Whether calls share the state. The runner reads it for every call, so it stays away from what
    /// callers write for every call.
    shared: CachePadded<AtomicBool>,
}

/// What a push leads to.
pub(crate) enum Pushed {
    /// The caller must schedule the actor.
    Schedule,
    Queued,
    /// The actor is dead.
    Refused,
}

impl<C> Mailbox<C> {
    pub(crate) fn new() -> Self {
        let inner = Inner { mode: Mode::Starting, calls: Blocks::new(), readers: 0, poked: false };
        Mailbox {
            inner: SpinLock::new(inner),
            waiting: AtomicUsize::new(0),
            shared: CachePadded::new(AtomicBool::new(false)),
        }
    }

    pub(crate) fn push(&self, call: C) -> Pushed {
        let inner = &mut *self.inner.lock();
        if inner.mode == Mode::Closed {
            return Pushed::Refused;
        }
        inner.calls.push(call);
        self.waiting.store(self.len() + 1, Ordering::Relaxed);
        if inner.mode == Mode::Idle {
            inner.mode = Mode::Scheduled;
            return Pushed::Schedule;
        }
        Pushed::Queued
    }

    /// The state is there. Returns whether the caller must schedule the actor.
    pub(crate) fn open(&self) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.mode == Mode::Starting {
            inner.mode = Mode::Scheduled;
            return true;
        }
        false
    }

    /// Becomes the runner, if the actor is scheduled.
    pub(crate) fn claim(&self) -> bool {
        let inner = &mut *self.inner.lock();
        let claimed = inner.mode == Mode::Scheduled;
        if claimed {
            inner.mode = Mode::Running;
        }
        claimed
    }

    /// The runner exchanges an empty block for what waits; with nothing there, and nothing to look
    /// at again, it goes idle (`false`) and is the runner no more.
    pub(crate) fn refill(&self, inbox: &mut VecDeque<C>) -> bool {
        let inner = &mut *self.inner.lock();
        if !inner.calls.is_empty() {
            inner.calls.take(inbox);
            self.waiting.store(self.len() - inbox.len(), Ordering::Relaxed);
            return true;
        }
        if inner.mode != Mode::Running {
            return false; // killed meanwhile
        }
        if !mem::take(&mut inner.poked) {
            inner.mode = Mode::Idle;
        }
        inner.mode == Mode::Running
    }

    /// The runner stops. Returns whether the caller must schedule the actor, because something
    /// waits here, or `more` waits with the caller.
    pub(crate) fn give_up(&self, more: bool) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.mode != Mode::Running {
            return false;
        }
        let again = more || inner.poked || !inner.calls.is_empty();
        inner.mode = if again { Mode::Scheduled } else { Mode::Idle };
        again
    }

    /// Whether calls wait that the runner has not taken out.
    pub(crate) fn has_more(&self) -> bool {
        self.len() > 0
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The runner wants the state for itself; if it is shared, the runner stops until it is not.
    pub(crate) fn must_wait_for_readers(&self) -> bool {
        if !self.shared.load(Ordering::Acquire) {
            return false;
        }
        let inner = &mut *self.inner.lock();
        let shared = inner.readers > 0;
        if shared && inner.mode == Mode::Running {
            inner.mode = Mode::WaitingForReaders;
        }
        shared
    }

    /// The runner starts a call that shares the state.
    pub(crate) fn add_reader(&self) {
        self.inner.lock().readers += 1;
        self.shared.store(true, Ordering::Relaxed);
    }

    /// A call that shared the state has ended. Returns whether the caller must schedule the actor;
    /// `limited`: calls may be waiting for this one to end.
    pub(crate) fn reader_done(&self, limited: bool) -> bool {
        let inner = &mut *self.inner.lock();
        inner.readers -= 1;
        if inner.readers == 0 {
            self.shared.store(false, Ordering::Release);
        }
        match inner.mode {
            Mode::WaitingForReaders if inner.readers == 0 || limited => inner.mode = Mode::Scheduled,
            Mode::Idle if limited => inner.mode = Mode::Scheduled,
            _ => {
                inner.poked |= limited;
                return false;
            }
        }
        true
    }

    /// The runner hands the state to an asynchronous call, and is the runner no more.
    pub(crate) fn exclude(&self) {
        let inner = &mut *self.inner.lock();
        if inner.mode == Mode::Running {
            inner.mode = Mode::Exclusive;
        }
    }

    /// That call has ended. Returns whether the caller must schedule the actor.
    pub(crate) fn exclusive_done(&self) -> bool {
        let inner = &mut *self.inner.lock();
        let exclusive = inner.mode == Mode::Exclusive;
        if exclusive {
            inner.mode = Mode::Scheduled;
        }
        exclusive
    }

    /// Makes the runner look again. Returns whether the caller must schedule the actor.
    pub(crate) fn poke(&self) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.mode == Mode::Idle {
            inner.mode = Mode::Scheduled;
            return true;
        }
        inner.poked = true;
        false
    }

    /// Refuses calls from now on, and returns those that wait. `None` if that was done already.
    pub(crate) fn close(&self) -> Option<Vec<C>> {
        let inner = &mut *self.inner.lock();
        if inner.mode == Mode::Closed {
            return None;
        }
        inner.mode = Mode::Closed;
        self.waiting.store(0, Ordering::Relaxed);
        Some(inner.calls.drain())
    }

    /// The mode, and how many calls share the state.
    pub(crate) fn observe(&self) -> (Mode, usize) {
        let inner = self.inner.lock();
        (inner.mode, inner.readers)
    }
}
