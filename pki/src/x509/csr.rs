//! Certificate requests (PKCS#10): who holds which key, and nothing else.
//!
//! A request proves possession of its key and may say what its sender hopes to be called. The names in a certificate are
//! decided by the facade; a request that asks for a name or a power it cannot have is refused, not quietly corrected,
//! because it is either an attack or a client that would then fail in a stranger place.

use thiserror::Error;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA256WITHRSA,
    OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
    OID_SIG_ED25519, Oid,
};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use crate::x509::{DeviceId, Fingerprint, TrustDomain};

/// Longest request that is read: an RSA-4096 request with attributes has some 2 KiB.
const MAX_CSR_BYTES: usize = 8 * 1024;
const MAX_SUBJECT_BYTES: usize = 1024;
const MAX_EXTENSIONS: usize = 16;
/// The most that TLS libraries verify without becoming a way to burn time.
const MAX_RSA_BITS: usize = 4096;
const MIN_RSA_BITS: usize = 2048;

/// Why a certificate request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CsrError {
    /// Too long.
    #[error("the certificate request is longer than {MAX_CSR_BYTES} bytes")]
    TooLong,
    /// Not one DER certificate request.
    #[error("the body is not a certificate request (PKCS#10)")]
    Malformed,
    /// The subject is longer than any name.
    #[error("the certificate request's subject is longer than {MAX_SUBJECT_BYTES} bytes")]
    SubjectTooLong,
    /// A key that is weak or of a kind that devices do not use.
    #[error(
        "the certificate request's key is not accepted (use P-256, Ed25519, or RSA of 2048 to 4096 bits)"
    )]
    WeakKey,
    /// Signed with a broken or unknown algorithm.
    #[error("the certificate request's signature algorithm is not accepted (use SHA-256 or better)")]
    WeakSignature,
    /// The sender does not hold the key.
    #[error("the certificate request is not signed by its own key")]
    NotProven,
    /// An attribute or extension occurs twice, or cannot be read.
    #[error("the certificate request has repeated or unreadable attributes")]
    Attributes,
    /// RFC 7030 3.5: a server that cannot check it must refuse it.
    #[error("the certificate request carries a challengePassword, which is not used here")]
    ChallengePassword,
    /// It asks for the powers of a certificate authority.
    #[error("the certificate request asks to be a certificate authority")]
    Authority,
    /// It asks for a name that is not the device's.
    #[error("the certificate request asks for the name {0:?}, which is not this device's (leave names out)")]
    ForeignName(String),
}

/// A request whose sender holds the key; ready to be granted a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    algorithm: KeyAlgorithm,
    public_key: Vec<u8>,
    key: Fingerprint,
    subject: Subject,
    names: Vec<RequestedName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Empty,
    CommonName(String),
    /// With other parts, which no device of ours has.
    Longer(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyAlgorithm {
    P256,
    Ed25519,
    Rsa,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RequestedName {
    Uri(String),
    Dns(String),
    /// Of a kind that is never granted.
    Other(String),
}

impl Csr {
    /// Reads a request in DER, and checks the proof of possession.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLong);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info;
        if info.subject.as_raw().len() > MAX_SUBJECT_BYTES {
            return Err(CsrError::SubjectTooLong);
        }
        let algorithm = key_algorithm(&info.subject_pki)?;
        check_signature_algorithm(&request.signature_algorithm.algorithm)?;
        request.verify_signature().map_err(|_| CsrError::NotProven)?;
        Ok(Self {
            algorithm,
            public_key: info.subject_pki.subject_public_key.data.to_vec(),
            key: Fingerprint::of(info.subject_pki.raw),
            subject: subject(&info.subject),
            names: requested_names(&request)?,
        })
    }

    /// The SHA-256 of the public key (its `SubjectPublicKeyInfo`).
    pub fn key(&self) -> Fingerprint {
        self.key
    }

    /// Agrees if the subject is that of the certificate being renewed, or empty (RFC 7030 4.2.2).
    pub fn check_subject(&self, device: &DeviceId) -> Result<(), CsrError> {
        match &self.subject {
            Subject::Empty => Ok(()),
            Subject::CommonName(name) if name == device.as_str() => Ok(()),
            Subject::CommonName(name) | Subject::Longer(name) => {
                Err(CsrError::ForeignName(name.chars().take(120).collect()))
            }
        }
    }

    /// Agrees if every name that was asked for is one that `device` has anyway.
    pub fn check_names(&self, device: &DeviceId, domain: &TrustDomain) -> Result<(), CsrError> {
        let own = device.to_uri(domain);
        for name in &self.names {
            match name {
                RequestedName::Uri(uri) if *uri == own => {}
                RequestedName::Dns(dns) if dns == device.as_str() => {}
                RequestedName::Uri(text) | RequestedName::Dns(text) | RequestedName::Other(text) => {
                    return Err(CsrError::ForeignName(text.chars().take(120).collect()));
                }
            }
        }
        Ok(())
    }
}

impl rcgen::PublicKeyData for Csr {
    fn der_bytes(&self) -> &[u8] {
        &self.public_key
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.algorithm {
            KeyAlgorithm::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyAlgorithm::Ed25519 => &rcgen::PKCS_ED25519,
            KeyAlgorithm::Rsa => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

fn key_algorithm(key: &SubjectPublicKeyInfo<'_>) -> Result<KeyAlgorithm, CsrError> {
    let algorithm = &key.algorithm.algorithm;
    let bytes = &key.subject_public_key.data;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        // Uncompressed points only: the form that every TLS stack reads (RFC 5480 2.2).
        if curve == Some(OID_EC_P256) && bytes.len() == 65 && bytes.first() == Some(&4) {
            return Ok(KeyAlgorithm::P256);
        }
    } else if *algorithm == OID_SIG_ED25519 {
        if key.algorithm.parameters.is_none() && bytes.len() == 32 {
            return Ok(KeyAlgorithm::Ed25519);
        }
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        return check_rsa(key);
    }
    Err(CsrError::WeakKey)
}

fn check_rsa(key: &SubjectPublicKeyInfo<'_>) -> Result<KeyAlgorithm, CsrError> {
    let Ok(PublicKey::RSA(rsa)) = key.parsed() else {
        return Err(CsrError::WeakKey);
    };
    let modulus: Vec<u8> = rsa.modulus.iter().copied().skip_while(|byte| *byte == 0).collect();
    let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    let bits = modulus.len() * 8 - unused;
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|byte| byte & 1 == 1);
    // Exponents below 65537 keep breaking implementations of RSA; NIST SP 800-56B asks for at least that.
    let exponent = rsa.try_exponent().map_err(|_| CsrError::WeakKey)?;
    if (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits)
        && odd(&modulus)
        && exponent >= 65_537
        && exponent & 1 == 1
    {
        Ok(KeyAlgorithm::Rsa)
    } else {
        Err(CsrError::WeakKey)
    }
}

fn check_signature_algorithm(algorithm: &Oid<'_>) -> Result<(), CsrError> {
    // The verifier would take RSA with SHA-1 as well.
    let accepted = [
        OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
        OID_SIG_ED25519,
        OID_PKCS1_SHA256WITHRSA,
        OID_PKCS1_SHA384WITHRSA,
        OID_PKCS1_SHA512WITHRSA,
    ];
    if accepted.contains(algorithm) { Ok(()) } else { Err(CsrError::WeakSignature) }
}

fn subject(subject: &X509Name<'_>) -> Subject {
    let parts = subject.iter_attributes().count();
    let name = subject.iter_common_name().next();
    match (parts, name.and_then(|name| name.as_str().ok())) {
        (0, _) => Subject::Empty,
        (1, Some(name)) => Subject::CommonName(name.to_owned()),
        _ => Subject::Longer(subject.to_string()),
    }
}

fn requested_names(request: &X509CertificationRequest<'_>) -> Result<Vec<RequestedName>, CsrError> {
    let info = &request.certification_request_info;
    info.attributes_map().map_err(|_| CsrError::Attributes)?;
    let mut names = Vec::new();
    for attribute in info.iter_attributes() {
        match attribute.parsed_attribute() {
            ParsedCriAttribute::ChallengePassword(_) => return Err(CsrError::ChallengePassword),
            ParsedCriAttribute::ExtensionRequest(request) => {
                if request.extensions.len() > MAX_EXTENSIONS {
                    return Err(CsrError::Attributes);
                }
                let mut seen = Vec::new();
                for extension in &request.extensions {
                    if seen.contains(&&extension.oid) {
                        return Err(CsrError::Attributes);
                    }
                    seen.push(&extension.oid);
                    read_extension(extension.parsed_extension(), &mut names)?;
                }
            }
            // Unknown attributes ask for nothing that we grant.
            ParsedCriAttribute::UnsupportedAttribute => {}
        }
    }
    Ok(names)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "all other extensions are requests that are not granted, whatever they ask"
)]
fn read_extension(extension: &ParsedExtension<'_>, names: &mut Vec<RequestedName>) -> Result<(), CsrError> {
    match extension {
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => Err(CsrError::Authority),
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
            Err(CsrError::Authority)
        }
        ParsedExtension::SubjectAlternativeName(requested) => {
            names.extend(requested.general_names.iter().map(requested_name));
            Ok(())
        }
        ParsedExtension::ParseError { .. } => Err(CsrError::Attributes),
        _ => Ok(()),
    }
}

fn requested_name(name: &GeneralName<'_>) -> RequestedName {
    match name {
        GeneralName::URI(uri) => RequestedName::Uri((*uri).to_owned()),
        GeneralName::DNSName(dns) => RequestedName::Dns((*dns).to_owned()),
        GeneralName::RFC822Name(mail) => RequestedName::Other((*mail).to_owned()),
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => RequestedName::Other("of another kind".to_owned()),
    }
}

#[cfg(test)]
mod tests;
