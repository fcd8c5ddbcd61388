//! `get` of a value that is not `Clone`.

use outray::Runtime;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Model {
    weights: Vec<f64>,
}

fn main() {
    let rt = Runtime::local();
    let model = rt.put(Model { weights: vec![1.0] });
    println!("{}", model.get().unwrap().weights.len());
}
