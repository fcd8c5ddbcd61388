//! Vectors of plain numbers on a cluster of real processes: put, passed, returned and yielded.

mod common;

use common::watch;
use outray::{Array, LocalCluster, ObjectRef, Runtime};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Larger ones go through the stores.
const LARGE: usize = 100_000;

fn cluster() -> (LocalCluster, Runtime) {
    let cluster = LocalCluster::start(2).unwrap();
    let rt = cluster.connect().unwrap();
    (cluster, rt)
}

fn floats(count: usize) -> Vec<f64> {
    (0..count).map(|n| n as f64 - 0.5).collect()
}

/// One that stays in the letter as it is, those around the size from which numbers are put aside, and larger ones.
const COUNTS: [usize; 6] = [0, 1, 31, 32, 33, LARGE];

#[test]
fn what_is_put_is_got_and_passed() {
    watch(|| {
        let (_cluster, rt) = cluster();
        for count in COUNTS {
            let numbers = floats(count);
            let sum: f64 = numbers.iter().sum();
            let object = rt.put(numbers.clone());
            assert_eq!(rt.submit(|v: Vec<f64>| v.iter().sum::<f64>(), &object).get(), Ok(sum));
            assert_eq!(rt.submit(|v: Arc<Vec<f64>>| v.iter().sum::<f64>(), &object).get(), Ok(sum));
            assert_eq!(object.get(), Ok(numbers.clone()), "the driver still has it");
            let shared = rt.put(Arc::<[f64]>::from(numbers.clone()));
            assert_eq!(rt.submit(|v: Arc<[f64]>| v.iter().sum::<f64>(), &shared).get(), Ok(sum));
            let array = rt.put(Array::from(numbers));
            assert_eq!(rt.submit(|v: Array<f64>| v.iter().sum::<f64>(), &array).get(), Ok(sum));
        }
    });
}

#[test]
fn every_kind_of_number_is_passed_and_returned_bit_for_bit() {
    macro_rules! each {
        ($rt:expr, $($number:ty)*) => {$(
            // Bytes of all values, also of those that are no usual number.
            let numbers: Vec<$number> = (0..LARGE).map(|n| {
                let bytes = std::array::from_fn(|at| (n * 31 + at * 7) as u8);
                <$number>::from_ne_bytes(bytes)
            }).collect();
            let bits = |numbers: &[$number]| numbers.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>();
            for count in [0, 5, 1_000, LARGE] {
                let part = &numbers[..count];
                let back = $rt.submit(|v: Vec<$number>| v, part.to_vec()).get().unwrap();
                assert_eq!(bits(&back), bits(part), "{} {}", count, stringify!($number));
            }
            let back = $rt.submit(|v: Box<[$number]>| v, numbers.clone().into_boxed_slice()).get().unwrap();
            assert_eq!(bits(&back), bits(&numbers), "a box of {}", stringify!($number));
            let back = $rt.submit(|v: Arc<Vec<$number>>| v, Arc::new(numbers.clone())).get().unwrap();
            assert_eq!(bits(&back), bits(&numbers), "an arc of {}", stringify!($number));
            let back = $rt.submit(|v: Arc<[$number]>| v, Arc::from(&numbers[..])).get().unwrap();
            assert_eq!(bits(&back), bits(&numbers), "an arc of {}", stringify!($number));
        )*};
    }
    watch(|| {
        let (_cluster, rt) = cluster();
        each!(rt, u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);
    });
}

#[test]
fn arguments_stand_in_any_place_beside_others() {
    fn all(a: Vec<u8>, text: String, b: Vec<f32>, c: f64, d: Vec<u64>, e: Vec<bool>, same: Vec<u8>) -> Vec<f64> {
        let sum = |v: &[u8]| v.iter().map(|x| f64::from(*x)).sum::<f64>();
        let (b, d) = (b.iter().map(|x| f64::from(*x)).sum(), d.iter().sum::<u64>() as f64);
        vec![sum(&a), text.len() as f64, b, c, d, e.len() as f64, sum(&same)]
    }
    watch(|| {
        let (_cluster, rt) = cluster();
        let d: ObjectRef<Vec<u64>> = rt.submit(|n: u64| (0..n).collect::<Vec<u64>>(), 1_000);
        for count in [0, 10, 1_000, LARGE] {
            let args = (vec![1u8; count], "text", vec![0.5f32; count], 7.0, &d, vec![true; count], vec![2u8; count]);
            let n = count as f64;
            assert_eq!(rt.submit(all, args).get(), Ok(vec![n, 4.0, n / 2.0, 7.0, 499_500.0, n, 2.0 * n]));
        }
    });
}

#[test]
fn a_retried_task_and_a_kept_handle_see_the_same_numbers() {
    watch(|| {
        let (_cluster, rt) = cluster();
        let flaky = |v: Vec<u32>| match outray::task::context().attempt() {
            1 => Err("not yet".to_owned()),
            _ => Ok(v),
        };
        let numbers: Vec<u32> = (0..LARGE as u32).collect();
        let kept = Arc::new(numbers.clone());
        assert_eq!(rt.task(flaky).retry_errors(1).submit(numbers.clone()).get(), Ok(Ok(numbers.clone())));
        assert_eq!(rt.submit(|v: Arc<Vec<u32>>| v.len(), kept.clone()).get(), Ok(LARGE));
        assert_eq!(*kept, numbers, "the caller's own is as it was");
    });
}

#[test]
fn actors_take_keep_and_give_them() {
    struct Sum(Vec<f64>);
    impl Sum {
        fn add(&mut self, other: Vec<f64>) -> Vec<f64> {
            self.0.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
            self.0.clone()
        }
    }
    watch(|| {
        let (_cluster, rt) = cluster();
        let sum = rt.actor(Sum, vec![1.0; LARGE]);
        let calls: Vec<_> = (0..3).map(|n| sum.call(Sum::add, vec![f64::from(n); LARGE])).collect();
        let last: Vec<f64> = rt.get_all(&calls).unwrap().into_iter().map(|v| v[LARGE - 1]).collect();
        assert_eq!(last, [1.0, 2.0, 4.0]);
        assert_eq!(sum.call(Sum::add, Vec::<f64>::new()).get().map(|v| v.len()), Ok(LARGE));
    });
}

#[test]
fn streams_take_and_yield_them() {
    watch(|| {
        let (_cluster, rt) = cluster();
        let slices = |all: Vec<u16>, size: usize| {
            let parts: Vec<Vec<u16>> = all.chunks(size).map(<[u16]>::to_vec).collect();
            parts.into_iter().chain([Vec::new()])
        };
        let all: Vec<u16> = (0..LARGE).map(|n| n as u16).collect();
        for size in [LARGE, 1_000, 70_000] {
            let parts: Vec<Vec<u16>> =
                rt.stream(slices, (all.clone(), size)).values().collect::<Result<_, _>>().unwrap();
            assert_eq!(parts.len(), LARGE.div_ceil(size) + 1);
            assert_eq!(parts.concat(), all);
        }
    });
}

#[test]
fn maps_take_and_return_them() {
    watch(|| {
        let (_cluster, rt) = cluster();
        let items: Vec<Vec<i32>> = (0..40).map(|n| (0..n * 50).collect()).collect();
        let twice = |v: Vec<i32>| v.into_iter().map(|x| 2 * x).collect::<Vec<i32>>();
        let expected: Vec<Vec<i32>> = items.iter().cloned().map(twice).collect();
        assert_eq!(rt.map(twice, items).chunk(7).collect(), Ok(expected));
        let numbers = floats(10_000);
        assert_eq!(rt.map(|x: f64| -x, numbers.clone()).collect(), Ok(numbers.iter().map(|x| -x).collect()));
    });
}

#[test]
fn what_only_holds_them_travels_as_before() {
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
        numbers: Vec<f64>,
        pair: (Vec<u8>, Option<Vec<u64>>),
    }
    watch(|| {
        let (_cluster, rt) = cluster();
        let sample = Sample { name: "a".into(), numbers: floats(1_000), pair: (vec![1; 1_000], Some(vec![9; 1_000])) };
        assert_eq!(rt.submit(|s: Sample| s, sample.clone()).get(), Ok(sample));
        // Not numbers of which any bytes are one.
        let (letters, answers) = (vec!['ä'; 1_000], vec![true; 1_000]);
        assert_eq!(rt.submit(|v: Vec<char>| v, letters.clone()).get(), Ok(letters));
        assert_eq!(rt.submit(|v: Vec<bool>| v, answers.clone()).get(), Ok(answers));
        // A part of a value.
        let (left, right) = rt.task(|n: usize| (vec![1u8; n], vec![2u64; n])).submit_split(LARGE);
        assert_eq!(left.get().map(|v| v.len()), Ok(LARGE));
        assert_eq!(right.get().map(|v| v.iter().sum::<u64>()), Ok(2 * LARGE as u64));
    });
}
