//! Requests to the one facade of this device: HTTP/1.1 over mutual TLS, and nothing else.
//!
//! Every answer is bounded: in time by the caller's patience, in size by the caller's limit. A redirect is refused,
//! because whoever can redirect a device can collect its certificate; an encoded body is refused, because a digest names
//! the bytes before any encoding. The client never decides whether content is right: that is for the digest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use pki::wire::FacadeUrl;
use tokio_util::task::TaskTracker;

use crate::config::Proxy;

mod connect;
mod error;
mod tls;

pub use connect::UNREAD_BYTES;
pub use error::{Class, ClientError};
pub use tls::{Credentials, TlsCause, TlsSettings};

/// How long the facade may take to begin its answer. It answers devices within 30 s or not at all.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How long a body may bring nothing, where the caller does not say otherwise.
pub const STALL: Duration = Duration::from_secs(60);
/// How much of the body of a refusal is read.
const MAX_REFUSAL_BYTES: usize = 8 * 1024;
/// Idle connections that are kept: what fetching in parallel can use.
const MAX_IDLE: usize = 8;

/// A client of one facade with one identity.
#[derive(Clone)]
pub struct FacadeClient {
    route: Arc<connect::Route>,
    idle: Idle,
    tasks: TaskTracker,
}

type Idle = Arc<Mutex<Vec<Sender>>>;
type Sender = SendRequest<Full<Bytes>>;

/// One request.
#[derive(Clone, Debug)]
pub struct Ask {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    patience: Duration,
}

impl Ask {
    /// A `GET`.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path.into(), Bytes::new())
    }

    /// A `POST` of a body.
    pub fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, path.into(), body.into())
    }

    /// A `PUT` of a body.
    pub fn put(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::PUT, path.into(), body.into())
    }

    fn new(method: Method, path: String, body: Bytes) -> Self {
        Self { method, path, headers: HeaderMap::new(), body, patience: PATIENCE }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Waits this long for the answer to begin.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn build(&self, authority: &str) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder()
            .method(&self.method)
            .uri(&self.path)
            .header(header::HOST, authority)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Full::new(self.body.clone()))
            .map_err(|source| ClientError::Request { path: self.path.clone(), source })?;
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }
}

const USER_AGENT: &str = concat!("device-agent/", env!("CARGO_PKG_VERSION"));

impl FacadeClient {
    /// A client for `facade`, reached through `proxy` if there is one.
    pub fn new(facade: &FacadeUrl, tls: &TlsSettings, proxy: Option<&Proxy>) -> Result<Self, ClientError> {
        Ok(Self {
            route: Arc::new(connect::Route::new(facade, tls, proxy)?),
            idle: Idle::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// Makes a connection without asking anything, to see whether that works.
    pub async fn reach(&self) -> Result<(), ClientError> {
        let sender = self.connect().await?;
        self.put_back(sender);
        Ok(())
    }

    /// Asks, and returns the answer when it is a 2xx, a 404 or a 416; everything else is an error.
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, ClientError> {
        let (sender, response) = self.exchange(ask).await?;
        let (parts, body) = response.into_parts();
        let answer = Answer {
            path: ask.path.clone(),
            status: parts.status,
            headers: parts.headers,
            body,
            sender: Some(sender),
            idle: Arc::clone(&self.idle),
        };
        answer.accept().await
    }

    /// Gets a whole body of at most `max_bytes`; `None` for 404.
    pub async fn get(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, ClientError> {
        let answer = self.ask(&Ask::get(path)).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        answer.whole(max_bytes).await.map(Some)
    }

    async fn exchange(&self, ask: &Ask) -> Result<(Sender, http::Response<Incoming>), ClientError> {
        let authority = self.route.authority();
        // A kept connection may have been closed at the other end while it lay idle; that says nothing about the
        // facade, so a request that lost this race goes out once more on a new one.
        if let Some(mut sender) = self.take_idle().await {
            let sent = tokio::time::timeout(ask.patience, sender.send_request(ask.build(authority)?)).await;
            match sent {
                Ok(Ok(response)) => return Ok((sender, response)),
                Ok(Err(error)) if !ask.is_repeatable() && !error.is_canceled() => {
                    return Err(self.route.explain(&ask.path, error));
                }
                Ok(Err(_)) => {}
                Err(_) => return Err(self.slow(ask)),
            }
        }
        let mut sender = self.connect().await?;
        match tokio::time::timeout(ask.patience, sender.send_request(ask.build(authority)?)).await {
            Ok(Ok(response)) => Ok((sender, response)),
            Ok(Err(error)) => Err(self.route.explain(&ask.path, error)),
            Err(_) => Err(self.slow(ask)),
        }
    }

    fn slow(&self, ask: &Ask) -> ClientError {
        ClientError::NoAnswer {
            facade: self.route.authority().to_owned(),
            path: ask.path.clone(),
            seconds: ask.patience.as_secs(),
        }
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let (sender, connection) = self.route.open().await?;
        self.tasks.spawn(async move {
            // The error reaches whoever waits for the answer; here it only ends the connection.
            if let Err(error) = connection.await {
                tracing::debug!(error = %error, "connection to the facade ended");
            }
        });
        Ok(sender)
    }

    async fn take_idle(&self) -> Option<Sender> {
        loop {
            let mut sender = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if tokio::time::timeout(Duration::from_secs(1), sender.ready())
                .await
                .is_ok_and(|ready| ready.is_ok())
            {
                return Some(sender);
            }
        }
    }

    fn put_back(&self, sender: Sender) {
        put_back(&self.idle, sender);
    }
}

impl Ask {
    fn is_repeatable(&self) -> bool {
        matches!(self.method, Method::GET | Method::PUT)
    }
}

fn put_back(idle: &Idle, sender: Sender) {
    let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
    if !sender.is_closed() && idle.len() < MAX_IDLE {
        idle.push(sender);
    }
}

/// An answer whose body is still to come.
pub struct Answer {
    path: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    sender: Option<Sender>,
    idle: Idle,
}

impl Answer {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The path that was asked for.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The next piece of the body; `None` at its end. Fails when nothing comes for `stall`.
    pub async fn next(&mut self, stall: Duration) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = tokio::time::timeout(stall, self.body.frame()).await;
            let frame = frame
                .map_err(|_| ClientError::Stalled { path: self.path.clone(), seconds: stall.as_secs() })?;
            match frame {
                None => {
                    if let Some(sender) = self.sender.take() {
                        put_back(&self.idle, sender);
                    }
                    return Ok(None);
                }
                Some(Err(source)) => {
                    return Err(ClientError::Cut { path: self.path.clone(), source });
                }
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// The whole body, if it is at most `max_bytes`.
    pub async fn whole(mut self, max_bytes: u64) -> Result<Vec<u8>, ClientError> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next(STALL).await? {
            if whole.len() as u64 + bytes.len() as u64 > max_bytes {
                return Err(ClientError::TooLong { path: self.path, max_bytes });
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole)
    }

    async fn accept(self) -> Result<Self, ClientError> {
        let encoded =
            self.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity");
        if encoded {
            return Err(ClientError::Encoded { path: self.path });
        }
        match self.status {
            status if status.is_success() => Ok(self),
            StatusCode::NOT_FOUND | StatusCode::RANGE_NOT_SATISFIABLE => Ok(self),
            status if status.is_redirection() => Err(ClientError::Redirect { path: self.path, status }),
            _ => Err(self.refusal().await),
        }
    }

    async fn refusal(self) -> ClientError {
        let (path, status) = (self.path.clone(), self.status);
        let retry_after = self.headers.get(header::RETRY_AFTER).and_then(error::retry_after);
        let body = self.whole(MAX_REFUSAL_BYTES as u64).await.unwrap_or_default();
        ClientError::Status { path, status, retry_after, detail: error::detail(&body) }
    }
}
