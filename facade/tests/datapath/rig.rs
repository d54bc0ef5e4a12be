//! A device door on a free port, with a certificate authority, a scripted registry and a cache in a temporary directory.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use facade::blobs::fs::FsBlobs;
use facade::catalog::access::{Access, DeviceEntry, Standing};
use facade::catalog::closure::Closure;
use facade::catalog::pulls::Pulls;
use facade::clock::Clock;
use facade::metrics::Metrics;
use facade::pull::{Parts, PullEvent, Puller, Settings};
use facade::server::tls::{Tls, TlsIdentity};
use facade::server::{DeviceDoor, Limits, respond};
use jiff::{SignedDuration, Timestamp};
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor, Repository};
use pki::x509::{Authority, Csr, DeviceId, PrivateKey, ServerName, TrustDomain};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::disk::{Disk, Disks};
use crate::script::Script;

pub(crate) const REPOSITORY: &str = "registry.example.com/team/app";

/// A certificate with its key.
pub(crate) struct Credential {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) serial: pki::x509::Serial,
}

impl Clone for Credential {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key(), serial: self.serial.clone() }
    }
}

/// A certificate authority.
pub(crate) struct Fleet {
    authority: Authority,
    domain: TrustDomain,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let now = Timestamp::now() - SignedDuration::from_hours(48);
        let (root_key, key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let root = Authority::new_root(&root_key, now).unwrap();
        let issuing = Authority::new_issuing(&root.der, &root_key, &key, now).unwrap();
        let authority = Authority::load(root.der, issuing.der, key).unwrap();
        Self { authority, domain: TrustDomain::default() }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.authority.root().to_vec().into()
    }

    pub(crate) fn device(&self, name: &str) -> Credential {
        self.device_at(name, Timestamp::now(), SignedDuration::from_hours(1))
    }

    pub(crate) fn device_at(&self, name: &str, now: Timestamp, lifetime: SignedDuration) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let csr = Csr::parse(&key.request().unwrap()).unwrap();
        let device: DeviceId = name.parse().unwrap();
        let issued = self.authority.issue_device(&csr, &device, &self.domain, now, lifetime).unwrap();
        self.credential(issued, &key)
    }

    fn server(&self) -> Credential {
        let key = PrivateKey::generate().unwrap();
        let names: Vec<ServerName> = vec!["localhost".parse().unwrap()];
        let issued = self.authority.issue_server(&names, &key, Timestamp::now()).unwrap();
        self.credential(issued, &key)
    }

    fn credential(&self, issued: pki::x509::Issued, key: &PrivateKey) -> Credential {
        let key = PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec());
        Credential {
            chain: vec![issued.der.into(), self.authority.issuing().to_vec().into()],
            key: key.into(),
            serial: issued.serial,
        }
    }
}

/// How the rig differs from the usual.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) pull: Settings,
    pub(crate) limits: Limits,
}

pub(crate) struct Rig {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) script: Arc<Script>,
    pub(crate) access: Arc<Access>,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) events: Arc<Mutex<Vec<PullEvent>>>,
    pub(crate) puller: Puller,
    pub(crate) disk: Arc<Mutex<Disk>>,
    directory: Arc<tempfile::TempDir>,
    shutdown: CancellationToken,
    door: Option<tokio::task::JoinHandle<()>>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        Self::build(setup, Arc::new(Fleet::new()), Arc::new(Script::default()), directory).await
    }

    /// Another facade over the same directory, as after a crash: nothing of the first is asked to end well.
    pub(crate) async fn restarted(&self) -> Self {
        let (fleet, script) = (Arc::clone(&self.fleet), Arc::new(Script::default()));
        Self::build(Setup::default(), fleet, script, Arc::clone(&self.directory)).await
    }

    async fn build(
        setup: Setup,
        fleet: Arc<Fleet>,
        script: Arc<Script>,
        directory: Arc<tempfile::TempDir>,
    ) -> Self {
        let clock = Clock::manual(Timestamp::now());
        let (access, metrics) = (Arc::new(Access::new()), Metrics::new());
        let events: Arc<Mutex<Vec<PullEvent>>> = Arc::default();
        let heard = Arc::clone(&events);
        let disk: Arc<Mutex<Disk>> = Arc::default();
        let parts = Parts {
            blobs: Arc::new(Disks {
                files: FsBlobs::open(&directory.path().join("blobs"), clock.clone()).unwrap(),
                disk: Arc::clone(&disk),
            }),
            fetch: script.fetch(),
            pins: Arc::new(Default::default),
            events: Arc::new(move |event| heard.lock().unwrap().push(event)),
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        let puller = Puller::new(setup.pull, parts);
        let server = fleet.server();
        let identity = TlsIdentity {
            chain: server.chain,
            key: server.key,
            device_roots: vec![fleet.root()],
            domain: fleet.domain.clone(),
            expired_grace: Duration::from_hours(24),
        };
        let door = DeviceDoor {
            tls: Tls::new(identity, clock.clone()).unwrap(),
            access: Arc::clone(&access),
            puller: puller.clone(),
            pulls: Pulls::open(&directory.path().join("access-log"), 1 << 20, metrics.pulls_dropped.clone())
                .unwrap(),
            handler: Arc::new(|request| {
                let device = request.device.map(|device| device.id().to_string());
                Box::pin(
                    async move { respond::bytes("text/plain", format!("{:?} {device:?}", request.action)) },
                )
            }),
            limits: setup.limits,
            metrics: metrics.clone(),
            clock: clock.clone(),
            pulse: facade::service::Pulse::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone().cancelled_owned();
        let tasks = tokio_util::task::TaskTracker::new();
        let door = Some(tasks.spawn(door.run(listener, stop)));
        Self {
            fleet,
            script,
            access,
            address,
            metrics,
            clock,
            events,
            puller,
            disk,
            directory,
            shutdown,
            door,
        }
    }

    /// An artifact of one manifest and these blobs, that the devices may have; the registry has it.
    pub(crate) fn assign(&self, devices: &[&str], blobs: &[&Bytes]) -> Closure {
        let manifest = Bytes::from(format!("{{\"layers\":{}}}", blobs.len()));
        let root = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        let repository: Repository = REPOSITORY.parse().unwrap();
        let closure = Closure {
            name: ArtifactName::new(repository, root.digest),
            documents: vec![root.clone()],
            root,
            blobs: blobs
                .iter()
                .map(|blob| descriptor("application/vnd.oci.image.layer.v1.tar", blob))
                .collect(),
        };
        for content in blobs.iter().copied().chain([&manifest]) {
            self.script.serve(content);
        }
        self.access.set_artifact(&closure);
        for device in devices {
            let artifacts = vec![closure.name.clone()];
            let entry = DeviceEntry { standing: Standing::Active, artifacts, ..DeviceEntry::default() };
            self.access.set_device(device.parse().unwrap(), entry);
        }
        closure
    }

    /// The same content as another artifact, whose manifest is wrong about the length of the first blob.
    pub(crate) fn assign_mistaken(&self, device: &str, right: &Closure, size_bytes: u64) -> Repository {
        let repository: Repository = format!("{REPOSITORY}-mistaken").parse().unwrap();
        let name = ArtifactName::new(repository.clone(), right.name.digest());
        let mut closure = Closure { name, ..right.clone() };
        closure.blobs[0].size = size_bytes;
        self.access.set_artifact(&closure);
        let artifacts = vec![closure.name];
        let entry = DeviceEntry { standing: Standing::Active, artifacts, ..DeviceEntry::default() };
        self.access.set_device(device.parse().unwrap(), entry);
        repository
    }

    pub(crate) fn revoke(&self, device: &str) {
        let entry = DeviceEntry { standing: Standing::Revoked, ..DeviceEntry::default() };
        self.access.set_device(device.parse().unwrap(), entry);
    }

    pub(crate) fn cache(&self) -> std::path::PathBuf {
        self.directory.path().join("blobs")
    }

    /// Waits until nothing is in flight: what went out is also kept then.
    pub(crate) async fn landed(&self) {
        while self.metrics.flights.get() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Tells the door to stop and waits until it has.
    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        self.door.take().unwrap().await.unwrap();
    }

    pub(crate) fn shutdown(&self) {
        self.shutdown.cancel();
    }
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
    let digest = Digest::sha256(content);
    let json = format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, content.len());
    serde_json::from_str(&json).unwrap()
}

/// Bytes that do not repeat.
pub(crate) fn noise(length: usize) -> Bytes {
    let mut state = length as u64 | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// The path of a blob.
pub(crate) fn blob(content: &[u8]) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", Digest::sha256(content))
}

/// How many files a directory of the cache has, all levels.
pub(crate) fn files(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let count = |path: std::path::PathBuf| if path.is_dir() { files(&path) } else { 1 };
    entries.map(|entry| count(entry.unwrap().path())).sum()
}
