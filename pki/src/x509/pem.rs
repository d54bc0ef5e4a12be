//! The text form of certificates and private keys (RFC 7468). Text only: files are the programs' matter.

use data_encoding::BASE64;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use thiserror::Error;
use zeroize::Zeroizing;

const LINE: usize = 64;
/// No chain is longer; a file with more is not a chain.
const MAX_CERTIFICATES: usize = 32;
/// Everything of an Ed25519 key in PKCS#8 (RFC 8410 7) before its seed.
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why a PEM text is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PemError {
    /// No certificate in it.
    #[error("the text holds no PEM certificate")]
    NoCertificate,
    /// More certificates than a chain has.
    #[error("the text holds more than {MAX_CERTIFICATES} certificates")]
    TooMany,
    /// A section that cannot be read.
    #[error("the text is not readable PEM")]
    Malformed,
    /// No private key in it.
    #[error("the text holds no PEM private key (PKCS#8)")]
    NoKey,
    /// A private key of another kind.
    #[error("the private key is not an Ed25519 key in PKCS#8")]
    NotEd25519,
}

/// Writes one certificate.
pub fn certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}

/// Reads all certificates of a text, in their order; at least one.
pub fn certificates(text: &str) -> Result<Vec<Vec<u8>>, PemError> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        if certificates.len() == MAX_CERTIFICATES {
            return Err(PemError::TooMany);
        }
        certificates.push(certificate.map_err(|_| PemError::Malformed)?.to_vec());
    }
    if certificates.is_empty() {
        return Err(PemError::NoCertificate);
    }
    Ok(certificates)
}

/// Writes an Ed25519 key as PKCS#8, which `openssl pkey` reads.
pub fn ed25519_key(seed: &[u8; 32]) -> Zeroizing<String> {
    let mut der = Zeroizing::new(ED25519_PKCS8.to_vec());
    der.extend_from_slice(seed);
    Zeroizing::new(encode("PRIVATE KEY", &der))
}

/// Reads the seed of an Ed25519 key.
pub fn ed25519_seed(text: &str) -> Result<Zeroizing<[u8; 32]>, PemError> {
    let der = private_key(text)?;
    let seed = der.strip_prefix(&ED25519_PKCS8).ok_or(PemError::NotEd25519)?;
    seed.try_into().map(Zeroizing::new).map_err(|_| PemError::NotEd25519)
}

/// Reads the first private key of a text, as PKCS#8 in DER.
pub(crate) fn private_key(text: &str) -> Result<Zeroizing<Vec<u8>>, PemError> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| PemError::NoKey)?;
    Ok(Zeroizing::new(key.secret_pkcs8_der().to_vec()))
}

/// Writes one section; the only copies of `der` are wiped by the caller.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = Zeroizing::new(BASE64.encode(der));
    let mut text = String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 40);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at_checked(LINE).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = next;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_the_certificates_it_writes() {
        let (first, second) = (vec![1; 100], vec![2; 48]);
        let text = format!("comment\n{}{}", certificate(&first), certificate(&second));
        assert_eq!(certificates(&text).unwrap(), [first, second]);
    }

    #[test]
    fn reads_back_the_ed25519_key_it_writes() {
        let text = ed25519_key(&[7; 32]);
        assert_eq!(*ed25519_seed(&text).unwrap(), [7; 32]);
    }

    #[test]
    fn rejects_texts_without_what_was_asked_for() {
        assert_eq!(certificates(""), Err(PemError::NoCertificate));
        assert_eq!(certificates(&ed25519_key(&[7; 32])), Err(PemError::NoCertificate));
        assert_eq!(certificates(&certificate(&[1]).repeat(33)), Err(PemError::TooMany));
        let broken = certificate(&[1; 60]).replace("AQEB", "A!EB");
        assert_eq!(certificates(&broken), Err(PemError::Malformed));
        assert_eq!(ed25519_seed(&certificate(&[1])), Err(PemError::NoKey));
        assert_eq!(ed25519_seed(&encode("PRIVATE KEY", &[0x30; 48])), Err(PemError::NotEd25519));
    }
}
