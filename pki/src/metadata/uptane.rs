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
        return Err(UptaneError::DirectorDelegates {
            version: targets.version,
        });
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
    })
}

impl Assigned {
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
        return Err(UptaneError::Length {
            target: target(),
            director,
            images,
        });
    }
    let digests: BTreeSet<Digest> = images.hashes.digests().collect();
    if digests.is_empty() || digests != director.hashes.digests().collect() {
        return Err(UptaneError::Hashes { target: target() });
    }
    // The director may leave the media type to images, but not contradict it.
    let media_type = custom(images, "media_type");
    if custom(director, "media_type").is_some_and(|said| Some(said) != media_type) {
        return Err(UptaneError::Custom {
            target: target(),
            field: "media_type",
        });
    }
    let media_type = media_type
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok());
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
