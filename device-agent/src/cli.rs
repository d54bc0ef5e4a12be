//! The command line: what can be asked, and how the answer is shown.
//!
//! Results go to standard output, everything else to standard error; a secret is never an argument's only way in. The exit
//! code says what happened (SPEC 8), and a failed verification is never reported as anything milder.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::clock::Clock;
use crate::config::{Config, Flags, LogFormat};
use crate::driver::{Agent, AgentError, aside};
use crate::journal::Journal;

mod check;
mod enroll;
mod exit;
mod hosts_toml;
mod output;
mod status;
mod verify;

pub use exit::{Exit, Failure};
use output::Output;

/// Brings signed images to this device.
#[derive(Debug, Parser)]
#[command(name = "device-agent", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Settings (each also in agent.toml, and as DEVICE_AGENT_… in the environment)")]
struct Global {
    /// Where identity, metadata and state are kept [default: /var/lib/device-agent]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,
    /// The settings file [default: /etc/device-agent/agent.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where images are handed to: containerd, or oci-layout:DIR [default: containerd]
    #[arg(long, global = true, value_name = "SINK")]
    sink: Option<String>,
    /// The socket of containerd [default: /run/containerd/containerd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    containerd_address: Option<String>,
    /// The containerd namespace [default: drayage]
    #[arg(long, global = true, value_name = "NAME")]
    namespace: Option<String>,
    /// The platform to choose images for, when it is not this machine's
    #[arg(long, global = true, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// How much is logged: error, warn, info, debug, trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    /// How results are shown
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// How results are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Give this device its identity
    Enroll(enroll::Options),
    /// Run as a daemon: wait for what the facade assigns, verify it, bring it in; SIGHUP reads the settings again
    Run,
    /// Do one round and exit: check, verify, bring in, hand over, report
    Sync,
    /// Say what the device has, what it is doing, and why it is not updating
    Status,
    /// Read back every byte this agent is responsible for; exits with 6 if one is wrong
    Verify,
    /// Examine the device step by step: clock, identity, network, facade, metadata, containerd, disk
    Check,
    /// Print the hosts.toml that lets containerd, k3s or nerdctl pull through the facade
    HostsToml,
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Global {
    fn flags(&self) -> Flags {
        let settings = [
            ("state_dir", &self.state_dir),
            ("sink", &self.sink),
            ("containerd_address", &self.containerd_address),
            ("namespace", &self.namespace),
            ("platform", &self.platform),
            ("log", &self.log),
        ];
        Flags {
            file: self.config.clone(),
            settings: settings.into_iter().filter_map(|(key, text)| Some((key, text.clone()?))).collect(),
        }
    }
}

/// Runs what the command line asks for; returns the exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { Exit::Usage } else { Exit::Success };
            // A reader that went away is no failure of ours.
            let _ = error.print();
            return code.into();
        }
    };
    let output = Output::new(cli.global.output);
    match start(cli, &output) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output.failure(&failure);
            failure.exit.into()
        }
    }
}

fn start(cli: Cli, output: &Output) -> Result<Exit, Failure> {
    if let Verb::Completions { shell } = cli.verb {
        return Ok(output.completions(shell));
    }
    let config = Config::load(&cli.global.flags()).map_err(|error| Failure::usage(&error))?;
    log_to_standard_error(&config);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // File work of the image layout and the resolver; more threads only cost memory.
        .max_blocking_threads(4)
        .thread_stack_size(512 * 1024)
        .build()
        .map_err(|source| Failure::failed(&source))?;
    runtime.block_on(perform(cli.verb, &cli.global.flags(), config, output))
}

async fn perform(verb: Verb, flags: &Flags, config: Config, output: &Output) -> Result<Exit, Failure> {
    let clock = Clock::system();
    match verb {
        Verb::Enroll(options) => enroll::enroll(&options, &config, &clock, output).await,
        Verb::Run => Box::pin(run(flags, config, clock)).await,
        Verb::Sync => Box::pin(sync(config, clock, output)).await,
        Verb::Status => status::status(&config, &clock, output),
        Verb::Verify => verify::verify(config, clock, output).await,
        Verb::Check => check::check(config, clock, output).await,
        Verb::HostsToml => hosts_toml::print(&config, output),
        Verb::Completions { shell } => Ok(output.completions(shell)),
    }
}

async fn run(flags: &Flags, mut config: Config, clock: Clock) -> Result<Exit, Failure> {
    let shutdown = until_told_to_stop()?;
    // Before anybody is told that we are ready: a SIGHUP without a handler ends the process.
    let mut hangups = signal(SignalKind::hangup()).map_err(|source| Failure::failed(&source))?;
    while !shutdown.is_cancelled() {
        let agent = Agent::open(config.clone(), clock.clone()).map_err(Failure::from)?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), platform = %agent.platform(), "device-agent started");
        let until = shutdown.child_token();
        let running = async {
            let ran = agent.run(&until).await;
            until.cancel();
            ran
        };
        let (ran, read) = tokio::join!(running, read_again(flags, &mut hangups, &until));
        ran.map_err(Failure::from)?;
        config = read.unwrap_or(config);
    }
    aside::stopping();
    tracing::info!("device-agent stopped");
    Ok(Exit::Success)
}

/// Reads the settings again on SIGHUP, and ends the run of the agent for the sake of what they say. Settings with a
/// mistake change nothing: a device in the field goes on.
async fn read_again(flags: &Flags, hangups: &mut Signal, until: &CancellationToken) -> Option<Config> {
    loop {
        tokio::select! {
            _ = hangups.recv() => {}
            () = until.cancelled() => return None,
        }
        aside::reloading();
        match Config::load(flags) {
            Ok(config) => {
                tracing::info!("the settings are read again; log and log_format change with the next start");
                until.cancel();
                return Some(config);
            }
            Err(error) => {
                let error = crate::error_chain(&error);
                tracing::error!(error, "the settings cannot be used; going on with those from before");
                aside::ready();
            }
        }
    }
}

async fn sync(config: Config, clock: Clock, output: &Output) -> Result<Exit, Failure> {
    let shutdown = until_told_to_stop()?;
    let agent = Agent::open(config.clone(), clock.clone()).map_err(Failure::from)?;
    agent.sync(&shutdown).await.map_err(Failure::from)?;
    status::status(&config, &clock, output)
}

/// A token that SIGTERM and SIGINT cancel.
fn until_told_to_stop() -> Result<CancellationToken, Failure> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(|source| Failure::failed(&source))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|source| Failure::failed(&source))?;
    let told = shutdown.clone();
    let wait = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "waits for a signal for as long as the process lives; there is nobody to wait for it"
    )]
    drop(tokio::spawn(wait));
    Ok(shutdown)
}

fn log_to_standard_error(config: &Config) {
    // Entries with fields, where standard error is the journal and nobody asked for another shape.
    let journal = config.journal && config.log_format == LogFormat::Auto;
    if let Some(journal) = journal.then(Journal::open).and_then(Result::ok) {
        let level = LevelFilter::from_level(config.log);
        let _ = tracing_subscriber::registry().with(journal.with_filter(level)).try_init();
        return;
    }
    let terminal = std::io::stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Json => true,
        LogFormat::Plain => false,
        LogFormat::Auto => !terminal,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from_level(config.log))
        .with_writer(std::io::stderr)
        .with_target(false);
    // Only fails where a subscriber is set already, which is then the one to use.
    let _ = if json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_ansi(terminal && config.colour).try_init()
    };
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        Self::new(Exit::of(&error), &error)
    }
}
