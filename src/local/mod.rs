//! The runtime in this process: executor, results, mailboxes, admission.
//!
//! [`core`] owns queues and threads and runs jobs; [`task`] and [`actor`] are the jobs; a result
//! lives in a [`slot`]; [`node`] is what all of these look like without their types; [`wait`] is
//! how a thread gets hold of a result; [`idle`] and [`mailbox`] are the two protocols in which
//! threads meet, kept small so that they can be model-checked.

pub(crate) mod actor;
pub(crate) mod core;
pub(crate) mod deterministic;
#[cfg(feature = "gpu-unversioned")]
pub(crate) mod draining;
pub(crate) mod gpus;
pub(crate) mod idle;
pub(crate) mod inbox;
pub(crate) mod mailbox;
#[cfg(all(test, loom))]
mod model;
pub(crate) mod node;
pub(crate) mod observe;
pub(crate) mod rayon;
pub(crate) mod resources;
pub(crate) mod slot;
pub(crate) mod stream;
pub(crate) mod task;
pub(crate) mod thread;
pub(crate) mod timer;
pub(crate) mod wait;

pub(crate) use self::core::{Config, Core, Job, Work, flag};
