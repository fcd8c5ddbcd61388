//! Files in memory, mapped: all unsafe code of the store.
//!
//! A mapped file is a slice only as long as nobody writes to it (for `&[u8]`), nobody else looks at
//! it (for `&mut [u8]`) and nobody shortens it. The kernel cannot promise this for a file that has a
//! name, so all who map one of the store's follow these rules, and only they can reach it:
//!
//! - **Private.** The files are in a directory that only this user can enter, which is checked when
//!   the directory is made; a file is opened without following a link, and is ours, or it is refused.
//!   (Whoever else runs as this user could as well write to our memory through `/proc`.)
//! - **Locked while mapped.** A reader takes a shared `flock` before it maps a file, a writer the
//!   exclusive one. The lock belongs to the open file, which the mapping keeps open until it is
//!   unmapped, whoever closes descriptors and however the process ends. The store's first act is to see that
//!   this kernel does so ([`lock_lasts_as_long_as_mapping`]), and if it does not no file is used twice.
//! - **Written under the exclusive lock only.** Whoever shortens a file, writes to it or uses it for
//!   another object has it [`Locked`], so no reader has it mapped. A writer's mapping may outlast its
//!   lock, but as a [`Kept`], which nobody can look into without one.

use super::error::StoreError;
use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::{
    fs::{self, FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// The mode of a file that is complete.
const SEALED: u32 = 0o400;
/// The mode of a file that is not.
const OPEN: u32 = 0o600;

/// Opens a file of ours, which has one of these modes; no link, no pipe, and nobody else's.
fn open(path: &Path, modes: &[u32], write: bool) -> Result<(File, Metadata), StoreError> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    // Without NONBLOCK, opening a pipe would wait for the other end.
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::NOENT) => return Err(StoreError::gone(path)),
        Err(Errno::LOOP) => return Err(StoreError::foreign(path, "it is a link")),
        Err(error) => return Err(StoreError::io("open", path, &error.into())),
    };
    let found = file.metadata().map_err(|error| StoreError::io("read", path, &error))?;
    let me = rustix::process::geteuid().as_raw();
    if !found.is_file() {
        return Err(StoreError::foreign(path, "it is not a regular file"));
    }
    if found.uid() != me {
        return Err(StoreError::foreign(path, format!("it belongs to user {}", found.uid())));
    }
    if !modes.contains(&(found.mode() & 0o7777)) {
        return Err(StoreError::foreign(path, format!("its mode is {:o}", found.mode() & 0o7777)));
    }
    Ok((file, found))
}

/// Whether the lock could be had; it is let go with the last mapping and descriptor of this open file.
fn try_lock(file: &File, exclusive: bool, path: &Path) -> Result<bool, StoreError> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    match fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(StoreError::io("lock", path, &error.into())),
    }
}

fn set_mode(file: &File, mode: u32, path: &Path) -> Result<(), StoreError> {
    let set = fs::fchmod(file, Mode::from_raw_mode(mode));
    set.map_err(|error| StoreError::io("change the mode of", path, &error.into()))
}

/// Whether anybody has the sealed file at `path` mapped. While this looks, nobody can open it.
pub(super) fn is_in_use(path: &Path) -> Result<bool, StoreError> {
    let (file, _) = open(path, &[SEALED], false)?;
    Ok(!try_lock(&file, true, path)?)
}

/// Whether `path` leads to this very file.
pub(super) fn is_at(found: &Metadata, path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino()))
}

/// A sealed file, mapped. The memory is there as long as this is, also when the file is removed.
pub(super) struct Region(Mmap);

impl AsRef<[u8]> for Region {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Region {
    /// Maps the sealed file at `path` if it has `length` bytes.
    pub(super) fn map(path: &Path, length: u64) -> Result<Region, StoreError> {
        let (file, found) = open(path, &[SEALED], false)?;
        // Before the lock it may have been removed, and be another object's by now.
        if !try_lock(&file, false, path)? || !is_at(&found, path) {
            return Err(StoreError::gone(path));
        }
        let found = file.metadata().map_err(|error| StoreError::io("read", path, &error))?;
        if found.len() != length || found.mode() & 0o7777 != SEALED {
            return Err(StoreError::foreign(path, format!("it has {} bytes and not {length}", found.len())));
        }
        // SAFETY: the rules above: the file is ours, it is sealed, and from the lock that this open file
        // holds until it is unmapped nobody writes to it or shortens it.
        let map = unsafe { Mmap::map(&file) };
        map.map(Region).map_err(|error| StoreError::io("map", path, &error))
    }
}

/// A file that this process, and nobody else in the world, may read and write now.
#[derive(Debug)]
pub(super) struct Locked {
    /// Opened for reading, because a sealed file cannot be opened otherwise.
    lock: File,
    file: File,
    which: Which,
}

/// A file by its device and number.
pub(super) type Which = (u64, u64);

impl Locked {
    /// A new, empty file.
    pub(super) fn create(path: &Path) -> Result<Locked, StoreError> {
        let created = File::options().write(true).create_new(true).mode(OPEN).open(path);
        created.map_err(|error| StoreError::write(path, 1, &error))?;
        Locked::open(path, false)?.ok_or_else(|| StoreError::foreign(path, "somebody has opened it while it was made"))
    }

    /// The file at `path`; `None` if it is in use. If it is sealed and may be, it is not any more.
    pub(super) fn open(path: &Path, may_be_sealed: bool) -> Result<Option<Locked>, StoreError> {
        let (lock, found) = open(path, if may_be_sealed { &[OPEN, SEALED] } else { &[OPEN] }, false)?;
        if !try_lock(&lock, true, path)? {
            return Ok(None);
        }
        if may_be_sealed {
            set_mode(&lock, OPEN, path)?;
        }
        let (file, now) = open(path, &[OPEN], true)?;
        let which = (found.dev(), found.ino());
        match which == (now.dev(), now.ino()) {
            true => Ok(Some(Locked { lock, file, which })),
            false => Err(StoreError::gone(path)),
        }
    }

    /// Nothing is written to it any more. Readers find it when this has been dropped.
    pub(super) fn seal(&self, path: &Path) -> Result<(), StoreError> {
        set_mode(&self.lock, SEALED, path)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn which(&self) -> Which {
        self.which
    }
}

impl Drop for Locked {
    /// A child of this process that has not called `exec` yet may have the open file too.
    fn drop(&mut self) {
        let _ = fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

/// The memory of a file that this process writes, or once wrote.
#[derive(Debug)]
pub(super) struct Kept {
    map: MmapMut,
    which: Which,
}

impl Kept {
    /// All of a file, whose pages have to be there already: a write to one that the file system has no
    /// space for would end the process.
    pub(super) fn map(locked: &Locked) -> io::Result<Kept> {
        // SAFETY: the memory is reached only through `bytes`, see there.
        let map = unsafe { MmapOptions::new().populate().map_mut(&locked.file) }?;
        Ok(Kept { map, which: locked.which })
    }

    /// The first `length` bytes, if they are all there.
    ///
    /// This is where the rules hold for writers: `locked` says that no reader has the file mapped, and is
    /// borrowed so that there is one such slice of it at a time; and what the file has now nobody takes away.
    pub(super) fn bytes<'a>(&'a mut self, locked: &'a mut Locked, length: usize) -> Option<&'a mut [u8]> {
        let there = locked.file.metadata().ok()?.len();
        (self.which == locked.which && there >= length as u64).then(|| self.map.get_mut(..length))?
    }
}

/// Whether a lock outlives the descriptor it was taken with, as long as the file is mapped, in which
/// case whoever can lock a file knows that nobody has it mapped. Linux does so because a mapping keeps the
/// open file; the manual does not promise it, and what only calls itself Linux may not.
pub(super) fn lock_lasts_as_long_as_mapping(scratch: &Path) -> Result<bool, StoreError> {
    let failed = |error: io::Error| StoreError::write(scratch, 1, &error);
    let create = || File::options().read(true).write(true).create_new(true).open(scratch);
    let file = create().map_err(failed)?;
    let probe = || {
        file.set_len(1).map_err(failed)?;
        let reader = File::open(scratch).map_err(failed)?;
        let locked = try_lock(&reader, false, scratch)?;
        // SAFETY: nobody reads the memory.
        let map = unsafe { Mmap::map(&reader) }.map_err(failed)?;
        drop(reader);
        let kept = !try_lock(&file, true, scratch)?;
        drop(map);
        Ok(locked && kept && try_lock(&file, true, scratch)?)
    };
    let lasts = probe();
    let _ = std::fs::remove_file(scratch);
    lasts
}
