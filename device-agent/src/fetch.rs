//! Brings the contents of a release in, by digest, from the facade into the store.
//!
//! The store's committed offset is the only memory of a transfer: after a cut, a crash or a reboot the next attempt asks
//! for the rest. Whether bytes are right is decided by the store when a content ends; a document is read only after
//! that. Nothing is ever fetched from anywhere but the facade, whatever a document says.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use pki::digest::Digest;
use pki::oci::manifest::DocumentError;
use pki::oci::{ArtifactName, Descriptor, Document, Platform};
use thiserror::Error;

use crate::facade_client::{Class, ClientError, FacadeClient};
use crate::lifecycle::{Assigned, Release};
use crate::plan::{self, Known, Next, PlanError};
use crate::progress::Progress;
use crate::runtime::{Lease, Runtime, RuntimeError};

mod range;
mod transfer;

/// Why a release could not be brought in.
#[derive(Debug, Error)]
pub enum FetchError {
    /// It is not for this device, or does not fit.
    #[error("{artifact} cannot be brought in")]
    Plan {
        /// Which artifact.
        artifact: ArtifactName,
        /// Why not.
        #[source]
        source: PlanError,
    },
    /// A document is not acceptable, although both repositories signed its digest.
    #[error("document {digest} of {artifact} cannot be used")]
    Document {
        /// Which artifact.
        artifact: ArtifactName,
        /// Which document.
        digest: Digest,
        /// Why not.
        #[source]
        source: DocumentError,
    },
    /// Wrong bytes, again and again.
    #[error("the facade sent wrong bytes for {digest} {times} times")]
    Corrupt {
        /// For which content.
        digest: Digest,
        /// How often.
        times: u32,
        /// What the store says.
        #[source]
        source: RuntimeError,
    },
    /// The facade did not give it.
    #[error("{digest} could not be fetched")]
    Client {
        /// Which content.
        digest: Digest,
        /// Why not.
        #[source]
        source: ClientError,
    },
    /// The store did not take it.
    #[error("the store does not take the content")]
    Runtime(#[source] RuntimeError),
}

impl FetchError {
    /// Whether this is about what the content is, and not about getting it.
    pub fn is_verification(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Document { .. })
    }

    /// Whether the facade does not know this device any more.
    pub fn is_disowned(&self) -> bool {
        matches!(self, Self::Client { source, .. } if source.is_disowned())
    }

    /// What went wrong on the way to the facade, if it was that.
    pub fn class(&self) -> Option<Class> {
        if let Self::Client { source, .. } = self { Some(source.class()) } else { None }
    }
}

/// How a fetch behaves.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Layers side by side.
    pub parallel: usize,
    /// How long a connection may bring nothing.
    pub stall: Duration,
    /// The least bytes per second over the window.
    pub minimum_rate: u64,
    /// The window.
    pub rate_window: Duration,
    /// Bytes that stay free.
    pub reserve_bytes: u64,
    /// Attempts without any progress after which it is given up; `None` is never.
    pub attempts: Option<u32>,
}

/// Brings contents in.
pub struct Fetcher<'a> {
    /// From here.
    pub client: &'a FacadeClient,
    /// To there.
    pub runtime: &'a dyn Runtime,
    /// For this device.
    pub platform: &'a Platform,
    /// In this manner.
    pub limits: Limits,
    /// Counted here.
    pub progress: &'a Arc<Progress>,
}

impl Fetcher<'_> {
    /// Brings in everything of a release that is not there yet.
    pub async fn fetch(&self, release: &Release) -> Result<(), FetchError> {
        for assigned in release.assigned() {
            self.progress.begin(&assigned.artifact);
            let fetched = self.fetch_artifact(assigned).await;
            self.progress.end();
            fetched?;
        }
        Ok(())
    }

    async fn fetch_artifact(&self, assigned: &Assigned) -> Result<(), FetchError> {
        let artifact = &assigned.artifact;
        let lease = self.lease(artifact).await?;
        let root = assigned.root();
        let mut known = Known::default();
        loop {
            let next = plan::next(&root, &known, self.platform)
                .map_err(|source| FetchError::Plan { artifact: artifact.clone(), source })?;
            match next {
                Next::Complete => return Ok(()),
                Next::Document(descriptor) => {
                    let document = self.fetch_document(&lease, &descriptor).await?;
                    known.documents.insert(descriptor.digest, document);
                }
                Next::Blobs(blobs) => {
                    self.fetch_blobs(&lease, &blobs).await?;
                    known.present.extend(blobs.iter().map(|blob| blob.digest));
                }
            }
        }
    }

    /// The lease, waiting for a store that is just restarting.
    async fn lease(&self, artifact: &ArtifactName) -> Result<Lease, FetchError> {
        let mut patience = transfer::Patience::new(self.limits.attempts);
        loop {
            match self.runtime.open(artifact).await {
                Ok(lease) => return Ok(lease),
                Err(error) if error.is_transient() && patience.has_more() => {
                    self.progress.interrupted(error.to_string());
                    patience.wait(None).await;
                }
                Err(error) => return Err(FetchError::Runtime(error)),
            }
        }
    }

    async fn fetch_document(&self, lease: &Lease, descriptor: &Descriptor) -> Result<Document, FetchError> {
        self.progress.expect(descriptor.size);
        if self.holds(lease, descriptor).await? {
            self.progress.advance(descriptor.size);
        } else {
            self.transfer(lease, descriptor).await?;
        }
        let bytes = self.runtime.read(descriptor).await.map_err(FetchError::Runtime)?;
        Document::parse(&descriptor.media_type, &bytes).map_err(|source| FetchError::Document {
            artifact: lease.artifact().clone(),
            digest: descriptor.digest,
            source,
        })
    }

    async fn fetch_blobs(&self, lease: &Lease, blobs: &[Descriptor]) -> Result<(), FetchError> {
        let mut missing = Vec::new();
        for blob in blobs {
            self.progress.expect(blob.size);
            if self.holds(lease, blob).await? {
                self.progress.advance(blob.size);
            } else {
                missing.push(blob.clone());
            }
        }
        let space = self.runtime.space().await.map_err(FetchError::Runtime)?;
        plan::admit(&missing, &space, self.limits.reserve_bytes)
            .map_err(|source| FetchError::Plan { artifact: lease.artifact().clone(), source })?;
        futures_util::stream::iter(&missing)
            .map(|blob| self.transfer(lease, blob))
            .buffer_unordered(self.limits.parallel)
            .try_collect()
            .await
    }

    async fn holds(&self, lease: &Lease, content: &Descriptor) -> Result<bool, FetchError> {
        let mut patience = transfer::Patience::new(self.limits.attempts);
        loop {
            match self.runtime.hold(lease, content).await {
                Ok(held) => return Ok(held),
                Err(error) if error.is_transient() && patience.has_more() => {
                    self.progress.interrupted(error.to_string());
                    patience.wait(None).await;
                }
                Err(error) => return Err(FetchError::Runtime(error)),
            }
        }
    }
}
