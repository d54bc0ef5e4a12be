//! How one device fares in a rollout, by what it reports. ◇

use std::collections::BTreeSet;

use pki::oci::ArtifactName;
use pki::wire::{AgentState, Report, Subject};
use serde::{Deserialize, Serialize};

/// How a device fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Condition {
    /// Its wave has not begun.
    Pending,
    /// It has not begun, and says why, where it does.
    Waiting {
        /// Why.
        why: Option<String>,
    },
    /// It fetches.
    Downloading {
        /// Bytes that are there.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// All bytes are there.
    Verifying,
    /// It hands over, or watches whether it stays up.
    Applying,
    /// It runs what it should.
    Healthy,
    /// It went back to what it ran before.
    RolledBack {
        /// Why.
        why: String,
    },
    /// It refused.
    Failed {
        /// Why.
        why: String,
    },
}

impl Condition {
    /// The condition's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Waiting { .. } => "waiting",
            Self::Downloading { .. } => "downloading",
            Self::Verifying => "verifying",
            Self::Applying => "applying",
            Self::Healthy => "healthy",
            Self::RolledBack { .. } => "rolled-back",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether it counts as a failure.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::RolledBack { .. } | Self::Failed { .. })
    }
}

/// What a report means for a device that should have `artifacts`. A failure stays one until the device runs what it
/// should: trying again does not make it undone.
pub fn observe(before: &Condition, artifacts: &BTreeSet<ArtifactName>, report: &Report) -> Condition {
    let back = report.rolled_back.iter().find(|back| artifacts.contains(&back.artifact));
    if let Some(back) = back {
        return Condition::RolledBack { why: format!("{}: {}", back.code, back.reason.as_str()) };
    }
    let refused = report.refused.iter().find(|refusal| match &refusal.subject {
        Subject::Artifact(name) => artifacts.contains(name),
        Subject::Metadata(_) => false,
    });
    if let Some(refusal) = refused {
        return Condition::Failed { why: format!("{}: {}", refusal.code, refusal.reason.as_str()) };
    }
    let running: BTreeSet<&ArtifactName> = report.running.iter().map(|running| &running.artifact).collect();
    let complete = artifacts.iter().all(|artifact| running.contains(artifact));
    let busy =
        matches!(report.state, AgentState::Activating | AgentState::Confirming | AgentState::RollingBack);
    if complete && !busy {
        return Condition::Healthy;
    }
    if before.is_failure() {
        return before.clone();
    }
    match report.state {
        AgentState::Fetching => fetching(artifacts, report),
        AgentState::Activating | AgentState::Confirming | AgentState::RollingBack => Condition::Applying,
        AgentState::WaitingForClock => waiting("its clock is not believable"),
        AgentState::NeedsEnrollment => waiting("its certificate is beyond renewal: it must enroll again"),
        AgentState::Idle | AgentState::Checking | AgentState::Other => {
            Condition::Waiting { why: told(report) }
        }
    }
}

fn waiting(why: &str) -> Condition {
    Condition::Waiting { why: Some(why.to_owned()) }
}

fn fetching(artifacts: &BTreeSet<ArtifactName>, report: &Report) -> Condition {
    let ours = report.progress.as_ref().filter(|progress| artifacts.contains(&progress.artifact));
    match ours {
        Some(progress) if progress.done_bytes >= progress.total_bytes && progress.total_bytes > 0 => {
            Condition::Verifying
        }
        Some(progress) => {
            Condition::Downloading { done_bytes: progress.done_bytes, total_bytes: progress.total_bytes }
        }
        None => Condition::Waiting { why: told(report) },
    }
}

/// Why it waits, in its own words.
fn told(report: &Report) -> Option<String> {
    if let Some(waiting) = &report.waiting {
        return Some(format!("for {}", waiting.as_str()));
    }
    report.refused.iter().find_map(|refusal| match &refusal.subject {
        Subject::Metadata(file) => Some(format!("it refuses {}: {}", file.as_str(), refusal.code)),
        Subject::Artifact(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use pki::oci::Platform;
    use pki::wire::{Line, Progress, Refusal, Running};

    use super::*;

    fn artifact(text: &str) -> ArtifactName {
        ArtifactName::new("ghcr.io/o/app".parse().unwrap(), pki::digest::Digest::sha256(text.as_bytes()))
    }

    fn report(state: AgentState, running: &[&str]) -> Report {
        let platform = Platform::new("linux", "arm64", None);
        let line = |text: &str| text.parse::<Line>().unwrap();
        let boot = "boot".parse().unwrap();
        let mut report = Report::new("a".parse().unwrap(), 1, boot, line("1"), platform, state);
        let since = "2026-11-20T20:00:00Z".parse().unwrap();
        report.running = running.iter().map(|text| Running { artifact: artifact(text), since }).collect();
        report
    }

    fn seen(before: &Condition, report: &Report) -> Condition {
        observe(before, &BTreeSet::from([artifact("new")]), report)
    }

    const NEW: Condition = Condition::Waiting { why: None };

    #[test]
    fn a_device_is_healthy_when_it_runs_all_of_it_and_rests() {
        assert_eq!(seen(&NEW, &report(AgentState::Idle, &["old", "new"])), Condition::Healthy);
        assert_eq!(seen(&NEW, &report(AgentState::Idle, &["old"])), NEW);
        assert_eq!(seen(&NEW, &report(AgentState::Confirming, &["new"])), Condition::Applying);
    }

    #[test]
    fn a_download_says_how_far_it_is() {
        let mut fetching = report(AgentState::Fetching, &[]);
        fetching.progress =
            Some(Progress { artifact: artifact("new"), done_bytes: 5, total_bytes: 9, attempt: 1 });
        assert_eq!(seen(&NEW, &fetching), Condition::Downloading { done_bytes: 5, total_bytes: 9 });
        fetching.progress =
            Some(Progress { artifact: artifact("new"), done_bytes: 9, total_bytes: 9, attempt: 1 });
        assert_eq!(seen(&NEW, &fetching), Condition::Verifying);
        fetching.progress =
            Some(Progress { artifact: artifact("other"), done_bytes: 5, total_bytes: 9, attempt: 1 });
        assert_eq!(seen(&NEW, &fetching), NEW);
    }

    #[test]
    fn a_failure_stays_until_the_device_is_healthy() {
        let mut refusing = report(AgentState::Idle, &["old"]);
        refusing.refused.push(Refusal {
            subject: Subject::Artifact(artifact("new")),
            code: "content_digest".parse().unwrap(),
            reason: Line::shortened("layer 2"),
        });
        let failed = seen(&NEW, &refusing);
        assert_eq!(failed, Condition::Failed { why: "content_digest: layer 2".to_owned() });
        // A refusal is told once.
        assert_eq!(seen(&failed, &report(AgentState::Fetching, &["old"])), failed);
        assert_eq!(seen(&failed, &report(AgentState::Idle, &["new"])), Condition::Healthy);
    }

    #[test]
    fn a_device_that_went_back_says_why_and_one_that_waits_says_for_what() {
        let mut back = report(AgentState::Idle, &["old"]);
        back.rolled_back.push(pki::wire::RolledBack {
            artifact: artifact("new"),
            code: "probe_failed".parse().unwrap(),
            reason: Line::shortened("no answer"),
            at: "2026-11-20T20:00:00Z".parse().unwrap(),
        });
        assert_eq!(seen(&NEW, &back), Condition::RolledBack { why: "probe_failed: no answer".to_owned() });
        let mut waits = report(AgentState::Idle, &["old"]);
        waits.waiting = Some(Line::shortened("the download window, which opens at 22:00"));
        let why = Some("for the download window, which opens at 22:00".to_owned());
        assert_eq!(seen(&NEW, &waits), Condition::Waiting { why });
    }

    #[test]
    fn what_a_device_refuses_of_others_does_not_fail_it_and_metadata_makes_it_wait() {
        let mut refusing = report(AgentState::Idle, &["old"]);
        refusing.refused.push(Refusal {
            subject: Subject::Artifact(artifact("other")),
            code: "content_digest".parse().unwrap(),
            reason: Line::shortened("layer 2"),
        });
        assert_eq!(seen(&NEW, &refusing), NEW);
        refusing.refused.push(Refusal {
            subject: Subject::Metadata(Line::shortened("director/timestamp.json")),
            code: "metadata_expired".parse().unwrap(),
            reason: Line::shortened("old"),
        });
        let why = Some("it refuses director/timestamp.json: metadata_expired".to_owned());
        assert_eq!(seen(&NEW, &refusing), Condition::Waiting { why });
    }
}
