//! Who may have what, in memory: the answer to every request of a device.
//!
//! [`Access`] mirrors what the catalog has made durable; the catalog calls the setters after each commit. It decides
//! nothing about certificates or routes ([`crate::authz`] does) and does no I/O. Readers take no lock that a writer
//! holds: they load an atomic pointer per shard and per device.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor, Repository};
use pki::x509::{DeviceId, Serial};
use tokio_util::sync::CancellationToken;

use super::closure::{Closure, Kind};

const SHARDS: usize = 64;

/// What a device is to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Not enrolled here, or deleted.
    #[default]
    Unknown,
    /// Enrolled and welcome.
    Active,
    /// Turned away for good.
    Revoked,
}

/// What the catalog knows of a device, as far as requests need it.
#[derive(Clone, Debug, Default)]
pub struct DeviceEntry {
    /// What the device is to us.
    pub standing: Standing,
    /// Certificates whose validity begins earlier are refused; set when a device enrolls anew after a compromise.
    pub not_issued_before: Option<Timestamp>,
    /// Certificates that are refused, by serial number.
    pub refused_serials: Vec<Serial>,
    /// The artifacts it may have.
    pub artifacts: Vec<ArtifactName>,
}

/// Content that a device may have: type, digest and length of it, which is all that a pull needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// What the closure says of it.
    pub descriptor: Descriptor,
    /// The path under which it is served.
    pub kind: Kind,
}

/// Who may have what.
#[derive(Default)]
pub struct Access {
    hasher: RandomState,
    devices: Shards,
    /// Writers only: readers hold the cells themselves.
    artifacts: Mutex<HashMap<ArtifactName, Arc<ArtifactCell>>>,
}

struct Shards([ArcSwap<HashMap<DeviceId, Arc<DeviceCell>>>; SHARDS]);

impl Default for Shards {
    fn default() -> Self {
        Self(std::array::from_fn(|_| ArcSwap::default()))
    }
}

#[derive(Default)]
struct DeviceCell {
    view: ArcSwap<View>,
    /// Cancelled, and replaced, when the device loses its standing.
    cut: ArcSwap<CancellationToken>,
}

#[derive(Default)]
struct View {
    standing: Standing,
    not_issued_before: Option<Timestamp>,
    refused_serials: Vec<Serial>,
    artifacts: Vec<Arc<ArtifactCell>>,
}

struct ArtifactCell {
    repository: Repository,
    contents: ArcSwapOption<HashMap<Digest, Arc<Granted>>>,
}

impl Access {
    /// Nobody may have anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what is known of a device. Losing its standing, or the certificate it uses, cuts its open connections.
    #[expect(clippy::needless_pass_by_value, reason = "a setter takes what it is to keep")]
    pub fn set_device(&self, id: DeviceId, entry: DeviceEntry) {
        let mut table = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner);
        let artifacts = entry.artifacts.iter().map(|name| cell(&mut table, name)).collect();
        let device = self.cell_or_insert(&id);
        let before = device.view.load();
        let cut = entry.standing != Standing::Active && before.standing == Standing::Active
            || entry.not_issued_before > before.not_issued_before
            || entry.refused_serials.iter().any(|serial| !before.refused_serials.contains(serial));
        device.view.store(Arc::new(View {
            standing: entry.standing,
            not_issued_before: entry.not_issued_before,
            refused_serials: entry.refused_serials,
            artifacts,
        }));
        if cut {
            device.cut.swap(Arc::default()).cancel();
        }
    }

    /// Forgets a device and cuts its open connections.
    pub fn remove_device(&self, id: &DeviceId) {
        let _writers = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = self.cell(id) else { return };
        self.shard(id).rcu(|devices| {
            let mut devices = HashMap::clone(devices);
            devices.remove(id);
            devices
        });
        device.view.store(Arc::default());
        device.cut.load().cancel();
    }

    /// Sets what an artifact consists of.
    pub fn set_artifact(&self, closure: &Closure) {
        let contents = contents(closure);
        let mut table = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner);
        cell(&mut table, &closure.name).contents.store(Some(Arc::new(contents)));
    }

    /// Takes an artifact from everybody.
    pub fn remove_artifact(&self, name: &ArtifactName) {
        let table = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(artifact) = table.get(name) {
            artifact.contents.store(None);
        }
    }

    /// How many artifacts there are that somebody may have.
    pub fn artifact_count(&self) -> usize {
        let artifacts = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner);
        artifacts.values().filter(|cell| cell.contents.load().is_some()).count()
    }

    /// What a device is to us.
    pub fn standing(&self, id: &DeviceId) -> Standing {
        self.cell(id).map_or(Standing::Unknown, |device| device.view.load().standing)
    }

    /// Whether a certificate of the device, by its serial number and the start of its validity, is refused.
    pub fn refuses_certificate(&self, id: &DeviceId, serial: &Serial, not_before: Timestamp) -> bool {
        self.cell(id).is_some_and(|device| {
            let view = device.view.load();
            view.not_issued_before.is_some_and(|earliest| not_before < earliest)
                || view.refused_serials.contains(serial)
        })
    }

    /// The content that an active device asks for, if it belongs to an artifact of that repository that it may have.
    pub fn grant(&self, id: &DeviceId, repository: &Repository, digest: &Digest) -> Option<Arc<Granted>> {
        let device = self.cell(id)?;
        let view = device.view.load();
        if view.standing != Standing::Active {
            return None;
        }
        let mut candidates = view.artifacts.iter().filter(|artifact| artifact.repository == *repository);
        candidates.find_map(|artifact| artifact.contents.load().as_ref()?.get(digest).cloned())
    }

    /// Every digest that some device may have now: what the cache must not evict.
    pub fn assigned(&self) -> std::collections::HashSet<Digest> {
        let mut digests = std::collections::HashSet::new();
        for shard in &self.devices.0 {
            for device in shard.load().values() {
                for artifact in &device.view.load().artifacts {
                    if let Some(contents) = artifact.contents.load().as_ref() {
                        digests.extend(contents.keys().copied());
                    }
                }
            }
        }
        digests
    }

    /// A token that is cancelled when the device loses its standing: whoever serves it an open stream must stop.
    pub fn cut(&self, id: &DeviceId) -> CancellationToken {
        if let Some(device) = self.cell(id) {
            return CancellationToken::clone(&device.cut.load());
        }
        let _writers = self.artifacts.lock().unwrap_or_else(PoisonError::into_inner);
        CancellationToken::clone(&self.cell_or_insert(id).cut.load())
    }

    fn shard(&self, id: &DeviceId) -> &ArcSwap<HashMap<DeviceId, Arc<DeviceCell>>> {
        let [first, ..] = &self.devices.0;
        let index = usize::try_from(self.hasher.hash_one(id) % SHARDS as u64).unwrap_or_default();
        self.devices.0.get(index).unwrap_or(first)
    }

    fn cell(&self, id: &DeviceId) -> Option<Arc<DeviceCell>> {
        self.shard(id).load().get(id).cloned()
    }

    /// Writers hold the lock on `artifacts`, so that two of them cannot make two cells for one device.
    fn cell_or_insert(&self, id: &DeviceId) -> Arc<DeviceCell> {
        if let Some(device) = self.cell(id) {
            return device;
        }
        let device = Arc::new(DeviceCell::default());
        self.shard(id).rcu(|devices| {
            let mut devices = HashMap::clone(devices);
            devices.insert(id.clone(), Arc::clone(&device));
            devices
        });
        device
    }
}

fn cell(table: &mut HashMap<ArtifactName, Arc<ArtifactCell>>, name: &ArtifactName) -> Arc<ArtifactCell> {
    let made =
        || Arc::new(ArtifactCell { repository: name.repository().clone(), contents: ArcSwapOption::empty() });
    Arc::clone(table.entry(name.clone()).or_insert_with(made))
}

fn contents(closure: &Closure) -> HashMap<Digest, Arc<Granted>> {
    let documents =
        closure.documents.iter().chain([&closure.root]).map(|descriptor| (descriptor, Kind::Document));
    let blobs = closure.blobs.iter().map(|descriptor| (descriptor, Kind::Blob));
    // Documents last: content that an artifact uses both as document and as blob keeps its media type as document.
    blobs
        .chain(documents)
        .map(|(descriptor, kind)| {
            let descriptor = Descriptor {
                platform: None,
                urls: Vec::new(),
                annotations: BTreeMap::new(),
                artifact_type: None,
                ..descriptor.clone()
            };
            (descriptor.digest, Arc::new(Granted { descriptor, kind }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(text: &str) -> Descriptor {
        let digest = Digest::sha256(text.as_bytes());
        let json = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":{}}}"#, text.len());
        serde_json::from_str(&json).unwrap()
    }

    fn closure(repository: &str, root: &str, layer: &str) -> Closure {
        let root = descriptor(root);
        Closure {
            name: ArtifactName::new(repository.parse().unwrap(), root.digest),
            documents: vec![root.clone()],
            root,
            blobs: vec![descriptor(layer)],
        }
    }

    fn active(artifacts: &[&Closure]) -> DeviceEntry {
        let artifacts = artifacts.iter().map(|closure| closure.name.clone()).collect();
        DeviceEntry { standing: Standing::Active, artifacts, ..DeviceEntry::default() }
    }

    #[test]
    fn grants_the_closure_of_assigned_artifacts_and_nothing_else() {
        let access = Access::new();
        let device: DeviceId = "board-1".parse().unwrap();
        let (app, other) = (closure("ghcr.io/o/app", "m1", "l1"), closure("ghcr.io/o/other", "m2", "l2"));
        access.set_device(device.clone(), active(&[&app]));
        access.set_artifact(&app);
        access.set_artifact(&other);
        let asks = |repository: &str, text: &str| {
            let granted =
                access.grant(&device, &repository.parse().unwrap(), &Digest::sha256(text.as_bytes()));
            granted.map(|granted| granted.kind)
        };
        assert_eq!(asks("ghcr.io/o/app", "m1"), Some(Kind::Document));
        assert_eq!(asks("ghcr.io/o/app", "l1"), Some(Kind::Blob));
        assert_eq!(asks("ghcr.io/o/app", "l2"), None);
        assert_eq!(asks("ghcr.io/o/other", "l1"), None);
        assert_eq!(asks("ghcr.io/o/other", "m2"), None);
        access.remove_artifact(&app.name);
        assert_eq!(asks("ghcr.io/o/app", "l1"), None);
    }

    #[test]
    fn losing_its_standing_cuts_a_device_off() {
        let access = Access::new();
        let device: DeviceId = "board-1".parse().unwrap();
        let app = closure("ghcr.io/o/app", "m1", "l1");
        access.set_artifact(&app);
        let early = access.cut(&device);
        access.set_device(device.clone(), active(&[&app]));
        let cut = access.cut(&device);
        access.set_device(device.clone(), active(&[]));
        assert!(!early.is_cancelled() && !cut.is_cancelled());
        access.set_device(device.clone(), DeviceEntry { standing: Standing::Revoked, ..active(&[&app]) });
        assert!(early.is_cancelled() && cut.is_cancelled());
        assert_eq!(access.grant(&device, app.name.repository(), &app.root.digest), None);
        access.set_device(device.clone(), active(&[&app]));
        assert!(!access.cut(&device).is_cancelled());
        let again = access.cut(&device);
        access.remove_device(&device);
        assert!(again.is_cancelled());
        assert_eq!(access.standing(&device), Standing::Unknown);
    }

    #[test]
    fn refuses_certificates_by_serial_and_by_age() {
        let access = Access::new();
        let device: DeviceId = "board-1".parse().unwrap();
        let serial = |number| Serial::from_bytes(&[number]).unwrap();
        let entry = DeviceEntry {
            not_issued_before: Some(Timestamp::from_second(100).unwrap()),
            refused_serials: vec![serial(7)],
            ..active(&[])
        };
        access.set_device(device.clone(), entry);
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(access.refuses_certificate(&device, &serial(7), at(200)));
        assert!(access.refuses_certificate(&device, &serial(8), at(99)));
        assert!(!access.refuses_certificate(&device, &serial(8), at(100)));
    }
}
