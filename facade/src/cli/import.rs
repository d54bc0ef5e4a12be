//! `facade import`

use clap::Args;

use super::CliError;
use super::client::Client;
use super::output::{Output, size, table};
use crate::api::types::{ImportOutcome, ImportReport, ImportRequest, ImportResult};

/// Tags of one request.
const BATCH: usize = 8;

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
    /// The group they are for: warns of devices that cannot run them, and refuses what none can
    #[arg(long, value_name = "GROUP")]
    for_group: Option<String>,
    /// The device they are for
    #[arg(long, value_name = "ID")]
    for_device: Option<String>,
}

impl Import {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let mut report = ImportReport { results: Vec::new() };
        let outcome = self.import(client, output, &mut report).await;
        if report.results.is_empty() {
            return outcome;
        }
        // What was done is told even if the server went away before the end.
        output.result(&report, |report| {
            table(
                ["tag", "outcome", "artifact", "size", "platforms"],
                report.results.iter().map(row),
            )
        });
        for result in &report.results {
            tell(result, output);
        }
        outcome?;
        // Whatever else the batch brought: bytes that lie are never reported as anything milder.
        let lies = report
            .results
            .iter()
            .find(|result| result.outcome == ImportOutcome::Mismatch);
        if let Some(lie) = lies {
            let reason = lie.reason.as_deref().unwrap_or_default();
            return Err(CliError::Verification(format!("{}: {reason}", lie.tag)));
        }
        let total = report.results.len();
        let failed = report
            .results
            .iter()
            .filter(|result| !result.outcome.is_success());
        match failed.count() {
            0 => Ok(()),
            failed if failed == total => Err(CliError::Failed("no tag was imported".to_owned())),
            failed => Err(CliError::Partly { failed, total }),
        }
    }

    /// Asks for a few tags at a time, so that there is progress to show and no request takes for ever.
    async fn import(
        &self,
        client: &Client,
        output: &mut Output,
        report: &mut ImportReport,
    ) -> Result<(), CliError> {
        for tags in self.tags.chunks(BATCH) {
            output.progress(&format!("{} of {} tags", report.results.len(), self.tags.len()));
            let request = ImportRequest {
                repository: self.repository.clone(),
                tags: tags.to_vec(),
                pin: self.pin,
                for_group: self.for_group.clone(),
                for_device: self.for_device.clone(),
            };
            let answer: Result<ImportReport, CliError> = client.post("/api/v1/imports", &request).await;
            output.progress("");
            report.results.extend(answer?.results);
        }
        Ok(())
    }
}

/// What does not fit in the table.
fn tell(result: &ImportResult, output: &mut Output) {
    if let Some(old) = &result.moved_from {
        let new = result.artifact.as_deref().unwrap_or_default();
        output.note(&format!("{} moved: {old} -> {new}", result.tag));
    }
    if let Some(warning) = &result.warning {
        output.note(&format!("warning: {}: {warning}", result.tag));
    }
    if let (Some(reason), Some(_)) = (&result.reason, &result.artifact) {
        output.note(&format!("{}: {reason}", result.tag));
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
