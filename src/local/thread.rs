//! What the runtime keeps per thread: the worker's queue, and the stack of what runs.

use super::{Core, Job, node::Node, slot::Waiter};
use crate::sync::{AtomicBool, Ordering, Thread, current_thread};
use crossbeam_deque::{Stealer, Worker};
use std::{
    any::Any,
    cell::{Cell, OnceCell, RefCell},
    collections::VecDeque,
    sync::{Arc, atomic::AtomicU64},
};

/// Identifiers are handed to threads in blocks, so that taking one is not a shared write.
const ID_BLOCK: u64 = 1024;

/// Of a worker thread.
pub(crate) struct WorkerLocal {
    pub(crate) core: &'static Core,
    pub(crate) index: usize,
    pub(crate) deque: Worker<Job>,
    pub(crate) counters: Arc<Counters>,
    /// For what it takes out of the injector; empty in between.
    pub(crate) block: RefCell<VecDeque<Job>>,
    /// The other workers' queues, as of `stealers_version`.
    pub(crate) stealers: RefCell<Arc<[Stealer<Job>]>>,
    pub(crate) stealers_version: Cell<usize>,
    /// A dependent that became ready when this worker finished a task: it runs next.
    pub(crate) next: RefCell<Option<Job>>,
    /// One that got its resources when this worker gave back those of another: it runs next.
    pub(crate) granted: RefCell<Option<Job>>,
    /// It runs a job that has its own share of the CPUs, and looks for another when that ends.
    pub(crate) takes_granted: Cell<bool>,
    pub(crate) random: Cell<u64>,
    /// The actor whose calls it ran last.
    pub(crate) last_actor: Cell<u64>,
}

/// What a thread did. Each thread has its own for the runtime that it uses first of those that are there.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) submitted: AtomicU64,
    pub(crate) executed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) stolen: AtomicU64,
}

impl Counters {
    /// By the owner, who is the only writer: no read-modify-write is needed.
    #[inline]
    pub(crate) fn count(&self, which: impl Fn(&Counters) -> &AtomicU64) {
        let counter = which(self);
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Adds what another thread did, which has ended.
    pub(crate) fn add(&self, other: &Counters) {
        let Counters { submitted, executed, failed, stolen } = self;
        for (sum, part) in [
            (submitted, &other.submitted),
            (executed, &other.executed),
            (failed, &other.failed),
            (stolen, &other.stolen),
        ] {
            sum.fetch_add(part.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

struct Local {
    worker: OnceCell<WorkerLocal>,
    /// What runs on this thread, the innermost last.
    frames: RefCell<Vec<Arc<dyn Node>>>,
    /// The share of the CPUs that this thread holds, in thousandths.
    seat: Cell<u32>,
    /// The node that this thread will run as soon as it is ready (see `wait::help`).
    expected: Cell<u64>,
    next_id: Cell<u64>,
    /// What a thread counts that is no worker, and for which runtime.
    visited: RefCell<Option<(&'static Core, Arc<Counters>)>>,
    parker: OnceCell<Arc<Parker>>,
    /// What is queued next for this runtime is kept.
    #[cfg(feature = "cluster")]
    keeps: Cell<Option<&'static Core>>,
    #[cfg(feature = "cluster")]
    kept: RefCell<Option<Kept>>,
}

thread_local! {
    static LOCAL: Local = const {
        Local {
            worker: OnceCell::new(),
            frames: RefCell::new(Vec::new()),
            seat: Cell::new(0),
            expected: Cell::new(0),
            next_id: Cell::new(0),
            visited: RefCell::new(None),
            parker: OnceCell::new(),
            #[cfg(feature = "cluster")]
            keeps: Cell::new(None),
            #[cfg(feature = "cluster")]
            kept: RefCell::new(None),
        }
    };
}

/// A number that this process has not used before, from 1.
#[inline]
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    LOCAL.with(|local| {
        let mut id = local.next_id.get();
        if id % ID_BLOCK == 0 {
            id = NEXT.fetch_add(1, Ordering::Relaxed) * ID_BLOCK;
        }
        local.next_id.set(id + 1);
        id - ID_BLOCK + 1
    })
}

/// Makes this thread a worker for good.
pub(crate) fn become_worker(worker: WorkerLocal) {
    LOCAL.with(|local| assert!(local.worker.set(worker).is_ok(), "a thread becomes a worker once"));
}

/// Calls `f` with this thread's worker state, if it is a worker of `core`.
#[inline]
pub(crate) fn with_worker<R>(core: &'static Core, f: impl FnOnce(Option<&WorkerLocal>) -> R) -> R {
    LOCAL.with(|local| f(local.worker.get().filter(|worker| std::ptr::eq(worker.core, core))))
}

/// Counts what a thread did that is no worker of `core`.
#[inline]
pub(crate) fn count_outside(core: &'static Core, which: impl Fn(&Counters) -> &AtomicU64) {
    LOCAL.with(|local| {
        if let Some((of, counters)) = &*local.visited.borrow()
            && std::ptr::eq(*of, core)
        {
            return counters.count(which);
        }
        count_as_stranger(local, core, which);
    });
}

/// The same for a thread that has no counters of its own there, yet.
#[cold]
fn count_as_stranger(local: &Local, core: &'static Core, which: impl Fn(&Counters) -> &AtomicU64) {
    let is_closed = |core: &Core| core.has(super::flag::CLOSED);
    let is_free = local.visited.borrow().as_ref().is_none_or(|(of, _)| is_closed(of));
    if !is_free || is_closed(core) {
        which(&core.outside).fetch_add(1, Ordering::Relaxed);
        return;
    }
    let counters = core.visitor_counters();
    counters.count(which);
    *local.visited.borrow_mut() = Some((core, counters));
}

/// Notes that this worker runs calls of an actor, and says of which one it did before.
pub(crate) fn last_actor(core: &'static Core, id: u64) -> u64 {
    with_worker(core, |worker| worker.map_or(0, |worker| worker.last_actor.replace(id)))
}

/// The runtime of what runs on this thread.
pub(crate) fn current_core() -> Option<&'static Core> {
    LOCAL.with(|local| local.frames.borrow().last().map(|node| node.meta().core))
}

/// What runs on this thread.
pub(crate) fn current_node() -> Option<Arc<dyn Node>> {
    LOCAL.with(|local| local.frames.borrow().last().cloned())
}

/// Everything that runs on this thread, each waiting for the next.
pub(crate) fn frames() -> Vec<Arc<dyn Node>> {
    LOCAL.with(|local| local.frames.borrow().clone())
}

/// How many bodies run on this thread, one inside the other.
#[inline]
pub(crate) fn depth() -> usize {
    LOCAL.with(|local| local.frames.borrow().len())
}

/// Who calls: what runs on this thread, or else the thread itself. Calls of one caller to one
/// actor keep their order; two callers with the same number, which is rare, share one order.
#[inline]
pub(crate) fn caller() -> u32 {
    let who = LOCAL.with(|local| match local.frames.borrow().last() {
        Some(node) => node.actor().map_or(node.meta().id, |(actor, _)| actor),
        // The address of a thread's own storage.
        None => std::ptr::from_ref(local) as u64 >> 4,
    });
    who as u32
}

/// Marks `node` as running on this thread until the guard is dropped, or left.
#[inline]
pub(crate) fn enter(node: Arc<dyn Node>) -> Entered {
    let span = super::observe::span(&*node);
    LOCAL.with(|local| local.frames.borrow_mut().push(node));
    Entered { span }
}

pub(crate) struct Entered {
    span: Option<Box<tracing::span::EnteredSpan>>,
}

impl Entered {
    /// Ends it, and gives back what was entered: it need not be counted twice meanwhile.
    #[inline]
    pub(crate) fn leave<C: Node>(mut self) -> Arc<C> {
        drop(self.span.take());
        let node: Option<Arc<dyn Any + Send + Sync>> = pop_frame().map(|node| node as _);
        std::mem::forget(self);
        match node.map(Arc::downcast) {
            Some(Ok(node)) => node,
            _ => unreachable!("what is entered last is left first"),
        }
    }
}

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        drop(pop_frame()); // outside the borrow: it may run destructors
    }
}

#[inline]
fn pop_frame() -> Option<Arc<dyn Node>> {
    LOCAL.with(|local| local.frames.borrow_mut().pop())
}

#[inline]
pub(crate) fn seat() -> u32 {
    LOCAL.with(|local| local.seat.get())
}

#[inline]
pub(crate) fn set_seat(thousandths: u32) -> u32 {
    LOCAL.with(|local| local.seat.replace(thousandths))
}

#[inline]
pub(crate) fn expected() -> u64 {
    LOCAL.with(|local| local.expected.get())
}

#[inline]
pub(crate) fn set_expected(id: u64) -> u64 {
    LOCAL.with(|local| local.expected.replace(id))
}

/// A job that was not queued, so that its thread may run it.
#[cfg(feature = "cluster")]
pub(crate) struct Kept {
    pub(crate) job: Job,
    /// It has its own share of the CPUs, and needs no seat.
    pub(crate) has_share: bool,
}

/// Keeps the first job of `core`'s that `f` queues on this thread, which is no worker.
#[cfg(feature = "cluster")]
pub(crate) fn keeping(core: &'static Core, f: impl FnOnce()) -> Option<Kept> {
    LOCAL.with(|local| local.keeps.set(Some(core)));
    f();
    LOCAL.with(|local| {
        local.keeps.set(None);
        local.kept.take()
    })
}

/// Gives the job back if this thread does not keep it.
#[inline]
pub(crate) fn keep(_core: &'static Core, job: Job, _has_share: bool) -> Option<Job> {
    #[cfg(feature = "cluster")]
    return LOCAL.with(|local| match local.keeps.get() {
        Some(core) if std::ptr::eq(core, _core) => {
            local.keeps.set(None);
            *local.kept.borrow_mut() = Some(Kept { job, has_share: _has_share });
            None
        }
        _ => Some(job),
    });
    #[cfg(not(feature = "cluster"))]
    Some(job)
}

/// Blocks a thread until a slot is done.
pub(crate) struct Parker {
    notified: AtomicBool,
    thread: Thread,
    /// It does I/O instead of sleeping.
    #[cfg(any(feature = "cluster", loom))]
    works: crate::sync::Mutex<Option<Arc<dyn Interrupt>>>,
}

/// What a thread does that waits, and that somebody has to interrupt when the wait is over.
#[cfg(any(feature = "cluster", loom))]
pub(crate) trait Interrupt: Send + Sync {
    fn interrupt(&self);
}

impl Parker {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Parker {
            notified: AtomicBool::new(false),
            thread: current_thread(),
            #[cfg(any(feature = "cluster", loom))]
            works: crate::sync::Mutex::new(None),
        })
    }

    /// Forgets an earlier notification.
    pub(crate) fn reset(&self) {
        self.notified.store(false, Ordering::Relaxed);
    }

    pub(crate) fn unpark(&self) {
        self.notified.store(true, Ordering::Release);
        #[cfg(any(feature = "cluster", loom))]
        if let Some(io) = &*self.works.lock()
            && self.thread.id() != current_thread().id()
        {
            io.interrupt();
        }
        self.thread.unpark();
    }

    /// The thread does I/O from now on while it waits, or not any more.
    #[cfg(any(feature = "cluster", loom))]
    pub(crate) fn works(&self, io: Option<Arc<dyn Interrupt>>) {
        *self.works.lock() = io;
    }
}

impl Waiter for Parker {
    fn notify(self: Arc<Self>) {
        self.unpark();
    }

    fn is_quiet(&self) -> bool {
        true
    }
}

/// This thread's parker. A late notification from an earlier wait is a spurious wake-up, so
/// whoever parks looks at what it waits for.
pub(crate) fn parker() -> Arc<Parker> {
    LOCAL.with(|local| local.parker.get_or_init(Parker::new).clone())
}
