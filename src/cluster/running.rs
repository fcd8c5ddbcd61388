//! What runs here for others: to be told to stop, and to give its result to what waits for it here.
//!
//! A node hands a task to the worker that makes its arguments before they are made. So a result is kept for a moment
//! after it has been sent: its node may have handed out one more that needs it before it knew. What comes too late
//! asks its node.

use super::protocol::ObjectId;
use crate::local::node::Node;
use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{Arc, Weak},
};

/// So many results are kept, for as long as one tick lasts, or two.
const KEPT: usize = 512;

/// A handle to what a task makes.
pub(super) type Made = Arc<dyn Any + Send + Sync>;

type Key = (ObjectId, u32);

#[derive(Default)]
pub(super) struct Running {
    tasks: BTreeMap<Key, Task>,
    /// Those that have ended, the oldest first, and how many of them had at the last tick.
    over: VecDeque<Key>,
    old: usize,
}

struct Task {
    node: Weak<dyn Node>,
    made: Option<Made>,
}

impl Running {
    pub(super) fn start(&mut self, task: Key, node: Weak<dyn Node>, made: Option<Made>) {
        self.tasks.insert(task, Task { node, made });
    }

    pub(super) fn node(&self, task: Key) -> Option<Arc<dyn Node>> {
        self.tasks.get(&task).and_then(|task| task.node.upgrade())
    }

    /// A handle to an object that is made here, or was.
    pub(super) fn made(&self, object: ObjectId) -> Option<Made> {
        let attempts = self.tasks.range((object, 0)..=(object, u32::MAX));
        attempts.rev().find_map(|(_, task)| task.made.clone())
    }

    /// It has ended; its result is worth keeping, or it is not. What is given back is to be dropped.
    pub(super) fn end(&mut self, task: Key, keeps: bool) -> Option<Made> {
        if !keeps || self.tasks.get(&task).is_none_or(|task| task.made.is_none()) {
            return self.tasks.remove(&task)?.made;
        }
        self.over.push_back(task);
        (self.over.len() > KEPT).then(|| self.forget())?
    }

    fn forget(&mut self) -> Option<Made> {
        let task = self.over.pop_front()?;
        self.old = self.old.saturating_sub(1);
        self.tasks.remove(&task)?.made
    }

    /// Some time has gone by.
    pub(super) fn tick(&mut self) -> Vec<Made> {
        let old = mem::replace(&mut self.old, 0);
        let dropped = (0..old).filter_map(|_| self.forget()).collect();
        self.old = self.over.len();
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::protocol::HEAD;

    #[test]
    fn results_are_kept_for_a_tick_and_not_too_many() {
        let mut running = Running::default();
        let key = |number| (ObjectId { owner: HEAD, number }, 1);
        let node = || Weak::<crate::cluster::remote::RemoteCell<()>>::new();
        let made: Vec<Made> = (0..600).map(|n| Arc::new(n) as Made).collect();
        for (number, made) in (0..).zip(&made) {
            running.start(key(number), node(), Some(made.clone()));
        }
        assert!(running.made(key(7).0).is_some());
        let dropped = (0..600).filter_map(|n| running.end(key(n), true)).count();
        assert_eq!(dropped, 600 - KEPT);
        assert!(running.made(key(0).0).is_none() && running.made(key(599).0).is_some());
        assert!(running.tick().is_empty());
        running.start(key(700), node(), Some(Arc::new(1)));
        running.end(key(700), true);
        assert_eq!(running.tick().len(), KEPT - 1);
        assert!(running.made(key(700).0).is_some());
        assert_eq!((running.tick().len(), running.tick().len(), running.tasks.len()), (1, 0, 0));
        running.start(key(1), node(), Some(Arc::new(1)));
        assert!(running.end(key(1), false).is_some());
    }
}
