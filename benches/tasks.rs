//! outray's tasks on their own; `benches/compare` holds them against rayon and tokio.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use outray::{ObjectRef, Runtime};

const TASKS: usize = 10_000;
const LINKS: u64 = 1_000;

fn noop() {}

fn noops(n: usize) {
    let rt = Runtime::current();
    let results: Vec<ObjectRef<()>> = (0..n).map(|_| rt.submit(noop, ())).collect();
    rt.get_all(&results).unwrap();
}

fn fib(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let rt = Runtime::current();
    let (a, b) = (rt.submit(fib, n - 1), rt.submit(fib, n - 2));
    a.get().unwrap() + b.get().unwrap()
}

fn next(x: u64) -> u64 {
    x + 1
}

fn sum(parts: Vec<u64>) -> u64 {
    parts.iter().sum()
}

fn tasks(c: &mut Criterion) {
    let rt = Runtime::local();
    let mut group = c.benchmark_group("tasks");
    group.bench_function("round_trip", |b| b.iter(|| rt.submit(noop, ()).get().unwrap()));

    group.throughput(Throughput::Elements(TASKS as u64));
    group.bench_function("noop_outside", |b| {
        b.iter(|| {
            let results: Vec<ObjectRef<()>> = (0..TASKS).map(|_| rt.submit(noop, ())).collect();
            rt.get_all(&results).unwrap();
        });
    });
    group.bench_function("noop_inside", |b| b.iter(|| rt.submit(noops, TASKS).get().unwrap()));
    group.bench_function("fan_in", |b| {
        b.iter(|| {
            let parts: Vec<ObjectRef<u64>> = (0..TASKS as u64).map(|i| rt.submit(next, i)).collect();
            rt.submit(sum, &parts).get().unwrap()
        });
    });

    group.throughput(Throughput::Elements(LINKS));
    group.bench_function("chain", |b| {
        b.iter(|| (1..LINKS).fold(rt.submit(next, 0), |previous, _| rt.submit(next, previous)).get().unwrap());
    });

    // fib(16) makes 3,193 calls, each of them a task.
    group.throughput(Throughput::Elements(3_193));
    group.bench_function("fib", |b| b.iter(|| rt.submit(fib, 16).get().unwrap()));
    group.finish();
}

criterion_group!(benches, tasks);
criterion_main!(benches);
