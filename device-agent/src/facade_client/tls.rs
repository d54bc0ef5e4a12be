//! TLS to the facade: who it must be, who we are, and what went wrong in words.
//!
//! The only trust anchors are those of `identity/ca.pem`; the public ones of the device are never asked, so a certificate
//! that somebody bought for the facade's name is worth nothing. Time comes from the agent's clock with its floor. A
//! refused client certificate shows in TLS 1.3 only after the handshake, as an alert where an answer should be; it is
//! recognised in both places.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use thiserror::Error;

use super::error::{Class, ClientError};
use crate::clock::Clock;

/// What this device shows and what it believes.
pub struct TlsSettings {
    config: Arc<ClientConfig>,
}

/// The certificate of this device, its issuer's, and its key.
pub struct Credentials {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the leaf, wherever it is.
    pub key: Arc<dyn SigningKey>,
}

impl TlsSettings {
    /// Believes the `anchors` only; shows `credentials` where there are any.
    pub fn new(
        anchors: &[CertificateDer<'static>],
        credentials: Option<Credentials>,
        clock: &Clock,
    ) -> Result<Self, ClientError> {
        let provider = Arc::new(provider(has_aes()));
        let mut roots = RootCertStore::empty();
        for anchor in anchors {
            roots.add(anchor.clone()).map_err(ClientError::Settings)?;
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| ClientError::Settings(rustls::Error::General(error.to_string())))?;
        let verifier = FacadeVerifier { inner, clock: clock.clone() };
        Self::with_verifier(provider, Arc::new(verifier), credentials, clock)
    }

    /// Believes anybody, for the one request that learns the anchors; what it learns is held against a pin, and no
    /// secret travels on such a session (RFC 7030, 4.1.1).
    pub fn believing_anybody(clock: &Clock) -> Result<Self, ClientError> {
        let provider = Arc::new(provider(has_aes()));
        let verifier = Anybody(Arc::clone(&provider));
        Self::with_verifier(provider, Arc::new(verifier), None, clock)
    }

    fn with_verifier(
        provider: Arc<CryptoProvider>,
        verifier: Arc<dyn ServerCertVerifier>,
        credentials: Option<Credentials>,
        clock: &Clock,
    ) -> Result<Self, ClientError> {
        let builder = ClientConfig::builder_with_details(provider, Arc::new(Time(clock.clone())))
            .with_safe_default_protocol_versions()
            .map_err(ClientError::Settings)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match credentials {
            Some(Credentials { chain, key }) => {
                let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
                builder.with_client_cert_resolver(Arc::new(shown))
            }
            None => builder.with_no_client_auth(),
        };
        // A resumed session would skip the check of the certificate (SECURITY-NOTES, 0).
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config) })
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

/// The cipher suites that rustls offers, with those first that cost this processor least: many boards (a Raspberry Pi 4
/// among them) have no instructions for AES, and take several times as long for it as for the other kind. 128 bits come
/// before 256: they are enough, and take less.
fn provider(has_aes: bool) -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let name = suite.suite().as_str().unwrap_or_default();
        (name.contains("CHACHA20") == has_aes, !name.contains("AES_128"))
    });
    provider
}

/// Whether the processor has instructions for AES. For 32-bit ARM, Rust cannot tell; few such boards have them.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[derive(Debug)]
struct Time(Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
    }
}

/// Verifies the facade as rustls does, and knows two things more: a device whose clock stands behind, and who it was
/// that answered instead.
#[derive(Debug)]
struct FacadeVerifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Clock,
}

/// Certificates of one chain; each may begin later than the one before.
const MAX_CHAIN: usize = 4;

impl ServerCertVerifier for FacadeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let mut now = now;
        for _ in 0..MAX_CHAIN {
            let verdict =
                self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
            match verdict {
                // A clock that is known to be behind says nothing about "not yet": the chain ends in our own CA, so
                // the certificate was issued, and it is at least that late.
                Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before,
                    ..
                })) if self.clock.is_behind() => now = not_before,
                // A certificate that signed itself is unusable before anybody asks who issued it.
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer
                    | CertificateError::Other(_)
                    | CertificateError::BadSignature,
                )) => return Err(intercepted(end_entity)),
                other => return other,
            }
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn intercepted(end_entity: &CertificateDer<'_>) -> rustls::Error {
    let issuer =
        crate::identity::certificate::issuer(end_entity).unwrap_or_else(|| "an unreadable name".to_owned());
    let cause = Arc::new(Interception { issuer });
    rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(cause)))
}

/// Somebody else's certificate came where the facade's should have been.
#[derive(Debug, Error)]
#[error("certificate issued by {issuer}")]
struct Interception {
    issuer: String,
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why TLS failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsCause {
    /// Somebody on the way shows another certificate.
    Intercepted {
        /// Who issued it.
        issuer: String,
    },
    /// The facade's certificate is for another name.
    WrongName,
    /// The facade's certificate is out of its time, or our clock is.
    ServerTime,
    /// The facade's certificate is otherwise unusable.
    ServerCertificate,
    /// The facade saw no certificate of ours.
    CertificateMissing,
    /// Ours has expired.
    CertificateExpired,
    /// Ours was revoked.
    CertificateRevoked,
    /// Ours is of a CA the facade does not know.
    UnknownCa,
    /// Ours was refused without a reason.
    CertificateRefused,
    /// It was not even TLS.
    NotTls,
    /// The handshake took too long.
    Slow,
    /// Anything else.
    Other,
}

impl TlsCause {
    /// What the failure means.
    pub fn class(&self) -> Class {
        match self {
            Self::Intercepted { .. } | Self::WrongName | Self::ServerCertificate => Class::Impostor,
            Self::CertificateMissing
            | Self::CertificateExpired
            | Self::CertificateRevoked
            | Self::UnknownCa
            | Self::CertificateRefused => Class::NotAllowed,
            Self::ServerTime | Self::NotTls | Self::Slow | Self::Other => Class::Unreachable,
        }
    }

    /// Whether the facade judged our certificate, and did not merely miss it.
    pub fn disowns(&self) -> bool {
        self.class() == Class::NotAllowed && *self != Self::CertificateMissing
    }

    /// Looks for the cause under an error of hyper or of the operating system.
    pub(super) fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Some(Self::of_tls(tls));
            }
            // An io::Error hides its inner error from `source` when it forwards to it.
            let inner = error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(tls) = inner {
                return Some(Self::of_tls(tls));
            }
            next = error.source();
        }
        None
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library adds errors; what is not known here has no words of its own"
    )]
    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::of_certificate(error),
            rustls::Error::AlertReceived(alert) => Self::of_alert(*alert),
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            _ => Self::Other,
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library adds errors; what is not known here has no words of its own"
    )]
    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Other(other) => other
                .0
                .downcast_ref::<Interception>()
                .map_or(Self::ServerCertificate, |found| Self::Intercepted { issuer: found.issuer.clone() }),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::ServerTime,
            _ => Self::ServerCertificate,
        }
    }

    /// RFC 8446, 6.2.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library adds errors; what is not known here has no words of its own"
    )]
    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::CertificateRequired => Self::CertificateMissing,
            AlertDescription::CertificateExpired => Self::CertificateExpired,
            AlertDescription::CertificateRevoked => Self::CertificateRevoked,
            AlertDescription::UnknownCA => Self::UnknownCa,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => Self::CertificateRefused,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for TlsCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Intercepted { issuer } => {
                return write!(
                    f,
                    "something on the way answers with a certificate issued by {issuer}; TLS to the facade must pass \
                     without inspection"
                );
            }
            Self::WrongName => {
                "its certificate is for another name; was it set up with the name that devices use?"
            }
            Self::ServerTime => {
                "its certificate is not valid at this time; check the clock of the device first"
            }
            Self::ServerCertificate => "its certificate cannot be used",
            Self::CertificateMissing => {
                "it saw no certificate of this device; something on the way may end TLS and start its own"
            }
            Self::CertificateExpired => {
                "the certificate of this device has expired; it must be enrolled again"
            }
            Self::CertificateRevoked => "the certificate of this device was revoked",
            Self::UnknownCa => {
                "the certificate of this device is of a CA that it does not know; the device must be enrolled again"
            }
            Self::CertificateRefused => "the certificate of this device was refused",
            Self::NotTls => "what answers does not speak TLS",
            Self::Slow => "the handshake took too long",
            Self::Other => "the handshake failed",
        };
        f.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alert_about_our_certificate_has_words_of_its_own_wherever_it_comes() {
        for (alert, words, disowns) in [
            (AlertDescription::CertificateRequired, "it saw no certificate of this device", false),
            (AlertDescription::CertificateExpired, "has expired", true),
            (AlertDescription::CertificateRevoked, "was revoked", true),
            (AlertDescription::UnknownCA, "a CA that it does not know", true),
            (AlertDescription::BadCertificate, "was refused", true),
            (AlertDescription::CertificateUnknown, "was refused", true),
            (AlertDescription::AccessDenied, "was refused", true),
            (AlertDescription::InternalError, "the handshake failed", false),
        ] {
            // As it comes from a read long after the handshake of TLS 1.3.
            let late =
                std::io::Error::new(std::io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
            let cause = TlsCause::of(&late).unwrap();
            assert!(cause.to_string().contains(words), "{alert:?}: {cause}");
            assert_eq!(cause.disowns(), disowns, "{alert:?}");
        }
    }

    #[test]
    fn what_the_processor_does_fastest_is_offered_first() {
        for (has_aes, first) in [(true, "AES_128_GCM"), (false, "CHACHA20_POLY1305")] {
            let provider = provider(has_aes);
            for version in ["TLS13_", "TLS_ECDHE_ECDSA_WITH_"] {
                let mut names = provider.cipher_suites.iter().filter_map(|suite| suite.suite().as_str());
                let found = names.find_map(|name| name.strip_prefix(version)).unwrap();
                assert!(found.starts_with(first), "{version}{found}");
            }
            assert_eq!(provider.cipher_suites.len(), rustls::crypto::ring::ALL_CIPHER_SUITES.len());
        }
    }

    #[test]
    fn what_is_no_tls_error_has_no_cause_in_tls() {
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(TlsCause::of(&reset), None);
    }
}
