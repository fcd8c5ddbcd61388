//! What the GPU support claims, and what it assumes of the driver, checked on the machine's first GPU: one line each.
//!
//! ```sh
//! cargo run --release --features gpu,gpu-blas --example gpu_check
//! cargo run --release --features gpu,gpu-blas --example gpu_check -- --no-bars   # times are only printed
//! ```
//!
//! Some checks show what cudarc does on its own, because this crate is built around it. The last one makes a kernel
//! access memory that is not there, after which this process has lost the device.
//!
//! Exit codes: 0 all is as it should be, 1 something is not, 3 there is no device.
#![allow(unsafe_code)] // launches, and calls of the driver

use cudarc::{
    cublas::{Gemm, GemmConfig, sys::cublasOperation_t as Op},
    driver::{CudaContext, CudaSlice, DevicePtrMut, LaunchConfig, PushKernelArg, result, sys},
    nvrtc::CompileOptions,
};
use outray::{
    Runtime,
    gpu::{self, DeviceBuffer, DeviceInfo, DeviceSource, Gpu, GpuError, cudarc},
    task,
};
use std::{
    cell::RefCell,
    env,
    error::Error,
    mem::MaybeUninit,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

#[allow(dead_code, reason = "of that example only the chains")]
#[path = "gpu_saxpy.rs"]
pub(crate) mod gpu_saxpy;
use gpu_saxpy::gpu_support::{self, KERNELS};

/// A chain of tasks may take so many times as long as the same launches by hand, when the device is busy.
const CHAIN: f64 = 1.1;
/// A task may cost so much more than its launch.
const TASK: Duration = Duration::from_micros(5);
/// Copies through this crate reach so much of the rate of plain ones from page-locked memory.
const COPIES: f64 = 0.9;

/// Set in the environment of the other process that uses the device.
const CHILD: &str = "OUTRAY_GPU_CHECK_CHILD";

/// A line's end, or why the check fails.
type Outcome = Result<String, Box<dyn Error>>;

struct Checks {
    device: DeviceInfo,
    source: Arc<dyn DeviceSource>,
    /// Bytes of a large buffer.
    large: usize,
    /// Whether times that are too long are failures.
    bars: bool,
    failed: RefCell<Vec<String>>,
}

impl Checks {
    fn check(&self, name: &str, check: impl FnOnce(&Self) -> Outcome) {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| check(self))).unwrap_or_else(|_| Err("panicked".into()));
        let took = start.elapsed();
        match outcome {
            Ok(text) => println!("ok    {name}: {text} [{took:.2?}]"),
            Err(error) => match error.downcast_ref() {
                Some(GpuError::MissingLibrary { library }) => println!("skip  {name}: {library} is not there"),
                _ => {
                    println!("FAIL  {name}: {error} [{took:.2?}]");
                    self.failed.borrow_mut().push(name.into());
                }
            },
        }
    }

    /// A time or a rate that is below its bar is a failure.
    fn bar(&self, good: bool, text: String) -> Outcome {
        match good || !self.bars {
            true => Ok(text),
            false => Err(text.into()),
        }
    }

    fn open(&self) -> Result<Gpu, GpuError> {
        Gpu::open(&self.device)
    }

    /// cudarc's own handle of the device, with its tracking on.
    fn plain(&self) -> Result<Arc<CudaContext>, Box<dyn Error>> {
        Ok(CudaContext::new(self.open()?.context().ordinal())?)
    }
}

fn main() -> ExitCode {
    let bars = env::args().nth(1).as_deref() != Some("--no-bars");
    gpu_support::main("gpu_check", || run(bars))
}

pub(crate) fn run(bars: bool) -> Result<(), Box<dyn Error>> {
    let source = gpu::detect()?;
    let device = source.inventory()?.devices.swap_remove(0);
    if env::var_os(CHILD).is_some() {
        return match Gpu::open(&device)?.upload(&[1.0f32, 2.0])?.to_vec()?.as_slice() {
            [1.0, 2.0] => Ok(()),
            wrong => Err(format!("{wrong:?}").into()),
        };
    }
    let mut checks = Checks { device, source, large: 0, bars, failed: RefCell::default() };
    println!("{} {}", checks.device.name, checks.device.uuid);
    checks.check("inventory", inventory);
    let start = Instant::now();
    let gpu = checks.open()?;
    let first = start.elapsed();
    let (free, total) = gpu.context().mem_get_info()?;
    checks.large = (free / 16).next_power_of_two().min(1 << 30) & !0xFFF;
    println!("ok    first context: {first:.2?}; {free} bytes of {total} free then");
    drop(gpu);
    checks.check("UUIDs name the same devices for NVML and for CUDA", uuids);
    checks.check("NVML counts what this process has", own_memory);
    checks.check("a kernel from embedded PTX", embedded_kernel);
    checks.check("a kernel from NVRTC", compiled_kernel);
    checks.check("cuBLAS multiplies", product);
    checks.check("a captured graph, launched again", graph);
    checks.check("copies between host and device", copies);
    checks.check("1000 dependent launches, few numbers", |checks| chain(checks, 1 << 10));
    checks.check("1000 dependent launches, many numbers", |checks| chain(checks, checks.large / 16));
    checks.check("1000 dependent launches, waited for each", waiting_chain);
    checks.check("memory taken and given back 1000 times", allocations);
    checks.check("a pool of memory with a limit refuses more", limited_pool);
    checks.check("cudarc, page-locked memory on the default stream", stale_read);
    checks.check("cudarc, two readers, then the memory is used again", |checks| overwritten(checks, true));
    checks.check("DeviceBuffer, two readers, then the memory is used again", |checks| overwritten(checks, false));
    checks.check("buffers that do not fit, kept on the host", |checks| spill(checks, u64::MAX));
    checks.check("buffers that do not fit, kept on disk", |checks| spill(checks, 0));
    checks.check("shares of the device", shares);
    checks.check("a task that panics gives its device back", panics);
    checks.check("a task without a request has no device", unleased);
    checks.check("after an illegal access", illegal_access);
    match checks.failed.into_inner().as_slice() {
        [] => {
            println!("All is as it should be.");
            Ok(())
        }
        failed => Err(format!("{} failed: {}", failed.len(), failed.join("; ")).into()),
    }
}

fn inventory(checks: &Checks) -> Outcome {
    Ok(format!("{:?}", checks.source.inventory()?))
}

fn uuids(checks: &Checks) -> Outcome {
    let devices = checks.source.inventory()?.devices;
    let ordinals = devices.iter().map(|device| Ok(Gpu::open(device)?.context().ordinal()));
    Ok(format!("CUDA's numbers, in the inventory's order: {:?}", ordinals.collect::<Result<Vec<_>, GpuError>>()?))
}

fn own_memory(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let before = checks.source.usage(&checks.device)?;
    let held = gpu.zeros::<u8>(checks.large)?;
    gpu.synchronize()?;
    let after = checks.source.usage(&checks.device)?;
    drop(held);
    Ok(format!(
        "{} bytes more: in use {} -> {}, of other processes {} -> {}",
        checks.large, before.used_bytes, after.used_bytes, before.external_bytes, after.external_bytes
    ))
}

/// Four numbers that `name` of a module should have filled.
fn filled(gpu: &Gpu, fill: &cudarc::driver::CudaFunction) -> Outcome {
    let mut numbers = gpu.zeros::<f32>(4)?;
    {
        let mut to = numbers.write(gpu)?;
        let mut launch = gpu.stream().launch_builder(fill);
        launch.arg(&7.0f32).arg(&mut to).arg(&4i32);
        // SAFETY: the kernel takes these arguments and writes four numbers.
        gpu.check("cuLaunchKernel", unsafe { launch.launch(LaunchConfig::for_num_elems(4)) })?;
    }
    match numbers.to_vec()?.as_slice() {
        [7.0, 7.0, 7.0, 7.0] => Ok("its numbers are right".into()),
        wrong => Err(format!("{wrong:?}").into()),
    }
}

fn embedded_kernel(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let start = Instant::now();
    let fill = gpu.function(KERNELS, "fill")?;
    let loaded = start.elapsed();
    Ok(format!("loaded in {loaded:.2?}, {}", filled(&gpu, &fill)?))
}

fn compiled_kernel(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let source =
        "extern \"C\" __global__ void fill(float v, float* y, int n) { int i = threadIdx.x; if (i < n) y[i] = v; }";
    let start = Instant::now();
    let fill = gpu.compile(source, "fill", CompileOptions::default())?;
    let loaded = start.elapsed();
    Ok(format!("compiled and loaded in {loaded:.2?}, {}", filled(&gpu, &fill)?))
}

fn product(checks: &Checks) -> Outcome {
    const N: usize = 64;
    let gpu = checks.open()?;
    let a: Vec<f32> = (0..N * N).map(|i| (i % 7) as f32).collect();
    let b: Vec<f32> = (0..N * N).map(|i| (i % 5) as f32).collect();
    let (a_there, b_there, mut c) = (gpu.upload(&a)?, gpu.upload(&b)?, gpu.zeros::<f32>(N * N)?);
    let n = N as i32;
    let (transa, transb) = (Op::CUBLAS_OP_N, Op::CUBLAS_OP_N);
    let config = GemmConfig { transa, transb, m: n, n, k: n, alpha: 1.0, lda: n, ldb: n, beta: 0.0, ldc: n };
    // SAFETY: three square matrices, of as many numbers as the configuration says.
    let given = unsafe { gpu.blas()?.gemm(config, &a_there.read(&gpu)?, &b_there.read(&gpu)?, &mut c.write(&gpu)?) };
    gpu.check_blas("cublasSgemm", given)?;
    let c = c.to_vec()?;
    // Column-major.
    let at = |row: usize, column: usize| (0..N).map(|i| a[i * N + row] * b[column * N + i]).sum::<f32>();
    match (0..N * N).all(|i| c[i] == at(i % N, i / N)) {
        true => Ok("its numbers are right".into()),
        false => Err("wrong numbers".into()),
    }
}

/// `y += x`, for ones, so many times.
fn add(gpu: &Gpu, times: usize) -> Result<(Duration, f32), Box<dyn Error>> {
    let saxpy = gpu.function(KERNELS, "saxpy")?;
    let (x, mut y) = (gpu.upload(&[1.0f32; 256])?, gpu.zeros::<f32>(256)?);
    let start = Instant::now();
    {
        let (x, mut y) = (x.read(gpu)?, y.write(gpu)?);
        let graph = gpu.capture(|gpu| {
            for _ in 0..10 {
                let mut launch = gpu.stream().launch_builder(&saxpy);
                launch.arg(&1.0f32).arg(&x).arg(&mut y).arg(&256i32);
                // SAFETY: the kernel takes these arguments, and both buffers have 256 numbers.
                gpu.check("cuLaunchKernel", unsafe { launch.launch(LaunchConfig::for_num_elems(256)) })?;
            }
            Ok::<_, GpuError>(())
        })?;
        // SAFETY: both guards are held, on the same stream.
        (0..times / 10).try_for_each(|_| unsafe { graph.launch(gpu) })?;
        gpu.synchronize()?;
    }
    Ok((start.elapsed(), y.to_vec()?[255]))
}

fn graph(checks: &Checks) -> Outcome {
    match add(&checks.open()?, 1000)? {
        (time, 1000.0) => Ok(format!("100 launches of 10 kernels, and the capture: {time:.2?}")),
        (_, wrong) => Err(format!("{wrong} instead of 1000").into()),
    }
}

/// The shortest of three, after one to warm up.
fn best(mut run: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    run()?;
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        run()?;
        shortest = shortest.min(start.elapsed());
    }
    Ok(shortest)
}

fn copies(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let stream = gpu.stream();
    let bytes = checks.large;
    let mut there = stream.alloc_zeros::<u8>(bytes)?;
    let mut pageable = vec![1u8; bytes];
    let start = Instant::now();
    // SAFETY: written before it is read. Not of the default kind, which the CPU reads slowly.
    let mut pinned = unsafe { gpu.context().alloc_pinned_with_flags::<u8>(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }?;
    let pinning = start.elapsed();
    pinned.as_mut_slice()?.fill(1);

    let wait = || gpu.synchronize().map_err(Box::<dyn Error>::from);
    let to_pageable = best(|| stream.memcpy_htod(&pageable, &mut there).map_err(Box::from).and_then(|()| wait()))?;
    let to = best(|| stream.memcpy_htod(&pinned, &mut there).map_err(Box::from).and_then(|()| wait()))?;
    let from_pageable = best(|| stream.memcpy_dtoh(&there, &mut pageable).map_err(Box::from).and_then(|()| wait()))?;
    let from = best(|| stream.memcpy_dtoh(&there, &mut pinned).map_err(Box::from).and_then(|()| wait()))?;
    drop(there);

    let mut buffer = gpu.upload(&pageable)?;
    let our_to = best(|| Ok(buffer.write(&gpu)?.copy_from_slice(&pageable).and_then(|()| gpu.synchronize())?))?;
    let our_from = best(|| buffer.to_vec().map(drop).map_err(Box::from))?;
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    let good = [(our_to, to), (our_from, from)].iter().all(|(ours, plain)| rate(*ours) >= COPIES * rate(*plain));
    checks.bar(
        good,
        format!(
            "{bytes} bytes in GB/s, to the device and from it: plain from pageable memory {:.1} and {:.1}, from \
             page-locked memory {:.1} and {:.1}, buffers {:.1} and {:.1}; locking them {pinning:.2?}",
            rate(to_pageable),
            rate(from_pageable),
            rate(to),
            rate(from),
            rate(our_to),
            rate(our_from)
        ),
    )
}

fn chain(checks: &Checks, numbers: usize) -> Outcome {
    let launches = 1000;
    let rt = Runtime::local();
    let times = gpu_saxpy::compare(&rt, numbers, launches)?;
    let ratio = times.tasks.as_secs_f64() / times.by_hand.as_secs_f64();
    let each = times.tasks.saturating_sub(times.by_hand) / launches;
    // With few numbers the host is the slower of the two, and what counts is what it spends on a task.
    let good = if numbers <= 1 << 10 { each <= TASK } else { ratio <= CHAIN };
    checks.bar(
        good,
        format!(
            "{numbers} numbers, as tasks {:.2?}, by hand {:.2?}: {ratio:.2} times as long, {each:.2?} more for each",
            times.tasks, times.by_hand
        ),
    )
}

fn waiting_chain(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let saxpy = gpu.function(KERNELS, "saxpy")?;
    let (x, mut y) = (gpu.zeros::<f32>(1024)?, gpu.zeros::<f32>(1024)?);
    let (x, mut y) = (x.read(&gpu)?, y.write(&gpu)?);
    let time = best(|| {
        for _ in 0..1000 {
            let mut launch = gpu.stream().launch_builder(&saxpy);
            launch.arg(&1.0f32).arg(&x).arg(&mut y).arg(&1024i32);
            // SAFETY: the kernel takes these arguments, and both buffers have 1024 numbers.
            gpu.check("cuLaunchKernel", unsafe { launch.launch(LaunchConfig::for_num_elems(1024)) })?;
            gpu.synchronize()?;
        }
        Ok(())
    })?;
    Ok(format!("{time:.2?}: what it would cost to wait on the host"))
}

fn allocations(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let stream = gpu.stream();
    let bytes = checks.large / 16;
    let plain = |wait: bool| {
        best(|| {
            for _ in 0..1000 {
                // SAFETY: never read.
                drop(unsafe { stream.alloc::<u8>(bytes) }?);
                if wait {
                    stream.synchronize()?;
                }
            }
            Ok(())
        })
    };
    // What the default pool keeps rather than giving it back to the driver when somebody waits. This crate raises it.
    let keep = |mut bytes: u64| {
        let mut pool = std::ptr::null_mut();
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the driver writes a pool, and reads a number.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&mut pool, gpu.context().cu_device()).result()?;
            sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut bytes).cast()).result()
        }
    };
    let kept = (plain(false)?, plain(true)?);
    keep(0)?;
    let given_back = plain(true);
    keep(u64::MAX)?;
    let given_back = given_back?;
    let ours = best(|| Ok((0..1000).try_for_each(|_| gpu.zeros::<u8>(bytes).map(drop))?))?;
    Ok(format!(
        "{bytes} bytes: plain {:.2?}, with the host waiting each time {:.2?}, and with a pool that keeps nothing \
         {given_back:.2?}; zeroed buffers {ours:.2?}",
        kept.0, kept.1
    ))
}

fn limited_pool(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let stream = gpu.stream().cu_stream();
    let limit = checks.large / 4;
    // SAFETY: all zeros is a value of this struct.
    let mut properties: sys::CUmemPoolProps = unsafe { MaybeUninit::zeroed().assume_init() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    properties.location.id = i32::try_from(gpu.context().ordinal())?;
    properties.maxSize = limit;
    let (mut pool, mut within, mut beyond) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: the pool lives until the end, and nothing uses what is taken from it.
    let (first, second) = unsafe {
        sys::cuMemPoolCreate(&mut pool, &properties).result()?;
        let first = sys::cuMemAllocFromPoolAsync(&mut within, limit / 2, pool, stream).result();
        let second = sys::cuMemAllocFromPoolAsync(&mut beyond, limit * 2, pool, stream).result();
        for (taken, address) in [(&first, within), (&second, beyond)] {
            if taken.is_ok() {
                result::free_async(address, stream)?;
            }
        }
        gpu.synchronize()?;
        sys::cuMemPoolDestroy(pool).result()?;
        (first, second)
    };
    match (first, second) {
        (Ok(()), Err(error)) => Ok(format!("with {:?}", error.0)),
        (first, second) => Err(format!("within: {}, beyond: {}", first.is_ok(), second.is_ok()).into()),
    }
}

/// Whether cudarc reads page-locked memory before a copy to it is over, as its source says.
fn stale_read(checks: &Checks) -> Outcome {
    let context = checks.plain()?;
    let stream = context.default_stream();
    let bytes = checks.large;
    // SAFETY: written by the next call.
    let mut there = unsafe { stream.alloc::<u8>(bytes) }?;
    let address = there.device_ptr_mut(&stream).0;
    // SAFETY: as long as that.
    unsafe { result::memset_d8_async(address, 1, bytes, stream.cu_stream()) }?;
    // SAFETY: filled by the next call.
    let mut pinned = unsafe { context.alloc_pinned_with_flags::<u8>(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }?;
    pinned.as_mut_slice()?.fill(0);
    stream.synchronize()?;
    stream.memcpy_dtoh(&there, &mut pinned)?;
    let early = pinned.as_slice()?[bytes - 1];
    stream.synchronize()?;
    let late = pinned.as_slice()?[bytes - 1];
    match (early, late) {
        (1, 1) => Ok("the last byte was there at once: not seen".into()),
        (_, 1) => Ok("the last byte was read before it was there: this crate does not rely on it".into()),
        other => Err(format!("{other:?}").into()),
    }
}

/// Two streams read, the first slowly; then the memory is given back, and written again. How many bytes the slow
/// reader found changed.
fn overwritten(checks: &Checks, plain: bool) -> Outcome {
    let bytes = checks.large;
    let (home, slow, fast) = (checks.open()?, checks.open()?, checks.open()?);
    let context = checks.plain()?;
    let streams = [context.new_stream()?, context.new_stream()?, context.new_stream()?];
    let [home_stream, slow_stream, fast_stream] = match plain {
        true => &streams,
        false => &[home.stream().clone(), slow.stream().clone(), fast.stream().clone()],
    };
    let busy: CudaSlice<u8> = slow_stream.alloc_zeros(bytes)?;
    let mut sink: CudaSlice<u8> = slow_stream.alloc_zeros(bytes)?;
    let mut copy: CudaSlice<u8> = slow_stream.alloc_zeros(bytes)?;
    let mut little: CudaSlice<u8> = fast_stream.alloc_zeros(1024)?;
    let ones = vec![1u8; bytes];
    let mut delay = || (0..20).try_for_each(|_| slow_stream.memcpy_dtod(&busy, &mut sink));
    if plain {
        let numbers = home_stream.clone_htod(&ones)?;
        context.synchronize()?;
        delay()?;
        slow_stream.memcpy_dtod(&numbers, &mut copy)?;
        fast_stream.memcpy_dtod(&numbers.slice(..1024), &mut little)?;
    } else {
        let numbers: DeviceBuffer<u8> = home.upload(&ones)?.freeze();
        [&home, &slow, &fast].iter().try_for_each(|gpu| gpu.synchronize())?;
        delay()?;
        slow_stream.memcpy_dtod(&numbers.read(&slow)?, &mut copy)?;
        fast_stream.memcpy_dtod(&numbers.read(&fast)?.slice(..1024), &mut little)?;
    }
    // Most likely where the numbers were.
    // SAFETY: written by the next call.
    let mut next = unsafe { home_stream.alloc::<u8>(bytes) }?;
    let address = next.device_ptr_mut(home_stream).0;
    // SAFETY: as long as that.
    unsafe { result::memset_d8_async(address, 2, bytes, home_stream.cu_stream()) }?;
    for stream in [home_stream, slow_stream, fast_stream] {
        stream.synchronize()?;
    }
    let found = slow_stream.clone_dtoh(&copy)?;
    slow_stream.synchronize()?;
    let wrong = found.iter().filter(|byte| **byte != 1).count();
    match (plain, wrong) {
        (true, 0) => Ok("nothing was overwritten: not seen".into()),
        (true, _) => Ok(format!("{wrong} of {bytes} bytes were overwritten: this crate does not rely on it")),
        (false, 0) => Ok("nothing was overwritten".into()),
        (false, _) => Err(format!("{wrong} of {bytes} bytes were overwritten").into()),
    }
}

/// Twice as many buffers as there is room for on the device; page-locked memory for so many bytes.
fn spill(checks: &Checks, pinned: u64) -> Outcome {
    const BUFFERS: usize = 16;
    let gpu = checks.open()?;
    let bytes = checks.large / 4;
    let before = gpu.buffer_stats()?;
    gpu.set_buffer_budget((BUFFERS / 2 * bytes) as u64)?;
    gpu::set_pinned_budget(pinned);
    let outcome = (|| {
        let start = Instant::now();
        let mut buffers = Vec::new();
        for byte in 0..BUFFERS as u8 {
            let numbers: Vec<u8> = (0..bytes).map(|i| (i as u8).wrapping_mul(31) ^ byte).collect();
            buffers.push(gpu.upload(&numbers)?.freeze());
        }
        let put = start.elapsed();
        let start = Instant::now();
        for buffer in &buffers {
            drop(buffer.read(&gpu)?);
        }
        gpu.synchronize()?;
        let restored = start.elapsed();
        for (byte, buffer) in (0u8..).zip(&buffers) {
            let numbers = buffer.to_vec()?;
            if !(0..bytes).all(|i| numbers[i] == (i as u8).wrapping_mul(31) ^ byte) {
                return Err(format!("buffer {byte} has changed").into());
            }
        }
        let stats = gpu.buffer_stats()?;
        Ok(format!(
            "{BUFFERS} of {bytes} bytes with room for half of them: made in {put:.2?}, all used again in {restored:.2?}; \
             {} moved away, {} to disk, {} back; their numbers are right",
            stats.spilled - before.spilled,
            stats.to_disk - before.to_disk,
            stats.restored - before.restored
        ))
    })();
    gpu.set_buffer_budget(before.budget)?;
    outcome
}

/// Eleven tasks of 0.18 on one device.
fn shares(_: &Checks) -> Outcome {
    let rt = Runtime::local();
    let share = |index: u32| -> outray::Result<u32> {
        let gpu = task::context().gpu(0)?;
        Ok(gpu.upload(&[index])?.to_vec()?[0])
    };
    let tasks: Vec<_> = (0..11).map(|index| rt.task(share).gpus(0.18).submit(index)).collect();
    let found = rt.get_all(&tasks)?.into_iter().collect::<outray::Result<Vec<u32>>>()?;
    match found.iter().copied().eq(0..11) {
        true => Ok("eleven tasks with 0.18 of a device each ran".into()),
        false => Err(format!("{found:?}").into()),
    }
}

fn panics(_: &Checks) -> Outcome {
    let rt = Runtime::local();
    let devices = gpu::detect()?.inventory()?.devices.len();
    fn fails() -> outray::Result<()> {
        let _gpu = task::context().gpu(0)?;
        panic!("on purpose")
    }
    let failed = rt.task(fails).gpus(devices as f64).submit(()).get();
    let next =
        rt.task(|| task::context().gpu(0).map(drop).map_err(outray::Error::from)).gpus(devices as f64).submit(());
    next.get()??;
    match failed {
        Err(_) => Ok("and the next task got it".into()),
        Ok(_) => Err("it did not fail".into()),
    }
}

fn unleased(_: &Checks) -> Outcome {
    let rt = Runtime::local();
    match rt.submit(|| task::context().gpu(0).map(drop).map_err(outray::Error::from), ()).get()? {
        Err(error) => Ok(error.to_string()),
        Ok(()) => Err("it has one".into()),
    }
}

/// Last: what this process can do with the device afterwards, and what another process can.
fn illegal_access(checks: &Checks) -> Outcome {
    let gpu = checks.open()?;
    let before = gpu.upload(&[1.0f32; 1024])?.freeze();
    let trap = gpu.function(KERNELS, "trap")?;
    // SAFETY: it takes no arguments. It writes where nothing is, which is what this is about.
    gpu.check("cuLaunchKernel", unsafe { gpu.stream().launch_builder(&trap).launch(LaunchConfig::for_num_elems(1)) })?;
    let seen = gpu.synchronize();
    let (read, write, open) = (before.to_vec().err(), gpu.zeros::<f32>(4).err(), checks.open().err());
    let rt = Runtime::local();
    let lease = rt.task(|| task::context().gpu(0).map(drop).map_err(outray::Error::from)).gpus(1.0).try_submit(());
    let lease = lease.and_then(|task| task.get()).and_then(|result| result);
    let child = Command::new(env::current_exe()?).args(env::args_os().skip(1)).env(CHILD, "1").output()?.status;
    let all = [&seen.clone().err(), &read, &write, &open];
    let text = format!(
        "{}; other processes {} use it",
        seen.err().map_or("nothing was noticed".into(), |error| error.to_string()),
        if child.success() { "can" } else { "cannot" }
    );
    let poisoned = all.iter().all(|error| matches!(error, Some(GpuError::Poisoned { .. })));
    match poisoned && (lease.is_err() || checks.source.inventory()?.devices.len() > 1) && child.success() {
        true => Ok(text),
        false => Err(format!("{text}; {all:?}; a lease: {lease:?}").into()),
    }
}
