//! Certificates the facade would never have issued: of another CA, out of date, or signed with its stolen key.

use std::fs;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use tempfile::TempDir;

use crate::device::Identity;
use crate::facade::Facade;
use crate::process::write;

/// Something that signs device certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    issuer_pem: String,
    facade_ca: String,
}

/// Files of an identity, gone when dropped.
pub struct Forged {
    directory: TempDir,
}

impl Forged {
    /// The files.
    pub fn identity(&self) -> Identity {
        Identity::in_directory(self.directory.path())
    }
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub enum Validity {
    /// From an hour ago until in an hour.
    Now,
    /// Until an hour ago.
    Past,
    /// From in an hour.
    Future,
}

impl Authority {
    /// A CA the facade has never heard of.
    pub fn foreign(facade: &Facade) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("make a key");
        let mut params = CertificateParams::new(Vec::new()).expect("certificate parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).expect("sign a certificate");
        Self {
            issuer_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
            facade_ca: fs::read_to_string(facade.ca_file()).expect("read the facade's CA"),
        }
    }

    /// The facade's own issuing CA, its key taken from the data directory.
    pub fn of(facade: &Facade) -> Self {
        let read = |name: &str| {
            let path = facade.data_dir().join("ca").join(name);
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
        };
        let issuer_pem = read("issuing.pem");
        let key = KeyPair::from_pem(&read("issuing.key")).expect("read the issuing key");
        let issuer = Issuer::from_ca_cert_pem(&issuer_pem, key).expect("read the issuing certificate");
        Self { issuer, issuer_pem, facade_ca: read("root.pem") }
    }

    /// A client certificate for `device`, with the URI the facade reads the device from.
    pub fn certificate(&self, device: &str, validity: Validity) -> Forged {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("make a key");
        let mut params = CertificateParams::new(Vec::new()).expect("certificate parameters");
        let uri = format!("spiffe://drayage.internal/device/{device}");
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(uri).expect("an ASCII URI"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let (from, until) = validity.hours();
        params.not_before = moment(from).into();
        params.not_after = moment(until).into();
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        let forged = Forged { directory: TempDir::new().expect("make a directory") };
        let files = forged.identity();
        write(&files.key, key.serialize_pem());
        write(&files.cert, format!("{}{}", certificate.pem(), self.issuer_pem));
        write(&files.ca, &self.facade_ca);
        forged
    }
}

impl Validity {
    fn hours(self) -> (i64, i64) {
        match self {
            Self::Now => (-1, 1),
            Self::Past => (-3, -1),
            Self::Future => (1, 3),
        }
    }
}

/// The time in so many hours; rcgen's own type is made from it.
fn moment(hours: i64) -> SystemTime {
    (Timestamp::now() + SignedDuration::from_hours(hours)).into()
}
