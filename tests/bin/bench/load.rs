//! The load: devices that speak HTTP/1.1 over TLS 1.3 with a client certificate and decrypt what they get.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::device::Identity;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Makes connections to one server.
#[derive(Clone)]
pub(crate) struct Dialer {
    connector: TlsConnector,
    address: SocketAddr,
}

/// One connection.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

/// What came of one request.
#[derive(Clone, Copy)]
pub(crate) struct Got {
    pub(crate) bytes: u64,
    pub(crate) first_byte: Duration,
    pub(crate) last_byte: Duration,
}

impl Dialer {
    pub(crate) fn new(port: u16, identity: &Identity) -> Self {
        let chain = CertificateDer::pem_file_iter(&identity.cert).expect("read the certificate");
        let chain = chain.map(|certificate| certificate.expect("a certificate")).collect();
        let key = PrivateKeyDer::from_pem_file(&identity.key).expect("read the key");
        Self::with_identity(port, &identity.ca, chain, key)
    }

    /// For a device that is not in files.
    pub(crate) fn with_identity(
        port: u16,
        ca: &Path,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca).expect("read the CA") {
            roots.add(certificate.expect("a certificate")).expect("a root");
        }
        let mut provider = rustls::crypto::ring::default_provider();
        // All servers take the first that a client offers: the one that costs each of them least.
        provider.cipher_suites = vec![rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("a client certificate");
        config.resumption = rustls::client::Resumption::disabled();
        Self { connector: TlsConnector::from(Arc::new(config)), address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    pub(crate) async fn dial(&self) -> io::Result<Connection> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = self.connector.connect(name, tcp).await?;
        Ok(Connection { stream, buffer: Vec::new() })
    }
}

impl Connection {
    /// Asks for a path and reads the answer to its end.
    pub(crate) async fn get(&mut self, path: &str, close: bool) -> io::Result<Got> {
        self.read_slowly(path, close, usize::MAX, Duration::ZERO).await
    }

    /// The same with a pause after each so many bytes.
    pub(crate) async fn read_slowly(
        &mut self,
        path: &str,
        close: bool,
        piece_bytes: usize,
        pause: Duration,
    ) -> io::Result<Got> {
        let started = Instant::now();
        let connection = if close { "close" } else { "keep-alive" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await?;
        self.buffer.resize(64 * 1024, 0);
        let limit = piece_bytes.min(self.buffer.len());
        let mut filled = 0;
        let (head, length) = loop {
            let rest = self.buffer.get_mut(filled..).unwrap_or_default();
            let count = self.stream.read(rest).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += count;
            if let Some(found) = head_of(self.buffer.get(..filled).unwrap_or_default())? {
                break found;
            }
        };
        let mut left = length - (filled - head) as u64;
        let mut first_byte = (filled > head || length == 0).then(|| started.elapsed());
        while left > 0 {
            let piece = self.buffer.get_mut(..limit).unwrap_or_default();
            let count = self.stream.read(piece).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            first_byte.get_or_insert_with(|| started.elapsed());
            left -= count as u64;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(Got { bytes: length, first_byte: first_byte.unwrap_or_default(), last_byte: started.elapsed() })
    }

    /// Puts something, and reads the answer.
    pub(crate) async fn put(&mut self, path: &str, body: &[u8]) -> io::Result<()> {
        let length = body.len();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        self.stream.write_all(&[head.as_bytes(), body].concat()).await?;
        self.stream.flush().await?;
        let mut received = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let count = self.stream.read(&mut piece).await?;
            received.extend_from_slice(piece.get(..count).unwrap_or_default());
            match head_of(&received)? {
                Some((head, length)) if received.len() as u64 >= head as u64 + length => return Ok(()),
                _ if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
    }

    /// Asks for something whose answer nobody waits for.
    pub(crate) async fn ask(&mut self, path: &str) -> io::Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.write_all(request.as_bytes()).await?;
        self.stream.flush().await
    }

    /// Lets an idle connection hold no memory of ours.
    pub(crate) fn rest(&mut self) {
        self.buffer = Vec::new();
    }
}

/// The length of a head and of the body that it announces, once the head is whole.
fn head_of(received: &[u8]) -> io::Result<Option<(usize, u64)>> {
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(received.get(..end).unwrap_or_default()).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200") {
        return Err(io::Error::other(head));
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok());
    let length = length.ok_or_else(|| io::Error::other(format!("no length in {head}")))?;
    Ok(Some((end + 4, length)))
}
