//! Publishing over years, over crashes, and under the eyes of an operator who believes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pki::key::SigningKey;
use pki::metadata::publish::{message, sign};
use pki::metadata::refresh::{Fetched, Refresh, Step, Stored};
use pki::metadata::roles::{Target, Targets};
use pki::metadata::{Limits, MetadataError};
use pki::oci::{ArtifactName, Descriptor};
use pki::wire::RepositoryVersions;
use serde_json::Map;

use super::images::{Images, Outcome, Parts};
use super::publishers::{self, Publisher};
use super::request::{Addition, Desk};
use super::review::{Review, ReviewError, Seen, Side, review};
use super::trust::{Role, RootChain, RootChange};
use super::witness::Witness;
use super::{Lifetimes, PublishingError, bins};
use crate::catalog::artifacts::{Artifact, Artifacts};
use crate::catalog::closure::Closure;
use crate::clock::Clock;
use crate::init::{self, DataDir, Options, Vault};
use crate::secret::Secret;
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
        Self::with(|_| None)
    }

    /// Root and targets keys stay with the operators.
    fn offline() -> Self {
        Self::with(|directory| {
            let passphrase = Secret::new("correct horse battery".to_owned());
            Some(init::Offline { directory: directory.join("operators"), passphrase })
        })
    }

    fn with(offline: impl FnOnce(&std::path::Path) -> Option<init::Offline>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            data_dir: directory.path().join("data"),
            hostnames: vec!["localhost".to_owned()],
            trust_domain: None,
            offline: offline(directory.path()),
            now: now(),
        };
        init::init(&options).unwrap();
        let (store, _) =
            SledStore::open(&directory.path().join("store"), &directory.path().join("dumps")).unwrap();
        Self { directory, store: Arc::new(store), clock: Clock::manual(now()) }
    }

    /// A key that stays with the operators.
    fn operators_key(&self, role: &str) -> SigningKey {
        let path = self.directory.path().join(format!("operators/images-{role}.key"));
        crate::keyfile::open(&path, &Secret::new("correct horse battery".to_owned())).unwrap()
    }

    /// A copy of the database as it is now, every change of which is flushed.
    fn copy_store(&self) -> std::path::PathBuf {
        let (from, to) = (self.directory.path().join("store"), self.directory.path().join("backup"));
        let done = std::process::Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap();
        assert!(done.success());
        to
    }

    /// The same data directory on an older copy of the database.
    fn restored(self, backup: &std::path::Path) -> Self {
        let (store, _) = SledStore::open(backup, &self.directory.path().join("dumps")).unwrap();
        Self { store: Arc::new(store), ..self }
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
        Images::open(parts, data.images, data.first_targets).await.unwrap()
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
    rig.clock.set(now().checked_add(SignedDuration::from_hours(24 * 1500)).unwrap());
    assert!(images.warnings().await.iter().any(|warning| warning.starts_with("images/root ends")));
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
        let root = DataDir::open(&rig.directory.path().join("data"), None).unwrap().images.chain;
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
    let change = |add, remove, threshold| RootChange { role: Role::Targets, add, remove, threshold };
    assert!(images.change_keys(&change(vec![], vec![], Some(2)), None).await.is_err());
    assert!(images.change_keys(&change(vec![], vec![], Some(0)), None).await.is_err());
    let root_key = images.with_trust(|trust| {
        let root = trust.chain.current();
        root.keys[&root.roles.root.keyids[0]].clone()
    });
    // One key for two roles would make the lesser role worth as much as the greater.
    assert!(images.change_keys(&change(vec![root_key.await], vec![], None), None).await.is_err());
    assert_eq!(images.renew().await.unwrap(), Outcome::Signed);
}

/// A repository with one targets key, as an operator sees it.
struct Operator {
    key: SigningKey,
    chain: RootChain,
}

impl Operator {
    fn new() -> Self {
        let rig = Rig::new();
        let data = DataDir::open(&rig.directory.path().join("data"), None).unwrap();
        let key = std::fs::read_to_string(rig.directory.path().join("data/keys/images-targets.key")).unwrap();
        let seed = pki::x509::pem::ed25519_seed(&key).unwrap();
        Self { key: SigningKey::from_seed(&seed), chain: data.images.chain }
    }

    fn file(&self, version: u64, names: &[(&str, &str)]) -> String {
        String::from_utf8(sign(&targets(version, names), &[&self.key]).unwrap()).unwrap()
    }

    fn review(&self, role: &str, base: &str, draft: &str) -> Result<Review, ReviewError> {
        let side = Side { role, draft, base: Some(base) };
        review(&self.chain, &[side], None, &Seen::default())
    }
}

fn targets(version: u64, names: &[(&str, &str)]) -> Targets {
    let entry = |(name, content): &(&str, &str)| {
        let digest = pki::digest::Digest::sha256(content.as_bytes());
        (name.parse().unwrap(), Target::new(digest, content.len() as u64, Map::new()))
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
    let desk = Operator::new();
    let base = desk.file(1, &[("a", "1"), ("b", "2")]);
    let found = desk.review("targets", &base, &desk.file(2, &[("b", "2"), ("c", "3")])).unwrap();
    assert_eq!((found.added, found.removed), (vec!["c".parse().unwrap()], vec!["a".parse().unwrap()]));
}

#[test]
fn rejects_other_bytes_under_a_name_that_exists() {
    let desk = Operator::new();
    let refused = desk.review("targets", &desk.file(1, &[("a", "1")]), &desk.file(2, &[("a", "2")]));
    assert!(matches!(refused, Err(ReviewError::Changed(_))));
}

#[test]
fn rejects_a_base_that_was_not_signed_by_the_trusted_keys() {
    let desk = Operator::new();
    let other = SigningKey::generate().unwrap();
    let base = String::from_utf8(sign(&targets(1, &[("evil", "1")]), &[&other]).unwrap()).unwrap();
    let refused = desk.review("targets", &base, &desk.file(2, &[("evil", "1")]));
    assert!(matches!(refused, Err(ReviewError::Base { .. })));
}

#[test]
fn rejects_a_version_that_is_not_above_the_current() {
    let desk = Operator::new();
    let refused = desk.review("targets", &desk.file(2, &[]), &desk.file(2, &[]));
    assert!(matches!(refused, Err(ReviewError::Version { .. })));
}

#[test]
fn rejects_an_older_state_shown_as_current() {
    let desk = Operator::new();
    let (base, draft) = (desk.file(3, &[]), desk.file(9, &[]));
    let seen = Seen { published: BTreeMap::from([("targets".to_owned(), 4)]), signed: BTreeMap::new() };
    let side = Side { role: "targets", draft: &draft, base: Some(&base) };
    let refused = review(&desk.chain, &[side], None, &seen);
    assert!(matches!(refused, Err(ReviewError::Rollback { .. })));
}

#[test]
fn rejects_an_entry_in_a_bin_where_it_does_not_belong() {
    let desk = Operator::new();
    let path = "a".parse().unwrap();
    let wrong = bins::all().find(|bin| *bin != bins::of(&path)).unwrap();
    let refused = desk.review(&wrong, &desk.file(1, &[]), &desk.file(2, &[("a", "1")]));
    assert!(matches!(refused, Err(ReviewError::Misplaced { .. })));
}

#[test]
fn rejects_a_delegation_to_others() {
    let desk = Operator::new();
    let mut draft = targets(2, &[]);
    let mut delegations = bins::delegations(desk.chain.current()).unwrap();
    let thief = SigningKey::generate().unwrap();
    delegations.keys.insert(thief.public().id(), thief.public().clone());
    delegations.roles[0].keyids = vec![thief.public().id()];
    draft.delegations = Some(delegations);
    let draft = String::from_utf8(sign(&draft, &[&desk.key]).unwrap()).unwrap();
    let refused = desk.review("targets", &desk.file(1, &[]), &draft);
    assert!(matches!(refused, Err(ReviewError::Delegation(_))));
}

#[test]
fn rejects_a_role_that_is_not_of_this_repository() {
    let desk = Operator::new();
    let refused = desk.review("ci", &desk.file(1, &[]), &desk.file(2, &[]));
    assert!(matches!(refused, Err(ReviewError::Role(_))));
}

const APP: &str = "ghcr.io/acme/app";
const OTHER: &str = "ghcr.io/acme/other";

fn addition(repository: &str, number: usize) -> Addition {
    let digest = pki::digest::Digest::sha256(format!("{repository} {number}").as_bytes());
    let name: ArtifactName = format!("{repository}@{digest}").parse().unwrap();
    let root: Descriptor = serde_json::from_value(serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1234,
    }))
    .unwrap();
    let closure = Closure { name, root: root.clone(), documents: vec![root], blobs: Vec::new() };
    let tag: Option<pki::oci::Tag> = Some(format!("v{number}").parse().unwrap());
    let artifact = Artifact {
        closure,
        tag: tag.clone(),
        platforms: Vec::new(),
        imported_at: now(),
        imported_by: "test".to_owned(),
        revoked_at: None,
    };
    Addition { artifact, tag }
}

fn name(addition: &Addition) -> String {
    addition.artifact.name().to_string()
}

fn revoked(addition: &Addition) -> Artifact {
    Artifact { revoked_at: Some(now()), ..addition.artifact.clone() }
}

fn publisher(repositories: &[&str], key: &SigningKey) -> Publisher {
    Publisher {
        name: "ci".parse().unwrap(),
        repositories: repositories.iter().map(|text| text.parse().unwrap()).collect(),
        key: key.public().clone(),
    }
}

/// A device as far as it refreshes images and looks for artifacts.
#[derive(Default)]
struct Phone {
    stored: Stored,
}

impl Phone {
    async fn enrolled(images: &Images) -> Self {
        let root = images.file("1.root.json").await.unwrap().unwrap();
        Self { stored: Stored { root, ..Stored::default() } }
    }

    fn keep(&mut self, file: &str, bytes: Option<Vec<u8>>) {
        match (file, bytes) {
            ("root.json", Some(bytes)) => self.stored.root = bytes,
            ("timestamp.json", bytes) => self.stored.timestamp = bytes,
            ("snapshot.json", bytes) => self.stored.snapshot = bytes,
            ("targets.json", bytes) => self.stored.targets = bytes,
            (other, Some(bytes)) => drop(self.stored.delegated.insert(other.to_owned(), bytes)),
            (other, None) => drop(self.stored.delegated.remove(other)),
        }
    }

    /// The role by which the device finds an artifact.
    async fn finds(&mut self, images: &Images, sought: &str) -> Result<Option<String>, MetadataError> {
        let fetch =
            async |file: String| images.file(&file).await.unwrap().map_or(Fetched::Absent, Fetched::Bytes);
        let mut refresh = Refresh::new(self.stored.clone(), now(), Limits::default())?;
        loop {
            match refresh.step()? {
                Step::Fetch { file, .. } => refresh.answer(fetch(file).await),
                Step::Store { file, bytes } => self.keep(&file, Some(bytes)),
                Step::Remove { file } => self.keep(&file, None),
                Step::Done => break,
            }
        }
        let mut set = refresh.into_trusted()?;
        let mut lookup = set.lookup(sought.parse().unwrap());
        loop {
            match lookup.step()? {
                Step::Fetch { file, .. } => lookup.answer(fetch(file).await),
                Step::Store { file, bytes } => self.keep(&file, Some(bytes)),
                Step::Remove { file } => self.keep(&file, None),
                Step::Done => break,
            }
        }
        Ok(lookup.into_target()?.map(|target| target.role().to_owned()))
    }
}

/// Signs what waits at a desk with a key, as far as the key has a part in it.
async fn sign_waiting(images: &Images, desk: &Desk, key: &SigningKey, roles: &[&str]) -> bool {
    let waiting = images.waiting(desk).await.unwrap().unwrap();
    let files = waiting.request.files.iter().filter(|draft| roles.contains(&draft.role.as_str()));
    let signatures =
        files.map(|draft| (draft.role.clone(), key.sign(&message(draft.text.as_bytes()).unwrap())));
    let published = images.attach(desk, &waiting.request.id, signatures.collect()).await.unwrap();
    published.is_some()
}

#[tokio::test]
async fn a_publishers_import_goes_live_while_the_operators_are_away() {
    let rig = Rig::offline();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let targets_key = rig.operators_key("targets");
    let made = SigningKey::generate().unwrap();
    let delegated = images.delegate(publisher(&[APP], &made), Some(made)).await.unwrap();
    // Who signs is the operators' to say, and only theirs.
    assert_eq!(delegated, Outcome::Pending);
    assert!(images.delegations().await.is_empty());
    assert!(sign_waiting(&images, &Desk::Operators, &targets_key, &["targets"]).await);
    let (app, other) = (addition(APP, 1), addition(OTHER, 1));
    assert_eq!(images.add_all(vec![app.clone(), other.clone()]).await.unwrap(), Outcome::Pending);
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap().as_deref(), Some("publisher-ci"));
    assert_eq!(phone.finds(&images, &name(&other)).await.unwrap(), None);
    // What waits for the operators does not hold the publisher up.
    let next = addition(APP, 2);
    assert_eq!(images.add_all(vec![next.clone()]).await.unwrap(), Outcome::Signed);
    assert_eq!(phone.finds(&images, &name(&next)).await.unwrap().as_deref(), Some("publisher-ci"));
    assert!(sign_waiting(&images, &Desk::Operators, &targets_key, &["targets"]).await);
    assert_eq!(phone.finds(&images, &name(&other)).await.unwrap().as_deref(), Some("targets"));
    // Its key survives a restart.
    drop(images);
    let images = rig.open().await;
    assert_eq!(images.add_all(vec![addition(APP, 3)]).await.unwrap(), Outcome::Signed);
}

#[tokio::test]
async fn a_publisher_that_holds_its_key_signs_what_waits_for_it_and_nothing_else() {
    let rig = Rig::offline();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let ci = SigningKey::generate().unwrap();
    images.delegate(publisher(&[APP], &ci), None).await.unwrap();
    let targets_key = rig.operators_key("targets");
    assert!(sign_waiting(&images, &Desk::Operators, &targets_key, &["targets"]).await);
    let (app, other) = (addition(APP, 1), addition(OTHER, 1));
    images.add_all(vec![app.clone(), other.clone()]).await.unwrap();
    let desk = Desk::Publisher("ci".parse().unwrap());
    for (desk, key, role) in [(&Desk::Operators, &ci, "targets"), (&desk, &targets_key, "publisher-ci")] {
        let request = images.waiting(desk).await.unwrap().unwrap().request;
        let file = request.files.iter().find(|draft| draft.role == role).unwrap();
        let signature = key.sign(&message(file.text.as_bytes()).unwrap());
        let refused = images.attach(desk, &request.id, vec![(role.to_owned(), signature)]).await;
        assert!(matches!(refused, Err(PublishingError::NoSigner { .. })), "{refused:?}");
    }
    assert!(sign_waiting(&images, &desk, &ci, &["publisher-ci"]).await);
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap().as_deref(), Some("publisher-ci"));
    assert_eq!(phone.finds(&images, &name(&other)).await.unwrap(), None);
}

#[tokio::test]
async fn what_operators_signed_stays_theirs_when_its_repository_is_delegated() {
    for count in [3, bins::FLAT + 6] {
        let rig = Rig::new();
        let images = rig.open().await;
        let mut phone = Phone::enrolled(&images).await;
        let before: Vec<Addition> =
            (0..count).flat_map(|number| [addition(APP, number), addition(OTHER, number)]).collect();
        images.add_all(before.clone()).await.unwrap();
        assert!(phone.finds(&images, &name(&before[0])).await.unwrap().is_some());
        let made = SigningKey::generate().unwrap();
        images.delegate(publisher(&[APP], &made), Some(made)).await.unwrap();
        let new = addition(APP, 1000);
        images.add_all(vec![new.clone()]).await.unwrap();
        assert_eq!(phone.finds(&images, &name(&new)).await.unwrap().as_deref(), Some("publisher-ci"));
        for old in &before {
            let role = phone.finds(&images, &name(old)).await.unwrap().unwrap();
            assert_ne!(role, "publisher-ci");
        }
        // Back again: everything is where it was, and nothing of the publisher is believed any more.
        images.revoke(&[revoked(&new)]).await.unwrap();
        images.undelegate(&"ci".parse().unwrap()).await.unwrap();
        assert_eq!(phone.finds(&images, &name(&new)).await.unwrap(), None);
        for old in &before {
            assert!(phone.finds(&images, &name(old)).await.unwrap().is_some());
        }
        assert_eq!(std::fs::read_dir(rig.directory.path().join("data/keys")).unwrap().count(), 9);
    }
}

#[tokio::test]
async fn what_a_publisher_signed_can_be_kept_when_it_goes() {
    let rig = Rig::new();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let made = SigningKey::generate().unwrap();
    images.delegate(publisher(&[APP], &made), Some(made)).await.unwrap();
    let app = addition(APP, 1);
    images.add_all(vec![app.clone()]).await.unwrap();
    images.undelegate(&"ci".parse().unwrap()).await.unwrap();
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap().as_deref(), Some("targets"));
    // The same name again begins with nothing, whatever it once signed.
    let made = SigningKey::generate().unwrap();
    images.delegate(publisher(&[APP], &made), Some(made)).await.unwrap();
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap().as_deref(), Some("targets"));
    assert_eq!(phone.finds(&images, &name(&addition(APP, 2))).await.unwrap(), None);
}

#[tokio::test]
async fn rejects_a_second_publisher_of_a_repository_or_a_key_that_signs_already() {
    let rig = Rig::new();
    let images = rig.open().await;
    let made = SigningKey::generate().unwrap();
    images.delegate(publisher(&[APP], &made), Some(made)).await.unwrap();
    let key = SigningKey::generate().unwrap();
    let known = images.delegate(publisher(&[OTHER], &key), None).await;
    assert!(matches!(known, Err(PublishingError::KnownPublisher(_))));
    let second = |repository, key: &SigningKey| Publisher {
        name: "second".parse().unwrap(),
        ..publisher(&[repository], key)
    };
    let delegated = images.delegate(second(APP, &key), None).await;
    assert!(matches!(delegated, Err(PublishingError::Delegated { .. })));
    let targets = std::fs::read_to_string(rig.directory.path().join("data/keys/images-targets.key")).unwrap();
    let targets = SigningKey::from_seed(&pki::x509::pem::ed25519_seed(&targets).unwrap());
    assert!(matches!(images.delegate(second(OTHER, &targets), None).await, Err(PublishingError::Change(_))));
}

#[tokio::test]
async fn a_rotation_of_the_targets_key_leaves_publishers_as_they_are() {
    let rig = Rig::new();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let made = SigningKey::generate().unwrap();
    images.delegate(publisher(&[APP], &made), Some(made)).await.unwrap();
    let app = addition(APP, 1);
    images.add_all(vec![app.clone()]).await.unwrap();
    let old = images.with_trust(|trust| trust.chain.current().roles.targets.keyids.clone()).await;
    let key = SigningKey::generate().unwrap();
    let change =
        RootChange { role: Role::Targets, add: vec![key.public().clone()], remove: old, threshold: None };
    images.change_keys(&change, Some(key)).await.unwrap();
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap().as_deref(), Some("publisher-ci"));
    images.add_all(vec![addition(APP, 2)]).await.unwrap();
    images.renew().await.unwrap();
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap().as_deref(), Some("publisher-ci"));
}

#[test]
fn shows_a_new_publisher_as_a_change_of_keys_and_its_entries_only_where_they_belong() {
    let desk = Operator::new();
    let ci = SigningKey::generate().unwrap();
    let publisher = publisher(&[APP], &ci);
    let with = |version, delegated: bool| {
        let mut top = targets(version, &[]);
        let publishers = if delegated { vec![publisher.clone()] } else { Vec::new() };
        top.delegations = publishers::delegations(desk.chain.current(), &publishers, false).unwrap();
        String::from_utf8(sign(&top, &[&desk.key]).unwrap()).unwrap()
    };
    let (plain, delegating) = (with(1, false), with(2, true));
    let side = Side { role: "targets", draft: &delegating, base: Some(&plain) };
    let found = review(&desk.chain, &[side], Some(&plain), &Seen::default()).unwrap();
    assert!(found.keys.iter().any(|line| line.contains("publisher ci") && line.ends_with("is added")));

    let file = |path: &str| {
        let list = [(path, "content")];
        String::from_utf8(sign(&targets(3, &list), &[&ci]).unwrap()).unwrap()
    };
    let digest = pki::digest::Digest::sha256(b"content");
    let judge = |draft: &str, top: Option<&str>| {
        let side = Side { role: "publisher-ci", draft, base: None };
        review(&desk.chain, &[side], top, &Seen::default())
    };
    let own = file(&format!("{APP}@{digest}"));
    let found = judge(&own, Some(&delegating)).unwrap();
    assert_eq!(found.signers["publisher-ci"], BTreeSet::from([ci.public().id()]));
    let outside = judge(&file(&format!("{OTHER}@{digest}")), Some(&delegating));
    assert!(matches!(outside, Err(ReviewError::Misplaced { .. })));
    assert!(matches!(judge(&own, Some(&plain)), Err(ReviewError::Role(_))));
    assert!(matches!(judge(&own, None), Err(ReviewError::NoTop)));
}

#[tokio::test]
async fn a_revocation_outlives_a_dropped_request() {
    let rig = Rig::offline();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let key = rig.operators_key("targets");
    let app = addition(APP, 1);
    images.add_all(vec![app.clone()]).await.unwrap();
    assert!(sign_waiting(&images, &Desk::Operators, &key, &["targets"]).await);
    images.revoke(&[revoked(&app)]).await.unwrap();
    images.add_all(vec![addition(APP, 2)]).await.unwrap();
    let waiting = images.waiting(&Desk::Operators).await.unwrap().unwrap().request;
    assert_eq!((waiting.additions.len(), waiting.removals.len()), (1, 1));
    images.drop_request(&Desk::Operators, &waiting.id).await.unwrap();
    let waiting = images.waiting(&Desk::Operators).await.unwrap().unwrap().request;
    assert_eq!((waiting.additions.len(), waiting.removals.len()), (0, 1));
    assert!(images.warnings().await.iter().any(|warning| warning.contains("1 revoked artifacts")));
    // Also over a restart.
    drop(images);
    let images = rig.open().await;
    assert!(sign_waiting(&images, &Desk::Operators, &key, &["targets"]).await);
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap(), None);
    assert!(!images.warnings().await.iter().any(|warning| warning.contains("revoked")));
    let again = images.add_all(vec![app]).await;
    assert!(matches!(again, Err(PublishingError::Revoked(_))));
}

#[tokio::test]
async fn a_revocation_during_a_change_of_keys_happens_after_it() {
    let rig = Rig::offline();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let (root_key, key) = (rig.operators_key("root"), rig.operators_key("targets"));
    let app = addition(APP, 1);
    images.add_all(vec![app.clone()]).await.unwrap();
    assert!(sign_waiting(&images, &Desk::Operators, &key, &["targets"]).await);
    let change = |threshold| RootChange { role: Role::Root, add: vec![], remove: vec![], threshold };
    images.change_keys(&change(Some(1)), None).await.unwrap();
    images.revoke(&[revoked(&app)]).await.unwrap();
    assert!(sign_waiting(&images, &Desk::Operators, &root_key, &["root"]).await);
    assert_eq!(images.waiting(&Desk::Operators).await.unwrap().unwrap().request.removals.len(), 1);
    assert!(sign_waiting(&images, &Desk::Operators, &key, &["targets"]).await);
    assert_eq!(phone.finds(&images, &name(&app)).await.unwrap(), None);
}

/// A timestamp of images as our own key has signed it, some versions ahead.
async fn ahead(rig: &Rig, images: &Images, versions: u64, key: Option<&SigningKey>) -> String {
    let bytes = images.file("timestamp.json").await.unwrap().unwrap();
    let signed = pki::metadata::verify::Signed::parse("timestamp", &bytes, 1 << 20).unwrap();
    let mut timestamp: pki::metadata::Timestamp = Clone::clone(signed.document());
    timestamp.version += versions;
    timestamp.meta.snapshot.version += versions;
    let own = std::fs::read_to_string(rig.directory.path().join("data/keys/images-timestamp.key"));
    let own = own.map(|text| SigningKey::from_seed(&pki::x509::pem::ed25519_seed(&text).unwrap()));
    let own = key.map_or_else(|| own.unwrap(), |key| SigningKey::from_seed(&key.seed()));
    String::from_utf8(sign(&timestamp, &[&own]).unwrap()).unwrap()
}

#[tokio::test]
async fn a_device_that_only_says_it_has_seen_more_stops_nothing() {
    let rig = Rig::new();
    let images = rig.open().await;
    let device = "board-1".parse().unwrap();
    let seen = RepositoryVersions { root: 9, timestamp: 500, snapshot: 500, targets: 500 };
    let forged = ahead(&rig, &images, 500, Some(&SigningKey::generate().unwrap())).await;
    for proof in [None, Some("junk"), Some(forged.as_str())] {
        images.observe(&device, seen, proof).await.unwrap();
        assert!(images.behind().await.is_none());
        assert!(images.warnings().await.iter().any(|warning| warning.contains("board-1")));
    }
    assert_eq!(images.add_all(vec![addition(APP, 1)]).await.unwrap(), Outcome::Signed);
    // Once it says what is true, nothing is left of it.
    images.observe(&device, RepositoryVersions::default(), None).await.unwrap();
    assert!(images.warnings().await.is_empty());
}

#[tokio::test]
async fn what_our_own_key_has_signed_stops_signing_until_an_operator_says_so() {
    let rig = Rig::new();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let gone = addition(APP, 9);
    images.add_all(vec![gone.clone()]).await.unwrap();
    let device = "board-1".parse().unwrap();
    let shown = ahead(&rig, &images, 7, None).await;
    images.observe(&device, RepositoryVersions::default(), Some(&shown)).await.unwrap();
    let refused = images.add_all(vec![addition(APP, 1)]).await;
    assert!(matches!(refused, Err(PublishingError::Behind { seen: 9, .. })), "{refused:?}");
    // What is revoked meanwhile is taken out with the recovery.
    images.revoke(&[revoked(&gone)]).await.unwrap();
    assert!(phone.finds(&images, &name(&gone)).await.unwrap().is_some());
    images.recover().await.unwrap();
    assert_eq!(phone.finds(&images, &name(&gone)).await.unwrap(), None);
    assert_eq!(images.add_all(vec![addition(APP, 1)]).await.unwrap(), Outcome::Signed);
    let timestamp = images.file("timestamp.json").await.unwrap().unwrap();
    let timestamp: serde_json::Value = serde_json::from_slice(&timestamp).unwrap();
    assert!(timestamp["signed"]["version"].as_u64().unwrap() > 9);
}

#[tokio::test]
async fn a_key_that_was_retired_shows_nothing_and_versions_without_measure_burn_nothing() {
    let rig = Rig::new();
    let images = rig.open().await;
    let device = "board-1".parse().unwrap();
    let endless = ahead(&rig, &images, 1 << 40, None).await;
    images.observe(&device, RepositoryVersions::default(), Some(&endless)).await.unwrap();
    assert!(images.behind().await.is_none());
    let shown = ahead(&rig, &images, 7, None).await;
    let old = images.with_trust(|trust| trust.chain.current().roles.timestamp.keyids.clone()).await;
    let key = SigningKey::generate().unwrap();
    let change =
        RootChange { role: Role::Timestamp, add: vec![key.public().clone()], remove: old, threshold: None };
    images.change_keys(&change, Some(key)).await.unwrap();
    images.observe(&device, RepositoryVersions::default(), Some(&shown)).await.unwrap();
    assert!(images.behind().await.is_none());
}

#[tokio::test]
async fn a_recovery_passes_what_publishers_had_signed_too() {
    let rig = Rig::new();
    let images = rig.open().await;
    let mut phone = Phone::enrolled(&images).await;
    let made = SigningKey::generate().unwrap();
    images.delegate(publisher(&[APP], &made), Some(made)).await.unwrap();
    let (first, second) = (addition(APP, 1), addition(APP, 2));
    images.add_all(vec![first.clone()]).await.unwrap();
    let backup = rig.copy_store();
    images.add_all(vec![second.clone()]).await.unwrap();
    phone.finds(&images, &name(&second)).await.unwrap();
    drop(images);
    let rig = rig.restored(&backup);
    let images = rig.open().await;
    assert!(images.behind().await.is_some());
    images.recover().await.unwrap();
    assert_eq!(phone.finds(&images, &name(&first)).await.unwrap().as_deref(), Some("publisher-ci"));
    assert_eq!(phone.finds(&images, &name(&second)).await.unwrap(), None);
}
