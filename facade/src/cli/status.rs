//! `facade status`

use clap::Args;

use super::CliError;
use super::client::Client;
use super::keys::in_days;
use super::output::{Output, fields, size};
use crate::api::types;

/// Say on one screen whether all is well.
#[derive(Args, Debug)]
pub(super) struct Status {}

impl Status {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let status: types::Status = client.get("/api/v1/status").await?;
        output.result(&status, |status| {
            let devices: Vec<String> = status
                .devices
                .iter()
                .map(|(standing, count)| format!("{count} {standing}"))
                .collect();
            let expires: Vec<String> = status
                .metadata_expires_in_seconds
                .iter()
                .map(|(role, left)| format!("{role} {}", in_days(*left)))
                .collect();
            let head = fields([
                ("facade", status.version.clone()),
                ("connections", status.connections.to_string()),
                ("artifacts", status.artifacts.to_string()),
                ("devices", devices.join(", ")),
                ("up to date", status.devices_up_to_date.to_string()),
                ("cache", size(status.cache_bytes)),
                ("metadata ends", expires.join(", ")),
            ]);
            let verdict = if status.warnings.is_empty() {
                "all is well".to_owned()
            } else {
                status.warnings.join("\n")
            };
            format!("{head}\n\n{verdict}")
        });
        Ok(())
    }
}
