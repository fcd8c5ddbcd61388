//! Devices, streams and events under names of our own, and the errors of CUDA as ours.
//!
//! cudarc's own tracking of who reads and writes what is off: it keeps a single event for the readers of a slice, so
//! that a second reader hides the first from whoever writes or frees it. Order comes from the events here alone.
#![allow(unsafe_code)]

use super::{DeviceInfo, GpuError, driver, modules::Modules};
use crate::sync::Mutex;
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::{
    mem::MaybeUninit,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// A device that this process uses: one for each UUID, for as long as the process runs. Two contexts of cudarc for one
/// device would each skip the other's waits.
#[derive(Debug)]
pub(crate) struct Device {
    info: DeviceInfo,
    context: Arc<CudaContext>,
    /// The first error from which the device's context does not recover.
    poison: OnceLock<GpuError>,
    /// Streams that nobody uses. The last one is taken first: what it did last is the likeliest to be over.
    streams: Mutex<Vec<Arc<Lane>>>,
    /// Events that nobody looks at any more, to be recorded again.
    events: Mutex<Vec<RawEvent>>,
    modules: Modules,
}

/// By CUDA's ordinal.
static OPEN: OnceLock<Vec<Mutex<Option<Arc<Device>>>>> = OnceLock::new();

impl Device {
    /// The device, with the primary context of this process on it; the first call for a device makes it, and blocks
    /// for as long as that takes (some hundred milliseconds).
    ///
    /// `info` says how it is called in errors; the first caller's is kept.
    ///
    /// # Errors
    /// Those of [`driver::probe`]; `Infeasible` where CUDA does not show the device to this process; what the first
    /// calls say, and what an earlier user's fault left behind.
    pub(crate) fn open(info: &DeviceInfo) -> Result<Arc<Device>, GpuError> {
        let driver = driver::probe()?;
        let hidden = || GpuError::Infeasible {
            reason: format!("CUDA does not show {} to this process; CUDA_VISIBLE_DEVICES may hide it", info.uuid),
        };
        let ordinal = driver.ordinal(&info.uuid).ok_or_else(hidden)?;
        let open = OPEN.get_or_init(|| driver.devices().iter().map(|_| Mutex::new(None)).collect());
        let mut slot = open[ordinal].lock();
        let device = match &*slot {
            Some(device) => device.clone(),
            None => slot.insert(Arc::new(Device::new(info, ordinal)?)).clone(),
        };
        device.check().map(|()| device)
    }

    /// The fault that this process has met on a device. Touches neither the driver nor the device.
    pub(crate) fn known_fault(info: &DeviceInfo) -> Option<GpuError> {
        let open = OPEN.get()?;
        let ordinal = driver::probe().ok()?.ordinal(&info.uuid)?;
        let device = open.get(ordinal)?.lock().clone()?;
        device.check().err()
    }

    fn new(info: &DeviceInfo, ordinal: usize) -> Result<Device, GpuError> {
        let failed = |call, error: DriverError| match error.0 {
            sys::CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => GpuError::Unavailable { device: info.index },
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                GpuError::OutOfMemory { device: info.index, requested: 0, free: 0 }
            }
            _ => driver::failed(call, error),
        };
        let context = CudaContext::new(ordinal).map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
        // SAFETY: every slice that this crate hands out is ordered by its own events (`buffer.rs`). Slices that a
        // body makes through cudarc stay on the one stream of its session, unless it orders them itself, as
        // `Gpu::stream` says.
        unsafe { context.disable_event_tracking() };
        // A thread that waits sleeps: its CPU belongs to other tasks.
        context.set_blocking_synchronize().map_err(|error| failed("cuCtxSetFlags", error))?;
        keep_freed_memory(&context);
        Ok(Device {
            info: info.clone(),
            context,
            poison: OnceLock::new(),
            streams: Mutex::new(Vec::new()),
            events: Mutex::new(Vec::new()),
            modules: Modules::default(),
        })
    }

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

    /// Makes the device's context the calling thread's.
    ///
    /// cudarc keeps errors that it met where it could return none (in destructors) for the next call, whoever's that
    /// is. Here they are taken first: what poisons the context counts, the rest is only told to the log.
    pub(crate) fn bind(&self) -> Result<(), GpuError> {
        self.check()?;
        if let Err(parked) = self.context.check_err() {
            let error = self.error("a destructor", parked);
            self.check()?;
            tracing::warn!("GPU {}: {error}", self.info.index);
        }
        self.make_current().map_err(|error| self.error("cuCtxSetCurrent", error))
    }

    fn make_current(&self) -> Result<(), DriverError> {
        let context = self.context.cu_ctx();
        match result::ctx::get_current() {
            Ok(Some(current)) if current == context => Ok(()),
            // SAFETY: the context lives as long as `self.context`, which is never dropped before the process ends.
            _ => unsafe { result::ctx::set_current(context) },
        }
    }

    /// A stream that nobody else was given.
    ///
    /// # Errors
    /// The context is lost, or the driver makes no more.
    pub(crate) fn stream(self: &Arc<Self>) -> Result<Stream, GpuError> {
        self.check()?;
        let free = self.streams.lock().pop();
        match free {
            Some(lane) => Ok(Stream { lane, device: self.clone() }),
            None => Stream::new(self),
        }
    }

    /// The stream can be given to somebody else, whose work comes after what is on it.
    pub(crate) fn give_back(&self, stream: Stream) {
        self.streams.lock().push(stream.lane);
    }

    /// An event that nobody else has. The context is bound.
    fn event(&self) -> Result<RawEvent, GpuError> {
        let free = self.events.lock().pop();
        if let Some(event) = free {
            return Ok(event);
        }
        // Without times it is cheaper; and a thread that waits for it sleeps.
        let flags =
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        let mut event = MaybeUninit::uninit();
        // SAFETY: the driver writes the handle where it returns success, and only then it is read.
        unsafe {
            sys::cuEventCreate(event.as_mut_ptr(), flags)
                .result()
                .map_err(|error| self.error("cuEventCreate", error))?;
            Ok(RawEvent(event.assume_init()))
        }
    }

    /// The device's modules.
    pub(super) fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Asks the driver whether the context still works. A fault shows at the first call after it.
    #[cfg(feature = "gpu-blas")]
    pub(crate) fn look(&self) -> Result<(), GpuError> {
        self.bind()?;
        result::mem_get_info().map(drop).map_err(|error| self.error("cuMemGetInfo", error))
    }

    /// Bytes that an allocation could still have, as the driver counts, with what the pool of freed memory keeps; 0
    /// where it does not say.
    pub(crate) fn free_bytes(&self) -> u64 {
        let free = self.bind().ok().and_then(|()| result::mem_get_info().ok()).map_or(0, |(free, _)| free as u64);
        free + kept_bytes(&self.context).unwrap_or(0)
    }

    /// That an allocation of so many bytes failed for want of room.
    pub(crate) fn out_of_memory(&self, requested: u64) -> GpuError {
        GpuError::OutOfMemory { device: self.info.index, requested, free: self.free_bytes() }
    }

    /// An error of `call` on this device as ours. One that the context does not survive is remembered.
    ///
    /// cudarc's error is never formatted: that calls into libcuda, and panics where there is none.
    pub(crate) fn error(&self, call: &str, error: DriverError) -> GpuError {
        use sys::CUresult as Code;
        let (device, code) = (self.info.index, error.0 as u32);
        match error.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => self.out_of_memory(0),
            Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_EXTERNAL_DEVICE => {
                self.poison.get_or_init(|| GpuError::Poisoned { device, call: call.into(), code }).clone()
            }
            Code::CUDA_ERROR_DEVICE_UNAVAILABLE => self.poison.get_or_init(|| GpuError::DeviceLost { device }).clone(),
            // CUDA does not say whether the context survives this one. In a lost one every call fails.
            Code::CUDA_ERROR_UNKNOWN if self.make_current().and_then(|()| result::mem_get_info()).is_err() => {
                self.poison.get_or_init(|| GpuError::Poisoned { device, call: call.into(), code }).clone()
            }
            _ => GpuError::Driver { call: call.into(), code },
        }
    }
}

fn pool(context: &CudaContext) -> Option<sys::CUmemoryPool> {
    if !context.has_async_alloc() {
        return None;
    }
    let mut pool = MaybeUninit::uninit();
    // SAFETY: the driver writes the handle where it returns success, and only then it is read.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(pool.as_mut_ptr(), context.cu_device()).result().ok()?;
        Some(pool.assume_init())
    }
}

/// Without this the driver gives freed memory back at each synchronization, and the next allocation maps it again.
fn keep_freed_memory(context: &CudaContext) {
    let Some(pool) = pool(context) else { return };
    let mut all = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute is a `u64`. Where it is refused, allocations are slower, no more.
    let _ = unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut all).cast()) }.result();
}

/// Bytes that the device's pool has and nobody uses.
fn kept_bytes(context: &CudaContext) -> Option<u64> {
    let pool = pool(context)?;
    let read = |attribute| {
        let mut bytes = 0_u64;
        // SAFETY: both attributes are `u64`s.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }.result().ok().map(|()| bytes)
    };
    let reserved = read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
    let used = read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
    Some(reserved.saturating_sub(used))
}

/// Work in its order on one device.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    lane: Arc<Lane>,
    device: Arc<Device>,
}

/// What a device's pool keeps of a stream.
#[derive(Debug)]
struct Lane {
    /// Never used again, unlike the driver's handles.
    id: u64,
    raw: Arc<CudaStream>,
    #[cfg(feature = "gpu-blas")]
    blas: OnceLock<super::blas::Blas>,
}

/// A point in a stream's work.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    stream: u64,
    recorded: Arc<Recorded>,
}

/// An event of the driver's; back in the device's pool when nobody has it any more.
#[derive(Debug)]
struct Recorded {
    device: Arc<Device>,
    raw: RawEvent,
}

/// The driver's handle.
#[derive(Clone, Copy, Debug)]
struct RawEvent(sys::CUevent);

// SAFETY: the driver lets any thread use an event, several at once too.
unsafe impl Send for RawEvent {}
// SAFETY: as above.
unsafe impl Sync for RawEvent {}

impl Stream {
    fn new(device: &Arc<Device>) -> Result<Self, GpuError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        device.bind()?;
        let raw = device.context.new_stream().map_err(|error| device.error("cuStreamCreate", error))?;
        let lane = Lane {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            raw,
            #[cfg(feature = "gpu-blas")]
            blas: OnceLock::new(),
        };
        Ok(Stream { lane: Arc::new(lane), device: device.clone() })
    }

    pub(crate) fn id(&self) -> u64 {
        self.lane.id
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn raw(&self) -> &Arc<CudaStream> {
        &self.lane.raw
    }

    /// Its cuBLAS handle, once there is one.
    #[cfg(feature = "gpu-blas")]
    pub(super) fn blas(&self) -> &OnceLock<super::blas::Blas> {
        &self.lane.blas
    }

    /// All that was given to the stream until now.
    pub(crate) fn record(&self) -> Result<Event, GpuError> {
        self.device.bind()?;
        let raw = self.device.event()?;
        let recorded = Recorded { device: self.device.clone(), raw };
        // SAFETY: both handles live: the stream in its lane, the event in `recorded`, which nobody else has yet.
        unsafe { result::event::record(raw.0, self.raw().cu_stream()) }
            .map_err(|error| self.device.error("cuEventRecord", error))?;
        Ok(Event { stream: self.id(), recorded: Arc::new(recorded) })
    }

    /// What is given to the stream from now on runs after `event`; the host does not wait.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), GpuError> {
        if event.stream == self.id() {
            return Ok(());
        }
        event.device().check()?;
        self.device.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both handles live as long as what they are borrowed from.
        unsafe { result::stream::wait_event(self.raw().cu_stream(), event.recorded.raw.0, flags) }.map_err(|error| {
            // A fault of the other device is not this one's.
            match event.is_complete() {
                Err(theirs) if !Arc::ptr_eq(event.device(), &self.device) => theirs,
                _ => self.device.error("cuStreamWaitEvent", error),
            }
        })
    }

    /// The host waits for all that was given to the stream until now.
    pub(crate) fn synchronize(&self) -> Result<(), GpuError> {
        self.record()?.synchronize()
    }
}

impl Event {
    /// The stream it is a point of.
    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.recorded.device
    }

    /// Whether these are one.
    pub(crate) fn is(&self, other: &Event) -> bool {
        Arc::ptr_eq(&self.recorded, &other.recorded)
    }

    /// Whether the device has come to it.
    pub(crate) fn is_complete(&self) -> Result<bool, GpuError> {
        self.device().check()?;
        // SAFETY: the handle lives as long as `recorded`.
        match unsafe { result::event::query(self.recorded.raw.0) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(self.device().error("cuEventQuery", error)),
        }
    }

    /// The host waits until the device has come to it.
    pub(crate) fn synchronize(&self) -> Result<(), GpuError> {
        self.device().bind()?;
        // SAFETY: the handle lives as long as `recorded`.
        unsafe { result::event::synchronize(self.recorded.raw.0) }
            .map_err(|error| self.device().error("cuEventSynchronize", error))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // To record it again changes nothing for streams that were told to wait for it.
        self.device.events.lock().push(self.raw);
    }
}
