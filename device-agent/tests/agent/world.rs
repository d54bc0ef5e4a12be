//! A device in a temporary directory, an image, and the facade they share.

use std::path::PathBuf;

use device_agent::clock::Clock;
use device_agent::config::{Config, Flags};
use device_agent::driver::{Agent, AgentError};
use device_agent::identity::enroll::{Replace, Surroundings, enroll};
use device_agent::identity::{Identity, IdentityError};
use device_agent::state_file::StateDir;
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor, MediaType};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::facade::Facade;

pub(crate) struct Device {
    directory: tempfile::TempDir,
}

impl Device {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn state_path(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    pub(crate) fn state(&self) -> StateDir {
        StateDir::open(&self.state_path()).unwrap()
    }

    pub(crate) fn config(&self) -> Config {
        let empty = self.directory.path().join("agent.toml");
        std::fs::write(&empty, "").unwrap();
        Config::load(&Flags {
            file: Some(empty),
            settings: vec![
                ("state_dir", self.state_path().to_str().unwrap().to_owned()),
                ("sink", format!("oci-layout:{}", self.layout().display())),
                ("platform", "linux/arm64".to_owned()),
                ("stall", "2s".to_owned()),
                ("reserve", "0".to_owned()),
            ],
        })
        .unwrap()
    }

    pub(crate) async fn enroll(&self, facade: &Facade) -> Result<Identity, IdentityError> {
        enroll_in(&self.state(), facade).await
    }

    /// One round of a freshly started agent.
    pub(crate) async fn sync(&self) -> Result<(), AgentError> {
        self.sync_at(Clock::system()).await
    }

    pub(crate) async fn sync_at(&self, clock: Clock) -> Result<(), AgentError> {
        let agent = Agent::open(self.config(), clock)?;
        agent.sync(&CancellationToken::new()).await
    }

    /// Whether the layout has this content.
    pub(crate) fn has(&self, digest: Digest) -> bool {
        self.layout().join("blobs").join(digest.algorithm().name()).join(digest.hex()).exists()
    }
}

pub(crate) async fn enroll_in(state: &StateDir, facade: &Facade) -> Result<Identity, IdentityError> {
    let clock = Clock::system();
    let around = Surroundings { state, clock: &clock, proxy: None };
    enroll(around, &facade.token, Replace::Never).await
}

/// An image for linux/arm64 below an index.
pub(crate) struct Sample {
    pub(crate) artifact: ArtifactName,
    pub(crate) root: Descriptor,
    pub(crate) layer: Descriptor,
    pub(crate) contents: Vec<(Digest, Vec<u8>)>,
}

impl Sample {
    pub(crate) fn new(name: &str, layer_bytes: usize) -> Self {
        let describe = |media_type: &str, bytes: &[u8]| -> Descriptor {
            let json = json!({"mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len()});
            serde_json::from_value(json).unwrap()
        };
        // Looks random to no compressor's benefit, and differs by name.
        let layer: Vec<u8> = name.bytes().cycle().take(layer_bytes).collect();
        let diff_id = Digest::sha256(b"unpacked");
        let config = json!({
            "os": "linux", "architecture": "arm64",
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        })
        .to_string()
        .into_bytes();
        let layer_descriptor = describe("application/vnd.oci.image.layer.v1.tar+gzip", &layer);
        let config_descriptor = describe("application/vnd.oci.image.config.v1+json", &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": config_descriptor, "layers": [layer_descriptor],
        })
        .to_string()
        .into_bytes();
        let mut entry = describe(MediaType::OCI_MANIFEST, &manifest);
        entry.platform = Some("linux/arm64".parse().unwrap());
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [entry]})
            .to_string()
            .into_bytes();
        let root = describe(MediaType::OCI_INDEX, &index);
        let contents = [index, manifest, config, layer].map(|bytes| (Digest::sha256(&bytes), bytes)).to_vec();
        Self {
            artifact: format!("registry.example.com/team/{name}@{}", root.digest).parse().unwrap(),
            root,
            layer: layer_descriptor,
            contents,
        }
    }

    /// Makes a facade have it and assign it.
    pub(crate) fn assign(&self, facade: &Facade) {
        let mut script = facade.script();
        for (digest, bytes) in &self.contents {
            script.contents.insert(digest.to_string(), bytes.clone());
        }
        script.repositories.assign(&self.artifact, &self.root);
    }

    pub(crate) fn is_on(&self, device: &Device) -> bool {
        self.contents.iter().all(|(digest, _)| device.has(*digest))
    }
}
