//! What heads, nodes and owners say to each other.
//!
//! # What the state machines rely on
//! Between two processes that live, messages arrive exactly once and in order, however late. When
//! one dies, those under way from and to it may be lost, and the head tells everybody
//! ([`Message::Dead`]). A process that was declared dead never comes back under the same number: if
//! it lives after all, it is told so ([`Message::Fenced`]), gives up everything, and joins as a new one.
//!
//! The head may die and be started again. Then what was under way from and to it is lost, and it knows what it has
//! kept ([`Note`]); it hears nobody who has not joined it in this life.
//!
//! An owner says nothing to others before the head has welcomed it ([`Message::Home`]): nobody would
//! be told of the death of one that the head does not know.

use super::{
    capacity::{Capacity, Demand},
    serving::LARGE,
    wire::Blob,
};
use crate::error::{Error, Origin};
use serde::{Deserialize, Serialize};
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

/// A result of no more bytes goes to its owner with the message that says so.
pub(crate) const INLINE: usize = 64 << 10;
/// Of one with more bytes than that the node that made it keeps a copy: it is not worth its way back.
pub(crate) const SHORT: u64 = 1 << 10;

/// How many bytes a second carries to a node from others, for estimates: part of the waiting time of a task is the time
/// that its arguments take. An exponential average of what it has fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Bandwidth(u64);

impl Default for Bandwidth {
    /// As long as nothing has been fetched.
    fn default() -> Bandwidth {
        Bandwidth(1 << 30)
    }
}

impl Bandwidth {
    /// What is shorter says more of how soon it was asked for than of how fast it came.
    const FROM: u64 = 1 << 20;

    /// Something has come.
    pub(crate) fn took(&mut self, bytes: u64, time: Nanos) {
        if bytes >= Bandwidth::FROM {
            let now = u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(time.max(1))).unwrap_or(u64::MAX);
            self.0 = (self.0 - self.0 / 4 + now / 4).max(1);
        }
    }

    /// Whether the other is so different that the head has to know.
    pub(crate) fn is_far_from(self, other: Bandwidth) -> bool {
        self.0.abs_diff(other.0) > other.0 / 4
    }

    /// How long it takes to move so many bytes, about.
    pub(crate) fn transfer_time(self, bytes: u64) -> Nanos {
        Nanos::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(self.0)).unwrap_or(Nanos::MAX)
    }

    /// How long it takes to get an object of so many bytes from another node, which is asked for it, about.
    pub(crate) fn fetch_time(self, bytes: u64) -> Nanos {
        us(100).saturating_add(self.transfer_time(bytes))
    }
}

/// Fetching is work for both nodes. So a task that would take less than to fetch what it needs goes where that is, unless it
/// would wait so much longer there.
pub(crate) const FAR: Nanos = ms(20);

/// What a task is thought to take while none has ended.
const FIRST_GUESS: Nanos = us(100);

/// How long one more task waits on a node with so many tasks and thousandths of CPUs, whose tasks
/// take `mean`, or 0 if none has ended.
pub(crate) fn waiting_time(tasks: u64, cpu: u32, mean: Nanos) -> Nanos {
    let slots = u64::from(cpu / 1_000).max(1);
    let mean = if mean == 0 { FIRST_GUESS } else { mean };
    (tasks + 1).saturating_sub(slots).saturating_mul(mean) / slots
}

/// One life of one process: a random number that it gives itself, unique in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ProcessId(pub(crate) u64);

/// The head's.
pub(crate) const HEAD: ProcessId = ProcessId(0);

impl fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}", self.0)
    }
}

/// A task, and the object that is its result. Objects that were put have numbers of the same kind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// Why there is no value.
pub(crate) type Failure = Arc<Error>;

/// For one who knows of a lost object no more than its number.
pub(crate) fn lost(object: ObjectId, reason: &str) -> Failure {
    let origin = Origin {
        kind: "object".into(),
        name: format!("{object:?}"),
        id: object.number,
        attempt: 1,
        location: "a place known to its owner".into(),
        node: "local".into(),
    };
    Arc::new(Error::Lost { origin: Box::new(origin), reason: reason.into() })
}

/// Bytes as one block, not as a list of numbers.
mod bytes {
    use serde::{Deserializer, Serializer, de};
    use std::{fmt, sync::Arc};

    pub(super) fn serialize<S: Serializer>(bytes: &Arc<[u8]>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<[u8]>, D::Error> {
        struct Block;
        impl de::Visitor<'_> for Block {
            type Value = Arc<[u8]>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(bytes.into())
            }
        }
        from.deserialize_bytes(Block)
    }
}

/// A name and a value.
pub(crate) type Label = (Arc<str>, Arc<str>);

/// The label that is a node's name for people.
pub(crate) const NAME: &str = "node";

/// What people call a node with these labels: by its name, or else by its number.
pub(crate) fn called(node: ProcessId, labels: &[Label]) -> Arc<str> {
    let label = labels.iter().find(|(key, _)| &**key == NAME);
    label.map_or_else(|| node.to_string().into(), |(_, name)| name.clone())
}

/// Where a task wants to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) enum Strategy {
    /// Where it is done soonest.
    #[default]
    Default,
    /// On the node with the fewest tasks.
    Spread,
    /// On this node; elsewhere only if `soft`, and the node is gone or too small.
    Node { node: ProcessId, soft: bool },
    /// On a node with all of these labels; elsewhere only if `soft`, and none of those that are there has room.
    Labels { labels: Vec<Label>, soft: bool },
    /// Out of what is set aside as this bundle of a placement group, which was on that node when the
    /// owner heard of it last.
    Bundle { group: ObjectId, bundle: u32, node: Option<ProcessId> },
}

/// A placement group, as its owner tells of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GroupSpec {
    pub(crate) id: ObjectId,
    pub(crate) bundles: Vec<Demand>,
    pub(crate) policy: Policy,
    /// The head gives up after so long.
    pub(crate) patience: Option<Nanos>,
    /// Where the bundles are, if it has been ready.
    pub(crate) places: Vec<ProcessId>,
}

/// How the bundles of a placement group lie on nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Policy {
    /// On as few as is found to be possible.
    Pack,
    /// On as many as is found to be possible.
    Spread,
    /// All on one.
    StrictPack,
    /// Each on another.
    StrictSpread,
}

/// An argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Arg {
    /// A value, or a small object that its owner has at hand.
    Inline(#[serde(with = "bytes")] Arc<[u8]>),
    /// An object in the stores of these nodes; if there are none, its owner knows more.
    Object { id: ObjectId, size: u64, holders: Vec<ProcessId> },
}

/// A task on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TaskSpec {
    pub(crate) id: ObjectId,
    /// From 1. An owner starts a new attempt when the node that had the last one died, or its worker.
    pub(crate) attempt: u32,
    /// How often this attempt has been handed on.
    pub(crate) hop: u32,
    /// 1, or so many tasks whose objects have numbers in a row: a *pack*. All are plain, have no arguments but values, and
    /// are in their first attempt.
    pub(crate) count: u32,
    pub(crate) demand: Arc<Demand>,
    pub(crate) strategy: Strategy,
    pub(crate) args: Vec<Arg>,
    /// It goes on after it has finished well, and keeps its resources: an actor.
    pub(crate) stays: bool,
    /// What to run; the state machines do not look inside.
    pub(crate) body: Blob,
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

    /// Whether it asks for nothing but a CPU anywhere, and ends.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.strategy, Strategy::Default) && *self.demand == Demand::cpus(1_000) && !self.stays
    }

    /// Whether it is plain, and its arguments are values or small objects that are there.
    pub(crate) fn is_light(&self) -> bool {
        self.is_plain()
            && self.args.iter().all(|arg| match arg {
                Arg::Inline(_) => true,
                Arg::Object { size, holders, .. } => *size <= INLINE as u64 && !holders.is_empty(),
            })
    }

    /// Whether it needs a large object.
    pub(crate) fn has_large(&self) -> bool {
        self.args.iter().any(|arg| matches!(arg, Arg::Object { size, .. } if *size >= LARGE))
    }

    /// Objects of its owner's among its arguments that were not there when it was sent.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.args.iter().filter_map(|arg| match arg {
            Arg::Object { id, holders, .. } if holders.is_empty() && id.owner == self.id.owner => Some(*id),
            _ => None,
        })
    }

    /// How long it takes `node` to fetch those of its arguments that it does not hold and others do.
    pub(crate) fn fetch_time(&self, node: ProcessId, bandwidth: Bandwidth) -> Nanos {
        let missing = self.args.iter().filter_map(|arg| match arg {
            Arg::Object { size, holders, .. } if !holders.is_empty() && !holders.contains(&node) => Some(*size),
            _ => None,
        });
        missing.map(|size| bandwidth.fetch_time(size)).fold(0, Nanos::saturating_add)
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// A small result, on its way with the message.
    Inline(#[serde(with = "bytes")] Arc<[u8]>),
    /// The same; a copy is in the store of the node that ran the task.
    Copied(#[serde(with = "bytes")] Arc<[u8]>),
    /// One in the store of the node that ran the task.
    Stored { size: u64 },
    /// No result, and none if it ran again.
    Failed(Failure),
    /// It did not run, because there is no value for an argument.
    Lacking(Failure),
    /// The process that ran it died.
    Crashed { why: Arc<str> },
    /// It had not started when its owner closed.
    Withdrawn,
}

impl Outcome {
    /// Whether there is a value.
    pub(crate) fn is_well(&self) -> bool {
        matches!(self, Outcome::Inline(_) | Outcome::Copied(_) | Outcome::Stored { .. })
    }

    /// Whether there is one in the store of the node that ran the task.
    pub(crate) fn is_stored(&self) -> bool {
        matches!(self, Outcome::Copied(_) | Outcome::Stored { .. })
    }
}

/// What a node tells the head about itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Load {
    /// Tasks that wait on it, also those that its workers have ahead of their turn, and tasks that run.
    pub(crate) waiting: u32,
    pub(crate) running: u32,
    /// Tasks that are there and stay, or will.
    pub(crate) staying: u32,
    /// How long its tasks take: an exponential average, or how long none has ended, if that is longer.
    pub(crate) mean: Nanos,
    /// How fast objects of other nodes come.
    pub(crate) bandwidth: Bandwidth,
    /// How many assignments and reservations of the head it has seen, so that the head knows which are
    /// not in here yet.
    pub(crate) assigned: u64,
    /// What it has without that which is set aside, and that which tasks hold that stay; `None`: all.
    pub(crate) room: Option<Capacity>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Owner to its node: keep it, or pass it on.
    Submit(TaskSpec),
    /// Node or owner to the head: find a node.
    Place(TaskSpec),
    /// Head to a node: keep it.
    Assign(TaskSpec),
    /// Head to an owner that has many small tasks: send so many of the next ones to these nodes yourself.
    Grant { nodes: Vec<(ProcessId, u32)> },
    /// Owner to the head: half of what it was granted is used up, or some of it was not used for long.
    More,
    /// Owner to a node that it was granted, or that makes what the task waits for: keep it.
    Granted(TaskSpec),
    /// Node to node: it was yours to steal.
    Stolen(TaskSpec),
    /// To the owner: this attempt is on that node now, after so many hops; or on its way there from
    /// `via`, and lost if either dies, until `node` says the same without `via`.
    /// `count`: it is a pack of so many.
    Placed { task: ObjectId, count: u32, attempt: u32, hop: u32, node: ProcessId, via: Option<ProcessId> },
    /// Head to the owner: no node can ever run it.
    Unplaceable { task: ObjectId, attempt: u32, why: Arc<str> },
    /// Node to the owner.
    Finished { task: ObjectId, attempt: u32, outcome: Outcome },
    /// Owner to a node, or a borrower to the owner: nobody wants it any more, in its attempts up to this one. It may come
    /// before the task, on another link.
    Cancel { task: ObjectId, attempt: u32 },
    /// Owner to a node: the same for one attempt.
    Retire { task: ObjectId, attempt: u32 },
    /// Owner to the head and to the nodes that have tasks of it: what has not started is not to start, nor what comes
    /// later. `job`: the driver of the program that ends.
    Close { job: ProcessId },
    /// Node to the owner: one that had finished, and stayed, has ended without being told to.
    Ended { task: ObjectId, attempt: u32, why: Arc<str> },

    /// Node to node: send me this object.
    Pull { object: ObjectId },
    /// Node to node: here it is, as this attempt of its task made it.
    Pushed { object: ObjectId, size: u64, attempt: u32 },
    /// Node to node: I do not have it.
    Gone { object: ObjectId },
    /// Node to node, after `Pushed` of a large object: I have it, or do not want it any more.
    Pulled { object: ObjectId, is_well: bool },
    /// Node to node: that one has it now, ask there.
    Elsewhere { object: ObjectId, at: ProcessId },
    /// Node to the owner: who has it? Those in `not` have not, or are dead.
    Locate { object: ObjectId, not: Vec<ProcessId> },
    /// Owner to a node.
    Located { object: ObjectId, holders: Vec<ProcessId> },
    /// Owner to a node: there is no such object, and there will not be.
    Lost { object: ObjectId, why: Failure },
    /// Node to the owner: I have it, too.
    Holds { object: ObjectId, attempt: u32 },
    /// Owner to a node: drop it, if it is of this attempt or an earlier one. It may have been made again
    /// there meanwhile. `unseen`: nobody has needed its value at the owner.
    Free { object: ObjectId, attempt: u32, unseen: bool },
    /// Owner to a node that has kept a small result of its to itself: it is needed here after all.
    Seen { object: ObjectId },
    /// A process to its node: get me this object; these nodes are said to have it.
    Want { object: ObjectId, holders: Vec<ProcessId> },
    /// Node to a process that wanted it: it is in the store here. If it never will be: `Lost`.
    Here { object: ObjectId },

    /// To the owner: I have handles to it.
    Claim { object: ObjectId },
    /// Owner to that process: it is kept for you. If it is gone already: `Lost`.
    Claimed { object: ObjectId },
    /// To the owner, once for each `Claim`: I have no handles any more.
    Unclaim { object: ObjectId },
    /// Worker to the owner of a task that it has run: there are handles to these in the result.
    Inside { task: ObjectId, attempt: u32, objects: Vec<ObjectId> },
    /// Owner of a task to the worker that said `Inside`: I have claimed them.
    Took { task: ObjectId },

    /// Node to the head, once in each life of that: with what is set aside there already, each with its
    /// group, its number and its round.
    JoinNode { capacity: Capacity, labels: Vec<Label>, load: Load, bundles: Vec<(ObjectId, u32, u32)> },
    /// Owner to the head, once in each life of that: the node that it would like to send its tasks to, the one
    /// that it is on, which may say that it has died, and the placement groups that it has.
    JoinOwner { wish: Option<ProcessId>, on: Option<ProcessId>, groups: Vec<GroupSpec> },
    /// Node to an owner: there is a new head; what was passed on to the last one may be lost.
    Anew,
    /// Owner to a node: these attempts should be with you.
    Check { tasks: Vec<(ObjectId, u32)> },
    /// Node to the owner that asked: this one is not.
    Lacks { task: ObjectId, attempt: u32 },
    /// Node to the head: this process here has ended.
    Died { process: ProcessId },
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
    /// Owner to the head: set all of these aside, or none; give up after so long.
    CreateGroup(GroupSpec),
    /// Owner to the head: nobody needs the group any more. Tasks that run in it go on.
    RemoveGroup { group: ObjectId },
    /// Head to a node: set this aside as soon as it is free.
    Reserve { group: ObjectId, bundle: u32, round: u32, demand: Demand },
    /// Node to the head: it is set aside, or there is no room for it.
    Reserved { group: ObjectId, bundle: u32, round: u32, ok: bool },
    /// Head to a node: it need not be set aside any more.
    Unreserve { group: ObjectId, bundle: u32 },
    /// Head to the owner: the bundles are on these nodes. Comes again when some have moved.
    GroupReady { group: ObjectId, places: Vec<ProcessId> },
    /// Head to the owner: there is no such group any more.
    GroupFailed { group: ObjectId, why: Arc<str> },

    /// Head to everybody.
    Dead { process: ProcessId },
    /// Head to one that it has declared dead: give up everything.
    Fenced,
}

/// Who takes part, as the head remembers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Member {
    Node { capacity: Capacity, labels: Vec<Label> },
    Owner { on: Option<ProcessId> },
}

/// What the head has to remember if it is started again, and cannot learn from others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Note {
    Joined(ProcessId, Member),
    Died(ProcessId),
}

/// What a state machine wants done.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Of a head: to be kept before anything is sent.
    pub(crate) notes: Vec<Note>,
    pub(crate) sends: Vec<(ProcessId, Message)>,
    /// Of a node: run these now.
    pub(crate) starts: Vec<TaskSpec>,
    /// Of a node: stop these attempts if they run; nobody wants them.
    pub(crate) stops: Vec<(ObjectId, u32)>,
    /// Of a node: another has nothing to do, so these are wanted back from their worker, in this order, unless they have
    /// started there.
    pub(crate) recalls: Vec<(ObjectId, u32)>,
    /// Of an owner: these tasks have ended, and whether well. Each is named once, and once more after
    /// `Owner::restart`.
    pub(crate) done: Vec<(ObjectId, bool)>,
    /// Of an owner: nobody needs these any more. Their values, if there were any, are dropped now, and
    /// whatever they held.
    pub(crate) freed: Vec<ObjectId>,
    /// Of an owner: these placement groups are ready, once more if bundles have moved, or have failed.
    pub(crate) groups: Vec<ObjectId>,
    /// Of an owner: these attempts, which had finished well and stayed, are no more.
    pub(crate) ended: Vec<(ObjectId, u32)>,
    /// Of a node: these are not in its store any more.
    pub(crate) dropped: Vec<ObjectId>,
    /// Start anew, under a new number.
    pub(crate) fenced: bool,
}

impl Effects {
    pub(crate) fn send(&mut self, to: ProcessId, message: Message) {
        self.sends.push((to, message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::wire::{decode, encode};

    #[test]
    fn bandwidth_follows_what_came_last() {
        let mut bandwidth = Bandwidth::default();
        let before = bandwidth;
        bandwidth.took(1 << 10, ms(1_000)); // too short to say anything
        assert_eq!(bandwidth, before);
        (0..100).for_each(|_| bandwidth.took(100 << 20, ms(1_000)));
        assert!(bandwidth.is_far_from(before));
        assert!((ms(990)..ms(1_010)).contains(&bandwidth.transfer_time(100 << 20)), "{bandwidth:?}");
        // However slow or fast it is, there is an answer.
        (0..1_000).for_each(|_| bandwidth.took(1 << 20, Nanos::MAX));
        assert!(bandwidth.fetch_time(u64::MAX) > ms(1_000));
        bandwidth.took(u64::MAX, 0);
        assert_eq!(bandwidth.fetch_time(0), us(100));
    }

    fn spec(bytes: Arc<[u8]>) -> TaskSpec {
        let id = ObjectId { owner: ProcessId(u64::MAX), number: 7 };
        let args = vec![Arg::Inline(bytes.clone()), Arg::Object { id, size: 1 << 40, holders: vec![HEAD] }];
        let demand = Arc::new(Demand { gpu: Some(crate::gpu::GpuRequest::share(250).into()), ..Demand::cpus(1_000) });
        let strategy = Strategy::Labels { labels: vec![("zone".into(), "a".into())], soft: true };
        TaskSpec {
            id,
            attempt: 1,
            hop: 2,
            count: 1,
            demand,
            strategy,
            args,
            stays: true,
            body: Blob(bytes.to_vec().into()),
        }
    }

    #[test]
    fn bytes_travel_as_one_block() {
        // As a list of numbers those above 127 would take two bytes each.
        let bytes: Arc<[u8]> = vec![200; 10_000].into();
        let encoded = encode(&Message::Submit(spec(bytes.clone())));
        assert!(encoded.len() < 2 * bytes.len() + 200, "{} bytes", encoded.len());
        let decoded: Message = decode(&encoded).unwrap();
        let Message::Submit(decoded) = decoded else { panic!("{decoded:?}") };
        assert_eq!(decoded.body[..], bytes[..]);
        assert_eq!(format!("{decoded:?}"), format!("{:?}", spec(bytes)));
    }

    #[test]
    fn outcomes_and_failures_travel() {
        let object = ObjectId { owner: HEAD, number: 1 };
        let outcomes = [
            Outcome::Inline(Arc::from([0, 255])),
            Outcome::Stored { size: u64::MAX },
            Outcome::Failed(lost(object, "a reason")),
            Outcome::Lacking(lost(object, "another")),
            Outcome::Crashed { why: "signal 9".into() },
            Outcome::Withdrawn,
        ];
        for outcome in outcomes {
            let message = Message::Finished { task: object, attempt: 3, outcome };
            let decoded: Message = decode(&encode(&message)).unwrap();
            assert_eq!(format!("{decoded:?}"), format!("{message:?}"));
        }
    }
}
