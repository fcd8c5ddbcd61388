//! A transport within one process, for tests: connections that can be cut, stalled, and lose,
//! repeat or change messages.

use super::{BindError, ConnectionId, Event, Parts, Refused, Transport};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::sync::Notify;

/// Messages that a connection holds before it is full.
const CAPACITY: usize = 16;

/// Everything that is connected: shared by the transports of a test, and by the test.
#[derive(Clone, Default)]
pub(crate) struct Network(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    inboxes: Vec<Inbox>,
    /// Which transport listens on an address.
    listeners: HashMap<String, usize>,
    pipes: Vec<Pipe>,
    /// Nothing arrives at these.
    stalled: Vec<usize>,
    /// Messages to lose.
    to_lose: usize,
    /// Messages to deliver twice, and to change.
    to_repeat: usize,
    to_change: usize,
}

#[derive(Default)]
struct Inbox {
    events: VecDeque<Event>,
    arrived: Arc<Notify>,
}

/// A connection: the transports at its ends, first the one that dialed.
struct Pipe {
    ends: [usize; 2],
    open: bool,
    /// What is under way to each end.
    under_way: [VecDeque<Parts>; 2],
    /// Ends that wait for room.
    blocked: [bool; 2],
}

impl State {
    fn push(&mut self, at: usize, event: Event) {
        self.inboxes[at].events.push_back(event);
        self.inboxes[at].arrived.notify_one();
    }

    fn id(number: usize, side: usize) -> ConnectionId {
        ConnectionId { dialed: side == 0, number: number as u64 }
    }

    fn cut(&mut self, number: usize, tell: [bool; 2]) {
        let pipe = &mut self.pipes[number];
        if !std::mem::replace(&mut pipe.open, false) {
            return;
        }
        pipe.under_way = Default::default();
        let ends = pipe.ends;
        for side in 0..2 {
            if tell[side] {
                let connection = State::id(number, side);
                self.push(ends[side], Event::Disconnected { connection, reason: "cut".into() });
            }
        }
    }

    /// The next message for a transport that does not stall.
    fn receive(&mut self, at: usize) -> Option<Event> {
        if let Some(event) = self.inboxes[at].events.pop_front() {
            return Some(event);
        }
        if self.stalled.contains(&at) {
            return None;
        }
        for number in 0..self.pipes.len() {
            for side in 0..2 {
                if self.pipes[number].ends[side] != at {
                    continue;
                }
                let pipe = &mut self.pipes[number];
                let Some(parts) = pipe.under_way[side].pop_front() else { continue };
                let sender = 1 - side;
                if std::mem::take(&mut pipe.blocked[sender]) {
                    let end = pipe.ends[sender];
                    self.push(end, Event::Writable { connection: State::id(number, sender) });
                }
                return Some(Event::Message { connection: State::id(number, side), parts });
            }
        }
        None
    }
}

impl Network {
    /// Another transport on this network.
    pub(crate) fn transport(&self) -> Memory {
        let state = &mut *self.0.lock();
        state.inboxes.push(Inbox::default());
        Memory { at: state.inboxes.len() - 1, network: self.clone() }
    }

    /// Breaks all connections; what is under way is lost.
    pub(crate) fn cut_all(&self) {
        let state = &mut *self.0.lock();
        for number in 0..state.pipes.len() {
            state.cut(number, [true; 2]);
        }
    }

    /// Whether messages for the transport that listens on `address` stay on their way.
    pub(crate) fn stall(&self, address: &str, stall: bool) {
        let state = &mut *self.0.lock();
        let at = state.listeners[address];
        state.stalled.retain(|stalled| *stalled != at);
        match stall {
            true => state.stalled.push(at),
            false => state.inboxes[at].arrived.notify_one(),
        }
    }

    /// Loses the next messages, whoever sends them.
    pub(crate) fn lose(&self, count: usize) {
        self.0.lock().to_lose = count;
    }

    /// Delivers the next messages twice.
    pub(crate) fn repeat(&self, count: usize) {
        self.0.lock().to_repeat = count;
    }

    /// Changes a bit of the next messages.
    pub(crate) fn change(&self, count: usize) {
        self.0.lock().to_change = count;
    }
}

pub(crate) struct Memory {
    at: usize,
    network: Network,
}

impl Transport for Memory {
    async fn bind(&mut self, address: &str) -> Result<String, BindError> {
        let state = &mut *self.network.0.lock();
        match state.listeners.insert(address.into(), self.at) {
            None => Ok(address.into()),
            Some(_) => Err(BindError { address: address.into(), reason: "it is in use".into() }),
        }
    }

    fn dial(&mut self, address: &str) -> ConnectionId {
        let state = &mut *self.network.0.lock();
        let number = state.pipes.len();
        let listener = state.listeners.get(address).copied();
        let ends = [self.at, listener.unwrap_or(self.at)];
        let open = listener.is_some();
        state.pipes.push(Pipe { ends, open, under_way: Default::default(), blocked: [false; 2] });
        if !open {
            let reason = "nobody listens there".into();
            state.push(self.at, Event::Disconnected { connection: State::id(number, 0), reason });
        } else {
            for (side, end) in ends.into_iter().enumerate() {
                let connection = State::id(number, side);
                state.push(end, Event::Connected { connection, remote: address.into() });
            }
        }
        State::id(number, 0)
    }

    fn send(&mut self, connection: ConnectionId, mut parts: Parts) -> Result<(), Refused> {
        let state = &mut *self.network.0.lock();
        let number = connection.number as usize;
        let (from, to) = if connection.dialed { (0, 1) } else { (1, 0) };
        let pipe = &mut state.pipes[number];
        if !pipe.open {
            return Err(Refused::Closed);
        }
        if pipe.under_way[to].len() >= CAPACITY {
            pipe.blocked[from] = true;
            return Err(Refused::Full(parts));
        }
        if state.to_lose > 0 {
            state.to_lose -= 1;
            return Ok(());
        }
        if state.to_change > 0
            && let Some(part) = parts.last_mut()
        {
            state.to_change -= 1;
            let mut changed = part.to_vec();
            if let Some(byte) = changed.last_mut() {
                *byte ^= 1;
            }
            *part = changed.into();
        }
        if state.to_repeat > 0 {
            state.to_repeat -= 1;
            pipe.under_way[to].push_back(parts.clone());
        }
        pipe.under_way[to].push_back(parts);
        let end = pipe.ends[to];
        state.inboxes[end].arrived.notify_one();
        Ok(())
    }

    fn close(&mut self, connection: ConnectionId) {
        // The other end is told after what is under way to it.
        let state = &mut *self.network.0.lock();
        let (number, to) = (connection.number as usize, usize::from(connection.dialed));
        let pipe = &mut state.pipes[number];
        let (end, last) = (pipe.ends[to], std::mem::take(&mut pipe.under_way[to]));
        for parts in last {
            state.push(end, Event::Message { connection: State::id(number, to), parts });
        }
        state.cut(number, [to == 0, to == 1]);
        let is_of_it = |event: &Event| match event {
            Event::Connected { connection: other, .. }
            | Event::Message { connection: other, .. }
            | Event::Writable { connection: other }
            | Event::Disconnected { connection: other, .. } => *other == connection,
        };
        state.inboxes[self.at].events.retain(|event| !is_of_it(event));
    }

    async fn event(&mut self) -> Event {
        let arrived = self.network.0.lock().inboxes[self.at].arrived.clone();
        loop {
            if let Some(event) = self.network.0.lock().receive(self.at) {
                return event;
            }
            arrived.notified().await;
        }
    }

    async fn shutdown(&mut self) {
        let state = &mut *self.network.0.lock();
        state.listeners.retain(|_, at| *at != self.at);
        for number in 0..state.pipes.len() {
            let ends = state.pipes[number].ends;
            if ends.contains(&self.at) {
                state.cut(number, [ends[0] != self.at, ends[1] != self.at]);
            }
        }
    }
}
