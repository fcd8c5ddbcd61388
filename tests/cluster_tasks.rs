//! Tasks and objects on a cluster of real processes.

mod common;

use common::{Scratch, until, watch};
use outray::{
    Array, Bundle, Error, LocalCluster, ObjectRef, PlacementStrategy, Queue, Runtime, Strategy,
    gpu::{GpuRequest, Inventory, NvLink},
    task,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::File,
    io::Write,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

fn add(a: f64, b: f64) -> f64 {
    a + b
}

fn pid() -> u32 {
    std::process::id()
}

#[test]
fn a_task_runs_in_another_process() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    assert_eq!(rt.submit(add, (1.0, 2.0)).get(), Ok(3.0));
    let there = rt.submit(pid, ()).get().unwrap();
    assert_ne!(there, pid());
    assert!(!cluster.pids().contains(&there));
}

#[test]
fn handles_are_dependencies_and_values() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let x = rt.submit(add, (1.0, 2.0));
    let y = rt.submit(add, (&x, 3.0));
    assert_eq!(y.get(), Ok(6.0));
    let v = rt.put(vec![3.0, 4.0]);
    let norm = rt.submit(|v: Arc<Vec<f64>>| v.iter().map(|x| x * x).sum::<f64>().sqrt(), &v);
    assert_eq!(norm.get(), Ok(5.0));
    let many: Vec<ObjectRef<u64>> = (0..100).map(|n| rt.submit(|n: u64| n * n, n)).collect();
    assert_eq!(rt.submit(|all: Vec<u64>| all.iter().sum::<u64>(), &many).get(), Ok(328_350));
}

#[test]
fn large_values_go_through_the_stores() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let big = rt.put(vec![7u8; 5 << 20]);
    let copy = rt.submit(|v: Vec<u8>| v.into_iter().map(|x| x + 1).collect::<Vec<_>>(), &big);
    let sum = rt.submit(|v: Arc<Vec<u8>>| v.iter().map(|x| u64::from(*x)).sum::<u64>(), &copy);
    assert_eq!(sum.get(), Ok(8 * (5 << 20)));
    assert_eq!(copy.get().unwrap().len(), 5 << 20);
}

#[test]
fn large_results_outlive_a_runtime_that_ends() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let results: Vec<_> = (0..6).map(|byte: u8| rt.submit(|byte: u8| vec![byte; 1 << 20], byte)).collect();
    // They are there, and nobody here has wanted to see them.
    let lengths: Vec<_> = results.iter().map(|result| rt.submit(|v: Arc<Vec<u8>>| v.len(), result)).collect();
    assert_eq!(rt.get_all(&lengths), Ok(vec![1 << 20; 6]));
    drop(rt);
    drop(cluster);
    for (byte, result) in (0..).zip(&results) {
        assert_eq!(result.get(), Ok(vec![byte; 1 << 20]));
    }
}

#[test]
fn errors_say_what_they_say_locally() {
    let cluster = LocalCluster::start(1).unwrap();
    let rt = cluster.connect().unwrap();
    let bad = rt.task(|| -> i32 { panic!("no luck") }).name("unlucky").submit(());
    let next = rt.submit(|x: i32| x + 1, &bad);
    match bad.get() {
        Err(Error::Panicked { origin, message }) => {
            assert_eq!((origin.name.as_str(), message.as_str()), ("unlucky", "no luck"));
            assert_eq!(origin.node, cluster.nodes()[0]);
            assert!(origin.location.contains("cluster_tasks.rs"), "{origin}");
        }
        other => panic!("{other:?}"),
    }
    let error = next.get().unwrap_err();
    assert!(matches!(&error, Error::DependencyFailed { .. }), "{error}");
    assert!(matches!(error.root_cause(), Error::Panicked { .. }), "{error}");
    let err = rt.submit(|| Err::<i32, String>("broken".into()), ());
    assert_eq!(err.get(), Ok(Err("broken".into())));
    let error = rt.submit(|x: i32| x, &err).get().unwrap_err();
    assert!(
        matches!(error.root_cause(), Error::DependencyReturnedErr { message, .. } if message == "broken"),
        "{error}"
    );
    let error = rt.task(|| ()).cpus(64.0).submit(()).get().unwrap_err();
    assert!(matches!(&error, Error::Infeasible { reason, .. } if reason.contains("64 CPUs wanted")), "{error}");
}

#[test]
fn tasks_submit_tasks() {
    fn fib(n: u64) -> u64 {
        if n < 2 {
            return n;
        }
        let rt = Runtime::current();
        let (a, b) = (rt.submit(fib, n - 1), rt.submit(fib, n - 2));
        a.get().unwrap() + b.get().unwrap()
    }
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    assert_eq!(rt.submit(fib, 15).get(), Ok(610));
}

#[test]
fn what_runs_on_any_node_is_cancelled_from_any_other() {
    const NEVER: Duration = Duration::from_secs(3600);
    /// Says where it runs, and that it has been told to stop.
    fn child(says: Queue<String>) {
        says.put(task::context().node().to_owned()).unwrap();
        while !task::context().is_cancelled() {
            std::thread::yield_now();
        }
        says.put("told".into()).unwrap();
    }
    fn on(name: &str) -> Strategy {
        Strategy::Node { name: name.into(), soft: false }
    }
    fn parent(says: Queue<String>, there: Option<String>, deadline: Duration) -> ObjectRef<()> {
        let child = Runtime::current().task(child).deadline(deadline);
        there.iter().fold(child, |child, there| child.strategy(on(there))).submit(says)
    }
    watch(|| {
        // One CPU for whoever waits to be told, and one for the queue.
        let cluster = LocalCluster::builder().nodes(3).cpus(2.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let says = Queue::bounded(&rt, 4).unwrap();
        let nodes = cluster.nodes();
        let ends = |task: ObjectRef<()>, node: &str, deadline: Duration| {
            assert_eq!(says.get().as_deref(), Ok(node));
            let error = match deadline {
                NEVER => {
                    task.cancel();
                    task.get().unwrap_err()
                }
                _ => task.get().unwrap_err(),
            };
            assert!(error.is_cancelled() == (deadline == NEVER), "{error}");
            assert!(error.is_cancelled() || matches!(error, Error::DeadlineExceeded { .. }), "{error}");
            assert_eq!(says.get().as_deref(), Ok("told"));
        };
        for node in &nodes {
            ends(rt.task(child).strategy(on(node)).submit(says.clone()), node, NEVER);
        }
        // What a task on one node has submitted on another, or keeps.
        for (here, there) in [(1, Some(2)), (2, Some(0)), (1, Some(1)), (2, None)] {
            let name = there.map(|there: usize| nodes[there].to_owned());
            let parent = rt.task(parent).strategy(on(nodes[here])).submit((says.clone(), name, NEVER));
            ends(parent.get().unwrap(), nodes[there.unwrap_or(here)], NEVER);
        }
        let soon = Duration::from_secs(1);
        ends(rt.task(child).strategy(on(nodes[2])).deadline(soon).submit(says.clone()), nodes[2], soon);
        let parent = rt.task(parent).strategy(on(nodes[1])).submit((says.clone(), Some(nodes[2].to_owned()), soon));
        ends(parent.get().unwrap(), nodes[2], soon);
    });
}

#[test]
fn a_node_without_cpus_runs_no_task_that_takes_one_whoever_submits_it() {
    fn node() -> String {
        task::context().node().to_owned()
    }
    fn nodes_of_children() -> Vec<String> {
        let rt = Runtime::current();
        let children: Vec<_> = (0..10).map(|_| rt.submit(node, ())).collect();
        rt.get_all(&children).unwrap()
    }
    watch(|| {
        let mut cluster = LocalCluster::builder().nodes(1).cpus(0.0).start().unwrap();
        cluster.add_node_of(&LocalCluster::builder().cpus(1.0)).unwrap();
        let rt = cluster.connect().unwrap();
        let (none, one) = (cluster.nodes()[0].to_owned(), cluster.nodes()[1]);
        let there = Strategy::Node { name: none.clone(), soft: false };
        let own: Vec<_> = (0..10).map(|_| rt.submit(node, ())).collect();
        assert_eq!(rt.get_all(&own).unwrap(), [one; 10]);
        assert_eq!(rt.task(node).cpus(0.0).strategy(there.clone()).submit(()).get(), Ok(none.clone()));
        let children = rt.task(nodes_of_children).cpus(0.0).strategy(there.clone()).submit(());
        assert_eq!(children.get().unwrap(), [one; 10]);
        let error = rt.task(node).strategy(there).submit(()).get().unwrap_err();
        assert!(matches!(error, Error::Infeasible { .. }), "{error}");
    });
}

#[test]
fn stats_are_those_of_all_nodes() {
    fn child(n: u64) -> u64 {
        assert_ne!(n, 7, "planned");
        n
    }
    fn parent(children: u64) -> usize {
        let rt = Runtime::current();
        let children: Vec<_> = (0..children).map(|n| rt.submit(child, n)).collect();
        children.iter().filter(|child| child.get().is_ok()).count()
    }
    watch(|| {
        let cluster = LocalCluster::builder().nodes(3).cpus(2.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let on = |node: &str| Strategy::Node { name: node.to_owned(), soft: false };
        let nodes = cluster.nodes().repeat(4);
        let parents: Vec<_> = nodes.iter().map(|node| rt.task(parent).strategy(on(node)).submit(10)).collect();
        assert_eq!(rt.get_all(&parents).unwrap(), [9; 12]);
        let counts = || {
            let stats = rt.stats();
            (stats.submitted, stats.succeeded, stats.failed)
        };
        until("all are counted", || counts() == (12 + 120, 12 + 108, 12));
        until("all are free", || (rt.stats().cpus_free - 6.0).abs() < 1e-9);
        assert!((rt.stats().cpus - 6.0).abs() < 1e-9, "{}", rt.stats());
    });
}

#[test]
fn retries_and_options() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let flaky = || match task::context().attempt() {
        1 => Err("not yet".to_owned()),
        attempt => Ok(attempt),
    };
    assert_eq!(rt.task(flaky).retry_errors(2).submit(()).get(), Ok(Ok(2)));
    let (quotient, rest) = rt.task(|a: i32, b: i32| (a / b, a % b)).submit_split((7, 2));
    assert_eq!((quotient.get(), rest.get()), (Ok(3), Ok(1)));
    let squares = rt.map(|x: u64| x * x, 0..1000).collect().unwrap();
    assert_eq!(squares[31], 961);
}

/// Leaves a note, and waits for that of another worker, as a long computation would: its node does not know that it waits.
fn meet(notes: &str) -> bool {
    let mut file = File::options().create(true).append(true).open(notes).unwrap();
    writeln!(file, "{}", pid()).unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    while std::fs::read_to_string(notes).unwrap().lines().collect::<BTreeSet<_>>().len() < 2 {
        if Instant::now() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn long_tasks_after_many_short_ones_do_not_wait_for_each_other_while_another_node_is_idle() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let shared = rt.put(vec![0u8; 100]);
    for has_argument in [false, true] {
        // From these the nodes take it that tasks are short, and hand many to their workers at a time.
        let short: Vec<_> = (0..20_000).map(|n: u64| rt.submit(|n: u64| n, n)).collect();
        assert!(short.iter().enumerate().all(|(at, n)| n.get() == Ok(at as u64)));
        let notes = Scratch::new("notes");
        let path = notes.0.to_str().unwrap().to_owned();
        let long: Vec<_> = (0..24)
            .map(|_| match has_argument {
                false => rt.submit(|path: String| meet(&path), path.clone()),
                true => rt.submit(|path: String, _: Arc<Vec<u8>>| meet(&path), (path.clone(), &shared)),
            })
            .collect();
        assert!(long.iter().all(|met| met.get() == Ok(true)), "all of them were on one node");
    }
}

#[test]
fn what_ran_on_a_killed_node_runs_again_and_what_it_held_is_made_again() {
    fn slow(n: u64) -> Vec<u64> {
        std::thread::sleep(std::time::Duration::from_millis(20));
        vec![n; 20_000] // too large to travel inline
    }
    let mut cluster = LocalCluster::start(3).unwrap();
    let rt = cluster.connect().unwrap();
    let made: Vec<_> = (0..30).map(|n| rt.submit(slow, n)).collect();
    rt.wait(&made, 10, None);
    cluster.kill_node(1);
    let sums: Vec<_> = made.iter().map(|v| rt.submit(|v: Arc<Vec<u64>>| v.iter().sum::<u64>(), v)).collect();
    let expected: Vec<u64> = (0..30).map(|n| n * 20_000).collect();
    assert_eq!(rt.get_all(&sums).unwrap(), expected);
}

#[test]
fn what_a_killed_node_held_is_made_again_for_who_gets_it() {
    let mut cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let make = |n: u64| vec![n; 20_000]; // too large to travel inline
    let made: Vec<_> = (0..4).map(|n| rt.task(make).strategy(Strategy::Spread).submit(n)).collect();
    let lens: Vec<_> = made.iter().map(|made| rt.submit(|v: Arc<Vec<u64>>| v.len(), made)).collect();
    assert_eq!(rt.get_all(&lens).unwrap(), [20_000; 4]);
    cluster.kill_node(1);
    for (n, made) in (0..).zip(&made) {
        assert_eq!(*made.get_shared().unwrap(), make(n));
    }
}

#[test]
fn small_results_that_stayed_on_a_killed_node_are_made_again() {
    let mut cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let start = Queue::<u64>::bounded(&rt, 1).unwrap();
    let wait = |start: Queue<u64>| (start.get().unwrap(), task::context().node().to_owned());
    let begin = rt.submit(wait, start.clone());
    let first = |begin: (u64, String)| vec![begin.0; 1_000];
    let next = |numbers: Arc<Vec<u64>>| numbers.iter().map(|number| number + 1).collect::<Vec<_>>();
    // Each is there when the one before it ends, on the same node; so no value goes to the program but those that it gets.
    let mut chain = vec![rt.submit(first, &begin)];
    for _ in 1..50 {
        chain.extend(chain.last().map(|last| rt.submit(next, last)));
    }
    start.put(7).unwrap();
    assert_eq!(*chain[49].get_shared().unwrap(), vec![56; 1_000]);
    let (_, node) = begin.get().unwrap();
    let at = cluster.nodes().iter().position(|name| *name == node).unwrap();
    cluster.kill_node(at);
    for (number, link) in (7..).zip(&chain) {
        assert_eq!(*link.get_shared().unwrap(), vec![number; 1_000]);
    }
}

#[test]
fn small_results_of_a_program_that_has_not_looked_at_those_before_are_there_when_it_does() {
    fn make(n: u64) -> Vec<u64> {
        vec![n; 1_000]
    }
    fn sum(numbers: Arc<Vec<u64>>) -> u64 {
        numbers.iter().sum()
    }
    let mut cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let spread = rt.task(make).strategy(Strategy::Spread);
    // It looks at none of these: after a while they stay where they were made.
    for round in 0..10 {
        let made: Vec<_> = (0..50).map(|n| spread.submit(50 * round + n)).collect();
        let sums: Vec<_> = made.iter().map(|made| rt.submit(sum, made)).collect();
        for (n, sum) in (50 * round..).zip(&sums) {
            assert_eq!(sum.get(), Ok(1_000 * n));
        }
    }
    let made: Vec<_> = (0..40).map(|n| spread.submit(n)).collect();
    let sums: Vec<_> = made.iter().map(|made| rt.submit(sum, made)).collect();
    assert!(sums.iter().zip(0..).all(|(sum, n)| sum.get() == Ok(1_000 * n)));
    assert!((0..20).all(|n| *made[n as usize].get_shared().unwrap() == make(n)));
    cluster.kill_node(1);
    assert!((0..40).all(|n| *made[n as usize].get_shared().unwrap() == make(n)));
}

/// More than finds room in the memory that a worker shares with its node.
#[test]
fn small_results_that_stayed_are_there_without_their_worker_however_they_are_got() {
    const MADE: u64 = 2_700;
    fn make(n: u64, log: String) -> Vec<u64> {
        File::options().append(true).open(log).unwrap().write_all(&[1]).unwrap();
        vec![n; 1_000]
    }
    fn abort() {
        std::process::abort()
    }
    fn last(numbers: Arc<Vec<u64>>) -> u64 {
        numbers[999]
    }
    let log = Scratch::new("made");
    File::create(&log.0).unwrap();
    let name = log.0.to_str().unwrap().to_owned();
    let cluster = LocalCluster::start(1).unwrap();
    let rt = cluster.connect().unwrap();
    let run = |count: u64| {
        let made: Vec<_> = (0..count).map(|n| rt.submit(make, (n, name.clone()))).collect();
        let lasts: Vec<_> = made.iter().map(|made| rt.submit(last, made)).collect();
        assert!(lasts.iter().zip(0..).all(|(last, n)| last.get() == Ok(n)));
        made
    };
    drop(run(300)); // nobody looks at these
    let made = run(MADE);
    let killed = rt.task(abort).retries(0).submit(());
    assert!(killed.get().is_err());
    let is_right = |n: usize| *made[n].get_shared().unwrap() == vec![n as u64; 1_000];
    assert!((0..500).all(is_right) && (700..1_000).rev().all(is_right) && (1_000..1_200).step_by(3).all(is_right));
    let all = rt.get_all(&made[1_100..2_000]).unwrap();
    assert!(all.into_iter().zip(1_100..).all(|(value, n)| value == vec![n; 1_000]));
    assert_eq!(rt.wait(&made[1_900..], MADE as usize, None).1.len(), 0);
    assert!((0..MADE as usize).all(is_right));
    assert_eq!(log.0.metadata().unwrap().len(), 300 + MADE, "none was made again");
}

#[test]
fn the_parts_of_a_result_are_objects_of_their_own() {
    fn halves(n: usize) -> (Vec<u32>, Vec<u32>, String) {
        (vec![1; n], vec![2; n], task::context().node().to_owned())
    }
    fn sum(part: Arc<Vec<u32>>) -> u32 {
        part.iter().sum()
    }
    let mut cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let spread = rt.task(halves).strategy(Strategy::Spread);
    // Nobody asks for the large parts: they stay where they were made.
    let split: Vec<_> = (0..4).map(|_| spread.submit_split(50_000)).collect();
    let nodes: std::collections::BTreeSet<_> = split.iter().map(|(.., node)| node.get().unwrap()).collect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(rt.submit(sum, &split[0].0).get(), Ok(50_000));
    cluster.kill_node(1);
    for (ones, twos, _) in &split {
        assert_eq!(rt.submit(sum, ones).get(), Ok(50_000));
        assert_eq!(twos.get_shared().map(sum), Ok(100_000));
    }
}

#[test]
fn handles_inside_values_stay_good() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    // Made in a worker, and returned inside a value: the worker is its owner.
    let inner = rt.submit(
        |n: u64| {
            let rt = Runtime::current();
            (0..n).map(|i| rt.submit(|i: u64| i * i, i)).collect::<Vec<ObjectRef<u64>>>()
        },
        10,
    );
    let handles = inner.get().unwrap();
    drop(inner);
    let sum = rt.submit(|all: Vec<u64>| all.iter().sum::<u64>(), &handles);
    assert_eq!(sum.get(), Ok(285));
    assert_eq!(handles[3].get(), Ok(9));
    // Put here, passed inside a value, and passed on by the task.
    let put = rt.put(vec![1u64, 2, 3]);
    let pass = |boxed: Vec<ObjectRef<Vec<u64>>>| boxed;
    let back = rt.submit(pass, vec![put.clone()]).get();
    drop(put);
    assert!(back.is_ok());
}

#[test]
fn options_and_contexts_are_those_of_the_task() {
    let cluster =
        LocalCluster::builder().nodes(2).cpus(2.0).gpus(2).resource("licence", 1.0).label("zone", "a").start();
    let cluster = cluster.unwrap();
    let rt = cluster.connect().unwrap();
    let here = || (task::context().name().to_owned(), task::context().node().to_owned(), task::context().gpus().len());
    let (name, node, gpus) =
        rt.task(here).name("me").gpus(1.5 + 0.5).cpus(2.0).resource("licence", 1.0).submit(()).get().unwrap();
    assert_eq!((name.as_str(), gpus), ("me", 2));
    assert!(cluster.nodes().contains(&node.as_str()), "{node}");
    for wanted in cluster.nodes() {
        let there = outray::Strategy::Node { name: wanted.to_owned(), soft: false };
        let node = rt.task(|| task::context().node().to_owned()).strategy(there).submit(()).get().unwrap();
        assert_eq!(node, wanted);
    }
    let required = vec![("zone".to_owned(), "b".to_owned())];
    let error = rt.task(|| ()).strategy(outray::Strategy::Labels { required }).submit(()).get().unwrap_err();
    assert!(error.to_string().contains("zone=b"), "{error}");
}

#[test]
fn gpus_are_chosen_among_the_nodes_by_kind_and_the_leases_reach_the_worker() {
    const GIB: u64 = 1 << 30;
    let small = Inventory::uniform(4, "NVIDIA L4", 24 * GIB, (8, 9));
    let large = Inventory::uniform(2, "NVIDIA H200", 141 * GIB, (9, 0)).nvlink(&[(0, 1)]);
    let mut cluster = LocalCluster::builder().nodes(1).cpus(2.0).gpu_inventory(small).start().unwrap();
    let second = cluster.add_node_with_gpus(large).unwrap().to_owned();
    let first = cluster.nodes()[0].to_owned();
    let rt = cluster.connect().unwrap();
    let leased = || {
        let context = task::context();
        let leases = context.gpu_leases().into_iter().map(|lease| (lease.device.uuid.clone(), lease.bytes));
        (context.node().to_owned(), leases.collect::<Vec<_>>())
    };
    for (request, expected) in [
        (GpuRequest::whole(3), (&first, vec![24 * GIB; 3])),
        (GpuRequest::share(250).named("h200"), (&second, vec![141 * GIB / 4])),
        (GpuRequest::whole(1).capability(9, 0).memory(10 * GIB), (&second, vec![10 * GIB])),
        (GpuRequest::bytes(30 * GIB), (&second, vec![30 * GIB])),
        (GpuRequest::whole(2).nvlink(NvLink::Require), (&second, vec![141 * GIB; 2])),
    ] {
        let words = request.to_string();
        let (node, leases) = rt.task(leased).gpu(request).submit(()).get().unwrap();
        let uuids: Vec<_> = leases.iter().map(|(uuid, _)| uuid.as_str()).collect();
        assert_eq!(uuids, ["SIM-0", "SIM-1", "SIM-2"][..leases.len()], "{words}");
        assert_eq!((&node, leases.iter().map(|(_, bytes)| *bytes).collect()), expected, "{words}");
    }
    assert!(rt.submit(leased, ()).get().unwrap().1.is_empty(), "who asks for none has none");
    // No node has it: the nearest is named, with what it lacks.
    let never = |request: GpuRequest| rt.task(|| ()).gpu(request).submit(()).get().unwrap_err().to_string();
    let why = never(GpuRequest::whole(3).named("H200"));
    assert!(why.contains("3 GPUs named \"H200\" wanted, 2 there (of 2 devices, 2 named \"H200\")"), "{why}");
    let why = never(GpuRequest::whole(1).named("L4").memory(200 * GIB));
    let nearest = "1 GPUs with 200 GiB each named \"L4\" wanted, 0 there (of 4 devices, 4 named \"L4\", 0 with 200 GiB";
    assert!(why.contains("the nearest is") && why.contains(nearest), "{why}");
    // A bundle has devices, and those in it take from them.
    let bundles = [Bundle::new().gpu(GpuRequest::whole(1).named("L4")), Bundle::new().gpus(0.5).gpu_memory(50 * GIB)];
    let group = rt.placement_group(&bundles, PlacementStrategy::Spread).unwrap();
    let inside = |bundle, request| rt.task(leased).cpus(0.0).gpu(request).placement_group(&group, bundle);
    let here = inside(0, GpuRequest::bytes(20 * GIB)).submit(()).get().unwrap();
    assert_eq!((&here.0, here.1[0].1), (&first, 20 * GIB));
    let there = inside(1, GpuRequest::share(250)).submit(()).get().unwrap();
    assert_eq!((&there.0, there.1[0].1), (&second, 25 * GIB), "half of what the bundle has");
    for (bundle, request) in [(0, GpuRequest::bytes(30 * GIB)), (0, GpuRequest::whole(2)), (1, GpuRequest::share(501))]
    {
        let error = inside(bundle, request).submit(()).get().unwrap_err();
        assert!(matches!(&error, Error::Infeasible { reason, .. } if reason.contains("is too small")), "{error}");
    }
    // Actors hold their leases; one more than fit waits, and says for what.
    drop(group);
    struct Holder;
    let holder = || Holder;
    let hold = || rt.actor_builder(holder).gpu(GpuRequest::whole(1).named("H200")).start(());
    let (one, two) = (hold(), hold());
    assert!(one.ready().get().is_ok() && two.ready().get().is_ok());
    let third = hold();
    assert!(!third.ready().is_ready());
    one.kill();
    assert!(third.ready().get().is_ok());
}

#[test]
fn a_large_object_goes_from_node_to_node_and_arrays_are_read_where_they_lie() {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    let on = |node: usize| Strategy::Node { name: cluster.nodes()[node].to_owned(), soft: false };
    let make = |n: u64| Array::from((0..n).collect::<Vec<u64>>());
    let made = rt.task(make).strategy(on(0)).submit(2 << 20);
    let sum =
        |array: Array<u64>| (array.iter().sum::<u64>(), array.as_ptr().addr() % 64, task::context().node().to_owned());
    for node in [1, 0, 1] {
        let (sum, offset, there) = rt.task(sum).strategy(on(node)).submit(&made).get().unwrap();
        assert_eq!((sum, offset, there.as_str()), ((0..2 << 20).sum(), 0, cluster.nodes()[node]));
    }
    let here = made.get_shared().unwrap();
    assert_eq!((here.len(), here.as_ptr().addr() % 64), (2 << 20, 0));
    let put = rt.put(Array::from(vec![1.5f64; 1 << 20]));
    assert_eq!(rt.submit(|array: Array<f64>| array.iter().sum::<f64>(), &put).get(), Ok(1.5 * (1 << 20) as f64));
}

#[test]
fn objects_beyond_the_budget_go_to_disk_and_come_back() {
    const SIZE: usize = 4 << 20;
    let cluster = LocalCluster::builder().nodes(1).store(6 * SIZE as u64).start().unwrap();
    let rt = cluster.connect().unwrap();
    let make = |n: u8| Array::from(vec![n; SIZE]);
    let all: Vec<_> = (0..20).map(|n| rt.submit(make, n)).collect();
    let first = |array: Array<u8>| u64::from(array[0]) * array.len() as u64;
    let sums: Vec<_> = all.iter().map(|array| rt.submit(first, array)).collect();
    let expected: Vec<u64> = (0..20).map(|n| n * SIZE as u64).collect();
    assert_eq!(rt.get_all(&sums).unwrap(), expected);
    let error = rt.submit(|n: u8| Array::from(vec![n; 7 * SIZE]), 1).get().unwrap_err();
    assert!(error.to_string().contains("budget"), "{error}");
}

#[test]
fn nodes_that_want_the_same_large_object_get_it_from_each_other() {
    fn sent(cluster: &LocalCluster) -> Vec<u64> {
        let mut list = Command::new(env!("CARGO_BIN_EXE_outray"));
        list.args(["list", "nodes", "--json", "--address", cluster.address()]);
        let answer = list.env("OUTRAY_KEY_FILE", cluster.key_file()).output().unwrap();
        let nodes: Vec<Value> = serde_json::from_slice(&answer.stdout).unwrap();
        nodes.iter().map(|node| node["sent_bytes"].as_u64().unwrap()).collect()
    }
    const SIZE: u64 = 32 << 20;
    let cluster = LocalCluster::start(8).unwrap();
    let rt = cluster.connect().unwrap();
    let object = rt.put(Array::from(vec![7u8; SIZE as usize]));
    // It goes to a node with the first task that wants it, which that node keeps.
    let last = |array: Array<u8>| array.last().copied();
    assert_eq!(rt.submit(last, &object).get(), Ok(Some(7)));
    let on = |name: &&str| Strategy::Node { name: (*name).to_owned(), soft: false };
    let all: Vec<_> = cluster.nodes().iter().map(|node| rt.task(last).strategy(on(node)).submit(&object)).collect();
    assert!(rt.get_all(&all).unwrap().iter().all(|value| *value == Some(7)));
    let sent = sent(&cluster);
    let copies = |bytes: u64| bytes / SIZE; // what is serialized is a little longer
    assert_eq!(copies(sent.iter().sum()), 7, "each node has got it once: {sent:?}");
    assert!(
        sent.iter().all(|bytes| copies(*bytes) <= 2 + u64::from(7u64.ilog2())),
        "one has sent it too often: {sent:?}"
    );
}

#[test]
fn placement_groups_are_set_aside_on_nodes() {
    use outray::{Bundle, PlacementStrategy};
    let cluster = LocalCluster::builder().nodes(2).cpus(2.0).start().unwrap();
    let rt = cluster.connect().unwrap();
    let bundles = [Bundle::new().cpus(2.0), Bundle::new().cpus(1.0)];
    let spread = rt.placement_group(&bundles, PlacementStrategy::StrictSpread).unwrap();
    let node = || task::context().node().to_owned();
    let places: Vec<String> =
        (0..2).map(|bundle| rt.task(node).placement_group(&spread, bundle).submit(()).get().unwrap()).collect();
    assert_ne!(places[0], places[1]);
    // What is left is one CPU.
    let other = rt.submit(node, ()).get().unwrap();
    assert_eq!(other, places[1]);
    drop(spread);
    let packed = rt.placement_group(&[Bundle::new(), Bundle::new()], PlacementStrategy::StrictPack).unwrap();
    assert_eq!(packed.bundles(), 2);
}

#[test]
fn explain_says_where_a_task_is_and_what_it_waits_for() {
    use outray::Queue;
    let cluster = LocalCluster::start(1).unwrap();
    let rt = cluster.connect().unwrap();
    let (begun, end) = (Queue::bounded(&rt, 1).unwrap(), Queue::bounded(&rt, 1).unwrap());
    let hold = |begun: Queue<u8>, end: Queue<u8>| {
        begun.put(1).unwrap();
        end.get().unwrap()
    };
    let first = rt.task(hold).name("holder").submit((begun.clone(), end.clone()));
    assert_eq!(begun.get(), Ok(1));
    let next = rt.task(|_: u8| ()).name("next").submit(&first);
    let said = rt.explain(&next).to_string();
    let runs = format!("on node {} its attempt 1 runs", cluster.nodes()[0]);
    assert!(said.contains("next") && said.contains("holder") && said.contains(&runs), "{said}");
    end.put(1).unwrap();
    next.get().unwrap();
}
