//! The 86 published Uptane cases (99 steps, `uptane` of the aktualizr project's vectors), each by its published name, told
//! in our format: a director, images, and a device that judges both.
//!
//! The class that a device refuses with is the published one, with these differences, all because TUF 1.0 says so:
//! - A root that lacks the old or the new signatures, and a delegation whose key is not there, are an unmet threshold: a key
//!   that is unknown counts for nothing, and is no fault of the file.
//! - An expired delegation is expired, where the published client only sees that the target is not there.
//! - A timestamp of the same version is no news (5.4.3.1), so that what is slipped in under it is not taken; the published
//!   client, which has no such rule, takes it.
//! - Two targets for one ECU are, in a list that is of one device anyway, one path listed twice.
//! - What hardware an image is for is the platforms of its index, which both repositories vouch for by its digest.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::fixture::*;
use super::hostile::CASES;
use super::lookup::TrustedTarget;
use super::roles::{Flaw, RoleKeys, Target, Targets};
use super::uptane::{AgreedTarget, UptaneError, assigned};
use super::{MetadataError, TrustedSet};
use crate::digest::{Digest, Mismatch, Verifier};
use crate::oci::{Document, MediaType, Platform};

pub(super) const DEVICE: &str = "press-7";
pub(super) const INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2,"platform":{"os":"linux","architecture":"ARCHITECTURE"}}]}"#;

/// Both repositories, and the bytes that are served for the target.
pub(super) struct Pair {
    pub(super) director: Repository,
    pub(super) images: Repository,
    pub(super) content: Vec<u8>,
}

/// The name of the artifact with this content.
pub(super) fn named(content: &[u8]) -> String {
    format!("ghcr.io/acme/web@{}", Digest::sha256(content))
}

pub(super) fn entry(content: &[u8], custom: &Value) -> Target {
    Target::new(Digest::sha256(content), content.len() as u64, custom.as_object().unwrap().clone())
}

impl Pair {
    /// An artifact that both list, each signed by keys of its own, under a second root.
    pub(super) fn new() -> Self {
        Self::for_hardware("arm64")
    }

    pub(super) fn for_hardware(architecture: &str) -> Self {
        let content = INDEX.replace("ARCHITECTURE", architecture).into_bytes();
        let (director, images) = (Repository::signed_by([11, 12, 13, 14]), Repository::new());
        let mut pair = Self { director, images, content };
        pair.director.targets.set_device(DEVICE);
        pair.assign(DEVICE);
        pair.list();
        for repository in [&mut pair.director, &mut pair.images] {
            repository.publish_next_root();
        }
        pair.publish();
        pair
    }

    /// Says in the director who should have the content.
    pub(super) fn assign(&mut self, device: &str) {
        let assigned = entry(&self.content, &json!({"device": device}));
        self.director.targets.targets.insert(path(&named(&self.content)), assigned);
    }

    /// Says in images that the content exists.
    pub(super) fn list(&mut self) {
        let listed = entry(&self.content, &json!({"media_type": MediaType::OCI_INDEX}));
        self.images.targets.targets.insert(path(&named(&self.content)), listed);
    }

    fn publish(&mut self) {
        self.director.publish_bare();
        self.images.publish_bare();
    }

    /// Moves what images lists to a delegated role.
    fn delegate(&mut self, patterns: &[&str], keep: bool, version: u64) {
        let mut role = Targets { version, ..empty_targets() };
        role.targets.clone_from(&self.images.targets.targets);
        if !keep {
            self.images.targets.targets.clear();
        }
        delegate(&mut self.images.targets, "team", &delegated_key("team"), patterns);
        self.images.put_delegated("team", &role, &[delegated_key("team")]);
        self.publish();
    }

    fn delegated() -> Self {
        let mut pair = Self::new();
        pair.delegate(&["ghcr.io/acme/*"], false, 1);
        pair
    }

    pub(super) fn of(&mut self, repository: &str) -> &mut Repository {
        if repository == "director" { &mut self.director } else { &mut self.images }
    }

    /// The entry of one repository, to be changed before all is signed again.
    fn with_entry(mut self, repository: &str, change: impl FnOnce(&mut Target)) -> Self {
        change(self.of(repository).targets.targets.values_mut().next().unwrap());
        self.publish();
        self
    }
}

/// Why a device does not take what it is offered.
#[derive(Debug)]
pub(super) enum Refused {
    Metadata(MetadataError),
    Disagree(UptaneError),
    Content(Mismatch),
    Hardware,
}

/// What a device has come to trust.
pub(super) struct Device {
    pub(super) director: Client,
    pub(super) images: Client,
    pub(super) now: &'static str,
}

impl Device {
    pub(super) fn of(pair: &Pair) -> Self {
        Self { director: Client::new(&pair.director), images: Client::new(&pair.images), now: NOW }
    }

    /// The order of Uptane 5.4.4.2, to the bytes of the image and the hardware that they are for.
    pub(super) fn judge(&mut self, pair: &Pair) -> Result<(), Refused> {
        let now = time(self.now);
        let director = self.director.refresh_at(&pair.director.files, now).map_err(Refused::Metadata)?;
        let mut images = self.images.refresh_at(&pair.images.files, now).map_err(Refused::Metadata)?;
        let assigned = assigned(&director, DEVICE).map_err(Refused::Disagree)?;
        let mut found = Vec::new();
        for path in assigned.paths() {
            found.extend(self.seek(&mut images, pair, path.as_str()).map_err(Refused::Metadata)?);
        }
        for agreed in assigned.agree(&found).map_err(Refused::Disagree)? {
            take(&agreed, &pair.content)?;
        }
        Ok(())
    }

    fn seek(
        &mut self,
        images: &mut TrustedSet,
        pair: &Pair,
        path: &str,
    ) -> Result<Option<TrustedTarget>, MetadataError> {
        self.images.seek(images, &pair.images.files, path)
    }
}

/// Holds the bytes of an image against what was agreed, and against the device.
fn take(agreed: &AgreedTarget, content: &[u8]) -> Result<(), Refused> {
    let mut verifier = Verifier::new(agreed.name().digest(), agreed.length());
    verifier.update(content).map_err(Refused::Content)?;
    verifier.finish().map_err(Refused::Content)?;
    let Ok(Document::Index(index)) = Document::parse(agreed.media_type(), content) else {
        return Err(Refused::Hardware);
    };
    let device = Platform::new("linux", "arm64", None);
    index.select(&device).map(drop).ok_or(Refused::Hardware)
}

/// The class of an outcome, as the vectors call it.
pub(super) fn class(outcome: &Result<(), Refused>) -> &'static str {
    match outcome {
        Ok(()) => "taken",
        Err(Refused::Hardware) => "bad hardware",
        Err(Refused::Content(Mismatch::Long { .. })) => "oversized target",
        Err(Refused::Content(_)) => "target hash mismatch",
        Err(Refused::Disagree(error)) => match error {
            UptaneError::OtherDevice { .. } | UptaneError::TargetOfOtherDevice { .. } => "bad device id",
            UptaneError::DirectorDelegates { .. } => "director delegates",
            UptaneError::NotInImages { .. } | UptaneError::Length { .. } | UptaneError::Hashes { .. } => {
                "target mismatch"
            }
            UptaneError::SameRepository
            | UptaneError::Custom { .. }
            | UptaneError::Name { .. }
            | UptaneError::MediaType { .. } => "disagreement",
        },
        Err(Refused::Metadata(error)) => match error {
            MetadataError::UnmetThreshold { .. } => "unmet threshold",
            MetadataError::Flawed { source: Flaw::KeyId { .. }, .. } => "bad key id",
            MetadataError::Flawed { source: Flaw::Threshold(_), .. } => "illegal threshold",
            MetadataError::RepeatedSignature { .. } => "non-unique signatures",
            MetadataError::Expired { .. } => "expired",
            MetadataError::WrongType { .. } => "wrong type",
            MetadataError::RootVersion { .. } => "root rotation",
            MetadataError::MixAndMatch { .. } | MetadataError::NotInSnapshot { .. } => "version mismatch",
            MetadataError::Missing { .. } => "missing",
            MetadataError::Rollback { .. }
            | MetadataError::SnapshotListedRollback { .. }
            | MetadataError::TargetsListedRollback { .. }
            | MetadataError::TargetsVanished { .. } => "rollback",
            MetadataError::TooLong { .. } => "metadata fetch",
            MetadataError::Unreadable { .. } => "repeated id",
            MetadataError::NotCanonical { .. }
            | MetadataError::SpecVersion { .. }
            | MetadataError::Flawed { .. }
            | MetadataError::TooManySignatures { .. }
            | MetadataError::Length { .. }
            | MetadataError::Hashes { .. }
            | MetadataError::SearchTooWide { .. }
            | MetadataError::SearchTooDeep { .. }
            | MetadataError::Incomplete => "other",
        },
    }
}

/// A case of one step: its name, its class, and what the device is offered.
type Step = (String, &'static str, Pair);

/// What goes wrong in one role of one repository; the director of the vectors has no timestamp and no snapshot.
fn in_every_role() -> Vec<Step> {
    const CLASSES: [(&str, &str, &str); 7] = [
        ("zero_threshold", "illegal threshold: zero", "illegal threshold"),
        ("expired", "expired", "expired"),
        ("unmet_threshold", "unmet threshold: one of two", "unmet threshold"),
        ("non_unique_signatures", "non-unique signatures", "non-unique signatures"),
        ("unsigned", "unmet threshold: no signature at all", "unmet threshold"),
        ("bad_key_ids", "bad key id: a key listed under an id that is not its own", "bad key id"),
        ("role_type_mismatch", "of another type", "wrong type"),
    ];
    let roles = [
        ("director", "root"),
        ("director", "targets"),
        ("image_repo", "root"),
        ("image_repo", "timestamp"),
        ("image_repo", "snapshot"),
        ("image_repo", "targets"),
    ];
    let mut steps = Vec::new();
    for (repository, role) in roles {
        for (name, case, class) in CLASSES {
            let (_, spoil, _) = CASES.into_iter().find(|(label, ..)| *label == case).unwrap();
            let mut pair = Pair::new();
            spoil(pair.of(repository), role);
            steps.push((format!("{repository}_{role}_{name}"), class, pair));
        }
    }
    steps
}

/// What goes wrong in a delegation.
fn in_delegations() -> Vec<Step> {
    let spoilt = |case: &str| {
        let (_, spoil, _) = CASES.into_iter().find(|(label, ..)| *label == case).unwrap();
        let mut pair = Pair::delegated();
        spoil(&mut pair.images, "team");
        pair
    };
    let changed = |change: fn(&mut Pair)| {
        let mut pair = Pair::delegated();
        change(&mut pair);
        pair
    };
    let redundant = {
        let mut pair = Pair::new();
        pair.delegate(&["*/*/*"], true, 1);
        // Were it asked, it would be refused; what the top lists is not sought further.
        pair.images.change_signatures("team", Vec::clear);
        pair
    };
    let mismatched = {
        let mut pair = Pair::new();
        pair.delegate(&["does-not-match"], false, 1);
        pair
    };
    let steps = vec![
        ("simple", "taken", Pair::delegated()),
        ("redundant", "taken", redundant),
        ("path_mismatch", "target mismatch", mismatched),
        (
            "key_missing",
            "unmet threshold",
            changed(|pair| pair.images.resign("targets", |signed| signed["delegations"]["keys"] = json!({}))),
        ),
        ("unsigned", "unmet threshold", spoilt("unmet threshold: no signature at all")),
        ("bad_key_ids", "bad key id", spoilt("bad key id: a key listed under an id that is not its own")),
        ("missing", "missing", spoilt("withheld")),
        (
            "empty",
            "target mismatch",
            changed(|pair| pair.images.resign("team", |signed| signed["targets"] = json!({}))),
        ),
        (
            "hash_mismatch",
            "target mismatch",
            changed(|pair| {
                pair.images.resign("team", |signed| {
                    let entry = signed["targets"].as_object_mut().unwrap().values_mut().next().unwrap();
                    entry["hashes"]["sha256"] = json!("0".repeat(64));
                });
            }),
        ),
        ("expired", "expired", spoilt("expired")),
        (
            "snapshot_missing",
            "version mismatch",
            changed(|pair| {
                pair.images.resign("snapshot", |signed| {
                    drop(signed["meta"].as_object_mut().unwrap().remove("team.json"));
                });
            }),
        ),
        ("snapshot_version_mismatch", "version mismatch", spoilt("of another version than is due")),
        ("zero_threshold", "illegal threshold", spoilt("illegal threshold: zero")),
        ("unmet_threshold", "unmet threshold", spoilt("unmet threshold: one of two")),
        (
            "two_signatures",
            "taken",
            changed(|pair| {
                let second = delegated_key("second");
                let file = pair.images.file_of("team");
                let both = super::publish::add_signature(&pair.images.files[&file], &second).unwrap();
                pair.images.files.insert(file, both);
                pair.images.resign("targets", |signed| {
                    let delegations = &mut signed["delegations"];
                    let id = second.public().id().to_string();
                    delegations["keys"][&id] = serde_json::to_value(second.public()).unwrap();
                    let role = &mut delegations["roles"][0];
                    role["keyids"].as_array_mut().unwrap().push(json!(id));
                    role["threshold"] = json!(2);
                });
            }),
        ),
        ("non_unique_signatures", "non-unique signatures", spoilt("non-unique signatures")),
    ];
    steps.into_iter().map(|(name, class, pair)| (format!("delegation_{name}"), class, pair)).collect()
}

/// What goes wrong between the two repositories, or with the image itself.
fn between_them() -> Vec<Step> {
    let other_hash = |target: &mut Target| target.hashes = super::Hashes::of(Digest::sha256(b"other"));
    let shorter = |target: &mut Target| target.length -= 1;
    let spoilt = |repository: &str, role: &str, case: &str| {
        let (_, spoil, _) = CASES.into_iter().find(|(label, ..)| *label == case).unwrap();
        let mut pair = Pair::new();
        spoil(pair.of(repository), role);
        pair
    };
    let delegating = {
        let mut pair = Pair::new();
        delegate(&mut pair.director.targets, "helper", &key(9), &["*/*/*"]);
        pair.publish();
        pair
    };
    let twice = {
        let mut pair = Pair::new();
        let file = pair.director.file_of("targets");
        let text = String::from_utf8(pair.director.files[&file].clone()).unwrap();
        let path = format!("\"{}\":", named(&pair.content));
        let again = text.replacen(&path, &format!("{path}{{}},{path}"), 1);
        assert_ne!(text, again);
        pair.director.files.insert(file, again.into_bytes());
        pair
    };
    let mut bad_device = Pair::new();
    bad_device.assign("press-8");
    bad_device.publish();
    // An image for other hardware, which the director, images, or both pass off as one for this device.
    let director_hardware = {
        let mut pair = Pair::for_hardware("amd64");
        pair.director.resign("targets", |signed| {
            let entry = signed["targets"].as_object_mut().unwrap().values_mut().next().unwrap();
            entry["custom"]["platforms"] = json!(["linux/arm64"]);
        });
        pair
    };
    let images_hardware = {
        let (mut pair, honest) = (Pair::for_hardware("amd64"), Pair::new());
        pair.director = honest.director;
        pair
    };
    let steps = vec![
        ("simple", "taken", Pair::new()),
        ("director_target_hash_mismatch", "target mismatch", Pair::new().with_entry("director", other_hash)),
        ("image_repo_target_hash_mismatch", "target mismatch", Pair::new().with_entry("images", other_hash)),
        ("director_target_oversized", "target mismatch", Pair::new().with_entry("director", shorter)),
        ("image_repo_target_oversized", "target mismatch", Pair::new().with_entry("images", shorter)),
        (
            "target_oversized",
            "oversized target",
            Pair::new().with_entry("director", shorter).with_entry("images", shorter),
        ),
        ("director_bad_hw_id", "bad hardware", director_hardware),
        ("image_repo_bad_hw_id", "target mismatch", images_hardware),
        ("bad_hw_id", "bad hardware", Pair::for_hardware("amd64")),
        ("director_bad_ecu_id", "bad device id", bad_device),
        (
            "image_repo_snapshot_targets_version_mismatch",
            "version mismatch",
            spoilt("images", "targets", "of another version than is due"),
        ),
        ("director_delegations", "director delegates", delegating),
        ("director_targets_same_ecu", "repeated id", twice),
        ("image_repo_targets_too_large", "metadata fetch", spoilt("images", "targets", "oversized")),
        ("director_targets_too_large", "metadata fetch", spoilt("director", "targets", "oversized")),
    ];
    steps.into_iter().map(|(name, class, pair)| (name.to_owned(), class, pair)).collect()
}

/// What the director and images serve when all is well again: newer than anything that was spoilt.
fn well_again(delegated: bool) -> Pair {
    let mut pair = Pair::new();
    if delegated {
        pair.delegate(&["ghcr.io/acme/*"], false, 2);
    }
    for repository in [&mut pair.director, &mut pair.images] {
        repository.publish_next_root();
        repository.publish();
    }
    pair
}

#[test]
fn every_published_case_of_one_step_is_judged_as_published() {
    let steps: Vec<Step> =
        [in_every_role(), in_delegations(), between_them()].into_iter().flatten().collect();
    let names: BTreeSet<&str> = steps.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!((steps.len(), names.len()), (73, 73));
    for (name, expected, pair) in &steps {
        let mut device = Device::of(pair);
        let outcome = device.judge(pair);
        assert_eq!(class(&outcome), *expected, "{name}: {outcome:?}");
        // An update that fails half-way stands in the way of no later one.
        let after = device.judge(&well_again(name.starts_with("delegation")));
        assert_eq!(class(&after), "taken", "after {name}: {after:?}");
    }
}

/// The next root with another root key: signed by whom, and stating which version.
fn rotate(repository: &mut Repository, old: bool, new: bool, stated: u64) {
    let due = repository.root.version + 1;
    let next = delegated_key(&format!("root {due}"));
    repository.root.version = stated;
    repository.root.roles.root = RoleKeys::new(&[next.public()], 1);
    repository.root.keys.insert(next.public().id(), next.public().clone());
    let before = std::mem::replace(&mut repository.root_keys, vec![next]);
    let signers = [
        before.iter().filter(|_| old).collect::<Vec<_>>(),
        repository.root_keys.iter().filter(|_| new).collect(),
    ];
    let bytes = super::publish::sign(&repository.root, &signers.concat()).unwrap();
    repository.files.insert(format!("{due}.root.json"), bytes);
}

#[test]
fn every_published_case_of_two_steps_is_judged_as_published() {
    type Second = fn(&mut Repository);
    let rotations: [(&str, &str, Second); 6] = [
        ("root_rotation", "taken", |repository| rotate(repository, true, true, 3)),
        ("root_rotation_multiple", "taken", |repository| {
            rotate(repository, true, true, 3);
            rotate(repository, true, true, 4);
        }),
        ("root_rotation_no_original_signature", "unmet threshold", |repository| {
            rotate(repository, false, true, 3);
        }),
        ("root_rotation_no_new_signature", "unmet threshold", |repository| {
            rotate(repository, true, false, 3);
        }),
        ("root_rotation_version_unchanged", "root rotation", |repository| rotate(repository, true, true, 2)),
        ("root_rotation_version_skip", "root rotation", |repository| rotate(repository, true, true, 4)),
    ];
    for (name, expected, second) in rotations {
        for repository in ["director", "images"] {
            let mut pair = Pair::new();
            let mut device = Device::of(&pair);
            assert_eq!(class(&device.judge(&pair)), "taken");
            second(pair.of(repository));
            let outcome = device.judge(&pair);
            assert_eq!(class(&outcome), expected, "{repository}_{name}: {outcome:?}");
            if expected != "taken" {
                let after = device.judge(&well_again(false));
                assert_eq!(class(&after), "taken", "after {repository}_{name}: {after:?}");
            }
        }
    }
    // image_repo_metadata_changed_while_version_same
    let mut pair = Pair::new();
    let mut device = Device::of(&pair);
    assert_eq!(class(&device.judge(&pair)), "taken");
    pair.content = INDEX.replace("ARCHITECTURE", "arm64").replace("\"size\":2", "\"size\":3").into_bytes();
    pair.director.targets.targets.clear();
    pair.assign(DEVICE);
    pair.director.publish();
    pair.list();
    pair.images.publish_bare();
    let outcome = device.judge(&pair);
    assert_eq!(class(&outcome), "target mismatch", "{outcome:?}");
    pair.images.publish();
    assert_eq!(class(&device.judge(&pair)), "taken", "under a version of its own");
}
