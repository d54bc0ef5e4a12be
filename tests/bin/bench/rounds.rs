//! One measurement of one server.

use std::rc::Rc;
use std::time::{Duration, Instant};

use harness::device::Identity;
use harness::{Proxy, http};
use pki::digest::Digest;
use tokio::task::JoinSet;

use crate::load::{Connection, Dialer, Got};
use crate::measure::{anonymous_bytes, cpu_seconds, median, tcp_bytes};
use crate::pull::MEBIBYTE;
use crate::servers::Server;

const ROUND: Duration = Duration::from_millis(1500);
const IDLE_CONNECTIONS: usize = 2000;
const SLOW_READERS: usize = 1000;

/// A server, and the way to put load on it.
pub(crate) struct Bench<'a> {
    dialer: Dialer,
    pub(crate) server: Server<'a>,
    proxy: &'a Proxy,
}

/// First and last byte of asking a registry itself, without TLS.
pub(crate) fn direct(host: &str, path: &str) -> [Duration; 2] {
    use std::io::Read as _;
    let started = Instant::now();
    let mut answer = http::send(host, "GET", path, &[], b"").expect("an answer of the registry");
    let mut piece = vec![0; 64 * 1024];
    let mut first = None;
    while let 1.. = answer.reader.read(&mut piece).expect("the registry's content") {
        first.get_or_insert_with(|| started.elapsed());
    }
    [first.expect("content"), started.elapsed()]
}

impl<'a> Bench<'a> {
    pub(crate) fn new(server: Server<'a>, identity: &Identity, proxy: &'a Proxy) -> Self {
        Self { dialer: Dialer::new(server.port, identity), server, proxy }
    }

    fn path(&self, rest: &str) -> String {
        format!("{}{rest}", self.server.prefix)
    }

    async fn dial(&self) -> Connection {
        self.dialer.dial().await.expect("a connection")
    }

    /// One request on a connection of its own.
    pub(crate) async fn get(&self, rest: &str) -> Got {
        self.dial().await.get(&self.path(rest), false).await.expect("a pull")
    }

    fn anonymous(&self) -> f64 {
        anonymous_bytes(&self.server.pids()) as f64 / MEBIBYTE as f64
    }

    /// Runs clients for a while; gives requests, bytes and processor seconds of the server.
    async fn load(&self, rest: &str, clients: usize, reconnect: bool) -> (f64, f64, f64) {
        let path: Rc<str> = self.path(rest).into();
        let mut tasks = JoinSet::new();
        let pids = self.server.pids();
        let mut open = Vec::new();
        if !reconnect {
            for _ in 0..clients {
                open.push(self.dial().await);
            }
        }
        let before = cpu_seconds(&pids);
        let end = Instant::now() + ROUND;
        for _ in 0..clients {
            let (path, dialer, mut kept) = (Rc::clone(&path), self.dialer.clone(), open.pop());
            tasks.spawn_local(async move {
                let (mut requests, mut bytes) = (0.0, 0.0);
                while Instant::now() < end {
                    let got = match &mut kept {
                        Some(connection) => connection.get(&path, false).await,
                        None => dialer.dial().await.expect("a connection").get(&path, true).await,
                    };
                    requests += 1.0;
                    bytes += got.expect("an answer").bytes as f64;
                }
                (requests, bytes)
            });
        }
        let (mut requests, mut bytes) = (0.0, 0.0);
        while let Some(done) = tasks.join_next().await {
            let done = done.expect("a client that ends");
            (requests, bytes) = (requests + done.0, bytes + done.1);
        }
        (requests, bytes, cpu_seconds(&pids) - before)
    }

    pub(crate) async fn cpu_per_gibibyte(&self, rest: &str, clients: usize) -> f64 {
        let (_, bytes, cpu) = self.load(rest, clients, false).await;
        cpu / (bytes / f64::from(1 << 30))
    }

    pub(crate) async fn cpu_per_request(&self, rest: &str, clients: usize, reconnect: bool) -> f64 {
        let (requests, _, cpu) = self.load(rest, clients, reconnect).await;
        cpu * 1e6 / requests
    }

    pub(crate) async fn idle(&self, rest: &str) -> f64 {
        let (base, path) = (self.anonymous(), self.path(rest));
        let mut open = Vec::new();
        for _ in 0..IDLE_CONNECTIONS {
            let mut connection = self.dial().await;
            connection.get(&path, false).await.expect("an answer");
            connection.rest();
            open.push(connection);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.anonymous() - base
    }

    /// Process and kernel memory while readers take 10 KB a second each.
    pub(crate) async fn slow_readers(&self, rest: &str) -> [f64; 2] {
        let (base, tcp) = (self.anonymous(), tcp_bytes());
        let mut tasks = JoinSet::new();
        for _ in 0..SLOW_READERS {
            let (mut connection, path) = (self.dial().await, self.path(rest));
            tasks.spawn_local(async move {
                let read = connection.read_slowly(&path, false, 5_000, Duration::from_millis(500));
                drop(read.await);
            });
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        let grown = tcp_bytes().saturating_sub(tcp) as f64 / MEBIBYTE as f64;
        [self.anonymous() - base, grown]
    }

    /// Of clients that ask for one cold blob at once: upstream GETs, when half of them have their first byte, when the
    /// last one has its last, and the server's processor seconds.
    pub(crate) async fn herd(&self, digest: Digest, clients: usize) -> [f64; 4] {
        let before = self.proxy.count("GET", &digest);
        let path = self.path(&format!("/bench/app/blobs/{digest}"));
        let mut open = Vec::new();
        for _ in 0..clients {
            open.push(self.dial().await);
        }
        let (pids, cpu) = (self.server.pids(), cpu_seconds(&self.server.pids()));
        let mut tasks: JoinSet<Option<Got>> = JoinSet::new();
        for mut connection in open {
            let path = path.clone();
            tasks.spawn_local(async move { connection.get(&path, false).await.ok() });
        }
        let (mut firsts, mut last) = (Vec::new(), Duration::ZERO);
        while let Some(got) = tasks.join_next().await {
            let got = got.ok().flatten().expect("a pull in the herd");
            firsts.push(got.first_byte.as_secs_f64());
            last = last.max(got.last_byte);
        }
        let gets = self.proxy.count("GET", &digest) - before;
        [gets as f64, median(firsts), last.as_secs_f64(), cpu_seconds(&pids) - cpu]
    }

    /// The most anonymous memory while eight clients pull one blob.
    pub(crate) async fn peak(&self, rest: &str) -> f64 {
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let (mut connection, path) = (self.dial().await, self.path(rest));
            tasks.spawn_local(async move { connection.get(&path, false).await.is_ok() });
        }
        let mut peak: f64 = 0.0;
        while !tasks.is_empty() {
            peak = peak.max(self.anonymous());
            if let Ok(Some(done)) = tokio::time::timeout(Duration::from_millis(20), tasks.join_next()).await {
                assert!(done.expect("a client that ends"), "a client did not get all of it");
            }
        }
        peak
    }
}
