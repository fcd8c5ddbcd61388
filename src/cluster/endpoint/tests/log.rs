//! What is logged in this process, by all crates and at all levels.

use super::*;
use tracing::{
    Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

struct Log;

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{field}={value:?} "));
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut line = Line(String::new());
        attributes.record(&mut line);
        LOGGED.lock().push(line.0);
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        LOGGED.lock().push(line.0);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// From now on.
pub(super) fn collect() {
    // Another test of this process may have set one; then it is this one.
    let _ = tracing::subscriber::set_global_default(Log);
}

pub(super) fn all() -> Vec<String> {
    LOGGED.lock().clone()
}

/// Waits for a line.
pub(super) fn until(what: &str) {
    let start = std::time::Instant::now();
    while !LOGGED.lock().iter().any(|line| line.contains(what)) {
        assert!(start.elapsed() < LONG, "not logged: {what}");
        std::thread::yield_now();
    }
}
