//! The cluster's control logic in simulation: the rules hold, whatever happens in between. A seed
//! that breaks one is printed; `OUTRAY_SEED=n` runs that one alone, `OUTRAY_SEEDS=n` so many.

use outray::cluster::simulation::{Options, Report, Sabotage, Violation, run};
use std::{thread, time::Duration};

/// Runs each seed, on all CPUs, and returns what happened in all of them.
fn all(seeds: u64, options: impl Fn(u64) -> Options + Sync) -> Vec<Report> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("OUTRAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OUTRAY_SEEDS").unwrap_or(seeds),
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = |first| seeds.clone().skip(first).step_by(threads).map(|seed| run(&options(seed))).collect();
    let shares: Vec<Result<Vec<Report>, Violation>> = thread::scope(|scope| {
        let share = &share;
        let running: Vec<_> = (0..threads).map(|first| scope.spawn(move || share(first))).collect();
        running.into_iter().map(|thread| thread.join().expect("what panics in a run is a violation")).collect()
    });
    shares.into_iter().flat_map(|share| share.unwrap_or_else(|violation| panic!("{violation}"))).collect()
}

fn sum(reports: &[Report], of: impl Fn(&Report) -> usize) -> usize {
    reports.iter().map(of).sum()
}

/// Whether there was something of it; with one seed there need not be.
fn some(reports: &[Report], of: impl Fn(&Report) -> usize) -> bool {
    reports.len() == 1 || sum(reports, of) > 0
}

/// Whatever may die or come late, by the seed.
fn everything(seed: u64) -> Options {
    Options {
        nodes: 3 + seed as usize % 5,
        cpus: 1 + seed as u32 % 4,
        drivers: 1 + seed as usize % 3,
        borrowing: seed.is_multiple_of(3),
        cancellations: seed as usize % 20,
        crashes: seed as usize % 3,
        driver_crashes: seed as usize % 2,
        worker_crashes: seed as usize % 4,
        partitions: seed as usize % 3,
        loss: 10 + seed % 100,
        ..Options::with_seed(seed)
    }
}

/// What is checked can be found wrong.
#[test]
fn simulation_notices_what_is_wrong() {
    for (sabotage, words) in [
        (Sabotage::EndTwice, "it was not pending"),
        (Sabotage::Fail, "nothing explains"),
        (Sabotage::Swap, "has the value"),
        (Sabotage::Lose, "is freed while"),
        (Sabotage::Leak, "did not come to an end"),
        (Sabotage::OverbookCpus, "thousandths of CPUs are used"),
        (Sabotage::OverbookGpus, "are used, there is"),
        (Sabotage::Panic, "panicked"),
        (Sabotage::StandStill, "time stands still"),
    ] {
        let interval = Duration::from_micros(50);
        let options = |seed| Options { borrowing: true, interval, ..Options::with_seed(seed) };
        let broken = |seed| run(&Options { sabotage: Some(sabotage), ..options(seed) }).err();
        let Some(violation) = (0..20).find_map(broken) else { panic!("{sabotage:?} is not noticed") };
        assert!(violation.to_string().contains(words), "{sabotage:?}: {violation}");
    }
}

/// All at once, above real links: packets are lost, repeated, overtaken and delayed, and connections break.
#[test]
fn simulation_all_at_once_over_links() {
    let reports = all(1_000, |seed| Options {
        links: true,
        tasks: 40,
        packs: seed % 3 == 0,
        groups: seed % 4 < 2,
        endings: seed as usize % 2,
        head_crashes: seed as usize % 3,
        borrowing: seed % 5 < 3,
        task_time: Duration::from_micros(100 + 500 * (seed % 20)),
        ..everything(seed)
    });
    assert!(reports.iter().all(|report| report.packets > 0));
    assert!(some(&reports, |report| report.head_starts) && some(&reports, |report| report.groups));
    assert!(some(&reports, |report| report.packs) && some(&reports, |report| report.withdrawn));
}

#[test]
fn simulation_without_faults() {
    let reports = all(100, Options::with_seed);
    assert!(reports.iter().all(|report| report.ended == 100 && report.starts <= 100));
    assert!(some(&reports, |report| report.failed), "some tasks are made to fail");
}

#[test]
fn simulation_with_lost_packets_and_partitions() {
    let reports = all(100, |seed| Options { loss: 20, partitions: 3, ..Options::with_seed(seed) });
    assert!(sum(&reports, |report| report.starts) > sum(&reports, |report| report.ended) / 2);
}

#[test]
fn simulation_with_nodes_that_die() {
    let reports = all(100, |seed| Options { nodes: 4, crashes: 3, loss: 50, ..Options::with_seed(seed) });
    assert!(reports.iter().all(|report| report.ended == 100));
    let [starts, ended, failed] =
        [|r: &Report| r.starts, |r: &Report| r.ended, |r: &Report| r.failed].map(|of| sum(&reports, of));
    assert!(starts > ended - failed, "{starts} starts for {ended} tasks, of which {failed} failed");
}

#[test]
fn simulation_with_everything_that_can_happen() {
    all(100, |seed| Options {
        nodes: 3 + seed as usize % 8,
        cpus: 1 + seed as u32 % 4,
        drivers: 1 + seed as usize % 4,
        tasks: 150,
        task_time: Duration::from_millis(1 + seed % 20),
        cancellations: seed as usize % 30,
        crashes: seed as usize % 5,
        driver_crashes: seed as usize % 2,
        partitions: seed as usize % 4,
        loss: 10 + seed % 100,
        ..Options::with_seed(seed)
    });
}

#[test]
fn simulation_with_drivers_that_end_while_tasks_run() {
    let reports = all(200, |seed| Options {
        cpus: 1 + seed as u32 % 3,
        endings: 1 + seed as usize % 2,
        task_time: Duration::from_millis(1 + seed % 20),
        cancellations: seed as usize % 10,
        borrowing: seed % 3 == 0,
        groups: seed % 4 == 0,
        ..Options::with_seed(seed)
    });
    assert!(some(&reports, |report| report.withdrawn), "all had started");
}

#[test]
fn simulation_with_drivers_that_end_and_everything_that_can_happen() {
    let reports = all(100, |seed| Options {
        tasks: 80,
        endings: 1 + seed as usize % 3,
        head_crashes: seed as usize % 2,
        groups: seed % 2 == 0,
        task_time: Duration::from_millis(1 + seed % 20),
        ..everything(seed)
    });
    assert!(some(&reports, |report| report.withdrawn), "all had started");
}

#[test]
fn simulation_with_a_head_that_is_started_again() {
    let reports = all(60, |seed| Options {
        nodes: 3 + seed as usize % 4,
        head_crashes: 1 + seed as usize % 3,
        task_time: Duration::from_millis(1 + seed % 20),
        cancellations: seed as usize % 20,
        loss: 50,
        ..Options::with_seed(seed)
    });
    assert!(reports.iter().all(|report| report.ended == 100));
    assert!(sum(&reports, |report| report.head_starts) >= reports.len());
}

#[test]
fn simulation_with_a_head_that_is_started_again_and_everything_that_can_happen() {
    let reports = all(60, |seed| Options {
        tasks: 80,
        head_crashes: 1 + seed as usize % 2,
        groups: seed % 2 == 0,
        task_time: Duration::from_millis(1 + seed % 20),
        ..everything(seed)
    });
    assert!(some(&reports, |report| report.groups));
}

/// The same above real links: packets are lost, repeated, overtaken and delayed, and connections break.
#[test]
fn simulation_over_links_without_other_faults() {
    let reports = all(60, |seed| Options { links: true, loss: 5 + seed % 50, ..Options::with_seed(seed) });
    assert!(reports.iter().all(|report| report.ended == 100));
    assert!(reports.iter().all(|report| report.lost_packets > 0));
    // Six processes are fifteen pairs at most, so some had more than one.
    assert!(sum(&reports, |report| report.connections) > 60 * 15);
}

#[test]
fn simulation_over_links_with_everything_that_can_happen() {
    let reports = all(40, |seed| Options {
        links: true,
        nodes: 3 + seed as usize % 5,
        drivers: 1 + seed as usize % 3,
        cancellations: seed as usize % 20,
        crashes: seed as usize % 4,
        driver_crashes: seed as usize % 2,
        partitions: seed as usize % 4,
        loss: 5 + seed % 100,
        ..Options::with_seed(seed)
    });
    assert!(reports.iter().all(|report| report.packets > 0));
}

#[test]
fn simulation_of_borrowers() {
    let reports = all(100, |seed| Options { borrowing: true, tasks: 60, ..Options::with_seed(seed) });
    assert!(reports.iter().all(|report| report.ended > 60));
}

#[test]
fn simulation_of_borrowers_with_everything_that_can_happen() {
    all(100, |seed| Options {
        nodes: 3 + seed as usize % 4,
        cpus: 1 + seed as u32 % 4,
        drivers: 1 + seed as usize % 3,
        tasks: 80,
        borrowing: true,
        task_time: Duration::from_millis(1 + seed % 20),
        cancellations: seed as usize % 20,
        crashes: seed as usize % 3,
        driver_crashes: seed as usize % 2,
        worker_crashes: seed as usize % 5,
        partitions: seed as usize % 3,
        loss: 10 + seed % 100,
        ..Options::with_seed(seed)
    });
}

#[test]
fn simulation_of_placement_groups() {
    let reports = all(100, |seed| Options {
        nodes: 3 + seed as usize % 3,
        tasks: 60,
        groups: true,
        borrowing: seed % 2 == 0,
        cancellations: seed as usize % 10,
        crashes: seed as usize % 3,
        driver_crashes: seed as usize % 2,
        partitions: seed as usize % 3,
        loss: 50,
        ..Options::with_seed(seed)
    });
    assert!(sum(&reports, |report| report.groups) >= reports.len() / 2);
}

/// Many small tasks: they travel in packs, and are handed to workers ahead of their turn.
#[test]
fn simulation_of_packs() {
    let reports = all(200, |seed| Options {
        packs: true,
        cpus: 1 + seed as u32 % 3,
        task_time: Duration::from_micros(20 + 40 * (seed % 20)),
        cancellations: seed as usize % 10,
        ..Options::with_seed(seed)
    });
    assert!(reports.iter().all(|report| report.ended == 100 && report.starts <= 100));
    assert!(sum(&reports, |report| report.packs) > reports.len());
    assert!(sum(&reports, |report| report.given_back) > reports.len() / 2);
    assert!(some(&reports, |report| report.chained));
}

#[test]
fn simulation_of_packs_with_everything_that_can_happen() {
    let reports = all(100, |seed| Options {
        packs: true,
        endings: (seed % 4 == 1).into(),
        head_crashes: seed as usize % 2,
        groups: seed % 5 == 0,
        task_time: Duration::from_micros(20 + 100 * (seed % 20)),
        ..everything(seed)
    });
    assert!(some(&reports, |report| report.packs) && some(&reports, |report| report.chained));
    assert!(some(&reports, |report| report.given_back));
}

#[test]
fn simulation_of_packs_over_links() {
    let reports = all(60, |seed| Options {
        packs: true,
        links: true,
        task_time: Duration::from_micros(20 + 40 * (seed % 20)),
        cancellations: seed as usize % 10,
        crashes: seed as usize % 3,
        loss: 5 + seed % 50,
        ..Options::with_seed(seed)
    });
    assert!(some(&reports, |report| report.packs) && some(&reports, |report| report.given_back));
}

/// Each seed with another number of nodes, with and without links.
#[test]
fn simulation_of_dozens_to_hundreds_of_nodes() {
    all(20, |seed| Options {
        links: seed % 4 == 0,
        nodes: 20 + 280 * (seed as usize % 20) / 19,
        drivers: 3 + seed as usize % 6,
        tasks: 200,
        packs: seed % 3 == 0,
        groups: seed % 4 < 2,
        endings: seed as usize % 2,
        head_crashes: seed as usize % 2,
        ..everything(seed)
    });
}

#[test]
fn simulation_of_many_nodes() {
    let interval = Duration::from_micros(50);
    let options = |seed| Options { nodes: 1_000, drivers: 20, tasks: 5_000, interval, ..Options::with_seed(seed) };
    let faults = |seed| Options { crashes: 10, partitions: 2, loss: 100, ..options(seed) };
    assert!(all(1, faults).iter().all(|report| report.ended > 0 && report.starts > 0));
}

#[test]
fn simulation_runs_the_same_for_the_same_seed() {
    let options = Options { crashes: 2, partitions: 1, loss: 30, ..Options::with_seed(11) };
    let (first, second) = (run(&options).unwrap(), run(&options).unwrap());
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
    let linked = Options { links: true, borrowing: true, worker_crashes: 2, head_crashes: 1, ..options.clone() };
    assert_eq!(format!("{:?}", run(&linked).unwrap()), format!("{:?}", run(&linked).unwrap()));
    let other = run(&Options { seed: 12, ..options }).unwrap();
    assert_ne!(format!("{first:?}"), format!("{other:?}"));
}
