//! A slot holds one task, call or `put`: what is to be run, then nothing, then a value or an error,
//! once.
//!
//! # States
//! ```text
//! Waiting(body) --take_body--> Pending --complete(Ok)--> Ready(T) --share--> Shared(Arc<T>) --discard--> Gone
//!      |   ^                    |  |                        '---------------------------------discard-----'
//!      |   '---put_body---------'  '-----complete(Err)--> Failed
//!      '---complete (the body is not run)---> Ready or Failed
//! ```
//! `Waiting` and `Pending` hold the waiters. The body and the value share their place.
//!
//! A value is kept bare until somebody asks for an `Arc` of it, so that a result that is only ever
//! copied out costs no second allocation. `complete` wins once; later completions are dropped. Whoever
//! takes the body out runs it; there is one who does.
//!
//! # Invariants
//! - Each waiter that `add_waiter` accepted is notified exactly once, unless it is removed first.
//! - Waiters are notified after the lock is released, and see the slot done.
//! - `done` is set under the lock and never cleared: whoever reads `true` finds no `Pending`.

use crate::{
    error::Error,
    sync::{AtomicU32, Ordering, SpinLock},
};
use smallvec::{SmallVec, smallvec};
use std::{any::Any, convert::Infallible, mem, sync::Arc};

/// Somebody who is told, once, that a slot is done.
pub(crate) trait Waiter: Send + Sync {
    /// Called once, on the thread that completed the slot. Must not block.
    fn notify(self: Arc<Self>);

    /// Whether that does no more than wake a thread.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code))] // nobody asks
    fn is_quiet(&self) -> bool {
        false
    }

    /// The others, if it stands for several.
    #[doc(hidden)]
    #[allow(private_interfaces)] // no other file has one
    fn crowd(&self) -> Option<&Crowd> {
        None
    }
}

/// The waiters of one slot: most slots have none or one, others have a crowd.
#[derive(Default)]
struct Waiters(Option<Arc<dyn Waiter>>);

/// Several waiters. They are added under the lock of the slot, and told when it is done.
struct Crowd(SpinLock<SmallVec<[Arc<dyn Waiter>; 3]>>);

impl Waiter for Crowd {
    fn notify(self: Arc<Self>) {
        let all = mem::take(&mut *self.0.lock());
        all.into_iter().for_each(Waiter::notify);
    }

    fn is_quiet(&self) -> bool {
        self.0.lock().iter().all(|waiter| waiter.is_quiet())
    }

    fn crowd(&self) -> Option<&Crowd> {
        Some(self)
    }
}

impl Waiters {
    fn push(&mut self, waiter: Arc<dyn Waiter>) {
        let Some(first) = &mut self.0 else {
            self.0 = Some(waiter);
            return;
        };
        match first.crowd() {
            Some(crowd) => crowd.0.lock().push(waiter),
            None => *first = Arc::new(Crowd(SpinLock::new(smallvec![first.clone(), waiter]))),
        }
    }

    fn remove(&mut self, waiter: &Arc<dyn Waiter>) {
        let Some(first) = &self.0 else { return };
        if let Some(crowd) = first.crowd() {
            let mut all = crowd.0.lock();
            if let Some(at) = all.iter().position(|w| Arc::ptr_eq(w, waiter)) {
                all.swap_remove(at);
            }
        } else if Arc::ptr_eq(first, waiter) {
            self.0 = None;
        }
    }

    #[inline]
    fn notify(self) {
        if let Some(waiter) = self.0 {
            waiter.notify();
        }
    }
}

enum State<T, B> {
    /// `left`: whoever will take the body out has said so.
    Waiting {
        body: B,
        waiters: Waiters,
        left: bool,
    },
    Pending(Waiters),
    Ready(T),
    /// The value, and another view of it that dependents share (see `Source::project`).
    Shared(Arc<T>, Option<Box<View>>),
    Failed(Arc<Error>),
    /// Moved out, or dropped with the last handle.
    Gone,
}

/// A part of a value, shared.
pub(crate) type View = Arc<dyn Any + Send + Sync>;

/// What a slot that is done holds.
pub(crate) type Outcome<T> = Result<T, Arc<Error>>;

/// The place of what is run and of its result. What has no body to run has an `Infallible` one.
pub(crate) struct Slot<T, B = Infallible> {
    /// 1 when it is done.
    done: AtomicU32,
    /// Of the owner's; there is room for it here.
    label: u32,
    state: SpinLock<State<T, B>>,
}

/// What a completion did.
pub(crate) enum Completed<B> {
    /// The slot was done already.
    TooLate,
    /// It ended what ran, or had nothing to run.
    Ended,
    /// It ended what had not started; this will never run. `left`: [`Slot::leave`] had been called.
    Unstarted { body: B, left: bool },
}

impl<B> Completed<B> {
    /// Whether this completion was the first.
    pub(crate) fn is_first(&self) -> bool {
        !matches!(self, Completed::TooLate)
    }
}

impl<T, B> Slot<T, B> {
    /// With nothing to run: somebody will complete it.
    pub(crate) fn new() -> Self {
        Slot { done: AtomicU32::new(0), label: 0, state: SpinLock::new(State::Pending(Waiters::default())) }
    }

    #[inline]
    pub(crate) fn waiting(body: B, label: u32) -> Self {
        let state = State::Waiting { body, waiters: Waiters::default(), left: false };
        Slot { done: AtomicU32::new(0), label, state: SpinLock::new(state) }
    }

    pub(crate) fn ready(value: T) -> Self {
        Slot { done: AtomicU32::new(1), label: 0, state: SpinLock::new(State::Ready(value)) }
    }

    /// The owner's number, given with the body.
    #[inline]
    pub(crate) fn label(&self) -> u32 {
        self.label
    }

    /// Whether it has not started, and can be.
    pub(crate) fn has_body(&self) -> bool {
        matches!(*self.state.lock(), State::Waiting { .. })
    }

    /// Says that the body will be taken out; `false` if there is none, or it was said before.
    pub(crate) fn leave(&self) -> bool {
        match &mut *self.state.lock() {
            State::Waiting { left, .. } => !mem::replace(left, true),
            _ => false,
        }
    }

    /// Takes out what is to be run, for the one who will run it.
    #[inline]
    pub(crate) fn take_body(&self) -> Option<B> {
        let mut state = self.state.lock();
        let State::Waiting { waiters, .. } = &mut *state else { return None };
        let pending = State::Pending(mem::take(waiters));
        match mem::replace(&mut *state, pending) {
            State::Waiting { body, .. } => Some(body),
            _ => unreachable!("matched above, under the same lock"),
        }
    }

    /// Puts back what is to be run once more; a body that is too late, because the slot is done, comes back.
    pub(crate) fn put_body(&self, body: B) -> Result<(), B> {
        let mut state = self.state.lock();
        let State::Pending(waiters) = &mut *state else { return Err(body) };
        *state = State::Waiting { body, waiters: mem::take(waiters), left: true };
        Ok(())
    }

    /// Looks at what has not started. It must not block, nor look at this slot again.
    pub(crate) fn with_body<R>(&self, look: impl FnOnce(&B) -> R) -> Option<R> {
        match &*self.state.lock() {
            State::Waiting { body, .. } => Some(look(body)),
            _ => None,
        }
    }

    /// Stores the outcome and notifies the waiters, unless there is one already.
    pub(crate) fn complete(&self, outcome: Outcome<T>) -> Completed<B> {
        self.complete_with(outcome, || {})
    }

    /// The same; calls `first` just before anybody can see the outcome. It must not block.
    #[inline]
    pub(crate) fn complete_with(&self, outcome: Outcome<T>, first: impl FnOnce()) -> Completed<B> {
        let after = match outcome {
            Ok(value) => State::Ready(value),
            Err(error) => State::Failed(error),
        };
        let before = {
            let mut state = self.state.lock();
            if !matches!(*state, State::Pending(_) | State::Waiting { .. }) {
                return Completed::TooLate;
            }
            first();
            let before = mem::replace(&mut *state, after);
            self.done.store(1, Ordering::Release);
            before
        };
        match before {
            State::Pending(waiters) => {
                waiters.notify();
                Completed::Ended
            }
            State::Waiting { body, waiters, left } => {
                waiters.notify();
                Completed::Unstarted { body, left }
            }
            _ => unreachable!("matched above, under the same lock"),
        }
    }

    /// Stores the outcome of what has nothing to run, if nobody has to be told but threads that sleep.
    ///
    /// # Errors
    /// The outcome, if there are others.
    #[cfg(feature = "cluster")]
    pub(crate) fn complete_quietly(&self, outcome: Outcome<T>) -> Result<(), Outcome<T>> {
        let waiters = {
            let mut state = self.state.lock();
            let State::Pending(waiters) = &mut *state else { return Ok(()) };
            if waiters.0.as_ref().is_some_and(|waiter| !waiter.is_quiet()) {
                return Err(outcome);
            }
            let waiters = mem::take(waiters);
            *state = match outcome {
                Ok(value) => State::Ready(value),
                Err(error) => State::Failed(error),
            };
            self.done.store(1, Ordering::Release);
            waiters
        };
        waiters.notify();
        Ok(())
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) != 0
    }

    /// Registers a waiter, unless the slot is done already (`false`).
    pub(crate) fn add_waiter(&self, waiter: &Arc<dyn Waiter>) -> bool {
        match &mut *self.state.lock() {
            State::Pending(waiters) | State::Waiting { waiters, .. } => {
                waiters.push(waiter.clone());
                true
            }
            _ => false,
        }
    }

    pub(crate) fn remove_waiter(&self, waiter: &Arc<dyn Waiter>) {
        if let State::Pending(waiters) | State::Waiting { waiters, .. } = &mut *self.state.lock() {
            waiters.remove(waiter);
        }
    }

    pub(crate) fn failure(&self) -> Option<Arc<Error>> {
        match &*self.state.lock() {
            State::Failed(error) => Some(error.clone()),
            _ => None,
        }
    }

    /// Drops the value of a slot that is done: nobody can ask for it any more.
    pub(crate) fn discard(&self) {
        let state = {
            let mut state = self.state.lock();
            match &*state {
                // An error is small, and others may still ask what became of it.
                State::Pending(_) | State::Waiting { .. } | State::Failed(_) => return,
                _ => mem::replace(&mut *state, State::Gone),
            }
        };
        drop(state); // runs the value's destructor outside the lock
    }

    /// The value, moved out. The caller has the only handle, so nobody else will ask.
    pub(crate) fn take(&self) -> Outcome<Result<T, Arc<T>>> {
        match mem::replace(&mut *self.state.lock(), State::Gone) {
            State::Ready(value) => Ok(Ok(value)),
            State::Shared(shared, projected) => {
                drop(projected);
                Ok(Arc::try_unwrap(shared))
            }
            State::Failed(error) => Err(error),
            State::Pending(_) | State::Waiting { .. } | State::Gone => {
                unreachable!("only a finished slot with one handle is taken from")
            }
        }
    }

    /// The value, shared. The first call moves it into an `Arc`.
    ///
    /// # Panics
    /// If the slot is not done: callers wait first.
    pub(crate) fn share(&self) -> Outcome<Arc<T>> {
        let mut state = self.state.lock();
        match &mut *state {
            State::Shared(shared, _) => Ok(shared.clone()),
            State::Failed(error) => Err(error.clone()),
            State::Ready(_) => {
                let State::Ready(value) = mem::replace(&mut *state, State::Gone) else {
                    unreachable!("matched above, under the same lock");
                };
                let shared = Arc::new(value);
                *state = State::Shared(shared.clone(), None);
                Ok(shared)
            }
            State::Pending(_) | State::Waiting { .. } | State::Gone => {
                unreachable!("a held handle keeps its finished value")
            }
        }
    }

    /// Looks at the value of a slot that is done, under its lock: no code of the user's.
    #[cfg(feature = "cluster")]
    pub(crate) fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> Outcome<R> {
        match &*self.state.lock() {
            State::Ready(value) => Ok(look(value)),
            State::Shared(shared, _) => Ok(look(shared)),
            State::Failed(error) => Err(error.clone()),
            State::Pending(_) | State::Waiting { .. } | State::Gone => {
                unreachable!("a held handle keeps its finished value")
            }
        }
    }

    /// A copy of the value. Small plain values are copied under the lock, others from an `Arc`,
    /// so that no long-running or re-entrant `Clone` of the user's runs while the lock is held.
    pub(crate) fn copy(&self) -> Outcome<T>
    where
        T: Clone,
    {
        if !mem::needs_drop::<T>() && size_of::<T>() <= 64 {
            match &*self.state.lock() {
                State::Ready(value) => return Ok(value.clone()),
                State::Failed(error) => return Err(error.clone()),
                _ => {}
            }
        }
        self.share().map(|shared| T::clone(&shared))
    }

    /// The view that was kept, if the value is shared and has one.
    pub(crate) fn view(&self) -> Option<View> {
        match &*self.state.lock() {
            State::Shared(_, Some(view)) => Some(View::clone(view)),
            _ => None,
        }
    }

    /// Keeps a view of the value for others, if it is shared and has none.
    pub(crate) fn keep_view(&self, view: View) {
        if let State::Shared(_, kept @ None) = &mut *self.state.lock() {
            *kept = Some(Box::new(view));
        }
    }
}
