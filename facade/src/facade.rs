//! The whole facade: its parts, put together once, and its life from start to drain.

use std::collections::HashSet;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pki::wire::{FacadeUrl, RootPin};
use pki::x509::{DeviceId, Fingerprint};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::auth::Tokens;
use crate::api::{device_door, problem::chain};
use crate::blobs::fs::FsBlobs;
use crate::blobs::{Blobs, BlobsError};
use crate::catalog::access::Access;
use crate::catalog::artifacts::Artifacts;
use crate::catalog::closure::{Closure, Kind};
use crate::catalog::devices::Devices;
use crate::catalog::imports::Resolved;
use crate::catalog::registries::{Registries, RegistriesError};
use crate::catalog::rollouts::Rollouts;
use crate::clock::Clock;
use crate::config::Config;
use crate::init::{DataDir, InitError};
use crate::metrics::Metrics;
use crate::publish::director::Director;
use crate::publish::images::Images;
use crate::publish::{Lifetimes, PublishingError};
use crate::pull::{PullError, Puller, Wanted};
use crate::server::DeviceDoor;
use crate::server::tls::{Tls, TlsError};
use crate::store::sled::{Opened, SledStore};
use crate::store::{Store, StoreError};
use crate::upstream::{self, Registry, Upstreams};

/// Between two looks at what is to be signed again, dumped or evicted.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// How many records are read at a time when the facade starts.
const STEP: usize = 1000;

/// Why the facade does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory is not complete or not safe.
    #[error(transparent)]
    DataDir(#[from] InitError),
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache does not open.
    #[error("cannot open the cache")]
    Blobs(#[from] BlobsError),
    /// A connection does not open.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// Metadata cannot be signed.
    #[error(transparent)]
    Publishing(#[from] PublishingError),
    /// The certificates do not work.
    #[error("the TLS configuration does not work")]
    Tls(#[from] TlsError),
    /// The devices cannot be read.
    #[error("the devices cannot be read")]
    Devices(#[from] crate::catalog::devices::DevicesError),
    /// A door's address is not free.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The certificate of the operator door cannot be used.
    #[error("the certificate of the operator door ({path}) cannot be used: {reason}")]
    OperatorTls {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The address that devices would be told is not one.
    #[error("{0:?} is not an address that devices can be told; set public_url")]
    PublicUrl(String),
}

/// Which root metadata new devices begin with.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Of the images repository.
    pub images: RootPin,
    /// Of the director repository.
    pub director: RootPin,
}

/// The facade's parts, as handlers see them.
pub struct Facade {
    pub(crate) access: Arc<Access>,
    pub(crate) artifacts: Artifacts,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) ca_fingerprint: Fingerprint,
    pub(crate) clock: Clock,
    pub(crate) devices: Devices,
    pub(crate) director: Director,
    pub(crate) est: Est,
    pub(crate) images: Images,
    pub(crate) metrics: Metrics,
    pub(crate) public_url: FacadeUrl,
    pub(crate) puller: Puller,
    pub(crate) registries: Arc<Registries>,
    pub(crate) rollouts: Rollouts,
    pub(crate) roots: Roots,
    pub(crate) stopping: CancellationToken,
    pub(crate) tokens: Tokens,
    pub(crate) wait_timeout: Duration,
}

impl Facade {
    /// Keeps the manifests that an import has read, so that no device makes us read them again.
    pub(crate) async fn keep_documents(&self, resolved: &Resolved) -> Result<(), PullError> {
        for descriptor in &resolved.closure.documents {
            if let Some(bytes) = resolved.documents.get(&descriptor.digest) {
                let repository = resolved.closure.name.repository().clone();
                let wanted = Wanted { repository, descriptor: descriptor.clone(), kind: Kind::Document };
                self.puller.keep(&wanted, bytes).await?;
            }
        }
        Ok(())
    }

    /// Fetches everything an artifact consists of into the cache.
    pub(crate) async fn pin(&self, closure: &Closure) -> Result<(), PullError> {
        for descriptor in &closure.blobs {
            let repository = closure.name.repository().clone();
            let wanted = Wanted { repository, descriptor: descriptor.clone(), kind: Kind::Blob };
            self.puller.prefetch(&wanted).await?;
        }
        Ok(())
    }

    /// Bytes in the cache.
    pub(crate) async fn cache_bytes(&self) -> Result<u64, BlobsError> {
        Ok(self.blobs.list().await?.iter().map(|held| held.size_bytes).sum())
    }

    /// Takes a device's record as it is now into memory.
    pub(crate) async fn reload_device(&self, id: &DeviceId) {
        match self.devices.get(id).await {
            Ok(Some(device)) => self.rollouts.device_changed(&device),
            Ok(None) => self.rollouts.device_deleted(id),
            Err(error) => tracing::error!(device.id = %id, error = %chain(&error), "device cannot be read"),
        }
    }

    /// Reads every artifact and device into memory, where requests are decided.
    async fn warm_up(&self) -> Result<(), StartError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.artifacts.list(None, after.as_deref(), STEP).await?;
            for artifact in page.iter().filter(|artifact| artifact.revoked_at.is_none()) {
                self.access.set_artifact(&artifact.closure);
            }
            match page.last() {
                Some(last) if page.len() == STEP => after = Some(last.name().to_string()),
                _ => break,
            }
        }
        let mut after = None;
        loop {
            let page = self.devices.list(after.as_ref(), STEP).await?;
            page.iter().for_each(|device| self.rollouts.device_changed(device));
            match page.last() {
                Some(last) if page.len() == STEP => after = Some(last.id.clone()),
                _ => return Ok(()),
            }
        }
    }
}
