//! An object while it is written, by the node or by the worker that the node gave its path to.
//!
//! # How bytes get into a file
//! What is dear is memory that is new: to the file (the kernel finds and clears a page) and to the
//! process (a fault for each page). `write` pays for the first only, and a mapping that this process
//! still has from an earlier object in the same file for neither. So a process that comes to a file
//! for the first time writes to it; the second time it maps it; and then it keeps the mapping. A node gives
//! files of objects that nobody needs any more to new ones, see [`super::Store`].
//!
//! A kept mapping holds no memory: a file that is not to be used again is cut to nothing.

use super::{
    error::StoreError,
    map::{Kept, Locked, Which},
};
#[cfg(test)]
use crate::serial::Packed;
use lru::LruCache;
use parking_lot::Mutex;
use std::{
    io::{self, BufWriter, Write},
    num::NonZeroUsize,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// How many files a process remembers that it has written to. Each costs it a few page tables.
const KEPT: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// The files that this process has written to.
static WRITTEN: Mutex<Option<LruCache<Which, Written>>> = Mutex::new(None);

#[derive(Debug)]
struct Written {
    path: PathBuf,
    /// If it was more than once.
    kept: Option<Kept>,
}

/// Lets go of the mappings of files in a directory.
pub(super) fn forget_mappings(directory: &Path) {
    if let Some(written) = WRITTEN.lock().as_mut() {
        let inside = written.iter().filter(|(_, file)| file.path.starts_with(directory));
        let inside: Vec<Which> = inside.map(|(which, _)| *which).collect();
        for which in inside {
            written.pop(&which);
        }
    }
}

/// An object that is being written. What has been written is an object only when its node has sealed it.
#[derive(Debug)]
pub(crate) struct Draft {
    locked: Locked,
    path: PathBuf,
    size: usize,
    kept: Option<Kept>,
    is_known: bool,
}

impl Draft {
    /// Opens what the node reserved for an object of `size` bytes (see [`super::Store::reserve`]).
    pub(crate) fn open(path: &Path, size: u64) -> Result<Draft, StoreError> {
        let locked =
            Locked::open(path, false)?.ok_or_else(|| StoreError::StillWritten { path: path.display().to_string() })?;
        let found = locked.file().metadata().map_err(|error| StoreError::io("read", path, &error))?;
        if found.len() != size {
            return Err(StoreError::foreign(path, format!("it has {} bytes and not {size}", found.len())));
        }
        Draft::new(locked, path.into(), size)
    }

    /// `locked` has `size` bytes, and pages for all of them.
    pub(super) fn new(locked: Locked, path: PathBuf, size: u64) -> Result<Draft, StoreError> {
        let size =
            usize::try_from(size).map_err(|_| StoreError::TooLarge { needed: size, budget: usize::MAX as u64 })?;
        let known = WRITTEN.lock().as_mut().and_then(|written| written.pop(&locked.which()));
        let is_known = known.is_some();
        let mut draft = Draft { locked, path, size, kept: known.and_then(|known| known.kept), is_known };
        if is_known && size > 0 {
            draft.bytes()?;
        }
        Ok(draft)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All of it, to be written in place. It may hold anything at first.
    pub(crate) fn bytes(&mut self) -> Result<&mut [u8], StoreError> {
        if self.kept.as_mut().is_none_or(|kept| kept.bytes(&mut self.locked, self.size).is_none()) {
            self.kept = None;
            let kept = Kept::map(&self.locked).map_err(|error| StoreError::io("map", &self.path, &error))?;
            self.kept = Some(kept);
        }
        let bytes = self.kept.as_mut().and_then(|kept| kept.bytes(&mut self.locked, self.size));
        bytes.ok_or_else(|| StoreError::foreign(&self.path, "it is shorter than it was"))
    }

    /// Writes a piece of it.
    pub(crate) fn write_at(&mut self, offset: u64, piece: &[u8]) -> Result<(), StoreError> {
        self.put(offset as usize, piece).map_err(|error| StoreError::write(&self.path, piece.len() as u64, &error))
    }

    /// Writes a value, which has to be as long as the object.
    #[cfg(test)]
    pub(crate) fn write(&mut self, value: &Packed) -> Result<(), StoreError> {
        let (path, size) = (self.path.clone(), self.size);
        let failed = |error: io::Error| StoreError::write(&path, size as u64, &error);
        if value.encoded_len() != size {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the value is not of {size} bytes"),
            )));
        }
        self.fill(|writer| value.encode(writer))
    }

    /// Writes all of it from the start.
    pub(crate) fn fill<'a>(
        &'a mut self,
        write: impl FnOnce(&mut BufWriter<At<'a>>) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let (path, size) = (self.path.clone(), self.size);
        // Small parts are put together, large ones pass by.
        let mut writer = BufWriter::with_capacity(64 << 10, At { draft: self, offset: 0 });
        let written = write(&mut writer).and_then(|()| writer.flush());
        written.map_err(|error| StoreError::write(&path, size as u64, &error))
    }

    /// Ends the writing. The node may seal it then.
    pub(crate) fn finish(self) {}

    pub(super) fn seal(&self) -> Result<(), StoreError> {
        self.locked.seal(&self.path)
    }

    fn put(&mut self, offset: usize, piece: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(piece.len()).filter(|end| *end <= self.size).ok_or_else(|| {
            let text = format!("{} bytes at {offset} of an object of {}", piece.len(), self.size);
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        match self.kept.as_mut().and_then(|kept| kept.bytes(&mut self.locked, self.size)) {
            Some(bytes) => bytes[offset..end].copy_from_slice(piece),
            None => self.locked.file().write_all_at(piece, offset as u64)?,
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After the first time there may be no other, and nothing would cut the file to nothing.
        let kept = self.kept.take().filter(|_| self.is_known);
        let written = Written { path: std::mem::take(&mut self.path), kept };
        WRITTEN.lock().get_or_insert_with(|| LruCache::new(KEPT)).put(self.locked.which(), written);
    }
}

/// A draft, written from its start to its end.
pub(crate) struct At<'a> {
    draft: &'a mut Draft,
    offset: usize,
}

impl Write for At<'_> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.draft.put(self.offset, piece)?;
        self.offset += piece.len();
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
