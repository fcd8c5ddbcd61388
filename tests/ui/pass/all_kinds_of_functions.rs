//! Everything that is a task, a method or a constructor without further ado.

use outray::Runtime;
use std::sync::Arc;

fn add(a: f64, b: f64) -> f64 {
    a + b
}

fn largest<T: Ord + Copy>(values: Vec<T>) -> Option<T> {
    values.into_iter().max()
}

async fn later(x: u32) -> u32 {
    x + 1
}

fn length(text: Arc<String>) -> usize {
    text.len()
}

struct Counter(i64);

impl Counter {
    fn new(start: i64) -> Self {
        Counter(start)
    }
    fn add(&mut self, by: i64) -> i64 {
        self.0 += by;
        self.0
    }
    async fn value(&self) -> i64 {
        self.0
    }
}

fn main() -> outray::Result<()> {
    let rt = Runtime::local();
    let sum = rt.submit(add, (1.0, 2.0));
    assert_eq!(rt.submit(add, (&sum, 1.0)).get()?, 4.0);
    assert_eq!(rt.submit(largest::<u8>, vec![1_u8, 3, 2]).get()?, Some(3));
    assert_eq!(rt.submit(later, 1).get()?, 2);
    assert_eq!(rt.submit(i32::abs, -1).get()?, 1);
    assert_eq!(rt.submit(|x: i32| 2 * x, 4).get()?, 8);
    let text = rt.put("text".to_owned());
    assert_eq!(rt.submit(length, &text).get()?, 4);

    let counter = rt.actor(Counter::new, 1);
    counter.call(Counter::add, 2);
    assert_eq!(counter.call(Counter::value, ()).get()?, 3);
    Ok(())
}
