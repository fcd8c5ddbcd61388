//! Data-parallel helpers: map, map_unordered, reduce, the progress bar, and rayon inside tasks.

mod common;

use common::{
    AtomicBool, AtomicUsize, Counted, Gate, alone, give_others_a_chance, local, the_news_is_everywhere, until, watch,
};
use outray::{Error, ObjectRef, Runtime};
use std::{collections::HashSet, sync::atomic::Ordering::SeqCst, time::Duration};

fn square(x: u64) -> u64 {
    x * x
}

async fn async_square(x: u64) -> u64 {
    outray::sleep(Duration::from_micros(10)).await;
    x * x
}

fn odd_only(x: u64) -> u64 {
    assert!(x % 2 == 1, "{x} is even");
    x
}

#[test]
fn map_keeps_the_order_of_the_items() {
    watch(|| {
        let rt = local(2);
        for n in [0, 1, 2, 31, 32, 33, 10_000] {
            assert_eq!(rt.map(square, 0..n).collect(), Ok((0..n).map(|x| x * x).collect()), "{n} items");
        }
        assert_eq!(rt.map(square, vec![3, 1, 2]).collect(), Ok(vec![9, 1, 4]));
    });
}

#[test]
fn map_takes_async_functions() {
    watch(|| {
        let rt = local(2);
        assert_eq!(rt.map(async_square, 0..100).collect(), Ok((0..100).map(|x| x * x).collect()));
        let mut all: Vec<u64> = rt.map_unordered(async_square, 0..100).collect::<Result<_, _>>().unwrap();
        all.sort_unstable();
        assert_eq!(all, (0..100).map(|x| x * x).collect::<Vec<_>>());
    });
}

#[test]
fn map_makes_chunks_that_suit_the_number_of_items() {
    watch(|| {
        let rt = local(2);
        let tasks = |n: u64, chunk: Option<usize>| {
            let before = rt.stats().submitted;
            let map = rt.map(square, 0..n);
            let map = if let Some(chunk) = chunk { map.chunk(chunk) } else { map };
            assert_eq!(map.collect().unwrap().len() as u64, n);
            rt.stats().submitted - before
        };
        let automatic = tasks(100_000, None);
        assert!((2..=200).contains(&automatic), "{automatic} tasks for 100,000 items on 2 CPUs");
        assert_eq!(tasks(2, None), 2, "few items are not lumped together");
        assert_eq!(tasks(100, Some(7)), 15);
        assert_eq!(tasks(100, Some(1000)), 1);
        assert_eq!(tasks(10, Some(0)), 10);
        assert_eq!(tasks(0, None), 0);
    });
}

#[test]
fn map_runs_on_all_cpus() {
    watch(|| {
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        let rt = local(3);
        let meet = |x: u64| {
            common::meet(&PLACE, 3);
            x
        };
        assert_eq!(rt.map(meet, 0..3).collect(), Ok(vec![0, 1, 2]));
    });
}

#[test]
fn map_fails_with_the_first_failure_in_the_order_of_the_items() {
    watch(|| {
        let rt = local(2);
        let error = rt.map(odd_only, [1, 3, 4, 5, 6]).chunk(1).collect().unwrap_err();
        let text = error.to_string();
        assert!(matches!(&error, Error::Panicked { message, .. } if message == "4 is even"), "{error}");
        assert!(text.contains("odd_only") && text.contains(file!()), "{text}");
    });
}

#[test]
fn map_moves_items_and_results() {
    watch(|| {
        let rt = local(2);
        let items: Vec<_> = (0..100).map(Counted::<0>::new).collect();
        let results = rt.map(|item: Counted<0>| item, items).collect().unwrap();
        assert_eq!((results.len(), Counted::<0>::clones(), Counted::<0>::live()), (100, 0, 100));
        let unordered: Vec<_> = rt.map_unordered(|item: Counted<0>| item, results).collect();
        assert_eq!((unordered.len(), Counted::<0>::clones(), Counted::<0>::live()), (100, 0, 100));
    });
}

#[test]
fn map_works_inside_a_task_on_the_only_cpu() {
    watch(|| {
        let outer = |n: u64| {
            let rt = Runtime::current();
            let ordered: u64 = rt.map(square, 0..n).collect().unwrap().iter().sum();
            let unordered: u64 = rt.map_unordered(square, 0..n).map(Result::unwrap).sum();
            (ordered, unordered)
        };
        assert_eq!(local(1).submit(outer, 100).get(), Ok((328_350, 328_350)));
    });
}

#[test]
fn map_unordered_yields_every_result_once() {
    watch(|| {
        let rt = local(2);
        for n in [0u64, 1, 5, 1000, 10_000] {
            let all: Vec<u64> = rt.map_unordered(square, 0..n).collect::<Result<_, _>>().unwrap();
            assert_eq!(all.len() as u64, n);
            assert_eq!(all.into_iter().collect::<HashSet<_>>(), (0..n).map(|x| x * x).collect());
        }
        let by_ones = rt.map_unordered(square, 0..100).chunk(1).count();
        assert_eq!(by_ones, 100);
    });
}

#[test]
fn map_unordered_does_not_wait_for_a_slow_item() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let first_is_slow = |x: u64| {
            if x == 0 {
                GATE.pass();
            }
            x
        };
        let mut results = rt.map_unordered(first_is_slow, 0..4).chunk(1);
        let others: HashSet<_> = results.by_ref().take(3).map(Result::unwrap).collect();
        assert_eq!(others, HashSet::from([1, 2, 3]));
        GATE.open();
        assert_eq!((results.next(), results.next()), (Some(Ok(0)), None));
    });
}

#[test]
fn map_unordered_takes_items_as_results_are_consumed() {
    watch(|| {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        let rt = local(2);
        // Endless, and of unknown length.
        let items = (0u64..).inspect(|_| {
            TAKEN.fetch_add(1, SeqCst);
        });
        let mut results = rt.map_unordered(square, items).chunk(1);
        assert_eq!(TAKEN.load(SeqCst), 0, "nothing before it is wanted");
        for consumed in 1..100 {
            results.next().unwrap().unwrap();
            let taken = TAKEN.load(SeqCst);
            assert!((consumed..consumed + 64).contains(&taken), "{taken} taken for {consumed} results");
        }
    });
}

#[test]
fn map_unordered_over_a_very_long_range_starts() {
    watch(|| {
        let rt = local(2);
        // As good as endless, but its length is known.
        let mut results = rt.map_unordered(|x: u128| x + 1, 0..u128::from(u64::MAX));
        assert!(matches!(results.next(), Some(Ok(1..))));
    });
}

#[test]
fn dropping_map_unordered_cancels_what_has_not_started() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let rt = local(1);
        // The first to run passes, all others are held.
        let held = |x: u64| {
            if STARTED.fetch_add(1, SeqCst) > 0 {
                GATE.pass();
            }
            x
        };
        let mut results = rt.map_unordered(held, 0..4).chunk(1);
        assert!(matches!(results.next(), Some(Ok(_))));
        drop(results);
        the_news_is_everywhere(&rt);
        GATE.open();
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
        give_others_a_chance();
        assert!(STARTED.load(SeqCst) <= 2, "{} started", STARTED.load(SeqCst));
    });
}

#[test]
fn map_unordered_goes_on_after_a_failure() {
    watch(|| {
        let rt = local(2);
        let results: Vec<_> = rt.map_unordered(odd_only, [1, 2, 3, 4, 5]).chunk(1).collect();
        let good: HashSet<_> = results.iter().filter_map(|result| result.as_ref().ok()).copied().collect();
        assert_eq!((results.len(), good), (5, HashSet::from([1, 3, 5])));
        let bad = results.iter().filter_map(|result| result.as_ref().err());
        assert!(bad.clone().count() == 2 && bad.clone().all(|error| error.to_string().contains("is even")));
    });
}

#[test]
fn a_map_after_the_shutdown_fails_and_says_so() {
    watch(|| {
        let rt = local(1);
        rt.shutdown(Duration::from_secs(20));
        assert!(matches!(rt.map(square, 0..4).collect(), Err(Error::Shutdown { .. })));
        assert!(matches!(rt.map_unordered(square, 0..4).next(), Some(Err(Error::Shutdown { .. }))));
    });
}

// Reduce.

#[test]
fn reduce_combines_all_objects_in_their_order() {
    watch(|| {
        let rt = local(2);
        for n in [1, 2, 3, 4, 5, 16, 17, 100] {
            let parts: Vec<_> = (0..n).map(|i| rt.put(format!("{i},"))).collect();
            let expected: String = (0..n).map(|i| format!("{i},")).collect();
            assert_eq!(rt.reduce(parts, |a: String, b: String| a + &b).get(), Ok(expected));
        }
    });
}

#[test]
fn reduce_is_a_tree_as_deep_as_the_logarithm() {
    watch(|| {
        let rt = local(2);
        for (n, depth) in [(1u64, 0u32), (2, 1), (3, 2), (8, 3), (9, 4), (1000, 10)] {
            let before = rt.stats().submitted;
            let leaves: Vec<_> = (0..n).map(|_| rt.put((1u64, 0u32))).collect();
            let node = |a: (u64, u32), b: (u64, u32)| (a.0 + b.0, a.1.max(b.1) + 1);
            assert_eq!(rt.reduce(leaves, node).get(), Ok((n, depth)));
            assert_eq!(rt.stats().submitted - before, n - 1);
        }
    });
}

#[test]
fn reduce_starts_with_the_parts_that_are_ready() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static COMBINED: AtomicUsize = AtomicUsize::new(0);
        let rt = local(2);
        let held = || {
            GATE.pass();
            1u64
        };
        let parts = vec![rt.submit(held, ()), rt.put(1), rt.put(1), rt.put(1)];
        let add = |a: u64, b: u64| {
            COMBINED.fetch_add(1, SeqCst);
            a + b
        };
        let sum = rt.reduce(parts, add);
        until("the other half is combined", || COMBINED.load(SeqCst) == 1);
        GATE.open();
        assert_eq!(sum.get(), Ok(4));
    });
}

#[test]
fn reduce_moves_the_parts_through_the_tree() {
    watch(|| {
        let rt = local(2);
        let parts: Vec<_> = (0..50).map(|i| rt.put(Counted::<1>::new(i))).collect();
        let sum = rt.reduce(parts, |a: Counted<1>, b: Counted<1>| Counted::<1>::new(a.value() + b.value()));
        assert_eq!(sum.take().unwrap().value(), 1225);
        assert_eq!(Counted::<1>::clones(), 0);
        until("all parts are freed", || Counted::<1>::live() == 0);
    });
}

#[test]
fn reduce_takes_async_functions() {
    watch(|| {
        async fn add(a: u64, b: u64) -> u64 {
            outray::sleep(Duration::from_micros(10)).await;
            a + b
        }
        let rt = local(1);
        let parts: Vec<_> = (0..20u64).map(|i| rt.put(i)).collect();
        assert_eq!(rt.reduce(parts, add).get(), Ok(190));
    });
}

#[test]
fn reduce_of_nothing_is_an_error_that_says_so() {
    watch(|| {
        let error = local(1).reduce(Vec::<ObjectRef<u64>>::new(), |a: u64, b: u64| a + b).get().unwrap_err();
        assert!(matches!(error, Error::InvalidOption { .. }) && error.to_string().contains("reduce"), "{error}");
    });
}

#[test]
fn reduce_fails_with_the_part_that_failed() {
    watch(|| {
        let rt = local(2);
        let mut parts: Vec<_> = (0..10u64).map(|i| rt.put(i)).collect();
        parts[6] = rt.task(|| -> u64 { panic!("no part") }).name("culprit").submit(());
        let error = rt.reduce(parts, |a: u64, b: u64| a + b).get().unwrap_err();
        assert!(matches!(error.root_cause(), Error::Panicked { message, .. } if message == "no part"));
        assert!(error.to_string().contains("culprit"), "{error}");
    });
}

// The progress bar.

/// Twenty of these on two CPUs take long enough for a bar at a terminal.
fn slow(x: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(150));
    x
}

#[cfg(all(feature = "progress", target_os = "linux"))]
#[test]
fn at_a_terminal_a_long_map_shows_a_bar_until_it_ends() {
    let output = common::alone_at_a_terminal("at_a_terminal_a_long_map_shows_a_bar_until_it_ends", || {
        let rt = local(2);
        assert_eq!(rt.map(slow, 0..20).chunk(1).progress("crunching").collect().map(|all| all.len()), Ok(20));
        assert_eq!(rt.map_unordered(slow, 0..20).chunk(1).progress("munching").count(), 20);
        assert_eq!(rt.map(slow, 0..20).chunk(1).progress("silence").quiet().collect().map(|all| all.len()), Ok(20));
        assert_eq!(rt.map(square, 0..20).progress("a moment").collect().map(|all| all.len()), Ok(20));
    });
    if let Some(output) = output {
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        for bar in ["crunching", "munching"] {
            let (first, last) = (shown.find(bar), shown.rfind(bar));
            let parts = first.zip(last).map(|(first, last)| &shown[first..last]);
            assert!(parts.is_some_and(|parts| parts.contains("/20 ")), "no bar called {bar:?}: {shown:?}");
        }
        assert!(shown.rfind("\u{1b}[2K") > shown.rfind("munching"), "it is wiped away: {shown:?}");
        assert!(!shown.contains("silence") && !shown.contains("a moment"), "{shown:?}");
    }
}

#[test]
fn off_a_terminal_no_progress_bar_is_shown() {
    let output = alone("off_a_terminal_no_progress_bar_is_shown", || {
        let rt = local(2);
        assert_eq!(rt.map(slow, 0..20).chunk(1).progress("crunching").collect().map(|all| all.len()), Ok(20));
        assert_eq!(rt.map_unordered(slow, 0..20).chunk(1).progress("crunching").count(), 20);
    });
    if let Some(output) = output {
        let shown = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!shown.contains("crunching") && !shown.contains('\u{1b}') && !shown.contains("20/20"), "{shown}");
    }
}

#[test]
fn a_quiet_map_has_the_same_results() {
    watch(|| {
        let rt = local(2);
        assert_eq!(rt.map(square, 0..100).quiet().collect(), rt.map(square, 0..100).progress("squares").collect());
        assert_eq!(rt.map_unordered(square, 0..100).quiet().count(), 100);
    });
}

// Rayon.

#[cfg(feature = "rayon")]
mod rayon_inside {
    use super::*;
    use common::meet;
    use rayon::prelude::*;
    use std::thread::ThreadId;

    /// The threads on which a parallel iterator ran, and how many rayon says there are.
    fn threads() -> (usize, usize) {
        let seen: HashSet<ThreadId> = (0..2_000)
            .into_par_iter()
            .map(|_| {
                std::thread::yield_now();
                std::thread::current().id()
            })
            .collect();
        (seen.len(), rayon::current_num_threads())
    }

    #[test]
    fn a_plain_task_has_one_rayon_thread_its_own() {
        watch(|| {
            let rt = local(4);
            let own = || {
                let here = std::thread::current().id();
                (0..1000).into_par_iter().all(|_| std::thread::current().id() == here)
            };
            for _ in 0..20 {
                assert_eq!(rt.submit(threads, ()).get(), Ok((1, 1)));
                assert_eq!(rt.submit(own, ()).get(), Ok(true));
            }
        });
    }

    #[test]
    fn a_task_has_as_many_rayon_threads_as_it_leased_cpus() {
        watch(|| {
            let rt = local(4);
            for (cpus, width) in [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 4), (0.5, 1), (1.5, 2)] {
                let (seen, width_inside) = rt.task(threads).cpus(cpus).submit(()).get().unwrap();
                assert_eq!(width_inside, width, "{cpus} CPUs");
                assert!((1..=width).contains(&seen), "{seen} threads on {cpus} CPUs");
            }
        });
    }

    #[test]
    fn all_leased_cpus_work_at_the_same_time() {
        watch(|| {
            static PLACE: AtomicUsize = AtomicUsize::new(0);
            let rt = local(3);
            let all = || {
                rayon::scope(|scope| (0..3).for_each(|_| scope.spawn(|_| meet(&PLACE, 3))));
                true
            };
            assert_eq!(rt.task(all).cpus(3.0).submit(()).get(), Ok(true));
        });
    }

    #[test]
    fn tasks_with_leases_side_by_side_do_not_share_threads() {
        watch(|| {
            static PLACE: AtomicUsize = AtomicUsize::new(0);
            let rt = local(4);
            let task = || {
                meet(&PLACE, 2);
                rayon::broadcast(|_| format!("{:?}", std::thread::current().id()))
            };
            let (one, two) = (rt.task(task).cpus(2.0).submit(()), rt.task(task).cpus(2.0).submit(()));
            let all: HashSet<String> = one.get().unwrap().into_iter().chain(two.get().unwrap()).collect();
            assert_eq!(all.len(), 4);
        });
    }

    #[test]
    fn a_leased_task_is_a_task_like_any_other() {
        watch(|| {
            let rt = local(2);
            let outer = || {
                let inner = Runtime::current().task(threads).cpus(2.0).submit(());
                let plain = Runtime::current().submit(square, 5);
                (outray::task::context().id(), inner.get().unwrap().1, plain.get().unwrap())
            };
            let task = rt.task(outer).cpus(2.0).submit(());
            assert_eq!(task.get(), Ok((task.id(), 2, 25)));
            let bad = rt.task(|| -> u8 { (0..8).into_par_iter().map(|i: u8| i / (i / 9)).sum() }).cpus(2.0);
            for _ in 0..5 {
                assert!(matches!(bad.submit(()).get(), Err(Error::Panicked { .. })));
            }
            assert_eq!(rt.task(threads).cpus(2.0).submit(()).get().unwrap().1, 2);
        });
    }

    #[test]
    fn a_parallel_map_inside_a_map_stays_on_its_cpus() {
        watch(|| {
            static MOST: common::Meter = common::Meter::new();
            let rt = local(2);
            let inner = |n: u64| {
                (0..n)
                    .into_par_iter()
                    .map(|x| {
                        MOST.visit();
                        x
                    })
                    .sum::<u64>()
            };
            assert_eq!(rt.map(inner, vec![20; 20]).chunk(1).collect(), Ok(vec![190; 20]));
            assert!(MOST.most() <= 2, "{} at a time", MOST.most());
        });
    }
}

#[test]
fn a_map_that_is_dropped_before_it_is_collected_runs_nothing() {
    watch(|| {
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        let touch = |x: u64| {
            RAN.store(true, SeqCst);
            x
        };
        drop(rt.map(touch, 0..10));
        drop(rt.map_unordered(touch, 0..10));
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
        assert!(!RAN.load(SeqCst));
    });
}
