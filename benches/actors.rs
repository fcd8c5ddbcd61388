//! outray's actors on their own; `benches/compare` holds them against tokio and the actor crates.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use outray::{Actor, ObjectRef, Runtime};

const CALLS: usize = 10_000;

struct Counter {
    value: i64,
}

impl Counter {
    fn new(value: i64) -> Self {
        Counter { value }
    }

    fn inc(&mut self, by: i64) -> i64 {
        self.value += by;
        self.value
    }

    fn value(&self) -> i64 {
        self.value
    }
}

fn actors(c: &mut Criterion) {
    let rt = Runtime::local();
    let counter: Actor<Counter> = rt.actor(Counter::new, 0);
    let mut group = c.benchmark_group("actors");
    group.bench_function("call", |b| b.iter(|| counter.call(Counter::inc, 1).get().unwrap()));
    group.bench_function("call_shared", |b| b.iter(|| counter.call(Counter::value, ()).get().unwrap()));
    group.bench_function("start_and_call", |b| {
        b.iter(|| rt.actor(Counter::new, 0).call(Counter::inc, 1).get().unwrap());
    });

    group.throughput(Throughput::Elements(CALLS as u64));
    group.bench_function("pipelined", |b| {
        b.iter(|| {
            let results: Vec<ObjectRef<i64>> = (0..CALLS).map(|_| counter.call(Counter::inc, 1)).collect();
            rt.get_all(&results).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, actors);
criterion_main!(benches);
