//! The images repository: which artifacts exist.
//!
//! Every change is a [`Request`]: the files it changes, signed with the keys that are here. Where they are all it needs, it
//! is published at once; otherwise it waits for the operators' signatures, and nothing in it exists before.

mod plan;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;
use steps::{marks, raise};

use jiff::Timestamp as Time;
use pki::digest::Digest;
use pki::key::{Signature, SigningKey};
use pki::metadata::names::TargetPath;
use pki::metadata::roles::{FileMeta, Snapshot, Target, Targets, Timestamp, TimestampMeta};
use pki::metadata::verify::Signed;
use pki::metadata::{Limits, trusted};
use pki::oci::{ArtifactName, Tag};
use pki::wire::{RepositoryVersions, RootPin};
use pki::x509::DeviceId;
use pki::x509::pem::certificate;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use self::plan::Work;
use super::request::{Addition, Draft, REQUESTS, Request, root_draft};
use super::trust::{Role, RootChange, Trust};
use super::witness::{Marks, Repository, Witness};
use super::{
    Lifetimes, MAX_STORED_BYTES, PublishingError, TIMESTAMP_FILE, bins, end_of, is_ageing, sign_with,
    signed_at, versioned,
};
use crate::catalog::artifacts::{Artifact, Artifacts};
use crate::clock::Clock;
use crate::init::Vault;
use crate::store::{Batch, Scan, Store, Table, get_json, scan_json};

/// Signed files by the name they are served under.
const FILES: Table = Table("images-metadata");

/// What is published of each targets role.
const ROLES: Table = Table("images-roles");

const NAME: &str = "images";

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
}

struct Current {
    trust: Trust,
    published: Published,
    pending: Option<Request>,
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
        let pending = get_json(&*parts.store, REQUESTS, NAME).await?;
        let published = stored.unwrap_or_else(|| empty(parts.clock.now(), parts.lifetimes));
        let current = Mutex::new(Current { trust, published, pending });
        let images = Self { parts, current };
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
            let work = Work { renew: plan::Renew::Top, ..Work::default() };
            self.draft(&current, &work, Vec::new()).await?
        };
        self.publish(&mut current, request, Batch::new()).await
    }

    /// Finishes what a crash has cut short: a new root is in force, and what it asks for is not published yet.
    async fn catch_up(&self) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        if let Some(request) = current.pending.clone() {
            let version = request.root().map_err(PublishingError::Refused)?.map(|root| root.version);
            if version == Some(current.trust.chain.current().version) {
                return self.publish(&mut current, request, Batch::new()).await;
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
        let work = Work { renew: plan::Renew::All, ..Work::default() };
        let request = self.draft(&current, &work, vec!["the keys have changed".to_owned()]).await?;
        self.publish_or_wait(&mut current, request, Batch::new()).await.map(drop)
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

    /// Signs an artifact and remembers where its tag points.
    pub async fn add(&self, artifact: &Artifact, tag: &Tag) -> Result<Outcome, PublishingError> {
        let addition = Addition { artifact: artifact.clone(), tag: tag.clone() };
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
        if said || current.pending.is_some() {
            return Ok(());
        }
        self.demand_not_behind(&current)?;
        let work = Work { add: vec![(path, target)], ..Work::default() };
        let reason = "the CA certificates of the facade have changed".to_owned();
        let request = self.draft(&current, &work, vec![reason]).await?;
        self.publish_or_wait(&mut current, request, Batch::new()).await.map(drop)
    }

    async fn published_target(
        &self,
        published: &Published,
        path: &TargetPath,
    ) -> Result<Option<Target>, PublishingError> {
        if !bins::is_split(&published.targets) {
            return Ok(published.targets.targets.get(path).cloned());
        }
        let bin = bins::of(path);
        let version = published.roles.get(&bin).map_or(0, |state| state.version);
        let targets: Targets = stored(&*self.parts.store, &bin, version).await?;
        Ok(targets.targets.get(path).cloned())
    }

    /// Signs artifacts in one step.
    pub async fn add_all(&self, additions: Vec<Addition>) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        let mut batch = Batch::new();
        let mut new = Vec::new();
        for addition in additions {
            let known = self.parts.artifacts.get(addition.artifact.name()).await?;
            if known.is_some_and(|known| known.revoked_at.is_none()) {
                self.parts.artifacts.put_tag(&mut batch, &addition.tag, addition.artifact.name())?;
            } else {
                new.push(addition);
            }
        }
        if new.is_empty() {
            self.parts.store.commit(batch).await?;
            return Ok(Outcome::Unchanged);
        }
        let request = self.extended(&current, new, Vec::new()).await?;
        self.publish_or_wait(&mut current, request, batch).await
    }

    /// Takes an artifact out, and records that it is revoked. Devices are refused it at once, whoever has to sign.
    pub async fn revoke(&self, artifact: &Artifact) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        let mut batch = Batch::new();
        self.parts.artifacts.put(&mut batch, artifact)?;
        if self.demand_not_behind(&current).is_err() {
            return Ok(self.parts.store.commit(batch).await?);
        }
        match self.extended(&current, Vec::new(), vec![artifact.clone()]).await {
            Ok(request) => self.publish_or_wait(&mut current, request, batch).await.map(drop),
            Err(error) => {
                self.parts.store.commit(batch).await?;
                Err(error)
            }
        }
    }

    /// Changes the keys of a role: at once where the keys for it are here, else by a signing request.
    pub async fn change_keys(
        &self,
        change: &RootChange,
        made: Option<SigningKey>,
    ) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        if current.pending.is_some() {
            return Err(PublishingError::Waiting);
        }
        let now = self.parts.clock.now();
        let root = change.apply(current.trust.chain.current(), end_of(now, self.parts.lifetimes.root))?;
        if let Some(key) = made {
            self.parts.vault.put_key(NAME, change.role.name(), &key)?;
            current.trust.ring.insert(key);
        }
        let renew = if change.role == Role::Targets { plan::Renew::All } else { plan::Renew::Nothing };
        let work = Work { renew, root: Some(root), ..Work::default() };
        let reason = format!("the keys of {} change", change.role);
        let request = self.draft(&current, &work, vec![reason]).await?;
        self.publish_or_wait(&mut current, request, Batch::new()).await
    }

    /// What waits for signatures.
    pub async fn waiting(&self) -> Result<Option<Waiting>, PublishingError> {
        let current = self.current.lock().await;
        let Some(request) = current.pending.clone() else {
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

    /// Drops what waits for signatures.
    pub async fn drop_request(&self, id: &str) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        current.pending.as_ref().filter(|request| request.id == id).ok_or(PublishingError::NoRequest)?;
        let mut batch = Batch::new();
        batch.delete(REQUESTS, NAME);
        self.parts.store.commit(batch).await?;
        current.pending = None;
        Ok(())
    }

    /// Takes signatures for what waits, each verified; once it has enough, it is published. The artifacts that exist then.
    pub async fn attach(
        &self,
        id: &str,
        signatures: Vec<(String, Signature)>,
    ) -> Result<Option<Vec<Artifact>>, PublishingError> {
        let mut current = self.current.lock().await;
        let pending = current.pending.clone().filter(|request| request.id == id);
        let mut request = pending.ok_or(PublishingError::NoRequest)?;
        for (role, signature) in signatures {
            request.attach(current.trust.chain.current(), &role, signature)?;
        }
        let added = request.additions.iter().map(|addition| addition.artifact.clone()).collect();
        let outcome = self.publish_or_wait(&mut current, request, Batch::new()).await?;
        Ok((outcome == Outcome::Signed).then_some(added))
    }

    /// Signs again what is half-way to its end.
    pub async fn resign(&self) -> Result<(), PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        let now = self.parts.clock.now();
        let lifetimes = self.parts.lifetimes;
        let aged = |state: &Listed| is_ageing(state.expires, now, lifetimes.targets);
        let root = current.trust.chain.current();
        let online = current.trust.ring.suffices(&root.roles.targets);
        if current.pending.is_none() && online && current.published.roles.values().any(aged) {
            let work = Work { renew: plan::Renew::Aged(now, lifetimes.targets), ..Work::default() };
            let request = self.draft(&current, &work, Vec::new()).await?;
            return self.publish(&mut current, request, Batch::new()).await;
        }
        let published = &current.published;
        if is_ageing(published.snapshot.expires, now, lifetimes.snapshot) {
            let request = self.request(Vec::new(), Vec::new());
            return self.publish_online(&mut current, request, Batch::new()).await;
        }
        if is_ageing(published.timestamp.expires, now, lifetimes.timestamp) {
            let mut batch = Batch::new();
            let next = self.sign_timestamp(&current.trust, published.clone(), now, &mut batch)?;
            self.parts.store.commit(batch).await?;
            current.published = next;
            self.witness(&current)?;
        }
        Ok(())
    }

    /// Asks the operators to renew what only they can sign.
    pub async fn renew(&self) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        self.demand_not_behind(&current)?;
        if current.pending.is_some() {
            return Err(PublishingError::Waiting);
        }
        let work = Work { renew: plan::Renew::All, ..Work::default() };
        let request = self.draft(&current, &work, vec!["renewal".to_owned()]).await?;
        self.publish_or_wait(&mut current, request, Batch::new()).await
    }

    /// When each role's metadata ends; that of the bins is the first of them to end.
    pub async fn expires(&self) -> BTreeMap<&'static str, Time> {
        let current = self.current.lock().await;
        let published = &current.published;
        let targets = published.roles.values().map(|state| state.expires).min();
        BTreeMap::from([
            ("root", current.trust.chain.current().expires),
            ("targets", targets.unwrap_or(published.targets.expires)),
            ("snapshot", published.snapshot.expires),
            ("timestamp", published.timestamp.expires),
        ])
    }

    /// What needs an operator.
    pub async fn warnings(&self) -> Vec<String> {
        let mut warnings = behind_warning(self.behind().await);
        let pending = self.current.lock().await.pending.as_ref().map(|request| request.reasons.len());
        if let Some(changes) = pending {
            warnings.push(format!("{changes} changes of images wait for signatures (facade keys sign)"));
        }
        let now = self.parts.clock.now();
        let expires = self.expires().await;
        for (role, lifetime, remedy) in [
            ("root", self.parts.lifetimes.root, "facade keys rotate images root, or a ceremony"),
            ("targets", self.parts.lifetimes.targets, "facade keys renew"),
        ] {
            let end = expires.get(role).filter(|end| is_ageing(**end, now, lifetime / 2));
            warnings.extend(end.map(|end| format!("images/{role} ends {end} ({remedy})")));
        }
        warnings
    }

    /// Holds what a device has seen against what we remember.
    pub async fn observe(&self, device: &DeviceId, seen: RepositoryVersions) -> Result<(), PublishingError> {
        let current = self.current.lock().await;
        let Some(claimed) = Marks::claimed(seen, &marks(&current)) else {
            return Ok(());
        };
        drop(current);
        tracing::error!(device.id = %device, seen = ?claimed, "a device has seen newer images metadata than there is");
        self.parts.witness.claimed(Repository::Images, device, &claimed)
    }

    /// Says that the repository is behind what was published, and by whom it is known.
    pub async fn behind(&self) -> Option<(PublishingError, Marks)> {
        let current = self.current.lock().await;
        let seen = self.parts.witness.marks(Repository::Images);
        self.demand_not_behind(&current).err().map(|error| (error, seen))
    }

    /// By an operator's word: signs everything above what was seen.
    pub async fn recover(&self) -> Result<Outcome, PublishingError> {
        let mut current = self.current.lock().await;
        let seen = self.parts.witness.marks(Repository::Images);
        if seen.root > current.trust.chain.current().version {
            return Err(PublishingError::RootLost { repository: NAME, seen: seen.root });
        }
        let mut raised = current.published.clone();
        raise(&mut raised, &seen);
        let before = std::mem::replace(&mut current.published, raised);
        let work = Work { renew: plan::Renew::All, ..Work::default() };
        let drafted = self.draft(&current, &work, vec!["recovery from an older copy".to_owned()]).await;
        current.published = before;
        let request = Request { floor: Some(seen), ..drafted? };
        self.publish_or_wait(&mut current, request, Batch::new()).await
    }

    /// By an operator's word: what devices claimed to have seen was never published.
    pub async fn dismiss(&self) -> Result<(), PublishingError> {
        let current = self.current.lock().await;
        self.parts.witness.settle(Repository::Images, marks(&current))
    }

    fn demand_not_behind(&self, current: &Current) -> Result<(), PublishingError> {
        let seen = self.parts.witness.marks(Repository::Images);
        let own = marks(current);
        if seen.is_above(&own) {
            let (own, seen) = (own.timestamp, seen.timestamp);
            return Err(PublishingError::Behind { repository: NAME, own, seen });
        }
        Ok(())
    }

    fn witness(&self, current: &Current) -> Result<(), PublishingError> {
        self.parts.witness.published(Repository::Images, &marks(current))
    }
}

fn empty(now: Time, lifetimes: Lifetimes) -> Published {
    let nothing = FileMeta { version: 1, length: None, hashes: None, extra: Map::new() };
    Published {
        targets: Targets {
            version: 0,
            expires: end_of(now, lifetimes.targets),
            targets: BTreeMap::new(),
            delegations: None,
            extra: Map::new(),
        },
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

/// What is to be said of a repository that is behind, and who knows.
pub(super) fn behind_warning(behind: Option<(PublishingError, Marks)>) -> Vec<String> {
    let Some((error, seen)) = behind else {
        return Vec::new();
    };
    let devices: Vec<String> = seen.claimed_by.iter().map(ToString::to_string).collect();
    let known = if devices.is_empty() { "witness.json".to_owned() } else { devices.join(", ") };
    vec![format!("{error}; known from {known}")]
}

/// The version in the name of a root file.
pub(super) fn root_version(name: &str) -> Option<u64> {
    name.strip_suffix(".root.json")?.parse().ok()
}

/// The name of an artifact as the path of a target.
pub(super) fn target_path(name: &ArtifactName) -> Result<TargetPath, PublishingError> {
    name.to_string().parse().map_err(|_| PublishingError::Name(name.to_string()))
}

fn target(artifact: &Artifact) -> Target {
    let root = &artifact.closure.root;
    let mut custom = Map::new();
    custom.insert("media_type".to_owned(), root.media_type.to_string().into());
    custom.insert("platforms".to_owned(), Value::from(artifact.platform_names()));
    custom.insert("size_bytes".to_owned(), artifact.closure.size_bytes().into());
    Target::new(root.digest, root.size, custom)
}
