//! An actor whose state cannot be shared between threads.

use outray::Runtime;
use std::cell::RefCell;

struct Cache(RefCell<Vec<u32>>);

impl Cache {
    fn new() -> Self {
        Cache(RefCell::new(Vec::new()))
    }
}

fn main() {
    let rt = Runtime::local();
    rt.actor(Cache::new, ());
}
