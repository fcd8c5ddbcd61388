//! A stand-in libcuda for tests: the part of the driver API that this project comes to call, itself or through cudarc.
//!
//! "Device memory" is host memory, work runs when it is submitted, kernels are Rust functions found by name
//! ([`kernels`]), and a checker ([`state`]) reports every order that hardware could have chosen otherwise. It tests
//! calls, not CUDA: there is no time in it, and nothing runs at the same time.
//!
//! Devices are in the reverse of the order in which the stand-in for NVML has them, so that whoever mixes up the two
//! numbers fails. `FAKE_CUDA_DEVICES`, `FAKE_CUDA_BYTES` (each device's memory), `FAKE_CUDA_INIT` (what `cuInit` says)
//! and `FAKE_CUDA_VERSION` are read at the first call; the functions `fake_cuda_*` look and change things later.
//!
//! Faults are as on hardware: the call that gives the work succeeds, and every later one in that device's context
//! fails.

#![allow(non_snake_case, clippy::missing_safety_doc, clippy::not_unsafe_ptr_arg_deref, clippy::too_many_arguments)]
// Every function here is called as CUDA documents it: pointers to results are valid, and so on. What each of them
// writes through is what its caller gave it for that.
#![allow(unsafe_op_in_unsafe_fn)]

mod kernels;
mod pools;
mod state;

use kernels::KERNELS;
use state::{
    CAPTURE_INVALIDATED, CAPTURE_UNSUPPORTED, Capture, Code, ILLEGAL_ADDRESS, INVALID_CONTEXT, INVALID_DEVICE,
    INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, NO_DEVICE, NOT_FOUND, OK, OUT_OF_MEMORY, context, in_context,
    set_context, submit, synchronize, with,
};
use std::{
    alloc::Layout,
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr, slice,
    sync::Arc,
};

// What tests see and change

/// What the checker has found since the last call, in lines; at most `room` bytes of it are written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_cuda_races(out: *mut u8, room: usize) -> usize {
    let text = with(|state| std::mem::take(&mut state.races).join("\n"));
    let len = text.len().min(room);
    ptr::copy_nonoverlapping(text.as_ptr(), out, len);
    len
}

/// Bytes that are allocated on the device with this ordinal.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_used(ordinal: usize) -> usize {
    with(|state| state.used[ordinal])
}

/// Bytes of page-locked memory.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_pinned() -> usize {
    with(|state| state.pinned_bytes())
}

/// From now on every so many waits of streams for events, and of the host, are not done, as if the caller had
/// forgotten them; 0 for none.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_forget_waits(streams: u64, host: u64) {
    with(|state| state.forget_waits = [streams, host]);
}

/// From now on every call in the device's context fails with this code.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_fault(ordinal: usize, code: Code) {
    with(|state| state.set_fault(ordinal, code));
}

/// While the device is held, it finishes nothing that it was given since.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_hold(ordinal: usize, hold: bool) {
    with(|state| state.hold(ordinal, hold));
}

/// How many modules were loaded until now.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_module_loads() -> usize {
    with(|state| state.module_loads)
}

/// The host reads page-locked memory there.
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_host_read(address: u64) {
    with(|state| state.host_touch(address, "host read of pinned memory"));
}

/// Memory that work of another library uses.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Access {
    pub address: u64,
    pub bytes: usize,
    pub write: bool,
}

/// Work on a stream that another stand-in library does: what it uses, and a function that does it, with its arguments
/// as bytes that can be copied and kept.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_cuda_submit(
    stream: usize,
    what: *const c_char,
    accesses: *const Access,
    count: usize,
    run: unsafe extern "C" fn(*const u8),
    arguments: *const u8,
    bytes: usize,
) -> Code {
    let what = CStr::from_ptr(what).to_string_lossy().into_owned();
    let accesses = if count == 0 { Vec::new() } else { slice::from_raw_parts(accesses, count).to_vec() };
    // Aligned for whatever they are.
    let mut words = vec![0_u128; bytes.div_ceil(16)];
    if bytes > 0 {
        ptr::copy_nonoverlapping(arguments, words.as_mut_ptr().cast(), bytes);
    }
    if with(|state| accesses.iter().any(|access| !state.holds(access.address, access.bytes))) {
        return ILLEGAL_ADDRESS;
    }
    let work = move |state: &mut state::State, stream: usize| {
        for access in &accesses {
            state.touch(stream, access.address, access.write, &what)?;
        }
        // SAFETY: what it uses is there; its arguments are those that came with it.
        unsafe { run(words.as_ptr().cast()) };
        Ok(())
    };
    submit(stream, Arc::new(work))
}

// The driver and its devices

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Code {
    with(|state| match state.init {
        OK if state.devices == 0 => NO_DEVICE,
        code => code,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    *version = with(|state| state.version);
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(code: Code, text: *mut *const c_char) -> Code {
    *text = match code {
        OUT_OF_MEMORY => c"out of memory",
        NO_DEVICE => c"no CUDA-capable device is detected",
        ILLEGAL_ADDRESS => c"an illegal memory access was encountered",
        _ => c"an error of the stand-in driver",
    }
    .as_ptr();
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code {
    *name = match code {
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => c"CUDA_ERROR_STAND_IN",
    }
    .as_ptr();
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    *count = with(|state| state.devices as c_int);
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Code {
    match usize::try_from(ordinal) {
        Ok(known) if known < with(|state| state.devices) => {
            *device = ordinal;
            OK
        }
        _ => INVALID_DEVICE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, room: c_int, _device: c_int) -> Code {
    let text = c"NVIDIA H200".to_bytes_with_nul();
    if usize::try_from(room).is_ok_and(|room| room < text.len()) {
        return INVALID_VALUE;
    }
    ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> Code {
    *uuid = [0; 16];
    (*uuid)[15] = with(|state| state.devices - 1 - device as usize) as u8;
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) -> Code {
    cuDeviceGetUuid_v2(uuid, device)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Code {
    *bytes = with(|state| state.capacity);
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) -> Code {
    *value = match attribute {
        // The number on the PCI bus.
        33 => with(|state| state.devices as c_int) - device,
        34 | 50 => 0,
        // The compute capability.
        75 => 9,
        76 => 0,
        // The NUMA node of the host: the first two devices are at the first.
        134 => (with(|state| state.devices as c_int) - 1 - device) / 2,
        // Memory pools, and whatever else is asked, are supported.
        _ => 1,
    };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut c_int, _device: c_int, _peer: c_int) -> Code {
    *can = 1;
    OK
}

// Contexts: each device has its primary one

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> Code {
    *context = device as usize + 1;
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Code {
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(current: *mut usize) -> Code {
    *current = context();
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> Code {
    set_context(context);
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(_flags: c_uint) -> Code {
    in_context(|_, _| OK)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxEnablePeerAccess(_context: usize, _flags: c_uint) -> Code {
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Code {
    match context().checked_sub(1) {
        Some(device) => synchronize(|state| state.until_device(device)),
        None => INVALID_CONTEXT,
    }
}

// Streams

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, _flags: c_uint) -> Code {
    in_context(|state, device| {
        *stream = state.add_stream(device);
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> Code {
    with(|state| state.streams.remove(&stream).map_or(INVALID_HANDLE, |_| OK))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> Code {
    let Some(stream) = with(|state| state.stream(stream)) else { return INVALID_HANDLE };
    synchronize(|state| state.until_stream(stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> Code {
    with(|state| state.wait(stream, event))
}

/// The function must not call CUDA, and so it may run here.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: usize,
    function: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
) -> Code {
    let data = data as usize;
    let work = move |_: &mut state::State, _| {
        // SAFETY: the caller promises that the function can be called with it on any thread.
        unsafe { function(data as *mut c_void) };
        Ok(())
    };
    submit(stream, Arc::new(work))
}

// Capture of a stream's work. Work of other streams cannot be joined to it, and memory cannot be allocated in it.

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamBeginCapture_v2(stream: usize, _mode: c_uint) -> Code {
    in_context(|state, _| match state.stream(stream).and_then(|stream| state.streams.get_mut(&stream)) {
        Some(stream) if stream.capture.is_none() => {
            stream.capture = Some(Capture::default());
            OK
        }
        Some(_) => INVALID_VALUE,
        None => INVALID_HANDLE,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: usize, graph: *mut usize) -> Code {
    *graph = 0;
    in_context(|state, _| {
        let capture = state.stream(stream).and_then(|stream| state.streams.get_mut(&stream)?.capture.take());
        match capture {
            None => INVALID_VALUE,
            Some(Capture { invalid: true, .. }) => CAPTURE_INVALIDATED,
            Some(Capture { work, .. }) => {
                let handle = state.handle();
                state.graphs.insert(handle, work.into());
                *graph = handle;
                OK
            }
        }
    })
}

/// 0: no, 1: yes, 2: yes, and it will fail.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: usize, status: *mut c_uint) -> Code {
    with(|state| {
        let Some(stream) = state.stream(stream) else { return INVALID_HANDLE };
        *status = state.capture(stream).map_or(0, |capture| 1 + u32::from(capture.invalid));
        OK
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(executable: *mut usize, graph: usize, _flags: u64) -> Code {
    in_context(|state, _| {
        let Some(work) = state.graphs.get(&graph).cloned() else { return INVALID_HANDLE };
        *executable = state.handle();
        state.graphs.insert(*executable, work);
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphUpload(_executable: usize, _stream: usize) -> Code {
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(executable: usize, stream: usize) -> Code {
    let Some(graph) = with(|state| state.graphs.get(&executable).cloned()) else { return INVALID_HANDLE };
    let play = move |state: &mut state::State, stream: usize| graph.iter().try_for_each(|work| work(state, stream));
    submit(stream, Arc::new(play))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(executable: usize) -> Code {
    with(|state| state.graphs.remove(&executable).map_or(INVALID_HANDLE, |_| OK))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: usize) -> Code {
    cuGraphExecDestroy(graph)
}

// Events

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, _flags: c_uint) -> Code {
    in_context(|state, device| {
        *event = state.add_event(device);
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> Code {
    with(|state| state.events.remove(&event).map_or(INVALID_HANDLE, |_| OK))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> Code {
    with(|state| state.record(event, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: usize) -> Code {
    with(|state| state.query(event))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> Code {
    synchronize(|state| state.until_event(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, _start: usize, _end: usize) -> Code {
    *milliseconds = 0.5;
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) -> Code {
    cuEventElapsedTime(milliseconds, start, end)
}

// Memory of devices

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    in_context(|state, device| {
        *free = state.free_bytes(device);
        *total = state.capacity;
        OK
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: usize) -> Code {
    in_context(|state, device| {
        let Some(stream) = state.stream(stream) else { return INVALID_HANDLE };
        match state.allocate(stream, bytes, device) {
            Ok(allocated) => {
                *address = allocated;
                OK
            }
            Err(code) => code,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    cuMemAllocAsync(address, bytes, 0)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, stream: usize) -> Code {
    in_context(|state, _| {
        let Some(stream) = state.stream(stream) else { return INVALID_HANDLE };
        if state.capture(stream).is_some() {
            return CAPTURE_UNSUPPORTED;
        }
        match state.touch(stream, address, true, "free") {
            Ok(()) => state.free(address),
            Err(_) => INVALID_VALUE,
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Code {
    in_context(|state, _| state.free(address))
}

/// Each device has its own pool, which gives back at once what is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut usize, device: c_int) -> Code {
    *pool = device as usize + 1;
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(_pool: usize, _attribute: c_uint, _value: *mut u64) -> Code {
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(pool: usize, _attribute: c_uint, value: *mut u64) -> Code {
    *value = with(|state| state.used[pool - 1]) as u64;
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(_pool: usize, _keep: usize) -> Code {
    OK
}

// Page-locked memory of the host

fn pinned_layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), 64).ok()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Code {
    in_context(|state, _| {
        let Some(layout) = pinned_layout(bytes) else { return OUT_OF_MEMORY };
        let memory = std::alloc::alloc_zeroed(layout);
        if memory.is_null() {
            return OUT_OF_MEMORY;
        }
        state.pin(memory as u64, bytes);
        *address = memory.cast();
        OK
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: *mut c_void) -> Code {
    let Some(bytes) = with(|state| state.unpin(address as u64)) else { return INVALID_VALUE };
    if let Some(layout) = pinned_layout(bytes) {
        std::alloc::dealloc(address.cast(), layout);
    }
    OK
}

// Copies. Addresses that are no device's are refused at once, as the driver does.

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: usize) -> Code {
    copy(stream, &[(address, bytes, true, "memset")], move |_, _| {
        // SAFETY: `copy` saw that it is there.
        unsafe { ptr::write_bytes(address as *mut u8, value, bytes) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) -> Code {
    let from = from as u64;
    copy(stream, &[(to, bytes, true, "copy to the device")], move |state, stream| {
        // SAFETY: `copy` saw that the device's memory is there; the caller promises the host's until the copy is over.
        unsafe { state.host_copy(stream, to, from, bytes, false) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) -> Code {
    let to = to as u64;
    copy(stream, &[(from, bytes, false, "copy to the host")], move |state, stream| {
        // SAFETY: as above.
        unsafe { state.host_copy(stream, from, to, bytes, true) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> Code {
    let accesses = [(from, bytes, false, "source of a copy"), (to, bytes, true, "target of a copy")];
    copy(stream, &accesses, move |_, _| {
        // SAFETY: `copy` saw that both are there.
        unsafe { ptr::copy(from as *const u8, to as *mut u8, bytes) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: usize,
    from: u64,
    _from_context: usize,
    bytes: usize,
    stream: usize,
) -> Code {
    cuMemcpyDtoDAsync_v2(to, from, bytes, stream)
}

fn copy(
    stream: usize,
    accesses: &[(u64, usize, bool, &'static str)],
    run: impl Fn(&mut state::State, usize) + Send + Sync + 'static,
) -> Code {
    if with(|state| accesses.iter().any(|(address, bytes, ..)| *bytes > 0 && !state.holds(*address, *bytes))) {
        // A freed block says who came too late.
        with(|state| {
            if let Some(stream) = state.stream(stream) {
                for (address, _, write, what) in accesses {
                    let _ = state.touch(stream, *address, *write, what);
                }
            }
        });
        return INVALID_VALUE;
    }
    let accesses = accesses.to_vec();
    let work = move |state: &mut state::State, stream: usize| {
        for (address, bytes, write, what) in &accesses {
            if *bytes > 0 {
                state.touch(stream, *address, *write, what)?;
            }
        }
        run(state, stream);
        Ok(())
    };
    submit(stream, Arc::new(work))
}

// Kernels

/// Any image is good, except text that begins with `invalid`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut usize, image: *const c_void) -> Code {
    in_context(|state, device| {
        if slice::from_raw_parts(image.cast::<u8>(), 1) == b"i" && CStr::from_ptr(image.cast()) == c"invalid" {
            return INVALID_PTX;
        }
        state.module_loads += 1;
        *module = state.handle();
        state.modules.insert(*module, device);
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: usize) -> Code {
    with(|state| state.modules.remove(&module).map_or(INVALID_HANDLE, |_| OK))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> Code {
    in_context(|state, device| {
        if state.modules.get(&module) != Some(&device) {
            return INVALID_HANDLE;
        }
        match KERNELS.iter().position(|kernel| kernel.name == CStr::from_ptr(name)) {
            Some(at) => {
                *function = at + 1;
                OK
            }
            None => NOT_FOUND,
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    _grid_x: c_uint,
    _grid_y: c_uint,
    _grid_z: c_uint,
    _block_x: c_uint,
    _block_y: c_uint,
    _block_z: c_uint,
    _shared_bytes: c_uint,
    stream: usize,
    arguments: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Code {
    let Some(kernel) = function.checked_sub(1).and_then(|at| KERNELS.get(at)) else { return INVALID_HANDLE };
    let arguments = kernel.arguments(arguments);
    let work = move |state: &mut state::State, stream: usize| {
        let what = kernel.name.to_string_lossy();
        for (address, write) in kernel.accesses(&arguments) {
            state.touch(stream, address, write, &what)?;
        }
        if kernel.name == c"trap" {
            return Err(ILLEGAL_ADDRESS);
        }
        // SAFETY: what it points to is there; the caller promises that it is long enough.
        unsafe { kernel.run(&arguments) };
        Ok(())
    };
    submit(stream, Arc::new(work))
}
