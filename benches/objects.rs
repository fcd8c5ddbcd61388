//! outray's objects: what `put`, `get_shared` and `take` cost must not depend on the size.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use outray::{ObjectRef, Runtime};

const MIB: usize = 1 << 20;
const OBJECTS: usize = 10_000;

fn objects(c: &mut Criterion) {
    let rt = Runtime::local();
    let mut group = c.benchmark_group("objects");
    for mib in [1, 256] {
        group.bench_function(BenchmarkId::new("put_get_take", format!("{mib} MiB")), |b| {
            let mut buffer = vec![1_u8; mib * MIB];
            b.iter(|| {
                let object = rt.put(std::mem::take(&mut buffer));
                assert_eq!(object.get_shared().unwrap().len(), mib * MIB);
                buffer = object.take().unwrap();
            });
        });
    }

    group.throughput(Throughput::Elements(OBJECTS as u64));
    group.bench_function("get_all", |b| {
        let refs: Vec<ObjectRef<u64>> = (0..OBJECTS as u64).map(|i| rt.put(i)).collect();
        b.iter(|| rt.get_all(&refs).unwrap());
    });
    group.finish();
}

criterion_group!(benches, objects);
criterion_main!(benches);
