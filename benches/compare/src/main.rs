//! outray against its peers: the same work, alternating, in one run.
//!
//! `cargo run --release -p outray-compare -- --list` names the rows; `-- noop_outside fib` runs two of them.
//! Absolute figures belong to one machine and one hour, so every row prints the ratio outray / peer.

use std::{process::ExitCode, thread::available_parallelism, time::Instant};

mod actors;
mod contest;
mod objects;
mod observe;
mod process;
mod task_bench;
mod tasks;

use contest::Plan;

/// One row of the table in `benches/README.md`.
struct Row {
    name: &'static str,
    work: &'static str,
    run: fn(&Plan),
}

const ROWS: &[Row] = &[
    Row { name: "noop_outside", work: "no-op task, 1M submitted from outside, get all", run: tasks::noop_outside },
    Row { name: "noop_inside", work: "no-op task, 1M submitted from inside a task, get all", run: tasks::noop_inside },
    Row { name: "round_trip", work: "submit + get one task", run: tasks::round_trip },
    Row { name: "actor_call", work: "actor call + get, one at a time", run: actors::call },
    Row { name: "actor_pipelined", work: "actor calls pipelined, get all", run: actors::pipelined },
    Row { name: "fib", work: "fib(25), one task per call", run: tasks::fib },
    Row { name: "chain", work: "chain of 1,000 dependent tasks, per link", run: tasks::chain },
    Row { name: "queued", work: "1M queued tasks while every worker is held", run: process::queued },
    Row { name: "put", work: "put + get_shared of 1 GiB against 1 MiB", run: objects::put },
    Row { name: "startup", work: "first result after start, then two idle seconds", run: process::startup },
    Row { name: "observe", work: "observability on against off", run: observe::observe },
    Row { name: "task_bench", work: "Task Bench patterns, METG", run: task_bench::metg },
];

const USAGE: &str = "usage: outray-compare [--list] [--quick] [--rounds N] [ROW...]   (no ROW: all of them)";

fn main() -> ExitCode {
    let start = Instant::now();
    let mut args = std::env::args().skip(1);
    let mut plan = Plan { rounds: 7, quick: false };
    let mut chosen: Vec<&Row> = Vec::new();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            process::CHILD => return process::child(start, args),
            "--list" => {
                ROWS.iter().for_each(|row| println!("{:<16} {}", row.name, row.work));
                return ExitCode::SUCCESS;
            }
            "--quick" => plan = Plan { rounds: 5, quick: true },
            "--rounds" => match args.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0) {
                Some(rounds) => plan.rounds = rounds,
                None => return misuse("--rounds needs a number above 0"),
            },
            name => match ROWS.iter().find(|row| row.name == name) {
                Some(row) => chosen.push(row),
                None => return misuse(&format!("no row is called {name:?}: --list names them")),
            },
        }
    }
    if chosen.is_empty() {
        chosen.extend(ROWS);
    }
    let quick = if plan.quick { ", quick" } else { "" };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_else(|_| "unknown".to_owned());
    println!("{} cores, {} rounds after one to warm up{quick}; load before: {}", cores(), plan.rounds, load.trim());
    for row in chosen {
        println!("\n## {}: {}", row.name, row.work);
        (row.run)(&plan);
    }
    ExitCode::SUCCESS
}

fn misuse(why: &str) -> ExitCode {
    eprintln!("{why}\n{USAGE}");
    ExitCode::FAILURE
}

/// Cores that this process may use: the number of workers of every side.
fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}
