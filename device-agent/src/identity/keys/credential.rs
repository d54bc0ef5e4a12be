//! Keys that systemd gives: `LoadCredential=device-key:FILE`, or `LoadCredentialEncrypted=` sealed to the machine.
//!
//! The agent cannot put a new key where it got this one, so a renewal keeps the key; only the certificate is new. Whoever
//! wants a new key gives a second credential, `NAME.next`: the next renewal is made with it, and from then on either may
//! be the key, whichever the certificate belongs to. So the operator can take the old one away at any time after that.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use pki::x509::{Fingerprint, PrivateKey};

use super::{SignerError, read_outside};

/// The name of a credential (systemd.exec(5), `LoadCredential=`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialName(String);

impl FromStr for CredentialName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let valid = (1..=200).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('.');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("{text:?} is not the name of a credential (letters, digits, - _ .)"))
        }
    }
}

impl fmt::Display for CredentialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl CredentialName {
    fn successor(&self) -> Self {
        Self(format!("{}.next", self.0))
    }

    /// The key for the next certificate.
    pub(super) fn newest(&self, directory: Option<&Path>) -> Result<PrivateKey, SignerError> {
        match self.successor().read(directory)? {
            Some(key) => Ok(key),
            None => self.read_given(directory),
        }
    }

    /// The key of a certificate.
    pub(super) fn of(
        &self,
        directory: Option<&Path>,
        wanted: Fingerprint,
    ) -> Result<PrivateKey, SignerError> {
        if let Some(next) = self.successor().read(directory)?.filter(|key| key.fingerprint() == wanted) {
            return Ok(next);
        }
        let key = self.read_given(directory)?;
        if key.fingerprint() == wanted {
            return Ok(key);
        }
        let path = directory.unwrap_or(Path::new("")).join(&self.0);
        Err(SignerError::NotTheKey { path, source: None })
    }

    fn read_given(&self, directory: Option<&Path>) -> Result<PrivateKey, SignerError> {
        let path = directory.unwrap_or(Path::new("")).join(&self.0);
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        self.read(directory)?.ok_or_else(|| SignerError::Credential { path, source: missing() })
    }

    fn read(&self, directory: Option<&Path>) -> Result<Option<PrivateKey>, SignerError> {
        let directory = directory.ok_or_else(|| SignerError::NoCredentials(self.clone()))?;
        let path = directory.join(&self.0);
        let (bytes, mode) = match read_outside(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SignerError::Credential { path, source }),
        };
        // systemd may let a group in by an access list, which shows in the group's bits; never everybody.
        if mode & 0o007 != 0 {
            return Err(SignerError::Exposed { path });
        }
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        match PrivateKey::from_pem(text) {
            Ok(key) => Ok(Some(key)),
            Err(error) => Err(SignerError::NotTheKey { path, source: Some(error) }),
        }
    }
}
