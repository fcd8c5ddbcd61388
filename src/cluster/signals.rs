//! Ctrl-C and SIGTERM end a head or a node in good order; a second one ends it at once. A file that would be larger than the
//! system's limit is an error, as on a full disk.

use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGXFSZ},
    flag,
};
use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on the signals only set a flag, once.
pub(crate) fn catch() -> io::Result<()> {
    let asked = ASKED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down.
        flag::register_conditional_shutdown(signal, 1, asked.clone())?;
        flag::register(signal, asked.clone())?;
    }
    Ok(())
}

/// From here on a write beyond the limit on the size of files fails, and does not end this process.
pub(crate) fn outlive_limits_of_files() -> io::Result<()> {
    flag::register(SIGXFSZ, Arc::default()).map(|_| ())
}

/// Whether one of them came. Never, if they are not caught.
pub(crate) fn is_end_asked() -> bool {
    ASKED.get().is_some_and(|asked| asked.load(Ordering::Relaxed))
}
