//! Which results are likely to be looked at next.
//!
//! Who looks at one result after the other, each of which is elsewhere, would wait for a message there and back each time. Mostly
//! they are looked at in the order in which they were submitted, as a file is read, or backwards: so, as with files, those that follow
//! are fetched, too, and more each time that was right.

use std::ops::RangeInclusive;

#[derive(Default)]
pub(super) struct ReadAhead {
    /// The number of the last that had to be fetched.
    last: u64,
    /// So many that follow it were fetched with it.
    ahead: u64,
    is_backwards: bool,
}

impl ReadAhead {
    const FEWEST: u64 = 4;
    const MOST: u64 = 256;
    /// So many bytes are fetched ahead at a time.
    pub(super) const BYTES: u64 = 1 << 20;

    /// One has to be fetched, because somebody looks at it: those that are likely to be next, the first of them first. It may be none.
    pub(super) fn look(&mut self, number: u64) -> impl Iterator<Item = u64> + use<> {
        let near = |from: u64, to: u64| (1..=1 + self.ahead).contains(&to.saturating_sub(from));
        let goes_on = [(false, near(self.last, number)), (true, near(number, self.last))];
        let way = goes_on.into_iter().find(|(way, near)| *near && (self.ahead == 0 || *way == self.is_backwards));
        self.last = number;
        match way {
            None => self.ahead = 0,
            Some((is_backwards, _)) => {
                self.is_backwards = is_backwards;
                self.ahead = (2 * self.ahead).clamp(Self::FEWEST, Self::MOST);
            }
        }
        let next: RangeInclusive<u64> = 1..=self.ahead;
        let is_backwards = self.is_backwards;
        next.filter_map(move |by| if is_backwards { number.checked_sub(by) } else { number.checked_add(by) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_read_ahead_as_long_as_that_is_right() {
        let mut reads = ReadAhead::default();
        let mut look = |number| {
            let next: Vec<_> = reads.look(number).collect();
            (next.len(), next.first().copied(), next.last().copied())
        };
        let (nothing, some) =
            ((0, None, None), |first: u64, last: u64| (first.abs_diff(last) as usize + 1, Some(first), Some(last)));
        assert_eq!((look(100), look(50)), (nothing, nothing));
        assert_eq!(look(51), some(52, 55));
        assert_eq!(look(56), some(57, 64));
        assert_eq!(look(60), some(61, 76), "some of them were not there");
        let mut number = 77;
        for _ in 0..10 {
            number = look(number).2.unwrap() + 1;
        }
        assert_eq!(look(number), some(number + 1, number + ReadAhead::MOST));
        // Backwards.
        assert_eq!((look(number - 1), look(7), look(9)), (nothing, nothing, nothing));
        assert_eq!((look(8), look(3)), (some(7, 4), some(2, 0)), "there are no more");
        assert_eq!(look(4), nothing);
        assert_eq!((look(5), look(u64::MAX), look(0)), (some(6, 9), nothing, nothing));
    }
}
