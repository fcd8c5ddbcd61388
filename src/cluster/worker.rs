//! A worker: this executable, started by a node, with the local runtime inside and the cluster beside it.

use super::{
    arena,
    client::Client,
    pack::{Carrier, Pack},
    pipe,
    protocol::{ObjectId, ProcessId},
    reading::{Input, Reading},
    wire::{End, Envelope, Letter},
};
use crate::local::{
    Config, Core,
    gpus::Origin,
    resources::{Amounts, WHOLE},
};
use std::{
    fs::File,
    io,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// How often the client is told the time.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Serves a node until the pipe ends, and then ends the process: nobody waits for what it still does.
pub(crate) fn serve(input: File, output: File) -> io::Result<()> {
    let (mut input, mut received) = (input, pipe::Receiver::default());
    let first = loop {
        match received.next()? {
            Some(envelope) => break envelope,
            None if received.read(&mut input)? => {}
            None => return Err(io::Error::other("the node has ended")),
        }
    };
    let Envelope { letter: Letter::Welcome { you, node, job, cpus, has_gpus, arena }, .. } = first else {
        return Err(io::Error::other("the node's first letter is not a welcome"));
    };
    // Without one all goes through the pipe.
    let arena = arena.and_then(|path| arena::Writer::open(&path).ok());
    let letters = pipe::Sender::waiting(output, arena);
    let results = Results::start(letters.clone(), cpus)?;
    let post = Box::new(ToNode { me: you, letters: letters.clone(), results: results.clone() });
    let core = Core::open(Config {
        // The node admits what comes from elsewhere; this bounds what tasks submit here.
        total: Amounts { cpu: cpus.max(WHOLE), ..Amounts::default() },
        gpus: Origin::Simulated(0),
        check_serialization: false,
        observe: job.observe,
        stack_size: 2 << 20,
        deterministic: None,
        #[cfg(feature = "tokio")]
        tokio: None,
    });
    let client = Client::new(core, you, job, Some(you.station()), post);
    client.set_node_name(&node);
    if has_gpus {
        client.set_has_gpus();
    }
    if cpus < WHOLE {
        client.set_has_no_cpu();
    }
    let _ = core.client.set(client.clone()); // the core is new
    let ready = Letter::Ready { refused: None };
    letters.send(&Envelope { from: you, to: you.station(), letter: ready, payload: Vec::new() });
    let clock = client.clone();
    thread::Builder::new().name("outray-clock".into()).spawn(move || {
        loop {
            thread::sleep(TICK);
            clock.tick();
        }
    })?;
    let closed = letters.clone();
    client.on_leave(move || {
        let to = you.station();
        closed.send(&Envelope { from: you, to, letter: Letter::Closed, payload: Vec::new() });
    });
    let input = Input { pipe: input, received };
    // What uses devices is seldom short, and best on few threads.
    let never = Reading::run(core, input, !has_gpus, move |envelope| {
        results.expect(tasks_in(&envelope));
        client.receive(envelope);
    })?;
    match never {}
}

/// How many tasks and calls a letter brings.
pub(super) fn tasks_in(envelope: &Envelope) -> usize {
    match &envelope.letter {
        Letter::Run { .. } | Letter::Call { .. } => 1,
        Letter::Pack { .. } => envelope.payload.first().map_or(0, Pack::count),
        _ => 0,
    }
}

/// The way to everybody is the pipe to the node.
struct ToNode {
    me: ProcessId,
    letters: pipe::Sender,
    results: Arc<Results>,
}

impl Carrier for ToNode {
    fn post(&self, mut envelope: Envelope) {
        match &mut envelope.letter {
            Letter::Ended { took, is_call, end, .. } => {
                // Calls, parts of results and what is given back say nothing of how long the tasks beside them take.
                if !*is_call && !matches!(end, End::GivenBack) {
                    *took = self.results.took();
                }
                self.results.send(&envelope);
            }
            _ => self.letters.send(&envelope),
        }
    }

    fn result(&self, object: ObjectId, value: &[u8]) {
        self.results.send_result(self.me, object, value);
    }
}

/// Sends results. While more tasks wait here than run they may wait for each other, for a moment: many small tasks
/// then take one system call together, and not one each.
struct Results {
    letters: pipe::Sender,
    cpus: usize,
    /// Tasks and calls that have come, and not ended.
    here: AtomicUsize,
    /// When the last one has ended, or the first has come, in nanoseconds since the start.
    ended: AtomicU64,
    started: Instant,
    /// Whether `flusher` is not asleep.
    is_awake: AtomicBool,
    flusher: OnceLock<Thread>,
}

impl Results {
    /// No result waits longer for others.
    const MOMENT: Duration = Duration::from_millis(1);
    /// And not so many bytes.
    const MANY: usize = 64 << 10;

    fn start(letters: pipe::Sender, cpus: u32) -> io::Result<Arc<Results>> {
        let results = Arc::new(Results {
            letters,
            cpus: cpus.div_ceil(WHOLE) as usize,
            here: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
            started: Instant::now(),
            is_awake: AtomicBool::new(false),
            flusher: OnceLock::new(),
        });
        let flushes = results.clone();
        let flusher = thread::Builder::new().name("outray-results".into()).spawn(move || flushes.flush())?;
        let _ = results.flusher.set(flusher.thread().clone()); // this is the only place
        Ok(results)
    }

    fn expect(&self, count: usize) {
        if count > 0 && self.here.fetch_add(count, Relaxed) == 0 {
            self.ended.store(self.now(), Relaxed);
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn send(&self, result: &Envelope) {
        self.sent(self.letters.put(result));
    }

    /// How long what ends now has taken, in nanoseconds: since the one before it ended, or it came.
    fn took(&self) -> u32 {
        let now = self.now();
        let took = now.saturating_sub(self.ended.swap(now, Relaxed));
        u32::try_from(took).unwrap_or(u32::MAX)
    }

    fn send_result(&self, me: ProcessId, object: ObjectId, value: &[u8]) {
        let took = self.took();
        self.sent(self.letters.put_result(me, object, took, value));
    }

    /// One more waits to be sent, and so many bytes.
    fn sent(&self, waiting: usize) {
        // The parts of a result are sent by themselves, and were not counted.
        let less = |here: usize| Some(here.saturating_sub(1));
        let left = self.here.fetch_update(Relaxed, Relaxed, less).unwrap_or_default().saturating_sub(1);
        if left <= self.cpus || waiting > Self::MANY {
            self.letters.flush();
        } else if !self.is_awake.swap(true, SeqCst)
            && let Some(flusher) = self.flusher.get()
        {
            flusher.unpark();
        }
    }

    /// Sends what has waited, as long as something does.
    fn flush(&self) {
        loop {
            while !self.is_awake.load(SeqCst) {
                thread::park();
            }
            thread::sleep(Self::MOMENT);
            if !self.letters.flush() {
                self.is_awake.store(false, SeqCst);
                // One may have come before that was said.
                if self.letters.flush() {
                    self.is_awake.store(true, SeqCst);
                }
            }
        }
    }
}
