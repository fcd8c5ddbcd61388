//! A stand-in for `libnvidia-ml.so.1`, for tests: the part of NVML's ABI that the inventory uses, and no hardware.
//!
//! At first it shows four devices like H200s: NVLink joins the first two and the last two, and each pair hangs on a NUMA
//! node of its own. The variable `FAKE_NVML`, or the function [`fake_nvml_set`], says what else there is, in words:
//!
//! | word | what it does |
//! |---|---|
//! | `devices=2` | so many devices; forgets all other words, so it comes first |
//! | `init=9` | `nvmlInit` returns this code |
//! | `mig=0:2` | MIG is on for device 0, which has two slices |
//! | `process=1:4242:1024` | process 4242 uses 1024 bytes of device 1; `0.1` is slice 1 of device 0 |
//! | `fails=3:15` | device 3 answers everything with this code, here NVML_ERROR_GPU_IS_LOST |
//!
//! Numbers of functions, codes and layouts are those of `nvml.h`.
#![allow(non_snake_case)]

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_ulonglong},
    sync::Mutex,
};

type Code = c_uint;
const SUCCESS: Code = 0;
const UNINITIALIZED: Code = 1;
const INVALID_ARGUMENT: Code = 2;
const NOT_SUPPORTED: Code = 3;
const NOT_FOUND: Code = 6;
const INSUFFICIENT_SIZE: Code = 7;
const ARGUMENT_VERSION_MISMATCH: Code = 25;

/// What NVML's users hold: 1 for device 0; 1 + 65,536 for its slice 0. Never null, never followed.
type Handle = usize;
const SLICE: Handle = 1 << 16;

const TOTAL: u64 = 143_771 << 20;
const RESERVED: u64 = 600 << 20;
const SLICE_MIB: u64 = 16_384;

#[derive(Clone, Default)]
struct Device {
    fails: Code,
    processes: Vec<(c_uint, u64)>,
    /// MIG is on.
    slices: Option<Vec<Device>>,
}

struct State {
    users: u32,
    init: Code,
    devices: Vec<Device>,
}

fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    static STATE: Mutex<Option<State>> = Mutex::new(None);
    let mut state = STATE.lock().unwrap_or_else(|poison| poison.into_inner());
    f(state.get_or_insert_with(|| {
        let mut state = State { users: 0, init: SUCCESS, devices: vec![Device::default(); 4] };
        state.set(&std::env::var("FAKE_NVML").unwrap_or_default());
        state
    }))
}

impl State {
    fn set(&mut self, words: &str) {
        for word in words.split_whitespace() {
            let (name, value) = word.split_once('=').expect("NAME=VALUE");
            let mut parts = value.split(':');
            let target = parts.next().expect("a value");
            let mut numbers = parts.map(|part| part.parse::<u64>().expect("a number"));
            let mut number = || numbers.next().expect("another number");
            match name {
                "devices" => {
                    self.init = SUCCESS;
                    self.devices = vec![Device::default(); target.parse().expect("a number")];
                }
                "init" => self.init = target.parse().expect("a code"),
                "mig" => self.at(target).slices = Some(vec![Device::default(); number() as usize]),
                "process" => {
                    let process = (number() as c_uint, number());
                    self.at(target).processes.push(process);
                }
                "fails" => self.at(target).fails = number() as Code,
                _ => panic!("unknown word {word}"),
            }
        }
    }

    fn at(&mut self, target: &str) -> &mut Device {
        let (device, slice) = target.split_once('.').map_or((target, None), |(device, slice)| (device, Some(slice)));
        let device = &mut self.devices[device.parse::<usize>().expect("a device")];
        match slice {
            Some(slice) => &mut device.slices.as_mut().expect("MIG is on")[slice.parse::<usize>().expect("a slice")],
            None => device,
        }
    }

    /// Who answers for a handle, or why nobody does.
    fn find(&self, handle: Handle) -> Result<&Device, Code> {
        let (device, slice) = places(handle);
        let device = self.devices.get(device).ok_or(INVALID_ARGUMENT)?;
        match (self.users, device.fails, slice) {
            (0, ..) => Err(UNINITIALIZED),
            (_, SUCCESS, None) => Ok(device),
            (_, SUCCESS, Some(slice)) => {
                device.slices.as_deref().and_then(|all| all.get(slice)).ok_or(INVALID_ARGUMENT)
            }
            (_, code, _) => Err(code),
        }
    }

    fn handles(&self) -> impl Iterator<Item = Handle> {
        self.devices.iter().enumerate().flat_map(|(place, device)| {
            let slices = device.slices.as_ref().map_or(0, Vec::len);
            (0..=slices).map(move |slice| place + 1 + slice * SLICE)
        })
    }
}

/// The device, and which slice of it.
fn places(handle: Handle) -> (usize, Option<usize>) {
    ((handle % SLICE).wrapping_sub(1), (handle / SLICE).checked_sub(1))
}

fn uuid(handle: Handle) -> String {
    match places(handle) {
        (device, None) => format!("GPU-00000000-0000-0000-0000-{device:012}"),
        (device, Some(slice)) => format!("MIG-00000000-0000-0000-{device:04}-{slice:012}"),
    }
}

fn ask(handle: Handle, answer: impl FnOnce(&Device) -> Code) -> Code {
    with(|state| state.find(handle).map_or_else(|code| code, answer))
}

/// Sets what a caller wants to know.
fn tell<T>(handle: Handle, out: &mut T, value: impl FnOnce(&Device) -> T) -> Code {
    ask(handle, |device| {
        *out = value(device);
        SUCCESS
    })
}

/// # Safety
/// `out` has room for `length` bytes.
unsafe fn write_text(text: &str, out: *mut c_char, length: c_uint) -> Code {
    if text.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the text and its end are at most `length` bytes.
    unsafe {
        text.as_ptr().copy_to_nonoverlapping(out.cast(), text.len());
        *out.add(text.len()) = 0;
    }
    SUCCESS
}

/// Changes the picture; `words` are those at the head of this file.
///
/// # Safety
/// `words` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_nvml_set(words: *const c_char) {
    // SAFETY: the caller's promise.
    let words = unsafe { CStr::from_ptr(words) }.to_str().expect("UTF-8");
    with(|state| state.set(words));
}

// From here on NVML's own functions. A reference among the parameters is a pointer of the ABI to what the caller has
// set to zero.

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Code {
    with(|state| {
        state.users += u32::from(state.init == SUCCESS);
        state.init
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Code {
    with(|state| match state.users.checked_sub(1) {
        Some(users) => {
            state.users = users;
            SUCCESS
        }
        None => UNINITIALIZED,
    })
}

/// # Safety
/// `out` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(out: *mut c_char, length: c_uint) -> Code {
    // SAFETY: the caller's promise.
    unsafe { write_text("580.95.05", out, length) }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(out: &mut c_uint) -> Code {
    *out = with(|state| state.devices.len() as c_uint);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: &mut Handle) -> Code {
    let handle = index as Handle + 1;
    tell(handle, out, |_| handle)
}

/// # Safety
/// `wanted` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(wanted: *const c_char, out: &mut Handle) -> Code {
    // SAFETY: the caller's promise.
    let wanted = unsafe { CStr::from_ptr(wanted) }.to_string_lossy();
    match with(|state| state.handles().find(|handle| uuid(*handle) == wanted)) {
        Some(handle) => tell(handle, out, |_| handle),
        None => NOT_FOUND,
    }
}

/// # Safety
/// `out` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(handle: Handle, out: *mut c_char, length: c_uint) -> Code {
    let name = match places(handle) {
        (_, None) => "NVIDIA H200",
        (_, Some(_)) => "NVIDIA H200 MIG 1g.18gb",
    };
    // SAFETY: the caller's promise.
    ask(handle, |_| unsafe { write_text(name, out, length) })
}

/// # Safety
/// `out` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(handle: Handle, out: *mut c_char, length: c_uint) -> Code {
    // SAFETY: the caller's promise.
    ask(handle, |_| unsafe { write_text(&uuid(handle), out, length) })
}

/// # Safety
/// `out` has room for `length` words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryAffinity(
    handle: Handle,
    length: c_uint,
    out: *mut c_ulong,
    _scope: c_uint,
) -> Code {
    ask(handle, |_| match length {
        0 => INVALID_ARGUMENT,
        _ => {
            // SAFETY: there is room for one word.
            unsafe { *out = 1 << (places(handle).0 / 2) };
            SUCCESS
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCudaComputeCapability(handle: Handle, major: &mut c_int, minor: &mut c_int) -> Code {
    tell(handle, major, |_| 9) | tell(handle, minor, |_| 0)
}

#[repr(C)]
pub struct Memory {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo_v2(handle: Handle, out: &mut Memory) -> Code {
    if out.version != size_of::<Memory>() as c_uint | 2 << 24 {
        return ARGUMENT_VERSION_MISMATCH;
    }
    ask(handle, |device| {
        (out.total, out.reserved) = match places(handle) {
            (_, None) => (TOTAL, RESERVED),
            (_, Some(_)) => (SLICE_MIB << 20, 0),
        };
        out.used = device.processes.iter().map(|(_, bytes)| bytes).sum();
        out.free = out.total - out.reserved - out.used;
        SUCCESS
    })
}

#[repr(C)]
pub struct Utilization {
    gpu: c_uint,
    memory: c_uint,
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUtilizationRates(handle: Handle, out: &mut Utilization) -> Code {
    ask(handle, |device| match device.slices.is_some() || places(handle).1.is_some() {
        true => NOT_SUPPORTED,
        false => {
            *out = Utilization { gpu: if device.processes.is_empty() { 0 } else { 87 }, memory: 3 };
            SUCCESS
        }
    })
}

#[repr(C)]
pub struct Process {
    pid: c_uint,
    used: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

/// # Safety
/// `out` has room for `count` processes; it may be null if there is room for none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    handle: Handle,
    count: &mut c_uint,
    out: *mut Process,
) -> Code {
    ask(handle, |device| {
        let room = std::mem::replace(count, device.processes.len() as c_uint);
        if room < *count {
            return INSUFFICIENT_SIZE;
        }
        for (place, &(pid, used)) in device.processes.iter().enumerate() {
            let process = Process { pid, used, gpu_instance: c_uint::MAX, compute_instance: c_uint::MAX };
            // SAFETY: there is room for all of them.
            unsafe { out.add(place).write(process) };
        }
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigMode(handle: Handle, current: &mut c_uint, pending: &mut c_uint) -> Code {
    let is_on = |device: &Device| c_uint::from(device.slices.is_some());
    tell(handle, current, is_on) | tell(handle, pending, is_on)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMaxMigDeviceCount(handle: Handle, out: &mut c_uint) -> Code {
    tell(handle, out, |_| 7)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(handle: Handle, index: c_uint, out: &mut Handle) -> Code {
    ask(handle, |device| match device.slices.as_deref().and_then(|all| all.get(index as usize)) {
        Some(_) => {
            *out = handle + (index as Handle + 1) * SLICE;
            SUCCESS
        }
        None => NOT_FOUND,
    })
}

#[repr(C)]
pub struct Attributes {
    multiprocessors: c_uint,
    others: [c_uint; 7],
    memory_mib: c_ulonglong,
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetAttributes_v2(handle: Handle, out: &mut Attributes) -> Code {
    ask(handle, |_| match places(handle) {
        (_, None) => NOT_SUPPORTED,
        (_, Some(_)) => {
            *out = Attributes { multiprocessors: 16, others: [1; 7], memory_mib: SLICE_MIB };
            SUCCESS
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetTopologyCommonAncestor(a: Handle, b: Handle, out: &mut c_uint) -> Code {
    let level = match (places(a).0, places(b).0) {
        (a, b) if a == b => 0,              // INTERNAL
        (a, b) if a.abs_diff(b) == 1 => 30, // HOSTBRIDGE
        _ => 50,                            // SYSTEM
    };
    ask(a, |_| SUCCESS) | tell(b, out, |_| level)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetP2PStatus(a: Handle, b: Handle, what: c_uint, out: &mut c_uint) -> Code {
    const NVLINK: c_uint = 2;
    let is_joined = what != NVLINK || places(a).0 / 2 == places(b).0 / 2;
    ask(a, |_| SUCCESS) | tell(b, out, |_| if is_joined { 0 } else { 5 }) // OK, NOT_SUPPORTED
}
