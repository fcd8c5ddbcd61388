//! The control store: what a head keeps outside itself, so that it can be started again.
//!
//! Keys and values are bytes, a few hundred for each process of the cluster, each program and each name. They change
//! when somebody joins, dies, or gives a name, and never for a task. A store that is replicated can take the place of
//! the file: it has to write a set of changes as one, and to have them when it says so.

use crate::cluster::{
    capacity::Demand,
    head::Memory,
    owner::{Work, WorkArg, WorkBody},
    protocol::{Member, Note, ObjectId, ProcessId, Strategy},
    wire::{self, Blob, Job, Role},
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    fs::{DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Of a death that is longer ago everybody has heard, or has been declared dead.
const LATELY: Duration = Duration::from_secs(600);
/// Nobody who was declared dead so long ago comes back.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Entries are written as this version's types are.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why a store cannot be used.
#[derive(Debug)]
pub(crate) struct StoreError(String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// A key, and its new value if it has one still.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Where a head keeps what it must not forget.
pub(crate) trait ControlStore: Send {
    /// All that there is.
    fn load(&self) -> Result<Vec<Entry>, StoreError>;

    /// Makes all of these changes, or none. When it returns they outlive this process and the machine.
    fn write(&mut self, changes: Vec<Change>) -> Result<(), StoreError>;
}

/// Keeps it as long as the process lives.
#[derive(Default)]
pub(crate) struct InMemory(BTreeMap<Vec<u8>, Vec<u8>>);

impl ControlStore for InMemory {
    fn load(&self) -> Result<Vec<Entry>, StoreError> {
        Ok(self.0.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn write(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        for (key, value) in changes {
            match value {
                Some(value) => drop(self.0.insert(key, value)),
                None => drop(self.0.remove(&key)),
            }
        }
        Ok(())
    }
}

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("control");

/// A file of redb's.
pub(crate) struct InFile {
    database: Database,
    name: String,
}

impl InFile {
    /// Opens the store in a directory, or makes one. Only one process can have it open.
    pub(crate) fn open(directory: &Path) -> Result<InFile, StoreError> {
        let path = directory.join("control.redb");
        let name = path.display().to_string();
        let failed = |error: &dyn fmt::Display| StoreError(format!("the head's store {name} cannot be used: {error}"));
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| failed(&error))?;
        // For nobody else, whoever made the directory: arguments of actors are in it.
        let private = || -> io::Result<File> {
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            Ok(file)
        };
        let file = private().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failed(&"the directory is gone"),
            _ => failed(&error),
        })?;
        let database = FileBackend::new(file).and_then(|file| Database::builder().create_with_backend(file));
        let database = database.map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => {
                failed(&"another head uses it; --state DIR takes another place")
            }
            error => failed(&error),
        })?;
        Ok(InFile { database, name })
    }

    fn failed(&self, error: impl fmt::Display) -> StoreError {
        StoreError(format!("the head's store {}: {error}", self.name))
    }
}

impl ControlStore for InFile {
    fn load(&self) -> Result<Vec<Entry>, StoreError> {
        let load = || -> Result<_, redb::Error> {
            let reading = self.database.begin_read()?;
            let table = match reading.open_table(TABLE) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let mut all = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                all.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(all)
        };
        load().map_err(|error| self.failed(error))
    }

    fn write(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let writing = self.database.begin_write()?;
            {
                let mut table = writing.open_table(TABLE)?;
                for (key, value) in &changes {
                    match value {
                        Some(value) => drop(table.insert(key.as_slice(), value.as_slice())?),
                        None => drop(table.remove(key.as_slice())?),
                    }
                }
            }
            Ok(writing.commit()?)
        };
        write().map_err(|error| self.failed(error))
    }
}

/// The actor that has a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Named {
    pub(crate) actor: ObjectId,
    /// As people see it.
    pub(crate) number: u64,
    pub(crate) type_name: String,
    pub(crate) detached: bool,
}

/// A process that listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) address: String,
    pub(crate) role: Role,
}

/// An actor that the head owns: see [`wire::Detach`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Detached {
    pub(crate) ticket: (ProcessId, u64),
    /// In whose workers it runs.
    pub(crate) job: ProcessId,
    pub(crate) name: String,
    pub(crate) demand: Demand,
    pub(crate) strategy: Strategy,
    pub(crate) args: Vec<ObjectId>,
    pub(crate) attempts: u32,
    pub(crate) body: Blob,
    pub(crate) attempt: u32,
    pub(crate) uncounted: u32,
    /// The node that it is on, and the value of its handle.
    pub(crate) there: Option<(ProcessId, Blob)>,
}

impl Detached {
    pub(crate) fn work(&self) -> Work {
        Work {
            demand: Arc::new(self.demand.clone()),
            strategy: self.strategy.clone(),
            args: self.args.iter().map(|arg| WorkArg::Foreign(*arg)).collect(),
            body: WorkBody::Alone(self.body.clone()),
            attempts: self.attempts,
            stays: true,
        }
    }
}

/// What something is kept under.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Key {
    Cluster,
    Member(ProcessId),
    Dead(ProcessId),
    Station(ProcessId),
    Job(ProcessId),
    Name(String),
    Detached(u64),
}

/// A process that is dead: since when, in seconds since 1970, and what it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Dead {
    since: u64,
    member: Option<Member>,
}

/// What the head has in its store, at hand. What it is told is written before anybody hears of it ([`Saved::flush`]).
pub(crate) struct Saved {
    store: Box<dyn ControlStore>,
    /// Tells this cluster from others.
    pub(crate) cluster: u64,
    members: BTreeMap<ProcessId, Member>,
    dead: BTreeMap<ProcessId, Dead>,
    pub(crate) stations: BTreeMap<ProcessId, Known>,
    pub(crate) jobs: BTreeMap<ProcessId, Job>,
    pub(crate) names: BTreeMap<String, Named>,
    /// Actors that outlive their programs, by their numbers.
    pub(crate) detached: BTreeMap<u64, Detached>,
    changes: Vec<Change>,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Saved {
    /// What there is; a cluster of this number if there is nothing.
    pub(crate) fn load(store: Box<dyn ControlStore>, new_cluster: u64) -> Result<Saved, StoreError> {
        let all = store.load()?;
        let mut saved = Saved {
            store,
            cluster: 0,
            members: BTreeMap::new(),
            dead: BTreeMap::new(),
            stations: BTreeMap::new(),
            jobs: BTreeMap::new(),
            names: BTreeMap::new(),
            detached: BTreeMap::new(),
            changes: Vec::new(),
        };
        for (key, value) in all {
            let key = wire::decode::<Key>(&key);
            if key.and_then(|key| saved.enter(key, &value)).is_none() {
                let why = "another version of outray wrote it; start with an empty one: --state DIR";
                return Err(StoreError(format!("the head's store cannot be used: {why}")));
            }
        }
        let (now, dead) = (now(), &saved.dead);
        let old = dead.iter().filter(|(_, dead)| dead.since + FORGOTTEN.as_secs() < now).map(|(id, _)| *id);
        for process in old.collect::<Vec<_>>() {
            saved.dead.remove(&process);
            saved.remove(&Key::Dead(process));
        }
        if saved.cluster == 0 {
            saved.cluster = new_cluster;
            saved.put(&Key::Cluster, &(new_cluster, VERSION));
        }
        saved.flush();
        Ok(saved)
    }

    fn enter(&mut self, key: Key, value: &[u8]) -> Option<()> {
        match key {
            Key::Cluster => {
                let (cluster, version) = wire::decode::<(u64, String)>(value)?;
                self.cluster = cluster;
                return (version == VERSION).then_some(());
            }
            Key::Member(process) => drop(self.members.insert(process, wire::decode(value)?)),
            Key::Dead(process) => drop(self.dead.insert(process, wire::decode(value)?)),
            Key::Station(process) => drop(self.stations.insert(process, wire::decode(value)?)),
            Key::Job(process) => drop(self.jobs.insert(process, wire::decode(value)?)),
            Key::Name(name) => drop(self.names.insert(name, wire::decode(value)?)),
            Key::Detached(number) => drop(self.detached.insert(number, wire::decode(value)?)),
        }
        Some(())
    }

    fn put(&mut self, key: &Key, value: &impl Serialize) {
        self.changes.push((wire::encode(key), Some(wire::encode(value))));
    }

    fn remove(&mut self, key: &Key) {
        self.changes.push((wire::encode(key), None));
    }

    /// What is known of the cluster's last life.
    pub(crate) fn memory(&self) -> Memory {
        let now = now();
        let late = |dead: &Dead| dead.since + LATELY.as_secs() >= now;
        let dead = self.dead.iter().map(|(id, dead)| (*id, (dead.member.clone(), late(dead)))).collect();
        Memory { members: self.members.clone(), dead }
    }

    /// The owners that take part.
    pub(crate) fn owners(&self) -> impl Iterator<Item = ProcessId> + '_ {
        let owners = self.members.iter().filter(|(_, member)| matches!(member, Member::Owner { .. }));
        owners.map(|(id, _)| *id)
    }

    pub(crate) fn note(&mut self, note: &Note) {
        match note {
            Note::Joined(process, member) => {
                self.put(&Key::Member(*process), member);
                self.members.insert(*process, member.clone());
            }
            Note::Died(process) => {
                let dead = Dead { since: now(), member: self.members.remove(process) };
                self.remove(&Key::Member(*process));
                self.put(&Key::Dead(*process), &dead);
                self.dead.insert(*process, dead);
                if self.stations.remove(process).is_some() {
                    self.remove(&Key::Station(*process));
                }
                if self.jobs.remove(process).is_some() {
                    self.remove(&Key::Job(*process));
                }
                let theirs = self.names.iter().filter(|(_, named)| named.actor.owner == *process);
                for name in theirs.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
                    self.unname(&name);
                }
            }
        }
    }

    pub(crate) fn station(&mut self, process: ProcessId, known: Known) {
        self.put(&Key::Station(process), &known);
        self.stations.insert(process, known);
    }

    pub(crate) fn job(&mut self, job: Job) {
        self.put(&Key::Job(job.driver), &job);
        self.jobs.insert(job.driver, job);
    }

    pub(crate) fn name(&mut self, name: &str, named: Named) {
        self.put(&Key::Name(name.into()), &named);
        self.names.insert(name.into(), named);
    }

    pub(crate) fn unname(&mut self, name: &str) {
        if self.names.remove(name).is_some() {
            self.remove(&Key::Name(name.into()));
        }
    }

    pub(crate) fn detach(&mut self, number: u64, detached: Detached) {
        self.put(&Key::Detached(number), &detached);
        self.detached.insert(number, detached);
    }

    /// News of a detached actor.
    pub(crate) fn detached_is(&mut self, number: u64, attempt: u32, uncounted: u32, there: Option<(ProcessId, Blob)>) {
        let Some(detached) = self.detached.get_mut(&number) else { return };
        let now = (attempt, uncounted, there);
        if (detached.attempt, detached.uncounted, &detached.there) == (now.0, now.1, &now.2) {
            return;
        }
        (detached.attempt, detached.uncounted, detached.there) = now;
        let detached = detached.clone();
        self.put(&Key::Detached(number), &detached);
    }

    /// A detached actor is dead.
    pub(crate) fn is_no_more(&mut self, actor: ObjectId) {
        if self.detached.remove(&actor.number).is_some() {
            self.remove(&Key::Detached(actor.number));
        }
        let its = self.names.iter().filter(|(_, named)| named.actor == actor).map(|(name, _)| name.clone());
        for name in its.collect::<Vec<_>>() {
            self.unname(&name);
        }
    }

    /// Writes what has changed.
    pub(crate) fn flush(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        // Without it the cluster goes on; it ends with this head.
        if let Err(error) = self.store.write(std::mem::take(&mut self.changes)) {
            tracing::error!("what the head has to remember is not kept: {error}");
        }
    }

    /// The cluster ends: the next one begins with nothing.
    pub(crate) fn clear(&mut self) {
        self.changes.clear();
        let keys = self.store.load().unwrap_or_default().into_iter().map(|(key, _)| (key, None)).collect();
        self.changes = keys;
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::capacity::Capacity;

    struct Folder(std::path::PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    impl Folder {
        fn new() -> Folder {
            let mut random = [0; 8];
            getrandom::fill(&mut random).expect("randomness");
            let name = format!("outray-control-{:016x}", u64::from_le_bytes(random));
            Folder(std::env::temp_dir().join(name))
        }
    }

    /// Whoever made the directory, or an earlier file.
    #[test]
    fn the_file_is_for_nobody_else() {
        let folder = Folder::new();
        std::fs::create_dir(&folder.0).expect("a directory");
        let file = folder.0.join("control.redb");
        for _ in 0..2 {
            drop(InFile::open(&folder.0).expect("a store"));
            let mode = file.metadata().expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{mode:o}");
            std::fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("it is ours");
        }
    }

    #[test]
    fn what_is_written_is_there_when_the_file_is_opened_again() {
        let folder = Folder::new();
        let open = || Saved::load(Box::new(InFile::open(&folder.0).expect("a store")), 7).expect("a store");
        let (node, driver, dead) = (ProcessId(1 << 16), ProcessId(2 << 16), ProcessId(3 << 16));
        let member = Member::Node { capacity: Capacity::default(), labels: vec![("zone".into(), "a".into())] };
        let named = |owner| Named {
            actor: ObjectId { owner, number: 1 },
            number: 5,
            type_name: "Counter".into(),
            detached: false,
        };
        {
            let mut saved = open();
            saved.note(&Note::Joined(node, member.clone()));
            saved.note(&Note::Joined(driver, Member::Owner { on: None }));
            saved.station(node, Known { address: "127.0.0.1:1".into(), role: Role::Node });
            saved.name("kept", named(driver));
            saved.name("gone", named(dead));
            saved.note(&Note::Joined(dead, Member::Owner { on: Some(node) }));
            saved.flush();
            saved.note(&Note::Died(dead));
            saved.flush();
            assert!(InFile::open(&folder.0).err().expect("it is in use").to_string().contains("another head"));
        }
        let mut saved = open();
        assert_eq!((saved.cluster, saved.names.len(), &saved.names["kept"]), (7, 1, &named(driver)));
        assert_eq!(saved.stations[&node].address, "127.0.0.1:1");
        let memory = saved.memory();
        assert_eq!(memory.members.len(), 2);
        assert_eq!(memory.members[&node], member);
        assert_eq!(memory.dead[&dead], (Some(Member::Owner { on: Some(node) }), true));
        saved.clear();
        drop(saved);
        assert!(open().memory().members.is_empty());
    }
}
