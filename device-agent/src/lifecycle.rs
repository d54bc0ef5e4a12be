//! The life of the agent as a pure state machine.
//!
//! A [`State`] *is* where the device stands; it is stored before its one [`Effect`] runs, so that after a crash at any
//! point [`State::resume`] names what to do again. Effects may therefore run twice. [`Standing`] travels through every
//! state: what was confirmed, and what failed and is not tried again, even across a re-enrollment. `explore` walks every
//! (state, event, crash).

use std::collections::{BTreeSet, VecDeque};

use jiff::{SignedDuration, Timestamp};
use pki::oci::{ArtifactName, Descriptor, MediaType};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod explore;

/// One artifact of a release, as both repositories signed it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assigned {
    /// Its name; also says which digest.
    pub artifact: ArtifactName,
    /// What its manifest or index is.
    pub media_type: MediaType,
    /// The length of its manifest or index.
    pub size_bytes: u64,
}

impl Assigned {
    /// The descriptor of the manifest or index.
    pub fn root(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: self.artifact.digest(),
            size: self.size_bytes,
            platform: None,
            urls: Vec::new(),
            annotations: std::collections::BTreeMap::new(),
            artifact_type: None,
        }
    }
}

/// What the director assigns at one time: it is taken, and rolled back, as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Release(BTreeSet<Assigned>);

impl Release {
    /// The release of these artifacts.
    pub fn new(assigned: impl IntoIterator<Item = Assigned>) -> Self {
        Self(assigned.into_iter().collect())
    }

    /// Its artifacts that another release does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).cloned().collect())
    }

    /// Its artifacts and those of another release.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).cloned().collect())
    }

    /// Its artifacts.
    pub fn assigned(&self) -> impl Iterator<Item = &Assigned> {
        self.0.iter()
    }

    /// Whether nothing is assigned.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an artifact is part of it.
    pub fn has(&self, artifact: &ArtifactName) -> bool {
        self.0.iter().any(|assigned| assigned.artifact == *artifact)
    }
}

/// What was confirmed and what failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What is handed over and was confirmed.
    pub current: Release,
    /// What was confirmed before it; kept, so that an operator can go back without the network.
    pub previous: Release,
    /// Releases that failed here, oldest first; not tried again.
    pub rejected: VecDeque<Release>,
    /// Releases that were left and may run all the same, oldest first: whoever runs the images did not go back.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub lingering: VecDeque<Release>,
    /// What is to be confirmed next, through every try and restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<Deployment>,
}

/// A release that was offered, and for how long it has been on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The release.
    pub release: Release,
    /// When it was first heard of; not known while the clock could not be believed.
    pub since: Option<Timestamp>,
    /// Whether it was given up because it did not come in within its deadline.
    pub overdue: bool,
}

/// What both repositories say that this device should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The release.
    pub release: Release,
    /// When this was said; nothing where the clock cannot be believed.
    pub at: Option<Timestamp>,
    /// How long it may take to come in; nothing where that does not matter, or where it is here.
    pub within: Option<SignedDuration>,
}

/// Most rejected releases that are remembered; a device does not fill its disk with an operator's failures.
const MAX_REJECTED: usize = 32;

/// Most releases that linger and are kept for it: of several that were told one after another the last ones may run.
const MAX_LINGERING: usize = 4;

/// How often handing over and confirming one release may be cut short before it is called bad.
const MAX_INTERRUPTIONS: u32 = 4;

impl Standing {
    fn forget(&mut self, lost: &[ArtifactName]) {
        self.forget_previous(lost);
        self.current.0.retain(|assigned| !lost.contains(&assigned.artifact));
    }

    fn forget_previous(&mut self, gone: &[ArtifactName]) {
        self.previous.0.retain(|assigned| !gone.contains(&assigned.artifact));
    }

    /// Notes what is offered. Another release begins its own time; the same one goes on with what is left of its time.
    #[must_use]
    pub fn hear(mut self, offer: &Offer) -> Self {
        let before = self.deployment.take();
        if offer.release == self.current || self.objection(&offer.release).is_some() {
            return self;
        }
        let before = before.filter(|deployment| deployment.release == offer.release);
        let since = before.and_then(|deployment| deployment.since);
        // A clock that was put back has not seen that moment yet: the deployment cannot be older than now.
        let since = since.map_or(offer.at, |since| Some(offer.at.map_or(since, |now| since.min(now))));
        let end = since.zip(offer.within).and_then(|(since, within)| since.checked_add(within).ok());
        let overdue = end.zip(offer.at).is_some_and(|(end, now)| end <= now);
        self.deployment = Some(Deployment { release: offer.release.clone(), since, overdue });
        self
    }

    /// Whether what is to come next was given up.
    pub fn is_overdue(&self) -> bool {
        self.deployment.as_ref().is_some_and(|deployment| deployment.overdue)
    }

    /// Whether something else than what was confirmed may run.
    pub fn is_astray(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// What may run now: one of these, or a mix of them.
    pub fn may_run(&self) -> impl Iterator<Item = &Release> {
        std::iter::once(&self.current).chain(&self.lingering)
    }

    /// Whether an artifact belongs to a release that lingers.
    pub fn lingers(&self, artifact: &ArtifactName) -> bool {
        self.lingering.iter().any(|release| release.has(artifact))
    }

    fn linger(mut self, release: Release) -> Self {
        self.lingering.retain(|lingering| *lingering != release);
        self.lingering.push_back(release);
        while self.lingering.len() > MAX_LINGERING {
            self.lingering.pop_front();
        }
        self
    }

    /// What was confirmed runs again.
    fn settle(mut self) -> Self {
        self.lingering.clear();
        self
    }

    fn confirm(mut self, release: Release) -> Self {
        self.deployment = None;
        self.lingering.clear();
        if release != self.current {
            self.previous = std::mem::replace(&mut self.current, release);
        }
        self
    }

    /// What began before the clock was set began as long ago as before.
    fn set_clock(&mut self, by: SignedDuration) {
        if let Some(since) = self.deployment.as_mut().and_then(|deployment| deployment.since.as_mut()) {
            *since = since.saturating_add(by).unwrap_or(*since);
        }
    }

    fn give_up(mut self) -> Self {
        if let Some(deployment) = &mut self.deployment {
            deployment.overdue = true;
        }
        self
    }

    fn reject(mut self, release: Release) -> Self {
        self.deployment = None;
        if !self.rejected.contains(&release) {
            self.rejected.push_back(release);
        }
        while self.rejected.len() > MAX_REJECTED {
            self.rejected.pop_front();
        }
        self
    }

    /// The rejected release that speaks against what is offered: the same one, or one whose every change is in it again.
    pub fn objection(&self, offered: &Release) -> Option<&Release> {
        self.rejected.iter().find(|rejected| {
            let changed = rejected.without(&self.current);
            *rejected == offered || (!changed.is_empty() && changed.0.is_subset(&offered.0))
        })
    }

    fn wants(&self, offered: &Release) -> bool {
        self.deployment.as_ref().is_some_and(|to_come| to_come.release == *offered && !to_come.overdue)
    }
}

/// Where the device stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Without an identity the facade knows.
    Unenrolled {
        /// What was confirmed and what failed.
        standing: Standing,
    },
    /// Getting an identity.
    Enrolling {
        /// What was confirmed and what failed.
        standing: Standing,
    },
    /// Waiting for something new.
    Idle {
        /// What was confirmed and what failed.
        standing: Standing,
    },
    /// Refreshing the signed metadata.
    Checking {
        /// What was confirmed and what failed.
        standing: Standing,
    },
    /// Bringing in what is missing of a release.
    Fetching {
        /// What was confirmed and what failed.
        standing: Standing,
        /// The release.
        next: Release,
    },
    /// Handing a release over, and telling whoever runs it.
    Activating {
        /// What was confirmed and what failed.
        standing: Standing,
        /// The release.
        next: Release,
        /// How often this was cut short by a crash or a power cut.
        #[serde(default)]
        interruptions: u32,
    },
    /// Watching whether a release works.
    Confirming {
        /// What was confirmed and what failed.
        standing: Standing,
        /// The release.
        next: Release,
        /// When it must have shown that it works.
        deadline: Timestamp,
        /// How often this was cut short by a crash or a power cut.
        #[serde(default)]
        interruptions: u32,
    },
    /// Going back to what was confirmed.
    RollingBack {
        /// What was confirmed and what failed.
        standing: Standing,
        /// The release that is being left.
        next: Release,
        /// Why.
        fault: Fault,
        /// Whether anybody was told to run the release.
        #[serde(default = "yes")]
        told: bool,
    },
}

/// What an older state file does not say is assumed: better to tell again than to leave a bad release running.
fn yes() -> bool {
    true
}

/// What a failure says about the release it happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The release is bad: it is not tried again.
    Release,
    /// Something else was in the way (a full disk, a runtime that is gone): it may work later.
    Circumstance,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is time: to enroll, to check, or to check again because the assignment changed.
    Due,
    /// The device has an identity.
    Enrolled,
    /// Both repositories agree that this device should have this release.
    Offered(Offer),
    /// The facade does not know this identity any more.
    Disowned,
    /// Every content of the release is in the store.
    Fetched,
    /// The deadline passed before that.
    Overdue,
    /// The release is handed over; it must show by then that it works.
    Activated {
        /// By when.
        deadline: Timestamp,
    },
    /// The release works.
    Healthy,
    /// The confirmed release is back.
    RolledBack,
    /// Whoever was told to go back did not: what was left may still run.
    NotTakenBack,
    /// The effect failed, before anybody was told to run the release.
    Failed(Fault),
    /// Whoever was told to run the release says that it does not work.
    Unfit,
    /// These are not here any more, or not whole.
    Lost(Vec<ArtifactName>),
    /// These are not needed any more and go.
    TakenBack(Vec<ArtifactName>),
    /// The clock was set, forwards or backwards.
    ClockSet {
        /// By how much.
        by: SignedDuration,
    },
    /// The agent starts again after it was killed, or after the power was cut.
    Interrupted,
}

/// The one thing to do in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// Wait until something is due.
    Sleep,
    /// Get an identity.
    Enroll,
    /// Refresh the metadata.
    Check,
    /// Bring in what is missing.
    Fetch(&'a Release),
    /// Hand over.
    Activate(&'a Release),
    /// See whether it works, until the deadline.
    Probe(&'a Release, Timestamp),
    /// Make this the release again.
    RollBack(&'a Release),
}

impl Default for State {
    fn default() -> Self {
        Self::Unenrolled { standing: Standing::default() }
    }
}

impl State {
    /// The state after an event. An event that a state does not expect leaves it as it is.
    #[must_use]
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest of the events is what a state does not expect"
    )]
    pub fn on(mut self, event: Event) -> Self {
        // Whatever is going on: what is not here cannot be gone back to, and what was current comes in anew.
        if let Event::Lost(lost) = &event {
            self.standing_mut().forget(lost);
            return self;
        }
        if let Event::TakenBack(gone) = &event {
            self.standing_mut().forget_previous(gone);
            return self;
        }
        if let Event::ClockSet { by } = event {
            self.standing_mut().set_clock(by);
            return self;
        }
        match self {
            Self::Unenrolled { standing } => match event {
                Event::Due => Self::Enrolling { standing },
                _ => Self::Unenrolled { standing },
            },
            Self::Enrolling { standing } => match event {
                Event::Enrolled => Self::Idle { standing },
                Event::Failed(_) => Self::Unenrolled { standing },
                _ => Self::Enrolling { standing },
            },
            Self::Idle { standing } => match event {
                Event::Due => Self::due(standing),
                _ => Self::Idle { standing },
            },
            Self::Checking { standing } => Self::checked(standing, event),
            Self::Fetching { standing, next } => match event {
                Event::Fetched => Self::Activating { standing, next, interruptions: 0 },
                Event::Due => Self::due(standing),
                Event::Disowned => Self::Unenrolled { standing },
                Event::Failed(_) => Self::Idle { standing },
                Event::Overdue => Self::Idle { standing: standing.give_up() },
                _ => Self::Fetching { standing, next },
            },
            Self::Activating { standing, next, interruptions } => {
                Self::activated(standing, next, interruptions, &event)
            }
            Self::Confirming { standing, next, deadline, interruptions } => match event {
                Event::Healthy => Self::Idle { standing: standing.confirm(next) },
                Event::Unfit => Self::RollingBack { standing, next, fault: Fault::Release, told: true },
                Event::Failed(fault) => Self::RollingBack { standing, next, fault, told: true },
                // What ran may have gone with the crash: it is told, and watched, again.
                Event::Interrupted => Self::interrupted(standing, next, interruptions),
                _ => Self::Confirming { standing, next, deadline, interruptions },
            },
            Self::RollingBack { standing, next, fault, told } => match (event, fault) {
                (Event::RolledBack, Fault::Release) => {
                    Self::Idle { standing: standing.settle().reject(next) }
                }
                (Event::RolledBack, Fault::Circumstance) => Self::Idle { standing: standing.settle() },
                (Event::NotTakenBack, fault) => Self::not_taken_back(standing, next, fault),
                _ => Self::RollingBack { standing, next, fault, told },
            },
        }
    }

    /// Going back comes before anything new, once a round for as long as it takes.
    fn due(standing: Standing) -> Self {
        match standing.lingering.back().cloned() {
            Some(next) => Self::RollingBack { standing, next, fault: Fault::Circumstance, told: true },
            None => Self::Checking { standing },
        }
    }

    /// Nothing is claimed: what was left is kept. A try that was made again does not keep the round, and with it a later
    /// release, away.
    fn not_taken_back(standing: Standing, next: Release, fault: Fault) -> Self {
        let again = standing.lingering.contains(&next);
        let standing = standing.linger(next.clone());
        match fault {
            Fault::Release => Self::Idle { standing: standing.reject(next) },
            Fault::Circumstance if again => Self::Checking { standing },
            Fault::Circumstance => Self::Idle { standing },
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest of the events is what the state does not expect"
    )]
    fn activated(standing: Standing, next: Release, interruptions: u32, event: &Event) -> Self {
        match event {
            Event::Activated { deadline } => {
                Self::Confirming { standing, next, deadline: *deadline, interruptions }
            }
            Event::Unfit => Self::RollingBack { standing, next, fault: Fault::Release, told: true },
            // Whether an attempt that was cut short had told anybody is not known; what lingers was told of.
            Event::Failed(fault) => {
                let told = interruptions > 0 || standing.is_astray();
                Self::RollingBack { standing, next, fault: *fault, told }
            }
            Event::Interrupted => Self::interrupted(standing, next, interruptions),
            _ => Self::Activating { standing, next, interruptions },
        }
    }

    /// A release that takes the device down with it must not do so for ever: each crash counts as a try.
    fn interrupted(standing: Standing, next: Release, interruptions: u32) -> Self {
        if interruptions < MAX_INTERRUPTIONS {
            return Self::Activating { standing, next, interruptions: interruptions + 1 };
        }
        Self::RollingBack { standing, next, fault: Fault::Release, told: true }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the rest of the events is what the state does not expect"
    )]
    fn checked(standing: Standing, event: Event) -> Self {
        match event {
            Event::Offered(offer) => {
                let standing = standing.hear(&offer);
                let next = offer.release;
                if standing.wants(&next) {
                    return Self::Fetching { standing, next };
                }
                Self::Idle { standing }
            }
            Event::Failed(_) => Self::Idle { standing },
            Event::Disowned => Self::Unenrolled { standing },
            _ => Self::Checking { standing },
        }
    }

    /// What to do in this state; also after a crash.
    pub fn resume(&self) -> Effect<'_> {
        match self {
            Self::Unenrolled { .. } | Self::Idle { .. } => Effect::Sleep,
            Self::Enrolling { .. } => Effect::Enroll,
            Self::Checking { .. } => Effect::Check,
            Self::Fetching { next, .. } => Effect::Fetch(next),
            Self::Activating { next, .. } => Effect::Activate(next),
            Self::Confirming { next, deadline, .. } => Effect::Probe(next, *deadline),
            Self::RollingBack { standing, .. } => Effect::RollBack(&standing.current),
        }
    }

    /// What was confirmed and what failed.
    pub fn standing(&self) -> &Standing {
        match self {
            Self::Unenrolled { standing }
            | Self::Enrolling { standing }
            | Self::Idle { standing }
            | Self::Checking { standing }
            | Self::Fetching { standing, .. }
            | Self::Activating { standing, .. }
            | Self::Confirming { standing, .. }
            | Self::RollingBack { standing, .. } => standing,
        }
    }

    fn standing_mut(&mut self) -> &mut Standing {
        match self {
            Self::Unenrolled { standing }
            | Self::Enrolling { standing }
            | Self::Idle { standing }
            | Self::Checking { standing }
            | Self::Fetching { standing, .. }
            | Self::Activating { standing, .. }
            | Self::Confirming { standing, .. }
            | Self::RollingBack { standing, .. } => standing,
        }
    }

    /// The release on its way in, or on its way out again.
    pub fn next(&self) -> Option<&Release> {
        match self {
            Self::Fetching { next, .. }
            | Self::Activating { next, .. }
            | Self::Confirming { next, .. }
            | Self::RollingBack { next, .. } => Some(next),
            Self::Unenrolled { .. } | Self::Enrolling { .. } | Self::Idle { .. } | Self::Checking { .. } => {
                None
            }
        }
    }

    /// The state in one word, as `status` and the report show it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unenrolled { .. } => "unenrolled",
            Self::Enrolling { .. } => "enrolling",
            Self::Idle { standing } if standing.is_astray() => "rolling_back",
            Self::Idle { .. } => "idle",
            Self::Checking { .. } => "checking",
            Self::Fetching { .. } => "fetching",
            Self::Activating { .. } => "activating",
            Self::Confirming { .. } => "confirming",
            Self::RollingBack { .. } => "rolling_back",
        }
    }
}
