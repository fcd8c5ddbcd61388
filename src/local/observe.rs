//! Recording what runs, when the runtime observes; nothing otherwise.
//!
//! Each thread appends to its own log, under a lock that nobody else takes but who reads the logs.

use super::{
    Core, flag,
    node::{Node, Phase},
    thread,
};
use parking_lot::Mutex;
use std::{
    cell::RefCell,
    sync::{Arc, Weak},
    time::Instant,
};

/// Runs that a thread remembers; older ones make room.
const RUNS: usize = 1 << 20;

/// One uninterrupted run of a body, or one poll of a future.
pub(crate) struct Run {
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) kind: &'static str,
    /// Nanoseconds since the runtime was made.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) depth: usize,
}

#[derive(Default)]
pub(crate) struct Log {
    pub(crate) runs: std::collections::VecDeque<Run>,
    nodes: Vec<Weak<dyn Node>>,
    /// Names of functions, so that a run shares its name with the others of its kind.
    names: std::collections::HashMap<&'static str, Arc<str>>,
}

pub(crate) struct ThreadLog {
    pub(crate) thread: String,
    pub(crate) log: Mutex<Log>,
}

pub(crate) struct Recorder {
    started: Instant,
    /// The same as a date.
    #[cfg(feature = "cluster")]
    pub(crate) started_on: std::time::SystemTime,
    logs: Mutex<Vec<Arc<ThreadLog>>>,
}

thread_local! {
    /// This thread's log, and the runtime that it belongs to.
    static LOG: RefCell<Option<(&'static Core, Instant, Arc<ThreadLog>)>> = const { RefCell::new(None) };
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Recorder {
            started: Instant::now(),
            #[cfg(feature = "cluster")]
            started_on: std::time::SystemTime::now(),
            logs: Mutex::default(),
        }
    }

    pub(crate) fn logs(&self) -> Vec<Arc<ThreadLog>> {
        self.logs.lock().clone()
    }

    /// All nodes that somebody still holds.
    pub(crate) fn nodes(&self) -> Vec<Arc<dyn Node>> {
        let logs = self.logs();
        logs.iter().flat_map(|log| log.log.lock().nodes.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()).collect()
    }
}

fn with_log<R>(core: &'static Core, f: impl FnOnce(Instant, &mut Log) -> R) -> Option<R> {
    LOG.with(|log| {
        let mut log = log.borrow_mut();
        if log.as_ref().is_none_or(|(of, ..)| !std::ptr::eq(*of, core)) {
            let recorder = core.recorder.read().clone()?;
            let thread = std::thread::current().name().unwrap_or("outside").to_owned();
            let own = Arc::new(ThreadLog { thread, log: Mutex::default() });
            recorder.logs.lock().push(own.clone());
            *log = Some((core, recorder.started, own));
        }
        let (_, started, own) = log.as_ref()?;
        Some(f(*started, &mut own.log.lock()))
    })
}

/// The time, if it is wanted.
#[inline]
pub(crate) fn now(core: &Core) -> Option<Instant> {
    core.has(flag::OBSERVE).then(Instant::now)
}

/// A `tracing` span around what `node` runs on this thread, if the runtime observes.
#[inline]
pub(crate) fn span(node: &dyn Node) -> Option<Box<tracing::span::EnteredSpan>> {
    let meta = node.meta();
    meta.core.has(flag::OBSERVE).then(|| {
        let (kind, name, id, attempt) = (node.kind(), node.name(), meta.id, meta.attempt());
        Box::new(tracing::debug_span!(target: "outray", "run", kind, name, id, attempt).entered())
    })
}

/// Remembers that `node` ran on this thread since `started`.
#[inline]
pub(crate) fn ran(core: &'static Core, started: Option<Instant>, node: &dyn Node) {
    if let Some(start) = started {
        record(core, start, node);
    }
}

#[cold]
fn record(core: &'static Core, start: Instant, node: &dyn Node) {
    let end = Instant::now();
    let depth = thread::depth();
    with_log(core, |zero, log| {
        let given = node.meta().options.as_ref().and_then(|o| o.name.clone());
        let type_name = node.type_name();
        let name = given.unwrap_or_else(|| log.names.entry(type_name).or_insert_with(|| type_name.into()).clone());
        let since = |at: Instant| at.saturating_duration_since(zero).as_nanos() as u64;
        if log.runs.len() >= RUNS {
            log.runs.pop_front();
        }
        let (id, kind) = (node.meta().number(), node.kind());
        log.runs.push_back(Run { id, name, kind, start: since(start), end: since(end), depth });
    });
}

/// Remembers a node from its submission on.
pub(crate) fn submitted<N: Node>(core: &'static Core, node: impl FnOnce() -> Arc<N>) {
    if !core.has(flag::OBSERVE) {
        return;
    }
    let node: Arc<dyn Node> = node();
    with_log(core, |_, log| {
        if log.nodes.len() >= 1024 && log.nodes.len() == log.nodes.capacity() {
            log.nodes.retain(|node| node.strong_count() > 0);
        }
        log.nodes.push(Arc::downgrade(&node));
    });
}

/// What a node is doing, in words.
pub(crate) fn describe(node: &dyn Node) -> String {
    let label = node.label();
    let phase = node.phase();
    #[cfg(feature = "cluster")]
    if let (Some(id), Some(client)) = (node.remote_id(), node.meta().core.client.get())
        && !matches!(phase, Phase::Done | Phase::WaitingForArguments)
    {
        return format!("{label}, which {}", client.doing(node, id));
    }
    match phase {
        Phase::Done => format!("{label}, which is done"),
        Phase::Running => format!("{label}, which is running"),
        Phase::Pausing => format!("{label}, which pauses before attempt {}", node.meta().attempt()),
        Phase::Queued if node.actor().is_some() => format!("{label}, which waits for its turn in the actor"),
        Phase::Queued => format!("{label}, which waits for a free CPU"),
        Phase::WaitingForResources => match node.demand() {
            Some(demand) => {
                let lacking = node.meta().core.lacking_now(&demand);
                format!("{label}, which waits for resources ({})", lacking.unwrap_or_else(|| "about to start".into()))
            }
            None => format!("{label}, which waits for resources"),
        },
        Phase::WaitingForArguments => {
            let waits_for: Vec<_> = node
                .blockers()
                .iter()
                .filter_map(|blocker| match blocker {
                    super::node::Blocker::Node(node) => Some(node.label()),
                    _ => None,
                })
                .collect();
            format!("{label}, which waits for {}", waits_for.join(", "))
        }
    }
}
