//! Streaming tasks: the consumer's side.

use crate::{
    args::{Deferred, IntoArgs, Visitor},
    error::Result,
    function::{Producer, StreamFn},
    local::{
        Core,
        node::{Node, Options},
        stream::{Items, Next, StreamBody, StreamCell},
        wait,
    },
    object::ObjectRef,
    serial,
    task::assert_captures_nothing,
};
use futures_core::Stream;
use std::{
    fmt,
    marker::PhantomData,
    panic::Location,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// How many items a producer may be ahead, unless it is told otherwise.
const BUFFER: usize = 16;

/// A streaming task with options: made by
/// [`Runtime::streaming`](crate::Runtime::streaming), run by [`StreamTask::submit`].
#[must_use = "a streaming task runs when it is submitted"]
pub struct StreamTask<F, Args, M> {
    core: &'static Core,
    f: F,
    name: Option<Arc<str>>,
    buffer: usize,
    _types: PhantomData<fn(Args) -> M>,
}

impl<F, Args, M> fmt::Debug for StreamTask<F, Args, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = std::any::type_name::<F>();
        f.debug_struct("StreamTask").field("function", &function).field("buffer", &self.buffer).finish_non_exhaustive()
    }
}

impl<F, Args, M> StreamTask<F, Args, M> {
    pub(crate) fn new(core: &'static Core, f: F) -> Self {
        StreamTask { core, f, name: None, buffer: BUFFER, _types: PhantomData }
    }

    /// A name for messages, lists and the timeline; by default the function's path.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many items the producer may be ahead of the consumer; 16 by default, at least 1.
    pub fn buffer(mut self, items: usize) -> Self {
        self.buffer = items;
        self
    }

    /// Runs the task.
    #[track_caller]
    pub fn submit<In>(&self, args: In) -> ObjectStream<F::Item>
    where
        F: StreamFn<Args, M>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
    {
        const { assert_captures_nothing::<F>() }
        let options = self.name.clone().map(|name| Box::new(Options { name: Some(name), ..Options::default() }));
        #[cfg(feature = "cluster")]
        if let Some(client) = self.core.client.get().filter(|client| client.takes_streams()) {
            let location = Location::caller();
            let stream =
                client.submit_stream::<F, In::Deferred, Args, M>(location, args.into_args(), options, self.buffer);
            return ObjectStream(stream);
        }
        let body = ProducerBody::new(self.f.clone(), args.into_args());
        let cell = StreamCell::submit(self.core, Location::caller(), body, options, self.buffer.max(1));
        self.core.yield_if_deterministic();
        ObjectStream(cell)
    }
}

pub(crate) struct ProducerBody<F, D, Args, M> {
    f: F,
    args: D,
    _types: PhantomData<fn(Args) -> M>,
}

impl<F, D, Args, M> ProducerBody<F, D, Args, M> {
    pub(crate) fn new(f: F, args: D) -> Self {
        ProducerBody { f, args, _types: PhantomData }
    }
}

impl<F, D, Args, M> StreamBody for ProducerBody<F, D, Args, M>
where
    F: StreamFn<Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    type Item = F::Item;

    fn type_name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>)) {
        self.args.dependencies(&mut Visitor(visit));
    }

    fn duplicate(&self) -> Result<Self> {
        Ok(ProducerBody { f: self.f.clone(), args: self.args.duplicate()?, _types: PhantomData })
    }

    fn round_trip(item: F::Item) -> Result<F::Item> {
        serial::round_trip(&item, "an item")
    }

    fn start(self) -> Result<Producer<F::Item>> {
        Ok(self.f.produce(self.args.resolve()?))
    }
}

/// The items of a streaming task, as they come: an iterator of handles, or a
/// [`Stream`](futures_core::Stream) of them.
///
/// The task runs ahead by as many items as its buffer holds, and then waits, without a thread,
/// until the consumer takes one. If it fails the last item is its error. Dropping this stops it.
///
/// # Blocking
/// `next` blocks until there is an item, like [`ObjectRef::get`].
pub struct ObjectStream<T: Send + Sync + 'static>(Arc<dyn Items<T>>);

impl<T: Send + Sync + 'static> ObjectStream<T> {
    /// The items' values instead of handles to them.
    pub fn values(self) -> Values<T> {
        Values(self)
    }
}

impl<T: Send + Sync + 'static> Iterator for ObjectStream<T> {
    type Item = Result<ObjectRef<T>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.clone().next() {
                Next::Item(item) => return Some(Ok(item)),
                Next::Failed(error) => return Some(Err(error)),
                Next::End => return None,
                Next::Wait(node) => {
                    if let Err(error) = wait::wait(&node, None) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

impl<T: Send + Sync + 'static> Stream for ObjectStream<T> {
    type Item = Result<ObjectRef<T>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.clone().poll_next(cx)
    }
}

impl<T: Send + Sync + 'static> Drop for ObjectStream<T> {
    fn drop(&mut self) {
        self.0.clone().close();
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for ObjectStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node: Arc<dyn Node> = self.0.clone();
        write!(f, "ObjectStream({})", node.label())
    }
}

/// The values of a stream: see [`ObjectStream::values`].
#[derive(Debug)]
pub struct Values<T: Send + Sync + 'static>(ObjectStream<T>);

impl<T: Clone + Send + Sync + 'static> Iterator for Values<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|item| item.and_then(ObjectRef::take))
    }
}
