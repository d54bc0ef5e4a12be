//! The main job: an image goes from a registry through the facade to a device that verified it, and runs.

use std::collections::BTreeSet;

use harness::{Containerd, Device, Facade, Image, ImageBuilder, Proxy, Registry};

/// A facade connected to a registry through a wire that counts.
fn connected(registry: &Registry) -> (Facade, Proxy) {
    let proxy = Proxy::before(&registry.host());
    let facade = Facade::start();
    facade.connect_as(registry, &proxy.host());
    (facade, proxy)
}

#[test]
fn image_reaches_a_directory_whole_and_verified() {
    let registry = Registry::open();
    let image = ImageBuilder::new().says("hello").random_layer(3_000_000).build();
    let pushed = registry.push("team/app", "v1", &image);
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert_eq!(device.delivered(), [pushed.digest].into());
    for digest in image.digests() {
        assert!(device.holds(&digest), "{digest}");
    }
    assert!(device.status().to_string().contains(&pushed.digest.to_string()));
}

#[test]
fn image_reaches_containerd_and_runs() {
    let registry = Registry::with_tokens();
    let pushed = registry.push("team/app", "v1", &Image::hello("hello from the edge"));
    let facade = Facade::start();
    facade.connect(&registry);
    let containerd = Containerd::start();
    let device = Device::enrolled_with_containerd("board-1", &facade, &containerd);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert_eq!(containerd.run(&pushed.artifact()), "hello from the edge\n");
}

#[test]
fn image_in_containerd_outlives_garbage_collection_and_leaves_no_lease() {
    let registry = Registry::open();
    let image = ImageBuilder::new().says("still here").random_layer(3_000_000).build();
    let pushed = registry.push("team/app", "v1", &image);
    let facade = Facade::start();
    facade.connect(&registry);
    let containerd = Containerd::start();
    let device = Device::enrolled_with_containerd("board-1", &facade, &containerd);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert!(containerd.leases().is_empty() && containerd.ingests().is_empty());
    containerd.collect_garbage();
    let content: BTreeSet<_> = containerd.content().into_iter().collect();
    assert!(image.digests().iter().all(|digest| content.contains(digest)));
    assert_eq!(containerd.run(&pushed.artifact()), "still here\n");
}

#[test]
fn docker_schema_2_images_reach_containerd_and_run() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().docker().says("hello").build());
    let facade = Facade::start();
    facade.connect(&registry);
    let containerd = Containerd::start();
    let device = Device::enrolled_with_containerd("board-1", &facade, &containerd);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert_eq!(containerd.run(&pushed.artifact()), "hello\n");
}

#[test]
fn device_takes_only_its_own_platform_of_an_index() {
    let registry = Registry::open();
    let ours = ImageBuilder::new().random_layer(50_000).build();
    let other = ImageBuilder::new().platform("linux/s390x").random_layer(60_000).build();
    let pushed = registry.push("team/app", "v1", &Image::index(&[other.clone(), ours.clone()]));
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert!(ours.digests().iter().all(|digest| device.holds(digest)));
    assert!(!device.holds(&other.largest_blob()));
}

#[test]
fn device_finds_its_image_behind_an_index_inside_an_index() {
    let registry = Registry::open();
    let ours = ImageBuilder::new().random_layer(50_000).build();
    let other = ImageBuilder::new().platform("linux/s390x").random_layer(60_000).build();
    let inner = Image::index(&[other.clone(), ours.clone()]);
    let pushed = registry.push("team/app", "v1", &Image::index(&[inner]));
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert!(ours.digests().iter().all(|digest| device.holds(digest)));
    assert!(!device.holds(&other.largest_blob()));
    device.assert_nothing_unverified();
}

#[test]
fn rejects_an_index_without_its_platform_and_keeps_what_it_has() {
    let registry = Registry::open();
    let first = registry.push("team/app", "v1", &ImageBuilder::new().random_layer(50_000).build());
    let foreign = ImageBuilder::new().platform("linux/s390x").random_layer(60_000).build();
    let second = registry.push("team/app", "v2", &Image::index(&[foreign]));
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&first, "board-1");
    device.sync().expect_success();
    facade.ok(&["unassign", &first.artifact(), "--device", "board-1"]);
    facade.deliver(&second, "board-1");
    assert_ne!(device.sync().code, 0);
    assert!(device.holds(&first.digest));
}

#[test]
fn second_sync_and_second_device_ask_the_registry_nothing() {
    let registry = Registry::open();
    let image = ImageBuilder::new().random_layer(2_000_000).build();
    let pushed = registry.push("team/app", "v1", &image);
    let (facade, proxy) = connected(&registry);
    let pushed = pushed.through(&proxy.host());
    let (first, second) = (Device::enrolled("board-1", &facade), Device::enrolled("board-2", &facade));
    facade.deliver(&pushed, "board-1");
    facade.deliver(&pushed, "board-2");
    first.sync().expect_success();
    assert_eq!(proxy.count("GET", &image.largest_blob()), 1);
    proxy.forget();
    first.sync().expect_success();
    second.sync().expect_success();
    assert!(proxy.seen().is_empty(), "{:?}", proxy.seen());
    assert_eq!(second.delivered(), [pushed.digest].into());
}

#[test]
fn unassigned_device_syncs_and_receives_nothing() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().random_layer(1000).build());
    let facade = Facade::start();
    facade.connect(&registry);
    facade.import(&pushed);
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    assert!(device.delivered().is_empty());
}

#[test]
fn group_assignment_reaches_every_member() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().random_layer(1000).build());
    let facade = Facade::start();
    facade.connect(&registry);
    facade.import(&pushed);
    let devices = ["board-1", "board-2"].map(|id| {
        let answer = facade.ok(&["device", "token", "--device", id, "--group", "line-a"]);
        let device = Device::new(id);
        device.enroll(answer["token"].as_str().unwrap()).expect_success();
        device
    });
    facade.ok(&["assign", &pushed.artifact(), "--group", "line-a"]);
    for device in &devices {
        device.sync().expect_success();
        assert_eq!(device.delivered(), [pushed.digest].into());
    }
}

#[test]
fn shared_layers_are_fetched_once_over_two_releases() {
    let registry = Registry::open();
    let base = ImageBuilder::new().random_layer(2_000_000);
    let first = registry.push("team/app", "v1", &base.clone().file("version", 0o644, b"1").build());
    let second_image = base.file("version", 0o644, b"2").build();
    let second = registry.push("team/app", "v2", &second_image);
    let (facade, proxy) = connected(&registry);
    let (first, second) = (first.through(&proxy.host()), second.through(&proxy.host()));
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&first, "board-1");
    device.sync().expect_success();
    facade.ok(&["unassign", &first.artifact(), "--device", "board-1"]);
    facade.deliver(&second, "board-1");
    device.sync().expect_success();
    assert!(second_image.digests().iter().all(|digest| device.holds(digest)));
    assert_eq!(proxy.count("GET", &second_image.largest_blob()), 1);
}
