//! The inventory as the CUDA driver tells it, for machines without NVML (WSL, some containers).
//!
//! No context is made: that takes hundreds of megabytes of each device. So nothing is said of what is in use, or of
//! NVLink.
#![allow(unsafe_code)]

use super::{ComputeCapability, DeviceInfo, DeviceSource, DeviceUsage, GpuError, Inventory, Link, driver, nvml};
use cudarc::driver::{result, sys::CUdevice_attribute as Attribute};

/// The devices that CUDA shows this process, in the order of the PCI bus.
#[derive(Debug)]
pub struct CudaSource {
    driver: &'static driver::Driver,
}

impl CudaSource {
    /// Opens libcuda. Blocks while the driver starts (up to some seconds).
    ///
    /// # Errors
    /// `NoDriver`, `DriverTooOld`, `NoDevice`, or what the first calls say.
    pub fn open() -> Result<Self, GpuError> {
        driver::probe().map(|driver| CudaSource { driver })
    }
}

/// A device, and where it is on the PCI bus.
fn read(device: &driver::Visible) -> Result<([i32; 3], DeviceInfo), GpuError> {
    // SAFETY: the handle is one that `cuDeviceGet` gave to `probe`.
    let attribute = |which| unsafe { result::device::get_attribute(device.handle, which) }.ok();
    let place = [
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
    ];
    let number = |which| attribute(which).and_then(|value| u16::try_from(value).ok()).unwrap_or_default();
    let capability = ComputeCapability {
        major: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        minor: number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    };
    let name = result::device::get_name(device.handle).map_err(|error| driver::failed("cuDeviceGetName", error))?;
    // SAFETY: as above.
    let bytes = unsafe { result::device::total_mem(device.handle) };
    let bytes = bytes.map_err(|error| driver::failed("cuDeviceTotalMem_v2", error))?;
    // A slice is called so: NVIDIA H200 MIG 1g.18gb.
    let mig = name.contains(" MIG ");
    let uuid = driver::uuid_text(&device.uuid);
    let info = DeviceInfo {
        index: 0,
        uuid: if mig { uuid.replacen("GPU", "MIG", 1) } else { uuid },
        name,
        memory_bytes: bytes as u64,
        capability,
        // Older drivers do not know this one. No node is -1.
        numa_node: attribute(Attribute::CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID).and_then(|node| u32::try_from(node).ok()),
        mig,
    };
    Ok((place.map(|which| attribute(which).unwrap_or_default()), info))
}

impl DeviceSource for CudaSource {
    fn inventory(&self) -> Result<Inventory, GpuError> {
        let mut devices = self.driver.devices().iter().map(read).collect::<Result<Vec<_>, _>>()?;
        devices.sort_by_key(|(place, _)| *place);
        let mut devices: Vec<_> = devices.into_iter().map(|(_, info)| info).collect();
        for (index, info) in (0..).zip(&mut devices) {
            info.index = index;
        }
        let row = |a| (0..devices.len()).map(|b| (a != b).then_some(Link::System)).collect();
        let links = (0..devices.len()).map(row).collect();
        Ok(Inventory { devices, links })
    }

    /// Only NVML knows: an error that says so.
    fn usage(&self, _: &DeviceInfo) -> Result<DeviceUsage, GpuError> {
        Err(GpuError::MissingLibrary { library: nvml::LIBRARY.into() })
    }
}
