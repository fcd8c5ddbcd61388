//! The key file: a line that says what it is, and 32 random bytes as hexadecimal digits.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const HEADER: &str = "outray cluster key 1";

/// What the processes of a cluster share. Whoever has it may run code there.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key([u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

/// Why there is no key.
#[derive(Debug)]
pub(crate) enum KeyError {
    Randomness,
    /// What was done, with which file.
    Io(&'static str, PathBuf, io::Error),
    Exists(PathBuf),
    /// The permission bits say that others may read or write it.
    NotPrivate(PathBuf, u32),
    NotAKey(PathBuf),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Randomness => write!(f, "no cluster key was made: the system gives no randomness"),
            KeyError::Io(what, path, error) => {
                write!(f, "the cluster key file `{}` could not be {what}: {error}", path.display())
            }
            KeyError::Exists(path) => write!(
                f,
                "the file `{}` is there already and is not overwritten, because a key that is lost locks its cluster; \
                 choose another path, or remove it first",
                path.display()
            ),
            KeyError::NotPrivate(path, mode) => write!(
                f,
                "the cluster key file `{0}` has mode {mode:03o}, so other users could read or change it; \
                 run `chmod 600 '{0}'`, and make a new key if somebody may have read it",
                path.display()
            ),
            KeyError::NotAKey(path) => write!(
                f,
                "the file `{}` is no cluster key: it must have the line `{HEADER}` and then 64 hexadecimal digits; \
                 make one with `outray key new`",
                path.display()
            ),
        }
    }
}

impl std::error::Error for KeyError {}

impl Key {
    pub(crate) fn generate() -> Result<Key, KeyError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|_| KeyError::Randomness)?;
        Ok(Key(key))
    }

    pub(in crate::cluster) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Writes a new file that only its owner can read.
    pub(crate) fn save(&self, path: &Path) -> Result<(), KeyError> {
        let mut text = format!("{HEADER}\n");
        text.extend(self.0.iter().map(|byte| format!("{byte:02x}")));
        text.push('\n');
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => KeyError::Exists(path.into()),
            _ => KeyError::Io("written", path.into(), error),
        })
    }

    pub(crate) fn load(path: &Path) -> Result<Key, KeyError> {
        let read = |error| KeyError::Io("read", path.into(), error);
        let file = File::open(path).map_err(read)?;
        // Of the file that is open, so that nobody can exchange it in between.
        let mode = file.metadata().map_err(read)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::NotPrivate(path.into(), mode));
        }
        let mut text = Vec::new();
        file.take(1024).read_to_end(&mut text).map_err(read)?;
        parse(&text).ok_or_else(|| KeyError::NotAKey(path.into()))
    }
}

fn parse(text: &[u8]) -> Option<Key> {
    let mut lines = std::str::from_utf8(text).ok()?.lines();
    if lines.next()?.trim_end() != HEADER {
        return None;
    }
    let digits = lines.next()?.trim_end().as_bytes();
    if digits.len() != 64 || lines.any(|line| !line.trim().is_empty()) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(Key(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    /// A directory that goes with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let directory = std::env::temp_dir().join(format!("outray-key-{name}-{}", std::process::id()));
            fs::create_dir(&directory).expect("a directory");
            Scratch(directory)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_key_is_saved_for_its_owner_and_never_overwritten() {
        let scratch = Scratch::new("saved");
        let path = scratch.0.join("cluster.key");
        let key = Key::generate().expect("randomness");
        key.save(&path).expect("it is saved");
        assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o777, 0o600);
        assert!(Key::load(&path).expect("it loads") == key);
        let other = Key::generate().expect("randomness");
        assert!(other != key);
        let error = other.save(&path).expect_err("it is there").to_string();
        assert!(error.contains("not overwritten") && error.contains("cluster.key"), "{error}");
        assert!(Key::load(&path).expect("it loads") == key);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let scratch = Scratch::new("open");
        let path = scratch.0.join("cluster.key");
        Key::generate().and_then(|key| key.save(&path)).expect("it is saved");
        for mode in [0o644, 0o640, 0o620, 0o604] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode changes");
            let error = Key::load(&path).expect_err("others can read it").to_string();
            assert!(error.contains(&format!("mode {mode:o}")) && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        let scratch = Scratch::new("garbage");
        let path = scratch.0.join("cluster.key");
        let digits = "ab".repeat(32);
        let texts = ["", HEADER, &digits, &format!("{HEADER}\n{digits}ab"), &format!("{HEADER}\n{}", "ä".repeat(32))];
        for text in texts.iter().map(|text| text.as_bytes()).chain([&[0xff; 5000][..]]) {
            let _ = fs::remove_file(&path);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("a file");
            file.write_all(text).expect("it is written");
            let error = Key::load(&path).expect_err("no key").to_string();
            assert!(error.contains("outray key new") && !error.contains("abab"), "{error}");
        }
        let missing = Key::load(&scratch.0.join("missing")).expect_err("no file").to_string();
        assert!(missing.contains("could not be read") && missing.contains("missing"), "{missing}");
    }

    #[test]
    fn debug_does_not_show_the_key() {
        assert_eq!(format!("{:?}", Key([0xab; 32])), "Key(secret)");
    }
}
