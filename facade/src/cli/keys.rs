//! `facade keys …`
//!
//! What signs (`generate`, `sign`) works without a server, on a machine that never sees one if need be.

mod publisher;
mod sign;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use self::publisher::{Delegate, Revoke, delegations};
use self::sign::Sign;
use super::CliError;
use super::client::{Client, encode};
use super::output::{Output, table};
use crate::api::types::{
    CeremonyRequest, KeysOutcome, RecoverRequest, RoleKeys, RotateRequest, Signatures, SigningRequest,
};
use crate::keyfile;
use crate::secret::Secret;

/// Largest file that is read.
const MAX_FILE_BYTES: usize = 256 * 1024 * 1024;

/// Verbs on the keys that sign metadata.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// List the keys of every role, where they are, and when their metadata ends
    List,
    /// Replace the key of a role that is on the server
    Rotate {
        /// `images` or `director`
        repository: String,
        /// `root`, `targets`, `snapshot` or `timestamp`
        role: String,
    },
    /// Propose other offline keys, or how many of them must sign
    Ceremony(Ceremony),
    /// Make an offline key under a passphrase
    Generate {
        /// The key file to make
        file: PathBuf,
        /// File with the passphrase
        #[arg(long, env = "FACADE_KEY_PASSPHRASE_FILE", value_name = "FILE")]
        passphrase_file: PathBuf,
    },
    /// Print the public half of a key file, for a ceremony
    Public {
        /// The key file
        file: PathBuf,
    },
    /// Show what waits for signatures
    Pending {
        /// `images`, `director` or `publisher-NAME`
        #[arg(default_value = "images")]
        repository: String,
        /// Write it to a file, to be signed on a machine without network
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
    },
    /// Show what waits for signatures, judge it, and sign it with a key of your own
    Sign(Sign),
    /// Upload signatures that were made on a machine without network
    Upload {
        /// `images`, `director` or `publisher-NAME`
        repository: String,
        /// The file that `facade keys sign --out` has made
        file: PathBuf,
    },
    /// Drop what waits for signatures
    Drop {
        /// `images`, `director` or `publisher-NAME`
        repository: String,
    },
    /// Let a publisher sign for some repositories: CI, without the targets keys
    Delegate(Delegate),
    /// List the publishers: who may sign for which repositories
    Delegations,
    /// Take a publisher's delegation back
    Revoke(Revoke),
    /// Sign the images targets again, or ask the operators to
    Renew,
    /// After the database was restored from an older copy: sign above everything that devices have seen
    Recover {
        /// `images` or `director`
        repository: String,
        /// Yes, the database is an older copy
        #[arg(long, conflicts_with = "dismiss", required_unless_present = "dismiss")]
        confirm: bool,
        /// No, it is not: the devices that say they have seen more do not tell the truth
        #[arg(long)]
        dismiss: bool,
    },
}

/// Propose other offline keys.
#[derive(Args, Debug)]
pub(super) struct Ceremony {
    /// `images` or `director`
    repository: String,
    /// `root`, or `targets` of `images`
    role: String,
    /// Files with public keys that are added (facade keys public)
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,
    /// Ids of keys that go
    #[arg(long, value_name = "KEYID")]
    remove: Vec<String>,
    /// How many keys must sign
    #[arg(long, value_name = "M")]
    threshold: Option<u64>,
}

impl Verb {
    /// Whether the verb does its work without a server.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::Generate { .. } | Self::Public { .. } => true,
            Self::Sign(sign) => sign.is_local(),
            Self::List
            | Self::Rotate { .. }
            | Self::Ceremony(_)
            | Self::Pending { .. }
            | Self::Upload { .. }
            | Self::Drop { .. }
            | Self::Delegate(_)
            | Self::Delegations
            | Self::Revoke(_)
            | Self::Renew
            | Self::Recover { .. } => false,
        }
    }

    /// Does the work of a verb that needs no server.
    pub(super) fn run_local(self, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::Generate { file, passphrase_file } => {
                let key = keyfile::create(&file, &passphrase(&passphrase_file)?);
                let key = key.map_err(|error| failed(&file, &error))?;
                print_public(output, key.public());
            }
            Self::Public { file } => {
                let key = keyfile::public(&file).map_err(|error| failed(&file, &error))?;
                print_public(output, &key);
            }
            Self::Sign(sign) => sign.run_local(output)?,
            Self::List
            | Self::Rotate { .. }
            | Self::Ceremony(_)
            | Self::Pending { .. }
            | Self::Upload { .. }
            | Self::Drop { .. }
            | Self::Delegate(_)
            | Self::Delegations
            | Self::Revoke(_)
            | Self::Renew
            | Self::Recover { .. } => return Err(CliError::Usage("this verb needs a server".to_owned())),
        }
        Ok(())
    }

    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::List => {
                let roles: Vec<RoleKeys> = client.get("/api/v1/keys").await?;
                output.result(&roles, |roles| list(roles));
            }
            Self::Rotate { repository, role } => {
                let request = RotateRequest { repository, role };
                tell(output, &client.post("/api/v1/keys/rotate", &request).await?);
            }
            Self::Ceremony(ceremony) => {
                let request = ceremony.request()?;
                tell(output, &client.post("/api/v1/keys/ceremony", &request).await?);
            }
            Self::Pending { repository, export } => pending(client, output, &repository, export).await?,
            Self::Sign(sign) => sign.run(client, output).await?,
            Self::Upload { repository, file } => {
                let signatures: Signatures = read_json(&file)?;
                tell(output, &upload(client, &repository, &signatures).await?);
            }
            Self::Drop { repository } => {
                let request = fetch(client, &repository).await?;
                let path =
                    format!("/api/v1/signing-requests/{}/{}", encode(&repository), encode(&request.id));
                tell(output, &client.delete(&path).await?);
            }
            Self::Delegate(delegate) => delegate.run(client, output).await?,
            Self::Delegations => delegations(client, output).await?,
            Self::Revoke(revoke) => revoke.run(client, output).await?,
            Self::Renew => tell(output, &client.post("/api/v1/keys/renew", &()).await?),
            Self::Recover { repository, dismiss, .. } => {
                let request = RecoverRequest { repository, dismiss };
                tell(output, &client.post("/api/v1/keys/recover", &request).await?);
            }
            local @ (Self::Generate { .. } | Self::Public { .. }) => local.run_local(output)?,
        }
        Ok(())
    }
}

impl Ceremony {
    fn request(self) -> Result<CeremonyRequest, CliError> {
        let add: Result<Vec<_>, CliError> = self.add.iter().map(|file| read_json(file)).collect();
        Ok(CeremonyRequest {
            repository: self.repository,
            role: self.role,
            add: add?,
            remove: self.remove,
            threshold: self.threshold,
        })
    }
}

/// Reads a passphrase; what ends the line is not part of it.
pub(super) fn passphrase(file: &Path) -> Result<Secret, CliError> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        CliError::Usage(format!("cannot read the passphrase in {}: {error}", file.display()))
    })?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

async fn fetch(client: &Client, repository: &str) -> Result<SigningRequest, CliError> {
    client.get(&format!("/api/v1/signing-requests/{}", encode(repository))).await
}

async fn upload(client: &Client, repository: &str, signatures: &Signatures) -> Result<KeysOutcome, CliError> {
    client.post(&format!("/api/v1/signing-requests/{}/signatures", encode(repository)), signatures).await
}

async fn pending(
    client: &Client,
    output: &mut Output,
    repository: &str,
    export: Option<PathBuf>,
) -> Result<(), CliError> {
    let request = fetch(client, repository).await?;
    if let Some(file) = export {
        write_json(&file, &request)?;
        output.note(&format!("written to {}; sign it with facade keys sign --request", file.display()));
    }
    output.result(&request, |request| {
        let rows = request.files.iter().flat_map(|file| {
            let row = |signers: &crate::api::types::Signers| {
                [file.role.clone(), signers.keys.clone(), format!("{} of {}", signers.have, signers.need)]
            };
            file.signers.iter().map(row)
        });
        format!("{}\n\n{}", request.reasons.join("\n"), table(["file", "signed by", "have"], rows))
    });
    Ok(())
}

fn list(roles: &[RoleKeys]) -> String {
    let rows = roles.iter().flat_map(|role| {
        role.keys.iter().map(|key| {
            let days = role.expires_in_seconds.map_or_else(|| "with each device".to_owned(), in_days);
            let threshold = format!("{} of {}", role.threshold, role.keys.len());
            [role.repository.clone(), role.role.clone(), key.id.clone(), threshold, key.place.clone(), days]
        })
    });
    table(["repository", "role", "key", "must sign", "where", "metadata ends"], rows)
}

/// A time span as people count it.
pub(super) fn in_days(seconds: i64) -> String {
    match seconds {
        ..0 => "ENDED".to_owned(),
        0..172_800 => format!("in {} hours", seconds / 3600),
        _ => format!("in {} days", seconds / 86_400),
    }
}

fn tell(output: &mut Output, outcome: &KeysOutcome) {
    output.result(outcome, |outcome| match outcome.outcome.as_str() {
        "pending" => "waits for signatures (facade keys sign)".to_owned(),
        other => other.to_owned(),
    });
}

fn print_public(output: &mut Output, key: &pki::key::PublicKey) {
    output.result(key, |key| serde_json::to_string(key).unwrap_or_default());
}

fn read_json<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T, CliError> {
    let bytes = std::fs::read(file)
        .map_err(|error| CliError::Usage(format!("cannot read {}: {error}", file.display())))?;
    pki::json::parse_as(&bytes, MAX_FILE_BYTES).map_err(|error| failed(file, &error))
}

fn write_json(file: &Path, value: &impl Serialize) -> Result<(), CliError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(|error| CliError::from_error(&error))?;
    std::fs::write(file, bytes).map_err(|error| failed(file, &error))
}

fn failed(file: &Path, error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::Failed(format!("{}: {}", file.display(), crate::api::problem::chain(error)))
}
