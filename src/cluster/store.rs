//! The objects of a node: files in shared memory that all of its processes map, and on disk when
//! there are too many.
//!
//! ```text
//! <memory>/outray-store-<user>-<process>-<n>/     0700; /dev/shm, or the temporary directory
//!     lock                                        locked while the node lives
//!     <object>-<n>                                0600 being written, 0400 sealed
//! <spill directory>/outray-store-…/               the same on disk
//! ```
//!
//! An object is written once, to a [`Draft`]: by the node ([`Store::create`]) or by a worker, into a file
//! that the node made for it ([`Store::reserve`], [`Store::adopt`]). Then it is sealed, and read by
//! mapping it ([`map`]); the values inside are read in place (see [`crate::serial::encoded`]).
//!
//! # Why a file for each object
//! The alternative is one arena that all processes map once. Files need no allocator that a crash
//! could break, do not fragment, and give their pages back one by one. The kernel keeps the count of
//! who maps a file, and corrects it when a process dies: a reader holds a lock as long as its mapping
//! (see [`map`](mod@map)). A reader sees the objects that it asked for, read-only, and no others. It costs
//! a few system calls for each object; small objects travel in messages and do not come here.
//!
//! What an arena is good at, pages that are there already, files do too: a file that nobody needs
//! any more is a *spare*, and becomes the next object of about its size. It is given a new name first,
//! so who still has the old path finds nothing.
//!
//! # Budget
//! All files in memory together, drafts and spares too, have no more pages than the budget. When a new one
//! needs room, spares go first, then the objects that were not asked for the longest are copied to disk;
//! those that are in use (an [`Object`] is held, or any process maps it) stay, because to remove them would
//! free nothing. What does not find room is an error; nothing waits.
//! Pages are taken from the file system when a draft is made, so a full one is an error there, and not
//! a signal (SIGBUS) when they are written. (If a container's memory is limited below what its /dev/shm says,
//! the kernel kills instead. Choose a budget below that limit.)
//!
//! Copies on disk stay until the object is removed, so an object is written there once. Their hash is kept,
//! and checked when they come back.
//!
//! # Locks
//! `index` is held for a few system calls at most. `moves` is held by whoever copies to and from disk, or waits
//! for room; who finds room, or finds its object in memory, never waits for it. `moves` is taken first.
//! All calls block, those that go to disk for long, and to free the pages of a large file takes some time too: an event
//! loop makes them on another thread.

mod directory;
mod draft;
mod error;
#[allow(unsafe_code)]
mod map;
mod space;

#[cfg(test)]
mod tests;

pub(crate) use directory::sweep;
pub(crate) use draft::Draft;
pub(crate) use error::StoreError;

use bytes::Bytes;
use directory::Directory;
use map::{Locked, Region};
use space::{Entry, Place, Space};
use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The owner's number and the object's.
pub(crate) type Id = (u64, u64);

#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// How many bytes the store may have in memory.
    pub(crate) budget: u64,
    /// A file system in memory; `None` for /dev/shm, or the temporary directory where there is none.
    pub(crate) memory: Option<PathBuf>,
    /// Where objects go that are too many.
    pub(crate) spill: PathBuf,
}

/// What is in the store, in bytes of pages, and what has been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Sealed, in memory or on disk.
    pub(crate) objects: usize,
    /// All files in memory.
    pub(crate) used: u64,
    /// Of these, files that no object needs any more.
    pub(crate) spare: u64,
    /// Objects that are on disk only.
    pub(crate) on_disk: u64,
    /// How often an object was copied to disk.
    pub(crate) spilled: u64,
    /// How often one came back.
    pub(crate) restored: u64,
    /// How often a spare became a draft.
    pub(crate) reused: u64,
}

/// See the [module](self). Cheap to clone; the last one removes the directories.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Space>);

impl Store {
    /// Makes the directories; what killed nodes have left in theirs is removed.
    pub(crate) fn open(config: &Config) -> Result<Store, StoreError> {
        let memory = match &config.memory {
            Some(path) => Directory::create(path)?,
            None => Directory::create(Path::new("/dev/shm")).or_else(|error| {
                tracing::warn!(%error, "objects will be in the temporary directory, which may be a disk and slow");
                Directory::create(&std::env::temp_dir())
            })?,
        };
        Space::new(memory, Directory::create(&config.spill)?, config.budget).map(|space| Store(Arc::new(space)))
    }

    /// Begins an object of `size` bytes, to be written by this process.
    pub(crate) fn create(&self, id: Id, size: u64) -> Result<Writer, StoreError> {
        let (path, locked, pin) = self.begin(id, size, false)?;
        let begun = Begun { store: self.clone(), id, pin };
        Ok(Writer { draft: Draft::new(locked, path, size)?, begun })
    }

    /// Begins an object of `size` bytes, to be written by another process to the file at this path (see
    /// [`Draft::open`]). It is then to be adopted, or removed.
    pub(crate) fn reserve(&self, id: Id, size: u64) -> Result<PathBuf, StoreError> {
        self.begin(id, size, true).map(|(path, ..)| path)
    }

    /// Seals what was reserved and has been written.
    pub(crate) fn adopt(&self, id: Id) -> Result<Object, StoreError> {
        let (path, size, which, pin) = match self.0.index.lock().entries.peek(&id) {
            Some(Entry { place: Place::Draft(Some(which)), path, size, pin, .. }) => {
                (path.clone(), *size, *which, pin.clone())
            }
            _ => return Err(StoreError::NotReserved { id }),
        };
        let locked = Locked::open(&path, false)?;
        let locked = locked.ok_or_else(|| StoreError::StillWritten { path: path.display().to_string() })?;
        if locked.which() != which {
            return Err(StoreError::foreign(&path, "another file has its name"));
        }
        let found = locked.file().metadata().map_err(|error| StoreError::io("read", &path, &error))?;
        if found.len() != size {
            return Err(StoreError::foreign(&path, format!("it has {} bytes and not {size}", found.len())));
        }
        locked.seal(&path)?;
        self.sealed(id, &pin).ok_or_else(|| StoreError::gone(&path))
    }

    /// The object, if it is here and sealed; it comes back from disk if it has to.
    pub(crate) fn get(&self, id: Id) -> Result<Option<Object>, StoreError> {
        match self.0.index.lock().entries.get(&id) {
            None | Some(Entry { place: Place::Draft(_), .. }) => return Ok(None),
            Some(entry) if entry.place == Place::Memory => return Ok(Some(entry.object())),
            Some(_) => {}
        }
        self.0.restore(id)
    }

    /// Its length in bytes, if it is sealed, wherever it is.
    #[cfg(test)]
    pub(crate) fn size(&self, id: Id) -> Option<u64> {
        let index = self.0.index.lock();
        let entry = index.entries.peek(&id)?;
        (!matches!(entry.place, Place::Draft(_))).then_some(entry.size)
    }

    /// Forgets an object, or a draft. Those who have it mapped keep it, and until they let go of it, its
    /// memory counts. Says whether it was there.
    pub(crate) fn remove(&self, id: Id) -> bool {
        let mut index = self.0.index.lock();
        let removed = index.entries.pop(&id);
        if let Some(entry) = &removed {
            self.0.dropped(&mut index, entry);
        }
        drop(index);
        // With its copy on disk, which may take the file system a while.
        removed.is_some()
    }

    /// Frees all spares that nobody maps.
    pub(crate) fn trim(&self) {
        self.0.free_spares(&mut self.0.index.lock(), u64::MAX);
    }

    pub(crate) fn stats(&self) -> Stats {
        let index = self.0.index.lock();
        let objects = index.entries.iter().filter(|(_, entry)| !matches!(entry.place, Place::Draft(_))).count();
        Stats { objects, spare: index.spare_bytes(), ..index.stats }
    }

    fn begin(&self, id: Id, size: u64, is_reserved: bool) -> Result<(PathBuf, Locked, Arc<()>), StoreError> {
        let pin = Arc::new(());
        {
            let mut index = self.0.index.lock();
            if index.entries.contains(&id) {
                return Err(StoreError::Exists { id });
            }
            let (path, pin) = (PathBuf::new(), pin.clone());
            index.entries.put(id, Entry { size, place: Place::Draft(None), path, copy: None, pin });
        }
        let allocated = self.0.allocate(id, size, None);
        let mut index = self.0.index.lock();
        let entry = index.entries.peek_mut(&id).filter(|entry| Arc::ptr_eq(&entry.pin, &pin));
        match (allocated, entry) {
            (Ok((path, locked)), Some(entry)) => {
                entry.path.clone_from(&path);
                entry.place = Place::Draft(is_reserved.then(|| locked.which()));
                Ok((path, locked, pin))
            }
            // Somebody has removed it meanwhile.
            (Ok((path, locked)), None) => {
                drop(locked);
                self.0.spare(&mut index, path.clone(), size);
                Err(StoreError::gone(&path))
            }
            (Err(error), entry) => {
                if entry.is_some() {
                    index.entries.pop(&id);
                }
                Err(error)
            }
        }
    }

    /// The draft is an object from now on, unless it was removed.
    fn sealed(&self, id: Id, pin: &Arc<()>) -> Option<Object> {
        let mut index = self.0.index.lock();
        let entry = index.entries.get_mut(&id).filter(|entry| Arc::ptr_eq(&entry.pin, pin))?;
        entry.place = Place::Memory;
        Some(entry.object())
    }
}

/// An object that this process writes. If it is dropped before it is sealed, there never was one.
#[derive(Debug)]
pub(crate) struct Writer {
    // Dropped in this order: a draft lets go of its file before the store takes it back.
    draft: Draft,
    begun: Begun,
}

impl Writer {
    /// Makes an object of what was written.
    pub(crate) fn seal(self) -> Result<Object, StoreError> {
        let Writer { draft, begun } = self;
        let (sealed, path) = (draft.seal(), draft.path().to_owned());
        drop(draft);
        sealed?;
        begun.store.sealed(begun.id, &begun.pin).ok_or_else(|| StoreError::gone(&path))
    }
}

impl Deref for Writer {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.draft
    }
}

impl DerefMut for Writer {
    fn deref_mut(&mut self) -> &mut Draft {
        &mut self.draft
    }
}

/// A draft's entry, which is removed unless it has become an object's.
#[derive(Debug)]
struct Begun {
    store: Store,
    id: Id,
    pin: Arc<()>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut index = self.store.0.index.lock();
        let is_draft = |entry: &Entry| Arc::ptr_eq(&entry.pin, &self.pin) && matches!(entry.place, Place::Draft(_));
        if index.entries.peek(&self.id).is_some_and(is_draft)
            && let Some(entry) = index.entries.pop(&self.id)
        {
            self.store.0.dropped(&mut index, &entry);
        }
    }
}

/// A sealed object. While this is held the object stays in memory, where other processes can map it, unless it is
/// removed.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    path: PathBuf,
    size: u64,
    _pin: Arc<()>,
}

impl Object {
    /// What another process needs to [`map`](map()) it. Hold this until it has.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Its bytes, which stay where they are as long as anybody has a part of them.
    pub(crate) fn map(&self) -> Result<Bytes, StoreError> {
        map(&self.path, self.size)
    }
}

/// The bytes of a sealed object, mapped into this process, which need not be its node's.
pub(crate) fn map(path: &Path, size: u64) -> Result<Bytes, StoreError> {
    Region::map(path, size).map(Bytes::from_owner)
}
