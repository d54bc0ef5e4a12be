//! What is stored of a rollout and of each of its devices.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use jiff::Timestamp;
use pki::oci::ArtifactName;
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::catalog::selector::Selector;
use crate::catalog::waves::{Condition, Plan};

/// Steps of a rollout's history that are kept.
const MAX_HISTORY: usize = 100;
const MAX_NAME_BYTES: usize = 63;

/// The name of a rollout: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RolloutName(Box<str>);

/// The text is not the name of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is not the name of a rollout (expected 1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or digit)"
)]
pub struct RolloutNameError(String);

impl RolloutName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RolloutName {
    type Err = RolloutNameError;

    fn from_str(text: &str) -> Result<Self, RolloutNameError> {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let first = text.bytes().next().is_some_and(alphanumeric);
        let rest = text.bytes().all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'_' | b'-'));
        // The operations on rollouts have this name.
        if first && rest && text.len() <= MAX_NAME_BYTES && text != "preview" {
            Ok(Self(text.into()))
        } else {
            Err(RolloutNameError(text.chars().take(80).collect()))
        }
    }
}

pki::text_newtypes!(RolloutName);

/// Where a rollout stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Phase {
    /// Not started.
    Draft,
    /// The devices of its wave are being assigned.
    Assigning,
    /// It watches how they fare.
    Running,
    /// Its wave has succeeded, and an operator must let the next one begin.
    AwaitingApproval,
    /// An operator holds it.
    Paused,
    /// It stopped by itself, and an operator must decide.
    Halted {
        /// Why.
        why: String,
    },
    /// Its devices are being given back what they had.
    Reverting,
    /// Every wave has succeeded.
    Completed,
    /// An operator ended it.
    Aborted {
        /// Whether devices were given back what they had.
        reverted: bool,
    },
}

impl Phase {
    /// The phase's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Assigning => "assigning",
            Self::Running => "running",
            Self::AwaitingApproval => "awaiting-approval",
            Self::Paused => "paused",
            Self::Halted { .. } => "halted",
            Self::Reverting => "reverting",
            Self::Completed => "completed",
            Self::Aborted { .. } => "aborted",
        }
    }

    /// Whether it has begun and is not over.
    pub fn is_live(&self) -> bool {
        !matches!(self, Self::Draft | Self::Completed | Self::Aborted { .. })
    }
}

/// One step of a rollout's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: String,
}

/// One rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its name.
    pub name: RolloutName,
    /// What nobody chooses: by it, each rollout has its own order of devices.
    pub id: String,
    /// What its devices should have.
    pub artifacts: BTreeSet<ArtifactName>,
    /// Which devices.
    pub selector: Selector,
    /// How it goes on.
    pub plan: Plan,
    /// Where it stands.
    pub phase: Phase,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// The wave that has begun, from 0.
    pub wave: usize,
    /// How many devices are reached when each wave is over.
    pub ends: Vec<usize>,
    /// When the wave began, or the rollout was resumed.
    pub began_at: Timestamp,
    /// Since when the wave has succeeded.
    pub met_since: Option<Timestamp>,
    /// Whether an operator has let the next wave begin.
    pub approved: bool,
    /// Devices by condition, once it is over.
    #[serde(default)]
    pub outcome: BTreeMap<String, usize>,
    /// What happened to it.
    pub history: Vec<Step>,
}

impl Rollout {
    /// Its devices.
    pub fn devices(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether its wave is the last one.
    pub fn is_last_wave(&self) -> bool {
        self.wave + 1 >= self.ends.len()
    }

    pub(super) fn note(&mut self, at: Timestamp, what: &str) {
        self.history.push(Step { at, what: what.to_owned() });
        let excess = self.history.len().saturating_sub(MAX_HISTORY);
        self.history.drain(..excess);
    }

    /// As whom it assigns.
    pub(super) fn assigns_as(&self) -> String {
        format!("rollout {}", self.name)
    }
}

/// One device of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which device.
    pub device: DeviceId,
    /// Its wave, from 0.
    pub wave: usize,
    /// What it had of its own of the same repositories, once its wave has begun.
    #[serde(default)]
    pub before: BTreeSet<ArtifactName>,
    /// When its wave reached it.
    #[serde(default)]
    pub assigned_at: Option<Timestamp>,
    /// How it fares.
    pub condition: Condition,
    /// Since when.
    pub since: Timestamp,
    /// An operator has resumed the rollout though it had failed: its failure no longer counts.
    #[serde(default)]
    pub excused: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_names_that_are_not_of_rollouts() {
        for text in ["", "-a", "A", "a b", "a/b", "preview", &"a".repeat(64)] {
            assert!(text.parse::<RolloutName>().is_err(), "{text:?}");
        }
        assert_eq!("app-1.4.2".parse::<RolloutName>().unwrap().as_str(), "app-1.4.2");
    }

    #[test]
    fn every_phase_has_the_name_under_which_it_is_stored() {
        let phases = [
            Phase::Draft,
            Phase::AwaitingApproval,
            Phase::Halted { why: String::new() },
            Phase::Aborted { reverted: true },
        ];
        for phase in phases {
            assert_eq!(serde_json::to_value(&phase).unwrap()["state"], phase.name());
        }
    }
}
