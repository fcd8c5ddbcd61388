//! Tasks: what can be one, what its arguments can be, several results, nesting, and failures.

mod common;

use common::{
    AtomicBool, AtomicUsize, Counted, Gate, alone, at_once, give_others_a_chance, local, local_only, meet, until, watch,
};
use outray::{Error, Object, ObjectRef, Runtime};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    hint::black_box,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

fn add(a: i32, b: i32) -> i32 {
    a + b
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    x: f64,
    y: f64,
}

impl Point {
    fn norm(self) -> f64 {
        self.x.hypot(self.y)
    }

    fn shifted(self, dx: f64, dy: f64) -> Point {
        Point { x: self.x + dx, y: self.y + dy }
    }
}

fn largest<T: Object + Ord + Copy>(values: Vec<T>) -> Option<T> {
    values.into_iter().max()
}

async fn double(x: i32) -> i32 {
    2 * x
}

// What can be a task.

#[test]
fn a_function_is_a_task() {
    watch(|| assert_eq!(local(2).submit(add, (2, 3)).get(), Ok(5)));
}

#[test]
fn a_method_is_a_task() {
    watch(|| {
        let rt = local(2);
        let moved = rt.submit(Point::shifted, (Point { x: 1.0, y: 2.0 }, 2.0, 2.0));
        assert_eq!(rt.submit(Point::norm, &moved).get(), Ok(5.0));
        assert_eq!(rt.submit(i32::abs, -7).get(), Ok(7));
    });
}

#[test]
fn a_closure_that_captures_nothing_is_a_task() {
    watch(|| assert_eq!(local(2).submit(|a: String, n: usize| a.repeat(n), ("ab", 3)).get(), Ok("ababab".into())));
}

#[test]
fn a_generic_instance_is_a_task() {
    watch(|| {
        let rt = local(2);
        assert_eq!(rt.submit(largest::<u32>, vec![3, 9, 4]).get(), Ok(Some(9)));
        assert_eq!(rt.submit(largest::<char>, vec!['x', 'a']).get(), Ok(Some('x')));
    });
}

#[test]
fn an_async_fn_is_a_task() {
    watch(|| {
        let rt = local(2);
        assert_eq!(rt.submit(double, 21).get(), Ok(42));
        assert_eq!(rt.submit(|x: i32| async move { double(x).await + 1 }, 1).get(), Ok(3));
    });
}

#[test]
fn async_tasks_that_wait_hold_no_cpu() {
    watch(|| {
        // Far more tasks than CPUs wait for one that is submitted last.
        let rt = local(1);
        static HERE: AtomicUsize = AtomicUsize::new(0);
        async fn wait_for_all() -> usize {
            HERE.fetch_add(1, SeqCst);
            while HERE.load(SeqCst) < 101 {
                outray::sleep(Duration::from_millis(1)).await;
            }
            HERE.load(SeqCst)
        }
        let waiting: Vec<_> = (0..100).map(|_| rt.submit(wait_for_all, ())).collect();
        rt.submit(|| HERE.fetch_add(1, SeqCst), ());
        assert_eq!(rt.get_all(&waiting), Ok(vec![101; 100]));
    });
}

#[test]
fn an_async_task_awaits_handles_and_other_tasks() {
    watch(|| {
        async fn sum_of(handles: Vec<Inside>) -> outray::Result<i32> {
            let mut sum = 0;
            for inside in handles {
                sum += inside.handle.await?;
            }
            Ok(sum + Runtime::current().submit(double, 50).await?)
        }
        let rt = local(1);
        let handles: Vec<Inside> = (0..10).map(|i| Inside { handle: rt.submit(double, i) }).collect();
        assert_eq!(rt.submit(sum_of, handles).get(), Ok(Ok(190)));
    });
}

#[test]
fn an_async_task_that_panics_after_waiting_fails_with_the_panic() {
    watch(|| {
        let rt = local(1);
        let late = rt.submit(
            || async {
                outray::sleep(Duration::from_millis(1)).await;
                assert!(black_box(false), "late");
            },
            (),
        );
        assert!(matches!(late.get(), Err(Error::Panicked { message, .. }) if message == "late"));
    });
}

#[test]
fn zero_to_eight_arguments_arrive_in_their_order() {
    watch(|| {
        let rt = local(2);
        assert_eq!(rt.submit(|| 0u8, ()).get(), Ok(0));
        assert_eq!(rt.submit(|a: u8| vec![a], 1).get(), Ok(vec![1]));
        assert_eq!(rt.submit(|a: u8, b: u8| vec![a, b], (1, 2)).get(), Ok(vec![1, 2]));
        assert_eq!(rt.submit(|a: u8, b: u8, c: u8| vec![a, b, c], (1, 2, 3)).get(), Ok(vec![1, 2, 3]));
        let four = |a: u8, b: u8, c: u8, d: u8| vec![a, b, c, d];
        assert_eq!(rt.submit(four, (1, 2, 3, 4)).get(), Ok(vec![1, 2, 3, 4]));
        let five = |a: u8, b: u8, c: u8, d: u8, e: u8| vec![a, b, c, d, e];
        assert_eq!(rt.submit(five, (1, 2, 3, 4, 5)).get(), Ok(vec![1, 2, 3, 4, 5]));
        let six = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8| vec![a, b, c, d, e, f];
        assert_eq!(rt.submit(six, (1, 2, 3, 4, 5, 6)).get(), Ok(vec![1, 2, 3, 4, 5, 6]));
        let seven = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8| vec![a, b, c, d, e, f, g];
        assert_eq!(rt.submit(seven, (1, 2, 3, 4, 5, 6, 7)).get(), Ok(vec![1, 2, 3, 4, 5, 6, 7]));
        let eight = |a: u8, b: u16, c: u32, d: u64, e: i8, f: char, g: String, h: Vec<f64>| {
            format!("{a} {b} {c} {d} {e} {f} {g} {h:?}")
        };
        let eight = rt.submit(eight, (1, 2, 3, 4, -5, '6', "seven", vec![8.0]));
        assert_eq!(eight.get(), Ok("1 2 3 4 -5 6 seven [8.0]".into()));
    });
}

// What arguments can be.

#[test]
fn values_and_handles_mix_in_any_position() {
    watch(|| {
        let rt = local(2);
        let (one, three) = (rt.put(1u8), rt.submit(|| 3u8, ()));
        let four = |a: u8, b: u8, c: u8, d: u8| vec![a, b, c, d];
        assert_eq!(rt.submit(four, (&one, 2, &three, 4)).get(), Ok(vec![1, 2, 3, 4]));
        assert_eq!(rt.submit(four, (9, three.clone(), 8, one.clone())).get(), Ok(vec![9, 3, 8, 1]));
        let eight = |a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8| vec![a, b, c, d, e, f, g, h];
        let all = rt.submit(eight, (&one, &one, &one, &three, &three, &three, one.clone(), three.clone()));
        assert_eq!(all.get(), Ok(vec![1, 1, 1, 3, 3, 3, 1, 3]));
    });
}

#[test]
fn a_task_starts_only_when_all_its_handles_are_ready() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static STARTED: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        let ready = rt.put(1);
        let gated = rt.submit(|| GATE.pass(), ());
        let both = rt.submit(
            |x: i32, (): ()| {
                STARTED.store(true, SeqCst);
                x
            },
            (&ready, &gated),
        );
        GATE.wait_for(1);
        give_others_a_chance();
        assert!(!STARTED.load(SeqCst) && !both.is_ready());
        GATE.open();
        assert_eq!(both.get(), Ok(1));
    });
}

#[test]
fn the_same_handle_can_be_given_twice_in_one_call() {
    watch(|| {
        let rt = local(2);
        let x = rt.submit(double, 4);
        assert_eq!(rt.submit(add, (&x, &x)).get(), Ok(16));
        assert_eq!(rt.submit(add, (x.clone(), x)).get(), Ok(16));
    });
}

#[test]
fn an_arc_argument_shares_the_object_without_a_copy() {
    local_only!("addresses mean something in one process");
    watch(|| {
        fn address(value: Arc<Counted<0>>) -> usize {
            Arc::as_ptr(&value).addr()
        }
        let rt = local(2);
        let value = Arc::new(Counted::<0>::new(7));
        assert_eq!(rt.submit(address, value.clone()).get(), Ok(Arc::as_ptr(&value).addr()));
        let object = rt.put(Counted::<0>::new(8));
        let here = Arc::as_ptr(&object.get_shared().unwrap()).addr();
        assert_eq!(rt.submit(address, &object).get(), Ok(here));
        assert_eq!(rt.submit(address, object).get(), Ok(here));
        assert_eq!(Counted::<0>::clones(), 0);
    });
}

#[test]
fn the_last_handle_given_by_value_moves_the_object() {
    watch(|| {
        let rt = local(2);
        let consume = |value: Counted<1>| value.value();
        assert_eq!(rt.submit(consume, rt.put(Counted::<1>::new(5))).get(), Ok(5));
        let made = rt.submit(|| Counted::<1>::new(6), ());
        let passed = rt.submit(|value: Counted<1>| value, made);
        assert_eq!(rt.submit(consume, passed).get(), Ok(6));
        let many: Vec<_> = (0..10).map(|i| rt.put(Counted::<1>::new(i))).collect();
        let sum = rt.submit(|all: Vec<Counted<1>>| all.iter().map(Counted::value).sum::<u64>(), many);
        assert_eq!(sum.get(), Ok(45));
        // A worker that has just made a value holds it until it has been encoded for others. A task there that gets it
        // meanwhile gets a copy, instead of decoding one.
        assert!(Counted::<1>::clones() == 0 || common::on_cluster() && Counted::<1>::clones() <= 2);
        at_once("all are freed", || Counted::<1>::live() == 0);
    });
}

#[test]
fn a_handle_that_is_kept_makes_the_task_get_a_copy() {
    local_only!("a worker copies by serialization");
    watch(|| {
        let rt = local(2);
        let kept = rt.put(Counted::<2>::new(5));
        assert_eq!(rt.submit(|value: Counted<2>| value.value(), &kept).get(), Ok(5));
        assert_eq!(Counted::<2>::clones(), 1);
        assert_eq!(kept.get_shared().unwrap().value(), 5);
    });
}

#[test]
fn a_vec_of_handles_is_a_fan_in() {
    watch(|| {
        let rt = local(2);
        let sum = |parts: Vec<i32>| parts.iter().sum::<i32>();
        let parts: Vec<_> = (0..100).map(|i| rt.submit(double, i)).collect();
        assert_eq!(rt.submit(sum, &parts).get(), Ok(9900));
        assert_eq!(rt.submit(sum, &parts[..10]).get(), Ok(90));
        assert_eq!(rt.submit(sum, parts.clone()).get(), Ok(9900));
        let none: Vec<ObjectRef<i32>> = Vec::new();
        assert_eq!(rt.submit(sum, none).get(), Ok(0));
        let shared = |parts: Vec<Arc<i32>>, scale: i32| parts.iter().map(|part| scale * **part).sum::<i32>();
        assert_eq!(rt.submit(shared, (&parts, 2)).get(), Ok(19800));
    });
}

#[test]
fn a_fan_in_keeps_the_order_of_the_handles() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let held = rt.submit(
            || {
                GATE.pass();
                0
            },
            (),
        );
        let mut parts = vec![held];
        parts.extend((1..50).map(|i| rt.submit(|i: i32| i, i)));
        let all = rt.submit(|all: Vec<i32>| all, &parts);
        assert_eq!(rt.get_all(&parts[1..]), Ok((1..50).collect()));
        GATE.open();
        assert_eq!(all.get(), Ok((0..50).collect()));
    });
}

#[test]
fn a_str_is_given_where_the_function_takes_a_string() {
    watch(|| {
        let rt = local(2);
        assert_eq!(rt.submit(|s: String| s.len(), "four").get(), Ok(4));
        assert_eq!(rt.submit(|n: usize, s: String| s.repeat(n), (2, "ab")).get(), Ok("abab".into()));
    });
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Inside {
    handle: ObjectRef<i32>,
}

#[test]
fn a_handle_inside_a_value_is_not_waited_for() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let handle = rt.submit(
            || {
                GATE.pass();
                3
            },
            (),
        );
        // It starts although the handle inside is not ready, and can wait for it.
        let pending = rt.submit(|inside: Inside| !inside.handle.is_ready(), Inside { handle: handle.clone() });
        assert_eq!(pending.get(), Ok(true));
        GATE.open();
        let got = rt.submit(|inside: Inside| inside.handle.get().unwrap(), Inside { handle });
        assert_eq!(got.get(), Ok(3));
    });
}

#[test]
fn a_handle_of_one_runtime_is_an_argument_in_another() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let (one, other) = (local(1), local(1));
        let there = one.submit(
            || {
                GATE.pass();
                20
            },
            (),
        );
        let here = other.submit(add, (&there, 1));
        GATE.wait_for(1);
        GATE.open();
        assert_eq!(here.get(), Ok(21));
    });
}

// Several results.

#[test]
fn a_tuple_is_split_into_a_handle_for_each_part() {
    watch(|| {
        let rt = local(2);
        let (quotient, rest) = rt.task(|a: i32, b: i32| (a / b, a % b)).submit_split((17, 5));
        assert_eq!((quotient.get(), rest.get()), (Ok(3), Ok(2)));
        let (a, b, c) = rt.task(|| (1u8, 'b', "c".to_owned())).submit_split(());
        assert_eq!((a.get(), b.get(), c.get()), (Ok(1), Ok('b'), Ok("c".into())));
        let eight = || (1u8, 2u16, 3u32, 4u64, 5i8, 6i16, 7i32, 8i64);
        let (a, b, c, d, e, f, g, h) = rt.task(eight).submit_split(());
        assert_eq!((a.get(), b.get(), c.get(), d.get()), (Ok(1), Ok(2), Ok(3), Ok(4)));
        assert_eq!((e.get(), f.get(), g.get(), h.get()), (Ok(5), Ok(6), Ok(7), Ok(8)));
    });
}

#[test]
fn a_split_task_runs_once_and_its_parts_are_freed_one_by_one() {
    watch(|| {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let rt = local(2);
        let pair = || {
            RUNS.fetch_add(1, SeqCst);
            (Counted::<3>::new(1), Counted::<3>::new(2))
        };
        let (one, two) = rt.task(pair).submit_split(());
        assert_eq!((one.get_shared().unwrap().value(), two.get_shared().unwrap().value()), (1, 2));
        assert_eq!(RUNS.load(SeqCst), 1);
        at_once("both are there", || Counted::<3>::live() == 2);
        drop(one);
        at_once("the first is freed", || Counted::<3>::live() == 1);
        drop(two);
        at_once("the second is freed", || Counted::<3>::live() == 0);
    });
}

#[test]
fn a_part_is_an_argument_before_the_split_task_has_run() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let gated = rt.submit(|| GATE.pass(), ());
        let (one, two) = rt.task(|(): ()| (1, 2)).submit_split(&gated);
        let sum = rt.submit(add, (one, two));
        GATE.open();
        assert_eq!(sum.get(), Ok(3));
    });
}

#[test]
fn an_async_task_is_split_too() {
    watch(|| {
        async fn pair() -> (i32, i32) {
            outray::sleep(Duration::from_millis(1)).await;
            (1, 2)
        }
        let (one, two) = local(1).task(pair).submit_split(());
        drop((one.get(), two.get()));
        let rt = local(1);
        let (one, two) = rt.task(pair).submit_split(());
        assert_eq!((one.get(), two.get()), (Ok(1), Ok(2)));
    });
}

#[test]
fn all_parts_fail_when_the_split_task_fails() {
    watch(|| {
        // Many times: the task may fail before its parts have been told about it, or after.
        let rt = local(2);
        for _ in 0..common::many(2_000) {
            let pair = || -> (i32, i32) { std::panic::resume_unwind(Box::new("no pair")) };
            let (one, two) = rt.task(pair).submit_split(());
            for part in [one, two] {
                let error = part.get_timeout(Duration::from_secs(20)).unwrap_err();
                assert!(matches!(&error, Error::Panicked { message, .. } if message == "no pair"), "{error}");
            }
        }
    });
}

// Nesting.

fn fib(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let rt = Runtime::current();
    let (a, b) = (rt.submit(fib, n - 1), rt.submit(fib, n - 2));
    a.get().unwrap() + b.get().unwrap()
}

#[test]
fn tasks_submit_tasks_and_wait_for_them() {
    watch(|| {
        for cpus in [1, 2, 4] {
            assert_eq!(local(cpus).submit(fib, 16).get(), Ok(987));
        }
    });
}

#[test]
fn a_task_returns_the_handle_of_a_task_that_it_started() {
    watch(|| {
        let rt = local(1);
        let outer = rt.submit(|x: i32| Inside { handle: Runtime::current().submit(double, x) }, 21);
        assert_eq!(outer.get().unwrap().handle.get(), Ok(42));
    });
}

#[test]
fn tasks_nest_a_thousand_deep() {
    watch(|| {
        fn depth(n: u32) -> u32 {
            if n == 0 { 0 } else { 1 + Runtime::current().submit(depth, n - 1).get().unwrap() }
        }
        assert_eq!(local(2).submit(depth, 1000).get(), Ok(1000));
    });
}

/// Uses a quarter of a MiB of stack.
fn wide(n: u32) -> u32 {
    let frame = black_box([n as u8; 256 << 10]);
    let below = if n == 0 { 0 } else { Runtime::current().submit(wide, n - 1).get().unwrap() };
    below + u32::from(black_box(&frame)[n as usize] == n as u8)
}

#[test]
fn a_nested_task_has_the_stack_that_it_would_have_on_a_thread_of_its_own() {
    alone("a_nested_task_has_the_stack_that_it_would_have_on_a_thread_of_its_own", || {
        assert_eq!(local(1).submit(wide, 32).get(), Ok(33));
    });
}

#[test]
fn a_task_that_its_waiter_runs_has_the_stack_that_was_asked_for() {
    local_only!("a stack size is asked for");
    alone("a_task_that_its_waiter_runs_has_the_stack_that_was_asked_for", || {
        fn deep(n: u32) -> u32 {
            let frame = black_box([n as u8; 64 << 10]);
            if n == 0 { 0 } else { deep(n - 1) + u32::from(black_box(&frame)[0] == n as u8) }
        }
        let rt = Runtime::builder().cpus(1).stack_size(32 << 20).build().unwrap();
        // 8 MiB, or twice that without optimisation, from a thread that has less.
        for _ in 0..20 {
            assert_eq!(rt.submit(deep, 127).get(), Ok(127));
        }
    });
}

#[test]
fn tasks_run_at_the_same_time_on_as_many_threads_as_there_are_cpus() {
    watch(|| {
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        let rt = local(3);
        // They can only end if all run at once.
        let all: Vec<_> = (0..3).map(|_| rt.submit(|| meet(&PLACE, 3), ())).collect();
        until("three tasks run at once", || PLACE.load(SeqCst) == 3);
        assert!(rt.get_all(&all).is_ok());
    });
}

#[test]
fn many_threads_submit_to_one_runtime() {
    watch(|| {
        let rt = local(2);
        let threads: Vec<_> = (0..8)
            .map(|t| {
                let rt = rt.clone();
                std::thread::spawn(move || {
                    let handles: Vec<_> = (0..500).map(|i| rt.submit(add, (t * 1000, i))).collect();
                    (t, rt.get_all(&handles).unwrap())
                })
            })
            .collect();
        for thread in threads {
            let (t, values) = thread.join().unwrap();
            assert_eq!(values, (0..500).map(|i| t * 1000 + i).collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_chain_of_a_hundred_thousand_tasks_ends() {
    watch(|| {
        let rt = local(2);
        let mut last = rt.put(0);
        for _ in 0..common::many(100_000) {
            last = rt.submit(|x: i32| x + 1, last);
        }
        assert_eq!(last.get(), Ok(common::many(100_000) as i32));
    });
}

#[test]
fn a_failure_at_the_head_of_a_long_chain_reaches_its_end() {
    watch(|| {
        let rt = local(2);
        let mut last = rt.submit(|| -> i32 { panic!("head") }, ());
        for _ in 0..500 {
            last = rt.submit(|x: i32| x + 1, last);
        }
        assert!(matches!(last.get().unwrap_err().root_cause(), Error::Panicked { message, .. } if message == "head"));
    });
}

#[test]
fn a_million_dependents_of_one_task_all_run() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicUsize = AtomicUsize::new(0);
        let rt = local(2);
        let number = if common::on_cluster() { 2_000 } else { 1_000_000 };
        let head = rt.submit(
            || {
                GATE.pass();
                1usize
            },
            (),
        );
        for _ in 0..number {
            rt.submit(
                |one: usize| {
                    RAN.fetch_add(one, SeqCst);
                },
                &head,
            );
        }
        GATE.open();
        until("all have run", || RAN.load(SeqCst) == number);
        give_others_a_chance();
        assert_eq!(RAN.load(SeqCst), number);
    });
}

#[test]
fn a_fan_in_of_a_hundred_thousand_handles_ends() {
    watch(|| {
        let rt = local(2);
        let n = common::many(100_000) as u64;
        let parts: Vec<_> = (0..n).map(|i| rt.submit(|i: u64| i, i)).collect();
        assert_eq!(rt.submit(|all: Vec<u64>| all.iter().sum::<u64>(), parts).get(), Ok(n * (n - 1) / 2));
    });
}

// Failures.

fn explode(x: i32) -> i32 {
    panic!("cannot take {x}")
}

#[test]
fn a_panic_is_an_error_that_names_the_task_its_number_and_where_it_was_submitted() {
    watch(|| {
        let rt = local(2);
        let bad = rt.submit(explode, 7);
        let error = bad.get().unwrap_err();
        let Error::Panicked { origin, message } = &error else { panic!("{error}") };
        assert_eq!((origin.id, origin.attempt, message.as_str()), (bad.id(), 1, "cannot take 7"));
        assert!(origin.name.ends_with("tasks::explode"), "{}", origin.name);
        assert!(origin.location.starts_with(file!()), "{}", origin.location);
        let text = error.to_string();
        let needed = ["explode", "cannot take 7", file!(), &format!("#{}", bad.id())].map(str::to_owned);
        assert!(needed.iter().all(|part| text.contains(part)), "{text}");
    });
}

#[test]
fn every_way_to_submit_remembers_the_line_that_did() {
    watch(|| {
        let rt = local(2);
        let here = |error: Error| {
            let (Error::Panicked { origin, .. } | Error::DependencyFailed { origin, .. }) = &error else {
                panic!("{error}")
            };
            assert!(origin.location.starts_with(file!()), "{error}");
        };
        here(rt.submit(explode, 1).get().unwrap_err());
        here(rt.task(explode).submit(1).get().unwrap_err());
        here(rt.task(explode).try_submit(1).unwrap().get().unwrap_err());
        here(rt.task(|| -> (i32, i32) { panic!("no") }).submit_split(()).0.get().unwrap_err());
        here(rt.stream(|| std::iter::from_fn(|| -> Option<i32> { panic!("no") }), ()).next().unwrap().unwrap_err());
        here(rt.map(explode, [1]).collect().unwrap_err());
        here(rt.map_unordered(explode, [1]).next().unwrap().unwrap_err());
        here(rt.reduce(vec![rt.put(1), rt.put(2)], |_: i32, _: i32| -> i32 { panic!("no") }).get().unwrap_err());
    });
}

#[test]
fn panics_of_every_kind_are_caught_and_the_workers_live_on() {
    watch(|| {
        let rt = local(1);
        let texts = [
            rt.submit(|| -> i32 { panic!("plain") }, ()),
            rt.submit(|| -> i32 { panic!("formatted {}", black_box(1)) }, ()),
            rt.submit(|| -> i32 { std::panic::panic_any(17) }, ()),
        ]
        .map(|bad| match bad.get() {
            Err(Error::Panicked { message, .. }) => message,
            other => panic!("{other:?}"),
        });
        assert_eq!(&texts[..2], ["plain", "formatted 1"]);
        assert!(!texts[2].is_empty());
        assert_eq!(rt.submit(add, (1, 1)).get(), Ok(2));
    });
}

#[derive(Clone, Serialize, Deserialize)]
struct Grenade;

impl Drop for Grenade {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a destructor panics");
    }
}

#[test]
fn a_destructor_that_panics_takes_no_worker_with_it() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        for _ in 0..4 {
            drop(rt.submit(|| Grenade, ())); // nobody will take it, so it is dropped where it is made
        }
        GATE.open();
        let dropped = rt.submit(
            |grenade: Grenade| {
                drop(grenade);
                1
            },
            Grenade,
        );
        assert!(matches!(dropped.get(), Err(Error::Panicked { .. })));
        let all: Vec<_> = (0..100).map(|i| rt.submit(add, (i, 1))).collect();
        assert_eq!(rt.get_all(&all).map(|all| all.len()), Ok(100));
        assert_eq!(rt.submit(fib, 8).get(), Ok(21));
    });
}

#[test]
fn the_dependent_of_a_panic_does_not_run_and_names_the_cause() {
    watch(|| {
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        let bad = rt.task(explode).name("culprit").submit(7);
        let victim = |x: i32| {
            RAN.store(true, SeqCst);
            x
        };
        let next = rt.task(victim).name("victim").submit(&bad);
        let last = rt.submit(add, (1, &next));
        let error = last.get().unwrap_err();
        let Error::Panicked { origin, .. } = error.root_cause() else { panic!("{error}") };
        assert_eq!((origin.id, origin.name.as_str()), (bad.id(), "culprit"));
        assert!(!RAN.load(SeqCst));
        let text = error.to_string();
        assert!(["culprit", "victim", "cannot take 7"].iter().all(|part| text.contains(part)), "{text}");
        // The whole chain is there for whoever prints sources.
        let mut sources = 0;
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = source {
            sources += 1;
            source = error.source();
        }
        assert_eq!(sources, 3);
    });
}

fn checked(x: i32) -> Result<i32, String> {
    if x < 0 { Err(format!("{x} is negative")) } else { Ok(x) }
}

#[test]
fn the_ok_value_of_a_result_is_the_argument() {
    watch(|| {
        let rt = local(2);
        let good = rt.submit(checked, 4);
        assert_eq!(rt.submit(add, (&good, 1)).get(), Ok(5));
        assert_eq!(rt.submit(|x: Arc<i32>| *x, &good).get(), Ok(4));
        let many = vec![good.clone(), rt.submit(checked, 5)];
        assert_eq!(rt.submit(|all: Vec<i32>| all, &many).get(), Ok(vec![4, 5]));
        assert_eq!(rt.submit(|all: Vec<Arc<i32>>| *all[1], &many).get(), Ok(5));
        // Whoever asks for the `Result` gets it.
        let bad = rt.submit(checked, -1);
        assert_eq!(rt.submit(|r: Result<i32, String>| r.is_err(), &bad).get(), Ok(true));
        assert_eq!(bad.get(), Ok(Err("-1 is negative".into())));
    });
}

#[test]
fn the_dependent_of_an_err_fails_and_names_the_cause() {
    watch(|| {
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        let bad = rt.task(checked).name("validate").submit(-3);
        let use_it = |x: i32| {
            RAN.store(true, SeqCst);
            x
        };
        let failures = [
            rt.submit(use_it, &bad).get().unwrap_err(),
            rt.submit(|x: Arc<i32>| *x, &bad).get().unwrap_err(),
            rt.submit(|x: Vec<i32>| x, vec![rt.submit(checked, 1), bad.clone()]).get().unwrap_err(),
            rt.submit(use_it, bad.clone()).get().unwrap_err(),
        ];
        for error in failures {
            let Error::DependencyReturnedErr { origin, message } = error.root_cause() else { panic!("{error}") };
            assert_eq!((origin.id, message.as_str()), (bad.id(), "-3 is negative"));
            let text = error.to_string();
            let needed = ["validate", "-3 is negative", file!()];
            assert!(needed.iter().all(|part| text.contains(part)), "{text}");
        }
        assert!(!RAN.load(SeqCst));
    });
}

#[test]
fn the_ok_value_of_the_last_handle_is_moved() {
    watch(|| {
        let rt = local(2);
        let made = rt.submit(|| -> Result<Counted<4>, String> { Ok(Counted::new(3)) }, ());
        assert_eq!(rt.submit(|value: Counted<4>| value.value(), made).get(), Ok(3));
        // As in `the_last_handle_given_by_value_moves_the_object`.
        assert!(Counted::<4>::clones() == 0 || common::on_cluster() && Counted::<4>::clones() <= 2);
        at_once("it is freed", || Counted::<4>::live() == 0);
    });
}

#[test]
fn a_fan_in_fails_with_the_part_that_failed() {
    watch(|| {
        let rt = local(2);
        let parts = vec![rt.submit(add, (1, 2)), rt.submit(explode, 5), rt.submit(add, (3, 4))];
        let error = rt.submit(|all: Vec<i32>| all.len(), &parts).get().unwrap_err();
        assert!(matches!(error.root_cause(), Error::Panicked { origin, .. } if origin.id == parts[1].id()), "{error}");
    });
}

// The task's view of itself, and the life of the runtime.

#[test]
fn the_context_says_what_the_task_is() {
    watch(|| {
        let rt = local(2);
        let me = || {
            let context = outray::task::context();
            (
                context.id(),
                context.name().to_owned(),
                context.attempt(),
                context.node() == "local",
                context.gpus().len(),
            )
        };
        let task = rt.task(me).name("me").submit(());
        assert_eq!(task.get(), Ok((task.id(), "me".into(), 1, !common::on_cluster(), 0)));
        assert!(outray::task::try_context().is_none() && Runtime::try_current().is_none());
        let unnamed = rt.submit(|| outray::task::context().name().to_owned(), ()).get().unwrap();
        assert!(unnamed.contains("the_context_says_what_the_task_is"), "{unnamed}");
    });
}

#[test]
fn the_context_is_that_of_the_task_also_after_it_has_run_another() {
    watch(|| {
        let rt = local(1);
        let task = rt.submit(
            || {
                let inner = Runtime::current().submit(|| outray::task::context().id(), ());
                let inner = (inner.id(), inner.get().unwrap());
                (inner, outray::task::context().id())
            },
            (),
        );
        let (inner, outer) = task.get().unwrap();
        assert_eq!(inner.0, inner.1);
        assert_eq!(outer, task.id());
    });
}

#[test]
fn numbers_of_objects_are_unique() {
    watch(|| {
        let rt = local(2);
        let mut seen = HashSet::new();
        let tasks: Vec<_> = (0..3_000).map(|_| rt.submit(|| Runtime::current().put(0).id(), ())).collect();
        for task in &tasks {
            assert!(seen.insert(task.id()) && seen.insert(task.get().unwrap()));
        }
    });
}

#[test]
fn dropping_the_handle_does_not_stop_the_task() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicUsize = AtomicUsize::new(0);
        let rt = local(1);
        rt.submit(|| GATE.pass(), ());
        for _ in 0..10 {
            drop(rt.submit(|| RAN.fetch_add(1, SeqCst), ()));
        }
        GATE.open();
        until("all have run", || RAN.load(SeqCst) == 10);
    });
}

#[test]
fn dropping_the_runtime_waits_for_what_runs_and_fails_what_has_not_started() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        let running = rt.submit(
            || {
                GATE.pass();
                5
            },
            (),
        );
        GATE.wait_for(1);
        let queued = rt.task(|| RAN.store(true, SeqCst)).name("too late").submit(());
        let dependent = rt.submit(add, (&running, 1));
        let dropping = std::thread::spawn(move || drop(rt));
        let error = queued.get().unwrap_err();
        assert!(matches!(error, Error::Shutdown { .. }) && error.to_string().contains("too late"), "{error}");
        GATE.open();
        dropping.join().unwrap();
        assert_eq!(running.get(), Ok(5), "results outlive the runtime");
        assert!(matches!(dependent.get().unwrap_err().root_cause(), Error::Shutdown { .. }));
        assert!(!RAN.load(SeqCst));
    });
}

#[test]
fn a_shut_down_runtime_takes_no_more_tasks_and_says_so() {
    watch(|| {
        let rt = local(1);
        assert!(rt.shutdown(Duration::from_secs(20)));
        let late = rt.submit(add, (1, 2)).get().unwrap_err();
        assert!(matches!(late, Error::Shutdown { .. }), "{late}");
        assert!(late.to_string().contains("Runtime"), "{late}");
        assert!(matches!(rt.task(add).try_submit((1, 2)), Err(Error::Shutdown { .. })));
    });
}

#[test]
fn a_runtime_that_was_shut_down_has_no_part_in_the_next_one() {
    alone("a_runtime_that_was_shut_down_has_no_part_in_the_next_one", || {
        let old = local(1);
        assert_eq!(old.submit(add, (1, 2)).get(), Ok(3));
        assert!(old.shutdown(Duration::from_secs(20)));
        let new = local(2);
        assert!(matches!(old.submit(add, (1, 2)).get(), Err(Error::Shutdown { .. })), "the old one is shut down");
        drop(old);
        assert_eq!(new.submit(add, (3, 4)).get(), Ok(7), "the new one is not");
    });
}

#[test]
fn runtimes_come_and_go_without_leaving_threads() {
    local_only!("counts the threads of this process, and 200 jobs take long");
    alone("runtimes_come_and_go_without_leaving_threads", || {
        let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        let before = threads();
        for i in 0..200 {
            let rt = local(2);
            assert_eq!(rt.submit(add, (i, 1)).get(), Ok(i + 1));
            assert_eq!(rt.submit(fib, 5).get(), Ok(5));
        }
        until("the threads have ended", || threads() <= before);
    });
}

#[test]
fn what_a_task_did_is_visible_to_whoever_has_its_result() {
    // Relaxed: only the runtime orders the writes and the reads.
    use std::sync::atomic::Ordering::Relaxed;
    static DID: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];
    fn write(round: usize) -> usize {
        DID.iter().for_each(|place| place.store(round, Relaxed));
        round
    }
    fn sees(round: usize) -> bool {
        DID.iter().all(|place| place.load(Relaxed) == round)
    }
    watch(|| {
        let rt = local(2);
        for round in 1..common::many(2_000) {
            let done = rt.submit(write, round);
            let dependent = rt.submit(sees, &done);
            match round % 3 {
                0 => assert_eq!(done.get(), Ok(round)),
                1 => assert_eq!(common::block_on(&done), Ok(round)),
                _ => until("it is ready", || done.is_ready()),
            }
            assert!(sees(round), "round {round}: not all that the task wrote is visible");
            assert_eq!(dependent.get(), Ok(true), "round {round}: the dependent");
        }
    });
}

#[test]
fn an_idle_runtime_has_no_threads() {
    local_only!("counts the threads of this process");
    watch(|| {
        let rt = local(4);
        assert_eq!(rt.stats().threads, 0);
        assert_eq!(rt.submit(add, (1, 2)).get(), Ok(3));
        assert!(rt.stats().threads <= 4);
    });
}

#[test]
#[should_panic(expected = "Runtime::local()")]
fn the_current_runtime_outside_a_task_is_a_panic_that_says_what_to_do() {
    let _ = Runtime::current();
}

#[cfg(not(feature = "cluster"))]
#[test]
fn connecting_says_that_there_is_no_cluster_yet() {
    let error = Runtime::connect("tcp://127.0.0.1:1").unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }));
    assert!(error.to_string().contains("tcp://127.0.0.1:1") && error.to_string().contains("Runtime::local()"));
}

#[test]
fn a_runtime_without_cpus_is_refused() {
    let error = Runtime::builder().cpus(0).build().unwrap_err();
    assert!(matches!(error, Error::InvalidOption { .. }) && error.to_string().contains("cpus(0)"), "{error}");
    assert!(Runtime::builder().resource("x", -1.0).build().is_err());
    assert!(Runtime::builder().resource("x", f64::NAN).build().is_err());
}
