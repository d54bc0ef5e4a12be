//! `facade import`

use clap::Args;

use super::CliError;
use super::client::Client;
use super::output::{Output, size, table};
use crate::api::types::{ImportReport, ImportRequest, ImportResult};

/// Import tags as signed artifacts.
#[derive(Args, Debug)]
pub(super) struct Import {
    /// Any docker reference without tag, for example nginx or ghcr.io/owner/app
    repository: String,
    /// The tags
    #[arg(required = true)]
    tags: Vec<String>,
    /// Fetch every byte into the cache now, so that the registry may lose them later
    #[arg(long)]
    pin: bool,
}

impl Import {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let request = ImportRequest {
            repository: self.repository,
            tags: self.tags,
            pin: self.pin,
        };
        let report: ImportReport = client.post("/api/v1/imports", &request).await?;
        output.result(&report, |report| {
            table(
                ["tag", "outcome", "artifact", "size", "platforms"],
                report.results.iter().map(row),
            )
        });
        let total = report.results.len();
        match report
            .results
            .iter()
            .filter(|result| !result.outcome.is_success())
            .count()
        {
            0 => Ok(()),
            failed if failed == total => Err(CliError::Failed("no tag was imported".to_owned())),
            failed => Err(CliError::Partly { failed, total }),
        }
    }
}

fn row(result: &ImportResult) -> [String; 5] {
    let outcome = serde_json::to_value(result.outcome).ok();
    let outcome = outcome
        .as_ref()
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default();
    let what = result
        .artifact
        .clone()
        .or_else(|| result.reason.clone())
        .unwrap_or_default();
    [
        result.tag.clone(),
        outcome.to_owned(),
        what,
        result.size_bytes.map(size).unwrap_or_default(),
        result.platforms.join(" "),
    ]
}
