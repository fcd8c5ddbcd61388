//! What the stand-in knows, and its checker.
//!
//! Work runs when it is submitted, in whatever order the host submits it. The checker says where hardware could have
//! run it in another: each stream has a vector clock, which waits and the host's own waits join, and each access to
//! memory must come after those that it depends on by these clocks.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// `CUresult`
pub(crate) type Code = u32;
pub(crate) const OK: Code = 0;
pub(crate) const INVALID_VALUE: Code = 1;
pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const NO_DEVICE: Code = 100;
pub(crate) const INVALID_DEVICE: Code = 101;
pub(crate) const INVALID_CONTEXT: Code = 201;
pub(crate) const INVALID_PTX: Code = 218;
pub(crate) const INVALID_HANDLE: Code = 400;
pub(crate) const NOT_FOUND: Code = 500;
pub(crate) const NOT_READY: Code = 600;
pub(crate) const ILLEGAL_ADDRESS: Code = 700;
pub(crate) const CAPTURE_UNSUPPORTED: Code = 900;
pub(crate) const CAPTURE_INVALIDATED: Code = 901;
pub(crate) const CAPTURE_ISOLATION: Code = 905;
pub(crate) const CAPTURED_EVENT: Code = 907;

/// More than any test asks for.
const MOST_DEVICES: usize = 16;

type Clock = HashMap<usize, u64>;
/// A stream, and its time.
type Stamp = (usize, u64);

/// Something that a stream does: at once, or at each launch of the graph that it is captured in. An error is one of
/// the device, from which its context does not recover.
pub(crate) type Work = Arc<dyn Fn(&mut State, usize) -> Result<(), Code> + Send + Sync>;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) devices: usize,
    /// Bytes of each device.
    pub(crate) capacity: usize,
    /// What `cuInit` says.
    pub(crate) init: Code,
    pub(crate) version: i32,
    pub(crate) used: [usize; MOST_DEVICES],
    /// What every call in the device's context says from now on.
    fault: [Code; MOST_DEVICES],
    /// From which tick on the device finishes nothing.
    held: [Option<u64>; MOST_DEVICES],
    blocks: BTreeMap<u64, Block>,
    /// Where blocks were: an access is a mistake of order, not a wild one.
    freed: BTreeMap<u64, usize>,
    pub(crate) streams: HashMap<usize, Stream>,
    pub(crate) events: HashMap<usize, Event>,
    pub(crate) graphs: HashMap<usize, Arc<[Work]>>,
    pub(crate) modules: HashMap<usize, usize>,
    pub(crate) module_loads: usize,
    /// Every so many waits of streams, and waits of the host, are not done: what the checker must see.
    pub(crate) forget_waits: [u64; 2],
    waits: [u64; 2],
    host: Clock,
    next: usize,
    ticks: u64,
    queries: u64,
    pub(crate) races: Vec<String>,
    /// Page-locked memory of the host.
    pinned: BTreeMap<u64, Pinned>,
}

struct Block {
    len: usize,
    device: usize,
    write: Option<Stamp>,
    reads: Vec<Stamp>,
    _memory: Box<[u64]>,
}

struct Pinned {
    len: usize,
    /// Those that the host has not waited for.
    copies: Vec<HostCopy>,
}

/// A copy between a device and page-locked memory.
struct HostCopy {
    stamp: Stamp,
    address: u64,
    bytes: Vec<u8>,
    kind: HostCopyKind,
}

#[derive(Clone, Copy, PartialEq)]
enum HostCopyKind {
    /// From the host: these are the bytes that were there, and still have to be when the host has waited.
    Out,
    /// To the host, where they are not before somebody has waited.
    Late,
    /// To the host, where a copy that came after it has found them.
    In,
}

#[derive(Default)]
pub(crate) struct Stream {
    device: usize,
    clock: Clock,
    pub(crate) capture: Option<Capture>,
}

#[derive(Default)]
pub(crate) struct Capture {
    pub(crate) work: Vec<Work>,
    pub(crate) invalid: bool,
}

#[derive(Default)]
pub(crate) struct Event {
    device: usize,
    recorded: Option<(u64, Clock)>,
    captured: bool,
    /// A query said so.
    complete: bool,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);
/// A device is no longer held.
static RELEASED: Condvar = Condvar::new();

thread_local!(static CURRENT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });

/// The thread's context: a device's number plus one, or 0.
pub(crate) fn context() -> usize {
    CURRENT.get()
}

pub(crate) fn set_context(context: usize) {
    CURRENT.set(context);
}

fn lock() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn started(state: &mut Option<State>) -> &mut State {
    let number = |name, default| env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    state.get_or_insert_with(|| State {
        devices: number("FAKE_CUDA_DEVICES", 4).min(MOST_DEVICES),
        capacity: number("FAKE_CUDA_BYTES", 1 << 20),
        init: number("FAKE_CUDA_INIT", 0) as Code,
        version: number("FAKE_CUDA_VERSION", 13000) as i32,
        next: 0x1000,
        ..State::default()
    })
}

pub(crate) fn with<T>(f: impl FnOnce(&mut State) -> T) -> T {
    f(started(&mut lock()))
}

/// The same on the device of the thread's context; its fault, if it has one.
pub(crate) fn in_context(f: impl FnOnce(&mut State, usize) -> Code) -> Code {
    let Some(device) = context().checked_sub(1) else { return INVALID_CONTEXT };
    with(|state| match state.fault[device] {
        OK => f(state, device),
        fault => fault,
    })
}

/// Gives `work` to a stream.
pub(crate) fn submit(stream: usize, work: Work) -> Code {
    with(|state| {
        let Some(stream) = state.stream(stream) else { return INVALID_HANDLE };
        let device = state.streams[&stream].device;
        if state.fault[device] != OK {
            return state.fault[device];
        }
        match state.capture(stream) {
            Some(capture) => capture.work.push(work),
            None => state.run(stream, &work),
        }
        OK
    })
}

/// Waits until the device, or what it has to do before an event, is no longer held, and joins what the host then
/// knows.
pub(crate) fn synchronize(until: impl Fn(&State) -> Result<(usize, u64, Clock), Code>) -> Code {
    let mut guard = lock();
    loop {
        let state = started(&mut guard);
        let (device, tick, clock) = match until(state) {
            Ok(until) => until,
            Err(code) => return code,
        };
        if state.fault[device] != OK {
            return state.fault[device];
        }
        if state.held[device].is_none_or(|held| tick <= held) {
            if !state.forgets(1) {
                join(&mut state.host, &clock);
                state.settle();
            }
            return OK;
        }
        guard = RELEASED.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
}

fn join(a: &mut Clock, b: &Clock) {
    for (stream, time) in b {
        let known = a.entry(*stream).or_default();
        *known = (*known).max(*time);
    }
}

impl State {
    pub(crate) fn handle(&mut self) -> usize {
        self.next += 0x10;
        self.next
    }

    pub(crate) fn free_bytes(&self, device: usize) -> usize {
        self.capacity.saturating_sub(self.used[device])
    }

    fn forgets(&mut self, kind: usize) -> bool {
        self.waits[kind] += 1;
        self.forget_waits[kind] > 0 && self.waits[kind].is_multiple_of(self.forget_waits[kind])
    }

    /// From now on every call in the device's context fails so.
    pub(crate) fn set_fault(&mut self, device: usize, code: Code) {
        self.fault[device] = code;
    }

    /// Whether the device finishes nothing that it is given from now on.
    pub(crate) fn hold(&mut self, device: usize, hold: bool) {
        self.held[device] = hold.then_some(self.ticks);
        RELEASED.notify_all();
    }

    // Streams

    pub(crate) fn add_stream(&mut self, device: usize) -> usize {
        let handle = self.handle();
        self.streams.insert(handle, Stream { device, ..Stream::default() });
        handle
    }

    /// The stream with this handle. The default one is each device's own.
    pub(crate) fn stream(&mut self, handle: usize) -> Option<usize> {
        if handle > 2 {
            return self.streams.contains_key(&handle).then_some(handle);
        }
        let device = context().checked_sub(1)?;
        let handle = 0x100 + device;
        self.streams.entry(handle).or_insert_with(|| Stream { device, ..Stream::default() });
        Some(handle)
    }

    pub(crate) fn capture(&mut self, stream: usize) -> Option<&mut Capture> {
        self.streams.get_mut(&stream).and_then(|stream| stream.capture.as_mut())
    }

    pub(crate) fn run(&mut self, stream: usize, work: &Work) {
        if let Err(fault) = work(self, stream) {
            let device = self.streams[&stream].device;
            self.set_fault(device, fault);
        }
    }

    /// What the host will know once the stream is done, and when that is.
    pub(crate) fn until_stream(&self, stream: usize) -> Result<(usize, u64, Clock), Code> {
        let Some(it) = self.streams.get(&stream) else { return Err(INVALID_HANDLE) };
        match it.capture {
            Some(_) => Err(CAPTURE_UNSUPPORTED),
            None => Ok((it.device, it.clock.get(&stream).copied().unwrap_or(0), it.clock.clone())),
        }
    }

    pub(crate) fn until_device(&self, device: usize) -> Result<(usize, u64, Clock), Code> {
        let mut all = Clock::new();
        for stream in self.streams.values().filter(|stream| stream.device == device) {
            join(&mut all, &stream.clock);
        }
        Ok((device, self.ticks, all))
    }

    /// The stream's next moment, after everything that the host knows to be done.
    fn tick(&mut self, stream: usize) -> Stamp {
        self.ticks += 1;
        let it = self.streams.entry(stream).or_default();
        join(&mut it.clock, &self.host);
        it.clock.insert(stream, self.ticks);
        (stream, self.ticks)
    }

    fn is_after(&self, stream: usize, (other, time): Stamp) -> bool {
        self.streams[&stream].clock.get(&other).is_some_and(|known| *known >= time)
    }

    /// Whether it is of a device that has faulted: what such a one has not done it does not do any more.
    fn is_lost(&self, (stream, _): Stamp) -> bool {
        self.streams.get(&stream).is_some_and(|stream| self.fault[stream.device] != OK)
    }

    // Events

    pub(crate) fn add_event(&mut self, device: usize) -> usize {
        let handle = self.handle();
        self.events.insert(handle, Event { device, ..Event::default() });
        handle
    }

    pub(crate) fn record(&mut self, event: usize, stream: usize) -> Code {
        let Some(stream) = self.stream(stream) else { return INVALID_HANDLE };
        let device = self.streams[&stream].device;
        if self.fault[device] != OK {
            return self.fault[device];
        }
        let captured = self.capture(stream).is_some();
        let (_, tick) = self.tick(stream);
        let clock = self.streams[&stream].clock.clone();
        match self.events.get_mut(&event) {
            Some(event) if event.device == device => {
                *event = Event { device, recorded: Some((tick, clock)), captured, complete: false };
                OK
            }
            _ => INVALID_HANDLE,
        }
    }

    pub(crate) fn wait(&mut self, stream: usize, event: usize) -> Code {
        let Some(stream) = self.stream(stream) else { return INVALID_HANDLE };
        let Some(event) = self.events.get(&event) else { return INVALID_HANDLE };
        let device = self.streams[&stream].device;
        if let Some(fault) =
            [device, event.device].map(|device| self.fault[device]).into_iter().find(|code| *code != OK)
        {
            return fault;
        }
        let captured = event.captured;
        let clock = event.recorded.as_ref().map(|(_, clock)| clock.clone());
        if let Some(capture) = self.capture(stream) {
            // A capture has edges to its own work alone; what forks it to other streams is not played here.
            capture.invalid = true;
            return if captured { CAPTURE_UNSUPPORTED } else { CAPTURE_ISOLATION };
        }
        if captured {
            return CAPTURED_EVENT;
        }
        self.tick(stream);
        if self.forgets(0) {
            return OK;
        }
        if let (Some(clock), Some(stream)) = (clock, self.streams.get_mut(&stream)) {
            join(&mut stream.clock, &clock);
        }
        OK
    }

    /// Says `NOT_READY` every other time, so that nobody can count on the first answer.
    pub(crate) fn query(&mut self, event: usize) -> Code {
        self.queries += 1;
        let late = self.queries % 2 == 1;
        let Some(it) = self.events.get_mut(&event) else { return INVALID_HANDLE };
        if self.fault[it.device] != OK {
            return self.fault[it.device];
        }
        if it.captured {
            return CAPTURED_EVENT;
        }
        let Some((tick, clock)) = &it.recorded else { return OK };
        let held = self.held[it.device].is_some_and(|held| *tick > held);
        if !it.complete && (late || held) {
            return NOT_READY;
        }
        it.complete = true;
        join(&mut self.host, clock);
        self.settle();
        OK
    }

    pub(crate) fn until_event(&self, event: usize) -> Result<(usize, u64, Clock), Code> {
        match self.events.get(&event) {
            None => Err(INVALID_HANDLE),
            Some(event) if event.captured => Err(CAPTURED_EVENT),
            Some(Event { device, recorded: Some((tick, clock)), .. }) => Ok((*device, *tick, clock.clone())),
            Some(event) => Ok((event.device, 0, Clock::new())),
        }
    }

    // Memory of devices

    pub(crate) fn allocate(&mut self, stream: usize, len: usize, device: usize) -> Result<u64, Code> {
        if self.capture(stream).is_some() {
            return Err(CAPTURE_UNSUPPORTED);
        }
        if self.used[device] + len > self.capacity {
            return Err(OUT_OF_MEMORY);
        }
        self.used[device] += len;
        let mut memory = vec![0xA5A5_A5A5_A5A5_A5A5_u64; len / 8 + 1].into_boxed_slice();
        let address = memory.as_mut_ptr() as u64;
        let write = Some(self.tick(stream));
        let end = address + len.max(1) as u64;
        self.freed.retain(|old, old_len| *old >= end || *old + (*old_len).max(1) as u64 <= address);
        self.blocks.insert(address, Block { len, device, write, reads: Vec::new(), _memory: memory });
        Ok(address)
    }

    pub(crate) fn free(&mut self, address: u64) -> Code {
        let Some(block) = self.blocks.remove(&address) else { return INVALID_VALUE };
        self.used[block.device] -= block.len;
        self.freed.insert(address, block.len);
        OK
    }

    fn block(&self, address: u64) -> Option<u64> {
        let (start, block) = self.blocks.range(..=address).next_back()?;
        (address < start + block.len.max(1) as u64).then_some(*start)
    }

    /// Whether all of it lies in one block.
    pub(crate) fn holds(&self, address: u64, bytes: usize) -> bool {
        self.block(address).is_some_and(|start| address + bytes as u64 <= start + self.blocks[&start].len as u64)
    }

    /// An access of the stream's, which must come after those that it depends on.
    pub(crate) fn touch(&mut self, stream: usize, address: u64, write: bool, what: &str) -> Result<(), Code> {
        let stamp = self.tick(stream);
        let Some(start) = self.block(address) else {
            let freed = self.freed.range(..=address).next_back();
            if freed.is_some_and(|(start, len)| address < start + (*len).max(1) as u64) {
                self.races.push(format!("{what}: access to freed {address:#x}"));
            }
            return Err(ILLEGAL_ADDRESS);
        };
        let block = &self.blocks[&start];
        let before = block.write.into_iter().map(|stamp| ("write", stamp));
        let reads = block.reads.iter().filter(|_| write).map(|stamp| ("read", *stamp));
        let early: Vec<_> = before
            .chain(reads)
            .filter(|(_, before)| !self.is_after(stream, *before) && !self.is_lost(*before))
            .map(|(access, (other, _))| {
                format!("{what}: stream {stream:#x} not ordered after {access} on stream {other:#x}")
            })
            .collect();
        self.races.extend(early);
        if let Some(block) = self.blocks.get_mut(&start) {
            match write {
                true => (block.write, block.reads) = (Some(stamp), Vec::new()),
                false => block.reads.push(stamp),
            }
        }
        Ok(())
    }

    // Page-locked memory of the host

    pub(crate) fn pin(&mut self, address: u64, len: usize) {
        self.pinned.insert(address, Pinned { len, copies: Vec::new() });
    }

    pub(crate) fn pinned_bytes(&self) -> usize {
        self.pinned.values().map(|pinned| pinned.len).sum()
    }

    pub(crate) fn unpin(&mut self, address: u64) -> Option<usize> {
        self.host_touch(address, "free of pinned memory");
        self.pinned.remove(&address).map(|pinned| pinned.len)
    }

    fn pinned_at(&self, address: u64) -> Option<u64> {
        let (start, pinned) = self.pinned.range(..=address).next_back()?;
        (address < start + pinned.len.max(1) as u64).then_some(*start)
    }

    /// A copy on the stream between a device and `bytes` of the host at `address`. `into`: to the host.
    ///
    /// To page-locked memory the bytes come when the host, or a copy from there, has waited for this one; who looks
    /// earlier finds others. What a copy takes from there must not change before the host has waited.
    ///
    /// # Safety
    /// Both are there and so long. Of page-locked memory the host's part is until it is given back.
    pub(crate) unsafe fn host_copy(&mut self, stream: usize, device: u64, address: u64, bytes: usize, into: bool) {
        let stamp = self.tick(stream);
        let (from, to) = if into { (device, address) } else { (address, device) };
        if let Some(start) = self.pinned_at(address) {
            let end = address + bytes as u64;
            let overlaps =
                |copy: &&mut HostCopy| copy.address < end && address < copy.address + copy.bytes.len() as u64;
            let (clock, races) = (&self.streams[&stream].clock, &mut self.races);
            let Some(pinned) = self.pinned.get_mut(&start) else { return };
            for copy in pinned.copies.iter_mut().filter(overlaps) {
                let (other, time) = copy.stamp;
                if (into || copy.kind != HostCopyKind::Out) && clock.get(&other).is_none_or(|known| *known < time) {
                    races.push(format!(
                        "page-locked memory: stream {stream:#x} not ordered after copy on stream {other:#x}"
                    ));
                }
                if copy.kind == HostCopyKind::Late {
                    copy.arrive();
                }
            }
            // SAFETY: as the caller promises.
            let moved = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec();
            let kind = if into { HostCopyKind::Late } else { HostCopyKind::Out };
            if into {
                // SAFETY: as the caller promises.
                unsafe { std::ptr::write_bytes(to as *mut u8, 0xDB, bytes) };
            }
            pinned.copies.push(HostCopy { stamp, address, bytes: moved, kind });
            if into {
                return;
            }
        }
        // SAFETY: as the caller promises.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
    }

    /// The host has waited for something.
    fn settle(&mut self) {
        let (host, races) = (&self.host, &mut self.races);
        for pinned in self.pinned.values_mut() {
            pinned.copies.retain_mut(|copy| {
                let (stream, time) = copy.stamp;
                if host.get(&stream).is_none_or(|known| *known < time) {
                    return true;
                }
                match copy.kind {
                    HostCopyKind::Late => copy.arrive(),
                    HostCopyKind::Out if copy.is_changed() => {
                        races.push(format!("the host wrote to what a copy on stream {stream:#x} was still to read"));
                    }
                    HostCopyKind::Out | HostCopyKind::In => {}
                }
                false
            });
        }
    }

    /// The host uses it, or frees it: it must have waited for every copy.
    pub(crate) fn host_touch(&mut self, address: u64, what: &str) {
        let Some(start) = self.pinned_at(address) else { return };
        for copy in &self.pinned[&start].copies {
            let (stream, time) = copy.stamp;
            if self.host.get(&stream).is_none_or(|known| *known < time) {
                self.races.push(format!("{what}: the host has not waited for the copy on stream {stream:#x}"));
            }
        }
    }
}

impl HostCopy {
    fn arrive(&mut self) {
        self.kind = HostCopyKind::In;
        // SAFETY: page-locked memory that was not given back: it is in the table.
        unsafe { std::ptr::copy_nonoverlapping(self.bytes.as_ptr(), self.address as *mut u8, self.bytes.len()) };
    }

    fn is_changed(&self) -> bool {
        // SAFETY: as above, and the host is here, in this call.
        let now = unsafe { std::slice::from_raw_parts(self.address as *const u8, self.bytes.len()) };
        now != self.bytes
    }
}
