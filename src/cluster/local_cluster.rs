//! A cluster on this machine, for tests and for a laptop.

use super::{
    driver, entry,
    roles::{Gpus, HeadSetup, NodeSetup, RoleSetup},
    secure::Key,
    store, wire,
};
use crate::{
    error::{Error, Result},
    gpu::{Inventory, placement::MOST},
    runtime::{Builder, Runtime},
};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io::{BufRead, BufReader, Write},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Nodes may take so long to end in good order.
const PATIENCE: Duration = Duration::from_secs(3);

/// A head and nodes as processes of their own on this machine, started from the running executable. They end
/// when this is dropped, and also when this process ends in any other way. Signals to this process's group, such as
/// Ctrl-C at a terminal, do not reach them.
///
/// They listen on the loopback interface only, and know each other by a key of their own.
///
/// ```no_run
/// use outray::LocalCluster;
///
/// let cluster = LocalCluster::start(2)?;
/// let rt = cluster.connect()?;
/// assert_eq!(rt.submit(|a: i32, b: i32| a + b, (1, 2)).get()?, 3); // in a worker of one of the nodes
/// # Ok::<(), outray::Error>(())
/// ```
#[derive(Debug)]
pub struct LocalCluster {
    directory: Directory,
    key: Key,
    head: Role,
    nodes: Vec<Role>,
    builder: LocalClusterBuilder,
}

/// Options of a [`LocalCluster`].
#[derive(Clone, Debug)]
#[must_use = "a cluster starts with `.start()`"]
pub struct LocalClusterBuilder {
    nodes: usize,
    cpus: f64,
    gpus: Inventory,
    store: Option<u64>,
    memory: Option<u64>,
    resources: BTreeMap<String, f64>,
    labels: BTreeMap<String, String>,
    environment: Vec<(String, String)>,
    durable: bool,
}

impl LocalClusterBuilder {
    /// How many nodes; 2 by default.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many CPUs each node has for tasks, whatever the machine has; 1 by default.
    pub fn cpus(mut self, cpus: impl Into<f64>) -> Self {
        self.cpus = cpus.into();
        self
    }

    /// How many GPUs each node has that exist only on paper, all alike, at most 1,024; by default none.
    pub fn gpus(self, gpus: u32) -> Self {
        self.gpu_inventory(Inventory::simulated(gpus.min(MOST)))
    }

    /// The GPUs that each node has; they exist only on paper.
    pub fn gpu_inventory(mut self, inventory: Inventory) -> Self {
        self.gpus = inventory;
        self
    }

    /// How many bytes of objects each node keeps in shared memory before it moves some to disk; three tenths of
    /// the machine's memory by default.
    pub fn store(mut self, bytes: u64) -> Self {
        self.store = Some(bytes);
        self
    }

    /// How much memory each node has for admission, in bytes; by default this machine's.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// An amount of a custom resource, on each node.
    pub fn resource(mut self, name: &str, amount: f64) -> Self {
        self.resources.insert(name.into(), amount);
        self
    }

    /// A label of each node.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Whether the head keeps its state in a file, so that it can be killed and started again
    /// ([`LocalCluster::restart_head`]); by default it does not.
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// An environment variable for the cluster's processes, and so for all that runs in its workers. They have this
    /// process's environment otherwise.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the cluster, and returns when all of its processes listen.
    ///
    /// # Errors
    /// [`Error::Unsupported`] says what could not be started.
    pub fn start(self) -> Result<LocalCluster> {
        let failed = |what: &str, error: &dyn std::fmt::Display| Error::Unsupported {
            reason: format!("a local cluster could not be started: {what}: {error}"),
        };
        let directory = Directory::new().map_err(|error| failed("a private directory", &error))?;
        let key = Key::generate().map_err(|error| failed("its key", &error))?;
        let key_file = directory.0.join("key");
        key.save(&key_file).map_err(|error| failed("its key", &error))?;
        let head = Role::start(&head_setup(&directory, "127.0.0.1:0", self.durable), &self.environment)?;
        let mut cluster = LocalCluster { directory, key, head, nodes: Vec::new(), builder: self };
        for _ in 0..cluster.builder.nodes {
            cluster.add_node()?;
        }
        Ok(cluster)
    }
}

impl LocalCluster {
    /// A head and so many nodes of one CPU each.
    ///
    /// # Errors
    /// As [`LocalClusterBuilder::start`].
    pub fn start(nodes: usize) -> Result<LocalCluster> {
        LocalCluster::builder().nodes(nodes).start()
    }

    /// A cluster with options.
    pub fn builder() -> LocalClusterBuilder {
        LocalClusterBuilder {
            nodes: 2,
            cpus: 1.0,
            gpus: Inventory::default(),
            memory: None,
            store: None,
            resources: BTreeMap::new(),
            labels: BTreeMap::new(),
            environment: Vec::new(),
            durable: false,
        }
    }

    /// A runtime on this cluster.
    ///
    /// # Errors
    /// As [`Runtime::connect`].
    pub fn connect(&self) -> Result<Runtime> {
        self.connect_with(Runtime::builder())
    }

    /// A runtime on this cluster, with options.
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub fn connect_with(&self, builder: Builder) -> Result<Runtime> {
        Runtime::on_cluster(self.address(), Some(self.key.clone()), builder)
    }

    /// The head's address, for [`Runtime::connect`] and `OUTRAY_ADDRESS`.
    pub fn address(&self) -> &str {
        &self.head.address
    }

    /// The cluster's key file, for `OUTRAY_KEY_FILE`. It goes when the cluster does.
    pub fn key_file(&self) -> PathBuf {
        self.directory.0.join("key")
    }

    /// The names of the nodes, in the order in which they were started.
    pub fn nodes(&self) -> Vec<&str> {
        self.nodes.iter().map(|node| node.name.as_str()).collect()
    }

    /// Starts one more node like the others, and returns its name.
    ///
    /// # Errors
    /// As [`LocalClusterBuilder::start`].
    pub fn add_node(&mut self) -> Result<&str> {
        self.add_node_with_gpus(self.builder.gpus.clone())
    }

    /// Starts one more node, with these GPUs instead of those that the others have, and returns its name. They exist
    /// only on paper.
    ///
    /// # Errors
    /// As [`LocalClusterBuilder::start`].
    pub fn add_node_with_gpus(&mut self, gpus: Inventory) -> Result<&str> {
        let kind = self.builder.clone().gpu_inventory(gpus);
        self.add_node_of(&kind)
    }

    /// Starts one more node as this builder describes its nodes, and returns its name. How many nodes it says, and
    /// whether they are durable, means nothing here.
    ///
    /// # Errors
    /// As [`LocalClusterBuilder::start`].
    pub fn add_node_of(&mut self, kind: &LocalClusterBuilder) -> Result<&str> {
        let setup = NodeSetup {
            head: self.head.address.clone(),
            bind: None,
            advertise: None,
            directory: Some(self.directory.0.clone()),
            key_file: Some(self.key_file()),
            cache: self.directory.0.join("executables"),
            cpus: Some(kind.cpus),
            gpus: Gpus::Simulated(kind.gpus.clone()),
            memory: kind.memory,
            store: kind.store,
            spill: self.directory.0.join("spilled"),
            resources: kind.resources.clone(),
            labels: kind.labels.clone(),
        };
        let node = Role::start(&RoleSetup::Node(setup), &kind.environment)?;
        self.nodes.push(node);
        Ok(self.nodes.last().map_or("", |node| &node.name))
    }

    /// Kills a node, as a power failure would; its workers end with it.
    ///
    /// # Panics
    /// If there is no node of this number.
    pub fn kill_node(&mut self, number: usize) {
        drop(self.nodes.remove(number));
    }

    /// Kills the head, as a power failure would. Nodes and programs go on for a minute
    /// (`OUTRAY_HEAD_PATIENCE`, in seconds) and wait for it to be started again.
    pub fn kill_head(&mut self) {
        self.head.kill();
    }

    /// Starts the head again after [`kill_head`](LocalCluster::kill_head), at the same address.
    ///
    /// # Errors
    /// As [`LocalClusterBuilder::start`]; and if the cluster is not [`durable`](LocalClusterBuilder::durable).
    pub fn restart_head(&mut self) -> Result<()> {
        if !self.builder.durable {
            let reason = "the head of this local cluster keeps nothing to go on from: build it with `.durable(true)`";
            return Err(Error::Unsupported { reason: reason.into() });
        }
        self.head.kill();
        self.head = Role::start(&head_setup(&self.directory, &self.head.address, true), &self.builder.environment)?;
        Ok(())
    }

    /// The processes of the head and of the nodes.
    pub fn pids(&self) -> Vec<u32> {
        [&self.head].into_iter().chain(&self.nodes).map(|role| role.child.id()).collect()
    }
}

fn head_setup(directory: &Directory, bind: &str, durable: bool) -> RoleSetup {
    RoleSetup::Head(HeadSetup {
        bind: bind.into(),
        key_file: Some(directory.0.join("key")),
        state: durable.then(|| directory.0.join("state")),
        cache: Some(directory.0.join("executables")),
        directory: Some(directory.0.clone()),
    })
}

/// A directory of this process's own, which is gone after it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> std::io::Result<Directory> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(std::io::Error::other)?;
        let path = std::env::temp_dir().join(format!("outray-{:016x}", u64::from_le_bytes(random)));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Directory(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // there is nobody to tell
    }
}

/// A process of the cluster. It is killed when this is dropped.
#[derive(Debug)]
struct Role {
    child: Child,
    name: String,
    address: String,
}

impl Role {
    fn start(setup: &RoleSetup, environment: &[(String, String)]) -> Result<Role> {
        let failed =
            |why: String| Error::Unsupported { reason: format!("a local cluster could not be started: {why}") };
        let program = Path::new("/proc/self/exe");
        let child = Command::new(program)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env(entry::VARIABLE, entry::ROLE)
            // Ctrl-C at the terminal, and `timeout`, end this process only; the others notice that, and tidy up.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        // From here on it is killed if anything fails.
        let mut role = Role { child, name: String::new(), address: String::new() };
        let (Some(input), Some(output)) = (role.child.stdin.as_mut(), role.child.stdout.take()) else {
            unreachable!("both pipes were asked for")
        };
        let setup = wire::encode(setup);
        let sent = input.write_all(&(setup.len() as u32).to_le_bytes()).and_then(|()| input.write_all(&setup));
        sent.map_err(|error| failed(error.to_string()))?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).map_err(|error| failed(error.to_string()))?;
        let words: Vec<_> = line.trim_end().splitn(2, ' ').collect();
        match words[..] {
            ["ok", rest] => {
                let (name, address) = rest.split_once(' ').unwrap_or(("head", rest));
                (role.name, role.address) = (name.into(), address.into());
                Ok(role)
            }
            ["error", why] => Err(failed(why.into())),
            _ => Err(failed("a process ended before it was ready".into())),
        }
    }
}

impl Role {
    fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }

    /// Asks it to end, by the end of its pipe.
    fn ask_to_end(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits until it has ended, but not for ever.
    fn wait(&mut self, until: Instant) {
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        let until = Instant::now() + PATIENCE;
        self.nodes.iter_mut().for_each(Role::ask_to_end);
        self.nodes.iter_mut().for_each(|node| node.wait(until));
        self.nodes.clear();
        store::sweep(); // what nodes have left that were killed
    }
}

impl Runtime {
    pub(crate) fn on_cluster(address: &str, key: Option<Key>, builder: Builder) -> Result<Runtime> {
        driver::connect(address, key, builder.config()).map(Runtime::of)
    }
}
