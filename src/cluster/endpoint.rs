//! A process among others: it listens, connects, sends to peers and hears from them.
//!
//! One thread does all I/O, with a tokio runtime of its own (`io`). Other threads put messages into a
//! peer's queue and wake it; what comes is read from a channel. `send` never waits: a peer that is slow
//! fills its own queue and nothing else.
//!
//! # Peers
//! A peer is named by its incarnation. `Up` says that messages can be sent to it, `Lost` that it is
//! gone with everything it had not acknowledged; in between, broken connections are made again and
//! nothing is lost or repeated. A peer that was lost, and lives, may come `Up` again: as one that has
//! forgotten all. A process that is started again is another peer.
//!
//! # Memory
//! For a peer: its queue, and its window of messages that `Events` has not handed out. For a connection
//! that has not shown the key: one handshake, for a short time, and no more than so many of them.

mod dials;
mod io;
#[cfg(test)]
mod tests;

pub(crate) use super::link::{Incarnation, Message, Reason, SendError};

use super::{
    link::{self, Credit},
    secure::{Key, RENEW_AFTER},
    transport::{self, Transport},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, VecDeque},
    fmt, mem,
    net::{IpAddr, SocketAddr},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};
use tokio::sync::mpsc::UnboundedSender;

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
    Consumed(Incarnation, Credit),
    Connect(String),
    Disconnect(String),
    Close(Duration),
}

/// What waits for a peer, on its way from the threads that send to its link.
#[derive(Default)]
struct Queue {
    waiting: Vec<Message>,
    /// All that is not acknowledged, here and in the link.
    queued: Credit,
    /// Somebody was told that it is full.
    was_full: bool,
    is_lost: bool,
}

type Queues = RwLock<HashMap<Incarnation, Arc<Mutex<Queue>>>>;

/// What comes from the I/O thread.
enum Delivery {
    Event(Event),
    Messages(Incarnation, Vec<Message>),
}

/// The sending side, shared by all threads.
pub(crate) struct Endpoint {
    incarnation: Incarnation,
    address: String,
    limit: Credit,
    queues: Arc<Queues>,
    commands: UnboundedSender<Command>,
    thread: Option<JoinHandle<bool>>,
}

impl Endpoint {
    /// Listens, and starts the I/O thread, which makes the transport.
    pub(crate) fn start<T: Transport>(
        config: Config,
        transport: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(Endpoint, Events), StartError> {
        if config.key.is_none() && !is_loopback(&config.bind) {
            return Err(StartError::NeedsKey(config.bind));
        }
        let incarnation = Incarnation(random().ok_or(StartError::Randomness)?);
        let (limit, window) = (config.link.queue, config.link.window);
        let queues = Arc::<Queues>::default();
        let (commands, received) = tokio::sync::mpsc::unbounded_channel();
        let (deliveries, delivered) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let io = io::Setup { config, incarnation, queues: queues.clone(), commands: received, deliveries };
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(io::run(io, transport, started)),
                Err(error) => started.send(Err(StartError::Thread(error))).is_ok(),
            }
        };
        let thread = std::thread::Builder::new().name("outray-io".into()).spawn(body).map_err(StartError::Thread)?;
        let address = match start.recv() {
            Ok(address) => address?,
            Err(_) => return Err(StartError::Thread(std::io::Error::other("it panicked"))),
        };
        let events =
            Events { delivered, commands: commands.clone(), window, current: None, handed_out: HashMap::new() };
        Ok((Endpoint { incarnation, address, limit, queues, commands, thread: Some(thread) }, events))
    }

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
    pub(crate) fn disconnect(&self, address: &str) {
        self.command(Command::Disconnect(address.into()));
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
        queue.waiting.push(message);
        let is_first = queue.waiting.len() == 1;
        drop(queue);
        if is_first {
            self.command(Command::Queued(peer));
        }
        Ok(())
    }

    /// Sends what is queued, waits until the peers have acknowledged it, tells them that this process
    /// ends, and closes everything. Returns whether that took no longer than `timeout`.
    pub(crate) fn close(mut self, timeout: Duration) -> bool {
        self.end(timeout)
    }

    fn end(&mut self, timeout: Duration) -> bool {
        self.command(Command::Close(timeout));
        let thread = self.thread.take();
        thread.is_some_and(|thread| thread.join().unwrap_or(false))
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
        if self.thread.is_some() {
            self.end(Duration::ZERO);
        }
    }
}

/// The receiving side. A message that is not taken from here uses up its sender's credit.
pub(crate) struct Events {
    delivered: mpsc::Receiver<Delivery>,
    commands: UnboundedSender<Command>,
    window: Credit,
    current: Option<(Incarnation, VecDeque<Message>)>,
    /// Not yet reported as consumed.
    handed_out: HashMap<Incarnation, Credit>,
}

impl Events {
    /// Waits for the next event; `None` once the endpoint is closed.
    ///
    /// The message's bytes may share memory with the others of its batch: copy what is kept for long.
    pub(crate) fn recv(&mut self) -> Option<Event> {
        self.next(|delivered| delivered.recv().ok())
    }

    /// As `recv`; `None` also when nothing came in time.
    pub(crate) fn recv_timeout(&mut self, timeout: Duration) -> Option<Event> {
        self.next(|delivered| delivered.recv_timeout(timeout).ok())
    }

    fn next(&mut self, wait: impl Fn(&mpsc::Receiver<Delivery>) -> Option<Delivery>) -> Option<Event> {
        loop {
            if let Some((peer, messages)) = &mut self.current {
                let peer = *peer;
                if let Some(message) = messages.pop_front() {
                    self.consume(peer, message.cost());
                    return Some(Event::Message(peer, message));
                }
                self.current = None;
            }
            match wait(&self.delivered)? {
                Delivery::Event(event) => {
                    if let Event::Lost(peer, _) = &event {
                        self.handed_out.remove(peer);
                    }
                    return Some(event);
                }
                Delivery::Messages(peer, messages) => self.current = Some((peer, messages.into())),
            }
        }
    }

    /// Reports what was handed out, an eighth of a window at a time. What is never reported is less
    /// than that, so the sender always has room for the largest message.
    fn consume(&mut self, peer: Incarnation, cost: usize) {
        let credit = self.handed_out.entry(peer).or_default();
        credit.messages += 1;
        credit.bytes += cost as u64;
        if credit.messages >= self.window.messages / 8 || credit.bytes >= self.window.bytes / 8 {
            let _ = self.commands.send(Command::Consumed(peer, mem::take(credit)));
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}
