//! A task from its submission to its result.
//!
//! [`TaskCell::submit`] makes one allocation that holds the body (the function and its arguments),
//! the options if there are any, and the slot of the result; the caller gets a handle to it, and
//! so do those whose results are its arguments. When the last of these is done the cell goes into
//! a queue. A worker, or a `get` that finds it not started, takes the body out: whoever gets it
//! runs it, on the spot, and completes the slot, which wakes whoever waits and counts down whoever
//! depends on it. Entries of the cell that are still queued then find no body and are dropped.

use super::{
    Core, Job, Work,
    node::{Blocker, Help, Meta, Node, Options, Phase, Source, complete_counted, contain, node_slot, slot_source},
    observe,
    resources::{Applicant, Demand, Grant, Never},
    slot::{Slot, Waiter},
    thread, timer,
};
use crate::{
    error::{Error, Result},
    gpu::GpuLease,
};
use parking_lot::Mutex;
use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What running a body leads to.
#[allow(unreachable_pub, missing_debug_implementations)] // named in a hidden part of a public trait
pub enum Step<T> {
    /// It is over.
    Value(T),
    /// An `async` function: this will be the value.
    Future(BoxFuture<T>),
}

/// A function with its arguments.
pub(crate) trait Body: Sized + Send + 'static {
    type Out: Send + Sync + 'static;
    /// Whether any argument may be a handle.
    const DEPENDENT: bool;
    /// The path of the function.
    fn type_name() -> &'static str;
    /// Visits the handles among the arguments.
    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>));
    /// The same body again, its values copied through serialization.
    fn duplicate(&self) -> Result<Self>;
    /// The result, as another process would see it (see `check_serialization`).
    fn round_trip(out: Self::Out) -> Result<Self::Out>;
    /// Runs it; an error means that an argument could not be had.
    fn run(self) -> Result<Step<Self::Out>>;
}

/// A body that can run in another process.
pub(crate) trait Travel: Body<Out: crate::object::Object> {
    /// The function, as a place in this executable.
    #[cfg(feature = "cluster")]
    fn site(&self) -> Result<crate::cluster::wire::Site>;
    /// All but the function. It can only be dropped afterwards.
    #[cfg(feature = "cluster")]
    fn pack(&mut self) -> Result<crate::serial::Packed>;
}

pub(crate) struct TaskCell<B: Body> {
    meta: Meta,
    /// The body, until somebody runs it, and then the result.
    slot: Slot<B::Out, B>,
    /// It is among what a shutdown must find, because it waits for another runtime.
    foreign: AtomicBool,
    /// It waits for its next attempt.
    pausing: AtomicBool,
}

impl<B: Body> TaskCell<B> {
    /// Queues a task. The error is for what can be known at once: it can never run.
    pub(crate) fn submit(
        core: &'static Core,
        location: &'static Location<'static>,
        mut body: B,
        mut options: Option<Box<Options>>,
    ) -> Result<Arc<Self>> {
        if core.has(super::flag::CHECK_SERIALIZATION) {
            body = body.duplicate()?;
        }
        let demand = options.as_ref().and_then(|o| o.demand.lock().clone());
        if let Some(options) = &mut options {
            options.demands = demand.is_some();
            options.use_lent();
        }
        let cell = Arc::new(TaskCell {
            meta: Meta::new(core, location, options),
            slot: Slot::waiting(body, 0),
            foreign: AtomicBool::new(false),
            pausing: AtomicBool::new(false),
        });
        if core.is_stopping() {
            let node: &dyn Node = &*cell;
            return Err(core.shutdown_error(node.label()));
        }
        if let Some(why) = demand.and_then(|demand| core.infeasible(&demand)) {
            let node: &dyn Node = &*cell;
            return Err(why.of(node.origin()));
        }
        if !cell.meta.is_from_elsewhere() {
            core.count(|c| &c.submitted);
        }
        observe::submitted(core, || cell.clone());
        if let Some(after) = cell.meta.options.as_ref().and_then(|o| o.deadline) {
            let node: Arc<dyn Node> = cell.clone();
            timer::deadline(core, &node, after);
        }
        if B::DEPENDENT {
            let missing = wait_for_arguments(&cell, |visit| {
                cell.slot.with_body(|body| body.dependencies(visit));
            });
            if missing {
                if cell.waits_for_another_runtime() {
                    cell.foreign.store(true, Ordering::Relaxed);
                    core.suspend(&(cell.clone() as Arc<dyn Node>));
                }
                return Ok(cell);
            }
        }
        cell.clone().ready(false);
        Ok(cell)
    }

    /// Whether it waits for another runtime, so that a shutdown of this one does not find it by
    /// ending what it waits for.
    fn waits_for_another_runtime(&self) -> bool {
        let mut foreign = false;
        self.slot.with_body(|body| {
            body.dependencies(&mut |node| foreign |= !std::ptr::eq(node.meta().core, self.meta.core));
        });
        foreign
    }

    /// All arguments are there. `finished`: because another task has just finished on this thread.
    fn ready(self: Arc<Self>, finished: bool) {
        let core = self.meta.core;
        if self.grant().is_some_and(|grant| grant.lock().is_some()) {
            return core.start(self);
        }
        match self.meta.demand() {
            Some(demand) => core.apply(demand, self),
            None if finished => core.schedule_ready(self.meta.id, self),
            None => core.schedule(self),
        }
    }

    fn execute(self: Arc<Self>, body: B) {
        let core = self.meta.core;
        let options = self.meta.options.as_deref();
        if core.is_stopping() {
            contain(|| drop(body));
            let error = core.shutdown_error((&*self as &dyn Node).label());
            return self.finish(Err(Arc::new(error)));
        }
        let grant_cpu = self.grant().and_then(|g| g.lock().as_ref().map(|g| g.demand.cpu));
        let copy = match options {
            Some(o) if o.attempt.load(Ordering::Relaxed) <= o.retries.max(o.retry_errors) => match body.duplicate() {
                Ok(copy) => Some(copy),
                Err(error) => return self.finish(Err(Arc::new(error))),
            },
            _ => None,
        };
        let started = observe::now(core);
        let run = || {
            let outer = grant_cpu.map(thread::set_seat);
            let entered = thread::enter(self);
            let result = catch_unwind(AssertUnwindSafe(|| body.run()));
            let cell: Arc<Self> = entered.leave();
            outer.map(thread::set_seat);
            (cell, result)
        };
        let (cell, result) = super::rayon::in_pool(grant_cpu, run);
        observe::ran(core, started, &*cell);
        match result {
            Ok(Ok(Step::Value(value))) => cell.settle_with(Some(Ok(value)), copy),
            Ok(Ok(Step::Future(future))) => {
                let node = cell.clone();
                FutureRun::start(node, future, move |result| cell.settle_with(result, copy));
            }
            Ok(Err(cause)) => {
                let origin = (&*cell as &dyn Node).origin();
                let error = match cause {
                    Error::Serialization { .. } => cause,
                    cause => Error::DependencyFailed { origin, cause: Box::new(cause) },
                };
                cell.finish(Err(Arc::new(error)));
            }
            Err(panic) => cell.settle_with(Some(Err(panic)), copy),
        }
    }

    /// The body ended; `None`: it was dropped unfinished, because the task was cancelled.
    fn settle_with(self: Arc<Self>, result: Option<std::thread::Result<B::Out>>, copy: Option<B>) {
        let options = self.meta.options.as_deref();
        let attempt = self.meta.attempt();
        let outcome = match result {
            None => return self.stop(),
            Some(Ok(value)) => {
                let is_err = options.and_then(|o| o.is_err).is_some_and(|is_err| is_err(&value));
                if is_err && options.is_some_and(|o| attempt <= o.retry_errors) && !self.slot.is_done() {
                    contain(|| drop(value));
                    return self.retry(copy);
                }
                match self.meta.core.has(super::flag::CHECK_SERIALIZATION) {
                    true => B::round_trip(value).map_err(Arc::new),
                    false => Ok(value),
                }
            }
            Some(Err(panic)) => {
                if options.is_some_and(|o| attempt <= o.retries) && !self.slot.is_done() {
                    return self.retry(copy);
                }
                let node = &*self as &dyn Node;
                // What it waits for fails in a shutdown, so a panic then says no more than that.
                Err(Arc::new(match self.meta.core.is_stopping() {
                    true => self.meta.core.shutdown_error(node.label()),
                    false => Error::Panicked { origin: node.origin(), message: panic_message(&*panic) },
                }))
            }
        };
        self.finish(outcome);
    }

    fn retry(self: Arc<Self>, copy: Option<B>) {
        let core = self.meta.core;
        let Some(options) = self.meta.options.as_deref() else { unreachable!("retries are an option") };
        let attempt = options.attempt.fetch_add(1, Ordering::Relaxed);
        self.stop();
        let pause = options.backoff.saturating_mul(1 << (attempt - 1).min(16));
        let again = move |cell: Arc<Self>| {
            match copy.map(|copy| cell.slot.put_body(copy)) {
                Some(Err(too_late)) => contain(|| drop(too_late)), // it was cancelled meanwhile
                _ => cell.ready(false),
            }
        };
        if pause.is_zero() {
            return again(self);
        }
        // Until the pause is over nobody finds the body, so nobody starts it early; but a shutdown
        // finds the task.
        core.suspend(&(self.clone() as Arc<dyn Node>));
        self.pause();
        timer::after(core, pause, move || {
            core.resume(self.meta.id);
            self.end_pause();
            if !self.slot.is_done() {
                again(self);
            }
        });
    }

    /// It waits for its next attempt; its node may use its CPUs meanwhile.
    fn pause(&self) {
        #[cfg(feature = "cluster")]
        if let Some(client) = self.meta.core.client.get() {
            client.lend(self.meta.lent_cpu());
        }
        self.pausing.store(true, Ordering::Release);
        if self.slot.is_done() {
            self.end_pause(); // it was cancelled meanwhile
        }
    }

    fn end_pause(&self) {
        let _was_pausing = self.pausing.swap(false, Ordering::AcqRel);
        #[cfg(feature = "cluster")]
        if let Some(client) = self.meta.core.client.get().filter(|_| _was_pausing) {
            client.reclaim(self.meta.lent_cpu());
        }
    }

    fn finish(self: Arc<Self>, outcome: Result<B::Out, Arc<Error>>) {
        #[cfg(feature = "gpu-unversioned")]
        let outcome = match self.end_of_lent_devices() {
            Ok(()) => outcome,
            Err(error) => outcome.and_then(|value| {
                contain(|| drop(value));
                Err(Arc::new(Error::Gpu { origin: Some((&*self as &dyn Node).origin()), error }))
            }),
        };
        complete_counted(&self.meta, &self.slot, outcome);
        self.release();
        self.forget_demand();
    }

    /// What a node has lent goes back with the result, so the devices must have done their work before.
    #[cfg(feature = "gpu-unversioned")]
    fn end_of_lent_devices(&self) -> Result<(), crate::gpu::GpuError> {
        let used = self.grant().and_then(|grant| grant.lock().as_ref().filter(|grant| grant.is_lent)?.used());
        used.map_or(Ok(()), |sessions| sessions.synchronize())
    }

    /// It has ended: a placement group that only it held is given back.
    fn forget_demand(&self) {
        if self.grant().is_some() {
            let demand = self.meta.options.as_ref().and_then(|o| o.demand.lock().take());
            drop(demand);
        }
    }

    /// The place of its grant, if it runs with one.
    fn grant(&self) -> Option<&Mutex<Option<Grant>>> {
        self.meta.options.as_deref().filter(|o| o.demands).map(|o| &o.grant)
    }

    /// Gives up what it has without a result.
    fn stop(&self) {
        #[cfg(feature = "gpu-unversioned")]
        let _nobody_asks = self.end_of_lent_devices();
        self.release();
    }

    fn release(&self) {
        // What was lent is there for the next attempt, too.
        let taken = self.grant().and_then(|grant| grant.lock().take_if(|grant| !grant.is_lent));
        if let Some(grant) = taken {
            self.meta.core.release(grant);
        }
    }
}

/// Registers `dependent` with the nodes that `each` visits and counts those that are missing.
/// The count starts at one, which is taken off last, so that the dependent becomes ready once.
/// Returns whether any is missing.
pub(crate) fn wait_for_arguments<W: Node + Waiter>(
    dependent: &Arc<W>,
    each: impl FnOnce(&mut dyn FnMut(&Arc<dyn Node>)),
) -> bool {
    let missing = &dependent.meta().missing;
    missing.store(1, Ordering::Relaxed);
    let waiter: Arc<dyn Waiter> = dependent.clone();
    each(&mut |node| {
        missing.fetch_add(1, Ordering::Relaxed);
        if !node.add_waiter(&waiter) {
            missing.fetch_sub(1, Ordering::AcqRel);
        }
    });
    missing.fetch_sub(1, Ordering::AcqRel) != 1
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}

impl<B: Body> Work for TaskCell<B> {
    fn run(self: Arc<Self>) {
        match self.slot.take_body() {
            Some(body) => self.execute(body),
            None => self.release(),
        }
    }

    fn is_spent(&self) -> bool {
        self.grant().is_none() && !self.slot.has_body()
    }
}

impl<B: Body> Waiter for TaskCell<B> {
    fn notify(self: Arc<Self>) {
        if self.meta.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            if self.foreign.load(Ordering::Relaxed) {
                self.meta.core.resume(self.meta.id);
            }
            self.ready(true);
        }
    }
}

impl<B: Body> Applicant for TaskCell<B> {
    fn granted(self: Arc<Self>, grant: Grant) -> Job {
        if let Some(place) = self.grant() {
            *place.lock() = Some(grant);
        }
        self
    }

    fn refused(self: Arc<Self>, why: Never) {
        let node: &dyn Node = &*self;
        node.fail(Arc::new(why.of(node.origin())));
    }

    fn is_withdrawn(&self) -> bool {
        self.slot.is_done()
    }
}

impl<B: Body> Node for TaskCell<B> {
    node_slot!();

    fn kind(&self) -> &'static str {
        "task"
    }

    fn type_name(&self) -> &'static str {
        B::type_name()
    }

    fn fail(&self, error: Arc<Error>) -> bool {
        let completed = complete_counted(&self.meta, &self.slot, Err(error));
        let failed = completed.is_first();
        contain(|| drop(completed)); // handles among the arguments may free other things
        self.end_pause();
        if failed && self.grant().is_some() {
            self.forget_demand();
            self.meta.core.admit(); // others may have waited behind it
        }
        failed
    }

    #[cfg(feature = "cluster")]
    fn give_back(&self, why: Arc<Error>) {
        if self.grant().is_some() || self.meta.attempt() > 1 {
            return;
        }
        if let Some(body) = self.slot.take_body() {
            contain(|| drop(body)); // who is told does not have to claim what it holds
            contain(|| drop(complete_counted(&self.meta, &self.slot, Err(why))));
        }
    }

    fn phase(&self) -> Phase {
        let queued = self.slot.has_body();
        match () {
            () if self.is_done() => Phase::Done,
            () if !queued && self.pausing.load(Ordering::Relaxed) => Phase::Pausing,
            () if !queued => Phase::Running,
            () if self.meta.missing.load(Ordering::Acquire) > 0 => Phase::WaitingForArguments,
            () if self.grant().is_some() => Phase::WaitingForResources,
            () => Phase::Queued,
        }
    }

    fn help(self: Arc<Self>) -> Help {
        if self.meta.missing.load(Ordering::Acquire) > 0 {
            let mut first = None;
            self.slot.with_body(|body| {
                body.dependencies(&mut |node| {
                    if first.is_none() && !node.is_done() {
                        first = Some(node.clone());
                    }
                });
            });
            return match first {
                Some(node) => Help::First(node),
                None if self.meta.missing.load(Ordering::Acquire) == 0 => Help::Ran,
                None => Help::Busy,
            };
        }
        if self.grant().is_some() {
            return Help::Busy;
        }
        match self.slot.take_body() {
            Some(body) => {
                self.execute(body);
                Help::Ran
            }
            None => Help::Busy,
        }
    }

    fn blockers(&self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        self.slot.with_body(|body| {
            body.dependencies(&mut |node| {
                if !node.is_done() {
                    blockers.push(Blocker::Node(node.clone()));
                }
            });
        });
        blockers
    }

    fn demand(&self) -> Option<Demand> {
        self.meta.demand()
    }

    fn take_grant(&self) -> Option<Grant> {
        self.grant().and_then(|grant| grant.lock().take())
    }

    fn gpus(&self) -> Vec<GpuLease> {
        self.grant().and_then(|g| g.lock().as_ref().map(|g| g.leases.clone())).unwrap_or_default()
    }

    #[cfg(feature = "gpu-unversioned")]
    fn sessions(&self) -> Option<Arc<crate::gpu::sessions::Sessions>> {
        self.grant()?.lock().as_mut()?.sessions(self.meta.core)
    }
}

impl<B: Body> Source<B::Out> for TaskCell<B> {
    slot_source!(B::Out);
}

const IDLE: u8 = 0;
const SCHEDULED: u8 = 1;
const POLLING: u8 = 2;
/// Woken while it is polled: poll once more.
const WOKEN: u8 = 3;

/// A future on its way to a node's result: polled on workers, one at a time, when woken.
pub(crate) struct FutureRun<T> {
    node: Arc<dyn Node>,
    future: Mutex<Option<BoxFuture<T>>>,
    settle: Mutex<Option<Settle<T>>>,
    state: AtomicU8,
    /// CPUs that its node has granted and that it does not use while it waits, in thousandths.
    #[cfg(feature = "cluster")]
    lent: std::sync::atomic::AtomicU32,
}

/// What to do when the future has ended, or was dropped because its node is done otherwise (`None`).
type Settle<T> = Box<dyn FnOnce(Option<std::thread::Result<T>>) + Send>;

impl<T: Send + 'static> FutureRun<T> {
    /// Polls the future for the first time.
    pub(crate) fn start(
        node: Arc<dyn Node>,
        future: BoxFuture<T>,
        settle: impl FnOnce(Option<std::thread::Result<T>>) + Send + 'static,
    ) {
        let run = Arc::new(FutureRun {
            node,
            future: Mutex::new(Some(future)),
            settle: Mutex::new(Some(Box::new(settle))),
            state: AtomicU8::new(SCHEDULED),
            #[cfg(feature = "cluster")]
            lent: std::sync::atomic::AtomicU32::new(0),
        });
        run.clone().run();
        if run.is_over() {
            return;
        }
        // It waits for something. A cancellation must wake it, and a shutdown find it.
        let node = &run.node;
        let core = node.meta().core;
        core.suspend(node);
        let waiter: Arc<dyn Waiter> = run.clone();
        if !node.add_waiter(&waiter) {
            run.clone().wake();
        }
        if run.is_over() {
            core.resume(node.meta().id);
        }
    }

    /// Whether it waits, so that others may use its share of the CPUs; only those of other processes have one
    /// that somebody else counts.
    #[cfg(feature = "cluster")]
    fn waits(&self, waits: bool) {
        let Some(client) = self.node.meta().core.client.get() else { return };
        let share = match waits {
            true => self.node.meta().lent_cpu(),
            false => 0,
        };
        let before = self.lent.swap(share, Ordering::AcqRel);
        match waits {
            true => client.lend(share),
            false => client.reclaim(before),
        }
    }

    /// Whether the future has ended. While it is polled it has not.
    fn is_over(&self) -> bool {
        self.future.try_lock().is_some_and(|future| future.is_none())
    }
}

impl<T: Send + 'static> Work for FutureRun<T> {
    fn run(self: Arc<Self>) {
        let core = self.node.meta().core;
        #[cfg(feature = "cluster")]
        self.waits(false);
        self.state.store(POLLING, Ordering::Release);
        let mut place = self.future.lock();
        let Some(future) = place.as_mut() else { return };
        if core.is_stopping() {
            // It ends where it waits, also when what it waits for has just failed for the same reason.
            self.node.fail(Arc::new(core.shutdown_error(self.node.label())));
        }
        let started = observe::now(core);
        let result = if self.node.is_done() {
            None
        } else {
            let waker = Waker::from(self.clone());
            let entered = thread::enter(self.node.clone());
            #[cfg(feature = "tokio")]
            let tokio = core.config(|c| c.tokio.clone()).flatten();
            #[cfg(feature = "tokio")]
            let _tokio = tokio.as_ref().map(|handle| handle.enter());
            let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
            drop(entered);
            match polled {
                Ok(Poll::Ready(value)) => Some(Ok(value)),
                Err(panic) => Some(Err(panic)),
                Ok(Poll::Pending) => {
                    drop(place);
                    observe::ran(core, started, &*self.node);
                    #[cfg(feature = "cluster")]
                    self.waits(true);
                    let idle = self.state.compare_exchange(POLLING, IDLE, Ordering::AcqRel, Ordering::Acquire);
                    if idle.is_err() {
                        self.state.store(SCHEDULED, Ordering::Release);
                        core.schedule_last(self);
                    }
                    return;
                }
            }
        };
        let finished = place.take();
        drop(place);
        if result.is_some() {
            observe::ran(core, started, &*self.node);
        }
        // Its destructors belong to the task: they may use the task's context, and may panic.
        {
            let _entered = thread::enter(self.node.clone());
            contain(|| drop(finished));
        }
        core.resume(self.node.meta().id);
        let settle = self.settle.lock().take();
        if let Some(settle) = settle {
            settle(result);
        }
    }
}

impl<T: Send + 'static> Wake for FutureRun<T> {
    fn wake(self: Arc<Self>) {
        let next = |state| match state {
            IDLE => Some(SCHEDULED),
            POLLING => Some(WOKEN),
            _ => None,
        };
        if self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) == Ok(IDLE) {
            self.node.meta().core.schedule(self.clone());
        }
    }
}

impl<T: Send + 'static> Waiter for FutureRun<T> {
    fn notify(self: Arc<Self>) {
        self.wake();
    }
}
