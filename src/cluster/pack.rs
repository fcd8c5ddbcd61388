//! Packs: small tasks of one function that a program submits in a row go to a node, wait there and go on to their
//! worker as one piece, and many of their results come back as one. Calls of one actor's method do the same.
//!
//! A pack is made where it leaves (see [`Carrier`]): as long as the last letter to a node has not left, the next task is
//! added to it. So what is submitted alone leaves at once, and alone, and what comes faster than it leaves comes together.
//!
//! ```text
//! pack    = driver: u64, offset: i64, hash of the name: u64, length of the place: u16, place, tasks
//! task    = number in the process that submits it: u64, length: u32, the value of its arguments
//! results = number of the object: u64, nanoseconds: u32, what is told: u8, length: u32, value, ...      (all little-endian)
//! ```
//! Of a value that stays where it is there is only its length ([`Told`]). The objects that the tasks make have numbers in a row.

use super::{
    arena::Place,
    protocol::{ObjectId, ProcessId, TaskSpec},
    wire::{Beginning, Blob, Envelope, Order, Parcel, Site},
};
use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// So many tasks are a pack, at most.
pub(crate) const MOST: u32 = 128;
/// Longer values travel alone.
pub(crate) const LONGEST: usize = 512;

/// What the tasks or calls of a pack have alike.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Common {
    pub(crate) driver: ProcessId,
    pub(crate) function: Site,
    /// Where they were submitted.
    pub(crate) location: Arc<str>,
}

/// What is different.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    pub(crate) number: u64,
    pub(crate) value: Bytes,
}

impl Common {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.driver.0.to_le_bytes());
        out.extend(self.function.offset.to_le_bytes());
        out.extend(self.function.name_hash.to_le_bytes());
        out.extend((self.location.len() as u16).to_le_bytes());
        out.extend(self.location.as_bytes());
    }

    /// A member, as it would be if it travelled alone.
    pub(crate) fn alone(&self, member: Member) -> Order {
        Order {
            function: self.function,
            name: None,
            location: self.location.clone(),
            number: member.number,
            parcel: Parcel { bytes: member.value, ..Parcel::default() },
            dependencies: Vec::new(),
            extras: None,
        }
    }

    /// The same, encoded.
    pub(crate) fn order(&self, member: &Member) -> Blob {
        self.alone(member.clone()).encode(Beginning::new(self.driver, &member.value))
    }
}

/// One more task, at the end of a pack, or of nothing.
pub(crate) fn write(common: &Common, number: u64, value: &[u8], is_first: bool, out: &mut Vec<u8>) {
    if is_first {
        common.write(out);
    }
    out.extend(number.to_le_bytes());
    out.extend((value.len() as u32).to_le_bytes());
    out.extend(value);
}

/// What is in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PackKind {
    /// To be kept, as `Granted`, or else passed on, as `Submit`.
    Tasks { is_granted: bool },
    /// Calls of one caller to one actor, in their order.
    Calls { actor: ObjectId, caller: u32 },
}

/// A task or a call on its way into a pack.
pub(crate) struct Packing<'a> {
    pub(crate) to: ProcessId,
    pub(crate) kind: PackKind,
    /// What it makes.
    pub(crate) object: ObjectId,
    pub(crate) common: &'a Common,
    pub(crate) number: u64,
    pub(crate) value: &'a [u8],
    /// It belongs behind the one that was packed last.
    pub(crate) goes_on: bool,
}

/// How what a process has to say leaves it. Nothing here waits.
pub(crate) trait Carrier: Send + Sync {
    fn post(&self, envelope: Envelope);

    /// Whether tasks can leave in packs.
    fn has_packs(&self) -> bool {
        false
    }

    fn pack(&self, _task: &Packing<'_>) {}

    /// The result of what came in a pack.
    fn result(&self, _object: ObjectId, _value: &[u8]) {}
}

/// A pack that has arrived.
pub(crate) struct Pack {
    pub(crate) common: Common,
    pub(crate) members: Vec<Member>,
}

impl Pack {
    /// How many tasks an encoded pack has.
    pub(crate) fn count(bytes: &Bytes) -> usize {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let place = bytes.get(24..).and_then(|rest| rest.first_chunk()).map_or(0, |length| u16::from_le_bytes(*length));
        let (mut at, mut count) = (26 + usize::from(place), 0);
        while let Some(length) = word(at + 8) {
            at += 12 + length as usize;
            count += 1;
        }
        count
    }

    pub(crate) fn read(bytes: &Bytes) -> Option<Pack> {
        let mut rest = bytes.clone();
        let driver = ProcessId(rest.try_get_u64_le().ok()?);
        let (offset, name_hash) = (rest.try_get_i64_le().ok()?, rest.try_get_u64_le().ok()?);
        let length = usize::from(rest.try_get_u16_le().ok()?);
        let location = std::str::from_utf8(rest.get(..length)?).ok()?.into();
        rest.advance(length);
        let mut members = Vec::new();
        while !rest.is_empty() {
            let number = rest.try_get_u64_le().ok()?;
            let length = rest.try_get_u32_le().ok()? as usize;
            let value = (length <= rest.len()).then(|| rest.split_to(length))?;
            members.push(Member { number, value });
        }
        Some(Pack { common: Common { driver, function: Site { offset, name_hash }, location }, members })
    }
}

impl TaskSpec {
    /// Whether it is a pack with this task in it.
    pub(crate) fn contains(&self, object: ObjectId) -> bool {
        let (first, count) = (self.id.number, u64::from(self.count));
        self.id.owner == object.owner && (first..first + count).contains(&object.number)
    }

    /// The objects that its tasks make.
    pub(crate) fn objects(&self) -> impl Iterator<Item = ObjectId> + use<> {
        let (owner, first) = (self.id.owner, self.id.number);
        (first..first + u64::from(self.count)).map(move |number| ObjectId { owner, number })
    }

    /// Each task as one that travels alone.
    pub(crate) fn open(self) -> Vec<TaskSpec> {
        if self.count == 1 { vec![self] } else { self.unpack() }
    }

    /// As packs of so many tasks at most, of which the last may have fewer; what cannot be read is nothing.
    pub(crate) fn split(self, most: u32) -> Vec<TaskSpec> {
        if most <= 1 {
            return self.open();
        }
        let Some(Pack { common, members }) = Pack::read(&self.body) else { return Vec::new() };
        let firsts = (self.id.number..).step_by(most as usize);
        let parts = members.chunks(most as usize).zip(firsts).map(|(members, number)| {
            let mut body = Vec::new();
            for (at, member) in members.iter().enumerate() {
                write(&common, member.number, &member.value, at == 0, &mut body);
            }
            let (id, count, body) = (ObjectId { number, ..self.id }, members.len() as u32, Blob(body.into()));
            let (demand, strategy) = (self.demand.clone(), self.strategy.clone());
            TaskSpec { id, count, demand, strategy, args: Vec::new(), body, ..self }
        });
        // One that is alone is no pack.
        parts.flat_map(|spec| if spec.count == 1 { spec.unpack() } else { vec![spec] }).collect()
    }

    /// The tasks of a pack, also of one of one; what cannot be read has none.
    pub(crate) fn unpack(self) -> Vec<TaskSpec> {
        let Some(Pack { common, members }) = Pack::read(&self.body) else { return Vec::new() };
        self.objects().zip(&members).map(|(id, member)| self.alone(id, common.order(member))).collect()
    }

    /// One of the tasks of a pack.
    pub(crate) fn member(&self, object: ObjectId) -> Option<TaskSpec> {
        let Pack { common, members } = Pack::read(&self.body)?;
        let member = members.get(object.number.checked_sub(self.id.number)? as usize)?;
        Some(self.alone(object, common.order(member)))
    }

    fn alone(&self, id: ObjectId, body: Blob) -> TaskSpec {
        let (demand, strategy) = (self.demand.clone(), self.strategy.clone());
        TaskSpec { id, count: 1, demand, strategy, args: Vec::new(), body, ..*self }
    }
}

/// What is told of a value that a task has made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// All of it.
    Value(Bytes),
    /// The same, and a copy stays with the node.
    Copied(Bytes),
    /// It stays with the node, and has so many bytes.
    Stored(u32),
    /// Worker to node: it is in the memory that they share.
    Apart(Place),
}

impl Told {
    /// At the end of others.
    pub(crate) fn write(&self, object: u64, took: u32, out: &mut Vec<u8>) {
        let (what, length, rest) = match self {
            Told::Value(value) => (0, value.len() as u32, &value[..]),
            Told::Copied(value) => (1, value.len() as u32, &value[..]),
            Told::Stored(size) => (2, *size, &[][..]),
            Told::Apart(place) => (3, place.bytes, &place.block.to_le_bytes()[..]),
        };
        write_told(object, took, (what, length), rest, out);
    }

    /// The next: the number of the object, how long its task took in nanoseconds, and what is told.
    pub(crate) fn next(rest: &mut Bytes) -> Option<(u64, u32, Told)> {
        let object = rest.try_get_u64_le().ok()?;
        let took = rest.try_get_u32_le().ok()?;
        let what = rest.try_get_u8().ok()?;
        let length = rest.try_get_u32_le().ok()?;
        let value = |rest: &mut Bytes| (length as usize <= rest.len()).then(|| rest.split_to(length as usize));
        let told = match what {
            0 => Told::Value(value(rest)?),
            1 => Told::Copied(value(rest)?),
            2 => Told::Stored(length),
            3 => Told::Apart(Place { block: rest.try_get_u32_le().ok()?, bytes: length }),
            _ => return None,
        };
        Some((object, took, told))
    }
}

/// A value, at the end of others.
pub(crate) fn write_value(object: u64, took: u32, value: &[u8], out: &mut Vec<u8>) {
    write_told(object, took, (0, value.len() as u32), value, out);
}

fn write_told(object: u64, took: u32, (what, length): (u8, u32), rest: &[u8], out: &mut Vec<u8>) {
    out.extend(object.to_le_bytes());
    out.extend(took.to_le_bytes());
    out.push(what);
    out.extend(length.to_le_bytes());
    out.extend(rest);
}

/// Results on their way through a node, to be told as they came or otherwise.
pub(crate) struct Telling {
    came: Bytes,
    /// How much of that has been gone through, and from where on it is to be told as it came.
    at: usize,
    from: usize,
    told: Vec<u8>,
    /// Each a letter's.
    full: Vec<Bytes>,
}

impl Telling {
    /// No more bytes go in one letter, but for the last result.
    const LETTER: usize = 256 << 10;

    pub(crate) fn new(came: Bytes) -> Telling {
        Telling { came, at: 0, from: 0, told: Vec::new(), full: Vec::new() }
    }

    /// The next is told so, or as it came; so many bytes are behind it.
    pub(crate) fn next(&mut self, instead: Option<(u64, u32, Told)>, left: usize) {
        let end = self.came.len() - left;
        if let Some((object, took, told)) = instead {
            self.told.extend_from_slice(&self.came[self.from..self.at]);
            told.write(object, took, &mut self.told);
            self.from = end;
            if self.told.len() > Self::LETTER {
                self.full.push(std::mem::take(&mut self.told).into());
            }
        }
        self.at = end;
    }

    /// What is to be told.
    pub(crate) fn end(mut self) -> Vec<Bytes> {
        if self.from == 0 {
            self.full.push(self.came.slice(..self.at)); // all as it came
        } else {
            self.told.extend_from_slice(&self.came[self.from..self.at]);
            self.full.push(self.told.into());
        }
        self.full.retain(|results| !results.is_empty());
        self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{capacity::Demand, protocol::Strategy, wire::Title};

    fn common() -> Common {
        let function = Site { offset: -9, name_hash: u64::MAX };
        Common { driver: ProcessId(3), function, location: "src/main.rs:1:2".into() }
    }

    fn pack(values: &[&[u8]]) -> Bytes {
        let mut out = Vec::new();
        for (at, value) in values.iter().enumerate() {
            write(&common(), 100 + at as u64, value, at == 0, &mut out);
        }
        out.into()
    }

    #[test]
    fn a_pack_comes_apart_into_tasks_that_travel_alone() {
        let body = Blob(pack(&[b"one", b"", b"three"]));
        let id = ObjectId { owner: ProcessId(1 << 16), number: 7 };
        let (demand, strategy) = (Arc::new(Demand::cpus(1_000)), Strategy::Default);
        let spec =
            TaskSpec { id, attempt: 1, hop: 0, count: 3, demand, strategy, args: Vec::new(), stays: false, body };
        assert!(spec.contains(ObjectId { number: 9, ..id }) && !spec.contains(ObjectId { number: 10, ..id }));
        assert_eq!(Pack::count(&spec.body), 3);
        let last = spec.member(ObjectId { number: 9, ..id }).and_then(|task| Order::decode(&task.body));
        assert_eq!(last.map(|order| order.number), Some(102));
        assert!(spec.member(ObjectId { number: 10, ..id }).is_none());
        let tasks = spec.open();
        assert_eq!(tasks.iter().map(|task| task.id.number).collect::<Vec<_>>(), [7, 8, 9]);
        let orders: Vec<_> = tasks.iter().map(|task| Order::decode(&task.body).expect("an order")).collect();
        assert_eq!(orders.iter().map(|order| order.number).collect::<Vec<_>>(), [100, 101, 102]);
        assert_eq!(
            orders.iter().map(|order| &order.parcel.bytes[..]).collect::<Vec<_>>(),
            [&b"one"[..], b"", b"three"]
        );
        assert!(orders.iter().all(|order| order.function == common().function));
        let titles = tasks.iter().map(|task| Title::of(&task.body).expect("a title").location);
        assert!(titles.into_iter().all(|location| location == "src/main.rs:1:2"));
        assert!(tasks.iter().all(|task| task.count == 1 && Order::driver(&task.body) == Some(ProcessId(3))));
    }

    #[test]
    fn what_is_told_comes_back() {
        let told = [
            Told::Value(Bytes::from_static(b"one")),
            Told::Stored(5_000),
            Told::Apart(Place { block: 70_000, bytes: 9_000 }),
            Told::Copied(Bytes::new()),
        ];
        let mut bytes = Vec::new();
        told.iter().zip(1..).for_each(|(told, number)| told.write(number, 10 * number as u32, &mut bytes));
        write_value(5, 50, b"five", &mut bytes);
        let mut rest = Bytes::from(bytes);
        for (told, number) in told.into_iter().chain([Told::Value(Bytes::from_static(b"five"))]).zip(1..) {
            assert_eq!(Told::next(&mut rest), Some((number, 10 * number as u32, told)));
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn results_are_told_as_they_came_or_otherwise() {
        fn all(results: &[Bytes]) -> Vec<(u64, u32, Told)> {
            let mut results = results.iter().cloned();
            let each = results.by_ref().flat_map(|mut rest| std::iter::from_fn(move || Told::next(&mut rest)));
            each.collect()
        }
        let value = Told::Value(Bytes::from_static(b"value"));
        let mut came = Vec::new();
        (0..6).for_each(|number| value.write(number, 1, &mut came));
        let came = Bytes::from(came);
        let long = Told::Copied(vec![1; Telling::LETTER].into());
        for (instead, letters) in
            [(0, 1), (0b10_1010, 1), (0b01_0101, 1), (0b11_1111, 1), (0b1 << 6, 2), (0b101 << 6, 3)]
        {
            let (mut rest, mut telling, mut expected) = (came.clone(), Telling::new(came.clone()), Vec::new());
            while let Some((number, took, told)) = Told::next(&mut rest) {
                let told = match () {
                    () if instead >> number & 1 > 0 => Some((number, took, Told::Stored(9))),
                    () if instead >> (number + 6) & 1 > 0 => Some((number, took, long.clone())),
                    () => {
                        expected.push((number, took, told));
                        None
                    }
                };
                expected.extend(told.clone());
                telling.next(told, rest.len());
            }
            let results = telling.end();
            assert_eq!((all(&results), results.len()), (expected, letters), "{instead:b}");
        }
        assert!(Telling::new(Bytes::new()).end().is_empty());
        // What cannot be read is not passed on.
        let mut telling = Telling::new([&came[..], &[1, 2]].concat().into());
        telling.next(None, came.len() + 2 - came.len() / 6);
        assert_eq!(telling.end(), [came.slice(..came.len() / 6)]);
    }

    #[test]
    fn a_pack_is_split_into_packs_of_the_same_tasks() {
        let values: Vec<Vec<u8>> = (0..10).map(|number| vec![number; number.into()]).collect();
        let body = Blob(pack(&values.iter().map(|value| &value[..]).collect::<Vec<_>>()));
        let id = ObjectId { owner: ProcessId(1 << 16), number: 7 };
        let (demand, strategy) = (Arc::new(Demand::cpus(1_000)), Strategy::Default);
        let spec =
            TaskSpec { id, attempt: 1, hop: 2, count: 10, demand, strategy, args: Vec::new(), stays: false, body };
        let whole = spec.clone().open();
        for (most, counts) in [(0, vec![1; 10]), (3, vec![3, 3, 3, 1]), (5, vec![5, 5]), (128, vec![10])] {
            let parts = spec.clone().split(most);
            assert_eq!(parts.iter().map(|part| part.count).collect::<Vec<_>>(), counts);
            let tasks: Vec<_> = parts.into_iter().flat_map(TaskSpec::open).collect();
            assert_eq!(format!("{tasks:?}"), format!("{whole:?}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_packs_and_results_are_refused_or_read(cut in 0..200_usize, at in 0..200_usize, byte: u8, noise: Vec<u8>) {
            let whole = pack(&[b"one", b"two", b"three"]);
            let cut = whole.slice(..cut.min(whole.len()));
            let mut changed = whole.to_vec();
            let at = at.min(changed.len() - 1);
            changed[at] = byte;
            for bytes in [cut, changed.into(), noise.into()] {
                // Anything but a panic.
                let _ = (Pack::read(&bytes), Pack::count(&bytes));
                let mut rest = bytes;
                while Told::next(&mut rest).is_some() {}
            }
        }
    }
}
