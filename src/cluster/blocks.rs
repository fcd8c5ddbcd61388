//! Which blocks of memory are taken, in bits that one process sets and another clears.
//!
//! A run of blocks is in one word, so to take it or to give it back is one instruction, and neither waits for the other. Only one
//! thread takes blocks; anybody gives back what they have.

use crate::sync::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// The blocks of a word.
pub(crate) const OF_A_WORD: usize = u64::BITS as usize;

/// As many ones, of which there are at least one and at most [`OF_A_WORD`].
pub(crate) fn ones(count: usize) -> u64 {
    u64::MAX >> (OF_A_WORD - count)
}

/// Takes as many blocks in a row, and says where they begin. What those who had them did to them has been done.
pub(crate) fn take<'w>(words: impl Iterator<Item = &'w AtomicU64>, count: usize) -> Option<usize> {
    for (number, word) in words.enumerate() {
        // Where one that is free begins; then, where two do; and so on.
        let mut begin = !word.load(Acquire);
        let mut known = 1;
        while known < count {
            let more = known.min(count - known);
            begin &= begin >> more;
            known += more;
        }
        if begin != 0 {
            let at = begin.trailing_zeros() as usize;
            word.fetch_or(ones(count) << at, Relaxed);
            return Some(number * OF_A_WORD + at);
        }
    }
    None
}

/// Whether all of these are taken.
pub(crate) fn are_taken(word: &AtomicU64, bits: u64) -> bool {
    word.load(Acquire) & bits == bits
}

/// Gives these back. What was done to them before is done for whoever takes them next.
pub(crate) fn give(word: &AtomicU64, bits: u64) {
    word.fetch_and(!bits, Release);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_the_first_run_that_is_free() {
        let words: Vec<_> = [0, 0].map(AtomicU64::new).into();
        let take = |count| take(words.iter(), count);
        assert_eq!((take(1), take(9), take(54)), (Some(0), Some(1), Some(10)));
        assert_eq!((take(1), take(64)), (Some(64), None));
        assert!(are_taken(&words[0], u64::MAX) && !are_taken(&words[1], ones(2)));
        give(&words[0], ones(9) << 1);
        assert_eq!((take(10), take(5), take(5), take(4)), (Some(65), Some(1), Some(75), Some(6)));
        give(&words[1], u64::MAX);
        assert_eq!((take(64), take(1)), (Some(64), None));
    }

    #[test]
    fn every_run_is_found_where_a_plain_search_finds_it() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let taken = random.u64(..) & random.u64(..);
            let count = random.usize(1..=OF_A_WORD);
            let is_free = |at: usize| (at..at + count).all(|block| taken >> block & 1 == 0);
            let expected = (0..=OF_A_WORD - count).find(|at| is_free(*at));
            assert_eq!(take([AtomicU64::new(taken)].iter(), count), expected, "{count} in {taken:b}");
        }
    }
}
