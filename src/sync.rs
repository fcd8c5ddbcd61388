//! The seam for model checking: code that synchronises imports its primitives from here, which
//! are `parking_lot`'s and `std`'s in a normal build and `loom`'s under `--cfg loom`.

#[cfg(not(loom))]
use parking_lot::Condvar;
#[cfg(not(loom))]
pub(crate) use parking_lot::{Mutex, MutexGuard};
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
pub(crate) use loom::sync::{
    MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(loom)]
pub(crate) use parking::{Thread, current_thread, park};

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

/// `std`'s parking for models: in `loom`'s, to unpark a thread ends whatever that is blocked on.
#[cfg(loom)]
mod parking {
    use super::{Bell, Mutex};
    use std::sync::Arc;

    loom::thread_local! {
        static CURRENT: Thread = Thread(Arc::new((Mutex::new(false), Bell::new())));
    }

    /// Whether it was unparked since it parked last.
    #[derive(Clone, Debug)]
    pub(crate) struct Thread(Arc<(Mutex<bool>, Bell)>);

    impl Thread {
        pub(crate) fn unpark(&self) {
            *self.0.0.lock() = true;
            self.0.1.ring();
        }

        pub(crate) fn id(&self) -> usize {
            Arc::as_ptr(&self.0).addr()
        }
    }

    pub(crate) fn current_thread() -> Thread {
        CURRENT.with(Thread::clone)
    }

    pub(crate) fn park() {
        let thread = current_thread();
        let mut is_unparked = thread.0.0.lock();
        while !std::mem::take(&mut *is_unparked) {
            is_unparked = thread.0.1.wait(is_unparked);
        }
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

/// Where threads wait that hold a lock, until another rings: a condition variable.
#[derive(Debug)]
pub(crate) struct Bell(Condvar);

impl Bell {
    pub(crate) fn new() -> Self {
        Bell(Condvar::new())
    }

    /// Wakes one of those who wait.
    pub(crate) fn ring(&self) {
        self.0.notify_one();
    }

    /// Waits until it rings; it may also wake without.
    #[cfg_attr(loom, allow(unused_mut))]
    pub(crate) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        #[cfg(not(loom))]
        self.0.wait(&mut guard);
        #[cfg(loom)]
        let guard = self.0.wait(guard).expect("a loom model does not panic while it holds a lock");
        guard
    }

    /// Waits until it rings, or for that long; `false`: that long. In a model that may be before or after anything that others
    /// do, and what rings meanwhile is not heard.
    #[cfg(any(feature = "cluster", loom))]
    pub(crate) fn nap<'a, T>(
        &self,
        _lock: &'a Mutex<T>,
        mut guard: MutexGuard<'a, T>,
        _time: std::time::Duration,
    ) -> (MutexGuard<'a, T>, bool) {
        #[cfg(not(loom))]
        let rings = !self.0.wait_for(&mut guard, _time).timed_out();
        #[cfg(loom)]
        let rings = {
            drop(guard);
            loom::thread::yield_now();
            guard = _lock.lock();
            false
        };
        (guard, rings)
    }
}

/// A message for one thread that waits for it.
#[derive(Debug)]
pub(crate) struct Signal<T> {
    message: Mutex<Option<T>>,
    sent: Bell,
}

impl<T> Signal<T> {
    pub(crate) fn new() -> Self {
        Signal { message: Mutex::new(None), sent: Bell::new() }
    }

    /// Sends a message; one that was not received yet is replaced.
    pub(crate) fn send(&self, message: T) {
        *self.message.lock() = Some(message);
        self.sent.ring();
    }

    /// Blocks until there is a message.
    pub(crate) fn receive(&self) -> T {
        let mut message = self.message.lock();
        loop {
            match message.take() {
                Some(message) => return message,
                None => message = self.sent.wait(message),
            }
        }
    }
}
