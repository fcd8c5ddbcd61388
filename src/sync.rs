//! The seam for model checking: code that synchronises imports its primitives from here, which
//! are `parking_lot`'s and `std`'s in a normal build and `loom`'s under `--cfg loom`.

#[cfg(not(loom))]
use parking_lot::Condvar;
#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    thread::{Thread, current as current_thread, park},
};

#[cfg(not(loom))]
pub(crate) use crossbeam_queue::SegQueue;

#[cfg(loom)]
use loom::sync::Condvar;
#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
    thread::{Thread, current as current_thread, park},
};

/// `loom`'s mutex with `parking_lot`'s interface.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(loom)]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("a loom model does not panic while it holds a lock")
    }
}

/// `crossbeam`'s queue, as a model of it.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct SegQueue<T>(Mutex<std::collections::VecDeque<T>>);

#[cfg(loom)]
impl<T> SegQueue<T> {
    pub(crate) fn new() -> Self {
        SegQueue(Mutex::new(std::collections::VecDeque::new()))
    }

    pub(crate) fn push(&self, value: T) {
        self.0.lock().push_back(value);
    }

    pub(crate) fn pop(&self) -> Option<T> {
        self.0.lock().pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// A message for one thread that waits for it.
#[derive(Debug)]
pub(crate) struct Signal<T> {
    message: Mutex<Option<T>>,
    sent: Condvar,
}

impl<T> Signal<T> {
    pub(crate) fn new() -> Self {
        Signal { message: Mutex::new(None), sent: Condvar::new() }
    }

    /// Sends a message; one that was not received yet is replaced.
    pub(crate) fn send(&self, message: T) {
        *self.message.lock() = Some(message);
        self.sent.notify_one();
    }

    /// Blocks until there is a message.
    #[cfg_attr(loom, allow(unused_mut))]
    pub(crate) fn receive(&self) -> T {
        let mut message = self.message.lock();
        loop {
            if let Some(message) = message.take() {
                return message;
            }
            #[cfg(not(loom))]
            self.sent.wait(&mut message);
            #[cfg(loom)]
            {
                message = self.sent.wait(message).expect("a loom model does not panic while it holds a lock");
            }
        }
    }
}
