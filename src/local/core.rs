//! The executor: queues, worker threads, their start and their end.
//!
//! A [`Core`] lives for ever once made (`&'static`), so that every task can name its runtime for
//! the price of a pointer. What a runtime leaves behind is an empty core of a few kilobytes.
//!
//! # Queues
//! Work submitted by a worker goes to that worker's own deque, newest first; work from other
//! threads goes to the shared injector. Who finds neither steals the oldest from another worker.
//! A dependent that becomes ready when a worker finishes a task runs next on that worker.
//!
//! # Threads
//! There are none until there is work. A thread is started when work is waiting, a seat is free
//! and nobody sleeps ([`super::idle`]); so a task that blocks is replaced, and goes on at once when
//! it can. Threads beyond the number of CPUs end when they run out of work.

use super::{
    actor::{AnyActor, NamedActor},
    deterministic::Deterministic,
    idle::{Idle, Place, SEAT, Sleeper},
    inbox::Injector,
    node::{Node, contain},
    observe::Recorder,
    resources::{Amounts, Ledger},
    thread::{self, Counters, WorkerLocal},
};
use crate::error::Error;
use crossbeam_deque::{Steal, Stealer, Worker};
use crossbeam_utils::CachePadded;
use parking_lot::{Condvar, Mutex, RwLock};
use std::{
    cell::{Cell, Ref, RefCell},
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Something to run, once for each time it is scheduled.
pub(crate) trait Work: Send + Sync {
    fn run(self: Arc<Self>);
    /// Whether somebody else has run it already, so that `run` would do nothing.
    fn is_spent(&self) -> bool {
        false
    }
}

pub(crate) type Job = Arc<dyn Work>;

/// How long a worker looks for work before it sleeps: rounds of looking, with pauses of so many
/// spins between them. Together about 50 us, some times what waking a thread costs.
const SEARCH_ROUNDS: u32 = 256;
const PAUSE: u32 = 6;
/// In one of so many rounds, some 3 us apart, it looks into the injector, too: who submits task
/// after task is not disturbed for each of them, and the searcher finds a batch.
const OUTSIDE: u32 = 16;
/// After so many rounds it lets other threads have its CPU.
const YIELD: u32 = 128;
/// After so many jobs from its own queue a worker looks into the injector first, and every second time at the oldest in
/// its own queue before that: tasks that submit others without end keep those behind them waiting.
const FAIRNESS: u32 = 61;

/// What a runtime is built from.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// But for the GPUs.
    pub(crate) total: Amounts,
    pub(crate) gpus: super::gpus::Origin,
    pub(crate) check_serialization: bool,
    pub(crate) observe: bool,
    pub(crate) stack_size: usize,
    pub(crate) deterministic: Option<u64>,
    #[cfg(feature = "tokio")]
    pub(crate) tokio: Option<tokio::runtime::Handle>,
}

pub(crate) mod flag {
    pub(crate) const CHECK_SERIALIZATION: u32 = 1;
    pub(crate) const OBSERVE: u32 = 2;
    pub(crate) const DETERMINISTIC: u32 = 4;
    /// Nothing is run any more: what comes fails.
    pub(crate) const STOPPING: u32 = 8;
    /// There is nobody left to run anything.
    pub(crate) const CLOSED: u32 = 16;
}

/// So many threads may have ended before their counters are put together.
const VISITORS: usize = 64;

#[derive(Default)]
struct Threads {
    /// Running or asleep.
    alive: usize,
    started: usize,
    counters: Vec<Arc<Counters>>,
    /// Of threads that are no workers.
    visitors: Vec<Arc<Counters>>,
    free_indices: Vec<usize>,
}

pub(crate) struct Core {
    flags: AtomicU32,
    pub(crate) idle: CachePadded<Idle<Job>>,
    injector: CachePadded<Injector<Job>>,
    /// One per worker index.
    stealers: RwLock<Arc<[Stealer<Job>]>>,
    stealers_version: AtomicUsize,
    threads: Mutex<Threads>,
    threads_ended: Condvar,
    pub(crate) ledger: Mutex<Ledger>,
    pub(super) gpus: super::gpus::Gpus,
    /// How many wait in the ledger, for those who only want to know whether any do.
    pub(crate) applicants: AtomicUsize,
    /// What threads did that have no counters of their own here, or have ended.
    pub(crate) outside: CachePadded<Counters>,
    pub(crate) actors: Mutex<HashMap<u64, Weak<dyn AnyActor>>>,
    pub(crate) names: Mutex<HashMap<String, NamedActor>>,
    /// What waits for something else than its turn (futures, streams, places in the row at a queue,
    /// pauses before a retry), so that a shutdown can end it.
    pub(crate) suspended: Mutex<HashMap<u64, Weak<dyn Node>>>,
    pub(crate) recorder: RwLock<Option<Arc<Recorder>>>,
    pub(crate) deterministic: Deterministic,
    config: RwLock<Option<Config>>,
    /// Its part in a cluster.
    #[cfg(feature = "cluster")]
    pub(crate) client: std::sync::OnceLock<Arc<crate::cluster::client::Client>>,
    /// Of each worker, in bytes.
    pub(crate) stack_size: usize,
    max_searchers: u32,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("flags", &self.flags).finish_non_exhaustive()
    }
}

/// All cores ever made. They stay, a few kilobytes each, so that whatever outlives its runtime (a
/// handle, a placement group, a timer) finds its own core, closed, and never that of another.
static CORES: Mutex<Vec<&'static Core>> = Mutex::new(Vec::new());

impl Core {
    /// A core for a new runtime.
    pub(crate) fn open(config: Config) -> &'static Core {
        let core: &'static Core = Box::leak(Box::new(Core {
            flags: AtomicU32::new(0),
            stack_size: config.stack_size,
            max_searchers: (config.total.cpu / SEAT / 2).max(1),
            idle: CachePadded::new(Idle::new()),
            injector: CachePadded::new(Injector::new()),
            stealers: RwLock::new(Arc::new([])),
            stealers_version: AtomicUsize::new(0),
            threads: Mutex::default(),
            threads_ended: Condvar::new(),
            ledger: Mutex::new(Ledger::new(config.total.clone())),
            gpus: Default::default(),
            applicants: AtomicUsize::new(0),
            outside: CachePadded::default(),
            actors: Mutex::default(),
            names: Mutex::default(),
            suspended: Mutex::default(),
            recorder: RwLock::new(config.observe.then(|| Arc::new(Recorder::new()))),
            deterministic: Deterministic::default(),
            config: RwLock::new(None),
            #[cfg(feature = "cluster")]
            client: std::sync::OnceLock::new(),
        }));
        CORES.lock().push(core);
        core.idle.reset(config.total.cpu);
        let mut flags = 0;
        for (set, bit) in [
            (config.check_serialization, flag::CHECK_SERIALIZATION),
            (config.observe, flag::OBSERVE),
            (config.deterministic.is_some(), flag::DETERMINISTIC),
        ] {
            flags |= if set { bit } else { 0 };
        }
        if let Some(seed) = config.deterministic {
            core.deterministic.reset(seed);
        }
        *core.config.write() = Some(config);
        core.flags.store(flags, Ordering::Release);
        core
    }

    #[inline]
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    #[inline]
    pub(crate) fn is_stopping(&self) -> bool {
        self.has(flag::STOPPING)
    }

    /// How many CPUs there are, in thousandths, once that is known.
    #[cfg(feature = "cluster")]
    pub(crate) fn set_cpus(&self, thousandths: u32) {
        self.ledger.lock().set_cpus(thousandths);
    }

    /// Whether there may be other nodes.
    pub(crate) fn is_on_cluster(&self) -> bool {
        #[cfg(feature = "cluster")]
        return self.client.get().is_some();
        #[cfg(not(feature = "cluster"))]
        false
    }

    /// The way to the cluster, if a task with these options is to go there.
    #[cfg(feature = "cluster")]
    #[inline]
    pub(crate) fn client_for(
        &self,
        options: Option<&super::node::Options>,
    ) -> Option<&Arc<crate::cluster::client::Client>> {
        let client = self.client.get()?;
        client.takes(options).then_some(client)
    }

    pub(crate) fn config<R>(&self, read: impl FnOnce(&Config) -> R) -> Option<R> {
        self.config.read().as_ref().map(read)
    }

    pub(crate) fn shutdown_error(&self, what: impl Into<String>) -> Error {
        Error::Shutdown { what: what.into() }
    }

    /// In deterministic mode: a place where another may go on instead.
    #[inline]
    pub(crate) fn yield_if_deterministic(&'static self) {
        if self.has(flag::DETERMINISTIC) {
            self.deterministic.yield_point(self);
        }
    }

    /// Lets a shutdown find a node that waits for something else than its turn.
    pub(crate) fn suspend(&self, node: &Arc<dyn Node>) {
        self.suspended.lock().insert(node.meta().id, Arc::downgrade(node));
        if self.is_stopping() {
            node.fail(Arc::new(self.shutdown_error(node.label())));
        }
    }

    pub(crate) fn resume(&self, id: u64) {
        self.suspended.lock().remove(&id);
    }

    /// Queues a job that is ready to run.
    #[inline]
    pub(crate) fn schedule(&'static self, job: Job) {
        if self.has(flag::DETERMINISTIC | flag::CLOSED) {
            return self.schedule_specially(job);
        }
        let is_kept = thread::with_worker(self, |worker| match worker {
            Some(worker) => {
                worker.deque.push(job);
                false
            }
            None => thread::keep(self, job, false).map(|job| self.injector.push(job)).is_none(),
        });
        if !is_kept {
            self.notify();
        }
    }

    #[cold]
    fn schedule_specially(&'static self, job: Job) {
        match self.has(flag::CLOSED) {
            true => run(job), // fails
            false => self.deterministic.schedule(job),
        }
    }

    /// Queues a job behind everything else that waits, so that others get their turn.
    pub(crate) fn schedule_last(&'static self, job: Job) {
        if self.has(flag::DETERMINISTIC | flag::CLOSED) {
            return self.schedule_specially(job);
        }
        self.injector.push(job);
        self.notify();
    }

    /// Queues the dependent `id` of something that has just finished on this thread. At the end of
    /// a worker's job it runs next, without a wake-up; a thread that is about to run it keeps it.
    #[inline]
    pub(crate) fn schedule_ready(&'static self, id: u64, job: Job) {
        if thread::expected() == id {
            return;
        }
        if !self.has(flag::DETERMINISTIC) && thread::depth() == 0 {
            let kept = thread::with_worker(self, |worker| match worker {
                Some(worker) if worker.next.borrow().is_none() => {
                    *worker.next.borrow_mut() = Some(job.clone());
                    true
                }
                _ => false,
            });
            if kept {
                return;
            }
        }
        self.schedule(job);
    }

    /// Starts a job that has its own share of the CPUs, on a thread without a seat: on this one if it has come to the
    /// end of such a job, so that a chain of them wakes nobody.
    pub(crate) fn start(&'static self, job: Job) {
        if self.has(flag::DETERMINISTIC | flag::CLOSED) {
            return self.schedule_specially(job);
        }
        let Some(job) = thread::keep(self, job, true) else { return };
        if thread::depth() == 0 && thread::seat() == 0 {
            let kept = thread::with_worker(self, |worker| match worker {
                Some(worker) if worker.takes_granted.get() && worker.granted.borrow().is_none() => {
                    *worker.granted.borrow_mut() = Some(job.clone());
                    true
                }
                _ => false,
            });
            if kept {
                return;
            }
        }
        self.start_elsewhere(job);
    }

    /// Queues or starts what was kept (see [`thread::keeping`]).
    #[cfg(feature = "cluster")]
    pub(crate) fn schedule_kept(&'static self, kept: thread::Kept) {
        match kept.has_share {
            true => self.start(kept.job),
            false => self.schedule(kept.job),
        }
    }

    fn start_elsewhere(&'static self, job: Job) {
        match self.idle.pop(Place::Elsewhere) {
            Some(sleeper) => sleeper.send(Some(job)),
            None => self.spawn(Some(job)),
        }
    }

    /// Wakes or starts a worker if work was pushed, a seat is free and nobody is looking.
    #[inline]
    pub(crate) fn notify(&'static self) {
        self.notify_at(Place::Elsewhere);
    }

    #[inline]
    fn notify_at(&'static self, place: Place) {
        if self.idle.claim_wake() {
            self.wake_searcher(place);
        }
    }

    /// Wakes or starts a thread for a searcher that has been counted.
    fn wake_searcher(&'static self, place: Place) {
        match self.idle.pop(place) {
            Some(sleeper) => sleeper.send(None),
            None => self.spawn(None),
        }
    }

    /// The same, after a seat became free.
    pub(crate) fn notify_if_work(&'static self, place: Place) {
        if self.has_work() {
            self.notify_at(place);
        }
    }

    fn has_work(&self) -> bool {
        self.has_injected() || self.stealers.read().iter().any(|stealer| !stealer.is_empty())
    }

    /// Whether anything waits that any worker could run next.
    pub(crate) fn has_injected(&self) -> bool {
        !self.injector.is_empty()
    }

    /// Whether a job that goes on for long should let others have its worker.
    pub(crate) fn wants_this_thread(&self) -> bool {
        self.has_work() || self.idle.overdrawn() || self.is_stopping() || self.has(flag::DETERMINISTIC)
    }

    pub(crate) fn queued(&self) -> usize {
        let stealers = self.stealers.read().clone();
        self.injector.len() + stealers.iter().map(Stealer::len).sum::<usize>() + self.deterministic.ready()
    }

    /// Lets others use this thread's share of the CPUs while it blocks; returns what to take back.
    pub(crate) fn lend_seat(&'static self) -> u32 {
        let seat = thread::set_seat(0);
        // What was to run next here must not wait for this thread.
        let (next, granted) = thread::with_worker(self, |worker| {
            worker.map_or((None, None), |w| (w.next.borrow_mut().take(), w.granted.borrow_mut().take()))
        });
        if let Some(job) = next {
            self.schedule(job);
        }
        if let Some(job) = granted {
            self.start_elsewhere(job);
        }
        if seat > 0 {
            self.idle.give(seat);
            if self.has_applicants() {
                self.admit();
            }
            self.notify_if_work(Place::Here);
        }
        seat
    }

    pub(crate) fn reclaim_seat(&self, seat: u32) {
        if seat > 0 {
            self.idle.take(seat);
            thread::set_seat(seat);
        }
    }

    /// What this thread counts.
    #[inline]
    pub(crate) fn count(&'static self, which: impl Fn(&Counters) -> &AtomicU64) {
        thread::with_worker(self, |worker| match worker {
            Some(worker) => worker.counters.count(which),
            None => thread::count_outside(self, which),
        });
    }

    /// Counters for a thread that is no worker.
    pub(crate) fn visitor_counters(&self) -> Arc<Counters> {
        let mut threads = self.threads.lock();
        let visitors = &mut threads.visitors;
        if visitors.len() >= VISITORS && visitors.len().is_power_of_two() {
            // What threads did that have ended is kept in one place.
            let all = std::mem::take(visitors);
            visitors.extend(all.into_iter().filter_map(|counters| match Arc::try_unwrap(counters) {
                Err(in_use) => Some(in_use),
                Ok(ended) => {
                    self.outside.add(&ended);
                    None
                }
            }));
        }
        let counters = Arc::<Counters>::default();
        visitors.push(counters.clone());
        counters
    }

    #[inline]
    pub(crate) fn count_ended(&'static self, succeeded: bool) {
        match succeeded {
            true => self.count(|c| &c.executed),
            false => self.count(|c| &c.failed),
        }
    }

    pub(crate) fn total(&self, which: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        let threads = self.threads.lock();
        let counters = threads.counters.iter().chain(&threads.visitors);
        let own: u64 = counters.map(|c| which(c).load(Ordering::Relaxed)).sum();
        own + which(&self.outside).load(Ordering::Relaxed)
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.lock().alive
    }

    /// Starts a thread, with a job that brings its own share, or as a searcher with a seat.
    fn spawn(&'static self, job: Option<Job>) {
        let deque = Worker::new_lifo();
        let (index, counters) = {
            let mut threads = self.threads.lock();
            threads.alive += 1;
            let index = threads.free_indices.pop().unwrap_or_else(|| {
                threads.started += 1;
                threads.counters.push(Arc::default());
                threads.started - 1
            });
            // Under the same lock, so that the position is the index also when threads start together.
            let mut stealers = self.stealers.write();
            let mut all = stealers.to_vec();
            match all.get_mut(index) {
                Some(place) => *place = deque.stealer(),
                None => all.push(deque.stealer()),
            }
            *stealers = all.into();
            self.stealers_version.fetch_add(1, Ordering::Release);
            (index, threads.counters[index].clone())
        };
        let stack_size = self.stack_size;
        let job_if_failed = job.clone();
        let body = move || {
            thread::become_worker(WorkerLocal {
                core: self,
                index,
                deque,
                counters,
                stealers: RefCell::new(Arc::new([])),
                stealers_version: Cell::new(usize::MAX),
                block: RefCell::default(),
                next: RefCell::new(None),
                granted: RefCell::new(None),
                takes_granted: Cell::new(false),
                last_actor: Cell::new(0),
                random: Cell::new((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            });
            let _ended = Ended { core: self, index };
            super::rayon::in_narrow_pool(|| self.work(job));
        };
        let spawned = std::thread::Builder::new().name(format!("outray-{index}")).stack_size(stack_size).spawn(body);
        if let Err(error) = spawned {
            // The work stays queued for the threads that there are.
            tracing::error!(%error, "cannot start a worker thread");
            let alive = {
                let mut threads = self.threads.lock();
                threads.alive -= 1;
                threads.free_indices.push(index);
                threads.alive
            };
            assert!(alive > 0, "outray cannot start its first worker thread: {error}");
            match job_if_failed {
                Some(job) => self.injector.push(job),
                None => self.idle.search_no_more(),
            }
        }
    }

    /// A worker's life: it runs the job that it was started with, or searches, sits down and runs
    /// what it finds until there is nothing left, searches again, and sleeps.
    fn work(&'static self, mut job: Option<Job>) {
        let sleeper = Arc::new(Sleeper::new());
        let mut rounds = 0;
        loop {
            // A job brings its own share of the CPUs, and its thread was not counted as a searcher.
            if let Some(job) = job.take() {
                self.run_granted(job);
                self.idle.stand_up(thread::set_seat(0));
            }
            while let Some(found) = self.search() {
                run(found);
                self.run_next();
                while !self.idle.overdrawn()
                    && let Some(found) = self.own_or_injected(&mut rounds)
                {
                    run(found);
                    self.run_next();
                }
                self.idle.stand_up(thread::set_seat(0));
                if self.idle.overdrawn() {
                    break;
                }
            }
            self.idle.enter(&sleeper);
            if self.has_applicants() {
                self.admit();
            }
            let work_left = self.has_work();
            if self.is_stopping() || (!work_left && self.idle.asleep() > self.spare_threads()) {
                if self.idle.leave(&sleeper) {
                    return;
                }
            } else if work_left && self.idle.claim_wake() {
                // That counted a searcher: this thread, or else another.
                if self.idle.leave(&sleeper) {
                    continue;
                }
                self.wake_searcher(Place::Here);
            }
            job = sleeper.receive();
        }
    }

    /// How many threads may sleep: as many as there are CPUs, and a few to replace blocked ones.
    fn spare_threads(&self) -> usize {
        self.config(|c| c.total.cpu.div_ceil(SEAT) as usize + 4).unwrap_or(4)
    }

    /// Runs a job that has its own share of the CPUs, then those that get theirs from it, and then what became ready.
    fn run_granted(&'static self, job: Job) {
        let takes_granted = |takes| {
            thread::with_worker(self, |worker| {
                worker.and_then(|worker| {
                    worker.takes_granted.set(takes);
                    worker.granted.borrow_mut().take()
                })
            })
        };
        takes_granted(true);
        let mut next = Some(job);
        let mut in_a_row = 0;
        while let Some(job) = next {
            run(job);
            in_a_row += 1;
            next = takes_granted(in_a_row < FAIRNESS);
        }
        takes_granted(false);
        // Its share is free now, and may be the seat for what depended on it.
        if self.idle.try_sit() {
            thread::set_seat(SEAT);
        }
        self.run_next();
    }

    /// Runs the dependents that became ready, one after the other.
    fn run_next(&'static self) {
        let next = || thread::with_worker(self, |worker| worker.and_then(|w| w.next.borrow_mut().take()));
        let mut in_a_row = 0;
        while let Some(job) = next() {
            in_a_row += 1;
            if in_a_row > FAIRNESS || thread::seat() == 0 {
                return self.schedule_last(job);
            }
            run(job);
        }
    }

    /// What a worker with a seat runs next: its own work, and now and then the injector's first.
    fn own_or_injected(&'static self, rounds: &mut u32) -> Option<Job> {
        thread::with_worker(self, |worker| {
            let worker = worker?;
            *rounds += 1;
            if *rounds >= 2 * FAIRNESS {
                *rounds = 0;
                let oldest = self.stealers(worker).get(worker.index).and_then(|own| own.steal().success());
                if let Some(job) = oldest.or_else(|| self.take_injected(worker)) {
                    return Some(job);
                }
            } else if *rounds == FAIRNESS
                && let Some(job) = self.take_injected(worker)
            {
                return Some(job);
            }
            worker.deque.pop().or_else(|| self.take_injected(worker))
        })
    }

    /// Looks for work until there is some and a seat for it, or for long enough. The thread counts
    /// as a searcher; with the work it has a seat instead.
    fn search(&'static self) -> Option<Job> {
        thread::with_worker(self, |worker| {
            let worker = worker?;
            let mut round = 0;
            // More than half of the CPUs do not search: they would take turns at what one finds.
            let rounds = if self.idle.searchers() > self.max_searchers { 1 } else { SEARCH_ROUNDS };
            while round < rounds && !self.is_stopping() {
                round += 1;
                let look_outside = round % OUTSIDE == 1;
                match self.any_for(worker, look_outside) {
                    // Somebody ran it already; where that is so, more is likely to come.
                    Some(job) if job.is_spent() => round = 0,
                    Some(job) => match self.idle.sit_down() {
                        Some(last) => {
                            thread::set_seat(SEAT);
                            if last && (self.has_injected() || self.has_queued(worker)) {
                                self.notify();
                            }
                            return Some(job);
                        }
                        None => {
                            // No seat: others can have it.
                            worker.deque.push(job);
                            std::thread::yield_now();
                        }
                    },
                    None if round % YIELD == 0 => std::thread::yield_now(),
                    None => (0..PAUSE).for_each(|_| std::hint::spin_loop()),
                }
            }
            None
        })
    }

    fn any_for(&'static self, worker: &WorkerLocal, look_outside: bool) -> Option<Job> {
        let injected = || if look_outside { self.take_injected(worker) } else { None };
        worker.deque.pop().or_else(injected).or_else(|| self.steal(worker))
    }

    /// Takes a block of jobs out of the injector: the oldest to run, the rest into the own queue,
    /// where the oldest come first for the owner and the newest for thieves.
    fn take_injected(&self, worker: &WorkerLocal) -> Option<Job> {
        let block = &mut *worker.block.borrow_mut();
        self.injector.take(block);
        let first = block.pop_front();
        while let Some(job) = block.pop_back() {
            worker.deque.push(job);
        }
        first
    }

    /// Takes the job at this address out of the queue into which this thread has just put it, if it
    /// is the newest there, so that no spent entry stays behind for the workers to stumble over.
    pub(crate) fn take_back(&'static self, address: usize) -> Option<Job> {
        let is_wanted = |job: &Job| Arc::as_ptr(job).addr() == address;
        thread::with_worker(self, |worker| match worker {
            None => self.injector.pop_newest_if(is_wanted),
            Some(worker) => {
                let job = worker.deque.pop()?;
                if is_wanted(&job) {
                    return Some(job);
                }
                worker.deque.push(job);
                None
            }
        })
    }

    /// The queues of all workers, without a lock as long as they are the same as the last time.
    fn stealers<'w>(&self, worker: &'w WorkerLocal) -> Ref<'w, Arc<[Stealer<Job>]>> {
        let version = self.stealers_version.load(Ordering::Acquire);
        if worker.stealers_version.replace(version) != version {
            *worker.stealers.borrow_mut() = self.stealers.read().clone();
        }
        worker.stealers.borrow()
    }

    /// Whether there is anything in the queue of a worker.
    fn has_queued(&self, worker: &WorkerLocal) -> bool {
        self.stealers(worker).iter().any(|stealer| !stealer.is_empty())
    }

    fn steal(&'static self, worker: &WorkerLocal) -> Option<Job> {
        let stealers = self.stealers(worker);
        // xorshift64: where to start, so that thieves spread
        let mut random = worker.random.get();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        worker.random.set(random);
        let start = random as usize % stealers.len().max(1);
        let order = (start..stealers.len()).chain(0..start);
        for victim in order.filter(|victim| *victim != worker.index) {
            loop {
                match stealers[victim].steal_batch_and_pop(&worker.deque) {
                    Steal::Success(job) => {
                        self.count(|c| &c.stolen);
                        return Some(job);
                    }
                    Steal::Empty => break,
                    Steal::Retry => {}
                }
            }
        }
        None
    }

    /// Takes a queued job, from wherever.
    fn any_job(&self) -> Option<Job> {
        if let Some(job) = self.injector.pop() {
            return Some(job);
        }
        let stealers = self.stealers.read().clone();
        loop {
            match stealers.iter().map(Stealer::steal).collect::<Steal<Job>>() {
                Steal::Success(job) => return Some(job),
                Steal::Empty => return None,
                Steal::Retry => {}
            }
        }
    }

    /// Ends everything. See `Runtime::shutdown` for what callers see; the steps:
    ///
    /// 1. From here on every job that is run fails instead of running.
    /// 2. Actors die, unfinished futures fail, applicants are let go: whoever waits for them wakes.
    /// 3. Queued jobs are run, that is failed; so are the dependents that this makes ready.
    /// 4. Threads find no more work and end. Tasks that run are waited for, up to the time limit.
    /// 5. Nobody is left to run anything. What comes late, from a timer or another runtime, fails on
    ///    the thread that brings it.
    ///
    /// Returns whether everything ended in time.
    pub(crate) fn close(&'static self, limit: Option<Duration>) -> bool {
        let until = limit.map(|limit| Instant::now() + limit);
        self.flags.fetch_or(flag::STOPPING, Ordering::SeqCst);
        #[cfg(feature = "cluster")]
        if let Some(client) = self.client.get() {
            client.close();
        }
        // On one of our own threads we cannot wait for all of them.
        let inside = thread::frames().iter().any(|node| std::ptr::eq(node.meta().core, self))
            || thread::with_worker(self, |worker| worker.is_some());
        #[cfg(feature = "cluster")]
        let inside = inside || crate::cluster::is_receiver();
        if inside {
            self.drain();
            self.close_later();
            return false;
        }
        loop {
            self.drain();
            self.deterministic.close();
            let is_over = self.is_over_elsewhere();
            let mut threads = self.threads.lock();
            if threads.alive == 0 && is_over {
                break;
            }
            // Running tasks may still submit and block; look again from time to time, and when the last ends.
            self.threads_ended.wait_for(&mut threads, Duration::from_millis(1));
            let has_ended = threads.alive == 0 && is_over;
            drop(threads);
            if until.is_some_and(|until| Instant::now() >= until) && !has_ended {
                self.leave();
                return false;
            }
        }
        self.flags.fetch_or(flag::CLOSED, Ordering::SeqCst);
        self.drain();
        self.leave();
        *self.stealers.write() = Arc::new([]);
        *self.recorder.write() = None;
        true
    }

    /// Ends it on another thread.
    pub(crate) fn close_later(&'static self) {
        let rest = std::thread::Builder::new().name("outray-close".into()).spawn(move || self.close(None));
        if let Err(error) = rest {
            tracing::error!(%error, "cannot start a thread to end the runtime; what still waits for it may hang");
        }
    }

    /// Whether what has been sent to a cluster has ended.
    pub(crate) fn is_over_elsewhere(&'static self) -> bool {
        #[cfg(feature = "cluster")]
        if let Some(client) = self.client.get() {
            return client.is_over();
        }
        true
    }

    /// Leaves the cluster, if it is on one.
    fn leave(&'static self) {
        #[cfg(feature = "cluster")]
        if let Some(client) = self.client.get() {
            client.shut_down();
            client.leave();
        }
    }

    fn drain(&'static self) {
        #[cfg(feature = "cluster")]
        if let Some(client) = self.client.get() {
            client.close_streams();
        }
        let names = std::mem::take(&mut *self.names.lock());
        drop(names);
        let actors: Vec<_> = self.actors.lock().drain().filter_map(|(_, actor)| actor.upgrade()).collect();
        for actor in actors {
            actor.kill("its runtime has shut down");
        }
        let mut suspended: Vec<_> = self.suspended.lock().drain().filter_map(|(_, node)| node.upgrade()).collect();
        // Tasks before what they wait for, so that they end where they wait instead of going on with an error.
        suspended.sort_by_key(|node| (node.kind() == "object", node.meta().id));
        for node in suspended {
            node.fail(Arc::new(self.shutdown_error(node.label())));
        }
        for applicant in self.withdraw_applicants() {
            run(applicant.granted(super::resources::Grant::nothing()));
        }
        while let Some(job) = self.any_job().or_else(|| self.deterministic.any_job()) {
            run(job);
        }
        while let Some(sleeper) = self.idle.pop(Place::Elsewhere) {
            self.idle.stand_up(0);
            sleeper.send(None);
        }
    }
}

/// Counts a thread out when it ends, however it ends.
struct Ended {
    core: &'static Core,
    index: usize,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut threads = self.core.threads.lock();
        threads.alive -= 1;
        threads.free_indices.push(self.index);
        if threads.alive == 0 {
            self.core.threads_ended.notify_all();
        }
    }
}

/// Runs a job. Bodies catch their own panics; what comes here is a panic in the destructor of a
/// value, which must not take the worker with it.
pub(crate) fn run(job: Job) {
    contain(|| job.run());
}
