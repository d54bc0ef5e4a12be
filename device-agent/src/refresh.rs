//! From the facade's files to a release that both repositories signed.
//!
//! The judgement is [`pki::metadata`]'s; this only carries bytes, in the order it is told, and makes each file durable
//! before the next is asked for. The director comes first; its word counts for nothing that images does not list alike.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pki::metadata::lookup::TrustedTarget;
use pki::metadata::names::TargetPath;
use pki::metadata::refresh::{Fetched, Refresh, Step, Stored};
use pki::metadata::uptane::{self, UptaneError};
use pki::metadata::{Limits, MetadataError, TrustedSet};
use pki::wire::{DevicePolicy, MetadataVersions, Proof, RepositoryVersions};
use pki::x509::DeviceId;
use thiserror::Error;

use crate::clock::Clock;
use crate::facade_client::{ClientError, FacadeClient};
use crate::lifecycle::{Assigned, Release};
use crate::state_file::{StateDir, StateError};

/// One of the two repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repository {
    /// What this device should have.
    Director,
    /// What exists.
    Images,
}

impl Repository {
    /// Its name in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Director => "director",
            Self::Images => "images",
        }
    }

    fn directory(self) -> String {
        format!("metadata/{}", self.name())
    }
}

/// Why there is no release to believe in.
#[derive(Debug, Error)]
pub enum RefreshError {
    /// The device has no root metadata to begin with.
    #[error("{file} is missing; enroll the device again: device-agent enroll --again TOKEN")]
    NoRoot {
        /// The file.
        file: String,
    },
    /// The root metadata on the device, on which all else stands, is not what was stored.
    #[error("{file} is damaged; enroll the device again: device-agent enroll --again TOKEN")]
    Root {
        /// The file.
        file: String,
        /// What is wrong with it.
        #[source]
        source: MetadataError,
    },
    /// The facade did not give a file.
    #[error("{repository}/{file} could not be fetched", repository = repository.name())]
    Client {
        /// Of which repository.
        repository: Repository,
        /// Which file.
        file: String,
        /// Why not.
        #[source]
        source: ClientError,
    },
    /// A file is not believed.
    #[error("the metadata of {} is refused", repository.name())]
    Metadata {
        /// Of which repository.
        repository: Repository,
        /// The file that was last asked for, if one was.
        file: Option<String>,
        /// Why not.
        #[source]
        source: MetadataError,
    },
    /// The two repositories do not agree on this device.
    #[error("director and images do not agree")]
    Disagree(#[source] UptaneError),
    /// A file could not be kept.
    #[error("the metadata cannot be kept")]
    State(#[source] StateError),
}

impl RefreshError {
    /// Whether the facade said something that is not to be believed. A file that it does not have is only missing.
    pub fn is_verification(&self) -> bool {
        match self {
            Self::Metadata { source, .. } => {
                !matches!(source, MetadataError::Missing { .. } | MetadataError::Incomplete)
            }
            Self::Disagree(_) => true,
            Self::NoRoot { .. } | Self::Root { .. } | Self::Client { .. } | Self::State(_) => false,
        }
    }

    /// Whether the facade says that it does not have a file which it must have.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Metadata { source: MetadataError::Missing { .. }, .. })
    }

    /// Whether the facade was reached and a file did not come.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Client { source, .. } if source.is_silence())
    }

    /// Whether the facade does not know this device any more.
    pub fn is_disowned(&self) -> bool {
        matches!(self, Self::Client { source, .. } if source.is_disowned())
    }
}

/// What both repositories say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// What this device should have.
    pub release: Release,
    /// The metadata that says so.
    pub versions: MetadataVersions,
    /// When the first of that metadata ends being believed.
    pub expires: Timestamp,
    /// When and how fast to download and apply, as the director says it, or why that cannot be read.
    pub policy: Result<DevicePolicy, String>,
    /// The CA certificates that the facade is to be trusted by, as PEM, where images says.
    pub anchors: Option<String>,
}

/// The target of images that holds the CA certificates of the facade, its content in its `custom`.
const TRUST: &str = "trust/facade-ca.pem";

/// Refreshes both repositories.
pub struct Refresher<'a> {
    /// From here.
    pub client: &'a FacadeClient,
    /// Kept there.
    pub state: &'a StateDir,
    /// Judged at this time.
    pub clock: &'a Clock,
}

impl Refresher<'_> {
    /// Refreshes both repositories and returns what they agree on for `device`.
    pub async fn check(&self, device: &DeviceId) -> Result<Agreed, RefreshError> {
        let director = self.refresh(Repository::Director).await?;
        let assigned = uptane::assigned(&director, device.as_str()).map_err(RefreshError::Disagree)?;
        let mut images = self.refresh(Repository::Images).await?;
        let mut found = Vec::new();
        for path in assigned.paths() {
            found.extend(self.find(&mut images, path.clone()).await?);
        }
        let policy = policy(assigned.policy());
        let agreed = assigned.agree(&found).map_err(RefreshError::Disagree)?;
        let release = Release::new(agreed.into_iter().map(|target| Assigned {
            artifact: target.name().clone(),
            media_type: target.media_type().clone(),
            size_bytes: target.length(),
        }));
        Ok(Agreed {
            release,
            versions: MetadataVersions { images: versions(&images), director: versions(&director) },
            policy,
            expires: expires(&images).min(expires(&director)),
            anchors: self.anchors(&mut images).await,
        })
    }

    /// What images says of one target.
    async fn find(
        &self,
        images: &mut TrustedSet,
        path: TargetPath,
    ) -> Result<Option<TrustedTarget>, RefreshError> {
        let refused = |source, file: &Option<String>| RefreshError::Metadata {
            repository: Repository::Images,
            file: file.clone(),
            source,
        };
        let mut lookup = images.lookup(path);
        let mut asked = None;
        loop {
            let step = lookup.step().map_err(|source| refused(source, &asked))?;
            match self.carry(Repository::Images, step, &mut asked).await? {
                Carried::Answer(fetched) => lookup.answer(fetched),
                Carried::Kept => {}
                Carried::Done => break,
            }
        }
        lookup.into_target().map_err(|source| refused(source, &asked))
    }

    /// The CA certificates that images names; nothing where it names none, or contradicts itself. A release does not
    /// wait for them.
    async fn anchors(&self, images: &mut TrustedSet) -> Option<String> {
        let found = self.find(images, TRUST.parse().ok()?).await.ok().flatten()?;
        let target = found.target();
        let pem = target.custom.as_ref()?.get("pem")?.as_str()?;
        let whole = target.length == pem.len() as u64 && target.hashes.verify(pem.as_bytes()).is_ok();
        whole.then(|| pem.to_owned())
    }

    async fn refresh(&self, repository: Repository) -> Result<TrustedSet, RefreshError> {
        let stored = stored(self.state, repository)?;
        let mut asked = None;
        let refused =
            |source, file: &Option<String>| RefreshError::Metadata { repository, file: file.clone(), source };
        let mut refresh = Refresh::new(stored, self.clock.now(), Limits::default()).map_err(|source| {
            RefreshError::Root { file: format!("{}/root.json", repository.directory()), source }
        })?;
        loop {
            let step = refresh.step().map_err(|source| refused(source, &asked))?;
            match self.carry(repository, step, &mut asked).await? {
                Carried::Answer(fetched) => refresh.answer(fetched),
                Carried::Kept => {}
                Carried::Done => break,
            }
        }
        let trusted = refresh.into_trusted().map_err(|source| refused(source, &asked))?;
        if let Some(signed) = signed_at(&trusted) {
            self.clock.raise(signed);
        }
        Ok(trusted)
    }

    /// Does what the machine asks for.
    async fn carry(
        &self,
        repository: Repository,
        step: Step,
        asked: &mut Option<String>,
    ) -> Result<Carried, RefreshError> {
        let directory = repository.directory();
        match step {
            Step::Done => Ok(Carried::Done),
            Step::Store { file, bytes } => {
                self.state.write(&format!("{directory}/{file}"), &bytes).map_err(RefreshError::State)?;
                tracing::debug!(repository = repository.name(), file, "metadata stored");
                Ok(Carried::Kept)
            }
            Step::Remove { file } => {
                self.state.remove(&format!("{directory}/{file}")).map_err(RefreshError::State)?;
                Ok(Carried::Kept)
            }
            Step::Fetch { file, max_bytes } => {
                let path = format!("/{directory}/{file}");
                *asked = Some(file.clone());
                match self.client.get(&path, max_bytes).await {
                    Ok(Some(bytes)) => Ok(Carried::Answer(Fetched::Bytes(bytes))),
                    Ok(None) => Ok(Carried::Answer(Fetched::Absent)),
                    // Too much of it is a matter of the metadata, not of the way here: endless data (TUF 1.5.2).
                    Err(ClientError::TooLong { max_bytes, .. }) => Err(RefreshError::Metadata {
                        repository,
                        file: Some(file.clone()),
                        source: MetadataError::TooLong { file, limit: max_bytes },
                    }),
                    Err(source) => Err(RefreshError::Client { repository, file, source }),
                }
            }
        }
    }
}

fn policy(said: Option<&serde_json::Value>) -> Result<DevicePolicy, String> {
    said.map_or(Ok(DevicePolicy::default()), |said| {
        serde_json::from_value(said.clone()).map_err(|error| error.to_string())
    })
}

enum Carried {
    Answer(Fetched),
    Kept,
    Done,
}

/// The metadata as it lies on disk. What is damaged there is fetched again, except the root, on which all else stands.
fn stored(state: &StateDir, repository: Repository) -> Result<Stored, RefreshError> {
    let directory = repository.directory();
    let read = |file: &str| state.read(&format!("{directory}/{file}")).map_err(RefreshError::State);
    let root =
        read("root.json")?.ok_or_else(|| RefreshError::NoRoot { file: format!("{directory}/root.json") })?;
    let mut delegated = BTreeMap::new();
    for file in state.list(&directory).map_err(RefreshError::State)? {
        if TOP_LEVEL.contains(&file.as_str()) {
            continue;
        }
        if let Some(bytes) = read(&file)? {
            delegated.insert(file, bytes);
        }
    }
    Ok(Stored {
        root,
        timestamp: read("timestamp.json")?,
        snapshot: read("snapshot.json")?,
        targets: read("targets.json")?,
        delegated,
    })
}

const TOP_LEVEL: [&str; 4] = ["root.json", "timestamp.json", "snapshot.json", "targets.json"];

/// The versions of what lies on disk, which was verified when it was stored; 0 for what is not there or is damaged.
pub fn stored_versions(state: &StateDir) -> MetadataVersions {
    let version = |repository: Repository, role: &str| {
        let bytes = state.read(&format!("{}/{role}.json", repository.directory()));
        let value = serde_json::from_slice::<serde_json::Value>(&bytes.ok().flatten()?).ok()?;
        value.get("signed")?.get("version")?.as_u64()
    };
    let versions = |repository| RepositoryVersions {
        root: version(repository, "root").unwrap_or_default(),
        timestamp: version(repository, "timestamp").unwrap_or_default(),
        snapshot: version(repository, "snapshot").unwrap_or_default(),
        targets: version(repository, "targets").unwrap_or_default(),
    };
    MetadataVersions { images: versions(Repository::Images), director: versions(Repository::Director) }
}

/// What shows how far this device has come: the stored timestamps, which the facade has signed itself.
pub fn proof(state: &StateDir) -> Proof {
    let text = |repository: Repository| {
        let bytes = state.read(&format!("{}/timestamp.json", repository.directory())).ok().flatten()?;
        String::from_utf8(bytes).ok()
    };
    Proof { images: text(Repository::Images), director: text(Repository::Director) }
}

fn versions(trusted: &TrustedSet) -> RepositoryVersions {
    RepositoryVersions {
        root: trusted.root().version,
        timestamp: trusted.timestamp().version,
        snapshot: trusted.snapshot().version,
        targets: trusted.targets().version,
    }
}

fn expires(trusted: &TrustedSet) -> Timestamp {
    trusted
        .timestamp()
        .expires
        .min(trusted.snapshot().expires)
        .min(trusted.targets().expires)
        .min(trusted.root().expires)
}

/// When the timestamp says that it was signed; the only time that a device may learn from the facade.
fn signed_at(trusted: &TrustedSet) -> Option<Timestamp> {
    let timestamp = trusted.timestamp();
    let signed: Timestamp = timestamp.extra.get("signed_at")?.as_str()?.parse().ok()?;
    // Nothing is signed after it expires; such a time would carry the floor away.
    (signed <= timestamp.expires).then_some(signed)
}

/// The code of a refusal to go back.
pub const ROLLBACK: &str = "metadata_rollback";

/// The stable name of a refusal, for the operator's filters.
pub fn refusal_code(error: &RefreshError) -> &'static str {
    let source = match error {
        RefreshError::Metadata { source, .. } => source,
        RefreshError::Client { .. } => return "metadata_withheld",
        RefreshError::Disagree(_)
        | RefreshError::NoRoot { .. }
        | RefreshError::Root { .. }
        | RefreshError::State(_) => return "targets_disagree",
    };
    match source {
        MetadataError::Expired { .. } => "metadata_expired",
        MetadataError::UnmetThreshold { .. } | MetadataError::RepeatedSignature { .. } => {
            "metadata_signature"
        }
        MetadataError::RootVersion { .. }
        | MetadataError::Rollback { .. }
        | MetadataError::SnapshotListedRollback { .. }
        | MetadataError::TargetsListedRollback { .. }
        | MetadataError::TargetsVanished { .. } => ROLLBACK,
        MetadataError::MixAndMatch { .. } | MetadataError::Length { .. } | MetadataError::Hashes { .. } => {
            "metadata_mismatch"
        }
        MetadataError::TooLong { .. } | MetadataError::TooManySignatures { .. } => "metadata_endless",
        MetadataError::Missing { .. } | MetadataError::NotInSnapshot { .. } => "metadata_missing",
        MetadataError::Unreadable { .. }
        | MetadataError::NotCanonical { .. }
        | MetadataError::WrongType { .. }
        | MetadataError::SpecVersion { .. }
        | MetadataError::Flawed { .. }
        | MetadataError::SearchTooWide { .. }
        | MetadataError::SearchTooDeep { .. }
        | MetadataError::Incomplete => "metadata_malformed",
    }
}
