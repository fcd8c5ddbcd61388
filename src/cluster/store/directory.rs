//! A directory that only this user can enter, that only this store writes to, and that is removed
//! with it: by the store, or, if its process was killed, by the next one that starts.
//!
//! Who lives is known by the lock on the file `lock` inside, which the kernel lets go with the process.
//! Nobody can be taken for dead in the moment between the making of a directory and its locking: whoever
//! locks the file first has the directory, be it the one who made it or one who tidies up; the former
//! sees that, and makes another.

use super::{error::StoreError, map::is_at};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes one in `parent`, which is made too if it does not exist, and removes those of the dead.
    pub(super) fn create(parent: &Path) -> Result<Directory, StoreError> {
        let failed = |error: io::Error| StoreError::io("create a directory in", parent, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        let found = fs::metadata(parent).map_err(failed)?;
        if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
            let mode = found.mode() & 0o7777;
            return Err(StoreError::foreign(
                parent,
                format!("its mode is {mode:o}, so others could replace what is in it"),
            ));
        }
        let prefix = prefix();
        remove_abandoned(parent, &prefix).map_err(failed)?;

        let mut number = 0_u32;
        loop {
            let path = parent.join(format!("{prefix}{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    if let Some(lock) = lock(&path) {
                        return Ok(Directory { path, _lock: lock });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
            number += 1;
            if number == 10_000 {
                return Err(failed(io::ErrorKind::AlreadyExists.into()));
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The lock of the directory at `path`, unless somebody else has it, or had it and has removed the directory.
fn lock(path: &Path) -> Option<File> {
    let path = path.join("lock");
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file =
        File::options().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(&path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    is_at(&file.metadata().ok()?, &path).then_some(file)
}

fn prefix() -> String {
    format!("outray-store-{}-", rustix::process::geteuid().as_raw())
}

/// Removes what killed nodes have left in shared memory, without waiting for the next one that starts.
pub(crate) fn sweep() {
    for parent in [Path::new("/dev/shm"), &std::env::temp_dir()] {
        let _ = remove_abandoned(parent, &prefix()); // the next one tries again
    }
}

fn remove_abandoned(parent: &Path, prefix: &str) -> io::Result<()> {
    let me = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let ours = |found: fs::Metadata| found.is_dir() && found.uid() == me;
        if !entry.file_name().to_string_lossy().starts_with(prefix) || !entry.metadata().is_ok_and(ours) {
            continue;
        }
        if let Some(_lock) = lock(&entry.path()) {
            let removed = fs::remove_dir_all(entry.path());
            tracing::info!(path = %entry.path().display(), ?removed, "removed what a killed node had left behind");
        }
    }
    Ok(())
}
