//! Judges client certificates in the handshake: chain, profile, signature.
//!
//! Building and checking a chain is most of a handshake's work, and devices open a connection for almost every request
//! (skopeo, docker). A chain that was verified once is remembered for a while; the signature of each handshake, the dates
//! and the standing of the device are judged every time. A change of the CA makes a new verifier, which remembers nothing.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pki::x509::{Fingerprint, Identity, TrustDomain};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

const MAX_REMEMBERED: usize = 16 * 1024;
const REMEMBERED_FOR: Duration = Duration::from_hours(1);

/// Verifies client certificates, and remembers whom they speak for.
pub(super) struct DeviceVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    domain: TrustDomain,
    expired_grace: Duration,
    remembered: Mutex<HashMap<Fingerprint, Remembered>>,
}

struct Remembered {
    identity: Arc<Identity>,
    since: Instant,
}

impl DeviceVerifier {
    pub(super) fn new(
        inner: Arc<dyn ClientCertVerifier>,
        domain: TrustDomain,
        expired_grace: Duration,
    ) -> Self {
        Self { inner, domain, expired_grace, remembered: Mutex::default() }
    }

    /// Whom a certificate speaks for that this verifier accepted.
    pub(super) fn identity(&self, certificate: &CertificateDer<'_>) -> Option<Arc<Identity>> {
        let fingerprint = Fingerprint::of(certificate);
        self.recall(fingerprint).or_else(|| {
            // Forgotten between handshake and now: the session is verified all the same.
            Identity::from_certificate(certificate, &self.domain).ok().map(Arc::new)
        })
    }

    fn recall(&self, fingerprint: Fingerprint) -> Option<Arc<Identity>> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = remembered.get(&fingerprint)?;
        (entry.since.elapsed() < REMEMBERED_FOR).then(|| Arc::clone(&entry.identity))
    }

    fn remember(&self, fingerprint: Fingerprint, identity: Arc<Identity>) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, entry| entry.since.elapsed() < REMEMBERED_FOR);
        }
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(fingerprint, Remembered { identity, since: Instant::now() });
    }

    /// The moment at which a chain is to be judged: now, or the last moment of a certificate that expired within the
    /// grace period. Expired certificates get through the handshake only; every route but re-enrollment refuses them.
    fn judged_at(&self, identity: &Identity, now: UnixTime) -> UnixTime {
        let end = u64::try_from(identity.not_after().as_second()).unwrap_or(0);
        let late = now.as_secs().saturating_sub(end);
        if late > 0 && late <= self.expired_grace.as_secs() {
            UnixTime::since_unix_epoch(Duration::from_secs(end))
        } else {
            now
        }
    }
}

fn is_valid_at(identity: &Identity, now: UnixTime) -> bool {
    let now = i64::try_from(now.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    now.is_some_and(|now| identity.is_valid_at(now))
}

impl fmt::Debug for DeviceVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceVerifier").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl ClientCertVerifier for DeviceVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    // Enrollment happens without a certificate; `authz` refuses everything else.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let fingerprint = Fingerprint::of(end_entity);
        if self.recall(fingerprint).is_some_and(|identity| is_valid_at(&identity, now)) {
            return Ok(ClientCertVerified::assertion());
        }
        let identity = Identity::from_certificate(end_entity, &self.domain)
            .map_err(|error| CertificateError::Other(OtherError(Arc::new(error))))?;
        let judged_at = self.judged_at(&identity, now);
        let verified = self.inner.verify_client_cert(end_entity, intermediates, judged_at)?;
        self.remember(fingerprint, Arc::new(identity));
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
