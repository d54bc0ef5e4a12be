//! `facade audit …`

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::CliError;
use super::client::{Client, filtered};
use super::output::{Output, table};
use crate::api::types::{AuditRecord, AuditVerification};

/// Verbs on the audit log.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List what was changed, by whom and from where
    #[command(
        after_help = "Examples:\n  facade audit list --since 1d --who ci\n  facade audit list --text devices/board-1 --limit 20"
    )]
    List {
        #[command(flatten)]
        filter: Filter,
        /// Show only the newest N
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Check that no record was edited, removed or moved
    Verify,
    /// Print every record as a line of JSON, hashes included
    Export {
        #[command(flatten)]
        filter: Filter,
    },
}

/// Which records.
#[derive(Args, Debug)]
pub(super) struct Filter {
    /// Only what the token of this name did
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Only what has this text in its action or subject
    #[arg(long)]
    text: Option<String>,
    /// Only what happened since: a time such as 2026-11-20T12:00:00Z, or how long ago, such as 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only what happened before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

impl Filter {
    fn path(&self, order: &str) -> String {
        let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
        filtered(
            "/api/v1/audit",
            [
                ("order", Some(order.to_owned())),
                ("who", self.who.clone()),
                ("text", self.text.clone()),
                ("since", time(self.since)),
                ("until", time(self.until)),
            ],
        )
    }
}

/// A time, or how long ago it was.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = crate::config::duration(text).map_err(|_| {
        format!("{text:?} is neither a time (2026-11-20T12:00:00Z) nor how long ago (90s, 15m, 24h, 30d)")
    })?;
    let now = crate::clock::Clock::system().now();
    now.checked_sub(ago).map_err(|error| error.to_string())
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::List { filter, limit } => {
                let records = match limit {
                    None => client.all(&filter.path("oldest")).await?,
                    Some(limit) => {
                        let mut newest = client.first(&filter.path("newest"), limit).await?;
                        newest.reverse();
                        newest
                    }
                };
                output.result(&records, |records: &Vec<AuditRecord>| list(records));
            }
            Self::Export { filter } => {
                let records: Vec<AuditRecord> = client.all(&filter.path("oldest")).await?;
                for record in records {
                    let line = serde_json::to_string(&record);
                    super::output::line(&line.map_err(|error| CliError::from_error(&error))?);
                }
            }
            Self::Verify => {
                let found: AuditVerification = client.get("/api/v1/audit/verification").await?;
                output.result(&found, verdict);
                if !found.whole {
                    let place = found.sequence;
                    return Err(CliError::Tampered(format!("the audit log is broken at record {place}")));
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
            if record.result == 0 { "unknown".to_owned() } else { record.result.to_string() },
        ]
    });
    table(["#", "at", "who", "from", "action", "subject", "result"], rows)
}

fn verdict(found: &AuditVerification) -> String {
    match (&found.head, &found.reason) {
        (Some(head), _) => format!("whole: {} records, the newest has the hash {head}", found.sequence),
        (None, reason) => {
            format!("broken at record {}: {}", found.sequence, reason.as_deref().unwrap_or_default())
        }
    }
}
