//! The whole facade: its parts, put together once, and its life from start to drain.

mod housekeeping;
mod settings;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pki::wire::FacadeUrl;
use pki::x509::{DeviceId, Fingerprint, ServerName};
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::alarm::Raised;
use crate::api::auth::Tokens;
use crate::api::enroll::limit::Limit;
use crate::api::enroll::{self, Est};
use crate::api::events::MAX_FOLLOWERS;
use crate::api::{device_door, problem::chain};
use crate::blobs::fs::FsBlobs;
use crate::blobs::{Blobs, BlobsError};
use crate::catalog::access::Access;
use crate::catalog::artifacts::Artifacts;
use crate::catalog::assignments::Assignments;
use crate::catalog::audit::{Audit, AuditError};
use crate::catalog::closure::{Closure, Kind};
use crate::catalog::devices::{Devices, Standing};
use crate::catalog::events::{self, Events};
use crate::catalog::imports::Resolved;
use crate::catalog::pins::Pins;
use crate::catalog::policies::Policies;
use crate::catalog::probe::Probe;
use crate::catalog::pulls::{Pulls, PullsError};
use crate::catalog::registries::{Registries, RegistriesError};
use crate::catalog::replies::Replies;
use crate::catalog::rollouts::{self, RolloutError, Rollouts};
use crate::clock::Clock;
use crate::config::Config;
use crate::console;
use crate::init::{self, DataDir, InitError, Vault};
use crate::metrics::Metrics;
use crate::operator_door::OperatorDoor;
use crate::publish::director::Director;
use crate::publish::images::{self, Images};
use crate::publish::witness::Witness;
use crate::publish::{Lifetimes, PublishingError};
use crate::pull::evict::Policy;
use crate::pull::{self, Parts, PullError, PullEvent, Puller, Wanted};
use crate::server::tls::{Tls, TlsError, TlsIdentity};
use crate::server::{self, DeviceDoor};
use crate::service::{self, Pulse, Vitals};
use crate::store::sled::{Opened, SledStore};
use crate::store::{Store, StoreError};
use crate::upstream::{self, Upstreams};

use housekeeping::{housekeeping, reload_on_hangup};
use settings::{lifetimes, pull_settings, signed, upstream_settings};

/// Between two looks at what is to be signed again, dumped or evicted.
const HOUSEKEEPING: Duration = Duration::from_mins(1);

/// Devices walk through expired roots to newer ones; the end is announced long before.
const ROOT_LIFETIME: Duration = Duration::from_hours(24 * 365 * 5);

/// What `systemctl status` shows of a facade in service.
const SERVING: &str = "serving devices and operators";

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
    /// The audit log cannot be used.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The access log cannot be used.
    #[error(transparent)]
    Pulls(#[from] PullsError),
    /// Metadata cannot be signed.
    #[error(transparent)]
    Publishing(#[from] PublishingError),
    /// The certificates do not work.
    #[error("the TLS configuration does not work")]
    Tls(#[from] TlsError),
    /// The authorities that registries' certificates come from cannot be used.
    #[error("TLS to registries cannot be set up")]
    Roots(#[source] rustls::Error),
    /// The devices cannot be read.
    #[error("the devices cannot be read")]
    Devices(#[from] crate::catalog::devices::DevicesError),
    /// The rollouts cannot be read.
    #[error("the rollouts cannot be read")]
    Rollouts(#[from] RolloutError),
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
    /// Sign-in with the identity provider cannot be set up.
    #[error("sign-in with the identity provider cannot be set up: {0}")]
    SignIn(String),
    /// The address that devices would be told is not one.
    #[error("{0:?} is not an address that devices can be told; set public_url")]
    PublicUrl(String),
}

/// Where the sealing key is kept.
#[derive(Clone, Debug)]
pub(crate) struct SealKeyPlace {
    /// The data directory, where it is unless it is elsewhere.
    pub(crate) data_dir: PathBuf,
    /// A file that the operator looks after.
    pub(crate) elsewhere: Option<PathBuf>,
}

/// The facade's parts, as handlers see them.
pub struct Facade {
    pub(crate) access: Arc<Access>,
    pub(crate) artifacts: Artifacts,
    pub(crate) audit: Audit,
    pub(crate) blobs: Arc<dyn Blobs>,
    pub(crate) ca_fingerprint: Fingerprint,
    ca_roots: Vec<Vec<u8>>,
    /// Changes that operators asked for, which go on to their end.
    pub(crate) changes: TaskTracker,
    pub(crate) clock: Clock,
    pub(crate) devices: Devices,
    pub(crate) director: Director,
    pub(crate) est: Est,
    pub(crate) events: Events,
    /// Room for those who follow the events.
    pub(crate) followers: Arc<Semaphore>,
    pub(crate) images: Images,
    pub(crate) metrics: Metrics,
    pub(crate) public_url: FacadeUrl,
    pub(crate) pins: Arc<Pins>,
    pub(crate) probe: Probe,
    pub(crate) puller: Puller,
    pub(crate) pulls: Pulls,
    pub(crate) raised: Raised,
    pub(crate) refusals: Limit,
    pub(crate) registries: Arc<Registries>,
    pub(crate) assignments: Arc<Assignments>,
    pub(crate) policies: Policies,
    pub(crate) replies: Replies,
    pub(crate) rollouts: Arc<Rollouts>,
    pub(crate) seal_key: SealKeyPlace,
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
    pub(crate) async fn prefetch(&self, closure: &Closure) -> Result<(), PullError> {
        let documents = closure.documents.iter().map(|descriptor| (descriptor, Kind::Document));
        let blobs = closure.blobs.iter().map(|descriptor| (descriptor, Kind::Blob));
        for (descriptor, kind) in documents.chain(blobs) {
            let repository = closure.name.repository().clone();
            let wanted = Wanted { repository, descriptor: descriptor.clone(), kind };
            self.puller.prefetch(&wanted).await?;
        }
        Ok(())
    }

    /// Takes a device's record as it is now into memory.
    pub(crate) async fn reload_device(&self, id: &DeviceId) {
        match self.devices.get(id).await {
            Ok(Some(device)) => {
                if device.standing == Standing::Quarantined {
                    let reason = device.reason.as_deref().unwrap_or_default();
                    self.events.raise_by(id, events::Kind::DeviceQuarantined, reason);
                }
                self.assignments.device_changed(&device);
            }
            Ok(None) => self.assignments.device_deleted(id),
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
            for device in &page {
                self.assignments.device_changed(device);
                if let Some(received) = self.devices.report(&device.id).await? {
                    let report = received.report;
                    self.assignments.reported(&device.id, &report.platform, report.free_bytes);
                    self.assignments.census().set_report(&report);
                }
            }
            match page.last() {
                Some(last) if page.len() == STEP => after = Some(last.id.clone()),
                _ => return Ok(()),
            }
        }
    }
}

/// Puts a facade together, serves until `shutdown`, and drains.
pub async fn serve(
    config: Config,
    clock: Clock,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), StartError> {
    // The future of a start holds every part at once: too much for a stack frame of somebody else's.
    let running = Box::pin(Running::start(config, clock)).await?;
    running.until(shutdown).await;
    Ok(())
}

/// A facade with both doors open.
pub struct Running {
    facade: Arc<Facade>,
    device_door: DeviceDoor,
    device_listener: TcpListener,
    operator_door: OperatorDoor,
    store: SledStore,
    config: Config,
}

impl Running {
    /// Opens everything; nothing is served yet.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        // Before anything is served: a facade that was off for months must not begin with an expired certificate.
        if let Err(error) = init::renew_server_certificate(&config.data_dir, clock.now()) {
            tracing::error!(error = %chain(&error), "the server certificate could not be renewed");
        }
        let data = DataDir::open(&config.data_dir, config.seal_key_file.as_deref())?;
        let (sled, opened) = SledStore::open(&config.data_dir.join("store"), &dumps(&config))?;
        if let Opened::Restored { moved_to, dump } = &opened {
            tracing::error!(moved_to = %moved_to.display(), dump = ?dump, "the database was damaged; the newest dump took its place");
        }
        let store: Arc<dyn Store> = Arc::new(sled.clone());
        let address = config.device_listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;
        let tls = Tls::new(tls_identity(&data, &config), clock.clone())?;
        if let Err(error) = data.check_server_certificate(clock.now()) {
            tracing::error!(error = %chain(&error), "devices cannot connect");
        }
        let public_url = public_url(&config, &data, address.port())?;
        let facade = Arc::new(assemble(&config, &clock, store, data, public_url).await?);
        facade.warm_up().await?;
        let api = crate::api::router(Arc::clone(&facade));
        let pages = console::with_api(&facade, api, &config)?;
        let operator_door = OperatorDoor::open(&config, pages).await?;
        let device_door = DeviceDoor {
            tls,
            access: Arc::clone(&facade.access),
            puller: facade.puller.clone(),
            pulls: facade.pulls.clone(),
            handler: device_door::handler(Arc::clone(&facade)),
            limits: limits(&config),
            metrics: facade.metrics.clone(),
            clock,
            pulse: Pulse::default(),
        };
        let operator_address = operator_door.address().unwrap_or(config.operator_listen);
        tracing::info!(
            device.address = %address,
            operator.address = %operator_address,
            public_url = %facade.public_url,
            "facade ready"
        );
        Ok(Self { facade, device_door, device_listener: listener, operator_door, store: sled, config })
    }

    /// Serves until `shutdown`, then drains.
    pub async fn until(self, shutdown: impl Future<Output = ()> + Send) {
        let stopping = self.facade.stopping.clone();
        let tasks = TaskTracker::new();
        let (reloading, drain) = (self.config.clone(), self.config.drain_timeout);
        let vitals = Vitals {
            device_door: self.device_door.pulse.clone(),
            operator_door: self.operator_door.pulse(),
            store: Arc::new(self.store.clone()),
        };
        tasks.spawn(service::feed_watchdog(vitals, stopping.clone()));
        tasks.spawn(self.operator_door.run(stopping.clone().cancelled_owned()));
        tasks.spawn(housekeeping(
            Arc::clone(&self.facade),
            self.store,
            self.device_door.tls.clone(),
            self.config,
        ));
        // Before anybody is told that we are ready: a SIGHUP without a handler ends the process.
        if let Ok(hangup) = unix::signal(SignalKind::hangup()) {
            tasks.spawn(reload_on_hangup(
                hangup,
                self.device_door.tls.clone(),
                reloading,
                self.facade.clock.clone(),
                stopping.clone(),
            ));
        }
        let devices = self.device_door.run(self.device_listener, stopping.clone().cancelled_owned());
        tasks.spawn(devices);
        tasks.spawn(self.facade.events.clone().keep(stopping.clone()));
        tasks.spawn(self.facade.pulls.clone().keep(stopping.clone()));
        tasks.spawn(Arc::clone(&self.facade.rollouts).drive(stopping.clone()));
        tasks.close();
        service::ready(SERVING);
        shutdown.await;
        tracing::info!("stopping");
        service::stopping();
        stopping.cancel();
        tasks.wait().await;
        self.facade.changes.close();
        // What is not done by then is recorded at the next start.
        let _ = tokio::time::timeout(drain, self.facade.changes.wait()).await;
        self.facade.puller.stop().await;
        self.facade.events.flush().await;
        self.facade.pulls.flush().await;
        if let Err(error) = self.facade.registries.keep_health().await {
            tracing::error!(error = %chain(&error), "the health of connections could not be stored");
        }
        tracing::info!("stopped");
    }
}

fn dumps(config: &Config) -> PathBuf {
    config.data_dir.join("dumps")
}

fn limits(config: &Config) -> server::Limits {
    server::Limits {
        connections: config.max_connections,
        connections_per_address: config.max_connections_per_address,
        drain: config.drain_timeout,
        bandwidth: config.total_bandwidth_bytes,
        bandwidth_per_device: config.device_bandwidth_bytes,
        ..server::Limits::default()
    }
}

fn tls_identity(data: &DataDir, config: &Config) -> TlsIdentity {
    // Devices come with certificates of former authorities until they have renewed.
    let authorities = data.roots.iter().chain(&data.issuing);
    TlsIdentity {
        chain: data.server_chain.clone(),
        key: data.server_key.clone_key(),
        device_roots: authorities.map(|der| CertificateDer::from(der.clone())).collect(),
        domain: data.trust_domain.clone(),
        expired_grace: config.device_certificate_grace,
    }
}

fn public_url(config: &Config, data: &DataDir, port: u16) -> Result<FacadeUrl, StartError> {
    let text = match (&config.public_url, data.server_names.first()) {
        (Some(url), _) => url.clone(),
        (None, Some(ServerName::Ip(IpAddr::V6(address)))) => format!("https://[{address}]:{port}"),
        (None, Some(name)) => format!("https://{name}:{port}"),
        (None, None) => String::new(),
    };
    text.parse().map_err(|_| StartError::PublicUrl(text))
}

async fn assemble(
    config: &Config,
    clock: &Clock,
    store: Arc<dyn Store>,
    data: DataDir,
    public_url: FacadeUrl,
) -> Result<Facade, StartError> {
    let metrics = Metrics::new();
    let access = Arc::new(Access::new());
    let artifacts = Artifacts::new(Arc::clone(&store));
    let vault = Vault::new(&config.data_dir);
    let parts = images::Parts {
        store: Arc::clone(&store),
        artifacts: artifacts.clone(),
        lifetimes: lifetimes(config),
        clock: clock.clone(),
        witness: Arc::new(Witness::open(vault.clone())?),
        vault,
    };
    let images = Images::open(parts.clone(), data.images, data.first_targets).await?;
    let director = Director::open(parts, data.director).await?;
    let dropped = metrics.pulls_dropped.clone();
    let pulls = Pulls::open(&config.data_dir.join("access-log"), config.access_log_max_size_bytes, dropped)?;
    let upstream_settings = upstream_settings(config, clock);
    metrics.extend(|registry| upstream_settings.counters.register(registry));
    let upstreams = Upstreams::new(upstream_settings).map_err(StartError::Roots)?;
    let registries = Registries::load(Arc::clone(&store), data.sealing_keys, upstreams).await?;
    let registries = Arc::new(registries);
    let events = Events::load(Arc::clone(&store), clock.clone()).await?;
    let blobs: Arc<dyn Blobs> = Arc::new(FsBlobs::open(&config.data_dir.join("blobs"), clock.clone())?);
    let pins = Arc::new(Pins::load(Arc::clone(&store), &artifacts).await?);
    let (assigned, pinned) = (Arc::clone(&access), Arc::clone(&pins));
    let marked = Arc::clone(&registries);
    let puller = Puller::new(
        pull_settings(config),
        Parts {
            blobs: Arc::clone(&blobs),
            fetch: pull::registries(Arc::clone(&registries)),
            pins: Arc::new(move || {
                let mut kept = assigned.assigned();
                kept.extend(pinned.digests());
                kept
            }),
            events: wrong_content(events.clone(), marked),
            clock: clock.clone(),
            metrics: metrics.clone(),
        },
    );
    let devices = Devices::new(Arc::clone(&store));
    let assignments = Arc::new(Assignments::load(Arc::clone(&store), Arc::clone(&access)).await?);
    let rollouts = Rollouts::load(rollouts::Parts {
        store: Arc::clone(&store),
        assignments: Arc::clone(&assignments),
        artifacts: artifacts.clone(),
        devices: devices.clone(),
        events: events.clone(),
        clock: clock.clone(),
    })
    .await?;
    let ca_fingerprint = Fingerprint::of(data.authority.root());
    let policy = enroll::Policy {
        trust_domain: data.trust_domain,
        lifetime: signed(config.device_certificate_lifetime),
        grace: signed(config.device_certificate_grace),
    };
    let ca_roots = data.roots.clone();
    let authorities = [data.roots, data.issuing, data.links].concat();
    let est = Est::new(Arc::new(data.authority), authorities, devices.clone(), policy);
    Ok(Facade {
        rollouts: Arc::new(rollouts),
        assignments,
        policies: Policies::load(Arc::clone(&store)).await?,
        audit: Audit::open(Arc::clone(&store)).await?,
        raised: Raised::default(),
        changes: TaskTracker::new(),
        probe: Probe::new(Arc::clone(&store)),
        refusals: Limit::default(),
        replies: Replies::open(Arc::clone(&store)).await?,
        tokens: Tokens::new(store, data.admin_token_hash),
        seal_key: SealKeyPlace { data_dir: config.data_dir.clone(), elsewhere: config.seal_key_file.clone() },
        stopping: CancellationToken::new(),
        wait_timeout: config.wait_timeout,
        clock: clock.clone(),
        access,
        artifacts,
        blobs,
        ca_fingerprint,
        ca_roots,
        devices,
        director,
        est,
        events,
        followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
        images,
        metrics,
        pins,
        public_url,
        puller,
        pulls,
        registries,
    })
}

/// Tells the operator of wrong bytes.
fn wrong_content(events: Events, registries: Arc<Registries>) -> pull::EventHook {
    Arc::new(move |event| {
        tracing::error!(?event, "a registry served wrong bytes; nothing of them was kept");
        let PullEvent::WrongContent { host, wanted, mismatch } = event;
        let detail = format!("{host} served other bytes than {}", wanted.descriptor.digest);
        events.raise(events::Kind::WrongContent, &wanted.repository, detail);
        if let Ok(registry) = registries.registry(&host) {
            registry.served_wrong_bytes(mismatch);
        }
    })
}

/// Resolves when the process is asked to stop. From the call on, and not only from the first poll, the signals no longer
/// end the process by themselves: who is told that the facade is ready may stop it at once. Needs a runtime around it.
pub fn signal() -> impl Future<Output = ()> + Send {
    let signals = (unix::signal(SignalKind::terminate()), unix::signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            // Without handlers the signals end the process as they always do.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests;
