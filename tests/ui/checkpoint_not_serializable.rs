//! Checkpoints of a state that cannot be serialized.

use outray::Runtime;

struct Counter(i64);

impl Counter {
    fn new() -> Self {
        Counter(0)
    }
}

fn main() {
    let rt = Runtime::local();
    rt.actor_builder(Counter::new).checkpoint_every(10).start(());
}
