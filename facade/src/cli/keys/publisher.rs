//! `facade keys delegate|delegations|revoke`: who else may sign, and for what.

use std::path::PathBuf;

use clap::Args;

use super::{read_json, tell};
use crate::api::types::{Delegation, DelegationRequest};
use crate::cli::CliError;
use crate::cli::client::{Client, encode};
use crate::cli::output::{Output, table};

/// Let a publisher sign for some repositories.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  facade keys delegate ci --repository ghcr.io/acme/app
      The server makes the key and signs: an import of ghcr.io/acme/app goes live by itself. For CI to import it,
      make a token of the same name: facade operator token create ci --role pusher
  facade keys delegate ci --repository ghcr.io/acme/app --key ci.pub
      CI holds the key (facade keys generate; facade keys public > ci.pub). After an import it signs:
      facade keys sign publisher-ci --key ci.key --passphrase-file FILE --yes")]
pub(in crate::cli) struct Delegate {
    /// The publisher's name
    name: String,
    /// A repository that it may sign for; repeat it for more
    #[arg(long = "repository", value_name = "REPOSITORY", required = true)]
    repositories: Vec<String>,
    /// File with its public key (facade keys public), or `generated`: the server makes the key and keeps it
    #[arg(long, value_name = "FILE", default_value = "generated")]
    key: PathBuf,
}

/// Take a publisher's delegation back.
#[derive(Args, Debug)]
pub(in crate::cli) struct Revoke {
    /// The publisher's name
    name: String,
    /// Sign what it has signed with the targets keys instead of revoking it
    #[arg(long)]
    keep_artifacts: bool,
}

impl Delegate {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let generated = self.key.as_os_str() == "generated";
        let key = if generated { None } else { Some(read_json(&self.key)?) };
        let request = DelegationRequest { name: self.name, repositories: self.repositories, key };
        tell(output, &client.post("/api/v1/delegations", &request).await?);
        Ok(())
    }
}

impl Revoke {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let query = if self.keep_artifacts { "?keep_artifacts=true" } else { "" };
        let path = format!("/api/v1/delegations/{}{query}", encode(&self.name));
        tell(output, &client.delete(&path).await?);
        Ok(())
    }
}

pub(super) async fn delegations(client: &Client, output: &mut Output) -> Result<(), CliError> {
    let delegations: Vec<Delegation> = client.get("/api/v1/delegations").await?;
    output.result(&delegations, |delegations| {
        if delegations.is_empty() {
            return "nobody but the holders of the targets keys signs (facade keys delegate)".to_owned();
        }
        let row = |delegation: &Delegation| {
            [
                delegation.name.clone(),
                delegation.repositories.join(" "),
                delegation.key.clone(),
                delegation.place.clone(),
                delegation.expires_at.clone().unwrap_or_else(|| "nothing signed yet".to_owned()),
            ]
        };
        table(["publisher", "repositories", "key", "where", "metadata ends"], delegations.iter().map(row))
    });
    Ok(())
}
