//! A lying facade: it has the true one's server key, and still cannot change what was signed.

use harness::{Device, Facade, ImageBuilder, Liar, Proxy, Registry};

/// Enrolls a device, assigns it an image, lets a liar change the signature in one file, and syncs.
fn refused_when_signature_changes_in(about: &[&str]) {
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let image = ImageBuilder::new().random_layer(50_000).build();
    let pushed = registry.push("team/app", "v1", &image).through(&proxy.host());
    let mut facade = Facade::start();
    facade.connect_as(&registry, &proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let _liar = Liar::between(&mut facade, &device, about);
    proxy.forget();
    device.sync().expect_code(6);
    assert!(device.delivered().is_empty());
    // Metadata is verified before a single byte of an image is asked for.
    assert_eq!(proxy.count("GET", &image.largest_blob()), 0);
}

#[test]
fn rejects_changed_signature_of_images_timestamp() {
    refused_when_signature_changes_in(&["/metadata/images/", "timestamp.json"]);
}

#[test]
fn rejects_changed_signature_of_images_snapshot() {
    refused_when_signature_changes_in(&["/metadata/images/", "snapshot.json"]);
}

#[test]
fn rejects_changed_signature_of_images_targets() {
    refused_when_signature_changes_in(&["/metadata/images/", "targets.json"]);
}

#[test]
fn rejects_changed_signature_of_director_timestamp() {
    refused_when_signature_changes_in(&["/metadata/director/", "timestamp.json"]);
}

#[test]
fn rejects_changed_signature_of_director_targets() {
    refused_when_signature_changes_in(&["/metadata/director/", "targets.json"]);
}

#[test]
fn takes_the_image_when_the_liar_tells_the_truth() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().random_layer(50_000).build());
    let mut facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    // No path contains this word: the scene above fails for the lie, not for the stage.
    let _liar = Liar::between(&mut facade, &device, &["nothing of the kind"]);
    device.sync().expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
}
