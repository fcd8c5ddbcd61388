//! A closure that captures a handle instead of taking its value as an argument.

use outray::Runtime;

fn main() {
    let rt = Runtime::local();
    let x = rt.put(2);
    rt.submit(move || 2 * x.get().unwrap(), ());
}
