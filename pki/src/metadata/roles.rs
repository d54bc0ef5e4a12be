//! The documents of a TUF repository (TUF 4): root, timestamp, snapshot, targets.
//!
//! Fields that this version does not know stay in `extra`, so that they survive being read and signed again. `_type` and
//! `spec_version` are not fields here: [`super::verify`] checks them and [`super::publish`] writes them.

mod delegations;

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

pub use self::delegations::{DelegatedRole, Delegations, MAX_DELEGATIONS, Scope};
use super::names::{Hashes, RoleName, TargetPath, time};
use crate::canonical::MAX_INTEGER;
use crate::digest::Digest;
use crate::key::{KeyId, PublicKey};

/// Most keys that one role may have.
pub const MAX_KEYS: usize = 64;

/// What a document of the right shape may still have wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Flaw {
    /// Versions count from 1 to 2^53 - 1.
    #[error("version {0} is not between 1 and 2^53 - 1")]
    Version(u64),
    /// A threshold of nothing is met by nobody's signature (go-tuf CVE-2026-23992).
    #[error("role {0:?} has threshold 0")]
    Threshold(String),
    /// A key id is listed twice, and could be counted twice.
    #[error("role {role:?} lists key {keyid} twice")]
    RepeatedKey {
        /// The role.
        role: String,
        /// The key.
        keyid: KeyId,
    },
    /// A key is listed under an id that is not its own.
    #[error("key listed as {listed} has id {computed}")]
    KeyId {
        /// The id it is listed under.
        listed: KeyId,
        /// The id it has.
        computed: KeyId,
    },
    /// There are more of something than any honest document has.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Two delegations have one name.
    #[error("role {0} is delegated to twice")]
    RepeatedRole(RoleName),
    /// A delegation has both kinds of scope, of which a reader might see either.
    #[error("delegation to {0} has both paths and path_hash_prefixes")]
    TwoScopes(RoleName),
    /// A path hash prefix is not lower-case hexadecimal.
    #[error("delegation to {0} has a path hash prefix that is not hexadecimal")]
    HashPrefix(RoleName),
}

/// What all four kinds of document have in common.
pub trait Document: Serialize + DeserializeOwned {
    /// The value of `_type`.
    const TYPE: &'static str;

    /// The version.
    fn version(&self) -> u64;

    /// When the document ends being believed.
    fn expires(&self) -> jiff::Timestamp;

    /// Finds what the types do not rule out.
    fn check(&self) -> Result<(), Flaw>;
}

/// Which keys sign for a role, and how many of them must.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleKeys {
    /// The keys, by id.
    pub keyids: Vec<KeyId>,
    /// How many distinct keys of them must have signed.
    pub threshold: u64,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RoleKeys {
    /// A role of these keys.
    pub fn new(keys: &[&PublicKey], threshold: u64) -> Self {
        let keyids = keys.iter().map(|key| key.id()).collect();
        Self { keyids, threshold, extra: Map::new() }
    }
}

/// The keys and thresholds of the four top-level roles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRoles {
    /// Who signs the next root.
    pub root: RoleKeys,
    /// Who signs the timestamp.
    pub timestamp: RoleKeys,
    /// Who signs the snapshot.
    pub snapshot: RoleKeys,
    /// Who signs the top-level targets.
    pub targets: RoleKeys,
    /// Roles unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The root of trust: who signs what (TUF 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The version.
    pub version: u64,
    /// When it ends being believed.
    #[serde(with = "time")]
    pub expires: jiff::Timestamp,
    /// Whether file names carry versions and hashes.
    #[serde(default)]
    pub consistent_snapshot: bool,
    /// The keys of all roles.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// The top-level roles.
    pub roles: RootRoles,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Document for Root {
    const TYPE: &'static str = "root";

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> jiff::Timestamp {
        self.expires
    }

    fn check(&self) -> Result<(), Flaw> {
        check_version(self.version)?;
        check_keys(&self.keys)?;
        let roles = &self.roles;
        check_role("root", &roles.root.keyids, roles.root.threshold)?;
        check_role("timestamp", &roles.timestamp.keyids, roles.timestamp.threshold)?;
        check_role("snapshot", &roles.snapshot.keyids, roles.snapshot.threshold)?;
        check_role("targets", &roles.targets.keyids, roles.targets.threshold)
    }
}

/// What one metadata file says of another: its version, and optionally its length and hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// The version that the file must have.
    pub version: u64,
    /// The length that it must have.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// The hashes that it must have.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Hashes>,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl FileMeta {
    /// Describes the bytes that are served as `version`.
    pub fn of(version: u64, bytes: &[u8]) -> Self {
        Self {
            version,
            length: Some(bytes.len() as u64),
            hashes: Some(Hashes::of(Digest::sha256(bytes))),
            extra: Map::new(),
        }
    }
}

/// The freshest word of a repository: which snapshot is current (TUF 4.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// The version.
    pub version: u64,
    /// When it ends being believed.
    #[serde(with = "time")]
    pub expires: jiff::Timestamp,
    /// The one file that it describes.
    pub meta: TimestampMeta,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a timestamp describes: the snapshot and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimestampMeta {
    /// The current snapshot.
    #[serde(rename = "snapshot.json")]
    pub snapshot: FileMeta,
}

impl Document for Timestamp {
    const TYPE: &'static str = "timestamp";

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> jiff::Timestamp {
        self.expires
    }

    fn check(&self) -> Result<(), Flaw> {
        check_version(self.version)?;
        check_version(self.meta.snapshot.version)
    }
}

/// Which version of every targets file is current (TUF 4.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The version.
    pub version: u64,
    /// When it ends being believed.
    #[serde(with = "time")]
    pub expires: jiff::Timestamp,
    /// The targets files, by role name and `.json`.
    pub meta: BTreeMap<String, FileMeta>,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Snapshot {
    /// What the snapshot says of the file of `role`.
    pub fn file(&self, role: &str) -> Option<&FileMeta> {
        self.meta.get(&format!("{role}.json"))
    }
}

impl Document for Snapshot {
    const TYPE: &'static str = "snapshot";

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> jiff::Timestamp {
        self.expires
    }

    fn check(&self) -> Result<(), Flaw> {
        check_version(self.version)?;
        self.meta.values().try_for_each(|meta| check_version(meta.version))
    }
}

/// Which targets there are, and to whom the rest is delegated (TUF 4.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// The version.
    pub version: u64,
    /// When it ends being believed.
    #[serde(with = "time")]
    pub expires: jiff::Timestamp,
    /// The targets that this role itself lists.
    pub targets: BTreeMap<TargetPath, Target>,
    /// Other roles that list targets.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub delegations: Option<Delegations>,
    /// Fields unknown to this version; a director's document names its device here.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Targets {
    /// The device that a director's document is for.
    pub fn device(&self) -> Option<&str> {
        self.extra.get("device").and_then(Value::as_str)
    }

    /// Makes this a director's document for one device.
    pub fn set_device(&mut self, device: &str) {
        self.extra.insert("device".to_owned(), device.into());
    }
}

impl Document for Targets {
    const TYPE: &'static str = "targets";

    fn version(&self) -> u64 {
        self.version
    }

    fn expires(&self) -> jiff::Timestamp {
        self.expires
    }

    fn check(&self) -> Result<(), Flaw> {
        check_version(self.version)?;
        self.delegations.as_ref().map_or(Ok(()), Delegations::check)
    }
}

/// One target: what its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Length in bytes.
    pub length: u64,
    /// Hashes.
    pub hashes: Hashes,
    /// What the application says of it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub custom: Option<Map<String, Value>>,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Target {
    /// A target of this digest and length.
    pub fn new(digest: Digest, length: u64, custom: Map<String, Value>) -> Self {
        Self { length, hashes: Hashes::of(digest), custom: Some(custom), extra: Map::new() }
    }
}

fn check_version(version: u64) -> Result<(), Flaw> {
    if (1..=MAX_INTEGER).contains(&version) { Ok(()) } else { Err(Flaw::Version(version)) }
}

/// TUF 4.2: key ids are computed by the reader, so that one key cannot pass for several.
fn check_keys(keys: &BTreeMap<KeyId, PublicKey>) -> Result<(), Flaw> {
    for (listed, key) in keys {
        if *listed != key.id() {
            return Err(Flaw::KeyId { listed: *listed, computed: key.id() });
        }
    }
    Ok(())
}

fn check_role(role: &str, keyids: &[KeyId], threshold: u64) -> Result<(), Flaw> {
    if threshold == 0 {
        return Err(Flaw::Threshold(role.to_owned()));
    }
    if keyids.len() > MAX_KEYS {
        return Err(Flaw::TooMany { what: "keys in a role", limit: MAX_KEYS });
    }
    let mut seen = BTreeSet::new();
    for keyid in keyids {
        if !seen.insert(keyid) {
            return Err(Flaw::RepeatedKey { role: role.to_owned(), keyid: *keyid });
        }
    }
    Ok(())
}

/// A member that may be missing but, when it is there, is not null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rejects_null_where_a_member_is_optional() {
        for field in ["length", "hashes"] {
            let mut value = json!({"version": 1});
            assert!(serde_json::from_value::<FileMeta>(value.clone()).is_ok());
            value[field] = Value::Null;
            assert!(serde_json::from_value::<FileMeta>(value).is_err(), "{field}");
        }
        let target = json!({"length": 1, "hashes": {"sha256": "00"}});
        assert!(serde_json::from_value::<Target>(target).is_err());
        let target = json!({"length": 1, "hashes": {}});
        assert!(serde_json::from_value::<Target>(target).is_err());
        let target = json!({"length": 1, "hashes": {"md5": "x"}, "custom": null});
        assert!(serde_json::from_value::<Target>(target).is_err());
    }
}
