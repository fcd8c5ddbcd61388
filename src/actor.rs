//! Actors: handles, options and calls.

use crate::{
    args::{Deferred, IntoArgs, Visitor},
    error::{Error, Result},
    function::{Constructor, Method},
    local::{
        Core,
        actor::{
            ActorCell, ActorHandle, ActorOptions, CallBody, CallCell, Checkpoint, MethodKind, NamedActor, ReadGuard,
            Remake, WriteGuard,
        },
        node::{Node, Options, Promise, Source},
        resources::Demand,
        task::{Body, BoxFuture, Step, TaskCell},
        thread,
    },
    object::{Object, ObjectRef},
    resources::{Isolation, PlacementGroup, Request, Strategy, request_methods},
    serial,
    task::{assert_captures_nothing, or_failed},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    any::Any,
    collections::BTreeMap,
    fmt::{self, Display},
    marker::PhantomData,
    panic::Location,
    sync::{Arc, Weak},
    time::Duration,
};

/// A handle to an actor.
///
/// Handles are cheap to clone, can be passed to tasks and stored in values and in other actors.
/// When the last one is dropped the actor finishes the calls that it has and stops, unless it is
/// detached.
///
/// # Order
/// Calls of one caller (a task, an actor, or a thread outside) run in the order in which they were
/// made, also when the arguments of one are not ready yet: later calls of that caller wait.
/// `&self` calls are started in that order and run side by side.
///
/// # Failure
/// A panic in a `&mut self` call loses the state. The actor starts again if it may
/// ([`ActorBuilder::max_restarts`]); otherwise it is dead, and calls fail with
/// [`Error::ActorDied`]. A panic in a `&self` call fails that call only.
pub struct Actor<S: Send + Sync + 'static>(Place<S>);

/// Where an actor is.
enum Place<S: Send + Sync + 'static> {
    /// In this process.
    Here(Arc<ActorHandle<S>>),
    /// In a worker of the cluster.
    #[cfg(feature = "cluster")]
    There(crate::cluster::actors::RemoteActor),
}

impl<S: Send + Sync + 'static> Actor<S> {
    /// Calls a method and returns the handle to its result at once.
    ///
    /// ```
    /// # use outray::Runtime;
    /// # let rt = Runtime::local();
    /// let list = rt.actor(Vec::<String>::new, ());
    /// list.call(Vec::push, "a".to_owned());
    /// list.call(|list: &mut Vec<String>, item: String| list.push(item), "b");
    /// assert_eq!(list.call(Vec::len, ()).get()?, 2);
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn call<F, Args, M, In>(&self, method: F, args: In) -> ObjectRef<F::Out>
    where
        F: Method<S, Args, M>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
    {
        const { assert_captures_nothing::<F>() }
        self.submit(Location::caller(), method, args.into_args(), None)
    }

    /// A call with options: name, concurrency group, deadline, retries.
    pub fn method<F, Args, M>(&self, method: F) -> Call<S, F, Args, M>
    where
        F: Method<S, Args, M>,
    {
        const { assert_captures_nothing::<F>() }
        Call { actor: self.clone(), method, options: Options::default(), _types: PhantomData }
    }

    fn submit<F, D, Args, M>(
        &self,
        location: &'static Location<'static>,
        method: F,
        args: D,
        options: Option<Box<Options>>,
    ) -> ObjectRef<F::Out>
    where
        F: Method<S, Args, M>,
        D: Deferred<Args>,
        Args: 'static,
        M: 'static,
    {
        let body = MethodBody::<F, D, Args, M>::new(method, args);
        let cell = match &self.0 {
            Place::Here(handle) => &handle.0,
            #[cfg(feature = "cluster")]
            Place::There(actor) => return actor.call::<S, F, D, Args, M>(location, body, options),
        };
        let submitted = CallCell::submit(cell, location, body, options);
        let call = submitted.map(|call| ObjectRef::first(call as Arc<dyn Source<F::Out>>));
        let handle = or_failed(cell.core, location, call);
        cell.core.yield_if_deterministic();
        handle
    }

    /// A handle that is ready when the constructor has run, and fails if it has failed.
    pub fn ready(&self) -> ObjectRef<()> {
        let cell = match &self.0 {
            Place::Here(handle) => &handle.0,
            #[cfg(feature = "cluster")]
            Place::There(actor) => return actor.ready(),
        };
        let location = Location::caller();
        let creation = cell.creation();
        let promise = match &creation {
            Some(creation) if !creation.is_done() => Promise::empty(cell.core, location, Some(creation.clone())),
            Some(creation) if creation.failure().is_none() => Promise::ready(cell.core, location, ()),
            _ => Promise::failed(cell.core, location, cell.death()),
        };
        if let Some(creation) = creation.filter(|_| !promise.is_done()) {
            let actor = Arc::downgrade(cell);
            let told = Arc::new(Ready { promise: promise.clone(), creation: Arc::downgrade(&creation), actor });
            let waiter: Arc<dyn crate::local::slot::Waiter> = told;
            if !creation.add_waiter(&waiter) {
                waiter.notify();
            }
        }
        ObjectRef::first(promise)
    }

    /// Ends the actor now. Calls that wait fail with [`Error::ActorDied`]; one that runs is told
    /// through [`Context::is_cancelled`](crate::task::Context::is_cancelled), and fails when it
    /// ends.
    pub fn kill(&self) {
        use crate::local::actor::AnyActor;
        match &self.0 {
            Place::Here(handle) => handle.0.kill("it was killed"),
            #[cfg(feature = "cluster")]
            Place::There(actor) => actor.kill(),
        }
    }

    /// The actor's number, unique in this process.
    pub fn id(&self) -> u64 {
        match &self.0 {
            Place::Here(handle) => handle.0.id,
            #[cfg(feature = "cluster")]
            Place::There(actor) => actor.id(),
        }
    }

    /// The name that it was given.
    pub fn name(&self) -> Option<&str> {
        match &self.0 {
            Place::Here(handle) => handle.0.options.name.as_deref(),
            #[cfg(feature = "cluster")]
            Place::There(actor) => actor.name(),
        }
    }

    pub(crate) fn named(core: &'static Core, name: &str) -> Result<Self> {
        #[cfg(feature = "cluster")]
        if let Some(client) = core.client.get() {
            return client.named_actor(name, std::any::type_name::<S>()).map(|actor| Actor(Place::There(actor)));
        }
        let not_found = |detail: String| Error::ActorNotFound { name: name.to_owned(), detail };
        let names = core.names.lock();
        let Some(entry) = names.get(name) else {
            let mut known: Vec<_> = names.keys().map(String::as_str).collect();
            known.sort_unstable();
            return Err(not_found(format!("known names: {known:?}")));
        };
        let handle = entry.handle.upgrade().ok_or_else(|| not_found("it is stopping".into()))?;
        let handle = handle.downcast::<ActorHandle<S>>();
        handle
            .map(|handle| Actor(Place::Here(handle)))
            .map_err(|_| not_found(format!("an actor of `{}` has that name", entry.type_name)))
    }
}

/// Completes the handle of [`Actor::ready`].
struct Ready<S: Send + Sync + 'static> {
    promise: Arc<Promise<()>>,
    creation: Weak<dyn Node>,
    actor: Weak<ActorCell<S>>,
}

impl<S: Send + Sync + 'static> crate::local::slot::Waiter for Ready<S> {
    fn notify(self: Arc<Self>) {
        let failed = self.creation.upgrade().and_then(|creation| creation.failure());
        let death = failed.map(|error| self.actor.upgrade().map_or(error, |actor| Arc::new(actor.death())));
        self.promise.complete(death.map_or(Ok(()), Err));
    }
}

impl<S: Send + Sync + 'static> Clone for Actor<S> {
    fn clone(&self) -> Self {
        Actor(match &self.0 {
            Place::Here(handle) => Place::Here(handle.clone()),
            #[cfg(feature = "cluster")]
            Place::There(actor) => Place::There(actor.clone()),
        })
    }
}

impl<S: Send + Sync + 'static> fmt::Debug for Actor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Here(handle) => write!(f, "Actor({})", handle.0.label()),
            #[cfg(feature = "cluster")]
            Place::There(actor) => actor.fmt(f),
        }
    }
}

impl<S: Send + Sync + 'static> Serialize for Actor<S> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        serial::put_handle(Arc::new(self.clone()), serializer)
    }
}

impl<'de, S: Send + Sync + 'static> Deserialize<'de> for Actor<S> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serial::take_handle(deserializer)
    }
}

/// A method with its arguments, as the actor sees it.
pub(crate) struct MethodBody<F, D, Args, M> {
    method: F,
    args: D,
    _types: PhantomData<fn(Args) -> M>,
}

impl<F, D, Args, M> MethodBody<F, D, Args, M> {
    pub(crate) fn new(method: F, args: D) -> Self {
        MethodBody { method, args, _types: PhantomData }
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn args(&mut self) -> &mut D {
        &mut self.args
    }
}

impl<S, F, D, Args, M> CallBody<S> for MethodBody<F, D, Args, M>
where
    F: Method<S, Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    type Out = F::Out;
    const KIND: MethodKind = F::KIND;
    const DEPENDENT: bool = D::DEPENDENT;

    fn type_name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>)) {
        self.args.dependencies(&mut Visitor(visit));
    }

    fn duplicate(&self) -> Result<Self> {
        Ok(MethodBody { method: self.method.clone(), args: self.args.duplicate()?, _types: PhantomData })
    }

    fn round_trip(out: F::Out) -> Result<F::Out> {
        serial::round_trip(&out, "the result")
    }

    fn call_exclusive(self, state: &mut S) -> Result<F::Out> {
        Ok(self.method.call_exclusive(state, self.args.resolve()?))
    }

    fn call_shared(self, state: &S) -> Result<F::Out> {
        Ok(self.method.call_shared(state, self.args.resolve()?))
    }

    fn future_exclusive(self, state: WriteGuard<S>) -> Result<BoxFuture<F::Out>> {
        Ok(self.method.future_exclusive(state, self.args.resolve()?))
    }

    fn future_shared(self, state: ReadGuard<S>) -> Result<BoxFuture<F::Out>> {
        Ok(self.method.future_shared(state, self.args.resolve()?))
    }
}

/// A call with options: made by [`Actor::method`], made by [`Call::call`].
#[must_use = "a call is made with `.call(args)`"]
pub struct Call<S: Send + Sync + 'static, F, Args, M> {
    actor: Actor<S>,
    method: F,
    options: Options,
    _types: PhantomData<fn(Args) -> M>,
}

impl<S: Send + Sync + 'static, F, Args, M> fmt::Debug for Call<S, F, Args, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("actor", &self.actor).field("name", &self.options.name).finish_non_exhaustive()
    }
}

impl<S: Send + Sync + 'static, F, Args, M> Call<S, F, Args, M> {
    /// A name for messages, lists and the timeline; by default the method's path.
    pub fn name(mut self, name: &str) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// Counts the call towards this concurrency group of the actor.
    pub fn group(mut self, group: &str) -> Self {
        self.options.group = Some(group.into());
        self
    }

    /// Fails the call if it has not ended so long after it was made.
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.options.deadline = Some(limit);
        self
    }

    /// Makes a `&mut self` call again, up to so many times, when it panics and the actor restarts.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// Makes the call.
    #[track_caller]
    pub fn call<In>(self, args: In) -> ObjectRef<F::Out>
    where
        F: Method<S, Args, M>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
    {
        self.actor.submit(Location::caller(), self.method, args.into_args(), Some(Box::new(self.options)))
    }
}

/// An actor in the making: made by
/// [`Runtime::actor_builder`](crate::Runtime::actor_builder), started by [`ActorBuilder::start`].
///
/// ```
/// # use outray::Runtime;
/// # let rt = Runtime::local();
/// let log = rt.actor_builder(Vec::<String>::new).name("log").checkpoint_every(100).max_restarts(3).start(());
/// log.call(Vec::push, "started".to_owned());
/// let same = rt.get_actor::<Vec<String>>("log")?;
/// assert_eq!(same.call(Vec::len, ()).get()?, 1);
/// # Ok::<(), outray::Error>(())
/// ```
#[must_use = "an actor runs when it is started"]
pub struct ActorBuilder<F, Args, S> {
    core: &'static Core,
    new: F,
    request: Request,
    options: ActorOptions<S>,
    get_if_exists: bool,
    detached: bool,
    isolation: Isolation,
    /// Set by `fallible`: unpacks what the constructor returns.
    unpack: Option<Unpack<S>>,
    /// What of this is known to a type only, for the process that it is sent to.
    #[cfg(feature = "cluster")]
    sites: Sites,
    _types: PhantomData<fn(Args)>,
}

pub(crate) type Unpack<S> = fn(Box<dyn Any>) -> Result<S, String>;

#[cfg(feature = "cluster")]
type SiteOf = fn() -> Result<crate::cluster::wire::Site>;

#[cfg(feature = "cluster")]
#[derive(Clone, Copy, Default)]
pub(crate) struct Sites {
    pub(crate) checkpoint: Option<SiteOf>,
    pub(crate) unpack: Option<SiteOf>,
}

pub(crate) fn unpack<T: Send + Sync + 'static, E: Display + Send + Sync + 'static>(
    made: Box<dyn Any>,
) -> Result<T, String> {
    match made.downcast::<Result<T, E>>() {
        Ok(made) => made.map_err(|error| error.to_string()),
        Err(_) => unreachable!("the constructor's type is known"),
    }
}

pub(crate) fn checkpoint<S: Object>(every: u32) -> Checkpoint<S> {
    Checkpoint {
        every,
        save: |state| serial::pack(state, "the state"),
        load: |saved| serial::unpack(saved, "the state"),
    }
}

impl<F, Args, S> fmt::Debug for ActorBuilder<F, Args, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let constructor = std::any::type_name::<F>();
        f.debug_struct("ActorBuilder").field("constructor", &constructor).finish_non_exhaustive()
    }
}

impl<F, Args, T, E> ActorBuilder<F, Args, Result<T, E>>
where
    F: Constructor<Args, State = Result<T, E>>,
    T: Send + Sync + 'static,
    E: Display + Send + Sync + 'static,
{
    /// Takes the state out of the `Result` that the constructor returns; with an `Err` the actor
    /// is dead from the start, and says why. Say this before options that depend on the state.
    ///
    /// ```
    /// # use outray::Runtime;
    /// struct Port(u16);
    /// impl Port {
    ///     fn parse(text: String) -> Result<Port, std::num::ParseIntError> { text.parse().map(Port) }
    ///     fn number(&self) -> u16 { self.0 }
    /// }
    /// # let rt = Runtime::local();
    /// let good = rt.actor_builder(Port::parse).fallible().start("80");
    /// assert_eq!(good.call(Port::number, ()).get()?, 80);
    /// let bad = rt.actor_builder(Port::parse).fallible().start("eighty");
    /// assert!(bad.call(Port::number, ()).get().unwrap_err().to_string().contains("invalid digit"));
    /// # Ok::<(), outray::Error>(())
    /// ```
    pub fn fallible(self) -> ActorBuilder<F, Args, T> {
        let ActorOptions { name, max_restarts, max_pending_calls, max_concurrency, groups, checkpoint: _ } =
            self.options;
        ActorBuilder {
            core: self.core,
            new: self.new,
            request: self.request,
            options: ActorOptions { name, max_restarts, checkpoint: None, max_pending_calls, max_concurrency, groups },
            get_if_exists: self.get_if_exists,
            detached: self.detached,
            isolation: self.isolation,
            unpack: Some(unpack::<T, E>),
            #[cfg(feature = "cluster")]
            sites: Sites {
                unpack: Some(|| Ok(crate::cluster::wire::Site::of::<crate::cluster::actors::UnpackEntry<T, E>>()?)),
                checkpoint: None,
            },
            _types: PhantomData,
        }
    }
}

impl<F, Args, S: Send + Sync + 'static> ActorBuilder<F, Args, S> {
    pub(crate) fn new(core: &'static Core, new: F) -> Self {
        ActorBuilder {
            core,
            new,
            request: Request::default(),
            options: ActorOptions {
                name: None,
                max_restarts: 0,
                checkpoint: None,
                max_pending_calls: None,
                max_concurrency: None,
                groups: BTreeMap::new(),
            },
            get_if_exists: false,
            detached: false,
            isolation: Isolation::Shared,
            unpack: None,
            #[cfg(feature = "cluster")]
            sites: Sites::default(),
            _types: PhantomData,
        }
    }

    request_methods!();

    /// A name under which others find it: [`Runtime::get_actor`](crate::Runtime::get_actor).
    pub fn name(mut self, name: &str) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// If an actor has the name already, that one is what `start` returns.
    pub fn get_if_exists(mut self, get: bool) -> Self {
        self.get_if_exists = get;
        self
    }

    /// Lets it live until it is killed or the runtime ends, whether there are handles or not. It
    /// needs a name, by which to find it.
    ///
    /// On a cluster it outlives the program, too: it lives until it is killed or the cluster ends, and programs of the
    /// same build find it by its name. If it is started again after the end of the program, arguments that were
    /// handles are not there any more. It cannot be in a placement group.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// How often it may start again after a panic; 0 by default. Its state is then made by the
    /// constructor, or from the last checkpoint.
    pub fn max_restarts(mut self, restarts: u32) -> Self {
        self.options.max_restarts = restarts;
        self
    }

    /// Saves the state after every so many `&mut self` calls, and logs the calls since, so that a
    /// restart brings back the state before the call that failed: each call takes effect exactly
    /// once.
    ///
    /// The state, and the arguments of `&mut self` calls, are serialized for that.
    pub fn checkpoint_every(mut self, calls: u32) -> Self
    where
        S: Object,
    {
        self.options.checkpoint = Some(checkpoint(calls.max(1)));
        #[cfg(feature = "cluster")]
        {
            self.sites.checkpoint =
                Some(|| Ok(crate::cluster::wire::Site::of::<crate::cluster::actors::CheckpointEntry<S>>()?));
        }
        self
    }

    /// Refuses calls while so many wait, with [`Error::TooManyPendingCalls`].
    pub fn max_pending_calls(mut self, calls: usize) -> Self {
        self.options.max_pending_calls = Some(calls);
        self
    }

    /// At most so many `&self` calls run at a time, those of concurrency groups aside.
    pub fn max_concurrency(mut self, calls: usize) -> Self {
        self.options.max_concurrency = Some(calls.max(1));
        self
    }

    /// A group of `&self` calls of which at most so many run at a time: see [`Call::group`].
    pub fn concurrency_group(mut self, name: &str, calls: usize) -> Self {
        self.options.groups.insert(name.into(), calls.max(1));
        self
    }

    /// Where it should live.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.request.strategy(&strategy);
        self
    }

    /// Takes its resources from a bundle of a placement group.
    pub fn placement_group(mut self, group: &PlacementGroup, bundle: usize) -> Self {
        self.request.bundle(group, bundle);
        self
    }

    /// Which process it lives in. [`Isolation::Process`] is for a cluster, of which `LocalCluster` (feature
    /// `cluster`) is one on this machine: a local runtime has one process, and refuses it with [`Error::InvalidOption`].
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Starts the actor. If that is impossible it is dead from the start, and calls say why.
    #[track_caller]
    pub fn start<In, T>(self, args: In) -> Actor<S>
    where
        F: Constructor<Args, State = T>,
        In: IntoArgs<Args>,
        Args: 'static,
        T: Send + Sync + 'static,
    {
        let core = self.core;
        let location = Location::caller();
        match self.start_at(location, args) {
            Ok(actor) => actor,
            Err(error) => {
                use crate::local::actor::AnyActor;
                let options = ActorOptions {
                    name: None,
                    max_restarts: 0,
                    checkpoint: None,
                    max_pending_calls: None,
                    max_concurrency: None,
                    groups: BTreeMap::new(),
                };
                let cell = ActorCell::new(core, location, std::any::type_name::<S>(), options);
                cell.kill(&error.to_string());
                Actor(Place::Here(Arc::new(ActorHandle(cell))))
            }
        }
    }

    /// Starts the actor, or says at once why that is impossible. Its constructor runs later: see
    /// [`Actor::ready`].
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::Infeasible`], [`Error::Gpu`], [`Error::InvalidOption`].
    #[track_caller]
    pub fn try_start<In, T>(self, args: In) -> Result<Actor<S>>
    where
        F: Constructor<Args, State = T>,
        In: IntoArgs<Args>,
        Args: 'static,
        T: Send + Sync + 'static,
    {
        self.start_at(Location::caller(), args)
    }

    fn start_at<In, T>(self, location: &'static Location<'static>, args: In) -> Result<Actor<S>>
    where
        F: Constructor<Args, State = T>,
        In: IntoArgs<Args>,
        Args: 'static,
        T: Send + Sync + 'static,
    {
        const { assert_captures_nothing::<F>() }
        let core = self.core;
        if self.detached && self.options.name.is_none() {
            return Err(Error::invalid("a detached actor needs a name: say `.name(..)`"));
        }
        let demand = self.request.demand(0, core)?;
        let name = self.options.name.clone();
        #[cfg(feature = "cluster")]
        if let Some(client) = core.client.get() {
            let ActorBuilder { request, options, get_if_exists, detached, isolation, sites, new, .. } = self;
            let setup = crate::cluster::actors::Setup {
                options,
                sites,
                demand,
                strategy: request.strategy,
                bundle: request.bundle,
                get_if_exists,
                detached,
                isolation,
            };
            let started = client.start_actor::<F, In::Deferred, Args, S, T>(location, new, args.into_args(), setup);
            return started.map(|actor| Actor(Place::There(actor)));
        }
        if self.isolation == Isolation::Process {
            return Err(Error::invalid(
                "isolation(Isolation::Process): a local runtime has one process; connect to a cluster, or start a \
                 `LocalCluster` (feature `cluster`)",
            ));
        }
        let mut names = core.names.lock();
        if let Some(name) = &name
            && let Some(entry) = names.get(&**name)
            && (entry.keep.is_some() || entry.handle.strong_count() > 0)
        {
            drop(names);
            return match self.get_if_exists {
                true => Actor::named(core, name),
                false => Err(Error::NameTaken { name: name.to_string() }),
            };
        }
        let type_name = std::any::type_name::<S>();
        let cell = ActorCell::new(core, location, type_name, self.options);
        let handle = Arc::new(ActorHandle(cell.clone()));
        if let Some(name) = &name {
            let any: Arc<dyn Any + Send + Sync> = handle.clone();
            let handle = Arc::downgrade(&any);
            let keep = self.detached.then_some(any);
            names.insert(name.to_string(), NamedActor { id: cell.id, handle, type_name, keep });
        }
        drop(names);
        let demand = (!demand.is_nothing()).then_some(demand);
        let options =
            demand.map(|demand: Demand| Box::new(Options { demand: Some(demand).into(), ..Options::default() }));
        create(&cell, self.new, args.into_args(), self.unpack, options)?;
        core.yield_if_deterministic();
        Ok(Actor(Place::Here(handle)))
    }
}

/// Submits the task that makes an actor's state. If that is impossible the actor is dead.
fn create<F, D, Args, S>(
    cell: &Arc<ActorCell<S>>,
    new: F,
    args: D,
    unpack: Option<Unpack<S>>,
    options: Option<Box<Options>>,
) -> Result<()>
where
    F: Constructor<Args>,
    D: Deferred<Args>,
    Args: 'static,
    S: Send + Sync + 'static,
{
    let keeps_arguments = cell.options.max_restarts > 0 && cell.options.checkpoint.is_none();
    let body = CreateBody { new, args, unpack, actor: Arc::downgrade(cell), keeps_arguments, _types: PhantomData };
    match TaskCell::submit(cell.core, cell.location, body, options) {
        Ok(creation) => {
            // Nobody holds the constructor's result; the actor is what there is to hold.
            drop(ObjectRef::first(creation.clone()));
            cell.created_by(creation);
            Ok(())
        }
        Err(error) => {
            use crate::local::actor::AnyActor;
            cell.kill(&error.to_string());
            Err(error)
        }
    }
}

/// Starts an actor here for another process.
#[cfg(feature = "cluster")]
pub(crate) fn host<F, D, Args, S>(
    core: &'static Core,
    new: F,
    args: D,
    unpack: Option<Unpack<S>>,
    actor_options: ActorOptions<S>,
    options: Box<Options>,
    ended: crate::local::actor::Ended,
) -> Result<Actor<S>>
where
    F: Constructor<Args>,
    D: Deferred<Args>,
    Args: 'static,
    S: Send + Sync + 'static,
{
    let cell = ActorCell::new(core, Location::caller(), std::any::type_name::<S>(), actor_options);
    *cell.submitted.lock() = options.submitted.clone();
    *cell.ended.lock() = Some(ended);
    let actor = Actor(Place::Here(Arc::new(ActorHandle(cell.clone()))));
    create(&cell, new, args, unpack, Some(options))?;
    Ok(actor)
}

/// An actor that lives here for others, without its type.
#[cfg(feature = "cluster")]
pub(crate) trait HostedActor: Send + Sync {
    fn any(&self) -> &dyn Any;
    fn kill(&self);
    /// Calls that wait for their turn.
    fn pending_calls(&self) -> usize;
    /// What makes its state.
    fn creation(&self) -> Option<Arc<dyn Node>>;
    fn info(&self) -> Option<crate::observe::ActorInfo>;
}

#[cfg(feature = "cluster")]
impl<S: Send + Sync + 'static> HostedActor for Actor<S> {
    fn any(&self) -> &dyn Any {
        self
    }

    fn kill(&self) {
        Actor::kill(self);
    }

    fn pending_calls(&self) -> usize {
        Actor::pending_calls(self)
    }

    fn creation(&self) -> Option<Arc<dyn Node>> {
        match &self.0 {
            Place::Here(handle) => handle.0.creation(),
            Place::There(_) => None,
        }
    }

    fn info(&self) -> Option<crate::observe::ActorInfo> {
        use crate::local::actor::AnyActor;
        match &self.0 {
            Place::Here(handle) => Some(handle.0.info()),
            Place::There(_) => None,
        }
    }
}

#[cfg(feature = "cluster")]
impl<S: Send + Sync + 'static> Actor<S> {
    /// Takes a call of another process's.
    pub(crate) fn take_call<F, D, Args, M>(
        &self,
        body: MethodBody<F, D, Args, M>,
        options: Box<Options>,
    ) -> Result<ObjectRef<F::Out>>
    where
        F: Method<S, Args, M>,
        D: Deferred<Args>,
        Args: 'static,
        M: 'static,
    {
        match &self.0 {
            Place::Here(handle) => {
                let call = CallCell::submit(&handle.0, Location::caller(), body, Some(options))?;
                Ok(ObjectRef::first(call as Arc<dyn Source<F::Out>>))
            }
            Place::There(_) => unreachable!("it is hosted here"),
        }
    }
}

/// The task that makes an actor's state.
struct CreateBody<F, D, Args, S> {
    new: F,
    args: D,
    unpack: Option<Unpack<S>>,
    actor: Weak<ActorCell<S>>,
    /// For restarts.
    keeps_arguments: bool,
    _types: PhantomData<fn(Args)>,
}

impl<F, D, Args, S> CreateBody<F, D, Args, S>
where
    F: Constructor<Args>,
    D: Deferred<Args>,
    S: Send + Sync + 'static,
{
    fn make(new: F, args: Args, unpack: Option<Unpack<S>>) -> Result<S, String> {
        let made: Box<dyn Any> = Box::new(new.construct(args));
        match unpack {
            Some(unpack) => unpack(made),
            None => match made.downcast::<S>() {
                Ok(state) => Ok(*state),
                Err(_) => unreachable!("without `fallible` the constructor returns the state"),
            },
        }
    }
}

impl<F, D, Args, S> Body for CreateBody<F, D, Args, S>
where
    F: Constructor<Args>,
    D: Deferred<Args>,
    Args: 'static,
    S: Send + Sync + 'static,
{
    type Out = ();
    const DEPENDENT: bool = D::DEPENDENT;

    fn type_name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>)) {
        self.args.dependencies(&mut Visitor(visit));
    }

    fn duplicate(&self) -> Result<Self> {
        let CreateBody { new, args, unpack, actor, keeps_arguments, .. } = self;
        Ok(CreateBody {
            new: new.clone(),
            args: args.duplicate()?,
            unpack: *unpack,
            actor: actor.clone(),
            keeps_arguments: *keeps_arguments,
            _types: PhantomData,
        })
    }

    fn round_trip((): ()) -> Result<()> {
        Ok(())
    }

    fn run(self) -> Result<Step<()>> {
        let Some(actor) = self.actor.upgrade() else { return Ok(Step::Value(())) };
        let CreateBody { new, args, unpack, keeps_arguments, .. } = self;
        let remake = match keeps_arguments {
            false => None,
            true => {
                let kept = args.duplicate()?;
                let again = new.clone();
                let remake: Remake<S> = Box::new(move || {
                    let args = kept.duplicate().and_then(D::resolve).map_err(|error| error.to_string())?;
                    Self::make(again.clone(), args, unpack)
                });
                Some(remake)
            }
        };
        let made =
            Self::make(new, args.resolve()?, unpack).map_err(|why| format!("its constructor returned Err: {why}"));
        let installed = made.and_then(|state| actor.install(state, remake).map_err(|error| error.to_string()));
        if let Err(why) = installed {
            use crate::local::actor::AnyActor;
            actor.kill(&why); // which fails this task too
            return Ok(Step::Value(()));
        }
        if let Some(grant) = thread::current_node().and_then(|node| node.take_grant()) {
            actor.keep(grant);
        }
        Ok(Step::Value(()))
    }
}

impl<S: Send + Sync + 'static> Actor<S> {
    /// Calls that wait for their turn.
    pub fn pending_calls(&self) -> usize {
        match &self.0 {
            Place::Here(handle) => handle.0.pending_calls(),
            #[cfg(feature = "cluster")]
            Place::There(actor) => actor.pending_calls(),
        }
    }
}

impl<S: Send + Sync + 'static> serial::Passed for Actor<S> {
    #[cfg(feature = "cluster")]
    fn export(
        &self,
        _: &Arc<crate::cluster::client::Client>,
    ) -> Result<(crate::cluster::wire::Handle, Box<dyn Any + Send + Sync>)> {
        match &self.0 {
            Place::Here(handle) => Err(Error::Unsupported {
                reason: format!("{} lives in this process only: start it on the cluster's runtime", handle.0.label()),
            }),
            Place::There(actor) => Ok((actor.handle(), Box::new(actor.clone()))),
        }
    }

    #[cfg(feature = "cluster")]
    fn import(
        client: &Arc<crate::cluster::client::Client>,
        handle: &crate::cluster::wire::Handle,
        _: &crate::serial::Given,
    ) -> Result<Self> {
        client.import_actor(handle, std::any::type_name::<S>()).map(|actor| Actor(Place::There(actor)))
    }
}
