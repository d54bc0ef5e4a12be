//! The daemon as a process: what its signals do.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::facade::Facade;
use crate::world::{Device, Sample};

struct Daemon {
    process: Child,
    settings: PathBuf,
    log: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Daemon {
    /// Starts it with nothing but a settings file.
    fn start(device: &Device, settings: &str) -> Self {
        let file = device.state_path().with_file_name("daemon.toml");
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_device-agent"));
        command.arg("run").arg("--config").arg(&file).arg("--state-dir").arg(device.state_path());
        let log = file.with_extension("log");
        command.stderr(std::fs::File::create(&log).unwrap());
        Self { process: command.spawn().unwrap(), settings: file, log }
    }

    fn hang_up(&self, settings: &str) {
        std::fs::write(&self.settings, settings).unwrap();
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    async fn until(&mut self, mut done: impl FnMut() -> bool) {
        while !done() {
            assert_eq!(self.process.try_wait().unwrap(), None, "the daemon is gone");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_hangup_reads_the_settings_again_and_a_mistake_in_them_changes_nothing() {
    let (facade, device) = (Facade::start().await, Device::new());
    device.enroll(&facade).await.unwrap();
    let sample = Sample::new("app", 200 << 10);
    sample.assign(&facade);
    let elsewhere = device.layout().with_file_name("elsewhere");
    let settings = |layout: &std::path::Path| {
        format!("sink = \"oci-layout:{}\"\nplatform = \"linux/arm64\"\nreserve = \"0\"\n", layout.display())
    };
    let mut daemon = Daemon::start(&device, &settings(&device.layout()));
    daemon.until(|| device.current(&sample).is_some()).await;
    daemon.hang_up("sink = \"tape\"\n");
    let layer = sample.layer.digest;
    let moved = elsewhere.join("blobs").join(layer.algorithm().name()).join(layer.hex());
    let log = daemon.log.clone();
    daemon.until(|| std::fs::read_to_string(&log).unwrap().contains("the settings cannot be used")).await;
    daemon.hang_up(&settings(&elsewhere));
    daemon.until(|| moved.exists()).await;
    daemon.signal(Signal::TERM);
    while daemon.process.try_wait().unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(daemon.process.wait().unwrap().success());
}
