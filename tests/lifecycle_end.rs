//! The end of a runtime: what happens to everything in it, to handles used afterwards, and to
//! other runtimes. Nothing is left behind, and counts add up.

mod common;

use common::{
    AtomicBool, AtomicUsize, Counted, Gate, alone, block_on, builder, give_others_a_chance, local, local_only, many,
    on_cluster, resident, until, watch,
};
use outray::{Actor, Error, ObjectRef, Queue, Result, Runtime};
use serde::{Deserialize, Serialize};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);

#[track_caller]
fn assert_shutdown<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.expect_err("it has shut down");
    // There a queue is an actor's.
    let is_actors = on_cluster() && matches!(error.root_cause(), Error::ActorDied { .. });
    assert!(is_actors || matches!(error.root_cause(), Error::Shutdown { .. }), "{error:?}");
    assert!(error.to_string().contains("its runtime has shut down"), "{error}");
}

/// What calls of an actor that went with its runtime fail with.
#[track_caller]
fn assert_ended<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.expect_err("it has shut down");
    assert!(matches!(error, Error::Shutdown { .. } | Error::ActorDied { .. }), "{error:?}");
    assert!(error.to_string().contains("its runtime has shut down"), "{error}");
}

/// Threads of this process that are workers.
fn workers() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.filter(|name| name.starts_with("outray") && !name.starts_with("outray-timer")).count()
}

static WAITING: [AtomicBool; 8] = [const { AtomicBool::new(false) }; 8];

/// Waits for an item; `WAITING` at `place` says when it does.
async fn wait_on(queue: Queue<u64>, place: usize) -> u64 {
    let mut get = pin!(queue.get_async());
    let noted = poll_fn(|cx| {
        let polled = get.as_mut().poll(cx);
        WAITING[place].fetch_or(polled.is_pending(), SeqCst);
        polled
    });
    noted.await.expect("somebody puts")
}

fn until_it_waits(place: usize) {
    until("the task waits", || WAITING[place].load(SeqCst));
}

struct Total {
    sum: u64,
}

impl Total {
    fn new() -> Self {
        Total { sum: 0 }
    }
    fn add(&mut self, by: u64) -> u64 {
        self.sum += by;
        self.sum
    }
    fn sum(&self) -> u64 {
        self.sum
    }
    async fn hold(&mut self, queue: Queue<u64>) -> u64 {
        queue.get_async().await.expect("somebody puts")
    }
}

// What the drop does to what is there.

#[test]
fn drop_waits_for_what_runs_and_fails_what_is_queued() {
    static GATE: Gate = Gate::new();
    static RAN: AtomicBool = AtomicBool::new(false);
    watch(|| {
        let rt = local(1);
        let running = rt.submit(
            || {
                GATE.pass();
                7
            },
            (),
        );
        GATE.wait_for(1);
        let queued: Vec<_> = (0..10).map(|_| rt.task(|| RAN.store(true, SeqCst)).name("queued").submit(())).collect();
        let dependent = rt.submit(|x: i32| x, &running);
        let dropped = std::thread::spawn(move || drop(rt));
        until("the queued tasks have failed", || queued.iter().all(ObjectRef::is_ready));
        assert!(!dropped.is_finished() && !running.is_ready(), "the running task was not waited for");
        GATE.open();
        dropped.join().unwrap();
        assert_eq!(running.get().unwrap(), 7);
        for task in &queued {
            assert_shutdown(task.get());
            assert!(task.get().unwrap_err().to_string().contains("task `queued`"));
        }
        assert!(dependent.is_ready() && !RAN.load(SeqCst));
    });
}

#[test]
fn drop_ends_tasks_that_wait_for_arguments_resources_or_their_next_attempt() {
    static FAILED: AtomicUsize = AtomicUsize::new(0);
    static RELEASED: AtomicBool = AtomicBool::new(false);
    fn hold_slot() {
        until("the runtime ends", || RELEASED.load(SeqCst));
    }
    fn fail() -> u64 {
        FAILED.fetch_add(1, SeqCst);
        panic!("again")
    }
    watch(|| {
        let rt = builder().cpus(2).resource("slot", 1.0).build().unwrap();
        let queue = Queue::bounded(&rt, 1).unwrap();
        let waits = rt.submit(wait_on, (queue.clone(), 0));
        until_it_waits(0);
        let argument = rt.submit(|x: u64| x, &waits);
        let holding = rt.task(hold_slot).resource("slot", 1.0).submit(());
        until("the slot is taken", || rt.explain(&holding).to_string().contains("running"));
        let resource = rt.task(|| 1_u64).resource("slot", 1.0).submit(());
        let pausing = rt.task(fail).retries(5).backoff(HOUR).submit(());
        until("the first attempt is over", || FAILED.load(SeqCst) == 1);
        let dropped = std::thread::spawn(move || drop(rt));
        let tasks = [waits, argument, resource, pausing];
        until("all have failed", || tasks.iter().all(ObjectRef::is_ready));
        RELEASED.store(true, SeqCst);
        dropped.join().unwrap();
        tasks.iter().for_each(|task| assert_shutdown(task.get()));
        holding.get().unwrap();
    });
}

#[test]
fn drop_ends_a_task_whose_argument_another_runtime_makes() {
    watch(|| {
        let other = local(1);
        let queue = Queue::bounded(&other, 1).unwrap();
        let late = other.submit(wait_on, (queue.clone(), 1));
        let rt = local(1);
        let dependent = rt.submit(|x: u64| x, &late);
        let call = rt.actor(Total::new, ()).call(Total::add, &late);
        drop(rt);
        assert_ended(call.get());
        assert_shutdown(dependent.get());
        queue.put(1).unwrap();
        assert_eq!(late.get().unwrap(), 1);
    });
}

#[test]
fn drop_ends_actors_with_calls_that_run_wait_and_are_queued() {
    struct State(#[allow(dead_code)] Counted<0>);
    async fn wait(_: &mut State, queue: Queue<u64>) {
        wait_on(queue, 2).await;
    }
    watch(|| {
        let rt = local(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let actor = rt.actor_builder(|| State(Counted::new(1))).name("server").start(());
        let mut calls = vec![actor.call(wait, queue.clone())];
        until_it_waits(2);
        calls.extend((0..10).map(|_| actor.call(|_: &mut State| (), ())));
        calls.extend((0..10).map(|_| actor.call(|_: &State| (), ())));
        // On a cluster it would outlive its program.
        let detached =
            (!on_cluster()).then(|| rt.actor_builder(|| State(Counted::new(2))).name("daemon").detached().start(()));
        detached.iter().for_each(|detached| detached.ready().get().unwrap());
        drop(rt);
        calls.iter().for_each(|call| assert_ended(call.get()));
        assert_ended(actor.call(|_: &State| (), ()).get());
        detached.iter().for_each(|detached| assert_ended(detached.ready().get()));
        drop((actor, detached, calls));
        assert_eq!(Counted::<0>::live(), 0);
    });
}

#[test]
fn drop_during_a_constructor_waits_for_it_and_ends_the_actor() {
    static GATE: Gate = Gate::new();
    fn slow() -> Total {
        GATE.pass();
        Total::new()
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(slow, ());
        let call = actor.call(Total::sum, ());
        GATE.wait_for(1);
        let dropped = std::thread::spawn(move || drop(rt));
        until("the call has failed", || call.is_ready());
        GATE.open();
        dropped.join().unwrap();
        assert_ended(call.get());
        assert_ended(actor.ready().get());
    });
}

#[test]
fn drop_right_after_submitting_hangs_nobody() {
    watch(|| {
        for round in 0..many(300).max(10) {
            let rt = local(1 + round % 3);
            let actor = rt.actor(Total::new, ());
            let calls: Vec<_> = (0..5).map(|by| actor.call(Total::add, by)).collect();
            let tasks: Vec<_> = (0..5).map(|x: u64| rt.submit(|x: u64| x, x)).collect();
            let later = rt.submit(
                async |x: u64| {
                    outray::sleep(HOUR).await;
                    x
                },
                1,
            );
            let stream = rt.stream(|| 0_u64.., ());
            drop(rt);
            assert!(calls.iter().chain(&tasks).all(ObjectRef::is_ready));
            assert_shutdown(later.get());
            let items: Vec<_> = stream.values().take(100).collect();
            assert!(items.len() < 100, "the producer went on");
        }
    });
}

#[test]
fn drop_drops_futures_where_they_wait() {
    static WAIT: AtomicUsize = AtomicUsize::new(0);
    async fn hold(_held: Counted<1>, queue: Queue<u64>) {
        let _inside = Counted::<1>::new(0);
        let mut get = pin!(queue.get_async());
        let counted = poll_fn(|cx| {
            let polled = get.as_mut().poll(cx);
            WAIT.fetch_add(usize::from(polled.is_pending()), SeqCst);
            polled
        });
        counted.await.expect("somebody puts");
    }
    watch(|| {
        let rt = local(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let tasks: Vec<_> = (0..20).map(|i| rt.submit(hold, (Counted::new(i), queue.clone()))).collect();
        until("all wait", || WAIT.load(SeqCst) >= 20);
        assert_eq!(Counted::<1>::live(), 40);
        drop(rt);
        assert_eq!(Counted::<1>::live(), 0);
        tasks.iter().for_each(|task| assert_shutdown(task.get()));
        tasks.iter().for_each(|task| assert_shutdown(block_on(task)));
    });
}

#[test]
fn drop_ends_streams_and_drops_their_producers() {
    fn produce(held: Counted<2>) -> impl Iterator<Item = u64> {
        (0..).map(move |i| i + held.value())
    }
    watch(|| {
        let rt = local(2);
        let mut full = rt.streaming(produce).buffer(3).submit(Counted::new(10));
        assert_eq!(full.next().unwrap().unwrap().get().unwrap(), 10);
        let queue = Queue::<u64>::bounded(&rt, 1).unwrap();
        let starved = rt.stream(|queue: Queue<u64>| std::iter::from_fn(move || queue.get().ok()), queue.clone());
        let consumer = std::thread::spawn(move || starved.values().collect::<Vec<_>>());
        give_others_a_chance();
        drop(rt);
        assert_eq!(Counted::<2>::live(), 0, "the producer is still there");
        let rest: Vec<_> = full.values().collect();
        assert!(rest.len() <= 4, "{rest:?}");
        assert_shutdown(rest.last().expect("the last item says why").clone());
        // The producer ended by itself, because its queue failed; or it was ended.
        assert!(consumer.join().unwrap().len() <= 1);
    });
}

#[test]
fn drop_wakes_threads_and_tasks_that_block() {
    static BLOCKED: AtomicUsize = AtomicUsize::new(0);
    fn get_from(queue: &Queue<u64>) -> Result<u64> {
        BLOCKED.fetch_add(1, SeqCst);
        queue.get()
    }
    watch(|| {
        let rt = local(1);
        let queue = Queue::<u64>::bounded(&rt, 1).unwrap();
        let inside: Vec<_> = (0..3).map(|_| rt.submit(|queue: Queue<u64>| get_from(&queue), queue.clone())).collect();
        let future = rt.submit(wait_on, (queue.clone(), 3));
        until_it_waits(3);
        let by_queue = std::thread::spawn({
            let queue = queue.clone();
            move || get_from(&queue)
        });
        let by_handle = std::thread::spawn({
            let future = future.clone();
            move || future.get()
        });
        let on_full = {
            let full = Queue::bounded(&rt, 1).unwrap();
            full.put(1).unwrap();
            rt.submit(|full: Queue<u64>| full.put(2), full)
        };
        until("they block", || BLOCKED.load(SeqCst) == 4);
        give_others_a_chance();
        drop(rt);
        inside.iter().for_each(|task| assert_shutdown(task.get().and_then(|result| result)));
        assert_shutdown(by_queue.join().unwrap());
        assert_shutdown(by_handle.join().unwrap());
        assert_shutdown(on_full.get().and_then(|result| result));
    });
}

#[test]
fn drop_waits_for_tasks_that_submit_and_get_until_they_are_told() {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    fn go_on() -> u64 {
        STARTED.fetch_add(1, SeqCst);
        let rt = Runtime::current();
        (0..).find(|_| rt.submit(|| 1, ()).get().is_err()).expect("it ends")
    }
    watch(|| {
        for round in 0..many(50).max(5) {
            let rt = local(2);
            let tasks = [rt.submit(go_on, ()), rt.submit(go_on, ())];
            until("they run", || STARTED.load(SeqCst) == 2 * (round + 1));
            drop(rt);
            assert!(tasks.iter().all(|task| task.get().is_ok()));
        }
    });
}

#[test]
fn drop_of_a_clone_ends_nothing() {
    watch(|| {
        let rt = local(1);
        let clone = rt.clone();
        drop(rt);
        assert_eq!(clone.submit(|| 1, ()).get().unwrap(), 1);
        let inner = clone.submit(|| drop(Runtime::current()), ());
        inner.get().unwrap();
        assert_eq!(clone.submit(|| 2, ()).get().unwrap(), 2);
    });
}

// Shutdown.

#[test]
fn shutdown_tells_whether_everything_ended_in_time() {
    static GATE: Gate = Gate::new();
    static LATER: AtomicBool = AtomicBool::new(false);
    fn run_long() -> bool {
        GATE.pass();
        let submitted = Runtime::current().submit(|| LATER.store(true, SeqCst), ());
        matches!(submitted.get(), Err(Error::Shutdown { .. }))
    }
    watch(|| {
        let rt = local(2);
        assert_eq!(rt.submit(|| 1, ()).get().unwrap(), 1);
        assert!(rt.shutdown(HOUR), "nothing ran");
        assert!(rt.shutdown(HOUR), "and a second time");
        let rt = local(2);
        let long = rt.submit(run_long, ());
        GATE.wait_for(1);
        assert!(!rt.shutdown(Duration::from_millis(1)), "a task still runs");
        GATE.open();
        match on_cluster() {
            true => assert_shutdown(long.get()), // what is left behind there is given up
            false => assert!(long.get().unwrap(), "what it submits afterwards fails"),
        }
        assert!(!LATER.load(SeqCst));
    });
}

#[test]
fn shutdown_inside_a_task_does_not_wait_and_ends_the_runtime() {
    static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);
    fn shut_down() -> bool {
        // In another process there is none.
        let rt = RUNTIME.lock().unwrap().clone().unwrap_or_else(Runtime::current);
        rt.shutdown(HOUR);
        matches!(rt.submit(|| 1, ()).get(), Err(Error::Shutdown { .. }))
    }
    watch(|| {
        let rt = local(2);
        *RUNTIME.lock().unwrap() = Some(rt.clone());
        let queue = Queue::bounded(&rt, 1).unwrap();
        let waits = rt.submit(wait_on, (queue, 4));
        until_it_waits(4);
        assert!(rt.submit(shut_down, ()).get().unwrap());
        assert_shutdown(waits.get());
        assert_shutdown(rt.submit(|| 1, ()).get());
        *RUNTIME.lock().unwrap() = None;
    });
}

/// Uses everything that a runtime offers; all of it must fail, and none hang or run.
fn use_after_shutdown(rt: &Runtime) {
    static RAN: AtomicBool = AtomicBool::new(false);
    fn run(x: u64) -> u64 {
        RAN.store(true, SeqCst);
        x
    }
    fn make() -> Total {
        RAN.store(true, SeqCst);
        Total::new()
    }
    assert_shutdown(rt.submit(run, 1).get());
    assert_shutdown(rt.task(run).cpus(0.5).submit(1).get());
    assert_shutdown(rt.task(run).try_submit(1));
    assert_shutdown(rt.task(|| (1_u64, 2_u64)).submit_split(()).1.get());
    assert_shutdown(rt.map(run, 0..10_u64).collect());
    assert_shutdown(rt.reduce(vec![rt.submit(run, 1), rt.submit(run, 2)], |a: u64, b: u64| a + b).get());
    let actor = rt.actor(make, ());
    assert_ended(actor.call(Total::sum, ()).get());
    assert_ended(actor.ready().get());
    assert_ended(rt.actor_builder(make).name("late").try_start(()));
    let items: Vec<_> = rt.stream(|| 0..10_u64, ()).values().collect();
    assert_eq!(items.len(), 1, "{items:?}");
    assert_shutdown(items[0].clone());
    let queue = Queue::<u64>::bounded(rt, 1).unwrap();
    assert_shutdown(queue.get());
    assert!(!RAN.load(SeqCst), "something ran after the end");
}

#[test]
fn handles_used_after_the_shutdown_are_told_so() {
    static GONE: Mutex<Option<Runtime>> = Mutex::new(None);
    watch(|| {
        let rt = local(2);
        let value = rt.submit(|| 5, ());
        let object = rt.put(6);
        value.get().unwrap();
        let actor = rt.actor_builder(Total::new).name("total").start(());
        actor.call(Total::add, 1).get().unwrap();
        assert!(rt.shutdown(HOUR));
        use_after_shutdown(&rt);
        // Results that are there stay.
        assert_eq!((value.get().unwrap(), object.get().unwrap()), (5, 6));
        assert_ended(actor.call(Total::add, 1).get());
        assert!(matches!(rt.get_actor::<Total>("total"), Err(Error::ActorNotFound { .. } | Error::Shutdown { .. })));

        // A handle from inside a task does not keep the runtime alive.
        if on_cluster() {
            return; // it is in another process
        }
        let rt = local(2);
        rt.submit(|| *GONE.lock().unwrap() = Some(Runtime::current()), ()).get().unwrap();
        drop(rt);
        use_after_shutdown(&GONE.lock().unwrap().take().unwrap());
    });
}

#[test]
fn handles_of_a_runtime_that_ended_do_not_reach_the_next_one() {
    local_only!("tasks hand runtimes to this process");
    // In a process of its own, so that the next runtime is the one made here.
    alone("handles_of_a_runtime_that_ended_do_not_reach_the_next_one", || {
        static GONE: Mutex<Option<Runtime>> = Mutex::new(None);
        let first = local(2);
        let queue = Queue::<u64>::bounded(&first, 1).unwrap();
        first.submit(|| *GONE.lock().unwrap() = Some(Runtime::current()), ()).get().unwrap();
        let late = local(1);
        let late_queue = Queue::bounded(&late, 1).unwrap();
        let argument = late.submit(wait_on, (late_queue.clone(), 5));
        let dependent = first.submit(|x: u64| x, &argument);
        assert!(first.shutdown(HOUR));

        let second = local(2);
        use_after_shutdown(&first);
        use_after_shutdown(&GONE.lock().unwrap().take().unwrap());
        assert_shutdown(queue.get());
        late_queue.put(1).unwrap();
        assert_shutdown(dependent.get());
        assert_eq!((second.stats().submitted, second.stats().actors), (0, 0), "{}", second.stats());
        drop(first);
        assert_eq!(second.submit(|| 3, ()).get().unwrap(), 3, "the end of the first ended the second");
    });
}

// Several runtimes.

#[test]
fn several_runtimes_work_side_by_side_and_share_handles() {
    fn get_inside(handle: ObjectRef<u64>) -> u64 {
        handle.get().unwrap() + 1
    }
    async fn await_inside(handle: ObjectRef<u64>) -> u64 {
        handle.await.unwrap() + 1
    }
    watch(|| {
        // On a cluster it is the same one for all.
        let runtimes: Vec<_> = (1..=5).map(|cpus| local(if on_cluster() { 2 } else { cpus })).collect();
        let mut value = runtimes[0].submit(|| 0_u64, ());
        for round in 0..100 {
            let rt = &runtimes[round % 5];
            value = match round % 3 {
                0 => rt.submit(|x: u64| x + 1, &value),
                1 => rt.submit(get_inside, value),
                _ => rt.submit(await_inside, value),
            };
        }
        assert_eq!(value.get().unwrap(), 100);
        let total = runtimes[0].actor(Total::new, ());
        let adds: Vec<_> = runtimes
            .iter()
            .map(|rt| rt.submit(|total: Actor<Total>| total.call(Total::add, 1).get().unwrap(), total.clone()))
            .collect();
        assert!(adds.iter().all(|add| add.get().is_ok()));
        assert_eq!(total.call(Total::sum, ()).get().unwrap(), 5);
    });
}

#[test]
fn tasks_of_two_runtimes_of_one_cpu_may_wait_for_each_others_tasks() {
    local_only!("tasks use runtimes of this process");
    static BOTH: Mutex<Vec<Runtime>> = Mutex::new(Vec::new());
    fn ping_pong(left: usize) -> usize {
        let rt = BOTH.lock().unwrap()[left % 2].clone();
        match left {
            0 => 0,
            _ => 1 + rt.submit(ping_pong, left - 1).get().unwrap(),
        }
    }
    watch(|| {
        let both = vec![local(1), local(1)];
        BOTH.lock().unwrap().extend(both.clone());
        assert_eq!(both[0].submit(ping_pong, 200).get().unwrap(), 200);
        BOTH.lock().unwrap().clear();
    });
}

#[test]
fn current_is_the_runtime_of_the_innermost_task() {
    local_only!("tasks use runtimes of this process");
    static OTHER: Mutex<Option<Runtime>> = Mutex::new(None);
    fn cpus() -> f64 {
        Runtime::current().stats().cpus
    }
    fn both() -> (f64, f64, f64) {
        let other = OTHER.lock().unwrap().clone().expect("it was set");
        (cpus(), other.submit(cpus, ()).get().unwrap(), cpus())
    }
    async fn later() -> f64 {
        outray::sleep(Duration::from_millis(1)).await;
        cpus()
    }
    watch(|| {
        let (one, three) = (local(1), local(3));
        *OTHER.lock().unwrap() = Some(three.clone());
        assert_eq!(one.submit(both, ()).get().unwrap(), (1.0, 3.0, 1.0));
        assert_eq!(three.submit(later, ()).get().unwrap(), 3.0);
        assert_eq!(one.actor(Total::new, ()).call(|_: &Total| cpus(), ()).get().unwrap(), 1.0);
        assert_eq!(three.stream(|| std::iter::once_with(cpus), ()).values().next().unwrap().unwrap(), 3.0);
        let none = one.submit(|| std::thread::spawn(|| Runtime::try_current().is_none()).join().unwrap(), ());
        assert!(none.get().unwrap(), "a thread of the task's own is outside");
        *OTHER.lock().unwrap() = None;
    });
}

#[test]
fn current_outside_of_tasks_is_a_panic_that_says_what_to_do() {
    assert!(Runtime::try_current().is_none());
    let panic = std::panic::catch_unwind(Runtime::current).unwrap_err();
    let message = panic.downcast_ref::<&str>().copied().unwrap_or_default();
    assert!(message.contains("outside of tasks") && message.contains("Runtime::local()"), "{message}");
}

#[test]
fn a_task_may_make_and_drop_a_runtime_of_its_own() {
    fn inner(x: u64) -> u64 {
        let rt = Runtime::builder().cpus(1).build().unwrap();
        let total = rt.actor(Total::new, ());
        (0..10).for_each(|_| drop(total.call(Total::add, x)));
        total.call(Total::sum, ()).get().unwrap()
    }
    watch(|| {
        let rt = local(2);
        let tasks: Vec<_> = (0..20).map(|x| rt.submit(inner, x)).collect();
        assert_eq!(rt.get_all(&tasks).unwrap(), (0..20).map(|x| 10 * x).collect::<Vec<u64>>());
    });
}

#[test]
fn dropping_the_runtime_inside_its_own_task_ends_it_without_a_hang() {
    local_only!("tasks drop a runtime of this process");
    static RUNTIME: Mutex<Option<Runtime>> = Mutex::new(None);
    fn drop_it() -> u64 {
        drop(RUNTIME.lock().unwrap().take());
        9
    }
    async fn drop_it_async() -> u64 {
        outray::sleep(Duration::ZERO).await;
        drop_it()
    }
    alone("dropping_the_runtime_inside_its_own_task_ends_it_without_a_hang", || {
        for round in 0..60 {
            let rt = if round % 5 == 4 { Runtime::deterministic(round) } else { local(2) };
            let queue = Queue::bounded(&rt, 1).unwrap();
            WAITING[6].store(false, SeqCst);
            let waits = rt.submit(wait_on, (queue, 6));
            let actor = rt.actor(Total::new, ());
            while !WAITING[6].load(SeqCst) {
                // In deterministic mode it goes on only while this thread waits.
                rt.submit(|| (), ()).get().unwrap();
            }
            actor.ready().get().unwrap();
            // Nobody outside has a handle to the runtime when the task runs.
            let (blocking, later) = (rt.task(drop_it), rt.task(drop_it_async));
            *RUNTIME.lock().unwrap() = Some(rt);
            let result = match round % 2 {
                0 => blocking.submit(()),
                _ => later.submit(()),
            };
            assert_shutdown(waits.get());
            // Its own result may have been refused by then.
            assert!(matches!(result.get(), Ok(9) | Err(Error::Shutdown { .. })), "round {round}");
            assert_ended(actor.call(Total::sum, ()).get());
        }
        until("all threads have ended", || workers() == 0);
    });
}

// Destructors that panic.

#[derive(Serialize, Deserialize)]
struct Touchy;

impl Drop for Touchy {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("do not drop me");
        }
    }
}

#[test]
fn a_result_that_nobody_holds_and_that_panics_when_dropped_loses_no_resources() {
    static GATE: Gate = Gate::new();
    fn make() -> Touchy {
        GATE.pass();
        Touchy
    }
    watch(|| {
        let rt = builder().cpus(2).resource("slot", 1.0).build().unwrap();
        drop(rt.task(make).resource("slot", 1.0).submit(()));
        GATE.wait_for(1);
        GATE.open();
        assert_eq!(rt.task(|| 1).resource("slot", 1.0).submit(()).get().unwrap(), 1);
        assert_eq!(rt.submit(|| 2, ()).get().unwrap(), 2);
    });
}

#[test]
fn queued_tasks_whose_arguments_panic_when_dropped_still_fail_and_the_runtime_still_ends() {
    static GATE: Gate = Gate::new();
    fn take(argument: Touchy) -> u64 {
        std::mem::forget(argument);
        1
    }
    watch(|| {
        let rt = local(1);
        let running = rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let queued: Vec<_> = (0..5).map(|_| rt.submit(take, Touchy)).collect();
        let actor = rt.actor(Total::new, ());
        let call = actor.call(|_: &mut Total, argument: Touchy| take(argument), Touchy);
        let dropped = std::thread::spawn(move || drop(rt));
        until("the queued tasks have failed", || queued.iter().all(ObjectRef::is_ready) && call.is_ready());
        GATE.open();
        assert!(dropped.join().is_ok(), "the drop of the runtime panicked");
        running.get().unwrap();
        queued.iter().for_each(|task| assert_shutdown(task.get()));
        assert_ended(call.get());
    });
}

// Nothing is left.

/// One of everything, used and left in all states.
fn one_life(rt: Runtime, round: u64) {
    let queue = Queue::<u64>::bounded(&rt, 2).unwrap();
    let actor = rt.actor_builder(Total::new).name("total").start(());
    let detached = rt.actor_builder(Total::new).name("detached").detached().start(());
    detached.call(Total::add, round);
    let sums: Vec<_> = (0..20).map(|by| actor.call(Total::add, by)).collect();
    let held = rt.put(vec![0_u8; 10_000]);
    let lengths = rt.submit(|bytes: Vec<u8>| bytes.len() as u64, &held);
    let waits = rt.submit(wait_on, (queue.clone(), 7));
    let hold = actor.call(Total::hold, queue.clone());
    let _never = rt.submit(|x: u64| x, &waits);
    let mut stream = rt.stream(|| 0_u64.., ());
    assert!(stream.next().is_some());
    let sleeps = rt.submit(
        async || {
            outray::sleep(Duration::from_millis(1)).await;
            1_u64
        },
        (),
    );
    assert_eq!(lengths.get().unwrap(), 10_000);
    assert_eq!(sums[19].get().unwrap(), 190);
    if round.is_multiple_of(2) {
        sleeps.get().unwrap();
        drop(rt);
        assert!(waits.is_ready() && hold.is_ready());
    } else {
        // Handles go first.
        drop((waits, hold, stream, queue, actor, detached));
        assert!(rt.shutdown(HOUR));
    }
}

#[test]
fn hundreds_of_runtimes_leave_no_thread_and_no_memory() {
    local_only!("counts the threads and the memory of this process");
    alone("hundreds_of_runtimes_leave_no_thread_and_no_memory", || {
        let mut after_some = None;
        for round in 0..600 {
            let rt = if round % 4 == 3 { Runtime::deterministic(round) } else { local(1 + round as usize % 4) };
            one_life(rt, round);
            if round == 150 {
                after_some = resident();
            }
        }
        until("all threads have ended", || workers() == 0);
        if let (Some(before), Some(after)) = (after_some, resident()) {
            let grown = after.saturating_sub(before) >> 10;
            assert!(grown < 4096, "450 runtimes left {grown} KiB");
        }
    });
}

#[test]
fn threads_that_replaced_blocked_ones_end_when_they_are_not_needed() {
    local_only!("counts the threads of this process");
    alone("threads_that_replaced_blocked_ones_end_when_they_are_not_needed", || {
        static BLOCKED: AtomicUsize = AtomicUsize::new(0);
        let rt = local(2);
        let queue = Queue::bounded(&rt, 100).unwrap();
        let block = |queue: Queue<u64>| {
            BLOCKED.fetch_add(1, SeqCst);
            queue.get().unwrap()
        };
        let tasks: Vec<_> = (0..100).map(|_| rt.submit(block, queue.clone())).collect();
        until("all block", || BLOCKED.load(SeqCst) == 100);
        (0..100).for_each(|item| queue.put(item).unwrap());
        assert_eq!(rt.get_all(&tasks).unwrap().iter().sum::<u64>(), 4950);
        until("most have ended", || workers() <= 8);
        drop(rt);
        until("all threads have ended", || workers() == 0);
    });
}

// Stress.

/// A value of the stress test, counted.
type Value = Counted<5>;

fn sum_of(values: &[u64]) -> u64 {
    values.iter().fold(1, |sum, value| sum.wrapping_mul(31).wrapping_add(*value))
}

fn combine(a: Value, b: Value) -> Value {
    Value::new(sum_of(&[a.value(), b.value()]))
}

fn combine_nested(a: Value, b: Value) -> Value {
    Runtime::current().submit(combine, (a, b)).take().expect("nobody cancels it")
}

async fn combine_later(a: Value, b: Value) -> Value {
    outray::sleep(Duration::from_micros(a.value() % 50)).await;
    Runtime::current().submit(combine, (a, b)).await.expect("nobody cancels it")
}

fn explode(_: Value, _: Value) -> Value {
    panic!("a planned panic")
}

/// A value of the stress test and what it was made of.
struct Made {
    /// Gone if the test has dropped it.
    handle: Option<ObjectRef<Value>>,
    value: u64,
    from: Option<(usize, usize)>,
    /// It was cancelled or panics; or, once that is known, something that it depends on.
    may_fail: bool,
}

/// Picks a value of this graph whose handle is there; mostly one that is not known to fail.
fn pick(random: &mut fastrand::Rng, made: &[Made], oldest: usize) -> (usize, ObjectRef<Value>) {
    loop {
        let at = random.usize(oldest..made.len());
        match &made[at].handle {
            Some(handle) if !made[at].may_fail || random.u32(..100) == 0 => return (at, handle.clone()),
            _ => {}
        }
    }
}

fn is_planned(error: &Error) -> bool {
    match error.root_cause() {
        Error::Panicked { message, .. } => message == "a planned panic",
        cause => matches!(cause, Error::Cancelled { .. }),
    }
}

fn stress(seed: u64, rt: Runtime, steps: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let root = |value: u64| Made { handle: Some(rt.put(Value::new(value))), value, from: None, may_fail: false };
    let mut made = Vec::new();
    let totals: Vec<_> = (0..3).map(|_| rt.actor(Total::new, ())).collect();
    let mut calls = vec![Vec::new(); totals.len()];
    let mut oldest = 0;
    for step in 0..steps {
        if step % 100 == 0 {
            // A new graph, so that a failure does not reach everything that comes later.
            oldest = made.len();
            made.extend((0..8).map(|value| root(value + step as u64)));
        }
        let ((a, first), (b, second)) = (pick(&mut random, &made, oldest), pick(&mut random, &made, oldest));
        let kind = random.u32(..100);
        let handle = match kind {
            0..40 => rt.submit(combine, (first, second)),
            40..50 => rt.submit(combine_nested, (first, second)),
            50..60 => rt.submit(combine_later, (first, second)),
            60 => rt.submit(explode, (first, second)),
            61..78 => {
                let which = random.usize(..totals.len());
                let call = totals[which].call(|total: &mut Total, v: Value| total.add(v.value() % 1000), first);
                calls[which].push((call, a));
                continue;
            }
            78 => {
                // Whether it still can be cancelled is a race.
                first.cancel();
                made[a].may_fail = true;
                continue;
            }
            79..83 => {
                made[a].handle = None;
                continue;
            }
            83..87 => {
                let _ = first.get_shared();
                continue;
            }
            _ => {
                made.push(root(step as u64));
                continue;
            }
        };
        let value = sum_of(&[made[a].value, made[b].value]);
        let may_fail = kind == 60 || made[a].may_fail || made[b].may_fail;
        made.push(Made { handle: Some(handle), value, from: Some((a, b)), may_fail });
    }
    for at in 0..made.len() {
        if let Some((a, b)) = made[at].from {
            made[at].may_fail |= made[a].may_fail || made[b].may_fail;
        }
    }
    for one in &made {
        match one.handle.as_ref().map(ObjectRef::get_shared) {
            None => {}
            Some(Ok(value)) => assert_eq!(value.value(), one.value, "seed {seed}"),
            Some(Err(error)) => assert!(one.may_fail && is_planned(&error), "seed {seed}: {error}"),
        }
    }
    for (total, calls) in totals.iter().zip(&calls) {
        let mut expected = 0;
        for (call, argument) in calls {
            match call.get() {
                Ok(sum) => {
                    expected += made[*argument].value % 1000;
                    assert_eq!(sum, expected, "seed {seed}: a call was lost, doubled or overtaken");
                }
                Err(error) => assert!(made[*argument].may_fail && is_planned(&error), "seed {seed}: {error}"),
            }
        }
        assert_eq!(total.call(Total::sum, ()).get().unwrap(), expected, "seed {seed}");
    }
    // In deterministic mode others go on, and time passes, only while this thread waits for time to pass.
    let is_so = |what: fn(&outray::Stats) -> bool| {
        rt.submit(async || outray::sleep(Duration::from_millis(1)).await, ()).get().unwrap();
        what(&rt.stats())
    };
    until("everything has ended", || is_so(|stats| stats.submitted == stats.succeeded + stats.failed));
    let stats = rt.stats();
    assert!(stats.succeeded > stats.failed, "seed {seed}: too little of it works to show anything: {stats}");
    drop((totals, calls));
    until("the actors have gone", || is_so(|stats| stats.actors == 0));
    drop(made);
    drop(rt);
    // A worker that is ended drops nothing.
    if !on_cluster() {
        until("all values are dropped", || Value::live() == 0);
    }
}

#[test]
fn random_graphs_actors_and_cancellations_give_the_expected_values_and_counts() {
    watch(|| {
        let given = std::env::var("OUTRAY_TEST_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
        let first = given.unwrap_or_else(|| fastrand::u64(..1 << 32));
        println!("first seed {first}; again with OUTRAY_TEST_SEED={first}");
        // On a cluster each takes longer, and the last kinds of runtimes are none of it.
        for round in 0..if on_cluster() { 2 } else { 40 } {
            let seed = first + round;
            let rt = match round % 4 {
                0 => local(1),
                1 => local(4),
                2 => Runtime::builder().cpus(2).check_serialization(true).observe(true).build().unwrap(),
                _ => Runtime::deterministic(seed),
            };
            stress(seed, rt, 1500);
        }
    });
}
