//! A task that takes a type without serde's derives.

use outray::Runtime;

struct Config {
    epochs: u32,
}

fn train(config: Config) -> u32 {
    config.epochs
}

fn main() {
    let rt = Runtime::local();
    rt.submit(train, Config { epochs: 3 });
}
