//! A handle to an `i32` where the function takes an `f64`.

use outray::Runtime;

fn half(x: f64) -> f64 {
    x / 2.0
}

fn main() {
    let rt = Runtime::local();
    let x = rt.put(3_i32);
    rt.submit(half, &x);
}
