//! Which devices serve a request, given what of each is free. Pure: the same input gives the same answer, so that a
//! local runtime, a node and the head of a cluster decide alike, and tests need no device.

use super::{
    ComputeCapability, DeviceInfo, GpuError, GpuLease, GpuRequest, Inventory, Link, NvLink, Share, Spread,
    request::Size,
};
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

const WHOLE: u32 = Share::Whole.thousandths();

/// No host has more devices.
pub(crate) const MOST: u32 = 1024;

/// The search for devices that are joined gives up after so many steps, with the best that it has found: for 16
/// devices there are no more sets than that, and so it is exact.
const STEPS: u32 = 1 << 16;

/// What of a device is free.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Room {
    /// Of its time.
    pub(crate) thousandths: u32,
    /// Of its memory.
    pub(crate) bytes: u64,
    /// Bytes that other processes use, which nobody here has leased.
    pub(crate) external: u64,
    /// Why no lease on it is given, whatever is free.
    pub(crate) refused: Option<Box<GpuError>>,
}

/// What is taken of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its place in the inventory.
    pub(crate) place: usize,
    pub(crate) thousandths: u32,
    pub(crate) bytes: u64,
}

/// Devices, and what of each there is, or is free.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Devices {
    pub(crate) inventory: Arc<Inventory>,
    /// In the order of the inventory.
    pub(crate) rooms: Vec<Room>,
}

/// Something that is too little.
#[derive(Clone, Debug)]
pub(crate) struct Lack {
    text: String,
    gap: f64,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Lack {
    pub(crate) fn new(text: String, wanted: f64, there: f64) -> Self {
        Lack { text, gap: (wanted - there) / wanted }
    }

    /// This, and another.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code))] // a runtime of its own counts in words
    pub(crate) fn and(self, other: Lack) -> Self {
        Lack { text: format!("{self}, and {other}"), gap: self.gap + other.gap }
    }

    /// The share of what is wanted that is missing: the smaller, the nearer.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code))] // a runtime of its own need not know
    pub(crate) fn gap(&self) -> f64 {
        self.gap
    }
}

/// The devices that a request takes, in the order of their places; `None` if there is no room for it.
///
/// Of those with room the fullest are taken, or the emptiest, as the request says; of equals the first.
pub(crate) fn place(inventory: &Inventory, rooms: &[Room], request: &GpuRequest) -> Option<Vec<Part>> {
    let wanted = request.devices as usize;
    let devices = inventory.devices.iter().zip(rooms).enumerate();
    let with_room = devices.filter(|(_, (device, room))| has_room(device, room, request));
    let mut roomy: Vec<(i128, usize)> =
        with_room.map(|(place, (device, room))| (rank(device, room, request), place)).collect();
    if roomy.len() < wanted {
        return None;
    }
    roomy.sort_unstable();
    let joined = match request.nvlink {
        NvLink::Prefer | NvLink::Require if wanted > 1 => joined(inventory, &roomy, wanted),
        _ => None,
    };
    let mut places: Vec<usize> = match joined {
        Some(places) => places,
        None if request.nvlink == NvLink::Require && wanted > 1 => return None,
        None => roomy[..wanted].iter().map(|(_, place)| *place).collect(),
    };
    places.sort_unstable();
    let part = |place: usize| Part {
        place,
        thousandths: request.share.thousandths(),
        bytes: bytes_on(&inventory.devices[place], request),
    };
    Some(places.into_iter().map(part).collect())
}

/// What a request takes of this device's memory.
fn bytes_on(device: &DeviceInfo, request: &GpuRequest) -> u64 {
    request.memory.unwrap_or_else(|| scaled(device.memory_bytes, request.share.thousandths(), WHOLE))
}

/// `bytes * of / parts`, rounded down.
fn scaled(bytes: u64, of: u32, parts: u32) -> u64 {
    u64::try_from(u128::from(bytes) * u128::from(of) / u128::from(parts)).unwrap_or(u64::MAX)
}

/// The part of the device's memory, in thousandths, rounded down.
fn share_of(device: &DeviceInfo, bytes: u64) -> u32 {
    let part = u128::from(bytes) * u128::from(WHOLE) / u128::from(device.memory_bytes.max(1));
    u32::try_from(part).unwrap_or(WHOLE)
}

fn is_named(device: &DeviceInfo, name: &str) -> bool {
    let mut parts = device.name.as_bytes().windows(name.len().max(1));
    name.is_empty() || parts.any(|part| part.eq_ignore_ascii_case(name.as_bytes()))
}

/// Whether it is a device of the kind that is wanted, whatever is free.
fn qualifies(device: &DeviceInfo, request: &GpuRequest) -> bool {
    request.name.as_ref().is_none_or(|name| is_named(device, name))
        && request.capability.is_none_or(|least| device.capability >= least)
}

/// Whether it has the memory. What other processes use counts against those who say how much they need; who takes a
/// device as it is takes it with the driver's own part, and others', in it.
fn has_memory(device: &DeviceInfo, room: &Room, request: &GpuRequest) -> bool {
    let external = request.memory.map_or(0, |_| room.external);
    bytes_on(device, request) <= room.bytes.saturating_sub(external)
}

fn has_room(device: &DeviceInfo, room: &Room, request: &GpuRequest) -> bool {
    room.refused.is_none()
        && request.share.thousandths() <= room.thousandths
        && qualifies(device, request)
        && has_memory(device, room, request)
}

/// The smaller, the sooner it is taken. Devices in which others leave too little come last.
fn rank(device: &DeviceInfo, room: &Room, request: &GpuRequest) -> i128 {
    let bytes = room.bytes.saturating_sub(room.external);
    let (time, memory) = (i128::from(room.thousandths), i128::from(bytes));
    let free = match request.share.thousandths() {
        0 => memory << 10 | time,
        _ => time << 64 | memory,
    };
    let is_short = bytes < bytes_on(device, request);
    i128::from(is_short) << 100
        | match request.spread {
            Spread::Pack => free,
            Spread::Spread => (1 << 80) - free,
        }
}

/// Of these, the best first, so many that are all joined by NVLink, each with each: those with the least sum of ranks.
fn joined(inventory: &Inventory, from: &[(i128, usize)], wanted: usize) -> Option<Vec<usize>> {
    let mut search = Search { inventory, wanted, steps: STEPS, best: None };
    search.extend(0, &mut Vec::new(), from);
    search.best.map(|(_, places)| places)
}

/// A search for the best clique, branch and bound.
struct Search<'a> {
    inventory: &'a Inventory,
    wanted: usize,
    steps: u32,
    best: Option<(i128, Vec<usize>)>,
}

impl Search<'_> {
    /// `candidates` are joined with all that are taken, and sorted.
    fn extend(&mut self, sum: i128, taken: &mut Vec<usize>, candidates: &[(i128, usize)]) {
        let missing = self.wanted - taken.len();
        if missing == 0 {
            self.best = Some((sum, taken.clone())); // it was seen to be better
            return;
        }
        for (at, (rank, place)) in candidates.iter().enumerate() {
            let Some(next) = candidates[at..].get(..missing) else { return };
            let least = sum + next.iter().map(|(rank, _)| rank).sum::<i128>();
            if self.steps == 0 || self.best.as_ref().is_some_and(|(best, _)| least >= *best) {
                return;
            }
            self.steps -= 1;
            let is_joined = |(_, other): &&(i128, usize)| self.inventory.link(*place, *other) == Some(Link::NvLink);
            let joined: Vec<_> = candidates[at + 1..].iter().filter(is_joined).copied().collect();
            taken.push(*place);
            self.extend(sum + rank, taken, &joined);
            taken.pop();
        }
    }
}

impl Devices {
    /// All of them free.
    pub(crate) fn new(inventory: Inventory) -> Self {
        let room = |device: &DeviceInfo| Room { thousandths: WHOLE, bytes: device.memory_bytes, ..Room::default() };
        Devices { rooms: inventory.devices.iter().map(room).collect(), inventory: Arc::new(inventory) }
    }

    pub(crate) fn place(&self, request: &GpuRequest) -> Option<Vec<Part>> {
        place(&self.inventory, &self.rooms, request)
    }

    /// Takes just this; it must be there.
    pub(crate) fn hold(&mut self, parts: &[Part]) {
        for part in parts {
            let room = &mut self.rooms[part.place];
            room.thousandths -= part.thousandths;
            room.bytes -= part.bytes;
        }
    }

    pub(crate) fn give(&mut self, parts: &[Part]) {
        for part in parts {
            let room = &mut self.rooms[part.place];
            room.thousandths += part.thousandths;
            room.bytes += part.bytes;
        }
    }

    /// What was taken, for those who have it.
    pub(crate) fn leases(&self, parts: &[Part]) -> Vec<GpuLease> {
        let lease = |part: &Part| GpuLease {
            device: Arc::new(self.inventory.devices[part.place].clone()),
            thousandths: part.thousandths,
            bytes: part.bytes,
        };
        parts.iter().map(lease).collect()
    }

    /// What was taken, to be taken from: a bundle. Its devices have the places that they have in the whole, and as
    /// much memory as makes a share of a device in the bundle the same share of what the bundle has.
    pub(crate) fn part(&self, parts: &[Part]) -> Devices {
        if parts.is_empty() {
            return Devices::default();
        }
        let mut inventory = (*self.inventory).clone();
        inventory.devices.iter_mut().for_each(|device| device.memory_bytes = 0);
        let mut rooms = vec![Room::default(); self.rooms.len()];
        for Part { place, thousandths, bytes } in parts.iter().copied() {
            rooms[place] = Room { thousandths, bytes, ..Room::default() };
            inventory.devices[place].memory_bytes = match thousandths {
                0 => bytes,
                share => scaled(bytes, WHOLE, share),
            };
        }
        Devices { inventory: Arc::new(inventory), rooms }
    }

    /// What a bundle with this request has wherever it is. Of the memory of a whole device that is not known, and
    /// taken to be enough.
    #[cfg_attr(not(feature = "cluster"), allow(dead_code))] // a runtime of its own need not know
    pub(crate) fn promised(request: Option<&GpuRequest>) -> Devices {
        let Some(request) = request else { return Devices::default() };
        const ENOUGH: u64 = 1 << 60;
        let count = request.devices.min(MOST);
        let device = |index| DeviceInfo {
            index,
            uuid: String::new(),
            name: request.name.clone().unwrap_or_default(),
            memory_bytes: ENOUGH.max(request.memory.unwrap_or(0)),
            capability: request.capability.unwrap_or(ComputeCapability { major: 0, minor: 0 }),
            numa_node: None,
            mig: false,
        };
        let links = match request.nvlink {
            NvLink::Require => {
                (0..count).map(|a| (0..count).map(|b| (a != b).then_some(Link::NvLink)).collect()).collect()
            }
            NvLink::Any | NvLink::Prefer => Vec::new(),
        };
        let all = Devices::new(Inventory { devices: (0..count).map(device).collect(), links });
        all.part(&all.place(request).unwrap_or_default())
    }

    /// What a request lacks, in words; `None` if there is room for it.
    pub(crate) fn lack(&self, request: &GpuRequest) -> Option<Lack> {
        if self.place(request).is_some() {
            return None;
        }
        // Those outside a bundle have no memory.
        let devices = || self.inventory.devices.iter().zip(&self.rooms).filter(|(device, _)| device.memory_bytes > 0);
        let roomy: Vec<_> = (0..self.rooms.len())
            .filter(|place| {
                let device = self.inventory.devices.get(*place);
                device.is_some_and(|device| has_room(device, &self.rooms[*place], request))
            })
            .map(|place| (0, place))
            .collect();
        let usable = || devices().filter(|(device, room)| room.refused.is_none() && qualifies(device, request));
        let share = request.share.thousandths();
        let (wanted, there, shown) = match request.share {
            // There are enough, and they are not joined.
            _ if roomy.len() >= request.devices as usize => {
                let largest =
                    (1..request.devices as usize).rev().find(|n| joined(&self.inventory, &roomy, *n).is_some());
                let largest = largest.unwrap_or(0);
                (f64::from(request.devices), largest as f64, largest.to_string())
            }
            Share::Thousandths(0) => {
                let wanted = request.memory.unwrap_or(0);
                let free = usable().map(|(_, room)| room.bytes.saturating_sub(room.external)).max().unwrap_or(0);
                (wanted as f64, free as f64, Size(free).to_string())
            }
            // A share comes from one device, so free shares of several do not add up.
            Share::Thousandths(_) => {
                let of = |(device, room): (&DeviceInfo, &Room)| match request.memory {
                    Some(_) if has_memory(device, room, request) => room.thousandths,
                    Some(_) => 0,
                    // As much of it as there is of the memory that comes with it.
                    None => room.thousandths.min(share_of(device, room.bytes)),
                };
                let free = f64::from(usable().map(of).max().unwrap_or(0)) / 1e3;
                (f64::from(share) / 1e3, free, free.to_string())
            }
            Share::Whole => (f64::from(request.devices), roomy.len() as f64, roomy.len().to_string()),
        };
        let kinds = Kind::of(request);
        let mut text = format!("{request} wanted, {shown} there");
        let meets_all = |device: &DeviceInfo| kinds.iter().all(|kind| kind.is_met(device));
        let count = |test: &dyn Fn(&DeviceInfo) -> bool| devices().filter(|(device, _)| test(device)).count();
        if count(&meets_all) < request.devices as usize && !kinds.is_empty() && devices().next().is_some() {
            let each = kinds.iter().map(|kind| format!("{} {kind}", count(&|device| kind.is_met(device))));
            let each = each.collect::<Vec<_>>().join(", ");
            text = format!("{text} (of {} devices, {each}", count(&|_| true));
            if kinds.len() > 1 {
                text = format!("{text}, {} all of that", count(&meets_all));
            }
            text.push(')');
        }
        let mut lack = Lack::new(text, wanted, there);
        // Of equals those are nearer that have a device that meets more of it.
        let met = devices().map(|(device, _)| 1 + kinds.iter().filter(|kind| kind.is_met(device)).count());
        lack.gap -= met.max().unwrap_or(0) as f64 * 1e-6;
        Some(lack)
    }

    /// What of the devices that qualify is free now, for those who wait for them.
    pub(crate) fn free_of(&self, request: &GpuRequest) -> String {
        let devices = self.inventory.devices.iter().zip(&self.rooms);
        let qualifying = devices.filter(|(device, _)| device.memory_bytes > 0 && qualifies(device, request));
        let each = qualifying.map(|(device, room)| match (&room.refused, room.external) {
            (Some(error), _) => format!("GPU {} gives no leases: {error}", device.index),
            (None, external) => {
                let share = f64::from(room.thousandths) / 1e3;
                let free = format!("GPU {} has {share} and {} free", device.index, roughly(room.bytes));
                match external {
                    0 => free,
                    bytes => format!("{free}, {} of that used by other processes", roughly(bytes.min(room.bytes))),
                }
            }
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// Whether there would be room if other processes used nothing, and no device refused leases.
    pub(crate) fn is_held_up(&self, request: &GpuRequest) -> bool {
        let is_disturbed = |room: &Room| room.external > 0 || room.refused.is_some();
        let clear = |room: &Room| Room { external: 0, refused: None, ..room.clone() };
        self.rooms.iter().any(is_disturbed) && {
            let rooms: Vec<_> = self.rooms.iter().map(clear).collect();
            place(&self.inventory, &rooms, request).is_some()
        }
    }
}

/// In whole MiB, rounded down.
fn roughly(bytes: u64) -> Size {
    Size(if bytes < 1 << 20 { bytes } else { bytes >> 20 << 20 })
}

/// What a request says of the kind of device.
enum Kind<'a> {
    Named(&'a str),
    Capability(ComputeCapability),
    Memory(u64),
}

impl<'a> Kind<'a> {
    fn of(request: &'a GpuRequest) -> Vec<Kind<'a>> {
        let name = request.name.as_deref().map(Kind::Named);
        let capability = request.capability.map(Kind::Capability);
        [name, capability, request.memory.map(Kind::Memory)].into_iter().flatten().collect()
    }

    fn is_met(&self, device: &DeviceInfo) -> bool {
        match self {
            Kind::Named(name) => is_named(device, name),
            Kind::Capability(least) => device.capability >= *least,
            Kind::Memory(bytes) => device.memory_bytes >= *bytes,
        }
    }
}

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Named(name) => write!(f, "named {name:?}"),
            Kind::Capability(least) => write!(f, "of compute capability {least} or newer"),
            Kind::Memory(bytes) => write!(f, "with {}", Size(*bytes)),
        }
    }
}

#[cfg(test)]
mod tests;
