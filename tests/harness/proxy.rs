//! The faulty wire: a reverse proxy in front of a registry that does as scripted and remembers every request.

use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use pki::digest::Digest;

use crate::http::{self, Incoming, RequestHead, Server};
use crate::process::{READY, poll};

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    CutAfter(u64),
    /// The byte at this offset of the body arrives with a bit flipped.
    WrongByteAt(u64),
    /// The registry answers this status instead, with `Retry-After` when given.
    Status {
        /// The status code.
        status: u16,
        /// Seconds to name in `Retry-After`.
        retry_after_seconds: Option<u32>,
    },
    /// The body comes in pieces of this size with a pause after each.
    Drip {
        /// Bytes per piece.
        piece_bytes: usize,
        /// The pause.
        pause: Duration,
    },
    /// The body stops after so many bytes and goes on only when [`Proxy::release`] is called.
    HoldAfter(u64),
    /// The `Range` header of the request is not passed on: a server that knows no ranges.
    NoRange,
    /// The registry sends the client elsewhere (307), with the same path.
    Redirect {
        /// `http://host:port`, without a path.
        to: String,
    },
}

/// Which requests a fault meets.
#[derive(Clone, Debug)]
pub enum When {
    /// Every request.
    Always,
    /// Requests whose path ends in this digest.
    Digest(Digest),
    /// Requests whose path contains this text.
    Path(String),
}

impl When {
    fn meets(&self, head: &RequestHead) -> bool {
        let path = head.target.split('?').next().unwrap_or_default();
        match self {
            Self::Always => true,
            Self::Digest(digest) => path.ends_with(&digest.to_string()),
            Self::Path(part) => path.contains(part.as_str()),
        }
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Whether it carried an `Authorization` header.
    pub authorized: bool,
}

struct Scripted {
    when: When,
    fault: Fault,
    times_left: usize,
}

#[derive(Default)]
struct State {
    script: Vec<Scripted>,
    seen: Vec<Seen>,
    body_bytes: u64,
    holding: usize,
    released: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("an unpoisoned lock")
    }
}

/// A running proxy.
pub struct Proxy {
    server: Server,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts a faultless wire to `upstream` (`host:port`).
    pub fn before(upstream: &str) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), upstream)
    }

    /// The same on port 80 of a loopback address of its own: a registry host without a port in its name, as image
    /// references with two hosts in them need it. Only root may listen there.
    pub fn on_port_80_before(upstream: &str) -> Self {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        Self::at((Ipv4Addr::new(127, 80, high, low.max(1)), 80).into(), upstream)
    }

    fn at(address: SocketAddr, upstream: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let upstream = upstream.to_owned();
        let server = Server::start_at(address, move |stream| serve(&serving, &upstream, &stream));
        Self { server, shared }
    }

    /// `address:port`, without the port where it is 80.
    pub fn host(&self) -> String {
        let authority = self.server.authority();
        authority.strip_suffix(":80").map(str::to_owned).unwrap_or(authority)
    }

    /// Lets the next request that `when` describes meet `fault`.
    pub fn once(&self, when: When, fault: Fault) {
        self.script(when, fault, 1);
    }

    /// Lets every request that `when` describes meet `fault`, until [`Proxy::heal`].
    pub fn always(&self, when: When, fault: Fault) {
        self.script(when, fault, usize::MAX);
    }

    /// Lets the next `times` requests that `when` describes meet `fault`.
    pub fn script(&self, when: When, fault: Fault, times: usize) {
        self.shared.lock().script.push(Scripted { when, fault, times_left: times });
    }

    /// Ends all faults; bodies on hold go on.
    pub fn heal(&self) {
        self.shared.lock().script.clear();
        self.release();
    }

    /// Lets bodies on hold go on.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }

    /// Waits until a body is on hold: somebody is in mid-pull.
    pub fn wait_until_holding(&self) {
        poll("a transfer to be on hold", READY, || (self.shared.lock().holding > 0).then_some(()));
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// How many requests with `method` named `digest`.
    pub fn count(&self, method: &str, digest: &Digest) -> usize {
        let suffix = format!("/{digest}");
        let named = |seen: &&Seen| seen.method == method && seen.target.contains(&suffix);
        self.shared.lock().seen.iter().filter(named).count()
    }

    /// Bytes of bodies sent so far.
    pub fn body_bytes(&self) -> u64 {
        self.shared.lock().body_bytes
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        let mut state = self.shared.lock();
        state.seen.clear();
        state.body_bytes = 0;
    }
}

fn serve(shared: &Shared, upstream: &str, stream: &TcpStream) {
    let Ok((head, body)) = http::read_request(stream) else {
        return;
    };
    let fault = shared.note(&head);
    match &fault {
        Some(Fault::Status { status, retry_after_seconds }) => {
            let seconds = retry_after_seconds.map(|seconds| seconds.to_string());
            let headers: Vec<(&str, &str)> =
                seconds.iter().map(|text| ("Retry-After", text.as_str())).collect();
            http::answer(
                stream,
                *status,
                &headers,
                b"{\"errors\":[{\"code\":\"UNAVAILABLE\",\"message\":\"scripted\"}]}",
            );
        }
        Some(Fault::Redirect { to }) => {
            http::answer(stream, 307, &[("Location", &format!("{to}{}", head.target))], b"");
        }
        _ => relay(shared, upstream, stream, &head, &body, fault.as_ref()),
    }
}

impl Shared {
    /// Remembers a request and takes the fault scripted for it, if any.
    fn note(&self, head: &RequestHead) -> Option<Fault> {
        let mut state = self.lock();
        state.seen.push(Seen {
            method: head.method.clone(),
            target: head.target.clone(),
            range: head.headers.get("range").map(str::to_owned),
            authorized: head.headers.get("authorization").is_some(),
        });
        let met = state.script.iter_mut().find(|line| line.times_left > 0 && line.when.meets(head))?;
        met.times_left -= 1;
        Some(met.fault.clone())
    }

    fn hold(&self) {
        let mut state = self.lock();
        state.holding += 1;
        self.changed.notify_all();
        while !state.released {
            state = self.changed.wait(state).expect("an unpoisoned lock");
        }
        state.holding -= 1;
    }
}

fn relay(
    shared: &Shared,
    upstream: &str,
    stream: &TcpStream,
    head: &RequestHead,
    body: &[u8],
    fault: Option<&Fault>,
) {
    let mut own = vec!["host", "connection", "content-length"];
    if matches!(fault, Some(Fault::NoRange)) {
        own.push("range");
    }
    let passed = |name: &str| !own.iter().any(|own| name.eq_ignore_ascii_case(own));
    let headers = head.headers.0.iter().filter(|(name, _)| passed(name));
    let headers: Vec<(&str, &str)> = headers.map(|(name, value)| (name.as_str(), value.as_str())).collect();
    match http::send(upstream, &head.method, &head.target, &headers, body) {
        Ok(incoming) => drop(pass_answer(shared, stream, head, incoming, fault)),
        Err(_) => http::answer(stream, 502, &[], b""),
    }
}

fn pass_answer(
    shared: &Shared,
    mut stream: &TcpStream,
    head: &RequestHead,
    mut incoming: Incoming,
    fault: Option<&Fault>,
) -> std::io::Result<()> {
    let passed = incoming.headers.0.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("connection"));
    let passed = passed.map(|(name, value)| (name.as_str(), value.as_str()));
    let headers: Vec<(&str, &str)> = std::iter::once(("Connection", "close")).chain(passed).collect();
    stream.write_all(http::status_head(incoming.status, &headers).as_bytes())?;
    if head.method == "HEAD" {
        return Ok(());
    }
    let length = incoming.headers.get("content-length").and_then(|length| length.parse().ok());
    let mut body = (&mut incoming.reader).take(length.unwrap_or(u64::MAX));
    pass_body(shared, stream, &mut body, fault)
}

fn pass_body(
    shared: &Shared,
    mut stream: &TcpStream,
    body: &mut impl Read,
    fault: Option<&Fault>,
) -> std::io::Result<()> {
    let mut piece = vec![0; piece_bytes(fault)];
    let mut sent: u64 = 0;
    loop {
        let limit = next_stop(fault, sent).map_or(piece.len(), |left| piece.len().min(left));
        let count = body.read(piece.get_mut(..limit).unwrap_or_default())?;
        // The end of the body, or of what the cut lets through.
        if count == 0 {
            break;
        }
        let bytes = piece.get_mut(..count).unwrap_or_default();
        spoil(bytes, sent, fault);
        stream.write_all(bytes)?;
        sent += count as u64;
        shared.lock().body_bytes += count as u64;
        match fault {
            Some(Fault::HoldAfter(at)) if sent == *at => shared.hold(),
            Some(Fault::Drip { pause, .. }) => std::thread::sleep(*pause),
            _ => {}
        }
    }
    stream.shutdown(Shutdown::Both)
}

fn piece_bytes(fault: Option<&Fault>) -> usize {
    match fault {
        Some(Fault::Drip { piece_bytes, .. }) => *piece_bytes,
        _ => 64 * 1024,
    }
}

/// Bytes until the offset at which something happens.
fn next_stop(fault: Option<&Fault>, sent: u64) -> Option<usize> {
    match fault {
        Some(Fault::CutAfter(at)) => usize::try_from(at.saturating_sub(sent)).ok(),
        Some(Fault::HoldAfter(at)) if *at > sent => usize::try_from(at - sent).ok(),
        _ => None,
    }
}

fn spoil(bytes: &mut [u8], sent: u64, fault: Option<&Fault>) {
    let Some(Fault::WrongByteAt(at)) = fault else {
        return;
    };
    let index = at.checked_sub(sent).and_then(|index| usize::try_from(index).ok());
    if let Some(byte) = index.and_then(|index| bytes.get_mut(index)) {
        *byte ^= 1;
    }
}
