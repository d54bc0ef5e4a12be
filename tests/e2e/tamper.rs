//! A lying facade: it has the true one's server key, and still cannot change what was signed.

use harness::{Device, Facade, ImageBuilder, Liar, Lie, Proxy, Registry};

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

/// What an operator reads of a file that somebody between facade and device keeps back.
fn told_of_withholding(lie: Lie, rounds: usize, about: &[&str]) -> String {
    let registry = Registry::open();
    let push = |tag| registry.push("team/app", tag, &ImageBuilder::new().random_layer(1000).build());
    let (first, second) = (push("v1"), push("v2"));
    let mut facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&first, "board-1");
    device.sync().expect_success();
    facade.deliver(&second, "board-1");
    let _liar = Liar::telling(lie, &mut facade, &device, about);
    for _ in 1..rounds {
        assert_ne!(device.sync().code, 0);
        assert!(
            !facade.ok(&["events"]).to_string().contains("metadata-refused"),
            "one lost answer is no event"
        );
    }
    assert_ne!(device.sync().code, 0);
    // What the device has goes on, and nothing of the news is believed.
    assert_eq!(device.delivered(), [first.digest].into());
    let events = facade.ok(&["events", "--kind", "metadata-refused"]);
    assert_eq!(events.as_array().map(Vec::len), Some(1), "{events}");
    format!("{events} {}", facade.ok(&["device", "show", "board-1"]))
}

#[test]
fn an_operator_hears_of_a_file_that_is_said_not_to_be_there() {
    let told = told_of_withholding(Lie::Absent, 1, &["/metadata/director/", "snapshot.json"]);
    assert!(told.contains("metadata_missing") && told.contains("server has no"), "{told}");
    assert!(told.contains("director/") && told.contains(".snapshot.json"), "{told}");
}

#[test]
fn an_operator_hears_of_a_file_that_never_comes() {
    let told = told_of_withholding(Lie::Silence, 3, &["/metadata/images/", "timestamp.json"]);
    assert!(told.contains("metadata_withheld") && told.contains("images/timestamp.json"), "{told}");
    assert!(told.contains("could not be fetched"), "{told}");
}
