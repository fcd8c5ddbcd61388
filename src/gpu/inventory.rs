use super::GpuError;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

/// What a device's hardware can do, as CUDA numbers it: 9.0 is Hopper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ComputeCapability {
    /// The generation.
    pub major: u16,
    /// The variant.
    pub minor: u16,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// How two devices of one host are joined, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Link {
    /// Over the link between CPUs, or in a way that is not known.
    System,
    /// Over a CPU's host bridge.
    HostBridge,
    /// Over PCIe switches.
    PcieSwitch,
    /// Over NVLink, directly or through a switch.
    NvLink,
}

/// What does not change about a device while the process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its number in the inventory, in the order of the PCI bus. Never CUDA's ordinal: that follows
    /// `CUDA_VISIBLE_DEVICES` and the devices' speed.
    pub index: u32,
    /// What names it everywhere: `GPU-…`, or `MIG-…` for a slice.
    pub uuid: String,
    /// The product's name.
    pub name: String,
    /// Bytes.
    pub memory_bytes: u64,
    /// What its hardware can do.
    pub capability: ComputeCapability,
    /// The NUMA node it hangs on, where that is known.
    pub numa_node: Option<u32>,
    /// Whether it is a slice of a device, or a device that is cut in slices.
    pub mig: bool,
}

/// A device that a task or an actor has leased, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GpuLease {
    /// The device.
    pub device: Arc<DeviceInfo>,
    /// The share of its time, in thousandths; 0 if only memory was asked for.
    pub thousandths: u32,
    /// Bytes of its memory.
    pub bytes: u64,
}

/// What changes about a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceUsage {
    /// Bytes in use, by whomever.
    pub used_bytes: u64,
    /// Bytes in use by other processes.
    pub external_bytes: u64,
    /// How much of the last second it was busy.
    pub busy_percent: u32,
    /// It fell off the bus or needs a reset.
    pub lost: bool,
}

/// The devices of a host, and how they are joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// In the order of their `index`.
    pub devices: Vec<DeviceInfo>,
    /// `links[i][j]` for `i != j`.
    pub links: Vec<Vec<Option<Link>>>,
}

impl Inventory {
    /// How the devices at these places are joined.
    pub fn link(&self, a: usize, b: usize) -> Option<Link> {
        self.links.get(a).and_then(|row| row.get(b)).copied().flatten()
    }

    /// `count` equal devices, joined over PCIe.
    ///
    /// ```
    /// use outray::gpu::{Inventory, Link};
    /// let gpus = Inventory::uniform(4, "NVIDIA H200", 141 << 30, (9, 0)).nvlink(&[(0, 1), (2, 3)]);
    /// assert_eq!(gpus.link(0, 1), Some(Link::NvLink));
    /// assert_eq!(gpus.link(1, 2), Some(Link::System));
    /// ```
    pub fn uniform(count: u32, name: &str, memory_bytes: u64, capability: (u16, u16)) -> Self {
        let devices = (0..count).map(|index| DeviceInfo {
            index,
            uuid: format!("SIM-{index}"),
            name: name.into(),
            memory_bytes,
            capability: ComputeCapability { major: capability.0, minor: capability.1 },
            numa_node: None,
            mig: false,
        });
        let row = |i| (0..count).map(|j| (i != j).then_some(Link::System)).collect();
        Inventory { devices: devices.collect(), links: (0..count).map(row).collect() }
    }

    /// So many devices that exist only on paper, of a size that no sensible request exceeds.
    pub(crate) fn simulated(count: u32) -> Self {
        Inventory::uniform(count, "simulated GPU", 80 << 30, (9, 0))
    }

    /// The same with these pairs joined by NVLink.
    ///
    /// # Panics
    /// If there is no such device.
    #[must_use]
    pub fn nvlink(mut self, pairs: &[(usize, usize)]) -> Self {
        for (a, b) in pairs {
            self.links[*a][*b] = Some(Link::NvLink);
            self.links[*b][*a] = Some(Link::NvLink);
        }
        self
    }
}

/// Where an inventory comes from.
pub trait DeviceSource: Send + Sync {
    /// The devices, without those that are lost.
    ///
    /// # Errors
    /// That there are none, and why.
    fn inventory(&self) -> Result<Inventory, GpuError>;

    /// One device's usage now. It is asked for when a request is admitted, at most every 20 milliseconds, and while one
    /// waits for what other processes use; whoever submits waits for the answer.
    ///
    /// # Errors
    /// [`GpuError::DeviceLost`] and [`GpuError::Poisoned`]: no lease on it is given. After any other error what was
    /// known last still counts. A device that is lost may also be told of in the usage.
    fn usage(&self, device: &DeviceInfo) -> Result<DeviceUsage, GpuError>;
}

/// Devices that exist only on paper: placement works on them, kernels do not.
#[derive(Debug, Default)]
pub struct Simulated {
    inventory: Inventory,
    usage: Mutex<Vec<DeviceUsage>>,
}

impl Simulated {
    /// These devices, with nothing in use.
    pub fn new(inventory: Inventory) -> Self {
        let usage = Mutex::new(vec![DeviceUsage::default(); inventory.devices.len()]);
        Simulated { inventory, usage }
    }

    /// From now on the device at this place is used so.
    ///
    /// # Panics
    /// If there is no such device.
    pub fn set_usage(&self, device: usize, usage: DeviceUsage) {
        self.usage.lock()[device] = usage;
    }
}

impl DeviceSource for Simulated {
    fn inventory(&self) -> Result<Inventory, GpuError> {
        match self.inventory.devices.is_empty() {
            true => Err(GpuError::NoDevice),
            false => Ok(self.inventory.clone()),
        }
    }

    fn usage(&self, device: &DeviceInfo) -> Result<DeviceUsage, GpuError> {
        let place = self.inventory.devices.iter().position(|info| info.uuid == device.uuid);
        Ok(place.map(|place| self.usage.lock()[place]).unwrap_or_default())
    }
}
