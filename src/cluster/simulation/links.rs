//! The real links between the simulated processes, over a network of packets that are lost, repeated,
//! overtaken and delayed, and connections that break.
//!
//! Each pair of stations that has something to say has a link at either end, and a connection below most of
//! the time. A packet is one frame of a link. Each end learns that a connection broke at a time of its own,
//! at the latest when there is a new one. What the links give up between two living processes,
//! deliver twice or out of order is a rule that was broken.

use super::{random::Random, world::Letter};
use crate::cluster::{
    link::{Config, Credit, Frame, Input, Link, Message as Packed, Now, Output, SendError},
    protocol::{Nanos, ProcessId, ms, us},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Of a packet: the least, and what comes on top of it on average.
const LATENCY: (Nanos, Nanos) = (us(40), us(20));
/// Up to so much more for one packet in `ONE_LATE`, which others overtake.
const LATE: Nanos = ms(20);
const ONE_LATE: u64 = 20;
const ONE_REPEATED: u64 = 30;
/// One connection in so many packets breaks.
const ONE_BREAKS: u64 = 300;
/// Until there is another connection, at most; and until an end learns that one broke.
const RECONNECT: Nanos = ms(30);

/// Windows and queues are small, so that they fill. Nobody is given up: that is the head's part here.
fn config() -> Config {
    Config {
        window: Credit { messages: 16, bytes: 4_000 },
        queue: Credit { messages: 32, bytes: 8_000 },
        heartbeat: Duration::from_millis(400),
        silence: Duration::from_millis(1_200),
        lost_after: Duration::from_secs(100_000),
        resend_after: Duration::from_millis(60),
        ack_delay: Duration::from_millis(2),
    }
}

/// A process with links; of the head, in which of its lives, otherwise 0.
pub(super) type Station = (ProcessId, u64);

/// The lower one first.
type Pair = (Station, Station);

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A letter enters its link, after the time that its bytes take.
    Send {
        from: Station,
        to: Station,
        letter: Box<Letter>,
    },
    Packet {
        pair: Pair,
        to: usize,
        connection: u64,
        parts: Vec<Bytes>,
    },
    Tick {
        pair: Pair,
        side: usize,
    },
    /// An end learns that a connection is gone.
    Gone {
        pair: Pair,
        side: usize,
        connection: u64,
    },
    Connect {
        pair: Pair,
    },
}

struct End {
    link: Link,
    /// The connection that it believes to have.
    connection: Option<u64>,
    tick: Nanos,
    /// What the link has no room for.
    backlog: VecDeque<Letter>,
    /// What it has, from number `delivered` on.
    sent: VecDeque<Letter>,
    delivered: u64,
    /// The number of the next message to send.
    next: u64,
}

struct Connected {
    ends: [End; 2],
    /// The latest, broken or not.
    connection: u64,
    is_connecting: bool,
}

/// What follows from an event.
#[derive(Default)]
pub(super) struct Effects {
    /// After so long.
    pub(super) later: Vec<(Nanos, Event)>,
    /// From, to, and what.
    pub(super) delivered: Vec<(Station, Station, Letter)>,
    /// A rule that was broken.
    pub(super) broken: Option<String>,
}

pub(super) struct Links {
    random: Random,
    /// One packet in so many is lost.
    loss: u64,
    pairs: BTreeMap<Pair, Connected>,
    pub(super) packets: usize,
    pub(super) lost_packets: usize,
    pub(super) connections: usize,
}

/// What the network is like at the moment.
pub(super) struct Weather<'a> {
    pub(super) now: Nanos,
    pub(super) is_alive: &'a dyn Fn(Station) -> bool,
    pub(super) is_cut: &'a dyn Fn(Station, Station) -> bool,
}

impl Weather<'_> {
    fn now(&self) -> Now {
        Duration::from_nanos(self.now)
    }
}

fn side_of(pair: Pair, station: Station) -> usize {
    usize::from(pair.1 == station)
}

fn station_at(pair: Pair, side: usize) -> Station {
    if side == 0 { pair.0 } else { pair.1 }
}

impl Links {
    pub(super) fn new(seed: u64, loss: u64) -> Self {
        let (pairs, random) = (BTreeMap::new(), Random::new(seed ^ 0x6c69_6e6b));
        Links { random, loss, pairs, packets: 0, lost_packets: 0, connections: 0 }
    }

    pub(super) fn handle(&mut self, weather: &Weather<'_>, event: Event, out: &mut Effects) {
        match event {
            Event::Send { from, to, letter } => {
                if !(weather.is_alive)(from) || !(weather.is_alive)(to) {
                    return;
                }
                let pair = (from.min(to), from.max(to));
                let side = side_of(pair, from);
                if !self.pairs.contains_key(&pair) {
                    let ends = [self.end(weather), self.end(weather)];
                    self.pairs.insert(pair, Connected { ends, connection: 0, is_connecting: false });
                    self.connect_later(pair, out);
                }
                if let Some(connected) = self.pairs.get_mut(&pair) {
                    connected.ends[side].backlog.push_back(*letter);
                }
                self.flush(weather, pair, side, out);
            }
            Event::Packet { pair, to, connection, parts } => {
                let Some(connected) = self.pairs.get_mut(&pair) else { return };
                let is_there = connected.ends[to].connection == Some(connection);
                if is_there && (weather.is_alive)(station_at(pair, to)) {
                    self.input(weather, pair, to, Input::Received(parts), out);
                }
            }
            Event::Tick { pair, side } => {
                let Some(connected) = self.pairs.get_mut(&pair) else { return };
                let end = &mut connected.ends[side];
                if end.tick == weather.now && (weather.is_alive)(station_at(pair, side)) {
                    self.input(weather, pair, side, Input::Tick, out);
                }
            }
            Event::Gone { pair, side, connection } => {
                let Some(connected) = self.pairs.get_mut(&pair) else { return };
                if connected.ends[side].connection == Some(connection) {
                    self.detach(weather, pair, side, out);
                }
            }
            Event::Connect { pair } => self.connect(weather, pair, out),
        }
    }

    fn end(&mut self, weather: &Weather<'_>) -> End {
        let epoch = self.random.next().max(1);
        End {
            link: Link::new(weather.now(), epoch, config()),
            connection: None,
            tick: 0,
            backlog: VecDeque::new(),
            sent: VecDeque::new(),
            delivered: 0,
            next: 0,
        }
    }

    fn connect_later(&mut self, pair: Pair, out: &mut Effects) {
        if let Some(connected) = self.pairs.get_mut(&pair)
            && !std::mem::replace(&mut connected.is_connecting, true)
        {
            out.later.push((us(100) + self.random.below(RECONNECT), Event::Connect { pair }));
        }
    }

    fn connect(&mut self, weather: &Weather<'_>, pair: Pair, out: &mut Effects) {
        let Some(connected) = self.pairs.get_mut(&pair) else { return };
        connected.is_connecting = false;
        if !(weather.is_alive)(pair.0) || !(weather.is_alive)(pair.1) {
            return;
        }
        if (weather.is_cut)(pair.0, pair.1) {
            return self.connect_later(pair, out);
        }
        self.connections += 1;
        connected.connection += 1;
        let connection = connected.connection;
        for side in [0, 1] {
            // It may not have known that the last one is gone.
            self.detach(weather, pair, side, out);
            if let Some(connected) = self.pairs.get_mut(&pair) {
                connected.ends[side].connection = Some(connection);
            }
        }
        for side in [0, 1] {
            self.input(weather, pair, side, Input::Attached, out);
        }
    }

    fn detach(&mut self, weather: &Weather<'_>, pair: Pair, side: usize, out: &mut Effects) {
        let Some(connected) = self.pairs.get_mut(&pair) else { return };
        if connected.ends[side].connection.take().is_some() {
            self.input(weather, pair, side, Input::Detached, out);
        }
    }

    /// A connection breaks; the ends learn it one after the other.
    fn cut(&mut self, pair: Pair, out: &mut Effects) {
        let Some(connected) = self.pairs.get(&pair) else { return };
        let connection = connected.connection;
        for side in [0, 1] {
            out.later.push((self.random.below(RECONNECT), Event::Gone { pair, side, connection }));
        }
        self.connect_later(pair, out);
    }

    fn input(&mut self, weather: &Weather<'_>, pair: Pair, side: usize, input: Input, out: &mut Effects) {
        let Some(connected) = self.pairs.get_mut(&pair) else { return };
        let (to, from) = (station_at(pair, side), station_at(pair, 1 - side));
        let mut consumed = Credit::default();
        let mut is_closed = false;
        for output in connected.ends[side].link.handle(weather.now(), input) {
            match output {
                Output::Up | Output::Freed(_) => {}
                Output::Deliver(messages) => {
                    for packed in messages {
                        consumed.messages += 1;
                        consumed.bytes += packed.cost() as u64;
                        let sender = &mut connected.ends[1 - side];
                        let number = packed.header.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
                        match sender.sent.pop_front() {
                            Some(letter) if number == Some(sender.delivered) => {
                                sender.delivered += 1;
                                out.delivered.push((from, to, letter));
                            }
                            _ => {
                                let expected = sender.delivered;
                                out.broken = Some(format!("{from:?} to {to:?}: {number:?} came, not {expected}"));
                            }
                        }
                    }
                }
                Output::Close(_) => is_closed = true,
                Output::Lost(reason) => {
                    out.broken = Some(format!("{to:?} gave up its link to {from:?}: {reason}"));
                }
            }
        }
        if consumed.messages > 0 {
            connected.ends[side].link.handle(weather.now(), Input::Consumed(consumed));
        }
        if is_closed {
            self.detach(weather, pair, side, out);
            self.cut(pair, out);
        }
        self.flush(weather, pair, side, out);
    }

    /// Sends what there is, and sees to it that the link is looked after in time.
    fn flush(&mut self, weather: &Weather<'_>, pair: Pair, side: usize, out: &mut Effects) {
        let Links { random, pairs, .. } = self;
        let Some(connected) = pairs.get_mut(&pair) else { return };
        let connection = connected.connection;
        let end = &mut connected.ends[side];
        while let Some(letter) = end.backlog.pop_front() {
            match end.link.send(Packed::new(end.next.to_le_bytes().to_vec())) {
                Ok(()) => {
                    end.next += 1;
                    end.sent.push_back(letter);
                }
                Err(SendError::Full(_)) => {
                    end.backlog.push_front(letter);
                    break;
                }
                Err(error) => out.broken = Some(format!("{pair:?}: {error}")),
            }
        }
        let mut breaks = false;
        while let Some(parts) = end.link.poll_transmit(weather.now()) {
            self.packets += 1;
            if end.connection != Some(connection)
                || (weather.is_cut)(pair.0, pair.1)
                || random.one_in(self.loss)
                || breaks
            {
                self.lost_packets += 1;
                continue;
            }
            breaks = random.one_in(ONE_BREAKS);
            // A greeting comes once; a transport does not repeat what it carries.
            let is_greeting = matches!(Frame::decode(parts.clone()), Ok(Frame::Hello(_)));
            for _ in 0..1 + usize::from(!is_greeting && random.one_in(ONE_REPEATED)) {
                let late = if random.one_in(ONE_LATE) { random.below(LATE) } else { 0 };
                let after = LATENCY.0 + random.exponential(LATENCY.1) + late;
                out.later.push((after, Event::Packet { pair, to: 1 - side, connection, parts: parts.clone() }));
            }
        }
        if let Some(deadline) = end.link.deadline(true) {
            let due = (deadline.as_nanos() as Nanos).max(weather.now + 1);
            if end.tick <= weather.now || due < end.tick {
                end.tick = due;
                out.later.push((due - weather.now, Event::Tick { pair, side }));
            }
        }
        if breaks {
            self.cut(pair, out);
        }
    }
}
