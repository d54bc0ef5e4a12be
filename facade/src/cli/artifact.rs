//! `facade artifact …`

use clap::Subcommand;

use super::CliError;
use super::client::{Client, encode};
use super::output::{Output, fields, size, table};
use crate::api::types::{Artifact, Content};

/// Verbs on signed artifacts.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the signed artifacts
    List {
        /// Only those of this repository
        #[arg(long)]
        repository: Option<String>,
    },
    /// Show one artifact and what it consists of
    Show {
        /// `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
        artifact: String,
    },
    /// Fetch all of an artifact into the cache and keep it there, so that the registry may lose it
    Pin {
        /// `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
        artifact: String,
    },
    /// Let the cache drop an artifact again when it needs room
    Unpin {
        /// `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
        artifact: String,
    },
    /// Revoke an artifact: devices can no longer pull it, and drop it from what they may install
    Revoke {
        /// `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
        artifact: String,
    },
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::List { repository } => {
                let query = repository.map(|repository| format!("?repository={}", encode(&repository)));
                let path = format!("/api/v1/artifacts{}", query.unwrap_or_default());
                let artifacts: Vec<Artifact> = client.all(&path).await?;
                output.result(&artifacts, |artifacts| list(artifacts));
            }
            Self::Show { artifact } => {
                let artifact: Artifact = client
                    .get(&format!("/api/v1/artifacts/{}", encode(&artifact)))
                    .await?;
                output.result(&artifact, show);
            }
            Self::Pin { artifact } => {
                let path = format!("/api/v1/artifacts/{}/pin", encode(&artifact));
                let artifact: Artifact = client.post(&path, &()).await?;
                output.result(&artifact, |artifact| {
                    format!("pinned {} ({})", artifact.name, size(artifact.size_bytes))
                });
            }
            Self::Unpin { artifact } => {
                let path = format!("/api/v1/artifacts/{}/unpin", encode(&artifact));
                let artifact: Artifact = client.post(&path, &()).await?;
                output.result(&artifact, |artifact| format!("unpinned {}", artifact.name));
            }
            Self::Revoke { artifact } => {
                let path = format!("/api/v1/artifacts/{}/revoke", encode(&artifact));
                let artifact: Artifact = client.post(&path, &()).await?;
                output.result(&artifact, |artifact| format!("revoked {}", artifact.name));
            }
        }
        Ok(())
    }
}

fn list(artifacts: &[Artifact]) -> String {
    if artifacts.is_empty() {
        return "nothing is imported (facade import REPOSITORY TAG)".to_owned();
    }
    let rows = artifacts.iter().map(|artifact| {
        let state = match (&artifact.revoked_at, artifact.pinned) {
            (Some(_), _) => "revoked",
            (None, true) => "signed, pinned",
            (None, false) => "signed",
        };
        [
            artifact.name.clone(),
            artifact.tag.clone(),
            state.to_owned(),
            size(artifact.size_bytes),
            artifact.platforms.join(" "),
            artifact.imported_at.clone(),
        ]
    });
    table(
        ["artifact", "tag", "state", "size", "platforms", "imported"],
        rows,
    )
}

fn show(artifact: &Artifact) -> String {
    let head = fields([
        ("artifact", artifact.name.clone()),
        ("media type", artifact.media_type.clone()),
        ("platforms", artifact.platforms.join(" ")),
        ("size", size(artifact.size_bytes)),
        ("tag", artifact.tag.clone()),
        (
            "imported",
            format!("{} by {}", artifact.imported_at, artifact.imported_by),
        ),
        (
            "pinned",
            if artifact.pinned {
                "yes".to_owned()
            } else {
                String::new()
            },
        ),
        ("revoked", artifact.revoked_at.clone().unwrap_or_default()),
    ]);
    let rows = artifact.content.iter().map(
        |Content {
             digest,
             media_type,
             size_bytes,
         }| { [digest.clone(), size(*size_bytes), media_type.clone()] },
    );
    format!("{head}\n\n{}", table(["content", "size", "media type"], rows))
}
