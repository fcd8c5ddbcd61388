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

/// A child process. It ends with this value, or with the parent, whose end closes its input.
pub(super) struct Child {
    process: process::Child,
    pub(super) address: String,
}

impl Child {
    /// A process that answers each message with its first eight bytes.
    pub(super) fn start(bind: &str) -> Child {
        Child::start_with(bind, None)
    }

    /// The same, with the key in a file.
    pub(super) fn start_with(bind: &str, key: Option<&Path>) -> Child {
        let name = format!("{}::child", module_path!().split_once("::").expect("a crate").1);
        let mut process = Process::new(std::env::current_exe().expect("this test"))
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(ROLE, bind)
            .envs(key.map(|key| (KEY, key)))
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
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
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
    println!("listens on {}", endpoint.address());
    let mut expected = FxHashMap::default();
    while let Some(event) = events.recv() {
        match event {
            Event::Up(peer) => drop(expected.insert(peer, 0)),
            Event::Message(peer, message) => {
                let next = expected.get_mut(&peer).expect("it is up");
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
    let (endpoint, mut events) = start_with(impatient());
    let children: Vec<Child> = (0..4).map(|_| Child::start("127.0.0.1:0")).collect();
    let peers: Vec<Incarnation> = children
        .iter()
        .map(|child| {
            endpoint.connect(&child.address);
            next_up(&mut events)
        })
        .collect();
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

/// The child checks that what it gets begins with 0 and has no gap, the parent that the answers do.
#[test]
fn a_process_killed_under_load_and_started_again_gets_everything_once() {
    let (endpoint, mut events) = start_with(impatient());
    let mut child = Child::start("127.0.0.1:0");
    let address = child.address.clone();
    endpoint.connect(&address);
    let mut peer = next_up(&mut events);
    for life in 0..4 {
        let (mut sent, mut answered) = (0, 0);
        let enough = 20_000;
        while answered < enough || life == 3 && answered < sent {
            let is_last = life == 3 && sent >= enough;
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
        if life == 3 {
            break;
        }
        drop(child); // killed
        child = Child::start(&address);
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
                Event::Message(from, _) => assert!(from == peer && !is_lost),
                Event::Room(_) => {}
            }
        }
    }
    assert!(endpoint.close(LONG));
}
