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
