//! The calls that a worker has, by themselves and in packs.

use super::report::Titled;
use crate::cluster::protocol::ObjectId;
use std::{collections::BTreeMap, sync::Arc};

/// A call, as a node knows it.
pub(super) struct Call {
    pub(super) actor: ObjectId,
    pub(super) titled: Arc<Titled>,
    /// Its number in the process that made it.
    pub(super) number: u64,
    /// When its worker got it: nanoseconds since the node was started.
    pub(super) since: u64,
}

/// Calls of one actor's that came together; their objects have numbers in a row.
pub(super) struct CallPack {
    pub(super) actor: ObjectId,
    pub(super) titled: Arc<Titled>,
    pub(super) numbers: Box<[u64]>,
    pub(super) since: u64,
    /// A bit for each.
    ended: u128,
}

impl CallPack {
    pub(super) fn new(actor: ObjectId, titled: Titled, numbers: Box<[u64]>, since: u64) -> CallPack {
        CallPack { actor, titled: Arc::new(titled), numbers, since, ended: 0 }
    }

    fn call(&self, at: usize) -> Call {
        Call { actor: self.actor, titled: self.titled.clone(), number: self.numbers[at], since: self.since }
    }

    fn left(&self) -> usize {
        self.numbers.len() - self.ended.count_ones() as usize
    }

    fn has(&self, at: usize) -> bool {
        at < self.numbers.len() && self.ended >> at & 1 == 0
    }
}

/// Those of one worker.
#[derive(Default)]
pub(super) struct Calls {
    alone: BTreeMap<ObjectId, Call>,
    packs: BTreeMap<ObjectId, CallPack>,
}

impl Calls {
    pub(super) fn begin(&mut self, id: ObjectId, call: Call) {
        self.alone.insert(id, call);
    }

    pub(super) fn begin_pack(&mut self, first: ObjectId, pack: CallPack) {
        self.packs.insert(first, pack);
    }

    /// The pack that a call is in which has not ended, and its place there.
    fn packed(&self, id: ObjectId) -> Option<(ObjectId, usize)> {
        let (first, pack) = self.packs.range(..=id).next_back()?;
        let at = id.number.checked_sub(first.number).filter(|_| first.owner == id.owner)? as usize;
        pack.has(at).then_some((*first, at))
    }

    pub(super) fn contains(&self, id: ObjectId) -> bool {
        self.alone.contains_key(&id) || self.packed(id).is_some()
    }

    /// It has ended.
    pub(super) fn end(&mut self, id: ObjectId) -> Option<Call> {
        let Some((first, at)) = self.packed(id) else { return self.alone.remove(&id) };
        let pack = self.packs.get_mut(&first)?;
        pack.ended |= 1 << at;
        let call = pack.call(at);
        if pack.left() == 0 {
            self.packs.remove(&first);
        }
        Some(call)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alone.is_empty() && self.packs.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.alone.len() + self.packs.values().map(CallPack::left).sum::<usize>()
    }

    /// How many are of this actor.
    pub(super) fn of(&self, actor: ObjectId) -> usize {
        let alone = self.alone.values().filter(|call| call.actor == actor).count();
        alone + self.packs.values().filter(|pack| pack.actor == actor).map(CallPack::left).sum::<usize>()
    }

    /// What one of them is called.
    pub(super) fn any(&self) -> Option<&Titled> {
        let alone = self.alone.values().next().map(|call| &*call.titled);
        alone.or_else(|| self.packs.values().next().map(|pack| &*pack.titled))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ObjectId, Call)> {
        let copy = |call: &Call| Call { titled: call.titled.clone(), ..*call };
        let alone = self.alone.iter().map(move |(id, call)| (*id, copy(call)));
        let packed = self.packs.iter().flat_map(|(first, pack)| {
            let those = (0..pack.numbers.len()).filter(|at| pack.has(*at));
            those.map(|at| (ObjectId { number: first.number + at as u64, ..*first }, pack.call(at)))
        });
        alone.chain(packed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{pack::Common, protocol::ProcessId};

    #[test]
    fn calls_end_one_by_one_wherever_they_came_from() {
        let id = |owner, number| ObjectId { owner: ProcessId(owner), number };
        let common = Common { driver: ProcessId(1), function: Default::default(), location: "here".into() };
        let titled = || Titled::of_pack(&common);
        let (mut calls, actor) = (Calls::default(), id(9, 9));
        calls.begin(id(1, 5), Call { actor, titled: titled().into(), number: 1, since: 0 });
        calls.begin_pack(id(1, 10), CallPack::new(actor, titled(), [7, 8, 9].into(), 0));
        assert_eq!((calls.len(), calls.of(actor), calls.of(id(9, 8))), (4, 4, 0));
        // Another owner's, with a smaller number.
        assert!(!calls.contains(id(2, 3)) && !calls.contains(id(1, 13)) && calls.end(id(2, 3)).is_none());
        assert_eq!(calls.end(id(1, 11)).map(|call| call.number), Some(8));
        assert!(!calls.contains(id(1, 11)) && calls.contains(id(1, 12)) && calls.any().is_some());
        let numbers = calls.iter().map(|(id, call)| (id.number, call.number));
        assert_eq!(numbers.collect::<Vec<_>>(), [(5, 1), (10, 7), (12, 9)]);
        for number in [5, 10, 12] {
            assert!(calls.end(id(1, number)).is_some() && calls.end(id(1, number)).is_none());
        }
        assert!(calls.is_empty() && calls.packs.is_empty());
    }
}
