//! Two small TUF repositories that sign what a test wants them to.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp as Time};
use pki::key::SigningKey;
use pki::metadata::publish::sign;
use pki::metadata::roles::{RoleKeys, RootRoles, TimestampMeta};
use pki::metadata::{FileMeta, Root, Snapshot, Target, Targets, Timestamp};
use pki::oci::{ArtifactName, Descriptor};
use pki::wire::RootPin;
use pki::x509::{DeviceId, Fingerprint};
use serde_json::{Map, json};

pub(crate) struct Repository {
    key: SigningKey,
    version: u64,
    pub(crate) expires: Time,
    pub(crate) device: Option<String>,
    pub(crate) policy: Option<serde_json::Value>,
    pub(crate) targets: BTreeMap<String, Target>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

pub(crate) struct Repositories {
    pub(crate) images: Repository,
    pub(crate) director: Repository,
}

impl Repository {
    fn new(seed: u8, device: Option<&DeviceId>) -> Self {
        let mut repository = Self {
            key: SigningKey::from_seed(&[seed; 32]),
            version: 0,
            expires: Time::now() + SignedDuration::from_hours(24),
            device: device.map(ToString::to_string),
            policy: None,
            targets: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        let role = RoleKeys::new(&[repository.key.public()], 1);
        let root = Root {
            version: 1,
            expires: repository.expires,
            consistent_snapshot: true,
            keys: [(repository.key.public().id(), repository.key.public().clone())].into(),
            roles: RootRoles {
                root: role.clone(),
                timestamp: role.clone(),
                snapshot: role.clone(),
                targets: role,
                extra: Map::new(),
            },
            extra: Map::new(),
        };
        let bytes = sign(&root, &[&repository.key]).unwrap();
        repository.files.insert("1.root.json".into(), bytes);
        repository.publish();
        repository
    }

    pub(crate) fn pin(&self) -> RootPin {
        RootPin { version: 1.try_into().unwrap(), sha256: Fingerprint::of(&self.files["1.root.json"]) }
    }

    /// Signs the next version of everything but the root.
    pub(crate) fn publish(&mut self) {
        self.version += 1;
        let version = self.version;
        let (expires, extra) = (self.expires, Map::new());
        let mut targets = Targets {
            version,
            expires,
            targets: self
                .targets
                .iter()
                .map(|(path, target)| (path.parse().unwrap(), target.clone()))
                .collect(),
            delegations: None,
            extra: extra.clone(),
        };
        if let Some(device) = &self.device {
            targets.set_device(device);
        }
        if let Some(policy) = &self.policy {
            targets.extra.insert("policy".into(), policy.clone());
        }
        let targets = sign(&targets, &[&self.key]).unwrap();
        let snapshot = Snapshot {
            version,
            expires,
            meta: [("targets.json".to_owned(), FileMeta::of(version, &targets))].into(),
            extra: extra.clone(),
        };
        let snapshot = sign(&snapshot, &[&self.key]).unwrap();
        let timestamp = Timestamp {
            version,
            expires,
            meta: TimestampMeta { snapshot: FileMeta::of(version, &snapshot) },
            extra,
        };
        let timestamp = sign(&timestamp, &[&self.key]).unwrap();
        self.files.insert(format!("{version}.targets.json"), targets);
        self.files.insert(format!("{version}.snapshot.json"), snapshot);
        self.files.insert("timestamp.json".into(), timestamp);
    }
}

impl Repositories {
    pub(crate) fn new(device: &DeviceId) -> Self {
        Self { images: Repository::new(1, None), director: Repository::new(2, Some(device)) }
    }

    pub(crate) fn file(&self, path: &str) -> Option<Vec<u8>> {
        let (repository, file) = path.split_once('/')?;
        let repository = match repository {
            "images" => &self.images,
            "director" => &self.director,
            _ => return None,
        };
        repository.files.get(file).cloned()
    }

    /// Both repositories say that the device should have exactly this.
    pub(crate) fn assign(&mut self, artifact: &ArtifactName, root: &Descriptor) {
        let device = self.director.device.clone().unwrap();
        let target = |custom: serde_json::Value| {
            Target::new(root.digest, root.size, custom.as_object().unwrap().clone())
        };
        let images = target(json!({"media_type": root.media_type}));
        self.images.targets.insert(artifact.to_string(), images);
        let director = target(json!({ "device": device }));
        self.director.targets = [(artifact.to_string(), director)].into();
        self.images.publish();
        self.director.publish();
    }
}
