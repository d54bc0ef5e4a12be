//! The measurements of `tests/bench`, a file for each.

#[path = "bench/load.rs"]
mod load;
#[path = "bench/measure.rs"]
mod measure;
#[path = "bench/memory.rs"]
mod memory;
#[path = "bench/metadata.rs"]
mod metadata;
#[path = "bench/pull.rs"]
mod pull;
#[path = "bench/servers.rs"]
mod servers;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("memory") => memory::run(),
        Some("metadata") => metadata::run(),
        Some("pull") => pull::run(),
        _ => {
            drop(writeln!(std::io::stderr(), "usage: bench memory | metadata | pull"));
            ExitCode::from(2)
        }
    }
}

/// Prints one line.
fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}
