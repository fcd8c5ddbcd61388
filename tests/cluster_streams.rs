//! Streams and queues on a cluster of real processes.

mod common;

use common::{until, watch};
use outray::{Error, LocalCluster, ObjectRef, Queue, Runtime};
use std::time::Duration;

fn cluster(nodes: usize) -> (LocalCluster, Runtime) {
    let cluster = LocalCluster::start(nodes).unwrap();
    let rt = cluster.connect().unwrap();
    (cluster, rt)
}

#[test]
fn items_come_in_order_and_the_end_is_seen() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let squares = rt.streaming(|n: u64| (0..n).map(|i| i * i)).buffer(4).submit(100);
        let values: Result<Vec<u64>, _> = squares.values().collect();
        assert_eq!(values, Ok((0..100).map(|i| i * i).collect()));
    });
}

#[test]
fn a_producer_that_panics_is_the_last_item() {
    watch(|| {
        let (_cluster, rt) = cluster(1);
        let bad = rt.stream(
            |n: u32| {
                (0..n).map(|i| match i {
                    3 => panic!("no more"),
                    i => i,
                })
            },
            10,
        );
        let all: Vec<_> = bad.values().collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all[2], Ok(2));
        assert!(matches!(&all[3], Err(Error::Panicked { message, .. }) if message == "no more"), "{:?}", all[3]);
    });
}

#[test]
fn items_are_arguments_and_a_dropped_stream_ends() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let mut endless = rt.stream(|| 0u64.., ());
        let first: Vec<ObjectRef<u64>> = endless.by_ref().take(10).map(Result::unwrap).collect();
        drop(endless);
        let sum = rt.submit(|all: Vec<u64>| all.iter().sum::<u64>(), &first);
        assert_eq!(sum.get(), Ok(45));
    });
}

/// What a task with a GPU submits does not run in its process.
fn cluster_with_gpus() -> (LocalCluster, Runtime) {
    let cluster = LocalCluster::builder().nodes(2).gpus(1).start().unwrap();
    let rt = cluster.connect().unwrap();
    (cluster, rt)
}

#[test]
fn a_task_consumes_the_stream_of_a_task_in_another_process() {
    type Item = (u32, Vec<u64>);
    /// Every fourth is large.
    fn produce(count: u64) -> impl Iterator<Item = Item> + Send + 'static {
        (0..count).map(|n| (std::process::id(), vec![n; if n % 4 == 3 { 10_000 } else { 1 }]))
    }
    fn consume(count: u64) -> (u32, Vec<Item>) {
        let items = Runtime::current().streaming(produce).buffer(4).submit(count);
        (std::process::id(), items.values().collect::<Result<_, _>>().unwrap())
    }
    watch(|| {
        let (_cluster, rt) = cluster_with_gpus();
        let consumers: Vec<_> = (0..2).map(|_| rt.task(consume).gpus(1.0).submit(40)).collect();
        for (consumer, items) in rt.get_all(&consumers).unwrap() {
            assert_eq!(items.len(), 40);
            for (n, (producer, values)) in (0..).zip(items) {
                assert_ne!(producer, consumer);
                assert_eq!(values.len(), if n % 4 == 3 { 10_000 } else { 1 });
                assert!(values.iter().all(|value| *value == n));
            }
        }
    });
}

#[test]
fn a_producer_in_another_process_ends_when_its_consumer_listens_no_more() {
    struct Endless(Queue<(u32, u64)>, u64);
    impl Iterator for Endless {
        type Item = u64;
        fn next(&mut self) -> Option<u64> {
            self.1 += 1;
            Some(self.1)
        }
    }
    impl Drop for Endless {
        fn drop(&mut self) {
            self.0.put((std::process::id(), self.1)).unwrap();
        }
    }
    fn consume(ended: Queue<(u32, u64)>) -> (u32, u64) {
        let endless = |ended: Queue<(u32, u64)>| Endless(ended, 0);
        let items = Runtime::current().streaming(endless).buffer(4).submit(ended);
        (std::process::id(), items.values().take(20).map(Result::unwrap).sum())
    }
    watch(|| {
        let (_cluster, rt) = cluster_with_gpus();
        let ended = Queue::bounded(&rt, 1).unwrap();
        let (consumer, sum) = rt.task(consume).gpus(1.0).submit(ended.clone()).get().unwrap();
        let (producer, produced) = ended.get().unwrap();
        assert!(producer != consumer && sum == 210);
        assert!((20..=30).contains(&produced), "{produced} items were made");
    });
}

#[test]
fn a_queue_stands_between_tasks_and_the_driver() {
    watch(|| {
        let (_cluster, rt) = cluster(2);
        let queue = Queue::bounded(&rt, 4).unwrap();
        let done = rt.submit(|queue: Queue<u32>| (0..100).for_each(|i| queue.put(i).unwrap()), queue.clone());
        let all: Vec<u32> = (0..100).map(|_| queue.get().unwrap()).collect();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        done.get().unwrap();
        assert_eq!(queue.try_get(), None);
        assert_eq!(queue.get_timeout(Duration::from_millis(10)), Err(Error::QueueEmpty));
        for i in 0..4 {
            assert_eq!(queue.try_put(i), Ok(()));
        }
        assert_eq!(queue.try_put(9), Err(9));
        assert_eq!(queue.put_timeout(9, Duration::from_millis(10)), Err(Error::QueueFull { capacity: 4 }));
        assert_eq!(queue.len(), 4);
    });
}

#[test]
fn a_cancelled_task_is_told() {
    fn until_cancelled(queue: Queue<u8>) {
        queue.put(1).unwrap();
        while !outray::task::context().is_cancelled() {
            std::thread::yield_now();
        }
        queue.put(2).unwrap();
    }
    watch(|| {
        // One CPU for whoever waits to be told, and one for the queue.
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let queue = Queue::bounded(&rt, 4).unwrap();
        let task = rt.submit(until_cancelled, queue.clone());
        assert_eq!(queue.get(), Ok(1)); // it runs
        task.cancel();
        assert!(task.get().unwrap_err().is_cancelled());
        assert_eq!(queue.get(), Ok(2));
        let late = rt.task(until_cancelled).deadline(Duration::from_millis(20)).submit(queue.clone());
        assert!(matches!(late.get().unwrap_err(), Error::DeadlineExceeded { .. }));
        until("it has been told", || queue.try_get() == Some(2));
    });
}
