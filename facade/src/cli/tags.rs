//! `facade tags`

use clap::Args;

use super::CliError;
use super::client::{Client, encode};
use super::output::Output;
use crate::api::types;

/// List the tags of a repository.
#[derive(Args, Debug)]
pub(super) struct Tags {
    /// Any docker reference without tag, for example nginx or ghcr.io/owner/app
    repository: String,
    /// Most tags to list
    #[arg(long, default_value_t = 1000)]
    limit: u32,
    /// List signatures, attestations and digests kept as tags too
    #[arg(long)]
    all: bool,
}

impl Tags {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let path = format!("/api/v1/tags?repository={}&limit={}", encode(&self.repository), self.limit);
        let tags: types::Tags = client.get(&path).await?;
        output.result(&tags, |tags| {
            let hidden = if self.all { tags.hidden.as_slice() } else { &[] };
            tags.tags.iter().chain(hidden).cloned().collect::<Vec<_>>().join("\n")
        });
        if let Some(clipped) = &tags.clipped {
            output.note(&format!("clipped: {clipped}; the list is not complete"));
        }
        if !tags.hidden.is_empty() && !self.all {
            output.note(&format!(
                "{} signatures, attestations and digests not shown (--all)",
                tags.hidden.len()
            ));
        }
        Ok(())
    }
}
