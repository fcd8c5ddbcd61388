//! The loop of events, the network, and the rules.

use super::{
    Options, Report,
    links::{self, Links, Weather},
    random::Random,
    workload::{self, Body},
};
use crate::cluster::{
    capacity::{Capacity, Demand},
    head::{BEAT, Head, PATIENCE},
    node::Node,
    owner::Owner,
    protocol::{Effects, HEAD, Message, Nanos, ObjectId, ProcessId, ms, transfer_time, us},
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
/// If it has not ended by then, it never will.
const LIMIT: Nanos = ms(600_000);

#[derive(Debug)]
enum Event {
    Deliver {
        from: ProcessId,
        to: ProcessId,
        message: Message,
    },
    Tick(ProcessId),
    /// The head takes the next message.
    Head,
    /// A task ends, if it still runs.
    End {
        node: ProcessId,
        task: ObjectId,
        attempt: u32,
        body: Body,
    },
    /// A driver does something.
    Act(ProcessId),
    CrashNode,
    CrashDriver,
    Cut,
    Cancel,
    /// A node comes, in the place of one that died.
    Join(usize),
    Links(links::Event),
}

struct SimNode {
    node: Node,
    /// Its place; that stays when it is replaced.
    index: usize,
    capacity: Capacity,
    /// What runs, by the simulation's own count.
    running: BTreeMap<(ObjectId, u32), Arc<Demand>>,
    tick: Nanos,
}

struct Driver {
    owner: Owner,
    /// Tasks to submit.
    left: usize,
    handles: Vec<ObjectId>,
    /// Submitted and not ended.
    pending: BTreeSet<ObjectId>,
    /// Ended with a result, with handles still.
    succeeded: BTreeSet<ObjectId>,
    finished: bool,
}

pub(super) struct World<'a> {
    options: &'a Options,
    now: Nanos,
    /// When the drivers begin: everybody has joined by then.
    start: Nanos,
    random: Random,
    /// By time, and in the order in which they were entered.
    queue: BTreeMap<(Nanos, u64), Event>,
    sequence: u64,
    head: Head,
    /// What waits for the head, and whether it is busy.
    inbox: VecDeque<(ProcessId, Message)>,
    head_is_busy: bool,
    nodes: BTreeMap<ProcessId, SimNode>,
    drivers: BTreeMap<ProcessId, Driver>,
    next_process: u64,
    /// The last arrival on each way, of control and of bulk.
    arrivals: HashMap<(ProcessId, ProcessId, bool), Nanos>,
    /// Some that some others cannot reach, and until when.
    cuts: Vec<(BTreeSet<ProcessId>, BTreeSet<ProcessId>, Nanos)>,
    links: Option<Links>,
    /// When those that died did.
    crashed: HashMap<ProcessId, Nanos>,
    latencies: Vec<Nanos>,
    /// When those that have not started were.
    submitted: HashMap<ObjectId, Nanos>,
    /// A rule that was.
    broken: Option<String>,
    report: Report,
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
            inbox: VecDeque::new(),
            head_is_busy: false,
            nodes: BTreeMap::new(),
            drivers: BTreeMap::new(),
            next_process: 1,
            arrivals: HashMap::new(),
            cuts: Vec::new(),
            links: options.links.then(|| Links::new(options.seed, options.loss)),
            crashed: HashMap::new(),
            latencies: Vec::new(),
            submitted: HashMap::new(),
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
            let owner = Owner::new(id, wish, Box::new(workload::origin), &mut out);
            let left = options.tasks / options.drivers + usize::from(index < options.tasks % options.drivers);
            let (handles, pending, succeeded) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
            world.drivers.insert(id, Driver { owner, left, handles, pending, succeeded, finished: false });
            world.perform(id, out);
            world.at(world.start, Event::Act(id));
            world.at(BEAT, Event::Tick(id));
        }
        world.at(BEAT, Event::Tick(HEAD));
        // Faults come while tasks are submitted and run, and those that take long to be noticed may come later.
        let per_driver = (options.tasks / options.drivers.max(1)) as u64;
        let busy = (options.interval.as_nanos() as u64 * per_driver).max(ms(10));
        for (count, span, event) in [
            (options.crashes, busy + PATIENCE, (|| Event::CrashNode) as fn() -> Event),
            (options.driver_crashes, busy, || Event::CrashDriver),
            (options.partitions, busy + PATIENCE, || Event::Cut),
            (options.cancellations, busy, || Event::Cancel),
        ] {
            for _ in 0..count {
                let span = if world.random.one_in(2) { busy } else { span };
                let after = world.start + world.random.below(span);
                world.at(after, event());
            }
        }
        world
    }

    fn process(&mut self) -> ProcessId {
        self.next_process += 1;
        ProcessId(self.next_process - 1)
    }

    fn at(&mut self, after: Nanos, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), event);
    }

    fn join(&mut self, index: usize) {
        let id = self.process();
        let capacity = Capacity {
            cpu: self.options.cpus * 1_000,
            gpus: if self.options.mixed && index.is_multiple_of(2) { vec![1_000; 2] } else { Vec::new() },
            memory: 4 << 30,
            custom: if index.is_multiple_of(3) { BTreeMap::from([("licence".into(), 1_000)]) } else { BTreeMap::new() },
        };
        let mut out = Effects::default();
        let node = Node::new(id, capacity.clone(), workload::labels(index), &mut out);
        self.nodes.insert(id, SimNode { node, index, capacity, running: BTreeMap::new(), tick: 0 });
        self.perform(id, out);
        self.tick_later(id);
    }

    /// Sees to it that the node is looked after in time.
    fn tick_later(&mut self, id: ProcessId) {
        let Some(sim) = self.nodes.get_mut(&id) else { return };
        let due = sim.node.next_tick().max(self.now + 1);
        if sim.tick <= self.now || due < sim.tick {
            sim.tick = due;
            self.at(due - self.now, Event::Tick(id));
        }
    }

    fn send(&mut self, from: ProcessId, to: ProcessId, message: Message) {
        self.report.messages += 1;
        if from == HEAD || to == HEAD {
            let of_task = matches!(
                message,
                Message::Place(_) | Message::Assign(_) | Message::Placed { .. } | Message::Unplaceable { .. }
            );
            self.report.head_task_messages += usize::from(of_task);
        }
        let bulk = match &message {
            Message::Pushed { size, .. } => Some(*size),
            _ => None,
        };
        if self.links.is_some() {
            let after = transfer_time(bulk.unwrap_or(0));
            return self.at(after, Event::Links(links::Event::Send { from, to, message }));
        }
        let mut after = LATENCY.0 + self.random.exponential(LATENCY.1) + transfer_time(bulk.unwrap_or(0));
        if self.random.one_in(self.options.loss) {
            after += RETRANSMISSION;
        }
        let between = |a: &BTreeSet<_>, b: &BTreeSet<_>| a.contains(&from) && b.contains(&to);
        let apart = self.cuts.iter().filter(|(a, b, _)| between(a, b) || between(b, a));
        let healed = apart.map(|cut| cut.2).max().unwrap_or(0);
        let arrival = (self.now + after).max(healed);
        let last = self.arrivals.entry((from, to, bulk.is_some())).or_default();
        *last = arrival.max(*last + 1);
        let after = *last - self.now;
        self.at(after, Event::Deliver { from, to, message });
    }

    fn perform(&mut self, process: ProcessId, out: Effects) {
        for (to, message) in out.sends {
            self.send(process, to, message);
        }
        for spec in out.starts {
            let body = Body::from_bytes(&spec.body);
            self.report.starts += 1;
            if let Some(submitted) = self.submitted.remove(&spec.id) {
                self.latencies.push(self.now - submitted);
            }
            if let Some(sim) = self.nodes.get_mut(&process) {
                sim.running.insert((spec.id, spec.attempt), spec.demand.clone());
                if let Err(rule) = sim.check() {
                    self.broken = Some(format!("at {} ns, node {process:?}: {rule}", self.now));
                }
            }
            self.at(body.time, Event::End { node: process, task: spec.id, attempt: spec.attempt, body });
        }
        for (task, attempt) in out.stops {
            // It notices a little later.
            let body = Body { time: 0, size: 0, fails: true };
            let after = self.random.exponential(us(200));
            self.at(after, Event::End { node: process, task, attempt, body });
        }
        for (object, well) in out.done {
            self.ended(process, object, well);
        }
        if out.fenced {
            self.fenced(process);
        }
    }

    fn ended(&mut self, driver: ProcessId, object: ObjectId, well: bool) {
        let Some(sim) = self.drivers.get_mut(&driver) else { return };
        if !sim.pending.remove(&object) {
            self.broken = Some(format!("task {object:?} ended, but it was not pending"));
        }
        self.report.ended += 1;
        self.report.failed += usize::from(!well);
        if well {
            sim.succeeded.insert(object);
        }
    }

    /// It was declared dead, and lives: it starts anew.
    fn fenced(&mut self, process: ProcessId) {
        if let Some(sim) = self.nodes.remove(&process) {
            self.crashed.insert(process, self.now);
            self.join(sim.index);
        } else if self.drivers.remove(&process).is_some() {
            self.crashed.insert(process, self.now);
        }
    }

    pub(super) fn run(mut self) -> Result<Report, String> {
        let faults = self.options.crashes + self.options.driver_crashes + self.options.partitions > 0;
        let faults = faults || self.options.links;
        let mut until = LIMIT;
        let mut quiet = false;
        while let Some(((time, _), event)) = self.queue.pop_first() {
            if time > until {
                break;
            }
            self.now = time;
            self.step(event);
            if let Some(rule) = self.broken {
                return Err(rule);
            }
            if !quiet && self.drivers.values().all(|driver| driver.finished) {
                self.report.time = Duration::from_nanos(self.now - self.start);
                until = self.now + if faults { 3 * PATIENCE + REPLACEMENT } else { ms(200) };
                quiet = true;
            }
        }
        if !quiet {
            let waiting = self.drivers.iter().map(|(id, driver)| (id, driver.left, &driver.pending));
            return Err(format!("it did not come to an end; drivers wait: {:?}", waiting.collect::<Vec<_>>()));
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
            let is_fault = matches!(event, Event::CrashNode | Event::CrashDriver | Event::Cut | Event::Join(_));
            if is_fault || self.trace.iter().any(|part| text.contains(part)) {
                println!("{:>14} ns {text}", self.now);
            }
        }
        let mut out = Effects::default();
        match event {
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Tick(HEAD) => {
                self.head.tick(self.now, &mut out);
                self.at(BEAT, Event::Tick(HEAD));
                self.perform(HEAD, out);
            }
            Event::Tick(process) => {
                if let Some(sim) = self.nodes.get_mut(&process) {
                    sim.node.tick(self.now, &mut out);
                    self.perform(process, out);
                    self.tick_later(process);
                } else if let Some(driver) = self.drivers.get_mut(&process) {
                    driver.owner.tick(self.now, &mut out);
                    self.perform(process, out);
                    self.at(BEAT, Event::Tick(process));
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
            Event::End { node, task, attempt, body } => {
                let Some(sim) = self.nodes.get_mut(&node) else { return };
                if sim.running.remove(&(task, attempt)).is_some() {
                    sim.node.finished(self.now, task, attempt, body.outcome(), &mut out);
                    self.perform(node, out);
                    self.tick_later(node);
                }
            }
            Event::Act(driver) => self.act(driver),
            Event::CrashNode => {
                if let Some(victim) = self.pick(self.nodes.keys().copied().collect())
                    && let Some(sim) = self.nodes.remove(&victim)
                {
                    self.crashed.insert(victim, self.now);
                    self.at(REPLACEMENT, Event::Join(sim.index));
                }
            }
            Event::CrashDriver => {
                if let Some(victim) = self.pick(self.drivers.keys().copied().collect()) {
                    self.drivers.remove(&victim);
                    self.crashed.insert(victim, self.now);
                }
            }
            Event::Cut => {
                let all: Vec<_> = self.nodes.keys().chain(self.drivers.keys()).copied().collect();
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
                    self.drivers.iter().flat_map(|(id, driver)| driver.pending.iter().map(|task| (*id, *task)));
                let pending: Vec<_> = pending.collect();
                let at = self.random.below(pending.len() as u64) as usize;
                if let Some((id, task)) = pending.get(at)
                    && let Some(driver) = self.drivers.get_mut(id)
                {
                    driver.owner.cancel(*task, &mut out);
                    self.perform(*id, out);
                }
            }
            Event::Join(index) => self.join(index),
            Event::Links(event) => self.link(event),
        }
    }

    fn link(&mut self, event: links::Event) {
        let Some(links) = &mut self.links else { return };
        let mut out = links::Effects::default();
        let (nodes, drivers, cuts, now) = (&self.nodes, &self.drivers, &self.cuts, self.now);
        let is_alive = |process| process == HEAD || nodes.contains_key(&process) || drivers.contains_key(&process);
        let is_cut = |a, b| {
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
        for (from, to, message) in out.delivered {
            self.at(0, Event::Deliver { from, to, message });
        }
    }

    fn pick(&mut self, from: Vec<ProcessId>) -> Option<ProcessId> {
        let at = self.random.below(from.len() as u64) as usize;
        from.get(at).copied()
    }

    fn deliver(&mut self, from: ProcessId, to: ProcessId, message: Message) {
        // Of what a process had sent when it died, the first part arrives on each way, and the rest does not.
        if let Some(crash) = self.crashed.get(&from) {
            let cut = Random::new(self.options.seed ^ (from.0 << 32) ^ to.0).below(us(200));
            if self.now > crash + cut {
                return;
            }
        }
        let mut out = Effects::default();
        if to == HEAD {
            self.inbox.push_back((from, message));
            if !std::mem::replace(&mut self.head_is_busy, true) {
                self.at(0, Event::Head);
            }
            return;
        }
        if let Some(sim) = self.nodes.get_mut(&to) {
            self.report.stolen += usize::from(matches!(message, Message::Stolen(_)));
            sim.node.handle(self.now, from, message, &mut out);
        } else if let Some(driver) = self.drivers.get_mut(&to) {
            driver.owner.handle(from, message, &mut out);
        }
        self.perform(to, out);
        self.tick_later(to);
    }

    fn act(&mut self, id: ProcessId) {
        if self.head.has_buried(id) {
            return self.fenced(id); // the nodes have dropped what it owned, and it is about to hear of it
        }
        let nodes: Vec<ProcessId> = self.nodes.keys().copied().take(64).collect();
        let Some(driver) = self.drivers.get_mut(&id) else { return };
        let mut out = Effects::default();
        let mut again = Some(ms(1));
        if driver.left > 0 {
            driver.left -= 1;
            if !nodes.is_empty() {
                let work = workload::work(self.options, &mut self.random, &driver.handles, &nodes);
                let object = driver.owner.submit(work, &mut out);
                driver.pending.insert(object);
                driver.handles.push(object);
                self.submitted.insert(object, self.now);
            } else {
                driver.left += 1; // all are dead at the moment
            }
            if self.options.mixed && self.random.one_in(10) {
                driver.handles.push(driver.owner.put(Arc::from([7; 100])));
            }
            let (object, home) = driver.owner.next();
            let size = 1 << 20;
            if self.options.mixed
                && self.random.one_in(10)
                && let Some(sim) = home.and_then(|home| self.nodes.get_mut(&home))
                && sim.node.put(object, size)
            {
                driver.handles.push(driver.owner.put_stored(size));
            }
            if self.options.mixed && !driver.handles.is_empty() && self.random.one_in(10) {
                let object = driver.handles[self.random.below(driver.handles.len() as u64) as usize];
                driver.owner.retain(object);
                driver.handles.push(object);
            }
            if self.options.mixed && !driver.handles.is_empty() && self.random.one_in(2) {
                let at = self.random.below(driver.handles.len() as u64) as usize;
                let object = driver.handles.swap_remove(at);
                if !driver.handles.contains(&object) {
                    driver.succeeded.remove(&object);
                }
                driver.owner.release(object, &mut out);
            }
            again = Some(self.random.exponential(self.options.interval.as_nanos() as u64));
        } else if driver.pending.is_empty() {
            // Everything is asked for once more: what was lost meanwhile is made again.
            let waits = driver.handles.iter().filter(|object| !driver.owner.want(**object, &mut out)).count();
            if waits == 0 {
                for object in &driver.handles {
                    if let Some(why) = driver.owner.failure(*object)
                        && driver.succeeded.contains(object)
                        && !why.to_string().contains("it was put on a node that died")
                    // that may be lost, and what needs it
                    {
                        self.broken = Some(format!("{object:?} was there, and is lost: {why}"));
                    }
                    for holder in driver.owner.holders(*object).into_iter().flatten() {
                        if self.nodes.get(holder).is_some_and(|sim| !sim.node.stores(*object)) {
                            self.broken = Some(format!("{holder:?} should have {object:?}, and has not"));
                        }
                    }
                }
                for object in std::mem::take(&mut driver.handles) {
                    driver.owner.release(object, &mut out);
                }
                driver.finished = true;
                again = None;
            }
        }
        if let Some(after) = again {
            self.at(after, Event::Act(id));
        }
        self.perform(id, out);
    }

    fn check_nothing_stays(&self) -> Result<(), String> {
        for (id, driver) in &self.drivers {
            match driver.owner.records() {
                0 => {}
                records => return Err(format!("driver {id:?} keeps {records} records without a handle")),
            }
        }
        for (id, sim) in &self.nodes {
            let holds = sim.node.holds();
            if holds != (0, 0, 0) {
                return Err(format!("node {id:?} keeps (tasks, objects, fetches) {holds:?}"));
            }
            if *sim.node.free() != sim.capacity {
                return Err(format!("node {id:?} has {:?} free of {:?}", sim.node.free(), sim.capacity));
            }
        }
        match self.head.holds() {
            (nodes, 0) if nodes == self.nodes.len() => Ok(()),
            holds => Err(format!("the head knows (nodes, tasks) {holds:?}, there are {}", self.nodes.len())),
        }
    }
}

impl SimNode {
    /// Whether what runs fits what there is.
    fn check(&self) -> Result<(), String> {
        let sum = |of: fn(&Demand) -> u64| self.running.values().map(|demand| of(demand)).sum::<u64>();
        let custom = |name: &str| self.running.values().filter_map(|demand| demand.custom.get(name)).sum::<u64>();
        let gpus: u32 = self.capacity.gpus.iter().sum();
        let pairs = [
            ("CPUs", sum(|demand| demand.cpu.into()), self.capacity.cpu.into()),
            ("GPUs", sum(|demand| demand.gpu.into()), gpus.into()),
            ("memory", sum(|demand| demand.memory), self.capacity.memory),
            ("licences", custom("licence"), self.capacity.custom.get("licence").copied().unwrap_or(0)),
        ];
        match pairs.into_iter().find(|(_, used, there)| used > there) {
            Some((what, used, there)) => Err(format!("{used} thousandths of {what} are used, {there} are there")),
            None => Ok(()),
        }
    }
}
