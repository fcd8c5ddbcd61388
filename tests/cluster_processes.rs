//! The processes of a cluster that tasks and actors run in: which GPUs each sees, and actors that have one to themselves.

mod common;

use common::{until, watch};
use outray::{Actor, Error, Isolation, LocalCluster, Queue, Runtime, gpu::GpuRequest, task};
use serde_json::Value;
use std::{collections::BTreeSet, path::Path, process::Command, time::Duration};

/// A process, what it sees, and what is leased there.
type Seen = (u32, Option<String>, Vec<String>);

fn see() -> Seen {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let leased = task::context().gpu_leases().into_iter().map(|lease| lease.device.uuid.clone());
    (std::process::id(), visible, leased.collect())
}

struct Guest(u32);

impl Guest {
    fn new() -> Self {
        Guest(0)
    }
    fn see(&self) -> Seen {
        see()
    }
    fn pid(&self) -> u32 {
        std::process::id()
    }
    fn count(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
    fn fail(&mut self) {
        panic!("out of order")
    }
    fn abort(&self) {
        std::process::abort()
    }
    /// Says so, and never ends.
    fn hang(&mut self, hangs: Queue<u32>) {
        hangs.put(std::process::id()).unwrap();
        loop {
            std::thread::park();
        }
    }
    fn make(&self, length: usize) -> Vec<u64> {
        vec![7; length]
    }
}

fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn gone(pid: u32) {
    until(&format!("process {pid} is gone"), || !runs(pid));
}

/// A function's type is what travels, so its builder has none that can be named.
macro_rules! isolated {
    ($rt:expr) => {
        $rt.actor_builder(Guest::new).isolation(Isolation::Process)
    };
}

/// What the command `outray` says of a cluster.
fn ask(cluster: &LocalCluster, question: &[&str]) -> Value {
    let mut outray = Command::new(env!("CARGO_BIN_EXE_outray"));
    outray.args(question).args(["--json", "--address", cluster.address()]);
    let answer = outray.env("OUTRAY_KEY_FILE", cluster.key_file()).output().unwrap();
    serde_json::from_slice(&answer.stdout).unwrap()
}

#[test]
fn each_sees_the_gpus_that_it_may_use() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).gpus(4).start().unwrap();
        let rt = cluster.connect().unwrap();
        const ALL: &str = "SIM-0,SIM-1,SIM-2,SIM-3";
        let none = Some(String::new());
        let (plain, visible, leased) = rt.submit(see, ()).get().unwrap();
        assert_eq!((&visible, leased.len()), (&none, 0));
        assert_eq!(rt.submit(see, ()).get().unwrap().0, plain);
        // Those with a lease share a process, and choose by that.
        let with_gpus = rt.task(see).gpus(2.0);
        let (gpu, visible, leased) = with_gpus.submit(()).get().unwrap();
        assert_ne!(gpu, plain);
        assert_eq!((visible.as_deref(), leased.len()), (Some(ALL), 2));
        let sharing = rt.task(see).gpu(GpuRequest::share(250));
        let both = [sharing.submit(()).get().unwrap(), with_gpus.submit(()).get().unwrap()];
        assert!(both.iter().all(|(pid, visible, _)| (*pid, visible.as_deref()) == (gpu, Some(ALL))), "{both:?}");
        // What they submit goes where it may be, too.
        let nested = || {
            let rt = Runtime::current();
            let stream: Vec<_> = rt.stream(|| std::iter::once_with(see), ()).values().collect();
            let stream = stream.into_iter().next().unwrap().unwrap();
            let map = rt.map(|(): ()| see(), [()]).collect().unwrap().remove(0);
            let (task, gpu) = (rt.submit(see, ()), rt.task(see).gpus(0.5).submit(()));
            [stream, map, task.get().unwrap(), gpu.get().unwrap()]
        };
        for seen in [rt.task(nested).gpus(1.0).submit(()).get().unwrap(), rt.submit(nested, ()).get().unwrap()] {
            let [ours @ .., theirs] = &seen;
            assert!(ours.iter().all(|(pid, visible, _)| (*pid, visible) == (plain, &none)), "{seen:?}");
            assert_eq!((theirs.0, theirs.1.as_deref(), theirs.2.len()), (gpu, Some(ALL), 1));
        }
        // Actors, too.
        let shared = [rt.actor(Guest::new, ()), rt.actor_builder(Guest::new).gpus(1.0).start(())];
        let [without, with] = shared.map(|actor| actor.call(Guest::see, ()).get().unwrap());
        assert_eq!((without.0, without.1), (plain, none.clone()));
        assert_eq!((with.0, with.1.as_deref(), with.2.len()), (gpu, Some(ALL), 1));
        // One that is isolated sees what is its own.
        let alone = [isolated!(rt).start(()), isolated!(rt).gpus(2.0).start(()), isolated!(rt).gpus(1.0).start(())];
        let seen = alone.each_ref().map(|actor| actor.call(Guest::see, ()).get().unwrap());
        assert_eq!(seen.each_ref().map(|seen| seen.2.len()), [0, 2, 1]);
        assert!(seen.iter().all(|(_, visible, leased)| visible.as_ref() == Some(&leased.join(","))), "{seen:?}");
        let pids: BTreeSet<u32> = seen.iter().map(|seen| seen.0).chain([plain, gpu, std::process::id()]).collect();
        assert_eq!(pids.len(), 6);
        // All of them are on the lists.
        assert_eq!(ask(&cluster, &["list", "nodes"])[0]["workers"], 5);
        let actors = ask(&cluster, &["list", "actors"]);
        let listed: BTreeSet<u64> =
            actors.as_array().unwrap().iter().map(|actor| actor["pid"].as_u64().unwrap()).collect();
        assert!(seen.iter().all(|seen| listed.contains(&seen.0.into())), "{actors}");
        // And nothing of them is left.
        drop((rt, cluster));
        pids.into_iter().filter(|pid| *pid != std::process::id()).for_each(gone);
    });
}

/// The program speaks ZeroMQ with one crate, the head and the nodes with the other.
#[cfg(feature = "transport-zeromq")]
#[test]
fn processes_with_different_transports_are_one_cluster() {
    const VARIABLE: &str = "OUTRAY_TRANSPORT";
    let ours = std::env::var(VARIABLE).unwrap_or_default();
    let other = if ours == "zeromq" { "omq" } else { "zeromq" };
    let cluster = LocalCluster::builder().nodes(2).env(VARIABLE, other).start().unwrap();
    let rt = cluster.connect().unwrap();
    let theirs = || (task::context().node().to_owned(), std::env::var("OUTRAY_TRANSPORT").unwrap_or_default());
    let on = |node: &str| outray::Strategy::Node { name: node.into(), soft: false };
    for node in cluster.nodes() {
        assert_eq!(rt.task(theirs).strategy(on(node)).submit(()).get(), Ok((node.into(), other.into())));
        // Longer than a message, to the node and back.
        let (long, short) = (vec![3u64; 1 << 19], (0..1_000).map(|n| rt.submit(|n: u64| n + 1, n)).collect::<Vec<_>>());
        let back = rt.task(|v: Vec<u64>| v).strategy(on(node)).submit(long.clone());
        assert_eq!(back.get(), Ok(long));
        assert_eq!(rt.get_all(&short), Ok((1..=1_000).collect()));
    }
}

/// Memory of objects that are no more is kept for the next ones, but not when there is no program left.
#[test]
fn memory_goes_back_when_the_last_program_has_left() {
    let cluster = LocalCluster::start(1).unwrap();
    let memory = || ask(&cluster, &["memory"])[0].clone();
    let rt = cluster.connect().unwrap();
    let array: outray::Array<u8> = vec![1; 32 << 20].into();
    assert_eq!(rt.submit(|array: outray::Array<u8>| array.len(), rt.put(array)).get(), Ok(32 << 20));
    until("it is kept for the next", || memory()["spare_bytes"].as_u64() >= Some(32 << 20));
    drop(rt);
    until("the system has it", || memory()["shared_bytes"] == 0);
}

#[test]
fn a_transport_that_is_none_is_refused_by_name() {
    let error = LocalCluster::builder().env("OUTRAY_TRANSPORT", "pigeon").start().unwrap_err().to_string();
    assert!(error.contains("`pigeon`") && error.contains("`omq`"), "{error}");
}

#[test]
fn objects_go_from_one_process_to_the_other() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).gpus(1).start().unwrap();
        let rt = cluster.connect().unwrap();
        let double = |numbers: Vec<u64>| numbers.into_iter().map(|number| 2 * number).collect::<Vec<_>>();
        for length in [3, 200_000] {
            let guest = isolated!(rt).start(());
            let mut numbers = guest.call(Guest::make, length);
            for _ in 0..3 {
                numbers = rt.submit(double, rt.task(double).gpus(1.0).submit(&numbers));
            }
            drop(guest);
            let numbers = numbers.get().unwrap();
            assert_eq!((numbers.len(), numbers.iter().all(|number| *number == 7 << 6)), (length, true));
        }
        // What waits for a task with a GPU, without one, is not with its worker ahead of it.
        let (begun, end) = (Queue::bounded(&rt, 1).unwrap(), Queue::<u32>::bounded(&rt, 1).unwrap());
        let wait = |begun: Queue<u32>, end: Queue<u32>| {
            begun.put(std::process::id()).unwrap();
            (end.get().unwrap(), std::process::id())
        };
        let first = rt.task(wait).gpus(1.0).submit((begun.clone(), end.clone()));
        let gpu = begun.get().unwrap();
        let next = |(number, pid): (u32, u32)| (number, pid, std::process::id());
        let others: Vec<_> = (0..100).map(|_| rt.submit(next, &first)).collect();
        end.put(5).unwrap();
        for other in rt.get_all(&others).unwrap() {
            assert!(other.0 == 5 && other.1 == gpu && other.2 != gpu, "{other:?}");
        }
    });
}

#[test]
fn processes_that_end_do_not_disturb_results_that_are_being_written() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        for _ in 0..5 {
            let guests: Vec<_> = (0..3).map(|_| isolated!(rt).start(())).collect();
            let pids: Vec<_> = guests.iter().map(|guest| guest.call(Guest::pid, ())).collect();
            rt.get_all(&pids).unwrap();
            drop(guests);
            let large: Vec<_> = (0..50).map(|n| rt.submit(|n: u64| vec![n; 100_000], n)).collect();
            let sums = large.iter().map(|large| rt.submit(|v: Vec<u64>| v.iter().sum::<u64>(), large));
            let sums: Vec<_> = sums.collect();
            assert_eq!(rt.get_all(&sums).unwrap(), (0..50).map(|n| n * 100_000).collect::<Vec<_>>());
        }
    });
}

#[test]
fn an_isolated_actor_that_aborts_takes_nobody_along_and_starts_again_in_a_new_process() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(4.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let (begun, end) = (Queue::bounded(&rt, 1).unwrap(), Queue::<u32>::bounded(&rt, 1).unwrap());
        let wait = |begun: Queue<u32>, end: Queue<u32>| {
            begun.put(std::process::id()).unwrap();
            (end.get().unwrap(), std::process::id(), task::context().attempt())
        };
        let bystander = rt.submit(wait, (begun.clone(), end.clone()));
        let shared = begun.get().unwrap();
        let neighbour = isolated!(rt).start(());
        let guest = isolated!(rt).max_restarts(1).start(());
        let [first, other] = [&guest, &neighbour].map(|actor| actor.call(Guest::pid, ()).get().unwrap());
        assert_eq!(BTreeSet::from([first, other, shared]).len(), 3);
        assert_eq!((guest.call(Guest::count, ()).get(), neighbour.call(Guest::count, ()).get()), (Ok(1), Ok(1)));
        let error = guest.call(Guest::abort, ()).get().unwrap_err();
        assert!(matches!(&error, Error::ActorDied { cause, .. } if cause.contains("signal: 6")), "{error}");
        gone(first);
        until("it runs again", || guest.call(Guest::pid, ()).get().is_ok());
        let second = guest.call(Guest::pid, ()).get().unwrap();
        assert!(![first, other, shared].contains(&second));
        assert_eq!(guest.call(Guest::count, ()).get(), Ok(1), "its constructor has made it");
        // It may not once more.
        assert!(guest.call(Guest::abort, ()).get().is_err());
        until("it is dead", || matches!(guest.ready().get(), Err(Error::ActorDied { .. })));
        gone(second);
        assert_eq!(neighbour.call(Guest::count, ()).get(), Ok(2));
        end.put(9).unwrap();
        assert_eq!(bystander.get(), Ok((9, shared, 1)));
    });
}

#[test]
fn a_panic_starts_an_isolated_actor_again_in_a_new_process_unless_there_are_checkpoints() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let guest = isolated!(rt).max_restarts(2).start(());
        let mut pids = BTreeSet::new();
        for _ in 0..2 {
            assert_eq!(guest.call(Guest::count, ()).get(), Ok(1));
            pids.insert(guest.call(Guest::pid, ()).get().unwrap());
            let error = guest.call(Guest::fail, ()).get().unwrap_err();
            assert!(matches!(&error, Error::Panicked { message, .. } if message == "out of order"), "{error}");
            until("it runs again", || guest.call(Guest::pid, ()).get().is_ok_and(|pid| !pids.contains(&pid)));
        }
        pids.into_iter().for_each(gone);
        // A panic in a shared call costs no state.
        let last = guest.call(Guest::pid, ()).get().unwrap();
        let shared = guest.call(|_: &Guest| -> u32 { panic!("no matter") }, ());
        assert!(matches!(shared.get(), Err(Error::Panicked { .. })));
        assert_eq!(guest.call(Guest::pid, ()).get(), Ok(last));
        assert!(matches!(guest.call(Guest::fail, ()).get(), Err(Error::Panicked { .. })));
        gone(last);
        until("it is dead", || matches!(guest.ready().get(), Err(Error::ActorDied { .. })));
        // One that may not start again says what it died of.
        let timid = isolated!(rt).start(());
        let pid = timid.call(Guest::pid, ()).get().unwrap();
        assert!(matches!(timid.call(Guest::fail, ()).get(), Err(Error::Panicked { .. })));
        gone(pid);
        until("that is known", || {
            let error = timid.call(Guest::pid, ()).get().unwrap_err();
            matches!(&error, Error::ActorDied { cause, .. } if cause.contains("out of order"))
        });
        // Checkpoints are where the actor is.
        let kept = rt.actor_builder(Vec::<u32>::new).isolation(Isolation::Process);
        let kept = kept.checkpoint_every(1).max_restarts(1).start(());
        let pid = |_: &Vec<u32>| std::process::id();
        let before = kept.call(pid, ()).get().unwrap();
        kept.call(Vec::push, 4u32).get().unwrap();
        kept.call(|_: &mut Vec<u32>| -> u32 { panic!("now") }, ()).get().unwrap_err();
        assert_eq!(kept.call(|list: &mut Vec<u32>| list.clone(), ()).get(), Ok(vec![4]));
        assert_eq!(kept.call(pid, ()).get(), Ok(before));
    });
}

#[test]
fn the_process_ends_with_its_actor_and_only_then_are_its_resources_free() {
    /// Whether the one before is there no more.
    struct After(bool);
    impl After {
        fn new(pid: u32) -> Self {
            After(!runs(pid))
        }
        fn came_after(&self) -> bool {
            self.0
        }
    }
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).gpus(1).start().unwrap();
        let rt = cluster.connect().unwrap();
        let start = || isolated!(rt).gpus(1.0).start(());
        let pid = |guest: &Actor<Guest>| guest.call(Guest::pid, ()).get().unwrap();
        let ends: [fn(Actor<Guest>, &Runtime); 4] = [
            |guest, _| guest.kill(),
            |guest, _| {
                // What it has begun is done before.
                let counts: Vec<_> = (0..50).map(|_| guest.call(Guest::count, ())).collect();
                drop(guest);
                assert_eq!(counts.iter().map(|count| count.get().unwrap()).max(), Some(50));
            },
            |guest, rt| {
                let hangs = Queue::bounded(rt, 1).unwrap();
                let (hung, next) = (guest.call(Guest::hang, hangs.clone()), guest.call(Guest::count, ()));
                hangs.get().unwrap();
                guest.kill();
                for error in [hung.get().unwrap_err(), next.get().unwrap_err()] {
                    assert!(matches!(&error, Error::ActorDied { cause, .. } if cause == "it was killed"), "{error}");
                }
            },
            |guest, _| drop(guest.call(Guest::abort, ())),
        ];
        for end in ends {
            let guest = start();
            let pid = pid(&guest);
            let after = rt.actor_builder(After::new).gpus(1.0).start(pid);
            end(guest, &rt);
            assert_eq!(after.call(After::came_after, ()).get(), Ok(true));
            after.kill();
        }
        // A constructor that fails ends it, too.
        let bad = rt.actor_builder(|hangs: Queue<u32>| -> Guest {
            hangs.put(std::process::id()).unwrap();
            panic!("no state")
        });
        let pids = Queue::bounded(&rt, 1).unwrap();
        let bad = bad.isolation(Isolation::Process).gpus(1.0).start(pids.clone());
        let error = bad.call(Guest::pid, ()).get().unwrap_err();
        assert!(matches!(&error, Error::ActorDied { cause, .. } if cause.contains("no state")), "{error}");
        gone(pids.get().unwrap());
        // One that is given up before it is anywhere leaves nothing.
        for _ in 0..5 {
            drop(start());
            start().kill();
        }
        let last = start();
        let last_pid = pid(&last);
        until("only workers that are used are left", || ask(&cluster, &["list", "nodes"])[0]["workers"] == 3);
        drop((pids, last, rt, cluster));
        gone(last_pid);
    });
}

#[test]
fn names_and_programs_that_end_are_as_with_others() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).start().unwrap();
        let (first, second) = (cluster.connect().unwrap(), cluster.connect().unwrap());
        let named = isolated!(first).name("named").start(());
        let pid = named.call(Guest::pid, ()).get().unwrap();
        let found = first
            .submit(|| Runtime::current().get_actor::<Guest>("named").unwrap().call(Guest::pid, ()).get().unwrap(), ());
        assert_eq!(found.get(), Ok(pid));
        let lasting = isolated!(first).name("lasting").max_restarts(1).detached().start(());
        let lasting_pid = lasting.call(Guest::pid, ()).get().unwrap();
        assert!(first.shutdown(Duration::from_secs(30)));
        gone(pid);
        let lasting = second.get_actor::<Guest>("lasting").unwrap();
        assert_eq!(lasting.call(Guest::pid, ()).get(), Ok(lasting_pid));
        assert!(lasting.call(Guest::fail, ()).get().is_err());
        gone(lasting_pid);
        until("it runs again", || lasting.call(Guest::count, ()).get() == Ok(1));
        let lasting_pid = lasting.call(Guest::pid, ()).get().unwrap();
        lasting.kill();
        gone(lasting_pid);
    });
}

#[test]
fn a_local_runtime_has_one_process() {
    let rt = Runtime::local();
    let error = isolated!(rt).try_start(()).unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { .. }), "{error:?}");
    assert!(error.to_string().contains("LocalCluster"), "{error}");
    let dead = isolated!(rt).start(());
    assert!(dead.call(Guest::pid, ()).get().unwrap_err().to_string().contains("one process"));
    let here = rt.actor_builder(Guest::new).isolation(Isolation::Shared).start(());
    assert_eq!(here.call(Guest::pid, ()).get(), Ok(std::process::id()));
}
