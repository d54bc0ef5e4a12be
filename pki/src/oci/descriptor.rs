//! Descriptors: what a document says about the content it points at.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::platform::Platform;
use crate::digest::Digest;

/// A media type, safe to put into a header.
///
/// Registries and manifests are hostile: clients are known to accept line breaks in `mediaType`, which would let an
/// image write headers of our answers. Only the characters of RFC 6838 restricted names get in.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MediaType(Box<str>);

/// What a media type says a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaKind {
    /// An image manifest (OCI, or Docker schema 2).
    Manifest,
    /// An image index or manifest list.
    Index,
    /// Docker schema 1, whose digest is not the hash of its bytes.
    Schema1,
    /// A layer that must be fetched from elsewhere (`foreign`, `nondistributable`).
    ForeignLayer,
    /// Anything else.
    Other,
}

/// The text is not a media type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a media type (RFC 6838)")]
pub struct MediaTypeError(String);

impl MediaType {
    /// `application/vnd.oci.image.manifest.v1+json`.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// `application/vnd.oci.image.index.v1+json`.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// `application/vnd.docker.distribution.manifest.v2+json`.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// `application/vnd.docker.distribution.manifest.list.v2+json`.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

    /// The type as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the type says a document is.
    pub fn kind(&self) -> MediaKind {
        match &*self.0 {
            Self::OCI_MANIFEST | Self::DOCKER_MANIFEST => MediaKind::Manifest,
            Self::OCI_INDEX | Self::DOCKER_LIST => MediaKind::Index,
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => MediaKind::Schema1,
            other if other.contains(".foreign.") || other.contains(".nondistributable.") => {
                MediaKind::ForeignLayer
            }
            _ => MediaKind::Other,
        }
    }
}

impl FromStr for MediaType {
    type Err = MediaTypeError;

    fn from_str(text: &str) -> Result<Self, MediaTypeError> {
        let name = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
            !part.is_empty() && part.len() <= 127 && part.bytes().all(allowed)
        };
        match text.split_once('/') {
            Some((kind, subtype)) if name(kind) && name(subtype) => Ok(Self(text.into())),
            _ => Err(MediaTypeError(text.chars().take(80).collect())),
        }
    }
}

crate::text_newtypes!(MediaType);

/// A typed, sized pointer to content (OCI image specification, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// Which content it is.
    pub digest: Digest,
    /// Its length in bytes.
    #[serde(deserialize_with = "size_bytes")]
    pub size: u64,
    /// For a manifest in an index: where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Other places to fetch the content from. Never followed; a document that has them is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form properties.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// For a manifest in an index: the kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
}

/// Sizes are 63-bit integers (descriptor.md: "int64"); a float or a larger number means different sizes to different
/// readers.
fn size_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    if i64::try_from(size).is_err() {
        return Err(serde::de::Error::custom("size does not fit 63 bits"));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_media_types_that_could_write_headers() {
        for text in ["", "a", "a/", "/b", "a/b\r\nX: y", "a/b c", "a/b;c=d", "a/b/c", "a/é"] {
            assert!(text.parse::<MediaType>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn knows_the_kinds_it_must_tell_apart() {
        let kind = |text: &str| text.parse::<MediaType>().unwrap().kind();
        assert_eq!(kind(MediaType::OCI_INDEX), MediaKind::Index);
        assert_eq!(kind(MediaType::DOCKER_MANIFEST), MediaKind::Manifest);
        assert_eq!(kind("application/vnd.docker.distribution.manifest.v1+prettyjws"), MediaKind::Schema1);
        assert_eq!(
            kind("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            MediaKind::ForeignLayer
        );
        assert_eq!(
            kind("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            MediaKind::ForeignLayer
        );
        assert_eq!(kind("application/vnd.oci.image.layer.v1.tar+gzip"), MediaKind::Other);
    }

    #[test]
    fn rejects_sizes_that_readers_disagree_on() {
        let descriptor = |size: &str| {
            let digest = Digest::sha256(b"");
            serde_json::from_str::<Descriptor>(&format!(
                r#"{{"mediaType":"a/b","digest":"{digest}","size":{size}}}"#
            ))
        };
        assert!(descriptor("9223372036854775807").is_ok());
        for size in ["-1", "1.0", "1e3", "\"1\"", "9223372036854775808", "18446744073709551616", "null"] {
            assert!(descriptor(size).is_err(), "{size}");
        }
    }
}
