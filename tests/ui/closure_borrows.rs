//! A closure that borrows from its surroundings.

use outray::Runtime;

fn main() {
    let rt = Runtime::local();
    let factor = 3;
    rt.submit(|x: i32| x * factor, 2);
}
