//! Whom a node sends its large objects to, and who waits for one: many who want the same object get it as a tree.
//!
//! An object goes to [`AT_ONCE`] nodes at a time. Who asks meanwhile waits. When one of the first has it, half of
//! those that wait are sent on to that one, which does the same with them. So n nodes have it after about log2 n
//! transfers in a row, and none of them sends it much more often than that; without this the first would send it n
//! times. Who waits, waits for a node that has the whole object, so there are no circles.
//!
//! # Invariants
//! - Who asked is sent the object, or told where else it is, or that it is gone; once.
//! - Nobody waits unless [`AT_ONCE`] others are under way, each of which says when it is done, or dies.

use super::protocol::{ObjectId, ProcessId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Two, so that one that is slow does not hold up all others.
const AT_ONCE: usize = 2;
/// What is smaller is sent at once: to be told to ask another would take longer.
pub(super) const LARGE: u64 = 1 << 20;

#[derive(Default)]
pub(super) struct Serving(BTreeMap<ObjectId, Line>);

#[derive(Default)]
struct Line {
    /// They get it now.
    served: BTreeSet<ProcessId>,
    waiting: VecDeque<ProcessId>,
}

/// What those get that waited.
#[derive(Default, Debug, PartialEq)]
pub(super) struct Next {
    /// The object.
    pub(super) here: Vec<ProcessId>,
    /// The name of the one that has it now.
    pub(super) there: Vec<ProcessId>,
}

impl Line {
    fn next(&mut self) -> Vec<ProcessId> {
        let count = AT_ONCE.saturating_sub(self.served.len()).min(self.waiting.len());
        let next: Vec<_> = self.waiting.drain(..count).collect();
        self.served.extend(&next);
        next
    }
}

impl Serving {
    /// A node asks for an object; whether it gets it now.
    pub(super) fn asks(&mut self, object: ObjectId, size: u64, by: ProcessId) -> bool {
        if size < LARGE {
            return true;
        }
        let line = self.0.entry(object).or_default();
        if line.served.len() < AT_ONCE || line.served.contains(&by) {
            line.served.insert(by);
            return true;
        }
        if !line.waiting.contains(&by) {
            line.waiting.push_back(by);
        }
        false
    }

    /// A node that was sent an object has it now, or has not got it and does not try any more.
    pub(super) fn ends(&mut self, object: ObjectId, of: ProcessId, is_well: bool) -> Next {
        let Some(line) = self.0.get_mut(&object) else { return Next::default() };
        if !line.served.remove(&of) {
            return Next::default();
        }
        let there = if is_well { line.waiting.len().div_ceil(2) } else { 0 };
        let there = line.waiting.drain(..there).collect();
        let here = line.next();
        if line.served.is_empty() {
            self.0.remove(&object);
        }
        Next { here, there }
    }

    /// An object is here no more; returns who waits for it.
    pub(super) fn gone(&mut self, object: ObjectId) -> impl Iterator<Item = ProcessId> + use<> {
        self.0.remove(&object).into_iter().flat_map(|line| line.waiting)
    }

    /// A process is dead, and its objects gone; returns who gets what now.
    pub(super) fn buried(&mut self, process: ProcessId) -> Vec<(ObjectId, ProcessId)> {
        let mut next = Vec::new();
        self.0.retain(|object, line| {
            if object.owner == process {
                return false; // those who wait are told so, too
            }
            line.served.remove(&process);
            line.waiting.retain(|waiting| *waiting != process);
            next.extend(line.next().into_iter().map(|to| (*object, to)));
            !line.served.is_empty()
        });
        next
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: ObjectId = ObjectId { owner: ProcessId(1), number: 1 };

    fn nodes(numbers: impl IntoIterator<Item = u64>) -> Vec<ProcessId> {
        numbers.into_iter().map(ProcessId).collect()
    }

    #[test]
    fn half_of_those_that_wait_are_sent_to_who_has_it() {
        let mut serving = Serving::default();
        let now: Vec<bool> = (10..17).map(|node| serving.asks(OBJECT, LARGE, ProcessId(node))).collect();
        assert_eq!(now, [true, true, false, false, false, false, false]);
        let next = serving.ends(OBJECT, ProcessId(11), true);
        assert_eq!(next, Next { here: nodes([15]), there: nodes([12, 13, 14]) });
        let next = serving.ends(OBJECT, ProcessId(10), true);
        assert_eq!(next, Next { here: Vec::new(), there: nodes([16]) });
        assert_eq!(serving.ends(OBJECT, ProcessId(15), true), Next::default());
        assert!(serving.is_empty());
    }

    #[test]
    fn who_fails_or_dies_makes_room_and_is_nobodys_source() {
        let mut serving = Serving::default();
        for node in 10..14 {
            serving.asks(OBJECT, LARGE, ProcessId(node));
        }
        assert_eq!(serving.ends(OBJECT, ProcessId(10), false), Next { here: nodes([12]), there: Vec::new() });
        assert_eq!(serving.ends(OBJECT, ProcessId(10), true), Next::default());
        assert_eq!(serving.buried(ProcessId(11)), [(OBJECT, ProcessId(13))]);
        serving.asks(OBJECT, LARGE, ProcessId(14));
        assert_eq!(serving.buried(ProcessId(14)), []);
        assert!(serving.asks(OBJECT, LARGE, ProcessId(12)), "who asks again has lost what it got");
        assert!(!serving.asks(OBJECT, LARGE, ProcessId(15)));
        assert_eq!(serving.gone(OBJECT).collect::<Vec<_>>(), nodes([15]));
        assert!(serving.is_empty());
    }

    #[test]
    fn small_objects_and_objects_of_the_dead_are_not_kept_account_of() {
        let mut serving = Serving::default();
        assert!((0..9).all(|node| serving.asks(OBJECT, LARGE - 1, ProcessId(node))));
        assert!(serving.is_empty());
        assert!(serving.asks(OBJECT, LARGE, ProcessId(10)));
        assert_eq!(serving.buried(OBJECT.owner), []);
        assert!(serving.is_empty());
    }

    /// Everybody asks the first at once, and transfers take the same time: how often the busiest sends it, and in
    /// how many rounds.
    #[test]
    fn the_load_of_a_broadcast_grows_with_the_logarithm() {
        for pullers in [1u64, 3, 7, 31, 255] {
            let mut has: BTreeMap<ProcessId, Serving> = BTreeMap::from([(ProcessId(0), Serving::default())]);
            let mut sent: BTreeMap<ProcessId, u64> = BTreeMap::new();
            let mut asks: VecDeque<_> = (1..=pullers).map(|node| (ProcessId(0), ProcessId(node))).collect();
            let (mut under_way, mut rounds) = (Vec::new(), 0);
            while has.len() as u64 <= pullers {
                for (at, by) in asks.drain(..) {
                    if has.get_mut(&at).unwrap().asks(OBJECT, LARGE, by) {
                        under_way.push((at, by));
                    }
                }
                rounds += 1;
                assert!(!under_way.is_empty());
                for (from, to) in std::mem::take(&mut under_way) {
                    *sent.entry(from).or_default() += 1;
                    has.insert(to, Serving::default());
                    let next = has.get_mut(&from).unwrap().ends(OBJECT, to, true);
                    under_way.extend(next.here.into_iter().map(|next| (from, next)));
                    asks.extend(next.there.into_iter().map(|next| (to, next)));
                }
            }
            let most = sent.values().max().unwrap();
            assert!(*most <= 2 + u64::from(pullers.ilog2()), "{pullers}: {sent:?}");
            assert!(rounds <= 2 + pullers.ilog2(), "{pullers}: {rounds} rounds");
        }
    }
}
