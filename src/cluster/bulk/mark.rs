//! When a socket has enough for its reader to be woken (unsafe code).

use std::{ffi::c_int, os::fd::AsRawFd};
use tokio::net::TcpStream;

/// Whoever waits to read is woken when so many bytes are there, or the end is. A system that cannot do that wakes for each
/// segment, as with 1.
pub(super) fn wake_at(stream: &TcpStream, bytes: usize) {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    // SAFETY: the descriptor is the stream's, which is open as long as it is borrowed; the system reads one `c_int`, of the
    // size that is given, during the call.
    let _ = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
}
