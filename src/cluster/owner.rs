//! An owner: a process that submits tasks. It knows the fate of its tasks and objects, and nobody
//! else needs to.
//!
//! # A task
//! ```text
//! waiting for arguments --all there--> under way (attempt n, on node x once known) --> done
//!                                          ^                |
//!                                          '-- x died ------'
//! ```
//! # An object
//! It is *pending* until its task has ended, then *inline*, *stored* (on nodes that are known),
//! *failed*, or *lost* when the last node that had it died. What is lost and wanted again is made
//! again: its task runs once more, and before it those whose results it needs and that are gone too.
//!
//! # Counts
//! An object is needed while there are handles to it here, tasks under way that have it as an
//! argument (*pins*), or other processes that have handles to it (*claims*). When none is left its
//! value is freed on all nodes. Its *record* stays while a record that stays might need it to be made
//! again (*lineage*).
//!
//! Claims are counted by the process that made them. Those of a dead one go after a grace time:
//! whom it has passed a handle on to may be about to claim it.
//!
//! # What stays
//! A task that *stays* (an actor) is where its result is. It is told to stop when nobody needs the
//! result any more; when it ends by itself it has *ended*, and is started again only if that is asked for.
//!
//! # Parts
//! The result of a task may be taken apart where it is made. Each part is an object of its own, which ends before its task
//! does, and with it if that fails. A part that was lost is made again with all others.
//!
//! # When the head was started again
//! Tasks that it had, or that were on their way to or from it, may be lost. Those that no node had are sent again. A
//! node is asked for those that should be there (`Check`), now and when it has joined the new head (`Anew`): what it
//! passed on later is with that one. What it lacks is sent again, as an attempt that does not count. If the
//! earlier one is there after all, whichever ends first wins.
//!
//! # Closing
//! An owner that closes starts nothing any more, and makes nothing again. What waits here fails; of what is on its way
//! the places are told (`Close`), when they are known, and they fail what they have not started and what comes later. So
//! what moves meanwhile is found where it arrives. What runs goes on, and ends as always.
//!
//! # Invariants
//! - A task ends once. Results of late attempts are dropped, and their copies freed.
//! - A task whose node is dead, or its worker, is under way again, or has used up its attempts and failed.
//! - Of a task that stays only the newest attempt may finish.
//! - A record goes when it has no handles, pins, claims or lineage; so all counts go to zero.

use super::{
    capacity::Demand,
    head::BEAT,
    pack::{self, Common, Member},
    protocol::{
        Arg, Effects, Failure, GroupSpec, HEAD, INLINE, Message, Nanos, ObjectId, Outcome, Policy, ProcessId, SHORT,
        Strategy, TaskSpec, lost, ms,
    },
    rows::Rows,
    wire::Blob,
};
use crate::error::{Error, Origin};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
};

/// How long the claims of a dead process count: longer than it takes others, to whom it has passed
/// handles on, to claim them.
pub(crate) const GRACE: Nanos = ms(10_000);
const NODE_DIED: &str = "the node that ran it died";
pub(crate) const MAKER_DIED: &str = "the process that was to make it died";
pub(crate) const PUT_AND_LOST: &str = "it was put on a node that died";
pub(crate) const NO_HANDLE: &str = "nobody has a handle to it";
/// A chain of causes is not longer; then comes the first.
const CAUSES: usize = 32;

/// What a task is made of, before its arguments are known.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) demand: Arc<Demand>,
    pub(crate) strategy: Strategy,
    pub(crate) args: Vec<WorkArg>,
    pub(crate) body: WorkBody,
    /// How often it may be started, after the death of nodes and workers.
    pub(crate) attempts: u32,
    /// It goes on after it has finished well: an actor.
    pub(crate) stays: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum WorkBody {
    Alone(Blob),
    /// Of several that went together. The rest is in their records.
    Packed(Arc<Common>),
}

impl WorkBody {
    /// As one that travels alone, which it does if it has to go again.
    pub(crate) fn alone(&self, member: Option<&Member>) -> Blob {
        match (self, member) {
            (WorkBody::Alone(body), _) => body.clone(),
            (WorkBody::Packed(common), Some(member)) => common.order(member),
            (WorkBody::Packed(_), None) => unreachable!("what went in a pack has its part in its record"),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum WorkArg {
    Value(Arc<[u8]>),
    Object(ObjectId),
    /// Of another owner, to which this process keeps a handle until the task has ended.
    Foreign(ObjectId),
}

/// What has become of an object.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Inline(Arc<[u8]>),
    Stored { size: u64, holders: Vec<ProcessId> },
    Failed(Failure),
}

/// The node that something stays on, and its value.
pub(crate) type There = (ProcessId, Arc<[u8]>);

/// A placement group, as far as its owner knows.
#[derive(Clone, Debug)]
pub(crate) enum Group {
    Waiting,
    /// Where its bundles are.
    Ready(Vec<ProcessId>),
    Failed(Failure),
}

impl Work {
    /// Those of this owner.
    fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.args.iter().filter_map(|arg| match arg {
            WorkArg::Object(id) => Some(*id),
            WorkArg::Value(_) | WorkArg::Foreign(_) => None,
        })
    }
}

/// A task with more arguments than that takes small ones along, wherever there are copies: each would be asked for by itself.
const MANY: usize = 16;
/// So many of the nodes that have a copy are named.
const NAMED: usize = 8;

enum State {
    /// Its task waits for arguments, or is on its way; it holds pins on its arguments.
    Pending,
    /// `copies`: nodes that have it in their stores, too.
    Inline {
        value: Arc<[u8]>,
        copies: BTreeSet<ProcessId>,
    },
    Stored {
        size: u64,
        holders: BTreeSet<ProcessId>,
    },
    Failed(Failure),
    /// Was stored; nobody has it now.
    Lost,
    /// It stayed, and is no more.
    Ended,
    /// Nobody needs the value; the record stays for lineage.
    Freed,
}

impl State {
    fn inline(value: Arc<[u8]>) -> Self {
        State::Inline { value, copies: BTreeSet::new() }
    }

    /// The nodes that have it in their stores, whether its owner has it, too, or not.
    fn nodes(&self) -> Option<&BTreeSet<ProcessId>> {
        match self {
            State::Stored { holders: nodes, .. } | State::Inline { copies: nodes, .. } => Some(nodes),
            _ => None,
        }
    }

    fn nodes_mut(&mut self) -> Option<&mut BTreeSet<ProcessId>> {
        match self {
            State::Stored { holders: nodes, .. } | State::Inline { copies: nodes, .. } => Some(nodes),
            _ => None,
        }
    }
}

/// What remains to be done before a call into the owner returns. A list, since chains of objects may
/// be longer than a stack is deep.
enum Step {
    /// Bring the task on its way.
    Launch(u64),
    /// Make it again, if it is not there.
    Revive(u64),
    /// Its node or worker died, as is said: another attempt.
    Again(u64, String),
    /// The head lost it: another attempt, which does not count.
    Resend(u64),
    /// This attempt of its task has ended so.
    End(u64, u32, State),
    /// Free it, if nobody needs it.
    Settle(u64),
}

struct Record {
    state: State,
    handles: u32,
    pins: u32,
    /// Processes that have handles, and how often they have said so.
    claims: BTreeMap<ProcessId, u32>,
    /// Records that stay, and need this one to be made again.
    lineage: u32,
    /// How it is made; `None`: it was put, or somebody was asked for it.
    work: Option<Arc<Work>>,
    /// What only it has of a work that it shares.
    member: Option<Member>,
    /// The task whose result it is a part of.
    part_of: Option<u64>,
    /// How many objects behind it are parts of its result.
    parts: u64,
    /// Of the attempt that is under way or ended.
    attempt: u32,
    /// Earlier attempts that do not count.
    uncounted: u32,
    /// Where that attempt is, as far as is known, and where it comes from if it is on its way.
    at: Option<ProcessId>,
    via: Option<ProcessId>,
    /// How often it had been handed on when that was known.
    hop: u32,
    /// Arguments that are not there yet, of a task that waits.
    missing: BTreeSet<u64>,
    /// Tasks that wait for it.
    dependents: BTreeSet<u64>,
    /// Nodes that want to know where it is.
    asked_by: BTreeSet<ProcessId>,
    /// Its first end has been told.
    told: bool,
    /// Somebody has needed its value here.
    is_seen: bool,
}

impl Record {
    fn is_under_way(&self) -> bool {
        matches!(self.state, State::Pending)
    }

    /// Whether its task is on its way, and does not wait here.
    fn is_sent(&self) -> bool {
        self.is_under_way() && self.work.is_some() && self.missing.is_empty()
    }

    /// Whether that node has it, as far as is known. What is on its way there comes to a node that knows the new head,
    /// or that says `Anew` after it.
    fn should_be_at(&self, node: ProcessId) -> bool {
        self.at == Some(node) && self.is_sent() && self.via.is_none() || self.stays_at() == Some(node)
    }

    fn is_needed(&self) -> bool {
        self.handles > 0 || self.pins > 0 || !self.claims.is_empty()
    }

    /// How many attempts there were that count.
    fn attempts(&self) -> u32 {
        self.attempt - self.uncounted
    }

    /// Where it runs on, after it has finished.
    fn stays_at(&self) -> Option<ProcessId> {
        let stays = self.work.as_ref().is_some_and(|work| work.stays);
        self.at.filter(|_| stays && matches!(self.state, State::Inline { .. } | State::Stored { .. }))
    }
}

pub(crate) struct Owner {
    id: ProcessId,
    /// The node that it is on, if there is one.
    on: Option<ProcessId>,
    /// The node that its tasks go to first; without one they go to the head.
    node: Option<ProcessId>,
    records: Rows<Record>,
    next: u64,
    groups: BTreeMap<u64, (GroupSpec, Group)>,
    /// Nodes that may be sent so many small tasks, and how many have been.
    grants: VecDeque<(ProcessId, u32)>,
    /// How many go to the first of them before it is the next one's turn.
    turn: u32,
    /// How many are left, how few before more are asked for, and whether any was used since the last tick.
    left: u32,
    few: u32,
    is_used: bool,
    dead: BTreeSet<ProcessId>,
    /// Those of them whose claims count still, and until when, once that is known.
    late: BTreeMap<ProcessId, Option<Nanos>>,
    beat: Nanos,
    steps: Vec<Step>,
    /// Values of more bytes go to others by name, if nodes have copies.
    short: u64,
    /// It closes, as a part of this job.
    closing: Option<ProcessId>,
    /// Who has been told.
    told: BTreeSet<ProcessId>,
    /// What errors say about an object.
    origins: Box<dyn Fn(ObjectId) -> Box<Origin> + Send>,
}

impl Owner {
    /// `wish`: the node that it is on, if there is one.
    pub(crate) fn new(
        id: ProcessId,
        wish: Option<ProcessId>,
        origins: Box<dyn Fn(ObjectId) -> Box<Origin> + Send>,
        out: &mut Effects,
    ) -> Self {
        out.send(HEAD, Message::JoinOwner { wish, on: wish, groups: Vec::new() });
        Owner {
            id,
            on: wish,
            node: None,
            records: Rows::default(),
            next: 1,
            groups: BTreeMap::new(),
            grants: VecDeque::new(),
            turn: 0,
            left: 0,
            few: 0,
            is_used: false,
            dead: BTreeSet::new(),
            late: BTreeMap::new(),
            beat: 0,
            steps: Vec::new(),
            short: SHORT,
            closing: None,
            told: BTreeSet::new(),
            origins,
        }
    }

    /// Has values of more bytes go by name, instead of those of more than [`SHORT`].
    pub(crate) fn name_above(&mut self, short: u64) {
        self.short = short;
    }

    /// Of an object of this owner.
    fn record(&self, object: ObjectId) -> Option<&Record> {
        self.records.get(object.number).filter(|_| object.owner == self.id)
    }

    fn name(&self, number: u64) -> ObjectId {
        ObjectId { owner: self.id, number }
    }

    fn enter(&mut self, state: State) -> u64 {
        let number = self.next;
        self.next += 1;
        self.records.insert(
            number,
            Record {
                state,
                handles: 1,
                pins: 0,
                claims: BTreeMap::new(),
                lineage: 0,
                work: None,
                member: None,
                part_of: None,
                parts: 0,
                attempt: 0,
                uncounted: 0,
                at: None,
                via: None,
                hop: 0,
                missing: BTreeSet::new(),
                dependents: BTreeSet::new(),
                asked_by: BTreeSet::new(),
                told: false,
                is_seen: false,
            },
        );
        number
    }

    /// A small value, with one handle.
    pub(crate) fn put(&mut self, value: Arc<[u8]>) -> ObjectId {
        let number = self.enter(State::inline(value));
        self.name(number)
    }

    /// A value that was put into the store of this owner's node under [`Owner::next`], with one handle.
    pub(crate) fn put_stored(&mut self, size: u64) -> ObjectId {
        let state = match self.node {
            Some(node) => State::Stored { size, holders: BTreeSet::from([node]) },
            None => State::Lost, // the node has died since
        };
        let number = self.enter(state);
        self.name(number)
    }

    /// The name of the next object, and the node into whose store it may be put.
    pub(crate) fn next(&self) -> (ObjectId, Option<ProcessId>) {
        (self.name(self.next), self.node)
    }

    /// An object that somebody else makes, with one handle: the process `at`, as far as is known. It
    /// ends with [`Owner::fulfil`], with a [`Message::Finished`], or as lost when `at` dies.
    pub(crate) fn expect(&mut self, at: Option<ProcessId>) -> ObjectId {
        let number = self.enter(State::Pending);
        let object = self.name(number);
        if let Some(at) = at {
            self.moved(object, at);
        }
        object
    }

    /// An expected object is made by this process.
    pub(crate) fn moved(&mut self, object: ObjectId, at: ProcessId) {
        let Some(record) = self.records.get_mut(object.number) else { return };
        if record.work.is_none() && record.is_under_way() {
            record.at = Some(at);
            if self.dead.contains(&at) {
                self.steps.push(Step::Again(object.number, MAKER_DIED.into())); // said with the next message or tick
            }
        }
    }

    /// Here is what was expected. A large value is in the store of this owner's node.
    pub(crate) fn fulfil(&mut self, object: ObjectId, outcome: Outcome, out: &mut Effects) {
        match self.node {
            None if matches!(outcome, Outcome::Stored { .. }) => {
                let failure = self.lost(object.number, PUT_AND_LOST.into());
                self.steps.push(Step::End(object.number, 0, State::Failed(failure)));
            }
            node => self.finished(node.unwrap_or(self.id), object.number, 0, outcome, out),
        }
        self.run(out);
    }

    /// Submits a task; its result has one handle. The arguments are objects to which there are handles.
    pub(crate) fn submit(&mut self, work: Work, out: &mut Effects) -> ObjectId {
        let number = self.enter(State::Pending);
        self.make(number, work, out);
        self.name(number)
    }

    /// The node that may be sent one more small task, in a pack, and whether to stay there ([`Message::Granted`]);
    /// [`Owner::submit_packed`] is to follow.
    pub(crate) fn goes_to(&mut self, out: &mut Effects) -> Option<(ProcessId, bool)> {
        if self.closing.is_some() {
            return None;
        }
        let granted = self.granted(&[], out).map(|node| (node, true));
        granted.or(self.node.map(|node| (node, false)))
    }

    /// Submits a plain task without arguments that are objects, which is on its way to that node already.
    pub(crate) fn submit_packed(&mut self, to: ProcessId, work: Arc<Work>, member: Member) -> ObjectId {
        let number = self.enter(State::Pending);
        if let Some(record) = self.records.get_mut(number) {
            (record.work, record.member) = (Some(work), Some(member));
            (record.attempt, record.at) = (1, Some(to));
        }
        self.name(number)
    }

    /// The same for a task whose result comes in so many parts, each with one handle: their numbers follow that of the
    /// task.
    pub(crate) fn submit_split(&mut self, work: Work, parts: u64, out: &mut Effects) -> ObjectId {
        let number = self.enter(State::Pending);
        for _ in 0..parts {
            let part = self.enter(State::Pending);
            if let Some(part) = self.records.get_mut(part) {
                part.part_of = Some(number);
            }
        }
        if let Some(record) = self.records.get_mut(number) {
            (record.parts, record.lineage) = (parts, parts as u32);
        }
        self.make(number, work, out);
        self.name(number)
    }

    /// What was expected is made by this task. If it has failed meanwhile it does not start.
    pub(crate) fn submit_as(&mut self, object: ObjectId, work: Work, out: &mut Effects) {
        if self.record(object).is_some_and(Record::is_under_way) {
            self.make(object.number, work, out);
        }
    }

    fn make(&mut self, number: u64, work: Work, out: &mut Effects) {
        for object in work.objects() {
            if let Some(record) = self.records.get_mut(object.number) {
                record.lineage += 1;
            }
        }
        if let Some(record) = self.records.get_mut(number) {
            record.work = Some(Arc::new(work));
        }
        self.steps.push(Step::Launch(number));
        self.run(out);
    }

    /// Has the head set these aside, all or none; it gives up after so long.
    pub(crate) fn create_group(
        &mut self,
        bundles: Vec<Demand>,
        policy: Policy,
        patience: Option<Nanos>,
        out: &mut Effects,
    ) -> ObjectId {
        let group = self.name(self.next);
        self.next += 1;
        let spec = GroupSpec { id: group, bundles, policy, patience, places: Vec::new() };
        self.groups.insert(group.number, (spec.clone(), Group::Waiting));
        out.send(HEAD, Message::CreateGroup(spec));
        group
    }

    /// Gives a group up. Tasks in it that have not started fail.
    pub(crate) fn remove_group(&mut self, group: ObjectId, out: &mut Effects) {
        if self.groups.remove(&group.number).is_some() {
            out.send(HEAD, Message::RemoveGroup { group });
        }
    }

    pub(crate) fn group(&self, group: ObjectId) -> Option<&Group> {
        self.groups.get(&group.number).map(|(_, now)| now)
    }

    /// There is a head again, which knows nothing of what this owner has.
    pub(crate) fn join_again(&mut self, out: &mut Effects) {
        let groups = self.groups.values().filter_map(|(spec, now)| match now {
            Group::Waiting => Some(spec.clone()),
            Group::Ready(places) => Some(GroupSpec { places: places.clone(), ..spec.clone() }),
            Group::Failed(_) => None,
        });
        out.send(HEAD, Message::JoinOwner { wish: self.node.or(self.on), on: self.on, groups: groups.collect() });
        let mut nodes = BTreeSet::new();
        for (number, record) in self.records.iter() {
            match record.at {
                Some(node) if record.should_be_at(node) => drop(nodes.insert(node)),
                None if record.is_sent() => self.steps.push(Step::Resend(number)),
                _ => {}
            }
        }
        for node in nodes {
            self.check(node, out);
        }
        self.told.remove(&HEAD);
        self.tell_closing(HEAD, out);
        self.run(out);
    }

    /// From here on nothing of this owner's starts: what has not started fails, here or where it is. What runs goes
    /// on. `job`: the driver of the program that ends.
    pub(crate) fn close(&mut self, job: ProcessId, out: &mut Effects) {
        self.closing = Some(job);
        let mut places = BTreeSet::new();
        for (number, record) in self.records.iter() {
            if record.is_sent() {
                places.extend([Some(HEAD), record.at, record.via].into_iter().flatten());
            } else if record.is_under_way() && record.work.is_some() {
                self.steps.push(Step::End(number, record.attempt, State::Failed(self.shutdown(number))));
            }
            places.extend(record.stays_at());
        }
        for place in places {
            self.tell_closing(place, out);
        }
        self.run(out);
    }

    /// The nodes that have been told that it closes, and live.
    pub(crate) fn told(&self) -> impl Iterator<Item = ProcessId> + '_ {
        self.told.iter().copied().filter(|place| *place != HEAD && !self.dead.contains(place))
    }

    /// Tells a process that may have tasks of this owner, once, if it closes.
    fn tell_closing(&mut self, place: ProcessId, out: &mut Effects) {
        if let Some(job) = self.closing
            && !self.dead.contains(&place)
            && self.told.insert(place)
        {
            out.send(place, Message::Close { job });
        }
    }

    fn shutdown(&self, number: u64) -> Failure {
        let origin = self.origin(number);
        Arc::new(Error::Shutdown { what: format!("{} `{}` (#{})", origin.kind, origin.name, origin.id) })
    }

    /// Asks a node for the tasks that should be there.
    fn check(&self, node: ProcessId, out: &mut Effects) {
        let there = self.records.iter().filter(|(_, record)| record.should_be_at(node));
        let tasks: Vec<_> = there.map(|(number, record)| (self.name(number), record.attempt)).collect();
        if !tasks.is_empty() {
            out.send(node, Message::Check { tasks });
        }
    }

    /// The numbers of what is made from here on are not below this one.
    pub(crate) fn count_from(&mut self, number: u64) {
        self.next = self.next.max(number);
    }

    /// What another life of this owner has to know of something that stays, besides its work: the attempt, how many do
    /// not count, and if it is there, the node and its value.
    pub(crate) fn kept(&self, object: ObjectId) -> Option<(u32, u32, Option<There>)> {
        let record = self.record(object)?;
        let there = match &record.state {
            State::Inline { value, .. } => record.stays_at().map(|node| (node, value.clone())),
            _ => None,
        };
        Some((record.attempt, record.uncounted, there))
    }

    /// Takes up something that stays, from another life, with one handle. [`Owner::join_again`] is to follow, which
    /// sends it again if it was not there.
    pub(crate) fn restore(&mut self, number: u64, work: Work, (attempt, uncounted): (u32, u32), there: Option<There>) {
        let next = std::mem::replace(&mut self.next, number);
        let (state, at) = match there {
            Some((node, value)) => (State::inline(value), Some(node)),
            None => (State::Pending, None),
        };
        self.enter(state);
        self.next = next.max(number + 1);
        if let Some(record) = self.records.get_mut(number) {
            record.work = Some(Arc::new(work));
            (record.attempt, record.uncounted, record.at) = (attempt, uncounted, at);
        }
    }

    /// One more handle.
    pub(crate) fn retain(&mut self, object: ObjectId) {
        if let Some(record) = self.records.get_mut(object.number) {
            record.handles += 1;
        }
    }

    /// One handle less.
    pub(crate) fn release(&mut self, object: ObjectId, out: &mut Effects) {
        if let Some(record) = self.records.get_mut(object.number) {
            record.handles -= 1;
        }
        self.steps.push(Step::Settle(object.number));
        self.run(out);
    }

    /// Ends a task that has not ended or that stays, wherever it is; what depends on it fails. One part of its result
    /// stands for all.
    pub(crate) fn cancel(&mut self, object: ObjectId, out: &mut Effects) {
        if self.records.contains(object.number) {
            self.fail(object, Arc::new(Error::Cancelled { origin: self.origin(object.number) }), out);
        }
    }

    /// The same, for another reason.
    pub(crate) fn fail(&mut self, object: ObjectId, failure: Failure, out: &mut Effects) {
        let object = self.maker(object);
        let Some(record) = self.records.get(object.number) else { return };
        let (attempt, at) = (record.attempt, record.at);
        if record.is_under_way() {
            self.steps.push(Step::End(object.number, attempt, State::Failed(failure)));
        } else if record.stays_at().is_some() || matches!(record.state, State::Ended) {
            let state = State::Failed(failure);
            self.replace(object.number, state, out);
            self.there(object.number, out);
        } else {
            return;
        }
        if let Some(node) = at {
            out.send(node, Message::Cancel { task: object, attempt });
        }
        self.run(out);
    }

    /// Starts what has stayed and ended once more. `false`: it has no attempt left, and has failed.
    pub(crate) fn restart(&mut self, object: ObjectId, out: &mut Effects) -> bool {
        let Some(record) = self.records.get_mut(object.number) else { return false };
        if !matches!(record.state, State::Ended) {
            return false;
        }
        let (attempt, attempts) = (record.attempts(), record.work.as_ref().map_or(0, |work| work.attempts));
        if attempt < attempts {
            record.told = false;
            self.steps.push(Step::Launch(object.number));
        } else {
            let failure = self.lost(object.number, format!("it ended, in attempt {attempt} of {attempts}"));
            self.replace(object.number, State::Failed(failure), out);
            self.there(object.number, out);
        }
        self.run(out);
        attempt < attempts
    }

    /// The node where a task is that has finished and stays.
    pub(crate) fn place(&self, object: ObjectId) -> Option<ProcessId> {
        self.record(object).and_then(Record::stays_at)
    }

    /// The process that a task under way is with, or on its way to, as far as is known.
    pub(crate) fn whereabouts(&self, object: ObjectId) -> Option<ProcessId> {
        self.record(object).filter(|record| record.is_under_way()).and_then(|record| record.at)
    }

    /// What has become of it; `None`: nothing yet, or it is lost and may be made again, or gone.
    pub(crate) fn value(&self, object: ObjectId) -> Option<Value> {
        match &self.record(object)?.state {
            State::Inline { value, .. } => Some(Value::Inline(value.clone())),
            State::Stored { size, holders } => {
                Some(Value::Stored { size: *size, holders: holders.iter().copied().collect() })
            }
            State::Failed(why) => Some(Value::Failed(why.clone())),
            State::Pending | State::Lost | State::Ended | State::Freed => None,
        }
    }

    /// Makes what was lost again: somebody asks for its value. `true`: it is there, or has failed.
    pub(crate) fn want(&mut self, object: ObjectId, out: &mut Effects) -> bool {
        let before = self
            .records
            .get_mut(object.number)
            .map(|record| (std::mem::replace(&mut record.is_seen, true), &record.state));
        if let Some((false, State::Stored { size, holders })) = before
            && *size <= INLINE as u64
        {
            holders.iter().for_each(|node| out.send(*node, Message::Seen { object }));
        }
        self.steps.push(Step::Revive(object.number));
        self.run(out);
        let state = self.records.get(object.number).map(|record| &record.state);
        !matches!(state, Some(State::Pending | State::Lost | State::Ended))
    }

    /// Its value was looked at.
    pub(crate) fn seen(&mut self, object: ObjectId) {
        if let Some(record) = self.records.get_mut(object.number) {
            record.is_seen = true;
        }
    }

    /// The arguments of this owner that a task under way waits for, here or on a node.
    pub(crate) fn missing(&self, object: ObjectId) -> Vec<ObjectId> {
        let work = self
            .record(self.maker(object))
            .filter(|record| record.is_under_way())
            .and_then(|record| record.work.as_ref());
        let is_missing = |arg: &ObjectId| self.record(*arg).is_some_and(Record::is_under_way);
        work.into_iter().flat_map(|work| work.objects()).filter(is_missing).collect()
    }

    /// Whether its first end has been told.
    pub(crate) fn is_told(&self, object: ObjectId) -> bool {
        self.record(object).is_some_and(|record| record.told)
    }

    /// The task that makes it: itself, unless it is a part.
    pub(crate) fn maker(&self, object: ObjectId) -> ObjectId {
        self.record(object).and_then(|record| record.part_of).map_or(object, |whole| self.name(whole))
    }

    /// If it is still to be made: the arguments that its task takes, of whatever owner, and where it is.
    pub(crate) fn under_way(&self, object: ObjectId) -> Option<(Vec<ObjectId>, Option<ProcessId>)> {
        let record = self.record(object).filter(|record| record.is_under_way())?;
        let arguments = record.work.iter().flat_map(|work| &work.args).filter_map(|arg| match arg {
            WorkArg::Object(id) | WorkArg::Foreign(id) => Some(*id),
            WorkArg::Value(_) => None,
        });
        Some((arguments.collect(), record.at))
    }

    /// Whether it is there or may be; if not, nobody needs it any more.
    pub(crate) fn keeps(&self, object: ObjectId) -> bool {
        self.record(object).is_some_and(|record| !matches!(record.state, State::Freed))
    }

    /// Whether it has failed, and why.
    pub(crate) fn failure(&self, object: ObjectId) -> Option<Failure> {
        match self.record(object).map(|record| &record.state) {
            Some(State::Failed(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// The nodes that have its value; `None` if it is not stored.
    pub(crate) fn holders(&self, object: ObjectId) -> Option<&BTreeSet<ProcessId>> {
        match self.record(object).map(|record| &record.state) {
            Some(State::Stored { holders, .. }) => Some(holders),
            _ => None,
        }
    }

    pub(crate) fn handle(&mut self, from: ProcessId, message: Message, out: &mut Effects) {
        if self.dead.contains(&from) {
            return; // whatever it did is done again
        }
        match message {
            Message::Placed { task, count, attempt, hop, node, via } => {
                for number in (task.number..).take(count as usize) {
                    self.placed(number, attempt, hop, (node, via), out);
                }
            }
            Message::Unplaceable { task, attempt, why } => {
                let failure = Error::Infeasible { origin: self.origin(task.number), reason: why.to_string() };
                self.steps.push(Step::End(task.number, attempt, State::Failed(Arc::new(failure))));
            }
            Message::Finished { task, attempt, outcome } => self.finished(from, task.number, attempt, outcome, out),
            Message::Locate { object, not } => {
                // It has dropped its copy. Of others' copies it may have heard before those were there.
                if let Some(State::Inline { copies, .. }) =
                    self.records.get_mut(object.number).map(|record| &mut record.state)
                {
                    copies.remove(&from);
                }
                self.locate(from, object.number, &not, out);
            }
            Message::Holds { object, attempt } => {
                match self.records.get_mut(object.number).and_then(|record| record.state.nodes_mut()) {
                    Some(nodes) => drop(nodes.insert(from)),
                    None => out.send(from, Message::Free { object, attempt, unseen: false }),
                }
            }
            Message::Claim { object } => self.claim(from, object, out),
            Message::Unclaim { object } => self.unclaim(from, object.number),
            Message::Ended { task, attempt, .. } => {
                let record = self.records.get(task.number);
                if record.is_some_and(|record| record.attempt == attempt && record.stays_at() == Some(from)) {
                    self.stays_no_more(task.number, out);
                }
            }
            Message::GroupReady { group, places } => self.group_is(group, Group::Ready(places), out),
            Message::GroupFailed { group, why } => {
                let origin = Box::new(Origin { kind: "placement group".into(), ..*self.origin(group.number) });
                let failure = Error::Infeasible { origin, reason: why.to_string() };
                self.group_is(group, Group::Failed(Arc::new(failure)), out);
            }
            Message::Home { node } => self.node = Some(node),
            Message::Anew => self.check(from, out),
            Message::Grant { nodes } => {
                let dead = &self.dead;
                self.grants = nodes.into_iter().filter(|(node, _)| !dead.contains(node)).collect();
                self.left = self.grants.iter().map(|(_, left)| left).sum();
                (self.few, self.turn, self.is_used) = (self.left / 2, 0, false);
            }
            Message::Lacks { task, attempt } => {
                let record = self.records.get(task.number).filter(|record| record.attempt == attempt);
                match record.map(|record| (record.is_sent() && record.at == Some(from), record.stays_at())) {
                    Some((true, _)) => self.steps.push(Step::Resend(task.number)),
                    Some((_, Some(node))) if node == from => self.stays_no_more(task.number, out),
                    _ => {}
                }
            }
            Message::Dead { process } => self.buried(process, out),
            Message::Fenced => out.fenced = true,
            _ => {}
        }
        self.run(out);
    }

    fn run(&mut self, out: &mut Effects) {
        while let Some(step) = self.steps.pop() {
            match step {
                Step::Launch(number) => self.launch(number, out),
                Step::Revive(number) => self.revive(number, out),
                Step::Again(number, why) => self.again(number, &why),
                Step::Resend(number) => self.resend(number),
                Step::End(number, attempt, state) => self.end(number, attempt, state, out),
                Step::Settle(number) => self.settle(number, out),
            }
        }
    }

    /// To be called at least every [`BEAT`].
    pub(crate) fn tick(&mut self, now: Nanos, out: &mut Effects) {
        if now >= self.beat + BEAT {
            self.beat = now;
            out.send(HEAD, Message::Beat);
        }
        // Much happens in the time between two ticks: what is used is granted anew.
        match std::mem::take(&mut self.is_used) {
            true if self.left > 0 => {
                self.few = 0;
                out.send(HEAD, Message::More);
            }
            _ => self.forget_grants(),
        }
        for until in self.late.values_mut() {
            until.get_or_insert(now + GRACE);
        }
        let over: Vec<_> = self.late.iter().filter(|(_, until)| **until <= Some(now)).map(|(id, _)| *id).collect();
        for process in over {
            self.late.remove(&process);
            for (number, record) in self.records.iter_mut() {
                if record.claims.remove(&process).is_some() {
                    self.steps.push(Step::Settle(number));
                }
            }
        }
        self.run(out);
    }

    /// What errors say about it.
    fn origin(&self, number: u64) -> Box<Origin> {
        let mut origin = (self.origins)(self.name(number));
        if let Some(record) = self.records.get(number) {
            origin.attempt = record.attempt.max(1);
        }
        origin
    }

    fn lost(&self, number: u64, reason: String) -> Failure {
        Arc::new(Error::Lost { origin: self.origin(number), reason })
    }

    /// Why an argument of a task's has failed, if one of this owner's has.
    fn failed_argument(&self, number: u64) -> Option<Failure> {
        let work = self.records.get(number)?.work.as_ref()?;
        work.objects().find_map(|object| self.failure(object))
    }

    /// Why a task did not run whose argument failed so.
    fn lacking(&self, number: u64, cause: &Error) -> State {
        let mut depth = 0;
        let mut error = cause;
        while let Error::DependencyFailed { cause, .. } = error {
            (depth, error) = (depth + 1, cause);
        }
        let cause = if depth < CAUSES { cause } else { error };
        let cause = Box::new(cause.clone());
        State::Failed(Arc::new(Error::DependencyFailed { origin: self.origin(number), cause }))
    }

    fn group_is(&mut self, group: ObjectId, now: Group, out: &mut Effects) {
        if let Some(known) = self.groups.get_mut(&group.number) {
            known.1 = now;
            out.groups.push(group);
        }
    }

    /// `process` has handles to it.
    fn claim(&mut self, process: ProcessId, object: ObjectId, out: &mut Effects) {
        match self.records.get_mut(object.number) {
            Some(record) if !matches!(record.state, State::Freed) => {
                *record.claims.entry(process).or_default() += 1;
                out.send(process, Message::Claimed { object });
            }
            _ => out.send(process, Message::Lost { object, why: lost(object, NO_HANDLE) }),
        }
    }

    fn unclaim(&mut self, process: ProcessId, number: u64) {
        let Some(record) = self.records.get_mut(number) else { return };
        if let Some(count) = record.claims.get_mut(&process) {
            *count -= 1;
            if *count == 0 {
                record.claims.remove(&process);
            }
        }
        self.steps.push(Step::Settle(number));
    }

    /// What stayed has ended by itself; whoever asked for it decides what is next.
    fn stays_no_more(&mut self, number: u64, out: &mut Effects) {
        self.replace(number, State::Ended, out);
        if let Some(record) = self.records.get(number) {
            out.ended.push((self.name(number), record.attempt));
        }
    }

    /// Drops its value wherever it is.
    fn replace(&mut self, number: u64, state: State, out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(number) else { return };
        for node in record.state.nodes().into_iter().flatten() {
            out.send(*node, Message::Free { object, attempt: record.attempt, unseen: !record.is_seen });
        }
        record.state = state;
        record.at = None;
    }

    /// Brings a task on its way, as soon as its arguments are there.
    fn launch(&mut self, number: u64, out: &mut Effects) {
        let Some(work) = self.records.get(number).and_then(|record| record.work.clone()) else { return };
        let mut missing = BTreeSet::new();
        let mut failed = None;
        // What waits only for tasks of one node waits there: it starts as soon as they have ended, and no message
        // lies between.
        let mut waits_there = matches!(work.strategy, Strategy::Default) && !work.stays;
        let mut there = None;
        for object in work.objects() {
            let Some(arg) = self.records.get_mut(object.number) else { continue };
            arg.pins += 1;
            match &arg.state {
                State::Pending | State::Lost | State::Ended | State::Freed => {
                    there = there.or(arg.at);
                    waits_there &= arg.is_under_way() && arg.work.is_some() && arg.via.is_none();
                    waits_there &= arg.at.is_some() && arg.at == there;
                    missing.insert(object.number);
                }
                State::Failed(why) => failed = Some(why.clone()),
                State::Inline { .. } | State::Stored { .. } => {}
            }
        }
        waits_there &= there.is_none_or(|node| !self.dead.contains(&node));
        if waits_there {
            missing.clear();
        }
        let there = there.filter(|_| waits_there);
        for object in &missing {
            if let Some(arg) = self.records.get_mut(*object) {
                arg.dependents.insert(number);
            }
        }
        let Some(record) = self.records.get_mut(number) else { return };
        record.state = State::Pending;
        record.attempt += 1;
        (record.at, record.via, record.hop) = (None, None, 0);
        record.missing = missing.clone();
        let attempt = record.attempt;
        match failed {
            Some(why) => self.steps.push(Step::End(number, attempt, self.lacking(number, &why))),
            None if self.closing.is_some() => {
                self.steps.push(Step::End(number, attempt, State::Failed(self.shutdown(number))));
            }
            None if missing.is_empty() => self.send(number, there, out),
            None => self.steps.extend(missing.into_iter().map(Step::Revive)),
        }
    }

    /// Sends a task on its way: to the node that makes its arguments (`there`), or where it belongs.
    fn send(&mut self, number: u64, there: Option<ProcessId>, out: &mut Effects) {
        let id = self.name(number);
        let Some(record) = self.records.get(number) else { return };
        let (attempt, Some(work)) = (record.attempt, &record.work) else { return };
        let is_named = work.args.len() <= MANY;
        let args = work.args.iter().map(|arg| match arg {
            WorkArg::Value(value) => Arg::Inline(value.clone()),
            WorkArg::Foreign(object) => Arg::Object { id: *object, size: 0, holders: Vec::new() },
            WorkArg::Object(object) => match self.records.get(object.number).map(|record| &record.state) {
                // Nodes keep copies of those that are not worth their way.
                Some(State::Inline { value, copies })
                    if is_named && !copies.is_empty() && value.len() as u64 > self.short =>
                {
                    let holders = copies.iter().take(NAMED).copied().collect();
                    Arg::Object { id: *object, size: value.len() as u64, holders }
                }
                Some(State::Inline { value, .. }) => Arg::Inline(value.clone()),
                Some(State::Stored { size, holders }) => {
                    Arg::Object { id: *object, size: *size, holders: holders.iter().copied().collect() }
                }
                // It was lost since; the node asks for it.
                _ => Arg::Object { id: *object, size: 0, holders: Vec::new() },
            },
        });
        let args: Vec<Arg> = args.collect();
        let mut spec = TaskSpec {
            id,
            attempt,
            hop: 0,
            count: 1,
            demand: work.demand.clone(),
            strategy: work.strategy.clone(),
            args,
            stays: work.stays,
            body: work.body.alone(record.member.as_ref()),
        };
        // What is long and goes along is needed here.
        let long = work.args.iter().zip(&spec.args).filter_map(|(arg, sent)| match (arg, sent) {
            (WorkArg::Object(object), Arg::Inline(value)) if value.len() as u64 > self.short => Some(*object),
            _ => None,
        });
        let long: Vec<_> = long.collect();
        long.into_iter().for_each(|object| self.seen(object));
        let node = match &mut spec.strategy {
            // The head is asked on the way on which it has heard of the group.
            Strategy::Bundle { group, bundle, node } => {
                *node = match self.groups.get(&group.number) {
                    Some((_, Group::Ready(places))) => places.get(*bundle as usize).copied(),
                    _ => None,
                };
                node.filter(|node| !self.dead.contains(node))
            }
            _ => self.node,
        };
        let granted = match there {
            // What waits for a task must be where that is. The node that it was sent to first may have passed it on.
            Some(there) => Some(there).filter(|there| Some(*there) != node),
            None if spec.is_light() => self.granted(&spec.args, out),
            None => None,
        };
        if let Some(record) = self.records.get_mut(number) {
            record.at = granted.or(node);
        }
        match (granted, node) {
            (Some(node), _) => out.send(node, Message::Granted(spec)),
            (None, Some(node)) => out.send(node, Message::Submit(spec)),
            (None, None) => out.send(HEAD, Message::Place(spec)),
        }
    }

    /// A node that may have one more small task: one that has its arguments, or each in turn.
    fn granted(&mut self, args: &[Arg], out: &mut Effects) -> Option<ProcessId> {
        const TURNS: RangeInclusive<u32> = 16..=pack::MOST;
        let held = args.iter().filter_map(|arg| match arg {
            Arg::Object { holders, .. } => Some(holders),
            Arg::Inline(_) => None,
        });
        let mut held = held.peekable();
        let has_turns = held.peek().is_none();
        let at = match has_turns {
            true => 0,
            false => held.find_map(|holders| self.grants.iter().position(|(node, _)| holders.contains(node)))?,
        };
        let (node, left) = self.grants.get_mut(at)?;
        let node = *node;
        if has_turns {
            // Who may have many is quick. Those that come one after the other are often needed together: long turns.
            let turn = if self.turn == 0 { (*left / 8).clamp(*TURNS.start(), *TURNS.end()) } else { self.turn };
            self.turn = turn - 1;
        }
        *left -= 1;
        if *left == 0 {
            self.grants.remove(at);
            self.turn = if at == 0 { 0 } else { self.turn };
        } else if has_turns && self.turn == 0 {
            self.grants.rotate_left(1);
        }
        self.left -= 1;
        self.is_used = true;
        if self.left < self.few {
            self.few = 0;
            out.send(HEAD, Message::More);
        }
        Some(node)
    }

    fn forget_grants(&mut self) {
        self.grants.clear();
        (self.turn, self.left, self.few) = (0, 0, 0);
    }

    fn placed(
        &mut self,
        number: u64,
        attempt: u32,
        hop: u32,
        (node, via): (ProcessId, Option<ProcessId>),
        out: &mut Effects,
    ) {
        match self.records.get_mut(number) {
            Some(record) if record.is_under_way() && record.attempt == attempt => {
                // News of an earlier hop may come later, on another link.
                if hop < record.hop || hop == record.hop && via.is_some() {
                    return;
                }
                (record.at, record.via, record.hop) = (Some(node), via, hop);
                if [Some(node), via].into_iter().flatten().any(|process| self.dead.contains(&process)) {
                    self.steps.push(Step::Again(number, NODE_DIED.into()));
                }
                self.tell_closing(node, out);
            }
            Some(record) if record.is_under_way() => {} // an attempt that was thought lost: who is first wins
            // It is known to be there, and to stay.
            Some(record) if record.attempt == attempt && record.stays_at() == Some(node) => {}
            // It was cancelled, or another attempt was first, before this place was known.
            _ => out.send(node, Message::Retire { task: self.name(number), attempt }),
        }
    }

    fn again(&mut self, number: u64, why: &str) {
        let Some(record) = self.records.get_mut(number).filter(|record| record.is_under_way()) else { return };
        let attempt = record.attempts();
        let why = match &record.work {
            None => why.to_owned(),
            Some(work) if attempt >= work.attempts => format!("{why}, in attempt {attempt} of {}", work.attempts),
            Some(_) => {
                // Its own pins are taken before these go.
                self.unpin(number);
                return self.steps.push(Step::Launch(number));
            }
        };
        let attempt = record.attempt;
        self.steps.push(Step::End(number, attempt, State::Failed(self.lost(number, why))));
    }

    /// As [`Owner::again`], for one that nobody has.
    fn resend(&mut self, number: u64) {
        let Some(record) = self.records.get_mut(number).filter(|record| record.is_sent()) else { return };
        record.uncounted += 1;
        self.unpin(number);
        self.steps.push(Step::Launch(number));
    }

    /// Gives up the pins of an attempt.
    fn unpin(&mut self, number: u64) {
        let work = self.records.get(number).and_then(|record| record.work.clone());
        for arg in work.iter().flat_map(|work| work.objects()) {
            if let Some(arg) = self.records.get_mut(arg.number) {
                arg.pins -= 1;
            }
            self.steps.push(Step::Settle(arg.number));
        }
    }

    fn finished(&mut self, from: ProcessId, number: u64, attempt: u32, outcome: Outcome, out: &mut Effects) {
        let object = self.name(number);
        let is_well = outcome.is_well();
        // A part that was lost has come again before anybody has asked for it.
        let part = self.records.get_mut(number).filter(|record| record.part_of.is_some());
        if let Some(part) = part.filter(|part| matches!(part.state, State::Lost)) {
            part.state = State::Pending;
        }
        let Some(record) = self.records.get_mut(number).filter(|record| record.is_under_way()) else {
            // Nobody wants it, or another attempt was first. It may be one that stays.
            if is_well {
                out.send(from, Message::Retire { task: object, attempt });
            }
            if outcome.is_stored()
                && !self
                    .record(object)
                    .and_then(|record| record.state.nodes())
                    .is_some_and(|nodes| nodes.contains(&from))
            {
                out.send(from, Message::Free { object, attempt, unseen: false });
            }
            return;
        };
        let (attempt, stays) = match &record.work {
            Some(work) => (attempt, work.stays),
            None => (0, false),
        };
        if attempt < record.attempt {
            // What an earlier attempt lacks, a later one may have. And what stays must not be there twice.
            if stays && is_well {
                out.send(from, Message::Retire { task: object, attempt });
                out.send(from, Message::Free { object, attempt, unseen: false });
            }
            if stays || !is_well {
                return;
            }
        }
        if stays {
            (record.at, record.via) = (Some(from), None);
        }
        if record.is_seen && matches!(outcome, Outcome::Stored { size } if size <= INLINE as u64) {
            out.send(from, Message::Seen { object });
        }
        let state = match outcome {
            Outcome::Inline(value) => State::inline(value),
            Outcome::Copied(value) => State::Inline { value, copies: BTreeSet::from([from]) },
            Outcome::Stored { size } => State::Stored { size, holders: BTreeSet::from([from]) },
            // Where it ran an argument may have been told to stop; why that has failed is known here.
            Outcome::Failed(why) => match (&*why, self.failed_argument(number)) {
                (Error::DependencyFailed { .. }, Some(cause)) => self.lacking(number, &cause),
                _ => State::Failed(why),
            },
            Outcome::Lacking(why) => self.lacking(number, &why),
            Outcome::Withdrawn => State::Failed(self.shutdown(number)),
            Outcome::Crashed { why } => {
                return self.steps.push(Step::Again(number, format!("the process that ran it died ({why})")));
            }
        };
        self.steps.push(Step::End(number, attempt, state));
    }

    /// Its task has ended, with this attempt or an earlier one.
    fn end(&mut self, number: u64, attempt: u32, state: State, out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(number) else { return };
        if !record.is_under_way() || attempt > record.attempt {
            return;
        }
        if attempt < record.attempt
            && let Some(node) = record.at
        {
            out.send(node, Message::Cancel { task: object, attempt: record.attempt });
        }
        let well = !matches!(state, State::Failed(_));
        record.state = state;
        let parts = number + 1..=number + record.parts;
        if !std::mem::replace(&mut record.told, true) {
            out.done.push((object, well));
        }
        let missing = std::mem::take(&mut record.missing);
        for arg in missing {
            if let Some(arg) = self.records.get_mut(arg) {
                arg.dependents.remove(&number);
            }
        }
        self.steps.push(Step::Settle(number));
        self.unpin(number);
        self.there(number, out);
        // One was lost after it had come once more.
        if well && parts.into_iter().any(|part| self.records.get(part).is_some_and(Record::is_under_way)) {
            self.make_again(number, out);
        }
    }

    /// It is there, or has failed: tells those that wait for it.
    fn there(&mut self, number: u64, out: &mut Effects) {
        let Some(record) = self.records.get_mut(number) else { return };
        let dependents = std::mem::take(&mut record.dependents);
        let askers = std::mem::take(&mut record.asked_by);
        let failure = match &record.state {
            State::Failed(why) => Some(why.clone()),
            _ => None,
        };
        if let Some(why) = &failure {
            let parts = number + 1..=number + record.parts;
            self.steps.extend(parts.map(|part| Step::End(part, 0, State::Failed(why.clone()))));
        }
        for asker in askers {
            self.locate(asker, number, &[], out);
        }
        for dependent in dependents {
            let Some(record) = self.records.get_mut(dependent) else { continue };
            if !record.missing.remove(&number) {
                continue;
            }
            match &failure {
                Some(why) => {
                    let attempt = record.attempt;
                    self.steps.push(Step::End(dependent, attempt, self.lacking(dependent, why)));
                }
                None if record.missing.is_empty() => self.send(dependent, None, out),
                None => {}
            }
        }
    }

    fn revive(&mut self, number: u64, out: &mut Effects) {
        let Some(record) = self.records.get_mut(number) else { return };
        if !matches!(record.state, State::Lost | State::Freed) {
            return;
        }
        let why = match &record.work {
            Some(work) if record.attempts() < work.attempts => return self.steps.push(Step::Launch(number)),
            Some(work) => {
                format!("the nodes that had it died, and its task has used its {} attempts", work.attempts)
            }
            None => match record.part_of {
                Some(whole) => {
                    record.state = State::Pending;
                    return self.make_again(whole, out);
                }
                None => PUT_AND_LOST.to_owned(),
            },
        };
        let failure = self.lost(number, why);
        if let Some(record) = self.records.get_mut(number) {
            record.state = State::Failed(failure);
        }
        self.there(number, out);
    }

    /// A part of its result is lost.
    fn make_again(&mut self, whole: u64, out: &mut Effects) {
        if self.records.get(whole).is_some_and(|record| !record.is_under_way()) {
            self.replace(whole, State::Freed, out);
            self.steps.push(Step::Revive(whole));
        }
    }

    /// A node asks who has an object; those in `not` have not.
    fn locate(&mut self, from: ProcessId, number: u64, not: &[ProcessId], out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(number) else {
            return out.send(from, Message::Lost { object, why: lost(object, NO_HANDLE) });
        };
        if let State::Stored { holders, .. } = &mut record.state {
            holders.retain(|holder| !not.contains(holder));
            if holders.is_empty() {
                record.state = State::Lost;
            }
        }
        match &record.state {
            State::Stored { holders, .. } => {
                out.send(from, Message::Located { object, holders: holders.iter().copied().collect() });
            }
            State::Inline { value, .. } => {
                out.send(from, Message::Pushed { object, size: value.len() as u64, attempt: record.attempt });
                record.is_seen = true;
            }
            State::Failed(why) => out.send(from, Message::Lost { object, why: why.clone() }),
            State::Pending | State::Ended => {
                record.asked_by.insert(from);
            }
            State::Lost | State::Freed => {
                record.asked_by.insert(from);
                self.steps.push(Step::Revive(number));
            }
        }
    }

    fn buried(&mut self, process: ProcessId, out: &mut Effects) {
        self.dead.insert(process);
        self.late.insert(process, None);
        self.grants.retain(|(node, _)| *node != process);
        self.left = self.grants.iter().map(|(_, left)| left).sum();
        self.turn = 0;
        if self.node == Some(process) {
            self.node = None; // until the head names another
        }
        let stayed = self.records.iter().filter(|(_, record)| record.stays_at() == Some(process));
        let stayed: Vec<u64> = stayed.map(|(number, _)| number).collect();
        for (number, record) in self.records.iter_mut() {
            record.asked_by.remove(&process);
            match &mut record.state {
                State::Stored { holders, .. } if *holders == BTreeSet::from([process]) => record.state = State::Lost,
                State::Stored { holders, .. } => drop(holders.remove(&process)),
                State::Inline { copies, .. } => {
                    copies.remove(&process);
                }
                _ => {}
            }
            if record.is_under_way() && [record.at, record.via].contains(&Some(process)) {
                let why = if record.work.is_some() { NODE_DIED } else { MAKER_DIED };
                self.steps.push(Step::Again(number, why.into()));
            }
        }
        for number in stayed {
            self.stays_no_more(number, out);
        }
    }

    /// Frees the value, and drops the record, if nobody needs them.
    fn settle(&mut self, number: u64, out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(number) else { return };
        if record.is_needed() || record.is_under_way() {
            return;
        }
        let lineage = record.lineage;
        if !matches!(record.state, State::Freed) {
            out.freed.push(object);
            if let Some(node) = record.stays_at() {
                out.send(node, Message::Cancel { task: object, attempt: record.attempt });
            }
            self.replace(number, State::Freed, out);
        }
        if lineage == 0 {
            let removed = self.records.remove(number);
            if let Some(whole) = removed.as_ref().and_then(|record| record.part_of) {
                if let Some(whole) = self.records.get_mut(whole) {
                    whole.lineage -= 1;
                }
                self.steps.push(Step::Settle(whole));
            }
            let work = removed.and_then(|record| record.work);
            for arg in work.iter().flat_map(|work| work.objects()) {
                if let Some(arg) = self.records.get_mut(arg.number) {
                    arg.lineage -= 1;
                }
                self.steps.push(Step::Settle(arg.number));
            }
        }
    }

    /// What it keeps: records.
    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: ProcessId = ProcessId(100);
    const NODE: ProcessId = ProcessId(1);
    const OTHER: ProcessId = ProcessId(2);
    const BORROWER: ProcessId = ProcessId(200);

    fn origin(object: ObjectId) -> Box<Origin> {
        let text = String::new;
        let (kind, name, location, node) = ("task".into(), format!("{object:?}"), text(), "local".into());
        Box::new(Origin { kind, name, id: object.number, attempt: 0, location, node })
    }

    /// An owner whose home is `NODE`.
    fn owner() -> Owner {
        let mut out = Effects::default();
        let mut owner = Owner::new(US, Some(NODE), Box::new(origin), &mut out);
        assert!(matches!(out.sends[..], [(HEAD, Message::JoinOwner { wish: Some(NODE), on: Some(NODE), .. })]));
        say(&mut owner, HEAD, Message::Home { node: NODE });
        owner
    }

    fn say(owner: &mut Owner, from: ProcessId, message: Message) -> Effects {
        let mut out = Effects::default();
        owner.handle(from, message, &mut out);
        out
    }

    fn submit(owner: &mut Owner, args: Vec<WorkArg>, attempts: u32, stays: bool) -> (ObjectId, Effects) {
        let mut out = Effects::default();
        let (demand, body) = (Arc::new(Demand::cpus(1_000)), WorkBody::Alone(Blob::default()));
        let work = Work { demand, strategy: Strategy::Default, args, body, attempts, stays };
        (owner.submit(work, &mut out), out)
    }

    fn is_shutdown(owner: &Owner, object: ObjectId) -> bool {
        owner.failure(object).is_some_and(|why| matches!(why.root_cause(), Error::Shutdown { .. }))
    }

    #[test]
    fn what_has_not_started_fails_when_its_owner_closes_and_what_may_run_is_waited_for() {
        let mut owner = owner();
        let (moves, _) = submit(&mut owner, Vec::new(), 4, false);
        let (waits, _) = submit(&mut owner, Vec::new(), 4, false);
        let dependent = submit_spread(&mut owner, moves);
        let mut out = Effects::default();
        owner.close(US, &mut out);
        assert!(
            matches!(out.sends[..], [(HEAD, Message::Close { job: US }), (NODE, Message::Close { job: US })]),
            "{out:?}"
        );
        assert!(is_shutdown(&owner, dependent) && owner.failure(moves).is_none() && owner.failure(waits).is_none());
        let out = say(&mut owner, NODE, Message::Finished { task: waits, attempt: 1, outcome: Outcome::Withdrawn });
        assert_eq!(out.done, [(waits, false)]);
        let text = owner.failure(waits).unwrap().to_string();
        assert!(text.starts_with("task `") && text.contains("has shut down"), "{text}");
        // Where it moves to is told, once; and so is the next head.
        let placed = Message::Placed { task: moves, count: 1, attempt: 1, hop: 1, node: OTHER, via: None };
        assert!(matches!(say(&mut owner, HEAD, placed.clone()).sends[..], [(OTHER, Message::Close { job: US })]));
        assert!(say(&mut owner, HEAD, placed).sends.is_empty());
        let mut out = Effects::default();
        owner.join_again(&mut out);
        let to_head = out.sends.iter().filter(|(to, _)| *to == HEAD).map(|(_, message)| message).collect::<Vec<_>>();
        assert!(matches!(to_head[..], [Message::JoinOwner { .. }, Message::Close { job: US }]), "{out:?}");
        assert_eq!(owner.told().collect::<Vec<_>>(), [NODE, OTHER]);
        // There is no other attempt.
        say(&mut owner, HEAD, Message::Dead { process: OTHER });
        assert!(is_shutdown(&owner, moves));
        assert_eq!(owner.told().collect::<Vec<_>>(), [NODE]);
        let (late, out) = submit(&mut owner, Vec::new(), 4, false);
        assert!(is_shutdown(&owner, late) && out.sends.is_empty(), "{out:?}");
    }

    #[test]
    fn what_runs_when_its_owner_closes_ends_as_always_and_what_is_lost_is_not_made_again() {
        let mut owner = owner();
        let (runs, _) = submit(&mut owner, Vec::new(), 4, false);
        let (stays, _) = submit(&mut owner, Vec::new(), 4, true);
        say(&mut owner, OTHER, Message::Finished { task: stays, attempt: 1, outcome: Outcome::Inline(Arc::from([])) });
        let mut out = Effects::default();
        owner.close(US, &mut out);
        let told = out.sends.iter().map(|(to, _)| *to).collect::<Vec<_>>();
        assert_eq!(told, [HEAD, NODE, OTHER], "also where an actor is");
        say(&mut owner, NODE, Message::Finished { task: runs, attempt: 1, outcome: Outcome::Stored { size: 1 << 20 } });
        assert!(matches!(owner.value(runs), Some(Value::Stored { .. })));
        say(&mut owner, HEAD, Message::Dead { process: NODE });
        owner.want(runs, &mut Effects::default());
        assert!(is_shutdown(&owner, runs));
    }

    /// One that waits here for what it depends on: a node does not keep those that are to be spread.
    fn submit_spread(owner: &mut Owner, argument: ObjectId) -> ObjectId {
        let (demand, body) = (Arc::new(Demand::cpus(1_000)), WorkBody::Alone(Blob::default()));
        let (strategy, args) = (Strategy::Spread, vec![WorkArg::Object(argument)]);
        let work = Work { demand, strategy, args, body, attempts: 1, stays: false };
        owner.submit(work, &mut Effects::default())
    }

    #[test]
    fn what_waits_only_for_tasks_of_its_node_waits_there_and_is_told_there_of_a_failure() {
        let mut owner = owner();
        let (first, _) = submit(&mut owner, Vec::new(), 1, false);
        let (second, out) = submit(&mut owner, vec![WorkArg::Object(first)], 1, false);
        let [(NODE, Message::Submit(spec))] = &out.sends[..] else { panic!("{:?}", out.sends) };
        assert!(matches!(&spec.args[..], [Arg::Object { id, .. }] if *id == first));
        assert_eq!(owner.missing(second), [first]);
        assert!(say(&mut owner, NODE, Message::Locate { object: first, not: Vec::new() }).sends.is_empty());
        let mut out = Effects::default();
        owner.cancel(first, &mut out);
        let told = |message: &Message| matches!(message, Message::Lost { object, why } if *object == first && why.is_cancelled());
        assert!(out.sends.iter().any(|(to, message)| *to == NODE && told(message)), "{:?}", out.sends);
    }

    #[test]
    fn small_tasks_go_to_the_nodes_that_were_granted_in_turn_and_what_waits_for_them_follows() {
        let mut owner = owner();
        let nodes = vec![(OTHER, 20), (NODE, 40)];
        say(&mut owner, HEAD, Message::Grant { nodes });
        let goes_to = |out: &Effects| match &out.sends[..] {
            // Half of them are used up.
            [(HEAD, Message::More), (to, Message::Granted(_))] | [(to, Message::Granted(_))] => (*to, true),
            [(to, Message::Submit(_))] => (*to, false),
            other => panic!("{other:?}"),
        };
        let mut objects = Vec::new();
        let mut sent = Vec::new();
        for _ in 0..62 {
            let (object, out) = submit(&mut owner, Vec::new(), 2, false);
            objects.push(object);
            sent.push(goes_to(&out));
        }
        let to = |node| sent.iter().filter(|to| **to == (node, true)).count();
        assert_eq!((to(OTHER), to(NODE), sent[61]), (20, 40, (NODE, false)));
        assert_eq!((sent[15].0, sent[16].0), (OTHER, NODE)); // after sixteen the next has its turn
        let on_other = objects[..8].iter().map(|object| WorkArg::Object(*object)).collect();
        assert_eq!(goes_to(&submit(&mut owner, on_other, 1, false).1), (OTHER, true));
        // From two nodes, it waits here.
        let on_both = vec![WorkArg::Object(objects[0]), WorkArg::Object(objects[61])];
        assert!(submit(&mut owner, on_both, 1, false).1.sends.is_empty());
        // They are lost with their node, and nothing more goes there.
        say(&mut owner, HEAD, Message::Grant { nodes: vec![(OTHER, 20)] });
        let out = say(&mut owner, HEAD, Message::Dead { process: OTHER });
        let again = out.sends.iter().filter(|(to, message)| matches!(message, Message::Submit(_)) && *to == NODE);
        assert_eq!(again.count(), 20);
        assert_eq!(goes_to(&submit(&mut owner, Vec::new(), 1, false).1), (NODE, false));
        // What is in use is granted anew, and what was granted long ago is not believed any more.
        say(&mut owner, HEAD, Message::Grant { nodes: vec![(ProcessId(3), 20)] });
        assert_eq!(goes_to(&submit(&mut owner, Vec::new(), 1, false).1), (ProcessId(3), true));
        let mut out = Effects::default();
        owner.tick(ms(50), &mut out);
        assert!(out.sends.iter().any(|(to, message)| *to == HEAD && matches!(message, Message::More)), "{out:?}");
        assert_eq!(goes_to(&submit(&mut owner, Vec::new(), 1, false).1), (ProcessId(3), true));
        say(&mut owner, HEAD, Message::Grant { nodes: vec![(ProcessId(3), 20)] });
        owner.tick(ms(100), &mut Effects::default());
        assert_eq!(goes_to(&submit(&mut owner, Vec::new(), 1, false).1), (NODE, false));
    }

    #[test]
    fn what_a_node_has_a_copy_of_goes_there_by_name() {
        let mut owner = owner();
        let copied = |bytes: usize| Outcome::Copied(vec![7; bytes].into());
        let (long, short) = (SHORT as usize + 1, SHORT as usize);
        let objects: Vec<_> = [long, short]
            .into_iter()
            .map(|bytes| {
                let (task, _) = submit(&mut owner, Vec::new(), 1, false);
                say(&mut owner, OTHER, Message::Finished { task, attempt: 1, outcome: copied(bytes) });
                assert!(matches!(owner.value(task), Some(Value::Inline(value)) if value.len() == bytes));
                task
            })
            .collect();
        say(&mut owner, HEAD, Message::Grant { nodes: vec![(NODE, 20), (OTHER, 20)] });
        let args = objects.iter().map(|object| WorkArg::Object(*object)).collect();
        let (_, out) = submit(&mut owner, args, 1, false);
        let [(OTHER, Message::Granted(spec))] = &out.sends[..] else { panic!("{out:?}") };
        assert!(matches!(&spec.args[0], Arg::Object { holders, .. } if holders[..] == [OTHER]), "{spec:?}");
        assert!(matches!(&spec.args[1], Arg::Inline(value) if value.len() == short), "{spec:?}");
        // Those without go to each node in turn.
        let to: Vec<_> = (0..17).map(|_| submit(&mut owner, Vec::new(), 1, false).1.sends[0].0).collect();
        assert_eq!((to[15], to[16]), (NODE, OTHER));
        // A node that dies takes nothing with it; and copies go with the value.
        say(&mut owner, HEAD, Message::Dead { process: OTHER });
        assert!(owner.value(objects[0]).is_some());
        // A node that has kept it to itself hears of it when it is wanted, before or after.
        for is_early in [false, true] {
            let (task, _) = submit(&mut owner, Vec::new(), 1, false);
            let mut out = Effects::default();
            if is_early {
                owner.want(task, &mut out);
            }
            let stored = Outcome::Stored { size: long as u64 };
            out.sends.extend(say(&mut owner, NODE, Message::Finished { task, attempt: 1, outcome: stored }).sends);
            owner.want(task, &mut out);
            owner.want(task, &mut out);
            let seen = out.sends.iter().filter(|(to, message)| *to == NODE && matches!(message, Message::Seen { .. }));
            assert_eq!(seen.count(), 1, "{out:?}");
        }
        // So it does of one of so many arguments that all go along.
        let (task, _) = submit(&mut owner, Vec::new(), 1, false);
        say(&mut owner, NODE, Message::Finished { task, attempt: 1, outcome: copied(long) });
        let args = std::iter::repeat_n(WorkArg::Object(task), MANY + 1).collect();
        let (user, out) = submit(&mut owner, args, 1, false);
        assert!(out.sends.iter().any(|(_, message)| {
            matches!(message, Message::Submit(spec) | Message::Granted(spec) if matches!(spec.args[..], [Arg::Inline(_), ..]))
        }), "{out:?}");
        finish(&mut owner, user, 1);
        release(&mut owner, user);
        let out = release(&mut owner, task);
        assert!(matches!(out.sends[..], [(NODE, Message::Free { unseen: false, .. })]), "{out:?}");
        // The node hears whether the value was looked at.
        for seen in [false, true] {
            let (task, _) = submit(&mut owner, Vec::new(), 1, false);
            say(&mut owner, NODE, Message::Finished { task, attempt: 1, outcome: copied(long) });
            let mut out = Effects::default();
            assert!(!seen || owner.want(task, &mut out));
            owner.release(task, &mut out);
            assert!(matches!(out.sends[..], [(NODE, Message::Free { unseen, .. })] if unseen != seen), "{out:?}");
        }
    }

    fn finish(owner: &mut Owner, task: ObjectId, attempt: u32) -> Effects {
        let outcome = Outcome::Inline(Arc::from([1]));
        say(owner, NODE, Message::Finished { task, attempt, outcome })
    }

    fn release(owner: &mut Owner, object: ObjectId) -> Effects {
        let mut out = Effects::default();
        owner.release(object, &mut out);
        out
    }

    fn attempt_of(out: &Effects) -> Option<u32> {
        out.sends.iter().find_map(|(_, message)| match message {
            Message::Submit(spec) | Message::Place(spec) => Some(spec.attempt),
            _ => None,
        })
    }

    #[test]
    fn a_claim_keeps_the_value_until_it_is_given_back() {
        let mut owner = owner();
        let object = owner.put(Arc::from([1]));
        let out = say(&mut owner, BORROWER, Message::Claim { object });
        assert!(matches!(out.sends[..], [(BORROWER, Message::Claimed { .. })]));
        assert!(release(&mut owner, object).freed.is_empty());
        say(&mut owner, BORROWER, Message::Claim { object });
        assert!(say(&mut owner, BORROWER, Message::Unclaim { object }).freed.is_empty());
        assert_eq!(say(&mut owner, BORROWER, Message::Unclaim { object }).freed, [object]);
        assert_eq!(owner.records(), 0);
        let out = say(&mut owner, BORROWER, Message::Claim { object });
        assert!(matches!(&out.sends[..], [(BORROWER, Message::Lost { .. })]));
    }

    #[test]
    fn the_claims_of_a_dead_borrower_count_for_a_while() {
        let mut owner = owner();
        let object = owner.put(Arc::from([1]));
        say(&mut owner, BORROWER, Message::Claim { object });
        release(&mut owner, object);
        say(&mut owner, HEAD, Message::Dead { process: BORROWER });
        let freed_at = |owner: &mut Owner, now| {
            let mut out = Effects::default();
            owner.tick(now, &mut out);
            out.freed
        };
        assert!(freed_at(&mut owner, ms(5)).is_empty());
        assert!(freed_at(&mut owner, ms(4) + GRACE).is_empty());
        assert_eq!(freed_at(&mut owner, ms(5) + GRACE), [object]);
    }

    #[test]
    fn what_is_expected_ends_by_hand_by_message_or_with_its_maker() {
        let mut owner = owner();
        let mut out = Effects::default();
        let local = owner.expect(None);
        owner.fulfil(local, Outcome::Stored { size: 9 }, &mut out);
        assert!(matches!(owner.value(local), Some(Value::Stored { size: 9, holders }) if holders == [NODE]));
        let called = owner.expect(Some(OTHER));
        assert_eq!(finish(&mut owner, called, 0).done, [(called, true)]);
        assert!(matches!(owner.value(called), Some(Value::Inline(value)) if value[..] == [1]));
        let moved = owner.expect(Some(OTHER));
        owner.moved(moved, BORROWER);
        assert!(say(&mut owner, HEAD, Message::Dead { process: OTHER }).done.is_empty());
        assert_eq!(say(&mut owner, HEAD, Message::Dead { process: BORROWER }).done, [(moved, false)]);
        assert!(matches!(owner.value(moved), Some(Value::Failed(why)) if matches!(*why, Error::Lost { .. })));
        // Who was dead already is noticed, too.
        let late = owner.expect(Some(OTHER));
        out = Effects::default();
        owner.tick(0, &mut out);
        assert_eq!(out.done, [(late, false)]);
    }

    #[test]
    fn a_crash_of_the_worker_takes_an_attempt_and_a_failure_names_its_cause() {
        let mut owner = owner();
        let crash =
            |task, attempt| Message::Finished { task, attempt, outcome: Outcome::Crashed { why: "signal 9".into() } };
        let (task, _) = submit(&mut owner, Vec::new(), 2, false);
        let dependent = submit_spread(&mut owner, task);
        let out = say(&mut owner, NODE, crash(task, 1));
        assert_eq!((attempt_of(&out), out.done.len()), (Some(2), 0));
        let out = say(&mut owner, NODE, crash(task, 2));
        assert_eq!(out.done, [(task, false), (dependent, false)]);
        let failure = owner.failure(dependent).unwrap();
        let Error::DependencyFailed { origin, cause } = &*failure else { panic!("{failure}") };
        assert_eq!(origin.id, dependent.number);
        assert!(matches!(&**cause, Error::Lost { reason, .. } if reason.contains("signal 9")), "{cause}");
    }

    #[test]
    fn the_chain_of_causes_has_an_end() {
        let mut owner = owner();
        let mut out = Effects::default();
        let first = submit(&mut owner, Vec::new(), 1, false).0;
        let mut last = first;
        for _ in 0..10_000 {
            last = submit_spread(&mut owner, last);
        }
        owner.cancel(first, &mut out);
        assert_eq!(out.done.len(), 10_001);
        let failure = owner.failure(last).unwrap();
        assert!(failure.is_cancelled() && failure.to_string().len() < 10_000, "{failure}");
    }

    #[test]
    fn a_foreign_argument_is_sent_by_name_and_is_not_pinned() {
        let mut owner = owner();
        let foreign = ObjectId { owner: OTHER, number: 5 };
        let (_, out) = submit(&mut owner, vec![WorkArg::Foreign(foreign)], 1, false);
        let [(NODE, Message::Submit(spec))] = &out.sends[..] else { panic!("{:?}", out.sends) };
        assert!(
            matches!(&spec.args[..], [Arg::Object { id, size: 0, holders }] if *id == foreign && holders.is_empty())
        );
        assert_eq!(owner.records(), 1);
    }

    #[test]
    fn a_task_in_a_bundle_goes_where_the_bundle_is() {
        let mut owner = owner();
        let mut out = Effects::default();
        let group = owner.create_group(vec![Demand::cpus(1_000)], Policy::Pack, None, &mut out);
        assert!(matches!(owner.group(group), Some(Group::Waiting)));
        let in_bundle = |owner: &mut Owner| {
            let (demand, body) = (Arc::new(Demand::cpus(1_000)), WorkBody::Alone(Blob::default()));
            let strategy = Strategy::Bundle { group, bundle: 0, node: None };
            let mut out = Effects::default();
            owner.submit(Work { demand, strategy, args: Vec::new(), body, attempts: 1, stays: false }, &mut out);
            out.sends.remove(0)
        };
        // The head has heard of the group first.
        assert!(matches!(in_bundle(&mut owner), (HEAD, Message::Place(_))));
        let ready = Message::GroupReady { group, places: vec![OTHER] };
        assert_eq!(say(&mut owner, HEAD, ready).groups, [group]);
        assert!(matches!(owner.group(group), Some(Group::Ready(places)) if *places == [OTHER]));
        assert!(matches!(in_bundle(&mut owner), (OTHER, Message::Submit(_))));
        say(&mut owner, HEAD, Message::Dead { process: OTHER });
        assert!(matches!(in_bundle(&mut owner), (HEAD, Message::Place(_))));
        say(&mut owner, HEAD, Message::GroupFailed { group, why: "no room".into() });
        let Some(Group::Failed(why)) = owner.group(group) else { panic!("it should have failed") };
        assert!(matches!(&**why, Error::Infeasible { reason, .. } if reason == "no room"));
        owner.remove_group(group, &mut out);
        assert!(owner.group(group).is_none());
    }

    #[test]
    fn what_is_expected_can_be_made_by_a_task_unless_it_has_failed() {
        let mut owner = owner();
        let work = |owner: &Owner| {
            let (demand, body) = (Arc::new(Demand::cpus(1_000)), WorkBody::Alone(Blob::default()));
            let args = vec![WorkArg::Object(owner.name(1))];
            Work { demand, strategy: Strategy::Default, args, body, attempts: 1, stays: false }
        };
        let argument = owner.put(Arc::from([1]));
        let mut out = Effects::default();
        let object = owner.expect(None);
        owner.submit_as(object, work(&owner), &mut out);
        assert!(matches!(&out.sends[..], [(NODE, Message::Submit(spec))] if spec.id == object));
        assert_eq!(finish(&mut owner, object, 1).done, [(object, true)]);
        let cancelled = owner.expect(None);
        out = Effects::default();
        owner.cancel(cancelled, &mut out);
        owner.submit_as(cancelled, work(&owner), &mut out);
        assert!(out.sends.is_empty() && out.done == [(cancelled, false)], "{out:?}");
        for object in [object, cancelled, argument] {
            release(&mut owner, object);
        }
        assert_eq!(owner.records(), 0);
    }

    fn split(owner: &mut Owner, attempts: u32) -> (ObjectId, [ObjectId; 2]) {
        let (demand, body) = (Arc::new(Demand::cpus(1_000)), WorkBody::Alone(Blob::default()));
        let work = Work { demand, strategy: Strategy::Default, args: Vec::new(), body, attempts, stays: false };
        let whole = owner.submit_split(work, 2, &mut Effects::default());
        (whole, [1, 2].map(|part| ObjectId { number: whole.number + part, ..whole }))
    }

    fn part_is(owner: &mut Owner, part: ObjectId, from: ProcessId, size: Option<u64>) -> Effects {
        let outcome = match size {
            Some(size) => Outcome::Stored { size },
            None => Outcome::Inline(Arc::from([1])),
        };
        say(owner, from, Message::Finished { task: part, attempt: 0, outcome })
    }

    #[test]
    fn parts_are_objects_of_their_own_and_nothing_is_left_of_them() {
        let mut owner = owner();
        let (whole, [first, second]) = split(&mut owner, 2);
        assert_eq!((owner.maker(first), owner.maker(whole)), (whole, whole));
        assert_eq!(part_is(&mut owner, first, NODE, None).done, [(first, true)]);
        assert_eq!(release(&mut owner, first).freed, [first]);
        assert_eq!(part_is(&mut owner, second, NODE, Some(9)).done, [(second, true)]);
        assert_eq!(finish(&mut owner, whole, 1).done, [(whole, true)]);
        release(&mut owner, whole);
        assert!(matches!(owner.value(second), Some(Value::Stored { .. })));
        release(&mut owner, second);
        assert_eq!(owner.records(), 0);
    }

    #[test]
    fn a_part_that_is_lost_is_made_again() {
        let mut owner = owner();
        let (whole, [first, second]) = split(&mut owner, 2);
        part_is(&mut owner, first, NODE, None);
        part_is(&mut owner, second, OTHER, Some(9));
        finish(&mut owner, whole, 1);
        release(&mut owner, whole);
        say(&mut owner, HEAD, Message::Dead { process: OTHER });
        let mut out = Effects::default();
        assert!(!owner.want(second, &mut out) && owner.is_told(second));
        assert_eq!(attempt_of(&out), Some(2));
        let out = part_is(&mut owner, first, NODE, Some(5)); // that one is there already
        assert!(out.sends.iter().any(|(to, message)| *to == NODE && matches!(message, Message::Free { .. })));
        part_is(&mut owner, second, NODE, Some(9));
        finish(&mut owner, whole, 2);
        assert!(matches!(owner.value(first), Some(Value::Inline(_))));
        assert!(matches!(owner.value(second), Some(Value::Stored { holders, .. }) if holders == [NODE]));
        // It has no attempt left.
        say(&mut owner, HEAD, Message::Dead { process: NODE });
        assert!(owner.want(second, &mut Effects::default()));
        assert!(matches!(owner.failure(second).as_deref(), Some(Error::Lost { .. })));
        release(&mut owner, first);
        release(&mut owner, second);
        assert_eq!(owner.records(), 0);
    }

    #[test]
    fn a_part_that_is_lost_before_its_task_has_ended_is_made_again() {
        let mut owner = owner();
        let (whole, [first, second]) = split(&mut owner, 2);
        part_is(&mut owner, first, OTHER, Some(9));
        say(&mut owner, HEAD, Message::Dead { process: OTHER });
        owner.want(first, &mut Effects::default());
        part_is(&mut owner, second, NODE, None);
        assert_eq!(attempt_of(&finish(&mut owner, whole, 1)), Some(2));
        part_is(&mut owner, first, NODE, None);
        assert_eq!(attempt_of(&finish(&mut owner, whole, 2)), None);
        assert!(owner.value(first).is_some());
        for object in [whole, first, second] {
            release(&mut owner, object);
        }
        assert_eq!(owner.records(), 0);
    }

    #[test]
    fn a_part_that_was_lost_and_comes_again_is_kept() {
        let mut owner = owner();
        let (whole, [first, second]) = split(&mut owner, 2);
        part_is(&mut owner, first, OTHER, Some(9));
        say(&mut owner, HEAD, Message::Dead { process: OTHER });
        let out = part_is(&mut owner, first, NODE, Some(9));
        assert!(out.sends.is_empty() && out.done.is_empty(), "{out:?}");
        part_is(&mut owner, second, NODE, None);
        assert_eq!(attempt_of(&finish(&mut owner, whole, 1)), None);
        assert!(matches!(owner.value(first), Some(Value::Stored { holders, .. }) if holders == [NODE]));
        for object in [whole, first, second] {
            release(&mut owner, object);
        }
        assert_eq!(owner.records(), 0);
    }

    #[test]
    fn parts_fail_and_are_cancelled_with_their_task() {
        let mut owner = owner();
        let (whole, [first, second]) = split(&mut owner, 1);
        let why = lost(whole, "a reason");
        let mut out =
            say(&mut owner, NODE, Message::Finished { task: whole, attempt: 1, outcome: Outcome::Failed(why) });
        out.done.sort_unstable();
        assert_eq!(out.done, [(whole, false), (first, false), (second, false)]);
        assert!(matches!(owner.failure(second).as_deref(), Some(Error::Lost { reason, .. }) if reason == "a reason"));
        let (again, [third, fourth]) = split(&mut owner, 1);
        let mut out = Effects::default();
        owner.cancel(third, &mut out);
        out.done.sort_unstable();
        assert_eq!(out.done, [(again, false), (third, false), (fourth, false)]);
        assert!(matches!(out.sends[..], [(NODE, Message::Cancel { task, .. })] if task == again), "{:?}", out.sends);
        assert!([third, fourth].iter().all(|part| owner.failure(*part).is_some_and(|why| why.is_cancelled())));
        for object in [whole, first, second, again, third, fourth] {
            release(&mut owner, object);
        }
        assert_eq!(owner.records(), 0);
    }

    #[test]
    fn what_stays_is_stopped_when_nobody_needs_it() {
        let mut owner = owner();
        let (actor, _) = submit(&mut owner, Vec::new(), 2, true);
        assert_eq!(owner.place(actor), None);
        assert_eq!(finish(&mut owner, actor, 1).done, [(actor, true)]);
        assert_eq!(owner.place(actor), Some(NODE));
        // The head's news of its place may come after that of its end.
        let placed = Message::Placed { task: actor, count: 1, attempt: 1, hop: 1, node: NODE, via: None };
        assert!(say(&mut owner, HEAD, placed).sends.is_empty());
        let out = release(&mut owner, actor);
        assert!(matches!(out.sends[..], [(NODE, Message::Cancel { .. })]), "{:?}", out.sends);
        assert_eq!((out.freed, owner.records()), (vec![actor], 0));
    }

    #[test]
    fn what_stayed_and_ended_is_restarted_while_it_has_attempts() {
        let mut owner = owner();
        let (actor, _) = submit(&mut owner, Vec::new(), 2, true);
        finish(&mut owner, actor, 1);
        let ended = |attempt| Message::Ended { task: actor, attempt, why: "signal 9".into() };
        assert!(say(&mut owner, OTHER, ended(1)).ended.is_empty());
        assert_eq!(say(&mut owner, NODE, ended(1)).ended, [(actor, 1)]);
        assert!(owner.place(actor).is_none() && owner.value(actor).is_none());
        let mut out = Effects::default();
        assert!(owner.restart(actor, &mut out));
        assert_eq!(attempt_of(&out), Some(2));
        // The first attempt had been on another node as well: only that one is told to go.
        let (attempt, outcome) = (1, Outcome::Inline(Arc::from([1])));
        let out = say(&mut owner, OTHER, Message::Finished { task: actor, attempt, outcome });
        assert!(matches!(out.sends[0], (OTHER, Message::Retire { attempt: 1, .. })) && out.done.is_empty());
        assert_eq!(finish(&mut owner, actor, 2).done, [(actor, true)]);
        assert_eq!(say(&mut owner, HEAD, Message::Dead { process: NODE }).ended, [(actor, 2)]);
        assert!(!owner.restart(actor, &mut Effects::default()));
        assert!(matches!(owner.failure(actor).as_deref(), Some(Error::Lost { .. })));
    }

    #[test]
    fn what_a_node_lacks_after_the_head_has_died_is_sent_again_and_does_not_count() {
        let mut owner = owner();
        let (task, _) = submit(&mut owner, Vec::new(), 1, false);
        let mut out = Effects::default();
        owner.join_again(&mut out);
        let [(HEAD, Message::JoinOwner { .. }), (NODE, Message::Check { tasks })] = &out.sends[..] else {
            panic!("{:?}", out.sends)
        };
        assert_eq!(*tasks, [(task, 1)]);
        let lacks = || Message::Lacks { task, attempt: 1 };
        assert!(say(&mut owner, OTHER, lacks()).sends.is_empty(), "it should not be there");
        let out = say(&mut owner, NODE, lacks());
        assert!(matches!(&out.sends[..], [(NODE, Message::Submit(spec))] if spec.attempt == 2));
        assert!(say(&mut owner, NODE, lacks()).sends.is_empty());
        // The first attempt turns up, and ends first.
        let finished = Message::Finished { task, attempt: 1, outcome: Outcome::Inline(Arc::from([7])) };
        let out = say(&mut owner, OTHER, finished);
        assert_eq!(out.done, [(task, true)]);
        assert!(out.sends.iter().any(|(to, message)| *to == NODE && matches!(message, Message::Cancel { .. })));
    }

    #[test]
    fn what_stays_is_taken_up_in_another_life_of_its_owner() {
        let mut first = owner();
        let (actor, _) = submit(&mut first, Vec::new(), 2, true);
        let finished = Message::Finished { task: actor, attempt: 1, outcome: Outcome::Inline(Arc::from([0])) };
        say(&mut first, NODE, finished);
        let (attempt, uncounted, there) = first.kept(actor).expect("it is known");
        assert_eq!((attempt, uncounted, there.as_ref().map(|there| there.0)), (1, 0, Some(NODE)));
        let work = first.records.get(actor.number).and_then(|record| record.work.clone()).expect("a task");
        for is_there in [true, false] {
            let mut second = owner();
            second.restore(actor.number, (*work).clone(), (attempt, uncounted), there.clone().filter(|_| is_there));
            let mut out = Effects::default();
            second.join_again(&mut out);
            assert!(second.next().0.number > actor.number);
            match is_there {
                true => {
                    assert_eq!(second.place(actor), Some(NODE));
                    let out = say(&mut second, NODE, Message::Lacks { task: actor, attempt: 1 });
                    assert_eq!(out.ended, [(actor, 1)]);
                    let mut out = Effects::default();
                    assert!(second.restart(actor, &mut out));
                }
                false => assert!(out.sends.iter().any(|(_, m)| matches!(m, Message::Submit(s) if s.attempt == 2))),
            }
        }
    }
}
