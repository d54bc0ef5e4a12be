//! Images made on the spot: real layers (tar, gzip), configs, manifests and indexes, in OCI or Docker schema 2 dress.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use pki::digest::Digest;
use serde_json::{Value, json};

/// The media types one kind of image uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    /// The OCI image specification's.
    Oci,
    /// Docker's "schema 2".
    Docker,
}

impl Dress {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// A manifest or an index with the media type a registry is told.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its media type.
    pub media_type: &'static str,
    /// Its exact bytes.
    pub bytes: Vec<u8>,
}

impl Document {
    fn of(media_type: &'static str, value: &Value) -> Self {
        Self { media_type, bytes: serde_json::to_vec_pretty(value).expect("encode a document") }
    }

    /// The name the registry will know it by.
    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.bytes)
    }

    /// How an index points at it.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

/// An image, or an index over several, with everything it refers to.
#[derive(Clone, Debug)]
pub struct Image {
    /// What a tag points at.
    pub root: Document,
    /// The manifests below the root, when the root is an index.
    pub children: Vec<Document>,
    /// Configs and layers.
    pub blobs: BTreeMap<Digest, Arc<Vec<u8>>>,
    platform: String,
}

impl Image {
    /// An image that prints `words` when run.
    pub fn hello(words: &str) -> Self {
        ImageBuilder::new().says(words).build()
    }

    /// An index over images for several platforms, or over other indexes.
    pub fn index(images: &[Image]) -> Self {
        let dress = if images.iter().any(|image| image.root.media_type == Dress::Docker.manifest()) {
            Dress::Docker
        } else {
            Dress::Oci
        };
        let entries: Vec<Value> = images.iter().map(Self::index_entry).collect();
        let value = json!({"schemaVersion": 2, "mediaType": dress.index(), "manifests": entries});
        Self {
            root: Document::of(dress.index(), &value),
            // What an index names must be in the registry before it.
            children: images
                .iter()
                .flat_map(|image| image.children.iter().chain([&image.root]).cloned())
                .collect(),
            blobs: images.iter().flat_map(|image| image.blobs.clone()).collect(),
            platform: String::new(),
        }
    }

    fn index_entry(&self) -> Value {
        let mut entry = self.root.descriptor();
        if self.platform.is_empty() {
            return entry;
        }
        let mut parts = self.platform.split('/');
        let mut platform = json!({"os": parts.next(), "architecture": parts.next()});
        if let (Some(variant), Some(object)) = (parts.next(), platform.as_object_mut()) {
            object.insert("variant".into(), variant.into());
        }
        if let Some(object) = entry.as_object_mut() {
            object.insert("platform".into(), platform);
        }
        entry
    }

    /// The name of what a tag points at.
    pub fn digest(&self) -> Digest {
        self.root.digest()
    }

    /// The largest blob: the layer a story corrupts, cuts or counts.
    pub fn largest_blob(&self) -> Digest {
        let largest = self.blobs.iter().max_by_key(|(_, bytes)| bytes.len());
        largest.map(|(digest, _)| *digest).expect("an image with blobs")
    }

    /// Every digest of it: root, children, configs, layers.
    pub fn digests(&self) -> Vec<Digest> {
        let documents = std::iter::once(&self.root).chain(&self.children).map(Document::digest);
        documents.chain(self.blobs.keys().copied()).collect()
    }
}

/// Puts an image together.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    dress: Dress,
    platform: String,
    command: Vec<String>,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug)]
struct Layer {
    diff_id: Digest,
    compressed: Arc<Vec<u8>>,
}

impl ImageBuilder {
    /// An image for this machine with no layer yet.
    pub fn new() -> Self {
        Self {
            dress: Dress::Oci,
            platform: host_platform(),
            command: vec!["/bin/true".into()],
            layers: Vec::new(),
        }
    }

    /// Dresses it as Docker schema 2.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.dress = Dress::Docker;
        self
    }

    /// Makes it for `platform`, such as `linux/arm64` or `linux/arm/v7`.
    #[must_use]
    pub fn platform(mut self, platform: &str) -> Self {
        self.platform = platform.into();
        self
    }

    /// Adds busybox, and prints `words` when run.
    #[must_use]
    pub fn says(mut self, words: &str) -> Self {
        self.command = ["/bin/busybox", "echo", words].map(str::to_owned).to_vec();
        let busybox = std::fs::read("/bin/busybox").expect("read /bin/busybox (package busybox-static)");
        self.file("bin/busybox", 0o755, &busybox)
    }

    /// Adds a layer with one file.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.layer(path, mode, content, Compression::fast())
    }

    /// Adds a layer of about `size_bytes` that does not compress.
    #[must_use]
    pub fn random_layer(self, size_bytes: usize) -> Self {
        let path = format!("random-{}", self.layers.len());
        self.layer(&path, 0o644, &noise(size_bytes), Compression::none())
    }

    fn layer(mut self, path: &str, mode: u32, content: &[u8], compression: Compression) -> Self {
        let mut archive = tar::Builder::new(Vec::with_capacity(content.len() + 2048));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(0);
        archive.append_data(&mut header, path, content).expect("add a file to a layer");
        let plain = archive.into_inner().expect("finish a layer");
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len()), compression);
        encoder.write_all(&plain).expect("compress a layer");
        let compressed = encoder.finish().expect("compress a layer");
        self.layers.push(Layer { diff_id: Digest::sha256(&plain), compressed: Arc::new(compressed) });
        self
    }

    /// The finished image.
    pub fn build(self) -> Image {
        let config = self.config();
        let mut blobs = BTreeMap::new();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let digest = Digest::sha256(&layer.compressed);
                blobs.insert(digest, Arc::clone(&layer.compressed));
                json!({"mediaType": self.dress.layer(), "digest": digest, "size": layer.compressed.len()})
            })
            .collect();
        let config_digest = Digest::sha256(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.dress.manifest(),
            "config": {"mediaType": self.dress.config(), "digest": config_digest, "size": config.len()},
            "layers": layers,
        });
        blobs.insert(config_digest, Arc::new(config));
        Image {
            root: Document::of(self.dress.manifest(), &manifest),
            children: Vec::new(),
            blobs,
            platform: self.platform,
        }
    }

    fn config(&self) -> Vec<u8> {
        let mut parts = self.platform.split('/');
        let mut config = json!({
            "os": parts.next(),
            "architecture": parts.next(),
            "config": {"Cmd": self.command},
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>()},
        });
        if let (Some(variant), Some(object)) = (parts.next(), config.as_object_mut()) {
            object.insert("variant".into(), variant.into());
        }
        serde_json::to_vec(&config).expect("encode a config")
    }
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// The platform the tests run on.
pub fn host_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

/// Bytes that do not compress.
fn noise(size_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; size_bytes];
    getrandom::fill(&mut bytes).expect("random bytes");
    bytes
}
