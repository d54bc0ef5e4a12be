//! Clients that know nothing of Drayage pull through the facade, with a device's certificate and by digest.

use harness::client::{ctr_pull, skopeo_copy};
use harness::{Containerd, Device, Facade, Image, ImageBuilder, Outcome, Proxy, Pushed, Registry};
use tempfile::TempDir;

/// A facade, an enrolled device, and an image in a registry whose host has no port: skopeo's references allow one port,
/// and that is the facade's.
struct Scene {
    _registry: Registry,
    _proxy: Proxy,
    facade: Facade,
    device: Device,
    pushed: Pushed,
    into: TempDir,
}

impl Scene {
    fn set() -> Self {
        let registry = Registry::open();
        let proxy = Proxy::on_port_80_before(&registry.host());
        let image = ImageBuilder::new().random_layer(500_000).build();
        let pushed = registry.push("team/app", "v1", &image).through(&proxy.host());
        let facade = Facade::start();
        facade.connect_as(&registry, &proxy.host());
        facade.import(&pushed);
        let device = Device::enrolled("board-1", &facade);
        let into = TempDir::new().expect("make a directory");
        Self {
            _registry: registry,
            _proxy: proxy,
            facade,
            device,
            pushed,
            into,
        }
    }

    fn skopeo_copy(&self) -> Outcome {
        let source = format!("{}/{}", self.facade.device_authority(), self.pushed.artifact());
        skopeo_copy(&source, &self.device.identity(), &self.into.path().join("copy"))
    }
}

#[test]
fn skopeo_copies_by_digest() {
    let scene = Scene::set();
    scene
        .facade
        .ok(&["assign", &scene.pushed.artifact(), "--device", "board-1"]);
    scene.skopeo_copy().expect_success();
}

/// A docker reference has no room for a second colon: `__` stands for it.
#[test]
fn skopeo_copies_from_a_registry_whose_host_has_a_port() {
    let registry = Registry::open();
    let image = ImageBuilder::new().random_layer(500_000).build();
    let pushed = registry.push("team/app", "v1", &image);
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let into = TempDir::new().expect("make a directory");
    let artifact = pushed.artifact().replacen(':', "__", 1);
    let source = format!("{}/{artifact}", facade.device_authority());
    skopeo_copy(&source, &device.identity(), &into.path().join("copy")).expect_success();
}

#[test]
fn skopeo_is_refused_what_the_device_is_not_assigned() {
    let refused = Scene::set().skopeo_copy();
    assert_ne!(refused.code, 0);
    assert!(
        refused.text().to_lowercase().contains("denied"),
        "{}",
        refused.text()
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
