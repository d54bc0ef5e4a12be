//! From a name to an HTTP connection: addresses, proxy, TLS. Every step has its own limit in time and its own words.

use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use pki::wire::{FacadeUrl, Line};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Sender;
use super::error::ClientError;
use super::tls::{TlsCause, TlsSettings};
use crate::config::Proxy;

/// The way to the facade.
pub(super) struct Route {
    authority: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    proxy: Option<Proxy>,
    tls: Arc<ClientConfig>,
}

pub(super) type Connection = http1::Connection<TokioIo<TlsStream<BufReader<TcpStream>>>, Full<Bytes>>;

impl Route {
    pub(super) fn new(
        facade: &FacadeUrl,
        tls: &TlsSettings,
        proxy: Option<&Proxy>,
    ) -> Result<Self, ClientError> {
        let name = ServerName::try_from(facade.host().to_owned())
            .map_err(|error| ClientError::Settings(rustls::Error::General(error.to_string())))?;
        Ok(Self {
            authority: facade.authority(),
            host: facade.host().to_owned(),
            port: facade.port(),
            name,
            proxy: proxy.filter(|proxy| proxy.is_for(facade.host())).cloned(),
            tls: tls.config(),
        })
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Opens a connection; whoever calls drives it.
    pub(super) async fn open(&self) -> Result<(Sender, Connection), ClientError> {
        let stream = match &self.proxy {
            Some(proxy) => self.through(proxy).await?,
            None => dial(&self.host, self.port).await?,
        };
        // The agent speaks in small requests and reads large bodies; waiting to fill a segment only delays both.
        let _ = stream.set_nodelay(true);
        let stream = self.secure(stream).await?;
        http1::Builder::new()
            .max_buf_size(READ_BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.explain("/", error))
    }

    async fn secure(&self, stream: TcpStream) -> Result<TlsStream<BufReader<TcpStream>>, ClientError> {
        let failed = |source: std::io::Error, otherwise| ClientError::Tls {
            facade: self.authority.clone(),
            cause: TlsCause::of(&source).unwrap_or(otherwise),
            source,
        };
        // rustls asks the kernel for 4 KiB at a time; a system call for each is a third of what a pull costs.
        let stream = BufReader::with_capacity(AHEAD_BYTES, stream);
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(self.name.clone(), stream);
        match tokio::time::timeout(STEP, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(failed(source, TlsCause::Other)),
            Err(elapsed) => Err(failed(elapsed.into(), TlsCause::Slow)),
        }
    }

    /// RFC 9110, 9.3.6: a tunnel through the proxy, of which we read the head of the answer and not a byte more.
    async fn through(&self, proxy: &Proxy) -> Result<TcpStream, ClientError> {
        let mut stream = dial(proxy.host(), proxy.port()).await?;
        let address = format!("{}:{}", proxy.host(), proxy.port());
        let authorization = proxy
            .authorization()
            .map(|value| format!("Proxy-Authorization: {value}\r\n"))
            .unwrap_or_default();
        let facade = &self.authority;
        let request = format!("CONNECT {facade} HTTP/1.1\r\nHost: {facade}\r\n{authorization}\r\n");
        let exchange = async {
            stream.write_all(request.as_bytes()).await?;
            read_head(&mut stream).await
        };
        let head = match tokio::time::timeout(STEP, exchange).await {
            Ok(head) => head,
            Err(elapsed) => Err(elapsed.into()),
        };
        let head = head.map_err(|source| ClientError::Connect { address: address.clone(), source })?;
        let line = head.lines().next().unwrap_or_default();
        if line.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
            return Ok(stream);
        }
        Err(ClientError::Proxy { proxy: address, facade: facade.clone(), answer: Line::shortened(line) })
    }

    /// Says why an exchange broke off: TLS 1.3 tells us only now what it thinks of our certificate.
    pub(super) fn explain(&self, path: &str, source: hyper::Error) -> ClientError {
        let facade = self.authority.clone();
        match TlsCause::of(&source as &(dyn StdError + 'static)) {
            Some(cause) => ClientError::Unwelcome { facade, cause, source },
            None => ClientError::Broken { facade, path: path.to_owned(), source },
        }
    }
}

/// Tries every address of a host in turn.
async fn dial(host: &str, port: u16) -> Result<TcpStream, ClientError> {
    let resolve = async {
        let addresses = tokio::net::lookup_host((host, port)).await?;
        Ok::<Vec<SocketAddr>, std::io::Error>(addresses.collect())
    };
    let addresses = match tokio::time::timeout(STEP, resolve).await {
        Ok(addresses) => addresses,
        Err(elapsed) => Err(elapsed.into()),
    };
    let addresses = addresses.map_err(|source| ClientError::Resolve { host: host.to_owned(), source })?;
    let mut last = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match tokio::time::timeout(STEP, connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(elapsed) => last = elapsed.into(),
        }
    }
    Err(ClientError::Connect { address: format!("{host}:{port}"), source: last })
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Before the connection, so that the other side never offers more. A kernel that gives another size does no harm.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.connect(address).await
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        // Byte by byte: what follows the head already belongs to TLS.
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// How long each step on the way may take.
const STEP: Duration = Duration::from_secs(10);
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Large enough that a body comes in few pieces, small enough that three connections do not show in memory, and that
/// little is lost with a kill.
const READ_BUFFER_BYTES: usize = 32 * 1024;
/// What is taken from the kernel at once, still encrypted.
const AHEAD_BYTES: usize = 32 * 1024;
/// What the kernel holds of a body that we are slow to take; it doubles the number. Left to itself it holds megabytes
/// when a rate limit or a slow card keeps us from reading, and a kill loses all of it: on a link that is paid by volume
/// it would be paid twice. 128 KiB let 20 Mbit/s through at 50 ms, for each of the connections side by side.
const RECEIVE_BUFFER_BYTES: u32 = 64 * 1024;
/// What has come over one connection and nobody has taken yet, at most.
pub const UNREAD_BYTES: usize = READ_BUFFER_BYTES + AHEAD_BYTES + 2 * RECEIVE_BUFFER_BYTES as usize;
