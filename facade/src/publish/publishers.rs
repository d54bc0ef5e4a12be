//! Publishers: whom the operators let sign for some repositories (delegated targets roles, TUF 4.5).
//!
//! Pure. A publisher's role is terminating and limited by path patterns: for its repositories a device asks nobody else,
//! and about anything else it believes a publisher nothing. What the operators have signed of these repositories before
//! stays in the top-level targets, which are asked first: no publisher can take it back.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use pki::key::PublicKey;
use pki::metadata::roles::{DelegatedRole, Delegations, RoleKeys, Root, Scope, Targets};
use pki::metadata::{RoleName, TargetPath};
use pki::oci::Repository;
use serde::{Deserialize, Serialize};
use serde_json::Map;
use thiserror::Error;

use super::{PublishingError, bins};

/// Most publishers of one facade.
pub const MAX_PUBLISHERS: usize = 256;

/// Most repositories of one publisher.
pub const MAX_REPOSITORIES: usize = 256;

const PREFIX: &str = "publisher-";
const MAX_NAME_BYTES: usize = 63;
/// What follows the repository in the name of an artifact.
const ANY_DIGEST: &str = "@sha256:*";

/// The name of a publisher; that of an operator token may be the same.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublisherName(String);

/// Not the name of a publisher.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not the name of a publisher (expected 1 to {MAX_NAME_BYTES} of a-z, 0-9, '.', '_', '-', the first a letter or digit)"
)]
pub struct PublisherNameError(String);

impl PublisherName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The publisher whose role this is.
    pub fn of_role(role: &str) -> Option<Self> {
        role.strip_prefix(PREFIX)?.parse().ok()
    }

    /// The name of its role in the metadata.
    pub fn role(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }
}

impl FromStr for PublisherName {
    type Err = PublisherNameError;

    fn from_str(text: &str) -> Result<Self, PublisherNameError> {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let allowed = |byte: u8| letter(byte) || matches!(byte, b'.' | b'_' | b'-');
        let fits = text.len() <= MAX_NAME_BYTES
            && text.bytes().next().is_some_and(letter)
            && text.bytes().all(allowed);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(PublisherNameError(text.chars().take(80).collect()))
        }
    }
}

pki::text_newtypes!(PublisherName);

/// One publisher: a key that signs for it, and the repositories that it signs for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publisher {
    /// Its name.
    pub name: PublisherName,
    /// What it may sign.
    pub repositories: BTreeSet<Repository>,
    /// Its key.
    pub key: PublicKey,
}

impl Publisher {
    /// The name of its role.
    pub fn role(&self) -> String {
        self.name.role()
    }

    /// Who signs for it.
    pub fn keys(&self) -> RoleKeys {
        RoleKeys::new(&[&self.key], 1)
    }

    /// Its key as the documents have keys.
    pub fn key_map(&self) -> BTreeMap<pki::key::KeyId, PublicKey> {
        BTreeMap::from([(self.key.id(), self.key.clone())])
    }

    /// Whether it signs for `path`, as a device decides it.
    pub fn covers(&self, path: &TargetPath) -> bool {
        self.scope().covers(path)
    }

    fn scope(&self) -> Scope {
        Scope::Paths(self.repositories.iter().map(|repository| format!("{repository}{ANY_DIGEST}")).collect())
    }

    fn delegated(&self) -> Result<DelegatedRole, PublishingError> {
        let role = self.role();
        let name: RoleName = role.parse().map_err(|_| PublishingError::Name(role))?;
        Ok(DelegatedRole {
            name,
            keyids: vec![self.key.id()],
            threshold: 1,
            terminating: true,
            scope: self.scope(),
            extra: Map::new(),
        })
    }

    /// The publisher that a delegation describes, if it is exactly as we would write it.
    fn read(role: &DelegatedRole, delegations: &Delegations) -> Option<Self> {
        let [keyid] = role.keyids.as_slice() else { return None };
        let Scope::Paths(patterns) = &role.scope else { return None };
        let repositories: Option<BTreeSet<Repository>> =
            patterns.iter().map(|pattern| pattern.strip_suffix(ANY_DIGEST)?.parse().ok()).collect();
        let publisher = Self {
            name: PublisherName::of_role(role.name.as_str())?,
            repositories: repositories?,
            key: delegations.keys.get(keyid)?.clone(),
        };
        publisher.delegated().is_ok_and(|expected| expected == *role).then_some(publisher)
    }
}

/// The publishers that top-level targets name, in the order in which they are asked.
pub fn of(top: &Targets) -> Vec<Publisher> {
    let Some(delegations) = &top.delegations else {
        return Vec::new();
    };
    delegations.roles.iter().filter_map(|role| Publisher::read(role, delegations)).collect()
}

/// The one of them that signs for `path`.
pub fn covering<'a>(publishers: &'a [Publisher], path: &TargetPath) -> Option<&'a Publisher> {
    publishers.iter().find(|publisher| publisher.covers(path))
}

/// All that top-level targets delegate: first the publishers, which end every search that they are asked in, then the
/// bins where there are any. Nothing where there is neither.
pub fn delegations(
    root: &Root,
    publishers: &[Publisher],
    split: bool,
) -> Result<Option<Delegations>, PublishingError> {
    if publishers.is_empty() && !split {
        return Ok(None);
    }
    let mut all = Delegations::default();
    for publisher in publishers {
        all.keys.extend(publisher.key_map());
        all.roles.push(publisher.delegated()?);
    }
    if split {
        let bins = bins::delegations(root)?;
        all.keys.extend(bins.keys);
        all.roles.extend(bins.roles);
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use pki::key::SigningKey;

    use super::*;

    fn publisher(name: &str, repositories: &[&str]) -> Publisher {
        Publisher {
            name: name.parse().unwrap(),
            repositories: repositories.iter().map(|text| text.parse().unwrap()).collect(),
            key: SigningKey::from_seed(&[7; 32]).public().clone(),
        }
    }

    fn path(text: &str) -> TargetPath {
        text.parse().unwrap()
    }

    #[test]
    fn signs_for_its_repositories_and_nothing_beside_them() {
        let publisher = publisher("ci", &["ghcr.io/acme/app", "127.0.0.1:5000/team/app"]);
        let digest = format!("sha256:{}", "a".repeat(64));
        for name in ["ghcr.io/acme/app", "127.0.0.1:5000/team/app"] {
            assert!(publisher.covers(&path(&format!("{name}@{digest}"))), "{name}");
        }
        for name in [
            "ghcr.io/acme/app2",
            "ghcr.io/acme",
            "ghcr.io/acme/app/sub",
            "docker.io/acme/app",
            "ghcr.io/acme/ap",
        ] {
            assert!(!publisher.covers(&path(&format!("{name}@{digest}"))), "{name}");
        }
        assert!(!publisher.covers(&path("trust/facade-ca.pem")));
    }

    #[test]
    fn a_publisher_is_read_back_from_what_is_signed_and_not_from_anything_like_it() {
        let ci = publisher("ci", &["ghcr.io/acme/app"]);
        let mut top = Targets {
            version: 1,
            expires: "2027-01-01T00:00:00Z".parse().unwrap(),
            targets: BTreeMap::new(),
            delegations: None,
            extra: Map::new(),
        };
        let role = ci.delegated().unwrap();
        let with =
            |role: DelegatedRole| Delegations { keys: ci.key_map(), roles: vec![role], extra: Map::new() };
        top.delegations = Some(with(role.clone()));
        assert_eq!(of(&top), vec![ci.clone()]);
        let changes: [fn(&mut DelegatedRole); 4] = [
            |role| role.terminating = false,
            |role| role.scope = Scope::Paths(vec!["*".to_owned()]),
            |role| role.threshold = 2,
            |role| role.name = "helper".parse().unwrap(),
        ];
        for change in changes {
            let mut other = role.clone();
            change(&mut other);
            top.delegations = Some(with(other));
            assert_eq!(of(&top), []);
        }
    }

    #[test]
    fn rejects_names_that_are_no_names() {
        for text in ["", "CI", "-ci", "a b", "a/b", "..", &"x".repeat(64)] {
            assert!(text.parse::<PublisherName>().is_err(), "{text:?}");
        }
        assert_eq!("ci.main_1".parse::<PublisherName>().unwrap().role(), "publisher-ci.main_1");
        assert_eq!(PublisherName::of_role("bin-00"), None);
    }
}
