//! A process's part in the cluster: what it has submitted, made known, and got from others.
//!
//! Drivers and workers have one each, beside the local runtime. What they submit to the cluster is represented
//! in the local runtime by a [`RemoteCell`]; what is here and is passed on becomes an object of this process's
//! [`Owner`], with the local node behind it.
//!
//! # Handles and claims
//! A handle that leaves its process is a number. Who gets it becomes a *borrower*, and *claims* the object at its
//! owner before whoever passed it on lets go:
//!
//! - a submitter keeps the handles among the arguments until the task has ended;
//! - a worker that still holds one of them at the end of the task claims it before it says that the task has ended;
//! - a worker keeps the handles in a result until the submitter has claimed them (`Took`), and the submitter holds
//!   them as long as it has the result's value;
//! - who reads a value with handles inside holds on to the value until it has claimed them.
//!
//! # Locks
//! One lock for the owner and all tables. Under it nothing of the user's runs or is dropped: what goes is put
//! into [`Out`], and dropped after.

use super::{
    actors::{KILLED, RemoteActor, View},
    capacity::Demand,
    cycles::Looks,
    driver::DriverDesk,
    function::{Descriptor, FunctionError, resolve_here},
    look,
    own_queue::OwnQueue,
    owner::{Owner, Value, Work, WorkArg, WorkBody},
    pack::{self, Carrier, Common, Member, Pack, PackKind, Packing, Told},
    protocol::{Effects, HEAD, INLINE, Message, Nanos, ObjectId, Outcome, ProcessId, Strategy, lost},
    read_ahead::ReadAhead,
    reading,
    remote::{Received, Remote, RemoteCell},
    rows::Rows,
    running::{Made, PackRun, Running},
    store::{self, Draft},
    streams::{Feed, RemoteStream, Sink, StreamEntry},
    travel::{Arrival, Arrived, Incoming, Reply, guarded},
    turns::{self, Turns},
    wire::{
        self, Beginning, Detach, End, Envelope, Extras, Handle, Job, Letter, Order, Outgoing, Parcel, Question, Site,
    },
};
use crate::{
    actor::HostedActor,
    args::{self, Deferred, Visitor},
    error::{Error, Origin, Result},
    function::StreamFn,
    gpu::GpuLease,
    local::{
        Core,
        node::{Blocker, Node, Options, Phase, contain},
        observe,
        slot::Waiter,
        stream::Items,
        task::Travel,
        thread, timer,
        wait::elsewhere,
    },
    object::{Object, ObjectRef},
    resources::LOCAL_NODE,
    serial::{self, Given, Imports, Packed},
    task::Split,
};
use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use std::{
    any::Any,
    cell::{Cell, RefCell},
    panic::Location,
    path::{Path, PathBuf},
    sync::{
        Arc, LazyLock, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// How often a task is started, when processes die.
const ATTEMPTS: u32 = 4;
/// How long the head may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The same when it fetches an executable first.
const UPLOAD: Duration = Duration::from_secs(120);

pub(crate) struct Client {
    pub(crate) me: ProcessId,
    pub(crate) core: &'static Core,
    pub(crate) job: Job,
    /// Of a worker: the node that it is on.
    node: OnceLock<Arc<str>>,
    carrier: Box<dyn Carrier>,
    started: Instant,
    state: Mutex<State>,
    /// What runs here on behalf of others.
    running: Mutex<Running>,
    /// What is under way, to say what it is called.
    under_way: Arc<Mutex<Rows<Arc<dyn Remote>>>>,
    /// How many tasks of the node's are here, that wait or run; and how many others may wait.
    given: AtomicUsize,
    own_queue: OwnQueue,
    /// Actors that live here.
    hosted: Mutex<FxHashMap<ObjectId, Arc<dyn HostedActor>>>,
    /// Streams that are produced here, and those that are consumed here.
    feeders: Mutex<FxHashMap<ObjectId, Arc<dyn Feed>>>,
    sinks: Mutex<FxHashMap<ObjectId, Arc<dyn Sink>>>,
    /// Values that wait for the files that they are to be written to.
    drafts: Mutex<FxHashMap<(ObjectId, u32), WriteTo>>,
    /// How tasks end here that are given back to the node.
    given_back: Arc<Error>,
    /// Nodes whose files this process can open.
    neighbours: Mutex<FxHashSet<ProcessId>>,
    /// What those died of that lived here.
    dead: Mutex<FxHashMap<ObjectId, Arc<Error>>>,
    /// What is kept until the runtime ends.
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
    /// Questions that wait for an answer.
    asked: Mutex<(u64, FxHashMap<u64, Asked>)>,
    /// Nobody will answer any more.
    is_lost: AtomicBool,
    /// Of a worker: what others submit here has a lease on GPUs.
    has_gpus: AtomicBool,
    /// Of a worker: its node has less than the CPU that a plain task takes.
    has_no_cpu: AtomicBool,
    /// There is no head now, but there may be one again.
    is_headless: AtomicBool,
    /// Nodes where nothing of this program runs any more.
    closed: Mutex<FxHashSet<ProcessId>>,
    /// Of a worker: its program ends, and others know.
    is_told: AtomicBool,
    /// Values that are fetched before the runtime ends, because there are handles to them here.
    awaited: Mutex<Option<Vec<Weak<dyn Remote>>>>,
    /// Functions whose names the node has been told.
    named: Mutex<FxHashMap<Site, &'static Descriptor>>,
    /// At waits that last, and when the next is due.
    pub(super) looks: Mutex<Looks>,
    pub(super) next_look: Mutex<Option<Instant>>,
    /// Of a driver: who does its I/O.
    turns: OnceLock<Arc<Turns<DriverDesk>>>,
    leave: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

pub(super) struct State {
    pub(super) owner: Owner,
    home: Option<ProcessId>,
    /// Objects that this process has cells of.
    cells: Cells,
    /// Own objects that are local nodes, and the numbers that those have here.
    locals: FxHashMap<u64, (u64, Weak<dyn Node>)>,
    /// The same by the local node's number.
    exported: FxHashMap<u64, ObjectId>,
    /// The handles among the arguments of what is under way.
    held: FxHashMap<u64, Guards>,
    /// The objects inside the values of own objects.
    inside: FxHashMap<u64, Vec<ObjectId>>,
    /// The handles inside results that are on their way to their owner.
    offered: FxHashMap<(ObjectId, u32), Guards>,
    /// The same, announced by the worker that has made it.
    announced: FxHashMap<u64, (ProcessId, u32, Vec<ObjectId>)>,
    wants: FxHashSet<ObjectId>,
    reads: ReadAhead,
    /// Own calls that are under way, each with a handle to its actor.
    pub(super) calls: Rows<RemoteActor>,
    /// Objects of others.
    foreign: FxHashMap<ObjectId, Foreign>,
    /// Those who wait for placement groups.
    pub(super) groups: FxHashMap<ObjectId, mpsc::Sender<Result<()>>>,
    /// Actors that this process has started, or calls.
    pub(super) actors: FxHashMap<ObjectId, View>,
    packed: Option<LastPack>,
}

/// Cells by their objects: those of this process's own objects, and others.
struct Cells {
    me: ProcessId,
    own: Rows<Weak<dyn Remote>>,
    others: FxHashMap<ObjectId, Weak<dyn Remote>>,
}

impl Cells {
    fn of(me: ProcessId) -> Cells {
        Cells { me, own: Rows::default(), others: FxHashMap::default() }
    }

    fn get(&self, object: ObjectId) -> Option<Arc<dyn Remote>> {
        match object.owner == self.me {
            true => self.own.get(object.number)?.upgrade(),
            false => self.others.get(&object)?.upgrade(),
        }
    }

    fn insert(&mut self, object: ObjectId, cell: &Arc<dyn Remote>) {
        let cell = Arc::downgrade(cell);
        match object.owner == self.me {
            true => drop(self.own.insert(object.number, cell)),
            false => drop(self.others.insert(object, cell)),
        }
    }

    fn remove(&mut self, object: ObjectId) {
        match object.owner == self.me {
            true => drop(self.own.remove(object.number)),
            false => drop(self.others.remove(&object)),
        }
    }

    /// Removes one that is gone; there may be a new one.
    fn forget(&mut self, object: ObjectId) {
        let cell = match object.owner == self.me {
            true => self.own.get(object.number),
            false => self.others.get(&object),
        };
        if cell.is_some_and(|cell| cell.strong_count() == 0) {
            self.remove(object);
        }
    }

    /// Those that somebody has a handle to.
    fn all(&self) -> Vec<Arc<dyn Remote>> {
        let own = self.own.iter().map(|(_, cell)| cell);
        own.chain(self.others.values()).filter_map(Weak::upgrade).collect()
    }
}

/// The pack that the last task or call went into.
struct LastPack {
    to: ProcessId,
    kind: PackKind,
    common: Arc<Common>,
    location: &'static Location<'static>,
    /// Of tasks.
    work: Option<Arc<Work>>,
    /// The object that one more would make, and how many there are.
    next: u64,
    count: u32,
}

/// Writes to the file of this path, or is told why there is none.
type WriteTo = Box<dyn FnOnce(std::result::Result<PathBuf, String>) + Send>;

/// A question of the head's, and who waits for the answer.
type Asked = (Option<Question>, mpsc::Sender<String>);

/// What keeps objects that are known by their numbers.
type Guards = Vec<Box<dyn Any + Send + Sync>>;

/// A handle of the owner's to an object that is a local node.
struct Exportation {
    client: Arc<Client>,
    id: ObjectId,
}

impl Drop for Exportation {
    fn drop(&mut self) {
        self.client.release(self.id, true);
    }
}

#[derive(Default)]
struct Foreign {
    /// Cells and values that need it.
    refs: u32,
    claim: Claim,
    /// Told when the claim is confirmed.
    waiting: Vec<Arc<Then>>,
}

#[derive(Default, PartialEq)]
enum Claim {
    #[default]
    None,
    Asked,
    Confirmed,
}

/// Something to do when the last of those who hold this has let go.
struct Then(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Then {
    fn new(then: impl FnOnce() + Send + 'static) -> Arc<Then> {
        Arc::new(Then(Mutex::new(Some(Box::new(then)))))
    }
}

impl Drop for Then {
    fn drop(&mut self) {
        if let Some(then) = self.0.get_mut().take() {
            then();
        }
    }
}

/// What has a number, and is to start later.
pub(super) type Announced = (Arc<dyn Remote>, Order, Beginning);

/// What has arrived for a cell.
type Arriving = Result<Received, Arc<Error>>;
type Arrivals = Vec<(Arc<dyn Remote>, Arriving)>;

/// What is done after the lock is released.
#[derive(Default)]
pub(super) struct Out {
    pub(super) effects: Effects,
    trash: Vec<Box<dyn Any + Send>>,
    arrivals: Arrivals,
    pub(super) letters: Vec<(ProcessId, Letter, Vec<Bytes>)>,
}

impl State {
    /// The local node that an own object is.
    pub(super) fn exported_node(&self, object: ObjectId) -> Option<Arc<dyn Node>> {
        self.locals.get(&object.number)?.1.upgrade()
    }
}

impl Client {
    pub(crate) fn new(
        core: &'static Core,
        me: ProcessId,
        job: Job,
        wish: Option<ProcessId>,
        carrier: Box<dyn Carrier>,
    ) -> Arc<Client> {
        let under_way: Arc<Mutex<Rows<Arc<dyn Remote>>>> = Arc::default();
        let names = under_way.clone();
        let origins = Box::new(move |object: ObjectId| match names.lock().get(object.number) {
            Some(cell) => {
                let node: Arc<dyn Node> = cell.clone();
                node.origin()
            }
            None => Box::new(Origin {
                kind: "object".into(),
                name: format!("{object:?}"),
                id: object.number,
                attempt: 1,
                location: "an unknown place".into(),
                node: me.to_string(),
            }),
        });
        let mut effects = Effects::default();
        let owner = Owner::new(me, wish, origins, &mut effects);
        let client = Arc::new(Client {
            me,
            core,
            job,
            node: OnceLock::new(),
            carrier,
            started: Instant::now(),
            state: Mutex::new(State {
                owner,
                home: None,
                cells: Cells::of(me),
                locals: FxHashMap::default(),
                exported: FxHashMap::default(),
                held: FxHashMap::default(),
                inside: FxHashMap::default(),
                offered: FxHashMap::default(),
                announced: FxHashMap::default(),
                wants: FxHashSet::default(),
                reads: ReadAhead::default(),
                calls: Rows::default(),
                foreign: FxHashMap::default(),
                groups: FxHashMap::default(),
                actors: FxHashMap::default(),
                packed: None,
            }),
            running: Mutex::default(),
            given: AtomicUsize::new(0),
            own_queue: OwnQueue::default(),
            under_way,
            hosted: Mutex::default(),
            feeders: Mutex::default(),
            sinks: Mutex::default(),
            drafts: Mutex::default(),
            given_back: Arc::new(Error::Unsupported { reason: "it was given back to its node".into() }),
            neighbours: Mutex::default(),
            dead: Mutex::default(),
            kept: Mutex::default(),
            asked: Mutex::default(),
            has_gpus: AtomicBool::new(false),
            has_no_cpu: AtomicBool::new(false),
            is_lost: AtomicBool::new(false),
            is_headless: AtomicBool::new(false),
            closed: Mutex::default(),
            is_told: AtomicBool::new(false),
            awaited: Mutex::default(),
            named: Mutex::default(),
            looks: Mutex::default(),
            next_look: Mutex::default(),
            turns: OnceLock::new(),
            leave: Mutex::new(None),
        });
        client.with(|_, out| out.effects = effects);
        client
    }

    pub(crate) fn node_name(&self) -> Arc<str> {
        self.node.get().cloned().unwrap_or_else(|| LOCAL_NODE.into())
    }

    pub(crate) fn node(&self) -> Option<&str> {
        self.node.get().map(|node| &**node)
    }

    /// This is a worker for those who have a lease on a GPU.
    pub(crate) fn set_has_gpus(&self) {
        self.has_gpus.store(true, Ordering::Relaxed);
    }

    /// This is a worker of a node on which no plain task fits.
    pub(crate) fn set_has_no_cpu(&self) {
        self.has_no_cpu.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_node_name(&self, name: &str) {
        let _ = self.node.set(name.into()); // it never changes
    }

    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    pub(super) fn post(&self, to: ProcessId, letter: Letter, payload: Vec<Bytes>) {
        self.carrier.post(Envelope { from: self.me, to, letter, payload });
    }

    /// Works under the lock, and then does what came of it.
    pub(super) fn with<R>(self: &Arc<Self>, work: impl FnOnce(&mut State, &mut Out) -> R) -> R {
        let mut out = Out::default();
        let result = {
            let state = &mut *self.state.lock();
            let result = work(state, &mut out);
            self.settle(state, &mut out);
            // Under the lock, so that letters leave in the order of what they tell.
            for (to, letter, payload) in out.letters.drain(..) {
                self.post(to, letter, payload);
            }
            for (to, message) in out.effects.sends.drain(..) {
                let payload = match &message {
                    Message::Pushed { object, .. } => match state.owner.value(*object) {
                        Some(Value::Inline(value)) => vec![Bytes::from_owner(value)],
                        _ => Vec::new(),
                    },
                    _ => Vec::new(),
                };
                self.post(to, Letter::Control(message), payload);
            }
            result
        };
        let Out { trash, arrivals, .. } = out;
        // Destructors, and what those do at once who wait, may be code of the user's.
        let finish = |trash, arrivals: Arrivals| {
            contain(|| drop(trash));
            arrivals.into_iter().for_each(|(cell, outcome)| contain(|| cell.arrive(outcome)));
        };
        if !turns::is_at_desk() {
            finish(trash, arrivals);
            return result;
        }
        let quietly = |(cell, outcome): (Arc<dyn Remote>, Arriving)| match cell.arrive_quietly(outcome) {
            Ok(()) => None,
            Err(outcome) => Some((cell, outcome)),
        };
        let arrivals: Arrivals = arrivals.into_iter().filter_map(quietly).collect();
        let is_urgent = !arrivals.is_empty();
        if is_urgent || !trash.is_empty() {
            turns::leave(move || finish(trash, arrivals), is_urgent);
        }
        result
    }

    /// Threads of the program may do this driver's I/O.
    pub(super) fn takes_turns(&self, turns: Arc<Turns<DriverDesk>>) {
        let _ = self.turns.set(turns); // this is the only place
    }

    /// Where this thread may do the I/O while it waits. The I/O has a runtime of Tokio's, which does not run inside another.
    pub(crate) fn turns(&self) -> Option<&Arc<Turns<DriverDesk>>> {
        self.turns.get().filter(|_| tokio::runtime::Handle::try_current().is_err())
    }

    /// What the owner's effects mean for the tables.
    fn settle(self: &Arc<Self>, state: &mut State, out: &mut Out) {
        while !out.effects.done.is_empty()
            || !out.effects.freed.is_empty()
            || !out.effects.ended.is_empty()
            || !out.effects.groups.is_empty()
        {
            for group in std::mem::take(&mut out.effects.groups) {
                self.group_changed(state, group);
            }
            for (actor, _) in std::mem::take(&mut out.effects.ended) {
                self.actor_ended(state, actor, out);
            }
            for (object, _) in std::mem::take(&mut out.effects.done) {
                self.is_done(state, object, out);
            }
            for object in std::mem::take(&mut out.effects.freed) {
                self.actor_freed(state, object, out);
                for inner in state.inside.remove(&object.number).unwrap_or_default() {
                    self.let_go(state, inner, out);
                }
                if let Some((number, _)) = state.locals.remove(&object.number) {
                    state.exported.remove(&number);
                }
            }
        }
    }

    /// A task has ended, or a value is there.
    fn is_done(self: &Arc<Self>, state: &mut State, object: ObjectId, out: &mut Out) {
        if let Some(held) = state.held.remove(&object.number) {
            out.trash.push(Box::new(held));
        }
        let value = state.owner.value(object);
        if let Some(actor) = state.calls.remove(object.number) {
            if let Some(Value::Failed(why)) = &value
                && let Error::ActorDied { .. } | Error::Lost { .. } = &**why
            {
                self.was_not_there(state, actor.object());
            }
            out.trash.extend(actor.last());
        }
        let cell = self.under_way.lock().remove(object.number);
        // Actors are counted where they are; a part counts with the whole.
        // A placement group that only the task held is given back.
        let options = cell.as_ref().filter(|cell| cell.kind() != "actor").and_then(|cell| cell.meta().options.as_ref());
        if let Some(bundle) = options.and_then(|options| options.bundle.lock().take()) {
            out.trash.push(Box::new(bundle));
        }
        if cell.as_ref().is_some_and(|cell| !matches!(cell.kind(), "actor" | "object")) {
            self.core.count_ended(!matches!(value, Some(Value::Failed(_))));
        }
        self.take_over(state, object, out);
        self.look_after(state, object, out);
        let Some(cell) = cell.or_else(|| state.cells.get(object)) else { return };
        match value {
            Some(Value::Inline(value)) => out.arrivals.push((cell, Ok(Received::Kept(value)))),
            Some(Value::Failed(error)) => {
                let error = match &*error {
                    Error::Lost { origin, reason } if cell.kind() == "call" => {
                        Arc::new(Error::ActorDied { origin: origin.clone(), cause: reason.clone() })
                    }
                    _ => error,
                };
                out.arrivals.push((cell, Err(error)));
            }
            Some(Value::Stored { .. }) => {
                if cell.is_wanted() {
                    self.fetch(state, object, out);
                }
                out.trash.push(Box::new(cell));
            }
            None => out.trash.push(Box::new(cell)),
        }
    }

    /// Claims what is inside a result, so that the worker that made it may let go.
    fn take_over(self: &Arc<Self>, state: &mut State, object: ObjectId, out: &mut Out) {
        let attempt = state.announced.get(&object.number).map_or(0, |announced| announced.1);
        self.take_over_as(state, object, (object, attempt), out);
    }

    /// The same for what the worker knows under another name.
    fn take_over_as(self: &Arc<Self>, state: &mut State, object: ObjectId, offered: (ObjectId, u32), out: &mut Out) {
        let Some((worker, _, inside)) = state.announced.remove(&object.number) else { return };
        let client = self.clone();
        let (task, attempt) = offered;
        let took = Then::new(move || client.post(worker, Letter::Took { task, attempt }, Vec::new()));
        for inner in &inside {
            self.hold(state, *inner);
            self.claim(state, *inner, &took, out);
        }
        // Those of a result that was made twice are kept, too: either may be the one that is read.
        state.inside.entry(object.number).or_default().extend(inside);
        out.trash.push(Box::new(took));
    }

    /// One more that needs an object.
    fn hold(&self, state: &mut State, object: ObjectId) {
        match object.owner == self.me {
            true => state.owner.retain(object),
            false => state.foreign.entry(object).or_default().refs += 1,
        }
    }

    /// One less.
    fn let_go(&self, state: &mut State, object: ObjectId, out: &mut Out) {
        if object.owner == self.me {
            return state.owner.release(object, &mut out.effects);
        }
        let Some(foreign) = state.foreign.get_mut(&object) else { return };
        foreign.refs -= 1;
        if foreign.refs > 0 {
            return;
        }
        out.trash.push(Box::new(std::mem::take(&mut foreign.waiting)));
        // A claim is taken back when it has been confirmed: the answer must not be taken for that to the next one.
        if foreign.claim == Claim::Asked {
            return;
        }
        if foreign.claim == Claim::Confirmed {
            out.effects.send(object.owner, Message::Unclaim { object });
        }
        state.foreign.remove(&object);
    }

    /// Claims an object of another process, unless that has been done; `then` is held until it is confirmed.
    fn claim(&self, state: &mut State, object: ObjectId, then: &Arc<Then>, out: &mut Out) {
        let Some(foreign) = state.foreign.get_mut(&object) else { return };
        match foreign.claim {
            Claim::Confirmed => return,
            Claim::Asked => {}
            Claim::None => {
                foreign.claim = Claim::Asked;
                out.effects.send(object.owner, Message::Claim { object });
            }
        }
        foreign.waiting.push(then.clone());
    }

    /// Claims objects that were inside a value; `parent`, which holds it, is kept until that is confirmed.
    pub(crate) fn claim_all(self: &Arc<Self>, objects: &[ObjectId], parent: Option<ObjectId>) {
        let client = self.clone();
        self.with(|state, out| {
            if let Some(parent) = parent {
                client.hold(state, parent);
            }
            let weak = Arc::downgrade(&client);
            let then = Then::new(move || {
                if let (Some(parent), Some(client)) = (parent, weak.upgrade()) {
                    client.with(|state, out| client.let_go(state, parent, out));
                }
            });
            for object in objects {
                client.claim(state, *object, &then, out);
            }
            out.trash.push(Box::new(then));
        });
    }

    /// The last handle of a cell is gone; `seen`: somebody has looked at its value.
    pub(crate) fn release(self: &Arc<Self>, object: ObjectId, seen: bool) {
        self.with(|state, out| {
            if seen && object.owner == self.me {
                state.owner.seen(object);
            }
            state.cells.forget(object);
            state.wants.remove(&object);
            self.let_go(state, object, out);
        });
    }

    pub(crate) fn cancel(self: &Arc<Self>, object: ObjectId) {
        self.with(|state, out| {
            if object.owner == self.me {
                self.stop_call(state, object, out);
                state.owner.cancel(object, &mut out.effects);
            } else {
                out.effects.send(object.owner, Message::Cancel { task: object, attempt: u32::MAX });
            }
        });
    }

    /// The same, for a reason that is known here.
    pub(crate) fn fail(self: &Arc<Self>, object: ObjectId, error: Arc<Error>) {
        self.with(|state, out| {
            if object.owner == self.me {
                self.stop_call(state, object, out);
                state.owner.fail(object, error, &mut out.effects);
            } else {
                out.effects.send(object.owner, Message::Cancel { task: object, attempt: u32::MAX });
            }
        });
    }

    /// Somebody here wants the value of an object.
    pub(crate) fn want(self: &Arc<Self>, object: ObjectId) {
        self.with(|state, out| {
            if object.owner != self.me {
                self.fetch(state, object, out);
                return;
            }
            // What is made again is not told of: the node says when it is there.
            let is_known = state.owner.want(object, &mut out.effects) || state.owner.is_told(object);
            if is_known && self.fetch(state, object, out) {
                self.read_ahead(state, object.number, out);
            }
        });
    }

    /// Fetches results that are likely to be looked at next, too.
    fn read_ahead(&self, state: &mut State, number: u64, out: &mut Out) {
        let mut bytes = 0;
        for number in state.reads.look(number) {
            let object = ObjectId { owner: self.me, number };
            if state.wants.contains(&object) {
                continue;
            }
            let Some(cell) = state.cells.get(object) else { continue };
            if !cell.is_done()
                && let Some(Value::Stored { size, .. }) = state.owner.value(object)
                && size <= ReadAhead::BYTES
            {
                self.fetch(state, object, out);
                bytes += size;
            }
            out.trash.push(Box::new(cell)); // it may be the last
            if bytes > ReadAhead::BYTES {
                break;
            }
        }
    }

    /// Asks for the value of an object, or finds it here; whether it had to ask, and had not before.
    fn fetch(&self, state: &mut State, object: ObjectId, out: &mut Out) -> bool {
        let value = if object.owner == self.me { state.owner.value(object) } else { None };
        let cell = || state.cells.get(object);
        let holders = match value {
            Some(Value::Inline(value)) => {
                out.arrivals.extend(cell().map(|cell| (cell, Ok(Received::Kept(value)))));
                return false;
            }
            Some(Value::Failed(error)) => {
                out.arrivals.extend(cell().map(|cell| (cell, Err(error))));
                return false;
            }
            Some(Value::Stored { holders, .. }) => holders,
            None => Vec::new(),
        };
        if self.is_lost.load(Ordering::Acquire) {
            let cell = cell().filter(|cell| !cell.is_done());
            out.arrivals.extend(cell.map(|cell| (cell.clone(), Err(self.gone(&*cell)))));
            return false;
        }
        if state.wants.insert(object)
            && let Some(home) = state.home
        {
            out.effects.send(home, Message::Want { object, holders });
            return true;
        }
        false
    }

    /// A letter for this process.
    pub(crate) fn receive(self: &Arc<Self>, envelope: Envelope) {
        let Envelope { from, letter, payload, .. } = envelope;
        match letter {
            Letter::Control(message) => self.control(from, message, payload),
            Letter::Inside { task, attempt, objects } => self.with(|state, _| {
                state.announced.insert(task.number, (from, attempt, objects));
            }),
            Letter::Item { stream, number } => {
                let sink = self.sinks.lock().get(&stream).cloned();
                if let Some(sink) = sink {
                    sink.item(from, number, payload.into_iter().next().unwrap_or_default());
                }
            }
            Letter::Credit { stream, items } => {
                let feeder = self.feeders.lock().get(&stream).cloned();
                if let Some(feeder) = feeder {
                    feeder.credit(items);
                }
            }
            Letter::Call { call, actor, caller, body } => self.call_arrived(call, actor, caller, &body),
            Letter::Kill { actor } => {
                let hosted = self.hosted.lock().get(&actor).cloned();
                match hosted {
                    Some(hosted) => hosted.kill(),
                    // A borrower does not know where it is.
                    None if actor.owner == self.me => self.with(|state, out| {
                        let mut error = super::node_process::died(actor, KILLED);
                        if let Some(cell) = state.cells.get(actor) {
                            let node: Arc<dyn Node> = cell.clone();
                            error = Arc::new(Error::ActorDied { origin: node.origin(), cause: KILLED.into() });
                            out.trash.push(Box::new(cell));
                        }
                        self.kill_actor(state, actor, &error, out);
                    }),
                    None => {}
                }
            }
            Letter::Pending { actor, number } => {
                let hosted = self.hosted.lock().get(&actor).cloned();
                let calls = hosted.map_or(0, |hosted| hosted.pending_calls());
                let (answer, payload) = wire::answer(number, &calls.into());
                self.post(from, answer, payload);
            }
            Letter::WhereIsActor { actor } => self.with(|state, out| self.where_is(state, from, actor, out)),
            Letter::ActorIs { actor, place, dead } => self.with(|state, out| match dead {
                Some(error) if actor.owner == self.me => self.actor_died(state, actor, from, error, out),
                dead => self.actor_is(state, actor, place, dead, out),
            }),
            Letter::HeadIsBack => self.join_again(),
            Letter::Close => self.job_ends(),
            Letter::Closed => drop(self.closed.lock().insert(from)),
            Letter::Took { task, attempt } => self.with(|state, out| {
                if let Some(handles) = state.offered.remove(&(task, attempt)) {
                    out.trash.push(Box::new(handles));
                }
            }),
            Letter::Pack { first, kind } => {
                let Some(pack) = payload.first().and_then(Pack::read) else { return };
                match kind {
                    PackKind::Tasks { .. } => {
                        let pack = PackRun::new(self, first, pack);
                        self.running.lock().begin(&pack);
                        self.core.schedule(pack);
                    }
                    PackKind::Calls { actor, caller } => {
                        let target = self.target(actor, pack.common.function);
                        for (number, member) in (first.number..).zip(pack.members) {
                            let id = ObjectId { number, ..first };
                            self.call_here((id, true), &target, caller, pack.common.alone(member));
                        }
                    }
                }
            }
            Letter::Results { .. } => {
                let mut rest = payload.into_iter().next().unwrap_or_default();
                self.with(|state, out| {
                    while let Some((number, _, told)) = Told::next(&mut rest) {
                        let task = ObjectId { owner: self.me, number };
                        let outcome = match told {
                            Told::Value(value) => Outcome::Inline(Arc::from(&value[..])),
                            Told::Copied(value) => Outcome::Copied(Arc::from(&value[..])),
                            Told::Stored(size) => Outcome::Stored { size: size.into() },
                            Told::Apart(_) => continue, // its node has read it
                        };
                        let finished = Message::Finished { task, attempt: 1, outcome };
                        state.owner.handle(from.station(), finished, &mut out.effects);
                    }
                });
            }
            Letter::Run { task, attempt, body, devices, files } => {
                let values = self.arguments_from(files, payload);
                self.run(task, attempt, body.0, devices, values);
            }
            Letter::Reserved { object, attempt, path } => {
                let draft = self.drafts.lock().remove(&(object, attempt));
                if let Some(write) = draft {
                    // It may be large; other letters do not wait for it.
                    std::thread::spawn(move || write(path));
                }
            }
            Letter::InFile { object, path, size } => self.in_file(object, &path, size),
            Letter::Stop { task, attempt } => {
                match self.comes_up((task, attempt)) {
                    Some(node) => node.cancel(),
                    None => self.take_from_pack((task, attempt), || lost(task, "it was cancelled before it started")),
                }
                let feeder = self.feeders.lock().get(&task).cloned();
                if let Some(feeder) = feeder {
                    feeder.stop();
                }
                // The last handle of an actor's: it does what it has been asked to do, and stops.
                let hosted = self.hosted.lock().remove(&task);
                drop(hosted);
            }
            Letter::Recall { tasks } => tasks.into_iter().for_each(|task| match self.comes_up(task) {
                Some(node) => node.give_back(self.given_back.clone()),
                None => self.take_from_pack(task, || self.given_back.clone()),
            }),
            Letter::WaitsOf { look, asked, objects } => self.waits_asked(from, look, asked, objects),
            Letter::Waits { look, asked, objects, entries } => self.waits_told(look, asked, &objects, entries),
            Letter::EndWait { number, path } => elsewhere::end(number, path),
            Letter::Ask { number, question } => {
                // It may take a while; other letters do not wait for it.
                let client = self.clone();
                std::thread::spawn(move || {
                    let (answer, payload) = wire::answer(number, &look::answer(&client, &question));
                    client.post(from, answer, payload);
                });
            }
            Letter::Answer { number } => {
                let waiting = self.asked.lock().1.remove(&number);
                if let (Some((_, waiting)), Some(answer)) = (waiting, payload.first()) {
                    let _ = waiting.send(String::from_utf8_lossy(answer).into_owned()); // it may have given up
                }
            }
            _ => {}
        }
    }

    /// A task that has come here, unless it lies in a pack still.
    fn comes_up(&self, task: (ObjectId, u32)) -> Option<Arc<dyn Node>> {
        self.running.lock().node(task)
    }

    /// Ends a task that lies in a pack, which is its first attempt.
    fn take_from_pack(self: &Arc<Self>, (id, attempt): (ObjectId, u32), why: impl FnOnce() -> Arc<Error>) {
        let pack = if attempt == 1 { self.running.lock().pack(id) } else { None };
        if pack.is_some_and(|pack| pack.withdraw(id)) {
            self.given.fetch_add(1, Ordering::Relaxed);
            let client = self.clone();
            self.ended(Reply { client, id, attempt, is_call: false, is_packed: true, inside: Vec::new() }, Err(why()));
        }
    }

    /// So much of the CPUs that the node has granted is not used while a task waits.
    pub(crate) fn lend(&self, cpu: u32) {
        if self.me.is_worker() && cpu > 0 {
            self.post(self.me.station(), Letter::Lend { cpu }, Vec::new());
        }
    }

    pub(crate) fn reclaim(&self, cpu: u32) {
        if self.me.is_worker() && cpu > 0 {
            self.post(self.me.station(), Letter::Reclaim { cpu }, Vec::new());
        }
    }

    /// Asks the head, and waits for the answer.
    pub(crate) fn ask(&self, question: Question) -> Result<String> {
        let letter = |number| Letter::Ask { number, question: question.clone() };
        self.ask_within(HEAD, PATIENCE, Some(question.clone()), letter)
    }

    /// Asks all by the way that tasks take, so that they have heard of those that were submitted before.
    pub(super) fn ask_all(&self, question: Question, patience: Duration) -> Result<String> {
        let home = self.state.lock().home;
        match home {
            Some(home) => self.ask_within(home, patience, None, |number| Letter::PassOn { number, question }),
            None => self.ask_within(HEAD, patience, None, |number| Letter::Ask { number, question }),
        }
    }

    /// Asks one node.
    pub(super) fn ask_at(&self, node: ProcessId, question: Question, patience: Duration) -> Result<String> {
        self.ask_within(node, patience, None, |number| Letter::Ask { number, question })
    }

    /// Asks another process with a letter that has this number. The question is asked again if the head is started
    /// again.
    pub(super) fn ask_within(
        &self,
        process: ProcessId,
        patience: Duration,
        question: Option<Question>,
        letter: impl FnOnce(u64) -> Letter,
    ) -> Result<String> {
        let (answer, answered) = mpsc::channel();
        let number = {
            let asked = &mut *self.asked.lock();
            asked.0 += 1;
            asked.1.insert(asked.0, (question, answer));
            asked.0
        };
        let gone = || match self.core.is_stopping() {
            true => self.core.shutdown_error("a question to the cluster"),
            false => Error::Unsupported { reason: "the cluster is gone".into() },
        };
        if self.is_lost.load(Ordering::Acquire) {
            self.asked.lock().1.remove(&number);
            return Err(gone());
        }
        self.post(process, letter(number), Vec::new());
        reading::blocks();
        let who = if process == HEAD { "the cluster's head".into() } else { format!("node {process}") };
        loop {
            let reason = match answered.recv_timeout(patience) {
                Ok(answer) => return Ok(answer),
                // It is asked again when it is back.
                Err(mpsc::RecvTimeoutError::Timeout) if self.is_headless.load(Ordering::Acquire) => continue,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    format!("{who} did not answer within {patience:?}; is it still running?")
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(gone()),
            };
            self.asked.lock().1.remove(&number);
            return Err(Error::Unsupported { reason });
        }
    }

    /// The head is gone, but may be started again.
    pub(crate) fn head_is_gone(&self) {
        self.is_headless.store(true, Ordering::Release);
    }

    /// There is a head again, which knows nothing of what is under way here.
    pub(crate) fn join_again(self: &Arc<Self>) {
        self.is_headless.store(false, Ordering::Release);
        self.with(|state, out| {
            let names = state.actors.values().filter_map(View::name).collect();
            out.letters.push((HEAD, Letter::Names { names }, Vec::new()));
            state.owner.join_again(&mut out.effects);
        });
        let asked: Vec<_> = self
            .asked
            .lock()
            .1
            .iter()
            .filter_map(|(number, (question, _))| Some((*number, question.clone()?)))
            .collect();
        for (number, question) in asked {
            self.post(HEAD, Letter::Ask { number, question }, Vec::new());
        }
    }

    /// What to do when the runtime ends.
    pub(crate) fn on_leave(&self, leave: impl FnOnce() + Send + 'static) {
        *self.leave.lock() = Some(Box::new(leave));
    }

    /// Keeps something until the runtime ends.
    pub(crate) fn keep(&self, what: Box<dyn Any + Send>) {
        self.kept.lock().push(what);
    }

    /// The runtime ends.
    pub(crate) fn leave(&self) {
        let kept = std::mem::take(&mut *self.kept.lock());
        drop(kept);
        let leave = self.leave.lock().take();
        if let Some(leave) = leave {
            leave();
        }
    }

    /// Nothing will come any more: what is under way fails.
    pub(crate) fn lost(&self, why: &str) {
        self.is_lost.store(true, Ordering::Release);
        self.is_headless.store(false, Ordering::Release);
        let asked = std::mem::take(&mut self.asked.lock().1);
        drop(asked);
        self.state.lock().groups.clear(); // and who waits for them is told
        let under_way = std::mem::take(&mut *self.under_way.lock());
        let cells: Vec<_> = under_way.into_values().collect();
        for cell in cells {
            let node: Arc<dyn Node> = cell.clone();
            cell.arrive(Err(Arc::new(Error::Lost { origin: node.origin(), reason: why.into() })));
        }
    }

    /// The runtime begins to end: what has not started fails, here and elsewhere; what runs goes on.
    pub(crate) fn close(self: &Arc<Self>) {
        if self.job.source != self.job.driver {
            return; // detached actors are nobody's program
        }
        if self.me.is_worker() && !self.is_told.swap(true, Ordering::AcqRel) {
            // A task has asked for that: it ends for all.
            self.post(self.job.driver, Letter::Close, Vec::new());
        }
        self.close_streams();
        self.with(|state, out| {
            state.groups.clear(); // and who waits for them is told
            // Actors that others have started may live on.
            let calls = state.calls.iter().filter(|(_, actor)| actor.object().owner != self.me);
            let calls: Vec<_> = calls.map(|(number, _)| ObjectId { owner: self.me, number }).collect();
            for call in calls {
                let label = self.label(call).unwrap_or_else(|| "call".into());
                self.stop_call(state, call, out);
                state.owner.fail(call, Arc::new(self.core.shutdown_error(label)), &mut out.effects);
            }
            state.owner.close(self.job.driver, &mut out.effects);
        });
    }

    /// Streams that are produced here end, also those whose consumers want nothing at the moment.
    pub(crate) fn close_streams(&self) {
        let feeders = std::mem::take(&mut *self.feeders.lock());
        feeders.into_values().for_each(|feeder| contain(|| feeder.close()));
    }

    /// Whether all has ended, and the values are here that there are handles to. A worker's are kept by its node.
    pub(crate) fn is_over(self: &Arc<Self>) -> bool {
        if self.me.is_worker() || self.is_lost.load(Ordering::Acquire) {
            return true;
        }
        let ends_elsewhere = || {
            let (state, closed) = (self.state.lock(), self.closed.lock());
            state.owner.told().any(|node| !closed.contains(&node))
        };
        if !self.under_way.lock().is_empty() || ends_elsewhere() {
            return false;
        }
        let awaited = self.awaited.lock().take().unwrap_or_else(|| self.fetch_the_rest());
        let mut cells: Vec<_> = awaited.iter().filter_map(Weak::upgrade).collect();
        cells.retain(|cell| !cell.is_done() && cell.meta().handles.load(Ordering::Acquire) > 0);
        *self.awaited.lock() = Some(cells.iter().map(Arc::downgrade).collect());
        cells.is_empty()
    }

    /// Asks for large results that are elsewhere.
    fn fetch_the_rest(self: &Arc<Self>) -> Vec<Weak<dyn Remote>> {
        let mut cells = self.cells();
        cells.retain(|cell| {
            let is_stored = || matches!(self.state.lock().owner.value(cell.id()), Some(Value::Stored { .. }));
            !cell.is_done() && cell.id().owner == self.me && is_stored()
        });
        cells.iter().for_each(|cell| self.want(cell.id()));
        cells.iter().map(Arc::downgrade).collect()
    }

    /// Cells that somebody has a handle to.
    fn cells(&self) -> Vec<Arc<dyn Remote>> {
        self.state.lock().cells.all()
    }

    /// The runtime has ended, or waits no longer: whatever is not here fails.
    pub(crate) fn shut_down(self: &Arc<Self>) {
        if self.me.is_worker() {
            return; // others may still ask for what it has made
        }
        self.is_lost.store(true, Ordering::Release);
        let asked = std::mem::take(&mut self.asked.lock().1);
        drop(asked);
        self.state.lock().groups.clear();
        let under_way = std::mem::take(&mut *self.under_way.lock());
        let mut cells: Vec<_> = under_way.into_values().collect();
        cells.extend(self.cells());
        for cell in cells.into_iter().filter(|cell| !cell.is_done()) {
            let value = self.state.lock().owner.value(cell.id()).filter(|_| cell.id().owner == self.me);
            let outcome = match value {
                Some(Value::Inline(value)) => Ok(Received::Kept(value)),
                Some(Value::Failed(error)) => Err(error),
                _ => Err(self.gone(&*cell)),
            };
            contain(|| cell.arrive(outcome));
        }
    }

    /// Why what is elsewhere does not come any more.
    fn gone(&self, cell: &dyn Remote) -> Arc<Error> {
        let node: &dyn Node = cell;
        Arc::new(match self.core.is_stopping() {
            true => self.core.shutdown_error(node.label()),
            false => Error::Lost { origin: node.origin(), reason: "the cluster is gone".into() },
        })
    }

    /// The program's runtime ends: said to a worker by its node, or to the driver by a task.
    fn job_ends(&self) {
        self.is_told.store(true, Ordering::Release);
        if !self.core.is_stopping() {
            self.core.close_later();
        }
    }

    /// Whether a task with these options is to run on the cluster. A driver runs nothing itself; a worker
    /// keeps plain tasks as long as they do not wait for long, unless it has GPUs, which these are not to see, or its node
    /// has no CPU for them.
    #[inline]
    pub(crate) fn takes(&self, options: Option<&Options>) -> bool {
        let never_keeps = || self.has_gpus.load(Ordering::Relaxed) || self.has_no_cpu.load(Ordering::Relaxed);
        if !self.me.is_worker() || never_keeps() {
            return true;
        }
        let is_plain = options.is_none_or(|options| {
            options.demand.lock().is_none()
                && options.bundle.lock().is_none()
                && options.strategy == crate::resources::Strategy::Default
        });
        // What the node has given it ahead of its turn does not count: a task that holds a lock while it waits for its
        // own would then wait for one that nobody runs, because others wait for the lock.
        let queued = || self.core.queued().saturating_sub(self.given.load(Ordering::Relaxed));
        let is_too_long = || {
            let now = self.started.elapsed().as_nanos() as Nanos;
            let ended =
                || self.core.total(|counters| &counters.executed) + self.core.total(|counters| &counters.failed);
            self.own_queue.is_too_long(queued(), self.core.cpus().ceil() as usize, now, ended)
        };
        !is_plain || is_too_long()
    }

    fn control(self: &Arc<Self>, from: ProcessId, message: Message, mut payload: Vec<Bytes>) {
        if matches!(message, Message::Fenced) && from == HEAD && !self.me.is_worker() {
            return self.lost("the head has declared this program dead, although it lives: it was not heard in time");
        }
        if let Message::Cancel { task, .. } = message {
            // A task that this worker runs by itself ends as it does without others, and then it does for them.
            let local = self.state.lock().exported_node(task);
            if let Some(local) = local {
                return local.cancel();
            }
        }
        self.with(|state, out| match message {
            Message::Home { node } => {
                state.home = Some(node);
                state.owner.handle(from, Message::Home { node }, &mut out.effects);
                for object in std::mem::take(&mut state.wants) {
                    self.fetch(state, object, out);
                }
            }
            Message::Here { object } => {
                state.wants.remove(&object);
                let cell = state.cells.get(object);
                let value = payload.pop().unwrap_or_default();
                out.arrivals.extend(cell.map(|cell| (cell, Ok(Received::Alone(value)))));
            }
            Message::Lost { object, why } => {
                state.wants.remove(&object);
                self.confirmed(state, object, false, out); // there is nothing to wait for
                let cell = state.cells.get(object);
                out.arrivals.extend(cell.map(|cell| (cell, Err(why))));
            }
            Message::Claimed { object } => self.confirmed(state, object, true, out),
            // A borrower's wish.
            Message::Cancel { task, .. } => {
                self.stop_call(state, task, out);
                state.owner.cancel(task, &mut out.effects);
            }
            Message::Dead { process } => {
                self.dead.lock().retain(|actor, _| actor.owner != process);
                self.actors_left(state, process);
                state.owner.handle(from, Message::Dead { process }, &mut out.effects);
                if state.home == Some(process) {
                    state.home = None;
                }
                let lost: Vec<_> = state.foreign.keys().filter(|object| object.owner == process).copied().collect();
                for object in lost {
                    self.confirmed(state, object, false, out);
                    state.wants.remove(&object);
                    if let Some(cell) = state.cells.get(object) {
                        let reason = format!("its owner {process} has ended");
                        let origin = {
                            let node: Arc<dyn Node> = cell.clone();
                            node.origin()
                        };
                        out.arrivals.push((cell, Err(Arc::new(Error::Lost { origin, reason }))));
                    }
                }
                let offered: Vec<_> = state.offered.keys().filter(|key| key.0.owner == process).copied().collect();
                for key in offered {
                    out.trash
                        .extend(state.offered.remove(&key).map(|handles| Box::new(handles) as Box<dyn Any + Send>));
                }
            }
            Message::Finished { task, attempt, outcome: Outcome::Failed(why) } => {
                let outcome = Outcome::Failed(self.name_origin(state, why, out));
                state.owner.handle(from, Message::Finished { task, attempt, outcome }, &mut out.effects);
            }
            message => state.owner.handle(from, message, &mut out.effects),
        });
    }

    /// Another process knows an own object by its number only: says what it is called.
    fn name_origin(&self, state: &State, why: Arc<Error>, out: &mut Out) -> Arc<Error> {
        let mut error = (*why).clone();
        let mut cause = &mut error;
        while let Error::DependencyFailed { cause: inner, .. } = cause {
            cause = inner;
        }
        let Error::DependencyReturnedErr { origin, .. } = cause else { return why };
        if origin.kind == "object" && origin.node == self.me.to_string() {
            let object = ObjectId { owner: self.me, number: origin.id };
            if let Some(cell) = state.cells.get(object) {
                let node: Arc<dyn Node> = cell.clone();
                *origin = node.origin();
                out.trash.push(Box::new(cell));
            }
        }
        Arc::new(error)
    }

    /// A claim is confirmed, or (`is_there` is false) will never be.
    fn confirmed(&self, state: &mut State, object: ObjectId, is_there: bool, out: &mut Out) {
        let Some(foreign) = state.foreign.get_mut(&object) else { return };
        foreign.claim = Claim::Confirmed;
        out.trash.push(Box::new(std::mem::take(&mut foreign.waiting)));
        if foreign.refs == 0 {
            state.foreign.remove(&object);
            if is_there {
                out.effects.send(object.owner, Message::Unclaim { object });
            }
        }
    }

    /// To be called often: several times in the time between two beats.
    pub(crate) fn tick(self: &Arc<Self>) {
        let now = self.now();
        self.running.lock().tick();
        self.with(|state, out| state.owner.tick(now, &mut out.effects));
    }

    /// Whether a cell with one handle is nobody else's from here on, so that its value may be moved out: who gets a
    /// handle to the object later gets another cell.
    pub(crate) fn is_sole(self: &Arc<Self>, object: ObjectId, handles: &AtomicU32) -> bool {
        self.with(|state, _| {
            let is_sole = handles.load(Ordering::Acquire) == 1;
            if is_sole {
                state.cells.remove(object);
            }
            is_sole
        })
    }

    /// Makes an object of this process known to others, as long as the guard is there.
    pub(crate) fn export<T: Object>(
        self: &Arc<Self>,
        object: &ObjectRef<T>,
    ) -> Result<(Handle, Box<dyn Any + Send + Sync>)> {
        let source = object.source();
        let any: &dyn Any = &**source;
        if let Some(cell) = any.downcast_ref::<RemoteCell<T>>() {
            return Ok((Handle::Object(cell.id()), Box::new(object.clone())));
        }
        let number = source.meta().id;
        let (id, is_new) = self.with(|state, _| {
            // As long as others have claims to it, it is the same object.
            if let Some(id) = state.exported.get(&number) {
                state.owner.retain(*id);
                return (*id, false);
            }
            let id = state.owner.expect(None);
            state.exported.insert(number, id);
            state.locals.insert(id.number, (number, Arc::downgrade(&object.node())));
            (id, true)
        });
        if is_new {
            let node = object.node();
            let ready = Arc::new(Exported { client: self.clone(), id, object: Mutex::new(Some(object.clone())) });
            let waiter: Arc<dyn Waiter> = ready;
            if !node.add_waiter(&waiter) {
                waiter.notify();
            }
        }
        Ok((Handle::Object(id), Box::new(Exportation { client: self.clone(), id })))
    }

    /// The handle in this process to an object that is known by its number.
    pub(crate) fn import<T: Object>(self: &Arc<Self>, id: ObjectId, given: &Given) -> Result<ObjectRef<T>> {
        let value = match given {
            Given::Nothing => None,
            Given::Value(value) => Some(value),
            Given::Made(made) => match made.downcast_ref::<ObjectRef<T>>() {
                Some(object) => return Ok(object.clone()),
                None => None,
            },
        };
        let found = self.with(|state, out| {
            let cell = state.cells.get(id)?;
            let any: Arc<dyn Any + Send + Sync> = cell;
            match any.downcast::<RemoteCell<T>>() {
                Ok(cell) => cell.retain(),
                Err(other) => {
                    out.trash.push(Box::new(other));
                    None
                }
            }
        });
        if let Some(handle) = found {
            if let (Some(value), false) = (value, handle.source().is_done()) {
                let any: &dyn Any = &**handle.source();
                if let Some(cell) = any.downcast_ref::<RemoteCell<T>>() {
                    cell.arrive(Ok(Received::Alone(value.clone())));
                }
            }
            return Ok(handle);
        }
        let kind = ("object", std::any::type_name::<T>());
        let cell = RemoteCell::<T>::new(self, id, kind, Location::caller(), None);
        let remote: Arc<dyn Remote> = cell.clone();
        self.with(|state, out| {
            self.hold(state, id);
            state.cells.insert(id, &remote);
            match value {
                Some(value) => out.arrivals.push((remote.clone(), Ok(Received::Alone(value.clone())))),
                None if id.owner == self.me => match state.owner.value(id) {
                    Some(Value::Inline(value)) => out.arrivals.push((remote.clone(), Ok(Received::Kept(value)))),
                    Some(Value::Failed(error)) => out.arrivals.push((remote.clone(), Err(error))),
                    _ => {}
                },
                None => {}
            }
        });
        drop(remote);
        Ok(ObjectRef::first(cell))
    }

    /// A value of this process's is there, or has failed.
    fn fulfil(self: &Arc<Self>, object: ObjectId, result: Result<Packed, Arc<Error>>) {
        let (outgoing, handles) = match result.and_then(|packed| self.outgoing(packed).map_err(Arc::new)) {
            Ok(outgoing) => outgoing,
            Err(error) => {
                return self.with(|state, out| state.owner.fulfil(object, Outcome::Failed(error), &mut out.effects));
            }
        };
        let objects = outgoing.objects();
        // The handles keep the objects until the record does.
        self.with(|state, out| {
            objects.iter().for_each(|object| self.hold(state, *object));
            out.trash.push(Box::new(handles));
            if !objects.is_empty() {
                state.inside.insert(object.number, objects);
            }
        });
        let home = self.with(|state, _| state.home);
        match home.filter(|_| outgoing.len() > INLINE) {
            None => {
                let outcome = Outcome::Inline(outgoing.encode().into());
                self.with(|state, out| state.owner.fulfil(object, outcome, &mut out.effects));
            }
            Some(home) if self.is_neighbour(home) => {
                let client = self.clone();
                self.write_to_store(home, object, 0, outgoing, move |written| {
                    client.with(|state, out| {
                        let is_well = written.is_ok();
                        out.letters.push((home, Letter::Written { object, is_well }, Vec::new()));
                        let outcome = match written {
                            Ok(size) => Outcome::Stored { size },
                            Err(error) => Outcome::Failed(Arc::new(error)),
                        };
                        state.owner.fulfil(object, outcome, &mut out.effects);
                    });
                });
            }
            Some(home) => {
                let value = Bytes::from(outgoing.encode());
                self.with(|state, out| {
                    let outcome = Outcome::Stored { size: value.len() as u64 };
                    out.letters.push((home, Letter::Store { object }, vec![value]));
                    state.owner.fulfil(object, outcome, &mut out.effects);
                });
            }
        }
    }

    /// A node's files can be opened here.
    pub(crate) fn is_near(&self, node: ProcessId) {
        self.neighbours.lock().insert(node);
    }

    fn is_neighbour(&self, node: ProcessId) -> bool {
        self.me.station() == node || self.neighbours.lock().contains(&node)
    }

    /// A value whose handles others know.
    fn outgoing(self: &Arc<Self>, mut packed: Packed) -> Result<(Outgoing, Guards)> {
        let handles = packed.take_handles();
        let known = handles.iter().map(|handle| handle.export(self)).collect::<Result<Vec<_>>>()?;
        let (handles, guards) = known.into_iter().unzip();
        Ok((Outgoing { handles, packed }, guards))
    }

    /// The same, as part of an order.
    fn parcel(self: &Arc<Self>, packed: Packed) -> Result<(Parcel, Beginning, Guards)> {
        let (outgoing, guards) = self.outgoing(packed)?;
        let (parcel, beginning) = outgoing.into_order(self.job.driver);
        Ok((parcel, beginning, guards))
    }

    /// Submits a task to the cluster.
    pub(crate) fn submit<B: Travel>(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        mut body: B,
        options: Option<Box<Options>>,
    ) -> Result<ObjectRef<B::Out>> {
        let mut dependencies = Vec::new();
        body.dependencies(&mut |node| dependencies.push(node.clone()));
        let (function, packed) = (body.site()?, body.pack()?);
        contain(|| drop(body)); // what it holds may have destructors that panic
        let extras = options.as_deref().map(extras).transpose()?.flatten();
        self.core.count(|c| &c.submitted);
        let kind = ("task", B::type_name());
        let packed = match self.carrier.has_packs() && options.is_none() && dependencies.is_empty() {
            false => packed,
            true => match packed.into_small(pack::LONGEST) {
                Err(packed) => packed,
                Ok(value) => match self.submit_packed(location, kind, function, value)? {
                    Ok(cell) => return Ok(self.handle(cell)),
                    Err(value) => Packed::from_small(value),
                },
            },
        };
        self.send_out(location, kind, (function, packed, &dependencies), extras, options)
    }

    /// Sends something in a pack.
    fn pack<'s>(
        &self,
        state: &'s mut State,
        (to, kind): (ProcessId, PackKind),
        object: ObjectId,
        (function, location): (Site, &'static Location<'static>),
        number: u64,
        value: &[u8],
    ) -> &'s mut LastPack {
        let last = state.packed.take().filter(|last| last.common.function == function && last.location == location);
        let is_next = |last: &LastPack| (last.to, last.kind, last.next) == (to, kind, object.number);
        let goes_on = last.as_ref().is_some_and(|last| is_next(last) && last.count < pack::MOST);
        let mut last = last.unwrap_or_else(|| {
            let common = Common { driver: self.job.driver, function, location: place(location) };
            LastPack { to, kind, common: Arc::new(common), location, work: None, next: 0, count: 0 }
        });
        self.carrier.pack(&Packing { to, kind, object, common: &last.common, number, value, goes_on });
        (last.to, last.kind, last.next) = (to, kind, object.number + 1);
        last.count = if goes_on { last.count + 1 } else { 1 };
        state.packed.insert(last)
    }

    /// Sends a task in a pack, if there is a node; or else gives its value back.
    fn submit_packed<T: Object>(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        kind: (&'static str, &'static str),
        function: Site,
        value: Vec<u8>,
    ) -> Result<Result<Arc<RemoteCell<T>>, Vec<u8>>> {
        self.takes_orders(kind, None)?;
        let submitted = self.with(|state, out| {
            let Some((to, is_granted)) = state.owner.goes_to(&mut out.effects) else { return Err(value) };
            let object = state.owner.next().0;
            let cell = RemoteCell::<T>::new(self, object, kind, location, None);
            let number = cell.meta().id;
            let kind = PackKind::Tasks { is_granted };
            let last = self.pack(state, (to, kind), object, (function, location), number, &value);
            let work = last.work.get_or_insert_with(|| {
                let ((demand, strategy), body) = (demand(None), WorkBody::Packed(last.common.clone()));
                Arc::new(Work { demand, strategy, args: Vec::new(), body, attempts: ATTEMPTS, stays: false })
            });
            let work = work.clone();
            self.enter(state, cell.clone(), Vec::new());
            let member = Member { number, value: Bytes::copy_from_slice(&value) };
            state.owner.submit_packed(to, work, member);
            Ok(cell)
        });
        if let Ok(cell) = &submitted {
            observe::submitted(self.core, || cell.clone());
        }
        Ok(submitted)
    }

    /// Has the head start an actor, and own it.
    pub(super) fn detach(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        (function, packed, dependencies): (Site, Packed, &[Arc<dyn Node>]),
        extras: Box<Extras>,
        options: &Options,
        type_name: &'static str,
        restarts: u32,
    ) -> Result<ObjectId> {
        static TICKETS: AtomicU64 = AtomicU64::new(1);
        self.takes_orders(("actor", type_name), Some(options))?;
        let (demand, strategy) = demand(Some(options));
        if matches!(strategy, Strategy::Bundle { .. }) {
            return Err(Error::invalid("a detached actor cannot be in a placement group, which ends with its program"));
        }
        let name = options.name.clone().ok_or_else(|| Error::invalid("a detached actor needs a name"))?;
        let (parcel, beginning, handles) = self.parcel(packed)?;
        let dependencies = self.with(|state, _| self.dependencies(state, dependencies, &parcel));
        let args = dependencies.iter().map(|place| parcel.handles[*place as usize].object()).collect();
        let number = TICKETS.fetch_add(1, Ordering::Relaxed);
        let order = Order {
            function,
            name: Some(name.clone()),
            location: place(location),
            number,
            parcel,
            dependencies,
            extras: Some(extras),
        };
        // It may be started again with them, as long as this process is there.
        self.keep(Box::new(handles));
        let question = Question::Detach(Box::new(Detach {
            ticket: (self.me, number),
            job: self.job.clone(),
            name: name.to_string(),
            type_name: type_name.into(),
            demand: (*demand).clone(),
            strategy,
            args,
            attempts: restarts.saturating_add(1),
            order: order.encode(beginning),
        }));
        // The head may have to fetch the executable first.
        let letter = |number| Letter::Ask { number, question: question.clone() };
        let answer = self.ask_within(HEAD, UPLOAD, Some(question.clone()), letter)?;
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        match (answer["owner"].as_u64(), answer["number"].as_u64(), answer["error"].as_str()) {
            (Some(owner), Some(number), _) => Ok(ObjectId { owner: ProcessId(owner), number }),
            (_, _, Some(error)) => Err(Error::Unsupported { reason: error.into() }),
            _ => Err(Error::NameTaken { name: name.to_string() }),
        }
    }

    /// Sends a task to where it is to run.
    fn send_out<T: Object>(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        kind: (&'static str, &'static str),
        (function, packed, dependencies): (Site, Packed, &[Arc<dyn Node>]),
        extras: Option<Box<Extras>>,
        options: Option<Box<Options>>,
    ) -> Result<ObjectRef<T>> {
        self.takes_orders(kind, options.as_deref())?;
        self.fits_its_bundle(kind, location, options.as_deref())?;
        let (parcel, beginning, handles) = self.parcel(packed)?;
        let cell = self.with(|state, out| {
            let (id, dependencies) = (state.owner.next().0, self.dependencies(state, dependencies, &parcel));
            let cell = RemoteCell::<T>::new(self, id, kind, location, options);
            let order = order_of(&*cell, function, parcel, dependencies, extras);
            let work = self.work(&*cell, (&order, beginning), ATTEMPTS, false);
            self.enter(state, cell.clone(), handles);
            let submitted = state.owner.submit(work, &mut out.effects);
            debug_assert_eq!(submitted, id);
            cell
        });
        observe::submitted(self.core, || cell.clone());
        Ok(self.handle(cell))
    }

    /// Submits a task whose result is taken apart where it is made.
    pub(crate) fn submit_split<B: Travel<Out: Split>>(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        function: Site,
        mut body: B,
        options: Option<Box<Options>>,
    ) -> Result<<B::Out as Split>::Refs> {
        let mut dependencies = Vec::new();
        body.dependencies(&mut |node| dependencies.push(node.clone()));
        let packed = body.pack()?;
        contain(|| drop(body)); // what it holds may have destructors that panic
        let extras = options.as_deref().map(extras).transpose()?.flatten();
        let kind = ("task", B::type_name());
        self.takes_orders(kind, options.as_deref())?;
        self.fits_its_bundle(kind, location, options.as_deref())?;
        let (parcel, beginning, handles) = self.parcel(packed)?;
        self.core.count(|c| &c.submitted);
        let (whole, refs) = self.with(|state, out| {
            let (id, dependencies) = (state.owner.next().0, self.dependencies(state, &dependencies, &parcel));
            let cell = RemoteCell::<()>::new(self, id, kind, location, options);
            let order = order_of(&*cell, function, parcel, dependencies, extras);
            let work = self.work(&*cell, (&order, beginning), ATTEMPTS, false);
            self.enter(state, cell.clone(), handles);
            let refs = B::Out::expect(&mut Expect { client: self, state, location, whole: id, next: 1 });
            let submitted = state.owner.submit_split(work, B::Out::PARTS, &mut out.effects);
            debug_assert_eq!(submitted, id);
            (cell, refs)
        });
        // Nobody holds the whole; its deadline ends the parts.
        self.set_deadline(&(whole as Arc<dyn Node>));
        Ok(refs)
    }

    /// Something that will run elsewhere (an actor) has its number from here on; it starts with
    /// [`Client::start_announced`].
    pub(super) fn announce<T: Object>(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        kind: (&'static str, &'static str),
        (function, packed): (Site, Packed),
        extras: Option<Box<Extras>>,
        options: Option<Box<Options>>,
    ) -> Result<(ObjectRef<T>, Announced)> {
        self.takes_orders(kind, options.as_deref())?;
        self.fits_its_bundle(kind, location, options.as_deref())?;
        let (parcel, beginning, handles) = self.parcel(packed)?;
        let cell = self.with(|state, _| {
            let id = state.owner.expect(None);
            let cell = RemoteCell::<T>::new(self, id, kind, location, options);
            self.enter(state, cell.clone(), handles);
            cell
        });
        let order = order_of(&*cell, function, parcel, Vec::new(), extras);
        Ok((self.handle(cell.clone()), (cell, order, beginning)))
    }

    /// `dependencies`: what it needs before it starts.
    pub(super) fn start_announced(
        self: &Arc<Self>,
        id: ObjectId,
        (cell, mut order, beginning): Announced,
        dependencies: &[Arc<dyn Node>],
        restarts: u32,
    ) {
        self.with(|state, out| {
            order.dependencies = self.dependencies(state, dependencies, &order.parcel);
            let work = self.work(&*cell, (&order, beginning), restarts.saturating_add(1), true);
            state.owner.submit_as(id, work, &mut out.effects);
            out.trash.push(Box::new(cell));
        });
    }

    /// What the owner has to know of an order.
    fn work(&self, node: &dyn Node, (order, beginning): (&Order, Beginning), attempts: u32, stays: bool) -> Work {
        let (demand, strategy) = demand(node.meta().options.as_deref());
        let args = self.arguments(&order.dependencies, &order.parcel);
        let body = WorkBody::Alone(order.encode(beginning));
        Work { demand, strategy, args, body, attempts, stays }
    }

    /// The first handle to what has been sent out; its deadline counts from here.
    fn handle<T: Object>(&self, cell: Arc<RemoteCell<T>>) -> ObjectRef<T> {
        let node: Arc<dyn Node> = cell.clone();
        self.set_deadline(&node);
        ObjectRef::first(cell)
    }

    fn set_deadline(&self, node: &Arc<dyn Node>) {
        if let Some(after) = node.meta().options.as_deref().and_then(|o| o.deadline) {
            timer::deadline(self.core, node, after);
        }
    }

    /// Nobody serves what is submitted after the end.
    fn takes_orders(&self, (kind, type_name): (&str, &str), options: Option<&Options>) -> Result<()> {
        match self.core.is_stopping() {
            true => {
                let name = options.and_then(|options| options.name.as_deref()).unwrap_or(type_name);
                Err(self.core.shutdown_error(format!("{kind} `{name}`")))
            }
            false => Ok(()),
        }
    }

    /// What asks for more than its bundle has is told at once.
    fn fits_its_bundle(
        &self,
        (kind, type_name): (&str, &str),
        location: &'static Location<'static>,
        options: Option<&Options>,
    ) -> Result<()> {
        let Some((group, bundle)) = options.and_then(|options| options.bundle.lock().clone()) else { return Ok(()) };
        let Some(reason) = group.misfit(bundle, &demand(options).0) else { return Ok(()) };
        let origin = Origin {
            kind: kind.into(),
            name: options.and_then(|options| options.name.as_deref()).unwrap_or(type_name).into(),
            id: thread::next_id(),
            attempt: 1,
            location: location.to_string(),
            node: LOCAL_NODE.into(),
        };
        Err(Error::Infeasible { origin: Box::new(origin), reason })
    }

    /// Something is under way from here on.
    fn enter(&self, state: &mut State, cell: Arc<dyn Remote>, handles: Guards) {
        let id = cell.id();
        state.cells.insert(id, &cell);
        if !handles.is_empty() {
            state.held.insert(id.number, handles);
        }
        self.under_way.lock().insert(id.number, cell);
    }

    /// Calls a method of an actor.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn call<T: Object>(
        self: &Arc<Self>,
        handle: &RemoteActor,
        location: &'static Location<'static>,
        kind: (&'static str, &'static str),
        function: Site,
        packed: Packed,
        options: Option<Box<Options>>,
        caller: u32,
    ) -> Result<ObjectRef<T>> {
        let actor = handle.object();
        self.takes_orders(kind, options.as_deref())?;
        // Callers of different processes are different.
        let caller = (self.me.0 as u32).wrapping_mul(0x9e37_79b9) ^ ((self.me.0 >> 32) as u32) ^ caller;
        let can_pack = self.carrier.has_packs() && options.is_none();
        let packed = match if can_pack { packed.into_small(pack::LONGEST) } else { Err(packed) } {
            Err(packed) => packed,
            Ok(value) => {
                let called = self.with(|state, _| {
                    let Some(place) = state.actors.get(&actor).and_then(View::takes_at_once) else {
                        return Err(value);
                    };
                    let id = state.owner.expect(Some(place));
                    let cell = RemoteCell::<T>::new(self, id, kind, location, None);
                    self.enter(state, cell.clone(), Vec::new());
                    state.calls.insert(id.number, handle.clone());
                    let kind = PackKind::Calls { actor, caller };
                    self.pack(state, (place, kind), id, (function, location), cell.meta().id, &value);
                    Ok(cell)
                });
                match called {
                    Ok(cell) => return Ok(self.called(cell, handle.id())),
                    Err(value) => Packed::from_small(value),
                }
            }
        };
        let (parcel, beginning, handles) = self.parcel(packed)?;
        let extras = options.as_deref().map(extras).transpose()?.flatten();
        let cell = self.with(|state, out| {
            let id = state.owner.expect(None);
            let cell = RemoteCell::<T>::new(self, id, kind, location, options);
            let order = order_of(&*cell, function, parcel, Vec::new(), extras);
            let body = order.encode(beginning);
            self.enter(state, cell.clone(), handles);
            state.calls.insert(id.number, handle.clone());
            self.to_actor(state, actor, Letter::Call { call: id, actor, caller, body }, out);
            cell
        });
        Ok(self.called(cell, handle.id()))
    }

    /// A call has been made.
    fn called<T: Object>(&self, cell: Arc<RemoteCell<T>>, actor: u64) -> ObjectRef<T> {
        self.core.count(|c| &c.submitted);
        cell.is_of_actor(actor);
        observe::submitted(self.core, || cell.clone());
        self.handle(cell)
    }

    /// A call of another process's, for an actor here.
    fn call_arrived(self: &Arc<Self>, id: ObjectId, actor: ObjectId, caller: u32, body: &Bytes) {
        match Order::decode(body) {
            Some(order) => self.call_here((id, false), &self.target(actor, order.function), caller, order),
            None => {
                let inside = Vec::new();
                let reply = Reply { client: self.clone(), id, attempt: 0, is_call: true, is_packed: false, inside };
                reply.fail(Error::Unsupported { reason: "a call that arrived cannot be read".into() });
            }
        }
    }

    /// The actor and the method that calls are for, or why they cannot be made.
    fn target(&self, actor: ObjectId, function: Site) -> Result<(Arc<dyn HostedActor>, &'static Descriptor)> {
        let function = self.find(function)?;
        let hosted = self.hosted.lock().get(&actor).cloned();
        let hosted = hosted.ok_or_else(|| {
            let known = self.dead.lock().get(&actor).cloned();
            (*known.unwrap_or_else(|| super::node_process::died(actor, "it has stopped"))).clone()
        })?;
        Ok((hosted, function))
    }

    fn call_here(
        self: &Arc<Self>,
        (id, is_packed): (ObjectId, bool),
        target: &Result<(Arc<dyn HostedActor>, &'static Descriptor)>,
        caller: u32,
        order: Order,
    ) {
        let reply = |inside| Reply { client: self.clone(), id, attempt: 0, is_call: true, is_packed, inside };
        let handles = order.parcel.handles.iter().map(|handle| (handle.clone(), Given::Nothing)).collect();
        let inside = order.parcel.handles.iter().map(Handle::object).collect();
        let incoming = Incoming {
            client: self.clone(),
            imports: Imports { client: self.clone(), handles },
            order,
            reply: reply(inside),
            devices: Vec::new(),
            caller,
        };
        let result = match target {
            Ok((hosted, function)) => {
                guarded("the arguments", || function.run(Arrival(Arrived::Call(incoming, &**hosted))))
            }
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = result {
            reply(Vec::new()).fail(error);
        }
    }

    /// Whether a stream's producer is to run on the cluster.
    pub(crate) fn takes_streams(&self) -> bool {
        !self.me.is_worker() || self.has_gpus.load(Ordering::Relaxed)
    }

    /// Starts a stream on the cluster. It holds no CPU there, because it stops whenever its consumer is slow.
    pub(crate) fn submit_stream<F, D, Args, M>(
        self: &Arc<Self>,
        location: &'static Location<'static>,
        mut args: D,
        options: Option<Box<Options>>,
        buffer: usize,
    ) -> Arc<dyn Items<F::Item>>
    where
        F: StreamFn<Args, M>,
        D: Deferred<Args>,
        Args: 'static,
        M: 'static,
    {
        let mut dependencies = Vec::new();
        args.dependencies(&mut Visitor(&mut |node| dependencies.push(node.clone())));
        self.core.count(|c| &c.submitted);
        let mut order = || {
            self.takes_orders(("stream", std::any::type_name::<F>()), options.as_deref())?;
            let function = Site::of::<StreamEntry<F, D, Args, M>>()?;
            let packed = args::pack::<Args, _>(&mut args)?;
            self.parcel(packed).map(|parcel| (function, parcel))
        };
        let order = order();
        contain(|| drop(args));
        let name = options.as_deref().and_then(|o| o.name.clone());
        let type_name = std::any::type_name::<F>();
        self.with(|state, out| {
            let id = state.owner.next().0;
            let stream = RemoteStream::<F::Item>::new(self, id, type_name, location, options);
            observe::submitted(self.core, || stream.clone());
            let (function, (parcel, beginning, handles)) = match order {
                Ok(order) => order,
                Err(error) => {
                    self.core.count_ended(false);
                    out.arrivals.push((stream.clone(), Err(Arc::new(error))));
                    return stream as Arc<dyn Items<F::Item>>;
                }
            };
            let dependencies = self.dependencies(state, &dependencies, &parcel);
            let args = self.arguments(&dependencies, &parcel);
            let extras = Extras { buffer: buffer.max(1), ..Extras::default() };
            let order = Order {
                function,
                parcel,
                dependencies,
                name,
                location: place(location),
                number: stream.meta().id,
                extras: Some(Box::new(extras)),
            };
            let body = WorkBody::Alone(order.encode(beginning));
            self.sinks.lock().insert(id, stream.clone());
            self.enter(state, stream.clone(), handles);
            let (demand, strategy) = (Arc::new(Demand::cpus(0)), Strategy::Default);
            let work = Work { demand, strategy, args, body, attempts: 1, stays: false };
            let submitted = state.owner.submit(work, &mut out.effects);
            debug_assert_eq!(submitted, id);
            stream
        })
    }

    /// The consumer of a stream is gone.
    pub(super) fn end_stream(self: &Arc<Self>, stream: ObjectId) {
        let sink = self.sinks.lock().remove(&stream);
        drop(sink);
        self.release(stream, true);
    }

    pub(super) fn credit(&self, producer: ProcessId, stream: ObjectId, items: u32) {
        self.post(producer, Letter::Credit { stream, items }, Vec::new());
    }

    /// A stream is produced here from now on.
    pub(super) fn feeds(&self, stream: ObjectId, feeder: Arc<dyn Feed>) {
        self.feeders.lock().insert(stream, feeder);
    }

    /// Not any more.
    pub(super) fn fed(&self, stream: ObjectId) {
        let feeder = self.feeders.lock().remove(&stream);
        drop(feeder);
    }

    /// Sends an item of a stream that is produced here.
    pub(super) fn send_item(self: &Arc<Self>, stream: ObjectId, number: u32, packed: Packed) -> Result<()> {
        let (outgoing, handles) = self.outgoing(packed)?;
        let value = Bytes::from(outgoing.encode());
        self.with(|state, out| {
            if !handles.is_empty() {
                state.offered.insert((stream, number), handles);
            }
            out.letters.push((stream.owner, Letter::Item { stream, number }, vec![value]));
        });
        Ok(())
    }

    /// An item of a stream has come: it is an object of this process's.
    pub(super) fn item<T: Object>(
        self: &Arc<Self>,
        from: ProcessId,
        stream: ObjectId,
        number: u32,
        value: Bytes,
        location: &'static Location<'static>,
    ) -> Result<ObjectRef<T>> {
        let objects = Parcel::decode(&value)?.objects();
        let cell = self.with(|state, out| {
            let id = state.owner.put(Arc::from(&value[..]));
            if !objects.is_empty() {
                state.announced.insert(id.number, (from, number, objects));
                self.take_over_as(state, id, (stream, number), out);
            }
            let cell = RemoteCell::<T>::new(self, id, ("object", std::any::type_name::<T>()), location, None);
            let remote: Arc<dyn Remote> = cell.clone();
            state.cells.insert(id, &remote);
            out.arrivals.push((remote, Ok(Received::Alone(value))));
            cell
        });
        Ok(ObjectRef::first(cell))
    }

    /// An actor lives here from now on.
    pub(super) fn hosts(&self, id: ObjectId, actor: Arc<dyn HostedActor>) {
        self.hosted.lock().insert(id, actor);
    }

    /// An actor that lived here is dead.
    pub(super) fn hosted_ended(&self, (actor, attempt): (ObjectId, u32), error: Error, restarts: bool) {
        let error = Arc::new(error);
        self.dead.lock().insert(actor, error.clone());
        let hosted = self.hosted.lock().remove(&actor);
        drop(hosted);
        self.post(self.me.station(), Letter::ActorEnded { actor, attempt, error, restarts }, Vec::new());
    }

    /// What an object of the cluster is called there.
    pub(super) fn id_of<T: Object>(&self, object: &ObjectRef<T>) -> ObjectId {
        match object.node().remote_id() {
            Some(id) => id,
            None => unreachable!("it was made by this client"),
        }
    }

    fn arguments(&self, dependencies: &[u32], parcel: &Parcel) -> Vec<WorkArg> {
        let objects = dependencies.iter().map(|place| parcel.handles[*place as usize].object());
        let argument = |object: ObjectId| match object.owner == self.me {
            true => WorkArg::Object(object),
            false => WorkArg::Foreign(object),
        };
        objects.map(argument).collect()
    }

    /// Which of a parcel's handles are to be there before a task starts.
    fn dependencies(&self, state: &State, nodes: &[Arc<dyn Node>], parcel: &Parcel) -> Vec<u32> {
        if nodes.is_empty() {
            return Vec::new();
        }
        let objects: FxHashSet<ObjectId> = nodes
            .iter()
            .filter_map(|node| match node.remote_id() {
                Some(id) => Some(id),
                None => state.exported.get(&node.meta().id).copied(),
            })
            .collect();
        let places = parcel.handles.iter().enumerate().filter(|(_, handle)| objects.contains(&handle.object()));
        places.map(|(place, _)| place as u32).collect()
    }

    /// A task of another process's is to run here.
    fn run(
        self: &Arc<Self>,
        id: ObjectId,
        attempt: u32,
        body: Bytes,
        devices: Vec<GpuLease>,
        values: Vec<Option<Bytes>>,
    ) {
        match Order::decode(&body) {
            Some(order) => self.run_order((id, attempt, false), order, devices, values),
            None => {
                self.given.fetch_add(1, Ordering::Relaxed);
                let reply =
                    Reply { client: self.clone(), id, attempt, is_call: false, is_packed: false, inside: Vec::new() };
                reply.fail(Error::Unsupported { reason: "a task that arrived cannot be read".into() });
            }
        }
    }

    /// One of a pack is to run here.
    pub(super) fn run_member(self: &Arc<Self>, task: ObjectId, common: &Common, member: Member) {
        self.run_order((task, 1, true), common.alone(member), Vec::new(), Vec::new());
    }

    fn run_order(
        self: &Arc<Self>,
        (id, attempt, is_packed): (ObjectId, u32, bool),
        order: Order,
        devices: Vec<GpuLease>,
        values: Vec<Option<Bytes>>,
    ) {
        let reply = |inside| Reply { client: self.clone(), id, attempt, is_call: false, is_packed, inside };
        self.given.fetch_add(1, Ordering::Relaxed);
        let mut handles: Vec<_> = order.parcel.handles.iter().map(|handle| (handle.clone(), Given::Nothing)).collect();
        for (place, value) in order.dependencies.iter().zip(values) {
            if let Some((handle, given)) = handles.get_mut(*place as usize) {
                *given = match value {
                    Some(value) => Given::Value(value),
                    None => self.running.lock().result(handle.object()),
                };
            }
        }
        let inside = order.parcel.handles.iter().map(Handle::object).collect();
        let function = self.find(order.function);
        let incoming = Incoming {
            client: self.clone(),
            imports: Imports { client: self.clone(), handles },
            order,
            reply: reply(inside),
            devices,
            caller: 0,
        };
        let result = match function {
            Ok(function) => incoming.arrive(function),
            Err(error) => return incoming.reply.fail(error.into()),
        };
        if let Err(error) = result {
            reply(Vec::new()).fail(error);
        }
    }

    /// The arguments that came along, and those that are in files. One that cannot be read is asked for.
    fn arguments_from(&self, files: Vec<Option<(PathBuf, u64)>>, payload: Vec<Bytes>) -> Vec<Option<Bytes>> {
        let mut payload = payload.into_iter();
        let value = |file: Option<(PathBuf, u64)>| match file {
            None => payload.next(),
            Some((path, size)) => store::map(&path, size).ok(),
        };
        files.into_iter().map(value).collect()
    }

    /// An object that is wanted is in a file of the node's.
    fn in_file(self: &Arc<Self>, object: ObjectId, path: &Path, size: u64) {
        let value = store::map(path, size);
        self.with(|state, out| {
            state.wants.remove(&object);
            let Some(cell) = state.cells.get(object) else { return };
            match value {
                Ok(value) => out.arrivals.push((cell, Ok(Received::Alone(value)))),
                // It was moved meanwhile.
                Err(_) => drop(self.fetch(state, object, out)),
            }
        });
    }

    /// Writes a value to a file of the node's, and then says so, or why not.
    fn write_to_store(
        self: &Arc<Self>,
        node: ProcessId,
        object: ObjectId,
        attempt: u32,
        outgoing: Outgoing,
        then: impl FnOnce(Result<u64>) + Send + 'static,
    ) {
        let size = outgoing.len() as u64;
        let write = move |path: std::result::Result<PathBuf, String>| {
            let unsupported = |reason: String| Error::Unsupported { reason };
            let written = path.map_err(unsupported).and_then(|path| {
                let mut draft = Draft::open(&path, size).map_err(|error| unsupported(error.to_string()))?;
                draft.fill(|writer| outgoing.write(writer)).map_err(|error| unsupported(error.to_string()))?;
                draft.finish();
                Ok(size)
            });
            then(written);
        };
        self.drafts.lock().insert((object, attempt), Box::new(write));
        self.post(node, Letter::Reserve { object, attempt, size }, Vec::new());
    }

    /// A function of this executable; the node is told its name.
    fn find(&self, site: Site) -> Result<&'static Descriptor, FunctionError> {
        if let Some(known) = self.named.lock().get(&site) {
            return Ok(*known);
        }
        let function = resolve_here(site)?;
        if self.named.lock().insert(site, function).is_none() {
            let name = function.name().to_owned();
            self.post(self.me.station(), Letter::Named { function: site, name }, Vec::new());
        }
        Ok(function)
    }

    /// It runs here from now on.
    pub(crate) fn runs(&self, id: ObjectId, attempt: u32, node: &Arc<dyn Node>, made: Option<Made>) {
        self.running.lock().start((id, attempt), Arc::downgrade(node), made);
    }

    /// The parts of a result are there. Each is told of by itself, and the whole after them.
    pub(crate) fn ended_in_parts(self: &Arc<Self>, reply: Reply, parts: Vec<Packed>) {
        let (id, client) = (reply.id, self.clone());
        let whole = Then::new(move || {
            let nothing = serial::pack(&(), "the result").map_err(Arc::new);
            client.ended(reply, nothing);
        });
        for (number, part) in (id.number + 1..).zip(parts) {
            let (id, whole) = (ObjectId { number, ..id }, whole.clone());
            let reply =
                Reply { client: self.clone(), id, attempt: 0, is_call: true, is_packed: false, inside: Vec::new() };
            self.ended_then(reply, Ok(part), move || drop(whole));
        }
    }

    /// What ran here on behalf of another process has ended.
    pub(crate) fn ended(self: &Arc<Self>, reply: Reply, result: Result<Packed, Arc<Error>>) {
        self.ended_then(reply, result, || ());
    }

    /// `then` is done when that has been told.
    fn ended_then(
        self: &Arc<Self>,
        reply: Reply,
        result: Result<Packed, Arc<Error>>,
        then: impl FnOnce() + Send + 'static,
    ) {
        let Reply { id, attempt, is_call, is_packed, inside, .. } = reply;
        if !is_call {
            self.given.fetch_sub(1, Ordering::Relaxed);
        }
        let node = self.me.station();
        let what = (id, attempt, is_call);
        let outgoing = result.and_then(|packed| self.outgoing(packed).map_err(Arc::new));
        let value = match &outgoing {
            Ok((outgoing, _)) if outgoing.len() <= INLINE => Some(Bytes::from(outgoing.encode())),
            _ => None,
        };
        // Handles inside it are not here for longer than they must.
        let kept = value.as_ref().filter(|_| outgoing.as_ref().is_ok_and(|(outgoing, _)| outgoing.handles.is_empty()));
        let old = self.running.lock().end((id, attempt), kept);
        contain(|| drop(old));
        match outgoing {
            Err(error) => {
                let is_given_back = Arc::ptr_eq(&error, &self.given_back);
                let end = if is_given_back { End::GivenBack } else { End::Failed(error) };
                self.tell_ended(what, inside, end, Vec::new(), Default::default(), then);
            }
            Ok((outgoing, handles)) => {
                if let Some(value) = value {
                    if is_packed && inside.is_empty() && handles.is_empty() {
                        self.carrier.result(id, &value);
                        return then();
                    }
                    let objects = outgoing.objects();
                    return self.tell_ended(what, inside, End::Value, vec![value], (handles, objects), then);
                }
                let (objects, client) = (outgoing.objects(), self.clone());
                self.write_to_store(node, id, attempt, outgoing, move |written| {
                    let end = match written {
                        Ok(_) => End::Written,
                        Err(error) => End::Failed(Arc::new(error)),
                    };
                    client.tell_ended(what, inside, end, Vec::new(), (handles, objects), then);
                });
            }
        }
    }

    /// Says how something ended, when what is still held of what came with it (`inside`) is claimed.
    fn tell_ended(
        self: &Arc<Self>,
        (id, attempt, is_call): (ObjectId, u32, bool),
        inside: Vec<ObjectId>,
        end: End,
        payload: Vec<Bytes>,
        (handles, objects): (Guards, Vec<ObjectId>),
        then: impl FnOnce() + Send + 'static,
    ) {
        let (node, client) = (self.me.station(), self.clone());
        let tell = move || {
            client.with(|state, out| {
                if !objects.is_empty() {
                    state.offered.insert((id, attempt), handles);
                    out.letters.push((id.owner, Letter::Inside { task: id, attempt, objects }, Vec::new()));
                }
                out.letters.push((node, Letter::Ended { id, attempt, is_call, took: 0, end }, payload));
            });
            then();
        };
        if inside.is_empty() {
            return tell();
        }
        let then = Then::new(tell);
        self.with(|state, out| {
            for object in inside {
                self.claim(state, object, &then, out);
            }
            out.trash.push(Box::new(then));
        });
    }

    /// The node of this process's own runtime that makes an object here.
    pub(super) fn made_here(&self, object: ObjectId) -> Option<Arc<dyn Node>> {
        let hosted = self.hosted.lock().get(&object).cloned();
        if let Some(hosted) = hosted {
            return hosted.creation();
        }
        self.running.lock().newest(object)
    }

    /// What an own object that is under way is called.
    pub(super) fn label(&self, object: ObjectId) -> Option<String> {
        let cell: Arc<dyn Node> =
            self.under_way.lock().get(object.number).filter(|_| object.owner == self.me).cloned()?;
        Some(cell.label())
    }

    /// What an object that is elsewhere is doing, as far as it is known here.
    pub(crate) fn phase(&self, object: ObjectId) -> Phase {
        match self.state.try_lock() {
            Some(state) if !state.owner.missing(object).is_empty() => Phase::WaitingForArguments,
            _ => Phase::Queued,
        }
    }

    /// The task that makes an object.
    pub(super) fn maker(&self, object: ObjectId) -> ObjectId {
        self.state.lock().owner.maker(object)
    }

    /// The node that an object of this process's is with, or is to go to, while it is under way.
    pub(super) fn whereabouts(&self, object: ObjectId) -> Option<ProcessId> {
        let state = self.state.lock();
        match state.calls.get(object.number).filter(|_| object.owner == self.me) {
            Some(actor) => state.actors.get(&actor.object()).and_then(View::place),
            None => state.owner.whereabouts(object),
        }
    }

    /// Whether a task of this process's waits here for arguments.
    pub(super) fn waits_here(&self, object: ObjectId) -> bool {
        !self.state.lock().owner.missing(object).is_empty()
    }

    /// What runs here on behalf of others.
    pub(super) fn runs_here(&self) -> Vec<((ObjectId, u32), Arc<dyn Node>)> {
        self.running.lock().nodes()
    }

    /// Actors that live here.
    pub(super) fn hosted(&self) -> Vec<(ObjectId, Arc<dyn HostedActor>)> {
        self.hosted.lock().iter().map(|(id, actor)| (*id, actor.clone())).collect()
    }

    /// What an object of this process's is here, if it is known to others.
    pub(super) fn own_node(&self, object: ObjectId) -> Option<Arc<dyn Node>> {
        self.state.lock().exported_node(object).filter(|_| object.owner == self.me)
    }

    /// What stands for the actors that this process has started.
    pub(super) fn own_actors(&self) -> Vec<Arc<dyn Remote>> {
        let mut cells: Vec<_> = self.state.lock().cells.all();
        cells.retain(|cell| cell.kind() == "actor");
        cells
    }

    /// The number that an actor has in this process.
    pub(super) fn number_of(&self, actor: ObjectId) -> Option<u64> {
        let cell = self.state.lock().cells.get(actor);
        cell.map(|cell| cell.meta().id)
    }

    pub(crate) fn blockers(&self, object: ObjectId) -> Vec<Blocker> {
        let Some(state) = self.state.try_lock() else { return Vec::new() };
        let mut waits_for = state.owner.missing(object);
        // A call waits for its actor to be there.
        let call = state.calls.get(object.number).filter(|_| object.owner == self.me);
        waits_for.extend(call.map(RemoteActor::object));
        let under_way = self.under_way.lock();
        waits_for
            .iter()
            .filter(|id| id.owner == self.me)
            .filter_map(|id| under_way.get(id.number))
            .map(|cell| Blocker::Node(cell.clone()))
            .collect()
    }
}

/// Waits for a local value that others know.
struct Exported<T: 'static> {
    client: Arc<Client>,
    id: ObjectId,
    object: Mutex<Option<ObjectRef<T>>>,
}

impl<T: Object> Waiter for Exported<T> {
    fn notify(self: Arc<Self>) {
        let Some(object) = self.object.lock().take() else { return };
        let result = match object.source().share() {
            Ok(value) => guarded("an object", || serial::pack_shared(&value, "an object")).map_err(Arc::new),
            Err(error) => Err(error),
        };
        self.client.fulfil(self.id, result);
    }
}

thread_local! {
    static RECEIVES: Cell<bool> = const { Cell::new(false) };
}

/// This thread receives letters from now on, or not any more: nothing that waits for some is to wait on it.
pub(super) fn receives_here(receives: bool) {
    RECEIVES.set(receives);
}

/// Whether it does.
pub(crate) fn is_receiver() -> bool {
    RECEIVES.get()
}

/// Makes the handles to the parts of a result.
pub(crate) struct Expect<'a> {
    client: &'a Arc<Client>,
    state: &'a mut State,
    location: &'static Location<'static>,
    whole: ObjectId,
    next: u64,
}

impl Expect<'_> {
    /// To the next part.
    pub(crate) fn part<T: Object>(&mut self) -> ObjectRef<T> {
        let id = ObjectId { number: self.whole.number + self.next, ..self.whole };
        self.next += 1;
        let kind = ("object", std::any::type_name::<T>());
        let cell = RemoteCell::<T>::new(self.client, id, kind, self.location, None);
        self.client.enter(self.state, cell.clone(), Vec::new());
        ObjectRef::first(cell)
    }
}

/// What is sent of something that runs elsewhere.
fn order_of(
    node: &dyn Node,
    function: Site,
    parcel: Parcel,
    dependencies: Vec<u32>,
    extras: Option<Box<Extras>>,
) -> Order {
    let meta = node.meta();
    Order {
        function,
        parcel,
        dependencies,
        name: meta.options.as_deref().and_then(|options| options.name.clone()),
        location: place(meta.location),
        number: meta.id,
        extras,
    }
}

/// What of a task's options its worker has to know.
fn extras(options: &Options) -> Result<Option<Box<Extras>>> {
    let demand = options.demand.lock();
    let extras = Extras {
        retries: options.retries,
        retry_errors: options.retry_errors,
        is_err: options.is_err_site.map(|site| site()).transpose()?,
        backoff: options.backoff,
        group: options.group.clone(),
        cpu: demand.as_ref().map(|demand| demand.cpu),
        ..Extras::default()
    };
    Ok((extras != Extras::default()).then(|| Box::new(extras)))
}

/// What a task asks for, as the cluster counts it.
fn demand(options: Option<&Options>) -> (Arc<Demand>, Strategy) {
    static PLAIN: LazyLock<Arc<Demand>> = LazyLock::new(|| Arc::new(Demand::cpus(1_000)));
    let Some(options) = options else { return (PLAIN.clone(), Strategy::Default) };
    let demand = match &*options.demand.lock() {
        None => PLAIN.clone(),
        Some(demand) => Arc::new(demand.into()),
    };
    let strategy = match &*options.bundle.lock() {
        Some((group, bundle)) => Strategy::Bundle { group: group.object(), bundle: *bundle, node: None },
        None => options.strategy.to_cluster(),
    };
    (demand, strategy)
}

/// A place in the source, as people read it. Most are the same as the last.
fn place(location: &'static Location<'static>) -> Arc<str> {
    thread_local! {
        static LAST: RefCell<Option<(&'static Location<'static>, Arc<str>)>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| match last {
        Some((known, text)) if std::ptr::eq(*known, location) => text.clone(),
        _ => last.insert((location, location.to_string().into())).1.clone(),
    })
}
