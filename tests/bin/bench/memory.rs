//! `bench memory`: what the programs need while an image passes through.
//!
//! Prints one line per figure with its limit, and fails when a limit is passed.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use harness::{Containerd, Device, Facade, ImageBuilder, Process, Registry};

const MEBIBYTE: u64 = 1 << 20;
const PULL: Duration = Duration::from_mins(5);

/// Peak resident memory of facade and agent while an image of 16 MiB, then one of 1 GiB, passes through both.
pub(crate) fn run() -> ExitCode {
    let mut within = true;
    for size in [16 * MEBIBYTE, 1024 * MEBIBYTE] {
        let scene = Scene::set(size);
        for containerd in [None, Some(Containerd::start())] {
            let sink = if containerd.is_some() {
                "containerd"
            } else {
                "directory"
            };
            let agent = scene.peak_of_agent(containerd.as_ref());
            let what = format!("agent, {} MiB into a {sink}", size / MEBIBYTE);
            within &= print(&what, agent, 20_000_000);
        }
        let facade = scene.facade.peak_rss_bytes();
        within &= print(
            &format!("facade, {} MiB, cold and warm", size / MEBIBYTE),
            facade,
            40_000_000,
        );
    }
    if within {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A facade with one large artifact.
struct Scene {
    _registry: Registry,
    facade: Facade,
    artifact: String,
}

impl Scene {
    fn set(layer_bytes: u64) -> Self {
        let registry = Registry::open();
        let layer = usize::try_from(layer_bytes).unwrap_or(usize::MAX);
        let pushed = registry.push(
            "bench/app",
            "v1",
            &ImageBuilder::new().random_layer(layer).build(),
        );
        let facade = Facade::start();
        facade.connect(&registry);
        facade.import(&pushed);
        Self {
            _registry: registry,
            facade,
            artifact: pushed.artifact(),
        }
    }

    fn peak_of_agent(&self, containerd: Option<&Containerd>) -> u64 {
        let id = if containerd.is_some() {
            "board-c"
        } else {
            "board-d"
        };
        let device = match containerd {
            Some(containerd) => Device::enrolled_with_containerd(id, &self.facade, containerd),
            None => Device::enrolled(id, &self.facade),
        };
        self.facade.ok(&["assign", &self.artifact, "--device", id]);
        let mut agent: Process = device.start_sync();
        let (status, peak) = agent.wait_measuring(PULL);
        assert!(status.success(), "the agent's sync failed:\n{}", agent.log());
        peak
    }
}

/// Prints a figure and says whether it is within its limit.
fn print(what: &str, bytes: u64, limit: u64) -> bool {
    let within = bytes <= limit;
    let verdict = if within { "within" } else { "OVER" };
    let (whole, tenth) = (bytes / 1_000_000, bytes / 100_000 % 10);
    let line = format!(
        "{what:<40} {whole:>4}.{tenth} MB  {verdict} {} MB\n",
        limit / 1_000_000
    );
    drop(std::io::stdout().write_all(line.as_bytes()));
    within
}
