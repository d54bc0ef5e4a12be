//! The shape of the images targets: one flat list while it is short, then 256 bins by the hash of the path.
//!
//! A bin is signed by the same keys as the top-level targets, so that splitting moves no trust. After the split an import
//! rewrites one bin and the snapshot, whatever the number of artifacts; an up-to-date device fetches only the bins that its
//! own artifacts are in.

use pki::metadata::roles::{DelegatedRole, Delegations, Root, Scope, Targets};
use pki::metadata::{RoleName, TargetPath};
use serde_json::Map;
use sha2::{Digest as _, Sha256};

use super::PublishingError;

/// Most artifacts in one flat list.
pub const FLAT: usize = 64;

/// The bin that lists a path.
pub fn of(path: &TargetPath) -> String {
    let hash = Sha256::digest(path.as_str().as_bytes());
    name(hash.first().copied().unwrap_or_default())
}

/// Every bin.
pub fn all() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(name)
}

/// Whether a role is a bin.
pub fn is_bin(role: &str) -> bool {
    let digits = role.strip_prefix("bin-").unwrap_or_default();
    digits.len() == 2 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn name(first: u8) -> String {
    format!("bin-{first:02x}")
}

/// Whether the top-level targets have bins.
pub fn is_split(top: &Targets) -> bool {
    let roles = top.delegations.as_ref().map(|delegations| delegations.roles.as_slice());
    roles.unwrap_or_default().iter().any(|role| is_bin(role.name.as_str()))
}

/// The delegations to all bins, with the keys of the targets role.
pub fn delegations(root: &Root) -> Result<Delegations, PublishingError> {
    let role = &root.roles.targets;
    let keys = root.keys.iter().filter(|(id, _)| role.keyids.contains(id));
    let mut delegations = Delegations {
        keys: keys.map(|(id, key)| (*id, key.clone())).collect(),
        roles: Vec::new(),
        extra: Map::new(),
    };
    for first in 0..=u8::MAX {
        let name: RoleName = name(first).parse().map_err(|_| PublishingError::Name(name(first)))?;
        delegations.roles.push(DelegatedRole {
            name,
            keyids: role.keyids.clone(),
            threshold: role.threshold,
            // What the hash sends here is nowhere else.
            terminating: true,
            scope: Scope::PathHashPrefixes(vec![format!("{first:02x}")]),
            extra: Map::new(),
        });
    }
    Ok(delegations)
}
