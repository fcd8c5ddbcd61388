//! What runs here for others: to be told to stop, and to give its result to what waits for it here.
//!
//! A node hands a task to the worker that makes its arguments before they are made. So the bytes of a small result are
//! kept for a moment after they were sent: its node may have handed out one more that needs it before it knew, and what it
//! hands out after that needs no copy ([`Heard`] is how it knows what is still there). What comes too late asks its node.

use super::{
    client::Client,
    pack::{Common, Member, Pack},
    protocol::{ObjectId, ProcessId},
    rows::Rows,
    worker::TICK,
};
use crate::{
    local::{Work, node::Node},
    serial::Given,
};
use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::{
    any::Any,
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{Arc, Weak},
    time::Duration,
};

/// So many results are kept, and so many bytes, for as long as one tick lasts, or two.
const KEPT: usize = 1_024;
const KEPT_BYTES: usize = 8 << 20;

/// So much of a worker's results its node has heard of: they have a place in a row.
#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    count: u64,
    bytes: u64,
}

impl Heard {
    /// One more, which is in the last place now.
    pub(super) fn hear(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes as u64;
    }

    /// Whether the worker is likely to have one that was heard of then, so long ago: only half of what is kept counts.
    pub(super) fn has(&self, then: Heard, ago: Duration) -> bool {
        let (count, bytes) = (self.count - then.count, self.bytes - then.bytes);
        count < KEPT as u64 / 2 && bytes < KEPT_BYTES as u64 / 2 && ago < TICK / 2
    }
}

/// A handle to what a task makes.
pub(super) type Made = Arc<dyn Any + Send + Sync>;

type Key = (ObjectId, u32);

#[derive(Default)]
pub(super) struct Running {
    /// Calls, and first attempts of tasks, by who has submitted them.
    tasks: FxHashMap<ProcessId, Rows<Task>>,
    /// Later attempts.
    again: BTreeMap<Key, Task>,
    /// Packs that may have tasks that have not come up.
    packs: Vec<Weak<PackRun>>,
    /// Those that have ended, the oldest first, their bytes, and how many of them had ended at the last tick.
    over: VecDeque<Key>,
    bytes: usize,
    old: usize,
}

/// A pack whose tasks come up one by one, on the threads that run them: each time it is run it submits the next, and
/// lies behind that in the queue. So all of a task is done on one thread, and while one waits others go on with the rest.
pub(super) struct PackRun {
    client: Arc<Client>,
    common: Common,
    /// Those that have not come up, with the objects that they make.
    rest: Mutex<VecDeque<(ObjectId, Member)>>,
}

impl PackRun {
    pub(super) fn new(client: &Arc<Client>, first: ObjectId, pack: Pack) -> Arc<PackRun> {
        let objects = (first.number..).map(|number| ObjectId { number, ..first });
        let rest = Mutex::new(objects.zip(pack.members).collect());
        Arc::new(PackRun { client: client.clone(), common: pack.common, rest })
    }

    fn has(&self, task: ObjectId) -> bool {
        self.rest.lock().iter().any(|(object, _)| *object == task)
    }

    /// Takes out a task that has not come up: it never will.
    pub(super) fn withdraw(&self, task: ObjectId) -> bool {
        let rest = &mut *self.rest.lock();
        let at = rest.iter().position(|(object, _)| *object == task);
        at.is_some_and(|at| rest.remove(at).is_some())
    }
}

impl Work for PackRun {
    fn run(self: Arc<Self>) {
        let (next, is_last) = {
            let rest = &mut *self.rest.lock();
            (rest.pop_front(), rest.is_empty())
        };
        let Some((task, member)) = next else { return };
        if !is_last {
            self.client.core.schedule(self.clone());
        }
        self.client.run_member(task, &self.common, member);
    }
}

struct Task {
    /// 0: it is a call.
    attempt: u32,
    node: Weak<dyn Node>,
    result: Given,
}

impl Running {
    pub(super) fn start(&mut self, task: Key, node: Weak<dyn Node>, made: Option<Made>) {
        let result = made.map_or(Given::Nothing, Given::Made);
        let entry = Task { attempt: task.1, node, result };
        match task {
            (object, ..=1) => drop(self.tasks.entry(object.owner).or_default().insert(object.number, entry)),
            again => drop(self.again.insert(again, entry)),
        }
    }

    fn get(&self, task: Key) -> Option<&Task> {
        match task {
            (object, ..=1) => self.tasks.get(&object.owner)?.get(object.number),
            again => self.again.get(&again),
        }
    }

    fn get_mut(&mut self, task: Key) -> Option<&mut Task> {
        match task {
            (object, ..=1) => self.tasks.get_mut(&object.owner)?.get_mut(object.number),
            again => self.again.get_mut(&again),
        }
    }

    /// What is known of the attempts of a task, the newest first.
    fn attempts(&self, object: ObjectId) -> impl Iterator<Item = &Task> {
        let again = self.again.range((object, 0)..=(object, u32::MAX)).map(|(_, task)| task).rev();
        again.chain(self.get((object, 0)))
    }

    fn remove(&mut self, task: Key) -> Option<Task> {
        match task {
            (object, ..=1) => self.tasks.get_mut(&object.owner)?.remove(object.number),
            again => self.again.remove(&again),
        }
    }

    /// Tasks that come up one by one.
    pub(super) fn begin(&mut self, pack: &Arc<PackRun>) {
        if self.packs.len() >= 2 * self.packs.iter().filter(|pack| pack.strong_count() > 0).count().max(8) {
            self.packs.retain(|pack| pack.strong_count() > 0);
        }
        self.packs.push(Arc::downgrade(pack));
    }

    /// The pack that a task is in which has not come up.
    pub(super) fn pack(&self, task: ObjectId) -> Option<Arc<PackRun>> {
        self.packs.iter().filter_map(Weak::upgrade).find(|pack| pack.has(task))
    }

    pub(super) fn node(&self, task: Key) -> Option<Arc<dyn Node>> {
        self.get(task)?.node.upgrade()
    }

    /// Of what is made here, the newest attempt.
    pub(super) fn newest(&self, object: ObjectId) -> Option<Arc<dyn Node>> {
        self.attempts(object).find_map(|task| task.node.upgrade())
    }

    /// All that has not ended.
    pub(super) fn nodes(&self) -> Vec<(Key, Arc<dyn Node>)> {
        let of = |owner| move |(number, task)| (ObjectId { owner, number }, task);
        let first = self.tasks.iter().flat_map(|(owner, tasks)| tasks.iter().map(of(*owner)));
        let all = first
            .map(|(object, task)| ((object, task.attempt), task))
            .chain(self.again.iter().map(|(key, task)| (*key, task)));
        let nodes = all.filter_map(|(key, task)| Some((key, task.node.upgrade()?)));
        nodes.filter(|(_, node)| !node.is_done()).collect()
    }

    /// What is known here of an object that is made here, or was.
    pub(super) fn result(&self, object: ObjectId) -> Given {
        self.attempts(object).map(|task| task.result.clone()).next().unwrap_or_default()
    }

    /// It has ended, with this result if that is worth keeping. What is given back is to be dropped.
    pub(super) fn end(&mut self, task: Key, result: Option<&Bytes>) -> Option<Given> {
        let entry = self.get_mut(task)?;
        let (Given::Made(_), Some(result)) = (&entry.result, result) else {
            return Some(self.remove(task)?.result);
        };
        let made = mem::replace(&mut entry.result, Given::Value(result.clone()));
        self.bytes += result.len();
        self.over.push_back(task);
        while self.over.len() > KEPT || self.bytes > KEPT_BYTES {
            self.forget();
        }
        Some(made)
    }

    fn forget(&mut self) {
        let Some(task) = self.over.pop_front() else { return };
        self.old = self.old.saturating_sub(1);
        if let Some(Task { result: Given::Value(value), .. }) = self.remove(task) {
            self.bytes -= value.len();
        }
    }

    /// Some time has gone by.
    pub(super) fn tick(&mut self) {
        (0..mem::take(&mut self.old)).for_each(|_| self.forget());
        self.tasks.retain(|_, tasks| !tasks.is_empty());
        self.old = self.over.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{protocol::HEAD, remote::RemoteCell};

    #[test]
    fn results_are_kept_for_a_tick_and_not_too_many() {
        let mut running = Running::default();
        let key = |number| (ObjectId { owner: HEAD, number }, 1);
        let count = |running: &Running| running.tasks.values().map(Rows::len).sum::<usize>();
        let start = |running: &mut Running, number| {
            running.start(key(number), Weak::<RemoteCell<()>>::new(), Some(Arc::new(number)));
        };
        const ALL: u64 = KEPT as u64 + 100;
        (0..ALL).for_each(|number| start(&mut running, number));
        assert!(matches!(running.result(key(7).0), Given::Made(_)));
        let value = Bytes::from_static(b"1234");
        assert!((0..ALL).all(|n| matches!(running.end(key(n), Some(&value)), Some(Given::Made(_)))));
        assert!(matches!(running.result(key(0).0), Given::Nothing));
        assert!(matches!(running.result(key(ALL - 1).0), Given::Value(_)));
        assert_eq!((count(&running), running.bytes), (KEPT, 4 * KEPT));
        running.tick();
        start(&mut running, ALL);
        running.end(key(ALL), Some(&value));
        running.tick();
        assert_eq!((count(&running), running.bytes), (1, 4));
        running.tick();
        running.tick();
        assert_eq!((count(&running), running.tasks.len(), running.bytes, running.old), (0, 0, 0, 0));
        // What is large is not kept, nor more than there is room for.
        start(&mut running, 1);
        assert!(matches!(running.end(key(1), None), Some(Given::Made(_))));
        for number in 0..3 {
            start(&mut running, number);
            running.end(key(number), Some(&vec![0; KEPT_BYTES / 2].into()));
        }
        assert_eq!((count(&running), running.bytes), (2, KEPT_BYTES));
    }

    #[test]
    fn what_a_worker_has_made_lately_it_is_thought_to_have() {
        let mut heard = Heard::default();
        heard.hear(100);
        let then = heard;
        (1..KEPT / 2).for_each(|_| heard.hear(1));
        assert!(heard.has(then, Duration::ZERO) && !heard.has(then, TICK));
        heard.hear(1);
        assert!(!heard.has(then, Duration::ZERO), "there were too many since");
        let then = heard;
        heard.hear(KEPT_BYTES / 2);
        assert!(!heard.has(then, Duration::ZERO), "they were too large");
        assert!(heard.has(heard, Duration::ZERO));
    }
}
