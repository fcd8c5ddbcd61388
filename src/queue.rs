//! A bounded queue between tasks, actors and threads.

#[cfg(feature = "cluster")]
use crate::{
    actor::Actor,
    local::{node::contain, slot::Waiter},
};
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
pub struct Queue<T: Object>(Place<T>);

/// Where a queue is.
enum Place<T: Object> {
    /// In this process.
    Here(Here<T>),
    /// In a worker of the cluster, as the state of an actor.
    #[cfg(feature = "cluster")]
    There { actor: Actor<Hosted<T>>, capacity: usize },
}

struct Here<T>(Arc<Inner<T>>);

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

/// Does the same with a queue wherever it is: `here` there, or a call of `there`, whose failure is `failed`.
macro_rules! either {
    ($self:ident, |$queue:ident| $here:expr, $method:ident($($args:expr),*), $failed:expr) => {
        match &$self.0 {
            Place::Here($queue) => $here,
            #[cfg(feature = "cluster")]
            Place::There { actor, .. } => match actor.call(Hosted::$method, ($($args),*)).take() {
                Ok(result) => result,
                Err(error) => $failed(error),
            },
        }
    };
}

impl<T: Object> Queue<T> {
    /// A queue of at most `capacity` items. On a cluster it lives in a worker, as an actor does.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the capacity is 0.
    pub fn bounded(rt: &Runtime, capacity: usize) -> Result<Self> {
        if capacity == 0 {
            return Err(Error::invalid("a queue's capacity is at least 1"));
        }
        #[cfg(feature = "cluster")]
        if rt.core.is_on_cluster() {
            return Ok(Queue(Place::There { actor: rt.actor(Hosted::<T>::new, capacity), capacity }));
        }
        Ok(Queue(Place::Here(Here::new(rt.core, capacity))))
    }

    /// How many items it can hold.
    pub fn capacity(&self) -> usize {
        match &self.0 {
            Place::Here(queue) => queue.0.capacity,
            #[cfg(feature = "cluster")]
            Place::There { capacity, .. } => *capacity,
        }
    }

    /// How many items it holds now.
    pub fn len(&self) -> usize {
        either!(self, |queue| queue.len(), len(), |_| 0)
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
        match &self.0 {
            Place::Here(queue) => queue.try_put(item),
            #[cfg(feature = "cluster")]
            Place::There { actor, .. } => {
                // What is refused comes back; a queue that has died takes all.
                let refused = actor.call(Hosted::try_put, Item(Some(Arc::new(item)))).get_shared();
                match refused.map(|refused| Arc::try_unwrap(refused).map(|item| item.0.map(Arc::try_unwrap))) {
                    Ok(Ok(Some(Ok(item)))) => Err(item),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Takes the first item, if there is one.
    pub fn try_get(&self) -> Option<T> {
        match &self.0 {
            Place::Here(queue) => queue.try_get(),
            #[cfg(feature = "cluster")]
            Place::There { actor, .. } => got(actor.call(Hosted::try_get, ())).ok().flatten(),
        }
    }

    /// Appends an item. Blocks while the queue is full.
    ///
    /// # Errors
    /// [`Error::Shutdown`]; in deterministic mode [`Error::Deadlock`], if nobody is left to make room;
    /// [`Error::ActorDied`] if it was in a process that died.
    pub fn put(&self, item: T) -> Result<()> {
        either!(self, |queue| queue.put(item), put(Item(Some(Arc::new(item)))), Err)
    }

    /// Appends an item, if there is room within `timeout`.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; the item is dropped then.
    pub fn put_timeout(&self, item: T, timeout: Duration) -> Result<()> {
        either!(self, |queue| queue.put_timeout(item, timeout), put_timeout(Item(Some(Arc::new(item))), timeout), Err)
    }

    /// Takes the first item. Blocks while the queue is empty.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn get(&self) -> Result<T> {
        match &self.0 {
            Place::Here(queue) => queue.get(),
            #[cfg(feature = "cluster")]
            Place::There { actor, .. } => got(actor.call(Hosted::get, ()))?.ok_or(Error::QueueEmpty),
        }
    }

    /// Takes the first item, if there is one within `timeout`.
    ///
    /// # Errors
    /// [`Error::QueueEmpty`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<T> {
        match &self.0 {
            Place::Here(queue) => queue.get_timeout(timeout),
            #[cfg(feature = "cluster")]
            Place::There { actor, .. } => got(actor.call(Hosted::get_timeout, timeout))?.ok_or(Error::QueueEmpty),
        }
    }

    /// Appends an item; the future waits while the queue is full.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub async fn put_async(&self, item: T) -> Result<()> {
        match &self.0 {
            Place::Here(queue) => queue.put_async(item).await,
            #[cfg(feature = "cluster")]
            Place::There { actor, .. } => actor.call(Hosted::put, Item(Some(Arc::new(item)))).await?,
        }
    }

    /// Takes the first item; the future waits while the queue is empty.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn get_async(&self) -> Result<T> {
        match &self.0 {
            Place::Here(queue) => queue.get_async().await,
            #[cfg(feature = "cluster")]
            Place::There { actor, .. } => {
                let mut waits = Withdrawn { item: Some(actor.call(Hosted::get, ())), actor };
                if let Some(item) = &waits.item {
                    item.await?;
                }
                waits.item.take().map_or(Ok(None), got)?.ok_or(Error::QueueEmpty)
            }
        }
    }
}

/// An item on its way, or none. Shared, because a result may be, and a `T` need not be `Clone`.
#[cfg(feature = "cluster")]
#[derive(Serialize, Deserialize)]
#[serde(bound = "T: Object")]
struct Item<T>(#[serde(with = "none_or_one")] Option<Arc<T>>);

/// As a list: MessagePack does not tell `Some(())` from `None`.
#[cfg(feature = "cluster")]
mod none_or_one {
    use super::{Arc, Deserialize, Deserializer, Object, Serialize, Serializer};

    pub(super) fn serialize<T: Object, S: Serializer>(item: &Option<Arc<T>>, serializer: S) -> Result<S::Ok, S::Error> {
        item.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T: Object, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<T>>, D::Error> {
        Vec::deserialize(deserializer).map(|mut items| items.pop())
    }
}

#[cfg(feature = "cluster")]
impl<T> Clone for Item<T> {
    fn clone(&self) -> Self {
        Item(self.0.clone())
    }
}

/// The item that a call has got.
#[cfg(feature = "cluster")]
fn got<T: Object>(call: ObjectRef<Item<T>>) -> Result<Option<T>> {
    let item = call.take()?;
    // There was one handle, so nobody shares it.
    Ok(item.0.and_then(|item| Arc::try_unwrap(item).ok()))
}

/// A call that waits for an item. If its future is dropped it takes none.
#[cfg(feature = "cluster")]
struct Withdrawn<'a, T: Object> {
    item: Option<ObjectRef<Item<T>>>,
    actor: &'a Actor<Hosted<T>>,
}

#[cfg(feature = "cluster")]
impl<T: Object> Drop for Withdrawn<'_, T> {
    fn drop(&mut self) {
        let Some(item) = self.item.take() else { return };
        let node = item.node();
        node.withdraw();
        // It may have been its turn already.
        let waiter: Arc<dyn Waiter> = Arc::new(GiveBack(Mutex::new(Some((item, self.actor.clone())))));
        if !node.add_waiter(&waiter) {
            waiter.notify();
        }
    }
}

/// Puts an item that nobody wants any more back.
#[cfg(feature = "cluster")]
struct GiveBack<T: Object>(Mutex<Option<Unwanted<T>>>);

#[cfg(feature = "cluster")]
type Unwanted<T> = (ObjectRef<Item<T>>, Actor<Hosted<T>>);

#[cfg(feature = "cluster")]
impl<T: Object> Waiter for GiveBack<T> {
    fn notify(self: Arc<Self>) {
        let Some((item, actor)) = self.0.lock().take() else { return };
        contain(|| {
            if let Ok(Some(item)) = got(item) {
                actor.call(Hosted::give_back, Item(Some(Arc::new(item))));
            }
        });
    }
}

/// A queue as the state of an actor.
#[cfg(feature = "cluster")]
struct Hosted<T>(Here<T>);

#[cfg(feature = "cluster")]
impl<T: Object> Hosted<T> {
    fn new(capacity: usize) -> Self {
        Hosted(Here::new(Runtime::current().core, capacity))
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn try_put(&self, item: Item<T>) -> Item<T> {
        Item(unshare(item).and_then(|item| self.0.try_put(item).err()).map(Arc::new))
    }

    fn try_get(&self) -> Item<T> {
        Item(self.0.try_get().map(Arc::new))
    }

    async fn put(&self, item: Item<T>) -> Result<()> {
        match unshare(item) {
            Some(item) => self.0.put_async(item).await,
            None => Ok(()),
        }
    }

    fn put_timeout(&self, item: Item<T>, timeout: Duration) -> Result<()> {
        unshare(item).map_or(Ok(()), |item| self.0.put_timeout(item, timeout))
    }

    async fn get(&self) -> Item<T> {
        Item(self.0.get_async().await.ok().map(Arc::new))
    }

    fn give_back(&self, item: Item<T>) {
        if let Some(item) = unshare(item) {
            self.0.give_back(item);
        }
    }

    fn get_timeout(&self, timeout: Duration) -> Item<T> {
        Item(self.0.get_timeout(timeout).ok().map(Arc::new))
    }
}

/// What has just arrived is nobody else's.
#[cfg(feature = "cluster")]
fn unshare<T>(item: Item<T>) -> Option<T> {
    item.0.and_then(|item| Arc::try_unwrap(item).ok())
}

impl<T: Object> Here<T> {
    fn new(core: &'static Core, capacity: usize) -> Self {
        let state = State { items: VecDeque::new(), getters: VecDeque::new(), putters: VecDeque::new() };
        Here(Arc::new(Inner { core, capacity, state: Mutex::new(state) }))
    }

    fn len(&self) -> usize {
        self.0.state.lock().items.len()
    }

    fn try_put(&self, item: T) -> Result<(), T> {
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

    fn try_get(&self) -> Option<T> {
        let (item, putter) = {
            let state = &mut *self.0.state.lock();
            let item = state.items.pop_front()?;
            (item, state.putters.pop_front())
        };
        notify(putter);
        Some(item)
    }

    /// Back to the front, where it was; there may be one more than there is room for.
    #[cfg(feature = "cluster")]
    fn give_back(&self, item: T) {
        let getter = {
            let state = &mut *self.0.state.lock();
            state.items.push_front(item);
            state.getters.pop_front()
        };
        notify(getter);
    }

    fn put(&self, item: T) -> Result<()> {
        self.put_within(item, None)
    }

    fn put_timeout(&self, item: T, timeout: Duration) -> Result<()> {
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

    fn get(&self) -> Result<T> {
        self.retry(None, Row::Items, Here::try_get)?.ok_or(Error::QueueEmpty)
    }

    fn get_timeout(&self, timeout: Duration) -> Result<T> {
        self.retry(Some(timeout), Row::Items, Here::try_get)?.ok_or(Error::QueueEmpty)
    }

    async fn put_async(&self, item: T) -> Result<()> {
        let mut item = item;
        loop {
            item = match self.try_put(item) {
                Ok(()) => return Ok(()),
                Err(item) => item,
            };
            self.turn(Row::Room).await?;
        }
    }

    async fn get_async(&self) -> Result<T> {
        loop {
            if let Some(item) = self.try_get() {
                return Ok(item);
            }
            self.turn(Row::Items).await?;
        }
    }

    async fn turn(&self, row: Row) -> Result<()> {
        let place = Turn::new(self, row);
        let open = self.0.state.lock().is_open(row, self.0.capacity);
        if !open {
            ObjectRef::first(place.promise.clone()).await?;
        }
        Ok(())
    }

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
            let place = Turn::new(self, row);
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
struct Turn<'a, T: Object> {
    queue: &'a Here<T>,
    row: Row,
    promise: Arc<Promise<()>>,
}

impl<'a, T: Object> Turn<'a, T> {
    fn new(queue: &'a Here<T>, row: Row) -> Self {
        let promise = Promise::empty(queue.0.core, Location::caller(), None);
        queue.0.state.lock().row(row).push_back(promise.clone());
        queue.0.core.suspend(&(promise.clone() as Arc<dyn Node>));
        Turn { queue, row, promise }
    }
}

impl<T: Object> Drop for Turn<'_, T> {
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
        Queue(match &self.0 {
            Place::Here(queue) => Place::Here(Here(queue.0.clone())),
            #[cfg(feature = "cluster")]
            Place::There { actor, capacity } => Place::There { actor: actor.clone(), capacity: *capacity },
        })
    }
}

impl<T: Object> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Here(queue) => write!(f, "Queue({}/{})", queue.len(), queue.0.capacity),
            #[cfg(feature = "cluster")]
            Place::There { actor, capacity } => write!(f, "Queue(at {actor:?}, of {capacity})"),
        }
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
        client: &Arc<crate::cluster::client::Client>,
    ) -> Result<(crate::cluster::wire::Handle, Box<dyn std::any::Any + Send + Sync>)> {
        match &self.0 {
            Place::Here(_) => Err(Error::Unsupported {
                reason: "this queue lives in its own process only: make it with the cluster's runtime".into(),
            }),
            Place::There { actor, capacity } => {
                let (handle, guard) = serial::Passed::export(actor, client)?;
                Ok((crate::cluster::wire::Handle::Queue { actor: handle.object(), capacity: *capacity }, guard))
            }
        }
    }

    #[cfg(feature = "cluster")]
    fn import(
        client: &Arc<crate::cluster::client::Client>,
        handle: &crate::cluster::wire::Handle,
        given: &serial::Given,
    ) -> Result<Self> {
        use crate::cluster::wire::Handle;
        let Handle::Queue { actor, capacity } = handle else {
            return Err(Error::Unsupported { reason: "another kind of handle was sent as a queue's".into() });
        };
        let handle = Handle::Actor { actor: *actor, name: None, number: actor.number };
        let actor = serial::Passed::import(client, &handle, given)?;
        Ok(Queue(Place::There { actor, capacity: *capacity }))
    }
}
