//! `bench pull`: facade, docker-registry and nginx under the same load in turn, as ratios.
//!
//! All three have the same certificates, TLS 1.3, one core and the same registry behind them; the load runs on the other
//! core and decrypts what it gets. Rounds of the three alternate, and what measures memory gets a fresh process each time.
//! Figures of one run belong together; those of two runs do not.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use harness::{Device, Facade, ImageBuilder, Proxy, Registry};
use pki::digest::Digest;
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use crate::measure::median;
use crate::rounds::{Bench, direct};
use crate::servers::Server;
use crate::wire::Wire;

pub(crate) const MEBIBYTE: usize = 1 << 20;
const ROUNDS: usize = 5;
/// Blobs for the cold rows, one for each round.
const COLD: usize = 5;
const DELAY: Duration = Duration::from_millis(20);

/// The most that the facade may take.
enum Goal {
    None,
    /// Of what nginx takes.
    OfNginx(f64),
    /// In the row's own unit.
    AtMost(f64),
}

/// One line of the result, with a figure for each server.
struct Row {
    name: &'static str,
    unit: &'static str,
    goal: Goal,
    /// Not a number where a server has none.
    figures: Vec<f64>,
}

/// What is measured, by the word that selects it.
const WORKS: [&str; 9] = ["warm", "manifest", "handshake", "idle", "slow", "cold", "herd", "limited", "huge"];

pub(crate) fn run(selected: &[String]) -> ExitCode {
    if let Some(unknown) = selected.iter().find(|word| !WORKS.contains(&word.as_str())) {
        drop(writeln!(std::io::stderr(), "error: there is no {unknown}; there are {}", WORKS.join(", ")));
        return ExitCode::from(2);
    }
    let stage = Stage::set();
    let mut facade = Facade::start_with(&[("FACADE_MAX_CONNECTIONS_PER_ADDRESS", "20000")]);
    facade.connect_as(&stage.registry, &stage.proxy.host());
    let device = Device::enrolled("board-1", &facade);
    facade.deliver(&stage.pushed, "board-1");
    let upstream = stage.proxy.host();
    let mut servers = vec![Server::nginx(&facade, &upstream)];
    // A part of the rows is for whoever tunes: the second peer takes most of the time and tells them nothing.
    if selected.is_empty() {
        servers.push(Server::docker_registry(&facade, &upstream));
    }
    let bare = Server::bare(&facade, stage.manifest_bytes);
    servers.push(Server::facade(&mut facade, &upstream));
    let identity = device.identity();
    let bare = Bench::new(bare, &identity, &stage.proxy);
    let benches = servers.into_iter().map(|server| Bench::new(server, &identity, &stage.proxy)).collect();
    let mut session = Session { benches, bare, stage: &stage, runtime: runtime() };
    let mut reached = header(&session);
    for work in WORKS.iter().filter(|work| selected.is_empty() || selected.iter().any(|word| word == **work))
    {
        for row in session.measure(work) {
            reached &= print(&row);
        }
    }
    if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The registry, and the way to it.
struct Stage {
    registry: Registry,
    wire: Wire,
    proxy: Proxy,
    pushed: harness::registry::Pushed,
    manifest: String,
    manifest_bytes: usize,
    warm: Digest,
    herd: Digest,
    limited: Digest,
    /// Small enough to be verified whole before the first byte goes out.
    small: Vec<Digest>,
    /// Large enough to stream.
    streamed: Vec<Digest>,
    huge: Digest,
}

impl Stage {
    fn set() -> Self {
        let registry = Registry::open();
        let wire = Wire::before(&registry.host());
        let proxy = Proxy::before(&wire.host());
        let mut image = ImageBuilder::new();
        for extra in 0..COLD {
            image = image.random_layer(MEBIBYTE + extra).random_layer(9 * MEBIBYTE + extra);
        }
        for extra in 0..3 {
            image = image.random_layer(64 * MEBIBYTE + extra);
        }
        let image = image.random_layer(1024 * MEBIBYTE).build();
        let pushed = registry.push("bench/app", "v1", &image).through(&proxy.host());
        let mut blobs: Vec<(usize, Digest)> =
            image.blobs.iter().map(|(digest, bytes)| (bytes.len(), *digest)).collect();
        blobs.sort_by_key(|(length, _)| *length);
        let at_least = |length: usize| {
            blobs.iter().filter(move |(bytes, _)| *bytes >= length).map(|(_, digest)| *digest)
        };
        let mut large = at_least(64 * MEBIBYTE);
        let mut next = || large.next().expect("a layer");
        Self {
            manifest: format!("/bench/app/manifests/{}", pushed.digest),
            manifest_bytes: image.root.bytes.len(),
            small: at_least(MEBIBYTE).take(COLD).collect(),
            streamed: at_least(9 * MEBIBYTE).take(COLD).collect(),
            warm: next(),
            herd: next(),
            limited: next(),
            huge: next(),
            registry,
            wire,
            proxy,
            pushed,
        }
    }
}

fn blob(digest: Digest) -> String {
    format!("/bench/app/blobs/{digest}")
}

struct Session<'a> {
    benches: Vec<Bench<'a>>,
    /// The least that a handshake costs here.
    bare: Bench<'a>,
    stage: &'a Stage,
    runtime: Runtime,
}

impl Session<'_> {
    fn measure(&mut self, work: &str) -> Vec<Row> {
        let (manifest, warm) = (self.stage.manifest.clone(), blob(self.stage.warm));
        match work {
            "warm" => vec![
                self.alternate("warm 64 MiB blobs, 8 clients", "CPU-s/GiB", 0.55, &async |bench| {
                    bench.cpu_per_gibibyte(&warm, 8).await
                }),
                self.alternate("warm 64 MiB blobs, 64 clients", "CPU-s/GiB", 0.5, &async |bench| {
                    bench.cpu_per_gibibyte(&warm, 64).await
                }),
            ],
            "manifest" => {
                vec![self.alternate("manifest, 32 keep-alive clients", "CPU us", 0.6, &async |bench| {
                    bench.cpu_per_request(&manifest, 32, false).await
                })]
            }
            "handshake" => {
                let each = async |bench: &Bench<'_>| bench.cpu_per_request(&manifest, 16, true).await;
                let row = self.alternate("handshake and manifest", "CPU us", 0.22, &each);
                let mut floor = vec![f64::NAN; self.benches.len() - 1];
                floor.extend(self.medians(std::slice::from_ref(&self.bare), &each));
                vec![
                    row,
                    Row {
                        name: "  of that: handshake and bytes that are ready, nothing else",
                        unit: "",
                        goal: Goal::None,
                        figures: floor,
                    },
                ]
            }
            "idle" => self.fresh(
                [("2,000 idle connections, anonymous", "MiB", Goal::OfNginx(0.7))],
                &manifest,
                &async |bench| [bench.idle(&manifest).await],
            ),
            "slow" => self.fresh(
                [
                    ("1,000 slow readers, anonymous", "MiB", Goal::OfNginx(0.45)),
                    ("1,000 slow readers, kernel TCP", "MiB", Goal::OfNginx(0.1)),
                ],
                &warm,
                &async |bench| bench.slow_readers(&warm).await,
            ),
            "cold" => self.cold(),
            "herd" => self.herd(),
            "limited" => self.limited(),
            _ => {
                let huge = blob(self.stage.huge);
                self.fresh(
                    [("1 GiB blob to 8 clients, peak anonymous", "MiB", Goal::AtMost(40.0))],
                    &manifest,
                    &async |bench| [bench.peak(&huge).await],
                )
            }
        }
    }

    /// One row of all servers.
    fn alternate(
        &self,
        name: &'static str,
        unit: &'static str,
        of_nginx: f64,
        measure: &impl AsyncFn(&Bench<'_>) -> f64,
    ) -> Row {
        let figures = self.medians(&self.benches, measure);
        Row { name, unit, goal: Goal::OfNginx(of_nginx), figures }
    }

    /// The median of rounds that go from server to server.
    fn medians(&self, benches: &[Bench<'_>], measure: &impl AsyncFn(&Bench<'_>) -> f64) -> Vec<f64> {
        let mut rounds = vec![Vec::new(); benches.len()];
        for round in 0..=ROUNDS {
            for (bench, values) in benches.iter().zip(&mut rounds) {
                let value = LocalSet::new().block_on(&self.runtime, measure(bench));
                // The first one only fills caches.
                if round > 0 {
                    values.push(value);
                }
            }
        }
        rounds.into_iter().map(median).collect()
    }

    /// Rows of one measurement in fresh processes that have served one request for `first`.
    fn fresh<const N: usize>(
        &mut self,
        rows: [(&'static str, &'static str, Goal); N],
        first: &str,
        measure: &impl AsyncFn(&Bench<'_>) -> [f64; N],
    ) -> Vec<Row> {
        let mut rows = rows.map(|(name, unit, goal)| Row { name, unit, goal, figures: Vec::new() });
        for bench in &mut self.benches {
            bench.server.restart();
            let values = LocalSet::new().block_on(&self.runtime, async {
                bench.get(first).await;
                measure(bench).await
            });
            for (row, value) in rows.iter_mut().zip(values) {
                row.figures.push(value);
            }
        }
        rows.into()
    }

    /// First and last byte of cold blobs from a registry that is 20 ms away, over those of asking it directly.
    fn cold(&self) -> Vec<Row> {
        self.stage.wire.set_delay(DELAY);
        let upstream = self.stage.proxy.host();
        let mut rows = Vec::new();
        for (digests, first, last, goals) in [
            (
                &self.stage.small,
                "cold 1 MiB, 20 ms away: first byte over direct",
                "cold 1 MiB, 20 ms away: last byte over direct",
                [Goal::None, Goal::AtMost(3.0)],
            ),
            (
                &self.stage.streamed,
                "cold 9 MiB, 20 ms away: first byte over direct",
                "cold 9 MiB, 20 ms away: last byte over direct",
                [Goal::AtMost(3.0), Goal::None],
            ),
        ] {
            let mut waits = vec![[Vec::new(), Vec::new()]; self.benches.len() + 1];
            let gets = |digest: &Digest| self.stage.proxy.count("GET", digest);
            let mut asked = vec![0; self.benches.len()];
            for digest in digests {
                let mut note = |column: usize, got: [Duration; 2]| {
                    for (values, value) in waits.iter_mut().skip(column).take(1).flatten().zip(got) {
                        values.push(value.as_secs_f64() * 1e3);
                    }
                };
                note(0, direct(&upstream, &format!("/v2{}", blob(*digest))));
                for (column, bench) in self.benches.iter().enumerate() {
                    let before = gets(digest);
                    let got = LocalSet::new().block_on(&self.runtime, bench.get(&blob(*digest)));
                    note(column + 1, [got.first_byte, got.last_byte]);
                    for asked in asked.iter_mut().skip(column).take(1) {
                        *asked += gets(digest) - before;
                    }
                }
            }
            let medians: Vec<[f64; 2]> = waits.into_iter().map(|waits| waits.map(median)).collect();
            let (straight, through) = medians.split_first().expect("a direct figure");
            for (which, (name, goal)) in [first, last].into_iter().zip(goals).enumerate() {
                let of = |pair: &[f64; 2]| pair.get(which).copied().unwrap_or(f64::NAN);
                let figures = through.iter().map(|pair| of(pair) - of(straight)).collect();
                rows.push(Row { name, unit: "ms", goal, figures });
            }
            let figures = asked.iter().map(|asked| *asked as f64 / digests.len() as f64).collect();
            rows.push(Row { name: "  upstream GETs for each", unit: "", goal: Goal::AtMost(1.0), figures });
        }
        self.stage.wire.set_delay(Duration::ZERO);
        rows
    }

    fn herd(&mut self) -> Vec<Row> {
        let (herd, manifest) = (self.stage.herd, self.stage.manifest.clone());
        self.fresh(
            [
                ("herd of 200: upstream GETs", "", Goal::AtMost(1.0)),
                ("herd of 200: first byte, half of them", "s", Goal::AtMost(0.5)),
                ("herd of 200: last client done", "s", Goal::OfNginx(0.8)),
                ("herd of 200: server", "CPU-s", Goal::None),
            ],
            &manifest,
            &async |bench| bench.herd(herd, 200).await,
        )
    }

    fn limited(&mut self) -> Vec<Row> {
        let (digest, manifest) = (self.stage.limited, self.stage.manifest.clone());
        self.stage.wire.set_rate(64 * MEBIBYTE as u64);
        let rows = self.fresh(
            [
                ("herd of 50, upstream 64 MiB/s: GETs", "", Goal::AtMost(1.0)),
                ("herd of 50, upstream 64 MiB/s: first byte", "s", Goal::AtMost(0.3)),
                ("herd of 50, upstream 64 MiB/s: last done", "s", Goal::OfNginx(0.6)),
                ("herd of 50, upstream 64 MiB/s: server", "CPU-s", Goal::None),
            ],
            &manifest,
            &async |bench| bench.herd(digest, 50).await,
        );
        self.stage.wire.set_rate(u64::MAX);
        rows
    }
}

fn header(session: &Session<'_>) -> bool {
    let mut text = format!("{:<58}", "");
    for bench in &session.benches {
        let _ = write!(text, "{:>16}", bench.server.name);
    }
    crate::say(&format!("{text}{:>8}{:>14}", "ratio", "goal"));
    true
}

/// Prints a row and says whether its goal is reached.
fn print(row: &Row) -> bool {
    let mut text = format!("{:<58}", format!("{} {}", row.name, row.unit));
    for figure in &row.figures {
        let figure = if figure.is_nan() { String::new() } else { format!("{figure:.2}") };
        let _ = write!(text, "{figure:>16}");
    }
    let facade = row.figures.last().copied().unwrap_or(f64::NAN);
    let ratio = facade / row.figures.first().copied().unwrap_or(f64::NAN);
    let (over, goal) = match row.goal {
        Goal::None => (false, String::new()),
        Goal::OfNginx(goal) => (ratio > goal, format!("{goal:.2} x nginx")),
        Goal::AtMost(goal) => (facade > goal, format!("{goal:.1} {}", row.unit)),
    };
    let ratio = if ratio.is_nan() { String::new() } else { format!("{ratio:.2}") };
    crate::say(&format!("{text}{ratio:>8}{goal:>14}{}", if over { " OVER" } else { "" }));
    !over
}
