//! One HTTPS client per registry: requests, limits, and redirects that never carry a secret too far.
//!
//! Redirects are followed here, five at most: `Authorization` goes to the origin it was made for and is never put back
//! once it was dropped (older clients leaked it on the second hop), https never becomes http, and every hop is held
//! against the connection's [`Policy`](super::address::Policy).

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as Http;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;
use tracing::{Instrument as _, Span};

use super::Limits;
use super::blob::Body;
use super::counters::{Exchange, Tally};
use super::dial::Dialer;
use super::error::{Cause, UpstreamError};
use super::target::{Scheme, Target};
use crate::secret::Secret;
use crate::trace::TRACE;

/// Most bytes of an answer over HTTP/1.1 that are read at once, and longest head of one. What is read waits in a queue
/// before it is written, so this decides what a large blob needs of memory.
const READ_BYTES: usize = 64 * 1024;
const MAX_REDIRECTS: usize = 5;
const MAX_ERROR_BYTES: usize = 8 * 1024;
const MAX_IDLE_CONNECTIONS: usize = 16;
const IDLE_CONNECTION: Duration = Duration::from_mins(1);
const AGENT: &str = concat!("drayage-facade/", env!("CARGO_PKG_VERSION"));

/// A client for one registry.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: Http<Dialer, Full<Bytes>>,
    dialer: Dialer,
    limits: Limits,
    tally: Option<Tally>,
}

/// An `Authorization` header, and the secrets in it, which no error text may repeat.
#[derive(Clone, Debug)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    pub(super) secrets: Vec<Secret>,
}

/// The head of an answer, with its body still to come.
#[derive(Debug)]
pub(super) struct Answer {
    /// Where it came from, after redirects.
    pub(super) target: Target,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    secrets: Vec<Secret>,
}

impl Client {
    pub(super) fn new(dialer: Dialer, limits: Limits) -> Self {
        let http = Http::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .http1_max_buf_size(READ_BYTES)
            .build(dialer.clone());
        Self { http, dialer, limits, tally: None }
    }

    /// The same, with its requests and exchanges counted.
    pub(super) fn counted(self, tally: Tally) -> Self {
        Self { tally: Some(tally), ..self }
    }

    /// Counts an exchange that was made for this registry, and hands its outcome on.
    pub(super) fn exchanged<T>(
        &self,
        kind: Exchange,
        outcome: Result<T, UpstreamError>,
    ) -> Result<T, UpstreamError> {
        if let Some(tally) = &self.tally {
            tally.exchanged(kind, &outcome);
        }
        outcome
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Gets a target, and whatever it redirects to.
    pub(super) async fn get(
        &self,
        target: &Target,
        headers: &HeaderMap,
        authorization: Option<&Authorization>,
    ) -> Result<Answer, UpstreamError> {
        let mut target = target.clone();
        let mut authorization = authorization;
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = headers.clone();
            if let Some(authorization) = authorization {
                headers.insert(AUTHORIZATION, authorization.header.clone());
            }
            let response = self.send(Method::GET, &target, headers, Bytes::new()).await?;
            if !is_redirect(response.status()) {
                return self.answer(target, response, authorization);
            }
            let next = redirection(&target, &response)?;
            if !next.same_origin(&target) {
                authorization = None;
            }
            target = next;
        }
        Err(bad(&target, "redirects more than five times"))
    }

    /// Posts to a target. A redirect is an answer like any other: a posted secret is not sent a second time.
    pub(super) async fn post(
        &self,
        target: &Target,
        mut headers: HeaderMap,
        content_type: &'static str,
        body: Bytes,
        secrets: Vec<Secret>,
    ) -> Result<Answer, UpstreamError> {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let response = self.send(Method::POST, target, headers, body).await?;
        let mut answer = self.answer(target.clone(), response, None)?;
        answer.secrets = secrets;
        Ok(answer)
    }

    /// Sends one request, without redirects; for endpoints that are fixed in this code or by the configuration.
    pub(super) async fn put(&self, target: &Target, headers: HeaderMap) -> Result<Answer, UpstreamError> {
        let response = self.send(Method::PUT, target, headers, Bytes::new()).await?;
        self.answer(target.clone(), response, None)
    }

    pub(super) async fn send(
        &self,
        method: Method,
        target: &Target,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let forbidden =
            |why| UpstreamError::ForbiddenTarget { host: target.authority().into(), source: Cause::new(why) };
        self.dialer.policy().permits(target).map_err(forbidden)?;
        let uri = target.uri().ok_or_else(|| bad(target, "points to no valid URL"))?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let headers = request.headers_mut();
        // An encoded body has another digest; there is nothing that we would decode.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let span = self.span(&method, target);
        let asked = self.http.request(request).instrument(span.clone());
        let outcome = match timeout(self.limits.head, asked).await {
            Ok(sent) => sent.map_err(|error| failure(target, &error)),
            Err(_) => Err(UpstreamError::Timeout {
                host: target.authority().into(),
                doing: "sending the head of its answer",
            }),
        };
        if let Ok(response) = &outcome {
            span.record("http.response.status_code", response.status().as_u16());
        }
        if let Some(tally) = &self.tally {
            tally.asked(outcome.as_ref().ok().map(Response::status));
        }
        outcome
    }

    /// For traces: a request to a registry. What goes to the collector of traces is none, or it would never end.
    fn span(&self, method: &Method, target: &Target) -> Span {
        if self.tally.is_none() {
            return Span::none();
        }
        tracing::debug_span!(
            target: TRACE,
            "ask registry",
            otel.kind = "client",
            http.request.method = %method,
            server.address = target.host(),
            url.path = target.path(),
            http.response.status_code = tracing::field::Empty,
        )
    }

    pub(super) fn answer(
        &self,
        target: Target,
        response: Response<Incoming>,
        authorization: Option<&Authorization>,
    ) -> Result<Answer, UpstreamError> {
        let (parts, incoming) = response.into_parts();
        let encoding = parts.headers.get(CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(bad(&target, "sent an encoded body though none was asked for"));
        }
        let body = Body::new(target.authority().into(), incoming, &self.limits);
        Ok(Answer {
            target,
            status: parts.status,
            headers: parts.headers,
            body,
            secrets: authorization.map(|used| used.secrets.clone()).unwrap_or_default(),
        })
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn redirection(from: &Target, response: &Response<Incoming>) -> Result<Target, UpstreamError> {
    let location = response.headers().get(LOCATION);
    let next = location
        .and_then(|location| location.to_str().ok())
        .and_then(|location| from.join(location))
        .ok_or_else(|| bad(from, "redirects to no valid URL"))?;
    if from.scheme() == Scheme::Https && next.scheme() == Scheme::Http {
        return Err(UpstreamError::ForbiddenTarget {
            host: from.authority().into(),
            source: Cause::new("it redirects from https to http"),
        });
    }
    Ok(next)
}

pub(super) fn bad(target: &Target, what: &str) -> UpstreamError {
    UpstreamError::BadAnswer { host: target.authority().into(), source: Cause::new(what) }
}

/// The dialer's own error out of the client's wrapping, or that the connection broke.
fn failure(target: &Target, error: &hyper_util::client::legacy::Error) -> UpstreamError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(dialling) = cause.downcast_ref::<UpstreamError>() {
            return dialling.clone();
        }
        if let Some(parsing) = cause.downcast_ref::<hyper::Error>().filter(|error| error.is_parse()) {
            return bad(target, &format!("does not speak HTTP: {}", Cause::of(parsing)));
        }
        source = cause.source();
    }
    UpstreamError::Interrupted {
        host: target.authority().into(),
        received_bytes: 0,
        source: Cause::of(error),
    }
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `Content-Length`, if it is there and one number.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH.as_str())?.parse().ok()
    }

    /// The media type without its parameters.
    pub(super) fn content_type(&self) -> Option<&str> {
        self.header(CONTENT_TYPE.as_str())?.split(';').next().map(str::trim)
    }

    pub(super) fn bad(&self, what: &str) -> UpstreamError {
        bad(&self.target, what)
    }

    /// What the registry says about its refusal, without any secret that was sent to it.
    pub(super) async fn said(self) -> Cause {
        let status = self.status;
        let body = self.body.start(MAX_ERROR_BYTES).await;
        let Some(mut words) = words(&String::from_utf8_lossy(&body)) else {
            return Cause::new(status.as_str());
        };
        // A registry that repeats the credentials in its error would write them into our logs.
        for secret in self.secrets.iter().filter(|secret| !secret.is_empty()) {
            words = words.replace(secret.expose(), "…");
        }
        Cause::new(&format!("{} {words}", status.as_u16()))
    }
}

/// The words of an OCI or OAuth error document.
fn words(text: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(text).ok()?;
    let texts = |value: &serde_json::Value, names: [&str; 2]| {
        let found = names.iter().filter_map(|name| value.get(name)?.as_str());
        let joined = found.collect::<Vec<_>>().join(": ");
        (!joined.is_empty()).then_some(joined)
    };
    let first = document.get("errors").and_then(|errors| errors.get(0));
    first
        .and_then(|error| texts(error, ["code", "message"]))
        .or_else(|| texts(&document, ["error", "error_description"]))
        .or_else(|| texts(&document, ["__type", "message"]))
        .or_else(|| texts(&document, ["details", "message"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_words_of_the_usual_error_documents() {
        for (text, expected) in [
            (r#"{"errors":[{"code":"DENIED","message":"no"}]}"#, Some("DENIED: no")),
            (
                r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#,
                Some("invalid_grant: Invalid JWT Signature."),
            ),
            (r#"{"details":"incorrect username or password"}"#, Some("incorrect username or password")),
            (r#"{"errors":[]}"#, None),
            ("<html>", None),
            ("[1]", None),
        ] {
            assert_eq!(words(text).as_deref(), expected, "{text}");
        }
    }
}
