//! The processes that run tasks, when handles travel: what they do with those that they get.

use super::{
    fates::NO_ACTOR,
    shell::{self, Guard, Shell},
    workload::{self, Body, origin},
    world::{Event, SimNode, World},
};
use crate::cluster::{
    capacity::Demand,
    head::BEAT,
    node::Keeps,
    pack::Pack,
    protocol::{Arg, Effects, HEAD, Message, Nanos, ObjectId, Outcome, ProcessId, Strategy, TaskSpec, lost, ms, us},
};
use crate::error::Error;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

/// So many tasks are handed to workers ahead of their turn.
pub(super) const AHEAD: usize = 8;
/// Who asks a node for what a worker needs.
pub(super) const HANDS: ProcessId = ProcessId(u64::MAX);

pub(super) struct Worker {
    pub(super) shell: Shell,
    pub(super) node: ProcessId,
    /// It is going to do something with the handles it has kept.
    acts: bool,
    /// What it will say when the head has welcomed it.
    pub(super) unsaid: Vec<(ProcessId, Message)>,
}

/// A task, or a pack, that a worker has.
pub(super) struct Job {
    pub(super) demand: Arc<Demand>,
    /// The bundle that it runs in.
    pub(super) bundle: Option<(ObjectId, u32)>,
    /// What it makes now. Of a pack: the rest, and those that have ended and nobody was told of, with the time that they took and their values.
    pub(super) makes: ObjectId,
    pub(super) body: Body,
    pub(super) rest: VecDeque<(ObjectId, Body)>,
    pub(super) done: Vec<(ObjectId, Nanos, Arc<[u8]>)>,
    pub(super) is_pack: bool,
    pub(super) stays: bool,
    pub(super) worker: Option<ProcessId>,
    /// Those that it came with, and those in its result.
    pub(super) handles: Vec<ObjectId>,
    pub(super) phase: Phase,
}

pub(super) enum Phase {
    /// Others run, or these are not made yet.
    Waits(BTreeSet<ObjectId>),
    Runs,
    /// It waits for claims, with these handles in its result.
    Ends(Vec<ObjectId>),
    /// It has finished, and goes on.
    Stays,
}

type Key = (ObjectId, u32);

impl SimNode {
    /// What makes an object here.
    fn maker(&self, object: ObjectId) -> Option<&Job> {
        let makes = |job: &&Job| job.makes == object || job.rest.iter().any(|(other, _)| *other == object);
        self.running.values().filter(|job| !matches!(job.phase, Phase::Stays)).find(makes)
    }

    /// It was made in a pack, and its node has not heard of that.
    fn is_told_soon(&self, object: ObjectId) -> bool {
        self.running.values().any(|job| job.done.iter().any(|(made, ..)| *made == object))
    }

    /// Under which number a task is here: its own, or that of the pack that it is in.
    fn key_of(&self, task: ObjectId, attempt: u32) -> Option<Key> {
        if self.running.get(&(task, attempt)).is_some_and(|job| !job.is_pack) {
            return Some((task, attempt));
        }
        let is_in = |job: &Job| job.makes == task || job.rest.iter().any(|(other, _)| *other == task);
        let mut packs = self.running.iter().filter(|(key, job)| job.is_pack && key.1 == attempt);
        packs.find(|(_, job)| is_in(job)).map(|(key, _)| *key)
    }

    /// Whether it has all that it needs.
    fn is_ready(&self, key: Key) -> bool {
        matches!(self.running.get(&key), Some(Job { phase: Phase::Waits(missing), .. }) if missing.is_empty())
    }
}

impl World<'_> {
    /// Starts a worker.
    pub(super) fn hire(&mut self, node: ProcessId) {
        let id = self.process();
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        sim.workers.push(id);
        self.homes.insert(id, node);
        let mut out = Effects::default();
        let owner = workload::owner(id, Some(node), &mut out);
        self.workers.insert(id, Worker { shell: Shell::new(id, owner), node, acts: false, unsaid: Vec::new() });
        self.perform(id, out);
        self.at(BEAT, Event::Tick(id));
    }

    /// The workers of a node die with it.
    pub(super) fn dismiss(&mut self, sim: &SimNode) {
        for worker in &sim.workers {
            if self.workers.remove(worker).is_some() {
                self.died(*worker);
            }
        }
    }

    pub(super) fn crash_worker(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.remove(&id) else { return };
        self.died(id);
        let after = self.random.exponential(us(200));
        self.at(after, Event::Miss { node: worker.node, worker: id });
    }

    /// A node sees that a worker is gone, and starts another.
    pub(super) fn miss(&mut self, node: ProcessId, worker: ProcessId) {
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        sim.workers.retain(|other| *other != worker);
        let gone: Vec<Key> =
            sim.running.iter().filter(|(_, job)| job.worker == Some(worker)).map(|(key, _)| *key).collect();
        let mut out = Effects::default();
        out.send(HEAD, Message::Died { process: worker });
        self.hire(node);
        for (task, attempt) in gone {
            if let Some(sim) = self.nodes.get_mut(&node) {
                sim.running.remove(&(task, attempt));
                sim.waiting.retain(|key| *key != (task, attempt));
                sim.node.crashed(self.now, task, attempt, "it was made to".into(), &mut out);
            }
        }
        self.perform(node, out);
        self.ask(node);
        self.tick_later(node);
    }

    /// A node hands something to a worker: it runs at once, or when others have ended and what it needs is made. What comes
    /// back is to be performed when what was to start with it has.
    pub(super) fn hand_over(&mut self, node: ProcessId, spec: TaskSpec) -> Option<Effects> {
        let (key, has_faults) = ((spec.id, spec.attempt), self.has_faults() || self.options.cancellations > 0);
        if spec.count > 1 && self.random.one_in(8) {
            // Its worker is not there yet.
            let mut out = Effects::default();
            self.nodes.get_mut(&node)?.node.start_apart(self.now, key, &mut out);
            return Some(out);
        }
        let sim = self.nodes.get_mut(&node)?;
        let missing = spec.args.iter().filter_map(|arg| match arg {
            Arg::Object { id, .. } => Some(*id).filter(|id| !sim.node.stores(*id)),
            Arg::Inline(_) => None,
        });
        let missing: BTreeSet<ObjectId> = missing.collect();
        // Or the pack that it is in was handed over just before, and had no worker yet.
        let is_apart = |object: ObjectId| sim.node.task(object, 1).is_some();
        let is_to_come = |object: ObjectId| sim.maker(object).is_some() || sim.is_told_soon(object) || is_apart(object);
        // Its maker may have died, which its node is about to see; or it was there, and its task was cancelled. Then it is asked for.
        let may_come = |object: &&ObjectId| {
            self.options.packs && object.owner == key.0.owner && (has_faults || is_to_come(**object))
        };
        if let Some(object) = missing.iter().find(|object| !may_come(object)) {
            self.broken = Some(format!("{key:?} starts on {node:?} without its argument {object:?}"));
        }
        let bundle = match spec.strategy {
            Strategy::Bundle { group, bundle, .. } => Some((group, bundle)),
            _ => None,
        };
        let mut rest: VecDeque<_> = match spec.count {
            1 => VecDeque::from([(spec.id, Body::of(&spec.body))]),
            _ => {
                let members = Pack::read(&spec.body).map(|pack| pack.members).unwrap_or_default();
                let bodies = members.into_iter().map(|member| Body::of(&crate::cluster::wire::Blob(member.value)));
                spec.objects().zip(bodies).collect()
            }
        };
        let misread = self.fates.misread(&spec).filter(|_| spec.count == 1);
        let changed = || rest.iter().find(|(task, body)| !self.fates.has_body(*task, *body));
        if let Some(rule) = misread.or_else(|| changed().map(|(task, _)| format!("{task:?} has another's body"))) {
            self.broken = Some(format!("{key:?} on {node:?}: {rule}"));
        }
        if rest.len() != spec.count as usize {
            self.broken = Some(format!("{key:?} is a pack of {}, and {} are in it", spec.count, rest.len()));
        }
        self.report.packs += usize::from(spec.count > 1);
        self.report.chained += usize::from(!missing.is_empty());
        let (makes, body) = rest.pop_front()?;
        let made_by = missing.iter().find_map(|object| sim.maker(*object)).and_then(|job| job.worker);
        let (demand, stays, is_pack) = (spec.demand.clone(), spec.stays, spec.count > 1);
        let (handles, done, phase) = (Vec::new(), Vec::new(), Phase::Waits(missing));
        let job = Job { demand, bundle, makes, body, rest, done, is_pack, stays, worker: None, handles, phase };
        sim.running.insert(key, job);
        sim.waiting.push(key);
        if self.options.borrowing {
            self.unpack(node, &spec, made_by);
        }
        self.ask(node);
        self.run_waiting(node);
        None
    }

    /// Begins what has all that it needs and fits. Which of those that need nothing but a CPU has the node's leave does not
    /// matter to their worker, as it does not run more of them at a time.
    pub(super) fn run_waiting(&mut self, node: ProcessId) {
        while let Some(sim) = self.nodes.get(&node).filter(|sim| !sim.waiting.is_empty()) {
            let unused = sim.unused();
            let fits = |key: &&(ObjectId, u32)| {
                let fits = |job: &Job| job.bundle.is_some() || job.demand.cpu <= unused;
                sim.is_ready(**key) && sim.running.get(key).is_some_and(fits)
            };
            let Some(next) = sim.waiting.iter().find(fits).copied() else { return };
            self.begin_job(node, next);
        }
    }

    fn begin_job(&mut self, node: ProcessId, key: Key) {
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        sim.waiting.retain(|other| *other != key);
        if let Some(job) = sim.running.get_mut(&key) {
            job.phase = Phase::Runs;
        }
        self.check_node(node);
        self.comes_up(node, key);
    }

    /// The next task of what a worker runs begins.
    fn comes_up(&mut self, node: ProcessId, key: Key) {
        let Some(job) = self.nodes.get(&node).and_then(|sim| sim.running.get(&key)) else { return };
        let (task, time) = (job.makes, job.body.time);
        self.report.starts += 1;
        if let Some(submitted) = self.submitted.remove(&task) {
            self.latencies.push(self.now - submitted);
        }
        self.at(time, Event::End { node, task, attempt: key.1, stop: false });
    }

    /// Asks for what tasks wait for that no worker here makes any more.
    fn ask(&mut self, node: ProcessId) {
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let missing = sim.waiting.iter().filter_map(|key| match &sim.running.get(key)?.phase {
            Phase::Waits(missing) => Some(missing),
            _ => None,
        });
        let missing: Vec<_> = missing.flatten().copied().collect();
        for object in missing {
            let Some(sim) = self.nodes.get_mut(&node) else { return };
            if sim.maker(object).is_none() && sim.asked.insert(object) {
                self.at(us(20), Event::Ask { node, object });
            }
        }
    }

    /// What a worker has asked for is there, or never will be.
    pub(super) fn answered(&mut self, node: ProcessId, object: ObjectId, failure: Option<Arc<Error>>) {
        if let Some(sim) = self.nodes.get_mut(&node) {
            sim.asked.remove(&object);
        }
        self.is_made(node, object, failure);
        self.run_waiting(node);
    }

    /// Workers have what others of theirs wait for, or it has failed, and so do they.
    fn is_made(&mut self, node: ProcessId, object: ObjectId, failure: Option<Arc<Error>>) {
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let mut failed = Vec::new();
        for key in &sim.waiting {
            if let Some(Job { phase: Phase::Waits(missing), .. }) = sim.running.get_mut(key)
                && missing.remove(&object)
                && failure.is_some()
            {
                failed.push(*key);
            }
        }
        for key in failed {
            let Some(cause) = failure.as_ref().map(|why| Box::new((**why).clone())) else { return };
            self.fails(node, key, Arc::new(Error::DependencyFailed { origin: origin(key.0), cause }));
        }
    }

    /// A job ends without a result.
    fn fails(&mut self, node: ProcessId, key: Key, error: Arc<Error>) {
        if self.forget(node, key).is_none() {
            return;
        }
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let mut out = Effects::default();
        sim.node.finished(self.now, key.0, key.1, Outcome::Failed(error.clone()), &mut out);
        self.perform(node, out);
        self.is_made(node, key.0, Some(error));
        self.tick_later(node);
    }

    /// A task of a pack has been run, or was told to stop before or meanwhile.
    fn member_is_over(&mut self, node: ProcessId, key: Key, task: ObjectId, outcome: Outcome) {
        let (tells, now) = (self.random.one_in(4), self.now);
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let Some(job) = sim.running.get_mut(&key) else { return };
        let time = job.body.time;
        let (is_last, goes_on) = match job.rest.iter().position(|(member, _)| *member == task) {
            Some(at) => {
                job.rest.remove(at);
                (false, false)
            }
            None => match job.rest.pop_front() {
                Some(next) => {
                    (job.makes, job.body) = next;
                    (false, matches!(job.phase, Phase::Runs))
                }
                None => (true, false),
            },
        };
        let failure = match &outcome {
            Outcome::Failed(why) => Some(why.clone()),
            _ => None,
        };
        let alone = match outcome {
            Outcome::Inline(value) => {
                job.done.push((task, time, value));
                None
            }
            outcome => Some(outcome),
        };
        let done = if tells || is_last { std::mem::take(&mut job.done) } else { Vec::new() };
        if is_last {
            sim.running.remove(&key);
            sim.waiting.retain(|other| *other != key);
        }
        let mut out = Effects::default();
        let mut together = (0, 0);
        for (task, took, value) in done {
            together = (together.0 | 1 << (task.number - key.0.number), together.1 + took);
            let size = value.len() as u64;
            let keeps = sim.node.made_in_pack((key, task), size, &mut out);
            if keeps != Keeps::Nothing {
                sim.values.insert(task, Arc::from([]));
            }
            let outcome = match keeps {
                Keeps::Nothing => Outcome::Inline(value),
                Keeps::Copy => Outcome::Copied(value),
                Keeps::All => Outcome::Stored { size },
            };
            out.send(task.owner, Message::Finished { task, attempt: key.1, outcome });
        }
        if together.0 > 0 {
            sim.node.ended_in_pack(now, key, together, &mut out);
        }
        if let Some(outcome) = alone {
            sim.node.ended_by_itself(now, (key, task), time, outcome, &mut out);
            if sim.node.stores(task) {
                sim.values.insert(task, Arc::from([]));
            }
        }
        self.perform(node, out);
        self.is_made(node, task, failure);
        if goes_on {
            self.comes_up(node, key);
        }
        self.tick_later(node);
    }

    /// A worker takes the handles out of the arguments: the one that makes them, or any.
    fn unpack(&mut self, node: ProcessId, spec: &TaskSpec, made_by: Option<ProcessId>) {
        let Some(sim) = self.nodes.get(&node) else { return };
        let made_by = made_by.filter(|worker| sim.workers.contains(worker));
        let any = self.pick(sim.workers.clone());
        let Some(worker) = made_by.or(any) else { return };
        let mut handles = Vec::new();
        for arg in &spec.args {
            let stored = match arg {
                Arg::Object { id, .. } => self.nodes.get(&node).and_then(|sim| sim.values.get(id).cloned()),
                Arg::Inline(_) => None,
            };
            let taken = self.with(worker, |shell, out| match (arg, stored) {
                (Arg::Inline(bytes), _) => {
                    let guard = Guard::Task(spec.id);
                    shell::from_bytes(bytes).into_iter().filter(|inner| shell.hold(*inner, guard)).collect()
                }
                (Arg::Object { id, .. }, Some(inside)) => shell.unpack(*id, &inside, out),
                _ => Vec::new(),
            });
            handles.extend(taken.into_iter().flatten());
        }
        if let Some(job) = self.nodes.get_mut(&node).and_then(|sim| sim.running.get_mut(&(spec.id, spec.attempt))) {
            (job.worker, job.handles) = (Some(worker), handles);
        }
    }

    /// The body of a task has been run.
    pub(super) fn is_over(&mut self, node: ProcessId, (task, attempt): Key) {
        let Some(sim) = self.nodes.get(&node) else { return };
        let Some(key) = sim.key_of(task, attempt) else { return };
        let Some(job) = sim.running.get(&key).filter(|job| job.makes == task) else { return };
        let (worker, got, body, stays) = (job.worker, job.handles.clone(), job.body, job.stays);
        if !matches!(job.phase, Phase::Runs) || worker.is_some_and(|worker| !self.workers.contains_key(&worker)) {
            return; // the node is about to see that its worker has died
        }
        if job.is_pack {
            return self.member_is_over(node, key, task, body.outcome(task, &[]));
        }
        let Some(worker) = worker else { return self.end(node, key, &[]) };
        let (mut inside, mut kept) = (Vec::new(), Vec::new());
        for object in &got {
            match self.random.below(4) {
                0 => {
                    kept.push(*object);
                    self.with(worker, |shell, _| {
                        if shell.hold(*object, Guard::Ours) {
                            shell.state.push(*object);
                        }
                    });
                }
                1 => {
                    kept.push(*object);
                    self.with(worker, |shell, out| shell.get(*object, Some(node), out));
                }
                2 => inside.push(*object),
                _ => {}
            }
        }
        let mut made = Vec::new();
        if self.random.one_in(6) {
            made.extend(self.submit(worker, &got, Some(key.0)));
            kept.clone_from(&got); // whichever it got
        }
        if self.random.one_in(10) {
            made.extend(self.put(worker, Some(key.0)));
        }
        made.retain(|_| self.random.one_in(2));
        for object in &made {
            self.with(worker, |shell, _| shell.hold(*object, Guard::Ours));
        }
        inside.extend(&made);
        inside.retain(|object| self.ranks.get(object) < self.ranks.get(&key.0));
        let inside = if body.fails || body.parts > 0 { Vec::new() } else { inside };
        let Some(job) = self.nodes.get_mut(&node).and_then(|sim| sim.running.get_mut(&key)) else { return };
        job.handles.extend(made);
        job.phase = Phase::Ends(inside.clone());
        let taker = (!inside.is_empty()).then_some(key.0.owner);
        let kept = if stays { got.clone() } else { kept };
        self.with(worker, |shell, out| {
            if let Some(owner) = taker {
                out.send(owner, Message::Inside { task: key.0, attempt: key.1, objects: inside });
            }
            shell.finish(key, (&kept, &got), taker, out);
        });
    }

    /// All that it keeps is claimed.
    pub(super) fn finish(&mut self, worker: ProcessId, key: Key) {
        let Some(node) = self.workers.get(&worker).map(|worker| worker.node) else { return };
        let Some(job) = self.nodes.get_mut(&node).and_then(|sim| sim.running.get_mut(&key)) else { return };
        if let Phase::Ends(inside) = std::mem::replace(&mut job.phase, Phase::Stays) {
            self.end(node, key, &inside);
        }
    }

    /// A task has ended, with these handles in its result.
    fn end(&mut self, node: ProcessId, key: Key, inside: &[ObjectId]) {
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let Some(job) = sim.running.get(&key) else { return };
        let (body, outcome) = (job.body, job.body.outcome(key.0, inside));
        let stays = job.stays && !body.fails;
        let mut out = Effects::default();
        if stays {
            self.keep_lower(node, key);
        } else {
            self.forget(node, key);
        }
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let is_well = outcome.is_well();
        let failure = match &outcome {
            Outcome::Failed(why) => Some(why.clone()),
            _ => None,
        };
        for part in (1..=body.parts).filter(|_| !body.fails) {
            let (task, outcome) = body.part(key.0, part);
            if let Outcome::Stored { size } = &outcome {
                sim.node.put(task, *size);
            }
            out.send(task.owner, Message::Finished { task, attempt: 0, outcome });
        }
        sim.node.finished(self.now, key.0, key.1, outcome, &mut out);
        if is_well && sim.node.stores(key.0) {
            sim.values.insert(key.0, inside.into());
        }
        self.perform(node, out);
        self.is_made(node, key.0, failure);
        self.run_waiting(node);
        self.tick_later(node);
    }

    /// An actor keeps some of its handles.
    fn keep_lower(&mut self, node: ProcessId, key: Key) {
        let (ranks, sim) = (&self.ranks, self.nodes.get_mut(&node));
        let Some(job) = sim.and_then(|sim| sim.running.get_mut(&key)) else { return };
        let is_lower = |object: &ObjectId| ranks.get(object) < ranks.get(&key.0);
        let (kept, dropped): (Vec<_>, Vec<_>) = job.handles.drain(..).partition(is_lower);
        job.handles = kept;
        if let Some(worker) = job.worker {
            self.with(worker, |shell, out| dropped.iter().for_each(|object| shell.drop(*object, out)));
        }
    }

    /// Takes a job out, and drops its handles.
    fn forget(&mut self, node: ProcessId, key: Key) -> Option<Job> {
        let sim = self.nodes.get_mut(&node)?;
        let job = sim.running.remove(&key)?;
        sim.waiting.retain(|other| *other != key);
        if let Some(worker) = job.worker {
            self.with(worker, |shell, out| {
                shell.stop(key);
                job.handles.iter().for_each(|object| shell.drop(*object, out));
            });
        }
        Some(job)
    }

    /// A job that was told to stop does.
    pub(super) fn stop(&mut self, node: ProcessId, (task, attempt): Key) {
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let Some(key) = sim.key_of(task, attempt) else { return };
        let why = lost(task, "it was stopped");
        match sim.running.get(&key) {
            Some(Job { is_pack: true, .. }) => self.member_is_over(node, key, task, Outcome::Failed(why)),
            Some(Job { phase: Phase::Stays, .. }) => {
                self.forget(node, key);
                let Some(sim) = self.nodes.get_mut(&node) else { return };
                let mut out = Effects::default();
                sim.node.ended(self.now, key.0, key.1, &mut out);
                self.perform(node, out);
                self.tick_later(node);
            }
            _ => self.fails(node, key, why),
        }
    }

    /// A job that has not started is given back.
    pub(super) fn give_back(&mut self, node: ProcessId, (task, attempt): Key) {
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let Some(key) = sim.key_of(task, attempt) else { return };
        let Some(job) = sim.running.get_mut(&key) else { return };
        if job.worker.is_some_and(|worker| !self.workers.contains_key(&worker)) {
            return;
        }
        if job.is_pack {
            let before = job.rest.len();
            job.rest.retain(|(member, _)| *member != task);
            if job.rest.len() == before {
                return;
            }
        } else if !matches!(job.phase, Phase::Waits(_)) || self.forget(node, key).is_none() {
            return;
        }
        self.report.given_back += 1;
        let mut out = Effects::default();
        if let Some(sim) = self.nodes.get_mut(&node) {
            sim.node.given_back(self.now, task, attempt, &mut out);
        }
        self.perform(node, out);
        // What waits for it here asks its node.
        self.ask(node);
        self.tick_later(node);
    }

    /// Sees to it that a worker does something with what it has kept.
    pub(super) fn nudge(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if !worker.shell.state.is_empty() && !std::mem::replace(&mut worker.acts, true) {
            let after = self.random.exponential(ms(5));
            self.at(after, Event::Act(id));
        }
    }

    pub(super) fn act_worker(&mut self, id: ProcessId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.acts = false;
        }
        self.pass_on(id);
        self.let_go(id);
        self.nudge(id);
    }

    /// Puts a value, with handles inside.
    pub(super) fn put(&mut self, id: ProcessId, within: Option<ObjectId>) -> Option<ObjectId> {
        let rank = self.rank(within);
        let mut inside: Vec<_> = match self.options.borrowing {
            true => (0..self.random.below(3)).filter_map(|_| self.any(id)).collect(),
            false => Vec::new(),
        };
        inside.retain(|object| self.ranks.get(object) < Some(&rank));
        let expected = self.options.borrowing && self.random.one_in(2);
        let object = self.with(id, |shell, out| {
            let bytes = shell::value_of(shell.owner.next().0, &inside, 8);
            let object = match expected {
                true => shell.owner.expect(None),
                false => shell.owner.put(bytes.clone()),
            };
            shell.enclose(object, &inside, Guard::Ours);
            shell.state.push(object);
            if expected {
                shell.pending.insert(object);
                shell.owner.fulfil(object, Outcome::Inline(bytes), out);
            }
            object
        })?;
        self.ranks.insert(object, rank);
        Some(object)
    }

    /// Looks into values, and calls actors.
    pub(super) fn pass_on(&mut self, id: ProcessId) {
        let Some(object) = self.any(id) else { return };
        let Some(shell) = self.shell(id) else { return };
        let home = self.workers.get(&id).map(|worker| worker.node).or(shell.owner.next().1);
        if let Some(node) = shell.owner.place(object) {
            let result = self.with(id, |shell, _| {
                let result = shell.owner.expect(Some(node));
                shell.pending.insert(result);
                shell.state.push(result);
                result
            });
            if let Some(result) = result {
                let after = us(100) + self.random.exponential(us(100));
                self.at(after, Event::Call { caller: id, node, actor: object, result });
            }
        } else if self.random.one_in(2) {
            self.with(id, |shell, out| shell.get(object, home, out));
        }
    }

    pub(super) fn called(&mut self, caller: ProcessId, node: ProcessId, actor: ObjectId, result: ObjectId) {
        let Some(sim) = self.nodes.get(&node) else { return };
        let is_here = |job: &Job| matches!(job.phase, Phase::Stays);
        let outcome = match sim.running.iter().any(|((task, _), job)| *task == actor && is_here(job)) {
            true => Outcome::Inline(shell::value_of(result, &[], 8)),
            false => Outcome::Failed(lost(result, NO_ACTOR)),
        };
        let is_thought_here = self.shell(caller).is_some_and(|shell| shell.owner.place(actor) == Some(node));
        if !self.has_faults() && is_thought_here && !matches!(outcome, Outcome::Inline(_)) {
            self.broken = Some(format!("{caller:?} thinks that {actor:?} is on {node:?}, and it is not"));
        }
        self.send(node, caller, Message::Finished { task: result, attempt: 0, outcome });
    }
}
