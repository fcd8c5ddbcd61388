//! Devices and sessions through the real cudarc, on the stand-in libcuda.
#![allow(unsafe_code)]

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use fake_cuda::{device, in_child};
use outray::gpu::{Gpu, cudarc};

/// The stand-in looks kernels up by name.
const PTX: &str = "// saxpy and fill";

#[test]
fn a_kernel_runs_on_the_device_with_that_uuid() {
    let Some(fake) = in_child("a_kernel_runs_on_the_device_with_that_uuid", &[]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    assert_eq!(gpu.context().ordinal(), 3, "CUDA's order is not the inventory's");
    let stream = gpu.stream();
    let module = gpu.context().load_module(cudarc::nvrtc::Ptx::from_src(PTX)).unwrap();
    let saxpy = module.load_function("saxpy").unwrap();
    let x = stream.clone_htod(&[1.0f32, 2.0, 3.0]).unwrap();
    let mut y = stream.clone_htod(&[10.0f32; 3]).unwrap();
    assert_eq!(fake.used(0), 24);
    let mut launch = stream.launch_builder(&saxpy);
    launch.arg(&2.0f32).arg(&x).arg(&mut y).arg(&3i32);
    // SAFETY: the kernel's arguments are these, and both slices have three elements.
    unsafe { launch.launch(LaunchConfig::for_num_elems(3)) }.unwrap();
    let sums = stream.clone_dtoh(&y).unwrap();
    gpu.synchronize().unwrap();
    assert_eq!(sums, [12.0, 14.0, 16.0]);
    drop((x, y));
    assert_eq!((fake.used(0), fake.races()), (0, String::new()));
}

/// Two readers of one slice on streams of their own, then a free that waits for the second alone.
#[test]
fn the_checker_sees_what_cudarc_leaves_unordered() {
    let Some(fake) = in_child("the_checker_sees_what_cudarc_leaves_unordered", &[]) else { return };
    let context = cudarc::driver::CudaContext::new(0).unwrap();
    let [home, a, b] = [(); 3].map(|()| context.new_stream().unwrap());
    let copy = |stream: &std::sync::Arc<cudarc::driver::CudaStream>, from: &_| {
        let mut to = stream.alloc_zeros::<u8>(64).unwrap();
        stream.memcpy_dtod(from, &mut to).unwrap();
    };
    let one_reader = home.clone_htod(&[1u8; 64]).unwrap();
    copy(&a, &one_reader);
    drop(one_reader);
    assert_eq!(fake.races(), "");
    let two_readers = home.clone_htod(&[1u8; 64]).unwrap();
    copy(&a, &two_readers);
    copy(&b, &two_readers);
    assert_eq!(fake.races(), "");
    drop(two_readers);
    let races = fake.races();
    assert!(races.contains("free") && races.contains("not ordered after read"), "{races}");
}
