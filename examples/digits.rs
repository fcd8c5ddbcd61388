//! The main job: search the hyper-parameters of a small neural network that reads handwritten digits.
//!
//! Every configuration is trained and judged five times, each time on another fifth of the training digits
//! (5-fold cross-validation). Each of these trials is one task of [`Runtime::map`], and all of them share one
//! copy of the digits. The best configuration is trained once more on all training digits and judged on
//! digits that the search has never seen. Then the same trials run one after the other in a plain loop, which
//! must give the same numbers, and the speed-up is printed.
//!
//! ```sh
//! cargo run --release --example digits                      # the full search
//! cargo run --release --example digits -- --quick           # a few seconds
//! cargo run --release --example digits -- --trace FILE      # where to write the timeline
//! ```
//!
//! Open the timeline at <https://ui.perfetto.dev>.

use std::{
    env,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use outray::{ObjectRef, Runtime};
use serde::{Deserialize, Serialize};

#[path = "support/digits.rs"]
mod digits_net;
use digits_net::{CLASSES, Dataset, Network, most_likely};

#[path = "support/training.rs"]
mod training;
use training::{Config, train};

const USAGE: &str = "\
Usage: digits [--quick] [--trace FILE]

  --quick       a small search that takes a few seconds
  --trace FILE  where to write the timeline [default: target/digits-trace.json]
  --help        print this text";

const SEED: u64 = 1998;
const FOLDS: usize = 5;
const REQUIRED_ACCURACY: f32 = 0.95;

/// One configuration, judged on one fold. The handle lets every trial share the same digits.
#[derive(Clone, Serialize, Deserialize)]
struct Trial {
    digits: ObjectRef<Dataset>,
    config: Config,
    fold: usize,
}

fn run_trial(trial: Trial) -> outray::Result<f32> {
    Ok(validate(&*trial.digits.get_shared()?, trial.config, trial.fold))
}

/// The accuracy on one fold after training on the others.
fn validate(digits: &Dataset, config: Config, fold: usize) -> f32 {
    let (validation, training) = digits.partition(|row| row % FOLDS == fold);
    train(&training, config, SEED + fold as u64).score(&validation).accuracy
}

/// The configurations to try, the slowest to train first: the fast ones then fill the gaps at the end.
fn grid(quick: bool) -> Vec<Config> {
    let (widths, epochs): (&[usize], usize) = if quick { (&[64, 32], 30) } else { (&[256, 128, 64], 75) };
    let mut configs = Vec::new();
    for &hidden in widths {
        for learning_rate in [0.1, 0.3] {
            for l2 in [0.0, 1e-4] {
                for noise in [0.0, 0.4] {
                    configs.push(Config { hidden, learning_rate, l2, noise, epochs });
                }
            }
        }
    }
    configs
}

/// A configuration and what its trials found.
struct Outcome {
    config: Config,
    mean: f32,
    deviation: f32,
}

impl Outcome {
    fn new(config: Config, accuracies: &[f32]) -> Self {
        let count = accuracies.len() as f32;
        let mean = accuracies.iter().sum::<f32>() / count;
        let variance = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum::<f32>() / (count - 1.0);
        Outcome { config, mean, deviation: variance.sqrt() }
    }
}

fn print_table(outcomes: &[Outcome]) {
    println!("\n  rank  hidden  learning rate      l2  noise  accuracy in {FOLDS}-fold cross-validation");
    for (rank, Outcome { config, mean, deviation }) in (1..).zip(outcomes) {
        println!(
            "  {rank:>4}  {:>6}  {:>13}  {:>6}  {:>5}  {:.2} % +- {:.2}",
            config.hidden,
            config.learning_rate,
            config.l2,
            config.noise,
            100.0 * mean,
            100.0 * deviation,
        );
    }
}

/// The pairs of digits that are mistaken most often: `(shown, read as, times)`.
fn confusions(network: &Network, digits: &Dataset) -> Vec<(usize, usize, usize)> {
    let mut times = [[0; CLASSES]; CLASSES];
    for (row, &shown) in network.predict(digits.images.view()).rows().into_iter().zip(&digits.labels) {
        times[shown][most_likely(&row)] += 1;
    }
    let pairs = (0..CLASSES).flat_map(|shown| (0..CLASSES).map(move |read| (shown, read)));
    let mut mistaken: Vec<_> = pairs
        .filter(|(shown, read)| shown != read)
        .map(|(shown, read)| (shown, read, times[shown][read]))
        .filter(|(_, _, times)| *times > 0)
        .collect();
    mistaken.sort_by_key(|(_, _, times)| std::cmp::Reverse(*times));
    mistaken
}

/// Creates an empty file, and its folder, so that a wrong path is noticed before the work and not after it.
fn create_file(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, "")
}

fn search(options: &Options) -> Result<(), Box<dyn Error>> {
    create_file(&options.trace).map_err(|error| format!("cannot write {}: {error}", options.trace.display()))?;
    let rt = Runtime::builder().observe(true).from_env()?;
    let (held_out, training) = Dataset::shuffled(SEED)?.partition(|row| row % 5 == 0);
    let configs = grid(options.quick);
    let trials: Vec<(Config, usize)> =
        configs.iter().flat_map(|&config| (0..FOLDS).map(move |fold| (config, fold))).collect();
    println!(
        "{} configurations x {FOLDS} folds = {} trials on {} digits; {} digits held out",
        configs.len(),
        trials.len(),
        training.len(),
        held_out.len(),
    );

    let digits = rt.put(training);
    let start = Instant::now();
    let accuracies: Vec<f32> = rt
        .map(run_trial, trials.iter().map(|&(config, fold)| Trial { digits: digits.clone(), config, fold }))
        .chunk(1)
        .progress("trials")
        .collect()?
        .into_iter()
        .collect::<outray::Result<_>>()?;
    let parallel = start.elapsed();

    let mut outcomes: Vec<Outcome> =
        configs.iter().zip(accuracies.chunks(FOLDS)).map(|(&config, folds)| Outcome::new(config, folds)).collect();
    outcomes.sort_by(|a, b| b.mean.total_cmp(&a.mean));
    print_table(&outcomes);

    let network = rt
        .task(|digits: Arc<Dataset>, config: Config| train(&digits, config, SEED))
        .name("train the best")
        .submit((&digits, outcomes[0].config))
        .get()?;
    let accuracy = network.score(&held_out).accuracy;
    println!(
        "\nThe best, trained on all {} digits, reads {:.2} % of the {} held-out digits right.",
        digits.get_shared()?.len(),
        100.0 * accuracy,
        held_out.len(),
    );
    for (shown, read, times) in confusions(&network, &held_out).into_iter().take(3) {
        println!("  {shown} read as {read}: {times}x");
    }

    println!("\nThe same trials in a plain sequential loop ...");
    let training = digits.get_shared()?;
    let start = Instant::now();
    let expected: Vec<f32> = trials.iter().map(|&(config, fold)| validate(&training, config, fold)).collect();
    let sequential = start.elapsed();
    println!(
        "  sequential {:.2} s, outray {:.2} s: {:.2} times as fast on {} CPUs",
        sequential.as_secs_f64(),
        parallel.as_secs_f64(),
        sequential.as_secs_f64() / parallel.as_secs_f64(),
        rt.stats().cpus,
    );

    rt.timeline(&options.trace)?;
    println!("Timeline: {} (open it at https://ui.perfetto.dev)", options.trace.display());

    if accuracies != expected {
        return Err("the tasks and the sequential loop found different accuracies".into());
    }
    if accuracy <= REQUIRED_ACCURACY {
        return Err(format!("the accuracy {accuracy} on held-out digits is not above {REQUIRED_ACCURACY}").into());
    }
    Ok(())
}

struct Options {
    quick: bool,
    trace: PathBuf,
}

impl Options {
    /// `None` asks for the help text.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options { quick: false, trace: PathBuf::from("target/digits-trace.json") };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--trace" => options.trace = arguments.next().ok_or("--trace needs a file name")?.into(),
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown argument {argument:?}")),
            }
        }
        Ok(Some(options))
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(mistake) => {
            eprintln!("digits: {mistake}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match search(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("digits: {error}");
            ExitCode::FAILURE
        }
    }
}
