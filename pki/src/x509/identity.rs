//! Who a client certificate speaks for.
//!
//! TLS verifies the chain, the signature and the dates; it checks nothing of what makes a leaf an X509-SVID
//! (SECURITY-NOTES 3.2). An [`Identity`] exists only where all of that has been checked here. Whether the device is
//! still welcome, and whether the certificate has expired since the handshake, is asked again on every request.

use jiff::Timestamp;
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

use crate::x509::{DeviceId, Fingerprint, Serial, TrustDomain};

/// No certificate of a device is longer; ours have some 700 bytes.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// Why a certificate gives no device identity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// Not one DER certificate of version 3.
    #[error("the client certificate cannot be read")]
    Malformed,
    /// An extension occurs twice or cannot be read.
    #[error("the client certificate has a repeated or unreadable extension")]
    Extensions,
    /// It is, or acts as, a certificate authority.
    #[error("the client certificate is a certificate authority's")]
    Authority,
    /// Its key may not sign a handshake.
    #[error("the client certificate's key usage does not allow authentication")]
    KeyUsage,
    /// It is for something else than a TLS client.
    #[error("the client certificate is not for TLS clients")]
    ExtendedKeyUsage,
    /// No URI, or more than one.
    #[error("the client certificate has {0} URI names instead of one")]
    UriCount(usize),
    /// The URI is not that of a device here.
    #[error("the client certificate's name {uri:?} is not a device of {domain}")]
    Foreign {
        /// The start of the URI.
        uri: String,
        /// The domain that was expected.
        domain: TrustDomain,
    },
}

/// A device as its certificate names it. The chain is for TLS to verify; everything in the leaf was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    id: DeviceId,
    serial: Serial,
    fingerprint: Fingerprint,
    key: Fingerprint,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Identity {
    /// Reads the identity out of a certificate in DER.
    pub fn from_certificate(der: &[u8], domain: &TrustDomain) -> Result<Self, IdentityError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(IdentityError::Malformed);
        }
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Malformed)?;
        if !rest.is_empty() || certificate.version() != X509Version::V3 {
            return Err(IdentityError::Malformed);
        }
        check_purpose(&certificate)?;
        let serial = Serial::from_bytes(certificate.raw_serial()).map_err(|_| IdentityError::Malformed)?;
        let time = |seconds| Timestamp::from_second(seconds).map_err(|_| IdentityError::Malformed);
        Ok(Self {
            id: device_id(&certificate, domain)?,
            serial,
            fingerprint: Fingerprint::of(der),
            key: Fingerprint::of(certificate.public_key().raw),
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
        })
    }

    /// The device.
    pub fn id(&self) -> &DeviceId {
        &self.id
    }

    /// The serial number of the certificate.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }

    /// The SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The SHA-256 of the public key (its `SubjectPublicKeyInfo`).
    pub fn key(&self) -> Fingerprint {
        self.key
    }

    /// The first moment at which the certificate is valid.
    pub fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// The last moment at which the certificate is valid.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether the certificate is valid at `now` (RFC 5280 4.1.2.5: both ends included).
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// What the certificate may be used for (SPIFFE X509-SVID 4.1, 4.3, 4.4, 5.2).
fn check_purpose(certificate: &X509Certificate<'_>) -> Result<(), IdentityError> {
    certificate.tbs_certificate.extensions_map().map_err(|_| IdentityError::Extensions)?;
    let constraints = certificate.basic_constraints().map_err(|_| IdentityError::Extensions)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(IdentityError::Authority);
    }
    let usage =
        certificate.key_usage().map_err(|_| IdentityError::Extensions)?.ok_or(IdentityError::KeyUsage)?;
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(IdentityError::Authority);
    }
    if !usage.value.digital_signature() {
        return Err(IdentityError::KeyUsage);
    }
    let extended = certificate.extended_key_usage().map_err(|_| IdentityError::Extensions)?;
    if extended.is_some_and(|extended| !extended.value.client_auth) {
        return Err(IdentityError::ExtendedKeyUsage);
    }
    Ok(())
}

fn device_id(certificate: &X509Certificate<'_>, domain: &TrustDomain) -> Result<DeviceId, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::Extensions)?
        .ok_or(IdentityError::UriCount(0))?;
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A name that cannot be read could be the second URI.
            GeneralName::Invalid(..) => return Err(IdentityError::Extensions),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    let [uri] = uris.as_slice() else {
        return Err(IdentityError::UriCount(uris.len()));
    };
    DeviceId::from_uri(uri, domain).ok_or_else(|| IdentityError::Foreign {
        uri: uri.chars().take(120).collect(),
        domain: domain.clone(),
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    };

    use super::*;

    const URI: &str = "spiffe://drayage.internal/device/pump-7";

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn params() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(URI)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn identity(params: &CertificateParams) -> Result<Identity, IdentityError> {
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Identity::from_certificate(certificate.der(), &TrustDomain::default())
    }

    #[test]
    fn reads_the_device_of_a_leaf_of_the_profile() {
        let identity = identity(&params()).unwrap();
        assert_eq!(identity.id().as_str(), "pump-7");
        assert!(identity.is_valid_at("2026-11-20T00:00:00Z".parse().unwrap()));
        assert!(!identity.is_valid_at("1970-01-01T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn rejects_leaves_without_exactly_one_uri() {
        let mut none = params();
        none.subject_alt_names = vec![SanType::DnsName("pump-7".try_into().unwrap())];
        assert_eq!(identity(&none), Err(IdentityError::UriCount(0)));
        none.subject_alt_names.clear();
        assert_eq!(identity(&none), Err(IdentityError::UriCount(0)));
        let mut two = params();
        two.subject_alt_names.push(uri(URI));
        assert_eq!(identity(&two), Err(IdentityError::UriCount(2)));
        two.subject_alt_names[1] = uri("https://example.com");
        assert_eq!(identity(&two), Err(IdentityError::UriCount(2)));
    }

    #[test]
    fn rejects_names_of_another_domain_or_kind() {
        for text in [
            "spiffe://other/device/pump-7",
            "spiffe://drayage.internal/",
            "spiffe://Drayage.internal/device/a",
        ] {
            let mut params = params();
            params.subject_alt_names = vec![uri(text)];
            assert!(matches!(identity(&params), Err(IdentityError::Foreign { .. })), "{text}");
        }
    }

    #[test]
    fn rejects_authorities_as_devices() {
        let mut ca = params();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        assert_eq!(identity(&ca), Err(IdentityError::Authority));
        for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            let mut signer = params();
            signer.key_usages.push(usage);
            assert_eq!(identity(&signer), Err(IdentityError::Authority));
        }
    }

    #[test]
    fn rejects_leaves_for_another_purpose() {
        let mut server = params();
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        assert_eq!(identity(&server), Err(IdentityError::ExtendedKeyUsage));
        let mut agreement = params();
        agreement.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        assert_eq!(identity(&agreement), Err(IdentityError::KeyUsage));
        agreement.key_usages.clear();
        assert_eq!(identity(&agreement), Err(IdentityError::KeyUsage));
    }

    #[test]
    fn rejects_bytes_that_are_not_one_certificate() {
        let certificate = params().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let domain = TrustDomain::default();
        let mut longer = certificate.der().to_vec();
        longer.push(0);
        for bytes in [&b""[..], b"junk", &longer, &longer[..100], &vec![0x30; 20_000]] {
            assert_eq!(Identity::from_certificate(bytes, &domain), Err(IdentityError::Malformed));
        }
    }
}
