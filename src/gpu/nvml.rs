//! The inventory as NVML tells it, the library that the driver brings for managing devices.
//!
//! NVML lists what the machine has, in the order of the PCI bus; `CUDA_VISIBLE_DEVICES` means nothing to it.

use super::{ComputeCapability, DeviceInfo, DeviceSource, DeviceUsage, GpuError, Inventory, Link, driver};
#[cfg(target_os = "linux")]
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::{
    Device, Nvml,
    enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus},
    enums::device::UsedGpuMemory,
    error::NvmlError,
};
#[cfg(target_os = "linux")]
use std::ffi::c_ulong;
use std::{env, path::Path};

pub(super) const LIBRARY: &str = "libnvidia-ml.so.1";
/// The variable that names another file.
pub(super) const PATH: &str = "OUTRAY_NVML_PATH";

/// The devices that NVML lists. Those that are lost, or do not answer, are left out with a warning in the log. Of a
/// device with MIG on its slices are listed, not itself.
#[derive(Debug)]
pub struct NvmlSource {
    nvml: Nvml,
    /// Only what it shows counts.
    cuda: Option<&'static driver::Driver>,
}

/// An error of NVML as ours; `device` is NVML's number of the one that was asked.
fn ours(call: &str, device: Option<u32>, error: NvmlError) -> GpuError {
    let no_driver = |detail: &str| GpuError::NoDriver { library: LIBRARY.into(), detail: detail.into() };
    let code = match error {
        NvmlError::LibloadingError(error) => return no_driver(&error.to_string()),
        NvmlError::DriverNotLoaded => return no_driver("the kernel's driver is not loaded"),
        // After an update without a restart.
        NvmlError::LibRmVersionMismatch => {
            return no_driver("it is of another version than the kernel's driver: restart the machine");
        }
        // The library lacks it, or the kernel's driver does.
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            return GpuError::DriverTooOld { missing: format!("{LIBRARY} lacks {call}") };
        }
        NvmlError::GpuLost | NvmlError::ResetRequired if device.is_some() => {
            return GpuError::DeviceLost { device: device.unwrap_or_default() };
        }
        NvmlError::Uninitialized => 1,
        NvmlError::InvalidArg => 2,
        NvmlError::NotSupported => 3,
        NvmlError::NoPermission => 4,
        NvmlError::NotFound => 6,
        NvmlError::InsufficientSize(_) => 7,
        NvmlError::InsufficientPower => 8,
        NvmlError::Timeout => 10,
        NvmlError::IrqIssue => 11,
        NvmlError::LibraryNotFound => 12,
        NvmlError::CorruptedInfoROM => 14,
        NvmlError::GpuLost => 15,
        NvmlError::ResetRequired => 16,
        NvmlError::OperatingSystem => 17,
        NvmlError::InUse => 19,
        NvmlError::InsufficientMemory => 20,
        NvmlError::NoData => 21,
        _ => 999,
    };
    GpuError::Driver { call: call.into(), code }
}

impl NvmlSource {
    /// Opens NVML: this library, or `libnvidia-ml.so.1` as the loader finds it.
    ///
    /// # Errors
    /// `NoDriver` if it cannot be opened or the kernel's driver does not answer, `DriverTooOld`, or what the first call
    /// says.
    pub fn open(library: Option<&Path>) -> Result<Self, GpuError> {
        let path = library.unwrap_or(Path::new(LIBRARY));
        let nvml = Nvml::builder().lib_path(path.as_os_str()).init().map_err(|error| {
            match ours("nvmlInit_v2", None, error) {
                GpuError::NoDriver { detail, .. } => GpuError::NoDriver { library: path.display().to_string(), detail },
                error => error,
            }
        })?;
        Ok(NvmlSource { nvml, cuda: None })
    }

    /// Leaves out what `CUDA_VISIBLE_DEVICES` hides from this process. Its numbers count in CUDA's order, which follows
    /// the devices' speed, so CUDA is asked what they mean.
    pub(super) fn shown_by_cuda(mut self) -> Result<Self, GpuError> {
        if env::var_os("CUDA_VISIBLE_DEVICES").is_some() {
            self.cuda = Some(driver::probe()?);
        }
        Ok(self)
    }

    /// All that can be leased, in NVML's order.
    fn devices(&self) -> Result<Vec<(Device<'_>, DeviceInfo)>, GpuError> {
        let count = self.nvml.device_count().map_err(|error| ours("nvmlDeviceGetCount_v2", None, error))?;
        let (mut devices, mut reason) = (Vec::new(), GpuError::NoDevice);
        for place in 0..count {
            match self.at(place) {
                Ok(found) => devices.extend(found),
                Err(error) => {
                    tracing::warn!("GPU {place}, as NVML counts, is left out: {error}");
                    reason = error;
                }
            }
        }
        devices.retain(|(_, info)| self.cuda.is_none_or(|cuda| cuda.ordinal(&info.uuid).is_some()));
        if devices.is_empty() {
            return Err(reason);
        }
        for (index, (_, info)) in (0..).zip(&mut devices) {
            info.index = index;
        }
        Ok(devices)
    }

    /// The device at a place of NVML's list, or its slices.
    fn at(&self, place: u32) -> Result<Vec<(Device<'_>, DeviceInfo)>, GpuError> {
        let failed = |call| move |error| ours(call, Some(place), error);
        let device = self.nvml.device_by_index(place).map_err(failed("nvmlDeviceGetHandleByIndex_v2"))?;
        let capability = device.cuda_compute_capability().map_err(failed("nvmlDeviceGetCudaComputeCapability"))?;
        let numa_node = numa_node(&device);
        let number = |part: i32| u16::try_from(part).unwrap_or_default();
        let info = |device: &Device<'_>, memory_bytes, mig| {
            Ok(DeviceInfo {
                index: place,
                uuid: device.uuid().map_err(failed("nvmlDeviceGetUUID"))?,
                name: device.name().map_err(failed("nvmlDeviceGetName"))?,
                memory_bytes,
                capability: ComputeCapability { major: number(capability.major), minor: number(capability.minor) },
                numa_node,
                mig,
            })
        };
        // Devices and drivers from before MIG do not know the call.
        if !device.mig_mode().is_ok_and(|mode| mode.current == 1) {
            let memory = device.memory_info().map_err(failed("nvmlDeviceGetMemoryInfo_v2"))?;
            // What the driver keeps for itself nobody can lease.
            let info = info(&device, memory.total.saturating_sub(memory.reserved), false)?;
            return Ok(vec![(device, info)]);
        }
        let places = device.mig_device_count().map_err(failed("nvmlDeviceGetMaxMigDeviceCount"))?;
        let mut slices = Vec::new();
        for slice in 0..places {
            let slice = match device.mig_device_by_index(slice) {
                Ok(slice) => slice,
                // Nobody has made a slice there.
                Err(NvmlError::NotFound | NvmlError::InvalidArg) => continue,
                Err(error) => return Err(failed("nvmlDeviceGetMigDeviceHandleByIndex")(error)),
            };
            let attributes = slice.attributes().map_err(failed("nvmlDeviceGetAttributes_v2"))?;
            let info = info(&slice, attributes.memory_size_mb << 20, true)?;
            slices.push((slice, info));
        }
        if slices.is_empty() {
            tracing::warn!("GPU {place}, as NVML counts, is left out: MIG is on, and it has no slices");
        }
        Ok(slices)
    }
}

impl DeviceSource for NvmlSource {
    fn inventory(&self) -> Result<Inventory, GpuError> {
        let (handles, devices): (Vec<_>, Vec<_>) = self.devices()?.into_iter().unzip();
        let mut links = vec![vec![None; devices.len()]; devices.len()];
        for (a, one) in handles.iter().enumerate() {
            for (b, other) in handles.iter().enumerate().skip(a + 1) {
                // No slice reaches another's memory, not even on its own device: copies go through the host.
                let link = if devices[a].mig || devices[b].mig { Link::System } else { link(&self.nvml, one, other) };
                (links[a][b], links[b][a]) = (Some(link), Some(link));
            }
        }
        Ok(Inventory { devices, links })
    }

    fn usage(&self, device: &DeviceInfo) -> Result<DeviceUsage, GpuError> {
        let failed = |call| move |error| ours(call, Some(device.index), error);
        let read = || {
            let handle = match self.nvml.device_by_uuid(device.uuid.as_str()) {
                // A slice that was taken away.
                Err(NvmlError::NotFound) => return Err(GpuError::DeviceLost { device: device.index }),
                handle => handle.map_err(failed("nvmlDeviceGetHandleByUUID"))?,
            };
            let memory = handle.memory_info().map_err(failed("nvmlDeviceGetMemoryInfo_v2"))?;
            // Without the list all that is in use counts as that of others.
            let processes = handle.running_compute_processes().unwrap_or_default();
            let bytes =
                processes.iter().filter(|process| process.pid == std::process::id()).map(|process| {
                    match process.used_gpu_memory {
                        UsedGpuMemory::Used(bytes) => bytes,
                        UsedGpuMemory::Unavailable => 0,
                    }
                });
            Ok(DeviceUsage {
                used_bytes: memory.used,
                external_bytes: memory.used.saturating_sub(bytes.sum()),
                // Slices have no such figure.
                busy_percent: handle.utilization_rates().map_or(0, |rates| rates.gpu),
                lost: false,
            })
        };
        match read() {
            Err(GpuError::DeviceLost { .. }) => Ok(DeviceUsage { lost: true, ..DeviceUsage::default() }),
            usage => usage,
        }
    }
}

/// The host's NUMA node that is nearest to a device, if it is one. (`nvmlDeviceGetNumaNodeId` is something else: the
/// node that the device's own memory is, where a device is one.)
#[cfg(target_os = "linux")]
fn numa_node(device: &Device<'_>) -> Option<u32> {
    const NODE: u32 = 0; // NVML_AFFINITY_SCOPE_NODE
    // Bits for up to 1,024 nodes, as many as Linux has.
    let nodes = device.memory_affinity(16, NODE).ok()?;
    let mut bits = (0..).zip(&nodes).filter(|(_, word)| **word != 0);
    match (bits.next(), bits.next()) {
        (Some((word, bit)), None) if bit.is_power_of_two() => Some(word * c_ulong::BITS + bit.trailing_zeros()),
        _ => None,
    }
}

fn link(nvml: &Nvml, a: &Device<'_>, b: &Device<'_>) -> Link {
    // Through a switch, too.
    if let Ok(P2pStatus::Ok) = a.p2p_status(b, P2pCapabilitiesIndex::NvLink) {
        return Link::NvLink;
    }
    pcie(nvml, a, b)
}

#[cfg(target_os = "linux")]
fn pcie(nvml: &Nvml, a: &Device<'_>, b: &Device<'_>) -> Link {
    match nvml.topology_common_ancestor(a, b) {
        Ok(TopologyLevel::Internal | TopologyLevel::Single | TopologyLevel::Multiple) => Link::PcieSwitch,
        Ok(TopologyLevel::HostBridge) => Link::HostBridge,
        _ => Link::System,
    }
}

// On other systems NVML does not say.

#[cfg(not(target_os = "linux"))]
fn numa_node(_: &Device<'_>) -> Option<u32> {
    None
}

#[cfg(not(target_os = "linux"))]
fn pcie(_: &Nvml, _: &Device<'_>, _: &Device<'_>) -> Link {
    Link::System
}
