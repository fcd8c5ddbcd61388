//! Deterministic mode: a seed decides the order, time is virtual, and a deadlock is an error.

mod common;

use common::{Counted, watch};
use outray::{Actor, ActorPool, Error, ObjectRef, ObjectStream, Queue, Result, Runtime};
use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What happened, in order. Each test has its own.
struct Trace(Mutex<Vec<u32>>);

impl Trace {
    const fn new() -> Self {
        Trace(Mutex::new(Vec::new()))
    }
    fn note(&self, event: u32) {
        self.0.lock().unwrap().push(event);
    }
    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
    /// What happens in a scenario with this seed.
    fn of(&self, seed: u64, scenario: impl FnOnce(&Runtime)) -> Vec<u32> {
        let rt = Runtime::deterministic(seed);
        scenario(&rt);
        drop(rt);
        self.take()
    }
}

/// An actor that remembers what it was told.
#[derive(Default)]
struct Log(Vec<u32>);

impl Log {
    fn new() -> Self {
        Log::default()
    }
    fn push(&mut self, item: u32) {
        self.0.push(item);
    }
    fn all(&self) -> Vec<u32> {
        self.0.clone()
    }
}

// Replay.

/// A bit of everything.
fn scenario(rt: &Runtime) -> Vec<u32> {
    fn tell(log: Actor<Log>, item: u32) {
        log.call(Log::push, item);
        log.call(Log::push, item + 1).get().unwrap();
    }
    async fn tell_later(log: Actor<Log>, item: u32) {
        for pause in [3, 1, 2] {
            outray::sleep(Duration::from_millis(pause)).await;
            log.call(Log::push, item).await.unwrap();
        }
    }
    fn produce(queue: Queue<u32>, from: u32) {
        (from..from + 5).for_each(|item| queue.put(item).unwrap());
    }
    fn consume(queue: Queue<u32>, log: Actor<Log>) {
        (0..5).for_each(|_| drop(log.call(Log::push, queue.get().unwrap())));
    }
    fn drain(log: Actor<Log>, from: u32) {
        let stream: ObjectStream<u32> = Runtime::current().streaming(|from: u32| from..from + 5).buffer(2).submit(from);
        stream.values().for_each(|item| drop(log.call(Log::push, item.unwrap())));
    }
    let log = rt.actor(Log::new, ());
    let queue = Queue::bounded(rt, 2).unwrap();
    let mut tasks: Vec<_> = (0..4).map(|i| rt.submit(tell, (log.clone(), 10 * i))).collect();
    tasks.extend((0..3).map(|i| rt.submit(tell_later, (log.clone(), 100 + i))));
    tasks.extend((0..2).map(|i| rt.submit(produce, (queue.clone(), 200 + 10 * i))));
    tasks.extend((0..2).map(|_| rt.submit(consume, (queue.clone(), log.clone()))));
    tasks.extend((0..2).map(|i| rt.submit(drain, (log.clone(), 300 + 10 * i))));
    let some = rt.wait(&tasks, 3, None).0;
    for task in some.iter().chain(&tasks) {
        task.get().unwrap();
    }
    log.call(Log::all, ()).get().unwrap()
}

#[test]
fn the_same_seed_gives_the_same_order_of_tasks_calls_items_and_pauses() {
    watch(|| {
        for seed in 0..40 {
            let first = scenario(&Runtime::deterministic(seed));
            let mut sorted = first.clone();
            sorted.sort_unstable();
            assert_eq!(sorted.len(), 4 * 2 + 3 * 3 + 2 * 5 + 2 * 5, "everything happened");
            for _ in 0..3 {
                assert_eq!(scenario(&Runtime::deterministic(seed)), first, "seed {seed}");
            }
        }
    });
}

#[test]
fn different_seeds_give_different_orders() {
    watch(|| {
        let orders: BTreeSet<_> = (0..50).map(|seed| scenario(&Runtime::deterministic(seed))).collect();
        assert!(orders.len() >= 45, "only {} orders from 50 seeds", orders.len());
    });
}

#[test]
fn every_order_of_three_tasks_comes_up() {
    static TRACE: Trace = Trace::new();
    watch(|| {
        let orders: BTreeSet<_> = (0..300)
            .map(|seed| {
                TRACE.of(seed, |rt| {
                    let tasks = [1, 2, 3].map(|i| rt.submit(|i: u32| TRACE.note(i), i));
                    tasks.iter().for_each(|task| task.get().unwrap());
                })
            })
            .collect();
        assert_eq!(orders.len(), 6, "{orders:?}");
    });
}

#[test]
fn calls_of_many_callers_that_wait_for_the_same_argument_replay() {
    fn call_when_ready(log: Actor<Log>, late: ObjectRef<u32>, number: u32) {
        log.call(|log: &mut Log, _: u32, number: u32| log.push(number), (&late, number));
    }
    fn run(seed: u64) -> Vec<u32> {
        let rt = Runtime::deterministic(seed);
        let log = rt.actor(Log::new, ());
        let late = rt.submit(
            async || {
                outray::sleep(HOUR).await;
                1
            },
            (),
        );
        let callers: Vec<_> =
            (0..8).map(|number| rt.submit(call_when_ready, (log.clone(), late.clone(), number))).collect();
        callers.iter().for_each(|caller| caller.get().unwrap());
        late.get().unwrap();
        let mut all = Vec::new();
        while all.len() < 8 {
            all = log.call(Log::all, ()).get().unwrap();
        }
        all
    }
    watch(|| {
        for seed in 0..5 {
            let first = run(seed);
            for _ in 0..10 {
                assert_eq!(run(seed), first, "seed {seed}");
            }
        }
    });
}

#[test]
fn which_of_several_a_wait_finds_ready_replays() {
    fn run(seed: u64) -> Vec<u32> {
        let rt = Runtime::deterministic(seed);
        let mut rest: Vec<_> = (0..8).map(|i: u32| rt.submit(|i: u32| i, i)).collect();
        let mut order = Vec::new();
        while !rest.is_empty() {
            let (ready, others) = rt.wait(&rest, 1, None);
            order.extend(ready.iter().map(|task| task.get().unwrap()));
            rest = others;
        }
        order
    }
    watch(|| {
        let orders: Vec<_> = (0..20).map(run).collect();
        assert_eq!((0..20).map(run).collect::<Vec<_>>(), orders);
        assert!(orders.iter().any(|order| *order != orders[0]));
    });
}

// Planted bugs.

struct Account(i64);

impl Account {
    fn new() -> Self {
        Account(100)
    }
    fn balance(&self) -> i64 {
        self.0
    }
    fn set(&mut self, to: i64) {
        self.0 = to;
    }
    fn deposit(&mut self, amount: i64) {
        self.0 += amount;
    }
}

#[test]
fn a_lost_update_is_found_and_its_seed_replays_it() {
    fn deposit(account: Actor<Account>, amount: i64) {
        let balance = account.call(Account::balance, ()).get().unwrap();
        account.call(Account::set, balance + amount).get().unwrap();
    }
    fn total(seed: u64) -> i64 {
        let rt = Runtime::deterministic(seed);
        let account = rt.actor(Account::new, ());
        let both = [1, 10].map(|amount| rt.submit(deposit, (account.clone(), amount)));
        both.iter().for_each(|task| task.get().unwrap());
        account.call(Account::balance, ()).get().unwrap()
    }
    watch(|| {
        let found: Vec<_> = (0..300).filter(|seed| total(*seed) != 111).collect();
        assert!((1..300).contains(&found.len()), "{} of 300 seeds find it", found.len());
        for _ in 0..20 {
            assert_ne!(total(found[0]), 111);
        }
    });
}

#[test]
fn the_corrected_program_passes_all_seeds() {
    fn deposit(account: Actor<Account>, amount: i64) {
        account.call(Account::deposit, amount).get().unwrap();
    }
    watch(|| {
        for seed in 0..300 {
            let rt = Runtime::deterministic(seed);
            let account = rt.actor(Account::new, ());
            let both = [1, 10].map(|amount| rt.submit(deposit, (account.clone(), amount)));
            both.iter().for_each(|task| task.get().unwrap());
            assert_eq!(account.call(Account::balance, ()).get().unwrap(), 111, "seed {seed}");
        }
    });
}

#[test]
fn a_bug_that_needs_three_steps_in_one_order_is_found() {
    /// A lease that is given to who asks while it is free; giving it back twice is the bug.
    struct Lease {
        holder: Option<u32>,
        broken: bool,
    }
    impl Lease {
        fn new() -> Self {
            Lease { holder: None, broken: false }
        }
        fn is_free(&self) -> bool {
            self.holder.is_none()
        }
        fn take(&mut self, who: u32) {
            self.broken |= self.holder.is_some();
            self.holder = Some(who);
        }
        fn give_back(&mut self) {
            self.holder = None;
        }
        fn is_broken(&self) -> bool {
            self.broken
        }
    }
    fn use_it(lease: Actor<Lease>, who: u32) {
        if lease.call(Lease::is_free, ()).get().unwrap() {
            lease.call(Lease::take, who).get().unwrap();
            lease.call(Lease::give_back, ()).get().unwrap();
        }
    }
    watch(|| {
        let found = (0..300).filter(|seed| {
            let rt = Runtime::deterministic(*seed);
            let lease = rt.actor(Lease::new, ());
            let users = [1, 2].map(|who| rt.submit(use_it, (lease.clone(), who)));
            users.iter().for_each(|user| user.get().unwrap());
            lease.call(Lease::is_broken, ()).get().unwrap()
        });
        assert!(found.count() > 0, "no seed of 300 finds it");
    });
}

#[test]
fn an_async_race_is_found() {
    static SHARED: AtomicU32 = AtomicU32::new(0);
    async fn add() {
        let seen = SHARED.load(SeqCst);
        outray::sleep(Duration::from_millis(1)).await;
        SHARED.store(seen + 1, SeqCst);
    }
    watch(|| {
        let found = (0..300).filter(|seed| {
            SHARED.store(0, SeqCst);
            let rt = Runtime::deterministic(*seed);
            let both = [rt.submit(add, ()), rt.submit(add, ())];
            both.iter().for_each(|task| task.get().unwrap());
            SHARED.load(SeqCst) != 2
        });
        assert!(found.count() > 0, "no seed of 300 finds it");
    });
}

// Time.

async fn sleep_then(seconds: u64) -> u64 {
    outray::sleep(Duration::from_secs(seconds)).await;
    seconds
}

#[test]
fn sleeping_costs_no_time_and_ends_in_the_order_of_virtual_time() {
    static TRACE: Trace = Trace::new();
    async fn sleep_for_days(days: u32) {
        outray::sleep(24 * HOUR * days).await;
        TRACE.note(days);
    }
    watch(|| {
        for seed in 0..30 {
            let trace = TRACE.of(seed, |rt| {
                let sleepers = [300, 5, 40, 1, 2000].map(|days| rt.submit(sleep_for_days, days));
                sleepers.iter().for_each(|sleeper| sleeper.get().unwrap());
            });
            assert_eq!(trace, [1, 5, 40, 300, 2000], "seed {seed}");
        }
    });
}

#[test]
fn time_passes_only_when_nothing_can_run() {
    static TRACE: Trace = Trace::new();
    async fn sleep_a_little() {
        outray::sleep(Duration::from_nanos(1)).await;
        TRACE.note(99);
    }
    fn nest(left: u32) {
        TRACE.note(left);
        if left > 0 {
            Runtime::current().submit(nest, left - 1).get().unwrap();
        }
    }
    watch(|| {
        for seed in 0..30 {
            let trace = TRACE.of(seed, |rt| {
                let sleeper = rt.submit(sleep_a_little, ());
                let busy = [rt.submit(nest, 10), rt.submit(nest, 10)];
                busy.iter().chain([&sleeper]).for_each(|task| task.get().unwrap());
            });
            assert_eq!(trace.len(), 23);
            assert_eq!(trace.last(), Some(&99), "seed {seed}: {trace:?}");
        }
    });
}

#[test]
fn time_limits_are_virtual() {
    watch(|| {
        for seed in 0..20 {
            let rt = Runtime::deterministic(seed);
            let slow = rt.submit(sleep_then, 3600);
            let error = slow.get_timeout(Duration::from_secs(3599)).unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            assert_eq!(slow.get_timeout(Duration::from_secs(2)).unwrap(), 3600);
            let queue = Queue::<u32>::bounded(&rt, 1).unwrap();
            assert_eq!(queue.get_timeout(YEAR), Err(Error::QueueEmpty));
            let (ready, rest) =
                rt.wait(&[rt.submit(sleep_then, 10), rt.submit(sleep_then, 20)], 2, Some(15 * HOUR / 3600));
            assert_eq!((ready.len(), rest.len()), (1, 1));
        }
    });
}

#[test]
fn a_queue_time_limit_and_a_pause_of_almost_the_same_length_end_in_their_order() {
    async fn put_later(queue: Queue<u32>, after: Duration) {
        outray::sleep(after).await;
        queue.put_async(1).await.unwrap();
    }
    fn get_within(queue: Queue<u32>, limit: Duration) -> Option<u32> {
        queue.get_timeout(limit).ok()
    }
    watch(|| {
        for seed in 0..50 {
            let limit = Duration::from_millis(100);
            let just = Duration::from_nanos(1);
            for (pause, expected) in [(limit - just, Some(1)), (limit + just, None)] {
                let rt = Runtime::deterministic(seed);
                let queue = Queue::bounded(&rt, 1).unwrap();
                let put = rt.submit(put_later, (queue.clone(), pause));
                let get = rt.submit(get_within, (queue.clone(), limit));
                assert_eq!(get.get().unwrap(), expected, "seed {seed}");
                put.get().unwrap();
            }
        }
    });
}

#[test]
fn deadlines_and_pauses_before_retries_are_virtual() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    fn fail_twice() -> u32 {
        assert!(RUNS.fetch_add(1, SeqCst) % 3 == 2, "not yet");
        5
    }
    watch(|| {
        for seed in 0..10 {
            let rt = Runtime::deterministic(seed);
            let retried = rt.task(fail_twice).retries(2).backoff(24 * HOUR).submit(());
            let late = rt.task(sleep_then).deadline(HOUR).submit(3601);
            let in_time = rt.task(sleep_then).deadline(HOUR).submit(3599);
            assert_eq!((retried.get().unwrap(), in_time.get().unwrap()), (5, 3599));
            assert!(matches!(late.get(), Err(Error::DeadlineExceeded { .. })));
        }
    });
}

// Everything works under it.

#[test]
fn data_parallel_helpers_pools_and_nested_tasks_give_the_right_results() {
    struct Squarer;
    impl Squarer {
        fn square(&mut self, x: u64) -> u64 {
            x * x
        }
    }
    fn fib(n: u64) -> u64 {
        if n < 2 {
            return n;
        }
        let rt = Runtime::current();
        let (a, b) = (rt.submit(fib, n - 1), rt.submit(fib, n - 2));
        a.get().unwrap() + b.get().unwrap()
    }
    watch(|| {
        for seed in 0..10 {
            let rt = Runtime::deterministic(seed);
            let squares: Vec<u64> = (0..30).map(|x| x * x).collect();
            assert_eq!(rt.map(|x: u64| x * x, 0..30_u64).collect().unwrap(), squares);
            let pool = ActorPool::new((0..3).map(|_| rt.actor(|| Squarer, ())).collect()).unwrap();
            assert_eq!(pool.map(Squarer::square, 0..30_u64).unwrap(), squares);
            assert_eq!(rt.submit(fib, 8).get().unwrap(), 21);
        }
    });
}

#[test]
fn panics_restarts_and_failed_arguments_are_errors_as_ever() {
    watch(|| {
        for seed in 0..20 {
            let rt = Runtime::deterministic(seed);
            let bad = rt.submit(|| -> u32 { panic!("no luck") }, ());
            let next = rt.submit(|x: u32| x, &bad);
            assert!(matches!(next.get().unwrap_err().root_cause(), Error::Panicked { .. }));
            let log = rt.actor_builder(Log::new).max_restarts(1).start(());
            log.call(Log::push, 1);
            assert!(log.call(|_: &mut Log| -> u32 { panic!("once") }, ()).get().is_err());
            log.call(Log::push, 2);
            assert_eq!(log.call(Log::all, ()).get().unwrap(), [2], "seed {seed}");
        }
    });
}

#[test]
fn exclusive_and_shared_calls_keep_their_rules() {
    static INSIDE: AtomicU32 = AtomicU32::new(0);
    static WRITING: AtomicBool = AtomicBool::new(false);
    async fn write(_: &mut Log) {
        assert!(!WRITING.swap(true, SeqCst) && INSIDE.load(SeqCst) == 0);
        outray::sleep(Duration::from_millis(1)).await;
        WRITING.store(false, SeqCst);
    }
    async fn read(_: &Log) {
        INSIDE.fetch_add(1, SeqCst);
        outray::sleep(Duration::from_millis(1)).await;
        assert!(!WRITING.load(SeqCst));
        INSIDE.fetch_sub(1, SeqCst);
    }
    watch(|| {
        for seed in 0..50 {
            let rt = Runtime::deterministic(seed);
            let log = rt.actor(Log::new, ());
            let calls: Vec<_> =
                (0..20).map(|i| if i % 3 == 0 { log.call(write, ()) } else { log.call(read, ()) }).collect();
            calls.iter().for_each(|call| call.get().unwrap());
        }
    });
}

// Deadlocks and cycles.

#[test]
fn waiting_for_what_never_comes_is_an_error_that_says_what_waits() {
    async fn wait_for_ever(queue: Queue<u32>) -> u32 {
        queue.get_async().await.unwrap()
    }
    watch(|| {
        for seed in 0..20 {
            let rt = Runtime::deterministic(seed);
            let queue = Queue::<u32>::bounded(&rt, 1).unwrap();
            let error = queue.get().unwrap_err();
            assert!(matches!(error, Error::Deadlock { .. }), "{error:?}");
            let stuck = rt.task(wait_for_ever).name("stuck").submit(queue.clone());
            let error = stuck.get().unwrap_err();
            assert!(matches!(error, Error::Deadlock { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("nothing is left that could run") && text.contains("`stuck`"), "{text}");
            // It goes on when somebody puts an item after all.
            queue.put(4).unwrap();
            assert_eq!(stuck.get().unwrap(), 4);
        }
    });
}

#[test]
fn tasks_that_wait_for_each_other_by_queues_are_told_of_the_deadlock() {
    fn get_then_put(from: Queue<u32>, to: Queue<u32>) -> Result<()> {
        let item = from.get()?;
        to.put(item)
    }
    watch(|| {
        for seed in 0..50 {
            let rt = Runtime::deterministic(seed);
            let (a, b) = (Queue::bounded(&rt, 1).unwrap(), Queue::bounded(&rt, 1).unwrap());
            let tasks = [rt.submit(get_then_put, (a.clone(), b.clone())), rt.submit(get_then_put, (b, a))];
            for task in &tasks {
                let error = task.get().and_then(|result| result).unwrap_err();
                assert!(matches!(error, Error::Deadlock { .. }), "seed {seed}: {error:?}");
            }
        }
    });
}

#[test]
fn a_cycle_of_waits_is_still_a_cycle() {
    struct Own(Option<Actor<Own>>);
    impl Own {
        fn set(&mut self, own: Actor<Own>) {
            self.0 = Some(own);
        }
        fn ask(&mut self, again: bool) -> Result<()> {
            match again {
                true => self.0.as_ref().expect("it was set").call(Own::ask, false).get()?,
                false => Ok(()),
            }
        }
    }
    watch(|| {
        for seed in 0..20 {
            let rt = Runtime::deterministic(seed);
            let own = rt.actor(|| Own(None), ());
            own.call(Own::set, own.clone()).get().unwrap();
            let error = own.call(Own::ask, true).get().unwrap().unwrap_err();
            assert!(matches!(error, Error::WaitCycle { .. }), "{error:?}");
            own.kill();
        }
    });
}

// Cancellation and the end.

#[test]
fn cancelled_tasks_end_where_they_are() {
    static RUN: AtomicBool = AtomicBool::new(false);
    async fn sleep_on() {
        let _inside = Counted::<0>::new(0);
        outray::sleep(YEAR).await;
        RUN.store(true, SeqCst);
    }
    watch(|| {
        for seed in 0..30 {
            let rt = Runtime::deterministic(seed);
            let sleeper = rt.submit(sleep_on, ());
            let _ = sleeper.get_timeout(HOUR);
            let dependent = rt.submit(|(): ()| RUN.store(true, SeqCst), &sleeper);
            sleeper.cancel();
            assert!(sleeper.get().unwrap_err().is_cancelled());
            assert!(dependent.get().unwrap_err().is_cancelled());
            rt.submit(sleep_then, 2).get().unwrap();
            assert_eq!(Counted::<0>::live(), 0, "seed {seed}: it is dropped where it waits");
        }
        assert!(!RUN.load(SeqCst));
    });
}

#[test]
fn dropping_the_runtime_ends_what_sleeps_waits_and_is_queued() {
    async fn sleep_on(_held: Counted<1>) {
        outray::sleep(YEAR).await;
    }
    fn block(queue: Queue<u32>, held: Counted<1>) -> bool {
        let stopped = queue.get().is_err();
        drop(held);
        stopped
    }
    watch(|| {
        for seed in 0..100 {
            let rt = Runtime::deterministic(seed);
            let queue = Queue::<u32>::bounded(&rt, 1).unwrap();
            let log = rt.actor(Log::new, ());
            let tasks: Vec<_> = (0..3).map(|i| rt.submit(sleep_on, Counted::new(i))).collect();
            let blocked: Vec<_> = (0..3).map(|i| rt.submit(block, (queue.clone(), Counted::new(i)))).collect();
            let calls: Vec<_> = (0..3).map(|i| log.call(Log::push, i)).collect();
            drop(rt);
            assert!(tasks.iter().all(|task| matches!(task.get(), Err(Error::Shutdown { .. }))), "seed {seed}");
            assert!(blocked.iter().all(|task| task.is_ready()) && calls.iter().all(|call| call.is_ready()));
            assert_eq!(Counted::<1>::live(), 0, "seed {seed}");
        }
    });
}
