//! What tasks and actors ask for, and where they want to be.

use crate::{
    error::{Error, Result},
    gpu::GpuRequest,
    local::{
        Core,
        resources::{Demand, Group, WHOLE},
    },
};
use std::sync::Arc;

/// A request in the making. The first thing wrong with it is kept, and told at submission.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    cpu: Option<u32>,
    gpu: Option<GpuRequest>,
    rest: Demand,
    pub(crate) strategy: Strategy,
    /// Of a group on the cluster.
    #[cfg(feature = "cluster")]
    pub(crate) bundle: Option<crate::cluster::groups::InBundle>,
    problem: Option<Error>,
}

impl Request {
    pub(crate) fn cpus(&mut self, cpus: f64) {
        self.cpu = self.thousandths("cpus", cpus).map(|cpus| cpus as u32);
    }

    pub(crate) fn gpus(&mut self, gpus: f64) {
        let Some(gpus) = self.thousandths("gpus", gpus).map(|gpus| u32::try_from(gpus).unwrap_or(u32::MAX)) else {
            return;
        };
        if gpus > WHOLE && gpus % WHOLE != 0 {
            self.reject(format!(
                "gpus({}): ask for a share of one device, or for whole devices",
                f64::from(gpus) / 1e3
            ));
        }
        let amount = GpuRequest::amount(gpus);
        self.gpu = match self.gpu.take() {
            Some(request) => Some(GpuRequest { devices: amount.devices, share: amount.share, ..request }),
            None => (gpus > 0).then_some(amount),
        };
        self.gpu.take_if(|request| gpus == 0 && request.memory.is_none());
    }

    pub(crate) fn gpu_memory(&mut self, bytes: u64) {
        self.gpu = Some(match self.gpu.take() {
            Some(request) => request.memory(bytes),
            None => GpuRequest::bytes(bytes),
        });
    }

    pub(crate) fn gpu(&mut self, request: GpuRequest) {
        self.gpu = (request.devices > 0).then_some(request);
    }

    pub(crate) fn memory(&mut self, bytes: u64) {
        self.rest.memory = bytes;
    }

    pub(crate) fn resource(&mut self, name: &str, amount: f64) {
        if let Some(amount) = self.thousandths(name, amount) {
            self.rest.custom.insert(name.into(), amount);
        }
    }

    pub(crate) fn bundle(&mut self, group: &PlacementGroup, bundle: usize) {
        match &group.0 {
            Place::Here(group) => self.rest.bundle = Some((group.clone(), bundle)),
            #[cfg(feature = "cluster")]
            Place::There(group) => self.bundle = Some((group.clone(), bundle as u32)),
        }
    }

    pub(crate) fn strategy(&mut self, strategy: &Strategy) {
        self.strategy = strategy.clone();
    }

    /// What of the wishes for a place a single node cannot fulfil.
    fn unmet(&self) -> Option<String> {
        match &self.strategy {
            Strategy::Default | Strategy::Spread | Strategy::PreferLabels { .. } => None,
            Strategy::Node { name, soft } => {
                (!soft && name != LOCAL_NODE).then(|| format!("there is no node {name:?}, only {LOCAL_NODE:?}"))
            }
            Strategy::Labels { required } => {
                let first = required.first();
                first.map(|(key, value)| format!("no node has the label {key}={value}: {LOCAL_NODE:?} has none"))
            }
        }
    }

    fn reject(&mut self, reason: String) {
        self.problem.get_or_insert(Error::invalid(reason));
    }

    fn thousandths(&mut self, what: &str, amount: f64) -> Option<u64> {
        let exact = amount * f64::from(WHOLE);
        if !(0.0..=1e12).contains(&exact) {
            self.reject(format!("{what}({amount}): the amount must be a number from 0 on"));
            return None;
        }
        let rounded = exact.round();
        if (exact - rounded).abs() > 1e-6 {
            self.reject(format!("{what}({amount}): amounts are counted in thousandths"));
        }
        Some(rounded as u64)
    }

    /// The demand, with so many CPUs where none were named.
    pub(crate) fn demand(&self, default_cpu: u32, core: &Core) -> Result<Demand> {
        let unmet = if core.is_on_cluster() { None } else { self.unmet() };
        let gpu = || self.gpu.as_ref().and_then(GpuRequest::problem);
        match self.problem.clone().or_else(|| gpu().or(unmet).map(Error::invalid)) {
            Some(problem) => Err(problem),
            None => Ok(Demand {
                cpu: self.cpu.unwrap_or(default_cpu),
                gpu: self.gpu.clone().map(Arc::new),
                ..self.rest.clone()
            }),
        }
    }
}

/// The name of the only node of a local runtime.
pub(crate) const LOCAL_NODE: &str = "local";

/// Where a task or an actor should be placed.
///
/// A local runtime is one node, named `local`, without labels: soft wishes are always met there,
/// and hard ones for anything else are errors at submission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Strategy {
    /// Where it is expected to start first.
    #[default]
    Default,
    /// On as many nodes as possible.
    Spread,
    /// On a certain node.
    Node {
        /// The node's name.
        name: String,
        /// Whether any other node will do when this one is not there.
        soft: bool,
    },
    /// On a node with all of these labels.
    Labels {
        /// Pairs of key and value.
        required: Vec<(String, String)>,
    },
    /// On a node with all of these labels, if one that is there has room; on any other if not.
    PreferLabels {
        /// Pairs of key and value.
        preferred: Vec<(String, String)>,
    },
}

#[cfg(feature = "cluster")]
impl Strategy {
    /// The same as the cluster knows it. Nodes are named by their numbers, or by a label `node`.
    pub(crate) fn to_cluster(&self) -> crate::cluster::protocol::Strategy {
        use crate::cluster::protocol::{NAME, ProcessId, Strategy as There};
        let labelled = |labels: &[(String, String)], soft| {
            let labels = labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
            There::Labels { labels, soft }
        };
        match self {
            Strategy::Default => There::Default,
            Strategy::Spread => There::Spread,
            Strategy::Node { name, soft } => match ProcessId::named(name) {
                Some(node) => There::Node { node, soft: *soft },
                None => labelled(&[(NAME.into(), name.clone())], *soft),
            },
            Strategy::Labels { required } => labelled(required, false),
            Strategy::PreferLabels { preferred } => labelled(preferred, true),
        }
    }
}

/// Which process an actor lives in, on a cluster: [`ActorBuilder::isolation`](crate::ActorBuilder::isolation).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// One that it shares with other tasks and actors of the program on its node. If that process dies all of them
    /// are lost.
    #[default]
    Shared,
    /// One of its own, which ends when the actor does. A crash in it takes nobody else along, and a panic in a
    /// `&mut self` call, too, is followed by a new process (unless there are checkpoints), if the actor may start again:
    /// the way out for code that may spoil its process, such as kernels that may fault and leave a GPU's context
    /// unusable. It sees the GPUs that are leased to it and no others.
    ///
    /// What it costs: starting a process, and there no contexts and modules that others have loaded. What its own tasks
    /// make and what it [puts](crate::Runtime::put) is owned by its process, and lost with it, unless it was taken out
    /// of it before. Calls that it has not ended when its process ends fail.
    Process,
}

/// How the bundles of a placement group are laid out over nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlacementStrategy {
    /// On as few nodes as possible.
    Pack,
    /// On as many nodes as possible.
    Spread,
    /// All on one node.
    StrictPack,
    /// Each on a node of its own.
    StrictSpread,
}

/// Resources that a placement group sets aside together.
///
/// ```
/// # use outray::{Bundle, PlacementStrategy, Runtime};
/// let rt = Runtime::builder().cpus(2).build()?;
/// let group = rt.placement_group(&[Bundle::new().cpus(1.0)], PlacementStrategy::Pack)?;
/// let inside = rt.task(|| 7).placement_group(&group, 0).submit(());
/// assert_eq!(inside.get()?, 7);
/// # Ok::<(), outray::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    pub(crate) request: Request,
}

impl Bundle {
    /// Nothing yet.
    pub fn new() -> Self {
        Bundle::default()
    }
}

/// Resources set aside for the tasks and actors that are submitted with it.
///
/// They are given back when the last handle to the group, and the last task in it, is gone.
#[derive(Clone, Debug)]
pub struct PlacementGroup(pub(crate) Place);

/// Where a group is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In this process.
    Here(Arc<Group>),
    /// On nodes of the cluster.
    #[cfg(feature = "cluster")]
    There(Arc<crate::cluster::groups::RemoteGroup>),
}

impl PlacementGroup {
    /// The group's number, unique in this process.
    pub fn id(&self) -> u64 {
        match &self.0 {
            Place::Here(group) => group.id,
            #[cfg(feature = "cluster")]
            Place::There(group) => group.id(),
        }
    }

    /// How many bundles it has.
    pub fn bundles(&self) -> usize {
        match &self.0 {
            Place::Here(group) => group.bundles.len(),
            #[cfg(feature = "cluster")]
            Place::There(group) => group.bundles(),
        }
    }
}

/// The methods by which a builder asks for resources.
macro_rules! request_methods {
    () => {
        /// Asks for CPUs; a fraction is a share of one, counted in thousandths.
        #[must_use = "the builder with this request is what is returned"]
        pub fn cpus(mut self, cpus: impl Into<f64>) -> Self {
            self.request.cpus(cpus.into());
            self
        }

        /// Asks for GPUs: whole devices, or a share of one device, counted in thousandths. A whole device comes with
        /// all of its memory and a share with the same part of it, unless [`gpu_memory`](Self::gpu_memory) says how
        /// much.
        #[must_use = "the builder with this request is what is returned"]
        pub fn gpus(mut self, gpus: impl Into<f64>) -> Self {
            self.request.gpus(gpus.into());
            self
        }

        /// Asks for memory of a GPU, in bytes on each device; alone it asks for memory of one device and no share of
        /// its time.
        #[must_use = "the builder with this request is what is returned"]
        pub fn gpu_memory(mut self, bytes: u64) -> Self {
            self.request.gpu_memory(bytes);
            self
        }

        /// Asks for GPUs of a certain kind, joined in a certain way; this replaces what was asked of them before.
        #[must_use = "the builder with this request is what is returned"]
        pub fn gpu(mut self, request: $crate::gpu::GpuRequest) -> Self {
            self.request.gpu(request);
            self
        }

        /// Asks for memory, in bytes. This is admission only: nothing limits what is then used.
        #[must_use = "the builder with this request is what is returned"]
        pub fn memory(mut self, bytes: u64) -> Self {
            self.request.memory(bytes);
            self
        }

        /// Asks for an amount of a custom resource, counted in thousandths.
        #[must_use = "the builder with this request is what is returned"]
        pub fn resource(mut self, name: &str, amount: f64) -> Self {
            self.request.resource(name, amount);
            self
        }
    };
}
pub(crate) use request_methods;

impl Bundle {
    request_methods!();
}
