//! TLS on the device door: which certificates are shown and accepted, and whom a session speaks for.
//!
//! The only place that makes a [`Peer`]. Resumption is off: a resumed session skips the verification of the client
//! certificate (SECURITY-NOTES 3.3). Certificates can be replaced while connections are open; those keep what they have.

mod peer;
mod verifier;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pki::x509::TrustDomain;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use peer::{Device, Peer, Validity};
use verifier::DeviceVerifier;

use crate::clock::Clock;

/// What a connection holds encrypted before it takes no more; the largest piece that is put into it at once.
pub(super) const SEND_BUFFER_BYTES: usize = 320 * 1024;

/// Certificates of the device door.
pub struct TlsIdentity {
    /// The server's chain, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the first certificate.
    pub key: PrivateKeyDer<'static>,
    /// The authorities whose devices may come in.
    pub device_roots: Vec<CertificateDer<'static>>,
    /// The trust domain of the devices.
    pub domain: TrustDomain,
    /// How long after its end a certificate may still be used, for re-enrollment alone.
    pub expired_grace: Duration,
}

/// Why certificates cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// An authority's certificate is not one.
    #[error("a certificate of the device authorities cannot be used")]
    Root(#[source] rustls::Error),
    /// No authority, or unusable ones.
    #[error("the certificates of the device authorities cannot be used")]
    Verifier(#[source] VerifierBuilderError),
    /// The provider and the protocol versions do not fit.
    #[error("TLS 1.2 and 1.3 cannot be offered")]
    Versions(#[source] rustls::Error),
    /// Chain and key of the server do not fit.
    #[error("the server's certificate and key cannot be used")]
    Server(#[source] rustls::Error),
}

/// A connection whose handshake is done.
pub(super) type Stream = Box<TlsStream<TcpStream>>;

/// TLS of the device door. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    current: Arc<ArcSwap<Current>>,
    clock: Clock,
}

struct Current {
    config: Arc<ServerConfig>,
    verifier: Arc<DeviceVerifier>,
}

impl Tls {
    /// Prepares TLS.
    pub fn new(identity: TlsIdentity, clock: Clock) -> Result<Self, TlsError> {
        let current = Current::new(identity, clock.clone())?;
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(current)), clock })
    }

    /// Uses other certificates for connections that come from now on.
    pub fn replace(&self, identity: TlsIdentity) -> Result<(), TlsError> {
        self.current.store(Arc::new(Current::new(identity, self.clock.clone())?));
        Ok(())
    }

    /// Does the handshake and says who is there. The stream is boxed: it is large, and whoever has it in hand would hold
    /// the room for it several times over.
    pub(super) async fn accept(&self, tcp: TcpStream) -> std::io::Result<(Stream, Peer)> {
        let current = self.current.load_full();
        let stream = TlsAcceptor::from(Arc::clone(&current.config)).accept_with(tcp, |session| {
            session.set_buffer_limit(Some(SEND_BUFFER_BYTES));
        });
        let stream = Box::new(stream.await?);
        let peer = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
            None => Peer::Anonymous,
            Some(certificate) => {
                let identity = current.verifier.identity(certificate);
                let identity = identity.ok_or(std::io::ErrorKind::InvalidData)?;
                Peer::Device(Device::verified(identity))
            }
        };
        Ok((stream, peer))
    }
}

impl Current {
    fn new(identity: TlsIdentity, clock: Clock) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for root in identity.device_roots {
            roots.add(root).map_err(TlsError::Root)?;
        }
        let chains = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(TlsError::Verifier)?;
        let verifier = Arc::new(DeviceVerifier::new(chains, identity.domain, identity.expired_grace));
        let client_verifier: Arc<DeviceVerifier> = Arc::clone(&verifier);
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(Time(clock)))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TlsError::Versions)?
            .with_client_cert_verifier(client_verifier)
            .with_single_cert(identity.chain, identity.key)
            .map_err(TlsError::Server)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), verifier })
    }
}

struct Time(Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}
