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
//! An object is needed while there are handles to it, or tasks under way that have it as an
//! argument (*pins*). When neither is left its value is freed on all nodes. Its *record* stays while
//! a record that stays might need it to be made again (*lineage*).
//!
//! # Invariants
//! - A task ends once. Results of late attempts are dropped, and their copies freed.
//! - A task whose node is dead is under way again, or has used up its attempts and failed.
//! - A record goes when it has no handles, no pins and no lineage; so all counts go to zero.

use super::{
    capacity::Demand,
    head::BEAT,
    protocol::{Arg, Effects, HEAD, Message, Nanos, ObjectId, Outcome, ProcessId, Strategy, TaskSpec},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What a task is made of, before its arguments are known.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) demand: Arc<Demand>,
    pub(crate) strategy: Strategy,
    /// Objects of this owner, or values.
    pub(crate) args: Vec<WorkArg>,
    pub(crate) body: Arc<[u8]>,
    /// How often it may be started, after the death of nodes.
    pub(crate) attempts: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum WorkArg {
    Value(Arc<[u8]>),
    Object(ObjectId),
}

impl Work {
    fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.args.iter().filter_map(|arg| match arg {
            WorkArg::Object(id) => Some(*id),
            WorkArg::Value(_) => None,
        })
    }
}

enum State {
    /// Its task waits for arguments, or is on its way; it holds pins on its arguments.
    Pending,
    /// `copies`: nodes that have it in their stores, too, because it was large when it was made before.
    Inline {
        value: Arc<[u8]>,
        copies: BTreeSet<ProcessId>,
    },
    Stored {
        size: u64,
        holders: BTreeSet<ProcessId>,
    },
    Failed(Arc<str>),
    /// Was stored; nobody has it now.
    Lost,
    /// Nobody needs the value; the record stays for lineage.
    Freed,
}

impl State {
    fn inline(value: Arc<[u8]>) -> Self {
        State::Inline { value, copies: BTreeSet::new() }
    }
}

/// What remains to be done before a call into the owner returns. A list, since chains of objects may
/// be longer than a stack is deep.
enum Step {
    /// Bring the task on its way.
    Launch(u64),
    /// Make it again, if it is not there.
    Revive(u64),
    /// Its node died: another attempt.
    Again(u64),
    /// This attempt of its task has ended so.
    End(u64, u32, State),
    /// Free it, if nobody needs it.
    Settle(u64),
}

struct Record {
    state: State,
    handles: u32,
    pins: u32,
    /// Records that stay, and need this one to be made again.
    lineage: u32,
    /// How it is made; `None`: it was put.
    work: Option<Work>,
    /// Of the attempt that is under way or ended.
    attempt: u32,
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
}

impl Record {
    fn is_under_way(&self) -> bool {
        matches!(self.state, State::Pending)
    }
}

pub(crate) struct Owner {
    id: ProcessId,
    /// The node that its tasks go to first; without one they go to the head.
    node: Option<ProcessId>,
    records: BTreeMap<u64, Record>,
    next: u64,
    dead: BTreeSet<ProcessId>,
    beat: Nanos,
    steps: Vec<Step>,
}

impl Owner {
    pub(crate) fn new(id: ProcessId, wish: Option<ProcessId>, out: &mut Effects) -> Self {
        out.send(HEAD, Message::JoinOwner { wish });
        Owner { id, node: None, records: BTreeMap::new(), next: 1, dead: BTreeSet::new(), beat: 0, steps: Vec::new() }
    }

    fn name(&self, number: u64) -> ObjectId {
        ObjectId { owner: self.id, number }
    }

    fn enter(&mut self, state: State, work: Option<Work>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.records.insert(
            number,
            Record {
                state,
                handles: 1,
                pins: 0,
                lineage: 0,
                work,
                attempt: 0,
                at: None,
                via: None,
                hop: 0,
                missing: BTreeSet::new(),
                dependents: BTreeSet::new(),
                asked_by: BTreeSet::new(),
                told: false,
            },
        );
        number
    }

    /// A small value, with one handle.
    pub(crate) fn put(&mut self, value: Arc<[u8]>) -> ObjectId {
        let number = self.enter(State::inline(value), None);
        self.name(number)
    }

    /// A value that was put into the store of this owner's node under [`Owner::next`], with one handle.
    pub(crate) fn put_stored(&mut self, size: u64) -> ObjectId {
        let state = match self.node {
            Some(node) => State::Stored { size, holders: BTreeSet::from([node]) },
            None => State::Lost, // the node has died since
        };
        let number = self.enter(state, None);
        self.name(number)
    }

    /// The name of the next object, and the node into whose store it may be put.
    pub(crate) fn next(&self) -> (ObjectId, Option<ProcessId>) {
        (self.name(self.next), self.node)
    }

    /// Submits a task; its result has one handle. The arguments are objects to which there are handles.
    pub(crate) fn submit(&mut self, work: Work, out: &mut Effects) -> ObjectId {
        for object in work.objects() {
            if let Some(record) = self.records.get_mut(&object.number) {
                record.lineage += 1;
            }
        }
        let number = self.enter(State::Pending, Some(work));
        self.steps.push(Step::Launch(number));
        self.run(out);
        self.name(number)
    }

    /// One more handle.
    pub(crate) fn retain(&mut self, object: ObjectId) {
        if let Some(record) = self.records.get_mut(&object.number) {
            record.handles += 1;
        }
    }

    /// One handle less.
    pub(crate) fn release(&mut self, object: ObjectId, out: &mut Effects) {
        if let Some(record) = self.records.get_mut(&object.number) {
            record.handles -= 1;
        }
        self.steps.push(Step::Settle(object.number));
        self.run(out);
    }

    /// Ends a task that has not ended, wherever it is; what depends on it fails.
    pub(crate) fn cancel(&mut self, object: ObjectId, out: &mut Effects) {
        let Some(record) = self.records.get(&object.number).filter(|record| record.is_under_way()) else { return };
        if let Some(node) = record.at {
            out.send(node, Message::Cancel { task: object });
        }
        self.steps.push(Step::End(object.number, record.attempt, State::Failed("it was cancelled".into())));
        self.run(out);
    }

    /// Makes what was lost again: somebody asks for its value. `true`: it is there, or has failed.
    pub(crate) fn want(&mut self, object: ObjectId, out: &mut Effects) -> bool {
        self.steps.push(Step::Revive(object.number));
        self.run(out);
        let state = self.records.get(&object.number).map(|record| &record.state);
        !matches!(state, Some(State::Pending | State::Lost))
    }

    /// Whether it has failed, and why.
    pub(crate) fn failure(&self, object: ObjectId) -> Option<Arc<str>> {
        match self.records.get(&object.number).map(|record| &record.state) {
            Some(State::Failed(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// The nodes that have its value; `None` if it is not stored.
    pub(crate) fn holders(&self, object: ObjectId) -> Option<&BTreeSet<ProcessId>> {
        match self.records.get(&object.number).map(|record| &record.state) {
            Some(State::Stored { holders, .. }) => Some(holders),
            _ => None,
        }
    }

    pub(crate) fn handle(&mut self, from: ProcessId, message: Message, out: &mut Effects) {
        if self.dead.contains(&from) {
            return; // whatever it did is done again
        }
        match message {
            Message::Placed { task, attempt, hop, node, via } => {
                self.placed(task.number, attempt, hop, (node, via), out);
            }
            Message::Unplaceable { task, attempt, why } => {
                self.steps.push(Step::End(task.number, attempt, State::Failed(why)));
            }
            Message::Finished { task, attempt, outcome } => self.finished(from, task.number, attempt, outcome, out),
            Message::Locate { object, not } => self.locate(from, object.number, &not, out),
            Message::Holds { object, attempt } => {
                match self.records.get_mut(&object.number).map(|record| &mut record.state) {
                    Some(State::Stored { holders: nodes, .. } | State::Inline { copies: nodes, .. }) => {
                        nodes.insert(from);
                    }
                    _ => out.send(from, Message::Free { object, attempt }),
                }
            }
            Message::Home { node } => self.node = Some(node),
            Message::Dead { process } => self.buried(process),
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
                Step::Again(number) => self.again(number),
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
    }

    /// Brings a task on its way, as soon as its arguments are there.
    fn launch(&mut self, number: u64, out: &mut Effects) {
        let Some(work) = self.records.get(&number).and_then(|record| record.work.clone()) else { return };
        let mut missing = BTreeSet::new();
        let mut failed = None;
        for object in work.objects() {
            let Some(arg) = self.records.get_mut(&object.number) else { continue };
            arg.pins += 1;
            match &arg.state {
                State::Pending | State::Lost | State::Freed => {
                    arg.dependents.insert(number);
                    missing.insert(object.number);
                }
                State::Failed(why) => failed = Some(format!("its argument {object:?} failed: {why}")),
                State::Inline { .. } | State::Stored { .. } => {}
            }
        }
        let Some(record) = self.records.get_mut(&number) else { return };
        record.state = State::Pending;
        record.attempt += 1;
        (record.at, record.via, record.hop) = (None, None, 0);
        record.missing = missing.clone();
        match failed {
            Some(why) => self.steps.push(Step::End(number, record.attempt, State::Failed(why.into()))),
            None if missing.is_empty() => self.send(number, out),
            None => self.steps.extend(missing.into_iter().map(Step::Revive)),
        }
    }

    fn send(&mut self, number: u64, out: &mut Effects) {
        let id = self.name(number);
        let Some(record) = self.records.get(&number) else { return };
        let (attempt, Some(work)) = (record.attempt, &record.work) else { return };
        let args = work.args.iter().map(|arg| match arg {
            WorkArg::Value(value) => Arg::Inline(value.clone()),
            WorkArg::Object(object) => match self.records.get(&object.number).map(|record| &record.state) {
                Some(State::Inline { value, .. }) => Arg::Inline(value.clone()),
                Some(State::Stored { size, holders }) => {
                    Arg::Object { id: *object, size: *size, holders: holders.iter().copied().collect() }
                }
                // It was lost since; the node asks for it.
                _ => Arg::Object { id: *object, size: 0, holders: Vec::new() },
            },
        });
        let spec = TaskSpec {
            id,
            attempt,
            hop: 0,
            demand: work.demand.clone(),
            strategy: work.strategy.clone(),
            args: args.collect(),
            body: work.body.clone(),
        };
        let node = self.node;
        if let Some(record) = self.records.get_mut(&number) {
            record.at = node;
        }
        match node {
            Some(node) => out.send(node, Message::Submit(spec)),
            None => out.send(HEAD, Message::Place(spec)),
        }
    }

    fn placed(
        &mut self,
        number: u64,
        attempt: u32,
        hop: u32,
        (node, via): (ProcessId, Option<ProcessId>),
        out: &mut Effects,
    ) {
        match self.records.get_mut(&number) {
            Some(record) if record.is_under_way() && record.attempt == attempt => {
                // News of an earlier hop may come later, on another link.
                if hop < record.hop || hop == record.hop && via.is_some() {
                    return;
                }
                (record.at, record.via, record.hop) = (Some(node), via, hop);
                if [Some(node), via].into_iter().flatten().any(|process| self.dead.contains(&process)) {
                    self.steps.push(Step::Again(number));
                }
            }
            Some(record) if record.is_under_way() => {} // an attempt that was thought lost: who is first wins
            // It was cancelled, or another attempt was first, before this place was known.
            _ => out.send(node, Message::Cancel { task: self.name(number) }),
        }
    }

    fn again(&mut self, number: u64) {
        let Some(record) = self.records.get_mut(&number).filter(|record| record.is_under_way()) else { return };
        let (attempt, attempts) = (record.attempt, record.work.as_ref().map_or(0, |work| work.attempts));
        if attempt >= attempts {
            let why = format!("the node that ran it died, in attempt {attempt} of {attempts}");
            return self.steps.push(Step::End(number, attempt, State::Failed(why.into())));
        }
        // Its own pins are taken before these go.
        self.unpin(number);
        self.steps.push(Step::Launch(number));
    }

    /// Gives up the pins of an attempt.
    fn unpin(&mut self, number: u64) {
        let work = self.records.get(&number).and_then(|record| record.work.clone());
        for arg in work.iter().flat_map(Work::objects) {
            if let Some(arg) = self.records.get_mut(&arg.number) {
                arg.pins -= 1;
            }
            self.steps.push(Step::Settle(arg.number));
        }
    }

    fn finished(&mut self, from: ProcessId, number: u64, attempt: u32, outcome: Outcome, out: &mut Effects) {
        let object = self.name(number);
        let under_way = self.records.get(&number).filter(|record| record.is_under_way()).map(|record| record.attempt);
        let state = match (under_way, outcome) {
            // What an earlier attempt lacks, a later one may have.
            (Some(current), Outcome::Failed(_)) if attempt < current => return,
            (Some(_), Outcome::Inline(value)) => State::inline(value),
            (Some(_), Outcome::Stored { size }) => State::Stored { size, holders: BTreeSet::from([from]) },
            (Some(_), Outcome::Failed(why)) => State::Failed(why),
            // Another attempt was first.
            (None, Outcome::Stored { .. }) => {
                if !self.holders(object).is_some_and(|holders| holders.contains(&from)) {
                    out.send(from, Message::Free { object, attempt });
                }
                return;
            }
            (None, _) => return,
        };
        self.steps.push(Step::End(number, attempt, state));
    }

    /// Its task has ended, with this attempt or an earlier one.
    fn end(&mut self, number: u64, attempt: u32, state: State, out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(&number) else { return };
        if !record.is_under_way() || attempt > record.attempt {
            return;
        }
        if attempt < record.attempt
            && let Some(node) = record.at
        {
            out.send(node, Message::Cancel { task: object });
        }
        let well = !matches!(state, State::Failed(_));
        record.state = state;
        if !std::mem::replace(&mut record.told, true) {
            out.done.push((object, well));
        }
        let missing = std::mem::take(&mut record.missing);
        for arg in missing {
            if let Some(arg) = self.records.get_mut(&arg) {
                arg.dependents.remove(&number);
            }
        }
        self.steps.push(Step::Settle(number));
        self.unpin(number);
        self.there(number, out);
    }

    /// It is there, or has failed: tells those that wait for it.
    fn there(&mut self, number: u64, out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(&number) else { return };
        let dependents = std::mem::take(&mut record.dependents);
        let askers = std::mem::take(&mut record.asked_by);
        let failure = match &record.state {
            State::Failed(why) => Some(why.clone()),
            _ => None,
        };
        for asker in askers {
            self.locate(asker, number, &[], out);
        }
        for dependent in dependents {
            let Some(record) = self.records.get_mut(&dependent) else { continue };
            if !record.missing.remove(&number) {
                continue;
            }
            match &failure {
                Some(why) => {
                    let why = format!("its argument {object:?} failed: {why}");
                    self.steps.push(Step::End(dependent, record.attempt, State::Failed(why.into())));
                }
                None if record.missing.is_empty() => self.send(dependent, out),
                None => {}
            }
        }
    }

    fn revive(&mut self, number: u64, out: &mut Effects) {
        let Some(record) = self.records.get_mut(&number) else { return };
        if !matches!(record.state, State::Lost | State::Freed) {
            return;
        }
        let why = match &record.work {
            Some(work) if record.attempt < work.attempts => return self.steps.push(Step::Launch(number)),
            Some(work) => {
                format!("the nodes that had it died, and its task has used its {} attempts", work.attempts)
            }
            None => "it was put on a node that died".to_owned(),
        };
        record.state = State::Failed(why.into());
        self.there(number, out);
    }

    /// A node asks who has an object; those in `not` have not.
    fn locate(&mut self, from: ProcessId, number: u64, not: &[ProcessId], out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(&number) else {
            return out.send(from, Message::Lost { object, why: "nobody has a handle to it".into() });
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
                out.send(from, Message::Pushed { object, size: value.len() as u64, attempt: record.attempt })
            }
            State::Failed(why) => out.send(from, Message::Lost { object, why: why.clone() }),
            State::Pending => {
                record.asked_by.insert(from);
            }
            State::Lost | State::Freed => {
                record.asked_by.insert(from);
                self.steps.push(Step::Revive(number));
            }
        }
    }

    fn buried(&mut self, process: ProcessId) {
        self.dead.insert(process);
        if self.node == Some(process) {
            self.node = None; // until the head names another
        }
        for (number, record) in &mut self.records {
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
                self.steps.push(Step::Again(*number));
            }
        }
    }

    /// Frees the value, and drops the record, if nobody needs them.
    fn settle(&mut self, number: u64, out: &mut Effects) {
        let object = self.name(number);
        let Some(record) = self.records.get_mut(&number) else { return };
        if record.handles > 0 || record.pins > 0 || record.is_under_way() {
            return;
        }
        if let State::Stored { holders: nodes, .. } | State::Inline { copies: nodes, .. } = &record.state {
            for node in nodes {
                out.send(*node, Message::Free { object, attempt: record.attempt });
            }
        }
        record.state = State::Freed;
        if record.lineage == 0 {
            let work = self.records.remove(&number).and_then(|record| record.work);
            for arg in work.iter().flat_map(Work::objects) {
                if let Some(arg) = self.records.get_mut(&arg.number) {
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
