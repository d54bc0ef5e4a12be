//! Heads of HTTP/1.1 messages: reading requests that have one plain reading, writing answers.

use std::cell::RefCell;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use http::{Method, StatusCode, Uri, response};
use hyper::ext::ReasonPhrase;
use jiff::fmt::rfc2822::DateTimePrinter;

use crate::clock::Clock;
use crate::server::connection::MAX_HEADERS;

/// A request without a body for something under `/v2/`.
pub(super) struct Plain {
    pub(super) method: Method,
    pub(super) uri: Uri,
    /// The headers that decide about content; no others are kept.
    pub(super) headers: HeaderMap,
    /// Whether the peer wants no further requests on this connection.
    pub(super) close: bool,
}

/// Headers that say something about the connection or about a body.
const NOT_PLAIN: [&str; 9] = [
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "keep-alive",
    "proxy-connection",
];

thread_local! {
    /// The second whose date was written last, and that date.
    static DATE: RefCell<(i64, String)> = RefCell::default();
}

/// What bytes are as the beginning of a request.
pub(super) enum Parsed {
    /// A plain request, with the length of its head.
    Plain(Plain, usize),
    /// More bytes are needed to tell.
    Partial,
    /// Something else, for hyper to judge.
    Odd,
}

/// Reads the head of a request. Whatever could make two readers disagree about where the request ends (any header about
/// bodies, RFC 9112 section 6; a bare line feed; a second host) is not plain.
pub(super) fn parse(received: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(received) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(_) => return Parsed::Odd,
    };
    let head = received.get(..length).unwrap_or_default();
    if !has_strict_line_ends(head) {
        return Parsed::Odd;
    }
    match plain(&request) {
        Some(plain) => Parsed::Plain(plain, length),
        None => Parsed::Odd,
    }
}

/// Every line feed has its carriage return (RFC 9112, section 2.2: some readers take a bare one for the end of a line).
fn has_strict_line_ends(head: &[u8]) -> bool {
    let mut before = 0;
    for byte in head {
        if *byte == b'\n' && before != b'\r' {
            return false;
        }
        before = *byte;
    }
    !head.starts_with(b"\r\n")
}

fn plain(request: &httparse::Request<'_, '_>) -> Option<Plain> {
    let method = match request.method? {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        _ => return None,
    };
    let target = request.path.filter(|target| target.starts_with("/v2/"))?;
    if request.version != Some(1) {
        return None;
    }
    let mut headers = HeaderMap::new();
    let (mut hosts, mut close) = (0, false);
    for header in request.headers.iter() {
        // Visible ASCII only: what else may be in there is for hyper to judge.
        let value = std::str::from_utf8(header.value).ok().filter(|value| value.is_ascii())?;
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") {
            hosts += 1;
        } else if is("connection") && value.eq_ignore_ascii_case("close") {
            close = true;
        } else if is("connection") && value.eq_ignore_ascii_case("keep-alive") {
        } else if NOT_PLAIN.into_iter().any(is) {
            return None;
        } else if let Some(name) = [RANGE, IF_RANGE, IF_NONE_MATCH].into_iter().find(|name| is(name.as_str()))
        {
            headers.append(name, HeaderValue::from_str(value).ok()?);
        }
    }
    if hosts != 1 {
        return None;
    }
    Some(Plain { method, uri: target.parse().ok()?, headers, close })
}

/// Writes the head of an answer whose body has `length` bytes, unless its headers say another length.
pub(super) fn write(parts: &response::Parts, length: u64, last: bool) -> Vec<u8> {
    let mut head = Vec::with_capacity(768);
    let reason = parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
    let reason = reason.or(parts.status.canonical_reason().map(str::as_bytes)).unwrap_or_default();
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(parts.status.as_str().as_bytes());
    head.push(b' ');
    head.extend_from_slice(reason);
    head.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        line(&mut head, name, value.as_bytes());
    }
    if !parts.headers.contains_key(CONTENT_LENGTH) && parts.status != StatusCode::NOT_MODIFIED {
        line(&mut head, &CONTENT_LENGTH, length.to_string().as_bytes());
    }
    let now = Clock::system().now();
    DATE.with_borrow_mut(|(second, date)| {
        if *second != now.as_second() {
            *date = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap_or_default();
            *second = now.as_second();
        }
        line(&mut head, &http::header::DATE, date.as_bytes());
    });
    if last {
        line(&mut head, &CONNECTION, b"close");
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn line(head: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    head.extend_from_slice(name.as_str().as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_plain(text: &str) -> bool {
        matches!(parse(text.as_bytes()), Parsed::Plain(_, length) if length == text.len())
    }

    #[test]
    fn takes_what_clients_of_registries_send() {
        for text in [
            "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /v2/a/blobs/sha256:ab?ns=docker.io HTTP/1.1\r\nHost: a:8443\r\nUser-Agent: containerd/1.6.20\r\n\
             Accept: x/y, */*\r\nAccept-Encoding: gzip\r\nRange: bytes=5-\r\n\r\n",
            "HEAD /v2/x HTTP/1.1\r\nhost: a\r\nConnection: close\r\n\r\n",
        ] {
            assert!(is_plain(text), "{text}");
        }
    }

    #[test]
    fn leaves_everything_odd_to_hyper() {
        for text in [
            "GET /v1/wait HTTP/1.1\r\nHost: a\r\n\r\n",
            "PUT /v2/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /v2/ HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING: chunked\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n",
            "GET /v2/ HTTP/1.1\nHost: a\n\n",
            "\r\nGET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nRange: bytes=\u{e9}\r\n\r\n",
            "GET http://a/v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
            "GET /v2/ HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n",
        ] {
            assert!(!is_plain(text), "{text}");
        }
        let many = format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS));
        assert!(!is_plain(&many));
    }

    #[test]
    fn waits_for_the_whole_head() {
        let text = "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n";
        for length in 1..text.len() {
            assert!(matches!(parse(&text.as_bytes()[..length]), Parsed::Partial), "{length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"GET /v2/ HTTP/1.1\r\nHost: a\r\n", bytes.as_slice()].concat());
        }
    }
}
