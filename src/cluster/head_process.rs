//! The head as a process: the state machine on a station, and what it knows of the cluster for others: where
//! stations are, which jobs there are, and who has which name.

mod detached;

use self::detached::{Keeper, is_for_owner};
use super::{
    control_store::{Known, Named, Saved},
    cycles::Verdicts,
    head::{BEAT, Head},
    image::{Cache, platform},
    protocol::{Effects, HEAD, Message, Note, ProcessId, TaskSpec},
    signals,
    station::{Happening, Post, Station},
    wire::{self, Envelope, Job, Letter, Order, Question, Role, Title},
};
use crate::observe::TaskState;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

pub(crate) struct HeadProcess {
    station: Arc<Station>,
    head: Head,
    started: Instant,
    /// What it has in its store: stations, jobs and names, too.
    saved: Saved,
    /// Processes that are owners, by their numbers.
    owners: BTreeSet<ProcessId>,
    jobs: BTreeMap<ProcessId, (Job, Instant)>,
    /// Which waits have failed, because they would never end.
    verdicts: Verdicts,
    /// Questions that nodes are still to answer.
    open: BTreeMap<u64, Open>,
    next_question: u64,
    /// Of detached actors; their jobs without any, and since when; and their executables.
    keeper: Option<Keeper>,
    idle: BTreeMap<ProcessId, Instant>,
    cache: Option<Cache>,
    is_ending: bool,
}

/// A question that was passed on to all nodes.
struct Open {
    asked_by: ProcessId,
    number: u64,
    missing: BTreeSet<ProcessId>,
    answers: Vec<Value>,
    /// What the head itself knows, if that is part of the answer.
    head: Option<Value>,
}

impl HeadProcess {
    /// Goes on where the last one was that had the same store.
    pub(crate) fn new(station: Arc<Station>, saved: Saved, cache: Option<Cache>) -> Self {
        let started = Instant::now();
        let mut head = HeadProcess {
            station,
            head: Head::restarted(0, saved.memory()),
            started,
            owners: saved.owners().collect(),
            jobs: saved.jobs.iter().map(|(driver, job)| (*driver, (job.clone(), started))).collect(),
            saved,
            verdicts: Verdicts::default(),
            open: BTreeMap::new(),
            next_question: 1,
            keeper: None,
            idle: BTreeMap::new(),
            cache,
            is_ending: false,
        };
        head.restore_detached();
        head
    }

    /// Serves until it is told to end.
    pub(crate) fn run(mut self, post: Post) {
        let station = self.station.clone();
        let next = Instant::now();
        let mut tick = next;
        let next = std::cell::Cell::new(next);
        station.run(
            post,
            || next.get(),
            |happening| {
                match happening {
                    Happening::Letters(letters) => letters.into_iter().for_each(|envelope| self.letter(envelope)),
                    Happening::Met { station, role, address, .. } => {
                        if !matches!(role, Role::Guest) && !self.head.has_buried(station) {
                            self.saved.station(station, Known { address, role });
                        }
                    }
                    Happening::Lost { station, reason } => {
                        tracing::info!("{station} is gone: {reason}");
                        self.gone(station);
                    }
                    Happening::Refused(_) | Happening::Tick => {}
                }
                if signals::is_end_asked() && !self.is_ending {
                    self.end();
                }
                if Instant::now() >= tick {
                    tick = Instant::now() + Duration::from_nanos(BEAT / 2);
                    next.set(tick);
                    let mut out = Effects::default();
                    self.head.tick(self.now(), &mut out);
                    self.carry_out(out);
                    self.look_after_detached();
                }
                if self.is_ending {
                    self.station.close(Duration::from_secs(2));
                }
            },
        );
        self.saved.clear();
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    fn post(&self, to: ProcessId, letter: Letter) {
        self.station.post(&Envelope { from: HEAD, to, letter, payload: Vec::new() });
    }

    fn carry_out(&mut self, out: Effects) {
        for note in &out.notes {
            self.saved.note(note);
            if let Note::Died(process) = note {
                self.is_dead(*process);
            }
        }
        self.saved.flush();
        for (to, message) in out.sends {
            if let Message::Dead { process } = &message {
                // Its workers have no address; what is said to them goes nowhere.
                if !process.is_worker() {
                    self.station.forget(*process);
                }
            }
            match to {
                // It places the detached actors itself.
                HEAD if matches!(message, Message::Home { .. }) => {}
                HEAD => self.with_owner(|owner, out| owner.handle(HEAD, message, out)),
                _ => self.post(to, Letter::Control(message)),
            }
        }
    }

    /// A station is gone, and with it the workers that hung on it.
    fn gone(&mut self, station: ProcessId) {
        if !self.saved.stations.contains_key(&station) {
            return;
        }
        let mut out = Effects::default();
        let now = self.now();
        self.head.bury(now, station, &mut out);
        let with_it: Vec<_> = self.owners.iter().filter(|owner| owner.station() == station).copied().collect();
        for owner in with_it.into_iter().filter(|owner| *owner != station) {
            self.head.bury(now, owner, &mut out);
        }
        self.carry_out(out);
    }

    /// A process is no more, for whatever reason.
    fn is_dead(&mut self, process: ProcessId) {
        self.owners.remove(&process);
        self.jobs.remove(&process);
        self.sends_nothing(process);
        let waiting: Vec<_> = self.open.keys().copied().collect();
        for question in waiting {
            self.answered(question, process, None);
        }
    }

    fn letter(&mut self, envelope: Envelope) {
        let Envelope { from, letter, .. } = envelope;
        match letter {
            Letter::Control(message) if is_for_owner(&message) => self.tell_owner(from, message),
            Letter::WhereIsActor { actor } => self.where_is(from, actor),
            Letter::ActorIs { actor, dead: Some(error), .. } => self.has_died(actor, error),
            Letter::Kill { actor } => self.has_died(actor, super::node_process::died(actor, "it was killed")),
            Letter::WantImage { driver, offset } => self.send_image(from, driver, offset),
            Letter::ImagePart { driver, offset } => {
                self.image_part(driver, offset, envelope.payload.into_iter().next().unwrap_or_default());
            }
            Letter::Control(message) => {
                if let Message::JoinOwner { .. } = &message {
                    self.owners.insert(from);
                }
                let mut out = Effects::default();
                self.head.handle(self.now(), from, message, &mut out);
                self.carry_out(out);
            }
            Letter::WhereIs { station } => {
                let address = self.saved.stations.get(&station).map(|known| known.address.clone());
                self.post(from, Letter::Station { station, address });
            }
            Letter::Unreachable { station } | Letter::Died { process: station } => self.gone_or_died(from, station),
            Letter::Leaving => self.gone(from.station()),
            Letter::Register(job) if job.driver == from && !self.head.has_buried(from) => {
                self.saved.job(job.clone());
                self.saved.flush();
                self.jobs.entry(from).or_insert((job, Instant::now()));
            }
            Letter::Names { names } => {
                let is_over = |(name, named): &(&String, &Named)| named.actor.owner == from && !names.contains(*name);
                let over = self.saved.names.iter().filter(is_over).map(|(name, _)| name.clone());
                for name in over.collect::<Vec<_>>() {
                    self.saved.unname(&name);
                }
                self.saved.flush();
            }
            Letter::WhichJob { driver } => {
                let job = self.jobs.get(&driver).map(|(job, _)| job.clone());
                self.post(from, Letter::JobIs { driver, job });
            }
            Letter::Cycle { ticket, waits, path } if self.verdicts.fails(ticket, &waits) => {
                self.post(ticket.process, Letter::EndWait { number: ticket.number, path });
            }
            Letter::Ask { number, question } => self.ask(from, number, question),
            Letter::AskFor { asker, number, question } => self.ask(asker, number, question),
            Letter::Answer { number } => {
                let answer = envelope.payload.first().and_then(|answer| serde_json::from_slice(answer).ok());
                self.answered(number, from, answer);
            }
            _ => {}
        }
    }

    /// A node says that a worker of its own has died, or that it cannot reach a station.
    fn gone_or_died(&mut self, from: ProcessId, process: ProcessId) {
        match process.is_worker() {
            true if process.station() == from.station() => {
                if self.owners.contains(&process) {
                    let mut out = Effects::default();
                    let now = self.now();
                    self.head.bury(now, process, &mut out);
                    self.carry_out(out);
                }
            }
            true => {}
            false => self.gone(process),
        }
    }

    fn ask(&mut self, from: ProcessId, number: u64, question: Question) {
        let answer = match &question {
            Question::Named { name } => match self.saved.names.get(name) {
                Some(named) => self.describe(named),
                None => json!({ "known": self.saved.names.keys().collect::<Vec<_>>() }),
            },
            Question::Name { name, actor, number, type_name } => match self.saved.names.get(name) {
                // Who has not heard the answer of the last head asks again.
                Some(named) if named.actor != *actor => self.describe(named),
                _ => {
                    let (actor, number, detached) = (*actor, *number, false);
                    self.saved.name(name, Named { actor, number, type_name: type_name.clone(), detached });
                    self.saved.flush();
                    json!({ "free": true })
                }
            },
            Question::Detach(detach) => return self.detach(from, number, (**detach).clone()),
            Question::Unname { name, actor } => {
                if self.saved.names.get(name).is_some_and(|named| named.actor == *actor) {
                    self.saved.unname(name);
                    self.saved.flush();
                }
                json!({})
            }
            Question::Stop => {
                let nodes = self.nodes().count();
                self.end();
                json!({ "nodes": nodes, "jobs": self.jobs.len() })
            }
            Question::Jobs => self.list_jobs(),
            Question::PlacementGroups => {
                let groups = self
                    .head
                    .groups()
                    .map(|(id, bundles, state)| json!({ "id": format!("{id:?}"), "bundles": bundles, "state": state }));
                groups.collect()
            }
            Question::Explain { task } => {
                let line = self.head.explain(*task);
                let ours =
                    line.map(|line| json!({ "phase": TaskState::WaitingForResources, "attempt": 1, "lines": [line] }));
                return self.pass_on(from, number, question, ours.into_iter().collect());
            }
            Question::Tasks { job } => {
                let rows = self.waiting(*job).map(|(driver, spec)| self.row(driver, spec)).collect();
                return self.pass_on(from, number, question, vec![rows]);
            }
            Question::Stats { job } => {
                let actors = self.waiting(Some(*job)).filter(|(_, spec)| spec.stays).count();
                let ours = json!({ "waiting_for_resources": self.waiting(Some(*job)).count(), "actors": actors });
                return self.pass_on(from, number, question, vec![ours]);
            }
            _ => return self.pass_on(from, number, question, Vec::new()),
        };
        self.answer(from, number, &answer);
    }

    fn describe(&self, named: &Named) -> Value {
        json!({ "owner": named.actor.owner.0, "number": named.actor.number, "id": named.number,
                "type": named.type_name, "detached": named.detached, "executable": self.executable_of(named.actor) })
    }

    fn answer(&self, to: ProcessId, number: u64, answer: &Value) {
        let (letter, payload) = wire::answer(number, answer);
        self.station.post(&Envelope { from: HEAD, to, letter, payload });
    }

    /// Tells everybody that the cluster ends, and ends.
    fn end(&mut self) {
        for station in self.saved.stations.keys() {
            self.post(*station, Letter::Leaving);
        }
        self.is_ending = true;
    }

    fn nodes(&self) -> impl Iterator<Item = ProcessId> + '_ {
        self.saved.stations.iter().filter(|(_, known)| matches!(known.role, Role::Node)).map(|(id, _)| *id)
    }

    /// Tasks that no node has room for, and their jobs.
    fn waiting(&self, job: Option<ProcessId>) -> impl Iterator<Item = (ProcessId, &TaskSpec)> {
        let all = self.head.waiting().map(|spec| (Order::driver(&spec.body).unwrap_or(spec.id.owner), spec));
        all.filter(move |(driver, _)| job.is_none_or(|job| job == *driver))
    }

    /// One of them, as in the nodes' lists.
    fn row(&self, driver: ProcessId, spec: &TaskSpec) -> Value {
        let title = Title::of(&spec.body);
        let location = title.as_ref().map(|title| title.location);
        let name = title.as_ref().and_then(|title| title.name);
        let unnamed = || format!("a function of {}", location.unwrap_or("?"));
        json!({ "of": spec.id, "process": spec.id.owner, "number": title.as_ref().map_or(0, |title| title.number),
                "id": wire::shown(spec.id), "name": name.map_or_else(unnamed, str::to_owned),
                "kind": if spec.stays { "actor" } else { "task" },
                "job": self.jobs.get(&driver).map_or_else(|| driver.to_string(), |(job, _)| job.name.clone()),
                "attempt": spec.attempt, "phase": TaskState::WaitingForResources, "state": "waiting for a node",
                "submitted_at": location })
    }

    fn list_jobs(&self) -> Value {
        let jobs = self.jobs.values().map(|(job, since)| {
            let at = self.saved.stations.get(&job.driver).map(|known| known.address.clone());
            json!({ "id": job.driver.to_string(), "program": job.name, "pid": job.pid, "address": at,
                    "since_seconds": since.elapsed().as_secs_f64(), "executable": job.image.hash.to_string(),
                    "bytes": job.image.size, "observes": job.observe })
        });
        jobs.collect()
    }

    /// What the nodes know, each its own part.
    fn pass_on(&mut self, asked_by: ProcessId, number: u64, question: Question, answers: Vec<Value>) {
        let nodes: BTreeSet<_> = self.nodes().collect();
        let head = matches!(question, Question::Status).then(|| {
            json!({ "head": { "address": self.station.address, "pid": std::process::id(),
                              "version": env!("CARGO_PKG_VERSION"), "platform": platform(),
                              "since_seconds": self.started.elapsed().as_secs_f64(),
                              "names": self.saved.names.len(), "tasks_without_a_node": self.head.holds().1 },
                    "jobs": self.list_jobs() })
        });
        let ours = self.next_question;
        self.next_question += 1;
        for node in &nodes {
            self.post(*node, Letter::Ask { number: ours, question: question.clone() });
        }
        self.open.insert(ours, Open { asked_by, number, missing: nodes, answers, head });
        self.answered(ours, HEAD, None);
    }

    fn answered(&mut self, question: u64, by: ProcessId, answer: Option<Value>) {
        let Some(open) = self.open.get_mut(&question) else { return };
        open.missing.remove(&by);
        open.answers.extend(answer);
        if open.missing.is_empty()
            && let Some(open) = self.open.remove(&question)
        {
            let nodes = Value::Array(open.answers);
            let answer = match open.head {
                Some(mut answer) => {
                    answer["nodes"] = nodes;
                    answer
                }
                None => nodes,
            };
            self.answer(open.asked_by, open.number, &answer);
        }
    }
}
