//! A node: admits tasks, fetches their arguments, runs them, and keeps large results.
//!
//! # The way of a task
//! ```text
//! Submit --keep--> fetching args --all here--> ready --resources free--> running --> Finished
//!    '--pass on--> head            Assign, Stolen --^
//! ```
//! # Room
//! What is set aside for bundles of placement groups, and what tasks hold that stay, is not there for
//! others for good. Tasks that need some of it to be there go back to the head, after word of what room
//! there is. A bundle is reserved when it is free; until then nothing else starts. Tasks in a
//! bundle are given what was set aside, and wait for each other only.
//!
//! # Without a head
//! When the head dies what is here goes on, and what fits is kept. What would be passed on to the head is kept back,
//! until there is a new one. What was passed on to the last one may be lost: owners are told, ask for the tasks that
//! they think are here (`Check`), and send again those that are not.
//!
//! # Owners that close
//! What an owner that closes has here and no worker has got is given back as withdrawn, and what comes of it later, too.
//!
//! # Packs
//! A pack of tasks that are known to be quick waits and starts as one, for one CPU, and ends with the last of its tasks, whose
//! results the worker tells by themselves. It is stolen and passed on whole. Whatever else is to be done with a pack that
//! waits, it is taken apart before, so all that follows is about tasks.
//!
//! # Invariants
//! - What runs holds its demand, and all demands together fit the capacity.
//! - A ready task lets at most [`PASSES`] younger ones pass that need less; then it is waited for.
//! - Every task that came is told of to its owner once, as finished or as moved, unless the owner
//!   cancelled it, or died. One that stays is told of once more if it ends without being told to.
//! - What stays holds its demand until it has ended.
//! - What runs in a bundle fits the bundle; the bundle is given back when nothing runs in it any more.
//! - A copy of an object is announced to its owner, who frees it.

use super::{
    capacity::{Capacity, Demand},
    head::{BEAT, PACE},
    passed::Passed,
    protocol::{
        Arg, Bandwidth, Effects, FAR, Failure, HEAD, INLINE, Label, Load, Message, Nanos, ObjectId, Outcome, ProcessId,
        SHORT, Strategy, TaskSpec, lost, ms, us, waiting_time,
    },
    serving::{LARGE, Serving},
};
use crate::{
    gpu::{GpuLease, placement::Part},
    local::resources::WHOLE,
    observe::TaskState,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    ops::RangeInclusive,
    sync::Arc,
};

/// A task that would wait longer here is passed on to the head.
pub(super) const TOO_LONG: Nanos = ms(2);
/// So many may pass a task that needs more than is free.
const PASSES: u32 = 64;
/// So many of the ready tasks, from the oldest, are looked at for one that fits.
const WINDOW: usize = 256;
pub(crate) const OWNER_DIED: &str = "its owner died";
/// Tasks that take so long together are with their worker ahead of their turn, or so many while nothing is known of
/// their times.
const AHEAD_FOR: Nanos = ms(4);
const AHEAD: usize = 8;
/// While no task has ended, how long none has is taken for what they take from here on.
const SAYS_SOMETHING: Nanos = ms(5);
/// So many cancellations of tasks that are not here are remembered.
const EARLY: usize = 256;
/// A pack whose tasks take longer, all together, is taken apart, into packs of at least so many tasks or into tasks.
const QUICK: Nanos = ms(4);
const WORTH_A_PACK: u64 = 8;
/// So many of the tasks that wait for others here are looked at, to be handed out ahead.
const CHAINED: usize = 16;

/// What a node does with small results, which go to their owners with the message.
#[derive(Clone, Copy)]
pub(crate) struct Small {
    /// Of one with more bytes a copy stays, for tasks that come later; if one waits for it already, it does not go.
    pub(crate) short: u64,
    /// Of those copies the newest are kept, up to so many bytes.
    pub(crate) lately: u64,
    /// When an owner has not looked at so many, the next do not go to it any more, either, as long as there are no more
    /// bytes of them than `kept`. One that it looks at counts as much as [`Small::LOOK`] that it does not, and twice if it had to
    /// send for it: that takes so much longer than to send it along.
    pub(crate) unseen: u32,
    pub(crate) kept: u64,
}

impl Small {
    const LOOK: u32 = 16;
}

impl Default for Small {
    fn default() -> Small {
        Small { short: SHORT, lately: 16 << 20, unseen: 64, kept: 64 << 20 }
    }
}

/// What a node keeps of a small result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Keeps {
    /// It goes to its owner.
    Nothing,
    /// The same, and a copy stays.
    Copy,
    /// Its owner is told where it is.
    All,
}

/// A task and its attempt. A stopped attempt may still run when the next one comes to the same node.
type Key = (ObjectId, u32);

struct Task {
    spec: TaskSpec,
    /// Of a pack: which of its tasks have ended, a bit for each, how many of these did because they were given back, and how
    /// long the others took.
    ended: u128,
    given_back: u32,
    took: Nanos,
    /// Arguments that are not here yet.
    fetching: BTreeSet<ObjectId>,
    /// How many passed it.
    passed: u32,
    /// Since when it runs, and the devices it has.
    running: Option<(Nanos, Vec<Part>)>,
    /// Its worker has it, and runs it when others have ended; nothing is taken for it yet.
    is_ahead: bool,
    /// Others have been handed to its worker because it makes their arguments.
    is_needed: bool,
    /// It was told to stop; nobody wants to hear of it.
    stopped: bool,
    /// It has finished well, and goes on.
    stays: bool,
}

/// What is to be seen of a task.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) spec: &'a TaskSpec,
    /// How many arguments are not here yet.
    pub(crate) lacking: usize,
    /// When its worker got it.
    pub(crate) since: Option<Nanos>,
    /// That was ahead of its turn, which has not come.
    pub(crate) is_ahead: bool,
}

impl Seen<'_> {
    pub(crate) fn runs(&self) -> bool {
        self.since.is_some() && !self.is_ahead
    }

    /// What it does, as far as the node knows.
    pub(crate) fn state(&self) -> TaskState {
        match (self.since, self.lacking) {
            (Some(_), _) if self.is_ahead => TaskState::Queued,
            (Some(_), _) => TaskState::Running,
            (None, 0) if *self.spec.demand == Demand::cpus(WHOLE) => TaskState::Queued,
            (None, 0) => TaskState::WaitingForResources,
            (None, _) => TaskState::WaitingForArguments,
        }
    }
}

impl Task {
    /// Of a pack: how many of its tasks have not ended.
    fn left(&self) -> u32 {
        self.spec.count - self.ended.count_ones()
    }

    /// What is still to be made.
    fn objects(&self) -> impl Iterator<Item = ObjectId> + use<> {
        let ended = self.ended;
        self.spec.objects().enumerate().filter(move |(at, _)| ended >> at & 1 == 0).map(|(_, object)| object)
    }

    /// Whether its arguments, but for those that it waits for, are here still: they may have been freed since, because a
    /// task that made one was cancelled after it had ended here.
    fn has_arguments(&self, store: &BTreeMap<ObjectId, Stored>) -> bool {
        self.spec.args.iter().all(|arg| match arg {
            Arg::Object { id, .. } => store.contains_key(id) || self.fetching.contains(id),
            Arg::Inline(_) => true,
        })
    }

    fn seen(&self) -> Seen<'_> {
        let since = self.running.as_ref().map(|(since, _)| *since);
        Seen { spec: &self.spec, lacking: self.fetching.len(), since, is_ahead: self.is_ahead }
    }
}

/// An object here: its size, and the attempt of its task that made it.
type Stored = (u64, u32);

/// An object on its way here. Somebody wants it.
struct Fetch {
    wanted_by: BTreeSet<Key>,
    /// Processes that want it.
    askers: BTreeSet<ProcessId>,
    /// Who was asked for it: another node, or the owner for who has it. This node: a task makes it here.
    from: ProcessId,
    /// Others who are said to have it.
    others: Vec<ProcessId>,
    /// Those who were said to have it, and have not, or are dead.
    not: Vec<ProcessId>,
    /// Those who have it, but whose bytes did not come.
    failing: Vec<ProcessId>,
}

impl Fetch {
    fn new(from: ProcessId, others: Vec<ProcessId>) -> Fetch {
        let (wanted_by, askers) = (BTreeSet::new(), BTreeSet::new());
        Fetch { wanted_by, askers, from, others, not: Vec::new(), failing: Vec::new() }
    }
}

/// A bundle of a placement group.
type BundleKey = (ObjectId, u32);

/// Something that is set aside, or is going to be.
struct Bundle {
    demand: Demand,
    round: u32,
    /// What was taken, and what of it is free.
    held: Option<(Vec<Part>, Capacity)>,
    ready: VecDeque<Key>,
    running: u32,
    /// Nobody needs it any more.
    closing: bool,
}

pub(crate) struct Node {
    id: ProcessId,
    capacity: Capacity,
    free: Capacity,
    /// CPUs of running tasks that wait for others, and how much of that is in use meanwhile.
    lent: u32,
    overdraft: u32,
    /// Tasks that are with their worker ahead of their turn, the oldest first, each pack with how many it has; how many
    /// they are, and how many there may be.
    ahead: VecDeque<(Key, usize)>,
    all_ahead: usize,
    most_ahead: usize,
    /// What went to the head from here.
    passed: Passed,
    small: Small,
    /// Copies of small results, each with its attempt and size, the newest last; some may have been freed since.
    lately: VecDeque<(ObjectId, u32, u64)>,
    lately_bytes: u64,
    /// The same of small results that did not go to their owners.
    kept: VecDeque<(ObjectId, u32, u64)>,
    kept_bytes: u64,
    /// How many found no room among them since they were last looked through.
    found_no_room: usize,
    /// How many of those that they got, or could have got, owners have not looked at; fewer for those that they have.
    unseen: BTreeMap<ProcessId, u32>,
    /// Tasks that wait only for the results of other tasks here, the oldest first; and some that did.
    chained: VecDeque<Key>,
    /// Objects that somebody here waits for, and whose task has left without a result.
    astray: Vec<ObjectId>,
    /// What is wanted back from its worker, and for whom; nobody if it was cancelled since.
    recalled: BTreeMap<Key, Option<ProcessId>>,
    /// When the last task or pack ended.
    finished: Nanos,
    /// When the last task ended, in a pack or not, or something started when nothing ran.
    moved: Nanos,
    labels: Vec<Label>,
    /// What is not taken for good.
    room: Capacity,
    bundles: BTreeMap<BundleKey, Bundle>,
    /// Tasks that run and stay, or will, but for those in bundles.
    stayers: BTreeSet<Key>,
    tasks: BTreeMap<Key, Task>,
    /// How many of these are packs, and how many tasks there are in them, besides one in each.
    packs: usize,
    packed: u64,
    /// Those that are with a worker.
    started_packs: Vec<Key>,
    ready: VecDeque<Key>,
    /// How many of them need no CPU.
    cpuless: usize,
    running: u32,
    /// How many of these have finished, and stay.
    staying: u32,
    /// How many tasks there are that stay, or will, wherever they are on their way.
    actors: u32,
    /// How many of them are plain, and have a CPU taken.
    plain: u32,
    store: BTreeMap<ObjectId, Stored>,
    fetches: BTreeMap<ObjectId, Fetch>,
    serving: Serving,
    dead: BTreeSet<ProcessId>,
    mean: Nanos,
    /// Now, and as the head was told.
    bandwidth: Bandwidth,
    told_bandwidth: Bandwidth,
    assigned: u64,
    told: Nanos,
    changed: bool,
    /// How often it tells its load while that changes, as the head wishes.
    pace: Nanos,
    /// There is no head now; what is to be passed on waits.
    is_headless: bool,
    kept_back: Vec<TaskSpec>,
    /// Those that waited so, and were passed on to the head that is there.
    passed_on: BTreeSet<Key>,
    /// Who had tasks here.
    owners: BTreeSet<ProcessId>,
    /// Owners of which nothing starts any more.
    closing: BTreeSet<ProcessId>,
    /// Attempts that were not here when they were cancelled: what the head or another node has sent comes later than what
    /// the owner says. The oldest first.
    early: VecDeque<(ObjectId, RangeInclusive<u32>)>,
}

impl Node {
    pub(crate) fn new(id: ProcessId, capacity: Capacity, labels: Vec<Label>, out: &mut Effects) -> Self {
        let (load, bundles) = (Load::default(), Vec::new());
        out.send(HEAD, Message::JoinNode { capacity: capacity.clone(), labels: labels.clone(), load, bundles });
        Node {
            id,
            free: capacity.clone(),
            lent: 0,
            overdraft: 0,
            ahead: VecDeque::new(),
            all_ahead: 0,
            most_ahead: 0,
            passed: Passed::default(),
            small: Small::default(),
            lately: VecDeque::new(),
            lately_bytes: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            found_no_room: 0,
            unseen: BTreeMap::new(),
            chained: VecDeque::new(),
            astray: Vec::new(),
            recalled: BTreeMap::new(),
            finished: 0,
            moved: 0,
            labels,
            room: capacity.clone(),
            capacity,
            bundles: BTreeMap::new(),
            stayers: BTreeSet::new(),
            tasks: BTreeMap::new(),
            packs: 0,
            packed: 0,
            started_packs: Vec::new(),
            ready: VecDeque::new(),
            cpuless: 0,
            running: 0,
            staying: 0,
            actors: 0,
            plain: 0,
            store: BTreeMap::new(),
            fetches: BTreeMap::new(),
            serving: Serving::default(),
            dead: BTreeSet::new(),
            mean: 0,
            bandwidth: Bandwidth::default(),
            told_bandwidth: Bandwidth::default(),
            assigned: 0,
            told: 0,
            changed: false,
            pace: PACE,
            is_headless: false,
            kept_back: Vec::new(),
            passed_on: BTreeSet::new(),
            owners: BTreeSet::new(),
            closing: BTreeSet::new(),
            early: VecDeque::new(),
        }
    }

    /// The head is gone.
    pub(crate) fn head_is_gone(&mut self) {
        self.is_headless = true;
        self.passed_on.clear();
    }

    /// There is a head again, which knows nothing of what is here.
    pub(crate) fn join_again(&mut self, now: Nanos, out: &mut Effects) {
        self.is_headless = false;
        (self.assigned, self.pace) = (0, PACE);
        // What is not set aside yet it will ask for again.
        self.bundles.retain(|_, bundle| bundle.held.is_some());
        self.measure();
        let bundles = self.bundles.iter().filter(|(_, bundle)| !bundle.closing);
        let bundles = bundles.map(|((group, number), bundle)| (*group, *number, bundle.round)).collect();
        let (capacity, labels, load) = (self.capacity.clone(), self.labels.clone(), self.load());
        out.send(HEAD, Message::JoinNode { capacity, labels, load, bundles });
        for spec in std::mem::take(&mut self.kept_back) {
            self.passed_on.extend(spec.objects().map(|task| (task, spec.attempt)));
            out.send(HEAD, Message::Place(spec));
        }
        for owner in &self.owners {
            out.send(*owner, Message::Anew);
        }
        self.start(now, out);
    }

    /// Tells an owner which of these are not here.
    fn check(&self, tasks: Vec<Key>, out: &mut Effects) {
        let is_here = |key: &Key| {
            let is_packed = || self.pack_of(key.0).is_some_and(|(pack, _)| pack.1 == key.1);
            let waits = || self.kept_back.iter().any(|spec| spec.contains(key.0) && spec.attempt == key.1);
            self.tasks.contains_key(key) || self.passed_on.contains(key) || is_packed() || waits()
        };
        for (task, attempt) in tasks.into_iter().filter(|key| !is_here(key)) {
            out.send(task.owner, Message::Lacks { task, attempt });
        }
    }

    pub(crate) fn handle(&mut self, now: Nanos, from: ProcessId, message: Message, out: &mut Effects) {
        match message {
            Message::Submit(spec) => return self.comes(now, spec, Node::submitted, out),
            Message::Assign(spec) => {
                self.assigned += 1;
                return self.comes(now, spec, Node::keep, out);
            }
            Message::Granted(spec) => return self.comes(now, spec, Node::keep, out),
            Message::Stolen(spec) => {
                self.confirm(&spec, out);
                self.keep(spec, out);
            }
            Message::Cancel { task, attempt } => self.cancel(task, 0..=attempt, out),
            Message::Retire { task, attempt } => self.cancel(task, attempt..=attempt, out),
            Message::Close { .. } => self.withdraw(from, out),
            Message::Steal { thief, capacity, most } => self.give_away(now, thief, (&capacity, most), out),
            Message::Pull { object } => self.asked(object, from, out),
            Message::Pulled { object, is_well } => {
                let next = self.serving.ends(object, from, is_well);
                next.here.into_iter().for_each(|to| self.push(object, to, out));
                next.there.into_iter().for_each(|to| out.send(to, Message::Elsewhere { object, at: from }));
            }
            Message::Elsewhere { object, at } => self.ask_elsewhere(object, from, at, out),
            Message::Pushed { object, size, attempt } => {
                if let Some(fetch) = self.fetches.remove(&object)
                    && !self.dead.contains(&object.owner)
                {
                    // It may have been made here meanwhile. Then its owner has been told, and may have it freed.
                    if let Entry::Vacant(place) = self.store.entry(object) {
                        place.insert((size, attempt));
                        out.send(object.owner, Message::Holds { object, attempt });
                    }
                    self.arrived(object, fetch, out);
                }
                if size >= LARGE {
                    out.send(from, Message::Pulled { object, is_well: self.store.contains_key(&object) });
                }
            }
            Message::Want { object, holders } => self.wanted(from, object, holders, out),
            Message::Gone { object } => self.ask_next(object, from, out),
            Message::Located { object, holders } => {
                // What is not the result of a task (`put`) may have been made here meanwhile.
                if self.store.contains_key(&object) {
                    if let Some(fetch) = self.fetches.remove(&object) {
                        self.arrived(object, fetch, out);
                    }
                } else if let Some(fetch) = self.fetches.get_mut(&object) {
                    fetch.others = holders;
                    self.ask_next(object, object.owner, out);
                }
            }
            Message::Lost { object, why } => self.does_not_come(object, from, &why, out),
            Message::Check { tasks } => self.check(tasks, out),
            // Nothing can start because of these two, which are many.
            Message::Seen { object } => return self.was_seen(object, true),
            Message::Free { object, attempt, unseen } => {
                self.was_seen(object, !unseen);
                return self.free_object(object, attempt, out);
            }
            Message::Pace { every } => self.pace = every,
            Message::Reserve { group, bundle, round, demand } => self.reserve((group, bundle), round, demand, out),
            Message::Unreserve { group, bundle } => self.unreserve((group, bundle), out),
            Message::Dead { process } => self.buried(process, out),
            Message::Fenced => out.fenced = true,
            _ => {}
        }
        self.start(now, out);
    }

    /// When [`Node::tick`] has something to do next.
    pub(crate) fn next_tick(&self) -> Nanos {
        let is_stuck = self.running > self.staying && self.count() > u64::from(self.running);
        self.told
            + match self.changed {
                true => self.pace.min(BEAT),
                // The longer nothing has ended, the less news is it that nothing has since.
                false if is_stuck || !self.ahead.is_empty() => {
                    self.told.saturating_sub(self.moved).clamp(self.pace.min(BEAT), BEAT)
                }
                false => BEAT,
            }
    }

    /// Tells the head of the load, when it is time.
    pub(crate) fn tick(&mut self, now: Nanos, out: &mut Effects) {
        if now >= self.next_tick() {
            (self.told, self.told_bandwidth) = (now, self.bandwidth);
            self.changed = false;
            out.send(HEAD, Message::Load(Load { mean: self.mean_now(now), ..self.load() }));
        }
    }

    /// A large object has come from another node, in this time.
    pub(crate) fn fetched(&mut self, bytes: u64, time: Nanos) {
        self.bandwidth.took(bytes, time);
        self.changed |= self.bandwidth.is_far_from(self.told_bandwidth);
    }

    fn load(&self) -> Load {
        let running = (self.running - self.staying).saturating_sub(self.ahead.len() as u32);
        Load {
            waiting: (self.count() as u32).saturating_sub(running + self.staying),
            running,
            staying: self.actors,
            mean: self.mean,
            bandwidth: self.bandwidth,
            assigned: self.assigned,
            room: (self.room != self.capacity).then(|| {
                let mut room = self.room.clone();
                room.gpus.inventory = Default::default(); // the head has it
                room
            }),
        }
    }

    fn tell_load(&self, out: &mut Effects) {
        out.send(HEAD, Message::Load(self.load()));
    }

    /// How long tasks take: those that have ended, or those that use CPUs, if none of them ends. A worker whose tasks wait for
    /// others runs those that it has ahead of their turn. That the first has not ended yet says nothing for a while: least of
    /// all that they are short.
    fn mean_now(&self, now: Nanos) -> Nanos {
        let used = self.room.cpu.saturating_sub(self.free.cpu) + self.overdraft;
        let since = if used > self.lent || !self.ahead.is_empty() { now.saturating_sub(self.moved) } else { 0 };
        if self.mean == 0 && since < SAYS_SOMETHING { 0 } else { self.mean.max(since) }
    }

    /// Counts what is not taken for good; takes back nothing that has been promised.
    fn measure(&mut self) {
        self.changed = true;
        let mut room = self.capacity.clone();
        for task in self.stayers.iter().filter_map(|key| self.tasks.get(key)) {
            if let Some((_, devices)) = &task.running {
                room.hold(&task.spec.demand, devices);
            }
        }
        let (held, wanted): (Vec<_>, Vec<_>) = self.bundles.values().partition(|bundle| bundle.held.is_some());
        for (bundle, devices) in held.iter().filter_map(|bundle| Some((bundle, &bundle.held.as_ref()?.0))) {
            room.hold(&bundle.demand, devices);
        }
        for bundle in wanted {
            room.take(&bundle.demand); // always fits when it is entered
        }
        self.room = room;
    }

    /// There is less room now: what does not fit any more goes back to the head.
    fn make_room(&mut self, out: &mut Effects) {
        self.measure();
        let is_too_big = |key: &&Key| self.tasks.get(key).is_some_and(|task| !self.room.fits(&task.spec.demand));
        let too_big: Vec<Key> = self.ready.iter().filter(is_too_big).copied().collect();
        for key in too_big {
            self.send_back(key, out);
        }
    }

    fn send_back(&mut self, key: Key, out: &mut Effects) {
        if let Some(task) = self.end(key) {
            self.pass_on(task.spec, out);
        }
    }

    fn pass_on(&mut self, spec: TaskSpec, out: &mut Effects) {
        if !self.is_headless {
            self.tell_load(out);
        }
        self.leave_to_head(spec, out);
    }

    /// Passes a task on, or keeps it back until there is a head.
    fn leave_to_head(&mut self, spec: TaskSpec, out: &mut Effects) {
        if self.is_headless {
            return self.kept_back.push(spec);
        }
        self.passed.remember(spec.id, spec.count, HEAD);
        out.send(HEAD, Message::Place(spec));
    }

    /// Whether a task fits what is not taken for good, or its bundle.
    fn has_room(&self, spec: &TaskSpec) -> bool {
        match bundle_of(spec) {
            None => self.room.fits(&spec.demand),
            Some(key) => self.bundles.get(&key).is_some_and(|bundle| {
                bundle.held.is_some() && !bundle.closing && Capacity::of(&bundle.demand).fits(&spec.demand)
            }),
        }
    }

    fn reserve(&mut self, key: BundleKey, round: u32, demand: Demand, out: &mut Effects) {
        self.assigned += 1;
        let ok = self.room.fits(&demand) && !self.dead.contains(&key.0.owner) && !self.bundles.contains_key(&key);
        if ok {
            let ready = VecDeque::new();
            self.bundles.insert(key, Bundle { demand, round, held: None, ready, running: 0, closing: false });
            self.make_room(out);
        } else {
            self.tell_load(out);
            out.send(HEAD, Message::Reserved { group: key.0, bundle: key.1, round, ok });
        }
    }

    fn unreserve(&mut self, key: BundleKey, out: &mut Effects) {
        let Some(bundle) = self.bundles.get_mut(&key) else { return };
        bundle.closing = true;
        for task in std::mem::take(&mut bundle.ready) {
            self.send_back(task, out);
        }
        self.close(key);
    }

    /// Gives a bundle back, if nobody needs it.
    fn close(&mut self, key: BundleKey) {
        if self.bundles.get(&key).is_some_and(|bundle| bundle.closing && bundle.running == 0)
            && let Some(bundle) = self.bundles.remove(&key)
        {
            if let Some((devices, _)) = &bundle.held {
                self.free.give(&bundle.demand, devices);
            }
            self.measure();
        }
    }

    /// A task comes. Many wait for others, behind those that start first: they change nothing for any that is here.
    fn comes(&mut self, now: Nanos, spec: TaskSpec, take: fn(&mut Node, TaskSpec, &mut Effects), out: &mut Effects) {
        let those_first = |node: &Node| (node.ready.len(), node.chained.len().min(CHAINED), node.astray.len());
        let (before, is_in_bundle) = (those_first(self), bundle_of(&spec).is_some());
        take(self, spec, out);
        if is_in_bundle || those_first(self) != before {
            self.start(now, out);
        }
    }

    /// A task of this node's own processes: the rule of who runs it is [`Node::should_keep`].
    fn submitted(&mut self, spec: TaskSpec, out: &mut Effects) {
        self.owners.insert(spec.id.owner);
        if self.closing.contains(&spec.id.owner) {
            spec.objects().for_each(|task| tell((task, spec.attempt), Outcome::Withdrawn, out));
        } else if self.should_keep(&spec) {
            self.keep(spec, out); // where its owner takes it to be
        } else {
            self.leave_to_head(spec, out);
        }
    }

    /// Tells the owner that it is here.
    fn confirm(&self, spec: &TaskSpec, out: &mut Effects) {
        let (task, count, attempt, hop, node) = (spec.id, spec.count, spec.attempt, spec.hop, self.id);
        out.send(task.owner, Message::Placed { task, count, attempt, hop, node, via: None });
    }

    fn should_keep(&self, spec: &TaskSpec) -> bool {
        let here = match &spec.strategy {
            // The head knows how many others have.
            Strategy::Default if spec.stays => self.is_headless,
            Strategy::Default => spec.count == 1 || self.is_quick(spec),
            Strategy::Node { node, .. } => *node == self.id,
            Strategy::Bundle { .. } => return self.has_room(spec),
            Strategy::Spread | Strategy::Labels { .. } => false,
        };
        let wait = waiting_time(self.count() - u64::from(self.staying), self.room.cpu, self.mean)
            .saturating_add(spec.fetch_time(self.id, self.bandwidth));
        let must = matches!(spec.strategy, Strategy::Node { .. }) || self.makes_argument(spec) || self.is_headless;
        // What it waits for was passed on; the head knows where to.
        let here = here && (must || !spec.awaited().any(|object| self.passed.node(object).is_some()));
        here && self.room.fits(&spec.demand) && (wait <= TOO_LONG || must)
    }

    /// Whether it waits for the result of a task here.
    fn makes_argument(&self, spec: &TaskSpec) -> bool {
        spec.args.iter().any(|arg| match arg {
            Arg::Object { id, .. } => self.alone(*id, 0..=u32::MAX).next().is_some() || self.pack_of(*id).is_some(),
            Arg::Inline(_) => false,
        })
    }

    fn keep(&mut self, spec: TaskSpec, out: &mut Effects) {
        self.changed = true;
        let key = (spec.id, spec.attempt);
        if self.dead.contains(&spec.id.owner) {
            return;
        }
        self.owners.insert(spec.id.owner);
        if self.closing.contains(&spec.id.owner) {
            return spec.objects().for_each(|task| tell((task, spec.attempt), Outcome::Withdrawn, out));
        }
        if spec.objects().any(|task| self.is_cancelled(task, spec.attempt)) {
            let tasks = spec.open().into_iter().filter(|spec| !self.is_cancelled(spec.id, spec.attempt));
            let tasks: Vec<_> = tasks.collect();
            return tasks.into_iter().for_each(|spec| self.keep(spec, out));
        }
        if !self.has_room(&spec) {
            return self.pass_on(spec, out);
        }
        if spec.count > 1 && !self.is_quick(&spec) {
            let most = Some(self.most_that_are_quick()).filter(|most| *most >= WORTH_A_PACK);
            let parts = spec.split(most.unwrap_or(1) as u32);
            return parts.into_iter().for_each(|spec| self.keep(spec, out));
        }
        self.enter(spec);
        self.fetch(key, out);
    }

    /// Whether nobody wants it any more, as has been said before it came.
    fn is_cancelled(&self, task: ObjectId, attempt: u32) -> bool {
        self.early.iter().any(|(cancelled, attempts)| *cancelled == task && attempts.contains(&attempt))
    }

    fn enter(&mut self, spec: TaskSpec) {
        self.packs += usize::from(spec.count > 1);
        self.packed += u64::from(spec.count - 1);
        self.actors += u32::from(spec.stays);
        let (key, fetching) = ((spec.id, spec.attempt), BTreeSet::new());
        let task = Task {
            spec,
            ended: 0,
            given_back: 0,
            took: 0,
            fetching,
            passed: 0,
            running: None,
            is_ahead: false,
            is_needed: false,
            stopped: false,
            stays: false,
        };
        self.tasks.insert(key, task);
    }

    /// Whether all tasks of a pack are thought to take no longer than one that is worth a place of its own. Workers are
    /// handed tasks ahead of their turn, or they are not real.
    fn is_quick(&self, spec: &TaskSpec) -> bool {
        u64::from(spec.count) <= self.most_that_are_quick()
    }

    /// The most tasks of a pack of which that is thought; 0: nothing is known of their times, or nobody is handed them ahead.
    fn most_that_are_quick(&self) -> u64 {
        if self.most_ahead > 0 { QUICK.checked_div(self.mean).unwrap_or(0) } else { 0 }
    }

    /// How many tasks there are, those in packs each for itself.
    fn count(&self) -> u64 {
        self.tasks.len() as u64 + self.packed
    }

    /// The pack that makes an object, and has not made it yet.
    fn pack_of(&self, object: ObjectId) -> Option<(Key, &Task)> {
        if self.packs == 0 {
            return None;
        }
        let (key, task) = self.tasks.range(..=(object, u32::MAX)).next_back()?;
        let is_pack = task.spec.count > 1 && task.spec.contains(object);
        (is_pack && task.ended >> (object.number - key.0.number) & 1 == 0).then_some((*key, task))
    }

    /// The attempts of a task that are no pack.
    fn alone(&self, task: ObjectId, attempts: RangeInclusive<u32>) -> impl Iterator<Item = (&Key, &Task)> {
        let range = (task, *attempts.start())..=(task, *attempts.end());
        self.tasks.range(range).filter(|(_, task)| task.spec.count == 1)
    }

    /// Which pack a task is in, that has not ended.
    pub(crate) fn pack(&self, task: ObjectId) -> Option<Key> {
        self.pack_of(task).map(|(key, _)| key)
    }

    /// Makes tasks of a pack that has not started.
    fn take_apart(&mut self, pack: Key) {
        let Some(at) = self.ready.iter().rposition(|ready| *ready == pack) else { return };
        let Some(task) = self.tasks.remove(&pack) else { return };
        self.packs -= 1;
        self.packed -= u64::from(task.spec.count - 1);
        let behind = self.ready.split_off(at + 1);
        self.ready.pop_back();
        for spec in task.spec.open() {
            self.ready.push_back((spec.id, spec.attempt));
            self.enter(spec);
        }
        self.ready.extend(behind);
    }

    /// Asks for the arguments of a task that are not here; if all are, it is ready.
    fn fetch(&mut self, key: Key, out: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&key) else { return };
        // An owner that is dead cannot be asked.
        let orphan = task.spec.args.iter().find_map(|arg| match arg {
            Arg::Object { id, .. } if self.dead.contains(&id.owner) => Some(*id),
            _ => None,
        });
        if let Some(object) = orphan {
            // It is neither ready nor with a worker, and no pack.
            if let Some(task) = self.tasks.remove(&key) {
                self.actors -= u32::from(task.spec.stays);
                task.fetching.iter().for_each(|other| self.not_wanted_by(*other, key));
                self.leaves(key.0);
                self.changed = true;
            }
            return tell(key, Outcome::Lacking(lost(object, OWNER_DIED)), out);
        }
        let is_missing = |arg: &Arg| match arg {
            Arg::Object { id, holders, .. } if !self.store.contains_key(id) => Some((*id, holders.clone())),
            _ => None,
        };
        let missing: Vec<_> = task.spec.args.iter().filter_map(is_missing).collect();
        if missing.is_empty() {
            return self.is_ready(key, out);
        }
        let mut new = Vec::new();
        let mut is_chained = is_plain(&task.spec);
        for (object, others) in missing {
            let is_made_here = others.is_empty() && self.is_made_here(object);
            let Some(task) = self.tasks.get_mut(&key) else { return };
            if !task.fetching.insert(object) {
                continue;
            }
            let fetch = self.fetches.entry(object).or_insert_with(|| {
                if !is_made_here {
                    new.push(object);
                }
                let from = if is_made_here { self.id } else { object.owner };
                Fetch::new(from, others)
            });
            fetch.wanted_by.insert(key);
            is_chained &= fetch.from == self.id && object.owner == key.0.owner;
        }
        if is_chained {
            self.chained.push_back(key);
        }
        for object in new {
            self.ask_next(object, object.owner, out);
        }
    }

    /// Whether a task here is making it.
    fn is_made_here(&self, object: ObjectId) -> bool {
        let mut attempts = self.alone(object, 0..=u32::MAX).map(|(_, task)| task);
        attempts.any(|task| !task.stopped && !task.spec.stays)
            || self.pack_of(object).is_some_and(|(_, pack)| !pack.stopped)
    }

    /// Whether it is on its way from a task here.
    fn comes_from_here(&self, object: ObjectId) -> bool {
        self.fetches.get(&object).is_some_and(|fetch| fetch.from == self.id)
    }

    /// Whether the task that makes it has been handed to the worker of those without GPUs, for good.
    fn is_with_worker(&self, object: ObjectId) -> bool {
        let mut attempts = self.alone(object, 0..=u32::MAX);
        attempts.any(|(key, task)| {
            let is_there = !task.spec.stays && task.spec.demand.gpu.is_none() && !self.recalled.contains_key(key);
            task.running.is_some() && !task.stopped && is_there
        }) || self.pack_of(object).is_some_and(|(key, pack)| {
            pack.running.is_some() && !pack.stopped && !self.recalled.contains_key(&(object, key.1))
        })
    }

    /// What was to be made here is not: it is asked for as others are.
    fn look_elsewhere(&mut self, out: &mut Effects) {
        while let Some(object) = self.astray.pop() {
            if self.is_made_here(object) || self.fetches.get(&object).is_none_or(|fetch| fetch.from != self.id) {
                continue;
            }
            match self.dead.contains(&object.owner) {
                true => self.lost(object, &lost(object, OWNER_DIED), out),
                false => self.ask_next(object, self.id, out),
            }
        }
    }

    /// A process here wants to have a value.
    fn wanted(&mut self, by: ProcessId, object: ObjectId, holders: Vec<ProcessId>, out: &mut Effects) {
        if self.dead.contains(&by) {
            return;
        }
        if self.store.contains_key(&object) {
            return out.send(by, Message::Here { object });
        }
        if self.dead.contains(&object.owner) {
            return out.send(by, Message::Lost { object, why: lost(object, OWNER_DIED) });
        }
        if let Some(fetch) = self.fetches.get_mut(&object) {
            fetch.askers.insert(by);
            return;
        }
        let is_made_here = holders.is_empty() && self.is_made_here(object);
        let from = if is_made_here { self.id } else { object.owner };
        self.fetches.insert(object, Fetch { askers: BTreeSet::from([by]), ..Fetch::new(from, holders) });
        if !is_made_here {
            self.ask_next(object, object.owner, out);
        }
    }

    /// `from` did not have it, or says who has: asks the next.
    fn ask_next(&mut self, object: ObjectId, from: ProcessId, out: &mut Effects) {
        let Some(fetch) = self.fetches.get_mut(&object) else { return };
        if fetch.from != from {
            return; // an answer of one that is not asked any more
        }
        if from != object.owner {
            fetch.not.push(from);
        }
        self.ask(object, out);
    }

    /// `from` has it, but its bytes did not come: asks another first, and that one again if there is none.
    pub(crate) fn did_not_come(&mut self, object: ObjectId, from: ProcessId, out: &mut Effects) {
        if let Some(fetch) = self.fetches.get_mut(&object).filter(|fetch| fetch.from == from) {
            fetch.failing.push(from);
            self.ask(object, out);
        }
    }

    /// It will never come: its owner says so, or this node, whose own fault that is; or another node cannot send what it has.
    fn does_not_come(&mut self, object: ObjectId, from: ProcessId, why: &Failure, out: &mut Effects) {
        match self.fetches.get(&object) {
            Some(fetch) if from != object.owner && from != self.id => match fetch.others.is_empty() {
                _ if fetch.from != from => {} // it is not asked any more
                true => self.lost(object, why, out),
                false => self.did_not_come(object, from, out),
            },
            _ => self.lost(object, why, out),
        }
    }

    /// Asks one of those that are said to have it, or the owner for more of them.
    fn ask(&mut self, object: ObjectId, out: &mut Effects) {
        let (us, dead) = (self.id, &self.dead);
        let Some(fetch) = self.fetches.get_mut(&object) else { return };
        let (not, others): (Vec<_>, Vec<_>) =
            fetch.others.drain(..).partition(|other| *other == us || dead.contains(other));
        fetch.not.extend(not);
        fetch.others = others;
        let mut choice = fetch.others.clone();
        choice.retain(|other| !fetch.failing.contains(other));
        if choice.is_empty() && !fetch.others.is_empty() {
            choice.clone_from(&fetch.others);
            fetch.failing.clear();
        }
        // Not always the first: then all would ask the owner's node, and nobody the others that have it.
        let pick = (us.0 as usize).checked_rem(choice.len()).map(|at| choice[at]);
        fetch.others.retain(|other| Some(*other) != pick);
        match pick {
            Some(holder) => {
                fetch.from = holder;
                out.send(holder, Message::Pull { object });
            }
            None => {
                fetch.from = object.owner;
                out.send(object.owner, Message::Locate { object, not: std::mem::take(&mut fetch.not) });
            }
        }
    }

    /// `from` has sent the object to `at`, and would rather not send it once more.
    fn ask_elsewhere(&mut self, object: ObjectId, from: ProcessId, at: ProcessId, out: &mut Effects) {
        let Some(fetch) = self.fetches.get_mut(&object).filter(|fetch| fetch.from == from) else { return };
        if self.dead.contains(&at) {
            return out.send(from, Message::Pull { object });
        }
        fetch.from = at;
        // If that one has let go of it.
        if !fetch.others.contains(&from) {
            fetch.others.push(from);
        }
        out.send(at, Message::Pull { object });
    }

    /// A node wants an object that is said to be here.
    fn asked(&mut self, object: ObjectId, by: ProcessId, out: &mut Effects) {
        if self.dead.contains(&by) {
            return; // nobody would say when it has it
        }
        if self.store.get(&object).is_none_or(|(size, _)| self.serving.asks(object, *size, by)) {
            self.push(object, by, out);
        }
    }

    /// Sends an object to a node, if it is here.
    fn push(&self, object: ObjectId, to: ProcessId, out: &mut Effects) {
        out.send(
            to,
            match self.store.get(&object) {
                Some((size, attempt)) => Message::Pushed { object, size: *size, attempt: *attempt },
                None => Message::Gone { object },
            },
        );
    }

    fn arrived(&mut self, object: ObjectId, fetch: Fetch, out: &mut Effects) {
        for asker in fetch.askers {
            out.send(asker, Message::Here { object });
        }
        for key in fetch.wanted_by {
            let Some(task) = self.tasks.get_mut(&key) else { continue };
            if task.fetching.remove(&object) && task.fetching.is_empty() {
                self.is_ready(key, out);
            }
        }
    }

    /// Why it will never have what it wants in its bundle. That is known here only, where the bundle's devices are.
    fn never(&self, key: Key) -> Option<String> {
        let spec = &self.tasks.get(&key)?.spec;
        let (number, bundle) = bundle_of(spec).and_then(|key| Some((key.1, self.bundles.get(&key)?)))?;
        let (devices, _) = bundle.held.as_ref().filter(|_| spec.demand.gpu.is_some())?;
        let lack = self.capacity.taken(&bundle.demand, devices).lack(&spec.demand)?;
        Some(format!("bundle {number} of its placement group is too small: {lack}"))
    }

    fn is_ready(&mut self, key: Key, out: &mut Effects) {
        let Some(task) = self.tasks.get(&key) else { return };
        let has_room = self.has_room(&task.spec);
        match bundle_of(&task.spec).map(|key| self.bundles.get_mut(&key)) {
            Some(Some(bundle)) => bundle.ready.push_back(key),
            Some(None) => {}
            None => {
                self.cpuless += usize::from(task.spec.demand.cpu == 0);
                self.ready.push_back(key);
            }
        }
        if !has_room {
            self.send_back(key, out);
        } else if let Some(why) = self.never(key) {
            out.send(key.0.owner, Message::Unplaceable { task: key.0, attempt: key.1, why: why.into() });
            self.end(key);
        }
    }

    /// Starts what can start.
    fn start(&mut self, now: Nanos, out: &mut Effects) {
        self.look_elsewhere(out);
        self.catch_up(now);
        let mut lacking = Vec::new();
        let mut is_full = false;
        for ((group, bundle), wanted) in self.bundles.iter_mut().filter(|(_, bundle)| bundle.held.is_none()) {
            let Some(devices) = self.free.take(&wanted.demand) else {
                is_full = true;
                continue;
            };
            let free = self.capacity.taken(&wanted.demand, &devices);
            wanted.held = Some((devices, free));
            let (group, bundle, round) = (*group, *bundle, wanted.round);
            out.send(HEAD, Message::Reserved { group, bundle, round, ok: true });
        }
        for bundle in self.bundles.values_mut() {
            let Some((_, free)) = bundle.held.as_mut().filter(|_| !bundle.ready.is_empty()) else { continue };
            let mut cpuless = bundle.ready.len();
            let (tasks, store) = (&mut self.tasks, &self.store);
            let started = start_from(&mut bundle.ready, free, (tasks, store), &mut cpuless, now, (&mut lacking, out));
            bundle.running += started.len() as u32;
            if self.running == self.staying {
                self.moved = now;
            }
            self.running += started.len() as u32;
        }
        if is_full {
            lacking.into_iter().for_each(|key| self.fetch(key, out));
            return; // what is given back next is for the bundle
        }
        // The CPUs of those that wait for others can be used, too.
        let spare = self.spare();
        self.free.cpu += spare;
        let (tasks, store) = (&mut self.tasks, &self.store);
        let ready = &mut self.ready;
        let started = start_from(ready, &mut self.free, (tasks, store), &mut self.cpuless, now, (&mut lacking, out));
        let unused = spare.min(self.free.cpu);
        self.free.cpu -= unused;
        self.overdraft += spare - unused;
        if self.running == self.staying {
            self.moved = now;
        }
        self.running += started.len() as u32;
        let before = self.stayers.len();
        for key in started {
            let Some(task) = self.tasks.get(&key) else { continue };
            self.plain += u32::from(is_plain(&task.spec));
            if task.spec.count > 1 {
                self.started_packs.push(key);
            }
            if task.spec.stays {
                self.stayers.insert(key);
            }
        }
        if self.stayers.len() > before {
            self.make_room(out);
        }
        self.start_ahead(now, &mut lacking, out);
        lacking.into_iter().for_each(|key| self.fetch(key, out));
    }

    /// Hands tasks to their worker ahead of their turn, up to so many: while one runs the next is on its way. The
    /// worker runs no more at a time than the node has CPUs.
    pub(crate) fn hand_out_ahead(&mut self, most: usize) {
        self.most_ahead = most;
    }

    /// Instead of what is usual.
    pub(crate) fn keep_small(&mut self, small: Small) {
        self.small = small;
    }

    /// What has become free is for those first that are with their worker already.
    fn catch_up(&mut self, now: Nanos) {
        while let Some((key, count)) = self.ahead.front() {
            if let Some(task) = self.tasks.get_mut(key).filter(|task| task.is_ahead) {
                let Some(devices) = self.free.take(&task.spec.demand) else { return };
                task.is_ahead = false;
                task.running = Some((now, devices));
                self.plain += 1;
            }
            self.all_ahead -= count;
            self.ahead.pop_front();
        }
    }

    /// As many as take a few milliseconds, so that they and their results come many at a time; of those that could start by themselves none unless all CPUs are taken by
    /// plain tasks: beside others, for which it takes no CPU itself, a worker would start them at once.
    fn start_ahead(&mut self, now: Nanos, lacking: &mut Vec<Key>, out: &mut Effects) {
        let most = AHEAD_FOR.checked_div(self.mean).map_or(AHEAD, |tasks| tasks as usize).min(self.most_ahead);
        while self.all_ahead < most && self.plain >= self.capacity.cpu / WHOLE {
            let Some(task) = self.ready.front().and_then(|key| self.tasks.get_mut(key)) else { break };
            if !is_plain(&task.spec) {
                break;
            }
            if !task.has_arguments(&self.store) {
                lacking.extend(self.ready.pop_front());
                continue;
            }
            task.is_ahead = true;
            task.running = Some((now, Vec::new()));
            self.running += 1;
            let count = task.spec.count as usize;
            out.starts.push(task.spec.clone());
            self.all_ahead += count;
            if let Some(key) = self.ready.pop_front() {
                self.ahead.push_back((key, count));
                self.started_packs.extend((count > 1).then_some(key));
            }
        }
        let mut at = 0;
        while self.all_ahead < most && at < self.chained.len().min(CHAINED) {
            let key = self.chained[at];
            match self.tasks.get(&key).filter(|task| !task.fetching.is_empty()) {
                // It will come from elsewhere.
                Some(task) if task.fetching.iter().any(|object| !self.comes_from_here(*object)) => {}
                Some(task) if !task.fetching.iter().all(|object| self.is_with_worker(*object)) => {
                    at += 1;
                    continue;
                }
                // What it does not wait for may have been freed since.
                Some(task) if !task.has_arguments(&self.store) => lacking.push(key),
                Some(_) => self.chain(key, now, out),
                None => {} // it waits no more
            }
            self.chained.remove(at);
        }
    }

    /// Hands a task to the worker that makes its arguments: it has them first, and without a message.
    fn chain(&mut self, key: Key, now: Nanos, out: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&key) else { return };
        task.is_ahead = true;
        task.running = Some((now, Vec::new()));
        self.running += 1;
        out.starts.push(task.spec.clone());
        self.ahead.push_back((key, 1));
        self.all_ahead += 1;
        for object in std::mem::take(&mut task.fetching) {
            self.not_wanted_by(object, key);
            let attempts = match self.pack(object) {
                Some(pack) => pack..=pack,
                None => (object, 0)..=(object, u32::MAX),
            };
            self.tasks.range_mut(attempts).for_each(|(_, maker)| maker.is_needed = true);
        }
    }

    fn not_wanted_by(&mut self, object: ObjectId, key: Key) {
        if let Some(fetch) = self.fetches.get_mut(&object) {
            fetch.wanted_by.remove(&key);
            if fetch.wanted_by.is_empty() && fetch.askers.is_empty() {
                self.fetches.remove(&object);
            }
        }
    }

    /// What could be taken of the CPUs of tasks that wait for others.
    fn spare(&self) -> u32 {
        let used = self.capacity.cpu - self.free.cpu + self.overdraft;
        self.lent.min(used).saturating_sub(self.overdraft)
    }

    /// So much of the CPUs of running tasks is not used while they wait for others.
    pub(crate) fn lend(&mut self, now: Nanos, cpu: u32, out: &mut Effects) {
        self.lent += cpu;
        self.start(now, out);
    }

    /// They go on. What was started meanwhile runs on, too; but nothing more is started until it has ended.
    pub(crate) fn reclaim(&mut self, cpu: u32) {
        self.lent = self.lent.saturating_sub(cpu);
    }

    /// What was taken is given back.
    fn give(&mut self, demand: &Demand, devices: &[Part]) {
        self.free.give(demand, devices);
        let paid = self.overdraft.min(self.free.cpu);
        self.overdraft -= paid;
        self.free.cpu -= paid;
    }

    /// Drops an object, unless it was made again since.
    fn free_object(&mut self, object: ObjectId, attempt: u32, out: &mut Effects) {
        if self.store.get(&object).is_some_and(|stored| stored.1 <= attempt) {
            self.store.remove(&object);
            self.serving.gone(object).for_each(|waiting| out.send(waiting, Message::Gone { object }));
        }
    }

    /// A process here puts an object into the store, and its owner enters it after that; `false`: the
    /// owner was declared dead.
    pub(crate) fn put(&mut self, object: ObjectId, size: u64) -> bool {
        let alive = !self.dead.contains(&object.owner);
        if alive {
            self.store.insert(object, (size, 0));
        }
        alive
    }

    /// The attempt that ran has ended. Said by whoever runs it, also after a stop.
    pub(crate) fn finished(&mut self, now: Nanos, task: ObjectId, attempt: u32, outcome: Outcome, out: &mut Effects) {
        self.finished_within(now, (task, attempt), Nanos::MAX, outcome, out);
    }

    /// The same. It took no longer than `within`, as its worker says, who does not count the way there and back.
    pub(crate) fn finished_within(&mut self, now: Nanos, key: Key, within: Nanos, outcome: Outcome, out: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&key) else { return };
        self.moved = now;
        let (stopped, objects) = (task.stopped, (task.spec.count > 1).then(|| task.objects()));
        let is_well = outcome.is_well();
        let is_large = matches!(outcome, Outcome::Stored { size } if size >= LARGE) || task.spec.has_large();
        if task.spec.stays && is_well {
            // Also one that was told to stop is there until it has ended.
            if !std::mem::replace(&mut task.stays, true) {
                self.staying += 1;
                self.changed = true;
            }
        } else if let Some(task) = self.end(key)
            && let Some((since, _)) = task.running
            && !task.spec.stays
            && !matches!(outcome, Outcome::Crashed { .. } | Outcome::Withdrawn)
        {
            // One that was with its worker ahead of its turn has waited there for the one before it.
            let in_a_row = within.min(now - self.finished.min(now));
            let in_a_row = in_a_row.saturating_mul(u64::from(self.capacity.cpu / 1_000).max(1));
            let took = if self.most_ahead > 0 { (now - since).min(in_a_row) } else { now - since };
            self.finished = now;
            self.takes(took);
        }
        // What comes next may need what this one has made, or had.
        if is_large {
            self.tell_load(out);
        }
        match objects {
            _ if stopped => {}
            // What is said of a pack is a failure. Those of its tasks that have ended are not told of again.
            Some(objects) => objects.for_each(|object| tell((object, key.1), outcome.clone(), out)),
            None => drop(self.tell_result(key, outcome, out)),
        }
        self.start(now, out);
    }

    /// One more task has taken so long.
    fn takes(&mut self, took: Nanos) {
        // One that had to wait for its CPU says little about the next.
        let took = if self.mean > 0 { took.min(8 * self.mean.max(us(10))) } else { took }.max(1);
        self.mean = if self.mean == 0 { took } else { (self.mean * 7 + took) / 8 };
    }

    /// A pack that has just started has no worker yet: its tasks start one by one.
    pub(crate) fn start_apart(&mut self, now: Nanos, pack: Key, out: &mut Effects) {
        let Some(task) = self.end(pack) else { return };
        for spec in task.spec.open() {
            let key = (spec.id, spec.attempt);
            self.enter(spec);
            self.is_ready(key, out);
        }
        self.start(now, out);
    }

    /// These tasks of a pack have ended, a bit for each, and their owner is told. `took`: all together, as their worker says. What has
    /// come to wait for nothing by that starts.
    pub(crate) fn ended_in_pack(&mut self, now: Nanos, pack: Key, (tasks, took): (u128, Nanos), out: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&pack) else { return };
        let before = task.left().saturating_sub(1);
        task.ended |= tasks;
        task.took += took;
        let left = task.left();
        self.packed -= u64::from(before - left.saturating_sub(1));
        self.moved = now;
        if !self.recalled.is_empty() {
            let has_ended =
                |object: ObjectId| task.spec.contains(object) && tasks >> (object.number - pack.0.number) & 1 > 0;
            self.recalled.retain(|key, _| key.1 != pack.1 || !has_ended(key.0));
        }
        if left == 0
            && let Some(task) = self.end(pack)
        {
            self.finished = now;
            if let Some(took) = task.took.checked_div(u64::from(task.spec.count - task.given_back)) {
                self.takes(took);
            }
        }
        self.start(now, out);
    }

    /// One task of a pack has ended, however, after so long; the node tells its owner.
    pub(crate) fn ended_by_itself(
        &mut self,
        now: Nanos,
        (pack, task): (Key, ObjectId),
        took: Nanos,
        outcome: Outcome,
        out: &mut Effects,
    ) {
        let (key, bit) = ((task, pack.1), 1 << (task.number - pack.0.number));
        if self.tasks.get(&pack).is_none_or(|pack| pack.stopped) {
            return self.ended_in_pack(now, pack, (bit, 0), out);
        }
        if !self.tell_result(key, outcome, out) {
            self.leaves(task);
        }
        self.ended_in_pack(now, pack, (bit, took), out);
    }

    /// Tells the owner how an attempt ended, and whoever waits here for what is in the store now; `false`: nothing is.
    fn tell_result(&mut self, (task, attempt): Key, outcome: Outcome, out: &mut Effects) -> bool {
        let (size, outcome) = match outcome {
            Outcome::Inline(value) => {
                let size = value.len() as u64;
                match self.keeps(task, attempt, size, out) {
                    Keeps::Nothing => (None, Outcome::Inline(value)),
                    Keeps::Copy => (Some(size), Outcome::Copied(value)),
                    Keeps::All => (Some(size), Outcome::Stored { size }),
                }
            }
            Outcome::Stored { size } => (Some(size), Outcome::Stored { size }),
            outcome => (None, outcome),
        };
        tell((task, attempt), outcome, out);
        if let Some(size) = size {
            self.is_stored(task, attempt, size, out);
        }
        size.is_some()
    }

    /// What stays here of a small result.
    fn keeps(&mut self, task: ObjectId, attempt: u32, size: u64, out: &mut Effects) -> Keeps {
        if self.stays_here(task, attempt, size) {
            Keeps::All
        } else if self.fetches.contains_key(&task) {
            Keeps::Copy // what waits for it here need not wait for its owner
        } else if self.is_worth_a_copy(task, size) {
            self.keep_lately(task, attempt, size, out);
            Keeps::Copy
        } else {
            Keeps::Nothing
        }
    }

    /// A task of a pack has made a small value, and is going to be [told](Node::ended_in_pack) as ended. Whoever asks tells its owner,
    /// and keeps what stays.
    pub(crate) fn made_in_pack(&mut self, (pack, task): (Key, ObjectId), size: u64, out: &mut Effects) -> Keeps {
        if self.tasks.get(&pack).is_none_or(|pack| pack.stopped) {
            return Keeps::Nothing;
        }
        let keeps = self.keeps(task, pack.1, size, out);
        if !matches!(keeps, Keeps::Nothing) {
            self.is_stored(task, pack.1, size, out);
        }
        keeps
    }

    /// Whether a small result of a task here does not go to its owner, because something waits for it here, or because
    /// its owner has not looked at those before it. Whoever asks keeps it, and says that it is stored.
    pub(crate) fn stays_here(&mut self, task: ObjectId, attempt: u32, size: u64) -> bool {
        self.is_worth_a_copy(task, size) && (self.fetches.contains_key(&task) || self.keep_here(task, attempt, size))
    }

    /// If an earlier attempt has made it here its owner may rely on that one.
    fn is_worth_a_copy(&self, object: ObjectId, size: u64) -> bool {
        size > self.small.short && !self.store.contains_key(&object)
    }

    /// A copy of a small result is kept until many others have come after it.
    fn keep_lately(&mut self, task: ObjectId, attempt: u32, size: u64, out: &mut Effects) {
        self.lately.push_back((task, attempt, size));
        self.lately_bytes += size;
        while self.lately_bytes > self.small.lately {
            let Some((object, attempt, size)) = self.lately.pop_front() else { return };
            self.lately_bytes -= size;
            if self.store.get(&object).is_some_and(|stored| stored.1 == attempt) {
                self.free_object(object, attempt, out);
                out.dropped.push(object);
            }
        }
    }

    /// Whether its owner has not looked at those before it, and there is room.
    fn keep_here(&mut self, task: ObjectId, attempt: u32, size: u64) -> bool {
        if self.unseen.get(&task.owner).is_none_or(|unseen| *unseen < self.small.unseen) {
            return false;
        }
        let store = &self.store;
        let is_there =
            |(object, attempt, _): &(ObjectId, u32, u64)| store.get(object).is_some_and(|stored| stored.1 == *attempt);
        while let Some(gone) = self.kept.front().filter(|oldest| !is_there(oldest)) {
            self.kept_bytes -= gone.2;
            self.kept.pop_front();
        }
        if self.kept_bytes + size > self.small.kept {
            // Others may have gone behind one that stays for long.
            self.found_no_room += 1;
            if self.found_no_room >= self.kept.len() {
                self.kept.retain(is_there);
                self.kept_bytes = self.kept.iter().map(|kept| kept.2).sum();
                self.found_no_room = 0;
            }
        }
        let stays = self.kept_bytes + size <= self.small.kept;
        if stays {
            self.kept.push_back((task, attempt, size));
            self.kept_bytes += size;
        }
        stays
    }

    /// Whether the owner has looked at an object's value.
    fn was_seen(&mut self, object: ObjectId, seen: bool) {
        let sizes = self.small.short + 1..=INLINE as u64;
        if self.store.get(&object).is_some_and(|(size, _)| sizes.contains(size)) {
            let unseen = self.unseen.entry(object.owner).or_default();
            // What was long ago counts no more.
            let most = 4 * self.small.unseen;
            *unseen = if seen { unseen.saturating_sub(Small::LOOK) } else { (*unseen + 1).min(most) };
        }
    }

    fn is_stored(&mut self, object: ObjectId, attempt: u32, size: u64, out: &mut Effects) {
        self.store.insert(object, (size, attempt));
        if let Some(fetch) = self.fetches.remove(&object) {
            self.arrived(object, fetch, out);
        }
    }

    /// One that stayed has ended after it was told to stop.
    pub(crate) fn ended(&mut self, now: Nanos, task: ObjectId, attempt: u32, out: &mut Effects) {
        self.end((task, attempt));
        self.start(now, out);
    }

    /// The process that runs this attempt has died, whether it had finished, and stayed, or not.
    pub(crate) fn crashed(&mut self, now: Nanos, task: ObjectId, attempt: u32, why: Arc<str>, out: &mut Effects) {
        match self.tasks.get(&(task, attempt)) {
            Some(Task { stays: true, stopped, .. }) => {
                if !stopped {
                    out.send(task.owner, Message::Ended { task, attempt, why });
                }
                self.ended(now, task, attempt, out);
            }
            _ => self.finished(now, task, attempt, Outcome::Crashed { why }, out),
        }
    }

    /// Takes a task out, its resources back, and forgets what was fetched for it alone.
    fn end(&mut self, key: Key) -> Option<Task> {
        let task = self.tasks.remove(&key)?;
        self.actors -= u32::from(task.spec.stays);
        if task.spec.count > 1 {
            self.packs -= 1;
            self.packed -= u64::from(task.left().saturating_sub(1));
            self.started_packs.retain(|pack| *pack != key);
        }
        if !self.recalled.is_empty() {
            for object in task.objects() {
                self.recalled.remove(&(object, key.1));
            }
        }
        if task.is_ahead {
            self.leaves_the_row(key);
        }
        let bundle_key = bundle_of(&task.spec);
        let bundle = bundle_key.map(|key| self.bundles.get_mut(&key));
        if let Some((_, devices)) = &task.running {
            match bundle {
                Some(Some(Bundle { held: Some((_, free)), running, .. })) => {
                    free.give(&task.spec.demand, devices);
                    *running -= 1;
                }
                Some(_) => {} // a bundle is there while something runs in it
                None if task.is_ahead => {}
                None => {
                    self.plain -= u32::from(is_plain(&task.spec));
                    self.give(&task.spec.demand, devices);
                }
            }
            self.running -= 1;
            self.staying -= u32::from(task.stays);
        } else if task.fetching.is_empty() {
            match bundle {
                Some(bundle) => bundle.into_iter().for_each(|bundle| bundle.ready.retain(|ready| *ready != key)),
                None => {
                    // Who is given away is near the end.
                    let at = self.ready.iter().rposition(|ready| *ready == key);
                    at.and_then(|at| self.ready.remove(at));
                    self.cpuless -= usize::from(task.spec.demand.cpu == 0);
                }
            }
        }
        if self.stayers.remove(&key) {
            self.measure();
        }
        if let Some(key) = bundle_key {
            self.close(key);
        }
        for object in &task.fetching {
            self.not_wanted_by(*object, key);
        }
        task.objects().for_each(|object| self.leaves(object));
        self.changed = true;
        Some(task)
    }

    /// It is not with a worker ahead of its turn any more.
    fn leaves_the_row(&mut self, key: Key) {
        let at = match self.ahead.front() {
            Some((first, _)) if *first == key => Some(0),
            _ => self.ahead.iter().rposition(|(other, _)| *other == key),
        };
        if let Some((_, count)) = at.and_then(|at| self.ahead.remove(at)) {
            self.all_ahead -= count;
        }
    }

    /// The task that was to make an object has gone, or will not make it.
    fn leaves(&mut self, object: ObjectId) {
        if !self.fetches.is_empty() && self.comes_from_here(object) {
            self.astray.push(object);
        }
    }

    /// Drops these attempts of a task. One that runs is told to stop, and holds its resources until it has.
    fn cancel(&mut self, id: ObjectId, attempts: RangeInclusive<u32>, out: &mut Effects) {
        if let Some(at) = self.kept_back.iter().position(|spec| spec.count > 1 && spec.contains(id)) {
            let pack = self.kept_back.swap_remove(at);
            self.kept_back.extend(pack.open());
        }
        self.kept_back.retain(|spec| spec.id != id || !attempts.contains(&spec.attempt));
        if let Some(pack) = self.pack(id) {
            if !attempts.contains(&pack.1) {
                return;
            }
            if self.tasks.get(&pack).is_some_and(|pack| pack.running.is_some()) {
                out.stops.push((id, pack.1)); // its worker knows whether it has ended
                if let Some(thief) = self.recalled.get_mut(&(id, pack.1)) {
                    *thief = None;
                }
                return self.leaves(id);
            }
            self.take_apart(pack);
        }
        let keys: Vec<Key> = self.alone(id, attempts.clone()).map(|(key, _)| *key).collect();
        if keys.is_empty() {
            if self.early.len() == EARLY {
                self.early.pop_front();
            }
            self.early.push_back((id, attempts));
            return;
        }
        keys.into_iter().for_each(|key| self.stop(key, out));
    }

    fn stop(&mut self, key: Key, out: &mut Effects) {
        match self.tasks.get_mut(&key) {
            Some(task) if task.running.is_some() => {
                if !std::mem::replace(&mut task.stopped, true) {
                    let objects = task.objects();
                    for object in objects {
                        out.stops.push((object, key.1));
                        self.leaves(object);
                    }
                }
            }
            _ => drop(self.end(key)),
        }
    }

    /// An owner closes: what of its is here and with no worker does not start.
    fn withdraw(&mut self, owner: ProcessId, out: &mut Effects) {
        if self.dead.contains(&owner) || !self.closing.insert(owner) {
            return;
        }
        let kept_back = self.kept_back.extract_if(.., |spec| spec.id.owner == owner);
        let kept_back: Vec<Key> =
            kept_back.flat_map(|spec| spec.objects().map(move |task| (task, spec.attempt))).collect();
        kept_back.into_iter().for_each(|key| tell(key, Outcome::Withdrawn, out));
        let of = |number| ObjectId { owner, number };
        let all = self.tasks.range((of(0), 0)..=(of(u64::MAX), u32::MAX));
        let waiting: Vec<Key> = all.filter(|(_, task)| task.running.is_none()).map(|(key, _)| *key).collect();
        for key in waiting {
            let Some(task) = self.end(key) else { continue };
            task.objects().for_each(|object| tell((object, key.1), Outcome::Withdrawn, out));
        }
    }

    /// Gives the youngest of the tasks that wait to another node.
    fn give_away(&mut self, now: Nanos, thief: ProcessId, (capacity, most): (&Capacity, u32), out: &mut Effects) {
        let mean = self.mean_now(now);
        let mut given = 0;
        let mut at = self.ready.len();
        while at > 0 && given < most {
            at -= 1;
            let key = self.ready[at];
            let count = self.tasks.get(&key).map_or(1, |task| task.spec.count);
            if count > 1 && count > most - given {
                self.take_apart(key);
                at += count as usize;
                continue;
            }
            let movable = self.tasks.get(&key).is_some_and(|task| {
                may_move(&task.spec, capacity) && self.is_worth_moving(&task.spec, task.objects(), mean, at)
            });
            if !movable || self.dead.contains(&thief) {
                continue;
            }
            let Some(task) = self.end(key) else { continue };
            given += count;
            self.hand_to(thief, task.spec, out);
        }
        self.recall(thief, (capacity, most - given), mean, out);
    }

    fn hand_to(&self, thief: ProcessId, mut spec: TaskSpec, out: &mut Effects) {
        spec.forget_holders(|holder| self.dead.contains(holder));
        spec.hop += 1;
        let (task, count, attempt, hop) = (spec.id, spec.count, spec.attempt, spec.hop);
        out.send(task.owner, Message::Placed { task, count, attempt, hop, node: thief, via: Some(self.id) });
        out.send(thief, Message::Stolen(spec));
    }

    /// Wants back what was handed to a worker ahead of its turn, when tasks were shorter than they are now: the last of
    /// them first. A pack is given back from its end, so what is left of it is its beginning.
    fn recall(&mut self, thief: ProcessId, (capacity, most): (&Capacity, u32), mean: Nanos, out: &mut Effects) {
        if most == 0
            || self.dead.contains(&thief)
            || waiting_time(self.all_ahead as u64 + self.packed, self.room.cpu, mean) < FAR
        {
            return;
        }
        let is_ahead = |key: &Key| self.tasks.get(key).is_some_and(|task| task.is_ahead);
        let running = self.started_packs.iter().copied().filter(|key| !is_ahead(key));
        let units = running.chain(self.ahead.iter().map(|(key, _)| *key).filter(is_ahead));
        let mut tasks = Vec::new();
        for key in units {
            let objects = self.tasks.get(&key).into_iter().flat_map(|task| task.objects());
            tasks.extend(objects.map(|object| (key, object)));
        }
        let mut recalled = 0;
        for (at, (key, object)) in tasks.into_iter().enumerate().rev() {
            let Some(task) = self.tasks.get(&key) else { continue };
            let is_movable = !task.stopped
                && !task.is_needed
                && (task.spec.count == 1 || object != key.0)
                && may_move(&task.spec, capacity)
                && self.is_worth_moving(&task.spec, std::iter::once(object), mean, at);
            if recalled == most || waiting_time(at as u64 + 1, self.room.cpu, mean) < FAR {
                break;
            }
            if is_movable && !self.recalled.contains_key(&(object, key.1)) {
                self.recalled.insert((object, key.1), Some(thief));
                out.recalls.push((object, key.1));
                recalled += 1;
            }
        }
    }

    /// A worker has given back a task that was recalled: it had not started, and will not.
    pub(crate) fn given_back(&mut self, now: Nanos, task: ObjectId, attempt: u32, out: &mut Effects) {
        let key = (task, attempt);
        let recalled = self.recalled.remove(&key);
        let (thief, is_cancelled) = (recalled.flatten(), recalled == Some(None));
        let spec = match self.pack(task).filter(|pack| pack.1 == attempt) {
            Some(pack) => {
                let Some(whole) = self.tasks.get_mut(&pack) else { return };
                whole.given_back += 1;
                let spec = whole.spec.member(task).filter(|_| !whole.stopped && !is_cancelled);
                self.leaves(task);
                let moved = self.moved;
                self.ended_in_pack(now, pack, (1 << (task.number - pack.0.number), 0), out);
                self.moved = moved; // nothing has come to its end
                spec
            }
            None => self.end(key).filter(|task| !task.stopped).map(|task| task.spec),
        };
        match (spec, thief) {
            (None, _) => {} // nobody wants it any more
            (Some(_), _) if self.closing.contains(&task.owner) => tell(key, Outcome::Withdrawn, out),
            (Some(spec), Some(thief)) if !self.dead.contains(&thief) => self.hand_to(thief, spec, out),
            (Some(spec), _) => self.keep(spec, out),
        }
        self.start(now, out);
    }

    /// Whether a task that so many others are ahead of is worth that what it needs is fetched from here, and what it makes if
    /// another waits for that here. Of a pack: those of its tasks that make these.
    fn is_worth_moving(
        &self,
        spec: &TaskSpec,
        makes: impl Iterator<Item = ObjectId>,
        mean: Nanos,
        ahead: usize,
    ) -> bool {
        let sizes = spec.args.iter().filter_map(|arg| match arg {
            Arg::Object { id, .. } => self.store.get(id).map(|(size, _)| *size),
            Arg::Inline(_) => None,
        });
        let (mut awaited, mut count) = (0, 0);
        for object in makes {
            awaited += Nanos::from(self.comes_from_here(object));
            count += 1;
        }
        let fetch_time = |size| self.bandwidth.fetch_time(size);
        let fetches = sizes.map(fetch_time).fold(awaited * fetch_time(0), Nanos::saturating_add);
        let wait = waiting_time(ahead as u64, self.room.cpu, mean);
        self.mean == 0 || fetches == 0 || fetches < (mean * count).max(wait.saturating_sub(FAR))
    }

    fn buried(&mut self, process: ProcessId, out: &mut Effects) {
        self.dead.insert(process);
        // It may have been an owner: its tasks and objects go.
        self.owners.remove(&process);
        self.unseen.remove(&process);
        self.closing.remove(&process);
        self.early.retain(|(task, _)| task.owner != process);
        self.kept_back.retain(|spec| spec.id.owner != process);
        let orphans: Vec<Key> = self.tasks.keys().filter(|key| key.0.owner == process).copied().collect();
        for key in orphans {
            self.stop(key, out);
        }
        // And wanted something.
        self.fetches.retain(|_, fetch| {
            fetch.askers.remove(&process);
            !fetch.wanted_by.is_empty() || !fetch.askers.is_empty()
        });
        let bundles: Vec<_> = self.bundles.keys().filter(|key| key.0.owner == process).copied().collect();
        for bundle in bundles {
            self.unreserve(bundle, out);
        }
        self.store.retain(|object, _| object.owner != process);
        for (object, next) in self.serving.buried(process) {
            self.push(object, next, out);
        }
        // Or a node: what it was asked for is asked of another.
        let asked: Vec<_> = self
            .fetches
            .iter()
            .filter(|(object, fetch)| fetch.from == process || object.owner == process)
            .map(|(object, _)| *object)
            .collect();
        for object in asked {
            match object.owner == process {
                true => self.lost(object, &lost(object, OWNER_DIED), out),
                false => self.ask_next(object, process, out),
            }
        }
    }

    /// An object will never come: the tasks that wait for it fail.
    fn lost(&mut self, object: ObjectId, why: &Failure, out: &mut Effects) {
        let Some(fetch) = self.fetches.remove(&object) else { return };
        for asker in fetch.askers {
            out.send(asker, Message::Lost { object, why: why.clone() });
        }
        for key in fetch.wanted_by {
            if self.end(key).is_some() {
                tell(key, Outcome::Lacking(why.clone()), out);
            }
        }
    }

    /// Whether it has been told that this process is dead.
    pub(crate) fn has_buried(&self, process: ProcessId) -> bool {
        self.dead.contains(&process)
    }

    /// What it holds: tasks, copies of objects, and objects on their way.
    pub(crate) fn holds(&self) -> (usize, usize, usize) {
        (self.count() as usize + self.kept_back.len(), self.store.len(), self.fetches.len())
    }

    /// Whether it sends large objects to other nodes, as far as it knows.
    pub(crate) fn is_serving(&self) -> bool {
        !self.serving.is_empty()
    }

    pub(crate) fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    pub(crate) fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// The tasks here.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = Seen<'_>> {
        self.tasks.values().map(Task::seen)
    }

    /// One of them.
    pub(crate) fn task(&self, id: ObjectId, attempt: u32) -> Option<Seen<'_>> {
        self.tasks.get(&(id, attempt)).map(Task::seen)
    }

    /// What a task here waits for, in its attempts.
    pub(crate) fn explain(&self, task: ObjectId) -> Vec<(Seen<'_>, Option<String>, String)> {
        let attempts = self.alone(task, 0..=u32::MAX);
        let attempts = attempts.map(|(key, task)| (*key, task)).chain(self.pack_of(task));
        let seen = attempts.map(|(key, task)| {
            let mut lacking = None;
            let what = match (&task.running, task.fetching.is_empty()) {
                (Some(_), _) if task.is_ahead => "is with its worker, which runs others before it".to_owned(),
                (Some(_), _) => "runs".to_owned(),
                (None, false) => {
                    let missing: Vec<_> = task.fetching.iter().map(|object| format!("{object:?}")).collect();
                    format!("waits for objects that are not here: {}", missing.join(", "))
                }
                (None, true) => match self.free.lack_now(&task.spec.demand) {
                    Some(lack) => {
                        let what = format!("waits for resources: {lack} now");
                        lacking = Some(lack);
                        what
                    }
                    None => "is about to start".to_owned(),
                },
            };
            (task.seen(), lacking, format!("attempt {} {what}", key.1))
        });
        let kept_back = self.kept_back.iter().filter(|spec| spec.contains(task)).map(|spec| {
            let seen = Seen { spec, lacking: 0, since: None, is_ahead: false };
            (seen, None, format!("attempt {} waits for the head to come back", spec.attempt))
        });
        seen.chain(kept_back).collect()
    }

    /// The devices that a running task has.
    pub(crate) fn leases(&self, task: ObjectId, attempt: u32) -> Vec<GpuLease> {
        self.capacity.gpus.leases(self.devices(task, attempt))
    }

    /// What of which devices a task here has.
    pub(crate) fn devices(&self, task: ObjectId, attempt: u32) -> &[Part] {
        let task = self.tasks.get(&(task, attempt));
        task.and_then(|task| task.running.as_ref()).map_or(&[], |(_, devices)| devices)
    }

    /// What is set aside: what each bundle has, and of which devices.
    pub(crate) fn reserved(&self) -> impl Iterator<Item = (ObjectId, u32, &Demand, &[Part])> + '_ {
        self.bundles.iter().filter_map(|((group, bundle), there)| {
            let (devices, _) = there.held.as_ref()?;
            Some((*group, *bundle, &there.demand, &devices[..]))
        })
    }

    /// What is not taken.
    pub(crate) fn free(&self) -> &Capacity {
        &self.free
    }

    /// Whether somebody here waits for it.
    pub(crate) fn fetches(&self, object: ObjectId) -> bool {
        self.fetches.contains_key(&object)
    }

    /// CPUs that nobody uses, in thousandths: those that are not taken, and those of tasks that wait for others.
    pub(crate) fn unused_cpu(&self) -> u32 {
        self.free.cpu + self.spare()
    }

    pub(crate) fn stores(&self, object: ObjectId) -> bool {
        self.store.contains_key(&object)
    }
}

/// Starts those of the ready tasks that fit, and says which. `cpuless` of them need no CPU, or fewer.
fn start_from(
    ready: &mut VecDeque<Key>,
    free: &mut Capacity,
    (tasks, store): (&mut BTreeMap<Key, Task>, &BTreeMap<ObjectId, Stored>),
    cpuless: &mut usize,
    now: Nanos,
    (lacking, out): (&mut Vec<Key>, &mut Effects),
) -> Vec<Key> {
    let mut started = Vec::new();
    let mut at = 0;
    while at < ready.len().min(WINDOW) && (free.cpu > 0 || *cpuless > 0) {
        let Some(task) = tasks.get_mut(&ready[at]) else { break }; // what is ready is there
        if !task.has_arguments(store) {
            *cpuless -= usize::from(task.spec.demand.cpu == 0);
            lacking.extend(ready.remove(at));
            continue;
        }
        match free.take(&task.spec.demand) {
            Some(devices) => {
                task.running = Some((now, devices));
                out.starts.push(task.spec.clone());
                *cpuless -= usize::from(task.spec.demand.cpu == 0);
                started.extend(ready.remove(at));
                for passed in ready.range(..at) {
                    if let Some(passed) = tasks.get_mut(passed) {
                        passed.passed += 1;
                    }
                }
            }
            None if task.passed >= PASSES => break,
            None => at += 1,
        }
    }
    started
}

/// Whether another node, with so much room, may run it instead.
fn may_move(spec: &TaskSpec, capacity: &Capacity) -> bool {
    matches!(spec.strategy, Strategy::Default) && capacity.fits(&spec.demand)
}

/// Whether it asks for nothing but a CPU, and ends.
fn is_plain(spec: &TaskSpec) -> bool {
    *spec.demand == Demand::cpus(WHOLE) && !spec.stays && bundle_of(spec).is_none()
}

/// The bundle that a task runs in.
fn bundle_of(spec: &TaskSpec) -> Option<BundleKey> {
    match spec.strategy {
        Strategy::Bundle { group, bundle, .. } => Some((group, bundle)),
        _ => None,
    }
}

fn tell((task, attempt): Key, outcome: Outcome, out: &mut Effects) {
    out.send(task.owner, Message::Finished { task, attempt, outcome });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pack;
    use crate::gpu::{GpuRequest, Inventory, placement::Devices};

    const US: ProcessId = ProcessId(1);
    const OTHER: ProcessId = ProcessId(2);
    const OWNER: ProcessId = ProcessId(100);
    const ASKER: ProcessId = ProcessId(200);
    const OBJECT: ObjectId = ObjectId { owner: OWNER, number: 9 };

    fn node() -> Node {
        let capacity = Capacity { cpu: 2_000, ..Capacity::default() };
        Node::new(US, capacity, Vec::new(), &mut Effects::default())
    }

    fn say(node: &mut Node, from: ProcessId, message: Message) -> Effects {
        let mut out = Effects::default();
        node.handle(0, from, message, &mut out);
        out
    }

    fn task(number: u64, stays: bool) -> TaskSpec {
        let (id, demand) = (ObjectId { owner: OWNER, number }, Arc::new(Demand::cpus(2_000)));
        let (strategy, args, body) = (Strategy::Default, Vec::new(), crate::cluster::wire::Blob::default());
        TaskSpec { id, attempt: 1, hop: 1, count: 1, demand, strategy, args, stays, body }
    }

    fn end(node: &mut Node, task: ObjectId) -> Effects {
        let mut out = Effects::default();
        node.finished(ms(90), task, 1, Outcome::Inline(Arc::from([])), &mut out);
        out
    }

    fn chained(number: u64, argument: u64) -> TaskSpec {
        let id = ObjectId { owner: OWNER, number: argument };
        let args = vec![Arg::Object { id, size: 0, holders: Vec::new() }];
        TaskSpec { args, demand: Arc::new(Demand::cpus(1_000)), ..task(number, false) }
    }

    #[test]
    fn what_waits_for_a_task_here_is_handed_out_with_it_or_asks_for_its_argument_when_that_has_gone() {
        let mut node = node();
        node.hand_out_ahead(8);
        let first = TaskSpec { demand: Arc::new(Demand::cpus(1_000)), ..task(1, false) };
        assert_eq!(say(&mut node, OWNER, Message::Submit(first.clone())).starts.len(), 1);
        for number in 2..5 {
            let out = say(&mut node, OWNER, Message::Submit(chained(number, number - 1)));
            assert_eq!((out.starts.len(), out.sends.len()), (1, 0), "{out:?}"); // nobody is asked for it
        }
        let out = end(&mut node, first.id);
        assert!(matches!(out.sends[..], [(OWNER, Message::Finished { .. })]));
        assert!(!node.stores(first.id));
        // One that asks for more waits for its argument here; its maker is cancelled, and the owner knows why.
        let wide = TaskSpec { demand: Arc::new(Demand::cpus(2_000)), ..chained(9, 4) };
        assert!(say(&mut node, OWNER, Message::Submit(wide)).sends.is_empty());
        let maker = ObjectId { owner: OWNER, number: 4 };
        let out = say(&mut node, OWNER, Message::Cancel { task: maker, attempt: 1 });
        assert!(matches!(&out.sends[..], [(OWNER, Message::Locate { object, .. })] if *object == maker));
        assert_eq!(out.stops, [(maker, 1)]);
        let why = lost(maker, OWNER_DIED);
        let out = say(&mut node, OWNER, Message::Lost { object: maker, why });
        assert!(matches!(&out.sends[..], [(OWNER, Message::Finished { outcome: Outcome::Lacking(_), .. })]));
        for number in 2..5 {
            end(&mut node, ObjectId { owner: OWNER, number });
        }
        assert_eq!((node.holds(), node.free().cpu, node.running), ((0, 0, 0), 2_000, 0));
    }

    #[test]
    fn what_no_worker_has_is_given_back_when_its_owner_closes() {
        /// The tasks that are withdrawn.
        fn withdrawn(out: &Effects) -> Vec<u64> {
            let tasks = out.sends.iter().filter_map(|(to, message)| match message {
                Message::Finished { task, outcome: Outcome::Withdrawn, .. } if *to == OWNER => Some(task.number),
                _ => None,
            });
            tasks.collect()
        }
        let mut node = node();
        assert_eq!(say(&mut node, HEAD, Message::Assign(task(1, false))).starts.len(), 1);
        say(&mut node, HEAD, Message::Assign(task(2, false)));
        say(&mut node, HEAD, Message::Assign(chained(3, 77)));
        let others = ObjectId { owner: ASKER, number: 1 };
        say(&mut node, HEAD, Message::Assign(TaskSpec { id: others, ..task(0, false) }));
        node.head_is_gone();
        let elsewhere = TaskSpec { strategy: Strategy::Spread, ..task(4, false) };
        say(&mut node, OWNER, Message::Submit(elsewhere));
        assert_eq!(withdrawn(&say(&mut node, OWNER, Message::Close { job: OWNER })), [4, 2, 3]);
        // So is what was on its way.
        for (number, message) in (5..).zip([Message::Submit, Message::Assign, Message::Granted, Message::Stolen]) {
            assert_eq!(withdrawn(&say(&mut node, OTHER, message(task(number, false)))), [number]);
        }
        // What runs goes on, and others' tasks start.
        let out = end(&mut node, ObjectId { owner: OWNER, number: 1 });
        assert!(matches!(out.sends[..], [(OWNER, Message::Finished { outcome: Outcome::Inline(_), .. })]), "{out:?}");
        assert_eq!(out.starts.iter().map(|spec| spec.id).collect::<Vec<_>>(), [others]);
        end(&mut node, others);
        assert_eq!((node.holds(), node.free().cpu), ((0, 0, 0), 2_000));
    }

    #[test]
    fn what_waits_for_a_task_that_is_stolen_asks_its_owner() {
        let mut node = node();
        let busy = task(1, false); // all CPUs
        say(&mut node, OWNER, Message::Submit(busy));
        let maker = TaskSpec { demand: Arc::new(Demand::cpus(1_000)), ..task(2, false) };
        say(&mut node, OWNER, Message::Submit(maker.clone()));
        assert!(say(&mut node, OWNER, Message::Submit(chained(3, 2))).sends.is_empty());
        let capacity = Capacity { cpu: 1_000, ..Capacity::default() };
        let out = say(&mut node, HEAD, Message::Steal { thief: OTHER, capacity, most: 1 });
        assert!(
            out.sends.iter().any(|(to, m)| *to == OTHER && matches!(m, Message::Stolen(spec) if spec.id == maker.id))
        );
        assert!(out.sends.iter().any(|(to, m)| *to == OWNER && matches!(m, Message::Locate { .. })), "{:?}", out.sends);
    }

    #[test]
    fn a_want_is_answered_when_the_object_is_here() {
        let mut node = node();
        let want = || Message::Want { object: OBJECT, holders: vec![OTHER] };
        assert!(matches!(say(&mut node, ASKER, want()).sends[..], [(OTHER, Message::Pull { .. })]));
        assert!(say(&mut node, OWNER, want()).sends.is_empty());
        let out = say(&mut node, OTHER, Message::Pushed { object: OBJECT, size: 5, attempt: 1 });
        let told: Vec<_> = out.sends.iter().filter(|(_, m)| matches!(m, Message::Here { .. })).map(|s| s.0).collect();
        assert_eq!(told, [OWNER, ASKER]);
        assert!(matches!(say(&mut node, ASKER, want()).sends[..], [(ASKER, Message::Here { .. })]));
        assert_eq!(node.holds(), (0, 1, 0));
    }

    #[test]
    fn what_is_put_here_meanwhile_is_not_asked_for_again() {
        let mut node = node();
        let want = Message::Want { object: OBJECT, holders: Vec::new() };
        assert!(matches!(say(&mut node, ASKER, want).sends[..], [(OWNER, Message::Locate { .. })]));
        assert!(node.put(OBJECT, 5));
        let out = say(&mut node, OWNER, Message::Located { object: OBJECT, holders: vec![US] });
        assert!(matches!(out.sends[..], [(ASKER, Message::Here { .. })]), "{:?}", out.sends);
        assert_eq!(node.holds(), (0, 1, 0));
    }

    #[test]
    fn a_want_is_dropped_with_its_asker_and_fails_with_the_owner() {
        let mut node = node();
        let want = || Message::Want { object: OBJECT, holders: Vec::new() };
        assert!(matches!(say(&mut node, ASKER, want()).sends[..], [(OWNER, Message::Locate { .. })]));
        say(&mut node, HEAD, Message::Dead { process: ASKER });
        assert_eq!(node.holds(), (0, 0, 0));
        say(&mut node, OTHER, want());
        let out = say(&mut node, HEAD, Message::Dead { process: OWNER });
        assert!(
            matches!(&out.sends[..], [(OTHER, Message::Lost { why, .. })] if why.to_string().contains("owner died"))
        );
        assert!(matches!(&say(&mut node, OTHER, want()).sends[..], [(OTHER, Message::Lost { .. })]));
        assert_eq!(node.holds(), (0, 0, 0));
    }

    #[test]
    fn a_large_object_goes_to_two_at_a_time_and_those_that_have_it_serve_others() {
        let mut node = node();
        let (asker, has) = (|number: u64| ProcessId(10 + number), Message::Pulled { object: OBJECT, is_well: true });
        node.put(OBJECT, LARGE);
        let pull = |node: &mut Node, number| say(node, asker(number), Message::Pull { object: OBJECT }).sends;
        let pushed = |node: &mut Node, number| matches!(pull(node, number)[..], [(_, Message::Pushed { .. })]);
        assert_eq!([0, 1, 2, 3].map(|number| pushed(&mut node, number)), [true, true, false, false]);
        let out = say(&mut node, asker(0), has);
        let [(first, Message::Pushed { .. }), (second, Message::Elsewhere { at, .. })] = &out.sends[..] else {
            panic!("{:?}", out.sends)
        };
        assert_eq!([*first, *second, *at], [asker(3), asker(2), asker(0)]);
        assert!(pull(&mut node, 4).is_empty() && node.is_serving());
        let out = say(&mut node, OWNER, Message::Free { object: OBJECT, attempt: 1, unseen: false });
        assert!(matches!(out.sends[..], [(to, Message::Gone { .. })] if to == asker(4)), "{:?}", out.sends);
        assert!(!node.is_serving());
        say(&mut node, HEAD, Message::Dead { process: asker(5) });
        assert!(pull(&mut node, 5).is_empty() && !node.is_serving());
    }

    #[test]
    fn who_is_told_another_place_asks_there_and_comes_back_if_it_is_not_there() {
        const THIRD: ProcessId = ProcessId(3);
        let mut node = node();
        say(&mut node, ASKER, Message::Want { object: OBJECT, holders: vec![OTHER] });
        let there = |at| Message::Elsewhere { object: OBJECT, at };
        let asked = |out: Effects| match out.sends[..] {
            [(asked, Message::Pull { .. })] => Some(asked),
            _ => None,
        };
        assert_eq!(asked(say(&mut node, THIRD, there(THIRD))), None);
        assert_eq!(asked(say(&mut node, OTHER, there(THIRD))), Some(THIRD));
        assert_eq!(asked(say(&mut node, THIRD, Message::Gone { object: OBJECT })), Some(OTHER));
        assert_eq!(asked(say(&mut node, OTHER, there(THIRD))), Some(THIRD));
        assert_eq!(asked(say(&mut node, HEAD, Message::Dead { process: THIRD })), Some(OTHER));
        assert_eq!(asked(say(&mut node, OTHER, there(THIRD))), Some(OTHER));
        let out = say(&mut node, OTHER, Message::Pushed { object: OBJECT, size: LARGE, attempt: 1 });
        let told = |message: &Message| matches!(message, Message::Pulled { is_well: true, .. });
        assert!(out.sends.iter().any(|(to, message)| *to == OTHER && told(message)), "{:?}", out.sends);
        // One that comes late and that nobody waits for.
        say(&mut node, OWNER, Message::Free { object: OBJECT, attempt: 1, unseen: false });
        let out = say(&mut node, OTHER, Message::Pushed { object: OBJECT, size: LARGE, attempt: 1 });
        assert!(matches!(out.sends[..], [(OTHER, Message::Pulled { is_well: false, .. })]), "{:?}", out.sends);
    }

    #[test]
    fn what_does_not_come_is_asked_of_all_others_before_the_same_one_again_and_no_holder_is_reported_for_that() {
        const THIRD: ProcessId = ProcessId(3);
        let mut node = node();
        say(&mut node, ASKER, Message::Want { object: OBJECT, holders: vec![OTHER] });
        let failed = |node: &mut Node, from| {
            let mut out = Effects::default();
            node.did_not_come(OBJECT, from, &mut out);
            out.sends
        };
        let told = |node: &mut Node| {
            let located = Message::Located { object: OBJECT, holders: vec![OTHER, THIRD] };
            say(node, OWNER, located).sends
        };
        let sends = failed(&mut node, OTHER);
        assert!(matches!(&sends[..], [(OWNER, Message::Locate { not, .. })] if not.is_empty()), "{sends:?}");
        assert!(matches!(told(&mut node)[..], [(THIRD, Message::Pull { .. })]));
        assert!(failed(&mut node, OTHER).is_empty(), "it is not asked any more");
        let sends = failed(&mut node, THIRD);
        assert!(matches!(sends[..], [(OTHER, Message::Pull { .. })]), "{sends:?}");
        // It cannot read what it has, and there is nobody else.
        let why = lost(OBJECT, "no room");
        let out = say(&mut node, THIRD, Message::Lost { object: OBJECT, why: why.clone() });
        assert!(out.sends.is_empty(), "{:?}", out.sends);
        let out = say(&mut node, OTHER, Message::Lost { object: OBJECT, why });
        assert!(matches!(&out.sends[..], [(ASKER, Message::Lost { .. })]), "{:?}", out.sends);
    }

    #[test]
    fn what_is_plain_is_handed_out_ahead_only_beside_others_that_are() {
        let mut node = node();
        node.hand_out_ahead(8);
        let ids = |out: &Effects| out.starts.iter().map(|spec| spec.id).collect::<Vec<_>>();
        let plain = |number| TaskSpec { demand: Arc::new(Demand::cpus(1_000)), ..task(number, false) };
        let wide = task(1, false);
        let assign = |node: &mut Node, spec: &TaskSpec| ids(&say(node, OWNER, Message::Assign(spec.clone())));
        assert_eq!(assign(&mut node, &wide), [wide.id]);
        // Its worker would start this one at once.
        assert_eq!(assign(&mut node, &plain(2)), []);
        let state = |node: &Node, number| node.task(plain(number).id, 1).map(|task| task.state());
        assert_eq!(state(&node, 1), Some(TaskState::Running));
        assert_eq!(state(&node, 2), Some(TaskState::Queued));
        // In no time, so that many are handed out ahead.
        let end = |node: &mut Node, task| {
            let mut out = Effects::default();
            node.finished(0, task, 1, Outcome::Inline(Arc::from([])), &mut out);
            out
        };
        assert_eq!(ids(&end(&mut node, wide.id)), [plain(2).id]);
        for number in [3, 4] {
            assert_eq!(assign(&mut node, &plain(number)), [plain(number).id]);
        }
        assert_eq!([2, 3, 4].map(|number| node.task(plain(number).id, 1).unwrap().runs()), [true, true, false]);
        assert_eq!(state(&node, 4), Some(TaskState::Queued));
        assert_eq!(node.unused_cpu(), 0);
        for number in [2, 3, 4] {
            end(&mut node, plain(number).id);
        }
        assert_eq!((node.unused_cpu(), node.plain), (2_000, 0));
        // A wide one waits for more than a CPU.
        assert_eq!(assign(&mut node, &plain(5)), [plain(5).id]);
        assert_eq!(assign(&mut node, &task(6, false)), []);
        assert_eq!(state(&node, 6), Some(TaskState::WaitingForResources));
    }

    /// A pack whose tasks make the objects from this number on.
    fn packed(first: u64, count: u32) -> TaskSpec {
        let common = pack::Common { driver: OWNER, function: Default::default(), location: "here".into() };
        let mut body = Vec::new();
        (0..count).for_each(|at| pack::write(&common, u64::from(at), b"value", at == 0, &mut body));
        let body = crate::cluster::wire::Blob(body.into());
        TaskSpec { count, demand: Arc::new(Demand::cpus(1_000)), body, ..task(first, false) }
    }

    /// A node of two CPUs whose tasks have taken 10 us so far.
    fn quick_node() -> Node {
        let mut node = node();
        node.hand_out_ahead(8);
        node.takes(us(10));
        node
    }

    fn numbers(specs: &[TaskSpec]) -> Vec<(u64, u32)> {
        specs.iter().map(|spec| (spec.id.number, spec.count)).collect()
    }

    fn object(number: u64) -> ObjectId {
        ObjectId { owner: OWNER, number }
    }

    #[test]
    fn a_pack_of_quick_tasks_starts_as_one_and_others_are_taken_apart() {
        let mut node = node();
        node.hand_out_ahead(8);
        // Nothing is known of their times.
        let out = say(&mut node, OWNER, Message::Granted(packed(1, 4)));
        assert_eq!(numbers(&out.starts), [(1, 1), (2, 1), (3, 1), (4, 1)]);
        let mut node = quick_node();
        let out = say(&mut node, OWNER, Message::Granted(packed(1, 100)));
        assert_eq!((numbers(&out.starts), node.holds().0), (vec![(1, 100)], 100));
        assert_eq!(node.load().waiting, 99);
        // Half of them end; the rest are looked for one by one.
        let mut out = Effects::default();
        let half = (1u128 << 50) - 1;
        node.ended_in_pack(ms(1), (object(1), 1), (half, ms(1)), &mut out);
        assert_eq!((node.holds().0, node.pack(object(50)), node.pack(object(51))), (50, None, Some((object(1), 1))));
        say(&mut node, OWNER, Message::Check { tasks: vec![(object(51), 1)] });
        let out = say(&mut node, OWNER, Message::Check { tasks: vec![(object(50), 1), (object(99), 1)] });
        assert!(matches!(out.sends[..], [(OWNER, Message::Lacks { task, .. })] if task == object(50)), "{out:?}");
        let mut out = Effects::default();
        node.ended_in_pack(ms(2), (object(1), 1), (u128::MAX >> 28 & !half, ms(1)), &mut out);
        assert_eq!((node.holds().0, node.mean), (0, (us(10) * 7 + us(20)) / 8));
        // What is thought to take long is taken apart: so that the parts do not, or altogether.
        for (took, most, count) in [(us(40), 100, 2), (us(200), 20, 7), (ms(5), 1, 128)] {
            (0..100).for_each(|_| node.takes(took));
            let spec = packed(200, 128);
            say(&mut node, OWNER, Message::Granted(spec.clone()));
            assert_eq!((node.holds().0, node.tasks.len()), (128, count), "{took}");
            assert!(node.tasks.values().all(|task| task.spec.count <= most));
            spec.objects().for_each(|task| drop(say(&mut node, OWNER, Message::Cancel { task, attempt: 1 })));
            for key in node.tasks.keys().copied().collect::<Vec<_>>() {
                node.finished(ms(3), key.0, key.1, Outcome::Crashed { why: "stopped".into() }, &mut Effects::default());
            }
            assert_eq!(node.holds(), (0, 0, 0));
        }
    }

    #[test]
    fn tasks_of_a_pack_are_cancelled_one_by_one_and_told_of_one_by_one_when_their_worker_dies() {
        let mut node = quick_node();
        // Two run, and two are ahead of their turn; the last waits.
        let starts: Vec<_> =
            (0..5).flat_map(|at| say(&mut node, OWNER, Message::Granted(packed(1 + 10 * at, 10))).starts).collect();
        assert_eq!(numbers(&starts), [(1, 10), (11, 10), (21, 10)]);
        let out = say(&mut node, OWNER, Message::Cancel { task: object(1), attempt: 1 });
        assert_eq!(out.stops, [(object(1), 1)]); // and not the pack
        let out = say(&mut node, OWNER, Message::Cancel { task: object(43), attempt: 1 });
        assert_eq!((out.stops.len(), node.holds().0, node.pack(object(42))), (0, 49, None));
        // The one that was stopped ends, and another fails by itself.
        let pack = (object(1), 1);
        let mut out = Effects::default();
        node.ended_by_itself(0, (pack, object(1)), us(10), Outcome::Failed(lost(object(1), "stopped")), &mut out);
        node.ended_by_itself(0, (pack, object(4)), us(10), Outcome::Stored { size: 1 << 20 }, &mut out);
        assert!(node.stores(object(4)) && !node.stores(object(1)));
        let told = |out: &Effects| {
            let finished = out.sends.iter().filter_map(|(to, message)| match message {
                Message::Finished { task, .. } if *to == OWNER => Some(task.number),
                _ => None,
            });
            finished.collect::<Vec<_>>()
        };
        assert_eq!(told(&out), [1, 4]);
        let mut out = Effects::default();
        node.finished(0, object(1), 1, Outcome::Crashed { why: "killed".into() }, &mut out);
        assert_eq!(told(&out), [2, 3, 5, 6, 7, 8, 9, 10]);
        // What no worker has is given back when the owner closes, and dropped when it dies.
        let out = say(&mut node, OWNER, Message::Close { job: OWNER });
        let withdrawn = told(&out);
        let running = (11..=40).filter(|number| !withdrawn.contains(number)).count();
        assert!(withdrawn.contains(&41) && !withdrawn.contains(&43), "{withdrawn:?}");
        assert_eq!(node.holds().0, running);
        for late in [Message::Assign(packed(300, 3)), Message::Submit(packed(310, 3))] {
            assert_eq!(told(&say(&mut node, HEAD, late)).len(), 3);
        }
        say(&mut node, HEAD, Message::Dead { process: OWNER });
        for first in [11, 21, 31] {
            node.finished(
                0,
                object(first),
                1,
                Outcome::Crashed { why: "its owner died".into() },
                &mut Effects::default(),
            );
        }
        assert_eq!((node.holds().0, node.packs, node.packed), (0, 0, 0));
    }

    #[test]
    fn what_is_cancelled_before_it_comes_does_not_start() {
        let mut node = quick_node();
        for number in [1, 12] {
            say(&mut node, OWNER, Message::Cancel { task: object(number), attempt: 1 });
        }
        assert!(say(&mut node, HEAD, Message::Assign(task(1, false))).starts.is_empty() && node.holds().0 == 0);
        let out = say(&mut node, HEAD, Message::Assign(packed(10, 4)));
        assert_eq!(numbers(&out.starts), [(10, 1), (11, 1), (13, 1)]);
        // It is made again later.
        let again = TaskSpec { attempt: 2, ..packed(1, 1).unpack().remove(0) };
        assert_eq!(say(&mut node, HEAD, Message::Assign(again)).starts.len(), 1);
        // Only so many are remembered, and none of the dead.
        for number in 0..1_000 {
            say(&mut node, OWNER, Message::Cancel { task: object(1_000 + number), attempt: 1 });
        }
        assert_eq!(node.early.len(), EARLY);
        say(&mut node, HEAD, Message::Dead { process: OWNER });
        assert!(node.early.is_empty());
    }

    #[test]
    fn packs_are_stolen_whole_or_in_part_and_passed_on_whole() {
        let mut node = quick_node();
        for at in 0..6 {
            say(&mut node, OWNER, Message::Granted(packed(1 + 10 * at, 10)));
        }
        let steal = Message::Steal { thief: OTHER, capacity: Capacity { cpu: 1_000, ..Capacity::default() }, most: 15 };
        let out = say(&mut node, HEAD, steal);
        let stolen = out.sends.iter().filter_map(|(to, message)| match message {
            Message::Stolen(spec) if *to == OTHER => Some((spec.id.number, spec.count)),
            _ => None,
        });
        let stolen: Vec<_> = stolen.collect();
        assert_eq!(stolen[0], (51, 10));
        assert_eq!(stolen.iter().map(|(_, count)| count).sum::<u32>(), 15);
        let placed = out.sends.iter().filter_map(|(to, message)| match message {
            Message::Placed { task, count, node: OTHER, .. } if *to == OWNER => Some((task.number, *count)),
            _ => None,
        });
        assert_eq!(placed.collect::<Vec<_>>(), stolen);
        // Where much waits already a pack that may be passed on is.
        (0..20).for_each(|_| node.takes(us(200)));
        let out = say(&mut node, OWNER, Message::Submit(packed(100, 3)));
        assert!(
            out.sends
                .iter()
                .any(|(to, message)| matches!(message, Message::Place(spec) if *to == HEAD && spec.count == 3))
        );
        // Without a head it is kept; and one of its tasks may be cancelled.
        node.head_is_gone();
        let late = TaskSpec { strategy: Strategy::Spread, ..packed(200, 3) };
        say(&mut node, OWNER, Message::Submit(late));
        say(&mut node, OWNER, Message::Cancel { task: object(201), attempt: 1 });
        assert_eq!(numbers(&node.kept_back), [(200, 1), (202, 1)]);
    }

    #[test]
    fn what_was_handed_out_when_tasks_were_shorter_is_recalled_for_an_idle_node() {
        let capacity = Capacity { cpu: 1_000, ..Capacity::default() };
        let mut node = Node::new(US, capacity, Vec::new(), &mut Effects::default());
        node.hand_out_ahead(8);
        node.takes(us(10));
        say(&mut node, OWNER, Message::Granted(packed(1, 10)));
        (20..24).for_each(|number| drop(say(&mut node, OWNER, Message::Granted(packed(number, 1)))));
        let handed: Vec<_> = node.tasks().filter(|task| task.since.is_some()).map(|task| task.spec.id.number).collect();
        assert_eq!((handed, node.load().waiting, node.load().running), (vec![1, 20, 21, 22, 23], 13, 1));
        let steal = |node: &mut Node, now, most| {
            let capacity = Capacity { cpu: 1_000, ..Capacity::default() };
            let mut out = Effects::default();
            node.handle(now, HEAD, Message::Steal { thief: OTHER, capacity, most }, &mut out);
            out.recalls.iter().map(|(task, _)| task.number).collect::<Vec<_>>()
        };
        assert!(steal(&mut node, ms(1), 8).is_empty(), "they are thought to have ended soon");
        // The first has been running for long; the head hears of that although nothing has changed.
        let mut out = Effects::default();
        node.tick(ms(10), &mut out);
        let told =
            |out: &Effects| out.sends.iter().any(|(_, m)| matches!(m, Message::Load(load) if load.mean == ms(10)));
        assert!(told(&out), "{out:?}");
        assert!(node.next_tick() <= ms(20));
        assert_eq!(steal(&mut node, ms(10), 6), [23, 22, 21, 20, 10, 9]);
        assert_eq!(steal(&mut node, ms(10), 100), [8, 7, 6, 5, 4, 3, 2], "not the one that runs");
        let given_back = |node: &mut Node, number| {
            let mut out = Effects::default();
            node.given_back(ms(11), object(number), 1, &mut out);
            out
        };
        for number in [23, 10] {
            let out = given_back(&mut node, number);
            let [(OWNER, Message::Placed { task, node: OTHER, .. }), (OTHER, Message::Stolen(spec))] = &out.sends[..]
            else {
                panic!("{out:?}")
            };
            assert_eq!((*task, spec.id, spec.count), (object(number), object(number), 1));
        }
        assert_eq!((node.ahead.len(), node.all_ahead), (3, 3));
        // What needs one of the others does not wait for it at the worker.
        for (number, argument) in [(30, 21), (31, 2)] {
            let mut chained = packed(number, 1);
            chained.args = vec![Arg::Object { id: object(argument), size: 0, holders: Vec::new() }];
            let out = say(&mut node, OWNER, Message::Submit(chained));
            assert!(out.starts.is_empty(), "{out:?}");
            say(&mut node, OWNER, Message::Cancel { task: object(number), attempt: 1 });
        }
        // Some are cancelled meanwhile, or have started; and who wanted them dies.
        let out = say(&mut node, OWNER, Message::Cancel { task: object(9), attempt: 1 });
        assert_eq!(out.stops, [(object(9), 1)]);
        say(&mut node, OWNER, Message::Cancel { task: object(22), attempt: 1 });
        assert!([9, 22].into_iter().all(|number| given_back(&mut node, number).sends.is_empty()));
        end(&mut node, object(21));
        say(&mut node, HEAD, Message::Dead { process: OTHER });
        let out = given_back(&mut node, 20);
        assert!(out.sends.is_empty() && node.task(object(20), 1).is_some(), "{out:?}");
        assert!((2..=8).rev().all(|number| given_back(&mut node, number).sends.is_empty()));
        let mut left: Vec<_> = node.tasks().flat_map(|task| task.spec.objects().take(1)).collect();
        left.sort();
        assert_eq!(left, [1, 2, 3, 4, 5, 6, 7, 8, 20].map(object));
        // All of them end.
        let mut out = Effects::default();
        node.ended_in_pack(ms(30), (object(1), 1), (0b1, ms(20)), &mut out);
        (2..=8).chain([20]).for_each(|number| drop(end(&mut node, object(number))));
        assert_eq!((node.holds(), node.free() == node.capacity()), ((0, 0, 0), true));
        assert!(node.recalled.is_empty() && node.started_packs.is_empty() && node.ahead.is_empty());
    }

    #[test]
    fn what_waits_for_a_task_of_a_pack_is_given_its_result_here() {
        let mut node = quick_node();
        say(&mut node, OWNER, Message::Granted(packed(1, 10)));
        let wide = TaskSpec { demand: Arc::new(Demand::cpus(2_000)), ..chained(20, 5) };
        let out = say(&mut node, OWNER, Message::Submit(wide));
        assert!(out.sends.is_empty() && node.fetches(object(5)), "{out:?}");
        let (mut out, pack) = (Effects::default(), (object(1), 1));
        let sizes = [(4, 8), (5, 8), (6, 2_000)];
        let keeps = sizes.map(|(number, bytes)| node.made_in_pack((pack, object(number)), bytes, &mut out));
        assert_eq!(keeps, [Keeps::Nothing, Keeps::Copy, Keeps::Copy]);
        node.ended_in_pack(ms(1), pack, (0b0000111000, us(30)), &mut out);
        assert!(out.starts.is_empty(), "its CPU is taken");
        node.ended_in_pack(ms(1), pack, (0b1111000111, us(70)), &mut out);
        assert!(out.sends.is_empty(), "{out:?}");
        assert_eq!(numbers(&out.starts), [(20, 1)]);
        let stored = [4, 5, 6].map(|number| node.stores(object(number)));
        assert_eq!(stored, [false, true, true]);
        // Of one that was told to stop nothing is kept.
        say(&mut node, OWNER, Message::Granted(packed(31, 2)));
        end(&mut node, object(20));
        say(&mut node, OWNER, Message::Dead { process: OTHER });
        node.tasks.values_mut().for_each(|task| task.stopped = true);
        let keeps = node.made_in_pack(((object(31), 1), object(32)), 2_000, &mut out);
        assert_eq!((keeps, node.stores(object(32))), (Keeps::Nothing, false));
        // A pack that has no worker yet is taken apart when it starts.
        let mut node = quick_node();
        say(&mut node, OWNER, Message::Granted(packed(1, 3)));
        let mut out = Effects::default();
        node.start_apart(0, (object(1), 1), &mut out);
        assert_eq!((numbers(&out.starts), node.packs), (vec![(1, 1), (2, 1), (3, 1)], 0));
    }

    /// Runs a task with a result of so many bytes.
    fn makes(node: &mut Node, number: u64, bytes: usize) -> Effects {
        say(node, OWNER, Message::Assign(task(number, false)));
        let mut out = Effects::default();
        node.finished(0, object(number), 1, Outcome::Inline(vec![7; bytes].into()), &mut out);
        out
    }

    #[test]
    fn of_a_small_result_a_copy_stays_for_a_while_or_all_of_it_if_something_waits_here() {
        let mut node = node();
        node.keep_small(Small { short: 8, lately: 20, unseen: 2, kept: 20 });
        let runs = |node: &mut Node, number, bytes: usize| {
            let out = makes(node, number, bytes);
            let outcome = out.sends.iter().find_map(|(_, message)| match message {
                Message::Finished { outcome, .. } => Some(outcome.clone()),
                _ => None,
            });
            (outcome.expect("it has ended"), out.dropped)
        };
        assert!(matches!(runs(&mut node, 1, 8), (Outcome::Inline(_), _)));
        assert!(matches!(runs(&mut node, 2, 9), (Outcome::Copied(_), _)));
        assert!(matches!(runs(&mut node, 3, 9), (Outcome::Copied(_), _)));
        assert!(!node.stores(object(1)) && node.stores(object(2)) && node.stores(object(3)));
        assert_eq!(runs(&mut node, 4, 9).1, [object(2)]); // only the newest are kept
        assert!(!node.stores(object(2)) && node.stores(object(3)));
        // Something waits: a short one goes, too, a longer one does not.
        for (number, bytes) in [(5, 8), (6, 9)] {
            say(&mut node, OWNER, Message::Assign(task(number, false)));
            say(&mut node, OWNER, Message::Assign(chained(number + 10, number)));
            let mut out = Effects::default();
            node.finished(0, object(number), 1, Outcome::Inline(vec![7; bytes].into()), &mut out);
            let [(OWNER, Message::Finished { outcome, .. })] = &out.sends[..] else { panic!("{out:?}") };
            assert_eq!(matches!(outcome, Outcome::Copied(_)), bytes == 8, "{outcome:?}");
            assert_eq!(matches!(outcome, Outcome::Stored { size: 9 }), bytes == 9, "{outcome:?}");
            assert_eq!(numbers(&out.starts), [(number + 10, 1)]);
            end(&mut node, object(number + 10));
        }
        // What an earlier attempt has left is not one of those that are dropped.
        let stored = task(6, false);
        say(&mut node, OWNER, Message::Assign(TaskSpec { attempt: 2, ..stored }));
        let mut out = Effects::default();
        node.finished(0, object(6), 2, Outcome::Inline(vec![7; 9].into()), &mut out);
        assert!(matches!(out.sends[..], [(OWNER, Message::Finished { outcome: Outcome::Inline(_), .. })]), "{out:?}");
        (20..30).for_each(|number| drop(runs(&mut node, number, 9)));
        assert!(node.stores(object(6)));
    }

    #[test]
    fn an_owner_that_looks_at_one_of_many_does_not_get_the_others() {
        let mut node = node();
        let free = |node: &mut Node, number: u64, unseen| {
            say(node, OWNER, Message::Free { object: object(number), attempt: 1, unseen })
        };
        let long = SHORT as usize + 1;
        let stays = |node: &mut Node, number| {
            let out = makes(node, number, long);
            let is_kept = matches!(&out.sends[..], [(_, Message::Finished { outcome: Outcome::Stored { .. }, .. })]);
            free(node, number, true);
            is_kept
        };
        assert_eq!((0..1_000).filter(|number| stays(&mut node, *number)).count(), 1_000 - 64);
        for number in 1_000..1_100 {
            makes(&mut node, number, long);
            free(&mut node, number, number % 50 > 0);
        }
        assert!(stays(&mut node, 2_000));
        // It looks at all of them.
        let looks = (3_000..3_050_u64).take_while(|number| {
            let out = makes(&mut node, *number, long);
            let is_kept = matches!(&out.sends[..], [(_, Message::Finished { outcome: Outcome::Stored { .. }, .. })]);
            if is_kept {
                say(&mut node, OWNER, Message::Seen { object: object(*number) });
            }
            is_kept
        });
        assert!((5..=13).contains(&looks.count()));
    }

    #[test]
    fn small_results_stay_here_while_their_owner_does_not_look_at_them() {
        let mut node = node();
        node.keep_small(Small { short: 8, lately: 1_000, unseen: 2, kept: 20 });
        let goes = |node: &mut Node, number, bytes: usize| {
            let out = makes(node, number, bytes);
            let [(OWNER, Message::Finished { outcome, .. })] = &out.sends[..] else { panic!("{out:?}") };
            assert_eq!(node.stores(object(number)), bytes > 8);
            !matches!(outcome, Outcome::Stored { size: 9 })
        };
        let free = |node: &mut Node, number, unseen| {
            say(node, OWNER, Message::Free { object: object(number), attempt: 1, unseen });
            assert!(!node.stores(object(number)));
        };
        assert!((1..=4).all(|number| goes(&mut node, number, 9)));
        free(&mut node, 1, true);
        assert!(goes(&mut node, 5, 9));
        free(&mut node, 2, true);
        assert!(goes(&mut node, 6, 8), "short ones always go");
        assert!(!goes(&mut node, 7, 9) && !goes(&mut node, 8, 9));
        assert!(goes(&mut node, 9, 9), "that would be too many bytes");
        free(&mut node, 7, true);
        assert!(!goes(&mut node, 10, 9), "there is room again");
        // It looks at one: at once, or when it says so later.
        say(&mut node, OWNER, Message::Seen { object: object(8) });
        assert!(goes(&mut node, 11, 9));
        free(&mut node, 8, false);
        free(&mut node, 3, true);
        free(&mut node, 4, false);
        free(&mut node, 5, true);
        assert!(goes(&mut node, 12, 9));
        // Another owner has its own count.
        free(&mut node, 9, true);
        free(&mut node, 11, true);
        let other = ObjectId { owner: OTHER, number: 1 };
        say(&mut node, OTHER, Message::Assign(TaskSpec { id: other, ..task(1, false) }));
        let mut out = Effects::default();
        node.finished(0, other, 1, Outcome::Inline(vec![7; 9].into()), &mut out);
        assert!(matches!(out.sends[..], [(OTHER, Message::Finished { outcome: Outcome::Copied(_), .. })]), "{out:?}");
        assert!(!goes(&mut node, 13, 9));
        // One that stays for long, 10, does not stand in the way of those behind it for long.
        let stay = (14..34_u64).filter(|number| {
            free(&mut node, number - 1, true);
            !goes(&mut node, *number, 9)
        });
        assert_eq!(stay.count(), 10);
    }

    #[test]
    fn a_task_is_not_stolen_that_takes_less_than_to_fetch_what_it_needs() {
        for (mean, stolen) in [(us(10), 0), (ms(1), 1)] {
            let mut node = node();
            node.takes(mean);
            node.put(OBJECT, 8 << 10);
            say(&mut node, OWNER, Message::Assign(task(1, false))); // takes all CPUs
            let args = vec![Arg::Object { id: OBJECT, size: 8 << 10, holders: vec![US] }];
            let spec = TaskSpec { args, ..task(2, false) };
            say(&mut node, OWNER, Message::Assign(spec));
            let capacity = Capacity { cpu: 2_000, ..Capacity::default() };
            let out = say(&mut node, HEAD, Message::Steal { thief: OTHER, capacity, most: 8 });
            let given = out.sends.iter().filter(|(_, message)| matches!(message, Message::Stolen(_)));
            assert_eq!(given.count(), stolen);
        }
    }

    #[test]
    fn a_task_is_not_stolen_that_takes_less_than_to_send_back_what_another_waits_for() {
        for (mean, awaited, stolen) in [(us(10), true, 0), (us(10), false, 1), (ms(1), true, 1)] {
            let mut node = node();
            node.takes(mean);
            say(&mut node, OWNER, Message::Assign(task(1, false))); // takes all CPUs
            say(&mut node, OWNER, Message::Assign(task(2, false)));
            if awaited {
                say(&mut node, OWNER, Message::Assign(TaskSpec { hop: 1, ..chained(3, 2) }));
            }
            let capacity = Capacity { cpu: 2_000, ..Capacity::default() };
            let out = say(&mut node, HEAD, Message::Steal { thief: OTHER, capacity, most: 8 });
            let given = out.sends.iter().filter(|(_, message)| matches!(message, Message::Stolen(_)));
            assert_eq!(given.count(), stolen);
        }
        // Of a pack all that it makes counts, and all that it takes.
        for (mean, stolen) in [(us(10), 0), (us(200), 1)] {
            let mut node = quick_node();
            (0..50).for_each(|_| node.takes(mean));
            say(&mut node, OWNER, Message::Assign(task(100, false)));
            say(&mut node, OWNER, Message::Granted(packed(1, 4)));
            (1..=4).for_each(|made| drop(say(&mut node, OWNER, Message::Assign(chained(10 + made, made)))));
            let capacity = Capacity { cpu: 2_000, ..Capacity::default() };
            let out = say(&mut node, HEAD, Message::Steal { thief: OTHER, capacity, most: 8 });
            let given = out.sends.iter().filter(|(_, message)| matches!(message, Message::Stolen(_)));
            assert_eq!(given.count(), stolen, "{out:?}");
        }
    }

    #[test]
    fn an_actor_that_was_told_to_stop_holds_its_resources_until_it_has_ended() {
        let mut node = node();
        assert_eq!(say(&mut node, OWNER, Message::Assign(task(1, true))).starts.len(), 1);
        say(&mut node, OWNER, Message::Cancel { task: object(1), attempt: 1 });
        end(&mut node, object(1)); // its constructor has, meanwhile
        assert_eq!((node.free.cpu, node.staying, node.load().staying), (0, 1, 1));
        node.ended(ms(91), object(1), 1, &mut Effects::default());
        assert_eq!((node.free.cpu, node.staying, node.load().staying), (2_000, 0, 0));
    }

    #[test]
    fn what_was_made_here_while_it_came_from_elsewhere_is_not_told_again() {
        let mut node = node();
        let args = vec![Arg::Object { id: OBJECT, size: 8 << 10, holders: vec![OTHER] }];
        say(&mut node, OWNER, Message::Assign(TaskSpec { args, ..task(1, false) }));
        node.put(OBJECT, 8 << 10);
        let out = say(&mut node, OTHER, Message::Pushed { object: OBJECT, size: 8 << 10, attempt: 0 });
        assert!(out.sends.is_empty() && out.starts.len() == 1, "{out:?}");
    }

    #[test]
    fn what_waits_for_a_task_with_a_lease_is_not_handed_out_ahead_to_another_worker() {
        for (gpu, starts) in [(None, 1), (Some(GpuRequest::share(500).into()), 0)] {
            let capacity = Capacity { cpu: 2_000, gpus: Devices::new(Inventory::simulated(1)), ..Capacity::default() };
            let mut node = Node::new(US, capacity, Vec::new(), &mut Effects::default());
            node.hand_out_ahead(8);
            let maker = TaskSpec { demand: Arc::new(Demand { gpu, ..Demand::cpus(1_000) }), ..task(1, false) };
            let args = vec![Arg::Object { id: maker.id, size: 0, holders: Vec::new() }];
            let next = TaskSpec { demand: Arc::new(Demand::cpus(1_000)), args, ..task(2, false) };
            assert_eq!(say(&mut node, OWNER, Message::Assign(maker.clone())).starts.len(), 1);
            assert_eq!(say(&mut node, OWNER, Message::Assign(next.clone())).starts.len(), starts);
            let mut out = Effects::default();
            node.finished(0, maker.id, 1, Outcome::Inline(Arc::from([])), &mut out);
            assert_eq!(out.starts.len(), 1 - starts);
            end(&mut node, next.id);
            assert_eq!(node.holds().0, 0);
        }
    }

    #[test]
    fn what_stays_keeps_its_resources_until_it_has_ended() {
        let mut node = node();
        let (actor, next) = (task(1, true), task(2, false));
        assert_eq!(say(&mut node, HEAD, Message::Assign(actor.clone())).starts.len(), 1);
        let out = end(&mut node, actor.id);
        assert!(matches!(out.sends[..], [(OWNER, Message::Finished { .. })]));
        assert_eq!((node.free().cpu, node.mean), (0, 0));
        let out = say(&mut node, HEAD, Message::Assign(next.clone()));
        assert!(matches!(out.sends[..], [(HEAD, Message::Load(_)), (HEAD, Message::Place(_))]));
        assert_eq!(say(&mut node, OWNER, Message::Cancel { task: actor.id, attempt: 1 }).stops, [(actor.id, 1)]);
        assert_eq!(node.free().cpu, 0);
        let mut out = Effects::default();
        node.ended(ms(60), actor.id, 1, &mut out);
        assert!(out.sends.is_empty());
        assert_eq!(say(&mut node, HEAD, Message::Assign(next.clone())).starts.len(), 1);
        end(&mut node, next.id);
        assert_eq!((node.free().cpu, node.staying, node.holds().0), (2_000, 0, 0));
    }

    #[test]
    fn a_crash_is_told_as_the_end_of_what_stayed_and_as_a_crash_before() {
        let mut node = node();
        let actor = task(1, true);
        for stayed in [false, true] {
            say(&mut node, HEAD, Message::Assign(actor.clone()));
            if stayed {
                end(&mut node, actor.id);
            }
            let mut out = Effects::default();
            node.crashed(0, actor.id, 1, "signal 9".into(), &mut out);
            match &out.sends[..] {
                [(OWNER, Message::Ended { .. })] if stayed => {}
                [(OWNER, Message::Finished { outcome: Outcome::Crashed { .. }, .. })] if !stayed => {}
                other => panic!("{other:?}"),
            }
            assert_eq!((node.free().cpu, node.staying, node.holds().0), (2_000, 0, 0));
        }
    }

    const GROUP: ObjectId = ObjectId { owner: OWNER, number: 50 };

    fn reserve(node: &mut Node, bundle: u32, cpus: u32) -> Effects {
        let demand = Demand::cpus(cpus * 1_000);
        say(node, HEAD, Message::Reserve { group: GROUP, bundle, round: 1, demand })
    }

    fn reserved(out: &Effects) -> Option<bool> {
        out.sends.iter().find_map(|(_, message)| match message {
            Message::Reserved { ok, .. } => Some(*ok),
            _ => None,
        })
    }

    fn in_bundle(number: u64, cpus: u32) -> TaskSpec {
        let strategy = Strategy::Bundle { group: GROUP, bundle: 0, node: Some(US) };
        TaskSpec { strategy, demand: Arc::new(Demand::cpus(cpus * 1_000)), ..task(number, false) }
    }

    #[test]
    fn what_will_never_fit_the_devices_of_its_bundle_fails_where_they_are() {
        let gpus = Devices::new(Inventory::uniform(1, "T4", 16 << 30, (7, 5)));
        let capacity = Capacity { cpu: 2_000, gpus, ..Capacity::default() };
        let mut node = Node::new(US, capacity, Vec::new(), &mut Effects::default());
        let asks = |request: GpuRequest| Demand { gpu: Some(request.into()), ..Demand::cpus(0) };
        let demand = asks(GpuRequest::whole(1));
        let out = say(&mut node, HEAD, Message::Reserve { group: GROUP, bundle: 0, round: 1, demand });
        assert_eq!(reserved(&out), Some(true));
        let task = |number, gigabytes: u64| TaskSpec {
            demand: Arc::new(asks(GpuRequest::bytes(gigabytes << 30))),
            ..in_bundle(number, 0)
        };
        let out = say(&mut node, HEAD, Message::Assign(task(1, 20)));
        let [.., (OWNER, Message::Unplaceable { why, .. })] = &out.sends[..] else { panic!("{:?}", out.sends) };
        let expected = "bundle 0 of its placement group is too small: 20 GiB of a GPU wanted, 16 GiB there (of 1 \
                        devices, 0 with 20 GiB)";
        assert_eq!(&**why, expected);
        let fits = task(2, 16);
        assert_eq!(say(&mut node, HEAD, Message::Assign(fits.clone())).starts.len(), 1);
        let lease = &node.leases(fits.id, 1)[0];
        assert_eq!((&*lease.device.uuid, lease.bytes, lease.thousandths), ("SIM-0", 16 << 30, 0));
        end(&mut node, fits.id);
        assert_eq!(node.holds().0, 0);
    }

    #[test]
    fn a_bundle_is_set_aside_when_it_is_free_and_nothing_else_starts_before() {
        let mut node = node();
        let small = |number| TaskSpec { demand: Arc::new(Demand::cpus(1_000)), ..task(number, false) };
        let first = small(1);
        say(&mut node, HEAD, Message::Assign(first.clone()));
        assert_eq!(reserved(&reserve(&mut node, 0, 2)), None);
        // There is no room for it any more: word of that comes first, then the task.
        let out = say(&mut node, HEAD, Message::Assign(small(2)));
        let [(HEAD, Message::Load(load)), (HEAD, Message::Place(_))] = &out.sends[..] else {
            panic!("{:?}", out.sends)
        };
        assert_eq!(load.room.as_ref().map(|room| room.cpu), Some(0));
        assert_eq!(reserved(&end(&mut node, first.id)), Some(true));
        assert_eq!(reserved(&reserve(&mut node, 1, 1)), Some(false));
        assert_eq!(node.reserved().count(), 1);
    }

    #[test]
    fn tasks_in_a_bundle_use_what_was_set_aside_and_it_is_given_back_after_them() {
        let mut node = node();
        assert_eq!(reserved(&reserve(&mut node, 0, 2)), Some(true));
        assert_eq!((node.free().cpu, node.room.cpu), (0, 0));
        let (first, second, third) = (in_bundle(1, 1), in_bundle(2, 1), in_bundle(3, 1));
        assert_eq!(say(&mut node, OWNER, Message::Submit(first.clone())).starts.len(), 1);
        assert_eq!(say(&mut node, HEAD, Message::Assign(second.clone())).starts.len(), 1);
        assert!(say(&mut node, HEAD, Message::Assign(third)).starts.is_empty());
        let out = say(&mut node, HEAD, Message::Unreserve { group: GROUP, bundle: 0 });
        assert!(out.sends.iter().any(|(_, m)| matches!(m, Message::Place(spec) if spec.id.number == 3)));
        end(&mut node, first.id);
        assert_eq!(node.free().cpu, 0);
        end(&mut node, second.id);
        assert_eq!((node.free().cpu, node.room.cpu, node.reserved().count()), (2_000, 2_000, 0));
        // One that comes late goes back.
        let out = say(&mut node, HEAD, Message::Assign(in_bundle(4, 1)));
        assert!(matches!(out.sends[..], [(HEAD, Message::Load(_)), (HEAD, Message::Place(_))]));
    }

    #[test]
    fn what_waits_for_something_that_stays_goes_back_to_the_head() {
        let mut node = node();
        let actor = TaskSpec { demand: Arc::new(Demand::cpus(1_000)), ..task(1, true) };
        let busy = TaskSpec { demand: Arc::new(Demand::cpus(2_000)), ..task(2, false) };
        say(&mut node, HEAD, Message::Assign(busy.clone()));
        say(&mut node, HEAD, Message::Assign(task(3, false)));
        say(&mut node, HEAD, Message::Assign(actor));
        // The one that waits is older, and starts; then the actor, and the last has no room.
        end(&mut node, busy.id);
        let out = say(&mut node, HEAD, Message::Assign(task(4, false)));
        assert!(out.sends.is_empty());
        let out = end(&mut node, ObjectId { owner: OWNER, number: 3 });
        assert_eq!(out.starts.len(), 1);
        assert!(
            out.sends.iter().any(|(_, m)| matches!(m, Message::Place(spec) if spec.id.number == 4)),
            "{:?}",
            out.sends
        );
    }

    #[test]
    fn a_task_on_the_cpus_of_one_that_waits_is_seen_to_take_long() {
        let mut node = node();
        let on_all = |number| TaskSpec { demand: Arc::new(Demand::cpus(2_000)), ..task(number, false) };
        say(&mut node, HEAD, Message::Assign(on_all(1)));
        node.lend(0, 2_000, &mut Effects::default());
        assert_eq!(node.mean_now(ms(50)), 0, "that one waits");
        assert_eq!(say(&mut node, HEAD, Message::Assign(on_all(2))).starts.len(), 1);
        assert_eq!(node.mean_now(us(10)), 0, "it has just begun, and is not the first of many that take 10 us");
        assert_eq!(node.mean_now(ms(50)), ms(50));
        // Or with their worker ahead of its turn.
        let mut node = self::node();
        node.hand_out_ahead(8);
        for number in 1..=3 {
            let plain = TaskSpec { demand: Arc::new(Demand::cpus(1_000)), ..task(number, false) };
            assert_eq!(say(&mut node, HEAD, Message::Assign(plain)).starts.len(), 1);
        }
        node.lend(0, 2_000, &mut Effects::default());
        assert_eq!(node.mean_now(ms(50)), ms(50));
    }

    #[test]
    fn one_attempt_can_be_stopped_without_the_other() {
        let mut node = node();
        let first = TaskSpec { demand: Arc::new(Demand::cpus(1_000)), ..task(1, true) };
        let second = TaskSpec { attempt: 2, ..first.clone() };
        say(&mut node, HEAD, Message::Assign(first.clone()));
        say(&mut node, HEAD, Message::Assign(second));
        let out = say(&mut node, OWNER, Message::Retire { task: first.id, attempt: 1 });
        assert_eq!(out.stops, [(first.id, 1)]);
    }

    #[test]
    fn without_a_head_what_fits_is_kept_and_the_rest_is_kept_back_for_the_next_one() {
        let mut node = node();
        say(&mut node, HEAD, Message::Assign(task(1, true)));
        say(&mut node, HEAD, Message::Assign(TaskSpec { demand: Arc::new(Demand::cpus(0)), ..task(2, false) }));
        node.head_is_gone();
        let big = || task(3, false);
        assert!(say(&mut node, OWNER, Message::Submit(big())).sends.is_empty());
        let spread = TaskSpec { strategy: Strategy::Spread, demand: Arc::new(Demand::cpus(0)), ..task(4, false) };
        assert!(say(&mut node, OWNER, Message::Submit(spread)).sends.is_empty());
        let lacking = |out: Effects| {
            let lacks = out.sends.into_iter().filter_map(|(to, message)| match message {
                Message::Lacks { task, attempt: 1 } if to == OWNER => Some(task.number),
                _ => None,
            });
            lacks.collect::<Vec<_>>()
        };
        let check = || Message::Check { tasks: (1..=5).map(|number| (task(number, false).id, 1)).collect() };
        assert_eq!(lacking(say(&mut node, OWNER, check())), [5]);
        let mut out = Effects::default();
        node.join_again(0, &mut out);
        let [(HEAD, Message::JoinNode { .. }), rest @ ..] = &out.sends[..] else { panic!("{:?}", out.sends) };
        let placed = rest.iter().filter(|(to, m)| *to == HEAD && matches!(m, Message::Place(_))).count();
        assert_eq!(placed, 2);
        assert!(matches!(rest.last(), Some((OWNER, Message::Anew))));
        assert_eq!(lacking(say(&mut node, OWNER, check())), [5], "they are with the new head");
        node.head_is_gone();
        assert_eq!(lacking(say(&mut node, OWNER, check())), [3, 4, 5], "and lost with it");
    }
}
