//! A sharded parameter server: workers train one network together, in step or each at its own pace.
//!
//! The parameters of the network are split over several actors. A worker pulls all shards, computes the
//! gradient on a small batch of its own part of the digits, and pushes each piece of it to the shard that owns
//! those parameters.
//!
//! - Synchronous: all workers compute on the same parameters; the next step waits for the slowest of them,
//!   and applies the mean of their gradients.
//! - Asynchronous: every worker is one long task that pulls and pushes without waiting for the others, so its
//!   gradient may be of parameters that have moved on meanwhile.
//!
//! Both see equally many batches.
//!
//! ```sh
//! cargo run --release --example parameter_server
//! ```

use std::{
    error::Error,
    iter::repeat_with,
    ops::RangeFrom,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use ndarray::{Array1, Axis};
use outray::{Actor, ObjectRef, Runtime};
use serde::{Deserialize, Serialize};

#[path = "support/digits.rs"]
mod digits_net;
use digits_net::{Dataset, Network, Sgd};

/// Lets every worker do its share of one round on its part of the digits.
type Round = fn(&Runtime, &ParameterServer, &[ObjectRef<Dataset>], u64) -> outray::Result<()>;

const SEED: u64 = 1998;
const SHARDS: usize = 4;
const WORKERS: usize = 4;
const HIDDEN: usize = 256;
const BATCH: usize = 64;
const ROUNDS: u64 = 6;
/// Batches of each worker in one round.
const STEPS: usize = 60;
const LEARNING_RATE: f32 = 0.02;
const MOMENTUM: f32 = 0.9;
const L2: f32 = 1e-4;

/// An actor that owns some of the parameters.
struct Shard {
    parameters: Array1<f32>,
    optimizer: Sgd,
}

impl Shard {
    fn new(parameters: Array1<f32>, learning_rate: f32) -> Self {
        let optimizer = Sgd::new(learning_rate, MOMENTUM, L2, parameters.len());
        Shard { parameters, optimizer }
    }

    fn pull(&self) -> Array1<f32> {
        self.parameters.clone()
    }

    fn push(&mut self, gradient: Array1<f32>) {
        self.optimizer.step(&mut self.parameters, &gradient);
    }
}

/// All shards of one network. It travels to tasks, since handles of actors do.
#[derive(Clone, Serialize, Deserialize)]
struct ParameterServer {
    shards: Vec<Actor<Shard>>,
}

impl ParameterServer {
    fn start(rt: &Runtime, network: &Network, learning_rate: f32) -> Self {
        let pieces = pieces(&network.parameters);
        ParameterServer { shards: pieces.map(|piece| rt.actor(Shard::new, (piece, learning_rate))).collect() }
    }

    fn pull(&self) -> outray::Result<Network> {
        let pieces: Vec<_> = self.shards.iter().map(|shard| shard.call(Shard::pull, ())).collect();
        let pieces = pieces.iter().map(ObjectRef::get_shared).collect::<outray::Result<Vec<_>>>()?;
        let parameters = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        Ok(Network { hidden: HIDDEN, parameters })
    }

    /// Applies a gradient and waits until it is applied.
    fn push(&self, gradient: &Array1<f32>) -> outray::Result<()> {
        let pieces = self.shards.iter().zip(pieces(gradient));
        let pushed: Vec<_> = pieces.map(|(shard, piece)| shard.call(Shard::push, piece)).collect();
        pushed.iter().try_for_each(ObjectRef::get)
    }
}

/// What belongs to each shard.
fn pieces(parameters: &Array1<f32>) -> impl Iterator<Item = Array1<f32>> {
    parameters.axis_chunks_iter(Axis(0), parameters.len().div_ceil(SHARDS)).map(|piece| piece.to_owned())
}

fn random_batch(digits: &Dataset, rng: &mut fastrand::Rng) -> Dataset {
    let rows: Vec<usize> = repeat_with(|| rng.usize(..digits.len())).take(BATCH).collect();
    digits.select(&rows)
}

/// Seeds that no other round has.
fn seeds_of(round: u64) -> RangeFrom<u64> {
    round << 32..
}

/// A synchronous worker's part of one step.
fn gradient(network: Arc<Network>, digits: Arc<Dataset>, seed: u64) -> Array1<f32> {
    let (gradient, _) = network.gradient(&random_batch(&digits, &mut fastrand::Rng::with_seed(seed)));
    gradient
}

fn mean(gradients: Vec<Arc<Array1<f32>>>) -> Array1<f32> {
    let sum = gradients.iter().fold(Array1::zeros(gradients[0].len()), |sum, gradient| sum + &**gradient);
    sum / gradients.len() as f32
}

fn synchronous_round(
    rt: &Runtime,
    server: &ParameterServer,
    parts: &[ObjectRef<Dataset>],
    round: u64,
) -> outray::Result<()> {
    let mut seeds = seeds_of(round);
    for _ in 0..STEPS {
        let network = rt.put(server.pull()?);
        let gradients: Vec<_> =
            parts.iter().zip(&mut seeds).map(|(part, seed)| rt.submit(gradient, (&network, part, seed))).collect();
        server.push(&rt.submit(mean, &gradients).get()?)?;
    }
    Ok(())
}

/// An asynchronous worker's part of one round.
fn work(server: ParameterServer, digits: Arc<Dataset>, seed: u64) -> outray::Result<()> {
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..STEPS {
        let (gradient, _) = server.pull()?.gradient(&random_batch(&digits, &mut rng));
        server.push(&gradient)?;
    }
    Ok(())
}

fn asynchronous_round(
    rt: &Runtime,
    server: &ParameterServer,
    parts: &[ObjectRef<Dataset>],
    round: u64,
) -> outray::Result<()> {
    let workers: Vec<_> =
        parts.iter().zip(seeds_of(round)).map(|(part, seed)| rt.submit(work, (server.clone(), part, seed))).collect();
    workers.iter().try_for_each(|worker| worker.get()?)
}

fn run() -> Result<(), Box<dyn Error>> {
    let rt = Runtime::from_env()?;
    let (held_out, training) = Dataset::shuffled(SEED)?.partition(|row| row % 5 == 0);
    let parts: Vec<_> =
        (0..WORKERS).map(|worker| rt.put(training.partition(|row| row % WORKERS == worker).0)).collect();
    let network = Network::new(HIDDEN, &mut fastrand::Rng::with_seed(SEED));
    println!("{} parameters on {SHARDS} shards, {WORKERS} workers, {} CPUs", network.parameters.len(), rt.stats().cpus);

    // A mean over all workers is less noisy than one worker's gradient, so it allows longer steps.
    let ways = [
        ("synchronous", LEARNING_RATE * WORKERS as f32, synchronous_round as Round),
        ("asynchronous", LEARNING_RATE, asynchronous_round),
    ];
    for (name, learning_rate, run_round) in ways {
        let server = ParameterServer::start(&rt, &network, learning_rate);
        let before = network.score(&held_out);
        println!("\n{name}\n  batches  loss   accuracy");
        println!("  {:>7}  {:.3}  {:>6.2} %", 0, before.loss, 100.0 * before.accuracy);
        let mut after = before;
        let mut batches = 0;
        let mut training_time = Duration::ZERO;
        for round in 0..ROUNDS {
            let start = Instant::now();
            run_round(&rt, &server, &parts, round)?;
            training_time += start.elapsed();
            batches += WORKERS * STEPS;
            after = server.pull()?.score(&held_out);
            println!("  {batches:>7}  {:.3}  {:>6.2} %", after.loss, 100.0 * after.accuracy);
        }
        println!("  {:.0} batches/s", batches as f64 / training_time.as_secs_f64());
        if after.loss >= before.loss {
            return Err(format!("{name} training did not lower the loss").into());
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("parameter_server: {error}");
            ExitCode::FAILURE
        }
    }
}
