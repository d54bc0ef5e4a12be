//! Artifacts whose bytes stay in the cache, whatever becomes of them upstream.
//!
//! A pin is an operator's wish, apart from the artifact's record: who sets one never races with who signs or revokes.
//! The digests are held in memory, because the cache asks for them each time that it makes room.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use pki::digest::Digest;
use pki::oci::ArtifactName;
use serde::{Deserialize, Serialize};

use super::artifacts::Artifacts;
use super::closure::Closure;
use crate::store::{Batch, Scan, Store, StoreError, Table, scan_json};

const TABLE: Table = Table("pinned-artifacts");

/// A pin as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Pin {
    artifact: ArtifactName,
    pinned_at: Timestamp,
    pinned_by: String,
}

/// The pinned artifacts.
pub struct Pins {
    store: Arc<dyn Store>,
    held: RwLock<HashMap<ArtifactName, Vec<Digest>>>,
}

impl Pins {
    /// Reads the pins; one whose artifact is gone or revoked holds nothing.
    pub async fn load(store: Arc<dyn Store>, artifacts: &Artifacts) -> Result<Self, StoreError> {
        let mut held = HashMap::new();
        for (_, pin) in scan_json::<Pin>(&*store, TABLE, Scan::ALL).await? {
            let artifact = artifacts.get(&pin.artifact).await?;
            if let Some(artifact) = artifact.filter(|artifact| artifact.revoked_at.is_none()) {
                held.insert(pin.artifact, digests(&artifact.closure));
            }
        }
        Ok(Self { store, held: RwLock::new(held) })
    }

    /// Pins an artifact: from now on nothing of it is evicted.
    pub async fn add(&self, closure: &Closure, by: &str, now: Timestamp) -> Result<(), StoreError> {
        let pin = Pin { artifact: closure.name.clone(), pinned_at: now, pinned_by: by.to_owned() };
        let mut batch = Batch::new();
        batch.put_json(TABLE, &closure.name.to_string(), &pin)?;
        self.store.commit(batch).await?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.insert(closure.name.clone(), digests(closure));
        Ok(())
    }

    /// Lets the cache have its way with an artifact again.
    pub async fn remove(&self, name: &ArtifactName) -> Result<(), StoreError> {
        if !self.contains(name) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.delete(TABLE, &name.to_string());
        self.store.commit(batch).await?;
        self.held.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    /// Whether an artifact is pinned.
    pub fn contains(&self, name: &ArtifactName) -> bool {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.contains_key(name)
    }

    /// Every digest that is part of a pinned artifact.
    pub fn digests(&self) -> HashSet<Digest> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.values().flatten().copied().collect()
    }
}

fn digests(closure: &Closure) -> Vec<Digest> {
    let all = closure.documents.iter().chain(&closure.blobs);
    all.map(|descriptor| descriptor.digest).collect()
}
