//! Several processes. A child is this test binary, run with the one test `child`; it does what it is told,
//! line by line.

use super::*;
use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{self, Command, Stdio},
};

const ROLE: &str = "OUTRAY_TEST_STORE_CHILD";
const ANSWER: &str = "answer: ";

/// A child process. It ends with this value, or with the parent, whose end closes its input.
struct Child {
    process: process::Child,
    output: BufReader<process::ChildStdout>,
}

impl Child {
    fn start() -> Child {
        Child::start_in(Command::new(std::env::current_exe().expect("this test")))
    }

    /// `command` is this test, or runs what its further arguments say.
    fn start_in(mut command: Command) -> Child {
        let name = format!("{}::child", module_path!().split_once("::").expect("a crate").1);
        command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(ROLE, "yes");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        Child { process, output }
    }

    fn ask(&mut self, command: &str) -> String {
        self.try_ask(command).expect("an answer")
    }

    fn try_ask(&mut self, command: &str) -> Option<String> {
        writeln!(self.process.stdin.as_ref()?, "{command}").ok()?;
        let mut lines = self.output.by_ref().lines().map_while(Result::ok);
        lines.find_map(|line| Some(line.split_once(ANSWER)?.1.to_string()))
    }

    fn kill(mut self) {
        self.process.kill().expect("it lives");
        self.process.wait().expect("it has ended");
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
    if std::env::var(ROLE).is_err() {
        return;
    }
    let (mut mapped, mut drafts, mut stores) = (Vec::new(), Vec::new(), Vec::new());
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        let size = |word: &str| word.parse::<u64>().expect("a size");
        let answer = match words[..] {
            ["map", path, length] => map(Path::new(path), size(length)).map(|bytes| {
                mapped.push(bytes);
                "mapped".to_string()
            }),
            ["pages"] => Ok(format!("{:?}", page_frames(mapped.last().expect("it is mapped")))),
            ["read"] => {
                Ok(mapped.last().expect("it is mapped").iter().map(|byte| u64::from(*byte)).sum::<u64>().to_string())
            }
            ["resident"] => Ok(resident().to_string()),
            ["forget"] => {
                mapped.clear();
                drafts.clear();
                Ok("forgotten".into())
            }
            ["write", path, length, count, seed] => Draft::open(Path::new(path), size(length)).and_then(|mut draft| {
                draft.write_at(0, &content(size(seed), size(count)))?;
                drafts.push(draft);
                Ok("written".into())
            }),
            ["store", memory, spill, budget] => {
                let (memory, spill) = (Some(memory.into()), spill.into());
                Store::open(&Config { budget: size(budget), memory, spill }).map(|store| {
                    stores.push(store);
                    "opened".into()
                })
            }
            ["put", number, length] => {
                let store = stores.last().expect("a store");
                put(store, (1, size(number)), size(number), size(length)).map(|_| format!("{:?}", store.stats()))
            }
            _ => panic!("{line}"),
        };
        println!("{ANSWER}{}", answer.unwrap_or_else(|error| format!("error: {error:?} {error}")));
    }
}

/// Resident memory of this process alone, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("it lives");
    let field =
        |name| status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    field("RssAnon:").expect("a size")
}

/// The numbers of the physical pages that the bytes are in, or of the file, if this user may not know the former.
fn page_frames(bytes: &Bytes) -> Vec<u64> {
    use std::os::unix::fs::FileExt;
    let pagemap = fs::File::open("/proc/self/pagemap").expect("it lives");
    let pages = bytes.chunks(4096).map(|page| {
        assert!(std::hint::black_box(page[0]) < u8::MAX || page[0] == u8::MAX); // it is there now
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, page.as_ptr().addr() as u64 / 4096 * 8).expect("an entry");
        u64::from_le_bytes(entry) & ((1 << 55) - 1)
    });
    let frames: Vec<u64> = pages.collect();
    if frames.iter().any(|frame| *frame != 0) {
        return frames;
    }
    let maps = fs::read_to_string("/proc/self/maps").expect("it lives");
    let start = format!("{:x}-", bytes.as_ptr().addr());
    let line = maps.lines().find(|line| line.starts_with(&start)).expect("it is mapped");
    vec![line.split_whitespace().nth(4).expect("an inode").parse().expect("a number")]
}

#[test]
fn two_processes_have_the_same_pages() {
    let scratch = Scratch::new();
    let store = scratch.store(200 * MIB);
    let object = put(&store, (1, 1), 1, 64 * MIB).unwrap();
    let ours = object.map().unwrap();
    let mut child = Child::start();
    let before: u64 = child.ask("resident").parse().unwrap();
    assert_eq!(child.ask(&format!("map {} {}", object.path().display(), object.size())), "mapped");
    assert_eq!(child.ask("pages"), format!("{:?}", page_frames(&ours)));
    let sum: u64 = ours.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(child.ask("read"), sum.to_string());
    let grown = child.ask("resident").parse::<u64>().unwrap().saturating_sub(before);
    println!("64 MiB read in another process: its own memory grew by {grown} KiB");
    assert!(grown < 8 * 1024, "a copy was made: {grown} KiB");
}

#[test]
fn a_worker_writes_what_its_node_adopts() {
    let scratch = Scratch::new();
    let store = scratch.store(10 * MIB);
    let path = store.reserve((1, 1), 5000).unwrap();
    let mut worker = Child::start();
    assert_eq!(worker.ask(&format!("write {} 5000 5000 7", path.display())), "written");
    assert!(matches!(store.adopt((1, 1)), Err(StoreError::StillWritten { .. })));
    assert!(store.get((1, 1)).unwrap().is_none());
    worker.ask("forget");
    store.adopt((1, 1)).unwrap();
    assert_eq!(*store.get((1, 1)).unwrap().unwrap().map().unwrap(), content(7, 5000));
    assert!(worker.ask(&format!("write {} 5000 5000 8", path.display())).contains("Foreign"), "it is sealed");
}

#[test]
fn a_worker_that_is_killed_leaves_nothing() {
    let scratch = Scratch::new();
    let store = scratch.store(10 * MIB);
    let path = store.reserve((1, 1), 4 * MIB).unwrap();
    let mut worker = Child::start();
    assert_eq!(worker.ask(&format!("write {} {} 5000 7", path.display(), 4 * MIB)), "written");
    // The node forgets it while it is written: the memory counts until the worker has ended.
    assert!(store.remove((1, 1)));
    store.trim();
    assert_eq!((store.stats().used, store.stats().spare), (4 * MIB, 4 * MIB));
    worker.kill();
    assert!(store.get((1, 1)).unwrap().is_none());
    store.trim();
    assert_eq!((store.stats().used, memory(&scratch.0)), (0, 0));
}

#[test]
fn what_another_process_maps_stays_and_is_counted() {
    let scratch = Scratch::new();
    let store = scratch.store(8 * MIB);
    let object = put(&store, (1, 1), 1, 4 * MIB).unwrap();
    let mut reader = Child::start();
    assert_eq!(reader.ask(&format!("map {} {}", object.path().display(), 4 * MIB)), "mapped");
    drop(object);
    let _second = put(&store, (1, 2), 2, 4 * MIB).unwrap();
    assert!(matches!(put(&store, (1, 3), 3, 4 * MIB), Err(StoreError::Full { .. })), "it is mapped");
    assert!(store.remove((1, 1)));
    assert!(matches!(put(&store, (1, 3), 3, 4 * MIB), Err(StoreError::Full { .. })), "it is mapped still");
    let sum: u64 = content(1, 4 * MIB).into_iter().map(u64::from).sum();
    assert_eq!(reader.ask("read"), sum.to_string());
    reader.kill();
    put(&store, (1, 3), 3, 4 * MIB).unwrap();
    assert_eq!((store.stats().spilled, store.stats().reused), (0, 1));
}

#[test]
fn directories_of_killed_nodes_are_removed() {
    let scratch = Scratch::new();
    let Config { memory: Some(shared), spill, .. } = scratch.config(0) else { panic!("it names one") };
    let start = || {
        let mut node = Child::start();
        assert_eq!(node.ask(&format!("store {} {} {}", shared.display(), spill.display(), MIB)), "opened");
        node.ask(&format!("put 1 {MIB}"));
        assert!(node.ask(&format!("put 2 {MIB}")).contains("spilled: 1"));
        node
    };
    let directories = || fs::read_dir(&shared).unwrap().count() + fs::read_dir(&spill).unwrap().count();
    let (first, mut second) = (start(), start());
    assert_eq!(directories(), 4);
    first.kill();
    assert_eq!(directories(), 4);
    let store = scratch.store(MIB);
    assert_eq!(directories(), 4, "one is the new store's");
    assert!(second.ask(&format!("put 3 {MIB}")).contains("spilled: 2"), "who lives is left alone");
    second.kill();
    drop(store);
    drop(scratch.store(MIB));
    assert_eq!(directories(), 0);
}

/// A shell in which `script` has been done before what follows is run.
fn after(prefix: &[&str], script: &str, argument: &Path) -> Command {
    let mut command = Command::new(prefix.first().unwrap_or(&"sh"));
    command.args(prefix.iter().skip(1)).args((!prefix.is_empty()).then_some("sh"));
    command.args(["-c", &format!("{script} && shift && exec \"$@\""), "sh"]);
    command.arg(argument).arg(std::env::current_exe().expect("this test"));
    command
}

/// A file system of 4 MiB, which is gone with the process.
fn small_file_system(at: &Path) -> Option<Child> {
    fs::create_dir_all(at).expect("a directory");
    let script = "mount -t tmpfs -o size=4m,mode=700 none \"$1\"";
    for prefix in [&["unshare", "--mount"][..], &["unshare", "--user", "--map-root-user", "--mount"]] {
        let mut child = Child::start_in(after(prefix, script, at));
        if child.try_ask("resident").is_some() {
            return Some(child);
        }
    }
    println!("skipped: this user may not mount a file system");
    None
}

#[test]
fn a_full_memory_is_an_error_that_says_so() {
    let scratch = Scratch::new();
    let Config { memory: Some(shared), spill, .. } = scratch.config(0) else { panic!("it names one") };
    let Some(mut node) = small_file_system(&shared) else { return };
    assert_eq!(node.ask(&format!("store {} {} {}", shared.display(), spill.display(), 100 * MIB)), "opened");
    assert!(node.ask(&format!("put 1 {}", 2 * MIB)).contains("spilled: 0"));
    // The budget has room, the file system has not: as if the budget were smaller.
    assert!(node.ask(&format!("put 2 {}", 3 * MIB)).contains("spilled: 1"));
    let answer = node.ask(&format!("put 3 {}", 5 * MIB));
    assert!(answer.contains("NoSpace") && answer.contains(shared.to_str().unwrap()), "{answer}");
    assert!(answer.contains("no space for 5242880 bytes"), "{answer}");
    let answer = node.ask(&format!("put 4 {}", 3 * MIB));
    assert!(answer.contains("objects: 3"), "{answer}");
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let scratch = Scratch::new();
    let Config { memory: Some(shared), spill, .. } = scratch.config(0) else { panic!("it names one") };
    let Some(mut node) = small_file_system(&spill) else { return };
    assert_eq!(node.ask(&format!("store {} {} {}", shared.display(), spill.display(), 3 * MIB)), "opened");
    for number in 1..=2 {
        node.ask(&format!("put {number} {}", 3 * MIB));
    }
    let answer = node.ask(&format!("put 3 {}", 3 * MIB));
    assert!(answer.contains("NoSpace") && answer.contains(spill.to_str().unwrap()), "{answer}");
    assert_eq!(memory(&shared), 3 * MIB, "what could not be moved is where it was");
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let scratch = Scratch::new();
    let Config { memory: Some(shared), spill, .. } = scratch.config(0) else { panic!("it names one") };
    // In units of 512 or 1,024 bytes, as the shell likes.
    let mut node = Child::start_in(after(&[], "trap '' XFSZ; ulimit -f 2048", &shared));
    assert_eq!(node.ask(&format!("store {} {} {}", shared.display(), spill.display(), 100 * MIB)), "opened");
    let answer = node.ask(&format!("put 1 {}", 5 * MIB));
    assert!(answer.contains("NoSpace") && answer.contains(shared.to_str().unwrap()), "{answer}");
    assert!(node.ask(&format!("put 1 {}", MIB / 2)).contains("objects: 1"));
}
