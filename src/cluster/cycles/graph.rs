//! Who waits for whom in several processes, and who of them can never go on.
//!
//! A need is met when all of its targets, but for a few that may be missing, can go on; who has a need that
//! cannot be met is *stuck*. What is not known is thought to go on. Of those who are stuck some only wait for others:
//! a cycle is a group in which each waits for all others, at some removes, and nobody for anybody outside of it.

use super::super::protocol::{ObjectId, ProcessId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map};

/// More are not looked at: so many waits are seldom a cycle, and never a short one.
const MOST: usize = 200_000;

/// Something that may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Spot {
    /// An object of the cluster, wherever it is made.
    Object(ObjectId),
    /// A node of this process's local runtime.
    Local(ProcessId, u64),
}

/// One wait of one thread or future.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Ticket {
    pub(crate) process: ProcessId,
    pub(crate) number: u64,
}

/// So many of the targets may never end (`spare`); all others must.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Need {
    /// If a thread or a future waits for it.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) targets: Vec<Spot>,
    pub(crate) spare: usize,
}

impl Need {
    /// Without a wait: its turn, or an argument.
    pub(crate) fn of(target: Spot) -> Need {
        Need { ticket: None, targets: vec![target], spare: 0 }
    }
}

/// What a process knows of one spot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) at: Spot,
    /// What it is called.
    pub(crate) label: Option<String>,
    /// All must be met.
    pub(crate) needs: Vec<Need>,
    /// Of an object: the node of the local runtime that makes it.
    pub(crate) made_by: Option<Spot>,
    /// Of an object: who may know more.
    pub(crate) place: Option<ProcessId>,
}

impl Entry {
    /// Nothing is known of it, so it is not in the way.
    pub(crate) fn free(at: Spot) -> Entry {
        Entry { at, label: None, needs: Vec::new(), made_by: None, place: None }
    }
}

/// A group of which nobody can go on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cycle {
    /// The wait that is to fail: of those in it the one with the highest number, whoever looks.
    pub(crate) ticket: Ticket,
    /// What the members are called, in the order in which they wait; from that one on.
    pub(crate) path: Vec<String>,
    /// Who needs whom of the group.
    members: BTreeMap<Spot, Vec<Need>>,
}

impl Cycle {
    /// All of its waits.
    pub(crate) fn waits(&self) -> Vec<Ticket> {
        self.members.values().flatten().filter_map(|need| need.ticket).collect()
    }
}

#[derive(Default)]
struct Known {
    label: Option<String>,
    needs: Vec<Need>,
    made_by: Vec<Spot>,
}

/// What several processes have told.
#[derive(Default)]
pub(crate) struct Graph {
    known: BTreeMap<Spot, Known>,
}

impl Graph {
    pub(crate) fn add(&mut self, entry: Entry) {
        let known = self.known.entry(entry.at).or_default();
        known.label = known.label.take().or(entry.label);
        known.made_by.extend(entry.made_by);
        for need in entry.needs.into_iter().chain(entry.made_by.map(Need::of)) {
            if !known.needs.contains(&need) {
                known.needs.push(need);
            }
        }
    }

    pub(crate) fn is_too_large(&self) -> bool {
        self.known.len() > MOST
    }

    /// All cycles, each with the wait that is to fail.
    pub(crate) fn cycles(&self) -> Vec<Cycle> {
        let stuck = self.stuck();
        let groups = ends(&stuck);
        groups.into_iter().filter_map(|group| self.cycle(&stuck, &group)).collect()
    }

    /// Those who can never go on, with the needs that cannot be met, as far as they concern others of these.
    fn stuck(&self) -> BTreeMap<Spot, Vec<Need>> {
        let waits = |spot: &Spot| self.known.get(spot).is_some_and(|known| !known.needs.is_empty());
        let needs: Vec<(&Spot, &Need)> =
            self.known.iter().flat_map(|(spot, known)| known.needs.iter().map(move |need| (spot, need))).collect();
        // How many targets of a need are stuck, and how many needs of a spot are not met; both as far as is known.
        let mut stuck_targets: Vec<usize> =
            needs.iter().map(|(_, need)| need.targets.iter().filter(|target| waits(target)).count()).collect();
        let mut unmet: BTreeMap<&Spot, usize> = BTreeMap::new();
        let mut needed_by: BTreeMap<&Spot, Vec<usize>> = BTreeMap::new();
        for (at, (spot, need)) in needs.iter().enumerate() {
            *unmet.entry(spot).or_default() += usize::from(stuck_targets[at] > need.spare);
            for target in &need.targets {
                needed_by.entry(target).or_default().push(at);
            }
        }
        let mut go_on: VecDeque<&Spot> =
            unmet.iter().filter(|(_, unmet)| **unmet == 0).map(|(spot, _)| *spot).collect();
        while let Some(spot) = go_on.pop_front() {
            for at in needed_by.get(spot).into_iter().flatten() {
                let (holder, need) = needs[*at];
                stuck_targets[*at] -= 1;
                if stuck_targets[*at] == need.spare
                    && let Some(unmet) = unmet.get_mut(holder)
                {
                    *unmet -= 1;
                    if *unmet == 0 {
                        go_on.push_back(holder);
                    }
                }
            }
        }
        let is_stuck = |spot: &Spot| unmet.get(spot).is_some_and(|unmet| *unmet > 0);
        let mut stuck: BTreeMap<Spot, Vec<Need>> = BTreeMap::new();
        for ((spot, need), _) in needs.iter().zip(&stuck_targets).filter(|((_, need), stuck)| **stuck > need.spare) {
            let mut targets: Vec<_> = need.targets.iter().filter(|target| is_stuck(target)).copied().collect();
            targets.sort_unstable();
            targets.dedup();
            stuck.entry(**spot).or_default().push(Need { targets, ..(*need).clone() });
        }
        stuck.values_mut().for_each(|needs| needs.sort_unstable());
        stuck
    }

    fn cycle(&self, stuck: &BTreeMap<Spot, Vec<Need>>, group: &BTreeSet<Spot>) -> Option<Cycle> {
        let members: BTreeMap<Spot, Vec<Need>> = group.iter().map(|spot| (*spot, stuck[spot].clone())).collect();
        let waits =
            members.iter().flat_map(|(spot, needs)| needs.iter().filter_map(|need| Some((need.ticket?, *spot))));
        // A thread may run several, one inside the other, which all wait then; the path may start at any.
        let (ticket, start) = waits.max_by_key(|(ticket, spot)| (*ticket, std::cmp::Reverse(*spot)))?;
        let mut before: BTreeMap<Spot, Spot> = BTreeMap::new();
        let mut next = VecDeque::from([start]);
        'search: while let Some(spot) = next.pop_front() {
            for target in targets(&members[&spot]) {
                if let btree_map::Entry::Vacant(place) = before.entry(target) {
                    place.insert(spot);
                    if target == start {
                        break 'search;
                    }
                    next.push_back(target);
                }
            }
        }
        let mut path = vec![start];
        let mut at = *before.get(&start)?;
        while at != start {
            path.push(at);
            at = before[&at];
        }
        path[1..].reverse();
        // An object and who makes it are one, to people.
        let nexts = path.iter().cycle().skip(1);
        let labels = path.iter().zip(nexts).filter_map(|(spot, next)| {
            let known = &self.known[spot];
            known.label.clone().filter(|_| !known.made_by.contains(next))
        });
        Some(Cycle { ticket, path: labels.collect(), members })
    }
}

fn targets(needs: &[Need]) -> impl Iterator<Item = Spot> + '_ {
    needs.iter().flat_map(|need| need.targets.iter().copied())
}

/// The groups in which each leads to all others, and to nobody else (Tarjan 1972, without recursion).
fn ends(graph: &BTreeMap<Spot, Vec<Need>>) -> Vec<BTreeSet<Spot>> {
    struct Visit {
        spot: Spot,
        targets: Vec<Spot>,
        /// It leads to a group that is complete.
        leads_out: bool,
    }
    let visit = |spot: Spot| Visit { spot, targets: targets(&graph[&spot]).collect(), leads_out: false };
    let mut order: BTreeMap<Spot, usize> = BTreeMap::new();
    let mut lowest: BTreeMap<Spot, usize> = BTreeMap::new();
    let mut open: Vec<Spot> = Vec::new();
    let mut is_open: BTreeSet<Spot> = BTreeSet::new();
    // Of groups that are not complete: their first spots that lead out of it.
    let mut leaks: BTreeSet<Spot> = BTreeSet::new();
    let mut found = Vec::new();
    for start in graph.keys() {
        if order.contains_key(start) {
            continue;
        }
        let mut path = vec![visit(*start)];
        while let Some(here) = path.last_mut() {
            let spot = here.spot;
            if !order.contains_key(&spot) {
                let number = order.len();
                order.insert(spot, number);
                lowest.insert(spot, number);
                open.push(spot);
                is_open.insert(spot);
            }
            match here.targets.pop() {
                Some(target) if !order.contains_key(&target) => path.push(visit(target)),
                Some(target) if is_open.contains(&target) => {
                    let reached = order[&target];
                    lowest.entry(spot).and_modify(|lowest| *lowest = reached.min(*lowest));
                }
                Some(_) => here.leads_out = true,
                None => {
                    if here.leads_out {
                        leaks.insert(spot);
                    }
                    path.pop();
                    let own = lowest[&spot];
                    let is_complete = own == order[&spot];
                    if is_complete {
                        let first = open.iter().rposition(|other| *other == spot).unwrap_or(0);
                        let group: BTreeSet<Spot> = open.drain(first..).collect();
                        for member in &group {
                            is_open.remove(member);
                        }
                        if !group.iter().any(|member| leaks.contains(member)) {
                            found.push(group);
                        }
                    }
                    if let Some(before) = path.last_mut() {
                        before.leads_out |= is_complete;
                        let before = before.spot;
                        lowest.entry(before).and_modify(|lowest| *lowest = own.min(*lowest));
                    }
                }
            }
        }
    }
    found
}
