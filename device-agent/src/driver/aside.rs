//! What runs beside the effects: reports, the watchdog, and what `status` shows.

use std::time::Duration;

use pki::wire::AgentState;
use sd_notify::NotifyState;
use tokio::time::Instant;

use super::{Agent, AgentError, REPORT_PATIENCE};
use crate::lifecycle::State;
use crate::report::{self, Facts, ReportError};

/// How often what is shown is looked at while something moves.
const BEAT: Duration = Duration::from_secs(2);

impl Agent {
    /// Runs for as long as it is polled: the proof that the loop lives is that the watchdog is fed from it.
    pub(super) async fn beside(&self) -> Result<(), AgentError> {
        let watchdog = watchdog_interval();
        let mut fed = Instant::now();
        let mut next_report = Instant::now() + report::DEFAULT_EVERY.min(FIRST_REPORT);
        let mut reported = None;
        let mut shown = None;
        loop {
            tokio::time::sleep(BEAT.min(watchdog)).await;
            if fed.elapsed() >= watchdog {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                fed = Instant::now();
            }
            let progress = self.progress.snapshot();
            let now = (self.state().name(), progress);
            if shown.as_ref() != Some(&now) {
                self.show();
                shown = Some(now.clone());
            }
            if Instant::now() >= next_report || (reported != Some(now.0) && is_lasting(now.0)) {
                reported = Some(now.0);
                // What goes wrong is logged; the next report says it all again.
                next_report = Instant::now() + self.send_report().await.unwrap_or(REPORT_PATIENCE);
            }
        }
    }

    /// Tells the facade where we stand; returns when it wants to hear it again.
    pub(super) async fn send_report(&self) -> Result<Duration, ReportError> {
        // Without an identity the state directory may be in the hands of `device-agent enroll` just now.
        if matches!(self.state(), State::Unenrolled { .. }) {
            return Ok(REPORT_PATIENCE);
        }
        let Ok(session) = self.session() else {
            return Ok(REPORT_PATIENCE);
        };
        self.refuse_astray();
        let space = self.runtime.space().await.ok();
        let versions = self.shared().versions;
        let facts = Facts {
            device: session.identity.device(),
            platform: &self.platform,
            state: self.reported_state(),
            rolled_back: self.reporter().rolled_back(&self.state()),
            waiting: self.why_not_updating(),
            versions,
            free_bytes: space.and_then(|space| space.content_free_bytes),
            need_bytes: self.shared().need_bytes,
            progress: self.progress.snapshot(),
        };
        let sent = self.reporter().send(&session.client, &facts).await;
        sent.inspect_err(|error| {
            tracing::warn!(error = crate::error_chain(error), "report not delivered");
        })
    }

    fn reported_state(&self) -> AgentState {
        if self.clock.is_behind() {
            return AgentState::WaitingForClock;
        }
        match self.state() {
            State::Unenrolled { .. } | State::Enrolling { .. } => AgentState::NeedsEnrollment,
            State::Idle { standing } if standing.is_astray() => AgentState::RollingBack,
            State::Idle { .. } => AgentState::Idle,
            State::Checking { .. } => AgentState::Checking,
            State::Fetching { .. } => AgentState::Fetching,
            State::Activating { .. } => AgentState::Activating,
            State::Confirming { .. } => AgentState::Confirming,
            State::RollingBack { .. } => AgentState::RollingBack,
        }
    }
}

/// The first report of a daemon comes soon, so that the operator sees the device.
const FIRST_REPORT: Duration = Duration::from_secs(5);

/// States that last long enough to be worth a report of their own.
fn is_lasting(state: &str) -> bool {
    !matches!(state, "checking" | "confirming" | "enrolling")
}

/// Half of what systemd allows, or for ever where it does not watch.
fn watchdog_interval() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |limit| limit / 2)
}

/// Tells systemd that the settings are being read again.
pub fn reloading() {
    let _ = match NotifyState::monotonic_usec_now() {
        Ok(now) => sd_notify::notify(&[NotifyState::Reloading, now]),
        Err(_) => sd_notify::notify(&[NotifyState::Reloading]),
    };
}

/// Tells systemd that the agent works: it has begun, or goes on as before.
pub fn ready() {
    let _ = sd_notify::notify(&[NotifyState::Ready]);
}

/// Tells systemd that the agent comes to its end.
pub fn stopping() {
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}

pub(super) fn status(text: &str) {
    let _ = sd_notify::notify(&[NotifyState::Status(text)]);
}
