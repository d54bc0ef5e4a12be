//! `facade device provision`: tokens for a batch of devices, made before the devices are.
//!
//! Each token names its device, so that a list that leaks admits nobody under another name, and each use is seen.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use pki::x509::DeviceId;
use serde::Serialize;

use super::CliError;
use super::client::Client;
use super::device::parse_ttl;
use super::output::Output;
use crate::api::types::{EnrollmentTokenRequest, NewEnrollmentToken};

/// Longest list of ids that is read.
const MAX_LIST_BYTES: u64 = 16 * 1024 * 1024;
const MAX_DEVICES: u32 = 100_000;

/// One token for each device of a batch.
#[derive(Args, Debug)]
pub(super) struct Provision {
    /// A file with one device id a line; - reads standard input
    #[arg(long, value_name = "FILE", required_unless_present = "count")]
    ids: Option<PathBuf>,
    /// How many devices, named PREFIX-0001 and so on
    #[arg(long, conflicts_with = "ids", requires = "prefix", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DEVICES)))]
    count: Option<u32>,
    /// What the names of the devices begin with
    #[arg(long, conflicts_with = "ids")]
    prefix: Option<String>,
    /// The number of the first device
    #[arg(long, default_value_t = 1, conflicts_with = "ids")]
    first: u32,
    /// The group that the devices are in
    #[arg(long)]
    group: Option<String>,
    /// How long the tokens are valid
    #[arg(long, default_value = "365d", value_parser = parse_ttl)]
    ttl: Duration,
    /// Let each device wait until an operator approves it (facade device approve)
    #[arg(long)]
    approve: bool,
}

/// One line of the list.
#[derive(Serialize)]
struct Row {
    device: DeviceId,
    token: String,
    token_id: String,
    expires_at: String,
}

impl Provision {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        // All names are judged before the first token exists.
        let devices = self.devices()?;
        let mut rows = Vec::with_capacity(devices.len());
        let mut failure = None;
        for device in devices {
            match self.token(client, &device).await {
                Ok(token) => rows.push(Row {
                    device,
                    token: token.token,
                    token_id: token.id,
                    expires_at: token.expires_at,
                }),
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        // What was made is shown even where the rest failed: nobody can see these tokens again.
        output.result(&rows, |rows| csv(rows));
        output.note(&format!("{} token(s) made; each is shown only now", rows.len()));
        failure.map_or(Ok(()), Err)
    }

    fn devices(&self) -> Result<Vec<DeviceId>, CliError> {
        let names: Vec<String> = match (&self.ids, self.count, &self.prefix) {
            (Some(file), _, _) => listed(&read(file)?),
            (None, Some(count), Some(prefix)) => numbered(prefix, self.first, count),
            (None, _, _) => Vec::new(),
        };
        if names.is_empty() {
            return Err(CliError::Usage("there is no device id in the list".to_owned()));
        }
        let mut devices = Vec::with_capacity(names.len());
        for name in &names {
            let device = name
                .parse()
                .map_err(|error| CliError::Usage(format!("{name:?}: {error}")))?;
            devices.push(device);
        }
        let distinct: std::collections::BTreeSet<&DeviceId> = devices.iter().collect();
        if distinct.len() != devices.len() {
            return Err(CliError::Usage("a device id occurs twice in the list".to_owned()));
        }
        Ok(devices)
    }

    async fn token(&self, client: &Client, device: &DeviceId) -> Result<NewEnrollmentToken, CliError> {
        let request = EnrollmentTokenRequest {
            device: Some(device.to_string()),
            group: self.group.clone(),
            ttl_seconds: self.ttl.as_secs(),
            uses: 1,
            approve: self.approve,
        };
        client.post("/api/v1/enrollment-tokens", &request).await
    }
}

fn read(file: &std::path::Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().take(MAX_LIST_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(MAX_LIST_BYTES).read_to_string(&mut text))
    };
    read.map_err(|error| CliError::Usage(format!("{}: {error}", file.display())))?;
    Ok(text)
}

/// The ids of a list: one a line, the first column of a CSV; empty lines and comments are skipped.
fn listed(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .map(|line| line.split(',').next().unwrap_or_default().trim());
    lines
        .filter(|id| !id.is_empty() && !id.starts_with('#') && *id != "device")
        .map(str::to_owned)
        .collect()
}

/// Numbers with leading zeros, so that a list sorts as it counts.
fn numbered(prefix: &str, first: u32, count: u32) -> Vec<String> {
    let last = first.saturating_add(count - 1);
    let width = last.to_string().len().max(4);
    (first..=last)
        .map(|number| format!("{prefix}-{number:0width$}"))
        .collect()
}

/// RFC 4180. No field can hold a comma, a quote or a line end: ids, base64url and RFC 3339 have none.
fn csv(rows: &[Row]) -> String {
    let heading = "device,token,token_id,expires_at".to_owned();
    let lines = rows
        .iter()
        .map(|row| [row.device.as_str(), &row.token, &row.token_id, &row.expires_at].join(","));
    std::iter::once(heading)
        .chain(lines)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ids_from_lines_or_the_first_column() {
        assert_eq!(
            listed("# factory 7\nboard-1\n\n board-2 ,blue\r\n"),
            ["board-1", "board-2"]
        );
    }

    #[test]
    fn numbers_sort_as_they_count() {
        assert_eq!(numbered("pump", 9, 2), ["pump-0009", "pump-0010"]);
        assert_eq!(numbered("pump", 99_999, 2), ["pump-099999", "pump-100000"]);
        assert_eq!(numbered("pump", u32::MAX, 3).len(), 1);
    }
}
