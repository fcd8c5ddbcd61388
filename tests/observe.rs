//! Looking inside: statistics, lists with filters, explanations, the timeline and tracing spans.

mod common;

use common::{
    AtomicBool, AtomicUsize, Gate, Scratch, alone, builder, give_others_a_chance, local, local_only, until, watch,
};
use outray::{ActorState, Error, Filter, ObjectRef, Runtime, TaskInfo, TaskState};
use serde_json::Value;
use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread::ThreadId,
    time::Duration,
};
use tracing::{Event, Metadata, Subscriber, field, span};

fn observing(cpus: usize) -> Runtime {
    builder().cpus(cpus).observe(true).build().expect("a runtime")
}

fn fib(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let rt = Runtime::current();
    let (a, b) = (rt.submit(fib, n - 1), rt.submit(fib, n - 2));
    a.get().unwrap() + b.get().unwrap()
}

struct Counter(u32);

impl Counter {
    fn new() -> Self {
        Counter(0)
    }

    fn add(&mut self, by: u32) -> u32 {
        self.0 += by;
        self.0
    }
}

// Statistics.

#[test]
fn stats_count_what_was_submitted_and_how_it_ended() {
    watch(|| {
        let rt = local(2);
        let start = rt.stats();
        assert_eq!((start.submitted, start.succeeded, start.failed), (0, 0, 0));
        let good: Vec<_> = (0..10).map(|i| rt.submit(|i: i32| i, i)).collect();
        let bad: Vec<_> = (0..3).map(|_| rt.submit(|| -> i32 { panic!("bad") }, ())).collect();
        let dependent = rt.submit(|x: i32| x, &bad[0]);
        rt.wait(&good, 10, None);
        rt.wait(&bad, 3, None);
        assert!(dependent.get().is_err());
        let stats = rt.stats();
        assert_eq!((stats.submitted, stats.succeeded, stats.failed), (14, 10, 4));
    });
}

#[test]
fn everything_submitted_ends_once_in_the_stats() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = rt.submit(|| GATE.pass(), ());
        GATE.wait_for(1);
        let ended = |what: &str, submitted, succeeded, failed| {
            let same = || {
                let stats = rt.stats();
                (stats.submitted, stats.succeeded, stats.failed)
            };
            for _ in 0..50 {
                if same() == (submitted, succeeded, failed) {
                    break;
                }
                give_others_a_chance();
            }
            assert_eq!(same(), (submitted, succeeded, failed), "submitted, succeeded and failed after {what}");
        };
        // A task that is cancelled while it runs returns later: that is no second end.
        held.cancel();
        GATE.open();
        assert_eq!(rt.submit(|| 1, ()).get(), Ok(1)); // on the CPU that the other has left
        ended("a running task was cancelled", 2, 1, 1);
        assert!(rt.task(|| ()).cpus(64.0).submit(()).get().is_err());
        ended("an infeasible task", 3, 1, 2);
        assert!(rt.task(|| assert!(outray::task::context().attempt() > 1)).retries(1).submit(()).get().is_ok());
        ended("a retried task", 4, 2, 2);
        let (one, two) = rt.task(|| (1, 2)).submit_split(());
        assert!(one.get().is_ok() && two.get().is_ok());
        ended("a split task", 5, 3, 2);
        assert_eq!(rt.stream(|| 0..3, ()).count(), 3);
        ended("a stream", 6, 4, 2);
        let late = rt.task(|| ()).deadline(Duration::ZERO).submit(());
        let late = u64::from(late.get().is_err());
        ended("a task with a deadline", 7, 5 - late, 2 + late);
    });
}

#[test]
fn stats_tell_the_cpus_that_are_free() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(4);
        assert!((rt.stats().cpus - 4.0).abs() < 1e-9 && (rt.stats().cpus_free - 4.0).abs() < 1e-9);
        rt.task(|| GATE.pass()).cpus(1.5).submit(());
        GATE.wait_for(1);
        assert!((rt.stats().cpus_free - 2.5).abs() < 1e-9, "{}", rt.stats());
        GATE.open();
        until("all are free", || (rt.stats().cpus_free - 4.0).abs() < 1e-9);
    });
}

#[test]
fn stats_tell_what_waits() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = builder().cpus(1).resource("licence", 1.0).build().unwrap();
        let held = rt.task(|| GATE.pass()).resource("licence", 1.0).submit(());
        GATE.wait_for(1);
        let queued: Vec<_> = (0..5).map(|_| rt.submit(|| (), ())).collect();
        let waiting = rt.task(|| ()).resource("licence", 1.0).submit(());
        let stats = rt.stats();
        assert!(stats.queued >= 5, "{stats}");
        assert_eq!(stats.waiting_for_resources, 1);
        waiting.cancel();
        assert_eq!(rt.stats().waiting_for_resources, 0, "what is cancelled waits no more");
        GATE.open();
        assert!(held.get().is_ok() && rt.get_all(&queued).is_ok());
    });
}

#[test]
fn stats_count_actors_and_show_themselves() {
    watch(|| {
        let rt = local(3);
        let actor = rt.actor(Counter::new, ());
        assert_eq!(actor.call(Counter::add, 1).get(), Ok(1));
        let stats = rt.stats();
        assert_eq!((stats.actors, stats.submitted >= 1), (1, true));
        assert!(stats.to_string().contains("3 CPUs"), "{stats}");
        assert_eq!(serde_json::to_value(&stats).unwrap()["actors"], 1);
        drop(actor);
        until("the actor is gone", || rt.stats().actors == 0);
    });
}

// Lists.

#[test]
fn without_observing_the_lists_say_how_to_turn_it_on() {
    watch(|| {
        let rt = local(1);
        let file = Scratch::new("trace.json");
        let errors = [
            rt.list_tasks(&Filter::new()).unwrap_err(),
            rt.list_objects(&Filter::new()).unwrap_err(),
            rt.timeline(&file.0).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::NotObserving { .. }));
            let text = error.to_string();
            assert!(text.contains("observe(true)") && text.contains("OUTRAY_OBSERVE"), "{text}");
        }
        assert!(!file.0.exists());
        assert!(rt.list_actors(&Filter::new()).is_ok());
    });
}

#[test]
fn the_environment_turns_observing_on() {
    local_only!("about `Runtime::from_env` without an address");
    let observes = |value: &str| {
        let program = std::env::current_exe().unwrap();
        let test = ["the_environment_turns_observing_on_in_a_child", "--exact", "--ignored", "--nocapture"];
        let run = std::process::Command::new(program).args(test).env("OUTRAY_OBSERVE", value).output().unwrap();
        assert!(run.status.success());
        String::from_utf8_lossy(&run.stdout).contains("it observes: true")
    };
    assert!(observes("1"));
    assert!(!observes("0") && !observes(""));
}

#[test]
#[ignore = "run by the_environment_turns_observing_on"]
fn the_environment_turns_observing_on_in_a_child() {
    let rt = Runtime::from_env().unwrap();
    println!("it observes: {}", rt.list_tasks(&Filter::new()).is_ok());
}

#[test]
fn the_list_of_tasks_tells_the_state_of_each() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = builder().cpus(1).resource("licence", 1.0).observe(true).build().unwrap();
        let done = rt.task(|| 1).name("done").submit(());
        let failed = rt.task(|| -> i32 { panic!("no") }).name("failed").submit(());
        assert!(done.get().is_ok() && failed.get().is_err());
        let held = || {
            GATE.pass();
            1
        };
        let running = rt.task(held).name("running").resource("licence", 1.0).submit(());
        GATE.wait_for(1);
        let queued = rt.task(|| 1).name("queued").submit(());
        let for_arguments = rt.task(|x: i32| x).name("for arguments").submit(&running);
        let for_resources = rt.task(|| 1).name("for resources").resource("licence", 1.0).submit(());
        let expected = [
            (&done, "done", TaskState::Succeeded),
            (&failed, "failed", TaskState::Failed),
            (&running, "running", TaskState::Running),
            (&queued, "queued", TaskState::Queued),
            (&for_arguments, "for arguments", TaskState::WaitingForArguments),
            (&for_resources, "for resources", TaskState::WaitingForResources),
        ];
        let all = rt.list_tasks(&Filter::new()).unwrap();
        assert_eq!(all.len(), expected.len());
        for (handle, name, state) in expected {
            let one = rt.list_tasks(&Filter::new().name(name)).unwrap();
            let [TaskInfo { id, kind, state: found, attempt, actor, location, .. }] = &one[..] else {
                panic!("{name}: {one:?}")
            };
            assert_eq!((*id, kind.as_str(), *found, *attempt, *actor), (handle.id(), "task", state, 1, None), "{name}");
            assert!(location.starts_with(file!()), "{location}");
            assert_eq!(rt.list_tasks(&Filter::new().state(state)).unwrap(), one);
        }
        GATE.open();
        assert!(for_arguments.get().is_ok() && for_resources.get().is_ok() && queued.get().is_ok());
        assert!(rt.list_tasks(&Filter::new().state(TaskState::Running)).unwrap().is_empty());
    });
}

#[test]
fn filters_choose_by_name_and_state_and_limit() {
    watch(|| {
        let rt = observing(2);
        let named = |name: &str| rt.task(|| 1).name(name).submit(());
        let handles: Vec<_> = (0..10).map(|i| named(if i % 2 == 0 { "even one" } else { "odd one" })).collect();
        rt.get_all(&handles).unwrap();
        let count = |filter: &Filter| rt.list_tasks(filter).unwrap().len();
        assert_eq!(count(&Filter::new()), 10);
        assert_eq!(count(&Filter::new().name("even")), 5);
        assert_eq!(count(&Filter::new().name("one").state(TaskState::Succeeded)), 10);
        assert_eq!(count(&Filter::new().name("one").state(TaskState::Failed)), 0);
        assert_eq!(count(&Filter::new().name("neither")), 0);
        let first = rt.list_tasks(&Filter::new().name("odd").limit(2)).unwrap();
        assert_eq!(first.iter().map(|task| task.id).collect::<Vec<_>>(), [handles[1].id(), handles[3].id()]);
    });
}

#[test]
fn a_task_is_listed_as_long_as_somebody_holds_its_result() {
    watch(|| {
        let rt = observing(1);
        let task = rt.submit(|| 1, ());
        task.get().unwrap();
        assert_eq!(rt.list_tasks(&Filter::new()).unwrap().len(), 1);
        drop(task);
        until("it is gone", || rt.list_tasks(&Filter::new()).unwrap().is_empty());
    });
}

#[test]
fn calls_and_streams_are_in_the_list_of_tasks() {
    watch(|| {
        let rt = observing(2);
        let actor = rt.actor(Counter::new, ());
        let call = actor.call(Counter::add, 1);
        call.get().unwrap();
        let stream = rt.streaming(|n: u64| 0..n).name("numbers").submit(100);
        let calls = rt.list_tasks(&Filter::new().name("add")).unwrap();
        assert_eq!((calls[0].id, calls[0].kind.as_str(), calls[0].actor), (call.id(), "call", Some(actor.id())));
        let streams = rt.list_tasks(&Filter::new().name("numbers")).unwrap();
        assert_eq!((streams.len(), streams[0].kind.as_str()), (1, "stream"));
        drop(stream);
    });
}

#[test]
fn what_tasks_submit_and_put_and_hold_is_in_the_lists_and_the_stats_too() {
    watch(|| {
        static GATE: Gate = Gate::new();
        fn outer() -> u64 {
            let rt = Runtime::current();
            let text = rt.put("inner text".to_owned());
            let failed = rt.task(|| -> u64 { panic!("no") }).name("inner failed").submit(());
            assert!(failed.get().is_err());
            let held = || {
                GATE.pass();
                7
            };
            let inner = rt.task(held).name("inner held").submit(());
            let value = inner.get().unwrap();
            drop(text);
            value
        }
        let rt = observing(2);
        let outer = rt.task(outer).name("outer").submit(());
        GATE.wait_for(1);
        let tasks = rt.list_tasks(&Filter::new()).unwrap();
        assert_eq!((tasks[0].id, tasks[0].name.as_str()), (outer.id(), "outer"), "{tasks:?}");
        let state = |name: &str| {
            let found: Vec<_> = tasks.iter().filter(|task| task.name == name).collect();
            assert!(found.len() == 1 && found[0].location.starts_with(file!()), "{name}: {tasks:?}");
            found[0].state
        };
        assert_eq!(state("inner held"), TaskState::Running);
        assert_eq!(state("inner failed"), TaskState::Failed);
        let texts = rt.list_objects(&Filter::new().name("String")).unwrap();
        assert_eq!((texts.len(), texts[0].handles, texts[0].ready), (1, 1, true));
        let stats = rt.stats();
        assert_eq!((stats.submitted, stats.succeeded, stats.failed), (3, 0, 1), "{stats}");
        GATE.open();
        assert_eq!(outer.get(), Ok(7));
        until("all is counted", || rt.stats().succeeded == 2);
        until("the text is gone", || rt.list_objects(&Filter::new().name("String")).unwrap().is_empty());
    });
}

#[test]
fn a_retried_task_shows_its_attempt() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = observing(1);
        let second = || {
            assert!(outray::task::context().attempt() > 1, "first");
            GATE.pass();
        };
        let task = rt.task(second).name("second").retries(1).submit(());
        GATE.wait_for(1);
        assert_eq!(rt.list_tasks(&Filter::new().name("second")).unwrap()[0].attempt, 2);
        GATE.open();
        assert!(task.get().is_ok());
    });
}

#[test]
fn the_list_of_objects_tells_what_is_there_and_who_holds_it() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = observing(1);
        let put = rt.put("text".to_owned());
        let held = || {
            GATE.pass();
            1
        };
        let coming = rt.task(held).name("coming").submit(());
        let _others = [put.clone(), put.clone()];
        let objects = rt.list_objects(&Filter::new()).unwrap();
        let find = |id| objects.iter().find(|object| object.id == id).unwrap();
        let (text, number) = (find(put.id()), find(coming.id()));
        assert_eq!((text.ready, text.handles, number.ready, number.name.as_str()), (true, 3, false, "coming"));
        assert!(text.name.contains("String") && text.location.starts_with(file!()), "{text:?}");
        assert_eq!(rt.list_objects(&Filter::new().name("String")).unwrap().len(), 1);
        assert_eq!(rt.list_objects(&Filter::new().limit(1)).unwrap().len(), 1);
        GATE.open();
        coming.get().unwrap();
        let id = put.id();
        drop((put, _others));
        assert!(rt.list_objects(&Filter::new()).unwrap().iter().all(|object| object.id != id), "it is freed");
    });
}

#[test]
fn the_list_of_actors_tells_what_each_does() {
    watch(|| {
        static GATE: Gate = Gate::new();
        struct Holder;
        impl Holder {
            fn hold(&mut self) {
                GATE.pass();
            }
        }
        let rt = local(2);
        let holder = rt.actor_builder(|| Holder).name("holder").start(());
        let idle = rt.actor(Counter::new, ());
        idle.call(Counter::add, 1).get().unwrap();
        let calls: Vec<_> = (0..3).map(|_| holder.call(Holder::hold, ())).collect();
        GATE.wait_for(1);
        let list = rt.list_actors(&Filter::new().name("holder")).unwrap();
        assert_eq!((list.len(), list[0].id, list[0].state), (1, holder.id(), ActorState::Busy));
        assert_eq!((list[0].pending_calls, list[0].restarts), (2, 0));
        assert!(list[0].location.starts_with(file!()) && list[0].type_name.contains("Holder"), "{list:?}");
        until("the other is idle", || {
            let list = rt.list_actors(&Filter::new().name("Counter")).unwrap();
            list.len() == 1 && list[0].state == ActorState::Idle
        });
        GATE.open();
        rt.get_all(&calls).unwrap();
        drop(holder);
        until("it has gone", || rt.list_actors(&Filter::new().name("holder")).unwrap().is_empty());
    });
}

// Explanations.

#[test]
fn explain_follows_the_arguments_down_to_what_runs() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = local(1);
        let held = || {
            GATE.pass();
            1
        };
        let first = rt.task(held).name("first").submit(());
        GATE.wait_for(1);
        let second = rt.task(|x: i32| x).name("second").submit(&first);
        let third = rt.task(|x: i32| x).name("third").submit(&second);
        let why = rt.explain(&third);
        let text = why.to_string();
        for part in ["first", "second", "third", "running", file!(), &format!("#{}", first.id())] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(why.lines().len() >= 3 && why.lines()[0].contains("third"), "{text}");
        GATE.open();
        third.get().unwrap();
        assert!(rt.explain(&third).to_string().contains("done"));
    });
}

#[test]
fn explain_says_what_a_task_waits_for() {
    watch(|| {
        static GATE: Gate = Gate::new();
        let rt = builder().cpus(1).resource("licence", 1.0).build().unwrap();
        let held = rt.task(|| GATE.pass()).resource("licence", 1.0).submit(());
        GATE.wait_for(1);
        let queued = rt.submit(|| (), ());
        assert!(rt.explain(&queued).to_string().contains("CPU"), "{}", rt.explain(&queued));
        let licence = rt.task(|| ()).cpus(0.0).resource("licence", 0.5).submit(());
        let why = rt.explain(&licence).to_string();
        assert!(why.contains("licence") && why.contains("0.5"), "{why}");
        let failed = rt.task(|| -> u8 { panic!("reason") }).name("failed").cpus(0.0).submit(());
        drop(failed.get());
        let why = rt.explain(&failed).to_string();
        assert!(why.contains("failed") && why.contains("reason"), "{why}");
        licence.cancel();
        assert!(rt.explain(&licence).to_string().contains("cancelled"));
        assert!(rt.explain(&rt.put(1)).to_string().contains("done"));
        GATE.open();
        held.get().unwrap();
    });
}

#[test]
fn explain_names_the_actor_that_a_call_waits_for() {
    watch(|| {
        static GATE: Gate = Gate::new();
        struct Holder;
        impl Holder {
            fn hold(&mut self) {
                GATE.pass();
            }
        }
        let rt = local(1);
        let holder = rt.actor_builder(|| Holder).name("bottleneck").start(());
        let _first = holder.call(Holder::hold, ());
        GATE.wait_for(1);
        let second = holder.call(Holder::hold, ());
        let why = rt.explain(&second).to_string();
        assert!(why.contains("bottleneck") && why.contains("turn"), "{why}");
        GATE.open();
        second.get().unwrap();
    });
}

// The timeline.

fn timeline(rt: &Runtime) -> Vec<Value> {
    let file = Scratch::new("trace.json");
    rt.timeline(&file.0).unwrap();
    let text = std::fs::read_to_string(&file.0).unwrap();
    let trace: Value = serde_json::from_str(&text).expect("the timeline is JSON");
    trace["traceEvents"].as_array().expect("it holds a list of events").clone()
}

fn runs<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["ph"] == "X" && event["name"].as_str().unwrap().contains(name)).collect()
}

#[test]
fn the_timeline_is_json_with_an_event_for_each_run() {
    watch(|| {
        let rt = observing(2);
        let named: Vec<_> = (0..5).map(|i| rt.task(|i: i32| i).name("a \"quoted\" \\ näme\n").submit(i)).collect();
        rt.get_all(&named).unwrap();
        assert_eq!(rt.submit(fib, 5).get(), Ok(5));
        let actor = rt.actor(Counter::new, ());
        actor.call(Counter::add, 1).get().unwrap();
        assert_eq!(rt.streaming(|n: u64| 0..n).name("numbers").submit(3).count(), 3);
        let events = timeline(&rt);
        let quoted = runs(&events, "a \"quoted\" \\ näme\n");
        let ids: HashSet<_> = quoted.iter().map(|event| event["args"]["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, named.iter().map(ObjectRef::id).collect());
        assert!(quoted.iter().all(|event| event["cat"] == "task"));
        assert_eq!(runs(&events, "fib").len(), 15);
        let calls = runs(&events, "add");
        assert_eq!((calls.len(), &calls[0]["cat"]), (1, &Value::from("call")));
        assert!(!runs(&events, "numbers").is_empty());
        for event in &events {
            assert!(event["name"].is_string() && event["pid"].is_u64(), "{event}");
            match event["ph"].as_str() {
                Some("X") => {
                    assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() >= 0.0, "{event}");
                    let tid = &event["tid"];
                    let names = events.iter().filter(|e| e["name"] == "thread_name" && &e["tid"] == tid);
                    assert_eq!(names.count(), 1, "its thread has a name: {event}");
                }
                Some("M") => assert!(event["args"]["name"].is_string(), "{event}"),
                _ => panic!("an event of an unknown kind: {event}"),
            }
        }
    });
}

#[test]
fn runs_on_one_thread_do_not_overlap_unless_one_is_inside_the_other() {
    local_only!("about threads of one process");
    watch(|| {
        let rt = observing(2);
        assert_eq!(rt.submit(fib, 10).get(), Ok(55));
        let events = timeline(&rt);
        let mut spans: Vec<_> = runs(&events, "fib")
            .iter()
            .map(|event| {
                let start = event["ts"].as_f64().unwrap();
                (event["tid"].as_u64().unwrap(), start, start + event["dur"].as_f64().unwrap())
            })
            .collect();
        assert_eq!(spans.len(), 177);
        spans.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let rounding = 0.002;
        for (i, (tid, _, end)) in spans.iter().enumerate() {
            for (other, start, other_end) in &spans[i + 1..] {
                let apart = other != tid || *start >= end - rounding;
                assert!(apart || *other_end <= end + rounding, "{:?}", (spans[i], (other, start, other_end)));
            }
        }
    });
}

#[test]
fn an_async_task_is_in_the_timeline_for_each_time_it_ran() {
    watch(|| {
        async fn naps() {
            for _ in 0..3 {
                outray::sleep(Duration::from_millis(1)).await;
            }
        }
        let rt = observing(1);
        rt.task(naps).name("naps").submit(()).get().unwrap();
        let events = timeline(&rt);
        assert!(runs(&events, "naps").len() >= 4, "{}", runs(&events, "naps").len());
    });
}

#[test]
fn a_failed_task_is_in_the_timeline_too() {
    watch(|| {
        let rt = observing(1);
        drop(rt.task(|| -> u8 { panic!("no") }).name("failed").submit(()).get());
        assert_eq!(runs(&timeline(&rt), "failed").len(), 1);
    });
}

#[test]
fn the_timeline_of_a_runtime_holds_nothing_of_another() {
    alone("the_timeline_of_a_runtime_holds_nothing_of_another", || {
        for round in 0..3 {
            let rt = observing(1);
            let name = format!("round {round}");
            rt.task(|| ()).name(&name).submit(()).get().unwrap();
            let events = timeline(&rt);
            let found: HashSet<_> =
                events.iter().filter(|event| event["ph"] == "X").map(|e| e["name"].clone()).collect();
            assert_eq!(found, HashSet::from([Value::from(name)]));
        }
    });
}

#[test]
fn a_timeline_that_cannot_be_written_is_an_error_that_names_the_file() {
    watch(|| {
        let rt = observing(1);
        let nowhere = Scratch::new("no such folder").0.join("trace.json");
        let error = rt.timeline(&nowhere).unwrap_err();
        assert!(matches!(error, Error::Io { .. }));
        assert!(error.to_string().contains(&nowhere.display().to_string()), "{error}");
    });
}

// Tracing.

/// What a thread did, in the order in which it did it.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    New(u64, String),
    Enter(u64),
    Exit(u64),
    Inside,
}

static SEEN: Mutex<Vec<(ThreadId, Seen)>> = Mutex::new(Vec::new());

struct Watcher(AtomicU64);

/// All fields of a span, as text.
struct Fields(String);

impl field::Visit for Fields {
    fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

fn saw(what: Seen) {
    SEEN.lock().unwrap().push((std::thread::current().id(), what));
}

impl Subscriber for Watcher {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("outray") || metadata.target() == "user"
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let id = self.0.fetch_add(1, SeqCst) + 1;
        let mut fields = Fields(attributes.metadata().name().to_owned());
        attributes.record(&mut fields);
        saw(Seen::New(id, fields.0));
        span::Id::from_u64(id)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if event.metadata().target() == "user" {
            saw(Seen::Inside);
        }
    }

    fn enter(&self, span: &span::Id) {
        saw(Seen::Enter(span.into_u64()));
    }

    fn exit(&self, span: &span::Id) {
        saw(Seen::Exit(span.into_u64()));
    }
}

#[test]
fn a_task_runs_inside_a_tracing_span_that_names_it() {
    local_only!("the spans are in the process that runs the task");
    alone("a_task_runs_inside_a_tracing_span_that_names_it", || {
        tracing::subscriber::set_global_default(Watcher(AtomicU64::new(0))).unwrap();
        let rt = observing(1);
        let task = rt.task(|| tracing::info!(target: "user", "here")).name("traced task").submit(());
        task.get().unwrap();
        let seen = SEEN.lock().unwrap().clone();
        let span = seen.iter().find_map(|(_, what)| match what {
            Seen::New(id, fields) if fields.contains("traced task") && fields.contains(&task.id().to_string()) => {
                Some(*id)
            }
            _ => None,
        });
        let span = span.unwrap_or_else(|| panic!("no span names the task: {seen:?}"));
        let (thread, inside) = seen
            .iter()
            .enumerate()
            .find_map(|(at, (thread, what))| (*what == Seen::Inside).then_some((*thread, at)))
            .expect("the task has run");
        let of_thread = |range: &[(ThreadId, Seen)], what: &Seen| {
            range.iter().filter(|(on, seen)| *on == thread && seen == what).count()
        };
        let (before, after) = (&seen[..inside], &seen[inside..]);
        let open = of_thread(before, &Seen::Enter(span)) - of_thread(before, &Seen::Exit(span));
        assert_eq!(open, 1, "the user's event is inside the span: {seen:?}");
        assert_eq!(of_thread(after, &Seen::Exit(span)), 1, "the span ends with the task: {seen:?}");
    });
}

#[test]
fn without_observing_nothing_is_traced() {
    local_only!("the spans are in the process that runs the task");
    alone("without_observing_nothing_is_traced", || {
        static RAN: AtomicBool = AtomicBool::new(false);
        static DONE: AtomicUsize = AtomicUsize::new(0);
        tracing::subscriber::set_global_default(Watcher(AtomicU64::new(0))).unwrap();
        let rt = local(1);
        let task = || {
            RAN.store(true, SeqCst);
            DONE.fetch_add(1, SeqCst)
        };
        rt.submit(task, ()).get().unwrap();
        assert!(RAN.load(SeqCst) && SEEN.lock().unwrap().is_empty());
    });
}
