//! Which library says what devices this machine has.

use super::{CudaSource, DeviceSource, GpuError, NvmlSource, nvml};
use parking_lot::Mutex;
use std::{env, path::Path, sync::Arc};

/// Opened once for this process; a failure is not kept, since the driver may be installed later.
pub(super) fn detect() -> Result<Arc<dyn DeviceSource>, GpuError> {
    static FOUND: Mutex<Option<Arc<dyn DeviceSource>>> = Mutex::new(None);
    let mut found = FOUND.lock();
    match &*found {
        Some(source) => Ok(source.clone()),
        None => Ok(found.insert(open()?).clone()),
    }
}

fn open() -> Result<Arc<dyn DeviceSource>, GpuError> {
    let path = env::var_os(nvml::PATH).filter(|path| !path.is_empty());
    let without = match NvmlSource::open(path.as_deref().map(Path::new)) {
        Ok(nvml) => return Ok(Arc::new(nvml.shown_by_cuda()?)),
        Err(error) => error,
    };
    match (CudaSource::open(), without) {
        (Ok(cuda), without) => {
            tracing::warn!("NVML says nothing of the GPUs, so libcuda is asked: {without}");
            Ok(Arc::new(cuda))
        }
        (Err(GpuError::NoDriver { library: cuda, detail }), GpuError::NoDriver { library: nvml, detail: first }) => {
            let detail = format!("{first}; {detail}");
            Err(GpuError::NoDriver { library: format!("{nvml} and {cuda}"), detail })
        }
        // NVML is there, and says what is wrong.
        (Err(GpuError::NoDriver { .. }), without) => Err(without),
        (Err(error), _) => Err(error),
    }
}
