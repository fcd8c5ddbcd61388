//! The network of the example `digits`, trained on GPUs and on CPUs, with the same numbers in the same order.
//!
//! Four networks, each from a seed of its own, are trained at the same time: on the GPUs each is a task that leases a
//! quarter of a device, and the tasks share one copy of the digits. The products of matrices are cuBLAS's; the other
//! kernels are the project's own (`support/kernels.cu`). A stream prepares the epochs ahead on a CPU. The steps of the
//! first epoch are launched one by one, and those of the others as one captured graph.
//!
//! ```sh
//! cargo run --release --features gpu,gpu-blas --example gpu_digits              # some seconds
//! cargo run --release --features gpu,gpu-blas --example gpu_digits -- --quick
//! ```
#![allow(unsafe_code)] // launches

use cudarc::{
    cublas::{Gemm, GemmConfig, sys::cublasOperation_t as Op},
    driver::{CudaFunction, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg},
};
use outray::{
    Runtime,
    gpu::{Gpu, GpuError, Graph, WriteGuard, cudarc},
    task,
};
use std::{env, error::Error, process::ExitCode, sync::Arc, time::Instant};

#[path = "support/digits.rs"]
mod digits_net;
use digits_net::{CLASSES, Dataset, Network, PIXELS};

#[path = "support/gpu.rs"]
mod gpu_support;
use gpu_support::KERNELS;

#[path = "support/training.rs"]
pub(crate) mod training;
use training::{BATCH, Config, Epoch, MOMENTUM, train, training};

const SEED: u64 = 1998;
const NETWORKS: usize = 4;
const REQUIRED_ACCURACY: f32 = 0.95;

/// The kernels that one step launches.
struct Kernels {
    bias_relu: CudaFunction,
    bias_softmax: CudaFunction,
    cross_entropy_gradient: CudaFunction,
    column_sums: CudaFunction,
    relu_gradient: CudaFunction,
    sgd: CudaFunction,
}

impl Kernels {
    fn load(gpu: &Gpu) -> Result<Self, GpuError> {
        let kernel = |name| gpu.function(KERNELS, name);
        Ok(Kernels {
            bias_relu: kernel("bias_relu")?,
            bias_softmax: kernel("bias_softmax")?,
            cross_entropy_gradient: kernel("cross_entropy_gradient")?,
            column_sums: kernel("column_sums")?,
            relu_gradient: kernel("relu_gradient")?,
            sgd: kernel("sgd")?,
        })
    }
}

/// One training on its device. Matrices are row-major, and the parameters stand as in [`Network`].
struct Training<'a> {
    gpu: &'a Gpu,
    kernels: Kernels,
    config: Config,
    /// The epoch's, all of them.
    images: WriteGuard<'a, f32>,
    labels: WriteGuard<'a, i32>,
    rate: WriteGuard<'a, f32>,
    parameters: WriteGuard<'a, f32>,
    velocity: WriteGuard<'a, f32>,
    gradient: WriteGuard<'a, f32>,
    /// One row for each image of a batch.
    units: WriteGuard<'a, f32>,
    unit_errors: WriteGuard<'a, f32>,
    outputs: WriteGuard<'a, f32>,
}

/// Gives a kernel to the stream: one thread for each of `$threads` elements.
macro_rules! launch {
    ($gpu:expr, $kernel:expr, $threads:expr, $($argument:expr),*) => {{
        let mut launch = $gpu.stream().launch_builder($kernel);
        $(launch.arg($argument);)*
        // SAFETY: the arguments are those of the kernel in `kernels.cu`, and the counts among them are within the buffers.
        let launched = unsafe { launch.launch(LaunchConfig::for_num_elems($threads.unsigned_abs())) };
        $gpu.check("cuLaunchKernel", launched).map(drop)
    }};
}

/// A factor of a product: a matrix, or its transpose.
enum Factor<M> {
    Plain(M),
    Transposed(M),
}
use Factor::{Plain, Transposed};

/// `c = a b` for row-major matrices: `c` has `rows` rows and `columns` columns, and the sums are over `inner` numbers.
fn product(
    gpu: &Gpu,
    a: Factor<&impl DevicePtr<f32>>,
    b: Factor<&impl DevicePtr<f32>>,
    c: &mut impl DevicePtrMut<f32>,
    [rows, columns, inner]: [i32; 3],
) -> Result<(), GpuError> {
    // cuBLAS has columns where these have rows, and so sees all matrices transposed: c' = b' a'.
    let (a, transb, ldb) = match a {
        Plain(a) => (a, Op::CUBLAS_OP_N, inner),
        Transposed(a) => (a, Op::CUBLAS_OP_T, rows),
    };
    let (b, transa, lda) = match b {
        Plain(b) => (b, Op::CUBLAS_OP_N, columns),
        Transposed(b) => (b, Op::CUBLAS_OP_T, inner),
    };
    let config =
        GemmConfig { transa, transb, m: columns, n: rows, k: inner, alpha: 1.0, lda, ldb, beta: 0.0, ldc: columns };
    // SAFETY: the matrices have as many numbers as the configuration says.
    let given = unsafe { gpu.blas()?.gemm(config, b, a, c) };
    gpu.check_blas("cublasSgemm", given)
}

impl Training<'_> {
    /// The steps of one epoch.
    fn epoch(&mut self) -> Result<(), GpuError> {
        let rows = self.labels.len();
        (0..rows).step_by(BATCH).try_for_each(|start| self.step(start, BATCH.min(rows - start)))
    }

    /// One step down the gradient of the mean loss over the images from `start` on.
    fn step(&mut self, start: usize, count: usize) -> Result<(), GpuError> {
        let Training { gpu, kernels, config, images, labels, rate, .. } = self;
        let Training { parameters, velocity, gradient, units, unit_errors, outputs, .. } = self;
        // The parameters of each layer: its weights, then its biases.
        let hidden_biases = PIXELS * config.hidden;
        let output_weights = hidden_biases + config.hidden;
        let output_biases = output_weights + config.hidden * CLASSES;
        let [rows, pixels, hidden, classes, all] =
            [count, PIXELS, config.hidden, CLASSES, parameters.len()].map(|n| n as i32);
        let elements = rows * hidden;

        let images = images.slice(start * PIXELS..(start + count) * PIXELS);
        let labels = labels.slice(start..start + count);
        let weights = parameters.slice(..hidden_biases);
        let biases = parameters.slice(hidden_biases..output_weights);
        product(gpu, Plain(&images), Plain(&weights), units, [rows, hidden, pixels])?;
        launch!(gpu, &kernels.bias_relu, elements, &mut *units, &biases, &rows, &hidden)?;
        let weights = parameters.slice(output_weights..output_biases);
        let biases = parameters.slice(output_biases..);
        product(gpu, Plain(&*units), Plain(&weights), outputs, [rows, classes, hidden])?;
        launch!(gpu, &kernels.bias_softmax, rows, &mut *outputs, &biases, &rows, &classes)?;

        // The probabilities become the gradient by what the softmax was taken of.
        launch!(gpu, &kernels.cross_entropy_gradient, rows * classes, &mut *outputs, &labels, &rows, &classes)?;
        let mut part = gradient.slice_mut(output_weights..output_biases);
        product(gpu, Transposed(&*units), Plain(&*outputs), &mut part, [hidden, classes, rows])?;
        let mut part = gradient.slice_mut(output_biases..);
        launch!(gpu, &kernels.column_sums, classes, &*outputs, &mut part, &rows, &classes)?;
        product(gpu, Plain(&*outputs), Transposed(&weights), unit_errors, [rows, hidden, classes])?;
        launch!(gpu, &kernels.relu_gradient, elements, &mut *unit_errors, &*units, &elements)?;
        let mut part = gradient.slice_mut(..hidden_biases);
        product(gpu, Transposed(&images), Plain(&*unit_errors), &mut part, [pixels, hidden, rows])?;
        let mut part = gradient.slice_mut(hidden_biases..output_weights);
        launch!(gpu, &kernels.column_sums, hidden, &*unit_errors, &mut part, &rows, &hidden)?;

        let (momentum, l2) = (&MOMENTUM, &config.l2);
        launch!(gpu, &kernels.sgd, all, &mut *parameters, &mut *velocity, &*gradient, &*rate, momentum, l2, &all)
    }
}

/// The epochs of one training, prepared ahead of it.
fn epochs(digits: Arc<Dataset>, config: Config, seed: u64) -> impl Iterator<Item = Epoch> {
    training(digits, config, seed).1
}

fn train_on_gpu(digits: Arc<Dataset>, config: Config, seed: u64) -> outray::Result<Network> {
    let gpu = task::context().gpu(0)?;
    let (mut network, _) = training(&*digits, config, seed);
    let (rows, all) = (digits.len(), network.parameters.len());
    let mut parameters = gpu.upload(&network.parameters.to_vec())?;
    let (mut velocity, mut gradient) = (gpu.zeros(all)?, gpu.zeros(all)?);
    let (mut images, mut labels, mut rate) = (gpu.zeros(rows * PIXELS)?, gpu.zeros(rows)?, gpu.zeros(1)?);
    let (mut units, mut unit_errors) = (gpu.zeros(BATCH * config.hidden)?, gpu.zeros(BATCH * config.hidden)?);
    let mut outputs = gpu.zeros(BATCH * CLASSES)?;
    {
        let mut training = Training {
            gpu: &gpu,
            kernels: Kernels::load(&gpu)?,
            config,
            images: images.write(&gpu)?,
            labels: labels.write(&gpu)?,
            rate: rate.write(&gpu)?,
            parameters: parameters.write(&gpu)?,
            velocity: velocity.write(&gpu)?,
            gradient: gradient.write(&gpu)?,
            units: units.write(&gpu)?,
            unit_errors: unit_errors.write(&gpu)?,
            outputs: outputs.write(&gpu)?,
        };
        let mut graph: Option<Graph> = None;
        for epoch in Runtime::current().streaming(epochs).buffer(2).submit((digits, config, seed)).values() {
            let Epoch { learning_rate, digits } = epoch?;
            let labels: Vec<i32> = digits.labels.iter().map(|label| *label as i32).collect();
            training.images.copy_from_slice(&digits.images.into_raw_vec_and_offset().0)?;
            training.labels.copy_from_slice(&labels)?;
            training.rate.copy_from_slice(&[learning_rate])?;
            match &graph {
                // SAFETY: `training` holds all that was used when it was recorded, on the same stream.
                Some(graph) => unsafe { graph.launch(&gpu) }?,
                None => {
                    training.epoch()?;
                    graph = Some(gpu.capture(|_| training.epoch())?);
                }
            }
        }
    }
    network.parameters = parameters.to_vec()?.into();
    Ok(network)
}

fn train_on_cpu(digits: Arc<Dataset>, config: Config, seed: u64) -> Network {
    train(&digits, config, seed)
}

/// What the networks from these seeds read right of the digits that they have not seen, from 0 to 1.
pub(crate) struct Accuracies {
    pub(crate) on_gpu: Vec<f32>,
    pub(crate) on_cpu: Vec<f32>,
}

/// Trains a network from each seed, on GPUs and then on CPUs.
pub(crate) fn compare(rt: &Runtime, config: Config, seeds: &[u64]) -> Result<Accuracies, Box<dyn Error>> {
    let (held_out, digits) = Dataset::shuffled(SEED)?.partition(|row| row % 5 == 0);
    println!(
        "{} networks with {} hidden units, {} epochs of {} digits each",
        seeds.len(),
        config.hidden,
        config.epochs,
        digits.len()
    );
    let digits = rt.put(digits);

    let start = Instant::now();
    let trained: Vec<_> =
        seeds.iter().map(|&seed| rt.task(train_on_gpu).gpus(0.25).submit((&digits, config, seed))).collect();
    let trained = rt.get_all(&trained)?.into_iter().collect::<outray::Result<Vec<_>>>()?;
    println!("on GPUs: {:.2?}", start.elapsed());
    let on_gpu = trained.iter().map(|network| network.score(&held_out).accuracy).collect();

    let start = Instant::now();
    let trained: Vec<_> = seeds.iter().map(|&seed| rt.submit(train_on_cpu, (&digits, config, seed))).collect();
    let trained = rt.get_all(&trained)?;
    println!("on {} CPUs: {:.2?}", rt.stats().cpus, start.elapsed());
    let on_cpu = trained.iter().map(|network| network.score(&held_out).accuracy).collect();
    Ok(Accuracies { on_gpu, on_cpu })
}

fn run() -> Result<(), Box<dyn Error>> {
    let (hidden, epochs) = match env::args().nth(1).as_deref() {
        None => (256, 75),
        Some("--quick") => (64, 30),
        Some(other) => return Err(format!("unknown argument {other:?}: only --quick is known").into()),
    };
    let config = Config { hidden, learning_rate: 0.1, l2: 1e-4, noise: 0.4, epochs };
    let seeds: Vec<u64> = (SEED..).take(NETWORKS).collect();
    let Accuracies { on_gpu, on_cpu } = compare(&Runtime::local(), config, &seeds)?;
    println!("\n  seed   on a GPU    on a CPU");
    for ((seed, gpu), cpu) in seeds.iter().zip(&on_gpu).zip(&on_cpu) {
        println!("  {seed}  {:>7.2} %   {:>7.2} %", 100.0 * gpu, 100.0 * cpu);
    }
    let mean = |accuracies: &[f32]| accuracies.iter().sum::<f32>() / accuracies.len() as f32;
    let (gpu, cpu) = (mean(&on_gpu), mean(&on_cpu));
    println!("  mean  {:>7.2} %   {:>7.2} %", 100.0 * gpu, 100.0 * cpu);
    // Sums in another order are a little different, and so are the networks in the end.
    if (gpu - cpu).abs() > 0.01 || gpu <= REQUIRED_ACCURACY {
        return Err(format!(
            "the accuracy on GPUs, {gpu}, is not that on CPUs, {cpu}, or not above {REQUIRED_ACCURACY}"
        )
        .into());
    }
    Ok(())
}

fn main() -> ExitCode {
    gpu_support::main("gpu_digits", run)
}
