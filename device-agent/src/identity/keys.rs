//! Where the private key of this device is, and who signs with it.
//!
//! Three places: a file beside the certificate, where each renewal puts a new key; a systemd credential, which the agent
//! can read and never write; and a PKCS#11 token (a TPM 2.0, a secure element, a smart card), which the key never leaves.
//! `identity/key.pem` holds the key or one line that names it, and moves with the certificate it belongs to. So
//! enrollment and renewal are the same steps for all three, and a device takes its key elsewhere by renewing.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pki::x509::{DeviceId, Fingerprint, KeyError, KeyKind, PrivateKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use thiserror::Error;
use zeroize::Zeroizing;

use super::IdentityError;
use crate::state_file::StateDir;

mod credential;
#[cfg(feature = "pkcs11")]
mod token;
mod uri;

pub use credential::CredentialName;
pub use uri::{TokenUri, UriError};

/// Longest file that can hold a key.
const MAX_KEY_BYTES: u64 = 16 * 1024;

/// Where the next key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Made here, kept in a file that is the agent's alone.
    File,
    /// Given by systemd (`LoadCredential=`).
    Credential(CredentialName),
    /// Made and kept in a PKCS#11 token.
    Token(TokenUri),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Token(uri) => uri.fmt(f),
        }
    }
}

/// The settings of keys.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Where the next key comes from; the key in use may still be elsewhere.
    pub place: Place,
    /// The kind of a key that is made in a file.
    pub kind: KeyKind,
    /// Where systemd puts the credentials of this process (`CREDENTIALS_DIRECTORY`).
    pub credentials: Option<PathBuf>,
}

impl Default for Keys {
    fn default() -> Self {
        Self { place: Place::File, kind: KeyKind::P256, credentials: None }
    }
}

/// Why a key cannot be used.
#[derive(Debug, Error)]
pub enum SignerError {
    /// systemd did not start us, or gives nothing.
    #[error(
        "the key is the systemd credential {0}, and this process was given no credentials; run it as \
         device-agent.service does: systemd-run --pipe -p LoadCredential={0}:FILE device-agent …"
    )]
    NoCredentials(CredentialName),
    /// The credential is not among those that were given.
    #[error("cannot read the systemd credential {path} (LoadCredential= in device-agent.service gives it)", path = path.display())]
    Credential {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Everybody on the device could have read it.
    #[error("everybody can read the key {path}; run: chmod 400 {path}", path = path.display())]
    Exposed {
        /// Where it is.
        path: PathBuf,
    },
    /// The credential is there and is not a key, or not that of the certificate.
    #[error("{path} is not the key of this device", path = path.display())]
    NotTheKey {
        /// Where it is.
        path: PathBuf,
        /// What it is instead; nothing where it is another key.
        #[source]
        source: Option<KeyError>,
    },
    /// The agent was built without it.
    #[error("{0} is in a PKCS#11 token, and this device-agent was built without the feature pkcs11")]
    NotBuilt(TokenUri),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for the name of a key")]
    Random(#[source] getrandom::Error),
    /// The token does not do what is asked of it.
    #[error("cannot {doing} with the token of {uri}")]
    Token {
        /// What was being done.
        doing: &'static str,
        /// With which key.
        uri: TokenUri,
        /// What the token or its library says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The key behind a certificate.
#[derive(Debug)]
pub enum Signer {
    /// In `identity/key.pem`.
    File(PrivateKey),
    /// In a credential of systemd.
    Credential(CredentialName, PrivateKey),
    /// In a PKCS#11 token.
    #[cfg(feature = "pkcs11")]
    Token(Arc<token::TokenKey>),
}

impl Keys {
    /// The key for a new certificate, named in `file` before it is used: the one that an attempt that was cut left
    /// there, or a new one, as far as its place lets us make one.
    pub(super) fn next(&self, state: &StateDir, file: &str) -> Result<Signer, IdentityError> {
        let stored = state.read_private(file)?.map(Zeroizing::new);
        match &self.place {
            Place::File => {
                let kept = stored.as_deref().and_then(|bytes| parse_pem(bytes));
                if let Some(key) = kept.filter(|key| key.kind() == self.kind) {
                    return Ok(Signer::File(key));
                }
                let key = PrivateKey::generate_kind(self.kind).map_err(IdentityError::Key)?;
                state.write(file, key.to_pem().as_bytes())?;
                Ok(Signer::File(key))
            }
            Place::Credential(name) => {
                let key = name.newest(self.credentials.as_deref())?;
                state.write(file, format!("{}\n", self.place).as_bytes())?;
                Ok(Signer::Credential(name.clone(), key))
            }
            Place::Token(place) => {
                let kept = stored.as_deref().and_then(|bytes| line(bytes)?.parse::<TokenUri>().ok());
                let uri = match kept.filter(|kept| kept.is_in(place)) {
                    Some(kept) => kept,
                    None => place.with_new_id().map_err(SignerError::Random)?,
                };
                // A crash between the two leaves a name without a key, never a key without a name.
                state.write(file, format!("{uri}\n").as_bytes())?;
                Ok(self.obtain(&uri)?)
            }
        }
    }

    /// The key that `stored` holds or names, for the certificate of a key with this fingerprint.
    pub(super) fn open(&self, stored: &[u8], wanted: Fingerprint) -> Result<Option<Signer>, SignerError> {
        let named = line(stored).unwrap_or_default();
        if let Some(name) = named.strip_prefix("credential:").and_then(|name| name.parse().ok()) {
            let name: CredentialName = name;
            let key = name.of(self.credentials.as_deref(), wanted)?;
            return Ok(Some(Signer::Credential(name, key)));
        }
        if let Ok(uri) = named.parse::<TokenUri>() {
            return self.find(&self.reached(uri)).map(Some);
        }
        Ok(parse_pem(stored).map(Signer::File))
    }

    /// The settings say how a token is reached now; what was noted says which key it is.
    fn reached(&self, uri: TokenUri) -> TokenUri {
        match &self.place {
            Place::Token(place) => uri.reached_as(place),
            Place::File | Place::Credential(_) => uri,
        }
    }

    /// Removes the keys that were made in the token for this device and that no certificate of it uses any more.
    pub(super) fn retire(&self, state: &StateDir) {
        let Place::Token(place) = &self.place else { return };
        let current = state.read_private(super::KEY_FILE).ok().flatten();
        let current = current.as_deref().and_then(|bytes| line(bytes)?.parse::<TokenUri>().ok());
        if let Err(error) = remove_others(place, current.as_ref()) {
            tracing::warn!(error = crate::error_chain(&error), "keys of old certificates stay in the token");
        }
    }
}

#[cfg(feature = "pkcs11")]
impl Keys {
    #[expect(clippy::unused_self, reason = "the same call as in a build without tokens")]
    fn obtain(&self, uri: &TokenUri) -> Result<Signer, SignerError> {
        token::TokenKey::find_or_make(uri).map(|key| Signer::Token(Arc::new(key)))
    }

    #[expect(clippy::unused_self, reason = "the same call as in a build without tokens")]
    fn find(&self, uri: &TokenUri) -> Result<Signer, SignerError> {
        token::TokenKey::find(uri).map(|key| Signer::Token(Arc::new(key)))
    }
}

#[cfg(feature = "pkcs11")]
use token::remove_others;

#[cfg(not(feature = "pkcs11"))]
impl Keys {
    #[expect(clippy::unused_self, reason = "the same call as in a build with tokens")]
    fn obtain(&self, uri: &TokenUri) -> Result<Signer, SignerError> {
        Err(SignerError::NotBuilt(uri.clone()))
    }

    #[expect(clippy::unused_self, reason = "the same call as in a build with tokens")]
    fn find(&self, uri: &TokenUri) -> Result<Signer, SignerError> {
        Err(SignerError::NotBuilt(uri.clone()))
    }
}

#[cfg(not(feature = "pkcs11"))]
fn remove_others(place: &TokenUri, _keep: Option<&TokenUri>) -> Result<(), SignerError> {
    Err(SignerError::NotBuilt(place.clone()))
}

impl Signer {
    /// The SHA-256 of the public key (its `SubjectPublicKeyInfo`).
    pub fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::File(key) | Self::Credential(_, key) => key.fingerprint(),
            #[cfg(feature = "pkcs11")]
            Self::Token(key) => key.fingerprint(),
        }
    }

    /// A certificate request that proves possession of the key, in the name that the device has already.
    pub(super) fn request(&self, device: Option<&DeviceId>) -> Result<Vec<u8>, IdentityError> {
        let request = match self {
            Self::File(key) | Self::Credential(_, key) => pki::x509::request(key, device),
            #[cfg(feature = "pkcs11")]
            Self::Token(key) => pki::x509::request(key.as_ref(), device),
        };
        request.map_err(IdentityError::Key)
    }

    /// What TLS signs with.
    pub(super) fn tls(&self) -> Result<Arc<dyn rustls::sign::SigningKey>, rustls::Error> {
        match self {
            Self::File(key) | Self::Credential(_, key) => {
                let der = PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec());
                rustls::crypto::ring::sign::any_supported_type(&der.into())
            }
            #[cfg(feature = "pkcs11")]
            Self::Token(key) => Ok(Arc::new(token::TlsKey(Arc::clone(key)))),
        }
    }

    /// Where the key is, for people; `None` where it is a file that other programs can use as well.
    pub fn elsewhere(&self) -> Option<String> {
        match self {
            Self::File(_) => None,
            Self::Credential(name, _) => Some(format!("the systemd credential {name}")),
            #[cfg(feature = "pkcs11")]
            Self::Token(key) => Some(format!("the token of {}", key.uri())),
        }
    }
}

/// The first line of a file that names a key.
fn line(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()?.lines().next()
}

fn parse_pem(bytes: &[u8]) -> Option<PrivateKey> {
    PrivateKey::from_pem(std::str::from_utf8(bytes).ok()?).ok()
}

/// Reads a short file outside the state directory, which nobody but us should be able to read.
fn read_outside(path: &Path) -> std::io::Result<(Zeroizing<Vec<u8>>, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let file = std::fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_KEY_BYTES).read_to_end(&mut bytes)?;
    Ok((bytes, mode))
}

#[cfg(test)]
mod tests;
