//! One program on many machines: [`Runtime::connect`](crate::Runtime::connect), [`LocalCluster`], and the command
//! `outray`, which `docs/cluster.md` describes. Young.
//!
//! ```text
//! decisions       head, node, owner, protocol, capacity   state machines, no I/O; run by `simulation`
//! functions       function, image, entry                  how a function travels, and becomes a worker's
//! objects         store                                   files in shared memory, written once, read in place
//! messages        endpoint                                one I/O thread per process: peers, dialing, timers
//!                   link                                  exactly once and in order between two lives (no I/O)
//!                   secure                                the cluster's key: handshake, encrypted records (no I/O)
//!                   transport                             messages over connections: memory, `omq-tokio`, `zeromq`
//! bulk data               bulk                            large objects, over connections of their own
//! ```
//!
//! The head places what nodes pass on, a node admits and runs, an owner (each process that submits
//! tasks is one) knows the fate of its own tasks and objects. Each takes a message or the passing of
//! time and answers with effects. The [`simulation`] runs thousands of them in one thread, in virtual
//! time, and breaks what lies between them.
//!
//! A worker is this very executable, started once more (`entry`). A function is named by the
//! executable's content hash and a place inside it (`function`), so nothing is registered. Nodes
//! keep executables by content hash (`image`).

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("the feature `cluster` needs 64-bit Linux: build without it, and use `Runtime::local()`");

// The modules with unsafe code. Each says what it relies on.
#[doc(hidden)]
#[allow(unsafe_code)]
pub mod entry;
#[doc(hidden)]
#[allow(unsafe_code)]
pub mod function;
#[doc(hidden)]
pub mod image;

#[allow(unsafe_code)]
mod arena;
mod blocks;
#[doc(hidden)]
pub mod commands;
#[doc(hidden)]
pub mod travel;
// And `store::map`, which maps files.
mod store;

mod capacity;
mod head;
mod node;
mod own_queue;
mod owner;
pub(crate) mod protocol;
mod serving;
pub mod simulation;

mod bulk;
mod endpoint;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod link;
mod refusals;
mod secure;
mod transport;

pub(crate) mod actors;
pub(crate) mod client;
mod control_store;
pub(crate) mod cycles;
mod driver;
pub(crate) mod groups;
mod head_process;
mod local_cluster;
mod look;
mod node_process;
pub(crate) mod pace;
mod pack;
mod passed;
mod pipe;
mod printed;
mod read_ahead;
pub(crate) mod reading;
mod relay;
mod remote;
mod roles;
mod rows;
mod running;
mod runs;
mod shelf;
mod signals;
mod station;
pub(crate) mod streams;
pub(crate) mod turns;
pub(crate) mod wire;
mod worker;

pub(crate) use client::is_receiver;
pub use local_cluster::{LocalCluster, LocalClusterBuilder};
pub(crate) use runs::write_trace;

/// The key that the environment names, if it names one.
pub(crate) fn key_from_env() -> crate::Result<Option<secure::Key>> {
    driver::key()
}
