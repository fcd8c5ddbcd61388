//! One allocation on a device, and copies in and out of it: the driver's calls, each in stream order.
#![allow(unsafe_code)]

use super::{
    GpuError,
    device::{Device, Stream},
};
use cudarc::driver::{result, sys};
/// Bytes on a device. Whoever has them frees them, and says on which stream; without that they leak.
#[derive(Debug)]
pub(super) struct Memory(Span);

/// Where they are, for calls that use them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    at: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Usable by what runs after this on `stream`.
    pub(super) fn allocate(stream: &Stream, bytes: usize) -> Result<Self, GpuError> {
        let device = stream.device();
        device.bind()?;
        // The driver refuses 0 bytes.
        let size = bytes.max(1);
        let at = match device.context().has_async_alloc() {
            // SAFETY: the stream is of the device whose context is bound, and alive.
            true => unsafe { result::malloc_async(stream.raw().cu_stream(), size) }
                .map_err(|error| device.error("cuMemAllocAsync", error)),
            // SAFETY: the device's context is bound.
            false => unsafe { result::malloc_sync(size) }.map_err(|error| device.error("cuMemAlloc", error)),
        }?;
        Ok(Memory(Span { at, bytes }))
    }

    pub(super) fn span(&self) -> Span {
        self.0
    }

    /// Given back after all that was given to `stream` until now.
    ///
    /// # Safety
    /// `stream` is of the same device, every other stream's use comes before that point, and nobody uses it again.
    pub(super) unsafe fn free(&mut self, stream: &Stream) -> Result<(), GpuError> {
        let device = stream.device();
        device.bind()?;
        match device.context().has_async_alloc() {
            // SAFETY: allocated by the call's counterpart; the caller has ordered all uses before.
            true => unsafe { result::free_async(self.0.at, stream.raw().cu_stream()) }
                .map_err(|error| device.error("cuMemFreeAsync", error)),
            false => {
                stream.synchronize()?;
                // SAFETY: as above; what came before on the stream is over.
                unsafe { result::free_sync(self.0.at) }.map_err(|error| device.error("cuMemFree", error))
            }
        }
    }
}

impl Span {
    pub(super) fn at(self) -> sys::CUdeviceptr {
        self.at
    }

    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    /// `bytes` of it from `offset` on.
    pub(super) fn part(self, offset: usize, bytes: usize) -> Span {
        assert!(offset + bytes <= self.bytes, "the part is inside the allocation");
        Span { at: self.at + offset as u64, bytes }
    }

    /// Fills it with zeros, in the order of `stream`.
    ///
    /// # Safety
    /// The memory is of the stream's device and is not freed before that, and all other uses of it are ordered.
    pub(super) unsafe fn zero(self, stream: &Stream) -> Result<(), GpuError> {
        let device = stream.device();
        device.bind()?;
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: the allocation is that long; the caller vouches for the rest.
        unsafe { result::memset_d8_async(self.at, 0, self.bytes, stream.raw().cu_stream()) }
            .map_err(|error| device.error("cuMemsetD8Async", error))
    }

    /// Copies `source` to the place `offset`, in the order of `stream`.
    ///
    /// # Safety
    /// As for [`zero`](Self::zero), and `source` stays as it is until the stream has come past this point.
    pub(super) unsafe fn fill(self, stream: &Stream, offset: usize, source: &[u8]) -> Result<(), GpuError> {
        assert!(offset + source.len() <= self.bytes, "the copy is inside the allocation");
        let device = stream.device();
        device.bind()?;
        // SAFETY: inside the allocation; the caller vouches for the rest.
        unsafe { result::memcpy_htod_async(self.at + offset as u64, source, stream.raw().cu_stream()) }
            .map_err(|error| device.error("cuMemcpyHtoDAsync", error))
    }

    /// Copies what lies at `offset` to `to`, in the order of `stream`.
    ///
    /// # Safety
    /// As for [`zero`](Self::zero), and nobody touches `to` until the stream has come past this point.
    pub(super) unsafe fn read(self, stream: &Stream, offset: usize, to: &mut [u8]) -> Result<(), GpuError> {
        assert!(offset + to.len() <= self.bytes, "the copy is inside the allocation");
        let device = stream.device();
        device.bind()?;
        // SAFETY: inside the allocation; the caller vouches for the rest.
        unsafe { result::memcpy_dtoh_async(to, self.at + offset as u64, stream.raw().cu_stream()) }
            .map_err(|error| device.error("cuMemcpyDtoHAsync", error))
    }

    /// Copies all of it from the memory of another device, in the order of `stream`.
    ///
    /// # Safety
    /// As for [`zero`](Self::zero), and the same holds for `source` on the device `from`. It has as many bytes.
    pub(super) unsafe fn copy(self, stream: &Stream, from: &Device, source: Span) -> Result<(), GpuError> {
        let device = stream.device();
        device.bind()?;
        if self.bytes == 0 {
            return Ok(());
        }
        let (to, from) = (device.context().cu_ctx(), from.context().cu_ctx());
        // SAFETY: both are that long, each in the context that is named; the caller vouches for the rest.
        unsafe { result::memcpy_peer_async(to, self.at, from, source.at, self.bytes, stream.raw().cu_stream()) }
            .map_err(|error| device.error("cuMemcpyPeerAsync", error))
    }
}

/// The host waits for all of the device's work.
pub(super) fn synchronize(device: &Device) -> Result<(), GpuError> {
    device.bind()?;
    result::ctx::synchronize().map_err(|error| device.error("cuCtxSynchronize", error))
}

/// Whether what is given to the stream becomes part of a graph instead of running; also where the driver does not say.
/// The device's context is bound.
pub(super) fn is_capturing(stream: &Stream) -> bool {
    let none = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream lives as long as what it is borrowed from.
    let status = unsafe { result::stream::is_capturing(stream.raw().cu_stream()) };
    status != Ok(none)
}
