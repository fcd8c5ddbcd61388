//! Looking inside: numbers, lists, explanations and the timeline.

use crate::{
    error::{Error, Result},
    local::{
        Core, flag,
        node::{Blocker, Node, Phase},
        observe::describe,
    },
    object::ObjectRef,
    resources::LOCAL_NODE,
    runtime::Runtime,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{
    fmt,
    io::{BufWriter, Write},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

/// What a runtime has done and holds: see [`Runtime::stats`].
///
/// On a cluster CPUs are those of all nodes, free are those that no task has been given; and the rest is what the
/// program has there. Its processes are asked one after the other, and what one that has ended had counted
/// is not in the sums any more.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// CPUs that tasks may use.
    pub cpus: f64,
    /// CPUs that nobody uses now.
    pub cpus_free: f64,
    /// Worker threads, asleep ones included.
    pub threads: usize,
    /// Tasks, calls and streams submitted since the start.
    pub submitted: u64,
    /// Of those, how many succeeded.
    pub succeeded: u64,
    /// And how many failed or were cancelled.
    pub failed: u64,
    /// Batches that idle workers took from others.
    pub stolen: u64,
    /// Queue entries waiting for a worker; some may have been run already by who waited for them.
    pub queued: usize,
    /// Tasks and actors waiting for resources.
    pub waiting_for_resources: usize,
    /// Actors alive.
    pub actors: usize,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { cpus, cpus_free, threads, submitted, succeeded, failed, stolen, queued, .. } = self;
        write!(
            f,
            "{cpus} CPUs ({cpus_free} free), {threads} threads, {submitted} submitted, {succeeded} succeeded, {failed} failed, {queued} queued, {} waiting for resources, {} actors, {stolen} steals",
            self.waiting_for_resources, self.actors
        )
    }
}

/// What a task or call is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TaskState {
    /// Some of its arguments are not ready.
    WaitingForArguments,
    /// What it asks for is not free.
    WaitingForResources,
    /// It waits for a CPU, or for its turn in its actor.
    Queued,
    /// It runs, or is an `async` function that waits.
    Running,
    /// It failed, and waits for its next attempt.
    Pausing,
    /// It has its result.
    Succeeded,
    /// It failed or was cancelled.
    Failed,
}

/// A task, call or stream in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskInfo {
    /// Its number.
    pub id: u64,
    /// Its name, or the path of its function.
    pub name: String,
    /// "task", "call" or "stream".
    pub kind: String,
    /// What it is doing.
    pub state: TaskState,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// The number of its actor, for a call.
    pub actor: Option<u64>,
    /// Where it was submitted.
    pub location: String,
    /// The node of a cluster that it is on, or "local". What was submitted by a task on a cluster has the number that the
    /// process gave it which that task ran in; so two may have the same.
    pub node: String,
}

/// What an actor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ActorState {
    /// Its constructor has not finished.
    Starting,
    /// It has nothing to do.
    Idle,
    /// Some call runs.
    Busy,
    /// It has ended.
    Dead,
}

/// An actor in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ActorInfo {
    /// Its number.
    pub id: u64,
    /// Its name, or the type of its state.
    pub name: String,
    /// The type of its state.
    pub type_name: String,
    /// What it is doing.
    pub state: ActorState,
    /// Calls that wait for their turn.
    pub pending_calls: usize,
    /// How often it has restarted.
    pub restarts: u32,
    /// Where it was started.
    pub location: String,
    /// The node of a cluster that it is on, or "local".
    pub node: String,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its number, which is that of the task that makes it.
    pub id: u64,
    /// The path of the function that makes it, or its type if it was `put`.
    pub name: String,
    /// Whether it is there.
    pub ready: bool,
    /// Handles to it.
    pub handles: u32,
    /// Where it was put, or its task submitted.
    pub location: String,
    /// The node of a cluster on which it was put, or its task submitted, or "local": this process.
    pub node: String,
}

/// What a list should hold. The default is everything.
///
/// ```
/// # use outray::{Filter, Runtime, TaskState};
/// let rt = Runtime::builder().observe(true).build()?;
/// let task = rt.task(|| 1).name("one").submit(());
/// task.get()?;
/// let done = rt.list_tasks(&Filter::new().name("one").state(TaskState::Succeeded))?;
/// assert_eq!(done.len(), 1);
/// # Ok::<(), outray::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Filter {
    name: Option<String>,
    state: Option<TaskState>,
    limit: Option<usize>,
}

impl Filter {
    /// Everything.
    pub fn new() -> Self {
        Filter::default()
    }

    /// Only what has this text in its name.
    #[must_use]
    pub fn name(mut self, part: &str) -> Self {
        self.name = Some(part.to_owned());
        self
    }

    /// Only tasks in this state.
    #[must_use]
    pub fn state(mut self, state: TaskState) -> Self {
        self.state = Some(state);
        self
    }

    /// Only the first so many, by number.
    #[must_use]
    pub fn limit(mut self, most: usize) -> Self {
        self.limit = Some(most);
        self
    }

    fn names(&self, name: &str) -> bool {
        self.name.as_deref().is_none_or(|part| name.contains(part))
    }

    fn cut<T>(&self, mut list: Vec<T>, id: impl Fn(&T) -> u64) -> Vec<T> {
        list.sort_by_key(id);
        self.first(list)
    }

    fn first<T>(&self, mut list: Vec<T>) -> Vec<T> {
        list.truncate(self.limit.unwrap_or(usize::MAX));
        list
    }
}

pub(crate) fn state(node: &dyn Node) -> TaskState {
    match node.phase() {
        Phase::WaitingForArguments => TaskState::WaitingForArguments,
        Phase::WaitingForResources => TaskState::WaitingForResources,
        Phase::Queued => TaskState::Queued,
        Phase::Running => TaskState::Running,
        Phase::Pausing => TaskState::Pausing,
        Phase::Done if node.failure().is_some() => TaskState::Failed,
        Phase::Done => TaskState::Succeeded,
    }
}

/// Why an object is not ready: see [`Runtime::explain`]. Display it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    lines: Vec<String>,
}

impl Explanation {
    /// One line for the object, and an indented one for each thing that it waits for in turn.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

/// As far as explanations go down, and in lines.
const EXPLAIN_DEPTH: usize = 8;
const EXPLAIN_LINES: usize = 40;

pub(crate) fn explain(core: &'static Core, node: &Arc<dyn Node>, depth: usize, lines: &mut Vec<String>) {
    if lines.len() >= EXPLAIN_LINES {
        return;
    }
    let indent = "  ".repeat(depth);
    let location = node.origin().location;
    #[cfg(feature = "cluster")]
    if let (Some(id), Some(client)) = (node.remote_id(), core.client.get())
        && !matches!(node.phase(), Phase::Done | Phase::WaitingForArguments)
    {
        let (doing, others) = client.explain(&**node, id);
        lines.push(format!("{indent}{}, which {doing}, submitted at {location}", node.label()));
        lines.extend(others.into_iter().map(|line| format!("{indent}  {line}")));
        for blocker in node.blockers() {
            if let (Blocker::Node(next), true) = (blocker, depth < EXPLAIN_DEPTH) {
                explain(core, &next, depth + 1, lines);
            }
        }
        return;
    }
    let line = match node.failure() {
        Some(error) => format!("{}, which failed: {error}", node.label()),
        None => describe(&**node),
    };
    lines.push(format!("{indent}{line}, submitted at {location}"));
    if depth >= EXPLAIN_DEPTH || node.is_done() {
        return;
    }
    if let (Phase::Queued, None) = (node.phase(), node.actor()) {
        lines.push(format!("{indent}  {} queue entries wait for {} CPUs", core.queued(), core.cpus()));
    }
    for blocker in node.blockers() {
        match blocker {
            Blocker::Node(next) => explain(core, &next, depth + 1, lines),
            Blocker::Actor { id, .. } => {
                let actor = core.actors.lock().get(&id).and_then(std::sync::Weak::upgrade);
                if let Some(info) = actor.map(|actor| actor.info()) {
                    let ActorInfo { name, state, pending_calls, .. } = info;
                    lines.push(format!("{indent}  actor `{name}` (#{id}) is {state:?}, {pending_calls} calls wait"));
                }
            }
            Blocker::Room { group, limit, .. } => {
                let of = group.map_or("the actor".to_owned(), |group| format!("concurrency group {group:?}"));
                lines.push(format!("{indent}  {limit} calls of {of} run, as many as may"));
            }
        }
    }
}

impl Runtime {
    /// What the runtime has done and holds now.
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// rt.submit(|| (), ()).get()?;
    /// println!("{}", rt.stats());
    /// # Ok::<(), outray::Error>(())
    /// ```
    pub fn stats(&self) -> Stats {
        let own = self.own_stats();
        #[cfg(feature = "cluster")]
        if let Some(client) = self.core.client.get() {
            return client.stats(own);
        }
        own
    }

    /// Those of this process.
    pub(crate) fn own_stats(&self) -> Stats {
        let core = self.core;
        let (cpus, waiting_for_resources) = (core.cpus(), core.applicants().len());
        Stats {
            cpus,
            cpus_free: f64::from(core.idle.free()) / 1e3,
            threads: core.threads(),
            submitted: core.total(|c| &c.submitted),
            succeeded: core.total(|c| &c.executed),
            failed: core.total(|c| &c.failed),
            stolen: core.total(|c| &c.stolen),
            queued: core.queued(),
            waiting_for_resources,
            actors: core.actors.lock().values().filter(|actor| actor.strong_count() > 0).count(),
        }
    }

    fn observed(&self, what: &str) -> Result<Arc<crate::local::observe::Recorder>> {
        let recorder = self.core.recorder.read().clone();
        recorder.filter(|_| self.core.has(flag::OBSERVE)).ok_or_else(|| Error::NotObserving { what: what.into() })
    }

    /// Tasks, calls and streams that have not ended, or whose result somebody holds. On a cluster also those that were
    /// submitted by others: the program's own come first.
    ///
    /// # Errors
    /// [`Error::NotObserving`]; [`Error::Unsupported`] if a cluster does not answer.
    pub fn list_tasks(&self, filter: &Filter) -> Result<Vec<TaskInfo>> {
        let nodes = self.observed("the list of tasks")?.nodes();
        #[cfg(feature = "cluster")]
        if let Some(client) = self.core.client.get() {
            let mut infos = client.list_tasks(&nodes)?;
            infos.retain(|info| filter.names(&info.name) && filter.state.is_none_or(|state| info.state == state));
            return Ok(filter.first(infos));
        }
        let tasks = nodes.iter().filter(|node| node.kind() != "object" && filter.names(node.name()));
        let infos = tasks.map(|node| TaskInfo {
            id: node.meta().id,
            name: node.name().to_owned(),
            kind: node.kind().to_owned(),
            state: state(&**node),
            attempt: node.meta().attempt(),
            actor: node.actor_number(),
            location: node.meta().location.to_string(),
            node: LOCAL_NODE.into(),
        });
        let wanted = infos.filter(|info| filter.state.is_none_or(|state| info.state == state));
        Ok(filter.cut(wanted.collect(), |info| info.id))
    }

    /// Objects that somebody holds, those to come included. On a cluster also those that were made and are held by others
    /// who observe, that is by the program's tasks: its own come first.
    ///
    /// # Errors
    /// [`Error::NotObserving`]; [`Error::Unsupported`] if a cluster does not answer.
    pub fn list_objects(&self, filter: &Filter) -> Result<Vec<ObjectInfo>> {
        let nodes = self.observed("the list of objects")?.nodes();
        let own = |node: &&Arc<dyn Node>| node.kind() != "stream" && !node.meta().is_from_elsewhere();
        let objects = nodes.iter().filter(own).filter(|node| filter.names(node.name()));
        let infos = objects.map(|node| ObjectInfo {
            id: node.meta().id,
            name: node.name().to_owned(),
            ready: node.is_done(),
            handles: node.meta().handles.load(Ordering::Relaxed),
            location: node.meta().location.to_string(),
            node: LOCAL_NODE.into(),
        });
        let own = filter.cut(infos.filter(|info| info.handles > 0).collect(), |info| info.id);
        #[cfg(feature = "cluster")]
        if let Some(client) = self.core.client.get() {
            let mut all = own;
            all.extend(client.list_objects()?.into_iter().filter(|info| filter.names(&info.name)));
            return Ok(filter.first(all));
        }
        Ok(own)
    }

    /// Actors that are alive. This works without observing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a cluster does not answer.
    pub fn list_actors(&self, filter: &Filter) -> Result<Vec<ActorInfo>> {
        #[cfg(feature = "cluster")]
        if let Some(client) = self.core.client.get() {
            let mut infos = client.list_actors()?;
            infos.retain(|info| filter.names(&info.name));
            return Ok(filter.first(infos));
        }
        let actors: Vec<_> = self.core.actors.lock().values().filter_map(std::sync::Weak::upgrade).collect();
        let infos = actors.iter().map(|actor| actor.info()).filter(|info| filter.names(&info.name));
        Ok(filter.cut(infos.collect(), |info| info.id))
    }

    /// Why an object is not ready yet.
    ///
    /// ```
    /// # use outray::Runtime;
    /// # use std::time::Duration;
    /// let rt = Runtime::local();
    /// let slow = rt.task(|| std::thread::sleep(Duration::from_millis(50))).name("slow").submit(());
    /// let next = rt.submit(|_: ()| 1, &slow);
    /// println!("{}", rt.explain(&next)); // task `..` waits for task `slow`, which is running
    /// # assert!(rt.explain(&next).to_string().contains("slow"));
    /// ```
    pub fn explain<T: Send + Sync + 'static>(&self, object: &ObjectRef<T>) -> Explanation {
        let mut lines = Vec::new();
        explain(self.core, &object.node(), 0, &mut lines);
        Explanation { lines }
    }

    /// Writes what ran when, on which thread, to a file that Perfetto (ui.perfetto.dev) and
    /// `chrome://tracing` open. On a cluster: what the program's workers ran, each node by itself; of a worker
    /// that has ended, only the tasks and calls that came to it from elsewhere.
    ///
    /// # Errors
    /// [`Error::NotObserving`]; [`Error::Io`] if the file cannot be written; [`Error::Unsupported`] if a cluster does
    /// not answer.
    pub fn timeline(&self, path: impl AsRef<Path>) -> Result<()> {
        let recorder = self.observed("the timeline")?;
        let path = path.as_ref();
        let failed = |error: std::io::Error| Error::Io { path: path.display().to_string(), message: error.to_string() };
        let mut file = BufWriter::new(std::fs::File::create(path).map_err(failed)?);
        #[cfg(feature = "cluster")]
        if let Some(client) = self.core.client.get() {
            let nodes = client.what_ran()?;
            return crate::cluster::write_trace(&nodes, file).map(drop).map_err(failed);
        }
        let mut separator = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n";
        let mut event = |event: serde_json::Value| {
            let written = write!(file, "{separator}{event}").map_err(failed);
            separator = ",\n";
            written
        };
        event(json!({"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "outray"}}))?;
        for (tid, log) in recorder.logs().iter().enumerate() {
            event(json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": log.thread}}))?;
            for run in &log.log.lock().runs {
                let (ts, dur) = (run.start as f64 / 1e3, (run.end - run.start) as f64 / 1e3);
                let args = json!({"id": run.id, "inside": run.depth});
                event(
                    json!({"ph": "X", "name": &*run.name, "cat": run.kind, "pid": 1, "tid": tid, "ts": ts, "dur": dur, "args": args}),
                )?;
            }
        }
        writeln!(file, "\n]}}").and_then(|()| file.flush()).map_err(failed)
    }
}
