//! Three arguments where the function takes two.

use outray::Runtime;

fn add(a: f64, b: f64) -> f64 {
    a + b
}

fn main() {
    let rt = Runtime::local();
    rt.submit(add, (1.0, 2.0, 3.0));
}
