//! Where content comes from: the connected registries, seen as one function.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use pki::digest::{Digest, Mismatch};
use pki::oci::{RegistryHost, RepositoryName};

use super::{PullError, Wanted};
use crate::catalog::closure::Kind;
use crate::catalog::registries::Registries;
use crate::upstream::{BlobStream, Registry, UpstreamError};

/// Content on its way, unverified.
pub struct Incoming {
    /// The offset of its first byte: what was asked for, or 0.
    pub starts_at: u64,
    /// The length of the whole content, if the registry says.
    pub total: Option<u64>,
    /// The mirror that serves it, if it is not the repository's own registry.
    pub mirror: Option<RegistryHost>,
    /// The bytes.
    pub pieces: BoxStream<'static, Result<Bytes, UpstreamError>>,
}

/// Asks a registry for content from an offset on.
pub type Fetch = Arc<dyn Fn(Wanted, u64) -> BoxFuture<'static, Result<Incoming, PullError>> + Send + Sync>;

impl Incoming {
    /// Content that is already at hand.
    pub fn whole(bytes: Bytes) -> Self {
        let total = Some(bytes.len() as u64);
        Self { starts_at: 0, total, mirror: None, pieces: stream::once(async { Ok(bytes) }).boxed() }
    }
}

/// The connected registries, seen as one function. What a repository's own registry cannot serve, its mirrors may: a
/// digest is the same everywhere.
pub fn registries(registries: Arc<Registries>) -> Fetch {
    Arc::new(move |wanted, from| {
        let registries = Arc::clone(&registries);
        Box::pin(async move {
            let host = wanted.repository.host();
            let registry = registries.registry(host);
            // Without a connection of its own a repository's registry is not meant to be pulled from.
            let registry = registry.map_err(|_| PullError::NotConnected { host: host.clone() })?;
            let digest = wanted.descriptor.digest;
            let error = match ask(&registry, wanted.repository.name(), &wanted, from).await {
                Ok(incoming) => return Ok(incoming),
                Err(error) => error,
            };
            for (mirror, name) in registries.mirrors(&wanted.repository) {
                let mirrored = mirror.definition().host.clone();
                match ask(&mirror, &name, &wanted, from).await {
                    Ok(incoming) => {
                        tracing::info!(blob.digest = %digest, registry.host = %host, mirror.host = %mirrored, from, %error, "a mirror serves what the registry does not");
                        return Ok(Incoming { mirror: Some(mirrored), ..incoming });
                    }
                    Err(error) => {
                        tracing::debug!(blob.digest = %digest, mirror.host = %mirrored, %error, "the mirror does not serve it either");
                    }
                }
            }
            Err(PullError::Upstream { digest, source: error })
        })
    })
}

async fn ask(
    registry: &Registry,
    name: &RepositoryName,
    wanted: &Wanted,
    from: u64,
) -> Result<Incoming, UpstreamError> {
    let digest = wanted.descriptor.digest;
    match wanted.kind {
        Kind::Document => Ok(Incoming::whole(registry.manifest(name, digest).await?.bytes)),
        Kind::Blob => {
            let blob = registry.blob(name, digest, from).await?;
            let (starts_at, total) = (blob.starts_at, blob.total);
            Ok(Incoming { starts_at, total, mirror: None, pieces: stream::unfold(Some(blob), next).boxed() })
        }
    }
}

async fn next(blob: Option<BlobStream>) -> Option<(Result<Bytes, UpstreamError>, Option<BlobStream>)> {
    let mut blob = blob?;
    match blob.next().await {
        Ok(Some(bytes)) => Some((Ok(bytes), Some(blob))),
        Ok(None) => None,
        Err(error) => Some((Err(error), None)),
    }
}

/// Registries that asked to be left alone: until when. All flights to a registry share one wait, so that a rate limit is
/// not met with a request per flight.
#[derive(Default)]
pub(super) struct Cooldowns(Mutex<HashMap<RegistryHost, Instant>>);

impl Cooldowns {
    /// Leaves a registry alone for a while.
    pub(super) fn begin(&self, host: &RegistryHost, wait: Duration) {
        let until = Instant::now() + wait;
        let mut cooldowns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = cooldowns.entry(host.clone()).or_insert(until);
        *entry = until.max(*entry);
    }

    /// How long a registry still wants to be left alone.
    pub(super) fn remaining(&self, host: &RegistryHost) -> Option<Duration> {
        let mut cooldowns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let remaining = cooldowns.get(host)?.checked_duration_since(Instant::now());
        if remaining.is_none() {
            cooldowns.remove(host);
        }
        remaining
    }
}

/// What registries served wrongly a moment ago, by digest and promised length: a manifest with a wrong length must not
/// keep the content from those who have the right one.
#[derive(Default)]
pub(super) struct Distrusted(Mutex<HashMap<Served, (Instant, Mismatch)>>);

type Served = (RegistryHost, Digest, u64);

/// Entries after which the ones that are over are swept out.
const MANY_DISTRUSTED: usize = 1024;

impl Distrusted {
    /// Remembers that a registry served wrong bytes.
    pub(super) fn note(
        &self,
        host: &RegistryHost,
        (digest, size_bytes): (Digest, u64),
        mismatch: &Mismatch,
        held: Duration,
    ) {
        let mut distrusted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if distrusted.len() >= MANY_DISTRUSTED {
            distrusted.retain(|_, (since, _)| since.elapsed() < held);
        }
        distrusted.insert((host.clone(), digest, size_bytes), (Instant::now(), mismatch.clone()));
    }

    /// How the content that a registry served less than `held` ago was wrong.
    pub(super) fn recall(
        &self,
        host: &RegistryHost,
        (digest, size_bytes): (Digest, u64),
        held: Duration,
    ) -> Option<Mismatch> {
        let mut distrusted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (host.clone(), digest, size_bytes);
        let (since, mismatch) = distrusted.get(&key)?;
        if since.elapsed() < held {
            return Some(mismatch.clone());
        }
        distrusted.remove(&key);
        None
    }
}
