//! What can go wrong in a store, and what to do about it.

use crate::error::Error;
use rustix::io::Errno;
use std::{fmt, io, path::Path};

/// Why an object cannot be made, kept or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreError {
    /// The operating system refused.
    Io { action: &'static str, path: String, message: String },
    /// The file system is full.
    NoSpace { path: String, needed: u64 },
    /// It is larger than the store may ever be.
    TooLarge { needed: u64, budget: u64 },
    /// Everything that is in the store is in use. Later there may be space.
    Full { needed: u64, budget: u64, in_use: u64 },
    /// There is an object with this number.
    Exists { id: super::Id },
    /// Nothing was reserved for an object with this number.
    NotReserved { id: super::Id },
    /// The object was removed, or moved to disk, before it was opened.
    Gone { path: String },
    /// The file is not one that this store would have made.
    Foreign { path: String, reason: String },
    /// The writer has not let go of it.
    StillWritten { path: String },
    /// Its node ends.
    Closed,
    /// A file on disk is no longer what was written to it.
    Damaged { path: String },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path, error: &io::Error) -> Self {
        StoreError::Io { action, path: path.display().to_string(), message: error.to_string() }
    }

    /// Of a write of `needed` bytes. A limit on the size of files is a full disk of another kind.
    pub(super) fn write(path: &Path, needed: u64, error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::NOMEM) => {
                StoreError::NoSpace { path: path.display().to_string(), needed }
            }
            _ => StoreError::io("write", path, error),
        }
    }

    pub(super) fn foreign(path: &Path, reason: impl Into<String>) -> Self {
        StoreError::Foreign { path: path.display().to_string(), reason: reason.into() }
    }

    pub(super) fn gone(path: &Path) -> Self {
        StoreError::Gone { path: path.display().to_string() }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Io { action, path, message } => write!(f, "cannot {action} {path}: {message}"),
            StoreError::NoSpace { path, needed } => write!(
                f,
                "no space for {needed} bytes at {path}: the file system is full, or its limits are reached; free some, give the store a smaller budget or another directory, or enlarge it (in a container, /dev/shm is as large as its option --shm-size says)"
            ),
            StoreError::TooLarge { needed, budget } => write!(
                f,
                "an object of {needed} bytes does not fit into a store of {budget}; split it, or give the node's store a larger budget"
            ),
            StoreError::Full { needed, budget, in_use } => write!(
                f,
                "no space for {needed} bytes in a store of {budget}: {in_use} are in use and cannot move to disk now; drop what is not needed, or give the node's store a larger budget"
            ),
            StoreError::Closed => write!(f, "the node ends"),
            StoreError::Exists { id } => write!(f, "there is an object {:x}-{:x} already", id.0, id.1),
            StoreError::NotReserved { id } => write!(f, "nothing was reserved for an object {:x}-{:x}", id.0, id.1),
            StoreError::Gone { path } => {
                write!(f, "{path} was removed or moved to disk before it was opened; ask its node for it again")
            }
            StoreError::Foreign { path, reason } => {
                write!(f, "{path} is not a file of this store: {reason}; somebody else has changed its directory")
            }
            StoreError::StillWritten { path } => write!(f, "{path} is still being written"),
            StoreError::Damaged { path } => {
                write!(f, "{path} is not what was written there; the disk fails, or somebody has changed the file")
            }
        }
    }
}

impl std::error::Error for StoreError {}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Error::Unsupported { reason: error.to_string() }
    }
}
