//! Retries on a streaming task, which has no single result to repeat.

use outray::Runtime;

fn main() {
    let rt = Runtime::local();
    rt.streaming(|n: u32| 0..n).retries(3).submit(5);
}
