//! Cycles of waits over several processes.
//!
//! What a process knows of waits is in its own tables. So a process of which a task has waited for a while *looks*: it
//! follows what the task waits for, from process to process. It asks an object's owner, which knows of its arguments,
//! of the actor that it calls, and of its place; and the process at that place, which knows who is in the way there,
//! and what those wait for in turn. From the answers it makes a [`Graph`].
//!
//! The answers are of different moments. So a cycle is believed only when a second look, begun after the first had
//! ended, finds the same: every wait has a number, so what both have seen was there all the time in between, and all
//! of it at the moment between the two. Such a cycle stays until one of its waits fails. All who look choose the same
//! wait; but a cycle may grow into a larger one while they look. So the head has the last word, which of two cycles
//! that share a wait ends only one ([`Verdicts`]).
//!
//! A wait is looked at after some milliseconds, and then at ever longer intervals, because a call that was on its way
//! may have closed the cycle meanwhile. Who does not wait for long pays nothing.

mod graph;
#[cfg(test)]
mod tests;

use super::{
    actors::{RemoteActor, View},
    client::Client,
    protocol::{HEAD, Nanos, ObjectId, ProcessId, ms, us},
    wire::Letter,
};
use crate::local::{
    node::Node,
    timer,
    wait::elsewhere::{self, Picture},
};
use graph::{Cycle, Graph};
pub(crate) use graph::{Entry, Need, Spot, Ticket};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

/// So often a look is repeated at once because what it has seen did not stay.
const ROUNDS: u32 = 4;
/// A look that has not got its answers by then is given up: somebody has died.
const PATIENCE: Nanos = ms(5_000);

/// How long a process waits with the next look for each entry that it has read: several times as long as that takes.
const REST: Nanos = us(200);
/// So many waits that have failed are known.
const KNOWN: usize = 100_000;

/// The looks of one process, one at a time.
#[derive(Default)]
pub(crate) struct Looks {
    number: u64,
    current: Option<Look>,
    /// Not before.
    next: Nanos,
}

struct Look {
    began: Nanos,
    /// The waits that it is about.
    waits: Vec<u64>,
    graph: Graph,
    asked: BTreeSet<(ProcessId, ObjectId)>,
    /// Those who have not answered.
    open: BTreeSet<(ProcessId, ObjectId)>,
    /// What was found the last time.
    before: Vec<Cycle>,
    round: u32,
    /// Entries, of all rounds.
    read: u64,
}

/// What is to be done for a look.
#[derive(Debug)]
pub(crate) enum Act {
    Ask {
        to: ProcessId,
        look: u64,
        objects: Vec<ObjectId>,
    },
    /// Once more, from these waits.
    Again(Vec<u64>),
    /// The head is told.
    Found(Cycle),
}

impl Looks {
    /// When the next may begin.
    pub(crate) fn may_begin(&self) -> Nanos {
        self.current.as_ref().map_or(self.next, |look| look.began + PATIENCE)
    }

    /// Follows these waits, which are here, as `entries` say.
    pub(crate) fn begin(&mut self, now: Nanos, waits: Vec<u64>, entries: Vec<Entry>) -> Vec<Act> {
        self.number += 1;
        let (graph, asked, open, before) = Default::default();
        self.current = Some(Look { began: now, waits, graph, asked, open, before, round: 1, read: 0 });
        self.follow(now, entries)
    }

    /// The second look, or one of those that follow.
    pub(crate) fn again(&mut self, now: Nanos, entries: Vec<Entry>) -> Vec<Act> {
        let Some(look) = &mut self.current else { return Vec::new() };
        self.number += 1;
        (look.graph, look.asked, look.open) = Default::default();
        look.round += 1;
        self.follow(now, entries)
    }

    /// An answer from `asked`, or on its behalf.
    pub(crate) fn told(
        &mut self,
        now: Nanos,
        look: u64,
        asked: ProcessId,
        objects: &[ObjectId],
        entries: Vec<Entry>,
    ) -> Vec<Act> {
        match &mut self.current {
            Some(current) if look == self.number => {
                for object in objects {
                    current.open.remove(&(asked, *object));
                }
                self.follow(now, entries)
            }
            _ => Vec::new(), // of an earlier one
        }
    }

    /// Asks those whom the entries lead to, and comes to an end when nobody is left to be asked.
    fn follow(&mut self, now: Nanos, entries: Vec<Entry>) -> Vec<Act> {
        let Some(look) = &mut self.current else { return Vec::new() };
        let mut asks: BTreeMap<ProcessId, Vec<ObjectId>> = BTreeMap::new();
        look.read += entries.len() as u64;
        for entry in entries {
            let targets = entry.needs.iter().flat_map(|need| &need.targets);
            let owners = targets.filter_map(|target| match target {
                Spot::Object(object) => Some((object.owner, *object)),
                Spot::Local(..) => None,
            });
            let place = match entry.at {
                Spot::Object(object) => entry.place.map(|place| (place, object)),
                Spot::Local(..) => None,
            };
            for ask in owners.chain(place) {
                if look.asked.insert(ask) {
                    look.open.insert(ask);
                    asks.entry(ask.0).or_default().push(ask.1);
                }
            }
            look.graph.add(entry);
        }
        if look.graph.is_too_large() {
            self.end(now);
            return Vec::new();
        }
        if !look.open.is_empty() {
            let number = self.number;
            return asks.into_iter().map(|(to, objects)| Act::Ask { to, look: number, objects }).collect();
        }
        let found = look.graph.cycles();
        let mut acts: Vec<_> =
            found.iter().filter(|cycle| look.before.contains(cycle)).map(|cycle| Act::Found(cycle.clone())).collect();
        if acts.is_empty() && !found.is_empty() && look.round < ROUNDS {
            look.before = found;
            acts.push(Act::Again(look.waits.clone()));
        } else {
            self.end(now);
        }
        acts
    }

    fn end(&mut self, now: Nanos) {
        if let Some(look) = self.current.take() {
            self.next = now + REST * look.read;
        }
    }
}

/// The head's part.
///
/// A cycle that somebody has found is part of every later one that has a wait in common with it, as long as none of
/// its waits has failed. So of all that are found and have one in common, one is ended at a time; the others were
/// ended with it, or are found again.
#[derive(Default)]
pub(crate) struct Verdicts {
    failed: BTreeSet<Ticket>,
    /// The oldest first.
    order: VecDeque<Ticket>,
}

impl Verdicts {
    /// Whether this wait is to fail, for a cycle of these.
    pub(crate) fn fails(&mut self, ticket: Ticket, waits: &[Ticket]) -> bool {
        if self.failed.contains(&ticket) || waits.iter().any(|wait| self.failed.contains(wait)) {
            return false;
        }
        self.failed.insert(ticket);
        self.order.push_back(ticket);
        if self.order.len() > KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.failed.remove(&oldest);
        }
        true
    }
}

impl Client {
    /// There is a wait to be looked at by then.
    pub(crate) fn look_by(self: &Arc<Self>, due: Instant) {
        {
            let next = &mut *self.next_look.lock();
            if next.is_some_and(|next| next <= due) {
                return;
            }
            *next = Some(due);
        }
        let client = Arc::downgrade(self);
        timer::after(self.core, due.saturating_duration_since(Instant::now()), move || {
            if let Some(client) = client.upgrade() {
                client.next_look.lock().take_if(|next| *next == due);
                client.look();
            }
        });
    }

    /// Looks at the waits that have lasted for so long that it is time.
    fn look(self: &Arc<Self>) {
        if self.core.is_stopping() {
            return;
        }
        let now = Instant::now();
        let rest = Duration::from_nanos(self.looks.lock().may_begin().saturating_sub(self.now()));
        if !rest.is_zero() {
            return self.look_by(now + rest.min(elsewhere::FIRST_LOOK));
        }
        let (waits, next) = elsewhere::due(self.core, now);
        if let Some(next) = next {
            self.look_by(next);
        }
        if !waits.is_empty() {
            let entries = elsewhere::picture(self.me, Picture::Waits(&waits));
            let acts = self.looks.lock().begin(self.now(), waits, entries);
            self.carry_on(acts);
        }
    }

    fn carry_on(self: &Arc<Self>, acts: Vec<Act>) {
        let mut acts = VecDeque::from(acts);
        while let Some(act) = acts.pop_front() {
            match act {
                Act::Ask { to, look, objects } if to == self.me => {
                    let entries = self.waits_of(&objects);
                    acts.extend(self.looks.lock().told(self.now(), look, to, &objects, entries));
                }
                Act::Ask { to, look, objects } => {
                    self.post(to, Letter::WaitsOf { look, asked: to, objects }, Vec::new());
                }
                Act::Again(waits) => {
                    let entries = elsewhere::picture(self.me, Picture::Waits(&waits));
                    acts.extend(self.looks.lock().again(self.now(), entries));
                }
                Act::Found(cycle) => {
                    let waits = cycle.waits();
                    self.post(HEAD, Letter::Cycle { ticket: cycle.ticket, waits, path: cycle.path }, Vec::new());
                }
            }
        }
    }

    /// Somebody who looks wants to know.
    pub(super) fn waits_asked(self: &Arc<Self>, from: ProcessId, look: u64, asked: ProcessId, objects: Vec<ObjectId>) {
        let entries = self.waits_of(&objects);
        self.post(from, Letter::Waits { look, asked, objects, entries }, Vec::new());
    }

    /// An answer.
    pub(super) fn waits_told(self: &Arc<Self>, look: u64, asked: ProcessId, objects: &[ObjectId], entries: Vec<Entry>) {
        let acts = self.looks.lock().told(self.now(), look, asked, objects, entries);
        self.carry_on(acts);
    }

    /// What is known here of these objects, and of what they wait for here.
    fn waits_of(self: &Arc<Self>, objects: &[ObjectId]) -> Vec<Entry> {
        let mut entries: HashMap<ObjectId, Entry> = HashMap::new();
        let mut nodes: Vec<Arc<dyn Node>> = Vec::new();
        for object in objects {
            let mut entry = Entry::free(Spot::Object(*object));
            if let Some(node) = self.made_here(*object) {
                entry.made_by = Some(Spot::Local(self.me, node.meta().id));
                nodes.push(node);
            }
            entries.insert(*object, entry);
        }
        self.with(|state, _| {
            for (object, entry) in entries.iter_mut().filter(|(object, _)| object.owner == self.me) {
                let Some((arguments, place)) = state.owner.under_way(*object) else { continue };
                entry.needs = arguments.into_iter().map(|argument| Need::of(Spot::Object(argument))).collect();
                entry.place = place;
                let maker = state.owner.maker(*object);
                if maker != *object {
                    // A part of what that makes.
                    entry.needs.push(Need::of(Spot::Object(maker)));
                }
                if let Some(node) = state.exported_node(*object) {
                    entry.made_by = Some(Spot::Local(self.me, node.meta().id));
                    nodes.push(node);
                }
                if let Some(actor) = state.calls.get(object.number).map(RemoteActor::object) {
                    // Until there is one.
                    entry.needs.push(Need::of(Spot::Object(actor)));
                    entry.place = state.actors.get(&actor).and_then(View::place);
                }
            }
        });
        for (object, entry) in &mut entries {
            if entry.made_by.is_some() {
                entry.place = None;
            }
            entry.label = self.label(*object);
        }
        let mut entries: Vec<_> = entries.into_values().collect();
        entries.extend(elsewhere::picture(self.me, Picture::Nodes(nodes)));
        entries
    }
}
