//! The agent is killed at every step of a round: before and after each change of its files, and around each call of the
//! place for images. Whatever step that is, the next start comes to the same end.
//!
//! Steps are counted by one fuse. Once it has burnt, no file changes any more and no call of the runtime begins or
//! returns: what the disk holds is what a killed process would have left. (Real kills: `tests/e2e/power.rs`.)

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use device_agent::Agent;
use device_agent::clock::Clock;
use device_agent::driver::AgentError;
use device_agent::lifecycle::State;
use device_agent::refresh::stored_versions;
use device_agent::runtime::oci_layout::OciLayout;
use device_agent::runtime::{
    About, Cleaned, Handed, Image, Ingest, Lease, Runtime, RuntimeError, Space, Verification,
};
use device_agent::state_file::{Fuse, StateError};
use pki::digest::Digest;
use pki::oci::{ArtifactName, Descriptor};
use pki::wire::RepositoryVersions;
use tokio_util::sync::CancellationToken;

use crate::facade::Facade;
use crate::world::{Device, Sample};

const KIB: usize = 1 << 10;

/// A layout whose calls neither begin nor return when the fuse has burnt.
struct Mortal {
    layout: OciLayout,
    fuse: Fuse,
}

async fn step(fuse: &Fuse) {
    if !fuse.step() {
        std::future::pending::<()>().await;
    }
}

async fn around<T>(fuse: &Fuse, call: impl Future<Output = T>) -> T {
    step(fuse).await;
    let answer = call.await;
    step(fuse).await;
    answer
}

type Answer<T> = Result<T, RuntimeError>;

#[async_trait]
impl Runtime for Mortal {
    async fn about(&self) -> Answer<About> {
        around(&self.fuse, self.layout.about()).await
    }
    async fn space(&self) -> Answer<Space> {
        self.layout.space().await
    }
    async fn open(&self, artifact: &ArtifactName) -> Answer<Lease> {
        around(&self.fuse, self.layout.open(artifact)).await
    }
    async fn close(&self, lease: &Lease) -> Answer<()> {
        around(&self.fuse, self.layout.close(lease)).await
    }
    async fn clean(&self, keep: &[ArtifactName]) -> Answer<Cleaned> {
        around(&self.fuse, self.layout.clean(keep)).await
    }
    async fn hold(&self, lease: &Lease, content: &Descriptor) -> Answer<bool> {
        self.layout.hold(lease, content).await
    }
    async fn begin(&self, lease: &Lease, content: &Descriptor) -> Answer<Box<dyn Ingest>> {
        let ingest = around(&self.fuse, self.layout.begin(lease, content)).await?;
        Ok(Box::new(Inflow { ingest, fuse: self.fuse.clone() }))
    }
    async fn begun(&self, content: &Descriptor) -> Answer<u64> {
        self.layout.begun(content).await
    }
    async fn read(&self, content: &Descriptor) -> Answer<Vec<u8>> {
        self.layout.read(content).await
    }
    async fn import(&self, lease: &Lease, image: &Image) -> Answer<()> {
        around(&self.fuse, self.layout.import(lease, image)).await
    }
    async fn promote(&self, artifact: &ArtifactName) -> Answer<()> {
        around(&self.fuse, self.layout.promote(artifact)).await
    }
    async fn images(&self) -> Answer<Vec<Handed>> {
        self.layout.images().await
    }
    async fn remove(&self, artifact: &ArtifactName) -> Answer<()> {
        around(&self.fuse, self.layout.remove(artifact)).await
    }
    async fn verify(&self, image: &Image) -> Answer<Verification> {
        self.layout.verify(image).await
    }
    async fn sync(&self) -> Answer<()> {
        around(&self.fuse, self.layout.sync()).await
    }
    async fn discard(&self, digest: Digest) -> Answer<()> {
        around(&self.fuse, self.layout.discard(digest)).await
    }
}

struct Inflow {
    ingest: Box<dyn Ingest>,
    fuse: Fuse,
}

#[async_trait]
impl Ingest for Inflow {
    fn offset(&self) -> u64 {
        self.ingest.offset()
    }
    async fn write(&mut self, bytes: Bytes) -> Answer<()> {
        around(&self.fuse, self.ingest.write(bytes)).await
    }
    async fn flush(&mut self) -> Answer<()> {
        around(&self.fuse, self.ingest.flush()).await
    }
    async fn commit(self: Box<Self>) -> Answer<()> {
        let Self { ingest, fuse } = *self;
        around(&fuse, ingest.commit()).await
    }
    async fn abort(self: Box<Self>) -> Answer<()> {
        let Self { ingest, fuse } = *self;
        around(&fuse, ingest.abort()).await
    }
}

/// One round that is killed after so many steps; what it came to, if it lived.
async fn killed_after(
    steps: u32,
    device: &Device,
    settings: &[(&'static str, &str)],
) -> Option<Result<(), AgentError>> {
    let dir = device.state();
    let fuse = dir.fuse().clone();
    let runtime = Box::new(Mortal { layout: OciLayout::new(device.layout()), fuse: fuse.clone() });
    let agent = Agent::with_runtime(device.config_with(settings), Clock::system(), dir, runtime);
    fuse.burn_after(steps);
    let shutdown = CancellationToken::new();
    let death = async {
        while !fuse.is_burnt() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let lived = tokio::select! {
        ended = agent.sync(&shutdown) => (!fuse.is_burnt()).then_some(ended),
        () = death => None,
    };
    // A hook that was just being started has our lock until it is its own program.
    while matches!(device.state().lock(), Err(StateError::Locked(_))) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lived
}

fn state(device: &Device) -> State {
    device.state().read_json("state.json", "").unwrap().unwrap_or_default()
}

/// Everything that goes by a digest is what the digest says, and what is current is one whole release.
fn assert_nothing_partial_is_visible(device: &Device, releases: &[&Sample], step: u32) {
    let blobs = device.layout().join("blobs/sha256");
    for entry in std::fs::read_dir(blobs).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let digest: Digest = format!("sha256:{name}").parse().unwrap();
        let read = std::fs::read(&path);
        // A thread of the agent that was just killed may be at the end of taking it away.
        if read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            continue;
        }
        let bytes = read.unwrap();
        assert!(
            pki::digest::verify(digest, &bytes).is_ok(),
            "killed after {step} steps: {name} is not whole"
        );
    }
    let current = device.current(releases[0]);
    assert!(current.is_some(), "killed after {step} steps: nothing is current");
    let whole = releases.iter().find(|sample| Some(sample.artifact.digest().to_string()) == current);
    assert!(
        whole.is_some_and(|sample| sample.is_on(device)),
        "killed after {step} steps: {current:?} is not whole"
    );
}

/// What may only ever grow.
fn versions(device: &Device) -> Vec<u64> {
    let versions = stored_versions(&device.state());
    let roles = |of: RepositoryVersions| [of.root, of.timestamp, of.snapshot, of.targets];
    [versions.images, versions.director].into_iter().flat_map(roles).collect()
}

fn assert_none_fell(before: &[u64], after: &[u64], step: u32) {
    let fell = before.iter().zip(after).any(|(before, after)| after < before);
    assert!(!fell, "killed after {step} steps: versions fell from {before:?} to {after:?}");
}

async fn with_one_release() -> (Facade, Device, Sample) {
    let (facade, device) = (Facade::start().await, Device::new());
    device.enroll(&facade).await.unwrap();
    let one = Sample::version("app", "one", 40 * KIB);
    one.assign(&facade);
    device.sync().await.unwrap();
    (facade, device, one)
}

#[tokio::test]
async fn killed_at_any_step_of_an_update_the_next_start_completes_it() {
    let (facade, before, one) = with_one_release().await;
    let two = Sample::version("app", "two", 40 * KIB);
    two.assign(&facade);
    let known = versions(&before);
    for steps in 0.. {
        let device = before.copy();
        facade.script().reports.clear();
        let lived = killed_after(steps, &device, &[]).await;
        assert_nothing_partial_is_visible(&device, &[&one, &two], steps);
        let after_kill = versions(&device);
        assert_none_fell(&known, &after_kill, steps);
        if let Some(ended) = lived {
            ended.unwrap();
            assert!(steps > 100, "a round has {steps} steps only");
            break;
        }
        device
            .sync()
            .await
            .unwrap_or_else(|error| panic!("after {steps} steps: {}", device_agent::error_chain(&error)));
        assert_none_fell(&after_kill, &versions(&device), steps);
        let standing = state(&device).standing().clone();
        assert!(
            standing.current.has(&two.artifact) && standing.previous.has(&one.artifact),
            "{steps}: {standing:?}"
        );
        assert!(standing.rejected.is_empty(), "killed after {steps} steps: {standing:?}");
        assert_nothing_partial_is_visible(&device, &[&two], steps);
        let counters: Vec<u64> =
            facade.script().reports.iter().map(|report| report["counter"].as_u64().unwrap()).collect();
        assert!(counters.is_sorted_by(|one, other| one < other), "killed after {steps} steps: {counters:?}");
    }
}

#[tokio::test]
async fn killed_at_any_step_of_a_bad_update_the_next_start_goes_back() {
    let (facade, before, one) = with_one_release().await;
    let two = Sample::version("app", "two", 40 * KIB);
    two.assign(&facade);
    let bad = two.artifact.digest().to_string();
    let hook = before.program("hook", &format!("test $DRAYAGE_DIGEST != {bad}"));
    let settings = [("apply_command", hook.as_str())];
    for steps in 0.. {
        let device = before.copy();
        let lived = killed_after(steps, &device, &settings).await;
        assert_nothing_partial_is_visible(&device, &[&one, &two], steps);
        // Some of these rounds end with the failure of the hook, others go back right away.
        let mut failed = Vec::new();
        while !state(&device).standing().rejected.iter().any(|release| release.has(&two.artifact)) {
            assert!(failed.len() < 3, "killed after {steps} steps: {failed:?}");
            let ended = device.sync_with(&settings).await;
            failed.push(ended.err().map(|error| device_agent::error_chain(&error)));
        }
        device.sync_with(&settings).await.unwrap();
        assert!(state(&device).standing().current.has(&one.artifact), "killed after {steps} steps");
        assert_eq!(
            device.current(&one),
            Some(one.artifact.digest().to_string()),
            "killed after {steps} steps"
        );
        assert!(!device.has(two.layer.digest), "killed after {steps} steps: the failed image lies about");
        assert_nothing_partial_is_visible(&device, &[&one], steps);
        if lived.is_some() {
            assert!(steps > 100, "a round has {steps} steps only");
            break;
        }
    }
}
