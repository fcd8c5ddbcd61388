//! Where tasks were passed on to lately, for those that wait for them.

use super::protocol::{ObjectId, ProcessId};
use std::collections::{BTreeMap, VecDeque};

#[derive(Default)]
pub(super) struct Passed {
    /// The first of so many.
    nodes: BTreeMap<ObjectId, (u32, ProcessId)>,
    /// The newest last.
    order: VecDeque<ObjectId>,
}

impl Passed {
    const MOST: usize = 4_096;

    /// So many tasks, with numbers in a row, have gone there.
    pub(super) fn remember(&mut self, first: ObjectId, count: u32, node: ProcessId) {
        if self.nodes.insert(first, (count, node)).is_some() {
            return;
        }
        self.order.push_back(first);
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.nodes.remove(&oldest);
        }
    }

    pub(super) fn node(&self, object: ObjectId) -> Option<ProcessId> {
        let (first, (count, node)) = self.nodes.range(..=object).next_back()?;
        let is_one = first.owner == object.owner && object.number - first.number < u64::from(*count);
        is_one.then_some(*node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_newest() {
        let object = |number| ObjectId { owner: ProcessId(7), number };
        let mut passed = Passed::default();
        passed.remember(object(10), 5, ProcessId(1));
        passed.remember(object(15), 1, ProcessId(2));
        let nodes = [9, 10, 14, 15, 16].map(|number| passed.node(object(number)));
        assert_eq!(nodes, [None, Some(ProcessId(1)), Some(ProcessId(1)), Some(ProcessId(2)), None]);
        assert_eq!(passed.node(ObjectId { owner: ProcessId(8), number: 10 }), None);
        passed.remember(object(10), 5, ProcessId(3));
        assert_eq!(passed.node(object(12)), Some(ProcessId(3)));
        (100..100 + Passed::MOST as u64).for_each(|number| passed.remember(object(number), 1, ProcessId(4)));
        assert_eq!(passed.node(object(12)), None);
        assert_eq!((passed.nodes.len(), passed.order.len()), (Passed::MOST, Passed::MOST));
    }
}
