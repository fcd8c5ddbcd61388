//! Which worker of a job something runs in, and the workers that are to come.
//!
//! Tasks and actors of a job share up to two workers on a node: in one nobody has a lease on a GPU, in the other
//! everybody has. CUDA reads which devices there are when it is first used, so that is said before the process starts:
//! the first sees none, the second all of the node's, among which the leases choose, and their contexts stay warm. An
//! actor that is isolated has a worker to itself in each of its attempts, which sees what is leased to it. It ends with
//! the actor, and only when it is gone its resources are free.

use super::{JobState, NodeProcess, State, Worker};
use crate::{
    cluster::{
        node::Node,
        protocol::{Effects, ObjectId, Outcome, ProcessId, TaskSpec},
        wire::Order,
    },
    error::Error,
};
use std::{collections::BTreeMap, sync::Arc};

/// Says which devices CUDA shows to a process, by their UUIDs.
pub(super) const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Of the workers of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Plain,
    Gpu,
    /// Of this attempt of an actor.
    Own(ObjectId, u32),
}

impl Kind {
    pub(super) fn of(spec: &TaskSpec) -> Kind {
        if spec.stays && Order::is_isolated(&spec.body) {
            return Kind::Own(spec.id, spec.attempt);
        }
        match spec.demand.gpu {
            Some(_) => Kind::Gpu,
            None => Kind::Plain,
        }
    }

    /// The devices that it sees.
    pub(super) fn devices(self, node: &Node) -> Vec<String> {
        match self {
            Kind::Plain => Vec::new(),
            Kind::Gpu => node.capacity().gpus.inventory.devices.iter().map(|device| device.uuid.clone()).collect(),
            Kind::Own(actor, attempt) => {
                node.leases(actor, attempt).into_iter().map(|lease| lease.device.uuid.clone()).collect()
            }
        }
    }
}

/// A worker of a job, or its absence.
#[derive(Default)]
pub(super) struct Seat {
    pub(super) worker: Option<ProcessId>,
    /// One is on its way.
    is_starting: bool,
    /// Until it is ready.
    waiting: Vec<TaskSpec>,
    /// Why there will be none.
    refused: Option<Arc<Error>>,
}

pub(super) type Seats = BTreeMap<Kind, Seat>;

/// What becomes of an actor that has ended when its worker, which was its alone, is gone.
pub(super) enum Over {
    Ended,
    /// It was never made.
    Finished(Outcome),
    /// It is to start again.
    Crashed(Arc<str>),
}

impl JobState {
    /// Has this wait for its worker. `true`: one is to be started.
    pub(super) fn wait(&mut self, kind: Kind, spec: TaskSpec) -> bool {
        let seat = self.seats.entry(kind).or_default();
        seat.waiting.push(spec);
        self.job.is_some() && !std::mem::replace(&mut seat.is_starting, true)
    }

    /// Kinds of which somebody waits for a worker. They are to be started.
    pub(super) fn awaited(&mut self) -> Vec<Kind> {
        let awaited = |(kind, seat): (&Kind, &mut Seat)| {
            let is_new = seat.worker.is_none() && !seat.is_starting && !seat.waiting.is_empty();
            seat.is_starting |= is_new;
            is_new.then_some(*kind)
        };
        self.seats.iter_mut().filter_map(awaited).collect()
    }

    pub(super) fn worker(&self, kind: Kind) -> Option<ProcessId> {
        self.seats.get(&kind)?.worker
    }

    pub(super) fn is_wanted(&self, kind: Kind) -> bool {
        self.seats.get(&kind).is_some_and(|seat| seat.is_starting)
    }

    /// It is there: what waits for it is to be handed over.
    pub(super) fn is_there(&mut self, kind: Kind, worker: ProcessId) -> Option<Vec<TaskSpec>> {
        let seat = self.seats.get_mut(&kind).filter(|seat| seat.is_starting)?;
        (seat.worker, seat.is_starting) = (Some(worker), false);
        Some(std::mem::take(&mut seat.waiting))
    }

    /// It is there no more. `true`: it was on its way.
    pub(super) fn is_gone(&mut self, kind: Kind, worker: ProcessId) -> bool {
        let Some(seat) = self.seats.get_mut(&kind) else { return false };
        if seat.worker == Some(worker) {
            seat.worker = None;
            self.seats.retain(|other, _| *other != kind || !matches!(kind, Kind::Own(..)));
            return false;
        }
        seat.worker.is_none() && seat.is_starting
    }

    /// Why there is no worker of this kind, and will be none.
    pub(super) fn refused(&self, kind: Kind) -> Option<Arc<Error>> {
        let of_kind = || self.seats.get(&kind)?.refused.clone();
        self.refused.clone().or_else(of_kind)
    }

    /// There will be no worker of this kind, or none at all; returns what has waited for one.
    pub(super) fn refuse(&mut self, kind: Option<Kind>, error: &Arc<Error>) -> Vec<TaskSpec> {
        if kind.is_none() {
            self.refused = Some(error.clone());
        } else if let Some(seat) = kind.and_then(|kind| self.seats.get_mut(&kind)) {
            seat.refused = Some(error.clone());
        }
        self.leave(kind)
    }

    /// Nobody waits for a worker of this kind any more, or for any; returns who did.
    pub(super) fn leave(&mut self, kind: Option<Kind>) -> Vec<TaskSpec> {
        let mut waiting = Vec::new();
        for (_, seat) in self.seats.iter_mut().filter(|(other, _)| kind.is_none_or(|kind| kind == **other)) {
            seat.is_starting = false;
            waiting.append(&mut seat.waiting);
        }
        let is_left = |kind: &Kind, seat: &Seat| seat.worker.is_some() || !matches!(kind, Kind::Own(..));
        self.seats.retain(|other, seat| kind.is_some_and(|kind| kind != *other) || is_left(other, seat));
        waiting
    }

    /// A task waits for its worker no more.
    pub(super) fn withdraw(&mut self, task: ObjectId, attempt: u32) {
        let own = Kind::Own(task, attempt);
        self.seats.retain(|kind, _| *kind != own);
        for seat in self.seats.values_mut() {
            seat.waiting.retain(|spec| (spec.id, spec.attempt) != (task, attempt));
        }
    }
}

/// Ends the process, if it runs. Whoever has its lock does that, or buries it.
pub(super) fn kill(worker: &Worker) {
    if let Some(mut child) = worker.child.try_lock() {
        let _ = child.kill(); // it may have ended
    }
}

impl State {
    /// The worker that is an actor's alone.
    fn own_worker(&mut self, id: ProcessId) -> Option<&mut Worker> {
        self.workers.get_mut(&id).filter(|worker| matches!(worker.kind, Kind::Own(..)))
    }

    /// Those of a job.
    pub(super) fn workers_of(&self, driver: ProcessId) -> impl Iterator<Item = (&ProcessId, &Worker)> {
        self.workers.iter().filter(move |(_, worker)| worker.driver == driver)
    }

    /// Ends the workers that are on their way and that nobody waits for.
    pub(super) fn end_unwanted(&self) {
        let unwanted = self.workers.values().filter(|worker| {
            let job = self.jobs.get(&worker.driver);
            !worker.is_ready && !job.is_some_and(|job| job.is_wanted(worker.kind))
        });
        unwanted.for_each(kill);
    }

    /// An actor has ended. If this worker is its alone that ends, and what is to be said of the actor is kept until
    /// then; otherwise it is returned.
    pub(super) fn is_over(&mut self, worker: ProcessId, over: Over) -> Option<Over> {
        match self.own_worker(worker) {
            Some(worker) => {
                worker.over.get_or_insert(over);
                worker.end_if_over();
                None
            }
            None => Some(over),
        }
    }

    /// An actor is to be killed: its own worker does not wait for calls that run.
    pub(super) fn is_killed(&mut self, worker: ProcessId) {
        if let Some(worker) = self.own_worker(worker) {
            worker.is_killed = true;
            worker.end_if_over();
        }
    }
}

impl Worker {
    /// Ends it when its actor has ended, and its calls.
    pub(super) fn end_if_over(&self) {
        if self.over.is_some() && (self.calls.is_empty() || self.is_killed) {
            kill(self);
        }
    }
}

impl NodeProcess {
    /// What is said of an actor that has ended, when nothing of it is left.
    pub(super) fn tell_over(
        &self,
        state: &mut State,
        (actor, attempt): (ObjectId, u32),
        over: Over,
        out: &mut Effects,
    ) {
        let now = self.now();
        state.runs.remove(&(actor, attempt));
        match over {
            Over::Ended => state.node.ended(now, actor, attempt, out),
            Over::Finished(outcome) => state.node.finished(now, actor, attempt, outcome, out),
            Over::Crashed(why) => state.node.crashed(now, actor, attempt, why, out),
        }
    }
}
