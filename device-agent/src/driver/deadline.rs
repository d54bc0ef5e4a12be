//! How long what is assigned may take to come in, and what is said when it did not.
//!
//! Inside the deadline nothing makes the agent give up. It counts from when the deployment was heard of, by the clock on
//! the wall; where that clock is set, the beginning moves with it, so that a board which wakes up in last month does not
//! lose its time when it learns the date.

use jiff::{SignedDuration, Timestamp};
use pki::wire::Deadline;
use thiserror::Error;
use tokio::time::Instant;

use super::{Agent, Outcome};
use crate::fetch::Fetcher;
use crate::lifecycle::{Deployment, Event, Offer, Release};
use crate::policy::Rules;
use crate::progress::Snapshot;

/// How often it is looked whether the deadline has passed: policies and clocks change meanwhile.
const LOOK: SignedDuration = SignedDuration::from_secs(15);
/// A clock that gained or lost more than this against the time that passed was set.
const SET: SignedDuration = SignedDuration::from_mins(1);

/// A deployment did not come in within its deadline.
#[derive(Debug, Error)]
#[error("given up: not downloaded within its deadline of {within}{}{}{}", began(*.since), came(.progress.as_ref()), waited(.obstacle.as_deref()))]
pub struct Overdue {
    within: Deadline,
    since: Option<Timestamp>,
    progress: Option<Snapshot>,
    obstacle: Option<String>,
}

fn began(since: Option<Timestamp>) -> String {
    since.map_or_else(String::new, |since| format!(" (since {since:.0})"))
}

fn came(progress: Option<&Snapshot>) -> String {
    progress.map_or_else(String::new, |progress| {
        format!("; {} of {} bytes came in", progress.done_bytes, progress.total_bytes)
    })
}

fn waited(obstacle: Option<&str>) -> String {
    obstacle.map_or_else(String::new, |obstacle| format!("; it was waiting for: {obstacle}"))
}

impl Agent {
    /// What both repositories agree on, as the life-cycle wants to hear it.
    pub(super) async fn offer(&self, release: Release, fetcher: &Fetcher<'_>) -> Offer {
        self.look_at_clock();
        let at = (!self.clock.is_behind()).then(|| self.clock.now());
        let within = self.deadline().map(Deadline::span);
        let offer = Offer { release, at, within };
        let late = self.state().standing().clone().hear(&offer).is_overdue();
        // What is here came in time, whatever it still waits for.
        if late && fetcher.is_complete(&offer.release).await {
            return Offer { within: None, ..offer };
        }
        offer
    }

    /// Tells, once, that an offer is not taken up any more because its time is over.
    pub(super) fn note_offer(&self, offer: &Offer) -> Option<Overdue> {
        let standing = self.state().standing().clone();
        let before = standing.deployment.as_ref().filter(|deployment| deployment.release == offer.release);
        let told = before.is_some_and(|deployment| deployment.overdue);
        let after = standing.clone().hear(offer).deployment.filter(|deployment| deployment.overdue)?;
        if told || standing.objection(&offer.release).is_some() {
            return None;
        }
        self.overdue(&after)
    }

    /// Returns when the deadline of what is coming in has passed.
    pub(super) async fn until_overdue(&self) {
        loop {
            self.look_at_clock();
            let left = self.time_left();
            if left.is_some_and(|left| !left.is_positive()) {
                return;
            }
            let pause = left.map_or(LOOK, |left| left.min(LOOK));
            tokio::time::sleep(pause.unsigned_abs()).await;
        }
    }

    /// The download ends here; what came in stays until its room is needed, for an operator who allows more time.
    pub(super) fn give_up(&self) -> Outcome {
        let overdue = self.state().standing().deployment.as_ref().and_then(|late| self.overdue(late));
        self.progress.end();
        Outcome { event: Some(Event::Overdue), error: overdue.map(Into::into), waits: false }
    }

    fn overdue(&self, late: &Deployment) -> Option<Overdue> {
        let overdue = Overdue {
            within: self.deadline()?,
            since: late.since,
            progress: self.progress.snapshot(),
            obstacle: self.waiting_for().or_else(|| self.shared().last_error.clone()),
        };
        self.refuse(&late.release, None, "deadline_passed", &overdue);
        Some(overdue)
    }

    /// Why what is assigned is not taken, where its time is over.
    pub(super) fn given_up(&self, offer: &Offer) -> Option<String> {
        let late = self.state().standing().clone().hear(offer).deployment.filter(|late| late.overdue)?;
        let within = self.deadline()?;
        let remedy = if self.config.policy.deadline == Some(within) {
            "raise deadline in [download] of agent.toml"
        } else {
            "allow more time (facade device policy --deadline)"
        };
        let since = began(late.since);
        Some(format!(
            "what is assigned was not downloaded within its deadline of {within}{since}; {remedy} or assign another version"
        ))
    }

    /// When what is coming in is given up.
    pub(super) fn deadline_at(&self) -> Option<Timestamp> {
        let since = self.state().standing().deployment.as_ref()?.since?;
        since.checked_add(self.deadline()?.span()).ok()
    }

    fn time_left(&self) -> Option<SignedDuration> {
        if self.clock.is_behind() {
            return None;
        }
        Some(self.deadline_at()?.duration_since(self.clock.now()))
    }

    fn deadline(&self) -> Option<Deadline> {
        let signed = self.shared().policy.clone();
        Rules { local: &self.config.policy, signed: &signed, metered_by: None }.deadline()
    }

    /// Sees whether the clock was set since the last look, and lets the deployment begin accordingly.
    fn look_at_clock(&self) {
        let (now, instant) = (self.clock.now(), Instant::now());
        let Some((before, then)) = self.shared().clock_seen.replace((now, instant)) else { return };
        let passed = SignedDuration::try_from(instant.duration_since(then)).unwrap_or_default();
        let by = now.duration_since(before) - passed;
        if by.abs() < SET {
            return;
        }
        tracing::info!(by_seconds = by.as_secs(), "the clock was set");
        // What cannot be stored now is seen again as a deployment that is older or younger than it is.
        if let Err(error) = self.feed(Event::ClockSet { by }) {
            tracing::warn!(error = crate::error_chain(&error), "when the deployment began cannot be kept");
        }
    }
}
