//! Which results are likely to be looked at next.
//!
//! Who looks at one small result after the other, each of which is elsewhere, would wait for a message there and back each time. Mostly
//! they are looked at in the order in which they were submitted, as a file is read: so, as with files, those behind are fetched, too,
//! and more each time that was right.

use std::ops::RangeInclusive;

#[derive(Default)]
pub(super) struct ReadAhead {
    /// The number of the last that had to be fetched.
    last: u64,
    /// So many behind it were fetched with it.
    ahead: u64,
}

impl ReadAhead {
    const FEWEST: u64 = 4;
    const MOST: u64 = 256;
    /// So many bytes are fetched ahead at a time.
    pub(super) const BYTES: u64 = 1 << 20;

    /// One has to be fetched, because somebody looks at it: those that are likely to be next, which may be none.
    pub(super) fn look(&mut self, number: u64) -> RangeInclusive<u64> {
        let goes_on = (self.last + 1..=self.last + 1 + self.ahead).contains(&number);
        self.ahead = if goes_on { (2 * self.ahead).clamp(Self::FEWEST, Self::MOST) } else { 0 };
        self.last = number;
        number + 1..=number + self.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_read_ahead_as_long_as_that_is_right() {
        let mut reads = ReadAhead::default();
        assert!(reads.look(100).is_empty() && reads.look(50).is_empty());
        assert_eq!(reads.look(51), 52..=55);
        assert_eq!(reads.look(56), 57..=64);
        assert_eq!(reads.look(60), 61..=76, "some of them were not there");
        let asked = (0..1_000).fold((77, 0), |(number, _), _| (reads.look(number).end() + 1, reads.ahead));
        assert_eq!(asked.1, ReadAhead::MOST);
        assert!(reads.look(7).is_empty() && reads.look(9).is_empty());
        assert_eq!(reads.look(10), 11..=14);
    }
}
