//! `bench agent`: what the agent takes on a board, beside what `ctr` takes for the same bytes.
//!
//! Processor time is that of a pull of 512 MiB over mutual TLS into a containerd of its own, without unpacking, by each in
//! turn in the same run; figures of one run belong together, those of two do not.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use harness::process::{as_root, write};
use harness::{Containerd, Device, Facade, ImageBuilder, Process, Registry, http};
use tempfile::TempDir;

use crate::measure::{cpu_seconds, median};
use crate::say;

const MEBIBYTE: usize = 1 << 20;
const ROUNDS: usize = 3;
const PULL: Duration = Duration::from_mins(5);
/// How long an idle agent is watched, and how long one wait of its takes.
const IDLE: Duration = Duration::from_secs(12);
const WAIT: &str = "2s";
const TARGETS: [&str; 3] =
    ["aarch64-unknown-linux-gnu", "armv7-unknown-linux-gnueabihf", "aarch64-unknown-linux-musl"];

/// Prints every figure with its limit, and fails when one is passed.
pub(crate) fn run() -> ExitCode {
    let mut within = true;
    for target in TARGETS {
        within &= size(target);
    }
    let scene = Scene::set();
    within &= scene.idle();
    within &= scene.memory();
    within &= scene.processor();
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn size(target: &str) -> bool {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cross").join(target).join("device-agent");
    let Ok(file) = fs::metadata(path) else {
        say(&format!("size for {target}: NOT MEASURED, run cross/build {target}"));
        return true;
    };
    limited(&format!("size for {target}"), file.len() as f64 / 1e6, "MB", 6.0)
}

/// A facade with an image of 512 MiB and one of 1 GiB, and a containerd.
struct Scene {
    registry: Registry,
    facade: Facade,
}

impl Scene {
    fn set() -> Self {
        let registry = Registry::open();
        let facade = Facade::start_with(&[("FACADE_WAIT_TIMEOUT", WAIT)]);
        facade.connect(&registry);
        Self { registry, facade }
    }

    fn artifact(&self, name: &str, mebibytes: usize) -> String {
        let image = ImageBuilder::new().random_layer(mebibytes * MEBIBYTE).build();
        let pushed = self.registry.push(name, "v1", &image);
        self.facade.import(&pushed);
        pushed.artifact()
    }

    /// An agent with nothing to do: its memory, and what it asks.
    fn idle(&self) -> bool {
        let containerd = Containerd::start();
        let device = Device::enrolled_with_containerd("board-idle", &self.facade, &containerd);
        let mut agent = device.start_daemon();
        agent.wait_for_log("\"to\":\"idle\"");
        let (waits, others) = self.idle_requests();
        let memory = resident_bytes(agent.id()) / 1e6;
        let asked = (waits + others) / waits;
        let enough = limited("agent, idle, resident", memory, "MB", 8.0);
        limited("agent, idle, requests per poll", asked, "", 1.0) & enough
    }

    /// Requests at the device door while nothing is new: waits, and others but reports.
    fn idle_requests(&self) -> (f64, f64) {
        // What follows the start of an agent is over by then.
        std::thread::sleep(IDLE / 2);
        let before = self.answers();
        std::thread::sleep(IDLE);
        let after = self.answers();
        (after.0 - before.0, after.1 - before.1)
    }

    fn answers(&self) -> (f64, f64) {
        let text = http::get(&self.facade.operator_authority(), "/metrics").expect("the metrics").body;
        let text = String::from_utf8_lossy(&text).into_owned();
        let (mut waits, mut others) = (0.0, 0.0);
        for line in text.lines().filter_map(|line| line.strip_prefix("facade_answers_total{")) {
            let Some((labels, count)) = line.split_once("} ") else { continue };
            let count: f64 = count.parse().unwrap_or(f64::NAN);
            if labels.contains("\"wait\"") {
                waits += count;
            } else if !labels.contains("\"report\"") {
                others += count;
            }
        }
        (waits, others)
    }

    /// The most memory that an agent has resident while 1 GiB passes through it.
    fn memory(&self) -> bool {
        let artifact = self.artifact("bench/large", 1024);
        let containerd = Containerd::start();
        let device = Device::enrolled_with_containerd("board-large", &self.facade, &containerd);
        self.facade.ok(&["assign", &artifact, "--device", "board-large"]);
        let mut agent = device.start_sync();
        let (status, peak) = agent.wait_measuring(PULL);
        assert!(status.success(), "the agent's sync failed:\n{}", agent.log());
        limited("agent, pulling 1 GiB, peak resident", peak as f64 / 1e6, "MB", 16.0)
    }

    /// Processor time of 512 MiB: the agent with containerd, and `ctr` with containerd.
    fn processor(&self) -> bool {
        let artifact = self.artifact("bench/app", 512);
        // Into the facade's cache: what is compared is the way from there on.
        self.by_ctr(&artifact, "warm");
        let (mut agent, mut ctr): (Vec<Cost>, Vec<Cost>) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            agent.push(self.by_agent(&artifact, &format!("board-a{round}")));
            ctr.push(self.by_ctr(&artifact, &format!("board-c{round}")));
        }
        let of = |costs: &[Cost], part: fn(&Cost) -> f64| median(costs.iter().map(part).collect());
        say(&format!(
            "512 MiB: agent {:.2} s, with containerd {:.2} s; ctr {:.2} s, with containerd {:.2} s (processor time, median of {ROUNDS})",
            of(&agent, Cost::own),
            of(&agent, Cost::whole),
            of(&ctr, Cost::own),
            of(&ctr, Cost::whole),
        ));
        let together = limited(
            "(agent + containerd) / (ctr + containerd)",
            of(&agent, Cost::whole) / of(&ctr, Cost::whole),
            "",
            0.7,
        );
        limited("agent / ctr", of(&agent, Cost::own) / of(&ctr, Cost::own), "", 0.5) & together
    }

    fn by_agent(&self, artifact: &str, id: &str) -> Cost {
        let containerd = Containerd::start();
        let device = Device::enrolled_with_containerd(id, &self.facade, &containerd);
        self.facade.ok(&["assign", artifact, "--device", id]);
        let before = cpu_seconds(&[containerd.id()]);
        let mut agent = device.start_sync();
        // The next thing is to unpack, which `ctr content fetch` does not.
        let cost =
            measured(&mut agent, &containerd, before, |agent| agent.log().contains("\"from\":\"fetching\""));
        let status = agent.wait();
        assert!(status.success(), "the agent's sync failed:\n{}", agent.log());
        cost
    }

    fn by_ctr(&self, artifact: &str, id: &str) -> Cost {
        let device = Device::enrolled(id, &self.facade);
        self.facade.ok(&["assign", artifact, "--device", id]);
        let hosts = TempDir::new().expect("make a directory");
        fs::create_dir(hosts.path().join("_default")).expect("make a directory");
        write(&hosts.path().join("_default/hosts.toml"), device.run(&["hosts-toml"]).expect_success().stdout);
        let containerd = Containerd::start();
        let before = cpu_seconds(&[containerd.id()]);
        let mut command: Command = as_root("ctr");
        command.arg("--address").arg(containerd.address()).args([
            "--namespace",
            "drayage",
            "content",
            "fetch",
        ]);
        command.arg("--hosts-dir").arg(hosts.path()).arg(artifact);
        let mut ctr = Process::start("ctr", &mut command, &hosts.path().join("log"));
        let cost = measured(&mut ctr, &containerd, before, |ctr| !ctr.is_running());
        let status = ctr.wait();
        assert!(status.success(), "ctr failed:\n{}", ctr.log());
        cost
    }
}

/// Processor seconds of one pull.
struct Cost {
    client: f64,
    containerd: f64,
}

impl Cost {
    /// The client's alone.
    fn own(&self) -> f64 {
        self.client
    }

    /// The client's and containerd's.
    fn whole(&self) -> f64 {
        self.client + self.containerd
    }
}

/// Watches until `done`; what a client did in its last few milliseconds is not seen, of either.
fn measured(
    client: &mut Process,
    containerd: &Containerd,
    before: f64,
    mut done: impl FnMut(&mut Process) -> bool,
) -> Cost {
    let started = Instant::now();
    let mut own = 0.0_f64;
    while !done(client) {
        own = own.max(cpu_seconds(&[client.id()]));
        assert!(started.elapsed() < PULL, "the pull did not end:\n{}", client.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    own = own.max(cpu_seconds(&[client.id()]));
    Cost { client: own, containerd: cpu_seconds(&[containerd.id()]) - before }
}

fn resident_bytes(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(f64::NAN);
    kib * 1024.0
}

/// Prints a figure and says whether it is within its limit.
fn limited(what: &str, value: f64, unit: &str, limit: f64) -> bool {
    let within = value <= limit;
    let verdict = if within { "within" } else { "OVER" };
    say(&format!("{what:<48} {value:>7.2} {unit:<3} {verdict} {limit}"));
    within
}
