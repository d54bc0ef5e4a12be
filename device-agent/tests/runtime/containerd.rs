//! A real containerd: its own daemon per test, with its own root and socket.

use std::time::Duration;

use device_agent::runtime::containerd::{Containerd, Settings};
use device_agent::runtime::{Ingest, Lease, Runtime, RuntimeError, current_alias};
use pki::digest::Digest;
use pki::oci::Descriptor;

use crate::daemon::Daemon;
use crate::sample::Sample;
use crate::suite::{Place, deliver, every_place_passes, ingest, load, write_from_offset};

impl Place for Daemon {
    fn runtime(&self) -> Box<dyn Runtime> {
        Box::new(client(self))
    }

    fn collect(&self) {
        self.collect();
    }

    fn inventory(&self) -> String {
        self.inventory()
    }

    fn leftovers(&self) -> usize {
        let ingests = self.ctr(&["content", "active"]).lines().count() - 1;
        self.ctr(&["leases", "ls", "-q"]).lines().count() + ingests
    }

    fn flip_a_byte_of(&self, digest: Digest) {
        self.flip_a_byte_of(digest);
    }
}

every_place_passes!(Daemon::start());

fn client(daemon: &Daemon) -> Containerd {
    Containerd::new(Settings {
        address: daemon.socket(),
        namespace: "drayage".parse().unwrap(),
        snapshotter: None,
    })
}

#[tokio::test]
async fn an_image_comes_in_runs_and_survives_every_collection() {
    let daemon = Daemon::start();
    let runtime = client(&daemon);
    let sample = Sample::with_index("hello from the layer");
    let image = deliver(&runtime, &sample).await;

    let name = sample.artifact.to_string();
    assert!(daemon.ctr(&["images", "ls", "-q"]).contains(&name));
    daemon.collect();
    daemon.ctr(&["content", "prune", "references"]);
    let check = daemon.ctr(&["images", "check"]);
    let line = check.lines().find(|line| line.starts_with(&name)).unwrap();
    assert!(line.contains("complete (3/3)") && line.trim_end().ends_with("true"), "{check}");
    for name in [name, current_alias(sample.artifact.repository())] {
        assert_eq!(daemon.run(&name, &["/bin/cat", "/etc/greeting"]), "hello from the layer\n");
        assert!(daemon.run(&name, &["/bin/id"]).starts_with("uid=0"));
    }
    let verification = runtime.verify(&image).await.unwrap();
    assert!(verification.is_sound(), "{verification:?}");
    assert_eq!(verification.verified_bytes, sample.size_bytes());
    assert_eq!(daemon.ctr(&["leases", "ls", "-q"]), "");
}

#[tokio::test]
async fn labels_of_an_image_never_become_labels_of_its_record() {
    let daemon = Daemon::start();
    let runtime = client(&daemon);
    // CVE-2026-53488: the sample's configuration carries `containerd.io/` labels.
    let sample = Sample::single("labels");
    deliver(&runtime, &sample).await;
    let listed = daemon.ctr(&["images", "ls"]);
    assert!(listed.contains("io.drayage.artifact="), "{listed}");
    assert!(!listed.contains("containerd.io/"), "{listed}");
}

#[tokio::test]
async fn a_containerd_killed_in_mid_write_is_found_again_and_the_write_goes_on() {
    let mut daemon = Daemon::start();
    let runtime = client(&daemon);
    let sample = Sample::random(8_000_000);
    let (content, bytes) = &sample.contents[0];
    let lease = runtime.open(&sample.artifact).await.unwrap();
    let mut ingest = runtime.begin(&lease, content).await.unwrap();
    write_from_offset(&mut *ingest, &bytes[..4_000_000]).await.unwrap();
    daemon.kill();
    let error = write_from_offset(&mut *ingest, bytes).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error:?}");
    drop(ingest);
    let error = runtime.begin(&lease, content).await.err().unwrap();
    assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error:?}");

    daemon.restart();
    let mut ingest = until_reachable(&runtime, &lease, content).await;
    assert!(ingest.offset() >= 4_000_000 - (1 << 20), "{}", ingest.offset());
    write_from_offset(&mut *ingest, bytes).await.unwrap();
    ingest.commit().await.unwrap();
    assert!(runtime.hold(&lease, content).await.unwrap());
}

async fn until_reachable(runtime: &dyn Runtime, lease: &Lease, content: &Descriptor) -> Box<dyn Ingest> {
    for _ in 0..100 {
        match runtime.begin(lease, content).await {
            Ok(ingest) => return ingest,
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("containerd did not come back");
}

#[tokio::test]
async fn a_damaged_beginning_is_started_anew() {
    let mut daemon = Daemon::start();
    let runtime = client(&daemon);
    let sample = Sample::random(3_000_000);
    let (content, bytes) = &sample.contents[0];
    let lease = runtime.open(&sample.artifact).await.unwrap();
    let mut half = runtime.begin(&lease, content).await.unwrap();
    write_from_offset(&mut *half, &bytes[..2_000_000]).await.unwrap();
    drop(half);
    daemon.kill();
    // What a power cut leaves of files that were not synced.
    daemon.empty_ingest_files();
    daemon.restart();
    let mut again = until_reachable(&runtime, &lease, content).await;
    write_from_offset(&mut *again, bytes).await.unwrap();
    again.commit().await.unwrap();
    assert!(runtime.hold(&lease, content).await.unwrap());
}

#[tokio::test]
async fn a_lease_removed_by_someone_else_is_taken_again() {
    let daemon = Daemon::start();
    let runtime = client(&daemon);
    let sample = Sample::single("lease");
    let lease = runtime.open(&sample.artifact).await.unwrap();
    for id in daemon.ctr(&["leases", "ls", "-q"]).lines() {
        daemon.ctr(&["leases", "rm", id]);
    }
    for (content, bytes) in &sample.contents {
        ingest(&runtime, &lease, content, bytes).await;
    }
    daemon.collect();
    assert!(runtime.hold(&lease, &sample.contents[0].0).await.unwrap());
}

#[tokio::test]
async fn rejects_a_layer_that_unpacks_to_something_else_than_promised() {
    let daemon = Daemon::start();
    let runtime = client(&daemon);
    let sample = Sample::with_wrong_diff_id();
    let lease = runtime.open(&sample.artifact).await.unwrap();
    for (content, bytes) in &sample.contents {
        ingest(&runtime, &lease, content, bytes).await;
    }
    let image = load(&runtime, &sample).await;
    let error = runtime.import(&lease, &image).await.unwrap_err();
    assert!(matches!(error, RuntimeError::WrongLayer { .. }), "{error:?}");
    assert_eq!(daemon.ctr(&["images", "ls", "-q"]), "");
    assert_eq!(daemon.ctr(&["snapshots", "ls"]).lines().count(), 2, "the layer below stays, nothing above");
}

#[tokio::test]
async fn rejects_a_snapshotter_that_containerd_does_not_have() {
    let daemon = Daemon::start();
    let runtime = Containerd::new(Settings {
        address: daemon.socket(),
        namespace: "drayage".parse().unwrap(),
        snapshotter: Some("stargz".parse().unwrap()),
    });
    let error = runtime.about().await.unwrap_err();
    assert!(matches!(error, RuntimeError::Snapshotter { .. }), "{error:?}");
    assert!(error.to_string().contains("overlayfs"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_called_so_and_the_write_goes_on_when_there_is_room() {
    let daemon = Daemon::start_on_disk_of(24 << 20);
    let runtime = client(&daemon);
    let (small, large) = (Sample::random(8 << 20), Sample::random(14 << 20));
    let lease = runtime.open(&small.artifact).await.unwrap();
    let (content, bytes) = &small.contents[0];
    ingest(&runtime, &lease, content, bytes).await;
    let other = runtime.open(&large.artifact).await.unwrap();
    let (content, bytes) = &large.contents[0];
    daemon.fill_disk_but(4 << 20);
    let mut ingest = runtime.begin(&other, content).await.unwrap();
    let error = match write_from_offset(&mut *ingest, bytes).await {
        Ok(()) => ingest.commit().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, RuntimeError::NoSpace { .. }), "{error:?}");

    daemon.free_disk();
    let mut ingest = runtime.begin(&other, content).await.unwrap();
    assert!(ingest.offset() >= 1 << 20, "{}", ingest.offset());
    write_from_offset(&mut *ingest, bytes).await.unwrap();
    ingest.commit().await.unwrap();
    assert!(runtime.hold(&lease, &small.contents[0].0).await.unwrap());
}

#[tokio::test]
async fn content_of_another_namespace_is_not_fetched_again() {
    let daemon = Daemon::start();
    let theirs = Containerd::new(Settings {
        address: daemon.socket(),
        namespace: "theirs".parse().unwrap(),
        snapshotter: None,
    });
    let runtime = client(&daemon);
    let sample = Sample::single("shared");
    deliver(&theirs, &sample).await;
    let lease = runtime.open(&sample.artifact).await.unwrap();
    for (content, _) in &sample.contents {
        assert!(!runtime.hold(&lease, content).await.unwrap());
        let known = runtime.begin(&lease, content).await.unwrap();
        assert_eq!(known.offset(), content.size);
        known.commit().await.unwrap();
    }
    deliver(&runtime, &sample).await;
    theirs.remove(&sample.artifact).await.unwrap();
    daemon.collect();
    assert_eq!(daemon.run(&sample.artifact.to_string(), &["/bin/cat", "/etc/greeting"]), "shared\n");
}

#[tokio::test]
async fn an_import_killed_half_way_is_done_again() {
    let mut daemon = Daemon::start();
    let runtime = client(&daemon);
    let sample = Sample::single("again");
    let lease = runtime.open(&sample.artifact).await.unwrap();
    for (content, bytes) in &sample.contents {
        ingest(&runtime, &lease, content, bytes).await;
    }
    let image = load(&runtime, &sample).await;
    // What a killed attempt leaves: a snapshot with unknown content in the place of the one to be made.
    let key = format!("drayage-unpack-{}", image.chain()[0].id.hex());
    daemon.ctr(&["snapshots", "prepare", &key]);
    daemon.kill();
    daemon.restart();
    until_reachable(&runtime, &lease, &image.config).await;
    runtime.import(&lease, &image).await.unwrap();
    runtime.close(&lease).await.unwrap();
    daemon.collect();
    assert_eq!(daemon.run(&sample.artifact.to_string(), &["/bin/cat", "/etc/greeting"]), "again\n");
}

#[tokio::test]
async fn says_what_it_is_and_how_much_room_it_has() {
    let daemon = Daemon::start();
    let runtime = client(&daemon);
    let about = runtime.about().await.unwrap();
    assert_eq!(about.kind, "containerd");
    assert!(about.version.starts_with(|first: char| first.is_ascii_digit()), "{about:?}");
    let space = runtime.space().await.unwrap();
    assert!(space.shared && space.content_free_bytes > Some(0), "{space:?}");
}
