//! The mistakes users make do not compile, and the message says what to do instead.
//!
//! After a change of a message: `TRYBUILD=overwrite cargo test --test compile_fail`, and read the
//! new `.stderr` as a user would.

use std::{env, process::Command};

/// The compiler whose messages are in the `.stderr` files. Others say the same in other words.
const COMPILER: &str = "rustc 1.95.";

fn ask_compiler(what: &[&str]) -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(what).output().expect("rustc runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn mistakes_do_not_compile_and_are_explained() {
    let version = ask_compiler(&["--version"]);
    if !version.starts_with(COMPILER) {
        eprintln!("skipped: the expected messages are those of {COMPILER}*, and this is {version}");
        return;
    }
    let tests = trybuild::TestCases::new();
    // With a file that compiles trybuild builds instead of checking: captures are only found then.
    tests.pass("tests/ui/pass/*.rs");
    tests.compile_fail("tests/ui/*.rs");
    tests.compile_fail("tests/ui/captures/*.rs");
}
