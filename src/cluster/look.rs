//! What the processes of a program do, for the program itself and for people.
//!
//! Nobody tells of this unasked. A question takes the way of tasks: to the asking process's own node, on to the head,
//! from there to all nodes, and from them to their workers; so it overtakes little of what was submitted before. What
//! nobody knows is on its way. The asking process puts the answers together with what it knows itself: which of its tasks have
//! ended, and which wait for arguments that are not there.

use super::{
    client::{Client, PATIENCE},
    protocol::{ObjectId, ProcessId},
    wire::Question,
};
use crate::{
    error::{Error, Result},
    local::node::Node,
    observe::{self, ActorInfo, ActorState, ObjectInfo, Stats, TaskInfo, TaskState},
    resources::LOCAL_NODE,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

/// How long one node may take to say what a task is doing, for the message of a wait that has taken too long.
const BRIEFLY: Duration = Duration::from_secs(1);
/// Runs that a worker tells of, the last ones.
const RUNS: usize = 100_000;

/// A task as its node or its worker tells of it.
#[derive(Deserialize)]
struct TaskRow {
    /// What it is called on the cluster, if it has left the process that submitted it.
    of: Option<ObjectId>,
    process: ProcessId,
    number: u64,
    name: String,
    kind: String,
    phase: TaskState,
    attempt: u32,
    #[serde(default)]
    actor: Option<ObjectId>,
    #[serde(default)]
    actor_number: Option<u64>,
    #[serde(default)]
    submitted_at: Option<String>,
    #[serde(default)]
    node_id: Option<String>,
}

#[derive(Deserialize)]
struct ActorRow {
    of: ObjectId,
    number: u64,
    starts: u32,
    node_id: String,
    submitted_at: Option<String>,
    /// What the worker says, when there is one.
    #[serde(default)]
    info: Option<ActorFacts>,
}

#[derive(Deserialize)]
struct ActorFacts {
    name: String,
    type_name: String,
    state: ActorState,
    pending_calls: usize,
    restarts: u32,
}

#[derive(Deserialize)]
struct ObjectRow {
    process: ProcessId,
    number: u64,
    name: String,
    ready: bool,
    handles: u32,
    location: String,
    node_id: String,
}

/// What a node, and the workers there, sum up.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Sums {
    cpus: f64,
    cpus_free: f64,
    threads: usize,
    submitted: u64,
    succeeded: u64,
    failed: u64,
    stolen: u64,
    queued: usize,
    waiting_for_resources: usize,
    actors: usize,
}

/// What somebody says of a task that has not ended.
#[derive(Deserialize)]
struct Account {
    phase: TaskState,
    attempt: u32,
    #[serde(default)]
    lacking: Option<String>,
    lines: Vec<String>,
}

/// What a task does, for people.
pub(super) fn words(state: TaskState) -> &'static str {
    match state {
        TaskState::WaitingForArguments => "waiting for arguments",
        TaskState::WaitingForResources => "waiting for resources",
        TaskState::Queued => "queued",
        TaskState::Running => "running",
        TaskState::Pausing => "pausing",
        TaskState::Succeeded => "succeeded",
        TaskState::Failed => "failed",
    }
}

/// The further, the more is known of it.
fn rank(state: TaskState) -> u8 {
    match state {
        TaskState::WaitingForArguments => 0,
        TaskState::WaitingForResources => 1,
        TaskState::Queued => 2,
        TaskState::Pausing => 3,
        TaskState::Running => 4,
        TaskState::Failed => 5,
        TaskState::Succeeded => 6,
    }
}

/// A node of the local runtime's, as a row of a list.
fn row(node: &dyn Node, of: Option<ObjectId>, process: ProcessId) -> Value {
    let origin = node.origin();
    json!({ "of": of, "process": process, "number": origin.id, "name": origin.name, "kind": origin.kind,
            "phase": observe::state(node), "attempt": origin.attempt, "submitted_at": origin.location })
}

/// What a worker answers its node.
pub(super) fn answer(client: &Client, question: &Question) -> Value {
    let core = client.core;
    let recorder = || core.recorder.read().clone();
    match question {
        Question::Tasks { job } => {
            let mut rows: Vec<_> =
                client.runs_here().iter().map(|((id, _), node)| row(&**node, Some(*id), id.owner)).collect();
            for node in recorder().map(|recorder| recorder.nodes()).unwrap_or_default() {
                if node.kind() == "object" || node.meta().is_from_elsewhere() || (job.is_none() && node.is_done()) {
                    continue;
                }
                // What has left this process is known where it is, unless it is not there yet or has ended.
                let is_here = |id| node.is_done() || client.waits_here(id);
                if node.remote_id().is_none_or(is_here) {
                    rows.push(row(&*node, node.remote_id(), client.me));
                }
            }
            rows.into()
        }
        Question::Actors { .. } => {
            let hosted = client.hosted();
            let rows = hosted.iter().map(|(id, actor)| json!({ "of": id, "info": actor.info() }));
            rows.collect()
        }
        Question::Held { .. } => {
            let nodes = recorder().map(|recorder| recorder.nodes()).unwrap_or_default();
            let own = nodes.iter().filter(|node| node.kind() != "stream" && !node.meta().is_from_elsewhere());
            let rows = own.filter_map(|node| {
                let handles = node.meta().handles.load(Ordering::Relaxed);
                (handles > 0).then(|| {
                    json!({ "process": client.me, "number": node.meta().id, "name": node.name(),
                            "ready": node.is_done(), "handles": handles, "location": node.meta().location.to_string() })
                })
            });
            rows.collect()
        }
        Question::Stats { .. } => json!({
            "threads": core.threads(), "queued": core.queued(), "waiting_for_resources": core.applicants().len(),
            "submitted": core.total(|c| &c.submitted), "succeeded": core.total(|c| &c.executed),
            "failed": core.total(|c| &c.failed), "stolen": core.total(|c| &c.stolen),
        }),
        Question::Runs { .. } => recorder().map_or(Value::Null, |recorder| {
            let started = recorder.started_on.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let mut texts = Texts::default();
            let (mut threads, mut runs) = (Vec::new(), Vec::new());
            for (thread, log) in recorder.logs().iter().enumerate() {
                threads.push(log.thread.clone());
                for run in log.log.lock().runs.iter().rev().take(RUNS) {
                    let (name, kind) = (texts.place(&run.name), texts.place(run.kind));
                    runs.push((
                        run.start,
                        json!([thread, name, kind, run.id, run.start, run.end - run.start, run.depth]),
                    ));
                }
            }
            runs.sort_unstable_by_key(|(start, _)| std::cmp::Reverse(*start));
            runs.truncate(RUNS);
            let runs: Vec<_> = runs.into_iter().map(|(_, run)| run).collect();
            json!({ "started_ns": started.as_nanos() as u64, "threads": threads, "texts": texts.0, "runs": runs })
        }),
        Question::Explain { task } => {
            let run = client.runs_here().into_iter().find(|((id, _), _)| id == task).map(|(_, node)| node);
            match run.or_else(|| client.own_node(*task)) {
                Some(node) => {
                    let mut lines = Vec::new();
                    observe::explain(core, &node, 0, &mut lines);
                    json!({ "phase": observe::state(&*node), "attempt": node.meta().attempt(), "lines": lines })
                }
                None => Value::Null,
            }
        }
        _ => Value::Null,
    }
}

/// Each text once.
#[derive(Default)]
struct Texts(Vec<String>, HashMap<String, usize>);

impl Texts {
    fn place(&mut self, text: &str) -> usize {
        if let Some(place) = self.1.get(text) {
            return *place;
        }
        self.0.push(text.to_owned());
        self.1.insert(text.to_owned(), self.0.len() - 1);
        self.0.len() - 1
    }
}

impl Client {
    /// What everybody answers, each by itself.
    fn hear<T: DeserializeOwned>(&self, question: Question) -> Result<Vec<T>> {
        let answer = self.ask_all(question, PATIENCE)?;
        let answers: Vec<Value> = read(&answer)?;
        Ok(answers.into_iter().filter_map(|answer| serde_json::from_value(answer).ok()).collect())
    }

    /// What the nodes of the program's have run.
    pub(crate) fn what_ran(&self) -> Result<Vec<Value>> {
        self.hear(Question::Runs { job: Some(self.job.driver) })
    }

    /// The figures of all processes. `own` are those of this one.
    pub(crate) fn stats(&self, own: Stats) -> Stats {
        let sums: Vec<Sums> = self.hear(Question::Stats { job: self.job.driver }).unwrap_or_default();
        // What a worker counts it is asked for, too.
        let mut stats = match self.me.is_worker() {
            false => own.clone(),
            true => Stats { submitted: 0, succeeded: 0, failed: 0, stolen: 0, queued: 0, ..own.clone() },
        };
        if sums.is_empty() {
            return own;
        }
        (stats.cpus, stats.cpus_free, stats.threads, stats.actors) = (0.0, 0.0, 0, 0);
        stats.waiting_for_resources = 0;
        for sum in sums {
            stats.cpus += sum.cpus;
            stats.cpus_free += sum.cpus_free;
            stats.threads += sum.threads;
            stats.submitted += sum.submitted;
            stats.succeeded += sum.succeeded;
            stats.failed += sum.failed;
            stats.stolen += sum.stolen;
            stats.queued += sum.queued;
            stats.waiting_for_resources += sum.waiting_for_resources;
            stats.actors += sum.actors;
        }
        stats
    }

    /// Tasks of the whole program; `nodes` are those that this process has recorded.
    pub(crate) fn list_tasks(&self, nodes: &[Arc<dyn Node>]) -> Result<Vec<TaskInfo>> {
        let answers: Vec<Vec<TaskRow>> = self.hear(Question::Tasks { job: Some(self.job.driver) })?;
        let mut known: BTreeMap<ObjectId, TaskRow> = BTreeMap::new();
        let mut inside = Vec::new();
        for row in answers.into_iter().flatten().filter(|row| row.kind != "actor") {
            match row.of {
                None => inside.push(row),
                // It may have been seen twice, on its way from one node to another.
                Some(id) if known.get(&id).is_some_and(|other| rank(other.phase) > rank(row.phase)) => {}
                Some(id) => drop(known.insert(id, row)),
            }
        }
        let mut infos = Vec::new();
        let tasks = nodes.iter().filter(|node| node.kind() != "object" && !node.meta().is_from_elsewhere());
        for node in tasks {
            let row = node.remote_id().and_then(|id| known.remove(&id));
            let ended = node.is_done() || node.remote_id().is_none();
            infos.push(TaskInfo {
                id: node.meta().id,
                name: node.name().to_owned(),
                kind: node.kind().to_owned(),
                state: row.as_ref().filter(|_| !ended).map_or_else(|| observe::state(&**node), |row| row.phase),
                attempt: row.as_ref().map_or(node.meta().attempt(), |row| row.attempt),
                actor: node.actor_number(),
                location: node.meta().location.to_string(),
                node: row.and_then(|row| row.node_id).unwrap_or_else(|| LOCAL_NODE.into()),
            });
        }
        infos.sort_by_key(|info| info.id);
        // Own ones that are not recorded have ended, and nobody holds them.
        let mut others: Vec<_> = known.into_values().chain(inside).filter(|row| row.process != self.me).collect();
        others.sort_by_key(|row| (row.process, row.number));
        infos.extend(others.into_iter().map(|row| TaskInfo {
            id: row.number,
            name: row.name,
            kind: row.kind,
            state: row.phase,
            attempt: row.attempt,
            actor: row.actor.and_then(|actor| self.number_of(actor)).or(row.actor_number),
            location: row.submitted_at.unwrap_or_default(),
            node: row.node_id.unwrap_or_default(),
        }));
        Ok(infos)
    }

    /// Objects that other processes of the program have made and hold.
    pub(crate) fn list_objects(&self) -> Result<Vec<ObjectInfo>> {
        let answers: Vec<Vec<ObjectRow>> = self.hear(Question::Held { job: self.job.driver })?;
        let mut others: Vec<_> = answers.into_iter().flatten().filter(|row| row.process != self.me).collect();
        others.sort_by_key(|row| (row.process, row.number));
        let infos = others.into_iter().map(|row| ObjectInfo {
            id: row.number,
            name: row.name,
            ready: row.ready,
            handles: row.handles,
            location: row.location,
            node: row.node_id,
        });
        Ok(infos.collect())
    }

    /// Actors of the whole program.
    pub(crate) fn list_actors(&self) -> Result<Vec<ActorInfo>> {
        // Before the nodes are asked: one that is not there yet may be there then.
        let own: Vec<_> = self.own_actors();
        let answers: Vec<Vec<ActorRow>> = self.hear(Question::Actors { job: Some(self.job.driver) })?;
        let mut rows: BTreeMap<ObjectId, ActorRow> = answers.into_iter().flatten().map(|row| (row.of, row)).collect();
        let mut infos = Vec::new();
        for cell in own {
            let node: &dyn Node = &*cell;
            let row = rows.remove(&cell.id());
            if row.is_none() && node.failure().is_some() {
                continue;
            }
            let restarts = row.as_ref().map_or(0, |row| row.starts - 1);
            let (place, facts) = row.map_or((None, None), |row| (Some(row.node_id), row.info));
            infos.push(ActorInfo {
                id: node.meta().id,
                name: node.name().to_owned(),
                type_name: node.type_name().to_owned(),
                state: facts.as_ref().map_or(ActorState::Starting, |facts| facts.state),
                pending_calls: facts.as_ref().map_or(0, |facts| facts.pending_calls),
                restarts: restarts + facts.as_ref().map_or(0, |facts| facts.restarts),
                location: node.meta().location.to_string(),
                node: place.unwrap_or_else(|| LOCAL_NODE.into()),
            });
        }
        infos.sort_by_key(|info| info.id);
        let others = rows.into_values().filter(|row| row.of.owner != self.me);
        infos.extend(others.filter_map(|row| {
            let facts = row.info?;
            Some(ActorInfo {
                id: row.number,
                name: facts.name,
                type_name: facts.type_name,
                state: facts.state,
                pending_calls: facts.pending_calls,
                restarts: row.starts - 1 + facts.restarts,
                location: row.submitted_at.unwrap_or_default(),
                node: row.node_id,
            })
        }));
        Ok(infos)
    }

    /// What a task or call is doing that is elsewhere, in a few words for a message. Asks only where it is.
    pub(crate) fn doing(&self, node: &dyn Node, id: ObjectId) -> String {
        let question = Question::Explain { task: self.maker(id) };
        let answer = match self.whereabouts(id) {
            Some(at) => self.ask_at(at, question, BRIEFLY).and_then(|answer| Ok(accounts(vec![read(&answer)?]))),
            None => self.ask_all(question, BRIEFLY).and_then(|answer| read(&answer).map(accounts)),
        };
        in_words(node, furthest(&answer.unwrap_or_default()))
    }

    /// The same, and what all say who know of it.
    pub(crate) fn explain(&self, node: &dyn Node, id: ObjectId) -> (String, Vec<String>) {
        let answer = self.ask_all(Question::Explain { task: self.maker(id) }, PATIENCE);
        match answer.and_then(|answer| read(&answer).map(accounts)) {
            Ok(accounts) => {
                let doing = in_words(node, furthest(&accounts));
                (doing, accounts.into_iter().flat_map(|account| account.lines).collect())
            }
            Err(error) => (in_words(node, None), vec![error.to_string()]),
        }
    }
}

fn read<T: DeserializeOwned>(answer: &str) -> Result<T> {
    serde_json::from_str(answer)
        .map_err(|error| Error::Unsupported { reason: format!("an answer of the cluster's cannot be read: {error}") })
}

fn accounts(answers: Vec<Value>) -> Vec<Account> {
    answers.into_iter().filter_map(|answer| serde_json::from_value(answer).ok()).collect()
}

fn furthest(accounts: &[Account]) -> Option<&Account> {
    accounts.iter().max_by_key(|account| rank(account.phase))
}

/// What a task is doing by this account, or, without one, most likely: it is on its way.
fn in_words(node: &dyn Node, account: Option<&Account>) -> String {
    let state = account.map_or_else(|| observe::state(node), |account| account.phase);
    match (state, account.and_then(|account| account.lacking.as_deref())) {
        (TaskState::Running, _) => "is running".into(),
        (TaskState::Pausing, _) => {
            format!("pauses before attempt {}", account.map_or(1, |account| account.attempt))
        }
        (TaskState::Succeeded | TaskState::Failed, _) => "is done".into(),
        (TaskState::WaitingForArguments, _) => "waits for its arguments".into(),
        (TaskState::WaitingForResources, Some(lacking)) => format!("waits for resources ({lacking})"),
        (TaskState::WaitingForResources, None) => "waits for resources".into(),
        (TaskState::Queued, _) if node.kind() == "call" => "waits for its turn in the actor".into(),
        (TaskState::Queued, _) if node.kind() == "actor" => "is on its way".into(),
        (TaskState::Queued, _) => "waits for a free CPU".into(),
    }
}
