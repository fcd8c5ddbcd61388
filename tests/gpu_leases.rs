//! Leases of devices through tasks and actors, on the stand-in libcuda.

#[path = "common/fake_cuda.rs"]
mod fake_cuda;

use cudarc::driver::{LaunchConfig, PushKernelArg};
use fake_cuda::{Fake, device, in_child};
use outray::{
    Error, Runtime,
    gpu::{DeviceBuffer, Gpu, GpuError, GpuRequest, Inventory, NvLink, Spread, cudarc},
    task,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

type Buffer = DeviceBuffer<f32>;

/// The first `count` devices of the stand-in.
fn runtime(count: u32) -> Runtime {
    let devices: Vec<_> = (0..count).map(device).collect();
    let links = vec![vec![None; devices.len()]; devices.len()];
    Runtime::builder().cpus(2).gpu_inventory(Inventory { devices, links }).build().unwrap()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::yield_now();
    }
}

fn gpu(index: usize) -> Result<Arc<Gpu>, GpuError> {
    task::context().gpu(index)
}

fn launch(gpu: &Gpu, name: &str, x: &Buffer, y: &mut outray::gpu::DeviceVec<f32>) -> Result<(), GpuError> {
    let kernel = gpu.function("//", name)?;
    let (a, n) = (1.0f32, x.len() as i32);
    let (x, mut y) = (x.read(gpu)?, y.write(gpu)?);
    let mut launch = gpu.stream().launch_builder(&kernel);
    launch.arg(&a).arg(&x).arg(&mut y).arg(&n);
    // SAFETY: the stand-in's kernel takes these, and both have so many elements.
    #[allow(unsafe_code)]
    let launched = unsafe { launch.launch(LaunchConfig::for_num_elems(n as u32)) };
    gpu.check("cuLaunchKernel", launched.map(drop))
}

fn ones() -> Result<Buffer, GpuError> {
    Ok(gpu(0)?.upload(&[1.0f32; 16])?.freeze())
}

/// `x + 1`, as the device adds.
fn add_one(x: Result<Buffer, GpuError>) -> Result<Buffer, GpuError> {
    let (gpu, x) = (gpu(0)?, x?);
    let mut sum = gpu.upload(&[1.0f32; 16])?;
    launch(&gpu, "saxpy", &x, &mut sum)?;
    Ok(sum.freeze())
}

fn assert_clean(fake: &Fake) {
    assert_eq!(fake.races(), "");
    assert_eq!([0, 1, 2, 3].map(|index| fake.used(index)), [0; 4]);
}

#[test]
fn a_body_gets_the_devices_that_it_has_leased_and_no_other() {
    let Some(fake) = in_child("a_body_gets_the_devices_that_it_has_leased_and_no_other", &[]) else { return };
    let rt = runtime(3);
    let seen = || -> Result<(Vec<String>, GpuError), GpuError> {
        let leases = task::context().gpu_leases();
        let uuids = (0..leases.len()).map(|index| Ok(gpu(index)?.info().uuid.clone()));
        let uuids: Vec<_> = uuids.collect::<Result<_, GpuError>>()?;
        assert!(leases.iter().map(|lease| &lease.device.uuid).eq(&uuids), "in the order of the leases");
        assert!(Arc::ptr_eq(&gpu(0)?, &gpu(0)?), "one session for each");
        Ok((uuids, gpu(leases.len()).unwrap_err()))
    };
    let (uuids, error) = rt.task(seen).gpus(2).submit(()).get().unwrap().unwrap();
    assert_eq!(uuids, [device(0).uuid, device(1).uuid]);
    assert_eq!(error, GpuError::NotLeased { wanted: 2, leased: 2 });
    let none = rt.submit(|| gpu(0).map(drop), ()).get().unwrap().unwrap_err();
    assert_eq!(none, GpuError::NotLeased { wanted: 0, leased: 0 });
    assert!(none.to_string().contains(".gpus("), "{none}");
    assert!(task::try_context().is_none());
    assert_clean(&fake);
}

#[test]
fn a_chain_of_tasks_on_a_device_waits_for_it_nowhere() {
    let Some(fake) = in_child("a_chain_of_tasks_on_a_device_waits_for_it_nowhere", &[]) else { return };
    let rt = runtime(1);
    fake.hold(0, true); // it does nothing from here on
    let mut last = rt.task(ones).gpus(1).submit(());
    for _ in 0..1000 {
        last = rt.task(add_one).gpus(1).submit(&last);
    }
    // The last body has returned, and not even the first launch has run.
    let sum = last.get().unwrap().unwrap();
    fake.hold(0, false);
    assert_eq!(sum.to_vec().unwrap(), [1001.0; 16]);
    drop((last, sum, rt));
    assert_clean(&fake);
}

#[test]
fn a_lease_ends_when_the_device_has_done_the_work() {
    let Some(fake) = in_child("a_lease_ends_when_the_device_has_done_the_work", &[]) else { return };
    let rt = runtime(2);
    let which = || gpu(0).map(|gpu| gpu.info().index);
    fake.hold(0, true);
    let first = rt.task(ones).gpus(1).submit(()).get().unwrap().unwrap();
    // The first device still works for the first task, so it is not the one that is taken.
    let other = rt.task(which).gpus(1).submit(()).get().unwrap();
    assert_eq!(other, Ok(1));
    // Who needs both comes after that work, and who gets them does not wait for it.
    let both = rt.task(|| gpu(1).map(|gpu| gpu.info().index)).gpu(GpuRequest::whole(2)).submit(());
    assert_eq!(both.get().unwrap(), Ok(1));
    fake.hold(0, false);
    assert_eq!(first.to_vec().unwrap(), [1.0; 16]);
    // By itself it goes back, too: a pool of actors that take each a device finds both free.
    until("both are free", || {
        let held = rt.task(|| ()).gpus(2).submit(());
        held.get().is_ok()
    });
    drop((first, rt));
    assert_clean(&fake);
}

#[test]
fn a_share_is_taken_over_in_the_order_of_the_devices_work() {
    let Some(fake) = in_child("a_share_is_taken_over_in_the_order_of_the_devices_work", &[]) else { return };
    let rt = runtime(1);
    fake.hold(0, true);
    let x = rt.task(ones).gpus(0.5).submit(());
    // More than fit at a time, each on a stream of its own, and all read the same.
    let sums: Vec<_> = (0..40).map(|_| rt.task(add_one).gpus(0.25).submit(&x)).collect();
    // All bodies return.
    assert!(rt.wait(&sums, sums.len(), None).1.is_empty());
    fake.hold(0, false);
    for sum in &sums {
        assert_eq!(sum.get().unwrap().unwrap().to_vec().unwrap(), [2.0; 16]);
    }
    drop((x, sums, rt));
    assert_clean(&fake);
}

#[test]
fn a_lease_ends_also_when_the_body_panics_or_is_cancelled() {
    let Some(fake) = in_child("a_lease_ends_also_when_the_body_panics_or_is_cancelled", &[]) else { return };
    let rt = runtime(1);
    let panics = || -> () {
        let _ones = ones().unwrap();
        panic!("as it should");
    };
    let failed = rt.task(panics).gpus(1).retries(2).submit(());
    assert!(matches!(failed.get(), Err(Error::Panicked { .. })));
    let waits = || async {
        let _ones = ones().unwrap();
        std::future::pending::<()>().await;
    };
    let waiting = rt.task(waits).gpus(1).submit(());
    let next = rt.task(ones).gpus(1).submit(());
    until("it waits for the device", || rt.stats().waiting_for_resources == 1);
    waiting.cancel();
    assert_eq!(next.get().unwrap().unwrap().to_vec().unwrap(), [1.0; 16]);
    drop((next, rt));
    assert_clean(&fake);
}

#[test]
fn an_actor_keeps_its_session_from_call_to_call() {
    struct Sum(Option<Buffer>);
    impl Sum {
        fn new() -> Self {
            Sum(None)
        }
        fn add(&mut self, x: Buffer) -> Result<usize, GpuError> {
            let gpu = gpu(0)?;
            let sum = match self.0.take() {
                None => x,
                Some(sum) => {
                    let mut sum = sum.try_into_mut().map_err(|_| GpuError::NoDevice)?;
                    launch(&gpu, "saxpy", &x, &mut sum)?;
                    sum.freeze()
                }
            };
            self.0 = Some(sum);
            Ok(Arc::as_ptr(&gpu).addr())
        }
        fn sum(&self) -> Result<Vec<f32>, GpuError> {
            self.0.as_ref().ok_or(GpuError::NoDevice)?.to_vec()
        }
    }
    let Some(fake) = in_child("an_actor_keeps_its_session_from_call_to_call", &[]) else { return };
    let rt = runtime(1);
    let actor = rt.actor_builder(Sum::new).gpus(0.5).start(());
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let x = rt.task(|| ones().unwrap()).gpus(0.5).submit(());
            actor.call(Sum::add, &x)
        })
        .collect();
    let mut sessions: Vec<_> = calls.iter().map(|call| call.get().unwrap().unwrap()).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), 1);
    assert_eq!(actor.call(Sum::sum, ()).get().unwrap().unwrap(), [20.0; 16]);
    // Its share is its own as long as it lives.
    let whole = rt.task(ones).gpus(1).submit(());
    until("it waits", || rt.explain(&whole).to_string().contains("GPU"));
    drop((calls, actor));
    assert!(whole.get().unwrap().is_ok());
    drop((whole, rt));
    assert_clean(&fake);
}

#[test]
fn a_device_that_has_failed_is_leased_to_nobody_and_the_others_are() {
    let Some(fake) = in_child("a_device_that_has_failed_is_leased_to_nobody_and_the_others_are", &[]) else { return };
    let rt = runtime(2);
    (0..2).for_each(|index| fake.hold(index, true));
    let traps = || -> Result<(u32, Buffer), GpuError> {
        let (gpu, x) = (gpu(0)?, ones()?);
        let mut y = gpu.zeros::<f32>(16)?;
        launch(&gpu, "trap", &x, &mut y).map(|()| (gpu.info().index, x))
    };
    // The body is long over when the kernel faults.
    let (failed, x) = rt.task(traps).gpus(1).submit(()).get().unwrap().unwrap();
    (0..2).for_each(|index| fake.hold(index, false));
    // Who can have another device gets that; who needs both can never start, and hears why.
    let poisoned =
        |error: &GpuError| matches!(error, GpuError::Poisoned { device, code: 700, .. } if *device == failed);
    until("it is known", || rt.task(|| ()).gpus(2).submit(()).get().is_err());
    match rt.task(|| ()).gpus(2).submit(()).get().unwrap_err() {
        Error::Gpu { error, .. } => assert!(poisoned(&error), "{error}"),
        other => panic!("{other:?}"),
    }
    for _ in 0..3 {
        let which = rt.task(|| gpu(0).map(|gpu| gpu.info().index)).gpus(1).submit(()).get().unwrap();
        assert_eq!(which, Ok(1 - failed));
    }
    // What was on it is lost, and says so.
    let error = x.to_vec().unwrap_err();
    assert!(poisoned(&error) && error.to_string().contains("Isolation::Process"), "{error}");
}

#[test]
fn random_graphs_over_devices_give_what_a_loop_gives() {
    let Some(fake) = in_child("random_graphs_over_devices_give_what_a_loop_gives", &[]) else { return };
    let seed =
        std::env::var("OUTRAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let rt = runtime(4);
    let sum = |a: Buffer, b: Buffer| {
        let gpu = gpu(0).unwrap();
        let mut sum = gpu.zeros::<f32>(16).unwrap();
        launch(&gpu, "saxpy", &a, &mut sum).unwrap();
        launch(&gpu, "saxpy", &b, &mut sum).unwrap();
        sum.freeze()
    };
    for _ in 0..20 {
        let held: Vec<u32> = (0..4).filter(|_| random.bool()).collect();
        held.iter().for_each(|index| fake.hold(*index, true));
        let mut values = vec![1.0f32];
        let mut nodes = vec![rt.task(|| ones().unwrap()).gpus(0.5).submit(())];
        for _ in 0..30 {
            let (a, b) = (random.usize(..nodes.len()), random.usize(..nodes.len()));
            let request = match random.u8(..4) {
                0 => GpuRequest::whole(1),
                1 => GpuRequest::whole(2).nvlink(NvLink::Prefer),
                2 => GpuRequest::share(250).spread(Spread::Spread),
                _ => GpuRequest::bytes(1 << 10),
            };
            let node = rt.task(sum).gpu(request).submit((&nodes[a], &nodes[b]));
            nodes.push(node);
            values.push(values[a] + values[b]);
        }
        let buffers = rt.get_all(&nodes).unwrap();
        held.iter().for_each(|index| fake.hold(*index, false));
        for (buffer, value) in buffers.iter().zip(&values) {
            assert_eq!(buffer.to_vec().unwrap(), [*value; 16], "seed {seed}");
        }
    }
    drop(rt);
    assert_clean(&fake);
}
