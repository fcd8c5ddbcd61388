//! A stand-in `libnvidia-ml.so.1` for tests: the subset of the NVML ABI that outray's inventory uses.
//! Four H200-like devices by default; `fake_nvml_*` functions (found with dlsym) change the picture.
#![allow(non_snake_case, clippy::missing_safety_doc, clippy::not_unsafe_ptr_arg_deref)]
use std::ffi::{c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void, CStr};
use std::sync::Mutex;

type Ret = c_uint;
const OK: Ret = 0;
const UNINITIALIZED: Ret = 1;
const INVALID: Ret = 2;
const NOT_SUPPORTED: Ret = 3;
const NOT_FOUND: Ret = 6;
const INSUFFICIENT: Ret = 7;
const GPU_LOST: Ret = 15;

#[derive(Clone)]
struct Dev {
    name: String,
    uuid: String,
    total: u64,
    used: u64,
    cc: (i32, i32),
    numa: u32,
    lost: bool,
    mig: bool,
    procs: Vec<(u32, u64)>,
}
struct State {
    refs: u32,
    init_code: Ret,
    devs: Vec<Dev>,
    nvlink: Vec<(usize, usize)>,
}
static STATE: Mutex<Option<State>> = Mutex::new(None);

fn dev(i: usize) -> Dev {
    Dev {
        name: "NVIDIA H200".into(),
        uuid: format!("GPU-00000000-0000-0000-0000-{i:012}"),
        total: 143_771 << 20,
        used: 600 << 20,
        cc: (9, 0),
        numa: (i / 2) as u32,
        lost: false,
        mig: false,
        procs: vec![],
    }
}
fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    let mut g = STATE.lock().unwrap_or_else(|e| e.into_inner());
    f(g.get_or_insert_with(|| State {
        refs: 0,
        init_code: OK,
        devs: (0..4).map(dev).collect(),
        nvlink: vec![(0, 1), (2, 3)],
    }))
}
// Handles are 1-based indices: never null, never dereferenced.
fn on(h: *mut c_void, f: impl FnOnce(&mut Dev) -> Ret) -> Ret {
    with(|s| {
        if s.refs == 0 {
            return UNINITIALIZED;
        }
        match s.devs.get_mut((h as usize).wrapping_sub(1)) {
            None => INVALID,
            Some(d) if d.lost => GPU_LOST,
            Some(d) => f(d),
        }
    })
}
unsafe fn put(s: &str, out: *mut c_char, len: c_uint) -> Ret {
    if s.len() + 1 > len as usize {
        return INSUFFICIENT;
    }
    std::ptr::copy_nonoverlapping(s.as_ptr() as *const c_char, out, s.len());
    *out.add(s.len()) = 0;
    OK
}

// ---- control surface, for tests only -------------------------------------------------------
#[unsafe(no_mangle)]
pub extern "C" fn fake_nvml_reset(n: c_uint, init_code: c_uint) {
    with(|s| {
        s.devs = (0..n as usize).map(dev).collect();
        s.init_code = init_code;
        s.nvlink = vec![(0, 1), (2, 3)];
    })
}
#[unsafe(no_mangle)]
pub extern "C" fn fake_nvml_set(i: c_uint, used: u64, total: u64, cc_major: c_int, lost: c_int) {
    with(|s| {
        if let Some(d) = s.devs.get_mut(i as usize) {
            d.used = used;
            d.total = total;
            d.cc.0 = cc_major;
            d.lost = lost != 0;
        }
    })
}
#[unsafe(no_mangle)]
pub extern "C" fn fake_nvml_add_process(i: c_uint, pid: c_uint, bytes: u64) {
    with(|s| {
        if let Some(d) = s.devs.get_mut(i as usize) {
            d.procs.push((pid, bytes));
            d.used += bytes;
        }
    })
}

// ---- NVML ABI ------------------------------------------------------------------------------
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Ret {
    with(|s| {
        if s.init_code == OK {
            s.refs += 1;
        }
        s.init_code
    })
}
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_f: c_uint) -> Ret {
    nvmlInit_v2()
}
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Ret {
    with(|s| {
        if s.refs == 0 {
            UNINITIALIZED
        } else {
            s.refs -= 1;
            OK
        }
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(o: *mut c_char, n: c_uint) -> Ret {
    put("580.95.05", o, n)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(o: *mut c_char, n: c_uint) -> Ret {
    put("13.580.95.05", o, n)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(o: *mut c_int) -> Ret {
    *o = 13000;
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(o: *mut c_uint) -> Ret {
    *o = with(|s| s.devs.len() as c_uint);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(i: c_uint, o: *mut *mut c_void) -> Ret {
    let (n, lost) = with(|s| (s.devs.len(), s.devs.get(i as usize).map(|d| d.lost).unwrap_or(false)));
    if i as usize >= n {
        return INVALID;
    }
    if lost {
        return GPU_LOST;
    }
    *o = (i as usize + 1) as *mut c_void;
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(u: *const c_char, o: *mut *mut c_void) -> Ret {
    let u = CStr::from_ptr(u).to_string_lossy().into_owned();
    match with(|s| s.devs.iter().position(|d| d.uuid == u)) {
        Some(i) => {
            *o = (i + 1) as *mut c_void;
            OK
        }
        None => NOT_FOUND,
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(h: *mut c_void, o: *mut c_char, n: c_uint) -> Ret {
    on(h, |d| put(&d.name, o, n))
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(h: *mut c_void, o: *mut c_char, n: c_uint) -> Ret {
    on(h, |d| put(&d.uuid, o, n))
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(h: *mut c_void, o: *mut c_uint) -> Ret {
    on(h, |_| {
        *o = h as usize as c_uint - 1;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNumaNodeId(h: *mut c_void, o: *mut c_uint) -> Ret {
    on(h, |d| {
        *o = d.numa;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(h: *mut c_void, a: *mut c_int, b: *mut c_int) -> Ret {
    on(h, |d| {
        *a = d.cc.0;
        *b = d.cc.1;
        OK
    })
}
#[repr(C)]
pub struct MemV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(h: *mut c_void, m: *mut MemV2) -> Ret {
    if (*m).version != (std::mem::size_of::<MemV2>() as u32 | 2 << 24) {
        return 25;
    } // ARGUMENT_VERSION_MISMATCH
    on(h, |d| {
        (*m).total = d.total;
        (*m).reserved = 0;
        (*m).used = d.used;
        (*m).free = d.total - d.used;
        OK
    })
}
#[repr(C)]
pub struct Util {
    gpu: c_uint,
    memory: c_uint,
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(h: *mut c_void, u: *mut Util) -> Ret {
    on(h, |d| {
        (*u).gpu = if d.procs.is_empty() { 0 } else { 87 };
        (*u).memory = 3;
        OK
    })
}
#[repr(C)]
pub struct Proc {
    pid: c_uint,
    used: c_ulonglong,
    gi: c_uint,
    ci: c_uint,
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(h: *mut c_void, n: *mut c_uint, p: *mut Proc) -> Ret {
    on(h, |d| {
        let need = d.procs.len() as c_uint;
        if need == 0 {
            *n = 0;
            return OK;
        }
        if *n < need {
            *n = need;
            return INSUFFICIENT;
        }
        for (i, &(pid, used)) in d.procs.iter().enumerate() {
            p.add(i).write(Proc { pid, used, gi: u32::MAX, ci: u32::MAX });
        }
        *n = need;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(h: *mut c_void, c: *mut c_uint, p: *mut c_uint) -> Ret {
    on(h, |d| {
        *c = d.mig as u32;
        *p = d.mig as u32;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(h: *mut c_void, n: *mut c_uint) -> Ret {
    on(h, |_| {
        *n = 7;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(_h: *mut c_void, _i: c_uint, _o: *mut *mut c_void) -> Ret {
    NOT_FOUND
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTopologyCommonAncestor(a: *mut c_void, b: *mut c_void, l: *mut c_uint) -> Ret {
    let (a, b) = (a as usize - 1, b as usize - 1);
    *l = if a == b {
        0
    } else if a / 2 == b / 2 {
        10
    } else {
        50
    }; // INTERNAL / SINGLE / SYSTEM
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetP2PStatus(a: *mut c_void, b: *mut c_void, idx: c_uint, o: *mut c_uint) -> Ret {
    let (a, b) = ((a as usize - 1).min(b as usize - 1), (a as usize - 1).max(b as usize - 1));
    *o = if idx == 2 {
        if with(|s| s.nvlink.contains(&(a, b))) {
            0
        } else {
            5
        }
    } else {
        0
    }; // 2 = NVLINK, 5 = NOT_SUPPORTED
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(h: *mut c_void, link: c_uint, o: *mut c_uint) -> Ret {
    on(h, |_| {
        if link < 18 {
            *o = 1;
            OK
        } else {
            INVALID
        }
    })
}
#[repr(C)]
pub struct Pci {
    legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    id: c_uint,
    sub: c_uint,
    bus_id: [c_char; 32],
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(h: *mut c_void, p: *mut Pci) -> Ret {
    on(h, |_| {
        let bus = 0x10 + h as usize as c_uint;
        let full = format!("00000000:{bus:02X}:00.0");
        let short = format!("0000:{bus:02X}:00.0");
        std::ptr::write_bytes(p, 0, 1);
        put(&short, (*p).legacy.as_mut_ptr(), 16);
        put(&full, (*p).bus_id.as_mut_ptr(), 32);
        (*p).bus = bus;
        (*p).id = 0x2335_10DE;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetComputeMode(h: *mut c_void, o: *mut c_uint) -> Ret {
    on(h, |_| {
        *o = 0;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(h: *mut c_void, o: *mut c_uint) -> Ret {
    on(h, |_| {
        *o = h as usize as c_uint - 1;
        OK
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSerial(_h: *mut c_void, _o: *mut c_char, _n: c_uint) -> Ret {
    NOT_SUPPORTED
}
const _: fn(c_longlong) = |_| {};
