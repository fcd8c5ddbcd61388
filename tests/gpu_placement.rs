//! Requests for GPUs, against devices that exist only on paper: who gets which, who waits, and who never will.

mod common;

use common::{AtomicBool, AtomicU32, AtomicUsize, Gate, until, watch};
use outray::{
    Bundle, Error, PlacementStrategy, Runtime,
    gpu::{
        DeviceInfo, DeviceSource, DeviceUsage, GpuError, GpuLease, GpuRequest, Inventory, NvLink, Simulated, Spread,
    },
    task,
};
use std::sync::{Arc, atomic::Ordering::SeqCst};

const GIB: u64 = 1 << 30;

fn h200(count: u32) -> Inventory {
    Inventory::uniform(count, "NVIDIA H200", 140 * GIB, (9, 0))
}

fn with(cpus: usize, inventory: Inventory) -> Runtime {
    Runtime::builder().cpus(cpus).gpu_inventory(inventory).build().unwrap()
}

fn leases() -> Vec<GpuLease> {
    task::context().gpu_leases()
}

struct Holder;

impl Holder {
    fn new() -> Self {
        Holder
    }

    fn devices(&self) -> Vec<(usize, f64)> {
        task::context().gpus()
    }
}

// Who gets what.

#[test]
fn ten_of_eleven_actors_of_0_18_fit_two_devices_and_the_last_says_what_it_waits_for() {
    watch(|| {
        let rt = with(2, h200(2));
        let mut actors: Vec<_> = (0..11).map(|_| rt.actor_builder(Holder::new).gpus(0.18).start(())).collect();
        let last = actors.pop().unwrap();
        let mut held = [0; 2];
        for actor in &actors {
            let devices = actor.call(Holder::devices, ()).get().unwrap();
            let [(device, share)] = devices[..] else { panic!("{devices:?}") };
            assert!((share - 0.18).abs() < 1e-9);
            held[device] += 1;
        }
        assert_eq!(held, [5, 5]);
        let ready = last.ready();
        assert!(!ready.is_ready(), "it has no device");
        let why = rt.explain(&ready).to_string();
        let expected = "0.18 GPUs wanted, 0.1 there; GPU 0 has 0.1 and 14 GiB free; GPU 1 has 0.1 and 14 GiB free";
        assert!(why.contains(expected), "{why}");
        drop(actors.pop());
        assert_eq!(last.call(Holder::devices, ()).get().unwrap().len(), 1);
    });
}

#[test]
fn a_lease_says_which_device_it_is_of_and_how_much_of_it() {
    watch(|| {
        let rt = with(2, h200(2));
        let whole = rt.task(leases).gpus(2.0).submit(()).get().unwrap();
        assert_eq!(whole.iter().map(|lease| &*lease.device.uuid).collect::<Vec<_>>(), ["SIM-0", "SIM-1"]);
        assert!(whole.iter().all(|lease| (lease.thousandths, lease.bytes) == (1000, 140 * GIB)));
        let one = |task: outray::Task<_, (), _, Vec<GpuLease>>| {
            let leases = task.submit(()).get().unwrap();
            assert_eq!(leases.len(), 1);
            (leases[0].thousandths, leases[0].bytes)
        };
        assert_eq!(one(rt.task(leases).gpus(0.25)), (250, 35 * GIB), "a share has the same part of the memory");
        assert_eq!(one(rt.task(leases).gpus(0.25).gpu_memory(70 * GIB)), (250, 70 * GIB));
        assert_eq!(one(rt.task(leases).gpu_memory(70 * GIB).gpus(0.25)), (250, 70 * GIB), "in any order");
        assert_eq!(one(rt.task(leases).gpu_memory(20 * GIB)), (0, 20 * GIB), "memory alone");
        assert_eq!(one(rt.task(leases).gpu(GpuRequest::whole(1).memory(1)).gpus(0.5)), (500, 1));
        assert_eq!(rt.task(leases).gpus(1.0).gpus(0.0).submit(()).get().unwrap(), []);
        assert_eq!(rt.submit(leases, ()).get().unwrap(), [], "who asks for none has none");
    });
}

#[test]
fn kinds_links_and_spreading_decide_which_devices_are_taken() {
    watch(|| {
        let mut mixed = h200(4).nvlink(&[(1, 3)]);
        (mixed.devices[0].name, mixed.devices[0].capability.major) = ("NVIDIA A100".into(), 8);
        let rt = with(4, mixed);
        let taken = |request: GpuRequest| {
            let devices = rt.task(|| task::context().gpus()).gpu(request).submit(()).get().unwrap();
            devices.into_iter().map(|(device, _)| device).collect::<Vec<_>>()
        };
        assert_eq!(taken(GpuRequest::whole(1)), [0]);
        assert_eq!(taken(GpuRequest::whole(1).capability(9, 0)), [1]);
        assert_eq!(taken(GpuRequest::whole(1).named("a100")), [0]);
        assert_eq!(taken(GpuRequest::whole(2).nvlink(NvLink::Require)), [1, 3]);
        let actor = rt.actor_builder(Holder::new).gpus(0.5).start(());
        assert_eq!(actor.call(Holder::devices, ()).get().unwrap()[0].0, 0);
        assert_eq!(taken(GpuRequest::share(500)), [0], "packed");
        assert_eq!(taken(GpuRequest::share(500).spread(Spread::Spread)), [1]);
    });
}

#[test]
fn tasks_in_a_bundle_take_from_its_devices() {
    watch(|| {
        let rt = with(4, h200(2));
        let bundles = [Bundle::new().gpus(1.0).gpu_memory(40 * GIB), Bundle::new().gpu(GpuRequest::share(500))];
        let group = rt.placement_group(&bundles, PlacementStrategy::Pack).unwrap();
        let inside = |bundle| rt.task(leases).cpus(0.0).placement_group(&group, bundle);
        let of = |leases: Vec<GpuLease>| (leases[0].device.index, leases[0].thousandths, leases[0].bytes);
        assert_eq!(of(inside(0).gpus(1.0).submit(()).get().unwrap()), (0, 1000, 40 * GIB), "all that the bundle has");
        assert_eq!(of(inside(0).gpus(0.5).submit(()).get().unwrap()), (0, 500, 20 * GIB));
        assert_eq!(of(inside(1).gpus(0.5).submit(()).get().unwrap()), (1, 500, 70 * GIB));
        assert_eq!(inside(0).gpus(1.0).submit(()).get().unwrap()[0].device.memory_bytes, 140 * GIB, "the real device");
        let error = inside(0).gpu_memory(41 * GIB).try_submit(()).unwrap_err();
        assert!(
            matches!(&error, Error::Infeasible { reason, .. } if reason.contains("41 GiB of a GPU wanted, 40 GiB there"))
        );
        let error = rt.placement_group(&[Bundle::new().gpus(2.0)], PlacementStrategy::Pack).unwrap_err();
        assert!(error.to_string().contains("2 GPUs wanted, 0 there; GPU 0 has 0 and 100 GiB free"), "{error}");
        drop(group);
        assert_eq!(rt.task(leases).gpus(2.0).submit(()).get().unwrap().len(), 2, "given back");
    });
}

// What is refused.

#[test]
fn what_no_set_of_devices_can_ever_serve_is_refused_at_submission_with_the_reason() {
    watch(|| {
        let rt = with(2, h200(2));
        for (request, expected) in [
            (GpuRequest::whole(3), "3 GPUs wanted, 2 there on this machine"),
            (
                GpuRequest::whole(1).named("B200"),
                "1 GPUs named \"B200\" wanted, 0 there (of 2 devices, 0 named \"B200\")",
            ),
            (GpuRequest::whole(1).capability(10, 0), "of compute capability 10.0 or newer wanted, 0 there"),
            (GpuRequest::bytes(141 * GIB), "141 GiB of a GPU wanted, 140 GiB there"),
            (GpuRequest::whole(2).nvlink(NvLink::Require), "2 GPUs joined by NVLink wanted, 1 there"),
        ] {
            let refused = [
                rt.task(|| ()).gpu(request.clone()).try_submit(()).unwrap_err(),
                rt.actor_builder(Holder::new).gpu(request).try_start(()).unwrap_err(),
            ];
            for error in refused {
                assert!(matches!(&error, Error::Infeasible { reason, .. } if reason.contains(expected)), "{error}");
            }
        }
    });
}

#[test]
fn amounts_that_make_no_sense_are_refused() {
    watch(|| {
        let rt = with(2, h200(4));
        let nothing = || rt.task(|| ());
        for (task, part) in [
            (nothing().gpus(1.5), "gpus(1.5)"),
            (nothing().gpus(0.0005), "thousandths"),
            (nothing().gpus(-1.0), "gpus(-1)"),
            (nothing().gpu(GpuRequest::share(1500)), "share(1500)"),
            (nothing().gpu(GpuRequest::share(0)), "no share"),
            (nothing().gpu_memory(0), "no share"),
        ] {
            let error = task.try_submit(()).unwrap_err();
            assert!(matches!(error, Error::InvalidOption { .. }) && error.to_string().contains(part), "{error}");
        }
        let error = Runtime::builder().gpus(5_000).build().unwrap_err();
        assert!(error.to_string().contains("gpus(5000)"), "{error}");
    });
}

/// A machine without devices, which counts who asks.
struct Nothing(&'static AtomicU32, GpuError);

impl DeviceSource for Nothing {
    fn inventory(&self) -> Result<Inventory, GpuError> {
        self.0.fetch_add(1, SeqCst);
        Err(self.1.clone())
    }

    fn usage(&self, _: &DeviceInfo) -> Result<DeviceUsage, GpuError> {
        unreachable!("there is none")
    }
}

#[test]
fn a_machine_without_devices_is_asked_at_the_first_request_and_its_error_is_the_reason() {
    watch(|| {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let missing = GpuError::NoDriver { library: "libcuda.so.1".into(), detail: "not found".into() };
        let rt = Runtime::builder().cpus(2).gpu_source(Arc::new(Nothing(&ASKED, missing.clone()))).build().unwrap();
        assert_eq!(rt.submit(|| 7, ()).get(), Ok(7));
        assert_eq!(rt.task(|| 7).cpus(2.0).submit(()).get(), Ok(7));
        assert_eq!(ASKED.load(SeqCst), 0);
        let mut refused = vec![
            rt.task(|| ()).gpus(1.0).try_submit(()).unwrap_err(),
            rt.task(|| ()).gpu_memory(1).submit(()).get().unwrap_err(),
            rt.actor_builder(Holder::new).gpus(0.5).try_start(()).err().unwrap(),
        ];
        assert!(refused.iter().all(|error| matches!(error, Error::Gpu { origin: Some(_), .. })));
        refused.push(rt.placement_group(&[Bundle::new().gpus(1.0)], PlacementStrategy::Pack).unwrap_err());
        for error in refused {
            assert!(matches!(&error, Error::Gpu { error, .. } if *error == missing), "{error}");
            assert!(error.to_string().contains("libcuda.so.1 could not be loaded"), "{error}");
        }
        assert_eq!(ASKED.load(SeqCst), 1);
        let empty = with(1, Inventory::default()).task(|| ()).gpus(1.0).try_submit(()).unwrap_err();
        assert!(matches!(empty, Error::Gpu { error: GpuError::NoDevice, .. }));
        let none = Runtime::builder().gpus(0).build().unwrap().task(|| ()).gpus(1.0).try_submit(()).unwrap_err();
        assert!(none.to_string().contains("1 GPUs wanted, 0 there"), "{none}");
    });
}

#[test]
fn an_error_of_a_gpu_inside_a_task_is_about_that_task() {
    watch(|| {
        let body = || -> Result<(), Error> { Err(GpuError::NotLeased { wanted: 0, leased: 0 })? };
        let rt = with(1, h200(1));
        let error = rt.task(body).name("greedy").submit(()).get().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Gpu { origin: Some(origin), .. } if origin.name == "greedy"), "{error}");
        assert!(matches!(Error::from(GpuError::NoDevice), Error::Gpu { origin: None, .. }));
    });
}

// Who waits.

#[test]
fn memory_is_admitted_by_what_is_left_of_it() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = with(4, h200(1));
        let first = rt.task(|| GATE.pass()).gpu_memory(80 * GIB).submit(());
        let second = rt.task(|| ()).gpu_memory(80 * GIB).submit(());
        assert_eq!(rt.task(|| 7).gpu_memory(60 * GIB).submit(()).get(), Ok(7), "it fits beside the first, and passes");
        let why = rt.explain(&second).to_string();
        assert!(why.contains("80 GiB of a GPU wanted, 60 GiB there; GPU 0 has 1 and 60 GiB free"), "{why}");
        GATE.open();
        assert!(first.get().is_ok() && second.get().is_ok());
    });
}

#[test]
fn a_lease_is_given_back_however_its_holder_ends() {
    watch(|| {
        let rt = with(2, h200(1));
        let is_free = || assert_eq!(rt.task(leases).gpus(1.0).submit(()).get().unwrap().len(), 1);
        assert!(rt.task(|| -> u8 { panic!("no") }).gpus(1.0).submit(()).get().is_err());
        is_free();
        assert!(rt.task(|| -> Result<u8, String> { Err("no".into()) }).gpus(1.0).submit(()).get().unwrap().is_err());
        is_free();
        let failed = rt.actor_builder(|| -> Holder { panic!("no") }).gpus(1.0).start(());
        assert!(failed.ready().get().is_err());
        is_free();
        let killed = rt.actor_builder(Holder::new).gpus(1.0).start(());
        let waiting = rt.task(leases).gpus(1.0).submit(());
        assert!(killed.ready().get().is_ok() && !waiting.is_ready());
        killed.kill();
        assert_eq!(waiting.get().unwrap().len(), 1);
        static GATE: Gate = Gate::new();
        let running = rt.task(|| GATE.pass()).gpus(1.0).submit(());
        let cancelled = rt.task(leases).gpus(1.0).submit(());
        cancelled.cancel();
        running.cancel();
        GATE.open();
        is_free();
    });
}

/// Devices whose usage the test changes. The ledger remembers what it saw for a moment, so a test that changes it
/// waits for what follows.
fn shared(count: u32) -> (Arc<Simulated>, Runtime) {
    let source = Arc::new(Simulated::new(h200(count)));
    let rt = Runtime::builder().cpus(2).gpu_source(source.clone()).build().unwrap();
    (source, rt)
}

#[test]
fn memory_that_other_processes_use_is_waited_for_and_devices_that_are_lost_are_left_out() {
    watch(|| {
        let (source, rt) = shared(2);
        source.set_usage(0, DeviceUsage { external_bytes: 130 * GIB, ..DeviceUsage::default() });
        source.set_usage(1, DeviceUsage { lost: true, ..DeviceUsage::default() });
        let small = rt.task(leases).gpu_memory(10 * GIB).submit(()).get().unwrap();
        assert_eq!(small[0].device.index, 0);
        let waiting = rt.task(leases).gpu_memory(20 * GIB).submit(());
        let both = rt.task(leases).gpus(2.0).submit(());
        let why = rt.explain(&waiting).to_string();
        for part in ["20 GiB of a GPU wanted, 10 GiB there", "130 GiB of that used by other processes", "GPU 1 is lost"]
        {
            assert!(why.contains(part), "{why}");
        }
        assert!(!waiting.is_ready() && !both.is_ready());
        source.set_usage(0, DeviceUsage::default());
        assert_eq!(waiting.get().unwrap()[0].device.index, 0);
        source.set_usage(1, DeviceUsage::default());
        assert_eq!(both.get().unwrap().len(), 2);
    });
}

/// Devices one of which this process has made unusable for itself.
struct Poisoned(Simulated, AtomicBool);

impl DeviceSource for Poisoned {
    fn inventory(&self) -> Result<Inventory, GpuError> {
        self.0.inventory()
    }

    fn usage(&self, device: &DeviceInfo) -> Result<DeviceUsage, GpuError> {
        match device.index == 0 && self.1.load(SeqCst) {
            true => Err(GpuError::Poisoned { device: 0, call: "cuLaunchKernel".into(), code: 700 }),
            false => self.0.usage(device),
        }
    }
}

#[test]
fn a_poisoned_device_gives_no_more_leases_and_who_needs_it_fails() {
    watch(|| {
        let source = Arc::new(Poisoned(Simulated::new(h200(2)), AtomicBool::new(false)));
        let rt = Runtime::builder().cpus(2).gpu_source(source.clone()).build().unwrap();
        let actor = rt.actor_builder(Holder::new).gpus(1.0).start(());
        assert_eq!(actor.call(Holder::devices, ()).get().unwrap()[0].0, 0);
        let both = rt.task(leases).gpus(2.0).submit(());
        assert!(!both.is_ready());
        source.1.store(true, SeqCst);
        // Each request that is admitted has the devices looked at, after a moment.
        until("the one that waits is told", || {
            assert!(rt.task(leases).gpus(0.5).submit(()).get().is_ok(), "the other device serves");
            both.is_ready()
        });
        for error in [both.get().unwrap_err(), rt.task(leases).gpus(2.0).try_submit(()).unwrap_err()] {
            let is_poisoned = matches!(&error, Error::Gpu { error: GpuError::Poisoned { device: 0, .. }, .. });
            assert!(is_poisoned && error.to_string().contains("Isolation::Process"), "{error}");
        }
        drop(actor);
        assert_eq!(rt.task(leases).gpus(1.0).submit(()).get().unwrap()[0].device.index, 1);
        let three = rt.task(leases).gpus(3.0).try_submit(()).unwrap_err();
        assert!(matches!(three, Error::Infeasible { .. }), "more than there ever were: {three}");
    });
}

#[test]
fn a_shutdown_does_not_wait_for_other_processes() {
    watch(|| {
        let (source, rt) = shared(1);
        source.set_usage(0, DeviceUsage { external_bytes: 130 * GIB, ..DeviceUsage::default() });
        let waiting = rt.task(leases).gpu_memory(20 * GIB).submit(());
        assert!(!waiting.is_ready());
        drop(rt);
        assert!(matches!(waiting.get(), Err(Error::Shutdown { .. })));
    });
}

#[test]
fn random_requests_never_exceed_the_devices() {
    /// What is in use of each device, as the tasks themselves see it.
    static USED: [(AtomicUsize, AtomicUsize); 3] = [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; 3];
    fn body() {
        let mine = leases();
        assert!(!mine.is_empty());
        for lease in &mine {
            let (time, bytes) = &USED[lease.device.index as usize];
            assert!(time.fetch_add(lease.thousandths as usize, SeqCst) + lease.thousandths as usize <= 1000);
            let bytes = bytes.fetch_add(lease.bytes as usize, SeqCst) + lease.bytes as usize;
            assert!(bytes <= lease.device.memory_bytes as usize);
        }
        std::thread::yield_now();
        for lease in &mine {
            let (time, bytes) = &USED[lease.device.index as usize];
            time.fetch_sub(lease.thousandths as usize, SeqCst);
            bytes.fetch_sub(lease.bytes as usize, SeqCst);
        }
    }
    watch(|| {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let rt = with(4, h200(3).nvlink(&[(0, 2)]));
        let tasks: Vec<_> = (0..600)
            .map(|_| {
                let request = match random.u8(..4) {
                    0 => GpuRequest::whole(random.u32(1..=2)).memory(random.u64(..=140 * GIB)),
                    1 => GpuRequest::whole(2).nvlink(NvLink::Require),
                    2 => GpuRequest::share(random.u16(1..=1000)),
                    _ => GpuRequest::bytes(random.u64(1..=140 * GIB)),
                };
                rt.task(body).cpus(0.25).gpu(request).submit(())
            })
            .collect();
        for task in tasks {
            task.get().unwrap();
        }
        assert_eq!(rt.task(leases).gpus(3.0).submit(()).get().unwrap().len(), 3, "all was given back");
    });
}
