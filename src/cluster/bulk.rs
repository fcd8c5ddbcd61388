//! Large objects, over TCP connections of their own: their bytes are read to where they are wanted.
//!
//! Whoever wants part of an object asks a process that has it (`pull`). That process looks it up and
//! sends it in records. One thread does all of a process's transfers, with a tokio runtime of its own, so
//! that messages do not wait behind them. A transfer that fails is the puller's to go on with, here or
//! elsewhere; nothing is resent.
//!
//! # A connection
//! ```text
//! dialed                          listening
//!   greeting, 56 bytes  ------->                     the Noise handshake of `secure`, for bulk
//!                       <-------  greeting, 56 bytes
//!   request: object, offset, length  -->             the first one that opens shows the key
//!                       <-------  answer: what was found, and the object's size
//!                       <-------  the bytes, in records of RECORD; the last may be shorter
//!   the next request, and so on
//! ```
//! With a key each request, answer and record is one AES-256-GCM record: so many bytes, then the tag.
//! Both sides know each length beforehand, so none is ever sent, and none can be wrong.
//!
//! # Bounds
//! - Who has not shown the key costs a socket and a handshake's state, for [`Config::handshake`] at most;
//!   of more than [`Config::strangers`] the oldest is dropped.
//! - A connection has one transfer at a time, and that one record in memory. The object itself is the
//!   store's: a transfer holds a reference to it. There are [`Config::served`] connections at most,
//!   and a puller has [`Config::per_peer`] to each peer; more pulls wait there.
//! - A record that does not go or come in [`Config::stall`] ends its connection. Others do not wait for it.

mod client;
#[cfg(any(test, fuzzing))]
mod fuzz;
#[allow(unsafe_code)]
mod mark;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use client::{Pull, Stopped};
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::fuzz;

use super::{
    endpoint::{StartError, is_loopback},
    protocol::{ObjectId, ProcessId},
    secure::{Channel, Direction, Directions, HANDSHAKE, Key, Opened, Purpose, RENEW_AFTER, SecureError, TAG},
    transport::BindError,
};
use bytes::{Buf, BufMut, Bytes};
use client::Client;
use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::{Builder, Handle},
    sync::oneshot,
    time::timeout,
};

/// Bytes of a record. So many stay in a CPU's cache while they are sealed and sent.
pub(crate) const RECORD: usize = 256 << 10;

#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `host:port`; loopback if there is no key.
    pub(crate) bind: String,
    /// The host that others are told; the one where it listens by default.
    pub(crate) host: Option<String>,
    pub(crate) key: Option<Key>,
    /// To connect, and to show the key.
    pub(crate) handshake: Duration,
    /// For one record.
    pub(crate) stall: Duration,
    /// A connection that was not used for so long is closed by the listening side; by the other in half of it.
    pub(crate) idle: Duration,
    /// Connections that have not shown the key.
    pub(crate) strangers: usize,
    /// Connections that have.
    pub(crate) served: usize,
    /// Connections to one peer, and so the pulls from it at a time.
    pub(crate) per_peer: usize,
    /// A connection that has brought so many bytes is closed, for the next one to have new keys.
    pub(crate) renew_after: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            bind: "127.0.0.1:0".into(),
            host: None,
            key: None,
            handshake: Duration::from_secs(5),
            stall: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            strangers: 256,
            served: 1024,
            per_peer: 4,
            renew_after: RENEW_AFTER,
        }
    }
}

/// An object is there, but it cannot be read now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotNow;

/// Why bytes did not come.
#[derive(Debug)]
pub(crate) enum PullError {
    /// The peer has no such object.
    Absent,
    /// The object is there, and shorter than what was asked for.
    TooShort {
        size: u64,
    },
    /// The peer serves as many connections as it may, or cannot read the object now.
    Busy,
    /// One of them has not the other's key, or bytes were changed on their way.
    Refused(SecureError),
    Io(io::Error),
    /// A step took longer than it may.
    Stalled(&'static str),
    /// This side is closed.
    Closed,
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PullError::Absent => write!(f, "the peer has no such object"),
            PullError::TooShort { size } => write!(f, "the object has only {size} bytes"),
            PullError::Busy => {
                write!(
                    f,
                    "the peer has no room for it, or serves as many connections as it may; try again, or another one"
                )
            }
            PullError::Refused(error) => write!(f, "the connection to the peer is not safe: {error}"),
            PullError::Io(error) => write!(f, "the connection to the peer broke: {error}"),
            PullError::Stalled(what) => write!(f, "{what} took too long"),
            PullError::Closed => write!(f, "this process closes"),
        }
    }
}

impl std::error::Error for PullError {}

impl From<io::Error> for PullError {
    fn from(error: io::Error) -> Self {
        PullError::Io(error)
    }
}

impl From<SecureError> for PullError {
    fn from(error: SecureError) -> Self {
        PullError::Refused(error)
    }
}

/// `future`, in this time.
async fn within<T, E: Into<PullError>>(
    time: Duration,
    what: &'static str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, PullError> {
    timeout(time, future).await.map_err(|_| PullError::Stalled(what))?.map_err(Into::into)
}

/// What one side says first when there is no key.
fn plain_greeting() -> [u8; HANDSHAKE] {
    let mut greeting = [0; HANDSHAKE];
    let prologue = Purpose::Bulk.prologue();
    greeting[..prologue.len()].copy_from_slice(prologue);
    greeting
}

async fn read_array<const N: usize>(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The side that dialed greets first.
async fn greet(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    key: Option<&Key>,
    dialed: bool,
) -> Result<Directions, PullError> {
    let (mut channel, first) = match dialed {
        true => Channel::initiator(Purpose::Bulk, key)?,
        false => (Channel::responder(Purpose::Bulk, key)?, None),
    };
    if dialed {
        match first {
            Some(parts) => stream.write_all(&parts.concat()).await?,
            None => stream.write_all(&plain_greeting()).await?,
        }
    }
    let greeting = read_array::<HANDSHAKE>(stream).await?;
    if key.is_none() {
        if greeting != plain_greeting() {
            return Err(SecureError::NotAHandshake.into());
        }
        if !dialed {
            stream.write_all(&greeting).await?;
        }
    } else if let Opened::Handshake(Some(answer)) = channel.open(vec![Bytes::copy_from_slice(&greeting)])? {
        stream.write_all(&answer.concat()).await?;
    }
    Ok(channel.split()?)
}

/// Sends a few bytes as one record.
async fn write_record<const N: usize>(
    stream: &mut (impl AsyncWriteExt + Unpin),
    sealing: Option<&mut Direction>,
    mut record: [u8; N],
) -> Result<(), PullError> {
    let mut bytes = Vec::with_capacity(N + TAG);
    let tag = sealing.map(|sealing| sealing.seal(&mut record)).transpose()?;
    bytes.extend(record);
    bytes.extend(tag.iter().flatten());
    Ok(stream.write_all(&bytes).await?)
}

/// Reads one record to where it belongs.
async fn read_record(
    stream: &mut (impl AsyncReadExt + Unpin),
    opening: Option<&mut Direction>,
    record: &mut [u8],
) -> Result<(), PullError> {
    stream.read_exact(record).await?;
    if let Some(opening) = opening {
        let tag = read_array::<TAG>(stream).await?;
        opening.open(record, tag)?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    object: ObjectId,
    offset: u64,
    length: u64,
}

impl Request {
    const BYTES: usize = 32;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut out = &mut bytes[..];
        for word in [self.object.owner.0, self.object.number, self.offset, self.length] {
            out.put_u64_le(word);
        }
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Request {
        let mut bytes = &bytes[..];
        let [owner, number, offset, length] = std::array::from_fn(|_| bytes.get_u64_le());
        Request { object: ObjectId { owner: ProcessId(owner), number }, offset, length }
    }
}

/// What comes before the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// They follow.
    Found,
    Absent,
    TooShort {
        size: u64,
    },
    Busy,
}

impl Answer {
    const BYTES: usize = 9;

    fn encode(self) -> [u8; Self::BYTES] {
        let (kind, size) = match self {
            Answer::Found => (0, 0),
            Answer::Absent => (1, 0),
            Answer::TooShort { size } => (2, size),
            Answer::Busy => (3, 0),
        };
        let mut bytes = [kind; Self::BYTES];
        bytes[1..].copy_from_slice(&u64::to_le_bytes(size));
        bytes
    }

    fn decode(bytes: &[u8; Self::BYTES]) -> Option<Answer> {
        let (kind, mut rest) = bytes.split_first()?;
        Some(match kind {
            0 => Answer::Found,
            1 => Answer::Absent,
            2 => Answer::TooShort { size: rest.get_u64_le() },
            3 => Answer::Busy,
            _ => return None,
        })
    }
}

/// Serves this process's objects, and pulls others'.
pub(crate) struct Bulk {
    address: String,
    client: Arc<Client>,
    /// Bytes of objects that others have got from here.
    sent: Arc<AtomicU64>,
    runtime: Handle,
    /// Dropped to close.
    close: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Bulk {
    /// Listens, and starts the thread. `lookup` is called on it, so it must not wait; what it gives is held
    /// until it is sent.
    pub(crate) fn start(
        config: Config,
        lookup: impl Fn(ObjectId) -> Result<Option<Bytes>, NotNow> + Send + Sync + 'static,
    ) -> Result<Bulk, StartError> {
        if config.key.is_none() && !is_loopback(&config.bind) {
            return Err(StartError::NeedsKey(config.bind));
        }
        let client = Arc::new(Client::new(config.clone()));
        let host = config.host.clone();
        let (close, closed) = oneshot::channel();
        let (started, start) = mpsc::channel();
        let idle = client.clone();
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let body = move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(StartError::Thread(error)))),
            };
            let handle = runtime.handle().clone();
            runtime.block_on(async move {
                let bound = TcpListener::bind(&config.bind).await;
                let bound = bound.and_then(|listener| Ok((listener.local_addr()?.to_string(), listener)));
                let listener = match bound {
                    Ok((address, listener)) => {
                        drop(started.send(Ok((address, handle))));
                        listener
                    }
                    Err(error) => {
                        let error = BindError { address: config.bind, reason: error.to_string() };
                        return drop(started.send(Err(StartError::Bind(error))));
                    }
                };
                tokio::select! {
                    () = server::serve(config, listener, Arc::new(lookup), counter) => {}
                    () = idle.close_idle() => {}
                    _ = closed => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("outray-bulk".into()).spawn(body).map_err(StartError::Thread)?;
        let (address, runtime) = match start.recv() {
            Ok(started) => started?,
            Err(_) => return Err(StartError::Thread(io::Error::other("it panicked"))),
        };
        let address = match (host, address.rsplit_once(':')) {
            (Some(host), Some((_, port))) => format!("{host}:{port}"),
            _ => address,
        };
        Ok(Bulk { address, client, sent, runtime, close: Some(close), thread: Some(thread) })
    }

    /// Where it listens, with the port that was chosen.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// How many bytes of objects others have got from here.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Fills `place` with the bytes of an object from `offset` on, out of the process whose `Bulk` listens
    /// on an address. After an error the first bytes may be there, and what else the place held is lost.
    pub(crate) fn pull<P>(&self, from: &str, object: ObjectId, offset: u64, place: P) -> Pull<P>
    where
        P: AsMut<[u8]> + Send + 'static,
    {
        client::pull(&self.runtime, &self.client, from, object, offset, place)
    }
}

impl fmt::Debug for Bulk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulk").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Bulk {
    /// Ends all transfers.
    fn drop(&mut self) {
        drop(self.close.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
