//! Actor pools and bounded queues.

mod common;

use common::{AtomicUsize, Counted, Gate, Notes, at_once, builder, give_others_a_chance, local, meet, until, watch};
use outray::{Actor, ActorPool, Error, ObjectRef, Queue, Result, Runtime};
use std::{sync::atomic::Ordering::SeqCst, time::Duration};

const HOUR: Duration = Duration::from_secs(3600);
const MOMENT: Duration = Duration::from_millis(5);

struct Model {
    number: usize,
    calls: usize,
}

impl Model {
    fn new(number: usize) -> Self {
        Model { number, calls: 0 }
    }
    fn square(&mut self, x: u64) -> u64 {
        self.calls += 1;
        x * x
    }
    fn calls(&self) -> usize {
        self.calls
    }
}

fn pool(rt: &Runtime, size: usize) -> ActorPool<Model> {
    ActorPool::new((0..size).map(|number| rt.actor(Model::new, number)).collect()).expect("there are actors")
}

// Pools.

#[test]
fn pool_maps_in_the_order_of_the_items() {
    watch(|| {
        let rt = local(4);
        let pool = pool(&rt, 3);
        assert_eq!(pool.map(Model::square, 0..500_u64).unwrap(), (0..500).map(|x| x * x).collect::<Vec<u64>>());
        assert_eq!(pool.map(Model::square, Vec::<u64>::new()).unwrap(), Vec::<u64>::new());
        let calls = pool.actors().iter().map(|actor| actor.call(Model::calls, ()).get().unwrap()).sum::<usize>();
        assert_eq!(calls, 500);
    });
}

#[test]
fn pool_uses_all_its_actors_at_the_same_time() {
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    static SEEN: Notes<3> = Notes::new();
    fn meet_others(model: &mut Model, _: u32) {
        SEEN.push(model.number);
        meet(&PLACE, 3);
    }
    watch(|| {
        let rt = local(4);
        pool(&rt, 3).map(meet_others, 0..3_u32).unwrap();
        let mut seen = SEEN.all();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
    });
}

#[test]
fn pool_takes_handles_as_items() {
    watch(|| {
        let rt = local(2);
        let items: Vec<_> = (0..20_u64).map(|x| rt.submit(|x: u64| x + 1, x)).collect();
        assert_eq!(pool(&rt, 2).map(Model::square, &items).unwrap(), (1..=20).map(|x| x * x).collect::<Vec<u64>>());
    });
}

#[test]
fn pool_yields_results_as_they_come_and_keeps_a_slow_actor_out_of_the_way() {
    static GATE: Gate = Gate::new();
    fn slow_zero(_: &mut Model, x: u32) -> u32 {
        if x == 0 {
            GATE.pass();
        }
        x
    }
    watch(|| {
        let rt = local(4);
        // The first actor holds two: the one that waits, and the next in its mailbox.
        let pool = pool(&rt, 2);
        let mut results = pool.map_unordered(slow_zero, 0..100_u32);
        let first: Vec<_> = results.by_ref().take(98).collect::<Result<_>>().unwrap();
        assert!(!first.contains(&0));
        GATE.open();
        let mut rest: Vec<_> = results.collect::<Result<_>>().unwrap();
        rest.extend(first);
        rest.sort_unstable();
        assert_eq!(rest, Vec::from_iter(0..100));
    });
}

#[test]
fn pool_takes_items_only_as_actors_become_free() {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    watch(|| {
        let rt = local(2);
        let pool = pool(&rt, 2);
        let endless = (0_u64..).inspect(|_| _ = TAKEN.fetch_add(1, SeqCst));
        let mut results = pool.map_unordered(Model::square, endless);
        for _ in 0..10 {
            results.next().unwrap().unwrap();
        }
        assert!(TAKEN.load(SeqCst) <= 10 + 4, "{} items were taken for 10 results", TAKEN.load(SeqCst));
    });
}

#[test]
fn pool_gives_the_first_failure_and_goes_on_afterwards() {
    fn no_sevens(_: &Model, x: u32) -> u32 {
        assert!(x != 7, "seven");
        x
    }
    watch(|| {
        let rt = local(2);
        let pool = pool(&rt, 2);
        let error = pool.map(no_sevens, 0..1000_u32).unwrap_err();
        assert!(matches!(&error, Error::Panicked { message, .. } if message == "seven"), "{error:?}");
        assert_eq!(pool.map(no_sevens, [1, 2]).unwrap(), [1, 2]);
        let unordered: Vec<_> = pool.map_unordered(no_sevens, 0..10_u32).collect();
        assert_eq!(unordered.iter().filter(|result| result.is_ok()).count(), 9);
    });
}

#[test]
fn pool_with_a_dead_actor_reports_its_death() {
    watch(|| {
        let rt = local(2);
        let pool = pool(&rt, 2);
        pool.actors()[1].kill();
        let error = pool.map(Model::square, 0..10_u64).unwrap_err();
        assert!(matches!(error, Error::ActorDied { .. }), "{error:?}");
    });
}

#[test]
fn pool_works_inside_tasks_and_on_one_cpu() {
    fn sum_of_squares(actors: Vec<Actor<Model>>) -> u64 {
        ActorPool::new(actors).unwrap().map(Model::square, 0..50_u64).unwrap().iter().sum()
    }
    watch(|| {
        let rt = local(1);
        let actors = pool(&rt, 3).actors().to_vec();
        let tasks: Vec<_> = (0..4).map(|_| rt.submit(sum_of_squares, actors.clone())).collect();
        assert_eq!(rt.get_all(&tasks).unwrap(), [(0..50).map(|x| x * x).sum::<u64>(); 4]);
    });
}

#[test]
fn pool_needs_an_actor() {
    let error = ActorPool::<Model>::new(Vec::new()).err().unwrap();
    assert!(matches!(&error, Error::InvalidOption { reason } if reason.contains("at least one actor")), "{error:?}");
}

// Queues.

#[test]
fn queue_is_first_in_first_out_and_bounded() {
    watch(|| {
        let rt = local(1);
        let queue = Queue::bounded(&rt, 3).unwrap();
        assert!(queue.is_empty());
        (1..=3).for_each(|item| queue.try_put(item).unwrap());
        assert_eq!(queue.try_put(4), Err(4));
        assert_eq!((queue.len(), queue.capacity()), (3, 3));
        assert_eq!(
            [queue.try_get(), queue.try_get(), queue.try_get(), queue.try_get()],
            [Some(1), Some(2), Some(3), None]
        );
    });
}

#[test]
fn queue_without_room_for_anything_is_an_error() {
    watch(|| {
        let error = Queue::<u32>::bounded(&local(1), 0).unwrap_err();
        assert!(matches!(&error, Error::InvalidOption { reason } if reason.contains("at least 1")), "{error:?}");
    });
}

#[test]
fn queue_get_blocks_until_there_is_an_item() {
    watch(|| {
        let rt = local(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let get = rt.submit(|queue: Queue<u32>| queue.get().unwrap(), queue.clone());
        give_others_a_chance();
        assert!(!get.is_ready());
        queue.put(5).unwrap();
        assert_eq!(get.get().unwrap(), 5);
    });
}

#[test]
fn queue_put_blocks_until_there_is_room() {
    watch(|| {
        let rt = local(2);
        let queue = Queue::bounded(&rt, 1).unwrap();
        queue.put(1).unwrap();
        let put = rt.submit(|queue: Queue<u32>| queue.put(2).unwrap(), queue.clone());
        give_others_a_chance();
        assert!(!put.is_ready() && queue.len() == 1);
        assert_eq!([queue.get().unwrap(), queue.get().unwrap()], [1, 2]);
        put.get().unwrap();
    });
}

#[test]
fn queue_operations_with_a_time_limit_give_up_and_say_so() {
    watch(|| {
        let rt = local(1);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let error = queue.get_timeout(MOMENT).unwrap_err();
        assert_eq!((&error, error.to_string().as_str()), (&Error::QueueEmpty, "the queue is empty"));
        queue.put_timeout(1, HOUR).unwrap();
        let error = queue.put_timeout(2, MOMENT).unwrap_err();
        assert_eq!(error, Error::QueueFull { capacity: 1 });
        assert!(error.to_string().contains("1 items"), "{error}");
        assert_eq!(queue.get_timeout(HOUR).unwrap(), 1);
        assert!(queue.is_empty(), "what was not put is not there");
    });
}

#[test]
fn queue_gives_each_item_to_one_of_many_consumers() {
    fn produce(queue: Queue<u32>, from: u32) {
        (from..from + 250).for_each(|item| queue.put(item).unwrap());
    }
    fn consume(queue: Queue<u32>) -> Vec<u32> {
        (0..250).map(|_| queue.get().unwrap()).collect()
    }
    async fn produce_async(queue: Queue<u32>, from: u32) {
        for item in from..from + 250 {
            queue.put_async(item).await.unwrap();
        }
    }
    async fn consume_async(queue: Queue<u32>) -> Vec<u32> {
        let mut items = Vec::new();
        for _ in 0..250 {
            items.push(queue.get_async().await.unwrap());
        }
        items
    }
    watch(|| {
        for (cpus, capacity) in [(1, 1), (1, 7), (4, 1), (4, 7)] {
            let rt = local(cpus);
            let queue = Queue::bounded(&rt, capacity).unwrap();
            let mut puts: Vec<_> = (0..2).map(|i| rt.submit(produce, (queue.clone(), i * 250))).collect();
            puts.extend((2..4).map(|i| rt.submit(produce_async, (queue.clone(), i * 250))));
            let mut gets: Vec<_> = (0..2).map(|_| rt.submit(consume, queue.clone())).collect();
            gets.extend((0..2).map(|_| rt.submit(consume_async, queue.clone())));
            puts.iter().for_each(|put| put.get().unwrap());
            let per_consumer = rt.get_all(&gets).unwrap();
            for items in &per_consumer {
                for producer in 0..4 {
                    let own: Vec<_> = items.iter().filter(|item| **item / 250 == producer).collect();
                    assert!(own.is_sorted(), "the items of one producer came out of order");
                }
            }
            let mut all = per_consumer.concat();
            all.sort_unstable();
            assert_eq!(all, Vec::from_iter(0..1000));
        }
    });
}

#[test]
fn queue_waits_of_many_tasks_leave_the_cpus_to_others() {
    watch(|| {
        let rt = local(1);
        let queue = Queue::bounded(&rt, 1).unwrap();
        let gets: Vec<_> =
            (0..20).map(|_| rt.submit(|queue: Queue<u32>| queue.get().unwrap(), queue.clone())).collect();
        let other = rt.submit(|| 1, ());
        assert_eq!(other.get().unwrap(), 1);
        let put = rt.submit(|queue: Queue<u32>| (0..20).for_each(|item| queue.put(item).unwrap()), queue.clone());
        put.get().unwrap();
        assert_eq!(rt.get_all(&gets).unwrap().iter().sum::<u32>(), (0..20).sum::<u32>());
    });
}

#[test]
fn queue_gives_the_turn_of_a_cancelled_waiter_to_the_next() {
    async fn wait<const N: usize>(queue: Queue<u32>) -> u32 {
        let _waits = Counted::<N>::new(0);
        queue.get_async().await.unwrap()
    }
    watch(|| {
        for _ in 0..common::many(200) {
            let rt = local(2);
            let queue = Queue::bounded(&rt, 1).unwrap();
            let first = rt.submit(wait::<2>, queue.clone());
            until("the first waits", || Counted::<2>::live() == 1);
            let second = rt.submit(wait::<3>, queue.clone());
            until("the second waits", || Counted::<3>::live() == 1);
            // At the same time as the first is told that there is an item, perhaps.
            let cancel = first.clone();
            let canceller = std::thread::spawn(move || cancel.cancel());
            queue.put(7).unwrap();
            canceller.join().unwrap();
            until("the first has ended", || Counted::<2>::live() == 0);
            // It may have taken the item, whether it was cancelled then or not.
            let _ = queue.try_put(7);
            assert_eq!(second.get().unwrap(), 7);
        }
    });
}

#[test]
fn queue_with_a_waiting_getter_hands_over_items_put_by_an_actor() {
    struct Source(Queue<ObjectRef<u32>>);
    impl Source {
        async fn emit(&mut self, count: u32) {
            for item in 0..count {
                let item = Runtime::current().put(item);
                self.0.put_async(item).await.unwrap();
            }
        }
    }
    watch(|| {
        for check in [false, true] {
            let rt = builder().cpus(1).check_serialization(check).build().unwrap();
            let queue = Queue::bounded(&rt, 2).unwrap();
            let source = rt.actor(|queue: Queue<ObjectRef<u32>>| Source(queue), queue.clone());
            let emit = source.call(Source::emit, 50);
            let got: Vec<_> = (0..50).map(|_| queue.get().unwrap().get().unwrap()).collect();
            assert_eq!(got, Vec::from_iter(0..50));
            emit.get().unwrap();
        }
    });
}

#[test]
fn queue_frees_its_items_with_its_last_handle() {
    watch(|| {
        let rt = local(1);
        let queue = Queue::bounded(&rt, 10).unwrap();
        (0..10).for_each(|item| queue.put(Counted::<1>::new(item)).unwrap());
        drop(queue.get().unwrap());
        assert_eq!(Counted::<1>::live(), 9);
        let other = queue.clone();
        drop(queue);
        assert_eq!(Counted::<1>::live(), 9);
        drop(other);
        at_once("all are freed", || Counted::<1>::live() == 0);
    });
}
