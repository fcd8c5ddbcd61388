//! Models of the protocols in which threads meet, explored by `loom` in all interleavings:
//! `RUSTFLAGS="--cfg loom" cargo test --release --lib model`.

use super::{
    idle::{Idle, Place, SEAT, Sleeper},
    mailbox::{Mailbox, Pushed},
    slot::{Completed, Slot, Waiter},
    thread::Parker,
};
use crate::sync::{Mutex, park};
use loom::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};
use std::{collections::VecDeque, convert::Infallible, sync::Arc};

/// A slot with nothing to run.
type NumberSlot = Slot<u32>;

/// Counts how often it is told.
struct Count(AtomicUsize);

impl Waiter for Count {
    fn notify(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn model_slot_tells_each_waiter_once() {
    loom::model(|| {
        let slot = Arc::new(NumberSlot::new());
        let completer = {
            let slot = slot.clone();
            thread::spawn(move || assert!(slot.complete(Ok(7)).is_first()))
        };
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waiter: Arc<dyn Waiter> = count.clone();
        let registered = slot.add_waiter(&waiter);
        if !registered {
            assert!(slot.is_done());
            assert_eq!(slot.copy(), Ok(7));
        }
        completer.join().unwrap();
        assert_eq!(count.0.load(Ordering::SeqCst), usize::from(registered));
        assert_eq!(slot.copy(), Ok(7));
    });
}

#[test]
fn model_slot_first_of_two_completions_wins() {
    loom::model(|| {
        let slot = Arc::new(NumberSlot::new());
        let other = {
            let slot = slot.clone();
            thread::spawn(move || slot.complete(Ok(1)).is_first())
        };
        let ours = slot.complete(Ok(2)).is_first();
        let theirs = other.join().unwrap();
        assert!(ours != theirs);
        assert_eq!(slot.copy(), Ok(if ours { 2 } else { 1 }));
    });
}

#[test]
fn model_parked_thread_wakes_when_slot_is_done() {
    loom::model(|| {
        let slot = Arc::new(NumberSlot::new());
        let completer = {
            let slot = slot.clone();
            thread::spawn(move || {
                slot.complete(Ok(7));
            })
        };
        let parker = Parker::new();
        let waiter: Arc<dyn Waiter> = parker.clone();
        if slot.add_waiter(&waiter) {
            while !slot.is_done() {
                park();
                parker.reset();
            }
        }
        assert_eq!(slot.copy(), Ok(7));
        completer.join().unwrap();
    });
}

/// Two want to run it, and one cancels it: it is run once or not at all, and ends once.
#[test]
fn model_body_is_run_once_or_cancelled() {
    loom::model(|| {
        let slot = Arc::new(Slot::<u32, u32>::waiting(7, 0));
        let runner = {
            let slot = slot.clone();
            thread::spawn(move || {
                let body = slot.take_body();
                body.is_some_and(|body| slot.complete(Ok(body)).is_first())
            })
        };
        let canceller = {
            let slot = slot.clone();
            thread::spawn(move || match slot.complete(Ok(0)) {
                Completed::TooLate => (false, false),
                Completed::Ended => (true, false),
                Completed::Unstarted { body, .. } => (true, body == 7),
            })
        };
        let ours = slot.take_body();
        let ended = ours.is_some_and(|body| slot.complete(Ok(body)).is_first());
        let theirs = runner.join().unwrap();
        let (cancelled, unstarted) = canceller.join().unwrap();
        assert_eq!(u32::from(ended) + u32::from(theirs) + u32::from(cancelled), 1);
        assert!(!(unstarted && ours.is_some()), "it was run, and called unstarted");
        assert_eq!(slot.copy(), Ok(if cancelled { 0 } else { 7 }));
    });
}

/// The last handle goes while the result comes: the value does not stay.
#[test]
fn model_value_without_handles_is_dropped() {
    struct Value(Arc<AtomicUsize>);
    impl Drop for Value {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    loom::model(|| {
        let slot = Arc::new(Slot::<Value, Infallible>::new());
        let handles = Arc::new(AtomicUsize::new(1));
        let drops = Arc::new(AtomicUsize::new(0));
        let completer = {
            let (slot, handles, drops) = (slot.clone(), handles.clone(), drops.clone());
            thread::spawn(move || {
                // as `node::complete` does
                if slot.complete(Ok(Value(drops))).is_first() && handles.load(Ordering::Acquire) == 0 {
                    slot.discard();
                }
            })
        };
        // as `ObjectRef::drop` does
        if handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            slot.discard();
        }
        completer.join().unwrap();
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    });
}

/// An actor of calls that are numbers, with the runner's part in short.
struct Model {
    mailbox: Mailbox<usize>,
    running: AtomicBool,
    ran: Mutex<Vec<usize>>,
    scheduled: AtomicUsize,
}

impl Model {
    fn push(&self, call: usize) {
        if let Pushed::Schedule = self.mailbox.push(call) {
            self.scheduled.fetch_add(1, Ordering::SeqCst);
            self.job();
        }
    }

    /// One job for the actor; it may come late.
    fn job(&self) {
        if !self.mailbox.claim() {
            return;
        }
        assert!(!self.running.swap(true, Ordering::SeqCst), "two runners");
        let mut inbox = VecDeque::new();
        loop {
            let Some(call) = inbox.pop_front() else {
                // The mailbox may be claimed anew as soon as `refill` says that it is idle.
                self.running.store(false, Ordering::SeqCst);
                if !self.mailbox.refill(&mut inbox) {
                    return;
                }
                self.running.store(true, Ordering::SeqCst);
                continue;
            };
            self.ran.lock().push(call);
        }
    }
}

#[test]
fn model_mailbox_runs_each_call_once_in_order() {
    loom::model(|| {
        let model = Arc::new(Model {
            mailbox: Mailbox::new(),
            running: AtomicBool::new(false),
            ran: Mutex::new(Vec::new()),
            scheduled: AtomicUsize::new(0),
        });
        assert!(model.mailbox.open());
        model.job(); // nothing waits: goes idle
        let other = {
            let model = model.clone();
            thread::spawn(move || {
                model.push(10);
                model.push(11);
            })
        };
        model.push(20);
        other.join().unwrap();
        let ran = model.ran.lock();
        let of = |caller: usize| ran.iter().copied().filter(|call| call / 10 == caller).collect::<Vec<_>>();
        assert_eq!((of(1), of(2)), (vec![10, 11], vec![20]));
    });
}

/// A call that wants the state for itself waits for one that shares it, and is not forgotten.
#[test]
fn model_mailbox_last_reader_schedules_the_actor() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::<usize>::new());
        let scheduled = Arc::new(AtomicUsize::new(0));
        assert!(mailbox.open() && mailbox.claim());
        mailbox.add_reader();
        let reader = {
            let (mailbox, scheduled) = (mailbox.clone(), scheduled.clone());
            thread::spawn(move || {
                if mailbox.reader_done(false) {
                    scheduled.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let waits = mailbox.must_wait_for_readers();
        reader.join().unwrap();
        assert_eq!(scheduled.load(Ordering::SeqCst), usize::from(waits));
        if waits {
            assert!(mailbox.claim());
        }
        assert!(!mailbox.must_wait_for_readers());
    });
}

/// A poke, for a call whose arguments are there now, is seen or schedules the actor.
#[test]
fn model_mailbox_poke_is_not_lost() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::<usize>::new());
        let ready = Arc::new(AtomicBool::new(false));
        assert!(mailbox.open() && mailbox.claim());
        let poker = {
            let (mailbox, ready) = (mailbox.clone(), ready.clone());
            thread::spawn(move || {
                ready.store(true, Ordering::SeqCst);
                mailbox.poke()
            })
        };
        // the runner: looks at its lanes, then refills, until there is nothing
        let mut inbox = VecDeque::new();
        let mut seen = ready.load(Ordering::SeqCst);
        while mailbox.refill(&mut inbox) {
            seen |= ready.load(Ordering::SeqCst);
        }
        let scheduled = poker.join().unwrap();
        assert!(seen || scheduled);
    });
}

/// Work is pushed while the only worker goes to sleep: it is woken, or sees the work.
#[test]
fn model_sleeper_never_misses_work() {
    loom::model(|| {
        let idle = Arc::new(Idle::<usize>::new());
        idle.reset(SEAT);
        idle.stand_up(0); // the worker searches
        let queue = Arc::new(Mutex::new(VecDeque::new()));
        let worker = {
            let (idle, queue) = (idle.clone(), queue.clone());
            thread::spawn(move || {
                let sleeper = Arc::new(Sleeper::new());
                loop {
                    // search, once
                    if !queue.lock().is_empty() && idle.sit_down().is_some() {
                        let found: Option<usize> = queue.lock().pop_front();
                        idle.stand_up(SEAT);
                        if found.is_some() {
                            return;
                        }
                    }
                    idle.enter(&sleeper);
                    let work_left = !queue.lock().is_empty();
                    if work_left && idle.claim_wake() && idle.leave(&sleeper) {
                        continue;
                    }
                    sleeper.receive();
                }
            })
        };
        queue.lock().push_back(1);
        if idle.claim_wake() {
            let sleeper = idle.pop(Place::Elsewhere).expect("the only worker sleeps if nobody searches");
            sleeper.send(None);
        }
        worker.join().unwrap();
        assert!(queue.lock().is_empty());
    });
}

/// A visitor holds the only seat while work is pushed; when it leaves, somebody comes for the work.
#[test]
fn model_seat_given_back_brings_a_searcher() {
    loom::model(|| {
        let idle = Arc::new(Idle::<usize>::new());
        idle.reset(SEAT);
        let queue = Arc::new(Mutex::new(0));
        assert!(idle.try_sit());
        let visitor = {
            let (idle, queue) = (idle.clone(), queue.clone());
            thread::spawn(move || {
                idle.give(SEAT);
                *queue.lock() > 0 && idle.claim_wake()
            })
        };
        *queue.lock() = 1;
        let woken = idle.claim_wake();
        let by_visitor = visitor.join().unwrap();
        assert!(woken || by_visitor, "the work is there, the seat is free, and nobody was woken");
    });
}
