//! `facade cache …`

use std::time::Duration;

use clap::Subcommand;

use super::CliError;
use super::client::Client;
use super::output::{Output, fields, size, table};
use crate::api::types::{CacheChecked, CacheUsage, CachedBlob, PruneRequest, Pruned};

/// Verbs on the cache.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Say what the cache takes and has left
    Usage,
    /// List the blobs of the cache
    List,
    /// Remove what no device may have; what is assigned, pinned or on its way stays
    Prune {
        /// Only what nobody has asked for in this time, for example 30d
        #[arg(long, value_name = "TIME", value_parser = crate::config::duration)]
        unused_for: Option<Duration>,
    },
    /// Read every byte of the cache and remove what is damaged (exit code 6 if anything was)
    Verify,
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::Usage => {
                let usage: CacheUsage = client.get("/api/v1/cache").await?;
                output.result(&usage, |usage| {
                    fields([
                        ("blobs", usage.blobs.to_string()),
                        ("size", size(usage.size_bytes)),
                        ("arriving", size(usage.partial_bytes)),
                        ("free", size(usage.free_bytes)),
                    ])
                });
            }
            Self::List => {
                let blobs: Vec<CachedBlob> = client.all("/api/v1/cache/blobs").await?;
                output.result(&blobs, |blobs| list(blobs));
            }
            Self::Prune { unused_for } => {
                let asked = PruneRequest {
                    unused_seconds: unused_for.unwrap_or_default().as_secs(),
                };
                let pruned: Pruned = client.post("/api/v1/cache/prune", &asked).await?;
                output.result(&pruned, |pruned| {
                    format!("removed {} blobs ({})", pruned.blobs, size(pruned.freed_bytes))
                });
            }
            Self::Verify => return verify(client, output).await,
        }
        Ok(())
    }
}

async fn verify(client: &Client, output: &mut Output) -> Result<(), CliError> {
    let checked: CacheChecked = client.post("/api/v1/cache/verify", &()).await?;
    output.result(&checked, |checked| {
        let damaged = checked
            .damaged
            .iter()
            .map(|digest| format!("damaged and removed: {digest}\n"));
        format!("{}{} blobs are whole", damaged.collect::<String>(), checked.good)
    });
    match checked.damaged.len() {
        0 => Ok(()),
        damaged => Err(CliError::Damaged(format!(
            "{damaged} blobs were damaged; they are fetched again when a device asks"
        ))),
    }
}

fn list(blobs: &[CachedBlob]) -> String {
    let rows = blobs
        .iter()
        .map(|blob| [blob.digest.clone(), size(blob.size_bytes), blob.last_used.clone()]);
    table(["digest", "size", "last used"], rows)
}
