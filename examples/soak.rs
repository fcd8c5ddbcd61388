//! Random graphs of tasks, actors, streams, failures and cancellations, for ten minutes, with
//! every result and every count checked against a plain computation.
//!
//! `cargo run --release --example soak [-- --seconds N] [--seed N] [--quick]`
//!
//! It prints its seed; the same seed makes the same graphs (not the same interleavings).
//!
//! With `OUTRAY_ADDRESS` set it runs on that cluster, otherwise in this process, on one to four CPUs.

use outray::{Actor, Error, ObjectRef, Runtime};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

const MODULUS: u64 = 1_000_003;

fn leaf(x: u64) -> u64 {
    x % MODULUS
}

fn mix(a: u64, b: u64) -> u64 {
    (a * 31 + b) % MODULUS
}

fn sum(parts: Vec<u64>) -> u64 {
    parts.iter().sum::<u64>() % MODULUS
}

async fn later(x: u64) -> u64 {
    outray::sleep(Duration::from_micros(x % 50)).await;
    (x + 1) % MODULUS
}

/// A task that submits tasks and blocks on them.
fn nested(x: u64, depth: u32) -> u64 {
    if depth == 0 {
        return leaf(x);
    }
    let rt = Runtime::current();
    let left = rt.submit(nested, (x + 1, depth - 1));
    let right = rt.submit(nested, (x + 2, depth - 1));
    match (left.get(), right.get()) {
        (Ok(left), Ok(right)) => mix(left, right),
        failed => panic!("a nested task failed: {failed:?}"),
    }
}

fn nested_plainly(x: u64, depth: u32) -> u64 {
    if depth == 0 { leaf(x) } else { mix(nested_plainly(x + 1, depth - 1), nested_plainly(x + 2, depth - 1)) }
}

fn count_to(n: u64) -> impl Iterator<Item = u64> + Send + 'static {
    0..n
}

fn wait_for_cancellation() -> u64 {
    while !outray::task::context().is_cancelled() {
        std::thread::yield_now();
    }
    0
}

struct Tally(u64);

impl Tally {
    fn new() -> Self {
        Tally(0)
    }

    fn add(&mut self, x: u64) -> u64 {
        self.0 += x;
        self.0
    }

    fn total(&self) -> u64 {
        self.0
    }
}

/// What is known of an object: its value, or that it must fail.
struct Expected {
    handle: ObjectRef<u64>,
    value: Option<u64>,
}

#[derive(Default)]
struct Checked {
    objects: u64,
    failures: u64,
    cancelled: u64,
    streamed: u64,
}

fn round(rt: &Runtime, tally: &Actor<Tally>, added: &mut u64, checked: &mut Checked) -> Result<(), String> {
    let mut nodes: Vec<Expected> = Vec::new();
    for _ in 0..fastrand::usize(20..200) {
        let pick = |nodes: &[Expected]| fastrand::usize(..nodes.len());
        let x = fastrand::u64(..MODULUS);
        let node = match fastrand::u32(0..10) {
            _ if nodes.is_empty() => Expected { handle: rt.submit(leaf, x), value: Some(leaf(x)) },
            0 => Expected { handle: rt.put(x), value: Some(x) },
            1..=3 => {
                let (a, b) = (pick(&nodes), pick(&nodes));
                let value = nodes[a].value.zip(nodes[b].value).map(|(a, b)| mix(a, b));
                Expected { handle: rt.submit(mix, (&nodes[a].handle, &nodes[b].handle)), value }
            }
            4 => {
                let some: Vec<usize> = (0..fastrand::usize(1..20)).map(|_| pick(&nodes)).collect();
                let handles: Vec<_> = some.iter().map(|at| nodes[*at].handle.clone()).collect();
                let values: Option<Vec<u64>> = some.iter().map(|at| nodes[*at].value).collect();
                Expected { handle: rt.submit(sum, handles), value: values.map(sum) }
            }
            5 => {
                let at = pick(&nodes);
                let value = nodes[at].value.map(|x| (x + 1) % MODULUS);
                Expected { handle: rt.submit(later, &nodes[at].handle), value }
            }
            6 => {
                let depth = fastrand::u32(0..6);
                Expected { handle: rt.submit(nested, (x, depth)), value: Some(nested_plainly(x, depth)) }
            }
            7 => {
                *added += x;
                tally.call(Tally::add, x);
                Expected { handle: rt.task(leaf).cpus(0.25).submit(x), value: Some(leaf(x)) }
            }
            8 => {
                let n = fastrand::u64(1..100);
                let wanted = fastrand::u64(0..=n);
                let items: Result<Vec<u64>, Error> = rt.stream(count_to, n).values().take(wanted as usize).collect();
                let items = items.map_err(|error| error.to_string())?;
                if items != (0..wanted).collect::<Vec<_>>() {
                    return Err(format!("a stream of {n} yielded {items:?}"));
                }
                checked.streamed += wanted;
                continue;
            }
            _ => {
                let handle = rt.submit(wait_for_cancellation, ());
                handle.cancel();
                checked.cancelled += 1;
                Expected { handle, value: None }
            }
        };
        nodes.push(node);
    }
    fastrand::shuffle(&mut nodes);
    for Expected { handle, value } in &nodes {
        match (handle.get_timeout(Duration::from_secs(8)), value) {
            (Ok(got), Some(value)) if got == *value => checked.objects += 1,
            (Err(error), None) if error.is_cancelled() => checked.failures += 1,
            (got, value) => return Err(format!("expected {value:?}, got {got:?}\n{}", rt.explain(handle))),
        }
    }
    let total = tally.call(Tally::total, ()).get().map_err(|error| error.to_string())?;
    if total != *added {
        return Err(format!("the actor counted {total} instead of {added}"));
    }
    Ok(())
}

fn arguments() -> Result<(Duration, u64), String> {
    let (mut seconds, mut seed) = (600, fastrand::u64(..));
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().ok_or(format!("{argument} needs a number"))?;
            value.parse::<u64>().map_err(|error| format!("{argument} {value}: {error}"))
        };
        match argument.as_str() {
            "--quick" => seconds = 5,
            "--seconds" => seconds = number()?,
            "--seed" => seed = number()?,
            other => return Err(format!("unknown argument {other:?}; use --seconds N, --seed N or --quick")),
        }
    }
    Ok((Duration::from_secs(seconds), seed))
}

fn main() -> ExitCode {
    let (time, seed) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("soak: {error}");
            return ExitCode::from(2);
        }
    };
    println!("seed {seed}, {} s", time.as_secs());
    fastrand::seed(seed);
    let (started, mut rounds, mut checked) = (Instant::now(), 0u64, Checked::default());
    while started.elapsed() < time {
        // Runtimes come and go too.
        let builder = Runtime::builder().cpus(fastrand::usize(1..=4));
        let rt = match builder.from_env() {
            Ok(rt) => rt,
            Err(error) => {
                eprintln!("soak: {error}");
                return ExitCode::FAILURE;
            }
        };
        let tally = rt.actor(Tally::new, ());
        let mut added = 0;
        for _ in 0..50 {
            if let Err(error) = round(&rt, &tally, &mut added, &mut checked) {
                eprintln!("soak: wrong in round {rounds} of seed {seed}: {error}");
                return ExitCode::FAILURE;
            }
            rounds += 1;
        }
        drop(tally);
        rt.shutdown(Duration::from_secs(60));
        let stats = rt.stats();
        if stats.submitted != stats.succeeded + stats.failed {
            eprintln!("soak: counts do not add up after round {rounds} of seed {seed}: {stats}");
            return ExitCode::FAILURE;
        }
    }
    let Checked { objects, failures, cancelled, streamed } = checked;
    println!(
        "{rounds} graphs in {:.0} s: {objects} results, {failures} failures as expected, {cancelled} cancellations, {streamed} streamed items: all right",
        started.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
