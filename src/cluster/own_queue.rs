//! How many of its own tasks a worker lets wait, before it gives further ones to the cluster.
//!
//! Nobody else gets any of those that wait here. So there are to be no more than are done in the time for which a node lets
//! tasks wait: by how quickly tasks have ended here lately, and few while nothing is known of that.

use super::{
    node::TOO_LONG,
    protocol::{Nanos, ms},
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many may wait for each CPU while nothing is known, and so many at most.
const FEW: usize = 2;
const MOST: usize = 64;
/// So often it is seen how many have ended, and what is seen after more time than the second says little, because there was
/// not always something to do. After more time than the third what was known is forgotten.
const LOOK: Nanos = ms(1);
const LATELY: Nanos = ms(3);
const LONG_AGO: Nanos = ms(1_000);

#[derive(Default)]
pub(super) struct OwnQueue {
    /// How many may wait, if something is known.
    most: AtomicUsize,
    /// When that was found out, and how many had ended then.
    looked: Mutex<(Nanos, u64)>,
}

impl OwnQueue {
    /// Whether one more would wait for too long behind these, on so many CPUs. `ended`: how many tasks have ended here, ever.
    pub(super) fn is_too_long(&self, queued: usize, cpus: usize, now: Nanos, ended: impl FnOnce() -> u64) -> bool {
        if queued < FEW * cpus {
            return false;
        }
        if let Some(mut looked) = self.looked.try_lock()
            && let (since, before) = *looked
            && let time = now.saturating_sub(since)
            && time >= LOOK
        {
            let all = ended();
            let done = all - before;
            // If none has ended they are slow, however long that was: some have waited since.
            if done == 0 || time > LONG_AGO {
                self.most.store(0, Ordering::Relaxed);
            } else if time <= LATELY {
                self.most.store((done * TOO_LONG / time) as usize, Ordering::Relaxed);
            }
            *looked = (now, all);
        }
        queued >= self.most.load(Ordering::Relaxed).clamp(FEW * cpus, MOST * cpus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_wait_until_it_is_known_that_they_are_quick() {
        let queue = OwnQueue::default();
        let is_too_long = |queued, now, ended| queue.is_too_long(queued, 2, now, || ended);
        assert!(!is_too_long(3, ms(100), 1), "so few never wait for long");
        assert!(is_too_long(4, ms(100), 1));
        // Ten in a millisecond: twenty in two.
        assert!(!is_too_long(4, ms(101), 11));
        assert!(!is_too_long(19, ms(101), 11) && is_too_long(20, ms(101), 11));
        assert!(!is_too_long(19, ms(200), 12), "it had little to do");
        assert!(!is_too_long(127, ms(201), 1_012) && is_too_long(128, ms(201), 1_012), "never more");
        assert!(is_too_long(4, ms(202), 1_012), "none has ended");
        is_too_long(4, ms(203), 1_022);
        assert!(is_too_long(4, ms(1_300), 1_023), "that was long ago");
    }
}
