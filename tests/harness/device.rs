//! A device: the agent with a state directory of its own, and the place it hands images to.
//!
//! `DRAYAGE_AGENT_COMMAND` replaces the agent's program, so that the same stories run an ARM build under qemu.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use pki::digest::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::facade::{Facade, files_below};
use crate::image::host_platform;
use crate::process::{self, Outcome, Process, setting};

/// A device of the rig.
pub struct Device {
    id: String,
    directory: TempDir,
    state_dir: PathBuf,
    sink: Vec<String>,
    settings: Vec<(String, String)>,
}

/// The three files enrollment leaves behind.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The private key.
    pub key: PathBuf,
    /// The certificate, its issuer after it.
    pub cert: PathBuf,
    /// The facade's CA.
    pub ca: PathBuf,
}

impl Identity {
    /// The identity in `directory`, under the names enrollment gives the files.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            key: directory.join("key.pem"),
            cert: directory.join("cert.pem"),
            ca: directory.join("ca.pem"),
        }
    }
}

impl Device {
    /// A device that hands images to a directory.
    pub fn new(id: &str) -> Self {
        let directory = TempDir::new().expect("make a directory");
        let sink = format!("oci-layout:{}", directory.path().join("images").display());
        let state_dir = directory.path().join("state");
        Self { id: id.into(), directory, state_dir, sink: vec!["--sink".into(), sink], settings: Vec::new() }
    }

    /// The same device with its state on another disk.
    pub fn with_state_in(self, directory: &Path) -> Self {
        Self { state_dir: directory.join("state"), ..self }
    }

    /// The same device with more settings (environment variables) for every verb; an earlier one of a name gives way.
    pub fn with_settings(mut self, settings: &[(&str, &str)]) -> Self {
        self.settings.extend(settings.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        self
    }

    /// A device that hands images to a containerd.
    pub fn with_containerd(id: &str, containerd: &Containerd) -> Self {
        let address = containerd.address().display().to_string();
        let sink = ["--sink", "containerd", "--namespace", "drayage", "--containerd-address", &address];
        Self { sink: sink.map(str::to_owned).to_vec(), ..Self::new(id) }
    }

    /// A device that hands images to a directory, enrolled.
    #[track_caller]
    pub fn enrolled(id: &str, facade: &Facade) -> Self {
        let device = Self::new(id);
        device.enroll(&facade.token(id)).expect_success();
        device
    }

    /// A device that hands images to a containerd, enrolled.
    #[track_caller]
    pub fn enrolled_with_containerd(id: &str, facade: &Facade, containerd: &Containerd) -> Self {
        let device = Self::with_containerd(id, containerd);
        device.enroll(&facade.token(id)).expect_success();
        device
    }

    /// A device with the same state: the card was copied, or put back from a backup.
    pub fn copy(&self) -> Self {
        let copy = Self { settings: self.settings.clone(), ..Self::new(&self.id) };
        let mut command = Command::new("cp");
        command.arg("--archive").arg(self.state_dir()).arg(copy.state_dir());
        Outcome::of(&mut command, b"").expect_success();
        copy
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone()
    }

    /// The directory images are handed to.
    pub fn layout_dir(&self) -> PathBuf {
        self.directory.path().join("images")
    }

    /// What enrollment left behind.
    pub fn identity(&self) -> Identity {
        Identity::in_directory(&self.state_dir().join("identity"))
    }

    /// Sends a report with this identity, as a device whose software is somebody else's: `fields` say all but who.
    pub fn report(&self, facade: &Facade, fields: &Value) -> Outcome {
        let mut body = serde_json::json!({
            "version": 1, "device": self.id, "boot_id": "0b0c2f3e-5d4a-4a0b-9a37-8d5a3b1d8f11",
            "agent_version": "0.1.0", "platform": {"os": "linux", "architecture": "amd64"}, "state": "idle",
        });
        if let (Some(body), Some(fields)) = (body.as_object_mut(), fields.as_object()) {
            body.extend(fields.clone());
        }
        let identity = self.identity();
        let mut curl = process::in_clean_environment(Command::new("curl"));
        curl.args(["--silent", "--show-error", "--fail-with-body", "--request", "PUT"]);
        curl.args(["--header", "content-type: application/json", "--data", &body.to_string()]);
        curl.arg("--cacert").arg(&identity.ca).arg("--cert").arg(&identity.cert);
        curl.arg("--key").arg(&identity.key);
        Outcome::of(curl.arg(format!("{}/v1/report", facade.device_url())), b"")
    }

    /// The agent's command line for `verb`.
    pub fn command(&self, verb: &[&str]) -> Command {
        let mut command = agent();
        command.args(verb).arg("--state-dir").arg(self.state_dir());
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a verb to its end.
    pub fn run(&self, verb: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(verb), b"")
    }

    /// `device-agent enroll`.
    pub fn enroll(&self, token: &str) -> Outcome {
        self.run(&["enroll", token])
    }

    /// `device-agent verify`: every byte read back.
    pub fn verify(&self) -> Outcome {
        Outcome::of(self.command(&["verify"]).args(&self.sink), b"")
    }

    /// `device-agent sync`: one round.
    pub fn sync(&self) -> Outcome {
        Outcome::of(self.command(&["sync"]).args(&self.sink), b"")
    }

    /// One round with the device's clock at another time, as [`process::clock_at`] has it.
    pub fn sync_in(&self, when: &str) -> Outcome {
        let mut command = self.command(&["sync"]);
        Outcome::of(command.args(&self.sink).envs(process::clock_at(when)), b"")
    }

    /// A verb that is killed at a call of the operating system, as `strace --inject` has it: `fsync:when=3`.
    pub fn killed_at(&self, verb: &[&str], call: &str) -> Outcome {
        self.with_faults(verb, &format!("{call}:signal=SIGKILL"))
    }

    /// A verb whose calls of the operating system fail, as `strace --inject` has it: `fsync:error=ENOSPC`.
    pub fn with_faults(&self, verb: &[&str], faults: &str) -> Outcome {
        let agent = self.command(verb);
        let mut command = process::in_clean_environment(Command::new("strace"));
        command.args(["--follow-forks", "--output=/dev/null", &format!("--inject={faults}")]);
        command.arg(agent.get_program()).args(agent.get_args());
        command.envs(agent.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if verb == ["sync"] {
            command.args(&self.sink);
        }
        Outcome::of(&mut command, b"")
    }

    /// `device-agent check` as JSON, whatever it finds.
    pub fn check_with(&self, settings: &[(&str, &str)]) -> Outcome {
        let mut command = self.command(&["check", "--output", "json"]);
        Outcome::of(command.args(&self.sink).envs(settings.iter().copied()), b"")
    }

    /// One round with more settings (environment variables).
    pub fn sync_with(&self, settings: &[(&str, &str)]) -> Outcome {
        let mut command = self.command(&["sync"]);
        Outcome::of(command.args(&self.sink).envs(settings.iter().copied()), b"")
    }

    /// Starts `device-agent sync` and leaves it running.
    pub fn start_sync(&self) -> Process {
        let log = self.directory.path().join("agent.log");
        Process::start("device-agent", self.command(&["sync"]).args(&self.sink), &log)
    }

    /// Starts the daemon, `device-agent run`.
    pub fn start_daemon(&self) -> Process {
        let log = self.directory.path().join("agent.log");
        Process::start("device-agent", self.command(&["run"]).args(&self.sink), &log)
    }

    /// `device-agent status` as JSON.
    #[track_caller]
    pub fn status(&self) -> Value {
        let mut command = self.command(&["status", "--output", "json"]);
        Outcome::of(command.args(&self.sink), b"").expect_success().json()
    }

    /// The digests the layout directory's index names, each once whatever it is called.
    pub fn delivered(&self) -> BTreeSet<Digest> {
        let bytes = std::fs::read(self.layout_dir().join("index.json")).unwrap_or_default();
        let index: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let entries = index.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
        let digests = entries.iter().filter_map(|entry| entry.get("digest")?.as_str()?.parse().ok());
        digests.collect()
    }

    /// Whether the layout directory has this content, whole and right.
    pub fn holds(&self, digest: &Digest) -> bool {
        let path = self.layout_dir().join("blobs/sha256").join(digest.hex());
        std::fs::read(path).is_ok_and(|bytes| pki::digest::verify(*digest, &bytes).is_ok())
    }

    /// Fails the test unless every file the layout directory offers under a digest has that digest.
    #[track_caller]
    pub fn assert_nothing_unverified(&self) {
        let blobs = self.layout_dir().join("blobs/sha256");
        for path in files_below(&blobs) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            // Staged files have other names; what bears a digest's name is offered to readers.
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else {
                continue;
            };
            assert!(self.holds(&digest), "{} holds other bytes than its name says", path.display());
        }
    }
}

fn agent() -> Command {
    let Some(words) = setting("DRAYAGE_AGENT_COMMAND") else {
        return process::command("device-agent");
    };
    let words = words.to_string_lossy().into_owned();
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().expect("a command in DRAYAGE_AGENT_COMMAND"));
    command.args(words);
    let mut command = process::in_clean_environment(command);
    // An ARM build takes itself for an ARM board; the images of the stories run on this machine.
    command.env("DEVICE_AGENT_PLATFORM", host_platform());
    command
}
