//! A method of one type, called on an actor of another.

use outray::Runtime;

struct Counter(i64);

impl Counter {
    fn new() -> Self {
        Counter(0)
    }
}

struct Log(Vec<String>);

impl Log {
    fn add(&mut self, line: String) {
        self.0.push(line);
    }
}

fn main() {
    let rt = Runtime::local();
    let counter = rt.actor(Counter::new, ());
    println!("{counter:?}");
    counter.call(Log::add, "line");
}
