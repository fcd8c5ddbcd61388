//! Rows that need a process of their own: peak memory and the time to the first result are a process's, not a round's.
//!
//! This executable starts itself again as `--child ROW SIDE SIZE`; the child prints its figures on one line.

use std::{
    fs,
    process::{Command, ExitCode, Stdio},
    sync::{
        RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    contest::{Contest, Goal, Plan},
    cores,
    tasks::{noop, rayon_spawn, tokio_runtime},
};

/// The argument that makes this executable a child.
pub const CHILD: &str = "--child";

const SIDES: [&str; 3] = ["outray", "rayon::spawn + oneshot", "tokio::spawn"];

/// Memory of tasks that nobody can start yet: every worker is inside a task that blocks.
pub fn queued(plan: &Plan) {
    let n = plan.size(1_000_000);
    SIDES
        .iter()
        .fold(Contest::of(&["bytes/task, handle included", "MiB peak RSS", "ns/op to submit"]), |contest, side| {
            contest.side(side, move || spawn_child("queued", side, n))
        })
        .goal(0, Goal::Absolute { bar: 250.0, stretch: Some(150.0) })
        .run(plan);
}

/// From `main` to the first result; what the process has become by then; and what it does when left alone.
pub fn startup(plan: &Plan) {
    let idle = Duration::from_secs(2);
    SIDES
        .iter()
        .chain(&["no runtime at all"])
        .fold(Contest::of(&["us to the first result", "MiB RSS then", "us of CPU in 2 idle s"]), |contest, side| {
            contest.side(side, move || spawn_child("startup", side, idle.as_millis() as usize))
        })
        .goal(0, Goal::Absolute { bar: 1_000.0, stretch: None })
        .goal(1, Goal::Absolute { bar: 10.0, stretch: None })
        // Zero, but for the main thread, which wakes and reads the clock.
        .goal(2, Goal::Absolute { bar: 500.0, stretch: None })
        .run(plan);
}

fn spawn_child(row: &str, side: &str, size: usize) -> Vec<f64> {
    let executable = std::env::current_exe().expect("this executable has a path");
    let output = Command::new(executable)
        .args([CHILD, row, side, &size.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("this executable starts again");
    assert!(output.status.success(), "{row} of {side} ended with {}", output.status);
    let figures = String::from_utf8_lossy(&output.stdout);
    figures.split_whitespace().map(|figure| figure.parse().expect("a child prints numbers")).collect()
}

/// What a child does. `start` is when its `main` began.
pub fn child(start: Instant, mut args: impl Iterator<Item = String>) -> ExitCode {
    let (Some(row), Some(side), Some(size)) = (args.next(), args.next(), args.next().and_then(|n| n.parse().ok()))
    else {
        return ExitCode::FAILURE;
    };
    let figures = match row.as_str() {
        "queued" => child_queued(&side, size),
        "startup" => child_startup(start, &side, Duration::from_millis(size as u64)),
        _ => return ExitCode::FAILURE,
    };
    println!("{}", figures.map(|figure| figure.to_string()).join(" "));
    ExitCode::SUCCESS
}

/// Workers inside [`hold`], which blocks while `GATE` is write-locked. No runtime can see that it does.
static HELD: AtomicUsize = AtomicUsize::new(0);
static GATE: RwLock<()> = RwLock::new(());

fn hold() {
    HELD.fetch_add(1, Ordering::Release);
    drop(GATE.read());
}

fn child_queued(side: &str, n: usize) -> [f64; 3] {
    match side {
        "outray" => {
            let rt = outray::Runtime::local();
            let hold_one = || drop(rt.submit(hold, ()));
            measure_queue(n, hold_one, || rt.submit(noop, ()), |results| drop(rt.get_all(&results).unwrap()))
        }
        "tokio::spawn" => {
            let tokio = tokio_runtime();
            let hold_one = || drop(tokio.spawn(async { hold() }));
            let submit = || tokio.spawn(async { noop() });
            measure_queue(n, hold_one, submit, |results| results.into_iter().for_each(|r| tokio.block_on(r).unwrap()))
        }
        _ => {
            let hold_one = || rayon::spawn(hold);
            let submit = || rayon_spawn(noop);
            measure_queue(n, hold_one, submit, |results| results.into_iter().for_each(|r| r.recv().unwrap()))
        }
    }
}

/// Holds every worker, queues `n` tasks, reads the memory they take, and lets them run.
fn measure_queue<R>(n: usize, hold_one: impl Fn(), submit: impl Fn() -> R, finish: impl FnOnce(Vec<R>)) -> [f64; 3] {
    let closed = GATE.write();
    (0..cores()).for_each(|_| hold_one());
    while HELD.load(Ordering::Acquire) < cores() {
        thread::sleep(Duration::from_millis(1));
    }
    let before = memory_kib("VmRSS:");
    let start = Instant::now();
    let results: Vec<R> = (0..n).map(|_| submit()).collect();
    let submitted = start.elapsed();
    let bytes = (memory_kib("VmRSS:") - before) * 1024.0;
    drop(closed);
    finish(results);
    [bytes / n as f64, memory_kib("VmHWM:") / 1024.0, submitted.as_nanos() as f64 / n as f64]
}

fn child_startup(start: Instant, side: &str, idle: Duration) -> [f64; 3] {
    match side {
        "outray" => {
            let rt = outray::Runtime::local();
            rt.submit(noop, ()).get().unwrap();
            first_result(start, idle)
        }
        "tokio::spawn" => {
            let tokio = tokio_runtime();
            tokio.block_on(tokio.spawn(async { noop() })).unwrap();
            first_result(start, idle)
        }
        "no runtime at all" => {
            noop();
            first_result(start, idle)
        }
        _ => {
            rayon_spawn(noop).recv().unwrap();
            first_result(start, idle)
        }
    }
}

/// Called with the first result in hand and the runtime still up.
fn first_result(start: Instant, idle: Duration) -> [f64; 3] {
    let elapsed = start.elapsed();
    let rss = memory_kib("VmRSS:");
    // The kernel accounts for a running thread when it stops: without this, the work above would count as idle time.
    thread::sleep(Duration::from_millis(1));
    let before = cpu_nanos();
    thread::sleep(idle);
    [elapsed.as_nanos() as f64 / 1e3, rss / 1024.0, (cpu_nanos() - before) / 1e3]
}

/// A field of `/proc/self/status` in KiB.
fn memory_kib(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux with /proc");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the field exists");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("the field is a number")
}

/// CPU time of all live threads. `/proc/self/stat` counts in ticks of 10 ms, this in nanoseconds.
fn cpu_nanos() -> f64 {
    fs::read_dir("/proc/self/task")
        .expect("Linux with /proc")
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split_whitespace().next()?.parse::<f64>().ok())
        .sum()
}
