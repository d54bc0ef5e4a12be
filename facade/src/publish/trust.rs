//! Whom a repository trusts: its chain of roots, and the keys for it that are in our hands.
//!
//! Pure. A root joins the chain only as a device would accept it: signed by the keys of the root before it and by its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use jiff::Timestamp;
use pki::key::{KeyId, PublicKey, SigningKey};
use pki::metadata::publish::Successor as _;
use pki::metadata::roles::{RoleKeys, Root};
use pki::metadata::{Limits, MetadataError, Verified, trusted};
use pki::wire::RootPin;
use pki::x509::Fingerprint;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A top-level role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Says who signs what.
    Root,
    /// Says what exists, or what a device should have.
    Targets,
    /// Says which versions belong together.
    Snapshot,
    /// Says that this is the newest.
    Timestamp,
}

/// Not a top-level role.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a role (root, targets, snapshot or timestamp)")]
pub struct RoleError(String);

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Root, Self::Targets, Self::Snapshot, Self::Timestamp];

    /// Its name in metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }

    /// Its keys in a root.
    pub fn keys(self, root: &Root) -> &RoleKeys {
        match self {
            Self::Root => &root.roles.root,
            Self::Targets => &root.roles.targets,
            Self::Snapshot => &root.roles.snapshot,
            Self::Timestamp => &root.roles.timestamp,
        }
    }

    fn keys_mut(self, root: &mut Root) -> &mut RoleKeys {
        match self {
            Self::Root => &mut root.roles.root,
            Self::Targets => &mut root.roles.targets,
            Self::Snapshot => &mut root.roles.snapshot,
            Self::Timestamp => &mut root.roles.timestamp,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| RoleError(text.chars().take(64).collect()))
    }
}

/// The private keys of one repository that are in the facade's hands.
#[derive(Debug, Default)]
pub struct KeyRing(BTreeMap<KeyId, SigningKey>);

impl KeyRing {
    /// Takes a key.
    pub fn insert(&mut self, key: SigningKey) {
        self.0.insert(key.public().id(), key);
    }

    /// Forgets a key.
    pub fn remove(&mut self, id: KeyId) {
        self.0.remove(&id);
    }

    /// Whether a key is here.
    pub fn holds(&self, id: KeyId) -> bool {
        self.0.contains_key(&id)
    }

    /// The keys of a role that are here.
    pub fn signers(&self, role: &RoleKeys) -> Vec<&SigningKey> {
        role.keyids.iter().filter_map(|id| self.0.get(id)).collect()
    }

    /// Whether a threshold of a role's keys is here.
    pub fn suffices(&self, role: &RoleKeys) -> bool {
        self.signers(role).len() as u64 >= role.threshold
    }

    /// The keys that are neither a role's in one of `roots` nor among `others`.
    pub fn unused(&self, roots: &[&Root], others: &BTreeSet<KeyId>) -> Vec<KeyId> {
        let has = |root: &Root, id: &KeyId| Role::ALL.iter().any(|role| role.keys(root).keyids.contains(id));
        let used = |id: &KeyId| others.contains(id) || roots.iter().any(|root| has(root, id));
        self.0.keys().copied().filter(|id| !used(id)).collect()
    }
}

/// All roots of a repository, from the first to the current one.
#[derive(Clone, Debug)]
pub struct RootChain {
    files: BTreeMap<u64, Vec<u8>>,
    current: Verified<Root>,
}

impl RootChain {
    /// Begins with the first root.
    pub fn first(bytes: &[u8]) -> Result<Self, MetadataError> {
        let current = trusted::first_root(bytes, &Limits::default())?;
        let files = BTreeMap::from([(current.version, bytes.to_vec())]);
        Ok(Self { files, current })
    }

    /// Adds the next root.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), MetadataError> {
        self.current = trusted::next_root(&self.current, bytes, &Limits::default())?;
        self.files.insert(self.current.version, bytes.to_vec());
        Ok(())
    }

    /// The root in force.
    pub fn current(&self) -> &Verified<Root> {
        &self.current
    }

    /// One root as it is served.
    pub fn file(&self, version: u64) -> Option<&[u8]> {
        self.files.get(&version).map(Vec::as_slice)
    }

    /// Every root, oldest first.
    pub fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.files.values().map(Vec::as_slice)
    }

    /// What a new device is told to begin with.
    pub fn pin(&self) -> RootPin {
        RootPin {
            version: NonZeroU64::new(self.current.version).unwrap_or(NonZeroU64::MIN),
            sha256: Fingerprint::of(self.current.bytes()),
        }
    }
}

/// Whom a repository trusts, and with which keys we sign for it.
#[derive(Debug)]
pub struct Trust {
    /// Its roots.
    pub chain: RootChain,
    /// Our keys.
    pub ring: KeyRing,
}

/// A change of the keys of one role.
#[derive(Clone, Debug)]
pub struct RootChange {
    /// Whose keys.
    pub role: Role,
    /// New keys.
    pub add: Vec<PublicKey>,
    /// Keys that go.
    pub remove: Vec<KeyId>,
    /// How many must sign from now on; otherwise as many as before.
    pub threshold: Option<u64>,
}

/// Why the keys of a role cannot be changed so.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RootChangeError {
    /// There is no such key in the role.
    #[error("key {0} is not one of the role's")]
    Unknown(KeyId),
    /// The role has the key already.
    #[error("key {0} is one of the role's already")]
    Known(KeyId),
    /// We could not verify what it signs.
    #[error("key {0} is of a kind that cannot be used here")]
    Unusable(KeyId),
    /// The role could not be filled.
    #[error("{threshold} of {keys} keys cannot sign")]
    Threshold {
        /// How many must sign.
        threshold: u64,
        /// How many there would be.
        keys: usize,
    },
    /// A key of this role is stolen more easily than a root's, and must not be worth as much.
    #[error("key {0} has another role already; each role has keys of its own")]
    Shared(KeyId),
}

impl RootChange {
    /// The root after `root`.
    pub fn apply(&self, root: &Root, expires: Timestamp) -> Result<Root, RootChangeError> {
        let mut next = root.successor(expires);
        let mut keyids = self.role.keys(root).keyids.clone();
        for id in &self.remove {
            let before = keyids.len();
            keyids.retain(|keyid| keyid != id);
            if keyids.len() == before {
                return Err(RootChangeError::Unknown(*id));
            }
        }
        for key in &self.add {
            let id = key.id();
            if !key.is_usable() {
                return Err(RootChangeError::Unusable(id));
            }
            if keyids.contains(&id) {
                return Err(RootChangeError::Known(id));
            }
            let elsewhere = Role::ALL.iter().filter(|role| **role != self.role);
            if elsewhere.into_iter().any(|role| role.keys(root).keyids.contains(&id)) {
                return Err(RootChangeError::Shared(id));
            }
            keyids.push(id);
            next.keys.insert(id, key.clone());
        }
        let role = self.role.keys_mut(&mut next);
        let threshold = self.threshold.unwrap_or(role.threshold);
        if threshold == 0 || threshold > keyids.len() as u64 {
            return Err(RootChangeError::Threshold { threshold, keys: keyids.len() });
        }
        role.keyids = keyids;
        role.threshold = threshold;
        let used: Vec<KeyId> = Role::ALL.iter().flat_map(|role| role.keys(&next).keyids.clone()).collect();
        next.keys.retain(|id, _| used.contains(id));
        Ok(next)
    }
}
