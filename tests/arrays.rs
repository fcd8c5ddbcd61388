//! Arrays and buffers: shared in this process, and in whatever serde writes.

mod common;

use bytes::Bytes;
use common::{local_only, on_cluster, watch};
use outray::{Array, Runtime};
use proptest::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Batch {
    name: String,
    features: Array<f32>,
    labels: Array<u8>,
    #[serde(with = "outray::buffer")]
    raw: Bytes,
    parts: Vec<Array<i64>>,
}

/// Types are found by trying, so a number beside an array must stay one.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(untagged)]
enum Either {
    Number(u64),
    Numbers(Array<u64>),
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "kind")]
enum Tagged {
    Dense { values: Array<f64> },
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Flat {
    #[serde(flatten)]
    rest: Tagged,
    either: Vec<Either>,
}

fn checking() -> Runtime {
    common::builder().check_serialization(true).build().expect("a runtime")
}

fn batch(features: Vec<f32>, raw: Vec<u8>, parts: Vec<Vec<i64>>) -> Batch {
    let labels = raw.iter().rev().copied().collect();
    Batch {
        name: "b".into(),
        features: features.into(),
        labels,
        raw: raw.into(),
        parts: parts.into_iter().map(Array::from).collect(),
    }
}

fn flat() -> Flat {
    Flat {
        rest: Tagged::Dense { values: [0.5, 1.5].as_slice().into() },
        either: vec![Either::Number(0), Either::Numbers(vec![7, 8].into()), Either::Number(1)],
    }
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let bytes = rmp_serde::to_vec_named(value).unwrap();
    assert_eq!(rmp_serde::from_slice::<T>(&bytes).unwrap(), *value);
    let bytes = rmp_serde::to_vec(value).unwrap();
    assert_eq!(rmp_serde::from_slice::<T>(&bytes).unwrap(), *value);
    let text = serde_json::to_string(value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value);
}

#[test]
fn a_vec_becomes_an_array_without_a_copy() {
    let vec = vec![1.0, 2.0, 3.0];
    let start = vec.as_ptr();
    let array = Array::from(vec);
    let clone = array.clone();
    assert_eq!((array.as_ptr(), clone.as_ptr()), (start, start));
    assert_eq!(array.slice(1..).as_ptr(), start.wrapping_add(1));
    assert_eq!(array.slice(1..=1), [2.0]);
    assert_eq!(array.slice(3..), []);
    assert_eq!(array.iter().sum::<f64>(), 6.0);
    assert_eq!(Bytes::from(array).len(), 24);
    let bytes = Bytes::from_static(b"abc");
    assert_eq!(Array::from(bytes.clone()).as_ptr(), bytes.as_ptr());
    assert_eq!(format!("{:?}", Array::from(vec![1_u8, 2])), "[1, 2]");
    assert!(Array::<u64>::default().is_empty());
}

#[test]
#[should_panic(expected = "range")]
fn a_slice_is_inside_its_array() {
    Array::from(vec![1, 2, 3]).slice(2..4);
}

#[test]
fn tasks_share_arrays() {
    fn address(array: Array<f64>) -> usize {
        array.as_ptr().addr()
    }
    local_only!("addresses mean something in one process");
    let rt = Runtime::local();
    let array = Array::from(vec![1.0; 1000]);
    let object = rt.put(array.clone());
    assert_eq!(rt.submit(address, &object).get(), Ok(array.as_ptr().addr()));
}

#[test]
fn what_would_travel_is_checked_and_not_copied() {
    fn address(array: Array<u32>) -> (usize, Array<u32>) {
        (array.as_ptr().addr(), array)
    }
    watch(|| {
        let rt = checking();
        let array: Array<u32> = (0..1000).collect();
        let (inside, returned) = rt.submit(address, array.clone()).get().unwrap();
        let is_same = (inside, returned.as_ptr()) == (array.as_ptr().addr(), array.as_ptr());
        assert!(is_same || on_cluster(), "it was copied");
        assert_eq!(returned, array);
        let batch = batch(vec![0.5; 100], vec![7; 100], vec![vec![], vec![-1]]);
        assert_eq!(rt.submit(|b: Batch| b, batch.clone()).get(), Ok(batch));
        assert_eq!(rt.submit(|f: Flat| f, flat()).get(), Ok(flat()));
    });
}

/// On a cluster these are in the memory that its processes share.
#[test]
fn large_ones_are_passed_returned_put_kept_and_yielded() {
    #[derive(Serialize, Deserialize)]
    struct Keeper(Batch);
    impl Keeper {
        fn new(batch: Batch) -> Self {
            Keeper(batch)
        }
        fn swap(&mut self, other: Batch) -> Batch {
            std::mem::replace(&mut self.0, other)
        }
    }
    fn sum(batch: Arc<Batch>) -> f64 {
        let bytes = batch.labels.iter().chain(batch.raw.iter()).map(|byte| f64::from(*byte)).sum::<f64>();
        batch.features.iter().map(|x| f64::from(*x)).sum::<f64>() + bytes
    }
    watch(|| {
        let rt = checking();
        let make = |n: u8| batch(vec![f32::from(n); 100_000], vec![n; 200_000], vec![vec![i64::from(n); 20_000]; 3]);
        let (one, two) = (make(1), make(2));
        assert_eq!(rt.submit(|b: Batch| b, one.clone()).get().as_ref(), Ok(&one));
        let object = rt.put(two.clone());
        assert_eq!(rt.submit(sum, &object).get(), Ok(1_000_000.0));
        let passed_on = rt.submit(|b: Batch| b, &object);
        assert_eq!(rt.submit(sum, &passed_on).get(), Ok(1_000_000.0));
        assert_eq!((passed_on.get().as_ref(), object.get().as_ref()), (Ok(&two), Ok(&two)));
        let keeper = rt.actor(Keeper::new, one.clone());
        let (first, second) = (keeper.call(Keeper::swap, &object), keeper.call(Keeper::swap, one.clone()));
        assert_eq!((first.get().as_ref(), second.get().as_ref()), (Ok(&one), Ok(&two)));
        let items = rt.stream(|b: Batch| [b.clone(), b].into_iter(), one.clone()).values();
        assert_eq!(items.collect::<Result<Vec<_>, _>>(), Ok(vec![one.clone(), one.clone()]));
        let nothing = batch(vec![], vec![], vec![]);
        assert_eq!(rt.map(|b: Batch| b, [one.clone(), nothing.clone()]).collect(), Ok(vec![one, nothing]));
        let bytes = Bytes::from(vec![9; 300_000]);
        let array = Array::<u8>::from(bytes.clone());
        assert_eq!(
            rt.submit(|a: Array<u8>| a.slice(100_000..), array).get().map(Bytes::from),
            Ok(bytes.slice(100_000..))
        );
    });
}

/// A value may hold another format, as text or as bytes.
#[test]
fn formats_inside_formats() {
    #[derive(Clone, Debug, PartialEq)]
    struct Text(Array<u16>);
    impl Serialize for Text {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let json = serde_json::to_string(&self.0).map_err(serde::ser::Error::custom)?;
            let bytes = rmp_serde::to_vec(&self.0).map_err(serde::ser::Error::custom)?;
            (json, bytes).serialize(serializer)
        }
    }
    impl<'de> Deserialize<'de> for Text {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let (json, bytes) = <(String, Vec<u8>)>::deserialize(deserializer)?;
            assert_eq!(json, "[1,2,3]");
            let bytes: Array<u16> = rmp_serde::from_slice(&bytes).map_err(serde::de::Error::custom)?;
            let json: Array<u16> = serde_json::from_str(&json).map_err(serde::de::Error::custom)?;
            assert_eq!(json, bytes);
            Ok(Text(json))
        }
    }
    watch(|| {
        let rt = checking();
        let text = Text(vec![1, 2, 3].into());
        assert_eq!(rt.submit(|t: Text| t, text.clone()).get(), Ok(text.clone()));
        survives(&text);
    });
}

/// A value that panics while it is written leaves nothing behind that would change what follows on its thread.
#[test]
fn a_panic_while_a_value_is_written() {
    #[derive(Deserialize)]
    struct Bad;
    impl Serialize for Bad {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("bad")
        }
    }
    watch(|| {
        let rt = checking();
        match on_cluster() {
            true => assert!(rt.submit(|_: Arc<Bad>| (), rt.put(Bad)).get().is_err()),
            false => assert!(catch_unwind(AssertUnwindSafe(|| drop(rt.put(Bad)))).is_err()),
        }
        assert_eq!(rmp_serde::to_vec(&Array::from(vec![5_u8])).unwrap(), [0xc4, 1, 5]);
    });
}

#[test]
fn json_has_numbers_and_message_pack_bytes() {
    let array = Array::from(vec![1_u16, 515]);
    assert_eq!(serde_json::to_string(&array).unwrap(), "[1,515]");
    assert_eq!(rmp_serde::to_vec(&array).unwrap(), [0xc4, 4, 1, 0, 3, 2]);
    // Also what was a `Vec` once.
    assert_eq!(rmp_serde::from_slice::<Array<u16>>(&rmp_serde::to_vec(&[1, 515]).unwrap()).unwrap(), array);
    let error = rmp_serde::from_slice::<Array<u64>>(&[0xc4, 4, 1, 0, 3, 2]).unwrap_err().to_string();
    assert!(error.contains("whole number"), "{error}");
    let beside = rmp_serde::from_slice::<Array<u64>>(b"\x81\xae$outray::buffer\x00");
    assert!(beside.is_err(), "there is nothing beside it");
}

#[cfg(feature = "ndarray")]
#[test]
fn arrays_of_many_dimensions() {
    use ndarray::{Array3, ArrayD, Ix1, Ix3, IxDyn, array, s};
    use outray::NdArray;

    let array = Array3::from_shape_fn((2, 3, 4), |(i, j, k)| (100 * i + 10 * j + k) as f32);
    let (start, copy) = (array.as_ptr(), array.clone());
    let shared = NdArray::from(array);
    assert_eq!((shared.view().as_ptr(), shared.view()), (start, copy.view()));
    survives(&shared);
    survives(&NdArray::from(copy.clone().reversed_axes()));
    assert_eq!(NdArray::from(copy.clone().reversed_axes()).view(), copy.view().reversed_axes());
    assert_eq!(NdArray::from(copy.clone().slice_move(s![1.., .., ..])).view(), copy.slice(s![1.., .., ..]));
    survives(&NdArray::from(copy.clone().slice_move(s![.., ..;-1, ..])));
    survives(&NdArray::from(ArrayD::from_shape_vec(IxDyn(&[]), vec![5_i64]).unwrap()));
    survives(&NdArray::from(Array3::<u8>::zeros((3, 0, 2))));

    let json = serde_json::to_string(&NdArray::from(array![1_u8, 2])).unwrap();
    assert_eq!(json, "[[2],[1,2]]");
    for wrong in ["[[3],[1,2]]", "[[1],[1,2]]", "[[1,2],[1,2]]", "[[4611686018427387904],[]]"] {
        assert!(serde_json::from_str::<NdArray<u8, Ix1>>(wrong).is_err(), "{wrong}");
    }
    assert!(
        serde_json::from_str::<NdArray<u8, Ix3>>("[[4294967296,4294967296,0],[]]").is_err(),
        "too large for a shape"
    );

    let start = start.addr();
    watch(move || {
        let rt = checking();
        let returned = rt.submit(|a: NdArray<f32, Ix3>| a, shared).get().unwrap();
        assert!(returned.view().as_ptr().addr() == start || on_cluster(), "it was copied");
        assert_eq!(returned.view(), copy.view());
        let large = Array3::from_shape_fn((20, 30, 200), |(i, j, k)| (10_000 * i + 200 * j + k) as f64);
        for large in [large.clone(), large.clone().reversed_axes(), large.slice_move(s![.., ..;-1, 1..])] {
            let object = rt.put(NdArray::from(large.clone()));
            let sum = rt.submit(|a: NdArray<f64, Ix3>| a.view().sum(), &object);
            assert_eq!(sum.get(), Ok(large.sum()));
            let returned = rt.submit(|a: NdArray<f64, Ix3>| a, &object).get().unwrap();
            assert_eq!(returned.view(), large.view());
        }
    });
}

#[cfg(feature = "arrow")]
#[test]
fn record_batches() {
    use arrow_array::{
        ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, ListArray, RecordBatch, RecordBatchOptions,
        StringArray, StringViewArray, StructArray, cast::AsArray, types::*,
    };
    use outray::Batch;

    let texts = ["one", "a text that is too long for a view", "", "four"];
    let numbers: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0, 4.0]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("number", numbers.clone()),
        ("maybe", Arc::new(Int32Array::from(vec![Some(1), None, Some(3), None]))),
        ("flag", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None, Some(true)]))),
        ("text", Arc::new(StringArray::from(texts.to_vec()))),
        ("view", Arc::new(StringViewArray::from(texts.to_vec()))),
        ("code", Arc::new(texts.into_iter().collect::<DictionaryArray<Int8Type>>())),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([
                Some(vec![Some(1), None]),
                None,
                Some(vec![]),
                Some(vec![Some(2)]),
            ])),
        ),
        ("pair", Arc::new(StructArray::try_from(vec![("n", numbers.clone())]).unwrap())),
    ];
    let batch = Batch(RecordBatch::try_from_iter(columns).unwrap());
    survives(&batch);
    for (start, length) in [(0, 0), (1, 2), (3, 1)] {
        survives(&Batch(batch.slice(start, length)));
    }
    let rows = RecordBatchOptions::new().with_row_count(Some(7));
    let nothing = RecordBatch::try_new_with_options(Arc::new(arrow_schema::Schema::empty()), vec![], &rows).unwrap();
    survives(&Batch(nothing));

    let sent = batch.clone();
    watch(move || {
        let rt = checking();
        let returned = rt.submit(|b: Batch| b, sent.clone()).get().unwrap();
        assert_eq!(returned, sent);
        let start = |batch: &Batch| batch["number"].as_primitive::<Float64Type>().values().as_ptr();
        assert!(start(&returned) == start(&sent) || on_cluster(), "it was copied");
        let numbers: ArrayRef = Arc::new((0..50_000).map(f64::from).collect::<Float64Array>());
        let words: ArrayRef = Arc::new((0..50_000).map(|n| Some(format!("word {n}"))).collect::<StringArray>());
        let large = Batch(RecordBatch::try_from_iter([("number", numbers), ("word", words)]).unwrap());
        let object = rt.put(large.clone());
        let returned = rt.submit(|b: Batch| b, &object);
        assert_eq!(rt.submit(|b: Arc<Batch>| b.num_rows(), &returned).get(), Ok(50_000));
        assert_eq!((returned.get(), object.get()), (Ok(large.clone()), Ok(large)));
    });

    // What has been changed on the way is an error or another batch, and not a panic.
    let bytes = rmp_serde::to_vec(&batch).unwrap();
    let mut errors = 0;
    for index in 0..bytes.len() {
        for bit in [0, 3, 7] {
            let mut changed = bytes.clone();
            changed[index] ^= 1 << bit;
            errors += usize::from(rmp_serde::from_slice::<Batch>(&changed).is_err());
        }
    }
    assert!(errors > 0);
}

proptest! {
    #[test]
    fn arrays_survive(
        features in prop::collection::vec(-1e30..1e30_f32, 0..50),
        raw in prop::collection::vec(any::<u8>(), 0..50),
        parts in prop::collection::vec(prop::collection::vec(any::<i64>(), 0..5), 0..5),
    ) {
        survives(&batch(features, raw, parts));
        survives(&flat());
    }
}
