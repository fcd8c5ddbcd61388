//! The kernels of the examples: what their source does is what their stand-ins do.
//!
//! The source is compiled for the CPU, with a loop for the threads, by the C compiler that building this crate needs
//! anyway. The stand-ins run through cudarc. So what is seen with the stand-ins holds for the source, short of what only
//! a GPU can do to it.

#![allow(unsafe_code)]

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use fake_cuda::{device, in_child};
use libloading::Library;
use outray::gpu::{Gpu, cudarc};
use std::{
    env,
    ffi::c_void,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const SEED: u64 = 3;

/// Before the source: what it takes for granted. Behind it: each kernel for all threads of so many.
const C: &str = r#"
#include <math.h>
#include <string.h>
static struct { unsigned x; } blockIdx, blockDim, threadIdx;
static float __int_as_float(unsigned bits) { float number; memcpy(&number, &bits, 4); return number; }
#define KERNEL static
#include "kernels.cu"
#define EACH(threads, call) \
    for (blockDim.x = 64, blockIdx.x = 0; blockIdx.x * 64 < (threads) + 64; blockIdx.x++) \
        for (threadIdx.x = 0; threadIdx.x < 64; threadIdx.x++) call
#define F(i) (*(float*)a[i])
#define I(i) (*(int*)a[i])
#define P(i) (*(float**)a[i])
void c_saxpy(void** a, unsigned n) { EACH(n, saxpy(F(0), P(1), P(2), I(3))); }
void c_fill(void** a, unsigned n) { EACH(n, fill(F(0), P(1), I(2))); }
void c_bias_relu(void** a, unsigned n) { EACH(n, bias_relu(P(0), P(1), I(2), I(3))); }
void c_relu_gradient(void** a, unsigned n) { EACH(n, relu_gradient(P(0), P(1), I(2))); }
void c_bias_softmax(void** a, unsigned n) { EACH(n, bias_softmax(P(0), P(1), I(2), I(3))); }
void c_cross_entropy_gradient(void** a, unsigned n) { EACH(n, cross_entropy_gradient(P(0), *(int**)a[1], I(2), I(3))); }
void c_column_sums(void** a, unsigned n) { EACH(n, column_sums(P(0), P(1), I(2), I(3))); }
void c_sgd(void** a, unsigned n) { EACH(n, sgd(P(0), P(1), P(2), P(3), F(4), F(5), I(6))); }
"#;

/// Removed with this.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The source as a library of the host.
fn compiled() -> Library {
    let folder = Folder(env::temp_dir().join(format!("outray-kernels-{}", std::process::id())));
    fs::create_dir(&folder.0).unwrap();
    let (source, library) = (folder.0.join("kernels.c"), folder.0.join("kernels.so"));
    fs::write(&source, C).unwrap();
    let status = Command::new(env::var_os("CC").unwrap_or("cc".into()))
        .args(["-O1", "-ffp-contract=off", "-Wno-unused-function", "-shared", "-fPIC", "-I"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/support"))
        .arg(&source)
        .arg("-o")
        .arg(&library)
        .arg("-lm")
        .status()
        .unwrap();
    assert!(status.success());
    // SAFETY: it has no initializers.
    unsafe { Library::new(&library) }.unwrap()
}

#[derive(Clone, Debug)]
enum Argument {
    F32(f32),
    I32(i32),
    Floats(Vec<f32>),
    Labels(Vec<i32>),
}
use Argument::{F32, Floats, I32, Labels};

/// What the buffers hold after the source has run.
fn on_host(library: &Library, kernel: &str, threads: usize, mut arguments: Vec<Argument>) -> Vec<Argument> {
    let mut addresses: Vec<usize> = arguments
        .iter_mut()
        .map(|argument| match argument {
            Floats(numbers) => numbers.as_mut_ptr() as usize,
            Labels(numbers) => numbers.as_mut_ptr() as usize,
            F32(_) | I32(_) => 0,
        })
        .collect();
    let mut pointers: Vec<*mut c_void> = arguments
        .iter_mut()
        .zip(&mut addresses)
        .map(|(argument, address)| match argument {
            F32(number) => (number as *mut f32).cast(),
            I32(number) => (number as *mut i32).cast(),
            Floats(_) | Labels(_) => (address as *mut usize).cast(),
        })
        .collect();
    // SAFETY: the function's type, as in `C`; it takes one pointer for each argument, as a launch does.
    unsafe {
        let run = library.get::<unsafe extern "C" fn(*mut *mut c_void, u32)>(format!("c_{kernel}").as_bytes()).unwrap();
        run(pointers.as_mut_ptr(), u32::try_from(threads).unwrap());
    }
    arguments
}

/// What the buffers hold after the stand-in has run.
fn on_device(gpu: &Gpu, kernel: &str, threads: usize, arguments: &[Argument]) -> Vec<Argument> {
    enum There {
        F32(f32),
        I32(i32),
        Floats(CudaSlice<f32>),
        Labels(CudaSlice<i32>),
    }
    let stream = gpu.stream();
    let function = gpu.function("// found by name", kernel).unwrap();
    let mut there: Vec<There> = arguments
        .iter()
        .map(|argument| match argument {
            F32(number) => There::F32(*number),
            I32(number) => There::I32(*number),
            Floats(numbers) => There::Floats(stream.clone_htod(numbers).unwrap()),
            Labels(numbers) => There::Labels(stream.clone_htod(numbers).unwrap()),
        })
        .collect();
    let mut launch = stream.launch_builder(&function);
    for argument in &mut there {
        match argument {
            There::F32(number) => launch.arg(&*number),
            There::I32(number) => launch.arg(&*number),
            There::Floats(numbers) => launch.arg(numbers),
            There::Labels(numbers) => launch.arg(numbers),
        };
    }
    // SAFETY: the arguments are those of the kernel, and the buffers as long as it takes.
    unsafe { launch.launch(LaunchConfig::for_num_elems(u32::try_from(threads).unwrap())) }.unwrap();
    let back = there.iter().map(|argument| match argument {
        There::F32(number) => F32(*number),
        There::I32(number) => I32(*number),
        There::Floats(numbers) => Floats(stream.clone_dtoh(numbers).unwrap()),
        There::Labels(numbers) => Labels(stream.clone_dtoh(numbers).unwrap()),
    });
    let back = back.collect();
    gpu.synchronize().unwrap();
    back
}

/// Whether all numbers are the same, up to what another `expf` may differ in.
fn same(a: &[Argument], b: &[Argument]) -> bool {
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * a.abs().max(1.0);
    a.iter().zip(b).all(|pair| match pair {
        (F32(a), F32(b)) => a == b,
        (I32(a), I32(b)) => a == b,
        (Floats(a), Floats(b)) => a.len() == b.len() && a.iter().zip(b).all(near),
        (Labels(a), Labels(b)) => a == b,
        _ => false,
    })
}

#[test]
fn the_source_does_what_the_stand_ins_do() {
    let Some(_fake) = in_child("the_source_does_what_the_stand_ins_do", &[]) else { return };
    println!("seed {SEED}");
    let library = compiled();
    let gpu = Gpu::open(&device(0)).unwrap();
    let mut rng = fastrand::Rng::with_seed(SEED);
    for _ in 0..50 {
        let (n, rows, columns) = (rng.usize(1..=700), rng.usize(1..=40), rng.usize(1..=30));
        let int = |n: usize| I32(i32::try_from(n).unwrap());
        // Zeros are what the rectifier is about.
        let mut number = || if rng.u8(..5) == 0 { 0.0 } else { 6.0 * rng.f32() - 3.0 };
        let (a, b, c) = (F32(number()), F32(number()), Floats(vec![number()]));
        let mut floats = |n: usize| Floats((0..n).map(|_| number()).collect());
        let vectors = [floats(n), floats(n), floats(n)];
        let [u, v, w] = vectors;
        let (matrix, row) = (floats(rows * columns), floats(columns));
        let labels = Labels((0..rows).map(|_| rng.i32(0..i32::try_from(columns).unwrap())).collect());
        let shape = [int(rows), int(columns)];
        let cases: [(&str, usize, Vec<Argument>); 8] = [
            ("saxpy", n, vec![a.clone(), u.clone(), v.clone(), int(n)]),
            ("fill", n, vec![a.clone(), u.clone(), int(n)]),
            ("bias_relu", rows * columns, [vec![matrix.clone(), row.clone()], shape.to_vec()].concat()),
            ("relu_gradient", n, vec![u.clone(), v.clone(), int(n)]),
            ("bias_softmax", rows, [vec![matrix.clone(), row.clone()], shape.to_vec()].concat()),
            ("cross_entropy_gradient", rows * columns, [vec![matrix.clone(), labels], shape.to_vec()].concat()),
            ("column_sums", columns, [vec![matrix, row], shape.to_vec()].concat()),
            ("sgd", n, vec![u, v, w, c, a, b, int(n)]),
        ];
        for (kernel, threads, arguments) in cases {
            let (host, there) =
                (on_host(&library, kernel, threads, arguments.clone()), on_device(&gpu, kernel, threads, &arguments));
            assert!(same(&host, &there), "{kernel} of {arguments:?}: {host:?} and {there:?}");
        }
    }
}
