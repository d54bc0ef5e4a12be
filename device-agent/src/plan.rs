//! What to bring in next, decided from what is known and what is there.
//!
//! Pure. An index comes before its manifest for this device, that before configuration and layers; what is present is
//! not asked for; nothing is asked for that would not fit on the disk with room to spare. Documents get in here only
//! after their digest was verified.

use std::collections::{BTreeMap, BTreeSet};

use pki::digest::Digest;
use pki::oci::descriptor::MediaKind;
use pki::oci::manifest::MAX_DOCUMENT_BYTES;
use pki::oci::{Choice, ChoiceError, Descriptor, Document, Platform, choose};
use thiserror::Error;

use crate::runtime::Space;

/// What is known of one artifact.
#[derive(Debug, Default)]
pub struct Known {
    /// Its documents that are here.
    pub documents: BTreeMap<Digest, Document>,
    /// Its configuration and layers that are here.
    pub present: BTreeSet<Digest>,
}

/// What to do for an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Bring in this manifest or index and read it.
    Document(Descriptor),
    /// Bring in these, in any order.
    Blobs(Vec<Descriptor>),
    /// Everything is here.
    Complete,
}

/// Why an artifact cannot be brought in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// No manifest for this device.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// Something else where a manifest or index should be.
    #[error("{0} stands where a manifest should be")]
    NotAManifest(Digest),
    /// A document larger than any registry must accept.
    #[error("{digest} would be {size_bytes} bytes long, more than the {MAX_DOCUMENT_BYTES} of any manifest")]
    DocumentTooLarge {
        /// Which.
        digest: Digest,
        /// Its promised length.
        size_bytes: u64,
    },
    /// One digest with two lengths: at least one is a lie.
    #[error("{0} is given two different lengths")]
    TwoLengths(Digest),
}

/// It does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "not enough room: {need_bytes} bytes are needed ({download_bytes} to download, {unpacked_bytes} to unpack, \
     {reserve_bytes} to stay free), {free_bytes} are free"
)]
pub struct NoRoom {
    /// What it takes in all.
    pub need_bytes: u64,
    /// What there is.
    pub free_bytes: u64,
    /// What is still to be downloaded.
    pub download_bytes: u64,
    /// What unpacking takes, as far as can be known before.
    pub unpacked_bytes: u64,
    /// What stays free.
    pub reserve_bytes: u64,
}

/// A content that is not here, or not whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub content: Descriptor,
    /// How much of it is here.
    pub begun_bytes: u64,
}

/// What to do next for the artifact whose manifest or index is `root`.
pub fn next<'a>(root: &'a Descriptor, known: &'a Known, platform: &Platform) -> Result<Next, PlanError> {
    let manifest = match choose(root, |digest| known.documents.get(digest), platform)? {
        Choice::Unread(descriptor) => return document(descriptor),
        Choice::Manifest { manifest, .. } => manifest,
    };
    if manifest.config.size > MAX_DOCUMENT_BYTES as u64 {
        return Err(PlanError::DocumentTooLarge {
            digest: manifest.config.digest,
            size_bytes: manifest.config.size,
        });
    }
    let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
    missing(blobs, &known.present)
}

/// Whether a content is a manifest or an index.
pub fn is_document(content: &Descriptor) -> bool {
    matches!(content.media_type.kind(), MediaKind::Manifest | MediaKind::Index)
}

fn document(descriptor: &Descriptor) -> Result<Next, PlanError> {
    if !is_document(descriptor) {
        return Err(PlanError::NotAManifest(descriptor.digest));
    }
    if descriptor.size > MAX_DOCUMENT_BYTES as u64 {
        return Err(PlanError::DocumentTooLarge { digest: descriptor.digest, size_bytes: descriptor.size });
    }
    Ok(Next::Document(descriptor.clone()))
}

fn missing<'a>(
    blobs: impl Iterator<Item = &'a Descriptor>,
    present: &BTreeSet<Digest>,
) -> Result<Next, PlanError> {
    let mut seen: BTreeMap<Digest, u64> = BTreeMap::new();
    let mut wanted = Vec::new();
    for blob in blobs {
        match seen.insert(blob.digest, blob.size) {
            Some(size) if size != blob.size => return Err(PlanError::TwoLengths(blob.digest)),
            Some(_) => {}
            None if present.contains(&blob.digest) => {}
            None => wanted.push(blob.clone()),
        }
    }
    if wanted.is_empty() { Ok(Next::Complete) } else { Ok(Next::Blobs(wanted)) }
}

/// Lets what is missing in only where it fits, unpacked too, and leaves a reserve. What runs now and what it would go
/// back to are on the disk already and stay. Unpacking takes at least `unpack_bytes`. Where the place cannot be seen,
/// nothing is known and nothing is refused.
pub fn admit(
    missing: &[Missing],
    space: &Space,
    unpack_bytes: u64,
    reserve_bytes: u64,
) -> Result<(), NoRoom> {
    let sum = |bytes: &dyn Fn(&Missing) -> u64| {
        missing.iter().fold(0_u64, |sum, missing| sum.saturating_add(bytes(missing)))
    };
    let download_bytes = sum(&|missing| missing.content.size.saturating_sub(missing.begun_bytes));
    let unpacked_bytes = match space.unpacked_free_bytes {
        Some(_) => sum(&|missing| unpacked(&missing.content)).max(unpack_bytes),
        None => 0,
    };
    let fits = |download_bytes: u64, unpacked_bytes: u64, free: Option<u64>| {
        let need = download_bytes.saturating_add(unpacked_bytes);
        let need_bytes = need.saturating_add(reserve_bytes);
        match free {
            Some(free_bytes) if need > 0 && free_bytes < need_bytes => {
                Err(NoRoom { need_bytes, free_bytes, download_bytes, unpacked_bytes, reserve_bytes })
            }
            _ => Ok(()),
        }
    };
    if space.shared {
        return fits(download_bytes, unpacked_bytes, space.content_free_bytes);
    }
    fits(download_bytes, 0, space.content_free_bytes)?;
    fits(0, unpacked_bytes, space.unpacked_free_bytes)
}

/// What a layer will take when it is unpacked: its own size if it is not compressed, else what such layers usually do.
fn unpacked(blob: &Descriptor) -> u64 {
    let compressed = ["gzip", "zstd"].iter().any(|how| blob.media_type.as_str().ends_with(how));
    if compressed { blob.size.saturating_mul(7) / 2 } else { blob.size }
}

#[cfg(test)]
mod tests {
    use pki::oci::MediaType;

    use super::*;

    fn descriptor(media_type: &str, name: &str, size: u64) -> Descriptor {
        serde_json::from_value(serde_json::json!({
            "mediaType": media_type, "digest": Digest::sha256(name.as_bytes()), "size": size,
        }))
        .unwrap()
    }

    fn layer(name: &str) -> Descriptor {
        descriptor("application/vnd.oci.image.layer.v1.tar+gzip", name, 100)
    }

    fn manifest(layers: &[Descriptor]) -> Document {
        let config = descriptor("application/vnd.oci.image.config.v1+json", "config", 10);
        let json = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        let bytes = serde_json::to_vec(&json).unwrap();
        Document::parse(&MediaType::OCI_MANIFEST.parse().unwrap(), &bytes).unwrap()
    }

    fn index(platform: &str, size: u64) -> Document {
        let mut entry = descriptor(MediaType::OCI_MANIFEST, "manifest", size);
        entry.platform = Some(platform.parse().unwrap());
        let json = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
        let bytes = serde_json::to_vec(&json).unwrap();
        Document::parse(&MediaType::OCI_INDEX.parse().unwrap(), &bytes).unwrap()
    }

    fn root() -> Descriptor {
        descriptor(MediaType::OCI_INDEX, "index", 500)
    }

    fn device() -> Platform {
        "linux/arm64".parse().unwrap()
    }

    #[test]
    fn goes_from_the_index_to_the_manifest_to_what_is_missing() {
        let mut known = Known::default();
        let step = |known: &Known| next(&root(), known, &device()).unwrap();
        assert_eq!(step(&known), Next::Document(root()));
        known.documents.insert(root().digest, index("linux/arm64", 300));
        let Next::Document(chosen) = step(&known) else {
            panic!("expected a manifest");
        };
        assert_eq!(chosen.digest, Digest::sha256(b"manifest"));
        let layers = [layer("a"), layer("b"), layer("a")];
        known.documents.insert(chosen.digest, manifest(&layers));
        let Next::Blobs(blobs) = step(&known) else {
            panic!("expected blobs");
        };
        assert_eq!(blobs.len(), 3, "the repeated layer is asked for once");
        known.present.insert(layer("b").digest);
        let Next::Blobs(blobs) = step(&known) else {
            panic!("expected blobs");
        };
        known.present.extend(blobs.iter().map(|blob| blob.digest));
        assert_eq!(step(&known), Next::Complete);
    }

    #[test]
    fn rejects_documents_of_absurd_size_before_asking_for_them() {
        let huge = descriptor(MediaType::OCI_MANIFEST, "index", u64::MAX / 2);
        assert!(matches!(next(&huge, &Known::default(), &device()), Err(PlanError::DocumentTooLarge { .. })));
        let mut known = Known::default();
        known.documents.insert(root().digest, index("linux/arm64", 1 << 40));
        assert!(next(&root(), &known, &device()).is_err());
    }

    #[test]
    fn rejects_one_digest_with_two_lengths() {
        let mut longer = layer("a");
        longer.size += 1;
        let mut known = Known::default();
        known.documents.insert(root().digest, manifest(&[layer("a"), longer]));
        assert!(matches!(next(&root(), &known, &device()), Err(PlanError::TwoLengths(_))));
    }

    #[test]
    fn rejects_what_is_no_manifest_in_the_place_of_one() {
        let mut known = Known::default();
        let mut entry = layer("a");
        entry.platform = Some(device());
        let json = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
        let bytes = serde_json::to_vec(&json).unwrap();
        let index = Document::parse(&MediaType::OCI_INDEX.parse().unwrap(), &bytes).unwrap();
        known.documents.insert(root().digest, index);
        assert!(matches!(next(&root(), &known, &device()), Err(PlanError::NotAManifest(_))));
    }

    #[test]
    fn admits_only_what_fits_with_its_unpacked_form_and_the_reserve() {
        let space = |content, unpacked, shared| Space {
            content_free_bytes: content,
            unpacked_free_bytes: unpacked,
            shared,
        };
        let begun = |begun_bytes| [Missing { content: layer("a"), begun_bytes }];
        let admit = |missing: &[Missing], space: &Space| admit(missing, space, 0, 10);
        assert!(admit(&begun(0), &space(Some(460), Some(460), true)).is_ok());
        let shortage = admit(&begun(0), &space(Some(459), Some(459), true)).unwrap_err();
        assert_eq!((shortage.need_bytes, shortage.free_bytes), (460, 459));
        assert_eq!(
            (shortage.download_bytes, shortage.unpacked_bytes, shortage.reserve_bytes),
            (100, 350, 10)
        );
        assert!(
            admit(&begun(1), &space(Some(459), Some(459), true)).is_ok(),
            "what is here takes no more room"
        );
        assert!(admit(&begun(0), &space(Some(110), None, false)).is_ok());
        assert!(admit(&begun(0), &space(Some(110), Some(300), false)).is_err());
        assert!(admit(&begun(0), &space(None, None, false)).is_ok());
        assert!(admit(&[], &space(Some(0), None, false)).is_ok(), "nothing is missing");
    }

    #[test]
    fn what_did_not_fit_when_it_was_unpacked_is_not_tried_in_the_same_room() {
        let space =
            |free| Space { content_free_bytes: Some(free), unpacked_free_bytes: Some(free), shared: true };
        assert!(admit(&[], &space(1000), 1100, 10).is_err());
        assert!(admit(&[], &space(1110), 1100, 10).is_ok());
    }
}
