//! What one of two threads has, while the other *stands by* to take it over.
//!
//! Who has it *puts it down* before it does something that may take long, and *takes it up* again after. Meanwhile the
//! other takes it
//! - when it is *called*, because the first is about to block;
//! - when it was down for a whole *nap*.
//!
//! When nothing was put down during a nap, who stands by sleeps until something is.

use crate::sync::{Bell, Mutex};
use std::time::Duration;

/// It is down for no longer than two of these.
const NAP: Duration = Duration::from_millis(2);

pub(super) struct Relay<T> {
    state: Mutex<State<T>>,
    bell: Bell,
}

struct State<T> {
    /// Nobody has it.
    down: Option<T>,
    /// How often it was put down, or taken.
    moves: u64,
    /// It is to be taken now.
    is_called: bool,
    other: Other,
}

/// What the thread does that does not have it, and has not put it down.
#[derive(Clone, Copy, PartialEq)]
enum Other {
    /// It does not stand by.
    Away,
    Naps,
    Sleeps,
}

impl<T> Relay<T> {
    /// One thread has it, and the other is not there yet.
    pub(super) fn new() -> Self {
        let state = State { down: None, moves: 0, is_called: false, other: Other::Away };
        Relay { state: Mutex::new(state), bell: Bell::new() }
    }

    /// Puts it down.
    ///
    /// # Errors
    /// Nobody stands by: here it is again.
    pub(super) fn put_down(&self, it: T) -> Result<(), T> {
        let state = &mut *self.state.lock();
        if state.other == Other::Away {
            return Err(it);
        }
        state.down = Some(it);
        state.moves += 1;
        if state.other == Other::Sleeps {
            self.bell.ring();
        }
        Ok(())
    }

    /// Takes it up again, unless the other has.
    pub(super) fn take_up(&self) -> Option<T> {
        let state = &mut *self.state.lock();
        let it = state.down.take()?;
        state.moves += 1;
        state.is_called = false;
        Some(it)
    }

    /// Who has put it down will not take it up for a while.
    pub(super) fn call(&self) {
        self.state.lock().is_called = true;
        self.bell.ring();
    }

    /// Waits until it is this thread's turn.
    pub(super) fn stand_by(&self) -> T {
        let mut state = self.state.lock();
        let mut is_due = false;
        loop {
            if (is_due || state.is_called)
                && let Some(it) = state.down.take()
            {
                state.moves += 1;
                (state.is_called, state.other) = (false, Other::Away);
                return it;
            }
            state.other = Other::Naps;
            let moves = state.moves;
            let rings;
            (state, rings) = self.bell.nap(&self.state, state, NAP);
            let is_still = !rings && state.moves == moves;
            is_due = is_still && state.down.is_some();
            if is_still && !is_due {
                state.other = Other::Sleeps;
                state = self.bell.wait(state);
            }
        }
    }
}
