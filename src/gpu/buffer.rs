//! Typed memory on devices, as bodies use it. What keeps it in order is in `store.rs`.
#![allow(unsafe_code)]

use super::{
    Gpu, GpuError,
    device::Stream,
    memory::{self, Span},
    pinned,
    store::{self, BufferStats, Object, Store},
};
use crate::{Array, Element};
use bytes::Bytes;
use cudarc::driver::{
    CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DeviceSlice, LaunchArgs, PushKernelArg, SyncOnDrop,
    sys::{CUdeviceptr, CUresult},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use std::{
    fmt,
    marker::PhantomData,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

/// Numbers on a device that are being written: what [`DeviceBuffer`] is made of.
///
/// [`write`](Self::write) gives a kernel what it writes to, on the stream of a session; [`freeze`](Self::freeze)
/// makes it an object that tasks pass on. Between two uses its bytes may be moved to the host, and they come back
/// by themselves, to whatever device is asked for.
///
/// Memory is allocated and freed in the order of streams: nothing here waits for a device, except to make room (and what
/// says so).
pub struct DeviceVec<T> {
    /// Nobody else uses it.
    object: Arc<Object>,
    elements: PhantomData<T>,
}

/// Numbers on a device that do not change any more: an object, as an [`Array`] is on the host.
///
/// Clones share it. Any number of tasks read it at the same time, on any stream of any device: [`read`](Self::read)
/// makes the stream wait for what writes it, and copies it to the device if it is elsewhere. It stays on a device
/// between tasks, and the host waits nowhere in a chain of them. With the last clone it is freed, after what still reads
/// it.
///
/// When a device's memory is short, the buffers that nobody reads and that were used longest ago move to page-locked
/// memory of the host, and from there to disk (nameless files in the directory for temporary files). They come
/// back when they are read.
///
/// With serde it is its numbers, as an [`Array`] is. What arrives so is on the host until somebody reads it with a device;
/// [`to_vec`](Self::to_vec) then needs none.
///
/// ```no_run
/// use outray::gpu::{DeviceBuffer, Gpu, GpuError};
///
/// fn twice(gpu: &Gpu, x: &DeviceBuffer<f32>) -> Result<DeviceBuffer<f32>, GpuError> {
///     let mut y = gpu.zeros::<f32>(x.len())?;
///     {
///         let (x, mut y) = (x.read(gpu)?, y.write(gpu)?);
///         let copied = gpu.stream().memcpy_dtod(&x, &mut y);
///         gpu.check("cuMemcpyDtoDAsync", copied)?;
///         // … and a kernel: gpu.stream().launch_builder(&f).arg(&x).arg(&mut y)
///     }
///     Ok(y.freeze())
/// }
/// ```
pub struct DeviceBuffer<T> {
    handle: Arc<Handle>,
    elements: PhantomData<T>,
}

/// What clones of a buffer share. The store may have the object too, for a moment, and does not count.
struct Handle {
    object: Arc<Object>,
}

/// What reads a buffer on a session's stream, between [`DeviceBuffer::read`] and its end.
///
/// An argument of cudarc's launch builder (`.arg(&guard)`), of its `memcpy_*` functions and of cuBLAS. Keep it while work
/// that reads is given to the stream; that work comes after what wrote the buffer, and what writes or
/// frees it later comes after that work. On another stream of the device cudarc's safe functions make the host wait, so
/// that nothing goes wrong. Two things nobody checks: a kernel's launch, which is unsafe anyway, and a `memcpy_dtod` from
/// the guard of one device to memory of another: read the buffer with a session of that device instead.
///
/// Not inside of a graph capture: take guards before it, and let go of them after the last launch of the graph.
pub struct ReadGuard<'a, T> {
    gpu: &'a Gpu,
    object: &'a Arc<Object>,
    view: View<'a, T>,
}

/// What writes a [`DeviceVec`] on a session's stream, between [`DeviceVec::write`] and its end. As [`ReadGuard`], with
/// `.arg(&mut guard)`.
pub struct WriteGuard<'a, T> {
    gpu: &'a Gpu,
    object: &'a Arc<Object>,
    span: Span,
    view: ViewMut<'a, T>,
}

/// Part of what a guard reads.
pub struct View<'a, T> {
    stream: &'a Stream,
    at: CUdeviceptr,
    len: usize,
    elements: PhantomData<&'a [T]>,
}

/// Part of what a guard writes.
pub struct ViewMut<'a, T> {
    stream: &'a Stream,
    at: CUdeviceptr,
    len: usize,
    elements: PhantomData<&'a mut [T]>,
}

/// From now on the buffers that left their devices have at most so many bytes of page-locked memory on the host,
/// together. What is beyond that goes to disk. Without this it is a quarter of the memory that the host can spare at the
/// first use.
pub fn set_pinned_budget(bytes: u64) {
    pinned::set_budget(bytes);
}

impl Gpu {
    /// The stream, unless its work is being recorded.
    fn running(&self) -> Result<&Stream, GpuError> {
        let stream = self.ordered();
        stream.device().bind()?;
        match memory::is_capturing(stream) {
            false => Ok(stream),
            true => Err(GpuError::Driver {
                call: "the use of a buffer while a graph is recorded".into(),
                code: CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED as u32,
            }),
        }
    }

    /// So many zeros on this device.
    ///
    /// # Errors
    /// `OutOfMemory` where there is no room even after all that nobody uses was moved to the host; that the device is
    /// lost; `Spill` where the disk did not take what had to go there.
    ///
    /// # Blocking
    /// Only to make room on disk.
    pub fn zeros<T: Element + DeviceRepr>(&self, len: usize) -> Result<DeviceVec<T>, GpuError> {
        let stream = self.running()?;
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| stream.device().out_of_memory(u64::MAX))?;
        Object::zeros(stream, bytes).map(DeviceVec::new)
    }

    /// A copy of these numbers on this device. `numbers` can be used again at once.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros).
    ///
    /// # Blocking
    /// While the numbers are copied to page-locked memory, some megabytes ahead of the device.
    pub fn upload<T: Element + DeviceRepr>(&self, numbers: &[T]) -> Result<DeviceVec<T>, GpuError> {
        Object::upload(self.running()?, bytemuck::cast_slice(numbers)).map(DeviceVec::new)
    }

    /// What buffers have of the device's memory.
    ///
    /// # Errors
    /// Those of the first use of a device.
    pub fn buffer_stats(&self) -> Result<BufferStats, GpuError> {
        Store::of(self.ordered().device()).map(|store| store.stats())
    }

    /// From now on the buffers of this process have at most so many bytes on the device. Without this it is what is
    /// free at the first use, less a part in 32.
    ///
    /// What is there already is moved away by the next allocation.
    ///
    /// # Errors
    /// Those of the first use of a device.
    pub fn set_buffer_budget(&self, bytes: u64) -> Result<(), GpuError> {
        Store::of(self.ordered().device()).map(|store| store.set_budget(bytes))
    }
}

impl<T: Element + DeviceRepr> DeviceVec<T> {
    fn new(object: Arc<Object>) -> Self {
        DeviceVec { object, elements: PhantomData }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.object.bytes() / size_of::<T>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For work on the stream of `gpu` that reads and writes: it comes after all that used the numbers until now.
    ///
    /// # Errors
    /// As [`DeviceBuffer::read`].
    pub fn write<'a>(&'a mut self, gpu: &'a Gpu) -> Result<WriteGuard<'a, T>, GpuError> {
        let stream = gpu.running()?;
        let span = self.object.hold_alone(stream)?;
        let view = ViewMut { stream, at: span.at(), len: self.len(), elements: PhantomData };
        Ok(WriteGuard { gpu, object: &self.object, span, view })
    }

    /// For work on the stream of `gpu` that only reads.
    ///
    /// # Errors
    /// As [`DeviceBuffer::read`].
    pub fn read<'a>(&'a self, gpu: &'a Gpu) -> Result<ReadGuard<'a, T>, GpuError> {
        ReadGuard::new(&self.object, gpu)
    }

    /// The numbers, on the host. Blocks until they are there.
    ///
    /// # Errors
    /// As [`DeviceBuffer::to_vec`].
    pub fn to_vec(&self) -> Result<Vec<T>, GpuError> {
        to_vec(&self.object)
    }

    /// Publishes it: nobody writes it from now on. Costs nothing.
    pub fn freeze(self) -> DeviceBuffer<T> {
        DeviceBuffer::new(self.object)
    }
}

impl<T: Element + DeviceRepr> DeviceBuffer<T> {
    fn new(object: Arc<Object>) -> Self {
        DeviceBuffer { handle: Arc::new(Handle { object }), elements: PhantomData }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.handle.object.bytes() / size_of::<T>()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For work on the stream of `gpu` that reads. Copies the numbers to that device if they are elsewhere; copies on
    /// other devices stay, until the memory is wanted there.
    ///
    /// # Errors
    /// `Poisoned` or `DeviceLost` where this device, or the one with the only copy, is lost; else as [`Gpu::zeros`], if
    /// there was no copy here.
    ///
    /// # Blocking
    /// Only if it comes back from disk, or while another thread moves it.
    pub fn read<'a>(&'a self, gpu: &'a Gpu) -> Result<ReadGuard<'a, T>, GpuError> {
        ReadGuard::new(&self.handle.object, gpu)
    }

    /// The numbers, on the host. Blocks until they are there. Needs no lease, and no device if they are on the host.
    ///
    /// # Errors
    /// `Poisoned` or `DeviceLost` where the only copy was on a device that is lost; what the disk says.
    pub fn to_vec(&self) -> Result<Vec<T>, GpuError> {
        to_vec(&self.handle.object)
    }

    /// To write it again, where it is: possible if this is the only handle. Never copies.
    ///
    /// # Errors
    /// The buffer as it was: there are other handles. An object's value counts as one.
    pub fn try_into_mut(self) -> Result<DeviceVec<T>, Self> {
        match Arc::try_unwrap(self.handle) {
            Ok(Handle { object }) => Ok(DeviceVec::new(object)),
            Err(handle) => Err(DeviceBuffer { handle, elements: PhantomData }),
        }
    }
}

fn to_vec<T: Element>(object: &Object) -> Result<Vec<T>, GpuError> {
    let mut numbers = vec![T::zeroed(); object.bytes() / size_of::<T>()];
    object.read(bytemuck::cast_slice_mut(&mut numbers)).map(|()| numbers)
}

/// On the host, until it is read with a device. No copy.
impl<T: Element + DeviceRepr> From<Array<T>> for DeviceBuffer<T> {
    fn from(array: Array<T>) -> Self {
        DeviceBuffer::new(Object::plain(Bytes::from(array)))
    }
}

/// On the host, until it is read with a device. No copy.
impl<T: Element + DeviceRepr> From<Vec<T>> for DeviceBuffer<T> {
    fn from(numbers: Vec<T>) -> Self {
        Array::from(numbers).into()
    }
}

impl<T> Clone for DeviceBuffer<T> {
    fn clone(&self) -> Self {
        DeviceBuffer { handle: self.handle.clone(), elements: PhantomData }
    }
}

/// Blocks until the numbers are on the host.
impl<T: Element + DeviceRepr> Serialize for DeviceBuffer<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let array = match self.handle.object.plain_bytes().map(Array::<T>::from_bytes) {
            Some(Ok(array)) => array,
            _ => self.to_vec().map_err(ser::Error::custom)?.into(),
        };
        array.serialize(serializer)
    }
}

impl<'de, T: Element + DeviceRepr> Deserialize<'de> for DeviceBuffer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Array::deserialize(deserializer).map(Self::from)
    }
}

impl<T: Element> fmt::Debug for DeviceVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe::<T>(f, "DeviceVec", &self.object)
    }
}

impl<T: Element> fmt::Debug for DeviceBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        describe::<T>(f, "DeviceBuffer", &self.handle.object)
    }
}

fn describe<T>(f: &mut fmt::Formatter<'_>, name: &str, object: &Object) -> fmt::Result {
    let (len, element) = (object.bytes() / size_of::<T>(), std::any::type_name::<T>());
    write!(f, "{name}([{element}; {len}] on {})", object.places())
}

impl<'a, T: Element> ReadGuard<'a, T> {
    fn new(object: &'a Arc<Object>, gpu: &'a Gpu) -> Result<Self, GpuError> {
        let stream = gpu.running()?;
        let span = object.hold(stream)?;
        let view = View { stream, at: span.at(), len: span.bytes() / size_of::<T>(), elements: PhantomData };
        Ok(ReadGuard { gpu, object, view })
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        self.view.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.view.len == 0
    }

    /// Part of it.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> View<'_, T> {
        let View { stream, at, len, .. } = self.view;
        View::part(stream, at, len, range)
    }
}

impl<T: Element> WriteGuard<'_, T> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        self.view.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.view.len == 0
    }

    /// Part of it, to read.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> View<'_, T> {
        let ViewMut { stream, at, len, .. } = self.view;
        View::part(stream, at, len, range)
    }

    /// Part of it, to write.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> ViewMut<'_, T> {
        let View { stream, at, len, .. } = self.slice(range);
        ViewMut { stream, at, len, elements: PhantomData }
    }

    /// The numbers before `mid` and those from there on.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_at_mut(&mut self, mid: usize) -> (ViewMut<'_, T>, ViewMut<'_, T>) {
        let part = |view: View<'_, T>| (view.at, view.len);
        let ((first, before), (second, after)) = (part(self.slice(..mid)), part(self.slice(mid..)));
        let stream = self.view.stream;
        (
            ViewMut { stream, at: first, len: before, elements: PhantomData },
            ViewMut { stream, at: second, len: after, elements: PhantomData },
        )
    }

    /// Overwrites all of it. `numbers` can be used again at once.
    ///
    /// # Errors
    /// That the device is lost, or that the host has no page-locked memory left.
    ///
    /// # Panics
    /// If there are more or fewer numbers.
    ///
    /// # Blocking
    /// As [`Gpu::upload`].
    pub fn copy_from_slice(&mut self, numbers: &[T]) -> Result<(), GpuError> {
        assert_eq!(numbers.len(), self.len(), "as many numbers as there are on the device");
        // SAFETY: the guard holds the copy alone, on this stream.
        unsafe { store::fill_from(self.view.stream, self.span, bytemuck::cast_slice(numbers)) }
    }
}

impl<'a, T> View<'a, T> {
    /// That range of the `len` numbers that start at `at`.
    fn part(stream: &'a Stream, at: CUdeviceptr, len: usize, range: impl RangeBounds<usize>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => len,
        };
        assert!(start <= end && end <= len, "{start}..{end} is inside of {len} numbers");
        View { stream, at: at + (start * size_of::<T>()) as u64, len: end - start, elements: PhantomData }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        end(self.gpu, self.object);
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        end(self.gpu, self.object);
    }
}

fn end(gpu: &Gpu, object: &Object) {
    // An event of now would be part of the graph, and none of what it runs. As if the guard were leaked, then.
    if gpu.running().is_ok() {
        object.let_go(gpu.ordered().device(), gpu.ordered());
    }
}

/// Work on `stream` comes after what was given to `own`. If it is another one, the host waits for that work.
fn ordered<'a>(own: &Stream, stream: &'a CudaStream) -> SyncOnDrop<'a> {
    if stream.cu_stream() == own.raw().cu_stream() {
        return SyncOnDrop::Sync(None);
    }
    if stream.join(own.raw()).is_err() {
        // Nothing can be returned here. If this fails too there is no context left to race in.
        _ = own.synchronize();
    }
    SyncOnDrop::Sync(Some(stream))
}

/// cudarc's traits, for what has a view or is one.
macro_rules! device_pointers {
    ($($kind:ident $(.$view:ident)?;)*) => { $(
        impl<T> DeviceSlice<T> for $kind<'_, T> {
            fn len(&self) -> usize {
                self$(.$view)?.len
            }
            fn stream(&self) -> &Arc<CudaStream> {
                self$(.$view)?.stream.raw()
            }
        }

        impl<T> DevicePtr<T> for $kind<'_, T> {
            fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
                (self$(.$view)?.at, ordered(self$(.$view)?.stream, stream))
            }
        }

        // SAFETY: a kernel's pointer argument is the address, which lies there as long as the reference lives.
        unsafe impl<'a, 'b: 'a, 'c: 'b, T> PushKernelArg<&'b $kind<'c, T>> for LaunchArgs<'a> {
            fn arg(&mut self, arg: &'b $kind<'c, T>) -> &mut Self {
                self.arg(&arg$(.$view)?.at)
            }
        }

        impl<T> fmt::Debug for $kind<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let (view, element) = (&self$(.$view)?, std::any::type_name::<T>());
                write!(f, "{}([{element}; {}] on GPU {})", stringify!($kind), view.len, view.stream.device().info().index)
            }
        }
    )* };
}

macro_rules! mutable_device_pointers {
    ($($kind:ident $(.$view:ident)?;)*) => { $(
        impl<T> DevicePtrMut<T> for $kind<'_, T> {
            fn device_ptr_mut<'a>(&'a mut self, stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
                (self$(.$view)?.at, ordered(self$(.$view)?.stream, stream))
            }
        }

        // SAFETY: as above.
        unsafe impl<'a, 'b: 'a, 'c: 'b, T> PushKernelArg<&'b mut $kind<'c, T>> for LaunchArgs<'a> {
            fn arg(&mut self, arg: &'b mut $kind<'c, T>) -> &mut Self {
                self.arg(&arg$(.$view)?.at)
            }
        }
    )* };
}

device_pointers! {
    ReadGuard.view;
    View;
    WriteGuard.view;
    ViewMut;
}

mutable_device_pointers! {
    WriteGuard.view;
    ViewMut;
}
