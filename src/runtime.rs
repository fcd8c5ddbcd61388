//! The runtime: what everything is submitted to.

use crate::{
    actor::{Actor, ActorBuilder},
    args::IntoArgs,
    error::{Error, Result},
    function::{Constructor, RemoteFn, StreamFn},
    gpu::{DeviceSource, Inventory, Simulated, placement::MOST},
    local::{
        Config, Core, flag,
        gpus::Origin,
        node::{Node, Promise},
        observe,
        resources::{Amounts, WHOLE},
        thread, wait,
    },
    object::{Object, ObjectRef},
    resources::{Bundle, PlacementGroup, PlacementStrategy},
    stream::{ObjectStream, StreamTask},
    task::Task,
};
use std::{
    fmt,
    panic::Location,
    sync::Arc,
    time::{Duration, Instant},
};

/// Where tasks run and objects live: in this process.
///
/// Handles to a runtime are cheap to clone. When the last one is dropped the runtime shuts down:
/// what has not started fails with [`Error::Shutdown`], what runs is waited for. So keep it until
/// you have your results.
///
/// A runtime starts threads when there is work for them, as many as it has CPUs, and one more for
/// each task that blocks; idle threads sleep and cost nothing.
///
/// ```
/// use outray::Runtime;
///
/// fn add(a: f64, b: f64) -> f64 {
///     a + b
/// }
///
/// let rt = Runtime::local();
/// let x = rt.submit(add, (1.0, 2.0));
/// let y = rt.submit(add, (&x, 3.0)); // waits for x
/// assert_eq!(y.get()?, 6.0);
/// # Ok::<(), outray::Error>(())
/// ```
#[derive(Clone)]
pub struct Runtime {
    pub(crate) core: &'static Core,
    /// Shuts down with the last of its clones; the runtime that a task sees has none.
    _guard: Option<Arc<Guard>>,
}

struct Guard(&'static Core);

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.0.is_stopping() {
            self.0.close(None);
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("stats", &self.own_stats()).finish()
    }
}

impl Runtime {
    /// A runtime in this process, with as many CPUs as the process may use.
    pub fn local() -> Runtime {
        match Runtime::builder().build() {
            Ok(runtime) => runtime,
            Err(error) => unreachable!("the defaults make sense: {error}"),
        }
    }

    /// A runtime in this process, with options.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A runtime that runs one thing at a time, in an order that `seed` decides, so that a test
    /// can replay an interleaving. Time is virtual: see [`crate::sleep`].
    ///
    /// The order is the same for the same seed as long as one thread drives the runtime and the
    /// program is itself deterministic. Tasks must not hold a lock across a `get`, and must not
    /// wait for each other by other means than handles, actors, streams and queues.
    ///
    /// ```
    /// # use outray::Runtime;
    /// #[derive(Default)]
    /// struct Account(i64);
    /// impl Account {
    ///     fn new() -> Self { Account(100) }
    ///     fn balance(&self) -> i64 { self.0 }
    ///     fn set(&mut self, to: i64) { self.0 = to }
    /// }
    /// // Reads, then writes: two of these at once can lose an update.
    /// fn deposit(account: outray::Actor<Account>, amount: i64) {
    ///     let balance = account.call(Account::balance, ()).get().unwrap();
    ///     account.call(Account::set, balance + amount).get().unwrap();
    /// }
    /// let lost = (0..100).filter(|seed| {
    ///     let rt = Runtime::deterministic(*seed);
    ///     let account = rt.actor(Account::new, ());
    ///     let both = [rt.submit(deposit, (account.clone(), 1)), rt.submit(deposit, (account.clone(), 1))];
    ///     rt.get_all(&both).unwrap();
    ///     account.call(Account::balance, ()).get().unwrap() != 102
    /// });
    /// assert!(lost.count() > 0, "some seed finds the bug, and will find it again");
    /// ```
    pub fn deterministic(seed: u64) -> Runtime {
        Runtime::open(Config { deterministic: Some(seed), ..Builder::default().config() })
    }

    /// The runtime that the environment asks for: with `OUTRAY_ADDRESS` a cluster's, else a local
    /// one. `OUTRAY_OBSERVE=1` makes it observe.
    ///
    /// # Errors
    /// As [`Runtime::connect`].
    pub fn from_env() -> Result<Runtime> {
        Runtime::builder().from_env()
    }

    /// A runtime on the cluster whose head is at `address` (`host:port`). Its tasks and actors run there; the
    /// program is the same. The key is read from the file that `OUTRAY_KEY_FILE` names, or from `~/.outray/key`.
    ///
    /// Blocks until the head has answered and a node is there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if that takes longer than twenty seconds, if the key does not fit, or always if this
    /// build is without the feature `cluster`.
    pub fn connect(address: &str) -> Result<Runtime> {
        Runtime::builder().connect(address)
    }

    fn open(config: Config) -> Runtime {
        Runtime::of(Core::open(config))
    }

    pub(crate) fn of(core: &'static Core) -> Runtime {
        Runtime { core, _guard: Some(Arc::new(Guard(core))) }
    }

    /// The runtime that this task or actor runs on.
    ///
    /// The handle does not keep the runtime alive.
    ///
    /// # Panics
    /// Outside tasks and actors: see [`Runtime::try_current`].
    pub fn current() -> Runtime {
        match Runtime::try_current() {
            Some(runtime) => runtime,
            None => panic!(
                "Runtime::current() was called outside of tasks and actors; pass the runtime on, or make one with Runtime::local()"
            ),
        }
    }

    /// The runtime that this task or actor runs on, if this is one.
    pub fn try_current() -> Option<Runtime> {
        thread::current_core().map(|core| Runtime { core, _guard: None })
    }

    /// Makes an object of a value. The value is moved, whatever its size.
    ///
    /// ```
    /// # use outray::Runtime;
    /// # use std::sync::Arc;
    /// fn norm(v: Arc<Vec<f64>>) -> f64 {
    ///     v.iter().map(|x| x * x).sum::<f64>().sqrt()
    /// }
    /// let rt = Runtime::local();
    /// let v = rt.put(vec![3.0, 4.0]);
    /// assert_eq!(rt.submit(norm, &v).get()?, 5.0); // shared, not copied
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn put<T: Object>(&self, value: T) -> ObjectRef<T> {
        let location = Location::caller();
        let value = match self.core.has(flag::CHECK_SERIALIZATION) {
            true => crate::serial::round_trip(&value, "an object"),
            false => Ok(value),
        };
        let promise = match value {
            Ok(value) => Promise::ready(self.core, location, value),
            Err(error) => Promise::failed(self.core, location, error),
        };
        observe::submitted(self.core, || promise.clone());
        ObjectRef::first(promise)
    }

    /// Runs a function as a task and returns the handle to its result at once.
    ///
    /// Arguments are values or handles, in a tuple, or bare if there is one: see
    /// [`IntoArg`](crate::IntoArg). The task starts when all its handles are ready, on any thread.
    /// For options see [`Runtime::task`].
    ///
    /// # Errors
    /// Whatever goes wrong is what `get` on the handle returns.
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// let ten = rt.submit(|a: i32, b: i32| a * b, (2, 5));
    /// let parts = vec![ten.clone(), rt.submit(i32::abs, -1)];
    /// let sum = rt.submit(|parts: Vec<i32>| parts.iter().sum::<i32>(), &parts);
    /// assert_eq!(sum.get()?, 11);
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn submit<F, Args, M, In>(&self, f: F, args: In) -> ObjectRef<F::Out>
    where
        F: RemoteFn<Args, M>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
    {
        const { crate::task::assert_captures_nothing::<F>() }
        crate::task::submit(self.core, Location::caller(), f, args.into_args(), None)
    }

    /// A task with options: name, resources, retries, deadline, placement.
    ///
    /// ```
    /// # use outray::Runtime;
    /// # use std::time::Duration;
    /// fn load(path: String) -> Result<String, String> {
    ///     std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    /// }
    /// let rt = Runtime::local();
    /// let text = rt.task(load).name("load").retry_errors(2).deadline(Duration::from_secs(5)).submit("/no/such/file");
    /// assert!(text.get()?.is_err());
    /// # Ok::<(), outray::Error>(())
    /// ```
    pub fn task<F, Args, M>(&self, f: F) -> Task<F, Args, M, F::Out>
    where
        F: RemoteFn<Args, M>,
    {
        Task::new(self.core, f)
    }

    /// Runs a function that returns an iterator or a stream, and hands its items out as they come.
    ///
    /// ```
    /// # use outray::Runtime;
    /// let rt = Runtime::local();
    /// let squares = rt.stream(|n: u64| (0..n).map(|i| i * i), 5);
    /// assert_eq!(squares.values().collect::<Result<Vec<_>, _>>()?, [0, 1, 4, 9, 16]);
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn stream<F, Args, M, In>(&self, f: F, args: In) -> ObjectStream<F::Item>
    where
        F: StreamFn<Args, M>,
        In: IntoArgs<Args>,
        Args: 'static,
        M: 'static,
    {
        self.streaming(f).submit(args)
    }

    /// A streaming task with options.
    pub fn streaming<F, Args, M>(&self, f: F) -> StreamTask<F, Args, M>
    where
        F: StreamFn<Args, M>,
    {
        StreamTask::new(self.core, f)
    }

    /// Starts an actor: a state that lives in the runtime, made by `new` from `args`.
    ///
    /// ```
    /// # use outray::Runtime;
    /// struct Counter(i64);
    /// impl Counter {
    ///     fn new(start: i64) -> Self { Counter(start) }
    ///     fn add(&mut self, by: i64) -> i64 { self.0 += by; self.0 }
    ///     fn value(&self) -> i64 { self.0 }
    /// }
    /// let rt = Runtime::local();
    /// let counter = rt.actor(Counter::new, 10);
    /// counter.call(Counter::add, 5);
    /// assert_eq!(counter.call(Counter::value, ()).get()?, 15);
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[track_caller]
    pub fn actor<F, Args, In>(&self, new: F, args: In) -> Actor<F::State>
    where
        F: Constructor<Args>,
        In: IntoArgs<Args>,
        Args: 'static,
    {
        self.actor_builder(new).start(args)
    }

    /// An actor with options: name, lifetime, resources, restarts, checkpoints, limits.
    pub fn actor_builder<F, Args>(&self, new: F) -> ActorBuilder<F, Args, F::State>
    where
        F: Constructor<Args>,
    {
        ActorBuilder::new(self.core, new)
    }

    /// The actor with this name.
    ///
    /// # Errors
    /// [`Error::ActorNotFound`] if there is none, or if its state is not an `S`.
    pub fn get_actor<S: Send + Sync + 'static>(&self, name: &str) -> Result<Actor<S>> {
        Actor::named(self.core, name)
    }

    /// The values of all handles, in their order. Blocks until all are there.
    ///
    /// # Errors
    /// The first failure in the order of the handles.
    pub fn get_all<T: Clone + Send + Sync + 'static>(&self, refs: &[ObjectRef<T>]) -> Result<Vec<T>> {
        // Backwards, because what was submitted last tends to end last: then there is one wait for
        // all, and a worker finds its own newest task on top of its queue. A thread outside does so
        // part by part, so that it copies the results of one while others work on the next.
        let inside = thread::with_worker(self.core, |worker| worker.is_some());
        let part = if inside { refs.len() } else { refs.len() / 8 }.max(1024);
        let mut values = Ok(Vec::with_capacity(refs.len()));
        for part in refs.chunks(part) {
            for handle in part.iter().rev() {
                handle.wait(None)?;
            }
            for handle in part {
                if let Ok(list) = &mut values {
                    match handle.get() {
                        Ok(value) => list.push(value),
                        Err(error) => values = Err(error),
                    }
                }
            }
        }
        values
    }

    /// Blocks until `k` of the handles are ready, or the time is up. Returns those that are ready,
    /// at most `k`, and the rest, each in the order given. A failed task counts as ready.
    ///
    /// ```
    /// # use outray::Runtime;
    /// # use std::time::Duration;
    /// let rt = Runtime::local();
    /// let tasks: Vec<_> = (0..4).map(|i| rt.submit(|i: i32| i, i)).collect();
    /// let (ready, rest) = rt.wait(&tasks, 2, Some(Duration::from_secs(10)));
    /// assert_eq!((ready.len(), rest.len()), (2, 2));
    /// ```
    pub fn wait<T: Send + Sync + 'static>(
        &self,
        refs: &[ObjectRef<T>],
        k: usize,
        timeout: Option<Duration>,
    ) -> (Vec<ObjectRef<T>>, Vec<ObjectRef<T>>) {
        let nodes: Vec<Arc<dyn Node>> = refs.iter().map(ObjectRef::node).collect();
        // A cycle or a deadlock ends the wait; the handles that it concerns say so when asked.
        let _ = wait::wait_some(&nodes, k, timeout);
        let (mut ready, mut rest) = (Vec::new(), Vec::new());
        for handle in refs {
            let full = ready.len() >= k;
            if !full && handle.is_ready() { &mut ready } else { &mut rest }.push(handle.clone());
        }
        (ready, rest)
    }

    /// Sets resources aside, for all bundles or for none. On a cluster this waits for room, for half a minute at
    /// most; [`placement_group_timeout`](Self::placement_group_timeout) says how long.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if this is not possible now, and why; on a cluster [`Error::Infeasible`] if it was not
    /// possible in that time, or at once if its nodes are too few or too small for it; [`Error::Gpu`] if a bundle asks
    /// for GPUs and none can be used here.
    pub fn placement_group(&self, bundles: &[Bundle], strategy: PlacementStrategy) -> Result<PlacementGroup> {
        self.placement_group_timeout(bundles, strategy, Duration::from_secs(30))
    }

    /// The same, waiting no longer than `timeout` for room. While it waits `outray list placement-groups` says for what.
    /// A local runtime never waits for that: there it is the same as [`placement_group`](Self::placement_group).
    ///
    /// # Errors
    /// As [`placement_group`](Self::placement_group).
    pub fn placement_group_timeout(
        &self,
        bundles: &[Bundle],
        strategy: PlacementStrategy,
        timeout: Duration,
    ) -> Result<PlacementGroup> {
        if bundles.is_empty() {
            return Err(Error::invalid("a placement group needs at least one bundle"));
        }
        #[cfg(feature = "cluster")]
        if let Some(client) = self.core.client.get() {
            let demands: Vec<_> =
                bundles.iter().map(|bundle| bundle.request.demand(0, self.core)).collect::<Result<_>>()?;
            let group = client.create_group(&demands, strategy, timeout)?;
            return Ok(PlacementGroup(crate::resources::Place::There(group)));
        }
        let _ = timeout; // here there is room now, or never
        if strategy == PlacementStrategy::StrictSpread && bundles.len() > 1 {
            return Err(Error::invalid(format!(
                "StrictSpread wants {} nodes, and a local runtime is one; use Spread, or run on a cluster",
                bundles.len()
            )));
        }
        let demands: Vec<_> =
            bundles.iter().map(|bundle| bundle.request.demand(0, self.core)).collect::<Result<_>>()?;
        self.core.reserve_group(demands).map(|group| PlacementGroup(crate::resources::Place::Here(group)))
    }

    /// Ends the runtime now, for all its handles.
    ///
    /// What has not started fails with [`Error::Shutdown`], actors die, futures are dropped where
    /// they wait. Tasks that run are waited for, for at most `limit`; those that take longer are
    /// left behind; on a cluster they are given up, and fail. Returns whether everything ended.
    ///
    /// # Blocking
    /// Up to `limit`; from inside a task it does not wait at all.
    pub fn shutdown(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        if self.core.is_stopping() {
            return self.core.threads() == 0 && self.core.is_over_elsewhere();
        }
        self.core.close(Some(until.saturating_duration_since(Instant::now())))
    }
}

/// Options of a local runtime.
#[derive(Clone, Debug)]
pub struct Builder {
    cpus: Option<usize>,
    gpus: Origin,
    memory: Option<u64>,
    resources: Vec<(String, f64)>,
    check_serialization: bool,
    observe: bool,
    stack_size: usize,
    #[cfg(feature = "tokio")]
    tokio: Option<tokio::runtime::Handle>,
}

impl Default for Builder {
    fn default() -> Self {
        Builder {
            cpus: None,
            gpus: Origin::Machine,
            memory: None,
            resources: Vec::new(),
            check_serialization: false,
            observe: false,
            stack_size: 2 << 20,
            #[cfg(feature = "tokio")]
            tokio: None,
        }
    }
}

impl Builder {
    /// How many CPUs there are for tasks; by default as many as the process may use. At most so
    /// many plain tasks run at a time.
    #[must_use]
    pub fn cpus(mut self, cpus: usize) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// So many GPUs that exist only on paper, all alike: requests are admitted by them, kernels do not run. By default
    /// the devices are those of the machine, looked for at the first request for one; with 0 there are none.
    #[must_use]
    pub fn gpus(mut self, gpus: usize) -> Self {
        self.gpus = Origin::Simulated(u32::try_from(gpus).unwrap_or(u32::MAX));
        self
    }

    /// GPUs that exist only on paper: requests are admitted by them, kernels do not run.
    ///
    /// ```
    /// # use outray::{Runtime, gpu::{GpuRequest, Inventory, NvLink}};
    /// let four = Inventory::uniform(4, "NVIDIA H200", 141 << 30, (9, 0)).nvlink(&[(0, 1), (2, 3)]);
    /// let rt = Runtime::builder().gpu_inventory(four).build()?;
    /// let pair = GpuRequest::whole(2).named("h200").nvlink(NvLink::Require);
    /// let leased = rt.task(|| outray::task::context().gpus().len()).gpu(pair).submit(());
    /// assert_eq!(leased.get()?, 2);
    /// let three = rt.task(|| ()).gpu(GpuRequest::whole(3).nvlink(NvLink::Require)).try_submit(());
    /// assert!(three.unwrap_err().to_string().contains("3 GPUs joined by NVLink wanted, 2 there"));
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[must_use]
    pub fn gpu_inventory(self, inventory: Inventory) -> Self {
        self.gpu_source(Arc::new(Simulated::new(inventory)))
    }

    /// The GPUs that this tells of. It is asked for its inventory at the first request for one.
    #[must_use]
    pub fn gpu_source(mut self, source: Arc<dyn DeviceSource>) -> Self {
        self.gpus = Origin::Given(source);
        self
    }

    /// How much memory there is for admission, in bytes; by default this machine's.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// An amount of a custom resource.
    #[must_use]
    pub fn resource(mut self, name: &str, amount: f64) -> Self {
        self.resources.push((name.to_owned(), amount));
        self
    }

    /// Passes every argument, result and `put` through serialization, so that a test finds what
    /// would fail on a cluster.
    ///
    /// ```
    /// # use outray::{Error, Runtime};
    /// # use serde::{Deserialize, Serialize};
    /// #[derive(Clone, Serialize, Deserialize)]
    /// struct Config {
    ///     #[serde(skip_serializing)] // and yet wanted back
    ///     path: String,
    /// }
    /// let rt = Runtime::builder().check_serialization(true).build()?;
    /// let length = rt.submit(|config: Config| config.path.len(), Config { path: "x".into() });
    /// assert!(matches!(length.get(), Err(Error::Serialization { .. })));
    /// # Ok::<(), outray::Error>(())
    /// ```
    #[must_use]
    pub fn check_serialization(mut self, check: bool) -> Self {
        self.check_serialization = check;
        self
    }

    /// Records what runs, for the lists, `tracing` and the timeline.
    #[must_use]
    pub fn observe(mut self, observe: bool) -> Self {
        self.observe = observe;
        self
    }

    /// The stack of each worker thread, in bytes; 2 MiB by default. A task can count on three
    /// quarters of it, also when it is run by a task that waits for it.
    #[must_use]
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = bytes.max(256 << 10);
        self
    }

    /// Polls `async` tasks and methods inside this tokio runtime, so that tokio's timers and
    /// sockets work in them.
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn tokio(mut self, handle: tokio::runtime::Handle) -> Self {
        self.tokio = Some(handle);
        self
    }

    pub(crate) fn config(&self) -> Config {
        let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cpus = self.cpus.unwrap_or_else(available);
        let amount = |amount: f64| (amount * f64::from(WHOLE)).round() as u64;
        Config {
            total: Amounts {
                cpu: cpus as u32 * WHOLE,
                gpus: Default::default(),
                memory: self.memory.unwrap_or_else(machine_memory),
                custom: self.resources.iter().map(|(name, value)| (name.as_str().into(), amount(*value))).collect(),
            },
            gpus: self.gpus.clone(),
            check_serialization: self.check_serialization,
            observe: self.observe,
            stack_size: self.stack_size,
            deterministic: None,
            #[cfg(feature = "tokio")]
            tokio: self.tokio.clone(),
        }
    }

    /// Makes the runtime.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if an option makes no sense.
    pub fn build(self) -> Result<Runtime> {
        if let Some(cpus @ (0 | 100_001..)) = self.cpus {
            return Err(Error::invalid(format!("cpus({cpus}): a runtime has 1 to 100,000 CPUs")));
        }
        if let Origin::Simulated(gpus) = self.gpus
            && gpus > MOST
        {
            return Err(Error::invalid(format!("gpus({gpus}): a runtime has at most {MOST} GPUs")));
        }
        let negative = self.resources.iter().find(|(_, amount)| !(0.0..=1e9).contains(amount));
        if let Some((name, amount)) = negative {
            return Err(Error::invalid(format!("resource({name:?}, {amount}): the amount must be a number from 0 on")));
        }
        Ok(Runtime::open(self.config()))
    }

    /// Makes a runtime on a cluster: see [`Runtime::connect`]. Of the options only `observe` says anything there.
    ///
    /// # Errors
    /// As [`Runtime::connect`].
    #[cfg(feature = "cluster")]
    pub fn connect(self, address: &str) -> Result<Runtime> {
        Runtime::on_cluster(address, crate::cluster::key_from_env()?, self)
    }

    /// Makes a runtime on a cluster: see [`Runtime::connect`].
    ///
    /// # Errors
    /// Always: this build is without the feature `cluster`.
    #[cfg(not(feature = "cluster"))]
    pub fn connect(self, address: &str) -> Result<Runtime> {
        Err(Error::Unsupported {
            reason: format!(
                "connecting to {address:?}: this program was built without outray's feature `cluster`; build it with that, or use `Runtime::local()` and unset OUTRAY_ADDRESS"
            ),
        })
    }

    /// Makes the runtime that the environment asks for: see [`Runtime::from_env`].
    ///
    /// # Errors
    /// As [`Builder::build`] and [`Runtime::connect`].
    pub fn from_env(mut self) -> Result<Runtime> {
        self.observe |= std::env::var_os("OUTRAY_OBSERVE").is_some_and(|value| value != "0" && !value.is_empty());
        match std::env::var("OUTRAY_ADDRESS") {
            Ok(address) if !address.is_empty() => self.connect(&address),
            _ => self.build(),
        }
    }
}

/// All of this machine's memory, in bytes, or so much that nothing is refused where it is not known.
pub(crate) fn machine_memory() -> u64 {
    let known = std::fs::read_to_string("/proc/meminfo").ok().and_then(|info| {
        let line = info.lines().find(|line| line.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    known.map_or(1 << 50, |kib| kib << 10)
}
