//! A handle to a value that is not `Clone`, for a function that takes it by value.

use outray::Runtime;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Model {
    weights: Vec<f64>,
}

fn score(model: Model) -> f64 {
    model.weights.iter().sum()
}

fn main() {
    let rt = Runtime::local();
    let model = rt.put(Model { weights: vec![1.0] });
    rt.submit(score, &model);
}
