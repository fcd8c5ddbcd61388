//! `retry_errors` on a task that cannot return an error.

use outray::Runtime;

fn square(x: i32) -> i32 {
    x * x
}

fn main() {
    let rt = Runtime::local();
    rt.task(square).retry_errors(3).submit(2);
}
