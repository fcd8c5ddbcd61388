//! A bounded queue between tasks, actors and threads.

use crate::{
    error::{Error, Result},
    local::{
        Core,
        node::{Node, Promise},
        timer, wait,
    },
    object::{Object, ObjectRef},
    runtime::Runtime,
    serial,
};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{collections::VecDeque, fmt, panic::Location, sync::Arc, time::Duration};

/// A first-in, first-out queue of at most so many items, for any number of producers and
/// consumers. Handles are cheap to clone and can be passed to tasks and actors.
///
/// ```
/// # use outray::{Queue, Runtime};
/// fn produce(queue: Queue<u32>) {
///     (0..100).for_each(|item| queue.put(item).unwrap());
/// }
/// let rt = Runtime::local();
/// let queue = Queue::bounded(&rt, 10)?;
/// rt.submit(produce, queue.clone());
/// let sum: u32 = (0..100).map(|_| queue.get().unwrap()).sum();
/// assert_eq!(sum, 4950);
/// # Ok::<(), outray::Error>(())
/// ```
pub struct Queue<T: Object>(Arc<Inner<T>>);

struct Inner<T> {
    core: &'static Core,
    capacity: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    items: VecDeque<T>,
    /// Who waits for an item, and who for room: each promise is completed when there is one.
    getters: VecDeque<Arc<Promise<()>>>,
    putters: VecDeque<Arc<Promise<()>>>,
}

impl<T: Object> Queue<T> {
    /// A queue of at most `capacity` items.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the capacity is 0.
    pub fn bounded(rt: &Runtime, capacity: usize) -> Result<Self> {
        if capacity == 0 {
            return Err(Error::invalid("a queue's capacity is at least 1"));
        }
        let state = State { items: VecDeque::new(), getters: VecDeque::new(), putters: VecDeque::new() };
        Ok(Queue(Arc::new(Inner { core: rt.core, capacity, state: Mutex::new(state) })))
    }

    /// How many items it can hold.
    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// How many items it holds now.
    pub fn len(&self) -> usize {
        self.0.state.lock().items.len()
    }

    /// Whether it holds nothing now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends an item, if there is room.
    ///
    /// # Errors
    /// The item, if the queue is full.
    pub fn try_put(&self, item: T) -> Result<(), T> {
        let getter = {
            let state = &mut *self.0.state.lock();
            if state.items.len() >= self.0.capacity {
                return Err(item);
            }
            state.items.push_back(item);
            state.getters.pop_front()
        };
        notify(getter);
        Ok(())
    }

    /// Takes the first item, if there is one.
    pub fn try_get(&self) -> Option<T> {
        let (item, putter) = {
            let state = &mut *self.0.state.lock();
            let item = state.items.pop_front()?;
            (item, state.putters.pop_front())
        };
        notify(putter);
        Some(item)
    }

    /// Appends an item. Blocks while the queue is full.
    ///
    /// # Errors
    /// [`Error::Shutdown`]; in deterministic mode [`Error::Deadlock`], if nobody is left to make room.
    pub fn put(&self, item: T) -> Result<()> {
        self.put_within(item, None)
    }

    /// Appends an item, if there is room within `timeout`.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; the item is dropped then.
    pub fn put_timeout(&self, item: T, timeout: Duration) -> Result<()> {
        self.put_within(item, Some(timeout))
    }

    fn put_within(&self, item: T, timeout: Option<Duration>) -> Result<()> {
        let mut kept = Some(item);
        let put = |queue: &Self| match kept.take().map(|item| queue.try_put(item)) {
            Some(Err(item)) => {
                kept = Some(item);
                None
            }
            _ => Some(()),
        };
        self.retry(timeout, Row::Room, put)?.ok_or(Error::QueueFull { capacity: self.0.capacity })
    }

    /// Takes the first item. Blocks while the queue is empty.
    ///
    /// # Errors
    /// [`Error::Shutdown`]; in deterministic mode [`Error::Deadlock`], if nobody is left to put one.
    pub fn get(&self) -> Result<T> {
        self.retry(None, Row::Items, Queue::try_get)?.ok_or(Error::QueueEmpty)
    }

    /// Takes the first item, if there is one within `timeout`.
    ///
    /// # Errors
    /// [`Error::QueueEmpty`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<T> {
        self.retry(Some(timeout), Row::Items, Queue::try_get)?.ok_or(Error::QueueEmpty)
    }

    /// Appends an item; the future waits while the queue is full.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub async fn put_async(&self, item: T) -> Result<()> {
        let mut item = item;
        loop {
            item = match self.try_put(item) {
                Ok(()) => return Ok(()),
                Err(item) => item,
            };
            self.turn(Row::Room).await?;
        }
    }

    /// Takes the first item; the future waits while the queue is empty.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn get_async(&self) -> Result<T> {
        loop {
            if let Some(item) = self.try_get() {
                return Ok(item);
            }
            self.turn(Row::Items).await?;
        }
    }

    /// Waits, in the row, until it may be worth another attempt.
    async fn turn(&self, row: Row) -> Result<()> {
        let place = Place::new(self, row);
        let open = self.0.state.lock().is_open(row, self.0.capacity);
        if !open {
            ObjectRef::first(place.promise.clone()).await?;
        }
        Ok(())
    }

    /// Attempts it until it works, or the time is up (`None`).
    fn retry<R>(
        &self,
        timeout: Option<Duration>,
        row: Row,
        mut attempt: impl FnMut(&Self) -> Option<R>,
    ) -> Result<Option<R>> {
        let until = timeout.map(|timeout| timer::now(self.0.core).saturating_add(timeout));
        loop {
            if let Some(result) = attempt(self) {
                return Ok(Some(result));
            }
            let place = Place::new(self, row);
            // Between the attempt and the place in the row things may have changed.
            if let Some(result) = attempt(self) {
                return Ok(Some(result));
            }
            let left = until.map(|until| until.saturating_sub(timer::now(self.0.core)));
            let node: Arc<dyn Node> = place.promise.clone();
            match wait::wait(&node, left) {
                Ok(()) => place.promise.result()?,
                Err(Error::Timeout { .. }) => return Ok(attempt(self)),
                Err(error) => return Err(error),
            }
        }
    }
}

/// What somebody waits for.
#[derive(Clone, Copy)]
enum Row {
    Items,
    Room,
}

/// A place in a row of those who wait. Whoever leaves with a turn that was not used passes it on.
struct Place<'a, T: Object> {
    queue: &'a Queue<T>,
    row: Row,
    promise: Arc<Promise<()>>,
}

impl<'a, T: Object> Place<'a, T> {
    fn new(queue: &'a Queue<T>, row: Row) -> Self {
        let promise = Promise::empty(queue.0.core, Location::caller(), None);
        queue.0.state.lock().row(row).push_back(promise.clone());
        queue.0.core.suspend(&(promise.clone() as Arc<dyn Node>));
        Place { queue, row, promise }
    }
}

impl<T: Object> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.queue.0.core.resume(self.promise.id());
        let next = {
            let state = &mut *self.queue.0.state.lock();
            let row = state.row(self.row);
            match row.iter().position(|promise| Arc::ptr_eq(promise, &self.promise)) {
                Some(at) => {
                    row.remove(at);
                    None
                }
                // It was our turn. If it is still worth an attempt, it is now the next one's.
                None if state.is_open(self.row, self.queue.0.capacity) => state.row(self.row).pop_front(),
                None => None,
            }
        };
        notify(next);
    }
}

impl<T> State<T> {
    fn row(&mut self, row: Row) -> &mut VecDeque<Arc<Promise<()>>> {
        match row {
            Row::Items => &mut self.getters,
            Row::Room => &mut self.putters,
        }
    }

    /// Whether those in the row might now succeed.
    fn is_open(&self, row: Row, capacity: usize) -> bool {
        match row {
            Row::Items => !self.items.is_empty(),
            Row::Room => self.items.len() < capacity,
        }
    }
}

fn notify(waiting: Option<Arc<Promise<()>>>) {
    if let Some(promise) = waiting {
        promise.complete(Ok(()));
    }
}

impl<T: Object> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue(self.0.clone())
    }
}

impl<T: Object> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({}/{})", self.len(), self.0.capacity)
    }
}

impl<T: Object> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serial::put_handle(Arc::new(self.clone()), serializer)
    }
}

impl<'de, T: Object> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serial::take_handle(deserializer)
    }
}

impl<T: Object> serial::Passed for Queue<T> {
    #[cfg(feature = "cluster")]
    fn export(
        &self,
        _: &Arc<crate::cluster::client::Client>,
    ) -> Result<(crate::cluster::wire::Handle, Box<dyn std::any::Any + Send + Sync>)> {
        Err(Error::Unsupported { reason: "not yet".into() })
    }

    #[cfg(feature = "cluster")]
    fn import(
        _: &Arc<crate::cluster::client::Client>,
        _: &crate::cluster::wire::Handle,
        _: Option<&bytes::Bytes>,
    ) -> Result<Self> {
        Err(Error::Unsupported { reason: "not yet".into() })
    }
}
