//! Clients that know nothing of Drayage pull through the facade, with a device's certificate and by digest.

use harness::client::{ctr_pull, skopeo_copy};
use harness::{Containerd, Device, Facade, Image, ImageBuilder, Proxy, Registry};
use tempfile::TempDir;

#[test]
fn skopeo_copies_by_digest() {
    let registry = Registry::open();
    let pushed = registry.push(
        "team/app",
        "v1",
        &ImageBuilder::new().random_layer(500_000).build(),
    );
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let into = TempDir::new().unwrap();
    let source = format!("{}/{}", facade.device_authority(), pushed.artifact());
    skopeo_copy(&source, &device.identity(), &into.path().join("copy")).expect_success();
}

#[test]
fn skopeo_is_refused_what_the_device_is_not_assigned() {
    let registry = Registry::open();
    let pushed = registry.push(
        "team/app",
        "v1",
        &ImageBuilder::new().random_layer(500_000).build(),
    );
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.import(&pushed);
    let into = TempDir::new().unwrap();
    let source = format!("{}/{}", facade.device_authority(), pushed.artifact());
    assert_ne!(
        skopeo_copy(&source, &device.identity(), &into.path().join("copy")).code,
        0
    );
}

#[test]
fn ctr_pulls_into_containerd_with_the_printed_hosts_toml_and_runs() {
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let pushed = registry
        .push("team/app", "v1", &Image::hello("by ctr"))
        .through(&proxy.host());
    let facade = Facade::start();
    facade.connect_as(&registry, &proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let hosts_toml = device.run(&["hosts-toml"]).expect_success().stdout;
    let containerd = Containerd::start();
    ctr_pull(&containerd, &pushed.artifact(), &hosts_toml).expect_success();
    assert_eq!(containerd.run(&pushed.artifact()), "by ctr\n");
    // Everything came through the facade: each document and blob was asked for once, however the client asks.
    assert!(
        proxy.seen().iter().filter(|seen| seen.method == "GET").count() <= 4,
        "{:?}",
        proxy.seen()
    );
}

#[test]
fn ctr_is_refused_into_containerd_and_goes_nowhere_else() {
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let pushed = registry.push("team/app", "v1", &ImageBuilder::new().random_layer(1000).build());
    let pushed = pushed.through(&proxy.host());
    let facade = Facade::start();
    facade.connect_as(&registry, &proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.import(&pushed);
    proxy.forget();
    let hosts_toml = device.run(&["hosts-toml"]).expect_success().stdout;
    let containerd = Containerd::start();
    assert_ne!(ctr_pull(&containerd, &pushed.artifact(), &hosts_toml).code, 0);
    assert!(
        proxy.seen().is_empty(),
        "the client went round the facade: {:?}",
        proxy.seen()
    );
}
