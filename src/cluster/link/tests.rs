//! Two links, and wires between them that lose, repeat, delay, stall and break, for many seeds.

use super::{codec::Malformed, *};
use fastrand::Rng;

const MS: Duration = Duration::from_millis(1);

fn config() -> Config {
    Config {
        window: Credit { messages: 64, bytes: 20_000 },
        queue: Credit { messages: 128, bytes: 40_000 },
        heartbeat: 50 * MS,
        silence: 300 * MS,
        lost_after: 20_000 * MS,
        resend_after: 200 * MS,
        ack_delay: 5 * MS,
    }
}

/// A process: its link, and the layer above.
struct Node {
    link: Link,
    /// Which link of this node's it is.
    life: u64,
    /// The number of the next message to send on this link.
    next: u64,
    to_send: u64,
    /// What came, not yet consumed.
    inbox: Vec<Message>,
    /// Life of the sender, and the number that must come next.
    expected: (u64, u64),
    delivered: u64,
    lost: u64,
    finished: bool,
}

impl Node {
    fn new(now: Now, life: u64, rng: &mut Rng) -> Node {
        Node {
            link: Link::new(now, rng.u64(1..), config()),
            life,
            next: 0,
            to_send: 0,
            inbox: Vec::new(),
            expected: (0, 0),
            delivered: 0,
            lost: 0,
            finished: false,
        }
    }

    fn renew(&mut self, now: Now, rng: &mut Rng) {
        self.link = Link::new(now, rng.u64(1..), config());
        self.life += 1;
        self.next = 0;
        self.inbox.clear();
        self.lost += 1;
    }

    fn message(&self, rng: &mut Rng) -> Message {
        let mut header = self.life.to_le_bytes().to_vec();
        header.extend(self.next.to_le_bytes());
        let payloads = (0..rng.usize(..3)).map(|_| vec![1; rng.usize(..900)].into()).collect();
        Message { header: header.into(), payloads }
    }

    fn accept(&mut self, message: Message) {
        let mut header = message.header.clone();
        let (life, number) = (bytes::Buf::get_u64_le(&mut header), bytes::Buf::get_u64_le(&mut header));
        assert!(life >= self.expected.0, "a message of a link that was given up");
        if life > self.expected.0 {
            self.expected = (life, 0);
        }
        assert_eq!(number, self.expected.1, "lost, repeated or out of order");
        self.expected.1 += 1;
        self.delivered += 1;
        self.inbox.push(message);
        let bytes: usize = self.inbox.iter().map(Message::cost).sum();
        assert!(self.inbox.len() <= 64 && bytes <= 20_000, "more than the window waits");
    }
}

/// A connection: what is under way in each direction, and when it arrives.
#[derive(Default)]
struct Wire {
    ways: [VecDeque<(Now, Vec<Bytes>)>; 2],
    stalled_until: [Now; 2],
}

#[derive(Clone, Copy)]
struct Faults {
    lose: f64,
    repeat: f64,
    cut: f64,
    stall: f64,
    restart: f64,
}

struct World {
    now: Now,
    rng: Rng,
    nodes: [Node; 2],
    wire: Option<Wire>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let nodes = [Node::new(Now::ZERO, 1, &mut rng), Node::new(Now::ZERO, 1, &mut rng)];
        World { now: Now::ZERO, rng, nodes, wire: None }
    }

    fn cut(&mut self) {
        if self.wire.take().is_some() {
            for at in 0..2 {
                self.input(at, Input::Detached);
            }
        }
    }

    fn input(&mut self, at: usize, input: Input) {
        let outputs = self.nodes[at].link.handle(self.now, input);
        for output in outputs {
            match output {
                Output::Up | Output::Freed(_) => {}
                Output::Deliver(messages) => messages.into_iter().for_each(|message| self.nodes[at].accept(message)),
                Output::Close(_) => self.cut(),
                Output::Lost(Reason::Finished) => self.nodes[at].finished = true,
                Output::Lost(reason) => {
                    assert!(
                        matches!(reason, Reason::Forgotten),
                        "node {at} lost its peer at {:?}: {reason:?}",
                        self.now
                    );
                    self.nodes[at].renew(self.now, &mut self.rng);
                }
            }
        }
    }

    fn step(&mut self, faults: Faults) {
        self.now += MS;
        if self.wire.is_none() && self.rng.u8(..10) == 0 {
            self.wire = Some(Wire::default());
            for at in 0..2 {
                self.input(at, Input::Attached);
            }
        }
        if self.rng.f64() < faults.restart {
            self.cut();
            let at = self.rng.usize(..2);
            self.nodes[at].renew(self.now, &mut self.rng);
        }
        if self.rng.f64() < faults.cut {
            self.cut();
        }
        for at in 0..2 {
            while self.nodes[at].to_send > 0 && self.rng.bool() {
                let message = self.nodes[at].message(&mut self.rng);
                match self.nodes[at].link.send(message) {
                    Ok(()) => {}
                    Err(SendError::Full(_)) => break,
                    Err(error) => panic!("{error}"),
                }
                self.nodes[at].next += 1;
                self.nodes[at].to_send -= 1;
            }
            if self.rng.u8(..4) == 0 {
                let count = self.rng.usize(..=self.nodes[at].inbox.len());
                let bytes = self.nodes[at].inbox.drain(..count).map(|message| message.cost() as u64).sum();
                self.input(at, Input::Consumed(Credit { messages: count as u64, bytes }));
            }
            if self.nodes[at].link.deadline(true).is_some_and(|deadline| deadline <= self.now) {
                self.input(at, Input::Tick);
            }
            self.transmit(at, faults);
            self.deliver(at);
        }
    }

    fn transmit(&mut self, from: usize, faults: Faults) {
        for _ in 0..self.rng.usize(..4) {
            let Some(wire) = &mut self.wire else { return };
            let Some(frame) = self.nodes[from].link.poll_transmit(self.now) else { return };
            let (rng, way) = (&mut self.rng, &mut wire.ways[from]);
            if rng.f64() < faults.stall {
                wire.stalled_until[from] = self.now + rng.u32(..600) * MS;
            }
            let earliest = way.back().map_or(self.now, |(at, _)| *at).max(self.now);
            let is_greeting = frame.len() == 1 && matches!(Frame::decode(frame.clone()), Ok(Frame::Hello(_)));
            if !is_greeting && rng.f64() < faults.repeat {
                way.push_back((earliest + rng.u32(..5) * MS, frame.clone()));
            }
            if rng.f64() >= faults.lose {
                way.push_back((earliest + rng.u32(..5) * MS, frame));
            }
        }
    }

    fn deliver(&mut self, from: usize) {
        while let Some(wire) = &mut self.wire {
            let is_here = wire.ways[from].front().is_some_and(|(at, _)| *at <= self.now);
            if !is_here || wire.stalled_until[from] > self.now {
                return;
            }
            let (_, frame) = wire.ways[from].pop_front().expect("looked at");
            self.input(1 - from, Input::Received(frame));
        }
    }

    fn quiet(&self) -> bool {
        self.nodes.iter().all(|node| node.to_send == 0 && node.link.is_drained())
    }
}

/// Runs `body` for every seed; a seed that fails is named.
fn for_seeds(seeds: std::ops::Range<u64>, body: impl Fn(u64) + std::panic::RefUnwindSafe) {
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| body(seed)) {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

const NONE: Faults = Faults { lose: 0.0, repeat: 0.0, cut: 0.0, stall: 0.0, restart: 0.0 };

#[test]
fn simulation_everything_arrives_once_and_in_order() {
    for_seeds(0..400, |seed| {
        let mut world = World::new(seed);
        let faults = Faults {
            lose: world.rng.f64() * 0.2,
            repeat: world.rng.f64() * 0.2,
            cut: world.rng.f64() * 0.01,
            stall: world.rng.f64() * 0.02,
            restart: 0.0,
        };
        for at in 0..2 {
            world.nodes[at].to_send = world.rng.u64(..1500);
        }
        let to_send = [world.nodes[0].to_send, world.nodes[1].to_send];
        let mut steps = 0;
        while !world.quiet() {
            world.step(if steps < 20_000 { faults } else { NONE });
            steps += 1;
            assert!(steps < 60_000, "it does not come to an end");
        }
        for at in 0..2 {
            assert_eq!(world.nodes[at].delivered, to_send[1 - at]);
            assert_eq!(world.nodes[at].lost, 0);
        }
    });
}

/// Processes are started again in the midst of it: a link ends on both sides, messages of an old one
/// never come on a new one, and the last one delivers all.
#[test]
fn simulation_restarts_end_links_on_both_sides() {
    for_seeds(0..300, |seed| {
        let mut world = World::new(seed);
        let faults = Faults { lose: 0.05, repeat: 0.1, cut: 0.005, stall: 0.01, restart: 0.002 };
        for _ in 0..2_500 {
            if world.rng.u8(..20) == 0 {
                let at = world.rng.usize(..2);
                world.nodes[at].to_send = world.rng.u64(..50);
            }
            world.step(faults);
        }
        world.cut();
        // Both know now, or learn it from the hello, that the other is another one.
        for _ in 0..500 {
            world.step(NONE);
        }
        let lives = [world.nodes[0].life, world.nodes[1].life];
        for at in 0..2 {
            world.nodes[at].to_send = 500;
        }
        while !world.quiet() {
            world.step(NONE);
            assert!(world.now < 60_000 * MS, "it does not come to an end");
        }
        for at in 0..2 {
            assert_eq!(world.nodes[at].life, lives[at]);
            assert_eq!(world.nodes[at].expected, (lives[1 - at], world.nodes[1 - at].next));
        }
    });
}

/// Two links that greet each other without a wire.
fn pair() -> (Link, Link) {
    let mut links = (Link::new(Now::ZERO, 1, config()), Link::new(Now::ZERO, 2, config()));
    links.0.handle(Now::ZERO, Input::Attached);
    links.1.handle(Now::ZERO, Input::Attached);
    let hellos = (links.0.poll_transmit(Now::ZERO), links.1.poll_transmit(Now::ZERO));
    assert!(links.0.handle(Now::ZERO, Input::Received(hellos.1.expect("a hello"))).contains(&Output::Up));
    assert!(links.1.handle(Now::ZERO, Input::Received(hellos.0.expect("a hello"))).contains(&Output::Up));
    links
}

fn small() -> Message {
    Message::new(&b"0123456789"[..])
}

#[test]
fn queued_messages_travel_as_one_batch() {
    let (mut a, mut b) = pair();
    for _ in 0..50 {
        a.send(small()).expect("there is room");
    }
    let batch = a.poll_transmit(Now::ZERO).expect("a batch");
    assert_eq!(a.poll_transmit(Now::ZERO), None);
    let outputs = b.handle(Now::ZERO, Input::Received(batch));
    assert!(matches!(&outputs[..], [Output::Deliver(messages)] if messages.len() == 50));
    assert_eq!(b.poll_transmit(Now::ZERO), None, "the acknowledgement waits for something to travel with");
    let ack = b.poll_transmit(5 * MS).expect("not for ever");
    let outputs = a.handle(5 * MS, Input::Received(ack));
    assert_eq!(outputs, [Output::Freed(Credit { messages: 50, bytes: 50 * 74 })]);
}

/// The peer consumes nothing: the window's worth is delivered, the queue fills, and `send` says so.
#[test]
fn a_peer_that_consumes_nothing_fills_the_queue_and_no_more() {
    let (mut a, mut b) = pair();
    let (mut accepted, mut delivered) = (0, 0);
    for turn in 0..1000 {
        let now = turn * MS;
        if a.send(small()).is_ok() {
            accepted += 1;
        }
        while let Some(batch) = a.poll_transmit(now) {
            for output in b.handle(now, Input::Received(batch)) {
                if let Output::Deliver(messages) = output {
                    delivered += messages.len();
                }
            }
        }
        while let Some(batch) = b.poll_transmit(now) {
            a.handle(now, Input::Received(batch));
        }
    }
    assert_eq!(delivered, 64);
    assert_eq!(accepted, 64 + 128);
    assert!(matches!(a.send(small()), Err(SendError::Full(message)) if message == small()));
    b.handle(Duration::from_secs(1), Input::Consumed(Credit { messages: 64, bytes: 64 * 74 }));
    let grant = b.poll_transmit(Duration::from_secs(1)).expect("a grant does not wait");
    a.handle(Duration::from_secs(1), Input::Received(grant));
    assert!(a.poll_transmit(Duration::from_secs(1)).is_some());
}

#[test]
fn the_queue_has_a_bound_in_bytes() {
    let (mut a, _) = pair();
    let message = Message::new(vec![0; 15_000]);
    assert_eq!(a.send(message.clone()), Ok(()));
    assert_eq!(a.send(message.clone()), Ok(()));
    assert_eq!(a.send(message.clone()), Err(SendError::Full(message)));
    let error = a.send(Message::new(vec![0; codec::MAX_MESSAGE + 1])).expect_err("too large");
    assert!(error.to_string().contains("send it in chunks"), "{error}");
}

#[test]
fn whoever_ignores_the_credit_is_lost() {
    let (mut a, mut b) = pair();
    a.credit = Credit { messages: u64::MAX, bytes: u64::MAX };
    for _ in 0..65 {
        a.send(small()).expect("there is room");
    }
    let batch = a.poll_transmit(Now::ZERO).expect("a batch");
    let reason = Reason::Protocol("it sent more than it may");
    assert_eq!(b.handle(Now::ZERO, Input::Received(batch)), [Output::Close(reason), Output::Lost(reason)]);
}

#[test]
fn a_silent_connection_is_closed_and_a_silent_peer_lost() {
    let (mut a, _) = pair();
    let deadline = |link: &Link| link.deadline(true).expect("it waits");
    assert_eq!(deadline(&a), 50 * MS);
    assert!(a.poll_transmit(50 * MS).is_some(), "a heartbeat");
    assert!(a.poll_transmit(51 * MS).is_none());
    let outputs = a.handle(300 * MS, Input::Tick);
    assert_eq!(outputs, [Output::Close(Reason::Silent(300 * MS))]);
    a.handle(301 * MS, Input::Detached);
    assert_eq!(deadline(&a), 20_000 * MS);
    assert_eq!(a.handle(20_000 * MS, Input::Tick), [Output::Lost(Reason::Silent(20_000 * MS))]);
    assert_eq!(a.send(small()), Err(SendError::Lost));
    assert_eq!(a.deadline(true), None);
}

#[test]
fn garbage_from_a_peer_ends_the_link() {
    let (mut a, _) = pair();
    let outputs = a.handle(Now::ZERO, Input::Received(vec![Bytes::from_static(&[3, 255, 255])]));
    let reason = Reason::Malformed(Malformed::Truncated);
    assert_eq!(outputs, [Output::Close(reason), Output::Lost(reason)]);
}

/// `b` gave `a` up, and forgot it. When it comes back, `a` learns that.
#[test]
fn a_peer_that_was_forgotten_learns_it() {
    let (mut a, _) = pair();
    a.handle(Now::ZERO, Input::Detached);
    let mut b = Link::new(Now::ZERO, 3, config());
    a.handle(MS, Input::Attached);
    b.handle(MS, Input::Attached);
    let (from_a, from_b) = (a.poll_transmit(MS).expect("a hello"), b.poll_transmit(MS).expect("a hello"));
    assert_eq!(b.handle(MS, Input::Received(from_a)), [Output::Close(Reason::Forgotten)]);
    let outputs = a.handle(MS, Input::Received(from_b));
    assert_eq!(outputs, [Output::Close(Reason::Forgotten), Output::Lost(Reason::Forgotten)]);
}

#[test]
fn a_link_that_finishes_says_so_once_all_is_acknowledged() {
    let (mut a, mut b) = pair();
    a.send(small()).expect("there is room");
    a.handle(Now::ZERO, Input::Finish);
    let batch = a.poll_transmit(Now::ZERO).expect("a batch");
    assert_eq!(a.poll_transmit(Now::ZERO), None);
    b.handle(Now::ZERO, Input::Received(batch));
    let ack = b.poll_transmit(5 * MS).expect("an acknowledgement");
    a.handle(5 * MS, Input::Received(ack));
    let bye = a.poll_transmit(5 * MS).expect("the end");
    let outputs = b.handle(5 * MS, Input::Received(bye));
    assert_eq!(outputs, [Output::Close(Reason::Finished), Output::Lost(Reason::Finished)]);
}
