//! Answers of the cluster, for people.

use super::table::{amount, bytes, count, seconds, shortened, table};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The longest name in a table.
const NAME: usize = 48;

/// What is not known is a dash.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => "-".into(),
    }
}

fn name(value: &Value) -> String {
    shortened(&text(value), NAME)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".into(), bytes)
}

fn time(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), seconds)
}

fn rows(answer: &Value) -> &[Value] {
    answer.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn cpus(value: &Value) -> f64 {
    value["cpus"].as_f64().unwrap_or_default()
}

/// How much of all GPUs.
fn gpus(value: &Value) -> f64 {
    rows(&value["gpus"]).iter().filter_map(Value::as_f64).sum()
}

/// `1.5 of 4`: what is taken of what is there.
fn share(node: &Value, what: impl Fn(&Value) -> f64) -> String {
    let (all, free) = (what(&node["capacity"]), what(&node["free"]));
    format!("{} of {}", amount(all - free), amount(all))
}

pub(super) fn status(answer: &Value) -> String {
    let (head, nodes, jobs) = (&answer["head"], rows(&answer["nodes"]), rows(&answer["jobs"]));
    let sum = |part: &str, what: fn(&Value) -> f64| nodes.iter().map(|node| what(&node[part])).sum::<f64>();
    let (all, free) = (sum("capacity", cpus), sum("free", cpus));
    let (all_gpus, free_gpus) = (sum("capacity", gpus), sum("free", gpus));
    let total = |what: &str| nodes.iter().map(|node| number(&node[what])).sum::<u64>();
    let mut lines = vec![
        format!(
            "head     {}, outray {}, up {}",
            text(&head["address"]),
            text(&head["version"]),
            time(&head["since_seconds"])
        ),
        format!("nodes    {}", nodes.len()),
        format!("CPUs     {} of {} in use", amount(all - free), amount(all)),
    ];
    if all_gpus > 0.0 {
        lines.push(format!("GPUs     {} of {} in use", amount(all_gpus - free_gpus), amount(all_gpus)));
    }
    let (tasks, actors) = (total("tasks"), total("actors"));
    let without = match number(&head["tasks_without_a_node"]) {
        0 => String::new(),
        waiting => format!(", {} that waits for a node like one that has gone", count(waiting, "more task")),
    };
    lines.push(format!("tasks    {tasks} on nodes{without}"));
    lines.push(format!("actors   {actors}"));
    lines.push(format!("objects  {}, {}", total("objects"), bytes(total("stored_bytes"))));
    let jobs = match jobs {
        [] => "none".into(),
        jobs => jobs.iter().map(|job| text(&job["program"])).collect::<Vec<_>>().join(", "),
    };
    lines.push(format!("jobs     {jobs}"));
    let nodes = match nodes {
        [] => format!("No node yet. Start one: outray node --head {}", text(&head["address"])),
        _ => self::nodes(&answer["nodes"]),
    };
    format!("{}\n\n{nodes}", lines.join("\n"))
}

pub(super) fn gpus_here(answer: &Value) -> String {
    let devices = rows(answer);
    let row = |device: &Value| {
        let busy = device["busy_percent"].as_u64().map_or_else(|| "-".into(), |percent| format!("{percent} %"));
        let slice = device["mig"].as_bool().unwrap_or_default().then(|| "MIG".into());
        let notes: Vec<_> = slice.into_iter().chain(device["problem"].as_str().map(String::from)).collect();
        [
            text(&device["index"]),
            text(&device["name"]),
            text(&device["uuid"]),
            size(&device["memory_bytes"]),
            size(&device["used_by_others_bytes"]),
            text(&device["capability"]),
            text(&device["numa_node"]),
            busy,
            notes.join(", "),
        ]
    };
    let head = ["GPU", "NAME", "UUID", "MEMORY", "USED BY OTHERS", "CAPABILITY", "NUMA NODE", "BUSY", "NOTES"];
    let table = table(head, &devices.iter().map(row).collect::<Vec<_>>());
    if devices.len() < 2 {
        return table;
    }
    // Every word for a link has six letters.
    let cells = |cells: &mut dyn Iterator<Item = String>| cells.map(|cell| format!("{cell:<8}")).collect::<String>();
    let head = cells(&mut devices.iter().map(|device| text(&device["index"])));
    let links = devices
        .iter()
        .map(|device| format!("{:<7}{}", text(&device["index"]), cells(&mut rows(&device["links"]).iter().map(text))));
    let lines = [format!("LINKS  {head}")].into_iter().chain(links).map(|line| line.trim_end().to_owned());
    format!("{table}\n\n{}", lines.collect::<Vec<_>>().join("\n"))
}

pub(super) fn nodes(answer: &Value) -> String {
    let rows: Vec<_> = rows(answer)
        .iter()
        .map(|node| {
            let labels = node["labels"].as_object().into_iter().flatten().filter(|(key, _)| *key != super::NAME);
            let resources = node["capacity"]["resources"].as_object().into_iter().flatten();
            let resources = resources.map(|(name, all)| {
                let (all, free) =
                    (all.as_f64().unwrap_or_default(), node["free"]["resources"][name].as_f64().unwrap_or_default());
                format!("{name} {} of {}", amount(all - free), amount(all))
            });
            let notes: Vec<_> = labels.map(|(key, value)| format!("{key}={}", text(value))).chain(resources).collect();
            let gpus = if gpus(&node["capacity"]) > 0.0 { share(node, gpus) } else { "-".into() };
            [
                text(&node["name"]),
                text(&node["node"]),
                text(&node["address"]),
                share(node, cpus),
                gpus,
                size(&node["capacity"]["memory"]),
                text(&node["running"]),
                (number(&node["tasks"]).saturating_sub(number(&node["running"]))).to_string(),
                text(&node["actors"]),
                size(&node["stored_bytes"]),
                size(&node["sent_bytes"]),
                time(&node["since_seconds"]),
                notes.join(", "),
            ]
        })
        .collect();
    table(
        [
            "NAME",
            "NODE",
            "ADDRESS",
            "CPUS",
            "GPUS",
            "MEMORY",
            "RUN",
            "WAIT",
            "ACTORS",
            "STORE",
            "SENT",
            "UP",
            "LABELS AND RESOURCES",
        ],
        &rows,
    )
}

pub(super) fn jobs(answer: &Value) -> String {
    let rows: Vec<_> = rows(answer)
        .iter()
        .map(|job| {
            let executable: String = text(&job["executable"]).chars().take(12).collect();
            [
                text(&job["id"]),
                text(&job["program"]),
                text(&job["address"]),
                text(&job["pid"]),
                time(&job["since_seconds"]),
                executable,
                size(&job["bytes"]),
            ]
        })
        .collect();
    table(["JOB", "PROGRAM", "DRIVER", "PID", "FOR", "EXECUTABLE", "SIZE"], &rows)
}

pub(super) fn tasks(answer: &Value) -> String {
    let rows: Vec<_> = rows(answer)
        .iter()
        .map(|task| {
            [
                text(&task["id"]),
                name(&task["name"]),
                text(&task["kind"]),
                text(&task["job"]),
                text(&task["node"]),
                text(&task["state"]),
                time(&task["running_seconds"]),
                text(&task["pid"]),
                text(&task["attempt"]),
            ]
        })
        .collect();
    table(["TASK", "NAME", "KIND", "JOB", "NODE", "STATE", "FOR", "PID", "ATTEMPT"], &rows)
}

pub(super) fn actors(answer: &Value) -> String {
    let rows: Vec<_> = rows(answer)
        .iter()
        .map(|actor| {
            [
                text(&actor["id"]),
                name(&actor["name"]),
                text(&actor["job"]),
                text(&actor["node"]),
                text(&actor["state"]),
                time(&actor["since_seconds"]),
                text(&actor["pid"]),
                text(&actor["starts"]),
                text(&actor["calls"]),
            ]
        })
        .collect();
    table(["ACTOR", "NAME", "JOB", "NODE", "STATE", "FOR", "PID", "STARTS", "CALLS"], &rows)
}

pub(super) fn objects(answer: &Value) -> String {
    let mut objects: Vec<_> = rows(answer).iter().collect();
    objects.sort_by_key(|object| std::cmp::Reverse(number(&object["bytes"])));
    let rows: Vec<_> = objects
        .into_iter()
        .map(|object| {
            [
                text(&object["id"]),
                size(&object["bytes"]),
                text(&object["node"]),
                text(&object["job"]),
                text(&object["owner"]),
            ]
        })
        .collect();
    table(["OBJECT", "SIZE", "NODE", "JOB", "OWNER"], &rows)
}

pub(super) fn placement_groups(answer: &Value) -> String {
    let rows: Vec<_> =
        rows(answer).iter().map(|group| [text(&group["id"]), text(&group["bundles"]), text(&group["state"])]).collect();
    table(["GROUP", "BUNDLES", "STATE"], &rows)
}

pub(super) fn memory(answer: &Value) -> String {
    let nodes: Vec<_> = rows(answer)
        .iter()
        .map(|node| {
            let workers = rows(&node["workers"]).iter().map(|worker| number(&worker["resident_bytes"])).sum();
            [
                text(&node["name"]),
                text(&node["objects"]),
                size(&node["stored_bytes"]),
                size(&node["resident_bytes"]),
                bytes(workers),
                size(&node["promised"]),
                size(&node["memory"]),
                size(&node["machine_available_bytes"]),
                size(&node["machine_bytes"]),
            ]
        })
        .collect();
    let head = ["NODE", "OBJECTS", "STORE", "NODE PROCESS", "WORKERS", "PROMISED", "OF", "MACHINE HAS FREE", "OF"];
    let mut text_of = table(head, &nodes);
    let workers: Vec<_> = rows(answer)
        .iter()
        .flat_map(|node| {
            rows(&node["workers"]).iter().map(|worker| {
                [
                    text(&node["name"]),
                    text(&worker["pid"]),
                    text(&worker["job"]),
                    size(&worker["resident_bytes"]),
                    time(&worker["since_seconds"]),
                ]
            })
        })
        .collect();
    if !workers.is_empty() {
        text_of += "\n\n";
        text_of += &table(["NODE", "WORKER", "JOB", "RESIDENT", "FOR"], &workers);
    }
    text_of
}

/// What workers have printed, in order of time.
pub(super) struct Lines {
    pub(super) lines: Vec<Value>,
    /// The number of the last line of each node.
    pub(super) last: BTreeMap<String, u64>,
    pub(super) nodes: Vec<String>,
    /// There is a node of the name that was asked for.
    pub(super) is_meant: bool,
}

impl Lines {
    pub(super) fn of(answer: &Value) -> Lines {
        let mut all = Lines { lines: Vec::new(), last: BTreeMap::new(), nodes: Vec::new(), is_meant: false };
        for node in rows(answer) {
            let name = text(&node["name"]);
            all.is_meant |= node["is_meant"] == true;
            all.last.insert(text(&node["node"]), number(&node["last"]));
            if number(&node["missed"]) > 0 {
                let text = format!("[{} not kept]", count(number(&node["missed"]), "earlier line"));
                let first = rows(&node["lines"]).first().map_or(Value::Null, |line| line["time_ms"].clone());
                all.lines.push(json!({ "node": name, "time_ms": first, "missed": node["missed"], "text": text }));
            }
            for line in rows(&node["lines"]) {
                let mut line = line.clone();
                line["node"] = json!(name);
                all.lines.push(line);
            }
            all.nodes.push(name);
        }
        all.lines.sort_by_key(|line| number(&line["time_ms"]));
        all
    }
}

/// A line with who has printed it, and when: the time of day in UTC.
pub(super) fn line(line: &Value) -> String {
    let time = number(&line["time_ms"]);
    let (seconds, millis) = (time / 1_000 % 86_400, time % 1_000);
    let clock = format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match &line["task"] {
        Value::String(task) => {
            format!(
                "{clock} ({task}, node {}, pid {}) {}",
                text(&line["node"]),
                number(&line["pid"]),
                text(&line["text"])
            )
        }
        _ => format!("{clock} (node {}) {}", text(&line["node"]), text(&line["text"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_without_nodes_says_how_to_start_one() {
        let answer =
            json!({ "head": { "address": "h:1", "version": "0.1.0", "since_seconds": 61.0 }, "nodes": [], "jobs": [] });
        let text = status(&answer);
        assert!(text.contains("outray node --head h:1") && text.contains("up 1 min 1 s"), "{text}");
    }

    #[test]
    fn lines_of_all_nodes_are_in_order_of_time() {
        let line_of =
            |time: u64, text: &str| json!({ "time_ms": time, "pid": 7, "job": "j", "task": "t", "text": text });
        let answer = json!([
            { "node": "n1", "name": "a", "is_meant": true, "last": 2, "missed": 0, "lines": [line_of(1, "one"), line_of(3_723_004, "three")] },
            { "node": "n2", "name": "b", "is_meant": false, "last": 9, "missed": 8, "lines": [line_of(2, "two")] },
        ]);
        let lines = Lines::of(&answer);
        let shown: Vec<_> = lines.lines.iter().map(line).collect();
        assert_eq!(shown[0], "00:00:00.001 (t, node a, pid 7) one");
        assert_eq!(shown[1], "00:00:00.002 (node b) [8 earlier lines not kept]");
        assert_eq!(shown[3], "01:02:03.004 (t, node a, pid 7) three");
        assert!(lines.is_meant);
        assert_eq!(lines.last, BTreeMap::from([("n1".into(), 2), ("n2".into(), 9)]));
    }
}
