//! What heads, nodes and owners say to each other.
//!
//! # What the state machines rely on
//! Between two processes that live, messages arrive exactly once and in order, however late. When
//! one dies, those under way from and to it may be lost, and the head tells everybody
//! ([`Message::Dead`]). A process that was declared dead never comes back under the same number: if
//! it lives after all, it is told so ([`Message::Fenced`]), gives up everything, and joins as a new one.

use super::capacity::{Capacity, Demand};
use std::{fmt, sync::Arc};

/// Nanoseconds since the start of the clock that drives a state machine.
pub(crate) type Nanos = u64;

/// Microseconds as [`Nanos`].
pub(crate) const fn us(us: u64) -> Nanos {
    us * 1_000
}

/// Milliseconds as [`Nanos`].
pub(crate) const fn ms(ms: u64) -> Nanos {
    ms * 1_000_000
}

/// Bytes that a second carries from node to node, for estimates. Part of the waiting time of a task
/// is the time that its arguments take.
pub(crate) const BYTES_PER_SECOND: u64 = 1 << 30;

/// How long it takes to move so many bytes to another node, about.
pub(crate) fn transfer_time(bytes: u64) -> Nanos {
    (u128::from(bytes) * 1_000_000_000 / u128::from(BYTES_PER_SECOND)) as Nanos
}

/// What a task is thought to take while none has ended.
const FIRST_GUESS: Nanos = us(100);

/// How long one more task waits on a node with so many tasks and thousandths of CPUs, whose tasks
/// take `mean`, or 0 if none has ended.
pub(crate) fn waiting_time(tasks: u64, cpu: u32, mean: Nanos) -> Nanos {
    let slots = u64::from(cpu / 1_000).max(1);
    let mean = if mean == 0 { FIRST_GUESS } else { mean };
    (tasks + 1).saturating_sub(slots).saturating_mul(mean) / slots
}

/// One life of one process, unique in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProcessId(pub(crate) u64);

/// The head's.
pub(crate) const HEAD: ProcessId = ProcessId(0);

impl fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A task, and the object that is its result. Objects that were put have numbers of the same kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectId {
    /// The process that submitted or put it, and knows its fate.
    pub(crate) owner: ProcessId,
    pub(crate) number: u64,
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.owner, self.number)
    }
}

/// A name and a value.
pub(crate) type Label = (Arc<str>, Arc<str>);

/// Where a task wants to run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Strategy {
    /// Where it is done soonest.
    #[default]
    Default,
    /// On the node with the fewest tasks.
    Spread,
    /// On this node; elsewhere only if `soft`, and the node is gone or too small.
    Node { node: ProcessId, soft: bool },
    /// On a node with all of these labels.
    Labels(Vec<Label>),
}

/// An argument.
#[derive(Clone, Debug)]
pub(crate) enum Arg {
    /// A value, or a small object that its owner has at hand.
    #[allow(dead_code)] // for the one who runs the task
    Inline(Arc<[u8]>),
    /// An object in the stores of these nodes.
    Object { id: ObjectId, size: u64, holders: Vec<ProcessId> },
}

/// A task on its way.
#[derive(Clone, Debug)]
pub(crate) struct TaskSpec {
    pub(crate) id: ObjectId,
    /// From 1. An owner starts a new attempt when the node that had the last one died.
    pub(crate) attempt: u32,
    /// How often this attempt has been handed on.
    pub(crate) hop: u32,
    pub(crate) demand: Arc<Demand>,
    pub(crate) strategy: Strategy,
    pub(crate) args: Vec<Arg>,
    /// What to run; the state machines do not look inside.
    pub(crate) body: Arc<[u8]>,
}

impl TaskSpec {
    /// Takes the dead off the lists of holders: the node it goes to may be too young to have heard of them.
    pub(crate) fn forget_holders(&mut self, is_dead: impl Fn(&ProcessId) -> bool) {
        for arg in &mut self.args {
            if let Arg::Object { holders, .. } = arg {
                holders.retain(|holder| !is_dead(holder));
            }
        }
    }

    /// Bytes of its arguments that `node` does not hold.
    pub(crate) fn missing_bytes(&self, node: ProcessId) -> u64 {
        let missing = |arg: &Arg| match arg {
            Arg::Object { size, holders, .. } if !holders.contains(&node) => *size,
            _ => 0,
        };
        self.args.iter().map(missing).sum()
    }
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// A small result, on its way with the message.
    Inline(Arc<[u8]>),
    /// A large one, in the store of the node that ran the task.
    Stored { size: u64 },
    /// No result, and none if it ran again.
    Failed(Arc<str>),
}

/// What a node tells the head about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    /// Tasks that wait on it, and that run.
    pub(crate) waiting: u32,
    pub(crate) running: u32,
    /// How long its tasks take, as an exponential average.
    pub(crate) mean: Nanos,
    /// How many assignments of the head it has seen, so that the head knows which are not in here yet.
    pub(crate) assigned: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// Owner to its node: keep it, or pass it on.
    Submit(TaskSpec),
    /// Node or owner to the head: find a node.
    Place(TaskSpec),
    /// Head to a node: keep it.
    Assign(TaskSpec),
    /// Node to node: it was yours to steal.
    Stolen(TaskSpec),
    /// To the owner: this attempt is on that node now, after so many hops; or on its way there from
    /// `via`, and lost if either dies, until `node` says the same without `via`.
    Placed { task: ObjectId, attempt: u32, hop: u32, node: ProcessId, via: Option<ProcessId> },
    /// Head to the owner: no node can ever run it.
    Unplaceable { task: ObjectId, attempt: u32, why: Arc<str> },
    /// Node to the owner.
    Finished { task: ObjectId, attempt: u32, outcome: Outcome },
    /// Owner to a node: nobody wants it any more.
    Cancel { task: ObjectId },

    /// Node to node: send me this object.
    Pull { object: ObjectId },
    /// Node to node: here it is, as this attempt of its task made it.
    Pushed { object: ObjectId, size: u64, attempt: u32 },
    /// Node to node: I do not have it.
    Gone { object: ObjectId },
    /// Node to the owner: who has it? Those in `not` have not, or are dead.
    Locate { object: ObjectId, not: Vec<ProcessId> },
    /// Owner to a node.
    Located { object: ObjectId, holders: Vec<ProcessId> },
    /// Owner to a node: there is no such object, and there will not be.
    Lost { object: ObjectId, why: Arc<str> },
    /// Node to the owner: I have it, too.
    Holds { object: ObjectId, attempt: u32 },
    /// Owner to a node: drop it, if it is of this attempt or an earlier one. It may have been made again
    /// there meanwhile.
    Free { object: ObjectId, attempt: u32 },

    /// Node to the head, once.
    JoinNode { capacity: Capacity, labels: Vec<Label> },
    /// Owner to the head, once; a worker asks for the node that it is on.
    JoinOwner { wish: Option<ProcessId> },
    /// Head to an owner: send your tasks to this node first. Comes again when that node has died.
    Home { node: ProcessId },
    /// Node to the head: regularly, and when it has nothing to do.
    Load(Load),
    /// Owner to the head, regularly: it lives.
    Beat,
    /// Head to a node: tell of changes of your load this often, not more.
    Pace { every: Nanos },
    /// Head to a node: give up to `most` of your waiting tasks to `thief`.
    Steal { thief: ProcessId, capacity: Capacity, most: u32 },
    /// Head to everybody.
    Dead { process: ProcessId },
    /// Head to one that it has declared dead: give up everything.
    Fenced,
}

/// What a state machine wants done.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) sends: Vec<(ProcessId, Message)>,
    /// Of a node: run these now.
    pub(crate) starts: Vec<TaskSpec>,
    /// Of a node: stop these attempts if they run; nobody wants them.
    pub(crate) stops: Vec<(ObjectId, u32)>,
    /// Of an owner: these tasks have ended, and whether well.
    pub(crate) done: Vec<(ObjectId, bool)>,
    /// Start anew, under a new number.
    pub(crate) fenced: bool,
}

impl Effects {
    pub(crate) fn send(&mut self, to: ProcessId, message: Message) {
        self.sends.push((to, message));
    }
}
