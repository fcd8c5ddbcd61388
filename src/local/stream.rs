//! A streaming task: a producer that runs while its buffer has room, and a consumer.
//!
//! The producer is a job like any other. When the buffer is full it stops, without a thread, and
//! the consumer that makes room schedules it again; a stream of futures also stops where it has
//! to wait. When the consumer is gone, so is the producer, at its next item.

use super::{
    Core, Work,
    node::{Blocker, Help, Meta, Node, Options, Phase, Promise, contain, node_slot},
    observe,
    slot::{Slot, Waiter},
    task::{panic_message, wait_for_arguments},
    thread,
};
use crate::{
    error::{Error, Result},
    function::Producer,
    object::ObjectRef,
};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, Location, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Wake, Waker},
};

/// A streaming function with its arguments.
pub(crate) trait StreamBody: Send + 'static {
    type Item: Send + Sync + 'static;
    fn type_name() -> &'static str;
    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>));
    fn duplicate(&self) -> Result<Self>
    where
        Self: Sized;
    fn round_trip(item: Self::Item) -> Result<Self::Item>;
    fn start(self) -> Result<Producer<Self::Item>>;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Not scheduled: its arguments are missing, its buffer is full, or its future waits.
    Stopped,
    Scheduled,
    Running,
    /// Woken while it runs.
    Woken,
    Over,
}

struct Buffer<T: 'static> {
    items: VecDeque<ObjectRef<T>>,
    mode: Mode,
    full: bool,
    /// The consumer is gone.
    closed: bool,
    failure: Option<Error>,
    /// The consumer waits for this.
    wanted: Option<Arc<Promise<()>>>,
    waker: Option<Waker>,
}

enum Source<B: StreamBody> {
    Body(B),
    Producer(Producer<B::Item>),
    Over,
}

pub(crate) struct StreamCell<B: StreamBody> {
    meta: Meta,
    source: Mutex<Source<B>>,
    buffer: Mutex<Buffer<B::Item>>,
    capacity: usize,
    /// Done when the producer is.
    slot: Slot<()>,
}

/// A stream, without its producer's type.
pub(crate) trait Items<T: 'static>: Node {
    /// The next item, if one is there; otherwise what to wait for.
    fn next(self: Arc<Self>) -> Next<T>;
    fn poll_next(self: Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<ObjectRef<T>>>>;
    fn close(self: Arc<Self>);
}

pub(crate) enum Next<T: 'static> {
    Item(ObjectRef<T>),
    Failed(Error),
    End,
    Wait(Arc<dyn Node>),
}

impl<B: StreamBody> StreamCell<B> {
    pub(crate) fn submit(
        core: &'static Core,
        location: &'static Location<'static>,
        body: B,
        options: Option<Box<Options>>,
        capacity: usize,
    ) -> Arc<Self> {
        let body = match core.has(super::flag::CHECK_SERIALIZATION) {
            true => body.duplicate(),
            false => Ok(body),
        };
        let (source, failure) = match body {
            Ok(body) => (Source::Body(body), None),
            Err(error) => (Source::Over, Some(error)),
        };
        let failed = failure.is_some();
        let cell = Arc::new(StreamCell {
            meta: Meta::new(core, location, options),
            source: Mutex::new(source),
            buffer: Mutex::new(Buffer {
                items: VecDeque::new(),
                mode: if failed { Mode::Over } else { Mode::Stopped },
                full: false,
                closed: false,
                failure,
                wanted: None,
                waker: None,
            }),
            capacity,
            slot: Slot::new(),
        });
        if !cell.meta.is_from_elsewhere() {
            core.count(|c| &c.submitted);
        }
        observe::submitted(core, || cell.clone());
        // A shutdown must find it, also while its producer is stopped.
        core.suspend(&(cell.clone() as Arc<dyn Node>));
        if failed {
            cell.slot.complete_with(Ok(()), || cell.meta.count_ended(false));
            return cell;
        }
        let missing = wait_for_arguments(&cell, |visit| {
            if let Source::Body(body) = &*cell.source.lock() {
                body.dependencies(visit);
            }
        });
        if !missing {
            cell.clone().resume();
        }
        cell
    }

    /// Schedules the producer, if it is stopped.
    fn resume(self: Arc<Self>) {
        {
            let buffer = &mut *self.buffer.lock();
            match buffer.mode {
                Mode::Stopped => buffer.mode = Mode::Scheduled,
                Mode::Running => {
                    buffer.mode = Mode::Woken;
                    return;
                }
                _ => return,
            }
        }
        self.meta.core.schedule(self.clone());
    }

    fn claim(&self) -> bool {
        let buffer = &mut *self.buffer.lock();
        let claimed = buffer.mode == Mode::Scheduled;
        if claimed {
            buffer.mode = Mode::Running;
            buffer.full = false;
        }
        claimed
    }

    /// Produces until it must stop, or, for a consumer that waits, one item. The caller has claimed
    /// the producer.
    fn produce(self: Arc<Self>, one: bool) {
        let core = self.meta.core;
        let started = observe::now(core);
        let mut source = self.source.lock();
        let end = loop {
            {
                let buffer = &mut *self.buffer.lock();
                if buffer.closed {
                    break Ok(());
                }
                // With no capacity at all, one item is made for each that is waited for.
                if buffer.items.len() >= self.capacity && !(self.capacity == 0 && buffer.wanted.is_some()) {
                    buffer.mode = Mode::Stopped;
                    buffer.full = true;
                    drop(source);
                    return observe::ran(core, started, &*self);
                }
            }
            if core.is_stopping() {
                break Err(core.shutdown_error((&*self as &dyn Node).label()));
            }
            let step = {
                let _entered = thread::enter(self.clone());
                let waker = Waker::from(self.clone());
                catch_unwind(AssertUnwindSafe(|| advance(&mut source, &mut Context::from_waker(&waker))))
            };
            match step {
                Ok(Ok(Poll::Ready(Some(item)))) => {
                    let item = match core.has(super::flag::CHECK_SERIALIZATION) {
                        true => B::round_trip(item),
                        false => Ok(item),
                    };
                    match item {
                        Ok(item) if one => {
                            self.deliver(item);
                            drop(source);
                            observe::ran(core, started, &*self);
                            self.buffer.lock().mode = Mode::Scheduled;
                            return core.schedule(self);
                        }
                        Ok(item) => self.deliver(item),
                        Err(error) => break Err(error),
                    }
                }
                Ok(Ok(Poll::Ready(None))) => break Ok(()),
                Ok(Ok(Poll::Pending)) => {
                    let buffer = &mut *self.buffer.lock();
                    if buffer.mode == Mode::Woken {
                        buffer.mode = Mode::Running;
                        continue;
                    }
                    buffer.mode = Mode::Stopped;
                    drop(source);
                    return observe::ran(core, started, &*self);
                }
                Ok(Err(error)) => {
                    let origin = (&*self as &dyn Node).origin();
                    break Err(Error::DependencyFailed { origin, cause: Box::new(error) });
                }
                Err(panic) => {
                    let origin = (&*self as &dyn Node).origin();
                    break Err(Error::Panicked { origin, message: panic_message(&*panic) });
                }
            }
        };
        let over = std::mem::replace(&mut *source, Source::Over);
        drop(source);
        {
            let _entered = thread::enter(self.clone());
            contain(|| drop(over));
        }
        observe::ran(core, started, &*self);
        self.finish(end);
    }

    fn deliver(&self, item: B::Item) {
        let item = ObjectRef::first(Promise::ready(self.meta.core, self.meta.location, item));
        let (wanted, waker) = {
            let buffer = &mut *self.buffer.lock();
            buffer.items.push_back(item);
            (buffer.wanted.take(), buffer.waker.take())
        };
        tell(wanted, waker);
    }

    fn finish(&self, end: Result<()>) {
        let (wanted, waker) = {
            let buffer = &mut *self.buffer.lock();
            buffer.mode = Mode::Over;
            if buffer.failure.is_none() {
                buffer.failure = end.err();
            }
            (buffer.wanted.take(), buffer.waker.take())
        };
        self.meta.core.resume(self.meta.id);
        let succeeded = self.buffer.lock().failure.is_none();
        self.slot.complete_with(Ok(()), || self.meta.count_ended(succeeded));
        tell(wanted, waker);
    }
}

fn tell(wanted: Option<Arc<Promise<()>>>, waker: Option<Waker>) {
    if let Some(wanted) = wanted {
        wanted.complete(Ok(()));
    }
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// One step of a producer; the first makes it.
fn advance<B: StreamBody>(source: &mut Source<B>, cx: &mut Context<'_>) -> Result<Poll<Option<B::Item>>> {
    if matches!(source, Source::Body(_))
        && let Source::Body(body) = std::mem::replace(source, Source::Over)
    {
        *source = Source::Producer(body.start()?);
    }
    Ok(match source {
        Source::Producer(Producer::Iterator(iterator)) => Poll::Ready(iterator.next()),
        Source::Producer(Producer::Stream(stream)) => stream.as_mut().poll_next(cx),
        Source::Body(_) | Source::Over => Poll::Ready(None),
    })
}

impl<B: StreamBody> Items<B::Item> for StreamCell<B> {
    fn next(self: Arc<Self>) -> Next<B::Item> {
        let next = {
            let buffer = &mut *self.buffer.lock();
            match (buffer.items.pop_front(), buffer.mode) {
                (Some(item), _) if !buffer.full => return Next::Item(item),
                (Some(item), _) => Next::Item(item),
                (None, Mode::Over) => return buffer.failure.take().map_or(Next::End, Next::Failed),
                (None, _) => {
                    let source: Arc<dyn Node> = self.clone();
                    let promise = Promise::empty(self.meta.core, self.meta.location, Some(source));
                    buffer.wanted = Some(promise.clone());
                    Next::Wait(promise)
                }
            }
        };
        if self.capacity == 0 || matches!(next, Next::Item(_)) {
            self.clone().resume(); // it stopped because there was no room
        }
        next
    }

    fn poll_next(self: Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<ObjectRef<B::Item>>>> {
        self.buffer.lock().waker = Some(cx.waker().clone());
        match self.next() {
            Next::Item(item) => Poll::Ready(Some(Ok(item))),
            Next::Failed(error) => Poll::Ready(Some(Err(error))),
            Next::End => Poll::Ready(None),
            Next::Wait(_) => Poll::Pending,
        }
    }

    fn close(self: Arc<Self>) {
        let items = {
            let buffer = &mut *self.buffer.lock();
            buffer.closed = true;
            buffer.wanted = None;
            buffer.waker = None;
            std::mem::take(&mut buffer.items)
        };
        drop(items);
        if self.meta.missing.load(Ordering::Acquire) == 0 {
            self.resume(); // to drop the producer, on a worker
        }
    }
}

impl<B: StreamBody> Work for StreamCell<B> {
    fn run(self: Arc<Self>) {
        if self.claim() {
            self.produce(false);
        }
    }
}

impl<B: StreamBody> Wake for StreamCell<B> {
    fn wake(self: Arc<Self>) {
        self.resume();
    }
}

impl<B: StreamBody> Waiter for StreamCell<B> {
    fn notify(self: Arc<Self>) {
        if self.meta.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.resume();
        }
    }
}

impl<B: StreamBody> Node for StreamCell<B> {
    node_slot!();

    fn kind(&self) -> &'static str {
        "stream"
    }

    fn type_name(&self) -> &'static str {
        B::type_name()
    }

    fn fail(&self, error: Arc<Error>) -> bool {
        let closed = std::mem::replace(&mut self.buffer.lock().closed, true);
        if !closed {
            self.finish(Err((*error).clone()));
            // A producer that runs drops itself when it sees that.
            let over = self.source.try_lock().map(|mut source| std::mem::replace(&mut *source, Source::Over));
            contain(|| drop(over));
        }
        !closed
    }

    fn is_cancelled(&self) -> bool {
        self.buffer.lock().closed
    }

    fn phase(&self) -> Phase {
        match self.buffer.lock().mode {
            Mode::Over => Phase::Done,
            Mode::Scheduled => Phase::Queued,
            Mode::Stopped if self.meta.missing.load(Ordering::Acquire) > 0 => Phase::WaitingForArguments,
            _ => Phase::Running,
        }
    }

    fn help(self: Arc<Self>) -> Help {
        if self.meta.missing.load(Ordering::Acquire) > 0 {
            let first = self.blockers().into_iter().find_map(|blocker| match blocker {
                Blocker::Node(node) => Some(node),
                _ => None,
            });
            return first.map_or(Help::Busy, Help::First);
        }
        // The item that was wanted is there then, or not: either way there is no more to do here.
        if self.claim() {
            self.produce(true);
        }
        Help::Busy
    }

    fn blockers(&self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        if let Some(source) = self.source.try_lock()
            && let Source::Body(body) = &*source
        {
            body.dependencies(&mut |node| {
                if !node.is_done() {
                    blockers.push(Blocker::Node(node.clone()));
                }
            });
        }
        blockers
    }
}
