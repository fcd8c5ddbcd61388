//! The round trip of arguments, results and puts through serialization, for values of all shapes.

mod common;

use common::{builder, on_cluster, watch};
use outray::{ObjectRef, Runtime};
use proptest::{collection, option, prelude::*, test_runner::TestRunner};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

fn checking() -> Runtime {
    builder().cpus(2).check_serialization(true).build().expect("a runtime")
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Unit;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct New(i64);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pair(u8, String);

/// Floats that are compared by their bits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Floats {
    double: f64,
    single: f32,
}

impl PartialEq for Floats {
    fn eq(&self, other: &Self) -> bool {
        self.double.to_bits() == other.double.to_bits() && self.single.to_bits() == other.single.to_bits()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    New(String),
    Tuple(u8, i64, char),
    Struct { x: Floats, label: Option<String> },
    Nested(Box<Shape>),
    Many(Vec<Shape>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    unit: Unit,
    new: New,
    pair: Pair,
    numbers: (u8, u16, u32, u64, i8, i16, i32, i64),
    wide: (u128, i128),
    floats: Vec<Floats>,
    text: String,
    letter: char,
    yes: bool,
    nothing: (),
    bytes: Vec<u8>,
    array: [u16; 5],
    maybe: Option<Pair>,
    result: Result<u64, String>,
    shape: Shape,
    by_name: BTreeMap<String, Option<i32>>,
    by_number: HashMap<u64, Vec<bool>>,
    by_pair: BTreeMap<(u8, String), Unit>,
    by_variant: BTreeMap<Key, u8>,
    set: BTreeSet<i128>,
    shared: Arc<New>,
    boxed: Box<[String]>,
    time: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Key {
    Plain,
    Number(u32),
}

/// All bit patterns: infinities, subnormals, and NaNs with their payloads.
fn floats() -> impl Strategy<Value = Floats> {
    let double = prop_oneof![any::<u64>(), any::<u64>().prop_map(|bits| bits | 0x7ff8 << 48)];
    let single = prop_oneof![any::<u32>(), any::<u32>().prop_map(|bits| bits | 0x7fc0 << 16)];
    (double, single).prop_map(|(d, s)| Floats { double: f64::from_bits(d), single: f32::from_bits(s) })
}

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Unit),
        any::<String>().prop_map(Shape::New),
        any::<(u8, i64, char)>().prop_map(|(a, b, c)| Shape::Tuple(a, b, c)),
        (floats(), option::of(any::<String>())).prop_map(|(x, label)| Shape::Struct { x, label }),
    ];
    leaf.prop_recursive(5, 30, 5, |inner| {
        prop_oneof![
            inner.clone().prop_map(|shape| Shape::Nested(Box::new(shape))),
            collection::vec(inner, 0..5).prop_map(Shape::Many),
        ]
    })
}

fn everything() -> impl Strategy<Value = Everything> {
    let key = prop_oneof![Just(Key::Plain), any::<u32>().prop_map(Key::Number)];
    let scalars = (
        any::<i64>(),
        any::<(u8, String)>(),
        any::<(u8, u16, u32, u64, i8, i16, i32, i64)>(),
        any::<(u128, i128)>(),
        collection::vec(floats(), 0..6),
        any::<(String, char, bool)>(),
        collection::vec(any::<u8>(), 0..300),
        any::<[u16; 5]>(),
        option::of(any::<(u8, String)>()),
        any::<Result<u64, String>>(),
    );
    let rest = (
        shape(),
        collection::btree_map(any::<String>(), any::<Option<i32>>(), 0..5),
        collection::hash_map(any::<u64>(), collection::vec(any::<bool>(), 0..4), 0..5),
        collection::btree_map(any::<(u8, String)>(), Just(Unit), 0..4),
        collection::btree_map(key, any::<u8>(), 0..4),
        collection::btree_set(any::<i128>(), 0..5),
        any::<i64>(),
        collection::vec(any::<String>(), 0..4),
        (any::<u64>(), 0..1_000_000_000u32),
    );
    (scalars, rest).prop_map(|(scalars, rest)| {
        let (new, pair, numbers, wide, floats, (text, letter, yes), bytes, array, maybe, result) = scalars;
        let (shape, by_name, by_number, by_pair, by_variant, set, shared, boxed, (seconds, nanos)) = rest;
        Everything {
            unit: Unit,
            new: New(new),
            pair: Pair(pair.0, pair.1),
            numbers,
            wide,
            floats,
            text,
            letter,
            yes,
            nothing: (),
            bytes,
            array,
            maybe: maybe.map(|(number, text)| Pair(number, text)),
            result,
            shape,
            by_name,
            by_number,
            by_pair,
            by_variant,
            set,
            shared: Arc::new(New(shared)),
            boxed: boxed.into(),
            time: Duration::new(seconds, nanos),
        }
    })
}

/// Runs a property without files of failed cases.
fn check<S: Strategy>(strategy: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config).run(strategy, property).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn values_of_all_shapes_survive_as_argument_result_and_put() {
    watch(|| {
        let rt = checking();
        check(&everything(), |value| {
            let task = rt.submit(|value: Everything| value, value.clone());
            prop_assert_eq!(task.get(), Ok(value.clone()), "as argument and result");
            let put = rt.put(value.clone());
            prop_assert_eq!(put.get(), Ok(value.clone()), "as put");
            let shared = rt.submit(|value: Arc<Everything>| (*value).clone(), Arc::new(value.clone()));
            prop_assert_eq!(shared.get(), Ok(value), "in an Arc");
            Ok(())
        });
    });
}

#[test]
fn several_arguments_survive_each_in_its_place() {
    watch(|| {
        let rt = checking();
        let strategy = (everything(), any::<Vec<Option<u64>>>(), shape(), any::<u128>());
        check(&strategy, |(a, b, c, d)| {
            let task = rt.submit(
                |a: Everything, b: Vec<Option<u64>>, c: Shape, d: u128| (a, b, c, d),
                (a.clone(), &rt.put(b.clone()), c.clone(), d),
            );
            prop_assert_eq!(task.get(), Ok((a, b, c, d)));
            Ok(())
        });
    });
}

#[test]
fn values_survive_as_items_of_streams_and_maps() {
    watch(|| {
        let rt = checking();
        let config = collection::vec(shape(), 0..20);
        check(&config, |items| {
            let stream = rt.stream(|items: Vec<Shape>| items.into_iter(), items.clone());
            prop_assert_eq!(stream.values().collect::<Result<Vec<_>, _>>(), Ok(items.clone()));
            prop_assert_eq!(rt.map(|item: Shape| item, items.clone()).collect(), Ok(items));
            Ok(())
        });
    });
}

#[test]
fn a_retried_task_gets_its_arguments_bit_for_bit() {
    watch(|| {
        // Without the check: values are serialized for the retries alone.
        let rt = builder().cpus(2).build().unwrap();
        check(&everything(), |value| {
            let second = |value: Everything| {
                if outray::task::context().attempt() == 1 {
                    std::panic::resume_unwind(Box::new("first"));
                }
                value
            };
            prop_assert_eq!(rt.task(second).retries(1).submit(value.clone()).get(), Ok(value));
            Ok(())
        });
    });
}

#[test]
fn every_bit_of_a_nan_survives() {
    watch(|| {
        let rt = checking();
        let patterns: [u64; 6] =
            [f64::NAN.to_bits(), u64::MAX, 0x7ff0_0000_0000_0001, 0xfff8_dead_beef_0001, 1, 1 << 63];
        for bits in patterns {
            let back = rt.submit(|x: f64| x, f64::from_bits(bits)).get().unwrap();
            assert_eq!(back.to_bits(), bits, "{bits:#x}");
        }
        for bits in [f32::NAN.to_bits(), u32::MAX, 0x7f80_0001, 0x7fc0_beef, 1, 1 << 31] {
            let back = rt.submit(|x: f32| x, f32::from_bits(bits)).get().unwrap();
            assert_eq!(back.to_bits(), bits, "{bits:#x}");
        }
    });
}

#[test]
fn the_limits_of_integers_survive() {
    watch(|| {
        let rt = checking();
        for value in [u128::MAX, 0, 1, u128::from(u64::MAX) + 1] {
            assert_eq!(rt.submit(|x: u128| x, value).get(), Ok(value));
        }
        for value in [i128::MIN, i128::MAX, -1, 0] {
            assert_eq!(rt.submit(|x: i128| x, value).get(), Ok(value));
        }
        for value in [i64::MIN, i64::MAX, -1, -33, 127, 128] {
            assert_eq!(rt.submit(|x: i64| x, value).get(), Ok(value));
        }
        assert_eq!(rt.submit(|x: u64| x, u64::MAX).get(), Ok(u64::MAX));
    });
}

#[test]
fn an_option_of_nothing_comes_back_as_none_which_is_the_limit_of_the_format() {
    watch(|| {
        let rt = checking();
        for value in [None, Some(Some(3u8))] {
            assert_eq!(rt.put(value).get(), Ok(value));
        }
        assert_eq!(rt.submit(|value: Option<Option<u8>>| value, Some(None)).get(), Ok(None));
        assert_eq!(rt.submit(|value: Option<()>| value, Some(())).get(), Ok(None));
        // On a cluster who has put it still has it as it was.
        if !on_cluster() {
            assert_eq!(rt.put(Some(None::<u8>)).get(), Ok(None));
            assert_eq!(rt.put(Some(())).get(), Ok(None));
        }
    });
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Circle { radius: f64 },
    Box { sides: Vec<u32> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged {
    Number(i64),
    Text(String),
    Both { number: i64, text: String },
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attributes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left_out: Option<u8>,
    #[serde(rename = "other")]
    one_name: u8,
    #[serde(flatten)]
    more: BTreeMap<String, i32>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    last: Vec<u8>,
}

#[test]
fn what_serdes_attributes_make_of_a_type_survives() {
    watch(|| {
        let rt = checking();
        for value in [Tagged::Circle { radius: 0.5 }, Tagged::Box { sides: vec![1, 2] }] {
            assert_eq!(rt.put(value.clone()).get(), Ok(value));
        }
        let both = Untagged::Both { number: 1, text: "x".into() };
        for value in [Untagged::Number(-1), Untagged::Text("3".into()), both] {
            assert_eq!(rt.put(value.clone()).get(), Ok(value));
        }
        let full =
            Attributes { left_out: Some(1), one_name: 2, more: BTreeMap::from([("a".into(), 3)]), last: vec![4] };
        for value in [Attributes::default(), full] {
            assert_eq!(rt.put(value.clone()).get(), Ok(value));
        }
    });
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Holding {
    Nothing,
    One(ObjectRef<u64>),
    Two { left: ObjectRef<u64>, right: Box<Holding> },
    Many(Vec<Option<ObjectRef<u64>>>, BTreeMap<u8, Holding>),
}

impl Holding {
    fn ids(&self) -> Vec<u64> {
        match self {
            Holding::Nothing => vec![],
            Holding::One(handle) => vec![handle.id()],
            Holding::Two { left, right } => [vec![left.id()], right.ids()].concat(),
            Holding::Many(handles, map) => {
                let handles = handles.iter().flatten().map(ObjectRef::id);
                handles.chain(map.values().flat_map(Holding::ids)).collect()
            }
        }
    }

    fn sum(&self) -> u64 {
        match self {
            Holding::Nothing => 0,
            Holding::One(handle) => handle.get().unwrap(),
            Holding::Two { left, right } => left.get().unwrap().wrapping_add(right.sum()),
            Holding::Many(handles, map) => {
                let handles = handles.iter().flatten().map(|handle| handle.get().unwrap());
                handles.chain(map.values().map(Holding::sum)).fold(0, u64::wrapping_add)
            }
        }
    }
}

#[test]
fn handles_inside_values_of_all_shapes_stay_the_same_handles() {
    watch(|| {
        let rt = checking();
        let handle = {
            let rt = rt.clone();
            any::<u64>().prop_map(move |value| rt.put(value))
        };
        let leaf = prop_oneof![Just(Holding::Nothing), handle.clone().prop_map(Holding::One)];
        let holding = leaf.prop_recursive(4, 30, 4, move |inner| {
            prop_oneof![
                (handle.clone(), inner.clone()).prop_map(|(left, right)| Holding::Two { left, right: Box::new(right) }),
                (collection::vec(option::of(handle.clone()), 0..4), collection::btree_map(any::<u8>(), inner, 0..4))
                    .prop_map(|(handles, map)| Holding::Many(handles, map)),
            ]
        });
        check(&holding, |value| {
            let task = rt.submit(|value: Holding| (value.ids(), value.sum()), value.clone());
            let (ids, sum) = task.get().unwrap();
            prop_assert_eq!(sum, value.sum());
            // On a cluster a handle that comes to a process may get another number there.
            let are_same =
                |ids: Vec<u64>| if on_cluster() { ids.len() == value.ids().len() } else { ids == value.ids() };
            prop_assert!(are_same(ids));
            let back = rt.submit(|value: Holding| value, value.clone()).get().unwrap();
            prop_assert!(are_same(back.ids()));
            prop_assert_eq!(back.sum(), value.sum());
            Ok(())
        });
    });
}

#[test]
fn handles_survive_serdes_own_buffers() {
    watch(|| {
        #[derive(Clone, Serialize, Deserialize)]
        #[serde(tag = "kind")]
        enum Tagged {
            Held { handle: ObjectRef<u64>, note: String },
        }
        #[derive(Clone, Serialize, Deserialize)]
        struct Flat {
            #[serde(flatten)]
            inner: Inner,
        }
        #[derive(Clone, Serialize, Deserialize)]
        struct Inner {
            first: ObjectRef<u64>,
            second: ObjectRef<u64>,
        }
        let rt = checking();
        let tagged = Tagged::Held { handle: rt.put(5), note: "n".into() };
        let sum = rt.submit(|Tagged::Held { handle, note }: Tagged| handle.get().unwrap() + note.len() as u64, tagged);
        assert_eq!(sum.get(), Ok(6));
        let flat = Flat { inner: Inner { first: rt.put(7), second: rt.put(9) } };
        let read = rt.submit(|flat: Flat| (flat.inner.first.get().unwrap(), flat.inner.second.get().unwrap()), flat);
        assert_eq!(read.get(), Ok((7, 9)));
    });
}
