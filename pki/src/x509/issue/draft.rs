//! One certificate in the making: serial number, dates and subject, the same way for each kind.

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, PublicKeyData,
    SerialNumber, SigningKey,
};

use super::{IssueError, Issued};
use crate::x509::{Fingerprint, Serial};

/// A device whose clock is a little behind must not find its new certificate not yet valid.
const BACKDATE: SignedDuration = SignedDuration::from_secs(60);
/// RFC 7093 2, method 1: the first 160 bits of the SHA-256 of the key.
const KEY_IDENTIFIER_BYTES: u8 = 20;
/// RFC 5280 4.2.1.2.
const SUBJECT_KEY_IDENTIFIER: &[u64] = &[2, 5, 29, 14];
/// RFC 5280 4.2.1.9.
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];

/// A certificate in the making.
pub(super) struct Draft {
    subject: String,
    pub(super) params: CertificateParams,
    serial: Serial,
    not_before: Timestamp,
    not_after: Timestamp,
}

impl Draft {
    pub(super) fn new(subject: String, now: Timestamp, lifetime: SignedDuration) -> Result<Self, IssueError> {
        let out_of_range = || IssueError::Lifetime(lifetime);
        if lifetime <= SignedDuration::ZERO {
            return Err(out_of_range());
        }
        // X.509 knows whole seconds.
        let now = Timestamp::from_second(now.as_second()).map_err(|_| out_of_range())?;
        let serial = random_serial()?;
        let mut distinguished_name = DistinguishedName::new();
        if !subject.is_empty() {
            distinguished_name.push(DnType::CommonName, subject.as_str());
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name;
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.use_authority_key_identifier_extension = true;
        Ok(Self {
            subject,
            params,
            serial,
            not_before: now.checked_sub(BACKDATE).map_err(|_| out_of_range())?,
            not_after: now.checked_add(lifetime).map_err(|_| out_of_range())?,
        })
    }

    /// Nothing outlives its issuer: a chain would break in the middle of a leaf's life.
    pub(super) fn end_by(&mut self, limit: Timestamp) {
        self.not_after = self.not_after.min(limit);
    }

    pub(super) fn ia5(&self, text: &str) -> Result<rcgen::string::Ia5String, IssueError> {
        text.try_into().map_err(|source| self.failed(source))
    }

    pub(super) fn issue(
        mut self,
        key: &impl PublicKeyData,
        issuer: &Issuer<'_, impl SigningKey>,
    ) -> Result<Issued, IssueError> {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let seconds = |time: Timestamp| {
            u64::try_from(time.as_second()).map_err(|_| IssueError::Lifetime(SignedDuration::ZERO))
        };
        self.params.not_before = epoch + std::time::Duration::from_secs(seconds(self.not_before)?);
        self.params.not_after = epoch + std::time::Duration::from_secs(seconds(self.not_after)?);
        self.describe_key(key);
        let certificate = self.params.signed_by(key, issuer).map_err(|source| self.failed(source))?;
        Ok(Issued {
            der: certificate.der().to_vec(),
            serial: self.serial,
            not_before: self.not_before,
            not_after: self.not_after,
        })
    }

    fn describe_key(&mut self, key: &impl PublicKeyData) {
        let hash = Fingerprint::of(key.der_bytes());
        let identifier: Vec<u8> =
            hash.as_bytes().iter().copied().take(usize::from(KEY_IDENTIFIER_BYTES)).collect();
        if self.params.is_ca == IsCa::NoCa {
            // RFC 5280 4.2.1.2: a leaf should have one too; rcgen writes it for authorities only. An OCTET STRING.
            let content = [vec![0x04, KEY_IDENTIFIER_BYTES], identifier].concat();
            let key_extension = CustomExtension::from_oid_content(SUBJECT_KEY_IDENTIFIER, content);
            // An empty SEQUENCE: `cA` is FALSE by default, and DER forbids to write a default (X.690 11.5), as rcgen does.
            let mut no_authority = CustomExtension::from_oid_content(BASIC_CONSTRAINTS, vec![0x30, 0x00]);
            no_authority.set_criticality(true);
            self.params.custom_extensions.extend([no_authority, key_extension]);
        } else {
            self.params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
        }
    }

    fn failed(&self, source: rcgen::Error) -> IssueError {
        IssueError::Write { subject: self.subject.clone(), source }
    }
}

/// 126 random bits, positive, and never with a leading zero octet.
fn random_serial() -> Result<Serial, IssueError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| IssueError::NoRandomness)?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    Serial::from_bytes(&bytes).map_err(|_| IssueError::NoRandomness)
}
