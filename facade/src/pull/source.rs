//! Where content comes from: the connected registries, seen as one function.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use pki::oci::RegistryHost;

use super::{PullError, Wanted};
use crate::catalog::closure::Kind;
use crate::upstream::{BlobStream, Registry, UpstreamError};

/// Content on its way, unverified.
pub struct Incoming {
    /// The offset of its first byte: what was asked for, or 0.
    pub starts_at: u64,
    /// The length of the whole content, if the registry says.
    pub total: Option<u64>,
    /// The bytes.
    pub pieces: BoxStream<'static, Result<Bytes, UpstreamError>>,
}

/// Asks a registry for content from an offset on.
pub type Fetch = Arc<dyn Fn(Wanted, u64) -> BoxFuture<'static, Result<Incoming, PullError>> + Send + Sync>;

/// The connected registries.
#[derive(Default)]
pub struct Registries(ArcSwap<HashMap<RegistryHost, Registry>>);

impl Registries {
    /// Connects a registry, in place of an earlier connection to the same host.
    pub fn connect(&self, registry: &Registry) {
        let host = registry.definition().host.clone();
        self.0.rcu(|registries| {
            let mut registries = HashMap::clone(registries);
            registries.insert(host.clone(), registry.clone());
            registries
        });
    }

    /// Ends a connection; flights that are under way go on.
    pub fn disconnect(&self, host: &RegistryHost) {
        self.0.rcu(|registries| {
            let mut registries = HashMap::clone(registries);
            registries.remove(host);
            registries
        });
    }

    /// The connection to a registry.
    pub fn get(&self, host: &RegistryHost) -> Option<Registry> {
        self.0.load().get(host).cloned()
    }

    /// The registries as one function.
    pub fn fetch(self: &Arc<Self>) -> Fetch {
        let registries = Arc::clone(self);
        Arc::new(move |wanted, from| {
            let registry = registries.get(wanted.repository.host());
            Box::pin(async move {
                let host = wanted.repository.host().clone();
                let registry = registry.ok_or(PullError::NotConnected { host })?;
                let digest = wanted.descriptor.digest;
                let incoming = ask(&registry, &wanted, from).await;
                incoming.map_err(|source| PullError::Upstream { digest, source })
            })
        })
    }
}

async fn ask(registry: &Registry, wanted: &Wanted, from: u64) -> Result<Incoming, UpstreamError> {
    let (name, digest) = (wanted.repository.name(), wanted.descriptor.digest);
    match wanted.kind {
        Kind::Document => {
            let bytes = registry.manifest(name, digest).await?.bytes;
            let total = Some(bytes.len() as u64);
            let pieces = stream::once(async { Ok(bytes) }).boxed();
            Ok(Incoming {
                starts_at: 0,
                total,
                pieces,
            })
        }
        Kind::Blob => {
            let blob = registry.blob(name, digest, from).await?;
            let (starts_at, total) = (blob.starts_at, blob.total);
            Ok(Incoming {
                starts_at,
                total,
                pieces: stream::unfold(Some(blob), next).boxed(),
            })
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
