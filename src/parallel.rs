//! Data-parallel helpers: `map`, `map_unordered` and `reduce`.

use crate::{
    args::IntoArgs,
    error::{Error, Result},
    function::RemoteFn,
    local::{
        Core,
        node::{Node, Promise},
        task::{Body, BoxFuture, Step, Travel},
        wait,
    },
    object::{Object, ObjectRef},
    progress::Progress,
    runtime::Runtime,
    serial::{self, plain::Items},
    task::{assert_captures_nothing, or_failed, submit, submit_body},
};
use std::{fmt, marker::PhantomData, panic::Location, sync::Arc};

/// With automatic chunking each CPU gets about so many chunks, so that uneven ones even out.
const CHUNKS_PER_CPU: usize = 16;
/// A map over an iterator of unknown length makes chunks of so many items.
const CHUNK_OF_UNKNOWN: usize = 16;
/// `map_unordered` takes no more items than this for a chunk by itself, however many there are.
const MOST_IN_CHUNK: usize = 1024;
/// `map_unordered` keeps so many chunks for each CPU in flight.
const CHUNKS_AHEAD: usize = 4;

/// One task for several items.
pub(crate) struct MapBody<F, A, M> {
    f: F,
    items: Items<A>,
    _types: PhantomData<fn() -> M>,
}

impl<F, A, M> MapBody<F, A, M> {
    pub(crate) fn new(f: F, items: Items<A>) -> Self {
        MapBody { f, items, _types: PhantomData }
    }
}

impl<F, A, M> Travel for MapBody<F, A, M>
where
    F: RemoteFn<(A,), M>,
    A: Object,
    M: 'static,
{
    #[cfg(feature = "cluster")]
    fn site(&self) -> Result<crate::cluster::wire::Site> {
        Ok(crate::cluster::wire::Site::of::<crate::cluster::travel::MapEntry<F, A, M>>()?)
    }

    #[cfg(feature = "cluster")]
    fn pack(&mut self) -> Result<serial::Packed> {
        let mut aside = serial::plain::Aside::default();
        self.items.put_aside(&mut aside);
        serial::pack_aside(&self.items, aside, "the items of a map")
    }
}

impl<F, A, M> Body for MapBody<F, A, M>
where
    F: RemoteFn<(A,), M>,
    A: Object,
    M: 'static,
{
    type Out = Items<F::Out>;
    const DEPENDENT: bool = false;

    fn type_name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn dependencies(&self, _: &mut dyn FnMut(&Arc<dyn Node>)) {}

    fn duplicate(&self) -> Result<Self> {
        let items = serial::round_trip(&self.items, "the items of a map")?;
        Ok(MapBody { f: self.f.clone(), items, _types: PhantomData })
    }

    fn round_trip(out: Self::Out) -> Result<Self::Out> {
        serial::round_trip(&out, "the results of a map")
    }

    fn run(self) -> Result<Step<Self::Out>> {
        let f = self.f;
        let mut results = Vec::with_capacity(self.items.0.len());
        let mut items = self.items.0.into_iter();
        while let Some(item) = items.next() {
            match f.clone().invoke((item,)) {
                Step::Value(value) => results.push(value),
                Step::Future(first) => {
                    // All are futures then: one after the other.
                    let all: BoxFuture<Self::Out> = Box::pin(async move {
                        results.push(first.await);
                        for item in items {
                            results.push(match f.clone().invoke((item,)) {
                                Step::Value(value) => value,
                                Step::Future(future) => future.await,
                            });
                        }
                        Items(results)
                    });
                    return Ok(Step::Future(all));
                }
            }
        }
        Ok(Step::Value(Items(results)))
    }
}

/// How a map is run; the same for both kinds.
#[derive(Clone, Debug)]
struct Plan {
    core: &'static Core,
    chunk: Option<usize>,
    /// The progress bar's label, if there may be one.
    label: Option<String>,
    location: &'static Location<'static>,
}

impl Plan {
    fn new<F>(core: &'static Core, location: &'static Location<'static>) -> Plan {
        Plan { core, chunk: None, label: Some(std::any::type_name::<F>().to_owned()), location }
    }

    fn cpus(&self) -> usize {
        self.core.cpus().ceil() as usize
    }

    fn chunk_size(&self, items: Option<usize>) -> usize {
        let spread = |items: usize| items.div_ceil(self.cpus() * CHUNKS_PER_CPU).max(1);
        self.chunk.unwrap_or_else(|| items.map_or(CHUNK_OF_UNKNOWN, spread))
    }

    fn submit<F, A, M>(&self, f: F, items: Vec<A>) -> ObjectRef<Items<F::Out>>
    where
        F: RemoteFn<(A,), M>,
        A: Object,
        M: 'static,
    {
        let body = MapBody::new(f, Items(items));
        or_failed(self.core, self.location, submit_body(self.core, self.location, body, None))
    }
}

macro_rules! plan_methods {
    () => {
        /// So many items to a task, instead of a number that suits their count.
        pub fn chunk(mut self, items: usize) -> Self {
            self.plan.chunk = Some(items.max(1));
            self
        }

        /// What the progress bar is called; by default the function's path.
        pub fn progress(mut self, label: &str) -> Self {
            self.plan.label = Some(label.to_owned());
            self
        }

        /// No progress bar.
        pub fn quiet(mut self) -> Self {
            self.plan.label = None;
            self
        }
    };
}

/// A function applied to many items, in parallel: made by [`Runtime::map`].
///
/// Items are grouped into chunks, one task each, so that small ones cost little more than a call.
/// If it takes more than a second and stderr is a terminal a progress bar is shown.
#[must_use = "a map runs when its results are collected"]
pub struct Map<F, A, M, I> {
    plan: Plan,
    f: F,
    items: I,
    _types: PhantomData<fn(A) -> M>,
}

impl<F, A, M, I> fmt::Debug for Map<F, A, M, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl<F, A, M, I> Map<F, A, M, I>
where
    F: RemoteFn<(A,), M>,
    A: Object,
    M: 'static,
    I: Iterator<Item = A>,
{
    plan_methods!();

    /// The results, in the order of the items. Blocks until all are there.
    ///
    /// # Errors
    /// The first failure in the order of the items; what has not started then is cancelled.
    pub fn collect(self) -> Result<Vec<F::Out>>
    where
        F::Out: Clone,
    {
        const { assert_captures_nothing::<F>() }
        let Map { plan, f, items, .. } = self;
        let items: Vec<A> = items.collect();
        let total = items.len();
        let size = plan.chunk_size(Some(total));
        let mut progress = Progress::new(plan.label.as_deref(), Some(total));
        let mut items = items.into_iter();
        let mut chunks = Vec::new();
        loop {
            let chunk: Vec<A> = items.by_ref().take(size).collect();
            if chunk.is_empty() {
                break;
            }
            chunks.push(plan.submit(f.clone(), chunk));
        }
        let mut results = Vec::with_capacity(total);
        let mut chunks = chunks.into_iter();
        while let Some(chunk) = chunks.next() {
            match chunk.take() {
                Ok(chunk) => results.extend(chunk.0),
                Err(error) => {
                    chunks.for_each(|chunk| chunk.cancel());
                    return Err(error);
                }
            }
            progress.set(results.len());
        }
        Ok(results)
    }
}

/// A function applied to many items, whose results come as they are ready: made by
/// [`Runtime::map_unordered`].
///
/// The items are taken from their iterator as the results are consumed, a few chunks ahead, so it
/// may be endless. Dropping this cancels what has not started.
#[must_use = "a map runs as its results are taken"]
pub struct MapUnordered<F, A, M, I>
where
    F: RemoteFn<(A,), M>,
{
    plan: Plan,
    f: F,
    items: I,
    size: Option<usize>,
    in_flight: Vec<ObjectRef<Items<F::Out>>>,
    ready: std::vec::IntoIter<F::Out>,
    done: usize,
    progress: Option<Progress>,
    _types: PhantomData<fn(A) -> M>,
}

impl<F: RemoteFn<(A,), M>, A, M, I> fmt::Debug for MapUnordered<F, A, M, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapUnordered").field("plan", &self.plan).field("done", &self.done).finish_non_exhaustive()
    }
}

impl<F: RemoteFn<(A,), M>, A, M, I> MapUnordered<F, A, M, I> {
    plan_methods!();
}

impl<F, A, M, I> Iterator for MapUnordered<F, A, M, I>
where
    F: RemoteFn<(A,), M>,
    F::Out: Clone,
    A: Object,
    M: 'static,
    I: Iterator<Item = A>,
{
    type Item = Result<F::Out>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(result) = self.ready.next() {
                self.done += 1;
                if let Some(progress) = &mut self.progress {
                    progress.set(self.done);
                }
                return Some(Ok(result));
            }
            let known = match self.items.size_hint() {
                (_, Some(most)) => Some(most),
                (_, None) => None,
            };
            let automatic = known.map(|items| items.min(MOST_IN_CHUNK * CHUNKS_PER_CPU * self.plan.cpus()));
            let size = *self.size.get_or_insert_with(|| self.plan.chunk_size(automatic));
            let label = self.plan.label.as_deref();
            self.progress.get_or_insert_with(|| Progress::new(label, known));
            while self.in_flight.len() < self.plan.cpus() * CHUNKS_AHEAD {
                let chunk: Vec<A> = self.items.by_ref().take(size).collect();
                if chunk.is_empty() {
                    break;
                }
                self.in_flight.push(self.plan.submit(self.f.clone(), chunk));
            }
            if self.in_flight.is_empty() {
                return None;
            }
            let nodes: Vec<_> = self.in_flight.iter().map(ObjectRef::node).collect();
            if let Err(error) = wait::wait_some(&nodes, 1, None) {
                return Some(Err(error));
            }
            let at = self.in_flight.iter().position(ObjectRef::is_ready)?;
            match self.in_flight.remove(at).take() {
                Ok(results) => self.ready = results.0.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl<F: RemoteFn<(A,), M>, A, M, I> Drop for MapUnordered<F, A, M, I> {
    fn drop(&mut self) {
        self.in_flight.iter().for_each(ObjectRef::cancel);
    }
}

impl Runtime {
    /// Applies a function of one argument to many items, in parallel, in order.
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// let squares = rt.map(|x: u64| x * x, 0..1000).collect()?;
    /// assert_eq!(squares[31], 961);
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn map<F, A, M, I>(&self, f: F, items: I) -> Map<F, A, M, I::IntoIter>
    where
        F: RemoteFn<(A,), M>,
        A: Object,
        M: 'static,
        I: IntoIterator<Item = A>,
    {
        let plan = Plan::new::<F>(self.core, Location::caller());
        Map { plan, f, items: items.into_iter(), _types: PhantomData }
    }

    /// Applies a function of one argument to many items, in parallel; an iterator of the results
    /// as they come.
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// let found = rt.map_unordered(|x: u64| x * x, 0..).filter_map(Result::ok).find(|square| *square > 5_000);
    /// assert!(found.is_some());
    /// ```
    #[track_caller]
    pub fn map_unordered<F, A, M, I>(&self, f: F, items: I) -> MapUnordered<F, A, M, I::IntoIter>
    where
        F: RemoteFn<(A,), M>,
        A: Object,
        M: 'static,
        I: IntoIterator<Item = A>,
    {
        const { assert_captures_nothing::<F>() }
        MapUnordered {
            plan: Plan::new::<F>(self.core, Location::caller()),
            f,
            items: items.into_iter(),
            size: None,
            in_flight: Vec::new(),
            ready: Vec::new().into_iter(),
            done: 0,
            progress: None,
            _types: PhantomData,
        }
    }

    /// Combines objects two by two, as a balanced tree of tasks whose depth is the logarithm of
    /// their number. `f` must be associative; the order of its arguments is kept.
    ///
    /// # Errors
    /// The handle fails with [`Error::InvalidOption`] if there is nothing to combine.
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// let parts: Vec<_> = (1..=100u64).map(|x| rt.put(x)).collect();
    /// assert_eq!(rt.reduce(parts, |a: u64, b: u64| a + b).get()?, 5050);
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn reduce<T, F, M>(&self, objects: Vec<ObjectRef<T>>, f: F) -> ObjectRef<T>
    where
        T: Object + Clone,
        F: RemoteFn<(T, T), M, Out = T>,
        M: 'static,
    {
        const { assert_captures_nothing::<F>() }
        let location = Location::caller();
        let mut layer = objects;
        while layer.len() > 1 {
            let mut objects = layer.into_iter();
            let mut next = Vec::with_capacity(objects.len().div_ceil(2));
            while let Some(left) = objects.next() {
                next.push(match objects.next() {
                    Some(right) => {
                        submit(self.core, location, f.clone(), IntoArgs::<(T, T)>::into_args((left, right)), None)
                    }
                    None => left,
                });
            }
            layer = next;
        }
        layer.pop().unwrap_or_else(|| {
            let nothing = Error::invalid("reduce of no objects: there is no result to return");
            ObjectRef::first(Promise::failed(self.core, location, nothing))
        })
    }
}
