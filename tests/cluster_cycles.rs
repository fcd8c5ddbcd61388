//! Cycles of waits between actors and tasks in different processes.

mod common;

use common::{assert_cycle, members, watch};
use outray::{Actor, LocalCluster, ObjectRef, Queue, Result, Runtime};
use std::collections::BTreeSet;

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
    fn pid(&self) -> u32 {
        std::process::id()
    }
    /// Passes a call on so many times; each call has the name of its hop.
    fn hop(&mut self, left: u32) -> Result<u32> {
        match (left, &self.next) {
            (0, _) | (_, None) => Ok(0),
            (_, Some(next)) => {
                let call = next.method(Node::hop).name(&format!("hop-{left}"));
                call.call(left - 1).get()?.map(|hops| hops + 1)
            }
        }
    }
    fn wait_for_what_comes(&mut self, queue: Queue<ObjectRef<Result<u32>>>) -> Result<u32> {
        queue.get()?.get()?
    }
    async fn await_what_comes(&mut self, queue: Queue<ObjectRef<Result<u32>>>) -> Result<u32> {
        queue.get_async().await?.await?
    }
}

/// A cluster of so many nodes, and a ring of actors with one on each.
fn ring(nodes: usize) -> (LocalCluster, Runtime, Vec<Actor<Node>>) {
    let cluster = LocalCluster::builder().nodes(nodes).cpus(3.0).start().unwrap();
    let rt = cluster.connect().unwrap();
    let start = |_| rt.actor_builder(Node::new).cpus(2.0).start(());
    let actors: Vec<_> = (0..nodes).map(start).collect();
    for (at, actor) in actors.iter().enumerate() {
        actor.call(Node::set, actors[(at + 1) % nodes].clone()).get().unwrap();
    }
    let pids: BTreeSet<u32> = actors.iter().map(|actor| actor.call(Node::pid, ()).get().unwrap()).collect();
    assert_eq!(pids.len(), nodes);
    (cluster, rt, actors)
}

#[test]
fn actors_in_three_processes_that_wait_for_each_other_are_told_so() {
    watch(|| {
        let (_cluster, _rt, actors) = ring(3);
        for _ in 0..5 {
            let error = actors[0].method(Node::hop).name("hop-first").call(3).get().unwrap().unwrap_err();
            assert_cycle(&error, &["hop-first", "hop-3", "hop-2", "hop-1"]);
            assert_eq!(actors[0].call(Node::hop, 2).get().unwrap(), Ok(2), "the actors go on");
        }
        actors.iter().for_each(Actor::kill);
    });
}

#[test]
fn of_actors_in_several_processes_that_ask_each_other_at_the_same_time_at_most_one_is_told() {
    watch(|| {
        let (_cluster, _rt, actors) = ring(3);
        let mut cycles = 0;
        for _ in 0..10 {
            let calls: Vec<_> = actors.iter().map(|actor| actor.call(Node::hop, 1)).collect();
            let results: Vec<_> = calls.iter().map(|call| call.get().unwrap()).collect();
            let told: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
            assert!(told.len() <= 1, "{told:?}");
            told.iter().for_each(|error| assert_eq!(members(error).len(), 6, "{error}"));
            cycles += told.len();
        }
        println!("{cycles} cycles in 10 rounds");
        actors.iter().for_each(Actor::kill);
    });
}

#[test]
fn a_cycle_through_a_task_that_waits_at_the_program_is_found() {
    watch(|| {
        let (_cluster, rt, actors) = ring(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        for asynchronous in [false, true] {
            let call = match asynchronous {
                false => actors[0].method(Node::wait_for_what_comes).name("asks").call(queue.clone()),
                true => actors[0].method(Node::await_what_comes).name("asks").call(queue.clone()),
            };
            let behind = actors[0].method(Node::hop).name("behind").call(0);
            let after = rt.task(|before: Result<u32>, _: Result<u32>| before).name("after").submit((&call, &behind));
            queue.put(after.clone()).unwrap();
            let error = call.get().unwrap().unwrap_err();
            assert_cycle(&error, &["asks", "after"]);
            assert_eq!(after.get().unwrap(), Err(error));
        }
        actors.iter().for_each(Actor::kill);
    });
}
