//! A stream's work, recorded once and given to a stream again and again.
#![allow(unsafe_code)]

use super::{Gpu, GpuError, device::Device};
use crate::sync::Mutex;
use cudarc::driver::{CudaGraph, sys};
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

/// Work that [`Gpu::capture`] recorded. To launch it costs the host about as much as one kernel does.
pub struct Graph {
    device: Arc<Device>,
    /// The driver wants one thread at a time at it.
    raw: Mutex<Handle>,
}

struct Handle(CudaGraph);

// SAFETY: the driver ties a graph to a context, not to a thread; the mutex around it lets one thread at a time use it.
unsafe impl Send for Handle {}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("device", &self.device.info().index).finish_non_exhaustive()
    }
}

impl Graph {
    /// Gives the recorded work to the session's stream. Does not wait for it.
    ///
    /// # Safety
    /// The work uses the addresses that it used when it was recorded. All that it reads and writes must still be there,
    /// and the stream must come after whoever wrote it last: hold the buffers' guards for this session meanwhile.
    ///
    /// # Errors
    /// `INVALID_CONTEXT` (201) where the session is on another device than the recording, and the driver's.
    pub unsafe fn launch(&self, gpu: &Gpu) -> Result<(), GpuError> {
        let device = gpu.ordered().device();
        if !Arc::ptr_eq(device, &self.device) {
            let code = sys::CUresult::CUDA_ERROR_INVALID_CONTEXT as u32;
            return Err(GpuError::Driver { call: "cuGraphLaunch".into(), code });
        }
        device.bind()?;
        let graph = self.raw.lock();
        // SAFETY: both handles live as long as what they are borrowed from; the caller answers for the work.
        unsafe { sys::cuGraphLaunch(graph.0.cu_graph_exec(), gpu.stream().cu_stream()) }
            .result()
            .map_err(|error| device.error("cuGraphLaunch", error))
    }
}

impl Gpu {
    /// Records what `body` gives to the session's stream, without running it, for [`Graph::launch`] to run as often as
    /// it is wanted: steps of a training, say, whose kernels are shorter than their launches.
    ///
    /// What was given to the stream before is no part of it. In `body` memory can be neither allocated nor freed,
    /// nothing can wait, and other streams cannot take part: make buffers, and take their guards, before. The buffers
    /// must stay where they are for as long as the graph is launched.
    ///
    /// ```no_run
    /// # use outray::gpu::{Gpu, GpuError, cudarc::driver::{CudaFunction, LaunchConfig}};
    /// # fn f(gpu: &Gpu, kernel: &CudaFunction) -> Result<(), GpuError> {
    /// let config = LaunchConfig::for_num_elems(1);
    /// let step = gpu.capture(|gpu| {
    ///     // SAFETY: the kernel takes no arguments.
    ///     gpu.check("cuLaunchKernel", unsafe { gpu.stream().launch_builder(kernel).launch(config) }.map(drop))
    /// })?;
    /// for _ in 0..1000 {
    ///     // SAFETY: it uses no memory.
    ///     unsafe { step.launch(gpu) }?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `body`, and the driver's where the body did what cannot be recorded. The stream is as before then.
    pub fn capture<E: From<GpuError>>(&self, body: impl FnOnce(&Gpu) -> Result<(), E>) -> Result<Graph, E> {
        let device = self.ordered().device().clone();
        device.bind()?;
        // Other threads may allocate and wait meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begun = self.stream().begin_capture(mode);
        begun.map_err(|error| device.error("cuStreamBeginCapture", error))?;
        self.recording().store(true, Ordering::Relaxed);
        let recording = Recording(self);
        body(self)?;
        let graph = recording.end().map_err(|error| device.error("cuStreamEndCapture", error))?;
        let nothing = || GpuError::Driver {
            call: "cuStreamEndCapture".into(),
            code: sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED as u32,
        };
        Ok(Graph { device, raw: Mutex::new(Handle(graph.ok_or_else(nothing)?)) })
    }
}

/// Ends also when the body fails or panics.
struct Recording<'a>(&'a Gpu);

impl Recording<'_> {
    fn stop(&self) -> Result<Option<CudaGraph>, cudarc::driver::DriverError> {
        self.0.recording().store(false, Ordering::Relaxed);
        self.0.stream().end_capture(sys::CUgraphInstantiate_flags(0))
    }

    fn end(self) -> Result<Option<CudaGraph>, cudarc::driver::DriverError> {
        let graph = self.stop();
        std::mem::forget(self);
        graph
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        drop(self.stop());
    }
}
