//! The director repository: what one device should have.
//!
//! Each device has its own timestamp, snapshot and targets, signed when it asks and something changed: an assignment to
//! a large group costs nothing until its devices come. The root is one for all.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp as Time;
use pki::key::{Signature, SigningKey};
use pki::metadata::roles::{FileMeta, Snapshot, Target, Targets, Timestamp, TimestampMeta};
use pki::metadata::uptane::POLICY;
use pki::oci::ArtifactName;
use pki::wire::{DevicePolicy, RepositoryVersions, RootPin};
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use tokio::sync::Mutex;

use super::images::{Outcome, Parts, behind_warning, root_version, target_path};
use super::request::{REQUESTS, Request, root_draft};
use super::trust::{Role, RootChange, Trust};
use super::witness::{Doubts, Marks, Repository};
use super::{PublishingError, TIMESTAMP_FILE, end_of, is_ageing, sign_with, signed_at, versioned};
use crate::store::{Batch, Table, get_json};

/// Signed files; the key is `DEVICE/FILE`. The roots, which all devices share, lie in the data directory.
const FILES: Table = Table("director-metadata");

/// What is signed for each device.
const SIGNED: Table = Table("director-signed");

/// What counts for all devices.
const COMMON: Table = Table("director-common");

const NAME: &str = "director";

/// The director repository.
pub struct Director {
    parts: Parts,
    /// Its lock is the turn to sign: two requests of one device must not sign one version twice.
    state: Mutex<State>,
}

struct State {
    trust: Trust,
    pending: Option<Request>,
    common: Common,
    /// What devices say they have seen without showing it.
    doubts: Doubts,
}

/// What counts for all devices.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Common {
    /// How often anything was signed.
    sequence: u64,
    /// What no device's version may be below, since an operator said so.
    floor: u64,
}

/// What is signed for one device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Signed {
    /// Version of targets and snapshot, which always change together.
    version: u64,
    timestamp_version: u64,
    artifacts: BTreeSet<ArtifactName>,
    #[serde(default)]
    policy: DevicePolicy,
    /// What the timestamp says of the snapshot.
    snapshot: Option<FileMeta>,
    targets_expire: Time,
    timestamp_expires: Time,
    /// The root under which it was signed.
    #[serde(default)]
    root: u64,
    /// The floor that it is above.
    #[serde(default)]
    floor: u64,
}

impl Director {
    /// Opens the repository.
    pub async fn open(parts: Parts, trust: Trust) -> Result<Self, PublishingError> {
        let common = get_json(&*parts.store, COMMON, NAME).await?.unwrap_or_default();
        let pending: Option<Request> = get_json(&*parts.store, REQUESTS, NAME).await?;
        // What a crash left here after its root had come into force.
        let current = trust.chain.current().version;
        let pending = pending.filter(|request| request.files.iter().any(|draft| draft.version > current));
        let state = Mutex::new(State { trust, pending, common, doubts: Doubts::default() });
        let director = Self { parts, state };
        if let Some((error, _)) = director.behind().await {
            tracing::error!(%error, "nothing is signed");
        }
        Ok(director)
    }

    /// A file as it is served to a device that should have `wanted`.
    pub async fn file(
        &self,
        device: &DeviceId,
        wanted: &BTreeSet<ArtifactName>,
        policy: &DevicePolicy,
        name: &str,
    ) -> Result<Option<Vec<u8>>, PublishingError> {
        if let Some(version) = root_version(name) {
            return Ok(self.state.lock().await.trust.chain.file(version).map(<[u8]>::to_vec));
        }
        if name == TIMESTAMP_FILE {
            self.version(device, wanted, policy).await?;
        }
        Ok(self.parts.store.get(FILES, &format!("{device}/{name}")).await?)
    }

    /// The version of what a device should have; it is signed first where it is not yet.
    pub async fn version(
        &self,
        device: &DeviceId,
        wanted: &BTreeSet<ArtifactName>,
        policy: &DevicePolicy,
    ) -> Result<u64, PublishingError> {
        let mut state = self.state.lock().await;
        let now = self.parts.clock.now();
        let signed = self.signed(device).await?;
        if self.demand_not_behind(&state).is_err() || self.seen().claimed_by.contains(device) {
            // What was signed is still there to be read; the device itself refuses to go back.
            return Ok(signed.version);
        }
        let lifetimes = self.parts.lifetimes;
        let root = state.trust.chain.current().version;
        let mut batch = Batch::new();
        let next = if signed.artifacts != *wanted
            || signed.policy != *policy
            || signed.snapshot.is_none()
            || (signed.root, signed.floor) != (root, state.common.floor)
            || is_ageing(signed.targets_expire, now, lifetimes.snapshot)
        {
            let signed = Signed { policy: policy.clone(), ..signed };
            self.sign_targets(&state, device, wanted, signed, now, &mut batch).await?
        } else if is_ageing(signed.timestamp_expires, now, lifetimes.timestamp) {
            signed
        } else {
            return Ok(signed.version);
        };
        let next = self.sign_timestamp(&state, device, next, now, &mut batch)?;
        batch.put_json(SIGNED, device.as_str(), &next)?;
        let common = Common { sequence: state.common.sequence.saturating_add(1), ..state.common.clone() };
        batch.put_json(COMMON, NAME, &common)?;
        self.parts.store.commit(batch).await?;
        state.common = common;
        let marks = Marks { timestamp: next.timestamp_version, snapshot: next.version, ..marks(&state) };
        self.parts.witness.published(Repository::Director, &marks)?;
        Ok(next.version)
    }

    async fn signed(&self, device: &DeviceId) -> Result<Signed, PublishingError> {
        let signed = get_json(&*self.parts.store, SIGNED, device.as_str()).await?;
        Ok(signed.unwrap_or_default())
    }

    /// What a new device is told to begin with.
    pub async fn root_pin(&self) -> RootPin {
        self.state.lock().await.trust.chain.pin()
    }

    /// Reads whom the repository trusts.
    pub async fn with_trust<T>(&self, read: impl FnOnce(&Trust) -> T) -> T {
        read(&self.state.lock().await.trust)
    }

    /// Changes the keys of a role: at once where the root keys are here, else by a signing request. Devices get
    /// everything signed anew when they next ask.
    pub async fn change_keys(
        &self,
        change: &RootChange,
        made: Option<SigningKey>,
    ) -> Result<Outcome, PublishingError> {
        let mut state = self.state.lock().await;
        self.demand_not_behind(&state)?;
        if state.pending.is_some() {
            return Err(PublishingError::Waiting);
        }
        let now = self.parts.clock.now();
        let next = change.apply(state.trust.chain.current(), end_of(now, self.parts.lifetimes.root))?;
        if let Some(key) = made {
            self.parts.vault.put_key(NAME, change.role.name(), &key)?;
            state.trust.ring.insert(key);
        }
        if change.role != Role::Root && !state.trust.ring.suffices(change.role.keys(&next)) {
            return Err(PublishingError::OnlineOnly);
        }
        let draft = root_draft(&state.trust, &next)?;
        let reasons = vec![format!("the keys of {} change", change.role)];
        let request = Request::new(vec![draft], reasons, now);
        self.publish_or_wait(&mut state, request).await
    }

    /// What waits for signatures.
    pub async fn waiting(&self) -> Option<Request> {
        self.state.lock().await.pending.clone()
    }

    /// Drops what waits for signatures.
    pub async fn drop_request(&self, id: &str) -> Result<(), PublishingError> {
        let mut state = self.state.lock().await;
        state.pending.as_ref().filter(|request| request.id == id).ok_or(PublishingError::NoRequest)?;
        let mut batch = Batch::new();
        batch.delete(REQUESTS, NAME);
        self.parts.store.commit(batch).await?;
        state.pending = None;
        Ok(())
    }

    /// Takes signatures for what waits, each verified. Whether it is published now.
    pub async fn attach(
        &self,
        id: &str,
        signatures: Vec<(String, Signature)>,
    ) -> Result<bool, PublishingError> {
        let mut state = self.state.lock().await;
        let pending = state.pending.clone().filter(|request| request.id == id);
        let mut request = pending.ok_or(PublishingError::NoRequest)?;
        for (role, signature) in signatures {
            request.attach(state.trust.chain.current(), &role, signature)?;
        }
        Ok(self.publish_or_wait(&mut state, request).await? == Outcome::Signed)
    }

    /// Holds what a device has seen against what was signed for it. Only what our own key has signed counts, and it stops
    /// what is signed for this device, not for others.
    pub async fn observe(
        &self,
        device: &DeviceId,
        seen: RepositoryVersions,
        proof: Option<&str>,
    ) -> Result<(), PublishingError> {
        let mut state = self.state.lock().await;
        let signed = self.signed(device).await?;
        let own = Marks { timestamp: signed.timestamp_version, snapshot: signed.version, ..marks(&state) };
        let proven = proof.and_then(|text| Marks::proven(text, state.trust.chain.current(), &own));
        let claimed = Marks::claimed(seen, &own);
        state.doubts.note(device, claimed.filter(|_| proven.is_none()));
        let Some(proven) = proven else { return Ok(()) };
        tracing::error!(device.id = %device, seen = ?proven, "a device shows newer director metadata than there is");
        self.parts.witness.claimed(Repository::Director, device, &proven)
    }

    /// What needs an operator.
    pub async fn warnings(&self) -> Vec<String> {
        let mut warnings = behind_warning(self.behind().await);
        let state = self.state.lock().await;
        warnings.extend(state.doubts.warnings(NAME));
        if state.pending.is_some() {
            warnings.push("a new director root waits for signatures (facade keys sign director)".to_owned());
        }
        let end = state.trust.chain.current().expires;
        if is_ageing(end, self.parts.clock.now(), self.parts.lifetimes.root / 2) {
            warnings
                .push(format!("director/root ends {end} (facade keys rotate director root, or a ceremony)"));
        }
        warnings
    }

    /// Says that the repository, or what was signed for some device, is behind what was published.
    pub async fn behind(&self) -> Option<(PublishingError, Marks)> {
        let state = self.state.lock().await;
        let seen = self.seen();
        match self.demand_not_behind(&state) {
            Err(error) => Some((error, seen)),
            Ok(()) if seen.claimed_by.is_empty() => None,
            Ok(()) => Some((behind(&state, &seen), seen)),
        }
    }

    /// By an operator's word: signs everything above what was seen.
    pub async fn recover(&self) -> Result<Outcome, PublishingError> {
        let mut state = self.state.lock().await;
        let seen = self.seen();
        if seen.root > state.trust.chain.current().version {
            return Err(PublishingError::RootLost { repository: NAME, seen: seen.root });
        }
        let common = Common {
            sequence: state.common.sequence.max(seen.sequence),
            floor: state.common.floor.max(seen.timestamp).max(seen.snapshot),
        };
        let mut batch = Batch::new();
        batch.put_json(COMMON, NAME, &common)?;
        self.parts.store.commit(batch).await?;
        state.common = common;
        self.settle(&state, &seen)
    }

    /// By an operator's word: what devices claimed to have seen was never published.
    pub async fn dismiss(&self) -> Result<(), PublishingError> {
        let state = self.state.lock().await;
        self.settle(&state, &self.seen()).map(drop)
    }

    fn settle(&self, state: &State, seen: &Marks) -> Result<Outcome, PublishingError> {
        let settled = Marks { timestamp: seen.timestamp, snapshot: seen.snapshot, ..marks(state) };
        self.parts.witness.settle(Repository::Director, settled)?;
        Ok(Outcome::Signed)
    }

    fn seen(&self) -> Marks {
        self.parts.witness.marks(Repository::Director)
    }

    fn demand_not_behind(&self, state: &State) -> Result<(), PublishingError> {
        let seen = self.seen();
        let own = marks(state);
        if seen.root > own.root || seen.sequence > own.sequence {
            return Err(behind(state, &seen));
        }
        Ok(())
    }

    async fn publish_or_wait(&self, state: &mut State, request: Request) -> Result<Outcome, PublishingError> {
        let mut batch = Batch::new();
        let complete = request.is_complete(state.trust.chain.current()).map_err(PublishingError::Refused)?;
        if !complete {
            batch.put_json(REQUESTS, NAME, &request)?;
            self.parts.store.commit(batch).await?;
            state.pending = Some(request);
            return Ok(Outcome::Pending);
        }
        for draft in &request.files {
            let mut chain = state.trust.chain.clone();
            chain.push(draft.text.as_bytes()).map_err(PublishingError::Refused)?;
            self.parts.vault.put_root(NAME, draft.version, draft.text.as_bytes())?;
            state.trust.chain = chain;
        }
        batch.delete(REQUESTS, NAME);
        self.parts.store.commit(batch).await?;
        state.pending = None;
        self.parts.witness.published(Repository::Director, &marks(state))?;
        for id in state.trust.ring.unused(&[state.trust.chain.current()], &BTreeSet::new()) {
            state.trust.ring.remove(id);
            self.parts.vault.remove_key(NAME, id)?;
        }
        Ok(Outcome::Signed)
    }

    /// Removes everything signed for a device that was deleted, but not its versions: a device of the same id that
    /// enrolls again may have seen them.
    pub async fn forget(&self, device: &DeviceId) -> Result<(), PublishingError> {
        let _turn = self.state.lock().await;
        let Some(mut signed) = get_json::<Signed>(&*self.parts.store, SIGNED, device.as_str()).await? else {
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
        Ok(self.parts.store.commit(batch).await?)
    }

    async fn sign_targets(
        &self,
        state: &State,
        device: &DeviceId,
        wanted: &BTreeSet<ArtifactName>,
        signed: Signed,
        now: Time,
        batch: &mut Batch,
    ) -> Result<Signed, PublishingError> {
        let version = signed.version.max(state.common.floor) + 1;
        let root = state.trust.chain.current();
        let expires = end_of(now, self.parts.lifetimes.snapshot);
        let mut targets =
            Targets { version, expires, targets: BTreeMap::new(), delegations: None, extra: Map::new() };
        targets.set_device(device.as_str());
        if !signed.policy.is_empty() {
            let policy = serde_json::to_value(&signed.policy);
            let policy =
                policy.map_err(|_| PublishingError::Unreadable { file: format!("{device}/policy") })?;
            targets.extra.insert(POLICY.to_owned(), policy);
        }
        for name in wanted {
            if let Some(target) = self.target(device, name).await? {
                targets.targets.insert(target_path(name)?, target);
            }
        }
        let file = versioned(version, "targets");
        let bytes = sign_with(&targets, "targets", &root.roles.targets, &state.trust.ring)?;
        let meta = BTreeMap::from([("targets.json".to_owned(), FileMeta::of(version, &bytes))]);
        batch.put(FILES, &format!("{device}/{file}"), bytes);
        let snapshot = Snapshot { version, expires, meta, extra: Map::new() };
        let file = versioned(version, "snapshot");
        let bytes = sign_with(&snapshot, "snapshot", &root.roles.snapshot, &state.trust.ring)?;
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
            root: root.version,
            floor: state.common.floor,
            ..signed
        })
    }

    async fn target(
        &self,
        device: &DeviceId,
        name: &ArtifactName,
    ) -> Result<Option<Target>, PublishingError> {
        let artifact = self.parts.artifacts.get(name).await?;
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
        state: &State,
        device: &DeviceId,
        mut signed: Signed,
        now: Time,
        batch: &mut Batch,
    ) -> Result<Signed, PublishingError> {
        let Some(snapshot) = signed.snapshot.clone() else {
            return Err(PublishingError::Unreadable { file: format!("{device}/{TIMESTAMP_FILE}") });
        };
        signed.timestamp_version = signed.timestamp_version.max(state.common.floor) + 1;
        signed.timestamp_expires = end_of(now, self.parts.lifetimes.timestamp);
        let timestamp = Timestamp {
            version: signed.timestamp_version,
            expires: signed.timestamp_expires,
            meta: TimestampMeta { snapshot },
            extra: signed_at(now),
        };
        let keys = &state.trust.chain.current().roles.timestamp;
        let bytes = sign_with(&timestamp, "timestamp", keys, &state.trust.ring)?;
        batch.put(FILES, &format!("{device}/{TIMESTAMP_FILE}"), bytes);
        Ok(signed)
    }
}

fn marks(state: &State) -> Marks {
    Marks { root: state.trust.chain.current().version, sequence: state.common.sequence, ..Marks::default() }
}

fn behind(state: &State, seen: &Marks) -> PublishingError {
    PublishingError::Behind {
        repository: NAME,
        own: state.common.sequence,
        seen: seen.sequence.max(seen.timestamp),
    }
}
