//! `facade ca …`: on the facade's own machine, with its data directory.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use super::CliError;
use super::output::Output;
use crate::clock::Clock;
use crate::init;

/// Verbs on the certificate authority.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Make a new CA, which the present one vouches for; devices move over by themselves
    Roll {
        /// Where everything is kept
        #[arg(long, env = "FACADE_DATA_DIR", value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Have devices no longer trust the former CAs
    Retire {
        /// Where everything is kept
        #[arg(long, env = "FACADE_DATA_DIR", value_name = "DIR")]
        data_dir: PathBuf,
    },
}

#[derive(Serialize)]
struct Done {
    root: Option<String>,
    former: Option<PathBuf>,
    retired: usize,
}

const RESTART: &str = "it is used once the facade is started again (systemctl restart facade)";

impl Verb {
    pub(super) fn run(self, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::Roll { data_dir } => {
                let rolled = init::roll(&data_dir, Clock::system().now())
                    .map_err(|error| CliError::from_error(&error))?;
                let done = Done {
                    root: Some(rolled.root.to_string()),
                    former: Some(rolled.former.clone()),
                    retired: 0,
                };
                output.result(&done, |_| {
                    let former = rolled.former.display();
                    format!(
                        "new CA with root {}; {RESTART}\nthe former one, with its keys, is in {former}: keep it offline, \
                         or destroy it\nwhen the fleet has moved over: facade ca retire",
                        rolled.root
                    )
                });
            }
            Self::Retire { data_dir } => {
                let retired = init::retire(&data_dir).map_err(|error| CliError::from_error(&error))?;
                let done = Done {
                    root: None,
                    former: None,
                    retired,
                };
                output.result(&done, |_| format!("{retired} former CA(s) retired; {RESTART}"));
            }
        }
        Ok(())
    }
}
