//! The closure of an artifact: every digest that belongs to it, frozen when it was imported.
//!
//! Whoever may have the artifact may have exactly these digests, and knows type and length of each before it comes.

use pki::oci::{ArtifactName, Descriptor};
use serde::{Deserialize, Serialize};

/// Everything that an artifact consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closure {
    /// The artifact.
    pub name: ArtifactName,
    /// Its manifest or index.
    pub root: Descriptor,
    /// Every index and manifest, the root among them, of all platforms: clients ask for all of them.
    pub documents: Vec<Descriptor>,
    /// Every configuration and layer.
    pub blobs: Vec<Descriptor>,
}

impl Closure {
    /// Length of all content together; content that several documents point at counts once.
    pub fn size_bytes(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let all = self.documents.iter().chain(&self.blobs);
        all.filter(|descriptor| seen.insert(descriptor.digest))
            .fold(0, |sum: u64, descriptor| sum.saturating_add(descriptor.size))
    }
}

/// Under which of the two paths of the distribution API content is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `manifests/<digest>`.
    Document,
    /// `blobs/<digest>`.
    Blob,
}
