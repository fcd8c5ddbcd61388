//! Deadlines, pauses and sleeps: one thread for the process, started at first use, that sleeps
//! until the next is due. In deterministic mode time is virtual and passes only when nothing can
//! run.

use super::{Core, flag, node::Node};
use crate::error::Error;
use parking_lot::{Condvar, Mutex};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

pub(crate) type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Timers {
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    actions: BTreeMap<u64, Action>,
    next: u64,
    started: bool,
}

static TIMERS: Mutex<Option<Timers>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

/// Calls `action` once, `delay` from now. It must not block.
pub(crate) fn after(core: &'static Core, delay: Duration, action: impl FnOnce() + Send + 'static) {
    if core.has(flag::DETERMINISTIC) {
        return core.deterministic.after(delay, Box::new(action));
    }
    on_the_clock(delay, Box::new(action));
}

/// The time since some moment in the past; virtual in deterministic mode.
pub(crate) fn now(core: &Core) -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    match core.has(flag::DETERMINISTIC) {
        true => core.deterministic.now(),
        false => START.get_or_init(Instant::now).elapsed(),
    }
}

fn on_the_clock(delay: Duration, action: Action) {
    let mut guard = TIMERS.lock();
    let timers = guard.get_or_insert_default();
    let id = timers.next;
    timers.next += 1;
    // A time too far to be represented never comes.
    let Some(at) = Instant::now().checked_add(delay) else { return };
    timers.due.push(Reverse((at, id)));
    timers.actions.insert(id, action);
    if !timers.started {
        timers.started = true;
        let thread = std::thread::Builder::new().name("outray-timer".into()).stack_size(256 << 10);
        if let Err(error) = thread.spawn(tick) {
            timers.started = false;
            tracing::error!(%error, "cannot start the timer thread");
        }
    }
    CHANGED.notify_one();
}

fn tick() {
    let mut guard = TIMERS.lock();
    loop {
        let timers = guard.get_or_insert_default();
        match timers.due.peek() {
            None => CHANGED.wait(&mut guard),
            Some(Reverse((at, _))) if *at > Instant::now() => {
                let at = *at;
                CHANGED.wait_until(&mut guard, at);
            }
            Some(Reverse((_, id))) => {
                let id = *id;
                timers.due.pop();
                let action = timers.actions.remove(&id);
                parking_lot::MutexGuard::unlocked(&mut guard, || {
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| action.map(|action| action())));
                });
            }
        }
    }
}

/// Fails `node` if it is not done in time.
pub(crate) fn deadline(core: &'static Core, node: &Arc<dyn Node>, limit: Duration) {
    let node = Arc::downgrade(node);
    after(core, limit, move || {
        if let Some(node) = node.upgrade()
            && !node.is_done()
        {
            node.fail(Arc::new(Error::DeadlineExceeded { origin: node.origin(), after: limit }));
        }
    });
}

/// The future of [`crate::sleep`].
#[derive(Debug)]
pub struct Sleep {
    duration: Duration,
    state: Option<Arc<Mutex<SleepState>>>,
}

#[derive(Debug, Default)]
struct SleepState {
    over: bool,
    waker: Option<Waker>,
}

impl Sleep {
    pub(crate) fn new(duration: Duration) -> Self {
        Sleep { duration, state: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let duration = self.duration;
        let state = self.state.get_or_insert_with(|| {
            let state = Arc::new(Mutex::new(SleepState::default()));
            let timer = state.clone();
            let wake = move || {
                let waker = {
                    let mut state = timer.lock();
                    state.over = true;
                    state.waker.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            };
            match super::thread::current_core() {
                Some(core) => after(core, duration, wake),
                None => on_the_clock(duration, Box::new(wake)),
            }
            state
        });
        let mut state = state.lock();
        if state.over {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
