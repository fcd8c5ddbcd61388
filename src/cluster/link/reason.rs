//! Why a link ends, and why it does not take a message.

use super::codec::{self, Malformed, Message};
use std::{fmt, time::Duration};

/// Why a connection is closed or a peer lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    Silent(Duration),
    /// The peer said that it ends.
    Finished,
    /// The peer has given this link up, or is not the one that it was.
    Forgotten,
    /// Another life of the process has taken its place.
    Restarted,
    Malformed(Malformed),
    Protocol(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Silent(time) => write!(f, "nothing was heard from it for {time:.1?}"),
            Reason::Finished => write!(f, "it has ended"),
            Reason::Forgotten => write!(f, "it had given up this process"),
            Reason::Restarted => write!(f, "it was started again"),
            Reason::Malformed(error) => write!(f, "it sent what cannot be read: {error}"),
            Reason::Protocol(what) => write!(f, "it broke the protocol: {what}"),
        }
    }
}

/// Why a message was not taken.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum SendError {
    /// So much waits for the peer that there is no room. `Freed` follows.
    Full(Message),
    TooLarge {
        bytes: usize,
        parts: usize,
    },
    Lost,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SendError::Full(_) => write!(f, "too much waits for this peer already; send it when there is room again"),
            SendError::TooLarge { bytes, parts } => write!(
                f,
                "a message of {bytes} bytes in {parts} parts is too large: at most {} bytes in {} parts; send it in chunks",
                codec::MAX_MESSAGE,
                codec::MAX_PARTS
            ),
            SendError::Lost => write!(f, "the peer is lost"),
        }
    }
}

impl std::error::Error for SendError {}
