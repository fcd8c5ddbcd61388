//! Several processes: some are stopped, killed and started again.
//!
//! A child is this test binary, run with the one test `child` and told by its environment what to do.

use super::*;
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{self, Command as Process, Stdio},
};

const ROLE: &str = "OUTRAY_TEST_CHILD_BIND";
/// The path of its key file.
const KEY: &str = "OUTRAY_TEST_CHILD_KEY";
/// Whom it connects to.
const DIALS: &str = "OUTRAY_TEST_CHILD_DIALS";

/// A child process. It ends with this value, or with the parent, whose end closes its input.
pub(super) struct Child {
    process: process::Child,
    pub(super) address: String,
}

/// What a child is told.
#[derive(Default)]
pub(super) struct Setup<'a> {
    /// Where it listens, if not anywhere.
    pub(super) bind: Option<&'a str>,
    pub(super) key: Option<&'a Path>,
    pub(super) dials: Option<&'a str>,
    /// How many files and connections it may have open.
    pub(super) descriptors: Option<u32>,
}

impl Child {
    /// A process that answers each message with its first eight bytes.
    pub(super) fn start() -> Child {
        Child::start_as(&Setup::default())
    }

    pub(super) fn start_as(setup: &Setup) -> Child {
        let name = format!("{}::child", module_path!().split_once("::").expect("a crate").1);
        let limit = setup.descriptors.map_or(String::new(), |limit| format!("ulimit -n {limit} && "));
        let mut process = Process::new("sh")
            .arg("-c")
            .arg(format!("{limit}exec \"$0\" \"$@\""))
            .arg(std::env::current_exe().expect("this test"))
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(ROLE, setup.bind.unwrap_or("127.0.0.1:0"))
            .envs(setup.key.map(|key| (KEY, key)))
            .envs(setup.dials.map(|address| (DIALS, address)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut lines = output.lines().map_while(Result::ok);
        let address = lines.find_map(|line| Some(line.split_once("listens on ")?.1.to_string()));
        // Dropped if it did not start, and killed.
        let mut child = Child { process, address: String::new() };
        child.address = address.expect("the child listens");
        child
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        assert!(Process::new("kill").args([signal, &pid]).status().is_ok_and(|status| status.success()));
    }

    /// A file of the kernel's about it.
    pub(super) fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(format!("/proc/{}/{name}", self.process.id())).expect("it lives")
    }

    /// Resident memory, in MiB.
    pub(super) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// Memory that it has reserved, whether it was touched or not, in MiB.
    pub(super) fn reserved(&self) -> u64 {
        self.memory("VmSize:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = String::from_utf8(self.file("status")).expect("text");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
    }

    pub(super) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("it lives").count()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test by itself: what a child does.
#[test]
fn child() {
    let Ok(bind) = std::env::var(ROLE) else { return };
    // With the parent the input ends.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        process::exit(0);
    });
    let key = std::env::var_os(KEY).map(|path| Key::load(path.as_ref()).expect("a key"));
    let (endpoint, mut events) = start_with(Config { bind, key, ..impatient() });
    if let Ok(address) = std::env::var(DIALS) {
        endpoint.connect(&address);
    }
    println!("listens on {}", endpoint.address());
    // By peer; the first of each is whatever the peer begins with.
    let mut expected = FxHashMap::default();
    while let Some(event) = events.recv() {
        match event {
            Event::Up(peer) => drop(expected.insert(peer, None)),
            Event::Message(peer, message) => {
                let next = expected.get_mut(&peer).expect("it is up").get_or_insert_with(|| number(&message));
                assert_eq!(number(&message), *next, "lost, repeated or out of order");
                *next += 1;
                let mut answer = numbered(number(&message));
                while let Err(SendError::Full(again)) = endpoint.send(peer, answer) {
                    answer = again;
                    std::thread::yield_now();
                }
            }
            Event::Room(_) | Event::Lost(..) => {}
        }
    }
}

#[test]
fn a_stopped_process_is_lost_and_hinders_nobody() {
    stop_one_of_four(false);
}

/// All of them are behind one listening socket.
#[test]
fn a_stopped_process_that_had_dialed_is_lost_and_hinders_nobody() {
    stop_one_of_four(true);
}

fn stop_one_of_four(children_dial: bool) {
    let (endpoint, mut events) = start_with(impatient());
    let (children, peers): (Vec<Child>, Vec<Incarnation>) = (0..4)
        .map(|_| {
            let child =
                Child::start_as(&Setup { dials: children_dial.then(|| endpoint.address()), ..Setup::default() });
            if !children_dial {
                endpoint.connect(&child.address);
            }
            let peer = next_up(&mut events);
            (child, peer)
        })
        .unzip();
    let stopped = peers[0];
    children[0].signal("-STOP");

    let large = |at: u64| Message { header: at.to_le_bytes().to_vec().into(), payloads: vec![vec![0; 50_000].into()] };
    let (mut pushed, mut was_full, mut is_lost) = (0, false, false);
    let (mut sent, mut answered) = ([0; 4], [0; 4]);
    // The others answer before and after the stopped one is lost.
    while !is_lost || answered[1..].iter().any(|answered| *answered < 2000) {
        for at in 1..4 {
            if sent[at] < answered[at] + 50 {
                endpoint.send(peers[at], numbered(sent[at])).expect("there is room");
                sent[at] += 1;
            }
        }
        match endpoint.send(stopped, large(pushed)) {
            Ok(()) => pushed += 1,
            Err(SendError::Full(_)) => was_full = true,
            Err(error) => assert_eq!(error, SendError::Lost),
        }
        while let Some(event) = events.recv_timeout(Duration::ZERO) {
            match event {
                Event::Message(peer, message) => {
                    let at = peers.iter().position(|other| *other == peer).expect("a child");
                    assert_eq!(number(&message), answered[at]);
                    answered[at] += 1;
                }
                Event::Lost(peer, reason) => {
                    assert_eq!(peer, stopped);
                    assert!(matches!(reason, Reason::Silent(_)), "{reason}");
                    is_lost = true;
                }
                Event::Room(_) => {}
                event => panic!("{event:?}"),
            }
        }
    }
    assert!(was_full, "{pushed} messages were taken for a process that is stopped");

    // It goes on, and learns that it was given up. Both begin again.
    children[0].signal("-CONT");
    loop {
        match next(&mut events) {
            Event::Up(peer) => break assert_eq!(peer, stopped),
            Event::Message(..) | Event::Room(_) => {}
            event => panic!("{event:?}"),
        }
    }
    endpoint.send(stopped, numbered(0)).expect("it is up");
    loop {
        if let Event::Message(peer, message) = next(&mut events)
            && peer == stopped
        {
            break assert_eq!(number(&message), 0);
        }
    }
}

/// The child checks that what it gets has no gap, the parent that the answers have none, also from one life to the next:
/// it sends again what was not answered.
#[test]
fn a_process_killed_under_load_and_started_again_answers_everything_once() {
    let (endpoint, mut events) = start_with(impatient());
    let mut child = Child::start();
    let address = child.address.clone();
    endpoint.connect(&address);
    let mut peer = next_up(&mut events);
    let mut answered = 0;
    for life in 1..=4 {
        let (mut sent, enough) = (answered, life * 20_000);
        while answered < enough || life == 4 && answered < sent {
            let is_last = life == 4 && sent >= enough;
            while !is_last && endpoint.send(peer, numbered(sent)).is_ok() {
                sent += 1;
            }
            match next(&mut events) {
                Event::Message(from, message) => {
                    assert_eq!((from, number(&message)), (peer, answered));
                    answered += 1;
                }
                Event::Room(_) => {}
                event => panic!("{event:?}"),
            }
        }
        if life == 4 {
            break;
        }
        drop(child); // killed
        child = Child::start_as(&Setup { bind: Some(&address), ..Setup::default() });
        let mut is_lost = false;
        loop {
            match next(&mut events) {
                Event::Lost(lost, reason) => {
                    assert_eq!(lost, peer);
                    assert!(matches!(reason, Reason::Restarted | Reason::Silent(_)), "{reason}");
                    is_lost = true;
                }
                Event::Up(new) => {
                    assert!(is_lost && new != peer);
                    peer = new;
                    break;
                }
                Event::Message(from, message) => {
                    assert_eq!((from, number(&message), is_lost), (peer, answered, false));
                    answered += 1;
                }
                Event::Room(_) => {}
            }
        }
    }
    assert!(endpoint.close(LONG));
}
