//! A task that takes an `Rc`.

use outray::Runtime;
use std::rc::Rc;

fn length(values: Rc<Vec<f64>>) -> usize {
    values.len()
}

fn main() {
    let rt = Runtime::local();
    rt.submit(length, Rc::new(vec![1.0]));
}
