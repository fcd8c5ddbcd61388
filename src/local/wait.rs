//! Waiting for results without wasting a core and without hanging.
//!
//! A thread that asks for a result first *helps*: it runs what it waits for, if that has not
//! started, or what that waits for, and so on. It never runs anything else, because the user's
//! code further up the stack may hold locks; what it waits for must run anyway before it can go
//! on. When there is nothing left that it may run it blocks, and gives its seat to another thread. In a driver of a
//! cluster's it does the I/O then, by which the result comes (`cluster::turns`).
//!
//! A task that is blocked for a while looks for a cycle: the tasks that are blocked, what each waits
//! for, and what those need in turn. Whoever closes a cycle finds it, because all others are entered in the
//! table already; it gets [`Error::WaitCycle`] and the others wait for it in peace. In a process of a cluster's the table
//! is part of a larger one (`elsewhere`).

#[cfg(feature = "cluster")]
pub(crate) mod elsewhere;

use super::{
    Core, Job, flag,
    idle::{Place, SEAT},
    node::{Blocker, Help, Node},
    slot::Waiter,
    thread::{self, Parker},
};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Rounds of looking before a thread parks: first about 1 us of spinning, then a few times around
/// with the other threads of this CPU. Together less than what parking and waking cost.
const SPIN_ROUNDS: u32 = 50;
const YIELD_ROUNDS: u32 = 8;

/// A wait that lasts longer looks for a cycle. Most do not, and the search may visit all that waits.
const PATIENCE: Duration = Duration::from_millis(2);

/// Blocks until `node` is done.
pub(crate) fn wait(node: &Arc<dyn Node>, timeout: Option<Duration>) -> Result<()> {
    if node.is_done() {
        return Ok(());
    }
    let core = node.meta().core;
    if core.has(flag::DETERMINISTIC) {
        return core.deterministic.wait(core, node, timeout);
    }
    // Whoever has a time limit must keep it, so it runs nothing of unknown length.
    if timeout.is_none() && !is_elsewhere(&**node) {
        help(core, node);
        if node.is_done() {
            return Ok(());
        }
    }
    block(node, timeout)
}

/// Runs `node` on this thread, after what it depends on, as far as nobody else runs them.
fn help(core: &'static Core, node: &Arc<dyn Node>) {
    let is_worker = thread::with_worker(core, |worker| worker.is_some());
    if !is_worker && !super::rayon::VISITORS_MAY_RUN {
        return;
    }
    // A thread from outside needs a seat for what it runs; a worker has one, unless it leased less.
    let visitor = thread::depth() == 0 && !is_worker;
    let seated = if visitor { core.idle.try_sit() } else { thread::seat() >= SEAT };
    if !seated {
        return;
    }
    if visitor {
        thread::set_seat(SEAT);
    }
    if let Some(job) = core.take_back(Arc::as_ptr(node).addr()) {
        run_job(core, job);
    }
    if !node.is_done() {
        help_further(node);
    }
    if visitor {
        leave_seat(core);
    }
}

/// A visitor goes.
fn leave_seat(core: &'static Core) {
    core.idle.give(thread::set_seat(0));
    if core.has_applicants() {
        core.admit();
    }
    core.notify_if_work(Place::Elsewhere);
}

/// Runs what was kept (see [`thread::keeping`]) on this thread, which is no worker.
///
/// # Errors
/// It is for others, because there is no seat for it, or it is not its turn.
#[cfg(feature = "cluster")]
pub(crate) fn visit(core: &'static Core, kept: thread::Kept) -> std::result::Result<(), thread::Kept> {
    let may_run = super::rayon::VISITORS_MAY_RUN && !core.has_injected();
    if !may_run || !kept.has_share && !core.idle.try_sit() {
        return Err(kept);
    }
    if kept.has_share {
        run_job(core, kept.job);
    } else {
        thread::set_seat(SEAT);
        run_job(core, kept.job);
        leave_seat(core);
    }
    Ok(())
}

fn run_job(core: &'static Core, job: Job) {
    let outer = thread::set_expected(0);
    stacker::maybe_grow(core.stack_size / 4 * 3, core.stack_size, || super::core::run(job));
    thread::set_expected(outer);
}

fn help_further(node: &Arc<dyn Node>) {
    match run_one(node, 0) {
        Help::First(first) => run_path(vec![node.clone(), first]),
        Help::Ran if !node.is_done() => run_path(vec![node.clone()]),
        Help::Ran | Help::Busy => {}
    }
}

/// Runs the last of the path, then the one before it, which waits for that one, and so on. All of
/// it is wanted, and nothing else is run.
fn run_path(mut path: Vec<Arc<dyn Node>>) {
    while let Some(top) = path.last() {
        if top.is_done() {
            path.pop();
            continue;
        }
        let below = path.len().checked_sub(2).map_or(0, |below| path[below].meta().id);
        match run_one(top, below) {
            Help::Ran => {}
            Help::First(node) => path.push(node),
            Help::Busy => break,
        }
    }
}

/// Runs `node` if it can; `below` is what this thread will run as soon as it is ready.
fn run_one(node: &Arc<dyn Node>, below: u64) -> Help {
    let outer = thread::set_expected(below);
    // It can count on three quarters of the stack that it would have on a thread of its own.
    let size = node.meta().core.stack_size;
    let helped = stacker::maybe_grow(size / 4 * 3, size, || node.clone().help());
    thread::set_expected(outer);
    helped
}

/// Whether another process makes it.
fn is_elsewhere(_node: &dyn Node) -> bool {
    #[cfg(feature = "cluster")]
    return _node.remote_id().is_some();
    #[cfg(not(feature = "cluster"))]
    false
}

fn block(node: &Arc<dyn Node>, timeout: Option<Duration>) -> Result<()> {
    // What comes from elsewhere takes longer than that.
    let rounds = if is_elsewhere(&**node) { 0 } else { SPIN_ROUNDS + YIELD_ROUNDS };
    for round in 0..rounds {
        if node.is_done() {
            return Ok(());
        }
        match round < SPIN_ROUNDS {
            true => std::hint::spin_loop(),
            false => std::thread::yield_now(),
        }
    }
    let parker = thread::parker();
    parker.reset();
    let waiter: Arc<dyn Waiter> = parker.clone();
    if !node.add_waiter(&waiter) {
        return Ok(());
    }
    let parked = park(node.meta().core, &parker, timeout, || node.is_done(), || Waits::enter(node));
    if node.is_done() {
        return Ok(());
    }
    node.remove_waiter(&waiter);
    parked.and_then(|()| Err(timed_out(node, timeout.unwrap_or_default())))
}

pub(crate) fn timed_out(node: &Arc<dyn Node>, after: Duration) -> Error {
    Error::Timeout { waiting_for: super::observe::describe(&**node), after }
}

/// Parks this thread until `done`, or until the time is up, while others use its seat. A wait that
/// lasts is entered in the table; an error from there ends it. One with a time limit is not: it
/// ends by itself, so it closes no cycle; nor is that of a thread that runs nothing. `of`: whose result it waits for.
fn park(
    of: &'static Core,
    parker: &Arc<Parker>,
    timeout: Option<Duration>,
    done: impl Fn() -> bool,
    enter: impl FnOnce() -> Result<Option<Waits>>,
) -> Result<()> {
    // A task may block on a handle of another runtime: its seat is in its own.
    let core = thread::current_core();
    #[cfg(feature = "cluster")]
    crate::cluster::reading::blocks();
    let seat = core.map(|core| core.lend_seat());
    #[cfg(feature = "cluster")]
    if let (Some(client), Some(seat)) = (core.and_then(|core| core.client.get()), seat) {
        client.lend(seat);
    }
    let until = timeout.or((thread::depth() > 0).then_some(PATIENCE));
    park_until(of, parker, until.and_then(|after| Instant::now().checked_add(after)), &done);
    let mut result = Ok(());
    if timeout.is_none() && !done() {
        match enter() {
            Ok(None) => park_until(of, parker, None, &done),
            Ok(Some(waits)) => {
                waits.listen(parker.clone());
                park_until(of, parker, None, &|| done() || waits.error().is_some());
                result = waits.error().map_or(Ok(()), Err);
            }
            Err(error) => result = Err(error),
        }
    }
    if let (Some(core), Some(seat)) = (core, seat) {
        #[cfg(feature = "cluster")]
        if let Some(client) = core.client.get() {
            client.reclaim(seat);
        }
        core.reclaim_seat(seat);
    }
    result
}

fn park_until(_of: &'static Core, parker: &Arc<Parker>, until: Option<Instant>, done: &impl Fn() -> bool) {
    #[cfg(feature = "cluster")]
    if let Some(turns) = _of.client.get().and_then(|client| client.turns()) {
        return turns.wait(parker, until, done);
    }
    while !done() && sleep(until) {
        parker.reset();
    }
}

/// Sleeps until this thread is told something, or until it is so late; `false`: it is.
pub(crate) fn sleep(until: Option<Instant>) -> bool {
    match until.map(|until| until.checked_duration_since(Instant::now())) {
        None => crate::sync::park(),
        Some(Some(left)) => std::thread::park_timeout(left),
        Some(None) => return false,
    }
    true
}

/// Counts how many of several nodes are done.
struct Countdown {
    left: AtomicUsize,
    parker: Arc<Parker>,
}

impl Waiter for Countdown {
    fn notify(self: Arc<Self>) {
        let before = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
        if before == Ok(1) {
            self.parker.unpark();
        }
    }

    fn is_quiet(&self) -> bool {
        true
    }
}

/// Blocks until `count` of `nodes` are done, or until the time is up.
pub(crate) fn wait_some(nodes: &[Arc<dyn Node>], count: usize, timeout: Option<Duration>) -> Result<()> {
    let done = || nodes.iter().filter(|node| node.is_done()).count();
    let missing = count.min(nodes.len()).saturating_sub(done());
    let Some(first) = nodes.first() else { return Ok(()) };
    if missing == 0 {
        return Ok(());
    }
    let core = first.meta().core;
    if core.has(flag::DETERMINISTIC) {
        return core.deterministic.wait_some(core, nodes, count, timeout);
    }
    if timeout.is_none() && count >= nodes.len() {
        nodes.iter().for_each(|node| node.wanted()); // what is elsewhere comes together
        return nodes.iter().try_for_each(|node| wait(node, None));
    }
    let parker = thread::parker();
    parker.reset();
    let countdown = Arc::new(Countdown { left: AtomicUsize::new(count.min(nodes.len())), parker: parker.clone() });
    let waiter: Arc<dyn Waiter> = countdown.clone();
    let registered: Vec<_> = nodes.iter().map(|node| node.add_waiter(&waiter)).collect();
    for _ in registered.iter().filter(|registered| !**registered) {
        countdown.clone().notify();
    }
    let enter = || Waits::enter_some(nodes, nodes.len() - count);
    let parked = park(core, &parker, timeout, || countdown.left.load(Ordering::Acquire) == 0, enter);
    for (node, registered) in nodes.iter().zip(registered) {
        if registered {
            node.remove_waiter(&waiter);
        }
    }
    parked
}

/// One entry of the table of who waits.
struct Waiting {
    /// What is blocked.
    node: Arc<dyn Node>,
    /// What it waits for; several if it is a future that awaits them together. All must end.
    waits: Vec<Wait>,
}

impl Waiting {
    /// Whether it keeps a call of this actor's from its turn. `shared`: only calls that run alone do.
    fn is_in_the_way(&self, of: u64, shared: bool) -> bool {
        self.node.actor().is_some_and(|(actor, side_by_side)| actor == of && !(shared && side_by_side))
    }

    /// Whether it is one of the calls of this concurrency group.
    fn takes_room(&self, of: u64, group: Option<&Arc<str>>) -> bool {
        let options = self.node.meta().options.as_ref();
        options.and_then(|o| o.group.as_ref()) == group && self.node.actor() == Some((of, true))
    }
}

/// A wait for all of some nodes, or for all but a few of them.
struct Wait {
    ticket: u64,
    targets: Vec<Arc<dyn Node>>,
    /// So many of the targets need never end.
    spare: usize,
}

#[derive(Default)]
struct Table {
    /// By the identifier of what is blocked. Only blocked tasks are here, so that nobody else pays.
    waiting: HashMap<u64, Waiting>,
    next_ticket: u64,
    #[cfg(feature = "cluster")]
    listeners: HashMap<u64, elsewhere::Listener>,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

/// Entries in the table of who waits; they are removed when this is dropped.
pub(crate) struct Waits {
    entered: Vec<u64>,
    ticket: u64,
}

impl Waits {
    /// Enters what runs on this thread as waiting for `target`, unless that closes a cycle.
    /// Outside tasks there is nothing to enter: nobody waits for the thread.
    pub(crate) fn enter(target: &Arc<dyn Node>) -> Result<Option<Waits>> {
        Waits::enter_some(std::slice::from_ref(target), 0)
    }

    /// The same for a wait that ends when all but `spare` of the targets have ended.
    fn enter_some(targets: &[Arc<dyn Node>], spare: usize) -> Result<Option<Waits>> {
        let frames = thread::frames();
        if frames.is_empty() {
            return Ok(None);
        }
        let mut guard = TABLE.lock();
        let table = guard.get_or_insert_default();
        let ticket = table.next_ticket;
        table.next_ticket += 1;
        // Each frame waits for the one that it runs on its own thread, and the innermost for the targets.
        for (index, node) in frames.iter().enumerate() {
            let wait = match frames.get(index + 1) {
                Some(inner) => Wait { ticket, targets: vec![inner.clone()], spare: 0 },
                None => Wait { ticket, targets: targets.to_vec(), spare },
            };
            let entry = table.waiting.entry(node.meta().id);
            entry.or_insert_with(|| Waiting { node: node.clone(), waits: Vec::new() }).waits.push(wait);
        }
        let entered = frames.iter().map(|node| node.meta().id).collect();
        let waits = Waits { entered, ticket };
        let mut search =
            Search { table: &table.waiting, goal: &waits.entered, path: Vec::new(), known: HashMap::new() };
        if !search.is_stuck(targets, spare) {
            return Ok(Some(waits));
        }
        // The cycle starts at the frame that it leads back to.
        let path = search.path;
        let back = path.last().map(|node| node.meta().id);
        let start = waits.entered.iter().position(|id| back == Some(*id)).unwrap_or(0);
        let others = path.iter().filter(|node| !waits.entered.contains(&node.meta().id));
        let labels = frames[start..].iter().chain(others).map(|node| node.label()).collect();
        drop(guard);
        drop(waits);
        Err(Error::WaitCycle { path: labels })
    }
}

/// All of the table is here.
#[cfg(not(feature = "cluster"))]
impl Waits {
    pub(crate) fn listen(&self, _: Arc<dyn Waiter>) {}

    pub(crate) fn error(&self) -> Option<Error> {
        None
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut gone = Vec::new();
        let mut guard = TABLE.lock();
        let table = guard.get_or_insert_default();
        for id in &self.entered {
            let Some(entry) = table.waiting.get_mut(id) else { continue };
            let ours = entry.waits.iter().position(|wait| wait.ticket == self.ticket);
            let wait = ours.map(|at| entry.waits.swap_remove(at));
            let over = entry.waits.is_empty().then(|| table.waiting.remove(id));
            gone.push((wait, over));
        }
        #[cfg(feature = "cluster")]
        let listener = table.listeners.remove(&self.ticket);
        drop(guard);
        #[cfg(feature = "cluster")]
        drop(listener);
        drop(gone); // outside the lock: these may be the last of their kind
    }
}

/// A search for what can never end before one of `goal` does.
struct Search<'a> {
    table: &'a HashMap<u64, Waiting>,
    goal: &'a [u64],
    /// From the start to where the search is; from start to goal when it succeeds.
    path: Vec<Arc<dyn Node>>,
    /// What is known of the nodes seen, and `false` for those being looked at.
    known: HashMap<u64, bool>,
}

impl Search<'_> {
    /// Whether a wait for all but `spare` of the targets cannot end.
    fn is_stuck(&mut self, targets: &[Arc<dyn Node>], spare: usize) -> bool {
        let here = self.path.len();
        let mut stuck = 0;
        for target in targets {
            if self.leads_to_goal(target) {
                stuck += 1;
                if stuck > spare {
                    return true;
                }
                self.path.truncate(here);
            }
        }
        false
    }

    fn leads_to_goal(&mut self, node: &Arc<dyn Node>) -> bool {
        let id = node.meta().id;
        if node.is_done() {
            return false;
        }
        if let Some(known) = self.known.get(&id) {
            return *known;
        }
        self.path.push(node.clone());
        self.known.insert(id, false);
        // Chains may be long.
        let leads = self.goal.contains(&id) || stacker::maybe_grow(64 << 10, 1 << 20, || self.is_blocked(node));
        self.known.insert(id, leads);
        if !leads {
            self.path.pop();
        }
        leads
    }

    /// Whether anything that `node` needs leads to the goal.
    fn is_blocked(&mut self, node: &Arc<dyn Node>) -> bool {
        let table = self.table;
        if let Some(waiting) = table.get(&node.meta().id)
            && waiting.waits.iter().any(|wait| self.is_stuck(&wait.targets, wait.spare))
        {
            return true;
        }
        node.blockers().into_iter().any(|blocker| match blocker {
            Blocker::Node(node) => self.leads_to_goal(&node),
            Blocker::Actor { id: actor, shared } => {
                let in_the_way = |waiting: &&Waiting| waiting.is_in_the_way(actor, shared);
                table.values().filter(in_the_way).any(|waiting| self.leads_to_goal(&waiting.node))
            }
            Blocker::Room { actor, group, limit } => {
                let runs = |waiting: &&Waiting| waiting.takes_room(actor, group.as_ref());
                let running: Vec<_> = table.values().filter(runs).map(|waiting| waiting.node.clone()).collect();
                self.is_stuck(&running, limit - 1)
            }
        })
    }
}
