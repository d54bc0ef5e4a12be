//! A tag becomes a signed artifact: resolved once, checked, frozen; a bad tag never spoils a good one.

use harness::{Device, Facade, Image, ImageBuilder, Proxy, Registry};
use serde_json::json;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn small() -> Image {
    ImageBuilder::new().random_layer(1000).build()
}

fn artifacts(facade: &Facade) -> String {
    facade.ok(&["artifact", "list"]).to_string()
}

#[test]
fn reports_each_tag_of_a_batch() {
    let registry = Registry::open();
    let first = registry.push("team/app", "v1", &small());
    let second = registry.push("team/app", "v2", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    facade
        .cli(&["import", &first.repository, "v1", "missing", "not a tag", "v2"])
        .expect_code(3);
    let listed = artifacts(&facade);
    assert!(listed.contains(&first.digest.to_string()) && listed.contains(&second.digest.to_string()));
}

#[test]
fn importing_again_changes_nothing() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    facade.import(&pushed);
    let before = artifacts(&facade);
    facade.import(&pushed);
    assert_eq!(before, artifacts(&facade));
}

#[test]
fn artifact_stays_what_it_was_when_the_tag_moves() {
    let registry = Registry::open();
    let frozen = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&frozen, "board-1");
    registry.push("team/app", "v1", &small());
    device.sync().expect_success();
    assert_eq!(device.delivered(), [frozen.digest].into());
}

#[test]
fn lists_tags_newest_likely_first() {
    let registry = Registry::open();
    for tag in ["1.9.0", "1.10.0", "1.10.0-rc.1", "1.2.0"] {
        registry.push("team/app", tag, &small());
    }
    let facade = Facade::start();
    facade.connect(&registry);
    let shown = facade
        .ok(&["tags", &format!("{}/team/app", registry.host())])
        .to_string();
    let places =
        ["\"1.10.0\"", "\"1.10.0-rc.1\"", "\"1.9.0\"", "\"1.2.0\""].map(|tag| shown.find(tag).unwrap());
    assert!(places.is_sorted(), "{shown}");
}

#[test]
fn no_connection_means_no_request() {
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let pushed = registry.push("team/app", "v1", &small()).through(&proxy.host());
    let facade = Facade::start();
    assert_ne!(facade.cli(&["import", &pushed.repository, "v1"]).code, 0);
    assert_ne!(facade.cli(&["tags", &pushed.repository]).code, 0);
    assert!(proxy.seen().is_empty());
}

#[test]
fn rejects_manifests_that_can_be_read_in_two_ways() {
    let registry = Registry::open();
    let image = small();
    let pushed = registry.push("team/app", "v1", &image);
    let text = String::from_utf8(image.root.bytes.clone()).unwrap();
    let twice = text.replacen("\"schemaVersion\"", "\"schemaVersion\": 2, \"schemaVersion\"", 1);
    assert_eq!(
        registry.put_raw_manifest("team/app", "twice", MANIFEST, twice.as_bytes()),
        201
    );
    let facade = Facade::start();
    facade.connect(&registry);
    assert_ne!(facade.cli(&["import", &pushed.repository, "twice"]).code, 0);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn rejects_an_index_whose_child_has_another_size() {
    let registry = Registry::open();
    let child = small();
    let pushed = registry.push("team/app", "child", &child);
    let mut index: serde_json::Value = serde_json::from_slice(&Image::index(&[child]).root.bytes).unwrap();
    index["manifests"][0]["size"] = json!(7);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let bytes = serde_json::to_vec(&index).unwrap();
    assert_eq!(
        registry.put_raw_manifest("team/app", "wrong", media_type, &bytes),
        201
    );
    let facade = Facade::start();
    facade.connect(&registry);
    assert_ne!(facade.cli(&["import", &pushed.repository, "wrong"]).code, 0);
}

#[test]
fn rejects_manifests_changed_on_the_registry() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    registry.corrupt(&pushed.digest, 30);
    let facade = Facade::start();
    facade.connect(&registry);
    assert_ne!(facade.cli(&["import", &pushed.repository, "v1"]).code, 0);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn says_with_exit_code_6_that_bytes_are_not_those_that_were_named() {
    let registry = Registry::open();
    let image = small();
    let pushed = registry.push("team/app", "v1", &image);
    let manifest: serde_json::Value = serde_json::from_slice(&image.root.bytes).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    registry.corrupt(&config.parse().unwrap(), 5);
    let facade = Facade::start();
    facade.connect(&registry);
    facade.cli(&["import", &pushed.repository, "v1"]).expect_code(6);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn rejects_layers_longer_than_anything_that_exists() {
    let registry = Registry::open();
    let image = small();
    registry.push("team/app", "v1", &image);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.root.bytes).unwrap();
    manifest["layers"][0]["size"] = json!(1_u64 << 62);
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(
        registry.put_raw_manifest("team/app", "huge", media_type, &bytes),
        201
    );
    let facade = Facade::start();
    facade.connect(&registry);
    let repository = format!("{}/team/app", registry.host());
    facade.cli(&["import", &repository, "huge"]).expect_code(1);
    assert!(!artifacts(&facade).contains("sha256:"));
}

#[test]
fn rejects_malformed_references_as_wrong_use() {
    let facade = Facade::start();
    for repository in [
        "",
        "host.example/UPPER",
        "host:99999/app",
        "a//b",
        "app:tag",
        "app@sha256:abc",
        "https://[::",
    ] {
        facade.cli(&["tags", repository]).expect_code(2);
        facade.cli(&["import", repository, "v1"]).expect_code(2);
    }
}

#[test]
fn revoked_artifact_is_neither_served_nor_kept_in_the_metadata() {
    let registry = Registry::open();
    let pushed = registry.push("team/app", "v1", &small());
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    facade.ok(&["artifact", "revoke", &pushed.artifact()]);
    drop(device.sync());
    assert!(device.delivered().is_empty());
}
