//! The data directory as `facade serve` needs it: every part read, and found to fit the others.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pki::key::SigningKey;
use pki::x509::{Authority, Fingerprint, PrivateKey, ServerName, TrustDomain, pem};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::files::{Files, read_elsewhere};
use super::{
    ADMIN_HASH, FIRST_TARGETS, ISSUING, ISSUING_KEY, InitError, LINKS, ROOT, SEAL_KEY, SERVER, SERVER_KEY,
    TRUST_DOMAIN,
};
use crate::catalog::keyring::Keyring;
use crate::publish::trust::{KeyRing, RootChain, Trust};

/// Everything that a facade needs to be itself.
pub struct DataDir {
    /// The device CA.
    pub authority: Authority,
    /// What devices trust: the root of the CA, and former ones while devices may still know no other.
    pub roots: Vec<Vec<u8>>,
    /// The issuing certificate, then former ones.
    pub issuing: Vec<Vec<u8>>,
    /// What leads from former roots to the present one.
    pub links: Vec<Vec<u8>>,
    /// The server certificate, then the issuing one.
    pub server_chain: Vec<CertificateDer<'static>>,
    /// The key of the server certificate.
    pub server_key: PrivateKeyDer<'static>,
    /// The names in the server certificate, in its order.
    pub server_names: Vec<ServerName>,
    /// The domain of device identities.
    pub trust_domain: TrustDomain,
    /// The keys and the roots of the images repository.
    pub images: Trust,
    /// The keys and the roots of the director repository.
    pub director: Trust,
    /// The targets of the images repository that were signed with offline keys before anything was served.
    pub first_targets: Option<Vec<u8>>,
    /// The keys that seal secrets.
    pub sealing_keys: Keyring,
    /// The SHA-256 of the first admin token's text, in lower-case hexadecimal.
    pub admin_token_hash: String,
}

impl DataDir {
    /// Reads the directory; the sealing key may be kept elsewhere.
    pub fn open(path: &Path, seal_key_file: Option<&Path>) -> Result<Self, InitError> {
        Self::read(&Files::open(path)?, seal_key_file)
    }

    /// Refuses a server certificate that no device would take: whoever puts one in place should hear of it, and not find
    /// the fleet gone.
    pub fn check_server_certificate(&self, now: Timestamp) -> Result<(), InitError> {
        server_is_trusted(self, now).map_err(|source| InitError::Untrusted {
            source: Box::new(source),
        })
    }

    pub(super) fn read(files: &Files, seal_key_file: Option<&Path>) -> Result<Self, InitError> {
        let (server_chain, server_key) = server(files)?;
        Ok(Self {
            authority: authority(files)?,
            roots: certificates(files, ROOT)?,
            issuing: certificates(files, ISSUING)?,
            links: links(files)?,
            server_names: server_names(files)?,
            server_chain,
            server_key,
            trust_domain: trust_domain(files)?,
            images: trust(files, "images")?,
            director: trust(files, "director")?,
            first_targets: files.find(FIRST_TARGETS)?.map(|text| text.as_bytes().to_vec()),
            sealing_keys: sealing_keys(files, seal_key_file)?,
            admin_token_hash: admin_token_hash(files)?,
        })
    }
}

pub(super) fn trust_domain(files: &Files) -> Result<TrustDomain, InitError> {
    let text = files.read(TRUST_DOMAIN)?;
    text.trim()
        .parse()
        .map_err(|error| InitError::unusable(&files.path(TRUST_DOMAIN), error))
}

pub(super) fn authority(files: &Files) -> Result<Authority, InitError> {
    let (root, issuing) = (certificate(files, ROOT)?, certificate(files, ISSUING)?);
    Authority::load(root, issuing, private_key(files, ISSUING_KEY)?)
        .map_err(|error| InitError::unusable(&files.path("ca"), error))
}

/// The certificates of a file, at least one.
pub(super) fn certificates(files: &Files, name: &str) -> Result<Vec<Vec<u8>>, InitError> {
    pem::certificates(&files.read(name)?).map_err(|error| InitError::unusable(&files.path(name), error))
}

/// What leads from former roots to the present one; nothing where there are none.
pub(super) fn links(files: &Files) -> Result<Vec<Vec<u8>>, InitError> {
    if files.find(LINKS)?.is_none() {
        return Ok(Vec::new());
    }
    certificates(files, LINKS)
}

/// The first certificate of a file.
pub(super) fn certificate(files: &Files, name: &str) -> Result<Vec<u8>, InitError> {
    let unusable = |error: pem::PemError| InitError::unusable(&files.path(name), error);
    let certificates = pem::certificates(&files.read(name)?).map_err(unusable)?;
    certificates
        .into_iter()
        .next()
        .ok_or_else(|| unusable(pem::PemError::NoCertificate))
}

pub(super) fn private_key(files: &Files, name: &str) -> Result<PrivateKey, InitError> {
    PrivateKey::from_pem(&files.read(name)?).map_err(|error| InitError::unusable(&files.path(name), error))
}

pub(super) fn signing_key(files: &Files, name: &str) -> Result<SigningKey, InitError> {
    let seed = pem::ed25519_seed(&files.read(name)?);
    let seed = seed.map_err(|error| InitError::unusable(&files.path(name), error))?;
    Ok(SigningKey::from_seed(&seed))
}

fn server(files: &Files) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), InitError> {
    let unusable = |reason: &dyn std::fmt::Display| InitError::unusable(&files.path(SERVER), reason);
    let chain = pem::certificates(&files.read(SERVER)?).map_err(|error| unusable(&error))?;
    let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
    // An operator's own key may be of any kind that TLS knows.
    let key = PrivateKeyDer::from_pem_slice(files.read(SERVER_KEY)?.as_bytes())
        .map_err(|error| InitError::unusable(&files.path(SERVER_KEY), error))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
        Ok(_) => Ok((chain, key)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(unusable(&"its first certificate is not that of tls/server.key"))
        }
        Err(error) => Err(unusable(&error)),
    }
}

/// Whether a device that trusts only the CA of this facade would take the server certificate, at any of its names.
fn server_is_trusted(data: &DataDir, now: Timestamp) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(data.authority.root().to_vec()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let name = data
        .server_names
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    let name = rustls_pki_types::ServerName::try_from(name)
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(
        u64::try_from(now.as_second()).unwrap_or_default(),
    ));
    let (leaf, path) = data
        .server_chain
        .split_first()
        .ok_or(rustls::Error::NoCertificatesPresented)?;
    verifier.verify_server_cert(leaf, path, &name, &[], now).map(drop)
}

/// The names in the server certificate.
pub(super) fn server_names(files: &Files) -> Result<Vec<ServerName>, InitError> {
    let unusable = || InitError::unusable(&files.path(SERVER), "its names cannot be read");
    let der = certificate(files, SERVER)?;
    let (_, leaf) = X509Certificate::from_der(&der).map_err(|_| unusable())?;
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| unusable())?
        .ok_or_else(unusable)?;
    names
        .value
        .general_names
        .iter()
        .map(|name| server_name(name).ok_or_else(unusable))
        .collect()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a server has no other kind of name"
)]
fn server_name(name: &GeneralName<'_>) -> Option<ServerName> {
    match name {
        GeneralName::DNSName(name) => name.parse().ok(),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes)
                .ok()
                .map(|octets| ServerName::Ip(octets.into())),
            _ => <[u8; 16]>::try_from(*bytes)
                .ok()
                .map(|octets| ServerName::Ip(octets.into())),
        },
        _ => None,
    }
}

/// The roots of a repository, each held against the one before, and every key for it that is here.
fn trust(files: &Files, repository: &'static str) -> Result<Trust, InitError> {
    let mut ring = KeyRing::default();
    for name in files.list("keys")? {
        let ours = name
            .strip_suffix(".key")
            .is_some_and(|name| name.starts_with(&format!("{repository}-")));
        if ours {
            ring.insert(signing_key(files, &format!("keys/{name}"))?);
        }
    }
    let first = super::root_file(repository, 1);
    let bytes = files.read(&first)?;
    let unusable = |name: &str, error: &dyn std::fmt::Display| InitError::unusable(&files.path(name), error);
    let mut chain = RootChain::first(bytes.as_bytes()).map_err(|error| unusable(&first, &error))?;
    loop {
        let next = super::root_file(repository, chain.current().version.saturating_add(1));
        let Some(bytes) = files.find(&next)? else { break };
        chain
            .push(bytes.as_bytes())
            .map_err(|error| unusable(&next, &error))?;
    }
    demand_online(files, repository, &chain, &ring)?;
    Ok(Trust { chain, ring })
}

/// What the facade signs by itself, many times a day, it needs the keys for. Roots, and which artifacts exist, may be
/// signed elsewhere.
fn demand_online(
    files: &Files,
    repository: &str,
    chain: &RootChain,
    ring: &KeyRing,
) -> Result<(), InitError> {
    let roles = &chain.current().roles;
    let mut needed = vec![("snapshot", &roles.snapshot), ("timestamp", &roles.timestamp)];
    if repository == "director" {
        needed.push(("targets", &roles.targets));
    }
    for (name, role) in needed {
        if !ring.suffices(role) {
            return Err(InitError::Missing {
                path: files.path(&super::key_file(repository, name)),
                data_dir: files.root().to_owned(),
            });
        }
    }
    Ok(())
}

fn sealing_keys(files: &Files, elsewhere: Option<&Path>) -> Result<Keyring, InitError> {
    let path = elsewhere.map_or_else(|| files.path(SEAL_KEY), Path::to_owned);
    let text = match elsewhere {
        Some(path) => read_elsewhere(path)?,
        None => files.find(SEAL_KEY)?,
    };
    let text = text.ok_or_else(|| InitError::Missing {
        path: path.clone(),
        data_dir: files.root().to_owned(),
    })?;
    Keyring::from_text(&text).map_err(|error| InitError::unusable(&path, error))
}

fn admin_token_hash(files: &Files) -> Result<String, InitError> {
    let text = files.read(ADMIN_HASH)?;
    let hash: Fingerprint = text
        .trim()
        .parse()
        .map_err(|error| InitError::unusable(&files.path(ADMIN_HASH), error))?;
    Ok(hash.to_string())
}
