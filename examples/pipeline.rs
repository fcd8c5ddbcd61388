//! A loader feeds a trainer: a streaming task, an actor, and back-pressure between them.
//!
//! The loader is a task that returns an iterator of batches of noisy digits. It runs while the program
//! already takes what it yields, yet never more than its buffer ahead, so memory stays small however long the
//! stream is. The trainer is an actor: it owns the network and learns from one batch after the other.
//!
//! ```sh
//! cargo run --release --example pipeline
//! ```

use std::{error::Error, process::ExitCode, sync::Arc, time::Instant};

use outray::{Actor, Runtime};

#[path = "support/digits.rs"]
mod digits_net;
use digits_net::{Dataset, Network, Sgd};

const SEED: u64 = 1998;
const EPOCHS: usize = 20;
const BATCH: usize = 32;
const NOISE: f32 = 0.3;
const HIDDEN: usize = 128;
const LEARNING_RATE: f32 = 0.03;
const BATCHES_PER_LINE: usize = 150;
/// Batches that wait between the loader and the trainer.
const BUFFER: usize = 4;

/// Yields all digits `EPOCHS` times, in another order and with other noise each time.
fn load(digits: Arc<Dataset>, gauge: Actor<Gauge>) -> impl Iterator<Item = outray::Result<Dataset>> + Send + 'static {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut order = Vec::new();
    (0..EPOCHS * digits.len().div_ceil(BATCH)).map(move |_| {
        if order.is_empty() {
            order = (0..digits.len()).collect();
            rng.shuffle(&mut order);
        }
        let rows = order.split_off(order.len().saturating_sub(BATCH));
        let mut batch = digits.select(&rows);
        batch.images.mapv_inplace(|pixel| pixel + NOISE * (2.0 * rng.f32() - 1.0));
        gauge.call(Gauge::loaded, ()).get()?;
        Ok(batch)
    })
}

/// Learns from batches.
struct Trainer {
    network: Network,
    optimizer: Sgd,
}

impl Trainer {
    fn new(hidden: usize, learning_rate: f32) -> Self {
        let network = Network::new(hidden, &mut fastrand::Rng::with_seed(SEED));
        let optimizer = Sgd::new(learning_rate, 0.9, 1e-4, network.parameters.len());
        Trainer { network, optimizer }
    }

    /// Takes one step and returns the loss before it.
    fn learn(&mut self, batch: Arc<Dataset>) -> f32 {
        let (gradient, loss) = self.network.gradient(&batch);
        self.optimizer.step(&mut self.network.parameters, &gradient);
        loss
    }

    fn accuracy(&self, digits: Arc<Dataset>) -> f32 {
        self.network.score(&digits).accuracy
    }
}

/// Counts the batches that the loader has made and the trainer has not learned from yet.
#[derive(Default)]
struct Gauge {
    ahead: usize,
    most_ahead: usize,
}

impl Gauge {
    fn loaded(&mut self) {
        self.ahead += 1;
        self.most_ahead = self.most_ahead.max(self.ahead);
    }

    fn learned(&mut self) {
        self.ahead -= 1;
    }

    fn most_ahead(&self) -> usize {
        self.most_ahead
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let rt = Runtime::from_env()?;
    let (held_out, training) = Dataset::shuffled(SEED)?.partition(|row| row % 5 == 0);
    let (held_out, training) = (rt.put(held_out), rt.put(training));
    let gauge = rt.actor(Gauge::default, ());
    let trainer = rt.actor(Trainer::new, (HIDDEN, LEARNING_RATE));

    println!("Loader -> buffer of {BUFFER} batches -> trainer");
    let batches = rt.streaming(load).name("load").buffer(BUFFER).submit((&training, gauge.clone()));
    let start = Instant::now();
    let mut losses = Vec::new();
    for batch in batches {
        losses.push(trainer.call(Trainer::learn, &batch?).get()?);
        gauge.call(Gauge::learned, ()).get()?;
        if losses.len() % BATCHES_PER_LINE == 0 {
            let mean = losses[losses.len() - BATCHES_PER_LINE..].iter().sum::<f32>() / BATCHES_PER_LINE as f32;
            println!("  after {:>4} batches: loss {mean:.3}", losses.len());
        }
    }
    let seconds = start.elapsed().as_secs_f64();

    let accuracy = trainer.call(Trainer::accuracy, &held_out).get()?;
    let most_ahead = gauge.call(Gauge::most_ahead, ()).get()?;
    println!(
        "{:.0} batches/s; {:.1} % of the held-out digits read right",
        losses.len() as f64 / seconds,
        100.0 * accuracy
    );
    println!("The loader was at most {most_ahead} batches ahead: {BUFFER} in the buffer and one with the trainer.");
    if most_ahead > BUFFER + 1 {
        return Err("the loader ran away from the trainer".into());
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pipeline: {error}");
            ExitCode::FAILURE
        }
    }
}
