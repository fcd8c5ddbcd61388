//! Models of the protocols in which threads of a cluster's processes meet, explored by `loom`; see `local::model`. That
//! a nap is over may come before or after anything that others do.

use super::{
    blocks,
    relay::Relay,
    turns::{self, Desk, Turns},
};
use crate::{
    local::thread::Parker,
    sync::{Bell, Mutex},
};
use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    thread,
};
use std::{collections::VecDeque, sync::Arc, time::Instant};

/// With so many switches between threads where neither waits.
fn model(preemptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

/// What comes to a desk.
#[derive(Clone, Copy)]
enum Letter {
    /// What this guest waits for.
    For(usize),
    /// Something to be done at home, which this guest may wait for.
    Errand(Option<usize>),
    Close,
}

/// Letters on their way to the desk, and those who wait for them.
struct Wire {
    letters: Mutex<(VecDeque<Letter>, bool)>,
    comes: Bell,
    done: Vec<AtomicBool>,
    guests: Mutex<Vec<Option<Arc<Parker>>>>,
    users: AtomicUsize,
    errands: AtomicUsize,
    /// What this process has to send, and what has left it.
    posted: AtomicUsize,
    sent: AtomicUsize,
}

impl Wire {
    fn new(guests: usize) -> Arc<Wire> {
        Arc::new(Wire {
            letters: Mutex::new((VecDeque::new(), false)),
            comes: Bell::new(),
            done: (0..guests).map(|_| AtomicBool::new(false)).collect(),
            guests: Mutex::new(vec![None; guests]),
            users: AtomicUsize::new(0),
            errands: AtomicUsize::new(0),
            posted: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        })
    }

    fn send(&self, letter: Letter) {
        self.letters.lock().0.push_back(letter);
        self.comes.ring();
    }

    /// As what this process has to say is: whoever waits for letters sends it.
    fn post(&self, turns: &Turns<Model>) {
        let mut letters = self.letters.lock();
        self.posted.fetch_add(1, SeqCst);
        letters.1 = true;
        drop(letters);
        self.comes.ring();
        turns.posted();
    }

    fn interrupt(&self) {
        self.letters.lock().1 = true;
        self.comes.ring();
    }

    /// As whatever completes what somebody waits for does: first that, then who waits is told.
    fn complete(&self, guest: usize) {
        self.done[guest].store(true, SeqCst);
        let parker = self.guests.lock()[guest].clone();
        if let Some(parker) = parker {
            parker.unpark();
        }
    }

    /// As a thread of the program's does.
    fn wait(self: &Arc<Self>, turns: &Arc<Turns<Model>>, guest: usize) {
        let parker = Parker::new();
        self.guests.lock()[guest] = Some(parker.clone());
        turns.wait(&parker, None, &|| self.done[guest].load(SeqCst));
        assert!(self.done[guest].load(SeqCst));
    }
}

struct Model(Arc<Wire>);

impl Desk for Model {
    fn turn(&mut self, _: Option<Instant>) -> bool {
        assert_eq!(self.0.users.fetch_add(1, SeqCst), 0, "two at the desk");
        assert!(turns::is_at_desk());
        let mut letters = self.0.letters.lock();
        let letter = loop {
            self.0.sent.store(self.0.posted.load(SeqCst), SeqCst);
            let (waiting, is_interrupted) = &mut *letters;
            if let Some(letter) = waiting.pop_front() {
                break Some(letter);
            }
            if std::mem::take(is_interrupted) {
                break None;
            }
            letters = self.0.comes.wait(letters);
        };
        drop(letters);
        match letter {
            Some(Letter::For(guest)) => self.0.complete(guest),
            Some(Letter::Errand(guest)) => {
                let wire = self.0.clone();
                let errand = move || {
                    wire.errands.fetch_add(1, SeqCst);
                    if let Some(guest) = guest {
                        wire.complete(guest);
                    }
                };
                turns::leave(errand, guest.is_some());
            }
            Some(Letter::Close) | None => {}
        }
        self.0.users.fetch_sub(1, SeqCst);
        !matches!(letter, Some(Letter::Close))
    }

    fn send_first(&mut self) {}

    fn stay_awake(&mut self, _: Option<Instant>) {}
}

/// A desk with somebody at home.
fn desk(guests: usize) -> (Arc<Wire>, Arc<Turns<Model>>, thread::JoinHandle<()>) {
    let wire = Wire::new(guests);
    let interrupts = wire.clone();
    let turns = Arc::new(Turns::new(move || interrupts.interrupt()));
    let (served, at) = (turns.clone(), wire.clone());
    let home = thread::spawn(move || served.serve(Model(at)));
    (wire, turns, home)
}

/// What a guest waits for comes while home has the desk, or naps, or the guest works.
#[test]
fn model_a_guest_gets_what_it_waits_for() {
    model(3, || {
        let (wire, turns, home) = desk(1);
        wire.send(Letter::For(0));
        wire.wait(&turns, 0);
        wire.send(Letter::Errand(None));
        wire.send(Letter::Close);
        home.join().unwrap();
        assert_eq!(wire.errands.load(SeqCst), 1);
    });
}

/// The letters of two come in the wrong order: who works does what the other waits for.
#[test]
fn model_two_guests_get_what_they_wait_for() {
    model(2, || {
        let (wire, turns, home) = desk(2);
        let (first, at) = (wire.clone(), turns.clone());
        let first = thread::spawn(move || first.wait(&at, 0));
        wire.send(Letter::For(0));
        wire.send(Letter::For(1));
        wire.wait(&turns, 1);
        first.join().unwrap();
        wire.send(Letter::Close);
        home.join().unwrap();
    });
}

/// What a guest waits for is done at home, while the guest may be at the desk.
#[test]
fn model_errands_are_run_while_a_guest_works() {
    model(2, || {
        let (wire, turns, home) = desk(1);
        wire.send(Letter::Errand(None)); // after this home puts the desk back
        let at = wire.clone();
        let other = thread::spawn(move || at.send(Letter::Errand(Some(0))));
        wire.wait(&turns, 0);
        other.join().unwrap();
        wire.send(Letter::Close);
        home.join().unwrap();
        assert_eq!(wire.errands.load(SeqCst), 2);
    });
}

/// No letter ends the wait, but another thread.
#[test]
fn model_a_guest_at_the_desk_is_told_of_what_others_do() {
    model(2, || {
        let (wire, turns, home) = desk(1);
        wire.send(Letter::Errand(None)); // after this home puts the desk back
        let at = wire.clone();
        let other = thread::spawn(move || at.complete(0));
        wire.wait(&turns, 0);
        other.join().unwrap();
        wire.send(Letter::Close);
        home.join().unwrap();
    });
}

/// What is posted leaves, whoever is at the desk, and also when nobody is.
#[test]
fn model_what_is_posted_leaves() {
    model(2, || {
        let (wire, turns, home) = desk(1);
        let (at, to) = (wire.clone(), turns.clone());
        let poster = thread::spawn(move || {
            at.post(&to);
            at.post(&to);
            at.send(Letter::For(0)); // the answer
        });
        wire.wait(&turns, 0);
        poster.join().unwrap();
        wire.post(&turns);
        while wire.sent.load(SeqCst) < 3 {
            thread::yield_now();
        }
        wire.send(Letter::Close);
        home.join().unwrap();
    });
}

/// What is used in turns. Each use is counted, so that it is seen if two use it at once.
struct Used<'a>(&'a AtomicUsize);

impl<'a> Used<'a> {
    fn new(users: &'a AtomicUsize) -> Self {
        assert_eq!(users.fetch_add(1, SeqCst), 0, "two have it");
        Used(users)
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Letters of a pipe, of which the task that the first is about waits for the second: whether it says so before or not.
fn a_task_waits_for_the_next_letter(says_so: bool) {
    let relay = Arc::new(Relay::<u32>::new());
    let users = Arc::new(AtomicUsize::new(0));
    let handled = Arc::new((Mutex::new(0), Bell::new()));
    let (other, used, told) = (relay.clone(), users.clone(), handled.clone());
    let other = thread::spawn(move || {
        let pipe = other.stand_by();
        let _used = Used::new(&used);
        assert_eq!(pipe, 1, "the second letter is next");
        *told.0.lock() = 2;
        told.1.ring();
    });
    // Nobody stands by at first: the reader keeps it, and another thread runs the task.
    let mut put = relay.put_down(1);
    while put.is_err() {
        drop(Used::new(&users));
        thread::yield_now();
        put = relay.put_down(1);
    }
    if says_so {
        relay.call();
    }
    let mut letters = handled.0.lock();
    while *letters < 2 {
        letters = handled.1.wait(letters);
    }
    drop(letters);
    assert_eq!(relay.take_up(), None);
    other.join().unwrap();
}

#[test]
fn model_a_letter_is_read_while_the_task_before_it_waits() {
    model(3, || a_task_waits_for_the_next_letter(true));
}

#[test]
fn model_a_letter_is_read_while_the_task_before_it_takes_long() {
    model(3, || a_task_waits_for_the_next_letter(false));
}

/// Short tasks: each of two threads reads what comes as long as it has the pipe, and every letter is read once.
#[test]
fn model_readers_take_turns() {
    model(3, || {
        const LETTERS: usize = 2;
        let relay = Arc::new(Relay::<usize>::new());
        let users = Arc::new(AtomicUsize::new(0));
        let read = Arc::new(AtomicUsize::new(0));
        let reads = {
            let (relay, users, read) = (relay.clone(), users.clone(), read.clone());
            move |mut at: usize| {
                while at < LETTERS {
                    let used = Used::new(&users);
                    at += 1;
                    read.fetch_add(1, SeqCst);
                    drop(used);
                    at = match relay.put_down(at) {
                        Ok(()) => relay.take_up().unwrap_or_else(|| relay.stand_by()), // the task is run before that
                        Err(at) => at,
                    };
                }
                // The pipe ends, for both.
                if at == LETTERS {
                    let mut put = relay.put_down(at + 1);
                    while let Err(at) = put {
                        thread::yield_now();
                        put = relay.put_down(at);
                    }
                }
            }
        };
        let (other, reads_too) = (relay.clone(), reads.clone());
        let other = thread::spawn(move || reads_too(other.stand_by()));
        reads(0);
        other.join().unwrap();
        assert_eq!(read.load(SeqCst), LETTERS);
    });
}

/// A worker writes values to blocks, and a node reads them and gives the blocks back, on two threads that drop the values when they like.
/// There is room for two.
#[test]
#[allow(unsafe_code)] // `loom`'s cells say who looks at them when
fn model_blocks_are_written_to_only_when_they_have_been_read() {
    const VALUES: u64 = 3;
    model(3, || {
        let word = Arc::new(AtomicU64::new(!0b1111));
        let cells: Arc<[UnsafeCell<u64>; 2]> = Arc::new([0, 0].map(UnsafeCell::new));
        let letters = Arc::new((Mutex::new(VecDeque::new()), Bell::new()));
        let node = |count: usize| {
            let (word, cells, letters) = (word.clone(), cells.clone(), letters.clone());
            thread::spawn(move || {
                for _ in 0..count {
                    let mut queue = letters.0.lock();
                    while queue.is_empty() {
                        queue = letters.1.wait(queue);
                    }
                    let (at, value): (usize, u64) = queue.pop_front().unwrap();
                    drop(queue);
                    let bits = blocks::ones(2) << at;
                    assert!(blocks::are_taken(&word, bits));
                    cells[at / 2].with(|cell| assert_eq!(unsafe { *cell }, value));
                    blocks::give(&word, bits);
                }
            })
        };
        let nodes = [node(2), node(1)];
        for value in 1..=VALUES {
            let at = loop {
                match blocks::take([&*word].into_iter(), 2) {
                    Some(at) => break at,
                    None => thread::yield_now(),
                }
            };
            cells[at / 2].with_mut(|cell| unsafe { *cell = value });
            letters.0.lock().push_back((at, value));
            letters.1.ring();
        }
        nodes.into_iter().for_each(|node| node.join().unwrap());
        assert_eq!(word.load(SeqCst), !0b1111);
    });
}
