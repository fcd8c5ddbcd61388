//! The bytes of a buffer in a file that has no name: it goes with the process, however that ends.

use super::GpuError;
use parking_lot::Mutex;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    sync::atomic::{AtomicU64, Ordering},
};

#[derive(Debug)]
pub(super) struct Spilled(Mutex<File>);

impl Spilled {
    /// In the directory for temporary files.
    pub(super) fn create() -> Result<Self, GpuError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("outray-gpu-{}-{number}", std::process::id()));
            match options.open(&path) {
                Ok(file) => {
                    fs::remove_file(&path).map_err(failed)?;
                    return Ok(Spilled(Mutex::new(file)));
                }
                // From a process with this number that was killed between the two lines.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub(super) fn append(&self, bytes: &[u8]) -> Result<(), GpuError> {
        let mut file = self.0.lock();
        file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(bytes)).map_err(failed)
    }

    pub(super) fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), GpuError> {
        let mut file = self.0.lock();
        file.seek(SeekFrom::Start(offset as u64)).and_then(|_| file.read_exact(bytes)).map_err(failed)
    }
}

fn failed(error: io::Error) -> GpuError {
    GpuError::Spill { detail: error.to_string() }
}
