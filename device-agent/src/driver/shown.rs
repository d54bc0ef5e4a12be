//! What the running agent lets `device-agent status` see.

use jiff::Timestamp;
use pki::oci::ArtifactName;
use serde::{Deserialize, Serialize};

use super::{Agent, aside};
use crate::lifecycle::State;

/// The file; not durable, because it is only shown.
pub const SHOWN_FILE: &str = "status.json";

/// What is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The state of the life-cycle.
    pub state: String,
    /// When this was written.
    pub at: Timestamp,
    /// When the metadata was last checked.
    pub last_check: Option<Timestamp>,
    /// When the metadata ends being believed.
    pub metadata_expires: Option<Timestamp>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// What is being waited for.
    pub waiting_for: Option<String>,
    /// Why what is assigned is not taken.
    #[serde(default)]
    pub held_back: Option<String>,
    /// When what is coming in is given up.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
    /// How far a fetch has come.
    pub progress: Option<Shipment>,
}

/// How far a fetch has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shipment {
    /// Of which artifact.
    pub artifact: ArtifactName,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// How often it was cut and went on.
    pub resumed: u32,
    /// How fast it comes in, over the last seconds.
    #[serde(default)]
    pub rate_bytes_per_second: u64,
}

impl Agent {
    /// Writes down where we stand. A full disk must not stop the agent, so this may fail.
    pub(super) fn show(&self) {
        let progress = self.progress.snapshot();
        let waiting_for = self.waiting_for();
        let coming_in = matches!(self.state(), State::Fetching { .. });
        let deadline = self.deadline_at().filter(|_| coming_in);
        let (last_error, held_back) = (self.last_error(), self.held_back_by());
        let shared = self.shared();
        let shown = Shown {
            state: shared.state.name().to_owned(),
            at: self.clock.now(),
            last_check: shared.last_check,
            metadata_expires: shared.expires,
            last_error,
            waiting_for,
            held_back,
            deadline,
            progress: progress.map(|progress| Shipment {
                artifact: progress.artifact,
                done_bytes: progress.done_bytes,
                total_bytes: progress.total_bytes,
                resumed: progress.resumed,
                rate_bytes_per_second: progress.rate_bytes_per_second,
            }),
        };
        drop(shared);
        aside::status(&shown.line());
        if let Err(error) = self.dir.write_json_volatile(SHOWN_FILE, &shown) {
            tracing::debug!(error = crate::error_chain(&error), "status not written");
        }
    }
}

impl Agent {
    /// What keeps the agent from going on just now.
    pub(super) fn waiting_for(&self) -> Option<String> {
        let transfer = self.progress.snapshot().and_then(|progress| progress.waiting);
        let waiting = self.shared().waiting.clone();
        transfer.or(waiting).or_else(|| self.clock_trouble())
    }

    /// Why the device does not have what it should, for whoever asks from afar.
    pub(super) fn why_not_updating(&self) -> Option<String> {
        let waiting = || self.waiting_for().or_else(|| self.held_back_by());
        self.astray().or_else(waiting).or_else(|| self.last_error())
    }

    /// What went wrong last; before that, what is wrong for as long as it is not mended.
    fn last_error(&self) -> Option<String> {
        let last = self.shared().last_error.clone();
        self.astray().or(last).or_else(|| self.obstacle())
    }

    /// Why what is assigned is not taken.
    fn held_back_by(&self) -> Option<String> {
        let told = self.shared().held_back.clone();
        self.astray().or(told).or_else(|| self.obstacle())
    }

    /// What keeps what is assigned from being applied.
    fn obstacle(&self) -> Option<String> {
        let shared = self.shared();
        let to_come = shared.state.standing().deployment.as_ref()?;
        let (release, reason) = shared.obstacle.as_ref()?;
        (*release == to_come.release).then(|| format!("it cannot be applied: {reason}"))
    }

    /// What is wrong with the clock, where that is known.
    fn clock_trouble(&self) -> Option<String> {
        if !self.clock.is_behind() {
            return None;
        }
        let (shown, floor) = (self.clock.unchecked(), self.clock.floor());
        Some(format!("a sane clock: it shows {shown}, but it is at least {floor}"))
    }
}

impl Shown {
    /// The state in one line.
    pub fn line(&self) -> String {
        let mut line = self.state.replace('_', " ");
        if let Some(progress) = &self.progress {
            let percent = (progress.done_bytes.saturating_mul(100))
                .checked_div(progress.total_bytes)
                .unwrap_or_default();
            let (done, total) = (mebibytes(progress.done_bytes), mebibytes(progress.total_bytes));
            let rate = rate(progress.rate_bytes_per_second);
            line = format!("{line} {}: {done} of {total} MiB ({percent} %, {rate})", progress.artifact);
            if progress.resumed > 0 {
                line = format!("{line}, resumed {} times", progress.resumed);
            }
        }
        if let Some(deadline) = &self.deadline {
            line = format!("{line}, until {deadline:.0}");
        }
        if let Some(waiting) = &self.waiting_for {
            line = format!("{line}; waiting: {waiting}");
        } else if let Some(reason) = &self.held_back {
            line = format!("{line}; not updating: {reason}");
        } else if let Some(error) = &self.last_error {
            line = format!("{line}; last error: {error}");
        }
        line
    }
}

fn rate(bytes_per_second: u64) -> String {
    match bytes_per_second {
        ..10_240 => format!("{bytes_per_second} B/s"),
        10_240..10_485_760 => format!("{} KiB/s", bytes_per_second >> 10),
        _ => format!("{} MiB/s", bytes_per_second >> 20),
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes >> 20
}
