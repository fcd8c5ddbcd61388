//! A pool of actors of one kind.

use crate::{
    actor::Actor,
    args::IntoArgs,
    error::{Error, Result},
    function::Method,
    local::wait,
    object::ObjectRef,
};
use std::marker::PhantomData;

/// Calls in flight for each actor: one that runs, and one that is there when that ends.
const IN_FLIGHT: usize = 2;

/// Several actors of one kind, over which calls are spread: whoever is free gets the next.
///
/// ```
/// # use outray::{ActorPool, Runtime};
/// struct Model(f64);
/// impl Model {
///     fn load(weight: f64) -> Self { Model(weight) }
///     fn predict(&mut self, x: f64) -> f64 { self.0 * x }
/// }
/// let rt = Runtime::local();
/// let pool = ActorPool::new((0..2).map(|_| rt.actor(Model::load, 2.0)).collect())?;
/// assert_eq!(pool.map(Model::predict, [1.0, 2.0, 3.0])?, [2.0, 4.0, 6.0]);
/// # Ok::<(), outray::Error>(())
/// ```
pub struct ActorPool<S: Send + Sync + 'static> {
    actors: Vec<Actor<S>>,
}

impl<S: Send + Sync + 'static> std::fmt::Debug for ActorPool<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ActorPool").field("actors", &self.actors).finish()
    }
}

impl<S: Send + Sync + 'static> Clone for ActorPool<S> {
    fn clone(&self) -> Self {
        ActorPool { actors: self.actors.clone() }
    }
}

impl<S: Send + Sync + 'static> ActorPool<S> {
    /// A pool of these actors.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if there are none.
    pub fn new(actors: Vec<Actor<S>>) -> Result<Self> {
        match actors.is_empty() {
            true => Err(Error::invalid("an actor pool needs at least one actor")),
            false => Ok(ActorPool { actors }),
        }
    }

    /// The actors.
    pub fn actors(&self) -> &[Actor<S>] {
        &self.actors
    }

    /// Calls a method for each item; the results, in the order of the items. Blocks until all are
    /// there.
    ///
    /// # Errors
    /// The first failure to be seen; calls that have not started are then cancelled.
    pub fn map<F, Args, M, In>(&self, method: F, items: impl IntoIterator<Item = In>) -> Result<Vec<F::Out>>
    where
        F: Method<S, Args, M>,
        F::Out: Clone,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
    {
        let mut results: Vec<_> = self.calls(method, items).collect::<Result<_>>()?;
        results.sort_unstable_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, result)| result).collect())
    }

    /// Calls a method for each item; an iterator of the results as they come. Items are taken as
    /// actors become free.
    pub fn map_unordered<F, Args, M, In, I>(&self, method: F, items: I) -> impl Iterator<Item = Result<F::Out>>
    where
        F: Method<S, Args, M>,
        F::Out: Clone,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
        I: IntoIterator<Item = In>,
    {
        self.calls(method, items).map(|call| call.map(|(_, result)| result))
    }

    fn calls<F, Args, M, In, I>(&self, method: F, items: I) -> Calls<S, F, Args, M, I::IntoIter>
    where
        F: Method<S, Args, M>,
        I: IntoIterator<Item = In>,
    {
        let free = (0..self.actors.len()).cycle().take(self.actors.len() * IN_FLIGHT).collect();
        let items = items.into_iter();
        Calls { pool: self.clone(), method, items, next: 0, free, running: Vec::new(), _types: PhantomData }
    }
}

/// A call that runs.
struct Running<T: Send + Sync + 'static> {
    index: usize,
    actor: usize,
    result: ObjectRef<T>,
}

struct Calls<S: Send + Sync + 'static, F: Method<S, Args, M>, Args, M, I> {
    pool: ActorPool<S>,
    method: F,
    items: I,
    /// The index of the next item.
    next: usize,
    /// Actors that can take a call, once for each that they can take; the next one last.
    free: std::collections::VecDeque<usize>,
    running: Vec<Running<F::Out>>,
    _types: PhantomData<fn(Args) -> M>,
}

impl<S, F, Args, M, In, I> Iterator for Calls<S, F, Args, M, I>
where
    S: Send + Sync + 'static,
    F: Method<S, Args, M>,
    F::Out: Clone,
    In: IntoArgs<Args>,
    Args: 'static,
    M: 'static,
    I: Iterator<Item = In>,
{
    type Item = Result<(usize, F::Out)>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(actor) = self.free.pop_front() {
            let Some(item) = self.items.next() else {
                self.free.push_front(actor);
                break;
            };
            let result = self.pool.actors[actor].call(self.method.clone(), item);
            self.running.push(Running { index: self.next, actor, result });
            self.next += 1;
        }
        if self.running.is_empty() {
            return None;
        }
        let nodes: Vec<_> = self.running.iter().map(|running| running.result.node()).collect();
        if let Err(error) = wait::wait_some(&nodes, 1, None) {
            return Some(Err(error));
        }
        let at = self.running.iter().position(|running| running.result.is_ready())?;
        let Running { index, actor, result } = self.running.remove(at);
        self.free.push_back(actor);
        Some(result.take().map(|result| (index, result)))
    }
}

impl<S: Send + Sync + 'static, F: Method<S, Args, M>, Args, M, I> Drop for Calls<S, F, Args, M, I> {
    fn drop(&mut self) {
        self.running.iter().for_each(|running| running.result.cancel());
    }
}
