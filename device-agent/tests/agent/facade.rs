//! A facade small enough to lie on command.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use pki::wire::{EnrollmentToken, TokenId, TokenSecret};
use pki::x509::{
    Authority, Csr, DEVICE_LIFETIME, DeviceId, Fingerprint, Identity, PrivateKey, ServerName, TrustDomain,
    est, pkcs7,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::metadata::Repositories;

/// What goes wrong with the next request whose path contains a text.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    CutAt(usize),
    /// One byte of the body is another.
    WrongByte,
    /// Another status.
    Status(u16),
    /// The range is ignored.
    WholeBody,
    /// 206 with bytes from elsewhere.
    ShiftedRange,
    /// 307 to somebody else.
    Redirect,
    /// `Content-Encoding: gzip`.
    Encoded,
    /// The connection ends before the answer.
    Hangup,
}

pub(crate) struct Script {
    pub(crate) repositories: Repositories,
    pub(crate) contents: BTreeMap<String, Vec<u8>>,
    pub(crate) faults: Vec<(String, Fault)>,
    /// Every request as `METHOD path [bytes=…]`.
    pub(crate) log: Vec<String>,
    /// Whether a secret came in.
    pub(crate) secrets_seen: usize,
    pub(crate) reports: Vec<serde_json::Value>,
    pub(crate) device: DeviceId,
    pub(crate) lifetime: SignedDuration,
    /// Whether the CA certificates are those of somebody else.
    pub(crate) foreign_ca: bool,
    /// How often 202 comes before the certificate.
    pub(crate) approvals_missing: usize,
    pub(crate) news: u64,
}

pub(crate) struct Facade {
    pub(crate) port: u16,
    pub(crate) token: EnrollmentToken,
    script: Arc<Mutex<Script>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Facade {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Ca {
    authority: Authority,
    root: Vec<u8>,
    issuing: Vec<u8>,
}

fn ca() -> Ca {
    let now = Timestamp::now() - SignedDuration::from_hours(1);
    let (root_key, issuing_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
    let root = Authority::new_root(&root_key, now).unwrap().der;
    let issuing = Authority::new_issuing(&root, &root_key, &issuing_key, now).unwrap().der;
    Ca { authority: Authority::load(root.clone(), issuing.clone(), issuing_key).unwrap(), root, issuing }
}

impl Facade {
    pub(crate) async fn start() -> Self {
        Self::start_named("127.0.0.1").await
    }

    /// A facade whose certificate is for `name`.
    pub(crate) async fn start_named(name: &str) -> Self {
        let ca = Arc::new(ca());
        let device: DeviceId = "board-7".parse().unwrap();
        let repositories = Repositories::new(&device);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let token = EnrollmentToken {
            url: format!("https://127.0.0.1:{port}").parse().unwrap(),
            ca: Fingerprint::of(&ca.root),
            images_root: repositories.images.pin(),
            director_root: repositories.director.pin(),
            id: TokenId::generate().unwrap(),
            secret: TokenSecret::generate().unwrap(),
        };
        let script = Arc::new(Mutex::new(Script {
            repositories,
            contents: BTreeMap::new(),
            faults: Vec::new(),
            log: Vec::new(),
            secrets_seen: 0,
            reports: Vec::new(),
            device,
            lifetime: DEVICE_LIFETIME,
            foreign_ca: false,
            approvals_missing: 0,
            news: 1,
        }));
        let acceptor = TlsAcceptor::from(Arc::new(tls(&ca, name)));
        let shared = Arc::clone(&script);
        #[expect(clippy::disallowed_methods, reason = "lives as long as the test, which ends its runtime")]
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, Arc::clone(&ca), Arc::clone(&shared)));
            }
        });
        Self { port, token, script, task }
    }

    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        self.script().faults.push((path.to_owned(), fault));
    }

    /// How many requests had this in their line.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.script().log.iter().filter(|line| line.contains(text)).count()
    }
}

fn tls(ca: &Ca, name: &str) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.root.clone())).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .unwrap();
    let key = PrivateKey::generate().unwrap();
    let names: Vec<ServerName> = vec![name.parse().unwrap()];
    let issued = ca.authority.issue_server(&names, &key, Timestamp::now()).unwrap();
    let chain = vec![CertificateDer::from(issued.der), CertificateDer::from(ca.issuing.clone())];
    let key = PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key.into())
        .unwrap()
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream, ca: Arc<Ca>, script: Arc<Mutex<Script>>) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| {
        let domain: TrustDomain = "drayage.internal".parse().unwrap();
        Identity::from_certificate(chain.first()?, &domain).ok()
    });
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (ca, script, peer) = (Arc::clone(&ca), Arc::clone(&script), peer.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let mut script = script.lock().unwrap();
            answer(&ca, &mut script, peer.as_ref(), &parts, &body)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

type Answer = Result<Response<Cut>, std::io::Error>;

fn answer(
    ca: &Ca,
    script: &mut Script,
    peer: Option<&Identity>,
    request: &http::request::Parts,
    body: &Bytes,
) -> Answer {
    let path = request.uri.path().to_owned();
    let range = request.headers.get(header::RANGE).map(|range| format!(" {}", range.to_str().unwrap()));
    script.log.push(format!("{} {path}{}", request.method, range.unwrap_or_default()));
    if request.headers.contains_key(header::AUTHORIZATION) {
        script.secrets_seen += 1;
    }
    let fault = script
        .faults
        .iter()
        .position(|(part, _)| path.contains(part.as_str()))
        .map(|index| script.faults.remove(index).1);
    let mut headers = request.headers.clone();
    if matches!(fault, Some(Fault::WholeBody)) {
        headers.remove(header::RANGE);
    }
    let good = route(ca, script, peer, &headers, &path, body);
    apply(fault.as_ref(), good)
}

fn route(
    ca: &Ca,
    script: &mut Script,
    peer: Option<&Identity>,
    headers: &HeaderMap,
    path: &str,
    body: &Bytes,
) -> Response<Bytes> {
    match path {
        "/.well-known/est/cacerts" if script.foreign_ca => {
            let other = crate::facade::ca();
            return respond(200, est::encode(&pkcs7::encode([other.root.as_slice()])));
        }
        "/.well-known/est/cacerts" => {
            let certificates = [ca.root.as_slice(), ca.issuing.as_slice()];
            return respond(200, est::encode(&pkcs7::encode(certificates)));
        }
        "/.well-known/est/simpleenroll" => return enroll(ca, script, body),
        _ => {}
    }
    if peer.is_none() {
        return respond(401, r#"{"detail":"no certificate"}"#);
    }
    if path == "/.well-known/est/simplereenroll" {
        return enroll(ca, script, body);
    }
    if path == "/v2/" {
        return respond(200, "{}");
    }
    if path == "/v1/report" {
        script.reports.push(serde_json::from_slice(body).unwrap());
        return respond(200, r#"{"next_counter":1,"report_every_seconds":60}"#);
    }
    if path == "/v1/wait" {
        return respond(200, format!(r#"{{"version":{}}}"#, script.news));
    }
    if let Some(file) = path.strip_prefix("/metadata/") {
        return match script.repositories.file(file) {
            Some(bytes) => respond(200, bytes),
            None => respond(404, "{}"),
        };
    }
    let digest = path.rsplit('/').next().unwrap();
    match script.contents.get(digest) {
        Some(bytes) => content(bytes, headers),
        None => respond(403, r#"{"errors":[{"code":"DENIED","message":"not assigned"}]}"#),
    }
}

fn enroll(ca: &Ca, script: &mut Script, body: &[u8]) -> Response<Bytes> {
    if script.approvals_missing > 0 {
        script.approvals_missing -= 1;
        let mut response = respond(202, "");
        response.headers_mut().insert(header::RETRY_AFTER, "1".parse().unwrap());
        return response;
    }
    let csr = Csr::parse(&est::decode(body).unwrap()).unwrap();
    let domain: TrustDomain = "drayage.internal".parse().unwrap();
    let issued =
        ca.authority.issue_device(&csr, &script.device, &domain, Timestamp::now(), script.lifetime).unwrap();
    respond(200, est::encode(&pkcs7::encode([issued.der.as_slice()])))
}

fn content(bytes: &[u8], headers: &HeaderMap) -> Response<Bytes> {
    let first = headers.get(header::RANGE).map(|range| {
        let text = range.to_str().unwrap();
        text.strip_prefix("bytes=").and_then(|text| text.strip_suffix('-')).unwrap().parse::<usize>().unwrap()
    });
    match first {
        None => respond(200, bytes.to_vec()),
        Some(first) if first >= bytes.len() => respond(416, ""),
        Some(first) => {
            let mut response = respond(206, bytes[first..].to_vec());
            let range = format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len());
            response.headers_mut().insert(header::CONTENT_RANGE, range.parse().unwrap());
            response
        }
    }
}

fn respond(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A body that may end before its length.
pub(crate) type Cut = http_body_util::Either<Full<Bytes>, Broken>;

/// Some bytes, and then the end of the connection.
pub(crate) struct Broken {
    bytes: Option<Bytes>,
    promised: u64,
}

impl http_body::Body for Broken {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(Some(match self.bytes.take() {
            Some(bytes) => Ok(http_body::Frame::data(bytes)),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.promised)
    }
}

fn apply(fault: Option<&Fault>, good: Response<Bytes>) -> Answer {
    let (mut parts, mut body) = good.into_parts();
    match fault {
        None => {}
        Some(Fault::CutAt(count)) => {
            let broken =
                Broken { promised: body.len() as u64, bytes: Some(body.slice(..(*count).min(body.len()))) };
            return Ok(Response::from_parts(parts, Cut::Right(broken)));
        }
        Some(Fault::WrongByte) => {
            let mut bytes = body.to_vec();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            body = bytes.into();
        }
        Some(Fault::Status(status)) => {
            parts.status = StatusCode::from_u16(*status).unwrap();
            parts.headers.insert(header::RETRY_AFTER, "0".parse().unwrap());
            body = Bytes::from_static(b"{}");
        }
        // Routed without its range already.
        Some(Fault::WholeBody) => {}
        Some(Fault::ShiftedRange) => {
            let shifted = format!("bytes 1-{}/{}", body.len(), body.len() + 1);
            parts.headers.insert(header::CONTENT_RANGE, shifted.parse().unwrap());
        }
        Some(Fault::Redirect) => {
            parts.status = StatusCode::TEMPORARY_REDIRECT;
            parts.headers.insert(header::LOCATION, "https://collector.example/".parse().unwrap());
        }
        Some(Fault::Encoded) => {
            parts.headers.insert(header::CONTENT_ENCODING, "gzip".parse().unwrap());
        }
        Some(Fault::Hangup) => return Err(std::io::ErrorKind::ConnectionReset.into()),
    }
    Ok(Response::from_parts(parts, Cut::Left(Full::new(body))))
}
