//! The operator door: accepts connections, with TLS where a certificate is configured, and serves the API on them.

mod proxies;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::api::gate::Peer;
use crate::config::Config;
use crate::facade::StartError;
use crate::service::Pulse;
pub(crate) use proxies::TrustedProxies;

/// Most connections at a time: people, pipelines and a console, not a fleet.
const MAX_CONNECTIONS: usize = 512;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The operator door, listening.
pub(crate) struct OperatorDoor {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    proxies: Arc<TrustedProxies>,
    drain: Duration,
    pulse: Pulse,
}

impl OperatorDoor {
    /// Listens.
    pub(crate) async fn open(config: &Config, router: Router) -> Result<Self, StartError> {
        let address = config.operator_listen;
        let listener =
            TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let tls = match (&config.operator_tls_certificate, &config.operator_tls_key) {
            (Some(certificate), Some(key)) => Some(acceptor(certificate, key)?),
            _ => None,
        };
        let proxies = Arc::new(config.operator_trusted_proxies.clone());
        Ok(Self { listener, tls, router, proxies, drain: config.drain_timeout, pulse: Pulse::default() })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Beats while connections are accepted.
    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Serves until `shutdown`, then lets open requests finish.
    pub(crate) async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        let tasks = TaskTracker::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = self.pulse.beat() => continue,
                () = &mut shutdown => break,
            };
            let Ok((tcp, peer)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                continue;
            };
            let routes =
                Routes { router: self.router.clone(), peer: peer.ip(), proxies: Arc::clone(&self.proxies) };
            let (tls, watcher) = (self.tls.clone(), graceful.watcher());
            tasks.spawn(async move {
                connection(tcp, tls, routes, watcher).await;
                drop(place);
            });
        }
        tasks.close();
        let finished = async {
            graceful.shutdown().await;
            tasks.wait().await;
        };
        // What is not done by then is cut when the runtime ends.
        let _ = tokio::time::timeout(self.drain, finished).await;
    }
}

/// The routes as one connection sees them.
struct Routes {
    router: Router,
    peer: IpAddr,
    proxies: Arc<TrustedProxies>,
}

async fn connection(tcp: TcpStream, tls: Option<TlsAcceptor>, router: Routes, watcher: Watcher) {
    let Some(tls) = tls else {
        return serve(tcp, router, watcher).await;
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await {
        Ok(Ok(stream)) => serve(stream, router, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "operator handshake failed"),
        Err(_) => tracing::debug!("operator handshake took too long"),
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Routes,
    watcher: Watcher,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let caller = routes.proxies.caller(routes.peer, request.headers());
        request.extensions_mut().insert(Peer(caller));
        routes.router.clone().call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(connection.into_owned()).await {
        tracing::debug!(%error, "operator connection ended");
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, StartError> {
    let failed = |path: &Path, reason: String| StartError::OperatorTls { path: path.to_owned(), reason };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| failed(certificate, error.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| failed(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
