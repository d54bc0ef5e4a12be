//! Keys that stay with people: external signers, thresholds, renewals and recoveries that wait for them.

#![expect(clippy::indexing_slicing, reason = "a story stops where its scene cannot be set")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use harness::{Device, Facade, ImageBuilder, Outcome, Pushed, Registry};
use serde_json::Value;
use tempfile::TempDir;

/// A facade whose root and targets keys are with operators, and the directory in which they keep them.
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

    fn push(&self, tag: &str) -> Pushed {
        self.registry.push("team/app", tag, &ImageBuilder::new().random_layer(1000).build())
    }

    fn sign(&self, repository: &str, key: &str, more: &[&str]) -> Outcome {
        let (key, passphrase) = (self.text(key), self.text("passphrase"));
        let mut args =
            vec!["keys", "sign", repository, "--key", &key, "--passphrase-file", &passphrase, "--yes"];
        args.extend(more);
        self.facade.cli(&args)
    }

    /// A new key beside the others, and the file with its public half.
    fn generate(&self, name: &str) -> String {
        let (key, passphrase) = (self.text(&format!("keys/{name}.key")), self.text("passphrase"));
        let public = self.facade.ok(&["keys", "generate", &key, "--passphrase-file", &passphrase]);
        fs::write(self.path(&format!("keys/{name}.pub")), public.to_string()).expect("write");
        self.text(&format!("keys/{name}.pub"))
    }

    fn keys(&self, repository: &str, role: &str) -> Vec<String> {
        let listed = self.facade.ok(&["keys", "list"]);
        let roles = listed.as_array().cloned().unwrap_or_default();
        let role = roles.iter().find(|keys| keys["repository"] == repository && keys["role"] == role);
        let keys = role.map(|role| role["keys"].clone()).unwrap_or_default();
        keys.as_array().into_iter().flatten().map(|key| text(&key["id"])).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn outcome(outcome: Outcome) -> String {
    text(&outcome.expect_success().json()["outcome"])
}

#[test]
fn an_external_command_signs_with_a_key_that_we_never_see() {
    let scene = Scene::set();
    let openssl = |args: &[&str]| {
        let mut command = Command::new("openssl");
        Outcome::of(command.args(args), b"").expect_success().stdout
    };
    let pem = scene.text("keys/token.pem");
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", &pem]);
    // The last 32 bytes of an Ed25519 SubjectPublicKeyInfo are the key (RFC 8410, 4).
    let spki = scene.text("keys/token.spki");
    openssl(&["pkey", "-in", &pem, "-pubout", "-outform", "DER", "-out", &spki]);
    let der = fs::read(&spki).expect("read");
    let hex = data_encoding::HEXLOWER.encode(der.last_chunk::<32>().expect("a key"));
    let public = format!(r#"{{"keytype":"ed25519","scheme":"ed25519","keyval":{{"public":"{hex}"}}}}"#);
    fs::write(scene.path("keys/token.pub"), public).expect("write");
    // What stands between us and a PKCS#11 token: a command that reads the message and prints the signature.
    let script = format!(
        "#!/bin/sh\nset -e\nmessage=$(mktemp)\ncat > \"$message\"\n\
         openssl pkeyutl -sign -rawin -inkey {pem} -in \"$message\" | od -An -v -tx1 | tr -d ' \\n'\nrm \"$message\"\n"
    );
    let command = scene.path("keys/signer");
    fs::write(&command, script).expect("write");
    fs::set_permissions(&command, fs::Permissions::from_mode(0o700)).expect("chmod");
    let (command, public) = (command.display().to_string(), scene.text("keys/token.pub"));

    let old = scene.keys("images", "targets");
    let old = old.first().expect("a key");
    let args = ["keys", "ceremony", "images", "targets", "--add", &public, "--remove", old];
    scene.facade.ok(&args);
    let external = |command: &str, more: &[&str]| {
        let mut args = vec!["keys", "sign", "images", "--key", &public, "--signer", command, "--yes"];
        args.extend(more);
        scene.facade.cli(&args)
    };
    assert_eq!(outcome(scene.sign("images", "keys/images-root.key", &["--allow-keys"])), "pending");
    assert_eq!(outcome(external(&command, &["--allow-keys"])), "published");

    let device = Device::enrolled("board-1", &scene.facade);
    let pushed = scene.push("v1");
    scene.facade.import(&pushed);
    // A command that fails, prints nonsense, or signs with another key changes nothing.
    for wrong in ["false", "echo nonsense", "echo 00"] {
        external(wrong, &[]).expect_code(1);
    }
    let old_key = scene.sign("images", "keys/images-targets.key", &[]);
    assert!(old_key.expect_code(1).stderr.contains("signs nothing"));
    assert_eq!(outcome(external(&command, &[])), "published");
    scene.facade.ok(&["assign", &pushed.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert!(device.delivered().contains(&pushed.digest));
}

#[test]
fn two_of_three_root_keys_replace_a_lost_one_and_devices_follow() {
    let scene = Scene::set();
    let device = Device::enrolled("board-1", &scene.facade);
    let (bob, carol) = (scene.generate("bob"), scene.generate("carol"));
    let ceremony = |more: &[&str]| {
        let mut args = vec!["keys", "ceremony", "images", "root"];
        args.extend(more);
        scene.facade.ok(&args)
    };
    ceremony(&["--add", &bob, "--add", &carol, "--threshold", "2"]);
    // The new root needs the old threshold (one of one) and the new one (two of three).
    assert_eq!(outcome(scene.sign("images", "keys/images-root.key", &["--allow-keys"])), "pending");
    assert_eq!(outcome(scene.sign("images", "keys/bob.key", &["--allow-keys"])), "published");

    // Alice has lost hers: Bob and Carol replace it without her.
    let dave = scene.generate("dave");
    let alice = scene.keys("images", "root");
    let alice = alice.first().expect("a key");
    ceremony(&["--add", &dave, "--remove", alice]);
    assert_eq!(outcome(scene.sign("images", "keys/bob.key", &["--allow-keys"])), "pending");
    // Twice the same signature is one signature.
    assert_eq!(outcome(scene.sign("images", "keys/bob.key", &["--allow-keys"])), "pending");
    assert_eq!(outcome(scene.sign("images", "keys/carol.key", &["--allow-keys"])), "published");
    let pushed = scene.push("v1");
    scene.facade.import(&pushed);
    assert_eq!(outcome(scene.sign("images", "keys/images-targets.key", &[])), "published");
    scene.facade.ok(&["assign", &pushed.artifact(), "--device", "board-1"]);
    device.sync().expect_success();
    assert!(device.delivered().contains(&pushed.digest));
    let root = fs::read_to_string(device.state_dir().join("metadata/images/root.json")).expect("a root");
    assert!(root.contains(r#""version":3"#), "{root}");
    assert!(scene.facade.cli(&["keys", "ceremony", "images", "root", "--threshold", "4"]).code != 0);
}

#[test]
fn the_directors_offline_root_rotates_its_online_keys() {
    let scene = Scene::set();
    let device = Device::enrolled("board-1", &scene.facade);
    device.sync().expect_success();
    for role in ["targets", "snapshot", "timestamp"] {
        let before = scene.keys("director", role);
        assert_eq!(text(&scene.facade.ok(&["keys", "rotate", "director", role])["outcome"]), "pending");
        assert_eq!(scene.keys("director", role), before, "nothing changes before it is signed");
        // A change of keys is not signed unawares, nor by a key that has no part in it.
        scene.sign("director", "keys/director-root.key", &[]).expect_code(6);
        scene.sign("director", "keys/images-root.key", &["--allow-keys"]).expect_code(1);
        let signed = scene.sign("director", "keys/director-root.key", &["--allow-keys"]);
        assert_eq!(outcome(signed), "published");
        assert_ne!(scene.keys("director", role), before);
        device.sync().expect_success();
    }
    // The root itself, by a ceremony of its old and new keys.
    let new = scene.generate("director-next");
    let old = scene.keys("director", "root");
    let old = old.first().expect("a key");
    scene.facade.ok(&["keys", "ceremony", "director", "root", "--add", &new, "--remove", old]);
    assert_eq!(outcome(scene.sign("director", "keys/director-root.key", &["--allow-keys"])), "pending");
    assert_eq!(outcome(scene.sign("director", "keys/director-next.key", &["--allow-keys"])), "published");
    device.sync().expect_success();
    let root = fs::read_to_string(device.state_dir().join("metadata/director/root.json")).expect("a root");
    assert!(root.contains(r#""version":5"#), "{root}");
}

#[test]
fn operators_renew_what_only_they_can_sign() {
    let scene = Scene::set();
    let version = || {
        let root = fs::read_to_string(scene.path("keys/images.seen.json")).unwrap_or_default();
        serde_json::from_str::<Value>(&root).unwrap_or_default()["signed"]["targets"].as_u64()
    };
    assert_eq!(text(&scene.facade.ok(&["keys", "renew"])["outcome"]), "pending");
    // A renewal that waits is not lost when an import comes, and one signature is for both.
    let pushed = scene.push("v1");
    scene.facade.import(&pushed);
    let pending = scene.facade.ok(&["keys", "pending", "images"]).to_string();
    assert!(pending.contains("renewal") && pending.contains(&pushed.artifact()), "{pending}");
    assert_eq!(outcome(scene.sign("images", "keys/images-targets.key", &[])), "published");
    let first = version();
    assert_eq!(text(&scene.facade.ok(&["keys", "renew"])["outcome"]), "pending");
    let again = scene.sign("images", "keys/images-targets.key", &[]).expect_success();
    assert!(again.stderr.contains("1 of them without a change of content"), "{}", again.stderr);
    assert!(version() > first);
    scene.facade.cli(&["keys", "pending", "images"]).expect_code(1);
}

#[test]
fn a_recovery_waits_for_the_operators_where_they_hold_the_targets_key() {
    let mut scene = Scene::set();
    let device = Device::enrolled("board-1", &scene.facade);
    let deliver = |scene: &Scene, tag: &str| {
        let pushed = scene.push(tag);
        scene.facade.import(&pushed);
        assert_eq!(outcome(scene.sign("images", "keys/images-targets.key", &[])), "published");
        scene.facade.ok(&["assign", &pushed.artifact(), "--device", "board-1"]);
        device.sync().expect_success();
        assert!(device.delivered().contains(&pushed.digest));
        pushed
    };
    let kept = deliver(&scene, "v1");
    scene.facade.stop();
    let backup = scene.path("backup");
    let (store, data) = (scene.facade.data_dir().join("store"), scene.facade.data_dir());
    let copy = |from: &PathBuf, to: &PathBuf| {
        let _ = fs::remove_dir_all(to);
        let mut command = Command::new("cp");
        Outcome::of(command.arg("-a").arg(from).arg(to), b"").expect_success();
    };
    copy(&store, &backup);
    scene.facade.start_again();
    deliver(&scene, "v2");
    scene.facade.stop();
    copy(&backup, &data.join("store"));
    scene.facade.start_again();

    assert_eq!(text(&scene.facade.ok(&["keys", "recover", "images", "--confirm"])["outcome"]), "pending");
    scene.facade.ok(&["keys", "recover", "director", "--confirm"]);
    // Operators are told that what they signed since is not in what they are shown as current.
    let signed = scene.sign("images", "keys/images-targets.key", &[]).expect_success();
    assert!(signed.stderr.contains("was signed here and is not in force"), "{}", signed.stderr);
    assert_eq!(text(&signed.json()["outcome"]), "published");
    device.sync().expect_success();
    assert!(device.delivered().contains(&kept.digest));
    deliver(&scene, "v3");
}
