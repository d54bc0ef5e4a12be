//! `facade pulls`

use clap::Args;
use jiff::Timestamp;

use super::CliError;
use super::audit::time;
use super::client::{Client, filtered};
use super::output::{Output, size, table};
use crate::api::types::Pull;
use crate::catalog::pulls::Outcome;

/// Say which device pulled what, from where, and how it ended.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  facade pulls --device board-1 --limit 20\n  facade pulls --outcome refused --since 1d\n  facade pulls --digest sha256:3f2a --output json\n\nOutcomes: served, left (the device went away first), cut (it broke off), failed (there was nothing to send),\nrefused (the device may not have it)"
)]
pub(super) struct Pulls {
    /// Only this device's
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Only those of repositories that have this text in their name
    #[arg(long, value_name = "TEXT")]
    repository: Option<String>,
    /// Only those of digests that begin like this
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
    /// Only those that ended like this
    #[arg(long)]
    outcome: Option<Outcome>,
    /// Only those since: a time such as 2026-11-20T12:00:00Z, or how long ago, such as 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only those before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Most pulls, the newest first
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

impl Pulls {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
        let fields = [
            ("device", self.device),
            ("repository", self.repository),
            ("digest", self.digest),
            ("outcome", self.outcome.map(|outcome| outcome.as_str().to_owned())),
            ("since", time(self.since)),
            ("until", time(self.until)),
        ];
        let pulls: Vec<Pull> = client.first(&filtered("/api/v1/pulls", fields), self.limit).await?;
        output.result(&pulls, |pulls| {
            if pulls.is_empty() {
                return "no pull found".to_owned();
            }
            let columns = ["at", "device", "repository", "digest", "source", "size", "ms", "outcome"];
            table(columns, pulls.iter().map(row))
        });
        Ok(())
    }
}

fn row(pull: &Pull) -> [String; 8] {
    [
        pull.at.clone(),
        pull.device.clone(),
        pull.repository.clone(),
        pull.digest.chars().take(19).collect(),
        pull.source.clone().unwrap_or_default(),
        size(pull.size_bytes),
        pull.duration_ms.to_string(),
        pull.outcome.clone(),
    ]
}
