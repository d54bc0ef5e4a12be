//! `device-agent status`: what the device has, what it is doing, and why it is not updating.

use std::fmt::Write as _;

use jiff::Timestamp;
use pki::oci::ArtifactName;
use pki::wire::{Refusal, RolledBack, Running};
use serde::Serialize;

use super::output::line;
use super::{Exit, Failure, Output};
use crate::clock::Clock;
use crate::config::Config;
use crate::driver::shown::{SHOWN_FILE, Shown};
use crate::driver::{AgentError, STATE_FILE, raise_clock};
use crate::identity::{DISOWNED_FILE, Identity};
use crate::lifecycle::{Release, State};
use crate::report::Reporter;
use crate::state_file::{StateDir, StateError};

#[derive(Serialize)]
struct Status {
    schema: u32,
    agent_running: bool,
    device: Option<String>,
    facade: Option<String>,
    certificate_ends: Option<Timestamp>,
    certificate_days_left: Option<i64>,
    disowned: Option<String>,
    needs_enrollment: bool,
    clock_is_behind: bool,
    state: String,
    running: Vec<Running>,
    next: Vec<String>,
    rejected: Vec<Vec<String>>,
    rolled_back: Vec<RolledBack>,
    refused: Vec<Refusal>,
    now: Option<Shown>,
}

pub(super) fn status(config: &Config, clock: &Clock, output: &Output) -> Result<Exit, Failure> {
    let dir = match StateDir::open_existing(&config.state_dir) {
        Ok(dir) => dir,
        Err(StateError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let text = "not enrolled; run: device-agent enroll TOKEN";
            output.result(&serde_json::json!({"schema": 1, "state": "unenrolled"}), text);
            return Ok(Exit::Success);
        }
        Err(error) => return Err(Failure::from(AgentError::from(error))),
    };
    let status = gather(&dir, config, clock).map_err(Failure::from)?;
    output.result(&status, &status.text());
    Ok(Exit::Success)
}

fn gather(dir: &StateDir, config: &Config, clock: &Clock) -> Result<Status, AgentError> {
    let state: State = dir.read_json(STATE_FILE, "it will be made anew")?.unwrap_or_default();
    raise_clock(dir, clock);
    let identity = Identity::read(dir, &config.keys)?;
    if let Some(identity) = &identity {
        clock.raise(identity.certificate().not_before());
    }
    let reporter = Reporter { state: dir };
    let ends = identity.as_ref().map(|identity| identity.certificate().not_after());
    let disowned = dir.read(DISOWNED_FILE)?;
    let names = |release: &Release| -> Vec<String> {
        release.assigned().map(|assigned| assigned.artifact.to_string()).collect()
    };
    Ok(Status {
        schema: 1,
        agent_running: matches!(dir.lock(), Err(StateError::Locked(_))),
        device: identity.as_ref().map(|identity| identity.device().to_string()),
        facade: identity.as_ref().map(|identity| identity.facade().url.to_string()),
        certificate_ends: ends,
        certificate_days_left: ends.map(|ends| ends.duration_since(clock.now()).as_hours() / 24),
        needs_enrollment: ends.is_none_or(|ends| disowned.is_some() && ends < clock.now()),
        disowned: disowned.map(|reason| String::from_utf8_lossy(&reason).into_owned()),
        clock_is_behind: clock.is_behind(),
        // The first round only takes note that the device is enrolled: whoever asks before it should not be misled.
        state: if identity.is_some() && matches!(state, State::Unenrolled { .. }) {
            "idle"
        } else {
            state.name()
        }
        .to_owned(),
        running: reporter.running(),
        next: state.next().map(names).unwrap_or_default(),
        rejected: state.standing().rejected.iter().map(names).collect(),
        rolled_back: reporter.rolled_back(&state),
        refused: reporter.refused(),
        // What a damaged file would show is not worth failing for.
        now: dir.read_json(SHOWN_FILE, "it is only shown").ok().flatten(),
    })
}

impl Status {
    /// One line that answers the question, and one for each thing worth knowing.
    fn text(&self) -> String {
        let mut text = line(&self.headline());
        for running in &self.running {
            let _ = write!(text, "\nhas {} since {}", running.artifact, running.since);
        }
        for artifact in &self.next {
            let _ = write!(text, "\nnext {artifact}");
        }
        for failed in &self.rolled_back {
            let _ = write!(
                text,
                "\nrolled back {} at {} and not tried again ({}): {}",
                failed.artifact, failed.at, failed.code, failed.reason
            );
        }
        for refusal in &self.refused {
            let _ = write!(text, "\nrefused ({}): {}", refusal.code, refusal.reason);
        }
        text
    }

    /// The answer: what it runs, what it is doing, how far it is, and why it is not updating.
    fn headline(&self) -> String {
        let (Some(device), Some(days)) = (&self.device, self.certificate_days_left) else {
            return "not enrolled; run: device-agent enroll TOKEN".to_owned();
        };
        let doing = match &self.now {
            Some(shown) => shown.line(),
            None => self.state.replace('_', " "),
        };
        let runs = match self.running.as_slice() {
            [] => "runs nothing".to_owned(),
            [one] => format!("runs {}", short(&one.artifact)),
            [one, others @ ..] => format!("runs {} and {} more", short(&one.artifact), others.len()),
        };
        let agent = if self.agent_running { "" } else { " (no agent running)" };
        let mut line = format!("{device}: {runs}; {doing}{agent}; certificate {days} days");
        if self.clock_is_behind {
            line.push_str("; waiting for a sane clock");
        }
        if self.needs_enrollment {
            line.push_str("; needs re-enrollment: device-agent enroll --again TOKEN");
        }
        if let Some(reason) = &self.disowned {
            let _ = write!(line, "; the facade refuses this device: {reason}");
        }
        line
    }
}

/// The name with as much of the digest as tells versions apart.
fn short(artifact: &ArtifactName) -> String {
    let hex = artifact.digest().hex();
    format!("{}@{}", artifact.repository(), hex.get(..12).unwrap_or(&hex))
}
