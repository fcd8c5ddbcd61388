//! Runs a program on a cluster of this machine's own: a head and nodes that live as long as the program.
//!
//! ```sh
//! cargo build --release --features cluster --examples
//! target/release/examples/on_cluster --nodes 3 target/release/examples/word_count
//! ```

use outray::LocalCluster;
use std::process::{Command, ExitCode};

fn run() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let usage = "usage: on_cluster [--nodes N] [--cpus N] PROGRAM [ARGUMENTS]";
    let (mut nodes, mut cpus) = (2, 1.0);
    let mut arguments = std::env::args().skip(1).peekable();
    while let Some(option) = arguments.next_if(|argument| argument.starts_with("--")) {
        let value = arguments.next().ok_or(usage)?;
        match option.as_str() {
            "--nodes" => nodes = value.parse()?,
            "--cpus" => cpus = value.parse()?,
            _ => return Err(usage.into()),
        }
    }
    let program = arguments.next().ok_or(usage)?;
    let cluster = LocalCluster::builder().nodes(nodes).cpus(cpus).start()?;
    let status = Command::new(&program)
        .args(arguments)
        .env("OUTRAY_ADDRESS", cluster.address())
        .env("OUTRAY_KEY_FILE", cluster.key_file())
        .status()
        .map_err(|error| format!("{program}: {error}"))?;
    Ok(status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)))
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("on_cluster: {error}");
            ExitCode::from(2)
        }
    }
}
