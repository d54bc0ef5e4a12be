//! `device-agent enroll`.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use pki::wire::EnrollmentToken;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Exit, Failure, Output};
use crate::clock::Clock;
use crate::config::Config;
use crate::driver::AgentError;
use crate::identity::enroll::{Replace, Surroundings, enroll as enroll_with};
use crate::state_file::StateDir;

/// What `enroll` takes.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The token, as `facade device token` printed it; `-` reads it from standard input
    #[arg(required_unless_present = "token_file")]
    token: Option<String>,
    /// A file that holds the token
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Replace the identity that the device has
    #[arg(long)]
    again: bool,
}

#[derive(Serialize)]
struct Enrolled {
    device: String,
    facade: String,
    certificate_ends: String,
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
}

const MAX_TOKEN_BYTES: u64 = 16 * 1024;

pub(super) async fn enroll(
    options: &Options,
    config: &Config,
    clock: &Clock,
    output: &Output,
) -> Result<Exit, Failure> {
    let token = read_token(options)?;
    let token: EnrollmentToken = token.trim().parse().map_err(|error| Failure::usage(&error))?;
    let state = StateDir::open(&config.state_dir).map_err(|error| Failure::failed(&error))?;
    let _lock = state.lock().map_err(|error| Failure::failed(&error))?;
    let (proxy, keys) = (config.proxy.as_ref(), &config.keys);
    let around = Surroundings { state: &state, clock, proxy, keys };
    let replace = if options.again { Replace::Existing } else { Replace::Never };
    let identity =
        enroll_with(around, &token, replace).await.map_err(|error| Failure::from(AgentError::from(error)))?;
    let enrolled = Enrolled {
        device: identity.device().to_string(),
        facade: identity.facade().url.to_string(),
        certificate_ends: identity.certificate().not_after().to_string(),
        certificate: state.path_of(crate::identity::CERTIFICATE_FILE),
        key: state.path_of(crate::identity::KEY_FILE),
        ca: state.path_of(crate::identity::ANCHORS_FILE),
    };
    let text = format!(
        "enrolled as {} with {}\ncertificate until {} in {}",
        enrolled.device,
        enrolled.facade,
        enrolled.certificate_ends,
        enrolled.certificate.display()
    );
    output.result(&enrolled, &text);
    Ok(Exit::Success)
}

fn read_token(options: &Options) -> Result<Zeroizing<String>, Failure> {
    let mut token = Zeroizing::new(String::new());
    let read = match (&options.token_file, options.token.as_deref()) {
        (Some(file), _) => {
            std::fs::File::open(file).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut token))
        }
        (None, Some("-")) => std::io::stdin().take(MAX_TOKEN_BYTES).read_to_string(&mut token),
        (None, given) => {
            token.push_str(given.unwrap_or_default());
            Ok(token.len())
        }
    };
    match read {
        Ok(_) => Ok(token),
        Err(source) => Err(Failure::usage(&source)),
    }
}
