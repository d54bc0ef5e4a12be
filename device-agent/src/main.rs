//! `device-agent`: see `device-agent --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    device_agent::cli::main()
}
