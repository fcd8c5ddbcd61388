//! What nodes have and tasks ask for, counted in whole thousandths, so that shares add up exactly.

use crate::local::resources::{Demand as Wish, WHOLE, place_gpus, wanted};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// What a task asks for. Plain tasks ask for one CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Demand {
    /// Thousandths of CPUs.
    pub(crate) cpu: u32,
    /// Thousandths of GPUs: a share of one device, or whole devices.
    pub(crate) gpu: u32,
    /// Bytes.
    pub(crate) memory: u64,
    /// Thousandths.
    pub(crate) custom: BTreeMap<Arc<str>, u64>,
}

impl Demand {
    pub(crate) fn cpus(thousandths: u32) -> Self {
        Demand { cpu: thousandths, gpu: 0, memory: 0, custom: BTreeMap::new() }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&wanted(self.cpu, self.gpu, self.memory, &self.custom).join(", "))
    }
}

impl From<&Wish> for Demand {
    /// The same as a local runtime counts it.
    fn from(wish: &Wish) -> Self {
        Demand { cpu: wish.cpu, gpu: wish.gpu, memory: wish.memory, custom: wish.custom.clone() }
    }
}

/// What a node has, or what of it is free.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Capacity {
    pub(crate) cpu: u32,
    /// Of each device.
    pub(crate) gpus: Vec<u32>,
    pub(crate) memory: u64,
    pub(crate) custom: BTreeMap<Arc<str>, u64>,
}

/// The devices, and the share of each, that were taken.
pub(crate) type Devices = Vec<(usize, u32)>;

/// Something that is too little.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lack {
    what: String,
    wanted: f64,
    there: f64,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} wanted, {} there", self.wanted, self.what, self.there)
    }
}

impl Lack {
    fn of(what: impl Into<String>, wanted: u64, there: u64, unit: f64) -> Option<Lack> {
        (wanted > there).then(|| Lack { what: what.into(), wanted: wanted as f64 / unit, there: there as f64 / unit })
    }

    /// The share of what is wanted that is missing: the smaller, the nearer.
    pub(crate) fn gap(&self) -> f64 {
        (self.wanted - self.there) / self.wanted
    }
}

impl Capacity {
    /// The first thing that `demand` lacks here; `None` if it fits.
    pub(crate) fn lack(&self, demand: &Demand) -> Option<Lack> {
        let thousand = f64::from(WHOLE);
        Lack::of("CPUs", demand.cpu.into(), self.cpu.into(), thousand)
            .or_else(|| {
                if place_gpus(&self.gpus, demand.gpu).is_some() {
                    return None;
                }
                // A share comes from one device, so free shares of several do not add up.
                let there = match demand.gpu < WHOLE {
                    true => self.gpus.iter().copied().max().unwrap_or(0),
                    false => self.gpus.iter().filter(|free| **free == WHOLE).count() as u32 * WHOLE,
                };
                Lack::of("GPUs", demand.gpu.into(), there.into(), thousand)
            })
            .or_else(|| Lack::of("bytes of memory", demand.memory, self.memory, 1.0))
            .or_else(|| {
                demand.custom.iter().find_map(|(name, wanted)| {
                    Lack::of(format!("of {name:?}"), *wanted, self.custom.get(name).copied().unwrap_or(0), thousand)
                })
            })
    }

    pub(crate) fn fits(&self, demand: &Demand) -> bool {
        self.cpu >= demand.cpu && self.lack(demand).is_none()
    }

    /// Takes it all, or nothing (`None`).
    pub(crate) fn take(&mut self, demand: &Demand) -> Option<Devices> {
        if !self.fits(demand) {
            return None;
        }
        let devices = place_gpus(&self.gpus, demand.gpu)?;
        self.hold(demand, &devices);
        Some(devices)
    }

    /// So much, to be taken from.
    pub(crate) fn of(demand: &Demand) -> Self {
        let gpus = match demand.gpu {
            share if share < WHOLE => vec![share],
            whole => vec![WHOLE; (whole / WHOLE) as usize],
        };
        Capacity { cpu: demand.cpu, gpus, memory: demand.memory, custom: demand.custom.clone() }
    }

    /// What was taken, to be taken from: these devices have the numbers that they have in the whole.
    pub(crate) fn taken(&self, demand: &Demand, devices: &Devices) -> Self {
        let mut gpus = vec![0; self.gpus.len()];
        for (device, share) in devices {
            gpus[*device] = *share;
        }
        Capacity { gpus, ..Capacity::of(demand) }
    }

    /// Takes just these devices; they must be there.
    pub(crate) fn hold(&mut self, demand: &Demand, devices: &Devices) {
        self.cpu -= demand.cpu;
        for (device, share) in devices {
            self.gpus[*device] -= share;
        }
        self.memory -= demand.memory;
        for (name, amount) in &demand.custom {
            if let Some(free) = self.custom.get_mut(name) {
                *free -= amount;
            }
        }
    }

    /// Gives back what `take` took.
    pub(crate) fn give(&mut self, demand: &Demand, devices: &Devices) {
        self.cpu += demand.cpu;
        for (device, share) in devices {
            self.gpus[*device] += share;
        }
        self.memory += demand.memory;
        for (name, amount) in &demand.custom {
            if let Some(free) = self.custom.get_mut(name) {
                *free += amount;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn eleven_shares_of_0_18_on_two_devices_leave_room_for_ten() {
        let mut free = Capacity { gpus: vec![WHOLE; 2], ..Capacity::default() };
        let share = Demand { gpu: 180, ..Demand::cpus(0) };
        let taken = (0..11).map_while(|_| free.take(&share)).count();
        assert_eq!(taken, 10);
        assert_eq!(free.lack(&share).unwrap().to_string(), "0.18 GPUs wanted, 0.1 there");
    }

    proptest! {
        #[test]
        fn what_is_taken_and_given_back_leaves_no_trace(
            demands in prop::collection::vec((0u32..3_000, 0u32..1_200, 0u64..50, 0u64..5), 1..40),
        ) {
            let total = Capacity {
                cpu: 4_000,
                gpus: vec![WHOLE; 3],
                memory: 100,
                custom: BTreeMap::from([("x".into(), 7)]),
            };
            let mut free = total.clone();
            let mut held = Vec::new();
            for (index, (cpu, gpu, memory, custom)) in demands.into_iter().enumerate() {
                let gpu = if gpu > WHOLE { 2 * WHOLE } else { gpu };
                let demand = Demand { cpu, gpu, memory, custom: BTreeMap::from([("x".into(), custom)]) };
                if let Some(devices) = free.take(&demand) {
                    prop_assert_eq!(devices.iter().map(|(_, share)| share).sum::<u32>(), gpu);
                    held.push((demand, devices));
                }
                if index % 3 == 2 && !held.is_empty() {
                    let (demand, devices) = held.swap_remove(index % held.len());
                    free.give(&demand, &devices);
                }
            }
            for (demand, devices) in &held {
                free.give(demand, devices);
            }
            prop_assert_eq!(free, total);
        }
    }
}
