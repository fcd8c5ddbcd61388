//! Questions that a node and its workers answer together.

use super::{NodeProcess, State};
use crate::{
    cluster::{
        look,
        protocol::ProcessId,
        wire::{self, Letter, Question},
    },
    observe::TaskState,
};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

/// Who has not answered by then is left out.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Questions {
    open: BTreeMap<u64, Open>,
    last: u64,
}

/// A question that was passed on to workers.
struct Open {
    to: ProcessId,
    number: u64,
    question: Question,
    /// What the node itself knows.
    ours: Value,
    node: About,
    asked: BTreeMap<ProcessId, Asked>,
    missing: BTreeSet<ProcessId>,
    theirs: Vec<(ProcessId, Bytes)>,
    until: Instant,
}

/// A node's name for people, and its number.
struct About {
    name: String,
    id: String,
}

/// A worker.
struct Asked {
    pid: u32,
    program: Arc<str>,
}

impl NodeProcess {
    pub(super) fn asked(self: &Arc<Self>, state: &mut State, to: ProcessId, number: u64, question: Question) {
        let ours = self.answer(state, &question);
        let missing = to_be_asked(state, &question);
        state.questions.last += 1;
        let own = state.questions.last;
        let mut asked = BTreeMap::new();
        for id in &missing {
            let Some(worker) = state.workers.get(id) else { continue };
            asked.insert(*id, Asked { pid: worker.pid, program: state.program(worker.driver) });
            let letter = Letter::Ask { number: own, question: question.clone() };
            self.send(state, self.envelope(*id, letter, Vec::new()));
        }
        let node = About { name: self.called(state).to_owned(), id: self.name.clone() };
        let until = Instant::now() + PATIENCE;
        let open = Open { to, number, question, ours, node, asked, missing, theirs: Vec::new(), until };
        state.questions.open.insert(own, open);
        self.reply_if_complete(state, own);
    }

    pub(super) fn worker_answered(
        self: &Arc<Self>,
        state: &mut State,
        from: ProcessId,
        number: u64,
        answer: Option<Bytes>,
    ) {
        let Some(open) = state.questions.open.get_mut(&number) else { return };
        if open.missing.remove(&from) {
            open.theirs.extend(answer.map(|answer| (from, answer)));
        }
        self.reply_if_complete(state, number);
    }

    /// No answer will come from it.
    pub(super) fn leave_out(self: &Arc<Self>, state: &mut State, worker: ProcessId) {
        let open: Vec<_> = state.questions.open.keys().copied().collect();
        for number in open {
            self.worker_answered(state, worker, number, None);
        }
    }

    /// Those that have waited long enough are answered with what there is.
    pub(super) fn answer_late(self: &Arc<Self>, state: &mut State) {
        if state.questions.open.is_empty() {
            return;
        }
        let now = Instant::now();
        let late = state.questions.open.iter_mut().filter(|(_, open)| open.until <= now);
        let late: Vec<_> = late
            .map(|(number, open)| {
                open.missing.clear();
                *number
            })
            .collect();
        for number in late {
            self.reply_if_complete(state, number);
        }
    }

    fn reply_if_complete(self: &Arc<Self>, state: &mut State, number: u64) {
        if !state.questions.open.get(&number).is_some_and(|open| open.missing.is_empty()) {
            return;
        }
        let Some(open) = state.questions.open.remove(&number) else { return };
        if open.theirs.is_empty() {
            let (letter, payload) = wire::answer(open.number, &open.ours);
            return self.send(state, self.envelope(open.to, letter, payload));
        }
        // It may be much; others do not wait for that.
        let node = self.clone();
        std::thread::spawn(move || {
            let (to, number) = (open.to, open.number);
            let (letter, payload) = wire::answer(number, &open.put_together());
            let answer = node.envelope(to, letter, payload);
            node.with(|state, _| node.send(state, answer));
        });
    }
}

/// The workers that know more.
fn to_be_asked(state: &State, question: &Question) -> BTreeSet<ProcessId> {
    let of_job = |job: Option<ProcessId>| {
        let workers = state.workers.iter().filter(|(_, worker)| worker.is_ready);
        workers.filter(|(_, worker)| job.is_none_or(|job| worker.driver == job)).map(|(id, _)| *id).collect()
    };
    match question {
        Question::Tasks { job } | Question::Actors { job } | Question::Runs { job } => of_job(*job),
        Question::Held { job } | Question::Stats { job } => of_job(Some(*job)),
        Question::Explain { task } => {
            let runs = state.runs.iter().filter(|((id, _), _)| id == task).map(|(_, run)| run.worker);
            let called = state.workers.iter().filter(|(_, worker)| worker.calls.contains(*task));
            // What a worker runs for itself only it knows.
            let all = runs.chain(called.map(|(id, _)| *id)).chain([task.owner]);
            all.filter(|id| state.workers.get(id).is_some_and(|worker| worker.is_ready)).collect()
        }
        _ => BTreeSet::new(),
    }
}

impl Open {
    fn put_together(self) -> Value {
        let Open { question, mut ours, node, asked, theirs, .. } = self;
        let theirs = theirs.into_iter().filter_map(|(id, answer)| {
            let answer: Value = serde_json::from_slice(&answer).ok()?;
            Some((id, asked.get(&id)?, answer))
        });
        match question {
            Question::Tasks { .. } | Question::Actors { .. } | Question::Held { .. } => {
                let Value::Array(rows) = &mut ours else { return ours };
                let places: BTreeMap<String, usize> =
                    rows.iter().enumerate().map(|(place, row)| (row["of"].to_string(), place)).collect();
                for (id, worker, answer) in theirs {
                    let Value::Array(answer) = answer else { continue };
                    for row in answer {
                        let known = places.get(&row["of"].to_string()).filter(|_| !row["of"].is_null());
                        match known.and_then(|place| rows.get_mut(*place)) {
                            Some(ours) => refine(ours, &row),
                            // An actor that is not in our list has just ended.
                            None if matches!(question, Question::Actors { .. }) => {}
                            None => rows.push(complete(row, &node, id, worker)),
                        }
                    }
                }
            }
            Question::Stats { .. } => {
                for (_, _, answer) in theirs {
                    let Value::Object(sums) = answer else { continue };
                    for (name, value) in sums {
                        let sum = ours[&name].as_u64().unwrap_or_default() + value.as_u64().unwrap_or_default();
                        ours[name] = json!(sum);
                    }
                }
            }
            Question::Explain { .. } => {
                for (_, worker, answer) in theirs.filter(|(_, _, answer)| answer.is_object()) {
                    (ours["phase"], ours["attempt"]) = (answer["phase"].clone(), answer["attempt"].clone());
                    let mut more = answer["lines"].as_array().into_iter().flatten().filter_map(Value::as_str);
                    // The first line says what the asking process knows itself, unless it is the worker's own.
                    let first = more.next().unwrap_or_default();
                    if ours["lines"].is_null() {
                        ours["lines"] = json!([format!("on node {} in process {}: {first}", node.name, worker.pid)]);
                    }
                    if let Value::Array(lines) = &mut ours["lines"] {
                        lines.extend(more.map(|line| line.trim_start().into()));
                    }
                }
            }
            Question::Runs { .. } => {
                let theirs = theirs.filter(|(_, _, answer)| answer.is_object());
                let details: Vec<_> = theirs
                    .map(|(_, worker, mut answer)| {
                        (answer["pid"], answer["job"]) = (worker.pid.into(), (*worker.program).into());
                        answer
                    })
                    .collect();
                // A worker that observes knows better what it ran.
                if let Value::Array(runs) = &mut ours["runs"] {
                    runs.retain(|run| details.iter().all(|detail| detail["pid"] != run[2]));
                }
                ours["details"] = details.into();
            }
            _ => {}
        }
        ours
    }
}

/// A row of a worker's that is not in the node's tables.
fn complete(mut row: Value, node: &About, id: ProcessId, worker: &Asked) -> Value {
    if let Some(phase) = phase(&row) {
        row["state"] = look::words(phase).into();
    }
    let process = serde_json::from_value::<ProcessId>(row["process"].clone()).unwrap_or(id);
    row["id"] = format!("{process}/#{}", row["number"]).into();
    (row["node"], row["node_id"]) = (node.name.as_str().into(), node.id.as_str().into());
    (row["job"], row["pid"]) = ((*worker.program).into(), worker.pid.into());
    row
}

fn phase(row: &Value) -> Option<TaskState> {
    serde_json::from_value(row["phase"].clone()).ok()
}

/// What the worker says of something is more than what the node knows.
fn refine(ours: &mut Value, theirs: &Value) {
    if let Some(phase) = phase(theirs) {
        ours["state"] = look::words(phase).into();
        ours["attempt"] = ours["attempt"].as_u64().max(theirs["attempt"].as_u64()).into();
    }
    for name in ["phase", "kind", "name", "submitted_at", "info"] {
        if !theirs[name].is_null() {
            ours[name] = theirs[name].clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::protocol::HEAD;

    fn together(question: Question, ours: Value, theirs: &[Value]) -> Value {
        let ids = (1..).map(|number| ProcessId::station_from(5).worker(number));
        let worker = |number: u32| Asked { pid: 100 + number, program: "program".into() };
        let open = Open {
            to: HEAD,
            number: 1,
            question,
            ours,
            node: About { name: "alice".into(), id: "000000000005".into() },
            asked: ids.clone().zip((0..10).map(worker)).collect(),
            missing: BTreeSet::new(),
            theirs: ids.zip(theirs.iter().map(|answer| answer.to_string().into())).collect(),
            until: Instant::now(),
        };
        open.put_together()
    }

    #[test]
    fn a_worker_says_more_of_a_task_and_knows_of_those_that_stay_with_it() {
        let of = json!({ "owner": 7, "number": 1 });
        let ours = json!([{ "of": of, "phase": "Running", "state": "running", "attempt": 1, "kind": "task" }]);
        let theirs = json!([
            { "of": of, "phase": "Pausing", "attempt": 2 },
            { "of": null, "process": 7 << 16, "number": 3, "name": "inside", "phase": "Running" },
        ]);
        let rows = together(Question::Tasks { job: None }, ours, &[theirs, json!("what?")]);
        assert_eq!((rows[0]["state"].as_str(), rows[0]["attempt"].as_u64()), (Some("pausing"), Some(2)));
        assert_eq!((rows[1]["state"].as_str(), rows[1]["pid"].as_u64()), (Some("running"), Some(100)));
        assert_eq!((rows[1]["node"].as_str(), rows[1]["id"].as_str()), (Some("alice"), Some("000000000007/#3")));
        assert_eq!(rows.as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn figures_are_added_and_lines_follow_each_other() {
        let (ours, theirs) = (json!({ "queued": 2, "cpus": 1.5 }), json!({ "queued": 3, "threads": 4 }));
        let sums = together(Question::Stats { job: HEAD }, ours, &[theirs.clone(), theirs]);
        assert_eq!(sums, json!({ "queued": 8, "threads": 8, "cpus": 1.5 }));
        let task = crate::cluster::protocol::ObjectId { owner: HEAD, number: 1 };
        let ours = json!({ "phase": "Queued", "attempt": 1, "lines": ["here"] });
        let theirs = json!({ "phase": "Running", "attempt": 2, "lines": ["known", "  more"] });
        let said = together(Question::Explain { task }, ours, &[Value::Null, theirs]);
        assert_eq!(said, json!({ "phase": "Running", "attempt": 2, "lines": ["here", "more"] }));
    }

    #[test]
    fn the_runs_of_a_worker_that_observes_replace_what_the_node_has_seen_of_it() {
        let ours = json!({ "texts": ["f"], "runs": [[0, 0, 100, 1, 2, 0, 1], [0, 0, 101, 1, 2, 0, 1]] });
        let runs = together(Question::Runs { job: None }, ours, &[json!({ "runs": [] }), Value::Null]);
        assert_eq!(runs["runs"], json!([[0, 0, 101, 1, 2, 0, 1]]));
        assert_eq!(runs["details"], json!([{ "runs": [], "pid": 100, "job": "program" }]));
    }
}
