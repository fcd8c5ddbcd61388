//! Figures, for people: `cargo test --release --features cluster bulk_speed -- --ignored --nocapture`.

use super::*;
use std::{net::TcpListener, time::Instant};

const SIZE: usize = 100 << 20;
const TIMES: usize = 8;

/// A place that was written to before, as those of a store are.
fn place() -> Vec<u8> {
    vec![1; SIZE]
}

fn report(name: &str, mut rates: Vec<f64>) {
    rates.sort_by(f64::total_cmp);
    let [lowest, median, highest] = [0, rates.len() / 2, rates.len() - 1].map(|at| rates[at]);
    println!("{name}: {median:.2} GB/s (from {lowest:.2} to {highest:.2})");
}

/// A blocking read from a blocking write: what the system can do.
fn raw() -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let content = vec![7; SIZE];
    let mut place = place();
    let mut to = std::net::TcpStream::connect(address).expect("it listens");
    let (mut from, _) = listener.accept().expect("it dialed");
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| content.chunks(RECORD).for_each(|chunk| to.write_all(chunk).expect("it is there")));
        from.read_exact(&mut place).expect("it comes");
    });
    SIZE as f64 / start.elapsed().as_secs_f64() / 1e9
}

#[test]
#[ignore = "measures"]
fn bulk_speed() {
    let content = Bytes::from(vec![7; SIZE]);
    let mut all = [Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    let sides = [plain(), keyed()].map(|config| {
        let content = content.clone();
        let server = Bulk::start(config.clone(), move |_| Ok(Some(content.clone()))).expect("it starts");
        (server, start(config))
    });
    let mut once = |at: usize, rate: f64| all[at].push(rate);
    for _ in 0..TIMES {
        once(0, raw());
        for (at, (server, client)) in sides.iter().enumerate() {
            let pull = |place: Vec<u8>| {
                let start = Instant::now();
                let place = client.pull(server.address(), object(1), 0, place).wait().expect("it comes");
                assert!(place[SIZE - 1] == 7);
                SIZE as f64 / start.elapsed().as_secs_f64() / 1e9
            };
            once(1 + at, pull(place()));
            once(3 + at, pull(vec![0; SIZE]));
        }
    }
    let names = ["raw TCP", "plain", "encrypted", "plain, into fresh memory", "encrypted, into fresh memory"];
    for (name, rates) in names.into_iter().zip(all) {
        report(name, rates);
    }
}
