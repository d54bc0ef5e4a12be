//! The measurements of `tests/bench`, a file for each.

#![expect(clippy::expect_used, reason = "a measurement stops where its scene cannot be set")]
#![expect(clippy::cast_precision_loss, reason = "figures are printed with a digit or two")]

#[path = "bench/agent.rs"]
mod agent;
#[path = "bench/bare.rs"]
mod bare;
#[path = "bench/load.rs"]
mod load;
#[path = "bench/measure.rs"]
mod measure;
#[path = "bench/memory.rs"]
mod memory;
#[path = "bench/metadata.rs"]
mod metadata;
#[path = "bench/operators.rs"]
mod operators;
#[path = "bench/pull.rs"]
mod pull;
#[path = "bench/rounds.rs"]
mod rounds;
#[path = "bench/servers.rs"]
mod servers;
#[path = "bench/wire.rs"]
mod wire;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("agent", [])) => agent::run(),
        // Started by `pull`, as a server of its own.
        Some(("bare", [port, data, bytes])) => bare::run(port, data.as_ref(), bytes),
        Some(("memory", [])) => memory::run(),
        Some(("metadata", [])) => metadata::run(),
        Some(("operators", rest)) => operators::run(rest.first()),
        Some(("pull", rows)) => pull::run(rows),
        _ => {
            drop(writeln!(
                std::io::stderr(),
                "usage: bench agent | memory | metadata | operators [DEVICES] | pull [ROWS…]"
            ));
            ExitCode::from(2)
        }
    }
}

/// Prints one line.
fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}
