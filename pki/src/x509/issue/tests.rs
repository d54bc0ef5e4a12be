//! Certificates held against our own reader and against openssl.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::x509::{Identity, pkcs7};

fn now() -> Timestamp {
    "2026-11-20T12:00:00.5Z".parse().unwrap()
}

struct Parts {
    root: Issued,
    root_key: PrivateKey,
    issuing: Issued,
    issuing_key: PrivateKey,
}

fn parts() -> Parts {
    let (root_key, issuing_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let root = Authority::new_root(&root_key, now()).unwrap();
    let issuing = Authority::new_issuing(&root.der, &root_key, &issuing_key, now()).unwrap();
    Parts { root, root_key, issuing, issuing_key }
}

fn authority() -> Authority {
    let parts = parts();
    Authority::load(parts.root.der, parts.issuing.der, parts.issuing_key).unwrap()
}

fn csr() -> Csr {
    Csr::parse(include_bytes!("../csr/fixtures/p256.der")).unwrap()
}

fn device() -> DeviceId {
    "pump-7".parse().unwrap()
}

fn issue(authority: &Authority, csr: &Csr) -> Issued {
    authority.issue_device(csr, &device(), &TrustDomain::default(), now(), DEVICE_LIFETIME).unwrap()
}

/// Runs openssl in a directory; what it prints, if it agrees.
fn openssl(directory: &Path, arguments: &str) -> Result<String, String> {
    let output =
        Command::new("openssl").args(arguments.split_whitespace()).current_dir(directory).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stdout) + &text(&output.stderr))
    }
}

fn directory_with(authority: &Authority, leaf: &Issued) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("root.pem", pem::certificate(authority.root())),
        ("issuing.pem", pem::certificate(authority.issuing())),
        ("leaf.pem", leaf.pem()),
    ] {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

const VERIFY: &str = "verify -x509_strict -attime 1795176000 -CAfile root.pem -untrusted issuing.pem";

#[test]
fn issues_what_it_then_recognises() {
    let authority = authority();
    let issued = issue(&authority, &csr());
    let identity = Identity::from_certificate(&issued.der, &TrustDomain::default()).unwrap();
    assert_eq!(identity.id(), &device());
    assert_eq!(identity.serial(), &issued.serial);
    assert_eq!(identity.key(), csr().key());
    assert_eq!(identity.fingerprint(), issued.fingerprint());
    assert_eq!(identity.not_before().to_string(), "2026-11-20T11:59:00Z");
    assert_eq!(identity.not_after().to_string(), "2026-12-20T12:00:00Z");
    assert_ne!(issue(&authority, &csr()).serial, issued.serial);
}

#[test]
fn openssl_verifies_device_certificates_of_every_kind_of_key() {
    let authority = authority();
    for request in [
        &include_bytes!("../csr/fixtures/p256.der")[..],
        include_bytes!("../csr/fixtures/ed25519.der"),
        include_bytes!("../csr/fixtures/rsa2048.der"),
    ] {
        let leaf = issue(&authority, &Csr::parse(request).unwrap());
        let directory = directory_with(&authority, &leaf);
        openssl(directory.path(), &format!("{VERIFY} -purpose sslclient leaf.pem")).unwrap();
        openssl(directory.path(), &format!("{VERIFY} -purpose sslserver leaf.pem")).unwrap_err();
        let text = openssl(directory.path(), "x509 -in leaf.pem -noout -text").unwrap();
        for expected in [
            "URI:spiffe://drayage.internal/device/pump-7",
            "X509v3 Key Usage: critical\n                Digital Signature\n",
            "TLS Web Client Authentication\n",
            "CA:FALSE",
            "X509v3 Authority Key Identifier",
            "X509v3 Subject Key Identifier",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}

#[test]
fn openssl_verifies_the_server_certificate_for_each_name() {
    let authority = authority();
    let key = PrivateKey::generate().unwrap();
    let names: Vec<ServerName> =
        ["facade.example.com", "127.0.0.1", "::1"].iter().map(|name| name.parse().unwrap()).collect();
    let leaf = authority.issue_server(&names, &key, now()).unwrap();
    let directory = directory_with(&authority, &leaf);
    for check in ["-verify_hostname facade.example.com", "-verify_ip 127.0.0.1", "-verify_ip ::1"] {
        openssl(directory.path(), &format!("{VERIFY} -purpose sslserver {check} leaf.pem")).unwrap();
    }
    openssl(directory.path(), &format!("{VERIFY} -verify_hostname other.example.com leaf.pem")).unwrap_err();
    assert!(Identity::from_certificate(&leaf.der, &TrustDomain::default()).is_err());
}

#[test]
fn openssl_reads_our_pkcs7_and_we_read_its() {
    let authority = authority();
    let leaf = issue(&authority, &csr());
    let directory = directory_with(&authority, &leaf);
    let message = pkcs7::encode([authority.root(), authority.issuing()]);
    std::fs::write(directory.path().join("ours.p7"), &message).unwrap();
    let printed = openssl(directory.path(), "pkcs7 -inform DER -in ours.p7 -print_certs").unwrap();
    assert_eq!(pem::certificates(&printed).unwrap(), [authority.root(), authority.issuing()]);
    openssl(
        directory.path(),
        "crl2pkcs7 -nocrl -certfile root.pem -certfile issuing.pem -outform DER -out theirs.p7",
    )
    .unwrap();
    let theirs = std::fs::read(directory.path().join("theirs.p7")).unwrap();
    assert_eq!(pkcs7::decode(&theirs).unwrap(), pkcs7::decode(&message).unwrap());
}

#[test]
fn openssl_reads_the_keys() {
    let directory = tempfile::tempdir().unwrap();
    let key = PrivateKey::generate().unwrap();
    std::fs::write(directory.path().join("key.pem"), key.to_pem().as_bytes()).unwrap();
    openssl(directory.path(), "pkey -in key.pem -noout -check").unwrap();
    std::fs::write(directory.path().join("tuf.pem"), pem::ed25519_key(&[7; 32]).as_bytes()).unwrap();
    openssl(directory.path(), "pkey -in tuf.pem -noout").unwrap();
    openssl(directory.path(), "genpkey -algorithm ed25519 -out theirs.pem").unwrap();
    let theirs = std::fs::read_to_string(directory.path().join("theirs.pem")).unwrap();
    assert!(pem::ed25519_seed(&theirs).is_ok());
    assert!(PrivateKey::from_pem(&theirs).is_ok());
}

#[test]
fn rejects_a_request_for_another_devices_name() {
    let mut params = rcgen::CertificateParams::default();
    let uri = "spiffe://drayage.internal/device/other";
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let request = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let csr = Csr::parse(request.der()).unwrap();
    let refused = authority().issue_device(&csr, &device(), &TrustDomain::default(), now(), DEVICE_LIFETIME);
    assert!(matches!(refused, Err(IssueError::Request(CsrError::ForeignName(name))) if name == uri));
}

#[test]
fn rejects_issuing_when_the_authority_is_not_valid() {
    let authority = authority();
    for time in ["1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z"] {
        let refused = authority.issue_device(
            &csr(),
            &device(),
            &TrustDomain::default(),
            time.parse().unwrap(),
            DEVICE_LIFETIME,
        );
        assert!(matches!(refused, Err(IssueError::AuthorityNotValid { .. })), "{time}");
    }
}

#[test]
fn lets_no_certificate_outlive_its_issuer() {
    let authority = authority();
    let long = SignedDuration::from_hours(24 * 365 * 50);
    let issued = authority.issue_device(&csr(), &device(), &TrustDomain::default(), now(), long).unwrap();
    assert_eq!(issued.not_after, authority.not_after);
}

#[test]
fn rejects_lifetimes_that_are_not_positive() {
    for lifetime in [SignedDuration::ZERO, SignedDuration::from_secs(-1)] {
        let refused = authority().issue_device(&csr(), &device(), &TrustDomain::default(), now(), lifetime);
        assert!(matches!(refused, Err(IssueError::Lifetime(_))));
    }
}

#[test]
fn rejects_a_server_certificate_without_names() {
    let key = PrivateKey::generate().unwrap();
    assert!(matches!(authority().issue_server(&[], &key, now()), Err(IssueError::NoName)));
}

#[test]
fn rejects_parts_that_do_not_belong_together() {
    let (one, two) = (parts(), parts());
    let load = |root: &Issued, issuing: &Issued, key: PrivateKey| {
        Authority::load(root.der.clone(), issuing.der.clone(), key)
    };
    assert!(matches!(load(&one.root, &two.issuing, two.issuing_key), Err(IssueError::ChainMismatch)));
    assert!(matches!(
        load(&one.root, &one.issuing, PrivateKey::generate().unwrap()),
        Err(IssueError::KeyMismatch("issuing"))
    ));
    let leaf_key = PrivateKey::generate().unwrap();
    let authority = load(&one.root, &one.issuing, one.issuing_key).unwrap();
    let leaf = authority.issue_server(&["localhost".parse().unwrap()], &leaf_key, now()).unwrap();
    assert!(matches!(load(&one.root, &leaf, leaf_key), Err(IssueError::NotAnAuthority("issuing"))));
    assert!(matches!(
        Authority::new_issuing(&one.root.der, &two.root_key, &one.root_key, now()),
        Err(IssueError::KeyMismatch("root"))
    ));
}
