//! Where the bytes of buffers are: on devices, in page-locked blocks of the host, on disk.
//!
//! An [`Object`] is the bytes of one buffer. It has at most one copy on each device and at most one on the host, and all
//! are the same bytes: who writes takes the others away first. A copy on a device knows the events of its last write and,
//! since then, of the last read on each stream. Whoever uses it makes its stream wait for those that it must come after;
//! the host waits for none of them.
//!
//! A [`Store`] is the memory of one device: it counts what the objects have there, and when that is more than its budget,
//! or when CUDA has no more, it moves to the host what was used longest ago and nobody holds. From page-locked memory
//! that goes on to disk when the host's budget is used up.
//!
//! Locks, outermost first: [`Store::room`] (one thread at a time makes room on a device), [`SHELF`] (the same for the
//! host), an object's `state`. The last is held while work is enqueued, never while somebody waits for a device or a
//! disk: who moves an object says so in its state (`moving`) and lets go of it. Others wait for that, except who looks
//! for something to move away and takes the next one instead. So nobody who holds `room` or `SHELF` waits for a move,
//! whoever moves waits for no other move, and all waits end. The registries of objects are locked last, and hold nothing
//! that could be dropped under them.
//!
//! Guards may be leaked, so nothing here relies on their end for safety: a copy that has guards when it is freed, or
//! a writer when it is used, makes the host wait for all of the device's work first.
#![allow(unsafe_code)]

use super::{
    GpuError,
    device::{Device, Event, Stream},
    disk::Spilled,
    memory::{self, Memory, Span},
    pinned::{self, Block},
};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZero,
    panic::resume_unwind,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

/// Copies between ordinary memory of the host and a device go through blocks of so many bytes at most.
const STAGE: usize = 4 << 20;

/// Blocks on the way at once, for each such copy.
const STAGES: usize = 3;

/// Of a larger copy between ordinary memory and a device threads take parts of so many bytes: one thread alone copies
/// slower than the device does.
const PART: usize = 16 << 20;

/// How many, at most.
const THREADS: usize = 8;

/// Counts uses of objects, and gives numbers.
static CLOCK: AtomicU64 = AtomicU64::new(1);

/// One store for each device that was used.
static STORES: Mutex<Vec<Arc<Store>>> = Mutex::new(Vec::new());

/// Held by the thread that moves page-locked blocks to disk.
static SHELF: Mutex<()> = Mutex::new(());

/// The objects that have a page-locked block, by the block's number.
static SHELVED: Registry = Registry(Mutex::new(BTreeMap::new()));

/// How many went to disk.
static TO_DISK: AtomicU64 = AtomicU64::new(0);

/// Buffers in the memory of a device, and what became of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BufferStats {
    /// Bytes that buffers may have on the device.
    pub budget: u64,
    /// Bytes that they have there.
    pub used: u64,
    /// How often one was moved from the device to the host since the process started.
    pub spilled: u64,
    /// How often one was brought to the device from the host or from disk.
    pub restored: u64,
    /// How often one was written to disk, from whatever device.
    pub to_disk: u64,
    /// Page-locked bytes on the host, for all devices.
    pub pinned: u64,
}

/// The memory of one device.
#[derive(Debug)]
pub(super) struct Store {
    device: Arc<Device>,
    budget: AtomicU64,
    used: AtomicU64,
    spilled: AtomicU64,
    restored: AtomicU64,
    /// Held by the thread that allocates.
    room: Mutex<()>,
    /// The objects with a copy here, by their number.
    objects: Registry,
    /// For copies to the host.
    copies: Stream,
    /// For freeing what several streams have read: it waits for them, and no other work stands behind it.
    frees: Stream,
}

/// Objects that may have to go, by when they were used last.
#[derive(Debug, Default)]
struct Registry(Mutex<BTreeMap<u64, Entry>>);

/// When it was used, and what it is.
type Entry = (Arc<AtomicU64>, Weak<Object>);

/// The bytes of one buffer.
#[derive(Debug)]
pub(super) struct Object {
    number: u64,
    bytes: usize,
    /// The clock at its last use.
    used: Arc<AtomicU64>,
    state: Mutex<State>,
    /// A move is over.
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    copies: Vec<Copy>,
    host: Option<Host>,
    /// Somebody adds a copy or takes one away. Meanwhile those that are here can be used.
    moving: bool,
}

/// The bytes on the host.
#[derive(Clone, Debug)]
enum Host {
    /// In ordinary memory: where they came from.
    Plain(Bytes),
    Pinned(Arc<Pinned>),
    Disk(Arc<Spilled>),
}

/// The bytes in a page-locked block.
#[derive(Debug)]
struct Pinned {
    number: u64,
    block: Block,
    /// The copy to the block.
    written: Event,
}

/// The bytes on one device.
#[derive(Debug)]
struct Copy {
    store: Arc<Store>,
    memory: Memory,
    /// The object's.
    number: u64,
    /// Who uses it now. Meanwhile it stays where it is.
    guards: usize,
    /// One of them writes, or the bytes are not there yet.
    writing: bool,
    accesses: Accesses,
}

/// The last points in time at which streams touch a copy.
#[derive(Debug, Default)]
struct Accesses {
    write: Option<(Stream, Event)>,
    /// Since that write. One for each stream: a later one covers the earlier.
    reads: Vec<(Stream, Event)>,
}

impl Accesses {
    /// What a writer, or who frees it, comes after. Each read came after the write.
    fn before_write(&self) -> impl Iterator<Item = &(Stream, Event)> {
        self.write.iter().filter(|_| self.reads.is_empty()).chain(&self.reads)
    }

    fn read(&mut self, stream: &Stream, event: Event) {
        self.reads.retain(|(earlier, _)| earlier.id() != stream.id());
        self.reads.push((stream.clone(), event));
    }

    fn written(&mut self, stream: &Stream, event: Event) {
        self.reads.clear();
        self.write = Some((stream.clone(), event));
    }
}

/// Makes a writer's stream wait for an access. Another device that is lost does not read any more, and what it would have
/// read into is lost as well.
fn come_after(stream: &Stream, access: &Event) -> Result<(), GpuError> {
    stream.wait(access).or_else(|error| {
        let elsewhere = !Arc::ptr_eq(access.device(), stream.device());
        if elsewhere && access.device().check().is_err() { Ok(()) } else { Err(error) }
    })
}

impl Registry {
    fn insert(&self, number: u64, object: &Arc<Object>) {
        let entry = (object.used.clone(), Arc::downgrade(object));
        self.0.lock().insert(number, entry);
    }

    fn remove(&self, number: u64) {
        self.0.lock().remove(&number);
    }

    /// The one that was used longest ago last.
    fn by_age(&self) -> Vec<(u64, Weak<Object>)> {
        let objects = self.0.lock();
        let mut entries: Vec<_> = objects.values().map(|(used, object)| (used.load(Relaxed), object.clone())).collect();
        drop(objects);
        entries.sort_unstable_by_key(|(used, _)| std::cmp::Reverse(*used));
        entries
    }
}

impl Store {
    pub(super) fn of(device: &Arc<Device>) -> Result<Arc<Self>, GpuError> {
        let mut stores = STORES.lock();
        if let Some(store) = stores.iter().find(|store| Arc::ptr_eq(&store.device, device)) {
            return Ok(store.clone());
        }
        device.bind()?;
        let free = device.free_bytes();
        let store = Arc::new(Store {
            device: device.clone(),
            // The rest is for kernels, libraries and the driver.
            budget: AtomicU64::new(free - free / 32),
            used: AtomicU64::new(0),
            spilled: AtomicU64::new(0),
            restored: AtomicU64::new(0),
            room: Mutex::new(()),
            objects: Registry::default(),
            copies: device.stream()?,
            frees: device.stream()?,
        });
        stores.push(store.clone());
        Ok(store)
    }

    pub(super) fn stats(&self) -> BufferStats {
        BufferStats {
            budget: self.budget.load(Relaxed),
            used: self.used.load(Relaxed),
            spilled: self.spilled.load(Relaxed),
            restored: self.restored.load(Relaxed),
            to_disk: TO_DISK.load(Relaxed),
            pinned: pinned::locked(),
        }
    }

    pub(super) fn set_budget(&self, bytes: u64) {
        self.budget.store(bytes, Relaxed);
    }

    /// Memory in the order of `stream`, without contents. What nobody holds makes room for it.
    fn allocate(self: &Arc<Self>, stream: &Stream, number: u64, bytes: usize) -> Result<Copy, GpuError> {
        let _room = self.room.lock();
        let (mut victims, mut leaving, mut waited) = (None, false, false);
        let (device, requested) = (self.device.info().index, bytes as u64);
        loop {
            let budget = self.budget.load(Relaxed);
            let mut free = budget.saturating_sub(self.used.load(Relaxed));
            let within = requested <= free;
            if requested > budget {
                return Err(GpuError::OutOfMemory { device, requested, free });
            }
            if within {
                match Memory::allocate(stream, bytes) {
                    Ok(memory) => {
                        self.used.fetch_add(requested, Relaxed);
                        let (store, accesses) = (self.clone(), Accesses::default());
                        return Ok(Copy { store, memory, number, guards: 0, writing: true, accesses });
                    }
                    Err(GpuError::OutOfMemory { .. }) => free = self.device.free_bytes(),
                    Err(error) => return Err(error),
                }
                // What was moved away is free in the order of these streams; perhaps that is enough.
                if std::mem::take(&mut leaving) {
                    self.copies.synchronize()?;
                    self.frees.synchronize()?;
                    continue;
                }
            }
            if self.evict_one(victims.get_or_insert_with(|| self.objects.by_age()))? {
                leaving = true;
                continue;
            }
            // Nor may what others have freed be back yet.
            if !within || waited {
                return Err(GpuError::OutOfMemory { device, requested, free });
            }
            memory::synchronize(&self.device)?;
            waited = true;
        }
    }

    fn evict_one(&self, victims: &mut Vec<(u64, Weak<Object>)>) -> Result<bool, GpuError> {
        while let Some((_, victim)) = victims.pop() {
            if let Some(object) = victim.upgrade()
                && self.evict(&object)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes an object's copy from the device. `false`: somebody uses it.
    fn evict(&self, object: &Arc<Object>) -> Result<bool, GpuError> {
        let mut state = object.state.lock();
        let place = state.copies.iter().position(|copy| copy.is_on(&self.device) && copy.guards == 0 && !copy.writing);
        let (false, Some(place)) = (state.moving, place) else { return Ok(false) };
        let mut copy = state.copies.swap_remove(place);
        let elsewhere = state.host.is_some() || state.copies.iter().any(|copy| copy.store.device.check().is_ok());
        let _moving = Moving::begin(object, state);
        if !elsewhere {
            match copy.spill(object) {
                Ok(host) => object.state.lock().host = Some(host),
                Err(error) => {
                    object.state.lock().copies.push(copy);
                    return Err(error);
                }
            }
            self.spilled.fetch_add(1, Relaxed);
        }
        drop(copy);
        Ok(true)
    }
}

impl Copy {
    fn is_on(&self, device: &Arc<Device>) -> bool {
        Arc::ptr_eq(&self.store.device, device)
    }

    /// If the guard of a writer was leaked.
    fn settle(&mut self) -> Result<(), GpuError> {
        if self.writing {
            memory::synchronize(&self.store.device)?;
            self.writing = false;
        }
        Ok(())
    }

    /// `stream` has been given what writes it.
    fn filled(&mut self, stream: &Stream) -> Result<(), GpuError> {
        self.accesses.written(stream, stream.record()?);
        self.writing = false;
        Ok(())
    }

    /// The bytes on the host.
    fn spill(&mut self, object: &Arc<Object>) -> Result<Host, GpuError> {
        let store = self.store.clone();
        let (stream, span) = (&store.copies, self.memory.span());
        if let Some((_, written)) = &self.accesses.write {
            stream.wait(written)?;
        }
        let host = match shelve(&store.device, span.bytes())? {
            Some(mut block) => {
                // As if it were held: if this fails half-way nobody knows when the copy is over.
                self.guards += 1;
                // SAFETY: nobody else has the block yet.
                let to = unsafe { block.bytes_mut(span.bytes()) };
                // SAFETY: this stream comes after the write, the guard keeps the memory until the event below is noted,
                // and the block is not looked at before `written`.
                unsafe { span.read(stream, 0, to) }?;
                let written = block.copied(stream)?;
                self.accesses.read(stream, written.clone());
                self.guards -= 1;
                let pinned = Pinned { number: CLOCK.fetch_add(1, Relaxed), block, written };
                SHELVED.insert(pinned.number, object);
                Host::Pinned(Arc::new(pinned))
            }
            None => {
                let file = Spilled::create()?;
                // SAFETY: as above, and nobody else has this copy now.
                unsafe { download(stream, span, |bytes| file.append(bytes)) }?;
                TO_DISK.fetch_add(1, Relaxed);
                Host::Disk(Arc::new(file))
            }
        };
        Ok(host)
    }

    fn free(&mut self) -> Result<(), GpuError> {
        let Copy { store, memory, accesses, .. } = self;
        if self.guards > 0 || self.writing {
            // Guards are of this device. Copies to others are noted below all the same.
            memory::synchronize(&store.device)?;
        }
        let mut before = accesses.before_write();
        if let (Some((stream, _)), None) = (before.next(), before.next())
            && Arc::ptr_eq(stream.device(), &store.device)
            && store.device.bind().is_ok()
            && !memory::is_capturing(stream)
            // The stream's own order is enough, and what is allocated on it next can have the memory.
            // SAFETY: the stream comes after all accesses, and this is the end of the copy.
            && unsafe { memory.free(stream) }.is_ok()
        {
            return Ok(());
        }
        accesses.before_write().try_for_each(|(_, event)| come_after(&store.frees, event))?;
        // SAFETY: as above.
        unsafe { memory.free(&store.frees) }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.store.objects.remove(self.number);
        // If that fails the memory is lost: with the context, or because nobody can say when it is not used any more.
        if self.free().is_ok() {
            self.store.used.fetch_sub(self.memory.span().bytes() as u64, Relaxed);
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        SHELVED.remove(self.number);
    }
}

/// A block for a buffer that leaves a device. `None`: it has to go to disk.
fn shelve(device: &Arc<Device>, bytes: usize) -> Result<Option<Block>, GpuError> {
    if !pinned::fits(bytes) {
        return Ok(None);
    }
    let _shelf = SHELF.lock();
    let mut victims = None;
    loop {
        if let Some(block) = Block::keep(device, bytes)? {
            return Ok(Some(block));
        }
        match victims.get_or_insert_with(|| SHELVED.by_age()).pop() {
            Some((_, victim)) => _ = victim.upgrade().map(|object| object.to_disk()).transpose()?,
            None => return Ok(None),
        }
    }
}

/// An object that is being moved, until it is dropped.
struct Moving<'a>(&'a Object);

impl<'a> Moving<'a> {
    fn begin(object: &'a Object, mut state: MutexGuard<'_, State>) -> Self {
        state.moving = true;
        Moving(object)
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.state.lock().moving = false;
        self.0.moved.notify_all();
    }
}

/// Where an object's bytes are to be had.
enum Source {
    Host(Host),
    /// On a device, where they are held until [`Object::let_go`].
    Device(Arc<Store>, Span, Option<Event>),
}

impl Object {
    fn new(number: u64, bytes: usize, state: State) -> Arc<Self> {
        let used = Arc::new(AtomicU64::new(CLOCK.fetch_add(1, Relaxed)));
        Arc::new(Object { number, bytes, used, state: Mutex::new(state), moved: Condvar::new() })
    }

    /// On the host.
    pub(super) fn plain(bytes: Bytes) -> Arc<Self> {
        let state = State { host: Some(Host::Plain(bytes.clone())), ..State::default() };
        Self::new(CLOCK.fetch_add(1, Relaxed), bytes.len(), state)
    }

    /// On the device of `stream`, in its order; `fill` writes the bytes.
    fn on_device(
        stream: &Stream,
        bytes: usize,
        fill: impl FnOnce(Span) -> Result<(), GpuError>,
    ) -> Result<Arc<Self>, GpuError> {
        let number = CLOCK.fetch_add(1, Relaxed);
        let store = Store::of(stream.device())?;
        let mut copy = store.allocate(stream, number, bytes)?;
        fill(copy.memory.span())?;
        copy.filled(stream)?;
        let object = Self::new(number, bytes, State { copies: vec![copy], ..State::default() });
        store.objects.insert(number, &object);
        Ok(object)
    }

    pub(super) fn zeros(stream: &Stream, bytes: usize) -> Result<Arc<Self>, GpuError> {
        // SAFETY: allocated in the order of the stream, and nobody else has it yet.
        Self::on_device(stream, bytes, |span| unsafe { span.zero(stream) })
    }

    pub(super) fn upload(stream: &Stream, bytes: &[u8]) -> Result<Arc<Self>, GpuError> {
        // SAFETY: as above.
        Self::on_device(stream, bytes.len(), |span| unsafe { fill_from(stream, span, bytes) })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The copy on the device of `stream`, after a move there if need be. It stays there until [`let_go`](Self::let_go);
    /// what is given to the stream from now on comes after what has written it.
    pub(super) fn hold(self: &Arc<Self>, stream: &Stream) -> Result<Span, GpuError> {
        let device = stream.device();
        device.check()?;
        let (mut state, mut brought) = (self.state.lock(), None);
        let (span, written) = loop {
            if let Some(copy) = state.copies.iter_mut().find(|copy| copy.is_on(device)) {
                copy.settle()?;
                copy.guards += usize::from(brought.is_none());
                let written = copy.accesses.write.as_ref().filter(|(writer, _)| writer.id() != stream.id());
                break (copy.memory.span(), written.map(|(_, event)| event.clone()));
            }
            if !state.moving {
                brought = Some(self.bring(state, stream)?);
                state = self.state.lock();
            } else {
                self.moved.wait(&mut state);
            }
        };
        drop(state);
        drop(brought);
        self.used.store(CLOCK.fetch_add(1, Relaxed), Relaxed);
        if let Some(written) = written
            && let Err(error) = stream.wait(&written)
        {
            self.forget(device);
            return Err(error);
        }
        Ok(span)
    }

    /// As [`hold`](Self::hold), for a writer: this copy is left alone, and the stream comes after all that used it.
    ///
    /// Nobody else may use the object until [`let_go`](Self::let_go).
    pub(super) fn hold_alone(self: &Arc<Self>, stream: &Stream) -> Result<Span, GpuError> {
        let span = self.hold(stream)?;
        let device = stream.device();
        let mut state = self.state.lock();
        while state.moving {
            self.moved.wait(&mut state);
        }
        let host = state.host.take();
        let (mut here, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.copies).into_iter().partition(|copy| copy.is_on(device));
        let mut result = Ok(());
        for copy in &mut here {
            if copy.guards > 1 {
                // Of guards that were leaked.
                result = result.and_then(|()| memory::synchronize(device));
                copy.guards = 1;
            }
            let mut before = copy.accesses.before_write();
            result = result.and_then(|()| before.try_for_each(|(_, event)| come_after(stream, event)));
            copy.writing = result.is_ok();
            copy.guards -= usize::from(result.is_err());
        }
        state.copies = here;
        drop(state);
        drop((host, others));
        result.map(|()| span)
    }

    /// The end of a [`hold`](Self::hold) on `device`: what used the copy was given to `stream`.
    pub(super) fn let_go(&self, device: &Arc<Device>, stream: &Stream) {
        let mut state = self.state.lock();
        if let Some(copy) = state.copies.iter_mut().find(|copy| copy.is_on(device)) {
            // Under the lock, so that the last to be noted is the last to be recorded. If it fails the guard counts as leaked.
            if let Ok(event) = stream.record() {
                match std::mem::take(&mut copy.writing) {
                    true => copy.accesses.written(stream, event),
                    false => copy.accesses.read(stream, event),
                }
                copy.guards -= 1;
            }
        }
    }

    /// The end of a hold that nothing was done with.
    fn forget(&self, device: &Arc<Device>) {
        let mut state = self.state.lock();
        if let Some(copy) = state.copies.iter_mut().find(|copy| copy.is_on(device)) {
            copy.guards -= 1;
        }
    }

    /// A copy on the device of `stream`, in its order, held. Nobody else moves the object.
    fn bring<'a>(
        self: &'a Arc<Self>,
        mut state: MutexGuard<'_, State>,
        stream: &Stream,
    ) -> Result<Moving<'a>, GpuError> {
        let source = state.source(true)?;
        let moving = Moving::begin(self, state);
        if let Source::Device(store, _, Some(written)) = &source
            && let Err(error) = stream.wait(written)
        {
            self.forget(&store.device);
            return Err(error);
        }
        let copy = self.load(&source, stream);
        if let Source::Device(store, ..) = &source {
            // Whether it was copied or not: the stream has come after the write, as a reader does.
            self.let_go(&store.device, stream);
        }
        let mut copy = copy?;
        copy.guards = 1;
        copy.store.objects.insert(self.number, self);
        let mut state = self.state.lock();
        state.copies.push(copy);
        // What came from ordinary memory or from disk stays there: it costs nothing to move it away again.
        let pinned = state.host.take_if(|host| matches!(host, Host::Pinned(_)));
        drop(state);
        drop(pinned);
        Ok(moving)
    }

    /// A copy from `source`; from a device `stream` comes after its write already.
    fn load(&self, source: &Source, stream: &Stream) -> Result<Copy, GpuError> {
        let store = Store::of(stream.device())?;
        let mut copy = store.allocate(stream, self.number, self.bytes)?;
        let span = copy.memory.span();
        match source {
            // SAFETY: the source is held, and the stream comes after its write. The new memory is in the stream's order.
            Source::Device(from, source, _) => unsafe { span.copy(stream, &from.device, *source) }?,
            Source::Host(Host::Pinned(pinned)) => {
                stream.wait(&pinned.written)?;
                // SAFETY: nobody writes to the block after the copy that the stream waits for.
                let bytes = unsafe { pinned.block.bytes(self.bytes) };
                // SAFETY: the new memory is in the stream's order, and the block is not used again before the copy is over.
                let copied = unsafe { span.fill(stream, 0, bytes) };
                pinned.block.copied(stream)?;
                copied?;
            }
            // SAFETY: the new memory is in the stream's order.
            Source::Host(Host::Plain(bytes)) => unsafe { fill_from(stream, span, bytes) }?,
            Source::Host(Host::Disk(file)) => {
                // SAFETY: as above.
                unsafe { upload(stream, span, |offset, bytes| file.read(offset, bytes)) }?;
            }
        }
        copy.filled(stream)?;
        if let Source::Host(_) = source {
            store.restored.fetch_add(1, Relaxed);
        }
        Ok(copy)
    }

    /// Copies the bytes to `to`, which has as many, and waits until they are there.
    pub(super) fn read(&self, to: &mut [u8]) -> Result<(), GpuError> {
        let mut state = self.state.lock();
        while state.moving && state.copies.is_empty() && state.host.is_none() {
            self.moved.wait(&mut state);
        }
        let source = state.source(false)?;
        drop(state);
        self.used.store(CLOCK.fetch_add(1, Relaxed), Relaxed);
        match source {
            Source::Host(Host::Plain(bytes)) => to.copy_from_slice(&bytes),
            Source::Host(Host::Pinned(pinned)) => {
                pinned.written.synchronize()?;
                // SAFETY: the only copy that writes to it is over.
                to.copy_from_slice(unsafe { pinned.block.bytes(self.bytes) });
            }
            Source::Host(Host::Disk(file)) => file.read(0, to)?,
            Source::Device(store, span, written) => {
                // Waited for here and not by the stream: others stand behind it.
                if let Some(written) = written
                    && let Err(error) = written.synchronize()
                {
                    self.forget(&store.device);
                    return Err(error);
                }
                let result = share(to.chunks_mut(PART).enumerate(), |(part, to)| {
                    let (span, mut offset) = (span.part(part * PART, to.len()), 0);
                    let sink = |bytes: &[u8]| {
                        to[offset..offset + bytes.len()].copy_from_slice(bytes);
                        offset += bytes.len();
                        Ok(())
                    };
                    // SAFETY: the write is over, and the copy is held.
                    unsafe { download(&store.copies, span, sink) }
                });
                self.let_go(&store.device, &store.copies);
                result?;
            }
        }
        Ok(())
    }

    /// From a page-locked block to disk. `false`: somebody moves it, or there is none any more.
    fn to_disk(&self) -> Result<bool, GpuError> {
        let state = self.state.lock();
        let (false, Some(Host::Pinned(pinned))) = (state.moving, &state.host) else { return Ok(false) };
        let pinned = pinned.clone();
        let _moving = Moving::begin(self, state);
        // Lost with its device: whoever reads it is told.
        if pinned.written.synchronize().is_err() {
            return Ok(false);
        }
        let file = Spilled::create()?;
        // SAFETY: the only copy that writes to it is over.
        file.append(unsafe { pinned.block.bytes(self.bytes) })?;
        let shelved = self.state.lock().host.replace(Host::Disk(Arc::new(file)));
        drop(shelved);
        TO_DISK.fetch_add(1, Relaxed);
        Ok(true)
    }

    /// The bytes, if they are in ordinary memory of the host.
    pub(super) fn plain_bytes(&self) -> Option<Bytes> {
        match &self.state.lock().host {
            Some(Host::Plain(bytes)) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Where it is, for people.
    pub(super) fn places(&self) -> String {
        let state = self.state.lock();
        let devices = state.copies.iter().map(|copy| format!("GPU {}", copy.store.device.info().index));
        let host = state.host.as_ref().map(|host| match host {
            Host::Plain(_) | Host::Pinned(_) => "host".to_owned(),
            Host::Disk(_) => "disk".to_owned(),
        });
        devices.chain(host).collect::<Vec<_>>().join(", ")
    }
}

impl State {
    /// The best source of the bytes, held if it is on a device. Devices first, or memory of the host.
    fn source(&mut self, devices: bool) -> Result<Source, GpuError> {
        let in_memory = matches!(self.host, Some(Host::Plain(_) | Host::Pinned(_)));
        let healthy = self.copies.iter_mut().find(|copy| copy.store.device.check().is_ok());
        match (&self.host, healthy) {
            (_, Some(copy)) if devices || !in_memory => {
                copy.settle()?;
                copy.guards += 1;
                let written = copy.accesses.write.as_ref().map(|(_, event)| event.clone());
                Ok(Source::Device(copy.store.clone(), copy.memory.span(), written))
            }
            (Some(host), _) => Ok(Source::Host(host.clone())),
            // What is nowhere is being moved, and whoever asks has waited for that. So there are copies on lost devices.
            (None, _) => Err(self
                .copies
                .iter()
                .find_map(|copy| copy.store.device.check().err())
                .unwrap_or_else(|| GpuError::Spill { detail: "the bytes are nowhere".into() })),
        }
    }
}

/// Copies from the device to `sink`, block by block. When it returns all copies are over, or the context is lost.
///
/// # Safety
/// The memory lives and nobody writes to it until this returns.
unsafe fn download(
    stream: &Stream,
    span: Span,
    sink: impl FnMut(&[u8]) -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    // SAFETY: the caller's.
    let result = unsafe { blocks_of(stream, span, sink) };
    if result.is_err() {
        _ = memory::synchronize(stream.device());
    }
    result
}

/// # Safety
/// As for [`download`].
unsafe fn blocks_of(
    stream: &Stream,
    span: Span,
    mut sink: impl FnMut(&[u8]) -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let mut pending: VecDeque<(Block, Event, usize)> = VecDeque::new();
    let mut offset = 0;
    while offset < span.bytes() || !pending.is_empty() {
        if offset < span.bytes() && pending.len() < STAGES {
            let len = STAGE.min(span.bytes() - offset);
            let mut block = Block::stage(stream.device(), len)?;
            // SAFETY: nobody else has the block; it is looked at after the event.
            let read = unsafe { span.read(stream, offset, block.bytes_mut(len)) };
            let copied = block.copied(stream)?;
            read?;
            pending.push_back((block, copied, len));
            offset += len;
        } else if let Some((block, copied, len)) = pending.pop_front() {
            copied.synchronize()?;
            // SAFETY: the copy is over.
            sink(unsafe { block.bytes(len) })?;
        }
    }
    Ok(())
}

/// Copies to the device what `source` writes to each block, in the order of `stream`.
///
/// # Safety
/// The memory is usable in the order of the stream, and nobody else uses it.
unsafe fn upload(
    stream: &Stream,
    span: Span,
    mut source: impl FnMut(usize, &mut [u8]) -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    let mut pending: VecDeque<Event> = VecDeque::new();
    for offset in (0..span.bytes()).step_by(STAGE) {
        // Blocks that are given back are used again: this bounds how many there are.
        if pending.len() == STAGES
            && let Some(copied) = pending.pop_front()
        {
            copied.synchronize()?;
        }
        let len = STAGE.min(span.bytes() - offset);
        let mut block = Block::stage(stream.device(), len)?;
        // SAFETY: nobody else has the block, and no copy has been given to the stream.
        source(offset, unsafe { block.bytes_mut(len) })?;
        // SAFETY: the block is not used again before the event; the caller vouches for the memory.
        let filled = unsafe { span.fill(stream, offset, block.bytes(len)) };
        pending.push_back(block.copied(stream)?);
        filled?;
    }
    Ok(())
}

/// Copies `bytes` to the device, in the order of `stream`.
///
/// # Safety
/// As for [`upload`].
pub(super) unsafe fn fill_from(stream: &Stream, span: Span, bytes: &[u8]) -> Result<(), GpuError> {
    share(bytes.chunks(PART).enumerate(), |(part, bytes)| {
        let source = |offset: usize, to: &mut [u8]| {
            to.copy_from_slice(&bytes[offset..offset + to.len()]);
            Ok(())
        };
        // SAFETY: the caller's.
        unsafe { upload(stream, span.part(part * PART, bytes.len()), source) }
    })
}

/// Does `work` with each part, on this thread and as many others as are worth it.
fn share<T>(
    parts: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(T) -> Result<(), GpuError> + Sync,
) -> Result<(), GpuError> {
    let most = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
    let others = parts.len().min(most).saturating_sub(1);
    let parts = Mutex::new(parts);
    let take = || {
        loop {
            let part = parts.lock().next();
            match part {
                Some(part) => work(part)?,
                None => return Ok(()),
            }
        }
    };
    thread::scope(|scope| {
        // Where the system gives no thread the others do its part.
        let name = || thread::Builder::new().name("outray-copy".into());
        let others: Vec<_> = (0..others).filter_map(|_| name().spawn_scoped(scope, take).ok()).collect();
        let mine = take();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        others.into_iter().map(join).fold(mine, Result::and)
    })
}
