//! A cluster in one thread and in virtual time: the real head, nodes and owners, with a network
//! between them that delays, holds back and cuts, and processes that die.
//!
//! Everything follows from one seed, so that a run that breaks a rule can be run again. Between two
//! living processes messages arrive once and in order, however late, as the links below the state
//! machines have it; a lost packet shows as a delay of what comes behind it.
//!
//! With `OUTRAY_TRACE=p4/17,p3` in the environment the events whose text contains one of these are
//! printed.
//!
//! What is checked, in every run:
//! - every task ends exactly once for its owner, and well, unless it was made to fail or cannot be
//!   placed, or something has happened in this run that explains its end, as it does that of what depends on it;
//! - no object is lost while there is a handle to it in a process that lives, unless something has died
//!   that explains it: its task has used up its attempts, its owner has died, or it needs what is gone
//!   to be made again; and its value is what its task has made;
//! - a task starts with the arguments that it was submitted with at hand, or with the worker that makes them;
//! - what runs on a node, and what is set aside there, never exceeds what the node and each of its devices
//!   have, and what runs in a bundle never exceeds the bundle, by a count of the simulation's own;
//! - the bundles of a placement group lie as its policy demands;
//! - when all handles are gone nothing stays: no record, no claim, no stored object, no task, no
//!   resource;
//! - nothing panics, and time goes on.
//!
//! ```
//! use outray::cluster::simulation::{Options, run};
//! let report = run(&Options { nodes: 5, tasks: 200, crashes: 2, ..Options::with_seed(7) })?;
//! assert_eq!(report.ended, 200);
//! # Ok::<(), outray::cluster::simulation::Violation>(())
//! ```

mod fates;
mod links;
mod random;
mod sabotage;
mod shell;
mod worker;
mod workload;
mod world;

pub use sabotage::Sabotage;
use std::{fmt, panic, time::Duration};

/// What to simulate. All durations are virtual.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything random follows from it.
    pub seed: u64,
    /// Nodes at the start.
    pub nodes: usize,
    /// CPUs of each.
    pub cpus: u32,
    /// Processes that submit tasks.
    pub drivers: usize,
    /// Tasks, of all drivers together.
    pub tasks: usize,
    /// Between two submissions of a driver, on average.
    pub interval: Duration,
    /// How long a task runs, on average.
    pub task_time: Duration,
    /// Whether tasks depend on each other, have large results, want certain nodes and resources, and
    /// fail; without, they are all plain and alike.
    pub mixed: bool,
    /// Whether handles travel inside values, workers keep some and submit tasks of their own, and some
    /// tasks stay.
    pub borrowing: bool,
    /// Whether drivers have resources set aside in placement groups.
    pub groups: bool,
    /// Whether drivers submit many small tasks at a time, which travel as packs, and nodes hand tasks to their workers
    /// ahead of their turn.
    pub packs: bool,
    /// Workers that die, when there is borrowing.
    pub worker_crashes: usize,
    /// Nodes that die, one after the other; another one comes for each.
    pub crashes: usize,
    /// Drivers that die.
    pub driver_crashes: usize,
    /// Drivers that end in good order while their tasks run.
    pub endings: usize,
    /// Times that the head dies, and is started again with what it remembers.
    pub head_crashes: usize,
    /// Times that some processes cannot be reached by the others, or by some others; some last longer
    /// than the head's patience.
    pub partitions: usize,
    /// Tasks that are cancelled some time after they were submitted.
    pub cancellations: usize,
    /// One packet in so many is lost, which delays it and what comes behind it; 0: none.
    pub loss: u64,
    /// Whether messages go over real links, which lose, repeat and reorder their packets and whose
    /// connections break, and those of workers over pipes to their nodes before; otherwise the network delivers each once and in order. `loss` is then of the links' packets.
    pub links: bool,
    /// How long the head is busy with a message; others wait meanwhile.
    pub head_message_time: Duration,
    /// Whether to measure what the head costs, in real time.
    pub measure_head: bool,
    /// What to do wrong on purpose.
    pub sabotage: Option<Sabotage>,
}

impl Options {
    /// Three nodes of two CPUs, two drivers, 100 mixed tasks, no faults.
    pub fn with_seed(seed: u64) -> Self {
        Options {
            seed,
            nodes: 3,
            cpus: 2,
            drivers: 2,
            tasks: 100,
            interval: Duration::from_micros(300),
            task_time: Duration::from_millis(1),
            mixed: true,
            borrowing: false,
            groups: false,
            packs: false,
            worker_crashes: 0,
            crashes: 0,
            driver_crashes: 0,
            endings: 0,
            head_crashes: 0,
            partitions: 0,
            cancellations: 0,
            loss: 0,
            links: false,
            head_message_time: Duration::ZERO,
            measure_head: false,
            sabotage: None,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Tasks that ended for their owners, and how many of these failed.
    pub ended: usize,
    /// See `ended`.
    pub failed: usize,
    /// Those of them that had not started when their owner ended.
    pub withdrawn: usize,
    /// Attempts that were started.
    pub starts: usize,
    /// Times that the head was started again.
    pub head_starts: usize,
    /// Tasks that moved to an idle node.
    pub stolen: usize,
    /// Packs that were handed to a worker as they were.
    pub packs: usize,
    /// Tasks that a worker had ahead of their turn, and gave back.
    pub given_back: usize,
    /// Tasks that were handed to a worker before what they need was made.
    pub chained: usize,
    /// Placement groups that were ready, each as often as it was.
    pub groups: usize,
    /// Messages of all kinds.
    pub messages: usize,
    /// Those that the head has taken in.
    pub head_messages: usize,
    /// Those from and to the head that are about tasks.
    pub head_task_messages: usize,
    /// From submission to start, half and 99 of 100 tasks.
    pub latency_p50: Duration,
    /// See `latency_p50`.
    pub latency_p99: Duration,
    /// From the first submission until the last task had ended.
    pub time: Duration,
    /// With `links`: their packets, those of them that were lost, and connections that were made.
    pub packets: usize,
    /// See `packets`.
    pub lost_packets: usize,
    /// See `packets`.
    pub connections: usize,
    /// Real time that the head took, if it was measured.
    pub head_time: Duration,
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    seed: u64,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "with seed {}: {}", self.seed, self.rule)
    }
}

impl std::error::Error for Violation {}

/// Runs a cluster until all tasks have ended and all handles are gone.
///
/// # Errors
/// The first rule that was broken; see the [module's documentation](self). Nothing may panic, either.
pub fn run(options: &Options) -> Result<Report, Violation> {
    let result = panic::catch_unwind(|| world::World::new(options).run());
    let result = result.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Err(format!("something panicked: {}", text.unwrap_or("it does not say why")))
    });
    result.map_err(|rule| Violation { seed: options.seed, rule })
}
