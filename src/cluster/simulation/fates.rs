//! How tasks may end: what each was to make, and what explains that it did not.

use super::{
    shell,
    workload::{self, ATTEMPTS, Body},
    world::World,
};
use crate::{
    cluster::{
        capacity::Demand,
        node::OWNER_DIED,
        owner::{MAKER_DIED, NO_HANDLE, PUT_AND_LOST, Value, Work, WorkArg},
        protocol::{Arg, INLINE, ObjectId, ProcessId, Strategy, TaskSpec},
    },
    error::{Error, Origin},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// What a call fails with whose actor is somewhere else.
pub(super) const NO_ACTOR: &str = "the actor is not here";

/// What a task was submitted as.
struct Plan {
    body: Body,
    demand: Arc<Demand>,
    strategy: Strategy,
    args: Vec<WorkArg>,
}

#[derive(Default)]
pub(super) struct Fates {
    /// Of all tasks that there ever were.
    plans: HashMap<ObjectId, Plan>,
    /// Tasks that were cancelled.
    pub(super) cancelled: HashSet<ObjectId>,
    /// Owners that ended in good order.
    pub(super) closed: HashSet<ProcessId>,
    /// Those that died, or were declared dead.
    pub(super) dead: HashSet<ProcessId>,
    /// All nodes that there ever were.
    pub(super) nodes: HashSet<ProcessId>,
    /// The bundles of the placement groups that have not been given up, and have not failed.
    pub(super) groups: HashMap<ObjectId, Vec<Demand>>,
}

/// The object that an error names.
fn named(name: &str) -> Option<ObjectId> {
    let (owner, number) = name.strip_prefix('p')?.split_once('/')?;
    Some(ObjectId { owner: ProcessId(owner.parse().ok()?), number: number.parse().ok()? })
}

fn is_within(demand: &Demand, bundle: &Demand) -> bool {
    let has = |(name, wanted): (&Arc<str>, &u64)| bundle.custom.get(name).is_some_and(|there| there >= wanted);
    demand.cpu <= bundle.cpu
        && demand.gpus() <= bundle.gpus()
        && demand.memory <= bundle.memory
        && demand.custom.iter().all(has)
}

impl Fates {
    /// To be called before the task is submitted: it may fail at once.
    pub(super) fn planned(&mut self, task: ObjectId, work: &Work, body: Body) {
        let (demand, strategy, args) = (work.demand.clone(), work.strategy.clone(), work.args.clone());
        self.plans.insert(task, Plan { body, demand, strategy, args });
    }

    fn plan(&self, origin: &Origin) -> Option<&Plan> {
        named(&origin.name).and_then(|task| self.plans.get(&task))
    }

    /// How this task differs from what was submitted, if it does.
    pub(super) fn misread(&self, spec: &TaskSpec) -> Option<String> {
        let plan = self.plans.get(&spec.id)?;
        let is_same = |(arg, planned): (&Arg, &WorkArg)| match (arg, planned) {
            (Arg::Inline(bytes), WorkArg::Object(object)) => shell::is_value_of(*object, bytes),
            (Arg::Inline(bytes), WorkArg::Value(value)) => bytes == value,
            (Arg::Object { id, .. }, WorkArg::Object(object) | WorkArg::Foreign(object)) => id == object,
            _ => false,
        };
        let args = spec.args.iter().zip(&plan.args);
        match spec.args.len() == plan.args.len() && args.into_iter().all(is_same) && spec.demand == plan.demand {
            true => None,
            false => Some(format!("{spec:?} is not what was submitted, with {:?}", plan.args)),
        }
    }

    /// Whether this task, which may be one of a pack, was submitted with this body.
    pub(super) fn has_body(&self, task: ObjectId, body: Body) -> bool {
        self.plans.get(&task).is_none_or(|plan| plan.body == body)
    }

    /// What is wrong with a value, if something is. `maker`: the task that made it.
    pub(super) fn wrong(&self, object: ObjectId, maker: ObjectId, value: &Value) -> Option<String> {
        let plan = self.plans.get(&maker);
        let is_right = match value {
            Value::Failed(_) => true,
            _ if plan.is_some_and(|plan| plan.body.fails) => false,
            Value::Inline(bytes) => shell::is_value_of(object, bytes),
            Value::Stored { size, .. } => plan.is_none_or(|plan| match (object == maker, plan.body.size) {
                (true, large) if large > INLINE as u64 && plan.body.parts == 0 => *size == large,
                (true, _) => *size <= INLINE as u64,
                (false, more) => *size == INLINE as u64 + 1 + more,
            }),
        };
        (!is_right).then(|| format!("{object:?}, made by {maker:?}, has the value {value:?}"))
    }
}

impl World<'_> {
    /// Whether it could be placed on one of the nodes, as long as those are there that there always are.
    fn can_be_placed(&self, plan: &Plan) -> bool {
        if let Strategy::Bundle { group, bundle, .. } = plan.strategy {
            let bundles = self.fates.groups.get(&group);
            return bundles.is_some_and(|bundles| is_within(&plan.demand, &bundles[bundle as usize]));
        }
        (0..self.options.nodes).any(|index| {
            let labels = workload::labels(index);
            let has_labels = match &plan.strategy {
                Strategy::Labels { labels: wanted, soft: false } => wanted.iter().all(|label| labels.contains(label)),
                _ => true,
            };
            has_labels && workload::capacity(self.options, index).fits(&plan.demand)
        })
    }

    /// Whether something has happened that explains this.
    pub(super) fn is_explained(&self, why: &Error) -> bool {
        let Fates { cancelled, closed, dead, nodes, .. } = &self.fates;
        let has_died = |process: &ProcessId| dead.contains(process);
        match why.root_cause() {
            Error::Panicked { origin, .. } => self.fates.plan(origin).is_some_and(|plan| plan.body.fails),
            Error::Infeasible { origin, .. } => self.fates.plan(origin).is_some_and(|plan| !self.can_be_placed(plan)),
            Error::Cancelled { origin } => named(&origin.name).is_some_and(|task| cancelled.contains(&task)),
            Error::Shutdown { what } => {
                let task = what.split('`').nth(1).and_then(named);
                task.is_some_and(|task| closed.contains(&task.owner))
            }
            Error::Lost { origin, reason } => match &**reason {
                OWNER_DIED => named(&origin.name).is_some_and(|object| has_died(&object.owner)),
                PUT_AND_LOST | MAKER_DIED => nodes.iter().any(has_died),
                NO_HANDLE => !dead.is_empty(),
                NO_ACTOR => true,
                _ => reason.contains("attempt") && dead.len() >= ATTEMPTS as usize,
            },
            _ => false,
        }
    }

    /// Whether something has happened that explains that what was there is lost.
    pub(super) fn may_be_lost(&self, why: &Error) -> bool {
        let is_cancelled = matches!(why.root_cause(), Error::Cancelled { .. });
        (is_cancelled || !self.fates.dead.is_empty()) && self.is_explained(why)
    }
}
