//! Who this device is: its key, its certificate, and the facade it belongs to.
//!
//! The key never leaves the device; where on it that is, [`keys`] knows. Enrollment and renewal each prepare everything beside the identity in use and
//! move it into place file by file in a fixed order; [`Identity::load`] first finishes a move that a crash cut short, so
//! a device either has a whole identity or none.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use pki::wire::FacadeUrl;
use pki::x509::{DeviceId, TrustDomain};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::clock::Clock;
use crate::config::Proxy;
use crate::facade_client::{ClientError, Credentials, FacadeClient, TlsSettings};
use crate::state_file::{StateDir, StateError};

pub mod anchors;
pub mod certificate;
pub mod enroll;
mod est;
pub mod keys;
pub mod renew;

use keys::{Keys, Signer, SignerError};

/// The private key, or the name of one that is kept elsewhere.
pub const KEY_FILE: &str = "identity/key.pem";
/// The certificate, and the one it was issued with.
pub const CERTIFICATE_FILE: &str = "identity/cert.pem";
/// What the facade's certificate must end in.
pub const ANCHORS_FILE: &str = "identity/ca.pem";
/// Which facade; written last, so that where it is, everything is.
pub const FACADE_FILE: &str = "facade.json";
/// There when the facade refused the certificate as such.
pub const DISOWNED_FILE: &str = "identity/disowned";

/// Why there is no usable identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The device was never enrolled.
    #[error("this device is not enrolled; run: device-agent enroll TOKEN")]
    NotEnrolled,
    /// It is enrolled already.
    #[error("this device is enrolled as {device} with {facade}; add --again to replace that identity")]
    AlreadyEnrolled {
        /// As whom.
        device: DeviceId,
        /// Where.
        facade: FacadeUrl,
    },
    /// The certificate is out of its time beyond any renewal.
    #[error("the certificate of {device} ended at {ended} and cannot be renewed; enroll the device again")]
    Ended {
        /// Whose.
        device: DeviceId,
        /// When.
        ended: Timestamp,
    },
    /// A file of the identity is not there or not readable.
    #[error("{file} is missing or damaged; enroll the device again: device-agent enroll --again TOKEN")]
    Damaged {
        /// Which.
        file: &'static str,
    },
    /// Key and certificate are not of one pair.
    #[error("identity/key.pem does not belong to identity/cert.pem; enroll the device again")]
    Mismatch,
    /// The certificate is not one of a device.
    #[error("the certificate cannot be used; enroll the device again: device-agent enroll --again TOKEN")]
    Certificate(#[source] pki::x509::IdentityError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The facade could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Nobody there has the certificate that the token pins.
    #[error(
        "what answers at {facade} is not the facade of this token: it has no CA certificate with fingerprint {pinned}. \
         The secret was not sent"
    )]
    WrongFacade {
        /// Where we asked.
        facade: FacadeUrl,
        /// What the token pins.
        pinned: pki::x509::Fingerprint,
    },
    /// Root metadata other than the token pins.
    #[error("{file} of the facade is not the one that the token pins")]
    WrongRoot {
        /// Which.
        file: String,
    },
    /// The facade refused the token.
    #[error("the facade refused the token: it is wrong, used up, expired or revoked; ask for a new one")]
    TokenRefused(#[source] ClientError),
    /// The facade wants an operator to approve first.
    #[error("an operator has not approved this device yet; run the same command again later")]
    NotApproved,
    /// The answer of the facade is not a certificate for us.
    #[error("the facade answered with something else than a certificate for this device: {0}")]
    Answer(&'static str),
    /// No key could be made.
    #[error("cannot make a key or a certificate request")]
    Key(#[source] pki::x509::KeyError),
    /// The key is not in a file, and cannot be used where it is.
    #[error("cannot use the key of this device")]
    Signer(#[from] SignerError),
    /// Other programs cannot use a key that is not in a file.
    #[error(
        "the key of this device is in {0}, where only device-agent uses it; other programs need it in a file"
    )]
    KeyElsewhere(String),
}

/// `facade.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facade {
    /// Where it is.
    pub url: FacadeUrl,
    /// The trust domain of its certificates.
    pub trust_domain: TrustDomain,
    /// What it calls this device.
    pub device: DeviceId,
}

/// A whole identity.
#[derive(Clone, Debug)]
pub struct Identity {
    facade: Facade,
    certificate: pki::x509::Identity,
    anchors: Vec<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<Signer>,
}

impl Identity {
    /// Reads the identity, finishing what a crash left half done; `None` when the device is not enrolled.
    pub fn load(state: &StateDir, keys: &Keys) -> Result<Option<Self>, IdentityError> {
        enroll::recover(state)?;
        renew::recover(state)?;
        Self::read(state, keys)
    }

    /// Reads the identity as it is, for those who only look.
    pub fn read(state: &StateDir, keys: &Keys) -> Result<Option<Self>, IdentityError> {
        let Some(facade) = state.read_json::<Facade>(FACADE_FILE, "enroll the device again")? else {
            return Ok(None);
        };
        Self::read_pair(state, keys, facade, KEY_FILE, CERTIFICATE_FILE).map(Some)
    }

    /// Reads an identity whose key and certificate are in these files.
    fn read_pair(
        state: &StateDir,
        keys: &Keys,
        facade: Facade,
        key: &'static str,
        certificate: &'static str,
    ) -> Result<Self, IdentityError> {
        let damaged = |file| move || IdentityError::Damaged { file };
        let stored = Zeroizing::new(state.read_private(key)?.ok_or_else(damaged(key))?);
        let chain = certificates(state, certificate)?;
        let anchors = certificates(state, ANCHORS_FILE)?;
        if !anchors.iter().all(|anchor| is_whole(anchor, &anchors)) {
            return Err(IdentityError::Damaged { file: ANCHORS_FILE });
        }
        if !chain.iter().all(|link| is_whole(link, &chain)) {
            return Err(IdentityError::Damaged { file: certificate });
        }
        let leaf = chain.first().ok_or_else(damaged(certificate))?;
        let certificate = pki::x509::Identity::from_certificate(leaf, &facade.trust_domain)
            .map_err(IdentityError::Certificate)?;
        let key = keys.open(&stored, certificate.key())?.ok_or_else(damaged(key))?;
        if certificate.key() != key.fingerprint() {
            return Err(IdentityError::Mismatch);
        }
        Ok(Self { facade, certificate, anchors, chain, key: Arc::new(key) })
    }

    /// Which facade, and as whom.
    pub fn facade(&self) -> &Facade {
        &self.facade
    }

    /// The device.
    pub fn device(&self) -> &DeviceId {
        &self.facade.device
    }

    /// The certificate.
    pub fn certificate(&self) -> &pki::x509::Identity {
        &self.certificate
    }

    /// What the facade's certificate must end in.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// The key.
    pub fn key(&self) -> &Signer {
        &self.key
    }

    /// A client that shows this identity.
    pub fn client(&self, clock: &Clock, proxy: Option<&Proxy>) -> Result<FacadeClient, IdentityError> {
        let credentials = credentials(&self.chain, &self.key)?;
        let tls = TlsSettings::new(&self.anchors, Some(credentials), clock)?;
        Ok(FacadeClient::new(&self.facade.url, &tls, proxy)?)
    }

    /// When the certificate is to be renewed: after two thirds of its life, a twentieth earlier or later, so that a fleet
    /// enrolled in one hour does not come back in one hour.
    pub fn renew_at(&self, random: u64) -> Timestamp {
        let life = self.certificate.not_after().duration_since(self.certificate.not_before());
        let seconds = life.as_secs().max(0);
        let spread = seconds / 10;
        let jitter = i64::try_from(random % (spread.unsigned_abs() + 1)).unwrap_or_default() - spread / 2;
        let after = SignedDuration::from_secs(seconds / 3 * 2 + jitter);
        self.certificate.not_before().checked_add(after).unwrap_or(Timestamp::MAX)
    }
}

fn certificates(state: &StateDir, file: &'static str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let damaged = || IdentityError::Damaged { file };
    let pem = state.read(file)?.ok_or_else(damaged)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(damaged()),
    }
}

/// Whether a certificate is as it was signed, as far as whoever signed it is among `issuers`: a card loses bits.
fn is_whole(certificate: &CertificateDer<'_>, issuers: &[CertificateDer<'_>]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let issuers = issuers.iter().filter_map(|issuer| Some(X509Certificate::from_der(issuer).ok()?.1));
    let mut verdicts = issuers
        .filter(|issuer| issuer.subject() == certificate.issuer())
        .map(|issuer| certificate.verify_signature(Some(issuer.public_key())).is_ok())
        .peekable();
    verdicts.peek().is_none() || verdicts.any(|verified| verified)
}

fn credentials(chain: &[CertificateDer<'static>], key: &Signer) -> Result<Credentials, ClientError> {
    let key = key.tls().map_err(ClientError::Settings)?;
    Ok(Credentials { chain: chain.to_vec(), key })
}

fn to_pem(certificates: &[CertificateDer<'static>]) -> String {
    certificates.iter().map(|certificate| pki::x509::pem::certificate(certificate)).collect()
}
