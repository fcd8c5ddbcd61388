//! The head's part in placement groups: where their bundles can lie, and who has said that they do.

use super::{Head, NodeView, REUNION};
use crate::cluster::{
    capacity::{Capacity, Demand},
    protocol::{Effects, GroupSpec, Message, Nanos, ObjectId, Policy, ProcessId, called, ms},
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Why a task can never run in this bundle of a group of these, if so.
pub(crate) fn misfit(bundles: &[Demand], bundle: usize, demand: &Demand) -> Option<String> {
    let Some(size) = bundles.get(bundle) else {
        return Some(format!("its placement group has {} bundles, and no bundle {bundle}", bundles.len()));
    };
    let lack = Capacity::of(size).lack(demand)?;
    Some(format!("bundle {bundle} of its placement group is too small: {lack}"))
}

/// A node that has not set aside a bundle after so long holds the others up: they are given back, and
/// tried again.
const RESERVATION: Nanos = ms(5_000);

pub(super) struct Group {
    bundles: Vec<Demand>,
    policy: Policy,
    /// When it fails, if it is not ready.
    until: Option<Nanos>,
    places: Vec<Option<Place>>,
    /// Counts the attempts to find places.
    round: u32,
    /// When the last of them began.
    since: Nanos,
    /// What it waited for last.
    why: String,
}

struct Place {
    node: ProcessId,
    round: u32,
    /// The node has said that it is set aside.
    reserved: bool,
}

impl Group {
    pub(super) fn new(now: Nanos, spec: GroupSpec) -> Self {
        let GroupSpec { bundles, policy, patience, .. } = spec;
        let until = patience.map(|patience| now.saturating_add(patience));
        Group::of(bundles, policy, until)
    }

    fn of(bundles: Vec<Demand>, policy: Policy, until: Option<Nanos>) -> Self {
        let places = bundles.iter().map(|_| None).collect();
        Group { bundles, policy, until, places, round: 0, since: 0, why: String::new() }
    }

    /// Whether places are to be found.
    pub(super) fn is_missing(&self) -> bool {
        self.places.iter().any(Option::is_none)
    }

    fn is_ready(&self) -> bool {
        self.places.iter().all(|place| place.as_ref().is_some_and(|place| place.reserved))
    }

    /// Gives back what was asked for in the last round, unless all of it is set aside.
    fn withdraw(&mut self, id: ObjectId, out: &mut Effects) {
        for (bundle, slot) in self.places.iter_mut().enumerate() {
            if let Some(place) = slot.take_if(|place| place.round == self.round) {
                out.send(place.node, Message::Unreserve { group: id, bundle: bundle as u32 });
            }
        }
    }

    /// Finds nodes for the bundles that have none, as the policy wishes; `nodes` have so much room, the
    /// best first.
    fn plan(&self, nodes: Vec<(ProcessId, Capacity)>, names: Names<'_>) -> Result<BTreeMap<usize, ProcessId>, String> {
        // The largest first: the others find room more easily.
        let mut missing: Vec<usize> = (0..self.bundles.len()).filter(|bundle| self.places[*bundle].is_none()).collect();
        let size = |bundle: &usize| {
            let demand = &self.bundles[*bundle];
            Reverse((demand.gpus(), demand.cpu, demand.memory))
        };
        missing.sort_by_key(size);
        let used: BTreeSet<ProcessId> = self.places.iter().flatten().map(|place| place.node).collect();
        let too_big = missing.iter().find(|bundle| !nodes.iter().any(|(_, room)| room.fits(&self.bundles[**bundle])));
        if let Some(bundle) = too_big {
            return Err(self.no_room(*bundle, &nodes, names));
        }
        match self.policy {
            Policy::StrictPack => self.on_one(&missing, &nodes).ok_or("no node has room for all of its bundles".into()),
            Policy::Pack => {
                let one = self.on_one(&missing, &nodes);
                one.or_else(|| self.on_any(&missing, nodes, used, Policy::Pack)).ok_or(NOT_TOGETHER.into())
            }
            Policy::Spread => {
                let spread = self.on_any(&missing, nodes.clone(), used.clone(), Policy::Spread);
                spread.or_else(|| self.on_any(&missing, nodes, used, Policy::Pack)).ok_or(NOT_TOGETHER.into())
            }
            Policy::StrictSpread => {
                let nodes: Vec<_> = nodes.into_iter().filter(|(id, _)| !used.contains(id)).collect();
                self.on_different(&missing, &nodes).ok_or_else(|| {
                    format!("its {} bundles need as many nodes with room for one each", self.bundles.len())
                })
            }
        }
    }

    /// Why it could not lie on these nodes even if they were empty.
    fn never(&self, nodes: &[(ProcessId, Capacity)], names: Names<'_>) -> Option<String> {
        let first = |count: usize| Group::of(self.bundles[..count].to_vec(), self.policy, None);
        let all = first(self.bundles.len()).plan(nodes.to_vec(), names).err()?;
        // What is said is about the first bundle that is too much.
        let (count, why) = (1..self.bundles.len())
            .find_map(|count| Some((count, first(count).plan(nodes.to_vec(), names).err()?)))
            .unwrap_or((self.bundles.len(), all));
        let (bundle, demand) = (count - 1, &self.bundles[count - 1]);
        Some(match self.policy {
            // One that fits nowhere: which node comes nearest is known.
            _ if !nodes.iter().any(|(_, capacity)| capacity.fits(demand)) => why,
            Policy::StrictSpread => {
                format!("StrictSpread wants {count} nodes that are big enough for a bundle each, and there are fewer")
            }
            Policy::StrictPack => {
                format!("no node is big enough for bundle {bundle} ({demand}) beside those before it")
            }
            Policy::Pack | Policy::Spread => {
                format!("the nodes are not big enough for bundle {bundle} ({demand}) beside those before it")
            }
        })
    }

    fn no_room(&self, bundle: usize, nodes: &[(ProcessId, Capacity)], names: Names<'_>) -> String {
        let demand = &self.bundles[bundle];
        let lack = |room: &Capacity| room.lack(demand);
        let gap = |room: &Capacity| lack(room).map_or(0.0, |lack| lack.gap());
        match nodes.iter().min_by(|(_, a), (_, b)| gap(a).total_cmp(&gap(b))) {
            None => "there is no node".into(),
            Some((id, room)) => format!(
                "no node has room for bundle {bundle}; the nearest is {}: {}",
                names(*id),
                lack(room).map(|lack| lack.to_string()).unwrap_or_default()
            ),
        }
    }

    fn on_one(&self, missing: &[usize], nodes: &[(ProcessId, Capacity)]) -> Option<BTreeMap<usize, ProcessId>> {
        let fits_all = |room: &Capacity| {
            let mut room = room.clone();
            missing.iter().all(|bundle| room.take(&self.bundles[*bundle]).is_some())
        };
        let (node, _) = nodes.iter().find(|(_, room)| fits_all(room))?;
        Some(missing.iter().map(|bundle| (*bundle, *node)).collect())
    }

    /// One by one, on nodes that have others already, or that have few.
    fn on_any(
        &self,
        missing: &[usize],
        mut nodes: Vec<(ProcessId, Capacity)>,
        used: BTreeSet<ProcessId>,
        policy: Policy,
    ) -> Option<BTreeMap<usize, ProcessId>> {
        let mut counts: BTreeMap<ProcessId, usize> = used.into_iter().map(|node| (node, 1)).collect();
        let mut plan = BTreeMap::new();
        for bundle in missing {
            let demand = &self.bundles[*bundle];
            let fits = nodes.iter_mut().filter(|(_, room)| room.fits(demand));
            let count = |id: &ProcessId| counts.get(id).copied().unwrap_or(0);
            let (id, room) = match policy {
                Policy::Spread => fits.min_by_key(|(id, _)| count(id))?,
                _ => fits.min_by_key(|(id, _)| Reverse(count(id)))?,
            };
            room.take(demand)?;
            *counts.entry(*id).or_default() += 1;
            plan.insert(*bundle, *id);
        }
        Some(plan)
    }

    /// Each on another node: a matching, found by augmenting paths.
    fn on_different(&self, missing: &[usize], nodes: &[(ProcessId, Capacity)]) -> Option<BTreeMap<usize, ProcessId>> {
        let mut taken_by: BTreeMap<usize, usize> = BTreeMap::new();
        for bundle in missing {
            // By breadth: who came to a node from which bundle.
            let mut from: BTreeMap<usize, usize> = BTreeMap::new();
            let mut queue = vec![*bundle];
            let mut end = None;
            while let (Some(next), None) = (queue.pop(), end) {
                for (node, (_, room)) in nodes.iter().enumerate() {
                    if from.contains_key(&node) || !room.fits(&self.bundles[next]) {
                        continue;
                    }
                    from.insert(node, next);
                    match taken_by.get(&node) {
                        Some(other) => queue.push(*other),
                        None => {
                            end = Some(node);
                            break;
                        }
                    }
                }
            }
            let mut node = end?;
            loop {
                let mover = *from.get(&node)?;
                let left = taken_by.iter().find(|(_, other)| **other == mover).map(|(left, _)| *left);
                taken_by.insert(node, mover);
                match left {
                    Some(left) => node = left,
                    None => break,
                }
            }
        }
        Some(taken_by.into_iter().map(|(node, bundle)| (bundle, nodes[node].0)).collect())
    }
}

/// What people call a node.
type Names<'a> = &'a dyn Fn(ProcessId) -> Arc<str>;

fn name_in(nodes: &BTreeMap<ProcessId, NodeView>, node: ProcessId) -> Arc<str> {
    nodes.get(&node).map_or_else(|| node.to_string().into(), |view| view.name.clone())
}

const NOT_TOGETHER: &str = "there is room for each of its bundles, but not for all together";

impl Head {
    /// A new group. One that could not lie on the nodes of this cluster even if they were empty fails at once; those
    /// that died lately may come again.
    pub(super) fn create_group(&mut self, now: Nanos, id: ObjectId, group: Group, out: &mut Effects) {
        let there = self.nodes.iter().map(|(id, view)| (*id, view.capacity.clone()));
        let departed = self.dead.iter().filter_map(|(id, departed)| Some((*id, departed.node.as_ref()?.0.clone())));
        let nodes: Vec<_> = there.chain(departed).collect();
        let names = |node| match self.dead.get(&node).and_then(|departed| departed.node.as_ref()) {
            Some((_, labels)) => called(node, labels),
            None => name_in(&self.nodes, node),
        };
        if let Some(why) = group.never(&nodes, &names).filter(|_| !nodes.is_empty() && !self.is_reuniting) {
            return out.send(id.owner, Message::GroupFailed { group: id, why: why.into() });
        }
        self.groups.insert(id, group);
        self.place_group(now, id, out);
    }

    /// Finds places for the bundles of a group that have none, and asks for them.
    pub(super) fn place_group(&mut self, now: Nanos, id: ObjectId, out: &mut Effects) {
        let rooms = self.order.iter().filter_map(|(_, id)| Some((*id, self.nodes.get(id)?.room()))).collect();
        let Some(group) = self.groups.get_mut(&id) else { return };
        let plan = match group.plan(rooms, &|node| name_in(&self.nodes, node)) {
            Ok(plan) => plan,
            Err(why) => return group.why = why,
        };
        group.round += 1;
        (group.since, group.why) = (now, "the nodes are asked to set it aside".into());
        let round = group.round;
        for (bundle, node) in &plan {
            group.places[*bundle] = Some(Place { node: *node, round, reserved: false });
            let demand = group.bundles[*bundle].clone();
            if let Some(view) = self.nodes.get_mut(node) {
                view.promise(&demand);
            }
            out.send(*node, Message::Reserve { group: id, bundle: *bundle as u32, round, demand });
        }
        for node in plan.into_values() {
            self.reorder(node);
        }
        self.tell_if_ready(id, out); // it may have no bundles
    }

    fn tell_if_ready(&mut self, id: ObjectId, out: &mut Effects) {
        if let Some(group) = self.groups.get(&id).filter(|group| group.is_ready()) {
            let places = group.places.iter().flatten().map(|place| place.node).collect();
            out.send(id.owner, Message::GroupReady { group: id, places });
        }
    }

    /// A node has set a bundle aside, or has no room for it.
    pub(super) fn reserved(
        &mut self,
        now: Nanos,
        from: ProcessId,
        (id, bundle): (ObjectId, u32),
        (round, ok): (u32, bool),
        out: &mut Effects,
    ) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Some(Some(place)) = group.places.get_mut(bundle as usize) else { return };
        if (place.node, place.round) != (from, round) {
            return; // given back meanwhile
        }
        if ok {
            place.reserved = true;
            self.tell_if_ready(id, out);
        } else {
            group.withdraw(id, out);
            group.why = format!("{} has no room for bundle {bundle} any more", name_in(&self.nodes, from));
        }
        self.try_again(now, out);
    }

    /// The node that a task in a bundle runs on.
    pub(super) fn place_of(&self, group: ObjectId, bundle: u32, demand: &Demand) -> Result<Option<ProcessId>, String> {
        let Some(group) = self.groups.get(&group) else {
            return Err("its placement group was removed, or could not be set aside".into());
        };
        if let Some(why) = misfit(&group.bundles, bundle as usize, demand) {
            return Err(why);
        }
        let place = group.places.get(bundle as usize).and_then(Option::as_ref);
        Ok(place.filter(|_| group.is_ready()).map(|place| place.node))
    }

    pub(super) fn drop_group(&mut self, id: ObjectId, out: &mut Effects) {
        let Some(group) = self.groups.remove(&id) else { return };
        for (bundle, place) in group.places.iter().enumerate() {
            if let Some(place) = place {
                out.send(place.node, Message::Unreserve { group: id, bundle: bundle as u32 });
            }
        }
    }

    /// Gives up those that are late, and starts anew with those that a node holds up.
    pub(super) fn look_after_groups(&mut self, now: Nanos, out: &mut Effects) {
        let unready = self.groups.iter_mut().filter(|(_, group)| !group.is_ready());
        let mut late = Vec::new();
        for (id, group) in unready {
            if group.until.is_some_and(|until| until <= now) {
                late.push((*id, group.why.clone()));
            } else if !group.is_missing() && group.since + RESERVATION <= now {
                let node = group.places.iter().flatten().find(|place| !place.reserved).map(|place| place.node);
                let node = node.map(|node| name_in(&self.nodes, node)).unwrap_or_default();
                group.withdraw(*id, out);
                group.why = format!("the tasks that run on {node} have not left it the room for too long");
            }
        }
        for (group, why) in late {
            self.drop_group(group, out);
            let why = format!("its bundles could not be set aside in time: {why}").into();
            out.send(group.owner, Message::GroupFailed { group, why });
        }
    }

    /// The groups of an owner that died go; those with bundles on a node that died get other places.
    pub(super) fn bury_groups(&mut self, now: Nanos, process: ProcessId, out: &mut Effects) {
        let orphans: Vec<_> = self.groups.keys().filter(|id| id.owner == process).copied().collect();
        for group in orphans {
            self.drop_group(group, out);
        }
        let mut hit = Vec::new();
        for (id, group) in &mut self.groups {
            let mut lost = group.places.iter_mut().filter(|place| place.as_ref().is_some_and(|p| p.node == process));
            if lost.next().map(|place| *place = None).is_some() {
                lost.for_each(|place| *place = None);
                hit.push(*id);
            }
        }
        for group in hit {
            self.place_group(now, group, out);
        }
    }

    /// A node has joined again, with what it had set aside.
    pub(super) fn returned(
        &mut self,
        now: Nanos,
        node: ProcessId,
        bundles: Vec<(ObjectId, u32, u32)>,
        out: &mut Effects,
    ) {
        let mut there = BTreeSet::new();
        for (id, bundle, round) in bundles {
            let Some(group) = self.groups.get_mut(&id) else {
                match self.owners.contains_key(&id.owner) {
                    // It was given up while there was no head.
                    true => out.send(node, Message::Unreserve { group: id, bundle }),
                    false => drop(self.unclaimed.insert((id, bundle), (node, round))),
                }
                continue;
            };
            there.insert((id, bundle));
            match group.places.get_mut(bundle as usize) {
                Some(slot) if slot.as_ref().is_none_or(|place| place.node == node && !place.reserved) => {
                    group.round = group.round.max(round);
                    *slot = Some(Place { node, round, reserved: true });
                    self.tell_if_ready(id, out);
                }
                _ => out.send(node, Message::Unreserve { group: id, bundle }),
            }
        }
        // What was said to be there, and is not.
        let mut hit = Vec::new();
        for (id, group) in &mut self.groups {
            for (bundle, slot) in group.places.iter_mut().enumerate() {
                let is_gone = |place: &mut Place| place.node == node && !there.contains(&(*id, bundle as u32));
                if slot.take_if(is_gone).is_some() {
                    hit.push(*id);
                }
            }
        }
        hit.dedup();
        for group in hit {
            self.place_group(now, group, out);
        }
    }

    /// An owner has joined, perhaps again, and has these groups; others of its own it has given up.
    pub(super) fn adopt(&mut self, now: Nanos, owner: ProcessId, groups: Vec<GroupSpec>, out: &mut Effects) {
        for spec in groups {
            let (id, places) = (spec.id, spec.places.clone());
            let mut group = Group::new(now, spec);
            (group.since, group.why) = (now + REUNION, "the nodes that have its bundles join again".into());
            for (bundle, slot) in group.places.iter_mut().enumerate() {
                let expected = places.get(bundle).filter(|node| self.expected.contains_key(node));
                *slot = match self.unclaimed.remove(&(id, bundle as u32)) {
                    Some((node, round)) => {
                        group.round = group.round.max(round);
                        Some(Place { node, round, reserved: true })
                    }
                    None => expected.map(|node| Place { node: *node, round: 0, reserved: false }),
                };
            }
            self.groups.insert(id, group);
            match self.groups.get(&id).is_some_and(Group::is_missing) {
                true => self.place_group(now, id, out),
                false => self.tell_if_ready(id, out),
            }
        }
        self.unclaimed.retain(|(group, bundle), (node, _)| {
            let is_theirs = group.owner == owner;
            if is_theirs {
                out.send(*node, Message::Unreserve { group: *group, bundle: *bundle });
            }
            !is_theirs
        });
    }

    /// All groups: how many bundles each has, and whether it is ready or what it waits for.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (ObjectId, usize, String)> + '_ {
        self.groups.iter().map(|(id, group)| (*id, group.bundles.len(), self.explain_group(*id)))
    }

    /// What a group waits for.
    pub(super) fn explain_group(&self, id: ObjectId) -> String {
        match self.groups.get(&id) {
            None => "there is no such placement group: it was removed, or could not be set aside".into(),
            Some(group) if group.is_ready() => "it is ready".into(),
            Some(group) => format!("it waits: {}", group.why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::{
            head::PATIENCE,
            protocol::{Load, Member, Note, Strategy, TaskSpec},
        },
        gpu::{GpuRequest, Inventory, placement::Devices},
    };

    const OWNER: ProcessId = ProcessId(100);
    const GROUP: ObjectId = ObjectId { owner: OWNER, number: 1 };

    fn spec(id: ObjectId, bundles: Vec<Demand>, policy: Policy, patience: Option<Nanos>) -> Message {
        Message::CreateGroup(GroupSpec { id, bundles, policy, patience, places: Vec::new() })
    }

    /// A head, and what it has said.
    struct Talk(Head, Effects);

    impl Talk {
        /// With nodes 1, 2 and so on, of so many CPUs and GPUs.
        fn new(nodes: &[(u32, u32)]) -> Self {
            let mut talk = Talk(Head::new(), Effects::default());
            talk.say(OWNER, Message::JoinOwner { wish: None, on: None, groups: Vec::new() });
            nodes.iter().for_each(|(cpus, gpus)| talk.join(*cpus, *gpus));
            talk
        }

        fn say(&mut self, from: ProcessId, message: Message) {
            self.1 = Effects::default();
            self.0.handle(0, from, message, &mut self.1);
        }

        fn join(&mut self, cpus: u32, gpus: u32) {
            let node = ProcessId(self.0.nodes.len() as u64 + 1);
            let gpus = Devices::new(Inventory::simulated(gpus));
            let capacity = Capacity { cpu: cpus * 1_000, gpus, ..Capacity::default() };
            let (labels, bundles) = (Vec::new(), Vec::new());
            self.say(node, Message::JoinNode { capacity, labels, load: Load::default(), bundles });
        }

        /// So much of a node is not taken for good.
        fn has(&mut self, node: u64, room: Capacity) {
            self.say(ProcessId(node), Message::Load(Load { room: Some(room), ..Load::default() }));
        }

        fn create(&mut self, bundles: &[Demand], policy: Policy, patience: Option<Nanos>) {
            let bundles = bundles.to_vec();
            self.say(OWNER, spec(GROUP, bundles, policy, patience));
        }

        /// Which nodes were asked for which bundle, in the last step.
        fn asked(&self) -> Vec<(u64, u32, u32)> {
            let asked = self.1.sends.iter().filter_map(|(to, message)| match message {
                Message::Reserve { bundle, round, .. } => Some((to.0, *bundle, *round)),
                _ => None,
            });
            let mut asked: Vec<_> = asked.collect();
            asked.sort_by_key(|(_, bundle, _)| *bundle);
            asked
        }

        fn nodes_asked(&self) -> Vec<u64> {
            self.asked().into_iter().map(|(node, ..)| node).collect()
        }

        fn answer(&mut self, (node, bundle, round): (u64, u32, u32), ok: bool) {
            self.say(ProcessId(node), Message::Reserved { group: GROUP, bundle, round, ok });
        }

        /// All that were asked say yes: where the owner is told that the bundles are.
        fn agree(&mut self) -> Vec<u64> {
            self.asked().into_iter().for_each(|asked| self.answer(asked, true));
            match &self.1.sends[..] {
                [(OWNER, Message::GroupReady { places, .. }), ..] => places.iter().map(|node| node.0).collect(),
                other => panic!("{other:?}"),
            }
        }

        fn explain(&self) -> String {
            self.0.explain_group(GROUP)
        }

        fn place(&mut self, demand: Demand, bundle: u32) {
            let (id, demand) = (ObjectId { number: 9, ..GROUP }, Arc::new(demand));
            let strategy = Strategy::Bundle { group: GROUP, bundle, node: None };
            let (args, body) = (Vec::new(), crate::cluster::wire::Blob::default());
            self.say(
                OWNER,
                Message::Place(TaskSpec {
                    id,
                    attempt: 1,
                    hop: 0,
                    count: 1,
                    demand,
                    strategy,
                    args,
                    stays: false,
                    body,
                }),
            );
        }
    }

    fn gpus(count: u32) -> Option<Arc<GpuRequest>> {
        Some(GpuRequest::whole(count).into())
    }

    fn cpus(count: u32) -> Demand {
        Demand::cpus(count * 1_000)
    }

    #[test]
    fn a_group_waits_for_room_and_says_for_what() {
        let mut talk = Talk::new(&[(2, 0), (2, 0), (2, 0)]);
        talk.has(3, Capacity::default());
        talk.create(&[cpus(1), cpus(1), cpus(1)], Policy::StrictSpread, None);
        assert!(talk.asked().is_empty());
        assert_eq!(talk.explain(), "it waits: its 3 bundles need as many nodes with room for one each");
        talk.join(1, 0);
        assert_eq!(talk.agree().into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([1, 2, 4]));
        assert_eq!(talk.explain(), "it is ready");
    }

    #[test]
    fn a_group_that_can_never_be_set_aside_fails_at_once_and_says_why() {
        let why = |talk: &Talk| match &talk.1.sends[..] {
            [(OWNER, Message::GroupFailed { why, .. })] => why.to_string(),
            other => panic!("{other:?}"),
        };
        for (bundles, policy, expected) in [
            (
                vec![cpus(1), Demand { gpu: gpus(4), ..cpus(1) }],
                Policy::Pack,
                "no node has room for bundle 1; the nearest is 000000000000.1: 4 GPUs wanted, 2 there",
            ),
            (
                vec![cpus(1), cpus(2), cpus(2)],
                Policy::Spread,
                "the nodes are not big enough for bundle 2 (2 CPUs) beside those before it",
            ),
            (
                vec![cpus(2), cpus(1)],
                Policy::StrictPack,
                "no node is big enough for bundle 1 (1 CPUs) beside those before it",
            ),
            (
                vec![cpus(1), cpus(1), cpus(1)],
                Policy::StrictSpread,
                "StrictSpread wants 3 nodes that are big enough for a bundle each, and there are fewer",
            ),
        ] {
            let mut talk = Talk::new(&[(2, 2), (2, 0)]);
            // What is taken makes no difference.
            talk.has(2, Capacity::default());
            talk.create(&bundles, policy, None);
            assert_eq!(why(&talk), expected);
            assert_eq!(talk.0.holds().2, 0);
        }
    }

    #[test]
    fn a_node_that_died_lately_may_come_again() {
        let mut talk = Talk::new(&[(1, 0), (1, 0)]);
        talk.0.bury(0, ProcessId(2), &mut Effects::default());
        talk.create(&[cpus(1), cpus(1)], Policy::StrictSpread, None);
        assert_eq!(talk.explain(), "it waits: its 2 bundles need as many nodes with room for one each");
    }

    #[test]
    fn policies() {
        let two = [cpus(1), cpus(1)];
        for (policy, nodes) in
            [(Policy::Pack, 1), (Policy::StrictPack, 1), (Policy::Spread, 2), (Policy::StrictSpread, 2)]
        {
            let mut talk = Talk::new(&[(2, 0), (2, 0)]);
            talk.create(&two, policy, None);
            assert_eq!(talk.nodes_asked().into_iter().collect::<BTreeSet<_>>().len(), nodes, "{policy:?}");
        }
        // The others do as well as they can.
        for policy in [Policy::Pack, Policy::Spread] {
            let mut talk = Talk::new(&[(2, 0), (1, 0)]);
            talk.create(&[cpus(1), cpus(1), cpus(1)], policy, None);
            assert_eq!(talk.nodes_asked().len(), 3, "{policy:?}");
        }
        let mut talk = Talk::new(&[(2, 0), (2, 0)]);
        talk.has(1, Capacity { cpu: 1_000, ..Capacity::default() });
        talk.has(2, Capacity { cpu: 1_000, ..Capacity::default() });
        talk.create(&[cpus(1), cpus(1)], Policy::StrictPack, None);
        assert_eq!(talk.explain(), "it waits: no node has room for all of its bundles");
    }

    #[test]
    fn a_bundle_makes_way_for_one_that_fits_nowhere_else() {
        let mut talk = Talk::new(&[(4, 1), (1, 1)]);
        talk.create(&[Demand { gpu: gpus(1), ..cpus(1) }, cpus(4)], Policy::StrictSpread, None);
        assert_eq!(talk.nodes_asked(), [2, 1]);
    }

    #[test]
    fn one_refusal_takes_back_all_and_more_room_starts_it_anew() {
        let mut talk = Talk::new(&[(1, 0), (1, 0)]);
        talk.create(&[cpus(1), cpus(1)], Policy::StrictSpread, None);
        let [first, second] = talk.asked()[..] else { panic!("{:?}", talk.1) };
        talk.answer(first, true);
        let room = Some(Capacity::default());
        talk.say(ProcessId(second.0), Message::Load(Load { assigned: 1, room, ..Load::default() }));
        talk.answer(second, false);
        let taken_back = talk.1.sends.iter().filter(|(_, message)| matches!(message, Message::Unreserve { .. }));
        assert_eq!(taken_back.count(), 2);
        assert!(talk.asked().is_empty());
        // An answer of the first round does not count any more.
        talk.answer(first, true);
        talk.say(ProcessId(first.0), Message::Load(Load { assigned: 1, ..Load::default() }));
        assert!(talk.asked().is_empty());
        talk.say(ProcessId(second.0), Message::Load(Load { assigned: 1, ..Load::default() }));
        assert_eq!(talk.agree().len(), 2);
    }

    #[test]
    fn what_is_promised_is_not_promised_again() {
        let mut talk = Talk::new(&[(1, 0)]);
        talk.create(&[cpus(1)], Policy::Pack, None);
        assert_eq!(talk.nodes_asked(), [1]);
        let group = ObjectId { number: 2, ..GROUP };
        let (bundles, policy) = (vec![cpus(1)], Policy::Pack);
        talk.say(OWNER, spec(group, bundles, policy, None));
        assert!(talk.asked().is_empty());
    }

    #[test]
    fn it_fails_when_its_time_is_over_and_says_what_was_missing() {
        let mut talk = Talk::new(&[(1, 4)]);
        let mut room = Capacity { cpu: 2_000, gpus: Devices::new(Inventory::simulated(4)), ..Capacity::default() };
        room.take(&Demand { gpu: gpus(2), ..cpus(1) });
        talk.has(1, room);
        talk.create(&[Demand { gpu: gpus(4), ..cpus(1) }], Policy::Pack, Some(ms(100)));
        talk.1 = Effects::default();
        talk.0.tick(ms(300), &mut talk.1);
        let failed = talk.1.sends.iter().find_map(|(_, message)| match message {
            Message::GroupFailed { why, .. } => Some(why.to_string()),
            _ => None,
        });
        assert_eq!(
            failed.as_deref(),
            Some(
                "its bundles could not be set aside in time: no node has room for bundle 0; the nearest is 000000000000.1: \
                 4 GPUs wanted, 2 there"
            )
        );
        assert_eq!(talk.0.holds().2, 0);
    }

    #[test]
    fn one_that_is_held_up_is_taken_back_and_tried_again() {
        let mut talk = Talk::new(&[(1, 0)]);
        talk.create(&[cpus(1)], Policy::Pack, None);
        assert_eq!(talk.asked(), [(1, 0, 1)]);
        talk.say(ProcessId(1), Message::Load(Load { assigned: 1, ..Load::default() }));
        for process in [OWNER, ProcessId(1)] {
            talk.0.handle(RESERVATION, process, Message::Beat, &mut talk.1);
        }
        talk.1 = Effects::default();
        talk.0.tick(RESERVATION, &mut talk.1);
        assert_eq!(talk.asked(), [(1, 0, 2)]);
        assert!(matches!(talk.1.sends[0], (ProcessId(1), Message::Unreserve { .. })));
    }

    #[test]
    fn lost_bundles_get_other_places() {
        let mut talk = Talk::new(&[(1, 0), (1, 0), (1, 0)]);
        talk.create(&[cpus(1), cpus(1)], Policy::StrictSpread, None);
        let before = talk.agree();
        let (kept, lost) = (before[0], before[1]);
        let late = PATIENCE + ms(400);
        for living in [1, 2, 3].into_iter().filter(|node| *node != lost) {
            talk.0.handle(late, ProcessId(living), Message::Beat, &mut talk.1);
        }
        talk.0.handle(late, OWNER, Message::Beat, &mut talk.1);
        talk.1 = Effects::default();
        talk.0.tick(late, &mut talk.1);
        let after = talk.agree();
        assert_eq!((after[0], after.contains(&lost)), (kept, false));
    }

    #[test]
    fn a_task_in_a_bundle_waits_for_the_group_and_must_fit_the_bundle() {
        let mut talk = Talk::new(&[(1, 0), (4, 0)]);
        talk.create(&[cpus(2)], Policy::Pack, None);
        let asked = talk.asked();
        talk.place(cpus(1), 0);
        assert!(talk.1.sends.is_empty());
        talk.answer(asked[0], true);
        assert!(talk.1.sends.iter().any(|(to, message)| *to == ProcessId(2) && matches!(message, Message::Assign(_))));
        let refused = |talk: &Talk| match &talk.1.sends[..] {
            [.., (OWNER, Message::Unplaceable { why, .. })] => why.to_string(),
            other => panic!("{other:?}"),
        };
        talk.place(cpus(3), 0);
        assert_eq!(refused(&talk), "bundle 0 of its placement group is too small: 3 CPUs wanted, 2 there");
        talk.place(cpus(1), 1);
        assert_eq!(refused(&talk), "its placement group has 1 bundles, and no bundle 1");
        talk.say(OWNER, Message::RemoveGroup { group: GROUP });
        assert!(matches!(talk.1.sends[..], [(ProcessId(2), Message::Unreserve { .. })]));
        talk.place(cpus(1), 0);
        assert_eq!(refused(&talk), "its placement group was removed, or could not be set aside");
    }

    #[test]
    fn a_group_goes_with_its_owner() {
        let mut talk = Talk::new(&[(1, 0)]);
        talk.create(&[cpus(1)], Policy::Pack, None);
        talk.agree();
        talk.1 = Effects::default();
        talk.0.bury(0, OWNER, &mut talk.1);
        assert!(talk.1.sends.iter().any(|(_, message)| matches!(message, Message::Unreserve { .. })));
        assert_eq!(talk.0.holds().2, 0);
    }

    /// The head is started again. The owner has the group, ready on these nodes, and the nodes join again in this
    /// order, each with the bundles that it has.
    fn again(talk: Talk, places: &[u64], nodes: &[(u64, &[u32])]) -> Talk {
        let mut memory = crate::cluster::head::Memory::default();
        let members = talk.0.nodes.iter().map(|(id, view)| (*id, view.capacity.clone())).collect::<Vec<_>>();
        for (node, capacity) in &members {
            let member = Member::Node { capacity: capacity.clone(), labels: Vec::new() };
            memory.note(Note::Joined(*node, member));
        }
        let mut talk = Talk(Head::restarted(0, memory), Effects::default());
        let (bundles, places) = (vec![cpus(1), cpus(1)], places.iter().map(|node| ProcessId(*node)).collect());
        let spec = GroupSpec { id: GROUP, bundles, policy: Policy::StrictSpread, patience: None, places };
        talk.say(OWNER, Message::JoinOwner { wish: None, on: None, groups: vec![spec] });
        for (node, bundles) in nodes {
            let node = ProcessId(*node);
            let capacity = members.iter().find(|(id, _)| *id == node).map(|(_, capacity)| capacity.clone());
            let bundles = bundles.iter().map(|bundle| (GROUP, *bundle, 3)).collect();
            let (capacity, labels, load) = (capacity.unwrap_or_default(), Vec::new(), Load::default());
            talk.say(node, Message::JoinNode { capacity, labels, load, bundles });
        }
        talk
    }

    #[test]
    fn a_group_is_ready_again_when_its_nodes_have_joined_the_next_head() {
        let talk = again(Talk::new(&[(1, 0), (1, 0)]), &[2, 1], &[(1, &[1]), (2, &[0])]);
        let [(OWNER, Message::GroupReady { places, .. }), ..] = &talk.1.sends[..] else { panic!("{:?}", talk.1) };
        assert_eq!(*places, [ProcessId(2), ProcessId(1)]);
        assert!(talk.asked().is_empty());
    }

    #[test]
    fn a_bundle_that_is_not_where_it_was_gets_another_place() {
        let talk = again(Talk::new(&[(1, 0), (1, 0), (1, 0)]), &[2, 1], &[(3, &[]), (1, &[1]), (2, &[])]);
        assert_eq!(talk.nodes_asked().len(), 1);
        assert_ne!(talk.nodes_asked(), [1]);
    }

    #[test]
    fn what_is_set_aside_for_a_group_that_was_given_up_is_given_back() {
        let mut talk = again(Talk::new(&[(1, 0), (1, 0)]), &[2, 1], &[(1, &[1]), (2, &[0])]);
        let other = ObjectId { number: 77, ..GROUP };
        let capacity = Capacity::default();
        let (labels, load, bundles) = (Vec::new(), Load::default(), vec![(other, 0, 1)]);
        talk.say(ProcessId(9), Message::JoinNode { capacity, labels, load, bundles });
        let is_given_back = |(to, message): &(ProcessId, Message)| {
            *to == ProcessId(9) && matches!(message, Message::Unreserve { group, bundle: 0 } if *group == other)
        };
        assert!(talk.1.sends.iter().any(is_given_back), "{:?}", talk.1);
    }
}
