//! The seam for model checking: code that synchronises imports its primitives from here, which
//! are `parking_lot`'s and `std`'s in a normal build and `loom`'s under `--cfg loom`.

#[cfg(not(loom))]
use parking_lot::Condvar;
#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    thread::{Thread, current as current_thread, park},
};

/// For what is held for a few instructions, hardly ever by two threads: to let go of it is a plain
/// store. No code of the user's runs under it, except for `Clone` of plain values of a few words.
#[cfg(not(loom))]
pub(crate) type SpinLock<T> = spin::mutex::SpinMutex<T, Relax>;
#[cfg(loom)]
pub(crate) type SpinLock<T> = Mutex<T>;

#[cfg(loom)]
use loom::sync::Condvar;
#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    thread::{Thread, current as current_thread, park},
};

/// The CPU that runs this thread; where that is not known, or plays no part, the same for all.
pub(crate) fn this_cpu() -> u32 {
    #[cfg(all(target_os = "linux", not(loom)))]
    return rustix::thread::sched_getcpu() as u32;
    #[cfg(not(all(target_os = "linux", not(loom))))]
    0
}

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

/// What a thread does while somebody else has a [`SpinLock`]: it spins, and from time to time lets
/// the holder have its CPU, in case it was preempted.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Relax;

#[cfg(not(loom))]
impl spin::RelaxStrategy for Relax {
    fn relax() {
        thread_local!(static SPINS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
        let spins = SPINS.get().wrapping_add(1);
        SPINS.set(spins);
        match spins % 64 {
            0 => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
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
