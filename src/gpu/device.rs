//! Streams and events under names of our own, and the errors of CUDA as ours.
//!
//! cudarc's own tracking of who reads and writes what is off: it keeps a single event for the readers of a slice, so
//! that a second reader hides the first from whoever writes or frees it. Order comes from the events here alone.

use super::{DeviceInfo, GpuError};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, sys};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// A device that this process uses: one for each UUID, for as long as the process runs. Two contexts of cudarc for one
/// device would each skip the other's waits.
#[derive(Debug)]
pub(crate) struct Device {
    info: DeviceInfo,
    context: Arc<CudaContext>,
    /// The first error from which the device's context does not recover.
    poison: OnceLock<GpuError>,
}

impl Device {
    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// `Err` once the context is lost.
    pub(crate) fn check(&self) -> Result<(), GpuError> {
        self.poison.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// An error of `call` on this device as ours. One that the context does not survive is remembered.
    ///
    /// cudarc's error is never formatted: that calls into libcuda, and panics where there is none.
    pub(crate) fn error(&self, call: &'static str, error: DriverError) -> GpuError {
        use sys::CUresult as Code;
        let (device, code) = (self.info.index, error.0 as u32);
        match error.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => GpuError::OutOfMemory { device, requested: 0, free: 0 },
            Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE => {
                self.poison.get_or_init(|| GpuError::Poisoned { device, call: call.into(), code }).clone()
            }
            Code::CUDA_ERROR_DEVICE_UNAVAILABLE => self.poison.get_or_init(|| GpuError::DeviceLost { device }).clone(),
            _ => GpuError::Driver { call: call.into(), code },
        }
    }
}

/// Work in its order on one device.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// Never used again, unlike the driver's handles.
    id: u64,
    device: Arc<Device>,
    raw: Arc<CudaStream>,
}

/// A point in a stream's work.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    stream: u64,
    device: Arc<Device>,
    raw: Arc<CudaEvent>,
}

impl Stream {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self, GpuError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        device.check()?;
        let raw = device.context.new_stream().map_err(|error| device.error("cuStreamCreate", error))?;
        Ok(Stream { id: NEXT.fetch_add(1, Ordering::Relaxed), device: device.clone(), raw })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn raw(&self) -> &Arc<CudaStream> {
        &self.raw
    }

    /// All that was given to the stream until now.
    pub(crate) fn record(&self) -> Result<Event, GpuError> {
        let raw = self.raw.record_event(None).map_err(|error| self.device.error("cuEventRecord", error))?;
        Ok(Event { stream: self.id, device: self.device.clone(), raw: Arc::new(raw) })
    }

    /// What is given to the stream from now on runs after `event`; the host does not wait.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), GpuError> {
        if event.stream == self.id {
            return Ok(());
        }
        self.raw.wait(&event.raw).map_err(|error| self.device.error("cuStreamWaitEvent", error))
    }
}

impl Event {
    /// The stream it is a point of.
    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    /// Whether the device has come to it.
    pub(crate) fn is_complete(&self) -> Result<bool, GpuError> {
        self.device.check()?;
        self.raw.try_is_complete().map_err(|error| self.device.error("cuEventQuery", error))
    }

    /// The host waits until the device has come to it.
    pub(crate) fn synchronize(&self) -> Result<(), GpuError> {
        self.device.check()?;
        self.raw.synchronize().map_err(|error| self.device.error("cuEventSynchronize", error))
    }
}
