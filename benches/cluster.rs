//! What a cluster on this machine costs: two nodes of one CPU each, in processes of their own, over encrypted
//! loopback links. `cargo bench --features cluster --bench cluster [-- ROW]`; benches/README.md has the table.

use outray::{Array, LocalCluster, ObjectRef, Runtime, Strategy, task};
use std::{
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

const LARGE: usize = 100 << 20;

fn nothing() {}

struct Echo;

impl Echo {
    fn new() -> Self {
        Echo
    }
    fn echo(&self, n: u64) -> u64 {
        n
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The times of so many round trips, after some to warm up.
fn trips(count: usize, mut trip: impl FnMut()) -> Vec<Duration> {
    (0..count + count / 10)
        .map(|_| {
            let started = Instant::now();
            trip();
            started.elapsed()
        })
        .skip(count / 10)
        .collect()
}

/// One row. `benches/compare/ray` reads it.
fn say(row: &str, value: f64, unit: &str, note: &str) {
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    println!("{row:<17}{value:>12.digits$} {unit:<5} {note}");
}

fn gigabytes(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9
}

fn per_second(count: usize, work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    count as f64 / started.elapsed().as_secs_f64()
}

fn tasks(rt: &Runtime) {
    const COUNT: usize = 50_000;
    let run = || {
        let all: Vec<_> = (0..COUNT).map(|_| rt.submit(nothing, ())).collect();
        rt.get_all(&all).expect("they run");
    };
    run();
    say("tasks", per_second(COUNT, run), "/s", &format!("submit {COUNT} and get all"));
}

fn round_trip(rt: &Runtime) {
    let times = trips(2_000, || rt.submit(nothing, ()).get().expect("it runs"));
    say("round_trip", median(times).as_secs_f64() * 1e6, "us", "p50, one task");
}

fn actor(rt: &Runtime) {
    const COUNT: usize = 50_000;
    let echo = rt.actor(Echo::new, ());
    let times = trips(2_000, || {
        echo.call(Echo::echo, 1u64).get().expect("it runs");
    });
    say("actor_round_trip", median(times).as_secs_f64() * 1e6, "us", "p50, one call");
    let run = || {
        let all: Vec<_> = (0..COUNT as u64).map(|n| echo.call(Echo::echo, n)).collect();
        rt.get_all(&all).expect("they run");
    };
    run();
    say("actor_pipelined", per_second(COUNT, run), "/s", &format!("{COUNT} calls"));
}

fn tree(rt: &Runtime) {
    const LEAVES: u64 = 1_024;
    let run = || {
        let started = Instant::now();
        let leaves = (0..LEAVES).map(|n| rt.submit(|n: u64| vec![n as f64; 1_024], n)).collect();
        let add = |a: Arc<Vec<f64>>, b: Arc<Vec<f64>>| a.iter().zip(&*b).map(|(a, b)| a + b).collect::<Vec<_>>();
        let mut layer: Vec<outray::ObjectRef<Vec<f64>>> = leaves;
        while layer.len() > 1 {
            layer = layer.chunks(2).map(|pair| rt.submit(add, (&pair[0], &pair[1]))).collect();
        }
        let sum = layer[0].get().expect("it runs");
        assert_eq!(sum[0], (LEAVES * (LEAVES - 1) / 2) as f64);
        started.elapsed()
    };
    run();
    let note = format!("{LEAVES} arrays of 8 KiB in {} tasks, median of five", 2 * LEAVES - 1);
    say("tree", median((0..5).map(|_| run()).collect()).as_secs_f64() * 1e3, "ms", &note);
}

fn chain(rt: &Runtime) {
    const LINKS: usize = 1_000;
    let run = || {
        let started = Instant::now();
        let mut link = rt.submit(|| 0u64, ());
        for _ in 1..LINKS {
            link = rt.submit(|n: u64| n + 1, link);
        }
        assert_eq!(link.get(), Ok(LINKS as u64 - 1));
        started.elapsed()
    };
    run();
    let took = median((0..5).map(|_| run()).collect());
    say("chain", took.as_secs_f64() * 1e3, "ms", &format!("{LINKS} dependent tasks, median of five"));
}

/// A task that takes a `Vec` copies it out of the store; an `Array` is read there.
fn vectors(rt: &Runtime) {
    let length = |v: Arc<Vec<u8>>| v.len();
    for row in ["vec_put_cold", "vec_put"] {
        let value = vec![1u8; LARGE];
        let started = Instant::now();
        let object = rt.put(value);
        assert_eq!(rt.submit(length, &object).get(), Ok(LARGE));
        let took = started.elapsed();
        say(row, gigabytes(LARGE, took), "GB/s", "100 MiB as a Vec<u8>, put and used by a task");
    }
    let there = rt.submit(|| vec![1u8; LARGE], ());
    rt.submit(length, &there).get().expect("it runs");
    let started = Instant::now();
    assert_eq!(there.get_shared().map(|v| v.len()), Ok(LARGE));
    say("vec_get", gigabytes(LARGE, started.elapsed()), "GB/s", "100 MiB as a Vec<u8>, to the driver");
}

fn last(array: Array<u8>) -> u8 {
    array.last().copied().unwrap_or_default()
}

fn make(length: usize, value: u8) -> Array<u8> {
    vec![value; length].into()
}

fn on(node: &str) -> Strategy {
    Strategy::Node { name: node.into(), soft: false }
}

fn arrays(rt: &Runtime, cluster: &LocalCluster) {
    let nodes = cluster.nodes();
    let (source, mut target) = (vec![1u8; LARGE], vec![0u8; LARGE]);
    target.copy_from_slice(&source);
    let copies = trips(5, || std::hint::black_box(&mut target).copy_from_slice(std::hint::black_box(&source)));
    say("memcpy", gigabytes(LARGE, median(copies)), "GB/s", "100 MiB, to memory that is there");

    let array: Array<u8> = source.into();
    let put = || {
        let started = Instant::now();
        assert_eq!(rt.submit(last, rt.put(array.clone())).get(), Ok(1));
        started.elapsed()
    };
    say("put_cold", gigabytes(LARGE, put()), "GB/s", "100 MiB array, put and used by a task, the first");
    let puts = (0..5).map(|_| put()).collect();
    say("put", gigabytes(LARGE, median(puts)), "GB/s", "100 MiB array, put and used by a task");

    // The driver's own node, and another; what is made is there when a task there has seen it.
    let home = rt.submit(|| task::context().node().to_owned(), ()).get().expect("it runs");
    let other = *nodes.iter().find(|node| **node != home).expect("there are two");
    let made_at_home = |length: usize, n: u8| {
        let made = rt.task(make).strategy(on(&home)).submit((length, n));
        assert_eq!(rt.task(last).strategy(on(&home)).submit(&made).get(), Ok(n));
        made
    };
    let get = |n| {
        let made = made_at_home(1 << 30, n);
        let started = Instant::now();
        let array = made.get().expect("it runs");
        let took = started.elapsed();
        assert_eq!(last(array), n);
        took
    };
    say("get", median((1..=3).map(get).collect()).as_secs_f64() * 1e6, "us", "1 GiB array, made on the same machine");

    let go = |n| {
        let made = made_at_home(LARGE, n);
        let started = Instant::now();
        assert_eq!(rt.task(last).strategy(on(other)).submit(&made).get(), Ok(n));
        started.elapsed()
    };
    go(0);
    let times = (1..=5).map(go).collect();
    say("node_to_node", gigabytes(LARGE, median(times)), "GB/s", "100 MiB array, to a task on the other node");
}

/// Bytes of objects that each node has sent to others.
fn sent(cluster: &LocalCluster) -> Vec<u64> {
    let mut list = Command::new(env!("CARGO_BIN_EXE_outray"));
    list.args(["list", "nodes", "--json", "--address", cluster.address()]);
    let answer = list.env("OUTRAY_KEY_FILE", cluster.key_file()).output().expect("it is there");
    let nodes: Vec<serde_json::Value> = serde_json::from_slice(&answer.stdout).expect("a list");
    nodes.iter().map(|node| node["sent_bytes"].as_u64().expect("a number")).collect()
}

/// All nodes want the same object at once.
fn broadcast() {
    const SIZE: usize = 64 << 20;
    for count in [2, 4, 8] {
        let cluster = LocalCluster::start(count).expect("a cluster");
        let rt = cluster.connect().expect("a runtime");
        let to_all = |object: &ObjectRef<Array<u8>>| {
            let send = |node: &&str| rt.task(last).strategy(on(node)).submit(object);
            let all: Vec<_> = cluster.nodes().iter().map(send).collect();
            rt.get_all(&all).expect("they run");
        };
        to_all(&rt.put(make(1, 1))); // from here on there are workers
        let object = rt.put(make(SIZE, 1));
        rt.submit(last, &object).get().expect("it runs"); // it is on a node now, and not on all
        let before: u64 = sent(&cluster).iter().sum();
        let started = Instant::now();
        to_all(&object);
        let took = started.elapsed();
        let sent = sent(&cluster);
        let copies = |bytes: u64| bytes as f64 / SIZE as f64;
        let note = format!(
            "64 MiB array to {count} nodes; the busiest sent {:.1} copies, all together {:.1}",
            copies(sent.iter().copied().max().unwrap_or_default()),
            copies(sent.iter().sum::<u64>() - before),
        );
        say(&format!("broadcast_{count}"), took.as_secs_f64() * 1e3, "ms", &note);
    }
}

/// The memory of some processes that they do not share, and their part of what they do, in MiB.
fn proportional(pids: &[u32]) -> f64 {
    let of = |pid: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        pss.and_then(|pss| pss.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or_default() / 1024.0
    };
    pids.iter().map(of).sum()
}

/// One line of the output, or a few.
type Row = fn(&Runtime, &LocalCluster);

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str()));
    if is_wanted("start") {
        let started = Instant::now();
        let cluster = LocalCluster::start(1).expect("a cluster");
        let rt = cluster.connect().expect("a runtime");
        rt.submit(nothing, ()).get().expect("it runs");
        say("start", started.elapsed().as_secs_f64() * 1e3, "ms", "a head and a node, to the first result");
    }
    if is_wanted("broadcast") {
        broadcast();
    }
    let cluster = LocalCluster::start(2).expect("a cluster");
    if is_wanted("idle") {
        say("idle", proportional(&cluster.pids()), "MiB", "PSS of a head and two nodes");
    }
    let rt = cluster.connect().expect("a runtime");
    let rows: [(&str, Row); 7] = [
        ("tasks", |rt, _| tasks(rt)),
        ("round_trip", |rt, _| round_trip(rt)),
        ("actor", |rt, _| actor(rt)),
        ("tree", |rt, _| tree(rt)),
        ("chain", |rt, _| chain(rt)),
        ("arrays", arrays),
        ("vectors", |rt, _| vectors(rt)),
    ];
    for (name, row) in rows {
        if is_wanted(name) {
            row(&rt, &cluster);
        }
    }
}
