//! Every parser that reads the network, each as a function of bytes that must neither panic nor hang.
//!
//! `cargo fuzz run TARGET` (in this directory) feeds them without end; `tests/fuzz/bounded.rs` does so for a moment in every
//! test run. What a parser accepts has to survive being written and read again.

/// The facade's own reader of `WWW-Authenticate`, as it is: nothing else of the facade is needed for it.
#[path = "../../../facade/src/upstream/challenge.rs"]
mod challenge;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};
use pki::metadata::Limits;
use pki::metadata::roles::{Document, Root, Snapshot, Targets, Timestamp};
use pki::metadata::verify::Signed;

/// A target: its name and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 13] = [
    ("metadata_root", |bytes| metadata::<Root>("root", bytes)),
    ("metadata_timestamp", |bytes| metadata::<Timestamp>("timestamp", bytes)),
    ("metadata_snapshot", |bytes| metadata::<Snapshot>("snapshot", bytes)),
    ("metadata_targets", |bytes| metadata::<Targets>("targets", bytes)),
    ("canonical_json", canonical_json),
    ("manifest", manifest),
    ("names", names),
    ("certificate", certificate),
    ("csr", csr),
    ("est", est),
    ("challenge", challenges),
    ("token", token),
    ("report", report),
];

fn metadata<T: Document>(role: &str, bytes: &[u8]) {
    if let Ok(signed) = Signed::<T>::parse(role, bytes, Limits::default().targets_bytes) {
        // What is accepted can be signed again: publisher and reader hold the same rules.
        let again = pki::metadata::publish::sign(signed.document(), &[]).expect("signs what it reads");
        assert!(Signed::<T>::parse(role, &again, u64::MAX).is_ok());
    }
}

fn canonical_json(bytes: &[u8]) {
    let Ok(value) = pki::json::parse(bytes, 1 << 20) else {
        return;
    };
    let serde_json::Value::Object(object) = value else {
        return;
    };
    if let Ok(canonical) = pki::canonical::object_to_bytes(&object) {
        // Whatever is between writing and reading again, the signed bytes are the same.
        let written = serde_json::to_vec(&object).expect("writes what it reads");
        let again = serde_json::from_slice(&written).expect("reads what it writes");
        assert_eq!(canonical, pki::canonical::object_to_bytes(&again).expect("canonical again"));
    }
}

fn manifest(bytes: &[u8]) {
    for media_type in [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        if let Ok(media_type) = media_type.parse() {
            drop(pki::oci::Document::parse(&media_type, bytes));
        }
    }
}

/// References, digests, tags, platforms, ids: whatever is accepted is written as it was read, or read again as the same.
fn names(bytes: &[u8]) {
    fn round<T: std::str::FromStr + std::fmt::Display + PartialEq + std::fmt::Debug>(text: &str) {
        if let Ok(parsed) = text.parse::<T>() {
            assert_eq!(parsed.to_string().parse::<T>().ok(), Some(parsed));
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    round::<pki::digest::Digest>(text);
    round::<pki::oci::Tag>(text);
    round::<pki::oci::Repository>(text);
    round::<pki::oci::ArtifactName>(text);
    round::<pki::x509::DeviceId>(text);
    round::<pki::oci::RegistryHost>(text);
    round::<pki::oci::Platform>(text);
    round::<pki::x509::ServerName>(text);
    round::<pki::wire::FacadeUrl>(text);
    // What an operator pastes has many spellings of one thing; the thing itself has one.
    if let Ok(reference) = text.parse::<pki::oci::Reference>() {
        round::<pki::oci::Repository>(&reference.repository.to_string());
    }
}

/// Certificates as a peer sends them, and as they lie in files.
fn certificate(bytes: &[u8]) {
    if let Ok(domain) = "fleet.example".parse()
        && let Ok(identity) = pki::x509::Identity::from_certificate(bytes, &domain)
    {
        // Who is believed to be a device has a name that can be written and read again.
        assert_eq!(identity.id().to_string().parse().as_ref(), Ok(identity.id()));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(pki::x509::pem::certificates(text));
        drop(pki::x509::pem::ed25519_seed(text));
        drop(pki::x509::PrivateKey::from_pem(text));
    }
}

/// Certificate requests as they come out of their base64.
fn csr(bytes: &[u8]) {
    if let Ok(request) = pki::x509::Csr::parse(bytes)
        && let (Ok(device), Ok(domain)) = ("board-1".parse(), "fleet.example".parse())
    {
        drop(request.check_subject(&device));
        drop(request.check_names(&device, &domain));
    }
}

/// Bodies of EST, which are base64 of a request on the way there and of a PKCS#7 message on the way back.
fn est(bytes: &[u8]) {
    if let Ok(der) = pki::x509::est::decode(bytes) {
        assert_eq!(pki::x509::est::decode(pki::x509::est::encode(&der).as_bytes()).as_ref(), Ok(&der));
        csr(&der);
        pkcs7(&der);
    }
    pkcs7(bytes);
}

fn pkcs7(der: &[u8]) {
    if let Ok(certificates) = pki::x509::pkcs7::decode(der) {
        // What it holds is what a message of our own would hold.
        let again = pki::x509::pkcs7::encode(certificates.iter().map(Vec::as_slice));
        assert_eq!(pki::x509::pkcs7::decode(&again).ok(), Some(certificates));
    }
}

/// What a registry asks for, one header a line.
fn challenges(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(32) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    assert!(challenge::challenges(&headers).len() <= 16);
}

fn token(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(text.parse::<pki::wire::EnrollmentToken>());
    }
}

fn report(bytes: &[u8]) {
    drop(pki::wire::Report::parse(bytes));
}

/// Runs one target.
pub fn run(name: &str, bytes: &[u8]) {
    for (target, function) in TARGETS {
        if target == name {
            function(bytes);
        }
    }
}
