//! The test mode that passes everything through serialization, and that nothing is serialized
//! without it.

mod common;

use common::{Counted, watch};
use outray::{Error, ObjectRef, Runtime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::{sync::Arc, time::Duration};

fn runtime(check: bool) -> Runtime {
    Runtime::builder().cpus(2).check_serialization(check).build().expect("a runtime")
}

/// Cannot be serialized.
#[derive(Clone, Debug, PartialEq)]
struct Mute(u8);

impl Serialize for Mute {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("mute says nothing"))
    }
}

impl<'de> Deserialize<'de> for Mute {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("mute hears nothing"))
    }
}

/// Can be serialized, but not back.
#[derive(Clone, Debug, PartialEq)]
struct OneWay(u8);

impl Serialize for OneWay {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("no way back"))
    }
}

/// Loses something on the way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Forgetful {
    kept: u8,
    #[serde(skip)]
    lost: u8,
}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(result: outray::Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert!(matches!(error.root_cause(), Error::Serialization { .. }), "{error}");
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn an_argument_that_cannot_travel_fails_at_submission_with_its_type() {
    watch(|| {
        let rt = runtime(true);
        let task = rt.submit(|mute: Mute| mute.0, Mute(1));
        assert!(task.is_ready());
        assert_fails(task.get(), &["argument", "Mute", "mute says nothing"]);
        assert_fails(rt.submit(|x: OneWay| x.0, OneWay(1)).get(), &["argument", "OneWay", "no way back"]);
        assert_fails(rt.submit(|_: u8, x: Vec<OneWay>| x.len(), (1, vec![OneWay(1)])).get(), &["OneWay"]);
        assert_fails(rt.task(|mute: Mute| mute.0).try_submit(Mute(1)), &["Mute"]);
        assert_fails(rt.submit(|mute: Arc<Mute>| mute.0, Arc::new(Mute(1))).get(), &["Mute"]);
    });
}

#[test]
fn a_result_that_cannot_travel_fails_its_task() {
    watch(|| {
        let rt = runtime(true);
        assert_fails(rt.submit(|| OneWay(1), ()).get(), &["result", "OneWay", "no way back"]);
        async fn later() -> OneWay {
            outray::sleep(Duration::from_millis(1)).await;
            OneWay(1)
        }
        assert_fails(rt.submit(later, ()).get(), &["result", "OneWay"]);
        let (one, two) = rt.task(|| (1u8, OneWay(2))).submit_split(());
        assert_fails(one.get(), &["OneWay"]);
        assert_fails(two.get(), &["OneWay"]);
        let dependent = rt.submit(|x: OneWay| x.0, rt.submit(|| OneWay(1), ()));
        assert_fails(dependent.get(), &["OneWay"]);
    });
}

#[test]
fn a_put_that_cannot_travel_is_a_failed_object() {
    watch(|| {
        let rt = runtime(true);
        assert_fails(rt.put(Mute(1)).get(), &["Mute"]);
        assert_fails(rt.submit(|mute: Arc<Mute>| mute.0, rt.put(Mute(1))).get(), &["Mute"]);
    });
}

#[test]
fn items_that_cannot_travel_fail_their_stream_or_map() {
    watch(|| {
        let rt = runtime(true);
        let mut stream = rt.stream(|| std::iter::once(OneWay(1)), ());
        assert_fails(stream.next().unwrap(), &["item", "OneWay"]);
        assert!(stream.next().is_none());
        assert_fails(rt.map(|mute: Mute| mute.0, [Mute(1)]).collect(), &["Mute"]);
        assert_fails(rt.map(|x: u8| OneWay(x), [1]).collect(), &["OneWay"]);
        assert_fails(rt.stream(|x: OneWay| std::iter::once(x.0), OneWay(1)).next().unwrap(), &["OneWay"]);
    });
}

#[test]
fn what_would_be_lost_on_the_way_is_lost_in_the_test() {
    watch(|| {
        let rt = runtime(true);
        let lost = |value: Forgetful| (value.kept, value.lost);
        assert_eq!(rt.submit(lost, Forgetful { kept: 1, lost: 2 }).get(), Ok((1, 0)));
        assert_eq!(rt.put(Forgetful { kept: 1, lost: 2 }).get(), Ok(Forgetful { kept: 1, lost: 0 }));
        let made = rt.submit(|| Forgetful { kept: 1, lost: 2 }, ());
        assert_eq!(made.get(), Ok(Forgetful { kept: 1, lost: 0 }));
    });
}

#[test]
fn shared_arguments_become_copies_as_on_a_cluster() {
    watch(|| {
        let rt = runtime(true);
        let original = Arc::new(vec![1u8; 100]);
        let address = |value: Arc<Vec<u8>>| Arc::as_ptr(&value).addr();
        assert_ne!(rt.submit(address, original.clone()).get(), Ok(Arc::as_ptr(&original).addr()));
        assert_eq!(Arc::strong_count(&original), 1, "nobody else has it");
    });
}

#[test]
fn vectors_of_plain_numbers_are_copied_and_whole() {
    watch(|| {
        let rt = runtime(true);
        for count in [0, 10, 1_000, 100_000] {
            let numbers: Vec<f32> = (0..count).map(|n| n as f32).collect();
            let (bytes, shared) = (vec![255u8; count], Arc::<[i64]>::from(vec![-1; count]));
            let here = bytes.as_ptr().addr();
            let take = |a: Vec<f32>, b: Vec<u8>, c: Arc<[i64]>| (a, b.as_ptr().addr(), c.iter().sum::<i64>());
            let (back, there, sum) = rt.submit(take, (numbers.clone(), bytes, shared.clone())).get().unwrap();
            assert_eq!((back, sum), (numbers.clone(), -(count as i64)));
            assert!(count == 0 || here != there);
            assert_eq!(rt.put(shared.clone()).get(), Ok(shared));
            assert_eq!(
                rt.submit(|v: Box<[f32]>| v.into_vec(), numbers.clone().into_boxed_slice()).get(),
                Ok(numbers.clone())
            );
            let items = rt.stream(|v: Vec<f32>| [v, Vec::new()].into_iter(), numbers.clone());
            let items: Vec<Vec<f32>> = items.values().collect::<Result<_, _>>().unwrap();
            assert_eq!(items, [numbers.clone(), Vec::new()]);
            let twice = |v: Vec<f32>| v.into_iter().map(|x| 2.0 * x).collect::<Vec<f32>>();
            assert_eq!(rt.map(twice, [numbers.clone(), Vec::new()]).collect(), Ok(vec![twice(numbers), Vec::new()]));
        }
    });
}

#[test]
fn handles_inside_values_stay_handles_to_the_same_object() {
    watch(|| {
        #[derive(Clone, Serialize, Deserialize)]
        struct Holder {
            big: ObjectRef<Vec<u8>>,
            again: ObjectRef<Vec<u8>>,
        }
        let rt = runtime(true);
        let big = rt.put(vec![1u8; 100]);
        let here = Arc::as_ptr(&big.get_shared().unwrap()).addr();
        let look = |holder: Holder| {
            let (one, two) = (holder.big.get_shared().unwrap(), holder.again.get_shared().unwrap());
            (Arc::as_ptr(&one).addr(), Arc::ptr_eq(&one, &two))
        };
        assert_eq!(rt.submit(look, Holder { big: big.clone(), again: big.clone() }).get(), Ok((here, true)));
    });
}

#[test]
fn the_check_leaks_nothing() {
    watch(|| {
        let rt = runtime(true);
        let all: Vec<_> = (0..100).map(|i| rt.submit(|x: Counted<0>| x, Counted::<0>::new(i))).collect();
        assert!(all.iter().all(|one| one.get_shared().is_ok()));
        assert_eq!(Counted::<0>::live(), 100);
        drop(all);
        assert_eq!((Counted::<0>::live(), Counted::<0>::clones()), (0, 0));
    });
}

#[test]
fn without_the_check_nothing_is_serialized() {
    watch(|| {
        let rt = runtime(false);
        let moved = rt.submit(|mute: Mute| mute, Mute(7));
        assert_eq!(moved.get(), Ok(Mute(7)));
        assert_eq!(rt.put(Mute(8)).get(), Ok(Mute(8)));
        assert_eq!(rt.stream(|| std::iter::once(Mute(9)), ()).values().next(), Some(Ok(Mute(9))));
        assert_eq!(rt.map(|mute: Mute| mute, [Mute(1)]).collect(), Ok(vec![Mute(1)]));
        let (one, _) = rt.task(|| (Mute(1), Mute(2))).submit_split(());
        assert_eq!(one.get(), Ok(Mute(1)));
        let lost = Forgetful { kept: 1, lost: 2 };
        assert_eq!(rt.submit(|value: Forgetful| value, lost.clone()).get(), Ok(lost));
    });
}

#[test]
fn a_retried_task_needs_arguments_that_can_be_kept() {
    watch(|| {
        let rt = runtime(false);
        let retried = rt.task(|mute: Mute| mute.0).retries(1).submit(Mute(1));
        assert_fails(retried.get(), &["Mute", "mute says nothing"]);
        // What is behind a handle is kept by the handle.
        assert_eq!(rt.task(|mute: Arc<Mute>| mute.0).retries(1).submit(rt.put(Mute(1))).get(), Ok(1));
    });
}
