//! Publishing over years, over crashes, and under the eyes of an operator who believes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pki::key::SigningKey;
use pki::metadata::publish::sign;
use pki::metadata::roles::{Target, Targets};
use serde_json::Map;

use super::images::{Images, Outcome, Parts};
use super::review::{Review, ReviewError, Seen, Side, review};
use super::trust::{Role, RootChain, RootChange};
use super::witness::Witness;
use super::{Lifetimes, bins};
use crate::catalog::artifacts::Artifacts;
use crate::clock::Clock;
use crate::init::{self, DataDir, Options, Vault};
use crate::store::Store;
use crate::store::sled::SledStore;

const DAY: u64 = 24 * 3600;

struct Rig {
    directory: tempfile::TempDir,
    store: Arc<dyn Store>,
    clock: Clock,
}

fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            data_dir: directory.path().join("data"),
            hostnames: vec!["localhost".to_owned()],
            trust_domain: None,
            offline: None,
            now: now(),
        };
        init::init(&options).unwrap();
        let (store, _) =
            SledStore::open(&directory.path().join("store"), &directory.path().join("dumps")).unwrap();
        Self {
            directory,
            store: Arc::new(store),
            clock: Clock::manual(now()),
        }
    }

    fn vault(&self) -> Vault {
        Vault::new(&self.directory.path().join("data"))
    }

    async fn open(&self) -> Images {
        let days = |days: u64| std::time::Duration::from_secs(days * DAY);
        let data = DataDir::open(&self.directory.path().join("data"), None).unwrap();
        let parts = Parts {
            store: Arc::clone(&self.store),
            artifacts: Artifacts::new(Arc::clone(&self.store)),
            lifetimes: Lifetimes {
                timestamp: days(7),
                snapshot: days(30),
                targets: days(365),
                root: days(1825),
            },
            clock: self.clock.clone(),
            vault: self.vault(),
            witness: Arc::new(Witness::open(self.vault()).unwrap()),
        };
        Images::open(parts, data.images, data.first_targets)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn online_roles_never_come_near_their_end() {
    let rig = Rig::new();
    let images = rig.open().await;
    for day in 1..=800 {
        let at = now().checked_add(SignedDuration::from_hours(24 * day)).unwrap();
        rig.clock.set(at);
        images.resign().await.unwrap();
        for (role, days) in [("timestamp", 3), ("snapshot", 14), ("targets", 182)] {
            let left = images.expires().await[role].as_second() - at.as_second();
            assert!(left >= days * 24 * 3600, "{role} on day {day}: {left}");
        }
    }
    assert!(images.warnings().await.is_empty());
}

#[tokio::test]
async fn says_when_a_root_comes_near_its_end() {
    let rig = Rig::new();
    let images = rig.open().await;
    rig.clock
        .set(now().checked_add(SignedDuration::from_hours(24 * 1500)).unwrap());
    assert!(
        images
            .warnings()
            .await
            .iter()
            .any(|warning| warning.starts_with("images/root ends"))
    );
}

#[tokio::test]
async fn a_crash_between_the_new_root_and_what_it_asks_for_is_completed() {
    for role in [Role::Timestamp, Role::Snapshot, Role::Targets] {
        let rig = Rig::new();
        drop(rig.open().await);
        let data = DataDir::open(&rig.directory.path().join("data"), None).unwrap();
        let root = data.images.chain.current();
        let key = SigningKey::generate().unwrap();
        let change = RootChange {
            role,
            add: vec![key.public().clone()],
            remove: role.keys(root).keyids.clone(),
            threshold: None,
        };
        let next = change.apply(root, root.expires).unwrap();
        let bytes = sign(&next, &data.images.ring.signers(&root.roles.root)).unwrap();
        rig.vault().put_key("images", role.name(), &key).unwrap();
        rig.vault().put_root("images", 2, &bytes).unwrap();
        // The crash was here.
        let images = rig.open().await;
        let timestamp = images.file("timestamp.json").await.unwrap().unwrap();
        let root = DataDir::open(&rig.directory.path().join("data"), None)
            .unwrap()
            .images
            .chain;
        assert_eq!(root.current().version, 2);
        let limits = pki::metadata::Limits::default();
        let timestamp = pki::metadata::trusted::stored_timestamp(root.current(), &timestamp, &limits);
        assert_eq!(timestamp.unwrap().version, 2, "{role}");
        drop(images);
        let again = rig.open().await;
        assert_eq!(again.root_pin().await.version.get(), 2);
    }
}

#[tokio::test]
async fn rejects_a_change_that_nobody_could_sign() {
    let rig = Rig::new();
    let images = rig.open().await;
    let change = |add, remove, threshold| RootChange {
        role: Role::Targets,
        add,
        remove,
        threshold,
    };
    assert!(
        images
            .change_keys(&change(vec![], vec![], Some(2)), None)
            .await
            .is_err()
    );
    assert!(
        images
            .change_keys(&change(vec![], vec![], Some(0)), None)
            .await
            .is_err()
    );
    let root_key = images.with_trust(|trust| {
        let root = trust.chain.current();
        root.keys[&root.roles.root.keyids[0]].clone()
    });
    // One key for two roles would make the lesser role worth as much as the greater.
    assert!(
        images
            .change_keys(&change(vec![root_key.await], vec![], None), None)
            .await
            .is_err()
    );
    assert_eq!(images.renew().await.unwrap(), Outcome::Signed);
}

/// A repository with one targets key, as an operator sees it.
struct Desk {
    key: SigningKey,
    chain: RootChain,
}

impl Desk {
    fn new() -> Self {
        let rig = Rig::new();
        let data = DataDir::open(&rig.directory.path().join("data"), None).unwrap();
        let key = std::fs::read_to_string(rig.directory.path().join("data/keys/images-targets.key")).unwrap();
        let seed = pki::x509::pem::ed25519_seed(&key).unwrap();
        Self {
            key: SigningKey::from_seed(&seed),
            chain: data.images.chain,
        }
    }

    fn file(&self, version: u64, names: &[(&str, &str)]) -> String {
        String::from_utf8(sign(&targets(version, names), &[&self.key]).unwrap()).unwrap()
    }

    fn review(&self, role: &str, base: &str, draft: &str) -> Result<Review, ReviewError> {
        let side = Side {
            role,
            draft,
            base: Some(base),
        };
        review(&self.chain, &[side], None, &Seen::default())
    }
}

fn targets(version: u64, names: &[(&str, &str)]) -> Targets {
    let entry = |(name, content): &(&str, &str)| {
        let digest = pki::digest::Digest::sha256(content.as_bytes());
        (
            name.parse().unwrap(),
            Target::new(digest, content.len() as u64, Map::new()),
        )
    };
    Targets {
        version,
        expires: now(),
        targets: names.iter().map(entry).collect(),
        delegations: None,
        extra: Map::new(),
    }
}

#[test]
fn shows_what_is_added_and_what_is_taken_away() {
    let desk = Desk::new();
    let base = desk.file(1, &[("a", "1"), ("b", "2")]);
    let found = desk
        .review("targets", &base, &desk.file(2, &[("b", "2"), ("c", "3")]))
        .unwrap();
    assert_eq!(
        (found.added, found.removed),
        (vec!["c".parse().unwrap()], vec!["a".parse().unwrap()])
    );
}

#[test]
fn rejects_other_bytes_under_a_name_that_exists() {
    let desk = Desk::new();
    let refused = desk.review(
        "targets",
        &desk.file(1, &[("a", "1")]),
        &desk.file(2, &[("a", "2")]),
    );
    assert!(matches!(refused, Err(ReviewError::Changed(_))));
}

#[test]
fn rejects_a_base_that_was_not_signed_by_the_trusted_keys() {
    let desk = Desk::new();
    let other = SigningKey::generate().unwrap();
    let base = String::from_utf8(sign(&targets(1, &[("evil", "1")]), &[&other]).unwrap()).unwrap();
    let refused = desk.review("targets", &base, &desk.file(2, &[("evil", "1")]));
    assert!(matches!(refused, Err(ReviewError::Base { .. })));
}

#[test]
fn rejects_a_version_that_is_not_above_the_current() {
    let desk = Desk::new();
    let refused = desk.review("targets", &desk.file(2, &[]), &desk.file(2, &[]));
    assert!(matches!(refused, Err(ReviewError::Version { .. })));
}

#[test]
fn rejects_an_older_state_shown_as_current() {
    let desk = Desk::new();
    let (base, draft) = (desk.file(3, &[]), desk.file(9, &[]));
    let seen = Seen {
        published: BTreeMap::from([("targets".to_owned(), 4)]),
        signed: BTreeMap::new(),
    };
    let side = Side {
        role: "targets",
        draft: &draft,
        base: Some(&base),
    };
    let refused = review(&desk.chain, &[side], None, &seen);
    assert!(matches!(refused, Err(ReviewError::Rollback { .. })));
}

#[test]
fn rejects_an_entry_in_a_bin_where_it_does_not_belong() {
    let desk = Desk::new();
    let path = "a".parse().unwrap();
    let wrong = bins::all().find(|bin| *bin != bins::of(&path)).unwrap();
    let refused = desk.review(&wrong, &desk.file(1, &[]), &desk.file(2, &[("a", "1")]));
    assert!(matches!(refused, Err(ReviewError::Misplaced { .. })));
}

#[test]
fn rejects_a_delegation_to_others() {
    let desk = Desk::new();
    let mut draft = targets(2, &[]);
    let mut delegations = bins::delegations(desk.chain.current()).unwrap();
    let thief = SigningKey::generate().unwrap();
    delegations
        .keys
        .insert(thief.public().id(), thief.public().clone());
    delegations.roles[0].keyids = vec![thief.public().id()];
    draft.delegations = Some(delegations);
    let draft = String::from_utf8(sign(&draft, &[&desk.key]).unwrap()).unwrap();
    let refused = desk.review("targets", &desk.file(1, &[]), &draft);
    assert!(matches!(refused, Err(ReviewError::Delegation(_))));
}

#[test]
fn rejects_a_role_that_is_not_of_this_repository() {
    let desk = Desk::new();
    let refused = desk.review("ci", &desk.file(1, &[]), &desk.file(2, &[]));
    assert!(matches!(refused, Err(ReviewError::Role(_))));
}
