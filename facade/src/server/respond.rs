//! Outcomes → answers: the only place on the device door that knows HTTP statuses.
//!
//! Under `/v2/` errors are OCI error documents, elsewhere problem documents (RFC 9457). A public text never carries a
//! word, URL or header of a registry. There is no 401 and no redirect: both would make clients look elsewhere.

use std::time::Duration;

use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    HeaderValue, RETRY_AFTER,
};
use http::{Response, StatusCode};
use hyper::ext::ReasonPhrase;
use pki::digest::Digest;
use serde_json::json;

use super::body::Body;
use super::range::Selection;
use super::route::RouteError;
use crate::authz::Refusal;
use crate::catalog::closure::Kind;
use crate::pull::{PullError, Wanted};
use crate::upstream::UpstreamError;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// When somebody may ask again and nobody knows when it will be better.
const DEFAULT_RETRY: Duration = Duration::from_secs(5);

/// In which form errors are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OCI error documents.
    Oci,
    /// Problem documents.
    Problem,
}

impl Dialect {
    /// The form for a path.
    pub fn of(path: &str) -> Self {
        if path == "/v2" || path.starts_with("/v2/") { Self::Oci } else { Self::Problem }
    }

    /// An error in this form.
    pub fn error(self, status: StatusCode, code: &'static str, message: &str) -> Response<Body> {
        let (content_type, document) = match self {
            Self::Oci => {
                let error = json!({ "code": code, "message": message, "detail": null });
                ("application/json", json!({ "errors": [error] }))
            }
            Self::Problem => {
                let kind = code.to_ascii_lowercase().replace('_', "-");
                let problem = json!({
                    "type": format!("urn:drayage:problem:{kind}"),
                    "title": status.canonical_reason(),
                    "status": status.as_u16(),
                    "detail": message,
                });
                ("application/problem+json", problem)
            }
        };
        let mut response = bytes(content_type, document.to_string());
        *response.status_mut() = status;
        // containerd shows the reason phrase of HTTP/1.1 to its user, and nothing else of an error. Some parsers drop one
        // that is not ASCII.
        let visible = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        let reason: String = format!("{code} {message}").chars().map(visible).collect();
        if let Ok(reason) = ReasonPhrase::try_from(reason.into_bytes()) {
            response.extensions_mut().insert(reason);
        }
        response
    }

    /// A request that asks for nothing that exists here.
    pub(super) fn unroutable(self, error: &RouteError) -> Response<Body> {
        let (status, code) = match error {
            RouteError::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            RouteError::Unsupported => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            RouteError::Method { .. } => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            RouteError::Tag => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
            RouteError::Digest(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            RouteError::Name(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            RouteError::Query(_) => (StatusCode::BAD_REQUEST, "QUERY_INVALID"),
        };
        let mut response = self.error(status, code, &error.to_string());
        if let RouteError::Method { allow } = error {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }

    /// A request that is not permitted.
    pub(super) fn refused(self, refusal: Refusal, kind: Option<Kind>) -> Response<Body> {
        let unknown = match kind {
            Some(Kind::Document) => "MANIFEST_UNKNOWN",
            Some(Kind::Blob) | None => "BLOB_UNKNOWN",
        };
        let (status, code) = match refusal {
            Refusal::OtherPath => (StatusCode::NOT_FOUND, unknown),
            Refusal::NoCertificate
            | Refusal::NotYetValid
            | Refusal::Expired
            | Refusal::Unwelcome
            | Refusal::NotAssigned => (StatusCode::FORBIDDEN, "DENIED"),
        };
        self.error(status, code, &refusal.to_string())
    }
}

/// A pull that gave nothing. `spread` moves the time to ask again, so that devices which were turned away together do not
/// come back together.
pub(super) fn pull_failed(error: &PullError, kind: Kind, spread: Duration) -> Response<Body> {
    let (status, code, message, retry) = match error {
        PullError::RateLimited { retry_after, .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "TOOMANYREQUESTS",
            "the registry limits requests",
            Some(*retry_after),
        ),
        PullError::Upstream { source: UpstreamError::NotFound { .. }, .. } => match kind {
            Kind::Document => {
                (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "the registry no longer has it", None)
            }
            Kind::Blob => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "the registry no longer has it", None),
        },
        PullError::Upstream { source, .. } if source.is_retryable() => {
            (StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", "the registry does not answer", Some(DEFAULT_RETRY))
        }
        PullError::Upstream { .. } => {
            (StatusCode::BAD_GATEWAY, "UNAVAILABLE", "the registry refuses the facade", None)
        }
        PullError::NotConnected { .. } => {
            (StatusCode::BAD_GATEWAY, "UNAVAILABLE", "the registry is not connected", None)
        }
        PullError::Mismatch { .. } | PullError::WrongOffset { .. } => {
            (StatusCode::BAD_GATEWAY, "UNAVAILABLE", "the registry served wrong content", None)
        }
        PullError::WrongSize { .. } => {
            (StatusCode::BAD_GATEWAY, "SIZE_INVALID", "the manifest is wrong about the size of this", None)
        }
        PullError::Slow { .. } | PullError::Stalled { .. } => {
            (StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", "the registry is too slow", Some(DEFAULT_RETRY))
        }
        PullError::NoRoom { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            "the facade has no room for this",
            Some(DEFAULT_RETRY),
        ),
        PullError::Storage { .. } | PullError::Read { .. } | PullError::Died { .. } | PullError::Stopping => {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                "the facade cannot serve this now",
                Some(DEFAULT_RETRY),
            )
        }
    };
    let mut response = Dialect::Oci.error(status, code, message);
    if let Some(retry) = retry {
        let seconds = (retry + spread).as_secs().max(1);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Bytes with their type.
pub fn bytes(content_type: &'static str, bytes: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(bytes.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// `/v2/`: this is a registry.
pub(super) fn ping() -> Response<Body> {
    let mut response = bytes("application/json", "{}".to_owned());
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}

/// The entity tag of content.
pub(super) fn etag(digest: Digest) -> String {
    format!("\"{digest}\"")
}

/// The head of an answer with content; its body is still empty.
pub(super) fn content(wanted: &Wanted, etag: &str, selection: Selection) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    // All that follow, and those that the caller adds: a map that grows is a map that moves.
    response.headers_mut().reserve(12);
    let size = wanted.descriptor.size;
    let (status, length, range) = match selection {
        Selection::Whole => (StatusCode::OK, size, None),
        Selection::Part { start, end } => {
            (StatusCode::PARTIAL_CONTENT, end - start, Some(format!("bytes {start}-{}/{size}", end - 1)))
        }
        Selection::Unsatisfiable => {
            response = Dialect::Oci.error(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "RANGE_INVALID",
                "there are no such bytes",
            );
            (StatusCode::RANGE_NOT_SATISFIABLE, 0, Some(format!("bytes */{size}")))
        }
    };
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if selection != Selection::Unsatisfiable {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        // Blobs are bytes to every client; the type of a document decides how it is read.
        let media_type = match wanted.kind {
            Kind::Document => value(wanted.descriptor.media_type.as_str()),
            Kind::Blob => HeaderValue::from_static("application/octet-stream"),
        };
        headers.insert(CONTENT_TYPE, media_type);
    }
    if let Some(range) = range {
        headers.insert(CONTENT_RANGE, value(&range));
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    headers.insert(ETAG, value(etag));
    headers.insert(DOCKER_CONTENT_DIGEST, value(etag.trim_matches('"')));
    response
}

/// Our own texts are visible ASCII; should one ever not be, an empty header is better than no answer.
pub(super) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_and_forbidden_content_get_the_same_answer() {
        let answer = || Dialect::Oci.refused(Refusal::NotAssigned, Some(Kind::Blob));
        assert_eq!(answer().status(), StatusCode::FORBIDDEN);
        assert_eq!(answer().headers().get("www-authenticate"), None);
    }

    #[test]
    fn says_when_to_ask_again() {
        let limited =
            PullError::RateLimited { host: "ghcr.io".parse().unwrap(), retry_after: Duration::from_secs(30) };
        let answer = pull_failed(&limited, Kind::Blob, Duration::from_secs(2));
        assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers().get(RETRY_AFTER).unwrap(), "32");
    }

    #[test]
    fn never_tells_a_device_that_the_registry_refused_credentials() {
        let denied = UpstreamError::Denied {
            host: "ghcr.io".into(),
            source: crate::upstream::Cause::new("token ghp_secret is bad"),
        };
        let error = PullError::Upstream { digest: Digest::sha256(b""), source: denied };
        assert_eq!(pull_failed(&error, Kind::Document, Duration::ZERO).status(), StatusCode::BAD_GATEWAY);
    }
}
