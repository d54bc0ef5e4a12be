//! Keys in files and credentials; those in tokens have their story in `tests/e2e/signer.rs`.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn state() -> (tempfile::TempDir, StateDir) {
    let temporary = tempfile::tempdir().unwrap();
    let state = StateDir::open(&temporary.path().join("state")).unwrap();
    (temporary, state)
}

fn give(directory: &Path, name: &str) -> Fingerprint {
    let key = PrivateKey::generate().unwrap();
    let path = directory.join(name);
    std::fs::write(&path, key.to_pem().as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    key.fingerprint()
}

fn credential(directory: &Path) -> Keys {
    Keys {
        place: Place::Credential("device-key".parse().unwrap()),
        credentials: Some(directory.to_owned()),
        ..Keys::default()
    }
}

#[test]
fn a_key_in_a_file_is_made_once_for_each_attempt_and_is_of_the_kind_that_is_asked_for() {
    let (_keep, state) = state();
    let keys = Keys::default();
    let first = keys.next(&state, "next.pem").unwrap();
    assert_eq!(keys.next(&state, "next.pem").unwrap().fingerprint(), first.fingerprint());
    let other = Keys { kind: KeyKind::Ed25519, ..Keys::default() };
    let second = other.next(&state, "next.pem").unwrap();
    assert_ne!(second.fingerprint(), first.fingerprint());
    let stored = state.read_private("next.pem").unwrap().unwrap();
    let read = keys.open(&stored, second.fingerprint()).unwrap().unwrap();
    assert_eq!((read.fingerprint(), read.elsewhere()), (second.fingerprint(), None));
}

#[test]
fn a_credential_is_used_where_it_is_and_never_copied() {
    let (keep, state) = state();
    let given = give(keep.path(), "device-key");
    let keys = credential(keep.path());
    assert_eq!(keys.next(&state, "next.pem").unwrap().fingerprint(), given);
    let stored = state.read_private("next.pem").unwrap().unwrap();
    assert_eq!(stored, b"credential:device-key\n");
    let read = keys.open(&stored, given).unwrap().unwrap();
    assert!(read.elsewhere().unwrap().contains("device-key"));
}

#[test]
fn a_second_credential_is_the_key_of_the_next_certificate_and_either_opens_its_own() {
    let (keep, state) = state();
    let old = give(keep.path(), "device-key");
    let new = give(keep.path(), "device-key.next");
    let keys = credential(keep.path());
    assert_eq!(keys.next(&state, "next.pem").unwrap().fingerprint(), new);
    for wanted in [old, new] {
        let key = keys.open(b"credential:device-key\n", wanted).unwrap().unwrap();
        assert_eq!(key.fingerprint(), wanted);
    }
    // The operator puts the new one in the place of the old one.
    std::fs::rename(keep.path().join("device-key.next"), keep.path().join("device-key")).unwrap();
    assert_eq!(keys.open(b"credential:device-key\n", new).unwrap().unwrap().fingerprint(), new);
    assert!(matches!(
        keys.open(b"credential:device-key\n", old),
        Err(SignerError::NotTheKey { source: None, .. })
    ));
}

#[test]
fn says_what_is_wrong_with_a_credential() {
    let (keep, state) = state();
    let keys = credential(keep.path());
    let error = |keys: &Keys| crate::error_chain(&keys.next(&state, "next.pem").unwrap_err());
    assert!(error(&keys).contains("LoadCredential="), "{}", error(&keys));
    let unstarted = Keys { credentials: None, ..keys.clone() };
    assert!(error(&unstarted).contains("systemd-run"), "{}", error(&unstarted));
    let path = keep.path().join("device-key");
    std::fs::write(&path, "not a key").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(error(&keys).contains("is not the key of this device"), "{}", error(&keys));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert!(error(&keys).contains("chmod 400"), "{}", error(&keys));
    assert!(!state.has("next.pem").unwrap());
}

#[test]
fn a_file_that_holds_neither_key_nor_name_gives_none() {
    let keys = Keys::default();
    for stored in [&b""[..], b"junk", b"credential:\n", b"pkcs11:\n", b"\xff\xfe"] {
        assert!(keys.open(stored, Fingerprint::of(b"")).unwrap().is_none(), "{stored:?}");
    }
}
