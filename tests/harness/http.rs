//! Plain HTTP/1.1 on loopback: a small client for pushes and probes, and the request reader of the rig's servers.
//!
//! One request per connection, so that what a test sees on the wire is what it asked for.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Header lines in the order they came.
#[derive(Clone, Debug, Default)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The first value of `name`, whatever its case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut lines = self.0.iter();
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn read(reader: &mut impl std::io::BufRead) -> std::io::Result<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end();
            if line.is_empty() {
                return Ok(Self(lines));
            }
            if let Some((key, value)) = line.split_once(':') {
                lines.push((key.to_owned(), value.trim().to_owned()));
            }
        }
    }
}

/// An answer read whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A request head as a server of the rig reads it.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// `GET` and so on.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Its headers.
    pub headers: Headers,
}

/// An answer whose body has not been read.
pub struct Incoming {
    /// The status code.
    pub status: u16,
    /// Its headers.
    pub headers: Headers,
    /// The rest of the connection, from the first byte of the body.
    pub reader: BufReader<TcpStream>,
}

/// Sends one request and returns as soon as the answer's head is in.
pub fn send(
    authority: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Incoming> {
    let mut stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_mins(1)))?;
    let length = body.len().to_string();
    let mut all = vec![("Host", authority), ("Connection", "close")];
    all.extend(headers);
    if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
        all.push(("Content-Length", &length));
    }
    stream.write_all(head(&format!("{method} {target} HTTP/1.1"), &all).as_bytes())?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let mut status_line = String::new();
    reader.read_line(&mut status_line)?;
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status =
        status.ok_or_else(|| std::io::Error::other(format!("not an HTTP answer: {status_line:?}")))?;
    let headers = Headers::read(&mut reader)?;
    Ok(Incoming { status, headers, reader })
}

/// Sends one request and reads the whole answer.
pub fn request(
    authority: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut incoming = send(authority, method, target, headers, body)?;
    let mut received = Vec::new();
    if method != "HEAD" {
        read_body(&mut incoming, &mut received)?;
    }
    Ok(Response { status: incoming.status, headers: incoming.headers, body: received })
}

/// `GET` without headers.
pub fn get(authority: &str, target: &str) -> std::io::Result<Response> {
    request(authority, "GET", target, &[], b"")
}

fn read_body(incoming: &mut Incoming, into: &mut Vec<u8>) -> std::io::Result<()> {
    if incoming.headers.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    {
        return read_chunks(&mut incoming.reader, into);
    }
    match incoming.headers.get("content-length").and_then(|length| length.parse::<u64>().ok()) {
        Some(length) => (&mut incoming.reader).take(length).read_to_end(into).map(drop),
        None => incoming.reader.read_to_end(into).map(drop),
    }
}

fn read_chunks(reader: &mut BufReader<TcpStream>, into: &mut Vec<u8>) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = line.trim().split(';').next().unwrap_or_default();
        let size = u64::from_str_radix(size, 16).map_err(std::io::Error::other)?;
        reader.take(size).read_to_end(into)?;
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}

/// Reads a request head, and its body when it declares a length.
pub fn read_request(stream: impl Read) -> std::io::Result<(RequestHead, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(std::io::Error::other("not a request"));
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let headers = Headers::read(&mut reader)?;
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    Ok((RequestHead { method, target, headers }, body))
}

/// A loopback server with a thread per connection, ended when dropped.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves every connection with `serve` until dropped.
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_on(0, serve)
    }

    /// The same on a certain port.
    pub fn start_on(port: u16, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, port).into(), serve)
    }

    /// The same at a certain address.
    pub fn start_at(address: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener =
            TcpListener::bind(address).unwrap_or_else(|error| panic!("listen at {address}: {error}"));
        let address = listener.local_addr().expect("a local address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serve = Arc::new(serve);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { address, stop, accepting: Some(accepting) }
    }

    /// `address:port`.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept loop; when that fails the listener is gone already.
        drop(TcpStream::connect(self.authority()));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

/// Writes a whole answer.
pub fn answer(mut stream: impl Write, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    let length = body.len().to_string();
    let mut all = vec![("Connection", "close"), ("Content-Length", &length)];
    all.extend(headers);
    let head = status_head(status, &all);
    // The client may have hung up: that is for the client's side of the test to notice.
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
}

/// The head of an answer.
pub fn status_head(status: u16, headers: &[(&str, &str)]) -> String {
    head(&format!("HTTP/1.1 {status} {}", reason(status)), headers)
}

fn head(first_line: &str, headers: &[(&str, &str)]) -> String {
    let lines = headers.iter().flat_map(|(name, value)| [*name, ": ", *value, "\r\n"]);
    let lines: String = [first_line, "\r\n"].into_iter().chain(lines).collect();
    lines + "\r\n"
}

/// The phrase of a status line.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        429 => "Too Many Requests",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
