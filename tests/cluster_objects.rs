//! Objects on a cluster of real processes: what happens where there is no room for them, where they lie, what becomes of them when a
//! node dies, and that nothing is left of them.

mod common;

use common::{Scratch, until, watch};
use outray::{Actor, Array, Filter, Isolation, LocalCluster, ObjectRef, Runtime, Strategy};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};

const MIB: usize = 1 << 20;

/// What the command `outray` says of a cluster.
fn ask(cluster: &LocalCluster, question: &[&str]) -> Vec<Value> {
    let mut outray = Command::new(env!("CARGO_BIN_EXE_outray"));
    outray.args(question).args(["--json", "--address", cluster.address()]);
    let said = outray.env("OUTRAY_KEY_FILE", cluster.key_file()).output().unwrap();
    serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{question:?}: {said:?}"))
}

fn on(name: &str) -> Strategy {
    Strategy::Node { name: name.to_owned(), soft: false }
}

fn array(byte: u8, size: usize) -> Array<u8> {
    Array::from(vec![byte; size])
}

fn ends(array: Array<u8>) -> (u8, u8, usize) {
    (array[0], array[array.len() - 1], array.len())
}

/// One more node of a cluster, whose store is small. It is killed when this is dropped.
struct Small {
    child: Child,
    name: String,
    cache: PathBuf,
}

impl Small {
    fn start(cluster: &LocalCluster, budget: usize) -> Small {
        let cache = Scratch::new("cache").0.clone();
        let mut node = Command::new(env!("CARGO_BIN_EXE_outray"));
        node.args(["node", "--cpus", "2", "--head", cluster.address(), "--store", &budget.to_string()]);
        node.env("OUTRAY_KEY_FILE", cluster.key_file()).env("XDG_CACHE_HOME", &cache);
        let mut child = node.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.find(|line| line.as_ref().unwrap().starts_with("outray node ")).unwrap().unwrap();
        let nodes = ask(cluster, &["list", "nodes"]);
        let known = cluster.nodes();
        let names = nodes.iter().map(|node| node["node"].as_str().unwrap());
        let name = names.into_iter().find(|name| !known.contains(name)).unwrap().to_owned();
        Small { child, name, cache }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.cache);
    }
}

/// Keeps arrays where it is.
#[derive(Default)]
struct Holder(Vec<Array<u8>>);

impl Holder {
    fn hold(&mut self, array: Array<u8>) -> usize {
        self.0.push(array);
        self.0.len()
    }

    fn let_go(&mut self) {
        self.0.clear();
    }
}

#[test]
fn what_a_node_has_no_room_for_is_an_error_there_and_still_there_for_others() {
    fn make(log: String, size: usize) -> Array<u8> {
        File::options().append(true).open(log).unwrap().write_all(&[1]).unwrap();
        array(5, size)
    }
    watch(|| {
        let log = Scratch::new("made");
        File::create(&log.0).unwrap();
        let cluster = LocalCluster::builder().nodes(1).start().unwrap();
        let rt = cluster.connect().unwrap();
        let small = Small::start(&cluster, 16 * MIB);
        let large = rt.task(make).strategy(on(cluster.nodes()[0]));
        let made = large.submit((log.0.to_str().unwrap().to_owned(), 20 * MIB));
        let put = rt.put(array(6, 21 * MIB));
        // More than there may ever be.
        for (object, expected) in [(&made, (5, 5, 20 * MIB)), (&put, (6, 6, 21 * MIB))] {
            let error = rt.task(ends).strategy(on(&small.name)).submit(object).get().unwrap_err();
            let why = error.root_cause().to_string();
            assert!(why.contains("does not fit into a store of 16777216") && why.contains(&small.name), "{why}");
            assert_eq!(rt.task(ends).strategy(on(cluster.nodes()[0])).submit(object).get(), Ok(expected));
            assert_eq!(object.get().map(ends), Ok(expected));
        }
        // More than there may be now.
        let holder = rt.actor_builder(Holder::default).strategy(on(&small.name)).start(());
        let (first, second) = (rt.put(array(7, 10 * MIB)), rt.put(array(8, 10 * MIB)));
        assert_eq!(holder.call(Holder::hold, &first).get(), Ok(1));
        let there = || rt.task(ends).strategy(on(&small.name)).submit(&second).get();
        let error = there().unwrap_err();
        let why = error.root_cause().to_string();
        assert!(why.contains("in use") && why.contains("budget"), "{why}");
        assert_eq!(second.get().map(ends), Ok((8, 8, 10 * MIB)));
        holder.call(Holder::let_go, ()).get().unwrap();
        assert_eq!(there(), Ok((8, 8, 10 * MIB)));
        assert_eq!(log.0.metadata().unwrap().len(), 1, "it was made again");
    });
}

/// Three arrays of 5 MiB each, which the program does not map.
fn three(rt: &Runtime) -> Vec<ObjectRef<Array<u8>>> {
    let all: Vec<_> = (0..3).map(|byte| rt.submit(|byte: u8| array(byte, 5 * MIB), byte)).collect();
    for (byte, array) in (0..).zip(&all) {
        assert_eq!(rt.submit(ends, array).get(), Ok((byte, byte, 5 * MIB)));
    }
    all
}

/// The files of objects that a cluster has on disk.
fn on_disk(cluster: &LocalCluster) -> Vec<PathBuf> {
    let spilled = cluster.key_file().with_file_name("spilled");
    let stores = fs::read_dir(spilled).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = stores.flat_map(|store| fs::read_dir(store).unwrap()).map(|entry| entry.unwrap().path());
    files.filter(|path| path.metadata().unwrap().len() > MIB as u64).collect()
}

#[test]
fn what_cannot_come_back_from_disk_says_why_and_comes_when_there_is_room() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).store(12 * MIB as u64).start().unwrap();
        let rt = cluster.connect().unwrap();
        let all = three(&rt);
        let holder = rt.actor(Holder::default, ());
        // These two leave no room for the third.
        for (held, array) in (1..).zip(&all[..2]) {
            assert_eq!(holder.call(Holder::hold, array).get(), Ok(held));
        }
        let error = rt.submit(ends, &all[2]).get().unwrap_err();
        let why = error.root_cause().to_string();
        assert!(why.contains("in use") && why.contains("budget"), "{why}");
        holder.call(Holder::let_go, ()).get().unwrap();
        for (byte, array) in (0..).zip(&all) {
            assert_eq!(rt.submit(ends, array).get(), Ok((byte, byte, 5 * MIB)));
        }
    });
}

#[test]
fn a_damaged_file_of_an_object_is_named_and_other_objects_are_there() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).store(12 * MIB as u64).start().unwrap();
        let rt = cluster.connect().unwrap();
        let all = three(&rt);
        until("one is on disk", || !on_disk(&cluster).is_empty());
        let files = on_disk(&cluster);
        for file in &files {
            fs::write(file, vec![9; 5 * MIB]).unwrap();
        }
        let got: Vec<_> = all.iter().map(|array| rt.submit(ends, array).get()).collect();
        let damaged: Vec<String> =
            got.iter().filter_map(|got| Some(got.as_ref().err()?.root_cause().to_string())).collect();
        assert!(!damaged.is_empty() && damaged.len() < 3, "{got:?}");
        for why in damaged {
            let is_named = files.iter().any(|file| why.contains(file.to_str().unwrap()));
            assert!(is_named && why.contains("is not what was written there"), "{why}");
        }
        assert_eq!(rt.submit(|a: i32| a, 1).get(), Ok(1));
    });
}

/// Limits the size of the files that a process may write from here on, or lifts that limit.
fn limit_files(pid: u32, limit: &str) -> bool {
    let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--fsize={limit}:")]).status();
    set.is_ok_and(|set| set.success())
}

#[test]
fn a_full_disk_is_an_error_that_names_it_and_the_node_goes_on() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).store(12 * MIB as u64).start().unwrap();
        let rt = cluster.connect().unwrap();
        let make = |byte: u8| array(byte, 5 * MIB);
        let first: Vec<_> = (0..2).map(|byte| rt.submit(make, byte)).collect();
        for (byte, array) in (0..).zip(&first) {
            assert_eq!(rt.submit(ends, array).get(), Ok((byte, byte, 5 * MIB)));
        }
        let node = cluster.pids()[1];
        if !limit_files(node, "1048576") {
            return println!("skipped: there is no command prlimit");
        }
        // Another is to go to disk for this one.
        let error = rt.submit(make, 2).get().unwrap_err().to_string();
        let disk = cluster.key_file().with_file_name("spilled");
        assert!(error.contains("no space for") && error.contains(disk.to_str().unwrap()), "{error}");
        for (byte, array) in (0..).zip(&first) {
            assert_eq!(rt.submit(ends, array).get(), Ok((byte, byte, 5 * MIB)));
        }
        assert_eq!(first[0].get().map(ends), Ok((0, 0, 5 * MIB)));
        assert!(limit_files(node, "unlimited"));
        assert_eq!(rt.submit(make, 3).get().map(ends), Ok((3, 3, 5 * MIB)));
    });
}

/// Memory of this process that is not a file's, in bytes; and the file in which an address lies.
fn own_memory_and_file(address: usize) -> (u64, String) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let own = own.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let at = |text| usize::from_str_radix(text, 16).unwrap();
        (at(from)..at(to)).contains(&address)
    });
    // address, permissions, offset, device, inode, path
    let words: Vec<_> = line.unwrap().split_whitespace().skip(3).collect();
    (own, words.join(" "))
}

/// What reading every number of an array costs: the sum, by how much the process's own memory has grown, in which file the
/// array is, and which process has read it.
type Read = (u64, u64, String, u32);

fn read(before: u64, array: &Array<u64>) -> Read {
    let sum = array.iter().sum();
    let (after, file) = own_memory_and_file(array.as_ptr().addr());
    (sum, after.saturating_sub(before), file, std::process::id())
}

/// The argument is a handle, so that all of the reading is between the two looks.
fn read_through(array: Vec<ObjectRef<Array<u64>>>) -> Read {
    let (before, _) = own_memory_and_file((&raw const array).addr());
    read(before, &array[0].get_shared().unwrap())
}

struct Reader;

impl Reader {
    fn read(&mut self, array: Vec<ObjectRef<Array<u64>>>) -> Read {
        read_through(array)
    }
}

#[test]
fn processes_of_a_node_read_the_same_pages() {
    const NUMBERS: u64 = 8 << 20; // 64 MiB
    watch(|| {
        let cluster = LocalCluster::builder().nodes(1).cpus(2.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let made = rt.submit(|| Array::from((0..NUMBERS).collect::<Vec<u64>>()), ());
        let alone = || rt.actor_builder(|| Reader).isolation(Isolation::Process).start(());
        let (one, two) = (alone(), alone());
        let reads = [
            rt.submit(read_through, vec![made.clone()]).get().unwrap(),
            one.call(Reader::read, vec![made.clone()]).get().unwrap(),
            two.call(Reader::read, vec![made.clone()]).get().unwrap(),
        ];
        for (sum, grown, file, _) in &reads {
            assert_eq!(*sum, NUMBERS * (NUMBERS - 1) / 2);
            assert!(*grown < 8 * MIB as u64, "its own memory has grown by {grown} bytes: {reads:?}");
            // Device, inode and name.
            assert!(file.contains("/outray-store-") && *file == reads[0].2, "{reads:?}");
        }
        let [first, second, third] = reads.map(|(.., pid)| pid);
        assert!(first != second && second != third && third != first);
    });
}

#[test]
fn what_is_on_its_way_from_a_node_that_dies_comes_from_another() {
    const SIZE: usize = 96 * MIB;
    fn make(log: String) -> Array<u8> {
        File::options().append(true).open(log).unwrap().write_all(&[1]).unwrap();
        array(3, SIZE)
    }
    fn sent(cluster: &LocalCluster) -> Vec<u64> {
        let nodes = ask(cluster, &["list", "nodes"]);
        let of = |name| nodes.iter().find(|node| node["node"] == name).unwrap()["sent_bytes"].as_u64().unwrap();
        cluster.nodes().into_iter().map(of).collect()
    }
    watch(|| {
        let log = Scratch::new("made");
        File::create(&log.0).unwrap();
        let mut cluster = LocalCluster::start(3).unwrap();
        let rt = cluster.connect().unwrap();
        let nodes: Vec<String> = cluster.nodes().into_iter().map(str::to_owned).collect();
        for made in 1.. {
            let object = rt.task(make).strategy(on(&nodes[0])).submit(log.0.to_str().unwrap().to_owned());
            assert_eq!(rt.task(ends).strategy(on(&nodes[1])).submit(&object).get(), Ok((3, 3, SIZE)));
            let before = sent(&cluster);
            let last = rt.task(ends).strategy(on(&nodes[2])).submit(&object);
            let serving = loop {
                let now = sent(&cluster);
                // More than lies in the buffers of a connection.
                let grown = |at: &usize| now[*at] > before[*at] + 16 * MIB as u64;
                match (0..2).find(grown) {
                    Some(at) => break Some(at).filter(|at| now[*at] - before[*at] < SIZE as u64 / 2),
                    None => std::thread::yield_now(),
                }
            };
            // It may have been too fast to be seen on its way.
            let Some(serving) = serving else {
                assert!(made < 20, "no object was seen on its way");
                continue;
            };
            cluster.kill_node(serving);
            assert_eq!(last.get(), Ok((3, 3, SIZE)));
            let rest = sent(&cluster)[0] - before[1 - serving]; // who is left is the first now
            assert!((1..SIZE as u64).contains(&rest), "the other has sent {rest} bytes of {SIZE}");
            assert_eq!(log.0.metadata().unwrap().len(), made, "it was made again");
            return;
        }
    });
}

type Numbers = Vec<u64>;

/// A value that its seed and its length tell.
fn numbers(seed: u64, count: usize) -> Numbers {
    (0..count as u64).map(|n| seed.wrapping_mul(31) ^ n).collect()
}

fn reversed(numbers: Arc<Numbers>) -> Numbers {
    numbers.iter().rev().copied().collect()
}

fn pass_on(handles: Vec<ObjectRef<Numbers>>) -> Vec<ObjectRef<Numbers>> {
    handles
}

/// Objects of the worker's own: put there, and made by tasks of its tasks.
fn make_inside(seed: u64, count: usize) -> Vec<ObjectRef<Numbers>> {
    let rt = Runtime::current();
    let put = rt.put(numbers(seed, count));
    let back = rt.submit(reversed, &put);
    vec![rt.submit(reversed, &back), put, rt.submit(numbers, (seed, count))]
}

#[derive(Default)]
struct Keeper(Vec<ObjectRef<Numbers>>);

impl Keeper {
    fn keep(&mut self, handles: Vec<ObjectRef<Numbers>>) {
        self.0.extend(handles);
    }

    fn give(&mut self, at: usize) -> Vec<ObjectRef<Numbers>> {
        vec![self.0.swap_remove(at)]
    }

    fn right(&self, expected: Vec<Numbers>) -> bool {
        self.0.iter().zip(expected).all(|(handle, numbers)| handle.get() == Ok(numbers))
    }
}

/// Whether an object has this value. What is large is not mapped here, where it would be as long as there is a handle.
fn is_right(rt: &Runtime, object: &ObjectRef<Numbers>, numbers: &Numbers) -> bool {
    match numbers.len() > 100_000 {
        true => {
            rt.submit(|found: Arc<Numbers>, wanted: Numbers| *found == wanted, (object, numbers.clone())).get()
                == Ok(true)
        }
        false => object.get().as_ref() == Ok(numbers),
    }
}

/// A handle to a value with handles inside.
type Outer = ObjectRef<Vec<ObjectRef<Numbers>>>;

/// A handle, and what its value is.
type Known = (ObjectRef<Numbers>, Numbers);

/// What holds handles: the program, values, and actors.
struct Holders {
    random: fastrand::Rng,
    known: Vec<Known>,
    inside: Vec<(Outer, Vec<Numbers>)>,
    keepers: Vec<(Actor<Keeper>, Vec<Numbers>)>,
}

impl Holders {
    fn any(&mut self) -> Option<Known> {
        self.random.choice(&self.known).cloned()
    }

    fn some(&mut self) -> (Vec<ObjectRef<Numbers>>, Vec<Numbers>) {
        let count = self.random.usize(0..4);
        (0..count).filter_map(|_| self.any()).unzip()
    }

    fn step(&mut self, rt: &Runtime) {
        let seed = self.random.u64(..);
        // Within a letter, among what stays at a node, and through the stores; the largest go to disk.
        let count = *self.random.choice(&[3, 200, 2_000, 7_000, 20_000, 150_000]).unwrap();
        match self.random.u32(0..16) {
            0 | 1 => self.known.push((rt.put(numbers(seed, count)), numbers(seed, count))),
            2 | 3 => self.known.push((rt.submit(numbers, (seed, count)), numbers(seed, count))),
            4 => {
                if let Some((handle, numbers)) = self.any() {
                    self.known.push((rt.submit(reversed, &handle), reversed(numbers.into())));
                }
            }
            5 => {
                let (handles, numbers) = self.some();
                self.inside.push((rt.put(handles), numbers));
            }
            6 => {
                let (handles, numbers) = self.some();
                self.inside.push((rt.submit(pass_on, handles), numbers));
            }
            7 => {
                let made = vec![numbers(seed, count); 3];
                self.inside.push((rt.submit(make_inside, (seed, count)), made));
            }
            8 => {
                if let Some((outer, numbers)) = self.random.choice(&self.inside).cloned() {
                    self.known.extend(outer.get().unwrap().into_iter().zip(numbers));
                }
            }
            9 if self.keepers.len() < 2 => self.keepers.push((rt.actor(Keeper::default, ()), Vec::new())),
            9 | 10 if !self.keepers.is_empty() => {
                let (handles, numbers) = self.some();
                let at = self.random.usize(..self.keepers.len());
                self.keepers[at].0.call(Keeper::keep, handles).get().unwrap();
                self.keepers[at].1.extend(numbers);
            }
            11 if !self.keepers.is_empty() => {
                let at = self.random.usize(..self.keepers.len());
                let (keeper, kept) = &mut self.keepers[at];
                match (self.random.bool(), kept.len()) {
                    (true, _) | (_, 0) => assert_eq!(keeper.call(Keeper::right, kept.clone()).get(), Ok(true)),
                    (false, count) => {
                        let at = self.random.usize(..count);
                        self.inside.push((keeper.call(Keeper::give, at), vec![kept.swap_remove(at)]));
                    }
                }
            }
            12 => {
                if let Some((handle, numbers)) = self.any() {
                    assert!(is_right(rt, &handle, &numbers));
                }
            }
            _ => _ = self.drop_one(),
        }
    }

    /// Drops something; whether there was anything left.
    fn drop_one(&mut self) -> bool {
        let (known, inside, keepers) = (self.known.len(), self.inside.len(), self.keepers.len());
        if known + inside + keepers == 0 {
            return false;
        }
        // Actors live longer.
        match self.random.usize(..8 * (known + inside) + keepers) {
            at if at < 8 * known => drop(self.known.swap_remove(at / 8)),
            at if at < 8 * (known + inside) => drop(self.inside.swap_remove(at / 8 - known)),
            at => drop(self.keepers.swap_remove(at - 8 * (known + inside))),
        }
        true
    }
}

#[test]
fn nothing_is_left_of_objects_whose_handles_are_dropped_in_any_order() {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    let cluster = LocalCluster::builder().nodes(3).store(16 * MIB as u64).start().unwrap();
    let rt = cluster.connect_with(Runtime::builder().observe(true)).unwrap();
    let random = fastrand::Rng::with_seed(seed);
    let mut holders = Holders { random, known: Vec::new(), inside: Vec::new(), keepers: Vec::new() };
    for _ in 0..400 {
        holders.step(&rt);
    }
    // More than there is room for in memory.
    let many: Vec<_> = (0..60).map(|seed| rt.submit(numbers, (seed, 150_000))).collect();
    let backs: Vec<_> = many.iter().map(|handle| rt.submit(reversed, handle)).collect();
    assert_eq!(rt.submit(|all: Vec<ObjectRef<Numbers>>| all.len(), backs.clone()).get(), Ok(60));
    for (seed, back) in (0..).zip(backs) {
        assert!(is_right(&rt, &back, &reversed(numbers(seed, 150_000).into())), "SEED={seed}");
    }
    let spilled = ask(&cluster, &["memory"]).iter().map(|node| node["spilled_bytes"].as_u64().unwrap()).sum::<u64>();
    assert!(spilled > 0, "all was in memory");
    drop(many);
    for (handle, numbers) in &holders.known {
        assert!(is_right(&rt, handle, numbers), "SEED={seed}");
    }
    while holders.drop_one() {}
    let held = || rt.list_objects(&Filter::new()).unwrap();
    let left = || {
        let memory = ask(&cluster, &["memory"]);
        let is_left = |node: &&Value| {
            let bytes = |what: &str| node[what].as_u64().unwrap();
            bytes("objects") + bytes("stored_bytes") + bytes("spilled_bytes") > 0
                || bytes("shared_bytes") != bytes("spare_bytes")
        };
        memory.iter().filter(is_left).cloned().collect::<Vec<_>>()
    };
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !(held().is_empty() && left().is_empty() && ask(&cluster, &["list", "objects"]).is_empty()) {
        if std::time::Instant::now() > patience {
            panic!("SEED={seed}: held {:#?}, left {:#?}, {:#?}", held(), left(), ask(&cluster, &["list", "objects"]));
        }
        std::thread::yield_now();
    }
}
