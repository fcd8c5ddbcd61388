//! What the behaviour tests share: a watchdog, gates, counting values, and tests in a process of
//! their own.
#![allow(dead_code, unused_imports, unused_macros)] // each test binary uses its part

pub(crate) mod shared;
mod where_to;

pub(crate) use shared::{AtomicBool, AtomicU32, AtomicUsize, Notes};
pub(crate) use where_to::{builder, local, local_only, on_cluster};

use outray::{Error, Runtime};
use serde::{Deserialize, Deserializer, Serialize};
use std::{
    future::{Future, IntoFuture},
    panic::resume_unwind,
    pin::pin,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::SeqCst, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::{Duration, Instant},
};

/// A test that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a test waits for on the way to its end; less, so that it can still say what it was.
const STEP: Duration = Duration::from_secs(30);

/// Runs a test's body, and makes a failure of a hang.
///
/// On a cluster one test runs at a time, because they share its CPUs.
pub(crate) fn watch<R: Send + 'static>(body: impl FnOnce() -> R + Send + 'static) -> R {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = on_cluster().then(|| ONE.lock().unwrap_or_else(PoisonError::into_inner));
    let (over, is_over) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        let _ = over.send(());
        result
    });
    if is_over.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("the test hangs: it has not ended after {PATIENCE:?}");
    }
    match thread.join() {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) | Err(panic) => resume_unwind(panic),
    }
}

/// Yields until something is so.
#[track_caller]
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < STEP, "waited in vain until {what}");
        let_others_run();
    }
}

/// What is so at once in one process is so soon where others have a part in it.
#[track_caller]
pub(crate) fn at_once(what: &str, is_so: impl Fn() -> bool) {
    match on_cluster() {
        true => until(what, is_so),
        false => assert!(is_so(), "not at once: {what}"),
    }
}

/// So many where nothing travels, and a hundredth where each does.
pub(crate) fn many(number: usize) -> usize {
    if on_cluster() { number / 100 } else { number }
}

/// The members of the cycle that an error names.
#[track_caller]
pub(crate) fn members(error: &Error) -> Vec<String> {
    match error.root_cause() {
        Error::WaitCycle { path } => path.clone(),
        other => panic!("expected WaitCycle, got {other:?}"),
    }
}

/// Whether the members are these, in this order, from wherever in the cycle the list starts.
#[track_caller]
pub(crate) fn assert_cycle(error: &Error, expected: &[&str]) {
    let path = members(error);
    let in_order = |start: usize| {
        let turned = expected.iter().cycle().skip(start).take(expected.len());
        path.len() == expected.len() && path.iter().zip(turned).all(|(label, part)| label.contains(part))
    };
    assert!((0..expected.len()).any(in_order), "expected the cycle {expected:?}, got {path:?}");
    let text = error.to_string();
    assert!(text.contains("waiting would never end") && text.contains(" -> "), "{text}");
}

/// What a worker of a cluster is told it knows a moment later. Waits until a task there has been told of its cancellation:
/// that goes the way of all that was said before, after it.
pub(crate) fn the_news_is_everywhere(rt: &Runtime) {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    if !on_cluster() {
        return;
    }
    let (started, told) = (STARTED.load(SeqCst), TOLD.load(SeqCst));
    let probe = || {
        STARTED.fetch_add(1, SeqCst);
        until("it is told", || outray::task::context().is_cancelled());
        TOLD.fetch_add(1, SeqCst);
    };
    let probe = rt.task(probe).cpus(0).submit(());
    until("the probe runs", || STARTED.load(SeqCst) > started);
    probe.cancel();
    until("the probe has been told", || TOLD.load(SeqCst) > told);
}

/// Lets everybody else run for a while: a chance to do what they must not. Never needed for a test
/// to pass.
pub(crate) fn give_others_a_chance() {
    match shared::are_shared() {
        true => std::thread::sleep(Duration::from_millis(50)),
        false => (0..2_000).for_each(|_| std::thread::yield_now()),
    }
}

/// Other threads, or other processes, which have more to do to answer.
fn let_others_run() {
    match shared::are_shared() {
        true => std::thread::sleep(Duration::from_micros(200)),
        false => std::thread::yield_now(),
    }
}

/// Holds tasks up until the test opens it.
pub(crate) struct Gate {
    open: AtomicBool,
    inside: AtomicUsize,
}

impl Gate {
    pub(crate) const fn new() -> Self {
        Gate { open: AtomicBool::new(false), inside: AtomicUsize::new(0) }
    }

    /// In a task: does not return before the gate is open.
    pub(crate) fn pass(&self) {
        self.inside.fetch_add(1, SeqCst);
        until("the gate opens", || self.open.load(SeqCst));
    }

    pub(crate) fn open(&self) {
        self.open.store(true, SeqCst);
    }

    /// How many have come to the gate so far.
    pub(crate) fn arrived(&self) -> usize {
        self.inside.load(SeqCst)
    }

    pub(crate) fn wait_for(&self, tasks: usize) {
        until("the tasks have come to the gate", || self.arrived() >= tasks);
    }
}

/// How many tasks are in the same place at a time.
pub(crate) struct Meter {
    now: AtomicUsize,
    most: AtomicUsize,
    total: AtomicUsize,
}

impl Meter {
    pub(crate) const fn new() -> Self {
        Meter { now: AtomicUsize::new(0), most: AtomicUsize::new(0), total: AtomicUsize::new(0) }
    }

    /// Stays inside for a while.
    pub(crate) fn visit(&self) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        for _ in 0..50 {
            std::thread::yield_now();
        }
        self.total.fetch_add(1, SeqCst);
        self.now.fetch_sub(1, SeqCst);
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(SeqCst)
    }

    pub(crate) fn total(&self) -> usize {
        self.total.load(SeqCst)
    }
}

/// Returns when so many are here at the same time.
pub(crate) fn meet(place: &AtomicUsize, others: usize) {
    place.fetch_add(1, SeqCst);
    until("all have come to the meeting", || place.load(SeqCst) >= others);
}

static LIVE: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
static CLONES: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];

/// A value that counts its copies; each test has its own `N`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Counted<const N: usize>(u64);

impl<const N: usize> Counted<N> {
    pub(crate) fn new(value: u64) -> Self {
        LIVE[N].fetch_add(1, SeqCst);
        Counted(value)
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }

    /// Values that have not been dropped.
    pub(crate) fn live() -> usize {
        LIVE[N].load(SeqCst)
    }

    /// How often one was cloned.
    pub(crate) fn clones() -> usize {
        CLONES[N].load(SeqCst)
    }
}

impl<const N: usize> Clone for Counted<N> {
    fn clone(&self) -> Self {
        CLONES[N].fetch_add(1, SeqCst);
        Counted::new(self.0)
    }
}

impl<const N: usize> Drop for Counted<N> {
    fn drop(&mut self) {
        LIVE[N].fetch_sub(1, SeqCst);
    }
}

impl<'de, const N: usize> Deserialize<'de> for Counted<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A derived newtype struct, with the count.
        #[derive(Deserialize)]
        struct Plain(u64);
        Plain::deserialize(deserializer).map(|Plain(value)| Counted::new(value))
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The executor of a program that has no other.
pub(crate) fn block_on<F: IntoFuture>(future: F) -> F::Output {
    let mut future = pin!(future.into_future());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park_timeout(PATIENCE),
        }
    }
}

const CHILD: &str = "OUTRAY_TEST_ALONE";

/// Runs a test's body in a process of its own: for what other tests would disturb, and for what
/// could kill the process. `test` is the test's name. Returns what the process wrote, and nothing
/// inside that process.
#[track_caller]
pub(crate) fn alone(test: &str, body: impl FnOnce() + Send + 'static) -> Option<Output> {
    let program = std::env::current_exe().expect("a test knows its program");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    alone_by(command, test, body)
}

/// The same at a terminal of 100 columns, which the command `script` makes. Where there is none this says so, and
/// returns nothing.
#[track_caller]
pub(crate) fn alone_at_a_terminal(test: &str, body: impl FnOnce() + Send + 'static) -> Option<Output> {
    if let Err(error) = Command::new("script").arg("--version").output() {
        println!("skipped: there is no `script` to make a terminal: {error}");
        return None;
    }
    let program = std::env::current_exe().expect("a test knows its program");
    let line = format!("stty cols 100; exec '{}' {test} --exact --nocapture --test-threads=1", program.display());
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env_remove("NO_COLOR").stdin(Stdio::null());
    alone_by(command, test, body)
}

#[track_caller]
fn alone_by(mut command: Command, test: &str, body: impl FnOnce() + Send + 'static) -> Option<Output> {
    if std::env::var_os(CHILD).is_some() {
        watch(body);
        return None;
    }
    // The first backtrace that a process prints leaves tens of MiB of symbols in its memory.
    let output = command.envs([(CHILD, "1"), ("RUST_BACKTRACE", "0")]).output().expect("a test starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "no test is called {test:?}: {out}");
    Some(output)
}

/// This process's memory that is in RAM, in bytes; `None` where that is not known.
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// A path for a file that is removed when this is dropped.
pub(crate) struct Scratch(pub(crate) std::path::PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, SeqCst);
        Scratch(std::env::temp_dir().join(format!("outray-{}-{number}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
