//! Figures, for people: `cargo test --release --features cluster speed -- --ignored --nocapture`.

use super::*;
use std::time::Instant;

#[test]
#[ignore = "measures"]
fn speed() {
    for key in [None, Some(Key::generate().expect("randomness"))] {
        let name = if key.is_some() { "encrypted" } else { "plain" };
        let config = Config { key, ..Config::default() };
        let (mut a, mut b) = (start_with(config.clone()), start_with(config));
        join(&mut a, &mut b);
        let (to, from) = (b.0.incarnation(), a.0.incarnation());
        let push = |a: &Endpoint, b: &mut Side, count: usize, message: Message| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..count {
                        let mut message = message.clone();
                        while let Err(SendError::Full(again)) = a.send(to, message) {
                            message = again;
                            std::thread::yield_now();
                        }
                    }
                });
                for _ in 0..count {
                    assert!(matches!(next(&mut b.1), Event::Message(..)));
                }
            });
            count as f64 / start.elapsed().as_secs_f64()
        };
        for _ in 0..3 {
            let rate = push(&a.0, &mut b, 1_000_000, Message::new(vec![7; 100]));
            println!("{name}: {:.2} M messages/s of 100 bytes", rate / 1e6);
        }
        for _ in 0..3 {
            let large = Message { header: vec![7; 20].into(), payloads: vec![vec![7; 1 << 20].into()] };
            let rate = push(&a.0, &mut b, 2000, large);
            println!("{name}: {:.2} GB/s in payloads of 1 MiB", rate * (1 << 20) as f64 / 1e9);
        }
        while a.1.recv_timeout(Duration::from_millis(100)).is_some() {} // `Room`
        let mut times: Vec<Duration> = (0..10_000)
            .map(|at| {
                let start = Instant::now();
                a.0.send(to, numbered(at)).expect("there is room");
                assert_eq!(next(&mut b.1), Event::Message(from, numbered(at)));
                b.0.send(from, numbered(at)).expect("there is room");
                assert_eq!(next(&mut a.1), Event::Message(to, numbered(at)));
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("{name}: round trip p50 {:?}, p99 {:?}", times[5_000], times[9_900]);
    }
}
