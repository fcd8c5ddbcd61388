//! A chain against a tree: the same sum of arrays, as two graphs of the same tasks.
//!
//! `((a + b) + c) + d ...` is a chain: every addition waits for the one before, so one CPU works, whatever
//! the machine has. `(a + b) + (c + d) ...` is a tree: all additions of one level can run at once. The tasks
//! are the same, only the handles that they take differ.
//!
//! The arrays hold probabilities as their logarithms, as mixture models keep them, so an addition takes real
//! work: `ln(exp(a) + exp(b))` for each pair of elements. With plain additions memory would be the limit, and
//! no number of CPUs makes memory faster.
//!
//! ```sh
//! cargo run --release --example tree_reduction
//! ```

use std::{error::Error, process::ExitCode, sync::Arc, time::Instant};

use ndarray::{Array1, Zip};
use outray::{ObjectRef, Runtime};

type Array = Array1<f64>;

const ARRAYS: usize = 128;
/// 1 MiB of elements.
const LENGTH: usize = (1 << 20) / size_of::<f64>();
/// How much the order of additions may matter.
const TOLERANCE: f64 = 1e-12;

/// Logarithms from -10 to 0.
fn logarithms(index: usize) -> Array {
    Array::from_shape_fn(LENGTH, |position| ((position * 31 + index * 17) % 101) as f64 / -10.0)
}

fn add(left: Arc<Array>, right: Arc<Array>) -> Array {
    Zip::from(&*left).and(&*right).map_collect(|&a, &b| a.max(b) + (-(a - b).abs()).exp().ln_1p())
}

/// The sum and its depth: the number of additions that must run one after the other.
type Reduced = (ObjectRef<Array>, usize);

fn chain(rt: &Runtime, arrays: &[ObjectRef<Array>]) -> Reduced {
    let mut sum = arrays[0].clone();
    for array in &arrays[1..] {
        sum = rt.submit(add, (&sum, array));
    }
    (sum, arrays.len() - 1)
}

fn tree(rt: &Runtime, arrays: &[ObjectRef<Array>]) -> Reduced {
    let mut level = arrays.to_vec();
    let mut depth = 0;
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => rt.submit(add, (left, right)),
                _ => pair[0].clone(),
            })
            .collect();
        depth += 1;
    }
    (level.swap_remove(0), depth)
}

fn plain_loop(arrays: &[Arc<Array>]) -> Arc<Array> {
    arrays[1..].iter().fold(arrays[0].clone(), |sum, array| Arc::new(add(sum, array.clone())))
}

fn milliseconds(since: Instant) -> f64 {
    1e3 * since.elapsed().as_secs_f64()
}

fn run() -> Result<(), Box<dyn Error>> {
    let rt = Runtime::from_env()?;
    let handles: Vec<_> = (0..ARRAYS).map(|index| rt.submit(logarithms, index)).collect();
    let arrays: Vec<_> = handles.iter().map(ObjectRef::get_shared).collect::<outray::Result<_>>()?;
    println!("The sum of {ARRAYS} arrays of 1 MiB on {} CPUs", rt.stats().cpus);

    let start = Instant::now();
    let expected = plain_loop(&arrays);
    println!("  plain loop           {:>6.1} ms", milliseconds(start));

    let mut times = Vec::new();
    for (name, reduce) in [("chain", chain as fn(&Runtime, &[_]) -> Reduced), ("tree", tree)] {
        let start = Instant::now();
        let (sum, depth) = reduce(&rt, &handles);
        let sum = sum.get_shared()?;
        times.push(milliseconds(start));
        println!("  {name:<5}  depth {depth:>3}     {:>6.1} ms", milliseconds(start));
        if !sum.iter().zip(&*expected).all(|(a, b)| (a - b).abs() < TOLERANCE) {
            return Err(format!("the {name} found another sum than the plain loop").into());
        }
    }
    println!("The tree is {:.2} times as fast as the chain.", times[0] / times[1]);
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tree_reduction: {error}");
            ExitCode::FAILURE
        }
    }
}
