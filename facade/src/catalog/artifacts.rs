//! The signed artifacts.
//!
//! A record is written in the same batch as the metadata that signs it (see [`crate::publish`]), so that neither is ever
//! there without the other.

use std::sync::Arc;

use jiff::Timestamp;
use pki::oci::{ArtifactName, Platform, Repository, Tag};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::closure::Closure;
use crate::store::{Batch, Scan, Store, StoreError, Table, get_json, scan_json};

const TABLE: Table = Table("artifacts");

/// Names by digest, for finding an artifact by a prefix of its digest. The key is the digest's hex, a blank, the name.
const BY_DIGEST: Table = Table("artifacts-by-digest");

/// What each tag pointed at when it was last imported. The key is `REPOSITORY:TAG`.
const TAGS: Table = Table("imported-tags");

/// A signed artifact as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Everything it consists of.
    pub closure: Closure,
    /// The tag it was imported from, or that was named beside its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// The platforms it runs on, in the order of its index.
    pub platforms: Vec<Platform>,
    /// When it was imported.
    pub imported_at: Timestamp,
    /// By whom.
    pub imported_by: String,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

impl Artifact {
    /// Its name.
    pub fn name(&self) -> &ArtifactName {
        &self.closure.name
    }

    /// Its platforms as people write them.
    pub fn platform_names(&self) -> Vec<String> {
        self.platforms.iter().map(ToString::to_string).collect()
    }
}

/// Why an artifact was not found.
#[derive(Debug, Error)]
pub enum ArtifactsError {
    /// There is none of that name.
    #[error("no artifact {0:?} (facade artifact list)")]
    NotFound(String),
    /// Several have a digest that starts so.
    #[error("{0:?} is ambiguous: {1}")]
    Ambiguous(String, String),
    /// Neither a name nor a prefix of a digest.
    #[error(
        "{0:?} is neither REPOSITORY@sha256:… nor the beginning of a digest (4 to 64 hexadecimal digits)"
    )]
    Malformed(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The artifacts, over the store.
#[derive(Clone)]
pub struct Artifacts {
    store: Arc<dyn Store>,
}

impl Artifacts {
    /// The artifacts of a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Adds writing an artifact to a batch.
    pub fn put(&self, batch: &mut Batch, artifact: &Artifact) -> Result<(), StoreError> {
        let name = artifact.name().to_string();
        batch.put_json(TABLE, &name, artifact)?;
        batch.put(BY_DIGEST, &format!("{} {name}", artifact.name().digest().hex()), Vec::new());
        Ok(())
    }

    /// Adds remembering what a tag points at, if it was looked up, to a batch.
    pub fn put_tag(
        &self,
        batch: &mut Batch,
        tag: Option<&Tag>,
        name: &ArtifactName,
    ) -> Result<(), StoreError> {
        match tag {
            Some(tag) => batch.put_json(TAGS, &format!("{}:{tag}", name.repository()), name),
            None => Ok(()),
        }
    }

    /// What a tag pointed at when it was last imported.
    pub async fn last_import(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<ArtifactName>, StoreError> {
        get_json(&*self.store, TAGS, &format!("{repository}:{tag}")).await
    }

    /// One artifact by its name.
    pub async fn get(&self, name: &ArtifactName) -> Result<Option<Artifact>, StoreError> {
        get_json(&*self.store, TABLE, &name.to_string()).await
    }

    /// One artifact, by name or by an unambiguous prefix of its digest: `3f2a`, `sha256:3f2a` or
    /// `REPOSITORY@sha256:3f2a`.
    pub async fn find(&self, text: &str) -> Result<Artifact, ArtifactsError> {
        let shown = || text.chars().take(300).collect::<String>();
        if let Ok(name) = text.parse::<ArtifactName>() {
            return self.get(&name).await?.ok_or_else(|| ArtifactsError::NotFound(shown()));
        }
        let (repository, digest) = match text.split_once('@') {
            Some((repository, digest)) => {
                let repository = repository.parse().map_err(|_| ArtifactsError::Malformed(shown()))?;
                (Some(repository), digest)
            }
            None => (None, text),
        };
        let prefix = digest.strip_prefix("sha256:").unwrap_or(digest);
        let hexadecimal = prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !(4..=64).contains(&prefix.len()) || !hexadecimal {
            return Err(ArtifactsError::Malformed(shown()));
        }
        let mut names = self.starting_with(repository.as_ref(), prefix).await?;
        match (names.pop(), names.is_empty()) {
            (None, _) => Err(ArtifactsError::NotFound(shown())),
            (Some(name), true) => {
                let found = get_json(&*self.store, TABLE, &name).await?;
                found.ok_or_else(|| ArtifactsError::NotFound(shown()))
            }
            (Some(name), false) => {
                names.push(name);
                Err(ArtifactsError::Ambiguous(shown(), names.join(", ")))
            }
        }
    }

    /// The first few names whose digest starts so, of one repository or of all.
    async fn starting_with(
        &self,
        repository: Option<&Repository>,
        prefix: &str,
    ) -> Result<Vec<String>, StoreError> {
        let limit = 5;
        let Some(repository) = repository else {
            let found = self.store.scan(BY_DIGEST, Scan { prefix, after: None, limit }).await?;
            let names = found.iter().filter_map(|entry| entry.key.split_once(' '));
            return Ok(names.map(|(_, name)| name.to_owned()).collect());
        };
        let prefix = format!("{repository}@sha256:{prefix}");
        let found = self.store.scan(TABLE, Scan { prefix: &prefix, after: None, limit }).await?;
        Ok(found.into_iter().map(|entry| entry.key).collect())
    }

    /// A page of artifacts by name, of one repository or of all.
    pub async fn list(
        &self,
        repository: Option<&Repository>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Artifact>, StoreError> {
        let prefix = repository.map(|repository| format!("{repository}@")).unwrap_or_default();
        let page = scan_json(&*self.store, TABLE, Scan { prefix: &prefix, after, limit }).await?;
        Ok(page.into_iter().map(|(_, artifact)| artifact).collect())
    }
}
