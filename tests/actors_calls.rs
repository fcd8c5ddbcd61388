//! Calls of actors: who may use the state when, in which order calls run, and how many may.

mod common;

use common::{
    AtomicBool, AtomicUsize, Counted, Gate, Meter, Notes, at_once, give_others_a_chance, local, local_only, meet,
    until, watch,
};
use outray::{Actor, Error, ObjectRef, Queue, Result, Runtime};
use std::{sync::atomic::Ordering::SeqCst, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);

static HELD: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

/// An actor that remembers what it was told, in order.
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
    /// Whoever calls this keeps the actor busy until the queue has an item.
    async fn hold(&mut self, until: Queue<()>) {
        until.get_async().await.expect("the test lets go");
    }
    /// The same; `HELD` at `place` says when it does.
    async fn hold_noting(&mut self, until: Queue<()>, place: usize) {
        HELD[place].store(true, SeqCst);
        self.hold(until).await;
    }
}

/// An actor with two numbers that together are always 10, except inside a method.
struct Pair {
    left: i32,
    right: i32,
}

impl Pair {
    fn new() -> Self {
        Pair { left: 10, right: 0 }
    }
    async fn shift(&mut self, go_on: Queue<()>) {
        self.left -= 1;
        go_on.get_async().await.expect("the test lets go");
        self.right += 1;
    }
    async fn shift_often(&mut self) {
        self.left -= 1;
        for _ in 0..3 {
            outray::sleep(Duration::ZERO).await;
        }
        self.right += 1;
    }
    fn sum(&self) -> i32 {
        self.left + self.right
    }
    fn sum_alone(&mut self) -> i32 {
        self.left + self.right
    }
    fn right(&self) -> i32 {
        self.right
    }
}

/// An actor without a state worth mentioning.
struct Idle;

fn idle() -> Idle {
    Idle
}

// Who may use the state when.

#[test]
fn exclusive_calls_never_overlap() {
    static METER: Meter = Meter::new();
    fn call_often(actor: Actor<Idle>) -> Result<()> {
        let visits: Vec<_> = (0..50).map(|_| actor.call(|_: &mut Idle| METER.visit(), ())).collect();
        visits.iter().try_for_each(ObjectRef::get)
    }
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(idle, ());
        let callers: Vec<_> =
            (0..4).map(|_| rt.submit(|actor: Actor<Idle>| call_often(actor).is_ok(), actor.clone())).collect();
        assert_eq!(rt.get_all(&callers).unwrap(), [true; 4]);
        assert_eq!(METER.total(), 200);
        assert_eq!(METER.most(), 1, "two exclusive calls ran at a time");
    });
}

#[test]
fn shared_calls_run_side_by_side() {
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    watch(|| {
        let rt = local(3);
        let actor = rt.actor(idle, ());
        let calls: Vec<_> = (0..3).map(|_| actor.call(|_: &Idle| meet(&PLACE, 3), ())).collect();
        calls.iter().for_each(|call| call.get().unwrap());
    });
}

#[test]
fn exclusive_call_waits_for_the_shared_calls_that_run() {
    static GATE: Gate = Gate::new();
    static READING: AtomicUsize = AtomicUsize::new(0);
    fn read(_: &Idle) {
        READING.fetch_add(1, SeqCst);
        GATE.pass();
        READING.fetch_sub(1, SeqCst);
    }
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(idle, ());
        let reads = [actor.call(read, ()), actor.call(read, ())];
        GATE.wait_for(2);
        let write = actor.call(|_: &mut Idle| READING.load(SeqCst), ());
        give_others_a_chance();
        assert!(!write.is_ready(), "a write ran beside reads");
        GATE.open();
        assert_eq!(write.get().unwrap(), 0);
        reads.iter().for_each(|read| read.get().unwrap());
    });
}

#[test]
fn shared_call_waits_for_the_exclusive_call_that_runs() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(Log::new, ());
        let write = |log: &mut Log| {
            GATE.pass();
            log.push(1);
        };
        let write = actor.call(write, ());
        GATE.wait_for(1);
        let read = actor.call(Log::all, ());
        give_others_a_chance();
        assert!(!read.is_ready(), "a read ran beside a write");
        GATE.open();
        assert_eq!(read.get().unwrap(), [1]);
        write.get().unwrap();
    });
}

#[test]
fn readers_that_keep_coming_do_not_starve_a_writer() {
    static STOP: AtomicBool = AtomicBool::new(false);
    fn read_on(actor: Actor<Log>) -> usize {
        let mut reads = 0;
        while !STOP.load(SeqCst) {
            let two = [actor.call(Log::all, ()), actor.call(Log::all, ())];
            two.iter().for_each(|read| drop(read.get().unwrap()));
            reads += 2;
        }
        reads
    }
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(Log::new, ());
        let readers = [rt.submit(read_on, actor.clone()), rt.submit(read_on, actor.clone())];
        for item in 0..100 {
            actor.call(Log::push, item).get().unwrap();
        }
        STOP.store(true, SeqCst);
        assert!(readers.iter().all(|reader| reader.get().is_ok()));
    });
}

#[test]
fn async_calls_of_one_actor_interleave_on_one_cpu() {
    struct Mailroom(Queue<u32>);
    impl Mailroom {
        async fn take(&self) -> u32 {
            self.0.get_async().await.expect("somebody gives")
        }
        async fn give(&self, item: u32) {
            self.0.put_async(item).await.expect("somebody takes");
        }
    }
    watch(|| {
        let rt = local(1);
        let actor = rt.actor(|queue: Queue<u32>| Mailroom(queue), Queue::bounded(&rt, 1).unwrap());
        let taken: Vec<_> = (0..10).map(|_| actor.call(Mailroom::take, ())).collect();
        let given: Vec<_> = (0..10).map(|item| actor.call(Mailroom::give, item)).collect();
        given.iter().for_each(|give| give.get().unwrap());
        let mut taken = rt.get_all(&taken).unwrap();
        taken.sort_unstable();
        assert_eq!(taken, Vec::from_iter(0..10));
    });
}

#[test]
fn async_calls_that_wait_need_no_threads() {
    local_only!("counts the threads of this process");
    async fn wait(_: &Idle, queue: Queue<()>) {
        queue.get_async().await.expect("the test lets go");
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(idle, ());
        let queue = Queue::bounded(&rt, 1000).unwrap();
        let calls: Vec<_> = (0..1000).map(|_| actor.call(wait, queue.clone())).collect();
        until("all calls have started", || actor.pending_calls() == 0);
        assert!(rt.stats().threads <= 10, "{}", rt.stats());
        (0..1000).for_each(|_| queue.put(()).unwrap());
        calls.iter().for_each(|call| call.get().unwrap());
    });
}

#[test]
fn async_exclusive_call_keeps_all_others_out_while_it_waits() {
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(Pair::new, ());
        let go_on = Queue::bounded(&rt, 2).unwrap();
        let shifts = [actor.call(Pair::shift, go_on.clone()), actor.call(Pair::shift, go_on.clone())];
        let sums = [actor.call(Pair::sum, ()), actor.call(Pair::sum_alone, ())];
        give_others_a_chance();
        assert!(sums.iter().all(|sum| !sum.is_ready()), "a call came between");
        go_on.put(()).unwrap();
        shifts[0].get().unwrap();
        give_others_a_chance();
        assert!(sums.iter().all(|sum| !sum.is_ready()), "a call came between");
        go_on.put(()).unwrap();
        assert_eq!(rt.get_all(&sums).unwrap(), [10, 10]);
    });
}

#[test]
fn async_exclusive_calls_lose_no_update() {
    fn shift_ten(actor: Actor<Pair>) {
        let shifts: Vec<_> = (0..10).map(|_| actor.call(Pair::shift_often, ())).collect();
        shifts.iter().for_each(|shift| shift.get().unwrap());
    }
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(Pair::new, ());
        let tasks: Vec<_> = (0..4).map(|_| rt.submit(shift_ten, actor.clone())).collect();
        let sums: Vec<_> = (0..20).map(|_| actor.call(Pair::sum, ())).collect();
        assert_eq!(rt.get_all(&sums).unwrap(), [10; 20]);
        tasks.iter().for_each(|task| task.get().unwrap());
        assert_eq!(actor.call(Pair::right, ()).get().unwrap(), 40);
    });
}

// In which order.

#[test]
fn calls_of_one_caller_run_in_the_order_made() {
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(Log::new, ());
        (0..2000).for_each(|item| drop(actor.call(Log::push, item)));
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), Vec::from_iter(0..2000));
    });
}

#[test]
fn each_of_several_callers_keeps_its_order() {
    fn push_many(actor: Actor<Log>, from: u32) {
        (from..from + 500).for_each(|item| drop(actor.call(Log::push, item)));
    }
    watch(|| {
        let rt = local(4);
        let actor = rt.actor(Log::new, ());
        std::thread::scope(|scope| {
            scope.spawn(|| push_many(actor.clone(), 0));
            scope.spawn(|| push_many(actor.clone(), 1000));
            let tasks = [2000, 3000].map(|from| rt.submit(push_many, (actor.clone(), from)));
            tasks.iter().for_each(|task| task.get().unwrap());
        });
        // On a cluster the calls of tasks on another node may still be on their way.
        let all = || actor.call(Log::all, ()).get().unwrap();
        at_once("all have come", || all().len() == 2000);
        let all = all();
        for caller in 0..4 {
            let own: Vec<_> = all.iter().copied().filter(|item| item / 1000 == caller).collect();
            assert_eq!(own, Vec::from_iter(caller * 1000..caller * 1000 + 500));
        }
    });
}

#[test]
fn a_call_whose_argument_is_missing_holds_up_its_own_caller_only() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let late = rt.submit(
            |item: u32| {
                GATE.pass();
                item
            },
            1,
        );
        actor.call(Log::push, &late);
        let second = actor.call(Log::push, 2);
        let other = rt.submit(|actor: Actor<Log>| actor.call(Log::push, 3).get().unwrap(), actor.clone());
        other.get().unwrap();
        give_others_a_chance();
        assert!(!second.is_ready(), "a call overtook the one before it");
        GATE.open();
        second.get().unwrap();
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [3, 1, 2]);
    });
}

#[test]
fn calls_lined_up_behind_one_that_somebody_waited_for_are_not_forgotten() {
    // Found by the stress test: whoever helped a call out of a lane left the mailbox idle, with
    // calls in the lane that were ready.
    fn line_up(actor: Actor<Log>, shared: bool) -> Vec<u32> {
        let rt = Runtime::current();
        let late = rt.submit(|| 1, ());
        let first = match shared {
            false => actor.call(|log: &mut Log, item: u32| log.push(item), &late),
            true => actor.call(|_: &Log, _: u32| (), &late),
        };
        let behind = [actor.call(Log::push, 2), actor.call(Log::push, 3)];
        // Another caller's call gets past them, and leaves them in their lane.
        let other = rt.submit(|actor: Actor<Log>| actor.call(|_: &mut Log| (), ()), actor.clone());
        other.get().unwrap().get().unwrap();
        first.get().unwrap();
        behind.iter().for_each(|call| call.get().unwrap());
        actor.call(Log::all, ()).get().unwrap()
    }
    watch(|| {
        // One CPU: nobody else runs the actor meanwhile.
        let rt = local(1);
        for _ in 0..20 {
            assert_eq!(rt.submit(line_up, (rt.actor(Log::new, ()), false)).get().unwrap(), [1, 2, 3]);
            assert_eq!(rt.submit(line_up, (rt.actor(Log::new, ()), true)).get().unwrap(), [2, 3]);
        }
    });
}

#[test]
fn calls_made_by_one_actor_keep_their_order_from_call_to_call() {
    static GATE: Gate = Gate::new();
    struct Relay(Actor<Log>);
    impl Relay {
        fn pass_on(&mut self, item: ObjectRef<u32>) {
            self.0.call(Log::push, &item);
        }
    }
    watch(|| {
        let rt = local(2);
        let log = rt.actor(Log::new, ());
        let relay = rt.actor(|log: Actor<Log>| Relay(log), log.clone());
        let late = rt.submit(
            || {
                GATE.pass();
                1
            },
            (),
        );
        relay.call(Relay::pass_on, late).get().unwrap();
        relay.call(Relay::pass_on, rt.put(2)).get().unwrap();
        give_others_a_chance();
        GATE.open();
        until("both are there", || log.call(Log::all, ()).get().unwrap().len() == 2);
        assert_eq!(log.call(Log::all, ()).get().unwrap(), [1, 2], "the second call of the actor overtook the first");
    });
}

#[test]
fn an_async_task_keeps_its_order_across_awaits() {
    static GATE: Gate = Gate::new();
    async fn push_two(actor: Actor<Log>, late: ObjectRef<u32>) -> Result<(), String> {
        actor.call(Log::push, &late);
        outray::sleep(Duration::from_millis(1)).await;
        let second = actor.call(Log::push, 2);
        GATE.open();
        second.await.map_err(|error| error.to_string())
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let late = rt.submit(
            || {
                GATE.pass();
                1
            },
            (),
        );
        GATE.wait_for(1);
        rt.submit(push_two, (actor.clone(), late)).get().unwrap().unwrap();
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [1, 2]);
    });
}

#[test]
fn a_read_that_waits_for_room_still_comes_before_the_write_made_after_it() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(4);
        let actor = rt.actor_builder(Log::new).max_concurrency(1).start(());
        let first = actor.call(|_: &Log| GATE.pass(), ());
        GATE.wait_for(1);
        let read = actor.call(Log::all, ());
        let write = actor.call(Log::push, 7);
        GATE.open();
        assert_eq!(read.get().unwrap(), Vec::<u32>::new(), "the read saw a write that its caller made later");
        write.get().unwrap();
        first.get().unwrap();
    });
}

#[test]
fn a_handle_as_argument_is_the_value_of_an_earlier_call() {
    watch(|| {
        let rt = local(2);
        let numbers = rt.actor(Log::new, ());
        numbers.call(Log::push, 20);
        let last = numbers.call(|log: &Log| log.0[log.0.len() - 1], ());
        let more = rt.submit(|x: u32| x + 1, &last);
        let other = rt.actor(Log::new, ());
        other.call(Log::push, &last);
        other.call(Log::push, &more);
        assert_eq!(other.call(Log::all, ()).get().unwrap(), [20, 21]);
    });
}

// Calls that fail, end early, or never run.

#[test]
fn a_call_whose_argument_failed_fails_naming_it_and_leaves_the_state_alone() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let bad = rt.task(|| -> u32 { panic!("no luck") }).name("unlucky").submit(());
        let call = actor.call(Log::push, &bad);
        let error = call.get().unwrap_err();
        assert!(matches!(&error, Error::DependencyFailed { origin, .. } if origin.kind == "call"), "{error:?}");
        assert!(matches!(error.root_cause(), Error::Panicked { message, .. } if message == "no luck"), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("push") && text.contains("unlucky") && text.contains("no luck"), "{text}");
        actor.call(Log::push, 1);
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [1]);
    });
}

#[test]
fn an_err_as_argument_fails_the_call_with_its_text() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let bad = rt.submit(|| -> Result<u32, String> { Err("out of numbers".into()) }, ());
        let error = actor.call(Log::push, &bad).get().unwrap_err();
        assert!(matches!(error.root_cause(), Error::DependencyReturnedErr { .. }), "{error:?}");
        assert!(error.to_string().contains("out of numbers"), "{error}");
        assert!(actor.call(Log::all, ()).get().unwrap().is_empty());
    });
}

#[test]
fn a_cancelled_call_that_waits_never_runs() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let let_go = Queue::bounded(&rt, 1).unwrap();
        let hold = actor.call(Log::hold, let_go.clone());
        let calls: Vec<_> = (0..3).map(|item| actor.call(Log::push, item)).collect();
        calls[1].cancel();
        let error = calls[1].get().unwrap_err();
        assert!(matches!(&error, Error::Cancelled { origin } if origin.name.contains("push")), "{error:?}");
        let_go.put(()).unwrap();
        hold.get().unwrap();
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [0, 2]);
    });
}

#[test]
fn cancelling_a_call_whose_argument_never_comes_lets_later_calls_go() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let never = rt.submit(
            || {
                GATE.pass();
                1
            },
            (),
        );
        let first = actor.call(Log::push, &never);
        let second = actor.call(Log::push, 2);
        first.cancel();
        second.get().unwrap();
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [2]);
        GATE.open();
    });
}

#[test]
fn a_running_call_is_told_of_its_cancellation_and_the_actor_goes_on() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    fn run_on(log: &mut Log) {
        STARTED.store(true, SeqCst);
        until("the call is told", || outray::task::context().is_cancelled());
        log.push(1);
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let call = actor.call(run_on, ());
        until("the call runs", || STARTED.load(SeqCst));
        call.cancel();
        assert!(call.get().unwrap_err().is_cancelled());
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [1]);
    });
}

#[test]
fn a_cancelled_async_call_is_dropped_where_it_waits_and_lets_others_in() {
    async fn wait(_: &mut Log, queue: Queue<()>) {
        let _inside = Counted::<10>::new(1);
        queue.get_async().await.expect("the queue stays");
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let queue = Queue::bounded(&rt, 1).unwrap();
        let call = actor.call(wait, queue.clone());
        until("the call waits", || Counted::<10>::live() == 1);
        let next = actor.call(Log::push, 1);
        call.cancel();
        assert!(call.get().unwrap_err().is_cancelled());
        next.get().unwrap();
        assert_eq!(Counted::<10>::live(), 0);
        queue.put(()).unwrap();
        assert_eq!(queue.len(), 1, "the cancelled call took the item");
    });
}

#[test]
fn a_call_that_does_not_start_before_its_deadline_fails_and_never_runs() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        let let_go = Queue::bounded(&rt, 1).unwrap();
        let hold = actor.call(Log::hold, let_go.clone());
        let late = actor.method(Log::push).name("late").deadline(Duration::from_millis(1)).call(1);
        let error = late.get().unwrap_err();
        assert!(matches!(&error, Error::DeadlineExceeded { origin, .. } if origin.name == "late"), "{error:?}");
        assert!(error.to_string().contains("1ms"), "{error}");
        let_go.put(()).unwrap();
        hold.get().unwrap();
        let in_time = actor.method(Log::push).deadline(HOUR).call(2);
        in_time.get().unwrap();
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [2]);
    });
}

#[test]
fn a_panic_names_the_method_its_message_and_where_it_was_called() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(idle, ());
        let call = actor.method(|_: &Idle| -> u32 { panic!("not today") }).name("fragile").call(());
        let error = call.get().unwrap_err();
        let Error::Panicked { origin, message } = &error else { panic!("{error:?}") };
        assert_eq!((origin.kind.as_str(), origin.name.as_str(), message.as_str()), ("call", "fragile", "not today"));
        assert!(origin.location.contains("actors_calls.rs"), "{origin}");
    });
}

#[test]
fn a_panic_in_a_shared_call_fails_that_call_only() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Log::new, ());
        actor.call(Log::push, 1);
        async fn fail(_: &Log) {
            panic!("two")
        }
        let bad = [actor.call(|_: &Log| -> () { panic!("one") }, ()), actor.call(fail, ())];
        actor.call(Log::push, 2);
        assert!(bad.iter().all(|call| matches!(call.get(), Err(Error::Panicked { .. }))));
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [1, 2]);
    });
}

#[test]
fn a_method_knows_its_context_and_its_runtime() {
    fn inside(_: &mut Idle) -> (String, u32, u64, i32) {
        let context = outray::task::context();
        let nested = Runtime::current().submit(|| 5, ()).get().unwrap();
        (context.name().to_owned(), context.attempt(), context.id(), nested)
    }
    watch(|| {
        let rt = local(1);
        let actor = rt.actor(idle, ());
        let call = actor.method(inside).name("here").call(());
        assert_eq!(call.get().unwrap(), ("here".to_owned(), 1, call.id(), 5));
    });
}

// How many.

#[test]
fn max_pending_calls_refuses_the_call_that_is_one_too_many() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Log::new).max_pending_calls(2).start(());
        actor.ready().get().unwrap();
        let let_go = Queue::bounded(&rt, 1).unwrap();
        let hold = actor.call(Log::hold_noting, (let_go.clone(), 0));
        until("the first call runs", || HELD[0].load(SeqCst));
        let waiting = [actor.call(Log::push, 1), actor.call(Log::push, 2)];
        assert_eq!(actor.pending_calls(), 2);
        let error = actor.call(Log::push, 3).get().unwrap_err();
        assert!(
            matches!(&error, Error::TooManyPendingCalls { origin, limit: 2 } if origin.name.contains("push")),
            "{error:?}"
        );
        assert!(error.to_string().contains("2 calls wait already"), "{error}");
        let_go.put(()).unwrap();
        hold.get().unwrap();
        waiting.iter().for_each(|call| call.get().unwrap());
        actor.call(Log::push, 4).get().unwrap();
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [1, 2, 4]);
    });
}

#[test]
fn a_cancelled_call_no_longer_counts_as_pending() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Log::new).max_pending_calls(1).start(());
        actor.ready().get().unwrap();
        let let_go = Queue::bounded(&rt, 1).unwrap();
        let hold = actor.call(Log::hold_noting, (let_go.clone(), 1));
        until("the first call runs", || HELD[1].load(SeqCst));
        actor.call(Log::push, 1).cancel();
        assert_eq!(actor.pending_calls(), 0);
        let second = actor.call(Log::push, 2);
        let_go.put(()).unwrap();
        hold.get().unwrap();
        second.get().unwrap();
        assert_eq!(actor.call(Log::all, ()).get().unwrap(), [2]);
    });
}

#[test]
fn max_concurrency_bounds_the_shared_calls_that_run_at_a_time() {
    static METER: Meter = Meter::new();
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    watch(|| {
        let rt = local(6);
        let actor = rt.actor_builder(idle).max_concurrency(2).start(());
        let pair = [actor.call(|_: &Idle| meet(&PLACE, 2), ()), actor.call(|_: &Idle| meet(&PLACE, 2), ())];
        let visits: Vec<_> = (0..100).map(|_| actor.call(|_: &Idle| METER.visit(), ())).collect();
        pair.iter().chain(&visits).for_each(|call| call.get().unwrap());
        assert_eq!(METER.total(), 100);
        assert!(METER.most() <= 2, "{} ran at a time", METER.most());
    });
}

#[test]
fn max_concurrency_counts_async_calls_that_wait() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(idle).max_concurrency(1).start(());
        let queue = Queue::bounded(&rt, 1).unwrap();
        async fn wait(_: &Idle, queue: Queue<()>) {
            queue.get_async().await.expect("the test lets go");
        }
        let first = actor.call(wait, queue.clone());
        let second = actor.call(|_: &Idle| (), ());
        give_others_a_chance();
        assert!(!second.is_ready(), "two ran at a time");
        queue.put(()).unwrap();
        second.get().unwrap();
        first.get().unwrap();
    });
}

#[test]
fn concurrency_groups_have_limits_of_their_own() {
    static GATE: Gate = Gate::new();
    static METER: Meter = Meter::new();
    watch(|| {
        let rt = local(6);
        let actor = rt.actor_builder(idle).concurrency_group("io", 1).concurrency_group("net", 2).start(());
        let first = actor.method(|_: &Idle| GATE.pass()).group("io").call(());
        GATE.wait_for(1);
        let second = actor.method(|_: &Idle| ()).group("io").call(());
        let free = actor.call(|_: &Idle| (), ());
        let net: Vec<_> = (0..50).map(|_| actor.method(|_: &Idle| METER.visit()).group("net").call(())).collect();
        free.get().unwrap();
        net.iter().for_each(|call| call.get().unwrap());
        assert!(!second.is_ready(), "two of the group ran at a time");
        assert!(METER.most() <= 2, "{} of the group ran at a time", METER.most());
        GATE.open();
        second.get().unwrap();
        first.get().unwrap();
    });
}

#[test]
fn an_unknown_concurrency_group_is_an_error_that_names_the_known_ones() {
    watch(|| {
        let rt = local(1);
        let actor = rt.actor_builder(idle).concurrency_group("io", 1).start(());
        let error = actor.method(|_: &Idle| ()).group("oi").call(()).get().unwrap_err();
        assert!(matches!(error, Error::InvalidOption { .. }), "{error:?}");
        assert!(error.to_string().contains("\"oi\"") && error.to_string().contains("\"io\""), "{error}");
    });
}

#[test]
fn calls_behind_a_full_group_are_all_run_in_the_end() {
    static SEEN: Notes<300> = Notes::new();
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    fn note(_: &Idle, item: u32) {
        SEEN.push(item as usize);
    }
    watch(|| {
        let rt = local(3);
        let actor = rt.actor_builder(idle).max_concurrency(1).concurrency_group("io", 1).start(());
        let calls: Vec<_> = (0..300)
            .map(|item| match item % 3 {
                0 => actor.call(note, item),
                1 => actor.method(note).group("io").call(item),
                _ => actor.call(|idle: &mut Idle, item: u32| note(idle, item), item),
            })
            .collect();
        // A pair from different groups runs side by side.
        let pair =
            [actor.call(|_: &Idle| meet(&PLACE, 2), ()), actor.method(|_: &Idle| meet(&PLACE, 2)).group("io").call(())];
        calls.iter().chain(&pair).for_each(|call| call.get().unwrap());
        let mut seen = SEEN.all();
        seen.sort_unstable();
        assert_eq!(seen, Vec::from_iter(0..300));
    });
}
