//! Device buffers through the real cudarc, on the stand-in libcuda: whatever order its checker would report is a fault of
//! the crate, and memory that a late copy would have overwritten has wrong contents.
#![allow(unsafe_code)]

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use fake_cuda::{Fake, device, in_bare_child, in_child};
use outray::{
    Runtime,
    gpu::{DeviceBuffer, DeviceVec, Gpu, GpuError, ReadGuard, WriteGuard, cudarc, set_pinned_budget},
};
use proptest::prelude::*;
use std::sync::{Arc, Barrier, Mutex};

const KIB: usize = 1 << 10;

fn open(index: u32) -> Gpu {
    Gpu::open(&device(index)).unwrap()
}

fn kernel(gpu: &Gpu, name: &str) -> CudaFunction {
    // The stand-in looks kernels up by name.
    let module = gpu.context().load_module(cudarc::nvrtc::Ptx::from_src("//")).unwrap();
    module.load_function(name).unwrap()
}

/// `y += a x`
fn saxpy(gpu: &Gpu, a: f32, x: &ReadGuard<'_, f32>, y: &mut WriteGuard<'_, f32>) {
    let (saxpy, n) = (kernel(gpu, "saxpy"), x.len() as i32);
    let mut launch = gpu.stream().launch_builder(&saxpy);
    launch.arg(&a).arg(x).arg(y).arg(&n);
    // SAFETY: the kernel's arguments are these, and both have so many elements.
    unsafe { launch.launch(LaunchConfig::for_num_elems(n as u32)) }.unwrap();
}

/// A copy made by the stream of `gpu`.
fn copied(gpu: &Gpu, x: &DeviceBuffer<f32>) -> DeviceVec<f32> {
    let mut y = gpu.zeros(x.len()).unwrap();
    let (from, mut to) = (x.read(gpu).unwrap(), y.write(gpu).unwrap());
    gpu.stream().memcpy_dtod(&from, &mut to).unwrap();
    drop((from, to));
    y
}

/// No order was left to chance, and nothing is left on any device.
fn assert_clean(fake: &Fake) {
    assert_eq!(fake.races(), "");
    assert_eq!([0, 1, 2, 3].map(|index| fake.used(index)), [0; 4]);
}

#[test]
fn numbers_are_written_and_read_back() {
    let Some(fake) = in_child("numbers_are_written_and_read_back", &[]) else { return };
    let gpu = open(0);
    assert_eq!(gpu.zeros::<u16>(5).unwrap().to_vec().unwrap(), [0; 5]);
    let mut y = gpu.upload(&[10.0f32, 20.0, 30.0]).unwrap();
    assert_eq!((y.len(), y.is_empty(), gpu.buffer_stats().unwrap().used), (3, false, 12));
    let x = gpu.upload(&[1.0f32, 2.0, 3.0]).unwrap().freeze();
    saxpy(&gpu, 2.0, &x.read(&gpu).unwrap(), &mut y.write(&gpu).unwrap());
    assert_eq!(y.to_vec().unwrap(), [12.0, 24.0, 36.0]);
    assert_eq!(format!("{y:?}"), "DeviceVec([f32; 3] on GPU 0)");

    y.write(&gpu).unwrap().copy_from_slice(&[4.0, 5.0, 6.0]).unwrap();
    let y = y.freeze();
    let other = y.clone();
    let y = y.try_into_mut().unwrap_err();
    drop(other);
    let mut y = y.try_into_mut().unwrap();
    {
        let mut y = y.write(&gpu).unwrap();
        let (mut low, high) = y.split_at_mut(1);
        gpu.stream().memcpy_dtod(&high, &mut gpu.stream().alloc_zeros::<f32>(2).unwrap()).unwrap();
        gpu.stream().memcpy_htod(&[9.0], &mut low).unwrap();
        gpu.stream().memcpy_dtod(&x.read(&gpu).unwrap().slice(..=1), &mut y.slice_mut(1..)).unwrap();
    }
    assert_eq!(y.to_vec().unwrap(), [9.0, 1.0, 2.0]);

    let none = gpu.upload::<f64>(&[]).unwrap().freeze();
    assert!(none.is_empty() && none.to_vec().unwrap().is_empty() && none.read(&gpu).unwrap().is_empty());
    // More than one block on the way, and the last is not full.
    let many: Vec<u32> = (0..(9 << 20) / 4 + 5).collect();
    assert_eq!(gpu.upload(&many).unwrap_err(), GpuError::OutOfMemory { device: 0, requested: 9437204, free: 1015784 });
    drop((x, y, none));
    assert_clean(&fake);
}

#[test]
fn more_than_a_block_is_copied_in_parts() {
    let Some(fake) = in_child("more_than_a_block_is_copied_in_parts", &[("FAKE_CUDA_BYTES", "100000000")]) else {
        return;
    };
    let gpu = open(0);
    let many: Vec<u32> = (0..(33 << 20) / 4 + 5).collect();
    let mut buffer = gpu.upload(&many).unwrap();
    assert!(buffer.to_vec().unwrap() == many);
    let less: Vec<u32> = many.iter().map(|x| x ^ 0xAAAA).collect();
    buffer.write(&gpu).unwrap().copy_from_slice(&less).unwrap();
    assert!(buffer.to_vec().unwrap() == less);
    assert!(fake.pinned() <= 36 << 20, "{}", fake.pinned());
    drop(buffer);
    assert_clean(&fake);
}

#[test]
fn every_reader_is_waited_for() {
    let Some(fake) = in_child("every_reader_is_waited_for", &[]) else { return };
    let gpus: Vec<_> = (0..5).map(|_| open(0)).collect();
    let mut x = gpus[0].upload(&[1.0f32; 64]).unwrap();
    for round in 0..4 {
        let buffer = x.freeze();
        let copies: Vec<_> = gpus[1..].iter().map(|gpu| copied(gpu, &buffer)).collect();
        x = buffer.try_into_mut().unwrap();
        x.write(&gpus[round]).unwrap().copy_from_slice(&[round as f32; 64]).unwrap();
        let expected = if round == 0 { 1.0 } else { (round - 1) as f32 };
        for copy in copies {
            assert_eq!(copy.to_vec().unwrap(), [expected; 64]);
        }
    }
    let buffer = x.freeze();
    let copies: Vec<_> = gpus[1..].iter().map(|gpu| copied(gpu, &buffer)).collect();
    drop(buffer); // before anything of the copies is waited for
    assert!(copies.iter().all(|copy| copy.to_vec().unwrap() == [3.0; 64]));
    drop(copies);
    assert_clean(&fake);
}

/// The device finishes nothing: whoever waits for it waits for ever.
#[test]
fn the_host_waits_nowhere_in_a_chain() {
    let Some(fake) = in_child("the_host_waits_nowhere_in_a_chain", &[]) else { return };
    let gpus: Vec<_> = (0..3).map(|_| open(0)).collect();
    let first = gpus[0].upload(&[1.0f32; 64]).unwrap().freeze();
    fake.hold(0, true);
    let mut x = first.clone();
    for step in 0..300 {
        let gpu = &gpus[step % 3];
        let mut y = gpu.zeros::<f32>(64).unwrap();
        saxpy(gpu, 1.0, &x.read(gpu).unwrap(), &mut y.write(gpu).unwrap());
        saxpy(gpu, 1.0, &first.read(gpu).unwrap(), &mut y.write(gpu).unwrap());
        x = y.freeze(); // the one before is dropped, while it is read
    }
    assert_eq!(fake.used(0), 2 * 256);
    fake.hold(0, false);
    assert_eq!(x.to_vec().unwrap(), [301.0; 64]);
    drop((first, x));
    assert_clean(&fake);
}

#[test]
fn the_least_recently_used_goes_to_the_host_and_comes_back() {
    let test = "the_least_recently_used_goes_to_the_host_and_comes_back";
    for budget in ["1048576", "1000000000"] {
        // The second is more than there is: CUDA says so.
        let Some(fake) = in_child(test, &[("BUDGET", budget)]) else { continue };
        let (gpu, reader) = (open(0), open(0));
        assert_eq!(gpu.buffer_stats().unwrap().budget, (1 << 20) - (1 << 15), "what is free, less a part in 32");
        gpu.set_buffer_budget(std::env::var("BUDGET").unwrap().parse().unwrap()).unwrap();
        let upload = |i: u8| gpu.upload(&[i; 256 * KIB]).unwrap().freeze();
        let buffers: Vec<_> = (0..4).map(upload).collect();
        assert_eq!(copied_byte(&reader, &buffers[0]), 0, "used now");
        let buffers: Vec<_> = buffers.into_iter().chain((4..8).map(upload)).collect();
        let stats = gpu.buffer_stats().unwrap();
        assert_eq!((stats.spilled, stats.restored, stats.to_disk, stats.used), (4, 0, 0, 1 << 20));
        let places: Vec<_> = buffers.iter().map(|buffer| format!("{buffer:?}").contains("GPU")).collect();
        assert_eq!(places, [false, false, false, false, true, true, true, true]);
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!(copied_byte(&reader, buffer), i as u8);
            assert!(buffer.to_vec().unwrap().iter().all(|byte| *byte == i as u8));
        }
        assert!(gpu.buffer_stats().unwrap().restored >= 4);

        // Those that are read stay, and then there is no room.
        let guards: Vec<_> = buffers[..4].iter().map(|buffer| buffer.read(&gpu).unwrap()).collect();
        let full = GpuError::OutOfMemory { device: 0, requested: 256 << 10, free: 0 };
        assert_eq!(buffers[5].read(&gpu).unwrap_err(), full);
        assert_eq!(gpu.zeros::<u64>(32 * KIB).unwrap_err(), full);
        assert_eq!(full.to_string(), "GPU 0: 262144 bytes requested, 0 free");
        drop(guards);
        assert_eq!(copied_byte(&reader, &buffers[5]), 5);
        drop(buffers);
        assert_clean(&fake);
        set_pinned_budget(0);
        set_pinned_budget(0); // what was still in use is idle now
        assert_eq!(fake.pinned(), 0);
        return;
    }
}

/// The first byte, by way of the stream.
fn copied_byte(gpu: &Gpu, buffer: &DeviceBuffer<u8>) -> u8 {
    let mut byte = [0xFF];
    let guard = buffer.read(gpu).unwrap();
    gpu.stream().memcpy_dtoh(&guard.slice(..1), &mut byte).unwrap();
    gpu.synchronize().unwrap();
    byte[0]
}

#[test]
fn what_the_host_has_no_room_for_goes_to_disk() {
    let test = "what_the_host_has_no_room_for_goes_to_disk";
    let folder = std::env::temp_dir().join(format!("outray-gpu-test-{}", std::process::id()));
    // In the child it is the folder for temporary files.
    let parent = std::env::var_os("FAKE_CUDA_CHILD").is_none();
    if parent {
        std::fs::create_dir(&folder).unwrap();
    }
    let done = std::panic::catch_unwind(|| {
        let Some(fake) = in_child(test, &[("TMPDIR", folder.to_str().unwrap())]) else { return };
        let gpu = open(0);
        gpu.set_buffer_budget(512 << 10).unwrap();
        set_pinned_budget(512 << 10);
        let data = |i: usize| (0..32 * KIB as u64).map(|x| x * 31 + i as u64).collect::<Vec<_>>();
        let buffers: Vec<_> = (0..8).map(|i| gpu.upload(&data(i)).unwrap().freeze()).collect();
        let stats = gpu.buffer_stats().unwrap();
        assert_eq!((stats.spilled, stats.to_disk, stats.used), (6, 4, 512 << 10));
        assert_eq!(format!("{:?}", buffers[0]), "DeviceBuffer([u64; 32768] on disk)");
        assert_eq!(std::fs::read_dir(std::env::temp_dir()).unwrap().count(), 0, "files have no names");
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.to_vec().unwrap() == data(i), "{i} where it is");
        }
        for (i, buffer) in buffers.iter().enumerate() {
            drop(buffer.read(&gpu).unwrap());
            assert!(buffer.to_vec().unwrap() == data(i), "{i} on the device again");
        }
        assert_eq!(gpu.buffer_stats().unwrap().to_disk, 6, "what is on disk is not written again");
        // One that is larger than the budget for the host, straight to disk.
        let large = gpu.upload(&vec![7u8; 512 << 10]).unwrap();
        set_pinned_budget(100 << 10);
        let mut small = gpu.zeros::<u8>(5).unwrap();
        assert_eq!(format!("{large:?}"), "DeviceVec([u8; 524288] on disk)");
        // Written again it is on the device alone.
        let mut large = large;
        drop(large.write(&gpu).unwrap());
        assert_eq!(format!("{large:?}"), "DeviceVec([u8; 524288] on GPU 0)");
        assert!(large.to_vec().unwrap() == vec![7; 512 << 10]);
        small.write(&gpu).unwrap().copy_from_slice(&[1; 5]).unwrap();
        drop((buffers, large, small));
        assert_clean(&fake);
    });
    if parent {
        std::fs::remove_dir_all(&folder).unwrap();
    }
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let test = "a_full_disk_is_an_error_and_loses_nothing";
    // No folder: nothing can be written there.
    let Some(fake) = in_child(test, &[("TMPDIR", "/nonexistent")]) else { return };
    let gpu = open(0);
    gpu.set_buffer_budget(512 << 10).unwrap();
    set_pinned_budget(256 << 10);
    let buffers: Vec<_> = (0..3).map(|i| gpu.upload(&[i as u8; 256 * KIB]).unwrap().freeze()).collect();
    let error = gpu.upload(&[9u8; 256 * KIB]).unwrap_err();
    assert!(matches!(error, GpuError::Spill { .. }), "{error}");
    for (i, buffer) in buffers.iter().enumerate() {
        assert!(buffer.to_vec().unwrap() == [i as u8; 256 * KIB]);
    }
    drop(buffers);
    assert_clean(&fake);
}

#[test]
fn a_reader_on_another_device_gets_a_copy() {
    let Some(fake) = in_child("a_reader_on_another_device_gets_a_copy", &[]) else { return };
    let (one, two, three) = (open(1), open(2), open(3));
    let mut x = one.zeros::<f32>(64).unwrap();
    fake.hold(1, true); // the copies wait for it, the host does not
    x.write(&one).unwrap().copy_from_slice(&[5.0; 64]).unwrap();
    let x = x.freeze();
    let y = copied(&two, &x);
    let z = copied(&three, &x);
    assert_eq!(format!("{x:?}"), "DeviceBuffer([f32; 64] on GPU 1, GPU 2, GPU 3)");
    fake.hold(1, false);
    assert_eq!((y.to_vec().unwrap(), z.to_vec().unwrap()), (vec![5.0; 64], vec![5.0; 64]));
    // A writer leaves one copy, wherever it is.
    let mut x = x.try_into_mut().unwrap();
    x.write(&three).unwrap().copy_from_slice(&[6.0; 64]).unwrap();
    assert_eq!(format!("{x:?}"), "DeviceVec([f32; 64] on GPU 3)");
    let x = x.freeze();
    assert_eq!(copied(&one, &x).to_vec().unwrap(), [6.0; 64]);
    // Where there is another copy nothing has to be moved to make room.
    one.set_buffer_budget(256).unwrap();
    drop(one.zeros::<f32>(64).unwrap());
    assert_eq!((one.buffer_stats().unwrap().spilled, format!("{x:?}").contains("GPU 1")), (0, false));
    drop((x, y, z));
    assert_clean(&fake);
}

#[test]
fn a_guard_that_is_leaked_is_waited_for() {
    let Some(fake) = in_child("a_guard_that_is_leaked_is_waited_for", &[]) else { return };
    let (gpu, other) = (open(0), open(0));
    let mut x = gpu.upload(&[1.0f32; 64]).unwrap();
    let mut y = gpu.zeros::<f32>(64).unwrap();
    {
        let (from, mut to) = (x.read(&other).unwrap(), y.write(&other).unwrap());
        other.stream().memcpy_dtod(&from, &mut to).unwrap();
        std::mem::forget((from, to));
    }
    let y = y.freeze();
    assert_eq!(copied(&gpu, &y).to_vec().unwrap(), [1.0; 64]);
    x.write(&gpu).unwrap().copy_from_slice(&[2.0; 64]).unwrap();
    std::mem::forget(x.read(&other).unwrap());
    drop((x, y));
    assert_clean(&fake);
}

/// cudarc's safe functions take a guard on any stream.
#[test]
fn a_guard_on_another_stream_is_in_order_all_the_same() {
    let Some(fake) = in_child("a_guard_on_another_stream_is_in_order_all_the_same", &[]) else { return };
    let gpu = open(0);
    let stranger = gpu.context().new_stream().unwrap();
    let mut x = gpu.zeros::<f32>(64).unwrap();
    for round in 0..3 {
        let mut guard = x.write(&gpu).unwrap();
        guard.copy_from_slice(&[round as f32; 64]).unwrap();
        stranger.memcpy_htod(&[-1.0], &mut guard.slice_mut(3..4)).unwrap();
        gpu.stream().memset_zeros(&mut guard.slice_mut(..1)).unwrap();
        drop(guard);
        let seen = stranger.clone_dtoh(&x.read(&gpu).unwrap()).unwrap();
        assert_eq!((seen[0], seen[1], seen[3]), (0.0, round as f32, -1.0));
    }
    drop(x);
    assert_clean(&fake);
}

#[test]
fn many_threads_bring_one_buffer_back_once() {
    let Some(fake) = in_child("many_threads_bring_one_buffer_back_once", &[]) else { return };
    let gpu = open(0);
    let x = gpu.upload(&[7u8; 512 * KIB]).unwrap().freeze();
    drop(gpu.zeros::<u8>(512 * KIB).unwrap());
    for round in 1..20 {
        drop(gpu.zeros::<u8>(768 * KIB).unwrap());
        assert_eq!(gpu.buffer_stats().unwrap().spilled, round);
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let gpu = open(0);
                    start.wait();
                    assert_eq!(copied_byte(&gpu, &x), 7);
                });
            }
        });
        assert_eq!(gpu.buffer_stats().unwrap().restored, round);
    }
    drop(x);
    assert_clean(&fake);
}

#[test]
fn a_lost_device_takes_only_what_was_there_alone() {
    let Some(fake) = in_child("a_lost_device_takes_only_what_was_there_alone", &[]) else { return };
    let (lost, other) = (open(0), open(1));
    let alone = lost.upload(&[1.0f32; 64]).unwrap().freeze();
    let on_both = lost.upload(&[2.0f32; 64]).unwrap().freeze();
    drop(on_both.read(&other).unwrap());
    let from_host = DeviceBuffer::from(vec![3.0f32; 64]);
    drop(from_host.read(&lost).unwrap());
    let spilled = lost.upload(&[4.0f32; 64]).unwrap().freeze();
    lost.set_buffer_budget(256).unwrap();
    drop(lost.zeros::<f32>(64).unwrap());
    assert_eq!(format!("{spilled:?}"), "DeviceBuffer([f32; 64] on host)");
    lost.set_buffer_budget(1024).unwrap();
    drop(alone.read(&lost).unwrap());
    assert_eq!(alone.to_vec().unwrap(), [1.0; 64]);

    let read_there = other.upload(&[6.0f32; 64]).unwrap().freeze();
    let freed = other.upload(&[7.0f32; 64]).unwrap().freeze();
    drop((read_there.read(&lost).unwrap(), freed.read(&lost).unwrap()));

    // The bytes of `alone` are on the device, those of the others somewhere else too.
    let mut alone = alone.try_into_mut().unwrap();
    drop(alone.write(&lost).unwrap());
    fake.set_fault(0, 700);
    let error = alone.to_vec().unwrap_err();
    assert!(matches!(error, GpuError::Poisoned { device: 0, code: 700, .. }), "{error}");
    assert_eq!(alone.read(&lost).unwrap_err(), error);
    assert_eq!(alone.read(&other).unwrap_err(), error);
    assert_eq!(alone.write(&other).unwrap_err(), error);
    assert_eq!(lost.zeros::<f32>(1).unwrap_err(), error);
    assert_eq!(on_both.read(&lost).unwrap_err(), error);
    assert_eq!(on_both.to_vec().unwrap(), [2.0; 64]);
    assert_eq!(from_host.to_vec().unwrap(), [3.0; 64]);
    assert_eq!(copied(&other, &from_host).to_vec().unwrap(), [3.0; 64]);
    assert_eq!(copied(&other, &on_both).to_vec().unwrap(), [2.0; 64]);
    // Nobody waits for a reader that does not go on.
    let mut read_there = read_there.try_into_mut().unwrap();
    read_there.write(&other).unwrap().copy_from_slice(&[8.0; 64]).unwrap();
    assert_eq!(read_there.to_vec().unwrap(), [8.0; 64]);
    drop((alone, on_both, from_host, spilled, read_there, freed));
    assert_eq!((fake.races(), fake.used(1)), (String::new(), 0));
}

/// A step that is recorded once, and launched on buffers that were made before.
#[test]
fn a_graph_uses_guards_that_were_taken_before() {
    let Some(fake) = in_child("a_graph_uses_guards_that_were_taken_before", &[]) else { return };
    let (gpu, other) = (open(0), open(0));
    let x = other.upload(&[1.0f32; 64]).unwrap().freeze();
    let mut y = other.zeros::<f32>(64).unwrap();
    let dropped = gpu.zeros::<f32>(64).unwrap();
    let kept = gpu.upload(&[3.0f32; 64]).unwrap().freeze();
    {
        let late = kept.read(&gpu).unwrap();
        let (from, mut to) = (x.read(&gpu).unwrap(), y.write(&gpu).unwrap());
        let graph = gpu.capture(|gpu| {
            saxpy(gpu, 1.0, &from, &mut to);
            // What cannot be recorded is refused, and what ends meanwhile is no part of it.
            for refused in [kept.read(gpu).err(), gpu.zeros::<u8>(1).err(), gpu.upload(&[1u8]).err()] {
                assert!(matches!(refused, Some(GpuError::Driver { code: 900, .. })), "{refused:?}");
            }
            drop((dropped, late));
            Ok::<(), GpuError>(())
        });
        let graph = graph.unwrap();
        for _ in 0..10 {
            // SAFETY: the guards are there.
            unsafe { graph.launch(&gpu) }.unwrap();
        }
    }
    assert_eq!(copied(&other, &y.freeze()).to_vec().unwrap(), [10.0; 64]);
    assert_eq!(copied(&other, &kept).to_vec().unwrap(), [3.0; 64]);
    drop((x, kept));
    assert_clean(&fake);
}

fn total(x: DeviceBuffer<f32>) -> f32 {
    x.to_vec().unwrap().iter().sum()
}

/// As everywhere where there is no GPU: nothing of CUDA is called.
#[test]
fn a_buffer_on_the_host_needs_no_driver() {
    if !in_bare_child("a_buffer_on_the_host_needs_no_driver", &[("LD_LIBRARY_PATH", "")]) {
        return;
    }
    for check in [false, true] {
        let rt = Runtime::builder().cpus(2).check_serialization(check).build().unwrap();
        let x = DeviceBuffer::from(vec![1.5f32; 100]);
        assert_eq!(rt.submit(total, x.clone()).get(), Ok(150.0));
        let put = rt.put(x);
        assert_eq!(rt.submit(total, &put).get(), Ok(150.0));
        let y = rt.submit(|n: u32| DeviceBuffer::from(vec![1.0f32; n as usize]), 8);
        assert_eq!(rt.submit(total, &y).get(), Ok(8.0));
        assert_eq!(y.get().unwrap().to_vec().unwrap(), [1.0; 8]);
    }
    let text = serde_json::to_string(&DeviceBuffer::from(vec![1, 2, 3])).unwrap();
    assert_eq!(text, "[1,2,3]");
    let back: DeviceBuffer<i32> = serde_json::from_str(&text).unwrap();
    assert_eq!((back.to_vec().unwrap(), format!("{back:?}")), (vec![1, 2, 3], "DeviceBuffer([i32; 3] on host)".into()));
}

#[test]
fn tasks_pass_buffers_on() {
    let Some(fake) = in_child("tasks_pass_buffers_on", &[]) else { return };
    fn make(n: usize) -> Result<DeviceBuffer<f32>, GpuError> {
        Ok(open(0).upload(&vec![1.0; n])?.freeze())
    }
    fn add(x: DeviceBuffer<f32>, y: DeviceBuffer<f32>) -> Result<DeviceBuffer<f32>, GpuError> {
        let gpu = Gpu::open(&device(0))?;
        let mut sum = copied(&gpu, &y);
        saxpy(&gpu, 1.0, &x.read(&gpu)?, &mut sum.write(&gpu)?);
        Ok(sum.freeze())
    }
    for check in [false, true] {
        let rt = Runtime::builder().cpus(2).check_serialization(check).build().unwrap();
        let one = rt.submit(make, 64);
        let mut sum = rt.submit(add, (&one, &one));
        for _ in 0..50 {
            sum = rt.submit(add, (&sum, &one));
        }
        assert_eq!(sum.get().unwrap().unwrap().to_vec().unwrap(), [52.0; 64]);
        assert_eq!(rt.submit(total, &sum).get(), Ok(52.0 * 64.0));
        drop((one, sum, rt));
        // A worker that has just told a result may still hold its arguments.
        while fake.used(0) > 0 {
            std::thread::yield_now();
        }
    }
    assert_clean(&fake);
}

/// Something done with buffers: what, and three numbers that say with which.
type Step = (u8, u8, u8, u16);

fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..24u8, any::<u8>(), any::<u8>(), any::<u16>()), 1..most)
}

enum Slot {
    Empty,
    Mine(DeviceVec<u32>, Vec<u32>),
    Shared(DeviceBuffer<u32>, Arc<Vec<u32>>),
}

type Exchange = Mutex<Vec<(DeviceBuffer<u32>, Arc<Vec<u32>>)>>;

/// What a thread has: sessions on two devices, and buffers, each with what must be in it.
struct Bench<'a> {
    gpus: Vec<Gpu>,
    slots: Vec<Slot>,
    exchange: &'a Exchange,
    /// How often other numbers were there.
    wrong: usize,
}

impl<'a> Bench<'a> {
    fn new(exchange: &'a Exchange) -> Self {
        let gpus = [0, 0, 0, 1, 1].map(open).into();
        Bench { gpus, slots: (0..6).map(|_| Slot::Empty).collect(), exchange, wrong: 0 }
    }

    /// No room is no fault: budgets are small.
    fn allow<T>(result: Result<T, GpuError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(GpuError::OutOfMemory { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Up to 200 KiB, different ones for each number.
    fn data(number: u16) -> Vec<u32> {
        let len = [0, 1, 4000, 16384, 50000][usize::from(number) % 5];
        (0..len).map(|i: u32| i.wrapping_mul(7919) ^ (u32::from(number) << 12)).collect()
    }

    /// What the stream sees. The stand-in runs it at once; nothing waits for it.
    fn check(&mut self, slot: usize, gpu: usize) {
        let gpu = &self.gpus[gpu];
        let (guard, expected) = match &self.slots[slot] {
            Slot::Empty => return,
            Slot::Mine(vec, expected) => (vec.read(gpu), &expected[..]),
            Slot::Shared(buffer, expected) => (buffer.read(gpu), &expected[..]),
        };
        let Some(guard) = Self::allow(guard) else { return };
        let mut seen = vec![0; expected.len()];
        gpu.stream().memcpy_dtoh(&guard, &mut seen).unwrap();
        self.wrong += usize::from(seen != expected);
    }

    fn step(&mut self, (what, a, b, number): Step) {
        let (slot, other) = (usize::from(a) % 6, usize::from(b) % 6);
        let (one, two) = (usize::from(b) % 5, usize::from(a) % 5);
        match what {
            0 | 1 => {
                let data = Self::data(number);
                if let Some(vec) = Self::allow(self.gpus[one].upload(&data)) {
                    self.slots[slot] = Slot::Mine(vec, data);
                }
            }
            2 => {
                let data = vec![0; Self::data(number).len()];
                if let Some(vec) = Self::allow(self.gpus[one].zeros(data.len())) {
                    self.slots[slot] = Slot::Mine(vec, data);
                }
            }
            3 | 4 => {
                let Slot::Mine(vec, data) = &mut self.slots[slot] else { return };
                let Some(mut guard) = Self::allow(vec.write(&self.gpus[one])) else { return };
                data.iter_mut().for_each(|x| *x ^= u32::from(number));
                guard.copy_from_slice(data).unwrap();
            }
            5 => {
                let Slot::Mine(vec, data) = &mut self.slots[slot] else { return };
                let Some(mut guard) = Self::allow(vec.write(&self.gpus[one])) else { return };
                let from = data.len() / 2;
                self.gpus[one].stream().memset_zeros(&mut guard.slice_mut(from..)).unwrap();
                data[from..].fill(0);
            }
            6..=9 => self.check(slot, one),
            10 => {
                let (seen, expected) = match &self.slots[slot] {
                    Slot::Empty => return,
                    Slot::Mine(vec, expected) => (vec.to_vec().unwrap(), &expected[..]),
                    Slot::Shared(buffer, expected) => (buffer.to_vec().unwrap(), &expected[..]),
                };
                self.wrong += usize::from(seen != expected);
            }
            11 | 12 => {
                self.slots[slot] = match std::mem::replace(&mut self.slots[slot], Slot::Empty) {
                    Slot::Mine(vec, data) => Slot::Shared(vec.freeze(), Arc::new(data)),
                    other => other,
                }
            }
            13 => {
                if let Slot::Shared(buffer, data) = &self.slots[slot] {
                    self.slots[other] = Slot::Shared(buffer.clone(), data.clone());
                }
            }
            14 => {
                self.slots[slot] = match std::mem::replace(&mut self.slots[slot], Slot::Empty) {
                    Slot::Shared(buffer, data) => match buffer.try_into_mut() {
                        Ok(vec) => Slot::Mine(vec, data.to_vec()),
                        Err(buffer) => Slot::Shared(buffer, data),
                    },
                    other => other,
                }
            }
            15 => self.slots[slot] = Slot::Empty,
            // Two at the same time, on two streams, into a third that is new.
            16 | 17 => {
                let (Slot::Shared(from, data), Slot::Shared(also, _)) = (&self.slots[slot], &self.slots[other]) else {
                    return;
                };
                let (gpu, elsewhere) = (&self.gpus[one], &self.gpus[two]);
                let Some(mut vec) = Self::allow(gpu.zeros(data.len())) else { return };
                {
                    let Some(also) = Self::allow(also.read(elsewhere)) else { return };
                    let Some(from) = Self::allow(from.read(gpu)) else { return };
                    let Some(mut to) = Self::allow(vec.write(gpu)) else { return };
                    gpu.stream().memcpy_dtod(&from, &mut to).unwrap();
                    elsewhere.stream().memcpy_dtoh(&also, &mut vec![0; also.len()]).unwrap();
                }
                let data = data.to_vec();
                self.slots[usize::from(number) % 6] = Slot::Mine(vec, data);
            }
            18 => self.gpus[one].set_buffer_budget(1024 * (200 + u64::from(number) % 500)).unwrap(),
            19 => set_pinned_budget(1024 * (u64::from(number) % 512)),
            // Whatever is here and not in use has to go.
            20 => drop(Self::allow(self.gpus[one].zeros::<u8>(1024 * (100 + usize::from(number) % 900)))),
            21 => match (&mut self.slots[slot], number % 4) {
                (Slot::Mine(vec, data), 0) => {
                    let Some(mut guard) = Self::allow(vec.write(&self.gpus[one])) else { return };
                    data.fill(5);
                    guard.copy_from_slice(data).unwrap();
                    std::mem::forget(guard);
                }
                (Slot::Shared(buffer, _), 1) => {
                    std::mem::forget(Self::allow(buffer.read(&self.gpus[one])));
                }
                _ => {}
            },
            22 => {
                if let Slot::Shared(buffer, data) = &self.slots[slot] {
                    let mut exchange = self.exchange.lock().unwrap();
                    exchange.push((buffer.clone(), data.clone()));
                    let first = (exchange.len() > 4).then(|| exchange.remove(0));
                    drop(exchange);
                    drop(first);
                }
            }
            _ => {
                let found = self.exchange.lock().unwrap().get(other).cloned();
                if let Some((buffer, data)) = found {
                    self.slots[slot] = Slot::Shared(buffer, data);
                }
            }
        }
    }
}

fn run(threads: &[Vec<Step>]) -> usize {
    let exchange = Exchange::default();
    for index in [0, 1] {
        open(index).set_buffer_budget(500 << 10).unwrap();
    }
    set_pinned_budget(256 << 10);
    let work = |steps: &[Step]| {
        let mut bench = Bench::new(&exchange);
        steps.iter().for_each(|step| bench.step(*step));
        bench.wrong
    };
    match threads {
        [steps] => work(steps),
        _ => std::thread::scope(|scope| {
            let threads: Vec<_> = threads.iter().map(|steps| scope.spawn(|| work(steps))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        }),
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn whatever_is_done_with_buffers_is_in_order() {
    let Some(fake) = in_child("whatever_is_done_with_buffers_is_in_order", &[]) else { return };
    proptest!(config(500), |(steps in steps(120))| {
        prop_assert_eq!(run(&[steps]), 0);
        prop_assert_eq!(fake.races(), "");
        prop_assert_eq!((fake.used(0), fake.used(1)), (0, 0));
    });
    let stats = open(0).buffer_stats().unwrap();
    assert!(stats.spilled > 100 && stats.restored > 20 && stats.to_disk > 50, "{stats:?}");
}

#[test]
fn whatever_threads_do_with_buffers_is_in_order() {
    let Some(fake) = in_child("whatever_threads_do_with_buffers_is_in_order", &[]) else { return };
    proptest!(config(150), |(threads in prop::collection::vec(steps(120), 3))| {
        prop_assert_eq!(run(&threads), 0);
        prop_assert_eq!(fake.races(), "");
        prop_assert_eq!((fake.used(0), fake.used(1)), (0, 0));
    });
    let stats = open(0).buffer_stats().unwrap();
    assert!(stats.spilled > 100 && stats.restored > 20 && stats.to_disk > 50, "{stats:?}");
}

/// The check of the checks: where waits are left out, the same steps are reported.
#[test]
fn a_wait_that_is_left_out_is_seen() {
    let Some(fake) = in_child("a_wait_that_is_left_out_is_seen", &[]) else { return };
    let seed: u64 = std::env::var("SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for (streams, host) in [(1, 0), (3, 0), (10, 0), (0, 1), (0, 3), (0, 10)] {
        let mut seen = 0;
        for _ in 0..60 {
            let steps = (0..120).map(|_| (rng.u8(0..24), rng.u8(..), rng.u8(..), rng.u16(..))).collect();
            fake.forget_waits(streams, host);
            let wrong = run(&[steps]);
            fake.forget_waits(0, 0);
            seen += usize::from(wrong > 0 || !fake.races().is_empty());
        }
        println!("every {streams}th wait of a stream, every {host}th of the host: seen in {seen} of 60 runs");
        assert!(seen > 0, "{streams} {host}");
    }
}
