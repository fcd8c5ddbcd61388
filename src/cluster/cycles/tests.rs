//! What is and is not a cycle; and processes whose tasks wait for each other at random, while others look.

use super::*;
use fastrand::Rng;

const fn process(number: u64) -> ProcessId {
    ProcessId(number)
}

fn local(number: u64) -> Spot {
    Spot::Local(process(1), number)
}

fn wait(ticket: u64, targets: &[Spot], spare: usize) -> Need {
    Need { ticket: Some(Ticket { process: process(1), number: ticket }), targets: targets.to_vec(), spare }
}

fn entry(at: Spot, needs: Vec<Need>) -> Entry {
    let label = match at {
        Spot::Object(object) => format!("object {}", object.number),
        Spot::Local(_, number) => format!("task {number}"),
    };
    Entry { label: Some(label), needs, ..Entry::free(at) }
}

/// The tickets of the cycles, with their paths.
fn found(entries: Vec<Entry>) -> Vec<(u64, String)> {
    let mut graph = Graph::default();
    entries.into_iter().for_each(|entry| graph.add(entry));
    graph.cycles().into_iter().map(|cycle| (cycle.ticket.number, cycle.path.join(" "))).collect()
}

fn one(ticket: u64, path: &str) -> Vec<(u64, String)> {
    vec![(ticket, path.to_owned())]
}

#[test]
fn the_wait_with_the_highest_number_is_chosen_and_the_path_starts_with_it() {
    let ring = |tickets: [u64; 3]| {
        let next = [local(2), local(3), local(1)];
        (0..3).map(|at| entry(local(at as u64 + 1), vec![wait(tickets[at], &next[at..=at], 0)])).collect()
    };
    assert_eq!(found(ring([7, 8, 9])), one(9, "task 3 task 1 task 2"));
    assert_eq!(found(ring([9, 8, 7])), one(9, "task 1 task 2 task 3"));
    assert_eq!(found(vec![entry(local(1), vec![wait(3, &[local(1)], 0)])]), one(3, "task 1"));
}

#[test]
fn a_chain_an_unknown_one_and_one_who_goes_on_are_no_cycle() {
    let chain = vec![entry(local(1), vec![wait(1, &[local(2)], 0)]), entry(local(2), vec![wait(2, &[local(3)], 0)])];
    assert_eq!(found(chain.clone()), []);
    assert_eq!(found([chain, vec![entry(local(3), Vec::new())]].concat()), []);
    assert_eq!(found(Vec::new()), []);
}

#[test]
fn who_only_waits_for_a_cycle_is_left_alone() {
    let entries = vec![
        entry(local(1), vec![wait(1, &[local(2)], 0)]),
        entry(local(2), vec![wait(2, &[local(1)], 0)]),
        entry(local(3), vec![wait(3, &[local(1)], 0)]),
        // A cycle that waits for the other one has its turn when that one is over.
        entry(local(4), vec![wait(4, &[local(5)], 0)]),
        entry(local(5), vec![wait(5, &[local(4), local(3)], 0)]),
    ];
    assert_eq!(found(entries), one(2, "task 2 task 1"));
}

#[test]
fn a_wait_for_some_is_in_a_cycle_when_too_few_can_end() {
    let entries = |needed_of: usize, last: Vec<Need>| {
        vec![
            entry(local(1), vec![wait(1, &[local(2), local(3), local(4)], needed_of)]),
            entry(local(2), vec![wait(2, &[local(1)], 0)]),
            entry(local(3), vec![wait(3, &[local(1)], 0)]),
            entry(local(4), last),
        ]
    };
    // All three, then two, then one of three; 4 goes on.
    assert_eq!(found(entries(0, Vec::new())).len(), 1);
    assert_eq!(found(entries(1, Vec::new())).len(), 1);
    assert_eq!(found(entries(2, Vec::new())), []);
    // 4 does not go on: none of the three ends, and any of them may be the one that looks.
    assert_eq!(found(entries(2, vec![wait(4, &[local(1)], 0)])), one(4, "task 4 task 1"));
}

#[test]
fn an_object_goes_by_the_name_of_what_makes_it() {
    let object = |number| Spot::Object(ObjectId { owner: process(2), number });
    let made_by = |at, by| Entry { made_by: Some(by), ..entry(at, Vec::new()) };
    let entries = vec![
        entry(local(1), vec![wait(1, &[object(5)], 0)]),
        // Its argument is made by the one who waits for it.
        entry(object(5), vec![Need::of(object(6))]),
        entry(object(6), Vec::new()),
        made_by(object(6), local(1)),
    ];
    assert_eq!(found(entries), one(1, "task 1 object 5"));
}

#[test]
fn turns_alone_are_no_wait_that_could_fail() {
    let entries = vec![entry(local(1), vec![Need::of(local(2))]), entry(local(2), vec![Need::of(local(1))])];
    assert_eq!(found(entries), []);
}

#[test]
fn long_cycles_need_no_deep_stack() {
    let many = 50_000;
    let ring = (0..many).map(|at| entry(local(at), vec![wait(at, &[local((at + 1) % many)], 0)])).collect();
    let found = found(ring);
    assert_eq!((found.len(), found[0].0), (1, many - 1));
}

#[test]
fn a_look_is_repeated_and_believes_what_both_have_seen() {
    let object = ObjectId { owner: process(2), number: 5 };
    let here = |ticket| vec![entry(local(1), vec![wait(ticket, &[Spot::Object(object)], 0)])];
    let there = || vec![Entry { made_by: Some(local(1)), ..Entry::free(Spot::Object(object)) }];
    let ask = |acts: &[Act]| match acts {
        [Act::Ask { to, look, objects }] if *to == process(2) && *objects == [object] => *look,
        acts => panic!("{acts:?}"),
    };
    let mut looks = Looks::default();
    let first = ask(&looks.begin(0, vec![4], here(4)));
    assert_eq!(looks.may_begin(), PATIENCE);
    let acts = looks.told(0, first, process(2), &[object], there());
    assert!(matches!(&acts[..], [Act::Again(waits)] if *waits == [4]), "{acts:?}");
    // Another wait than before.
    let second = ask(&looks.again(0, here(6)));
    assert!(looks.told(0, first, process(2), &[object], there()).is_empty(), "an answer to an earlier question");
    let acts = looks.told(0, second, process(2), &[object], there());
    assert!(matches!(&acts[..], [Act::Again(_)]), "{acts:?}");
    let third = ask(&looks.again(0, here(6)));
    let acts = looks.told(5, third, process(2), &[object], there());
    assert!(
        matches!(&acts[..], [Act::Found(cycle)] if cycle.ticket.number == 6 && cycle.path == ["task 1"]),
        "{acts:?}"
    );
    assert_eq!(looks.may_begin(), 5 + 6 * REST);
    // It was nothing, or it is over: the look ends by itself.
    let fourth = ask(&looks.begin(8, vec![8], here(8)));
    assert!(looks.told(8, fourth, process(2), &[object], Vec::new()).is_empty());
    assert_eq!(looks.may_begin(), 8 + REST);
}

#[test]
fn of_cycles_with_a_wait_in_common_one_is_ended() {
    let ticket = |number| Ticket { process: process(1), number };
    let mut verdicts = Verdicts::default();
    assert!(verdicts.fails(ticket(2), &[ticket(1), ticket(2)]));
    assert!(!verdicts.fails(ticket(2), &[ticket(1), ticket(2)]));
    assert!(!verdicts.fails(ticket(3), &[ticket(1), ticket(2), ticket(3)]));
    assert!(verdicts.fails(ticket(3), &[ticket(1), ticket(3)]));
    for number in 10..10 + KNOWN as u64 {
        assert!(verdicts.fails(ticket(number), &[]));
    }
    assert_eq!((verdicts.failed.len(), verdicts.order.len()), (KNOWN, KNOWN));
}

/// Tasks of several processes that wait for each other. An object's number is that of its task.
struct World {
    random: Rng,
    processes: Vec<Looks>,
    tasks: Vec<Task>,
    head: Verdicts,
    mail: Vec<(ProcessId, ProcessId, Mail)>,
    next_ticket: u64,
    failed: usize,
}

struct Task {
    owner: ProcessId,
    place: ProcessId,
    doing: Doing,
    /// Waits that it may begin yet.
    left: u32,
}

#[derive(Clone, Debug, PartialEq)]
enum Doing {
    Runs,
    Waits { ticket: u64, targets: Vec<usize>, spare: usize },
    Done,
}

#[derive(Debug)]
enum Mail {
    Ask { look: u64, asked: ProcessId, objects: Vec<ObjectId> },
    Answer { look: u64, asked: ProcessId, objects: Vec<ObjectId>, entries: Vec<Entry> },
    Found(Cycle),
    End(u64),
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Rng::with_seed(seed);
        let processes = random.u64(1..6);
        let tasks = random.u64(2..16);
        let mut one = || process(random.u64(..processes));
        let tasks = (0..tasks).map(|_| Task { owner: one(), place: one(), doing: Doing::Runs, left: 3 }).collect();
        let processes = (0..processes).map(|_| Looks::default()).collect();
        World { random, processes, tasks, head: Verdicts::default(), mail: Vec::new(), next_ticket: 0, failed: 0 }
    }

    fn object(&self, task: usize) -> ObjectId {
        ObjectId { owner: self.tasks[task].owner, number: task as u64 }
    }

    /// What the process where it runs knows of a task.
    fn running(&self, task: usize) -> Entry {
        let place = self.tasks[task].place;
        let needs = match &self.tasks[task].doing {
            Doing::Waits { ticket, targets, spare } => vec![Need {
                ticket: Some(Ticket { process: place, number: *ticket }),
                targets: targets.iter().map(|target| Spot::Object(self.object(*target))).collect(),
                spare: *spare,
            }],
            _ => Vec::new(),
        };
        entry(Spot::Local(place, task as u64), needs)
    }

    fn waits_of(&self, asked: ProcessId, objects: &[ObjectId]) -> Vec<Entry> {
        let mut entries = Vec::new();
        for object in objects {
            let number = object.number as usize;
            let task = &self.tasks[number];
            let is_here = task.place == asked && task.doing != Doing::Done;
            let at = Spot::Object(*object);
            entries.push(Entry {
                made_by: is_here.then_some(Spot::Local(asked, object.number)),
                place: Some(task.place).filter(|_| object.owner == asked && !is_here && task.doing != Doing::Done),
                ..Entry::free(at)
            });
            entries.extend(is_here.then(|| self.running(number)));
        }
        entries
    }

    /// The waits of a process, and what is known there of them.
    fn waits_at(&self, at: ProcessId) -> (Vec<u64>, Vec<Entry>) {
        let waiting = self.tasks.iter().enumerate().filter_map(|(number, task)| match task.doing {
            Doing::Waits { ticket, .. } if task.place == at => Some((ticket, self.running(number))),
            _ => None,
        });
        waiting.unzip()
    }

    /// Whoever waits for enough that has ended goes on.
    fn go_on(&mut self) {
        for number in 0..self.tasks.len() {
            if let Doing::Waits { targets, spare, .. } = &self.tasks[number].doing {
                let open = targets.iter().filter(|target| self.tasks[**target].doing != Doing::Done).count();
                if open <= *spare {
                    self.tasks[number].doing = Doing::Runs;
                }
            }
        }
    }

    /// Whether this task can never go on, as one finds by letting all others end that can.
    fn is_stuck(&self, number: usize) -> bool {
        let mut ends: Vec<bool> = self.tasks.iter().map(|task| !matches!(task.doing, Doing::Waits { .. })).collect();
        loop {
            let before = ends.clone();
            for (at, task) in self.tasks.iter().enumerate() {
                if let Doing::Waits { targets, spare, .. } = &task.doing {
                    ends[at] = ends[at] || targets.iter().filter(|target| !ends[**target]).count() <= *spare;
                }
            }
            if before == ends {
                return !ends[number];
            }
        }
    }

    fn carry_on(&mut self, at: ProcessId, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Ask { to, look, objects } => self.mail.push((at, to, Mail::Ask { look, asked: to, objects })),
                Act::Again(tickets) => {
                    let (_, mut entries) = self.waits_at(at);
                    let is_one = |entry: &Entry| {
                        entry.needs.iter().any(|need| need.ticket.is_some_and(|t| tickets.contains(&t.number)))
                    };
                    entries.retain(is_one);
                    let acts = self.processes[at.0 as usize].again(0, entries);
                    self.carry_on(at, acts);
                }
                Act::Found(cycle) => self.mail.push((at, HEAD, Mail::Found(cycle))),
            }
        }
    }

    /// Some letter arrives.
    fn deliver(&mut self) {
        let at = self.random.usize(..self.mail.len());
        let (from, to, mail) = self.mail.swap_remove(at);
        match mail {
            Mail::Ask { look, asked, objects } => {
                let entries = self.waits_of(to, &objects);
                self.mail.push((to, from, Mail::Answer { look, asked, objects, entries }));
            }
            Mail::Answer { look, asked, objects, entries } => {
                let acts = self.processes[to.0 as usize].told(0, look, asked, &objects, entries);
                self.carry_on(to, acts);
            }
            Mail::Found(cycle) => {
                if self.head.fails(cycle.ticket, &cycle.waits()) {
                    self.mail.push((HEAD, cycle.ticket.process, Mail::End(cycle.ticket.number)));
                }
            }
            Mail::End(number) => {
                let is_it = |task: &Task| matches!(task.doing, Doing::Waits { ticket, .. } if ticket == number);
                let Some(task) = self.tasks.iter().position(is_it) else { return };
                assert!(self.is_stuck(task), "task {task} could have gone on");
                self.tasks[task].doing = Doing::Runs;
                self.failed += 1;
            }
        }
    }

    fn task_does_something(&mut self) {
        let running: Vec<_> = (0..self.tasks.len()).filter(|at| self.tasks[*at].doing == Doing::Runs).collect();
        if running.is_empty() {
            return;
        }
        let number = running[self.random.usize(..running.len())];
        if self.tasks[number].left == 0 || self.random.u8(..3) == 0 {
            self.tasks[number].doing = Doing::Done;
        } else {
            self.tasks[number].left -= 1;
            let count = self.random.usize(1..4);
            let all = self.tasks.len();
            let targets: Vec<_> = (0..count).map(|_| self.random.usize(..all)).collect();
            let spare = if self.random.u8(..3) == 0 { self.random.usize(..count) } else { 0 };
            self.next_ticket += 1;
            self.tasks[number].doing = Doing::Waits { ticket: self.next_ticket, targets, spare };
        }
        self.go_on();
    }

    fn look(&mut self) {
        let at = process(self.random.u64(..self.processes.len() as u64));
        if self.processes[at.0 as usize].may_begin() < PATIENCE {
            let (tickets, entries) = self.waits_at(at);
            let acts = self.processes[at.0 as usize].begin(0, tickets, entries);
            self.carry_on(at, acts);
        }
    }

    /// Runs to the end; returns how many waits have failed.
    fn run(mut self) -> usize {
        for _ in 0..100_000 {
            if self.tasks.iter().all(|task| task.doing == Doing::Done) {
                return self.failed;
            }
            match self.random.u8(..8) {
                0 => self.task_does_something(),
                1 | 2 => self.look(),
                _ if !self.mail.is_empty() => self.deliver(),
                _ => {}
            }
        }
        let tasks: Vec<_> = self.tasks.iter().map(|task| &task.doing).collect();
        panic!("a cycle was not found: {tasks:?}");
    }
}

#[test]
fn at_random_every_cycle_is_found_once_and_nobody_is_told_who_could_go_on() {
    let mut failed = 0;
    for seed in 0..500 {
        match std::panic::catch_unwind(|| World::new(seed).run()) {
            Ok(more) => failed += more,
            Err(_) => panic!("seed {seed}"),
        }
    }
    assert!(failed > 250, "there were {failed} cycles only");
}
