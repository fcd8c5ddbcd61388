//! A task's options: name, resources, retries, deadlines, cancellation and placement.

mod common;

use common::{
    AtomicBool, AtomicU32, AtomicUsize, Gate, Meter, Notes, alone, at_once, builder, give_others_a_chance, local, meet,
    on_cluster, the_news_is_everywhere, until, watch,
};
use outray::{Bundle, Error, ObjectRef, PlacementStrategy, Runtime, Strategy};
use std::{
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);

fn assert_says(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

// Resources.

#[test]
fn a_plain_task_takes_one_cpu() {
    watch(|| {
        static METER: Meter = Meter::new();
        let rt = local(2);
        let all: Vec<_> = (0..100).map(|_| rt.submit(|| METER.visit(), ())).collect();
        until("all have run", || METER.total() == 100);
        assert!(rt.get_all(&all).is_ok());
        assert!(METER.most() <= 2, "{} at a time", METER.most());
    });
}

#[test]
fn shares_of_a_cpu_run_side_by_side_on_one_and_no_more_than_fit() {
    watch(|| {
        static METER: Meter = Meter::new();
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        let rt = local(1);
        let quarter = rt.task(|| meet(&PLACE, 4)).cpus(0.25);
        let meeting: Vec<_> = (0..4).map(|_| quarter.submit(())).collect();
        assert!(rt.get_all(&meeting).is_ok(), "four quarters meet on one CPU");
        let third = rt.task(|| METER.visit()).cpus(0.3);
        let all: Vec<_> = (0..60).map(|_| third.submit(())).collect();
        assert!(rt.get_all(&all).is_ok());
        assert!(METER.most() <= 3, "{} at a time", METER.most());
    });
}

#[test]
fn tasks_that_ask_for_several_cpus_exclude_each_other() {
    watch(|| {
        static METER: Meter = Meter::new();
        let rt = local(3);
        let all: Vec<_> = (0..40).map(|_| rt.task(|| METER.visit()).cpus(2.0).submit(())).collect();
        assert!(rt.get_all(&all).is_ok());
        assert_eq!(METER.most(), 1);
    });
}

#[test]
fn a_task_that_needs_all_cpus_is_not_starved_by_plain_ones() {
    watch(|| {
        static DONE: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        // Each plain task starts its successor: there is always one to run.
        fn endless() {
            if !DONE.load(SeqCst) {
                let rt = Runtime::current();
                rt.submit(endless, ());
                std::thread::yield_now();
            }
        }
        for _ in 0..4 {
            rt.submit(endless, ());
        }
        rt.task(|| DONE.store(true, SeqCst)).cpus(2.0).submit(());
        until("the wide task has run", || DONE.load(SeqCst));
    });
}

#[test]
fn a_task_without_cpus_always_starts() {
    watch(|| {
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        let rt = local(1);
        let free = rt.task(|| meet(&PLACE, 6)).cpus(0.0);
        let meeting: Vec<_> = (0..6).map(|_| free.submit(())).collect();
        assert!(rt.get_all(&meeting).is_ok());
    });
}

#[test]
fn the_cpus_of_a_task_are_free_again_when_it_ends_however_it_ends() {
    watch(|| {
        let rt = local(2);
        for _ in 0..50 {
            assert!(rt.task(|| ()).cpus(2.0).submit(()).get().is_ok());
            assert!(
                rt.task(|| -> u8 { std::panic::resume_unwind(Box::new("no")) }).cpus(2.0).submit(()).get().is_err()
            );
            let cancelled = rt.task(|| ()).cpus(2.0).submit(());
            cancelled.cancel();
            let deadline = rt.task(|| ()).cpus(2.0).deadline(Duration::ZERO).submit(());
            drop(deadline.get());
        }
        until("all CPUs are free", || (rt.stats().cpus_free - 2.0).abs() < 1e-9);
        assert!(rt.task(|| ()).cpus(2.0).submit(()).get().is_ok());
    });
}

#[test]
fn a_wide_task_that_blocks_lends_its_cpus() {
    watch(|| {
        let rt = local(2);
        let outer = || Runtime::current().task(|| 7).cpus(2.0).submit(()).get().unwrap();
        assert_eq!(rt.task(outer).cpus(2.0).submit(()).get(), Ok(7));
    });
}

#[test]
fn a_cancelled_request_no_longer_keeps_cpus_from_others() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let wide = rt.task(|| ()).cpus(2.0).submit(()); // waits for the first task, and keeps a CPU free
        wide.cancel();
        rt.submit(|| RAN.store(true, SeqCst), ()); // one CPU is free for it
        until("the plain task has run", || RAN.load(SeqCst));
        GATE.open();
    });
}

#[test]
fn a_request_past_its_deadline_no_longer_keeps_cpus_from_others() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let wide = rt.task(|| ()).cpus(2.0).deadline(Duration::from_millis(1)).submit(());
        assert!(matches!(wide.get(), Err(Error::DeadlineExceeded { .. })));
        rt.submit(|| RAN.store(true, SeqCst), ());
        until("the plain task has run", || RAN.load(SeqCst));
        GATE.open();
    });
}

#[test]
fn a_custom_resource_limits_how_many_run() {
    watch(|| {
        static METER: Meter = Meter::new();
        let rt = builder().cpus(4).resource("licence", 2.0).build().unwrap();
        let all: Vec<_> =
            (0..40).map(|_| rt.task(|| METER.visit()).cpus(0.0).resource("licence", 1.0).submit(())).collect();
        assert!(rt.get_all(&all).is_ok());
        assert!(METER.most() <= 2, "{} at a time", METER.most());
    });
}

#[test]
fn a_task_that_waits_for_a_custom_resource_lets_others_pass() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = builder().cpus(2).resource("licence", 1.0).build().unwrap();
        let holder = rt.task(|| GATE.pass()).resource("licence", 1.0).submit(());
        GATE.wait_for(1);
        let waiting = rt.task(|| 1).resource("licence", 0.5).submit(());
        let other = rt.task(|| 2).cpus(0.5).submit(());
        assert_eq!(other.get(), Ok(2));
        assert!(!waiting.is_ready());
        GATE.open();
        assert_eq!((waiting.get(), holder.get()), (Ok(1), Ok(())));
    });
}

#[test]
fn memory_is_admitted_up_to_what_there_is() {
    watch(|| {
        static METER: Meter = Meter::new();
        let rt = builder().cpus(4).memory(1000).build().unwrap();
        let all: Vec<_> = (0..40).map(|_| rt.task(|| METER.visit()).cpus(0.0).memory(400).submit(())).collect();
        assert!(rt.get_all(&all).is_ok());
        assert!(METER.most() <= 2, "{} at a time", METER.most());
    });
}

#[test]
fn tasks_get_whole_gpus_of_their_own() {
    watch(|| {
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        let rt = builder().cpus(2).gpus(3).build().unwrap();
        let devices = |others: usize| {
            meet(&PLACE, others);
            outray::task::context().gpus()
        };
        let (one, two) = (rt.task(devices).gpus(1.0).submit(2), rt.task(devices).gpus(2.0).submit(2));
        let (one, two) = (one.get().unwrap(), two.get().unwrap());
        assert_eq!((one.len(), two.len()), (1, 2));
        let mut all: Vec<_> = one.iter().chain(&two).map(|(device, _)| *device).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2], "no device twice");
        assert!(one.iter().chain(&two).all(|(_, share)| (share - 1.0).abs() < 1e-9));
    });
}

#[test]
fn shares_of_a_gpu_are_shares_of_one_device() {
    watch(|| {
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        let rt = builder().cpus(3).gpus(2).build().unwrap();
        let device = || {
            meet(&PLACE, 3);
            outray::task::context().gpus()
        };
        let all: Vec<_> = [0.5, 0.5, 0.6].map(|share| rt.task(device).gpus(share).submit(())).into();
        let all = rt.get_all(&all).unwrap();
        assert!(all.iter().all(|gpus| gpus.len() == 1), "{all:?}");
        assert_eq!(all[0][0].0, all[1][0].0, "the halves share a device");
        assert_ne!(all[0][0].0, all[2][0].0);
        assert!((all[2][0].1 - 0.6).abs() < 1e-9);
    });
}

/// Why what was submitted can never run. A cluster may grow: there the result says so.
#[track_caller]
fn refusal<T: Clone + Send + Sync + 'static>(submitted: outray::Result<ObjectRef<T>>) -> Error {
    match on_cluster() {
        true => submitted.expect("it is taken").get().map(|_| ()).unwrap_err(),
        false => submitted.map(|_| ()).unwrap_err(),
    }
}

#[test]
fn a_request_that_can_never_be_met_fails_at_submission_and_says_what_is_missing() {
    watch(|| {
        let rt = builder().cpus(2).gpus(1).memory(1000).resource("licence", 1.0).build().unwrap();
        let never = || ();
        let tasks: [(outray::Task<_, (), _, ()>, &[&str]); 6] = [
            (rt.task(never).name("greedy").cpus(64.0), &["64", "CPU", "2"]),
            (rt.task(never).name("greedy").gpus(2.0), &["2", "GPU"]),
            (rt.task(never).name("greedy").memory(1001), &["1001", "memory", "1000"]),
            (rt.task(never).name("greedy").resource("licence", 2.0), &["licence", "2", "1"]),
            (rt.task(never).name("greedy").resource("no such thing", 0.5), &["no such thing", "0.5", "0"]),
            (rt.task(never).name("greedy").cpus(1.0).gpus(4.0), &["4", "GPU"]),
        ];
        for (task, parts) in tasks {
            let error = refusal(task.try_submit(()));
            assert!(matches!(error, Error::Infeasible { .. }), "{error}");
            assert_says(&error, parts);
            assert_says(&error, &["greedy", file!(), "#"]);
            let handle = task.submit(());
            assert!(on_cluster() || handle.is_ready(), "it is known at once");
            assert!(matches!(handle.get(), Err(Error::Infeasible { .. })));
            let dependent = rt.submit(|(): ()| (), &handle).get().unwrap_err();
            assert!(matches!(dependent.root_cause(), Error::Infeasible { .. }));
        }
        let (part, _) = rt.task(|| (1, 2)).cpus(64.0).submit_split(());
        assert!(matches!(part.get(), Err(Error::Infeasible { .. })));
    });
}

#[test]
fn amounts_that_make_no_sense_are_refused_by_name() {
    watch(|| {
        let rt = builder().cpus(2).gpus(4).resource("licence", 1.0).build().unwrap();
        let refused = |task: outray::Task<_, (), _, ()>, parts: &[&str]| {
            let error = task.try_submit(()).unwrap_err();
            assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
            assert_says(&error, parts);
        };
        let nothing = || ();
        refused(rt.task(nothing).cpus(-1.0), &["cpus", "-1"]);
        refused(rt.task(nothing).cpus(f64::NAN), &["cpus", "NaN"]);
        refused(rt.task(nothing).cpus(f64::INFINITY), &["cpus"]);
        refused(rt.task(nothing).cpus(0.0001), &["cpus", "thousandths"]);
        refused(rt.task(nothing).gpus(1.5), &["gpus", "1.5"]);
        refused(rt.task(nothing).gpus(-0.5), &["gpus"]);
        refused(rt.task(nothing).resource("licence", -2.0), &["licence", "-2"]);
    });
}

// Names.

#[test]
fn a_name_is_what_messages_call_the_task() {
    watch(|| {
        let rt = local(1);
        let error = rt.task(|| -> u8 { panic!("no") }).name("named task").submit(()).get().unwrap_err();
        assert_says(&error, &["named task", "no", file!()]);
    });
}

// Retries.

#[test]
fn a_panic_is_retried_as_often_as_asked_and_the_task_knows_its_attempt() {
    watch(|| {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let rt = local(2);
        let third = || {
            let run = RUNS.fetch_add(1, SeqCst) + 1;
            assert_eq!(outray::task::context().attempt(), run);
            assert!(run >= 3, "not yet");
            run
        };
        assert_eq!(rt.task(third).retries(5).submit(()).get(), Ok(3));
        assert_eq!(RUNS.load(SeqCst), 3);
    });
}

#[test]
fn when_the_retries_are_used_up_the_error_names_the_attempt() {
    watch(|| {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let rt = local(2);
        let never = || -> u8 {
            let run = RUNS.fetch_add(1, SeqCst) + 1;
            panic!("run {run}")
        };
        let error = rt.task(never).retries(2).submit(()).get().unwrap_err();
        assert_eq!(RUNS.load(SeqCst), 3);
        let Error::Panicked { origin, message } = &error else { panic!("{error}") };
        assert_eq!((origin.attempt, message.as_str()), (3, "run 3"));
        assert_says(&error, &["attempt 3"]);
    });
}

#[test]
fn without_retries_a_panic_is_final_and_an_err_is_a_result() {
    watch(|| {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let rt = local(2);
        let bad = || -> Result<(), String> {
            RUNS.fetch_add(1, SeqCst);
            Err("no".into())
        };
        assert_eq!(rt.task(bad).submit(()).get(), Ok(Err("no".into())));
        assert_eq!(rt.task(bad).retries(3).submit(()).get(), Ok(Err("no".into())), "retries are for panics");
        assert_eq!(RUNS.load(SeqCst), 2);
        static PANICS: AtomicU32 = AtomicU32::new(0);
        let panics = || -> Result<(), String> {
            PANICS.fetch_add(1, SeqCst);
            panic!("no")
        };
        assert!(rt.task(panics).retry_errors(3).submit(()).get().is_err(), "retry_errors are for Err");
        assert_eq!(PANICS.load(SeqCst), 1);
    });
}

#[test]
fn an_err_is_retried_as_often_as_asked() {
    watch(|| {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let rt = local(2);
        let third = |need: u32| -> Result<u32, String> {
            let run = RUNS.fetch_add(1, SeqCst) + 1;
            if run < need { Err(format!("run {run}")) } else { Ok(run) }
        };
        assert_eq!(rt.task(third).retry_errors(5).submit(3).get(), Ok(Ok(3)));
        RUNS.store(0, SeqCst);
        assert_eq!(rt.task(third).retry_errors(2).submit(9).get(), Ok(Err("run 3".into())));
        assert_eq!(RUNS.load(SeqCst), 3);
    });
}

#[test]
fn a_dependent_sees_only_the_last_attempt() {
    watch(|| {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let rt = local(2);
        let second =
            || -> Result<u32, String> { if RUNS.fetch_add(1, SeqCst) == 0 { Err("first".into()) } else { Ok(7) } };
        let retried = rt.task(second).retry_errors(1).submit(());
        assert_eq!(rt.submit(|x: u32| x + 1, &retried).get(), Ok(8));
    });
}

#[test]
fn every_attempt_gets_the_same_arguments() {
    watch(|| {
        static SEEN: Notes<9> = Notes::new();
        let rt = local(2);
        let task = |mut values: Vec<u32>, shared: u32| {
            values.iter().chain([&shared]).for_each(|number| SEEN.push(*number as usize));
            let last = SEEN.all().len() == 9;
            values.clear();
            assert!(last, "again");
        };
        let handle = rt.submit(|| 5u32, ());
        assert_eq!(rt.task(task).retries(2).submit((vec![1, 2], handle)).get(), Ok(()));
        assert_eq!(SEEN.all(), [1, 2, 5, 1, 2, 5, 1, 2, 5]);
    });
}

#[test]
fn an_async_task_is_retried_too() {
    watch(|| {
        async fn flaky() -> Result<u32, String> {
            outray::sleep(Duration::from_millis(1)).await;
            match outray::task::context().attempt() {
                1 => panic!("first"),
                attempt => Ok(attempt),
            }
        }
        assert_eq!(local(1).task(flaky).retries(1).submit(()).get(), Ok(Ok(2)));
    });
}

#[test]
fn a_split_task_is_retried_too() {
    watch(|| {
        let rt = local(1);
        let flaky = || {
            assert!(outray::task::context().attempt() > 1, "first");
            (1, 2)
        };
        let (one, two) = rt.task(flaky).retries(1).submit_split(());
        assert_eq!((one.get(), two.get()), (Ok(1), Ok(2)));
    });
}

#[test]
fn a_retried_task_takes_its_resources_for_each_attempt() {
    watch(|| {
        static METER: Meter = Meter::new();
        let rt = local(2);
        let flaky = || {
            METER.visit();
            assert!(outray::task::context().attempt() > 3, "not yet");
        };
        let all: Vec<_> = (0..10).map(|_| rt.task(flaky).retries(3).cpus(2.0).submit(())).collect();
        assert!(rt.get_all(&all).is_ok());
        assert_eq!((METER.most(), METER.total()), (1, 40));
        until("all CPUs are free", || (rt.stats().cpus_free - 2.0).abs() < 1e-9);
    });
}

#[test]
fn the_pause_between_attempts_doubles() {
    watch(|| {
        // In virtual time: attempts at 0, 1, 3 and 7 hours, and somebody who looks every hour.
        static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let rt = Runtime::deterministic(3);
        let flaky = || -> Result<(), String> {
            let attempt = outray::task::context().attempt();
            LOG.lock().unwrap().push(format!("attempt {attempt}"));
            if attempt < 4 { Err("again".into()) } else { Ok(()) }
        };
        async fn clock() {
            outray::sleep(HOUR / 2).await;
            for half_past in 0..8 {
                LOG.lock().unwrap().push(format!("{half_past}:30"));
                outray::sleep(HOUR).await;
            }
        }
        let clock = rt.submit(clock, ());
        assert_eq!(rt.task(flaky).retry_errors(3).backoff(HOUR).submit(()).get(), Ok(Ok(())));
        assert_eq!(clock.get(), Ok(()));
        let expected = [
            "attempt 1",
            "0:30",
            "attempt 2",
            "1:30",
            "2:30",
            "attempt 3",
            "3:30",
            "4:30",
            "5:30",
            "6:30",
            "attempt 4",
            "7:30",
        ];
        assert_eq!(*LOG.lock().unwrap(), expected);
    });
}

#[test]
fn no_cpu_is_held_in_the_pause_between_attempts() {
    watch(|| {
        let rt = local(1);
        let never = || -> Result<(), String> { Err("again".into()) };
        let waiting = rt.task(never).retry_errors(1).backoff(HOUR).cpus(1.0).submit(());
        until("its first attempt is over", || (rt.stats().cpus_free - 1.0).abs() < 1e-9 && rt.stats().threads > 0);
        assert_eq!(rt.submit(|| 7, ()).get(), Ok(7));
        assert!(!waiting.is_ready());
        waiting.cancel();
        assert!(waiting.get().unwrap_err().is_cancelled(), "and it can be cancelled there");
    });
}

// Deadlines.

#[test]
fn a_task_that_has_not_started_by_its_deadline_never_does() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let late = rt.task(|| RAN.store(true, SeqCst)).name("late").deadline(Duration::from_millis(2)).submit(());
        let dependent = rt.submit(|(): ()| (), &late);
        let error = late.get().unwrap_err();
        assert!(matches!(&error, Error::DeadlineExceeded { after, .. } if *after == Duration::from_millis(2)));
        assert_says(&error, &["late", "deadline", "2ms", file!(), &format!("#{}", late.id())]);
        the_news_is_everywhere(&rt);
        GATE.open();
        assert!(matches!(dependent.get().unwrap_err().root_cause(), Error::DeadlineExceeded { .. }));
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
        give_others_a_chance();
        assert!(!RAN.load(SeqCst));
    });
}

#[test]
fn a_task_that_runs_past_its_deadline_is_told() {
    watch(|| {
        static TOLD: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        let stubborn = || {
            until("the task is told", || outray::task::context().is_cancelled());
            TOLD.store(true, SeqCst);
        };
        // On a cluster it has to start before.
        let after = Duration::from_millis(if on_cluster() { 2_000 } else { 5 });
        let task = rt.task(stubborn).deadline(after).submit(());
        assert!(matches!(task.get(), Err(Error::DeadlineExceeded { .. })));
        until("it has ended", || TOLD.load(SeqCst));
    });
}

#[test]
fn a_task_that_ends_before_its_deadline_has_its_result() {
    watch(|| {
        let rt = local(1);
        assert_eq!(rt.task(|| 1).deadline(HOUR).submit(()).get(), Ok(1));
        async fn two_hours() -> u8 {
            outray::sleep(2 * HOUR).await;
            1
        }
        let rt = Runtime::deterministic(1);
        assert_eq!(rt.task(two_hours).deadline(3 * HOUR).submit(()).get(), Ok(1));
        assert!(matches!(rt.task(two_hours).deadline(HOUR).submit(()).get(), Err(Error::DeadlineExceeded { .. })));
    });
}

#[test]
fn the_deadline_counts_from_the_submission_over_all_attempts() {
    watch(|| {
        let rt = Runtime::deterministic(1);
        let never = || -> Result<(), String> { Err("again".into()) };
        let task = rt.task(never).retry_errors(100).backoff(HOUR).deadline(10 * HOUR).submit(());
        assert!(matches!(task.get(), Err(Error::DeadlineExceeded { after, .. }) if after == 10 * HOUR));
    });
}

// Cancellation.

#[test]
fn a_pending_task_that_is_cancelled_never_runs() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicUsize = AtomicUsize::new(0);
        let rt = builder().cpus(1).resource("licence", 1.0).build().unwrap();
        let holder = rt.task(|| GATE.pass()).resource("licence", 1.0).submit(());
        GATE.wait_for(1);
        let run = || {
            RAN.fetch_add(1, SeqCst);
        };
        let queued = rt.submit(run, ());
        let for_arguments = rt.submit(
            |(): ()| {
                RAN.fetch_add(1, SeqCst);
            },
            &holder,
        );
        let for_resources = rt.task(run).resource("licence", 1.0).submit(());
        for task in [&queued, &for_arguments, &for_resources] {
            task.cancel();
            assert!(task.is_ready(), "at once");
            let error = task.get().unwrap_err();
            assert!(error.is_cancelled() && matches!(error, Error::Cancelled { .. }));
            assert_says(&error, &["cancelled", file!(), &format!("#{}", task.id())]);
        }
        the_news_is_everywhere(&rt);
        GATE.open();
        assert_eq!(holder.get(), Ok(()));
        assert_eq!(rt.task(|| 1).resource("licence", 1.0).submit(()).get(), Ok(1));
        give_others_a_chance();
        assert_eq!(RAN.load(SeqCst), 0);
    });
}

#[test]
fn a_running_task_that_is_cancelled_is_told_and_its_result_is_the_cancellation() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static TOLD: AtomicBool = AtomicBool::new(false);
        static END: Gate = Gate::new();
        let rt = local(1);
        let task = rt.submit(
            || {
                GATE.pass();
                at_once("it is told", || outray::task::context().is_cancelled());
                assert!(outray::task::context().check_cancelled().unwrap_err().is_cancelled());
                TOLD.store(outray::task::context().is_cancelled(), SeqCst);
                END.pass();
                5
            },
            (),
        );
        GATE.wait_for(1);
        let dependent = rt.submit(|x: i32| x, &task);
        assert!(!task.is_ready());
        task.cancel();
        assert!(task.get().unwrap_err().is_cancelled(), "at once, while it runs");
        GATE.open();
        until("it knows", || TOLD.load(SeqCst));
        END.open();
        assert!(dependent.get().unwrap_err().is_cancelled());
        assert!(task.get().unwrap_err().is_cancelled(), "whatever it returned");
    });
}

#[test]
fn a_task_that_nobody_cancels_is_not_cancelled() {
    watch(|| {
        let rt = local(1);
        let check = || (outray::task::context().is_cancelled(), outray::task::context().check_cancelled().is_ok());
        assert_eq!(rt.submit(check, ()).get(), Ok((false, true)));
        // Nobody holding a handle is not a cancellation.
        static RESULT: AtomicU32 = AtomicU32::new(9);
        static GATE: Gate = Gate::new();
        drop(rt.submit(
            || {
                GATE.pass();
                RESULT.store(u32::from(outray::task::context().is_cancelled()), SeqCst);
            },
            (),
        ));
        GATE.open();
        until("it has run", || RESULT.load(SeqCst) != 9);
        assert_eq!(RESULT.load(SeqCst), 0);
    });
}

#[test]
fn dependents_of_a_cancelled_task_fail_as_cancelled_and_name_it() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let cancelled = rt.task(|| 1).name("called off").submit(());
        let mut last = rt.submit(|x: i32| x, &cancelled);
        for _ in 0..10 {
            last = rt.submit(|x: i32| x, &last);
        }
        let gathered = rt.submit(|all: Vec<i32>| all.len(), vec![rt.put(1), last.clone()]);
        cancelled.cancel();
        the_news_is_everywhere(&rt);
        GATE.open();
        assert!(last.get().unwrap_err().is_cancelled());
        let error = gathered.get().unwrap_err();
        assert!(error.is_cancelled());
        assert_says(&error, &["called off"]);
    });
}

#[test]
fn an_object_that_is_there_stays_when_it_is_cancelled() {
    watch(|| {
        let rt = local(1);
        let (put, done) = (rt.put(1), rt.submit(|| 2, ()));
        done.get().unwrap();
        put.cancel();
        done.cancel();
        assert_eq!((put.get(), done.get()), (Ok(1), Ok(2)));
        assert_eq!(rt.submit(|a: i32, b: i32| a + b, (&put, &done)).get(), Ok(3));
    });
}

#[test]
fn an_async_task_that_is_cancelled_is_dropped_where_it_waits() {
    watch(|| {
        static WAITS: AtomicBool = AtomicBool::new(false);
        static DROPPED: AtomicBool = AtomicBool::new(false);
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                DROPPED.store(true, SeqCst);
            }
        }
        async fn forever() {
            let _guard = Guard;
            WAITS.store(true, SeqCst);
            std::future::pending::<()>().await;
        }
        let rt = local(1);
        let task = rt.submit(forever, ());
        until("it waits", || WAITS.load(SeqCst));
        task.cancel();
        assert!(task.get().unwrap_err().is_cancelled());
        until("it is dropped", || DROPPED.load(SeqCst));
    });
}

#[test]
fn cancelling_one_part_cancels_the_split_task() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let pair = || {
            RAN.store(true, SeqCst);
            (1, 2)
        };
        let (one, two) = rt.task(pair).submit_split(());
        one.cancel();
        assert!(one.get().unwrap_err().is_cancelled() && two.get().unwrap_err().is_cancelled());
        the_news_is_everywhere(&rt);
        GATE.open();
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
        assert!(!RAN.load(SeqCst));
    });
}

#[test]
fn a_cancelled_task_is_not_retried() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let rt = local(1);
        let task = || -> u8 {
            RUNS.fetch_add(1, SeqCst);
            GATE.pass();
            at_once("it is told", || outray::task::context().is_cancelled());
            panic!("after its cancellation")
        };
        let task = rt.task(task).retries(5).submit(());
        GATE.wait_for(1);
        task.cancel();
        GATE.open();
        assert!(task.get().unwrap_err().is_cancelled());
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
        give_others_a_chance();
        assert_eq!(RUNS.load(SeqCst), 1);
    });
}

#[test]
fn a_task_that_a_task_has_submitted_is_cancelled_by_whoever_has_its_handle() {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    fn child() -> u32 {
        STARTED.fetch_add(1, SeqCst);
        until("it is told", || outray::task::context().is_cancelled());
        TOLD.fetch_add(1, SeqCst);
        5
    }
    fn parent(is_plain: bool) -> ObjectRef<u32> {
        let child = Runtime::current().task(child).name("the child");
        if is_plain { child.submit(()) } else { child.cpus(0.5).submit(()) }
    }
    watch(|| {
        let rt = local(1);
        for (before, is_plain) in [true, false].into_iter().enumerate() {
            let child = rt.submit(parent, is_plain).get().unwrap();
            until("it runs", || STARTED.load(SeqCst) > before);
            let dependent = rt.submit(|x: u32| x, &child);
            child.cancel();
            let error = child.get().unwrap_err();
            assert!(error.is_cancelled(), "{error}");
            assert!(dependent.get().unwrap_err().is_cancelled());
            until("it has been told", || TOLD.load(SeqCst) > before);
        }
    });
}

#[test]
fn a_pending_task_that_a_task_has_submitted_never_runs_when_it_is_cancelled() {
    static GATE: Gate = Gate::new();
    static RAN: AtomicBool = AtomicBool::new(false);
    fn parent() -> Vec<ObjectRef<()>> {
        let rt = Runtime::current();
        let first = rt.submit(|| GATE.pass(), ());
        let second = rt.submit(|(): ()| RAN.store(true, SeqCst), &first);
        vec![first, second]
    }
    watch(|| {
        let rt = local(1);
        let children = rt.submit(parent, ()).get().unwrap();
        GATE.wait_for(1);
        children[1].cancel();
        assert!(children[1].get().unwrap_err().is_cancelled());
        the_news_is_everywhere(&rt);
        GATE.open();
        assert_eq!(children[0].get(), Ok(()));
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
        give_others_a_chance();
        assert!(!RAN.load(SeqCst));
    });
}

#[test]
fn cancelling_a_task_leaves_those_alone_that_it_has_submitted() {
    static GATE: Gate = Gate::new();
    static SEEN: AtomicU32 = AtomicU32::new(9);
    fn child() -> u32 {
        GATE.pass();
        u32::from(outray::task::context().is_cancelled())
    }
    fn parent() {
        let child = Runtime::current().submit(child, ()).get();
        assert!(outray::task::context().is_cancelled());
        SEEN.store(child.unwrap(), SeqCst);
    }
    watch(|| {
        let rt = local(1);
        let parent = rt.submit(parent, ());
        GATE.wait_for(1);
        parent.cancel();
        assert!(parent.get().unwrap_err().is_cancelled());
        the_news_is_everywhere(&rt);
        GATE.open();
        until("its parent has seen its result", || SEEN.load(SeqCst) != 9);
        assert_eq!(SEEN.load(SeqCst), 0);
    });
}

#[test]
fn cancelling_races_with_running_and_either_wins() {
    watch(|| {
        let rt = local(2);
        for i in 0..common::many(2_000) as i32 {
            let task = rt.submit(|i: i32| i, i);
            let (one, other) = (task.clone(), task.clone());
            if i % 2 == 0 {
                std::thread::yield_now();
            }
            one.cancel();
            match other.get() {
                Ok(value) => assert_eq!(value, i),
                Err(error) => assert!(error.is_cancelled()),
            }
        }
    });
}

// Placement.

#[test]
fn a_placement_group_sets_resources_aside_and_gives_them_back() {
    watch(|| {
        let rt = builder().cpus(4).gpus(1).resource("licence", 2.0).build().unwrap();
        let bundles = [Bundle::new().cpus(2.0), Bundle::new().cpus(1.0).gpus(1.0).resource("licence", 2.0)];
        let group = rt.placement_group(&bundles, PlacementStrategy::Pack).unwrap();
        assert_eq!(group.bundles(), 2);
        assert!((rt.stats().cpus_free - 1.0).abs() < 1e-9);
        let clone = group.clone();
        drop(group);
        assert!((rt.stats().cpus_free - 1.0).abs() < 1e-9, "somebody holds it");
        let outside = rt.task(|| 1).resource("licence", 1.0).submit(());
        give_others_a_chance();
        assert!(!outside.is_ready(), "the resource is set aside");
        drop(clone);
        assert_eq!(outside.get(), Ok(1));
        until("all CPUs are free", || (rt.stats().cpus_free - 4.0).abs() < 1e-9);
    });
}

#[test]
fn tasks_in_a_bundle_run_on_what_it_set_aside_and_on_no_more() {
    watch(|| {
        static METER: Meter = Meter::new();
        static GATE: Gate = Gate::new();
        let rt = local(3);
        let group = rt.placement_group(&[Bundle::new().cpus(2.0)], PlacementStrategy::Pack).unwrap();
        // The CPU that is left is taken, and still the bundle has its own.
        rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let all: Vec<_> = (0..40).map(|_| rt.task(|| METER.visit()).placement_group(&group, 0).submit(())).collect();
        until("all have run", || METER.total() == 40);
        assert!(rt.get_all(&all).is_ok());
        assert!(METER.most() <= 2, "{} at a time", METER.most());
        GATE.open();
    });
}

#[test]
fn a_bundle_is_held_until_the_last_task_in_it_ends() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let group = rt.placement_group(&[Bundle::new().cpus(1.0)], PlacementStrategy::StrictPack).unwrap();
        let inside = rt.task(|| GATE.pass()).placement_group(&group, 0).submit(());
        GATE.wait_for(1);
        drop(group);
        assert!((rt.stats().cpus_free - 1.0).abs() < 1e-9);
        GATE.open();
        assert_eq!(inside.get(), Ok(()));
        until("all CPUs are free", || (rt.stats().cpus_free - 2.0).abs() < 1e-9);
    });
}

#[test]
fn a_bundle_that_is_not_there_or_too_small_is_infeasible() {
    watch(|| {
        let rt = local(4);
        let bundles = [Bundle::new().cpus(1.0), Bundle::new().cpus(2.0)];
        let group = rt.placement_group(&bundles, PlacementStrategy::Spread).unwrap();
        let error = rt.task(|| ()).placement_group(&group, 2).try_submit(()).unwrap_err();
        assert!(matches!(error, Error::Infeasible { .. }));
        assert_says(&error, &["2", "bundle"]);
        let error = rt.task(|| ()).cpus(2.0).placement_group(&group, 0).try_submit(()).unwrap_err();
        assert!(matches!(error, Error::Infeasible { .. }));
        assert_says(&error, &["2 CPUs", "bundle 0"]);
        assert_eq!(rt.task(|| 1).cpus(2.0).placement_group(&group, 1).submit(()).get(), Ok(1));
    });
}

#[test]
fn a_group_is_all_or_nothing_and_says_what_it_lacks() {
    watch(|| {
        let rt = local(2);
        let bundles = [Bundle::new().cpus(1.0), Bundle::new().cpus(2.0)];
        let error = rt.placement_group(&bundles, PlacementStrategy::Pack).unwrap_err();
        assert_says(&error, &["bundle 1", "2 CPUs"]);
        assert!((rt.stats().cpus_free - 2.0).abs() < 1e-9, "nothing is kept");
        assert_says(&rt.placement_group(&[], PlacementStrategy::Pack).unwrap_err(), &["bundle"]);
        let bad = [Bundle::new().cpus(-1.0)];
        assert_says(&rt.placement_group(&bad, PlacementStrategy::Pack).unwrap_err(), &["cpus", "-1"]);
        assert_eq!(rt.task(|| 1).cpus(2.0).submit(()).get(), Ok(1));
    });
}

#[test]
fn strict_spread_is_for_one_bundle_only_where_there_is_one_node() {
    watch(|| {
        let rt = local(2);
        let one = Bundle::new().cpus(0.5);
        let two = [one.clone(), one.clone()];
        let error = rt.placement_group(&two, PlacementStrategy::StrictSpread).unwrap_err();
        assert_says(&error, &["StrictSpread", "2 nodes"]);
        for strategy in [PlacementStrategy::Pack, PlacementStrategy::Spread, PlacementStrategy::StrictPack] {
            assert!(rt.placement_group(&two, strategy).is_ok());
        }
        assert!(rt.placement_group(&[one], PlacementStrategy::StrictSpread).is_ok());
    });
}

#[test]
fn a_group_on_gpus_gives_its_tasks_its_devices() {
    watch(|| {
        let rt = builder().cpus(2).gpus(2).build().unwrap();
        let bundles = [Bundle::new().cpus(1.0).gpus(1.0), Bundle::new().cpus(1.0).gpus(1.0)];
        let group = rt.placement_group(&bundles, PlacementStrategy::Pack).unwrap();
        let devices = |bundle: usize| {
            let device = || outray::task::context().gpus();
            rt.task(device).gpus(1.0).placement_group(&group, bundle).submit(()).get().unwrap()
        };
        let (first, second) = (devices(0), devices(1));
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first[0].0, second[0].0);
        assert_eq!(devices(1), second, "the same device each time");
    });
}

#[test]
fn a_placement_group_that_outlives_its_runtime_does_no_harm_to_the_next() {
    alone("a_placement_group_that_outlives_its_runtime_does_no_harm_to_the_next", || {
        let old = local(2);
        let group = old.placement_group(&[Bundle::new().cpus(1.0)], PlacementStrategy::Pack).unwrap();
        drop(old);
        let new = local(2);
        drop(group);
        assert!((new.stats().cpus_free - 2.0).abs() < 1e-9, "{} free of 2", new.stats().cpus_free);
        assert_eq!(new.submit(|| 1, ()).get(), Ok(1));
    });
}

#[test]
fn strategies_mean_what_they_can_on_one_node() {
    watch(|| {
        let rt = local(1);
        let here = rt.submit(|| outray::task::context().node().to_owned(), ()).get().unwrap();
        assert!(on_cluster() || here == "local");
        let node = |name: &str, soft| Strategy::Node { name: name.to_owned(), soft };
        for met in [Strategy::Default, Strategy::Spread, node(&here, false), node("mars", true)] {
            assert_eq!(rt.task(|| 1).strategy(met).submit(()).get(), Ok(1));
        }
        assert_eq!(rt.task(|| 1).strategy(Strategy::Labels { required: vec![] }).submit(()).get(), Ok(1));
        let soft = Strategy::PreferLabels { preferred: vec![("zone".into(), "a".into())] };
        assert_eq!(rt.task(|| 1).strategy(soft).submit(()).get(), Ok(1));
        let error = refusal(rt.task(|| 1).strategy(node("mars", false)).try_submit(()));
        assert_says(&error, &["mars"]);
        assert!(on_cluster() || error.to_string().contains("local"), "{error}");
        let labels = Strategy::Labels { required: vec![("zone".into(), "a".into())] };
        assert_says(&rt.task(|| 1).strategy(labels).submit(()).get().unwrap_err(), &["zone", "a"]);
    });
}
