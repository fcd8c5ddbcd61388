//! The command `outray`: starts the parts of a cluster, and asks it.

use std::process::ExitCode;

fn main() -> ExitCode {
    outray::cluster::commands::main()
}
