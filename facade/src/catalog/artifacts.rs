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
    /// The tag it was imported from.
    pub tag: Tag,
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
        "{0:?} is neither REPOSITORY@sha256:… nor the beginning of a digest (at least 4 hexadecimal digits)"
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

    /// Adds remembering what a tag points at to a batch.
    pub fn put_tag(&self, batch: &mut Batch, tag: &Tag, name: &ArtifactName) -> Result<(), StoreError> {
        batch.put_json(TAGS, &format!("{}:{tag}", name.repository()), name)
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

    /// One artifact, by name or by an unambiguous prefix of its digest, with or without `sha256:`.
    pub async fn find(&self, text: &str) -> Result<Artifact, ArtifactsError> {
        let not_found = || ArtifactsError::NotFound(text.chars().take(300).collect());
        if text.contains('@') {
            let name: ArtifactName =
                text.parse().map_err(|_| ArtifactsError::Malformed(text.chars().take(300).collect()))?;
            return self.get(&name).await?.ok_or_else(not_found);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.len() < 4 || !prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ArtifactsError::Malformed(text.chars().take(300).collect()));
        }
        let names = self.store.scan(BY_DIGEST, Scan { prefix, after: None, limit: 5 }).await?;
        let mut names = names.iter().filter_map(|entry| entry.key.split_once(' ').map(|(_, name)| name));
        let Some(first) = names.next() else {
            return Err(not_found());
        };
        let others: Vec<&str> = names.collect();
        if !others.is_empty() {
            let all = [&[first], others.as_slice()].concat().join(", ");
            return Err(ArtifactsError::Ambiguous(text.to_owned(), all));
        }
        get_json(&*self.store, TABLE, first).await?.ok_or_else(not_found)
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
