//! A scripted server: a closure answers each request, byte for byte, and every request is remembered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A request that came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

enum Piece {
    Bytes(Vec<u8>),
    Pause(Duration),
    Cut,
}

/// An answer, as pieces to be written one after the other.
pub(crate) struct Reply(Vec<Piece>);

impl Reply {
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        Self::part(status, headers, body.as_ref().len(), body)
    }

    /// An answer that promises another length than it has.
    pub(crate) fn part(status: u16, headers: &[(&str, &str)], length: usize, body: impl AsRef<[u8]>) -> Self {
        let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body.as_ref());
        Self(vec![Piece::Bytes(bytes)])
    }

    pub(crate) fn ok(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, &[], body)
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::new(status, &[], "")
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(307, &[("Location", to)], "")
    }

    pub(crate) fn challenge(challenge: &str) -> Self {
        Self::new(401, &[("WWW-Authenticate", challenge)], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
    }

    pub(crate) fn raw(bytes: &[u8]) -> Self {
        Self(vec![Piece::Bytes(bytes.to_vec()), Piece::Cut])
    }

    /// Nothing at all for a while.
    pub(crate) fn raw_after(pause: Duration) -> Self {
        Self(vec![Piece::Pause(pause), Piece::Cut])
    }

    pub(crate) fn then_cut(mut self) -> Self {
        self.0.push(Piece::Cut);
        self
    }

    pub(crate) fn then_pause(mut self, pause: Duration) -> Self {
        self.0.push(Piece::Pause(pause));
        self
    }

    pub(crate) fn then_bytes(mut self, bytes: &[u8]) -> Self {
        self.0.push(Piece::Bytes(bytes.to_vec()));
        self
    }
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// A scripted server on a port of its own.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(crate) fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen("127.0.0.1:0", Arc::new(script), None)
    }

    pub(crate) fn start_at(address: &str, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(address, Arc::new(script), None)
    }

    pub(crate) fn start_tls(
        tls: ServerConfig,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen("127.0.0.1:0", Arc::new(script), Some(Arc::new(tls)))
    }

    fn listen(address: &str, script: Script, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let (script, log, tls) = (Arc::clone(&script), Arc::clone(&log), tls.clone());
                thread::spawn(move || match tls {
                    None => talk(tcp, &script, &log),
                    Some(tls) => {
                        talk(StreamOwned::new(ServerConnection::new(tls).unwrap(), tcp), &script, &log);
                    }
                });
            }
        });
        Self { address, seen }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Everything that ever came in, as text.
    pub(crate) fn transcript(&self) -> String {
        self.seen().iter().map(|seen| format!("{}\n{}\n", seen.head, seen.body)).collect()
    }
}

fn talk(mut stream: impl Read + Write, script: &Script, log: &Mutex<Vec<Seen>>) {
    while let Some(seen) = read_request(&mut stream) {
        log.lock().unwrap().push(seen.clone());
        for piece in script(&seen).0 {
            match piece {
                Piece::Bytes(bytes) => {
                    if stream.write_all(&bytes).and_then(|()| stream.flush()).is_err() {
                        return;
                    }
                }
                Piece::Pause(pause) => thread::sleep(pause),
                Piece::Cut => return,
            }
        }
        if seen.header("connection") == Some("close") {
            return;
        }
    }
}

fn read_request(stream: &mut impl Read) -> Option<Seen> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let mut words = head.split(' ');
    let mut seen = Seen {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        head: head.clone(),
        body: String::new(),
    };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    seen.body = String::from_utf8(body).ok()?;
    Some(seen)
}

/// One blocking request of a test's own, to fill a registry.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String) {
    let mut tcp = TcpStream::connect(address).unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    tcp.write_all(head.as_bytes()).unwrap();
    tcp.write_all(body).unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer[9..12].parse().unwrap(), answer)
}
