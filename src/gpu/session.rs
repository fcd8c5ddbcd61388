use super::{
    DeviceInfo, GpuError,
    device::{Device, Event, Stream},
};
use cudarc::driver::{CudaContext, CudaStream, DriverError};
use std::sync::Arc;

/// A device as a body uses it: its context, and a stream that nobody else has meanwhile.
///
/// Work that is given to the stream runs in its order, after the body has gone on. Nothing here waits for it except
/// what says so.
#[derive(Debug)]
pub struct Gpu {
    stream: Stream,
}

impl Gpu {
    /// A device without a lease, for tools and tests. Bodies of tasks and actors get theirs from their context, so
    /// that the runtime knows who uses what.
    ///
    /// The first use of a device in a process blocks while its context is made (some hundred milliseconds).
    ///
    /// # Errors
    /// No driver, a driver that is too old, no such device (see `CUDA_VISIBLE_DEVICES`), or one that is lost.
    pub fn open(device: &DeviceInfo) -> Result<Gpu, GpuError> {
        Gpu::lease(&Device::open(device)?, &[])
    }

    /// A session on a leased device, whose work comes after these events.
    pub(crate) fn lease(device: &Arc<Device>, after: &[Event]) -> Result<Gpu, GpuError> {
        let gpu = Gpu { stream: device.stream()? };
        after.iter().try_for_each(|event| gpu.stream.wait(event)).map(|()| gpu)
    }

    /// A point behind all that was given to the stream until now.
    pub(crate) fn record(&self) -> Result<Event, GpuError> {
        self.stream.record()
    }

    /// The stream, with its number.
    pub(crate) fn ordered(&self) -> &Stream {
        &self.stream
    }

    /// Which device it is.
    pub fn info(&self) -> &DeviceInfo {
        self.stream.device().info()
    }

    /// The session's stream, for whatever cudarc can do with one.
    ///
    /// cudarc's event tracking is off: what you allocate on this stream is ordered as long as it is used on this
    /// stream alone. For memory that others use too there are buffers of this crate, which order it.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.stream.raw()
    }

    /// The device's context in this process.
    pub fn context(&self) -> &Arc<CudaContext> {
        self.stream.device().context()
    }

    /// Blocks until all that was given to the stream is done.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.stream.synchronize()
    }

    /// What a call of cudarc's said, with its error as this crate's. An error that the device's context does not
    /// survive is remembered: from then on every use of the device fails with [`GpuError::Poisoned`].
    ///
    /// # Errors
    /// The call's.
    pub fn check<T>(&self, call: &str, result: Result<T, DriverError>) -> Result<T, GpuError> {
        result.map_err(|error| self.stream.device().error(call, error))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.stream.device().give_back(self.stream.clone());
    }
}
