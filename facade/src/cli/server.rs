//! `facade init` and `facade serve`

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::CliError;
use super::output::Output;
use crate::api::problem::chain;
use crate::clock::Clock;
use crate::log::Log;
use crate::{config, facade, init};

/// Make the data directory.
#[derive(Args, Debug)]
pub(super) struct Init {
    /// Where everything is kept
    #[arg(long, env = "FACADE_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Names and addresses under which devices reach the facade
    #[arg(long = "hostname", required = true, num_args = 1.., value_name = "NAME")]
    hostnames: Vec<String>,
    /// Trust domain of device identities
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Leave the root keys, and the key that signs which artifacts exist, in this directory instead of the data
    /// directory, under a passphrase
    #[arg(long, value_name = "DIR", requires = "passphrase_file")]
    offline_keys: Option<PathBuf>,
    /// File with the passphrase of offline keys
    #[arg(long, env = "FACADE_KEY_PASSPHRASE_FILE", value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Made {
    data_dir: PathBuf,
    created: Vec<String>,
    was_exposed: bool,
    admin_token_file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    offline_keys: Option<PathBuf>,
}

impl Init {
    pub(super) fn run(self, output: &mut Output) -> Result<(), CliError> {
        keep_to_ourselves();
        let offline = match (&self.offline_keys, &self.passphrase_file) {
            (Some(directory), Some(file)) => {
                let directory = directory.clone();
                let passphrase = super::keys::passphrase(file)?;
                Some(init::Offline { directory, passphrase })
            }
            _ => None,
        };
        let options = init::Options {
            data_dir: self.data_dir.clone(),
            hostnames: self.hostnames,
            trust_domain: self.trust_domain,
            offline,
            now: Clock::system().now(),
        };
        let outcome = init::init(&options).map_err(|error| {
            let mistaken = matches!(
                error,
                init::InitError::NoHostname | init::InitError::Hostname(_) | init::InitError::TrustDomain(_)
            );
            if mistaken { CliError::Usage(chain(&error)) } else { CliError::from_error(&error) }
        })?;
        let admin_token_file = self.data_dir.join("admin.token");
        let init::Outcome { created, made_private } = outcome;
        let (data_dir, offline_keys) = (self.data_dir, self.offline_keys);
        let made = Made { data_dir, created, was_exposed: made_private, admin_token_file, offline_keys };
        output.result(&made, |made| {
            if made.created.is_empty() {
                return format!("{} is already initialised; nothing was changed", made.data_dir.display());
            }
            let dir = made.data_dir.display();
            let token = made.admin_token_file.display();
            let tightened = if made.was_exposed { " (was open to others; its mode is 0700 now)" } else { "" };
            let created = made.created.join(", ");
            let offline = made.offline_keys.as_ref().map(|keys| {
                let keys = keys.display();
                format!(
                    "\n\nThe keys in {keys} are nowhere else: the roots', and the one that signs which artifacts exist. Keep a copy, take \
                     them off this machine,\nand sign with them where no server runs: facade keys sign images --key \
                     {keys}/images-targets.key --passphrase-file FILE"
                )
            });
            let offline = offline.unwrap_or_default();
            format!(
                "initialised {dir}{tightened}: {created}{offline}\n\nnext: facade serve --data-dir {dir}\nand:  export \
                 FACADE_TOKEN_FILE={token}"
            )
        });
        Ok(())
    }
}

/// Run the server.
#[derive(Args, Debug)]
#[command(after_help = settings_help())]
pub(super) struct Serve {
    /// Where everything is kept
    #[arg(long, env = "FACADE_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    /// Settings; by default DIR/facade.toml, then /etc/facade/facade.toml
    #[arg(long, env = "FACADE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Whatever libraries create in the data directory (the database does) is for its owner only, whoever started us.
fn keep_to_ourselves() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

fn settings_help() -> String {
    let mut text =
        "Settings (key in facade.toml; FACADE_ and the key in capitals in the environment):\n".to_owned();
    for setting in config::SETTINGS {
        let _ = writeln!(text, "  {:<30}{}", setting.key, setting.help);
    }
    text
}

impl Serve {
    pub(super) fn run(self) -> Result<(), CliError> {
        keep_to_ourselves();
        let flags = config::Flags { data_dir: self.data_dir, config: self.config };
        let config = config::load(&flags, &config::environment())
            .map_err(|error| CliError::Usage(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::from_error(&error))?;
        let _log = Log::start(&config, runtime.handle()).map_err(CliError::Usage)?;
        runtime
            .block_on(async { facade::serve(config, Clock::system(), facade::signal()).await })
            .map_err(|error| CliError::from_error(&error))
    }
}
