//! Where tasks, actors and placement groups go, on a cluster of real processes whose nodes have names and labels.

mod common;

use common::{Scratch, until, watch};
use outray::{Actor, Array, Bundle, Error, LocalCluster, ObjectRef, PlacementStrategy, Queue, Runtime, Strategy, task};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File},
    io::{BufRead, BufReader, Write},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A head, and nodes of the command `outray`.
struct Cluster {
    head: LocalCluster,
    nodes: Vec<Child>,
    /// Their numbers, by their names.
    numbers: BTreeMap<String, String>,
    home: PathBuf,
}

impl Cluster {
    /// The nodes alice, in zone a, and bob, in zone b, with so many CPUs each.
    fn of_alice_and_bob(cpus: u32) -> (Cluster, Runtime) {
        let home = std::env::temp_dir().join(format!("outray-placement-{:016x}", fastrand::u64(..)));
        DirBuilder::new().mode(0o700).create(&home).unwrap();
        let head = LocalCluster::builder().nodes(0).start().unwrap();
        let mut cluster = Cluster { head, nodes: Vec::new(), numbers: BTreeMap::new(), home };
        for (name, zone) in [("alice", "zone=a"), ("bob", "zone=b")] {
            let words = ["--head", cluster.head.address(), "--name", name, "--label", zone, "--label", "rack=1"];
            let mut node = cluster.outray("node", &words);
            let mut node = node.args(["--cpus", &cpus.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
            cluster.nodes.push(node);
            let number = line.split(['(', ')']).nth(1).unwrap_or_else(|| panic!("{line:?}"));
            cluster.numbers.insert(name.to_owned(), number.to_owned());
        }
        let rt = cluster.head.connect().unwrap();
        until("both nodes are there", || cluster.list("nodes").len() == 2);
        (cluster, rt)
    }

    fn outray(&self, command: &str, words: &[&str]) -> Command {
        let mut outray = Command::new(env!("CARGO_BIN_EXE_outray"));
        outray.arg(command).args(words).env("OUTRAY_KEY_FILE", self.head.key_file());
        outray.env("XDG_CACHE_HOME", &self.home).env("HOME", &self.home).stdin(Stdio::null());
        outray
    }

    fn list(&self, what: &str) -> Vec<Value> {
        let answer = self.outray("list", &[what, "--json", "--address", self.head.address()]).output().unwrap();
        serde_json::from_slice(&answer.stdout).unwrap()
    }

    /// What people call a node of this number.
    fn name(&self, number: &str) -> &str {
        self.numbers.iter().find(|(_, known)| *known == number).map_or("?", |(name, _)| name)
    }

    /// Where tasks with this strategy run that come one after the other.
    fn nodes_of(&self, rt: &Runtime, strategy: &Strategy) -> BTreeSet<&str> {
        let run = || rt.task(node).strategy(strategy.clone()).submit(()).get().unwrap();
        (0..4).map(|_| self.name(&run())).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill(); // it may have ended
            let _ = node.wait();
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn node() -> String {
    task::context().node().to_owned()
}

fn pairs(key: &str, value: &str) -> Vec<(String, String)> {
    vec![(key.to_owned(), value.to_owned())]
}

fn called(name: &str, soft: bool) -> Strategy {
    Strategy::Node { name: name.to_owned(), soft }
}

/// Keeps what it was started with.
struct Holder;

impl Holder {
    fn new() -> Holder {
        Holder
    }
    fn node(&self) -> String {
        node()
    }
}

/// Says that it runs, and runs until it is told to end.
fn hold(begun: Queue<String>, end: Queue<u8>) -> u8 {
    begun.put(node()).unwrap();
    end.get().unwrap()
}

#[test]
fn actors_go_where_the_fewest_are_and_the_first_to_the_node_of_the_program() {
    watch(|| {
        let cluster = LocalCluster::start(3).unwrap();
        let rt = cluster.connect().unwrap();
        let home = rt.submit(node, ()).get().unwrap();
        let mut actors: Vec<Actor<Holder>> = Vec::new();
        let start = |actors: &mut Vec<Actor<Holder>>, count| {
            for _ in 0..count {
                let actor = rt.actor(Holder::new, ());
                assert_eq!(actor.ready().get(), Ok(()));
                actors.push(actor);
            }
            let calls: Vec<_> = actors.iter().map(|actor| actor.call(Holder::node, ())).collect();
            let nodes = rt.get_all(&calls).unwrap();
            nodes.into_iter().fold(BTreeMap::new(), |mut counts, node| {
                *counts.entry(node).or_insert(0) += 1;
                counts
            })
        };
        assert_eq!(start(&mut actors, 1), BTreeMap::from([(home, 1)]));
        assert_eq!(start(&mut actors, 5).into_values().collect::<Vec<_>>(), [2, 2, 2]);
    });
}

#[test]
fn many_actors_at_once_are_on_more_than_one_node() {
    watch(|| {
        let cluster = LocalCluster::start(2).unwrap();
        let rt = cluster.connect().unwrap();
        let actors: Vec<_> = (0..6).map(|_| rt.actor(Holder::new, ())).collect();
        let calls: Vec<_> = actors.iter().map(|actor| actor.call(Holder::node, ())).collect();
        assert_eq!(rt.get_all(&calls).unwrap().into_iter().collect::<BTreeSet<_>>().len(), 2);
    });
}

#[test]
fn wishes_for_nodes_and_labels_are_met_where_they_can_be() {
    watch(|| {
        let (cluster, rt) = Cluster::of_alice_and_bob(1);
        let prefer = |key, value| Strategy::PreferLabels { preferred: pairs(key, value) };
        let require = |key, value| Strategy::Labels { required: pairs(key, value) };
        for (name, zone) in [("alice", "a"), ("bob", "b")] {
            for wish in [called(name, true), called(name, false), prefer("zone", zone), require("zone", zone)] {
                assert_eq!(cluster.nodes_of(&rt, &wish), BTreeSet::from([name]), "{wish:?}");
            }
        }
        assert_eq!(rt.task(|| 7).strategy(called("carol", true)).submit(()).get(), Ok(7));
        assert_eq!(rt.task(|| 7).strategy(prefer("zone", "c")).submit(()).get(), Ok(7));
        let refused = |wish| rt.task(|| ()).strategy(wish).submit(()).get().unwrap_err().to_string();
        let why = refused(called("carol", false));
        assert!(why.contains("no node has the labels node=carol"), "{why}");
        let both = pairs("rack", "1").into_iter().chain(pairs("zone", "c")).collect();
        let why = refused(Strategy::Labels { required: both });
        let nearest = |name| format!("no node has the labels rack=1, zone=c; the nearest is {name}, which has rack=1");
        assert!(why.contains(&nearest("alice")) || why.contains(&nearest("bob")), "{why}");
        // What an actor holds is not there for others: soft wishes are for what is.
        let holder = rt.actor_builder(Holder::new).cpus(1.0).strategy(prefer("zone", "a")).start(());
        let there = holder.call(Holder::node, ()).get().unwrap();
        assert_eq!(cluster.name(&there), "alice");
        for wish in [called("alice", true), prefer("zone", "a")] {
            assert_eq!(cluster.nodes_of(&rt, &wish), BTreeSet::from(["bob"]), "{wish:?}");
        }
    });
}

#[test]
fn a_request_that_no_node_can_meet_names_the_nearest_and_all_that_it_lacks() {
    watch(|| {
        let (cluster, rt) = Cluster::of_alice_and_bob(2);
        let refused = rt.task(|| ()).cpus(64.0).resource("licence", 2.0).submit(()).get().unwrap_err();
        let Error::Infeasible { reason, .. } = &refused else { panic!("{refused:?}") };
        let lacks = "64 CPUs wanted, 2 there, and 2 of \"licence\" wanted, 0 there";
        let is_named = cluster.numbers.keys().any(|name| reason.contains(&format!("the nearest is {name}: {lacks}")));
        assert!(is_named, "{reason}");
    });
}

#[test]
fn placement_groups_lie_on_nodes_as_their_strategies_say() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(2).cpus(3.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let bundles = |count| vec![Bundle::new().cpus(1.0); count];
        let nodes = |count, strategy| {
            let group = rt.placement_group(&bundles(count), strategy).unwrap();
            let run = |bundle| rt.task(node).placement_group(&group, bundle).submit(()).get().unwrap();
            (0..count).map(run).collect::<BTreeSet<_>>().len()
        };
        for (strategy, on) in [
            (PlacementStrategy::Pack, 1),
            (PlacementStrategy::StrictPack, 1),
            (PlacementStrategy::Spread, 2),
            (PlacementStrategy::StrictSpread, 2),
        ] {
            assert_eq!(nodes(2, strategy), on, "{strategy:?}");
        }
        // What is too much for one node, or for different ones.
        for (strategy, on) in [(PlacementStrategy::Pack, 2), (PlacementStrategy::Spread, 2)] {
            assert_eq!(nodes(4, strategy), on, "{strategy:?}");
        }
        for strategy in [PlacementStrategy::StrictPack, PlacementStrategy::StrictSpread] {
            let refused = rt.placement_group(&bundles(4), strategy).unwrap_err();
            assert!(matches!(refused, Error::Infeasible { .. }), "{strategy:?}: {refused}");
        }
    });
}

#[test]
fn a_group_that_waits_for_room_says_for_what_and_gives_up_in_its_time() {
    watch(|| {
        let (cluster, rt) = Cluster::of_alice_and_bob(1);
        let on_bob = rt.actor_builder(Holder::new).cpus(1.0).strategy(called("bob", false)).start(());
        let on_alice = rt.actor_builder(Holder::new).cpus(1.0).strategy(called("alice", false)).start(());
        assert_eq!((on_bob.ready().get(), on_alice.ready().get()), (Ok(()), Ok(())));
        let bundles = [Bundle::new().cpus(1.0)];
        let lacks =
            |text: &str| text.contains("no node has room for bundle 0") && text.contains("1 CPUs wanted, 0 there");
        let within = |limit| rt.placement_group_timeout(&bundles, PlacementStrategy::Pack, limit);
        let refused = within(Duration::from_millis(1)).unwrap_err();
        let Error::Infeasible { reason, .. } = &refused else { panic!("{refused:?}") };
        assert!(reason.contains("could not be set aside in time") && lacks(reason), "{reason}");
        assert!(reason.contains("alice") || reason.contains("bob"), "{reason}");
        assert!(cluster.list("placement-groups").is_empty());
        std::thread::scope(|scope| {
            let group = scope.spawn(|| within(Duration::from_secs(3_600)));
            until("it is said what the group waits for", || {
                let groups = cluster.list("placement-groups");
                groups.iter().any(|group| group["state"].as_str().is_some_and(lacks))
            });
            on_alice.kill();
            let group = group.join().unwrap().unwrap();
            let there = rt.task(node).placement_group(&group, 0).submit(()).get().unwrap();
            assert_eq!(cluster.name(&there), "alice");
        });
    });
}

#[test]
fn explain_says_what_is_the_matter_wherever_a_task_is() {
    watch(|| {
        let (cluster, rt) = Cluster::of_alice_and_bob(2);
        let queues = || (Queue::<String>::bounded(&rt, 1).unwrap(), Queue::<u8>::bounded(&rt, 1).unwrap());
        // On either node, so also on the one that is not the program's own.
        for name in ["alice", "bob"] {
            let (begun, end) = queues();
            let held = rt.task(hold).strategy(called(name, false)).submit((begun.clone(), end.clone()));
            assert_eq!(cluster.name(&begun.get().unwrap()), name);
            let why = rt.explain(&held).to_string();
            assert!(why.contains(&format!("on node {name} its attempt 1 runs")), "{why}");
            end.put(1).unwrap();
            assert_eq!(held.get(), Ok(1));
        }
        // A task of a task.
        let (begun, end) = queues();
        let outer = |begun: Queue<String>, end: Queue<u8>| {
            vec![Runtime::current().task(hold).name("inner").submit((begun, end))]
        };
        let inner: Vec<ObjectRef<u8>> = rt.submit(outer, (begun.clone(), end.clone())).get().unwrap();
        let there = begun.get().unwrap();
        let why = rt.explain(&inner[0]).to_string();
        let runs = format!("on node {} in process", cluster.name(&there));
        assert!(why.contains("is running") && why.contains(&runs) && why.contains("inner"), "{why}");
        end.put(1).unwrap();
        assert_eq!(inner[0].get(), Ok(1));
        // With the head.
        let hold_all = |name| rt.actor_builder(Holder::new).cpus(2.0).strategy(called(name, false)).start(());
        let holders = [hold_all("alice"), hold_all("bob")];
        assert!(holders.iter().all(|holder| holder.ready().get().is_ok()));
        let waits = rt.submit(node, ());
        let lacks = |name| format!("{name}: 1 CPUs wanted, 0 there that is not set aside, or held by actors");
        until("it is said what each node lacks", || {
            let why = rt.explain(&waits).to_string();
            why.contains("it waits at the head") && why.contains(&lacks("alice")) && why.contains(&lacks("bob"))
        });
        holders[1].kill();
        assert_eq!(cluster.name(&waits.get().unwrap()), "bob");
    });
}

#[test]
fn a_task_goes_to_the_bytes_that_it_needs() {
    watch(|| {
        const SIZE: usize = 32 << 20;
        let (cluster, rt) = Cluster::of_alice_and_bob(1);
        let home = rt.submit(node, ()).get().unwrap();
        let away = if cluster.name(&home) == "alice" { "bob" } else { "alice" };
        let make = || Array::from(vec![7u8; SIZE]);
        let made = rt.task(make).strategy(called(away, false)).submit(());
        let look = |array: Array<u8>| (array.len(), node());
        assert!(rt.task(look).strategy(called(away, false)).submit(&made).get().is_ok(), "it is there");
        for _ in 0..3 {
            let (len, there) = rt.submit(look, &made).get().unwrap();
            assert_eq!((len, cluster.name(&there)), (SIZE, away));
        }
        let sent: u64 = cluster.list("nodes").iter().map(|node| node["sent_bytes"].as_u64().unwrap()).sum();
        assert!(sent < SIZE as u64, "{sent} bytes were sent");
    });
}

#[test]
fn a_few_tasks_of_a_task_stay_with_it() {
    watch(|| {
        let cluster = LocalCluster::builder().nodes(2).cpus(8.0).start().unwrap();
        let rt = cluster.connect().unwrap();
        let outer = || {
            let rt = Runtime::current();
            let inner: Vec<_> = (0..10).map(|_| rt.submit(std::process::id, ())).collect();
            (std::process::id(), rt.get_all(&inner).unwrap())
        };
        let (here, inner) = rt.submit(outer, ()).get().unwrap();
        assert_eq!(inner, [here; 10]);
    });
}

#[test]
fn many_tasks_of_a_task_are_run_by_all_nodes() {
    fn slow() -> String {
        std::thread::sleep(Duration::from_millis(5));
        node()
    }
    watch(|| {
        let cluster = LocalCluster::start(2).unwrap();
        let rt = cluster.connect().unwrap();
        let outer = || {
            let rt = Runtime::current();
            let inner: Vec<_> = (0..500).map(|_| rt.submit(slow, ())).collect();
            rt.get_all(&inner).unwrap().into_iter().collect::<BTreeSet<_>>().len()
        };
        assert_eq!(rt.submit(outer, ()).get(), Ok(2));
    });
}

/// Leaves a note, and waits for that of another worker, as a long computation would: its node does not know that it waits.
fn meet(notes: String) -> bool {
    let mut file = File::options().create(true).append(true).open(&notes).unwrap();
    writeln!(file, "{}", std::process::id()).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(&notes).unwrap().lines().collect::<BTreeSet<_>>().len() < 2 {
        if Instant::now() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn long_tasks_of_a_task_do_not_wait_for_each_other_while_another_node_is_idle() {
    watch(|| {
        let cluster = LocalCluster::start(2).unwrap();
        let rt = cluster.connect().unwrap();
        let notes = Scratch::new("notes");
        let outer = |notes: String| {
            let rt = Runtime::current();
            let inner: Vec<_> = (0..8).map(|_| rt.submit(meet, notes.clone())).collect();
            rt.get_all(&inner).unwrap()
        };
        let met = rt.submit(outer, notes.0.to_str().unwrap().to_owned()).get().unwrap();
        assert_eq!(met, [true; 8], "all of them were on one node");
    });
}
