//! A node: admits tasks, fetches their arguments, runs them, and keeps large results.
//!
//! # The way of a task
//! ```text
//! Submit --keep--> fetching args --all here--> ready --resources free--> running --> Finished
//!    '--pass on--> head            Assign, Stolen --^
//! ```
//! # Invariants
//! - What runs holds its demand, and all demands together fit the capacity.
//! - A ready task lets at most [`PASSES`] younger ones pass that need less; then it is waited for.
//! - Every task that came is told of to its owner once, as finished or as moved, unless the owner
//!   cancelled it, or died.
//! - A copy of an object is announced to its owner, who frees it.

use super::{
    capacity::{Capacity, Devices},
    head::{BEAT, PACE},
    protocol::{
        Arg, Effects, HEAD, Label, Load, Message, Nanos, ObjectId, Outcome, ProcessId, Strategy, TaskSpec, ms,
        transfer_time, waiting_time,
    },
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A task that would wait longer here is passed on to the head.
const TOO_LONG: Nanos = ms(2);
/// So many may pass a task that needs more than is free.
const PASSES: u32 = 64;
/// So many of the ready tasks, from the oldest, are looked at for one that fits.
const WINDOW: usize = 256;
/// A task and its attempt. A stopped attempt may still run when the next one comes to the same node.
type Key = (ObjectId, u32);

struct Task {
    spec: TaskSpec,
    /// Arguments that are not here yet.
    fetching: BTreeSet<ObjectId>,
    /// How many passed it.
    passed: u32,
    /// Since when it runs, and the devices it has.
    running: Option<(Nanos, Devices)>,
    /// It was told to stop; nobody wants to hear of it.
    stopped: bool,
}

/// An object here: its size, and the attempt of its task that made it.
type Stored = (u64, u32);

/// An object on its way here.
struct Fetch {
    wanted_by: BTreeSet<Key>,
    /// Who was asked for it: another node, or the owner for who has it.
    from: ProcessId,
    /// Others who are said to have it.
    others: Vec<ProcessId>,
    /// Those who were said to have it, and have not, or are dead.
    not: Vec<ProcessId>,
}

pub(crate) struct Node {
    id: ProcessId,
    capacity: Capacity,
    free: Capacity,
    tasks: BTreeMap<Key, Task>,
    ready: VecDeque<Key>,
    /// How many of them need no CPU.
    cpuless: usize,
    running: u32,
    store: BTreeMap<ObjectId, Stored>,
    fetches: BTreeMap<ObjectId, Fetch>,
    dead: BTreeSet<ProcessId>,
    mean: Nanos,
    assigned: u64,
    told: Nanos,
    changed: bool,
    /// How often it tells its load while that changes, as the head wishes.
    pace: Nanos,
}

impl Node {
    pub(crate) fn new(id: ProcessId, capacity: Capacity, labels: Vec<Label>, out: &mut Effects) -> Self {
        out.send(HEAD, Message::JoinNode { capacity: capacity.clone(), labels });
        Node {
            id,
            free: capacity.clone(),
            capacity,
            tasks: BTreeMap::new(),
            ready: VecDeque::new(),
            cpuless: 0,
            running: 0,
            store: BTreeMap::new(),
            fetches: BTreeMap::new(),
            dead: BTreeSet::new(),
            mean: 0,
            assigned: 0,
            told: 0,
            changed: false,
            pace: PACE,
        }
    }

    pub(crate) fn handle(&mut self, now: Nanos, from: ProcessId, message: Message, out: &mut Effects) {
        match message {
            Message::Submit(spec) => self.submitted(spec, out),
            Message::Assign(spec) => {
                self.assigned += 1;
                self.keep(spec, out);
            }
            Message::Stolen(spec) => {
                self.confirm(&spec, out);
                self.keep(spec, out);
            }
            Message::Cancel { task } => self.cancel(task, out),
            Message::Steal { thief, capacity, most } => self.give_away(thief, &capacity, most, out),
            Message::Pull { object } => match self.store.get(&object) {
                Some((size, attempt)) => {
                    out.send(from, Message::Pushed { object, size: *size, attempt: *attempt });
                }
                None => out.send(from, Message::Gone { object }),
            },
            Message::Pushed { object, size, attempt } => {
                if let Some(fetch) = self.fetches.remove(&object)
                    && !self.dead.contains(&object.owner)
                {
                    self.store.insert(object, (size, attempt));
                    out.send(object.owner, Message::Holds { object, attempt });
                    self.arrived(object, fetch);
                }
            }
            Message::Gone { object } => self.ask_next(object, from, out),
            Message::Located { object, holders } => {
                if let Some(fetch) = self.fetches.get_mut(&object) {
                    fetch.others = holders;
                    self.ask_next(object, object.owner, out);
                }
            }
            Message::Lost { object, why } => self.lost(object, &why, out),
            Message::Free { object, attempt } => self.free_object(object, attempt),
            Message::Pace { every } => self.pace = every,
            Message::Dead { process } => self.buried(process, out),
            Message::Fenced => out.fenced = true,
            _ => {}
        }
        self.start(now, out);
    }

    /// When [`Node::tick`] has something to do next.
    pub(crate) fn next_tick(&self) -> Nanos {
        self.told + if self.changed { self.pace.min(BEAT) } else { BEAT }
    }

    /// Tells the head of the load, when it is time.
    pub(crate) fn tick(&mut self, now: Nanos, out: &mut Effects) {
        if now >= self.next_tick() {
            self.told = now;
            self.changed = false;
            let load = Load {
                waiting: (self.tasks.len() as u32).saturating_sub(self.running),
                running: self.running,
                mean: self.mean,
                assigned: self.assigned,
            };
            out.send(HEAD, Message::Load(load));
        }
    }

    /// A task of this node's own processes: the rule of who runs it is [`Node::should_keep`].
    fn submitted(&mut self, mut spec: TaskSpec, out: &mut Effects) {
        if self.should_keep(&spec) {
            spec.hop += 1;
            self.confirm(&spec, out);
            self.keep(spec, out);
        } else {
            out.send(HEAD, Message::Place(spec));
        }
    }

    /// Tells the owner that it is here.
    fn confirm(&self, spec: &TaskSpec, out: &mut Effects) {
        let (task, attempt, hop, node) = (spec.id, spec.attempt, spec.hop, self.id);
        out.send(task.owner, Message::Placed { task, attempt, hop, node, via: None });
    }

    fn should_keep(&self, spec: &TaskSpec) -> bool {
        let here = match &spec.strategy {
            Strategy::Default => true,
            Strategy::Node { node, .. } => *node == self.id,
            Strategy::Spread | Strategy::Labels(_) => false,
        };
        let wait = waiting_time(self.tasks.len() as u64, self.capacity.cpu, self.mean)
            .saturating_add(transfer_time(spec.missing_bytes(self.id)));
        here && self.capacity.fits(&spec.demand) && (wait <= TOO_LONG || matches!(spec.strategy, Strategy::Node { .. }))
    }

    fn keep(&mut self, spec: TaskSpec, out: &mut Effects) {
        self.changed = true;
        let key = (spec.id, spec.attempt);
        if self.dead.contains(&spec.id.owner) {
            return;
        }
        let mut fetching = BTreeSet::new();
        for arg in &spec.args {
            let Arg::Object { id: object, holders, .. } = arg else { continue };
            if self.store.contains_key(object) || !fetching.insert(*object) {
                continue;
            }
            if let Some(fetch) = self.fetches.get_mut(object) {
                fetch.wanted_by.insert(key);
                continue;
            }
            let fetch = Fetch {
                wanted_by: BTreeSet::from([key]),
                from: object.owner,
                others: holders.clone(),
                not: Vec::new(),
            };
            self.fetches.insert(*object, fetch);
        }
        let waits = fetching.clone();
        self.tasks.insert(key, Task { spec, fetching: waits, passed: 0, running: None, stopped: false });
        if fetching.is_empty() {
            self.is_ready(key);
        }
        for object in fetching {
            // One that was being fetched already has been asked for.
            if self.fetches.get(&object).is_some_and(|fetch| fetch.wanted_by.len() == 1) {
                self.ask_next(object, object.owner, out);
            }
        }
    }

    /// `from` did not have it, or says who has: asks the next.
    fn ask_next(&mut self, object: ObjectId, from: ProcessId, out: &mut Effects) {
        let (us, dead) = (self.id, &self.dead);
        let Some(fetch) = self.fetches.get_mut(&object) else { return };
        if fetch.from != from {
            return; // an answer of one that is not asked any more
        }
        if from != object.owner {
            fetch.not.push(from);
        }
        let (not, others): (Vec<_>, Vec<_>) =
            fetch.others.drain(..).partition(|other| *other == us || dead.contains(other));
        fetch.not.extend(not);
        fetch.others = others;
        // Not always the first: then all would ask the owner's node, and nobody the others that have it.
        let pick = (us.0 as usize).checked_rem(fetch.others.len()).map(|at| fetch.others.swap_remove(at));
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

    fn arrived(&mut self, object: ObjectId, fetch: Fetch) {
        for key in fetch.wanted_by {
            let Some(task) = self.tasks.get_mut(&key) else { continue };
            if task.fetching.remove(&object) && task.fetching.is_empty() {
                self.is_ready(key);
            }
        }
    }

    fn is_ready(&mut self, key: Key) {
        if let Some(task) = self.tasks.get(&key) {
            self.cpuless += usize::from(task.spec.demand.cpu == 0);
            self.ready.push_back(key);
        }
    }

    /// Starts what can start.
    fn start(&mut self, now: Nanos, out: &mut Effects) {
        let mut at = 0;
        while at < self.ready.len().min(WINDOW) && (self.free.cpu > 0 || self.cpuless > 0) {
            let Some(task) = self.tasks.get_mut(&self.ready[at]) else { return }; // what is ready is there
            match self.free.take(&task.spec.demand) {
                Some(devices) => {
                    task.running = Some((now, devices));
                    self.running += 1;
                    out.starts.push(task.spec.clone());
                    self.cpuless -= usize::from(task.spec.demand.cpu == 0);
                    self.ready.remove(at);
                    for passed in self.ready.range(..at) {
                        if let Some(passed) = self.tasks.get_mut(passed) {
                            passed.passed += 1;
                        }
                    }
                }
                None if task.passed >= PASSES => break,
                None => at += 1,
            }
        }
    }

    /// Drops an object, unless it was made again since.
    fn free_object(&mut self, object: ObjectId, attempt: u32) {
        if self.store.get(&object).is_some_and(|stored| stored.1 <= attempt) {
            self.store.remove(&object);
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
        let Some(task) = self.end((task, attempt)) else { return };
        if let Some((since, _)) = task.running {
            let took = (now - since).max(1);
            self.mean = if self.mean == 0 { took } else { (self.mean * 7 + took) / 8 };
        }
        if !task.stopped {
            if let Outcome::Stored { size } = outcome {
                self.store.insert(task.spec.id, (size, attempt));
                // It may have been made again where it is wanted.
                if let Some(fetch) = self.fetches.remove(&task.spec.id) {
                    self.arrived(task.spec.id, fetch);
                }
            }
            self.tell(&task.spec, outcome, out);
        }
        self.start(now, out);
    }

    /// Takes a task out, its resources back, and forgets what was fetched for it alone.
    fn end(&mut self, key: Key) -> Option<Task> {
        let task = self.tasks.remove(&key)?;
        if let Some((_, devices)) = &task.running {
            self.free.give(&task.spec.demand, devices);
            self.running -= 1;
        } else if task.fetching.is_empty() {
            self.ready.retain(|ready| *ready != key);
            self.cpuless -= usize::from(task.spec.demand.cpu == 0);
        }
        for object in &task.fetching {
            if let Some(fetch) = self.fetches.get_mut(object) {
                fetch.wanted_by.remove(&key);
                if fetch.wanted_by.is_empty() {
                    self.fetches.remove(object);
                }
            }
        }
        self.changed = true;
        Some(task)
    }

    fn tell(&self, spec: &TaskSpec, outcome: Outcome, out: &mut Effects) {
        out.send(spec.id.owner, Message::Finished { task: spec.id, attempt: spec.attempt, outcome });
    }

    /// Drops all attempts of a task. One that runs is told to stop, and holds its resources until it has.
    fn cancel(&mut self, id: ObjectId, out: &mut Effects) {
        let keys: Vec<Key> = self.tasks.range((id, 0)..=(id, u32::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            match self.tasks.get_mut(&key) {
                Some(task) if task.running.is_some() => {
                    if !std::mem::replace(&mut task.stopped, true) {
                        out.stops.push(key);
                    }
                }
                _ => drop(self.end(key)),
            }
        }
    }

    /// Gives the youngest of the tasks that wait to another node.
    fn give_away(&mut self, thief: ProcessId, capacity: &Capacity, most: u32, out: &mut Effects) {
        let mut given = 0;
        let mut at = self.ready.len();
        while at > 0 && given < most {
            at -= 1;
            let key = self.ready[at];
            let movable = self.tasks.get(&key).is_some_and(|task| {
                matches!(task.spec.strategy, Strategy::Default) && capacity.fits(&task.spec.demand)
            });
            if !movable || self.dead.contains(&thief) {
                continue;
            }
            let Some(mut task) = self.end(key) else { continue };
            given += 1;
            task.spec.forget_holders(|holder| self.dead.contains(holder));
            task.spec.hop += 1;
            let (task_id, attempt, hop) = (key.0, key.1, task.spec.hop);
            let placed = Message::Placed { task: task_id, attempt, hop, node: thief, via: Some(self.id) };
            out.send(task_id.owner, placed);
            out.send(thief, Message::Stolen(task.spec));
        }
    }

    fn buried(&mut self, process: ProcessId, out: &mut Effects) {
        self.dead.insert(process);
        // It may have been an owner: its tasks and objects go.
        let orphans: Vec<_> = self.tasks.keys().map(|key| key.0).filter(|id| id.owner == process).collect();
        for id in orphans {
            self.cancel(id, out);
        }
        self.store.retain(|object, _| object.owner != process);
        // Or a node: what it was asked for is asked of another.
        let asked: Vec<_> = self.fetches.iter().filter(|(_, f)| f.from == process).map(|(object, _)| *object).collect();
        for object in asked {
            match object.owner == process {
                true => self.lost(object, "its owner died", out),
                false => self.ask_next(object, process, out),
            }
        }
    }

    /// An argument will never come: the tasks that wait for it fail.
    fn lost(&mut self, object: ObjectId, why: &str, out: &mut Effects) {
        let fetch = self.fetches.remove(&object);
        for task in fetch.map(|fetch| fetch.wanted_by).unwrap_or_default() {
            if let Some(task) = self.end(task) {
                let why = format!("its argument {object:?} is lost: {why}");
                self.tell(&task.spec, Outcome::Failed(why.into()), out);
            }
        }
    }

    /// What it holds: tasks, copies of objects, and objects on their way.
    pub(crate) fn holds(&self) -> (usize, usize, usize) {
        (self.tasks.len(), self.store.len(), self.fetches.len())
    }

    /// What is not taken.
    pub(crate) fn free(&self) -> &Capacity {
        &self.free
    }

    pub(crate) fn stores(&self, object: ObjectId) -> bool {
        self.store.contains_key(&object)
    }
}
