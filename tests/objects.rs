//! Objects: put, get in its forms, wait, await, handles inside values, and when memory returns.

mod common;

use common::{
    AtomicUsize, Counted, Gate, alone, at_once, block_on, builder, give_others_a_chance, local, local_only, resident,
    until, watch,
};
use outray::{Error, ObjectRef, Runtime};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

const SOON: Option<Duration> = Some(Duration::from_millis(5));

#[test]
fn put_and_get_give_the_value_back() {
    watch(|| {
        let rt = local(1);
        let object = rt.put(vec![1, 2, 3]);
        assert!(object.is_ready());
        assert_eq!(object.get(), Ok(vec![1, 2, 3]));
        assert_eq!(object.get(), Ok(vec![1, 2, 3]), "as often as wanted");
        assert_eq!(rt.put(()).get(), Ok(()));
    });
}

#[test]
fn put_moves_the_value_and_get_copies_it() {
    watch(|| {
        let rt = local(1);
        let object = rt.put(Counted::<0>::new(4));
        assert_eq!(Counted::<0>::clones(), 0);
        assert_eq!(object.get().unwrap().value(), 4);
        assert_eq!((Counted::<0>::clones(), Counted::<0>::live()), (1, 1));
    });
}

#[test]
fn get_shared_never_copies_and_all_share_one_arc() {
    local_only!("addresses mean something in one process");
    watch(|| {
        let rt = local(2);
        for object in [rt.put(Counted::<1>::new(4)), rt.submit(|| Counted::<1>::new(4), ())] {
            let (a, b) = (object.get_shared().unwrap(), object.clone().get_shared().unwrap());
            assert!(Arc::ptr_eq(&a, &b));
            let inside = |value: Arc<Counted<1>>| Arc::as_ptr(&value).addr();
            assert_eq!(rt.submit(inside, &object).get(), Ok(Arc::as_ptr(&a).addr()));
        }
        assert_eq!((Counted::<1>::clones(), Counted::<1>::live()), (0, 0));
    });
}

#[test]
fn an_arc_outlives_its_last_handle() {
    watch(|| {
        let object = local(1).put(Counted::<2>::new(4));
        let shared = object.get_shared().unwrap();
        drop(object);
        assert_eq!((shared.value(), Counted::<2>::live()), (4, 1));
        drop(shared);
        assert_eq!(Counted::<2>::live(), 0);
    });
}

#[test]
fn take_moves_the_object_out_of_the_only_handle() {
    watch(|| {
        let rt = local(1);
        assert_eq!(rt.put(Counted::<3>::new(4)).take().unwrap().value(), 4);
        assert_eq!(rt.submit(|| Counted::<3>::new(5), ()).take().unwrap().value(), 5);
        let seen = rt.put(Counted::<3>::new(6));
        drop(seen.get_shared());
        assert_eq!(seen.take().unwrap().value(), 6);
        assert_eq!(Counted::<3>::clones(), 0);
        at_once("all are freed", || Counted::<3>::live() == 0);
    });
}

#[test]
fn take_copies_when_there_is_another_handle_or_view() {
    watch(|| {
        let rt = local(1);
        let object = rt.put(Counted::<4>::new(4));
        let other = object.clone();
        assert_eq!(object.take().unwrap().value(), 4);
        assert_eq!(Counted::<4>::clones(), 1);
        let view = other.get_shared().unwrap();
        assert_eq!(other.take().unwrap().value(), 4);
        assert_eq!((Counted::<4>::clones(), view.value()), (2, 4));
    });
}

#[test]
fn take_of_a_failure_is_the_failure() {
    watch(|| {
        let rt = local(1);
        let bad = rt.submit(|| -> i32 { panic!("bad") }, ());
        assert!(matches!(bad.take(), Err(Error::Panicked { message, .. }) if message == "bad"));
    });
}

#[test]
fn get_all_keeps_the_order_and_gives_the_first_failure_in_it() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let slow = rt.submit(
            || {
                GATE.pass();
                0
            },
            (),
        );
        let mut all = vec![slow];
        all.extend((1..20).map(|i| rt.submit(|i: i32| i, i)));
        rt.get_all(&all[1..]).unwrap();
        GATE.open();
        assert_eq!(rt.get_all(&all), Ok((0..20).collect()));
        assert_eq!(rt.get_all::<i32>(&[]), Ok(vec![]));
        let bad = |text: String| -> i32 { panic!("{text}") };
        let all = [rt.put(1), rt.submit(bad, "one"), rt.submit(bad, "two")];
        drop(all[2].get());
        assert!(matches!(rt.get_all(&all), Err(Error::Panicked { message, .. }) if message == "one"));
    });
}

// Waiting.

#[test]
fn wait_returns_as_soon_as_k_are_ready() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = |i: i32| {
            GATE.pass();
            i
        };
        // The one CPU is held, and two of four are there.
        let all = [rt.submit(held, 0), rt.put(1), rt.submit(held, 2), rt.put(3)];
        let (ready, rest) = rt.wait(&all, 2, None);
        assert_eq!(rt.get_all(&ready), Ok(vec![1, 3]));
        assert_eq!(rest.iter().map(ObjectRef::id).collect::<Vec<_>>(), [all[0].id(), all[2].id()]);
        GATE.open();
        let (ready, rest) = rt.wait(&all, 4, None);
        assert_eq!((rt.get_all(&ready), rest.len()), (Ok(vec![0, 1, 2, 3]), 0));
    });
}

#[test]
fn wait_wakes_when_the_kth_becomes_ready_and_not_before() {
    watch(|| {
        static GATES: [Gate; 3] = [const { Gate::new() }; 3];
        static WOKEN: AtomicUsize = AtomicUsize::new(0);
        let rt = local(3);
        let all: Vec<_> = (0..3).map(|i| rt.submit(|i: usize| GATES[i].pass(), i)).collect();
        let (waiter, handles) = (rt.clone(), all.clone());
        let waiting = std::thread::spawn(move || {
            let (ready, rest) = waiter.wait(&handles, 2, None);
            WOKEN.store(1, SeqCst);
            (ready[0].id(), ready[1].id(), rest[0].id())
        });
        GATES.iter().for_each(|gate| gate.wait_for(1));
        GATES[2].open();
        all[2].get().unwrap();
        give_others_a_chance();
        assert_eq!(WOKEN.load(SeqCst), 0);
        GATES[0].open();
        assert_eq!(waiting.join().unwrap(), (all[0].id(), all[2].id(), all[1].id()));
        GATES[1].open();
    });
}

#[test]
fn wait_gives_at_most_k_although_more_are_ready() {
    watch(|| {
        let rt = local(1);
        let all: Vec<_> = (0..5).map(|i| rt.put(i)).collect();
        let (ready, rest) = rt.wait(&all, 2, None);
        assert_eq!((rt.get_all(&ready), rt.get_all(&rest)), (Ok(vec![0, 1]), Ok(vec![2, 3, 4])));
        let (ready, rest) = rt.wait(&all, 0, None);
        assert_eq!((ready.len(), rest.len()), (0, 5));
        let (ready, rest) = rt.wait(&all, 99, None);
        assert_eq!((ready.len(), rest.len()), (5, 0));
        let (ready, rest) = rt.wait::<i32>(&[], 3, None);
        assert_eq!((ready.len(), rest.len()), (0, 0));
    });
}

#[test]
fn wait_gives_up_when_the_time_is_over_and_returns_what_is_ready() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let all = [rt.submit(|| GATE.pass(), ()), rt.put(())];
        let (ready, rest) = rt.wait(&all, 2, SOON);
        assert_eq!((ready[0].id(), rest[0].id()), (all[1].id(), all[0].id()));
        GATE.open();
    });
}

#[test]
fn wait_counts_a_failed_task_as_ready() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let all = [rt.submit(|| GATE.pass(), ()), rt.submit(|| assert!(std::hint::black_box(false), "bad"), ())];
        let (ready, rest) = rt.wait(&all, 1, None);
        assert_eq!((ready[0].id(), rest[0].id()), (all[1].id(), all[0].id()));
        GATE.open();
    });
}

#[test]
fn wait_works_with_the_same_handle_twice() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let task = rt.submit(|| GATE.pass(), ());
        let both = [task.clone(), task];
        let waiter = rt.clone();
        let waiting = std::thread::spawn(move || waiter.wait(&both, 2, None).0.len());
        GATE.wait_for(1);
        GATE.open();
        assert_eq!(waiting.join().unwrap(), 2);
    });
}

#[test]
fn wait_inside_a_task_lets_others_use_the_cpu() {
    watch(|| {
        let rt = local(1);
        let inside = rt.submit(
            || {
                let rt = Runtime::current();
                let tasks: Vec<_> = (0..10).map(|i| rt.submit(|i: i32| i, i)).collect();
                rt.wait(&tasks, 3, None).0.len()
            },
            (),
        );
        assert_eq!(inside.get(), Ok(3));
    });
}

#[test]
fn a_get_with_a_time_limit_gives_up_says_what_the_task_does_and_leaves_it_alone() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = || {
            GATE.pass();
            7
        };
        let task = rt.task(held).name("held up").submit(());
        GATE.wait_for(1);
        let error = task.get_timeout(Duration::from_millis(5)).unwrap_err();
        let Error::Timeout { waiting_for, after } = &error else { panic!("{error}") };
        assert_eq!(*after, Duration::from_millis(5));
        assert!(waiting_for.contains("held up") && waiting_for.contains(&format!("#{}", task.id())), "{error}");
        assert!(waiting_for.contains("running"), "{error}");
        let queued = rt.task(|| 8).name("queued").submit(());
        let error = queued.get_timeout(Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("queued") && error.to_string().contains("CPU"), "{error}");
        let next = rt.submit(|x: i32| x, &task);
        let error = next.get_timeout(Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("held up"), "it names what the task waits for: {error}");
        GATE.open();
        assert_eq!((task.get(), queued.get(), next.get()), (Ok(7), Ok(8), Ok(7)));
        assert_eq!(task.get_timeout(Duration::ZERO), Ok(7));
    });
}

#[test]
fn a_get_with_a_time_limit_returns_when_the_result_comes() {
    watch(|| {
        let rt = local(1);
        assert_eq!(rt.submit(|| 7, ()).get_timeout(Duration::from_secs(50)), Ok(7));
        assert_eq!(rt.submit(|| 7, ()).get_timeout(Duration::MAX), Ok(7), "a limit that no clock can hold");
    });
}

#[test]
fn many_threads_get_the_same_object() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let task = rt.submit(
            || {
                GATE.pass();
                vec![1u8; 1000]
            },
            (),
        );
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let task = task.clone();
                std::thread::spawn(move || task.get_shared().unwrap())
            })
            .collect();
        GATE.open();
        let all: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
    });
}

// Await.

#[test]
fn a_handle_is_awaited_by_value_and_by_reference() {
    watch(|| {
        let rt = local(2);
        let handle = rt.submit(|x: i32| x + 1, 1);
        assert_eq!(block_on(async { (&handle).await }), Ok(2));
        assert_eq!(block_on(handle), Ok(2));
        let bad = rt.submit(|| -> i32 { panic!("bad") }, ());
        assert!(matches!(block_on(bad), Err(Error::Panicked { .. })));
    });
}

#[test]
fn a_handle_that_is_awaited_wakes_any_executor() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = rt.submit(
            || {
                GATE.pass();
                5
            },
            (),
        );
        let waiting = std::thread::spawn(move || block_on(held));
        GATE.wait_for(1);
        give_others_a_chance();
        GATE.open();
        assert_eq!(waiting.join().unwrap(), Ok(5));
    });
}

#[test]
fn a_dropped_await_leaves_the_task_alone() {
    watch(|| {
        use std::{future::IntoFuture, pin::pin, task};
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = rt.submit(
            || {
                GATE.pass();
                5
            },
            (),
        );
        {
            let mut future = pin!((&held).into_future());
            let mut context = task::Context::from_waker(task::Waker::noop());
            assert!(std::future::Future::poll(future.as_mut(), &mut context).is_pending());
        }
        GATE.open();
        assert_eq!(held.get(), Ok(5));
    });
}

// Handles inside values.

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tree {
    value: ObjectRef<u64>,
    children: Vec<Tree>,
    named: BTreeMap<String, ObjectRef<u64>>,
    last: Option<ObjectRef<u64>>,
}

#[test]
fn handles_inside_values_work_where_they_arrive() {
    watch(|| {
        fn total(tree: Tree) -> outray::Result<u64> {
            let mut sum = tree.value.get()?;
            for handle in tree.named.values().chain(&tree.last) {
                sum += handle.get()?;
            }
            for child in tree.children {
                sum += total(child)?;
            }
            Ok(sum)
        }
        for check in [false, true] {
            let rt = builder().cpus(2).check_serialization(check).build().unwrap();
            let leaf = |value: u64| Tree {
                value: rt.submit(|value: u64| value, value),
                children: vec![],
                named: BTreeMap::from([("a".to_owned(), rt.put(100))]),
                last: None,
            };
            let tree = Tree {
                value: rt.put(1),
                children: vec![leaf(2), leaf(3)],
                named: BTreeMap::new(),
                last: Some(rt.put(1000)),
            };
            assert_eq!(rt.submit(total, tree.clone()).get(), Ok(Ok(1206)));
            assert_eq!(rt.submit(total, rt.put(tree)).get(), Ok(Ok(1206)));
        }
    });
}

#[test]
fn a_handle_inside_a_value_keeps_its_object_alive() {
    watch(|| {
        #[derive(Clone, Serialize, Deserialize)]
        struct Holder {
            inside: ObjectRef<Counted<5>>,
        }
        for check in [false, true] {
            let rt = builder().cpus(1).check_serialization(check).build().unwrap();
            let holder = rt.put(Holder { inside: rt.put(Counted::<5>::new(9)) });
            assert_eq!(Counted::<5>::live(), 1);
            let read = |holder: Holder| holder.inside.get_shared().unwrap().value();
            assert_eq!(rt.submit(read, &holder).get(), Ok(9));
            assert_eq!(rt.submit(read, holder).get(), Ok(9));
            until("it is freed with its holder", || Counted::<5>::live() == 0);
        }
    });
}

#[test]
fn a_handle_serialized_by_others_is_an_error_that_says_why() {
    watch(|| {
        let rt = local(1);
        let error = serde_json::to_string(&rt.put(1)).unwrap_err().to_string();
        assert!(error.contains("outray") && error.contains("handle"), "{error}");
        let error = serde_json::from_str::<ObjectRef<i32>>("0").unwrap_err().to_string();
        assert!(error.contains("outray") && error.contains("handle"), "{error}");
    });
}

#[test]
fn a_handle_shows_its_number_and_whether_it_is_ready() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let task = rt.submit(|| GATE.pass(), ());
        assert!(format!("{task:?}").contains(&task.id().to_string()) && format!("{task:?}").contains("pending"));
        GATE.open();
        task.get().unwrap();
        assert!(format!("{task:?}").contains("ready"));
        assert_eq!(task.clone().id(), task.id());
    });
}

// Freeing.

#[test]
fn an_object_is_freed_when_its_last_handle_goes() {
    watch(|| {
        let rt = local(1);
        let put = rt.put(Counted::<6>::new(1));
        let made = rt.submit(|| Counted::<6>::new(2), ());
        drop(made.get_shared());
        let others: Vec<_> = (0..10).flat_map(|_| [put.clone(), made.clone()]).collect();
        drop((put, made));
        at_once("both are held", || Counted::<6>::live() == 2);
        drop(others);
        at_once("both are freed", || Counted::<6>::live() == 0);
    });
}

#[test]
fn a_result_that_nobody_waits_for_is_freed_when_its_task_ends() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let rt = local(1);
        let make = || {
            GATE.pass();
            MADE.fetch_add(1, SeqCst);
            Counted::<7>::new(1)
        };
        drop(rt.submit(make, ()));
        GATE.open();
        until("it is made and freed", || MADE.load(SeqCst) == 1 && Counted::<7>::live() == 0);
    });
}

#[test]
fn arguments_are_freed_when_the_task_ends_although_its_result_is_held() {
    watch(|| {
        let rt = local(2);
        let shared = rt.put(Counted::<8>::new(1));
        let by_ref = rt.submit(|value: Arc<Counted<8>>| value.value(), &shared);
        let by_value = rt.submit(|value: Counted<8>| value.value(), Counted::<8>::new(2));
        drop(shared);
        assert_eq!((by_ref.get(), by_value.get()), (Ok(1), Ok(2)));
        until("the arguments are freed", || Counted::<8>::live() == 0);
        assert!(by_ref.is_ready());
    });
}

#[test]
fn intermediate_results_are_freed_while_the_chain_runs() {
    watch(|| {
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let rt = local(1);
        let mut last = rt.put(Counted::<9>::new(0));
        for _ in 0..100 {
            let next = |value: Arc<Counted<9>>| {
                let next = Counted::<9>::new(value.value() + 1);
                MOST.fetch_max(Counted::<9>::live(), SeqCst);
                next
            };
            last = rt.submit(next, last);
        }
        assert_eq!(last.get_shared().unwrap().value(), 100);
        assert!(MOST.load(SeqCst) <= 4, "{} at a time", MOST.load(SeqCst));
    });
}

#[test]
fn the_arguments_of_a_failed_or_cancelled_task_are_freed() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = rt.submit(|| GATE.pass(), ());
        let use_it = |_: Counted<10>| -> i32 { panic!("no") };
        let cancelled = rt.submit(use_it, Counted::<10>::new(1));
        cancelled.cancel();
        at_once("its argument is freed", || Counted::<10>::live() == 0);
        let failed = rt.submit(use_it, Counted::<10>::new(2));
        let dependent = rt.submit(|_: i32, _: Counted<10>| (), (&failed, Counted::<10>::new(3)));
        GATE.open();
        assert!(dependent.get().is_err() && held.get().is_ok());
        until("all are freed", || Counted::<10>::live() == 0);
    });
}

#[test]
fn what_a_runtime_that_is_dropped_had_queued_is_freed() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let queued: Vec<_> = (0..100).map(|i| rt.submit(|value: Counted<11>| value, Counted::<11>::new(i))).collect();
        let waiting = rt.submit(|_: (), value: Counted<11>| value, (&held, Counted::<11>::new(7)));
        GATE.open();
        drop(rt);
        drop((queued, waiting));
        until("all are freed", || Counted::<11>::live() == 0);
    });
}

#[test]
fn memory_returns_when_the_last_handle_goes() {
    local_only!("measures the memory of this process");
    alone("memory_returns_when_the_last_handle_goes", || {
        const SIZE: usize = 64 << 20;
        let Some(before) = resident() else { return };
        let rt = local(1);
        let big = rt.put(vec![1u8; SIZE]);
        let made = rt.submit(|| vec![2u8; SIZE], ());
        let other = made.clone();
        assert_eq!(made.get_shared().unwrap()[SIZE - 1], 2);
        let with_both = resident().unwrap();
        assert!(with_both > before + 2 * SIZE as u64 * 9 / 10, "both are there: {before} then {with_both}");
        drop((big, made));
        assert!(resident().unwrap() > before + SIZE as u64 * 9 / 10, "somebody holds one");
        drop(other);
        let after = resident().unwrap();
        assert!(after < before + SIZE as u64 / 2, "{before} before, {with_both} at most, {after} after");
    });
}

#[test]
fn memory_does_not_grow_with_the_number_of_tasks_that_have_ended() {
    local_only!("measures the memory of this process");
    alone("memory_does_not_grow_with_the_number_of_tasks_that_have_ended", || {
        let rt = local(2);
        let rounds = |n: usize| {
            for _ in 0..n {
                let all: Vec<_> = (0..1000u64).map(|i| rt.submit(|i: u64| vec![i; 16], i)).collect();
                rt.wait(&all, 1000, None);
            }
        };
        rounds(20);
        let Some(before) = resident() else { return };
        rounds(100);
        let after = resident().unwrap();
        // A hundred thousand tasks: 16 MiB would be 160 bytes for each.
        assert!(after < before + (8 << 20), "{before} before, {after} after");
    });
}
