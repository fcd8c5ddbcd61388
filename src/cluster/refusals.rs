//! What is logged about connections that are refused: a line a second, whatever strangers do.

use std::{fmt, mem, time::Duration};

/// Refusals are logged once a second, with the number of those that were not.
#[derive(Default)]
pub(super) struct Refusals {
    silent_until: Duration,
    unlogged: u64,
}

impl Refusals {
    /// `now` is the time since any fixed start.
    pub(super) fn log(&mut self, now: Duration, remote: &str, why: &dyn fmt::Display) {
        if now < self.silent_until {
            self.unlogged += 1;
            return;
        }
        self.silent_until = now + Duration::from_secs(1);
        tracing::warn!(remote, unlogged = mem::take(&mut self.unlogged), "connection refused: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing::{
        Metadata, Subscriber,
        field::{Field, Visit},
        span,
    };

    /// Notes the numbers of those that had no line, one for each line.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u64>>>);

    impl Visit for Lines {
        fn record_u64(&mut self, field: &Field, value: u64) {
            assert_eq!(field.name(), "unlogged");
            self.0.lock().unwrap().push(value);
        }
        fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    /// Ten thousand a second for three seconds: a line a second, and the lines tell of all.
    #[test]
    fn a_flood_of_refusals_is_a_line_a_second() {
        let lines = Lines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            let mut refusals = Refusals::default();
            for at in 0..30_001 {
                refusals.log(Duration::from_micros(100) * at, "nobody", &"it was refused");
            }
        });
        assert_eq!(*lines.0.lock().unwrap(), [0, 9_999, 9_999, 9_999]);
    }
}
