//! What a node tells people.

use super::{NodeProcess, State, calls::Call};
use crate::{
    cluster::{
        capacity::Capacity,
        image::platform,
        look,
        node::Seen,
        pack::{Common, Pack},
        protocol::{NAME, ObjectId, ProcessId, TaskSpec},
        runs::Run,
        wire::{Order, Question, Site, Title, shown},
    },
    observe::TaskState,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What something is called, as far as that is known without a look at its function.
pub(super) struct Titled {
    function: Site,
    number: u64,
    name: Option<Arc<str>>,
    /// As long as there is no name.
    location: Option<Box<str>>,
}

impl Titled {
    /// What the tasks of a pack are called, each of which has a number of its own.
    pub(super) fn of_pack(common: &Common) -> Titled {
        let location = Some(Box::from(&*common.location));
        Titled { function: common.function, number: 0, name: None, location }
    }
}

impl State {
    /// What a task is called; of a pack, all of its tasks.
    fn titled_task(&self, driver: ProcessId, spec: &TaskSpec) -> Titled {
        match Pack::read(&spec.body).filter(|_| spec.count > 1) {
            Some(pack) => Titled::of_pack(&pack.common),
            None => self.titled(driver, &spec.body),
        }
    }

    fn titled(&self, driver: ProcessId, order: &[u8]) -> Titled {
        let Some(title) = Title::of(order) else {
            return Titled { function: Site::default(), number: 0, name: Some("?".into()), location: None };
        };
        let known = || self.jobs.get(&driver)?.names.get(&title.function).cloned();
        let name = title.name.map(Into::into).or_else(known);
        let location = name.is_none().then(|| title.location.into());
        Titled { function: title.function, number: title.number, name, location }
    }

    /// What it is called, or where it comes from if that is not known yet.
    fn name(&self, driver: ProcessId, titled: &Titled) -> Arc<str> {
        let known = || self.jobs.get(&driver)?.names.get(&titled.function).cloned();
        let unnamed = || format!("a function of {}", titled.location.as_deref().unwrap_or("?")).into();
        titled.name.clone().or_else(known).unwrap_or_else(unnamed)
    }

    fn name_of(&self, spec: &TaskSpec) -> Arc<str> {
        match Order::driver(&spec.body) {
            Some(driver) => self.name(driver, &self.titled_task(driver, spec)),
            None => "?".into(),
        }
    }

    pub(super) fn program(&self, driver: ProcessId) -> Arc<str> {
        let known = self.jobs.get(&driver).and_then(|job| job.program.clone());
        known.unwrap_or_else(|| driver.to_string().into())
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
        let only = match (first, worker.calls.any()) {
            (Some(task), _) => Some(self.name_of(task.spec)),
            (None, Some(titled)) => Some(self.name(worker.driver, titled)),
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
        let titled = state.titled(driver, &task.spec.body);
        let (name, program) = (state.name(driver, &titled), state.program(driver));
        if let Some(worker) = state.runs.get(&(id, attempt)).and_then(|run| state.workers.get_mut(&run.worker)) {
            // One that was there ahead of its turn has waited for the one before.
            let start = if is_ahead { since.max(worker.ended) } else { since };
            let end = self.now().max(start);
            (worker.last, worker.ended) = (Some(name.clone()), end);
            let (number, pid) = (titled.number, worker.pid);
            state.timeline.push(Run { name, kind: "task", number, driver, program, pid, start, end });
        }
    }

    /// Notes when tasks of a pack ran, which have just ended, each with how long it took if that is known.
    pub(super) fn packed_ended(&self, state: &mut State, pack: (ObjectId, u32), ended: &[(ObjectId, u32)]) {
        let since = state.node.task(pack.0, pack.1).and_then(|task| task.since);
        let run = state.runs.get(&pack).and_then(|run| Some((run.worker, run.pack.as_ref()?)));
        let (Some(since), Some((worker, (numbers, titled)))) = (since, run) else { return };
        let Some(driver) = state.workers.get(&worker).map(|worker| worker.driver) else { return };
        let (name, program) = (state.name(driver, titled), state.program(driver));
        let Some(worker) = state.workers.get_mut(&worker) else { return };
        let now = self.now();
        for (task, took) in ended {
            let number = numbers.get((task.number - pack.0.number) as usize).copied().unwrap_or_default();
            let start = since.max(worker.ended).min(now);
            let end = if *took == 0 { now } else { (start + u64::from(*took)).min(now) };
            worker.ended = end;
            let (name, program) = (name.clone(), program.clone());
            state.timeline.push(Run { name, kind: "task", number, driver, program, pid: worker.pid, start, end });
        }
        worker.last = Some(name);
    }

    /// A call goes to a worker.
    pub(super) fn call_begins(
        &self,
        state: &mut State,
        worker: ProcessId,
        call: ObjectId,
        actor: ObjectId,
        order: &[u8],
    ) {
        let Some(driver) = state.workers.get(&worker).map(|worker| worker.driver) else { return };
        let titled = state.titled(driver, order);
        let call_of = Call { actor, number: titled.number, titled: titled.into(), since: self.now() };
        if let Some(worker) = state.workers.get_mut(&worker) {
            worker.calls.begin(call, call_of);
        }
    }

    pub(super) fn call_ended(&self, state: &mut State, id: ProcessId, call: ObjectId) {
        let Some(worker) = state.workers.get_mut(&id) else { return };
        let (driver, pid) = (worker.driver, worker.pid);
        let Some(Call { titled, number, since: start, .. }) = worker.calls.end(call) else { return };
        let (name, program) = (state.name(driver, &titled), state.program(driver));
        if let Some(worker) = state.workers.get_mut(&id) {
            worker.last = Some(name.clone());
        }
        let end = self.now();
        state.timeline.push(Run { name, kind: "call", number, driver, program, pid, start, end });
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
    pub(super) fn called<'a>(&'a self, state: &'a State) -> &'a str {
        let label = state.node.labels().iter().find(|(key, _)| **key == *NAME);
        label.map_or(&self.name, |(_, name)| name)
    }

    pub(super) fn answer(&self, state: &State, question: &Question) -> Value {
        match question {
            Question::Tasks { job } => self.tasks(state, *job),
            Question::Actors { job } => self.actors(state, *job),
            Question::Stats { job } => self.sums(state, *job),
            Question::Held { .. } => json!([]),
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
                let newest = state.node.explain(*task).into_iter().next_back();
                let called = state.workers.values().any(|worker| worker.calls.contains(*task));
                match newest {
                    Some((seen, lacking, line)) => {
                        let line = format!("on node {} its {line}", self.called(state));
                        json!({ "phase": seen.state(), "attempt": seen.spec.attempt, "lacking": lacking, "lines": [line] })
                    }
                    None if called => {
                        let line = format!("on node {} its actor has it", self.called(state));
                        json!({ "phase": TaskState::Queued, "attempt": 1, "lines": [line] })
                    }
                    None => Value::Null,
                }
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
            Question::Runs { job } => {
                let mut answer = state.timeline.to_json(*job);
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
        let count = tasks.iter().map(|task| task.spec.count).sum::<u32>();
        let running = tasks.iter().filter(|task| task.runs()).count();
        let labels: BTreeMap<&str, &str> = state.node.labels().iter().map(|(key, value)| (&**key, &**value)).collect();
        json!({
            "node": self.name, "name": self.called(state), "address": self.station.address,
            "capacity": json_of(state.node.capacity()), "free": json_of(state.node.free()), "labels": labels,
            "tasks": count, "running": running, "actors": state.actors.len(),
            "objects": objects, "fetching": fetches, "stored_bytes": stored_bytes(state),
            "sent_bytes": self.bulk.sent(), "workers": state.workers.len(), "pid": std::process::id(),
            "since_seconds": self.started.elapsed().as_secs_f64(),
            "version": env!("CARGO_PKG_VERSION"), "platform": platform(),
        })
    }

    /// A program's part of what is here; CPUs are those of all.
    fn sums(&self, state: &State, job: ProcessId) -> Value {
        let of_job = |task: &Seen<'_>| Order::driver(&task.spec.body).unwrap_or(task.spec.id.owner) == job;
        let (mut queued, mut waiting, mut actors) = (0, 0, 0);
        for task in state.node.tasks().filter(of_job) {
            actors += usize::from(task.spec.stays);
            // What is with a worker ahead of its turn is in its queue.
            if task.state() == TaskState::Queued && task.since.is_none() {
                queued += task.spec.count;
            }
            waiting += usize::from(task.state() == TaskState::WaitingForResources);
        }
        json!({ "cpus": f64::from(state.node.capacity().cpu) / 1e3,
                "cpus_free": f64::from(state.node.unused_cpu()) / 1e3,
                "queued": queued, "waiting_for_resources": waiting, "actors": actors })
    }

    /// Actors that live are listed as such.
    fn tasks(&self, state: &State, job: Option<ProcessId>) -> Value {
        let is_made = |id: &ObjectId| state.actors.get(id).is_some_and(|place| place.is_made);
        let tasks = state.node.tasks().filter(|task| !is_made(&task.spec.id)).flat_map(|task| {
            let spec = task.spec;
            let all = if spec.count > 1 { spec.clone().open() } else { vec![spec.clone()] };
            all.into_iter().map(move |spec| (spec, task))
        });
        let tasks = tasks.filter(|(spec, task)| task.spec.count == 1 || state.node.pack(spec.id).is_some());
        let tasks = tasks.filter_map(|(spec, task)| {
            let driver = Order::driver(&spec.body).unwrap_or(spec.id.owner);
            if job.is_some_and(|job| job != driver) {
                return None;
            }
            let on = state.run_of(spec.id, spec.attempt).map(|run| run.worker);
            let since = task.since.filter(|_| task.runs());
            let (phase, words) = match task.state() {
                TaskState::Running if on.is_none() => (TaskState::Queued, "starting"),
                TaskState::Queued if task.is_ahead => (TaskState::Queued, "next"),
                TaskState::Queued => (TaskState::Queued, "waiting for a CPU"),
                phase => (phase, look::words(phase)),
            };
            let titled = state.titled(driver, &spec.body);
            Some(json!({ "of": spec.id, "process": spec.id.owner, "number": titled.number, "phase": phase,
                    "node": self.called(state), "node_id": self.name, "id": shown(spec.id),
                    "name": &*state.name(driver, &titled), "kind": if spec.stays { "actor" } else { "task" },
                    "job": &*state.program(driver), "attempt": spec.attempt, "state": words,
                    "lacking_arguments": task.lacking,
                    "running_seconds": since.map(|since| self.seconds_since(since)),
                    "pid": on.and_then(|on| state.pid(on)),
                    "submitted_at": Title::of(&spec.body).map(|title| title.location) }))
        });
        let calls = state.workers.values().filter(|worker| job.is_none_or(|job| job == worker.driver));
        let calls = calls.flat_map(|worker| worker.calls.iter().map(move |(id, call)| (worker, id, call)));
        let calls = calls.map(|(worker, id, call)| {
            json!({ "of": id, "process": id.owner, "number": call.number, "phase": TaskState::Queued,
                    "node": self.called(state), "node_id": self.name, "id": shown(id),
                    "name": &*state.name(worker.driver, &call.titled), "kind": "call",
                    "actor": call.actor, "actor_number": self.number_of(state, call.actor),
                    "job": &*state.program(worker.driver), "attempt": 1, "state": look::words(TaskState::Queued),
                    "running_seconds": self.seconds_since(call.since), "pid": worker.pid })
        });
        tasks.chain(calls).collect()
    }

    /// The number that an actor here has in the process that started it.
    fn number_of(&self, state: &State, actor: ObjectId) -> Option<u64> {
        let task = state.node.task(actor, state.actors.get(&actor)?.attempt)?;
        Title::of(&task.spec.body).map(|title| title.number)
    }

    fn seconds_since(&self, since: u64) -> f64 {
        Duration::from_nanos(self.now().saturating_sub(since)).as_secs_f64()
    }

    fn actors(&self, state: &State, job: Option<ProcessId>) -> Value {
        let rows = state.actors.iter().filter_map(|(id, place)| {
            let task = state.node.task(*id, place.attempt);
            let worker = state.workers.get(&place.worker);
            if job.is_some() && job != worker.map(|worker| worker.driver) {
                return None;
            }
            let calls = worker.map_or(0, |worker| worker.calls.of(*id));
            let since = task.as_ref().and_then(|task| task.since);
            let title = task.as_ref().and_then(|task| Title::of(&task.spec.body));
            Some(json!({ "of": id, "number": title.as_ref().map_or(0, |title| title.number),
                    "node": self.called(state), "node_id": self.name, "id": shown(*id),
                    "name": task.as_ref().map(|task| state.name_of(task.spec)),
                    "job": worker.map(|worker| state.program(worker.driver)),
                    "pid": worker.map(|worker| worker.pid), "starts": place.attempt, "calls": calls,
                    "state": if place.is_made { "alive" } else { "starting" },
                    "submitted_at": title.map(|title| title.location),
                    "since_seconds": since.map(|since| self.seconds_since(since)) }))
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

fn stored_bytes(state: &State) -> u64 {
    state.shelf.sizes().map(|(_, size)| size).sum()
}

fn json_of(capacity: &Capacity) -> Value {
    let custom: BTreeMap<_, _> =
        capacity.custom.iter().map(|(name, amount)| (name.to_string(), *amount as f64 / 1e3)).collect();
    json!({
        "cpus": f64::from(capacity.cpu) / 1e3,
        "gpus": capacity.gpus.rooms.iter().map(|room| f64::from(room.thousandths) / 1e3).collect::<Vec<_>>(),
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
