//! One line per pull for an auditor: who had what, from where, how much, how long, how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pki::digest::Digest;
use pki::oci::Repository;

use super::connection::Connection;
use super::tls::Device;
use crate::catalog::pulls::{Outcome, Pull};
use crate::metrics::Metrics;
use crate::pull::{Origin, PullError};

/// What a connection does, for whoever decides that it does nothing any more.
#[derive(Default)]
pub(super) struct Activity {
    /// Rises with every request and every chunk.
    pub(super) progress: AtomicU64,
    /// Requests that have not been answered in full.
    pub(super) open: AtomicU64,
}

impl Activity {
    pub(super) fn note(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request under way on a connection.
pub(super) struct Open(Arc<Activity>);

impl Open {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        activity.note();
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A pull that is being answered; writes its line when it is dropped.
pub(super) struct Serving {
    connection: Arc<Connection>,
    device: Device,
    repository: Repository,
    digest: Digest,
    origin: Origin,
    request_id: Box<str>,
    expected_bytes: u64,
    sent_bytes: u64,
    started: Instant,
    failed: bool,
    open: Open,
    /// For traces: the request, which is over when its last byte is sent.
    span: tracing::Span,
}

impl Serving {
    pub(super) fn begin(
        connection: &Arc<Connection>,
        device: Device,
        (repository, digest): (Repository, Digest),
        origin: Origin,
        request_id: &str,
        expected_bytes: u64,
        span: &tracing::Span,
    ) -> Self {
        connection.shared.door.metrics.streams.inc();
        Self {
            connection: Arc::clone(connection),
            device,
            repository,
            digest,
            origin,
            request_id: request_id.into(),
            expected_bytes,
            sent_bytes: 0,
            started: Instant::now(),
            failed: false,
            open: Open::begin(&connection.activity),
            span: span.clone(),
        }
    }

    fn metrics(&self) -> &Metrics {
        &self.connection.shared.door.metrics
    }

    pub(super) fn sent(&mut self, count: u64) {
        self.sent_bytes += count;
        self.open.0.note();
    }

    pub(super) fn failed(&mut self, error: &PullError) {
        self.failed = true;
        tracing::warn!(device.id = %self.device.id(), blob.digest = %self.digest, %error, "stream cut");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.metrics().streams.dec();
        self.metrics().served_bytes.inc_by(self.sent_bytes);
        let outcome = match self.sent_bytes == self.expected_bytes {
            _ if self.failed => Outcome::Cut,
            true => Outcome::Served,
            // containerd drops its parallel open-ended ranges half-way: this is no failure.
            false => Outcome::Left,
        };
        let duration = self.started.elapsed();
        let door = &self.connection.shared.door;
        door.pulls.note(Pull {
            at: door.clock.now(),
            device: self.device.id().clone(),
            repository: self.repository.clone(),
            digest: self.digest,
            source: Some(self.origin.as_str()),
            size_bytes: self.sent_bytes,
            duration,
            outcome,
            request_id: self.request_id.clone(),
        });
        self.span.record("blob.source", self.origin.as_str()).record("size_bytes", self.sent_bytes);
        self.span.record("outcome", outcome.as_str());
        tracing::info!(
            target: crate::log::ACCESS,
            {
                device.id = %self.device.id(),
                blob.digest = %self.digest,
                source = self.origin.as_str(),
                size_bytes = self.sent_bytes,
                duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
                outcome = outcome.as_str(),
                request_id = %self.request_id,
            },
            "pull"
        );
    }
}
