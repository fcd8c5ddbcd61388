//! A task that returns a type without serde's derives.

use outray::Runtime;

struct Model {
    weights: Vec<f64>,
}

fn train(epochs: u32) -> Model {
    Model { weights: vec![0.0; epochs as usize] }
}

fn main() {
    let rt = Runtime::local();
    let model = rt.submit(train, 3);
    println!("{}", model.get_shared().unwrap().weights.len());
}
