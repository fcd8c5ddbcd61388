//! The handwritten digits, and a small neural network that learns to read them.
//!
//! One hidden layer with a rectifier, a softmax, the cross-entropy loss. All parameters of a [`Network`]
//! stand in one flat vector, so an optimizer is one line and a parameter server can split them anywhere.

use std::iter::{repeat_n, repeat_with};

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, azip};
use serde::{Deserialize, Serialize};

/// Pixels of one image.
pub(crate) const PIXELS: usize = 64;
/// Digits to tell apart.
pub(crate) const CLASSES: usize = 10;

const CSV: &str = include_str!("../data/digits.csv");

/// Images, one a row with pixels from 0 to 1, and the digit that each shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Dataset {
    pub(crate) images: Array2<f32>,
    pub(crate) labels: Vec<usize>,
}

impl Dataset {
    /// All 1,797 digits in an order given by `seed`.
    ///
    /// # Errors
    /// The line that is not 64 pixels and a digit.
    pub(crate) fn shuffled(seed: u64) -> Result<Self, String> {
        let mut lines: Vec<(usize, &str)> = CSV.lines().enumerate().collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut lines);
        let mut pixels = Vec::with_capacity(lines.len() * PIXELS);
        let mut labels = Vec::with_capacity(lines.len());
        for (index, line) in lines {
            let row: Vec<u8> = line
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map_err(|error| format!("digits.csv, line {}: {error}", index + 1))?;
            match row.as_slice() {
                [image @ .., label] if image.len() == PIXELS && usize::from(*label) < CLASSES => {
                    pixels.extend(image.iter().map(|&pixel| f32::from(pixel) / 16.0));
                    labels.push(usize::from(*label));
                }
                _ => return Err(format!("digits.csv, line {}: want 64 pixels and a digit", index + 1)),
            }
        }
        let images = Array2::from_shape_vec((labels.len(), PIXELS), pixels).map_err(|error| error.to_string())?;
        Ok(Dataset { images, labels })
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The rows at `indices`, in that order.
    pub(crate) fn select(&self, indices: &[usize]) -> Self {
        Dataset {
            images: self.images.select(Axis(0), indices),
            labels: indices.iter().map(|&index| self.labels[index]).collect(),
        }
    }

    /// Splits into the rows for which `first` holds and the others, keeping their order.
    pub(crate) fn partition(&self, first: impl Fn(usize) -> bool) -> (Self, Self) {
        let (ours, theirs): (Vec<usize>, Vec<usize>) = (0..self.len()).partition(|&row| first(row));
        (self.select(&ours), self.select(&theirs))
    }
}

/// A network with one hidden layer. The parameters of each layer stand together: its weights, one row for
/// each input, then its biases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) hidden: usize,
    pub(crate) parameters: Array1<f32>,
}

/// How well a network reads a data set.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Score {
    /// Mean cross-entropy, in nats.
    pub(crate) loss: f32,
    /// Part of the images read right, from 0 to 1.
    pub(crate) accuracy: f32,
}

impl Network {
    /// A network with `hidden` units, its weights drawn uniformly as He et al. (2015) advise for rectifiers.
    pub(crate) fn new(hidden: usize, rng: &mut fastrand::Rng) -> Self {
        let mut parameters = Vec::new();
        for (inputs, outputs) in [(PIXELS, hidden), (hidden, CLASSES)] {
            let bound = (6.0 / inputs as f32).sqrt();
            parameters.extend(repeat_with(|| (2.0 * rng.f32() - 1.0) * bound).take(inputs * outputs));
            parameters.extend(repeat_n(0.0, outputs));
        }
        Network { hidden, parameters: parameters.into() }
    }

    /// The probability of each digit, one row for each image.
    pub(crate) fn predict(&self, images: ArrayView2<f32>) -> Array2<f32> {
        let (_, probabilities) = self.forward(images);
        probabilities
    }

    /// The gradient of the mean loss over `batch`, laid out as the parameters are, and that loss.
    pub(crate) fn gradient(&self, batch: &Dataset) -> (Array1<f32>, f32) {
        let (hidden, probabilities) = self.forward(batch.images.view());
        let loss = cross_entropy(&probabilities, &batch.labels);

        let mut output_error = probabilities;
        for (mut row, &label) in output_error.rows_mut().into_iter().zip(&batch.labels) {
            row[label] -= 1.0;
        }
        output_error /= batch.len() as f32;
        let [_, (output_weights, _)] = self.layers();
        let mut hidden_error = output_error.dot(&output_weights.t());
        azip!((error in &mut hidden_error, &unit in &hidden) if unit == 0.0 { *error = 0.0 });

        let mut gradient = Vec::with_capacity(self.parameters.len());
        for (input, error) in [(batch.images.view(), hidden_error), (hidden.view(), output_error)] {
            gradient.extend(input.t().dot(&error));
            gradient.extend(error.sum_axis(Axis(0)));
        }
        (gradient.into(), loss)
    }

    pub(crate) fn score(&self, data: &Dataset) -> Score {
        let probabilities = self.predict(data.images.view());
        let right =
            probabilities.rows().into_iter().zip(&data.labels).filter(|(row, label)| most_likely(row) == **label);
        Score { accuracy: right.count() as f32 / data.len() as f32, loss: cross_entropy(&probabilities, &data.labels) }
    }

    /// The hidden layer's units and the probabilities of the digits, one row for each image.
    fn forward(&self, images: ArrayView2<f32>) -> (Array2<f32>, Array2<f32>) {
        let [(hidden_weights, hidden_bias), (output_weights, output_bias)] = self.layers();
        let mut hidden = images.dot(&hidden_weights) + hidden_bias;
        hidden.mapv_inplace(|sum| sum.max(0.0));
        let mut probabilities = hidden.dot(&output_weights) + output_bias;
        for mut row in probabilities.rows_mut() {
            let largest = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            row.mapv_inplace(|logit| (logit - largest).exp());
            row /= row.sum();
        }
        (hidden, probabilities)
    }

    /// The weights and biases of the hidden layer, then of the output layer.
    fn layers(&self) -> [(ArrayView2<'_, f32>, ArrayView1<'_, f32>); 2] {
        let (hidden, output) = self.parameters.view().split_at(Axis(0), (PIXELS + 1) * self.hidden);
        [(hidden, PIXELS), (output, self.hidden)].map(|(layer, inputs)| {
            let outputs = layer.len() / (inputs + 1);
            let (weights, bias) = layer.split_at(Axis(0), inputs * outputs);
            let weights = weights.into_shape_with_order((inputs, outputs)).expect("inputs x outputs weights");
            (weights, bias)
        })
    }
}

/// The digit with the highest probability.
pub(crate) fn most_likely(probabilities: &ArrayView1<f32>) -> usize {
    (0..probabilities.len()).max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b])).unwrap_or(0)
}

fn cross_entropy(probabilities: &Array2<f32>, labels: &[usize]) -> f32 {
    let right = probabilities.rows().into_iter().zip(labels);
    -right.map(|(row, &label)| row[label].max(f32::MIN_POSITIVE).ln()).sum::<f32>() / labels.len() as f32
}

/// Stochastic gradient descent with momentum and weight decay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sgd {
    pub(crate) learning_rate: f32,
    pub(crate) momentum: f32,
    pub(crate) l2: f32,
    velocity: Array1<f32>,
}

impl Sgd {
    /// An optimizer at rest for `parameters` parameters.
    pub(crate) fn new(learning_rate: f32, momentum: f32, l2: f32, parameters: usize) -> Self {
        Sgd { learning_rate, momentum, l2, velocity: Array1::zeros(parameters) }
    }

    /// Moves the parameters one step down the gradient.
    pub(crate) fn step(&mut self, parameters: &mut Array1<f32>, gradient: &Array1<f32>) {
        azip!((parameter in parameters, velocity in &mut self.velocity, &gradient in gradient) {
            *velocity = self.momentum * *velocity - self.learning_rate * (gradient + self.l2 * *parameter);
            *parameter += *velocity;
        });
    }
}
