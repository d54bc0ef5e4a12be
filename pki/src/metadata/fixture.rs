//! A small repository for the tests of this module: keys, documents, and the files that a server would have.

use std::collections::BTreeMap;

use jiff::Timestamp as Time;
use serde_json::{Map, Value, json};

use super::names::TargetPath;
use super::publish::{Successor as _, sign};
use super::refresh::{Fetched, Refresh, Step, Stored};
use super::roles::{
    DelegatedRole, Delegations, Document, FileMeta, RoleKeys, Root, RootRoles, Scope, Snapshot, Target,
    Targets, Timestamp, TimestampMeta,
};
use super::{Limits, MetadataError, TrustedSet};
use crate::digest::Digest;
use crate::key::SigningKey;

pub(crate) const NOW: &str = "2026-11-20T12:00:00Z";
pub(crate) const LATER: &str = "2027-11-20T12:00:00Z";
pub(crate) const PAST: &str = "2026-11-20T11:59:59Z";

pub(crate) fn time(text: &str) -> Time {
    text.parse().unwrap()
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

pub(crate) fn path(text: &str) -> TargetPath {
    text.parse().unwrap()
}

pub(crate) fn target(content: &[u8]) -> Target {
    Target::new(Digest::sha256(content), content.len() as u64, Map::new())
}

/// Everything a repository is made of. Tests change it, call `publish_…`, and refresh a client from `files`.
pub(crate) struct Repository {
    pub(crate) root: Root,
    pub(crate) timestamp: Timestamp,
    pub(crate) snapshot: Snapshot,
    pub(crate) targets: Targets,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) root_keys: Vec<SigningKey>,
    pub(crate) timestamp_keys: Vec<SigningKey>,
    pub(crate) snapshot_keys: Vec<SigningKey>,
    pub(crate) targets_keys: Vec<SigningKey>,
    seeds: [u8; 4],
}

impl Repository {
    pub(crate) fn new() -> Self {
        Self::signed_by([1, 2, 3, 4])
    }

    /// A repository whose root, timestamp, snapshot and targets have these keys.
    pub(crate) fn signed_by(seeds: [u8; 4]) -> Self {
        let keys = seeds.map(key);
        let [root, timestamp, snapshot, targets] = &keys;
        let role = |key: &SigningKey| RoleKeys::new(&[key.public()], 1);
        let (expires, extra) = (time(LATER), Map::new());
        let mut repository = Self {
            root: Root {
                version: 1,
                expires,
                consistent_snapshot: true,
                keys: keys.iter().map(|key| (key.public().id(), key.public().clone())).collect(),
                roles: RootRoles {
                    root: role(root),
                    timestamp: role(timestamp),
                    snapshot: role(snapshot),
                    targets: role(targets),
                    extra: Map::new(),
                },
                extra: extra.clone(),
            },
            timestamp: Timestamp {
                version: 0,
                expires,
                meta: TimestampMeta { snapshot: FileMeta::of(1, b"") },
                extra: extra.clone(),
            },
            snapshot: Snapshot { version: 0, expires, meta: BTreeMap::new(), extra: extra.clone() },
            targets: Targets { version: 0, expires, targets: BTreeMap::new(), delegations: None, extra },
            files: BTreeMap::new(),
            root_keys: vec![key(seeds[0])],
            timestamp_keys: vec![key(seeds[1])],
            snapshot_keys: vec![key(seeds[2])],
            targets_keys: vec![key(seeds[3])],
            seeds,
        };
        repository.publish_root();
        repository.publish();
        repository
    }

    /// Signs the root as it stands.
    pub(crate) fn publish_root(&mut self) {
        let bytes = signed(&self.root, &self.root_keys);
        self.files.insert(format!("{}.root.json", self.root.version), bytes);
    }

    /// A new version of targets, snapshot and timestamp.
    pub(crate) fn publish(&mut self) {
        self.targets = self.targets.successor(self.targets.expires);
        self.put_targets();
        self.publish_snapshot();
    }

    /// Signs the targets as they stand and lists them in the snapshot that is to come.
    pub(crate) fn put_targets(&mut self) {
        let bytes = signed(&self.targets, &self.targets_keys);
        let version = self.targets.version;
        self.snapshot.meta.insert("targets.json".into(), FileMeta::of(version, &bytes));
        self.files.insert(format!("{version}.targets.json"), bytes);
    }

    /// A new version of snapshot and timestamp.
    pub(crate) fn publish_snapshot(&mut self) {
        self.snapshot = self.snapshot.successor(self.snapshot.expires);
        self.put_snapshot();
        self.publish_timestamp();
    }

    pub(crate) fn put_snapshot(&mut self) {
        let bytes = signed(&self.snapshot, &self.snapshot_keys);
        let version = self.snapshot.version;
        self.timestamp.meta.snapshot = FileMeta::of(version, &bytes);
        self.files.insert(format!("{version}.snapshot.json"), bytes);
    }

    /// A new version of the timestamp.
    pub(crate) fn publish_timestamp(&mut self) {
        self.timestamp = self.timestamp.successor(self.timestamp.expires);
        self.put_timestamp();
    }

    pub(crate) fn put_timestamp(&mut self) {
        self.files.insert("timestamp.json".into(), signed(&self.timestamp, &self.timestamp_keys));
    }

    /// Signs a delegated role's document and lists it in the snapshot that is to come.
    pub(crate) fn put_delegated(&mut self, role: &str, document: &Targets, keys: &[SigningKey]) {
        let bytes = signed(document, keys);
        let version = document.version;
        self.snapshot.meta.insert(format!("{role}.json"), FileMeta::of(version, &bytes));
        self.files.insert(format!("{version}.{}.json", super::names::quote(role)), bytes);
    }

    /// Publishes targets, snapshot and timestamp as they stand, each as version 1. The lists have no hashes, so that it is
    /// the signatures and the rules that have to refuse what is changed afterwards.
    pub(crate) fn publish_bare(&mut self) {
        (self.targets.version, self.snapshot.version, self.timestamp.version) = (1, 1, 1);
        self.put_targets();
        for meta in self.snapshot.meta.values_mut() {
            (meta.length, meta.hashes) = (None, None);
        }
        self.put_snapshot();
        (self.timestamp.meta.snapshot.length, self.timestamp.meta.snapshot.hashes) = (None, None);
        self.put_timestamp();
    }

    /// A next root that says the same.
    pub(crate) fn publish_next_root(&mut self) {
        self.root = self.root.successor(self.root.expires);
        self.publish_root();
    }

    /// The first key of a role; a delegated one has it from its name.
    pub(crate) fn key_of(&self, role: &str) -> SigningKey {
        let [root, timestamp, snapshot, targets] = self.seeds;
        match role {
            "root" => key(root),
            "timestamp" => key(timestamp),
            "snapshot" => key(snapshot),
            "targets" => key(targets),
            other => delegated_key(other),
        }
    }

    /// The file in which a role is served.
    pub(crate) fn file_of(&self, role: &str) -> String {
        match role {
            "root" => format!("{}.root.json", self.root.version),
            "timestamp" => "timestamp.json".to_owned(),
            "snapshot" => format!("{}.snapshot.json", self.snapshot.version),
            other => format!("{}.{other}.json", self.snapshot.meta[&format!("{other}.json")].version),
        }
    }

    /// A file as it is served, read as JSON.
    pub(crate) fn read(&self, file: &str) -> Value {
        serde_json::from_slice(&self.files[file]).unwrap()
    }

    /// Changes what the file of a role says, and signs it again with the role's own key.
    pub(crate) fn resign(&mut self, role: &str, change: impl FnOnce(&mut Value)) {
        let file = self.file_of(role);
        let mut signed = self.read(&file)["signed"].clone();
        change(&mut signed);
        let bytes = forged(&self.key_of(role), &signed).unwrap();
        self.files.insert(file, bytes);
    }

    /// Changes the signatures under the file of a role.
    pub(crate) fn change_signatures(&mut self, role: &str, change: impl FnOnce(&mut Vec<Value>)) {
        let file = self.file_of(role);
        let mut parsed = self.read(&file);
        change(parsed["signatures"].as_array_mut().unwrap());
        self.files.insert(file, serde_json::to_vec(&parsed).unwrap());
    }

    /// Changes where a role is listed with its keys: in the root, or as the first that its delegator lists.
    pub(crate) fn change_keys(&mut self, role: &str, change: impl FnOnce(&mut Value)) {
        let delegator = delegator_of(role);
        let pointer = match delegator {
            "root" => format!("/roles/{role}"),
            _ => "/delegations/roles/0".to_owned(),
        };
        self.resign(delegator, |signed| change(signed.pointer_mut(&pointer).unwrap()));
    }

    pub(crate) fn stored(&self) -> Stored {
        Stored { root: self.files["1.root.json"].clone(), ..Stored::default() }
    }
}

/// Who names the keys of a role, where the top-level targets are the only delegator.
pub(crate) fn delegator_of(role: &str) -> &'static str {
    match role {
        "root" | "timestamp" | "snapshot" | "targets" => "root",
        _ => "targets",
    }
}

/// The key of a delegated role.
pub(crate) fn delegated_key(role: &str) -> SigningKey {
    key(role.bytes().fold(60, u8::wrapping_add))
}

/// Signs any text as the owner of a key could.
pub(crate) fn forged(key: &SigningKey, signed: &Value) -> Option<Vec<u8>> {
    let message = crate::canonical::object_to_bytes(signed.as_object()?).ok()?;
    let signature = key.sign(&message);
    let sig = data_encoding::HEXLOWER.encode(&signature.bytes);
    let envelope = json!({"signed": signed, "signatures": [{"keyid": signature.keyid, "sig": sig}]});
    serde_json::to_vec(&envelope).ok()
}

pub(crate) fn signed<T: Document>(document: &T, keys: &[SigningKey]) -> Vec<u8> {
    sign(document, &keys.iter().collect::<Vec<_>>()).unwrap()
}

/// An empty targets document of version 1.
pub(crate) fn empty_targets() -> Targets {
    Targets {
        version: 1,
        expires: time(LATER),
        targets: BTreeMap::new(),
        delegations: None,
        extra: Map::new(),
    }
}

/// Adds a delegation by name, key, and path patterns.
pub(crate) fn delegate(document: &mut Targets, role: &str, key: &SigningKey, paths: &[&str]) {
    let delegations = document.delegations.get_or_insert_with(Delegations::default);
    delegations.keys.insert(key.public().id(), key.public().clone());
    delegations.roles.push(DelegatedRole {
        name: role.parse().unwrap(),
        keyids: vec![key.public().id()],
        threshold: 1,
        terminating: false,
        scope: Scope::Paths(paths.iter().map(|&path| path.to_owned()).collect()),
        extra: Map::new(),
    });
}

/// A client: what it has stored and what it has asked for.
#[derive(Clone, Default)]
pub(crate) struct Client {
    pub(crate) stored: Stored,
    pub(crate) requests: Vec<String>,
}

impl Client {
    pub(crate) fn new(repository: &Repository) -> Self {
        Self { stored: repository.stored(), requests: Vec::new() }
    }

    pub(crate) fn refresh(&mut self, repository: &Repository) -> Result<TrustedSet, MetadataError> {
        self.refresh_at(&repository.files, time(NOW))
    }

    pub(crate) fn refresh_at(
        &mut self,
        files: &BTreeMap<String, Vec<u8>>,
        now: Time,
    ) -> Result<TrustedSet, MetadataError> {
        self.requests.clear();
        let mut refresh = Refresh::new(self.stored.clone(), now, Limits::default())?;
        loop {
            match refresh.step()? {
                Step::Fetch { file, .. } => {
                    refresh.answer(files.get(&file).cloned().map_or(Fetched::Absent, Fetched::Bytes));
                    self.requests.push(file);
                }
                Step::Done => return refresh.into_trusted(),
                step @ (Step::Store { .. } | Step::Remove { .. }) => self.keep(step),
            }
        }
    }

    /// Seeks a target and gives the content of its entry's hashes as text.
    pub(crate) fn seek(
        &mut self,
        set: &mut TrustedSet,
        files: &BTreeMap<String, Vec<u8>>,
        sought: &str,
    ) -> Result<Option<super::lookup::TrustedTarget>, MetadataError> {
        self.requests.clear();
        let mut lookup = set.lookup(path(sought));
        loop {
            match lookup.step()? {
                Step::Fetch { file, .. } => {
                    lookup.answer(files.get(&file).cloned().map_or(Fetched::Absent, Fetched::Bytes));
                    self.requests.push(file);
                }
                Step::Done => return lookup.into_target(),
                step @ (Step::Store { .. } | Step::Remove { .. }) => self.keep(step),
            }
        }
    }

    pub(crate) fn keep(&mut self, step: Step) {
        let (file, bytes) = match step {
            Step::Store { file, bytes } => (file, Some(bytes)),
            Step::Remove { file } => (file, None),
            Step::Fetch { .. } | Step::Done => return,
        };
        match file.as_str() {
            "root.json" => self.stored.root = bytes.unwrap(),
            "timestamp.json" => self.stored.timestamp = bytes,
            "snapshot.json" => self.stored.snapshot = bytes,
            "targets.json" => self.stored.targets = bytes,
            _ => {
                self.stored.delegated.insert(file, bytes.unwrap());
            }
        }
    }
}
