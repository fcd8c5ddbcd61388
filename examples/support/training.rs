//! How the network that reads digits is trained: in small batches, for some epochs.

use super::digits_net::{Dataset, Network, Sgd};
use serde::{Deserialize, Serialize};
use std::ops::Deref;

/// Images that one step of the training looks at.
pub(crate) const BATCH: usize = 32;
pub(crate) const MOMENTUM: f32 = 0.9;

/// What a search can vary, and how long it trains.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) hidden: usize,
    pub(crate) learning_rate: f32,
    pub(crate) l2: f32,
    /// Half the width of the uniform noise added to each pixel of a training image.
    pub(crate) noise: f32,
    pub(crate) epochs: usize,
}

/// All training digits once, in an order and with noise of their own. Each step takes the next [`BATCH`] rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Epoch {
    pub(crate) learning_rate: f32,
    pub(crate) digits: Dataset,
}

/// A network that knows nothing yet, and what it is shown, both as `seed` says. The learning rate falls linearly to
/// zero.
pub(crate) fn training(
    digits: impl Deref<Target = Dataset>,
    config: Config,
    seed: u64,
) -> (Network, impl Iterator<Item = Epoch>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let network = Network::new(config.hidden, &mut rng);
    let mut order: Vec<usize> = (0..digits.len()).collect();
    let epochs = (0..config.epochs).map(move |epoch| {
        rng.shuffle(&mut order);
        let mut digits = digits.select(&order);
        if config.noise > 0.0 {
            digits.images.mapv_inplace(|pixel| pixel + config.noise * (2.0 * rng.f32() - 1.0));
        }
        Epoch { learning_rate: config.learning_rate * (1.0 - epoch as f32 / config.epochs as f32), digits }
    });
    (network, epochs)
}

/// Trains by gradient descent.
pub(crate) fn train(digits: &Dataset, config: Config, seed: u64) -> Network {
    let (mut network, epochs) = training(digits, config, seed);
    let mut optimizer = Sgd::new(config.learning_rate, MOMENTUM, config.l2, network.parameters.len());
    for Epoch { learning_rate, digits } in epochs {
        optimizer.learning_rate = learning_rate;
        let rows: Vec<usize> = (0..digits.len()).collect();
        for rows in rows.chunks(BATCH) {
            let (gradient, _) = network.gradient(&digits.select(rows));
            optimizer.step(&mut network.parameters, &gradient);
        }
    }
    network
}
