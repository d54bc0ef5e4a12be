//! The `facade` command: the server, and the operator's command line.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    facade::cli::Cli::parse().run()
}
