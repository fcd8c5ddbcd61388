//! The GPU examples, on the stand-ins for the driver's libraries.

#![allow(unsafe_code)]
#![allow(clippy::duplicate_mod, reason = "each example has what the examples share")]

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

// Their own `main` is what cargo builds as examples.
#[allow(dead_code)]
#[path = "../examples/gpu_check.rs"]
mod gpu_check;
#[allow(dead_code)]
#[path = "../examples/gpu_digits.rs"]
mod gpu_digits;

use fake_cuda::{Fake, path};
use gpu_check::gpu_saxpy;
use outray::Runtime;

/// As for libcuda alone, with the stand-ins for NVML and cuBLAS where they are looked for, and so much memory on each
/// device.
fn in_child(test: &str, bytes: usize) -> Option<Fake> {
    let (nvml, cublas) = (path("fake_nvml"), path("fake_cublas"));
    let environment = [
        ("OUTRAY_NVML_PATH", nvml.to_str().unwrap()),
        ("OUTRAY_CUDA_PATH", cublas.to_str().unwrap()),
        ("FAKE_CUDA_BYTES", &bytes.to_string()),
    ];
    fake_cuda::in_child(test, &environment)
}

#[test]
fn a_chain_of_tasks_gives_what_the_same_launches_by_hand_give() {
    let Some(cuda) = in_child("a_chain_of_tasks_gives_what_the_same_launches_by_hand_give", 1 << 20) else { return };
    gpu_saxpy::compare(&Runtime::local(), 1000, 1000).unwrap();
    assert_eq!(cuda.races(), "");
}

#[test]
fn the_digits_are_learned_as_on_a_cpu() {
    let Some(cuda) = in_child("the_digits_are_learned_as_on_a_cpu", 1 << 24) else { return };
    let config = gpu_digits::training::Config { hidden: 32, learning_rate: 0.1, l2: 1e-4, noise: 0.4, epochs: 4 };
    let found = gpu_digits::compare(&Runtime::local(), config, &[1998, 1999]).unwrap();
    for (gpu, cpu) in found.on_gpu.iter().zip(&found.on_cpu) {
        println!("on a GPU {gpu}, on a CPU {cpu}");
        assert!(*gpu > 0.85 && (gpu - cpu).abs() < 0.01);
    }
    assert_eq!(cuda.races(), "");
}

#[test]
fn all_checks_pass() {
    let Some(_cuda) = in_child("all_checks_pass", 1 << 24) else { return };
    gpu_check::run(false).unwrap();
}
