//! Objects and the handles to them.

use crate::{
    args::upstream_err,
    error::Result,
    local::{
        node::{Node, Source},
        slot::{Outcome, Waiter},
        wait,
    },
    serial,
};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use std::{
    fmt::{self, Display},
    future::{Future, IntoFuture},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Whatever can be an argument, a result or a `put`: a value that could cross a process boundary.
///
/// Implemented for everything that is `Serialize + DeserializeOwned + Send + Sync + 'static`.
/// Nothing is serialized in local mode, but for `check_serialization`, retries and checkpoints; the
/// bound is the same so that the same program can run on a cluster. The format is MessagePack, whose
/// one trap is that `Some(None)` and `Some(())` come back as `None`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an object",
    label = "cannot cross a process boundary",
    note = "objects are `Serialize + DeserializeOwned + Send + Sync + 'static`: derive serde's traits, own what you borrow, and replace `Rc` by `Arc`"
)]
pub trait Object: Serialize + DeserializeOwned + Send + Sync + 'static {}
impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Object for T {}

/// A handle to an object that exists, or will when its task ends.
///
/// Handles are cheap to clone, can be sent anywhere, stored in values and in actors, and awaited.
/// The object is freed when the last handle to it is dropped; dropping a handle does not stop the
/// task (see [`ObjectRef::cancel`]).
///
/// # Blocking
/// `get` and its like block until the object is there. Inside a task they run what they wait for,
/// if it has not started, or let another thread have their CPU, so they never waste a core; a
/// circle of tasks that wait for each other gets [`Error::WaitCycle`](crate::Error::WaitCycle), also when
/// they are in different processes of a cluster.
pub struct ObjectRef<T: 'static>(Arc<dyn Source<T>>);

impl<T: Send + Sync + 'static> ObjectRef<T> {
    /// Takes over the handle that a new node counts from the start.
    pub(crate) fn first(source: Arc<dyn Source<T>>) -> Self {
        ObjectRef(source)
    }

    pub(crate) fn node(&self) -> Arc<dyn Node> {
        self.0.clone()
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn source(&self) -> &Arc<dyn Source<T>> {
        &self.0
    }

    /// Blocks until it is ready. An error means that it never will be, not that the task failed.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        if self.0.is_done() {
            return Ok(());
        }
        wait::wait(&self.node(), timeout)
    }

    /// The object's number, unique in this process. A task and its result have the same.
    pub fn id(&self) -> u64 {
        self.0.meta().id
    }

    /// Whether the object is there, or its task has failed: whether `get` would return at once.
    pub fn is_ready(&self) -> bool {
        self.0.wanted();
        self.0.is_done()
    }

    /// The object, copied out.
    ///
    /// # Errors
    /// What its task died of; [`Error::WaitCycle`](crate::Error::WaitCycle) if waiting would never end.
    pub fn get(&self) -> Result<T>
    where
        T: Clone,
    {
        self.wait(None)?;
        owned(self.0.copy())
    }

    /// The object, shared: no copy, whatever its size.
    ///
    /// # Errors
    /// As [`ObjectRef::get`].
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// let big = rt.put(vec![0u8; 1 << 20]);
    /// let (a, b) = (big.get_shared()?, big.get_shared()?);
    /// assert!(std::sync::Arc::ptr_eq(&a, &b));
    /// # Ok::<(), outray::Error>(())
    /// ```
    pub fn get_shared(&self) -> Result<Arc<T>> {
        self.wait(None)?;
        owned(self.0.share())
    }

    /// The object, copied out, if it is there within `timeout`.
    ///
    /// # Errors
    /// [`Error::Timeout`](crate::Error::Timeout) says what the task is doing meanwhile; the task goes on.
    pub fn get_timeout(&self, timeout: Duration) -> Result<T>
    where
        T: Clone,
    {
        self.wait(Some(timeout))?;
        owned(self.0.copy())
    }

    /// The object itself: moved out if this is the only handle, copied otherwise.
    ///
    /// # Errors
    /// As [`ObjectRef::get`].
    pub fn take(self) -> Result<T>
    where
        T: Clone,
    {
        self.take_with(T::clone)
    }

    fn take_with(self, copy: impl FnOnce(&T) -> T) -> Result<T> {
        self.wait(None)?;
        if self.0.meta().handles.load(Ordering::Acquire) > 1 {
            return owned(self.0.share()).map(|shared| copy(&shared));
        }
        let taken = owned(self.0.take())?;
        Ok(taken.unwrap_or_else(|shared| copy(&shared)))
    }

    /// Asks for the task to be cancelled.
    ///
    /// A task that has not started never will. A running one is told through
    /// [`task::Context::is_cancelled`](crate::task::Context::is_cancelled), an `async` one is
    /// dropped where it waits; its result is [`Error::Cancelled`](crate::Error::Cancelled) at once, whatever it returns
    /// later. Dependents fail in turn. An object that is there already stays.
    ///
    /// ```
    /// # use outray::Runtime;
    /// fn until_cancelled() {
    ///     while !outray::task::context().is_cancelled() {
    ///         std::thread::yield_now();
    ///     }
    /// }
    /// let rt = Runtime::local();
    /// let task = rt.submit(until_cancelled, ());
    /// task.cancel();
    /// assert!(task.get().unwrap_err().is_cancelled());
    /// ```
    pub fn cancel(&self) {
        self.node().cancel();
    }
}

impl<A: Send + Sync + 'static, E: Display + Send + Sync + 'static> ObjectRef<Result<A, E>> {
    /// The `Ok` value, moved or copied; an `Err` is the dependent's failure.
    pub(crate) fn take_ok(self) -> Result<A>
    where
        A: Clone,
    {
        self.wait(None)?;
        let node = self.node();
        let unwrap = |result: Result<A, E>| result.map_err(|error| upstream_err(&*node, &error));
        if self.0.meta().handles.load(Ordering::Acquire) > 1 {
            return self.share_ok().map(|shared| A::clone(&shared));
        }
        match owned(self.0.take())? {
            Ok(result) => unwrap(result),
            Err(shared) => match &*shared {
                Ok(value) => Ok(value.clone()),
                Err(error) => Err(upstream_err(&*node, error)),
            },
        }
    }

    /// The `Ok` value, copied once for all who share it.
    pub(crate) fn share_ok(self) -> Result<Arc<A>>
    where
        A: Clone,
    {
        self.wait(None)?;
        let node = self.node();
        let copy = |result: &Result<A, E>| match result {
            Ok(value) => Ok(value.clone()),
            Err(error) => Err(upstream_err(&*node, error)),
        };
        owned(self.0.project(copy))?
    }
}

fn owned<T>(outcome: Outcome<T>) -> Result<T> {
    outcome.map_err(|error| (*error).clone())
}

impl<T: 'static> Clone for ObjectRef<T> {
    fn clone(&self) -> Self {
        self.0.meta().handles.fetch_add(1, Ordering::Relaxed);
        ObjectRef(self.0.clone())
    }
}

impl<T: 'static> Drop for ObjectRef<T> {
    fn drop(&mut self) {
        let handles = &self.0.meta().handles;
        // Handles are made from handles: while there is one, it stays one.
        let is_last = match handles.load(Ordering::Acquire) {
            1 => {
                handles.store(0, Ordering::Release);
                true
            }
            _ => handles.fetch_sub(1, Ordering::AcqRel) == 1,
        };
        // If nothing else refers to the cell its value goes with it.
        if is_last && Arc::strong_count(&self.0) > 1 {
            self.0.discard();
        }
    }
}

impl<T: 'static> fmt::Debug for ObjectRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.0.is_done() { "ready" } else { "pending" };
        write!(f, "ObjectRef(#{}, {state})", self.0.meta().id)
    }
}

impl<T: Object> Serialize for ObjectRef<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serial::put_handle(Arc::new(self.clone()), serializer)
    }
}

impl<'de, T: Object> Deserialize<'de> for ObjectRef<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serial::take_handle(deserializer)
    }
}

impl<T: Object> serial::Passed for ObjectRef<T> {
    #[cfg(feature = "cluster")]
    fn export(
        &self,
        client: &Arc<crate::cluster::client::Client>,
    ) -> Result<(crate::cluster::wire::Handle, Box<dyn std::any::Any + Send + Sync>)> {
        client.export(self)
    }

    #[cfg(feature = "cluster")]
    fn import(
        client: &Arc<crate::cluster::client::Client>,
        handle: &crate::cluster::wire::Handle,
        given: &crate::serial::Given,
    ) -> Result<Self> {
        client.import(handle.object(), given)
    }
}

/// The future of an object: what `handle.await` awaits. Yields what [`ObjectRef::get`] returns.
///
/// # Cancellation
/// Dropping it stops the waiting and nothing else.
pub struct ObjectFuture<T: 'static> {
    handle: ObjectRef<T>,
    waiting: Option<Waiting>,
}

struct Waiting {
    waker: Arc<WakerSlot>,
    waits: Option<wait::Waits>,
}

struct WakerSlot(Mutex<Option<Waker>>);

impl Waiter for WakerSlot {
    fn notify(self: Arc<Self>) {
        let waker = self.0.lock().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T: 'static> fmt::Debug for ObjectFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectFuture").field(&self.handle).finish()
    }
}

impl<T: Clone + Send + Sync + 'static> Future for ObjectFuture<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(waiting) = &this.waiting {
            *waiting.waker.0.lock() = Some(cx.waker().clone());
        }
        if !this.handle.is_ready() && this.waiting.is_none() {
            let waker = Arc::new(WakerSlot(Mutex::new(Some(cx.waker().clone()))));
            let waiter: Arc<dyn Waiter> = waker.clone();
            let node = this.handle.node();
            if node.add_waiter(&waiter) {
                match wait::Waits::enter(&node) {
                    Ok(waits) => {
                        if let Some(waits) = &waits {
                            waits.listen(waiter);
                        }
                        this.waiting = Some(Waiting { waker, waits });
                    }
                    Err(error) => {
                        node.remove_waiter(&waiter);
                        return Poll::Ready(Err(error));
                    }
                }
            }
        }
        if !this.handle.is_ready() {
            let waits = this.waiting.as_ref().and_then(|waiting| waiting.waits.as_ref());
            return match waits.and_then(wait::Waits::error) {
                Some(error) => {
                    this.stop_waiting();
                    Poll::Ready(Err(error))
                }
                None => Poll::Pending,
            };
        }
        this.waiting = None;
        Poll::Ready(owned(this.handle.0.copy()))
    }
}

impl<T: 'static> ObjectFuture<T> {
    fn stop_waiting(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            let waiter: Arc<dyn Waiter> = waiting.waker;
            self.handle.0.remove_waiter(&waiter);
        }
    }
}

impl<T: 'static> Drop for ObjectFuture<T> {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl<T: Clone + Send + Sync + 'static> IntoFuture for ObjectRef<T> {
    type Output = Result<T>;
    type IntoFuture = ObjectFuture<T>;

    fn into_future(self) -> ObjectFuture<T> {
        ObjectFuture { handle: self, waiting: None }
    }
}

impl<T: Clone + Send + Sync + 'static> IntoFuture for &ObjectRef<T> {
    type Output = Result<T>;
    type IntoFuture = ObjectFuture<T>;

    fn into_future(self) -> ObjectFuture<T> {
        self.clone().into_future()
    }
}
