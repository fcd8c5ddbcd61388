//! Two arguments in the wrong order.

use outray::Runtime;

fn repeat(text: String, times: usize) -> String {
    text.repeat(times)
}

fn main() {
    let rt = Runtime::local();
    rt.submit(repeat, (3_usize, "ab"));
}
