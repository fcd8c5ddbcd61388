//! The I/O: it runs the transport, a channel for each connection and a link for each peer.
//!
//! # A connection
//! ```text
//! connected --handshake--> both ends have the key --Intro each way--> attached to the peer's link
//! ```
//! Until it is attached it is a *stranger*: it gets nothing but the handshake's answer, whatever else
//! it sends ends it, and so does time.
//!
//! # Invariants
//! - A link has at most one connection. If two processes dial each other, the one that was dialed by
//!   the lower incarnation stays; otherwise the newer one, because the older is likely to be dead.
//! - A link's frames go out in order: a frame that the transport had no room for goes first.
//! - Who dials an address dials again when the connection is gone and the peer's link has no other.

use super::{Command, Config, Delivery, Event, Incarnation, Message, Queue, Queues, Reason, StartError, dials::Dials};
use crate::cluster::{
    link::{Credit, Frame, Input, Link, Now, Output},
    refusals::Refusals,
    secure::{Channel, Opened, Purpose},
    transport::{self, ConnectionId, Parts, Refused, Transport},
};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::{
    collections::VecDeque,
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{sync::mpsc::UnboundedReceiver, time::Instant};

pub(super) struct Setup {
    pub(super) config: Config,
    pub(super) incarnation: Incarnation,
    pub(super) queues: Arc<Queues>,
    pub(super) commands: UnboundedReceiver<Command>,
}

/// So often something is handled before the answers leave.
const ROUNDS: u32 = 8;
/// How long a peer may take to close the connection after it was told that this process ends.
const FAREWELL: Duration = Duration::from_millis(500);

struct Connection {
    channel: Channel,
    remote: String,
    /// Whose it is, once that is shown.
    peer: Option<Incarnation>,
    /// What the transport had no room for.
    unsent: Option<Parts>,
}

struct Peer {
    link: Link,
    queue: Arc<Mutex<Queue>>,
    connection: Option<ConnectionId>,
}

pub(super) struct Io<T> {
    setup: Setup,
    /// What has happened.
    pub(super) deliveries: VecDeque<Delivery>,
    transport: T,
    start: Instant,
    now: Now,
    connections: FxHashMap<ConnectionId, Connection>,
    /// Those that may be strangers, the oldest first.
    strangers: VecDeque<(ConnectionId, Now)>,
    peers: FxHashMap<Incarnation, Peer>,
    dials: Dials,
    /// Peers whose links may have something to send.
    touched: Vec<Incarnation>,
    /// Somebody does not want to wait any more.
    is_interrupted: bool,
    tick: Now,
    refusals: Refusals,
    closing: Option<Now>,
    /// All is closed, and whether the peers had everything before.
    over: Option<bool>,
    /// How often something was delivered since anything was sent.
    rounds: u32,
    /// Until then it does not sleep, but looks.
    awake: Option<Instant>,
    /// What was dealt with, and is not reported yet.
    dealt: FxHashMap<Incarnation, Credit>,
}

/// Keeps this thread awake until then, and lets others have the CPU.
async fn look_again(until: Option<Instant>) {
    while until.is_some_and(|until| Instant::now() < until) {
        std::thread::yield_now();
        tokio::task::yield_now().await;
    }
}

impl<T: Transport> Io<T> {
    /// Listens; returns the address, too.
    pub(super) async fn open(setup: Setup, transport: impl FnOnce() -> T) -> Result<(Self, String), StartError> {
        let mut transport = transport();
        let address = transport.bind(&setup.config.bind).await.map_err(StartError::Bind)?;
        let io = Io {
            transport,
            deliveries: VecDeque::new(),
            start: Instant::now(),
            now: Now::ZERO,
            connections: FxHashMap::default(),
            strangers: VecDeque::new(),
            peers: FxHashMap::default(),
            dials: Dials::new(setup.config.retry),
            touched: Vec::new(),
            is_interrupted: false,
            tick: Now::MAX,
            refusals: Refusals::default(),
            closing: None,
            over: None,
            rounds: ROUNDS,
            awake: None,
            dealt: FxHashMap::default(),
            setup,
        };
        Ok((io, address))
    }

    /// Works until there is something to deliver, or all is over; `true`: until it was so late, or was interrupted.
    pub(super) async fn wait(&mut self, latest: Option<Instant>) -> bool {
        self.now = self.start.elapsed();
        // What is there already is handled before anything is sent, so that its answers leave together.
        if self.rounds < ROUNDS {
            self.rounds += 1;
            tokio::task::yield_now().await;
            loop {
                tokio::select! {
                    biased;
                    event = self.transport.event() => self.on_transport(event),
                    () = std::future::ready(()) => break,
                }
            }
            if !self.deliveries.is_empty() {
                self.commands();
                return false;
            }
        }
        self.rounds = 0;
        let is_late = self.work(latest).await;
        self.commands();
        is_late
    }

    /// What others have to send leaves before more is handled.
    pub(super) fn send_first(&mut self) {
        self.rounds = ROUNDS;
    }

    /// Until then it looks for what happens, as often as nobody else wants the CPU, instead of sleeping.
    pub(super) fn stay_awake(&mut self, until: Option<Instant>) {
        self.awake = until;
    }

    /// Does what other threads have said. What is said from now on does not wake this one: it looks for itself before
    /// it waits.
    fn commands(&mut self) {
        let mut asleep = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(command)) = self.setup.commands.poll_recv(&mut asleep) {
            self.on_command(command);
        }
    }

    async fn work(&mut self, latest: Option<Instant>) -> bool {
        loop {
            self.commands();
            if self.now >= self.tick {
                self.on_tick();
            }
            for peer in mem::take(&mut self.touched) {
                self.flush(peer);
            }
            if let Some(latest) = self.closing
                && self.peers.values().all(|peer| peer.link.is_over())
            {
                // All is said. A peer that has heard it closes the connection.
                self.closing = Some(latest.min(self.now + FAREWELL));
                self.tick = self.tick.min(self.now + FAREWELL);
            }
            if self.is_finished() {
                self.end().await;
            }
            if self.is_over() || !self.deliveries.is_empty() {
                return false;
            }
            if mem::take(&mut self.is_interrupted) {
                return true;
            }
            let tick = self.start.checked_add(self.tick);
            let next = tick.into_iter().chain(latest).min();
            let wake = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.transport.event() => {
                    self.now = self.start.elapsed();
                    self.on_transport(event);
                }
                () = look_again(self.awake), if self.awake.is_some() => self.awake = None,
                command = self.setup.commands.recv() => {
                    self.now = self.start.elapsed();
                    self.on_command(command.unwrap_or(Command::Close(Duration::ZERO)));
                }
                () = wake => {
                    self.now = self.start.elapsed();
                    if latest.is_some_and(|latest| latest <= Instant::now()) {
                        return true;
                    }
                }
            }
        }
    }

    fn is_finished(&self) -> bool {
        let Some(latest) = self.closing.filter(|_| !self.is_over()) else { return false };
        self.now >= latest || self.peers.values().all(|peer| peer.link.is_over() && peer.connection.is_none())
    }

    async fn end(&mut self) {
        self.over = Some(self.peers.values().all(|peer| peer.link.is_over()));
        self.abandon();
        self.transport.shutdown().await;
    }

    /// Nobody will do any I/O any more.
    pub(super) fn abandon(&self) {
        for peer in self.peers.values() {
            peer.queue.lock().is_lost = true;
        }
        self.setup.queues.write().clear();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Whether the peers had everything when it ended.
    pub(super) fn is_drained(&self) -> bool {
        self.over == Some(true)
    }

    /// Reports what was dealt with, an eighth of a window at a time. What is never reported is less than that, so
    /// the sender always has room for the largest message.
    pub(super) fn consumed(&mut self, peer: Incarnation, credit: Credit) {
        let window = self.setup.config.link.window;
        let dealt = self.dealt.entry(peer).or_default();
        dealt.messages += credit.messages;
        dealt.bytes += credit.bytes;
        if dealt.messages >= window.messages / 8 || dealt.bytes >= window.bytes / 8 {
            let credit = mem::take(dealt);
            self.input(peer, Input::Consumed(credit));
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Queued(peer) => self.touched.push(peer),
            Command::Interrupt => self.is_interrupted = true,
            #[cfg(test)]
            Command::Consumed(peer, credit) => self.input(peer, Input::Consumed(credit)),
            Command::Connect(address) => {
                self.dials.add(self.now, address);
                self.tick = self.now;
            }
            #[cfg(test)]
            Command::Disconnect(address) => {
                // An attempt ends; a connection that has become a peer's stays.
                if let Some(id) = self.dials.remove(&address)
                    && self.connections.get(&id).is_none_or(|connection| connection.peer.is_none())
                {
                    self.connections.remove(&id);
                    self.transport.close(id);
                }
            }
            Command::Close(timeout) => {
                self.closing = Some(self.now + timeout);
                self.tick = self.now;
                self.dials.keep_known();
                let peers: Vec<_> = self.peers.keys().copied().collect();
                for peer in peers {
                    self.take_queue(peer);
                    self.input(peer, Input::Finish);
                }
            }
        }
    }

    fn on_transport(&mut self, event: transport::Event) {
        match event {
            transport::Event::Connected { connection, remote } => self.connected(connection, remote),
            transport::Event::Message { connection, parts } => self.message(connection, parts),
            transport::Event::Writable { connection: id } => {
                let Some(connection) = self.connections.get_mut(&id) else { return };
                if let Some(parts) = connection.unsent.take() {
                    self.transmit(id, parts);
                }
                if let Some(peer) = self.connections.get(&id).and_then(|connection| connection.peer) {
                    self.touched.push(peer);
                }
            }
            transport::Event::Disconnected { connection: id, reason } => {
                if let Some(connection) = self.connections.get(&id) {
                    tracing::debug!(remote = connection.remote, reason, "connection ended");
                }
                self.disconnected(id);
            }
        }
    }

    fn connected(&mut self, id: ConnectionId, remote: String) {
        let key = self.setup.config.key.as_ref();
        let made = match id.dialed {
            true => Channel::initiator(Purpose::Messages, key),
            false => Channel::responder(Purpose::Messages, key).map(|channel| (channel, None)),
        };
        let (channel, first) = match made {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(remote, "connection closed: {error}");
                self.transport.close(id);
                return self.disconnected(id);
            }
        };
        while self.strangers.len() >= self.setup.config.strangers {
            let Some((oldest, _)) = self.strangers.pop_front() else { break };
            self.drop_stranger(oldest, "too many others came after it without showing the key");
        }
        let latest = self.now + self.setup.config.handshake;
        self.strangers.push_back((id, latest));
        self.tick = self.tick.min(latest);
        self.connections.insert(id, Connection { channel, remote, peer: None, unsent: None });
        match first {
            Some(first) => self.transmit(id, first),
            None if id.dialed => self.introduce(id),
            None => {}
        }
    }

    fn message(&mut self, id: ConnectionId, parts: Parts) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.channel.open(parts) {
            Ok(Opened::Message(parts)) => match connection.peer {
                Some(peer) => self.input(peer, Input::Received(parts)),
                None => match Frame::decode(parts) {
                    Ok(Frame::Intro(peer)) => self.introduced(id, peer),
                    Ok(_) => self.refuse(id, "it did not introduce itself"),
                    Err(error) => self.refuse(id, error),
                },
            },
            Ok(Opened::Handshake(answer)) => match answer {
                Some(answer) => self.transmit(id, answer),
                None => self.introduce(id),
            },
            Err(error) => self.refuse(id, error),
        }
    }

    /// Says who this process is.
    fn introduce(&mut self, id: ConnectionId) {
        self.seal_and_transmit(id, Frame::Intro(self.setup.incarnation).encode());
    }

    /// A connection has shown the key, and whose it is.
    fn introduced(&mut self, id: ConnectionId, peer: Incarnation) {
        let own = self.setup.incarnation;
        if peer == own {
            return self.refuse(id, "it is this process itself");
        }
        if self.closing.is_some() && !self.peers.contains_key(&peer) {
            return self.refuse(id, "this process is closing");
        }
        if let Some(old) = self.peers.get(&peer).and_then(|known| known.connection) {
            let dialed_by = |id: ConnectionId| if id.dialed { own } else { peer };
            if old.dialed != id.dialed && dialed_by(old) < dialed_by(id) {
                tracing::debug!(%peer, "second connection to a peer closed");
                self.set_dialed_peer(id, peer);
                self.transport.close(id);
                return self.disconnected(id);
            }
            self.transport.close(old);
            self.disconnected(old);
        }
        let Some(epoch) = super::random().map(|bytes| u64::from_le_bytes(bytes).max(1)) else {
            return self.refuse(id, "the system gives no randomness");
        };
        if !id.dialed {
            self.introduce(id);
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.peer = Some(peer);
        let (now, config) = (self.now, &self.setup.config.link);
        let known = self.peers.entry(peer).or_insert_with(|| {
            let queue = Arc::default();
            self.setup.queues.write().insert(peer, Arc::clone(&queue));
            Peer { link: Link::new(now, epoch, config.clone()), queue, connection: None }
        });
        known.connection = Some(id);
        self.set_dialed_peer(id, peer);
        self.input(peer, Input::Attached);
    }

    /// Notes who is at an address. Who was there before is no more.
    fn set_dialed_peer(&mut self, id: ConnectionId, peer: Incarnation) {
        if let Some(before) = self.dials.introduced(id, peer)
            && let Some(old) = self.peers.get_mut(&before)
        {
            let mut outputs = Vec::new();
            old.link.lose(Reason::Restarted, &mut outputs);
            self.outputs(before, outputs);
        }
    }

    /// Closes a connection that did what it may not.
    fn refuse(&mut self, id: ConnectionId, why: impl std::fmt::Display) {
        if let Some(connection) = self.connections.get(&id) {
            self.refusals.log(self.now, &connection.remote, &why);
        }
        self.transport.close(id);
        self.disconnected(id);
    }

    fn drop_stranger(&mut self, id: ConnectionId, why: &str) {
        if self.connections.get(&id).is_some_and(|connection| connection.peer.is_none()) {
            self.refuse(id, why);
        }
    }

    fn disconnected(&mut self, id: ConnectionId) {
        self.dials.disconnected(self.now, id);
        self.tick = self.tick.min(self.dials.next().unwrap_or(Now::MAX));
        let Some(connection) = self.connections.remove(&id) else { return };
        let Some(peer) = connection.peer else { return };
        if let Some(known) = self.peers.get_mut(&peer).filter(|known| known.connection == Some(id)) {
            known.connection = None;
            self.input(peer, Input::Detached);
        }
    }

    fn on_tick(&mut self) {
        while let Some((id, latest)) = self.strangers.front().copied() {
            if latest > self.now {
                break;
            }
            self.strangers.pop_front();
            self.drop_stranger(id, "it did not show the key in time");
        }
        let peers = &self.peers;
        let is_attached = |peer| peers.get(&peer).is_some_and(|peer: &Peer| peer.connection.is_some());
        self.dials.dial(self.now, is_attached, |address| self.transport.dial(address));
        let due = self.peers.iter().filter(|(_, peer)| self.deadline(peer).is_some_and(|at| at <= self.now));
        for peer in due.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            self.input(peer, Input::Tick);
            self.flush(peer);
        }
        let links = self.peers.values().filter_map(|peer| self.deadline(peer));
        let strangers = self.strangers.front().map(|(_, latest)| *latest);
        let next = links.chain(self.dials.next()).chain(strangers).chain(self.closing).min();
        // A timer is not finer than a millisecond.
        self.tick = next.map_or(Now::MAX, |next| next.max(self.now + Duration::from_millis(1)));
    }

    fn deadline(&self, peer: &Peer) -> Option<Now> {
        let connection = peer.connection.and_then(|id| self.connections.get(&id));
        peer.link.deadline(connection.is_some_and(|connection| connection.unsent.is_none()))
    }

    fn input(&mut self, peer: Incarnation, input: Input) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let outputs = known.link.handle(self.now, input);
        self.touched.push(peer);
        self.outputs(peer, outputs);
    }

    fn outputs(&mut self, peer: Incarnation, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Up => {
                    tracing::info!(%peer, "peer is up");
                    self.deliver(Delivery::Event(Event::Up(peer)));
                }
                Output::Deliver(messages) => self.deliver(Delivery::Messages(peer, messages)),
                Output::Freed(credit) => self.freed(peer, credit),
                Output::Close(reason) => {
                    let Some(id) = self.peers.get(&peer).and_then(|known| known.connection) else { continue };
                    tracing::debug!(%peer, "connection closed: {reason}");
                    self.transport.close(id);
                    self.disconnected(id);
                }
                Output::Lost(reason) => self.lost(peer, reason),
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        self.deliveries.push_back(delivery);
    }

    fn freed(&mut self, peer: Incarnation, credit: Credit) {
        let Some(known) = self.peers.get(&peer) else { return };
        let mut queue = known.queue.lock();
        queue.queued.messages -= credit.messages;
        queue.queued.bytes -= credit.bytes;
        let was_full = mem::take(&mut queue.was_full);
        drop(queue);
        if was_full {
            self.deliver(Delivery::Event(Event::Room(peer)));
        }
    }

    fn lost(&mut self, peer: Incarnation, reason: Reason) {
        let Some(known) = self.peers.remove(&peer) else { return };
        self.dealt.remove(&peer);
        self.setup.queues.write().remove(&peer);
        let mut queue = known.queue.lock();
        queue.is_lost = true;
        queue.waiting = Vec::new();
        queue.open = Vec::new();
        drop(queue);
        if known.link.was_up() {
            match reason {
                Reason::Finished => tracing::info!(%peer, "peer has ended"),
                _ => tracing::warn!(%peer, "peer is lost: {reason}"),
            }
            self.deliver(Delivery::Event(Event::Lost(peer, reason)));
        }
    }

    /// Hands what other threads have sent to the link.
    fn take_queue(&mut self, peer: Incarnation) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let waiting: Vec<Message> = known.queue.lock().take();
        for message in waiting {
            // The queue's limit is the link's, so there is room.
            if let Err(error) = known.link.send(message) {
                tracing::error!(%peer, "message dropped: {error}");
            }
        }
    }

    /// Sends what the peer's link has to say, as far as there is room.
    fn flush(&mut self, peer: Incarnation) {
        self.take_queue(peer);
        while let Some(known) = self.peers.get_mut(&peer) {
            let Some(id) = known.connection else { break };
            if self.connections.get(&id).is_none_or(|connection| connection.unsent.is_some()) {
                break;
            }
            let Some(parts) = known.link.poll_transmit(self.now) else { break };
            self.seal_and_transmit(id, parts);
        }
        let next = self.peers.get(&peer).and_then(|known| self.deadline(known));
        self.tick = self.tick.min(next.unwrap_or(Now::MAX));
    }

    fn seal_and_transmit(&mut self, id: ConnectionId, parts: Parts) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let sealed = connection.channel.seal(parts);
        let is_worn = connection.channel.sealed() >= self.setup.config.renew_after;
        match sealed {
            Ok(parts) => self.transmit(id, parts),
            Err(error) => return self.refuse(id, error),
        }
        if is_worn {
            // Whoever has dialed it dials again, and the link goes on over that one.
            tracing::debug!("connection closed, for new keys");
            self.transport.close(id);
            self.disconnected(id);
        }
    }

    fn transmit(&mut self, id: ConnectionId, parts: Parts) {
        match self.transport.send(id, parts) {
            Ok(()) => {}
            Err(Refused::Full(parts)) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.unsent = Some(parts);
                }
            }
            // The transport says so with an event.
            Err(Refused::Closed) => {}
        }
    }
}
