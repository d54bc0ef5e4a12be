//! A device in a temporary directory, an image, and the facade they share.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use device_agent::clock::Clock;
use device_agent::config::{Config, Flags};
use device_agent::driver::{Agent, AgentError};
use device_agent::identity::enroll::{Replace, Surroundings, enroll};
use device_agent::identity::{Identity, IdentityError};
use device_agent::runtime::current_alias;
use device_agent::state_file::StateDir;
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor, MediaType};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::facade::Facade;

/// In memory where that is to be had: what is durable is tested elsewhere, and the walks here write much.
pub(crate) struct Device {
    directory: tempfile::TempDir,
    /// On a disk that programs may be run from.
    programs: tempfile::TempDir,
}

impl Device {
    pub(crate) fn new() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let directory = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
        Self { directory: directory.unwrap(), programs: tempfile::tempdir().unwrap() }
    }

    /// A device that stands where this one does.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        let mut command = std::process::Command::new("cp");
        command.args(["-a", "-T"]).arg(self.directory.path()).arg(copy.directory.path());
        assert!(command.status().unwrap().success());
        copy
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
        self.config_with(&[])
    }

    pub(crate) fn config_with(&self, settings: &[(&'static str, &str)]) -> Config {
        let empty = self.directory.path().join("agent.toml");
        std::fs::write(&empty, "").unwrap();
        let mut all = vec![
            ("state_dir", self.state_path().to_str().unwrap().to_owned()),
            ("sink", format!("oci-layout:{}", self.layout().display())),
            ("platform", "linux/arm64".to_owned()),
            ("stall", "2s".to_owned()),
            ("reserve", "0".to_owned()),
        ];
        all.extend(settings.iter().map(|(key, text)| (*key, (*text).to_owned())));
        Config::load(&Flags { file: Some(empty), settings: all }).unwrap()
    }

    pub(crate) async fn enroll(&self, facade: &Facade) -> Result<Identity, IdentityError> {
        enroll_in(&self.state(), facade).await
    }

    /// One round of a freshly started agent.
    pub(crate) async fn sync(&self) -> Result<(), AgentError> {
        self.sync_at(Clock::system()).await
    }

    /// One round with other settings.
    pub(crate) async fn sync_with(&self, settings: &[(&'static str, &str)]) -> Result<(), AgentError> {
        let agent = Agent::open(self.config_with(settings), Clock::system())?;
        agent.sync(&CancellationToken::new()).await
    }

    /// A program of the operator of this device.
    pub(crate) fn program(&self, name: &str, script: &str) -> String {
        let path = self.programs.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A file that programs write to.
    pub(crate) fn notes(&self) -> PathBuf {
        self.directory.path().join("notes")
    }

    /// The lines that programs wrote.
    pub(crate) fn noted(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.notes()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What the alias of the repository of a sample points to.
    pub(crate) fn current(&self, sample: &Sample) -> Option<String> {
        let index = std::fs::read(self.layout().join("index.json")).ok()?;
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let alias = current_alias(sample.artifact.repository());
        let entries = index["manifests"].as_array().unwrap().clone();
        let entry = entries.into_iter().find(|entry| {
            entry["annotations"]
                .as_object()
                .is_some_and(|annotations| annotations.values().any(|name| *name == alias))
        });
        Some(entry?["digest"].as_str().unwrap().to_owned())
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
    let keys = device_agent::identity::keys::Keys::default();
    let around = Surroundings { state, clock: &clock, proxy: None, keys: &keys };
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
        Self::version(name, name, layer_bytes)
    }

    /// One of several images of a repository.
    pub(crate) fn version(name: &str, seed: &str, layer_bytes: usize) -> Self {
        let describe = |media_type: &str, bytes: &[u8]| -> Descriptor {
            let json = json!({"mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len()});
            serde_json::from_value(json).unwrap()
        };
        // Looks random to no compressor's benefit, and differs by name.
        let layer: Vec<u8> = seed.bytes().cycle().take(layer_bytes).collect();
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
