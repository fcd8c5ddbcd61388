//! Tasks, actors and objects for Rust programs that have outgrown one core.
//!
//! `outray` runs functions as tasks, types as actors, and passes results between them as handles
//! to objects, after Ray (Moritz et al., OSDI 2018). It runs in the caller's process, with
//! overheads of well under a microsecond; the same program is to run on a cluster.
//!
//! There are no macros, no registration and no `init`: a function is a task, a type is an actor, a
//! method path is a call.
//!
//! ```
//! use outray::{Result, Runtime};
//! use std::sync::Arc;
//!
//! fn sum(v: Arc<Vec<f64>>) -> f64 {
//!     v.iter().sum()
//! }
//!
//! struct Mean { total: f64, count: u32 }
//! impl Mean {
//!     fn new() -> Self { Mean { total: 0.0, count: 0 } }
//!     fn add(&mut self, x: f64) { self.total += x; self.count += 1; }
//!     fn value(&self) -> f64 { self.total / f64::from(self.count) }
//! }
//!
//! fn main() -> Result<()> {
//!     let rt = Runtime::local();
//!     let data = rt.put(vec![1.0, 2.0, 3.0]);
//!     let total = rt.submit(sum, &data); // shares the data, does not copy it
//!     let twice = rt.submit(|x: f64| 2.0 * x, &total); // starts when `total` is there
//!
//!     let mean = rt.actor(Mean::new, ());
//!     mean.call(Mean::add, &total);
//!     mean.call(Mean::add, &twice);
//!     assert_eq!(mean.call(Mean::value, ()).get()?, 9.0);
//!     Ok(())
//! }
//! ```
//!
//! # Where to find what
//! - [`Runtime`]: `put`, `submit`, `task` (options), `stream`, `actor`, `wait`, `map`, `reduce`.
//! - [`ObjectRef`]: `get`, `get_shared`, `get_timeout`, `take`, `cancel`, `.await`.
//! - [`Array`], [`buffer`]: numbers and bytes that are shared instead of copied, on a cluster too.
//! - [`Actor`], [`ActorBuilder`], [`ActorPool`], [`Queue`], [`ObjectStream`].
//! - [`task`]: what a task knows of itself; [`sleep`] for `async` code.
//! - [`Runtime::stats`], `list_tasks`, `list_actors`, `list_objects`, `explain`, `timeline`.
//! - [`Runtime::deterministic`] and [`Builder::check_serialization`] for tests.
//! - [`Error`]: everything that can go wrong, and what to do about it.
//!
//! Semantics (ordering, delivery, failure) are in `docs/semantics.md`, the insides in
//! `ARCHITECTURE.md`.
//!
//! # Features
//! - `progress` (default): progress bars on long maps, with `indicatif`.
//! - `arrow`: `Batch`, record batches of Arrow that are shared.
//! - `ndarray`: `NdArray`, arrays of many dimensions that are shared.
//! - `rayon`: `rayon` calls inside a task use exactly the CPUs that the task leased.
//! - `tokio`: [`Builder`] takes a tokio runtime in which `async` tasks are polled.

/// What unit tests share with the others names the crate as those do.
#[cfg(all(test, feature = "gpu-unversioned"))]
extern crate self as outray;

mod actor;
mod args;
mod array;
pub mod buffer;
#[cfg(feature = "cluster")]
pub mod cluster;
/// The protocols of the cluster that are model-checked; the rest of it does not build under `loom`.
#[cfg(all(test, loom))]
mod cluster {
    mod blocks;
    mod model;
    mod pace;
    mod relay;
    mod turns;
}
mod error;
mod function;
pub mod gpu;
mod local;
mod object;
mod observe;
mod parallel;
mod pool;
mod progress;
mod queue;
mod resources;
mod runtime;
mod serial;
mod stream;
mod sync;
pub mod task;

pub use actor::{Actor, ActorBuilder, Call};
pub use args::{IntoArg, IntoArgs};
#[cfg(feature = "arrow")]
pub use array::Batch;
#[cfg(feature = "ndarray")]
pub use array::NdArray;
pub use array::{Array, Element};
#[cfg(feature = "cluster")]
pub use cluster::{LocalCluster, LocalClusterBuilder};
pub use error::{Error, Origin, Result};
pub use function::{Constructor, Method, RemoteFn, StreamFn};
pub use local::timer::Sleep;
pub use object::{Object, ObjectFuture, ObjectRef};
pub use observe::{ActorInfo, ActorState, Explanation, Filter, ObjectInfo, Stats, TaskInfo, TaskState};
pub use parallel::{Map, MapUnordered};
pub use pool::ActorPool;
pub use queue::Queue;
pub use resources::{Bundle, Isolation, PlacementGroup, PlacementStrategy, Strategy};
pub use runtime::{Builder, Runtime};
pub use stream::{ObjectStream, StreamTask, Values};
pub use task::{Fallible, Split, Task};

/// The README's code, as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// A future that is ready after `duration`. In a task of a deterministic runtime the time is
/// virtual: it costs none, and passes when nothing can run.
///
/// ```
/// # use outray::Runtime;
/// # use std::time::Duration;
/// async fn later() -> u32 {
///     outray::sleep(Duration::from_secs(3600)).await;
///     7
/// }
/// let rt = Runtime::deterministic(1);
/// assert_eq!(rt.submit(later, ()).get()?, 7); // at once
/// # Ok::<(), outray::Error>(())
/// ```
pub fn sleep(duration: std::time::Duration) -> Sleep {
    Sleep::new(duration)
}
