//! ZeroMQ's protocol over TCP, with the `zeromq` crate: for networks in which everybody is trusted.
//!
//! Version 0.7.0 aborts the process when somebody declares a length that it has no memory for, keeps
//! silent connections for ever, and cannot close one connection of a listener. What can be designed
//! around, is:
//! - All sockets are in one runtime of one thread; with more the crate can deadlock.
//! - Each connection has a task that sends and never gives up a `send`: giving up loses the peer.
//! - A peer's queue in the crate has room for 100,000 messages. The link's credit keeps it far below,
//!   because a full one can stop other peers.
//! - A connection is there with its first message, since whoever dials speaks first, and gone with the
//!   monitor's word. The monitor may lose that; then the link's silence ends it.
//! - A connection that breaks takes its DEALER with it, so nothing of it goes out on the next one.

use super::{BindError, ConnectionId, Event, Parts, Refused, Transport};
use bytes::Bytes;
use futures_core::Stream;
use std::{
    collections::{HashMap, HashSet},
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel, error::TrySendError},
    task::JoinHandle,
};
use zeromq::{
    DealerSocket, RouterRecvHalf, RouterSendHalf, RouterSocket, Socket, SocketEvent, SocketOptions, SocketRecv,
    SocketSend, ZmqMessage,
};

/// Messages that wait for a connection's sender.
const HIGH_WATER: usize = 16;
const CONNECT: Duration = Duration::from_secs(2);
/// Between attempts to connect that fail at once.
const RETRY: Duration = Duration::from_millis(100);

/// What the tasks of the sockets report.
enum Report {
    /// A listener's connection, by the peer's identity.
    Received(Bytes, Parts),
    Gone(Bytes),
    Event(Event),
}

struct Connection {
    sender: Sender<Parts>,
    /// Somebody was told that there is no room.
    was_full: Arc<AtomicBool>,
    /// The dialing side's task, which owns its socket.
    dialer: Option<JoinHandle<()>>,
    identity: Option<Bytes>,
}

pub(crate) struct Zeromq {
    router: Option<(RouterSendHalf, JoinHandle<()>)>,
    connections: HashMap<ConnectionId, Connection>,
    accepted: HashMap<Bytes, ConnectionId>,
    /// Closed here, and still connected: they are not listened to.
    closed: HashSet<Bytes>,
    /// The message with which a connection came: the next event.
    first: Option<(ConnectionId, Parts)>,
    number: u64,
    reports: Sender<Report>,
    reported: Receiver<Report>,
}

impl Zeromq {
    pub(crate) fn new() -> Self {
        let (reports, reported) = channel(64);
        Zeromq {
            router: None,
            connections: HashMap::new(),
            accepted: HashMap::new(),
            closed: HashSet::new(),
            first: None,
            number: 0,
            reports,
            reported,
        }
    }

    fn next(&mut self, dialed: bool) -> ConnectionId {
        self.number += 1;
        ConnectionId { dialed, number: self.number }
    }

    /// The connection of a listener's peer, and whether it is new.
    fn accept(&mut self, identity: &Bytes) -> Option<(ConnectionId, bool)> {
        if let Some(connection) = self.accepted.get(identity) {
            return Some((*connection, false));
        }
        let (router, _) = self.router.as_ref()?;
        let (mut router, address) = (router.clone(), identity.clone());
        let connection = self.next(false);
        let (sender, was_full, queued) = queue();
        let send = async move |mut parts: Parts| {
            parts.insert(0, address.clone());
            match ZmqMessage::try_from(parts) {
                Ok(message) => router.send(message).await.is_ok(),
                Err(_) => false,
            }
        };
        tokio::spawn(send_all(queued, was_full.clone(), connection, self.reports.clone(), send));
        self.accepted.insert(identity.clone(), connection);
        let identity = Some(identity.clone());
        self.connections.insert(connection, Connection { sender, was_full, dialer: None, identity });
        Some((connection, true))
    }

    fn forget(&mut self, id: ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        if let Some(identity) = &connection.identity {
            self.accepted.remove(identity);
        }
        Some(connection)
    }
}

fn queue() -> (Sender<Parts>, Arc<AtomicBool>, Receiver<Parts>) {
    let (sender, queued) = channel(HIGH_WATER);
    (sender, Arc::default(), queued)
}

/// Sends what is queued, one after the other, until the connection is closed.
async fn send_all(
    mut queued: Receiver<Parts>,
    was_full: Arc<AtomicBool>,
    connection: ConnectionId,
    reports: Sender<Report>,
    mut send: impl AsyncFnMut(Parts) -> bool,
) {
    while let Some(parts) = queued.recv().await {
        // What cannot be sent is lost with its connection, and that is reported by who receives.
        let _ = send(parts).await;
        if was_full.swap(false, Relaxed) {
            let _ = reports.send(Report::Event(Event::Writable { connection })).await;
        }
    }
}

/// What the monitor says of connections that end.
async fn next_gone(monitor: &mut (impl Stream<Item = SocketEvent> + Unpin)) -> Bytes {
    loop {
        match poll_fn(|cx| Pin::new(&mut *monitor).poll_next(cx)).await {
            Some(SocketEvent::Disconnected(identity)) => return identity.into(),
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

async fn listen(
    mut router: RouterRecvHalf,
    mut monitor: impl Stream<Item = SocketEvent> + Unpin,
    reports: Sender<Report>,
) {
    loop {
        let report = tokio::select! {
            identity = next_gone(&mut monitor) => Report::Gone(identity),
            received = router.recv() => match received {
                Ok(message) => {
                    let mut parts = message.into_vec();
                    let identity = parts.remove(0);
                    Report::Received(identity, parts)
                }
                Err(_) => continue,
            },
        };
        if reports.send(report).await.is_err() {
            return;
        }
    }
}

/// Connects, and moves messages until the connection breaks.
async fn dial(
    address: String,
    connection: ConnectionId,
    queued: Receiver<Parts>,
    was_full: Arc<AtomicBool>,
    reports: Sender<Report>,
) {
    let (mut monitor, socket) = loop {
        let mut options = SocketOptions::default();
        options.connect_timeout(CONNECT);
        let mut socket = DealerSocket::with_options(options);
        let monitor = socket.monitor();
        match socket.connect(&format!("tcp://{address}")).await {
            Ok(()) => break (monitor, socket),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let _ = reports.send(Report::Event(Event::Connected { connection, remote: address })).await;
    let (mut sending, mut receiving) = socket.split();
    let send = async move |parts: Parts| match ZmqMessage::try_from(parts) {
        Ok(message) => sending.send(message).await.is_ok(),
        Err(_) => false,
    };
    let sender = tokio::spawn(send_all(queued, was_full, connection, reports.clone(), send));
    loop {
        tokio::select! {
            _ = next_gone(&mut monitor) => break,
            received = receiving.recv() => {
                // After an error the crate reads garbage as lengths.
                let Ok(message) = received else { break };
                let event = Event::Message { connection, parts: message.into_vec() };
                let _ = reports.send(Report::Event(event)).await;
            }
        }
    }
    let reason = "the connection broke".into();
    let _ = reports.send(Report::Event(Event::Disconnected { connection, reason })).await;
    sender.abort();
}

impl Transport for Zeromq {
    async fn bind(&mut self, address: &str) -> Result<String, BindError> {
        let mut router = RouterSocket::new();
        let monitor = router.monitor();
        let bound = router.bind(&format!("tcp://{address}")).await;
        let bound = bound.map_err(|error| BindError { address: address.into(), reason: error.to_string() })?;
        let (sending, receiving) = router.split();
        let listener = tokio::spawn(listen(receiving, monitor, self.reports.clone()));
        self.router = Some((sending, listener));
        Ok(bound.to_string().trim_start_matches("tcp://").into())
    }

    fn dial(&mut self, address: &str) -> ConnectionId {
        let connection = self.next(true);
        let (sender, was_full, queued) = queue();
        let dialer = dial(address.into(), connection, queued, was_full.clone(), self.reports.clone());
        let dialer = Some(tokio::spawn(dialer));
        self.connections.insert(connection, Connection { sender, was_full, dialer, identity: None });
        connection
    }

    fn send(&mut self, to: ConnectionId, parts: Parts) -> Result<(), Refused> {
        let Some(connection) = self.connections.get(&to) else { return Err(Refused::Closed) };
        match connection.sender.try_send(parts) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(parts)) => {
                connection.was_full.store(true, Relaxed);
                Err(Refused::Full(parts))
            }
            Err(TrySendError::Closed(_)) => Err(Refused::Closed),
        }
    }

    fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.forget(id) else { return };
        self.closed.extend(connection.identity);
        if let Some(dialer) = connection.dialer {
            drop(connection.sender);
            // What was sent last gets a moment to leave.
            tokio::spawn(async move {
                tokio::time::sleep(RETRY).await;
                dialer.abort();
            });
        }
    }

    async fn event(&mut self) -> Event {
        if let Some((connection, parts)) = self.first.take() {
            return Event::Message { connection, parts };
        }
        loop {
            // There is always a sender: our own.
            let Some(report) = self.reported.recv().await else { return std::future::pending().await };
            match report {
                Report::Received(identity, _) if self.closed.contains(&identity) => {}
                Report::Received(identity, parts) => {
                    let Some((connection, is_new)) = self.accept(&identity) else { continue };
                    if !is_new {
                        return Event::Message { connection, parts };
                    }
                    self.first = Some((connection, parts));
                    return Event::Connected { connection, remote: "a zeromq peer".into() };
                }
                Report::Gone(identity) => {
                    self.closed.remove(&identity);
                    let Some(connection) = self.accepted.get(&identity).copied() else { continue };
                    self.forget(connection);
                    return Event::Disconnected { connection, reason: "the connection broke".into() };
                }
                Report::Event(event) => {
                    let (Event::Connected { connection, .. }
                    | Event::Message { connection, .. }
                    | Event::Writable { connection }
                    | Event::Disconnected { connection, .. }) = &event;
                    if !self.connections.contains_key(connection) {
                        continue;
                    }
                    if let Event::Disconnected { connection, .. } = &event {
                        self.forget(*connection);
                    }
                    return event;
                }
            }
        }
    }

    async fn shutdown(&mut self) {
        self.connections.clear();
        // The crate has no linger: what was sent last needs the runtime for a moment.
        tokio::time::sleep(RETRY).await;
        if let Some((_, listener)) = self.router.take() {
            listener.abort();
        }
    }
}
