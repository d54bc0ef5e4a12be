//! What the device must know of certificates it did not make: whose, until when, issued by whom.

use jiff::Timestamp;
use pki::x509::{DeviceId, Fingerprint, TrustDomain};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// Why a certificate is not one of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CertificateError {
    /// Not DER, or not a certificate.
    #[error("it cannot be read")]
    Malformed,
    /// Its dates cannot be read.
    #[error("its dates cannot be read")]
    Dates,
    /// Not exactly one name of the form `spiffe://<trust-domain>/device/<id>`.
    #[error("it does not have exactly one device name")]
    Name,
}

/// A certificate of a device, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCertificate {
    device: DeviceId,
    domain: TrustDomain,
    not_before: Timestamp,
    not_after: Timestamp,
    fingerprint: Fingerprint,
    public_key: Fingerprint,
}

impl DeviceCertificate {
    /// Reads a certificate; whether it is genuine is for TLS to say.
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let (domain, device) = name(&certificate)?;
        let time = |seconds| Timestamp::from_second(seconds).map_err(|_| CertificateError::Dates);
        let validity = certificate.validity();
        Ok(Self {
            device,
            domain,
            not_before: time(validity.not_before.timestamp())?,
            not_after: time(validity.not_after.timestamp())?,
            fingerprint: Fingerprint::of(der),
            public_key: Fingerprint::of(certificate.public_key().raw),
        })
    }

    /// The device.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The trust domain of its name.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The first moment it is valid.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// The last moment it is valid.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// The SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether it was issued for this key.
    pub fn is_for(&self, key: &rcgen::KeyPair) -> bool {
        use rcgen::PublicKeyData as _;
        Fingerprint::of(&key.subject_public_key_info()) == self.public_key
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Malformed),
    }
}

/// SPIFFE X509-SVID, 2: exactly one URI name.
fn name(certificate: &X509Certificate<'_>) -> Result<(TrustDomain, DeviceId), CertificateError> {
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .ok_or(CertificateError::Name)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(CertificateError::Name);
    };
    let authority = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split('/').next());
    let domain: TrustDomain = authority
        .and_then(|authority| authority.parse().ok())
        .ok_or(CertificateError::Name)?;
    let device = DeviceId::from_uri(uri, &domain).ok_or(CertificateError::Name)?;
    Ok((domain, device))
}

/// Who issued a certificate, for people.
pub fn issuer(der: &[u8]) -> Option<String> {
    parse(der)
        .ok()
        .map(|certificate| certificate.issuer().to_string())
}

/// The certificates between a leaf and a root, in order, out of a heap of them.
pub fn intermediates(
    leaf: &CertificateDer<'_>,
    root: &CertificateDer<'_>,
    heap: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    let mut path: Vec<CertificateDer<'static>> = Vec::new();
    let mut below: &[u8] = leaf;
    while path.len() < MAX_INTERMEDIATES {
        let next = heap.iter().find(|candidate| {
            *candidate != root && !path.contains(candidate) && candidate.as_ref() != below && issued(candidate, below)
        });
        let Some(next) = next else { break };
        path.push(next.clone());
        below = next;
    }
    path
}

fn issued(issuer: &[u8], subject: &[u8]) -> bool {
    let (Ok(issuer), Ok(subject)) = (parse(issuer), parse(subject)) else {
        return false;
    };
    issuer.is_ca() && issuer.subject().as_raw() == subject.issuer().as_raw()
}

const MAX_INTERMEDIATES: usize = 3;
