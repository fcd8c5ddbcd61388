//! Streaming tasks: items as they come, back-pressure, and an end to the producer when nobody listens.

mod common;

use common::{AtomicBool, AtomicUsize, Counted, Gate, at_once, block_on, give_others_a_chance, local, until, watch};
use futures_core::Stream;
use outray::{Error, ObjectFuture, ObjectRef, ObjectStream, Runtime};
use serde::{Deserialize, Serialize};
use std::{
    future::{Future, IntoFuture, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering::SeqCst},
    task::{Context, Poll},
    time::Duration,
};

fn values<T: Clone + Send + Sync + 'static>(stream: ObjectStream<T>) -> outray::Result<Vec<T>> {
    stream.values().collect()
}

/// Yields 0, 1, 2, … and counts what it has yielded.
struct Count<'a> {
    next: usize,
    produced: &'a AtomicUsize,
    dropped: &'a AtomicBool,
}

impl Iterator for Count<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.produced.fetch_add(1, SeqCst);
        self.next += 1;
        Some(self.next - 1)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.dropped.store(true, SeqCst);
    }
}

#[test]
fn the_items_of_an_iterator_come_in_their_order() {
    watch(|| {
        let rt = local(2);
        assert_eq!(values(rt.stream(|n: u64| (0..n).map(|i| i * i), 1000)), Ok((0..1000).map(|i| i * i).collect()));
        assert_eq!(values(rt.stream(std::iter::empty::<u8>, ())), Ok(vec![]));
        assert_eq!(values(rt.stream(|v: Vec<String>| v.into_iter(), vec!["a".to_owned()])), Ok(vec!["a".to_owned()]));
    });
}

#[test]
fn a_stream_yields_handles_that_go_on_to_other_tasks() {
    watch(|| {
        let rt = local(2);
        let doubled: Vec<_> =
            rt.stream(|n: u64| 0..n, 50).map(|item| rt.submit(|x: u64| 2 * x, item.unwrap())).collect();
        assert_eq!(rt.get_all(&doubled), Ok((0..50).map(|i| 2 * i).collect()));
    });
}

#[test]
fn items_come_while_the_producer_still_runs() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let slow = || {
            (0..3).inspect(|i| {
                if *i == 1 {
                    GATE.pass();
                }
            })
        };
        let mut stream = rt.stream(slow, ()).values();
        assert_eq!(stream.next(), Some(Ok(0)));
        GATE.open();
        assert_eq!((stream.next(), stream.next(), stream.next()), (Some(Ok(1)), Some(Ok(2)), None));
        assert_eq!(stream.next(), None, "and it stays at its end");
    });
}

#[test]
fn the_producer_is_ahead_by_its_buffer_and_no_more() {
    watch(|| {
        static PRODUCED: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        for (buffer, ahead) in [(4, 4), (1, 1), (0, 1)] {
            PRODUCED.store(0, SeqCst);
            DROPPED.store(false, SeqCst);
            let count = || Count { next: 0, produced: &PRODUCED, dropped: &DROPPED };
            let mut stream = rt.streaming(count).buffer(buffer).submit(()).values();
            for consumed in 0..20 {
                until("the buffer is full", || PRODUCED.load(SeqCst) >= consumed + ahead);
                give_others_a_chance();
                assert_eq!(PRODUCED.load(SeqCst), consumed + ahead, "buffer {buffer}, {consumed} consumed");
                assert_eq!(stream.next(), Some(Ok(consumed)));
            }
            // It goes on producing after the last item that was taken, and must not be counted in the next round.
            drop(stream);
            until("the producer is gone", || DROPPED.load(SeqCst));
        }
    });
}

#[test]
fn the_buffer_is_sixteen_unless_it_is_said() {
    watch(|| {
        static PRODUCED: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        let _stream = rt.stream(|| Count { next: 0, produced: &PRODUCED, dropped: &DROPPED }, ());
        until("the buffer is full", || PRODUCED.load(SeqCst) >= 16);
        give_others_a_chance();
        assert_eq!(PRODUCED.load(SeqCst), 16);
    });
}

#[test]
fn a_producer_that_waits_for_its_consumer_holds_no_cpu() {
    watch(|| {
        static PRODUCED: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
        static DROPPED: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        let count = |i: usize| Count { next: 0, produced: &PRODUCED[i], dropped: &DROPPED };
        let streams: Vec<_> = (0..3).map(|i| rt.streaming(count).buffer(1).submit(i)).collect();
        for produced in &PRODUCED {
            until("each has produced one", || produced.load(SeqCst) == 1);
        }
        assert_eq!(rt.submit(|| 7, ()).get(), Ok(7));
        drop(streams);
    });
}

#[test]
fn dropping_the_consumer_stops_the_producer() {
    watch(|| {
        static PRODUCED: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        let mut stream = rt.stream(|| Count { next: 0, produced: &PRODUCED, dropped: &DROPPED }, ()).values();
        assert_eq!(stream.next(), Some(Ok(0)));
        assert!(!DROPPED.load(SeqCst));
        drop(stream);
        until("the iterator is dropped", || DROPPED.load(SeqCst));
        let produced = PRODUCED.load(SeqCst);
        give_others_a_chance();
        assert_eq!(PRODUCED.load(SeqCst), produced);
    });
}

#[test]
fn a_producer_in_the_middle_of_an_item_is_told_that_nobody_listens() {
    watch(|| {
        static STARTED: AtomicBool = AtomicBool::new(false);
        static TOLD: AtomicBool = AtomicBool::new(false);
        let rt = local(2);
        let stubborn = || {
            std::iter::from_fn(|| {
                STARTED.store(true, SeqCst);
                until("it is told", || outray::task::context().is_cancelled());
                TOLD.store(true, SeqCst);
                Some(1)
            })
        };
        let stream = rt.stream(stubborn, ());
        until("it has started", || STARTED.load(SeqCst));
        drop(stream);
        until("it was told", || TOLD.load(SeqCst));
    });
}

#[test]
fn a_stream_that_is_dropped_before_it_starts_never_runs() {
    watch(|| {
        static GATE: Gate = Gate::new();
        static RAN: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        let gated = rt.submit(|| GATE.pass(), ());
        let never = |(): ()| {
            RAN.store(true, SeqCst);
            0..3
        };
        drop(rt.stream(never, &gated));
        GATE.open();
        assert_eq!(gated.get(), Ok(()));
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
        give_others_a_chance();
        assert!(!RAN.load(SeqCst));
    });
}

#[test]
fn items_that_nobody_took_are_freed_with_the_stream() {
    watch(|| {
        let rt = local(1);
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let make = |n: u64| {
            (0..n).map(|item| {
                let item = Counted::<0>::new(item);
                MADE.fetch_add(1, SeqCst);
                item
            })
        };
        let mut stream = rt.streaming(make).buffer(8).submit(1_000_000);
        until("the buffer is full", || MADE.load(SeqCst) == 8);
        if !common::on_cluster() {
            assert_eq!(Counted::<0>::live(), 8);
        }
        let kept = stream.next().unwrap().unwrap();
        drop(stream);
        // On a cluster it is bytes until somebody looks.
        until("all but one are freed", || Counted::<0>::live() <= 1);
        assert_eq!(kept.get_shared().unwrap().value(), 0, "an item outlives its stream");
        drop(kept);
        at_once("it is freed", || Counted::<0>::live() == 0);
        assert_eq!(Counted::<0>::clones(), 0);
    });
}

#[test]
fn values_move_the_items_out() {
    watch(|| {
        let rt = local(2);
        let make = |n: u64| (0..n).map(Counted::<1>::new);
        let sum: u64 = rt.stream(make, 100).values().map(|item| item.unwrap().value()).sum();
        assert_eq!((sum, Counted::<1>::clones(), Counted::<1>::live()), (4950, 0, 0));
    });
}

#[test]
fn many_items_pass_through_a_small_buffer() {
    watch(|| {
        let rt = local(2);
        let sum: u64 = rt.stream(|n: u64| 0..n, common::many(200_000) as u64).values().map(Result::unwrap).sum();
        let n = common::many(200_000) as u64;
        assert_eq!(sum, n * (n - 1) / 2);
    });
}

// Asynchronous producers and consumers.

/// Counts up, and is pending before each item.
struct Sleepy {
    next: u32,
    end: u32,
    sleep: Option<Pin<Box<outray::Sleep>>>,
}

impl Stream for Sleepy {
    type Item = u32;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u32>> {
        if self.next == self.end {
            return Poll::Ready(None);
        }
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(outray::sleep(Duration::from_millis(1))));
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.sleep = None;
        self.next += 1;
        Poll::Ready(Some(self.next - 1))
    }
}

fn sleepy(end: u32) -> Sleepy {
    Sleepy { next: 0, end, sleep: None }
}

#[test]
fn the_items_of_an_async_stream_come_in_their_order() {
    watch(|| {
        let rt = local(1);
        let streams: Vec<_> = (0..10).map(|_| rt.stream(sleepy, 20)).collect();
        for stream in streams {
            assert_eq!(values(stream), Ok((0..20).collect()));
        }
        assert_eq!(values(Runtime::deterministic(1).stream(sleepy, 20)), Ok((0..20).collect()));
    });
}

#[derive(Clone, Serialize, Deserialize)]
struct Handles(Vec<ObjectRef<u32>>);

struct Awaiting {
    handles: std::vec::IntoIter<ObjectRef<u32>>,
    current: Option<ObjectFuture<u32>>,
}

impl Stream for Awaiting {
    type Item = u32;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<u32>> {
        if self.current.is_none() {
            self.current = self.handles.next().map(IntoFuture::into_future);
        }
        let Some(future) = &mut self.current else { return Poll::Ready(None) };
        match Pin::new(future).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(value) => {
                self.current = None;
                Poll::Ready(value.ok())
            }
        }
    }
}

#[test]
fn an_async_stream_awaits_handles() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = |i: u32| {
            GATE.pass();
            i
        };
        let handles = Handles((0..5).map(|i| rt.submit(held, i)).collect());
        let stream = rt.stream(|handles: Handles| Awaiting { handles: handles.0.into_iter(), current: None }, handles);
        GATE.open();
        assert_eq!(values(stream), Ok((0..5).collect()));
    });
}

#[test]
fn dropping_the_consumer_drops_an_async_stream_where_it_waits() {
    watch(|| {
        static POLLED: AtomicBool = AtomicBool::new(false);
        static DROPPED: AtomicBool = AtomicBool::new(false);
        struct Never;
        impl Stream for Never {
            type Item = u8;
            fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u8>> {
                POLLED.store(true, SeqCst);
                Poll::Pending
            }
        }
        impl Drop for Never {
            fn drop(&mut self) {
                DROPPED.store(true, SeqCst);
            }
        }
        let rt = local(1);
        let stream = rt.stream(|| Never, ());
        until("it is polled", || POLLED.load(SeqCst));
        assert!(!DROPPED.load(SeqCst));
        drop(stream);
        until("it is dropped", || DROPPED.load(SeqCst));
    });
}

#[test]
fn an_async_consumer_takes_the_items_as_they_come() {
    watch(|| {
        async fn sum(n: u64) -> outray::Result<u64> {
            let mut stream = Runtime::current().stream(|n: u64| 0..n, n);
            let mut sum = 0;
            while let Some(item) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
                sum += item?.await?;
            }
            Ok(sum)
        }
        let rt = local(1);
        assert_eq!(rt.submit(sum, 1000).get(), Ok(Ok(499_500)));
        // And outside, on any executor.
        let mut stream = rt.stream(sleepy, 5);
        let first = block_on(async { poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await });
        assert_eq!(first.unwrap().unwrap().get(), Ok(0));
        assert_eq!(values(stream), Ok((1..5).collect()));
    });
}

#[test]
fn a_task_consumes_a_stream_on_the_only_cpu() {
    watch(|| {
        let consume = |n: u64| {
            let stream = Runtime::current().streaming(|n: u64| 0..n).buffer(2).submit(n);
            stream.values().map(Result::unwrap).sum::<u64>()
        };
        assert_eq!(local(1).submit(consume, 500).get(), Ok(124_750));
    });
}

#[test]
fn a_producer_consumes_another_stream() {
    watch(|| {
        let chained = |n: u64| {
            let below = Runtime::current().streaming(|n: u64| 0..n).buffer(1).submit(n);
            below.values().map(|item| item.unwrap() + 1)
        };
        assert_eq!(values(local(1).stream(chained, 200)), Ok((1..=200).collect()));
    });
}

// Arguments and failures.

#[test]
fn a_stream_waits_for_its_arguments() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(2);
        let n = rt.submit(
            || {
                GATE.pass();
                3u64
            },
            (),
        );
        let shared = rt.put(vec![10u64]);
        let stream = rt.stream(|n: u64, add: Arc<Vec<u64>>| (0..n).map(move |i| i + add[0]), (&n, &shared));
        GATE.open();
        assert_eq!(values(stream), Ok(vec![10, 11, 12]));
    });
}

#[test]
fn a_stream_with_a_failed_argument_fails_and_names_the_cause() {
    watch(|| {
        let rt = local(1);
        let bad = rt.task(|| -> u64 { panic!("no number") }).name("culprit").submit(());
        let mut stream = rt.streaming(|n: u64| 0..n).name("numbers").submit(&bad);
        let error = stream.next().unwrap().unwrap_err();
        assert!(matches!(error.root_cause(), Error::Panicked { .. }));
        let text = error.to_string();
        assert!(["culprit", "numbers", "no number"].iter().all(|part| text.contains(part)), "{text}");
        assert!(stream.next().is_none());
    });
}

#[test]
fn a_producer_that_panics_delivers_what_it_made_before_and_then_the_panic() {
    watch(|| {
        let rt = local(1);
        let breaks = || (0..10).inspect(|i| assert!(*i < 3, "breaks at {i}"));
        let mut stream = rt.streaming(breaks).name("fragile").submit(());
        for i in 0..3 {
            assert_eq!(stream.next().unwrap().unwrap().get(), Ok(i));
        }
        let error = stream.next().unwrap().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Panicked { .. }));
        assert!(["fragile", "breaks at 3", file!(), "#"].iter().all(|part| text.contains(part)), "{text}");
        assert!(stream.next().is_none());
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1));
    });
}

#[test]
fn a_stream_ends_with_an_error_when_its_runtime_shuts_down() {
    watch(|| {
        static PRODUCED: AtomicUsize = AtomicUsize::new(0);
        static DROPPED: AtomicBool = AtomicBool::new(false);
        let rt = local(1);
        let count = || Count { next: 0, produced: &PRODUCED, dropped: &DROPPED };
        let mut stream = rt.streaming(count).buffer(2).submit(()).values();
        until("the buffer is full", || PRODUCED.load(SeqCst) == 2);
        drop(rt);
        let mut items = 0;
        let error = loop {
            match stream.next() {
                Some(Ok(_)) => items += 1,
                Some(Err(error)) => break error,
                None => panic!("an end without a reason"),
            }
        };
        assert!(matches!(error, Error::Shutdown { .. }), "{error}");
        assert!(items <= 2 && stream.next().is_none());
    });
}
