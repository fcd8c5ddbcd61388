//! Worker mode: this executable, started again to run functions instead of its `main`.
//!
//! # How a program becomes a worker
//! `enter` runs before `main` in every program, test, example and bench that contains this crate.
//! Unless the environment variable [`VARIABLE`] is set, it does nothing. Otherwise the process is a worker:
//!
//! 1. The variable is taken out of the environment, so that children of a task are not workers.
//! 2. The protocol's pipes are put aside. From here on the user's code reads nothing on stdin, and
//!    what it prints goes to stderr.
//! 3. Constructors that would have run after this one are run: those of the user's other crates
//!    (registries such as that of `typetag`) and of C++ code.
//! 4. A thread serves calls until the pipe ends. Then the process ends; `main` never runs.
//!
//! # Why the linker keeps it
//! A pointer to `enter` lies in `.init_array`. `#[used]` makes the compiler keep it, with any optimization
//! and LTO. rustc passes each `#[used]` static of each crate in a program to the linker as if it was referred
//! to, so the object in this crate's archive is always taken. And linkers collect no garbage in `.init_array`.
//! The crate `ctor` does the same, but does not say which place in the array it got, and step 3
//! needs that.
//!
//! # The protocol
//! For tests, until there are sockets: calls on stdin, replies on stdout, one after the other.
//!
//! ```text
//! frame  = length of header: u32, length of payload: u32, header, payload     (little-endian)
//! header = MessagePack: `Call` or `Reply`
//! ```
//!
//! Lengths are limited, and memory is used only for what has arrived. A frame that is too long, or ends
//! early, is the last: what follows cannot be told apart. Everything else that is wrong is
//! an error reply, and the worker lives on.

use super::{
    function::{FunctionError, FunctionId, Program, resolve},
    roles,
    travel::{Arrival, Worker},
    worker,
};
use crate::{
    error::{Error, Origin, Result},
    function::RemoteFn,
    local::{node::contain, task::panic_message},
    object::Object,
    serial,
};
use serde::{Deserialize, Serialize};
use std::{
    env,
    ffi::{OsStr, c_char, c_int},
    fmt,
    fs::File,
    future::Future,
    io::{self, BufReader, Read, Write},
    os::fd::{AsFd, AsRawFd, RawFd},
    panic::{AssertUnwindSafe, Location, catch_unwind},
    pin::Pin,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio, exit},
    sync::Arc,
    task::{Context, Wake, Waker},
    thread::Thread,
};

/// What a process is that finds one of the following in it.
pub const VARIABLE: &str = "OUTRAY_WORKER";
/// A worker that runs one function after the other: for tests of functions.
pub const OVER_PIPES: &str = "pipes-1";
/// A worker of a node.
pub const OF_A_NODE: &str = "node-1";
/// A head or a node; its first letter says which.
pub const ROLE: &str = "role-1";

/// The longest header and the longest payload, in bytes.
pub const LONGEST: [u32; 2] = [64 << 10, 64 << 20];

/// What the C library calls before `main`. The arguments are `main`'s; some C libraries pass none.
#[cfg(target_env = "gnu")]
type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

#[used]
#[unsafe(link_section = ".init_array")]
#[cfg(target_env = "gnu")]
static ENTER: Constructor = {
    extern "C" fn start(count: c_int, arguments: *const *const c_char, environment: *const *const c_char) {
        enter((&raw const ENTER).cast(), |later| later(count, arguments, environment));
    }
    start
};

#[cfg(not(target_env = "gnu"))]
type Constructor = extern "C" fn();

#[used]
#[unsafe(link_section = ".init_array")]
#[cfg(not(target_env = "gnu"))]
static ENTER: Constructor = {
    extern "C" fn start() {
        enter((&raw const ENTER).cast(), |later| later());
    }
    start
};

/// Returns unless this process is to be a worker.
fn enter(place: *const Constructor, call: impl Fn(Constructor)) {
    let Some(kind) = env::var_os(VARIABLE) else { return };
    // A copy of this crate in a shared library leaves it to the program's own, whose functions are meant.
    if !Program::this().contains(place) {
        return;
    }
    let Some(serve) = kinds().iter().find(|(name, _)| kind == OsStr::new(name)).map(|(_, serve)| *serve) else {
        eprintln!("outray: {VARIABLE}={kind:?} asks for a kind of worker that this program cannot be; unset it");
        exit(2);
    };
    // SAFETY: nobody reads the environment meanwhile: this is before `main`, on the only thread there
    // is. (An earlier constructor that starts threads which read the environment would be as wrong about
    // each `setenv` in a later one.)
    unsafe { env::remove_var(VARIABLE) };
    let pipes = match put_pipes_aside() {
        Ok(pipes) => pipes,
        Err(error) => {
            eprintln!("outray: a worker cannot use its pipes: {error}");
            exit(2);
        }
    };
    // As Rust's runtime does before `main`: a write to a closed pipe is an error, and not the end.
    // SAFETY: to ignore a signal needs no handler, and no other thread relies on it yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for constructor in constructors_after(place) {
        call(constructor);
    }
    // A thread of its own has a name and a stack of known size, and is one as any other to the user's code.
    let (input, output) = pipes;
    let worker = std::thread::Builder::new()
        .name("outray-worker".into())
        .stack_size(8 << 20)
        .spawn(move || serve(input, output));
    match worker.map(|worker| worker.join()) {
        // If nobody reads the replies any more, nobody waits for them.
        Ok(Ok(Ok(()) | Err(_))) => exit(0),
        Ok(Err(_)) => exit(101), // the panic has been reported
        Err(error) => {
            eprintln!("outray: a worker cannot start its thread: {error}");
            exit(2);
        }
    }
}

/// What serves a pipe until it ends.
type Serve = fn(File, File) -> io::Result<()>;

fn kinds() -> [(&'static str, Serve); 3] {
    [
        (OVER_PIPES, |input, output| serve(BufReader::new(input), output)),
        (OF_A_NODE, worker::serve),
        (ROLE, roles::serve),
    ]
}

/// The constructors that the C library would call after the one at `place`.
fn constructors_after(place: *const Constructor) -> Vec<Constructor> {
    let Some(array) = Program::this().constructors() else { return Vec::new() };
    let next = place.addr() + size_of::<Constructor>();
    if !array.contains(&place.addr()) || !next.is_multiple_of(align_of::<Constructor>()) {
        return Vec::new(); // some linker has put it elsewhere
    }
    let places = (next..array.end).step_by(size_of::<Constructor>());
    places
        .filter_map(|place| {
            let place = std::ptr::with_exposed_provenance::<Option<Constructor>>(place);
            // SAFETY: it lies in the program's array of constructors, aligned as all of them. The loader
            // has relocated the array, and 0 is `None`.
            let constructor = unsafe { place.read() };
            // Old linkers mark the ends of such arrays with 0 and -1.
            constructor.filter(|constructor| *constructor as usize != usize::MAX)
        })
        .collect()
}

/// The pipes that were stdin and stdout. These two are then `/dev/null` and stderr, for the user's code.
fn put_pipes_aside() -> io::Result<(File, File)> {
    // Children of a task do not inherit the copies.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    put_in_place(&File::open("/dev/null")?, libc::STDIN_FILENO)?;
    put_in_place(&io::stderr(), libc::STDOUT_FILENO)?;
    Ok((input, output))
}

fn put_in_place(file: &impl AsFd, place: RawFd) -> io::Result<()> {
    // SAFETY: `place` is stdin or stdout, which nobody owns, so nobody's file is closed.
    match unsafe { libc::dup2(file.as_fd().as_raw_fd(), place) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The header of a frame to a worker; the payload is the arguments.
#[derive(Debug, Serialize, Deserialize)]
struct Call {
    function: FunctionId,
    /// Counted by the caller.
    number: u64,
    /// Where the caller's code is.
    location: String,
}

/// The header of a frame from a worker: what its payload is.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The result.
    Value,
    /// An [`Error`].
    Failed,
    /// A [`FunctionError`].
    Refused,
    /// Why the call could not be read.
    Garbage,
}

pub(super) fn serve(mut input: impl Read, mut output: impl Write) -> io::Result<()> {
    loop {
        match read_frame(&mut input) {
            Ok(None) => return Ok(()),
            Ok(Some((header, payload))) => {
                let (reply, payload) = answer(&header, &payload);
                write_frame(&mut output, &reply, &payload)?;
            }
            Err(error) => {
                let (reply, payload) = told(Reply::Garbage, &error.to_string());
                return write_frame(&mut output, &reply, &payload);
            }
        }
    }
}

fn answer(header: &[u8], payload: &[u8]) -> (Reply, Vec<u8>) {
    let call: Call = match rmp_serde::from_slice(header) {
        Ok(call) => call,
        Err(error) => return told(Reply::Garbage, &format!("the header is not a call: {error}")),
    };
    let function = match resolve(&call.function) {
        Ok(function) => function,
        Err(error) => return told(Reply::Refused, &error),
    };
    let mut result = Vec::new();
    let run = || function.run(Arrival::bare(&mut ThisThread, payload, &mut result));
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => match too_long("a result", &result) {
            None => (Reply::Value, result),
            Some(error) => told(Reply::Failed, &error),
        },
        Ok(Err(error)) => told(Reply::Failed, &error),
        Err(panic) => {
            let message = panic_message(&*panic);
            contain(|| drop(panic));
            let origin = Box::new(Origin {
                kind: "task".into(),
                name: function.name().into(),
                id: call.number,
                attempt: 1,
                location: call.location,
                node: format!("worker {}", std::process::id()),
            });
            told(Reply::Failed, &Error::Panicked { origin, message })
        }
    }
}

/// A reply that is an error. What a user's code has said may be too long, and is then left out.
fn told(reply: Reply, error: &(impl Serialize + 'static)) -> (Reply, Vec<u8>) {
    let bytes = serial::to_bytes(error, "an error");
    let failed = match bytes {
        Ok(bytes) => match too_long("an error", &bytes) {
            None => return (reply, bytes),
            Some(error) => error,
        },
        Err(error) => error,
    };
    (Reply::Failed, serial::to_bytes(&failed, "an error").unwrap_or_default())
}

fn too_long(what: &str, bytes: &[u8]) -> Option<Error> {
    let longest = LONGEST[1];
    (bytes.len() as u64 > u64::from(longest)).then(|| Error::Unsupported {
        reason: format!(
            "{what} of {} bytes: worker and caller send each other {longest} at most over pipes",
            bytes.len()
        ),
    })
}

/// A worker without an executor: futures are polled on the thread of the call.
struct ThisThread;

impl Worker for ThisThread {
    fn drive(&mut self, mut future: Pin<&mut (dyn Future<Output = ()> + Send)>) -> Result<()> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        while future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            std::thread::park();
        }
        Ok(())
    }
}

fn write_frame(output: &mut impl Write, header: &impl Serialize, payload: &[u8]) -> io::Result<()> {
    let header = rmp_serde::to_vec(header).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(8 + header.len() + payload.len());
    for (part, longest) in [&header[..], payload].into_iter().zip(LONGEST) {
        match u32::try_from(part.len()) {
            Ok(length) if length <= longest => frame.extend(length.to_le_bytes()),
            _ => {
                return Err(io::Error::other(format!(
                    "{} bytes are more than the {longest} that a frame holds",
                    part.len()
                )));
            }
        }
    }
    frame.extend(header);
    frame.extend(payload);
    output.write_all(&frame)?;
    output.flush()
}

/// Header and payload; `None` at the end.
fn read_frame(input: &mut impl Read) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut lengths = Vec::new();
    input.by_ref().take(8).read_to_end(&mut lengths)?;
    if lengths.is_empty() {
        return Ok(None);
    }
    let broken = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let cut = || broken("the stream ends inside a frame".into());
    let (lengths, _) = lengths.as_chunks::<4>();
    let part = |index: usize| {
        let length = u32::from_le_bytes(*lengths.get(index).ok_or_else(cut)?);
        if length > LONGEST[index] {
            return Err(broken(format!("a length of {length} bytes, where {} are the most", LONGEST[index])));
        }
        Ok(length)
    };
    let lengths = [part(0)?, part(1)?];
    let mut read = |length: u32| {
        let mut bytes = Vec::new();
        match input.by_ref().take(length.into()).read_to_end(&mut bytes)? == length as usize {
            true => Ok(bytes),
            false => Err(cut()),
        }
    };
    Ok(Some((read(lengths[0])?, read(lengths[1])?)))
}

/// A worker as its parent sees it. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    calls: u64,
}

impl Process {
    /// Starts a worker from this process's own executable.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn() -> io::Result<Process> {
        Process::start(&mut Command::new("/proc/self/exe"))
    }

    /// Starts a worker from another file.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn start(program: &mut Command) -> io::Result<Process> {
        let program = program.env(VARIABLE, OVER_PIPES).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = program.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Process { child, input, output: BufReader::new(output), calls: 0 }),
            _ => unreachable!("both pipes were asked for"),
        }
    }

    /// Calls a function there.
    ///
    /// # Errors
    /// See [`CallError`].
    #[track_caller]
    pub fn run<F, Args, M>(&mut self, function: F, args: Args) -> Result<F::Out, CallError>
    where
        F: RemoteFn<Args, M>,
        Args: Object,
        M: 'static,
    {
        let id = FunctionId::of_task(&function).map_err(CallError::Refused)?;
        let args = serial::to_bytes(&args, "the arguments").map_err(CallError::Failed)?;
        let result = self.call(&id, &args)?;
        serial::from_bytes(&result, "the result").map_err(CallError::Failed)
    }

    /// Calls what an id names, with arguments that are bytes already.
    ///
    /// # Errors
    /// See [`CallError`].
    #[track_caller]
    pub fn call(&mut self, function: &FunctionId, args: &[u8]) -> Result<Vec<u8>, CallError> {
        if let Some(error) = too_long("arguments", args) {
            return Err(CallError::Failed(error));
        }
        self.calls += 1;
        let call = Call { function: *function, number: self.calls, location: Location::caller().to_string() };
        let sent = write_frame(&mut self.input, &call, args);
        let reply = sent.and_then(|()| read_frame(&mut self.output));
        let (header, payload) = match reply {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(self.lost("it ended without a reply")),
            Err(error) => return Err(self.lost(&error.to_string())),
        };
        let error = match rmp_serde::from_slice(&header) {
            Ok(Reply::Value) => return Ok(payload),
            Ok(Reply::Failed) => serial::from_bytes(&payload, "an error").map(CallError::Failed),
            Ok(Reply::Refused) => serial::from_bytes(&payload, "an error").map(CallError::Refused),
            Ok(Reply::Garbage) => serial::from_bytes::<String>(&payload, "an error")
                .map(|reason| CallError::Lost(format!("the worker could not read a call: {reason}"))),
            Err(error) => return Err(self.lost(&format!("its reply cannot be read: {error}"))),
        };
        Err(error.unwrap_or_else(|error| self.lost(&format!("its reply cannot be read: {error}"))))
    }

    fn lost(&mut self, how: &str) -> CallError {
        let _ = self.child.kill(); // it may have ended
        let status = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => format!("its status is not known: {error}"),
        };
        CallError::Lost(format!("worker {}: {how} ({status})", self.child.id()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why a call has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The function ran, or its arguments or result could not travel.
    Failed(Error),
    /// The function cannot be named to the worker, or the worker has no such function.
    Refused(FunctionError),
    /// The worker is gone, or was misunderstood.
    Lost(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Failed(error) => error.fmt(f),
            CallError::Refused(error) => error.fmt(f),
            CallError::Lost(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CallError::Failed(error) => Some(error),
            CallError::Refused(error) => Some(error),
            CallError::Lost(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That the later constructors run shows only in programs with other crates that have some. This
    /// shows that they are found.
    #[test]
    fn the_constructors_that_come_later_are_found() {
        let array = Program::this().constructors().expect("an array of constructors");
        let place = (&raw const ENTER).addr();
        assert!(array.contains(&place), "{place:x} should be in {array:x?}");
        let behind = (array.end - place) / size_of::<Constructor>() - 1;
        assert_eq!(constructors_after(&raw const ENTER).len(), behind);
        // Rust's own constructor, which keeps the arguments, is an early one.
        let all = constructors_after(std::ptr::without_provenance(array.start));
        assert!(all.iter().any(|constructor| std::ptr::fn_addr_eq(*constructor, ENTER)), "{} in all", all.len());
    }

    #[test]
    fn a_frame_is_read_as_it_was_written_and_no_memory_is_used_for_what_is_only_announced() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &Reply::Value, b"12345").unwrap();
        write_frame(&mut bytes, &Reply::Garbage, b"").unwrap();
        let mut input = &bytes[..];
        assert_eq!(read_frame(&mut input).unwrap().unwrap().1, b"12345");
        assert_eq!(read_frame(&mut input).unwrap().unwrap().1, b"");
        assert_eq!(read_frame(&mut input).unwrap(), None);

        /// Notes how much it is asked for at once.
        struct Asked(usize);
        impl Read for Asked {
            fn read(&mut self, place: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.max(place.len());
                Ok(0)
            }
        }
        let mut nothing = Asked(0);
        let announced = [LONGEST[0].to_le_bytes(), LONGEST[1].to_le_bytes()].concat();
        let error = read_frame(&mut (&announced[..]).chain(nothing.by_ref())).unwrap_err();
        assert!(error.to_string().contains("ends inside a frame"), "{error}");
        assert!(nothing.0 <= 64 << 10, "room for {} bytes", nothing.0);
    }
}
