//! A driver: the program that connects to a cluster.

use super::{
    client::{self, Client},
    endpoint::StartError,
    image::Image,
    node_process::{PART, head_patience},
    pack::{Carrier, Packing},
    protocol::{HEAD, Message, ProcessId},
    secure::Key,
    station::{self, Happening, Station},
    turns::{self, Desk, Turns},
    wire::{Envelope, Job, Letter, Question, Role, host},
};
use crate::{
    error::{Error, Result},
    local::{
        Config, Core,
        resources::{Amounts, WHOLE},
    },
};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use std::{
    fs::File,
    net::{SocketAddr, ToSocketAddrs, UdpSocket},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// How long the head may take to answer, and a first node to be there.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the client is told the time.
const TICK: Duration = Duration::from_millis(100);

/// The cluster's key: the file that `OUTRAY_KEY_FILE` names, or `~/.outray/key` if there is one.
pub(crate) fn key() -> Result<Option<Key>> {
    let load = |path: PathBuf| Key::load(&path).map_err(|error| Error::Unsupported { reason: error.to_string() });
    if let Some(path) = std::env::var_os("OUTRAY_KEY_FILE").filter(|path| !path.is_empty()) {
        return load(path.into()).map(Some);
    }
    let usual = std::env::home_dir().map(|home| home.join(".outray/key")).filter(|path| path.exists());
    usual.map(load).transpose()
}

/// Where this machine is seen from `address`, with any port.
pub(crate) fn bind_for(address: &str) -> Result<String> {
    let unreachable = |why: String| Error::Unsupported {
        reason: format!("the address {address:?} cannot be used: {why}; write host:port, as `outray head` prints it"),
    };
    let mut addresses = address.to_socket_addrs().map_err(|error| unreachable(error.to_string()))?;
    let address = addresses.next().ok_or_else(|| unreachable("it has no IP address".into()))?;
    // Nothing is sent: this asks the routing table.
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
    let local = socket.and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr()));
    let mut local = local.map_err(|error| unreachable(error.to_string()))?;
    local.set_port(0);
    Ok(local.to_string())
}

/// The host at which other machines reach this one: where it is seen from `head`, or where its way to others begins if
/// that is on this machine.
pub(crate) fn own_host(head: &str) -> Option<String> {
    // The others are addresses for examples; nothing is sent to them.
    let seen = |from: &str| bind_for(from).ok()?.parse::<SocketAddr>().ok();
    let found = [head, "192.0.2.1:9", "[2001:db8::1]:9"].into_iter().filter_map(seen);
    let found = found.map(|address| address.ip()).find(|ip| !ip.is_loopback())?;
    Some(if found.is_ipv6() { format!("[{found}]") } else { found.to_string() })
}

/// Why this process, which wants to speak with the head at `address`, cannot listen.
pub(crate) fn not_listening(error: &StartError, address: &str) -> Error {
    let reason = match error {
        StartError::NeedsKey(_) => format!(
            "the head at {address} is not on this machine's loopback, so its cluster has a key, and this process has \
             none: copy the file to ~/.outray/key, with mode 600, or name it in OUTRAY_KEY_FILE"
        ),
        error => error.to_string(),
    };
    Error::Unsupported { reason }
}

/// A number for a new station.
pub(crate) fn new_station() -> Result<ProcessId> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Unsupported { reason: format!("the system gives no randomness: {error}") })?;
    Ok(ProcessId::station_from(u64::from_le_bytes(random)))
}

#[derive(Default)]
struct Meeting {
    met: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default, PartialEq)]
enum Progress {
    #[default]
    Nobody,
    Head,
    Node,
    Gone(String),
}

impl Meeting {
    fn set(&self, progress: Progress) {
        *self.met.lock() = progress;
        self.changed.notify_all();
    }

    /// Waits until what there is satisfies `enough`, or the time is up.
    fn wait(&self, enough: impl Fn(&Progress) -> bool) -> bool {
        let until = Instant::now() + PATIENCE;
        let mut met = self.met.lock();
        while !enough(&met) {
            if self.changed.wait_until(&mut met, until).timed_out() {
                return enough(&met);
            }
        }
        true
    }
}

/// Connects to a cluster; the core is a runtime's whose tasks run there.
pub(crate) fn connect(address: &str, key: Option<Key>, mut config: Config) -> Result<&'static Core> {
    let image = Image::current()?.clone();
    let me = new_station()?;
    let has_key = key.is_some();
    let (station, post) =
        Station::start(me, Role::Driver, &bind_for(address)?, key).map_err(|error| not_listening(&error, address))?;
    station.dial(address);
    let meeting = Arc::new(Meeting::default());
    let client = Arc::new(OnceLock::<Arc<Client>>::new());
    let interrupts = station.clone();
    let turns = Arc::new(Turns::new(move || interrupts.interrupt()));
    let thread = {
        let desk = DriverDesk::new(station.clone(), post, meeting.clone(), client.clone());
        let turns = turns.clone();
        let serve = move || {
            client::receives_here(true);
            turns.serve(desk);
        };
        std::thread::Builder::new().name("outray-driver".into()).spawn(serve)
    };
    thread.map_err(|error| Error::Unsupported { reason: format!("a thread could not be started: {error}") })?;
    let failed = |reason: String| {
        station.close(Duration::ZERO);
        Error::Unsupported { reason }
    };
    if !meeting.wait(|progress| *progress != Progress::Nobody) {
        let key = match has_key {
            true => "with this key",
            false => "(no key is configured: set OUTRAY_KEY_FILE if the cluster has one)",
        };
        return Err(failed(format!(
            "no head answered at {address} within {PATIENCE:?} {key}; is `outray head` running there?"
        )));
    }
    let name = std::env::args().next().unwrap_or_default();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    let job = Job { driver: me, image, source: me, name, observe: config.observe, pid: std::process::id() };
    station.post(&Envelope { from: me, to: HEAD, letter: Letter::Register(job.clone()), payload: Vec::new() });
    let post = Box::new(ToStations { station: station.clone(), turns: turns.clone() });
    // Until it is known how large the cluster is.
    config.total = Amounts { cpu: WHOLE, ..config.total };
    let core = Core::open(config);
    let ours = Client::new(core, me, job, None, post);
    ours.takes_turns(turns);
    let _ = client.set(ours.clone()); // this is the only place
    let is_settled = meeting.wait(|progress| matches!(progress, Progress::Node | Progress::Gone(_)));
    let gone = match &*meeting.met.lock() {
        Progress::Gone(reason) => Some(reason.clone()),
        _ => None,
    };
    if let Some(reason) = gone {
        return Err(failed(format!("the cluster at {address} cannot be used: {reason}")));
    }
    if !is_settled {
        return Err(failed(format!(
            "the cluster at {address} has no node; start one with `outray node --head {address}`"
        )));
    }
    let nodes = ours.ask(Question::Nodes)?;
    let nodes: Vec<serde_json::Value> = serde_json::from_str(&nodes).unwrap_or_default();
    let cpus: f64 = nodes.iter().filter_map(|node| node["capacity"]["cpus"].as_f64()).sum();
    core.set_cpus((cpus * f64::from(WHOLE)) as u32);
    let leaving = station.clone();
    ours.on_leave(move || {
        leaving.post(&Envelope { from: me, to: HEAD, letter: Letter::Leaving, payload: Vec::new() });
        leaving.close(Duration::from_secs(2));
    });
    let _ = core.client.set(ours); // the core is new
    Ok(core)
}

struct ToStations {
    station: Arc<Station>,
    turns: Arc<Turns<DriverDesk>>,
}

impl Carrier for ToStations {
    fn post(&self, envelope: Envelope) {
        self.station.post(&envelope);
        self.turns.posted();
    }

    fn has_packs(&self) -> bool {
        true
    }

    fn pack(&self, task: &Packing<'_>) {
        self.station.pack(task);
        self.turns.posted();
    }
}

/// What a driver does its I/O with, and handles what happens; see [`turns`](super::turns).
pub(crate) struct DriverDesk {
    station: Arc<Station>,
    post: station::Post,
    meeting: Arc<Meeting>,
    client: Arc<OnceLock<Arc<Client>>>,
    /// What has happened in this turn.
    happened: Vec<Happening>,
    /// When the client is told the time.
    next: Instant,
    host: String,
    cluster: Option<u64>,
    /// Since when the head is gone, and why; and what the next one has to be told.
    headless: Option<(Instant, String)>,
    untold: Vec<Letter>,
}

impl Desk for DriverDesk {
    fn turn(&mut self, until: Option<Instant>) -> bool {
        let latest = until.map_or(self.next, |until| until.min(self.next));
        let happened = &mut self.happened;
        let is_open = self.station.turn(&mut self.post, latest, &mut |happening| happened.push(happening));
        if Instant::now() >= self.next {
            happened.push(Happening::Tick);
        }
        for happening in std::mem::take(happened) {
            self.handle(happening);
        }
        is_open
    }

    fn send_first(&mut self) {
        self.post.send_first();
    }

    fn stay_awake(&mut self, until: Option<Instant>) {
        self.post.stay_awake(until);
    }
}

impl DriverDesk {
    fn new(
        station: Arc<Station>,
        post: station::Post,
        meeting: Arc<Meeting>,
        client: Arc<OnceLock<Arc<Client>>>,
    ) -> DriverDesk {
        DriverDesk {
            station,
            post,
            meeting,
            client,
            happened: Vec::new(),
            next: Instant::now() + TICK,
            host: host(),
            cluster: None,
            headless: None,
            untold: Vec::new(),
        }
    }

    fn tell_head(&self, letter: Letter) {
        self.station.post(&Envelope { from: self.station.me, to: HEAD, letter, payload: Vec::new() });
    }

    /// The cluster cannot be used any more.
    fn gone(&self, reason: String) {
        self.meeting.set(Progress::Gone(reason.clone()));
        if let Some(client) = self.client.get().cloned() {
            turns::leave(move || client.lost(&reason), true);
        }
    }

    fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Letters(letters) => letters.into_iter().for_each(|envelope| self.receive(envelope)),
            Happening::Met { role: Role::Head { cluster: number }, .. } => {
                let is_same = *self.cluster.get_or_insert(number) == number;
                let client = self.client.get().filter(|_| self.headless.take().is_some()).cloned();
                match (client, is_same) {
                    (_, false) => {
                        self.gone(
                            "the head is gone, and another one has taken its place that knows nothing of this program"
                                .into(),
                        );
                    }
                    (Some(client), true) => {
                        self.tell_head(Letter::Register(client.job.clone()));
                        client.join_again();
                        std::mem::take(&mut self.untold).into_iter().for_each(|letter| self.tell_head(letter));
                    }
                    (None, true) => self.meeting.set(Progress::Head),
                }
            }
            Happening::Refused(reason) => self.meeting.set(Progress::Gone(reason)),
            Happening::Met { station, host, .. } => {
                if host == self.host {
                    self.client.wait().is_near(station);
                }
            }
            Happening::Lost { station: lost, reason } if lost == HEAD => match self.client.get() {
                Some(client) => {
                    client.head_is_gone();
                    self.headless = Some((Instant::now(), reason));
                }
                None => self.gone(reason),
            },
            Happening::Lost { station: lost, .. } => {
                let letter = Letter::Unreachable { station: lost };
                match self.headless {
                    None => self.tell_head(letter),
                    Some(_) => self.untold.push(letter),
                }
            }
            Happening::Tick => {
                self.next = Instant::now() + TICK;
                if let Some(client) = self.client.get() {
                    client.tick();
                }
                let patience = head_patience();
                if let Some((_, reason)) = self.headless.take_if(|(since, _)| since.elapsed() >= patience) {
                    self.gone(format!("the head is gone: {reason}; it did not come back within {patience:?}"));
                }
            }
        }
    }

    fn receive(&self, envelope: Envelope) {
        match envelope.letter {
            Letter::WantImage { driver, offset } => {
                let part = File::open("/proc/self/exe").and_then(|file| read_part(&file, offset));
                let part = part.unwrap_or_default(); // which the node takes for a failure
                let letter = Letter::ImagePart { driver, offset };
                self.station.post(&Envelope { from: self.station.me, to: envelope.from, letter, payload: vec![part] });
            }
            // Others may have the lock of the standard error, too.
            Letter::Printed { worker, lines } => {
                turns::leave(move || lines.iter().for_each(|line| eprintln!("({worker}) {line}")), false);
            }
            Letter::Leaving => self.gone("the cluster was stopped".into()),
            _ => {
                let is_home = matches!(envelope.letter, Letter::Control(Message::Home { .. }));
                // It is there before anything is said to it.
                let client = self.client.wait();
                match changes_state_only(&envelope.letter) {
                    true => client.receive(envelope),
                    false => {
                        let client = client.clone();
                        turns::leave(move || client.receive(envelope), true);
                    }
                }
                if is_home {
                    self.meeting.set(Progress::Node);
                }
            }
        }
    }
}

/// Whether a client that gets this letter runs no code of the user's; but for what follows from it.
fn changes_state_only(letter: &Letter) -> bool {
    match letter {
        Letter::Control(message) => !matches!(message, Message::Fenced),
        Letter::Results { .. } | Letter::Inside { .. } | Letter::Took { .. } | Letter::ActorIs { .. } => true,
        Letter::InFile { .. } | Letter::Answer { .. } | Letter::Closed => true,
        _ => false,
    }
}

/// A part of an executable.
pub(super) fn read_part(file: &File, offset: u64) -> std::io::Result<Bytes> {
    let mut part = vec![0; PART];
    let mut have = 0;
    while have < part.len() {
        match file.read_at(&mut part[have..], offset + have as u64)? {
            0 => break,
            count => have += count,
        }
    }
    part.truncate(have);
    Ok(part.into())
}
