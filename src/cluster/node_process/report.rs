//! What a node tells people.

use super::{NodeProcess, State};
use crate::cluster::{
    capacity::Capacity,
    image::platform,
    protocol::{ObjectId, ProcessId},
    runs::Run,
    wire::{Order, Question, Title},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The label that is a node's name for people.
pub(crate) const NAME: &str = "node";

impl State {
    /// What is running is called, or where it comes from if that is not known yet.
    fn name(&self, driver: ProcessId, title: &Title) -> Arc<str> {
        let known = || self.jobs.get(&driver)?.names.get(&title.function).cloned();
        title.name.clone().or_else(known).unwrap_or_else(|| format!("a function of {}", title.location).into())
    }

    fn name_of(&self, order: &[u8]) -> Arc<str> {
        let named = Order::driver(order).zip(Title::of(order)).map(|(driver, title)| self.name(driver, &title));
        named.unwrap_or_else(|| "?".into())
    }

    fn program(&self, driver: ProcessId) -> Arc<str> {
        let job = self.jobs.get(&driver).and_then(|job| job.job.as_ref());
        job.map_or_else(|| driver.to_string().into(), |job| job.name.as_str().into())
    }

    fn pid(&self, worker: ProcessId) -> Option<u32> {
        self.workers.get(&worker).map(|worker| worker.pid)
    }

    /// What a worker runs, or ran last.
    fn at_work(&self, id: ProcessId) -> Arc<str> {
        let Some(worker) = self.workers.get(&id) else { return "no task".into() };
        let is_made = |task: &ObjectId| self.actors.get(task).is_some_and(|place| place.is_made);
        let here = self.runs.iter().filter(|((task, _), run)| run.worker == id && !is_made(task));
        let mut tasks =
            here.filter_map(|((task, attempt), _)| self.node.task(*task, *attempt)).filter(|task| task.runs());
        let first = tasks.next();
        let count = usize::from(first.is_some()) + tasks.count() + worker.calls.len();
        let only = match (first, worker.calls.values().next()) {
            (Some(task), _) => Some(self.name_of(&task.spec.body)),
            (None, Some((_, title))) => title.as_ref().map(|title| self.name(worker.driver, title)),
            (None, None) => worker.last.clone(),
        };
        match (count, only) {
            (0 | 1, Some(name)) => name,
            (0 | 1, None) => "no task".into(),
            (count, _) => format!("one of {count} tasks").into(),
        }
    }
}

impl NodeProcess {
    /// Notes when a task ran, which has just ended.
    pub(super) fn task_ended(&self, state: &mut State, id: ObjectId, attempt: u32) {
        let Some(task) = state.node.task(id, attempt) else { return };
        let (Some(since), is_ahead) = (task.since, task.is_ahead) else { return };
        let driver = Order::driver(&task.spec.body).unwrap_or(id.owner);
        let (name, job) = (state.name_of(&task.spec.body), state.program(driver));
        if let Some(worker) = state.runs.get(&(id, attempt)).and_then(|run| state.workers.get_mut(&run.worker)) {
            // One that was there ahead of its turn has waited for the one before.
            let start = if is_ahead { since.max(worker.ended) } else { since };
            let end = self.now().max(start);
            (worker.last, worker.ended) = (Some(name.clone()), end);
            state.timeline.push(Run { name, job, pid: worker.pid, start, end });
        }
    }

    pub(super) fn call_ended(&self, state: &mut State, id: ProcessId, call: ObjectId) {
        let Some(worker) = state.workers.get_mut(&id) else { return };
        let (driver, title) = (worker.driver, worker.calls.remove(&call).and_then(|(_, title)| title));
        let name = title.map(|title| state.name(driver, &title));
        if let (Some(name), Some(worker)) = (name, state.workers.get_mut(&id)) {
            worker.last = Some(name);
        }
    }

    /// Keeps a line that a worker has printed; returns who it was.
    pub(super) fn keep_line(&self, driver: ProcessId, worker: ProcessId, pid: u32, text: Arc<str>) -> String {
        let state = &mut *self.state.lock();
        let (task, job) = (state.at_work(worker), state.program(driver));
        let who = format!("{task}, node {}, pid {pid}", self.called(state));
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        state.printed.push(time.as_millis() as u64, pid, job, task, text);
        who
    }

    /// What people have called this node, or its number.
    fn called<'a>(&'a self, state: &'a State) -> &'a str {
        let label = state.node.labels().iter().find(|(key, _)| &**key == NAME);
        label.map_or(&self.name, |(_, name)| name)
    }

    pub(super) fn answer(&self, state: &State, question: &Question) -> Value {
        match question {
            Question::Tasks => self.tasks(state),
            Question::Actors => self.actors(state),
            Question::Objects => {
                let objects = state.shelf.sizes().map(|(id, size)| {
                    let job = state.workers.get(&id.owner).map_or(id.owner, |worker| worker.driver);
                    json!({ "node": self.called(state), "id": shown(id), "owner": id.owner.to_string(),
                            "job": &*state.program(job), "bytes": size })
                });
                objects.collect()
            }
            Question::Memory => self.memory(state),
            Question::Explain { task } => {
                let lines = state.node.explain(*task);
                lines.iter().map(|line| format!("on node {} its {line}", self.name)).collect()
            }
            Question::Lines { node, after } => {
                let called = self.called(state);
                let is_meant = node.as_ref().is_none_or(|node| *node == self.name || node == called);
                let mut answer = json!({});
                if is_meant {
                    answer = state.printed.after(after.get(&self.name).copied().unwrap_or_default());
                }
                answer["node"] = json!(self.name);
                answer["name"] = json!(called);
                answer["is_meant"] = json!(is_meant);
                answer
            }
            Question::Runs => {
                let mut answer = state.timeline.to_json();
                let started = self.started_on.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                answer["node"] = json!(self.name);
                answer["name"] = json!(self.called(state));
                answer["started_ns"] = json!(started.as_nanos() as u64);
                answer
            }
            _ => self.summary(state),
        }
    }

    fn summary(&self, state: &State) -> Value {
        let (_, objects, fetches) = state.node.holds();
        let is_actor = |id: &ObjectId| state.actors.get(id).is_some_and(|place| place.is_made);
        let tasks: Vec<_> = state.node.tasks().filter(|task| !is_actor(&task.spec.id)).collect();
        let running = tasks.iter().filter(|task| task.runs()).count();
        let labels: BTreeMap<&str, &str> = state.node.labels().iter().map(|(key, value)| (&**key, &**value)).collect();
        json!({
            "node": self.name, "name": self.called(state), "address": self.station.address,
            "capacity": json_of(state.node.capacity()), "free": json_of(state.node.free()), "labels": labels,
            "tasks": tasks.len(), "running": running, "actors": state.actors.len(),
            "objects": objects, "fetching": fetches, "stored_bytes": stored_bytes(state),
            "sent_bytes": self.bulk.sent(), "workers": state.workers.len(), "pid": std::process::id(),
            "since_seconds": self.started.elapsed().as_secs_f64(),
            "version": env!("CARGO_PKG_VERSION"), "platform": platform(),
        })
    }

    /// Actors that live are listed as such.
    fn tasks(&self, state: &State) -> Value {
        let is_made = |id: &ObjectId| state.actors.get(id).is_some_and(|place| place.is_made);
        let tasks = state.node.tasks().filter(|task| !is_made(&task.spec.id));
        let rows = tasks.map(|task| {
            let spec = task.spec;
            let driver = Order::driver(&spec.body).unwrap_or(spec.id.owner);
            let on = state.runs.get(&(spec.id, spec.attempt)).map(|run| run.worker);
            let since = task.since.filter(|_| task.runs());
            let phase = match (task.since, task.lacking) {
                (Some(_), _) if on.is_none() => "starting",
                (Some(_), _) if task.is_ahead => "next",
                (Some(_), _) => "running",
                (None, 0) => "waiting for resources",
                (None, _) => "waiting for arguments",
            };
            json!({ "node": self.called(state), "id": shown(spec.id), "name": &*state.name_of(&spec.body),
                    "kind": if spec.stays { "actor" } else { "task" }, "job": &*state.program(driver),
                    "attempt": spec.attempt, "state": phase, "lacking_arguments": task.lacking,
                    "running_seconds": since.map(|since| self.seconds_since(since)),
                    "pid": on.and_then(|on| state.pid(on)),
                    "submitted_at": Title::of(&spec.body).map(|title| title.location.to_string()) })
        });
        rows.collect()
    }

    fn seconds_since(&self, since: u64) -> f64 {
        Duration::from_nanos(self.now().saturating_sub(since)).as_secs_f64()
    }

    fn actors(&self, state: &State) -> Value {
        let rows = state.actors.iter().map(|(id, place)| {
            let task = state.node.task(*id, place.attempt);
            let worker = state.workers.get(&place.worker);
            let calls = worker.map_or(0, |worker| worker.calls.values().filter(|(actor, _)| actor == id).count());
            let since = task.as_ref().and_then(|task| task.since);
            json!({ "node": self.called(state), "id": shown(*id),
                    "name": task.map(|task| state.name_of(&task.spec.body).to_string()),
                    "job": worker.map(|worker| state.program(worker.driver).to_string()),
                    "pid": worker.map(|worker| worker.pid), "starts": place.attempt, "calls": calls,
                    "state": if place.is_made { "alive" } else { "starting" },
                    "since_seconds": since.map(|since| self.seconds_since(since)) })
        });
        rows.collect()
    }

    fn memory(&self, state: &State) -> Value {
        let workers = state.workers.values().map(|worker| {
            json!({ "pid": worker.pid, "job": &*state.program(worker.driver), "resident_bytes": resident(worker.pid),
                    "since_seconds": worker.since.elapsed().as_secs_f64() })
        });
        let workers: Vec<_> = workers.collect();
        let store = state.shelf.stats();
        json!({
            "shared_bytes": store.used, "spare_bytes": store.spare, "spilled_bytes": store.on_disk,
            "node": self.name, "name": self.called(state), "objects": state.shelf.sizes().count(),
            "stored_bytes": stored_bytes(state), "workers": workers, "resident_bytes": resident(std::process::id()),
            "memory": state.node.capacity().memory, "promised": state.node.capacity().memory - state.node.free().memory,
            "machine_bytes": machine("MemTotal:"), "machine_available_bytes": machine("MemAvailable:"),
        })
    }
}

/// A task, an actor or an object, in short: its owner and its number there.
fn shown(id: ObjectId) -> String {
    format!("{}/{}", id.owner, id.number)
}

fn stored_bytes(state: &State) -> u64 {
    state.shelf.sizes().map(|(_, size)| size).sum()
}

fn json_of(capacity: &Capacity) -> Value {
    let custom: BTreeMap<_, _> =
        capacity.custom.iter().map(|(name, amount)| (name.to_string(), *amount as f64 / 1e3)).collect();
    json!({
        "cpus": f64::from(capacity.cpu) / 1e3,
        "gpus": capacity.gpus.iter().map(|gpu| f64::from(*gpu) / 1e3).collect::<Vec<_>>(),
        "memory": capacity.memory,
        "resources": custom,
    })
}

/// A process's memory, if it is known.
fn resident(pid: u32) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:")
}

fn machine(what: &str) -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, what)
}

/// The bytes of a line that gives KiB.
fn kib(text: &str, what: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(what))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}
