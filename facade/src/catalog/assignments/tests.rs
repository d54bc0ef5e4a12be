use pki::digest::Digest;

use super::super::access::Standing;
use super::*;
use crate::store::sled::SledStore;

struct Rig {
    directory: tempfile::TempDir,
    access: Arc<Access>,
    assignments: Assignments,
}

impl Rig {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let access = Arc::new(Access::new());
        let assignments = Assignments::load(store(directory.path()), Arc::clone(&access)).await.unwrap();
        Self { directory, access, assignments }
    }

    async fn assign(&self, target: &Target, artifact: &ArtifactName, second: i64) -> Vec<Change> {
        self.assignments.assign(vec![assignment(target, artifact, second)]).await.unwrap().0
    }

    fn wanted(&self, id: &str) -> Vec<String> {
        self.assignments.wanted(&id.parse().unwrap()).iter().map(ToString::to_string).collect()
    }
}

fn store(directory: &std::path::Path) -> Arc<dyn Store> {
    Arc::new(SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap().0)
}

fn artifact(repository: &str, content: &str) -> ArtifactName {
    ArtifactName::new(repository.parse().unwrap(), Digest::sha256(content.as_bytes()))
}

fn group(name: &str) -> Target {
    Target::Group(name.parse().unwrap())
}

fn device_target(id: &str) -> Target {
    Target::Device(id.parse().unwrap())
}

fn assignment(target: &Target, artifact: &ArtifactName, second: i64) -> Assignment {
    Assignment {
        target: target.clone(),
        artifact: artifact.clone(),
        assigned_at: Timestamp::from_second(second).unwrap(),
        assigned_by: "admin".to_owned(),
    }
}

fn device(id: &str, groups: &[&str]) -> Device {
    let mut device =
        Device::new(id.parse().unwrap(), super::super::devices::Standing::Active, Timestamp::UNIX_EPOCH);
    device.groups = groups.iter().map(|group| group.parse().unwrap()).collect();
    device
}

#[tokio::test]
async fn another_version_replaces_the_one_before_and_says_so() {
    let rig = Rig::new().await;
    rig.assignments.device_changed(&device("board", &["kitchen"]));
    let (one, two) = (artifact("ghcr.io/o/app", "1"), artifact("ghcr.io/o/app", "2"));
    assert_eq!(rig.assign(&group("kitchen"), &one, 1).await[0].replaces, None);
    assert_eq!(rig.assign(&group("kitchen"), &two, 2).await[0].replaces, Some(one));
    assert_eq!(rig.assign(&group("kitchen"), &two, 3).await[0].replaces, None);
    assert_eq!(rig.wanted("board"), [two.to_string()]);
}

#[tokio::test]
async fn a_devices_own_assignment_wins_and_among_groups_the_newest() {
    let rig = Rig::new().await;
    rig.assignments.device_changed(&device("board", &["a", "b"]));
    let versions: Vec<ArtifactName> =
        ["1", "2", "3"].iter().map(|text| artifact("ghcr.io/o/app", text)).collect();
    rig.assign(&group("b"), &versions[1], 20).await;
    rig.assign(&group("a"), &versions[0], 10).await;
    assert_eq!(rig.wanted("board"), [versions[1].to_string()]);
    rig.assign(&device_target("board"), &versions[2], 5).await;
    assert_eq!(rig.wanted("board"), [versions[2].to_string()]);
    rig.assignments.unassign(&[(device_target("board"), versions[2].clone())]).await.unwrap();
    assert_eq!(rig.wanted("board"), [versions[1].to_string()]);
}

#[tokio::test]
async fn a_device_has_what_its_groups_have_for_as_long_as_it_is_in_them() {
    let rig = Rig::new().await;
    let app = artifact("ghcr.io/o/app", "1");
    rig.assign(&group("kitchen"), &app, 1).await;
    rig.assignments.device_changed(&device("board", &[]));
    assert!(rig.wanted("board").is_empty());
    rig.assignments.device_changed(&device("board", &["kitchen"]));
    assert_eq!(rig.wanted("board"), [app.to_string()]);
    let kitchen: Group = "kitchen".parse().unwrap();
    assert_eq!(rig.assignments.members(&kitchen, None, 10).len(), 1);
    rig.assignments.device_changed(&device("board", &["hall"]));
    assert!(rig.wanted("board").is_empty());
    assert!(rig.assignments.members(&kitchen, None, 10).is_empty());
}

#[tokio::test]
async fn taking_back_what_is_not_assigned_changes_nothing() {
    let rig = Rig::new().await;
    let (one, two) = (artifact("ghcr.io/o/app", "1"), artifact("ghcr.io/o/app", "2"));
    rig.assign(&group("kitchen"), &one, 1).await;
    let (changes, _) =
        rig.assignments.unassign(&[(group("kitchen"), two), (group("hall"), one)]).await.unwrap();
    assert!(changes.is_empty());
    assert_eq!(rig.assignments.list(&Which::All, None, 10).len(), 1);
}

#[tokio::test]
async fn withdrawing_an_artifact_takes_it_from_everybody() {
    let rig = Rig::new().await;
    rig.assignments.device_changed(&device("board", &["kitchen"]));
    let app = artifact("ghcr.io/o/app", "1");
    rig.assign(&group("kitchen"), &app, 1).await;
    rig.assign(&device_target("board"), &app, 1).await;
    assert_eq!(rig.assignments.withdraw(&app).await.unwrap(), 2);
    assert!(rig.wanted("board").is_empty());
}

#[tokio::test]
async fn a_change_wakes_the_devices_it_reaches_and_only_those() {
    let rig = Rig::new().await;
    rig.assignments.device_changed(&device("board", &["kitchen"]));
    rig.assignments.device_changed(&device("other", &["hall"]));
    let news = |id: &str| rig.assignments.news(&id.parse().unwrap()).unwrap();
    let (reached, other) = (news("board"), news("other"));
    let (reached, other) = (reached.notified(), other.notified());
    tokio::pin!(reached, other);
    assert!(!reached.as_mut().enable());
    assert!(!other.as_mut().enable());
    rig.assign(&group("kitchen"), &artifact("ghcr.io/o/app", "1"), 1).await;
    reached.await;
    assert!(!other.as_mut().enable());
}

#[tokio::test]
async fn assignments_outlive_a_restart() {
    let rig = Rig::new().await;
    let app = artifact("127.0.0.1:5000/team/app", "1");
    rig.assign(&group("kitchen"), &app, 1).await;
    let Rig { directory, access, assignments } = rig;
    drop(assignments);
    let again = Assignments::load(store(directory.path()), access).await.unwrap();
    again.device_changed(&device("board", &["kitchen"]));
    assert_eq!(again.wanted(&"board".parse().unwrap()).into_iter().collect::<Vec<_>>(), [app]);
}

#[tokio::test]
async fn a_deleted_device_is_forgotten_at_once() {
    let rig = Rig::new().await;
    let id: DeviceId = "board".parse().unwrap();
    rig.assignments.device_changed(&device("board", &["kitchen"]));
    assert_eq!(rig.access.standing(&id), Standing::Active);
    rig.assignments.device_deleted(&id);
    assert_eq!(rig.access.standing(&id), Standing::Unknown);
    assert!(rig.assignments.news(&id).is_none());
    assert!(rig.assignments.members(&"kitchen".parse().unwrap(), None, 10).is_empty());
}

#[tokio::test]
async fn several_of_one_repository_stand_together_until_the_next_step() {
    let rig = Rig::new().await;
    rig.assignments.device_changed(&device("board", &["kitchen"]));
    let versions: Vec<ArtifactName> =
        ["1", "2", "3"].iter().map(|text| artifact("ghcr.io/o/app", text)).collect();
    let both = versions[..2].iter().map(|name| assignment(&group("kitchen"), name, 1)).collect();
    rig.assignments.assign(both).await.unwrap();
    assert_eq!(rig.wanted("board").len(), 2);
    let changes = rig.assign(&group("kitchen"), &versions[2], 2).await;
    assert!(changes[0].replaces.is_some());
    assert_eq!(rig.wanted("board"), [versions[2].to_string()]);
    assert_eq!(rig.assignments.list(&Which::All, None, 10).len(), 1);
}
