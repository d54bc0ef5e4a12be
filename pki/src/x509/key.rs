//! The private key behind a certificate: P-256 or Ed25519, made where it is used.
//!
//! It signs requests and certificates, and leaves as PEM for the one file that holds it; it is never printed. What needs
//! a signature takes [`rcgen::SigningKey`], so that a key in a TPM can stand in.

use std::fmt;
use std::str::FromStr;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::x509::pem::{self, PemError};
use crate::x509::{DeviceId, Fingerprint};

/// Why a private key cannot be made, read or used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The system made no key.
    #[error("cannot make a private key")]
    Generate(#[source] rcgen::Error),
    /// Not the PEM of a private key.
    #[error("the text is not a private key")]
    Pem(#[source] PemError),
    /// Not a P-256 or Ed25519 key in PKCS#8.
    #[error("the private key is not a P-256 or Ed25519 key in PKCS#8")]
    Unsupported(#[source] rcgen::Error),
    /// A request could not be written.
    #[error("cannot write a certificate request")]
    Request(#[source] rcgen::Error),
}

/// The kind of a private key that is made here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on the curve P-256: what every TLS library and every TPM 2.0 knows.
    #[default]
    P256,
    /// Ed25519 (RFC 8410).
    Ed25519,
}

/// The text names no kind of key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a kind of key (p256 or ed25519)")]
pub struct KeyKindError(String);

impl FromStr for KeyKind {
    type Err = KeyKindError;

    fn from_str(text: &str) -> Result<Self, KeyKindError> {
        match text {
            "p256" => Ok(Self::P256),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(KeyKindError(text.chars().take(80).collect())),
        }
    }
}

/// A private key.
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// Makes a new P-256 key.
    pub fn generate() -> Result<Self, KeyError> {
        Self::generate_kind(KeyKind::P256)
    }

    /// Makes a new key of a kind.
    pub fn generate_kind(kind: KeyKind) -> Result<Self, KeyError> {
        let algorithm = match kind {
            KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
        };
        KeyPair::generate_for(algorithm).map(Self).map_err(KeyError::Generate)
    }

    /// The kind of the key.
    pub fn kind(&self) -> KeyKind {
        if self.0.algorithm() == &rcgen::PKCS_ED25519 { KeyKind::Ed25519 } else { KeyKind::P256 }
    }

    /// Reads a key in PKCS#8: P-256, or Ed25519.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = pem::private_key(text).map_err(KeyError::Pem)?;
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from(der.as_slice());
        let mut refusal = None;
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519] {
            match KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm) {
                Ok(key) => return Ok(Self(key)),
                Err(error) => refusal = Some(error),
            }
        }
        Err(KeyError::Unsupported(refusal.unwrap_or(rcgen::Error::UnsupportedSignatureAlgorithm)))
    }

    /// The key as PEM, for the file that keeps it and nothing else.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let der = Zeroizing::new(self.0.serialize_der());
        Zeroizing::new(pem::encode("PRIVATE KEY", &der))
    }

    /// The key as PKCS#8 in DER, for the TLS library of the same process.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// The SHA-256 of the public key (its `SubjectPublicKeyInfo`).
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0.subject_public_key_info())
    }

    /// A certificate request (PKCS#10, DER) that proves possession of the key and asks for nothing.
    pub fn request(&self) -> Result<Vec<u8>, KeyError> {
        request(self, None)
    }

    /// A certificate request of a device that has its name: the subject repeats it (RFC 7030 4.2.2).
    pub fn renewal_request(&self, device: &DeviceId) -> Result<Vec<u8>, KeyError> {
        request(self, Some(device))
    }
}

/// A certificate request (PKCS#10, DER) that proves possession of `key`, wherever that is. A device that has its name
/// already repeats it as the subject (RFC 7030 4.2.2).
pub fn request(key: &impl rcgen::SigningKey, device: Option<&DeviceId>) -> Result<Vec<u8>, KeyError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(device) = device {
        params.distinguished_name.push(DnType::CommonName, device.as_str());
    }
    let request = params.serialize_request(key).map_err(KeyError::Request)?;
    Ok(request.der().to_vec())
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.fingerprint())
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::Csr;

    #[test]
    fn keeps_its_identity_and_kind_through_pem() {
        for kind in [KeyKind::P256, KeyKind::Ed25519] {
            let key = PrivateKey::generate_kind(kind).unwrap();
            let read = PrivateKey::from_pem(&key.to_pem()).unwrap();
            assert_eq!((read.fingerprint(), read.kind()), (key.fingerprint(), kind));
            assert_eq!(Csr::parse(&key.request().unwrap()).unwrap().key(), key.fingerprint());
        }
    }

    #[test]
    fn names_its_kinds_and_rejects_others() {
        assert_eq!("p256".parse(), Ok(KeyKind::P256));
        assert_eq!("ed25519".parse(), Ok(KeyKind::Ed25519));
        for text in ["", "P256", "rsa", "ed448"] {
            assert!(text.parse::<KeyKind>().is_err(), "{text}");
        }
    }

    #[test]
    fn makes_requests_that_prove_possession() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(Csr::parse(&key.request().unwrap()).unwrap().key(), key.fingerprint());
        let renewal = key.renewal_request(&"pump-7".parse().unwrap()).unwrap();
        assert_eq!(Csr::parse(&renewal).unwrap().key(), key.fingerprint());
    }

    #[test]
    fn rejects_texts_that_are_not_its_kind_of_key() {
        assert!(matches!(PrivateKey::from_pem(""), Err(KeyError::Pem(_))));
        let junk = pem::encode("PRIVATE KEY", &[0x30; 40]);
        assert!(matches!(PrivateKey::from_pem(&junk), Err(KeyError::Unsupported(_))));
    }

    #[test]
    fn does_not_print_the_key() {
        let key = PrivateKey::generate().unwrap();
        assert_eq!(format!("{key:?}"), format!("PrivateKey({})", key.fingerprint()));
    }
}
