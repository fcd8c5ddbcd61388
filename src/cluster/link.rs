//! What two processes agree on, whatever becomes of the connections between them: every message is
//! delivered exactly once and in order, as long as neither gives the other up.
//!
//! A link is sans-IO: no clock, no socket, no thread. `handle(now, input)` returns what follows from
//! the input, `poll_transmit(now)` what to send next, as soon as the transport has room for it, and
//! `deadline()` when to tick. `now` is the time since any fixed start.
//!
//! # States
//! ```text
//! Detached --Attached--> Greeting --Hello--> Attached --Detached--> Detached
//!     '----------------------'--- silence, Bye, nonsense, forgotten ---'--> Lost
//! ```
//! # Protocol
//! Messages are numbered from 0 and kept until they are acknowledged. On a new connection each side
//! says in its `Hello` how many it has, and the other goes on from there. What comes twice is
//! dropped, what comes too early is ignored: the sender goes back to what is not acknowledged when no
//! acknowledgement has come for a while, so a message that is lost on a live connection does no harm.
//!
//! A link has a random *epoch*, and remembers the other's. Whoever gives a link up forgets it; if the
//! other comes back it meets another epoch, and gives its own link up too. So both see the end, and
//! no message of the old link is taken for one of the new.
//!
//! # Invariants
//! - `acked <= next <= sent <= acked + outgoing.len()`.
//! - The peer has been granted `announced`, and all that it may send fits in the window: what is
//!   delivered and not yet consumed has a bound, in messages and in bytes. Whoever sends more is lost.
//! - What waits to be acknowledged has a bound too: `send` says `Full`, and takes no more.

pub(crate) mod codec;
mod reason;
#[cfg(test)]
mod tests;

pub(crate) use codec::{Batch, Credit, Frame, Hello, Incarnation, Message};
pub(crate) use reason::{Reason, SendError};

use bytes::Bytes;
use codec::BatchEncoder;
use std::{collections::VecDeque, time::Duration};

/// Time since any fixed start.
pub(crate) type Now = Duration;

#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// What the peer may send before the layer above has consumed it.
    pub(crate) window: Credit,
    /// What may wait here until the peer has acknowledged it.
    pub(crate) queue: Credit,
    /// A side that has nothing to say says so this often.
    pub(crate) heartbeat: Duration,
    /// A connection on which nothing came for so long is given up.
    pub(crate) silence: Duration,
    /// A peer of which nothing was heard for so long, on any connection, is lost.
    pub(crate) lost_after: Duration,
    /// Without an acknowledgement for so long the sender goes back.
    pub(crate) resend_after: Duration,
    /// An acknowledgement waits so long for something to travel with.
    pub(crate) ack_delay: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            window: Credit { messages: 16 << 10, bytes: 16 << 20 },
            queue: Credit { messages: 16 << 10, bytes: 16 << 20 },
            heartbeat: Duration::from_millis(500),
            silence: Duration::from_secs(3),
            lost_after: Duration::from_secs(10),
            resend_after: Duration::from_secs(2),
            ack_delay: Duration::from_millis(5),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Input {
    /// There is a connection to the peer.
    Attached,
    Received(Vec<Bytes>),
    /// The connection is gone.
    Detached,
    /// The layer above has done with messages that were delivered to it.
    Consumed(Credit),
    /// The process ends: once all is acknowledged, say so. The peer closes the connection then.
    Finish,
    /// The deadline is over.
    Tick,
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Output {
    /// For the first time both sides know each other.
    Up,
    Deliver(Vec<Message>),
    /// There is room again for so much.
    Freed(Credit),
    /// The connection is of no use.
    Close(Reason),
    /// The last output: the peer's state is gone, and what it has not acknowledged with it.
    Lost(Reason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Detached,
    /// Connected, and the peer's hello is yet to come.
    Greeting,
    Attached,
    Lost,
}

struct Outgoing {
    message: Message,
    /// The cost of all messages up to this one.
    end: u64,
}

pub(crate) struct Link {
    config: Config,
    state: State,
    epoch: u64,
    /// The peer's epoch; 0 before its first hello.
    peer_epoch: u64,

    /// What is not acknowledged, from message `acked` on.
    outgoing: VecDeque<Outgoing>,
    acked: u64,
    /// The message to send next.
    next: u64,
    /// Messages before this one have been sent at least once.
    sent: u64,
    /// Cost of all messages ever accepted, and of those acknowledged.
    cost: u64,
    acked_cost: u64,
    credit: Credit,
    finishing: bool,

    received: Credit,
    consumed: Credit,
    announced: Credit,

    hello_due: bool,
    /// An acknowledgement should not wait.
    ack_due: bool,
    ack_at: Option<Now>,
    heard: Now,
    said: Now,
    /// When an acknowledgement came last, or the first unacknowledged message left.
    progress: Now,
}

impl Link {
    /// `epoch` is random, and not 0.
    pub(crate) fn new(now: Now, epoch: u64, config: Config) -> Self {
        Link {
            state: State::Detached,
            epoch,
            peer_epoch: 0,
            outgoing: VecDeque::new(),
            acked: 0,
            next: 0,
            sent: 0,
            cost: 0,
            acked_cost: 0,
            credit: Credit::default(),
            finishing: false,
            received: Credit::default(),
            consumed: Credit::default(),
            announced: Credit::default(),
            hello_due: false,
            ack_due: false,
            ack_at: None,
            heard: now,
            said: now,
            progress: now,
            config,
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.state, State::Greeting | State::Attached)
    }

    /// Whether it is over: given up, or finished.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Lost
    }

    /// Whether the peer has ever greeted back.
    pub(crate) fn was_up(&self) -> bool {
        self.peer_epoch != 0
    }

    /// Whether the peer has everything.
    pub(crate) fn is_drained(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// What waits to be acknowledged.
    pub(crate) fn queued(&self) -> Credit {
        Credit { messages: self.outgoing.len() as u64, bytes: self.cost - self.acked_cost }
    }

    pub(crate) fn send(&mut self, message: Message) -> Result<(), SendError> {
        if self.state == State::Lost {
            return Err(SendError::Lost);
        }
        if message.is_too_large() {
            return Err(SendError::TooLarge { bytes: message.len(), parts: 1 + message.payloads.len() });
        }
        let queued = self.queued();
        let bytes = queued.bytes + message.cost() as u64;
        if queued.messages >= self.config.queue.messages || bytes > self.config.queue.bytes {
            return Err(SendError::Full(message));
        }
        self.cost += message.cost() as u64;
        self.outgoing.push_back(Outgoing { message, end: self.cost });
        Ok(())
    }

    pub(crate) fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.state == State::Lost {
            // Both may end at once: then each has said so, and heard it.
            if let (true, Input::Received(parts)) = (self.finishing, input)
                && Frame::decode(parts) == Ok(Frame::Bye)
            {
                outputs.push(Output::Close(Reason::Finished));
            }
            return outputs;
        }
        match input {
            Input::Attached => {
                self.state = State::Greeting;
                self.hello_due = true;
                self.heard = now;
            }
            Input::Detached => self.state = State::Detached,
            Input::Received(parts) if self.is_attached() => {
                self.heard = now;
                let handled = match Frame::decode(parts) {
                    Ok(frame) => self.receive(now, frame, &mut outputs),
                    Err(error) => Err(Reason::Malformed(error)),
                };
                if let Err(reason) = handled {
                    self.lose(reason, &mut outputs);
                }
            }
            Input::Received(_) => {} // of a connection that is closed already
            Input::Consumed(credit) => {
                self.consumed.messages += credit.messages;
                self.consumed.bytes += credit.bytes;
                let (window, granted) = (self.config.window, self.granted());
                let runs_out = |window: u64, announced: u64, received: u64, granted: u64| {
                    announced - received <= window / 2 && granted - announced >= window / 4
                };
                let (announced, received) = (self.announced, self.received);
                self.ack_due |= runs_out(window.messages, announced.messages, received.messages, granted.messages)
                    || runs_out(window.bytes, announced.bytes, received.bytes, granted.bytes);
            }
            Input::Finish => self.finishing = true,
            Input::Tick => self.tick(now, &mut outputs),
        }
        outputs
    }

    fn tick(&mut self, now: Now, outputs: &mut Vec<Output>) {
        let silence = now.saturating_sub(self.heard);
        if silence >= self.config.lost_after {
            return self.lose(Reason::Silent(silence), outputs);
        }
        if self.is_attached() && silence >= self.config.silence {
            self.state = State::Detached;
            outputs.push(Output::Close(Reason::Silent(silence)));
        }
    }

    /// The link is over; the caller forgets it.
    pub(crate) fn lose(&mut self, reason: Reason, outputs: &mut Vec<Output>) {
        if self.is_attached() {
            outputs.push(Output::Close(reason));
        }
        if self.state != State::Lost {
            self.state = State::Lost;
            self.outgoing = VecDeque::new();
            outputs.push(Output::Lost(reason));
        }
    }

    fn receive(&mut self, now: Now, frame: Frame, outputs: &mut Vec<Output>) -> Result<(), Reason> {
        match (frame, self.state) {
            (Frame::Hello(hello), State::Greeting) => self.greet(now, &hello, outputs),
            (Frame::Batch(batch), State::Attached) => self.receive_batch(now, batch, outputs),
            // Its hello is lost. The silence that follows ends the connection.
            (Frame::Batch(_), _) => Ok(()),
            (Frame::Hello(_), _) => Err(Reason::Protocol("a second hello")),
            (Frame::Intro(_), _) => Err(Reason::Protocol("a second introduction")),
            (Frame::Bye, _) => Err(Reason::Finished),
        }
    }

    fn greet(&mut self, now: Now, hello: &Hello, outputs: &mut Vec<Output>) -> Result<(), Reason> {
        let was_up = self.was_up();
        let is_known = hello.known == 0 || hello.known == self.epoch;
        if !is_known || was_up && hello.epoch != self.peer_epoch {
            if was_up {
                return Err(Reason::Forgotten);
            }
            // It is the peer's link that is out of date: it sees that by our hello.
            self.state = State::Detached;
            outputs.push(Output::Close(Reason::Forgotten));
            return Ok(());
        }
        self.peer_epoch = hello.epoch;
        self.state = State::Attached;
        self.acknowledge(now, hello.received, hello.credit, outputs)?;
        self.next = self.acked;
        if !was_up {
            outputs.push(Output::Up);
        }
        Ok(())
    }

    fn acknowledge(
        &mut self,
        now: Now,
        received: u64,
        credit: Credit,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Reason> {
        if received > self.sent {
            return Err(Reason::Protocol("it acknowledged what was not sent"));
        }
        // Grants and acknowledgements only grow; what is late says nothing new.
        self.credit.messages = self.credit.messages.max(credit.messages);
        self.credit.bytes = self.credit.bytes.max(credit.bytes);
        if received <= self.acked {
            return Ok(());
        }
        let before = self.queued();
        let count = (received - self.acked) as usize;
        for outgoing in self.outgoing.drain(..count) {
            self.acked_cost = outgoing.end;
        }
        self.acked = received;
        self.next = self.next.max(received);
        self.progress = now;
        let after = self.queued();
        let freed = Credit { messages: before.messages - after.messages, bytes: before.bytes - after.bytes };
        outputs.push(Output::Freed(freed));
        Ok(())
    }

    fn receive_batch(&mut self, now: Now, batch: Batch, outputs: &mut Vec<Output>) -> Result<(), Reason> {
        self.acknowledge(now, batch.received, batch.credit, outputs)?;
        if batch.messages.is_empty() {
            return Ok(());
        }
        // Also for what was received before: its acknowledgement may be lost.
        self.ack_at.get_or_insert(now + self.config.ack_delay);
        if batch.first > self.received.messages {
            return Ok(());
        }
        let duplicates = (self.received.messages - batch.first) as usize;
        let mut messages = batch.messages;
        messages.drain(..duplicates.min(messages.len()));
        for message in &messages {
            self.received.messages += 1;
            self.received.bytes += message.cost() as u64;
        }
        if self.received.messages > self.announced.messages || self.received.bytes > self.announced.bytes {
            return Err(Reason::Protocol("it sent more than it may"));
        }
        if !messages.is_empty() {
            outputs.push(Output::Deliver(messages));
        }
        Ok(())
    }

    fn granted(&self) -> Credit {
        let (window, consumed) = (self.config.window, self.consumed);
        Credit { messages: consumed.messages + window.messages, bytes: consumed.bytes + window.bytes }
    }

    /// The next thing to send, if there is any.
    pub(crate) fn poll_transmit(&mut self, now: Now) -> Option<Vec<Bytes>> {
        if !self.is_attached() {
            return None;
        }
        if self.hello_due {
            self.hello_due = false;
            self.said = now;
            self.announced = self.granted();
            let hello = Hello {
                epoch: self.epoch,
                known: self.peer_epoch,
                received: self.received.messages,
                credit: self.announced,
            };
            return Some(Frame::Hello(hello).encode());
        }
        if self.state != State::Attached {
            return None;
        }
        if self.next > self.acked && now >= self.progress + self.config.resend_after {
            self.next = self.acked;
        }
        let waiting = self.outgoing.range((self.next - self.acked) as usize..);
        let may_send =
            |outgoing: &Outgoing, number: u64| number < self.credit.messages && outgoing.end <= self.credit.bytes;
        let mut encoder = None;
        let first = self.next;
        for outgoing in waiting {
            if !may_send(outgoing, self.next) {
                break;
            }
            let encoder = encoder.get_or_insert_with(BatchEncoder::new);
            if !encoder.has_room(&outgoing.message) {
                break;
            }
            encoder.push(&outgoing.message);
            self.next += 1;
        }
        if encoder.is_none() {
            let is_due = self.ack_due || self.ack_at.is_some_and(|at| now >= at);
            if !is_due && self.finishing && self.is_drained() {
                self.state = State::Lost;
                return Some(Frame::Bye.encode());
            }
            if !is_due && now < self.said + self.config.heartbeat {
                return None;
            }
        }
        if first == self.acked {
            self.progress = now;
        }
        self.sent = self.sent.max(self.next);
        self.said = now;
        self.ack_due = false;
        self.ack_at = None;
        self.announced = self.granted();
        Some(encoder.unwrap_or_else(BatchEncoder::new).finish(self.received.messages, self.announced, first))
    }

    /// When to tick, and to poll for something to send if the transport has room for it.
    pub(crate) fn deadline(&self, has_room: bool) -> Option<Now> {
        let config = &self.config;
        let lost = self.heard + config.lost_after;
        match self.state {
            State::Lost => None,
            State::Detached => Some(lost),
            State::Greeting => Some(lost.min(self.heard + config.silence)),
            State::Attached if !has_room => Some(lost.min(self.heard + config.silence)),
            State::Attached => {
                let mut deadline = lost.min(self.heard + config.silence).min(self.said + config.heartbeat);
                if let Some(at) = self.ack_at {
                    deadline = deadline.min(at);
                }
                if self.next > self.acked {
                    deadline = deadline.min(self.progress + config.resend_after);
                }
                Some(deadline)
            }
        }
    }
}
