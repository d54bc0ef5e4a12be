//! One request: route → authorize → do → answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};
use pki::digest::Digest;
use pki::oci::Repository;
use pki::x509::DeviceId;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::access_log::{Open, Serving};
use super::body::{Body, CHUNK_BYTES, Source};
use super::connection::Connection;
use super::range::{self, Selection};
use super::respond::{self, Dialect};
use super::route::{self, Action, ContentAction};
use super::tls::Device;
use super::{DeviceRequest, RequestBody};
use crate::authz::{self, Permitted, Refusal};
use crate::catalog::closure::Kind;
use crate::catalog::pulls::{self, Outcome};
use crate::metrics::AnswerLabels;
use crate::pull::{Origin, PullError, Reader, Wanted};
use crate::trace::{self, TRACE};

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

/// How far a request comes without anybody being waited for.
pub(super) enum Judged<'a> {
    /// To its end: it is refused, or what it asks for is at hand.
    Answered(Response<Body>),
    /// Content is to be opened, or somebody else knows the answer.
    Open(Pending<'a>),
}

/// A request that is permitted, and not answered yet.
pub(super) struct Pending<'a> {
    case: Case<'a>,
    work: Work,
}

enum Work {
    Pull(Pull),
    Handle(DeviceRequest),
}

/// What accompanies a request from its head to its answer.
struct Case<'a> {
    connection: &'a Arc<Connection>,
    request_id: String,
    is_head: bool,
    action: &'static str,
    /// For traces.
    span: Span,
    /// Dropped when the answer is made.
    _open: Open,
}

/// Answers a request that hyper read; never fails, because a failure is an answer too.
pub(super) async fn answer_hyper(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    // One that names no host, or two, has no one reading (RFC 9112, section 3.2).
    if parts.version == Version::HTTP_11 && parts.headers.get_all(HOST).iter().count() != 1 {
        let dialect = Dialect::of(parts.uri.path());
        let message = "a request names one host";
        return Ok(dialect.error(StatusCode::BAD_REQUEST, "HOST_INVALID", message));
    }
    let body = RequestBody(Some(body));
    let asked = Asked { method: parts.method, uri: parts.uri, headers: parts.headers, body };
    Ok(match judge(&connection, asked) {
        Judged::Answered(response) => response,
        // Boxed, so that hyper does not hold the room for it in every connection and stream.
        Judged::Open(pending) => Box::pin(pending.answer()).await,
    })
}

/// Judges a request, and answers it where that takes no waiting: a future for every manifest would cost more than
/// answering does.
pub(super) fn judge(connection: &Arc<Connection>, asked: Asked) -> Judged<'_> {
    let request_id = connection.shared.request_ids.next();
    let mut case = Case {
        connection,
        span: span(connection, &asked, &request_id),
        request_id,
        is_head: asked.method == Method::HEAD,
        action: "unroutable",
        _open: Open::begin(&connection.activity),
    };
    match case.judge(asked) {
        Ok(work) => Judged::Open(Pending { case, work }),
        Err(response) => Judged::Answered(case.close(*response)),
    }
}

impl Pending<'_> {
    /// Answers it.
    pub(super) async fn answer(self) -> Response<Body> {
        let span = self.case.span.clone();
        let response = match self.work {
            // Boxed, so that who waits for another answer does not hold the room for this.
            Work::Pull(pull) => Box::pin(pull.answer(&self.case)).instrument(span).await,
            Work::Handle(request) => {
                (self.case.connection.shared.door.handler)(request).instrument(span).await
            }
        };
        self.case.close(response)
    }
}

/// For traces: what a device asks. It lasts until the last byte of content is sent.
fn span(connection: &Connection, asked: &Asked, request_id: &str) -> Span {
    let span = tracing::debug_span!(
        target: TRACE,
        "answer device",
        otel.kind = "server",
        http.request.method = %asked.method,
        url.path = asked.uri.path(),
        request.id = request_id,
        device.id = connection.peer.device().map(|device| device.id().as_str()),
        action = Empty,
        blob.source = Empty,
        http.response.status_code = Empty,
        size_bytes = Empty,
        outcome = Empty,
    );
    trace::take_up(&span, &asked.headers);
    span
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

impl Case<'_> {
    /// Routes and authorizes. What is left to do, or the answer where nothing is.
    fn judge(&mut self, request: Asked) -> Result<Work, Box<Response<Body>>> {
        let door = &self.connection.shared.door;
        let dialect = Dialect::of(request.uri.path());
        let action = route::route(&request.method, request.uri.path(), request.uri.query());
        let action = action.map_err(|error| Box::new(dialect.unroutable(&error)))?;
        self.action = name(&action);
        let permit = authz::authorize(&self.connection.peer, &action, &door.access, door.clock.now());
        let permit = permit.map_err(|refusal| {
            self.note_refusal(refusal, &action);
            let kind = if let Action::Content(content) = &action { Some(content.kind) } else { None };
            Box::new(dialect.refused(refusal, kind))
        })?;
        match (permit.into_permitted(), action) {
            (Permitted::Content(device, wanted), Action::Content(asked)) => {
                Pull::begin(self, device, wanted, &asked, &request)
            }
            (_, Action::Ping) => Err(Box::new(respond::ping())),
            (permitted, action) => {
                let device = match permitted {
                    Permitted::Device(device) | Permitted::Content(device, _) => Some(device),
                    Permitted::Public => None,
                };
                Ok(Work::Handle(DeviceRequest {
                    action,
                    device,
                    headers: request.headers,
                    body: request.body,
                    remote: self.connection.remote,
                    request_id: self.request_id.as_str().into(),
                }))
            }
        }
    }

    fn note_refusal(&self, refusal: Refusal, action: &Action) {
        let device = self.connection.peer.device().map(Device::id);
        // Whoever has no certificate writes nothing in the log that operators look into.
        if let (Some(device), Action::Content(asked)) = (device, action) {
            self.note_nothing(device, (&asked.repository, asked.digest), Outcome::Refused, Duration::ZERO);
        }
        tracing::info!(
            target: crate::log::ACCESS,
            {
                device.id = device.map(tracing::field::display), remote = %self.connection.remote,
                action = self.action, reason = %refusal, request_id = self.request_id,
            },
            "refused"
        );
    }

    /// Writes into the access log that a device asked for something and got nothing of it.
    fn note_nothing(
        &self,
        device: &DeviceId,
        (repository, digest): (&Repository, Digest),
        outcome: Outcome,
        duration: Duration,
    ) {
        let door = &self.connection.shared.door;
        door.pulls.note(pulls::Pull {
            at: door.clock.now(),
            device: device.clone(),
            repository: repository.clone(),
            digest,
            source: None,
            size_bytes: 0,
            duration,
            outcome,
            request_id: self.request_id.as_str().into(),
        });
    }

    fn close(self, mut response: Response<Body>) -> Response<Body> {
        self.span.record("action", self.action);
        self.span.record("http.response.status_code", response.status().as_u16());
        if self.is_head {
            response = without_body(response);
        }
        response.headers_mut().insert(REQUEST_ID, respond::value(&self.request_id));
        let labels = AnswerLabels { action: self.action, status: response.status().as_u16() };
        self.connection.shared.door.metrics.answers.get_or_create(&labels).inc();
        response
    }
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
struct Pull {
    device: Device,
    wanted: Wanted,
    /// Of the answer, if there is content.
    head: Response<Body>,
    start: u64,
    end: u64,
}

impl Pull {
    /// Answers at once what needs no content, or content that is at hand.
    fn begin(
        case: &Case<'_>,
        device: Device,
        wanted: Wanted,
        asked: &ContentAction,
        request: &Asked,
    ) -> Result<Work, Box<Response<Body>>> {
        let etag = respond::etag(wanted.descriptor.digest);
        let header = |name: HeaderName| request.headers.get(name).and_then(|value| value.to_str().ok());
        let size_bytes = wanted.descriptor.size;
        // RFC 9110, 14.2: ranges are for GET.
        let selection = match request.method {
            Method::GET => range::select(header(RANGE), header(IF_RANGE), &etag, size_bytes),
            _ => Selection::Whole,
        };
        let mut head = respond::content(&wanted, &etag, selection);
        if let Some(host) = &asked.namespace {
            head.headers_mut().insert(OCI_NAMESPACE, respond::value(host.as_str()));
        }
        let known = header(IF_NONE_MATCH).is_some_and(|tags| {
            tags.split(',')
                .any(|tag| matches!(tag.trim().trim_start_matches("W/"), tag if tag == etag || tag == "*"))
        });
        if known {
            *head.status_mut() = StatusCode::NOT_MODIFIED;
            head.headers_mut().remove(CONTENT_LENGTH);
            return Err(Box::new(head));
        }
        let (start, end) = match selection {
            // The closure knows all that a HEAD tells: nobody is asked.
            _ if case.is_head => return Err(Box::new(head)),
            Selection::Unsatisfiable => return Err(Box::new(head)),
            Selection::Whole => (0, size_bytes),
            Selection::Part { start, end } => (start, end),
        };
        let pull = Self { device, wanted, head, start, end };
        match case.connection.shared.door.puller.at_hand(&pull.wanted) {
            Some((bytes, origin)) => Err(Box::new(pull.answer_at_hand(case, &bytes, origin))),
            None => Ok(Work::Pull(pull)),
        }
    }

    fn answer_at_hand(mut self, case: &Case<'_>, bytes: &Bytes, origin: Origin) -> Response<Body> {
        let mut serving = self.serving(case, origin);
        let bounds =
            [self.start, self.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len()));
        let bytes = bytes.slice(bounds[0]..bounds[1]);
        serving.sent(bytes.len() as u64);
        *self.head.body_mut() = Body::full(bytes);
        self.head
    }

    async fn answer(mut self, case: &Case<'_>) -> Response<Body> {
        let begun = Instant::now();
        match self.body(case).await {
            Ok(body) => {
                *self.head.body_mut() = body;
                self.head
            }
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(
                    device.id = %self.device.id(), blob.digest = %self.wanted.descriptor.digest, %error,
                    cause = source, request_id = case.request_id, "pull failed"
                );
                let content = (&self.wanted.repository, self.wanted.descriptor.digest);
                case.note_nothing(self.device.id(), content, Outcome::Failed, begun.elapsed());
                respond::pull_failed(&error, self.wanted.kind, spread(&case.request_id))
            }
        }
    }

    async fn body(&self, case: &Case<'_>) -> Result<Body, PullError> {
        let (start, end, shared) = (self.start, self.end, &case.connection.shared);
        let reader = shared.door.puller.open(&self.wanted, start).await?;
        let mut serving = self.serving(case, reader.origin());
        if end - start > CHUNK_BYTES as u64 {
            let (buffers, throttle) = (shared.buffers.clone(), case.connection.throttle.clone());
            return Ok(Body::content(Source { reader, start, end, buffers, throttle, serving }));
        }
        let bytes = read_all(reader, start, end).await?;
        serving.sent(bytes.len() as u64);
        Ok(Body::full(bytes))
    }

    fn serving(&self, case: &Case<'_>, origin: Origin) -> Serving {
        Serving::begin(
            case.connection,
            self.device.clone(),
            (self.wanted.repository.clone(), self.wanted.descriptor.digest),
            origin,
            &case.request_id,
            self.end - self.start,
            &case.span,
        )
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
