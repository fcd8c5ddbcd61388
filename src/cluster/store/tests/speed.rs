//! `cargo test --release --features cluster --lib store::tests::speed -- --ignored --nocapture`

use super::*;
use std::time::{Duration, Instant};

/// The median and the best of some runs, as a rate.
struct Rates(Vec<f64>);

impl Rates {
    fn add(&mut self, bytes: usize, time: Duration) {
        self.0.push(bytes as f64 / time.as_secs_f64() / 1e9);
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        write!(f, "{:.2} GB/s (best {:.2})", sorted[last / 2], sorted[last])
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

#[test]
#[ignore = "prints how fast it is"]
fn speed() {
    const SIZE: usize = 100 << 20;
    let scratch = Scratch::new();
    let array: Array<u8> = content(1, SIZE as u64).into();
    let put = |store: &Store| {
        let packed = serial::pack(&array, "an array").unwrap();
        let mut writer = store.create((1, 1), packed.encoded_len() as u64).unwrap();
        writer.write(&packed).unwrap();
        drop(writer.seal().unwrap());
    };

    // One after the other, so that what else this machine does meets all of them.
    let mut copy = vec![1; SIZE];
    let old = scratch.store(1 << 30);
    for _ in 0..2 {
        put(&old);
        old.remove((1, 1));
    }
    let mut rates = [(); 4].map(|()| Rates(Vec::new()));
    for _ in 0..15 {
        rates[0].add(SIZE, timed(|| drop(std::hint::black_box(array.to_vec()))));
        let new = Store::open(&Config { memory: Some(scratch.0.join("new")), ..scratch.config(1 << 30) }).unwrap();
        rates[1].add(SIZE, timed(|| put(&new)));
        drop(new);
        rates[2].add(SIZE, timed(|| std::hint::black_box(&mut copy).copy_from_slice(&array)));
        rates[3].add(SIZE, timed(|| put(&old)));
        old.remove((1, 1));
    }
    let [to_new, put_new, to_old, put_old] = rates;
    println!("100 MiB to new memory: memcpy {to_new}, put {put_new}");
    println!("100 MiB to memory that was used before: memcpy {to_old}, put {put_old}");
    drop(old);

    let store = scratch.store(2 << 30);
    let mut writer = store.create((1, 2), 1 << 30).unwrap();
    for at in 0..1024 {
        writer.write_at(at << 20, &array[..1 << 20]).unwrap();
    }
    drop(writer.seal().unwrap());
    let mut regions = Vec::new();
    let mut gets: Vec<Duration> =
        (0..15).map(|_| timed(|| regions.push(store.get((1, 2)).unwrap().unwrap().map().unwrap()))).collect();
    gets.sort();
    println!("get of 1 GiB on the node: {:.1?} (worst {:.1?})", gets[7], gets[14]);

    let store = scratch.store(64 << 20);
    let small = content(1, 64 << 10);
    let time = timed(|| {
        for number in 0..512 {
            let mut writer = store.create((2, number), 64 << 10).unwrap();
            writer.write_at(0, &small).unwrap();
            drop(writer.seal().unwrap());
        }
    });
    println!("an object of 64 KiB in new memory: {:.1?}", time / 512);
}
