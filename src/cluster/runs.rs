//! What ran when on a node, and the timeline of a cluster that is made of it.

use super::protocol::ProcessId;
use serde_json::{Value, json};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    io::{self, Write},
    sync::Arc,
};

/// Rows that are free, and from when on.
type Free = BinaryHeap<Reverse<(u64, u64)>>;

/// Runs that a node remembers; older ones make room.
const MOST: usize = 100_000;

/// One task or call, from when its worker got it until it had ended.
pub(crate) struct Run {
    pub(crate) name: Arc<str>,
    pub(crate) kind: &'static str,
    /// In the process that submitted it.
    pub(crate) number: u64,
    /// The job, and what that is called.
    pub(crate) driver: ProcessId,
    pub(crate) program: Arc<str>,
    pub(crate) pid: u32,
    /// Nanoseconds since the node was started.
    pub(crate) start: u64,
    pub(crate) end: u64,
}

#[derive(Default)]
pub(crate) struct Runs(VecDeque<Run>);

impl Runs {
    pub(crate) fn push(&mut self, run: Run) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(run);
    }

    /// Each text once, and rows of name, job, worker, start, length, kind and number; times in nanoseconds.
    pub(crate) fn to_json(&self, job: Option<ProcessId>) -> Value {
        let mut texts: Vec<&str> = Vec::new();
        let mut places = BTreeMap::new();
        let mut place = |text| {
            *places.entry(text).or_insert_with(|| {
                texts.push(text);
                texts.len() - 1
            })
        };
        let rows: Vec<_> = self
            .0
            .iter()
            .filter(|run| job.is_none_or(|job| job == run.driver))
            .map(|run| {
                let (name, program, kind) = (place(&*run.name), place(&*run.program), place(run.kind));
                json!([name, program, run.pid, run.start, run.end - run.start, kind, run.number])
            })
            .collect();
        json!({ "texts": texts, "runs": rows })
    }
}

/// Writes what nodes have answered as a trace that Perfetto opens: a process for each node, and in it rows for
/// each worker: one for each of its threads if it observes, and else as many as it has run tasks at once. Returns how
/// many runs are in it.
pub(crate) fn write_trace(nodes: &[Value], mut file: impl Write) -> io::Result<usize> {
    let mut separator = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
    let mut event = |event: Value| {
        let written = write!(file, "{separator}{event}");
        separator = ",\n";
        written
    };
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let zero = nodes.iter().map(|node| number(&node["started_ns"])).min().unwrap_or_default();
    let (mut count, mut next_row) = (0, 0);
    for (at, node) in nodes.iter().enumerate() {
        let process = at + 1;
        let name = format!("node {}", node["name"].as_str().or(node["node"].as_str()).unwrap_or("?"));
        event(json!({"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}))?;
        let offset = number(&node["started_ns"]) - zero;
        let text = |place: &Value| node["texts"][number(place) as usize].as_str().unwrap_or("?");
        let mut rows: Vec<&Vec<Value>> =
            node["runs"].as_array().into_iter().flatten().filter_map(Value::as_array).collect();
        rows.sort_by_key(|row| row.get(3).map(number));
        // Of each worker: its rows that are free, from when on, and how many it has.
        let mut workers: BTreeMap<u64, (Free, u64)> = BTreeMap::new();
        for row in rows {
            let [name, job, pid, start, length, kind, number_there] = row.as_slice() else { continue };
            let (pid, start, length) = (number(pid), number(start), number(length));
            let (free, lanes) = workers.entry(pid).or_default();
            let row = match free.peek() {
                Some(Reverse((since, row))) if *since <= start => {
                    let row = *row;
                    free.pop();
                    row
                }
                _ => {
                    *lanes += 1;
                    next_row += 1;
                    let name = format!("worker {pid}, row {lanes}");
                    event(
                        json!({"ph": "M", "name": "thread_name", "pid": process, "tid": next_row, "args": {"name": name}}),
                    )?;
                    next_row
                }
            };
            free.push(Reverse((start + length, row)));
            let (ts, dur) = ((offset + start) as f64 / 1e3, length as f64 / 1e3);
            event(json!({"ph": "X", "name": text(name), "cat": text(kind), "pid": process, "tid": row,
                         "ts": ts, "dur": dur, "args": {"job": text(job), "id": number_there}}))?;
            count += 1;
        }
        for worker in node["details"].as_array().into_iter().flatten() {
            let offset = number(&worker["started_ns"]).saturating_sub(zero);
            let text = |place: &Value| worker["texts"][number(place) as usize].as_str().unwrap_or("?");
            let first_row = next_row + 1;
            for thread in worker["threads"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                next_row += 1;
                let name = format!("worker {}, {thread}", worker["pid"]);
                event(
                    json!({"ph": "M", "name": "thread_name", "pid": process, "tid": next_row, "args": {"name": name}}),
                )?;
            }
            for run in worker["runs"].as_array().into_iter().flatten().filter_map(Value::as_array) {
                let [thread, name, kind, id, start, length, depth] = run.as_slice() else { continue };
                let (ts, dur) = ((offset + number(start)) as f64 / 1e3, number(length) as f64 / 1e3);
                event(json!({"ph": "X", "name": text(name), "cat": text(kind), "pid": process,
                             "tid": first_row + number(thread), "ts": ts, "dur": dur,
                             "args": {"job": worker["job"], "id": id, "inside": depth}}))?;
                count += 1;
            }
        }
    }
    if nodes.is_empty() {
        write!(file, "{separator}")?;
    }
    writeln!(file, "\n]}}")?;
    file.flush()?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(pid: u32, start: u64, end: u64) -> Run {
        let (name, program) = (format!("from {start}").into(), "job".into());
        Run { name, kind: "task", number: 1, driver: ProcessId(9), program, pid, start, end }
    }

    fn node(name: &str, started: u64, all: Vec<Run>) -> Value {
        let mut runs = Runs::default();
        all.into_iter().for_each(|run| runs.push(run));
        let mut answer = runs.to_json(None);
        answer["node"] = name.into();
        answer["started_ns"] = started.into();
        answer
    }

    #[test]
    fn tasks_that_overlap_have_rows_of_their_own_and_nodes_share_one_clock() {
        let a = node("a", 5_000_000, vec![run(7, 0, 2_000), run(7, 1_000, 3_000), run(7, 2_000, 4_000), run(8, 0, 1)]);
        let b = node("b", 6_000_000, vec![run(9, 500, 1_500)]);
        let mut file = Vec::new();
        assert_eq!(write_trace(&[a, b], &mut file).unwrap(), 5);
        let trace: Value = serde_json::from_slice(&file).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let runs: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        let row = |name: &str| {
            let run = runs.iter().find(|run| run["name"] == name && run["pid"] == 1 && run["dur"] != 0.001).unwrap();
            run["tid"].as_u64().unwrap()
        };
        assert_eq!(row("from 0"), row("from 2000"));
        assert_ne!(row("from 0"), row("from 1000"));
        let of_b = runs.iter().find(|run| run["pid"] == 2).unwrap();
        assert_eq!((of_b["ts"].as_f64(), of_b["dur"].as_f64()), (Some(1_000.5), Some(1.0)));
        let names: Vec<_> = events.iter().filter(|event| event["name"] == "process_name").collect();
        assert_eq!(names.len(), 2);
        assert_eq!(names[0]["args"]["name"], "node a");
    }

    #[test]
    fn a_worker_that_observes_has_a_row_for_each_of_its_threads() {
        let mut answer = node("a", 5_000_000, vec![run(8, 0, 1_000)]);
        answer["details"] = json!([{ "pid": 7, "job": "job", "started_ns": 6_000_000, "threads": ["t0", "t1"],
            "texts": ["inside", "call"], "runs": [[1, 0, 1, 42, 500, 1_000, 2]] }]);
        let mut file = Vec::new();
        assert_eq!(write_trace(&[answer.clone(), answer], &mut file).unwrap(), 4);
        let trace: Value = serde_json::from_slice(&file).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let run = events.iter().find(|event| event["ph"] == "X" && event["name"] == "inside").unwrap();
        assert_eq!((run["cat"].as_str(), run["args"]["id"].as_u64()), (Some("call"), Some(42)));
        assert_eq!((run["ts"].as_f64(), run["dur"].as_f64()), (Some(1_000.5), Some(1.0)));
        let threads: Vec<_> = events.iter().filter(|event| event["name"] == "thread_name").collect();
        let row = threads.iter().find(|event| event["tid"] == run["tid"]).unwrap();
        assert_eq!(row["args"]["name"], "worker 7, t1");
        let rows: std::collections::BTreeSet<_> = threads.iter().map(|event| event["tid"].as_u64()).collect();
        assert_eq!(rows.len(), threads.len(), "each row has a number of its own");
    }

    #[test]
    fn no_more_than_the_last_are_kept_and_a_cluster_without_nodes_has_a_trace() {
        let mut runs = Runs::default();
        (0..MOST as u64 + 10).for_each(|start| runs.push(run(1, start, start + 1)));
        assert_eq!((runs.0.len(), runs.0.front().map(|run| run.start)), (MOST, Some(10)));
        let mut file = Vec::new();
        assert_eq!(write_trace(&[], &mut file).unwrap(), 0);
        let trace: Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(trace["traceEvents"], json!([]));
    }
}
