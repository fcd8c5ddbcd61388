//! A stand-in libcuda for tests. "Device memory" is host memory, work runs at submission, and a
//! happens-before checker (one vector clock per stream) reports any access that real hardware
//! would be free to reorder. Kernels are looked up by name from a small built-in table.
#![allow(non_snake_case, clippy::missing_safety_doc, clippy::not_unsafe_ptr_arg_deref, clippy::too_many_arguments)]
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::Mutex;

mod kernels;
use kernels::KERNELS;

type R = c_uint;
const OK: R = 0;
const INVALID_VALUE: R = 1;
const OOM: R = 2;
const NO_DEVICE: R = 100;
const INVALID_DEVICE: R = 101;
const INVALID_CONTEXT: R = 201;
const NOT_FOUND: R = 500;

type Clock = HashMap<usize, u64>;
fn join(a: &mut Clock, b: &Clock) {
    for (k, v) in b {
        let e = a.entry(*k).or_insert(0);
        *e = (*e).max(*v);
    }
}

struct Alloc {
    len: usize,
    dev: usize,
    write: Option<(usize, u64)>,
    reads: Vec<(usize, u64)>,
    _mem: Box<[u64]>,
}
#[derive(Default)]
struct S {
    n: usize,
    cap: usize,
    init_code: R,
    used: [usize; 16],
    allocs: BTreeMap<u64, Alloc>,
    streams: HashMap<usize, (usize, Clock)>,        // handle -> (device, clock)
    events: HashMap<usize, (usize, Option<Clock>)>, // handle -> (device, captured clock)
    host: Clock,
    next: usize,
    ticks: u64,
    races: Vec<String>,
    log: Vec<String>,
    pinned: BTreeMap<u64, (usize, Vec<(usize, u64)>)>, // page-locked host memory: length, copies in flight
}
static ST: Mutex<Option<S>> = Mutex::new(None);
thread_local!(static CUR: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
fn st<T>(f: impl FnOnce(&mut S) -> T) -> T {
    let mut g = ST.lock().unwrap_or_else(|e| e.into_inner());
    f(g.get_or_insert_with(|| S {
        n: std::env::var("FAKE_CUDA_DEVICES").ok().and_then(|v| v.parse().ok()).unwrap_or(4),
        cap: std::env::var("FAKE_CUDA_BYTES").ok().and_then(|v| v.parse().ok()).unwrap_or(1 << 20),
        init_code: std::env::var("FAKE_CUDA_INIT").ok().and_then(|v| v.parse().ok()).unwrap_or(0),
        next: 0x1000,
        ..Default::default()
    }))
}
fn cur_dev() -> usize {
    CUR.get().wrapping_sub(1)
}
impl S {
    fn handle(&mut self) -> usize {
        self.next += 0x10;
        self.next
    }
    /// Stream 0 is per device; give it a pseudo handle.
    fn key(&self, s: usize) -> usize {
        if s == 0 {
            0x100 + cur_dev()
        } else {
            s
        }
    }
    fn tick(&mut self, s: usize) -> (usize, u64) {
        self.ticks += 1;
        let t = self.ticks;
        let host = self.host.clone();
        let dev = cur_dev();
        let e = self.streams.entry(s).or_insert((dev, Clock::new()));
        join(&mut e.1, &host);
        e.1.insert(s, t);
        (s, t)
    }
    fn after(&self, s: usize, (os, ot): (usize, u64)) -> bool {
        self.streams[&s].1.get(&os).copied().unwrap_or(0) >= ot
    }
    fn base(&self, p: u64) -> Option<u64> {
        self.allocs.range(..=p).next_back().filter(|(b, a)| p < **b + a.len.max(1) as u64).map(|(b, _)| *b)
    }
    /// Whether all of it lies in one allocation.
    fn holds(&self, p: u64, bytes: usize) -> bool {
        self.base(p).is_some_and(|base| p + bytes as u64 <= base + self.allocs[&base].len as u64)
    }
    fn touch(&mut self, s: usize, p: u64, write: bool, what: &str) {
        let Some(b) = self.base(p) else {
            self.races.push(format!("{what}: access to unallocated {p:#x}"));
            return;
        };
        let a = &self.allocs[&b];
        if let Some(w) = a.write {
            if !self.after(s, w) {
                self.races.push(format!("{what}: stream {s:#x} not ordered after write on stream {:#x}", w.0));
            }
        }
        if write {
            for r in self.allocs[&b].reads.clone() {
                if !self.after(s, r) {
                    self.races.push(format!("{what}: stream {s:#x} not ordered after read on stream {:#x}", r.0));
                }
            }
        }
        let t = self.tick(s);
        let a = self.allocs.get_mut(&b).unwrap();
        if write {
            a.write = Some(t);
            a.reads.clear();
        } else {
            a.reads.push(t);
        }
        self.log.push(format!("{what} s={s:#x} p={b:#x}"));
    }
    /// A copy on `s` touches page-locked host memory at `p`.
    fn host_copy(&mut self, s: usize, p: u64) {
        let t = self.tick(s);
        if let Some((b, x)) = self.pinned.range_mut(..=p).next_back() {
            if p < *b + x.0.max(1) as u64 {
                x.1.push(t);
            }
        }
    }
    /// The host touches (or frees) it: every copy must have been waited for by the host.
    fn host_touch(&mut self, p: u64, what: &str) {
        let Some((_, x)) = self.pinned.range(..=p).next_back() else { return };
        for &(s, t) in &x.1 {
            if self.host.get(&s).copied().unwrap_or(0) < t {
                self.races.push(format!("{what}: the host has not waited for the copy on stream {s:#x}"));
            }
        }
    }
    fn alloc(&mut self, s: usize, n: usize) -> Result<u64, R> {
        let d = cur_dev();
        if self.used[d] + n > self.cap {
            return Err(OOM);
        }
        self.used[d] += n;
        let mut mem = vec![0xA5A5_A5A5_A5A5_A5A5u64; n / 8 + 1].into_boxed_slice();
        let p = mem.as_mut_ptr() as u64;
        let t = self.tick(s);
        self.allocs.insert(p, Alloc { len: n, dev: d, write: Some(t), reads: vec![], _mem: mem });
        Ok(p)
    }
    fn free(&mut self, p: u64) -> R {
        match self.allocs.remove(&p) {
            Some(a) => {
                self.used[a.dev] -= a.len;
                OK
            }
            None => INVALID_VALUE,
        }
    }
}

// ---- test control --------------------------------------------------------------------------
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_races(out: *mut u8, cap: usize) -> usize {
    let s = st(|s| std::mem::take(&mut s.races).join("\n"));
    let n = s.len().min(cap);
    unsafe { std::ptr::copy_nonoverlapping(s.as_ptr(), out, n) };
    n
}
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_used(d: usize) -> usize {
    st(|s| s.used[d])
}

// ---- driver API ----------------------------------------------------------------------------
#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_: c_uint) -> R {
    st(|s| {
        if s.init_code != 0 {
            s.init_code
        } else if s.n == 0 {
            NO_DEVICE
        } else {
            OK
        }
    })
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(o: *mut c_int) -> R {
    *o = 13000;
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(c: R, o: *mut *const c_char) -> R {
    *o = match c {
        2 => c"out of memory",
        100 => c"no CUDA-capable device is detected",
        _ => c"fake error",
    }
    .as_ptr();
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(c: R, o: *mut *const c_char) -> R {
    *o = match c {
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        _ => c"CUDA_ERROR_FAKE",
    }
    .as_ptr();
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(o: *mut c_int) -> R {
    *o = st(|s| s.n as c_int);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(o: *mut c_int, i: c_int) -> R {
    if (i as usize) < st(|s| s.n) {
        *o = i;
        OK
    } else {
        INVALID_DEVICE
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(o: *mut c_char, n: c_int, _d: c_int) -> R {
    let s = c"NVIDIA H200";
    if (n as usize) < 12 {
        return INVALID_VALUE;
    }
    std::ptr::copy_nonoverlapping(s.as_ptr(), o, 12);
    OK
}
/// CUDA orders fastest-first, NVML by PCI bus: the fake reverses the order so tests cannot confuse them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(o: *mut [u8; 16], d: c_int) -> R {
    let n = st(|s| s.n);
    let mut u = [0u8; 16];
    u[15] = (n - 1 - d as usize) as u8;
    *o = u;
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(o: *mut [u8; 16], d: c_int) -> R {
    cuDeviceGetUuid_v2(o, d)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(o: *mut usize, _d: c_int) -> R {
    *o = st(|s| s.cap);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(o: *mut c_int, a: c_uint, _d: c_int) -> R {
    *o = match a {
        75 => 9,
        76 => 0,
        115 => 1,
        _ => 1,
    };
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(o: *mut c_int, _a: c_int, _b: c_int) -> R {
    *o = 1;
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(o: *mut usize, d: c_int) -> R {
    *o = d as usize + 1;
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_d: c_int) -> R {
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(o: *mut usize) -> R {
    *o = CUR.get();
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(c: usize) -> R {
    CUR.set(c);
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetFlags(_f: c_uint) -> R {
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxEnablePeerAccess(_c: usize, _f: c_uint) -> R {
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> R {
    if CUR.get() == 0 {
        return INVALID_CONTEXT;
    }
    let d = cur_dev();
    st(|s| {
        let cs: Vec<_> = s.streams.values().filter(|x| x.0 == d).map(|x| x.1.clone()).collect();
        for c in cs {
            join(&mut s.host, &c);
        }
    });
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(o: *mut usize, _f: c_uint) -> R {
    if CUR.get() == 0 {
        return INVALID_CONTEXT;
    }
    let d = cur_dev();
    *o = st(|s| {
        let h = s.handle();
        s.streams.insert(h, (d, Clock::new()));
        h
    });
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(_s: usize) -> R {
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(h: usize) -> R {
    st(|s| {
        let k = s.key(h);
        if let Some(c) = s.streams.get(&k).map(|x| x.1.clone()) {
            join(&mut s.host, &c);
        }
    });
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(h: usize, e: usize, _f: c_uint) -> R {
    st(|s| {
        let k = s.key(h);
        s.tick(k);
        if let Some((_, Some(c))) = s.events.get(&e) {
            let c = c.clone();
            join(&mut s.streams.get_mut(&k).unwrap().1, &c);
        }
    });
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(o: *mut usize, _f: c_uint) -> R {
    let d = cur_dev();
    *o = st(|s| {
        let h = s.handle();
        s.events.insert(h, (d, None));
        h
    });
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(e: usize) -> R {
    st(|s| {
        s.events.remove(&e);
    });
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(e: usize, h: usize) -> R {
    st(|s| {
        let k = s.key(h);
        s.tick(k);
        let c = s.streams[&k].1.clone();
        let d = s.streams[&k].0;
        match s.events.get_mut(&e) {
            Some(x) if x.0 == d => {
                x.1 = Some(c);
                OK
            }
            Some(_) => 400,
            None => 400,
        }
    })
}
/// Alternates NOT_READY and OK, so that callers cannot rely on the first answer.
#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(e: usize) -> R {
    if st(|s| {
        s.ticks += 1;
        s.ticks % 2 == 0
    }) {
        600
    } else {
        cuEventSynchronize(e)
    }
}
#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(e: usize) -> R {
    st(|s| {
        if let Some((_, Some(c))) = s.events.get(&e) {
            let c = c.clone();
            join(&mut s.host, &c);
        }
    });
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(o: *mut f32, _a: usize, _b: usize) -> R {
    *o = 0.5;
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(f: *mut usize, t: *mut usize) -> R {
    let d = cur_dev();
    st(|s| {
        *t = s.cap;
        *f = s.cap - s.used[d];
    });
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(o: *mut u64, n: usize, h: usize) -> R {
    match st(|s| {
        let k = s.key(h);
        s.alloc(k, n)
    }) {
        Ok(p) => {
            *o = p;
            OK
        }
        Err(e) => e,
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(o: *mut u64, n: usize) -> R {
    cuMemAllocAsync(o, n, 0)
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(p: u64, h: usize) -> R {
    st(|s| {
        let k = s.key(h);
        s.touch(k, p, true, "free");
        s.free(p)
    })
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(p: u64) -> R {
    st(|s| s.free(p))
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(o: *mut *mut c_void, n: usize, _f: c_uint) -> R {
    *o = std::alloc::alloc_zeroed(std::alloc::Layout::from_size_align(n.max(1), 64).unwrap()) as _;
    if (*o).is_null() {
        return OOM;
    }
    let p = *o as u64;
    st(|s| s.pinned.insert(p, (n, vec![])));
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(p: *mut c_void) -> R {
    st(|s| {
        s.host_touch(p as u64, "free of pinned memory");
        s.pinned.remove(&(p as u64));
    });
    OK
} // leaks: test library
#[unsafe(no_mangle)]
pub extern "C" fn fake_cuda_host_read(p: u64) {
    st(|s| s.host_touch(p, "host read of pinned memory"))
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(p: u64, v: u8, n: usize, h: usize) -> R {
    st(|s| {
        let k = s.key(h);
        s.touch(k, p, true, "memset");
    });
    std::ptr::write_bytes(p as *mut u8, v, n);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(d: u64, s0: *const c_void, n: usize, h: usize) -> R {
    st(|s| {
        let k = s.key(h);
        s.touch(k, d, true, "htod");
        s.host_copy(k, s0 as u64);
    });
    std::ptr::copy_nonoverlapping(s0 as *const u8, d as *mut u8, n);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(d: *mut c_void, s0: u64, n: usize, h: usize) -> R {
    st(|s| {
        let k = s.key(h);
        s.touch(k, s0, false, "dtoh");
        s.host_copy(k, d as u64);
    });
    std::ptr::copy_nonoverlapping(s0 as *const u8, d as *mut u8, n);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(d: u64, s0: u64, n: usize, h: usize) -> R {
    st(|s| {
        let k = s.key(h);
        s.touch(k, s0, false, "dtod-src");
        s.touch(k, d, true, "dtod-dst");
    });
    std::ptr::copy_nonoverlapping(s0 as *const u8, d as *mut u8, n);
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(d: u64, _dc: usize, s0: u64, _sc: usize, n: usize, h: usize) -> R {
    cuMemcpyDtoDAsync_v2(d, s0, n, h)
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(o: *mut usize, _img: *const c_void) -> R {
    *o = 0x77;
    OK
}
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(_m: usize) -> R {
    OK
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(o: *mut usize, _m: usize, n: *const c_char) -> R {
    match KERNELS.iter().position(|k| k.name == CStr::from_ptr(n)) {
        Some(i) => {
            *o = i + 1;
            OK
        }
        None => NOT_FOUND,
    }
}
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    f: usize,
    _gx: c_uint,
    _gy: c_uint,
    _gz: c_uint,
    _bx: c_uint,
    _by: c_uint,
    _bz: c_uint,
    _sh: c_uint,
    h: usize,
    a: *mut *mut c_void,
    _x: *mut *mut c_void,
) -> R {
    let Some(kernel) = f.checked_sub(1).and_then(|i| KERNELS.get(i)) else { return 400 };
    let arguments = kernel.arguments(a);
    let what = kernel.name.to_string_lossy();
    st(|s| {
        let k = s.key(h);
        for (p, write) in kernel.accesses(&arguments) {
            s.touch(k, p, write, &what);
        }
    });
    kernel.run(&arguments);
    OK
}
/// Memory that work of another library uses.
#[repr(C)]
pub struct Access {
    pub address: u64,
    pub bytes: usize,
    pub write: bool,
}
/// Work on a stream that another stand-in library does: what it uses, and a function that does it, with its arguments
/// as bytes that can be copied and kept.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_cuda_submit(
    h: usize,
    what: *const c_char,
    accesses: *const Access,
    count: usize,
    run: unsafe extern "C" fn(*const u8),
    arguments: *const u8,
    _bytes: usize,
) -> R {
    let what = CStr::from_ptr(what).to_string_lossy();
    let accesses = if count == 0 { &[] } else { std::slice::from_raw_parts(accesses, count) };
    let inside = st(|s| {
        let k = s.key(h);
        for access in accesses {
            s.touch(k, access.address, access.write, &what);
        }
        accesses.iter().all(|access| s.holds(access.address, access.bytes))
    });
    if !inside {
        return 700;
    }
    run(arguments);
    OK
}
