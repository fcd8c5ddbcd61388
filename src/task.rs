//! Tasks with options, and what a task knows of itself.

use crate::{
    args::{Deferred, IntoArgs, Visitor},
    error::{Error, Result},
    function::RemoteFn,
    gpu::GpuLease,
    local::{
        Core,
        node::{Node, Options, Promise},
        slot::Waiter,
        task::{Body, BoxFuture, Step, TaskCell, Travel},
        thread,
    },
    object::{Object, ObjectRef},
    resources::{PlacementGroup, Request, Strategy, request_methods},
    serial,
};
use std::{
    any::Any,
    fmt,
    marker::PhantomData,
    panic::Location,
    sync::{Arc, Weak},
    time::Duration,
};

/// Fails to compile for closures that capture something.
#[track_caller]
pub(crate) const fn assert_captures_nothing<F>() {
    assert!(
        size_of::<F>() == 0,
        "a task, method or constructor cannot capture variables: pass them as arguments (function pointers are variables too: name the function itself)"
    );
}

/// A function with its arguments, as the executor sees it.
pub(crate) struct FnBody<F, D, Args, M> {
    f: F,
    args: D,
    _types: PhantomData<fn(Args) -> M>,
}

impl<F, D, Args, M> FnBody<F, D, Args, M> {
    pub(crate) fn new(f: F, args: D) -> Self {
        FnBody { f, args, _types: PhantomData }
    }
}

impl<F, D, Args, M> Travel for FnBody<F, D, Args, M>
where
    F: RemoteFn<Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    #[cfg(feature = "cluster")]
    fn site(&self) -> Result<crate::cluster::wire::Site> {
        Ok(crate::cluster::wire::Site::of::<crate::cluster::travel::TaskEntry<F, D, Args, M>>()?)
    }

    #[cfg(feature = "cluster")]
    fn pack(&mut self) -> Result<serial::Packed> {
        crate::args::pack::<Args, _>(&mut self.args)
    }
}

impl<F, D, Args, M> Body for FnBody<F, D, Args, M>
where
    F: RemoteFn<Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    type Out = F::Out;
    const DEPENDENT: bool = D::DEPENDENT;

    fn type_name() -> &'static str {
        std::any::type_name::<F>()
    }

    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>)) {
        self.args.dependencies(&mut Visitor(visit));
    }

    fn duplicate(&self) -> Result<Self> {
        Ok(FnBody { f: self.f.clone(), args: self.args.duplicate()?, _types: PhantomData })
    }

    fn round_trip(out: F::Out) -> Result<F::Out> {
        serial::round_trip(&out, "the result")
    }

    fn run(self) -> Result<Step<F::Out>> {
        Ok(self.f.invoke(self.args.resolve()?))
    }
}

pub(crate) fn submit<F, D, Args, M>(
    core: &'static Core,
    location: &'static Location<'static>,
    f: F,
    args: D,
    options: Option<Box<Options>>,
) -> ObjectRef<F::Out>
where
    F: RemoteFn<Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    or_failed(core, location, try_submit(core, location, f, args, options))
}

fn try_submit<F, D, Args, M>(
    core: &'static Core,
    location: &'static Location<'static>,
    f: F,
    args: D,
    options: Option<Box<Options>>,
) -> Result<ObjectRef<F::Out>>
where
    F: RemoteFn<Args, M>,
    D: Deferred<Args>,
    Args: 'static,
    M: 'static,
{
    submit_body(core, location, FnBody::new(f, args), options)
}

pub(crate) fn submit_body<B: Travel>(
    core: &'static Core,
    location: &'static Location<'static>,
    body: B,
    options: Option<Box<Options>>,
) -> Result<ObjectRef<B::Out>> {
    #[cfg(feature = "cluster")]
    if let Some(client) = core.client_for(options.as_deref()) {
        return client.submit(location, body, options);
    }
    let cell = TaskCell::submit(core, location, body, options)?;
    core.yield_if_deterministic();
    Ok(ObjectRef::first(cell))
}

/// The handle, or one that has failed already.
pub(crate) fn or_failed<T: Send + Sync + 'static>(
    core: &'static Core,
    location: &'static Location<'static>,
    submitted: Result<ObjectRef<T>>,
) -> ObjectRef<T> {
    submitted.unwrap_or_else(|error| {
        core.count(|c| &c.submitted);
        core.count(|c| &c.failed);
        ObjectRef::first(Promise::failed(core, location, error))
    })
}

/// A task with options: made by [`Runtime::task`](crate::Runtime::task), run by
/// [`Task::submit`], as often as wanted.
#[must_use = "a task runs when it is submitted"]
pub struct Task<F, Args, M, R> {
    core: &'static Core,
    f: F,
    pub(crate) request: Request,
    name: Option<Arc<str>>,
    retries: u32,
    retry_errors: u32,
    is_err: Option<fn(&dyn Any) -> bool>,
    #[cfg(feature = "cluster")]
    is_err_site: Option<fn() -> Result<crate::cluster::wire::Site>>,
    backoff: Duration,
    deadline: Option<Duration>,
    _types: PhantomData<fn(Args, M) -> R>,
}

impl<F, Args, M, R> fmt::Debug for Task<F, Args, M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let function = std::any::type_name::<F>();
        f.debug_struct("Task").field("function", &function).field("name", &self.name).finish_non_exhaustive()
    }
}

impl<F, Args, M, R> Task<F, Args, M, R> {
    pub(crate) fn new(core: &'static Core, f: F) -> Self {
        Task {
            core,
            f,
            request: Request::default(),
            name: None,
            retries: 0,
            retry_errors: 0,
            is_err: None,
            #[cfg(feature = "cluster")]
            is_err_site: None,
            backoff: Duration::ZERO,
            deadline: None,
            _types: PhantomData,
        }
    }

    request_methods!();

    /// A name for messages, lists and the timeline; by default the function's path.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Runs it again, up to so many times, when it panics. Arguments that are values are kept
    /// serialized for that.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Runs it again, up to so many times, when it returns `Err`. The task must return `Result`.
    pub fn retry_errors(mut self, retries: u32) -> Self
    where
        R: Fallible,
    {
        self.retry_errors = retries;
        self.is_err = Some(R::is_err);
        #[cfg(feature = "cluster")]
        {
            self.is_err_site = Some(|| Ok(crate::cluster::wire::Site::of::<crate::cluster::travel::IsErrEntry<R>>()?));
        }
        self
    }

    /// The pause before the second attempt; it doubles with each further one. None by default.
    pub fn backoff(mut self, pause: Duration) -> Self {
        self.backoff = pause;
        self
    }

    /// Fails the task if it has not ended so long after its submission. If it runs it is told
    /// through [`Context::is_cancelled`].
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(limit);
        self
    }

    /// Where it should run.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.request.strategy(&strategy);
        self
    }

    /// Takes its resources from a bundle of a placement group.
    pub fn placement_group(mut self, group: &PlacementGroup, bundle: usize) -> Self {
        self.request.bundle(group, bundle);
        self
    }

    fn options(&self) -> Result<Option<Box<Options>>> {
        let demand = self.request.demand(crate::local::resources::WHOLE, self.core)?;
        let demand = (!demand.is_plain()).then_some(demand);
        Ok(Some(Box::new(Options {
            name: self.name.clone(),
            #[cfg(feature = "cluster")]
            strategy: self.request.strategy.clone(),
            #[cfg(feature = "cluster")]
            bundle: self.request.bundle.clone().into(),
            #[cfg(feature = "cluster")]
            is_err_site: self.is_err_site,
            demand: demand.into(),
            retries: self.retries,
            retry_errors: self.retry_errors,
            is_err: self.is_err,
            backoff: self.backoff,
            deadline: self.deadline,
            ..Options::default()
        })))
    }

    /// Runs the task. What can be known at once to go wrong is what `get` on the handle returns.
    #[track_caller]
    pub fn submit<In>(&self, args: In) -> ObjectRef<R>
    where
        F: RemoteFn<Args, M, Out = R>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
        R: Object,
    {
        let location = Location::caller();
        or_failed(self.core, location, self.submit_at(location, args))
    }

    /// Runs the task, or says at once why it never can.
    ///
    /// # Errors
    /// [`Error::Infeasible`] if it asks for what is not there; [`Error::Gpu`] if it asks for a GPU and none can be used;
    /// [`Error::InvalidOption`];
    /// [`Error::Serialization`] if that is checked.
    #[track_caller]
    pub fn try_submit<In>(&self, args: In) -> Result<ObjectRef<R>>
    where
        F: RemoteFn<Args, M, Out = R>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
        R: Object,
    {
        self.submit_at(Location::caller(), args)
    }

    fn submit_at<In>(&self, location: &'static Location<'static>, args: In) -> Result<ObjectRef<R>>
    where
        F: RemoteFn<Args, M, Out = R>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
        R: Object,
    {
        const { assert_captures_nothing::<F>() }
        try_submit(self.core, location, self.f.clone(), args.into_args(), self.options()?)
    }

    /// Runs a task that returns a tuple, with a handle for each part.
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// let (quotient, rest) = rt.task(|a: i32, b: i32| (a / b, a % b)).submit_split((7, 2));
    /// assert_eq!((quotient.get()?, rest.get()?), (3, 1));
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn submit_split<In>(&self, args: In) -> R::Refs
    where
        F: RemoteFn<Args, M, Out = R>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
        R: Split,
    {
        const { assert_captures_nothing::<F>() }
        let location = Location::caller();
        let source = Arc::new(SplitSource::default());
        let promises = R::promises(self.core, location, &source);
        let body = FnBody::<F, In::Deferred, Args, M>::new(self.f.clone(), args.into_args());
        #[cfg(feature = "cluster")]
        if let Ok(options) = self.options()
            && let Some(client) = self.core.client_for(options.as_deref())
        {
            use crate::cluster::{travel::SplitEntry, wire::Site};
            let submitted = Site::of::<SplitEntry<F, In::Deferred, Args, M>>()
                .map_err(Error::from)
                .and_then(|site| client.submit_split(location, site, body, options));
            return submitted.unwrap_or_else(|error| {
                fail_all::<R>(&promises, error);
                R::refs(promises)
            });
        }
        let body = SplitBody { body, promises: promises.clone() };
        let submitted = self.options().and_then(|options| TaskCell::submit(self.core, location, body, options));
        match submitted {
            Ok(cell) => {
                let _ = source.set(cell.clone()); // set once, here
                let node: Arc<dyn Node> = cell.clone();
                let forward: Arc<dyn Waiter> =
                    Arc::new(ForwardFailure { from: Arc::downgrade(&node), to: R::nodes(&promises) });
                if !node.add_waiter(&forward) {
                    forward.notify();
                }
                // The task's own result is nothing; nobody holds it, only the parts.
                drop(ObjectRef::first(cell));
                self.core.yield_if_deterministic();
            }
            Err(error) => fail_all::<R>(&promises, error),
        }
        R::refs(promises)
    }
}

fn fail_all<R: Split>(promises: &R::Promises, error: Error) {
    let error = Arc::new(error);
    for node in R::nodes(promises) {
        node.fail(error.clone());
    }
}

/// What a task that may fail returns: a `Result`.
#[diagnostic::on_unimplemented(
    message = "`retry_errors` needs a task that returns `Result`, and this one returns `{Self}`",
    label = "this task cannot return `Err`",
    note = "`.retries(n)` runs a task again that panics"
)]
pub trait Fallible: 'static {
    #[doc(hidden)]
    fn is_err(result: &dyn Any) -> bool;
}

impl<T: 'static, E: 'static> Fallible for Result<T, E> {
    fn is_err(result: &dyn Any) -> bool {
        result.downcast_ref::<Self>().is_some_and(Result::is_err)
    }
}

/// Fails the parts of a result when the task that makes it fails.
struct ForwardFailure {
    from: Weak<dyn Node>,
    to: Vec<Arc<dyn Node>>,
}

impl Waiter for ForwardFailure {
    fn notify(self: Arc<Self>) {
        if let Some(error) = self.from.upgrade().and_then(|node| node.failure()) {
            for node in &self.to {
                node.fail(error.clone());
            }
        }
    }
}

/// The task that makes the parts, known after the parts.
pub(crate) type SplitSource = std::sync::OnceLock<Arc<dyn Node>>;

/// Tuples of two to eight objects, which a task can return with a handle for each.
#[allow(private_interfaces)] // nobody outside can call or implement what is hidden
pub trait Split: Object {
    /// A handle for each part.
    type Refs;
    #[doc(hidden)]
    type Promises: Clone + Send + Sync + 'static;
    #[doc(hidden)]
    fn promises(core: &'static Core, location: &'static Location<'static>, source: &Arc<SplitSource>)
    -> Self::Promises;
    #[doc(hidden)]
    fn nodes(promises: &Self::Promises) -> Vec<Arc<dyn Node>>;
    #[doc(hidden)]
    fn refs(promises: Self::Promises) -> Self::Refs;
    #[doc(hidden)]
    fn keep(self, promises: &Self::Promises);
    #[doc(hidden)]
    #[cfg(feature = "cluster")]
    const PARTS: u64;
    #[doc(hidden)]
    #[cfg(feature = "cluster")]
    fn pack_parts(&self) -> Result<Vec<serial::Packed>>;
    #[doc(hidden)]
    #[cfg(feature = "cluster")]
    fn expect(parts: &mut crate::cluster::client::Expect<'_>) -> Self::Refs;
}

macro_rules! split {
    ($(($($T:ident $t:ident $p:ident),*);)*) => {$(
        #[allow(private_interfaces)]
        impl<$($T: Object),*> Split for ($($T,)*) {
            type Refs = ($(ObjectRef<$T>,)*);
            type Promises = ($(Arc<Promise<$T>>,)*);
            fn promises(
                core: &'static Core,
                location: &'static Location<'static>,
                source: &Arc<SplitSource>,
            ) -> Self::Promises {
                ($(Promise::<$T>::part(core, location, source.clone()),)*)
            }
            fn nodes(promises: &Self::Promises) -> Vec<Arc<dyn Node>> {
                let ($($p,)*) = promises;
                vec![$($p.clone() as Arc<dyn Node>),*]
            }
            fn refs(promises: Self::Promises) -> Self::Refs {
                let ($($p,)*) = promises;
                ($(ObjectRef::first($p),)*)
            }
            fn keep(self, promises: &Self::Promises) {
                let ($($t,)*) = self;
                let ($($p,)*) = promises;
                $($p.complete(Ok($t));)*
            }
            #[cfg(feature = "cluster")]
            const PARTS: u64 = [$(stringify!($t)),*].len() as u64;
            #[cfg(feature = "cluster")]
            fn pack_parts(&self) -> Result<Vec<serial::Packed>> {
                let ($($t,)*) = self;
                Ok(vec![$(serial::pack($t, "a part of the result")?),*])
            }
            #[cfg(feature = "cluster")]
            fn expect(parts: &mut crate::cluster::client::Expect<'_>) -> Self::Refs {
                ($(parts.part::<$T>(),)*)
            }
        }
    )*};
}

split! {
    (A a p, B b q);
    (A a p, B b q, C c r);
    (A a p, B b q, C c r, D d s);
    (A a p, B b q, C c r, D d s, E e t);
    (A a p, B b q, C c r, D d s, E e t, F f u);
    (A a p, B b q, C c r, D d s, E e t, F f u, G g v);
    (A a p, B b q, C c r, D d s, E e t, F f u, G g v, H h w);
}

/// A body that keeps the parts of its result apart.
struct SplitBody<B: Body<Out: Split>> {
    body: B,
    promises: <B::Out as Split>::Promises,
}

impl<B: Body<Out: Split>> Body for SplitBody<B> {
    type Out = ();
    const DEPENDENT: bool = B::DEPENDENT;

    fn type_name() -> &'static str {
        B::type_name()
    }

    fn dependencies(&self, visit: &mut dyn FnMut(&Arc<dyn Node>)) {
        self.body.dependencies(visit);
    }

    fn duplicate(&self) -> Result<Self> {
        Ok(SplitBody { body: self.body.duplicate()?, promises: self.promises.clone() })
    }

    fn round_trip((): ()) -> Result<()> {
        Ok(())
    }

    fn run(self) -> Result<Step<()>> {
        let SplitBody { body, promises } = self;
        let check = thread::current_core().is_some_and(|core| core.has(crate::local::flag::CHECK_SERIALIZATION));
        let checked = move |out| if check { B::round_trip(out) } else { Ok(out) };
        match body.run()? {
            Step::Value(out) => {
                checked(out)?.keep(&promises);
                Ok(Step::Value(()))
            }
            Step::Future(future) => {
                let parts: BoxFuture<()> = Box::pin(async move {
                    match checked(future.await) {
                        Ok(out) => out.keep(&promises),
                        Err(error) => fail_all::<B::Out>(&promises, error),
                    }
                });
                Ok(Step::Future(parts))
            }
        }
    }
}

/// What a task or a call knows of itself: see [`context`].
#[derive(Clone)]
pub struct Context {
    node: Arc<dyn Node>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.node.label())
    }
}

/// The context of the task or call that this code runs in.
///
/// ```
/// # use outray::Runtime;
/// let rt = Runtime::local();
/// let name = rt.task(|| outray::task::context().name().to_owned()).name("me").submit(());
/// assert_eq!(name.get()?, "me");
/// # Ok::<(), outray::Error>(())
/// ```
///
/// # Panics
/// Outside tasks and actors: see [`try_context`].
pub fn context() -> Context {
    match try_context() {
        Some(context) => context,
        None => panic!("task::context() was called outside of tasks and actors; use task::try_context() there"),
    }
}

/// The context of the task or call that this code runs in, if it runs in one.
pub fn try_context() -> Option<Context> {
    thread::current_node().map(|node| Context { node })
}

impl Context {
    /// The number of the task, which is that of its result too.
    pub fn id(&self) -> u64 {
        self.node.meta().number()
    }

    /// Its name, or else the path of its function.
    pub fn name(&self) -> &str {
        self.node.name()
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.node.meta().attempt()
    }

    /// The node that it runs on; `local` in a local runtime.
    pub fn node(&self) -> &str {
        let meta = self.node.meta();
        meta.node().unwrap_or_else(|| meta.node_here())
    }

    /// The GPUs leased to the task or its actor: the number of each device in its node's inventory, and the share of
    /// it. [`gpu_leases`](Context::gpu_leases) has more.
    pub fn gpus(&self) -> Vec<(usize, f64)> {
        let share = |lease: GpuLease| (lease.device.index as usize, f64::from(lease.thousandths) / 1e3);
        self.node.gpus().into_iter().map(share).collect()
    }

    /// The GPUs leased to the task or its actor, with what is known of each device; none if none were asked for.
    ///
    /// ```
    /// # use outray::{Runtime, gpu::Inventory, task};
    /// let two = Inventory::uniform(2, "NVIDIA H200", 141 << 30, (9, 0));
    /// let rt = Runtime::builder().gpu_inventory(two).build()?;
    /// let leased = rt.task(|| task::context().gpu_leases()[0].bytes).gpus(0.25).gpu_memory(20 << 30).submit(());
    /// assert_eq!(leased.get()?, 20 << 30);
    /// # Ok::<(), outray::Error>(())
    /// ```
    pub fn gpu_leases(&self) -> Vec<GpuLease> {
        self.node.gpus()
    }

    /// The leased device at this index, from 0, as the body uses it: its context and a stream of the body's own. The
    /// first call for a device in a process blocks while CUDA's context is made, some hundred milliseconds; later ones
    /// take about a microsecond.
    ///
    /// What is given to the stream runs after the body has gone on, and the body need not wait for it: the lease ends
    /// when it is done, and whoever gets the device next comes after it. What is given to it after the body's end is
    /// nobody's lease. An actor has one session for all its calls.
    ///
    /// ```no_run
    /// use outray::{Runtime, gpu::{DeviceBuffer, GpuError, cudarc::driver::{LaunchConfig, PushKernelArg}}, task};
    ///
    /// const DOUBLE: &str = r#"extern "C" __global__ void twice(const float* x, float* y, int n) {
    ///     int i = blockIdx.x * blockDim.x + threadIdx.x;
    ///     if (i < n) y[i] = 2 * x[i];
    /// }"#;
    ///
    /// fn upload(numbers: Vec<f32>) -> Result<DeviceBuffer<f32>, GpuError> {
    ///     Ok(task::context().gpu(0)?.upload(&numbers)?.freeze())
    /// }
    ///
    /// fn twice(x: Result<DeviceBuffer<f32>, GpuError>) -> Result<DeviceBuffer<f32>, GpuError> {
    ///     let (gpu, x) = (task::context().gpu(0)?, x?);
    ///     let kernel = gpu.compile(DOUBLE, "twice", Default::default())?;
    ///     let (mut y, n) = (gpu.zeros::<f32>(x.len())?, x.len() as i32);
    ///     {
    ///         let (x, mut y) = (x.read(&gpu)?, y.write(&gpu)?); // in order with whoever else uses them
    ///         let mut launch = gpu.stream().launch_builder(&kernel);
    ///         launch.arg(&x).arg(&mut y).arg(&n);
    ///         // SAFETY: the kernel takes these, and both have `n` numbers.
    ///         gpu.check("cuLaunchKernel", unsafe { launch.launch(LaunchConfig::for_num_elems(n as u32)) })?;
    ///     }
    ///     Ok(y.freeze())
    /// }
    ///
    /// let rt = Runtime::local();
    /// let x = rt.task(upload).gpus(0.5).submit(vec![1.0, 2.0]);
    /// let four_times = rt.task(twice).gpus(0.5).submit(&rt.task(twice).gpus(0.5).submit(&x));
    /// assert_eq!(four_times.get()??.to_vec()?, [4.0, 8.0]); // only here somebody waits for the device
    /// # Ok::<(), outray::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`GpuError::NotLeased`](crate::gpu::GpuError::NotLeased) where the task asked for fewer devices, or none; that
    /// there is no driver, or why the device cannot be used.
    #[cfg(feature = "gpu-unversioned")]
    pub fn gpu(&self, index: usize) -> Result<std::sync::Arc<crate::gpu::Gpu>, crate::gpu::GpuError> {
        match self.node.sessions() {
            Some(sessions) => sessions.get(index),
            None => Err(crate::gpu::GpuError::NotLeased { wanted: index, leased: 0 }),
        }
    }

    /// Whether it should stop: it was cancelled, its deadline has passed, or its actor was killed.
    /// Nobody will see its result. Long-running tasks ask from time to time.
    pub fn is_cancelled(&self) -> bool {
        self.node.is_cancelled()
    }

    /// `Err` if the task should stop, so that it can with `?`.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check_cancelled(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::Cancelled { origin: self.node.origin() }),
            false => Ok(()),
        }
    }
}
