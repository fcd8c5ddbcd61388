//! Devices and sessions through the real cudarc, on the stand-in libcuda.
#![allow(unsafe_code)]

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use cudarc::{
    driver::{CudaFunction, CudaSlice, CudaStream, LaunchConfig, PushKernelArg},
    nvrtc::CompileOptions,
};
use fake_cuda::{device, in_bare_child, in_child};
use outray::gpu::{Gpu, GpuError, cudarc};
use std::{
    os::unix::fs::symlink,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

/// The stand-in looks kernels up by name.
const PTX: &str = "// saxpy, fill and trap";

/// `y += a * x`
fn saxpy(stream: &CudaStream, saxpy: &CudaFunction, a: f32, x: &CudaSlice<f32>, y: &mut CudaSlice<f32>) {
    let length = y.len() as i32;
    let mut launch = stream.launch_builder(saxpy);
    launch.arg(&a).arg(x).arg(y).arg(&length);
    // SAFETY: the kernel's arguments are these, and both slices have so many elements.
    unsafe { launch.launch(LaunchConfig::for_num_elems(length as u32)) }.unwrap();
}

fn trap(gpu: &Gpu) {
    let trap = gpu.function(PTX, "trap").unwrap();
    // SAFETY: it takes no arguments, and its fault is what this is about.
    unsafe { gpu.stream().launch_builder(&trap).launch(LaunchConfig::for_num_elems(1)) }.unwrap();
}

fn to_host(gpu: &Gpu, slice: &CudaSlice<f32>) -> Vec<f32> {
    let values = gpu.stream().clone_dtoh(slice).unwrap();
    gpu.synchronize().unwrap();
    values
}

/// A folder with links and files in it, removed with this.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("outray-{}-{}", test.replace(':', "-"), std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    /// What cudarc tries for this library is in the folder, and is no library.
    fn spoil(&self, library: &str) {
        cudarc::get_lib_name_candidates(library).iter().for_each(|name| std::fs::write(self.0.join(name), "").unwrap());
    }

    fn as_str(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn without_a_library_the_driver_is_missing() {
    const TEST: &str = "without_a_library_the_driver_is_missing";
    let folder = Folder::new(TEST);
    folder.spoil("cuda");
    folder.spoil("nvcuda");
    if in_bare_child(TEST, &[("LD_LIBRARY_PATH", folder.as_str())]) {
        let error = Gpu::open(&device(0)).unwrap_err();
        assert!(matches!(&error, GpuError::NoDriver { library, .. } if library == "libcuda.so.1"), "{error}");
        // A second time too.
        assert_eq!(Gpu::open(&device(0)).unwrap_err(), error);
    }
}

#[test]
fn a_library_without_the_symbols_is_too_old() {
    const TEST: &str = "a_library_without_the_symbols_is_too_old";
    let folder = Folder::new(TEST);
    symlink(fake_cuda::path("fake_nvml"), folder.0.join("libcuda.so")).unwrap();
    if in_bare_child(TEST, &[("LD_LIBRARY_PATH", folder.as_str())]) {
        let error = Gpu::open(&device(0)).unwrap_err();
        assert!(matches!(&error, GpuError::DriverTooOld { missing } if missing.contains("cuCtx")), "{error}");
    }
}

#[test]
fn what_cuinit_says_is_a_typed_error() {
    const TEST: &str = "what_cuinit_says_is_a_typed_error";
    for (variable, value) in [
        ("FAKE_CUDA_INIT", "100"),
        ("FAKE_CUDA_DEVICES", "0"),
        ("FAKE_CUDA_INIT", "34"),
        ("FAKE_CUDA_INIT", "803"),
        ("FAKE_CUDA_INIT", "999"),
    ] {
        let Some(_fake) = in_child(TEST, &[(variable, value)]) else { continue };
        let error = Gpu::open(&device(0)).unwrap_err();
        let says = |detail: &str, word: &str| assert!(detail.contains(word), "{detail}");
        match (std::env::var("FAKE_CUDA_INIT").as_deref().unwrap_or("0"), &error) {
            ("100" | "0", GpuError::NoDevice) => {}
            ("34", GpuError::NoDriver { detail, .. }) => says(detail, "stub"),
            ("803", GpuError::NoDriver { detail, .. }) => says(detail, "another version"),
            ("999", GpuError::Driver { call, code: 999 }) => assert_eq!(call, "cuInit"),
            (init, _) => panic!("cuInit says {init}: {error}"),
        }
        return;
    }
}

#[test]
fn the_library_is_found_where_the_variable_says() {
    const TEST: &str = "the_library_is_found_where_the_variable_says";
    let file = fake_cuda::path("fake_cuda");
    let folder = Folder::new(TEST);
    symlink(&file, folder.0.join("libcuda.so")).unwrap();
    for path in [file.to_str().unwrap(), folder.as_str(), &format!("/nowhere:{}", folder.as_str())] {
        if in_bare_child(TEST, &[("OUTRAY_CUDA_PATH", path)]) {
            Gpu::open(&device(1)).unwrap().synchronize().unwrap();
            return;
        }
    }
}

#[test]
fn a_device_that_cuda_does_not_show_is_named() {
    let Some(_fake) = in_child("a_device_that_cuda_does_not_show_is_named", &[]) else { return };
    for uuid in [device(7).uuid, "SIM-0".into()] {
        let mut hidden = device(0);
        hidden.uuid = uuid.clone();
        let error = Gpu::open(&hidden).unwrap_err();
        assert!(matches!(&error, GpuError::Infeasible { reason } if reason.contains(&uuid)), "{error}");
    }
}

#[test]
fn a_kernel_runs_on_the_device_with_that_uuid() {
    let Some(fake) = in_child("a_kernel_runs_on_the_device_with_that_uuid", &[]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    assert_eq!(gpu.context().ordinal(), 3, "CUDA's order is not the inventory's");
    let x = gpu.stream().clone_htod(&[1.0f32, 2.0, 3.0]).unwrap();
    let mut y = gpu.stream().clone_htod(&[10.0f32; 3]).unwrap();
    assert_eq!(fake.used(0), 24);
    saxpy(gpu.stream(), &gpu.function(PTX, "saxpy").unwrap(), 2.0, &x, &mut y);
    assert_eq!(to_host(&gpu, &y), [12.0, 14.0, 16.0]);
    drop((x, y));
    assert_eq!((fake.used(0), fake.races()), (0, String::new()));
}

#[test]
fn a_stream_goes_to_the_next_session() {
    let Some(_fake) = in_child("a_stream_goes_to_the_next_session", &[]) else { return };
    let first = Gpu::open(&device(0)).unwrap();
    let second = Gpu::open(&device(0)).unwrap();
    assert_ne!(first.stream(), second.stream());
    assert!(Arc::ptr_eq(first.context(), second.context()), "one context for each device");
    let stream = second.stream().clone();
    drop((first, second));
    assert_eq!(Gpu::open(&device(0)).unwrap().stream(), &stream, "the last one given back");
    assert_ne!(Gpu::open(&device(1)).unwrap().stream(), &stream);
}

#[test]
fn code_is_loaded_once_for_each_device() {
    let Some(fake) = in_child("code_is_loaded_once_for_each_device", &[]) else { return };
    let [a, b] = [0, 1].map(|index| Gpu::open(&device(index)).unwrap());
    for _ in 0..2 {
        for gpu in [&a, &b] {
            gpu.function(PTX, "saxpy").unwrap();
            gpu.function(PTX, "fill").unwrap();
            gpu.function(PTX.to_owned(), "fill").unwrap();
            gpu.module(PTX).unwrap();
        }
    }
    assert_eq!(fake.module_loads(), 2);
    a.module(vec![1u8, 2, 3]).unwrap();
    a.module(vec![1u8, 2, 3]).unwrap();
    assert_eq!(fake.module_loads(), 3);
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                a.function("// other code", "fill").unwrap();
            });
        }
    });
    assert_eq!(fake.module_loads(), 4);
}

#[test]
fn code_that_the_driver_refuses_is_an_error() {
    let Some(_fake) = in_child("code_that_the_driver_refuses_is_an_error", &[]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    let error = gpu.module("invalid").unwrap_err();
    assert!(matches!(&error, GpuError::Compile { log } if log.contains("218")), "{error}");
    let error = gpu.module("a\0b").unwrap_err();
    assert!(matches!(&error, GpuError::Compile { log } if log.contains("NUL")), "{error}");
    for name in ["nothing", "saxpy\0"] {
        let error = gpu.function(PTX, name).unwrap_err();
        assert!(matches!(&error, GpuError::Driver { code: 500, .. }), "{error}");
    }
    assert_eq!(gpu.fault(), None);
    gpu.function(PTX, "saxpy").unwrap();
}

#[test]
fn without_nvrtc_nothing_is_compiled() {
    const TEST: &str = "without_nvrtc_nothing_is_compiled";
    let folder = Folder::new(TEST);
    folder.spoil("nvrtc");
    let Some(_fake) = in_child(TEST, &[("LD_LIBRARY_PATH", folder.as_str())]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    let error = gpu.compile("extern \"C\" __global__ void k() {}", "k", Default::default()).unwrap_err();
    assert_eq!(error, GpuError::MissingLibrary { library: "libnvrtc".into() });
}

#[test]
fn a_source_is_compiled_once() {
    const TEST: &str = "a_source_is_compiled_once";
    let nvrtc = fake_cuda::path("fake_nvrtc");
    let Some(fake) = in_child(TEST, &[("OUTRAY_CUDA_PATH", nvrtc.to_str().unwrap())]) else { return };
    // SAFETY: the stand-in runs nothing when it is opened.
    let library = unsafe { libloading::Library::new(&nvrtc) }.unwrap();
    // SAFETY: that is its type in `testing/fake-nvrtc`.
    let compilations = || unsafe { library.get::<extern "C" fn() -> usize>(b"fake_nvrtc_compilations").unwrap()() };
    let [a, b] = [0, 1].map(|index| Gpu::open(&device(index)).unwrap());
    let source = "extern \"C\" __global__ void saxpy(float a, const float* x, float* y, int n);";
    let fast = CompileOptions { use_fast_math: Some(true), ..CompileOptions::default() };
    for gpu in [&a, &b, &a] {
        gpu.compile(source, "saxpy", CompileOptions::default()).unwrap();
        gpu.compile(source, "fill", CompileOptions::default()).unwrap();
        gpu.compile(source, "saxpy", fast.clone()).unwrap();
    }
    assert_eq!((compilations(), fake.module_loads()), (2, 4), "once for an architecture, and loaded on each device");
    let log = |options| match a.compile("#error as it is wanted", "saxpy", options) {
        Err(GpuError::Compile { log }) => log,
        other => panic!("{other:?}"),
    };
    let text = log(CompileOptions::default());
    assert!(text.contains("#error as it is wanted") && text.contains("--gpu-architecture=compute_90"), "{text}");
    let mine = log(CompileOptions { arch: Some("sm_75"), ..CompileOptions::default() });
    assert!(mine.contains("--gpu-architecture=sm_75") && !mine.contains("compute_90"), "{mine}");
    let error = a.compile(source, "nothing", CompileOptions::default()).unwrap_err();
    assert!(matches!(&error, GpuError::Driver { call, code: 500 } if call.contains("nothing")), "{error}");
    let error = a.compile("a\0b", "saxpy", CompileOptions::default()).unwrap_err();
    assert!(matches!(&error, GpuError::Compile { log } if log.contains("NUL")), "{error}");
}

#[test]
fn a_fault_takes_the_device_and_no_other() {
    let Some(_fake) = in_child("a_fault_takes_the_device_and_no_other", &[]) else { return };
    let [gpu, same, other] = [0, 0, 1].map(|index| Gpu::open(&device(index)).unwrap());
    let kept = gpu.stream().clone_htod(&[1.0f32; 4]).unwrap();
    gpu.synchronize().unwrap();
    trap(&gpu);
    assert_eq!(gpu.fault(), None, "nobody has asked the driver since");
    let error = gpu.synchronize().unwrap_err();
    assert!(matches!(error, GpuError::Poisoned { device: 0, code: 700, .. }), "{error}");
    assert!(error.to_string().contains("Isolation::Process"));
    let lost = Some(error.clone());
    assert_eq!((gpu.fault(), same.fault(), other.fault()), (lost.clone(), lost, None));
    assert_eq!(gpu.check("cuMemAllocAsync", gpu.stream().alloc_zeros::<u8>(8).map(drop)).unwrap_err(), error);
    for refused in [
        same.synchronize().unwrap_err(),
        same.module("// not loaded yet").unwrap_err(),
        same.capture(|_| Ok::<_, GpuError>(())).unwrap_err(),
        Gpu::open(&device(0)).unwrap_err(),
    ] {
        assert_eq!(refused, error);
    }
    // Neither do destructors panic.
    drop((kept, gpu, same));
    let mut y = other.stream().clone_htod(&[1.0f32; 4]).unwrap();
    let x = other.stream().clone_htod(&[1.0f32; 4]).unwrap();
    saxpy(other.stream(), &other.function(PTX, "saxpy").unwrap(), 1.0, &x, &mut y);
    assert_eq!(to_host(&other, &y), [2.0; 4]);
}

#[test]
fn a_wild_address_is_a_fault() {
    let Some(_fake) = in_child("a_wild_address_is_a_fault", &[]) else { return };
    let gpu = Gpu::open(&device(2)).unwrap();
    let fill = gpu.function(PTX, "fill").unwrap();
    let mut launch = gpu.stream().launch_builder(&fill);
    launch.arg(&1.0f32).arg(&8u64).arg(&4i32);
    // SAFETY: none; that is what this is about.
    unsafe { launch.launch(LaunchConfig::for_num_elems(4)) }.unwrap();
    assert!(matches!(gpu.synchronize(), Err(GpuError::Poisoned { device: 2, code: 700, .. })));
}

#[test]
fn a_lost_device_says_so() {
    let Some(fake) = in_child("a_lost_device_says_so", &[]) else { return };
    let gpu = Gpu::open(&device(1)).unwrap();
    fake.set_fault(1, 46);
    assert_eq!(gpu.synchronize(), Err(GpuError::DeviceLost { device: 1 }));
    assert_eq!(Gpu::open(&device(1)).unwrap_err(), GpuError::DeviceLost { device: 1 });
    Gpu::open(&device(0)).unwrap().synchronize().unwrap();
    // Of one that was never used the driver does not say more than this.
    fake.set_fault(3, 46);
    assert_eq!(Gpu::open(&device(3)).unwrap_err(), GpuError::Unavailable { device: 3 });
}

#[test]
fn out_of_memory_says_what_is_free() {
    let Some(fake) = in_child("out_of_memory_says_what_is_free", &[("FAKE_CUDA_BYTES", "4096")]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    let held = gpu.stream().alloc_zeros::<u8>(1000).unwrap();
    let more = gpu.stream().alloc_zeros::<u8>(4000).map(drop);
    let error = gpu.check("cuMemAllocAsync", more).unwrap_err();
    assert_eq!(error, GpuError::OutOfMemory { device: 0, requested: 0, free: 3096 });
    assert_eq!(gpu.fault(), None);
    drop(held);
    drop(gpu.stream().alloc_zeros::<u8>(4000).unwrap());
    gpu.synchronize().unwrap();
    assert_eq!((fake.used(0), fake.races()), (0, String::new()));
}

/// cudarc keeps what fails in a destructor for the next call, which is somebody else's.
#[test]
fn a_destructors_error_is_not_the_next_callers() {
    let Some(_fake) = in_child("a_destructors_error_is_not_the_next_callers", &[]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    let fail = || {
        // SAFETY: it is never used; its free, which fails, is what this is about.
        drop(unsafe { gpu.stream().upgrade_device_ptr::<u8>(8, 1) });
    };
    fail();
    assert!(gpu.stream().synchronize().is_err(), "cudarc has no such error any more");
    fail();
    gpu.synchronize().unwrap();
    fail();
    Gpu::open(&device(0)).unwrap().stream().alloc_zeros::<u8>(1).unwrap();
}

#[test]
fn a_graph_runs_what_was_recorded_as_often_as_it_is_launched() {
    let Some(fake) = in_child("a_graph_runs_what_was_recorded_as_often_as_it_is_launched", &[]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    let kernel = gpu.function(PTX, "saxpy").unwrap();
    let x = gpu.stream().clone_htod(&[1.0f32, 2.0]).unwrap();
    let mut y = gpu.stream().clone_htod(&[0.0f32; 2]).unwrap();
    let graph = gpu
        .capture(|gpu| {
            (0..3).for_each(|_| saxpy(gpu.stream(), &kernel, 1.0, &x, &mut y));
            Ok::<_, GpuError>(())
        })
        .unwrap();
    assert_eq!(to_host(&gpu, &y), [0.0, 0.0], "recorded, not run");
    for _ in 0..4 {
        // SAFETY: both slices are there, on this stream alone.
        unsafe { graph.launch(&gpu) }.unwrap();
    }
    assert_eq!(to_host(&gpu, &y), [12.0, 24.0]);
    // On another thread, and another stream that comes after this one.
    let second = Gpu::open(&device(0)).unwrap();
    second.stream().join(gpu.stream()).unwrap();
    // SAFETY: the stream comes after all that was done with both slices.
    std::thread::scope(|scope| scope.spawn(|| unsafe { graph.launch(&second) }).join().unwrap()).unwrap();
    assert_eq!(to_host(&second, &y), [15.0, 30.0]);
    let other = Gpu::open(&device(1)).unwrap();
    // SAFETY: it is refused.
    let error = unsafe { graph.launch(&other) }.unwrap_err();
    assert!(matches!(error, GpuError::Driver { code: 201, .. }), "{error}");
    assert_eq!(fake.races(), "");
    // The checker follows launches of graphs as it does kernels: this one does not come after the last.
    // SAFETY: its order is wrong, and its addresses are right.
    unsafe { graph.launch(&second).and_then(|()| graph.launch(&gpu)) }.unwrap();
    let races = fake.races();
    assert!(races.contains("saxpy") && races.contains("not ordered after write"), "{races}");
}

#[test]
fn a_graph_works_on_buffers_whose_guards_are_held() {
    let Some(fake) = in_child("a_graph_works_on_buffers_whose_guards_are_held", &[]) else { return };
    let [maker, gpu] = [(); 2].map(|()| Gpu::open(&device(0)).unwrap());
    let x = maker.upload(&[1.0f32, 2.0]).unwrap().freeze();
    let mut y = maker.upload(&[0.0f32; 2]).unwrap();
    let kernel = gpu.function(PTX, "saxpy").unwrap();
    let inside = gpu.capture(|gpu| x.read(gpu).map(drop));
    assert!(matches!(inside, Err(GpuError::Driver { code: 900, .. })), "{inside:?}");
    let (from, mut to) = (x.read(&gpu).unwrap(), y.write(&gpu).unwrap());
    let step = gpu
        .capture(|gpu| {
            let mut launch = gpu.stream().launch_builder(&kernel);
            launch.arg(&1.0f32).arg(&from).arg(&mut to).arg(&2i32);
            // SAFETY: the kernel's arguments are these, and both buffers have two elements.
            gpu.check("cuLaunchKernel", unsafe { launch.launch(LaunchConfig::for_num_elems(2)) }.map(drop))
        })
        .unwrap();
    for _ in 0..5 {
        // SAFETY: both guards are held.
        unsafe { step.launch(&gpu) }.unwrap();
    }
    drop((from, to));
    assert_eq!(y.to_vec().unwrap(), [5.0, 10.0]);
    drop((x, y));
    assert_eq!(fake.races(), "");
}

#[test]
fn a_recording_that_fails_leaves_the_stream_as_it_was() {
    let Some(fake) = in_child("a_recording_that_fails_leaves_the_stream_as_it_was", &[]) else { return };
    let gpu = Gpu::open(&device(0)).unwrap();
    let mine = GpuError::NotLeased { wanted: 1, leased: 1 };
    assert_eq!(gpu.capture(|_| Err::<(), _>(mine.clone())).unwrap_err(), mine);
    let panicked = catch_unwind(AssertUnwindSafe(|| gpu.capture::<GpuError>(|_| panic!("the body's"))));
    assert!(panicked.is_err());
    // Memory cannot be had meanwhile; nor is the body's own success enough where it waited for other streams.
    let alloc = gpu.capture(|gpu| gpu.check("cuMemAllocAsync", gpu.stream().alloc_zeros::<u8>(8).map(drop)));
    assert!(matches!(alloc, Err(GpuError::Driver { code: 900, .. })), "{alloc:?}");
    let second = Gpu::open(&device(0)).unwrap();
    let waited = gpu.capture(|gpu| {
        let _ = gpu.stream().join(second.stream());
        Ok::<_, GpuError>(())
    });
    assert!(matches!(waited, Err(GpuError::Driver { code: 901, .. })), "{waited:?}");
    let y = gpu.stream().clone_htod(&[1.0f32]).unwrap();
    assert_eq!(to_host(&gpu, &y), [1.0]);
    assert_eq!(fake.races(), "");
}

#[cfg(feature = "gpu-blas")]
mod blas {
    use super::fake_cuda::Fake;
    use super::*;

    /// The stand-in for libcublas, under its name.
    fn in_child_with_cublas(test: &str) -> Option<Fake> {
        let folder = Folder::new(test);
        symlink(fake_cuda::path("fake_cublas"), folder.0.join("libcublas.so")).unwrap();
        in_child(test, &[("OUTRAY_CUDA_PATH", folder.as_str())])
    }

    #[test]
    fn a_stream_has_one_handle() {
        let Some(_fake) = in_child_with_cublas("blas::a_stream_has_one_handle") else { return };
        let [a, b] = [(); 2].map(|()| Gpu::open(&device(0)).unwrap());
        let handle = *a.blas().unwrap().handle();
        assert_eq!(*a.blas().unwrap().handle(), handle);
        assert_ne!(*b.blas().unwrap().handle(), handle);
        drop(a);
        assert_eq!(*Gpu::open(&device(0)).unwrap().blas().unwrap().handle(), handle);
    }

    #[test]
    fn after_a_fault_the_error_is_the_devices() {
        let Some(_fake) = in_child_with_cublas("blas::after_a_fault_the_error_is_the_devices") else { return };
        let gpu = Gpu::open(&device(0)).unwrap();
        gpu.blas().unwrap();
        trap(&gpu);
        let status = cudarc::cublas::sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED;
        let failed = gpu.check_blas("cublasSgemm", status.result());
        assert!(matches!(failed, Err(GpuError::Poisoned { device: 0, code: 700, .. })), "{failed:?}");
    }

    #[test]
    fn without_the_library_there_is_none() {
        const TEST: &str = "blas::without_the_library_there_is_none";
        let folder = Folder::new(TEST);
        folder.spoil("cublas");
        let Some(_fake) = in_child(TEST, &[("LD_LIBRARY_PATH", folder.as_str())]) else { return };
        let gpu = Gpu::open(&device(0)).unwrap();
        let missing = GpuError::MissingLibrary { library: "libcublas".into() };
        assert_eq!(gpu.blas().map(drop), Err(missing));
    }
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
