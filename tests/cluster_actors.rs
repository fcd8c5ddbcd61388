//! Actors on a cluster of real processes.

mod common;

use common::{until, watch};
use outray::{Actor, ActorPool, Error, LocalCluster, ObjectRef, Runtime, Strategy, task};

struct Counter(i64);

impl Counter {
    fn new(start: i64) -> Self {
        Counter(start)
    }
    fn add(&mut self, by: i64) -> i64 {
        self.0 += by;
        self.0
    }
    fn value(&self) -> i64 {
        self.0
    }
    async fn later(&self) -> i64 {
        self.0
    }
    fn fail(&mut self) -> i64 {
        panic!("out of order")
    }
    fn pid(&self) -> u32 {
        std::process::id()
    }
    fn exit(&self) {
        std::process::abort();
    }
}

fn cluster(nodes: usize) -> (LocalCluster, Runtime) {
    let cluster = LocalCluster::start(nodes).unwrap();
    let rt = cluster.connect().unwrap();
    (cluster, rt)
}

#[test]
fn calls_of_one_caller_keep_their_order() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let counter = rt.actor(Counter::new, 10);
        let calls: Vec<_> = (1..=100).map(|n| counter.call(Counter::add, n)).collect();
        let expected: Vec<i64> = (1..=100).map(|n| 10 + n * (n + 1) / 2).collect();
        assert_eq!(rt.get_all(&calls).unwrap(), expected);
        assert_eq!(counter.call(Counter::later, ()).get(), Ok(5060));
        assert_ne!(counter.call(Counter::pid, ()).get().unwrap(), std::process::id());
    });
}

#[test]
fn calls_of_each_caller_keep_their_order_from_every_node() {
    const CALLS: u32 = 500;
    /// Who called with what, in the order in which it came.
    #[derive(Default)]
    struct Log(Vec<(u8, u32)>);
    impl Log {
        fn note(&mut self, caller: u8, number: u32) {
            self.0.push((caller, number));
        }
        fn notes(&self) -> Vec<(u8, u32)> {
            self.0.clone()
        }
        fn len(&self) -> usize {
            self.0.len()
        }
    }
    /// Waits for none of them.
    fn call(log: Actor<Log>, caller: u8) -> String {
        (0..CALLS).for_each(|number| drop(log.call(Log::note, (caller, number))));
        task::context().node().to_owned()
    }
    struct Caller(Actor<Log>);
    impl Caller {
        fn new(log: Actor<Log>) -> Self {
            Caller(log)
        }
        fn call(&mut self, caller: u8) -> String {
            call(self.0.clone(), caller)
        }
    }
    watch(|| {
        let (cluster, rt) = cluster(3);
        let nodes = cluster.nodes();
        let on = |node: usize| Strategy::Node { name: nodes[node].to_owned(), soft: false };
        let log = rt.actor_builder(Log::default).strategy(on(0)).start(());
        let caller = rt.actor_builder(Caller::new).strategy(on(2)).start(log.clone());
        let tasks = [1, 2].map(|node| rt.task(call).strategy(on(node)).submit((log.clone(), node as u8)));
        let third = caller.call(Caller::call, 3);
        (0..CALLS).for_each(|number| drop(log.call(Log::note, (0, number))));
        let places = [tasks[0].get(), tasks[1].get(), third.get()];
        assert_eq!(places, [1, 2, 2].map(|node| Ok(nodes[node].to_owned())));
        until("all have come", || log.call(Log::len, ()).get() == Ok(4 * CALLS as usize));
        let notes = log.call(Log::notes, ()).get().unwrap();
        for caller in 0..4 {
            let numbers = notes.iter().filter(|note| note.0 == caller).map(|note| note.1);
            assert!(numbers.eq(0..CALLS), "calls of {caller} came in another order: {notes:?}");
        }
    });
}

#[test]
fn a_call_whose_argument_is_late_holds_up_later_calls_of_its_caller() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let list = rt.actor(Vec::<u32>::new, ());
        let late = rt.submit(
            || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                1
            },
            (),
        );
        list.call(Vec::push, &late);
        list.call(Vec::push, 2u32);
        let all = list.call(|list: &mut Vec<u32>| list.clone(), ());
        assert_eq!(all.get(), Ok(vec![1, 2]));
    });
}

#[test]
fn handles_go_to_tasks_and_to_other_actors() {
    struct Holder(Actor<Counter>);
    impl Holder {
        fn new(counter: Actor<Counter>) -> Self {
            Holder(counter)
        }
        fn add(&self, by: i64) -> ObjectRef<i64> {
            self.0.call(Counter::add, by)
        }
    }
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let counter = rt.actor(Counter::new, 0);
        let adds: Vec<_> = (0..4)
            .map(|_| {
                let add = |counter: Actor<Counter>| {
                    for _ in 0..10 {
                        counter.call(Counter::add, 1).get().unwrap();
                    }
                };
                rt.submit(add, counter.clone())
            })
            .collect();
        rt.get_all(&adds).unwrap();
        assert_eq!(counter.call(Counter::value, ()).get(), Ok(40));
        let holder = rt.actor(Holder::new, counter.clone());
        drop(counter);
        let handle = holder.call(Holder::add, 2).get().unwrap();
        assert_eq!(handle.get(), Ok(42));
        assert_eq!(holder.call(Holder::add, 1).get().unwrap().get(), Ok(43));
    });
}

#[test]
fn names_restarts_checkpoints_and_kills() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let log = rt.actor_builder(Counter::new).name("log").max_restarts(1).start(5);
        assert_eq!(log.call(Counter::add, 1).get(), Ok(6));
        let error = log.call(Counter::fail, ()).get().unwrap_err();
        assert!(matches!(&error, Error::Panicked { message, .. } if message == "out of order"), "{error}");
        let same = rt.get_actor::<Counter>("log").unwrap();
        assert_eq!(same.call(Counter::value, ()).get(), Ok(5));
        let error = rt.actor_builder(Counter::new).name("log").try_start(1).unwrap_err();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        let again = rt.actor_builder(Counter::new).name("log").get_if_exists(true).start(1);
        assert_eq!(again.call(Counter::value, ()).get(), Ok(5));
        let error = rt.get_actor::<String>("log").unwrap_err();
        assert!(error.to_string().contains("Counter"), "{error}");
        let error = rt.get_actor::<Counter>("nobody").unwrap_err();
        assert!(error.to_string().contains("log"), "{error}");
        log.kill();
        let error = log.call(Counter::value, ()).get().unwrap_err();
        assert!(matches!(&error, Error::ActorDied { cause, .. } if cause == "it was killed"), "{error}");
        let kept = rt.actor_builder(Vec::<u32>::new).checkpoint_every(2).max_restarts(2).start(());
        for n in 0..3 {
            kept.call(Vec::push, n);
        }
        kept.call(|_: &mut Vec<u32>| -> u32 { panic!("now") }, ());
        assert_eq!(kept.call(|list: &mut Vec<u32>| list.clone(), ()).get(), Ok(vec![0, 1, 2]));
    });
}

#[test]
fn an_actor_that_waits_for_resources_is_killed_from_another_process() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).resource("slot", 1.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let first = rt.actor_builder(Counter::new).resource("slot", 1.0).start(1);
        first.ready().get().unwrap();
        let second = rt.actor_builder(Counter::new).name("second").resource("slot", 1.0).start(2);
        let call = second.call(Counter::value, ());
        rt.submit(|| Runtime::current().get_actor::<Counter>("second").unwrap().kill(), ()).get().unwrap();
        for error in [call.get().unwrap_err(), second.ready().get().unwrap_err()] {
            assert!(matches!(&error, Error::ActorDied { cause, .. } if cause == "it was killed"), "{error}");
        }
        until("its name is free", || rt.get_actor::<Counter>("second").is_err());
    });
}

#[test]
fn a_constructor_that_fails_says_why_to_all_calls() {
    watch(|| {
        let (_cluster, rt) = cluster(1);
        let bad = rt.actor(|| -> Counter { panic!("no state") }, ());
        let error = bad.call(Counter::value, ()).get().unwrap_err();
        assert!(matches!(&error, Error::ActorDied { cause, .. } if cause.contains("no state")), "{error}");
        let parse = |text: String| text.parse::<i64>().map(Counter);
        let bad = rt.actor_builder(parse).fallible().start("ten");
        let error = bad.call(Counter::value, ()).get().unwrap_err();
        assert!(error.to_string().contains("invalid digit"), "{error}");
        assert!(bad.ready().get().is_err());
        let good = rt.actor_builder(parse).fallible().start("10");
        assert_eq!(good.call(Counter::value, ()).get(), Ok(10));
    });
}

#[test]
fn an_actor_whose_process_dies_starts_again_if_it_may() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let brave = rt.actor_builder(Counter::new).max_restarts(3).start(1);
        let first = brave.call(Counter::pid, ()).get().unwrap();
        assert!(brave.call(Counter::exit, ()).get().is_err());
        until("it runs again", || brave.call(Counter::pid, ()).get().is_ok_and(|pid| pid != first));
        assert_eq!(brave.call(Counter::value, ()).get(), Ok(1));
        let timid = rt.actor(Counter::new, 1);
        let error = timid.call(Counter::exit, ()).get().unwrap_err();
        assert!(matches!(error, Error::ActorDied { .. }), "{error}");
        until("it is known to be dead", || timid.call(Counter::value, ()).get().is_err());
    });
}

#[test]
fn a_pool_uses_all_of_its_actors() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let pool = ActorPool::new((0..2).map(|_| rt.actor(Counter::new, 0)).collect()).unwrap();
        assert_eq!(pool.map(Counter::add, [1, 1, 1, 1]).unwrap().len(), 4);
    });
}
