//! Streams whose producer is in a worker.
//!
//! The buffer is the consumer's: it gives credit for as many items as that holds at first, and one for each that it has
//! taken. The producer makes an item when there is credit for it.

use super::{
    client::Client,
    function::Remote as Function,
    protocol::{ObjectId, ProcessId},
    remote::{Received, Remote},
    travel::{Arrival, Arrived, Incoming, Reply, guarded, wrong_kind},
};
use crate::{
    args::Deferred,
    error::{Error, Result},
    function::StreamFn,
    local::{
        node::{Meta, Node, Options, Phase, Promise, node_slot},
        slot::{Outcome, Slot, Waiter},
        stream::{Items, Next, StreamCell},
    },
    object::{Object, ObjectRef},
    serial,
    stream::ProducerBody,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    marker::PhantomData,
    panic::Location,
    sync::Arc,
    task::{Context, Poll, Waker},
};

/// The consumer's side.
pub(crate) struct RemoteStream<T: 'static> {
    meta: Meta,
    id: ObjectId,
    client: Arc<Client>,
    type_name: &'static str,
    /// Done when the producer is, or the consumer.
    slot: Slot<()>,
    buffer: Mutex<Buffer<T>>,
}

struct Buffer<T: 'static> {
    items: VecDeque<ObjectRef<T>>,
    producer: Option<ProcessId>,
    over: bool,
    failure: Option<Error>,
    wanted: Option<Arc<Promise<()>>>,
    waker: Option<Waker>,
}

/// One of these, without its type.
pub(crate) trait Sink: Send + Sync {
    fn item(&self, from: ProcessId, number: u32, value: Bytes);
}

impl<T: Object> RemoteStream<T> {
    pub(super) fn new(
        client: &Arc<Client>,
        id: ObjectId,
        type_name: &'static str,
        location: &'static Location<'static>,
        options: Option<Box<Options>>,
    ) -> Arc<Self> {
        Arc::new(RemoteStream {
            meta: Meta::new(client.core, location, options),
            id,
            client: client.clone(),
            type_name,
            slot: Slot::new(),
            buffer: Mutex::new(Buffer {
                items: VecDeque::new(),
                producer: None,
                over: false,
                failure: None,
                wanted: None,
                waker: None,
            }),
        })
    }

    fn tell(&self, change: impl FnOnce(&mut Buffer<T>)) {
        let (wanted, waker) = {
            let buffer = &mut *self.buffer.lock();
            change(buffer);
            (buffer.wanted.take(), buffer.waker.take())
        };
        if let Some(wanted) = wanted {
            wanted.complete(Ok(()));
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T: Object> Sink for RemoteStream<T> {
    fn item(&self, from: ProcessId, number: u32, value: Bytes) {
        let item = self.client.item(from, self.id, number, value, self.meta.location);
        let mut second = None; // dropped without the lock
        self.tell(|buffer| {
            // It may be made twice, when the head has died.
            if *buffer.producer.get_or_insert(from) != from {
                second = Some(item);
                return;
            }
            match item {
                Ok(item) if !buffer.over => buffer.items.push_back(item),
                Ok(_) => {}
                Err(error) => (buffer.over, buffer.failure) = (true, Some(error)),
            }
        });
    }
}

impl<T: Object> Remote for RemoteStream<T> {
    fn id(&self) -> ObjectId {
        self.id
    }

    fn arrive(&self, outcome: Outcome<Received>) {
        self.tell(|buffer| {
            buffer.over = true;
            if buffer.failure.is_none() {
                buffer.failure = outcome.err().map(|error| (*error).clone());
            }
        });
        self.slot.complete(Ok(()));
    }

    fn is_wanted(&self) -> bool {
        true
    }
}

impl<T: Object> Items<T> for RemoteStream<T> {
    fn next(self: Arc<Self>) -> Next<T> {
        let (item, producer) = {
            let buffer = &mut *self.buffer.lock();
            match buffer.items.pop_front() {
                Some(item) => (item, buffer.producer.filter(|_| !buffer.over)),
                None if buffer.over => return buffer.failure.take().map_or(Next::End, Next::Failed),
                None => {
                    let source: Arc<dyn Node> = self.clone();
                    let promise = Promise::empty(self.meta.core, self.meta.location, Some(source));
                    buffer.wanted = Some(promise.clone());
                    return Next::Wait(promise);
                }
            }
        };
        if let Some(producer) = producer {
            self.client.credit(producer, self.id, 1);
        }
        Next::Item(item)
    }

    fn poll_next(self: Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<ObjectRef<T>>>> {
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
            buffer.over = true;
            (buffer.wanted, buffer.waker) = (None, None);
            std::mem::take(&mut buffer.items)
        };
        drop(items);
        if !self.slot.is_done() {
            self.client.cancel(self.id);
        }
        self.client.end_stream(self.id);
    }
}

impl<T: Object> Node for RemoteStream<T> {
    node_slot!();

    fn kind(&self) -> &'static str {
        "stream"
    }

    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn fail(&self, error: Arc<Error>) -> bool {
        let is_first = !self.slot.is_done();
        self.client.fail(self.id, error.clone());
        self.arrive(Err(error));
        is_first
    }

    fn phase(&self) -> Phase {
        match self.is_done() {
            true => Phase::Done,
            false => Phase::Running,
        }
    }

    fn remote_id(&self) -> Option<ObjectId> {
        Some(self.id)
    }
}

/// A stream's producer.
pub(crate) struct StreamEntry<F, D, Args, M>(PhantomData<fn(F, D, Args) -> M>);

impl<F, D, Args, M> Function for StreamEntry<F, D, Args, M>
where
    F: StreamFn<Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    type Function = F;

    fn name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn run(function: F, arrival: Arrival<'_>) -> Result<()> {
        let Arrived::Work(incoming) = arrival.0 else { return Err(wrong_kind(Self::name())) };
        let args: D = incoming.arguments::<Args, D>()?;
        let options = incoming.options()?;
        let buffer = incoming.order.extras.as_ref().map_or(1, |extras| extras.buffer);
        let Incoming { client, reply, .. } = incoming;
        let body = ProducerBody::<F, D, Args, M>::new(function, args);
        let items: Arc<dyn Items<F::Item>> =
            StreamCell::submit(client.core, Location::caller(), body, Some(options), 0);
        let id = reply.id;
        let feeder = Arc::new(Feeder {
            client: client.clone(),
            items,
            state: Mutex::new(FeederState { credit: buffer as u32, sent: 0, is_busy: false, reply: Some(reply) }),
        });
        client.feeds(id, feeder.clone());
        feeder.pump();
        Ok(())
    }
}

/// Sends the items of a producer here to the consumer elsewhere.
struct Feeder<T: 'static> {
    client: Arc<Client>,
    items: Arc<dyn Items<T>>,
    state: Mutex<FeederState>,
}

struct FeederState {
    credit: u32,
    sent: u32,
    /// A thread is in `pump`.
    is_busy: bool,
    /// Until the end.
    reply: Option<Reply>,
}

/// One of these, without its type.
pub(crate) trait Feed: Send + Sync {
    fn credit(self: Arc<Self>, items: u32);
    /// Nobody wants any more.
    fn stop(&self);
    /// The runtime that it is in ends.
    fn close(&self);
}

impl<T: Object> Feeder<T> {
    /// Sends what there is, as far as the credit goes.
    fn pump(self: Arc<Self>) {
        if std::mem::replace(&mut self.state.lock().is_busy, true) {
            return;
        }
        loop {
            {
                let state = &mut *self.state.lock();
                if state.credit == 0 || state.reply.is_none() {
                    state.is_busy = false;
                    return;
                }
            }
            match self.items.clone().next() {
                Next::Item(item) => {
                    if let Err(error) = guarded("an item", || self.send(&item)) {
                        return self.end(Err(Arc::new(error)));
                    }
                }
                Next::End => return self.end(Ok(())),
                Next::Failed(error) => return self.end(Err(Arc::new(error))),
                Next::Wait(node) => {
                    self.state.lock().is_busy = false;
                    let waiter: Arc<dyn Waiter> = self.clone();
                    if node.add_waiter(&waiter) || std::mem::replace(&mut self.state.lock().is_busy, true) {
                        return;
                    }
                }
            }
        }
    }

    fn send(&self, item: &ObjectRef<T>) -> Result<()> {
        let value = item.source().share().map_err(|error| (*error).clone())?;
        let packed = serial::pack_shared(&value, "an item")?;
        let (stream, number) = {
            let state = &mut *self.state.lock();
            state.credit -= 1;
            state.sent += 1;
            match &state.reply {
                Some(reply) => (reply.id, state.sent),
                None => return Ok(()),
            }
        };
        self.client.send_item(stream, number, packed)
    }

    fn end(&self, result: Result<(), Arc<Error>>) {
        let reply = self.state.lock().reply.take();
        let Some(reply) = reply else { return };
        self.items.clone().close();
        self.client.fed(reply.id);
        let result = result.and_then(|()| serial::pack(&(), "the end of a stream").map_err(Arc::new));
        reply.client.clone().ended(reply, result);
    }
}

impl<T: Object> Waiter for Feeder<T> {
    fn notify(self: Arc<Self>) {
        self.pump();
    }
}

impl<T: Object> Feed for Feeder<T> {
    fn credit(self: Arc<Self>, items: u32) {
        self.state.lock().credit += items;
        self.pump();
    }

    fn stop(&self) {
        let node: Arc<dyn Node> = self.items.clone();
        self.end(Err(Arc::new(Error::Cancelled { origin: node.origin() })));
    }

    fn close(&self) {
        let node: Arc<dyn Node> = self.items.clone();
        self.end(Err(Arc::new(self.client.core.shutdown_error(node.label()))));
    }
}
