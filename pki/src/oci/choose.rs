//! From an artifact's digest down to the one manifest that a device runs.
//!
//! Facade and agent take the same way, so that what an import calls fit for a platform is what a device of that platform
//! finds. It is containerd's way where that is without doubt; where only luck would decide, nothing is chosen.

use thiserror::Error;

use super::descriptor::Descriptor;
use super::manifest::{Document, Manifest};
use super::platform::Platform;
use crate::digest::Digest;

/// How many indexes may lie between the root and a manifest.
pub const MAX_DEPTH: usize = 3;

/// Where the way ends, as far as the documents are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice<'a> {
    /// At a document that is still to be read.
    Unread(&'a Descriptor),
    /// At the manifest for the device.
    Manifest {
        /// The documents below the root, the manifest last; none if the root is the manifest.
        below: Vec<&'a Descriptor>,
        /// The manifest.
        manifest: &'a Manifest,
    },
}

/// Why no manifest can be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChoiceError {
    /// No manifest for this device.
    #[error("the artifact has no image for {want} (it has: {have})")]
    NoPlatform {
        /// What the device is.
        want: Platform,
        /// What there is.
        have: String,
    },
    /// Indexes nested too deeply.
    #[error("indexes are nested deeper than {MAX_DEPTH}")]
    TooDeep,
}

/// Goes from `root` to the manifest for `device`, through the documents that are known.
pub fn choose<'a>(
    root: &'a Descriptor,
    known: impl Fn(&Digest) -> Option<&'a Document>,
    device: &Platform,
) -> Result<Choice<'a>, ChoiceError> {
    let mut below = Vec::new();
    let mut at = root;
    while below.len() <= MAX_DEPTH {
        match known(&at.digest) {
            None => return Ok(Choice::Unread(at)),
            Some(Document::Manifest(manifest)) => return Ok(Choice::Manifest { below, manifest }),
            Some(Document::Index(index)) => {
                at = index.select(device).ok_or_else(|| ChoiceError::NoPlatform {
                    want: device.clone(),
                    have: index.platforms(),
                })?;
                below.push(at);
            }
        }
    }
    Err(ChoiceError::TooDeep)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::oci::MediaType;

    #[derive(Default)]
    struct Documents(HashMap<Digest, Document>);

    impl Documents {
        fn add(&mut self, media_type: &str, body: &Value) -> Descriptor {
            let bytes = serde_json::to_vec(body).unwrap();
            let digest = Digest::sha256(&bytes);
            self.0.insert(digest, Document::parse(&media_type.parse().unwrap(), &bytes).unwrap());
            let entry = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
            serde_json::from_value(entry).unwrap()
        }

        fn manifest(&mut self, name: &str) -> Descriptor {
            let blob = |media_type: &str| json!({"mediaType": media_type, "digest": Digest::sha256(name.as_bytes()), "size": 1});
            let config = blob("application/vnd.oci.image.config.v1+json");
            let layers = [blob("application/vnd.oci.image.layer.v1.tar")];
            let body = json!({"schemaVersion": 2, "config": config, "layers": layers});
            self.add(MediaType::OCI_MANIFEST, &body)
        }

        fn index(&mut self, manifests: &[Descriptor]) -> Descriptor {
            self.add(MediaType::OCI_INDEX, &json!({"schemaVersion": 2, "manifests": manifests}))
        }

        /// The digests on the way down.
        fn way(&self, root: &Descriptor) -> Result<Vec<Digest>, ChoiceError> {
            let device = "linux/arm64".parse().unwrap();
            match choose(root, |digest| self.0.get(digest), &device)? {
                Choice::Unread(descriptor) => Ok(vec![descriptor.digest]),
                Choice::Manifest { below, .. } => Ok(below.iter().map(|document| document.digest).collect()),
            }
        }
    }

    fn of(platform: &str, descriptor: &Descriptor) -> Descriptor {
        Descriptor { platform: Some(platform.parse().unwrap()), ..descriptor.clone() }
    }

    #[test]
    fn a_manifest_is_its_own_choice() {
        let mut documents = Documents::default();
        let root = documents.manifest("a");
        assert_eq!(documents.way(&root), Ok(vec![]));
    }

    #[test]
    fn asks_for_what_it_does_not_know_yet() {
        let mut documents = Documents::default();
        let manifest = documents.manifest("a");
        let root = documents.index(&[of("linux/arm64", &manifest)]);
        documents.0.remove(&manifest.digest);
        assert_eq!(documents.way(&root), Ok(vec![manifest.digest]));
        documents.0.clear();
        assert_eq!(documents.way(&root), Ok(vec![root.digest]));
    }

    #[test]
    fn goes_through_indexes_inside_an_index() {
        let mut documents = Documents::default();
        let (arm, amd) = (documents.manifest("arm"), documents.manifest("amd"));
        let inner = documents.index(&[of("linux/amd64", &amd), of("linux/arm64", &arm)]);
        for outer in [inner.clone(), of("linux/arm64", &inner)] {
            let root = documents.index(&[of("linux/amd64", &amd), outer]);
            assert_eq!(documents.way(&root), Ok(vec![inner.digest, arm.digest]));
        }
    }

    #[test]
    fn takes_the_only_manifest_that_does_not_say_its_platform() {
        let mut documents = Documents::default();
        let (silent, amd) = (documents.manifest("silent"), documents.manifest("amd"));
        let attestation = of("unknown/unknown", &documents.manifest("attestation"));
        let root = documents.index(&[of("linux/amd64", &amd), silent.clone(), attestation]);
        assert_eq!(documents.way(&root), Ok(vec![silent.digest]));
    }

    #[test]
    fn rejects_to_guess_among_manifests_that_do_not_say_their_platform() {
        let mut documents = Documents::default();
        let silent = [documents.manifest("a"), documents.manifest("b")];
        let root = documents.index(&silent);
        let error = documents.way(&root).unwrap_err();
        assert_eq!(error.to_string(), "the artifact has no image for linux/arm64 (it has: none)");
    }

    #[test]
    fn rejects_an_artifact_without_an_image_for_this_device() {
        let mut documents = Documents::default();
        let amd = of("linux/amd64", &documents.manifest("amd"));
        let root = documents.index(&[amd]);
        let error = documents.way(&root).unwrap_err();
        assert_eq!(error.to_string(), "the artifact has no image for linux/arm64 (it has: linux/amd64)");
    }

    #[test]
    fn rejects_indexes_nested_without_end() {
        let mut documents = Documents::default();
        let mut root = documents.manifest("a");
        for _ in 0..MAX_DEPTH {
            root = documents.index(&[root]);
        }
        assert_eq!(documents.way(&root).unwrap().len(), MAX_DEPTH);
        let deeper = documents.index(&[root]);
        assert_eq!(documents.way(&deeper), Err(ChoiceError::TooDeep));
    }
}
