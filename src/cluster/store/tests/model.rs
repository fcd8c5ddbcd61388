//! Random operations, against what they should do.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const BUDGET: u64 = 4 * MIB;

#[derive(Clone, Debug)]
enum Op {
    Put(u64, u64),
    Begin(u64, u64),
    End(usize, bool),
    Work(u64, u64),
    Hold(u64),
    Map(u64),
    Release(usize),
    Unmap(usize),
    Remove(u64),
    Trim,
}

fn op() -> impl Strategy<Value = Op> {
    let id = || 0..8_u64;
    let size = || prop_oneof![1..20_000_u64, MIB / 2..2 * MIB, Just(MIB), Just(BUDGET + 1)];
    prop_oneof![
        4 => (id(), size()).prop_map(|(id, size)| Op::Put(id, size)),
        1 => (id(), size()).prop_map(|(id, size)| Op::Begin(id, size)),
        1 => (0..3_usize, any::<bool>()).prop_map(|(number, seal)| Op::End(number, seal)),
        2 => (id(), size()).prop_map(|(id, size)| Op::Work(id, size)),
        3 => id().prop_map(Op::Hold),
        3 => id().prop_map(Op::Map),
        3 => (0..4_usize).prop_map(Op::Release),
        3 => (0..4_usize).prop_map(Op::Unmap),
        2 => id().prop_map(Op::Remove),
        1 => Just(Op::Trim),
    ]
}

/// An object: its seed tells it from all others, also of the same number.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Known {
    seed: u64,
    size: u64,
}

#[derive(Default)]
struct Model {
    objects: BTreeMap<u64, Known>,
    writers: Vec<(u64, Known, Writer)>,
    held: Vec<(Known, Object)>,
    mapped: Vec<(Known, Bytes)>,
    seeds: u64,
}

impl Model {
    fn next(&mut self, size: u64) -> Known {
        self.seeds += 1;
        Known { seed: self.seeds, size }
    }

    /// What cannot leave memory.
    fn in_use(&self) -> u64 {
        let writers = self.writers.iter().map(|(_, known, _)| *known);
        // Who holds a removed object holds nothing.
        let held = self.held.iter().map(|(known, _)| *known);
        let held = held.filter(|known| self.objects.values().any(|there| there == known));
        let all = writers.chain(held).chain(self.mapped.iter().map(|(known, _)| *known));
        let files: BTreeMap<u64, u64> = all.map(|known| (known.seed, known.size.next_multiple_of(4096))).collect();
        files.values().sum()
    }

    /// Errors are for good reasons, and where there is one there is an error.
    fn check<T>(&self, result: Result<T, StoreError>, size: u64, is_new: bool, id: u64) -> Option<T> {
        let exists = self.objects.contains_key(&id) || self.writers.iter().any(|(other, ..)| *other == id);
        let is_full = self.in_use() + size.next_multiple_of(4096) > BUDGET;
        match result {
            Ok(value) => {
                assert!(size <= BUDGET && !(is_new && exists));
                Some(value)
            }
            Err(StoreError::Exists { .. }) => {
                assert!(is_new && exists);
                None
            }
            Err(StoreError::TooLarge { .. }) => {
                assert!(size > BUDGET);
                None
            }
            Err(StoreError::Full { .. }) => {
                assert!(is_full, "there was room");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn get(&self, store: &Store, id: u64) -> Option<(Known, Object)> {
        let found = store.get((9, id));
        let Some(known) = self.objects.get(&id) else {
            assert!(found.unwrap().is_none());
            return None;
        };
        let object = self.check(found, known.size, false, id)?.expect("nothing is lost");
        assert_eq!(object.size(), known.size);
        Some((*known, object))
    }

    fn run(&mut self, store: &Store, op: Op) {
        match op {
            Op::Put(id, size) | Op::Begin(id, size) => {
                let known = self.next(size);
                let Some(mut writer) = self.check(store.create((9, id), size), size, true, id) else { return };
                writer.write_at(0, &content(known.seed, size)).unwrap();
                if matches!(op, Op::Begin(..)) {
                    return self.writers.push((id, known, writer));
                }
                writer.seal().unwrap();
                self.objects.insert(id, known);
            }
            Op::End(number, seal) if number < self.writers.len() => {
                let (id, known, writer) = self.writers.swap_remove(number);
                if seal {
                    writer.seal().unwrap();
                    self.objects.insert(id, known);
                }
            }
            Op::Work(id, size) => {
                let known = self.next(size);
                let Some(path) = self.check(store.reserve((9, id), size), size, true, id) else { return };
                let mut draft = Draft::open(&path, size).unwrap();
                draft.bytes().unwrap().copy_from_slice(&content(known.seed, size));
                assert!(matches!(store.adopt((9, id)), Err(StoreError::StillWritten { .. })));
                draft.finish();
                store.adopt((9, id)).unwrap();
                self.objects.insert(id, known);
            }
            Op::Hold(id) => self.held.extend(self.get(store, id)),
            Op::Map(id) => {
                if let Some((known, object)) = self.get(store, id) {
                    self.mapped.push((known, object.map().unwrap()));
                }
            }
            Op::Release(number) if number < self.held.len() => drop(self.held.swap_remove(number)),
            Op::Unmap(number) if number < self.mapped.len() => drop(self.mapped.swap_remove(number)),
            Op::Remove(id) => {
                let is_there = self.objects.remove(&id).is_some();
                if !self.writers.iter().any(|(other, ..)| *other == id) {
                    assert_eq!(store.remove((9, id)), is_there);
                }
            }
            Op::Trim => store.trim(),
            Op::End(..) | Op::Release(_) | Op::Unmap(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_the_budget_holds(ops in prop::collection::vec(op(), 30..80)) {
        let scratch = Scratch::new();
        let store = scratch.store(BUDGET);
        let mut model = Model::default();
        for op in ops {
            model.run(&store, op);
            let stats = store.stats();
            prop_assert!(stats.used <= BUDGET);
            prop_assert_eq!(memory(&scratch.0.join("memory")), stats.used);
            prop_assert_eq!(stats.objects, model.objects.len());
            for (known, bytes) in &model.mapped {
                prop_assert!(**bytes == content(known.seed, known.size));
            }
        }
        model.held.clear();
        model.mapped.clear();
        model.writers.clear();
        for id in 0..8 {
            if let Some((known, object)) = model.get(&store, id) {
                prop_assert!(*object.map().unwrap() == content(known.seed, known.size));
            }
            store.remove((9, id));
        }
        store.trim();
        prop_assert_eq!(Stats { spilled: 0, restored: 0, reused: 0, ..store.stats() }, Stats::default());
        prop_assert_eq!(memory(&scratch.0), 0);
        drop(store);
        prop_assert!(files(&scratch.0).is_empty());
    }
}
