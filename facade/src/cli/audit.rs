//! `facade audit …`

use clap::Subcommand;

use super::CliError;
use super::client::Client;
use super::output::{Output, table};
use crate::api::types::{AuditRecord, AuditVerification};

/// Verbs on the audit log.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List what was changed, by whom and from where
    List,
    /// Check that no record was edited, removed or moved
    Verify,
    /// Print every record as a line of JSON, hashes included
    Export,
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::List => {
                let records: Vec<AuditRecord> = client.all("/api/v1/audit").await?;
                output.result(&records, |records| list(records));
            }
            Self::Export => {
                let records: Vec<AuditRecord> = client.all("/api/v1/audit").await?;
                for record in records {
                    let line = serde_json::to_string(&record);
                    output.line(&line.map_err(|error| CliError::from_error(&error))?);
                }
            }
            Self::Verify => {
                let found: AuditVerification = client.get("/api/v1/audit/verification").await?;
                output.result(&found, verdict);
                if !found.whole {
                    let place = found.sequence;
                    return Err(CliError::Tampered(format!(
                        "the audit log is broken at record {place}"
                    )));
                }
            }
        }
        Ok(())
    }
}

fn list(records: &[AuditRecord]) -> String {
    let rows = records.iter().map(|record| {
        [
            record.sequence.to_string(),
            record.at.clone(),
            record.who.clone(),
            record.from.clone(),
            record.action.clone(),
            record.subject.clone(),
            record.result.to_string(),
        ]
    });
    table(["#", "at", "who", "from", "action", "subject", "result"], rows)
}

fn verdict(found: &AuditVerification) -> String {
    match (&found.head, &found.reason) {
        (Some(head), _) => format!(
            "whole: {} records, the newest has the hash {head}",
            found.sequence
        ),
        (None, reason) => format!(
            "broken at record {}: {}",
            found.sequence,
            reason.as_deref().unwrap_or_default()
        ),
    }
}
