//! Everything that can go wrong, in one enum whose messages say what happened, to what, and what
//! to do about it.

use crate::gpu::GpuError;
use serde::{Deserialize, Deserializer, Serialize};
use std::{cell::Cell, fmt, time::Duration};

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The task, call or actor that an error is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// What it is: "task", "call", "stream", "actor" or "object".
    pub kind: String,
    /// The name given to it, or else the path of its function.
    pub name: String,
    /// Its number, unique in the process that submitted it.
    pub id: u64,
    /// Which attempt failed, counted from 1.
    pub attempt: u32,
    /// Where it was submitted, as `file:line:column`.
    pub location: String,
    /// The node it ran on; `local` in the caller's own process.
    pub node: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}` (#{}", self.kind, self.name, self.id)?;
        if self.attempt > 1 {
            write!(f, ", attempt {}", self.attempt)?;
        }
        if self.node != "local" {
            write!(f, ", on node {}", self.node)?;
        }
        write!(f, ", submitted at {})", self.location)
    }
}

/// Why a task, an actor or a call of this crate failed.
///
/// Errors are cheap enough to clone and can be serialized, so that every dependent of a failed
/// task can carry the whole chain of causes: see [`Error::root_cause`].
///
/// `Debug` writes the same sentence as `Display`, so that `unwrap`, and a `main` that returns
/// [`Result`], say what happened and what to do.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// The function panicked, on its last permitted attempt.
    Panicked {
        /// The task or call that panicked.
        origin: Box<Origin>,
        /// The panic's message.
        message: String,
    },
    /// An argument could not be had, because the task that should have produced it failed.
    DependencyFailed {
        /// The dependent that did not run.
        origin: Box<Origin>,
        /// Why its argument failed.
        #[serde(deserialize_with = "shallow")]
        cause: Box<Error>,
    },
    /// An argument's producer returned `Err`, and the dependent asks for the `Ok` value.
    DependencyReturnedErr {
        /// The producer.
        origin: Box<Origin>,
        /// The `Err` value, displayed.
        message: String,
    },
    /// It was cancelled before it finished.
    Cancelled {
        /// What was cancelled.
        origin: Box<Origin>,
    },
    /// It did not finish before its deadline.
    DeadlineExceeded {
        /// What was late.
        origin: Box<Origin>,
        /// The time it had, counted from its submission.
        after: Duration,
    },
    /// It asks for resources that nothing here will ever have.
    Infeasible {
        /// What asked.
        origin: Box<Origin>,
        /// What is missing.
        reason: String,
    },
    /// No GPU can be used, or the one that it had could not be used any more.
    Gpu {
        /// What asked for it; nothing if that was no task or actor.
        origin: Option<Box<Origin>>,
        /// Why.
        error: GpuError,
    },
    /// Its value, or the process that was making it, is lost, and it may not be made again.
    Lost {
        /// What is lost.
        origin: Box<Origin>,
        /// How.
        reason: String,
    },
    /// A `get` or a queue operation reached its time limit.
    Timeout {
        /// What was waited for, and what it is doing.
        waiting_for: String,
        /// The time limit.
        after: Duration,
    },
    /// Waiting would never end: each in this list waits for the next, and the last for the first. One of the waits
    /// fails so, and the others may go on.
    WaitCycle {
        /// The members of the cycle, in the order in which they wait.
        path: Vec<String>,
    },
    /// The actor's constructor failed, its method panicked, or it was killed or stopped.
    ActorDied {
        /// The actor.
        origin: Box<Origin>,
        /// How it ended.
        cause: String,
    },
    /// No actor has this name, or the one that has it is of another type.
    ActorNotFound {
        /// The name that was looked up.
        name: String,
        /// What stands under that name, if anything.
        detail: String,
    },
    /// Another actor has this name.
    NameTaken {
        /// The name.
        name: String,
    },
    /// The actor has as many calls waiting as it was told to accept.
    TooManyPendingCalls {
        /// The call that was refused.
        origin: Box<Origin>,
        /// The limit.
        limit: usize,
    },
    /// A value did not survive serialization, so it could not travel to another process.
    Serialization {
        /// What was serialized.
        what: String,
        /// What the serializer said.
        message: String,
    },
    /// An option makes no sense.
    InvalidOption {
        /// Which, and why.
        reason: String,
    },
    /// The queue holds as many items as it may.
    QueueFull {
        /// Its capacity in items.
        capacity: usize,
    },
    /// The queue holds nothing.
    QueueEmpty,
    /// The information was not recorded.
    NotObserving {
        /// What was asked for.
        what: String,
    },
    /// The runtime was shut down.
    Shutdown {
        /// What it was asked to do.
        what: String,
    },
    /// Nothing is left that could run, and something still waits (deterministic mode).
    Deadlock {
        /// What waits for what.
        detail: String,
    },
    /// This build cannot do that.
    Unsupported {
        /// What, and what to do instead.
        reason: String,
    },
    /// A file could not be written.
    Io {
        /// The file.
        path: String,
        /// What the operating system said.
        message: String,
    },
}

/// A chain of causes that is longer than any of ours would use up the stack of who reads it.
fn shallow<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<Error>, D::Error> {
    const DEEPEST: u32 = 64;
    thread_local! {
        static DEPTH: Cell<u32> = const { Cell::new(0) };
    }
    let depth = DEPTH.get();
    if depth == DEEPEST {
        return Err(serde::de::Error::custom("a chain of more causes than there can be"));
    }
    DEPTH.set(depth + 1);
    let cause = Box::deserialize(deserializer);
    DEPTH.set(depth);
    cause
}

impl Error {
    /// The first failure in the chain: for a dependent that did not run, what its argument died of.
    ///
    /// ```
    /// # use outray::{Error, Runtime};
    /// let rt = Runtime::local();
    /// let bad = rt.submit(|| -> i32 { panic!("no luck") }, ());
    /// let next = rt.submit(|x: i32| x + 1, &bad);
    /// let error = next.get().unwrap_err();
    /// assert!(matches!(error.root_cause(), Error::Panicked { message, .. } if message == "no luck"));
    /// ```
    pub fn root_cause(&self) -> &Error {
        let mut error = self;
        while let Error::DependencyFailed { cause, .. } = error {
            error = cause;
        }
        error
    }

    /// Whether this is a cancellation, directly or through an argument.
    pub fn is_cancelled(&self) -> bool {
        matches!(self.root_cause(), Error::Cancelled { .. })
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Error::InvalidOption { reason: reason.into() }
    }
}

/// In a task, for `?`: the error is about that task.
impl From<GpuError> for Error {
    fn from(error: GpuError) -> Self {
        let running = crate::local::thread::frames().pop();
        Error::Gpu { origin: running.map(|node| node.origin()), error }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Panicked { origin, message } => write!(f, "{origin} panicked: {message}"),
            Error::DependencyFailed { origin, cause } => {
                write!(f, "{origin} did not run, because an argument failed: {cause}")
            }
            Error::DependencyReturnedErr { origin, message } => write!(f, "{origin} returned Err: {message}"),
            Error::Cancelled { origin } => write!(f, "{origin} was cancelled"),
            Error::DeadlineExceeded { origin, after } => {
                write!(f, "{origin} did not finish within its deadline of {after:?}; give it more time or less work")
            }
            Error::Infeasible { origin, reason } => write!(f, "{origin} can never run here: {reason}"),
            Error::Gpu { origin: Some(origin), error } => write!(f, "{origin} cannot use a GPU: {error}"),
            Error::Gpu { origin: None, error } => write!(f, "no GPU can be used: {error}"),
            Error::Lost { origin, reason } => write!(
                f,
                "{origin} is lost: {reason}; submit or put it again, and let tasks run again that may lose their node (`retries`)"
            ),
            Error::Timeout { waiting_for, after } => write!(f, "gave up after {after:?} waiting for {waiting_for}"),
            Error::WaitCycle { path } => {
                let first = path.first().map_or("", String::as_str);
                write!(
                    f,
                    "waiting would never end: {} -> {first}; make one of them return a handle, or await in a `&self` async method",
                    path.join(" -> ")
                )
            }
            Error::ActorDied { origin, cause } => write!(f, "{origin} is dead: {cause}"),
            Error::ActorNotFound { name, detail } => write!(
                f,
                "no such actor: {name:?} ({detail}); start one with `actor_builder(..).name({name:?})` and keep a handle to it, or make it detached"
            ),
            Error::NameTaken { name } => {
                write!(f, "an actor named {name:?} exists already; choose another name or say `.get_if_exists(true)`")
            }
            Error::TooManyPendingCalls { origin, limit } => write!(
                f,
                "{origin} was refused: {limit} calls wait already, as many as `max_pending_calls` allows; get some results first"
            ),
            Error::Serialization { what, message } => {
                write!(f, "{what} does not survive serialization, so it could not travel to another process: {message}")
            }
            Error::InvalidOption { reason } => write!(f, "invalid option: {reason}"),
            Error::QueueFull { capacity } => write!(f, "the queue is full ({capacity} items)"),
            Error::QueueEmpty => write!(f, "the queue is empty"),
            Error::NotObserving { what } => write!(
                f,
                "{what} was not recorded; build the runtime with `Runtime::builder().observe(true)`, or set OUTRAY_OBSERVE=1 where the program uses `Runtime::from_env()`"
            ),
            Error::Shutdown { what } => {
                write!(f, "{what}: its runtime has shut down; keep the `Runtime` alive until the results are there")
            }
            Error::Deadlock { detail } => write!(f, "nothing is left that could run: {detail}"),
            Error::Unsupported { reason } => write!(f, "not supported: {reason}"),
            Error::Io { path, message } => write!(f, "cannot write {path}: {message}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::DependencyFailed { cause, .. } => Some(cause),
            Error::Gpu { error, .. } => Some(error),
            _ => None,
        }
    }
}
