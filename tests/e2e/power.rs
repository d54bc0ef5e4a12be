//! The power goes, or the agent is killed: at any moment, with any part lost that was not on the disk yet.

use std::path::Path;

use harness::disk::{Disks, Log, Survivors, Unflushed};
use harness::process::{READY, poll, write};
use harness::tunnel::Tunnel;
use harness::{Containerd, Device, Facade, ImageBuilder, Pushed, Registry};
use serde_json::Value;

/// Two versions of one application.
struct Shop {
    facade: Facade,
    one: Pushed,
    two: Pushed,
    _registry: Registry,
}

impl Shop {
    fn open(layer_bytes: usize) -> Self {
        let (facade, registry) = (Facade::start(), Registry::open());
        facade.connect(&registry);
        let push = |says: &str| {
            let image = ImageBuilder::new().says(says).random_layer(layer_bytes).build();
            registry.push("team/app", says, &image)
        };
        let (one, two) = (push("one"), push("two"));
        Self { facade, one, two, _registry: registry }
    }

    fn alias(&self) -> String {
        format!("{}:current", self.one.repository)
    }
}

/// What a state directory says: the state of the life-cycle, and whether `artifact` was applied.
fn says(directory: &Path, artifact: &str) -> (String, bool) {
    let text = std::fs::read_to_string(directory.join("state/state.json")).unwrap_or_default();
    // A line with the digest of all before it follows.
    let first = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
    let state = first.and_then(Result::ok).unwrap_or_default();
    let name = state.get("state").and_then(Value::as_str).unwrap_or_default().to_owned();
    let current = state.pointer("/standing/current").map(ToString::to_string).unwrap_or_default();
    (name, current.contains(artifact))
}

/// Lets the agent believe that the board was off since it ran last.
fn reboot(directory: &Path) {
    let run = directory.join("state/run.json");
    if run.exists() {
        write(&run, r#"{"boot_id": "the-one-before", "stopped": false, "unverified": false}"#);
    }
}

/// The moments worth a power cut: when the agent's disk first held each state, and some while content came in.
fn moments(log: &Log, begun: usize, artifact: &str) -> Vec<(usize, String, bool)> {
    let mut moments = Vec::new();
    let mut last = None;
    for moment in log.flushes("state").into_iter().filter(|moment| *moment > begun) {
        let disks = log.survivors(moment, Unflushed::Lost);
        let now = says(&disks.path("state"), artifact);
        if last.as_ref() != Some(&now) {
            moments.push((moment, now.0.clone(), now.1));
            last = Some(now);
        }
    }
    moments
}

#[test]
fn in_containerd_nothing_counts_as_applied_before_content_and_snapshot_are_on_the_disk() {
    let shop = Shop::open(3_000_000);
    let disks = Disks::start(&["images", "state"], 256 << 20);
    let mut containerd = Containerd::start_at(&disks.path("images"));
    let board = |containerd: &Containerd, state: &Path| {
        Device::with_containerd("board-1", containerd).with_state_in(state)
    };
    let device = board(&containerd, &disks.path("state"));
    device.enroll(&shop.facade.token("board-1")).expect_success();
    shop.facade.deliver(&shop.one, "board-1");
    device.sync().expect_success();
    shop.facade.deliver(&shop.two, "board-1");
    let begun = disks.log().len();
    device.sync().expect_success();
    containerd.kill9();
    let log = disks.log();
    drop((device, containerd, disks));

    let two = shop.two.artifact();
    let stages = moments(&log, begun, &two);
    let names: Vec<&str> = stages.iter().map(|(_, name, _)| name.as_str()).collect();
    assert!(names.ends_with(&["fetching", "activating", "confirming", "idle"]), "{names:?}");
    assert_eq!(stages.iter().filter(|(.., applied)| *applied).count(), 1, "{stages:?}");
    let mut cuts: Vec<(usize, Unflushed)> = Vec::new();
    for (moment, name, _) in &stages {
        cuts.push((*moment, Unflushed::Lost));
        if ["activating", "confirming", "idle"].contains(&name.as_str()) {
            cuts.push((*moment, Unflushed::Scattered(*moment as u64)));
        }
    }
    // And while content and snapshots are on their way.
    let writes = log.flushes("images");
    let writes: Vec<&usize> = writes.iter().filter(|moment| **moment > begun).collect();
    cuts.extend(
        [1, 2].iter().filter_map(|part| Some((**writes.get(writes.len() * part / 3)?, Unflushed::Lost))),
    );
    for (moment, unflushed) in cuts {
        let disks = log.survivors(moment, unflushed);
        let (state, applied) = says(&disks.path("state"), &two);
        eprintln!("power cut at {moment} of {}, {unflushed:?}: {state}, applied: {applied}", log.len());
        // The facade takes the next one for a copy of the last, with reason: they have one past.
        drop(shop.facade.cli(&["device", "restore", "board-1"]));
        assert_recovers(&shop, &disks, &board, applied);
        let mounted = disks.path("images");
        drop(disks);
        assert!(!mounted.exists(), "{} was left behind", mounted.display());
    }
}

/// What is said to be applied is whole and runs; and an agent that starts on what survived brings in what is assigned.
fn assert_recovers(
    shop: &Shop,
    disks: &Survivors,
    board: &dyn Fn(&Containerd, &Path) -> Device,
    applied: bool,
) {
    let containerd = Containerd::start_at(&disks.path("images"));
    let device = board(&containerd, &disks.path("state"));
    reboot(&disks.path("state"));
    // Something always runs: the version before, until the next one is whole.
    let ran = containerd.run(&shop.alias());
    assert!(if applied { ran == "two\n" } else { ["one\n", "two\n"].contains(&ran.as_str()) }, "{ran}");
    let verified = device.verify();
    assert_eq!(verified.code, 0, "what is handed over is not whole: {}", verified.text());
    let mut recovered = device.sync();
    // What the power cut damaged is found by the first round and mended by the next.
    if recovered.code != 0 {
        recovered = device.sync();
    }
    recovered.expect_success();
    assert_eq!(containerd.run(&shop.alias()), "two\n");
    assert!(containerd.ingests().is_empty() && containerd.leases().is_empty());
}

#[test]
fn in_containerd_kill_9_at_each_step_towards_the_disk_is_recovered_from() {
    let shop = Shop::open(100_000);
    let containerd = Containerd::start();
    let device = Device::enrolled_with_containerd("board-1", &shop.facade, &containerd);
    shop.facade.deliver(&shop.one, "board-1");
    device.sync().expect_success();
    let (mut next, mut before) = (&shop.two, &shop.one);
    let mut killed = 0;
    for call in ["syncfs", "fsync"] {
        for number in 1.. {
            shop.facade.deliver(next, "board-1");
            let outcome = device.killed_at(&["sync"], &format!("{call}:when={number}"));
            let whole = containerd.run(&shop.alias());
            assert!(
                [&shop.one, &shop.two].iter().any(|version| whole == format!("{}\n", version.tag)),
                "{whole}"
            );
            if outcome.code == 0 {
                break;
            }
            killed += 1;
            device.sync().expect_success();
            assert_eq!(containerd.run(&shop.alias()), format!("{}\n", next.tag), "{call} {number}");
            let status = device.status();
            assert_eq!(status["rejected"].as_array().map(Vec::len), Some(0), "{status}");
            std::mem::swap(&mut next, &mut before);
        }
        std::mem::swap(&mut next, &mut before);
    }
    assert!(killed > 10, "killed only {killed} times");
    assert!(containerd.ingests().is_empty() && containerd.leases().is_empty());
}

#[test]
fn in_containerd_at_most_a_mebibyte_is_fetched_again_after_kill_9_or_a_reboot() {
    const MEBIBYTE: u64 = 1 << 20;
    let (facade, registry, tunnel) = (Facade::start(), Registry::open(), Tunnel::open());
    facade.connect(&registry);
    let mut image = ImageBuilder::new().says("whole again");
    // Layers come in side by side, and each of them is cut short.
    for _ in 0..3 {
        image = image.random_layer(10_000_000);
    }
    let image = image.build();
    let pushed = registry.push("team/app", "v1", &image);
    let proxy = format!("http://{}", tunnel.authority());
    let mut containerd = Containerd::start();
    let device = Device::enrolled_with_containerd("board-1", &facade, &containerd);
    let device =
        device.with_settings(&[("DEVICE_AGENT_PROXY", &proxy), ("DEVICE_AGENT_DOWNLOAD_RATE", "8MiB/s")]);
    device.sync().expect_success();
    let idle = tunnel.brought_bytes();
    device.sync().expect_success();
    // What a round without anything new takes, which is not content.
    let round = tunnel.brought_bytes() - idle;
    facade.deliver(&pushed, "board-1");
    let size: u64 = image.blobs.values().map(|blob| blob.len() as u64).sum();
    let begun = tunnel.brought_bytes();
    let mut kills = 0;
    for part in 1..=3 {
        let mut agent = device.start_sync();
        poll("a part of the image", READY, || {
            (tunnel.brought_bytes() - begun > size * part / 4).then_some(())
        });
        agent.kill9();
        kills += 1;
        if part == 2 {
            // A reboot ends both, and leaves what the file system has.
            containerd.restart_after_kill9();
        }
    }
    device.sync().expect_success();
    assert_eq!(containerd.run(&pushed.artifact()), "whole again\n");
    // Each round asks for metadata and documents again, and TLS adds its own.
    let brought = tunnel.brought_bytes() - begun - (kills + 1) * round;
    let again = brought.saturating_sub(size + size / 200);
    eprintln!("{size} bytes of content, {brought} fetched, {again} of them again after {kills} kills");
    assert!(again <= kills * MEBIBYTE, "{again} bytes were fetched again after {kills} kills");
}
