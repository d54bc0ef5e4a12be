//! The operator's command line: every verb but `init` and `serve` is a thin client of the API.

mod artifact;
mod assign;
mod audit;
mod ca;
mod cache;
mod client;
mod connection;
mod device;
mod docker_config;
mod events;
mod import;
mod keys;
mod operator;
mod output;
mod policy;
mod profile;
mod provision;
mod pulls;
mod rekey;
mod rollout;
mod server;
mod status;
mod tags;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use thiserror::Error;

use crate::api::problem::{Problem, chain};
pub use output::Format;
use output::Output;
use profile::Target;

/// Brings container images from the registries you use to a fleet of edge devices.
#[derive(Parser, Debug)]
#[command(name = "facade", version, arg_required_else_help = true, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  facade init --data-dir /var/lib/facade --hostname facade.example
  facade serve --data-dir /var/lib/facade
  facade connection add ghcr.io --username octo --password-stdin < token
  facade tags ghcr.io/octo/app
  facade import ghcr.io/octo/app v1.4.2
  facade device token --group kitchen
  facade assign ghcr.io/octo/app@sha256:3f2a… --group kitchen
  facade rollout create app-1.4 3f2a --to group=kitchen --waves 1,10%,100% --start

Exit codes: 0 success, 1 failed, 2 wrong use, 3 some of a batch failed, 4 server not reached, 5 not allowed, 6 verification failed";

#[derive(Args, Debug)]
struct Global {
    /// Address of the operator door [default: port 8080 of this machine]
    #[arg(long, global = true, env = "FACADE_SERVER", value_name = "URL")]
    server: Option<String>,
    /// Server, token and authorities by name, from ~/.config/drayage/config.toml
    #[arg(long, global = true, env = "FACADE_PROFILE", value_name = "NAME")]
    profile: Option<String>,
    /// File with the operator's token
    #[arg(long, global = true, env = "FACADE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate authorities that the server's certificate may come from, PEM (besides the system's)
    #[arg(long, global = true, env = "FACADE_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How to print results
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Print results and errors only
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Make the data directory: authorities, keys, first admin token
    Init(server::Init),
    /// Run the server
    Serve(server::Serve),
    /// Change the certificate authority, on the facade's own machine
    #[command(subcommand)]
    Ca(ca::Verb),
    /// Connect registries
    #[command(subcommand)]
    Connection(connection::Verb),
    /// List the tags of a repository, newest likely first
    Tags(tags::Tags),
    /// Import tags as signed artifacts, pinned to their digests
    Import(import::Import),
    /// Look at and revoke signed artifacts
    #[command(subcommand)]
    Artifact(artifact::Verb),
    /// Say what a device or group should have
    Assign(assign::Assign),
    /// Take an assignment back
    Unassign(assign::Unassign),
    /// List what is assigned
    Assignments(assign::List),
    /// Send artifacts to many devices, wave by wave
    #[command(subcommand)]
    Rollout(rollout::Verb),
    /// Enroll and look after devices
    #[command(subcommand)]
    Device(device::Verb),
    /// Seal every secret anew under another key, while the server serves
    Rekey(rekey::Rekey),
    /// Look after the keys that sign metadata
    #[command(subcommand)]
    Keys(keys::Verb),
    /// Say who may use the facade
    #[command(subcommand)]
    Operator(operator::Verb),
    /// Look at and check the log of what was changed
    #[command(subcommand)]
    Audit(audit::Verb),
    /// Say which device pulled what, from where, and how it ended
    Pulls(pulls::Pulls),
    /// Say what happened lately, or follow what happens
    Events(events::Events),
    /// Say on one screen whether all is well
    Status(status::Status),
    /// Look after the cache of pulled content
    #[command(subcommand)]
    Cache(cache::Verb),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Why a verb did not do its work, and the exit code that says so (SPEC, section 8).
#[derive(Debug, Error)]
pub enum CliError {
    /// The work failed.
    #[error("{0}")]
    Failed(String),
    /// The arguments do not fit together.
    #[error("{0}")]
    Usage(String),
    /// Some of a batch failed; what did is already printed.
    #[error("{failed} of {total} failed")]
    Partly {
        /// How many failed.
        failed: usize,
        /// How many there were.
        total: usize,
    },
    /// The server could not be reached.
    #[error("cannot reach the server at {server}: {cause}")]
    Unreachable {
        /// The server.
        server: String,
        /// Why.
        cause: String,
    },
    /// What was to be signed is not what it should be.
    #[error("not signed: {0}")]
    Verification(String),
    /// Content is not what it was.
    #[error("{0}")]
    Damaged(String),
    /// What is stored is not what was written.
    #[error("{0}")]
    Tampered(String),
    /// The server refuses this caller.
    #[error("{0}")]
    NotAllowed(String),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Partly { .. } => 3,
            Self::Unreachable { .. } => 4,
            Self::NotAllowed(_) => 5,
            Self::Verification(_) | Self::Damaged(_) | Self::Tampered(_) => 6,
        }
    }

    fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Failed(chain(error))
    }

    fn from_problem(problem: Problem) -> Self {
        let damaged = problem.is_wrong_content();
        let Problem { status, detail, field, .. } = problem;
        let detail = match field {
            Some(field) => format!("{field}: {detail}"),
            None => detail,
        };
        match status {
            _ if damaged => Self::Damaged(detail),
            401 | 403 => Self::NotAllowed(detail),
            422 => Self::Usage(detail),
            _ => Self::Failed(detail),
        }
    }
}

impl Cli {
    /// The definition that completions and manual pages come from.
    pub fn definition() -> clap::Command {
        Self::command()
    }

    /// Does what was asked, and gives the exit code.
    pub fn run(self) -> ExitCode {
        let mut output = Output::new(self.global.output, self.global.quiet);
        let result = match self.verb {
            Verb::Init(verb) => verb.run(&mut output),
            Verb::Ca(verb) => verb.run(&mut output),
            Verb::Serve(verb) => verb.run(),
            Verb::Completions { shell } => {
                output::completions(shell, &mut Self::definition());
                Ok(())
            }
            Verb::Keys(verb) if verb.is_local() => verb.run_local(&mut output),
            verb @ (Verb::Connection(_)
            | Verb::Tags(_)
            | Verb::Import(_)
            | Verb::Artifact(_)
            | Verb::Assign(_)
            | Verb::Unassign(_)
            | Verb::Assignments(_)
            | Verb::Rollout(_)
            | Verb::Device(_)
            | Verb::Rekey(_)
            | Verb::Keys(_)
            | Verb::Operator(_)
            | Verb::Audit(_)
            | Verb::Pulls(_)
            | Verb::Events(_)
            | Verb::Status(_)
            | Verb::Cache(_)) => talk(&self.global, verb, &mut output),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output.error(&error.to_string());
                ExitCode::from(error.exit_code())
            }
        }
    }
}

fn talk(global: &Global, verb: Verb, output: &mut Output) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::from_error(&error))?;
    let given = Target {
        server: global.server.clone(),
        token_file: global.token_file.clone(),
        ca_file: global.ca_file.clone(),
    };
    let target = Target::resolve(given, global.profile.as_deref(), &crate::config::environment())?;
    let client = client::Client::new(&target)?;
    runtime.block_on(async {
        match verb {
            Verb::Connection(verb) => verb.run(&client, output).await,
            Verb::Tags(verb) => verb.run(&client, output).await,
            Verb::Import(verb) => verb.run(&client, output).await,
            Verb::Artifact(verb) => verb.run(&client, output).await,
            Verb::Assign(verb) => verb.run(&client, output).await,
            Verb::Unassign(verb) => verb.run(&client, output).await,
            Verb::Assignments(verb) => verb.run(&client, output).await,
            Verb::Rollout(verb) => verb.run(&client, output).await,
            Verb::Device(verb) => verb.run(&client, output).await,
            Verb::Rekey(verb) => verb.run(&client, output).await,
            Verb::Keys(verb) => verb.run(&client, output).await,
            Verb::Operator(verb) => verb.run(&client, output).await,
            Verb::Audit(verb) => verb.run(&client, output).await,
            Verb::Pulls(verb) => verb.run(&client, output).await,
            Verb::Events(verb) => verb.run(&client, output).await,
            Verb::Status(verb) => verb.run(&client, output).await,
            Verb::Cache(verb) => verb.run(&client, output).await,
            Verb::Init(_) | Verb::Serve(_) | Verb::Ca(_) | Verb::Completions { .. } => {
                Err(CliError::Usage("this verb needs no server".to_owned()))
            }
        }
    })
}
