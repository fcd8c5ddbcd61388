//! A task that takes a slice.

use outray::Runtime;

fn sum(values: &[f64]) -> f64 {
    values.iter().sum()
}

fn main() {
    let rt = Runtime::local();
    let values = rt.put(vec![1.0, 2.0]);
    rt.submit(sum, &values);
}
