//! The processes that run tasks, when handles travel: what they do with those that they get.

use super::{
    shell::{self, Guard, Shell},
    workload::{self, Body},
    world::{Event, SimNode, World},
};
use crate::cluster::{
    capacity::Demand,
    head::BEAT,
    protocol::{Arg, Effects, HEAD, Message, ObjectId, Outcome, ProcessId, TaskSpec, lost, ms, us},
};
use std::sync::Arc;

pub(super) struct Worker {
    pub(super) shell: Shell,
    pub(super) node: ProcessId,
    /// It is going to do something with the handles it has kept.
    acts: bool,
    /// What it will say when the head has welcomed it.
    pub(super) unsaid: Vec<(ProcessId, Message)>,
}

/// A task that runs.
pub(super) struct Job {
    pub(super) demand: Arc<Demand>,
    /// The bundle that it runs in.
    pub(super) bundle: Option<(ObjectId, u32)>,
    pub(super) body: Body,
    pub(super) stays: bool,
    pub(super) worker: Option<ProcessId>,
    /// Those that it came with, and those in its result.
    pub(super) handles: Vec<ObjectId>,
    pub(super) phase: Phase,
}

pub(super) enum Phase {
    Runs,
    /// It waits for claims, with these handles in its result.
    Ends(Vec<ObjectId>),
    /// It has finished, and goes on.
    Stays,
}

type Key = (ObjectId, u32);

impl World<'_> {
    /// Starts a worker.
    pub(super) fn hire(&mut self, node: ProcessId) {
        let id = self.process();
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        sim.workers.push(id);
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
                self.crashed.insert(*worker, self.now);
            }
        }
    }

    pub(super) fn crash_worker(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.remove(&id) else { return };
        self.crashed.insert(id, self.now);
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
                sim.node.crashed(self.now, task, attempt, "it was made to".into(), &mut out);
            }
        }
        self.perform(node, out);
        self.tick_later(node);
    }

    /// A worker takes the handles out of the arguments.
    pub(super) fn unpack(&mut self, node: ProcessId, spec: &TaskSpec) {
        let Some(sim) = self.nodes.get(&node) else { return };
        let Some(worker) = self.pick(sim.workers.clone()) else { return };
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
    pub(super) fn is_over(&mut self, node: ProcessId, key: Key) {
        let Some(job) = self.nodes.get(&node).and_then(|sim| sim.running.get(&key)) else { return };
        let (worker, got, body, stays) = (job.worker, job.handles.clone(), job.body, job.stays);
        if !matches!(job.phase, Phase::Runs) {
            return;
        }
        let Some(worker) = worker else { return self.end(node, key, &[]) };
        if !self.workers.contains_key(&worker) {
            return; // the node is about to see that
        }
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
        let (body, outcome) = (job.body, job.body.outcome(inside));
        let stays = job.stays && !body.fails;
        let mut out = Effects::default();
        if stays {
            self.keep_lower(node, key);
        } else {
            self.forget(node, key);
        }
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let is_well = outcome.is_well();
        for part in (1..=body.parts).filter(|_| !body.fails) {
            let (task, outcome) = (ObjectId { number: key.0.number + u64::from(part), ..key.0 }, body.part(part));
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
        let job = self.nodes.get_mut(&node)?.running.remove(&key)?;
        if let Some(worker) = job.worker {
            self.with(worker, |shell, out| {
                shell.stop(key);
                job.handles.iter().for_each(|object| shell.drop(*object, out));
            });
        }
        Some(job)
    }

    /// A job that was told to stop does.
    pub(super) fn stop(&mut self, node: ProcessId, key: Key) {
        let Some(job) = self.forget(node, key) else { return };
        let Some(sim) = self.nodes.get_mut(&node) else { return };
        let mut out = Effects::default();
        match job.phase {
            Phase::Stays => sim.node.ended(self.now, key.0, key.1, &mut out),
            _ => sim.node.finished(self.now, key.0, key.1, Outcome::Failed(lost(key.0, "it was stopped")), &mut out),
        }
        self.perform(node, out);
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
            let bytes = shell::to_bytes(&inside);
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
            true => Outcome::Inline(shell::to_bytes(&[])),
            false => Outcome::Failed(lost(result, "the actor is not here")),
        };
        let is_thought_here = self.shell(caller).is_some_and(|shell| shell.owner.place(actor) == Some(node));
        if !self.has_faults() && is_thought_here && !matches!(outcome, Outcome::Inline(_)) {
            self.broken = Some(format!("{caller:?} thinks that {actor:?} is on {node:?}, and it is not"));
        }
        self.send(node, caller, Message::Finished { task: result, attempt: 0, outcome });
    }
}
