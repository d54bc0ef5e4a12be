//! What happens on a board: releases that fail there, full cards, power cuts, a containerd that comes and goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::process::{READY, poll, write};
use harness::{Containerd, Device, Facade, Fault, ImageBuilder, Proxy, Pushed, Registry, When};
use tempfile::TempDir;

/// Versions of one application, and a board with containerd.
struct Bench {
    facade: Facade,
    versions: Vec<Pushed>,
    containerd: Containerd,
    device: Device,
    directory: TempDir,
    _registry: Registry,
}

impl Bench {
    fn set(versions: &[&str]) -> Self {
        let (facade, registry) = (Facade::start(), Registry::open());
        facade.connect(&registry);
        let push = |says: &&str| registry.push("team/app", says, &ImageBuilder::new().says(says).build());
        let versions = versions.iter().map(push).collect();
        let containerd = Containerd::start();
        let device = Device::enrolled_with_containerd("board-1", &facade, &containerd);
        let directory = TempDir::new().expect("make a directory");
        Self { facade, versions, containerd, device, directory, _registry: registry }
    }

    fn version(&self, number: usize) -> &Pushed {
        self.versions.get(number).expect("a version")
    }

    fn deliver(&self, number: usize) {
        self.facade.deliver(self.version(number), "board-1");
    }

    /// A hook of the operator of the board.
    fn program(&self, script: &str) -> String {
        let path = self.directory.path().join("hook");
        write(&path, format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
        path.display().to_string()
    }

    fn alias(&self) -> String {
        format!("{}:current", self.version(0).repository)
    }
}

#[test]
fn release_that_fails_its_hook_in_containerd_gives_way_to_the_one_before() {
    let bench = Bench::set(&["one", "two", "three"]);
    // The hook runs the image under its stable name, as an operator would, and finds containerd by itself.
    // What the image prints is written by its shim: ctr, which copies it through a pipe, may lose it.
    let hook = bench.program(
        "ctr run --rm --net-host --log-uri file:///SAYS $DRAYAGE_IMAGE hook-$$ && says=$(cat /SAYS) && rm /SAYS && \
         echo \"$DRAYAGE_ACTION $says\" >>/NOTES && [ \"$says\" != two ]"
            .replace("/NOTES", &bench.directory.path().join("notes").display().to_string())
            .replace("/SAYS", &bench.directory.path().join("says").display().to_string())
            .as_str(),
    );
    let settings = [("DEVICE_AGENT_APPLY_COMMAND", hook.as_str())];
    bench.deliver(0);
    bench.device.sync_with(&settings).expect_success();
    bench.deliver(1);
    let failed = bench.device.sync_with(&settings).expect_code(1);
    assert!(failed.text().contains("could not be applied"), "{}", failed.text());
    assert_eq!(bench.containerd.run(&bench.alias()), "one\n");
    let status = bench.device.status();
    assert_eq!(status["rolled_back"][0]["artifact"], bench.version(1).artifact(), "{status}");
    assert_eq!(status["running"][0]["artifact"], bench.version(0).artifact());
    let shown = bench.facade.ok(&["device", "show", "board-1"]);
    assert_eq!(shown["rolled_back"][0]["code"], "apply_failed", "{shown}");
    // It is remembered, and the one after it is taken.
    bench.device.sync_with(&settings).expect_success();
    bench.deliver(2);
    bench.device.sync_with(&settings).expect_success();
    assert_eq!(bench.containerd.run(&bench.alias()), "three\n");
    let notes = fs::read_to_string(bench.directory.path().join("notes")).expect("read the notes");
    assert_eq!(notes, "apply one\napply two\nroll-back one\napply three\n");
    bench.containerd.collect_garbage();
    let images = bench.containerd.images();
    assert!(images.contains(&bench.version(0).artifact()), "the rollback image stays: {images:?}");
    assert!(!images.contains(&bench.version(1).artifact()), "{images:?}");
}

#[test]
fn policy_of_the_operator_holds_a_device_back_and_lets_it_go_again() {
    let (facade, registry) = (Facade::start(), Registry::open());
    facade.connect(&registry);
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("at night").build());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    // A window of one minute that was an hour ago.
    let at = |minutes| {
        let time = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(minutes);
        time.to_zoned(jiff::tz::TimeZone::fixed(jiff::tz::offset(5))).strftime("%H:%M").to_string()
    };
    let window = format!("{}-{} Asia/Karachi", at(60), at(59));
    let set =
        facade.ok(&["device", "policy", "board-1", "--download-window", &window, "--rate-limit", "8MiB/s"]);
    assert_eq!(set["download_window"], window.as_str(), "{set}");
    device.sync().expect_success();
    assert!(device.delivered().is_empty());
    let shown = facade.ok(&["device", "show", "board-1"]);
    let waiting = shown["waiting"].as_str().unwrap_or_default();
    assert!(waiting.contains("the download window") && waiting.contains("opens at"), "{shown}");
    let status = device.run(&["status"]);
    assert!(status.text().contains("waiting: the download window"), "{}", status.text());
    facade.ok(&["device", "policy", "board-1", "--download-window", "none"]);
    device.sync().expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
    let held = facade.ok(&["device", "policy", "board-1"]);
    assert_eq!(held[0]["rate_limit"], "8MiB/s", "{held}");
    for nonsense in [
        ["--apply-window", "tonight"],
        ["--rate-limit", "fast"],
        ["--apply-window", "01:00-02:00 Mars/Olympus"],
    ] {
        let refused = facade.cli(&[&["device", "policy", "board-1"][..], &nonsense].concat());
        assert_ne!(refused.code, 0, "{nonsense:?}");
        assert!(refused.text().contains("for example"), "{}", refused.text());
    }
}

#[test]
fn download_that_misses_the_signed_deadline_is_given_up_and_taken_up_with_a_longer_one() {
    let (facade, mut registry) = (Facade::start(), Registry::open());
    facade.connect(&registry);
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("late").build());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let set = facade.ok(&["device", "policy", "board-1", "--deadline", "2s"]);
    assert_eq!(set["deadline"], "2s", "{set}");
    registry.stop();
    let mut daemon = device.start_daemon();
    let shown = poll("the device to give up", READY, || {
        let shown = facade.ok(&["device", "show", "board-1"]);
        shown["refused"].to_string().contains("deadline_passed").then_some(shown)
    });
    assert!(shown["refused"][0]["reason"].to_string().contains("within its deadline of 2s"), "{shown}");
    poll("the remedy", READY, || {
        device.run(&["status"]).text().contains("facade device policy --deadline").then_some(())
    });
    registry.start_again();
    facade.ok(&["device", "policy", "board-1", "--deadline", "1d"]);
    poll("the image", READY, || device.delivered().contains(&pushed.digest).then_some(()));
    daemon.terminate();
    let refused = facade.cli(&["device", "policy", "board-1", "--deadline", "soon"]);
    assert!(refused.code != 0 && refused.text().contains("for example"), "{}", refused.text());
}

/// A layer on its way into containerd, over a wire that stops in the middle.
struct Pull {
    proxy: Proxy,
    facade: Facade,
    pushed: Pushed,
    _registry: Registry,
}

const LAYER: usize = 24_000_000;
const HELD: u64 = 16_000_000;

impl Pull {
    fn set() -> Self {
        let registry = Registry::open();
        let proxy = Proxy::before(&registry.host());
        let image = ImageBuilder::new().says("whole again").random_layer(LAYER).build();
        let pushed = registry.push("team/app", "v1", &image).through(&proxy.host());
        let facade = Facade::start();
        facade.connect_as(&registry, &proxy.host());
        proxy.once(When::Digest(image.largest_blob()), Fault::HoldAfter(HELD));
        Self { proxy, facade, pushed, _registry: registry }
    }
}

#[test]
fn containerd_that_is_not_there_is_waited_for_and_the_reason_is_shown() {
    let pull = Pull::set();
    pull.proxy.heal();
    let mut containerd = Containerd::start();
    let device = Device::enrolled_with_containerd("board-1", &pull.facade, &containerd);
    containerd.kill9();
    pull.facade.deliver(&pull.pushed, "board-1");
    let mut daemon = device.start_daemon();
    poll("the reason", READY, || device.run(&["status"]).text().contains("does not answer").then_some(()));
    containerd.start_again();
    let alias = format!("{}:current", pull.pushed.repository);
    poll("the image", READY * 2, || containerd.images().contains(&alias).then_some(()));
    daemon.terminate();
}

#[test]
fn full_disk_under_containerd_spares_what_runs_and_tells_the_numbers() {
    let (facade, registry) = (Facade::start(), Registry::open());
    facade.connect(&registry);
    let small = registry.push("team/app", "v1", &ImageBuilder::new().says("small").build());
    let large =
        registry.push("team/app", "v2", &ImageBuilder::new().says("large").random_layer(20_000_000).build());
    let containerd = Containerd::start_on_disk_of(200 << 20);
    let device = Device::enrolled_with_containerd("board-1", &facade, &containerd);
    let reserve = [("DEVICE_AGENT_RESERVE", "4MiB")];
    facade.deliver(&small, "board-1");
    device.sync_with(&reserve).expect_success();
    facade.deliver(&large, "board-1");
    // Too little to begin with: refused with numbers before the layer is asked for.
    containerd.fill_disk_but(30 << 20);
    let refused = device.sync_with(&reserve).expect_code(1);
    assert!(refused.text().contains("not enough room"), "{}", refused.text());
    let alias = format!("{}:current", small.repository);
    assert_eq!(containerd.run(&alias), "small\n");
    let shown = facade.ok(&["device", "show", "board-1"]);
    assert!(shown["waiting"].as_str().unwrap_or_default().contains("bytes are needed"), "{shown}");
    // Nothing of the attempt is left behind to fill the disk further.
    assert!(containerd.ingests().is_empty() && containerd.leases().is_empty());
    containerd.free_disk();
    device.sync_with(&reserve).expect_success();
    assert_eq!(containerd.run(&alias), "large\n");
}

#[test]
fn state_survives_a_full_disk() {
    let (facade, registry) = (Facade::start(), Registry::open());
    facade.connect(&registry);
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().says("hello").build());
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    facade.deliver(&pushed, "board-1");
    // Every change of the state but those that the reserve pays for fails, at one point after another.
    for number in 1..8 {
        device.with_faults(&["sync"], &format!("fsync:error=ENOSPC:when={number}..{}", number + 1));
        device.sync().expect_success();
        assert_eq!(device.delivered(), [pushed.digest].into());
        assert_eq!(facade.ok(&["device", "show", "board-1"])["standing"], "active");
    }
}
