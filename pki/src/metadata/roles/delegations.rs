//! Delegations of a targets document (TUF 4.5): which role may list which targets.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::{Flaw, check_keys, check_role};
use crate::key::{KeyId, PublicKey};
use crate::metadata::names::{RoleName, TargetPath};

/// Most roles that one targets document may delegate to.
pub const MAX_DELEGATIONS: usize = 1024;

/// The roles that a targets document delegates to, in the order in which they are asked, and their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegations {
    /// The keys of all delegated roles.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// The roles.
    pub roles: Vec<DelegatedRole>,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Delegations {
    pub(super) fn check(&self) -> Result<(), Flaw> {
        check_keys(&self.keys)?;
        if self.roles.len() > MAX_DELEGATIONS {
            return Err(Flaw::TooMany { what: "delegations", limit: MAX_DELEGATIONS });
        }
        let mut names = BTreeSet::new();
        for role in &self.roles {
            check_role(role.name.as_str(), &role.keyids, role.threshold)?;
            role.check_scope()?;
            if !names.insert(&role.name) {
                return Err(Flaw::RepeatedRole(role.name.clone()));
            }
        }
        Ok(())
    }
}

/// A role that lists some of its delegator's targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatedRole {
    /// The role's name.
    pub name: RoleName,
    /// The keys, by id.
    pub keyids: Vec<KeyId>,
    /// How many distinct keys of them must have signed.
    pub threshold: u64,
    /// Whether the search ends with this role for every target in its scope.
    pub terminating: bool,
    /// Which targets the role may list.
    #[serde(flatten)]
    pub scope: Scope,
    /// Fields unknown to this version.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Which targets a delegated role may list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Paths that match one of the patterns; `*` and `?` do not cross `/`.
    #[serde(rename = "paths")]
    Paths(Vec<String>),
    /// Paths whose SHA-256 begins with one of these hexadecimal digits.
    #[serde(rename = "path_hash_prefixes")]
    PathHashPrefixes(Vec<String>),
}

impl Scope {
    /// Whether `path` is in scope.
    pub fn covers(&self, path: &TargetPath) -> bool {
        match self {
            Self::Paths(patterns) => patterns.iter().any(|pattern| matches_path(pattern, path.as_str())),
            Self::PathHashPrefixes(prefixes) => {
                let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(path.as_str().as_bytes()));
                prefixes.iter().any(|prefix| hash.starts_with(prefix))
            }
        }
    }
}

impl DelegatedRole {
    fn check_scope(&self) -> Result<(), Flaw> {
        if self.extra.contains_key("paths") || self.extra.contains_key("path_hash_prefixes") {
            return Err(Flaw::TwoScopes(self.name.clone()));
        }
        let hexadecimal = |text: &String| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match &self.scope {
            Scope::PathHashPrefixes(prefixes) if !prefixes.iter().all(hexadecimal) => {
                Err(Flaw::HashPrefix(self.name.clone()))
            }
            Scope::Paths(_) | Scope::PathHashPrefixes(_) => Ok(()),
        }
    }
}

/// Segment by segment, so that no wildcard crosses a `/`.
fn matches_path(pattern: &str, path: &str) -> bool {
    let mut patterns = pattern.split('/');
    let mut segments = path.split('/');
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return true,
            (Some(pattern), Some(segment)) if matches_segment(pattern.as_bytes(), segment.as_bytes()) => {}
            _ => return false,
        }
    }
}

/// Goes back to the last `*` only: quadratic at worst, so that no pattern can stall a device.
fn matches_segment(mut pattern: &[u8], mut text: &[u8]) -> bool {
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern.split_first(), text.split_first()) {
            (Some((b'*', rest)), _) => {
                retry = Some((rest, text));
                pattern = rest;
                continue;
            }
            (Some((wanted, rest)), Some((found, text_rest))) if *wanted == b'?' || wanted == found => {
                pattern = rest;
                text = text_rest;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        // Let the last `*` take one character more.
        let Some((after_star, tried)) = retry else {
            return false;
        };
        let Some((_, shorter)) = tried.split_first() else {
            return false;
        };
        retry = Some((after_star, shorter));
        pattern = after_star;
        text = shorter;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Document as _, Targets};
    use super::*;

    #[test]
    fn wildcards_do_not_cross_separators() {
        for (pattern, path, fits) in [
            ("*", "a", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("releases/*/x-?.zip", "releases/y/x-1.zip", true),
            ("releases/*/x-?.zip", "releases/y/x-12.zip", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b", false),
            ("A", "a", false),
            ("[ab]", "a", false),
            ("[ab]", "[ab]", true),
            ("", "a", false),
            ("a/", "a", false),
            ("**", "ab", true),
            ("?", "/", false),
        ] {
            assert_eq!(matches_path(pattern, path), fits, "{pattern} {path}");
        }
    }

    #[test]
    fn hostile_patterns_cost_little() {
        let pattern = "*a".repeat(200);
        assert!(!matches_path(&pattern, &"a".repeat(199)));
        assert!(!matches_path(&pattern, &format!("{}b", "a".repeat(511))));
    }

    fn delegation(change: impl FnOnce(&mut Value)) -> Result<Result<(), Flaw>, serde_json::Error> {
        let key = crate::key::SigningKey::from_seed(&[1; 32]);
        let id = key.public().id();
        let mut value = json!({
            "version": 1, "expires": "2027-01-01T00:00:00Z", "targets": {},
            "delegations": {
                "keys": {id.to_string(): key.public()},
                "roles": [{"name": "a", "keyids": [id], "threshold": 1, "terminating": false, "paths": ["*"]}],
            },
        });
        change(&mut value["delegations"]["roles"]);
        serde_json::from_value::<Targets>(value).map(|targets| targets.check())
    }

    #[test]
    fn rejects_delegations_that_no_document_may_have() {
        assert_eq!(delegation(|_| {}).unwrap(), Ok(()));
        let flaw = |change: &dyn Fn(&mut Value)| delegation(change).unwrap().unwrap_err();
        assert_eq!(flaw(&|roles| roles[0]["threshold"] = 0.into()), Flaw::Threshold("a".into()));
        let twice = |value: &mut Value| {
            let first = value[0].clone();
            value.as_array_mut().unwrap().push(first);
        };
        assert!(matches!(flaw(&twice), Flaw::RepeatedRole(_)));
        assert!(matches!(flaw(&|roles| twice(&mut roles[0]["keyids"])), Flaw::RepeatedKey { .. }));
        assert!(matches!(flaw(&|roles| roles[0]["path_hash_prefixes"] = json!(["0"])), Flaw::TwoScopes(_)));
        let upper = |roles: &mut Value| {
            roles[0].as_object_mut().unwrap().remove("paths");
            roles[0]["path_hash_prefixes"] = json!(["A"]);
        };
        assert!(matches!(flaw(&upper), Flaw::HashPrefix(_)));
        let many = |roles: &mut Value| {
            let role = |number| json!({"name": format!("r{number}"), "keyids": [], "threshold": 1, "terminating": false, "paths": []});
            *roles = (0..=MAX_DELEGATIONS).map(role).collect();
        };
        assert!(matches!(flaw(&many), Flaw::TooMany { .. }));
    }

    #[test]
    fn rejects_names_of_delegated_roles_that_could_take_another_file() {
        for name in ["root", "timestamp", "snapshot", "targets", "", "a\u{0}b", "a\nb", "é"] {
            assert!(delegation(|roles| roles[0]["name"] = name.into()).is_err(), "{name:?}");
        }
        assert!(delegation(|roles| roles[0]["name"] = "x".repeat(129).into()).is_err());
        assert!(delegation(|roles| roles[0]["name"] = "/".repeat(100).into()).is_err());
        assert!(delegation(|roles| drop(roles[0].as_object_mut().unwrap().remove("paths"))).is_err());
    }
}
