//! The certificate authority: a root that only signs issuing authorities, and an issuing one that signs leaves.
//!
//! The profile is that of SECURITY-NOTES 3.2 (RFC 5280 with SPIFFE's X509-SVID on top). Every name in a certificate is
//! given by the caller; of a request only the key is used. There are no name constraints on URIs, because webpki
//! refuses chains that have them.

mod draft;

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType, SigningKey};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use self::draft::Draft;
use crate::x509::key::{KeyError, PrivateKey};
use crate::x509::{Csr, CsrError, DeviceId, Fingerprint, Serial, ServerName, TrustDomain, pem};

/// How long the certificate of a device is valid unless the operator says otherwise.
pub const DEVICE_LIFETIME: SignedDuration = days(30);
const SERVER_LIFETIME: SignedDuration = days(90);
const ISSUING_LIFETIME: SignedDuration = days(3650);
const ROOT_LIFETIME: SignedDuration = days(7300);
/// RFC 5280 appendix A.1, ub-common-name.
const MAX_COMMON_NAME: usize = 64;

const fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(days * 24)
}

/// Why no certificate was issued, or an authority cannot be used.
#[derive(Debug, Error)]
pub enum IssueError {
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a certificate")]
    NoRandomness,
    /// The request asks for what it cannot have.
    #[error("the certificate request is refused")]
    Request(#[source] CsrError),
    /// A certificate could not be written.
    #[error("cannot write the certificate of {subject}")]
    Write {
        /// Whose certificate.
        subject: String,
        /// What happened.
        #[source]
        source: rcgen::Error,
    },
    /// The issuing certificate is not valid now: usually the clock is wrong.
    #[error("the issuing authority is valid from {not_before} to {not_after}, and it is {now}")]
    AuthorityNotValid {
        /// Its first moment.
        not_before: Timestamp,
        /// Its last moment.
        not_after: Timestamp,
        /// The time that was given.
        now: Timestamp,
    },
    /// A lifetime that is not positive, or ends beyond the calendar.
    #[error("a certificate cannot live for {0:?} from now")]
    Lifetime(SignedDuration),
    /// A server certificate without a name.
    #[error("a server certificate needs at least one name")]
    NoName,
    /// The certificates are not those of an authority.
    #[error("the {0} certificate is not that of a certificate authority")]
    NotAnAuthority(&'static str),
    /// The key and the certificate are not of one pair.
    #[error("the key is not that of the {0} certificate")]
    KeyMismatch(&'static str),
    /// The issuing certificate was signed by another root.
    #[error("the issuing certificate is not signed by the root")]
    ChainMismatch,
    /// A private key cannot be read or used.
    #[error("a private key cannot be used")]
    Key(#[source] KeyError),
}

/// A certificate that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate in DER.
    pub der: Vec<u8>,
    /// Its serial number.
    pub serial: Serial,
    /// Its first valid moment.
    pub not_before: Timestamp,
    /// Its last valid moment.
    pub not_after: Timestamp,
}

impl Issued {
    /// The SHA-256 of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.der)
    }

    /// The certificate as PEM.
    pub fn pem(&self) -> String {
        pem::certificate(&self.der)
    }
}

/// The facade's certificate authority, ready to issue.
pub struct Authority {
    root: Vec<u8>,
    issuing: Vec<u8>,
    issuer: Issuer<'static, PrivateKey>,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority(root {})", Fingerprint::of(&self.root))
    }
}

impl Authority {
    /// Makes the certificate of a new root.
    pub fn new_root(key: &PrivateKey, now: Timestamp) -> Result<Issued, IssueError> {
        let name = authority_name("Root")?;
        let mut draft = Draft::new(name, now, ROOT_LIFETIME)?;
        // No limit to the length of a path: between a device's root and the present one there may be several.
        draft.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        draft.params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // RFC 5280 4.2.1.1: the root has no authority key identifier but its own.
        draft.params.use_authority_key_identifier_extension = false;
        let issuer = Issuer::new(draft.params.clone(), key);
        draft.issue(key, &issuer)
    }

    /// Makes the certificate of a new issuing authority below a root.
    pub fn new_issuing(
        root: &[u8],
        root_key: &PrivateKey,
        key: &PrivateKey,
        now: Timestamp,
    ) -> Result<Issued, IssueError> {
        let parsed = parse_authority(root, "root")?;
        check_key(&parsed, root_key, "root")?;
        let mut draft = Draft::new(authority_name("Issuing")?, now, ISSUING_LIFETIME)?;
        draft.end_by(timestamp(parsed.validity().not_after.timestamp(), "root")?);
        draft.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        draft.params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = issuer(root, root_key, "root")?;
        draft.issue(key, &issuer)
    }

    /// Has a root vouch for the one that follows it (RFC 4210 4.4, "new with old"): devices that know only the old root
    /// then find a way to what the new one issues.
    pub fn link(
        old: &[u8],
        old_key: &PrivateKey,
        new: &[u8],
        new_key: &PrivateKey,
        now: Timestamp,
    ) -> Result<Issued, IssueError> {
        let (parsed_old, parsed_new) = (
            parse_authority(old, "old root")?,
            parse_authority(new, "new root")?,
        );
        check_key(&parsed_old, old_key, "old root")?;
        check_key(&parsed_new, new_key, "new root")?;
        let refused = || IssueError::NotAnAuthority("new root");
        let name = parsed_new
            .subject()
            .iter_common_name()
            .next()
            .ok_or_else(refused)?;
        let name = name.as_str().map_err(|_| refused())?.to_owned();
        let mut draft = Draft::new(name, now, ROOT_LIFETIME)?;
        draft.end_by(timestamp(
            parsed_old.validity().not_after.timestamp(),
            "old root",
        )?);
        draft.params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        draft.params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        draft.issue(new_key, &issuer(old, old_key, "old root")?)
    }

    /// Puts an authority together, and checks that its parts belong together.
    pub fn load(root: Vec<u8>, issuing: Vec<u8>, issuing_key: PrivateKey) -> Result<Self, IssueError> {
        let (not_before, not_after) = {
            let parsed_root = parse_authority(&root, "root")?;
            let parsed = parse_authority(&issuing, "issuing")?;
            check_key(&parsed, &issuing_key, "issuing")?;
            if parsed.issuer() != parsed_root.subject()
                || parsed.verify_signature(Some(parsed_root.public_key())).is_err()
            {
                return Err(IssueError::ChainMismatch);
            }
            (
                timestamp(parsed.validity().not_before.timestamp(), "issuing")?,
                timestamp(parsed.validity().not_after.timestamp(), "issuing")?,
            )
        };
        Ok(Self {
            issuer: issuer(&issuing, issuing_key, "issuing")?,
            root,
            issuing,
            not_before,
            not_after,
        })
    }

    /// The root certificate in DER.
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// The issuing certificate in DER.
    pub fn issuing(&self) -> &[u8] {
        &self.issuing
    }

    /// Whether the authority can issue at `now`; if not, the clock is wrong, or its time is over.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Grants a device its certificate: the key of the request, the name that the caller decided.
    pub fn issue_device(
        &self,
        csr: &Csr,
        device: &DeviceId,
        domain: &TrustDomain,
        now: Timestamp,
        lifetime: SignedDuration,
    ) -> Result<Issued, IssueError> {
        csr.check_names(device, domain).map_err(IssueError::Request)?;
        let mut draft = self.leaf(Some(device.as_str()), now, lifetime)?;
        draft.params.subject_alt_names = vec![SanType::URI(draft.ia5(&device.to_uri(domain))?)];
        // SPIFFE would have serverAuth beside clientAuth. A device serves nothing, and this CA also vouches for the
        // facade: with serverAuth only the name check would stand between a stolen device key and a false facade.
        draft.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        draft.issue(csr, &self.issuer)
    }

    /// Grants the facade its own server certificate.
    pub fn issue_server(
        &self,
        names: &[ServerName],
        key: &PrivateKey,
        now: Timestamp,
    ) -> Result<Issued, IssueError> {
        let first = names.first().ok_or(IssueError::NoName)?.to_string();
        let common_name = (first.len() <= MAX_COMMON_NAME).then_some(first.as_str());
        let mut draft = self.leaf(common_name, now, SERVER_LIFETIME)?;
        for name in names {
            let name = match name {
                ServerName::Dns(name) => SanType::DnsName(draft.ia5(name)?),
                ServerName::Ip(address) => SanType::IpAddress(*address),
            };
            draft.params.subject_alt_names.push(name);
        }
        draft.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        draft.issue(key, &self.issuer)
    }

    fn leaf(
        &self,
        name: Option<&str>,
        now: Timestamp,
        lifetime: SignedDuration,
    ) -> Result<Draft, IssueError> {
        if !self.is_valid_at(now) {
            return Err(IssueError::AuthorityNotValid {
                not_before: self.not_before,
                not_after: self.not_after,
                now,
            });
        }
        let mut draft = Draft::new(name.unwrap_or_default().to_owned(), now, lifetime)?;
        draft.end_by(self.not_after);
        draft.params.is_ca = IsCa::NoCa;
        draft.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Ok(draft)
    }
}

/// A name that tells one authority from its successor, so that a chain is never built through the wrong one.
fn authority_name(kind: &str) -> Result<String, IssueError> {
    let mut tail = [0; 4];
    getrandom::fill(&mut tail).map_err(|_| IssueError::NoRandomness)?;
    Ok(format!(
        "Drayage {kind} CA {}",
        data_encoding::HEXLOWER.encode(&tail)
    ))
}

fn parse_authority<'a>(der: &'a [u8], which: &'static str) -> Result<X509Certificate<'a>, IssueError> {
    let refused = || IssueError::NotAnAuthority(which);
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| refused())?;
    let usage = certificate.key_usage().map_err(|_| refused())?;
    let signs = usage.is_some_and(|usage| usage.value.key_cert_sign());
    if rest.is_empty() && certificate.is_ca() && signs {
        Ok(certificate)
    } else {
        Err(refused())
    }
}

fn check_key(
    certificate: &X509Certificate<'_>,
    key: &PrivateKey,
    which: &'static str,
) -> Result<(), IssueError> {
    if Fingerprint::of(certificate.public_key().raw) == key.fingerprint() {
        Ok(())
    } else {
        Err(IssueError::KeyMismatch(which))
    }
}

fn issuer<K: SigningKey>(der: &[u8], key: K, which: &'static str) -> Result<Issuer<'static, K>, IssueError> {
    let der = rustls_pki_types::CertificateDer::from(der);
    Issuer::from_ca_cert_der(&der, key).map_err(|source| IssueError::Write {
        subject: which.to_owned(),
        source,
    })
}

fn timestamp(seconds: i64, which: &'static str) -> Result<Timestamp, IssueError> {
    Timestamp::from_second(seconds).map_err(|_| IssueError::NotAnAuthority(which))
}

#[cfg(test)]
mod tests;
