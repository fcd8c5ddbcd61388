//! The command `outray`.
//!
//! Exit codes: 0, it did what it was asked to; 1, it could not; 2, the command line is wrong; 3, there is no GPU.

mod arguments;
mod guest;
mod help;
mod show;
mod table;

use super::{
    driver::own_host,
    protocol::NAME,
    roles::{self, HeadSetup, NodeSetup},
    runs,
    secure::Key,
    signals,
    wire::Question,
};
use crate::{
    error::Error,
    gpu::{self, GpuError, Inventory, Link},
};
use arguments::{Arguments, Wrong};
use guest::Guest;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env, fmt,
    fs::{self, DirBuilder, File},
    io::{self, BufWriter, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tracing_subscriber::filter::LevelFilter;

/// Where a head listens if nothing else is said.
const ADDRESS: &str = "127.0.0.1:6380";
/// How much heads and nodes say of what happens to them.
const LOG: &str = "OUTRAY_LOG";
/// How often `logs --follow` asks.
const FOLLOW: Duration = Duration::from_millis(300);

/// Why a command ends without having done its work.
enum Failed {
    /// The command line is wrong.
    Usage(Wrong),
    Error(String),
    /// This machine has no GPU that can be used.
    NoGpu(GpuError),
    /// Nobody reads what it prints any more.
    NobodyReads,
}

impl From<Wrong> for Failed {
    fn from(wrong: Wrong) -> Self {
        Failed::Usage(wrong)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Error(match error {
            Error::Unsupported { reason } => reason,
            error => error.to_string(),
        })
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failed::NobodyReads,
            _ => Failed::Error(error.to_string()),
        }
    }
}

fn failed(error: impl fmt::Display) -> Failed {
    Failed::Error(error.to_string())
}

/// Does what the process's arguments say.
pub fn main() -> ExitCode {
    match run(Arguments::of_process()) {
        Ok(()) | Err(Failed::NobodyReads) => ExitCode::SUCCESS,
        Err(Failed::Error(why)) => {
            eprintln!("outray: {why}");
            ExitCode::from(1)
        }
        Err(Failed::Usage(wrong)) => {
            eprintln!("outray: {wrong}");
            ExitCode::from(2)
        }
        Err(Failed::NoGpu(why)) => {
            eprintln!("outray: {why}");
            ExitCode::from(3)
        }
    }
}

fn run(mut arguments: Arguments) -> Result<(), Failed> {
    let Some(command) = arguments.command("", &help::COMMANDS)? else {
        return say(help::ALL);
    };
    match command.as_str() {
        "head" => head(arguments),
        "node" => node(arguments),
        "status" => status(arguments),
        "list" => list(arguments),
        "memory" => memory(arguments),
        "logs" => logs(arguments),
        "gpus" => gpus(arguments),
        "timeline" => timeline(arguments),
        "stop" => stop(arguments),
        "key" => key(arguments),
        "version" => say(concat!("outray ", env!("CARGO_PKG_VERSION"))),
        // The rest of the names that `command` lets through.
        _ => say(help::ALL),
    }
}

fn say(text: &str) -> Result<(), Failed> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// What happens to a head or a node is written to stderr: connections that were refused, processes that were lost.
fn log() -> Result<(), Failed> {
    let level = match env::var(LOG) {
        Ok(text) if !text.is_empty() => text.parse::<LevelFilter>().map_err(|_| {
            failed(format!("{LOG} is `{text}`: it is off, error, warn (which is the default), info, debug or trace"))
        })?,
        _ => LevelFilter::WARN,
    };
    // If this process has another already, that is the user's wish.
    let _ = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_ansi(false).try_init();
    Ok(())
}

/// Signals are caught when everything is ready: until then they end the process as usual.
fn catch_signals() -> Result<(), Failed> {
    signals::catch().map_err(|error| failed(format!("Ctrl-C and SIGTERM cannot be caught: {error}")))
}

fn head(mut arguments: Arguments) -> Result<(), Failed> {
    let (mut bind, mut state) = (ADDRESS.to_owned(), None);
    while let Some(option) = arguments.option("head", &["--bind", "--state"])? {
        match option.as_str() {
            "--bind" => bind = arguments.address("--bind")?,
            "--state" => state = Some(PathBuf::from(arguments.text("--state")?)),
            _ => return say(help::HEAD),
        }
    }
    log()?;
    let has_key = super::key_from_env()?.is_some();
    let state = state.or_else(|| self::state(&bind));
    catch_signals()?;
    let ready = |address: &str| {
        let key = match has_key {
            true => {
                "It has a key: nodes and programs need the same file, at ~/.outray/key or named by OUTRAY_KEY_FILE."
            }
            false => "It has no key, so it listens to this machine only. For other machines: outray key new",
        };
        let port = address.rsplit(':').next().unwrap_or_default();
        let is_wide = bind.starts_with("0.0.0.0:") || bind.starts_with("[::]:");
        let host = own_host(address).unwrap_or_else(|| "HOST".into());
        let shown = if is_wide { format!("{host}:{port}") } else { address.to_owned() };
        let host = match is_wide {
            true => format!("\n(Instead of {host}: any name or address of this machine.)"),
            false => String::new(),
        };
        // Without a reader it serves all the same.
        let _ = say(&format!(
            "outray head at {address}\n{key}\n\nstart a node:       outray node --head {shown}\n\
             connect a program:  OUTRAY_ADDRESS={shown} PROGRAM\nstop the cluster:   outray stop --address {shown}{host}"
        ));
    };
    let setup = HeadSetup { bind: bind.clone(), key_file: None, state, cache: cache().ok(), directory: None };
    roles::head(&setup, ready).map_err(|error| match Failed::from(error) {
        Failed::Error(why) if why.contains("in use") => {
            Failed::Error(format!("{why}; does another head run there? --bind HOST:PORT takes another port"))
        }
        other => other,
    })?;
    say("the head has ended")
}

fn node(mut arguments: Arguments) -> Result<(), Failed> {
    let mut head = None;
    let mut setup = NodeSetup {
        head: String::new(),
        bind: None,
        advertise: None,
        directory: None,
        key_file: None,
        spill: cache()?.join("spilled"),
        cache: cache()?,
        store: None,
        cpus: None,
        gpus: roles::Gpus::Machine,
        memory: None,
        resources: BTreeMap::new(),
        labels: BTreeMap::new(),
    };
    let options = [
        "--head",
        "--bind",
        "--advertise",
        "--cpus",
        "--gpus",
        "--memory",
        "--store",
        "--resource",
        "--label",
        "--name",
    ];
    while let Some(option) = arguments.option("node", &options)? {
        match option.as_str() {
            "--head" => head = Some(arguments.address("--head")?),
            "--bind" => setup.bind = Some(arguments.address("--bind")?),
            "--advertise" => setup.advertise = Some(arguments.host("--advertise")?),
            "--cpus" => setup.cpus = Some(arguments.amount("--cpus")?),
            "--gpus" => setup.gpus = roles::Gpus::Simulated(Inventory::simulated(arguments.count("--gpus")?)),
            "--memory" => setup.memory = Some(arguments.bytes("--memory")?),
            "--store" => setup.store = Some(arguments.bytes("--store")?),
            "--resource" => {
                let (name, amount) = arguments.pair("--resource", "NAME=AMOUNT")?;
                setup.resources.insert(name, arguments::amount("--resource", &amount)?);
            }
            "--label" => {
                let (name, value) = arguments.pair("--label", "KEY=VALUE")?;
                setup.labels.insert(name, value);
            }
            "--name" => {
                setup.labels.insert(NAME.into(), arguments.text("--name")?);
            }
            _ => return say(help::NODE),
        }
    }
    // The head may be named like for the other commands.
    let named = head.or_else(|| env::var("OUTRAY_ADDRESS").ok().filter(|address| !address.is_empty()));
    setup.head = named.ok_or_else(|| {
        Wrong::new("node", "it does not know its head: give --head HOST:PORT, as `outray head` prints it")
    })?;
    log()?;
    catch_signals()?;
    let (head, label) = (setup.head.clone(), setup.labels.get(NAME).cloned());
    let ready = |name: &str, address: &str| {
        let called = label.map_or_else(|| name.to_owned(), |label| format!("{label} ({name})"));
        // As above.
        let _ = say(&format!("outray node {called} at {address}, of the head at {head}"));
    };
    roles::node(setup, |_| (), ready)?;
    say("the node has ended")
}

/// Where the head that listens there keeps its state. At a port of the system's choice nobody would find it again.
fn state(bind: &str) -> Option<PathBuf> {
    let port = bind.rsplit(':').next().filter(|port| *port != "0")?;
    let given = env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = given.or_else(|| env::home_dir().map(|home| home.join(".local/state")))?;
    Some(state.join("outray").join(format!("head-{port}")))
}

/// Where executables are kept.
fn cache() -> Result<PathBuf, Failed> {
    let given = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = given.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let none = || failed("there is no place for executables: neither XDG_CACHE_HOME nor HOME is set");
    cache.map(|cache| cache.join("outray")).ok_or_else(none)
}

/// Reads the options that all questions have, and then the others by `other`; `None`: help was asked for.
fn asking(
    arguments: &mut Arguments,
    command: &'static str,
    options: &[&str],
    mut other: impl FnMut(&mut Arguments, &str) -> Result<(), Wrong>,
) -> Result<Option<(String, bool)>, Wrong> {
    let (mut address, mut is_json) = (None, false);
    let all: Vec<_> = ["--address", "--json"].iter().chain(options).copied().collect();
    while let Some(option) = arguments.option(command, &all)? {
        match option.as_str() {
            "--address" => address = Some(arguments.address("--address")?),
            "--json" => is_json = true,
            "--help" => return Ok(None),
            option => other(arguments, option)?,
        }
    }
    let from_env = || env::var("OUTRAY_ADDRESS").ok().filter(|address| !address.is_empty());
    Ok(Some((address.or_else(from_env).unwrap_or_else(|| ADDRESS.into()), is_json)))
}

fn no_others(_: &mut Arguments, _: &str) -> Result<(), Wrong> {
    Ok(())
}

/// Prints an answer as it is, or as people read it.
fn print(answer: &Value, is_json: bool, text: impl FnOnce(&Value) -> String) -> Result<(), Failed> {
    let text = match is_json {
        true => format!("{answer:#}"),
        false => text(answer),
    };
    say(text.trim_end())
}

fn status(mut arguments: Arguments) -> Result<(), Failed> {
    let Some((address, is_json)) = asking(&mut arguments, "status", &[], no_others)? else { return say(help::STATUS) };
    let answer = Guest::connect(&address)?.ask(Question::Status)?;
    print(&answer, is_json, show::status)
}

fn list(mut arguments: Arguments) -> Result<(), Failed> {
    let kinds = ["nodes", "jobs", "tasks", "actors", "objects", "placement-groups"];
    let Some(kind) = arguments.command("list", &kinds)? else { return say(help::LIST) };
    let Some((address, is_json)) = asking(&mut arguments, "list", &[], no_others)? else { return say(help::LIST) };
    let (question, text): (_, fn(&Value) -> String) = match kind.as_str() {
        "nodes" => (Question::Nodes, show::nodes),
        "jobs" => (Question::Jobs, show::jobs),
        "tasks" => (Question::Tasks { job: None }, show::tasks),
        "actors" => (Question::Actors { job: None }, show::actors),
        "objects" => (Question::Objects, show::objects),
        "placement-groups" => (Question::PlacementGroups, show::placement_groups),
        _ => return say(help::LIST),
    };
    let mut answer = Guest::connect(&address)?.ask(question)?;
    // Each node has answered with a list of its own.
    if let Value::Array(rows) = &mut answer
        && rows.iter().all(Value::is_array)
    {
        *rows = rows.iter_mut().filter_map(Value::as_array_mut).flat_map(std::mem::take).collect();
    }
    print(&answer, is_json, text)
}

fn memory(mut arguments: Arguments) -> Result<(), Failed> {
    let Some((address, is_json)) = asking(&mut arguments, "memory", &[], no_others)? else { return say(help::MEMORY) };
    let answer = Guest::connect(&address)?.ask(Question::Memory)?;
    print(&answer, is_json, show::memory)
}

fn logs(mut arguments: Arguments) -> Result<(), Failed> {
    let (mut node, mut follows) = (None, false);
    let other = |arguments: &mut Arguments, option: &str| {
        match option {
            "--node" => node = Some(arguments.text("--node")?),
            _ => follows = true,
        }
        Ok(())
    };
    let Some((address, is_json)) = asking(&mut arguments, "logs", &["--node", "--follow"], other)? else {
        return say(help::LOGS);
    };
    let guest = Guest::connect(&address)?;
    let mut after = BTreeMap::new();
    loop {
        let answer = guest.ask(Question::Lines { node: node.clone(), after: after.clone() })?;
        let lines = show::Lines::of(&answer);
        if let Some(node) = &node
            && !lines.is_meant
        {
            return Err(failed(format!("there is no node {node:?}; there are {}", lines.nodes.join(", "))));
        }
        after.extend(lines.last);
        let mut out = io::stdout().lock();
        for line in &lines.lines {
            match is_json {
                true => writeln!(out, "{line}")?,
                false => writeln!(out, "{}", show::line(line))?,
            }
        }
        out.flush()?;
        if !follows {
            return Ok(());
        }
        std::thread::sleep(FOLLOW);
    }
}

/// Of this machine, without a cluster.
fn gpus(mut arguments: Arguments) -> Result<(), Failed> {
    let mut is_json = false;
    while let Some(option) = arguments.option("gpus", &["--json"])? {
        match option.as_str() {
            "--json" => is_json = true,
            _ => return say(help::GPUS),
        }
    }
    let source = gpu::detect().map_err(Failed::NoGpu)?;
    let inventory = source.inventory().map_err(Failed::NoGpu)?;
    let link = |link: Option<Link>| {
        link.map(|link| match link {
            Link::NvLink => "NVLink",
            Link::PcieSwitch => "switch",
            Link::HostBridge => "bridge",
            Link::System => "system",
        })
    };
    let device = |(place, device): (usize, &gpu::DeviceInfo)| {
        let mut shown = json!({
            "index": device.index,
            "uuid": device.uuid,
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "capability": device.capability.to_string(),
            "numa_node": device.numa_node,
            "mig": device.mig,
            "links": (0..inventory.devices.len()).map(|other| link(inventory.link(place, other))).collect::<Vec<_>>(),
        });
        match source.usage(device) {
            Ok(usage) if !usage.lost => {
                shown["used_bytes"] = usage.used_bytes.into();
                shown["used_by_others_bytes"] = usage.external_bytes.into();
                shown["busy_percent"] = usage.busy_percent.into();
            }
            Ok(_) => shown["problem"] = GpuError::DeviceLost { device: device.index }.to_string().into(),
            Err(error) => shown["problem"] = error.to_string().into(),
        }
        shown
    };
    let devices = inventory.devices.iter().enumerate().map(device).collect();
    print(&Value::Array(devices), is_json, show::gpus_here)
}

fn timeline(mut arguments: Arguments) -> Result<(), Failed> {
    let Some(path) = arguments.file("timeline", "FILE")? else { return say(help::TIMELINE) };
    let Some((address, _)) = asking(&mut arguments, "timeline", &[], no_others)? else { return say(help::TIMELINE) };
    let answer = Guest::connect(&address)?.ask(Question::Runs { job: None })?;
    let nodes = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let written = File::create(&path).and_then(|file| runs::write_trace(nodes, BufWriter::new(file)));
    let count = written.map_err(|error| failed(format!("{} cannot be written: {error}", path.display())))?;
    say(&format!("{}: {count} runs on {} nodes; open it at https://ui.perfetto.dev", path.display(), nodes.len()))
}

fn stop(mut arguments: Arguments) -> Result<(), Failed> {
    let Some((address, is_json)) = asking(&mut arguments, "stop", &[], no_others)? else { return say(help::STOP) };
    let answer = Guest::connect(&address)?.ask(Question::Stop)?;
    print(&answer, is_json, |answer| {
        format!(
            "the head at {address} ends, and {}",
            table::count(answer["nodes"].as_u64().unwrap_or_default(), "node")
        )
    })
}

fn key(mut arguments: Arguments) -> Result<(), Failed> {
    let Some(what) = arguments.command("key", &["new"])? else { return say(help::KEY) };
    if what != "new" {
        return say(help::KEY);
    }
    let usual = || env::home_dir().map(|home| home.join(".outray/key"));
    let path = match arguments.file_if_any("key new")? {
        arguments::File::Help => return say(help::KEY),
        arguments::File::Given(path) => path,
        arguments::File::None => {
            usual().ok_or_else(|| failed("HOME is not set: say where the key is to be, `outray key new PATH`"))?
        }
    };
    let key = Key::generate().map_err(failed)?;
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty() && !directory.exists())
    {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|error| failed(format!("the directory {} cannot be made: {error}", directory.display())))?;
    }
    key.save(&path).map_err(failed)?;
    let path = fs::canonicalize(&path).unwrap_or(path);
    let use_it = match usual().and_then(|usual| fs::canonicalize(usual).ok()).as_deref() == Some(Path::new(&path)) {
        true => "heads, nodes and programs of this user find it there".into(),
        false => format!("to use it: export OUTRAY_KEY_FILE={}", path.display()),
    };
    say(&format!(
        "a new cluster key is in {}; {use_it}.\nCopy it to each machine, readable for its user only. Whoever has it can run code on the cluster.",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{bulk, endpoint};

    #[test]
    fn whoever_says_nothing_listens_to_this_machine_only() {
        for bind in [ADDRESS, &endpoint::Config::default().bind, &bulk::Config::default().bind] {
            let address: std::net::SocketAddr = bind.parse().expect("an address");
            assert!(address.ip().is_loopback(), "{bind}");
        }
    }
}
