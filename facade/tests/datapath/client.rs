//! A device: mutual TLS, HTTP/1.1 or HTTP/2, or whatever bytes a test wants to send.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use crate::rig::{Credential, Rig};

pub(crate) enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

pub(crate) struct Device {
    sender: Sender,
}

/// An answer, whole; `cut` if the body ended before its length.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) cut: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// Opens a TLS connection.
pub(crate) async fn tls(
    rig: &Rig,
    credential: Option<&Credential>,
    alpn: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(rig.fleet.root()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = if let Some(credential) = credential {
        builder.with_client_auth_cert(credential.chain.clone(), credential.key.clone_key()).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(rig.address).await?;
    TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), tcp).await
}

impl Device {
    pub(crate) async fn http1(rig: &Rig, credential: Option<&Credential>) -> Self {
        let io = TokioIo::new(tls(rig, credential, b"http/1.1").await.unwrap());
        let (sender, connection) = http1::handshake(io).await.unwrap();
        TaskTracker::new().spawn(connection);
        Self { sender: Sender::Http1(sender) }
    }

    pub(crate) async fn http2(rig: &Rig, credential: Option<&Credential>) -> Self {
        let io = TokioIo::new(tls(rig, credential, b"h2").await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        TaskTracker::new().spawn(connection);
        Self { sender: Sender::Http2(sender) }
    }

    /// Sends a request and returns as soon as the head of the answer is there.
    pub(crate) async fn begin(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> hyper::Result<http::Response<Incoming>> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                let request = request.uri(path).header("host", "localhost").body(Empty::new()).unwrap();
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                let uri = format!("https://localhost{path}");
                sender.send_request(request.uri(uri).body(Empty::new()).unwrap()).await
            }
        }
    }

    pub(crate) async fn send(&mut self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let response = self.begin(method, path, headers).await.unwrap();
        finish(response).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, &[]).await
    }

    pub(crate) async fn range(&mut self, path: &str, range: &str) -> Answer {
        self.send(Method::GET, path, &[("range", range)]).await
    }
}

/// Reads an answer to its end.
pub(crate) async fn finish(response: http::Response<Incoming>) -> Answer {
    let (parts, mut incoming) = response.into_parts();
    let (mut body, mut cut) = (Vec::new(), false);
    while let Some(frame) = incoming.frame().await {
        let Ok(frame) = frame else {
            cut = true;
            break;
        };
        body.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    Answer { status: parts.status, headers: parts.headers, body, cut }
}

/// Sends raw bytes, and returns all that comes back until the server closes.
pub(crate) async fn raw(rig: &Rig, credential: &Credential, bytes: &[u8]) -> String {
    let mut stream = tls(rig, Some(credential), b"http/1.1").await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
