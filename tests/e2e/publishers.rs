//! CI publishes without the targets keys: a delegation for its repositories, and nothing beside them.

#![expect(clippy::indexing_slicing, reason = "a story stops where its scene cannot be set")]

use std::fs;
use std::path::PathBuf;

use harness::{Device, Facade, ImageBuilder, Pushed, Registry};
use serde_json::Value;
use tempfile::TempDir;

/// A facade whose targets keys are with an operator, a registry, and a directory for keys and tokens.
struct Scene {
    desk: TempDir,
    registry: Registry,
    facade: Facade,
}

impl Scene {
    fn set() -> Self {
        let desk = TempDir::new().expect("make a directory");
        fs::write(desk.path().join("passphrase"), "correct horse battery\n").expect("write");
        let facade = Facade::start_offline(&desk.path().join("keys"), &desk.path().join("passphrase"));
        let registry = Registry::open();
        facade.connect(&registry);
        Self { desk, registry, facade }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.desk.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn push(&self, repository: &str, tag: &str) -> Pushed {
        self.registry.push(repository, tag, &ImageBuilder::new().random_layer(1000).build())
    }

    /// Signs what waits at a desk with a key file; what becomes of it.
    fn sign(&self, desk: &str, key: &str, more: &[&str]) -> String {
        let (key, passphrase) = (self.text(key), self.text("passphrase"));
        let mut args = vec!["keys", "sign", desk, "--key", &key, "--passphrase-file", &passphrase, "--yes"];
        args.extend(more);
        text(&self.facade.ok(&args)["outcome"])
    }

    /// The file with a pusher's token.
    fn pusher(&self, name: &str) -> PathBuf {
        let made = self.facade.ok(&["operator", "token", "create", name, "--role", "pusher", "--ttl", "1h"]);
        let file = self.path(&format!("{name}.token"));
        fs::write(&file, text(&made["token"])).expect("write");
        file
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn outcome(report: &Value) -> String {
    text(&report["results"][0]["outcome"])
}

#[test]
fn a_publisher_import_goes_live_by_itself_while_the_targets_keys_are_offline() {
    let scene = Scene::set();
    let facade = &scene.facade;
    let device = Device::enrolled("board-1", facade);
    let app = scene.push("team/app", "v1");
    let token = scene.pusher("ci");
    facade.cli_as(&token, &["import", &app.repository, "v1"]).expect_code(5);

    let delegated = facade.ok(&["keys", "delegate", "ci", "--repository", &app.repository]);
    assert_eq!(delegated["outcome"], "pending", "who signs is the operators' to say");
    let unawares = facade.cli(&[
        "keys",
        "sign",
        "images",
        "--key",
        &scene.text("keys/images-targets.key"),
        "--passphrase-file",
        &scene.text("passphrase"),
        "--yes",
    ]);
    assert!(unawares.expect_code(6).stderr.contains("publisher ci"));
    assert_eq!(scene.sign("images", "keys/images-targets.key", &["--allow-keys"]), "published");
    assert_eq!(facade.ok(&["keys", "delegations"])[0]["place"], "here");
    assert!(facade.ok(&["keys", "list"]).to_string().contains("publisher-ci"));

    let imported = facade.cli_as(&token, &["import", &app.repository, "v1"]).expect_success().json();
    assert_eq!(outcome(&imported), "imported", "{imported}");
    facade.ok(&["assign", &app.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert!(device.delivered().contains(&app.digest));

    // Nothing beside its repositories, and nothing but importing.
    let other = scene.push("team/other", "v1");
    for refused in [
        vec!["import", other.repository.as_str(), "v1"],
        vec!["import", app.repository.as_str(), "v1", "--pin"],
        vec!["artifact", "list"],
        vec!["keys", "pending", "images"],
        vec!["keys", "delegate", "mine", "--repository", other.repository.as_str()],
    ] {
        facade.cli_as(&token, &refused).expect_code(5);
    }
    let imported = facade.ok(&["import", &other.repository, "v1"]);
    assert_eq!(outcome(&imported), "pending", "{imported}");

    // Turned out, what it signed goes with it.
    scene.facade.ok(&["keys", "drop", "images"]);
    assert_eq!(facade.ok(&["keys", "revoke", "ci"])["outcome"], "pending");
    assert_eq!(scene.sign("images", "keys/images-targets.key", &["--allow-keys"]), "published");
    facade.cli_as(&token, &["import", &app.repository, "v1"]).expect_code(5);
    facade.cli(&["assign", &app.artifact(), "--device", "board-1"]).expect_code(1);
    assert_eq!(facade.ok(&["device", "show", "board-1"])["wanted"].as_array().map(Vec::len), Some(0));
    device.sync().expect_success();
}

#[test]
fn ci_signs_with_a_key_that_no_server_sees() {
    let scene = Scene::set();
    let facade = &scene.facade;
    let device = Device::enrolled("board-1", facade);
    let (app, other) = (scene.push("team/app", "v1"), scene.push("team/other", "v1"));
    // CI's own directory: its key, and the root that it trusts.
    let (key, passphrase) = (scene.text("ci/ci.key"), scene.text("passphrase"));
    fs::create_dir(scene.path("ci")).expect("make a directory");
    let public = facade.ok(&["keys", "generate", &key, "--passphrase-file", &passphrase]);
    fs::write(scene.path("ci/ci.pub"), public.to_string()).expect("write");
    fs::copy(scene.path("keys/images.root.json"), scene.path("ci/images.root.json")).expect("copy");
    let public = scene.text("ci/ci.pub");
    facade.ok(&["keys", "delegate", "ci", "--repository", &app.repository, "--key", &public]);
    assert_eq!(scene.sign("images", "keys/images-targets.key", &["--allow-keys"]), "published");
    assert_eq!(facade.ok(&["keys", "delegations"])[0]["place"], "offline");

    let token = scene.pusher("ci");
    let imported = facade.cli_as(&token, &["import", &app.repository, "v1"]).expect_success().json();
    assert_eq!(outcome(&imported), "pending", "{imported}");
    facade.import(&other);
    // Its key signs nothing of what waits for the operators, nor theirs what waits for it.
    let sign = |desk: &str, key: &str| {
        let args = ["keys", "sign", desk, "--key", key, "--passphrase-file", &passphrase, "--yes"];
        facade.cli_as(&token, &args)
    };
    sign("images", &key).expect_code(5);
    let operators = scene.text("keys/images-targets.key");
    assert!(sign("publisher-ci", &operators).expect_code(1).stderr.contains("signs nothing"));
    assert_eq!(sign("publisher-ci", &key).expect_success().json()["outcome"], "published");
    facade.ok(&["assign", &app.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert!(device.delivered().contains(&app.digest));
    facade.cli(&["assign", &other.artifact(), "--device", "board-1"]).expect_code(1);

    // What it signed can be kept by those who hold the targets key.
    facade.ok(&["keys", "drop", "images"]);
    facade.ok(&["keys", "revoke", "ci", "--keep-artifacts"]);
    assert_eq!(scene.sign("images", "keys/images-targets.key", &["--allow-keys"]), "published");
    assert_eq!(facade.ok(&["keys", "delegations"]).as_array().map(Vec::len), Some(0));
    device.sync().expect_success();
    assert!(device.delivered().contains(&app.digest));
}
