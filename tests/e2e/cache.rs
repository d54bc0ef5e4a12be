//! What an operator does with the facade's cache: look, prune, verify.

use std::fs;
use std::time::Duration;

use harness::facade::files_below;
use harness::{Device, Facade, ImageBuilder, Registry};

#[test]
fn the_cache_is_listed_pruned_and_verified() {
    let registry = Registry::open();
    let image = ImageBuilder::new().random_layer(3_000_000).build();
    let pushed = registry.push("team/app", "v1", &image);
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    let blobs = image.digests().len();
    // The last blob may have reached the device before the facade's disk.
    let kept = || facade.ok(&["cache", "usage"])["blobs"] == blobs;
    assert!((0..100).any(|_| kept() || {
        std::thread::sleep(Duration::from_millis(100));
        false
    }));
    let usage = facade.ok(&["cache", "usage"]);
    assert!(usage["size_bytes"].as_u64() > Some(3_000_000), "{usage}");
    let listed = facade.ok(&["cache", "list"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(blobs));

    // What a device may have stays, whatever the operator says.
    assert_eq!(facade.ok(&["cache", "prune"])["blobs"], 0);
    assert_eq!(facade.ok(&["cache", "verify"])["good"], blobs);

    let layer = image.largest_blob();
    let cached = files_below(&facade.data_dir().join("blobs"));
    let path = cached.iter().find(|path| path.ends_with(layer.hex())).unwrap();
    let mut bytes = fs::read(path).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(path, bytes).unwrap();
    let checked = facade.cli(&["cache", "verify"]).expect_code(6).json();
    assert_eq!(checked["damaged"][0], layer.to_string());

    facade.ok(&["unassign", &pushed.artifact(), "--device", "board-1"]);
    assert_eq!(facade.ok(&["cache", "prune", "--unused-for", "1d"])["blobs"], 0);
    assert_eq!(facade.ok(&["cache", "prune"])["blobs"], blobs - 1);
    assert_eq!(facade.ok(&["cache", "usage"])["size_bytes"], 0);
}
