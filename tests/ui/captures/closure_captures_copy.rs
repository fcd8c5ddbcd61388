//! A closure that captures a number.

use outray::Runtime;

fn main() {
    let rt = Runtime::local();
    let factor = 3;
    rt.submit(move |x: i32| x * factor, 2);
}
