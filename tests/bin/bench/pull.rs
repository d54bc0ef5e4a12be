//! `bench pull`: facade, docker-registry and nginx under the same load in turn, as ratios.
//!
//! All three have the same certificates, TLS 1.3, one core and the same registry behind them; the load runs on the other
//! core and decrypts what it gets. Figures of one run belong together; those of two runs do not.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use harness::{Device, Facade, ImageBuilder, Proxy, Registry};
use pki::digest::Digest;
use tokio::task::{JoinSet, LocalSet};

use crate::load::{Connection, Dialer, Got};
use crate::measure::{anonymous_bytes, cpu_seconds, median, tcp_bytes};
use crate::servers::Server;

const MEBIBYTE: usize = 1 << 20;
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_millis(1500);
const IDLE_CONNECTIONS: usize = 2000;
const SLOW_READERS: usize = 500;
const HERD: usize = 200;

/// What is pulled.
struct Content {
    manifest: String,
    warm: String,
    herd: Digest,
    small: Vec<Digest>,
    huge: String,
}

/// One row of the result: its name, its unit, and the most that the facade may take of what nginx takes.
const ROWS: [(&str, &str, Option<f64>); 11] = [
    ("warm 64 MiB blobs, 8 clients", "CPU-s/GiB", Some(0.55)),
    ("warm 64 MiB blobs, 64 clients", "CPU-s/GiB", Some(0.5)),
    ("manifest, 32 keep-alive clients", "CPU us", Some(0.6)),
    ("handshake and manifest", "CPU us", Some(0.22)),
    ("2,000 idle connections, anonymous", "MiB", Some(0.7)),
    ("500 slow readers, anonymous", "MiB", Some(0.45)),
    ("500 slow readers, kernel TCP", "MiB", Some(0.1)),
    ("cold 1 MiB blob, first byte", "ms", None),
    ("herd of 200, upstream GETs", "", None),
    ("herd of 200, last client done", "s", Some(0.8)),
    ("1 GiB blob to 8 clients, peak anonymous", "MiB", None),
];

pub(crate) fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let registry = Registry::open();
    let proxy = Proxy::before(&registry.host());
    let mut image = ImageBuilder::new().random_layer(64 * MEBIBYTE).random_layer(64 * MEBIBYTE + 7);
    for extra in 0..5 {
        image = image.random_layer(MEBIBYTE + extra);
    }
    let image = image.random_layer(1024 * MEBIBYTE).build();
    let pushed = registry.push("bench/app", "v1", &image).through(&proxy.host());
    let mut blobs: Vec<(usize, Digest)> =
        image.blobs.iter().map(|(digest, bytes)| (bytes.len(), *digest)).collect();
    blobs.sort_by_key(|(length, _)| *length);
    let blob = |index: usize| blobs.get(index).map(|(_, digest)| *digest).expect("a layer");
    let path = |digest: Digest| format!("/bench/app/blobs/{digest}");
    let content = Content {
        manifest: format!("/bench/app/manifests/{}", pushed.digest),
        warm: path(blob(6)),
        herd: blob(7),
        small: (1..6).map(blob).collect(),
        huge: path(blob(8)),
    };
    let facade = Facade::start_with(&[("FACADE_MAX_CONNECTIONS_PER_ADDRESS", "20000")]);
    facade.connect_as(&registry, &proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&pushed, "board-1");
    let mut results = Vec::new();
    for which in 0..3 {
        let server = match which {
            0 => Server::nginx(&facade, &proxy.host()),
            1 => Server::docker_registry(&facade, &proxy.host()),
            _ => Server::facade(&facade, &proxy.host()),
        };
        say(&format!("measuring {} …\n", server.name));
        let bench = Bench { dialer: Dialer::new(server.port, &device.identity()), server, proxy: &proxy };
        results.push(LocalSet::new().block_on(&runtime, bench.measure(&content)));
    }
    report(&results)
}

fn say(text: &str) {
    drop(std::io::stdout().write_all(text.as_bytes()));
}

fn report(results: &[Vec<f64>]) -> ExitCode {
    let mut text = format!(
        "\n{:<42}{:>10}{:>17}{:>10}{:>16}{:>8}\n",
        "", "nginx", "docker-registry", "facade", "facade/nginx", "goal"
    );
    let mut reached = true;
    for (row, (name, unit, goal)) in ROWS.iter().enumerate() {
        let of = |server: usize| {
            results.get(server).and_then(|values| values.get(row)).copied().unwrap_or(f64::NAN)
        };
        let ratio = of(2) / of(0);
        let goal_text = goal.map(|goal| format!("{goal:.2}")).unwrap_or_default();
        let verdict = if goal.is_some_and(|goal| ratio > goal) { "OVER" } else { "" };
        reached &= verdict.is_empty();
        let _ = writeln!(
            text,
            "{:<42}{:>10.2}{:>17.2}{:>10.2}{ratio:>16.2}{goal_text:>8} {verdict}",
            format!("{name} {unit}"),
            of(0),
            of(1),
            of(2),
        );
    }
    say(&text);
    if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Bench<'a> {
    dialer: Dialer,
    server: Server,
    proxy: &'a Proxy,
}

impl Bench<'_> {
    /// One figure per row of [`ROWS`].
    async fn measure(&self, content: &Content) -> Vec<f64> {
        let manifest = self.path(&content.manifest);
        let warm = self.path(&content.warm);
        for path in [&manifest, &warm] {
            self.dial().await.get(path, false).await.expect("a first pull");
        }
        let base = self.anonymous();
        let idle = self.idle(&manifest, base).await;
        let mut figures = vec![
            self.cpu_per_gibibyte(&warm, 8).await,
            self.cpu_per_gibibyte(&warm, 64).await,
            self.cpu_per_request(&manifest, 32, false).await,
            self.cpu_per_request(&manifest, 16, true).await,
            idle,
        ];
        figures.extend(self.slow_readers(&warm).await);
        figures.push(self.cold_first_byte(&content.small).await);
        figures.extend(self.herd(content.herd).await);
        figures.push(self.peak(&self.path(&content.huge)).await);
        figures
    }

    fn path(&self, rest: &str) -> String {
        format!("{}{rest}", self.server.prefix)
    }

    async fn dial(&self) -> Connection {
        self.dialer.dial().await.expect("a connection")
    }

    fn anonymous(&self) -> f64 {
        anonymous_bytes(&self.server.pids()) as f64 / MEBIBYTE as f64
    }

    /// Runs clients for a while; gives requests, bytes and processor seconds of the server.
    async fn load(&self, path: &str, clients: usize, reconnect: bool) -> (f64, f64, f64) {
        let path: Rc<str> = path.into();
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

    async fn cpu_per_gibibyte(&self, path: &str, clients: usize) -> f64 {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let (_, bytes, cpu) = self.load(path, clients, false).await;
            rounds.push(cpu / (bytes / f64::from(1 << 30)));
        }
        median(rounds)
    }

    async fn cpu_per_request(&self, path: &str, clients: usize, reconnect: bool) -> f64 {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let (requests, _, cpu) = self.load(path, clients, reconnect).await;
            rounds.push(cpu * 1e6 / requests);
        }
        median(rounds)
    }

    async fn idle(&self, path: &str, base: f64) -> f64 {
        let mut open = Vec::new();
        for _ in 0..IDLE_CONNECTIONS {
            let mut connection = self.dial().await;
            connection.get(path, false).await.expect("an answer");
            connection.rest();
            open.push(connection);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.anonymous() - base
    }

    /// Process and kernel memory while readers take 10 KB a second each.
    async fn slow_readers(&self, path: &str) -> [f64; 2] {
        let (base, tcp) = (self.anonymous(), tcp_bytes());
        let mut tasks = JoinSet::new();
        for _ in 0..SLOW_READERS {
            let (mut connection, path) = (self.dial().await, path.to_owned());
            tasks.spawn_local(async move {
                let read = connection.read_slowly(&path, false, 5_000, Duration::from_millis(500));
                drop(read.await);
            });
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        let grown = tcp_bytes().saturating_sub(tcp) as f64 / MEBIBYTE as f64;
        [self.anonymous() - base, grown]
    }

    async fn cold_first_byte(&self, small: &[Digest]) -> f64 {
        let mut waits = Vec::new();
        for digest in small {
            let path = self.path(&format!("/bench/app/blobs/{digest}"));
            let got = self.dial().await.get(&path, false).await.expect("a cold pull");
            waits.push(got.first_byte.as_secs_f64() * 1e3);
        }
        median(waits)
    }

    /// Upstream GETs for one cold blob, and when the last of the herd has it.
    async fn herd(&self, digest: Digest) -> [f64; 2] {
        let before = self.proxy.count("GET", &digest);
        let path = self.path(&format!("/bench/app/blobs/{digest}"));
        let mut open = Vec::new();
        for _ in 0..HERD {
            open.push(self.dial().await);
        }
        let mut tasks: JoinSet<Option<Got>> = JoinSet::new();
        for mut connection in open {
            let path = path.clone();
            tasks.spawn_local(async move { connection.get(&path, false).await.ok() });
        }
        let mut last = Duration::ZERO;
        while let Some(got) = tasks.join_next().await {
            let got = got.ok().flatten().expect("a pull in the herd");
            last = last.max(got.last_byte);
        }
        let gets = self.proxy.count("GET", &digest) - before;
        [gets as f64, last.as_secs_f64()]
    }

    async fn peak(&self, path: &str) -> f64 {
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let (mut connection, path) = (self.dial().await, path.to_owned());
            tasks.spawn_local(async move { connection.get(&path, false).await.is_ok() });
        }
        let mut peak: f64 = 0.0;
        while !tasks.is_empty() {
            peak = peak.max(self.anonymous());
            drop(tokio::time::timeout(Duration::from_millis(20), tasks.join_next()).await);
        }
        peak
    }
}
