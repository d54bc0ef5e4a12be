//! Imports: a tag resolved to what it points at now, checked whole, and frozen.
//!
//! What is frozen is the [`Closure`]: every digest that belongs to the artifact, with its length and type. From then on
//! nobody asks the registry what anything is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use pki::digest::{self, Algorithm, Digest};
use pki::oci::choose::MAX_DEPTH;
use pki::oci::manifest::DocumentError;
use pki::oci::{
    ArtifactName, Descriptor, Document, MediaType, Platform, ReferenceError, Repository, Tag, choose,
};
use thiserror::Error;

use super::closure::Closure;
use crate::upstream::{Registry, Served, UpstreamError};

/// Most manifests that one artifact may have.
const MAX_DOCUMENTS: usize = 1024;

/// Most bytes that the manifests of one artifact may have together: they are held in memory until all are there.
const MAX_DOCUMENTS_BYTES: u64 = 64 * 1024 * 1024;

/// Longest artifact: numbers beyond this are not the same in every JSON reader, and cannot be signed.
const MAX_ARTIFACT_BYTES: u64 = (1 << 53) - 1;

/// Manifests of one artifact that are fetched at a time.
const AT_A_TIME: usize = 8;

/// Largest image configuration that is read for its platform.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// Why a tag cannot become an artifact.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The registry did not give it.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// A manifest cannot be part of an artifact.
    #[error("manifest {digest} cannot be imported")]
    Document {
        /// Which one.
        digest: Digest,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// A manifest is not as long as its index says.
    #[error("manifest {digest} has {found} bytes and its index says {expected}")]
    Size {
        /// Which one.
        digest: Digest,
        /// What the index says.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A manifest is not of the type its index says.
    #[error("manifest {digest} is served as {found} and its index says {expected}")]
    Type {
        /// Which one.
        digest: Digest,
        /// What the index says.
        expected: MediaType,
        /// What the registry says.
        found: MediaType,
    },
    /// One digest is described in two ways.
    #[error("{0} is described with two different lengths or types")]
    Ambiguous(Digest),
    /// A part is named by a digest that devices cannot store.
    #[error(
        "{0} is not a sha256 digest; containerd 1.6, which devices may have, stores no other (push the image again with sha256)"
    )]
    Sha512(Digest),
    /// Indexes nested too deeply.
    #[error("indexes are nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// Nothing in it that a device could run.
    #[error("the index {0} has no manifests, so there is no platform that it is for")]
    NoManifests(Digest),
    /// Manifests, and no way to tell which one is for whom.
    #[error(
        "the index {0} has several manifests that do not say their platform, so no device could choose one"
    )]
    NoChoice(Digest),
    /// Too many manifests.
    #[error("there are more than {MAX_DOCUMENTS} manifests")]
    TooMany,
    /// Longer than anything that exists.
    #[error("its manifests, or all its parts together, are larger than any real image")]
    TooLarge,
    /// The image configuration is not one.
    #[error("the configuration {0} is not an image configuration")]
    Config(Digest),
}

/// What resolving a tag gave: the closure, the platforms, and the documents' bytes.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Everything the artifact consists of.
    pub closure: Closure,
    /// The platforms it runs on.
    pub platforms: Vec<Platform>,
    /// The bytes of every document, verified.
    pub documents: HashMap<Digest, Bytes>,
}

/// What is to be imported of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What a tag points at now.
    Tag(Tag),
    /// This and nothing else; a tag beside it is only a label, as docker has it.
    Digest {
        /// The tag that was named beside the digest.
        label: Option<Tag>,
        /// What is to be imported.
        digest: Digest,
    },
}

impl Wanted {
    /// The tag that it was named by.
    pub fn label(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest { label, .. } => label.as_ref(),
        }
    }

    /// The tag whose target the import finds out.
    pub fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest { .. } => None,
        }
    }
}

/// `v1`, `sha256:…`, or `v1@sha256:…`.
impl FromStr for Wanted {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (label, digest) = match text.split_once('@') {
            Some(("", digest)) => (None, digest),
            Some((tag, digest)) => (Some(tag.parse()?), digest),
            // No tag has a colon.
            None if text.contains(':') => (None, text),
            None => return Ok(Self::Tag(text.parse()?)),
        };
        Ok(Self::Digest { label, digest: digest.parse()? })
    }
}

/// Asks for what is wanted: what a tag names now, with the digest computed here, or what a digest names.
pub async fn look_up(
    registry: &Registry,
    repository: &Repository,
    wanted: &Wanted,
) -> Result<Served, ImportError> {
    let served = match wanted {
        Wanted::Tag(tag) => registry.resolve(repository.name(), tag).await?,
        Wanted::Digest { digest, .. } => registry.manifest(repository.name(), *digest).await?,
    };
    Ok(served)
}

/// Reads everything that the closure of a manifest or index needs.
pub async fn resolve(
    registry: &Registry,
    repository: &Repository,
    served: Served,
) -> Result<Resolved, ImportError> {
    let mut walk = Walk {
        registry,
        repository,
        closure: empty_closure(repository, &served),
        bytes: HashMap::new(),
        documents: HashMap::new(),
        platforms: Vec::new(),
        seen: HashSet::new(),
    };
    let root = walk.closure.root.clone();
    let mut level = vec![(root, served)];
    for _ in 0..=MAX_DEPTH {
        level = walk.read(level).await?;
        if level.is_empty() {
            check_digests(&walk.closure)?;
            if walk.closure.size_bytes() > MAX_ARTIFACT_BYTES {
                return Err(ImportError::TooLarge);
            }
            walk.check_choice()?;
            return Ok(Resolved { closure: walk.closure, platforms: walk.platforms, documents: walk.bytes });
        }
    }
    Err(ImportError::TooDeep)
}

fn empty_closure(repository: &Repository, served: &Served) -> Closure {
    Closure {
        name: ArtifactName::new(repository.clone(), served.digest),
        root: descriptor(served),
        documents: Vec::new(),
        blobs: Vec::new(),
    }
}

fn descriptor(served: &Served) -> Descriptor {
    Descriptor {
        media_type: served.media_type.clone(),
        digest: served.digest,
        size: served.bytes.len() as u64,
        platform: None,
        urls: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
        artifact_type: None,
    }
}

/// The walk from an index down to its layers.
struct Walk<'a> {
    registry: &'a Registry,
    repository: &'a Repository,
    closure: Closure,
    bytes: HashMap<Digest, Bytes>,
    documents: HashMap<Digest, Document>,
    platforms: Vec<Platform>,
    seen: HashSet<Digest>,
}

impl Walk<'_> {
    /// Takes one level of documents into the closure, and gives the next.
    async fn read(
        &mut self,
        level: Vec<(Descriptor, Served)>,
    ) -> Result<Vec<(Descriptor, Served)>, ImportError> {
        let mut children = Vec::new();
        for (descriptor, served) in level {
            let document = self.take(descriptor.clone(), &served)?;
            match &document {
                Document::Manifest(manifest) => {
                    for child in document.children() {
                        self.take_blob(child);
                    }
                    self.note_platform(&descriptor, &manifest.config).await?;
                }
                Document::Index(index) if index.manifests.is_empty() => {
                    return Err(ImportError::NoManifests(descriptor.digest));
                }
                Document::Index(index) => {
                    let new = index.manifests.iter().filter(|child| self.seen.insert(child.digest));
                    children.extend(new.cloned());
                }
            }
            self.documents.insert(descriptor.digest, document);
        }
        if self.closure.documents.len() + children.len() > MAX_DOCUMENTS {
            return Err(ImportError::TooMany);
        }
        let held = self.closure.documents.iter().chain(&children);
        let bytes = held.fold(0, |sum: u64, document| sum.saturating_add(document.size));
        if bytes > MAX_DOCUMENTS_BYTES {
            return Err(ImportError::TooLarge);
        }
        let (registry, name) = (self.registry, self.repository.name());
        let fetch = |child: Descriptor| async move {
            let served = registry.manifest(name, child.digest).await?;
            check_length(&child, &served)?;
            Ok((child, served))
        };
        // In order, so that the same artifact always has the same closure and platforms.
        stream::iter(children).map(fetch).buffered(AT_A_TIME).try_collect().await
    }

    fn take(&mut self, descriptor: Descriptor, served: &Served) -> Result<Document, ImportError> {
        check_length(&descriptor, served)?;
        if served.media_type != descriptor.media_type {
            return Err(ImportError::Type {
                digest: descriptor.digest,
                expected: descriptor.media_type,
                found: served.media_type.clone(),
            });
        }
        let document = Document::parse(&descriptor.media_type, &served.bytes)
            .map_err(|source| ImportError::Document { digest: descriptor.digest, source })?;
        self.bytes.insert(descriptor.digest, served.bytes.clone());
        self.closure.documents.push(plain(&descriptor));
        Ok(document)
    }

    fn take_blob(&mut self, child: &Descriptor) {
        let child = plain(child);
        if !self.closure.blobs.contains(&child) {
            self.closure.blobs.push(child);
        }
    }

    /// A manifest's platform is what its index says, or else what its configuration says.
    async fn note_platform(&mut self, manifest: &Descriptor, config: &Descriptor) -> Result<(), ImportError> {
        let platform = match &manifest.platform {
            Some(platform) => Some(platform.clone()),
            None if is_image_config(&config.media_type) => self.platform_of(config).await?,
            None => None,
        };
        if let Some(platform) = platform
            && platform.is_runnable()
            && !self.platforms.contains(&platform)
        {
            self.platforms.push(platform);
        }
        Ok(())
    }

    /// Keeps the platforms whose devices find their manifest; an artifact that is for nobody then is refused.
    fn check_choice(&mut self) -> Result<(), ImportError> {
        let (root, documents) = (&self.closure.root, &self.documents);
        let found = |platform: &Platform| choose(root, |digest| documents.get(digest), platform).is_ok();
        let had_platforms = !self.platforms.is_empty();
        self.platforms.retain(found);
        if had_platforms && self.platforms.is_empty() {
            return Err(ImportError::NoChoice(root.digest));
        }
        Ok(())
    }

    async fn platform_of(&self, config: &Descriptor) -> Result<Option<Platform>, ImportError> {
        let wrong = || ImportError::Config(config.digest);
        if config.size > MAX_CONFIG_BYTES {
            return Err(wrong());
        }
        let mut stream = self.registry.blob(self.repository.name(), config.digest, 0).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > config.size {
                return Err(wrong());
            }
        }
        digest::verify(config.digest, &bytes).map_err(|source| UpstreamError::DigestMismatch {
            host: self.repository.host().as_str().into(),
            source,
        })?;
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
        Ok(serde_json::from_value(value).ok())
    }
}

fn check_length(descriptor: &Descriptor, served: &Served) -> Result<(), ImportError> {
    let found = served.bytes.len() as u64;
    if found == descriptor.size {
        return Ok(());
    }
    Err(ImportError::Size { digest: descriptor.digest, expected: descriptor.size, found })
}

/// Only what a closure needs: type, digest, length.
fn plain(descriptor: &Descriptor) -> Descriptor {
    Descriptor {
        platform: None,
        annotations: std::collections::BTreeMap::new(),
        artifact_type: None,
        ..descriptor.clone()
    }
}

fn is_image_config(media_type: &MediaType) -> bool {
    matches!(
        media_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    )
}

/// What cannot be stored by a device, or read in two ways, is refused before anything is signed.
fn check_digests(closure: &Closure) -> Result<(), ImportError> {
    let mut all = closure.documents.iter().chain(&closure.blobs);
    match all.find(|descriptor| descriptor.digest.algorithm() != Algorithm::Sha256) {
        Some(descriptor) => Err(ImportError::Sha512(descriptor.digest)),
        None => check_unambiguous(closure),
    }
}

/// A digest with two lengths or types would be served in one way and installed in another.
fn check_unambiguous(closure: &Closure) -> Result<(), ImportError> {
    let mut lengths: HashMap<Digest, u64> = HashMap::new();
    let mut documents: BTreeSet<Digest> = BTreeSet::new();
    for document in &closure.documents {
        documents.insert(document.digest);
    }
    for descriptor in closure.documents.iter().chain(&closure.blobs) {
        if *lengths.entry(descriptor.digest).or_insert(descriptor.size) != descriptor.size {
            return Err(ImportError::Ambiguous(descriptor.digest));
        }
    }
    match closure.blobs.iter().find(|blob| documents.contains(&blob.digest)) {
        Some(blob) => Err(ImportError::Ambiguous(blob.digest)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tags_and_digests_as_docker_writes_them() {
        let digest = Digest::sha256(b"x");
        let tag = |text: &str| text.parse::<Tag>().unwrap();
        for (text, expected) in [
            ("v1".to_owned(), Wanted::Tag(tag("v1"))),
            (digest.to_string(), Wanted::Digest { label: None, digest }),
            (format!("@{digest}"), Wanted::Digest { label: None, digest }),
            (format!("v1@{digest}"), Wanted::Digest { label: Some(tag("v1")), digest }),
        ] {
            assert_eq!(text.parse::<Wanted>().unwrap(), expected, "{text}");
        }
        for text in ["", "a b", "sha256:abc", "v1@", "v1@v2", "a/b", "sha256:", "v1@sha256:abc"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }
}
