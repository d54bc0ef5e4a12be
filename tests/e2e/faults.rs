//! What goes wrong between the parts: cuts, wrong bytes, refusals, outages, kill -9 of either side in mid-pull.

use std::fs;
use std::time::Duration;

use harness::facade::files_below;
use harness::process::{READY, poll};
use harness::{Containerd, Device, Facade, Fault, Image, ImageBuilder, Proxy, Pushed, Registry, When};

const LAYER: usize = 20_000_000;

/// One artifact on its way to `board-1` over a wire that can fail.
struct Scene {
    registry: Registry,
    proxy: Proxy,
    facade: Facade,
    image: Image,
    pushed: Pushed,
}

impl Scene {
    fn set() -> Self {
        let registry = Registry::open();
        let proxy = Proxy::before(&registry.host());
        let image = ImageBuilder::new().says("whole again").random_layer(LAYER).build();
        let pushed = registry.push("team/app", "v1", &image).through(&proxy.host());
        // Wrong bytes are believed to be wrong for a minute: too long for a story that heals the wire.
        let facade = Facade::start_with(&[("FACADE_WRONG_CONTENT_MEMORY", "1s")]);
        facade.connect_as(&registry, &proxy.host());
        Self { registry, proxy, facade, image, pushed }
    }

    fn device(&self) -> Device {
        let device = Device::enrolled("board-1", &self.facade);
        self.facade.deliver(&self.pushed, "board-1");
        device
    }

    fn device_with(&self, containerd: &Containerd) -> Device {
        let device = Device::enrolled_with_containerd("board-1", &self.facade, containerd);
        self.facade.deliver(&self.pushed, "board-1");
        device
    }

    fn on_layer(&self) -> When {
        When::Digest(self.image.largest_blob())
    }

    /// Syncs until it works: whatever went wrong before must not have spoiled anything.
    #[track_caller]
    fn assert_recovers(&self, device: &Device) {
        device.assert_nothing_unverified();
        device.sync().expect_success();
        device.assert_nothing_unverified();
        assert_eq!(device.delivered(), [self.pushed.digest].into());
        assert!(self.image.digests().iter().all(|digest| device.holds(digest)));
    }
}

#[test]
fn recovers_from_a_cut_upstream() {
    let scene = Scene::set();
    let device = scene.device();
    scene.proxy.once(scene.on_layer(), Fault::CutAfter(7_000_000));
    drop(device.sync());
    scene.assert_recovers(&device);
}

/// Registries send whoever wants a layer to an address that is signed for minutes; a slow transfer outlives it.
#[test]
fn asks_the_registry_again_when_the_address_of_its_store_has_expired() {
    let scene = Scene::set();
    let device = scene.device();
    let store = Proxy::before(&scene.registry.host());
    scene.proxy.always(scene.on_layer(), Fault::Redirect { to: format!("http://{}", store.host()) });
    store.once(scene.on_layer(), Fault::CutAfter(7_000_000));
    store.once(scene.on_layer(), Fault::Status { status: 403, retry_after_seconds: None });
    device.sync().expect_success();
    assert_eq!(device.delivered(), [scene.pushed.digest].into());
    let layer = scene.image.largest_blob();
    assert_eq!(scene.proxy.count("GET", &layer), 3);
    let gets: Vec<_> = store.seen().into_iter().filter(|seen| seen.method == "GET").collect();
    assert!(gets.first().is_some_and(|seen| seen.range.is_none()));
    assert!(
        gets.iter().skip(1).all(|seen| seen.range.is_some()),
        "what had come was fetched again: {gets:?}"
    );
    let expected = scene.image.blobs[&layer].len() as u64;
    assert!(store.body_bytes() < expected + 1_000_000, "{} bytes for {expected}", store.body_bytes());
}

#[test]
fn wrong_bytes_upstream_never_arrive_and_are_not_kept() {
    let scene = Scene::set();
    let device = scene.device();
    // One wrong byte at the start, in the middle, at the very end.
    let layer = scene.image.largest_blob();
    for at in [0, 9_999_999, scene.image.blobs[&layer].len() as u64 - 1] {
        let before = scene.proxy.count("GET", &layer);
        scene.proxy.always(scene.on_layer(), Fault::WrongByteAt(at));
        poll("the facade to ask the registry again", READY, || {
            assert_ne!(device.sync().code, 0);
            (scene.proxy.count("GET", &layer) > before).then_some(())
        });
        assert!(device.delivered().is_empty());
        device.assert_nothing_unverified();
        scene.proxy.heal();
    }
    poll("a sync that works", READY, || (device.sync().code == 0).then_some(()));
    scene.assert_recovers(&device);
}

#[test]
fn wrong_bytes_on_the_registry_s_disk_never_arrive() {
    let scene = Scene::set();
    let device = scene.device();
    scene.registry.corrupt(&scene.image.largest_blob(), 12_345_678);
    assert_ne!(device.sync().code, 0);
    assert!(device.delivered().is_empty());
    device.assert_nothing_unverified();
}

#[test]
fn wrong_bytes_in_the_facade_s_cache_never_count_as_delivered() {
    let scene = Scene::set();
    let first = scene.device();
    first.sync().expect_success();
    let layer = &scene.image.blobs[&scene.image.largest_blob()];
    let cached = files_below(&scene.facade.data_dir().join("blobs")).into_iter();
    let cached = cached.filter(|path| fs::metadata(path).is_ok_and(|file| file.len() == layer.len() as u64));
    let cached: Vec<_> = cached.collect();
    assert_eq!(cached.len(), 1, "the layer is cached once");
    let mut bytes = fs::read(&cached[0]).unwrap();
    bytes[10_000_000] ^= 1;
    fs::write(&cached[0], bytes).unwrap();
    let second = Device::enrolled("board-2", &scene.facade);
    scene.facade.ok(&["assign", &scene.pushed.artifact(), "--device", "board-2"]);
    assert_ne!(second.sync().code, 0);
    assert!(second.delivered().is_empty());
    second.assert_nothing_unverified();
}

#[test]
fn passing_refusals_are_waited_out() {
    let scene = Scene::set();
    let device = scene.device();
    scene.proxy.once(scene.on_layer(), Fault::Status { status: 503, retry_after_seconds: None });
    drop(device.sync());
    scene.assert_recovers(&device);
}

#[test]
fn rate_limits_are_waited_out() {
    let scene = Scene::set();
    let device = scene.device();
    scene.proxy.once(scene.on_layer(), Fault::Status { status: 429, retry_after_seconds: Some(1) });
    drop(device.sync());
    scene.assert_recovers(&device);
}

#[test]
fn slow_registry_is_waited_for() {
    let scene = Scene::set();
    let device = scene.device();
    scene
        .proxy
        .once(scene.on_layer(), Fault::Drip { piece_bytes: 200_000, pause: Duration::from_millis(20) });
    scene.assert_recovers(&device);
}

#[test]
fn registry_without_ranges_will_do() {
    let scene = Scene::set();
    let device = scene.device();
    scene.proxy.always(When::Always, Fault::NoRange);
    scene.assert_recovers(&device);
}

#[test]
fn recovers_from_an_outage_of_the_registry() {
    let mut scene = Scene::set();
    let device = scene.device();
    scene.registry.stop();
    assert_ne!(device.sync().code, 0);
    scene.registry.start_again();
    scene.assert_recovers(&device);
}

#[test]
fn recovers_from_kill_9_of_the_agent_in_mid_pull() {
    let scene = Scene::set();
    let device = scene.device();
    scene.proxy.once(scene.on_layer(), Fault::HoldAfter(12_000_000));
    let mut agent = device.start_sync();
    scene.proxy.wait_until_holding();
    agent.kill9();
    scene.proxy.heal();
    scene.assert_recovers(&device);
    // The fill belongs to the facade: it outlives the device that asked first.
    assert_eq!(scene.proxy.count("GET", &scene.image.largest_blob()), 1);
}

#[test]
fn recovers_from_kill_9_of_the_facade_in_mid_pull() {
    let mut scene = Scene::set();
    let device = scene.device();
    scene.proxy.once(scene.on_layer(), Fault::HoldAfter(12_000_000));
    let mut agent = device.start_sync();
    scene.proxy.wait_until_holding();
    scene.facade.kill9();
    scene.proxy.heal();
    scene.facade.start_again();
    agent.wait();
    scene.assert_recovers(&device);
}

#[test]
fn recovers_in_containerd_from_kill_9_of_the_agent_in_mid_pull() {
    let scene = Scene::set();
    let containerd = Containerd::start();
    let device = scene.device_with(&containerd);
    scene.proxy.once(scene.on_layer(), Fault::HoldAfter(12_000_000));
    let mut agent = device.start_sync();
    scene.proxy.wait_until_holding();
    agent.kill9();
    scene.proxy.heal();
    device.sync().expect_success();
    assert!(containerd.ingests().is_empty() && containerd.leases().is_empty());
    assert_eq!(containerd.run(&scene.pushed.artifact()), "whole again\n");
}

/// Somebody wipes a board's containerd while an image comes in: what came before is gone, and comes again.
#[test]
fn begins_anew_in_a_containerd_that_was_replaced_in_mid_pull() {
    let scene = Scene::set();
    let mut containerd = Containerd::start();
    let device = scene.device_with(&containerd);
    scene.proxy.once(scene.on_layer(), Fault::HoldAfter(12_000_000));
    let mut agent = device.start_sync();
    scene.proxy.wait_until_holding();
    containerd.replace();
    scene.proxy.release();
    let status = agent.wait();
    assert!(status.success(), "{}", agent.log());
    assert!(containerd.ingests().is_empty() && containerd.leases().is_empty());
    assert_eq!(containerd.run(&scene.pushed.artifact()), "whole again\n");
    assert_eq!(scene.proxy.count("GET", &scene.image.largest_blob()), 1);
}

#[test]
fn recovers_from_kill_9_of_containerd_between_two_syncs() {
    let scene = Scene::set();
    let mut containerd = Containerd::start();
    let device = scene.device_with(&containerd);
    scene.proxy.once(scene.on_layer(), Fault::CutAfter(12_000_000));
    drop(device.sync());
    containerd.restart_after_kill9();
    device.sync().expect_success();
    assert_eq!(containerd.run(&scene.pushed.artifact()), "whole again\n");
}

#[test]
fn facade_keeps_everything_over_kill_9() {
    let mut scene = Scene::set();
    let device = scene.device();
    scene.facade.kill9();
    scene.facade.start_again();
    scene.assert_recovers(&device);
}

#[test]
fn facade_ends_in_order_when_asked() {
    let mut scene = Scene::set();
    let device = scene.device();
    scene.facade.stop();
    device.sync().expect_code(4);
    scene.facade.start_again();
    scene.assert_recovers(&device);
}
