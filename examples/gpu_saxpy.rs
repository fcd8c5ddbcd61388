//! A chain of a thousand kernels, each a task of its own, against the same kernels by hand on one stream.
//!
//! Each task takes the buffer that the task before made, launches `y = a x + y` on it, and gives it on. The buffer stays
//! on the device, and nobody waits: a task is over when its kernel is given to a stream, and the next one's stream waits
//! on the device for what it needs. The host waits once, at the end.
//!
//! With few numbers the time is what each task costs beyond a launch; with many it is the device's own.
//!
//! ```sh
//! cargo run --release --features gpu --example gpu_saxpy
//! ```
#![allow(unsafe_code)] // launches

use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use outray::{
    Runtime,
    gpu::{self, DeviceBuffer, DeviceVec, Gpu, GpuError, ReadGuard, WriteGuard, cudarc},
    task,
};
use std::{
    error::Error,
    process::ExitCode,
    time::{Duration, Instant},
};

#[path = "support/gpu.rs"]
pub(crate) mod gpu_support;
use gpu_support::KERNELS;

const LAUNCHES: u32 = 1000;
const A: f32 = 0.5;

/// Gives `y = a x + y` to the stream of `gpu`.
fn enqueue(
    gpu: &Gpu,
    saxpy: &CudaFunction,
    x: &ReadGuard<'_, f32>,
    y: &mut WriteGuard<'_, f32>,
) -> Result<(), GpuError> {
    let n = i32::try_from(y.len().min(x.len())).expect("few enough for the kernel");
    let mut launch = gpu.stream().launch_builder(saxpy);
    launch.arg(&A).arg(x).arg(y).arg(&n);
    // SAFETY: the kernel takes these arguments, and both buffers have at least `n` numbers.
    let launched = unsafe { launch.launch(LaunchConfig::for_num_elems(n.unsigned_abs())) };
    gpu.check("cuLaunchKernel", launched).map(drop)
}

/// One link of the chain.
fn step(x: DeviceBuffer<f32>, y: DeviceBuffer<f32>) -> outray::Result<DeviceBuffer<f32>> {
    let gpu = task::context().gpu(0)?;
    let saxpy = gpu.function(KERNELS, "saxpy")?;
    // The task before has given it away, so it can be written in place. If somebody else held it too, it would be copied.
    let mut y = match y.try_into_mut() {
        Ok(y) => y,
        Err(shared) => copy(&gpu, &shared)?,
    };
    enqueue(&gpu, &saxpy, &x.read(&gpu)?, &mut y.write(&gpu)?)?;
    Ok(y.freeze())
}

fn copy(gpu: &Gpu, buffer: &DeviceBuffer<f32>) -> Result<DeviceVec<f32>, GpuError> {
    let mut copy = gpu.zeros(buffer.len())?;
    {
        let (from, mut to) = (buffer.read(gpu)?, copy.write(gpu)?);
        gpu.check("cuMemcpyDtoDAsync", gpu.stream().memcpy_dtod(&from, &mut to))?;
    }
    Ok(copy)
}

/// How long a chain takes as tasks and by hand.
pub(crate) struct Times {
    pub(crate) tasks: Duration,
    pub(crate) by_hand: Duration,
}

/// Runs both chains, and looks whether the numbers are right at their ends.
pub(crate) fn compare(rt: &Runtime, numbers: usize, launches: u32) -> Result<Times, Box<dyn Error>> {
    let devices = gpu::detect()?.inventory()?;
    let gpu = Gpu::open(&devices.devices[0])?;
    let x: Vec<f32> = (0..numbers).map(|i| (i % 8) as f32).collect();
    let y = vec![1.0; numbers];
    // All sums on the way are exact.
    let right = |found: Vec<f32>| match x.iter().zip(found).all(|(x, y)| y == 1.0 + A * launches as f32 * x) {
        true => Ok(()),
        false => Err("the numbers at the end of a chain are wrong"),
    };

    let shared = rt.put(DeviceBuffer::from(x.clone()));
    let step = rt.task(step).gpus(1.0);
    // The first brings the numbers to the device and loads the kernel.
    let mut chain = step.submit((&shared, DeviceBuffer::from(y.clone())));
    finish(&gpu, &chain.get()??)?;
    let start = Instant::now();
    for _ in 1..launches {
        chain = step.submit((&shared, chain));
    }
    let end = chain.get()??;
    finish(&gpu, &end)?;
    let tasks = start.elapsed();
    right(end.to_vec()?)?;

    let saxpy = gpu.function(KERNELS, "saxpy")?;
    let (x_there, mut y_there) = (gpu.upload(&x)?.freeze(), gpu.upload(&y)?);
    enqueue(&gpu, &saxpy, &x_there.read(&gpu)?, &mut y_there.write(&gpu)?)?;
    gpu.synchronize()?;
    let start = Instant::now();
    {
        let (x, mut y) = (x_there.read(&gpu)?, y_there.write(&gpu)?);
        for _ in 1..launches {
            enqueue(&gpu, &saxpy, &x, &mut y)?;
        }
    }
    gpu.synchronize()?;
    let by_hand = start.elapsed();
    right(y_there.to_vec()?)?;
    Ok(Times { tasks, by_hand })
}

/// The host waits until the device has made the buffer.
fn finish(gpu: &Gpu, buffer: &DeviceBuffer<f32>) -> Result<(), GpuError> {
    drop(buffer.read(gpu)?);
    gpu.synchronize()
}

fn run() -> Result<(), Box<dyn Error>> {
    let rt = Runtime::local();
    for numbers in [1 << 10, 1 << 24] {
        let Times { tasks, by_hand } = compare(&rt, numbers, LAUNCHES)?;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(LAUNCHES - 1);
        println!(
            "{LAUNCHES} dependent launches on {numbers} numbers: as tasks {:.2?}, by hand {:.2?}; {:.2} times as long, \
             {:.2} µs more for each",
            tasks,
            by_hand,
            tasks.as_secs_f64() / by_hand.as_secs_f64(),
            each(tasks) - each(by_hand),
        );
    }
    println!("The numbers at the ends of all chains are right.");
    Ok(())
}

fn main() -> ExitCode {
    gpu_support::main("gpu_saxpy", run)
}
