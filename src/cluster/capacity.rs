//! What nodes have and tasks ask for, counted in whole thousandths, so that shares add up exactly.

use crate::{
    gpu::{
        GpuRequest,
        placement::{Devices, Lack, Part},
    },
    local::resources::{Demand as Wish, WHOLE, wanted},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// What a task asks for. Plain tasks ask for one CPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Demand {
    /// Thousandths of CPUs.
    pub(crate) cpu: u32,
    pub(crate) gpu: Option<Arc<GpuRequest>>,
    /// Bytes.
    pub(crate) memory: u64,
    /// Thousandths.
    pub(crate) custom: BTreeMap<Arc<str>, u64>,
}

impl Demand {
    pub(crate) fn cpus(thousandths: u32) -> Self {
        Demand { cpu: thousandths, gpu: None, memory: 0, custom: BTreeMap::new() }
    }

    /// Thousandths of GPUs.
    pub(crate) fn gpus(&self) -> u64 {
        self.gpu.as_ref().map_or(0, |request| request.total())
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&wanted(self.cpu, self.gpu.as_deref(), self.memory, &self.custom).join(", "))
    }
}

impl From<&Wish> for Demand {
    /// The same as a local runtime counts it.
    fn from(wish: &Wish) -> Self {
        Demand { cpu: wish.cpu, gpu: wish.gpu.clone(), memory: wish.memory, custom: wish.custom.clone() }
    }
}

/// What a node has, or what of it is free.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Capacity {
    pub(crate) cpu: u32,
    pub(crate) gpus: Devices,
    pub(crate) memory: u64,
    pub(crate) custom: BTreeMap<Arc<str>, u64>,
}

fn lack_of(what: impl fmt::Display, wanted: u64, there: u64, unit: f64) -> Option<Lack> {
    let (wanted, there) = (wanted as f64 / unit, there as f64 / unit);
    (wanted > there).then(|| Lack::new(format!("{wanted} {what} wanted, {there} there"), wanted, there))
}

impl Capacity {
    /// All that `demand` lacks here; `None` if it fits.
    pub(crate) fn lack(&self, demand: &Demand) -> Option<Lack> {
        let thousand = f64::from(WHOLE);
        let custom = demand.custom.iter().map(|(name, wanted)| {
            lack_of(format!("of {name:?}"), *wanted, self.custom.get(name).copied().unwrap_or(0), thousand)
        });
        let others = [
            lack_of("CPUs", demand.cpu.into(), self.cpu.into(), thousand),
            demand.gpu.as_deref().and_then(|request| self.gpus.lack(request)),
            lack_of("bytes of memory", demand.memory, self.memory, 1.0),
        ];
        others.into_iter().chain(custom).flatten().reduce(Lack::and)
    }

    /// The same of what is free now, with what of each device that is.
    pub(crate) fn lack_now(&self, demand: &Demand) -> Option<String> {
        let lack = self.lack(demand)?;
        Some(match demand.gpu.as_ref().filter(|request| self.gpus.place(request).is_none()) {
            Some(request) => format!("{lack}; {}", self.gpus.free_of(request)),
            None => lack.to_string(),
        })
    }

    pub(crate) fn fits(&self, demand: &Demand) -> bool {
        self.place(demand).is_some()
    }

    /// The devices for it, if it fits.
    fn place(&self, demand: &Demand) -> Option<Vec<Part>> {
        let has = |(name, wanted): (&Arc<str>, &u64)| self.custom.get(name).copied().unwrap_or(0) >= *wanted;
        if demand.cpu > self.cpu || demand.memory > self.memory || !demand.custom.iter().all(has) {
            return None;
        }
        demand.gpu.as_ref().map_or(Some(Vec::new()), |request| self.gpus.place(request))
    }

    /// Takes it all, or nothing (`None`): the devices that were taken.
    pub(crate) fn take(&mut self, demand: &Demand) -> Option<Vec<Part>> {
        let devices = self.place(demand)?;
        self.hold(demand, &devices);
        Some(devices)
    }

    /// So much, to be taken from, wherever it is.
    pub(crate) fn of(demand: &Demand) -> Self {
        let gpus = Devices::promised(demand.gpu.as_deref());
        Capacity { cpu: demand.cpu, gpus, memory: demand.memory, custom: demand.custom.clone() }
    }

    /// What was taken, to be taken from: these devices have the places that they have in the whole.
    pub(crate) fn taken(&self, demand: &Demand, devices: &[Part]) -> Self {
        let (custom, memory) = (demand.custom.clone(), demand.memory);
        Capacity { cpu: demand.cpu, gpus: self.gpus.part(devices), memory, custom }
    }

    /// Takes just these devices; they must be there.
    pub(crate) fn hold(&mut self, demand: &Demand, devices: &[Part]) {
        self.cpu -= demand.cpu;
        self.gpus.hold(devices);
        self.memory -= demand.memory;
        for (name, amount) in &demand.custom {
            if let Some(free) = self.custom.get_mut(name) {
                *free -= amount;
            }
        }
    }

    /// Gives back what `take` took.
    pub(crate) fn give(&mut self, demand: &Demand, devices: &[Part]) {
        self.cpu += demand.cpu;
        self.gpus.give(devices);
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
    use crate::gpu::Inventory;
    use proptest::prelude::*;

    fn gpus(count: u32) -> Devices {
        Devices::new(Inventory::simulated(count))
    }

    fn asked(thousandths: u32) -> Option<Arc<GpuRequest>> {
        (thousandths > 0).then(|| GpuRequest::amount(thousandths).into())
    }

    #[test]
    fn eleven_shares_of_0_18_on_two_devices_leave_room_for_ten() {
        let mut free = Capacity { gpus: gpus(2), ..Capacity::default() };
        let share = Demand { gpu: asked(180), ..Demand::cpus(0) };
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
                gpus: gpus(3),
                memory: 100,
                custom: BTreeMap::from([("x".into(), 7)]),
            };
            let mut free = total.clone();
            let mut held = Vec::new();
            for (index, (cpu, gpu, memory, custom)) in demands.into_iter().enumerate() {
                let gpu = if gpu > WHOLE { 2 * WHOLE } else { gpu };
                let demand = Demand { cpu, gpu: asked(gpu), memory, custom: BTreeMap::from([("x".into(), custom)]) };
                if let Some(devices) = free.take(&demand) {
                    prop_assert_eq!(devices.iter().map(|part| part.thousandths).sum::<u32>(), gpu);
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
