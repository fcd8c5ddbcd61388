//! A function pointer: which function it is is known only when the program runs.

use outray::Runtime;

fn double(x: i32) -> i32 {
    2 * x
}

fn main() {
    let rt = Runtime::local();
    let f: fn(i32) -> i32 = double;
    rt.submit(f, 2);
}
