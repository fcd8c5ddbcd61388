//! The life of an actor: constructors, names, the graceful end and the other one, restarts,
//! checkpoints, resources, and where handles may go.

mod common;

use common::{
    AtomicBool, AtomicU32, AtomicUsize, Counted, Gate, Notes, at_once, builder, give_others_a_chance, local,
    on_cluster, until, watch,
};
use outray::{Actor, Error, Filter, ObjectRef, Queue, Result, Runtime};
use serde::{Deserialize, Serialize};
use std::{sync::atomic::Ordering::SeqCst, time::Duration};

/// What an actor died of; a panic of the test if the error is another.
#[track_caller]
fn cause_of_death<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::ActorDied { cause, .. }) => cause,
        other => panic!("expected ActorDied, got {other:?}"),
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Counter {
    value: u32,
}

impl Counter {
    fn new(value: u32) -> Self {
        Counter { value }
    }
    fn add(&mut self, by: u32) -> u32 {
        self.value += by;
        self.value
    }
    async fn add_later(&mut self, by: u32) -> u32 {
        self.value += by;
        outray::sleep(Duration::ZERO).await;
        self.value
    }
    fn value(&self) -> u32 {
        self.value
    }
    /// Destroys the state, after a change of it.
    fn break_down(&mut self) -> u32 {
        self.value += 1_000_000;
        panic!("broken")
    }
    async fn break_down_later(&mut self) -> u32 {
        self.value += 1_000_000;
        outray::sleep(Duration::ZERO).await;
        panic!("broken later")
    }
    fn complain(&self) -> u32 {
        panic!("complaint")
    }
    /// Keeps the actor busy until the queue has an item.
    async fn hold(&mut self, until: Queue<()>) {
        until.get_async().await.expect("the test lets go");
    }
}

// Constructors.

#[test]
fn ready_tells_when_the_constructor_has_run() {
    static GATE: Gate = Gate::new();
    fn slow(value: u32) -> Counter {
        GATE.pass();
        Counter::new(value)
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(slow, 3);
        let (ready, value) = (actor.ready(), actor.call(Counter::value, ()));
        GATE.wait_for(1);
        assert!(!ready.is_ready() && !value.is_ready());
        GATE.open();
        ready.get().unwrap();
        assert_eq!(value.get().unwrap(), 3);
        actor.ready().get().unwrap();
    });
}

#[test]
fn a_constructor_that_panics_leaves_a_dead_actor_that_says_why() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(|_: u32| -> Counter { panic!("no engine") }).name("car").start(1);
        let cause = cause_of_death(actor.call(Counter::value, ()).get());
        assert!(cause.contains("could not be created") && cause.contains("no engine"), "{cause}");
        let error = actor.ready().get().unwrap_err();
        assert!(error.to_string().contains("actor `car`") && error.to_string().contains("is dead"), "{error}");
        assert!(cause_of_death(actor.call(Counter::value, ()).get()).contains("no engine"));
        let is_gone = || matches!(rt.get_actor::<Counter>("car"), Err(Error::ActorNotFound { .. }));
        at_once("its name is free", is_gone);
    });
}

#[test]
fn a_fallible_constructor_gives_its_ok_or_its_err() {
    fn parse(text: String) -> Result<Counter, std::num::ParseIntError> {
        text.parse().map(Counter::new)
    }
    watch(|| {
        let rt = local(2);
        let good = rt.actor_builder(parse).fallible().start("12");
        assert_eq!(good.call(Counter::value, ()).get().unwrap(), 12);
        let bad = rt.actor_builder(parse).fallible().start("twelve");
        for result in [bad.call(Counter::value, ()).get().map(drop), bad.ready().get()] {
            let cause = cause_of_death(result);
            assert!(cause.contains("invalid digit"), "{cause}");
            assert!(!cause.contains("argument failed"), "no argument has failed: {cause}");
            assert!(!cause.contains("invalid option"), "no option is invalid: {cause}");
        }
    });
}

#[test]
fn a_constructor_waits_for_its_arguments_and_calls_wait_for_it() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(2);
        let late = rt.submit(
            || {
                GATE.pass();
                40
            },
            (),
        );
        let actor = rt.actor(Counter::new, &late);
        let sum = actor.call(Counter::add, 2);
        give_others_a_chance();
        assert!(!sum.is_ready());
        GATE.open();
        assert_eq!(sum.get().unwrap(), 42);
    });
}

#[test]
fn a_constructor_whose_argument_failed_leaves_a_dead_actor_that_names_it() {
    watch(|| {
        let rt = local(2);
        let bad = rt.task(|| -> u32 { panic!("no luck") }).name("unlucky").submit(());
        let actor = rt.actor(Counter::new, &bad);
        let cause = cause_of_death(actor.call(Counter::value, ()).get());
        assert!(cause.contains("no luck") && cause.contains("unlucky"), "{cause}");
    });
}

// Names.

#[test]
fn a_named_actor_is_found_by_its_name() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).name("shared").start(1);
        actor.call(Counter::add, 1);
        let id = rt.submit(
            || {
                let found = Runtime::current().get_actor::<Counter>("shared").unwrap();
                found.call(Counter::add, 1);
                found.id()
            },
            (),
        );
        assert_eq!(id.get().unwrap(), actor.id());
        assert_eq!(actor.name(), Some("shared"));
        // The task has not waited for its call, and calls of different callers have no order.
        at_once("the call of the task has run", || actor.call(Counter::value, ()).get().unwrap() == 3);
    });
}

#[test]
fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
    watch(|| {
        let rt = local(1);
        let _actor = rt.actor_builder(Counter::new).name("alice").start(1);
        let error = rt.get_actor::<Counter>("bob").unwrap_err();
        assert!(matches!(&error, Error::ActorNotFound { name, .. } if name == "bob"), "{error:?}");
        assert!(error.to_string().contains("\"alice\""), "{error}");
    });
}

#[test]
fn a_name_of_an_actor_of_another_type_is_an_error_that_names_the_type() {
    watch(|| {
        let rt = local(1);
        let _actor = rt.actor_builder(Counter::new).name("alice").start(1);
        let error = rt.get_actor::<Vec<String>>("alice").unwrap_err();
        assert!(matches!(&error, Error::ActorNotFound { .. }), "{error:?}");
        assert!(error.to_string().contains("Counter"), "{error}");
    });
}

#[test]
fn a_name_that_is_taken_is_an_error() {
    watch(|| {
        let rt = local(1);
        let first = rt.actor_builder(Counter::new).name("alice").start(1);
        let error = rt.actor_builder(Counter::new).name("alice").try_start(2).unwrap_err();
        assert_eq!(error, Error::NameTaken { name: "alice".into() });
        let dead = rt.actor_builder(Counter::new).name("alice").start(2);
        let cause = cause_of_death(dead.call(Counter::value, ()).get());
        assert!(cause.contains("\"alice\"") && cause.contains("get_if_exists"), "{cause}");
        drop(dead);
        assert_eq!(rt.get_actor::<Counter>("alice").unwrap().id(), first.id());
    });
}

#[test]
fn get_if_exists_gives_all_who_come_at_once_the_same_actor() {
    static BUILT: AtomicUsize = AtomicUsize::new(0);
    fn build() -> Counter {
        BUILT.fetch_add(1, SeqCst);
        Counter::new(0)
    }
    fn get_or_create() -> Actor<Counter> {
        let actor = Runtime::current().actor_builder(build).name("one").get_if_exists(true).start(());
        actor.call(Counter::add, 1);
        actor
    }
    watch(|| {
        let rt = local(4);
        let tasks: Vec<_> = (0..100).map(|_| rt.submit(get_or_create, ())).collect();
        let actors = rt.get_all(&tasks).unwrap();
        assert!(actors.iter().all(|actor| actor.id() == actors[0].id()));
        assert_eq!(actors[0].call(Counter::value, ()).get().unwrap(), 100);
        assert_eq!(BUILT.load(SeqCst), 1);
    });
}

#[test]
fn a_name_is_free_again_when_its_actor_has_ended() {
    watch(|| {
        let rt = local(2);
        let first = rt.actor_builder(Counter::new).name("alice").start(1);
        first.kill();
        at_once("the name is free", || rt.get_actor::<Counter>("alice").is_err());
        let second = rt.actor_builder(Counter::new).name("alice").try_start(2).unwrap();
        drop(first);
        assert_eq!(rt.get_actor::<Counter>("alice").unwrap().call(Counter::value, ()).get().unwrap(), 2);
        drop(second);
        until("the name is free", || rt.get_actor::<Counter>("alice").is_err());
        let third = rt.actor_builder(Counter::new).name("alice").get_if_exists(true).try_start(3).unwrap();
        assert_eq!(third.call(Counter::value, ()).get().unwrap(), 3);
    });
}

#[test]
fn a_detached_actor_outlives_its_handles() {
    watch(|| {
        let rt = local(2);
        drop(rt.actor_builder(Counter::new).name("daemon").detached().start(7));
        give_others_a_chance();
        let found = rt.get_actor::<Counter>("daemon").unwrap();
        assert_eq!(found.call(Counter::value, ()).get().unwrap(), 7);
        found.kill();
        let is_gone = || matches!(rt.get_actor::<Counter>("daemon"), Err(Error::ActorNotFound { .. }));
        at_once("its name is free", is_gone);
    });
}

#[test]
fn a_detached_actor_needs_a_name() {
    watch(|| {
        let rt = local(1);
        let error = rt.actor_builder(Counter::new).detached().try_start(7).unwrap_err();
        assert!(matches!(&error, Error::InvalidOption { reason } if reason.contains("needs a name")), "{error:?}");
    });
}

// The end.

#[test]
fn when_the_last_handle_goes_the_actor_finishes_its_calls_and_frees_its_state() {
    struct State(Counted<0>);
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(|| State(Counted::new(5)), ());
        let calls: Vec<_> = (0..200).map(|x| actor.call(|s: &mut State, x: u64| s.0.value() + x, x)).collect();
        let other = actor.clone();
        drop(actor);
        drop(other);
        for (x, call) in calls.iter().enumerate() {
            assert_eq!(call.get().unwrap(), 5 + x as u64);
        }
        until("the state is freed", || Counted::<0>::live() == 0);
        until("the actor has gone", || rt.stats().actors == 0);
    });
}

#[test]
fn the_graceful_end_waits_for_calls_with_missing_arguments_and_for_async_ones() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(2);
        let late = rt.submit(
            || {
                GATE.pass();
                1
            },
            (),
        );
        let let_go = Queue::bounded(&rt, 1).unwrap();
        let actor = rt.actor(Counter::new, 0);
        let (hold, add) = (actor.call(Counter::hold, let_go.clone()), actor.call(Counter::add, &late));
        drop(actor);
        give_others_a_chance();
        GATE.open();
        let_go.put(()).unwrap();
        hold.get().unwrap();
        assert_eq!(add.get().unwrap(), 1);
        drop(let_go); // on a cluster it is kept by an actor
        until("the actor has gone", || rt.stats().actors == 0);
    });
}

#[test]
fn an_actor_whose_handle_goes_before_it_was_made_still_runs_its_calls() {
    static GATE: Gate = Gate::new();
    fn slow() -> Counter {
        GATE.pass();
        Counter::new(1)
    }
    watch(|| {
        let rt = local(2);
        let call = rt.actor(slow, ()).call(Counter::add, 1);
        give_others_a_chance();
        GATE.open();
        assert_eq!(call.get().unwrap(), 2);
        until("the actor has gone", || rt.stats().actors == 0);
    });
}

#[test]
fn an_actor_nobody_calls_ends_when_its_handle_goes() {
    struct State(#[allow(dead_code)] Counted<1>);
    watch(|| {
        let rt = local(2);
        for _ in 0..100 {
            drop(rt.actor(|| State(Counted::new(1)), ()));
        }
        until("all have gone", || rt.stats().actors == 0 && Counted::<1>::live() == 0);
    });
}

#[test]
fn kill_fails_the_calls_that_wait_and_tells_the_one_that_runs() {
    static RUNNING: AtomicBool = AtomicBool::new(false);
    fn run_on(_: &mut Counter) -> u32 {
        RUNNING.store(true, SeqCst);
        until("the call is told", || outray::task::context().is_cancelled());
        1
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).name("victim").start(0);
        let running = actor.call(run_on, ());
        let waiting = [actor.call(Counter::add, 1), actor.call(Counter::value, ())];
        until("the first call runs", || RUNNING.load(SeqCst));
        actor.kill();
        for call in [&running, &waiting[0], &waiting[1], &actor.call(Counter::value, ())] {
            let error = call.get().unwrap_err();
            assert!(matches!(&error, Error::ActorDied { origin, .. } if origin.name == "victim"), "{error:?}");
            assert!(error.to_string().contains("it was killed"), "{error}");
        }
        actor.kill();
        assert!(cause_of_death(actor.ready().get()).contains("killed"));
        until("the actor has gone", || rt.stats().actors == 0);
    });
}

#[test]
fn kill_drops_the_async_calls_that_wait_and_frees_the_state() {
    struct State(#[allow(dead_code)] Counted<2>);
    async fn wait(_: &State, queue: Queue<()>) {
        let _inside = Counted::<3>::new(0);
        queue.get_async().await.expect("the queue stays");
    }
    watch(|| {
        let rt = local(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let actor = rt.actor(|| State(Counted::new(1)), ());
        let calls = [actor.call(wait, queue.clone()), actor.call(wait, queue.clone())];
        until("both wait", || Counted::<3>::live() == 2);
        actor.kill();
        calls.iter().for_each(|call| assert!(cause_of_death(call.get()).contains("killed")));
        until("they are dropped", || Counted::<3>::live() == 0);
        drop(calls);
        drop(actor);
        until("the state is freed", || Counted::<2>::live() == 0);
    });
}

#[test]
fn kill_during_the_constructor_gives_the_actors_resources_back() {
    static GATE: Gate = Gate::new();
    fn slow() -> Counter {
        GATE.pass();
        Counter::new(0)
    }
    watch(|| {
        let rt = builder().cpus(2).resource("slot", 1.0).build().unwrap();
        let first = rt.actor_builder(slow).resource("slot", 1.0).start(());
        GATE.wait_for(1);
        first.kill();
        GATE.open();
        let second = rt.actor_builder(Counter::new).resource("slot", 1.0).start(5);
        assert_eq!(second.call(Counter::value, ()).get().unwrap(), 5);
    });
}

#[test]
fn kill_of_an_actor_that_waits_for_resources_ends_it() {
    watch(|| {
        let rt = builder().cpus(2).resource("slot", 1.0).build().unwrap();
        let first = rt.actor_builder(Counter::new).resource("slot", 1.0).start(1);
        first.ready().get().unwrap();
        let second = rt.actor_builder(Counter::new).resource("slot", 1.0).start(2);
        let call = second.call(Counter::value, ());
        second.kill();
        assert!(cause_of_death(call.get()).contains("killed"));
        first.kill();
        let third = rt.actor_builder(Counter::new).resource("slot", 1.0).start(3);
        assert_eq!(third.call(Counter::value, ()).get().unwrap(), 3);
    });
}

// Restarts.

#[test]
fn without_restarts_a_panic_in_an_exclusive_call_is_the_end() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Counter::new, 1);
        let (bad, next) = (actor.call(Counter::break_down, ()), actor.call(Counter::value, ()));
        assert!(matches!(bad.get(), Err(Error::Panicked { message, .. }) if message == "broken"));
        let cause = cause_of_death(next.get());
        assert!(cause.contains("broken") && cause.contains("max_restarts is 0"), "{cause}");
        assert!(cause_of_death(actor.call(Counter::value, ()).get()).contains("broken"));
    });
}

#[test]
fn a_restart_makes_the_state_anew_from_the_same_arguments() {
    watch(|| {
        let rt = local(2);
        let start = rt.submit(|| 30, ());
        let actor = rt.actor_builder(Counter::new).max_restarts(2).start(&start);
        drop(start);
        for round in 0..2 {
            let calls = [actor.call(Counter::add, 5), actor.call(Counter::break_down, ()), actor.call(Counter::add, 1)];
            assert_eq!(calls[0].get().unwrap(), 35 + round);
            assert!(matches!(calls[1].get(), Err(Error::Panicked { .. })));
            assert_eq!(calls[2].get().unwrap(), 31, "the call behind the panic runs on the new state");
        }
        if !on_cluster() {
            assert_eq!(rt.list_actors(&Filter::new()).unwrap()[0].restarts, 2);
        }
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        let cause = cause_of_death(actor.call(Counter::value, ()).get());
        assert!(cause.contains("it has used its 2 restarts"), "{cause}");
    });
}

#[test]
fn a_panic_in_an_async_exclusive_call_restarts_too() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).max_restarts(1).start(3);
        let calls = [actor.call(Counter::break_down_later, ()), actor.call(Counter::add, 1)];
        assert!(matches!(calls[0].get(), Err(Error::Panicked { message, .. }) if message == "broken later"));
        assert_eq!(calls[1].get().unwrap(), 4);
    });
}

#[test]
fn a_panic_in_a_shared_call_costs_neither_state_nor_restart() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(Counter::new, 3);
        actor.call(Counter::add, 1);
        assert!(matches!(actor.call(Counter::complain, ()).get(), Err(Error::Panicked { .. })));
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 4);
    });
}

#[test]
fn a_restart_that_fails_ends_the_actor_and_says_both_causes() {
    static BUILT: AtomicU32 = AtomicU32::new(0);
    fn once() -> Counter {
        assert!(BUILT.fetch_add(1, SeqCst) == 0, "only once");
        Counter::new(0)
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(once).max_restarts(5).start(());
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        let cause = cause_of_death(actor.call(Counter::value, ()).get());
        assert!(cause.contains("broken") && cause.contains("only once"), "{cause}");
        assert_eq!(BUILT.load(SeqCst), 2);
    });
}

#[test]
fn a_fallible_constructor_restarts_too() {
    fn parse(text: String) -> Result<Counter, std::num::ParseIntError> {
        text.parse().map(Counter::new)
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(parse).max_restarts(1).fallible().start("12");
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 12);
    });
}

#[test]
fn a_constructor_may_use_the_current_runtime_also_at_a_restart() {
    struct Parent {
        child: Actor<Counter>,
    }
    fn parent() -> Parent {
        Parent { child: Runtime::current().actor(Counter::new, 8) }
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(parent).max_restarts(1).start(());
        assert!(actor.call(|_: &mut Parent| -> u32 { panic!("once") }, ()).get().is_err());
        let value = actor.call(|parent: &Parent| parent.child.call(Counter::value, ()).get().unwrap(), ());
        assert_eq!(value.get().unwrap(), 8);
    });
}

#[test]
fn a_call_with_retries_runs_again_after_the_restart() {
    fn third_time_lucky(counter: &mut Counter) -> (u32, u32) {
        counter.value += 1;
        let attempt = outray::task::context().attempt();
        assert!(attempt == 3, "attempt {attempt}");
        (attempt, counter.value)
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).max_restarts(5).start(10);
        let call = actor.method(third_time_lucky).retries(2).call(());
        assert_eq!(call.get().unwrap(), (3, 11), "each attempt starts from a new state");
        let call = actor.method(third_time_lucky).retries(1).call(());
        let error = call.get().unwrap_err();
        assert!(matches!(&error, Error::Panicked { message, .. } if message == "attempt 2"), "{error:?}");
        assert!(error.to_string().contains("attempt 2"), "{error}");
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 10);
    });
}

#[test]
fn retries_end_with_the_restarts() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    fn fail(_: &mut Counter) -> u32 {
        RUNS.fetch_add(1, SeqCst);
        panic!("always")
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).max_restarts(2).start(0);
        let call = actor.method(fail).retries(100).call(());
        assert!(matches!(call.get(), Err(Error::Panicked { .. })));
        assert_eq!(RUNS.load(SeqCst), 3);
        cause_of_death(actor.call(Counter::value, ()).get());
    });
}

#[test]
fn an_async_exclusive_call_with_retries_runs_again_too() {
    async fn second_time_lucky(counter: &mut Counter) -> u32 {
        counter.value += 1;
        outray::sleep(Duration::ZERO).await;
        assert!(outray::task::context().attempt() == 2, "not yet");
        counter.value
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).max_restarts(5).start(10);
        let call = actor.method(second_time_lucky).retries(3).call(());
        assert_eq!(call.get().unwrap(), 11);
    });
}

// Checkpoints.

#[test]
fn a_checkpoint_and_the_calls_since_bring_back_the_state_before_the_panic() {
    watch(|| {
        let rt = local(2);
        for every in [1, 2, 3, 7, 100] {
            let actor = rt.actor_builder(Counter::new).checkpoint_every(every).max_restarts(3).start(0);
            for round in 1..=3 {
                (0..7).for_each(|_| drop(actor.call(Counter::add, 1)));
                let bad = actor.call(Counter::break_down, ());
                let value = actor.call(Counter::value, ());
                assert!(matches!(bad.get(), Err(Error::Panicked { .. })));
                assert_eq!(value.get().unwrap(), round * 7, "checkpoint_every({every}), round {round}");
            }
        }
    });
}

#[test]
fn a_replay_runs_the_calls_since_the_checkpoint_once_and_no_others() {
    static RUNS: Notes<10> = Notes::new();
    fn note(counter: &mut Counter, item: u32) {
        RUNS.push(item as usize);
        counter.value = counter.value * 10 + item;
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).checkpoint_every(3).max_restarts(1).start(0);
        (1..=5).for_each(|item| drop(actor.call(note, item)));
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 12345);
        assert_eq!(RUNS.all(), [1, 2, 3, 4, 5, 4, 5]);
    });
}

#[test]
fn with_checkpoint_and_retries_each_call_takes_effect_exactly_once() {
    /// Each third call panics at its first attempt.
    static FAILED: Notes<50> = Notes::new();
    fn add_in_two_steps(counter: &mut Counter, by: u32) {
        counter.value += by;
        if by.is_multiple_of(3) && !FAILED.all().contains(&(by as usize)) {
            FAILED.push(by as usize);
            panic!("between the steps");
        }
        counter.value += by;
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).checkpoint_every(4).max_restarts(1000).start(0);
        let calls: Vec<_> = (1..=50).map(|by| actor.method(add_in_two_steps).retries(1).call(by)).collect();
        calls.iter().for_each(|call| call.get().unwrap());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 2 * (1..=50).sum::<u32>());
        if !on_cluster() {
            assert_eq!(rt.list_actors(&Filter::new()).unwrap()[0].restarts, 16);
        }
    });
}

#[test]
fn a_replay_has_the_values_that_handles_had() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).checkpoint_every(100).max_restarts(1).start(0);
        for by in [3, 4] {
            let handle = rt.submit(|by: u32| by, by);
            actor.call(Counter::add, &handle).get().unwrap();
        }
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 7);
    });
}

#[test]
fn a_replayed_call_has_a_context_and_a_runtime() {
    fn add_by_task(counter: &mut Counter, by: u32) {
        let _known = outray::task::context().name().to_owned();
        counter.value += Runtime::current().submit(|by: u32| by, by).get().unwrap();
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).checkpoint_every(100).max_restarts(1).start(0);
        actor.call(add_by_task, 3).get().unwrap();
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 3);
    });
}

#[test]
fn async_exclusive_calls_are_in_the_checkpoint() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).checkpoint_every(100).max_restarts(2).start(0);
        actor.call(Counter::add, 1);
        actor.call(Counter::add_later, 10);
        actor.call(Counter::add, 100);
        assert!(actor.call(Counter::break_down_later, ()).get().is_err());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 111);
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), 111);
    });
}

#[test]
fn a_cancelled_async_exclusive_call_leaves_what_it_changed_also_after_a_restart() {
    static CHANGED: AtomicBool = AtomicBool::new(false);
    async fn change_and_wait(counter: &mut Counter, queue: Queue<()>) {
        counter.value += 10;
        CHANGED.store(true, SeqCst);
        queue.get_async().await.expect("the queue stays");
    }
    watch(|| {
        let rt = local(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let actor = rt.actor_builder(Counter::new).checkpoint_every(1).max_restarts(1).start(0);
        let call = actor.call(change_and_wait, queue.clone());
        until("the state is changed", || CHANGED.load(SeqCst));
        call.cancel();
        let seen = actor.call(Counter::value, ()).get().unwrap();
        assert_eq!(seen, 10);
        assert!(actor.call(Counter::break_down, ()).get().is_err());
        assert_eq!(actor.call(Counter::value, ()).get().unwrap(), seen, "the restart changed what others had seen");
    });
}

#[test]
fn a_state_that_cannot_be_saved_is_an_error_at_the_start() {
    #[derive(Serialize, Deserialize)]
    struct Secret {
        #[serde(serialize_with = "refuse")]
        key: u32,
    }
    fn refuse<S: serde::Serializer>(_: &u32, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("the key stays here"))
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(|| Secret { key: 1 }).checkpoint_every(1).start(());
        let cause = cause_of_death(actor.call(|secret: &Secret| secret.key, ()).get());
        assert!(cause.contains("the key stays here") && cause.contains("serialization"), "{cause}");
    });
}

// Destructors that panic.

#[test]
fn a_state_whose_destructor_panics_ends_its_actor_and_hangs_nobody() {
    struct Touchy;
    impl Drop for Touchy {
        fn drop(&mut self) {
            panic!("do not drop me");
        }
    }
    watch(|| {
        let rt = local(2);
        let actor = rt.actor(|| Touchy, ());
        let (bad, next) = (actor.call(|_: &mut Touchy| -> u32 { panic!("boom") }, ()), actor.call(|_: &Touchy| 1, ()));
        assert!(matches!(bad.get(), Err(Error::Panicked { message, .. }) if message == "boom"));
        cause_of_death(next.get());
        until("the actor has gone", || rt.stats().actors == 0);
        assert_eq!(rt.submit(|| 1, ()).get().unwrap(), 1);
    });
}

#[test]
fn a_result_whose_destructor_panics_does_not_stop_the_actor() {
    #[derive(Serialize, Deserialize)]
    struct Touchy;
    impl Drop for Touchy {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("do not drop me");
            }
        }
    }
    watch(|| {
        let rt = local(2);
        let let_go = Queue::bounded(&rt, 1).unwrap();
        let actor = rt.actor(Counter::new, 0);
        actor.call(Counter::hold, let_go.clone());
        // Nobody holds the result, so it is dropped where the call ends.
        drop(actor.call(|_: &mut Counter| Touchy, ()));
        drop(actor.call(|_: &Counter| Touchy, ()));
        let last = actor.call(Counter::add, 4);
        let_go.put(()).unwrap();
        assert_eq!(last.get().unwrap(), 4);
    });
}

// Resources.

#[test]
fn an_actor_holds_its_resources_for_life() {
    watch(|| {
        let rt = builder().cpus(2).resource("slot", 1.0).build().unwrap();
        let first = rt.actor_builder(Counter::new).name("first").resource("slot", 1.0).start(1);
        first.call(Counter::add, 1).get().unwrap();
        let second = rt.actor_builder(Counter::new).resource("slot", 1.0).start(2);
        let value = second.call(Counter::value, ());
        give_others_a_chance();
        assert!(!value.is_ready(), "the second started while the first lived");
        assert_eq!(rt.stats().waiting_for_resources, 1);
        let why = rt.explain(&value).to_string();
        assert!(why.contains("slot"), "{why}");
        first.kill();
        assert_eq!(value.get().unwrap(), 2);
        drop(second);
        let third = rt.actor_builder(Counter::new).resource("slot", 1.0).start(3);
        assert_eq!(third.call(Counter::value, ()).get().unwrap(), 3, "given back at the graceful end too");
    });
}

#[test]
fn actors_with_gpus_have_devices_of_their_own() {
    fn devices(_: &Counter) -> Vec<(usize, f64)> {
        outray::task::context().gpus()
    }
    watch(|| {
        let rt = builder().cpus(2).gpus(2).build().unwrap();
        let actors = [0, 1].map(|_| rt.actor_builder(Counter::new).gpus(1.0).start(0));
        let leased = actors.each_ref().map(|actor| actor.call(devices, ()).get().unwrap());
        assert!(leased.iter().all(|devices| devices.len() == 1 && devices[0].1 == 1.0), "{leased:?}");
        assert_ne!(leased[0][0].0, leased[1][0].0);
    });
}

#[test]
fn an_actor_with_cpus_leaves_the_rest_to_others_until_it_ends() {
    watch(|| {
        let rt = local(2);
        let actor = rt.actor_builder(Counter::new).cpus(1.0).start(0);
        actor.ready().get().unwrap();
        until("one CPU is left", || rt.stats().cpus_free == 1.0);
        assert_eq!(actor.call(Counter::add, 1).get().unwrap(), 1);
        assert_eq!(rt.submit(|| 5, ()).get().unwrap(), 5);
        let wide = rt.task(|| 6).cpus(2.0).submit(());
        give_others_a_chance();
        assert!(!wide.is_ready(), "three CPUs of two were used");
        drop(actor);
        assert_eq!(wide.get().unwrap(), 6);
        until("all CPUs are free", || rt.stats().cpus_free == 2.0);
    });
}

#[test]
fn actors_that_hold_all_cpus_still_serve_each_other() {
    fn ask(other: &mut Actor<Counter>) -> u32 {
        other.call(Counter::add, 1).get().unwrap()
    }
    watch(|| {
        let rt = local(2);
        let counter = rt.actor_builder(Counter::new).cpus(1.0).start(0);
        let asking = rt.actor_builder(|other: Actor<Counter>| other).cpus(1.0).start(counter.clone());
        for expected in 1..=100 {
            assert_eq!(asking.call(ask, ()).get().unwrap(), expected);
        }
    });
}

#[test]
fn an_actor_that_asks_for_what_is_not_there_is_an_error_that_says_what() {
    watch(|| {
        let rt = builder().cpus(2).gpus(0).build().unwrap();
        // The nodes of a cluster say so later.
        let error = match (rt.actor_builder(Counter::new).gpus(1.0).try_start(0), on_cluster()) {
            (Ok(actor), true) => actor.ready().get().unwrap_err(),
            (started, _) => started.map(|_| ()).unwrap_err(),
        };
        assert!(on_cluster() || matches!(&error, Error::Infeasible { .. }), "{error:?}");
        assert!(error.to_string().contains("1 GPUs wanted, 0 there"), "{error}");
        let dead = rt.actor_builder(Counter::new).name("big").cpus(3.0).start(0);
        let cause = cause_of_death(dead.call(Counter::value, ()).get());
        assert!(cause.contains("3 CPUs wanted, 2 there"), "{cause}");
        at_once("the name is free", || rt.actor_builder(Counter::new).name("big").try_start(0).is_ok());
    });
}

#[test]
fn a_failed_constructor_gives_its_resources_back() {
    watch(|| {
        let rt = builder().cpus(2).resource("slot", 1.0).build().unwrap();
        for _ in 0..3 {
            let bad = rt.actor_builder(|| -> Counter { panic!("no") }).resource("slot", 1.0).start(());
            assert!(bad.ready().get().is_err());
        }
        let good = rt.actor_builder(Counter::new).resource("slot", 1.0).start(3);
        assert_eq!(good.call(Counter::value, ()).get().unwrap(), 3);
    });
}

// Where handles may go.

#[test]
fn handles_can_be_passed_to_tasks_and_inside_values() {
    #[derive(Serialize, Deserialize)]
    struct Job {
        counter: Actor<Counter>,
        by: ObjectRef<u32>,
    }
    fn work(jobs: Vec<Job>) -> u32 {
        jobs.iter().for_each(|job| drop(job.counter.call(Counter::add, &job.by)));
        jobs[0].counter.call(Counter::value, ()).get().unwrap()
    }
    watch(|| {
        for check in [false, true] {
            let rt = builder().cpus(2).check_serialization(check).build().unwrap();
            let counter = rt.actor(Counter::new, 0);
            let jobs: Vec<_> = (1..=3).map(|by| Job { counter: counter.clone(), by: rt.put(by) }).collect();
            assert_eq!(rt.submit(work, jobs).get().unwrap(), 6);
        }
    });
}

#[test]
fn handles_stored_in_other_actors_keep_them_alive() {
    struct Front {
        back: Option<Actor<Counter>>,
    }
    impl Front {
        fn new() -> Self {
            Front { back: None }
        }
        fn set(&mut self, back: Actor<Counter>) {
            self.back = Some(back);
        }
        fn ask(&self) -> ObjectRef<u32> {
            self.back.as_ref().expect("it was set").call(Counter::add, 1)
        }
    }
    watch(|| {
        let rt = local(2);
        let front = rt.actor(Front::new, ());
        front.call(Front::set, rt.actor(Counter::new, 0)).get().unwrap();
        give_others_a_chance();
        for expected in 1..=3 {
            // A handle as a result is a handle.
            assert_eq!(front.call(Front::ask, ()).get().unwrap().get().unwrap(), expected);
        }
        drop(front);
        until("both have gone", || rt.stats().actors == 0);
    });
}

#[test]
fn an_actor_may_start_actors_and_hand_them_out() {
    struct Factory;
    impl Factory {
        fn make(&mut self, value: u32) -> Actor<Counter> {
            Runtime::current().actor(Counter::new, value)
        }
    }
    watch(|| {
        let rt = local(2);
        let factory = rt.actor(|| Factory, ());
        let made: Vec<_> = (0..10).map(|value| factory.call(Factory::make, value)).collect();
        for (value, actor) in made.into_iter().enumerate() {
            assert_eq!(actor.take().unwrap().call(Counter::value, ()).get().unwrap(), value as u32);
        }
        drop(factory);
        until("all have gone", || rt.stats().actors == 0);
    });
}
