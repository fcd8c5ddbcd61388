//! Who reads a worker's letters, and runs a short task where its letter was read.
//!
//! To hand a task to another thread takes tens of microseconds, until that is awake. So where one task or call has come by
//! itself, and those before it were short, the thread that has read it runs it at once, as a visitor: as a thread
//! does that waits for a result (see `local::wait`).
//!
//! # Somebody always reads
//! What the task waits for comes through the pipe, and others may come meanwhile. So there are two threads that take
//! turns, as [`relay`](super::relay) says: one reads, and the other stands by. Before the reader runs a task it puts the pipe's end down. When it has
//! run it takes it up again; if the other has it, it stands by from then on. The other is called when the task is about to block in the
//! runtime, which says so ([`blocks`]) before; if the task is longer than it was thought, or blocks in another way, a letter waits
//! no longer than two naps.
//!
//! The reader runs nothing if nobody stands by: then one of the two is still in a long task. A worker that
//! has nothing to do, or much, costs nothing for all this.
//!
//! # What is run here
//! The job that one letter leads to, if no other task came with it, nothing else is queued, and there is a seat for
//! it. So it would be the next to run anyway. An actor's calls keep their order, because what is run is the actor, as
//! on any thread.

use super::{client, pace::Pace, pipe, relay::Relay, wire::Envelope, worker::tasks_in};
use crate::local::{
    Core, Job, Work,
    thread::{self as local, Kept},
    wait,
};
use std::{
    cell::RefCell,
    convert::Infallible,
    fs::File,
    io,
    process::exit,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// Tasks are short if they take less, with what is sent of their results.
const SHORT: Duration = Duration::from_micros(100);

/// The reading end of the pipe, and what has been read.
pub(super) struct Input {
    pub(super) pipe: File,
    pub(super) received: pipe::Receiver,
}

/// What the two threads share.
pub(super) struct Reading {
    core: &'static Core,
    /// Whether tasks run on these threads.
    may_run: bool,
    receive: Box<dyn Fn(Envelope) + Send + Sync>,
    /// How long tasks take.
    pace: Arc<Pace>,
    relay: Relay<Box<Input>>,
}

thread_local! {
    /// What this thread reads, while it has put that down and runs a task.
    static RUNS: RefCell<Option<Arc<Reading>>> = const { RefCell::new(None) };
}

/// What runs on this thread is about to wait for something.
pub(crate) fn blocks() {
    if let Some(reading) = RUNS.take() {
        reading.relay.call();
    }
}

impl Reading {
    /// Reads until the node ends, on this thread and another; then the process ends. `receive` deals with a letter; what it
    /// has to run may run here, too.
    pub(super) fn run(
        core: &'static Core,
        input: Input,
        may_run: bool,
        receive: impl Fn(Envelope) + Send + Sync + 'static,
    ) -> io::Result<Infallible> {
        let reading = Arc::new(Reading {
            core,
            may_run,
            receive: Box::new(receive),
            pace: Arc::new(Pace::slow()),
            relay: Relay::new(),
        });
        let other = reading.clone();
        let stands_by = move || -> Infallible {
            let input = other.relay.stand_by();
            other.read(input)
        };
        thread::Builder::new().name("outray-letters".into()).stack_size(core.stack_size).spawn(stands_by)?;
        reading.read(Box::new(input))
    }

    /// Reads, or stands by, until the node ends, and the process with it: nobody waits for what it still does.
    fn read(self: &Arc<Self>, mut input: Box<Input>) -> ! {
        client::receives_here(true);
        loop {
            let more = match self.deal(&mut input) {
                Ok(task) => {
                    if let Some(task) = task {
                        input = self.run_here(input, task);
                    }
                    let Input { pipe, received } = &mut *input;
                    received.read(pipe)
                }
                Err(error) => Err(error),
            };
            match more {
                Ok(true) => {}
                Ok(false) => exit(0),
                Err(error) => {
                    eprintln!("outray: the node cannot be understood: {error}");
                    exit(1);
                }
            }
        }
    }

    /// Deals with the letters that have come. If there is one task among them, what it has to run comes back.
    fn deal(&self, input: &mut Input) -> io::Result<Option<Kept>> {
        let (mut tasks, mut kept) = (0, None);
        while let Some(envelope) = input.received.next()? {
            let count = tasks_in(&envelope);
            tasks += count;
            if (count, tasks) == (1, 1) && self.may_run {
                kept = local::keeping(self.core, || (self.receive)(envelope));
            } else {
                if count > 0
                    && let Some(kept) = kept.take()
                {
                    self.core.schedule_kept(kept);
                }
                (self.receive)(envelope);
            }
        }
        Ok(kept)
    }

    /// Runs a task on this thread if it is likely to be short; if nobody else is there to read, or it is not its turn,
    /// another thread does.
    fn run_here(self: &Arc<Self>, input: Box<Input>, Kept { job, has_share }: Kept) -> Box<Input> {
        if !self.pace.is_below(SHORT) {
            let job = Arc::new(Timed { job, pace: self.pace.clone() });
            self.core.schedule_kept(Kept { job, has_share });
            return input;
        }
        let kept = Kept { job, has_share };
        if let Err(input) = self.relay.put_down(input) {
            self.core.schedule_kept(kept);
            return input;
        }
        client::receives_here(false);
        RUNS.set(Some(self.clone()));
        let started = Instant::now();
        match wait::visit(self.core, kept) {
            Ok(()) => self.pace.took(started.elapsed()),
            Err(kept) => self.core.schedule_kept(kept),
        }
        RUNS.take();
        client::receives_here(true);
        self.relay.take_up().unwrap_or_else(|| self.relay.stand_by())
    }
}

/// A job whose time counts.
struct Timed {
    job: Job,
    pace: Arc<Pace>,
}

impl Work for Timed {
    fn run(self: Arc<Self>) {
        let started = Instant::now();
        self.job.clone().run();
        self.pace.took(started.elapsed());
    }

    fn is_spent(&self) -> bool {
        self.job.is_spent()
    }
}
