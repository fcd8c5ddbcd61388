//! The head: who is there, how busy it is, and where a task goes that its node passed on.
//!
//! # Placement
//! A task goes where it is done soonest: the tasks in front of it times the mean time of a task, over
//! the CPUs of the node, plus the time that missing arguments take to get there. The nodes are kept
//! in the order of the first term, so that the best is found without a look at all of them: only
//! the first that is big enough, and the holders of arguments, can be it.
//!
//! A node that has no room for a task, because of what is set aside or held by tasks that stay, is not
//! chosen. If that goes for all that are big enough the task waits here.
//!
//! # Placement groups
//! The head finds places for all bundles, with what it knows of the room on nodes, has each node set
//! its part aside (`Reserve`), and takes all back if one refuses or is not done in time. It tries again
//! when there is more room. Bundles on a node that died get new places in the same way.
//!
//! # Invariants
//! - `order` has every node once, under its present waiting time.
//! - What the head has assigned, and the node has not told of yet, counts as waiting there, so
//!   that a burst does not go to one node.
//! - An owner is told of a placement before the head can tell it that the node died: both go the same way.
//! - What only a node that died lately could run waits for one like it to come; what no node could
//!   ever run fails at once.
//! - Whoever is declared dead is told to all, is told so itself whenever it speaks, and is never heard.
//!
//! # When it is started again
//! It is told who took part and who was dead (`memory`), and *expects* those who took part for a while; who has not
//! joined again by then is dead. Everything else it learns: nodes tell what they have set aside, owners which
//! groups they have, and owners send again the tasks that were here. Who has not joined this life of the head is
//! not heard, because what it says may be meant for the last one.

pub(crate) mod groups;
mod memory;

pub(crate) use memory::Memory;

use self::groups::Group;
use super::{
    capacity::{Capacity, Demand},
    passed::Passed,
    protocol::{
        Arg, Effects, FAR, HEAD, Label, Load, Member, Message, Nanos, Note, ObjectId, Outcome, ProcessId, Strategy,
        TaskSpec, called, ms, waiting_time,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

/// Who is not heard for so long is dead.
pub(crate) const PATIENCE: Nanos = ms(2_000);
/// Everybody says something within this time.
pub(crate) const BEAT: Nanos = ms(200);
/// No message is under way for longer; and so long a node that died may be replaced.
const MEMORY: Nanos = ms(60_000);
/// A head that was started again waits so long for those who were there.
pub(crate) const REUNION: Nanos = ms(10_000);
/// How often a node tells its load while that changes, in a small cluster.
pub(crate) const PACE: Nanos = ms(5);
/// In a large one it is less often, so that the head hears so many loads a second at most, beats aside.
const LOADS_PER_SECOND: u64 = 100_000;
/// A node that has this much more to do than an idle one gives some of it away.
const WORTH_STEALING: Nanos = ms(1);
/// One that has so much to do tells of it, and an idle one that has not asked lately gets some.
const WORTH_SHARING: Nanos = ms(20);
/// So many of those that have room are looked at for an idle one.
const MOST_ASKED: usize = 16;
/// An owner is granted as many tasks on a node as that does in this time; more if it comes back within the second,
/// up to the third. It comes not more often than the last.
const GRANT: Nanos = ms(5);
const GRANT_SOON: Nanos = ms(50);
const GRANT_MOST: Nanos = ms(80);
const GRANT_PAUSE: Nanos = ms(1);
/// So many nodes are granted at once, and fewer tasks than that on none.
const GRANT_NODES: usize = 16;
const GRANT_LEAST: u64 = 8;

struct NodeView {
    capacity: Capacity,
    /// What was assigned to it for good, and when, as it counts assignments.
    promised: Vec<(u64, Demand)>,
    labels: Vec<Label>,
    /// For people.
    name: Arc<str>,
    load: Load,
    /// How many tasks the head has assigned to it, ever.
    assigned: u64,
    /// How many tasks were granted on it since it told its load, and how many others are to give to it.
    granted: u64,
    coming: u64,
    /// It was to get some, and did not: they have none that it may have. So it is not thought to get any until it does.
    gets_none: bool,
    heard: Nanos,
    /// As it stands in `order`.
    wait: Nanos,
}

impl NodeView {
    fn tasks(&self) -> u64 {
        u64::from(self.load.waiting)
            + u64::from(self.load.running)
            + (self.assigned - self.load.assigned)
            + self.granted
            + self.coming
    }

    fn estimate(&self) -> Nanos {
        let cpu = self.load.room.as_ref().map_or(self.capacity.cpu, |room| room.cpu);
        waiting_time(self.tasks(), cpu, self.load.mean)
    }

    /// How many more tasks like those it runs it does until then.
    fn tasks_until(&self, wait: Nanos, mean: Nanos) -> u64 {
        let cpus = self.load.room.as_ref().map_or(self.capacity.cpu, |room| room.cpu) / 1_000;
        (wait.saturating_sub(self.wait) * u64::from(cpus)).checked_div(mean).unwrap_or(0)
    }

    /// What is not taken for good, as far as is known.
    fn room(&self) -> Capacity {
        let mut room = self.load.room.as_ref().unwrap_or(&self.capacity).clone();
        for (_, demand) in &self.promised {
            room.take(demand);
        }
        room
    }

    /// A node says once which devices it has.
    fn with_inventory(&self, mut load: Load) -> Load {
        if let Some(room) = &mut load.room {
            room.gpus.inventory = self.capacity.gpus.inventory.clone();
        }
        load
    }

    fn has_room(&self, demand: &Demand) -> bool {
        match self.load.room.is_none() && self.promised.is_empty() {
            true => self.capacity.fits(demand),
            false => self.room().fits(demand),
        }
    }

    /// How many tasks stay there, or will.
    fn staying(&self) -> u64 {
        u64::from(self.load.staying) + self.promised.len() as u64
    }

    /// It is told to take this for good.
    fn promise(&mut self, demand: &Demand) {
        self.assigned += 1;
        self.promised.push((self.assigned, demand.clone()));
    }
}

struct OwnerView {
    heard: Nanos,
    /// The node that it sends its tasks to.
    home: Option<ProcessId>,
    /// The node that it is on, which knows when it has died.
    on: Option<ProcessId>,
    /// When it was granted tasks last, and for how long.
    granted: Option<(Nanos, Nanos)>,
    /// None of its tasks is to start any more.
    is_closing: bool,
}

pub(crate) struct Head {
    nodes: BTreeMap<ProcessId, NodeView>,
    /// By waiting time.
    order: BTreeSet<(Nanos, ProcessId)>,
    /// How long tasks take, on whichever node: an exponential average of what nodes have told.
    mean: Nanos,
    owners: BTreeMap<ProcessId, OwnerView>,
    /// The node that became a home last.
    last_home: ProcessId,
    dead: BTreeMap<ProcessId, Departed>,
    /// For room, or for a node like one that died lately.
    waiting: Vec<TaskSpec>,
    passed: Passed,
    groups: BTreeMap<ObjectId, Group>,
    /// Who took part in the last life, and has not joined again; and until when that is waited for.
    expected: BTreeMap<ProcessId, Member>,
    reunion: Nanos,
    is_reuniting: bool,
    /// What nodes have set aside, with its round, for owners who have not joined again.
    unclaimed: BTreeMap<(ObjectId, u32), (ProcessId, u32)>,
    /// For how many nodes the pace was set.
    paced_for: u64,
    looked: Nanos,
}

struct Departed {
    /// So long it is told to those who come, and may be replaced.
    until: Nanos,
    /// What it was, if it was a node.
    node: Option<(Capacity, Vec<Label>)>,
}

impl Head {
    pub(crate) fn new() -> Self {
        Head {
            nodes: BTreeMap::new(),
            order: BTreeSet::new(),
            mean: 0,
            owners: BTreeMap::new(),
            last_home: HEAD,
            dead: BTreeMap::new(),
            waiting: Vec::new(),
            passed: Passed::default(),
            groups: BTreeMap::new(),
            expected: BTreeMap::new(),
            reunion: 0,
            is_reuniting: false,
            unclaimed: BTreeMap::new(),
            paced_for: 0,
            looked: 0,
        }
    }

    /// Started again, with what it remembers of its last life.
    pub(crate) fn restarted(now: Nanos, memory: Memory) -> Self {
        let departed = |member: Option<Member>, is_late: bool| Departed {
            until: if is_late { now + MEMORY } else { now },
            node: member.and_then(of_node).filter(|_| is_late),
        };
        let Memory { members, dead } = memory;
        Head {
            is_reuniting: !members.is_empty(),
            expected: members,
            reunion: now + REUNION,
            dead: dead.into_iter().map(|(id, (member, is_late))| (id, departed(member, is_late))).collect(),
            ..Head::new()
        }
    }

    /// Who joins is remembered, unless it was there in the last life.
    fn enter(&mut self, process: ProcessId, member: Member, out: &mut Effects) {
        // The head itself, which owns actors, is there when it is there.
        if self.expected.remove(&process).is_none() && process != HEAD {
            out.notes.push(Note::Joined(process, member));
        }
    }

    pub(crate) fn handle(&mut self, now: Nanos, from: ProcessId, message: Message, out: &mut Effects) {
        if self.dead.contains_key(&from) {
            return out.send(from, Message::Fenced);
        }
        let joins = matches!(message, Message::JoinNode { .. } | Message::JoinOwner { .. });
        if joins == (self.nodes.contains_key(&from) || self.owners.contains_key(&from)) {
            return; // it was said to the last head, or has been said
        }
        if let Some(node) = self.nodes.get_mut(&from) {
            node.heard = now;
        }
        if let Some(owner) = self.owners.get_mut(&from) {
            owner.heard = now;
        }
        match message {
            Message::JoinNode { capacity, labels, load, bundles } => {
                self.enter(from, Member::Node { capacity: capacity.clone(), labels: labels.clone() }, out);
                self.welcome(now, from, out);
                let mut view = NodeView {
                    capacity,
                    promised: Vec::new(),
                    name: called(from, &labels),
                    labels,
                    load: Load::default(),
                    assigned: 0,
                    granted: 0,
                    coming: 0,
                    gets_none: false,
                    heard: now,
                    wait: 0,
                };
                view.load = view.with_inventory(load);
                self.nodes.insert(from, view);
                self.order.insert((0, from));
                self.reorder(from);
                self.set_pace(from, out);
                self.returned(now, from, bundles, out);
                // It was theirs in the last life; one that is young has not been told so.
                let at_home = self.owners.iter().filter(|(_, owner)| owner.home == Some(from));
                at_home.for_each(|(owner, _)| out.send(*owner, Message::Home { node: from }));
                let homeless = self.owners.iter().filter(|(_, owner)| owner.home.is_none());
                for owner in homeless.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.find_home(owner, None, out);
                }
                self.try_again(now, out);
            }
            Message::JoinOwner { wish, on, groups } => {
                self.enter(from, Member::Owner { on }, out);
                self.welcome(now, from, out);
                let home = wish.filter(|node| self.expected.contains_key(node)); // it stays that
                self.owners.insert(from, OwnerView { heard: now, home, on, granted: None, is_closing: false });
                if home.is_none() {
                    self.find_home(from, wish, out);
                }
                self.adopt(now, from, groups, out);
                self.try_again(now, out); // its tasks may have been here first
            }
            Message::Died { process } if self.nodes.contains_key(&from) => {
                // One that is not known may be about to join, or never will.
                let is_theirs = match (self.owners.get(&process), self.expected.get(&process)) {
                    (Some(OwnerView { on, .. }), _) | (None, Some(Member::Owner { on })) => *on == Some(from),
                    (None, Some(Member::Node { .. })) => false,
                    (None, None) => true,
                };
                if is_theirs && !self.nodes.contains_key(&process) && !self.dead.contains_key(&process) {
                    self.bury(now, process, out);
                }
            }
            Message::Place(spec) => self.place(now, spec, out),
            Message::More => self.grant(now, from, out),
            Message::Close { .. } => {
                if let Some(owner) = self.owners.get_mut(&from) {
                    owner.is_closing = true;
                    for spec in self.waiting.extract_if(.., |spec| spec.id.owner == from) {
                        withdraw(&spec, out);
                    }
                }
            }
            Message::Load(load) => {
                let Some(node) = self.nodes.get_mut(&from) else { return };
                let load = node.with_inventory(load);
                let cpu = load.room.as_ref().map_or(node.capacity.cpu, |room| room.cpu);
                let idle = load.waiting == 0 && load.running * 1_000 < cpu && load.assigned == node.assigned;
                let known = node.promised.len();
                node.promised.retain(|(assigned, _)| *assigned > load.assigned);
                let may_have_more = node.promised.len() < known || node.load.room != load.room;
                if load.mean > 0 {
                    self.mean = if self.mean == 0 { load.mean } else { (7 * self.mean + load.mean) / 8 };
                }
                node.load = load;
                node.gets_none = idle && (node.gets_none || node.coming > 0);
                (node.granted, node.coming) = (0, 0);
                self.reorder(from);
                if may_have_more {
                    self.try_again(now, out);
                }
                if idle {
                    self.find_work(from, out);
                } else if self.nodes.get(&from).is_some_and(|view| view.wait > WORTH_SHARING) {
                    let is_idle =
                        |id: &ProcessId| self.nodes.get(id).is_some_and(|view| view.tasks() == 0 && !view.gets_none);
                    let soonest = self.order.iter().take_while(|(wait, _)| *wait == 0).take(MOST_ASKED);
                    if let Some(other) = soonest.map(|(_, id)| *id).find(is_idle) {
                        self.find_work(other, out);
                    }
                }
            }
            Message::CreateGroup(spec) if spec.id.owner == from => {
                let (id, group) = (spec.id, Group::new(now, spec));
                self.create_group(now, id, group, out);
            }
            Message::RemoveGroup { group } if group.owner == from => {
                self.drop_group(group, out);
                self.try_again(now, out); // the tasks that wait for it
            }
            Message::Reserved { group, bundle, round, ok } => {
                self.reserved(now, from, (group, bundle), (round, ok), out);
            }
            // A beat has been heard above; the rest is not said to a head.
            _ => {}
        }
    }

    /// Tells one that has just come of those that died lately: what is said to it may still name them.
    fn welcome(&self, now: Nanos, process: ProcessId, out: &mut Effects) {
        for (dead, departed) in &self.dead {
            if departed.until > now {
                out.send(process, Message::Dead { process: *dead });
            }
        }
    }

    /// Tells how often to tell: the one that has just come, or all, when there are many more than before.
    fn set_pace(&mut self, from: ProcessId, out: &mut Effects) {
        let count = self.nodes.len() as u64;
        let every = PACE.max(count * 1_000_000_000 / LOADS_PER_SECOND);
        if every > PACE && count >= 2 * self.paced_for {
            self.paced_for = count;
            self.nodes.keys().for_each(|node| out.send(*node, Message::Pace { every }));
        } else if every > PACE {
            out.send(from, Message::Pace { every });
        }
    }

    /// To be called at least every [`BEAT`].
    pub(crate) fn tick(&mut self, now: Nanos, out: &mut Effects) {
        if now < self.looked + BEAT {
            return;
        }
        self.looked = now;
        let silent = |heard: Nanos| heard + PATIENCE < now;
        let nodes = self.nodes.iter().filter(|(_, node)| silent(node.heard)).map(|(id, _)| *id);
        let owners = self.owners.iter().filter(|(id, owner)| **id != HEAD && silent(owner.heard)).map(|(id, _)| *id);
        self.is_reuniting &= now < self.reunion;
        if !self.is_reuniting {
            self.waiting.retain(|spec| self.owners.contains_key(&spec.id.owner));
        }
        let missing = self.expected.keys().copied().filter(|_| !self.is_reuniting);
        for process in nodes.chain(owners).chain(missing).collect::<Vec<_>>() {
            self.bury(now, process, out);
        }
        // Those who were not replaced in time will not be.
        for departed in self.dead.values_mut().filter(|departed| departed.until <= now) {
            departed.node = None;
        }
        self.look_after_groups(now, out);
        self.try_again(now, out);
    }

    /// Tries to find places for what has none.
    fn try_again(&mut self, now: Nanos, out: &mut Effects) {
        let missing: Vec<_> = self.groups.iter().filter(|(_, group)| group.is_missing()).map(|(id, _)| *id).collect();
        for group in missing {
            self.place_group(now, group, out);
        }
        for spec in std::mem::take(&mut self.waiting) {
            self.place(now, spec, out);
        }
    }

    /// Declares it dead.
    pub(crate) fn bury(&mut self, now: Nanos, process: ProcessId, out: &mut Effects) {
        let node = self.nodes.remove(&process).map(|node| {
            self.order.remove(&(node.wait, process));
            (node.capacity, node.labels)
        });
        let node = node.or_else(|| self.expected.remove(&process).and_then(of_node));
        self.owners.remove(&process);
        self.unclaimed.retain(|(group, _), (node, _)| group.owner != process && *node != process);
        self.dead.insert(process, Departed { until: now + MEMORY, node });
        out.notes.push(Note::Died(process));
        for other in self.nodes.keys().chain(self.owners.keys()) {
            out.send(*other, Message::Dead { process });
        }
        let at_home = self.owners.iter_mut().filter(|(_, owner)| owner.home == Some(process));
        let homeless: Vec<_> = at_home
            .map(|(id, owner)| {
                owner.home = None;
                *id
            })
            .collect();
        for owner in homeless {
            self.find_home(owner, None, out);
        }
        self.bury_groups(now, process, out);
    }

    /// Names a node for the tasks of an owner: the one it wishes, or the next in the row.
    fn find_home(&mut self, owner: ProcessId, wish: Option<ProcessId>, out: &mut Effects) {
        let wished = wish.filter(|node| self.nodes.contains_key(node));
        let next = || self.nodes.range((Excluded(self.last_home), Unbounded)).next().or(self.nodes.iter().next());
        let Some(node) = wished.or_else(|| next().map(|(id, _)| *id)) else { return };
        self.last_home = node;
        if let Some(view) = self.owners.get_mut(&owner) {
            view.home = Some(node);
            out.send(owner, Message::Home { node });
        }
    }

    fn reorder(&mut self, id: ProcessId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let wait = node.estimate();
        if wait != node.wait {
            self.order.remove(&(node.wait, id));
            node.wait = wait;
            self.order.insert((wait, id));
        }
    }

    fn place(&mut self, now: Nanos, mut spec: TaskSpec, out: &mut Effects) {
        let owner = spec.id.owner;
        if self.dead.contains_key(&owner) {
            return;
        }
        // What cannot go on at once is taken apart.
        let goes_on = || self.owners.get(&owner).is_some_and(|view| !view.is_closing);
        if spec.count > 1 && !(goes_on() && matches!(self.choose(&spec), Ok(Some(_)))) {
            return spec.open().into_iter().for_each(|spec| self.place(now, spec, out));
        }
        match self.owners.get(&owner) {
            None => return self.waiting.push(spec), // it is about to join again, and could not be told
            Some(view) if view.is_closing => return withdraw(&spec, out),
            Some(_) => {}
        }
        spec.forget_holders(|holder| self.dead.contains_key(holder));
        let chosen = match self.makes_argument(&spec) {
            Some(node) => Ok(Some(node)),
            None => self.choose(&spec),
        };
        match chosen {
            Ok(None) => self.waiting.push(spec),
            Ok(Some(node)) => {
                let in_bundle = matches!(spec.strategy, Strategy::Bundle { .. });
                match self.nodes.get_mut(&node) {
                    Some(view) if spec.stays && !in_bundle => view.promise(&spec.demand),
                    Some(view) => {
                        view.assigned += 1;
                        view.granted += u64::from(spec.count - 1);
                    }
                    None => {}
                }
                self.reorder(node);
                spec.hop += 1;
                let (task, count, attempt, hop) = (spec.id, spec.count, spec.attempt, spec.hop);
                out.send(owner, Message::Placed { task, count, attempt, hop, node, via: None });
                let is_small = spec.is_light();
                self.passed.remember(spec.id, spec.count, node);
                out.send(node, Message::Assign(spec));
                if is_small {
                    self.grant(now, owner, out);
                }
            }
            Err(_) if self.is_reuniting || self.was_there(&spec) => self.waiting.push(spec),
            Err(why) => out.send(owner, Message::Unplaceable { task: spec.id, attempt: spec.attempt, why: why.into() }),
        }
    }

    /// The node that something was passed on to lately which a plain task waits for.
    fn makes_argument(&self, spec: &TaskSpec) -> Option<ProcessId> {
        let node = spec.awaited().find_map(|object| self.passed.node(object)).filter(|_| spec.is_plain())?;
        self.nodes.get(&node).filter(|view| view.has_room(&spec.demand)).map(|_| node)
    }

    /// Has an owner send its next tasks to the nodes that have the least to do, without asking. That is a guess, and
    /// idle nodes steal; but the head hears of one in hundreds of small tasks.
    fn grant(&mut self, now: Nanos, owner: ProcessId, out: &mut Effects) {
        let Some(view) = self.owners.get(&owner) else { return };
        let time = match view.granted {
            Some((last, _)) if now < last + GRANT_PAUSE => return,
            Some((last, time)) if now < last + GRANT_SOON => (2 * time).min(GRANT_MOST),
            _ => GRANT,
        };
        let least = self.order.first().map_or(0, |(wait, _)| *wait);
        let idlest = self.order.iter().take(GRANT_NODES).filter_map(|(_, id)| {
            let node = self.nodes.get(id).filter(|node| node.has_room(&Demand::cpus(1_000)))?;
            // A node that has had a few short ones knows no better than all together.
            let mean = if node.load.mean == 0 { 0 } else { node.load.mean.max(self.mean) };
            let count = node.tasks_until(least + time, mean);
            (count >= GRANT_LEAST).then_some((*id, count.min(u64::from(u16::MAX)) as u32))
        });
        let nodes: Vec<_> = idlest.collect();
        for (id, count) in &nodes {
            if let Some(node) = self.nodes.get_mut(id) {
                node.granted += u64::from(*count);
            }
            self.reorder(*id);
        }
        if let Some(view) = self.owners.get_mut(&owner).filter(|_| !nodes.is_empty()) {
            view.granted = Some((now, time));
            out.send(owner, Message::Grant { nodes });
        }
    }

    /// Whether a node that died lately, or that has not joined again yet, could have run it.
    fn was_there(&self, spec: &TaskSpec) -> bool {
        let labels = match &spec.strategy {
            Strategy::Node { soft: false, .. } | Strategy::Bundle { .. } => return false, // that will not come back
            Strategy::Labels { labels, soft: false } => labels.as_slice(),
            _ => &[],
        };
        let departed = self.dead.values().filter_map(|departed| departed.node.as_ref());
        let expected = self.expected.values().filter_map(|member| match member {
            Member::Node { capacity, labels } => Some((capacity, labels)),
            Member::Owner { .. } => None,
        });
        let mut nodes = departed.map(|(capacity, has)| (capacity, has)).chain(expected);
        nodes.any(|(capacity, has)| capacity.fits(&spec.demand) && labels.iter().all(|label| has.contains(label)))
    }

    fn is_big_enough(&self, node: ProcessId, spec: &TaskSpec) -> bool {
        self.nodes.get(&node).is_some_and(|view| view.capacity.fits(&spec.demand))
    }

    fn has_room(&self, node: ProcessId, spec: &TaskSpec) -> bool {
        self.nodes.get(&node).is_some_and(|view| view.has_room(&spec.demand))
    }

    /// The node for a task; none if it has to wait for room; or why it can never run.
    fn choose(&self, spec: &TaskSpec) -> Result<Option<ProcessId>, String> {
        match &spec.strategy {
            Strategy::Bundle { group, bundle, .. } => return self.place_of(*group, *bundle, &spec.demand),
            Strategy::Node { node, .. } if self.has_room(*node, spec) => return Ok(Some(*node)),
            Strategy::Node { node, soft: false } => {
                return match self.nodes.get(node) {
                    None if self.expected.contains_key(node) => Ok(None),
                    None => Err(format!("it must run on node {node}, which is not there")),
                    Some(view) if view.capacity.fits(&spec.demand) => Ok(None),
                    Some(view) => Err(format!("it must run on node {}: {}", view.name, lack(view, &spec.demand))),
                };
            }
            Strategy::Labels { labels, soft } => {
                let has_all = |view: &NodeView| labels.iter().all(|label| view.labels.contains(label));
                let with = self.order.iter().map(|(_, id)| *id).filter(|id| self.nodes.get(id).is_some_and(has_all));
                let mut fits = with.filter(|id| self.is_big_enough(*id, spec)).peekable();
                let is_any = fits.peek().is_some();
                match fits.find(|id| self.has_room(*id, spec)) {
                    Some(node) => return Ok(Some(node)),
                    None if *soft => {}
                    None if is_any => return Ok(None),
                    None => return Err(self.not_labelled(labels, &spec.demand)),
                }
            }
            Strategy::Spread => {
                let roomy = self.nodes.iter().filter(|(_, view)| view.has_room(&spec.demand));
                let fewest = roomy.min_by_key(|(id, view)| (view.tasks(), **id)).map(|(id, _)| *id);
                return fewest.map_or_else(|| self.wait_or_fail(spec), |node| Ok(Some(node)));
            }
            Strategy::Default | Strategy::Node { .. } => {}
        }
        if spec.stays {
            return self.choose_to_stay(spec);
        }
        let Some(soonest) = self.order.iter().map(|(_, id)| *id).find(|id| self.has_room(*id, spec)) else {
            return self.wait_or_fail(spec);
        };
        let holders = spec.args.iter().flat_map(|arg| match arg {
            Arg::Object { holders, .. } => holders.as_slice(),
            Arg::Inline(_) => &[],
        });
        let holders: BTreeSet<_> = holders.copied().collect();
        let candidates: Vec<_> = holders.into_iter().filter(|id| self.has_room(*id, spec)).collect();
        // Of the nodes that hold what it needs: where it would go otherwise.
        let means = candidates.iter().filter_map(|id| self.nodes.get(id)).map(|view| view.load.mean);
        let mean = means.max().unwrap_or(0);
        let cost = |id: &ProcessId| {
            let wait = self.nodes.get(id).map_or(Nanos::MAX, |view| view.wait);
            let bandwidth = self.nodes.get(id).map(|view| view.load.bandwidth).unwrap_or_default();
            let fetch = spec.fetch_time(*id, bandwidth);
            let far = if mean > 0 && fetch > mean { FAR } else { 0 };
            (wait.saturating_add(fetch + far), *id != soonest)
        };
        Ok(Some(candidates.into_iter().chain([soonest]).min_by_key(cost).unwrap_or(soonest)))
    }

    /// The node for one that stays: of those where it starts about as soon, one with the fewest that stay; of these the home
    /// of its owner, which calls it.
    fn choose_to_stay(&self, spec: &TaskSpec) -> Result<Option<ProcessId>, String> {
        let home = self.owners.get(&spec.id.owner).and_then(|owner| owner.home);
        let roomy = self.nodes.iter().filter(|(_, view)| view.has_room(&spec.demand));
        let best = roomy.min_by_key(|(id, view)| {
            let soon = view.wait.saturating_add(spec.fetch_time(**id, view.load.bandwidth)) / FAR;
            (soon, view.staying(), Some(**id) != home, **id)
        });
        best.map_or_else(|| self.wait_or_fail(spec), |(id, _)| Ok(Some(*id)))
    }

    /// No node has room for it: waits if one is big enough.
    fn wait_or_fail(&self, spec: &TaskSpec) -> Result<Option<ProcessId>, String> {
        match self.nodes.keys().any(|id| self.is_big_enough(*id, spec)) {
            true => Ok(None),
            false => Err(self.too_big(&spec.demand)),
        }
    }

    /// No node is big enough: says which comes nearest, and what it lacks.
    fn too_big(&self, demand: &Demand) -> String {
        let gap = |view: &NodeView| view.capacity.lack(demand).map_or(0.0, |lack| lack.gap());
        let nearest = self.nodes.iter().min_by(|(_, a), (_, b)| gap(a).total_cmp(&gap(b)));
        match nearest {
            None => "there is no node".into(),
            Some((_, view)) => format!("no node is big enough; the nearest is {}: {}", view.name, lack(view, demand)),
        }
    }

    /// No node with these labels is big enough: says which comes nearest, and what it lacks, labels first.
    fn not_labelled(&self, labels: &[Label], demand: &Demand) -> String {
        let in_words = |labels: &mut dyn Iterator<Item = &Label>| {
            labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
        };
        let wanted = in_words(&mut labels.iter());
        let missing = |view: &NodeView| labels.iter().filter(|label| !view.labels.contains(label)).count();
        let gap = |view: &NodeView| view.capacity.lack(demand).map_or(0.0, |lack| lack.gap());
        let nearest = self.nodes.values().min_by(|a, b| {
            let labels = missing(a).cmp(&missing(b));
            labels.then_with(|| gap(a).total_cmp(&gap(b)))
        });
        match nearest {
            None => "there is no node".into(),
            Some(view) if missing(view) == 0 => {
                format!("of the nodes with {wanted}, none is big enough; {}: {}", view.name, lack(view, demand))
            }
            Some(view) => {
                let has = in_words(&mut labels.iter().filter(|label| view.labels.contains(label)));
                let has = if has.is_empty() { "none of them".into() } else { has };
                let size = view.capacity.lack(demand).map(|lack| format!(" ({lack})")).unwrap_or_default();
                format!("no node has the labels {wanted}; the nearest is {}, which has {has}{size}", view.name)
            }
        }
    }

    /// Has the busiest nodes give some of their tasks to one that has nothing to do. One of them may find none that are worth it.
    fn find_work(&mut self, thief: ProcessId, out: &mut Effects) {
        let busiest: Vec<_> = self.order.iter().rev().take(2).copied().collect();
        let mut asked = 0;
        for (wait, victim) in busiest {
            let (Some(ours), Some(theirs)) = (self.nodes.get(&thief), self.nodes.get(&victim)) else { return };
            if victim == thief || wait < ours.wait + WORTH_STEALING || theirs.load.waiting == 0 {
                continue;
            }
            let capacity = ours.room();
            let share = u64::from(theirs.load.waiting) * u64::from(capacity.cpu)
                / u64::from(capacity.cpu + theirs.capacity.cpu).max(1);
            let most = (share as u32).max(1);
            out.send(victim, Message::Steal { thief, capacity, most });
            // Until they tell of their loads, the victim is not asked again for these, and the thief is thought to have them.
            asked += u64::from(most);
            if let Some(theirs) = self.nodes.get_mut(&victim) {
                theirs.load.waiting -= most.min(theirs.load.waiting);
            }
            self.reorder(victim);
        }
        if let Some(ours) = self.nodes.get_mut(&thief).filter(|ours| !ours.gets_none) {
            ours.coming += asked;
        }
        self.reorder(thief);
    }

    /// Why a task is with no node, if it is here.
    pub(crate) fn explain(&self, task: ObjectId) -> Option<String> {
        let spec = self.waiting.iter().find(|spec| spec.id == task)?;
        if let Strategy::Bundle { group, .. } = &spec.strategy {
            return Some(format!("it waits at the head for its placement group: {}", self.explain_group(*group)));
        }
        let lacks = self.nodes.values().map(|view| match view.capacity.lack(&spec.demand) {
            Some(lack) => format!("{}: {lack}", view.name),
            None => match view.room().lack(&spec.demand) {
                Some(lack) => format!("{}: {lack} that is not set aside, or held by actors", view.name),
                None => format!("{}: there is room, but it is not to be there", view.name),
            },
        });
        Some(format!("it waits at the head for a node with room: {}", lacks.collect::<Vec<_>>().join("; ")))
    }

    /// Tasks that no node has room for.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &TaskSpec> {
        self.waiting.iter()
    }

    /// Whether it has declared it dead.
    pub(crate) fn has_buried(&self, process: ProcessId) -> bool {
        self.dead.contains_key(&process)
    }

    /// Nodes that live, tasks that wait for one, and placement groups.
    pub(crate) fn holds(&self) -> (usize, usize, usize) {
        (self.nodes.len(), self.waiting.len(), self.groups.len())
    }
}

/// Tells the owner of a task that it will not start.
fn withdraw(spec: &TaskSpec, out: &mut Effects) {
    let (task, attempt, outcome) = (spec.id, spec.attempt, Outcome::Withdrawn);
    out.send(task.owner, Message::Finished { task, attempt, outcome });
}

fn of_node(member: Member) -> Option<(Capacity, Vec<Label>)> {
    match member {
        Member::Node { capacity, labels } => Some((capacity, labels)),
        Member::Owner { .. } => None,
    }
}

fn lack(view: &NodeView, demand: &Demand) -> String {
    view.capacity.lack(demand).map(|lack| lack.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{
            capacity::Demand,
            protocol::{Bandwidth, ObjectId},
        },
        gpu::{GpuRequest, Inventory, placement::Devices},
    };
    use std::collections::BTreeMap as Map;

    const OWNER: ProcessId = ProcessId(100);

    fn node(number: u64) -> ProcessId {
        ProcessId(number)
    }

    fn join(capacity: Capacity, labels: Vec<Label>) -> Message {
        Message::JoinNode { capacity, labels, load: Load::default(), bundles: Vec::new() }
    }

    /// A head with nodes 1, 2 and so on, of so many CPUs; what it says on the way is dropped.
    fn head(cpus: &[u32]) -> Head {
        let (mut head, mut out) = (Head::new(), Effects::default());
        for (index, cpus) in cpus.iter().enumerate() {
            let labels = vec![("parity".into(), if index % 2 == 0 { "even".into() } else { "odd".into() })];
            let gpus = Devices::new(Inventory::simulated(index as u32));
            let capacity = Capacity { cpu: cpus * 1_000, gpus, ..Capacity::default() };
            head.handle(0, node(index as u64 + 1), join(capacity, labels), &mut out);
        }
        head.handle(0, OWNER, Message::JoinOwner { wish: None, on: None, groups: Vec::new() }, &mut out);
        head
    }

    fn task(demand: Demand, strategy: Strategy, args: Vec<Arg>) -> TaskSpec {
        let id = ObjectId { owner: OWNER, number: 1 };
        let (demand, body) = (Arc::new(demand), crate::cluster::wire::Blob::default());
        TaskSpec { id, attempt: 1, hop: 0, count: 1, demand, strategy, args, stays: false, body }
    }

    /// Where the head sends a task, or why nowhere.
    fn place(head: &mut Head, spec: TaskSpec) -> Result<ProcessId, String> {
        let mut out = Effects::default();
        head.handle(0, OWNER, Message::Place(spec), &mut out);
        match &out.sends[..] {
            [(OWNER, Message::Placed { node, .. }), (to, Message::Assign(_))] if node == to => Ok(*node),
            [(OWNER, Message::Unplaceable { why, .. })] => Err(why.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn plain() -> TaskSpec {
        task(Demand::cpus(1_000), Strategy::Default, Vec::new())
    }

    #[test]
    fn a_burst_goes_to_all_nodes_by_their_cpus() {
        let mut head = head(&[1, 3]);
        let mut counts = Map::new();
        for _ in 0..40 {
            *counts.entry(place(&mut head, plain()).unwrap()).or_insert(0) += 1;
        }
        assert_eq!(counts, Map::from([(node(1), 10), (node(2), 30)]));
    }

    #[test]
    fn what_waits_for_room_is_given_back_when_its_owner_closes() {
        let mut head = head(&[1]);
        place(&mut head, TaskSpec { stays: true, ..plain() }).unwrap();
        let mut say = |message| {
            let mut out = Effects::default();
            head.handle(0, OWNER, message, &mut out);
            let outcomes = out.sends.into_iter().map(|(to, message)| match message {
                Message::Finished { outcome, .. } if to == OWNER => outcome,
                other => panic!("{other:?}"),
            });
            outcomes.collect::<Vec<_>>()
        };
        assert!(say(Message::Place(plain())).is_empty(), "it waits");
        assert!(matches!(say(Message::Close { job: OWNER })[..], [Outcome::Withdrawn]));
        assert!(matches!(say(Message::Place(plain()))[..], [Outcome::Withdrawn]), "and so what was on its way");
        assert_eq!(head.holds().1, 0);
    }

    #[test]
    fn what_waits_for_a_task_that_was_passed_on_follows_it() {
        let mut head = head(&[1, 1]);
        let numbered = |number, args| {
            let id = ObjectId { owner: OWNER, number };
            TaskSpec { id, ..task(Demand::cpus(1_000), Strategy::Default, args) }
        };
        let awaited = |number| Arg::Object { id: ObjectId { owner: OWNER, number }, size: 0, holders: Vec::new() };
        let there = place(&mut head, numbered(1, Vec::new())).unwrap();
        // Others take turns.
        for number in (10..30).step_by(2) {
            assert_eq!(place(&mut head, numbered(number, vec![awaited(9), awaited(1)])), Ok(there));
            place(&mut head, numbered(number + 1, Vec::new())).unwrap();
        }
    }

    #[test]
    fn what_is_fetched_sooner_than_it_runs_goes_where_there_is_less_to_do() {
        for (mean, to) in [(ms(1), 2), (ms(1) / 100, 1)] {
            let mut head = head(&[1, 1]);
            let load = Load { waiting: ms(2).div_ceil(mean) as u32, mean, ..Load::default() };
            head.handle(0, node(1), Message::Load(load), &mut Effects::default());
            let held = Arg::Object { id: ObjectId { owner: OWNER, number: 7 }, size: 8 << 10, holders: vec![node(1)] };
            let light = task(Demand::cpus(1_000), Strategy::Default, vec![held]);
            let mut out = Effects::default();
            head.handle(0, OWNER, Message::Place(light), &mut out);
            let is_there =
                |(at, message): &(ProcessId, Message)| *at == node(to) && matches!(message, Message::Assign(_));
            assert!(out.sends.iter().any(is_there), "{out:?}");
        }
    }

    #[test]
    fn an_owner_of_many_small_tasks_is_granted_nodes_to_send_them_to() {
        let mut head = head(&[1, 1]);
        let mut say = |now, from, message| {
            let mut out = Effects::default();
            head.handle(now, from, message, &mut out);
            out.sends.into_iter().find_map(|(to, message)| match message {
                Message::Grant { nodes } if to == OWNER => Some(nodes),
                _ => None,
            })
        };
        assert_eq!(say(ms(1), OWNER, Message::Place(plain())), None); // nothing is known of their times
        let load = |waiting, mean| Message::Load(Load { waiting, mean, assigned: 0, ..Load::default() });
        say(ms(2), node(1), load(100, 10_000));
        say(ms(2), node(2), load(0, 10_000));
        // The second steals half of what the first has. Then both to the same time, 5 ms or 500 tasks after that.
        let granted = say(ms(3), OWNER, Message::Place(plain())).unwrap();
        assert_eq!(granted.iter().map(|(node, _)| *node).collect::<BTreeSet<_>>(), BTreeSet::from([node(1), node(2)]));
        assert!(granted.iter().all(|(_, count)| (490..=510).contains(count)), "{granted:?}");
        assert_eq!(say(ms(3), OWNER, Message::Place(plain())), None); // that was just now
        let again = say(ms(6), OWNER, Message::Place(plain())).unwrap();
        assert!(again.iter().map(|(_, count)| count).sum::<u32>() > 1_500, "{again:?}");
        // Not for what has arguments to be fetched, or for long tasks.
        let large = Arg::Object { id: ObjectId { owner: OWNER, number: 7 }, size: 1 << 20, holders: vec![node(2)] };
        assert_eq!(say(ms(9), OWNER, Message::Place(task(Demand::cpus(1_000), Strategy::Default, vec![large]))), None);
        say(ms(400), node(1), load(0, ms(1)));
        say(ms(400), node(2), load(0, ms(1)));
        assert_eq!(say(ms(900), OWNER, Message::Place(plain())), None);
    }

    /// The first task of one node was short, by chance.
    #[test]
    fn one_node_that_thinks_that_tasks_are_short_is_not_granted_more_than_others() {
        let mut head = head(&[1; 10]);
        let mut say = |at, from, message| {
            let mut out = Effects::default();
            head.handle(at, from, message, &mut out);
            out.sends.into_iter().any(|(_, message)| matches!(message, Message::Grant { .. }))
        };
        for at in 1..=10 {
            let mean = if at == 5 { 10_000 } else { ms(10) };
            say(ms(at), node(at), Message::Load(Load { mean, ..Load::default() }));
        }
        assert!((0..20).all(|at| !say(ms(20 + 2 * at), OWNER, Message::Place(plain()))));
    }

    #[test]
    fn a_large_argument_draws_its_task_until_the_wait_there_is_longer_than_the_transfer() {
        let mut head = head(&[1, 1]);
        let object = ObjectId { owner: OWNER, number: 7 };
        // To ask for 1 MiB and get it takes about 1.1 ms: eleven tasks of 100 us, as long as nothing is known of their times.
        let args = vec![Arg::Object { id: object, size: 1 << 20, holders: vec![node(2)] }];
        let near = || task(Demand::cpus(1_000), Strategy::Default, args.clone());
        let places: Vec<_> = (0..13).map(|_| place(&mut head, near()).unwrap()).collect();
        assert_eq!(places[..11], vec![node(2); 11]);
        assert_eq!(places[11..], [node(1), node(2)]);
    }

    /// The node that would have to fetch it does so ten times as slowly as it was thought.
    #[test]
    fn what_nodes_have_measured_decides_how_far_away_an_argument_is() {
        let mut head = head(&[1, 1]);
        let mut bandwidth = Bandwidth::default();
        (0..100).for_each(|_| bandwidth.took(1 << 20, ms(10)));
        head.handle(0, node(1), Message::Load(Load { bandwidth, ..Load::default() }), &mut Effects::default());
        let object = ObjectId { owner: OWNER, number: 7 };
        let args = vec![Arg::Object { id: object, size: 1 << 20, holders: vec![node(2)] }];
        let near = || task(Demand::cpus(1_000), Strategy::Default, args.clone());
        let places: Vec<_> = (0..100).map(|_| place(&mut head, near()).unwrap()).collect();
        assert_eq!(places, vec![node(2); 100]);
    }

    #[test]
    fn what_no_node_can_run_fails_and_names_the_nearest_and_what_it_lacks() {
        let mut head = head(&[2, 8, 4]);
        let why = place(&mut head, task(Demand::cpus(10_000), Strategy::Default, Vec::new())).unwrap_err();
        assert_eq!(why, "no node is big enough; the nearest is 000000000000.2: 10 CPUs wanted, 8 there");
        let gpus = Demand { gpu: Some(GpuRequest::whole(3).into()), ..Demand::cpus(1_000) };
        let why = place(&mut head, task(gpus, Strategy::Spread, Vec::new())).unwrap_err();
        assert_eq!(why, "no node is big enough; the nearest is 000000000000.3: 3 GPUs wanted, 2 there");
    }

    #[test]
    fn wishes_for_nodes_and_labels() {
        let mut head = head(&[1, 1, 1]);
        let on = |node, soft| task(Demand::cpus(1_000), Strategy::Node { node, soft }, Vec::new());
        assert_eq!(place(&mut head, on(node(3), false)), Ok(node(3)));
        assert!(place(&mut head, on(node(9), true)).is_ok());
        let why = place(&mut head, on(node(9), false)).unwrap_err();
        assert_eq!(why, "it must run on node 000000000000.9, which is not there");
        let labelled = |value: &str, soft| {
            let strategy = Strategy::Labels { labels: vec![("parity".into(), value.into())], soft };
            task(Demand::cpus(1_000), strategy, Vec::new())
        };
        assert_eq!(place(&mut head, labelled("odd", false)), Ok(node(2)));
        assert_eq!(place(&mut head, labelled("odd", true)), Ok(node(2)), "although it has something to do");
        let why = place(&mut head, labelled("none", false)).unwrap_err();
        assert!(why.starts_with("no node has the labels parity=none; the nearest is 000000000000."), "{why}");
        assert!(place(&mut head, labelled("none", true)).is_ok());
    }

    #[test]
    fn spread_goes_to_the_node_with_the_fewest_tasks() {
        let mut head = head(&[1, 16, 1]);
        let spread = || task(Demand::cpus(1_000), Strategy::Spread, Vec::new());
        let places: Vec<_> = (0..6).map(|_| place(&mut head, spread()).unwrap().0).collect();
        assert_eq!(places, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn an_idle_node_gets_work_from_the_busiest() {
        let mut head = head(&[2, 2]);
        let mut out = Effects::default();
        let load = |waiting| Message::Load(Load { waiting, running: 2, mean: ms(1), ..Load::default() });
        head.handle(0, node(1), load(30), &mut out);
        assert!(out.sends.is_empty());
        head.handle(0, node(2), Message::Load(Load::default()), &mut out);
        let [(to, Message::Steal { thief, most, .. })] = &out.sends[..] else { panic!("{:?}", out.sends) };
        assert_eq!((*to, *thief, *most), (node(1), node(2), 15));
        // It is thought to have them, until it says what it has.
        let mut out = Effects::default();
        head.handle(0, node(1), load(60), &mut out);
        assert!(out.sends.is_empty());
        // If it gets none, it is not thought to have any, and asks again when it likes.
        for _ in 0..3 {
            let mut out = Effects::default();
            head.handle(0, node(2), Message::Load(Load::default()), &mut out);
            assert!(matches!(out.sends[..], [(_, Message::Steal { .. })]), "{out:?}");
            assert_eq!(head.nodes[&node(2)].tasks(), 0);
            let mut out = Effects::default();
            head.handle(0, node(1), load(60), &mut out);
            assert!(out.sends.is_empty());
        }
        // If there is much it need not ask.
        let mut head = self::head(&[2, 2]);
        head.handle(0, node(1), load(60), &mut out);
        let [(to, Message::Steal { thief, most, .. })] = &out.sends[..] else { panic!("{:?}", out.sends) };
        assert_eq!((*to, *thief, *most), (node(1), node(2), 30));
    }

    #[test]
    fn only_its_own_node_says_that_an_owner_has_died() {
        let mut head = head(&[1, 1]);
        let worker = ProcessId(101);
        let mut out = Effects::default();
        head.handle(
            0,
            worker,
            Message::JoinOwner { wish: Some(node(1)), on: Some(node(1)), groups: Vec::new() },
            &mut out,
        );
        head.handle(0, node(2), Message::Died { process: worker }, &mut out);
        head.handle(0, node(1), Message::Died { process: OWNER }, &mut out);
        assert!(!head.has_buried(worker) && !head.has_buried(OWNER));
        head.handle(0, node(1), Message::Died { process: worker }, &mut out);
        assert!(head.has_buried(worker));
        head.handle(0, node(1), Message::Died { process: node(2) }, &mut out);
        head.handle(0, node(1), Message::Died { process: ProcessId(102) }, &mut out);
        out = Effects::default();
        head.handle(0, ProcessId(102), Message::JoinOwner { wish: None, on: None, groups: Vec::new() }, &mut out);
        assert!(!head.has_buried(node(2)) && matches!(out.sends[..], [(ProcessId(102), Message::Fenced)]));
    }

    #[test]
    fn the_dead_are_told_to_all_and_are_not_heard() {
        let mut head = head(&[1, 1]);
        let mut out = Effects::default();
        let late = PATIENCE + BEAT;
        head.handle(late, node(2), Message::Load(Load::default()), &mut out);
        head.handle(late, OWNER, Message::Beat, &mut out);
        out = Effects::default();
        head.tick(late, &mut out);
        let told = |to| {
            out.sends.iter().any(|(who, m)| *who == to && matches!(m, Message::Dead { process } if *process == node(1)))
        };
        assert!(told(node(2)) && told(OWNER));
        out = Effects::default();
        head.handle(late, node(1), Message::Load(Load::default()), &mut out);
        assert!(matches!(out.sends[..], [(ProcessId(1), Message::Fenced)]));
    }

    /// What a head has noted, and the head that is started with that.
    fn again(now: Nanos, out: &mut Effects, mut memory: Memory) -> (Head, Memory) {
        out.notes.drain(..).for_each(|note| memory.note(note));
        (Head::restarted(now, memory.clone()), memory)
    }

    /// A head that was started again, and knew nodes 1 and 2 and the owner; node 2 is dead.
    fn restarted() -> Head {
        let (mut head, mut out) = (Head::new(), Effects::default());
        for number in 1..=2 {
            let capacity = Capacity { cpu: 1_000, ..Capacity::default() };
            head.handle(0, node(number), join(capacity, Vec::new()), &mut out);
        }
        head.handle(0, OWNER, Message::JoinOwner { wish: None, on: None, groups: Vec::new() }, &mut out);
        head.bury(0, node(2), &mut out);
        again(0, &mut out, Memory::default()).0
    }

    #[test]
    fn a_head_that_is_started_again_hears_those_who_join_again_and_not_the_dead() {
        let (mut head, mut out) = (restarted(), Effects::default());
        head.handle(0, OWNER, Message::Place(plain()), &mut out);
        head.handle(0, node(1), Message::Load(Load::default()), &mut out);
        assert!(out.sends.is_empty() && head.holds() == (0, 0, 0), "that was said to the last one");
        head.handle(0, node(2), join(Capacity::default(), Vec::new()), &mut out);
        assert!(matches!(out.sends[..], [(ProcessId(2), Message::Fenced)]));
        out = Effects::default();
        head.handle(0, OWNER, Message::JoinOwner { wish: Some(node(1)), on: None, groups: Vec::new() }, &mut out);
        assert!(matches!(out.sends[..], [(OWNER, Message::Dead { process: ProcessId(2) })]));
        assert!(out.notes.is_empty(), "it knows the owner");
    }

    #[test]
    fn what_a_node_could_run_that_has_not_joined_again_waits_for_it() {
        let (mut head, mut out) = (restarted(), Effects::default());
        head.handle(0, OWNER, Message::JoinOwner { wish: Some(node(1)), on: None, groups: Vec::new() }, &mut out);
        out = Effects::default();
        let hard = task(Demand::cpus(1_000), Strategy::Node { node: node(1), soft: false }, Vec::new());
        head.handle(0, OWNER, Message::Place(hard), &mut out);
        head.handle(0, OWNER, Message::Place(plain()), &mut out);
        assert!(out.sends.is_empty() && head.holds().1 == 2);
        let capacity = Capacity { cpu: 1_000, ..Capacity::default() };
        head.handle(0, node(1), join(capacity, Vec::new()), &mut out);
        let assigned = out.sends.iter().filter(|(to, m)| *to == node(1) && matches!(m, Message::Assign(_))).count();
        assert_eq!((assigned, head.holds().1), (2, 0));
    }

    #[test]
    fn who_does_not_join_again_in_time_is_dead() {
        let (mut head, mut out) = (restarted(), Effects::default());
        head.handle(0, OWNER, Message::JoinOwner { wish: None, on: None, groups: Vec::new() }, &mut out);
        for now in [REUNION / 2, REUNION] {
            head.handle(now, OWNER, Message::Beat, &mut out);
            out = Effects::default();
            head.tick(now, &mut out);
        }
        assert_eq!(out.notes, [Note::Died(node(1))]);
        assert!(matches!(out.sends[..], [(OWNER, Message::Dead { process: ProcessId(1) })]));
    }
}
