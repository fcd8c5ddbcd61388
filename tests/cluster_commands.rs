//! The command `outray`, with real processes.

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
};

/// A home directory of the test's own, which goes with it.
struct Home(PathBuf);

impl Home {
    fn new() -> Home {
        let number = fastrand::u64(..);
        let path = std::env::temp_dir().join(format!("outray-commands-{number:016x}"));
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Home(path)
    }

    /// A process that sees this home, and nothing of outray's in its environment.
    fn process(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for name in
            ["OUTRAY_ADDRESS", "OUTRAY_KEY_FILE", "OUTRAY_LOG", "OUTRAY_OBSERVE", "XDG_CACHE_HOME", "XDG_STATE_HOME"]
        {
            command.env_remove(name);
        }
        command.env("HOME", &self.0).stdin(Stdio::null());
        command
    }

    fn outray(&self, words: &[&str]) -> Command {
        let mut command = self.process(env!("CARGO_BIN_EXE_outray"));
        command.args(words);
        command
    }

    /// Runs a command to its end: its exit code, and what it has printed.
    fn run(&self, words: &[&str]) -> (i32, String, String) {
        said(self.outray(words).output().unwrap())
    }

    /// Runs a command that has to succeed.
    fn ok(&self, words: &[&str]) -> String {
        let (code, out, errors) = self.run(words);
        assert_eq!((code, errors.as_str()), (0, ""), "{words:?}: {out}");
        out
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.ok(words)).unwrap()
    }

    /// This file as a program that connects to a cluster.
    fn program(&self, what: &str, address: &str, tell: &TcpListener) -> Running {
        Running::start(&mut self.to_program(what, address, tell))
    }

    fn to_program(&self, what: &str, address: &str, tell: &TcpListener) -> Command {
        let mut command = self.process(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "program"]);
        command.env("OUTRAY_ADDRESS", address).env("PROGRAM", what);
        command.env("TELL", tell.local_addr().unwrap().to_string());
        command
    }

    fn head(&self) -> (Running, String) {
        let mut head = Running::start(&mut self.outray(&["head", "--bind", "127.0.0.1:0"]));
        let line = head.wait_for("outray head at ");
        let address = line.trim_start_matches("outray head at ").to_owned();
        (head, address)
    }

    fn node(&self, head: &str, words: &[&str]) -> Running {
        let mut node = Running::start(self.outray(&["node", "--head", head]).args(words));
        node.wait_for("outray node ");
        node
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn said(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A process that is killed when the test is over.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        Running::start_with(command, Stdio::piped())
    }

    fn start_with(command: &mut Command, errors: Stdio) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out }
    }

    /// Reads until a line starts so.
    fn wait_for(&mut self, start: &str) -> String {
        let mut all = String::new();
        loop {
            let from = all.len();
            if self.out.read_line(&mut all).unwrap() == 0 {
                panic!("it ended without a line {start:?}: {all}{}", self.errors());
            }
            let line = all[from..].trim_end();
            if line.starts_with(start) {
                return line.to_owned();
            }
        }
    }

    /// What it writes until its end, unless that goes elsewhere.
    fn errors(&mut self) -> String {
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut errors).unwrap();
        }
        errors
    }

    /// Waits for its end: exit code and errors.
    fn end(mut self) -> (i32, String) {
        let errors = self.errors();
        (self.child.wait().unwrap().code().unwrap_or(-1), errors)
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells the test that it runs, and goes on when the test hangs up.
fn hold(address: String) -> usize {
    eprintln!("a line of hold");
    println!("another, to stdout");
    assert!(Command::new("echo").arg("a line of its child").status().unwrap().success());
    let mut test = TcpStream::connect(address).unwrap();
    test.read(&mut [0]).unwrap()
}

struct Counter(u64);

impl Counter {
    fn add(&mut self, n: u64) -> u64 {
        self.0 += n;
        self.0
    }

    fn hold(&mut self, address: String) -> usize {
        hold(address)
    }
}

/// Runs a task of its own, which stays in its worker.
fn nest(address: String) -> usize {
    let rt = outray::Runtime::current();
    rt.task(hold).name("inside").submit(address).get().unwrap()
}

/// Not a test: the program that the tests run on their clusters.
#[test]
#[ignore = "the other tests run it"]
fn program() {
    let Ok(what) = std::env::var("PROGRAM") else { return };
    let tell = std::env::var("TELL").unwrap();
    if what == "its own cluster" {
        let cluster = outray::LocalCluster::start(2).unwrap();
        let rt = cluster.connect().unwrap();
        let big = [rt.submit(|n: usize| vec![7u8; n], 200_000)];
        assert_eq!(rt.wait(&big, 1, None).0.len(), 1);
        let pids: Vec<_> = cluster.pids().iter().map(u32::to_string).collect();
        println!("\nprocesses: {}", pids.join(" "));
        let held = rt.submit(hold, tell).get();
        return println!("\nheld: {held:?}");
    }
    match outray::Runtime::from_env() {
        Ok(rt) if what == "detach" => {
            let counter = rt.actor_builder(Counter).name("lasting").detached().try_start(10).unwrap();
            println!("\nit counts: {:?}", counter.call(Counter::add, 1).get());
        }
        Ok(rt) if what == "find" => {
            let counter = rt.get_actor::<Counter>("lasting").unwrap();
            println!("\nit counts: {:?}", counter.call(Counter::add, 1).get());
            counter.kill();
        }
        Ok(rt) => {
            let counter = rt.actor(Counter, 1);
            assert_eq!(counter.call(Counter::add, 1).get(), Ok(2));
            if what == "inside" {
                let (nest, call) = (rt.submit(nest, tell.clone()), counter.call(Counter::hold, tell));
                println!("\nheld: {:?}", (nest.get(), call.get()));
                return;
            }
            let big = [rt.submit(|n: usize| vec![7u8; n], 200_000)];
            assert_eq!(rt.wait(&big, 1, None).0.len(), 1);
            let held = rt.task(hold).name("holder").submit(tell);
            println!("\nheld: {:?}", held.get());
            drop(big);
            if what == "timeline" {
                let file = PathBuf::from(std::env::var("HOME").unwrap()).join("driver.json");
                println!("\ntimeline: {:?}", rt.timeline(file));
            }
        }
        Err(error) => println!("\nnot connected: {error}"),
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn wrong_arguments_are_named_with_what_is_possible() {
    let home = Home::new();
    let cases: &[(&[&str], &str)] = &[
        (&["start"], "known are head, node"),
        (&["--fast"], "`--fast` is not known"),
        (&["head", "--port", "1"], "`--port`; its options are --bind"),
        (&["head", "--bind", "here"], "`--bind here`: an address is HOST:PORT"),
        (&["head", "--bind"], "`--bind` needs a value"),
        (&["node"], "give --head HOST:PORT"),
        (&["node", "--head", "h:1", "--cpus", "many"], "`many` is no amount"),
        (&["node", "--head", "h:1", "--memory", "4 apples"], "KiB, MiB"),
        (&["node", "--head", "h:1", "--resource", "licence"], "NAME=AMOUNT"),
        (&["node", "--head", "h:1", "--resource", "licence=x"], "`x` is no amount"),
        (&["node", "--head", "h:1", "--label", "=a"], "KEY=VALUE"),
        (&["list"], "needs one more word: nodes, jobs"),
        (&["list", "files"], "known are nodes, jobs, tasks, actors, objects and placement-groups"),
        (&["status", "--jsn"], "its options are --address and --json"),
        (&["status", "now"], "`now`"),
        (&["timeline"], "needs FILE"),
        (&["key"], "needs one more word: new"),
    ];
    for (words, expected) in cases {
        let (code, out, errors) = home.run(words);
        assert!(code == 2 && out.is_empty() && errors.contains(expected), "{words:?}: {code} {out}{errors}");
        assert!(errors.contains("--help"), "{words:?}: {errors}");
    }
}

#[test]
fn each_command_has_help() {
    let home = Home::new();
    assert!(home.ok(&[]).contains("usage: outray COMMAND"));
    assert!(home.ok(&["help"]).contains("placement groups"));
    assert_eq!(home.ok(&["--version"]).trim(), concat!("outray ", env!("CARGO_PKG_VERSION")));
    for command in ["head", "node", "status", "list", "memory", "logs", "timeline", "stop", "key"] {
        for word in ["--help", "-h"] {
            let help = home.ok(&[command, word]);
            assert!(help.contains(&format!("usage: outray {command}")), "{command}: {help}");
        }
    }
    assert!(home.ok(&["list", "nodes", "--help"]).contains("usage: outray list"));
    assert!(home.ok(&["key", "new", "--help"]).contains("usage: outray key new"));
}

#[test]
fn a_key_is_private_and_is_not_overwritten() {
    let home = Home::new();
    let said = home.ok(&["key", "new"]);
    let path = home.0.join(".outray/key");
    assert!(said.contains(".outray/key") && !said.contains("OUTRAY_KEY_FILE"), "{said}");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let before = fs::read(&path).unwrap();
    let (code, _, errors) = home.run(&["key", "new"]);
    assert!(code == 1 && errors.contains("not overwritten"), "{code} {errors}");
    assert_eq!(fs::read(&path).unwrap(), before);
    let other = home.0.join("other");
    let said = home.ok(&["key", "new", other.to_str().unwrap()]);
    assert!(said.contains("export OUTRAY_KEY_FILE="), "{said}");
    assert_ne!(fs::read(&other).unwrap(), before);
}

#[test]
fn a_head_says_why_it_cannot_start() {
    let home = Home::new();
    let (_head, address) = home.head();
    let (code, _, errors) = home.run(&["head", "--bind", &address]);
    assert!(code == 1 && errors.contains("in use") && errors.contains("--bind"), "{code} {errors}");
    let (code, _, errors) = home.run(&["head", "--bind", "0.0.0.0:0"]);
    assert!(code == 1 && errors.contains("outray key new") && errors.contains("127.0.0.1"), "{code} {errors}");
}

/// The command as it would be in another version, and that version.
fn of_another_version(home: &Home) -> (PathBuf, String) {
    let ours = env!("CARGO_PKG_VERSION");
    let other: String = ours.chars().map(|c| c.to_digit(10).map_or(c, |digit| (b'9' - digit as u8).into())).collect();
    let mut program = fs::read(env!("CARGO_BIN_EXE_outray")).unwrap();
    let mut at = 0;
    while let Some(found) = program[at..].windows(ours.len()).position(|part| part == ours.as_bytes()) {
        at += found;
        program[at..at + other.len()].copy_from_slice(other.as_bytes());
    }
    let path = home.0.join("outray-of-another-version");
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    (path, other)
}

#[test]
fn a_node_of_another_version_is_refused_and_both_versions_are_named() {
    let (home, ours) = (Home::new(), env!("CARGO_PKG_VERSION"));
    let (program, other) = of_another_version(&home);
    let run = |words: &[&str]| {
        loop {
            match home.process(&program).args(words).output() {
                // Another test may be starting a process, which has the file open for a moment.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                output => return said(output.unwrap()),
            }
        }
    };
    assert_eq!(run(&["--version"]).1.trim(), format!("outray {other}"));
    let (_head, address) = home.head();
    let words: [&[&str]; 2] = [&["node", "--head", &address], &["status", "--address", &address]];
    for words in words {
        let (code, out, errors) = run(words);
        assert!(code == 1 && out.is_empty(), "{words:?}: {code} {out}{errors}");
        assert!(errors.contains(ours) && errors.contains(&other), "{words:?}: {errors}");
    }
    assert_eq!(home.json(&["list", "nodes", "--json", "--address", &address]).as_array().unwrap().len(), 0);
    assert!(home.ok(&["status", "--address", &address]).contains("CPUs     0 of 0 in use"));
}

#[test]
fn a_node_that_listens_everywhere_says_where_it_is_reached() {
    let home = Home::new();
    home.ok(&["key", "new"]);
    let (_head, address) = home.head();
    let _wide = home.node(&address, &["--bind", "0.0.0.0:0", "--name", "wide", "--cpus", "0"]);
    let _named = home.node(&address, &["--bind", "0.0.0.0:0", "--name", "named", "--advertise", "localhost"]);
    let nodes = home.json(&["list", "nodes", "--json", "--address", &address]);
    let host = |name: &str| {
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == name).unwrap();
        node["address"].as_str().unwrap().rsplit_once(':').unwrap().0.to_owned()
    };
    assert_eq!(host("named"), "localhost");
    // Where this machine's way to others begins, if it has one.
    let way = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9").map(|()| socket));
    if let Ok(way) = way {
        assert_eq!(host("wide"), way.local_addr().unwrap().ip().to_string());
    }
    let tell = listener();
    let mut program = home.program("", &address, &tell);
    drop(tell.accept().unwrap());
    program.wait_for("held: Ok");
}

/// Whether whoever has started the tests has them ignore Ctrl-C, as `nohup` in a shell's background does; what they start
/// does so, too.
fn is_deaf_to_ctrl_c() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> 1 & 1 > 0)
}

#[test]
fn a_program_that_is_killed_leaves_nothing_of_its_own_cluster() {
    let signals = if is_deaf_to_ctrl_c() { &["-KILL"][..] } else { &["-INT", "-KILL"] };
    for signal in signals {
        let (home, tell) = (Home::new(), listener());
        let mut command = home.process(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "program"]).env("PROGRAM", "its own cluster");
        command.env("TELL", tell.local_addr().unwrap().to_string()).env("TMPDIR", &home.0).process_group(0);
        let mut program = Running::start(&mut command);
        let processes = program.wait_for("processes: ");
        let _held = tell.accept().unwrap();
        // To its group, as a terminal and `timeout` do.
        let group = format!("-{}", program.child.id());
        assert!(Command::new("kill").args([signal, "--", &group]).status().unwrap().success());
        // All that belong to it have its stderr, which ends with the last of them.
        program.errors();
        let left: Vec<_> = fs::read_dir(&home.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{signal}: {left:?}");
        for pid in processes.trim_start_matches("processes: ").split(' ') {
            let is_its = |name: &str| name.starts_with("outray-store-") && name.contains(&format!("-{pid}-"));
            let mut shared = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
            assert!(!shared.any(|entry| is_its(&entry.file_name().to_string_lossy())), "{signal}: the store of {pid}");
        }
    }
}

#[test]
fn who_has_not_the_key_is_told_so() {
    let (home, stranger) = (Home::new(), Home::new());
    home.ok(&["key", "new"]);
    let (_head, address) = home.head();
    let _node = home.node(&address, &[]);
    let (code, _, errors) = stranger.run(&["status", "--address", &address]);
    assert!(code == 1 && errors.contains("has no key") && errors.contains("OUTRAY_KEY_FILE"), "{code} {errors}");
    stranger.ok(&["key", "new"]);
    let (code, _, errors) = stranger.run(&["node", "--head", &address]);
    assert!(code == 1 && errors.contains("the same key"), "{code} {errors}");
    assert_eq!(home.json(&["list", "nodes", "--json", "--address", &address]).as_array().unwrap().len(), 1);
}

#[test]
fn what_does_not_answer_is_named() {
    let home = Home::new();
    // A port that nobody listens at: it was free a moment ago.
    let address = listener().local_addr().unwrap().to_string();
    for words in [&["status"][..], &["stop"], &["list", "tasks"], &["logs"], &["memory"]] {
        let (code, _, errors) = home.run(&[words, &["--address", &address]].concat());
        let is_said = errors.contains("nothing listens") && errors.contains(&address);
        assert!(code == 1 && is_said, "{words:?}: {code} {errors}");
    }
    let (code, _, errors) = home.run(&["node", "--head", &address]);
    assert!(code == 1 && errors.contains("is `outray head` running there?"), "{code} {errors}");
}

#[test]
fn a_cluster_is_started_looked_at_and_stopped() {
    let home = Home::new();
    let (head, address) = home.head();
    let at = ["--address", address.as_str()];
    let ask = |words: &[&str]| home.ok(&[words, &at].concat());
    let json = |words: &[&str]| home.json(&[words, &at, &["--json"]].concat());
    assert!(ask(&["status"]).contains(&format!("outray node --head {address}")));
    let words = "--name alice --cpus 2 --gpus 2 --memory 4GiB --store 64MiB --label zone=a --label disk=ssd \
                 --resource licence=3 --resource seat=0.5";
    let node = home.node(&address, &words.split_whitespace().collect::<Vec<_>>());

    let nodes = json(&["list", "nodes"]);
    let row = &nodes[0];
    assert_eq!((row["name"].as_str(), row["labels"]["zone"].as_str()), (Some("alice"), Some("a")), "{nodes}");
    assert_eq!((row["capacity"]["cpus"].as_f64(), row["capacity"]["memory"].as_u64()), (Some(2.0), Some(4 << 30)));
    assert_eq!(row["capacity"]["resources"], serde_json::json!({ "licence": 3.0, "seat": 0.5 }));
    assert_eq!((row["capacity"]["gpus"].clone(), row["labels"]["disk"].as_str()), (vec![1.0; 2].into(), Some("ssd")));
    let text = ask(&["list", "nodes"]);
    assert_eq!(text.matches("0 of 2").count(), 2, "CPUs and GPUs: {text}");
    assert!(text.contains("zone=a") && text.contains("disk=ssd") && text.contains("4.0 GiB"), "{text}");
    let status = json(&["status"]);
    assert_eq!(
        (status["head"]["address"].as_str(), status["nodes"][0]["name"].as_str()),
        (Some(&*address), Some("alice"))
    );

    let test = listener();
    let mut program = home.program("timeline", &address, &test);
    let (held, _) = test.accept().unwrap();
    let status = ask(&["status"]);
    assert!(status.contains("CPUs     1 of 2 in use") && status.contains("actors   1"), "{status}");
    let tasks = json(&["list", "tasks"]);
    let task = &tasks[0];
    assert_eq!((task["name"].as_str(), task["state"].as_str()), (Some("holder"), Some("running")), "{tasks}");
    assert_eq!(task["node"].as_str(), Some("alice"));
    let worker = task["pid"].as_u64().unwrap();
    assert!(Path::new(&format!("/proc/{worker}")).exists());
    let text = ask(&["list", "tasks"]);
    assert!(text.starts_with("TASK") && text.contains("holder") && text.contains("cluster_commands"), "{text}");
    let actors = json(&["list", "actors"]);
    assert!(actors[0]["name"].as_str().unwrap().contains("Counter"), "{actors}");
    assert_eq!((actors[0]["state"].as_str(), actors[0]["pid"].as_u64()), (Some("alive"), Some(worker)));
    assert!(ask(&["list", "actors"]).contains("Counter"));
    let objects = json(&["list", "objects"]);
    assert!(objects[0]["bytes"].as_u64() >= Some(200_000), "{objects}");
    assert!(ask(&["list", "objects"]).contains("KiB"));
    let jobs = json(&["list", "jobs"]);
    assert_eq!(jobs[0]["pid"].as_u64(), Some(program.child.id().into()), "{jobs}");
    assert!(ask(&["list", "jobs"]).contains("cluster_commands"));
    assert_eq!(json(&["list", "placement-groups"]), serde_json::json!([]));
    assert!(ask(&["list", "placement-groups"]).starts_with("GROUP"));
    let memory = json(&["memory"]);
    assert_eq!(memory[0]["workers"][0]["pid"].as_u64(), Some(worker), "{memory}");
    assert!(ask(&["memory"]).contains("RESIDENT"));

    // The line was printed before the task connected, but a thread of the node's reads it.
    let mut follow = Running::start(home.outray(&["logs", "--follow", "--node", "alice"]).args(at));
    let mut line = String::new();
    while !line.contains("a line of hold") {
        line.clear();
        assert_ne!(follow.out.read_line(&mut line).unwrap(), 0, "{}", follow.errors());
    }
    assert!(line.contains(&format!("(holder, node alice, pid {worker}) a line of hold")), "{line}");
    assert!(ask(&["logs"]).contains("a line of hold"));
    assert!(ask(&["logs", "--json"]).lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    let (code, _, errors) = home.run(&["logs", "--node", "bob", "--address", &address]);
    assert!(code == 1 && errors.contains("there are alice"), "{errors}");

    drop(held);
    program.wait_for("held: Ok(0)");
    let line = program.wait_for("timeline: ");
    assert!(line.contains("was not recorded"), "{line}"); // it does not observe
    let file = home.0.join("trace.json");
    let said = ask(&["timeline", file.to_str().unwrap()]);
    let trace: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "holder" && event["cat"] == "task"), "{said}: {trace}");
    let is_call = |event: &Value| event["cat"] == "call" && event["name"].as_str().unwrap().contains("add");
    assert!(events.iter().any(is_call), "{said}: {trace}");
    assert!(events.iter().any(|event| event["args"]["name"] == "node alice"), "{trace}");
    let (code, errors) = program.end();
    assert_eq!(code, 0, "{errors}");
    for line in ["a line of hold", "another, to stdout", "a line of its child"] {
        assert!(errors.contains(&format!("(holder, node alice, pid {worker}) {line}\n")), "{line}: {errors}");
    }

    let said = ask(&["stop"]);
    assert!(said.contains("1 node"), "{said}");
    assert_eq!(head.end(), (0, String::new()));
    assert_eq!(node.end(), (0, String::new()));
    assert!(!Path::new(&format!("/proc/{worker}")).exists());
}

#[test]
fn a_driver_that_observes_has_the_timeline_of_the_cluster() {
    let home = Home::new();
    let (_head, address) = home.head();
    let _node = home.node(&address, &["--cpus", "2"]);
    let test = listener();
    let mut command = home.process(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "program"]).env("OUTRAY_OBSERVE", "1");
    command.env("OUTRAY_ADDRESS", &address).env("PROGRAM", "timeline");
    let mut program = Running::start(command.env("TELL", test.local_addr().unwrap().to_string()));
    drop(test.accept().unwrap());
    program.wait_for("held: Ok(0)");
    program.wait_for("timeline: Ok(())");
    let trace: Value = serde_json::from_slice(&fs::read(home.0.join("driver.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "holder" && event["ph"] == "X"), "{trace}");
}

#[test]
fn calls_are_listed_and_what_stays_in_a_worker_is_if_the_program_observes() {
    let home = Home::new();
    let (_head, address) = home.head();
    let _node = home.node(&address, &["--cpus", "2"]);
    let at = ["--address", address.as_str()];
    for observes in ["0", "1"] {
        let test = listener();
        let mut command = home.process(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "program"]).env("OUTRAY_OBSERVE", observes);
        command.env("OUTRAY_ADDRESS", &address).env("PROGRAM", "inside");
        let mut program = Running::start(command.env("TELL", test.local_addr().unwrap().to_string()));
        let held = [test.accept().unwrap(), test.accept().unwrap()];
        let tasks = home.json(&[&["list", "tasks", "--json"], &at[..]].concat());
        let row =
            |name: &str| tasks.as_array().unwrap().iter().find(|row| row["name"].as_str().unwrap().contains(name));
        let call = row("Counter::hold").unwrap_or_else(|| panic!("{tasks}"));
        assert_eq!((call["kind"].as_str(), call["state"].as_str()), (Some("call"), Some("running")), "{tasks}");
        assert_eq!(row("nest").unwrap()["state"], "running", "{tasks}");
        let inside = row("inside").map(|row| (row["kind"].clone(), row["state"].clone(), row["pid"].clone()));
        let expected = ("task".into(), "running".into(), call["pid"].clone());
        assert_eq!(inside, (observes == "1").then_some(expected), "{tasks}");
        assert!(home.ok(&[&["list", "tasks"], &at[..]].concat()).contains("call"));
        drop(held);
        program.wait_for("held: (Ok(0), Ok(0))");
        assert_eq!(program.end().0, 0);
    }
    let file = home.0.join("trace.json");
    home.ok(&[&["timeline", file.to_str().unwrap()], &at[..]].concat());
    let trace: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let of = |name: &str| {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        events.filter(|event| event["ph"] == "X" && event["name"].as_str().unwrap().contains(name)).count()
    };
    assert_eq!((of("nest"), of("Counter::hold")), (2, 2), "{trace}");
}

#[test]
fn signals_end_a_node_with_its_workers_and_a_head_with_its_nodes() {
    let home = Home::new();
    let (head, address) = home.head();
    let (first, second) = (home.node(&address, &["--cpus", "2"]), home.node(&address, &["--cpus", "1"]));
    let test = listener();
    let _program = home.program("", &address, &test);
    let (_held, _) = test.accept().unwrap();
    let tasks = home.json(&["list", "tasks", "--json", "--address", &address]);
    let nodes = || home.json(&["list", "nodes", "--json", "--address", &address]);
    let of_first = nodes().as_array().unwrap().iter().find(|node| node["pid"] == first.child.id()).unwrap().clone();
    let worker = match tasks[0]["node"] == of_first["name"] {
        true => tasks[0]["pid"].as_u64(),
        false => home
            .json(&["memory", "--json", "--address", &address])
            .as_array()
            .unwrap()
            .iter()
            .find(|node| node["node"] == of_first["node"])
            .and_then(|node| node["workers"][0]["pid"].as_u64()),
    };
    first.signal("-TERM");
    assert_eq!(first.end(), (0, String::new()));
    if let Some(worker) = worker {
        assert!(!Path::new(&format!("/proc/{worker}")).exists());
    }
    assert_eq!(nodes().as_array().unwrap().len(), 1);
    head.signal("-INT");
    assert_eq!(head.end(), (0, String::new()));
    assert_eq!(second.end(), (0, String::new()));
}

#[test]
fn a_node_and_a_program_whose_head_does_not_come_back_say_so() {
    let home = Home::new();
    let (head, address) = home.head();
    let mut node = home.outray(&["node", "--head", &address]);
    let mut node = Running::start(node.env("OUTRAY_HEAD_PATIENCE", "0"));
    node.wait_for("outray node ");
    let tell = listener();
    let mut program = Running::start(home.to_program("hold", &address, &tell).env("OUTRAY_HEAD_PATIENCE", "0"));
    let _held = tell.accept().unwrap();
    drop(head); // kills it
    let said = program.wait_for("held: ");
    assert!(said.contains("the head is gone"), "{said}");
    let (code, errors) = node.end();
    assert!(code == 1 && errors.contains("the head is gone"), "{code} {errors}");
}

#[test]
fn a_node_leaves_a_head_that_knows_nothing_of_its_cluster() {
    let home = Home::new();
    let (head, address) = home.head();
    let node = home.node(&address, &[]);
    drop(head); // kills it
    let mut other = Running::start(&mut home.outray(&["head", "--bind", &address]));
    other.wait_for("outray head at ");
    let (code, errors) = node.end();
    assert!(code == 1 && errors.contains("another one has taken its place"), "{code} {errors}");
}

/// The program is another executable than the head and the nodes: the head keeps it for the node.
#[test]
fn a_head_that_was_killed_goes_on_with_the_detached_actors_of_programs_that_have_ended() {
    let home = Home::new();
    let state = home.0.join("state");
    let start = |bind: &str| {
        let mut head = Running::start(home.outray(&["head", "--bind", bind, "--state"]).arg(&state));
        let line = head.wait_for("outray head at ");
        (head, line.trim_start_matches("outray head at ").to_owned())
    };
    let (head, address) = start("127.0.0.1:0");
    let _node = home.node(&address, &[]);
    let tell = listener();
    let mut program = home.program("detach", &address, &tell);
    assert_eq!(program.wait_for("it counts: "), "it counts: Ok(11)");
    assert_eq!(program.end().0, 0);
    drop(head); // kills it
    let (head, same) = start(&address);
    assert_eq!(same, address);
    let in_use = home.outray(&["head", "--bind", "127.0.0.1:0", "--state"]).arg(&state).output().unwrap();
    let (code, _, errors) = said(in_use);
    assert!(code == 1 && errors.contains("another head uses it"), "{code} {errors}");
    let mut program = home.program("find", &address, &tell);
    assert_eq!(program.wait_for("it counts: "), "it counts: Ok(12)");
    assert_eq!(program.end().0, 0);
    assert_eq!(home.json(&["stop", "--json", "--address", &address])["nodes"], 1);
    assert_eq!(head.end().0, 0);
}

/// The bytes that the key's file is about, as they are there.
fn secret(home: &Home) -> String {
    let file = fs::read_to_string(home.0.join(".outray/key")).unwrap();
    let secret = file.lines().last().unwrap().to_owned();
    assert!(secret.len() == 64 && secret.bytes().all(|byte| byte.is_ascii_hexdigit()));
    secret
}

/// Processes of a cluster that say all that they can say.
#[test]
fn without_the_key_nothing_can_be_done_and_the_key_is_nowhere_to_be_seen() {
    let home = Home::new();
    home.ok(&["key", "new"]);
    let state = home.0.join("state");
    let log = |name: &str| home.0.join(format!("{name}.log"));
    let start = |name: &str, command: &mut Command| {
        let file = fs::File::create(log(name)).unwrap();
        Running::start_with(command.env("OUTRAY_LOG", "trace"), file.into())
    };
    let mut head = start("head", home.outray(&["head", "--bind", "127.0.0.1:0", "--state"]).arg(&state));
    let address = head.wait_for("outray head at ").trim_start_matches("outray head at ").to_owned();
    let mut node = start("node", &mut home.outray(&["node", "--head", &address, "--cpus", "2"]));
    node.wait_for("outray node ");
    let tell = listener();
    let mut detached = home.program("detach", &address, &tell);
    detached.wait_for("it counts: ");
    assert_eq!(detached.end().0, 0);
    let mut program = home.program("", &address, &tell);
    let (held, _) = tell.accept().unwrap();
    let json = |words: &[&str]| home.json(&[words, &["--json", "--address", &address]].concat());
    let worker = json(&["list", "tasks"])[0]["pid"].as_u64().unwrap();

    let count = |what: &str| json(&["list", what]).as_array().unwrap().len();
    let counts = || (count("nodes"), count("jobs"), count("tasks"), count("actors"));
    let before = counts();

    // Somebody without a key, and somebody with another. All at once, for they wait for an answer.
    let (none, other) = (Home::new(), Home::new());
    other.ok(&["key", "new"]);
    let mut asked = Vec::new();
    let mut programs = Vec::new();
    for stranger in [&none, &other] {
        let words =
            ["status", "list jobs", "list objects", "memory", "logs", "timeline trace.json", "stop", "node --cpus 1"];
        for words in words {
            let mut command = stranger.outray(&words.split(' ').collect::<Vec<_>>());
            command.env("OUTRAY_ADDRESS", &address).current_dir(&stranger.0);
            asked.push((words, command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()));
        }
        programs.push(stranger.program("", &address, &tell));
    }
    for (words, child) in asked {
        let (code, out, errors) = said(child.wait_with_output().unwrap());
        assert!(code == 1 && out.is_empty() && errors.contains("key"), "{words}: {code} {out}{errors}");
    }
    for mut program in programs {
        let said = program.wait_for("not connected: ");
        assert!(said.contains("key"), "{said}");
    }
    assert_eq!(counts(), before);
    let logged = fs::read_to_string(log("head")).unwrap();
    assert!(logged.contains("connection refused"), "{logged}");

    // As it is written, and as bytes.
    let secret = secret(&home);
    let bytes: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&secret[2 * at..2 * at + 2], 16).unwrap()).collect();
    let shows = |bytes_of: &[u8]| {
        let contains = |part: &[u8]| bytes_of.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part));
        contains(&secret.as_bytes()[..16]) || contains(&bytes[..8])
    };
    assert!(shows(&fs::read(home.0.join(".outray/key")).unwrap()) && shows(&bytes), "the search finds it");
    for pid in [head.child.id().into(), node.child.id().into(), program.child.id().into(), worker] {
        for file in ["cmdline", "environ", "comm"] {
            let path = format!("/proc/{pid}/{file}");
            assert!(!shows(&fs::read(&path).unwrap()), "{path}");
        }
    }
    drop(held);
    program.wait_for("held: Ok");
    assert_eq!(program.end().0, 0);
    let kept = fs::read(state.join("control.redb")).unwrap();
    assert!(kept.windows(7).any(|part| part == b"lasting") && !shows(&kept), "what the head keeps");
    home.ok(&["stop", "--address", &address]);
    assert_eq!((head.end().0, node.end().0), (0, 0));
    for name in ["head", "node"] {
        assert!(!shows(&fs::read(log(name)).unwrap()), "the log of the {name}");
    }
}

/// Each is dropped; a line a second says so.
#[test]
fn refused_connections_are_a_few_lines_in_the_log_of_the_head() {
    let home = Home::new();
    home.ok(&["key", "new"]);
    let (head, address) = home.head();
    let greeting = {
        let mut bytes = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3, 0];
        bytes.extend(b"NULL");
        bytes.resize(64, 0);
        bytes.extend(b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x00\x05hello");
        bytes
    };
    for _ in 0..500 {
        let mut stranger = TcpStream::connect(&address).unwrap();
        stranger.write_all(&greeting).unwrap();
        let _ = stranger.read_to_end(&mut Vec::new()); // it is closed
    }
    home.ok(&["stop", "--address", &address]);
    let (code, errors) = head.end();
    let refused = errors.lines().filter(|line| line.contains("connection refused")).count();
    assert!(code == 0 && (1..100).contains(&refused), "{code}: {refused} lines: {errors}");
}

#[test]
fn a_log_that_is_none_is_refused_by_name() {
    let home = Home::new();
    let (code, _, errors) = said(home.outray(&["head"]).env("OUTRAY_LOG", "everything").output().unwrap());
    assert!(code == 1 && errors.contains("`everything`") && errors.contains("warn"), "{code} {errors}");
}

#[cfg(not(feature = "gpu-unversioned"))]
#[test]
fn gpus_says_which_feature_is_missing() {
    let said = Home::new().run(&["gpus"]);
    let why = "outray: this build has no GPU support: enable outray's feature `gpu`\n";
    assert_eq!(said, (3, String::new(), why.into()));
}

#[cfg(feature = "gpu-unversioned")]
mod gpus {
    use super::*;

    /// What the command says, on the stand-in for NVML in this state.
    fn gpus(words: &str, options: &[&str]) -> (i32, String, String) {
        // cargo puts it beside the tests.
        let library = std::env::current_exe().unwrap().with_file_name("libfake_nvml.so");
        let mut command = Home::new().outray(&["gpus"]);
        command.args(options).env("OUTRAY_NVML_PATH", library).env("FAKE_NVML", words);
        command.env_remove("CUDA_VISIBLE_DEVICES");
        said(command.output().unwrap())
    }

    #[test]
    fn gpus_prints_a_table_and_how_devices_are_joined() {
        let (code, out, errors) = gpus("devices=3 mig=2:1 process=0:4242:5368709120", &[]);
        assert_eq!((code, errors.as_str()), (0, ""));
        let lines: Vec<_> = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let expected = [
            "GPU NAME UUID MEMORY USED BY OTHERS CAPABILITY NUMA NODE BUSY NOTES",
            "0 NVIDIA H200 GPU-00000000-0000-0000-0000-000000000000 140 GiB 5.0 GiB 9.0 0 87 %",
            "1 NVIDIA H200 GPU-00000000-0000-0000-0000-000000000001 140 GiB 0 B 9.0 0 0 %",
            "2 NVIDIA H200 MIG 1g.18gb MIG-00000000-0000-0000-0002-000000000000 16 GiB 0 B 9.0 1 0 % MIG",
            "",
            "LINKS 0 1 2",
            "0 - NVLink system",
            "1 NVLink - system",
            "2 system system -",
        ];
        assert_eq!(lines, expected, "{out}");
        let links: Vec<_> = out.lines().skip_while(|line| !line.starts_with("LINKS")).collect();
        assert_eq!(links[..2], ["LINKS  0       1       2", "0      -       NVLink  system"]);
    }

    #[test]
    fn gpus_prints_exact_figures_as_json() {
        let (code, out, errors) = gpus("devices=1 process=0:4242:5", &["--json"]);
        assert_eq!((code, errors.as_str()), (0, ""));
        let expected = serde_json::json!([{
            "index": 0,
            "uuid": "GPU-00000000-0000-0000-0000-000000000000",
            "name": "NVIDIA H200",
            "memory_bytes": 143_171_u64 << 20,
            "capability": "9.0",
            "numa_node": 0,
            "mig": false,
            "links": [null],
            "used_bytes": 5,
            "used_by_others_bytes": 5,
            "busy_percent": 87,
        }]);
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), expected);
    }

    #[test]
    fn without_a_gpu_gpus_ends_with_code_3_and_one_sentence() {
        let none = "outray: the CUDA driver shows no device\n";
        assert_eq!(gpus("devices=0", &["--json"]), (3, String::new(), none.into()));
        let lost = "outray: GPU 0 is lost: it fell off the bus or needs a reset\n";
        assert_eq!(gpus("devices=1 fails=0:15", &[]), (3, String::new(), lost.into()));
    }

    #[test]
    fn gpus_has_help_and_no_arguments() {
        let home = Home::new();
        assert!(home.ok(&["gpus", "--help"]).contains("usage: outray gpus [--json]"));
        let (code, _, errors) = home.run(&["gpus", "--address", "host:1"]);
        assert_eq!((code, errors.contains("its options are")), (2, true), "{errors}");
    }
}
