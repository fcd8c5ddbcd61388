//! What a process does with its handles: a model of what goes around an owner. The rules are those
//! that make handles safe to pass on:
//!
//! 1. Who submits a task keeps all handles that it passes with it until the task has ended.
//! 2. A worker that keeps a handle it got with a task claims it, and waits for the confirmation (or
//!    the owner's death) before it says that the task has finished.
//! 3. Handles in a result are claimed by who submitted the task before the worker lets go of its
//!    own, and kept while the result has a value.
//! 4. Who takes handles out of a value keeps the handle of the value until it has claimed them.

use super::random::Random;
use crate::{
    cluster::{
        owner::{NO_HANDLE, Owner, Value, Work, WorkArg, WorkBody},
        pack::{self, Common, Member},
        protocol::{Effects, Message, Nanos, ObjectId, ProcessId, TaskSpec},
        wire::Blob,
    },
    error::Error,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

/// Whether this says that nobody has a handle to the object.
pub(super) fn is_forgotten(why: &Error, object: ObjectId) -> bool {
    matches!(why.root_cause(), Error::Lost { origin, reason } if reason == NO_HANDLE && origin.name == format!("{object:?}"))
}

/// Handles as bytes.
pub(super) fn to_bytes(handles: &[ObjectId]) -> Arc<[u8]> {
    handles.iter().flat_map(|id| [id.owner.0, id.number]).flat_map(u64::to_le_bytes).collect()
}

/// What no other object's value has.
fn mark(object: ObjectId) -> [u8; 8] {
    Random::new(object.owner.0 << 32 ^ object.number).next().to_le_bytes()
}

/// The value of an object, with these handles inside and its mark behind them; without, so many bytes of its mark, over and
/// over.
pub(super) fn value_of(object: ObjectId, handles: &[ObjectId], length: usize) -> Arc<[u8]> {
    let mark = mark(object);
    match handles {
        [] => mark.into_iter().cycle().take(length).collect(),
        _ => [&to_bytes(handles)[..], &mark].concat().into(),
    }
}

/// Whether this is a value of this object.
pub(super) fn is_value_of(object: ObjectId, bytes: &[u8]) -> bool {
    let (_, rest) = bytes.as_chunks::<16>();
    !rest.is_empty() && rest.iter().eq(mark(object).iter().cycle().take(rest.len()))
}

/// The handles in a value, or in an argument, which has no mark. Bytes of other lengths have none.
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<ObjectId> {
    let (ids, rest) = bytes.as_chunks::<16>();
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let id = |id: &[u8; 16]| ObjectId { owner: ProcessId(word(&id[..8])), number: word(&id[8..]) };
    if matches!(rest.len(), 0 | 8) { ids.iter().map(id).collect() } else { Vec::new() }
}

/// What keeps an object while the handle to it is not claimed yet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guard {
    /// The task that it came with.
    Task(ObjectId),
    /// The value that it was in.
    Value(ObjectId),
    /// The worker that ran this attempt of a task.
    Worker(ProcessId, (ObjectId, u32)),
    /// Another handle of this process.
    Ours,
}

/// Handles to an object of another process.
struct Held {
    handles: u32,
    guard: Guard,
    /// It was claimed, and the owner has answered.
    claimed: bool,
    confirmed: bool,
    /// The answer was that there is no such object.
    gone: bool,
}

/// Something to be done when claims are confirmed.
struct Wait {
    objects: BTreeSet<ObjectId>,
    /// This one has to say that it took what is in the result.
    taker: Option<ProcessId>,
    then: Then,
}

enum Then {
    /// Tell the node that this attempt has ended.
    Finish((ObjectId, u32)),
    /// Tell the worker that what is in this result is claimed.
    Took(ProcessId, ObjectId),
    /// Let go of a value that handles were taken from.
    Drop(ObjectId),
}

pub(super) struct Shell {
    id: ProcessId,
    pub(super) owner: Owner,
    /// Handles that the program has, one for each entry.
    pub(super) state: Vec<ObjectId>,
    /// The actors that it has started.
    pub(super) actors: Vec<ObjectId>,
    held: BTreeMap<ObjectId, Held>,
    /// Handles in the values of its own objects.
    contents: BTreeMap<ObjectId, Vec<ObjectId>>,
    /// Handles that were passed with tasks.
    args: BTreeMap<ObjectId, Vec<ObjectId>>,
    /// Values that are asked for, each with a handle.
    wants: BTreeSet<ObjectId>,
    waits: Vec<Wait>,
    dead: BTreeSet<ProcessId>,
    /// Submitted and not ended.
    pub(super) pending: BTreeSet<ObjectId>,
    /// Those of them that have a handle until they have ended, so that it is seen why.
    watched: BTreeSet<ObjectId>,
    /// Parts of results, of all that it has ever submitted.
    pub(super) parts: BTreeSet<ObjectId>,
    /// These handles turned out to be to nothing.
    pub(super) suspects: Vec<(ObjectId, Guard)>,
    /// Attempts whose handles are claimed.
    pub(super) ready: Vec<(ObjectId, u32)>,
}

impl Shell {
    pub(super) fn new(id: ProcessId, owner: Owner) -> Self {
        Shell {
            id,
            owner,
            state: Vec::new(),
            actors: Vec::new(),
            held: BTreeMap::new(),
            contents: BTreeMap::new(),
            args: BTreeMap::new(),
            wants: BTreeSet::new(),
            waits: Vec::new(),
            dead: BTreeSet::new(),
            pending: BTreeSet::new(),
            watched: BTreeSet::new(),
            parts: BTreeSet::new(),
            suspects: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// One more handle, whose object is kept by `guard` until it is claimed. `false`: it is of this
    /// process, and is gone.
    pub(super) fn hold(&mut self, object: ObjectId, guard: Guard) -> bool {
        if object.owner != self.id {
            let held = Held { handles: 0, guard, claimed: false, confirmed: false, gone: false };
            self.held.entry(object).or_insert(held).handles += 1;
            return true;
        }
        let is_there = self.owner.keeps(object);
        match is_there {
            true => self.owner.retain(object),
            false => self.suspects.push((object, guard)),
        }
        is_there
    }

    fn claim(&mut self, object: ObjectId, out: &mut Effects) {
        if let Some(held) = self.held.get_mut(&object)
            && !mem::replace(&mut held.claimed, true)
        {
            out.send(object.owner, Message::Claim { object });
        }
    }

    pub(super) fn drop(&mut self, object: ObjectId, out: &mut Effects) {
        if object.owner == self.id {
            return self.owner.release(object, out);
        }
        if let Some(held) = self.held.get_mut(&object) {
            held.handles -= 1;
            self.tidy(object, out);
        }
    }

    /// Takes the claim back when there is no handle; but not before it was confirmed, or the confirmation
    /// could be taken for that of the next claim.
    fn tidy(&mut self, object: ObjectId, out: &mut Effects) {
        let Some(held) = self.held.get(&object).filter(|held| held.handles == 0) else { return };
        match (held.claimed, held.confirmed) {
            (true, true) if !held.gone => out.send(object.owner, Message::Unclaim { object }),
            (true, false) if !self.dead.contains(&object.owner) => return,
            _ => {}
        }
        self.held.remove(&object);
    }

    /// Whether it has a handle that keeps the object by itself.
    pub(super) fn has(&self, object: ObjectId) -> bool {
        self.held.get(&object).is_some_and(|held| held.handles > 0 && held.confirmed && !held.gone)
    }

    /// The handles that were passed with a task, until it has ended.
    pub(super) fn args(&self, task: ObjectId) -> Option<&[ObjectId]> {
        self.args.get(&task).map(Vec::as_slice)
    }

    /// Whether it has a handle for the one in this value.
    pub(super) fn keeps_inside(&self, value: ObjectId, object: ObjectId) -> bool {
        self.contents.get(&value).is_some_and(|inside| inside.contains(&object))
    }

    /// Submits a task. `inside` are the handles in the values among its arguments.
    pub(super) fn submit(&mut self, work: Work, parts: u8, mut inside: Vec<ObjectId>, out: &mut Effects) -> ObjectId {
        inside.extend(work.args.iter().filter_map(|arg| match arg {
            WorkArg::Foreign(object) => Some(*object),
            _ => None,
        }));
        inside.retain(|object| self.hold(*object, Guard::Ours));
        let stays = work.stays;
        let task = match parts {
            0 => self.owner.submit(work, out),
            parts => self.owner.submit_split(work, parts.into(), out),
        };
        let parts = (1..=u64::from(parts)).map(|part| ObjectId { number: task.number + part, ..task });
        self.pending.extend(parts.clone());
        self.parts.extend(parts.clone());
        self.state.extend(parts);
        self.actors.extend(stays.then_some(task));
        self.args.insert(task, inside);
        self.pending.insert(task);
        self.state.push(task);
        self.watch(task);
        task
    }

    /// Of every second task it keeps a handle.
    fn watch(&mut self, task: ObjectId) {
        if task.number.is_multiple_of(2) && self.pending.contains(&task) && self.watched.insert(task) {
            self.owner.retain(task);
        }
    }

    /// Submits tasks with these values. Those that go to one node in a row travel as a pack.
    pub(super) fn submit_packs(
        &mut self,
        (common, work): (&Common, &Arc<Work>),
        values: Vec<Bytes>,
        out: &mut Effects,
    ) -> Vec<ObjectId> {
        let (mut tasks, mut packed) = (Vec::new(), Vec::new());
        for (number, value) in (0..).zip(values) {
            let member = Member { number, value };
            let task = match self.owner.goes_to(out) {
                Some(to) => {
                    let task = self.owner.submit_packed(to.0, work.clone(), member.clone());
                    packed.push((to, task, member));
                    task
                }
                None => {
                    let body = WorkBody::Alone(common.order(&member));
                    self.owner.submit(Work { body, ..(**work).clone() }, out)
                }
            };
            self.args.insert(task, Vec::new());
            self.pending.insert(task);
            self.state.push(task);
            self.watch(task);
            tasks.push(task);
        }
        for pack in
            packed.chunk_by(|(to, task, _), (to_next, next, _)| (*to, task.number + 1) == (*to_next, next.number))
        {
            let ((to, is_granted), id, _) = pack[0];
            let mut body = Vec::new();
            for (at, (.., member)) in pack.iter().enumerate() {
                pack::write(common, member.number, &member.value, at == 0, &mut body);
            }
            let (demand, strategy, args) = (work.demand.clone(), work.strategy.clone(), Vec::new());
            let (count, body) = (pack.len() as u32, Blob(body.into()));
            let pack = TaskSpec { id, attempt: 1, hop: 0, count, demand, strategy, args, stays: false, body };
            for spec in if count > 1 { vec![pack] } else { pack.unpack() } {
                out.send(to, if is_granted { Message::Granted(spec) } else { Message::Submit(spec) });
            }
        }
        tasks
    }

    /// Its own object has a value with these handles inside, of which it has others.
    pub(super) fn enclose(&mut self, object: ObjectId, inside: &[ObjectId], guard: Guard) {
        let held = inside.iter().copied().filter(|inner| self.hold(*inner, guard));
        let held: Vec<_> = held.collect();
        self.contents.entry(object).or_default().extend(held);
    }

    /// A task has ended; `false`: it had before.
    pub(super) fn ended(&mut self, task: ObjectId, out: &mut Effects) -> bool {
        for object in self.args.remove(&task).unwrap_or_default() {
            self.drop(object, out);
        }
        if self.watched.remove(&task) {
            self.owner.release(task, out);
        }
        self.pending.remove(&task)
    }

    /// The value of its own object is gone.
    pub(super) fn freed(&mut self, object: ObjectId, out: &mut Effects) {
        for inner in self.contents.remove(&object).unwrap_or_default() {
            self.drop(inner, out);
        }
    }

    /// Asks for the value of an object that it has a handle to.
    pub(super) fn get(&mut self, object: ObjectId, node: Option<ProcessId>, out: &mut Effects) {
        if self.wants.contains(&object) {
            return;
        }
        let value = self.owner.value(object);
        if object.owner == self.id && !matches!(value, Some(Value::Inline(_) | Value::Stored { .. })) {
            return;
        }
        if !self.hold(object, Guard::Ours) {
            return;
        }
        match value {
            Some(Value::Inline(bytes)) => {
                self.owner.seen(object);
                self.open(object, &from_bytes(&bytes), out);
            }
            value => {
                self.wants.insert(object);
                let holders = match value {
                    Some(Value::Stored { holders, .. }) => holders,
                    _ => Vec::new(),
                };
                if let Some(node) = node {
                    out.send(node, Message::Want { object, holders });
                }
            }
        }
    }

    /// Takes the handles out of a value, of whose object it has a handle for this.
    fn open(&mut self, object: ObjectId, inside: &[ObjectId], out: &mut Effects) {
        let held = self.unpack(object, inside, out);
        self.state.extend(held);
        self.wait(inside, None, Then::Drop(object), out);
    }

    /// Before an attempt is said to have ended claims what it keeps of what it got, and waits until all
    /// claims are confirmed, and for who takes what is in its result.
    pub(super) fn finish(
        &mut self,
        key: (ObjectId, u32),
        (kept, got): (&[ObjectId], &[ObjectId]),
        taker: Option<ProcessId>,
        out: &mut Effects,
    ) {
        let taker = taker.filter(|taker| !self.dead.contains(taker));
        kept.iter().for_each(|object| self.claim(*object, out));
        self.wait(got, taker, Then::Finish(key), out);
    }

    /// Takes handles out of an argument: they are claimed at once.
    pub(super) fn unpack(&mut self, object: ObjectId, inside: &[ObjectId], out: &mut Effects) -> Vec<ObjectId> {
        let held = inside.iter().copied().filter(|inner| self.hold(*inner, Guard::Value(object)));
        let held: Vec<_> = held.collect();
        held.iter().for_each(|inner| self.claim(*inner, out));
        held
    }

    /// An attempt was stopped.
    pub(super) fn stop(&mut self, key: (ObjectId, u32)) {
        self.waits.retain(|wait| !matches!(wait.then, Then::Finish(other) if other == key));
    }

    fn wait(&mut self, objects: &[ObjectId], taker: Option<ProcessId>, then: Then, out: &mut Effects) {
        self.waits.push(Wait { objects: objects.iter().copied().collect(), taker, then });
        self.go_on(out);
    }

    /// Does what waited for claims that are confirmed now.
    fn go_on(&mut self, out: &mut Effects) {
        let mut at = 0;
        while at < self.waits.len() {
            let wait = &mut self.waits[at];
            let (held, dead) = (&self.held, &self.dead);
            wait.objects.retain(|object| {
                !dead.contains(&object.owner) && held.get(object).is_some_and(|held| held.claimed && !held.confirmed)
            });
            wait.taker = wait.taker.filter(|taker| !dead.contains(taker));
            if !wait.objects.is_empty() || wait.taker.is_some() {
                at += 1;
                continue;
            }
            match self.waits.swap_remove(at).then {
                Then::Finish(key) => self.ready.push(key),
                Then::Took(worker, task) => out.send(worker, Message::Took { task }),
                Then::Drop(object) => self.drop(object, out),
            }
        }
    }

    /// `parcel`: the handles in the value that comes with the message.
    pub(super) fn handle(&mut self, from: ProcessId, message: Message, parcel: &[ObjectId], out: &mut Effects) {
        if self.dead.contains(&from) {
            return;
        }
        match message {
            Message::Claimed { object } => {
                if let Some(held) = self.held.get_mut(&object) {
                    held.confirmed = true;
                    self.tidy(object, out);
                }
            }
            Message::Lost { object, .. } if from == object.owner => {
                if let Some(held) = self.held.get_mut(&object) {
                    self.suspects.push((object, held.guard));
                    (held.confirmed, held.gone) = (true, true);
                    self.tidy(object, out);
                }
            }
            Message::Lost { object, why } => {
                if self.has(object) && is_forgotten(&why, object) {
                    self.suspects.push((object, Guard::Ours));
                }
                if self.wants.remove(&object) {
                    self.drop(object, out);
                }
            }
            Message::Here { object } => {
                if self.wants.remove(&object) {
                    self.open(object, parcel, out);
                }
            }
            Message::Inside { task, attempt, objects } => {
                // What was lost may be made again, with other handles inside: all are kept.
                if self.owner.keeps(task) {
                    self.enclose(task, &objects, Guard::Worker(from, (task, attempt)));
                    objects.iter().for_each(|object| self.claim(*object, out));
                    self.wait(&objects, None, Then::Took(from, task), out);
                } else {
                    out.send(from, Message::Took { task });
                }
            }
            Message::Took { task } => {
                for wait in &mut self.waits {
                    if matches!(wait.then, Then::Finish((other, _)) if other == task) {
                        wait.taker = None;
                    }
                }
            }
            Message::Home { node } => {
                for object in &self.wants {
                    out.send(node, Message::Want { object: *object, holders: Vec::new() });
                }
                self.owner.handle(from, Message::Home { node }, out);
            }
            Message::Dead { process } => {
                self.dead.insert(process);
                let theirs = self.held.keys().filter(|object| object.owner == process).copied();
                theirs.collect::<Vec<_>>().into_iter().for_each(|object| self.tidy(object, out));
                self.owner.handle(from, Message::Dead { process }, out);
            }
            message => self.owner.handle(from, message, out),
        }
        self.go_on(out);
    }

    pub(super) fn tick(&mut self, now: Nanos, out: &mut Effects) {
        self.owner.tick(now, out);
    }

    /// Whether nothing is asked for or waited for.
    pub(super) fn is_idle(&self) -> bool {
        self.wants.is_empty() && self.waits.is_empty() && self.pending.is_empty()
    }

    /// What is left when it has let go of everything.
    pub(super) fn leftovers(&self) -> Option<String> {
        let counts = [
            ("records", self.owner.records()),
            ("handles of others' objects", self.held.len()),
            ("values with handles inside", self.contents.len()),
            ("tasks with handles", self.args.len()),
            ("open questions", self.wants.len() + self.waits.len()),
        ];
        counts.into_iter().find(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}"))
    }
}
