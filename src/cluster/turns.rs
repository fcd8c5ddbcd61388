//! Who does a driver's I/O: a thread of the program that waits for a result, or the driver's own thread.
//!
//! To wake a sleeping thread takes tens of microseconds. So a thread of the program that would sleep until a result is
//! there does the I/O meanwhile: it sends what it has submitted, and receives what it waits for.
//!
//! # The desk
//! All that the I/O needs, and what handles letters, is the [`Desk`]. Whoever has taken it works, so one thread does.
//! A thread that waits is a *guest*: it takes the desk if it is there, and puts it back when what it waits for is done.
//! The driver's own thread is at *home*. It has the desk while no guests come, and blocks there:
//! - Guests that find the desk taken enter their names, and sleep. Home puts the desk back for the first of them as soon as
//!   it has handled what came; what that one waits for may have come with it, so it is not woken earlier. A guest
//!   that goes wakes the next.
//! - After that home *naps*: guests that come one after the other, as in a program that calls and waits, find the desk
//!   there. When nobody has come or gone during a nap home takes the desk.
//! - While a guest works for longer than a nap, home sleeps, until the guest goes.
//!
//! # Nothing is forgotten
//! - The desk is free only while home naps, which ends by itself; or while it is about to, because whoever puts the desk back
//!   wakes it if it sleeps.
//! - What is posted while the desk is free waits for the next guest, or the end of the nap. The second letter
//!   wakes home, so that many that are submitted together are on their way at once.
//! - What a guest waits for may be done by another thread (a cancellation, a deadline). That one tells the guest's
//!   [`Parker`], which interrupts the I/O. Under the parker's lock the guest says that it works, before it looks whether
//!   it has what it waits for; the other completes that before it takes the lock. So one of them sees the other.
//!
//! # User code
//! The program's thread may hold locks of the program's, and none of these may be needed by what it runs here. So a guest
//! runs no code of the user's: it wakes threads that wait. Letters that may lead to other things stay at the desk, for home
//! to handle before anybody takes it again. What such code is about to follow from the others, the destructors of what is
//! not needed any more and the wakers of futures, are *errands*, which home runs in the order in which they came; it runs
//! them before it takes the desk, so they are in order with what it handles itself.

use super::{driver::Desk, station::Station};
use crate::local::{thread::Parker, wait::sleep};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    cell::Cell,
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// Nobody does the I/O for longer than that.
const NAP: Duration = Duration::from_millis(1);

/// Something that may run code of the user's.
pub(super) type Errand = Box<dyn FnOnce() + Send>;

pub(crate) struct Turns {
    station: Arc<Station>,
    state: Mutex<State>,
    /// Home sleeps or naps here.
    home: Condvar,
    /// The desk is free, for those who only post.
    is_free: AtomicBool,
    /// Letters that were posted since.
    posted: AtomicU32,
}

#[derive(Default)]
struct State {
    /// Nobody has taken it.
    desk: Option<Box<Desk>>,
    /// There are letters for home at the desk: no guest takes it.
    is_reserved: bool,
    /// Those who would take it.
    guests: Vec<Arc<Parker>>,
    /// How often it was taken, or put back.
    moves: u64,
    /// Home is to take it now.
    is_called: bool,
    /// Home does not nap, but waits to be woken.
    is_asleep: bool,
    errands: Vec<Errand>,
    /// The station is closed.
    is_over: bool,
}

/// How a turn at the desk ended.
pub(super) enum Turn {
    Done,
    /// There are letters that are not for guests.
    ForHome,
    /// The station is closed.
    Over,
}

thread_local! {
    static IS_GUEST: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread must not run code of the user's now.
pub(super) fn is_guest() -> bool {
    IS_GUEST.get()
}

impl Turns {
    pub(super) fn new(station: Arc<Station>) -> Turns {
        Turns {
            station,
            state: Mutex::default(),
            home: Condvar::new(),
            is_free: AtomicBool::new(false),
            posted: AtomicU32::new(0),
        }
    }

    /// Something was posted.
    #[inline]
    pub(super) fn posted(&self) {
        if self.is_free.load(SeqCst) && self.posted.fetch_add(1, SeqCst) == 1 {
            self.call_home(&mut self.state.lock());
        }
    }

    /// Leaves something to home. `is_urgent`: somebody may wait for it.
    pub(super) fn leave(&self, errand: Errand, is_urgent: bool) {
        let state = &mut *self.state.lock();
        state.errands.push(errand);
        if is_urgent || state.is_asleep {
            self.home.notify_one();
        }
    }

    fn call_home(&self, state: &mut State) {
        state.is_called = true;
        self.home.notify_one();
    }

    /// Interrupts whoever does the I/O.
    pub(crate) fn interrupt(&self) {
        self.station.interrupt();
    }

    /// Works at home, until the station is closed.
    pub(super) fn serve(&self, desk: Desk) {
        let mut taken = Some(Box::new(desk));
        while let Some(mut desk) = taken {
            let mut turn = Turn::Done;
            while !matches!(turn, Turn::Over) && (desk.is_reserved() || self.state.lock().guests.is_empty()) {
                turn = desk.turn(None, false);
            }
            self.put_back(desk, turn);
            taken = self.take_home();
        }
    }

    /// Runs errands, and waits until it is home's turn; `None`: all is over.
    fn take_home(&self) -> Option<Box<Desk>> {
        let mut state = self.state.lock();
        let mut is_due = false;
        loop {
            if !state.errands.is_empty() {
                let errands = mem::take(&mut state.errands);
                MutexGuard::unlocked(&mut state, || errands.into_iter().for_each(|errand| errand()));
                continue;
            }
            if state.is_over {
                return None;
            }
            if (is_due || state.is_called) && state.desk.is_some() {
                return self.take(&mut state);
            }
            let moves = state.moves;
            let is_still = self.home.wait_for(&mut state, NAP).timed_out() && state.moves == moves;
            is_due = is_still && state.desk.is_some();
            if is_still && !is_due && state.errands.is_empty() {
                state.is_asleep = true;
                self.home.wait(&mut state);
                state.is_asleep = false;
            }
        }
    }

    fn take(&self, state: &mut State) -> Option<Box<Desk>> {
        let desk = state.desk.take()?;
        self.is_free.store(false, SeqCst);
        (state.is_called, state.is_reserved) = (false, false);
        state.moves += 1;
        Some(desk)
    }

    fn put_back(&self, desk: Box<Desk>, turn: Turn) {
        let next = {
            let state = &mut *self.state.lock();
            state.moves += 1;
            match turn {
                Turn::Over => state.is_over = true,
                Turn::Done | Turn::ForHome => {
                    state.desk = Some(desk);
                    self.posted.store(0, SeqCst);
                    self.is_free.store(true, SeqCst);
                }
            }
            match turn {
                Turn::ForHome => {
                    state.is_reserved = true;
                    self.call_home(state);
                    None
                }
                Turn::Done | Turn::Over => {
                    if state.is_asleep || state.is_over {
                        self.home.notify_one();
                    }
                    state.guests.pop()
                }
            }
        };
        if let Some(next) = next {
            next.unpark();
        }
    }

    /// Waits on a thread of the program's until `done`, or until it is so late; `parker` is told when it may be done.
    pub(crate) fn wait(self: &Arc<Self>, parker: &Arc<Parker>, until: Option<Instant>, done: &impl Fn() -> bool) {
        let is_late = || until.is_some_and(|until| until <= Instant::now());
        while !done() && !is_late() {
            let Some(mut desk) = self.take_as_guest(parker) else {
                sleep(until);
                parker.reset();
                continue;
            };
            parker.works(Some(self.clone()));
            let mut turn = Turn::Done;
            while matches!(turn, Turn::Done) && !done() && !is_late() {
                IS_GUEST.set(true);
                turn = desk.turn(until, true);
                IS_GUEST.set(false);
            }
            parker.works(None);
            self.put_back(desk, turn);
        }
        self.go(parker);
    }

    /// Takes the desk, or enters the guest's name.
    fn take_as_guest(&self, parker: &Arc<Parker>) -> Option<Box<Desk>> {
        let state = &mut *self.state.lock();
        let entered = state.guests.iter().position(|guest| Arc::ptr_eq(guest, parker));
        if state.desk.is_some() && !state.is_reserved {
            entered.map(|at| state.guests.swap_remove(at));
            return self.take(state);
        }
        if entered.is_none() {
            state.guests.push(parker.clone());
        }
        None
    }

    /// A guest goes. If it was woken to take the desk, the next is.
    fn go(&self, parker: &Arc<Parker>) {
        let next = {
            let state = &mut *self.state.lock();
            match state.guests.iter().position(|guest| Arc::ptr_eq(guest, parker)) {
                Some(at) => {
                    state.guests.swap_remove(at);
                    None
                }
                None if state.desk.is_some() && !state.is_reserved => state.guests.pop(),
                None => None,
            }
        };
        if let Some(next) = next {
            next.unpark();
        }
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}
