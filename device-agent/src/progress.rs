//! How far a fetch has come, counted where the bytes pass and read by whoever shows it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pki::oci::ArtifactName;
use tokio::time::Instant;

/// Counters of the release that is being fetched.
#[derive(Debug, Default)]
pub struct Progress {
    artifact: Mutex<Option<ArtifactName>>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    resumed: AtomicU32,
    waiting: Mutex<Option<String>>,
    pace: Mutex<Option<Pace>>,
}

/// How many bytes were here when, to tell how fast they come.
#[derive(Clone, Copy, Debug)]
struct Pace {
    at: Instant,
    done_bytes: u64,
    bytes_per_second: u64,
}

/// Over how long a rate is taken.
const PACE: Duration = Duration::from_secs(3);

/// The counters at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is being fetched.
    pub artifact: ArtifactName,
    /// Bytes that are here.
    pub done_bytes: u64,
    /// Bytes in all, as far as known.
    pub total_bytes: u64,
    /// How often the transfer was cut and went on.
    pub resumed: u32,
    /// What it is waiting for.
    pub waiting: Option<String>,
    /// How fast it comes in.
    pub rate_bytes_per_second: u64,
}

impl Snapshot {
    /// Bytes that are still to come.
    pub fn remaining_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.done_bytes)
    }
}

impl Progress {
    /// Starts counting for an artifact.
    pub fn begin(&self, artifact: &ArtifactName) {
        *lock(&self.artifact) = Some(artifact.clone());
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(0, Ordering::Relaxed);
        self.resumed.store(0, Ordering::Relaxed);
        *lock(&self.pace) = None;
        self.moving();
    }

    /// Goes on to another artifact of the same release.
    pub fn at(&self, artifact: &ArtifactName) {
        *lock(&self.artifact) = Some(artifact.clone());
    }

    /// Stops counting.
    pub fn end(&self) {
        *lock(&self.artifact) = None;
        self.moving();
    }

    /// This much more is to be brought in.
    pub fn expect(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// This much more is here.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// This much turned out not to be here after all.
    pub fn take_back(&self, bytes: u64) {
        let _ = self
            .done_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |done| Some(done.saturating_sub(bytes)));
    }

    /// A transfer was cut and waits before it goes on.
    pub fn interrupted(&self, why: String) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
        *lock(&self.waiting) = Some(why);
    }

    /// Bytes are coming again.
    pub fn moving(&self) {
        *lock(&self.waiting) = None;
    }

    /// The counters now; `None` when nothing is being fetched.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let artifact = lock(&self.artifact).clone()?;
        Some(Snapshot {
            artifact,
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            resumed: self.resumed.load(Ordering::Relaxed),
            waiting: lock(&self.waiting).clone(),
            rate_bytes_per_second: self.rate(),
        })
    }
}

impl Progress {
    /// Taken anew every few seconds, by whoever looks.
    fn rate(&self) -> u64 {
        let (now, done_bytes) = (Instant::now(), self.done_bytes.load(Ordering::Relaxed));
        let mut pace = lock(&self.pace);
        let before = *pace.get_or_insert(Pace { at: now, done_bytes, bytes_per_second: 0 });
        let elapsed = now.duration_since(before.at);
        if elapsed < PACE {
            return before.bytes_per_second;
        }
        let came =
            u128::from(done_bytes.saturating_sub(before.done_bytes)) * 1000 / elapsed.as_millis().max(1);
        let bytes_per_second = u64::try_from(came).unwrap_or(u64::MAX);
        *pace = Some(Pace { at: now, done_bytes, bytes_per_second });
        bytes_per_second
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
