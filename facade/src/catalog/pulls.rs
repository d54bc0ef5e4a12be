//! The access log that operators look into: which device had what, from where, how much, and how it ended.
//!
//! [`Pulls::note`] is called for every pull and does next to nothing; a task writes what was noted, many lines at a time,
//! into files that take turns (`pulls/files.rs`), so the log has a size and not an age. It is read from its end, a bounded part
//! for each answer. One device that pulls without end is written down so often a minute and no more: it must not push out
//! what others did. The lines on standard error have no such limits; they are for whoever keeps logs for good.

mod files;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use pki::digest::Digest;
use pki::oci::Repository;
use pki::x509::DeviceId;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::allowance::{Allowances, Verdict};
use files::Files;
pub use files::Place;

/// Pulls that wait to be written; more come only while the disk is stuck.
const MAX_WAITING: usize = 8192;
/// How long pulls gather before they are written.
const GATHERING: Duration = Duration::from_millis(100);
/// Pulls of one device that are kept in a minute: an image of 127 layers, in ranges, and then some.
const PER_DEVICE: u32 = 1000;
const PER_DEVICE_IN: SignedDuration = SignedDuration::from_mins(1);

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All that was asked for was sent.
    Served,
    /// The device went away before it had all: containerd does that with parallel ranges.
    Left,
    /// It broke off in the middle.
    Cut,
    /// There was nothing to send: no registry had it, or none could be asked.
    Failed,
    /// The device may not have it.
    Refused,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Served, Self::Left, Self::Cut, Self::Failed, Self::Refused];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Left => "left",
            Self::Cut => "cut",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

impl std::str::FromStr for Outcome {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|outcome| outcome.as_str() == text);
        found.ok_or("must be served, left, cut, failed or refused")
    }
}

/// One pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    /// When it ended.
    pub at: Timestamp,
    /// Who pulled.
    pub device: DeviceId,
    /// Under which repository it was asked for.
    pub repository: Repository,
    /// What was asked for.
    pub digest: Digest,
    /// Where the bytes came from: `cache`, `flight` or `upstream`; nothing where none came.
    pub source: Option<&'static str>,
    /// Bytes that were sent.
    pub size_bytes: u64,
    /// How long it took.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// The request's name, for its line in the log.
    pub request_id: Box<str>,
}

/// A pull as it is written, and read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it ended.
    pub at: Timestamp,
    /// The device.
    pub device: String,
    /// The repository.
    pub repository: String,
    /// The digest.
    pub digest: String,
    /// Where the bytes came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Bytes that were sent.
    pub size_bytes: u64,
    /// How long it took in milliseconds.
    pub duration_ms: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The request's name.
    pub request_id: String,
    /// How many pulls of this device were not kept in the minute before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_kept: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands fields over by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Line {
    fn of(pull: Pull, not_kept: u64) -> Self {
        Self {
            at: pull.at,
            device: pull.device.to_string(),
            repository: pull.repository.to_string(),
            digest: pull.digest.to_string(),
            source: pull.source.map(str::to_owned),
            size_bytes: pull.size_bytes,
            duration_ms: u64::try_from(pull.duration.as_millis()).unwrap_or(u64::MAX),
            outcome: pull.outcome,
            request_id: pull.request_id.into(),
            not_kept,
        }
    }
}

/// Which pulls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this device's.
    pub device: Option<DeviceId>,
    /// Only those of a repository that has this text in its name.
    pub repository: Option<String>,
    /// Only those of a digest that begins like this.
    pub digest: Option<String>,
    /// Only those that ended like this.
    pub outcome: Option<Outcome>,
    /// Only those then or later.
    pub since: Option<Timestamp>,
    /// Only those before then.
    pub until: Option<Timestamp>,
}

impl Filter {
    fn takes(&self, line: &Line) -> bool {
        self.device.as_ref().is_none_or(|device| line.device == device.as_str())
            && self.repository.as_ref().is_none_or(|text| line.repository.contains(text))
            && self.digest.as_ref().is_none_or(|digest| line.digest.starts_with(digest))
            && self.outcome.is_none_or(|outcome| line.outcome == outcome)
            && self.since.is_none_or(|since| line.at >= since)
            && self.until.is_none_or(|until| line.at < until)
    }

    /// Whether nothing that was written before this line can be meant.
    fn ends_at(&self, line: &Line) -> bool {
        // Lines are written a moment after their time, and not quite in its order.
        let late = |since: Timestamp| since.duration_since(line.at) > SignedDuration::from_mins(1);
        self.since.is_some_and(late)
    }
}

/// What a search found.
#[derive(Debug, Default)]
pub struct Found {
    /// The pulls, the newest first.
    pub lines: Vec<Line>,
    /// Where the search goes on; nothing where there is no more. A page may be short, or empty, and yet have one.
    pub next: Option<Place>,
}

/// Why the access log cannot be used.
#[derive(Debug, Error)]
#[error("cannot use the access log in {path}")]
pub struct PullsError {
    path: std::path::PathBuf,
    #[source]
    source: std::io::Error,
}

/// The access log. A clone is another handle on the same one.
#[derive(Clone)]
pub struct Pulls(Arc<Shared>);

struct Shared {
    waiting: Mutex<VecDeque<Pull>>,
    noted: Notify,
    /// Pulls that are not in the log.
    dropped: Counter,
    allowances: Allowances<DeviceId>,
    files: Files,
}

impl Pulls {
    /// Opens the log in a directory, which is made where it is not there. What does not get into it is counted.
    pub fn open(directory: &Path, max_bytes: u64, dropped: Counter) -> Result<Self, PullsError> {
        Ok(Self(Arc::new(Shared {
            waiting: Mutex::default(),
            noted: Notify::new(),
            dropped,
            allowances: Allowances::new(PER_DEVICE, PER_DEVICE_IN),
            files: Files::open(directory, max_bytes)?,
        })))
    }

    /// Notes a pull; it is in the log a moment later.
    pub fn note(&self, pull: Pull) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_WAITING {
            self.0.dropped.inc();
            return;
        }
        waiting.push_back(pull);
        if waiting.len() == 1 {
            drop(waiting);
            self.0.noted.notify_one();
        }
    }

    /// Writes what is noted, until `stopping`. Call [`Pulls::flush`] once more when nothing is noted any more.
    pub async fn keep(self, stopping: CancellationToken) {
        loop {
            tokio::select! {
                () = self.0.noted.notified() => {}
                () = stopping.cancelled() => return,
            }
            tokio::time::sleep(GATHERING).await;
            self.flush().await;
        }
    }

    /// Writes what was noted until now.
    pub async fn flush(&self) {
        let shared = Arc::clone(&self.0);
        // Files block.
        let written = tokio::task::spawn_blocking(move || shared.write()).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = %error, cause = %error.source, "access log not written");
            }
            Err(error) => tracing::error!(%error, "access log not written"),
        }
    }

    /// A page of the pulls that a filter takes, the newest first, from a place on.
    pub async fn search(
        &self,
        filter: Filter,
        from: Option<Place>,
        limit: usize,
    ) -> Result<Found, PullsError> {
        self.flush().await;
        let shared = Arc::clone(&self.0);
        let searched = tokio::task::spawn_blocking(move || shared.files.search(&filter, from, limit)).await;
        searched.unwrap_or_else(|error| {
            Err(PullsError {
                path: self.0.files.directory().to_owned(),
                source: std::io::Error::other(error),
            })
        })
    }
}

impl Shared {
    fn write(&self) -> Result<(), PullsError> {
        let pulls = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let mut text = Vec::new();
        for pull in pulls {
            let not_kept = match self.allowances.take(pull.device.clone(), pull.at) {
                Verdict::Kept { dropped } => dropped,
                Verdict::Last => 0,
                Verdict::Dropped => {
                    self.dropped.inc();
                    continue;
                }
            };
            // Texts and numbers can always be written.
            if serde_json::to_writer(&mut text, &Line::of(pull, not_kept)).is_ok() {
                text.push(b'\n');
            }
        }
        if text.is_empty() { Ok(()) } else { self.files.append(&text) }
    }
}

#[cfg(test)]
mod tests;
