//! GPUs: what devices there are, what tasks and actors ask of them, and the memory and the streams that a lease
//! gives to a body.
//!
//! Inventories, requests and placement are plain data and pure functions, and need no feature: a runtime can be given
//! devices that exist only on paper ([`Simulated`]). With the feature `gpu` NVML says what devices there are, and the
//! CUDA driver runs the work. Neither library is needed to build, and a machine without them says so with a
//! [`GpuError`].

use std::sync::Arc;

mod error;
mod inventory;
pub(crate) mod placement;
mod request;

// What calls the driver. With unsafe code: `blas`, `buffer`, `device`, `driver`, `graph`, `memory`, `pinned`, `store`.
#[cfg(all(feature = "gpu-unversioned", feature = "gpu-blas"))]
mod blas;
#[cfg(feature = "gpu-unversioned")]
mod buffer;
#[cfg(feature = "gpu-unversioned")]
mod cuda;
#[cfg(feature = "gpu-unversioned")]
mod detect;
#[cfg(feature = "gpu-unversioned")]
pub(crate) mod device;
#[cfg(feature = "gpu-unversioned")]
mod disk;
#[cfg(feature = "gpu-unversioned")]
mod driver;
#[cfg(feature = "gpu-unversioned")]
mod graph;
#[cfg(feature = "gpu-unversioned")]
mod memory;
#[cfg(feature = "gpu-unversioned")]
mod modules;
#[cfg(feature = "gpu-unversioned")]
mod nvml;
#[cfg(feature = "gpu-unversioned")]
mod pinned;
#[cfg(feature = "gpu-unversioned")]
mod session;
#[cfg(feature = "gpu-unversioned")]
pub(crate) mod sessions;
#[cfg(feature = "gpu-unversioned")]
mod store;

pub use error::GpuError;
pub use inventory::{ComputeCapability, DeviceInfo, DeviceSource, DeviceUsage, GpuLease, Inventory, Link, Simulated};
pub use request::{GpuRequest, NvLink, Share, Spread};

/// The version of cudarc whose types appear here.
#[cfg(feature = "gpu-unversioned")]
pub use cudarc;
#[cfg(feature = "gpu-unversioned")]
pub use {
    buffer::{DeviceBuffer, DeviceVec, ReadGuard, View, ViewMut, WriteGuard, set_pinned_budget},
    cuda::CudaSource,
    graph::Graph,
    modules::Code,
    nvml::NvmlSource,
    session::Gpu,
    store::BufferStats,
};

/// The devices of this machine: from NVML, or from the CUDA driver where NVML is missing. The library is opened once
/// for this process, which blocks for some milliseconds, and with libcuda up to seconds.
///
/// `OUTRAY_NVML_PATH` names the file to open in place of `libnvidia-ml.so.1`. Where `CUDA_VISIBLE_DEVICES` is set, what
/// it hides is left out.
///
/// # Errors
/// That nobody can be asked, and why: no support in this build, no driver, a driver that is too old or answers with an
/// error. That the driver has no device may be said only by [`DeviceSource::inventory`].
pub fn detect() -> Result<Arc<dyn DeviceSource>, GpuError> {
    #[cfg(feature = "gpu-unversioned")]
    return detect::detect();
    #[cfg(not(feature = "gpu-unversioned"))]
    return Err(GpuError::NotBuilt);
}

/// The fault after which nothing runs on a device in this process, if one was seen.
pub(crate) fn known_fault(device: &DeviceInfo) -> Option<GpuError> {
    #[cfg(feature = "gpu-unversioned")]
    return device::Device::known_fault(device);
    #[cfg(not(feature = "gpu-unversioned"))]
    let _ = device;
    #[cfg(not(feature = "gpu-unversioned"))]
    None
}

#[cfg(all(test, not(feature = "gpu-unversioned")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_gpus_says_so() {
        assert_eq!(detect().map(|_| ()).unwrap_err(), GpuError::NotBuilt);
    }
}
