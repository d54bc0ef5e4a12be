//! Where the two repositories must agree (Uptane 5.4.4.6): the director says what one device should have, images says what
//! exists; a device takes only what both say of the same bytes.
//!
//! [`assigned`] reads the director's document for one device; [`Assigned::agree`] holds it against what was found in images
//! and gives [`AgreedTarget`]s, which nothing else makes. One disagreement refuses all: a director that lies about one
//! target is not believed about the others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use thiserror::Error;

use super::lookup::TrustedTarget;
use super::names::TargetPath;
use super::roles::Target;
use super::trusted::TrustedSet;
use crate::digest::Digest;
use crate::oci::{ArtifactName, MediaType};

/// Why what the director says is not done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UptaneError {
    /// The document is for another device, or for none: a replay, also of an empty list.
    #[error("director's targets version {version} are for device {found:?}, not {expected:?}")]
    OtherDevice {
        /// The version of the director's targets.
        version: u64,
        /// The device that judges.
        expected: String,
        /// The device that the document names.
        found: Option<String>,
    },
    /// One entry is for another device.
    #[error("director assigns {target} to device {found:?}, not {expected:?}")]
    TargetOfOtherDevice {
        /// The target.
        target: TargetPath,
        /// The device that judges.
        expected: String,
        /// The device that the entry names.
        found: Option<String>,
    },
    /// The director delegates, which would let others decide for the device.
    #[error("director's targets version {version} delegate")]
    DirectorDelegates {
        /// The version of the director's targets.
        version: u64,
    },
    /// Both answers are of one repository, so that nothing was agreed.
    #[error("director and images are the same repository")]
    SameRepository,
    /// Images has no such target.
    #[error("images does not list {target}")]
    NotInImages {
        /// The target.
        target: TargetPath,
    },
    /// The two list different lengths.
    #[error("{target} has {director} bytes for the director and {images} in images")]
    Length {
        /// The target.
        target: TargetPath,
        /// The director's length.
        director: u64,
        /// The length in images.
        images: u64,
    },
    /// The two list different hashes, or none that is known here.
    #[error("director and images list different hashes for {target}")]
    Hashes {
        /// The target.
        target: TargetPath,
    },
    /// The two say different things of what the target is.
    #[error("director and images list different {field} for {target}")]
    Custom {
        /// The target.
        target: TargetPath,
        /// The field.
        field: &'static str,
    },
    /// The target's path is not the name of an artifact, or names other bytes than its hashes do.
    #[error("{target} is not named after its own digest")]
    Name {
        /// The target.
        target: TargetPath,
    },
    /// Images does not say what kind of document the target is.
    #[error("images does not say the media type of {target}")]
    MediaType {
        /// The target.
        target: TargetPath,
    },
}

/// What a director assigns to this device; checked by itself, not yet against images.
#[derive(Clone, Debug)]
pub struct Assigned {
    repository: Digest,
    targets: BTreeMap<TargetPath, Target>,
    policy: Option<Value>,
}

/// A target that director and images agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgreedTarget {
    name: ArtifactName,
    length: u64,
    media_type: MediaType,
    target: Target,
}

impl AgreedTarget {
    /// The artifact; its digest is the target's.
    pub fn name(&self) -> &ArtifactName {
        &self.name
    }

    /// Length of its manifest or index in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Media type of its manifest or index.
    pub fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// The entry in images, with all that it says.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// What a trusted director says that `device` should have.
pub fn assigned(director: &TrustedSet, device: &str) -> Result<Assigned, UptaneError> {
    let targets = director.targets();
    if targets.device() != Some(device) {
        return Err(UptaneError::OtherDevice {
            version: targets.version,
            expected: device.to_owned(),
            found: targets.device().map(str::to_owned),
        });
    }
    if targets.delegations.is_some() {
        return Err(UptaneError::DirectorDelegates { version: targets.version });
    }
    for (path, target) in &targets.targets {
        let found = custom(target, "device").and_then(Value::as_str);
        if found != Some(device) {
            return Err(UptaneError::TargetOfOtherDevice {
                target: path.clone(),
                expected: device.to_owned(),
                found: found.map(str::to_owned),
            });
        }
    }
    Ok(Assigned {
        repository: director.identity(),
        targets: targets.targets.clone(),
        policy: targets.extra.get(POLICY).cloned(),
    })
}

/// The field of the director's targets in which a device finds its [`crate::wire::DevicePolicy`].
pub const POLICY: &str = "policy";

impl Assigned {
    /// When and how fast the device may download and apply, as the director says it. It restricts a device and permits
    /// nothing, so images has no say in it.
    pub fn policy(&self) -> Option<&Value> {
        self.policy.as_ref()
    }

    /// The targets to be sought in images.
    pub fn paths(&self) -> impl Iterator<Item = &TargetPath> {
        self.targets.keys()
    }

    /// Holds every assigned target against what was found in images.
    pub fn agree(self, found: &[TrustedTarget]) -> Result<Vec<AgreedTarget>, UptaneError> {
        if found.iter().any(|images| *images.repository() == self.repository) {
            return Err(UptaneError::SameRepository);
        }
        let mut agreed = Vec::new();
        for (path, director) in self.targets {
            let Some(images) = found.iter().find(|images| *images.path() == path) else {
                return Err(UptaneError::NotInImages { target: path });
            };
            agreed.push(agree_on(&path, &director, images.target())?);
        }
        Ok(agreed)
    }
}

fn agree_on(path: &TargetPath, director: &Target, images: &Target) -> Result<AgreedTarget, UptaneError> {
    let target = || path.clone();
    if director.length != images.length {
        let (director, images) = (director.length, images.length);
        return Err(UptaneError::Length { target: target(), director, images });
    }
    let digests: BTreeSet<Digest> = images.hashes.digests().collect();
    if digests.is_empty() || digests != director.hashes.digests().collect() {
        return Err(UptaneError::Hashes { target: target() });
    }
    // The director may leave the media type to images, but not contradict it.
    let media_type = custom(images, "media_type");
    if custom(director, "media_type").is_some_and(|said| Some(said) != media_type) {
        return Err(UptaneError::Custom { target: target(), field: "media_type" });
    }
    let media_type = media_type.and_then(Value::as_str).and_then(|text| text.parse().ok());
    let name: Option<ArtifactName> = path.as_str().parse().ok();
    let name = name.filter(|name| digests.contains(&name.digest()) && name.to_string() == path.as_str());
    Ok(AgreedTarget {
        name: name.ok_or_else(|| UptaneError::Name { target: target() })?,
        length: images.length,
        media_type: media_type.ok_or_else(|| UptaneError::MediaType { target: target() })?,
        target: images.clone(),
    })
}

fn custom<'a>(target: &'a Target, field: &str) -> Option<&'a Value> {
    target.custom.as_ref()?.get(field)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::super::fixture::*;
    use super::super::publish::Successor as _;
    use super::*;

    const DEVICE: &str = "press-7";
    const CONTENT: &[u8] = b"a manifest";

    fn name() -> String {
        format!("ghcr.io/acme/web@{}", Digest::sha256(CONTENT))
    }

    fn entry(custom: Value) -> Target {
        let custom: Map<String, Value> = serde_json::from_value(custom).unwrap();
        Target::new(Digest::sha256(CONTENT), CONTENT.len() as u64, custom)
    }

    /// Director and images that agree; tests spoil one of them.
    fn pair() -> (Repository, Repository) {
        let mut director = Repository::new();
        director.targets.set_device(DEVICE);
        director.targets.targets.insert(path(&name()), entry(json!({"device": DEVICE})));
        let mut images = Repository::new();
        images.root = images.root.successor(time(LATER));
        images.publish_root();
        images.targets.targets.insert(path(&name()), entry(json!({"media_type": MediaType::OCI_MANIFEST})));
        (director, images)
    }

    fn judge(mut director: Repository, mut images: Repository) -> Result<Vec<AgreedTarget>, UptaneError> {
        director.publish();
        images.publish();
        let director = Client::new(&director).refresh(&director).unwrap();
        let mut client = Client::new(&images);
        let mut trusted = client.refresh(&images).unwrap();
        let assigned = assigned(&director, DEVICE)?;
        let mut found = Vec::new();
        for path in assigned.paths() {
            found.extend(client.seek(&mut trusted, &images.files, path.as_str()).unwrap());
        }
        assigned.agree(&found)
    }

    fn only(repository: &mut Repository) -> &mut Target {
        repository.targets.targets.values_mut().next().unwrap()
    }

    #[test]
    fn gives_what_both_say() {
        let (director, images) = pair();
        let agreed = judge(director, images).unwrap();
        assert_eq!(agreed.len(), 1);
        assert_eq!(agreed[0].name().to_string(), name());
        assert_eq!(agreed[0].length(), CONTENT.len() as u64);
        assert_eq!(agreed[0].media_type().to_string(), MediaType::OCI_MANIFEST);
    }

    #[test]
    fn tells_what_policy_the_director_signed_for_the_device() {
        let (mut director, _) = pair();
        director.targets.extra.insert(POLICY.to_owned(), json!({"metered": "no"}));
        director.publish();
        let trusted = Client::new(&director).refresh(&director).unwrap();
        assert_eq!(assigned(&trusted, DEVICE).unwrap().policy(), Some(&json!({"metered": "no"})));
    }

    #[test]
    fn rejects_a_document_for_another_device_even_if_it_lists_nothing() {
        for device in [Some("press-8"), None] {
            let (mut director, images) = pair();
            director.targets.targets.clear();
            director.targets.extra.clear();
            if let Some(device) = device {
                director.targets.set_device(device);
            }
            let refused = judge(director, images).unwrap_err();
            assert!(matches!(&refused, UptaneError::OtherDevice { found, .. } if found.as_deref() == device));
        }
    }

    #[test]
    fn rejects_a_target_assigned_to_another_device_or_to_none() {
        for custom in [json!({"device": "press-8"}), json!({}), json!({"device": 7})] {
            let (mut director, images) = pair();
            *only(&mut director) = entry(custom);
            assert!(matches!(judge(director, images), Err(UptaneError::TargetOfOtherDevice { .. })));
        }
    }

    #[test]
    fn rejects_a_director_that_delegates() {
        let (mut director, images) = pair();
        delegate(&mut director.targets, "helper", &key(9), &["*"]);
        assert!(matches!(judge(director, images), Err(UptaneError::DirectorDelegates { .. })));
    }

    #[test]
    fn rejects_a_target_that_images_does_not_list() {
        let (director, mut images) = pair();
        images.targets.targets.clear();
        assert!(matches!(judge(director, images), Err(UptaneError::NotInImages { .. })));
    }

    #[test]
    fn rejects_another_length() {
        let (mut director, images) = pair();
        only(&mut director).length += 1;
        assert!(matches!(judge(director, images), Err(UptaneError::Length { .. })));
    }

    #[test]
    fn rejects_other_hashes_also_of_a_second_algorithm() {
        let (mut director, images) = pair();
        only(&mut director).hashes = super::super::Hashes::of(Digest::sha256(b"other"));
        assert!(matches!(judge(director, images), Err(UptaneError::Hashes { .. })));
        let (mut director, images) = pair();
        let both = json!({"sha256": Digest::sha256(CONTENT).hex(), "sha512": "0".repeat(128)});
        only(&mut director).hashes = serde_json::from_value(both).unwrap();
        assert!(matches!(judge(director, images), Err(UptaneError::Hashes { .. })));
    }

    #[test]
    fn rejects_another_media_type_or_none() {
        let (mut director, images) = pair();
        *only(&mut director) = entry(json!({"device": DEVICE, "media_type": MediaType::OCI_INDEX}));
        assert!(matches!(judge(director, images), Err(UptaneError::Custom { field: "media_type", .. })));
        let (director, mut images) = pair();
        *only(&mut images) = entry(json!({}));
        assert!(matches!(judge(director, images), Err(UptaneError::MediaType { .. })));
    }

    #[test]
    fn rejects_a_target_that_is_named_after_other_bytes() {
        for name in [format!("ghcr.io/acme/web@{}", Digest::sha256(b"other")), "not an artifact".to_owned()] {
            let (mut director, mut images) = pair();
            for repository in [&mut director, &mut images] {
                let entry = repository.targets.targets.pop_first().unwrap().1;
                repository.targets.targets.insert(path(&name), entry);
            }
            assert!(matches!(judge(director, images), Err(UptaneError::Name { .. })), "{name}");
        }
    }

    #[test]
    fn rejects_the_director_as_its_own_witness() {
        let (mut director, _) = pair();
        director.publish();
        let mut client = Client::new(&director);
        let mut set = client.refresh(&director).unwrap();
        let assigned = assigned(&set, DEVICE).unwrap();
        let found = client.seek(&mut set, &director.files, &name()).unwrap();
        assert_eq!(assigned.agree(&Vec::from_iter(found)), Err(UptaneError::SameRepository));
    }

    #[test]
    fn an_empty_list_for_this_device_is_agreed_on() {
        let (mut director, images) = pair();
        director.targets.targets.clear();
        assert_eq!(judge(director, images), Ok(Vec::new()));
    }
}
