//! What a cluster on this machine costs: two nodes of one CPU each, in processes of their own, over encrypted
//! loopback links. `cargo bench --features cluster --bench cluster [-- ROW]`; benches/README.md has the table.

use outray::{LocalCluster, Runtime};
use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

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
    println!("tasks            {:>12.0} /s, submit {COUNT} and get all", per_second(COUNT, run));
}

fn round_trip(rt: &Runtime) {
    let times = trips(2_000, || rt.submit(nothing, ()).get().expect("it runs"));
    println!("round_trip       {:>12.0?} p50, one task", median(times));
}

fn actor(rt: &Runtime) {
    const COUNT: usize = 50_000;
    let echo = rt.actor(Echo::new, ());
    let times = trips(2_000, || {
        echo.call(Echo::echo, 1u64).get().expect("it runs");
    });
    println!("actor_round_trip {:>12.0?} p50, one call", median(times));
    let run = || {
        let all: Vec<_> = (0..COUNT as u64).map(|n| echo.call(Echo::echo, n)).collect();
        rt.get_all(&all).expect("they run");
    };
    println!("actor_pipelined  {:>12.0} /s, {COUNT} calls", per_second(COUNT, run));
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
    println!("tree             {:>12.1?}, {LEAVES} arrays of 8 KiB in {} tasks", run(), 2 * LEAVES - 1);
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
    println!("chain            {:>12.1?}, {LINKS} dependent tasks", run());
}

fn objects(rt: &Runtime) {
    const SIZE: usize = 100 << 20;
    let length = |v: Arc<Vec<u8>>| v.len();
    for kind in ["cold", "warm"] {
        let value = vec![1u8; SIZE];
        let started = Instant::now();
        let object = rt.put(value);
        assert_eq!(rt.submit(length, &object).get(), Ok(SIZE));
        let took = started.elapsed();
        println!(
            "put_and_use      {took:>12.1?} {kind}, 100 MiB from the driver: {:.2} GB/s",
            SIZE as f64 / took.as_secs_f64() / 1e9
        );
    }
    let there = rt.submit(|| vec![1u8; SIZE], ());
    rt.submit(length, &there).get().expect("it runs");
    let started = Instant::now();
    assert_eq!(there.get_shared().map(|v| v.len()), Ok(SIZE));
    let took = started.elapsed();
    println!(
        "get              {took:>12.1?}, 100 MiB to the driver: {:.2} GB/s",
        SIZE as f64 / took.as_secs_f64() / 1e9
    );
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
type Row = fn(&Runtime);

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let started = Instant::now();
    {
        let cluster = LocalCluster::start(1).expect("a cluster");
        let rt = cluster.connect().expect("a runtime");
        rt.submit(nothing, ()).get().expect("it runs");
        println!("start            {:>12.1?}, a head and a node, to the first result", started.elapsed());
    }
    let cluster = LocalCluster::start(2).expect("a cluster");
    println!("idle             {:>12.1} MiB PSS, a head and two nodes", proportional(&cluster.pids()));
    let rt = cluster.connect().expect("a runtime");
    let rows: [(&str, Row); 6] = [
        ("tasks", tasks),
        ("round_trip", round_trip),
        ("actor", actor),
        ("tree", tree),
        ("chain", chain),
        ("objects", objects),
    ];
    for (name, row) in rows {
        if wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            row(&rt);
        }
    }
}
