//! What can go wrong between the facade and a registry, told apart as far as a caller acts differently.
//!
//! These texts are for operators and logs. Whatever a registry said in them has been cleaned and cut by [`Cause`]; none
//! of it is ever shown to a device.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use pki::digest::Mismatch;
use thiserror::Error;

const MAX_CAUSE_CHARS: usize = 300;

/// A text that came from elsewhere, made safe to print: one line, no control characters, bounded.
#[derive(Clone, PartialEq, Eq)]
pub struct Cause(Box<str>);

impl Cause {
    /// Cleans a text.
    pub fn new(text: &str) -> Self {
        let printable = |c: char| if c.is_control() || is_invisible(c) { ' ' } else { c };
        let line: String = text.chars().take(MAX_CAUSE_CHARS).map(printable).collect();
        Self(line.split_whitespace().collect::<Vec<_>>().join(" ").into())
    }

    /// Cleans the chain of an error into one line.
    pub fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let said = cause.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            source = cause.source();
        }
        Self::new(&text)
    }
}

/// Direction marks and zero-width characters can make a log line read as another one.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

/// The layer below HTTP at which a host could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Its name does not resolve.
    Name,
    /// No connection to its address.
    Tcp,
    /// The proxy in between refused or failed.
    Proxy,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "its name does not resolve",
            Self::Tcp => "no TCP connection",
            Self::Proxy => "the proxy failed",
        })
    }
}

/// When to ask again a registry that limits the rate.
fn when(retry_after: Option<Duration>) -> String {
    // Rounded up: a moment too early is refused again.
    match retry_after.map(|wait| wait.as_millis().div_ceil(1000)) {
        None => "later".to_owned(),
        Some(seconds) if seconds < 120 => format!("in {seconds} s"),
        Some(seconds) => format!("in {} min", seconds.div_ceil(60)),
    }
}

/// Why a request to a registry gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpstreamError {
    /// The registry has no such content or repository (or hides it).
    #[error("{host} has no {what}")]
    NotFound {
        /// The registry.
        host: Box<str>,
        /// The tag, digest or repository that was asked for.
        what: Box<str>,
    },
    /// The registry wants credentials and the connection has none.
    #[error("{host} wants credentials and the connection has none")]
    Unauthenticated {
        /// The registry.
        host: Box<str>,
    },
    /// The credentials of the connection were rejected.
    #[error("{host} rejected the credentials of the connection")]
    Denied {
        /// The registry.
        host: Box<str>,
        /// What it said.
        #[source]
        source: Cause,
    },
    /// The credentials are good, but do not allow this.
    #[error("the credentials for {host} do not allow reading {what}")]
    Forbidden {
        /// The registry.
        host: Box<str>,
        /// What was asked for.
        what: Box<str>,
        /// What it said.
        #[source]
        source: Cause,
    },
    /// The registry limits the rate of requests.
    #[error(
        "{host} limits the rate of requests: try again {}, or connect it with an account that may ask more often (facade connection add {host} --username …)",
        when(*retry_after)
    )]
    RateLimited {
        /// The registry.
        host: Box<str>,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// Nothing came in time.
    #[error("{host} did not answer in time while {doing}")]
    Timeout {
        /// The host that was talked to.
        host: Box<str>,
        /// What was being done.
        doing: &'static str,
    },
    /// Bytes came, but too slowly or no longer.
    #[error("the answer of {host} stalled after {received_bytes} bytes")]
    Stalled {
        /// The registry.
        host: Box<str>,
        /// Bytes that had come.
        received_bytes: u64,
    },
    /// The connection broke in the middle of an answer.
    #[error("the answer of {host} was cut after {received_bytes} bytes")]
    Interrupted {
        /// The registry.
        host: Box<str>,
        /// Bytes that had come.
        received_bytes: u64,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// The host could not be reached.
    #[error("{host} cannot be reached: {layer}")]
    Unreachable {
        /// The host that was talked to.
        host: Box<str>,
        /// Where it failed.
        layer: Layer,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// TLS could not be agreed on, or the certificate is not trusted.
    #[error("no trusted TLS connection to {host}")]
    Tls {
        /// The host that was talked to.
        host: Box<str>,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// The registry is there but not in order.
    #[error("{host} answers with status {status}")]
    Unavailable {
        /// The host that was talked to.
        host: Box<str>,
        /// The HTTP status.
        status: u16,
    },
    /// The answer is not one that a registry may give.
    #[error("{host} gave an unacceptable answer")]
    BadAnswer {
        /// The host that was talked to.
        host: Box<str>,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },
    /// The answer is larger than its kind may be.
    #[error("the {what} of {host} is larger than {max_bytes} bytes")]
    TooLarge {
        /// The host that was talked to.
        host: Box<str>,
        /// What was being read.
        what: &'static str,
        /// The limit.
        max_bytes: u64,
    },
    /// The bytes are not the bytes that were named.
    #[error("{host} served wrong bytes")]
    DigestMismatch {
        /// The registry.
        host: Box<str>,
        /// How they differ.
        #[source]
        source: Mismatch,
    },
    /// The host leads to an address that the connection may not reach.
    #[error("{host} is at {address}, where this connection may not go ({why})")]
    ForbiddenAddress {
        /// The host that was to be talked to.
        host: Box<str>,
        /// Its address.
        address: IpAddr,
        /// The rule, and what would allow it.
        why: &'static str,
    },
    /// The registry points somewhere that the connection may not follow.
    #[error("{host} points to a place that this connection may not follow")]
    ForbiddenTarget {
        /// The registry.
        host: Box<str>,
        /// The rule, and what would allow it.
        #[source]
        source: Cause,
    },
}

impl UpstreamError {
    /// Whether the same request may succeed a little later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Interrupted { .. }
            | Self::Unreachable { .. }
            | Self::Unavailable { .. } => true,
            Self::NotFound { .. }
            | Self::Unauthenticated { .. }
            | Self::Denied { .. }
            | Self::Forbidden { .. }
            | Self::Tls { .. }
            | Self::BadAnswer { .. }
            | Self::TooLarge { .. }
            | Self::DigestMismatch { .. }
            | Self::ForbiddenAddress { .. }
            | Self::ForbiddenTarget { .. } => false,
        }
    }

    /// How long to wait before asking again, if the registry said so.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::RateLimited { retry_after, .. } = self { *retry_after } else { None }
    }

    /// The error and its causes in one clean line, for operators.
    pub fn line(&self) -> String {
        Cause::of(self).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_what_registries_say() {
        assert_eq!(Cause::new("a\r\nb\u{1b}[31m\u{202e}c\0  d").to_string(), "a b [31m c d");
        assert_eq!(Cause::new(&"x".repeat(5000)).to_string().len(), MAX_CAUSE_CHARS);
    }

    #[test]
    fn tells_the_whole_chain_in_one_line() {
        let error = UpstreamError::Denied { host: "ghcr.io".into(), source: Cause::new("bad\npassword") };
        assert_eq!(error.line(), "ghcr.io rejected the credentials of the connection: bad password");
    }
}
