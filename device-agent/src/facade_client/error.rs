//! What can go wrong between the device and its facade, in words that say where to look.

use std::time::Duration;

use http::{HeaderValue, StatusCode};
use pki::wire::Line;
use thiserror::Error;

use super::tls::TlsCause;

/// Why a request got no usable answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The TLS settings cannot be used.
    #[error("the device's identity cannot be used for TLS")]
    Settings(#[source] rustls::Error),
    /// The name of the facade has no address.
    #[error("the name {host} cannot be resolved; check the DNS settings of the device")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// The facade or the proxy.
        address: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The proxy does not let us through.
    #[error("the proxy {proxy} answers {answer:?} to CONNECT {facade}")]
    Proxy {
        /// The proxy.
        proxy: String,
        /// The facade.
        facade: String,
        /// The first line of its answer.
        answer: Line,
    },
    /// TLS failed.
    #[error("no TLS session with {facade}: {cause}")]
    Tls {
        /// The facade.
        facade: String,
        /// Why, in words.
        cause: TlsCause,
        /// What the TLS library says.
        #[source]
        source: std::io::Error,
    },
    /// The exchange broke off before the answer began.
    #[error("{facade} broke off before it answered {path}")]
    Broken {
        /// The facade.
        facade: String,
        /// The request.
        path: String,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The facade refused our certificate after the handshake, as TLS 1.3 does.
    #[error("{facade} refused this device: {cause}")]
    Unwelcome {
        /// The facade.
        facade: String,
        /// Why, in words.
        cause: TlsCause,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The answer did not begin in time.
    #[error("{facade} did not answer {path} within {seconds} s")]
    NoAnswer {
        /// The facade.
        facade: String,
        /// The request.
        path: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The body stopped coming.
    #[error("the answer to {path} stalled for {seconds} s")]
    Stalled {
        /// The request.
        path: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The body came too slowly.
    #[error("the answer to {path} came with {rate} bytes per second, less than {minimum}")]
    Slow {
        /// The request.
        path: String,
        /// Bytes per second.
        rate: u64,
        /// The least that is waited for.
        minimum: u64,
    },
    /// The body ended early.
    #[error("the answer to {path} was cut")]
    Cut {
        /// The request.
        path: String,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The body is longer than it may be.
    #[error("the answer to {path} is longer than {max_bytes} bytes")]
    TooLong {
        /// The request.
        path: String,
        /// The most it may be.
        max_bytes: u64,
    },
    /// Something between us and the facade encodes bodies.
    #[error("the answer to {path} is encoded, which was not asked for; is there a proxy that compresses?")]
    Encoded {
        /// The request.
        path: String,
    },
    /// Somebody wants us to go elsewhere with our certificate.
    #[error("the answer to {path} is a redirect ({status}), which is never followed")]
    Redirect {
        /// The request.
        path: String,
        /// The status.
        status: StatusCode,
    },
    /// The facade says no.
    #[error("the facade answers {status} to {path}: {detail}")]
    Status {
        /// The request.
        path: String,
        /// The status.
        status: StatusCode,
        /// How long the facade wants us to wait.
        retry_after: Option<Duration>,
        /// Its words.
        detail: Line,
    },
    /// The answer does not follow the protocol.
    #[error("the answer to {path} makes no sense: {problem}")]
    Protocol {
        /// The request.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The request itself cannot be made.
    #[error("{path} cannot be asked for")]
    Request {
        /// The request.
        path: String,
        /// Why not.
        #[source]
        source: http::Error,
    },
}

/// What a failure means for what is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nobody answers properly; try again later.
    Unreachable,
    /// The facade is busy; try again when it says.
    Busy,
    /// The facade knows us and says no, or does not know us.
    NotAllowed,
    /// Who answers is not our facade.
    Impostor,
    /// It answers nonsense.
    Broken,
}

impl ClientError {
    /// What the failure means.
    pub fn class(&self) -> Class {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::Broken { .. }
            | Self::NoAnswer { .. }
            | Self::Stalled { .. }
            | Self::Slow { .. }
            | Self::Cut { .. } => Class::Unreachable,
            Self::Tls { cause, .. } | Self::Unwelcome { cause, .. } => cause.class(),
            Self::Status { status, .. } => match *status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Class::NotAllowed,
                StatusCode::TOO_MANY_REQUESTS => Class::Busy,
                status if status.is_server_error() => Class::Busy,
                _ => Class::Broken,
            },
            Self::Settings(_) => Class::NotAllowed,
            Self::TooLong { .. }
            | Self::Encoded { .. }
            | Self::Redirect { .. }
            | Self::Protocol { .. }
            | Self::Request { .. } => Class::Broken,
        }
    }

    /// Whether the facade was reached, and what was asked for did not come.
    pub fn is_silence(&self) -> bool {
        if let Self::Status { status, .. } = self {
            // A facade that is busy says so, and is asked again.
            return status.is_server_error() && *status != StatusCode::SERVICE_UNAVAILABLE;
        }
        matches!(
            self,
            Self::Broken { .. }
                | Self::NoAnswer { .. }
                | Self::Stalled { .. }
                | Self::Slow { .. }
                | Self::Cut { .. }
        )
    }

    /// How long the facade wants us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Status { retry_after, .. } = self { *retry_after } else { None }
    }

    /// Whether the facade refused this device as a whole, and not one request of it.
    pub fn is_disowned(&self) -> bool {
        if let Self::Status { status, .. } = self {
            return *status == StatusCode::UNAUTHORIZED;
        }
        if let Self::Unwelcome { cause, .. } | Self::Tls { cause, .. } = self {
            return cause.disowns();
        }
        false
    }
}

/// No facade may send a device to sleep for longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Reads `Retry-After` in seconds; a date would need a clock that both agree on.
pub(super) fn retry_after(value: &HeaderValue) -> Option<Duration> {
    let seconds: u64 = value.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// The one sentence in the body of a refusal: OCI error JSON, problem JSON, or text.
pub(super) fn detail(body: &[u8]) -> Line {
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let text = json.as_ref().and_then(|json| {
        let oci = json.pointer("/errors/0/message");
        oci.or_else(|| json.get("detail")).or_else(|| json.get("title"))?.as_str()
    });
    match text {
        Some(text) => Line::shortened(text),
        None if body.is_empty() => Line::shortened("no reason given"),
        None => Line::shortened(&String::from_utf8_lossy(body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_sentence_of_a_refusal() {
        for (body, expected) in [
            (r#"{"errors":[{"code":"DENIED","message":"not assigned"}]}"#, "not assigned"),
            (r#"{"title":"Gone","detail":"token used up"}"#, "token used up"),
            ("plain words", "plain words"),
            ("", "no reason given"),
        ] {
            assert_eq!(detail(body.as_bytes()).as_str(), expected);
        }
    }

    #[test]
    fn rejects_absurd_waits() {
        let read = |text: &'static str| retry_after(&HeaderValue::from_static(text));
        assert_eq!(read("3"), Some(Duration::from_secs(3)));
        assert_eq!(read("99999999"), Some(LONGEST_WAIT));
        for text in ["-1", "soon", "Fri, 20 Nov 2026 20:00:00 GMT", "1.5", ""] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
