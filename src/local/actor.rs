//! An actor: a state, a mailbox, and the rules of who may use the state.
//!
//! An actor has no thread. When calls wait, one job for it is queued like a task; the worker that
//! runs it is the *runner* until the mailbox is empty (see [`super::mailbox`]). A `get` of a call
//! that is not running makes the getting thread the runner, up to that call.
//!
//! # Order
//! Calls run in the order in which they came in. A call whose arguments are not there yet leaves
//! the row, and later calls of the same caller line up behind it (a *lane*); other callers pass.
//!
//! # Sharing
//! `&mut self` calls run on the runner, one after the other. For a `&self` call the runner either
//! starts a job and goes on, or, when nothing else waits, stops being the runner and runs it
//! itself. `async fn(&self)` futures interleave; a future of `async fn(&mut self)` keeps all
//! others out until it ends.
//!
//! # Failure
//! A panic in a call that has the state for itself destroys the state. The actor starts again, if
//! it may, from its last checkpoint and the calls logged since, or else from its constructor.
//! A panic in a `&self` call fails that call only.

use super::{
    Core, Work,
    inbox::BLOCK,
    mailbox::{Mailbox, Mode, Pushed},
    node::{Blocker, Help, Meta, Node, Options, Phase, Source, complete_counted, contain, node_slot, slot_source},
    observe,
    resources::Grant,
    slot::{Completed, Slot, Waiter},
    task::{BoxFuture, FutureRun, panic_message, wait_for_arguments},
    thread, timer,
};
use crate::{
    error::{Error, Origin, Result},
    gpu::GpuLease,
    serial::Packed,
};
use crossbeam_utils::CachePadded;
use parking_lot::{ArcRwLockReadGuard, ArcRwLockWriteGuard, Mutex, MutexGuard, RawRwLock, RwLock, RwLockWriteGuard};
use std::{
    any::Any,
    collections::{BTreeMap, HashMap, VecDeque},
    panic::{AssertUnwindSafe, Location, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

/// After so many calls the runner looks whether others want its thread.
const CALLS_IN_A_ROW: usize = 256;

/// After so many calls in a row more are likely to come.
const BUSY: usize = 8;
/// How many spins the runner pauses, so that a block of calls comes together: about 2 us.
const PAUSE: u32 = 80;
/// How often it does so before it goes idle.
const LOOKS: u32 = 3;

pub(crate) type ReadGuard<S> = ArcRwLockReadGuard<RawRwLock, Option<S>>;
type Held<'a, S> = Option<RwLockWriteGuard<'a, Option<S>>>;
pub(crate) type WriteGuard<S> = ArcRwLockWriteGuard<RawRwLock, Option<S>>;

/// How a method uses the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(unreachable_pub)] // named in a hidden part of a public trait
pub enum MethodKind {
    /// `fn(&mut self)`
    Exclusive,
    /// `fn(&self)`
    Shared,
    /// `async fn(&mut self)`
    AsyncExclusive,
    /// `async fn(&self)`
    AsyncShared,
}

impl MethodKind {
    fn shares(self) -> bool {
        matches!(self, MethodKind::Shared | MethodKind::AsyncShared)
    }
}

/// A method with its arguments. Only the function that fits its kind is ever called.
pub(crate) trait CallBody<S>: Sized + Send + 'static {
    type Out: Send + Sync + 'static;
    const KIND: MethodKind;
    const DEPENDENT: bool;
    fn type_name() -> &'static str;
    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>));
    fn duplicate(&self) -> Result<Self>;
    fn round_trip(out: Self::Out) -> Result<Self::Out>;
    fn call_exclusive(self, state: &mut S) -> Result<Self::Out>;
    fn call_shared(self, state: &S) -> Result<Self::Out>;
    /// The future holds the guard until it ends.
    fn future_exclusive(self, state: WriteGuard<S>) -> Result<BoxFuture<Self::Out>>;
    fn future_shared(self, state: ReadGuard<S>) -> Result<BoxFuture<Self::Out>>;
}

/// How to make a state again.
pub(crate) type Remake<S> = Box<dyn Fn() -> Result<S, String> + Send + Sync>;

/// How to save and load a state.
pub(crate) struct Checkpoint<S> {
    pub(crate) every: u32,
    pub(crate) save: fn(&S) -> Result<Packed>,
    pub(crate) load: fn(&Packed) -> Result<S>,
}

pub(crate) struct ActorOptions<S> {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) max_restarts: u32,
    pub(crate) checkpoint: Option<Checkpoint<S>>,
    pub(crate) max_pending_calls: Option<usize>,
    /// Of calls that share the state and name no group.
    pub(crate) max_concurrency: Option<usize>,
    pub(crate) groups: BTreeMap<Arc<str>, usize>,
}

/// What is needed to go on after a panic.
struct Recovery<S> {
    remake: Option<Remake<S>>,
    saved: Option<Packed>,
    /// The calls since.
    log: Vec<Box<dyn Replay<S>>>,
}

trait Replay<S>: Send {
    fn replay(&self, state: &mut S) -> Result<()>;
}

struct Logged<B>(B);

impl<S, B: CallBody<S>> Replay<S> for Logged<B> {
    fn replay(&self, state: &mut S) -> Result<()> {
        self.0.duplicate()?.call_exclusive(state).map(drop)
    }
}

/// What the runner has at hand.
struct Runner<S> {
    /// Taken out of the mailbox, in order.
    inbox: VecDeque<Arc<dyn ActorCall<S>>>,
    /// The call that must run next: it has passed its lane already.
    head: Option<Arc<dyn ActorCall<S>>>,
    lanes: Lanes<S>,
    /// Calls that share the state, and wait for their group to have room.
    deferred: VecDeque<Arc<dyn ActorCall<S>>>,
}

/// Calls behind one whose arguments are missing: a lane for each caller, the oldest lane first.
struct Lanes<S> {
    /// By a number that grows.
    lanes: BTreeMap<u64, Lane<S>>,
    of_caller: HashMap<u32, u64>,
    next: u64,
}

/// Never empty.
type Lane<S> = VecDeque<Arc<dyn ActorCall<S>>>;

impl<S> Lanes<S> {
    fn new() -> Self {
        Lanes { lanes: BTreeMap::new(), of_caller: HashMap::new(), next: 0 }
    }

    fn of(&self, caller: u32) -> Option<&Lane<S>> {
        self.lanes.get(self.of_caller.get(&caller)?)
    }

    /// Puts a call at the end of its caller's lane; opens one if there is none.
    fn push(&mut self, call: Arc<dyn ActorCall<S>>) {
        let next = &mut self.next;
        let number = *self.of_caller.entry(call.caller()).or_insert_with(|| {
            *next += 1;
            *next
        });
        self.lanes.entry(number).or_default().push_back(call);
    }

    /// Whether the first call of the lane need not wait any more.
    fn is_ready(lane: &Lane<S>) -> bool {
        lane.front().is_some_and(|call| call.is_ready() || call.is_withdrawn())
    }

    fn has_ready(&self) -> bool {
        self.lanes.values().any(Self::is_ready)
    }

    /// Takes out the first call that need not wait any more.
    fn pop_ready(&mut self) -> Option<Arc<dyn ActorCall<S>>> {
        let (number, lane) = self.lanes.iter_mut().find(|(_, lane)| Self::is_ready(lane))?;
        let (number, call) = (*number, lane.pop_front()?);
        if lane.is_empty() {
            self.lanes.remove(&number);
            self.of_caller.remove(&call.caller());
        }
        Some(call)
    }

    fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    fn len(&self) -> usize {
        self.lanes.values().map(VecDeque::len).sum()
    }

    fn drain(&mut self) -> Vec<Arc<dyn ActorCall<S>>> {
        self.of_caller.clear();
        std::mem::take(&mut self.lanes).into_values().flatten().collect()
    }
}

/// What the runner does next.
enum NextCall<S> {
    Run(Arc<dyn ActorCall<S>>),
    /// Nothing can run, and the caller is the runner no more.
    Idle,
    /// The call for which the runner runs has to wait: let go.
    Stop,
}

/// How another process is told of the end of an actor that it has started.
#[cfg(feature = "cluster")]
pub(crate) struct Ended {
    /// Takes why, and whether it is to start again.
    pub(crate) tell: Box<dyn FnOnce(Error, bool) + Send>,
    /// A panic that loses the state ends it here, and it starts again in a process that is new.
    pub(crate) moves: bool,
}

pub(crate) struct ActorCell<S> {
    pub(crate) core: &'static Core,
    pub(crate) id: u64,
    type_name: &'static str,
    pub(crate) location: &'static Location<'static>,
    pub(crate) options: ActorOptions<S>,
    /// It was started by another process, which is told when it ends.
    #[cfg(feature = "cluster")]
    pub(crate) submitted: Mutex<Option<Box<super::node::Submitted>>>,
    #[cfg(feature = "cluster")]
    pub(crate) ended: Mutex<Option<Ended>>,
    /// Callers and the runner write here, both.
    mailbox: CachePadded<Mailbox<Arc<dyn ActorCall<S>>>>,
    runner: CachePadded<Mutex<Runner<S>>>,
    state: Arc<RwLock<Option<S>>>,
    recovery: Mutex<Recovery<S>>,
    restarts: AtomicU32,
    /// The last handle is gone: stop when nothing waits.
    closing: AtomicBool,
    /// Calls that wait, counted only if there is a limit to them.
    pending: AtomicUsize,
    /// Calls that were cancelled while they waited, and that the runner has not come across.
    withdrawn: AtomicUsize,
    /// What the runner has taken out and not started, while it runs.
    at_hand: CachePadded<AtomicUsize>,
    /// Calls that run, by concurrency group.
    active: Mutex<BTreeMap<Option<Arc<str>>, usize>>,
    /// A job for this actor is in a queue.
    is_queued: AtomicBool,
    /// Somebody waits for a call: the runner should not pause. Only a hint.
    urgent: AtomicBool,
    cause: Mutex<Option<String>>,
    dead: AtomicBool,
    grant: Mutex<Option<Grant>>,
    /// The CPUs among what was granted.
    own_cpu: AtomicU32,
    creation: Mutex<Option<Arc<dyn Node>>>,
    created: AtomicBool,
}

/// The last of these to go stops the actor.
pub(crate) struct ActorHandle<S: Send + Sync + 'static>(pub(crate) Arc<ActorCell<S>>);

impl<S: Send + Sync + 'static> Drop for ActorHandle<S> {
    fn drop(&mut self) {
        self.0.closing.store(true, Ordering::Release);
        if self.0.mailbox.poke() {
            self.0.schedule();
        }
    }
}

/// An entry in the table of names.
pub(crate) struct NamedActor {
    pub(crate) id: u64,
    pub(crate) handle: Weak<dyn Any + Send + Sync>,
    pub(crate) type_name: &'static str,
    /// Set for detached actors.
    pub(crate) keep: Option<Arc<dyn Any + Send + Sync>>,
}

/// An actor without its type.
pub(crate) trait AnyActor: Send + Sync {
    fn kill(&self, cause: &str);
    fn info(&self) -> crate::observe::ActorInfo;
}

impl<S: Send + Sync + 'static> ActorCell<S> {
    pub(crate) fn new(
        core: &'static Core,
        location: &'static Location<'static>,
        type_name: &'static str,
        options: ActorOptions<S>,
    ) -> Arc<Self> {
        let cell = Arc::new(ActorCell {
            core,
            id: thread::next_id(),
            type_name,
            location,
            options,
            #[cfg(feature = "cluster")]
            submitted: Mutex::new(None),
            #[cfg(feature = "cluster")]
            ended: Mutex::new(None),
            mailbox: CachePadded::new(Mailbox::new()),
            runner: CachePadded::new(Mutex::new(Runner {
                inbox: VecDeque::new(),
                head: None,
                lanes: Lanes::new(),
                deferred: VecDeque::new(),
            })),
            state: Arc::new(RwLock::new(None)),
            recovery: Mutex::new(Recovery { remake: None, saved: None, log: Vec::new() }),
            restarts: AtomicU32::new(0),
            closing: AtomicBool::new(false),
            pending: AtomicUsize::new(0),
            at_hand: CachePadded::default(),
            withdrawn: AtomicUsize::new(0),
            active: Mutex::default(),
            is_queued: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            cause: Mutex::new(None),
            dead: AtomicBool::new(false),
            grant: Mutex::new(None),
            own_cpu: AtomicU32::new(0),
            creation: Mutex::new(None),
            created: AtomicBool::new(false),
        });
        let any: Arc<dyn AnyActor> = cell.clone();
        core.actors.lock().insert(cell.id, Arc::downgrade(&any));
        cell
    }

    /// Ties the actor's life to the task that makes its state.
    pub(crate) fn created_by(self: &Arc<Self>, creation: Arc<dyn Node>) {
        *self.creation.lock() = Some(creation.clone());
        let waiter: Arc<dyn Waiter> = self.clone();
        if !creation.add_waiter(&waiter) {
            waiter.notify();
        }
    }

    pub(crate) fn creation(&self) -> Option<Arc<dyn Node>> {
        self.creation.lock().clone()
    }

    /// The constructor has run.
    pub(crate) fn install(&self, state: S, remake: Option<Remake<S>>) -> Result<()> {
        if let Some(checkpoint) = &self.options.checkpoint {
            self.recovery.lock().saved = Some((checkpoint.save)(&state)?);
        }
        self.recovery.lock().remake = remake;
        *self.state.write() = Some(state);
        if self.is_dead() {
            self.drop_state(); // it was killed while it was made
        }
        Ok(())
    }

    fn drop_state(&self) {
        let state = self.state.try_write().and_then(|mut state| state.take());
        contain(|| drop(state));
    }

    /// Keeps what was taken for the actor until it dies.
    pub(crate) fn keep(&self, grant: Grant) {
        if !grant.is_lent {
            self.core.ledger.lock().held += grant.demand.cpu;
        }
        self.own_cpu.store(grant.demand.cpu, Ordering::Release);
        *self.grant.lock() = Some(grant);
        if self.is_dead() {
            self.give_back();
        }
    }

    fn give_back(&self) {
        let grant = self.grant.lock().take();
        // A node takes back what it has lent, so the devices must have done their work before.
        #[cfg(feature = "gpu-unversioned")]
        if let Some(sessions) = grant.as_ref().filter(|grant| grant.is_lent).and_then(Grant::used) {
            let _nobody_asks = sessions.synchronize();
        }
        if let Some(grant) = grant.filter(|grant| !grant.is_lent) {
            self.core.ledger.lock().held -= grant.demand.cpu;
            self.core.release(grant);
        }
    }

    fn own_cpu(&self) -> u32 {
        self.own_cpu.load(Ordering::Acquire)
    }

    pub(crate) fn gpus(&self) -> Vec<GpuLease> {
        self.grant.lock().as_ref().map(|grant| grant.leases.clone()).unwrap_or_default()
    }

    #[cfg(feature = "gpu-unversioned")]
    pub(crate) fn sessions(&self) -> Option<Arc<crate::gpu::sessions::Sessions>> {
        self.grant.lock().as_mut()?.sessions(self.core)
    }

    fn name(&self) -> &str {
        self.options.name.as_deref().unwrap_or(self.type_name)
    }

    pub(crate) fn label(&self) -> String {
        format!("actor `{}` (#{})", self.name(), self.id)
    }

    pub(crate) fn death(&self) -> Error {
        let cause = self.cause.lock().clone().unwrap_or_else(|| "it has stopped".into());
        #[allow(unused_mut)] // on a cluster it is known otherwise
        let mut origin = Origin {
            kind: "actor".into(),
            name: self.name().into(),
            id: self.id,
            attempt: self.restarts.load(Ordering::Relaxed) + 1,
            location: self.location.to_string(),
            node: crate::resources::LOCAL_NODE.into(),
        };
        #[cfg(feature = "cluster")]
        if let Some(submitted) = &*self.submitted.lock() {
            (origin.id, origin.location) = (submitted.number, submitted.location.to_string());
            origin.node = submitted.node.to_string();
        }
        Error::ActorDied { origin: Box::new(origin), cause }
    }

    /// Brings a runner, unless a job for this actor is in a queue already: that one clears the mark
    /// before it tries to claim the mailbox, so it sees whatever was there before the mark was seen.
    fn schedule(self: &Arc<Self>) {
        if self.own_cpu() > 0 {
            self.core.start(self.clone());
        } else if !self.is_queued.swap(true, Ordering::AcqRel) {
            self.core.schedule(self.clone());
        }
    }

    /// The same, behind everything else that waits.
    fn schedule_last(self: &Arc<Self>) {
        if self.own_cpu() > 0 {
            self.core.start(self.clone());
        } else if !self.is_queued.swap(true, Ordering::AcqRel) {
            self.core.schedule_last(self.clone());
        }
    }

    /// Runs calls until none can run, or until `until` is done. The caller has claimed the mailbox.
    /// `hot`: this worker ran calls of no other actor since it last ran some of this one.
    fn run_calls(self: &Arc<Self>, until: Option<&dyn Node>, hot: bool) {
        self.run_claimed(until, hot);
        // Whoever killed the actor meanwhile left to us what we had at hand.
        if self.is_dead() {
            self.drop_state();
            self.fail_runner(&Arc::new(self.death()));
        }
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    fn run_claimed(self: &Arc<Self>, until: Option<&dyn Node>, hot: bool) {
        let mut runner = self.runner.lock();
        let mut held = None;
        for ran in 0_usize.. {
            if (ran % CALLS_IN_A_ROW == CALLS_IN_A_ROW - 1 && self.core.wants_this_thread())
                || until.is_some_and(|node| node.is_done())
            {
                drop(held);
                return self.let_go(runner);
            }
            let call = match self.next_call(&mut runner, (ran >= BUSY || hot && ran > 0) && until.is_none(), until) {
                NextCall::Run(call) => call,
                NextCall::Idle => return,
                NextCall::Stop => {
                    drop(held);
                    return self.let_go(runner);
                }
            };
            // A thread that waits for a call runs what comes before it, and nothing that comes behind.
            let wanted = |call: &dyn ActorCall<S>| until.is_some_and(|node| node.meta().id == call.id());
            match call.kind() {
                MethodKind::Exclusive => {
                    if self.mailbox.must_wait_for_readers() {
                        runner.head = Some(call);
                        return;
                    }
                    if !runner.deferred.is_empty() {
                        runner.head = Some(call); // there is room now for those that came before it
                        continue;
                    }
                    self.at_hand.store(runner.inbox.len(), Ordering::Relaxed);
                    call.run_exclusive(self, &mut held);
                }
                MethodKind::AsyncExclusive => {
                    if self.mailbox.must_wait_for_readers() {
                        runner.head = Some(call);
                        return;
                    }
                    if !runner.deferred.is_empty() {
                        runner.head = Some(call); // there is room now for those that came before it
                        continue;
                    }
                    self.started(&*call);
                    self.mailbox.exclude();
                    drop((held, runner));
                    return call.start_exclusive(self);
                }
                MethodKind::Shared | MethodKind::AsyncShared => {
                    held = None;
                    if !self.enter_group(call.group()) {
                        let wanted = wanted(&*call);
                        runner.deferred.push_back(call);
                        if wanted {
                            return self.let_go(runner);
                        }
                        continue;
                    }
                    self.started(&*call);
                    self.mailbox.add_reader();
                    let more = self.can_go_on(&runner) || self.mailbox.has_more();
                    if !wanted(&*call) && (more || until.is_some()) {
                        self.core.schedule(Arc::new(SharedRun { actor: self.clone(), call }));
                        continue;
                    }
                    // Run it here, and let what else waits find another runner.
                    drop(runner);
                    if self.mailbox.give_up(more) {
                        self.schedule();
                    }
                    return call.run_shared(self);
                }
            }
            if self.is_dead() {
                return;
            }
        }
    }

    /// Whether any of the calls at hand could run now.
    fn can_go_on(&self, runner: &Runner<S>) -> bool {
        let has_room = |call: &Arc<dyn ActorCall<S>>| self.has_room(call.group());
        runner.head.is_some()
            || !runner.inbox.is_empty()
            || runner.lanes.has_ready()
            || runner.deferred.iter().any(has_room)
    }

    /// Stops being the runner while calls may still wait.
    fn let_go(self: &Arc<Self>, runner: MutexGuard<'_, Runner<S>>) {
        let more = self.can_go_on(&runner);
        drop(runner);
        if self.mailbox.give_up(more) {
            self.schedule_last();
        }
    }

    /// The next call that may start.
    fn next_call(self: &Arc<Self>, runner: &mut Runner<S>, patient: bool, until: Option<&dyn Node>) -> NextCall<S> {
        loop {
            // Those that wait for room came before the head.
            if !runner.deferred.is_empty() {
                let room = runner.deferred.iter().position(|call| self.has_room(call.group()));
                if let Some(call) = room.and_then(|at| runner.deferred.remove(at)) {
                    return NextCall::Run(call);
                }
            }
            if let Some(call) = runner.head.take() {
                return NextCall::Run(call);
            }
            if let Some(call) = runner.lanes.pop_ready() {
                if call.is_withdrawn() {
                    self.skip();
                    continue;
                }
                return NextCall::Run(call);
            }
            let Some(call) = runner.inbox.pop_front() else {
                // Who calls often calls again soon: a short pause is cheaper than to be scheduled anew,
                // and to meet in the mailbox for every call.
                if patient {
                    self.pause();
                }
                if self.urgent.load(Ordering::Relaxed) {
                    self.urgent.store(false, Ordering::Relaxed);
                }
                // While they move they are counted twice rather than not at all.
                self.at_hand.store(self.mailbox.len().min(BLOCK), Ordering::Relaxed);
                let refilled = self.mailbox.refill(&mut runner.inbox);
                self.at_hand.store(runner.inbox.len(), Ordering::Relaxed);
                if refilled && !self.is_dead() {
                    continue;
                }
                let empty = runner.lanes.is_empty() && runner.deferred.is_empty();
                if empty && self.closing.load(Ordering::Acquire) {
                    self.stop_if_idle();
                }
                return NextCall::Idle;
            };
            if call.is_withdrawn() {
                self.skip();
                continue;
            }
            if call.is_ready() && runner.lanes.of(call.caller()).is_none() {
                return NextCall::Run(call);
            }
            let stop = until.is_some_and(|node| node.meta().id == call.id());
            runner.lanes.push(call);
            if stop {
                return NextCall::Stop;
            }
        }
    }

    /// Waits for a block of calls, for a moment, unless somebody waits for one of them; and for some
    /// more if there are none. In between it does not look at the mailbox: each look pulls memory
    /// away from those who fill it, which costs them more than a call costs.
    fn pause(&self) {
        if self.mailbox.len() >= BLOCK {
            return;
        }
        for _ in 0..LOOKS {
            for _ in 0..PAUSE {
                if self.urgent.load(Ordering::Relaxed) {
                    return;
                }
                std::hint::spin_loop();
            }
            if self.mailbox.has_more() || self.core.has_injected() {
                return;
            }
        }
    }

    /// The last handle is gone and nothing waits: the graceful end.
    fn stop_if_idle(&self) {
        let (mode, readers) = self.mailbox.observe();
        if mode == Mode::Idle && !self.mailbox.has_more() && readers == 0 {
            self.die("its last handle was dropped");
        }
    }

    /// A call has left the ones that wait: it starts, or was cancelled.
    fn started(&self, call: &dyn ActorCall<S>) {
        match call.leave() {
            true => self.dequeue(),
            false => self.skip(),
        }
    }

    /// A call was cancelled while it waited; the runner will come across it.
    fn withdraw(&self) {
        self.withdrawn.fetch_add(1, Ordering::Relaxed);
        self.dequeue();
    }

    /// The runner has come across a call that has ended already.
    fn skip(&self) {
        self.withdrawn.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a call in among those that wait, if there is room.
    fn enqueue(&self) -> Result<(), usize> {
        let Some(limit) = self.options.max_pending_calls else { return Ok(()) };
        let count = |pending: usize| (pending < limit).then_some(pending + 1);
        self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).map(drop).map_err(|_| limit)
    }

    /// Counts a call out.
    fn dequeue(&self) {
        if self.options.max_pending_calls.is_some() {
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Calls that wait: exactly if there is a limit to them, and else as far as can be seen without
    /// stopping the runner, which may be too many for a moment.
    pub(crate) fn pending_calls(&self) -> usize {
        if self.options.max_pending_calls.is_some() {
            return self.pending.load(Ordering::Relaxed);
        }
        let at_hand = self.runner.try_lock().map_or(self.at_hand.load(Ordering::Relaxed), |runner| {
            runner.inbox.len() + usize::from(runner.head.is_some()) + runner.deferred.len() + runner.lanes.len()
        });
        (at_hand + self.mailbox.len()).saturating_sub(self.withdrawn.load(Ordering::Relaxed))
    }

    fn limit(&self, group: Option<&Arc<str>>) -> Option<usize> {
        match group {
            None => self.options.max_concurrency,
            Some(group) => self.options.groups.get(group).copied(),
        }
    }

    fn is_limited(&self) -> bool {
        self.options.max_concurrency.is_some() || !self.options.groups.is_empty()
    }

    fn has_room(&self, group: Option<&Arc<str>>) -> bool {
        let Some(limit) = self.limit(group) else { return true };
        self.active.lock().get(&group.cloned()).copied().unwrap_or(0) < limit
    }

    /// Counts a call in, if its group has room.
    fn enter_group(&self, group: Option<&Arc<str>>) -> bool {
        let Some(limit) = self.limit(group) else { return true };
        let mut active = self.active.lock();
        let running = active.entry(group.cloned()).or_default();
        let room = *running < limit;
        *running += usize::from(room);
        room
    }

    fn shared_done(self: &Arc<Self>, group: Option<&Arc<str>>) {
        if self.limit(group).is_some()
            && let Some(running) = self.active.lock().get_mut(&group.cloned())
        {
            *running -= 1;
        }
        let closing = self.closing.load(Ordering::Acquire);
        let mut schedule = self.mailbox.reader_done(self.is_limited() || closing);
        // The last handle may have gone meanwhile, when this call was still in the way of the end.
        schedule |= !closing && self.closing.load(Ordering::Acquire) && self.mailbox.poke();
        if schedule {
            self.schedule();
        }
    }

    /// The state is lost: makes it again, or dies. `false`: it died.
    fn restart(&self, panic: &str) -> bool {
        let lost = self.state.write().take();
        contain(|| drop(lost));
        #[cfg(feature = "cluster")]
        if self.ended.lock().as_ref().is_some_and(|ended| ended.moves) {
            self.die_and(&format!("a method panicked: {panic}; it starts again in another process"), true);
            return false;
        }
        let restarts = self.restarts.load(Ordering::Relaxed);
        if restarts >= self.options.max_restarts {
            let used = match self.options.max_restarts {
                0 => "and it may not restart (max_restarts is 0)".to_owned(),
                max => format!("and it has used its {max} restarts"),
            };
            self.die(&format!("a method panicked: {panic}; {used}"));
            return false;
        }
        self.restarts.store(restarts + 1, Ordering::Relaxed);
        tracing::warn!(actor = self.name(), id = self.id, restart = restarts + 1, panic, "actor restarts");
        let made = catch_unwind(AssertUnwindSafe(|| self.recover()));
        match made.unwrap_or_else(|panic| Err(panic_message(&*panic))) {
            Ok(state) => {
                *self.state.write() = Some(state);
                true
            }
            Err(why) => {
                self.die(&format!("a method panicked: {panic}; and the restart failed: {why}"));
                false
            }
        }
    }

    /// The state as it was before the call that failed, or as the constructor makes it.
    fn recover(&self) -> Result<S, String> {
        let recovery = self.recovery.lock();
        let mut state = match (&self.options.checkpoint, &recovery.saved, &recovery.remake) {
            (Some(checkpoint), Some(saved), _) => (checkpoint.load)(saved).map_err(|error| error.to_string())?,
            (_, _, Some(remake)) => remake()?,
            _ => return Err("its constructor arguments were not kept".into()),
        };
        for call in &recovery.log {
            call.replay(&mut state).map_err(|error| format!("replay: {error}"))?;
        }
        Ok(state)
    }

    /// After a call that may have changed the state: logs it, and saves the state when it is time.
    fn log(&self, state: &S, call: Option<Box<dyn Replay<S>>>) {
        let Some(checkpoint) = &self.options.checkpoint else { return };
        let mut recovery = self.recovery.lock();
        let logged = call.is_some();
        recovery.log.extend(call);
        if !logged || recovery.log.len() >= checkpoint.every as usize {
            match (checkpoint.save)(state) {
                Ok(saved) => {
                    recovery.saved = Some(saved);
                    recovery.log.clear();
                }
                Err(error) => {
                    tracing::error!(actor = self.name(), %error, "checkpoint failed; the calls stay in the log");
                }
            }
        }
    }

    /// The end: refuses and fails all calls, frees the state, the name and the resources.
    fn die(&self, cause: &str) {
        self.die_and(cause, false);
    }

    /// The same; `moves`: it is to start again in another process.
    #[cfg_attr(not(feature = "cluster"), allow(unused_variables))]
    fn die_and(&self, cause: &str, moves: bool) {
        {
            let mut ours = self.cause.lock();
            if ours.is_some() {
                return;
            }
            *ours = Some(cause.to_owned());
            self.dead.store(true, Ordering::Release);
        }
        let waiting = self.mailbox.close().unwrap_or_default();
        if let Some(name) = &self.options.name {
            let mut names = self.core.names.lock();
            let ours = names.get(&**name).is_some_and(|entry| entry.id == self.id);
            let entry = if ours { names.remove(&**name) } else { None };
            drop(names);
            drop(entry); // it may hold the last handle
        }
        self.core.actors.lock().remove(&self.id);
        let error = Arc::new(self.death());
        for call in waiting {
            call.fail(error.clone());
        }
        self.fail_runner(&error);
        // Calls of async methods that wait are dropped where they wait.
        let suspended: Vec<_> = self.core.suspended.lock().values().filter_map(Weak::upgrade).collect();
        for call in suspended {
            if call.actor().is_some_and(|(actor, _)| actor == self.id) {
                call.fail(error.clone());
            }
        }
        let creation = self.creation.lock().take(); // its failure comes back to this actor
        if let Some(creation) = creation {
            creation.fail(error);
        }
        // A call that runs still uses the state; it is freed with the cell then.
        self.drop_state();
        *self.recovery.lock() = Recovery { remake: None, saved: None, log: Vec::new() };
        self.give_back();
        #[cfg(feature = "cluster")]
        {
            let ended = self.ended.lock().take();
            if let Some(ended) = ended {
                (ended.tell)(self.death(), moves);
            }
        }
    }
}

impl<S> ActorCell<S> {
    /// Fails the calls that the runner has at hand, unless there is a runner: that one does it when
    /// it stops, because it looks after it has let go of them.
    fn fail_runner(&self, error: &Arc<Error>) {
        let Some(mut runner) = self.runner.try_lock() else { return };
        let mut left: Vec<_> = runner.head.take().into_iter().collect();
        left.extend(runner.inbox.drain(..));
        left.extend(runner.deferred.drain(..));
        left.extend(runner.lanes.drain());
        drop(runner);
        for call in left {
            call.fail(error.clone());
        }
    }
}

impl<S: Send + Sync + 'static> Work for ActorCell<S> {
    fn run(self: Arc<Self>) {
        let own = self.own_cpu();
        self.is_queued.swap(false, Ordering::AcqRel);
        if self.mailbox.claim() {
            let outer = (own > 0).then(|| thread::set_seat(own));
            // On a worker that ran nothing but this actor's calls lately, more are likely to come.
            let hot = thread::last_actor(self.core, self.id) == self.id;
            self.run_calls(None, hot);
            outer.map(thread::set_seat);
        }
    }
}

/// The state was made, or could not be.
impl<S: Send + Sync + 'static> Waiter for ActorCell<S> {
    fn notify(self: Arc<Self>) {
        self.created.store(true, Ordering::Release);
        let failure = self.creation.lock().as_ref().and_then(|creation| creation.failure());
        match failure {
            Some(error) => self.die(&format!("it could not be created: {error}")),
            None => {
                if self.mailbox.open() {
                    self.schedule();
                }
            }
        }
    }
}

impl<S: Send + Sync + 'static> AnyActor for ActorCell<S> {
    fn kill(&self, cause: &str) {
        self.die(cause);
    }

    fn info(&self) -> crate::observe::ActorInfo {
        let (mode, readers) = self.mailbox.observe();
        let state = match mode {
            Mode::Starting => crate::observe::ActorState::Starting,
            Mode::Closed => crate::observe::ActorState::Dead,
            Mode::Running | Mode::Exclusive => crate::observe::ActorState::Busy,
            _ if readers > 0 => crate::observe::ActorState::Busy,
            _ => crate::observe::ActorState::Idle,
        };
        #[allow(unused_mut)] // on a cluster it is known otherwise
        let mut info = crate::observe::ActorInfo {
            id: self.id,
            name: self.name().to_owned(),
            type_name: self.type_name.to_owned(),
            state,
            pending_calls: self.pending_calls(),
            restarts: self.restarts.load(Ordering::Relaxed),
            location: self.location.to_string(),
            node: crate::resources::LOCAL_NODE.into(),
        };
        #[cfg(feature = "cluster")]
        if let Some(submitted) = &*self.submitted.lock() {
            (info.id, info.location) = (submitted.number, submitted.location.to_string());
        }
        info
    }
}

/// A call as its actor sees it.
pub(crate) trait ActorCall<S>: Send + Sync {
    fn kind(&self) -> MethodKind;
    fn caller(&self) -> u32;
    fn id(&self) -> u64;
    fn as_node(self: Arc<Self>) -> Arc<dyn Node>;
    fn group(&self) -> Option<&Arc<str>>;
    /// Whether its arguments are there.
    fn is_ready(&self) -> bool;
    /// Whether it has ended already: it was cancelled.
    fn is_withdrawn(&self) -> bool;
    /// Marks it as no longer waiting; `false` if it was marked before.
    fn leave(&self) -> bool;
    fn fail(&self, error: Arc<Error>);
    /// `held`: the state, which the runner keeps from one such call to the next.
    fn run_exclusive<'a>(self: Arc<Self>, actor: &'a ActorCell<S>, held: &mut Held<'a, S>);
    fn start_exclusive(self: Arc<Self>, actor: &Arc<ActorCell<S>>);
    fn run_shared(self: Arc<Self>, actor: &Arc<ActorCell<S>>);
}

/// A call that shares the state, on its way to a worker.
struct SharedRun<S> {
    actor: Arc<ActorCell<S>>,
    call: Arc<dyn ActorCall<S>>,
}

impl<S: Send + Sync + 'static> Work for SharedRun<S> {
    fn run(self: Arc<Self>) {
        self.call.clone().run_shared(&self.actor);
    }
}

pub(crate) struct CallCell<S, B: CallBody<S>> {
    meta: Meta,
    /// The method with its arguments, until it starts, and then the result; the label is the caller.
    /// It has left when it is not among those that wait any more.
    slot: Slot<B::Out, B>,
    actor: Arc<ActorCell<S>>,
}

impl<S: Send + Sync + 'static, B: CallBody<S>> CallCell<S, B> {
    /// Puts a call into the actor's mailbox.
    pub(crate) fn submit(
        actor: &Arc<ActorCell<S>>,
        location: &'static Location<'static>,
        mut body: B,
        options: Option<Box<Options>>,
    ) -> Result<Arc<Self>> {
        let core = actor.core;
        if core.has(super::flag::CHECK_SERIALIZATION) {
            body = body.duplicate()?;
        }
        let caller = options.as_ref().and_then(|o| o.submitted.as_ref()).map(|submitted| submitted.caller);
        let cell = Arc::new(CallCell {
            meta: Meta::new(core, location, options),
            slot: Slot::waiting(body, caller.unwrap_or_else(thread::caller)),
            actor: actor.clone(),
        });
        if let Some(group) = cell.group()
            && !actor.options.groups.contains_key(group)
        {
            let known: Vec<_> = actor.options.groups.keys().map(|g| g.to_string()).collect();
            return Err(Error::invalid(format!(
                "{} has no concurrency group {group:?}, only {known:?}",
                actor.label()
            )));
        }
        if let Err(limit) = actor.enqueue() {
            return Err(Error::TooManyPendingCalls { origin: cell.node().origin(), limit });
        }
        observe::submitted(core, || cell.clone());
        if let Some(after) = cell.meta.options.as_ref().and_then(|o| o.deadline) {
            let node: Arc<dyn Node> = cell.clone();
            timer::deadline(core, &node, after);
        }
        if B::DEPENDENT {
            wait_for_arguments(&cell, |visit| {
                cell.slot.with_body(|body| body.dependencies(visit));
            });
        }
        if caller.is_none() {
            core.count(|c| &c.submitted);
        }
        match actor.mailbox.push(cell.clone()) {
            Pushed::Schedule => actor.schedule(),
            Pushed::Queued => {}
            Pushed::Refused => {
                Node::fail(&*cell, Arc::new(actor.death()));
            }
        }
        Ok(cell)
    }

    fn node(&self) -> &dyn Node {
        self
    }

    /// What a panic in a method means for its call.
    fn panicked(&self, panic: &(dyn Any + Send)) -> Arc<Error> {
        Arc::new(Error::Panicked { origin: self.node().origin(), message: panic_message(panic) })
    }

    #[inline]
    fn finish(&self, outcome: Result<B::Out>) {
        let special = self.actor.is_dead() || self.meta.core.has(super::flag::CHECK_SERIALIZATION);
        let outcome = if special { self.finish_specially(outcome) } else { outcome };
        complete_counted(&self.meta, &self.slot, outcome.map_err(Arc::new));
    }

    #[cold]
    fn finish_specially(&self, outcome: Result<B::Out>) -> Result<B::Out> {
        match outcome {
            Ok(_) if self.actor.is_dead() => Err(self.actor.death()),
            Ok(value) => B::round_trip(value),
            failed => failed,
        }
    }

    /// A kill does not find a future that is just being started; so this looks for the kill.
    fn fail_if_killed(&self, actor: &ActorCell<S>) {
        if actor.is_dead() {
            Node::fail(self, Arc::new(actor.death()));
        }
    }

    /// What it means for the call that an argument could not be had.
    fn no_argument(&self, cause: Error) -> Error {
        match cause {
            Error::Serialization { .. } => cause,
            cause => Error::DependencyFailed { origin: self.node().origin(), cause: Box::new(cause) },
        }
    }

    /// Whether the call may run once more after a panic; counts the attempt.
    fn may_retry(&self) -> bool {
        let Some(options) = self.meta.options.as_deref() else { return false };
        let attempt = options.attempt.load(Ordering::Relaxed);
        let may = attempt <= options.retries && !self.slot.is_done();
        if may {
            options.attempt.store(attempt + 1, Ordering::Relaxed);
        }
        may
    }
}

impl<S: Send + Sync + 'static, B: CallBody<S>> ActorCall<S> for CallCell<S, B> {
    fn kind(&self) -> MethodKind {
        B::KIND
    }

    fn caller(&self) -> u32 {
        self.slot.label()
    }

    fn id(&self) -> u64 {
        self.meta.id
    }

    fn as_node(self: Arc<Self>) -> Arc<dyn Node> {
        self
    }

    fn group(&self) -> Option<&Arc<str>> {
        self.meta.options.as_ref().and_then(|o| o.group.as_ref())
    }

    fn is_ready(&self) -> bool {
        self.meta.missing.load(Ordering::Acquire) == 0
    }

    fn is_withdrawn(&self) -> bool {
        self.slot.is_done()
    }

    fn leave(&self) -> bool {
        self.slot.leave()
    }

    fn fail(&self, error: Arc<Error>) {
        Node::fail(self, error);
    }

    fn run_exclusive<'a>(mut self: Arc<Self>, actor: &'a ActorCell<S>, held: &mut Held<'a, S>) {
        let core = self.meta.core;
        let keeps_log = actor.options.checkpoint.is_some();
        let retries = self.meta.options.as_ref().map_or(0, |o| o.retries);
        let Some(mut body) = self.slot.take_body() else { return actor.skip() };
        actor.dequeue();
        loop {
            let copy = match (keeps_log || retries > 0).then(|| body.duplicate()).transpose() {
                Ok(copy) => copy,
                Err(error) => return self.finish(Err(error)),
            };
            let started = observe::now(core);
            let Some(state) = held.get_or_insert_with(|| actor.state.write()).as_mut() else {
                return self.finish(Err(actor.death()));
            };
            let entered = thread::enter(self);
            let result = catch_unwind(AssertUnwindSafe(|| body.call_exclusive(state)));
            // An argument that could not be had left the state alone: there is nothing to log.
            if keeps_log && let Ok(Ok(_)) = &result {
                let replay = copy.as_ref().map(B::duplicate).and_then(Result::ok);
                actor.log(state, replay.map(|body| Box::new(Logged(body)) as Box<dyn Replay<S>>));
            }
            self = entered.leave();
            observe::ran(core, started, &*self);
            match result {
                Ok(outcome) => return self.finish(outcome.map_err(|cause| self.no_argument(cause))),
                Err(panic) => {
                    let error = self.panicked(&*panic);
                    *held = None;
                    let alive = {
                        let _entered = thread::enter(self.clone());
                        actor.restart(&panic_message(&*panic))
                    };
                    match copy {
                        Some(copy) if alive && self.may_retry() => body = copy,
                        _ => return self.finish(Err((*error).clone())),
                    }
                }
            }
        }
    }

    fn start_exclusive(self: Arc<Self>, actor: &Arc<ActorCell<S>>) {
        let done = |actor: &Arc<ActorCell<S>>| {
            if actor.mailbox.exclusive_done() {
                actor.schedule();
            }
        };
        let Some(body) = self.slot.take_body() else { return done(actor) };
        let guard = actor.state.write_arc();
        if guard.is_none() {
            drop(guard);
            self.finish(Err(actor.death()));
            return done(actor);
        }
        let retries = self.meta.options.as_ref().map_or(0, |o| o.retries);
        let copy = match (retries > 0).then(|| body.duplicate()).transpose() {
            Ok(copy) => copy,
            Err(error) => {
                drop(guard);
                self.finish(Err(error));
                return done(actor);
            }
        };
        match body.future_exclusive(guard) {
            Err(cause) => {
                self.finish(Err(self.no_argument(cause)));
                done(actor);
            }
            Ok(future) => {
                let (started, of) = (self.clone(), actor.clone());
                let (call, actor) = (self.clone(), actor.clone());
                FutureRun::start(self, future, move |result| {
                    // Also when it was cancelled it may have changed the state.
                    if !matches!(result, Some(Err(_)))
                        && let Some(state) = actor.state.read().as_ref()
                    {
                        actor.log(state, None);
                    }
                    match result {
                        Some(Err(panic)) => {
                            let error = call.panicked(&*panic);
                            let alive = {
                                let _entered = thread::enter(call.clone());
                                actor.restart(&panic_message(&*panic))
                            };
                            if let Some(copy) = copy
                                && alive
                                && call.may_retry()
                            {
                                if let Err(too_late) = call.slot.put_body(copy) {
                                    contain(|| drop(too_late)); // it was cancelled meanwhile
                                }
                                return call.start_exclusive(&actor);
                            }
                            call.finish(Err((*error).clone()));
                        }
                        Some(Ok(value)) => call.finish(Ok(value)),
                        None => {}
                    }
                    done(&actor);
                });
                started.fail_if_killed(&of);
            }
        }
    }

    fn run_shared(self: Arc<Self>, actor: &Arc<ActorCell<S>>) {
        let core = self.meta.core;
        let Some(body) = self.slot.take_body() else { return actor.shared_done(self.group()) };
        let guard = actor.state.read_arc();
        if guard.is_none() {
            drop(guard);
            self.finish(Err(actor.death()));
            return actor.shared_done(self.group());
        }
        if B::KIND == MethodKind::AsyncShared {
            return match body.future_shared(guard) {
                Err(cause) => {
                    self.finish(Err(self.no_argument(cause)));
                    actor.shared_done(self.group());
                }
                Ok(future) => {
                    let (started, of) = (self.clone(), actor.clone());
                    let (call, actor) = (self.clone(), actor.clone());
                    FutureRun::start(self, future, move |result| {
                        match result {
                            Some(Err(panic)) => call.finish(Err((*call.panicked(&*panic)).clone())),
                            Some(Ok(value)) => call.finish(Ok(value)),
                            None => {}
                        }
                        actor.shared_done(call.group());
                    });
                    started.fail_if_killed(&of);
                }
            };
        }
        let Some(state) = guard.as_ref() else { unreachable!("looked above, under the same guard") };
        let started = observe::now(core);
        let result = {
            let _entered = thread::enter(self.clone());
            catch_unwind(AssertUnwindSafe(|| body.call_shared(state)))
        };
        drop(guard);
        observe::ran(core, started, &*self);
        match result {
            Ok(outcome) => self.finish(outcome.map_err(|cause| self.no_argument(cause))),
            Err(panic) => self.finish(Err((*self.panicked(&*panic)).clone())),
        }
        actor.shared_done(self.group());
    }
}

impl<S: Send + Sync + 'static, B: CallBody<S>> Waiter for CallCell<S, B> {
    fn notify(self: Arc<Self>) {
        if self.meta.missing.fetch_sub(1, Ordering::AcqRel) == 1 && self.actor.mailbox.poke() {
            self.actor.schedule();
        }
    }
}

impl<S: Send + Sync + 'static, B: CallBody<S>> Node for CallCell<S, B> {
    node_slot!();

    fn kind(&self) -> &'static str {
        "call"
    }

    fn type_name(&self) -> &'static str {
        B::type_name()
    }

    fn fail(&self, error: Arc<Error>) -> bool {
        let completed = complete_counted(&self.meta, &self.slot, Err(error));
        let failed = completed.is_first();
        if failed {
            if let Completed::Unstarted { body, left } = completed {
                contain(|| drop(body));
                if !left {
                    self.actor.withdraw();
                }
            }
            // Others may be lined up behind it.
            if !self.is_ready() && self.actor.mailbox.poke() {
                self.actor.schedule();
            }
        }
        failed
    }

    fn phase(&self) -> Phase {
        let queued = self.slot.has_body();
        match () {
            () if self.is_done() => Phase::Done,
            () if !queued => Phase::Running,
            () if !self.is_ready() => Phase::WaitingForArguments,
            () => Phase::Queued,
        }
    }

    fn help(self: Arc<Self>) -> Help {
        if !self.actor.created.load(Ordering::Acquire)
            && let Some(creation) = self.actor.creation()
            && !creation.is_done()
        {
            return Help::First(creation);
        }
        if !self.is_ready() {
            let mut first = None;
            self.slot.with_body(|body| {
                body.dependencies(&mut |node| {
                    if first.is_none() && !node.is_done() {
                        first = Some(node.clone());
                    }
                });
            });
            return first.map_or(Help::Busy, Help::First);
        }
        if self.actor.own_cpu() == 0 && self.actor.mailbox.claim() {
            // The job that was to bring a runner is not needed any more.
            if self.actor.core.take_back(Arc::as_ptr(&self.actor).addr()).is_some() {
                self.actor.is_queued.store(false, Ordering::Release);
            }
            let outer = thread::set_expected(0);
            self.actor.run_calls(Some(&*self), false);
            thread::set_expected(outer);
        } else {
            self.actor.urgent.store(true, Ordering::Relaxed);
        }
        if self.is_done() { Help::Ran } else { Help::Busy }
    }

    fn blockers(&self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        let looked = self.slot.with_body(|body| {
            body.dependencies(&mut |node| {
                if !node.is_done() {
                    blockers.push(Blocker::Node(node.clone()));
                }
            });
        });
        if looked.is_none() {
            return blockers;
        }
        if let Some(creation) = self.actor.creation()
            && !creation.is_done()
        {
            blockers.push(Blocker::Node(creation));
        }
        // It may stand behind an earlier call of its caller.
        if let Some(runner) = self.actor.runner.try_lock()
            && let Some(first) = runner.lanes.of(self.slot.label()).and_then(VecDeque::front)
            && first.id() != self.meta.id
        {
            blockers.push(Blocker::Node(first.clone().as_node()));
        }
        let group = self.group();
        if let Some(limit) = self.actor.limit(group)
            && B::KIND.shares()
            && !self.actor.has_room(group)
        {
            blockers.push(Blocker::Room { actor: self.actor.id, group: group.cloned(), limit });
        }
        // A call that shares the state passes others that do, unless one that does not waits for those.
        let waiting = self.actor.mailbox.observe().0 == Mode::WaitingForReaders;
        blockers.push(Blocker::Actor { id: self.actor.id, shared: B::KIND.shares() && !waiting });
        blockers
    }

    fn gpus(&self) -> Vec<GpuLease> {
        self.actor.gpus()
    }

    #[cfg(feature = "gpu-unversioned")]
    fn sessions(&self) -> Option<Arc<crate::gpu::sessions::Sessions>> {
        self.actor.sessions()
    }

    fn is_cancelled(&self) -> bool {
        self.is_done() || self.actor.is_dead()
    }

    fn actor(&self) -> Option<(u64, bool)> {
        Some((self.actor.id, B::KIND.shares()))
    }
}

impl<S: Send + Sync + 'static, B: CallBody<S>> Source<B::Out> for CallCell<S, B> {
    slot_source!(B::Out);
}
