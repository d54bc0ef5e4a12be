//! One request: route → authorize → do → answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE};
use http::{Method, Request, Response, StatusCode, Uri};
use hyper::body::{Body as _, Incoming};

use super::access_log::{Open, Serving};
use super::body::{Body, CHUNK_BYTES, Source};
use super::connection::Connection;
use super::range::{self, Selection};
use super::respond::{self, Dialect};
use super::route::{self, Action, ContentAction};
use super::tls::{Device, Peer};
use super::{DeviceRequest, RequestBody};
use crate::authz::{self, Permitted};
use crate::catalog::closure::Kind;
use crate::metrics::AnswerLabels;
use crate::pull::{PullError, Reader, Wanted};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// Devices that are turned away are told to come back within this much of each other.
const MAX_SPREAD_SECONDS: u64 = 8;

/// A request, whoever read it from the wire.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: RequestBody,
}

/// Answers a request that hyper read; never fails, because a failure is an answer too.
pub(super) async fn answer_hyper(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = RequestBody(Some(body));
    let asked = Asked { method: parts.method, uri: parts.uri, headers: parts.headers, body };
    Ok(answer(&connection, asked).await)
}

/// Answers one request.
pub(super) async fn answer(connection: &Arc<Connection>, asked: Asked) -> Response<Body> {
    let open = Open::begin(&connection.activity);
    let request_id = connection.shared.request_ids.next();
    let is_head = asked.method == Method::HEAD;
    let (action, mut response) = dispatch(connection, asked, &request_id).await;
    if is_head {
        response = without_body(response);
    }
    response.headers_mut().insert(REQUEST_ID, respond::value(&request_id));
    let labels = AnswerLabels { action, status: response.status().as_u16() };
    connection.shared.door.metrics.answers.get_or_create(&labels).inc();
    drop(open);
    response
}

/// What HEAD gets: the length of what GET would send, and none of it. Over HTTP/2 nobody below us takes the body away,
/// and clients end the stream with an error when one comes.
fn without_body(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let length = body.size_hint().exact().unwrap_or_default();
    if length > 0 && !parts.headers.contains_key(CONTENT_LENGTH) {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, Body::empty())
}

async fn dispatch(
    connection: &Arc<Connection>,
    request: Asked,
    request_id: &str,
) -> (&'static str, Response<Body>) {
    let door = &connection.shared.door;
    let dialect = Dialect::of(request.uri.path());
    let action = match route::route(&request.method, request.uri.path(), request.uri.query()) {
        Ok(action) => action,
        Err(error) => return ("unroutable", dialect.unroutable(&error)),
    };
    let name = name(&action);
    let permit = match authz::authorize(&connection.peer, &action, &door.access, door.clock.now()) {
        Ok(permit) => permit,
        Err(refusal) => {
            let device = match &connection.peer {
                Peer::Device(device) => Some(device.id()),
                Peer::Anonymous => None,
            };
            tracing::info!(
                target: crate::log::ACCESS,
                {
                    device.id = device.map(tracing::field::display), remote = %connection.remote, action = name,
                    reason = %refusal, request_id,
                },
                "refused"
            );
            let kind = if let Action::Content(content) = &action { Some(content.kind) } else { None };
            return (name, dialect.refused(refusal, kind));
        }
    };
    let response = match (permit.into_permitted(), action) {
        (Permitted::Content(device, wanted), Action::Content(asked)) => {
            let pull = Pull { connection, device: &device, wanted: &wanted, asked: &asked, request_id };
            pull.answer(&request.method, &request.headers).await
        }
        (_, Action::Ping) => respond::ping(),
        (permitted, action) => {
            let device = match permitted {
                Permitted::Device(device) | Permitted::Content(device, _) => Some(device),
                Permitted::Public => None,
            };
            let request = DeviceRequest {
                action,
                device,
                headers: request.headers,
                body: request.body,
                remote: connection.remote,
                request_id: request_id.into(),
            };
            (door.handler)(request).await
        }
    };
    (name, response)
}

fn name(action: &Action) -> &'static str {
    match action {
        Action::Ping => "ping",
        Action::Content(ContentAction { kind: Kind::Document, .. }) => "manifest",
        Action::Content(ContentAction { kind: Kind::Blob, .. }) => "blob",
        Action::Metadata { .. } => "metadata",
        Action::CaCerts => "cacerts",
        Action::Enroll => "enroll",
        Action::Reenroll => "reenroll",
        Action::CsrAttrs => "csrattrs",
        Action::Report => "report",
        Action::Wait { .. } => "wait",
    }
}

/// An authorized request for content.
struct Pull<'a> {
    connection: &'a Arc<Connection>,
    device: &'a Device,
    wanted: &'a Wanted,
    asked: &'a ContentAction,
    request_id: &'a str,
}

impl Pull<'_> {
    async fn answer(&self, method: &Method, headers: &HeaderMap) -> Response<Body> {
        let etag = respond::etag(self.wanted.descriptor.digest);
        let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let size_bytes = self.wanted.descriptor.size;
        // RFC 9110, 14.2: ranges are for GET.
        let selection = match *method {
            Method::GET => range::select(header(RANGE), header(IF_RANGE), &etag, size_bytes),
            _ => Selection::Whole,
        };
        let mut response = respond::content(self.wanted, &etag, selection);
        if let Some(host) = &self.asked.namespace {
            response.headers_mut().insert(OCI_NAMESPACE, respond::value(host.as_str()));
        }
        let known = header(IF_NONE_MATCH).is_some_and(|tags| {
            tags.split(',')
                .any(|tag| matches!(tag.trim().trim_start_matches("W/"), tag if tag == etag || tag == "*"))
        });
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().remove(http::header::CONTENT_LENGTH);
            return response;
        }
        let (start, end) = match selection {
            // The closure knows all that a HEAD tells: nobody is asked.
            _ if *method == Method::HEAD => return response,
            Selection::Unsatisfiable => return response,
            Selection::Whole => (0, size_bytes),
            Selection::Part { start, end } => (start, end),
        };
        match self.body(start, end).await {
            Ok(body) => {
                *response.body_mut() = body;
                response
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(
                    device.id = %self.device.id(), blob.digest = %self.wanted.descriptor.digest, %error, cause,
                    request_id = self.request_id, "pull failed"
                );
                respond::pull_failed(&error, self.wanted.kind, spread(self.request_id))
            }
        }
    }

    async fn body(&self, start: u64, end: u64) -> Result<Body, PullError> {
        let shared = &self.connection.shared;
        let reader = shared.door.puller.open(self.wanted, start).await?;
        let mut serving = Serving::begin(
            self.connection,
            self.device.clone(),
            self.wanted.descriptor.digest,
            reader.origin(),
            self.request_id,
            end - start,
        );
        if let Some(bytes) = reader.at_hand() {
            let bounds = [start, end].map(|at| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()));
            let bytes = bytes.slice(bounds[0]..bounds[1]);
            serving.sent(bytes.len() as u64);
            return Ok(Body::full(bytes));
        }
        if end - start > CHUNK_BYTES as u64 {
            let (buffers, throttle) = (shared.buffers.clone(), self.connection.throttle.clone());
            return Ok(Body::content(Source { reader, start, end, buffers, throttle, serving }));
        }
        let bytes = read_all(reader, start, end).await?;
        serving.sent(bytes.len() as u64);
        Ok(Body::full(bytes))
    }
}

/// Small content is read at once: a document and its head then leave in one piece.
async fn read_all(mut reader: Reader, start: u64, end: u64) -> Result<Vec<u8>, PullError> {
    let mut bytes = Vec::new();
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(CHUNK_BYTES);
        let (mut read, count) = reader.read_at(at, vec![0; length]).await?;
        read.truncate(count);
        at += count as u64;
        if bytes.is_empty() {
            bytes = read;
        } else {
            bytes.append(&mut read);
        }
    }
    Ok(bytes)
}

/// Different for every request.
fn spread(request_id: &str) -> Duration {
    let sum = request_id.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    Duration::from_secs(sum % MAX_SPREAD_SECONDS)
}

/// Names requests: unique within and across runs, and cheap.
pub(super) struct RequestIds {
    run: u32,
    next: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        let mut run = [0; 4];
        // Without randomness ids repeat across runs, which only makes logs harder to read.
        let _ = getrandom::fill(&mut run);
        Self { run: u32::from_ne_bytes(run), next: AtomicU64::new(1) }
    }

    fn next(&self) -> String {
        format!("{:08x}-{:x}", self.run, self.next.fetch_add(1, Ordering::Relaxed))
    }
}
