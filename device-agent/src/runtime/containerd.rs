//! containerd as the place for images, over its gRPC socket and nothing else: what it stores stays its own matter.
//!
//! One namespace, one snapshotter. Every change is made under the lease of its delivery, so that no collection can take
//! a part before the image record holds the whole. Record labels are ours alone and never come out of an image
//! (CVE-2026-53488). containerd may be restarted or replaced at any moment: the next call connects again.

mod connection;
mod ingest;
mod leases;
mod records;
mod socket;
mod store;
mod unpack;
mod volumes;
mod write_stream;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor};
use thiserror::Error;
use tokio::sync::Semaphore;

use self::connection::Connection;
use super::image::Image;
use super::{About, Cleaned, Handed, Ingest, Lease, Runtime, RuntimeError, Space, Verification};

/// Which containerd, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace that images go to.
    pub namespace: Identifier,
    /// The snapshotter to unpack into; without one the default of the namespace, and then of containerd.
    pub snapshotter: Option<Identifier>,
}

/// The name of a namespace or plugin, by containerd's own rule; so it is always safe in a request header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identifier(Box<str>);

/// The text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not a containerd identifier (letters and digits, joined by single '.', '_' or '-', at most 76)"
)]
pub struct IdentifierError(String);

impl Identifier {
    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Identifier {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Self, IdentifierError> {
        let word = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if text.len() <= 76 && text.split(['.', '_', '-']).all(word) {
            Ok(Self(text.into()))
        } else {
            Err(IdentifierError(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A containerd. Making one does nothing; the first call connects.
#[derive(Debug)]
pub struct Containerd {
    connection: Arc<Connection>,
    namespace: Identifier,
    snapshotter: Option<Identifier>,
    // Two images with a layer in common would unpack it into one and the same snapshot.
    unpacking: Semaphore,
}

impl Containerd {
    /// Describes the containerd to use.
    pub fn new(settings: Settings) -> Self {
        Self {
            connection: Arc::new(Connection::new(settings.address, &settings.namespace)),
            namespace: settings.namespace,
            snapshotter: settings.snapshotter,
            unpacking: Semaphore::new(1),
        }
    }
}

#[async_trait]
impl Runtime for Containerd {
    async fn about(&self) -> Result<About, RuntimeError> {
        let version = self.connection.version().await?;
        self.unpacker().await?;
        Ok(About { kind: "containerd", version, address: self.connection.address() })
    }

    async fn space(&self) -> Result<Space, RuntimeError> {
        Ok(self.unpacker().await?.volumes().space())
    }

    async fn open(&self, artifact: &ArtifactName) -> Result<Lease, RuntimeError> {
        leases::open(&self.connection, artifact).await
    }

    async fn close(&self, lease: &Lease) -> Result<(), RuntimeError> {
        leases::delete(&self.connection, &leases::id(lease.artifact()), leases::Collect::Later).await
    }

    async fn clean(&self, keep: &[ArtifactName]) -> Result<Cleaned, RuntimeError> {
        leases::clean(&self.connection, keep).await
    }

    async fn hold(&self, lease: &Lease, content: &Descriptor) -> Result<bool, RuntimeError> {
        leases::hold(&self.connection, lease, content).await
    }

    async fn begin(&self, lease: &Lease, content: &Descriptor) -> Result<Box<dyn Ingest>, RuntimeError> {
        ingest::begin(&self.connection, lease, content).await
    }

    async fn begun(&self, content: &Descriptor) -> Result<u64, RuntimeError> {
        ingest::begun(&self.connection, content.digest).await
    }

    async fn read(&self, content: &Descriptor) -> Result<Vec<u8>, RuntimeError> {
        store::read(&self.connection, content).await
    }

    async fn import(&self, lease: &Lease, image: &Image) -> Result<(), RuntimeError> {
        for content in image.contents() {
            if !self.hold(lease, content).await? {
                return Err(RuntimeError::Missing { digest: content.digest });
            }
        }
        records::label(&self.connection, lease, image).await?;
        let unpacker = self.unpacker().await?;
        let turn = self.unpacking.acquire().await;
        unpacker.unpack(lease, image).await?;
        drop(turn);
        // Everything must be on the disk before the record says so: an image that is "there" after a power cut but
        // has empty files is worse than none.
        unpacker.volumes().sync().await?;
        records::put(&self.connection, image).await
    }

    async fn promote(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        records::promote(&self.connection, artifact).await
    }

    async fn images(&self) -> Result<Vec<Handed>, RuntimeError> {
        records::list(&self.connection).await
    }

    async fn remove(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        records::remove(&self.connection, artifact).await
    }

    async fn verify(&self, image: &Image) -> Result<Verification, RuntimeError> {
        let mut verification = store::verify(&self.connection, &image.contents()).await?;
        verification.unpacked_missing = !self.unpacker().await?.has(image).await?;
        Ok(verification)
    }

    async fn sync(&self) -> Result<(), RuntimeError> {
        self.unpacker().await?.volumes().sync().await
    }

    async fn discard(&self, digest: Digest) -> Result<(), RuntimeError> {
        store::discard(&self.connection, digest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_identifiers_of_containerd() {
        for text in ["drayage", "k8s.io", "a-b_c.d", "overlayfs", "0"] {
            assert_eq!(text.parse::<Identifier>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn rejects_identifiers_that_could_write_headers() {
        let long = "a".repeat(77);
        for text in ["", "a b", "a\r\nx: y", "a..b", "-a", "a-", "é", "a/b", &long] {
            assert!(text.parse::<Identifier>().is_err(), "{text:?}");
        }
    }
}
