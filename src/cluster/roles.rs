//! Heads and nodes as processes: started by the command `outray`, or by [`LocalCluster`](super::LocalCluster)
//! from the running executable.

use super::{
    bulk,
    capacity::Capacity,
    control_store::{ControlStore, InFile, InMemory, Saved},
    driver::{bind_for, new_station, not_listening, own_host},
    head_process::HeadProcess,
    image::Cache,
    node_process::{NodeProcess, PATIENCE, Setup},
    protocol::HEAD,
    secure::Key,
    signals,
    station::Station,
    store,
    wire::{self, Role},
};
use crate::{
    error::{Error, Result},
    gpu::{self, GpuError, Inventory, placement::Devices},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    process::exit,
    sync::Arc,
    time::{Duration, Instant},
};

/// What a process is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RoleSetup {
    Head(HeadSetup),
    Node(NodeSetup),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HeadSetup {
    pub(crate) bind: String,
    pub(crate) key_file: Option<PathBuf>,
    /// Where it keeps what it needs to go on when it is started again; nowhere if this is not given.
    pub(crate) state: Option<PathBuf>,
    /// Where it keeps the executables of detached actors.
    pub(crate) cache: Option<PathBuf>,
    /// Removed when the pipe ends: whoever made it may have ended without.
    pub(crate) directory: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeSetup {
    pub(crate) head: String,
    /// By default the address from which the head is reached.
    pub(crate) bind: Option<String>,
    /// The host that others are told. By default the one of `bind`, or one of this machine if that is all of them.
    pub(crate) advertise: Option<String>,
    /// As that of the head.
    pub(crate) directory: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
    /// Where executables are kept.
    pub(crate) cache: PathBuf,
    pub(crate) cpus: Option<f64>,
    pub(crate) gpus: Gpus,
    pub(crate) memory: Option<u64>,
    /// Bytes of objects in shared memory; three tenths of the memory by default.
    pub(crate) store: Option<u64>,
    /// Where objects go that are too many.
    pub(crate) spill: PathBuf,
    pub(crate) resources: BTreeMap<String, f64>,
    pub(crate) labels: BTreeMap<String, String>,
}

/// The GPUs of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Gpus {
    /// Those of the machine.
    Machine,
    /// These, on paper.
    Simulated(Inventory),
}

impl Gpus {
    /// None if there is nothing to look for them with.
    fn devices(self) -> Devices {
        let found = match self {
            Gpus::Simulated(inventory) => return Devices::new(inventory),
            Gpus::Machine => gpu::detect().and_then(|source| source.inventory()),
        };
        match found {
            Ok(inventory) => Devices::new(inventory),
            Err(error) => {
                if !matches!(error, GpuError::NotBuilt | GpuError::NoDriver { .. } | GpuError::NoDevice) {
                    tracing::warn!(%error, "this node has no GPUs");
                }
                Devices::default()
            }
        }
    }
}

fn key(file: Option<&PathBuf>) -> Result<Option<Key>> {
    let load = |path: &PathBuf| Key::load(path).map_err(|error| Error::Unsupported { reason: error.to_string() });
    match file {
        Some(path) => load(path).map(Some),
        None => super::driver::key(),
    }
}

fn thousandths(amount: f64) -> u64 {
    (amount * 1e3).round() as u64
}

/// Runs a head until it is told to end; `ready` is told its address.
pub(crate) fn head(setup: &HeadSetup, ready: impl FnOnce(&str)) -> Result<()> {
    let failed = |error: super::endpoint::StartError| Error::Unsupported { reason: error.to_string() };
    let unusable = |error: super::control_store::StoreError| Error::Unsupported { reason: error.to_string() };
    let store: Box<dyn ControlStore> = match &setup.state {
        Some(directory) => Box::new(InFile::open(directory).map_err(unusable)?),
        None => Box::new(InMemory::default()),
    };
    let saved = Saved::load(store, new_station()?.0).map_err(unusable)?;
    let cache = setup.cache.clone().map(Cache::open).transpose()?;
    let role = Role::Head { cluster: saved.cluster };
    let (station, post) = Station::start(HEAD, role, &setup.bind, key(setup.key_file.as_ref())?).map_err(failed)?;
    ready(&station.address);
    HeadProcess::new(station, saved, cache).run(post);
    Ok(())
}

/// Why nobody answers at the head's address, as far as that can be found out.
pub(crate) fn silence(address: &str, has_key: bool, patience: Duration) -> String {
    let reached = address.to_socket_addrs().and_then(|mut all| {
        let first = all.next().ok_or_else(|| io::Error::other("it has no IP address"))?;
        TcpStream::connect_timeout(&first, Duration::from_secs(2))
    });
    match reached {
        Err(error) => format!("nothing listens at {address}: {error}; is `outray head` running there?"),
        Ok(_) => format!(
            "something listens at {address}, but it did not answer as a head does within {patience:?}; {}",
            match has_key {
                true => "has the head the same key as this process?",
                false =>
                    "this process has no key: if the head has one, name its file in OUTRAY_KEY_FILE, or put it at ~/.outray/key",
            }
        ),
    }
}

/// What a process that listens at `bound` tells others, who reach it through `host` if that is given.
pub(crate) fn advertised(bound: &str, host: Option<&str>, head: &str) -> String {
    let (is_wide, port) = match bound.parse::<SocketAddr>() {
        Ok(address) => (address.ip().is_unspecified(), address.port()),
        Err(_) => return bound.into(),
    };
    let host = host.map(str::to_owned).or_else(|| if is_wide { own_host(head) } else { None });
    host.map_or_else(|| bound.into(), |host| format!("{host}:{port}"))
}

/// Runs a node until its cluster ends; `made` gets it before anything can end it, and `ready` is told its name and
/// address when the head has answered.
pub(crate) fn node(
    setup: NodeSetup,
    made: impl FnOnce(&Arc<NodeProcess>),
    ready: impl FnOnce(&str, &str),
) -> Result<()> {
    let available = || std::thread::available_parallelism().map_or(1.0, |cpus| cpus.get() as f64);
    let capacity = Capacity {
        cpu: thousandths(setup.cpus.unwrap_or_else(available)) as u32,
        gpus: setup.gpus.devices(),
        memory: setup.memory.unwrap_or_else(crate::runtime::machine_memory),
        custom: setup.resources.iter().map(|(name, amount)| (name.as_str().into(), thousandths(*amount))).collect(),
    };
    let labels = setup.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
    let store = store::Config {
        budget: setup.store.unwrap_or_else(|| capacity.memory / 10 * 3),
        memory: None,
        spill: setup.spill,
    };
    let me = new_station()?;
    let bind = match &setup.bind {
        Some(bind) => bind.clone(),
        None => bind_for(&setup.head)?,
    };
    let key = key(setup.key_file.as_ref())?;
    let has_key = key.is_some();
    let at = |bound: &str| advertised(bound, setup.advertise.as_deref(), &setup.head);
    let (station, post) =
        Station::start_as(me, Role::Node, &bind, key.clone(), at).map_err(|error| match setup.bind {
            Some(_) => Error::Unsupported { reason: error.to_string() },
            None => not_listening(&error, &setup.head),
        })?;
    // On the same interface, at another port.
    let host_of = |address: &str| address.rsplit_once(':').map(|(host, _)| host.to_owned());
    let bind = format!("{}:0", host_of(&bind).unwrap_or_else(|| "127.0.0.1".into()));
    let bulk = bulk::Config { bind, host: host_of(&station.address), key, ..bulk::Config::default() };
    station.dial(&setup.head);
    signals::outlive_limits_of_files().map_err(|error| Error::Unsupported { reason: error.to_string() })?;
    let process = NodeProcess::new(station.clone(), Setup { capacity, labels, cache: setup.cache, store, bulk })?;
    made(&process);
    let joined = || ready(&me.to_string(), &station.address);
    process
        .clone()
        .run(post, joined)
        .map_err(|why| Error::Unsupported { reason: why.unwrap_or_else(|| silence(&setup.head, has_key, PATIENCE)) })
}

/// Removes a directory in which others may still write, who end now, too, and do the same.
fn remove(directory: &Path) {
    let until = Instant::now() + PATIENCE;
    while let Err(error) = std::fs::remove_dir_all(directory)
        && directory.exists()
        && Instant::now() < until
    {
        tracing::debug!(%error, "{} cannot be removed yet", directory.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads from a pipe what this process is to be, and is that until the pipe ends.
pub(crate) fn serve(mut input: File, mut output: File) -> io::Result<()> {
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let mut setup = vec![0; u32::from_le_bytes(length) as usize];
    input.read_exact(&mut setup)?;
    let setup: RoleSetup = wire::decode(&setup).ok_or_else(|| io::Error::other("a setup that cannot be read"))?;
    // Whoever started this process ends it by ending the pipe, or by its own end.
    let end_with_pipe = move |directory: Option<PathBuf>, end: Box<dyn FnOnce() + Send>| {
        std::thread::spawn(move || {
            let _ = io::copy(&mut input, &mut io::sink()); // however it ends
            end();
            directory.iter().for_each(|directory| remove(directory));
            exit(0);
        });
    };
    let mut told = |line: &str| {
        let _ = writeln!(output, "{line}"); // the other end is watched
    };
    let result = match setup {
        RoleSetup::Head(setup) => {
            end_with_pipe(setup.directory.clone(), Box::new(|| ()));
            head(&setup, |address| told(&format!("ok {address}")))
        }
        RoleSetup::Node(setup) => {
            let directory = setup.directory.clone();
            let made = |process: &Arc<NodeProcess>| {
                let process = process.clone();
                end_with_pipe(directory, Box::new(move || process.end()));
            };
            node(setup, made, |name, address| told(&format!("ok {name} {address}")))
        }
    };
    if let Err(error) = result {
        told(&format!("error {error}"));
    }
    Ok(())
}
