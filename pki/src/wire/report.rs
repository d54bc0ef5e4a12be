//! What a device tells the facade about itself, and what it hears back.
//!
//! A report is one device's word: the facade records it, shows it, and believes only that this device said it. Counter
//! and boot id make a copied identity visible: two devices cannot both count on from the same number.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::json::{self, JsonError};
use crate::oci::{ArtifactName, Platform};
use crate::wire::text::{Code, Line};
use crate::x509::DeviceId;

/// A report is never longer than this.
pub const MAX_REPORT_BYTES: usize = 256 * 1024;
/// The version of [`Report`] that this crate writes and reads.
const VERSION: u32 = 1;
const MAX_ENTRIES: usize = 256;
const MAX_PLATFORM_BYTES: usize = 64;

/// Why a body is not a report.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Not JSON of the expected shape.
    #[error("the report cannot be read")]
    Json(#[source] JsonError),
    /// Written by an agent of another generation.
    #[error("the report is of version {0}, and only version {VERSION} is understood")]
    Version(u32),
    /// A list is longer than any device needs.
    #[error("the report lists more than {MAX_ENTRIES} entries under {0:?}")]
    TooMany(&'static str),
    /// The platform is not one that its text form could carry.
    #[error("the report names a platform that does not exist")]
    Platform,
    /// One thing is listed twice, and the entries may disagree.
    #[error("the report lists {0} twice")]
    Twice(ArtifactName),
}

/// What a device reports with `PUT /v1/report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The version of this body.
    version: u32,
    /// Who reports; must be the identity of the TLS session.
    pub device: DeviceId,
    /// Grows with every report, and is stored by the device before it is sent.
    pub counter: u64,
    /// Drawn anew for every report. A report that is delivered twice carries it twice; a copy of the device that has
    /// the same to tell under the same counter does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Code>,
    /// Which boot of the device this is; `/proc/sys/kernel/random/boot_id`.
    pub boot_id: Code,
    /// The version of the agent.
    pub agent_version: Line,
    /// What the device is.
    pub platform: Platform,
    /// What it runs, or has handed over to be run.
    #[serde(default)]
    pub running: Vec<Running>,
    /// What it is doing.
    pub state: AgentState,
    /// What it refused, and why.
    #[serde(default)]
    pub refused: Vec<Refusal>,
    /// What failed here and was left again, for what ran before; listed for as long as it is not tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rolled_back: Vec<RolledBack>,
    /// What it waits for, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Line>,
    /// The metadata that it trusts.
    #[serde(default)]
    pub metadata: MetadataVersions,
    /// What shows that the facade is behind the metadata that this device trusts.
    #[serde(default, skip_serializing_if = "Proof::is_empty")]
    pub proof: Proof,
    /// Free bytes where images go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Bytes that would have to be free for what is assigned, where there are fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub need_bytes: Option<u64>,
    /// How far a fetch has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// One artifact that failed on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Which one.
    pub artifact: ArtifactName,
    /// The stable name of the reason.
    pub code: Code,
    /// The reason in words.
    pub reason: Line,
    /// When it failed.
    pub at: Timestamp,
}

/// One artifact on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Which one.
    pub artifact: ArtifactName,
    /// Since when.
    pub since: Timestamp,
}

/// What the agent is doing; named after the states of its life-cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// Nothing to do.
    Idle,
    /// Asking for metadata.
    Checking,
    /// Fetching content.
    Fetching,
    /// Handing an artifact to the runtime.
    Activating,
    /// Watching whether it stays up.
    Confirming,
    /// Returning to what ran before.
    RollingBack,
    /// The clock is not believable.
    WaitingForClock,
    /// The certificate is beyond renewal.
    NeedsEnrollment,
    /// A state of a newer agent.
    #[serde(other)]
    Other,
}

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What was refused.
    #[serde(flatten)]
    pub subject: Subject,
    /// The stable name of the reason.
    pub code: Code,
    /// The reason in words.
    pub reason: Line,
}

/// What a refusal is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// An artifact.
    Artifact(ArtifactName),
    /// A file of metadata, such as `director/timestamp.json`.
    Metadata(Line),
}

/// The versions of the metadata that the device trusts; 0 is none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataVersions {
    /// Of the images repository.
    #[serde(default)]
    pub images: RepositoryVersions,
    /// Of the director repository.
    #[serde(default)]
    pub director: RepositoryVersions,
}

/// The versions of one repository's roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepositoryVersions {
    /// Of `root`.
    pub root: u64,
    /// Of `timestamp`.
    pub timestamp: u64,
    /// Of `snapshot`.
    pub snapshot: u64,
    /// Of `targets`.
    pub targets: u64,
}

/// The stored timestamp files of a device that refused to go back, as they were received. The facade believes their
/// signatures, which are its own, and not the device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Of the images repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// Of the director repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub director: Option<String>,
}

impl Proof {
    /// Whether it shows nothing.
    pub fn is_empty(&self) -> bool {
        self.images.is_none() && self.director.is_none()
    }
}

/// How far the fetch of one artifact has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Which one.
    pub artifact: ArtifactName,
    /// Bytes that are here and verified.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

impl Report {
    /// A report with nothing in it but who, when and what.
    pub fn new(
        device: DeviceId,
        counter: u64,
        boot_id: Code,
        agent_version: Line,
        platform: Platform,
        state: AgentState,
    ) -> Self {
        Self {
            version: VERSION,
            device,
            counter,
            nonce: None,
            boot_id,
            agent_version,
            platform,
            running: Vec::new(),
            state,
            refused: Vec::new(),
            rolled_back: Vec::new(),
            waiting: None,
            metadata: MetadataVersions::default(),
            proof: Proof::default(),
            free_bytes: None,
            need_bytes: None,
            progress: None,
        }
    }

    /// Reads the body of a request.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        let report: Self = json::parse_as(bytes, MAX_REPORT_BYTES).map_err(ReportError::Json)?;
        if report.version != VERSION {
            return Err(ReportError::Version(report.version));
        }
        // `Platform` reads any text; here it ends in an operator's listing.
        let platform = report.platform.to_string();
        if platform.len() > MAX_PLATFORM_BYTES || platform.parse().as_ref() != Ok(&report.platform) {
            return Err(ReportError::Platform);
        }
        let lists = [
            ("running", report.running.len()),
            ("refused", report.refused.len()),
            ("rolled_back", report.rolled_back.len()),
        ];
        for (name, length) in lists {
            if length > MAX_ENTRIES {
                return Err(ReportError::TooMany(name));
            }
        }
        let mut seen = BTreeSet::new();
        for running in &report.running {
            if !seen.insert(&running.artifact) {
                return Err(ReportError::Twice(running.artifact.clone()));
            }
        }
        Ok(report)
    }
}

/// What the facade answers to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportAnswer {
    /// The counter that the next report must carry at least; it never falls.
    pub next_counter: u64,
    /// Send a report at least this often.
    pub report_every_seconds: u32,
}

/// What `GET /v1/wait` answers when there is something new for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitAnswer {
    /// The version to pass as `since` next time.
    pub version: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARTIFACT: &str =
        "ghcr.io/o/r@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn report() -> Report {
        let mut report = Report::new(
            "pump-7".parse().unwrap(),
            41,
            "0b0c2f3e-5d4a-4a0b-9a37-8d5a3b1d8f11".parse().unwrap(),
            "0.1.0".parse().unwrap(),
            Platform::new("linux", "arm64", None),
            AgentState::Fetching,
        );
        report.running.push(Running {
            artifact: ARTIFACT.parse().unwrap(),
            since: "2026-11-20T20:00:00Z".parse().unwrap(),
        });
        report.refused.push(Refusal {
            subject: Subject::Metadata(Line::shortened("director/timestamp.json")),
            code: "expired".parse().unwrap(),
            reason: Line::shortened("timestamp expired yesterday"),
        });
        report.refused.push(Refusal {
            subject: Subject::Artifact(ARTIFACT.parse().unwrap()),
            code: "digest_mismatch".parse().unwrap(),
            reason: Line::shortened("layer 2"),
        });
        report.rolled_back.push(RolledBack {
            artifact: ARTIFACT.parse().unwrap(),
            code: "probe_failed".parse().unwrap(),
            reason: Line::shortened("the probe did not succeed within 60 s"),
            at: "2026-11-20T20:00:00Z".parse().unwrap(),
        });
        report.waiting = Some(Line::shortened("the download window, which opens at 22:00"));
        report.free_bytes = Some(1 << 30);
        report.need_bytes = Some(1 << 31);
        report
    }

    fn edited(edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Vec<u8> {
        let mut value = serde_json::to_value(report()).unwrap();
        edit(value.as_object_mut().unwrap());
        serde_json::to_vec(&value).unwrap()
    }

    #[test]
    fn reads_back_what_it_writes() {
        let bytes = serde_json::to_vec(&report()).unwrap();
        assert_eq!(Report::parse(&bytes).unwrap(), report());
    }

    #[test]
    fn reads_reports_of_newer_agents_with_fields_and_states_it_does_not_know() {
        let bytes = edited(|fields| {
            fields.insert("uptime".into(), 5.into());
            fields.insert("state".into(), "defragmenting".into());
        });
        assert_eq!(Report::parse(&bytes).unwrap().state, AgentState::Other);
    }

    #[test]
    fn rejects_a_report_of_another_version() {
        let bytes = edited(|fields| drop(fields.insert("version".into(), 2.into())));
        assert!(matches!(Report::parse(&bytes), Err(ReportError::Version(2))));
    }

    #[test]
    fn rejects_a_report_with_more_entries_than_a_device_has() {
        for list in ["refused", "rolled_back"] {
            let bytes = edited(|fields| {
                let entry = fields[list][0].clone();
                fields.insert(list.into(), vec![entry; 257].into());
            });
            assert!(matches!(Report::parse(&bytes), Err(ReportError::TooMany(name)) if name == list));
        }
    }

    #[test]
    fn rejects_an_artifact_that_runs_twice() {
        let bytes = edited(|fields| {
            let entry = fields["running"][0].clone();
            fields.insert("running".into(), vec![entry; 2].into());
        });
        assert!(matches!(Report::parse(&bytes), Err(ReportError::Twice(_))));
    }

    #[test]
    fn rejects_texts_that_would_forge_a_log_line() {
        let bytes = edited(|fields| drop(fields.insert("agent_version".into(), "1\nroot logged in".into())));
        assert!(matches!(Report::parse(&bytes), Err(ReportError::Json(_))));
    }

    #[test]
    fn rejects_platforms_that_are_no_platforms() {
        for os in ["", "linux\n", "a/b", &"x".repeat(80)] {
            let bytes = edited(|fields| fields["platform"]["os"] = os.into());
            let refused = Report::parse(&bytes);
            assert!(matches!(refused, Err(ReportError::Platform | ReportError::Json(_))), "{os:?}");
        }
    }

    #[test]
    fn rejects_null_and_wrong_types_in_every_field() {
        for field in ["version", "device", "counter", "boot_id", "agent_version", "platform", "state"] {
            for value in [serde_json::Value::Null, serde_json::json!([]), serde_json::json!(-1)] {
                let bytes = edited(|fields| drop(fields.insert(field.into(), value.clone())));
                assert!(Report::parse(&bytes).is_err(), "{field} = {value}");
            }
            let bytes = edited(|fields| drop(fields.remove(field)));
            assert!(Report::parse(&bytes).is_err(), "without {field}");
        }
    }
}
