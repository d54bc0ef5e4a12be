//! The images repository: which artifacts exist.
//!
//! Every change is a [`Request`]: the files it changes, signed with the keys that are here. Where they are all it needs, it
//! is published at once; otherwise it waits for the operators' signatures, and nothing in it exists before.

mod delegate;
mod plan;
mod recovery;
mod steps;
mod upkeep;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use jiff::Timestamp as Time;
use pki::digest::Digest;
use pki::key::{Signature, SigningKey};
use pki::metadata::names::TargetPath;
use pki::metadata::roles::{FileMeta, Snapshot, Target, Targets, Timestamp, TimestampMeta};
use pki::metadata::verify::{Authority, Signed};
use pki::metadata::{Limits, trusted};
use pki::oci::{ArtifactName, Tag};
use pki::wire::{RepositoryVersions, RootPin};
use pki::x509::DeviceId;
use pki::x509::pem::certificate;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

pub use self::delegate::Delegation;
use self::plan::Work;
pub(super) use self::recovery::behind_warning;
use self::steps::{marks, raise};
use super::publishers::{self, Publisher, PublisherName};
use super::request::{Addition, Desk, Draft, REQUESTS, Request, root_draft};
use super::trust::{Role, RootChange, Trust};
use super::witness::{Doubts, Marks, Repository, Witness};
use super::{
    Lifetimes, MAX_STORED_BYTES, PublishingError, TIMESTAMP_FILE, bins, end_of, is_ageing, sign_with,
    signed_at, versioned,
};
use crate::catalog::artifacts::{Artifact, Artifacts};
use crate::clock::Clock;
use crate::init::Vault;
use crate::store::{Batch, Scan, Store, Table, scan_json};

/// Signed files by the name they are served under.
const FILES: Table = Table("images-metadata");

/// What is published of each targets role.
const ROLES: Table = Table("images-roles");

const NAME: &str = "images";

/// The role of the top-level targets.
const TOP: &str = "targets";

/// The target that says by which CA certificates devices trust the facade; its content is in its `custom`.
const TRUST: &str = "trust/facade-ca.pem";

/// What importing an artifact changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is signed now.
    Signed,
    /// It was signed before.
    Unchanged,
    /// It waits for the operators' signatures.
    Pending,
}

/// What everything that publishes needs.
#[derive(Clone)]
pub struct Parts {
    /// The records.
    pub store: Arc<dyn Store>,
    /// The artifacts among them.
    pub artifacts: Artifacts,
    /// How long metadata lives.
    pub lifetimes: Lifetimes,
    /// The time.
    pub clock: Clock,
    /// Where keys and roots are kept.
    pub vault: Vault,
    /// What was seen.
    pub witness: Arc<Witness>,
}

/// The images repository.
pub struct Images {
    parts: Parts,
    /// What is published; its lock is the turn to publish.
    current: Mutex<Current>,
    /// What devices say they have seen without showing it.
    doubts: std::sync::Mutex<Doubts>,
}

struct Current {
    trust: Trust,
    published: Published,
    /// What waits for signatures, by whose.
    pending: BTreeMap<Desk, Request>,
    /// What is revoked and may still be listed.
    withdrawn: BTreeSet<ArtifactName>,
}

#[derive(Clone)]
struct Published {
    /// The top-level targets; those of bins stay in the store.
    targets: Targets,
    roles: BTreeMap<String, Listed>,
    snapshot: Snapshot,
    timestamp: Timestamp,
}

/// What is published of one targets role.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Listed {
    version: u64,
    /// A client that is in the middle of a refresh still wants the version before.
    previous: Option<u64>,
    expires: Time,
}

impl Published {
    /// The roles that a device may come to: the others are listed for ever, because nothing may vanish from a snapshot.
    fn live(&self) -> BTreeSet<String> {
        let delegations = self.targets.delegations.as_ref();
        let delegated = delegations.into_iter().flat_map(|delegations| &delegations.roles);
        let delegated = delegated.map(|role| role.name.as_str().to_owned());
        let live = delegated.filter(|role| self.roles.contains_key(role));
        live.chain([TOP.to_owned()]).collect()
    }

    /// The live roles that the targets keys sign.
    fn own(&self) -> BTreeSet<String> {
        let own = |role: &String| role == TOP || bins::is_bin(role);
        self.live().into_iter().filter(own).collect()
    }
}

/// A signing request as operators see it.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The request.
    pub request: Request,
    /// The files in force, by role.
    pub base: BTreeMap<String, String>,
}

impl Images {
    /// Opens the repository; the first time, it publishes an empty one.
    pub async fn open(
        parts: Parts,
        trust: Trust,
        first_targets: Option<Vec<u8>>,
    ) -> Result<Self, PublishingError> {
        let stored = load(&*parts.store).await?;
        let first = stored.is_none();
        let waiting = Scan { prefix: NAME, ..Scan::ALL };
        let pending = scan_json(&*parts.store, REQUESTS, waiting).await?;
        let pending = pending.into_iter().filter_map(|(key, request)| Some((Desk::of_key(&key)?, request)));
        let withdrawn = withdraw::load(&*parts.store).await?;
        let published = stored.unwrap_or_else(|| empty(parts.clock.now(), parts.lifetimes));
        let current = Mutex::new(Current { trust, published, pending: pending.collect(), withdrawn });
        let images = Self { parts, current, doubts: std::sync::Mutex::default() };
        if first {
            images.begin(first_targets).await?;
        }
        images.catch_up().await?;
        match images.resign().await {
            // The facade serves what there is, and says what is wrong.
            Err(error @ PublishingError::Behind { .. }) => tracing::error!(%error, "nothing is signed"),
            other => other?,
        }
        Ok(images)
    }

    async fn begin(&self, first_targets: Option<Vec<u8>>) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let request = if let Some(bytes) = first_targets {
            self.request(vec![Draft::new("targets", 1, bytes)?], Vec::new())
        } else {
            let work = Work { renew: BTreeSet::from([TOP.to_owned()]), ..Work::default() };
            self.draft(&current, &work, Vec::new()).await?
        };
        self.publish(&mut current, &Desk::Operators, request, Batch::new()).await
    }

    /// Finishes what a crash has cut short: a new root is in force, and what it asks for is not published yet.
    async fn catch_up(&self) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        if let Some(request) = current.pending.get(&Desk::Operators).cloned() {
            let version = request.root().map_err(PublishingError::Refused)?.map(|root| root.version);
            if version == Some(current.trust.chain.current().version) {
                return self.publish(&mut current, &Desk::Operators, request, Batch::new()).await;
            }
        }
        let (online, targets) = self.vouched_for(&current).await?;
        if (online && targets) || self.demand_not_behind(&current).is_err() {
            return Ok(());
        }
        if targets {
            let request = self.request(Vec::new(), Vec::new());
            return self.publish_online(&mut current, request, Batch::new()).await;
        }
        let work = Work { renew: current.published.own(), ..Work::default() };
        let request = self.draft(&current, &work, vec!["the keys have changed".to_owned()]).await?;
        self.publish_or_wait(&mut current, &Desk::Operators, request, Batch::new()).await.map(drop)
    }

    /// Whether the root in force vouches for the published timestamp and snapshot, and for the targets.
    async fn vouched_for(&self, current: &Current) -> Result<(bool, bool), PublishingError> {
        let root = current.trust.chain.current();
        let limits = Limits::default();
        let Published { snapshot, targets, .. } = &current.published;
        let file = async |name: &str| self.parts.store.get(FILES, name).await.map(Option::unwrap_or_default);
        let timestamp = file(TIMESTAMP_FILE).await?;
        let snapshot = file(&versioned(snapshot.version, "snapshot")).await?;
        let targets = file(&versioned(targets.version, "targets")).await?;
        let online = trusted::stored_timestamp(root, &timestamp, &limits).is_ok()
            && trusted::stored_snapshot(root, &snapshot, &limits).is_ok();
        let targets = Signed::<Targets>::parse("targets", &targets, MAX_STORED_BYTES);
        let targets =
            targets.is_ok_and(|targets| targets.demand(root.authority("root", &root.roles.targets)).is_ok());
        Ok((online, targets))
    }

    /// A file as it is served.
    pub async fn file(&self, name: &str) -> Result<Option<Vec<u8>>, PublishingError> {
        if let Some(version) = root_version(name) {
            return Ok(self.current.lock().await.trust.chain.file(version).map(<[u8]>::to_vec));
        }
        Ok(self.parts.store.get(FILES, name).await?)
    }

    /// What a new device is told to begin with.
    pub async fn root_pin(&self) -> RootPin {
        self.current.lock().await.trust.chain.pin()
    }

    /// Reads whom the repository trusts.
    pub async fn with_trust<T>(&self, read: impl FnOnce(&Trust) -> T) -> T {
        read(&self.current.lock().await.trust)
    }

    /// Signs an artifact, and remembers that the tag points at it, if one was found to.
    pub async fn add(&self, artifact: &Artifact, tag: Option<&Tag>) -> Result<Outcome, PublishingError> {
        let addition = Addition { artifact: artifact.clone(), tag: tag.cloned() };
        self.add_all(vec![addition]).await
    }

    /// Says by which CA certificates devices are to trust the facade. As long as there was only ever one, devices have it
    /// from their tokens and nothing is said. Whatever waits for signatures comes first.
    pub async fn set_trust(&self, roots: &[Vec<u8>]) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let path: TargetPath = TRUST.parse().map_err(|_| PublishingError::Name(TRUST.to_owned()))?;
        let pem: String = roots.iter().map(|root| certificate(root)).collect();
        let custom = Map::from_iter([("pem".to_owned(), Value::from(pem.as_str()))]);
        let target = Target::new(Digest::sha256(pem.as_bytes()), pem.len() as u64, custom);
        let published = self.published_target(&current.published, &path).await?;
        let said = published.map_or(roots.len() < 2, |published| published == target);
        if said || current.pending.contains_key(&Desk::Operators) {
            return Ok(());
        }
        self.demand_not_behind(&current)?;
        let work = Work { add: vec![(path, target)], ..Work::default() };
        let reason = "the CA certificates of the facade have changed".to_owned();
        let request = self.draft(&current, &work, vec![reason]).await?;
        self.publish_or_wait(&mut current, &Desk::Operators, request, Batch::new()).await.map(drop)
    }

    async fn published_target(
        &self,
        published: &Published,
        path: &TargetPath,
    ) -> Result<Option<Target>, PublishingError> {
        let Some(role) = self.listing(published, path).await? else {
            return Ok(None);
        };
        Ok(self.document(published, &role).await?.targets.get(path).cloned())
    }

    /// The role that lists a path, as a device finds it.
    async fn listing(
        &self,
        published: &Published,
        path: &TargetPath,
    ) -> Result<Option<String>, PublishingError> {
        if published.targets.targets.contains_key(path) {
            return Ok(Some(TOP.to_owned()));
        }
        let publishers = publishers::of(&published.targets);
        let role = match publishers::covering(&publishers, path) {
            Some(covering) => covering.role(),
            None if bins::is_split(&published.targets) => bins::of(path),
            None => return Ok(None),
        };
        let listed = self.document(published, &role).await?.targets.contains_key(path);
        Ok(listed.then_some(role))
    }

    /// What is published of a role; nothing where the role has signed nothing, or not under the keys that it has now.
    async fn document(&self, published: &Published, role: &str) -> Result<Targets, PublishingError> {
        if role == TOP {
            return Ok(published.targets.clone());
        }
        let Some(listed) = published.roles.get(role) else {
            return Ok(plan::nothing());
        };
        let file = versioned(listed.version, role);
        let bytes = self.parts.store.get(FILES, &file).await?;
        let bytes = bytes.ok_or_else(|| PublishingError::Unreadable { file: file.clone() })?;
        let publishers = publishers::of(&published.targets);
        if let Some(signer) = publishers.iter().find(|known| known.role() == role) {
            return Ok(signed_by(signer, &bytes).unwrap_or_else(plan::nothing));
        }
        super::read(role, &file, &bytes)
    }

    /// Signs artifacts in one step of each desk.
    pub async fn add_all(&self, additions: Vec<Addition>) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        let publishers = publishers::of(&current.published.targets);
        let mut batch = Batch::new();
        let mut new: BTreeMap<Desk, Vec<Addition>> = BTreeMap::new();
        for addition in additions {
            let name = addition.artifact.name();
            match self.parts.artifacts.get(name).await? {
                Some(known) if known.revoked_at.is_some() => {
                    return Err(PublishingError::Revoked(name.to_string()));
                }
                Some(_) => self.parts.artifacts.put_tag(&mut batch, addition.tag.as_ref(), name)?,
                None => {
                    let desk = desk_of(&publishers, &target_path(name)?);
                    new.entry(desk).or_default().push(addition);
                }
            }
        }
        self.parts.store.commit(batch).await?;
        let mut outcome = Outcome::Unchanged;
        for (desk, additions) in new {
            let request = self.extended(&current, &desk, additions, Vec::new()).await?;
            let published = self.publish_or_wait(&mut current, &desk, request, Batch::new()).await?;
            if outcome != Outcome::Pending {
                outcome = published;
            }
        }
        Ok(outcome)
    }

    /// Changes the keys of a role: at once where the keys for it are here, else by a signing request.
    pub async fn change_keys(
        &self,
        change: &RootChange,
        made: Option<SigningKey>,
    ) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        if current.pending.contains_key(&Desk::Operators) {
            return Err(PublishingError::Waiting);
        }
        let now = self.parts.clock.now();
        let root = change.apply(current.trust.chain.current(), end_of(now, self.parts.lifetimes.root))?;
        if let Some(key) = made {
            self.parts.vault.put_key(NAME, change.role.name(), &key)?;
            current.trust.ring.insert(key);
        }
        let renew = if change.role == Role::Targets { current.published.own() } else { BTreeSet::new() };
        let work = Work { renew, root: Some(root), ..Work::default() };
        let reason = format!("the keys of {} change", change.role);
        let request = self.draft(&current, &work, vec![reason]).await?;
        self.publish_or_wait(&mut current, &Desk::Operators, request, Batch::new()).await
    }

    /// What waits for signatures at a desk.
    pub async fn waiting(&self, desk: &Desk) -> Result<Option<Waiting>, PublishingError> {
        let current = self.current.lock().await;
        let Some(request) = current.pending.get(desk).cloned() else {
            return Ok(None);
        };
        let mut base = BTreeMap::new();
        for (role, state) in &current.published.roles {
            if request.files.iter().any(|draft| draft.role == *role) || role == "targets" {
                let bytes = self.parts.store.get(FILES, &versioned(state.version, role)).await?;
                base.extend(
                    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map(|text| (role.clone(), text)),
                );
            }
        }
        Ok(Some(Waiting { request, base }))
    }

    /// Drops what waits for signatures, but for what is revoked: that waits again.
    pub async fn drop_request(&self, desk: &Desk, id: &str) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let pending = current.pending.get(desk).filter(|request| request.id == id);
        pending.ok_or(PublishingError::NoRequest)?;
        let mut batch = Batch::new();
        batch.delete(REQUESTS, &desk.key());
        self.parts.store.commit(batch).await?;
        current.pending.remove(desk);
        self.forget_unused_keys(&mut current)?;
        self.take_out(&mut current).await
    }

    /// Takes signatures for what waits, each verified; once it has enough, it is published. The artifacts that exist then.
    pub async fn attach(
        &self,
        desk: &Desk,
        id: &str,
        signatures: Vec<(String, Signature)>,
    ) -> Result<Option<Vec<Artifact>>, PublishingError> {
        let mut current = self.current.lock().await;
        let pending = current.pending.get(desk).cloned().filter(|request| request.id == id);
        let mut request = pending.ok_or(PublishingError::NoRequest)?;
        for (role, signature) in signatures {
            request.attach(current.trust.chain.current(), &role, signature)?;
        }
        let added = request.additions.iter().map(|addition| addition.artifact.clone()).collect();
        let outcome = self.publish_or_wait(&mut current, desk, request, Batch::new()).await?;
        if outcome != Outcome::Signed {
            return Ok(None);
        }
        self.take_out(&mut current).await?;
        Ok(Some(added))
    }
}

fn empty(now: Time, lifetimes: Lifetimes) -> Published {
    let nothing = FileMeta { version: 1, length: None, hashes: None, extra: Map::new() };
    Published {
        targets: Targets { expires: end_of(now, lifetimes.targets), ..plan::nothing() },
        roles: BTreeMap::new(),
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

async fn load(store: &dyn Store) -> Result<Option<Published>, PublishingError> {
    let Some(timestamp) = store.get(FILES, TIMESTAMP_FILE).await? else {
        return Ok(None);
    };
    let timestamp: Timestamp = super::read("timestamp", TIMESTAMP_FILE, &timestamp)?;
    let file = versioned(timestamp.meta.snapshot.version, "snapshot");
    let bytes = store.get(FILES, &file).await?;
    let snapshot: Snapshot = super::read("snapshot", &file, &bytes.unwrap_or_default())?;
    let version = snapshot.file("targets").map_or(0, |meta| meta.version);
    let targets = stored(store, "targets", version).await?;
    let mut roles: BTreeMap<String, Listed> = scan_json(store, ROLES, Scan::ALL).await?.into_iter().collect();
    let expires = targets.expires;
    roles.entry("targets".to_owned()).or_insert(Listed { version, previous: None, expires });
    Ok(Some(Published { targets, roles, snapshot, timestamp }))
}

async fn stored(store: &dyn Store, role: &str, version: u64) -> Result<Targets, PublishingError> {
    let file = versioned(version, role);
    let bytes = store.get(FILES, &file).await?;
    let bytes = bytes.ok_or_else(|| PublishingError::Unreadable { file: file.clone() })?;
    super::read(role, &file, &bytes)
}

/// The version in the name of a root file.
pub(super) fn root_version(name: &str) -> Option<u64> {
    name.strip_suffix(".root.json")?.parse().ok()
}

/// The name of an artifact as the path of a target.
pub(super) fn target_path(name: &ArtifactName) -> Result<TargetPath, PublishingError> {
    name.to_string().parse().map_err(|_| PublishingError::Name(name.to_string()))
}

/// Who signs what is new under a path.
fn desk_of(publishers: &[Publisher], path: &TargetPath) -> Desk {
    let publisher = publishers::covering(publishers, path);
    publisher.map_or(Desk::Operators, |publisher| Desk::Publisher(publisher.name.clone()))
}

/// A publisher's file, if it has signed it with the key that it has now.
fn signed_by(publisher: &Publisher, bytes: &[u8]) -> Option<Targets> {
    let role = publisher.role();
    let (keys, role_keys) = (publisher.key_map(), publisher.keys());
    let signed = Signed::<Targets>::parse(&role, bytes, MAX_STORED_BYTES).ok()?;
    let authority = Authority { delegator: TOP, keys: &keys, keyids: &role_keys.keyids, threshold: 1 };
    signed.demand(authority).is_ok().then(|| signed.document().clone())
}

fn target(artifact: &Artifact) -> Target {
    let root = &artifact.closure.root;
    let mut custom = Map::new();
    custom.insert("media_type".to_owned(), root.media_type.to_string().into());
    custom.insert("platforms".to_owned(), Value::from(artifact.platform_names()));
    custom.insert("size_bytes".to_owned(), artifact.closure.size_bytes().into());
    Target::new(root.digest, root.size, custom)
}
