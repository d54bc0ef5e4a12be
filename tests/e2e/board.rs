//! What happens on a board: releases that fail there, full cards, power cuts, a containerd that comes and goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use harness::process::write;
use harness::{Containerd, Device, Facade, ImageBuilder, Pushed, Registry};
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
    let hook = bench.program(
        "says=$(ctr run --rm --net-host $DRAYAGE_IMAGE hook-$$) && echo \"$DRAYAGE_ACTION $says\" >>/NOTES && [ \"$says\" != two ]"
            .replace("/NOTES", &bench.directory.path().join("notes").display().to_string())
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
