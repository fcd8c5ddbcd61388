//! Deterministic mode: one thread at a time, in an order that a seed decides.
//!
//! Bodies that block need stacks of their own, so there are several threads, but only the one that
//! holds the *baton* runs. It passes the baton where it submits something (perhaps), where it has
//! to wait (always) and where a job ends. Who gets it is drawn from everything that could run: jobs
//! not yet started, and threads whose wait is over. Time is virtual: when nothing can run the clock
//! jumps to the next timer.
//!
//! The order is a function of the seed as long as one thread outside drives the runtime, and the
//! program itself is deterministic. A lock of the user's that is held across a `get` can hang the
//! process, because whoever wants it holds the baton while it waits.

use super::{
    Core, Job,
    core::run,
    node::Node,
    slot::Waiter,
    timer::Action,
    wait::{Waits, timed_out},
};
use crate::{
    error::{Error, Result},
    sync::Signal,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What a thread is told when it gets the baton.
enum Go {
    /// Its wait is over.
    Resume,
    Run(Job),
    /// Nothing can run any more, so its wait will never be over.
    Deadlock,
    Exit,
}

/// Where a thread gets the baton back: a new one for each wait, so that what a runtime that ends
/// sends late can reach no other wait.
type Baton = Signal<Go>;

enum Ready {
    Start(Job),
    Resume(Arc<Baton>),
}

#[derive(Default)]
struct State {
    random: u64,
    ready: Vec<Ready>,
    /// Virtual time since the start.
    clock: Duration,
    timers: BTreeMap<(Duration, u64), Action>,
    next_timer: u64,
    /// Threads without a job.
    idle: Vec<Arc<Baton>>,
    threads: usize,
    /// Threads that wait, and what for.
    waiting: Vec<(Arc<Baton>, String)>,
    closing: bool,
}

#[derive(Default)]
pub(crate) struct Deterministic {
    state: Mutex<State>,
    ended: Condvar,
}

/// One wait of one thread; whoever ends it first makes the thread ready, once.
struct Ticket {
    core: &'static Core,
    baton: Arc<Baton>,
    over: AtomicBool,
}

impl Waiter for Ticket {
    fn notify(self: Arc<Self>) {
        if !self.over.swap(true, Ordering::AcqRel) {
            self.core.deterministic.state.lock().ready.push(Ready::Resume(self.baton.clone()));
        }
    }
}

/// What to do next, found under the lock and done outside it.
enum Next {
    Pass(Ready),
    Fire(Action),
    Nothing,
}

impl State {
    /// splitmix64
    fn draw(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % below.max(1) as u64) as usize
    }

    fn next(&mut self) -> Next {
        if !self.ready.is_empty() {
            let at = self.draw(self.ready.len());
            return Next::Pass(self.ready.remove(at));
        }
        match self.timers.pop_first() {
            Some(((at, _), action)) => {
                self.clock = at;
                Next::Fire(action)
            }
            None => Next::Nothing,
        }
    }
}

impl Deterministic {
    pub(crate) fn reset(&self, seed: u64) {
        *self.state.lock() = State { random: seed, ..State::default() };
    }

    pub(crate) fn schedule(&self, job: Job) {
        self.state.lock().ready.push(Ready::Start(job));
    }

    pub(crate) fn ready(&self) -> usize {
        self.state.lock().ready.len()
    }

    pub(crate) fn now(&self) -> Duration {
        self.state.lock().clock
    }

    pub(crate) fn after(&self, delay: Duration, action: Action) {
        let state = &mut *self.state.lock();
        let key = (state.clock.saturating_add(delay), state.next_timer);
        state.next_timer += 1;
        state.timers.insert(key, action);
    }

    /// A place where another may go on instead.
    pub(crate) fn yield_point(&self, core: &'static Core) {
        let own = Arc::new(Baton::new());
        {
            let state = &mut *self.state.lock();
            if state.closing || state.draw(2) == 0 {
                return;
            }
            state.ready.push(Ready::Resume(own.clone()));
        }
        self.switch(core, &own);
    }

    /// Gives the baton away until it comes back. `false`: it never will, there is a deadlock.
    fn switch(&self, core: &'static Core, own: &Arc<Baton>) -> bool {
        loop {
            let next = self.state.lock().next();
            match next {
                Next::Fire(action) => action(),
                Next::Nothing => return false,
                Next::Pass(Ready::Resume(baton)) if Arc::ptr_eq(&baton, own) => return true,
                Next::Pass(ready) => {
                    self.hand_over(core, ready);
                    return matches!(own.receive(), Go::Resume);
                }
            }
        }
    }

    fn hand_over(&self, core: &'static Core, ready: Ready) {
        match ready {
            Ready::Resume(baton) => baton.send(Go::Resume),
            Ready::Start(job) => {
                let idle = self.state.lock().idle.pop();
                match idle {
                    Some(baton) => baton.send(Go::Run(job)),
                    None => self.spawn(core, job),
                }
            }
        }
    }

    fn spawn(&self, core: &'static Core, job: Job) {
        self.state.lock().threads += 1;
        let thread = std::thread::Builder::new().name("outray-deterministic".into()).stack_size(core.stack_size);
        let spawned = thread.spawn(move || core.deterministic.work(core, job));
        assert!(spawned.is_ok(), "cannot start a thread for deterministic mode: {:?}", spawned.err());
    }

    /// The life of a thread: run a job, pass the baton, wait for another.
    fn work(&self, core: &'static Core, mut job: Job) {
        let own = Arc::new(Baton::new());
        loop {
            run(job);
            match self.next_job(core, &own) {
                Some(next) => job = next,
                None => break,
            }
        }
        let mut state = self.state.lock();
        state.threads -= 1;
        state.idle.retain(|baton| !Arc::ptr_eq(baton, &own));
        self.ended.notify_all();
    }

    fn next_job(&self, core: &'static Core, own: &Arc<Baton>) -> Option<Job> {
        loop {
            let (next, stuck) = {
                let state = &mut *self.state.lock();
                if state.closing {
                    return None;
                }
                let next = state.next();
                if !matches!(next, Next::Fire(_) | Next::Pass(Ready::Start(_))) {
                    state.idle.push(own.clone());
                }
                // If nothing can run, everybody who is left waits for ever: one of them must be told.
                (next, state.waiting.last().map(|(baton, _)| baton.clone()))
            };
            match next {
                Next::Fire(action) => {
                    action();
                    continue;
                }
                Next::Pass(Ready::Start(job)) => return Some(job),
                Next::Pass(resume) => self.hand_over(core, resume),
                Next::Nothing => {
                    if let Some(stuck) = stuck {
                        stuck.send(Go::Deadlock);
                    }
                }
            }
            match own.receive() {
                Go::Run(job) => return Some(job),
                Go::Resume | Go::Deadlock | Go::Exit => return None,
            }
        }
    }

    /// Blocks until `node` is done.
    pub(crate) fn wait(&self, core: &'static Core, node: &Arc<dyn Node>, timeout: Option<Duration>) -> Result<()> {
        let waits = if timeout.is_none() { Waits::enter(node)? } else { None };
        let done = || node.is_done();
        let result = self.wait_until(core, std::slice::from_ref(node), timeout, &done);
        drop(waits);
        match result {
            Ok(()) if !node.is_done() => Err(timed_out(node, timeout.unwrap_or_default())),
            result => result,
        }
    }

    /// Blocks until `count` of `nodes` are done, or the time is up.
    pub(crate) fn wait_some(
        &self,
        core: &'static Core,
        nodes: &[Arc<dyn Node>],
        count: usize,
        timeout: Option<Duration>,
    ) -> Result<()> {
        let done = || nodes.iter().filter(|node| node.is_done()).count() >= count.min(nodes.len());
        self.wait_until(core, nodes, timeout, &done)
    }

    fn wait_until(
        &self,
        core: &'static Core,
        nodes: &[Arc<dyn Node>],
        timeout: Option<Duration>,
        done: &dyn Fn() -> bool,
    ) -> Result<()> {
        let deadline = timeout.map(|timeout| self.state.lock().clock.saturating_add(timeout));
        while !done() {
            let (closing, late) = {
                let state = self.state.lock();
                (state.closing, deadline.is_some_and(|deadline| state.clock >= deadline))
            };
            if late {
                return Ok(());
            }
            if closing {
                // No order is kept any more: everything fails, and this thread only has to see it.
                std::thread::yield_now();
                continue;
            }
            let own = Arc::new(Baton::new());
            let ticket = Arc::new(Ticket { core, baton: own.clone(), over: AtomicBool::new(false) });
            let waiter: Arc<dyn Waiter> = ticket.clone();
            let registered: Vec<_> = nodes.iter().filter(|node| node.add_waiter(&waiter)).collect();
            if let Some(deadline) = deadline {
                let ticket = ticket.clone();
                let left = deadline.saturating_sub(self.state.lock().clock);
                self.after(left, Box::new(move || ticket.notify()));
            }
            let labels: Vec<_> = nodes.iter().filter(|node| !node.is_done()).map(|node| node.label()).collect();
            self.state.lock().waiting.push((own.clone(), labels.join(", ")));
            let resumed = self.switch(core, &own);
            let waiting = {
                let state = &mut *self.state.lock();
                let waiting = state.waiting.iter().map(|(_, what)| what.clone()).collect::<Vec<_>>();
                state.waiting.retain(|(baton, _)| !Arc::ptr_eq(baton, &own));
                waiting
            };
            ticket.over.store(true, Ordering::Release);
            for node in registered {
                node.remove_waiter(&waiter);
            }
            if !resumed && !done() && !self.state.lock().closing {
                return Err(Error::Deadlock { detail: format!("waited for: {}", waiting.join("; ")) });
            }
        }
        Ok(())
    }

    /// Takes a job that was not started, at shutdown.
    pub(crate) fn any_job(&self) -> Option<Job> {
        let state = &mut *self.state.lock();
        let at = state.ready.iter().position(|ready| matches!(ready, Ready::Start(_)))?;
        match state.ready.remove(at) {
            Ready::Start(job) => Some(job),
            Ready::Resume(_) => None,
        }
    }

    /// Lets all threads go on to their end, in no particular order, and waits for them.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        state.timers.clear();
        while state.threads > 0 {
            for baton in std::mem::take(&mut state.idle) {
                baton.send(Go::Exit);
            }
            let waiting: Vec<_> = state.waiting.iter().map(|(baton, _)| baton.clone()).collect();
            for baton in waiting {
                baton.send(Go::Resume);
            }
            for ready in std::mem::take(&mut state.ready) {
                match ready {
                    Ready::Resume(baton) => baton.send(Go::Resume),
                    Ready::Start(job) => parking_lot::MutexGuard::unlocked(&mut state, || run(job)),
                }
            }
            self.ended.wait_for(&mut state, Duration::from_millis(1));
        }
    }
}
