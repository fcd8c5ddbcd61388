//! A driver: the program that connects to a cluster.

use super::{
    client::{self, Client},
    endpoint::StartError,
    image::Image,
    node_process::{PART, head_patience},
    pack::{Carrier, Packing},
    protocol::{HEAD, ProcessId},
    secure::Key,
    station::{self, Happening, Station},
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
    cell::Cell,
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
    let thread = {
        let (station, meeting, client) = (station.clone(), meeting.clone(), client.clone());
        let serve = move || serve(&station, post, &meeting, &client);
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
    let post = Box::new(ToStations(station.clone()));
    // Until it is known how large the cluster is.
    config.total = Amounts { cpu: WHOLE, ..config.total };
    let core = Core::open(config);
    let ours = Client::new(core, me, job, None, post);
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

struct ToStations(Arc<Station>);

impl Carrier for ToStations {
    fn post(&self, envelope: Envelope) {
        self.0.post(&envelope);
    }

    fn has_packs(&self) -> bool {
        true
    }

    fn pack(&self, task: &Packing<'_>) {
        self.0.pack(task);
    }
}

fn serve(station: &Arc<Station>, post: station::Post, meeting: &Meeting, client: &OnceLock<Arc<Client>>) {
    let next = Cell::new(Instant::now() + TICK);
    let (me, ours) = (station.me, host());
    let tell_head = |letter| station.post(&Envelope { from: me, to: HEAD, letter, payload: Vec::new() });
    // The cluster, and since when its head is gone, and why; and what the next one has to be told.
    let (mut cluster, mut headless, mut untold) = (None, None::<(Instant, String)>, Vec::new());
    let gone = |reason: String| {
        meeting.set(Progress::Gone(reason.clone()));
        if let Some(client) = client.get() {
            client.lost(&reason);
        }
    };
    client::receives_here();
    station.run(
        post,
        || next.get(),
        |happening| match happening {
            Happening::Letters(letters) => letters.into_iter().for_each(|envelope| match envelope.letter {
                Letter::WantImage { driver, offset } => {
                    let part = File::open("/proc/self/exe").and_then(|file| read_part(&file, offset));
                    let part = part.unwrap_or_default(); // which the node takes for a failure
                    let letter = Letter::ImagePart { driver, offset };
                    station.post(&Envelope { from: me, to: envelope.from, letter, payload: vec![part] });
                }
                Letter::Printed { worker, lines } => lines.iter().for_each(|line| eprintln!("({worker}) {line}")),
                Letter::Leaving => gone("the cluster was stopped".into()),
                _ => {
                    let is_home = matches!(envelope.letter, Letter::Control(super::protocol::Message::Home { .. }));
                    // It is there before anything is said to it.
                    client.wait().receive(envelope);
                    if is_home {
                        meeting.set(Progress::Node);
                    }
                }
            }),
            Happening::Met { role: Role::Head { cluster: number }, .. } => {
                let is_same = *cluster.get_or_insert(number) == number;
                match (client.get().filter(|_| headless.take().is_some()), is_same) {
                    (_, false) => {
                        gone(
                            "the head is gone, and another one has taken its place that knows nothing of this program"
                                .into(),
                        );
                    }
                    (Some(client), true) => {
                        tell_head(Letter::Register(client.job.clone()));
                        client.join_again();
                        untold.drain(..).for_each(&tell_head);
                    }
                    (None, true) => meeting.set(Progress::Head),
                }
            }
            Happening::Refused(reason) => meeting.set(Progress::Gone(reason)),
            Happening::Met { station, host, .. } => {
                if host == ours {
                    client.wait().is_near(station);
                }
            }
            Happening::Lost { station: lost, reason } if lost == HEAD => match client.get() {
                Some(client) => {
                    client.head_is_gone();
                    headless = Some((Instant::now(), reason));
                }
                None => gone(reason),
            },
            Happening::Lost { station: lost, .. } => {
                let letter = Letter::Unreachable { station: lost };
                match headless {
                    None => tell_head(letter),
                    Some(_) => untold.push(letter),
                }
            }
            Happening::Tick => {
                next.set(Instant::now() + TICK);
                if let Some(client) = client.get() {
                    client.tick();
                }
                let patience = head_patience();
                if let Some((_, reason)) = headless.take_if(|(since, _)| since.elapsed() >= patience) {
                    gone(format!("the head is gone: {reason}; it did not come back within {patience:?}"));
                }
            }
        },
    );
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
