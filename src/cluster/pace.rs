//! How long something takes, as far as is known.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What takes longer counts as this long.
const LONGEST: Duration = Duration::from_millis(5);

/// An average in which what came last counts most.
pub(super) struct Pace {
    /// In nanoseconds. Two that end at once may count as one.
    average: AtomicU64,
}

impl Pace {
    /// At first nothing is thought to be short.
    pub(super) fn slow() -> Pace {
        Pace { average: AtomicU64::new(LONGEST.as_nanos() as u64) }
    }

    /// At first everything is.
    pub(super) fn quick() -> Pace {
        Pace { average: AtomicU64::new(0) }
    }

    pub(super) fn is_below(&self, limit: Duration) -> bool {
        self.average.load(Relaxed) < limit.as_nanos() as u64
    }

    pub(super) fn took(&self, time: Duration) {
        let average = self.average.load(Relaxed);
        self.average.store(average - average / 8 + time.min(LONGEST).as_nanos() as u64 / 8, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_came_last() {
        let short = Duration::from_micros(100);
        let pace = Pace::slow();
        assert!(!pace.is_below(short) && Pace::quick().is_below(short));
        let count = (0..100).take_while(|_| {
            pace.took(Duration::ZERO);
            !pace.is_below(short)
        });
        assert!((10..40).contains(&count.count()));
        pace.took(Duration::from_secs(3_600)); // counts as 5 ms
        assert!(!pace.is_below(short) && pace.is_below(Duration::from_millis(1)));
    }
}
