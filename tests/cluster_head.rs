//! A head that is killed, and started again from its store, under a cluster of real processes.

mod common;

use common::{until, watch};
use outray::{Actor, Bundle, Error, LocalCluster, PlacementStrategy, Runtime, Strategy, task};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

struct Counter(i64);

impl Counter {
    fn new(start: i64) -> Self {
        Counter(start)
    }
    fn add(&mut self, by: i64) -> i64 {
        self.0 += by;
        self.0
    }
    fn value(&self) -> i64 {
        self.0
    }
    fn pid(&self) -> u32 {
        std::process::id()
    }
    fn exit(&self) {
        std::process::abort();
    }
    fn node(&self) -> String {
        task::context().node().to_owned()
    }
}

fn square(n: u64) -> u64 {
    n * n
}

/// A directory of the test's own, which goes with it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        let path = std::env::temp_dir().join(format!("outray-head-{:016x}", fastrand::u64(..)));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().into()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Says that it runs, and ends when a file is there.
fn hold(started: String, end: String) -> u32 {
    fs::write(started, "").unwrap();
    until("the file is there", || Path::new(&end).exists());
    std::process::id()
}

fn cluster(nodes: usize) -> (LocalCluster, Runtime) {
    let cluster = LocalCluster::builder().nodes(nodes).durable(true).start().unwrap();
    let rt = cluster.connect().unwrap();
    (cluster, rt)
}

#[test]
fn work_goes_on_while_the_head_is_away_and_after_it_is_back() {
    watch(|| {
        let (mut cluster, rt) = cluster(2);
        let counter = rt.actor_builder(Counter::new).name("counter").start(0);
        let group = rt.placement_group(&[Bundle::new().cpus(0.5)], PlacementStrategy::Pack).unwrap();
        assert_eq!(counter.call(Counter::add, 1).get(), Ok(1));
        let before: Vec<_> = (0..300).map(|n| rt.submit(square, n)).collect();
        cluster.kill_head();
        let calls: Vec<_> = (0..50).map(|_| counter.call(Counter::add, 1)).collect();
        assert_eq!(calls.last().unwrap().get(), Ok(51)); // nobody needs the head for that
        let meanwhile: Vec<_> = (300..600).map(|n| rt.submit(square, n)).collect();
        let nested = rt.submit(|n: u64| Runtime::current().submit(square, n).get().unwrap() + 1, 3);
        cluster.restart_head().unwrap();
        let after: Vec<_> = (600..900).map(|n| rt.submit(square, n)).collect();
        let all: Vec<_> = before.into_iter().chain(meanwhile).chain(after).collect();
        assert_eq!(rt.get_all(&all).unwrap(), (0..900).map(square).collect::<Vec<_>>());
        assert_eq!(nested.get(), Ok(10));
        // Names and groups are still there.
        let same: Actor<Counter> = rt.get_actor("counter").unwrap();
        assert_eq!(same.call(Counter::add, 1).get(), Ok(52));
        let error = rt.actor_builder(Counter::new).name("counter").try_start(1).unwrap_err();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        let inside = rt.task(|| 7).cpus(0.5).placement_group(&group, 0).submit(());
        assert_eq!(inside.get(), Ok(7));
        // Others can join.
        cluster.add_node().unwrap();
        let other = cluster.connect().unwrap();
        assert_eq!(other.submit(square, 12).get(), Ok(144));
        let found: Actor<Counter> = other.get_actor("counter").unwrap();
        assert_eq!(found.call(Counter::value, ()).get(), Ok(52));
        // And once more.
        cluster.kill_head();
        let last: Vec<_> = (0..50).map(|n| rt.submit(square, n)).collect();
        cluster.restart_head().unwrap();
        assert_eq!(rt.get_all(&last).unwrap().len(), 50);
        let late = rt.actor_builder(Counter::new).name("late").start(5);
        assert_eq!(late.call(Counter::value, ()).get(), Ok(5));
        assert_eq!(rt.get_actor::<Counter>("counter").unwrap().call(Counter::value, ()).get(), Ok(52));
    });
}

#[test]
fn tasks_that_waited_at_the_head_are_not_lost() {
    watch(|| {
        let (mut cluster, rt) = cluster(1);
        // It holds the only CPU for life, so the head keeps what asks for one.
        let holder = rt.actor_builder(Counter::new).cpus(1.0).start(0);
        assert_eq!(holder.call(Counter::value, ()).get(), Ok(0));
        let waiting: Vec<_> = (0..20).map(|n| rt.task(square).cpus(1.0).submit(n)).collect();
        until("the head has them", || rt.explain(&waiting[19]).to_string().contains("at the head"));
        cluster.kill_head();
        let more: Vec<_> = (20..40).map(|n| rt.task(square).cpus(1.0).submit(n)).collect();
        cluster.restart_head().unwrap();
        assert_eq!(holder.call(Counter::value, ()).get(), Ok(0));
        drop(holder);
        let all: Vec<_> = waiting.into_iter().chain(more).collect();
        assert_eq!(rt.get_all(&all).unwrap(), (0..40).map(square).collect::<Vec<_>>());
    });
}

#[test]
fn who_died_while_the_head_was_away_is_found_dead() {
    watch(|| {
        let (mut cluster, rt) = cluster(2);
        let files = Directory::new();
        let end = files.file("end");
        let on_each = |n| {
            let started = files.file(&format!("started-{n}"));
            rt.task(hold).strategy(Strategy::Spread).submit((started, end.clone()))
        };
        let run: Vec<_> = (0..2).map(on_each).collect();
        until("both run", || (0..2).all(|n| Path::new(&files.file(&format!("started-{n}"))).exists()));
        let other = cluster.connect().unwrap();
        let named = other.actor_builder(Counter::new).name("theirs").start(1);
        assert_eq!(named.call(Counter::value, ()).get(), Ok(1));
        cluster.kill_head();
        cluster.kill_node(0);
        drop(named);
        drop(other);
        cluster.restart_head().unwrap();
        fs::write(&end, "").unwrap();
        assert!(rt.get_all(&run).is_ok());
        until("its name is free", || {
            rt.actor_builder(Counter::new)
                .name("theirs")
                .try_start(2)
                .is_ok_and(|actor| actor.call(Counter::value, ()).get() == Ok(2))
        });
    });
}

/// A program of its own, which starts a detached actor and ends.
#[test]
#[ignore = "run by another test, as a program"]
fn program() {
    let rt = Runtime::from_env().unwrap();
    let builder = rt.actor_builder(Counter::new).name("lasting").max_restarts(5).detached();
    let counter = builder.try_start(10).unwrap();
    assert_eq!(counter.call(Counter::add, 5).get(), Ok(15));
}

#[test]
fn a_detached_actor_outlives_its_program_its_process_and_the_head() {
    watch(|| {
        let (mut cluster, rt) = cluster(2);
        let program = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "program"])
            .env("OUTRAY_ADDRESS", cluster.address())
            .env("OUTRAY_KEY_FILE", cluster.key_file())
            .output()
            .unwrap();
        assert!(program.status.success(), "{}", String::from_utf8_lossy(&program.stderr));
        let error = rt.actor_builder(Counter::new).name("lasting").detached().try_start(1).unwrap_err();
        assert!(matches!(error, Error::NameTaken { .. }), "{error}");
        let value = || rt.get_actor::<Counter>("lasting").unwrap().call(Counter::value, ()).get();
        assert_eq!(value(), Ok(15));
        // It is in nobody's way: another program's actors and tasks go on beside it.
        assert_eq!(rt.submit(square, 3).get(), Ok(9));
        let other = cluster.connect().unwrap();
        assert_eq!(other.get_actor::<Counter>("lasting").unwrap().call(Counter::add, 1).get(), Ok(16));
        drop(other);
        cluster.kill_head();
        cluster.restart_head().unwrap();
        assert_eq!(value(), Ok(16));
        // From its constructor, when its process dies.
        let counter = rt.get_actor::<Counter>("lasting").unwrap();
        let first = counter.call(Counter::pid, ()).get().unwrap();
        assert!(counter.call(Counter::exit, ()).get().is_err());
        until("it runs again", || counter.call(Counter::pid, ()).get().is_ok_and(|pid| pid != first));
        assert_eq!(counter.call(Counter::value, ()).get(), Ok(10));
        // The same when its node dies.
        let node = counter.call(Counter::node, ()).get().unwrap();
        let number = cluster.nodes().iter().position(|name| *name == node).unwrap();
        cluster.kill_node(number);
        until("it runs elsewhere", || counter.call(Counter::node, ()).get().is_ok_and(|other| other != node));
        // Until it is killed.
        counter.kill();
        until("it is dead", || counter.call(Counter::value, ()).get().is_err());
        until("its name is free", || rt.get_actor::<Counter>("lasting").is_err());
        let again = rt.actor_builder(Counter::new).name("lasting").detached().start(1);
        assert_eq!(again.call(Counter::value, ()).get(), Ok(1));
        again.kill();
    });
}

#[test]
fn a_cluster_that_keeps_nothing_says_so() {
    watch(|| {
        let mut cluster = LocalCluster::start(1).unwrap();
        let error = cluster.restart_head().unwrap_err();
        assert!(error.to_string().contains("durable"), "{error}");
    });
}
