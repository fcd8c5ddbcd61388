//! GPUs: what devices there are, what tasks and actors ask of them, and the memory and the streams that a lease
//! gives to a body.
//!
//! Inventories, requests and placement are plain data and pure functions, and need no feature: a runtime can be given
//! devices that exist only on paper ([`Simulated`]). With the feature `gpu` NVML says what devices there are, and the
//! CUDA driver runs the work. Neither library is needed to build, and a machine without them says so with a
//! [`GpuError`].

mod error;
mod inventory;
mod request;

// What calls the driver. With unsafe code: `blas`, `buffer`, `device`, `driver`, `graph`, `memory`, `pinned`, `store`.
#[cfg(all(feature = "gpu-unversioned", feature = "gpu-blas"))]
mod blas;
#[cfg(feature = "gpu-unversioned")]
mod buffer;
#[cfg(feature = "gpu-unversioned")]
#[allow(dead_code, reason = "leases come next")]
mod device;
#[cfg(feature = "gpu-unversioned")]
mod disk;
#[cfg(feature = "gpu-unversioned")]
#[allow(dead_code, reason = "leases come next")]
mod driver;
#[cfg(feature = "gpu-unversioned")]
mod graph;
#[cfg(feature = "gpu-unversioned")]
mod memory;
#[cfg(feature = "gpu-unversioned")]
mod modules;
#[cfg(feature = "gpu-unversioned")]
mod pinned;
#[cfg(feature = "gpu-unversioned")]
#[allow(dead_code, reason = "leases come next")]
mod session;
#[cfg(feature = "gpu-unversioned")]
mod store;

pub use error::GpuError;
pub use inventory::{ComputeCapability, DeviceInfo, DeviceSource, DeviceUsage, Inventory, Link, Simulated};
pub use request::{GpuRequest, NvLink, Share, Spread};

#[cfg(feature = "gpu-unversioned")]
pub use buffer::{DeviceBuffer, DeviceVec, ReadGuard, View, ViewMut, WriteGuard, set_pinned_budget};
/// The version of cudarc whose types appear here.
#[cfg(feature = "gpu-unversioned")]
pub use cudarc;
#[cfg(feature = "gpu-unversioned")]
pub use {graph::Graph, modules::Code, session::Gpu, store::BufferStats};

/// The devices of this machine: from NVML, or from the CUDA driver where NVML is missing.
///
/// # Errors
/// That there are none, and why: no support in this build, no driver, no device.
pub fn detect() -> Result<std::sync::Arc<dyn DeviceSource>, GpuError> {
    Err(GpuError::NotBuilt)
}
