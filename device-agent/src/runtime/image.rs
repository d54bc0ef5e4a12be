//! An image as it is handed over: which contents it is made of, in which order they belong to each other.
//!
//! Everything here was read from content that the store verified; nothing is taken from anywhere else. [`Image::load`]
//! is also how an image is found again after a restart.

use std::collections::HashMap;

use pki::digest::{Digest, Hasher};
use pki::json::{self, JsonError};
use pki::oci::descriptor::MediaKind;
use pki::oci::manifest::DocumentError;
use pki::oci::{ArtifactName, Choice, ChoiceError, Descriptor, Document, Manifest, Platform, choose};
use serde::Deserialize;
use thiserror::Error;

use super::{Runtime, RuntimeError};

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub artifact: ArtifactName,
    /// The document that the artifact's digest names: an index, or the manifest itself.
    pub root: Descriptor,
    /// The documents from there down to the manifest for this device, that last; none if `root` is the manifest.
    pub below: Vec<Descriptor>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The digests of the uncompressed layers; `None` for an artifact that is not a container image and is therefore
    /// handed over without being unpacked.
    pub diff_ids: Option<Vec<Digest>>,
}

/// Why contents do not make an image for this device.
#[derive(Debug, Error)]
pub enum ImageError {
    /// A content could not be read.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A manifest or index is not acceptable.
    #[error("document {digest} cannot be used")]
    Document {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: DocumentError,
    },
    /// The configuration is not acceptable.
    #[error("image configuration {digest} cannot be used")]
    Config {
        /// The configuration.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: JsonError,
    },
    /// No manifest for this device.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// Configuration and manifest disagree.
    #[error("image configuration {config} names {diff_ids} layers, the manifest has {layers}")]
    LayerCount {
        /// The configuration.
        config: Digest,
        /// Layers of the configuration.
        diff_ids: usize,
        /// Layers of the manifest.
        layers: usize,
    },
}

/// The part of an image configuration that matters here (OCI image specification, config.md).
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(flatten)]
    platform: Platform,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// The configuration types that describe a root file system.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

impl Image {
    /// Puts an image together from its manifest, which lies `below` the root, and the bytes of its configuration, for a
    /// device of `platform`.
    pub fn assemble(
        artifact: ArtifactName,
        (root, below): (Descriptor, Vec<Descriptor>),
        manifest: Manifest,
        config_bytes: &[u8],
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let diff_ids = if is_container_image(&manifest) {
            Some(diff_ids(&manifest, config_bytes, platform)?)
        } else {
            None
        };
        Ok(Self { artifact, root, below, config: manifest.config, layers: manifest.layers, diff_ids })
    }

    /// Reads an image whose contents are all in the store.
    pub async fn load(
        runtime: &dyn Runtime,
        artifact: &ArtifactName,
        root: &Descriptor,
        platform: &Platform,
    ) -> Result<Self, ImageError> {
        let mut documents: HashMap<Digest, Document> = HashMap::new();
        let (below, manifest) = loop {
            let unread = match choose(root, |digest| documents.get(digest), platform)? {
                Choice::Unread(descriptor) => descriptor.clone(),
                Choice::Manifest { below, manifest } => {
                    break (below.into_iter().cloned().collect(), manifest.clone());
                }
            };
            documents.insert(unread.digest, read_document(runtime, &unread).await?);
        };
        let config =
            if is_container_image(&manifest) { runtime.read(&manifest.config).await? } else { Vec::new() };
        Self::assemble(artifact.clone(), (root.clone(), below), manifest, &config, platform)
    }

    /// The manifest for this device.
    pub fn manifest(&self) -> &Descriptor {
        self.below.last().unwrap_or(&self.root)
    }

    /// Every content of the image once, documents first.
    pub fn contents(&self) -> Vec<&Descriptor> {
        let mut contents: Vec<&Descriptor> = Vec::new();
        let all = std::iter::once(&self.root).chain(&self.below).chain([&self.config]).chain(&self.layers);
        for content in all {
            // Layers may repeat (an empty layer often does).
            if !contents.iter().any(|known| known.digest == content.digest) {
                contents.push(content);
            }
        }
        contents
    }

    /// The layers with their chain identities, lowest first: what a snapshot of each is called (config.md, "Layer
    /// `ChainID`"). Empty for what is not unpacked.
    pub fn chain(&self) -> Vec<Link<'_>> {
        let mut below: Option<Digest> = None;
        let mut links = Vec::new();
        for (layer, diff_id) in self.layers.iter().zip(self.diff_ids.iter().flatten()) {
            let id = chain_id(below, *diff_id);
            links.push(Link { layer, diff_id: *diff_id, below, id });
            below = Some(id);
        }
        links
    }
}

/// One layer of an unpacked image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link<'a> {
    /// The compressed layer.
    pub layer: &'a Descriptor,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// The chain identity of what lies below.
    pub below: Option<Digest>,
    /// The chain identity up to and with this layer.
    pub id: Digest,
}

fn chain_id(below: Option<Digest>, diff_id: Digest) -> Digest {
    let Some(below) = below else { return diff_id };
    let mut hasher = Hasher::new(pki::digest::Algorithm::Sha256);
    hasher.update(format!("{below} {diff_id}").as_bytes());
    hasher.finish()
}

fn is_container_image(manifest: &Manifest) -> bool {
    IMAGE_CONFIGS.contains(&manifest.config.media_type.as_str())
}

fn diff_ids(
    manifest: &Manifest,
    config_bytes: &[u8],
    platform: &Platform,
) -> Result<Vec<Digest>, ImageError> {
    let digest = manifest.config.digest;
    let max = pki::oci::manifest::MAX_DOCUMENT_BYTES;
    let config: Config =
        json::parse_as(config_bytes, max).map_err(|source| ImageError::Config { digest, source })?;
    if config.platform.suits(platform).is_none() {
        let (want, have) = (platform.clone(), config.platform.to_string());
        return Err(ChoiceError::NoPlatform { want, have }.into());
    }
    if config.rootfs.diff_ids.len() != manifest.layers.len() {
        return Err(ImageError::LayerCount {
            config: digest,
            diff_ids: config.rootfs.diff_ids.len(),
            layers: manifest.layers.len(),
        });
    }
    Ok(config.rootfs.diff_ids)
}

async fn read_document(runtime: &dyn Runtime, descriptor: &Descriptor) -> Result<Document, ImageError> {
    let digest = descriptor.digest;
    let bytes = match descriptor.media_type.kind() {
        MediaKind::Manifest | MediaKind::Index => runtime.read(descriptor).await?,
        MediaKind::Schema1 | MediaKind::ForeignLayer | MediaKind::Other => Vec::new(),
    };
    Document::parse(&descriptor.media_type, &bytes).map_err(|source| ImageError::Document { digest, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(media_type: &str, text: &str) -> Descriptor {
        let digest = Digest::sha256(text.as_bytes());
        serde_json::from_value(json!({"mediaType": media_type, "digest": digest, "size": 7})).unwrap()
    }

    fn assemble(config_type: &str, config: &str, layers: &[&str]) -> Result<Image, ImageError> {
        let layer = |text: &&str| descriptor("application/vnd.oci.image.layer.v1.tar", text);
        let manifest = Manifest {
            config: descriptor(config_type, config),
            layers: layers.iter().map(layer).collect(),
            artifact_type: None,
            subject: None,
        };
        let root = descriptor("application/vnd.oci.image.manifest.v1+json", "manifest");
        let artifact = format!("ghcr.io/o/r@{}", root.digest).parse().unwrap();
        let platform = Platform::new("linux", "arm64", None);
        Image::assemble(artifact, (root, Vec::new()), manifest, config.as_bytes(), &platform)
    }

    fn config(architecture: &str, layers: &[&str]) -> String {
        let diff_ids: Vec<Digest> = layers.iter().map(|text| Digest::sha256(text.as_bytes())).collect();
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
        json!({"os": "linux", "architecture": architecture, "rootfs": rootfs, "config": {}}).to_string()
    }

    #[test]
    fn chain_identities_are_those_of_the_specification() {
        let image = assemble(IMAGE_CONFIGS[0], &config("arm64", &["a", "b", "a"]), &["x", "y", "x"]).unwrap();
        let chain = image.chain();
        assert_eq!(chain[0].id, Digest::sha256(b"a"));
        let second = format!("{} {}", Digest::sha256(b"a"), Digest::sha256(b"b"));
        assert_eq!(chain[1].id, Digest::sha256(second.as_bytes()));
        assert_eq!((chain[0].below, chain[2].below), (None, Some(chain[1].id)));
        // Root and manifest are one, and so are the outer layers.
        assert_eq!(image.contents().len(), 4);
    }

    #[test]
    fn what_is_not_a_container_image_is_not_unpacked() {
        let image = assemble("application/vnd.oci.empty.v1+json", "{}", &["chart"]).unwrap();
        assert_eq!(image.diff_ids, None);
        assert!(image.chain().is_empty());
    }

    #[test]
    fn rejects_a_configuration_for_another_platform() {
        let error = assemble(IMAGE_CONFIGS[1], &config("amd64", &["a"]), &["x"]).unwrap_err();
        assert!(matches!(error, ImageError::Choice(ChoiceError::NoPlatform { .. })), "{error:?}");
    }

    #[test]
    fn rejects_a_configuration_that_counts_other_layers() {
        let error = assemble(IMAGE_CONFIGS[0], &config("arm64", &["a", "b"]), &["x"]).unwrap_err();
        assert!(matches!(error, ImageError::LayerCount { .. }), "{error:?}");
    }

    #[test]
    fn rejects_configurations_that_are_not_read_in_one_way() {
        let good = config("arm64", &["a"]);
        let twice = good.replacen('{', r#"{"os":"linux","#, 1);
        for text in ["", "[]", "{}", &good.replace("sha256:", "md5:"), &twice] {
            let error = assemble(IMAGE_CONFIGS[0], text, &["x"]).unwrap_err();
            assert!(matches!(error, ImageError::Config { .. }), "{text}: {error:?}");
        }
    }
}
