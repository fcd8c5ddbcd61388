//! What the simulated drivers do: they submit tasks, keep some handles and drop others, ask for all
//! they kept, and drop those, too.

use super::{Options, random::Random, shell};
use crate::cluster::{
    capacity::{Capacity, Demand},
    node::Small,
    owner::{Owner, Work, WorkArg, WorkBody},
    pack::Common,
    protocol::{Effects, INLINE, Label, Nanos, ObjectId, Outcome, ProcessId, Strategy, ms},
    wire::{Blob, Order, Site},
};
use crate::{
    error::{Error, Origin},
    gpu::{GpuRequest, Inventory, placement::Devices},
};
use std::{collections::BTreeMap, sync::Arc};

/// The body of a simulated task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Body {
    pub(super) time: Nanos,
    /// Of the result.
    pub(super) size: u64,
    pub(super) fails: bool,
    /// Its result is taken apart into so many.
    pub(super) parts: u8,
}

/// So often a task may be started.
pub(super) const ATTEMPTS: u32 = 10;
/// Results up to this size travel with the message.
const SMALL: u64 = INLINE as u64;
/// Nodes keep copies of most small results, but not many at a time; some do not go to their owners.
pub(super) const KEPT: Small = Small { short: 8, lately: 100, unseen: 3, kept: 100 };

/// An owner that names what nodes keep.
pub(super) fn owner(id: ProcessId, wish: Option<ProcessId>, out: &mut Effects) -> Owner {
    let mut owner = Owner::new(id, wish, Box::new(origin), out);
    owner.name_above(KEPT.short);
    owner
}

impl Body {
    pub(super) fn to_bytes(self) -> Blob {
        let mut bytes = Vec::with_capacity(18);
        bytes.extend(self.time.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.extend([self.fails.into(), self.parts]);
        Blob(bytes.into())
    }

    /// The body of a task, also of one that came in a pack and travels alone now.
    pub(super) fn of(body: &Blob) -> Self {
        match Order::decode(body) {
            Some(order) => Body::from_bytes(&order.parcel.bytes),
            None => Body::from_bytes(body),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let word = |at: usize| bytes[at..].iter().take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        Body { time: word(0), size: word(8), fails: bytes[16] != 0, parts: bytes[17] }
    }

    /// How each part of a task ends: every second one is large.
    pub(super) fn part(self, task: ObjectId, part: u8) -> (ObjectId, Outcome) {
        let object = ObjectId { number: task.number + u64::from(part), ..task };
        match part.is_multiple_of(2) {
            true => (object, Outcome::Stored { size: SMALL + 1 + self.size }),
            false => (object, Outcome::Inline(shell::value_of(object, &[], 8))),
        }
    }

    /// How a task ends, with these handles in the result.
    pub(super) fn outcome(self, task: ObjectId, inside: &[ObjectId]) -> Outcome {
        match self {
            Body { fails: true, .. } => Outcome::Failed(Arc::new(made_to_fail(task))),
            Body { size, parts, .. } if size <= SMALL || parts > 0 => {
                Outcome::Inline(shell::value_of(task, inside, 1 + size as usize % 15))
            }
            Body { size, .. } => Outcome::Stored { size },
        }
    }
}

/// What a node with this index has.
pub(super) fn capacity(options: &Options, index: usize) -> Capacity {
    Capacity {
        cpu: options.cpus * 1_000,
        gpus: Devices::new(Inventory::simulated(if options.mixed && index.is_multiple_of(2) { 2 } else { 0 })),
        memory: 4 << 30,
        custom: if index.is_multiple_of(3) { BTreeMap::from([("licence".into(), 1_000)]) } else { BTreeMap::new() },
    }
}

/// Labels that a node with this index has.
pub(super) fn labels(index: usize) -> Vec<Label> {
    vec![("zone".into(), if index.is_multiple_of(2) { "even" } else { "odd" }.into())]
}

/// Placement groups, and the demands of their bundles.
pub(super) type Groups = Vec<(ObjectId, Vec<Demand>)>;

fn gpus(thousandths: u32) -> Option<Arc<GpuRequest>> {
    (thousandths > 0).then(|| GpuRequest::amount(thousandths).into())
}

/// The bundles of a group.
pub(super) fn bundles(options: &Options, random: &mut Random) -> Vec<Demand> {
    let bundle = |random: &mut Random| match random.below(4) {
        0 => Demand { gpu: gpus(1_000), ..Demand::cpus(500) },
        1 => Demand { gpu: gpus(300), memory: 1 << 20, ..Demand::cpus(0) },
        _ => Demand::cpus(500 * (1 + random.below(2 * u64::from(options.cpus)) as u32)),
    };
    (0..1 + random.below(3)).map(|_| bundle(random)).collect()
}

/// A task of a process that has these handles, when there are these nodes, and the handles in its values.
pub(super) fn work(
    options: &Options,
    random: &mut Random,
    (owner, handles): (ProcessId, &[ObjectId]),
    nodes: &[ProcessId],
    groups: Option<&Groups>,
) -> (Work, Vec<ObjectId>) {
    let time = random.exponential(options.task_time.as_nanos() as u64);
    if !options.mixed {
        let body = Body { time, size: 8, fails: false, parts: 0 };
        let (demand, strategy) = (Arc::new(Demand::cpus(1_000)), Strategy::Default);
        let body = WorkBody::Alone(body.to_bytes());
        return (Work { demand, strategy, args: Vec::new(), body, attempts: ATTEMPTS, stays: false }, Vec::new());
    }
    let size = if random.one_in(4) { SMALL + 1 + random.below(8 << 20) } else { random.below(SMALL) };
    let mut body = Body { time, size, fails: random.one_in(60), parts: 0 };
    if random.one_in(12) {
        body.parts = 2 + random.below(3) as u8;
    }
    let mut demand = match random.below(5) {
        0 => Demand::cpus(1 + random.below(1_000) as u32),
        1 if options.cpus > 1 => Demand::cpus(2_000),
        2 => Demand::cpus(0),
        _ => Demand::cpus(1_000),
    };
    match random.below(12) {
        0 => demand.gpu = gpus(1 + random.below(1_000) as u32),
        1 => demand.memory = random.below(1 << 30),
        2 => demand.custom = BTreeMap::from([("licence".into(), 1_000)]),
        3 if random.one_in(4) => demand.custom = BTreeMap::from([("unicorn".into(), 1)]), // nobody has one
        _ => {}
    }
    let strategy = match random.below(20) {
        0 | 1 => Strategy::Spread,
        2 => Strategy::Node { node: nodes[random.below(nodes.len() as u64) as usize], soft: true },
        3 => Strategy::Labels { labels: labels(random.below(2) as usize), soft: random.one_in(2) },
        _ => Strategy::Default,
    };
    let mut pick = || handles.get(random.below(handles.len() as u64) as usize).copied();
    let some = [pick(), pick(), pick(), pick(), pick(), pick()];
    let args = some[..random.below(4) as usize].iter().flatten().map(|handle| match handle.owner == owner {
        true => WorkArg::Object(*handle),
        false => WorkArg::Foreign(*handle),
    });
    let mut args: Vec<WorkArg> = args.collect();
    if random.one_in(3) {
        args.push(WorkArg::Value(Arc::from([1, 2, 3])));
    }
    let mut inside = Vec::new();
    let mut stays = false;
    if options.borrowing {
        inside.extend(some[3..][..random.below(4) as usize].iter().flatten());
        args.push(WorkArg::Value(shell::to_bytes(&inside)));
        stays = random.one_in(12);
    }
    if stays {
        // If it holds what others wait for, somebody must end it: drivers with groups do.
        let cpu = if groups.is_some() && options.groups { 250 * random.below(3) as u32 } else { 0 };
        demand = Demand { memory: random.below(1 << 20), ..Demand::cpus(cpu) };
        (body.size, body.parts) = (8, 0);
    }
    let mut strategy = strategy;
    if random.one_in(2)
        && let Some((group, bundles)) = groups.and_then(|groups| groups.get(random.below(groups.len() as u64) as usize))
    {
        let bundle = random.below(bundles.len() as u64) as usize;
        strategy = Strategy::Bundle { group: *group, bundle: bundle as u32, node: None };
        demand = match random.below(8) {
            0 => demand, // may be too much
            1 => bundles[bundle].clone(),
            _ => {
                let gpu = gpus(bundles[bundle].gpus() as u32 % 1_000 / 2);
                Demand { cpu: bundles[bundle].cpu / 2, gpu, ..Demand::cpus(0) }
            }
        };
    }
    (
        Work {
            demand: Arc::new(demand),
            strategy,
            args,
            body: WorkBody::Alone(body.to_bytes()),
            attempts: ATTEMPTS,
            stays,
        },
        inside,
    )
}

/// What the tasks of a pack have alike, and how many it shall be.
pub(super) fn pack(owner: ProcessId, random: &mut Random) -> (Arc<Common>, Arc<Work>, u64) {
    let function = Site { offset: 0, name_hash: 0 };
    let common = Arc::new(Common { driver: owner, function, location: "the simulation".into() });
    let (demand, body) = (Arc::new(Demand::cpus(1_000)), WorkBody::Packed(common.clone()));
    let (strategy, args, attempts) = (Strategy::Default, Vec::new(), ATTEMPTS);
    let work = Work { demand, strategy, args, body, attempts, stays: false };
    (common, Arc::new(work), 2 + random.below(20))
}

/// The body of one of them.
pub(super) fn member(options: &Options, random: &mut Random) -> Body {
    // A few are much longer than was thought when others were handed out behind them.
    let time = if random.one_in(30) { ms(30) } else { random.exponential(options.task_time.as_nanos() as u64 / 4) };
    let size = if random.one_in(10) { SMALL + 1 + random.below(1 << 20) } else { random.below(SMALL) };
    Body { time, size, fails: random.one_in(60), parts: 0 }
}

fn made_to_fail(task: ObjectId) -> Error {
    Error::Panicked { origin: origin(task), message: "it was made to fail".into() }
}

/// What errors say of an object.
pub(super) fn origin(object: ObjectId) -> Box<Origin> {
    Box::new(Origin {
        kind: "task".into(),
        name: format!("{object:?}"),
        id: object.number,
        attempt: 1,
        location: "the simulation".into(),
        node: "local".into(),
    })
}
