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
        output.result(&status, screen);
        Ok(())
    }
}

/// The verdict first, then what it rests on, then what to do.
fn screen(status: &types::Status) -> String {
    let devices: Vec<String> =
        status.devices.iter().map(|(standing, count)| format!("{count} {standing}")).collect();
    let active = status.devices.get("active").copied().unwrap_or_default();
    let soonest = status.metadata_expires_in_seconds.iter().min_by_key(|(_, left)| **left);
    let facts = fields([
        ("facade", status.version.clone()),
        ("connections", status.connections.to_string()),
        ("artifacts", status.artifacts.to_string()),
        ("devices", if devices.is_empty() { "none".to_owned() } else { devices.join(", ") }),
        ("up to date", format!("{} of {active} active devices", status.devices_up_to_date)),
        ("cache", size(status.cache_bytes)),
        (
            "metadata",
            soonest.map(|(role, left)| format!("{role} ends first, {}", in_days(*left))).unwrap_or_default(),
        ),
    ]);
    match (status.warnings.len(), next_step(status)) {
        (0, None) => format!("all is well\n\n{facts}"),
        (0, Some(next)) => format!("all is well\n\n{facts}\n\nnext: {next}"),
        (1, _) => format!("one thing needs attention:\n  {}\n\n{facts}", status.warnings.join("\n  ")),
        (count, _) => {
            format!("{count} things need attention:\n  {}\n\n{facts}", status.warnings.join("\n  "))
        }
    }
}

/// What somebody who has just begun does next.
fn next_step(status: &types::Status) -> Option<&'static str> {
    if status.connections == 0 {
        Some("connect a registry (facade connection add HOST)")
    } else if status.artifacts == 0 {
        Some("import an image (facade tags REPOSITORY, then facade import REPOSITORY TAG)")
    } else if status.devices.is_empty() {
        Some("enroll a device (facade device token)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> types::Status {
        types::Status {
            version: "1.0".to_owned(),
            connections: 1,
            artifacts: 2,
            devices: [("active".to_owned(), 3), ("revoked".to_owned(), 1)].into(),
            devices_up_to_date: 2,
            metadata_expires: std::collections::BTreeMap::new(),
            metadata_expires_in_seconds: [("a/root".to_owned(), 900_000), ("b/root".to_owned(), 200_000)]
                .into(),
            cache_bytes: 1024,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn says_first_whether_all_is_well() {
        let text = screen(&status());
        assert!(text.starts_with("all is well\n"), "{text}");
        assert!(text.contains("2 of 3 active devices") && text.contains("b/root ends first"), "{text}");
        let warned = types::Status { warnings: vec!["ghcr.io: denied".to_owned()], ..status() };
        assert!(screen(&warned).starts_with("one thing needs attention:\n  ghcr.io: denied\n"));
    }

    #[test]
    fn tells_a_beginner_what_comes_next() {
        let empty = types::Status { connections: 0, ..status() };
        assert!(screen(&empty).ends_with("next: connect a registry (facade connection add HOST)"));
        assert!(!screen(&status()).contains("next:"));
    }
}
