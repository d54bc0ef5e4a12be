//! The rig itself: a story that fails should mean that Drayage failed.

use std::process::Command;
use std::time::Duration;

use harness::process::{COMMAND, Outcome};
use harness::registry::{PASSWORD, USER};
use harness::{Containerd, Fault, Image, ImageBuilder, Process, Proxy, Registry, When, http};
use pki::digest::{Digest, verify};
use tempfile::TempDir;

/// `skopeo copy` from the registry into a directory, as a stranger without Drayage would.
fn skopeo(source: &str, credential: Option<&str>, into: &TempDir) -> Outcome {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", "--all"]);
    if let Some(credential) = credential {
        command.args(["--src-creds", credential]);
    }
    let into = into.path().join("copy").display().to_string();
    Outcome::of(command.arg(format!("docker://{source}")).arg(format!("oci:{into}:pulled")), b"")
}

fn blob(host: &str, digest: &Digest) -> std::io::Result<http::Response> {
    http::get(host, &format!("/v2/team/app/blobs/{digest}"))
}

#[test]
fn registries_of_every_kind_serve_what_was_pushed() {
    let credential = format!("{USER}:{PASSWORD}");
    let image = Image::hello("hello");
    for registry in [Registry::open(), Registry::with_password(), Registry::with_tokens()] {
        let pushed = registry.push("team/app", "v1", &image);
        let directory = TempDir::new().unwrap();
        let credential = registry.needs_credential().then_some(credential.as_str());
        skopeo(&pushed.artifact(), credential, &directory).expect_success();
    }
}

#[test]
fn registries_with_a_door_refuse_a_wrong_password() {
    for registry in [Registry::with_password(), Registry::with_tokens()] {
        let pushed = registry.push("team/app", "v1", &Image::hello("hello"));
        let directory = TempDir::new().unwrap();
        assert_ne!(skopeo(&pushed.artifact(), None, &directory).code, 0);
        assert_ne!(skopeo(&pushed.artifact(), Some("robot:wrong"), &directory).code, 0);
    }
}

#[test]
fn indexes_and_docker_images_are_what_skopeo_expects() {
    let registry = Registry::open();
    let arm = ImageBuilder::new().platform("linux/arm/v7").random_layer(1000).build();
    let index = Image::index(&[Image::hello("hello"), arm]);
    let docker = ImageBuilder::new().docker().says("hello").build();
    for (tag, image) in [("index", index), ("docker", docker)] {
        let pushed = registry.push("team/app", tag, &image);
        skopeo(&pushed.artifact(), None, &TempDir::new().unwrap()).expect_success();
    }
}

#[test]
fn registry_keeps_its_port_and_content_over_an_outage() {
    let mut registry = Registry::open();
    let image = ImageBuilder::new().random_layer(5000).build();
    registry.push("team/app", "v1", &image);
    registry.stop();
    assert!(blob(&registry.host(), &image.largest_blob()).is_err());
    registry.start_again();
    assert_eq!(blob(&registry.host(), &image.largest_blob()).unwrap().status, 200);
}

#[test]
fn corrupted_blob_is_served_corrupted() {
    let registry = Registry::open();
    let image = ImageBuilder::new().random_layer(5000).build();
    registry.push("team/app", "v1", &image);
    let digest = image.largest_blob();
    registry.corrupt(&digest, 1234);
    let served = blob(&registry.host(), &digest).unwrap();
    assert!(verify(digest, &served.body).is_err());
    assert_eq!(served.body.len(), image.blobs[&digest].len());
}

#[test]
fn proxy_does_each_fault_once_and_counts() {
    let registry = Registry::open();
    let image = ImageBuilder::new().random_layer(300_000).build();
    registry.push("team/app", "v1", &image);
    let (digest, whole) = (image.largest_blob(), &image.blobs[&image.largest_blob()]);
    let proxy = Proxy::before(&registry.host());
    let get = || blob(&proxy.host(), &digest);
    let on = || When::Digest(digest);

    assert_eq!(get().unwrap().body, **whole);
    proxy.once(on(), Fault::CutAfter(100_000));
    assert_eq!(get().unwrap().body, whole[..100_000]);
    proxy.once(on(), Fault::CutAfter(0));
    assert!(get().unwrap().body.is_empty());
    proxy.once(on(), Fault::WrongByteAt(200_000));
    let wrong = get().unwrap().body;
    assert_eq!(wrong.iter().zip(whole.iter()).filter(|(a, b)| a != b).count(), 1);
    assert_ne!(wrong[200_000], whole[200_000]);
    proxy.once(on(), Fault::Status { status: 429, retry_after_seconds: Some(1) });
    let refused = get().unwrap();
    assert_eq!((refused.status, refused.headers.get("retry-after")), (429, Some("1")));
    proxy.once(on(), Fault::Drip { piece_bytes: 100_000, pause: Duration::from_millis(5) });
    assert_eq!(get().unwrap().body, **whole);
    assert_eq!(get().unwrap().body, **whole);
    assert_eq!(proxy.count("GET", &digest), 7);
}

#[test]
fn proxy_holds_a_body_until_released() {
    let registry = Registry::open();
    let image = ImageBuilder::new().random_layer(300_000).build();
    registry.push("team/app", "v1", &image);
    let proxy = Proxy::before(&registry.host());
    proxy.always(When::Digest(image.largest_blob()), Fault::HoldAfter(1000));
    let host = proxy.host();
    let digest = image.largest_blob();
    let pulling = std::thread::spawn(move || blob(&host, &digest).unwrap().body);
    proxy.wait_until_holding();
    assert_eq!(proxy.body_bytes(), 1000);
    proxy.release();
    assert_eq!(pulling.join().unwrap(), *image.blobs[&digest]);
}

#[test]
fn containerd_starts_pulls_runs_and_ends() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &Image::hello("hello from the rig"));
    let mut containerd = Containerd::start();
    containerd.ctr(&["images", "pull", "--plain-http", &pushed.artifact()]).expect_success();
    assert_eq!(containerd.run(&pushed.artifact()), "hello from the rig\n");
    containerd.restart_after_kill9();
    containerd.collect_garbage();
    assert_eq!(containerd.images(), [pushed.artifact()]);
    assert!(containerd.content().contains(&pushed.digest));
    assert!(containerd.ingests().is_empty() && containerd.leases().is_empty());
}

#[test]
fn peak_memory_of_a_process_is_seen() {
    let directory = TempDir::new().unwrap();
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "of=/dev/null", "bs=50000000", "count=40"]);
    let mut process = Process::start("dd", &mut dd, &directory.path().join("log"));
    let (status, peak) = process.wait_measuring(COMMAND);
    assert!(status.success() && (50_000_000..60_000_000).contains(&peak), "{peak}");
}
