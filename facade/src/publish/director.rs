//! The director repository: what one device should have.
//!
//! Each device has its own timestamp, snapshot and targets, signed when it asks and something changed: an assignment to
//! a large group costs nothing until its devices come. The root is one for all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp as Time;
use pki::key::SigningKey;
use pki::metadata::publish::sign;
use pki::metadata::roles::{FileMeta, Snapshot, Target, Targets, Timestamp, TimestampMeta};
use pki::oci::ArtifactName;
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use tokio::sync::Mutex;

use super::images::target_path;
use super::{Lifetimes, PublishingError, TIMESTAMP_FILE, end_of, signed_at, versioned};
use crate::catalog::artifacts::Artifacts;
use crate::clock::Clock;
use crate::store::{Batch, Store, Table, get_json};

/// Signed files; the key is `DEVICE/FILE`, or `/FILE` for the roots, which all devices share.
const FILES: Table = Table("director-metadata");

/// What is signed for each device.
const SIGNED: Table = Table("director-signed");

/// The online keys of the director repository.
pub struct Keys {
    /// Signs what a device should have.
    pub targets: SigningKey,
    /// Signs which versions belong together.
    pub snapshot: SigningKey,
    /// Signs that this is the newest.
    pub timestamp: SigningKey,
}

/// The director repository.
pub struct Director {
    store: Arc<dyn Store>,
    artifacts: Artifacts,
    keys: Keys,
    lifetimes: Lifetimes,
    clock: Clock,
    /// The turn to sign: two requests of one device must not sign one version twice.
    turn: Mutex<()>,
}

/// What is signed for one device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Signed {
    /// Version of targets and snapshot, which always change together.
    version: u64,
    timestamp_version: u64,
    artifacts: BTreeSet<ArtifactName>,
    /// What the timestamp says of the snapshot.
    snapshot: Option<FileMeta>,
    targets_expire: Time,
    timestamp_expires: Time,
}

impl Director {
    /// The director over a store.
    pub fn new(
        store: Arc<dyn Store>,
        artifacts: Artifacts,
        keys: Keys,
        lifetimes: Lifetimes,
        clock: Clock,
    ) -> Self {
        Self {
            store,
            artifacts,
            keys,
            lifetimes,
            clock,
            turn: Mutex::new(()),
        }
    }

    /// Keeps a root that was signed elsewhere, to be served to devices.
    pub async fn put_root(&self, version: u64, bytes: &[u8]) -> Result<(), PublishingError> {
        let mut batch = Batch::new();
        batch.put(FILES, &format!("/{}", versioned(version, "root")), bytes.to_vec());
        Ok(self.store.commit(batch).await?)
    }

    /// A file as it is served to a device that should have `wanted`.
    pub async fn file(
        &self,
        device: &DeviceId,
        wanted: &BTreeSet<ArtifactName>,
        name: &str,
    ) -> Result<Option<Vec<u8>>, PublishingError> {
        if name.ends_with(".root.json") {
            return Ok(self.store.get(FILES, &format!("/{name}")).await?);
        }
        if name == TIMESTAMP_FILE {
            self.version(device, wanted).await?;
        }
        Ok(self.store.get(FILES, &format!("{device}/{name}")).await?)
    }

    /// The version of what a device should have; it is signed first where it is not yet.
    pub async fn version(
        &self,
        device: &DeviceId,
        wanted: &BTreeSet<ArtifactName>,
    ) -> Result<u64, PublishingError> {
        let _turn = self.turn.lock().await;
        let now = self.clock.now();
        let signed: Signed = get_json(&*self.store, SIGNED, device.as_str())
            .await?
            .unwrap_or_default();
        let ageing = |expires: Time, lifetime: std::time::Duration| {
            expires.as_second().saturating_sub(now.as_second())
                < i64::try_from(lifetime.as_secs() / 2).unwrap_or(0)
        };
        let mut batch = Batch::new();
        let next = if signed.artifacts != *wanted
            || signed.snapshot.is_none()
            || ageing(signed.targets_expire, self.lifetimes.snapshot)
        {
            self.sign_targets(device, wanted, signed, now, &mut batch).await?
        } else if ageing(signed.timestamp_expires, self.lifetimes.timestamp) {
            signed
        } else {
            return Ok(signed.version);
        };
        let next = self.sign_timestamp(device, next, now, &mut batch)?;
        batch.put_json(SIGNED, device.as_str(), &next)?;
        self.store.commit(batch).await?;
        Ok(next.version)
    }

    /// Removes everything signed for a device that was deleted, but not its versions: a device of the same id that
    /// enrolls again may have seen them.
    pub async fn forget(&self, device: &DeviceId) -> Result<(), PublishingError> {
        let _turn = self.turn.lock().await;
        let Some(mut signed) = get_json::<Signed>(&*self.store, SIGNED, device.as_str()).await? else {
            return Ok(());
        };
        signed.snapshot = None;
        let mut batch = Batch::new();
        for version in signed.version.saturating_sub(2)..=signed.version {
            for role in ["targets", "snapshot"] {
                batch.delete(FILES, &format!("{device}/{}", versioned(version, role)));
            }
        }
        batch.delete(FILES, &format!("{device}/{TIMESTAMP_FILE}"));
        batch.put_json(SIGNED, device.as_str(), &signed)?;
        Ok(self.store.commit(batch).await?)
    }

    async fn sign_targets(
        &self,
        device: &DeviceId,
        wanted: &BTreeSet<ArtifactName>,
        signed: Signed,
        now: Time,
        batch: &mut Batch,
    ) -> Result<Signed, PublishingError> {
        let version = signed.version + 1;
        let expires = end_of(now, self.lifetimes.snapshot);
        let mut targets = Targets {
            version,
            expires,
            targets: BTreeMap::new(),
            delegations: None,
            extra: Map::new(),
        };
        targets.set_device(device.as_str());
        for name in wanted {
            if let Some(target) = self.target(device, name).await? {
                targets.targets.insert(target_path(name)?, target);
            }
        }
        let file = versioned(version, "targets");
        let bytes = sign(&targets, &[&self.keys.targets]).map_err(|source| PublishingError::Sign {
            file: file.clone(),
            source,
        })?;
        let meta = BTreeMap::from([("targets.json".to_owned(), FileMeta::of(version, &bytes))]);
        batch.put(FILES, &format!("{device}/{file}"), bytes);
        let snapshot = Snapshot {
            version,
            expires,
            meta,
            extra: Map::new(),
        };
        let file = versioned(version, "snapshot");
        let bytes = sign(&snapshot, &[&self.keys.snapshot]).map_err(|source| PublishingError::Sign {
            file: file.clone(),
            source,
        })?;
        let meta = FileMeta::of(version, &bytes);
        batch.put(FILES, &format!("{device}/{file}"), bytes);
        if let Some(old) = version.checked_sub(3) {
            for role in ["targets", "snapshot"] {
                batch.delete(FILES, &format!("{device}/{}", versioned(old, role)));
            }
        }
        Ok(Signed {
            version,
            artifacts: wanted.clone(),
            snapshot: Some(meta),
            targets_expire: expires,
            ..signed
        })
    }

    async fn target(
        &self,
        device: &DeviceId,
        name: &ArtifactName,
    ) -> Result<Option<Target>, PublishingError> {
        let artifact = self.artifacts.get(name).await?;
        let artifact = artifact.filter(|artifact| artifact.revoked_at.is_none());
        Ok(artifact.map(|artifact| {
            let root = &artifact.closure.root;
            let mut custom = Map::new();
            custom.insert("device".to_owned(), device.to_string().into());
            custom.insert("media_type".to_owned(), root.media_type.to_string().into());
            Target::new(root.digest, root.size, custom)
        }))
    }

    fn sign_timestamp(
        &self,
        device: &DeviceId,
        mut signed: Signed,
        now: Time,
        batch: &mut Batch,
    ) -> Result<Signed, PublishingError> {
        let Some(snapshot) = signed.snapshot.clone() else {
            return Err(PublishingError::Unreadable {
                file: format!("{device}/{TIMESTAMP_FILE}"),
            });
        };
        signed.timestamp_version += 1;
        signed.timestamp_expires = end_of(now, self.lifetimes.timestamp);
        let timestamp = Timestamp {
            version: signed.timestamp_version,
            expires: signed.timestamp_expires,
            meta: TimestampMeta { snapshot },
            extra: signed_at(now),
        };
        let bytes = sign(&timestamp, &[&self.keys.timestamp]).map_err(|source| PublishingError::Sign {
            file: TIMESTAMP_FILE.to_owned(),
            source,
        })?;
        batch.put(FILES, &format!("{device}/{TIMESTAMP_FILE}"), bytes);
        Ok(signed)
    }
}
