//! A slot holds the result of one task, call or `put`: empty, then a value or an error, once.
//!
//! # States
//! ```text
//! Pending(waiters) --complete(Ok)---> Ready(T) --share--> Shared(Arc<T>) --discard--> Gone
//!        |                               '----------------------------------discard-----'
//!        '---------complete(Err)---> Failed
//! ```
//! A value is kept bare until somebody asks for an `Arc` of it, so that a result that is only ever
//! copied out costs no second allocation. `complete` wins once; later completions are dropped.
//!
//! # Invariants
//! - Each waiter that `add_waiter` accepted is notified exactly once, unless it is removed first.
//! - Waiters are notified after the lock is released, and see the slot done.
//! - `done` is set under the lock and never cleared: whoever reads `true` finds no `Pending`.

use crate::{
    error::Error,
    sync::{AtomicUsize, Ordering, SpinLock},
};
use std::{any::Any, mem, sync::Arc};

/// Somebody who is told, once, that a slot is done.
pub(crate) trait Waiter: Send + Sync {
    /// Called once, on the thread that completed the slot. Must not block.
    fn notify(self: Arc<Self>);
}

/// The waiters of one slot; most slots have none or one.
#[derive(Default)]
enum Waiters {
    #[default]
    None,
    One(Arc<dyn Waiter>),
    Many(Box<Crowd>),
}

/// Boxed, so that the slots that have none are small.
struct Crowd(Vec<Arc<dyn Waiter>>);

impl Waiters {
    fn push(&mut self, waiter: Arc<dyn Waiter>) {
        *self = match mem::take(self) {
            Waiters::None => Waiters::One(waiter),
            Waiters::One(first) => Waiters::Many(Box::new(Crowd(vec![first, waiter]))),
            Waiters::Many(mut all) => {
                all.0.push(waiter);
                Waiters::Many(all)
            }
        };
    }

    fn remove(&mut self, waiter: &Arc<dyn Waiter>) {
        match self {
            Waiters::None => {}
            Waiters::One(one) => {
                if Arc::ptr_eq(one, waiter) {
                    *self = Waiters::None;
                }
            }
            Waiters::Many(all) => {
                if let Some(at) = all.0.iter().position(|w| Arc::ptr_eq(w, waiter)) {
                    all.0.swap_remove(at);
                }
            }
        }
    }

    #[inline]
    fn notify(self) {
        match self {
            Waiters::None => {}
            Waiters::One(waiter) => waiter.notify(),
            Waiters::Many(all) => all.0.into_iter().for_each(Waiter::notify),
        }
    }
}

enum State<T> {
    Pending(Waiters),
    Ready(T),
    /// The value, and another view of it that dependents share (see [`Slot::project`]).
    Shared(Arc<T>, Option<Box<View>>),
    Failed(Arc<Error>),
    /// Moved out, or dropped with the last handle.
    Gone,
}

/// A part of a value, shared.
type View = Arc<dyn Any + Send + Sync>;

/// What a slot that is done holds.
pub(crate) type Outcome<T> = Result<T, Arc<Error>>;

/// The place of one result.
pub(crate) struct Slot<T> {
    /// 1 when it is done. A whole word: a byte that was just written, and is then moved as part of a
    /// word into its cell, makes the CPU wait.
    done: AtomicUsize,
    state: SpinLock<State<T>>,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Self {
        Slot { done: AtomicUsize::new(0), state: SpinLock::new(State::Pending(Waiters::None)) }
    }

    pub(crate) fn ready(value: T) -> Self {
        Slot { done: AtomicUsize::new(1), state: SpinLock::new(State::Ready(value)) }
    }

    /// Stores the outcome and notifies the waiters; `false` if there was one already.
    pub(crate) fn complete(&self, outcome: Outcome<T>) -> bool {
        self.complete_with(outcome, || {})
    }

    /// The same; calls `first` just before anybody can see the outcome. It must not block.
    #[inline]
    pub(crate) fn complete_with(&self, outcome: Outcome<T>, first: impl FnOnce()) -> bool {
        let after = match outcome {
            Ok(value) => State::Ready(value),
            Err(error) => State::Failed(error),
        };
        let before = {
            let mut state = self.state.lock();
            if !matches!(*state, State::Pending(_)) {
                return false;
            }
            first();
            let before = mem::replace(&mut *state, after);
            self.done.store(1, Ordering::Release);
            before
        };
        if let State::Pending(waiters) = before {
            waiters.notify();
        }
        true
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire) != 0
    }

    /// Registers a waiter, unless the slot is done already (`false`).
    pub(crate) fn add_waiter(&self, waiter: &Arc<dyn Waiter>) -> bool {
        match &mut *self.state.lock() {
            State::Pending(waiters) => {
                waiters.push(waiter.clone());
                true
            }
            _ => false,
        }
    }

    pub(crate) fn remove_waiter(&self, waiter: &Arc<dyn Waiter>) {
        if let State::Pending(waiters) = &mut *self.state.lock() {
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
                State::Pending(_) | State::Failed(_) => return,
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
            State::Pending(_) | State::Gone => unreachable!("only a finished slot with one handle is taken from"),
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
            State::Pending(_) | State::Gone => unreachable!("a held handle keeps its finished value"),
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

    /// A part of the value, shared: computed once from the whole, then the same `Arc` for all.
    pub(crate) fn project<P, E>(&self, project: impl FnOnce(&T) -> Result<P, E>) -> Outcome<Result<Arc<P>, E>>
    where
        P: Send + Sync + 'static,
    {
        let whole = self.share()?;
        let cached = match &*self.state.lock() {
            State::Shared(_, Some(part)) => View::clone(part).downcast::<P>().ok(),
            _ => None,
        };
        if let Some(part) = cached {
            return Ok(Ok(part));
        }
        Ok(project(&whole).map(|part| {
            let part = Arc::new(part);
            if let State::Shared(_, cache @ None) = &mut *self.state.lock() {
                *cache = Some(Box::new(part.clone()));
            }
            part
        }))
    }
}
