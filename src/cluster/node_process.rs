//! A node as a process: the state machine on a station, the objects' bytes, and the workers.
//!
//! A job has workers here, started from its executable when the first task comes for them (`seats.rs`). They speak with the node
//! over pipes, and with everybody else through it: what is not for the node is passed on.
//!
//! # Threads
//! One for the station and for what workers say. All goes through one lock, under which nothing blocks but the disk.
//! Whatever takes long (to read or write an executable, to start a process, to bury one) has a thread.

mod calls;
mod questions;
mod report;
mod seats;

use calls::{CallPack, Calls};
use questions::Questions;
use report::Titled;
use seats::{Kind, Over, Seats, VISIBLE, kill};

use super::{
    arena,
    bulk::{self, Bulk, NotNow, PullError, Stopped},
    capacity::{Capacity, Demand},
    entry,
    image::{Cache, Image},
    node::{Keeps, Node},
    pack::{self, Pack, PackKind, Telling, Told},
    pipe,
    printed::{Printed, read_line},
    protocol::{
        Arg, Effects, HEAD, INLINE, Label, Message, Nanos, ObjectId, Outcome, ProcessId, Strategy, TaskSpec, lost,
    },
    running::Heard,
    runs::Runs,
    shelf::{Kept, Maker, Room, Shelf},
    signals,
    station::{Happening, Post, Station},
    store::{self, StoreError},
    wire::{self, Blob, End, Envelope, Job, Letter, Order, Parcel, Role, Site, host},
};
use crate::{
    error::{Error, Origin},
    local::resources::WHOLE,
};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rustix::net::sockopt::set_socket_send_buffer_size;
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io::{self, BufReader},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock, Weak},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};
use tokio::io::AsyncReadExt;

/// At most so many tasks are with their worker ahead of their turn.
const AHEAD: usize = 512;
/// So long an object is tried to be got that others have and whose bytes do not come.
const PULL_WITHIN: Duration = Duration::from_secs(10);
/// A part of an executable, in bytes.
pub(crate) const PART: usize = 1 << 20;
/// So long who has made an object, or wants one, waits until there is room for it, and so often it is looked for.
const ROOM_WITHIN: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_millis(5);

/// How long the head may take to answer at first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Names the seconds that nodes and programs go on without a head.
const HEAD_PATIENCE: &str = "OUTRAY_HEAD_PATIENCE";

/// How long nodes and programs go on without a head.
pub(crate) fn head_patience() -> Duration {
    let seconds = std::env::var(HEAD_PATIENCE).ok().and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

pub(crate) struct Setup {
    pub(crate) capacity: Capacity,
    pub(crate) labels: Vec<Label>,
    /// Where executables are kept.
    pub(crate) cache: PathBuf,
    /// Where objects are kept.
    pub(crate) store: store::Config,
    pub(crate) bulk: bulk::Config,
}

pub(crate) struct NodeProcess {
    me: ProcessId,
    name: String,
    cpus: u32,
    station: Arc<Station>,
    /// Large objects go from node to node on connections of their own.
    bulk: Bulk,
    cache: Cache,
    started: Instant,
    /// The same as a date.
    started_on: SystemTime,
    /// What a task asks for that says nothing.
    plain: Arc<Demand>,
    state: Mutex<State>,
}

struct State {
    node: Node,
    shelf: Shelf,
    /// Stations whose processes can open this node's files.
    neighbours: BTreeSet<ProcessId>,
    jobs: BTreeMap<ProcessId, JobState>,
    workers: BTreeMap<ProcessId, Worker>,
    /// Which worker runs what.
    runs: BTreeMap<(ObjectId, u32), Run>,
    actors: HashMap<ObjectId, ActorPlace>,
    /// Objects that are being written to the shelf, and by whom.
    reserved: BTreeMap<ObjectId, ProcessId>,
    /// Objects on their way here from other nodes.
    pulls: BTreeMap<ObjectId, Pulling>,
    next_pull: u64,
    /// What those died of that were here.
    dead_actors: BTreeMap<ObjectId, Arc<Error>>,
    /// Workers that have letters to be sent.
    unsent: BTreeSet<ProcessId>,
    next_worker: Option<u16>,
    printed: Printed,
    timeline: Runs,
    questions: Questions,
    is_ending: bool,
    has_ended: bool,
    /// The cluster that it is part of.
    cluster: Option<u64>,
    /// Since when there is no head, and why; and what that has to be told.
    headless: Option<(Instant, String)>,
    untold: Vec<Letter>,
    /// Why it ends, if nobody has asked for that.
    failed: Option<String>,
}

impl State {
    /// Drops what has come of an object that is fetched no more, unless it is here otherwise.
    fn forget_draft(&mut self, object: ObjectId) {
        if !self.node.stores(object) && !self.reserved.contains_key(&object) {
            self.shelf.remove(object);
        }
    }

    /// Where a task is that has been handed to a worker, by itself or in a pack.
    fn run_of(&self, task: ObjectId, attempt: u32) -> Option<&Run> {
        self.runs.get(&self.node.pack(task).unwrap_or((task, attempt)))
    }

    /// A call has come for an actor that this node has not.
    fn is_not_here(&self, actor: ObjectId, call: ObjectId, out: &mut Effects) {
        let known = self.dead_actors.get(&actor).cloned();
        let error = known.unwrap_or_else(|| died(actor, "it is not on its node any more"));
        out.send(call.owner, Message::Finished { task: call, attempt: 0, outcome: Outcome::Failed(error) });
    }

    /// A pack that may have ended is not with its worker any more.
    fn forget_pack(&mut self, pack: (ObjectId, u32)) {
        if self.node.task(pack.0, pack.1).is_none() {
            self.runs.remove(&pack);
        }
    }

    /// Sends what is for workers, what has come together in one piece.
    fn flush(&mut self) {
        while let Some(worker) = self.unsent.pop_first() {
            if let Some(worker) = self.workers.get(&worker) {
                worker.letters.flush();
            }
        }
    }
}

#[derive(Default)]
struct JobState {
    job: Option<Job>,
    /// What it is called.
    program: Option<Arc<str>>,
    /// The part of the executable that has arrived, and who waits for it.
    image: BytesMut,
    fetching: Vec<Kind>,
    /// Its workers.
    seats: Seats,
    /// Why there will be none.
    refused: Option<Arc<Error>>,
    /// The program ends: nothing of it starts any more; its driver waits for the end of what runs here.
    is_closing: bool,
    is_awaited: bool,
    /// What its functions are called, as far as they have run here.
    names: HashMap<Site, Arc<str>>,
}

/// What a worker runs, and the files of the arguments, which stay until it has ended.
struct Run {
    worker: ProcessId,
    _files: Vec<store::Object>,
    /// Of a pack: the numbers that its tasks have in the process that submitted them, and what they are called.
    pack: Option<(Box<[u64]>, Titled)>,
}

/// An object on its way here from another node.
struct Pulling {
    /// Of the last try. What an earlier one brings is of no use any more.
    number: u64,
    /// Since when tries have failed.
    failing: Option<Instant>,
    /// What has come of it, as this attempt of its task made it.
    part: Option<(u32, Room)>,
}

/// One try to get an object: from whom, and its number.
type Try = (ProcessId, u64);

/// Where an actor is.
struct ActorPlace {
    worker: ProcessId,
    attempt: u32,
    /// Its constructor has ended well.
    is_made: bool,
}

struct Worker {
    driver: ProcessId,
    kind: Kind,
    /// The actor whose alone it is has ended.
    over: Option<Over>,
    is_killed: bool,
    /// Its program ends, and nothing of it runs here any more.
    is_closed: bool,
    letters: pipe::Sender,
    arena: Option<Arc<arena::Reader>>,
    child: Arc<Mutex<Child>>,
    pid: u32,
    is_ready: bool,
    /// CPUs of its tasks that wait, in thousandths.
    lent: u32,
    /// What it has made.
    heard: Heard,
    /// Calls that have not ended.
    calls: Calls,
    /// What ended last.
    last: Option<Arc<str>>,
    /// And when: nanoseconds since the node was started.
    ended: u64,
    since: Instant,
    /// Until it is ready.
    waiting: Vec<Envelope>,
}

impl NodeProcess {
    pub(crate) fn new(station: Arc<Station>, setup: Setup) -> Result<Arc<NodeProcess>, Error> {
        let Setup { capacity, labels, cache, store, bulk } = setup;
        let unsupported = |error: StoreError| Error::Unsupported { reason: error.to_string() };
        let shelf = Shelf::open(&store).map_err(unsupported)?;
        let me = station.me;
        let cpus = capacity.cpu;
        let mut out = Effects::default();
        let mut node = Node::new(me, capacity, labels, &mut out);
        node.hand_out_ahead(AHEAD);
        let objects = Arc::new(OnceLock::<Weak<NodeProcess>>::new());
        let bulk = {
            let objects = objects.clone();
            let lookup = move |object| {
                let Some(node) = objects.get().and_then(Weak::upgrade) else { return Ok(None) };
                let kept = node.state.lock().shelf.get(object);
                let bytes = kept.and_then(|kept| kept.map(Kept::bytes).transpose());
                bytes.map_err(|error| tracing::warn!(%error, "object {object:?} cannot be read")).map_err(|()| NotNow)
            };
            Bulk::start(bulk, lookup).map_err(|error| Error::Unsupported { reason: error.to_string() })?
        };
        let process = Arc::new(NodeProcess {
            bulk,
            me,
            name: me.to_string(),
            cpus,
            station,
            cache: Cache::open(cache)?,
            started: Instant::now(),
            started_on: SystemTime::now(),
            plain: Arc::new(Demand::cpus(WHOLE)),
            state: Mutex::new(State {
                node,
                shelf,
                neighbours: BTreeSet::new(),
                jobs: BTreeMap::new(),
                workers: BTreeMap::new(),
                runs: BTreeMap::new(),
                actors: HashMap::new(),
                reserved: BTreeMap::new(),
                pulls: BTreeMap::new(),
                next_pull: 0,
                dead_actors: BTreeMap::new(),
                unsent: BTreeSet::new(),
                next_worker: Some(1),
                printed: Printed::default(),
                timeline: Runs::default(),
                questions: Questions::default(),
                is_ending: false,
                has_ended: false,
                cluster: None,
                headless: None,
                untold: Vec::new(),
                failed: None,
            }),
        });
        let _ = objects.set(Arc::downgrade(&process)); // this is the only place
        process.with(|_, effects| *effects = out);
        Ok(process)
    }

    /// Serves until the cluster ends, or this node is to end; `joined` is told when the head has answered.
    ///
    /// # Errors
    /// Why it ended if nobody asked for that; nothing if no head has answered in time.
    pub(crate) fn run(self: Arc<Self>, post: Post, joined: impl FnOnce()) -> Result<(), Option<String>> {
        let (next, ours) = (Cell::new(Instant::now()), host());
        let mut joined = Some(joined);
        self.station.clone().run(
            post,
            || next.get(),
            |happening| {
                match happening {
                    Happening::Letters(letters) => self.receive(letters),
                    Happening::Met { station, role, host, .. } => {
                        if host == ours {
                            self.state.lock().neighbours.insert(station);
                        }
                        if let Role::Head { cluster } = role {
                            self.with(|state, out| self.head_is_there(state, cluster, out));
                        }
                        if station == HEAD
                            && let Some(joined) = joined.take()
                        {
                            joined();
                        }
                    }
                    Happening::Tick => {}
                    Happening::Refused(reason) => self.fail(&mut self.state.lock(), reason),
                    Happening::Lost { station, reason } => self.lost(station, &reason),
                }
                if joined.is_some() && self.started.elapsed() > PATIENCE {
                    self.state.lock().is_ending = true;
                }
                if signals::is_end_asked() {
                    self.state.lock().is_ending = true;
                }
                self.miss_the_head();
                let (until, is_ending) = self.with(|state, out| {
                    self.answer_late(state);
                    state.node.tick(self.now(), out);
                    if state.jobs.is_empty() && state.workers.is_empty() {
                        state.shelf.rest();
                    }
                    (state.node.next_tick(), state.is_ending)
                });
                next.set(self.started + Duration::from_nanos(until));
                if is_ending {
                    self.end();
                }
            },
        );
        self.end();
        match self.state.lock().failed.take() {
            None if joined.is_some() && !signals::is_end_asked() => Err(None),
            None => Ok(()),
            failed => Err(failed),
        }
    }

    /// Something has happened after which this node cannot go on.
    fn fail(&self, state: &mut State, why: String) {
        // Who leaves in good order may still be told that it is not heard any more.
        if !std::mem::replace(&mut state.is_ending, true) {
            state.failed = Some(why);
        }
    }

    /// Ends the workers, removes the objects, and says that it leaves. What `run` runs in ends after that.
    pub(crate) fn end(&self) {
        let workers = {
            let state = &mut *self.state.lock();
            if std::mem::replace(&mut state.has_ended, true) {
                return;
            }
            std::mem::take(&mut state.workers)
        };
        for worker in workers.values() {
            let mut child = worker.child.lock();
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
        self.state.lock().shelf.close();
        self.station.post(&self.envelope(HEAD, Letter::Leaving, Vec::new()));
        self.station.close(Duration::from_millis(500));
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn envelope(&self, to: ProcessId, letter: Letter, payload: Vec<Bytes>) -> Envelope {
        Envelope { from: self.me, to, letter, payload }
    }

    /// Works under the lock, and carries out what came of it.
    fn with<R>(self: &Arc<Self>, work: impl FnOnce(&mut State, &mut Effects) -> R) -> R {
        let state = &mut *self.state.lock();
        let mut out = Effects::default();
        let result = work(state, &mut out);
        self.carry_out(state, out);
        state.flush();
        result
    }

    fn carry_out(self: &Arc<Self>, state: &mut State, out: Effects) {
        let (mut first, mut effects) = (Some(out), VecDeque::new());
        while let Some(out) = first.take().or_else(|| effects.pop_front()) {
            for (to, message) in out.sends {
                let is_object = matches!(message, Message::Here { .. } | Message::Pushed { .. });
                if !is_object && to != self.me {
                    self.send(state, self.envelope(to, Letter::Control(message), Vec::new()));
                    continue;
                }
                let mut more = Effects::default();
                match is_object {
                    true => self.send_object(state, to, message, Instant::now() + ROOM_WITHIN, &mut more),
                    false => self.control(state, self.me, message, Vec::new(), &mut more),
                }
                effects.push_back(more);
            }
            for spec in out.starts {
                let mut more = Effects::default();
                self.start(state, spec, &mut more);
                effects.push_back(more);
            }
            for (task, attempt) in out.stops {
                match state.run_of(task, attempt) {
                    Some(run) => {
                        let stop = self.envelope(run.worker, Letter::Stop { task, attempt }, Vec::new());
                        self.send(state, stop);
                    }
                    // It waits for its worker.
                    None => {
                        let mut more = Effects::default();
                        state.jobs.values_mut().for_each(|job| job.withdraw(task, attempt));
                        state.end_unwanted();
                        let why = Outcome::Crashed { why: "it was stopped".into() };
                        state.node.finished(self.now(), task, attempt, why, &mut more);
                        effects.push_back(more);
                    }
                }
            }
            let mut recalls: BTreeMap<ProcessId, Vec<(ObjectId, u32)>> = BTreeMap::new();
            for (task, attempt) in out.recalls {
                match state.run_of(task, attempt).map(|run| run.worker) {
                    Some(worker) => recalls.entry(worker).or_default().push((task, attempt)),
                    // It waits for its worker.
                    None => {
                        let mut more = Effects::default();
                        state.jobs.values_mut().for_each(|job| job.withdraw(task, attempt));
                        state.end_unwanted();
                        state.node.given_back(self.now(), task, attempt, &mut more);
                        effects.push_back(more);
                    }
                }
            }
            for (worker, tasks) in recalls {
                self.send(state, self.envelope(worker, Letter::Recall { tasks }, Vec::new()));
            }
            for object in out.dropped {
                if !state.node.stores(object) {
                    state.shelf.remove(object);
                }
            }
            if out.fenced {
                let why =
                    "the head has declared this node dead, although it lives: it was not heard in time; start it again";
                self.fail(state, why.into());
            }
        }
        // What nobody wants any more does not come.
        while let Some(object) = state.pulls.keys().find(|object| !state.node.fetches(**object)).copied() {
            state.pulls.remove(&object);
            state.forget_draft(object);
        }
    }

    /// Sends an object: where its file is, where it can be fetched, or its bytes. If it is on disk, and all that is in memory is in
    /// use for the moment, it waits.
    fn send_object(
        self: &Arc<Self>,
        state: &mut State,
        to: ProcessId,
        message: Message,
        until: Instant,
        out: &mut Effects,
    ) {
        let (Message::Here { object } | Message::Pushed { object, .. }) = message else { return };
        let kept = state.shelf.get(object);
        if matches!(kept, Err(StoreError::Full { .. })) && Instant::now() < until {
            return self.soon(move |node, state, out| node.send_object(state, to, message, until, out));
        }
        let is_near = to.station() == self.me || state.neighbours.contains(&to);
        let letter = match (kept, &message) {
            (Ok(Some(Kept::File(file))), Message::Here { .. }) if is_near => {
                Ok((Letter::InFile { object, path: file.path().to_owned(), size: file.size() }, None))
            }
            (Ok(Some(Kept::File(_))), Message::Pushed { size, attempt, .. }) if !to.is_worker() => {
                let (size, attempt, address) = (*size, *attempt, self.bulk.address().to_owned());
                Ok((Letter::Pullable { object, size, attempt, address }, None))
            }
            (Ok(Some(kept)), _) => kept.bytes().map(|value| (Letter::Control(message.clone()), Some(value))),
            (Ok(None), Message::Pushed { .. }) => Ok((Letter::Control(Message::Gone { object }), None)),
            (Ok(None), _) => {
                let why = lost(object, "its node has let go of it");
                Ok((Letter::Control(Message::Lost { object, why }), None))
            }
            (Err(error), _) => Err(error),
        };
        let (letter, value) = letter.unwrap_or_else(|error| {
            let why = self.cannot("read", object, &error);
            (Letter::Control(Message::Lost { object, why }), None)
        });
        if matches!(message, Message::Pushed { .. })
            && matches!(letter, Letter::Control(Message::Gone { .. } | Message::Lost { .. }))
        {
            // It is not under way there; others that wait may have more luck.
            state.node.handle(self.now(), to, Message::Pulled { object, is_well: false }, out);
        }
        self.send(state, self.envelope(to, letter, value.into_iter().collect()));
    }

    /// What this node cannot do with an object, and why.
    fn cannot(&self, what: &str, object: ObjectId, error: &dyn std::fmt::Display) -> Arc<Error> {
        tracing::error!(%error, "node {} cannot {what} object {object:?}", self.name);
        let reason = format!("node {} cannot {what} an object: {error}", self.name);
        Arc::new(Error::Unsupported { reason })
    }

    /// Does something a moment later.
    fn soon(self: &Arc<Self>, work: impl FnOnce(&Arc<NodeProcess>, &mut State, &mut Effects) + Send + 'static) {
        let node = self.clone();
        self.station.spawn(async move {
            tokio::time::sleep(SOON).await;
            node.with(|state, out| work(&node, state, out));
        });
    }

    /// To a worker here, or to another station.
    fn send(&self, state: &mut State, envelope: Envelope) {
        if envelope.to.station() != self.me {
            return self.station.post(&envelope);
        }
        if let Some(worker) = state.workers.get_mut(&envelope.to) {
            match worker.is_ready {
                true => {
                    worker.letters.put(&envelope);
                    state.unsent.insert(envelope.to);
                }
                false => worker.waiting.push(envelope),
            }
        }
    }

    fn receive(self: &Arc<Self>, letters: Vec<Envelope>) {
        let state = &mut *self.state.lock();
        for envelope in letters {
            let mut out = Effects::default();
            self.take(state, envelope, &mut out);
            self.carry_out(state, out);
        }
        state.flush();
    }

    fn take(self: &Arc<Self>, state: &mut State, envelope: Envelope, out: &mut Effects) {
        if envelope.to != self.me {
            return self.send(state, envelope);
        }
        let Envelope { from, letter, payload, .. } = envelope;
        match letter {
            Letter::Control(message) => self.control(state, from, message, payload, out),
            Letter::Store { object } => {
                if let Some(value) = payload.into_iter().next()
                    && self.keep(state, object, &value, None).is_ok()
                    && !state.node.put(object, value.len() as u64)
                {
                    state.shelf.remove(object);
                }
            }
            Letter::Reserve { object, attempt, size } => {
                self.reserve(state, from, (object, attempt), size, Instant::now() + ROOM_WITHIN);
            }
            Letter::Written { object, is_well } => {
                state.reserved.remove(&object);
                match state.shelf.adopt(object) {
                    Ok(size) if is_well && state.node.put(object, size) => {}
                    _ => state.shelf.remove(object), // who asks for it is told that it is lost
                }
            }
            Letter::Pack { first, kind: PackKind::Tasks { is_granted } } => {
                self.pack_arrived(state, from, (first, is_granted), payload, out);
            }
            Letter::Pack { first, kind: PackKind::Calls { actor, caller } } => {
                self.calls_arrived(state, from, first, (actor, caller), payload, out);
            }
            Letter::Results { owner } => self.results(state, from, owner, payload, out),
            Letter::Ended { id, attempt, is_call, took, end } => {
                let value = payload.into_iter().next().unwrap_or_default();
                self.ended(state, (id, attempt), (from, is_call, took.into()), end, value, out);
            }
            Letter::ActorEnded { actor, attempt, error, restarts } => {
                self.actor_ended(state, from, (actor, attempt), error, restarts, out);
            }
            Letter::Kill { actor } => {
                if let Some(worker) = state.actors.get(&actor).map(|place| place.worker) {
                    state.is_killed(worker);
                    self.send(state, Envelope { from, to: worker, letter: Letter::Kill { actor }, payload });
                }
            }
            Letter::Lend { cpu } => {
                if let Some(worker) = state.workers.get_mut(&from) {
                    worker.lent += cpu;
                    state.node.lend(self.now(), cpu, out);
                }
            }
            Letter::Reclaim { cpu } => {
                if let Some(worker) = state.workers.get_mut(&from) {
                    worker.lent -= cpu;
                    state.node.reclaim(cpu);
                }
            }
            Letter::Call { call, actor, caller, body } => {
                let Some(worker) = state.actors.get(&actor).map(|place| place.worker) else {
                    return state.is_not_here(actor, call, out);
                };
                self.call_begins(state, worker, call, actor, &body.0);
                let letter = Letter::Call { call, actor, caller, body };
                self.send(state, Envelope { from, to: worker, letter, payload });
            }
            Letter::Pending { actor, number } => match state.actors.get(&actor).map(|place| place.worker) {
                Some(worker) => {
                    let letter = Letter::Pending { actor, number };
                    self.send(state, Envelope { from, to: worker, letter, payload });
                }
                None => {
                    let (answer, payload) = wire::answer(number, &0.into());
                    self.send(state, self.envelope(from, answer, payload));
                }
            },
            // A call; its caller does not know the worker.
            Letter::Stop { task, attempt } => {
                if let Some(worker) = state.workers.iter().find(|(_, w)| w.calls.contains(task)).map(|(id, _)| *id) {
                    self.send(state, Envelope { from, to: worker, letter: Letter::Stop { task, attempt }, payload });
                }
            }
            Letter::WaitsOf { look, asked, objects } => self.waits_asked(state, from, look, asked, objects),
            Letter::JobIs { driver, job } => self.job_is(state, driver, job, out),
            Letter::ImagePart { driver, offset } => self.image_part(state, driver, offset, payload, out),
            Letter::Ready { refused } => self.ready(state, from, refused, out),
            Letter::Pullable { object, size, attempt, address } => {
                self.pull(state, from, Message::Pushed { object, size, attempt }, address, out);
            }
            Letter::Ask { number, question } => self.asked(state, from, number, question),
            Letter::Answer { number } => self.worker_answered(state, from, number, payload.into_iter().next()),
            Letter::PassOn { number, question } => {
                self.station.post(&self.envelope(HEAD, Letter::AskFor { asker: from, number, question }, Vec::new()));
            }
            Letter::Named { function, name } => {
                let driver = state.workers.get(&from).map(|worker| worker.driver);
                if let Some(job) = driver.and_then(|driver| state.jobs.get_mut(&driver)) {
                    job.names.insert(function, name.into());
                }
            }
            Letter::Closed => {
                if let Some(worker) = state.workers.get_mut(&from) {
                    worker.is_closed = true;
                    let driver = worker.driver;
                    self.job_has_closed(state, driver);
                }
            }
            Letter::Leaving => state.is_ending = true,
            _ => {}
        }
    }

    fn control(
        self: &Arc<Self>,
        state: &mut State,
        from: ProcessId,
        message: Message,
        payload: Vec<Bytes>,
        out: &mut Effects,
    ) {
        let mut freed = None;
        match &message {
            Message::Pushed { object, .. } => {
                if let Some(value) = payload.into_iter().next()
                    && !state.node.stores(*object)
                {
                    let _ = self.keep(state, *object, &value, None); // it is said why
                }
                freed = Some(*object); // if nobody waits for it any more
            }
            Message::Free { object, .. } => freed = Some(*object),
            Message::Dead { process } => {
                self.station.forget(*process);
                state.jobs.remove(process);
                state.workers_of(*process).for_each(|(_, worker)| kill(worker));
            }
            _ => {}
        }
        let buried = match &message {
            Message::Dead { process } => Some(*process),
            _ => None,
        };
        if let Message::Close { job } = &message
            && !state.node.has_buried(*job)
        {
            self.close_job(state, from, *job, out);
        }
        state.node.handle(self.now(), from, message, out);
        if let Some(object) = freed.filter(|object| !state.node.stores(*object)) {
            state.shelf.remove(object);
        }
        if buried.is_some() {
            // Others may still write what was reserved for them.
            state.reserved.retain(|object, by| Some(*by) != buried && Some(object.owner) != buried);
            let State { node, shelf, reserved, pulls, .. } = &mut *state;
            let is_awaited = |object: &ObjectId| reserved.contains_key(object) || pulls.contains_key(object);
            shelf.retain(|object| node.stores(*object) || is_awaited(object));
            state.dead_actors.retain(|actor, _| Some(actor.owner) != buried);
        }
    }

    /// A program ends: what it has here that runs goes on.
    fn close_job(&self, state: &mut State, from: ProcessId, driver: ProcessId, out: &mut Effects) {
        let job = state.jobs.entry(driver).or_default();
        let was_closing = std::mem::replace(&mut job.is_closing, true);
        job.is_awaited |= from == driver;
        for spec in job.leave(None) {
            state.node.finished(self.now(), spec.id, spec.attempt, Outcome::Withdrawn, out);
        }
        state.end_unwanted();
        let workers: Vec<_> = state.workers_of(driver).map(|(id, _)| *id).filter(|_| !was_closing).collect();
        for worker in workers {
            self.send(state, self.envelope(worker, Letter::Close, Vec::new()));
        }
        self.job_has_closed(state, driver);
    }

    /// Tells a driver that waits for it that nothing of its program runs here any more, if that is so.
    fn job_has_closed(&self, state: &mut State, driver: ProcessId) {
        let has_closed = state.workers_of(driver).all(|(_, worker)| worker.is_closed);
        let Some(job) = state.jobs.get_mut(&driver).filter(|_| has_closed) else { return };
        if std::mem::take(&mut job.is_awaited) {
            self.send(state, self.envelope(driver, Letter::Closed, Vec::new()));
        }
    }

    /// A worker says how a task ended, or a call of that worker's.
    fn ended(
        self: &Arc<Self>,
        state: &mut State,
        (id, attempt): (ObjectId, u32),
        (worker, is_call, took): (ProcessId, bool, Nanos),
        end: End,
        value: Bytes,
        out: &mut Effects,
    ) {
        let size = value.len() as u64;
        let maker = self.heard(state, worker, value.len()).filter(|_| !Parcel::has_handles(&value));
        let too_much = |error: &dyn std::fmt::Display| {
            let reason = format!("node {} cannot keep a result: {error}", self.name);
            Outcome::Failed(Arc::new(Error::Unsupported { reason }))
        };
        let outcome = match end {
            End::GivenBack => {
                state.runs.remove(&(id, attempt));
                let pack = state.node.pack(id);
                state.node.given_back(self.now(), id, attempt, out);
                return pack.into_iter().for_each(|pack| state.forget_pack(pack));
            }
            End::Failed(error) => {
                state.reserved.remove(&id);
                state.shelf.remove(id); // if a file was reserved for it
                Outcome::Failed(error)
            }
            End::Value if value.len() <= INLINE && (is_call || !state.node.stays_here(id, attempt, size)) => {
                Outcome::Inline(Arc::from(&value[..]))
            }
            End::Value => match state.shelf.insert(id, &value, maker) {
                Ok(()) => Outcome::Stored { size },
                Err(error) => too_much(&error),
            },
            End::Written => {
                state.reserved.remove(&id);
                match state.shelf.adopt(id) {
                    Ok(size) => Outcome::Stored { size },
                    Err(error) => too_much(&error),
                }
            }
        };
        let stored = match &outcome {
            Outcome::Stored { size } => Some(*size),
            _ => None,
        };
        if is_call {
            self.call_ended(state, worker, id);
            if let Some(worker) = state.workers.get(&worker) {
                worker.end_if_over();
            }
            if let Some(size) = stored {
                state.node.put(id, size);
            }
            out.send(id.owner, Message::Finished { task: id, attempt, outcome });
        } else if let Some(pack) = state.node.pack(id) {
            self.packed_ended(state, pack, &[(id, 0)]);
            let is_inline = matches!(outcome, Outcome::Inline(_));
            state.node.ended_by_itself(self.now(), (pack, id), took, outcome, out);
            if is_inline && state.node.stores(id) {
                let _ = self.keep(state, id, &value, maker); // a small one always finds room
            }
            state.forget_pack(pack);
        } else {
            self.task_ended(state, id, attempt);
            match state.actors.get_mut(&id) {
                Some(place) if !matches!(outcome, Outcome::Failed(_)) => place.is_made = true,
                _ => {
                    state.actors.remove(&id);
                    if let (Some(run), Outcome::Failed(_)) = (state.runs.get(&(id, attempt)), &outcome)
                        && state.is_over(run.worker, Over::Finished(outcome.clone())).is_none()
                    {
                        return;
                    }
                    state.runs.remove(&(id, attempt));
                }
            }
            let is_inline = matches!(outcome, Outcome::Inline(_));
            let within = if took == Nanos::from(u32::MAX) { Nanos::MAX } else { took }; // that is all that a letter can say
            state.node.finished_within(self.now(), (id, attempt), within, outcome, out);
            if is_inline && state.node.stores(id) {
                let _ = self.keep(state, id, &value, maker); // a small one always finds room
            }
        }
        if stored.is_some() && !state.node.stores(id) {
            state.shelf.remove(id);
        }
    }

    /// Tasks have come that are to wait and go on as one.
    fn pack_arrived(
        self: &Arc<Self>,
        state: &mut State,
        from: ProcessId,
        (first, is_granted): (ObjectId, bool),
        payload: Vec<Bytes>,
        out: &mut Effects,
    ) {
        let body = payload.into_iter().next().unwrap_or_default();
        let (demand, strategy) = (self.plain.clone(), Strategy::Default);
        let count = Pack::count(&body) as u32;
        let spec = TaskSpec {
            id: first,
            attempt: 1,
            hop: 0,
            count,
            demand,
            strategy,
            args: Vec::new(),
            stays: false,
            body: Blob(body),
        };
        let specs = if (2..=pack::MOST).contains(&count) { vec![spec] } else { spec.unpack() };
        for spec in specs {
            let message = if is_granted { Message::Granted(spec) } else { Message::Submit(spec) };
            state.node.handle(self.now(), from, message, out);
        }
    }

    /// A worker tells the results of tasks that came in packs. They go to the owner as they are, but for what stays here.
    fn results(
        self: &Arc<Self>,
        state: &mut State,
        from: ProcessId,
        owner: ProcessId,
        payload: Vec<Bytes>,
        out: &mut Effects,
    ) {
        let all = payload.into_iter().next().unwrap_or_default();
        let (mut rest, mut telling) = (all.clone(), Telling::new(all));
        let mut ended = Vec::new();
        let mut of = None;
        let is_cut = loop {
            let is_more = !rest.is_empty();
            let next = Told::next(&mut rest).and_then(|(number, took, told)| {
                let (value, is_apart) = match told {
                    Told::Value(value) => (value, false),
                    Told::Apart(place) => (state.workers.get(&from)?.arena.as_ref()?.take(place)?, true),
                    Told::Copied(_) | Told::Stored(_) => return None, // no worker says that
                };
                Some((ObjectId { owner, number }, took, value, is_apart))
            });
            let pack = next.as_ref().and_then(|(task, ..)| state.node.pack(*task));
            if let Some(done) = of.filter(|of| Some(*of) != pack) {
                self.packed_ended(state, done, &ended);
                let together = ended.drain(..).fold((0, 0), |(bits, all), (task, took)| {
                    (bits | 1 << (task.number - done.0.number), all + u64::from(took))
                });
                state.node.ended_in_pack(self.now(), done, together, out);
                state.forget_pack(done);
            }
            of = pack;
            let Some((task, took, value, is_apart)) = next else { break is_more };
            let maker = self.heard(state, from, value.len());
            let keeps = match pack {
                Some(pack) => {
                    ended.push((task, took));
                    state.node.made_in_pack((pack, task), value.len() as u64, out)
                }
                // A call; or its owner is dead.
                None => {
                    self.call_ended(state, from, task);
                    Keeps::Nothing
                }
            };
            if keeps != Keeps::Nothing {
                let _ = self.keep(state, task, &value, maker); // a small one always finds room
            }
            let told = match keeps {
                Keeps::Nothing if !is_apart => None,
                Keeps::Nothing => Some(Told::Value(value)),
                Keeps::Copy => Some(Told::Copied(value)),
                Keeps::All => Some(Told::Stored(value.len() as u32)),
            };
            telling.next(told.map(|told| (task.number, took, told)), rest.len());
        };
        if let Some(worker) = state.workers.get(&from) {
            if is_cut {
                tracing::error!("node {}: worker {from} is ended: its results cannot be read", self.name);
                kill(worker);
            }
            worker.end_if_over();
        }
        for results in telling.end() {
            self.send(state, Envelope { from, to: owner, letter: Letter::Results { owner }, payload: vec![results] });
        }
    }

    /// Calls have come, which go to their actor's worker as they are.
    fn calls_arrived(
        &self,
        state: &mut State,
        from: ProcessId,
        first: ObjectId,
        (actor, caller): (ObjectId, u32),
        payload: Vec<Bytes>,
        out: &mut Effects,
    ) {
        let Some(pack) = payload.first().and_then(Pack::read) else { return };
        let numbers: Box<[u64]> = pack.members.iter().map(|member| member.number).collect();
        let Some(worker) = state.actors.get(&actor).map(|place| place.worker) else {
            let calls = (first.number..).take(numbers.len()).map(|number| ObjectId { number, ..first });
            return calls.for_each(|call| state.is_not_here(actor, call, out));
        };
        if let Some(worker) = state.workers.get_mut(&worker) {
            let calls = CallPack::new(actor, Titled::of_pack(&pack.common), numbers, self.now());
            worker.calls.begin_pack(first, calls);
        }
        let letter = Letter::Pack { first, kind: PackKind::Calls { actor, caller } };
        self.send(state, Envelope { from, to: worker, letter, payload });
    }

    /// Makes room for an object that a process here has made. If all that is there is in use for the moment it waits.
    fn reserve(
        self: &Arc<Self>,
        state: &mut State,
        by: ProcessId,
        (object, attempt): (ObjectId, u32),
        size: u64,
        until: Instant,
    ) {
        let is_gone = match by.is_worker() {
            true => by.station() == self.me && !state.workers.contains_key(&by),
            false => state.node.has_buried(by),
        };
        if is_gone {
            return;
        }
        let path = state.shelf.reserve(object, size);
        if matches!(path, Err(StoreError::Full { .. })) && Instant::now() < until {
            return self.soon(move |node, state, _| node.reserve(state, by, (object, attempt), size, until));
        }
        if path.is_ok() {
            state.reserved.insert(object, by);
        }
        let reserved = Letter::Reserved { object, attempt, path: path.map_err(|error| error.to_string()) };
        self.send(state, self.envelope(by, reserved, Vec::new()));
    }

    /// Another node has a large object that is wanted here.
    fn pull(self: &Arc<Self>, state: &mut State, from: ProcessId, pushed: Message, address: String, out: &mut Effects) {
        let Message::Pushed { object, .. } = pushed else { return };
        let is_well = state.node.stores(object);
        if is_well || !state.node.fetches(object) {
            return out.send(from, Message::Pulled { object, is_well });
        }
        let number = state.next_pull;
        state.next_pull += 1;
        state.pulls.entry(object).or_insert(Pulling { number, failing: None, part: None }).number = number;
        self.begin_pull(state, (from, number), pushed, address, out);
    }

    /// Fetches it, and takes it as pushed when it is here. If all that is in memory is in use for the moment it waits.
    fn begin_pull(
        self: &Arc<Self>,
        state: &mut State,
        (from, number): Try,
        pushed: Message,
        address: String,
        out: &mut Effects,
    ) {
        let Message::Pushed { object, size, attempt } = pushed else { return };
        let Some(pulling) = state.pulls.get_mut(&object).filter(|pulling| pulling.number == number) else {
            return out.send(from, Message::Pulled { object, is_well: state.node.stores(object) });
        };
        let part = pulling.part.take().filter(|(of, _)| *of == attempt).map(|(_, room)| Ok(room));
        let room = match part.unwrap_or_else(|| state.shelf.room(object, size)) {
            Ok(room) => room,
            Err(StoreError::Full { .. })
                if pulling.failing.get_or_insert_with(Instant::now).elapsed() < ROOM_WITHIN =>
            {
                return self.soon(move |node, state, out| {
                    node.begin_pull(state, (from, number), pushed, address, out);
                });
            }
            // That is no fault of the one that has it, and others may have room: those here that want it go without.
            Err(error) => {
                out.send(from, Message::Pulled { object, is_well: false });
                let why = self.cannot("keep", object, &error);
                return state.node.handle(self.now(), self.me, Message::Lost { object, why }, out);
            }
        };
        let (missing, since) = (size.saturating_sub(room.from()), self.now());
        let pull = self.bulk.pull(&address, object, room.from(), room);
        let node = self.clone();
        std::thread::spawn(move || {
            let pulled = pull.wait_for_any();
            node.with(|state, out| {
                if pulled.is_ok() {
                    state.node.fetched(missing, node.now() - since);
                }
                node.end_pull(state, (from, number), pushed, pulled, out);
            });
        });
    }

    /// An object has come, or has not.
    fn end_pull(
        self: &Arc<Self>,
        state: &mut State,
        (from, number): Try,
        pushed: Message,
        pulled: Result<Room, Stopped<Room>>,
        out: &mut Effects,
    ) {
        let Message::Pushed { object, attempt, .. } = pushed else { return };
        let Some(pulling) = state.pulls.get_mut(&object).filter(|pulling| pulling.number == number) else {
            return out.send(from, Message::Pulled { object, is_well: state.node.stores(object) });
        };
        let (is_gone, error) = match pulled.map(|room| state.shelf.filled(room)) {
            Ok(Ok(())) => {
                state.node.handle(self.now(), from, pushed, out);
                return state.forget_draft(object);
            }
            Ok(Err(error)) => (false, error.to_string()),
            Err(Stopped { why, part }) => {
                pulling.part = part.map(|(mut room, got)| {
                    room.has_got(got);
                    (attempt, room)
                });
                (matches!(why, PullError::Absent | PullError::TooShort { .. }), why.to_string())
            }
        };
        let failing = *pulling.failing.get_or_insert_with(Instant::now);
        tracing::warn!(error, "node {} did not get object {object:?} from {from}", self.name);
        out.send(from, Message::Pulled { object, is_well: false });
        if is_gone {
            return state.node.handle(self.now(), from, Message::Gone { object }, out);
        }
        if failing.elapsed() > PULL_WITHIN {
            let why = self.cannot("get", object, &error);
            return state.node.handle(self.now(), self.me, Message::Lost { object, why }, out);
        }
        // It may be dead, or in trouble for the moment.
        self.soon(move |_, state, out| {
            if state.pulls.get(&object).is_some_and(|pulling| pulling.number == number) {
                state.node.did_not_come(object, from, out);
            }
        });
    }

    /// A worker has made something of so many bytes, which it keeps for a while unless there are handles inside.
    fn heard(&self, state: &mut State, worker: ProcessId, bytes: usize) -> Option<Maker> {
        let heard = &mut state.workers.get_mut(&worker)?.heard;
        heard.hear(bytes);
        Some(Maker { worker, heard: *heard, at: self.now() })
    }

    /// Whether this worker has made an object, and so lately that it is likely to have it.
    fn has_made(&self, state: &State, worker: ProcessId, object: ObjectId) -> bool {
        let Some(maker) = state.shelf.maker(object).filter(|maker| maker.worker == worker) else { return false };
        let ago = Duration::from_nanos(self.now() - maker.at);
        state.workers.get(&worker).is_some_and(|worker| worker.heard.has(maker.heard, ago))
    }

    fn keep(&self, state: &mut State, object: ObjectId, value: &Bytes, maker: Option<Maker>) -> Result<(), StoreError> {
        let kept = state.shelf.insert(object, value, maker);
        if let Err(error) = &kept {
            tracing::error!(%error, "node {} cannot keep object {object:?}", self.name);
        }
        kept
    }

    /// An actor has ended here: for good, or to start again in another worker.
    fn actor_ended(
        &self,
        state: &mut State,
        worker: ProcessId,
        (actor, attempt): (ObjectId, u32),
        error: Arc<Error>,
        restarts: bool,
        out: &mut Effects,
    ) {
        let was_made = state.actors.remove(&actor).is_some_and(|place| place.is_made);
        let over = match (restarts, was_made) {
            (true, _) => Over::Crashed(error.to_string().into()),
            (false, true) => Over::Ended,
            (false, false) => Over::Finished(Outcome::Failed(error.clone())),
        };
        if !restarts {
            state.dead_actors.insert(actor, error.clone());
            // Its name is free from here on.
            let dead = Letter::ActorIs { actor, place: None, dead: Some(error) };
            match actor.owner {
                HEAD => self.tell_head(state, dead),
                owner => self.send(state, self.envelope(owner, dead, Vec::new())),
            }
        }
        if let Some(over) = state.is_over(worker, over) {
            self.tell_over(state, (actor, attempt), over, out);
        }
    }

    /// Hands a task to its worker.
    fn start(self: &Arc<Self>, state: &mut State, spec: TaskSpec, out: &mut Effects) {
        let Some(driver) = Order::driver(&spec.body) else {
            let error = Arc::new(Error::Unsupported { reason: "a task that arrived cannot be read".into() });
            return state.node.finished(self.now(), spec.id, spec.attempt, Outcome::Failed(error), out);
        };
        let is_new = !state.jobs.contains_key(&driver);
        let job = state.jobs.entry(driver).or_default();
        let kind = Kind::of(&spec);
        if let Some(error) = job.refused(kind) {
            return state.node.finished(self.now(), spec.id, spec.attempt, Outcome::Failed(error), out);
        }
        if job.is_closing {
            return state.node.finished(self.now(), spec.id, spec.attempt, Outcome::Withdrawn, out);
        }
        if let Some(worker) = job.worker(kind) {
            return self.hand_over(state, worker, spec);
        }
        if spec.count > 1 {
            // Each waits for the worker by itself, and can be stopped.
            return state.node.start_apart(self.now(), (spec.id, spec.attempt), out);
        }
        if job.wait(kind, spec)
            && let Some(known) = job.job.clone()
        {
            self.prepare(known, kind);
        }
        if is_new {
            self.station.post(&self.envelope(HEAD, Letter::WhichJob { driver }, Vec::new()));
        }
    }

    fn hand_over(&self, state: &mut State, worker: ProcessId, spec: TaskSpec) {
        if spec.count > 1 {
            let pack = Pack::read(&spec.body).map(|pack| {
                let numbers = pack.members.iter().map(|member| member.number).collect();
                (numbers, Titled::of_pack(&pack.common))
            });
            state.runs.insert((spec.id, spec.attempt), Run { worker, _files: Vec::new(), pack });
            let letter = Letter::Pack { first: spec.id, kind: PackKind::Tasks { is_granted: true } };
            let run = self.envelope(worker, letter, vec![spec.body.0]);
            return self.send(state, run);
        }
        let (mut arguments, mut files, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for arg in &spec.args {
            let kept = match arg {
                Arg::Inline(value) => Some(Kept::Here(Bytes::from_owner(value.clone()))),
                Arg::Object { id, .. } if self.has_made(state, worker, *id) => None,
                Arg::Object { id, .. } => state.shelf.get(*id).unwrap_or_default(),
            };
            match kept {
                Some(Kept::Here(value)) => {
                    arguments.push(value);
                    files.push(None);
                }
                Some(Kept::File(file)) => {
                    files.push(Some((file.path().to_owned(), file.size())));
                    held.push(file);
                }
                // The worker has it, or asks for it, and is told what has become of it.
                None => files.push(Some((PathBuf::new(), 0))),
            }
        }
        state.runs.insert((spec.id, spec.attempt), Run { worker, _files: held, pack: None });
        if spec.stays {
            state.actors.insert(spec.id, ActorPlace { worker, attempt: spec.attempt, is_made: false });
        }
        let devices = state.node.leases(spec.id, spec.attempt);
        let run = Letter::Run { task: spec.id, attempt: spec.attempt, body: spec.body, devices, files };
        let run = self.envelope(worker, run, arguments);
        self.send(state, run);
    }

    fn job_is(self: &Arc<Self>, state: &mut State, driver: ProcessId, job: Option<Job>, out: &mut Effects) {
        let Some(entry) = state.jobs.get_mut(&driver) else { return };
        match job {
            None => drop(state.jobs.remove(&driver)), // it has ended; its tasks are cancelled by that
            Some(job) => {
                if let Err(error) = job.image.check_runs_here() {
                    return self.refuse(state, (driver, None), error.into(), out);
                }
                entry.program = Some(job.name.as_str().into());
                entry.job = Some(job.clone());
                entry.awaited().into_iter().for_each(|kind| self.prepare(job.clone(), kind));
            }
        }
    }

    /// Starts a worker for a job, from the executable if it is here; otherwise asks the driver for it.
    fn prepare(self: &Arc<Self>, job: Job, kind: Kind) {
        let node = self.clone();
        std::thread::spawn(move || {
            let (driver, source) = (job.driver, job.source);
            let found = match Image::current() {
                Ok(ours) if *ours == job.image => Ok(Some(PathBuf::from("/proc/self/exe"))),
                _ => node.cache.find(&job.image),
            };
            match found {
                Ok(Some(path)) => node.spawn(job, path, kind),
                Ok(None) => {
                    let is_first = node.with(|state, _| {
                        let Some(entry) = state.jobs.get_mut(&driver) else { return false };
                        entry.fetching.push(kind);
                        entry.fetching.len() == 1
                    });
                    if is_first {
                        let want = Letter::WantImage { driver, offset: 0 };
                        node.station.post(&node.envelope(source, want, Vec::new()));
                    }
                }
                Err(error) => node.with(|state, out| node.refuse(state, (driver, None), error.into(), out)),
            }
        });
    }

    fn image_part(
        self: &Arc<Self>,
        state: &mut State,
        driver: ProcessId,
        offset: u64,
        payload: Vec<Bytes>,
        out: &mut Effects,
    ) {
        let Some(entry) = state.jobs.get_mut(&driver) else { return };
        let (Some(job), Some(part)) = (entry.job.clone(), payload.into_iter().next()) else { return };
        if offset != entry.image.len() as u64 || part.is_empty() {
            let reason = format!("the program {driver} could not send its executable; is the file still there?");
            return self.refuse(state, (driver, None), Error::Unsupported { reason }, out);
        }
        entry.image.extend_from_slice(&part);
        let offset = entry.image.len() as u64;
        if offset < job.image.size {
            let want = Letter::WantImage { driver, offset };
            return self.station.post(&self.envelope(job.source, want, Vec::new()));
        }
        let content = std::mem::take(&mut entry.image).freeze();
        let kinds = std::mem::take(&mut entry.fetching);
        let node = self.clone();
        std::thread::spawn(move || match node.cache.store(&job.image, &content[..]) {
            Ok(path) => kinds.into_iter().for_each(|kind| node.spawn(job.clone(), path.clone(), kind)),
            Err(error) => node.with(|state, out| node.refuse(state, (job.driver, None), error.into(), out)),
        });
    }

    /// No worker for this job, or none of a kind: its tasks fail.
    fn refuse(&self, state: &mut State, (driver, kind): (ProcessId, Option<Kind>), error: Error, out: &mut Effects) {
        let Some(job) = state.jobs.get_mut(&driver) else { return };
        let reason = match error {
            Error::Unsupported { reason } => reason,
            other => other.to_string(),
        };
        let error = Arc::new(Error::Unsupported { reason: format!("node {}: {reason}", self.name) });
        for spec in job.refuse(kind, &error) {
            state.node.finished(self.now(), spec.id, spec.attempt, Outcome::Failed(error.clone()), out);
        }
    }

    fn spawn(self: &Arc<Self>, job: Job, path: PathBuf, kind: Kind) {
        let seat = (job.driver, Some(kind));
        let allowed = self.with(|state, out| {
            if !state.jobs.get(&job.driver).is_some_and(|job| job.is_wanted(kind)) {
                return None;
            }
            let Some(number) = state.next_worker else {
                let reason = format!("it has started {} workers, as many as it can; start it again", u16::MAX);
                self.refuse(state, seat, Error::Unsupported { reason }, out);
                return None;
            };
            state.next_worker = number.checked_add(1);
            Some((self.me.worker(number), kind.devices(&state.node)))
        });
        let Some((id, devices)) = allowed else { return };
        let start = || {
            let (near, far) = UnixStream::pair()?;
            let _ = set_socket_send_buffer_size(&near, pipe::ROOM); // as much as the system allows
            let letters = pipe::Sender::ready(near)?;
            let child = Command::new(&path)
                .env(entry::VARIABLE, entry::OF_A_NODE)
                .env(VISIBLE, devices.join(","))
                .stdin(OwnedFd::from(far))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            Ok((child, letters))
        };
        // A process that is being forked may still have the new file open for writing.
        let busy = |result: &io::Result<(Child, pipe::Sender)>| {
            result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy)
        };
        let mut child = start();
        for _ in 0..50 {
            if !busy(&child) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            child = start();
        }
        let (mut child, letters) = match child {
            Ok(started) => started,
            Err(error) => {
                let reason = format!("could not start the worker {}: {error}", path.display());
                return self.with(|state, out| self.refuse(state, seat, Error::Unsupported { reason }, out));
            }
        };
        let (Some(input), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both were asked for")
        };
        #[cfg(target_os = "linux")]
        let _ = rustix::pipe::fcntl_setpipe_size(&input, pipe::ROOM);
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        let arena = arena::Reader::new().ok().map(Arc::new); // without one all goes through the pipe
        let shared = arena.as_ref().map(|arena| arena.path());
        self.with(|state, _| {
            let (node, has_gpus) = (self.name.clone(), !devices.is_empty());
            let you = Letter::Welcome { you: id, node, job: job.clone(), cpus: self.cpus, has_gpus, arena: shared };
            letters.send(&self.envelope(id, you, Vec::new()));
            let worker = Worker {
                driver: job.driver,
                kind,
                over: None,
                is_killed: false,
                is_closed: false,
                letters,
                arena: arena.clone(),
                child: child.clone(),
                pid,
                is_ready: false,
                lent: 0,
                heard: Heard::default(),
                calls: Calls::default(),
                last: None,
                ended: 0,
                since: Instant::now(),
                waiting: Vec::new(),
            };
            state.workers.insert(id, worker);
            state.end_unwanted();
        });
        let node = self.clone();
        let driver = job.driver;
        let printed = std::thread::spawn(move || node.pass_on_lines(driver, id, pid, errors));
        let node = self.clone();
        self.station.clone().spawn(async move {
            let why = node.hear(id, input.into(), arena).await.err().map(|error| error.to_string());
            std::thread::spawn(move || node.bury(id, &child, printed, why));
        });
    }

    /// Handles what a worker says, until it ends.
    async fn hear(
        self: &Arc<Self>,
        worker: ProcessId,
        input: OwnedFd,
        arena: Option<Arc<arena::Reader>>,
    ) -> io::Result<()> {
        let mut input = tokio::net::unix::pipe::Receiver::from_owned_fd(input)?;
        let mut received = pipe::Receiver::with(arena);
        while input.read_buf(received.buffer()).await? > 0 {
            let mut letters = Vec::new();
            let broken = loop {
                match received.next() {
                    Ok(Some(envelope)) => letters.push(Envelope { from: worker, ..envelope }),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            self.receive(letters);
            if let Some(error) = broken {
                return Err(error);
            }
        }
        received.ended()
    }

    /// A worker has ended, or cannot be understood.
    fn bury(self: &Arc<Self>, id: ProcessId, child: &Mutex<Child>, printed: JoinHandle<()>, why: Option<String>) {
        let pid = child.lock().id();
        let status = {
            let mut child = child.lock();
            if why.is_some() {
                let _ = child.kill(); // it may have ended
            }
            child.wait()
        };
        let _ = printed.join();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let why = format!("worker {pid} on node {} ended: {}", self.name, why.unwrap_or(status));
        self.with(|state, out| self.worker_ended(state, id, &why, out));
    }

    /// What a worker prints is kept, and goes to the driver, with who it was.
    fn pass_on_lines(&self, driver: ProcessId, worker: ProcessId, pid: u32, errors: impl io::Read) {
        let mut errors = BufReader::new(errors);
        while let Ok(Some(line)) = read_line(&mut errors) {
            let who = self.keep_line(driver, worker, pid, line.as_str().into());
            let letter = Letter::Printed { worker: who, lines: vec![line] };
            self.station.post(&self.envelope(driver, letter, Vec::new()));
        }
    }

    fn ready(self: &Arc<Self>, state: &mut State, from: ProcessId, refused: Option<String>, out: &mut Effects) {
        let Some(worker) = state.workers.get_mut(&from) else { return };
        let (driver, kind) = (worker.driver, worker.kind);
        if let Some(reason) = refused {
            return self.refuse(state, (driver, Some(kind)), Error::Unsupported { reason }, out);
        }
        worker.is_ready = true;
        for envelope in std::mem::take(&mut worker.waiting) {
            worker.letters.send(&envelope);
        }
        let waiting = state.jobs.get_mut(&driver).and_then(|job| job.is_there(kind, from));
        for spec in waiting.into_iter().flatten() {
            self.hand_over(state, from, spec);
        }
    }

    fn worker_ended(self: &Arc<Self>, state: &mut State, id: ProcessId, why: &str, out: &mut Effects) {
        let Some(worker) = state.workers.remove(&id) else { return };
        self.leave_out(state, id);
        state.node.reclaim(worker.lent);
        let job = state.jobs.get_mut(&worker.driver);
        let was_awaited = job.is_some_and(|job| job.is_gone(worker.kind, id));
        self.job_has_closed(state, worker.driver);
        if !worker.is_ready {
            if was_awaited {
                let reason = format!("{why}, before it could run anything; does the program run by itself?");
                self.refuse(state, (worker.driver, Some(worker.kind)), Error::Unsupported { reason }, out);
            }
            return;
        }
        if let (Kind::Own(actor, attempt), Some(over)) = (worker.kind, worker.over) {
            self.tell_over(state, (actor, attempt), over, out);
        }
        let lost: Vec<_> = state.runs.iter().filter(|(_, run)| run.worker == id).map(|(key, _)| *key).collect();
        for (task, attempt) in lost {
            state.runs.remove(&(task, attempt));
            match state.actors.remove(&task) {
                Some(_) => state.node.crashed(self.now(), task, attempt, why.into(), out),
                None => state.node.finished(self.now(), task, attempt, Outcome::Crashed { why: why.into() }, out),
            }
        }
        for (call, about) in worker.calls.iter() {
            let error = state.dead_actors.get(&about.actor).cloned().unwrap_or_else(|| died(call, why));
            out.send(call.owner, Message::Finished { task: call, attempt: 0, outcome: Outcome::Failed(error) });
        }
        self.tell_head(state, Letter::Died { process: id });
    }

    /// Those who look for cycles ask what these wait for: their workers know.
    fn waits_asked(&self, state: &mut State, from: ProcessId, look: u64, asked: ProcessId, objects: Vec<ObjectId>) {
        let mut of_workers: BTreeMap<Option<ProcessId>, Vec<ObjectId>> = BTreeMap::new();
        for object in objects {
            let packed = || state.run_of(object, 1).map(|run| run.worker);
            let mut runs = state.runs.range((object, 0)..=(object, u32::MAX)).map(|(_, run)| run.worker);
            let calls = || state.workers.iter().find(|(_, worker)| worker.calls.contains(object)).map(|(id, _)| *id);
            of_workers.entry(runs.next_back().or_else(packed).or_else(calls)).or_default().push(object);
        }
        for (worker, objects) in of_workers {
            let envelope = match worker {
                Some(to) => {
                    Envelope { from, to, letter: Letter::WaitsOf { look, asked, objects }, payload: Vec::new() }
                }
                // They have not started, so nobody is in their way whom a look would find.
                None => {
                    let letter = Letter::Waits { look, asked, objects, entries: Vec::new() };
                    self.envelope(from, letter, Vec::new())
                }
            };
            self.send(state, envelope);
        }
    }

    /// Tells the head, or the next one.
    fn tell_head(&self, state: &mut State, letter: Letter) {
        match state.headless {
            None => self.station.post(&self.envelope(HEAD, letter, Vec::new())),
            Some(_) => state.untold.push(letter),
        }
    }

    /// A station is gone: if it was the head, what is here goes on, until there is another or patience is over.
    fn lost(self: &Arc<Self>, station: ProcessId, reason: &str) {
        let state = &mut *self.state.lock();
        if station == HEAD {
            state.headless = Some((Instant::now(), reason.to_owned()));
            return state.node.head_is_gone();
        }
        self.tell_head(state, Letter::Unreachable { station });
    }

    fn miss_the_head(&self) {
        let state = &mut *self.state.lock();
        let Some((since, reason)) = &state.headless else { return };
        let patience = head_patience();
        if since.elapsed() >= patience {
            let why = format!("the head is gone: {reason}; it did not come back within {patience:?}");
            self.fail(state, why);
        }
    }

    /// The head has answered: for the first time, or after it was gone, and knows nothing of what is here.
    fn head_is_there(&self, state: &mut State, cluster: u64, out: &mut Effects) {
        if *state.cluster.get_or_insert(cluster) != cluster {
            let why = "the head is gone, and another one has taken its place that knows nothing of this cluster";
            return self.fail(state, why.into());
        }
        if state.headless.take().is_none() {
            return;
        }
        state.node.join_again(self.now(), out);
        // It hears these after that.
        let is_unknown = |entry: &(&ProcessId, &JobState)| entry.1.job.is_none() && !entry.1.is_closing;
        let jobs: Vec<_> = state.jobs.iter().filter(is_unknown).map(|(driver, _)| *driver).collect();
        let questions = jobs.into_iter().map(|driver| Letter::WhichJob { driver });
        for letter in std::mem::take(&mut state.untold).into_iter().chain(questions) {
            self.station.post(&self.envelope(HEAD, letter, Vec::new()));
        }
        for worker in state.workers.keys().copied().collect::<Vec<_>>() {
            self.send(state, self.envelope(worker, Letter::HeadIsBack, Vec::new()));
        }
    }
}

pub(super) fn died(id: ObjectId, cause: &str) -> Arc<Error> {
    let origin = Origin {
        kind: "actor".into(),
        name: format!("{id:?}"),
        id: id.number,
        attempt: 1,
        location: "an unknown place".into(),
        node: id.owner.to_string(),
    };
    Arc::new(Error::ActorDied { origin: Box::new(origin), cause: cause.into() })
}
