//! `bench metadata`: what publishing costs with 100,000 artifacts, and what a device's poll costs.
//!
//! The store is filled in steps of many artifacts; what is measured is one import, one device's assignment, one poll.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use facade::catalog::artifacts::{Artifact, Artifacts};
use facade::catalog::closure::Closure;
use facade::clock::Clock;
use facade::init::{self, DataDir, Options, Vault};
use facade::publish::Lifetimes;
use facade::publish::director::Director;
use facade::publish::images::{Images, Parts};
use facade::publish::request::Addition;
use facade::publish::witness::Witness;
use facade::store::Store;
use facade::store::sled::SledStore;
use jiff::Timestamp;
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor};
use pki::wire::DevicePolicy;
use pki::x509::DeviceId;

use crate::say;

const ARTIFACTS: usize = 100_000;
const STEP: usize = 10_000;
const SAMPLES: usize = 20;

const MAX_TIME: Duration = Duration::from_millis(250);
const MAX_IMPORT_BYTES: usize = 500_000;
const MAX_DEVICE_BYTES: usize = 10_000;

/// Fills a repository and measures.
pub(crate) fn run() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if runtime.block_on(measure()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure() -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let (images, director) = open(directory.path()).await;
    let begun = Instant::now();
    for step in (0..ARTIFACTS).step_by(STEP) {
        let additions = (step..step + STEP).map(artifact).collect();
        images.add_all(additions).await.expect("publish");
    }
    let seconds = begun.elapsed().as_secs();
    say(&format!("{ARTIFACTS} artifacts published in {seconds} s"));
    let import = measure_import(&images).await;
    let assignment = measure_assignment(&director).await;
    let poll = measure_poll(&director).await;
    import && assignment && poll
}

async fn measure_import(images: &Images) -> bool {
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for sample in 0..SAMPLES {
        let addition = artifact(ARTIFACTS + sample);
        let path = addition.artifact.name().to_string().parse().expect("a path");
        let bin = facade::publish::bins::of(&path);
        let begun = Instant::now();
        images.add_all(vec![addition]).await.expect("publish");
        slowest = slowest.max(begun.elapsed());
        largest = largest.max(written(images, &bin).await);
    }
    verdict("one import", slowest, largest, MAX_IMPORT_BYTES)
}

async fn measure_assignment(director: &Director) -> bool {
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for sample in 0..SAMPLES {
        let (device, wanted) = assigned(sample);
        let begun = Instant::now();
        let version = director.version(&device, &wanted, &DevicePolicy::default()).await.expect("sign");
        slowest = slowest.max(begun.elapsed());
        let mut bytes = 0;
        for file in [
            "timestamp.json".to_owned(),
            format!("{version}.snapshot.json"),
            format!("{version}.targets.json"),
        ] {
            let file = director.file(&device, &wanted, &DevicePolicy::default(), &file).await.expect("read");
            bytes += file.map_or(0, |file| file.len());
        }
        largest = largest.max(bytes);
    }
    verdict("one device with a new assignment", slowest, largest, MAX_DEVICE_BYTES)
}

async fn measure_poll(director: &Director) -> bool {
    let (device, wanted) = assigned(0);
    let begun = Instant::now();
    for _ in 0..1000 {
        director.version(&device, &wanted, &DevicePolicy::default()).await.expect("compare");
    }
    verdict("one poll of an up-to-date device", begun.elapsed() / 1000, 0, 0)
}

fn verdict(what: &str, time: Duration, bytes: usize, limit: usize) -> bool {
    let within = time <= MAX_TIME && bytes <= limit;
    let word = if within { "within" } else { "OVER" };
    let (micros, kilobytes) = (time.as_micros(), bytes.div_ceil(1000));
    let (most, limit) = (MAX_TIME.as_millis(), limit / 1000);
    say(&format!("{what:<36} {micros:>7} µs {kilobytes:>4} kB signed  {word} {most} ms, {limit} kB"));
    within
}

/// Bytes of metadata that the last import has written.
async fn written(images: &Images, bin: &str) -> usize {
    let timestamp = images.file("timestamp.json").await.expect("read").expect("a timestamp");
    let value: serde_json::Value = serde_json::from_slice(&timestamp).expect("JSON");
    let version = value.pointer("/signed/meta/snapshot.json/version").and_then(serde_json::Value::as_u64);
    let version = version.expect("a version");
    let mut bytes = timestamp.len();
    for role in ["snapshot", bin, "targets"] {
        let file = images.file(&format!("{version}.{role}.json")).await.expect("read");
        bytes += file.map_or(0, |file| file.len());
    }
    bytes
}

fn assigned(sample: usize) -> (DeviceId, BTreeSet<ArtifactName>) {
    let device = format!("device-{sample}").parse().expect("an id");
    (device, BTreeSet::from([artifact(sample).artifact.name().clone()]))
}

fn artifact(number: usize) -> Addition {
    let digest = Digest::sha256(number.to_string().as_bytes());
    let repository = format!("registry.example.com/team-{}/app-{}", number % 97, number % 1009);
    let name: ArtifactName = format!("{repository}@{digest}").parse().expect("a name");
    let root: Descriptor = serde_json::from_value(serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1234,
    }))
    .expect("a descriptor");
    let closure = Closure { name, root: root.clone(), documents: vec![root], blobs: Vec::new() };
    let artifact = Artifact {
        closure,
        tag: Some(format!("v{number}").parse().expect("a tag")),
        platforms: Vec::new(),
        imported_at: Timestamp::UNIX_EPOCH,
        imported_by: "bench".to_owned(),
        revoked_at: None,
    };
    Addition { tag: artifact.tag.clone(), artifact }
}

async fn open(directory: &Path) -> (Images, Director) {
    let data_dir = directory.join("data");
    let clock = Clock::system();
    let options = Options {
        data_dir: data_dir.clone(),
        hostnames: vec!["localhost".to_owned()],
        trust_domain: None,
        offline: None,
        now: clock.now(),
    };
    init::init(&options).expect("init");
    let data = DataDir::open(&data_dir, None).expect("a data directory");
    let store = SledStore::open(&data_dir.join("store"), &data_dir.join("dumps"));
    let store: Arc<dyn Store> = Arc::new(store.expect("a store").0);
    let days = |days: u64| Duration::from_hours(24 * days);
    let vault = Vault::new(&data_dir);
    let parts = Parts {
        artifacts: Artifacts::new(Arc::clone(&store)),
        store,
        lifetimes: Lifetimes { timestamp: days(7), snapshot: days(30), targets: days(365), root: days(1825) },
        clock,
        witness: Arc::new(Witness::open(vault.clone()).expect("a witness")),
        vault,
    };
    let images = Images::open(parts.clone(), data.images, data.first_targets).await.expect("images");
    let director = Director::open(parts, data.director).await.expect("director");
    (images, director)
}
