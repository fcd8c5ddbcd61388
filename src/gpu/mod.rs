//! GPUs: what devices there are, what tasks and actors ask of them, and the memory and the streams that a lease
//! gives to a body.
//!
//! Inventories, requests and placement are plain data and pure functions, and need no feature: a runtime can be given
//! devices that exist only on paper ([`Simulated`]). With the feature `gpu` NVML says what devices there are, and the
//! CUDA driver runs the work. Neither library is needed to build, and a machine without them says so with a
//! [`GpuError`].

mod error;
mod inventory;
pub(crate) mod placement;
mod request;

#[cfg(feature = "gpu-unversioned")]
#[expect(dead_code)]
mod device;

pub use error::GpuError;
pub use inventory::{ComputeCapability, DeviceInfo, DeviceSource, DeviceUsage, GpuLease, Inventory, Link, Simulated};
pub use request::{GpuRequest, NvLink, Share, Spread};

/// The devices of this machine: from NVML, or from the CUDA driver where NVML is missing.
///
/// # Errors
/// That there are none, and why: no support in this build, no driver, no device.
pub fn detect() -> Result<std::sync::Arc<dyn DeviceSource>, GpuError> {
    Err(GpuError::NotBuilt)
}
