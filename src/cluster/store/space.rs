//! What is where: the index, the budget, and the ways between memory and disk.

use super::{
    Id, Object, Stats,
    directory::Directory,
    draft,
    error::StoreError,
    map::{self, Locked, Region, Which},
};
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::{Errno, retry_on_intr},
};
use std::{
    cmp::Reverse,
    collections::HashSet,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Files are multiples of this in memory.
const PAGE: u64 = 4096;
/// Smaller files are not kept as spares: new pages cost less than to look for one.
const SPARE_FROM: u64 = 1 << 20;
/// To disk and back in pieces that are still in the CPU's cache when they are hashed.
const PIECE: usize = 256 << 10;

pub(super) fn pages(size: u64) -> u64 {
    size.next_multiple_of(PAGE)
}

#[derive(Debug)]
pub(super) struct Space {
    pub(super) index: Mutex<Index>,
    moves: Mutex<()>,
    memory: Directory,
    disk: Directory,
    budget: u64,
    /// Whether locks tell if a file is mapped.
    pub(super) reuses: bool,
    /// How many files there have been; no two have the same name.
    files: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Index {
    /// The least recently used is last.
    pub(super) entries: LruCache<Id, Entry>,
    /// Files that no object needs any more, the latest last. Some may still be mapped somewhere.
    spares: Vec<Spare>,
    pub(super) stats: Stats,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) size: u64,
    pub(super) place: Place,
    /// The file in memory, once there is one.
    pub(super) path: PathBuf,
    /// The copy on disk, if there is one.
    pub(super) copy: Option<Arc<Copy>>,
    /// Shared with those who hold the object, and with those who look after it for a moment. It also tells
    /// an object from a later one with the same number.
    pub(super) pin: Arc<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nobody sees it. One that another process writes is to be this file.
    Draft(Option<Which>),
    Memory,
    Disk,
}

#[derive(Debug)]
pub(super) struct Copy {
    path: PathBuf,
    hash: blake3::Hash,
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[derive(Debug)]
struct Spare {
    path: PathBuf,
    size: u64,
}

impl Entry {
    pub(super) fn object(&self) -> Object {
        Object { path: self.path.clone(), size: self.size, _pin: self.pin.clone() }
    }
}

impl Index {
    pub(super) fn spare_bytes(&self) -> u64 {
        self.spares.iter().map(|spare| pages(spare.size)).sum()
    }

    /// The latest spare of about this size that nobody has mapped, if the budget has room for the difference.
    fn take_spare(&mut self, size: u64, budget: u64) -> Option<(Spare, Locked)> {
        let fits = |spare: &Spare| {
            let rest = self.stats.used - pages(spare.size);
            spare.size / 2 <= size && size <= spare.size * 2 && rest + pages(size) <= budget
        };
        let mut candidates: Vec<usize> = (0..self.spares.len()).filter(|&index| fits(&self.spares[index])).collect();
        candidates.sort_by_key(|&index| (self.spares[index].size.abs_diff(size), Reverse(index)));
        candidates.into_iter().find_map(|index| {
            let locked = Locked::open(&self.spares[index].path, true).ok()??;
            Some((self.spares.remove(index), locked))
        })
    }
}

impl Space {
    pub(super) fn new(memory: Directory, disk: Directory, budget: u64) -> Result<Space, StoreError> {
        let reuses = map::lock_lasts_as_long_as_mapping(&memory.path().join("probe"))?;
        let index = Index { entries: LruCache::unbounded(), spares: Vec::new(), stats: Stats::default() };
        let (index, moves) = (Mutex::new(index), Mutex::new(()));
        Ok(Space { index, moves, memory, disk, budget, reuses, files: AtomicU64::new(0) })
    }

    /// A file in memory for `size` bytes, with pages for all of them.
    pub(super) fn allocate(
        &self,
        id: Id,
        size: u64,
        moves: Option<&MutexGuard<'_, ()>>,
    ) -> Result<(PathBuf, Locked), StoreError> {
        if size > self.budget {
            return Err(StoreError::TooLarge { needed: size, budget: self.budget });
        }
        let path = self.memory.path().join(self.name(id));
        let mut found = self.try_allocate(&path, size);
        let mut waited = None;
        let mut in_use = HashSet::new();
        while let Err(StoreError::Full { .. } | StoreError::NoSpace { .. }) = found {
            if moves.is_none() && waited.is_none() {
                waited = Some(self.moves.lock());
            } else if !self.evict(&mut in_use)? {
                break;
            }
            found = self.try_allocate(&path, size);
        }
        found.map(|locked| (path, locked))
    }

    fn name(&self, id: Id) -> String {
        format!("{:016x}-{:016x}-{}", id.0, id.1, self.files.fetch_add(1, Ordering::Relaxed))
    }

    fn try_allocate(&self, path: &Path, size: u64) -> Result<Locked, StoreError> {
        let mut index = self.index.lock();
        if size >= SPARE_FROM
            && let Some((spare, locked)) = index.take_spare(size, self.budget)
        {
            index.stats.used = index.stats.used - pages(spare.size) + pages(size);
            index.stats.reused += 1;
            drop(index);
            let renamed = fs::rename(&spare.path, path).map_err(|error| StoreError::io("rename", &spare.path, &error));
            return match renamed.and_then(|()| resize(&locked, path, spare.size, size)) {
                Ok(()) => Ok(locked),
                Err(error) => {
                    let _ = locked.file().set_len(0).and_then(|()| fs::remove_file(&spare.path));
                    self.give_back(path, size);
                    Err(error)
                }
            };
        }
        let used = index.stats.used;
        self.free_spares(&mut index, (used + pages(size)).saturating_sub(self.budget));
        let used = index.stats.used;
        if used + pages(size) > self.budget {
            return Err(StoreError::Full { needed: size, budget: self.budget, in_use: used });
        }
        index.stats.used += pages(size);
        drop(index);

        let resized = |locked: Locked| resize(&locked, path, 0, size).map(|()| locked);
        let mut allocated = Locked::create(path).and_then(resized);
        if matches!(allocated, Err(StoreError::NoSpace { .. })) {
            let _ = fs::remove_file(path);
            // The file system is fuller than the budget says.
            self.free_spares(&mut self.index.lock(), pages(size));
            allocated = Locked::create(path).and_then(resized);
        }
        allocated.inspect_err(|_| self.give_back(path, size))
    }

    fn give_back(&self, path: &Path, size: u64) {
        let _ = fs::remove_file(path);
        self.index.lock().stats.used -= pages(size);
    }

    /// Moves the object to disk that was not used for the longest, of those that are not in use. The file
    /// is a spare then. Whether there was one. Only who has `moves` calls this.
    fn evict(&self, in_use: &mut HashSet<Id>) -> Result<bool, StoreError> {
        let mut index = self.index.lock();
        let mut chosen = None;
        for (id, entry) in index.entries.iter().rev() {
            if entry.place != Place::Memory || Arc::strong_count(&entry.pin) > 1 || in_use.contains(id) {
                continue;
            }
            if !self.is_in_use(&entry.path) {
                chosen = Some((*id, entry.path.clone(), entry.size, entry.copy.clone(), entry.pin.clone()));
                break;
            }
            in_use.insert(*id);
        }
        let Some((id, path, size, copy, pin)) = chosen else { return Ok(false) };
        let copy = match copy {
            Some(copy) => copy,
            None => {
                drop(index);
                let spilled = self.spill(id, &path, size);
                index = self.index.lock();
                match spilled {
                    Ok(copy) => Arc::new(copy),
                    Err(StoreError::Gone { .. }) => return Ok(true), // it was removed
                    Err(error) => return Err(error),
                }
            }
        };
        let Index { entries, stats, .. } = &mut *index;
        let Some(entry) = entries.peek_mut(&id).filter(|entry| Arc::ptr_eq(&entry.pin, &pin)) else {
            return Ok(true);
        };
        if entry.copy.is_none() {
            stats.spilled += 1;
            entry.copy = Some(copy);
        }
        // Somebody may have asked for it meanwhile; two are the entry's and ours.
        if Arc::strong_count(&pin) > 2 || self.is_in_use(&path) {
            in_use.insert(id);
            return Ok(true);
        }
        entry.place = Place::Disk;
        stats.on_disk += pages(size);
        self.spare(&mut index, path, size);
        Ok(true)
    }

    fn is_in_use(&self, path: &Path) -> bool {
        // What cannot be opened is better left alone.
        self.reuses && map::is_in_use(path).unwrap_or(true)
    }

    fn spill(&self, id: Id, path: &Path, size: u64) -> Result<Copy, StoreError> {
        let region = Region::map(path, size)?;
        let mut hasher = blake3::Hasher::new();
        let mut copy = Copy { path: self.disk.path().join(self.name(id)), hash: blake3::Hash::from([0; 32]) };
        let mut write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&copy.path)?;
            for piece in region.as_ref().chunks(PIECE) {
                hasher.update(piece);
                file.write_all(piece)?;
            }
            Ok(())
        };
        write().map_err(|error| StoreError::write(&copy.path, size, &error))?;
        copy.hash = hasher.finalize();
        Ok(copy)
    }

    /// Brings an object back that is on disk.
    pub(super) fn restore(&self, id: Id) -> Result<Option<Object>, StoreError> {
        let moves = self.moves.lock();
        let (size, copy, pin) = match self.index.lock().entries.get(&id) {
            Some(entry) if entry.place == Place::Memory => return Ok(Some(entry.object())),
            Some(Entry { place: Place::Disk, size, copy: Some(copy), pin, .. }) => (*size, copy.clone(), pin.clone()),
            _ => return Ok(None),
        };
        let (path, locked) = self.allocate(id, size, Some(&moves))?;
        let restored = read_back(&copy, &locked, &path, size).and_then(|()| locked.seal(&path));
        drop(locked);

        let mut index = self.index.lock();
        let Index { entries, stats, .. } = &mut *index;
        let entry = entries.peek_mut(&id).filter(|entry| Arc::ptr_eq(&entry.pin, &pin));
        match (restored, entry) {
            (Ok(()), Some(entry)) => {
                (entry.path, entry.place) = (path, Place::Memory);
                stats.on_disk -= pages(size);
                stats.restored += 1;
                Ok(Some(entry.object()))
            }
            (restored, _) => {
                self.spare(&mut index, path, size);
                restored.map(|()| None)
            }
        }
    }

    /// An entry is not in the index any more.
    pub(super) fn dropped(&self, index: &mut Index, entry: &Entry) {
        match entry.place {
            Place::Disk => index.stats.on_disk -= pages(entry.size),
            // One whose file is still to be made is its maker's.
            _ if entry.path.as_os_str().is_empty() => {}
            Place::Draft(_) | Place::Memory => self.spare(index, entry.path.clone(), entry.size),
        }
    }

    /// Takes a file back that no object needs any more. What is worth it, or mapped, is kept.
    pub(super) fn spare(&self, index: &mut Index, path: PathBuf, size: u64) {
        let spare = Spare { path, size };
        if (size < SPARE_FROM || !self.reuses) && self.free(&spare) {
            index.stats.used -= pages(size);
            return;
        }
        index.spares.push(spare);
        let excess = index.spare_bytes().saturating_sub(self.budget / 4);
        self.free_spares(index, excess);
    }

    /// Frees at least so many bytes of spares, the oldest first, or as many as nobody has mapped.
    pub(super) fn free_spares(&self, index: &mut Index, wanted: u64) {
        let mut freed = 0;
        index.spares.retain(|spare| {
            if freed >= wanted || !self.free(spare) {
                return true;
            }
            freed += pages(spare.size);
            false
        });
        index.stats.used -= freed;
    }

    /// Whether it is gone, and its pages with it.
    fn free(&self, spare: &Spare) -> bool {
        // Without locks that tell, the pages are those of whoever maps the file, and nobody can know.
        if self.reuses {
            match Locked::open(&spare.path, true) {
                // A mapping that a writer has kept would keep the pages.
                Ok(Some(locked)) => drop(locked.file().set_len(0)),
                Ok(None) => return false,
                Err(error) => tracing::warn!(%error, "a file of an object that was removed"),
            }
        }
        let _ = fs::remove_file(&spare.path);
        true
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        draft::forget_mappings(self.memory.path());
    }
}

/// Gives a file of `from` bytes pages for `size`.
fn resize(locked: &Locked, path: &Path, from: u64, size: u64) -> Result<(), StoreError> {
    let failed = |error: io::Error| StoreError::write(path, size, &error);
    let file = locked.file();
    if size <= from {
        return file.set_len(size).map_err(failed);
    }
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), from, size - from)) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP) => (from..size).step_by(PIECE).try_for_each(|at| {
            let length = PIECE.min((size - at) as usize);
            file.write_all_at(&[0; PIECE][..length], at).map_err(failed)
        }),
        Err(error) => Err(failed(error.into())),
    }
}

fn read_back(copy: &Copy, to: &Locked, path: &Path, size: u64) -> Result<(), StoreError> {
    let failed = |error: io::Error| StoreError::io("read", &copy.path, &error);
    let damaged = || StoreError::Damaged { path: copy.path.display().to_string() };
    let mut file = File::open(&copy.path).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        let at = hasher.count();
        let length = match file.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        if at + length as u64 > size {
            return Err(damaged());
        }
        hasher.update(&piece[..length]);
        to.file().write_all_at(&piece[..length], at).map_err(|error| StoreError::write(path, size, &error))?;
    }
    match hasher.count() == size && hasher.finalize() == copy.hash {
        true => Ok(()),
        false => Err(damaged()),
    }
}
