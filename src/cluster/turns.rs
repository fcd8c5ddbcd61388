//! Who does a driver's I/O: a thread of the program that waits for a result, or the driver's own thread.
//!
//! To wake a sleeping thread takes tens of microseconds. So a thread of the program that would sleep until a result is
//! there does the I/O meanwhile: it sends what it has submitted, and receives what it waits for.
//!
//! # The desk
//! All that the I/O needs, and what handles letters, is the *desk*. Whoever has taken it works, so one thread does.
//! A thread that waits is a *guest*: it takes the desk if it is there, and puts it back when what it waits for is done.
//! The driver's own thread is at *home*. It has the desk while no guests come, and blocks there:
//! - Guests that find the desk taken enter their names, and sleep. Home puts the desk back for the first of them as soon as
//!   it has handled what came; what that one waits for may have come with it, so it is not woken earlier. A guest
//!   that goes wakes the next.
//! - After that home *naps*: guests that come one after the other, as in a program that calls and waits, find the desk
//!   there. When nobody has come or gone during a nap home takes the desk.
//! - While a guest works for longer than a nap, home sleeps, until the guest goes.
//!
//! # A guest stays awake
//! On a machine whose CPUs have nothing to do, most of a round trip is waking them: 40 us and more for each process that the
//! task passes through. So a guest does not sleep at once, but looks again for as long as most results take, and lets
//! whoever else wants its CPU have it each time (`sched_yield`). The CPU stays awake, so the others find it so. Just to spin would keep
//! them from that CPU: where there are few it would be worse than to sleep.
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
//! The thread that waits may hold locks of the program's, and what it waits for may not need those; also other threads
//! that wait may. So nobody runs code of the user's at the desk: what is done there changes the client's state and wakes threads
//! that sleep. The rest (destructors of what is not needed any more, futures that are woken, items of streams, the
//! end of everything) are *errands*, which home runs in the order in which they came, while others may have the desk.

use super::pace::Pace;
use crate::{
    local::{
        node::contain,
        thread::{Interrupt, Parker},
        wait::sleep,
    },
    sync::{AtomicBool, AtomicU32, Bell, Mutex, Ordering::SeqCst},
};
use std::{
    cell::RefCell,
    fmt, mem,
    sync::Arc,
    time::{Duration, Instant},
};

/// The desk is free for no longer than that.
const NAP: Duration = Duration::from_millis(1);
/// A guest stays awake for so long, if what guests wait for comes soon.
const AWAKE: Duration = Duration::from_micros(300);
/// If it comes in less than that, on average.
const SOON: Duration = Duration::from_millis(1);

/// Something that may run code of the user's.
type Errand = Box<dyn FnOnce() + Send>;

/// The I/O, and what handles letters.
pub(crate) trait Desk: Send + 'static {
    /// Sends and receives until something happens, or it is so late, and handles it; `false`: nothing will happen any more.
    fn turn(&mut self, until: Option<Instant>) -> bool;

    /// What is posted leaves before more is received.
    fn send_first(&mut self);

    /// Until then it does not sleep while nothing happens.
    fn stay_awake(&mut self, until: Option<Instant>);
}

pub(crate) struct Turns<D> {
    /// Ends a turn of whoever does the I/O.
    interrupt: Box<dyn Fn() + Send + Sync>,
    state: Mutex<State<D>>,
    /// Home sleeps or naps here.
    home: Bell,
    /// The desk is free, for those who only post.
    is_free: AtomicBool,
    /// Letters that were posted since.
    posted: AtomicU32,
    /// How long guests work.
    pace: Pace,
}

struct State<D> {
    /// Nobody has taken it.
    desk: Option<Box<D>>,
    /// Those who would take it.
    guests: Vec<Arc<Parker>>,
    /// How often it was taken, or put back.
    moves: u64,
    /// Home is to take it now.
    is_called: bool,
    /// Home does not nap, but waits to be woken.
    is_asleep: bool,
    errands: Vec<Errand>,
    /// Nothing will happen at the desk any more.
    is_over: bool,
}

/// What was left to home in one turn.
#[derive(Default)]
struct Left {
    errands: Vec<Errand>,
    /// Somebody may wait for one of them.
    is_urgent: bool,
}

thread_local! {
    /// While this thread is at the desk.
    static LEFT: RefCell<Option<Left>> = const { RefCell::new(None) };
}

/// Whether this thread is at the desk.
pub(super) fn is_at_desk() -> bool {
    LEFT.with_borrow(Option::is_some)
}

/// Leaves something to home, at the desk. `is_urgent`: somebody may wait for it.
pub(super) fn leave(errand: impl FnOnce() + Send + 'static, is_urgent: bool) {
    LEFT.with_borrow_mut(|left| {
        let left = left.get_or_insert_default();
        left.errands.push(Box::new(errand));
        left.is_urgent |= is_urgent;
    });
}

impl<D: Desk> Turns<D> {
    pub(super) fn new(interrupt: impl Fn() + Send + Sync + 'static) -> Self {
        Turns {
            interrupt: Box::new(interrupt),
            state: Mutex::new(State {
                desk: None,
                guests: Vec::new(),
                moves: 0,
                is_called: false,
                is_asleep: false,
                errands: Vec::new(),
                is_over: false,
            }),
            home: Bell::new(),
            is_free: AtomicBool::new(false),
            posted: AtomicU32::new(0),
            pace: Pace::quick(),
        }
    }

    /// Something was posted.
    #[inline]
    pub(super) fn posted(&self) {
        if self.is_free.load(SeqCst) && self.posted.fetch_add(1, SeqCst) == 1 {
            self.state.lock().is_called = true;
            self.home.ring();
        }
    }

    /// Works at home, until nothing will happen any more.
    pub(super) fn serve(&self, desk: D) {
        let mut taken = Some(Box::new(desk));
        while let Some(mut desk) = taken {
            let (is_over, is_wanted) = loop {
                let is_over = !self.turn(&mut desk, None);
                let state = self.state.lock();
                if is_over || !state.errands.is_empty() || !state.guests.is_empty() {
                    break (is_over, !state.guests.is_empty());
                }
            };
            self.put_back(desk, is_over);
            taken = self.take_at_home(!is_wanted);
        }
    }

    /// A turn at the desk; `false`: there will be no other.
    fn turn(&self, desk: &mut D, until: Option<Instant>) -> bool {
        LEFT.set(Some(Left::default()));
        let goes_on = desk.turn(until);
        let Left { mut errands, is_urgent } = LEFT.take().unwrap_or_default();
        if !errands.is_empty() {
            let state = &mut *self.state.lock();
            state.errands.append(&mut errands);
            if is_urgent || state.is_asleep {
                self.home.ring();
            }
        }
        goes_on
    }

    /// Runs errands, and waits until it is home's turn; `is_due`: it is. `None`: all is over.
    fn take_at_home(&self, mut is_due: bool) -> Option<Box<D>> {
        let mut state = self.state.lock();
        loop {
            if !state.errands.is_empty() {
                let errands = mem::take(&mut state.errands);
                drop(state);
                errands.into_iter().for_each(contain);
                state = self.state.lock();
                continue;
            }
            if state.is_over {
                return None;
            }
            if (is_due || state.is_called) && state.desk.is_some() {
                return self.take(&mut state);
            }
            let moves = state.moves;
            let rings;
            (state, rings) = self.home.nap(&self.state, state, NAP);
            let is_still = !rings && state.moves == moves;
            is_due = is_still && state.desk.is_some();
            if is_still && !is_due && state.errands.is_empty() && !state.is_over {
                state.is_asleep = true;
                state = self.home.wait(state);
                state.is_asleep = false;
            }
        }
    }

    fn take(&self, state: &mut State<D>) -> Option<Box<D>> {
        let desk = state.desk.take()?;
        self.is_free.store(false, SeqCst);
        state.is_called = false;
        state.moves += 1;
        Some(desk)
    }

    /// Puts the desk back, for the next guest or for home.
    fn put_back(&self, desk: Box<D>, is_over: bool) {
        let next = {
            let state = &mut *self.state.lock();
            state.moves += 1;
            state.is_over |= is_over;
            if !is_over {
                state.desk = Some(desk);
                self.posted.store(0, SeqCst);
                self.is_free.store(true, SeqCst);
            }
            if state.is_asleep || is_over {
                self.home.ring();
            }
            state.guests.pop()
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
            let started = Instant::now();
            desk.stay_awake(self.pace.is_below(SOON).then(|| started + AWAKE));
            let mut is_over = false;
            while !is_over && !done() && !is_late() {
                is_over = !self.turn(&mut desk, until);
            }
            desk.stay_awake(None);
            self.pace.took(started.elapsed());
            parker.works(None);
            self.put_back(desk, is_over);
        }
        self.go(parker);
    }

    /// Takes the desk, or enters the guest's name.
    fn take_as_guest(&self, parker: &Arc<Parker>) -> Option<Box<D>> {
        let state = &mut *self.state.lock();
        let entered = state.guests.iter().position(|guest| Arc::ptr_eq(guest, parker));
        if state.desk.is_some() {
            entered.map(|at| state.guests.swap_remove(at));
            let mut desk = self.take(state)?;
            if self.posted.load(SeqCst) > 0 {
                desk.send_first(); // it is likely to be what this one waits for
            }
            return Some(desk);
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
                None if state.desk.is_some() => state.guests.pop(),
                None => None,
            }
        };
        if let Some(next) = next {
            next.unpark();
        }
    }
}

impl<D: Desk> Interrupt for Turns<D> {
    fn interrupt(&self) {
        (self.interrupt)();
    }
}

impl<D> fmt::Debug for Turns<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}
