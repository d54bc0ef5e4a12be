//! `device-agent verify`: reads back every byte that this agent is responsible for. What it finds damaged or missing the
//! next round reads back, and brings in again.

use std::fmt::Write as _;

use serde::Serialize;

use super::output::line;
use super::{Exit, Failure, Output};
use crate::clock::Clock;
use crate::config::Config;
use crate::driver::{Agent, AgentError, STATE_FILE};
use crate::lifecycle::{Assigned, State};
use crate::runtime::{Image, ImageError, RuntimeError};
use crate::state_file::StateDir;

#[derive(Serialize)]
struct Report {
    schema: u32,
    sound: bool,
    images: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    artifact: String,
    /// `current` or `previous`.
    role: &'static str,
    sound: bool,
    verified_bytes: u64,
    missing: Vec<String>,
    damaged: Vec<String>,
    unpacked_missing: bool,
    error: Option<String>,
}

pub(super) async fn verify(config: Config, clock: Clock, output: &Output) -> Result<Exit, Failure> {
    let dir = StateDir::open_existing(&config.state_dir).map_err(|error| Failure::failed(&error))?;
    let state: State = dir
        .read_json(STATE_FILE, "run: device-agent sync")
        .map_err(|error| Failure::failed(&error))?
        .unwrap_or_default();
    let agent = Agent::open(config, clock).map_err(Failure::from)?;
    let standing = state.standing();
    let mut images = Vec::new();
    for (release, role) in [(&standing.current, "current"), (&standing.previous, "previous")] {
        for assigned in release.assigned() {
            if role == "previous" && standing.current.has(&assigned.artifact) {
                continue;
            }
            images.push(examine(&agent, assigned, role).await.map_err(Failure::from)?);
        }
    }
    let report = Report { schema: 1, sound: images.iter().all(|finding| finding.sound), images };
    if !report.sound {
        // Whoever cannot write here has still found the damage.
        if let Err(error) = agent.doubt() {
            tracing::warn!(
                error = crate::error_chain(&error),
                "what is damaged cannot be noted, and is not mended"
            );
        }
    }
    output.result(&report, &text(&report));
    if report.sound { Ok(Exit::Success) } else { Ok(Exit::Verification) }
}

/// Reads one image back; fails only where nothing could be read at all.
async fn examine(agent: &Agent, assigned: &Assigned, role: &'static str) -> Result<Finding, AgentError> {
    let mut finding = Finding {
        artifact: assigned.artifact.to_string(),
        role,
        sound: false,
        verified_bytes: 0,
        missing: Vec::new(),
        damaged: Vec::new(),
        unpacked_missing: false,
        error: None,
    };
    let runtime = agent.runtime();
    let loaded = Image::load(runtime, &assigned.artifact, &assigned.root(), agent.platform()).await;
    let verified = match loaded {
        Ok(image) => runtime.verify(&image).await,
        // Without its documents nobody can say what the image should be made of.
        Err(ImageError::Runtime(error)) => Err(error),
        Err(error) => {
            finding.error = Some(crate::error_chain(&error));
            return Ok(finding);
        }
    };
    match verified {
        Ok(verification) => {
            finding.sound = verification.is_sound();
            finding.verified_bytes = verification.verified_bytes;
            finding.missing = verification.missing.iter().map(ToString::to_string).collect();
            finding.damaged = verification.damaged.iter().map(ToString::to_string).collect();
            finding.unpacked_missing = verification.unpacked_missing;
        }
        Err(
            error @ (RuntimeError::Corrupt { .. }
            | RuntimeError::Missing { .. }
            | RuntimeError::Unknown { .. }),
        ) => {
            finding.error = Some(crate::error_chain(&error));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(finding)
}

fn text(report: &Report) -> String {
    if report.images.is_empty() {
        return "nothing has been handed over yet".to_owned();
    }
    let mut text = String::new();
    for finding in &report.images {
        let verdict = if finding.sound { "sound" } else { "DAMAGED" };
        let _ = writeln!(
            text,
            "{verdict}: {} ({}), {} bytes verified",
            finding.artifact, finding.role, finding.verified_bytes
        );
        for digest in &finding.missing {
            let _ = writeln!(text, "  missing {digest}");
        }
        for digest in &finding.damaged {
            let _ = writeln!(text, "  damaged {digest}");
        }
        if finding.unpacked_missing {
            let _ = writeln!(text, "  not unpacked");
        }
        if let Some(error) = &finding.error {
            let _ = writeln!(text, "  {}", line(error));
        }
    }
    text
}
