//! Arrays and buffers: shared in this process, and in whatever serde writes.

use bytes::Bytes;
use outray::{Array, Runtime};
use proptest::prelude::*;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
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
    let rt = Runtime::builder().check_serialization(true).build().unwrap();
    let array: Array<u32> = (0..1000).collect();
    let (inside, returned) = rt.submit(address, array.clone()).get().unwrap();
    assert_eq!((inside, returned.as_ptr()), (array.as_ptr().addr(), array.as_ptr()));
    let batch = batch(vec![0.5; 100], vec![7; 100], vec![vec![], vec![-1]]);
    assert_eq!(rt.submit(|b: Batch| b, batch.clone()).get(), Ok(batch));
    assert_eq!(rt.submit(|f: Flat| f, flat()).get(), Ok(flat()));
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
    let rt = Runtime::builder().check_serialization(true).build().unwrap();
    let text = Text(vec![1, 2, 3].into());
    assert_eq!(rt.submit(|t: Text| t, text.clone()).get(), Ok(text.clone()));
    survives(&text);
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
    let rt = Runtime::builder().check_serialization(true).build().unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(rt.put(Bad)))).is_err());
    assert_eq!(rmp_serde::to_vec(&Array::from(vec![5_u8])).unwrap(), [0xc4, 1, 5]);
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

    let rt = Runtime::builder().check_serialization(true).build().unwrap();
    let returned = rt.submit(|a: NdArray<f32, Ix3>| a, shared).get().unwrap();
    assert_eq!(returned.view().as_ptr(), start);
}

#[cfg(feature = "arrow")]
#[test]
fn record_batches() {
    use arrow_array::{
        ArrayRef, BooleanArray, DictionaryArray, Float64Array, Int32Array, ListArray, RecordBatch, RecordBatchOptions,
        StringArray, StringViewArray, StructArray, cast::AsArray, types::*,
    };
    use outray::Batch;
    use std::sync::Arc;

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

    let rt = Runtime::builder().check_serialization(true).build().unwrap();
    let returned = rt.submit(|b: Batch| b, batch.clone()).get().unwrap();
    assert_eq!(returned, batch);
    let start = |batch: &Batch| batch["number"].as_primitive::<Float64Type>().values().as_ptr();
    assert_eq!(start(&returned), start(&batch), "it was copied");

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
