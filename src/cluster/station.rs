//! A process that listens: its endpoint, and which way a letter goes.
//!
//! Who sends to a station that it has not met asks the head where that is, and dials. Letters wait meanwhile,
//! and where a peer's queue is full, so that posting never blocks and their order is kept.

use super::{
    endpoint::{Config, Endpoint, Event, Incarnation, Message, Next, Pump, SendError, StartError},
    image::platform,
    pack::{self, Packing},
    protocol::{HEAD, ProcessId},
    secure::Key,
    transport::chosen::{Choice, Chosen},
    wire::{Envelope, Letter, Role, host},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Handle;

/// A message of the link's carries no more than this of a letter's payload.
const CHUNK: usize = 1 << 20;

/// A letter in one message, the first message of a longer one, and those that follow.
const WHOLE: u8 = 0;
const FIRST: u8 = 1;
const MORE: u8 = 2;
/// Small letters, one after the other: the length of the header, the number of payloads, the length of each, header,
/// payloads; all numbers are four bytes.
const SMALL: u8 = 3;
/// A letter with shorter payloads than that, together, is small.
const SHORT: usize = 24 << 10;

/// The longest payload that is believed.
const LONGEST: u64 = 1 << 40;

/// What sends and receives for a station, on the thread that runs it.
pub(crate) type Post = Pump<Chosen>;

pub(crate) struct Station {
    pub(crate) me: ProcessId,
    role: Role,
    endpoint: Mutex<Option<Endpoint>>,
    pub(crate) address: String,
    routes: Mutex<Routes>,
    runtime: Handle,
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("me", &self.me).field("address", &self.address).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Routes {
    peers: FxHashMap<ProcessId, Incarnation>,
    names: FxHashMap<Incarnation, ProcessId>,
    /// For those who cannot take it now.
    waiting: FxHashMap<ProcessId, VecDeque<Message>>,
    asked: FxHashSet<ProcessId>,
    /// The head was there, and is gone: it is told nothing, for the next one would not understand it.
    is_headless: bool,
    /// Stations that are no more.
    gone: FxHashSet<ProcessId>,
    /// Letters that are arriving in parts.
    arriving: FxHashMap<Incarnation, Arriving>,
}

struct Arriving {
    /// Of the header, and of the payloads.
    lengths: Vec<usize>,
    parts: Vec<BytesMut>,
}

/// What happens to a station.
pub(crate) enum Happening {
    /// Those that came together.
    Letters(Vec<Envelope>),
    /// It has said who it is.
    Met { station: ProcessId, role: Role, address: String, host: String },
    /// The head does not let this process take part.
    Refused(String),
    /// What was under way to and from it is lost.
    Lost { station: ProcessId, reason: String },
    /// It is time to look at the clock.
    Tick,
}

impl Station {
    /// Listens at `bind`.
    pub(crate) fn start(
        me: ProcessId,
        role: Role,
        bind: &str,
        key: Option<Key>,
    ) -> Result<(Arc<Station>, Post), StartError> {
        Station::start_as(me, role, bind, key, str::to_owned)
    }

    /// The same, and others are told that it is `at` this, instead of where it listens.
    pub(crate) fn start_as(
        me: ProcessId,
        role: Role,
        bind: &str,
        key: Option<Key>,
        at: impl FnOnce(&str) -> String,
    ) -> Result<(Arc<Station>, Post), StartError> {
        let config = Config { bind: bind.into(), key, ..Config::default() };
        let choice = Choice::from_env().map_err(StartError::Transport)?;
        let (endpoint, post) = Endpoint::open(config, || Chosen::new(choice))?;
        let address = at(endpoint.address());
        let (endpoint, routes, runtime) = (Mutex::new(Some(endpoint)), Mutex::default(), post.handle().clone());
        let station = Station { me, role, endpoint, address, routes, runtime };
        Ok((Arc::new(station), post))
    }

    /// Has the thread that runs this station do something else, too, while it waits.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Connects to the station at an address, whoever that is.
    pub(crate) fn dial(&self, address: &str) {
        if let Some(endpoint) = &*self.endpoint.lock() {
            endpoint.connect(address);
        }
    }

    /// Sends a letter to a process of another station; never waits.
    pub(crate) fn post(&self, envelope: &Envelope) {
        let to = envelope.to.station();
        let routes = &mut *self.routes.lock();
        if routes.gone.contains(&to) || to == HEAD && routes.is_headless {
            return;
        }
        if let (Some(peer), false) = (routes.peers.get(&to), routes.waiting.contains_key(&to))
            && is_small(envelope)
            && self.append(*peer, envelope)
        {
            return;
        }
        let messages = messages(envelope);
        if let Some(waiting) = routes.waiting.get_mut(&to) {
            return waiting.extend(messages);
        }
        let mut messages: VecDeque<_> = messages.into();
        if let Some(peer) = routes.peers.get(&to) {
            self.send(*peer, &mut messages);
            if messages.is_empty() {
                return;
            }
        } else if to != HEAD && routes.asked.insert(to) && !routes.is_headless {
            self.ask_for(routes, to);
        }
        routes.waiting.insert(to, messages);
    }

    /// Sends a task in a pack: in the one that was begun for that station last, if it has not left and nothing has come
    /// after it, and `goes_on` says so; otherwise it is the first of another.
    pub(crate) fn pack(&self, task: &Packing<'_>) {
        let first = || {
            let mut pack = Vec::new();
            pack::write(task.common, task.number, task.value, true, &mut pack);
            let letter = Letter::Pack { first: task.object, kind: task.kind };
            Envelope { from: self.me, to: task.to, letter, payload: vec![pack.into()] }
        };
        {
            let routes = &*self.routes.lock();
            let is_waiting = routes.waiting.contains_key(&task.to) || routes.gone.contains(&task.to);
            if let (Some(peer), false) = (routes.peers.get(&task.to), is_waiting)
                && let Some(endpoint) = &*self.endpoint.lock()
            {
                let write = |open: &mut Vec<u8>, last: Option<usize>| match last {
                    Some(at) if task.goes_on => {
                        let before = open.len();
                        pack::write(task.common, task.number, task.value, false, open);
                        let by = open.len() - before;
                        grow_small(open, at, by);
                        Some(at)
                    }
                    _ => {
                        let at = open.len();
                        write_small(&first(), open);
                        Some(at)
                    }
                };
                if endpoint.append_or_grow(*peer, |out| out.push(SMALL), write).unwrap_or(true) {
                    return;
                }
            }
        }
        self.post(&first());
    }

    fn ask_for(&self, routes: &mut Routes, station: ProcessId) {
        let ask = Envelope { from: self.me, to: HEAD, letter: Letter::WhereIs { station }, payload: Vec::new() };
        self.send_to(routes, HEAD, messages(&ask));
    }

    fn send_to(&self, routes: &mut Routes, to: ProcessId, messages: Vec<Message>) {
        let mut messages: VecDeque<_> = messages.into();
        match (routes.waiting.get_mut(&to), routes.peers.get(&to)) {
            (Some(waiting), _) => waiting.extend(messages),
            (None, Some(peer)) => {
                self.send(*peer, &mut messages);
                if !messages.is_empty() {
                    routes.waiting.insert(to, messages);
                }
            }
            (None, None) => drop(routes.waiting.insert(to, messages)),
        }
    }

    /// Puts a small letter into the peer's queue; `false`: that is full, or the letter is too long.
    fn append(&self, peer: Incarnation, envelope: &Envelope) -> bool {
        let endpoint = self.endpoint.lock();
        let Some(endpoint) = &*endpoint else { return true };
        // If it is not heard any more, `Lost` follows, or has been.
        endpoint.append(peer, |out| out.push(SMALL), |out| write_small(envelope, out)).unwrap_or(true)
    }

    /// Sends as many as the peer's queue takes.
    fn send(&self, peer: Incarnation, messages: &mut VecDeque<Message>) {
        let endpoint = self.endpoint.lock();
        let Some(endpoint) = &*endpoint else { return messages.clear() };
        while let Some(message) = messages.pop_front() {
            match endpoint.send(peer, message) {
                Ok(()) => {}
                Err(SendError::Full(message)) => return messages.push_front(message),
                // `Lost` follows, or has been.
                Err(_) => {}
            }
        }
    }

    fn flush(&self, routes: &mut Routes, to: ProcessId) {
        let (Some(peer), Some(mut waiting)) = (routes.peers.get(&to), routes.waiting.remove(&to)) else { return };
        self.send(*peer, &mut waiting);
        if !waiting.is_empty() {
            routes.waiting.insert(to, waiting);
        }
    }

    /// Sends and receives until the endpoint is closed, and reports what happens; a `Tick` when `next` says so.
    pub(crate) fn run(&self, mut post: Post, mut next: impl FnMut() -> Instant, mut happens: impl FnMut(Happening)) {
        loop {
            let latest = next();
            if Instant::now() >= latest {
                happens(Happening::Tick);
            } else if !self.turn(&mut post, latest, &mut happens) {
                return;
            }
        }
    }

    /// Sends and receives until something happens, and reports it; or until it is so late, or somebody interrupts.
    /// `false`: the endpoint is closed.
    pub(crate) fn turn(&self, post: &mut Post, latest: Instant, happens: &mut impl FnMut(Happening)) -> bool {
        match post.next(Some(latest)) {
            Next::Happened(event) => {
                let dealt = match &event {
                    Event::Message(peer, message) => Some((*peer, message.cost())),
                    _ => None,
                };
                self.event(event, happens);
                if let Some((peer, cost)) = dealt {
                    post.consumed(peer, cost);
                }
                true
            }
            Next::Late => true,
            Next::Over => false,
        }
    }

    /// Interrupts the turn of whoever has one.
    pub(crate) fn interrupt(&self) {
        if let Some(endpoint) = &*self.endpoint.lock() {
            endpoint.interrupt();
        }
    }

    fn event(&self, event: Event, happens: &mut impl FnMut(Happening)) {
        match event {
            Event::Up(peer) => {
                let hello = Letter::Hello {
                    role: self.role.clone(),
                    address: self.address.clone(),
                    version: env!("CARGO_PKG_VERSION").into(),
                    host: host(),
                    platform: platform(),
                };
                let hello = Envelope { from: self.me, to: HEAD, letter: hello, payload: Vec::new() };
                self.send(peer, &mut messages(&hello).into());
            }
            Event::Room(peer) => {
                let routes = &mut *self.routes.lock();
                if let Some(to) = routes.names.get(&peer).copied() {
                    self.flush(routes, to);
                }
            }
            Event::Lost(peer, reason) => {
                let lost = {
                    let routes = &mut *self.routes.lock();
                    routes.arriving.remove(&peer);
                    let station = routes.names.remove(&peer).filter(|station| routes.peers.get(station) == Some(&peer));
                    if let Some(station) = station {
                        routes.peers.remove(&station);
                        routes.waiting.remove(&station);
                        match station == HEAD {
                            true => routes.is_headless = true,
                            false => drop(routes.gone.insert(station)),
                        }
                    }
                    station
                };
                if let Some(station) = lost {
                    happens(Happening::Lost { station, reason: reason.to_string() });
                }
            }
            Event::Message(peer, message) => {
                if message.header.first() == Some(&SMALL) {
                    let mut rest = message.header.slice(1..);
                    let mut letters = Vec::new();
                    while let Some(envelope) = read_small(&mut rest) {
                        match envelope.letter {
                            Letter::Hello { .. } | Letter::Station { .. } | Letter::Refused { .. } => {
                                self.letters(peer, std::mem::take(&mut letters), happens);
                                self.letter(peer, envelope, happens);
                            }
                            _ => letters.push(envelope),
                        }
                    }
                    self.letters(peer, letters, happens);
                } else if let Some(envelope) = self.assemble(peer, message) {
                    self.letter(peer, envelope, happens);
                }
            }
        }
    }

    /// A letter has come, which may be for this station itself.
    fn letter(&self, peer: Incarnation, envelope: Envelope, happens: &mut impl FnMut(Happening)) {
        match envelope.letter {
            Letter::Hello { role, address, version, host, platform } => {
                let station = envelope.from.station();
                if matches!(self.role, Role::Head { .. })
                    && let Some(reason) = misfit(&role, &version, &platform)
                {
                    tracing::warn!("a process at {address} was refused: {reason}");
                    let letter = Letter::Refused { reason };
                    let refused = Envelope { from: self.me, to: station, letter, payload: Vec::new() };
                    return self.send(peer, &mut messages(&refused).into());
                }
                if station == HEAD && misfit(&self.role, &version, &platform).is_some() {
                    return; // it refuses this process, and says why
                }
                {
                    let routes = &mut *self.routes.lock();
                    routes.names.insert(peer, station);
                    routes.peers.insert(station, peer);
                    routes.gone.remove(&station);
                    self.flush(routes, station);
                    if station == HEAD && std::mem::take(&mut routes.is_headless) {
                        let unanswered = |to: &&ProcessId| !routes.peers.contains_key(to) && **to != HEAD;
                        for to in routes.waiting.keys().filter(unanswered).copied().collect::<Vec<_>>() {
                            self.ask_for(routes, to);
                        }
                    }
                }
                happens(Happening::Met { station, role, address, host });
            }
            Letter::Station { station, address } => {
                let routes = &mut *self.routes.lock();
                if !routes.names.contains_key(&peer) {
                    return;
                }
                match address {
                    Some(address) => self.dial(&address),
                    None => {
                        routes.waiting.remove(&station);
                        routes.gone.insert(station);
                    }
                }
            }
            Letter::Refused { reason } if envelope.from == HEAD => happens(Happening::Refused(reason)),
            _ => self.letters(peer, vec![envelope], happens),
        }
    }

    /// Letters have come from one that has said hello; others are not heard.
    fn letters(&self, peer: Incarnation, letters: Vec<Envelope>, happens: &mut impl FnMut(Happening)) {
        if !letters.is_empty() && self.routes.lock().names.contains_key(&peer) {
            happens(Happening::Letters(letters));
        }
    }

    /// The letter that is complete with this message, if one is. Nothing is kept for one that has not said hello, which
    /// is no long letter.
    fn assemble(&self, peer: Incarnation, message: Message) -> Option<Envelope> {
        let Message { mut header, payloads } = message;
        match *header.first()? {
            WHOLE => {
                header.advance(1);
                Envelope::parse(&header, payloads)
            }
            FIRST => {
                header.advance(1);
                let count = usize::from(header.try_get_u16_le().ok()?);
                let mut lengths = Vec::new();
                for _ in 0..count {
                    let length = header.try_get_u64_le().ok().filter(|length| *length <= LONGEST)?;
                    lengths.push(length as usize);
                }
                let arriving = Arriving { lengths, parts: vec![BytesMut::new()] };
                let routes = &mut *self.routes.lock();
                if routes.names.contains_key(&peer) {
                    routes.arriving.insert(peer, arriving);
                }
                None
            }
            MORE => {
                let routes = &mut *self.routes.lock();
                let arriving = routes.arriving.get_mut(&peer)?;
                for chunk in payloads {
                    let at = arriving.parts.len() - 1;
                    let (length, place) = (*arriving.lengths.get(at)?, arriving.parts.get_mut(at)?);
                    if place.is_empty() {
                        place.reserve(length.min(64 * CHUNK));
                    }
                    place.extend_from_slice(&chunk);
                }
                // What is empty has no chunk of its own.
                while arriving.parts.last()?.len() >= *arriving.lengths.get(arriving.parts.len() - 1)? {
                    if arriving.parts.len() == arriving.lengths.len() {
                        let arrived = routes.arriving.remove(&peer)?;
                        let mut parts = arrived.parts.into_iter().map(BytesMut::freeze);
                        let header = parts.next()?;
                        return Envelope::parse(&header, parts.collect());
                    }
                    arriving.parts.push(BytesMut::new());
                }
                None
            }
            _ => None,
        }
    }

    /// Sends nothing more to a station: it is dead.
    pub(crate) fn forget(&self, station: ProcessId) {
        let routes = &mut *self.routes.lock();
        routes.gone.insert(station);
        routes.waiting.remove(&station);
        routes.asked.remove(&station);
    }

    /// Sends what is queued, and closes. `run` returns after that.
    pub(crate) fn close(&self, limit: Duration) {
        let endpoint = self.endpoint.lock().take();
        if let Some(endpoint) = endpoint {
            endpoint.close(limit);
        }
    }
}

/// Why a process cannot be part of this head's cluster.
fn misfit(role: &Role, version: &str, platform: &str) -> Option<String> {
    let (our_version, our_platform) = (env!("CARGO_PKG_VERSION"), self::platform());
    if version != our_version {
        return Some(format!(
            "it has outray {version}, and the head has outray {our_version}; all parts of a cluster must have the same version"
        ));
    }
    // Who only asks runs nothing.
    (platform != our_platform && !matches!(role, Role::Guest)).then(|| {
        format!("it was built for {platform}, and the head for {our_platform}; all parts of a cluster must be built for the same")
    })
}

/// Whether a letter can travel with others in a message, if its header is not long either.
fn is_small(envelope: &Envelope) -> bool {
    let payload = &envelope.payload;
    payload.len() <= 64 && payload.iter().map(Bytes::len).sum::<usize>() < SHORT
}

pub(super) fn write_small(envelope: &Envelope, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend([0; 4]);
    out.extend((envelope.payload.len() as u32).to_le_bytes());
    envelope.payload.iter().for_each(|payload| out.extend((payload.len() as u32).to_le_bytes()));
    let start = out.len();
    envelope.write_header(out);
    let length = (out.len() - start) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    envelope.payload.iter().for_each(|payload| out.extend_from_slice(payload));
}

/// The only payload of the small letter that begins there has become longer.
fn grow_small(out: &mut [u8], at: usize, by: usize) {
    if let Some(length) = out.get_mut(at + 8..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *length = (u32::from_le_bytes(*length) + by as u32).to_le_bytes();
    }
}

/// The next of some small letters.
pub(super) fn read_small(rest: &mut Bytes) -> Option<Envelope> {
    let header = rest.try_get_u32_le().ok()? as usize;
    let count = rest.try_get_u32_le().ok()? as usize;
    let mut lengths = Vec::new();
    for _ in 0..count {
        lengths.push(rest.try_get_u32_le().ok()? as usize);
    }
    let mut part = |length: usize| (length <= rest.len()).then(|| rest.split_to(length));
    let header = part(header)?;
    let payload = lengths.into_iter().map(part).collect::<Option<_>>()?;
    Envelope::parse(&header, payload)
}

/// A letter as messages of the link's.
fn messages(envelope: &Envelope) -> Vec<Message> {
    let mut header = vec![WHOLE];
    envelope.write_header(&mut header);
    let bytes: usize = envelope.payload.iter().map(Bytes::len).sum();
    if bytes + header.len() <= CHUNK && envelope.payload.len() <= 512 {
        return vec![Message { header: header.into(), payloads: envelope.payload.clone() }];
    }
    let header = Bytes::from(header).slice(1..);
    let parts = || std::iter::once(&header).chain(&envelope.payload);
    let mut first = BytesMut::new();
    first.put_u8(FIRST);
    first.put_u16_le(1 + envelope.payload.len() as u16);
    parts().for_each(|part| first.put_u64_le(part.len() as u64));
    let mut messages = vec![Message { header: first.freeze(), payloads: Vec::new() }];
    let more = Bytes::from_static(&[MORE]);
    for part in parts() {
        let mut rest = part.clone();
        while !rest.is_empty() {
            let chunk = rest.split_to(rest.len().min(CHUNK));
            messages.push(Message { header: more.clone(), payloads: vec![chunk] });
        }
    }
    // Also when the last are empty.
    messages.push(Message { header: more, payloads: Vec::new() });
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::transport::omq::Omq;
    use std::{sync::mpsc, thread};

    #[test]
    fn a_head_refuses_other_versions_and_platforms_and_does_not_hear_them() {
        let (head, events) = Station::start(HEAD, Role::Head { cluster: 1 }, "127.0.0.1:0", None).expect("a head");
        let (tell, told) = mpsc::channel();
        let running = head.clone();
        let later = || Instant::now() + Duration::from_secs(3_600);
        let thread = thread::spawn(move || {
            running.run(events, later, |happening| {
                let happened = match happening {
                    Happening::Met { station, .. } => format!("met {station}"),
                    Happening::Letters(letters) => {
                        return letters.iter().for_each(|envelope| {
                            tell.send(format!("{:?}", envelope.letter)).expect("the test waits");
                        });
                    }
                    _ => return,
                };
                tell.send(happened).expect("the test waits");
            });
        });
        let (endpoint, mut events) = Endpoint::start(Config::default(), Omq::new).expect("an endpoint");
        endpoint.connect(&head.address);
        let peer = loop {
            if let Event::Up(peer) = events.recv().expect("a peer") {
                break peer;
            }
        };
        let say = |letter| {
            let envelope = Envelope { from: ProcessId::station_from(7), to: HEAD, letter, payload: Vec::new() };
            for message in messages(&envelope) {
                endpoint.send(peer, message).expect("room");
            }
        };
        let ours = env!("CARGO_PKG_VERSION");
        let hellos =
            [(Role::Node, "0.0.9", &*platform()), (Role::Driver, ours, "vax-vms"), (Role::Guest, ours, "vax-vms")];
        for (role, version, platform) in hellos {
            let (version, platform) = (version.into(), platform.into());
            say(Letter::Hello { role, address: "there".into(), version, host: host(), platform });
            say(Letter::Leaving);
        }
        let mut refusals = Vec::new();
        while refusals.len() < 2 {
            let Event::Message(_, mut message) = events.recv().expect("a message") else { continue };
            message.header.advance(1);
            let envelope = Envelope::parse(&message.header, message.payloads).expect("a letter");
            if let Letter::Refused { reason } = envelope.letter {
                refusals.push(reason);
            }
        }
        assert!(refusals[0].contains("outray 0.0.9") && refusals[0].contains(ours), "{refusals:?}");
        assert!(refusals[1].contains("vax-vms") && refusals[1].contains(&platform()), "{refusals:?}");
        // Who only asks is heard, whatever it was built for.
        assert_eq!(told.recv().as_deref(), Ok("met 000000000007"));
        assert_eq!(told.recv().as_deref(), Ok("Leaving"));
        head.close(Duration::ZERO);
        thread.join().expect("it ends");
        assert_eq!(told.recv().ok(), None);
    }

    #[test]
    fn who_has_not_said_hello_is_not_heard_and_nothing_is_kept_for_it() {
        let (head, events) = Station::start(HEAD, Role::Head { cluster: 1 }, "127.0.0.1:0", None).expect("a head");
        let (tell, told) = mpsc::channel();
        let running = head.clone();
        let later = || Instant::now() + Duration::from_secs(3_600);
        let thread = thread::spawn(move || {
            running.run(events, later, |happening| {
                let Happening::Letters(letters) = happening else { return };
                for envelope in letters {
                    let kept = running.routes.lock().arriving.len();
                    let bytes: usize = envelope.payload.iter().map(Bytes::len).sum();
                    tell.send((kept, bytes)).expect("the test waits");
                }
            });
        });
        let (endpoint, mut events) = Endpoint::start(Config::default(), Omq::new).expect("an endpoint");
        endpoint.connect(&head.address);
        let peer = loop {
            if let Event::Up(peer) = events.recv().expect("a peer") {
                break peer;
            }
        };
        let mut say = |message: Message| {
            let mut message = message;
            while let Err(SendError::Full(again)) = endpoint.send(peer, message) {
                message = again;
                events.recv().expect("room"); // or something else
            }
        };
        let from = ProcessId::station_from(7);
        let short = Envelope { from, to: HEAD, letter: Letter::Leaving, payload: Vec::new() };
        let long = Envelope { payload: vec![vec![1; 3 * CHUNK].into()], ..short.clone() };
        for letter in [&long, &short] {
            messages(letter).into_iter().for_each(&mut say);
        }
        // One that would never end.
        let mut first = BytesMut::new();
        first.put_u8(FIRST);
        first.put_u16_le(1);
        first.put_u64_le(LONGEST);
        say(Message { header: first.freeze(), payloads: Vec::new() });
        for _ in 0..64 {
            say(Message { header: Bytes::from_static(&[MORE]), payloads: vec![vec![0; CHUNK].into()] });
        }
        let (role, version, platform) = (Role::Guest, env!("CARGO_PKG_VERSION").into(), platform());
        let hello = Letter::Hello { role, address: "there".into(), version, host: host(), platform };
        for letter in [&Envelope { letter: hello, ..short.clone() }, &short, &long] {
            messages(letter).into_iter().for_each(&mut say);
        }
        assert_eq!(told.recv(), Ok((0, 0)), "the short one after its hello is the first, and nothing else has begun");
        assert_eq!(told.recv(), Ok((0, 3 * CHUNK)));
        head.close(Duration::ZERO);
        thread.join().expect("it ends");
        assert!(told.recv().is_err(), "there is no other");
    }
}
