//! `device-agent check`: the doctor. One line for each matter, with a remedy, in the order in which things depend on each
//! other. Changes nothing.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::{Exit, Failure, Output, hosts_toml};
use crate::clock::Clock;
use crate::config::Config;
use crate::driver::Agent;
use crate::facade_client::{Class, ClientError};
use crate::identity::{Identity, KEY_FILE};
use crate::state_file::StateDir;

/// What one matter came to.
#[derive(Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    detail: String,
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
    let mut doctor = Doctor {
        findings: Vec::new(),
        exit: Exit::Success,
    };
    if let Some(identity) = doctor.examine_device(&config, &clock) {
        doctor.examine_facade(&config, &clock, &identity).await;
        doctor.examine_hosts_toml(&identity);
    }
    doctor.examine_sink(config, clock).await;
    let report = Report {
        schema: 1,
        healthy: doctor.exit == Exit::Success,
        findings: doctor.findings,
    };
    output.result(&report, &text(&report));
    Ok(doctor.exit)
}

impl Doctor {
    fn note(&mut self, check: &'static str, outcome: Outcome, detail: impl Into<String>) {
        self.findings.push(Finding {
            check,
            outcome,
            detail: detail.into(),
        });
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
                return None;
            }
        };
        self.ok("state directory", format!("{} is private", dir.path().display()));
        match Identity::read(&dir) {
            Ok(Some(identity)) => {
                clock.raise(identity.certificate().not_before());
                self.examine_clock(clock);
                self.examine_certificate(&identity, clock.now());
                self.examine_metadata(&dir, clock.now());
                Some(identity)
            }
            Ok(None) => {
                self.examine_clock(clock);
                self.fail(
                    "identity",
                    Exit::Failed,
                    "not enrolled; run: device-agent enroll TOKEN",
                );
                None
            }
            Err(error) => {
                self.fail("identity", Exit::Failed, crate::error_chain(&error));
                None
            }
        }
    }

    fn examine_clock(&mut self, clock: &Clock) {
        let shown = clock.unchecked();
        if clock.is_behind() {
            let floor = clock.floor();
            let detail = format!(
                "shows {shown}, but it is at least {floor}; set it, or start NTP (timedatectl set-ntp true)"
            );
            self.fail("clock", Exit::Failed, detail);
        } else {
            self.ok("clock", shown.to_string());
        }
    }

    fn examine_certificate(&mut self, identity: &Identity, now: Timestamp) {
        let certificate = identity.certificate();
        let days = certificate.not_after().duration_since(now).as_hours() / 24;
        let device = identity.device();
        if now > certificate.not_after() {
            let detail = format!(
                "of {device} ended at {}; run the agent to renew it, or enroll again",
                certificate.not_after()
            );
            self.fail("certificate", Exit::NotAllowed, detail);
        } else if now > identity.renew_at(u64::MAX) {
            let detail = format!(
                "of {device} has {days} days left and should have been renewed; is the agent running?"
            );
            self.warn("certificate", detail);
        } else {
            self.ok(
                "certificate",
                format!("of {device}, {days} days left, belongs to {KEY_FILE}"),
            );
        }
    }

    fn examine_metadata(&mut self, dir: &StateDir, now: Timestamp) {
        for repository in ["director", "images"] {
            let name = if repository == "director" {
                "director metadata"
            } else {
                "images metadata"
            };
            let file = format!("metadata/{repository}/timestamp.json");
            let expires = dir.read(&file).ok().flatten().and_then(|bytes| expiry(&bytes));
            match expires {
                None => self.warn(name, "none yet; run: device-agent sync"),
                Some(expires) if expires < now => {
                    let detail = format!(
                        "ended at {expires}; the facade was not reachable since, or withholds newer (run: device-agent sync)"
                    );
                    self.warn(name, detail);
                }
                Some(expires) => self.ok(name, format!("believed until {expires}")),
            }
        }
    }

    async fn examine_facade(&mut self, config: &Config, clock: &Clock, identity: &Identity) {
        let url = &identity.facade().url;
        let client = match identity.client(clock, config.proxy.as_ref()) {
            Ok(client) => client,
            Err(error) => return self.fail("tls", Exit::Failed, crate::error_chain(&error)),
        };
        if let Err(error) = client.reach().await {
            return self.fail(step(&error), exit(&error), crate::error_chain(&error));
        }
        let proxy = config
            .proxy
            .as_ref()
            .map(|proxy| format!(" through the proxy {}", proxy.host()));
        self.ok(
            "connection",
            format!("TLS with {url}{}", proxy.unwrap_or_default()),
        );
        match client.get("/v2/", 64 * 1024).await {
            Ok(_) => self.ok("facade", "knows this device"),
            Err(error) => self.fail("facade", exit(&error), crate::error_chain(&error)),
        }
    }

    /// Whether stock containerd could be led past the facade. No file is fine: the agent itself does not need one.
    fn examine_hosts_toml(&mut self, identity: &Identity) {
        let file = "/etc/containerd/certs.d/_default/hosts.toml";
        let Ok(text) = std::fs::read_to_string(file) else {
            return;
        };
        match hosts_toml::weakness(&text, &identity.facade().url.to_string()) {
            None => self.ok("hosts.toml", format!("{file} keeps containerd with the facade")),
            Some(weakness) => self.warn(
                "hosts.toml",
                format!("{file}: {weakness}; replace it with: device-agent hosts-toml"),
            ),
        }
    }

    async fn examine_sink(&mut self, config: Config, clock: Clock) {
        let reserve = config.reserve_bytes;
        let sink = config.sink.to_string();
        if StateDir::open_existing(&config.state_dir).is_err() {
            return;
        }
        let agent = match Agent::open(config, clock) {
            Ok(agent) => agent,
            Err(error) => return self.fail("images", Exit::Failed, crate::error_chain(&error)),
        };
        match agent.runtime().about().await {
            Ok(about) => self.ok(
                "images",
                format!("{} {} at {}", about.kind, about.version, about.address),
            ),
            Err(error) => {
                let detail = format!("{sink}: {}", crate::error_chain(&error));
                return self.fail("images", Exit::Failed, detail);
            }
        }
        let Ok(space) = agent.runtime().space().await else {
            return;
        };
        match space.content_free_bytes {
            Some(free) if free < reserve => self.fail(
                "disk",
                Exit::Failed,
                format!("{free} bytes free, less than the reserve of {reserve}"),
            ),
            Some(free) => self.ok("disk", format!("{} MiB free", free >> 20)),
            None => self.warn("disk", "the disk of the images cannot be seen from here"),
        }
    }
}

fn expiry(bytes: &[u8]) -> Option<Timestamp> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value.pointer("/signed/expires")?.as_str()?.parse().ok()
}

/// Which step on the way to the facade failed.
fn step(error: &ClientError) -> &'static str {
    if matches!(error, ClientError::Resolve { .. }) {
        "dns"
    } else if matches!(error, ClientError::Connect { .. }) {
        "tcp"
    } else if matches!(error, ClientError::Proxy { .. }) {
        "proxy"
    } else {
        "tls"
    }
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
        let _ = writeln!(text, "{mark}  {}: {}", finding.check, finding.detail);
    }
    text
}
