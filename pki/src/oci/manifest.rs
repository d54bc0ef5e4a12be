//! Manifests and indexes, read in the one way that every client reads them.
//!
//! A [`Document`] is what an artifact is made of. [`Document::parse`] refuses whatever two readers could take for
//! different things, what cannot be delivered whole, and what would make a device fetch from somewhere else.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::descriptor::{Descriptor, MediaKind, MediaType};
use super::platform::Platform;
use crate::json::{self, JsonError};

/// Largest manifest or index in bytes. The distribution specification lets registries refuse more than this, and they do.
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;

/// An image manifest (OCI image specification, manifest.md; Docker schema 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The kind of artifact, when it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
}

/// An image index or manifest list (OCI image specification, image-index.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// The manifests, in order of preference.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// The manifest that suits the device best; the first of equals, as containerd takes it. Where none says that it
    /// suits, the only one that does not say what it is for: it may be an index itself, or its configuration tells.
    pub fn select(&self, device: &Platform) -> Option<&Descriptor> {
        let mut best: Option<(u8, &Descriptor)> = None;
        for descriptor in &self.manifests {
            let suits = descriptor.platform.as_ref().and_then(|platform| platform.suits(device));
            let Some(level) = suits else { continue };
            if best.is_none_or(|(best, _)| level > best) {
                best = Some((level, descriptor));
            }
        }
        best.map(|(_, descriptor)| descriptor).or_else(|| self.silent())
    }

    /// The only entry without a platform; none if there are several, among which only luck would choose.
    fn silent(&self) -> Option<&Descriptor> {
        let mut silent = self.manifests.iter().filter(|descriptor| descriptor.platform.is_none());
        silent.next().filter(|_| silent.next().is_none())
    }

    /// The platforms that it names, for people.
    pub fn platforms(&self) -> String {
        let platforms = self.manifests.iter().filter_map(|descriptor| descriptor.platform.as_ref());
        let runnable = platforms.filter(|platform| platform.is_runnable());
        let names: Vec<String> = runnable.map(ToString::to_string).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// A manifest.
    Manifest(Manifest),
    /// An index.
    Index(Index),
}

/// Why a document cannot be part of an artifact.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Larger than any registry must accept.
    #[error("manifest is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// Not readable, or readable in two ways.
    #[error("manifest cannot be read in one way only")]
    Json(#[source] JsonError),
    /// Docker schema 1.
    #[error(
        "Docker schema 1 manifests are not supported: their digest is not the hash of their bytes; push the image again with a current client"
    )]
    Schema1,
    /// Not a manifest or index.
    #[error("media type {0} is neither an image manifest nor an image index")]
    UnsupportedType(MediaType),
    /// The answer and the body name different types.
    #[error("manifest says it is {body} but was served as {served}")]
    TypeMismatch {
        /// The media type inside the document.
        body: String,
        /// The media type of the answer or descriptor.
        served: MediaType,
    },
    /// `schemaVersion` is not 2.
    #[error("manifest has schemaVersion {0} (expected 2)")]
    SchemaVersion(String),
    /// A key that another reader takes for one of the defined ones.
    #[error("manifest has the ambiguous key {0:?}")]
    AmbiguousKey(String),
    /// A layer that the device would have to fetch from elsewhere.
    #[error("layer {0} is a foreign layer, which devices cannot pull through the facade")]
    ForeignLayer(String),
    /// A layer without content, which containerd refuses.
    #[error("layer {0} is empty")]
    EmptyLayer(String),
    /// More children than a document of its size can sensibly have.
    #[error("manifest points at {0} descriptors (at most {MAX_DESCRIPTORS})")]
    TooMany(usize),
}

/// Most descriptors one document may have.
pub const MAX_DESCRIPTORS: usize = 4096;

impl Document {
    /// Reads a document that was served, or described by its parent, as `media_type`.
    pub fn parse(media_type: &MediaType, bytes: &[u8]) -> Result<Self, DocumentError> {
        let kind = media_type.kind();
        match kind {
            MediaKind::Manifest | MediaKind::Index => {}
            MediaKind::Schema1 => return Err(DocumentError::Schema1),
            MediaKind::ForeignLayer | MediaKind::Other => {
                return Err(DocumentError::UnsupportedType(media_type.clone()));
            }
        }
        let value = json::parse(bytes, MAX_DOCUMENT_BYTES).map_err(|error| match error {
            JsonError::TooLong(_) => DocumentError::TooLarge,
            error @ (JsonError::Malformed(_) | JsonError::Shape(_)) => DocumentError::Json(error),
        })?;
        check_reading(&value, media_type, kind)?;
        let shape = |error| DocumentError::Json(JsonError::Shape(error));
        let document = if kind == MediaKind::Index {
            Self::Index(serde_json::from_value(value).map_err(shape)?)
        } else {
            Self::Manifest(serde_json::from_value(value).map_err(shape)?)
        };
        document.check_children()?;
        Ok(document)
    }

    /// Everything the document points at and a device may need: of an index its manifests, of a manifest its
    /// configuration and layers.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, rest) = match self {
            Self::Manifest(manifest) => (Some(&manifest.config), &manifest.layers),
            Self::Index(index) => (None, &index.manifests),
        };
        config.into_iter().chain(rest)
    }

    fn check_children(&self) -> Result<(), DocumentError> {
        let count = self.children().count();
        if count > MAX_DESCRIPTORS {
            return Err(DocumentError::TooMany(count));
        }
        for child in self.children() {
            // containerd and skopeo fetch `urls` themselves, straight from the device and past the facade.
            if !child.urls.is_empty() || child.media_type.kind() == MediaKind::ForeignLayer {
                return Err(DocumentError::ForeignLayer(child.digest.to_string()));
            }
            if child.size == 0 {
                return Err(DocumentError::EmptyLayer(child.digest.to_string()));
            }
        }
        Ok(())
    }
}

/// The keys by which clients decide what a document is. Go's decoder matches them in any case, so a document with
/// `Layers` beside `layers` means one thing to us and another to containerd.
const KEYS: [&str; 7] =
    ["schemaVersion", "mediaType", "manifests", "config", "layers", "subject", "artifactType"];

fn check_reading(value: &Value, served: &MediaType, kind: MediaKind) -> Result<(), DocumentError> {
    let has = |key: &str| value.get(key).is_some();
    if has("fsLayers") || has("history") || value.get("schemaVersion") == Some(&Value::from(1)) {
        return Err(DocumentError::Schema1);
    }
    if value.get("schemaVersion") != Some(&Value::from(2)) {
        let found = value.get("schemaVersion").map_or_else(|| "none".to_owned(), Value::to_string);
        return Err(DocumentError::SchemaVersion(found.chars().take(40).collect()));
    }
    for key in value.as_object().into_iter().flat_map(|object| object.keys()) {
        let folded = KEYS.iter().any(|known| key != known && key.eq_ignore_ascii_case(known));
        let of_the_other_kind =
            if kind == MediaKind::Index { key == "layers" || key == "config" } else { key == "manifests" };
        if folded || of_the_other_kind {
            return Err(DocumentError::AmbiguousKey(key.chars().take(40).collect()));
        }
    }
    match value.get("mediaType") {
        None => Ok(()),
        Some(Value::String(body)) if body == served.as_str() => Ok(()),
        Some(body) => Err(DocumentError::TypeMismatch {
            body: body.to_string().chars().take(120).collect(),
            served: served.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn media_type(text: &str) -> MediaType {
        text.parse().unwrap()
    }

    fn descriptor(media_type: &str, extra: &str) -> String {
        let digest = Digest::sha256(extra.as_bytes());
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":7{extra}}}"#)
    }

    fn manifest(extra: &str) -> String {
        let config = descriptor("application/vnd.oci.image.config.v1+json", "");
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "");
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]{extra}}}"#)
    }

    fn index(platforms: &[&str]) -> Index {
        let of = |text: &&str| {
            let Platform { os, architecture, variant, .. } = text.parse().unwrap();
            let variant = variant.map(|variant| format!(r#","variant":"{variant}""#)).unwrap_or_default();
            let platform = format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"{variant}}}"#);
            descriptor(MediaType::OCI_MANIFEST, &platform)
        };
        let manifests = platforms.iter().map(of).collect::<Vec<_>>().join(",");
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{manifests}]}}"#);
        match Document::parse(&media_type(MediaType::OCI_INDEX), text.as_bytes()).unwrap() {
            Document::Index(index) => index,
            Document::Manifest(_) => unreachable!("an index was given"),
        }
    }

    fn refusal(served: &str, text: &str) -> DocumentError {
        Document::parse(&media_type(served), text.as_bytes()).unwrap_err()
    }

    #[test]
    fn reads_a_manifest_and_its_children() {
        let text = manifest(r#","annotations":{"a":"b"},"unknown":{"x":1.5}"#);
        let document = Document::parse(&media_type(MediaType::OCI_MANIFEST), text.as_bytes()).unwrap();
        assert_eq!(document.children().count(), 2);
    }

    #[test]
    fn selects_the_best_platform_and_ignores_attestations() {
        let index = index(&["unknown/unknown", "linux/arm/v6", "linux/arm/v7", "linux/arm64"]);
        let select = |device: &str| {
            let chosen = index.select(&device.parse().unwrap())?;
            chosen.platform.as_ref().map(ToString::to_string)
        };
        assert_eq!(select("linux/arm/v7").as_deref(), Some("linux/arm/v7"));
        assert_eq!(select("linux/arm/v6").as_deref(), Some("linux/arm/v6"));
        assert_eq!(select("linux/arm64/v8").as_deref(), Some("linux/arm64"));
        assert_eq!(select("linux/amd64"), None);
        assert_eq!(select("unknown/unknown").as_deref(), Some("unknown/unknown"));
    }

    #[test]
    fn rejects_documents_that_are_manifest_and_index() {
        let text = manifest(r#","manifests":[]"#);
        assert!(matches!(refusal(MediaType::OCI_MANIFEST, &text), DocumentError::AmbiguousKey(_)));
        assert!(matches!(refusal(MediaType::OCI_INDEX, &text), DocumentError::AmbiguousKey(_)));
    }

    #[test]
    fn rejects_keys_that_go_reads_in_another_case() {
        let text = manifest(r#","Layers":[]"#);
        assert!(matches!(refusal(MediaType::OCI_MANIFEST, &text), DocumentError::AmbiguousKey(_)));
    }

    #[test]
    fn rejects_duplicate_keys() {
        let text = manifest(r#","layers":[]"#);
        assert!(matches!(refusal(MediaType::OCI_MANIFEST, &text), DocumentError::Json(_)));
    }

    #[test]
    fn rejects_a_body_of_another_type_than_served() {
        let text = manifest(&format!(r#","mediaType":"{}""#, MediaType::OCI_INDEX));
        assert!(matches!(refusal(MediaType::OCI_MANIFEST, &text), DocumentError::TypeMismatch { .. }));
    }

    #[test]
    fn rejects_schema_1_however_it_is_served() {
        let text = r#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(refusal(MediaType::DOCKER_MANIFEST, text), DocumentError::Schema1));
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert!(matches!(refusal(signed, text), DocumentError::Schema1));
    }

    #[test]
    fn rejects_foreign_layers_by_type_and_by_urls() {
        let config = descriptor("application/vnd.oci.image.config.v1+json", "");
        for layer in [
            descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", ""),
            descriptor("application/vnd.oci.image.layer.v1.tar", r#","urls":["http://169.254.169.254/"]"#),
        ] {
            let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#);
            assert!(matches!(refusal(MediaType::OCI_MANIFEST, &text), DocumentError::ForeignLayer(_)));
        }
    }

    #[test]
    fn rejects_documents_over_four_mebibytes_and_takes_exactly_that() {
        let padded = |to: usize| {
            let text = manifest("");
            format!("{text}{}", " ".repeat(to - text.len()))
        };
        let served = media_type(MediaType::OCI_MANIFEST);
        assert!(Document::parse(&served, padded(MAX_DOCUMENT_BYTES).as_bytes()).is_ok());
        let refused = Document::parse(&served, padded(MAX_DOCUMENT_BYTES + 1).as_bytes());
        assert!(matches!(refused, Err(DocumentError::TooLarge)));
    }

    #[test]
    fn rejects_documents_that_are_not_manifests() {
        for text in ["[]", "null", "{}", r#"{"schemaVersion":2}"#, r#"{"schemaVersion":"2"}"#, "<html>"] {
            assert!(
                Document::parse(&media_type(MediaType::OCI_MANIFEST), text.as_bytes()).is_err(),
                "{text}"
            );
        }
        assert!(matches!(refusal("text/html", "{}"), DocumentError::UnsupportedType(_)));
    }
}
