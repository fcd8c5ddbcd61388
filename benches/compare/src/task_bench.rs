//! The patterns of Task Bench (Slaughter et al., SC20) and their METG(50%).
//!
//! A graph has `T` time steps of up to `W` points; a point depends on points of the step before and runs a
//! compute-bound kernel. Efficiency is the rate of kernel iterations achieved over the peak rate, which is a plain loop
//! on every core. The kernel shrinks until the efficiency falls to 50%: the granularity there (wall time x cores /
//! tasks, interpolated) is the minimum effective task granularity. Smaller is better.
//!
//! On two cores a run that uses only one of them is at 50% too. METG(75%) stands beside it: nobody gets there on one
//! core of two.

use std::{
    hint::black_box,
    sync::{Arc, Barrier},
    thread,
    time::Instant,
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use outray::{ObjectRef, Runtime};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    contest::{Plan, Spread, verdict},
    cores,
    tasks::{on_worker, tokio_runtime},
};

/// One task: its place, the points of the step before that it depends on, and whether no point of the next step
/// depends on it.
#[derive(Clone, Serialize, Deserialize)]
struct Point {
    step: u64,
    index: u64,
    inputs: Vec<usize>,
    last: bool,
}

/// The points of every step.
type Graph = Vec<Vec<Point>>;

/// Points that the point at (step, index) depends on, in a graph of the given width. As in Task Bench's `core.cc`.
type Dependencies = fn(width: usize, step: usize, index: usize) -> Vec<usize>;

const PATTERNS: [(&str, Dependencies); 7] = [
    ("trivial", |_, _, _| vec![]),
    ("no_comm", |_, _, index| vec![index]),
    ("stencil_1d", |width, _, index| (index.saturating_sub(1)..width.min(index + 2)).collect()),
    ("fft", |width, step, index| {
        let sets = width.next_power_of_two().trailing_zeros().max(1) as usize;
        let distance = 1 << ((step + sets - 1) % sets);
        let below = index.checked_sub(distance);
        let above = Some(index + distance).filter(|&above| above < width);
        below.into_iter().chain([index]).chain(above).collect()
    }),
    ("tree", |_, _, index| vec![index / 2]),
    ("random", |width, step, index| {
        let connected = |other: usize| mix(mix(mix(0, step as u64), index as u64), other as u64) >> 63 == 1;
        (0..width).filter(|&other| other == index || connected(other)).collect()
    }),
    ("all_to_all", |width, _, _| (0..width).collect()),
];

fn graph(pattern: &str, dependencies: Dependencies, width: usize, steps: usize) -> Graph {
    let points = |step: usize| if pattern == "tree" { width.min(1 << step.min(32)) } else { width };
    let inputs = |step, index| if step == 0 { vec![] } else { dependencies(width, step, index) };
    let needed = |step, index| step < steps && (0..points(step)).any(|other| inputs(step, other).contains(&index));
    let point = |step, index| Point {
        step: step as u64,
        index: index as u64,
        inputs: inputs(step, index),
        last: !needed(step + 1, index),
    };
    (0..steps).map(|step| (0..points(step)).map(|index| point(step, index)).collect()).collect()
}

/// Starts every point with the results of the step before, and returns the results that no other point needs.
fn unroll<R: Clone>(graph: &Graph, start: impl Fn(&Point, &[R]) -> R) -> Vec<R> {
    let (mut row, mut results) = (Vec::new(), Vec::new());
    for step in graph {
        row = step.iter().map(|point| start(point, &row)).collect();
        results.extend(step.iter().zip(&row).filter(|(point, _)| point.last).map(|(_, result)| result.clone()));
    }
    results
}

/// The results of the step before that a point depends on.
fn gather<R: Clone>(point: &Point, row: &[R]) -> Vec<R> {
    point.inputs.iter().map(|&input| row[input].clone()).collect()
}

/// A busy loop of multiply and add on sixteen lanes that stay in registers.
pub fn kernel(iterations: u64) -> f64 {
    let mut lanes: [f64; 16] = black_box([1.5; 16]);
    for _ in 0..iterations {
        for lane in &mut lanes {
            *lane = *lane * 0.999 + 0.001;
        }
    }
    lanes.iter().sum()
}

/// The body of every task: the kernel, and a value by which a lost or doubled dependency shows.
fn work(inputs: &[u64], step: u64, index: u64, iterations: u64) -> u64 {
    black_box(kernel(iterations));
    inputs.iter().fold(mix(step, index), |hash, &input| mix(hash, input))
}

fn mix(a: u64, b: u64) -> u64 {
    let x = (a ^ b.wrapping_add(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x ^ (x >> 31)).wrapping_mul(0x94D0_49BB_1331_11EB).rotate_left(27)
}

fn run_plain(graph: &Graph, iterations: u64) -> Vec<u64> {
    unroll(graph, |point, row| work(&gather(point, row), point.step, point.index, iterations))
}

/// A task per point; handles are the dependencies. Up to three are arguments of their own, more are a fan-in.
fn run_outray(graph: Arc<Graph>, iterations: u64) -> Vec<u64> {
    fn none(step: u64, index: u64, n: u64) -> u64 {
        work(&[], step, index, n)
    }
    fn one(a: u64, step: u64, index: u64, n: u64) -> u64 {
        work(&[a], step, index, n)
    }
    fn two(a: u64, b: u64, step: u64, index: u64, n: u64) -> u64 {
        work(&[a, b], step, index, n)
    }
    fn three(a: u64, b: u64, c: u64, step: u64, index: u64, n: u64) -> u64 {
        work(&[a, b, c], step, index, n)
    }
    fn many(inputs: Vec<u64>, step: u64, index: u64, n: u64) -> u64 {
        work(&inputs, step, index, n)
    }
    let (rt, n) = (Runtime::current(), iterations);
    let results = unroll(&graph, |point, row: &[ObjectRef<u64>]| {
        let (step, index) = (point.step, point.index);
        match point.inputs[..] {
            [] => rt.submit(none, (step, index, n)),
            [a] => rt.submit(one, (&row[a], step, index, n)),
            [a, b] => rt.submit(two, (&row[a], &row[b], step, index, n)),
            [a, b, c] => rt.submit(three, (&row[a], &row[b], &row[c], step, index, n)),
            _ => rt.submit(many, (gather(point, row), step, index, n)),
        }
    });
    rt.get_all(&results).unwrap()
}

/// A task per point that awaits the shared results it depends on.
async fn run_tokio(graph: Arc<Graph>, iterations: u64) -> Vec<u64> {
    let results = unroll(&graph, |point, row: &[Shared<BoxFuture<u64>>]| {
        let (inputs, step, index) = (gather(point, row), point.step, point.index);
        let task = tokio::spawn(async move { work(&join_all(inputs).await, step, index, iterations) });
        task.map(Result::unwrap).boxed().shared()
    });
    join_all(results).await
}

/// Fork and join at every step, as a parallel loop in OpenMP: a barrier stands for the dependencies.
fn run_rayon(graph: &Graph, iterations: u64) -> Vec<u64> {
    let (mut row, mut results) = (Vec::new(), Vec::new());
    for step in graph {
        let parallel = step.par_iter().with_max_len(1);
        row = parallel.map(|p| work(&gather(p, &row), p.step, p.index, iterations)).collect();
        results.extend(step.iter().zip(&row).filter(|(point, _)| point.last).map(|(_, &result)| result));
    }
    results
}

/// Kernel iterations per second of all cores together, in a plain loop on each.
fn peak_rate() -> f64 {
    const ITERATIONS: u64 = 1_000_000;
    let barrier = Barrier::new(cores());
    let timed_loop = || {
        barrier.wait();
        let start = Instant::now();
        black_box(kernel(ITERATIONS));
        (start, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(timed_loop)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a loop does not panic")).collect()
    });
    let start = times.iter().map(|&(start, _)| start).min().expect("at least one core");
    let end = times.iter().map(|&(_, end)| end).max().expect("at least one core");
    (times.len() as u64 * ITERATIONS) as f64 / (end - start).as_secs_f64()
}

/// One executor and what it reached with ever smaller kernels.
struct Side<'a> {
    name: &'static str,
    run: Box<dyn Fn(u64) -> Vec<u64> + 'a>,
    /// Granularity in microseconds and kernel iterations per second, from the largest kernel to the smallest.
    curve: Vec<(f64, f64)>,
}

impl<'a> Side<'a> {
    fn new(name: &'static str, run: impl Fn(u64) -> Vec<u64> + 'a) -> Self {
        Side { name, run: Box::new(run), curve: Vec::new() }
    }

    /// So far below half the peak that smaller kernels cannot bring it back.
    fn is_done(&self, peak: f64) -> bool {
        self.curve.last().is_some_and(|&(_, rate)| rate < 0.2 * peak)
    }

    /// The smallest granularity in microseconds at which this share of the peak is reached; infinite if it never was.
    fn metg(&self, share: f64, peak: f64) -> f64 {
        let goal = share * peak;
        let Some(last) = self.curve.iter().rposition(|&(_, rate)| rate >= goal) else {
            return f64::INFINITY;
        };
        let (above, high) = self.curve[last];
        self.curve.get(last + 1).map_or(above, |&(below, low)| {
            let way = (high - goal) / (high - low);
            above * (below / above).powf(way)
        })
    }
}

pub fn metg(plan: &Plan) {
    let (rt, tokio) = (Runtime::local(), tokio_runtime());
    let (steps, largest) = if plan.quick { (200, 32e-6) } else { (1_000, 128e-6) };
    let mut peak = (0..20).map(|_| peak_rate()).fold(0.0, f64::max);
    let [a, b, c] = ["outray", "tokio", "rayon"];
    println!("METG in us, at 50% and at 75% efficiency, {steps} steps");
    println!("{:<12} {:>5} {:>7} {a:>17} {b:>17} {c:>17}", "pattern", "width", "tasks");
    for (pattern, dependencies) in PATTERNS {
        for width in [cores(), 2 * cores()] {
            let graph = Arc::new(graph(pattern, dependencies, width, steps));
            let object = rt.put(Graph::clone(&graph));
            let mut sides = [
                Side::new(a, |n| on_worker(&tokio, rt.submit(run_outray, (&object, n)))),
                Side::new(b, |n| tokio.block_on(tokio.spawn(run_tokio(Arc::clone(&graph), n))).unwrap()),
                Side::new(c, |n| rayon::scope(|_| run_rayon(&graph, n))),
            ];
            descend(&mut sides, &graph, plan.rounds, largest, &mut peak);
            let tasks: usize = graph.iter().map(Vec::len).sum();
            print!("{pattern:<12} {width:>5} {tasks:>7}");
            sides.iter().for_each(|side| print!(" {:>8.2} {:>8.2}", side.metg(0.5, peak), side.metg(0.75, peak)));
            match pattern {
                "stencil_1d" => {
                    println!("   50%: bar <= 10 us: {}", verdict(sides[0].metg(0.5, peak), 10.0, Some(3.0)))
                }
                _ => println!(),
            }
        }
    }
}

/// Halves the kernel, which takes `largest` seconds at first, until every side is done; the sides take turns.
///
/// `peak` is the best rate seen so far. A rate measured while others use the machine would be too low, and would
/// flatter every side.
fn descend(sides: &mut [Side], graph: &Graph, rounds: usize, largest: f64, peak: &mut f64) {
    let expected = run_plain(graph, 0);
    let tasks = graph.iter().map(Vec::len).sum::<usize>() as f64;
    let mut iterations = (largest * *peak / cores() as f64) as u64;
    while iterations > 0 && !sides.iter().all(|side| side.is_done(*peak)) {
        *peak = peak.max(peak_rate());
        let mut walls = vec![Vec::new(); sides.len()];
        for _ in 0..rounds {
            for (side, walls) in sides.iter().zip(&mut walls).filter(|(side, _)| !side.is_done(*peak)) {
                let start = Instant::now();
                let results = (side.run)(iterations);
                walls.push(start.elapsed().as_secs_f64());
                assert_eq!(results, expected, "{} got a dependency wrong", side.name);
            }
        }
        for (side, walls) in sides.iter_mut().zip(walls).filter(|(_, walls)| !walls.is_empty()) {
            let wall = Spread::of(walls).median;
            side.curve.push((wall * cores() as f64 / tasks * 1e6, iterations as f64 * tasks / wall));
        }
        iterations /= 2;
    }
}
