//! An image layout directory, as other tools see it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use device_agent::runtime::oci_layout::OciLayout;
use device_agent::runtime::{Runtime, RuntimeError, current_alias};
use pki::digest::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::sample::Sample;
use crate::suite::{Place, deliver, every_place_passes, ingest, write_from_offset};

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("drayage-layout-").tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("images")
    }

    fn layout(&self) -> OciLayout {
        OciLayout::new(self.path())
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path().join(directory)) else {
            return Vec::new();
        };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn skopeo(&self, arguments: &[&str], reference: &str) -> Vec<u8> {
        let image = format!("oci:{}:{reference}", self.path().display());
        let output =
            Command::new("skopeo").args(arguments).arg(image).output().expect("skopeo must be installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo {arguments:?} {reference}: {errors}");
        output.stdout
    }
}

impl Place for Directory {
    fn runtime(&self) -> Box<dyn Runtime> {
        Box::new(self.layout())
    }

    // A layout has no collector of its own.
    fn collect(&self) {}

    fn inventory(&self) -> String {
        let index: Value =
            serde_json::from_slice(&fs::read(self.path().join("index.json")).unwrap()).unwrap();
        let entries = index["manifests"].as_array().unwrap().iter().map(Value::to_string);
        let mut all: Vec<String> = entries.chain(self.names("blobs/sha256")).collect();
        all.sort();
        all.join("\n")
    }

    fn leftovers(&self) -> usize {
        let names = self.names(".ingest");
        names.iter().filter(|name| name.starts_with("lease-") || name.starts_with("sha256-")).count()
    }

    fn flip_a_byte_of(&self, digest: Digest) {
        let path = self.path().join("blobs/sha256").join(digest.hex());
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

every_place_passes!(Directory::new());

#[tokio::test]
async fn other_tools_read_the_image_by_its_name_and_by_its_alias() {
    let directory = Directory::new();
    let sample = Sample::with_index("for skopeo");
    deliver(&directory.layout(), &sample).await;
    for name in [sample.artifact.to_string(), current_alias(sample.artifact.repository())] {
        assert_eq!(directory.skopeo(&["inspect", "--raw"], &name), sample.contents[0].1);
        let inspected: Value = serde_json::from_slice(&directory.skopeo(&["inspect"], &name)).unwrap();
        assert_eq!(inspected["Layers"].as_array().unwrap().len(), 2);
    }
    let copy = directory.0.path().join("copy");
    let source = format!("oci:{}:{}", directory.path().display(), sample.artifact);
    let copied =
        Command::new("skopeo").args(["copy", &source, &format!("dir:{}", copy.display())]).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    assert!(is_file_of(&copy, &sample.contents[3].1));
}

fn is_file_of(directory: &Path, bytes: &[u8]) -> bool {
    fs::read(directory.join(Digest::sha256(bytes).hex())).unwrap() == bytes
}

#[tokio::test]
async fn entries_of_other_tools_stay_with_all_they_need() {
    let directory = Directory::new();
    let (theirs, ours) = (Sample::single("theirs"), Sample::single("ours"));
    deliver(&directory.layout(), &theirs).await;
    // What skopeo would have written: a name, and none of our annotations.
    let path = directory.path().join("index.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("io.drayage.artifact", "org.example.note")).unwrap();
    let before = directory.inventory();
    deliver(&directory.layout(), &ours).await;
    directory.layout().remove(&ours.artifact).await.unwrap();
    let after = directory.inventory();
    // The alias was theirs and is ours now; removing our image took it away.
    let alias = current_alias(theirs.artifact.repository());
    let rest: Vec<&str> = before.lines().filter(|line| !line.contains(&alias)).collect();
    assert_eq!(after.lines().collect::<Vec<_>>(), rest);
}

#[tokio::test]
async fn what_a_power_cut_left_in_a_half_written_file_is_refused_and_fetched_again() {
    let directory = Directory::new();
    let runtime = directory.layout();
    let sample = Sample::random(700_000);
    let (content, bytes) = &sample.contents[0];
    let lease = runtime.open(&sample.artifact).await.unwrap();
    let mut half = runtime.begin(&lease, content).await.unwrap();
    half.write(Bytes::copy_from_slice(&bytes[..300_000])).await.unwrap();
    drop(half);
    let path = directory.path().join(".ingest").join(format!("sha256-{}", content.digest.hex()));
    let length = fs::metadata(&path).unwrap().len();
    fs::write(&path, vec![0; usize::try_from(length).unwrap()]).unwrap();

    let mut resumed = runtime.begin(&lease, content).await.unwrap();
    assert_eq!(resumed.offset(), length);
    write_from_offset(&mut *resumed, bytes).await.unwrap();
    let error = resumed.commit().await.unwrap_err();
    assert!(matches!(error, RuntimeError::Corrupt { .. }), "{error:?}");
    ingest(&runtime, &lease, content, bytes).await;
    assert!(runtime.hold(&lease, content).await.unwrap());
}

#[tokio::test]
async fn rejects_an_index_that_cannot_be_read_in_one_way_and_leaves_it_alone() {
    let directory = Directory::new();
    let runtime = directory.layout();
    runtime.about().await.unwrap();
    let path = directory.path().join("index.json");
    let text = r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
    fs::write(&path, text).unwrap();
    assert!(matches!(runtime.images().await, Err(RuntimeError::Failed { .. })));
    assert!(matches!(runtime.clean(&[]).await, Err(RuntimeError::Failed { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}
