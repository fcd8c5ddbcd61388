//! The table of who waits, for those who look for cycles over several processes (see `cluster::cycles`).

use super::{TABLE, Waiting, Waits};
use crate::{
    cluster::{
        cycles::{Entry, Need, Spot, Ticket},
        protocol::ProcessId,
    },
    error::Error,
    local::{
        Core,
        node::{Blocker, Node, contain},
        slot::Waiter,
        thread,
    },
};
use std::{
    cell::LazyCell,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

/// How long after it was entered a wait is looked at. The next look comes after twice that, and so on.
pub(crate) const FIRST_LOOK: Duration = Duration::from_millis(10);
/// A cycle that was closed without a new wait, by a call that was long on its way, is found after so long at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A wait in a process of a cluster's.
pub(super) struct Listener {
    core: &'static Core,
    /// Whom to wake.
    waiter: Arc<dyn Waiter>,
    /// Of what waits, one inside the other.
    nodes: Vec<u64>,
    /// Why it would never end.
    error: Option<Error>,
    due: Instant,
    pause: Duration,
}

impl Waits {
    /// Has `waiter` told if it turns out that the wait would never end.
    pub(crate) fn listen(&self, waiter: Arc<dyn Waiter>) {
        let Some(core) = thread::current_core() else { return };
        let Some(client) = core.client.get() else { return };
        let due = Instant::now() + FIRST_LOOK;
        let nodes = self.entered.clone();
        let listener = Listener { core, waiter, nodes, error: None, due, pause: FIRST_LOOK };
        TABLE.lock().get_or_insert_default().listeners.insert(self.ticket, listener);
        client.look_by(due);
    }

    /// Why it would never end, if that is so.
    pub(crate) fn error(&self) -> Option<Error> {
        TABLE.lock().as_ref()?.listeners.get(&self.ticket)?.error.clone()
    }
}

/// The wait with this number would never end; unless it has ended.
pub(crate) fn end(ticket: u64, path: Vec<String>) {
    let waiter = {
        let guard = &mut *TABLE.lock();
        let Some(listener) = guard.as_mut().and_then(|table| table.listeners.get_mut(&ticket)) else { return };
        listener.error.get_or_insert(Error::WaitCycle { path });
        listener.waiter.clone()
    };
    contain(|| waiter.notify()); // a waker may be the user's
}

/// The waits that are to be looked at now, and when to come back.
pub(crate) fn due(core: &'static Core, now: Instant) -> (Vec<u64>, Option<Instant>) {
    let guard = &mut *TABLE.lock();
    let listeners = guard.get_or_insert_default().listeners.iter_mut();
    let (mut due, mut next) = (Vec::new(), None);
    for (ticket, listener) in listeners.filter(|(_, listener)| std::ptr::eq(listener.core, core)) {
        if listener.due <= now {
            listener.pause = (listener.pause * 2).min(LONGEST_PAUSE);
            listener.due = now + listener.pause;
            due.push(*ticket);
        }
        next = Some(next.map_or(listener.due, |next: Instant| next.min(listener.due)));
    }
    (due, next)
}

/// Where to start.
pub(crate) enum Picture<'a> {
    Waits(&'a [u64]),
    Nodes(Vec<Arc<dyn Node>>),
}

/// What is known here of the nodes that one comes to from there.
pub(crate) fn picture(me: ProcessId, from: Picture<'_>) -> Vec<Entry> {
    let (mut entries, mut seen) = (Vec::new(), HashSet::new());
    let mut dropped: Vec<Arc<dyn Node>> = Vec::new();
    let guard = TABLE.lock();
    let (nobody, no_listener) = (HashMap::new(), HashMap::new());
    let waiting = guard.as_ref().map_or(&nobody, |table| &table.waiting);
    let listeners = guard.as_ref().map_or(&no_listener, |table| &table.listeners);
    // Made when it is needed first: it costs as much as there are waits.
    let of_actors = LazyCell::new(|| {
        let mut of_actors: HashMap<u64, Vec<&Waiting>> = HashMap::new();
        for waiting in waiting.values() {
            if let Some((actor, _)) = waiting.node.actor() {
                of_actors.entry(actor).or_default().push(waiting);
            }
        }
        of_actors
    });
    let mut next = match from {
        Picture::Nodes(nodes) => nodes,
        Picture::Waits(tickets) => {
            let listeners = tickets.iter().filter_map(|ticket| listeners.get(ticket));
            let nodes = listeners.flat_map(|listener| &listener.nodes);
            nodes.filter_map(|node| Some(waiting.get(node)?.node.clone())).collect()
        }
    };
    while let Some(node) = next.pop() {
        let meta = node.meta();
        if node.remote_id().is_none() && seen.insert(meta.id) {
            let mut needs = Vec::new();
            let mut need = |ticket: Option<u64>, targets: &[Arc<dyn Node>], spare| {
                let targets: Vec<_> = targets.iter().filter(|target| !target.is_done()).collect();
                next.extend(targets.iter().map(|target| (*target).clone()));
                let spot = |target: &&Arc<dyn Node>| match target.remote_id() {
                    Some(object) => Spot::Object(object),
                    None => Spot::Local(me, target.meta().id),
                };
                let ticket = ticket.map(|number| Ticket { process: me, number });
                needs.push(Need { ticket, targets: targets.iter().map(spot).collect(), spare });
            };
            if !node.is_done() {
                for wait in waiting.get(&meta.id).into_iter().flat_map(|waiting| &waiting.waits) {
                    need(Some(wait.ticket), &wait.targets, wait.spare);
                }
                for blocker in node.blockers() {
                    match blocker {
                        Blocker::Node(first) => {
                            need(None, std::slice::from_ref(&first), 0);
                            dropped.push(first);
                        }
                        Blocker::Actor { id, shared } => {
                            let of_actor = of_actors.get(&id).into_iter().flatten();
                            for other in of_actor.filter(|other| other.is_in_the_way(id, shared)) {
                                need(None, std::slice::from_ref(&other.node), 0);
                            }
                        }
                        Blocker::Room { actor, group, limit } => {
                            let of_actor = of_actors.get(&actor).into_iter().flatten();
                            let inside: Vec<_> = of_actor
                                .filter(|other| other.takes_room(actor, group.as_ref()))
                                .map(|other| other.node.clone())
                                .collect();
                            need(None, &inside, limit - 1);
                            dropped.extend(inside);
                        }
                    }
                }
            }
            // Whoever has told of two of an actor's calls tells of them in the same order the next time.
            needs.sort_unstable();
            let (at, label) = (Spot::Local(me, meta.id), Some(node.label()));
            entries.push(Entry { at, label, needs, made_by: None, place: None });
        }
        dropped.push(node);
    }
    drop(of_actors);
    drop(guard);
    contain(|| drop(dropped)); // outside the lock: these may be the last of their kind
    entries
}
