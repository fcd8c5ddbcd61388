//! The identity of an executable, and the executables that a node keeps.
//!
//! An executable is what its bytes are: [`Image::hash`] is their BLAKE3 hash. Two processes can
//! pass each other functions only if they have the same one (see [`super::function`]).
//!
//! # The cache
//! [`Cache`] is a directory with one file per executable, named by its hash.
//!
//! ```text
//! <directory>                     0700, ours
//!     <64 hexadecimal digits>     0500, complete: its content has this hash
//!     .<hash>.<process>.<n>.part  0600, being written
//! ```
//!
//! - A file appears under its final name only by the rename of a complete one whose hash was found
//!   right while it was written, and whose bytes are on the disk. So a crash leaves either nothing
//!   or a `.part`, which [`Cache::open`] removes when nobody has written to it for an hour.
//! - Disks rot and people edit files: [`Cache::find`] reads the file again, and does not find one
//!   that has changed. [`Cache::store`] then puts the right one in its place.
//! - Those who store the same at the same time write a `.part` each. The last rename wins, and all
//!   of them put the same bytes there.

use crate::error::Error;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Files are read in pieces of this many bytes: enough for the hash to use the widest vectors, and
/// no more, because a worker pays for each fresh page, and what is in the CPU's cache is hashed faster.
const PIECE: usize = 64 << 10;

/// A `.part` that nobody has written to for so long is a crashed process's.
const ABANDONED: Duration = Duration::from_secs(3600);

/// The BLAKE3 hash of an executable's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContentHash(pub [u8; 32]);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is to be known of an executable before it is fetched or started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The hash of its bytes.
    pub hash: ContentHash,
    /// Its length in bytes.
    pub size: u64,
    /// What it runs on, as `architecture-system-library`: `x86_64-linux-gnu`.
    pub platform: String,
    /// The version of outray in it.
    pub version: String,
}

impl Image {
    /// The executable of this process. It is read once.
    ///
    /// # Errors
    /// [`ImageError::Io`] if `/proc/self/exe` cannot be read, for example because `/proc` is not
    /// mounted.
    pub fn current() -> Result<&'static Image, ImageError> {
        static CURRENT: OnceLock<Image> = OnceLock::new();
        if let Some(image) = CURRENT.get() {
            return Ok(image);
        }
        // The link leads to the file that this process was started from, also when another one
        // has its name by now, as after a build.
        let path = Path::new("/proc/self/exe");
        let file = File::open(path).map_err(|error| ImageError::io("read", path, &error))?;
        let (hash, size) = hash(file, |_| Ok(())).map_err(|error| ImageError::io("read", path, &error))?;
        let image = Image { hash, size, platform: platform(), version: env!("CARGO_PKG_VERSION").into() };
        Ok(CURRENT.get_or_init(|| image))
    }

    /// Refuses what would not run on this machine, or would not understand this process.
    ///
    /// # Errors
    /// [`ImageError::OtherPlatform`] or [`ImageError::OtherVersion`].
    pub fn check_runs_here(&self) -> Result<(), ImageError> {
        let here = platform();
        if self.platform != here {
            return Err(ImageError::OtherPlatform { its: self.platform.clone(), ours: here });
        }
        let ours = env!("CARGO_PKG_VERSION");
        if self.version != ours {
            return Err(ImageError::OtherVersion { its: self.version.clone(), ours: ours.into() });
        }
        Ok(())
    }
}

/// What this executable was built for.
pub(crate) fn platform() -> String {
    let library = match () {
        () if cfg!(target_env = "gnu") => "gnu",
        () if cfg!(target_env = "musl") => "musl",
        () => "other",
    };
    format!("{}-{}-{library}", std::env::consts::ARCH, std::env::consts::OS)
}

/// Reads to the end, shows each piece to `each`, and says what it was.
fn hash(mut content: impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<(ContentHash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        match content.read(&mut piece) {
            Ok(0) => return Ok((ContentHash(*hasher.finalize().as_bytes()), hasher.count())),
            Ok(length) => {
                hasher.update(&piece[..length]);
                each(&piece[..length])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The executables that a node keeps, so that it fetches each of them once.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Opens the cache in `directory`, which is made if it does not exist.
    ///
    /// # Errors
    /// [`ImageError::Io`] if it cannot be made or read, [`ImageError::NotPrivate`] if somebody else
    /// could put executables there.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Cache, ImageError> {
        let directory = directory.into();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| ImageError::io("create", &directory, &error))?;
        let not_private = |reason| ImageError::NotPrivate { path: directory.display().to_string(), reason };
        let found = fs::symlink_metadata(&directory).map_err(|error| ImageError::io("read", &directory, &error))?;
        let me = effective_user()?;
        if !found.is_dir() {
            return Err(not_private("it is a link to a directory; name the directory itself".into()));
        }
        if found.uid() != me {
            return Err(not_private(format!("it belongs to user {}; name another one", found.uid())));
        }
        if found.mode() & 0o077 != 0 {
            return Err(not_private(format!("its mode is {:o}; make it 700", found.mode() & 0o7777)));
        }
        let cache = Cache { directory };
        cache.remove_abandoned()?;
        Ok(cache)
    }

    /// The executable's file, if it is here and whole. Reads it.
    ///
    /// # Errors
    /// [`ImageError::Io`] if there is a file that cannot be read.
    pub fn find(&self, image: &Image) -> Result<Option<PathBuf>, ImageError> {
        let path = self.path(image);
        let failed = |error: io::Error| ImageError::io("read", &path, &error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        // The mode is looked at too: it is the last that is done to a file before it is renamed.
        if !metadata.is_file() || metadata.len() != image.size || metadata.mode() & 0o777 != 0o500 {
            return Ok(None);
        }
        let (found, _) = hash(file, |_| Ok(())).map_err(failed)?;
        Ok((found == image.hash).then_some(path))
    }

    /// The executable's file; if it is not here or not whole it is made from `content`, which is
    /// not read otherwise.
    ///
    /// A process that starts threads and children may see its `exec` of a new file fail with "text
    /// file busy": a child that was forked while the file was written holds it open until its own
    /// `exec`. Trying again helps.
    ///
    /// # Errors
    /// [`ImageError::WrongContent`] if `content` is not this executable, [`ImageError::Io`] if it cannot
    /// be read, or the file cannot be written. Nothing is left behind then.
    pub fn store(&self, image: &Image, content: impl Read) -> Result<PathBuf, ImageError> {
        if let Some(path) = self.find(image)? {
            return Ok(path);
        }
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let part = Part(self.directory.join(format!(".{}.{}.{number}.part", image.hash, std::process::id())));
        let failed = |error: io::Error| ImageError::io("write", &part.0, &error);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part.0).map_err(failed)?;

        // One byte more than there should be is enough to know that it is too long.
        let content = content.take(image.size.saturating_add(1));
        let mut written = Ok(());
        let read = hash(content, |piece| {
            written = file.write_all(piece);
            match written {
                Ok(()) => Ok(()),
                Err(_) => Err(io::ErrorKind::Other.into()),
            }
        });
        written.map_err(failed)?;
        let (found, size) =
            read.map_err(|error| ImageError::io("read", Path::new("the executable that was sent"), &error))?;
        if found != image.hash {
            return Err(ImageError::WrongContent {
                expected: image.hash,
                expected_size: image.size,
                found,
                found_size: size,
            });
        }
        file.sync_all().map_err(failed)?;
        file.set_permissions(Permissions::from_mode(0o500)).map_err(failed)?;
        drop(file); // nobody can run a file that is open for writing

        let path = self.path(image);
        fs::rename(&part.0, &path).map_err(|error| ImageError::io("write", &path, &error))?;
        // The rename itself is on the disk when the directory is.
        let directory = File::open(&self.directory).and_then(|directory| directory.sync_all());
        directory.map_err(|error| ImageError::io("write", &self.directory, &error))?;
        Ok(path)
    }

    fn path(&self, image: &Image) -> PathBuf {
        self.directory.join(image.hash.to_string())
    }

    fn remove_abandoned(&self) -> Result<(), ImageError> {
        let failed = |error: io::Error| ImageError::io("read", &self.directory, &error);
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let age = || fs::metadata(&path)?.modified()?.elapsed().map_err(io::Error::other);
            // One that is gone by now was somebody else's, who has finished with it.
            if path.extension().is_some_and(|extension| extension == "part") && age().is_ok_and(|age| age > ABANDONED) {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

/// Whom this process acts as.
fn effective_user() -> Result<u32, ImageError> {
    let path = Path::new("/proc/self/status");
    let status = fs::read_to_string(path).map_err(|error| ImageError::io("read", path, &error))?;
    // Four of them: real, effective, saved, and that of the file system.
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let effective = users.and_then(|users| users.split_whitespace().nth(1)?.parse().ok());
    effective.ok_or_else(|| ImageError::io("read", path, &io::Error::other("it does not say who this process acts as")))
}

/// A file that is being written. It is removed if that comes to nothing; after the rename nothing
/// has its name any more.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Why an executable cannot be read, kept or used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ImageError {
    /// The operating system refused.
    Io {
        /// What was to be done: "read", "write" or "create".
        action: String,
        /// The file or directory.
        path: String,
        /// What the operating system said.
        message: String,
    },
    /// It was built for another kind of machine.
    OtherPlatform {
        /// What it was built for.
        its: String,
        /// What this process was built for.
        ours: String,
    },
    /// It contains another version of outray.
    OtherVersion {
        /// The version in it.
        its: String,
        /// The version in this process.
        ours: String,
    },
    /// The bytes are not those that were announced.
    WrongContent {
        /// The hash that was announced.
        expected: ContentHash,
        /// The length in bytes that was announced.
        expected_size: u64,
        /// The hash of the bytes.
        found: ContentHash,
        /// How many bytes were read; no more than one too many.
        found_size: u64,
    },
    /// Others could change what is in the directory.
    NotPrivate {
        /// The directory.
        path: String,
        /// Who could, and what to do.
        reason: String,
    },
}

impl ImageError {
    fn io(action: &str, path: &Path, error: &io::Error) -> Self {
        ImageError::Io { action: action.into(), path: path.display().to_string(), message: error.to_string() }
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageError::Io { action, path, message } => write!(f, "cannot {action} {path}: {message}"),
            ImageError::OtherPlatform { its, ours } => write!(
                f,
                "the executable was built for {its}, and this node runs {ours}; build it for {ours}, or ask for nodes that run {its}"
            ),
            ImageError::OtherVersion { its, ours } => write!(
                f,
                "the executable contains outray {its}, and this node runs outray {ours}; build both with the same version"
            ),
            ImageError::WrongContent { expected, expected_size, found, found_size } => write!(
                f,
                "the bytes that arrived are not the executable {expected} of {expected_size} bytes: their hash is {found}, and there are {}; send it again",
                if found_size > expected_size { "more of them".into() } else { format!("{found_size} of them") }
            ),
            ImageError::NotPrivate { path, reason } => {
                write!(f, "{path} cannot hold executables, because others could change them there: {reason}")
            }
        }
    }
}

impl std::error::Error for ImageError {}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        Error::Unsupported { reason: error.to_string() }
    }
}
