//! The images repository: which artifacts exist.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp as Time;
use pki::digest::Digest;
use pki::key::SigningKey;
use pki::metadata::names::TargetPath;
use pki::metadata::publish::sign;
use pki::metadata::roles::{Document, FileMeta, Snapshot, Target, Targets, Timestamp, TimestampMeta};
use pki::oci::{ArtifactName, Tag};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::{Lifetimes, PublishingError, TIMESTAMP_FILE, end_of, is_ageing, signed_at, versioned};
use crate::catalog::artifacts::{Artifact, Artifacts};
use crate::clock::Clock;
use crate::store::{Batch, Store, Table};

/// Signed files by the name they are served under.
const FILES: Table = Table("images-metadata");

/// The target that says by which CA certificates devices trust the facade; its content is in its `custom`.
const TRUST: &str = "trust/facade-ca.pem";

/// The online keys of the images repository.
pub struct Keys {
    /// Signs which artifacts exist.
    pub targets: SigningKey,
    /// Signs which versions belong together.
    pub snapshot: SigningKey,
    /// Signs that this is the newest.
    pub timestamp: SigningKey,
}

/// What importing an artifact changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is signed now.
    Signed,
    /// It was signed before.
    Unchanged,
}

/// The images repository.
pub struct Images {
    store: Arc<dyn Store>,
    artifacts: Artifacts,
    keys: Keys,
    lifetimes: Lifetimes,
    clock: Clock,
    /// What is published; its lock is the turn to publish.
    current: Mutex<Current>,
}

#[derive(Clone)]
struct Current {
    targets: Targets,
    snapshot: Snapshot,
    timestamp: Timestamp,
}

impl Images {
    /// Opens the repository; the first time, it publishes an empty one.
    pub async fn open(
        store: Arc<dyn Store>,
        artifacts: Artifacts,
        keys: Keys,
        lifetimes: Lifetimes,
        clock: Clock,
    ) -> Result<Self, PublishingError> {
        let stored = load(&*store).await?;
        let first = stored.is_none();
        let current = Mutex::new(stored.unwrap_or_else(|| empty(&clock, lifetimes)));
        let images = Self {
            store,
            artifacts,
            keys,
            lifetimes,
            clock,
            current,
        };
        if first {
            let mut current = images.current.lock().await;
            let next = current.clone();
            images.publish(&mut current, next, true, Batch::new()).await?;
        }
        images.resign().await?;
        Ok(images)
    }

    /// A file as it is served.
    pub async fn file(&self, name: &str) -> Result<Option<Vec<u8>>, PublishingError> {
        Ok(self.store.get(FILES, name).await?)
    }

    /// Keeps a root that was signed elsewhere, to be served to devices.
    pub async fn put_root(&self, version: u64, bytes: &[u8]) -> Result<(), PublishingError> {
        let mut batch = Batch::new();
        batch.put(FILES, &versioned(version, "root"), bytes.to_vec());
        Ok(self.store.commit(batch).await?)
    }

    /// Signs an artifact and remembers where its tag points.
    pub async fn add(&self, artifact: &Artifact, tag: &Tag) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        let path = target_path(artifact.name())?;
        let mut batch = Batch::new();
        self.artifacts.put_tag(&mut batch, tag, artifact.name())?;
        if current.targets.targets.contains_key(&path) {
            self.store.commit(batch).await?;
            return Ok(Outcome::Unchanged);
        }
        self.artifacts.put(&mut batch, artifact)?;
        let mut next = current.clone();
        next.targets.targets.insert(path, target(artifact));
        self.publish(&mut current, next, true, batch).await?;
        Ok(Outcome::Signed)
    }

    /// Says which CA certificates devices are to trust the facade by, where that is not what was said last.
    pub async fn set_trust(&self, pem: &str) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let path: TargetPath = TRUST
            .parse()
            .map_err(|_| PublishingError::Name(TRUST.to_owned()))?;
        let custom = Map::from_iter([("pem".to_owned(), Value::from(pem))]);
        let target = Target::new(Digest::sha256(pem.as_bytes()), pem.len() as u64, custom);
        if current.targets.targets.get(&path) == Some(&target) {
            return Ok(());
        }
        let mut next = current.clone();
        next.targets.targets.insert(path, target);
        self.publish(&mut current, next, true, Batch::new()).await
    }

    /// Takes an artifact out, and records that it is revoked.
    pub async fn revoke(&self, artifact: &Artifact) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let mut batch = Batch::new();
        self.artifacts.put(&mut batch, artifact)?;
        let mut next = current.clone();
        next.targets.targets.remove(&target_path(artifact.name())?);
        self.publish(&mut current, next, true, batch).await
    }

    /// Signs again what is half-way to its end.
    pub async fn resign(&self) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let now = self.clock.now();
        let targets = is_ageing(&current.targets, now, self.lifetimes.targets);
        let snapshot = is_ageing(&current.snapshot, now, self.lifetimes.snapshot);
        if targets || snapshot || is_ageing(&current.timestamp, now, self.lifetimes.timestamp) {
            let next = current.clone();
            if targets || snapshot {
                return self.publish(&mut current, next, targets, Batch::new()).await;
            }
            let (next, batch) = self.sign_timestamp(next, now, Batch::new())?;
            self.store.commit(batch).await?;
            *current = next;
        }
        Ok(())
    }

    /// When each role's metadata ends.
    pub async fn expires(&self) -> BTreeMap<&'static str, Time> {
        let current = self.current.lock().await;
        BTreeMap::from([
            ("targets", current.targets.expires),
            ("snapshot", current.snapshot.expires),
            ("timestamp", current.timestamp.expires),
        ])
    }

    /// Signs the next snapshot and timestamp, and the next targets where they changed, and commits them with `batch`.
    async fn publish(
        &self,
        current: &mut Current,
        mut next: Current,
        targets_changed: bool,
        mut batch: Batch,
    ) -> Result<(), PublishingError> {
        let now = self.clock.now();
        if targets_changed {
            next.targets.version += 1;
            next.targets.expires = end_of(now, self.lifetimes.targets);
            let file = versioned(next.targets.version, "targets");
            let bytes =
                sign(&next.targets, &[&self.keys.targets]).map_err(|source| PublishingError::Sign {
                    file: file.clone(),
                    source,
                })?;
            next.snapshot.meta.insert(
                "targets.json".to_owned(),
                FileMeta::of(next.targets.version, &bytes),
            );
            batch.put(FILES, &file, bytes);
            forget(&mut batch, next.targets.version, "targets");
        }
        next.snapshot.version += 1;
        next.snapshot.expires = end_of(now, self.lifetimes.snapshot);
        let file = versioned(next.snapshot.version, "snapshot");
        let bytes = sign(&next.snapshot, &[&self.keys.snapshot]).map_err(|source| PublishingError::Sign {
            file: file.clone(),
            source,
        })?;
        next.timestamp.meta.snapshot = FileMeta::of(next.snapshot.version, &bytes);
        batch.put(FILES, &file, bytes);
        forget(&mut batch, next.snapshot.version, "snapshot");
        let (next, batch) = self.sign_timestamp(next, now, batch)?;
        self.store.commit(batch).await?;
        *current = next;
        Ok(())
    }

    fn sign_timestamp(
        &self,
        mut next: Current,
        now: Time,
        mut batch: Batch,
    ) -> Result<(Current, Batch), PublishingError> {
        next.timestamp.version += 1;
        next.timestamp.expires = end_of(now, self.lifetimes.timestamp);
        next.timestamp.extra = signed_at(now);
        let bytes =
            sign(&next.timestamp, &[&self.keys.timestamp]).map_err(|source| PublishingError::Sign {
                file: TIMESTAMP_FILE.to_owned(),
                source,
            })?;
        batch.put(FILES, TIMESTAMP_FILE, bytes);
        Ok((next, batch))
    }
}

/// A client that is in the middle of a refresh still wants the version before; older ones nobody asks for.
fn forget(batch: &mut Batch, version: u64, role: &str) {
    if let Some(old) = version.checked_sub(3) {
        batch.delete(FILES, &versioned(old, role));
    }
}

fn empty(clock: &Clock, lifetimes: Lifetimes) -> Current {
    let now = clock.now();
    let nothing = FileMeta {
        version: 1,
        length: None,
        hashes: None,
        extra: Map::new(),
    };
    Current {
        targets: Targets {
            version: 0,
            expires: end_of(now, lifetimes.targets),
            targets: BTreeMap::new(),
            delegations: None,
            extra: Map::new(),
        },
        snapshot: Snapshot {
            version: 0,
            expires: end_of(now, lifetimes.snapshot),
            meta: BTreeMap::new(),
            extra: Map::new(),
        },
        timestamp: Timestamp {
            version: 0,
            expires: end_of(now, lifetimes.timestamp),
            meta: TimestampMeta { snapshot: nothing },
            extra: Map::new(),
        },
    }
}

async fn load(store: &dyn Store) -> Result<Option<Current>, PublishingError> {
    let Some(timestamp) = store.get(FILES, TIMESTAMP_FILE).await? else {
        return Ok(None);
    };
    let timestamp: Timestamp = super::read("timestamp", TIMESTAMP_FILE, &timestamp)?;
    let snapshot: Snapshot = stored(store, "snapshot", timestamp.meta.snapshot.version).await?;
    let version = snapshot.file("targets").map_or(0, |meta| meta.version);
    let targets = stored(store, "targets", version).await?;
    Ok(Some(Current {
        targets,
        snapshot,
        timestamp,
    }))
}

async fn stored<T: Document + Clone>(
    store: &dyn Store,
    role: &str,
    version: u64,
) -> Result<T, PublishingError> {
    let file = versioned(version, role);
    let bytes = store.get(FILES, &file).await?;
    let bytes = bytes.ok_or_else(|| PublishingError::Unreadable { file: file.clone() })?;
    super::read(role, &file, &bytes)
}

/// The name of an artifact as the path of a target.
pub(super) fn target_path(name: &ArtifactName) -> Result<TargetPath, PublishingError> {
    name.to_string()
        .parse()
        .map_err(|_| PublishingError::Name(name.to_string()))
}

fn target(artifact: &Artifact) -> Target {
    let root = &artifact.closure.root;
    let mut custom = Map::new();
    custom.insert("media_type".to_owned(), root.media_type.to_string().into());
    custom.insert("platforms".to_owned(), Value::from(artifact.platform_names()));
    custom.insert("size_bytes".to_owned(), artifact.closure.size_bytes().into());
    Target::new(root.digest, root.size, custom)
}
