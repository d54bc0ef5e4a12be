//! Reads the data directory back, and says what is wrong with which file.

use std::path::Path;

use pki::key::SigningKey;
use pki::metadata::roles::Root;
use pki::metadata::verify::Signed;
use pki::seal::SealingKey;
use pki::wire::RootPin;
use pki::x509::{Authority, Fingerprint, PrivateKey, TrustDomain, pem};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::InitError;
use super::files::{Files, read_private};

/// SHA-256 of the first admin token.
pub(super) const ADMIN_TOKEN_HASH: &str = "admin.token.sha256";

/// Largest root in bytes; what devices accept too.
const MAX_ROOT_BYTES: u64 = 64 * 1024;

/// The file of a metadata key.
pub(super) fn key_file(repository: &str, role: &str) -> String {
    format!("keys/{repository}-{role}.key")
}

/// The file of a repository's first root.
pub(super) fn root_file(repository: &str) -> String {
    format!("tuf/{repository}/1.root.json")
}

/// The keys of one repository.
pub struct RepositoryKeys {
    /// Signs which keys may sign what.
    pub root: SigningKey,
    /// Signs targets.
    pub targets: SigningKey,
    /// Signs snapshots.
    pub snapshot: SigningKey,
    /// Signs timestamps.
    pub timestamp: SigningKey,
}

impl RepositoryKeys {
    pub(super) fn load(files: &Files, repository: &str) -> Result<Self, InitError> {
        let key = |role: &str| {
            let file = key_file(repository, role);
            let unusable = |reason: String| InitError::unusable(&files.path(&file), reason);
            let seed = pem::ed25519_seed(&files.read(&file)?).map_err(|error| unusable(error.to_string()))?;
            Ok(SigningKey::from_seed(&seed))
        };
        Ok(Self {
            root: key("root")?,
            targets: key("targets")?,
            snapshot: key("snapshot")?,
            timestamp: key("timestamp")?,
        })
    }
}

/// A root as it is served, and what pins it.
pub struct ServedRoot {
    /// Its version and hash.
    pub pin: RootPin,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Everything that `facade serve` needs from the data directory.
pub struct DataDir {
    /// Issues device certificates.
    pub authority: Authority,
    /// The server's certificate and what it chains to.
    pub server_chain: Vec<CertificateDer<'static>>,
    /// The server's key.
    pub server_key: PrivateKeyDer<'static>,
    /// The names in the server's certificate.
    pub server_names: Vec<String>,
    /// The trust domain of devices.
    pub trust_domain: TrustDomain,
    /// Keys of the images repository.
    pub images: RepositoryKeys,
    /// Keys of the director repository.
    pub director: RepositoryKeys,
    /// Root of the images repository.
    pub images_root: ServedRoot,
    /// Root of the director repository.
    pub director_root: ServedRoot,
    /// Seals secrets.
    pub sealing_key: SealingKey,
    /// SHA-256 of the first admin token, hexadecimal.
    pub admin_token_hash: String,
}

impl DataDir {
    /// Reads a data directory that `facade init` made; the sealing key may be elsewhere.
    pub fn open(root: &Path, seal_key_file: Option<&Path>) -> Result<Self, InitError> {
        let files = Files::open(root)?;
        let chain = certificates(&files, "tls/server.pem")?;
        Ok(Self {
            authority: authority(&files)?,
            server_names: server_names(&files, "tls/server.pem")?,
            server_chain: chain.into_iter().map(CertificateDer::from).collect(),
            server_key: server_key(&files)?,
            trust_domain: trust_domain(&files)?,
            images: RepositoryKeys::load(&files, "images")?,
            director: RepositoryKeys::load(&files, "director")?,
            images_root: served_root(&files, "images")?,
            director_root: served_root(&files, "director")?,
            sealing_key: sealing_key(&files, seal_key_file)?,
            admin_token_hash: files.read(ADMIN_TOKEN_HASH)?.trim().to_owned(),
        })
    }
}

/// The first certificate of a PEM file.
pub(super) fn certificate(files: &Files, file: &str) -> Result<Vec<u8>, InitError> {
    let first = certificates(files, file)?.into_iter().next();
    first.ok_or_else(|| InitError::unusable(&files.path(file), "it holds no certificate"))
}

fn certificates(files: &Files, file: &str) -> Result<Vec<Vec<u8>>, InitError> {
    pem::certificates(&files.read(file)?).map_err(|error| InitError::unusable(&files.path(file), error))
}

/// The device CA.
pub(super) fn authority(files: &Files) -> Result<Authority, InitError> {
    let (root, issuing) = (
        certificate(files, "ca/root.pem")?,
        certificate(files, "ca/issuing.pem")?,
    );
    let unusable = |file: &str, reason: String| InitError::unusable(&files.path(file), reason);
    let key = PrivateKey::from_pem(&files.read("ca/issuing.key")?)
        .map_err(|error| unusable("ca/issuing.key", error.to_string()))?;
    Authority::load(root, issuing, key).map_err(|error| unusable("ca/issuing.pem", error.to_string()))
}

/// The names in the first certificate of a file.
pub(super) fn server_names(files: &Files, file: &str) -> Result<Vec<String>, InitError> {
    let der = certificate(files, file)?;
    let unusable = |reason: String| InitError::unusable(&files.path(file), reason);
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| unusable(error.to_string()))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| unusable(error.to_string()))?;
    let names = names
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    Ok(names.iter().filter_map(name_text).collect())
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    if let GeneralName::DNSName(name) = name {
        return Some((*name).to_owned());
    }
    let GeneralName::IPAddress(octets) = name else {
        return None;
    };
    if let Ok(octets) = <[u8; 4]>::try_from(*octets) {
        return Some(std::net::Ipv4Addr::from(octets).to_string());
    }
    let octets = <[u8; 16]>::try_from(*octets).ok()?;
    Some(std::net::Ipv6Addr::from(octets).to_string())
}

fn server_key(files: &Files) -> Result<PrivateKeyDer<'static>, InitError> {
    let key = PrivateKey::from_pem(&files.read("tls/server.key")?)
        .map_err(|error| InitError::unusable(&files.path("tls/server.key"), error))?;
    Ok(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec()).into())
}

fn trust_domain(files: &Files) -> Result<TrustDomain, InitError> {
    let text = files.read("trust-domain")?;
    text.trim()
        .parse()
        .map_err(|error| InitError::unusable(&files.path("trust-domain"), error))
}

fn served_root(files: &Files, repository: &str) -> Result<ServedRoot, InitError> {
    let file = root_file(repository);
    let bytes = files.read(&file)?.into_bytes();
    let unusable = |reason: String| InitError::unusable(&files.path(&file), reason);
    let root = Signed::<Root>::parse("root", &bytes, MAX_ROOT_BYTES).and_then(Signed::verify_by_itself);
    let root = root.map_err(|error| unusable(error.to_string()))?;
    let version =
        std::num::NonZeroU64::new(root.version).ok_or_else(|| unusable("it has version 0".to_owned()))?;
    Ok(ServedRoot {
        pin: RootPin {
            version,
            sha256: Fingerprint::of(&bytes),
        },
        bytes,
    })
}

fn sealing_key(files: &Files, elsewhere: Option<&Path>) -> Result<SealingKey, InitError> {
    let path = elsewhere.map_or_else(|| files.path("keys/seal.key"), Path::to_owned);
    let text = read_private(&path)?.ok_or_else(|| {
        InitError::unusable(
            &path,
            "it is not there; without it no registry secret can be opened",
        )
    })?;
    SealingKey::from_text(&text).map_err(|error| InitError::unusable(&path, error))
}
