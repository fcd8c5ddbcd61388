//! What processes of a cluster send each other: control messages, and what the shells add to them.
//!
//! # Addresses
//! A *station* is a process that listens: the head, a node, a driver. Workers have no address: they hang on
//! their node, by a pipe, and the node passes on what is for them. So a [`ProcessId`] says where it is: its
//! upper bits are the station, its lower [`WORKER_BITS`] the worker there, 0 for the station itself.

use super::{
    capacity::Demand,
    cycles::{Entry, Ticket},
    image::Image,
    pack::PackKind,
    protocol::{HEAD, Message, ObjectId, ProcessId, Strategy},
};
use crate::{
    error::{Error, Result},
    gpu::GpuLease,
    serial::Packed,
};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, Write},
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// So many bits of a process's number say which worker of its station it is.
const WORKER_BITS: u32 = 16;

impl ProcessId {
    /// A new station.
    pub(crate) fn station_from(random: u64) -> ProcessId {
        // Never the head's.
        ProcessId((random << WORKER_BITS).max(1 << WORKER_BITS))
    }

    /// Where it is.
    pub(crate) fn station(self) -> ProcessId {
        ProcessId(self.0 >> WORKER_BITS << WORKER_BITS)
    }

    /// A worker of this station, from 1.
    pub(crate) fn worker(self, number: u16) -> ProcessId {
        ProcessId(self.0 | u64::from(number))
    }

    /// The node that people call so.
    pub(crate) fn named(name: &str) -> Option<ProcessId> {
        let number = u64::from_str_radix(name, 16).ok().filter(|_| name.len() == 12)?;
        Some(ProcessId(number << WORKER_BITS))
    }

    pub(crate) fn is_worker(self) -> bool {
        self != self.station()
    }
}

/// As people see it: a node's number in short.
impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == HEAD {
            return f.write_str("head");
        }
        write!(f, "{:012x}", self.0 >> WORKER_BITS)?;
        match self.0 & ((1 << WORKER_BITS) - 1) {
            0 => Ok(()),
            worker => write!(f, ".{worker}"),
        }
    }
}

/// Bytes, which are read and written in one piece.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Bytes);

impl std::ops::Deref for Blob {
    type Target = Bytes;
    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// A handle inside a value that travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Handle {
    Object(ObjectId),
    /// `number`: what it is called in the process that has started it.
    Actor {
        actor: ObjectId,
        name: Option<Arc<str>>,
        number: u64,
    },
    Queue {
        actor: ObjectId,
        capacity: usize,
    },
}

impl Handle {
    pub(crate) fn object(&self) -> ObjectId {
        match self {
            Handle::Object(id) => *id,
            Handle::Actor { actor, .. } | Handle::Queue { actor, .. } => *actor,
        }
    }
}

/// A value that travels: its bytes, and the handles inside it, which the bytes name by their place
/// in this list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Parcel {
    pub(crate) handles: Vec<Handle>,
    /// Arrays stand behind the bytes.
    pub(crate) is_row: bool,
    /// Of an order they stand in front of it.
    #[serde(skip)]
    pub(crate) bytes: Bytes,
}

/// A value on its way out, whose handles are known to others.
pub(crate) struct Outgoing {
    pub(crate) handles: Vec<Handle>,
    pub(crate) packed: Packed,
}

/// What the bytes of a value are aligned to, if there is more in front of them than that there is nothing.
const ALIGNMENT: usize = 64;

impl Outgoing {
    /// In one piece:
    /// ```text
    /// 0: u32, the value             without handles, and without arrays beside it
    /// n: u32, is_row: u8, the list of handles in n bytes, zeros up to a multiple of 64, the value
    /// ```
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let head = self.head();
        to.write_all(&head)?;
        self.packed.write(to)
    }

    fn head(&self) -> Cow<'static, [u8]> {
        let is_row = self.packed.has_buffers();
        if self.handles.is_empty() && !is_row {
            return Cow::Borrowed(&[0; 4]);
        }
        let handles = encode(&self.handles);
        let mut head = (handles.len() as u32).to_le_bytes().to_vec();
        head.push(is_row.into());
        head.extend(handles);
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        head.into()
    }

    /// How long that is.
    pub(crate) fn len(&self) -> usize {
        self.head().len() + self.packed.written_len()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        match self.write(&mut out) {
            Ok(()) => out,
            Err(error) => unreachable!("memory takes all: {error}"),
        }
    }

    pub(crate) fn objects(&self) -> Vec<ObjectId> {
        self.handles.iter().map(Handle::object).collect()
    }

    /// As the value of an order of this driver's job, of which it is the beginning.
    pub(crate) fn into_order(self, driver: ProcessId) -> (Parcel, Beginning) {
        let (is_row, length) = (self.packed.has_buffers(), self.packed.written_len());
        let start = if is_row { ALIGNMENT } else { ORDER_HEAD };
        // With room for the rest of most orders.
        let mut out = Vec::with_capacity(start + length + 128 + 32 * self.handles.len());
        for number in [driver.0, start as u64, length as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.resize(start, 0);
        match self.packed.write(&mut out) {
            Ok(()) => (Parcel { handles: self.handles, is_row, bytes: Bytes::new() }, Beginning(out)),
            Err(error) => unreachable!("memory takes all: {error}"),
        }
    }
}

/// The beginning of an order: its value is written before the rest is known, and only once.
pub(crate) struct Beginning(Vec<u8>);

impl Beginning {
    /// Of an order whose value has neither handles nor arrays.
    pub(crate) fn new(driver: ProcessId, value: &[u8]) -> Beginning {
        let mut out = Vec::with_capacity(ORDER_HEAD + value.len() + 128);
        for number in [driver.0, ORDER_HEAD as u64, value.len() as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(value);
        Beginning(out)
    }
}

/// What stands in front of an order's value.
const ORDER_HEAD: usize = 24;

impl Parcel {
    /// What [`Outgoing::write`] wrote; the value's bytes are a part of these.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Parcel> {
        let broken = || Error::Unsupported { reason: "a value that arrived is cut off; send it again".into() };
        let length = bytes.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize).ok_or_else(broken)?;
        if length == 0 {
            return Ok(Parcel { handles: Vec::new(), is_row: false, bytes: bytes.slice(4..) });
        }
        let start = (5 + length).next_multiple_of(ALIGNMENT);
        let (is_row, list) = (bytes.get(4).ok_or_else(broken)?, bytes.get(5..5 + length).ok_or_else(broken)?);
        if bytes.len() < start {
            return Err(broken());
        }
        let handles = decode(list).ok_or_else(broken)?;
        Ok(Parcel { handles, is_row: *is_row != 0, bytes: bytes.slice(start..) })
    }

    /// The value itself, if there is nothing in front of it but that there is nothing.
    pub(crate) fn bare(bytes: &[u8]) -> Option<&[u8]> {
        bytes.strip_prefix(&[0; 4])
    }

    /// Whether there are handles in front of it.
    pub(crate) fn has_handles(bytes: &[u8]) -> bool {
        // Of the list the first byte is its length, unless that is above 127.
        Parcel::bare(bytes).is_none() && bytes.get(5) != Some(&0)
    }

    /// The objects inside.
    pub(crate) fn objects(&self) -> Vec<ObjectId> {
        self.handles.iter().map(Handle::object).collect()
    }
}

/// A function of a job's executable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) offset: i64,
    pub(crate) name_hash: u64,
}

/// What a task, a call, an actor or a stream is made of. Whose kind it is the function knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    // What is in a `Title`, first.
    pub(crate) function: Site,
    pub(crate) name: Option<Arc<str>>,
    /// Where it was submitted, and as what.
    pub(crate) location: Arc<str>,
    pub(crate) number: u64,
    /// Function and arguments.
    pub(crate) parcel: Parcel,
    /// Which of the parcel's handles are arguments that the task waits for, in the order of the task's `args`.
    pub(crate) dependencies: Vec<u32>,
    /// Only what is not the default.
    pub(crate) extras: Option<Box<Extras>>,
}

impl Order {
    /// In one piece, behind its value:
    /// ```text
    ///  0  the job's driver: nodes read no more than that, and the title; of an actor also whether it is isolated
    ///  8  where the value is: at 64 if arrays stand behind it, so that they are aligned, or else at 24
    /// 16  how long it is
    ///     the value
    ///     the order without it, its title first
    /// ```
    pub(crate) fn encode(&self, Beginning(mut out): Beginning) -> Blob {
        encode_to(self, &mut out);
        Blob(out.into())
    }

    /// Where the value of an encoded order is.
    fn value(bytes: &[u8]) -> Option<Range<usize>> {
        let number = |at: usize| bytes.get(at..)?.first_chunk().map(|number| u64::from_le_bytes(*number));
        let (start, length) = (usize::try_from(number(8)?).ok()?, usize::try_from(number(16)?).ok()?);
        Some(start..start.checked_add(length)?)
    }

    /// Whether an encoded order is of an actor that has a worker to itself.
    pub(crate) fn is_isolated(bytes: &Bytes) -> bool {
        let extras = Order::decode(bytes).and_then(|order| order.extras);
        extras.and_then(|extras| extras.actor).is_some_and(|actor| actor.is_isolated)
    }

    /// The driver of the job that an encoded order is of.
    pub(crate) fn driver(bytes: &[u8]) -> Option<ProcessId> {
        bytes.first_chunk().map(|driver| ProcessId(u64::from_le_bytes(*driver)))
    }

    pub(crate) fn decode(bytes: &Bytes) -> Option<Order> {
        let value = Order::value(bytes)?;
        let mut order: Order = decode(bytes.get(value.end..)?)?;
        order.parcel.bytes = bytes.slice(value);
        Some(order)
    }
}

/// What of an order is for people: its first fields.
#[derive(Debug, Deserialize)]
pub(crate) struct Title<'a> {
    pub(crate) function: Site,
    #[serde(borrow)]
    pub(crate) name: Option<&'a str>,
    pub(crate) location: &'a str,
    pub(crate) number: u64,
}

impl<'a> Title<'a> {
    /// Of an encoded order, of which it is a part.
    pub(crate) fn of(order: &'a [u8]) -> Option<Title<'a>> {
        let (title, _) = postcard::take_from_bytes(order.get(Order::value(order)?.end..)?).ok()?;
        Some(title)
    }
}

/// What few orders have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Extras {
    pub(crate) retries: u32,
    pub(crate) retry_errors: u32,
    pub(crate) is_err: Option<Site>,
    pub(crate) backoff: Duration,
    /// Of a call.
    pub(crate) group: Option<Arc<str>>,
    /// Of a stream: how far it may be ahead.
    pub(crate) buffer: usize,
    /// Of a task with a demand: thousandths of CPUs.
    pub(crate) cpu: Option<u32>,
    pub(crate) actor: Option<ActorExtras>,
}

/// Of an actor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ActorExtras {
    pub(crate) max_restarts: u32,
    pub(crate) checkpoint_every: Option<u32>,
    pub(crate) checkpoint: Option<Site>,
    pub(crate) unpack: Option<Site>,
    pub(crate) max_pending_calls: Option<usize>,
    pub(crate) max_concurrency: Option<usize>,
    pub(crate) groups: Vec<(Arc<str>, usize)>,
    /// It has a worker to itself.
    pub(crate) is_isolated: bool,
}

/// How something ended, with its result in the letter's payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum End {
    Value,
    /// It was written to the file that was reserved for it.
    Written,
    Failed(Arc<Error>),
    /// It was recalled, and had not started.
    GivenBack,
}

/// A program that uses the cluster, from the time it connects until it ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Its driver.
    pub(crate) driver: ProcessId,
    pub(crate) image: Image,
    /// Who has the executable: the driver, or the head for actors that outlive theirs.
    pub(crate) source: ProcessId,
    /// The executable's name, for people.
    pub(crate) name: String,
    pub(crate) observe: bool,
    pub(crate) pid: u32,
}

/// An actor that the head is to start and to own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Detach {
    /// Who wishes that, and the how manieth wish it is: it is fulfilled once.
    pub(crate) ticket: (ProcessId, u64),
    pub(crate) job: Job,
    pub(crate) name: String,
    pub(crate) type_name: String,
    pub(crate) demand: Demand,
    pub(crate) strategy: Strategy,
    /// Arguments that are to be there when it starts.
    pub(crate) args: Vec<ObjectId>,
    pub(crate) attempts: u32,
    /// Encoded; the head puts another job in front.
    pub(crate) order: Blob,
}

/// Who speaks, when a connection is new.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Of the cluster with this number, which stays the same when it is started again.
    Head {
        cluster: u64,
    },
    Node,
    Driver,
    /// Asks a question and goes.
    Guest,
}

/// What is sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Letter {
    /// To a state machine. `Pushed` and `Here` come with the object.
    Control(Message),

    /// First on each link.
    Hello {
        role: Role,
        address: String,
        version: String,
        host: String,
        platform: String,
    },
    /// The head to one that cannot take part, and why.
    Refused {
        reason: String,
    },
    /// To the head: where is it?
    WhereIs {
        station: ProcessId,
    },
    /// From the head; without an address there is no such station any more.
    Station {
        station: ProcessId,
        address: Option<String>,
    },
    /// To the head: they cannot talk to each other any more.
    Unreachable {
        station: ProcessId,
    },
    /// A node to the head: a worker of its own has ended.
    Died {
        process: ProcessId,
    },
    /// A station ends, in good order.
    Leaving,
    /// A node to its workers: there is a new head.
    HeadIsBack,
    /// An owner to a head that was started again: its actors have these names, and no others.
    Names {
        names: BTreeSet<String>,
    },

    /// A driver to the head.
    Register(Job),
    /// A node to the head, and the answer.
    WhichJob {
        driver: ProcessId,
    },
    JobIs {
        driver: ProcessId,
        job: Option<Job>,
    },
    /// A node to a driver: send me your executable; and the answer, with a part of it.
    /// The head answers for detached actors, and asks for them.
    WantImage {
        driver: ProcessId,
        offset: u64,
    },
    ImagePart {
        driver: ProcessId,
        offset: u64,
    },

    /// An owner to its node, with an object: keep it in the store.
    Store {
        object: ObjectId,
    },
    /// Node to worker: run this; the payload is the arguments that the task waited for.
    /// Those that `files` has are in files instead, each of so many bytes.
    Run {
        task: ObjectId,
        attempt: u32,
        body: Blob,
        devices: Vec<GpuLease>,
        files: Vec<Option<(PathBuf, u64)>>,
    },
    /// Owner to a node, and that to its worker: the payload is a pack, the first of which makes this object.
    Pack {
        first: ObjectId,
        kind: PackKind,
    },
    /// Worker to node, and that to the owner: what came in packs has ended well, and the payload is the results.
    Results {
        owner: ProcessId,
    },
    /// Node to worker: nobody wants it any more. A caller to its actor's node, for a call.
    Stop {
        task: ObjectId,
        attempt: u32,
    },
    /// Node to worker: give these back, unless they have started.
    Recall {
        tasks: Vec<(ObjectId, u32)>,
    },
    /// The runtime of a program ends. A node to its worker: what has not started fails. A worker to the driver: a task
    /// has asked for that.
    Close,
    /// A worker to its node, and that to the driver: what ran has ended.
    Closed,
    /// Worker to owner, before the result: these are inside it.
    Inside {
        task: ObjectId,
        attempt: u32,
        objects: Vec<ObjectId>,
    },
    /// Worker to node: a task or a call has ended, and the payload is the result.
    Ended {
        id: ObjectId,
        attempt: u32,
        is_call: bool,
        /// How long it took, in nanoseconds, or longer if that is all ones; of a task, as its worker says.
        took: u32,
        end: End,
    },
    /// A process on the node's machine to the node: a file for an object, please; and the answer.
    Reserve {
        object: ObjectId,
        attempt: u32,
        size: u64,
    },
    Reserved {
        object: ObjectId,
        attempt: u32,
        path: Result<PathBuf, String>,
    },
    /// An owner to its node: it has written the object to its file, or has not.
    Written {
        object: ObjectId,
        is_well: bool,
    },
    /// As `Pushed`, but the receiver is to fetch the object itself, from this address (see `bulk`).
    Pullable {
        object: ObjectId,
        size: u64,
        attempt: u32,
        address: String,
    },
    /// As `Here`: the object is in this file, of so many bytes.
    InFile {
        object: ObjectId,
        path: PathBuf,
        size: u64,
    },
    /// Owner to worker: it holds what was inside the result.
    Took {
        task: ObjectId,
        attempt: u32,
    },
    /// Worker to node: tasks that run wait for others, or go on; thousandths of CPUs.
    Lend {
        cpu: u32,
    },
    Reclaim {
        cpu: u32,
    },
    /// Worker to node: an actor that ran has ended; `restarts`: it is to start again, if it may, in another worker.
    ActorEnded {
        actor: ObjectId,
        attempt: u32,
        error: Arc<Error>,
        restarts: bool,
    },

    /// To an actor's owner, and the answer.
    WhereIsActor {
        actor: ObjectId,
    },
    ActorIs {
        actor: ObjectId,
        place: Option<ProcessId>,
        dead: Option<Arc<Error>>,
    },
    /// To the node that an actor is on, which hands it to the worker; or to its owner, who knows where it is.
    Kill {
        actor: ObjectId,
    },
    /// A caller to the node that an actor is on, which hands it to the worker.
    Call {
        call: ObjectId,
        actor: ObjectId,
        caller: u32,
        body: Blob,
    },

    /// A caller to the node that an actor is on, which hands it to the worker: how many calls wait there? It is an
    /// `Answer` to the question of this number.
    Pending {
        actor: ObjectId,
        number: u64,
    },

    /// The producer of a stream to the consumer, with the next item.
    Item {
        stream: ObjectId,
        number: u32,
    },
    /// The consumer of a stream to its producer: so many more items may come.
    Credit {
        stream: ObjectId,
        items: u32,
    },

    /// To an object's owner, or the node where it is made, which hands it to the worker: what does it wait for? And
    /// the answer (see `cycles`).
    WaitsOf {
        look: u64,
        asked: ProcessId,
        objects: Vec<ObjectId>,
    },
    Waits {
        look: u64,
        asked: ProcessId,
        objects: Vec<ObjectId>,
        entries: Vec<Entry>,
    },
    /// To the head: these waits would never end, unless this one of them fails. And from there, if it is to.
    Cycle {
        ticket: Ticket,
        waits: Vec<Ticket>,
        path: Vec<String>,
    },
    EndWait {
        number: u64,
        path: Vec<String>,
    },

    /// What a worker's code has printed, and who that was: to the driver.
    Printed {
        worker: String,
        lines: Vec<String>,
    },
    /// Worker to node, before the first task of a function: what that is called.
    Named {
        function: Site,
        name: String,
    },

    /// A question of a person's.
    Ask {
        number: u64,
        question: Question,
    },
    /// A question that takes the way of tasks, to come after them: to the asking process's node, which passes it on to
    /// the head.
    PassOn {
        number: u64,
        question: Question,
    },
    AskFor {
        asker: ProcessId,
        number: u64,
        question: Question,
    },
    /// The payload is the answer, as JSON.
    Answer {
        number: u64,
    },

    /// First on a pipe to a worker.
    Welcome {
        you: ProcessId,
        node: String,
        job: Job,
        cpus: u32,
        /// What runs there has a lease on GPUs.
        has_gpus: bool,
        /// Where it finds the memory that it shares with its node.
        arena: Option<String>,
    },
    /// The worker is ready, or says why it cannot be.
    Ready {
        refused: Option<String>,
    },
}

/// What a person may ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Question {
    Status,
    Nodes,
    Jobs,
    /// Of one program, those included that have ended and whose result somebody holds, or what all are doing.
    Tasks {
        job: Option<ProcessId>,
    },
    Actors {
        job: Option<ProcessId>,
    },
    Objects,
    /// What workers of a program hold of what was made there.
    Held {
        job: ProcessId,
    },
    /// Figures of a program.
    Stats {
        job: ProcessId,
    },
    Memory,
    PlacementGroups,
    /// What workers have printed, on the node of this name or on all, after the line of this number on each.
    Lines {
        node: Option<String>,
        after: BTreeMap<String, u64>,
    },
    /// What ran when, of one program or of all.
    Runs {
        job: Option<ProcessId>,
    },
    /// End the cluster.
    Stop,
    /// Why a task has not ended.
    Explain {
        task: ObjectId,
    },
    /// The actor of this name.
    Named {
        name: String,
    },
    /// Gives the asking process's actor a name; the answer says whether it was free, and if not, whose it is.
    Name {
        name: String,
        actor: ObjectId,
        number: u64,
        type_name: String,
    },
    /// Starts an actor that outlives its program; the answer says who it is, or that its name is taken.
    Detach(Box<Detach>),
    /// Takes it away again.
    Unname {
        name: String,
        actor: ObjectId,
    },
}

/// A letter on its way.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) from: ProcessId,
    pub(crate) to: ProcessId,
    pub(crate) letter: Letter,
    pub(crate) payload: Vec<Bytes>,
}

impl Envelope {
    /// Appends all but the payloads.
    pub(crate) fn write_header(&self, out: &mut Vec<u8>) {
        encode_to(&(self.from, self.to, &self.letter), out);
    }

    pub(crate) fn parse(header: &[u8], payload: Vec<Bytes>) -> Option<Envelope> {
        let (from, to, letter) = decode(header)?;
        Some(Envelope { from, to, letter, payload })
    }
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_to(value, &mut out);
    out
}

pub(crate) fn encode_to<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    match postcard::to_io(value, out) {
        Ok(_) => {}
        Err(error) => unreachable!("it is made of plain types: {error}"),
    }
}

pub(crate) fn decode<T: de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}

/// What processes have alike that can open each other's files: the machine, since it was started, the user, and
/// what they see of the file system.
pub(crate) fn host() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mounts = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let user = std::fs::metadata("/proc/self").map(|about| std::os::unix::fs::MetadataExt::uid(&about)).unwrap_or(0);
    format!("{} {user} {}", boot.trim(), mounts.display())
}

/// A task, an actor or an object, in short: its owner and its number there.
pub(crate) fn shown(id: ObjectId) -> String {
    format!("{}/{}", id.owner, id.number)
}

/// An answer, which may be long, is sent in parts.
pub(crate) fn answer(number: u64, answer: &serde_json::Value) -> (Letter, Vec<Bytes>) {
    (Letter::Answer { number }, vec![answer.to_string().into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_title_of_an_order_is_read_without_the_rest() {
        let function = Site { offset: -7, name_hash: u64::MAX };
        let handles = vec![Handle::Object(ObjectId { owner: HEAD, number: 1 })];
        let extras = Some(Box::new(Extras { retries: 3, ..Extras::default() }));
        for name in [None, Some(Arc::<str>::from("sum"))] {
            let packed = crate::serial::pack(&"x".repeat(10_000), "a value").expect("it can be packed");
            let outgoing = Outgoing { handles: handles.clone(), packed };
            let (parcel, beginning) = outgoing.into_order(ProcessId(9));
            let order = Order {
                function,
                parcel,
                dependencies: vec![0],
                name: name.clone(),
                location: "src/main.rs:1:2".into(),
                number: 5,
                extras: extras.clone(),
            };
            let encoded = order.encode(beginning);
            assert_eq!(Order::driver(&encoded), Some(ProcessId(9)));
            let title = Title::of(&encoded).expect("a title");
            assert_eq!((title.function, title.name, title.number), (function, name.as_deref(), 5));
            assert_eq!(title.location, "src/main.rs:1:2");
            let whole = Order::decode(&encoded).expect("an order");
            assert_eq!((whole.function, whole.name, whole.number), (function, name, 5));
            assert_eq!((&*whole.location, whole.dependencies), ("src/main.rs:1:2", vec![0]));
            assert_eq!((whole.parcel.handles, whole.parcel.bytes.len()), (handles.clone(), 10_003));
            assert_eq!(whole.extras, extras);
        }
        assert!(Title::of(&[1, 2, 3]).is_none());
    }

    /// An order with so many numbers for its argument.
    fn order(count: usize) -> Bytes {
        let packed = crate::serial::pack(&vec![7u64; count], "a value").expect("it can be packed");
        let (parcel, beginning) = Outgoing { handles: Vec::new(), packed }.into_order(ProcessId(9));
        let order = Order {
            function: Site { offset: 1, name_hash: 2 },
            parcel,
            dependencies: Vec::new(),
            name: None,
            location: "a place".into(),
            number: 3,
            extras: None,
        };
        order.encode(beginning).0
    }

    #[test]
    fn an_order_has_its_value_where_it_was_written() {
        for (count, is_row) in [(0, false), (3, false), (1_000, true)] {
            let encoded = order(count);
            let order = Order::decode(&encoded).expect("an order");
            let Parcel { handles, is_row: found, bytes } = order.parcel;
            assert_eq!((handles, found, order.number), (Vec::new(), is_row, 3));
            let inside = encoded.as_ptr_range();
            assert!(inside.contains(&bytes.as_ptr()), "it was copied");
            assert!(!is_row || (bytes.as_ptr().addr() - inside.start.addr()).is_multiple_of(ALIGNMENT));
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_orders_are_refused_or_read(cut in 0..9_000_usize, index in 0..200_usize, byte: u8, noise: Vec<u8>) {
            let encoded = order(1_000);
            let cut = cut.min(encoded.len() - 1);
            assert!(Order::decode(&encoded.slice(..cut)).is_none());
            let _ = Title::of(&encoded[..cut]); // which needs less of it
            let mut changed = encoded.to_vec();
            let length = changed.len();
            changed[if index < 100 { index } else { length - index + 99 }] = byte;
            // Anything but a panic.
            for bytes in [changed, noise, [&u64::MAX.to_le_bytes()[..]; 4].concat()] {
                let _ = Title::of(&bytes);
                let _ = Order::decode(&bytes.into());
            }
        }
    }
}
