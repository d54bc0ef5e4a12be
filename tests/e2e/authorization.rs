//! Who gets what: a device has exactly the closure of its artifacts, and every refusal costs the registry nothing.

use harness::authority::{Authority, Validity};
use harness::{Answer, Device, DeviceClient, Facade, Image, ImageBuilder, Proxy, Pushed, Registry};
use pki::digest::Digest;

/// A facade with one artifact assigned to `board-1` and one to nobody.
struct Scene {
    _registry: Registry,
    proxy: Proxy,
    facade: Facade,
    device: Device,
    image: Image,
    assigned: Pushed,
    other_image: Image,
    other: Pushed,
}

impl Scene {
    fn set() -> Self {
        let registry = Registry::open();
        let proxy = Proxy::before(&registry.host());
        let image = ImageBuilder::new().random_layer(20_000).build();
        let other_image = ImageBuilder::new().random_layer(30_000).build();
        let assigned = registry.push("team/app", "v1", &image).through(&proxy.host());
        let other = registry.push("team/other", "v1", &other_image).through(&proxy.host());
        let facade = Facade::start();
        facade.connect_as(&registry, &proxy.host());
        let device = Device::enrolled("board-1", &facade);
        facade.deliver(&assigned, "board-1");
        facade.import(&other);
        Self { _registry: registry, proxy, facade, device, image, assigned, other_image, other }
    }

    fn client(&self) -> DeviceClient {
        DeviceClient::new(&self.facade.device_url(), &self.device.identity())
    }

    fn manifest(&self) -> String {
        format!("/v2/{}/manifests/{}", self.assigned.repository, self.assigned.digest)
    }

    fn blob(&self) -> String {
        format!("/v2/{}/blobs/{}", self.assigned.repository, self.image.largest_blob())
    }

    /// Fails the test when `ask` makes the facade ask the registry, or hand anything out.
    #[track_caller]
    fn refused(&self, ask: impl FnOnce() -> Answer) -> Answer {
        self.proxy.forget();
        let answer = ask();
        assert!(answer.status == 0 || answer.status >= 400, "{}", answer.status);
        assert!(self.proxy.seen().is_empty(), "{:?}", self.proxy.seen());
        answer
    }
}

#[test]
fn device_reads_everything_of_its_artifact() {
    let scene = Scene::set();
    let client = scene.client();
    assert_eq!(client.get("/v2/").status, 200);
    let manifest = client.get(&scene.manifest());
    assert_eq!((manifest.status, &manifest.body), (200, &scene.image.root.bytes));
    assert_eq!(manifest.header("docker-content-digest"), Some(scene.assigned.digest.to_string().as_str()));
    assert_eq!(manifest.header("content-type"), Some(scene.image.root.media_type));
    for (digest, bytes) in &scene.image.blobs {
        let blob = client.get(&format!("/v2/{}/blobs/{digest}", scene.assigned.repository));
        assert!(blob.status == 200 && blob.body == **bytes);
    }
}

#[test]
fn ranges_and_heads_are_answered() {
    let scene = Scene::set();
    let bytes = &scene.image.blobs[&scene.image.largest_blob()];
    let part = scene.client().send("GET", &scene.blob(), &["Range: bytes=100-199"]);
    assert_eq!((part.status, part.body.as_slice()), (206, &bytes[100..200]));
    let head = scene.client().send("HEAD", &scene.blob(), &[]);
    assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
    let beyond = scene.client().send("GET", &scene.blob(), &["Range: bytes=999999-"]);
    assert_eq!(beyond.status, 416);
}

#[test]
fn containers_mirror_convention_names_the_same_content() {
    let scene = Scene::set();
    let (host, path) = scene.assigned.repository.split_once('/').unwrap();
    let target = format!("/v2/{path}/manifests/{}?ns={host}", scene.assigned.digest);
    assert_eq!(scene.client().get(&target).body, scene.image.root.bytes);
}

#[test]
fn unassigned_and_unknown_are_refused_alike() {
    let scene = Scene::set();
    let client = scene.client();
    let unknown = Digest::sha256(b"nobody has this");
    let targets = [
        format!("/v2/{}/manifests/{}", scene.other.repository, scene.other.digest),
        format!("/v2/{}/blobs/{}", scene.other.repository, scene.other_image.largest_blob()),
        format!("/v2/{}/blobs/{unknown}", scene.assigned.repository),
        format!("/v2/{}/blobs/{}", scene.assigned.repository, scene.other_image.largest_blob()),
        format!("/v2/nowhere.example/x/blobs/{unknown}"),
    ];
    for target in targets {
        let answer = scene.refused(|| client.get(&target));
        assert_eq!((answer.status, answer.error_code().as_deref()), (403, Some("DENIED")), "{target}");
    }
}

#[test]
fn tags_are_refused() {
    let scene = Scene::set();
    let target = format!("/v2/{}/manifests/v1", scene.assigned.repository);
    let answer = scene.refused(|| scene.client().get(&target));
    assert!(answer.text().contains("digest"), "{}", answer.text());
}

#[test]
fn other_methods_are_refused() {
    let scene = Scene::set();
    for method in ["PUT", "POST", "PATCH", "DELETE"] {
        let answer = scene.refused(|| scene.client().send(method, &scene.manifest(), &[]));
        assert_eq!((answer.status, answer.error_code().as_deref()), (405, Some("UNSUPPORTED")), "{method}");
    }
}

#[test]
fn malformed_requests_are_refused() {
    let scene = Scene::set();
    let digest = scene.assigned.digest;
    let paths = [
        "/v2/../../etc/passwd".into(),
        "/v2/a/b/blobs/sha256:xyz".into(),
        format!("/v2/%2e%2e/blobs/{digest}"),
    ];
    for path in paths {
        scene.refused(|| scene.client().get(&path));
    }
}

#[test]
fn nobody_is_refused() {
    let scene = Scene::set();
    let nobody = DeviceClient::anonymous(&scene.facade.device_url(), &scene.facade.ca_file());
    for target in ["/v2/", "/metadata/images/timestamp.json", "/v1/wait", &scene.manifest(), &scene.blob()] {
        scene.refused(|| nobody.get(target));
    }
}

#[test]
fn certificates_of_another_ca_are_refused() {
    let scene = Scene::set();
    let forged = Authority::foreign(&scene.facade).certificate("board-1", Validity::Now);
    let client = DeviceClient::new(&scene.facade.device_url(), &forged.identity());
    scene.refused(|| client.get(&scene.manifest()));
}

#[test]
fn certificates_out_of_date_are_refused() {
    let scene = Scene::set();
    for validity in [Validity::Past, Validity::Future] {
        let forged = Authority::of(&scene.facade).certificate("board-1", validity);
        let client = DeviceClient::new(&scene.facade.device_url(), &forged.identity());
        scene.refused(|| client.get(&scene.manifest()));
    }
}

#[test]
fn certificates_for_devices_never_enrolled_are_refused() {
    let scene = Scene::set();
    let forged = Authority::of(&scene.facade).certificate("board-9", Validity::Now);
    let client = DeviceClient::new(&scene.facade.device_url(), &forged.identity());
    scene.refused(|| client.get(&scene.manifest()));
}

#[test]
fn revoked_device_is_refused_at_once() {
    let scene = Scene::set();
    let client = scene.client();
    assert_eq!(client.get(&scene.manifest()).status, 200);
    scene.facade.ok(&["device", "revoke", "board-1"]);
    // No token helps it, so none is made.
    let refused = scene.facade.cli(&["device", "token", "--device", "board-1"]).expect_code(1);
    assert!(refused.text().contains("facade device delete board-1"), "{}", refused.text());
    scene.refused(|| client.get(&scene.manifest()));
    scene.refused(|| client.get("/metadata/images/timestamp.json"));
}

#[test]
fn unassigned_artifact_is_refused_at_once() {
    let scene = Scene::set();
    let client = scene.client();
    assert_eq!(client.get(&scene.blob()).status, 200);
    scene.facade.ok(&["unassign", &scene.assigned.artifact(), "--device", "board-1"]);
    scene.refused(|| client.get(&scene.blob()));
}

#[test]
fn director_metadata_is_the_device_s_own() {
    let scene = Scene::set();
    let second = Device::enrolled("board-2", &scene.facade);
    let of = |device: &Device| {
        let client = DeviceClient::new(&scene.facade.device_url(), &device.identity());
        let snapshot = client.get("/metadata/director/timestamp.json");
        assert_eq!(snapshot.status, 200);
        snapshot.body
    };
    second.sync().expect_success();
    assert_ne!(of(&scene.device), of(&second));
    assert!(second.delivered().is_empty());
}
