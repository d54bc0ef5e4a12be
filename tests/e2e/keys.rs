//! Who signs, and what a device follows: keys with operators, rotations, old backups, many artifacts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Device, DeviceClient, Facade, Image, ImageBuilder, Outcome, Pushed, Registry};
use serde_json::Value;
use tempfile::TempDir;

fn small() -> Image {
    ImageBuilder::new().random_layer(1000).build()
}

/// An operator with a directory of keys that no server sees.
struct Operator {
    directory: TempDir,
}

impl Operator {
    fn new() -> Self {
        let directory = TempDir::new().expect("make a directory");
        fs::write(directory.path().join("passphrase"), "correct horse battery\n").expect("write");
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn sign(&self, facade: &Facade, repository: &str, key: &str, more: &[&str]) -> Outcome {
        let (key, passphrase) = (self.text(key), self.text("passphrase"));
        let mut args =
            vec!["keys", "sign", repository, "--key", &key, "--passphrase-file", &passphrase, "--yes"];
        args.extend(more);
        facade.cli(&args)
    }
}

fn outcome(value: &Value) -> &str {
    value["outcome"].as_str().unwrap_or_default()
}

#[test]
fn nothing_exists_before_the_operators_have_signed_it() {
    let alice = Operator::new();
    let facade = Facade::start_offline(&alice.path("keys"), &alice.path("passphrase"));
    fs::copy(alice.path("passphrase"), alice.path("keys/passphrase")).expect("copy");
    let registry = Registry::open();
    facade.connect(&registry);
    let first = registry.push("team/app", "v1", &small());
    let device = Device::enrolled("board-1", &facade);
    let report = facade.ok(&["import", &first.repository, "v1"]);
    assert_eq!(report["results"][0]["outcome"], "pending", "{report}");
    facade.cli(&["assign", &first.artifact(), "--device", "board-1"]).expect_code(1);
    assert_eq!(facade.ok(&["artifact", "list"]).as_array().map(Vec::len), Some(0));

    let keys = facade.ok(&["keys", "list"]).to_string();
    assert!(keys.contains("offline") && keys.contains("here"), "{keys}");
    let signed = alice.sign(&facade, "images", "keys/images-targets.key", &[]).expect_success();
    assert!(signed.stderr.contains(&format!("+ {}", first.artifact())), "{}", signed.stderr);
    assert_eq!(outcome(&signed.json()), "published");
    facade.ok(&["assign", &first.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert!(device.delivered().contains(&first.digest));

    two_of_two(&facade, &alice, &registry, &device);
}

/// From one key to two of two, by a ceremony; then one signature alone publishes nothing.
fn two_of_two(facade: &Facade, alice: &Operator, registry: &Registry, device: &Device) {
    let bob = Operator::new();
    let (key, passphrase) = (bob.text("bob.key"), bob.text("passphrase"));
    let public = facade.ok(&["keys", "generate", &key, "--passphrase-file", &passphrase]);
    fs::write(bob.path("bob.pub"), public.to_string()).expect("write");
    fs::copy(alice.path("keys/images.root.json"), bob.path("images.root.json")).expect("copy");
    let add = bob.text("bob.pub");
    let proposed = facade.ok(&["keys", "ceremony", "images", "targets", "--add", &add, "--threshold", "2"]);
    assert_eq!(outcome(&proposed), "pending");

    // Nobody signs away keys unawares.
    alice.sign(facade, "images", "keys/images-root.key", &[]).expect_code(6);
    let allow = ["--allow-keys"];
    for key in ["keys/images-root.key", "keys/images-targets.key"] {
        let signed = alice.sign(facade, "images", key, &allow).expect_success();
        assert_eq!(outcome(&signed.json()), "pending");
    }
    // Bob signs on a machine without network.
    let (request, signatures) = (bob.text("request.json"), bob.text("signatures.json"));
    facade.ok(&["keys", "pending", "images", "--export", &request]);
    bob.sign(facade, "images", "bob.key", &["--allow-keys", "--request", &request, "--out", &signatures])
        .expect_success();
    assert_eq!(outcome(&facade.ok(&["keys", "upload", "images", &signatures])), "published");

    let second = registry.push("team/app", "v2", &small());
    facade.import(&second);
    let signed = alice.sign(facade, "images", "keys/images-targets.key", &[]).expect_success();
    assert_eq!(outcome(&signed.json()), "pending");
    facade.cli(&["assign", &second.artifact(), "--device", "board-1"]).expect_code(1);
    let signed = bob.sign(facade, "images", "bob.key", &[]).expect_success();
    assert_eq!(outcome(&signed.json()), "published");
    facade.ok(&["assign", &second.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert!(device.delivered().contains(&second.digest));
}

#[test]
fn devices_follow_the_rotation_of_every_key() {
    let registry = Registry::open();
    let mut facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    let roles = ["timestamp", "snapshot", "targets", "root"];
    for (number, role) in roles.into_iter().enumerate() {
        for repository in ["images", "director"] {
            assert_eq!(outcome(&facade.ok(&["keys", "rotate", repository, role])), "published");
            let pushed = registry.push("team/app", &format!("v{number}-{repository}"), &small());
            facade.deliver(&pushed, "board-1");
            device.sync().expect_success();
            assert!(device.delivered().contains(&pushed.digest), "{repository} {role}");
        }
    }
    // What was rotated is what the facade has after a restart, and what new devices begin with.
    facade.start_again();
    Device::enrolled("board-2", &facade).sync().expect_success();
    device.sync().expect_success();
    let keys = fs::read_dir(facade.data_dir().join("keys")).expect("keys").count();
    assert_eq!(keys, 9, "old keys are gone");
}

#[test]
fn a_device_that_slept_through_fifty_roots_catches_up() {
    let registry = Registry::open();
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    device.sync().expect_success();
    for _ in 0..50 {
        facade.ok(&["keys", "rotate", "images", "root"]);
    }
    let pushed = registry.push("team/app", "v1", &small());
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert!(device.delivered().contains(&pushed.digest));
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("run cp");
    assert!(done.success());
}

/// A facade, a device that has `v1`, and a copy of the data directory from before `v2`.
struct Restored {
    registry: Registry,
    facade: Facade,
    device: Device,
    backup: TempDir,
}

impl Restored {
    fn scene() -> Self {
        let registry = Registry::open();
        let mut facade = Facade::start();
        facade.connect(&registry);
        let device = Device::enrolled("board-1", &facade);
        let first = registry.push("team/app", "v1", &small());
        facade.deliver(&first, "board-1");
        device.sync().expect_success();
        let backup = TempDir::new().expect("make a directory");
        facade.stop();
        copy(&facade.data_dir(), &backup.path().join("data"));
        facade.start_again();
        for tag in ["v2", "v3"] {
            let later = registry.push("team/app", tag, &small());
            facade.deliver(&later, "board-1");
            device.sync().expect_success();
        }
        facade.stop();
        Self { registry, facade, device, backup }
    }

    fn import(&self, tag: &str) -> (Pushed, Outcome) {
        let pushed = self.registry.push("team/app", tag, &small());
        let outcome = self.facade.cli(&["import", &pushed.repository, tag]);
        (pushed, outcome)
    }

    fn recovers(&self) {
        for repository in ["images", "director"] {
            let _ = self.facade.cli(&["keys", "recover", repository, "--confirm"]);
        }
        let (pushed, imported) = self.import("v5");
        imported.expect_success();
        self.facade.ok(&["assign", &pushed.artifact(), "--device", "board-1"]);
        self.device.sync().expect_success();
        assert!(self.device.delivered().contains(&pushed.digest));
    }
}

#[test]
fn an_older_database_is_noticed_by_the_witness_and_recovers_by_an_operators_word() {
    let mut scene = Restored::scene();
    copy(&scene.backup.path().join("data/store"), &scene.facade.data_dir().join("store"));
    scene.facade.start_again();
    let status = scene.facade.ok(&["status"]).to_string();
    assert!(status.contains("facade keys recover images"), "{status}");
    assert!(status.contains("facade keys recover director"), "{status}");
    let (_, imported) = scene.import("v4");
    assert!(imported.stdout.contains("behind"), "{}", imported.stdout);
    scene.recovers();
}

#[test]
fn an_older_data_directory_is_noticed_by_what_devices_have_seen() {
    let mut scene = Restored::scene();
    copy(&scene.backup.path().join("data"), &scene.facade.data_dir());
    scene.facade.start_again();
    // The device refuses to go back, and says what it has seen.
    let _ = scene.device.sync();
    let status = scene.facade.ok(&["status"]).to_string();
    assert!(status.contains("board-1") && status.contains("facade keys recover images"), "{status}");
    let (_, imported) = scene.import("v4");
    assert!(imported.stdout.contains("behind"), "{}", imported.stdout);
    scene.recovers();
}

#[test]
fn a_copy_from_before_a_delegation_recovers_by_an_operators_word_and_a_new_snapshot_key() {
    let (registry, mut facade) = (Registry::open(), Facade::start());
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    let first = registry.push("team/app", "v1", &small());
    facade.deliver(&first, "board-1");
    device.sync().expect_success();
    let backup = TempDir::new().expect("make a directory");
    facade.stop();
    copy(&facade.data_dir(), &backup.path().join("data"));
    facade.start_again();
    // The device comes to know a role that the copy has never heard of.
    facade.ok(&["keys", "delegate", "ci", "--repository", &first.repository]);
    let second = registry.push("team/app", "v2", &small());
    facade.deliver(&second, "board-1");
    device.sync().expect_success();
    assert!(device.state_dir().join("metadata/images/publisher-ci.json").exists());
    facade.stop();
    copy(&backup.path().join("data"), &facade.data_dir());
    facade.start_again();

    assert_ne!(device.sync().code, 0);
    let status = facade.ok(&["status"]).to_string();
    assert!(status.contains("facade keys recover images"), "{status}");
    for repository in ["images", "director"] {
        let _ = facade.cli(&["keys", "recover", repository, "--confirm"]);
    }
    let third = registry.push("team/app", "v3", &small());
    facade.deliver(&third, "board-1");
    // Everything is above what was seen, and still a role has vanished, which no snapshot of the same key may do.
    assert_ne!(device.sync().code, 0);
    let refused = facade.ok(&["device", "show", "board-1"])["refused"].to_string();
    assert!(refused.contains("no longer lists publisher-ci.json"), "{refused}");
    assert!(device.delivered().contains(&second.digest), "what runs goes on");

    assert_eq!(outcome(&facade.ok(&["keys", "rotate", "images", "snapshot"])), "published");
    device.sync().expect_success();
    assert!(device.delivered().contains(&third.digest));
    // The same publisher can be let in again.
    facade.ok(&["keys", "delegate", "ci", "--repository", &first.repository]);
    let fourth = registry.push("team/app", "v4", &small());
    facade.deliver(&fourth, "board-1");
    device.sync().expect_success();
    assert!(device.delivered().contains(&fourth.digest));
}

#[test]
fn many_artifacts_are_listed_in_bins_that_devices_find() {
    let registry = Registry::open();
    let facade = Facade::start();
    facade.connect(&registry);
    let device = Device::enrolled("board-1", &facade);
    let pushed: Vec<Pushed> =
        (0..70).map(|number| registry.push("team/app", &format!("v{number}"), &small())).collect();
    let first = pushed.first().expect("a first one");
    let mut args = vec!["import", first.repository.as_str()];
    args.extend(pushed.iter().map(|pushed| pushed.tag.as_str()));
    facade.ok(&args);
    for number in [0, 69] {
        let pushed = pushed.get(number).expect("pushed");
        facade.ok(&["assign", &pushed.artifact(), "--device", "board-1"]);
        device.sync().expect_success();
        assert!(device.delivered().contains(&pushed.digest));
    }
    let bins = fs::read_dir(device.state_dir().join("metadata/images")).expect("metadata");
    let bins =
        bins.filter_map(Result::ok).filter(|entry| entry.file_name().to_string_lossy().starts_with("bin-"));
    assert!((1..=4).contains(&bins.count()), "the device has only the bins of its own artifacts");
}

#[test]
fn an_unchanged_timestamp_is_one_small_answer() {
    let facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    let client = DeviceClient::new(&facade.device_url(), &device.identity());
    let first = client.get("/metadata/images/timestamp.json");
    let tag = first.header("etag").expect("an entity tag").to_owned();
    let again = client.send("GET", "/metadata/images/timestamp.json", &[&format!("If-None-Match: {tag}")]);
    assert_eq!((again.status, again.body.len()), (304, 0));
}

#[test]
fn one_device_that_lies_about_what_it_has_seen_stops_nobody() {
    let registry = Registry::open();
    let facade = Facade::start();
    facade.connect(&registry);
    let (liar, device) = (Device::enrolled("liar", &facade), Device::enrolled("board-1", &facade));
    let versions = r#"{"root":7,"timestamp":900,"snapshot":900,"targets":900}"#;
    // Metadata that it made itself, as high as it likes.
    let forged = serde_json::json!({
        "signed": {"_type": "timestamp", "spec_version": "1.0.34", "version": 900, "expires": "2099-01-01T00:00:00Z",
            "meta": {"snapshot.json": {"version": 900}}},
        "signatures": [{"keyid": "0".repeat(64), "sig": "0".repeat(128)}],
    });
    let report = format!(
        r#"{{"version":1,"device":"liar","counter":1,"boot_id":"b","agent_version":"0.1","platform":{{"os":"linux","architecture":"arm64"}},"state":"idle","metadata":{{"images":{versions},"director":{versions}}},"proof":{{"images":{forged},"director":{forged}}}}}"#,
        forged = Value::from(forged.to_string())
    );
    let identity = liar.identity();
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--fail",
        "--noproxy",
        "*",
        "--request",
        "PUT",
        "--data",
        &report,
    ]);
    curl.arg("--cacert").arg(&identity.ca).arg("--cert").arg(&identity.cert).arg("--key").arg(&identity.key);
    curl.arg(format!("{}/v1/report", facade.device_url()));
    Outcome::of(&mut curl, b"").expect_success();

    let pushed = registry.push("team/app", "v1", &small());
    facade.deliver(&pushed, "board-1");
    device.sync().expect_success();
    assert!(device.delivered().contains(&pushed.digest));
    facade.ok(&["keys", "rotate", "director", "timestamp"]);
    device.sync().expect_success();
    let status = facade.ok(&["status"]).to_string();
    assert!(status.contains("liar") && status.contains("show nothing signed"), "{status}");
}

#[test]
fn an_operator_sees_which_role_a_device_refused_in_which_version_and_why() {
    let mut scene = Restored::scene();
    copy(&scene.backup.path().join("data"), &scene.facade.data_dir());
    scene.facade.start_again();
    let _ = scene.device.sync();
    let shown = scene.facade.ok(&["device", "show", "board-1"]);
    let refused = shown["refused"].to_string();
    assert!(refused.contains("metadata_rollback"), "{refused}");
    assert!(refused.contains("director/timestamp.json"), "{refused}");
    assert!(refused.contains("timestamp goes back from version"), "{refused}");
    let log = scene.facade.log();
    let line = log.lines().find(|line| line.contains("device refused")).expect("a line in the log");
    assert!(line.contains("board-1") && line.contains("metadata_rollback"), "{line}");
}
