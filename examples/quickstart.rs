//! The README's code: objects, tasks, a dependency, `wait` and an actor.
//!
//! ```sh
//! cargo run --example quickstart
//! ```

use outray::{Result, Runtime};
use std::sync::Arc;

fn norm(vector: Arc<Vec<f64>>) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn add(a: f64, b: f64) -> f64 {
    a + b
}

struct Counter(i64);

impl Counter {
    fn add(&mut self, n: i64) -> i64 {
        self.0 += n;
        self.0
    }
}

fn main() -> Result<()> {
    let rt = Runtime::from_env()?; // this process, or the cluster at OUTRAY_ADDRESS

    let vector = rt.put(vec![3.0, 4.0]); // an object, shared without a copy
    let length = rt.submit(norm, &vector); // a task: it runs in the background
    let sum = rt.submit(add, (&length, 1.0)); // a handle as an argument is a dependency
    println!("norm + 1 = {}", sum.get()?);

    let squares: Vec<_> = (1..=8).map(|n| rt.submit(|n: u64| n * n, n)).collect();
    let (ready, rest) = rt.wait(&squares, 2, None);
    println!("at least 2 are ready: {}; {} are not", ready.len(), rest.len());
    println!("squares: {:?}", rt.get_all(&squares)?);

    let counter = rt.actor(Counter, 0); // an actor: state that calls change one after the other
    let calls: Vec<_> = (1..=4).map(|n| counter.call(Counter::add, n)).collect();
    println!("running totals: {:?}", rt.get_all(&calls)?);
    Ok(())
}
