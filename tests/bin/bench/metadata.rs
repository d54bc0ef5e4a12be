//! `bench metadata`: what publishing costs with 100,000 artifacts and 100,000 devices, and what a device's poll costs.
//!
//! All is signed by the facade's own code. While the store is filled, many changes are written as one; what is measured is
//! one import, one device's assignment, one poll, each written and flushed by itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use facade::catalog::artifacts::{Artifact, Artifacts};
use facade::catalog::closure::Closure;
use facade::clock::Clock;
use facade::init::{self, DataDir, Options, Vault};
use facade::publish::Lifetimes;
use facade::publish::director::Director;
use facade::publish::images::{Images, Parts};
use facade::publish::request::Addition;
use facade::publish::witness::Witness;
use facade::store::sled::SledStore;
use facade::store::{Batch, Entry, Scan, Store, StoreError, Table};
use jiff::Timestamp;
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor};
use pki::wire::DevicePolicy;
use pki::x509::DeviceId;

use crate::measure::{cpu_seconds, median};
use crate::say;

const ARTIFACTS: usize = 100_000;
const STEP: usize = 10_000;
const DEVICES: usize = 100_000;
const SAMPLES: usize = 40;
const POLLS: usize = 1000;

/// Changes that are written as one while the store is filled.
const BULK: usize = 1000;

const MAX_TIME: Duration = Duration::from_millis(100);
const MAX_IMPORT_BYTES: usize = 250_000;
const MAX_DEVICE_BYTES: usize = 10_000;

/// Fills a repository and measures.
pub(crate) fn run() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if runtime.block_on(measure()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure() -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, images, director) = open(directory.path()).await;
    let begun = Instant::now();
    for step in (0..ARTIFACTS).step_by(STEP) {
        let additions = (step..step + STEP).map(artifact).collect();
        images.add_all(additions).await.expect("publish");
    }
    say(&format!("{ARTIFACTS} artifacts published in {} s", begun.elapsed().as_secs()));
    let begun = Instant::now();
    store.hold_back(true).await;
    for number in 0..DEVICES {
        sign(&director, &device(number), number).await;
    }
    store.hold_back(false).await;
    say(&format!("{DEVICES} devices signed for in {} s", begun.elapsed().as_secs()));
    say(&format!(
        "{:<36} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "median", "slowest", "processor", "signed", "written"
    ));
    let import = measure_import(&images).await;
    let assignment = measure_assignment(&director).await;
    let poll = measure_poll(&director).await;
    import && assignment && poll
}

async fn measure_import(images: &Images) -> bool {
    let mut samples = Samples::new();
    for number in ARTIFACTS..ARTIFACTS + SAMPLES {
        let addition = artifact(number);
        let path = addition.artifact.name().to_string().parse().expect("a path");
        let bin = facade::publish::bins::of(&path);
        samples.begin();
        images.add_all(vec![addition]).await.expect("publish");
        samples.end();
        samples.signed(written(images, &bin).await);
    }
    samples.verdict("one import", MAX_IMPORT_BYTES)
}

async fn measure_assignment(director: &Director) -> bool {
    let mut samples = Samples::new();
    for number in 0..SAMPLES {
        // Devices from everywhere in the store, each with an artifact that it did not have.
        let device = device(number * (DEVICES / SAMPLES));
        samples.begin();
        let version = sign(director, &device, number + 7).await;
        samples.end();
        let mut bytes = 0;
        for file in [
            "timestamp.json".to_owned(),
            format!("{version}.snapshot.json"),
            format!("{version}.targets.json"),
        ] {
            let wanted = BTreeSet::from([artifact(number + 7).artifact.name().clone()]);
            let file = director.file(&device, &wanted, &DevicePolicy::default(), &file).await.expect("read");
            bytes += file.expect("a file").len();
        }
        samples.signed(bytes);
    }
    samples.verdict("one device with a new assignment", MAX_DEVICE_BYTES)
}

/// What the facade does before it lets a device wait for news; the answer to the device has no body.
async fn measure_poll(director: &Director) -> bool {
    let mut samples = Samples::new();
    for number in 0..POLLS {
        let number = number * (DEVICES / POLLS) + 1;
        samples.begin();
        sign(director, &device(number), number).await;
        samples.end();
    }
    samples.verdict("one poll of an up-to-date device", 0)
}

async fn sign(director: &Director, device: &DeviceId, artifact_number: usize) -> u64 {
    let wanted = BTreeSet::from([artifact(artifact_number).artifact.name().clone()]);
    director.version(device, &wanted, &DevicePolicy::default()).await.expect("sign")
}

/// What some operations took.
struct Samples {
    began: (Instant, f64, u64),
    seconds: Vec<f64>,
    processor: f64,
    disk: u64,
    signed: usize,
}

impl Samples {
    fn new() -> Self {
        let began = (Instant::now(), 0.0, 0);
        Self { began, seconds: Vec::new(), processor: 0.0, disk: 0, signed: 0 }
    }

    fn begin(&mut self) {
        self.began = (Instant::now(), cpu_seconds(&[std::process::id()]), bytes_to_disk());
    }

    fn end(&mut self) {
        self.seconds.push(self.began.0.elapsed().as_secs_f64());
        self.processor += cpu_seconds(&[std::process::id()]) - self.began.1;
        self.disk += bytes_to_disk() - self.began.2;
    }

    fn signed(&mut self, bytes: usize) {
        self.signed = self.signed.max(bytes);
    }

    fn verdict(self, what: &str, limit: usize) -> bool {
        let count = self.seconds.len();
        let slowest = self.seconds.iter().copied().fold(0.0, f64::max);
        let typical = median(self.seconds);
        let processor = self.processor / count as f64;
        let within = typical <= MAX_TIME.as_secs_f64() && self.signed <= limit;
        let (most, limit) = (MAX_TIME.as_millis(), limit / 1000);
        let word = if within { "within" } else { "OVER" };
        say(&format!(
            "{what:<36} {:>6.2} ms {:>6.1} ms {:>6.2} ms {:>6} kB {:>6} kB  {word} {most} ms, {limit} kB",
            typical * 1e3,
            slowest * 1e3,
            processor * 1e3,
            self.signed.div_ceil(1000),
            self.disk / 1000 / count as u64,
        ));
        within
    }
}

/// Bytes that this process has sent to the disk so far.
fn bytes_to_disk() -> u64 {
    let text = fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or_default()
}

/// The facade's store, which can hold changes back and write many as one.
struct Bulk {
    inner: SledStore,
    held: Mutex<Option<(Batch, usize)>>,
}

impl Bulk {
    /// Begins or ends to hold changes back. What is held back cannot be read, and nobody does: no device is signed for
    /// twice meanwhile.
    async fn hold_back(&self, on: bool) {
        let held = std::mem::replace(&mut *self.held(), on.then(Default::default));
        if let Some((batch, _)) = held {
            self.inner.commit(batch).await.expect("write");
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<(Batch, usize)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written now, if anything.
    fn take_in(&self, batch: Batch) -> Option<Batch> {
        let mut guard = self.held();
        let Some((held, count)) = guard.as_mut() else { return Some(batch) };
        held.append(batch);
        *count += 1;
        if *count < BULK {
            return None;
        }
        *count = 0;
        Some(std::mem::take(held))
    }
}

#[async_trait]
impl Store for Bulk {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(table, key).await
    }

    async fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StoreError> {
        self.inner.scan(table, scan).await
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        match self.take_in(batch) {
            Some(batch) => self.inner.commit(batch).await,
            None => Ok(()),
        }
    }
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

fn device(number: usize) -> DeviceId {
    format!("device-{number}").parse().expect("an id")
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

async fn open(directory: &Path) -> (Arc<Bulk>, Images, Director) {
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
    let bulk = Arc::new(Bulk { inner: store.expect("a store").0, held: Mutex::default() });
    let store: Arc<dyn Store> = Arc::clone(&bulk) as Arc<dyn Store>;
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
    (bulk, images, director)
}
