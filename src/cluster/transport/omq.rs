//! ZeroMQ's protocol over TCP, with `omq-tokio`.
//!
//! The listener is one ROUTER. Each connection that this process dials is a DEALER of its own, so that
//! nothing that was queued for a connection that broke goes out on the next one: as soon as it breaks,
//! the socket goes with it.
//!
//! # What is configured, and why
//! - `router_mandatory`: otherwise what a peer has no room for is dropped in silence.
//! - `max_message_size`: otherwise a peer fills the memory with one message. Small high-water marks
//!   do the same for many, as they count messages.
//! - `handshake_timeout` and `max_pending_handshakes`: silent connections neither stay nor keep others
//!   out.
//! - Heartbeats notice a peer that is silent, `tcp_user_timeout` one that does not read; both later
//!   than the link, which knows more.
//! - Nothing is sent before the handshake is over: it would be lost if that fails.
//! - The monitor may lose events, so connections are followed by `connections_changed`, which cannot.
//! - Nobody needs an identity that it chose, and nobody may take another's: the ROUTER's own are used.

use super::{BindError, ConnectionId, Event, Parts, Refused, Transport};
use crate::cluster::{
    link::codec::{MAX_FRAME, MAX_FRAME_PARTS},
    secure::TAG,
};
use bytes::Bytes;
use omq_tokio::{
    ConnectionStatus, IdentitySocket, Message, Options, ReconnectPolicy, Socket, SocketType, TrySendError,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinHandle,
};

/// Messages that wait for a connection, in each direction.
const HIGH_WATER: u32 = 16;
/// Connections in ZeroMQ's handshake. Of these one remote host may have an eighth, and this one all.
const PENDING: usize = 8 << 10;
/// How long what was sent last may take to leave.
const LINGER: Duration = Duration::from_millis(500);
/// What omq counts for a part besides its bytes has room in this.
const PER_PART: usize = 256;

fn options() -> Options {
    let retry = ReconnectPolicy::Exponential { min: Duration::from_millis(50), max: Duration::from_secs(2) };
    Options::new()
        .send_hwm(HIGH_WATER)
        .recv_hwm(HIGH_WATER)
        .linger(LINGER)
        .reconnect(retry)
        .heartbeat_interval(Duration::from_secs(2))
        .heartbeat_ttl(Duration::from_secs(6))
        .heartbeat_timeout(Duration::from_secs(6))
        .handshake_timeout(Duration::from_millis(1500))
        .max_pending_handshakes(PENDING)
        .max_message_size(MAX_FRAME + MAX_FRAME_PARTS * (TAG + PER_PART))
        .router_mandatory(true)
        .tcp_user_timeout(Duration::from_secs(6))
}

/// What the tasks of the sockets report.
enum Report {
    Accepted { connection: ConnectionId, identity: Bytes, remote: String },
    Event(Event),
}

enum Route {
    Accepted(Bytes),
    Dialed { socket: Arc<Socket>, reader: JoinHandle<()> },
}

struct Connection {
    route: Route,
    /// Waits for room, and sends the one message that found none.
    blocked: Option<JoinHandle<()>>,
}

pub(crate) struct Omq {
    router: Option<(Arc<IdentitySocket>, JoinHandle<()>)>,
    connections: HashMap<ConnectionId, Connection>,
    dialed: u64,
    reports: Sender<Report>,
    reported: Receiver<Report>,
}

impl Omq {
    pub(crate) fn new() -> Self {
        let (reports, reported) = channel(64);
        Omq { router: None, connections: HashMap::new(), dialed: 0, reports, reported }
    }
}

fn parts(mut message: Message) -> Parts {
    let mut parts = Vec::with_capacity(message.len());
    while let Some(part) = message.pop_front() {
        parts.push(part);
    }
    parts
}

fn message(parts: Parts) -> Message {
    match <[Bytes; 1]>::try_from(parts) {
        Ok([part]) => Message::single(part),
        Err(parts) => Message::multipart(parts),
    }
}

fn remote(connection: &ConnectionStatus) -> String {
    let address = connection.peer_info.as_ref().and_then(|info| info.peer_address);
    address.map_or_else(|| connection.endpoint.to_string(), |address| address.to_string())
}

/// Follows the connections of the listener, and what comes over them.
struct Listener {
    router: Arc<IdentitySocket>,
    reports: Sender<Report>,
    known: HashSet<u64>,
    generation: u64,
}

/// Nobody listens to reports any more, or the socket is closed.
struct Ended;

impl Listener {
    async fn run(mut self) {
        while self.turn().await.is_ok() {}
    }

    async fn turn(&mut self) -> Result<(), Ended> {
        tokio::select! {
            changed = self.router.connections_changed(self.generation) => {
                changed.map_err(|_| Ended)?;
                self.refresh().await?;
            }
            received = self.router.recv_from() => {
                let (identity, message) = received.map_err(|_| Ended)?;
                self.received(identity.peer_info().connection_id, message).await?;
                for _ in 0..HIGH_WATER {
                    let Ok((identity, message)) = self.router.try_recv_from() else { break };
                    self.received(identity.peer_info().connection_id, message).await?;
                }
            }
        }
        Ok(())
    }

    async fn refresh(&mut self) -> Result<(), Ended> {
        self.generation = self.router.connections_generation();
        let connections = self.router.connections().await.map_err(|_| Ended)?;
        let now: HashSet<u64> = connections.iter().map(|connection| connection.connection_id).collect();
        for number in self.known.difference(&now) {
            let connection = ConnectionId { dialed: false, number: *number };
            let event = Event::Disconnected { connection, reason: "the connection broke".into() };
            self.reports.send(Report::Event(event)).await.map_err(|_| Ended)?;
        }
        for new in connections.iter().filter(|connection| !self.known.contains(&connection.connection_id)) {
            let connection = ConnectionId { dialed: false, number: new.connection_id };
            let (identity, remote) = (new.identity.clone(), remote(new));
            self.reports.send(Report::Accepted { connection, identity, remote }).await.map_err(|_| Ended)?;
        }
        self.known = now;
        Ok(())
    }

    async fn received(&mut self, number: u64, message: Message) -> Result<(), Ended> {
        if !self.known.contains(&number) {
            self.refresh().await?;
            if !self.known.contains(&number) {
                return Ok(()); // the last words of a connection that is gone
            }
        }
        let connection = ConnectionId { dialed: false, number };
        let event = Event::Message { connection, parts: parts(message) };
        self.reports.send(Report::Event(event)).await.map_err(|_| Ended)
    }
}

/// Waits until the one connection of a DEALER is there, and follows it to its end.
async fn follow(socket: Arc<Socket>, address: String, connection: ConnectionId, reports: Sender<Report>) {
    let reason = match follow_until_end(&socket, &address, connection, &reports).await {
        Ok(()) => "the connection broke".to_string(),
        Err(error) => error.to_string(),
    };
    // Nobody may be there to be told.
    let _ = reports.send(Report::Event(Event::Disconnected { connection, reason })).await;
}

async fn follow_until_end(
    socket: &Socket,
    address: &str,
    connection: ConnectionId,
    reports: &Sender<Report>,
) -> omq_tokio::Result<()> {
    socket.connect(format!("tcp://{address}").as_str()).await?;
    let mut generation = socket.connections_generation();
    let number = loop {
        if let Some(ready) = socket.connections().await?.first() {
            let report = Report::Event(Event::Connected { connection, remote: remote(ready) });
            let _ = reports.send(report).await;
            break ready.connection_id;
        }
        generation = socket.connections_changed(generation).await?;
    };
    loop {
        tokio::select! {
            changed = socket.connections_changed(generation) => {
                generation = changed?;
                if socket.connections().await?.iter().all(|ready| ready.connection_id != number) {
                    return Ok(());
                }
            }
            received = socket.recv() => {
                let mut received = received;
                for _ in 0..HIGH_WATER {
                    let event = Event::Message { connection, parts: parts(received?) };
                    let _ = reports.send(Report::Event(event)).await;
                    received = match socket.try_recv() {
                        Err(omq_tokio::Error::WouldBlock) => break,
                        next => next,
                    };
                }
            }
        }
    }
}

fn close_dialed(socket: &Arc<Socket>, linger: Duration) {
    let socket = Socket::clone(socket);
    tokio::spawn(async move {
        let _ = socket.close_with_linger(Some(linger)).await;
    });
}

impl Transport for Omq {
    async fn bind(&mut self, address: &str) -> Result<String, BindError> {
        let failed = |reason: String| BindError { address: address.into(), reason };
        let socket = Socket::try_new(SocketType::Router, options()).map_err(|error| failed(error.to_string()))?;
        let bound =
            socket.bind(format!("tcp://{address}").as_str()).await.map_err(|error| failed(error.to_string()))?;
        let router = Arc::new(socket.identity_routing().map_err(|error| failed(error.to_string()))?);
        let listener = Listener {
            generation: router.connections_generation(),
            router: router.clone(),
            reports: self.reports.clone(),
            known: HashSet::new(),
        };
        self.router = Some((router, tokio::spawn(listener.run())));
        Ok(bound.to_string().trim_start_matches("tcp://").into())
    }

    fn dial(&mut self, address: &str) -> ConnectionId {
        self.dialed += 1;
        let connection = ConnectionId { dialed: true, number: self.dialed };
        match Socket::try_new(SocketType::Dealer, options()) {
            Ok(socket) => {
                let socket = Arc::new(socket);
                let follow = follow(socket.clone(), address.into(), connection, self.reports.clone());
                let route = Route::Dialed { socket, reader: tokio::spawn(follow) };
                self.connections.insert(connection, Connection { route, blocked: None });
            }
            Err(error) => {
                let event = Event::Disconnected { connection, reason: error.to_string() };
                let reports = self.reports.clone();
                tokio::spawn(async move { reports.send(Report::Event(event)).await.is_ok() });
            }
        }
        connection
    }

    fn send(&mut self, to: ConnectionId, parts: Parts) -> Result<(), Refused> {
        let Some(connection) = self.connections.get_mut(&to) else { return Err(Refused::Closed) };
        if connection.blocked.is_some() {
            return Err(Refused::Full(parts));
        }
        let router = self.router.as_ref().map(|(router, _)| router);
        let sent = match (&connection.route, router) {
            (Route::Dialed { socket, .. }, _) => socket.try_send(message(parts)),
            (Route::Accepted(identity), Some(router)) => router.try_send_to(identity, message(parts)),
            (Route::Accepted(_), None) => return Err(Refused::Closed),
        };
        let message = match sent {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(message)) => message,
            // The event that says so is on its way.
            Err(_) => return Err(Refused::Closed),
        };
        // It waits in a task of its own, so no other peer waits with it.
        let reports = self.reports.clone();
        let writable = Report::Event(Event::Writable { connection: to });
        connection.blocked = Some(match (&connection.route, router.cloned()) {
            (Route::Accepted(identity), Some(router)) => {
                let identity = identity.clone();
                tokio::spawn(async move {
                    let _ = router.send_to(identity, message).await;
                    let _ = reports.send(writable).await;
                })
            }
            (Route::Dialed { socket, .. }, _) => {
                let socket = socket.clone();
                tokio::spawn(async move {
                    let _ = socket.send(message).await;
                    let _ = reports.send(writable).await;
                })
            }
            (Route::Accepted(_), None) => return Err(Refused::Closed),
        });
        Ok(())
    }

    fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(blocked) = connection.blocked {
            blocked.abort();
        }
        match connection.route {
            Route::Dialed { socket, reader } => {
                reader.abort();
                close_dialed(&socket, LINGER);
            }
            Route::Accepted(_) => {
                let Some((router, _)) = &self.router else { return };
                let router = router.clone();
                // It may be gone already.
                tokio::spawn(async move { router.disconnect_peer(id.number).await.is_ok() });
            }
        }
    }

    async fn event(&mut self) -> Event {
        loop {
            // There is always a sender: our own.
            let Some(report) = self.reported.recv().await else { return std::future::pending().await };
            match report {
                Report::Accepted { connection, identity, remote } => {
                    let route = Route::Accepted(identity);
                    self.connections.insert(connection, Connection { route, blocked: None });
                    return Event::Connected { connection, remote };
                }
                Report::Event(event) => {
                    let (Event::Connected { connection, .. }
                    | Event::Message { connection, .. }
                    | Event::Writable { connection }
                    | Event::Disconnected { connection, .. }) = &event;
                    let Some(known) = self.connections.get_mut(connection) else { continue };
                    match &event {
                        Event::Writable { .. } => known.blocked = None,
                        Event::Disconnected { .. } => {
                            if let Some(blocked) = known.blocked.take() {
                                blocked.abort();
                            }
                            if let Route::Dialed { socket, .. } = &known.route {
                                close_dialed(socket, Duration::ZERO);
                            }
                            self.connections.remove(&connection.clone());
                        }
                        Event::Connected { .. } | Event::Message { .. } => {}
                    }
                    return event;
                }
            }
        }
    }

    async fn shutdown(&mut self) {
        self.reported.close(); // the tasks end
        let mut closing = tokio::task::JoinSet::new();
        for (_, connection) in self.connections.drain() {
            if let Some(blocked) = connection.blocked {
                blocked.abort();
            }
            if let Route::Dialed { socket, reader } = connection.route {
                reader.abort();
                let socket = Socket::clone(&socket);
                closing.spawn(async move { socket.close_with_linger(Some(LINGER)).await.is_ok() });
            }
        }
        if let Some((router, listener)) = self.router.take() {
            listener.abort();
            let socket = IdentitySocket::clone(&router).into_inner();
            closing.spawn(async move { socket.close_with_linger(Some(LINGER)).await.is_ok() });
        }
        closing.join_all().await;
    }
}
