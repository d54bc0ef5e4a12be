//! `facade rekey`

use clap::Args;

use super::CliError;
use super::client::Client;
use super::output::{Output, fields};
use crate::api::types::RekeyReport;

/// Seal every secret anew under another key, while the server serves.
///
/// With the key in the data directory the server makes a new one. A key that is kept elsewhere (`seal_key_file`) is yours to
/// make: put the new key on the first line of the file, leave the old one on the second, and run this.
#[derive(Args, Debug)]
pub(super) struct Rekey {}

impl Rekey {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let report: RekeyReport = client.post("/api/v1/rekey", &()).await?;
        output.result(&report, |report| {
            fields([
                ("key", report.key_id.clone()),
                ("key before", report.previous_key_id.clone()),
                ("connections sealed anew", report.connections.to_string()),
            ])
        });
        output.note(
            "the key before stays behind the new one in the key file, for dumps and backups from before; remove its line when they are gone",
        );
        Ok(())
    }
}
