//! Tiny images, built on the spot from the machine's static busybox.

use std::fs;
use std::path::Path;
use std::process::Command;

use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor, MediaType, Platform};
use serde_json::{Value, json};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image with all its contents, documents first.
pub(crate) struct Sample {
    pub(crate) artifact: ArtifactName,
    pub(crate) root: Descriptor,
    pub(crate) platform: Platform,
    pub(crate) contents: Vec<(Descriptor, Vec<u8>)>,
}

impl Sample {
    /// An image whose `/etc/greeting` says `greeting`.
    pub(crate) fn single(greeting: &str) -> Self {
        let layers = layers(greeting);
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        Self::build(layers, &diff_ids)
    }

    /// The same below an index that has another platform, which is not delivered.
    pub(crate) fn with_index(greeting: &str) -> Self {
        let sample = Self::single(greeting);
        let platform = json!({"os": "linux", "architecture": sample.platform.architecture});
        sample.below_index(platform)
    }

    /// The same below an index, which another index names without a platform.
    pub(crate) fn with_nested_index(greeting: &str) -> Self {
        Self::with_index(greeting).below_index(Value::Null)
    }

    fn below_index(mut self, platform: Value) -> Self {
        let mut here = descriptor_json(&self.root);
        if !platform.is_null() {
            here["platform"] = platform;
        }
        let elsewhere = json!({
            "mediaType": MediaType::OCI_MANIFEST,
            "digest": Digest::sha256(b"another platform"),
            "size": 400,
            "platform": {"os": "linux", "architecture": "riscv64"},
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_INDEX,
            "manifests": [elsewhere, here],
        });
        let (root, bytes) = content(MediaType::OCI_INDEX, index.to_string().into_bytes());
        self.contents.insert(0, (root.clone(), bytes));
        self.artifact = artifact(root.digest);
        self.root = root;
        self
    }

    /// An image whose configuration lies about its upper layer.
    pub(crate) fn with_wrong_diff_id() -> Self {
        let layers = layers("liar");
        let diff_ids = vec![layers[0].diff_id, Digest::sha256(b"something else")];
        Self::build(layers, &diff_ids)
    }

    /// One content of random bytes, which no image refers to.
    pub(crate) fn random(length: usize) -> Self {
        let mut bytes = vec![0; length];
        getrandom::fill(&mut bytes).unwrap();
        let (root, bytes) = content(GZIP, bytes);
        Self {
            artifact: artifact(root.digest),
            root: root.clone(),
            platform: platform(),
            contents: vec![(root, bytes)],
        }
    }

    fn build(layers: Vec<Layer>, diff_ids: &[Digest]) -> Self {
        let platform = platform();
        let config = json!({
            "os": platform.os,
            "architecture": platform.architecture,
            "config": {
                "Cmd": ["/bin/id"],
                "Labels": {"containerd.io/gc.root": "1", "containerd.io/gc.ref.content": "x"},
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = content(CONFIG, config.to_string().into_bytes());
        let layers: Vec<(Descriptor, Vec<u8>)> = layers.into_iter().map(|layer| layer.content).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_MANIFEST,
            "config": descriptor_json(&config.0),
            "layers": layers.iter().map(|(layer, _)| descriptor_json(layer)).collect::<Vec<_>>(),
        });
        let manifest = content(MediaType::OCI_MANIFEST, manifest.to_string().into_bytes());
        let root = manifest.0.clone();
        let mut contents = vec![manifest, config];
        contents.extend(layers);
        Self { artifact: artifact(root.digest), root, platform, contents }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.contents.iter().map(|(content, _)| content.size).sum()
    }
}

struct Layer {
    content: (Descriptor, Vec<u8>),
    diff_id: Digest,
}

/// A plain layer with busybox, and a compressed one with the greeting.
fn layers(greeting: &str) -> Vec<Layer> {
    let directory = tempfile::tempdir().unwrap();
    let (lower, upper) = (directory.path().join("lower"), directory.path().join("upper"));
    fs::create_dir_all(lower.join("bin")).unwrap();
    fs::copy("/bin/busybox", lower.join("bin/busybox")).expect("busybox-static must be installed");
    for name in ["sh", "id", "cat"] {
        std::os::unix::fs::symlink("busybox", lower.join("bin").join(name)).unwrap();
    }
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/greeting"), format!("{greeting}\n")).unwrap();
    let (lower, upper) = (tar(&lower), tar(&upper));
    let plain = Layer { diff_id: Digest::sha256(&lower), content: content(TAR, lower) };
    let compressed =
        Layer { diff_id: Digest::sha256(&upper), content: content(GZIP, gzip(directory.path(), &upper)) };
    vec![plain, compressed]
}

fn tar(directory: &Path) -> Vec<u8> {
    let options = ["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"];
    let output =
        Command::new("tar").args(options).arg("--directory").arg(directory).arg(".").output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn gzip(scratch: &Path, bytes: &[u8]) -> Vec<u8> {
    let path = scratch.join("layer.tar");
    fs::write(&path, bytes).unwrap();
    let output = Command::new("gzip").args(["--no-name", "--stdout"]).arg(&path).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn content(media_type: &str, bytes: Vec<u8>) -> (Descriptor, Vec<u8>) {
    let descriptor = json!({"mediaType": media_type, "digest": Digest::sha256(&bytes), "size": bytes.len()});
    (serde_json::from_value(descriptor).unwrap(), bytes)
}

fn descriptor_json(descriptor: &Descriptor) -> Value {
    serde_json::to_value(descriptor).unwrap()
}

fn artifact(digest: Digest) -> ArtifactName {
    format!("127.0.0.1:5000/team/app@{digest}").parse().unwrap()
}

fn platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform::new("linux", architecture, None)
}
