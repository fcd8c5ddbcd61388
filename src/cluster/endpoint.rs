//! A process among others: it listens, connects, sends to peers and hears from them.
//!
//! One thread does all I/O, with a tokio runtime of its own (`io`), and hears what happens in between
//! ([`Pump`]; threads may take turns with that). Other threads put messages into a peer's queue and wake it. `send` never waits: a peer that
//! is slow fills its own queue and nothing else.
//!
//! # Peers
//! A peer is named by its incarnation. `Up` says that messages can be sent to it, `Lost` that it is
//! gone with everything it had not acknowledged; in between, broken connections are made again and
//! nothing is lost or repeated. A peer that was lost, and lives, may come `Up` again: as one that has
//! forgotten all. A process that is started again is another peer.
//!
//! # Memory
//! For a peer: its queue, and its window of messages that have not been dealt with. For a connection
//! that has not shown the key: one handshake, for a short time, and no more than so many of them.

mod dials;
mod io;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod threaded;

pub(crate) use super::link::{Incarnation, Message, Reason, SendError};

use super::{
    link::{self, Credit},
    secure::{Key, RENEW_AFTER},
    transport::{self, Transport},
};
use parking_lot::{Condvar, Mutex, RwLock};
use rustc_hash::FxHashMap;
use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    thread::ThreadId,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::mpsc::UnboundedSender};

#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `host:port`; loopback if there is no key.
    pub(crate) bind: String,
    pub(crate) key: Option<Key>,
    pub(crate) link: link::Config,
    /// Who has not shown the key in this time is dropped.
    pub(crate) handshake: Duration,
    /// Connections that have not shown the key; the oldest is dropped for a new one.
    pub(crate) strangers: usize,
    /// Between attempts to connect: at first, and at most.
    pub(crate) retry: (Duration, Duration),
    /// After so many bytes one way a connection is closed, for the next one to have new keys.
    pub(crate) renew_after: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            bind: "127.0.0.1:0".into(),
            key: None,
            link: link::Config::default(),
            handshake: Duration::from_secs(2),
            strangers: 1024,
            retry: (Duration::from_millis(50), Duration::from_secs(2)),
            renew_after: RENEW_AFTER,
        }
    }
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Messages can be sent to this peer.
    Up(Incarnation),
    Message(Incarnation, Message),
    /// After a `SendError::Full`: there is room again.
    Room(Incarnation),
    /// The peer is gone, and so is what it had not acknowledged.
    Lost(Incarnation, Reason),
}

/// Why an endpoint does not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// Others could connect, and nobody would have to show a key.
    NeedsKey(String),
    Bind(transport::BindError),
    Transport(transport::chosen::NoSuchTransport),
    Randomness,
    Thread(std::io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::NeedsKey(address) => write!(
                f,
                "did not listen on `{address}`: other machines can reach it, and without a cluster key anybody there \
                 could run code in this process; configure the cluster's key file (make one with `outray key new`), \
                 or listen on 127.0.0.1"
            ),
            StartError::Bind(error) => error.fmt(f),
            StartError::Transport(error) => error.fmt(f),
            StartError::Randomness => write!(f, "the endpoint has no name: the system gives no randomness"),
            StartError::Thread(error) => write!(f, "the I/O thread could not be started: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Whether nobody but this machine can reach an address.
pub(super) fn is_loopback(address: &str) -> bool {
    if let Ok(address) = address.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

/// What other threads tell the I/O thread.
enum Command {
    /// A peer's queue is no longer empty.
    Queued(Incarnation),
    #[cfg(test)]
    Consumed(Incarnation, Credit),
    Connect(String),
    #[cfg(test)]
    Disconnect(String),
    /// The I/O thread is to do something else.
    Interrupt,
    Close(Duration),
}

/// What waits for a peer, on its way from the threads that send to its link.
#[derive(Default)]
struct Queue {
    waiting: Vec<Message>,
    /// The last message, to which more may be added, and where the last part of it begins, if that may become longer.
    open: Vec<u8>,
    growing: Option<usize>,
    /// All that is not acknowledged, here and in the link.
    queued: Credit,
    /// Somebody was told that it is full.
    was_full: bool,
    is_lost: bool,
}

/// A message is added to until it has so many bytes.
const OPEN: usize = 32 << 10;

impl Queue {
    /// The last message is complete.
    fn shut(&mut self) {
        self.growing = None;
        if !self.open.is_empty() {
            let open = std::mem::take(&mut self.open);
            self.waiting.push(Message::new(open));
        }
    }

    /// Takes all.
    fn take(&mut self) -> Vec<Message> {
        self.shut();
        std::mem::take(&mut self.waiting)
    }
}

type Queues = RwLock<FxHashMap<Incarnation, Arc<Mutex<Queue>>>>;

/// What comes from the I/O.
enum Delivery {
    Event(Event),
    Messages(Incarnation, Vec<Message>),
}

/// How the I/O has ended, and which thread has begun with it: that one never waits for the end, also where others have
/// taken turns with it.
#[derive(Default)]
struct End {
    is_drained: Mutex<Option<bool>>,
    over: Condvar,
    thread: OnceLock<ThreadId>,
}

impl End {
    fn set(&self, is_drained: bool) {
        self.is_drained.lock().get_or_insert(is_drained);
        self.over.notify_all();
    }

    /// Waits for it.
    fn wait(&self) -> bool {
        let mut end = self.is_drained.lock();
        loop {
            if let Some(is_drained) = *end {
                return is_drained;
            }
            self.over.wait(&mut end);
        }
    }
}

/// The sending side, shared by all threads.
pub(crate) struct Endpoint {
    incarnation: Incarnation,
    address: String,
    limit: Credit,
    queues: Arc<Queues>,
    commands: UnboundedSender<Command>,
    end: Arc<End>,
    is_closed: bool,
}

impl Endpoint {
    /// Listens. Whoever has the pump does the I/O.
    pub(crate) fn open<T: Transport>(
        mut config: Config,
        transport: impl FnOnce() -> T,
    ) -> Result<(Endpoint, Pump<T>), StartError> {
        if config.key.is_none() && !is_loopback(&config.bind) {
            return Err(StartError::NeedsKey(config.bind));
        }
        let incarnation = Incarnation(random().ok_or(StartError::Randomness)?);
        let limit = config.link.queue;
        // Messages may grow after their room was looked at.
        config.link.queue.bytes += 2 * OPEN as u64;
        let queues = Arc::<Queues>::default();
        let (commands, received) = tokio::sync::mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
        let setup = io::Setup { config, incarnation, queues: queues.clone(), commands: received };
        let (io, address) = runtime.block_on(io::Io::open(setup, transport))?;
        let end = Arc::<End>::default();
        let pump = Pump { runtime, io, current: None, end: end.clone() };
        Ok((Endpoint { incarnation, address, limit, queues, commands, end, is_closed: false }, pump))
    }

    #[cfg(test)]
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Where it listens, with the port that was chosen.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Connects to the process at an address, and again whenever the connection breaks, until
    /// `disconnect`. `Event::Up` tells who is there.
    pub(crate) fn connect(&self, address: &str) {
        self.command(Command::Connect(address.into()));
    }

    /// Connects no more to an address. A connection that is there stays.
    #[cfg(test)]
    pub(crate) fn disconnect(&self, address: &str) {
        self.command(Command::Disconnect(address.into()));
    }

    /// Ends a wait of the thread that does the I/O, as if it was late.
    pub(crate) fn interrupt(&self) {
        self.command(Command::Interrupt);
    }

    fn command(&self, command: Command) {
        // Without an I/O thread every peer is lost already.
        let _ = self.commands.send(command);
    }

    /// Puts a message into the peer's queue. It is delivered exactly once and after those before it,
    /// or the peer becomes `Lost`.
    ///
    /// # Errors
    /// `Full` gives the message back; `Event::Room` follows. Other peers are not affected.
    pub(crate) fn send(&self, peer: Incarnation, message: Message) -> Result<(), SendError> {
        if message.is_too_large() {
            return Err(SendError::TooLarge { bytes: message.len(), parts: 1 + message.payloads.len() });
        }
        let Some(queue) = self.queues.read().get(&peer).cloned() else { return Err(SendError::Lost) };
        let mut queue = queue.lock();
        if queue.is_lost {
            return Err(SendError::Lost);
        }
        let bytes = queue.queued.bytes + message.cost() as u64;
        if queue.queued.messages >= self.limit.messages || bytes > self.limit.bytes {
            queue.was_full = true;
            return Err(SendError::Full(message));
        }
        queue.queued.messages += 1;
        queue.queued.bytes = bytes;
        queue.shut();
        queue.waiting.push(message);
        let is_first = queue.waiting.len() == 1;
        drop(queue);
        if is_first {
            self.command(Command::Queued(peer));
        }
        Ok(())
    }

    /// As `send` for what `write` appends: it becomes part of a message, whose other parts are of the same kind. A
    /// new message begins with what `begin` writes.
    ///
    /// # Errors
    /// `false`: it is too long for that; or there is no room, then `Event::Room` follows.
    pub(crate) fn append(
        &self,
        peer: Incarnation,
        begin: impl FnOnce(&mut Vec<u8>),
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<bool, SendError> {
        self.append_or_grow(peer, begin, |open, _| {
            write(open);
            None
        })
    }

    /// The same; `write` is told where the last part begins, if it has not left and was one that may become longer, and
    /// says where such a one begins now.
    ///
    /// # Errors
    /// As `append`.
    pub(crate) fn append_or_grow(
        &self,
        peer: Incarnation,
        begin: impl FnOnce(&mut Vec<u8>),
        write: impl FnOnce(&mut Vec<u8>, Option<usize>) -> Option<usize>,
    ) -> Result<bool, SendError> {
        let Some(queue) = self.queues.read().get(&peer).cloned() else { return Err(SendError::Lost) };
        let queue = &mut *queue.lock();
        if queue.is_lost {
            return Err(SendError::Lost);
        }
        if queue.queued.messages >= self.limit.messages || queue.queued.bytes > self.limit.bytes {
            queue.was_full = true;
            return Ok(false);
        }
        if queue.open.len() > OPEN {
            queue.shut();
        }
        let is_first = queue.open.is_empty() && queue.waiting.is_empty();
        let before = queue.open.len();
        if before == 0 {
            begin(&mut queue.open);
        }
        let start = queue.open.len();
        queue.growing = write(&mut queue.open, queue.growing.take());
        if queue.open.len() - start > OPEN {
            queue.open.truncate(before);
            queue.growing = None;
            return Ok(false);
        }
        queue.queued.bytes += (queue.open.len() - before) as u64;
        if before == 0 {
            queue.queued.messages += 1;
            queue.queued.bytes += Message::default().cost() as u64;
        }
        if is_first {
            self.command(Command::Queued(peer));
        }
        Ok(true)
    }

    /// Sends what is queued, waits until the peers have acknowledged it, tells them that this process
    /// ends, and closes everything. Returns whether that took no longer than `timeout`; the thread that
    /// began with the I/O does not wait for itself, and is told `true`.
    pub(crate) fn close(mut self, timeout: Duration) -> bool {
        self.finish(timeout)
    }

    fn finish(&mut self, timeout: Duration) -> bool {
        self.is_closed = true;
        self.command(Command::Close(timeout));
        self.end.thread.get() == Some(&std::thread::current().id()) || self.end.wait()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("incarnation", &self.incarnation).field("address", &self.address).finish()
    }
}

impl Drop for Endpoint {
    /// Closes without waiting for acknowledgements.
    fn drop(&mut self) {
        if !self.is_closed {
            self.finish(Duration::ZERO);
        }
    }
}

/// What [`Pump::next`] has to say.
pub(crate) enum Next {
    Happened(Event),
    /// It is as late as was said, or somebody has interrupted.
    Late,
    /// The endpoint is closed.
    Over,
}

/// The receiving side, and all I/O: it is done by the thread that calls [`Pump::next`], while it waits there. So what
/// arrives is handled without waking another thread, and what it leads to leaves from the same.
pub(crate) struct Pump<T: Transport> {
    runtime: Runtime,
    io: io::Io<T>,
    current: Option<(Incarnation, VecDeque<Message>)>,
    end: Arc<End>,
}

impl<T: Transport> Pump<T> {
    /// Where to run what shares the thread of the I/O.
    pub(crate) fn handle(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }

    /// Does I/O until something happens, or until it is so late.
    ///
    /// The message's bytes may share memory with the others of its batch: copy what is kept for long.
    pub(crate) fn next(&mut self, latest: Option<Instant>) -> Next {
        let _ = self.end.thread.set(std::thread::current().id());
        loop {
            if let Some((peer, messages)) = &mut self.current {
                match messages.pop_front() {
                    Some(message) => return Next::Happened(Event::Message(*peer, message)),
                    None => self.current = None,
                }
            }
            match self.io.deliveries.pop_front() {
                Some(Delivery::Event(event)) => return Next::Happened(event),
                Some(Delivery::Messages(peer, messages)) => self.current = Some((peer, messages.into())),
                None if self.io.is_over() => {
                    self.end.set(self.io.is_drained());
                    return Next::Over;
                }
                None => {
                    if self.runtime.block_on(self.io.wait(latest.map(Into::into))) {
                        return Next::Late;
                    }
                }
            }
        }
    }

    /// What is queued leaves before more is received.
    pub(crate) fn send_first(&mut self) {
        self.io.send_first();
    }

    /// Until then it does not sleep while nothing happens.
    pub(crate) fn stay_awake(&mut self, until: Option<Instant>) {
        self.io.stay_awake(until.map(Into::into));
    }

    /// A message that was handed out has been dealt with: its sender may send another.
    pub(crate) fn consumed(&mut self, peer: Incarnation, cost: usize) {
        self.io.consumed(peer, Credit { messages: 1, bytes: cost as u64 });
    }
}

impl<T: Transport> Drop for Pump<T> {
    fn drop(&mut self) {
        self.io.abandon();
        self.end.set(false);
    }
}

impl<T: Transport> fmt::Debug for Pump<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").finish_non_exhaustive()
    }
}
