//! What the device tells the facade about itself.
//!
//! The counter is stored before a report goes out, so that no two reports of one device ever carry the same number; two
//! devices with one identity therefore show. What was refused is kept until a report with it has been answered.

use std::time::Duration;

use jiff::Timestamp;
use pki::oci::{ArtifactName, Platform};
use pki::wire::{
    AgentState, Code, Line, MetadataVersions, Progress, Refusal, Report, ReportAnswer, RolledBack, Running,
    Subject,
};
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};

use crate::facade_client::{Ask, Class, ClientError, FacadeClient};
use crate::lifecycle::{Release, State};
use crate::progress::Snapshot;
use crate::random;
use crate::refresh;
use crate::state_file::{StateDir, StateError};

const REPORT_FILE: &str = "report.json";
const REFUSED_FILE: &str = "refused.json";
const RUNNING_FILE: &str = "running.json";
const FAILED_FILE: &str = "rolled_back.json";
/// Refusals that are kept until they can be told; a hostile facade must not fill the disk.
const MAX_REFUSALS: usize = 32;
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// `report.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Counter {
    counter: u64,
}

/// What goes into one report besides what is kept here.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Who.
    pub device: &'a DeviceId,
    /// What it is.
    pub platform: &'a Platform,
    /// What it is doing.
    pub state: AgentState,
    /// What failed here and is not tried again.
    pub rolled_back: Vec<RolledBack>,
    /// What it waits for.
    pub waiting: Option<String>,
    /// The metadata it trusts.
    pub versions: MetadataVersions,
    /// Free bytes where images go.
    pub free_bytes: Option<u64>,
    /// Bytes that are needed, where there are fewer.
    pub need_bytes: Option<u64>,
    /// How far a fetch has come.
    pub progress: Option<Snapshot>,
}

/// The reports of this device.
pub struct Reporter<'a> {
    /// Where counter and refusals are kept.
    pub state: &'a StateDir,
}

impl Reporter<'_> {
    /// Keeps a refusal until it can be told. The same one is told once.
    pub fn refuse(&self, subject: Subject, code: &str, reason: &str) -> Result<(), StateError> {
        let Ok(code) = code.parse::<Code>() else {
            return Ok(());
        };
        tracing::warn!(code = %code, reason, "refused");
        let refusal = Refusal { subject, code, reason: Line::shortened(reason) };
        let mut refused = self.refused();
        if refused.contains(&refusal) {
            return Ok(());
        }
        refused.push(refusal);
        if refused.len() > MAX_REFUSALS {
            refused.remove(0);
        }
        self.state.write_json(REFUSED_FILE, &refused)
    }

    /// What was refused and not told yet. A damaged list is an empty one: it is told, not decided by.
    pub fn refused(&self) -> Vec<Refusal> {
        self.state.read_json(REFUSED_FILE, "remove it").ok().flatten().unwrap_or_default()
    }

    /// Notes why these artifacts failed here; the newest reason of each counts.
    pub fn failed_here(
        &self,
        release: &Release,
        code: &str,
        reason: &str,
        at: Timestamp,
    ) -> Result<(), StateError> {
        let Ok(code) = code.parse::<Code>() else {
            return Ok(());
        };
        let mut failed = self.failed();
        failed.retain(|failed| !release.has(&failed.artifact));
        failed.extend(release.assigned().map(|assigned| RolledBack {
            artifact: assigned.artifact.clone(),
            code: code.clone(),
            reason: Line::shortened(reason),
            at,
        }));
        let excess = failed.len().saturating_sub(MAX_REFUSALS);
        failed.drain(..excess);
        self.state.write_json(FAILED_FILE, &failed)
    }

    fn failed(&self) -> Vec<RolledBack> {
        self.state.read_json(FAILED_FILE, "remove it").ok().flatten().unwrap_or_default()
    }

    /// What failed here and is not tried again, or is just being left; not what may still run.
    pub fn rolled_back(&self, state: &State) -> Vec<RolledBack> {
        let rejected = &state.standing().rejected;
        let leaving = matches!(state, State::RollingBack { .. }).then(|| state.next()).flatten();
        let mut failed = self.failed();
        failed.retain(|failed| {
            let mut releases = rejected.iter().chain(leaving);
            releases.any(|release| release.has(&failed.artifact))
                && !state.standing().current.has(&failed.artifact)
                && !state.standing().lingers(&failed.artifact)
        });
        failed
    }

    /// Notes what is handed over from now on; what was there before keeps its time.
    pub fn handed_over(&self, release: &Release, now: Timestamp) -> Result<(), StateError> {
        let before = self.running();
        let since = |artifact: &ArtifactName| {
            before.iter().find(|running| running.artifact == *artifact).map_or(now, |running| running.since)
        };
        let running: Vec<Running> = release
            .assigned()
            .map(|assigned| Running { artifact: assigned.artifact.clone(), since: since(&assigned.artifact) })
            .collect();
        self.state.write_json(RUNNING_FILE, &running)
    }

    /// What is handed over, and since when.
    pub fn running(&self) -> Vec<Running> {
        self.state.read_json(RUNNING_FILE, "remove it").ok().flatten().unwrap_or_default()
    }

    /// Sends one report; returns when the facade wants the next.
    pub async fn send(&self, client: &FacadeClient, facts: &Facts<'_>) -> Result<Duration, ReportError> {
        let counter = self.next_counter().map_err(ReportError::State)?;
        let refused = self.refused();
        let mut report = Report::new(
            facts.device.clone(),
            counter,
            boot_id(),
            Line::shortened(env!("CARGO_PKG_VERSION")),
            facts.platform.clone(),
            facts.state,
        );
        report.nonce = format!("{:016x}", random::number()).parse().ok();
        report.running = self.running();
        report.refused.clone_from(&refused);
        report.metadata = facts.versions;
        report.rolled_back.clone_from(&facts.rolled_back);
        report.waiting = facts.waiting.as_deref().map(Line::shortened);
        if refused.iter().any(|refusal| refusal.code.as_str() == refresh::ROLLBACK) {
            report.proof = refresh::proof(self.state);
        }
        report.free_bytes = facts.free_bytes;
        report.need_bytes = facts.need_bytes;
        report.progress = facts.progress.clone().map(|progress| Progress {
            artifact: progress.artifact,
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            attempt: progress.resumed.saturating_add(1),
        });
        let body = serde_json::to_vec(&report).map_err(ReportError::Encode)?;
        let ask = Ask::put("/v1/report", body)
            .with(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        let answer = client.ask(&ask).await.map_err(ReportError::Client)?;
        let told = answer.status().is_success();
        let answer = answer.whole(MAX_ANSWER_BYTES).await.map_err(ReportError::Client)?;
        if told && !refused.is_empty() {
            self.state.remove(REFUSED_FILE).map_err(ReportError::State)?;
        }
        self.heard(counter, &answer)
    }

    /// Stored before it is sent.
    fn next_counter(&self) -> Result<u64, StateError> {
        let last: Counter = match self.state.read_json(REPORT_FILE, "remove it") {
            Ok(last) => last.unwrap_or_default(),
            // The facade answers with the number that it expects.
            Err(error @ StateError::Damaged { .. }) => {
                tracing::error!(
                    error = crate::error_chain(&error),
                    "the report counter is damaged and begins again with 1; the facade may take this device for a copy"
                );
                Counter::default()
            }
            Err(error) => return Err(error),
        };
        let counter = last.counter.saturating_add(1);
        self.state.write_json(REPORT_FILE, &Counter { counter })?;
        Ok(counter)
    }

    fn heard(&self, sent: u64, answer: &[u8]) -> Result<Duration, ReportError> {
        let Ok(answer) = serde_json::from_slice::<ReportAnswer>(answer) else {
            return Ok(DEFAULT_EVERY);
        };
        let ahead = answer.next_counter.saturating_sub(1);
        if ahead > sent && ahead - sent <= MAX_JUMP {
            self.state.write_json(REPORT_FILE, &Counter { counter: ahead }).map_err(ReportError::State)?;
        }
        let every = Duration::from_secs(u64::from(answer.report_every_seconds));
        Ok(every.clamp(SHORTEST_EVERY, LONGEST_EVERY))
    }
}

/// How often a device reports when the facade does not say.
pub const DEFAULT_EVERY: Duration = Duration::from_secs(300);
const SHORTEST_EVERY: Duration = Duration::from_secs(5);
const LONGEST_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A facade cannot burn the counter of a device in one answer.
const MAX_JUMP: u64 = 1 << 32;

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Counter or refusals could not be kept.
    #[error("the report counter cannot be kept")]
    State(#[source] StateError),
    /// It cannot be written down.
    #[error("the report cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// The facade did not take it.
    #[error("the report was not delivered")]
    Client(#[source] ClientError),
}

impl ReportError {
    /// What went wrong on the way to the facade, if it was that.
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Client(error) => Some(error.class()),
            Self::State(_) | Self::Encode(_) => None,
        }
    }
}

/// Which boot of the device this is.
pub(crate) fn boot_id() -> Code {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known: Option<Code> = text.trim().parse().ok();
    known.unwrap_or_else(unknown_boot)
}

#[expect(clippy::expect_used, reason = "a constant that is a code")]
fn unknown_boot() -> Code {
    "unknown".parse().expect("a code")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, StateDir) {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temporary.path().join("state")).unwrap();
        (temporary, state)
    }

    #[test]
    fn no_two_reports_carry_the_same_number() {
        let (_keep, state) = fresh();
        let reporter = Reporter { state: &state };
        assert_eq!(reporter.next_counter().unwrap(), 1);
        assert_eq!(reporter.next_counter().unwrap(), 2);
        let answer = br#"{"next_counter":41,"report_every_seconds":60}"#;
        assert_eq!(reporter.heard(2, answer).unwrap(), Duration::from_secs(60));
        assert_eq!(reporter.next_counter().unwrap(), 41);
        // An older answer that comes late takes nothing back.
        reporter.heard(41, br#"{"next_counter":3,"report_every_seconds":0}"#).unwrap();
        assert_eq!(reporter.next_counter().unwrap(), 42);
    }

    #[test]
    fn a_damaged_counter_begins_again_and_that_is_an_error_in_the_log() {
        let (keep, state) = fresh();
        let reporter = Reporter { state: &state };
        reporter.next_counter().unwrap();
        let log = keep.path().join("log");
        let writer = std::sync::Arc::new(std::fs::File::create(&log).unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(writer).finish();
        let logged = || std::fs::read_to_string(&log).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            assert_eq!(reporter.next_counter().unwrap(), 2);
            assert_eq!(logged(), "");
            std::fs::write(state.path_of(REPORT_FILE), b"junk").unwrap();
            assert_eq!(reporter.next_counter().unwrap(), 1);
        });
        assert!(logged().contains("ERROR") && logged().contains("report counter is damaged"), "{}", logged());
    }

    #[test]
    fn keeps_each_refusal_once_and_not_without_end() {
        let (_keep, state) = fresh();
        let reporter = Reporter { state: &state };
        let refuse = |file: &str| {
            let subject = Subject::Metadata(Line::shortened(file));
            reporter.refuse(subject, "metadata_expired", "old").unwrap();
        };
        refuse("director/timestamp.json");
        refuse("director/timestamp.json");
        assert_eq!(reporter.refused().len(), 1);
        for number in 0..100 {
            refuse(&format!("{number}.json"));
        }
        assert_eq!(reporter.refused().len(), MAX_REFUSALS);
        std::fs::write(state.path_of(REFUSED_FILE), b"junk").unwrap();
        assert!(reporter.refused().is_empty());
    }

    #[test]
    fn the_facade_cannot_silence_a_device_or_burn_its_counter() {
        let (_keep, state) = fresh();
        let reporter = Reporter { state: &state };
        let counter = reporter.next_counter().unwrap();
        let answer = br#"{"next_counter":18446744073709551615,"report_every_seconds":4294967295}"#;
        assert_eq!(reporter.heard(counter, answer).unwrap(), LONGEST_EVERY);
        assert_eq!(reporter.next_counter().unwrap(), 2);
        assert_eq!(reporter.heard(2, b"<html>").unwrap(), DEFAULT_EVERY);
    }
}
