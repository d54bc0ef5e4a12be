use std::path::Path;

use pki::digest::Digest;
use pki::oci::Platform;
use pki::wire::{AgentState, Running};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::catalog::access::Access;
use crate::catalog::artifacts::Artifact;
use crate::catalog::assignments::{Assignment, Target};
use crate::catalog::closure::Closure;
use crate::catalog::devices::Device;
use crate::store::Batch;
use crate::store::sled::SledStore;

struct Rig {
    store: Arc<dyn Store>,
    assignments: Arc<Assignments>,
    rollouts: Arc<Rollouts>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Rig {
    /// Rollouts over what is in a directory, with so many devices, driven where `drive` says so.
    async fn open(directory: &Path, devices: usize) -> Self {
        let store = SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap().0;
        let store: Arc<dyn Store> = Arc::new(store);
        let assignments = Assignments::load(Arc::clone(&store), Arc::new(Access::new())).await.unwrap();
        let assignments = Arc::new(assignments);
        for number in 0..devices {
            let id = device(number);
            assignments.device_changed(&Device::new(id, Standing::Active, Timestamp::UNIX_EPOCH));
        }
        let clock = Clock::manual(Timestamp::from_second(1000).unwrap());
        let events = Events::load(Arc::clone(&store), clock.clone()).await.unwrap();
        let rollouts = Rollouts::load(Parts {
            store: Arc::clone(&store),
            assignments: Arc::clone(&assignments),
            artifacts: Artifacts::new(Arc::clone(&store)),
            devices: Devices::new(Arc::clone(&store)),
            events,
            clock,
        });
        let rollouts = Arc::new(rollouts.await.unwrap());
        Self { store, assignments, rollouts, stopping: CancellationToken::new(), tasks: TaskTracker::new() }
    }

    async fn driven(directory: &Path, devices: usize) -> Self {
        let rig = Self::open(directory, devices).await;
        rig.tasks.spawn(Arc::clone(&rig.rollouts).drive(rig.stopping.clone()));
        rig
    }

    async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// A signed artifact.
    async fn artifact(&self, text: &str) -> ArtifactName {
        let digest = Digest::sha256(text.as_bytes());
        let name = ArtifactName::new("ghcr.io/o/app".parse().unwrap(), digest);
        let root = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1}}"#);
        let root: pki::oci::Descriptor = serde_json::from_str(&root).unwrap();
        let closure =
            Closure { name: name.clone(), root: root.clone(), documents: vec![root], blobs: Vec::new() };
        let artifact = Artifact {
            closure,
            tag: Some("v1".parse().unwrap()),
            platforms: Vec::new(),
            imported_at: Timestamp::UNIX_EPOCH,
            imported_by: "admin".to_owned(),
            revoked_at: None,
        };
        let mut batch = Batch::new();
        Artifacts::new(Arc::clone(&self.store)).put(&mut batch, &artifact).unwrap();
        self.store.commit(batch).await.unwrap();
        name
    }

    async fn create(&self, artifact: &ArtifactName, waves: &str) {
        let plan = Plan {
            waves: waves.parse().unwrap(),
            approval: waves::Approval::None,
            success_percent: 100,
            min_sample: None,
            failure_budget: None,
            soak_seconds: 0,
            deadline_seconds: None,
        };
        let artifacts = BTreeSet::from([artifact.clone()]);
        let wanted = Wanted { name: name(), artifacts, selector: Selector::ALL, plan };
        self.command(Command::Create(Box::new(wanted))).await.unwrap();
    }

    async fn command(&self, command: Command) -> Result<Rollout, RolloutError> {
        self.rollouts.command(command, "admin").await
    }

    /// The devices that have the artifact.
    fn assigned(&self, artifact: &ArtifactName, devices: usize) -> Vec<DeviceId> {
        let all = (0..devices).map(device);
        all.filter(|device| self.assignments.wanted(device).contains(artifact)).collect()
    }

    fn runs(&self, device: &DeviceId, artifact: &ArtifactName) {
        let platform = Platform::new("linux", "arm64", None);
        let (boot, version) = ("boot".parse().unwrap(), "1".parse().unwrap());
        let mut report = Report::new(device.clone(), 1, boot, version, platform, AgentState::Idle);
        report.running.push(Running { artifact: artifact.clone(), since: Timestamp::UNIX_EPOCH });
        self.rollouts.observe(&report, Timestamp::from_second(1001).unwrap());
    }

    /// Waits until the rollout is in a phase.
    async fn until(&self, phase: &Phase) {
        let mut moved = self.rollouts.watch();
        while self.rollouts.get(&name()).await.unwrap().phase != *phase {
            moved.changed().await.unwrap();
        }
    }
}

fn device(number: usize) -> DeviceId {
    format!("board-{number}").parse().unwrap()
}

fn name() -> RolloutName {
    "app".parse().unwrap()
}

#[tokio::test]
async fn a_large_fleet_is_reached_wave_by_wave() {
    const DEVICES: usize = 2000;
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::driven(directory.path(), DEVICES).await;
    let app = rig.artifact("one").await;
    rig.create(&app, "1,10%,100%").await;
    assert_eq!(rig.assigned(&app, DEVICES), [], "nothing happens before it starts");
    rig.command(Command::Start(name())).await.unwrap();
    let mut well = BTreeSet::new();
    for reached in [1, 200, DEVICES] {
        let mut moved = rig.rollouts.watch();
        while rig.assigned(&app, DEVICES).len() < reached {
            moved.changed().await.unwrap();
        }
        let assigned = rig.assigned(&app, DEVICES);
        assert_eq!(assigned.len(), reached);
        for device in assigned {
            if well.insert(device.clone()) {
                rig.runs(&device, &app);
            }
        }
    }
    rig.until(&Phase::Completed).await;
    let outcome = rig.rollouts.get(&name()).await.unwrap().outcome;
    assert_eq!(outcome, BTreeMap::from([("healthy".to_owned(), DEVICES)]));
    rig.stop().await;
}

#[tokio::test]
async fn a_wave_that_was_stored_and_not_assigned_is_assigned_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::driven(directory.path(), 4).await;
    let app = rig.artifact("one").await;
    rig.create(&app, "50%,100%").await;
    rig.command(Command::Start(name())).await.unwrap();
    let first = rig.assigned(&app, 4);
    rig.stop().await;
    // As a crash between the decision and its effect leaves it.
    let rig = Rig::open(directory.path(), 4).await;
    let mut rollout = rig.rollouts.get(&name()).await.unwrap();
    (rollout.phase, rollout.wave) = (Phase::Assigning, 1);
    let mut batch = Batch::new();
    batch.put_json(ROLLOUTS, name().as_str(), &rollout).unwrap();
    rig.store.commit(batch).await.unwrap();
    assert_eq!(rig.assigned(&app, 4), first);
    rig.stop().await;
    let rig = Rig::driven(directory.path(), 4).await;
    rig.until(&Phase::Running).await;
    assert_eq!(rig.assigned(&app, 4).len(), 4);
    rig.stop().await;
}

#[tokio::test]
async fn devices_that_are_deleted_hold_nothing_up() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::driven(directory.path(), 3).await;
    let app = rig.artifact("one").await;
    rig.create(&app, "100%").await;
    rig.command(Command::Start(name())).await.unwrap();
    for number in 0..2 {
        rig.runs(&device(number), &app);
    }
    rig.assignments.device_deleted(&device(2));
    rig.until(&Phase::Completed).await;
    rig.stop().await;
}

#[tokio::test]
async fn abort_gives_back_what_was_there_and_leaves_what_somebody_assigned_since() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::driven(directory.path(), 3).await;
    let (old, new, other) =
        (rig.artifact("old").await, rig.artifact("new").await, rig.artifact("other").await);
    let assign = |number: usize, artifact: &ArtifactName| {
        let assignment = Assignment {
            target: Target::Device(device(number)),
            artifact: artifact.clone(),
            assigned_at: Timestamp::UNIX_EPOCH,
            assigned_by: "admin".to_owned(),
        };
        rig.assignments.assign(vec![assignment])
    };
    assign(0, &old).await.unwrap();
    rig.create(&new, "100%").await;
    rig.command(Command::Start(name())).await.unwrap();
    assert_eq!(rig.assigned(&new, 3).len(), 3);
    assign(2, &other).await.unwrap();
    let aborted = rig.command(Command::AbortRevert(name())).await.unwrap();
    assert_eq!(aborted.phase, Phase::Aborted { reverted: true });
    assert_eq!(rig.assigned(&new, 3), []);
    assert_eq!(rig.assigned(&old, 3), [device(0)]);
    assert_eq!(rig.assigned(&other, 3), [device(2)]);
    rig.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_in_a_phase_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::driven(directory.path(), 1).await;
    let app = rig.artifact("one").await;
    rig.create(&app, "100%").await;
    for wish in [Command::Approve(name()), Command::Pause(name()), Command::Resume(name())] {
        assert!(matches!(rig.command(wish).await, Err(RolloutError::Phase { phase: "draft", .. })));
    }
    rig.command(Command::Start(name())).await.unwrap();
    for wish in [Command::Start(name()), Command::Delete(name()), Command::Resume(name())] {
        assert!(matches!(rig.command(wish).await, Err(RolloutError::Phase { phase: "running", .. })));
    }
    rig.command(Command::AbortKeep(name())).await.unwrap();
    assert_eq!(rig.assigned(&app, 1).len(), 1);
    rig.command(Command::Delete(name())).await.unwrap();
    assert!(matches!(rig.rollouts.get(&name()).await, Err(RolloutError::NotFound(_))));
    rig.stop().await;
}
