//! The loop of events, the network, and the rules.

use super::{
    Options, Report,
    fates::Fates,
    links::{self, Links, Weather},
    random::Random,
    sabotage::Sabotage,
    shell::{self, Guard, Shell},
    worker::{self, Job, Phase, Worker},
    workload::{self, Body, Groups},
};
use crate::{
    cluster::{
        capacity::{Capacity, Demand},
        head::{BEAT, Head, Memory, PATIENCE, REUNION},
        node::Node,
        owner::{GRACE, Group, Value},
        protocol::{Bandwidth, Effects, HEAD, Message, Nanos, Note, ObjectId, Policy, ProcessId, ms, us},
    },
    error::Error,
    gpu::placement::Part,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// Of a message: the least, and what comes on top of it on average.
const LATENCY: (Nanos, Nanos) = (us(40), us(20));
/// What the loss of a packet costs.
const RETRANSMISSION: Nanos = ms(20);
/// Until a dead node is replaced.
const REPLACEMENT: Nanos = ms(500);
/// A head that has died is started again within this time.
const HEADLESS: Nanos = ms(4_000);
/// Until a process notices that the head has died, at most, and until it finds the next one.
const NOTICED: Nanos = ms(300);
const FOUND: Nanos = ms(1_500);
/// If it has not ended by then, it never will.
const LIMIT: Nanos = ms(600_000);
/// If so much happens in a millisecond, time does not go on.
const MOST_EVENTS: usize = 1_000_000;

/// A message on its way.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) from: ProcessId,
    to: ProcessId,
    message: Message,
    /// Handles in the value that comes with it.
    parcel: Arc<[ObjectId]>,
    /// Of the head: that it is from, or that it is meant for.
    life: u64,
}

#[derive(Debug)]
pub(super) enum Event {
    /// `by`: who has sent it, or has passed it on last.
    Deliver {
        by: ProcessId,
        letter: Box<Letter>,
    },
    Tick(ProcessId),
    /// Drivers begin when all nodes have joined, and faults come from then on.
    Begin,
    /// The head takes the next message.
    Head,
    /// A task ends, if it still runs.
    End {
        node: ProcessId,
        task: ObjectId,
        attempt: u32,
        stop: bool,
    },
    /// A worker is to give back a task that has not started.
    Recall {
        node: ProcessId,
        task: ObjectId,
        attempt: u32,
    },
    /// A driver or a worker does something.
    Act(ProcessId),
    CrashNode,
    CrashDriver,
    /// A driver ends, and waits for what runs.
    CloseDriver,
    CrashWorker,
    CrashHead,
    StartHead,
    /// A process sees that the head of this life is gone.
    Headless(ProcessId, u64),
    /// It finds the head of this life.
    Found(ProcessId, u64),
    /// A worker asks its node for what it needs, and hears whether it is there.
    Ask {
        node: ProcessId,
        object: ObjectId,
    },
    Answer {
        node: ProcessId,
        object: ObjectId,
        failure: Option<Arc<Error>>,
    },
    /// A node sees that one of its workers has died.
    Miss {
        node: ProcessId,
        worker: ProcessId,
    },
    /// A call arrives at the node where an actor should be.
    Call {
        caller: ProcessId,
        node: ProcessId,
        actor: ObjectId,
        result: ObjectId,
    },
    Cut,
    Cancel,
    /// A node comes, in the place of one that died.
    Join(usize),
    Links(links::Event),
}

pub(super) struct SimNode {
    pub(super) node: Node,
    /// Its place; that stays when it is replaced.
    index: usize,
    capacity: Capacity,
    /// What its workers have, by the simulation's own count.
    pub(super) running: BTreeMap<(ObjectId, u32), Job>,
    /// Those of them that wait for others to end, the oldest first.
    pub(super) waiting: Vec<(ObjectId, u32)>,
    /// What workers have asked for.
    pub(super) asked: BTreeSet<ObjectId>,
    /// The handles in the values of its store.
    pub(super) values: BTreeMap<ObjectId, Arc<[ObjectId]>>,
    pub(super) workers: Vec<ProcessId>,
    tick: Nanos,
}

pub(super) struct Driver {
    pub(super) shell: Shell,
    /// Tasks to submit.
    left: usize,
    groups: Groups,
    policies: HashMap<ObjectId, Policy>,
    /// Ended with a result, with handles still.
    succeeded: BTreeSet<ObjectId>,
    finished: bool,
}

pub(super) struct World<'a> {
    pub(super) options: &'a Options,
    pub(super) now: Nanos,
    /// When the drivers begin.
    start: Nanos,
    pub(super) random: Random,
    /// By time, and in the order in which they were entered.
    queue: BTreeMap<(Nanos, u64), Event>,
    sequence: u64,
    pub(super) head: Head,
    /// What the head has kept.
    memory: Memory,
    /// Counts the heads.
    life: u64,
    /// When the last head died, if there is none now.
    headless: Option<Nanos>,
    /// When the head of an earlier life died.
    heads_died: HashMap<u64, Nanos>,
    /// The head that a station has joined, or tries to.
    joined: HashMap<ProcessId, u64>,
    /// What waits for the head, and whether it is busy.
    inbox: VecDeque<(ProcessId, Message)>,
    head_is_busy: bool,
    pub(super) nodes: BTreeMap<ProcessId, SimNode>,
    pub(super) drivers: BTreeMap<ProcessId, Driver>,
    pub(super) workers: BTreeMap<ProcessId, Worker>,
    /// The nodes of all workers that there ever were.
    pub(super) homes: HashMap<ProcessId, ProcessId>,
    next_process: u64,
    /// The last arrival on each way, of control and of bulk.
    arrivals: HashMap<(ProcessId, ProcessId, bool), Nanos>,
    /// Some that some others cannot reach, and until when.
    cuts: Vec<(BTreeSet<ProcessId>, BTreeSet<ProcessId>, Nanos)>,
    links: Option<Links>,
    /// When those that died did.
    pub(super) crashed: HashMap<ProcessId, Nanos>,
    pub(super) latencies: Vec<Nanos>,
    /// A value has only handles of objects with lower ranks inside: what holds itself is never freed.
    pub(super) ranks: HashMap<ObjectId, u64>,
    /// When those that have not started were.
    pub(super) submitted: HashMap<ObjectId, Nanos>,
    pub(super) fates: Fates,
    /// A rule that was.
    pub(super) broken: Option<String>,
    pub(super) report: Report,
    /// Events whose text has one of these are printed, and all faults.
    trace: Vec<String>,
}

impl<'a> World<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        let mut world = World {
            options,
            now: 0,
            start: ms(1) + us(20) * (options.nodes + options.drivers) as u64,
            random: Random::new(options.seed),
            queue: BTreeMap::new(),
            sequence: 0,
            head: Head::new(),
            memory: Memory::default(),
            life: 1,
            headless: None,
            heads_died: HashMap::new(),
            joined: HashMap::new(),
            inbox: VecDeque::new(),
            head_is_busy: false,
            nodes: BTreeMap::new(),
            drivers: BTreeMap::new(),
            workers: BTreeMap::new(),
            homes: HashMap::new(),
            next_process: 1,
            arrivals: HashMap::new(),
            cuts: Vec::new(),
            links: options.links.then(|| Links::new(options.seed, options.loss)),
            crashed: HashMap::new(),
            latencies: Vec::new(),
            ranks: HashMap::new(),
            submitted: HashMap::new(),
            fates: Fates::default(),
            broken: None,
            report: Report::default(),
            trace: std::env::var("OUTRAY_TRACE")
                .map(|text| text.split(',').map(Into::into).collect())
                .unwrap_or_default(),
        };
        (0..options.nodes).for_each(|index| world.join(index));
        let homes: Vec<ProcessId> = world.nodes.keys().copied().collect();
        for index in 0..options.drivers {
            let id = world.process();
            let mut out = Effects::default();
            let wish = homes.get(index % homes.len().max(1)).copied();
            let owner = workload::owner(id, wish, &mut out);
            let left = options.tasks / options.drivers + usize::from(index < options.tasks % options.drivers);
            let (shell, succeeded) = (Shell::new(id, owner), BTreeSet::new());
            let (groups, policies) = (Vec::new(), HashMap::new());
            world.joined.insert(id, world.life);
            world.drivers.insert(id, Driver { shell, left, groups, policies, succeeded, finished: false });
            world.perform(id, out);
            world.at(BEAT, Event::Tick(id));
        }
        world.at(BEAT, Event::Tick(HEAD));
        world.at(world.start, Event::Begin);
        world
    }

    fn begin(&mut self) {
        let options = self.options;
        if self.head.holds().0 < options.nodes {
            return self.at(ms(1), Event::Begin);
        }
        match options.sabotage {
            Some(Sabotage::Panic) => panic!("of sabotage"),
            Some(Sabotage::StandStill) => return self.at(0, Event::Begin),
            _ => {}
        }
        self.start = self.now;
        for id in self.drivers.keys().copied().collect::<Vec<_>>() {
            self.at(0, Event::Act(id));
        }
        // Faults come while tasks are submitted and run, and those that take long to be noticed may come later.
        let per_driver = (options.tasks / options.drivers.max(1)) as u64;
        let busy = (options.interval.as_nanos() as u64 * per_driver).max(ms(10));
        for (count, span, event) in [
            (options.crashes, busy + PATIENCE, (|| Event::CrashNode) as fn() -> Event),
            (options.driver_crashes, busy, || Event::CrashDriver),
            (options.endings, busy, || Event::CloseDriver),
            (options.worker_crashes, busy, || Event::CrashWorker),
            (options.head_crashes, busy, || Event::CrashHead),
            (options.partitions, busy + PATIENCE, || Event::Cut),
            (options.cancellations, busy, || Event::Cancel),
        ] {
            for _ in 0..count {
                let span = if self.random.one_in(2) { busy } else { span };
                let after = self.random.below(span);
                self.at(after, event());
            }
        }
    }

    pub(super) fn process(&mut self) -> ProcessId {
        self.next_process += 1;
        ProcessId(self.next_process - 1)
    }

    pub(super) fn at(&mut self, after: Nanos, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), event);
    }

    fn join(&mut self, index: usize) {
        let id = self.process();
        self.fates.nodes.insert(id);
        let capacity = workload::capacity(self.options, index);
        let mut out = Effects::default();
        let mut node = Node::new(id, self.believed(capacity.clone()), workload::labels(index), &mut out);
        node.keep_small(workload::KEPT);
        if self.options.packs {
            node.hand_out_ahead(worker::AHEAD);
        }
        let (running, values, workers) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let (waiting, asked, tick) = (Vec::new(), BTreeSet::new(), 0);
        if self.headless.is_none() {
            self.joined.insert(id, self.life);
        }
        self.nodes.insert(id, SimNode { node, index, capacity, running, waiting, asked, values, workers, tick });
        self.perform(id, out);
        if self.options.borrowing {
            (0..2).for_each(|_| self.hire(id));
        }
        self.tick_later(id);
    }

    /// Sees to it that the node is looked after in time.
    pub(super) fn tick_later(&mut self, id: ProcessId) {
        let Some(sim) = self.nodes.get_mut(&id) else { return };
        let due = sim.node.next_tick().max(self.now + 1);
        if sim.tick <= self.now || due < sim.tick {
            sim.tick = due;
            self.at(due - self.now, Event::Tick(id));
        }
    }

    pub(super) fn send(&mut self, from: ProcessId, to: ProcessId, message: Message) {
        self.report.messages += 1;
        if from == HEAD || to == HEAD {
            let of_task = matches!(
                message,
                Message::Place(_) | Message::Assign(_) | Message::Placed { .. } | Message::Unplaceable { .. }
            );
            self.report.head_task_messages += usize::from(of_task);
        }
        let parcel = self.parcel(from, &message);
        let bulk = match &message {
            Message::Pushed { size, .. } => Some(*size),
            _ => None,
        };
        let life = match (from, to) {
            (HEAD, _) => self.life,
            (_, HEAD) => self.joined(from),
            _ => 0,
        };
        let letter = Letter { from, to, message, parcel, life };
        let (station, other) = (self.station(from), self.station(to));
        if self.links.is_some() && station != other {
            let time = Bandwidth::default().transfer_time(bulk.unwrap_or(0));
            let after = if from == station { time } else { self.pipe((from, station), time) };
            let in_life = |process| (process, if process == HEAD { life } else { 0 });
            let (from, to) = (in_life(station), in_life(other));
            return self.at(after, Event::Links(links::Event::Send { from, to, letter: Box::new(letter) }));
        }
        if self.links.is_some() {
            let after = self.pipe((from, to), Bandwidth::default().transfer_time(bulk.unwrap_or(0)));
            return self.at(after, Event::Deliver { by: from, letter: Box::new(letter) });
        }
        let mut after =
            LATENCY.0 + self.random.exponential(LATENCY.1) + Bandwidth::default().transfer_time(bulk.unwrap_or(0));
        if self.random.one_in(self.options.loss) {
            after += RETRANSMISSION;
        }
        let between = |a: &BTreeSet<_>, b: &BTreeSet<_>| a.contains(&from) && b.contains(&to);
        let apart = self.cuts.iter().filter(|(a, b, _)| between(a, b) || between(b, a));
        let healed = apart.map(|cut| cut.2).max().unwrap_or(0);
        let after = after.max(healed.saturating_sub(self.now));
        let after = self.in_order((from, to, bulk.is_some()), after);
        self.at(after, Event::Deliver { by: from, letter: Box::new(letter) });
    }

    /// How much later something arrives on this way, which keeps the order, if it takes so long by itself.
    fn in_order(&mut self, way: (ProcessId, ProcessId, bool), after: Nanos) -> Nanos {
        let last = self.arrivals.entry(way).or_default();
        *last = (self.now + after).max(*last + 1);
        *last - self.now
    }

    /// The same between a worker and its node.
    fn pipe(&mut self, (from, to): (ProcessId, ProcessId), time: Nanos) -> Nanos {
        let after = LATENCY.0 + self.random.exponential(LATENCY.1) + time;
        self.in_order((from, to, false), after)
    }

    /// The process with links that speaks for this one: the node of a worker, or itself.
    fn station(&self, process: ProcessId) -> ProcessId {
        self.homes.get(&process).copied().unwrap_or(process)
    }

    /// The head that a process speaks to; workers go through their nodes.
    fn joined(&self, process: ProcessId) -> u64 {
        self.joined.get(&self.station(process)).copied().unwrap_or(0)
    }

    /// The head dies, and everybody notices that some time later.
    fn crash_head(&mut self) {
        if self.headless.is_some() {
            return;
        }
        self.headless = Some(self.now);
        self.heads_died.insert(self.life, self.now);
        self.inbox.clear();
        let stations: Vec<_> = self.nodes.keys().chain(self.drivers.keys()).copied().collect();
        for station in stations {
            let after = ms(1) + self.random.below(NOTICED);
            self.at(after, Event::Headless(station, self.life));
        }
        let after = ms(1) + self.random.below(HEADLESS);
        self.at(after, Event::StartHead);
    }

    fn start_head(&mut self) {
        self.headless = None;
        self.life += 1;
        self.report.head_starts += 1;
        self.head = Head::restarted(self.now, self.memory.clone());
        let stations: Vec<_> = self.nodes.keys().chain(self.drivers.keys()).copied().collect();
        for station in stations {
            let after = NOTICED + self.random.below(FOUND);
            self.at(after, Event::Found(station, self.life));
        }
    }

    /// A process joins the head that was started again.
    fn found(&mut self, process: ProcessId, life: u64) {
        if life != self.life || self.headless.is_some() {
            return;
        }
        let mut out = Effects::default();
        if let Some(sim) = self.nodes.get_mut(&process) {
            sim.node.head_is_gone(); // if it had not noticed
            sim.node.join_again(self.now, &mut out);
            let workers = sim.workers.clone();
            self.joined.insert(process, life);
            self.perform(process, out);
            self.tick_later(process);
            for worker in workers {
                let after = self.random.below(ms(5));
                self.at(after, Event::Found(worker, life));
            }
        } else {
            if self.drivers.contains_key(&process) {
                self.joined.insert(process, life);
            }
            self.with(process, |shell, out| shell.owner.join_again(out));
        }
    }

    /// The handles in the value that comes with a message.
    fn parcel(&self, from: ProcessId, message: &Message) -> Arc<[ObjectId]> {
        let (Message::Pushed { object, .. } | Message::Here { object }) = message else { return Arc::from([]) };
        if let Some(sim) = self.nodes.get(&from) {
            return sim.values.get(object).cloned().unwrap_or_else(|| Arc::from([]));
        }
        match self.shell(from).and_then(|shell| shell.owner.value(*object)) {
            Some(Value::Inline(bytes)) => shell::from_bytes(&bytes).into(),
            _ => Arc::from([]),
        }
    }

    pub(super) fn perform(&mut self, process: ProcessId, out: Effects) {
        for note in out.notes {
            if let Note::Died(process) = note {
                self.fates.dead.insert(process);
            }
            self.memory.note(note);
        }
        for (to, message) in self.tampered(out.sends) {
            if to == worker::HANDS {
                let (object, failure) = match message {
                    Message::Here { object } => (object, None),
                    Message::Lost { object, why } => (object, Some(why)),
                    other => unreachable!("{other:?}, to what has only asked"),
                };
                self.at(LATENCY.0, Event::Answer { node: process, object, failure });
                continue;
            }
            match self.workers.get_mut(&process) {
                Some(worker) if to != HEAD && worker.shell.owner.next().1.is_none() => {
                    worker.unsaid.push((to, message))
                }
                _ => self.send(process, to, message),
            }
        }
        let later: Vec<_> = out.starts.into_iter().filter_map(|spec| self.hand_over(process, spec)).collect();
        for (task, attempt) in out.stops {
            // It notices a little later.
            let after = self.random.exponential(us(200));
            self.at(after, Event::End { node: process, task, attempt, stop: true });
        }
        for (task, attempt) in out.recalls {
            let after = self.random.exponential(us(100));
            self.at(after, Event::Recall { node: process, task, attempt });
        }
        for (object, well) in out.done {
            self.ended(process, object, well);
            if self.options.sabotage == Some(Sabotage::EndTwice) {
                self.ended(process, object, well);
            }
        }
        for (object, _) in out.ended {
            self.stays_no_more(process, object);
        }
        for object in out.freed {
            self.freed(process, object);
        }
        for group in out.groups {
            self.group_is_ready(process, group);
        }
        later.into_iter().for_each(|out| self.perform(process, out));
        self.run_waiting(process);
        self.check_node(process);
        if out.fenced {
            self.fenced(process);
        }
    }

    pub(super) fn shell(&self, process: ProcessId) -> Option<&Shell> {
        let driver = self.drivers.get(&process).map(|driver| &driver.shell);
        driver.or_else(|| self.workers.get(&process).map(|worker| &worker.shell))
    }

    /// Does something with the handles of a process, and what follows from it.
    pub(super) fn with<R>(&mut self, id: ProcessId, what: impl FnOnce(&mut Shell, &mut Effects) -> R) -> Option<R> {
        let driver = self.drivers.get_mut(&id).map(|driver| &mut driver.shell);
        let shell = driver.or_else(|| self.workers.get_mut(&id).map(|worker| &mut worker.shell))?;
        let mut out = Effects::default();
        let result = what(shell, &mut out);
        let (suspects, ready) = (std::mem::take(&mut shell.suspects), std::mem::take(&mut shell.ready));
        for (object, guard) in suspects {
            if self.lives(id) && self.lives(object.owner) && self.is_kept_by(object, guard) {
                self.broken = Some(format!("{id:?} has a handle to {object:?}, kept by {guard:?}, and it is gone"));
            }
        }
        self.perform(id, out);
        for key in ready {
            self.finish(id, key);
        }
        self.nudge(id);
        Some(result)
    }

    /// Whether it lives, and nobody thinks otherwise.
    pub(super) fn lives(&self, process: ProcessId) -> bool {
        self.shell(process).is_some() && !self.head.has_buried(process)
    }

    /// Whether what is to keep an object is still there.
    fn is_kept_by(&self, object: ObjectId, guard: Guard) -> bool {
        let keeper = |process| {
            let shell = self.shell(process).filter(|_| self.lives(process));
            shell.filter(|shell| object.owner == process || shell.has(object))
        };
        let by_task = |task: ObjectId| keeper(task.owner).is_some_and(|shell| shell.args(task).is_some());
        match guard {
            Guard::Task(task) => by_task(task),
            Guard::Value(value) => keeper(value.owner).is_some_and(|shell| shell.keeps_inside(value, object)),
            Guard::Worker(worker, key) => {
                let node = self.workers.get(&worker).and_then(|worker| self.nodes.get(&worker.node));
                // It came with the task, as an argument or inside one, or the worker has it by itself. What was inside one that was
                // made again may be gone.
                let has_inside =
                    |arg: &ObjectId| keeper(arg.owner).is_some_and(|shell| shell.keeps_inside(*arg, object));
                let args = keeper(key.0.owner).and_then(|shell| shell.args(key.0));
                let has_come = args.is_some_and(|args| args.contains(&object) || args.iter().any(has_inside));
                node.is_some_and(|sim| sim.running.contains_key(&key)) && (has_come || keeper(worker).is_some())
            }
            Guard::Ours => true,
        }
    }

    fn ended(&mut self, process: ProcessId, object: ObjectId, well: bool) {
        let Some(shell) = self.shell(process) else { return };
        let value = shell.owner.value(object).map(|value| (shell.owner.maker(object), value));
        if let Some(why) = shell.owner.failure(object)
            && let Some(arg) = shell.args(object).into_iter().flatten().find(|arg| shell::is_forgotten(&why, **arg))
            && shell.has(*arg)
            && self.lives(process)
            && self.lives(arg.owner)
        {
            self.broken = Some(format!("{object:?} failed, because its argument {arg:?} is gone"));
        }
        let is_withdrawn = |why: Arc<Error>| matches!(*why, Error::Shutdown { .. });
        if self.shell(process).and_then(|shell| shell.owner.failure(object)).is_some_and(is_withdrawn) {
            self.report.withdrawn += 1;
            let runs = |sim: &SimNode| sim.running.keys().any(|(task, _)| *task == object);
            if !self.has_faults() && self.nodes.values().any(runs) {
                self.broken = Some(format!("{object:?} runs, and was not waited for when its owner ended"));
            }
        }
        if self.with(process, |shell, out| shell.ended(object, out)) == Some(false) {
            self.broken = Some(format!("task {object:?} ended, but it was not pending"));
        }
        if self.shell(process).is_some_and(|shell| !shell.parts.contains(&object)) {
            self.report.ended += 1;
            self.report.failed += usize::from(!well);
        }
        if let Some((maker, value)) = value {
            match &value {
                Value::Failed(why) if !self.is_explained(why) => {
                    self.broken = Some(format!("{object:?} failed, which nothing explains: {why}"));
                }
                value => self.broken = self.fates.wrong(object, maker, value).or(self.broken.take()),
            }
        }
        if let Some(driver) = self.drivers.get_mut(&process).filter(|_| well) {
            driver.succeeded.insert(object);
        }
    }

    /// An actor has died.
    fn stays_no_more(&mut self, process: ProcessId, object: ObjectId) {
        if let Some(driver) = self.drivers.get_mut(&process) {
            driver.succeeded.remove(&object);
        }
        let again = !self.random.one_in(3);
        let starts = |shell: &mut Shell, out: &mut Effects| {
            let starts = again && shell.owner.restart(object, out);
            starts && shell.pending.insert(object)
        };
        if self.with(process, starts) != Some(true) {
            self.cancel(process, object);
        }
    }

    /// The owner has dropped a value.
    fn freed(&mut self, process: ProcessId, object: ObjectId) {
        if self.options.borrowing && self.lives(process) {
            let others = self.drivers.keys().chain(self.workers.keys()).copied();
            let has = |id: &ProcessId| self.lives(*id) && self.shell(*id).is_some_and(|shell| shell.has(object));
            if let Some(holder) = others.into_iter().find(has) {
                self.broken = Some(format!("{object:?} is freed while {holder:?} has a handle to it"));
            }
        }
        self.with(process, |shell, out| shell.freed(object, out));
    }

    /// It was declared dead, and lives: it starts anew.
    pub(super) fn fenced(&mut self, process: ProcessId) {
        if let Some(sim) = self.nodes.remove(&process) {
            self.died(process);
            self.dismiss(&sim);
            self.join(sim.index);
        } else if self.drivers.remove(&process).is_some() {
            self.died(process);
        } else {
            self.crash_worker(process);
        }
    }

    pub(super) fn died(&mut self, process: ProcessId) {
        self.crashed.insert(process, self.now);
        self.fates.dead.insert(process);
    }

    /// Whether somebody dies, or is thought to.
    pub(super) fn has_faults(&self) -> bool {
        let Options { crashes, driver_crashes, worker_crashes, partitions, head_crashes, .. } = self.options;
        crashes + driver_crashes + worker_crashes + partitions + head_crashes > 0
    }

    pub(super) fn run(mut self) -> Result<Report, String> {
        let faults = self.has_faults();
        let grace = delay(self.options) + if self.options.borrowing { GRACE + PATIENCE } else { 0 };
        let faults = faults || self.options.links;
        let mut until = LIMIT;
        let mut quiet = false;
        // From when on it is looked whether anything stays.
        let mut look = Nanos::MAX;
        let (mut millisecond, mut events) = (0, 0);
        while let Some(((time, _), event)) = self.queue.pop_first() {
            // On bad links a node may be thought to have died even now; it joins again.
            let is_whole = self.head.holds().0 == self.nodes.len();
            if time > if is_whole { until } else { LIMIT.min(until + 10 * PATIENCE) } {
                break;
            }
            self.now = time;
            if millisecond != time / ms(1) {
                (millisecond, events) = (time / ms(1), 0);
            }
            events += 1;
            if events > MOST_EVENTS {
                return Err(format!("time stands still at {time} ns, the next would be {event:?}"));
            }
            self.step(event);
            if let Some(rule) = self.broken {
                return Err(rule);
            }
            if !quiet
                && self.drivers.values().all(|driver| driver.finished)
                && self.workers.values().all(|worker| worker.shell.leftovers().is_none())
            {
                self.report.time = Duration::from_nanos(self.now - self.start);
                look = self.now + if faults { 3 * PATIENCE + REPLACEMENT } else { ms(200) };
                until = look + if faults { grace } else { 0 };
                quiet = true;
            }
            if self.now >= look && self.headless.is_none() {
                if self.check_nothing_stays().is_ok() {
                    break;
                }
                look = self.now + BEAT;
            }
        }
        if !quiet {
            let drivers = self.drivers.iter().map(|(id, driver)| (id, &driver.shell));
            let waiting = drivers.chain(self.workers.iter().map(|(id, worker)| (id, &worker.shell)));
            let waiting = waiting.map(|(id, shell)| (id, &shell.pending, shell.leftovers()));
            return Err(format!("it did not come to an end; these wait: {:?}", waiting.collect::<Vec<_>>()));
        }
        self.check_nothing_stays()?;
        self.latencies.sort_unstable();
        let at = |percent: usize| {
            let index = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
            Duration::from_nanos(self.latencies.get(index).copied().unwrap_or(0))
        };
        (self.report.latency_p50, self.report.latency_p99) = (at(50), at(99));
        Ok(self.report)
    }

    fn step(&mut self, event: Event) {
        if !self.trace.is_empty() {
            let text = format!("{event:?}");
            let is_fault = matches!(
                event,
                Event::CrashNode
                    | Event::CrashDriver
                    | Event::CloseDriver
                    | Event::CrashWorker
                    | Event::CrashHead
                    | Event::StartHead
                    | Event::Cut
                    | Event::Join(_)
            );
            if is_fault || self.trace.iter().any(|part| text.contains(part)) {
                println!("{:>14} ns {text}", self.now);
            }
        }
        let mut out = Effects::default();
        match event {
            Event::Deliver { by, letter } => self.deliver(by, *letter),
            Event::Begin => self.begin(),
            Event::Tick(HEAD) => {
                if self.headless.is_none() {
                    self.head.tick(self.now, &mut out);
                }
                self.at(BEAT, Event::Tick(HEAD));
                self.perform(HEAD, out);
            }
            Event::Tick(process) => {
                if let Some(sim) = self.nodes.get_mut(&process) {
                    sim.node.tick(self.now, &mut out);
                    self.perform(process, out);
                    self.tick_later(process);
                } else {
                    let now = self.now;
                    if self.with(process, |shell, out| shell.tick(now, out)).is_some() {
                        self.at(BEAT, Event::Tick(process));
                    }
                }
            }
            Event::Head => {
                let Some((from, message)) = self.inbox.pop_front() else {
                    self.head_is_busy = false;
                    return;
                };
                self.report.head_messages += 1;
                let start = self.options.measure_head.then(Instant::now);
                self.head.handle(self.now, from, message, &mut out);
                self.report.head_time += start.map_or(Duration::ZERO, |start| start.elapsed());
                self.at(self.options.head_message_time.as_nanos() as u64, Event::Head);
                self.perform(HEAD, out);
            }
            Event::End { node, task, attempt, stop: true } => self.stop(node, (task, attempt)),
            Event::End { node, task, attempt, stop: false } => self.is_over(node, (task, attempt)),
            Event::Recall { node, task, attempt } => self.give_back(node, (task, attempt)),
            Event::Act(process) if self.workers.contains_key(&process) => self.act_worker(process),
            Event::Act(driver) => self.act(driver),
            Event::CrashWorker => {
                if let Some(victim) = self.pick(self.workers.keys().copied().collect()) {
                    self.crash_worker(victim);
                }
            }
            Event::CrashHead => self.crash_head(),
            Event::StartHead => self.start_head(),
            Event::Headless(process, life) => {
                if let Some(sim) = self.nodes.get_mut(&process).filter(|_| self.joined.get(&process) == Some(&life)) {
                    sim.node.head_is_gone();
                }
            }
            Event::Found(process, life) => self.found(process, life),
            Event::Ask { node, object } => {
                if let Some(sim) = self.nodes.get_mut(&node) {
                    let want = Message::Want { object, holders: Vec::new() };
                    sim.node.handle(self.now, worker::HANDS, want, &mut out);
                    self.perform(node, out);
                    self.tick_later(node);
                }
            }
            Event::Answer { node, object, failure } => self.answered(node, object, failure),
            Event::Miss { node, worker } => self.miss(node, worker),
            Event::Call { caller, node, actor, result } => self.called(caller, node, actor, result),
            Event::CrashNode => {
                if let Some(victim) = self.pick(self.nodes.keys().copied().collect())
                    && let Some(sim) = self.nodes.remove(&victim)
                {
                    self.died(victim);
                    self.dismiss(&sim);
                    self.at(REPLACEMENT, Event::Join(sim.index));
                }
            }
            Event::CrashDriver => {
                if let Some(victim) = self.pick(self.drivers.keys().copied().collect()) {
                    self.drivers.remove(&victim);
                    self.died(victim);
                }
            }
            Event::CloseDriver => {
                if let Some(id) = self.pick(self.drivers.keys().copied().collect())
                    && let Some(driver) = self.drivers.get_mut(&id)
                {
                    driver.left = 0;
                    self.fates.closed.insert(id);
                    self.with(id, |shell, out| shell.owner.close(id, out));
                }
            }
            Event::Cut => {
                let all = self.nodes.keys().chain(self.drivers.keys()).chain(self.workers.keys());
                let all: Vec<_> = all.copied().collect();
                let (some, mut others): (BTreeSet<_>, BTreeSet<_>) =
                    all.into_iter().partition(|_| self.random.one_in(3));
                // The head is on the other side, or can be reached by all.
                if self.random.one_in(2) {
                    others.insert(HEAD);
                }
                let until = self.now + self.random.below(2 * PATIENCE);
                self.cuts.push((some, others, until));
            }
            Event::Cancel => {
                let pending =
                    self.drivers.iter().flat_map(|(id, driver)| driver.shell.pending.iter().map(|task| (*id, *task)));
                let pending: Vec<_> = pending.collect();
                let at = self.random.below(pending.len() as u64) as usize;
                if let Some((id, task)) = pending.get(at) {
                    self.cancel(*id, *task);
                }
            }
            Event::Join(index) => self.join(index),
            Event::Links(event) => self.link(event),
        }
    }

    fn link(&mut self, event: links::Event) {
        if let links::Event::Send { letter, .. } = &event
            && self.homes.contains_key(&letter.from)
            && !self.workers.contains_key(&letter.from)
        {
            return; // it was in the pipe when the worker died
        }
        let Some(links) = &mut self.links else { return };
        let mut out = links::Effects::default();
        let (nodes, drivers, cuts, now) = (&self.nodes, &self.drivers, &self.cuts, self.now);
        let head = Some(self.life).filter(|_| self.headless.is_none());
        let is_alive = |(process, life)| match process {
            HEAD => head == Some(life),
            _ => nodes.contains_key(&process) || drivers.contains_key(&process),
        };
        let is_cut = |(a, _), (b, _)| {
            let between = |(some, others, until): &(BTreeSet<_>, BTreeSet<_>, Nanos)| {
                now < *until && (some.contains(&a) && others.contains(&b) || some.contains(&b) && others.contains(&a))
            };
            cuts.iter().any(between)
        };
        links.handle(&Weather { now, is_alive: &is_alive, is_cut: &is_cut }, event, &mut out);
        (self.report.packets, self.report.lost_packets) = (links.packets, links.lost_packets);
        self.report.connections = links.connections;
        self.broken = self.broken.take().or(out.broken);
        for (after, event) in out.later {
            self.at(after, Event::Links(event));
        }
        for ((from, _), (to, _), letter) in out.delivered {
            let after = if letter.to == to { 0 } else { self.pipe((to, letter.to), 0) };
            self.at(after, Event::Deliver { by: from, letter: Box::new(letter) });
        }
    }

    pub(super) fn pick<T: Copy>(&mut self, from: Vec<T>) -> Option<T> {
        let at = self.random.below(from.len() as u64) as usize;
        from.get(at).copied()
    }

    fn deliver(&mut self, by: ProcessId, letter: Letter) {
        let Letter { from, to, message, parcel, life } = letter;
        if to == HEAD && (self.headless.is_some() || life != self.life) || from == HEAD && life != self.joined(to) {
            return;
        }
        // Of what a process had sent when it died, the first part arrives on each way, and the rest does not.
        let crash = if by == HEAD { self.heads_died.get(&life) } else { self.crashed.get(&by) };
        if let Some(crash) = crash {
            let cut = Random::new(self.options.seed ^ (from.0 << 32) ^ to.0).below(us(200));
            if self.now > crash + cut {
                return;
            }
        }
        if to == HEAD {
            self.inbox.push_back((from, message));
            if !std::mem::replace(&mut self.head_is_busy, true) {
                self.at(0, Event::Head);
            }
            return;
        }
        let mut out = Effects::default();
        if let Some(sim) = self.nodes.get_mut(&to) {
            self.report.stolen += usize::from(matches!(message, Message::Stolen(_)));
            let came = match message {
                Message::Pushed { object, .. } => Some(object).filter(|object| !sim.node.stores(*object)),
                _ => None,
            };
            sim.node.handle(self.now, from, message, &mut out);
            sim.values.retain(|object, _| sim.node.stores(*object));
            if let Some(object) = came.filter(|object| sim.node.stores(*object)) {
                sim.values.insert(object, parcel);
            }
            self.perform(to, out);
            self.tick_later(to);
        } else {
            self.with(to, |shell, out| shell.handle(from, message, &parcel, out));
            if let Some(worker) = self.workers.get_mut(&to).filter(|worker| worker.shell.owner.next().1.is_some()) {
                let sends = std::mem::take(&mut worker.unsaid);
                self.perform(to, Effects { sends, ..Effects::default() });
            }
        }
    }

    fn act(&mut self, id: ProcessId) {
        if self.head.has_buried(id) {
            return self.fenced(id); // the nodes have dropped what it owned, and it is about to hear of it
        }
        let Some(driver) = self.drivers.get_mut(&id) else { return };
        let mut again = Some(ms(1));
        if driver.left > 0 {
            // If all are dead at the moment it tries again.
            let most = driver.left;
            let submitted = match self.options.packs && self.random.one_in(3) {
                true => self.submit_packs(id, most),
                false => {
                    self.submit(id, &[], None);
                    1
                }
            };
            if let Some(driver) = self.drivers.get_mut(&id).filter(|_| !self.nodes.is_empty()) {
                driver.left = driver.left.saturating_sub(submitted);
            }
            self.play(id);
            again = Some(self.random.exponential(self.options.interval.as_nanos() as u64));
        } else if self.options.groups && (!driver.groups.is_empty() || !driver.shell.is_idle()) {
            self.give_up_some(id); // others may wait for what it holds
        } else if driver.shell.is_idle() {
            let shell = &mut driver.shell;
            // Everything is asked for once more: what was lost meanwhile is made again.
            let mut out = Effects::default();
            let ours: Vec<_> = shell.state.iter().copied().filter(|object| object.owner == id).collect();
            let waits = ours.iter().filter(|object| !shell.owner.want(**object, &mut out)).count();
            if waits == 0 {
                let broken = ours.iter().find_map(|object| self.misses(id, *object));
                self.broken = self.broken.take().or(broken);
                let Some(driver) = self.drivers.get_mut(&id) else { return };
                let shell = &mut driver.shell;
                for object in std::mem::take(&mut shell.state) {
                    shell.drop(object, &mut out);
                }
                driver.finished = true;
                again = None;
            }
            self.perform(id, out);
        }
        if let Some(after) = again {
            self.at(after, Event::Act(id));
        }
    }

    /// What is wrong with an object of a driver's to which it has a handle, and that it has asked for.
    fn misses(&self, id: ProcessId, object: ObjectId) -> Option<String> {
        let driver = self.drivers.get(&id)?;
        let owner = &driver.shell.owner;
        if let Some(why) = owner.failure(object).filter(|_| driver.succeeded.contains(&object))
            && !self.may_be_lost(&why)
        {
            return Some(format!("{object:?} was there, and is lost: {why}"));
        }
        let place = owner.place(object).and_then(|place| self.crashed.get(&place));
        if place.is_some_and(|crash| crash + 3 * PATIENCE + delay(self.options) < self.now) {
            return Some(format!("{object:?} is thought to be on a node that is dead"));
        }
        let mut holders = owner.holders(object).into_iter().flatten();
        let has_not = |holder: &&ProcessId| self.nodes.get(holder).is_some_and(|sim| !sim.node.stores(object));
        if let Some(holder) = holders.find(has_not) {
            return Some(format!("{holder:?} should have {object:?}, and has not"));
        }
        let value = owner.value(object)?;
        self.fates.wrong(object, owner.maker(object), &value)
    }

    /// The rank of what is made next, in a task or outside.
    pub(super) fn rank(&mut self, task: Option<ObjectId>) -> u64 {
        self.sequence += 1;
        match task {
            Some(task) => self.ranks.get(&task).map_or(0, |rank| rank.saturating_sub(1)),
            None => self.sequence << 8,
        }
    }

    /// Submits a task with some of its handles, and of these.
    pub(super) fn submit(&mut self, id: ProcessId, others: &[ObjectId], within: Option<ObjectId>) -> Option<ObjectId> {
        let nodes: Vec<ProcessId> = self.nodes.keys().copied().take(64).collect();
        let handles = [&self.shell(id)?.state, others].concat();
        if nodes.is_empty() {
            return None;
        }
        let groups = self.drivers.get(&id).map(|driver| &driver.groups);
        let (work, inside) = workload::work(self.options, &mut self.random, (id, &handles), &nodes, groups);
        let body = Body::of(&work.body.alone(None));
        let (task, parts) = (self.shell(id)?.owner.next().0, body.parts);
        self.fates.planned(task, &work, body);
        let object = self.with(id, |shell, out| shell.submit(work, parts, inside, out))?;
        self.submitted.insert(object, self.now);
        if self.options.borrowing {
            let rank = self.rank(within);
            let all = (0..=u64::from(parts)).map(|part| ObjectId { number: object.number + part, ..object });
            self.ranks.extend(all.map(|object| (object, rank)));
        }
        Some(object)
    }

    /// Submits many small tasks, and says how many.
    fn submit_packs(&mut self, id: ProcessId, most: usize) -> usize {
        if self.nodes.is_empty() {
            return 0;
        }
        let (common, work, count) = workload::pack(id, &mut self.random);
        let Some((first, _)) = self.shell(id).map(|shell| shell.owner.next()) else { return 0 };
        let mut values = Vec::new();
        for number in (first.number..).take(count.min(most as u64) as usize) {
            let body = workload::member(self.options, &mut self.random);
            self.fates.planned(ObjectId { number, ..first }, &work, body);
            values.push(body.to_bytes().0);
        }
        let tasks = self.with(id, |shell, out| shell.submit_packs((&common, &work), values, out)).unwrap_or_default();
        for task in &tasks {
            self.submitted.insert(*task, self.now);
            if self.options.borrowing {
                let rank = self.rank(None);
                self.ranks.insert(*task, rank);
            }
        }
        tasks.len()
    }

    /// Puts something, passes handles on to itself and drops some.
    fn play(&mut self, id: ProcessId) {
        if !self.options.mixed {
            return;
        }
        if self.random.one_in(10) {
            self.put(id, None);
        }
        let next = self.shell(id).map(|shell| shell.owner.next());
        if self.random.one_in(10)
            && let Some((object, Some(home))) = next
            && let Some(sim) = self.nodes.get_mut(&home)
            && sim.node.put(object, 1 << 20)
        {
            self.with(id, |shell, _| {
                let object = shell.owner.put_stored(1 << 20);
                shell.state.push(object);
            });
        }
        if self.random.one_in(10)
            && let Some(object) = self.any(id)
        {
            self.with(id, |shell, _| {
                if shell.hold(object, Guard::Ours) {
                    shell.state.push(object);
                }
            });
        }
        if self.options.borrowing {
            self.pass_on(id);
        }
        if self.options.groups && self.random.one_in(12) {
            self.create_group(id);
        }
        if self.random.one_in(2) {
            self.let_go(id);
        }
    }

    /// Has something set aside.
    fn create_group(&mut self, id: ProcessId) {
        let bundles = workload::bundles(self.options, &mut self.random);
        let policies = [Policy::Pack, Policy::Spread, Policy::StrictPack, Policy::StrictSpread];
        let policy = policies[self.random.below(4) as usize];
        let patience = Some(ms(50) + self.random.below(ms(5_000)));
        let create =
            |shell: &mut Shell, out: &mut Effects| shell.owner.create_group(bundles.clone(), policy, patience, out);
        if let Some(group) = self.with(id, create)
            && let Some(driver) = self.drivers.get_mut(&id)
        {
            self.fates.groups.insert(group, bundles.clone());
            driver.groups.push((group, bundles));
            driver.policies.insert(group, policy);
        }
    }

    /// Gives up a group, or an actor.
    fn give_up_some(&mut self, id: ProcessId) {
        let Some(driver) = self.drivers.get_mut(&id) else { return };
        let count = driver.groups.len() as u64;
        if count > 0 && self.random.one_in(20) {
            let (group, _) = driver.groups.swap_remove(self.random.below(count) as usize);
            self.fates.groups.remove(&group);
            self.with(id, |shell, out| shell.owner.remove_group(group, out));
        }
        let actors = self.shell(id).map_or_else(Vec::new, |shell| shell.actors.clone());
        if let Some(actor) = self.pick(actors).filter(|_| self.random.one_in(20)) {
            self.with(id, |shell, _| shell.actors.retain(|other| *other != actor));
            self.cancel(id, actor);
        }
    }

    fn group_is_ready(&mut self, process: ProcessId, group: ObjectId) {
        let Some(driver) = self.drivers.get(&process) else { return };
        let places = match driver.shell.owner.group(group) {
            Some(Group::Ready(places)) => places,
            _ => return drop(self.fates.groups.remove(&group)),
        };
        self.report.groups += 1;
        let different: BTreeSet<_> = places.iter().collect();
        let is_kept = match driver.policies.get(&group) {
            Some(Policy::StrictPack) => different.len() == 1,
            Some(Policy::StrictSpread) => different.len() == places.len(),
            _ => true,
        };
        let is_there = |(bundle, node): (usize, &ProcessId)| {
            let sim = self.nodes.get(node).filter(|_| !self.head.has_buried(*node));
            sim.is_none_or(|sim| sim.node.reserved().any(|(id, at, ..)| (id, at as usize) == (group, bundle)))
        };
        if !is_kept || !places.iter().enumerate().all(is_there) {
            self.broken = Some(format!("group {group:?} is not as it should be: {places:?}"));
        }
    }

    /// One of the handles of a process.
    pub(super) fn any(&mut self, id: ProcessId) -> Option<ObjectId> {
        let count = self.shell(id)?.state.len() as u64;
        let at = self.random.below(count) as usize;
        self.shell(id)?.state.get(at).copied()
    }

    /// Drops a handle.
    pub(super) fn let_go(&mut self, id: ProcessId) {
        let Some(object) = self.any(id) else { return };
        self.with(id, |shell, out| {
            if let Some(at) = shell.state.iter().position(|other| *other == object) {
                shell.state.swap_remove(at);
                shell.drop(object, out);
            }
        });
        if let Some(driver) = self.drivers.get_mut(&id).filter(|driver| !driver.shell.state.contains(&object)) {
            driver.succeeded.remove(&object);
        }
    }

    /// Ends a task, or an actor.
    fn cancel(&mut self, id: ProcessId, object: ObjectId) {
        let Some(maker) = self.shell(id).map(|shell| shell.owner.maker(object)) else { return };
        self.fates.cancelled.insert(maker);
        self.with(id, |shell, out| shell.owner.cancel(maker, out));
    }

    /// Whether what is used on a node is there.
    pub(super) fn check_node(&mut self, id: ProcessId) {
        if let Some(Err(rule)) = self.nodes.get(&id).map(SimNode::check) {
            self.broken = Some(format!("at {} ns, node {id:?}: {rule}", self.now));
        }
    }

    fn check_nothing_stays(&self) -> Result<(), String> {
        for id in self.drivers.keys().chain(self.workers.keys()) {
            if let Some(left) = self.shell(*id).and_then(Shell::leftovers) {
                return Err(format!("{id:?} keeps {left}, though it has let go of everything"));
            }
        }
        for (id, sim) in &self.nodes {
            let holds = sim.node.holds();
            if holds != (0, 0, 0) {
                return Err(format!("node {id:?} keeps (tasks, objects, fetches) {holds:?}"));
            }
            if sim.node.is_serving() {
                return Err(format!("node {id:?} waits for nodes that it sends objects to"));
            }
            if *sim.node.free() != sim.capacity {
                return Err(format!("node {id:?} has {:?} free of {:?}", sim.node.free(), sim.capacity));
            }
        }
        match self.head.holds() {
            (nodes, 0, 0) if nodes == self.nodes.len() => Ok(()),
            holds => Err(format!("the head knows (nodes, tasks, groups) {holds:?}, there are {}", self.nodes.len())),
        }
    }
}

impl SimNode {
    /// Whether what the node lets run fits what there is, and so does what runs.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_ahead = |key: &(ObjectId, u32)| self.node.task(key.0, key.1).is_some_and(|task| task.is_ahead);
        let allowed = self.running.iter().filter(|(key, _)| !is_ahead(key));
        self.fit(allowed).and_then(|()| self.fit(self.runs()))
    }

    fn runs(&self) -> impl Iterator<Item = (&(ObjectId, u32), &Job)> {
        self.running.iter().filter(|(_, job)| !matches!(job.phase, Phase::Waits(_)))
    }

    fn fit<'j>(&'j self, jobs: impl Iterator<Item = (&'j (ObjectId, u32), &'j Job)>) -> Result<(), String> {
        let mut plain = Vec::new();
        let mut bundles: BTreeMap<_, Vec<Use<'_>>> = BTreeMap::new();
        for ((task, attempt), job) in jobs {
            let used: Use<'_> = (&job.demand, self.node.devices(*task, *attempt));
            match job.bundle {
                Some(bundle) => bundles.entry(bundle).or_default().push(used),
                None => plain.push(used),
            }
        }
        for (group, bundle, demand, devices) in self.node.reserved() {
            plain.push((demand, devices));
            if let Some(jobs) = bundles.remove(&(group, bundle)) {
                let fits = fits(&jobs, (&Capacity::of(demand), devices));
                fits.map_err(|why| format!("in bundle {bundle} of {group:?} {why}"))?;
            }
        }
        let rooms = self.capacity.gpus.rooms.iter().enumerate();
        let devices = rooms.map(|(place, room)| Part { place, thousandths: room.thousandths, bytes: room.bytes });
        match bundles.keys().next() {
            Some(bundle) => Err(format!("something runs in {bundle:?}, which is not set aside")),
            None => fits(&plain, (&self.capacity, &devices.collect::<Vec<_>>())),
        }
    }

    /// The CPUs, in thousandths, that nothing runs on and nothing is set aside on.
    pub(super) fn unused(&self) -> u32 {
        let plain = self.runs().filter(|(_, job)| job.bundle.is_none()).map(|(_, job)| job.demand.cpu);
        let used: u32 = plain.chain(self.node.reserved().map(|(_, _, demand, _)| demand.cpu)).sum();
        self.capacity.cpu.saturating_sub(used)
    }
}

/// How much later things may be noticed because there is no head.
fn delay(options: &Options) -> Nanos {
    options.head_crashes as u64 * (HEADLESS + REUNION)
}

/// What is used, and of which devices.
type Use<'a> = (&'a Demand, &'a [Part]);

/// Whether this is there together, and each of these devices has what is used of it.
fn fits(uses: &[Use<'_>], (capacity, devices): (&Capacity, &[Part])) -> Result<(), String> {
    let sum = |of: fn(&Demand) -> u64| uses.iter().map(|(demand, _)| of(demand)).sum::<u64>();
    let pairs = [
        ("CPUs", sum(|demand| demand.cpu.into()), capacity.cpu.into()),
        ("memory", sum(|demand| demand.memory), capacity.memory),
    ];
    let names = uses.iter().flat_map(|(demand, _)| demand.custom.keys());
    let custom = names.map(|name| {
        let used = uses.iter().filter_map(|(demand, _)| demand.custom.get(name)).sum();
        (&**name, used, capacity.custom.get(name).copied().unwrap_or(0))
    });
    if let Some((what, used, there)) = pairs.into_iter().chain(custom).find(|(_, used, there)| used > there) {
        return Err(format!("{used} thousandths of {what} are used, {there} are there"));
    }
    for (demand, parts) in uses {
        let has: u64 = parts.iter().map(|part| u64::from(part.thousandths)).sum();
        if has != demand.gpus() {
            return Err(format!("{has} thousandths of GPUs are there for what wants {demand}"));
        }
    }
    let used: Vec<&Part> = uses.iter().flat_map(|(_, parts)| *parts).collect();
    for part in &used {
        let there = devices.iter().find(|device| device.place == part.place);
        let of_it = || used.iter().filter(|other| other.place == part.place);
        let time: u32 = of_it().map(|part| part.thousandths).sum();
        let bytes: u64 = of_it().map(|part| part.bytes).sum();
        if there.is_none_or(|there| time > there.thousandths || bytes > there.bytes) {
            let place = part.place;
            return Err(format!("{time} thousandths and {bytes} bytes of GPU {place} are used, there is {there:?}"));
        }
    }
    Ok(())
}
