//! A closure that captures a vector.

use outray::Runtime;

fn main() {
    let rt = Runtime::local();
    let weights = vec![1.0, 2.0];
    rt.submit(move |i: usize| weights[i], 1);
}
