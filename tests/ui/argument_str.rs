//! A task that takes `&str`.

use outray::Runtime;

fn length(text: &str) -> usize {
    text.len()
}

fn main() {
    let rt = Runtime::local();
    rt.submit(length, "four");
}
