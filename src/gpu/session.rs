use super::{
    Code, DeviceInfo, GpuError,
    device::{Device, Event, Stream},
};
use cudarc::{
    driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError},
    nvrtc::CompileOptions,
};
use std::sync::{Arc, atomic::AtomicBool};

/// A device as a body uses it: its context, and a stream that nobody else has meanwhile.
///
/// Work that is given to the stream runs in its order, after the body has gone on. Nothing here waits for it except
/// what says so.
///
/// ```no_run
/// use outray::gpu::{Gpu, GpuError, cudarc::driver::{LaunchConfig, PushKernelArg}, detect};
/// const PTX: &str = ""; // include_str!("saxpy.ptx")
/// let gpu = Gpu::open(&detect()?.inventory()?.devices[0])?;
/// let saxpy = gpu.function(PTX, "saxpy")?;
/// let x = gpu.upload(&[1.0f32, 2.0, 3.0])?.freeze();
/// let mut y = gpu.zeros::<f32>(3)?;
/// let (from, mut to) = (x.read(&gpu)?, y.write(&gpu)?);
/// let mut launch = gpu.stream().launch_builder(&saxpy);
/// launch.arg(&2.0f32).arg(&from).arg(&mut to).arg(&3i32);
/// // SAFETY: these are the kernel's arguments, and both buffers have three elements.
/// gpu.check("cuLaunchKernel", unsafe { launch.launch(LaunchConfig::for_num_elems(3)) })?;
/// drop((from, to));
/// assert_eq!(y.to_vec()?, [2.0, 4.0, 6.0]);
/// # Ok::<(), GpuError>(())
/// ```
#[derive(Debug)]
pub struct Gpu {
    stream: Stream,
    /// What the stream is given is recorded, not run.
    recording: AtomicBool,
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
        // Also takes what destructors of earlier bodies left for the next caller.
        device.bind()?;
        let gpu = Gpu { stream: device.stream()?, recording: AtomicBool::new(false) };
        after.iter().try_for_each(|event| gpu.stream.wait(event)).map(|()| gpu)
    }

    /// A point behind all that was given to the stream. With the last handle to the session the stream goes to whoever
    /// is next.
    pub(crate) fn finish(&self) -> Result<Event, GpuError> {
        self.stream.record()
    }

    /// Whether what the stream is given is recorded: nothing can be allocated, freed or waited for then.
    pub(super) fn recording(&self) -> &AtomicBool {
        &self.recording
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

    /// The module of this code, loaded at the first use on the device. That blocks while the driver translates PTX. The
    /// device keeps it for as long as the process runs.
    ///
    /// # Errors
    /// [`GpuError::Compile`] where the driver does not take the code.
    pub fn module(&self, code: impl Into<Code>) -> Result<Arc<CudaModule>, GpuError> {
        let device = self.stream.device();
        Ok(device.modules().load(device, code.into())?.module().clone())
    }

    /// A kernel of this code, which is loaded at the first use on the device.
    ///
    /// # Errors
    /// [`GpuError::Compile`] where the driver does not take the code; `NOT_FOUND` (500) where it has no such kernel.
    pub fn function(&self, code: impl Into<Code>, name: &str) -> Result<CudaFunction, GpuError> {
        let device = self.stream.device();
        device.modules().load(device, code.into())?.function(device, name)
    }

    /// A kernel of a source in CUDA C++, which NVRTC compiles at its first use, for this device's architecture unless
    /// `options` say otherwise. That blocks, for some hundred milliseconds and more; later uses find it by source and
    /// options.
    ///
    /// # Errors
    /// `MissingLibrary` where NVRTC is not installed (see `OUTRAY_CUDA_PATH`), [`GpuError::Compile`] with what it said,
    /// `NOT_FOUND` (500) where the source has no such kernel (`extern "C"` keeps its name).
    ///
    /// ```no_run
    /// # fn f(gpu: &outray::gpu::Gpu) -> Result<(), outray::gpu::GpuError> {
    /// let source = r#"extern "C" __global__ void one(float* x) { x[0] = 1.0f; }"#;
    /// let one = gpu.compile(source, "one", Default::default())?;
    /// # let _ = one; Ok(()) }
    /// ```
    pub fn compile(&self, source: &str, name: &str, options: CompileOptions) -> Result<CudaFunction, GpuError> {
        let device = self.stream.device();
        device.modules().compile(device, source, options)?.function(device, name)
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

    /// The fault after which nothing runs on this device in this process, if one was seen.
    pub fn fault(&self) -> Option<GpuError> {
        self.stream.device().check().err()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.stream.device().give_back(self.stream.clone());
    }
}

#[cfg(test)]
mod tests;
