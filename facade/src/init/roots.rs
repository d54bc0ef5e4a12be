//! The first root of a repository.

use std::collections::BTreeMap;

use jiff::Timestamp;
use pki::metadata::publish::sign;
use pki::metadata::roles::{RoleKeys, Root, RootRoles};
use serde_json::Map;

use super::load::RepositoryKeys;
use super::{InitError, ROOT_LIFETIME};

/// Version 1 of a root with one key for each role.
pub(super) fn first(keys: &RepositoryKeys, now: Timestamp) -> Result<Vec<u8>, InitError> {
    let publics = [&keys.root, &keys.targets, &keys.snapshot, &keys.timestamp].map(pki::key::SigningKey::public);
    let role = |key: &pki::key::SigningKey| RoleKeys::new(&[key.public()], 1);
    let expires = now.checked_add(ROOT_LIFETIME).unwrap_or(Timestamp::MAX);
    let root = Root {
        version: 1,
        // TUF writes whole seconds.
        expires: Timestamp::from_second(expires.as_second()).unwrap_or(Timestamp::MAX),
        consistent_snapshot: true,
        keys: publics.into_iter().map(|key| (key.id(), key.clone())).collect::<BTreeMap<_, _>>(),
        roles: RootRoles {
            root: role(&keys.root),
            timestamp: role(&keys.timestamp),
            snapshot: role(&keys.snapshot),
            targets: role(&keys.targets),
            extra: Map::new(),
        },
        extra: Map::new(),
    };
    sign(&root, &[&keys.root]).map_err(|error| InitError::generate("root metadata", error))
}
