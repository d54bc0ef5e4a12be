//! Brings the contents of a release in, by digest, from the facade into the store.
//!
//! The store's committed offset is the only memory of a transfer: after a cut, a crash or a reboot the next attempt asks
//! for the rest. Whether bytes are right is decided by the store when a content ends; a document is read only after
//! that. Nothing is ever fetched from anywhere but the facade, whatever a document says.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use pki::digest::Digest;
use pki::oci::manifest::DocumentError;
use pki::oci::{ArtifactName, Descriptor, Document, Platform};
use pki::wire::ByteRate;
use thiserror::Error;

use crate::facade_client::{Class, ClientError, FacadeClient};
use crate::lifecycle::{Assigned, Release};
use crate::plan::{self, Known, Missing, Next, NoRoom, PlanError};
use crate::progress::Progress;
use crate::runtime::{Lease, Runtime, RuntimeError};

mod range;
mod throttle;
mod transfer;

use throttle::Throttle;

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
    /// It does not fit.
    #[error(transparent)]
    NoRoom(NoRoom),
    /// What comes in is taken away again by somebody else.
    #[error("what was fetched is gone again from the store")]
    Vanishing,
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
    /// The most bytes per second, all layers together.
    pub rate: Option<ByteRate>,
    /// Bytes that stay free.
    pub reserve_bytes: u64,
    /// Bytes that unpacking the release is known to take at least.
    pub unpack_bytes: u64,
    /// Attempts without any progress after which it is given up; `None` is never.
    pub attempts: Option<u32>,
}

fn unsuitable(assigned: &Assigned) -> impl Fn(PlanError) -> FetchError {
    let artifact = assigned.artifact.clone();
    move |source| FetchError::Plan { artifact: artifact.clone(), source }
}

/// How often what was fetched is looked for before somebody else must be taking it away.
const MAX_PASSES: u32 = 4;

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

/// What all transfers of a fetch share.
struct Flow {
    throttle: Throttle,
    /// Bytes since it was last looked whether the disk still has room.
    unchecked_bytes: AtomicU64,
}

/// What is still to be fetched of one artifact.
struct Part {
    lease: Lease,
    missing: Vec<Missing>,
}

impl Fetcher<'_> {
    /// Brings in everything of a release that is not there yet. Before the first layer is asked for, all of them must
    /// fit.
    pub async fn fetch(&self, release: &Release) -> Result<(), FetchError> {
        let flow = Flow { throttle: Throttle::new(self.limits.rate), unchecked_bytes: AtomicU64::new(0) };
        for _ in 0..MAX_PASSES {
            let passed = self.pass(release, &flow).await;
            let remaining = self.progress.snapshot().map_or(0, |progress| progress.remaining_bytes());
            self.progress.end();
            match passed {
                // A store that was replaced meanwhile has lost what came before: only a whole pass tells.
                Ok(()) if self.is_complete(release).await => return Ok(()),
                Ok(()) => {}
                Err(FetchError::Runtime(error @ RuntimeError::NoSpace { .. })) => {
                    return Err(self
                        .shortage(remaining)
                        .await
                        .map_or(FetchError::Runtime(error), FetchError::NoRoom));
                }
                Err(error) => return Err(error),
            }
        }
        Err(FetchError::Vanishing)
    }

    /// Whether everything of a release is in the store already, as far as can be seen without the network.
    pub async fn is_complete(&self, release: &Release) -> bool {
        for assigned in release.assigned() {
            if !matches!(self.look(assigned).await, Ok(true)) {
                return false;
            }
        }
        true
    }

    async fn look(&self, assigned: &Assigned) -> Result<bool, FetchError> {
        let lease = self.runtime.open(&assigned.artifact).await.map_err(FetchError::Runtime)?;
        let mut known = Known::default();
        loop {
            let wanted = match self.next(assigned, &known).map_err(unsuitable(assigned))? {
                Next::Complete => return Ok(true),
                Next::Document(descriptor) => vec![descriptor],
                Next::Blobs(blobs) => blobs,
            };
            for content in wanted {
                if !self.runtime.hold(&lease, &content).await.map_err(FetchError::Runtime)? {
                    return Ok(false);
                }
                if plan::is_document(&content) {
                    let document = self.read_document(&lease, &content).await?;
                    known.documents.insert(content.digest, document);
                } else {
                    known.present.insert(content.digest);
                }
            }
        }
    }

    async fn pass(&self, release: &Release, flow: &Flow) -> Result<(), FetchError> {
        let mut parts = Vec::new();
        for (number, assigned) in release.assigned().enumerate() {
            if number == 0 {
                self.progress.begin(&assigned.artifact);
            }
            self.progress.at(&assigned.artifact);
            parts.push(self.resolve(assigned, flow).await?);
        }
        let missing: Vec<Missing> = parts.iter().flat_map(|part| part.missing.clone()).collect();
        let space = self.runtime.space().await.map_err(FetchError::Runtime)?;
        plan::admit(&missing, &space, self.limits.unpack_bytes, self.limits.reserve_bytes)
            .map_err(FetchError::NoRoom)?;
        for part in &parts {
            self.progress.at(part.lease.artifact());
            futures_util::stream::iter(&part.missing)
                .map(|missing| self.transfer(flow, &part.lease, &missing.content))
                .buffer_unordered(self.limits.parallel)
                .try_collect::<()>()
                .await?;
        }
        Ok(())
    }

    fn next(&self, assigned: &Assigned, known: &Known) -> Result<Next, PlanError> {
        plan::next(&assigned.root(), known, self.platform)
    }

    /// Fetches and reads the documents of an artifact, and finds out what else is missing.
    async fn resolve(&self, assigned: &Assigned, flow: &Flow) -> Result<Part, FetchError> {
        let lease = self.lease(&assigned.artifact).await?;
        let mut known = Known::default();
        loop {
            match self.next(assigned, &known).map_err(unsuitable(assigned))? {
                Next::Complete => return Ok(Part { lease, missing: Vec::new() }),
                Next::Document(descriptor) => {
                    let document = self.fetch_document(&lease, &descriptor, flow).await?;
                    known.documents.insert(descriptor.digest, document);
                }
                Next::Blobs(blobs) => {
                    let missing = self.missing(&lease, blobs).await?;
                    return Ok(Part { lease, missing });
                }
            }
        }
    }

    async fn missing(&self, lease: &Lease, blobs: Vec<Descriptor>) -> Result<Vec<Missing>, FetchError> {
        let mut missing = Vec::new();
        for content in blobs {
            self.progress.expect(content.size);
            if self.holds(lease, &content).await? {
                self.progress.advance(content.size);
            } else {
                let begun_bytes = self.runtime.begun(&content).await.unwrap_or_default();
                missing.push(Missing { content, begun_bytes });
            }
        }
        Ok(missing)
    }

    /// How much room is missing for what is still to come, where that can be seen.
    async fn shortage(&self, download_bytes: u64) -> Option<NoRoom> {
        let free_bytes = self.runtime.space().await.ok()?.content_free_bytes?;
        let reserve_bytes = self.limits.reserve_bytes;
        let unpacked_bytes = self.limits.unpack_bytes;
        let need_bytes = download_bytes.saturating_add(reserve_bytes).saturating_add(unpacked_bytes);
        Some(NoRoom { need_bytes, free_bytes, download_bytes, unpacked_bytes, reserve_bytes })
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

    async fn fetch_document(
        &self,
        lease: &Lease,
        descriptor: &Descriptor,
        flow: &Flow,
    ) -> Result<Document, FetchError> {
        self.progress.expect(descriptor.size);
        if self.holds(lease, descriptor).await? {
            match self.read_document(lease, descriptor).await {
                // A power cut can leave the name without the bytes.
                Err(FetchError::Runtime(error)) if error.damaged().is_some() => {
                    tracing::warn!(blob.digest = %descriptor.digest, "document is damaged and comes in anew");
                    self.runtime.discard(descriptor.digest).await.map_err(FetchError::Runtime)?;
                }
                read => {
                    self.progress.advance(descriptor.size);
                    return read;
                }
            }
        }
        self.transfer(flow, lease, descriptor).await?;
        self.read_document(lease, descriptor).await
    }

    async fn read_document(&self, lease: &Lease, descriptor: &Descriptor) -> Result<Document, FetchError> {
        let bytes = self.runtime.read(descriptor).await.map_err(FetchError::Runtime)?;
        Document::parse(&descriptor.media_type, &bytes).map_err(|source| FetchError::Document {
            artifact: lease.artifact().clone(),
            digest: descriptor.digest,
            source,
        })
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
                Err(error) if error.damaged().is_some() => {
                    tracing::warn!(blob.digest = %content.digest, "content is damaged and comes in anew");
                    self.runtime.discard(content.digest).await.map_err(FetchError::Runtime)?;
                    return Ok(false);
                }
                Err(error) => return Err(FetchError::Runtime(error)),
            }
        }
    }
}
