//! The least that a connection costs: a server of tokio-rustls alone, which remembers whom it has verified, as the facade
//! does, and then answers whatever is asked with bytes that are ready. Nobody is authorized, and nothing is noted.

use std::collections::HashSet;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

/// `bench bare PORT DATA BYTES`: serves `bytes` on a port, with the certificates of a facade, until it is killed.
pub(crate) fn run(port: &str, data: &Path, bytes: &str) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let body = vec![b'.'; bytes.parse().expect("a number of bytes")];
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n");
    let answer = Arc::new([head.as_bytes(), &body].concat());
    let acceptor = TlsAcceptor::from(Arc::new(config(data)));
    let tasks = TaskTracker::new();
    runtime.block_on(async {
        let socket = TcpSocket::new_v4().expect("a socket");
        // Connections take it over.
        socket.set_nodelay(true).expect("no delay");
        socket.bind((Ipv4Addr::LOCALHOST, port.parse().expect("a port")).into()).expect("bind");
        let listener = socket.listen(1024).expect("listen");
        loop {
            let (tcp, _) = listener.accept().await.expect("a connection");
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            // One that fails is one of the checks whether this is up.
            tasks.spawn(async move { drop(serve(&acceptor, tcp, &answer).await) });
        }
    })
}

async fn serve(acceptor: &TlsAcceptor, tcp: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    let mut stream = acceptor.accept(tcp).await?;
    let mut head = Vec::with_capacity(1024);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    stream.get_mut().1.writer().write_all(answer)?;
    stream.get_mut().1.send_close_notify();
    stream.flush().await
}

fn config(data: &Path) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = |name: &str| {
        let chain = CertificateDer::pem_file_iter(data.join(name)).expect("read certificates");
        chain.map(|certificate| certificate.expect("a certificate"))
    };
    let mut roots = RootCertStore::empty();
    chain("ca/root.pem").for_each(|root| roots.add(root).expect("a root"));
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let inner = inner.build().expect("a verifier");
    let key = PrivateKeyDer::from_pem_file(data.join("tls/server.key")).expect("read the key");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(Arc::new(Remembering { inner, verified: Mutex::default() }))
        .with_single_cert(chain("tls/server.pem").collect(), key)
        .expect("a certificate");
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// Verifies each chain once.
#[derive(Debug)]
struct Remembering {
    inner: Arc<dyn ClientCertVerifier>,
    verified: Mutex<HashSet<Vec<u8>>>,
}

impl ClientCertVerifier for Remembering {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if !verified.contains(end_entity.as_ref()) {
            self.inner.verify_client_cert(end_entity, intermediates, now)?;
            verified.insert(end_entity.to_vec());
        }
        Ok(ClientCertVerified::assertion())
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
