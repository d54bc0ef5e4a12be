//! Bodies on their way from a registry: bytes as they come, watched for stalls; nothing here is verified.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::Limits;
use super::error::{Cause, UpstreamError};

/// The bytes of a blob, from [`BlobStream::starts_at`] to its end.
#[derive(Debug)]
pub struct BlobStream {
    /// The offset of the first byte: what was asked for, or 0 where the registry does not serve ranges.
    pub starts_at: u64,
    /// The length of the whole blob, where the registry says it.
    pub total: Option<u64>,
    pub(super) body: Body,
}

impl BlobStream {
    /// The next bytes; none at the end. The content is not verified.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        self.body.next().await
    }
}

/// The body of an answer, read piece by piece under a watch.
pub(super) struct Body {
    host: Box<str>,
    incoming: Incoming,
    received_bytes: u64,
    idle: Duration,
    watch: Watch,
}

impl Body {
    pub(super) fn new(host: Box<str>, incoming: Incoming, limits: &Limits) -> Self {
        Self { host, incoming, received_bytes: 0, idle: limits.idle, watch: Watch::new(limits) }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            let started = Instant::now();
            let Ok(frame) = timeout(self.idle, self.incoming.frame()).await else {
                return Err(self.stalled());
            };
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| UpstreamError::Interrupted {
                host: self.host.clone(),
                received_bytes: self.received_bytes,
                source: Cause::of(&error),
            })?;
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            self.received_bytes += bytes.len() as u64;
            if !self.watch.keeps_up(started.elapsed(), bytes.len() as u64) {
                return Err(self.stalled());
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
        }
    }

    /// The whole body, if it is not longer than `max_bytes`.
    pub(super) async fn read(mut self, what: &'static str, max_bytes: usize) -> Result<Bytes, UpstreamError> {
        let mut whole = BytesMut::new();
        while let Some(piece) = self.next().await? {
            if whole.len() + piece.len() > max_bytes {
                return Err(UpstreamError::TooLarge { host: self.host, what, max_bytes: max_bytes as u64 });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// The start of the body, for an error text; whatever goes wrong ends it.
    pub(super) async fn start(mut self, max_bytes: usize) -> Vec<u8> {
        let mut start = Vec::new();
        while start.len() < max_bytes {
            let Ok(Some(piece)) = self.next().await else {
                break;
            };
            start.extend_from_slice(&piece);
        }
        start.truncate(max_bytes);
        start
    }

    fn stalled(&self) -> UpstreamError {
        UpstreamError::Stalled { host: self.host.clone(), received_bytes: self.received_bytes }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("host", &self.host)
            .field("received_bytes", &self.received_bytes)
            .finish_non_exhaustive()
    }
}

/// Holds a body against a lowest rate. A trickle of single bytes defeats a timeout per read; it does not defeat this.
///
/// Only the time spent waiting for the registry counts, not the time that the reader takes for itself.
#[derive(Debug)]
struct Watch {
    window: Duration,
    min_bytes: u64,
    waited: Duration,
    bytes: u64,
}

impl Watch {
    fn new(limits: &Limits) -> Self {
        Self {
            window: limits.window,
            min_bytes: limits.min_bytes_per_window,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    fn keeps_up(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.window {
            return true;
        }
        let enough = self.bytes >= self.min_bytes;
        self.waited = Duration::ZERO;
        self.bytes = 0;
        enough
    }
}

/// Where a 206 answer says its bytes are: `bytes FIRST-LAST/TOTAL` (RFC 9110, section 14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) total: Option<u64>,
}

impl ContentRange {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok()).flatten()
        };
        let (first, last) = (number(first)?, number(last)?);
        let total = match total {
            "*" => None,
            total => Some(number(total)?),
        };
        let ordered = first <= last && total.is_none_or(|total| last < total);
        ordered.then_some(Self { first, last, total })
    }

    /// Whether it holds everything from `from` on.
    pub(super) fn is_rest_from(&self, from: u64) -> bool {
        self.first == from && self.total.is_none_or(|total| self.last + 1 == total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_does_not_keep_up_but_a_slow_reader_costs_nothing() {
        let limits =
            Limits { window: Duration::from_mins(1), min_bytes_per_window: 1000, ..Limits::default() };
        let mut watch = Watch::new(&limits);
        for _ in 0..59 {
            assert!(watch.keeps_up(Duration::from_secs(1), 10));
        }
        assert!(!watch.keeps_up(Duration::from_secs(1), 10));
        let mut watch = Watch::new(&limits);
        for _ in 0..1000 {
            assert!(watch.keeps_up(Duration::from_secs(1), 20));
        }
        let mut watch = Watch::new(&limits);
        for _ in 0..100_000 {
            assert!(watch.keeps_up(Duration::ZERO, 1));
        }
    }

    #[test]
    fn reads_content_ranges() {
        let range = ContentRange::parse("bytes 5-9/10").unwrap();
        assert!(range.is_rest_from(5));
        assert!(!range.is_rest_from(4));
        assert!(ContentRange::parse("bytes 5-9/*").unwrap().is_rest_from(5));
        assert!(!ContentRange::parse("bytes 5-8/10").unwrap().is_rest_from(5));
    }

    #[test]
    fn rejects_content_ranges_that_say_nothing() {
        for text in [
            "",
            "bytes",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 5-10/10",
            "bytes -5/10",
            "bytes 5-/10",
            "bytes +5-9/10",
            "bytes 5-9/",
            "items 5-9/10",
            "bytes 5-99999999999999999999/*",
        ] {
            assert_eq!(ContentRange::parse(text), None, "{text}");
        }
    }
}
