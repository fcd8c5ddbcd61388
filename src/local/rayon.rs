//! `rayon` calls inside a task use exactly the CPUs that the task leased.
//!
//! A worker thread is the only member of a `rayon` pool of one, so parallel iterators in a plain
//! task run on that thread. A task that leased several CPUs runs inside a pool of as many threads,
//! taken from a shelf and put back after. Threads from outside the runtime belong to `rayon`'s
//! global pool, so with this feature they never run tasks themselves: see [`VISITORS_MAY_RUN`].

/// Whether a thread from outside may run a task that it waits for.
pub(crate) const VISITORS_MAY_RUN: bool = cfg!(not(feature = "rayon"));

#[cfg(feature = "rayon")]
mod pools {
    use crate::local::resources::WHOLE;
    use parking_lot::Mutex;
    use rayon::{ThreadPool, ThreadPoolBuilder};
    use std::collections::HashMap;

    static SHELF: Mutex<Option<HashMap<usize, Vec<ThreadPool>>>> = Mutex::new(None);

    /// Runs `f` with this thread as a pool of its own.
    pub(crate) fn in_narrow_pool(f: impl FnOnce()) {
        let pool = ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
        if let Err(error) = &pool {
            tracing::warn!(%error, "rayon will use its global pool in tasks");
        }
        f();
    }

    /// Runs `f` where `rayon` has as many threads as `cpu` thousandths of CPUs, rounded up.
    pub(crate) fn in_pool<R: Send>(cpu: Option<u32>, f: impl FnOnce() -> R + Send) -> R {
        let width = cpu.unwrap_or(0).div_ceil(WHOLE) as usize;
        if width <= 1 {
            return f();
        }
        let shelved = SHELF.lock().get_or_insert_default().get_mut(&width).and_then(Vec::pop);
        let build = || ThreadPoolBuilder::new().num_threads(width).build();
        let pool = match shelved.map_or_else(build, Ok) {
            Ok(pool) => pool,
            Err(error) => {
                tracing::warn!(%error, width, "rayon will not have the leased CPUs in a task");
                return f();
            }
        };
        let result = pool.install(f);
        SHELF.lock().get_or_insert_default().entry(width).or_default().push(pool);
        result
    }
}

#[cfg(not(feature = "rayon"))]
mod pools {
    pub(crate) fn in_narrow_pool(f: impl FnOnce()) {
        f();
    }

    pub(crate) fn in_pool<R: Send>(_cpu: Option<u32>, f: impl FnOnce() -> R + Send) -> R {
        f()
    }
}

pub(crate) use pools::{in_narrow_pool, in_pool};
