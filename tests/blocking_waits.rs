//! Blocking is safe: `get` inside tasks and actors at any depth, locks held across it, and waits
//! that would never end.

mod common;

use common::{
    AtomicBool, AtomicUsize, Gate, alone, assert_cycle, give_others_a_chance, local, local_only, meet, members, until,
    watch,
};
use outray::{Actor, ActorPool, Error, ObjectRef, Queue, Result, Runtime};
use std::{
    future::{Future, IntoFuture},
    pin::{Pin, pin},
    sync::{Arc, Mutex, TryLockError, atomic::Ordering::SeqCst},
    task::{Context, Wake, Waker},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);

struct Idle;

fn idle() -> Idle {
    Idle
}

// Depth.

#[test]
fn nested_gets_thousands_deep_in_tasks() {
    fn nest(depth: u32) -> u32 {
        match depth {
            0 => 0,
            _ => 1 + Runtime::current().submit(nest, depth - 1).get().unwrap(),
        }
    }
    watch(|| {
        for cpus in [1, 2] {
            assert_eq!(local(cpus).submit(nest, 3000).get().unwrap(), 3000);
        }
    });
}

#[test]
fn nested_awaits_thousands_deep_in_tasks() {
    fn nest(depth: u32) -> Pin<Box<dyn Future<Output = u32> + Send>> {
        Box::pin(async move {
            match depth {
                0 => 0,
                _ => 1 + Runtime::current().submit(nest, depth - 1).await.unwrap(),
            }
        })
    }
    watch(|| {
        for cpus in [1, 2] {
            assert_eq!(local(cpus).submit(nest, 3000).get().unwrap(), 3000);
        }
    });
}

#[test]
fn nested_gets_a_thousand_deep_in_actors() {
    struct Link(Option<Actor<Link>>);
    impl Link {
        fn new(next: Option<Actor<Link>>) -> Self {
            Link(next)
        }
        fn length(&mut self) -> u32 {
            self.0.as_ref().map_or(1, |next| 1 + next.call(Link::length, ()).get().unwrap())
        }
        fn length_shared(&self) -> u32 {
            self.0.as_ref().map_or(1, |next| 1 + next.call(Link::length_shared, ()).get().unwrap())
        }
        async fn length_async(&mut self) -> u32 {
            match &self.0 {
                None => 1,
                Some(next) => 1 + next.call(Link::length_later, ()).await.unwrap(),
            }
        }
        fn length_later(&mut self) -> Pin<Box<dyn Future<Output = u32> + Send + '_>> {
            Box::pin(self.length_async())
        }
    }
    watch(|| {
        // On a cluster each call goes over a node, and takes so much longer.
        let depth = if common::on_cluster() { 300 } else { 1200 };
        for cpus in [1, 2] {
            let rt = local(cpus);
            let mut chain = rt.actor(Link::new, None);
            for _ in 1..depth {
                chain = rt.actor(Link::new, Some(chain));
            }
            assert_eq!(chain.call(Link::length, ()).get().unwrap(), depth);
            assert_eq!(chain.call(Link::length_shared, ()).get().unwrap(), depth);
            assert_eq!(chain.call(Link::length_async, ()).get().unwrap(), depth);
        }
    });
}

#[test]
fn tasks_and_actors_nested_in_each_other() {
    struct Relay;
    impl Relay {
        fn down(&mut self, depth: u32) -> u32 {
            Runtime::current().submit(down, depth).get().unwrap()
        }
    }
    fn down(depth: u32) -> u32 {
        match depth {
            0 => 0,
            _ => 1 + Runtime::current().actor(|| Relay, ()).call(Relay::down, depth - 1).get().unwrap(),
        }
    }
    watch(|| {
        for cpus in [1, 2] {
            assert_eq!(local(cpus).submit(down, 500).get().unwrap(), 500);
        }
    });
}

#[test]
fn a_tree_of_blocking_tasks_is_summed() {
    fn fib(n: u32) -> u32 {
        if n < 2 {
            return n;
        }
        let rt = Runtime::current();
        let (a, b) = (rt.submit(fib, n - 1), rt.submit(fib, n - 2));
        a.get().unwrap() + b.get().unwrap()
    }
    watch(|| {
        for cpus in [1, 2, 4] {
            assert_eq!(local(cpus).submit(fib, 16).get().unwrap(), 987);
        }
    });
}

#[test]
fn at_the_bottom_of_a_thousand_gets_all_cpus_are_at_work() {
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    fn nest(depth: u32) {
        let rt = Runtime::current();
        if depth > 0 {
            return rt.submit(nest, depth - 1).get().unwrap();
        }
        let both = [rt.submit(|| meet(&PLACE, 2), ()), rt.submit(|| meet(&PLACE, 2), ())];
        both.iter().for_each(|task| task.get().unwrap());
    }
    watch(|| local(2).submit(nest, 1000).get().unwrap());
}

#[test]
fn tasks_that_block_leave_all_cpus_to_others() {
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    static BLOCKED: AtomicUsize = AtomicUsize::new(0);
    fn block(never: ObjectRef<()>) {
        BLOCKED.fetch_add(1, SeqCst);
        // With a time limit it does not help, so the thread blocks.
        never.get_timeout(HOUR).unwrap();
    }
    async fn wait(queue: Queue<()>) {
        queue.get_async().await.unwrap();
    }
    watch(|| {
        let rt = local(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let later = rt.submit(wait, queue.clone());
        let blocked: Vec<_> = (0..40).map(|_| rt.submit(block, later.clone())).collect();
        until("all block", || BLOCKED.load(SeqCst) == 40);
        let both = [rt.submit(|| meet(&PLACE, 2), ()), rt.submit(|| meet(&PLACE, 2), ())];
        both.iter().for_each(|task| task.get().unwrap());
        queue.put(()).unwrap();
        blocked.iter().for_each(|task| task.get().unwrap());
    });
}

// Locks.

/// What a task that must not run inside another finds.
fn lock_is_free(lock: &Mutex<()>) -> bool {
    !matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
}

#[test]
fn a_lock_held_across_get_of_a_task_does_not_meet_other_tasks() {
    static LOCK: Mutex<()> = Mutex::new(()); // on a cluster each worker has one
    static TOTAL: AtomicUsize = AtomicUsize::new(0);
    fn with_lock() {
        let _lock = LOCK.lock().unwrap();
        let one = Runtime::current().submit(|| 1, ()).get().unwrap();
        TOTAL.fetch_add(one, SeqCst);
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            TOTAL.store(0, SeqCst);
            let tasks: Vec<_> = (0..200).map(|_| rt.submit(with_lock, ())).collect();
            tasks.iter().for_each(|task| task.get().unwrap());
            assert_eq!(TOTAL.load(SeqCst), 200);
        }
    });
}

#[test]
fn a_lock_held_across_get_of_a_shared_call_does_not_meet_the_calls_behind_it() {
    local_only!("about which call a waiting thread runs itself");
    static LOCK: Mutex<()> = Mutex::new(());
    fn with_lock(actor: Actor<Idle>) -> bool {
        let guard = LOCK.lock().unwrap();
        let wanted = actor.call(|_: &Idle| (), ());
        let behind = actor.call(|_: &Idle| lock_is_free(&LOCK), ());
        wanted.get().unwrap();
        let ran_here = behind.is_ready() && !behind.get().unwrap();
        drop(guard);
        behind.get().unwrap();
        !ran_here
    }
    watch(|| {
        // One CPU, so that nobody else can have run it.
        let rt = local(1);
        let actor = rt.actor(idle, ());
        actor.ready().get().unwrap();
        for _ in 0..20 {
            let task = rt.submit(with_lock, actor.clone());
            assert!(task.get().unwrap(), "a call that nobody waits for ran under the lock of a waiting task");
        }
    });
}

#[test]
fn a_lock_held_across_get_of_a_call_does_not_meet_the_calls_of_others_behind_it() {
    static LOCK: Mutex<()> = Mutex::new(());
    fn this_thread() -> String {
        format!("{:?}", std::thread::current().id())
    }
    fn call_behind(actor: Actor<Idle>) -> ObjectRef<String> {
        actor.call(|_: &mut Idle| this_thread(), ())
    }
    fn with_lock(actor: Actor<Idle>) -> bool {
        let guard = LOCK.lock().unwrap();
        let rt = Runtime::current();
        let missing = rt.submit(|| 1, ());
        // The first call leaves the row, because its argument is not there, and the second lines up behind it.
        let first = actor.call(|_: &mut Idle, _: u32| (), &missing);
        let wanted = actor.call(|_: &mut Idle| (), ());
        let behind = rt.submit(call_behind, actor).get().unwrap();
        wanted.get().unwrap();
        // Another thread may have run it meanwhile.
        let ran_here = behind.is_ready() && behind.get().unwrap() == this_thread();
        drop(guard);
        first.get().unwrap();
        behind.get().unwrap();
        !ran_here
    }
    watch(|| {
        let rt = local(1);
        let actor = rt.actor(idle, ());
        actor.ready().get().unwrap();
        for _ in 0..20 {
            let task = rt.submit(with_lock, actor.clone());
            assert!(task.get().unwrap(), "a call that nobody waits for ran under the lock of a waiting task");
        }
    });
}

#[test]
fn a_lock_held_across_get_of_a_call_that_waits_for_room_does_not_meet_other_calls() {
    static LOCK: Mutex<()> = Mutex::new(());
    async fn hold(_: &Idle, queue: Queue<()>) {
        queue.get_async().await.unwrap();
    }
    fn with_lock(actor: Actor<Idle>, queue: Queue<()>) -> bool {
        let guard = LOCK.lock().unwrap();
        let wanted = actor.method(|_: &Idle| ()).group("io").call(());
        let behind = actor.call(|_: &Idle| lock_is_free(&LOCK), ());
        let let_go = Runtime::current().submit(|queue: Queue<()>| queue.put(()).unwrap(), queue);
        wanted.get().unwrap();
        drop(guard);
        let_go.get().unwrap();
        behind.get().unwrap()
    }
    watch(|| {
        let rt = local(1);
        let actor = rt.actor_builder(idle).concurrency_group("io", 1).start(());
        let queue = Queue::bounded(&rt, 1).unwrap();
        let held = actor.method(hold).group("io").call(queue.clone());
        until("the group is full", || actor.pending_calls() == 0);
        // Under the lock the other call may run elsewhere, and find the lock taken; here it cannot: one CPU.
        let task = rt.submit(with_lock, (actor.clone(), queue));
        task.get().unwrap();
        held.get().unwrap();
    });
}

#[test]
#[cfg_attr(
    feature = "rayon",
    ignore = "with it, threads outside run nothing: another call may hold the last worker up first"
)]
fn a_lock_of_a_thread_outside_held_across_get_does_not_meet_other_work() {
    static LOCK: Mutex<()> = Mutex::new(());
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let actor = rt.actor(idle, ());
            for _ in 0..100 {
                let guard = LOCK.lock().unwrap();
                let wanted = [rt.submit(|| (), ()), actor.call(|_: &mut Idle| (), ())];
                let others = [
                    rt.submit(|| drop(LOCK.lock().unwrap()), ()),
                    actor.call(|_: &mut Idle| drop(LOCK.lock().unwrap()), ()),
                    actor.call(|_: &Idle| drop(LOCK.lock().unwrap()), ()),
                ];
                wanted[1].get().unwrap();
                drop(guard);
                wanted.iter().chain(&others).for_each(|task| task.get().unwrap());
            }
        }
    });
}

// Cycles.

/// An actor that asks another, which asks another.
struct Node {
    next: Option<Actor<Node>>,
}

impl Node {
    fn new() -> Self {
        Node { next: None }
    }
    fn set(&mut self, next: Actor<Node>) {
        self.next = Some(next);
    }
    fn next(&self) -> &Actor<Node> {
        self.next.as_ref().expect("it was set")
    }
    /// Passes a call on so many times; each call has the name of its hop.
    fn hop(&mut self, left: u32) -> Result<u32> {
        match left {
            0 => Ok(0),
            _ => {
                let call = self.next().method(Node::hop).name(&format!("hop-{left}"));
                call.call(left - 1).get()?.map(|hops| hops + 1)
            }
        }
    }
    fn hop_shared(&self, left: u32) -> Result<u32> {
        match left {
            0 => Ok(0),
            _ => self.next().call(Node::hop_shared, left - 1).get()?.map(|hops| hops + 1),
        }
    }
    async fn hop_async(&mut self, left: u32) -> Result<u32> {
        match left {
            0 => Ok(0),
            _ => {
                let call = self.next().method(Node::hop_boxed).name(&format!("hop-{left}"));
                call.call(left - 1).await?.map(|hops| hops + 1)
            }
        }
    }
    fn hop_boxed(&mut self, left: u32) -> Pin<Box<dyn Future<Output = Result<u32>> + Send + '_>> {
        Box::pin(self.hop_async(left))
    }
}

/// Actors that form a ring.
fn ring(rt: &Runtime, size: usize) -> Vec<Actor<Node>> {
    let nodes: Vec<_> = (0..size).map(|_| rt.actor(Node::new, ())).collect();
    for (at, node) in nodes.iter().enumerate() {
        node.call(Node::set, nodes[(at + 1) % size].clone()).get().unwrap();
    }
    nodes
}

/// The actors of a ring hold each other, so somebody must end them.
fn end(nodes: Vec<Actor<Node>>) {
    nodes.iter().for_each(Actor::kill);
}

#[test]
fn an_actor_that_waits_for_itself_is_told_so() {
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let nodes = ring(&rt, 1);
            let call = nodes[0].method(Node::hop).name("hop-2").call(1);
            let error = call.get().unwrap().unwrap_err();
            assert_cycle(&error, &["hop-2", "hop-1"]);
            assert_eq!(nodes[0].call(Node::hop, 0).get().unwrap(), Ok(0), "the actor goes on");
            end(nodes);
        }
    });
}

#[test]
fn actors_that_wait_for_each_other_are_told_so() {
    watch(|| {
        for (cpus, size) in [(1, 2), (2, 2), (1, 3), (4, 3), (2, 7)] {
            let rt = local(cpus);
            let nodes = ring(&rt, size);
            let hops = size as u32;
            let call = nodes[0].method(Node::hop).name("hop-first").call(hops);
            let error = call.get().unwrap().unwrap_err();
            let path = members(&error);
            assert!(path.iter().all(|label| label.contains("call `hop-")), "{path:?}");
            let mut names = vec!["hop-first".to_owned()];
            names.extend((1..=hops).rev().map(|left| format!("hop-{left}")));
            assert_cycle(&error, &names.iter().map(String::as_str).collect::<Vec<_>>());
            let fewer = nodes[0].call(Node::hop, hops - 1);
            assert_eq!(fewer.get().unwrap(), Ok(hops - 1), "the actors go on");
            end(nodes);
        }
    });
}

#[test]
fn async_calls_that_wait_for_each_other_are_told_so() {
    watch(|| {
        for (cpus, size) in [(1, 1), (2, 1), (1, 2), (2, 2), (2, 3)] {
            let rt = local(cpus);
            let nodes = ring(&rt, size);
            let hops = size as u32;
            let call = nodes[0].method(Node::hop_async).name("hop-first").call(hops);
            let error = call.get().unwrap().unwrap_err();
            assert_eq!(members(&error).len(), size + 1, "{error}");
            assert_eq!(nodes[0].call(Node::hop_async, hops - 1).get().unwrap(), Ok(hops - 1), "the actors go on");
            end(nodes);
        }
    });
}

#[test]
fn blocking_and_async_calls_that_wait_for_each_other_are_told_so() {
    fn ask_async(node: &mut Node) -> Result<u32> {
        node.next().call(ask_blocking_boxed, ()).get()?
    }
    async fn ask_blocking(node: &mut Node) -> Result<u32> {
        node.next().call(|node: &mut Node| node.hop(0), ()).await?
    }
    fn ask_blocking_boxed(node: &mut Node) -> Pin<Box<dyn Future<Output = Result<u32>> + Send + '_>> {
        Box::pin(ask_blocking(node))
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let nodes = ring(&rt, 2);
            let error = nodes[0].call(ask_async, ()).get().unwrap().unwrap_err();
            assert_eq!(members(&error).len(), 3, "{error}");
            end(nodes);
        }
    });
}

#[test]
fn an_actor_that_waits_for_a_task_that_waits_for_the_actor_is_told_so() {
    fn through_task(node: &mut Node) -> Result<u32> {
        let task = Runtime::current().task(|node: Actor<Node>| node.call(Node::hop, 0).get()?).name("between");
        task.submit(node.next().clone()).get()?
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let nodes = ring(&rt, 1);
            let error = nodes[0].call(through_task, ()).get().unwrap().unwrap_err();
            assert_cycle(&error, &["through_task", "between", "hop"]);
            end(nodes);
        }
    });
}

#[test]
fn a_shared_call_that_waits_for_an_exclusive_one_of_its_actor_is_told_so() {
    fn read_then_write(node: &Node) -> Result<u32> {
        node.next().call(Node::hop, 0).get()?
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let nodes = ring(&rt, 1);
            let error = nodes[0].call(read_then_write, ()).get().unwrap().unwrap_err();
            assert_cycle(&error, &["read_then_write", "hop"]);
            end(nodes);
        }
    });
}

#[test]
fn a_shared_call_that_waits_for_one_behind_a_waiting_writer_is_told_so() {
    static INSIDE: AtomicBool = AtomicBool::new(false);
    static GATE: Gate = Gate::new();
    fn read(node: &Node) -> Result<u32> {
        INSIDE.store(true, SeqCst);
        GATE.pass();
        node.next().call(Node::hop_shared, 0).get()?
    }
    watch(|| {
        let rt = local(3);
        let nodes = ring(&rt, 1);
        let reading = nodes[0].call(read, ());
        until("the read has started", || INSIDE.load(SeqCst));
        let writing = nodes[0].call(Node::hop, 0);
        give_others_a_chance();
        GATE.open();
        // Either the second read passes the writer, or it is told that it cannot.
        match reading.get().unwrap() {
            Ok(hops) => assert_eq!(hops, 0),
            Err(error) => assert!(members(&error)[0].contains("read"), "{error}"),
        }
        assert_eq!(writing.get().unwrap(), Ok(0));
        end(nodes);
    });
}

/// Waits for whatever it gets through the queue.
fn wait_for_what_comes(queue: Queue<ObjectRef<Result<u32>>>) -> Result<u32> {
    queue.get()?.get()?
}

async fn await_what_comes(queue: Queue<ObjectRef<Result<u32>>>) -> Result<u32> {
    queue.get_async().await?.await?
}

#[test]
fn a_task_that_waits_for_itself_is_told_so() {
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let queue = Queue::bounded(&rt, 1).unwrap();
            let task = rt.task(wait_for_what_comes).name("narcissus").submit(queue.clone());
            queue.put(task.clone()).unwrap();
            assert_cycle(&task.get().unwrap().unwrap_err(), &["narcissus"]);
            let task = rt.task(await_what_comes).name("narcissus").submit(queue.clone());
            queue.put(task.clone()).unwrap();
            assert_cycle(&task.get().unwrap().unwrap_err(), &["narcissus"]);
        }
    });
}

#[test]
fn of_tasks_that_wait_for_each_other_one_is_told_and_the_others_get_its_answer() {
    watch(|| {
        for (cpus, size) in [(1, 2), (2, 2), (2, 3), (4, 5)] {
            for asynchronous in [false, true] {
                let rt = local(cpus);
                let queues: Vec<_> = (0..size).map(|_| Queue::bounded(&rt, 1).unwrap()).collect();
                let submit = |(at, queue): (usize, &Queue<_>)| match asynchronous {
                    false => rt.task(wait_for_what_comes).name(&format!("t{at}")).submit(queue.clone()),
                    true => rt.task(await_what_comes).name(&format!("t{at}")).submit(queue.clone()),
                };
                let tasks: Vec<_> = queues.iter().enumerate().map(submit).collect();
                for (at, queue) in queues.iter().enumerate() {
                    queue.put(tasks[(at + 1) % size].clone()).unwrap();
                }
                let names: Vec<_> = (0..size).map(|at| format!("`t{at}`")).collect();
                for task in &tasks {
                    let error = task.get().unwrap().unwrap_err();
                    assert_cycle(&error, &names.iter().map(String::as_str).collect::<Vec<_>>());
                }
            }
        }
    });
}

#[test]
fn a_task_that_waits_for_its_own_dependent_is_told_so() {
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let queue = Queue::bounded(&rt, 1).unwrap();
            let task = rt.task(wait_for_what_comes).name("first").submit(queue.clone());
            let between = rt.task(|before: Result<u32>| before).name("between").submit(&task);
            let dependent = rt.task(|before: Result<u32>| before).name("dependent").submit(&between);
            queue.put(dependent.clone()).unwrap();
            assert_cycle(&dependent.get().unwrap().unwrap_err(), &["first", "dependent", "between"]);
        }
    });
}

#[test]
fn a_cycle_through_wait_and_through_several_handles_is_found() {
    /// Waits for one of its own calls, by each of the ways to wait for several.
    fn wait_for_own(node: &mut Node) -> bool {
        let rt = Runtime::current();
        let calls = [node.next().call(Node::hop, 0), node.next().call(Node::hop, 0)];
        let all = rt.get_all(&calls).unwrap_err();
        let (ready, rest) = rt.wait(&calls, 1, None);
        let (both, _) = rt.wait(&calls, 2, None);
        members(&all);
        ready.is_empty() && rest.len() == 2 && both.is_empty()
    }
    /// One of these is free, so the wait ends.
    fn wait_for_any(node: &mut Node) -> usize {
        let rt = Runtime::current();
        let calls = [node.next().call(Node::hop, 0), rt.submit(|| -> Result<u32> { Ok(1) }, ())];
        rt.wait(&calls, 1, None).0.len()
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let nodes = ring(&rt, 1);
            assert!(nodes[0].call(wait_for_own, ()).get().unwrap());
            assert_eq!(nodes[0].call(wait_for_any, ()).get().unwrap(), 1);
            end(nodes);
        }
    });
}

#[test]
fn a_pool_used_inside_its_only_actor_is_told_so() {
    fn map(node: &mut Node) -> Vec<String> {
        let pool = ActorPool::new(vec![node.next().clone()]).unwrap();
        let error = pool.map(Node::hop, [0, 0, 0]).unwrap_err();
        members(&error)
    }
    watch(|| {
        let rt = local(2);
        let nodes = ring(&rt, 1);
        assert!(nodes[0].call(map, ()).get().unwrap().iter().any(|label| label.contains("map")));
        end(nodes);
    });
}

#[test]
fn a_constructor_that_waits_for_who_waits_for_it_is_told_so() {
    /// Asks an actor that asks the one that is being made.
    fn construct(asked: Actor<Node>, queue: Queue<ObjectRef<Result<u32>>>) -> Node {
        // Either of the two that wait may be the one that is told.
        let answer = asked.call(|_: &mut Node, own: Queue<_>| wait_for_what_comes(own), queue).get();
        panic!("{}", answer.and_then(|answer| answer).unwrap_err());
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let asked = rt.actor(Node::new, ());
            let queue = Queue::bounded(&rt, 1).unwrap();
            let made = rt.actor(construct, (asked, queue.clone()));
            let own = made.call(Node::hop, 0);
            queue.put(own.clone()).unwrap();
            let error = own.get().unwrap_err();
            assert!(error.to_string().contains("waiting would never end"), "{error}");
        }
    });
}

#[test]
fn a_cycle_through_the_order_of_a_callers_calls_is_found() {
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let queue = Queue::bounded(&rt, 1).unwrap();
            // The second call waits for the first, the first for `late`, and `late` for this task.
            fn wait_in_line(actor: Actor<Idle>, queue: Queue<ObjectRef<Result<u32>>>) -> Result<u32> {
                let late = Runtime::current().submit(wait_for_what_comes, queue);
                actor.call(|_: &mut Idle, _: Result<u32>| (), &late);
                actor.call(|_: &mut Idle| (), ()).get()?;
                late.get()? // then it was `late` that was told
            }
            let actor = rt.actor(idle, ());
            let task = rt.submit(wait_in_line, (actor, queue.clone()));
            queue.put(task.clone()).unwrap();
            let result = task.get().unwrap();
            assert!(members(&result.unwrap_err()).len() >= 2);
        }
    });
}

#[test]
fn a_cycle_through_the_limit_of_a_concurrency_group_is_found() {
    fn ask_own(node: &Node) -> Result<u32> {
        node.next().call(Node::hop_shared, 0).get()?
    }
    async fn await_own(node: &Node) -> Result<u32> {
        node.next().call(Node::hop_shared, 0).await?
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let node = rt.actor_builder(Node::new).max_concurrency(1).start(());
            node.call(Node::set, node.clone()).get().unwrap();
            assert_eq!(members(&node.call(ask_own, ()).get().unwrap().unwrap_err()).len(), 2);
            assert_eq!(members(&node.call(await_own, ()).get().unwrap().unwrap_err()).len(), 2);
            end(vec![node]);
        }
    });
}

#[test]
fn a_call_that_waits_for_room_that_another_will_make_is_no_cycle() {
    static WAITS: AtomicBool = AtomicBool::new(false);
    async fn hold(_: &Node, queue: Queue<()>) {
        queue.get_async().await.unwrap();
    }
    async fn await_own(node: &Node) -> Result<u32> {
        let own = node.next().call(Node::hop_shared, 0);
        WAITS.store(true, SeqCst);
        own.await?
    }
    watch(|| {
        let rt = local(2);
        let node = rt.actor_builder(Node::new).max_concurrency(2).start(());
        node.call(Node::set, node.clone()).get().unwrap();
        let queue = Queue::bounded(&rt, 1).unwrap();
        let calls = (node.call(hold, queue.clone()), node.call(await_own, ()));
        until("the second call waits for room", || WAITS.load(SeqCst));
        give_others_a_chance();
        assert!(!calls.1.is_ready(), "{:?}", calls.1.get());
        queue.put(()).unwrap();
        assert_eq!(calls.1.get().unwrap(), Ok(0));
        calls.0.get().unwrap();
        end(vec![node]);
    });
}

#[test]
fn a_consumer_that_its_producer_waits_for_is_told_so() {
    fn produce(queue: Queue<ObjectRef<Result<u32>>>) -> impl Iterator<Item = u32> {
        std::iter::once_with(move || u32::from(wait_for_what_comes(queue).is_err()))
    }
    fn consume(queue: Queue<ObjectRef<Result<u32>>>) -> Result<u32> {
        Runtime::current().stream(produce, queue).values().next().expect("there is one")
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let queue = Queue::bounded(&rt, 1).unwrap();
            let task = rt.submit(consume, queue.clone());
            queue.put(task.clone()).unwrap();
            // Either of the two may be the one that is told.
            match task.get().unwrap() {
                Ok(told) => assert_eq!(told, 1),
                Err(error) => assert!(members(&error).len() >= 2),
            }
        }
    });
}

#[test]
fn of_two_actors_that_ask_each_other_at_the_same_time_at_most_one_is_told() {
    watch(|| {
        let rt = local(4);
        let nodes = ring(&rt, 2);
        // There each cycle takes some tens of milliseconds to be found.
        for _ in 0..if common::on_cluster() { 20 } else { 500 } {
            let calls = [nodes[0].call(Node::hop, 1), nodes[1].call(Node::hop, 1)];
            let results = calls.map(|call| call.get().unwrap());
            let told: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
            assert!(told.len() <= 1, "{told:?}");
            told.iter().for_each(|error| drop(members(error)));
        }
        end(nodes);
    });
}

// No cycles.

#[test]
fn a_long_wait_is_no_cycle() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(2);
        let slow = rt.submit(
            || {
                GATE.pass();
                1
            },
            (),
        );
        let waits: Vec<_> =
            (0..20).map(|_| rt.submit(|slow: ObjectRef<u32>| slow.get().unwrap(), slow.clone())).collect();
        GATE.wait_for(1);
        give_others_a_chance();
        GATE.open();
        assert_eq!(rt.get_all(&waits).unwrap(), [1; 20]);
    });
}

#[test]
fn shared_calls_may_wait_for_shared_calls_of_their_own_actor() {
    async fn await_own(node: &Node) -> Result<u32> {
        node.next().call(Node::hop_shared, 3).await?
    }
    watch(|| {
        for (cpus, size) in [(1, 1), (2, 1), (1, 2), (2, 3)] {
            let rt = local(cpus);
            let nodes = ring(&rt, size);
            assert_eq!(nodes[0].call(Node::hop_shared, 300).get().unwrap(), Ok(300));
            assert_eq!(nodes[0].call(await_own, ()).get().unwrap(), Ok(3));
            end(nodes);
        }
    });
}

#[test]
fn an_actor_may_cause_calls_of_itself_that_it_does_not_wait_for() {
    struct Ticker(Option<Actor<Ticker>>, u32);
    impl Ticker {
        fn set(&mut self, own: Actor<Ticker>) {
            self.0 = Some(own);
        }
        fn tick(&mut self, left: u32) {
            self.1 += 1;
            let own = self.0.clone().expect("it was set");
            if left > 0 {
                // Half of the time by a task, which does wait.
                match left % 2 {
                    0 => drop(own.call(Ticker::tick, left - 1)),
                    _ => drop(Runtime::current().submit(
                        |own: Actor<Ticker>, left: u32| own.call(Ticker::tick, left).get().unwrap(),
                        (own, left - 1),
                    )),
                }
            }
        }
        fn ticks(&self) -> u32 {
            self.1
        }
    }
    watch(|| {
        for cpus in [1, 2] {
            let rt = local(cpus);
            let ticker = rt.actor(|| Ticker(None, 0), ());
            ticker.call(Ticker::set, ticker.clone()).get().unwrap();
            ticker.call(Ticker::tick, 100).get().unwrap();
            until("all ticks have come", || ticker.call(Ticker::ticks, ()).get().unwrap() == 101);
            ticker.kill();
        }
    });
}

#[test]
fn many_paths_to_the_same_result_are_no_cycle() {
    static GATE: Gate = Gate::new();
    fn wait_for_all(handles: Vec<ObjectRef<u64>>) -> u64 {
        handles.iter().map(|handle| handle.get().unwrap()).sum()
    }
    watch(|| {
        let rt = local(2);
        let first = rt.submit(
            || {
                GATE.pass();
                1
            },
            (),
        );
        // Each layer waits for all of the layer below: 4^20 paths.
        let mut layer = vec![first];
        for _ in 0..20 {
            layer = (0..4).map(|_| rt.submit(wait_for_all, layer.clone())).collect();
        }
        give_others_a_chance();
        GATE.open();
        assert_eq!(rt.get_all(&layer).unwrap(), [4_u64.pow(19); 4]);
    });
}

#[test]
fn a_wait_with_a_time_limit_in_a_cycle_ends_as_a_timeout_that_says_what_it_waited_for() {
    fn ask_briefly(node: &mut Node) -> Result<u32> {
        let call = node.next().method(Node::hop).name("stuck").call(0);
        call.get_timeout(Duration::from_millis(2))?
    }
    watch(|| {
        let rt = local(2);
        let nodes = ring(&rt, 1);
        let error = nodes[0].call(ask_briefly, ()).get().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Timeout { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("2ms") && text.contains("call `stuck`") && text.contains("waits for its turn"), "{text}");
        end(nodes);
    });
}

#[test]
fn a_wait_for_the_end_of_a_long_chain_of_dependents_is_no_cycle_and_no_stack_overflow() {
    static GATE: Gate = Gate::new();
    fn wait_for(last: ObjectRef<u32>) -> u32 {
        last.get().unwrap()
    }
    alone("a_wait_for_the_end_of_a_long_chain_of_dependents_is_no_cycle_and_no_stack_overflow", || {
        let rt = local(2);
        let mut last = rt.submit(
            || {
                GATE.pass();
                0
            },
            (),
        );
        GATE.wait_for(1);
        for _ in 0..common::many(100_000) {
            last = rt.submit(|x: u32| x + 1, &last);
        }
        let waits = rt.submit(wait_for, last);
        give_others_a_chance();
        GATE.open();
        assert_eq!(waits.get().unwrap(), common::many(100_000) as u32);
    });
}

// Short tasks, one after the other. On a cluster who waits for one does the driver's I/O meanwhile, and who reads a
// worker's letters runs it; here one of them is not what it seemed.

fn short_tasks(rt: &Runtime) {
    (0..100).for_each(|n: u64| assert_eq!(rt.submit(|n: u64| n + 1, n).get(), Ok(n + 1)));
}

#[test]
fn many_threads_wait_for_short_tasks_and_each_gets_its_own() {
    watch(|| {
        let rt = local(2);
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let rt = &rt;
                scope.spawn(move || {
                    for n in 0..100 {
                        let n = 1_000 * thread + n;
                        assert_eq!(rt.submit(|n: u64| n + 1, n).get(), Ok(n + 1));
                    }
                });
            }
        });
    });
}

#[test]
fn another_thread_ends_a_wait_by_cancelling() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(2);
        short_tasks(&rt);
        let task = rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| task.get());
            give_others_a_chance();
            task.cancel();
            assert!(waits.join().unwrap().unwrap_err().is_cancelled());
        });
        GATE.open();
    });
}

#[test]
fn a_wait_with_a_time_limit_ends_while_nothing_comes() {
    static GATE: Gate = Gate::new();
    watch(|| {
        let rt = local(2);
        short_tasks(&rt);
        let task = rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        assert!(matches!(task.get_timeout(Duration::from_millis(20)), Err(Error::Timeout { .. })));
        GATE.open();
        assert_eq!(task.get(), Ok(()));
    });
}

#[test]
fn a_lock_that_is_held_across_a_wait_may_be_what_a_future_needs_that_is_woken_meanwhile() {
    static GATE: Gate = Gate::new();
    struct NeedsIt(Mutex<()>, std::sync::atomic::AtomicBool);
    impl Wake for NeedsIt {
        fn wake(self: Arc<Self>) {
            let _held = self.0.lock().unwrap();
            self.1.store(true, SeqCst);
        }
    }
    if !common::on_cluster() {
        return; // in one process the future is woken by the task that the other task waits for
    }
    watch(|| {
        let rt = local(2);
        short_tasks(&rt);
        let first = rt.submit(|| GATE.pass(), ());
        let second = rt.submit(|(): ()| 7, &first);
        let needs_it = Arc::new(NeedsIt(Mutex::default(), Default::default()));
        let mut future = pin!((&first).into_future());
        let waker = Waker::from(needs_it.clone());
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        {
            let _held = needs_it.0.lock().unwrap();
            GATE.open();
            assert_eq!(second.get(), Ok(7));
            // And the next, too, while somebody waits for the lock.
            short_tasks(&rt);
            assert!(!needs_it.1.load(SeqCst));
        }
        until("the future is woken", || needs_it.1.load(SeqCst));
        assert_eq!(common::block_on(first), Ok(()));
    });
}

#[test]
fn what_nobody_waits_for_runs_and_wakes_a_future_after_short_tasks() {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    watch(|| {
        let rt = local(2);
        for round in 1..=20 {
            short_tasks(&rt);
            let task = rt.submit(|| DONE.fetch_add(1, SeqCst), ());
            until("it has run", || DONE.load(SeqCst) == round);
            assert_eq!(common::block_on(task), Ok(round - 1));
        }
    });
}

#[test]
fn a_long_task_among_short_ones_does_not_keep_others_waiting() {
    static GATES: [Gate; 10] = [const { Gate::new() }; 10];
    watch(|| {
        let rt = local(2);
        for (round, gate) in GATES.iter().enumerate() {
            short_tasks(&rt);
            let long = rt.submit(|round: usize| GATES[round].pass(), round);
            gate.wait_for(1);
            // What opens the gate comes behind it.
            assert_eq!(rt.submit(|round: usize| GATES[round].open(), round).get(), Ok(()));
            assert_eq!(long.get(), Ok(()));
        }
    });
}

#[test]
fn a_task_among_short_ones_may_wait_for_what_comes_behind_it() {
    static GATES: [Gate; 10] = [const { Gate::new() }; 10];
    struct Echo;
    impl Echo {
        fn echo(&self, n: usize) -> usize {
            n
        }
    }
    watch(|| {
        let rt = local(2);
        let echo = rt.actor(|| Echo, ());
        for (round, gate) in GATES.iter().enumerate() {
            short_tasks(&rt);
            // The answer comes the way that the task has come.
            let asks = |(echo, n): (Actor<Echo>, usize)| echo.call(Echo::echo, n).get().unwrap();
            assert_eq!(rt.submit(asks, (echo.clone(), round)).get(), Ok(round));
            short_tasks(&rt);
            let waits = |round: usize| {
                let inner = Runtime::current().submit(|round: usize| GATES[round].pass(), round);
                inner.get().unwrap();
            };
            let outer = rt.submit(waits, round);
            gate.wait_for(1);
            short_tasks(&rt);
            gate.open();
            assert_eq!(outer.get(), Ok(()));
        }
    });
}

#[test]
fn a_cancelled_task_among_short_ones_hears_of_it_and_leaves_its_cpu() {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    watch(|| {
        let rt = local(1);
        for round in 1..=10 {
            short_tasks(&rt);
            let task = rt.submit(
                || {
                    STARTED.fetch_add(1, SeqCst);
                    until("it is cancelled", || outray::task::context().is_cancelled());
                },
                (),
            );
            until("it runs", || STARTED.load(SeqCst) == round);
            task.cancel();
            assert!(task.get().unwrap_err().is_cancelled());
        }
        short_tasks(&rt);
    });
}

#[test]
fn single_calls_and_many_at_a_time_keep_their_order() {
    struct List(Vec<u32>);
    impl List {
        fn push(&mut self, n: u32) -> usize {
            self.0.push(n);
            self.0.len()
        }
        fn all(&self) -> Vec<u32> {
            self.0.clone()
        }
    }
    watch(|| {
        let rt = local(2);
        let list = rt.actor(|| List(Vec::new()), ());
        let mut numbers = 0..;
        let mut push = || list.call(List::push, numbers.next().unwrap());
        for round in 0..200 {
            push().get().unwrap();
            (0..round % 8).for_each(|_| drop(push()));
        }
        let all = list.call(List::all, ()).get().unwrap();
        assert!(all.iter().copied().eq(0..all.len() as u32), "{all:?}");
    });
}

#[test]
fn after_short_tasks_all_threads_sleep() {
    /// How often the threads of this process began to sleep.
    fn slept() -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").expect("this is Linux").flatten();
        let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
        let counts = statuses.filter_map(|status| {
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        counts.sum()
    }
    alone("after_short_tasks_all_threads_sleep", || {
        let rt = local(2);
        short_tasks(&rt);
        give_others_a_chance();
        let (here, there) = (slept(), rt.submit(slept, ()).get().unwrap());
        // Nobody has been told anything.
        std::thread::sleep(Duration::from_secs(1));
        let (here, there) = (slept() - here, rt.submit(slept, ()).get().unwrap() - there);
        assert!(here < 300 && there < 300, "{here} times here, {there} times there");
    });
}
