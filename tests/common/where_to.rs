//! Where the tests run: in this process, or with the environment variable `OUTRAY_TEST_CLUSTER` on a cluster
//! of real processes, with so many nodes. The last of them has all that a test asks for. The others have nothing, and
//! programs begin there: what needs a CPU has to find one on another node, and values go between them. Actors that ask
//! for none stay on the program's node, which has one thread for them, so tests in which calls block each other hang there.
//!
//! ```sh
//! OUTRAY_TEST_CLUSTER=1 cargo test --features cluster --test tasks
//! OUTRAY_TEST_CLUSTER=2 cargo test --features cluster --test objects --test streams
//! ```

use outray::{Result, Runtime};
use std::collections::BTreeMap;

const VARIABLE: &str = "OUTRAY_TEST_CLUSTER";

/// Whether this process tests a cluster.
pub(crate) fn on_cluster() -> bool {
    cfg!(feature = "cluster") && nodes() > 0
}

fn nodes() -> usize {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    if wanted.is_empty() { 0 } else { wanted.parse().expect("OUTRAY_TEST_CLUSTER is a number of nodes") }
}

/// Leaves a test that is about one process.
macro_rules! local_only {
    ($why:literal) => {
        if $crate::common::on_cluster() {
            println!("not on a cluster: {}", $why);
            return;
        }
    };
}

pub(crate) use local_only;

/// A runtime with so many CPUs.
pub(crate) fn local(cpus: usize) -> Runtime {
    builder().cpus(cpus).build().expect("a runtime")
}

pub(crate) fn builder() -> Builder {
    Builder { local: Runtime::builder(), shape: Shape { cpus: 2, ..Shape::default() }, observe: false }
}

/// What [`outray::Builder`] is, wherever the tests run.
pub(crate) struct Builder {
    local: outray::Builder,
    shape: Shape,
    observe: bool,
}

/// What a node of a cluster has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Shape {
    cpus: usize,
    gpus: usize,
    memory: Option<u64>,
    resources: BTreeMap<String, f64>,
}

impl Builder {
    pub(crate) fn cpus(mut self, cpus: usize) -> Self {
        self.local = self.local.cpus(cpus);
        self.shape.cpus = cpus;
        self
    }

    pub(crate) fn gpus(mut self, gpus: usize) -> Self {
        self.local = self.local.gpus(gpus);
        self.shape.gpus = gpus;
        self
    }

    pub(crate) fn memory(mut self, bytes: u64) -> Self {
        self.local = self.local.memory(bytes);
        self.shape.memory = Some(bytes);
        self
    }

    pub(crate) fn resource(mut self, name: &str, amount: f64) -> Self {
        self.local = self.local.resource(name, amount);
        self.shape.resources.insert(name.into(), amount);
        self
    }

    /// Nothing else on a cluster, where everything is passed through it.
    pub(crate) fn check_serialization(mut self, check: bool) -> Self {
        self.local = self.local.check_serialization(check);
        self
    }

    pub(crate) fn observe(mut self, observe: bool) -> Self {
        self.local = self.local.observe(observe);
        self.observe = observe;
        self
    }

    #[cfg(not(feature = "cluster"))]
    pub(crate) fn build(self) -> Result<Runtime> {
        self.local.build()
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn build(self) -> Result<Runtime> {
        match on_cluster() {
            true => cluster(&self.shape).connect_with(Runtime::builder().observe(self.observe)),
            false => self.local.build(),
        }
    }
}

/// The cluster of this shape. It ends with this process.
#[cfg(feature = "cluster")]
fn cluster(shape: &Shape) -> &'static outray::LocalCluster {
    use outray::LocalCluster;
    use std::sync::{Mutex, PoisonError};

    static CLUSTERS: Mutex<Vec<(Shape, &LocalCluster)>> = Mutex::new(Vec::new());
    let clusters = &mut *CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, cluster)) = clusters.iter().find(|(other, _)| other == shape) {
        return cluster;
    }
    let statics = super::shared::path().expect("there are shared statics on a cluster");
    let builder = || LocalCluster::builder().env(super::shared::VARIABLE, &statics);
    let mut full = builder().cpus(shape.cpus as f64).gpus(shape.gpus as u32);
    if let Some(bytes) = shape.memory {
        full = full.memory(bytes);
    }
    full = shape.resources.iter().fold(full, |full, (name, amount)| full.resource(name, *amount));
    let mut cluster = builder().nodes(nodes() - 1).cpus(0.0).memory(0).start().expect("a cluster");
    cluster.add_node_of(&full).expect("a node");
    let cluster = Box::leak(Box::new(cluster));
    clusters.push((shape.clone(), cluster));
    cluster
}
