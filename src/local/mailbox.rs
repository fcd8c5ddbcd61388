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
//! # Pushing
//! Callers push into a lock-free queue and then look at `hint`, which repeats of the mode whether
//! it is idle, closed, or neither; in the last case there is nothing more to do. Whoever changes
//! the mode to idle or closed changes the hint and then looks at the queue. Both fence between
//! their write and their read, so a call is seen by one of them.
//!
//! # Invariants
//! - Calls wait in a mailbox that is `Idle` never: the push that finds it idle schedules it.
//! - There is at most one runner, and none while the mode is not `Running`.
//! - A poke that arrives while a runner runs is seen by that runner before it goes idle.
//! - `shared` may be late only in saying that a reader is still there: only the runner adds readers.

use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, SegQueue, fence};
use std::{collections::VecDeque, mem};

/// Calls that the runner takes out at a time.
pub(crate) const BATCH: usize = 64;

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

/// What `hint` says.
const BUSY: u32 = 0;
const IDLE: u32 = 1;
const CLOSED: u32 = 2;

struct Inner {
    mode: Mode,
    /// Calls that share the state now.
    readers: usize,
    /// Something changed that the runner should look at.
    poked: bool,
}

pub(crate) struct Mailbox<C> {
    queue: SegQueue<C>,
    hint: AtomicU32,
    inner: Mutex<Inner>,
    /// Whether calls share the state.
    shared: AtomicBool,
}

/// What a push leads to.
pub(crate) enum Pushed<C> {
    /// The caller must schedule the actor.
    Schedule,
    Queued,
    /// The actor is dead. These must be failed; the call that was pushed is one of them, or was
    /// failed already.
    Refused(Vec<C>),
}

impl<C> Mailbox<C> {
    pub(crate) fn new() -> Self {
        Mailbox {
            queue: SegQueue::new(),
            hint: AtomicU32::new(BUSY),
            inner: Mutex::new(Inner { mode: Mode::Starting, readers: 0, poked: false }),
            shared: AtomicBool::new(false),
        }
    }

    pub(crate) fn push(&self, call: C) -> Pushed<C> {
        self.queue.push(call);
        fence(Ordering::SeqCst);
        if self.hint.load(Ordering::Relaxed) == BUSY {
            return Pushed::Queued;
        }
        let inner = &mut *self.inner.lock();
        match inner.mode {
            Mode::Closed => Pushed::Refused(self.drain()),
            Mode::Idle => {
                self.leave_idle(inner, Mode::Scheduled);
                Pushed::Schedule
            }
            _ => Pushed::Queued,
        }
    }

    fn drain(&self) -> Vec<C> {
        std::iter::from_fn(|| self.queue.pop()).collect()
    }

    fn leave_idle(&self, inner: &mut Inner, mode: Mode) {
        inner.mode = mode;
        self.hint.store(BUSY, Ordering::Relaxed);
    }

    /// Goes idle, unless calls wait (`false`).
    fn go_idle(&self, inner: &mut Inner) -> bool {
        self.hint.store(IDLE, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            inner.mode = Mode::Idle;
            return true;
        }
        self.hint.store(BUSY, Ordering::Relaxed);
        false
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

    /// The runner takes out what waits; with nothing there, and nothing to look at again, it goes
    /// idle (`false`) and is the runner no more.
    pub(crate) fn refill(&self, inbox: &mut VecDeque<C>) -> bool {
        inbox.extend(std::iter::from_fn(|| self.queue.pop()).take(BATCH));
        if !inbox.is_empty() {
            return true;
        }
        let inner = &mut *self.inner.lock();
        if inner.mode != Mode::Running {
            return false; // killed meanwhile
        }
        mem::take(&mut inner.poked) || !self.go_idle(inner)
    }

    /// The runner stops. Returns whether the caller must schedule the actor, because something
    /// waits here, or `more` waits with the caller.
    pub(crate) fn give_up(&self, more: bool) -> bool {
        let inner = &mut *self.inner.lock();
        if inner.mode != Mode::Running {
            return false;
        }
        let again = more || inner.poked || !self.go_idle(inner);
        if again {
            inner.mode = Mode::Scheduled;
        }
        again
    }

    /// Whether calls wait that the runner has not taken out.
    pub(crate) fn has_more(&self) -> bool {
        !self.queue.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
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
            Mode::Idle if limited => self.leave_idle(inner, Mode::Scheduled),
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
            self.leave_idle(inner, Mode::Scheduled);
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
        self.hint.store(CLOSED, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Some(self.drain())
    }

    /// The mode, and how many calls share the state.
    pub(crate) fn observe(&self) -> (Mode, usize) {
        let inner = self.inner.lock();
        (inner.mode, inner.readers)
    }
}
