//! `device-agent check`: the doctor. One line for each matter, with a remedy, in the order in which things depend on each
//! other. Changes nothing that lasts.

mod containerd;
mod files;
mod network;
mod programs;

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::output::line;
use super::{Exit, Failure, Output};
use crate::clock::Clock;
use crate::config::Config;
use crate::driver::raise_clock;
use crate::facade_client::{Class, ClientError};
use crate::identity::{Identity, KEY_FILE};
use crate::state_file::StateDir;

/// What one matter came to.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    detail: String,
    /// What to do about it, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

#[derive(Serialize)]
struct Report {
    schema: u32,
    healthy: bool,
    findings: Vec<Finding>,
}

/// The findings, and the exit code of the worst of them.
struct Doctor {
    findings: Vec<Finding>,
    exit: Exit,
}

pub(super) async fn check(config: Config, clock: Clock, output: &Output) -> Result<Exit, Failure> {
    let mut doctor = Doctor { findings: Vec::new(), exit: Exit::Success };
    if let Some(identity) = doctor.examine_device(&config, &clock) {
        doctor.examine_facade(&config, &clock, &identity).await;
        doctor.examine_hosts_toml(&identity);
    }
    doctor.examine_programs(&config);
    doctor.examine_sink(config, clock).await;
    let report = Report { schema: 1, healthy: doctor.exit == Exit::Success, findings: doctor.findings };
    output.result(&report, &text(&report));
    Ok(doctor.exit)
}

impl Doctor {
    fn note(&mut self, check: &'static str, outcome: Outcome, detail: impl Into<String>) {
        self.findings.push(Finding { check, outcome, detail: detail.into(), remedy: None });
    }

    /// What to do about the finding that was noted last.
    fn remedy(&mut self, remedy: impl Into<String>) {
        if let Some(finding) = self.findings.last_mut() {
            finding.remedy = Some(remedy.into());
        }
    }

    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.note(check, Outcome::Ok, detail);
    }

    fn warn(&mut self, check: &'static str, detail: impl Into<String>) {
        self.note(check, Outcome::Warning, detail);
    }

    fn fail(&mut self, check: &'static str, exit: Exit, detail: impl Into<String>) {
        self.note(check, Outcome::Failed, detail);
        if self.exit == Exit::Success || exit == Exit::Verification {
            self.exit = exit;
        }
    }

    /// State directory, identity and clock; the identity, when there is one.
    fn examine_device(&mut self, config: &Config, clock: &Clock) -> Option<Identity> {
        let dir = match StateDir::open_existing(&config.state_dir) {
            Ok(dir) => dir,
            Err(error) => {
                self.fail("state directory", Exit::Failed, crate::error_chain(&error));
                self.remedy(
                    "device-agent enroll TOKEN makes it; what is there must be the agent's alone (chmod 700)",
                );
                return None;
            }
        };
        self.ok("state directory", dir.path().display().to_string());
        self.examine_writing(&dir);
        self.examine_permissions(&dir);
        self.examine_room(&dir);
        raise_clock(&dir, clock);
        match Identity::read(&dir, &config.keys) {
            Ok(Some(identity)) => {
                clock.raise(identity.certificate().not_before());
                self.examine_clock(clock);
                let place = identity.key().elsewhere().unwrap_or_else(|| format!("{KEY_FILE}, private,"));
                self.ok("key", format!("{place} holds the key of the certificate"));
                self.examine_certificate(&identity, clock.now());
                self.examine_metadata(&dir, clock.now());
                Some(identity)
            }
            Ok(None) => {
                self.examine_clock(clock);
                self.fail("identity", Exit::Failed, "this device is not enrolled");
                self.remedy("device-agent enroll TOKEN");
                None
            }
            Err(error) => {
                self.examine_clock(clock);
                self.fail("identity", Exit::Failed, crate::error_chain(&error));
                self.remedy(
                    "mend what it names (chmod 600 for a key), or: device-agent enroll --again TOKEN",
                );
                None
            }
        }
    }

    fn examine_clock(&mut self, clock: &Clock) {
        let shown = clock.unchecked();
        if clock.is_behind() {
            let floor = clock.floor();
            let detail = format!("shows {shown}, but it is at least {floor}");
            self.fail("clock", Exit::Failed, detail);
            self.remedy("set it, or start NTP: timedatectl set-ntp true");
        } else {
            self.ok("clock", shown.to_string());
        }
    }

    fn examine_certificate(&mut self, identity: &Identity, now: Timestamp) {
        let certificate = identity.certificate();
        let days = certificate.not_after().duration_since(now).as_hours() / 24;
        let device = identity.device();
        if now > certificate.not_after() {
            let detail = format!("of {device} ended at {}", certificate.not_after());
            self.fail("certificate", Exit::NotAllowed, detail);
            self.remedy("device-agent sync renews it while the facade allows; else: device-agent enroll --again TOKEN");
        } else if now > identity.renew_at(u64::MAX) {
            let detail = format!("of {device} has {days} days left and should have been renewed");
            self.warn("certificate", detail);
            self.remedy("start the agent: systemctl start device-agent");
        } else {
            self.ok("certificate", format!("of {device}, {days} days left"));
        }
    }

    fn examine_metadata(&mut self, dir: &StateDir, now: Timestamp) {
        for repository in ["director", "images"] {
            let name = if repository == "director" { "director metadata" } else { "images metadata" };
            let file = format!("metadata/{repository}/timestamp.json");
            let expires = dir.read(&file).ok().flatten().and_then(|bytes| expiry(&bytes));
            match expires {
                None => {
                    self.warn(name, "none yet");
                    self.remedy("device-agent sync");
                }
                Some(expires) if expires < now => {
                    let detail =
                        format!("ended at {expires}; the facade was not reachable since, or withholds newer");
                    self.warn(name, detail);
                    self.remedy("device-agent sync");
                }
                Some(expires) => {
                    let age = dir.written(&file).map(|written| now.duration_since(written).as_hours().max(0));
                    let age = age.map(|hours| format!("{hours} h old, ")).unwrap_or_default();
                    self.ok(name, format!("{age}believed until {expires}"));
                }
            }
        }
    }
}

fn expiry(bytes: &[u8]) -> Option<Timestamp> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value.pointer("/signed/expires")?.as_str()?.parse().ok()
}

fn exit(error: &ClientError) -> Exit {
    match error.class() {
        Class::Unreachable | Class::Busy => Exit::Unreachable,
        Class::NotAllowed => Exit::NotAllowed,
        Class::Impostor => Exit::Verification,
        Class::Broken => Exit::Failed,
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let mark = match finding.outcome {
            Outcome::Ok => "ok     ",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED ",
        };
        let _ = write!(text, "{mark}  {}: {}", finding.check, line(&finding.detail));
        if let Some(remedy) = &finding.remedy {
            let _ = write!(text, " -> {remedy}");
        }
        text.push('\n');
    }
    text
}
