//! How multi-part messages get from one process to another.
//!
//! A transport makes connections, and moves messages over them. On one connection messages come in
//! order and unchanged; when it breaks, any of the last may be lost, and nobody says which. It does
//! not reconnect, and it authenticates nobody: the layers above do.
//!
//! A transport runs on one thread, in the tokio runtime in which it was made.

pub(crate) mod chosen;
#[cfg(test)]
pub(crate) mod memory;
pub(crate) mod omq;
#[cfg(feature = "transport-zeromq")]
pub(crate) mod zeromq;

use bytes::Bytes;
use std::{fmt, future::Future};

/// One message: its parts.
pub(crate) type Parts = Vec<Bytes>;

/// A connection of a transport. It is never used again for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct ConnectionId {
    /// Whether this side dialed.
    pub(crate) dialed: bool,
    pub(crate) number: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Messages can be sent. `remote` is for people.
    Connected {
        connection: ConnectionId,
        remote: String,
    },
    Message {
        connection: ConnectionId,
        parts: Parts,
    },
    /// There is room again, after a `Full`.
    Writable {
        connection: ConnectionId,
    },
    /// The connection is no more, or could not be made. Nothing follows for it.
    Disconnected {
        connection: ConnectionId,
        reason: String,
    },
}

/// Why a message was not taken.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// `Writable` or `Disconnected` follows.
    Full(Parts),
    /// There is no such connection.
    Closed,
}

/// Why there is no listener.
#[derive(Debug)]
pub(crate) struct BindError {
    pub(crate) address: String,
    pub(crate) reason: String,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not listen on `{}`: {}", self.address, self.reason)
    }
}

impl std::error::Error for BindError {}

pub(crate) trait Transport {
    /// Listens on an address `host:port`; returns it with the port that was chosen for port 0.
    fn bind(&mut self, address: &str) -> impl Future<Output = Result<String, BindError>>;

    /// Starts to connect, and tries until it is connected or closed.
    fn dial(&mut self, address: &str) -> ConnectionId;

    /// Never waits.
    fn send(&mut self, connection: ConnectionId, parts: Parts) -> Result<(), Refused>;

    /// What was sent shortly before may still leave. No event follows for this connection.
    fn close(&mut self, connection: ConnectionId);

    /// The next event. Nothing is lost when the future is dropped.
    fn event(&mut self) -> impl Future<Output = Event>;

    /// Closes everything; waits a moment for what was sent last.
    fn shutdown(&mut self) -> impl Future<Output = ()>;
}
