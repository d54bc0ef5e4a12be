//! A device joins: one command, everything checked before the secret leaves the device.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use data_encoding::BASE64URL_NOPAD;
use harness::facade::files_below;
use harness::process::Outcome;
use harness::{Device, Facade};
use pki::digest::Digest;
use serde_json::{Value, json};

/// The token with one field of its content replaced.
fn altered(token: &str, alter: impl FnOnce(&mut Value)) -> String {
    let encoded = token.strip_prefix("drayage1.").expect("a token of version 1");
    let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).expect("base64url");
    let mut content = serde_json::from_slice(&bytes).expect("JSON");
    alter(&mut content);
    format!("drayage1.{}", BASE64URL_NOPAD.encode(content.to_string().as_bytes()))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode() & 0o777)
}

#[test]
fn enrolls_with_one_command_and_keeps_its_key_to_itself() {
    let facade = Facade::start();
    let device = Device::enrolled("board-1", &facade);
    let identity = device.identity();
    assert_eq!(mode(&identity.key), 0o600);
    assert_eq!(mode(identity.key.parent().unwrap()), 0o700);
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]).arg(&identity.cert);
    let shown = Outcome::of(&mut openssl, b"").expect_success().stdout;
    assert!(shown.contains("spiffe://drayage.internal/device/board-1"), "{shown}");
    assert!(facade.ok(&["device", "list"]).to_string().contains("board-1"));
    device.sync().expect_success();
}

#[test]
fn an_empty_directory_made_by_hand_is_made_private_and_it_is_said() {
    let facade = Facade::start();
    let device = Device::new("board-1");
    fs::create_dir(device.state_dir()).unwrap();
    fs::set_permissions(device.state_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let enrolled = device.enroll(&facade.token("board-1")).expect_success();
    assert!(enrolled.stderr.contains("0700"), "{}", enrolled.stderr);
    assert_eq!(mode(&device.state_dir()), 0o700);
    // One that has something in it is for its owner to look at.
    fs::set_permissions(device.state_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = device.sync().expect_code(1);
    assert!(refused.text().contains("chmod 700"), "{}", refused.text());
}

#[test]
fn rejects_a_token_used_before() {
    let facade = Facade::start();
    let token = facade.token("board-1");
    Device::new("board-1").enroll(&token).expect_success();
    let second = Device::new("board-1");
    assert_ne!(second.enroll(&token).code, 0);
    assert!(!second.identity().cert.exists());
}

#[test]
fn rejects_a_facade_of_another_ca_before_sending_the_secret() {
    let facade = Facade::start();
    let token = facade.token("board-1");
    let other = Digest::sha256(b"another CA").hex();
    let device = Device::new("board-1");
    device.enroll(&altered(&token, |content| content["ca"] = json!(other))).expect_code(6);
    assert!(!device.identity().cert.exists());
    // The secret was not spent, so it was not sent: the true token still works, once.
    device.enroll(&token).expect_success();
}

#[test]
fn rejects_metadata_roots_other_than_the_pinned() {
    let facade = Facade::start();
    for root in ["images_root", "director_root"] {
        let other = Digest::sha256(b"another root").hex();
        let token = altered(&facade.token("board-1"), |content| {
            content[root]["sha256"] = json!(other);
        });
        let device = Device::new("board-1");
        device.enroll(&token).expect_code(6);
        assert_ne!(device.sync().code, 0, "a half enrolled device must not sync");
    }
}

#[test]
fn rejects_malformed_tokens_as_wrong_use() {
    let device = Device::new("board-1");
    for token in ["", "drayage1.", "drayage1.!!", "drayage2.e30", "drayage1.e30", "hello"] {
        device.enroll(token).expect_code(2);
    }
    assert!(files_below(&device.state_dir()).is_empty(), "a malformed token must leave nothing behind");
}

#[test]
fn says_that_nobody_answers() {
    let mut facade = Facade::start();
    let token = facade.token("board-1");
    facade.stop();
    Device::new("board-1").enroll(&token).expect_code(4);
}

#[test]
fn init_again_changes_nothing() {
    let mut facade = Facade::start();
    // A serving facade writes its store and its dumps; a stopped one leaves everything to init.
    facade.stop();
    let read = || {
        let files = files_below(&facade.data_dir()).into_iter();
        files.map(|path| (fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let before = read();
    let again = facade.init().expect_success();
    assert!(again.text().contains("already"), "{}", again.text());
    assert!(before == read(), "a second init must change no file");
}

#[test]
fn data_directory_is_for_its_owner_only() {
    let facade = Facade::start();
    assert_eq!(mode(&facade.data_dir()), 0o700);
    for path in files_below(&facade.data_dir()) {
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
}
