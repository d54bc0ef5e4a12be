//! When the next wave of a rollout begins, and when a rollout stops by itself. ◇
//!
//! Values in, a verdict out: how many devices each wave has, what a device's report means for the rollout, and whether
//! what is known now lets the next wave begin, halts the rollout, or asks to wait, and for what. The driver stores what
//! was decided before it assigns anything.

mod member;

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use pki::digest::Digest;
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::member::{Condition, observe};

/// Most waves of a rollout.
const MAX_WAVES: usize = 20;

/// A number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// So many.
    Count(u32),
    /// So many of a hundred.
    Percent(u8),
}

impl Size {
    /// How many of `total` devices that is; part of a device is a device.
    fn up(self, total: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX).min(total),
            Self::Percent(percent) => (total * usize::from(percent)).div_ceil(100),
        }
    }

    /// How many of `total` devices that is; part of a device is none.
    fn down(self, total: usize) -> usize {
        match self {
            Self::Count(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Self::Percent(percent) => total * usize::from(percent) / 100,
        }
    }
}

/// The text is no plan for a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// Not a number of devices.
    #[error("{0:?} is no number of devices (for example 5, or 10%)")]
    Size(String),
    /// Not waves.
    #[error("{0:?} are no waves: {1} (for example 1,10%,50%,100%)")]
    Waves(String, &'static str),
}

impl FromStr for Size {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let text = text.trim();
        let wrong = || PlanError::Size(text.chars().take(80).collect());
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent: u8 = percent.parse().map_err(|_| wrong())?;
                if percent <= 100 { Ok(Self::Percent(percent)) } else { Err(wrong()) }
            }
            None => text.parse().map(Self::Count).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// How many devices have been reached when each wave is over: `1,10%,50%,100%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waves(Vec<Size>);

impl Waves {
    /// Where each wave ends, for so many devices. Waves that would be empty are left out.
    pub fn ends(&self, devices: usize) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut reached = 0;
        for size in &self.0 {
            let end = size.up(devices);
            if end > reached {
                ends.push(end);
                reached = end;
            }
        }
        ends
    }
}

impl FromStr for Waves {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let wrong = |reason| PlanError::Waves(text.chars().take(200).collect(), reason);
        let sizes: Result<Vec<Size>, PlanError> = text.split(',').map(str::parse).collect();
        let sizes = sizes?;
        if sizes.len() > MAX_WAVES {
            return Err(wrong("there are more than 20"));
        }
        if sizes.iter().any(|size| matches!(size, Size::Count(0) | Size::Percent(0))) {
            return Err(wrong("a wave has at least one device"));
        }
        if sizes.last() != Some(&Size::Percent(100)) {
            return Err(wrong("the last one must be 100%, so that nobody is forgotten"));
        }
        let percents = sizes.iter().filter_map(|size| match size {
            Size::Percent(percent) => Some(u32::from(*percent)),
            Size::Count(_) => None,
        });
        let counts = sizes.iter().filter_map(|size| match size {
            Size::Count(count) => Some(*count),
            Size::Percent(_) => None,
        });
        if !percents.is_sorted_by(|one, next| one < next) || !counts.is_sorted_by(|one, next| one < next) {
            return Err(wrong("each must reach more devices than the one before"));
        }
        Ok(Self(sizes))
    }
}

impl fmt::Display for Waves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }
}

pki::serde_as_text!(Size, Waves);

/// The order in which a rollout reaches its devices: the same on every machine and after every restart, and another one
/// for each rollout, so that it is not always the same devices that go first.
pub fn order(rollout: &str, mut devices: Vec<DeviceId>) -> Vec<DeviceId> {
    devices.sort_by_cached_key(|device| Digest::sha256(format!("{rollout}\n{device}").as_bytes()).hex());
    devices
}

/// Which waves wait for somebody's approval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// Each but the first, which begins with the rollout.
    Each,
    /// The second: once the first has been looked at, the rest goes by itself.
    First,
    /// None.
    #[default]
    None,
}

/// How a rollout goes on, and when it stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The waves.
    pub waves: Waves,
    /// Which of them wait for approval.
    pub approval: Approval,
    /// How many of a hundred devices of a wave must be healthy for it to have succeeded.
    pub success_percent: u8,
    /// Judge a wave once so many of its devices are healthy or failed, by those alone; otherwise by all of its devices.
    pub min_sample: Option<u32>,
    /// More failures than this, of all devices, halt the rollout.
    pub failure_budget: Option<Size>,
    /// How long a wave must have succeeded before the next one begins, in seconds.
    pub soak_seconds: u32,
    /// A wave that has not succeeded so long after it began halts the rollout, in seconds.
    pub deadline_seconds: Option<u32>,
}

impl Plan {
    /// How many failures the rollout bears.
    pub fn budget(&self, devices: usize) -> Option<usize> {
        self.failure_budget.map(|budget| budget.down(devices))
    }

    /// Whether a wave (from 0) begins only after an approval.
    pub fn needs_approval(&self, wave: usize) -> bool {
        match self.approval {
            Approval::Each => wave > 0,
            Approval::First => wave == 1,
            Approval::None => false,
        }
    }

    /// Judges the wave that has begun.
    pub fn judge(&self, seen: &Seen) -> Judgement {
        let Tally { devices, healthy, failed } = seen.wave;
        let halt = |reason| Judgement { met_since: None, verdict: Verdict::Halt(reason) };
        if let Some(budget) = self.budget(seen.devices).filter(|budget| seen.failed > *budget) {
            return halt(Halt::Budget { failed: seen.failed, budget });
        }
        let success = usize::from(self.success_percent);
        let suffices = |good: usize, of: usize| good * 100 >= success * of;
        if !suffices(devices.saturating_sub(failed), devices) {
            return halt(Halt::Hopeless { failed, devices });
        }
        let (sample, judged) = match self.min_sample {
            Some(sample) => (usize::try_from(sample).unwrap_or(usize::MAX).min(devices), healthy + failed),
            None => (devices * success / 100, devices),
        };
        let finished = healthy + failed;
        if finished < sample || !suffices(healthy, judged) {
            let overdue =
                self.deadline_seconds.is_some_and(|deadline| seen.now >= later(seen.began_at, deadline));
            let waiting = Waiting::Devices { healthy, failed, devices };
            let verdict = if overdue { Verdict::Halt(Halt::Deadline) } else { Verdict::Wait(waiting) };
            return Judgement { met_since: None, verdict };
        }
        let met_since = seen.met_since.unwrap_or(seen.now);
        let until = later(met_since, self.soak_seconds);
        let verdict =
            if seen.now < until { Verdict::Wait(Waiting::Soak { until }) } else { Verdict::Succeeded };
        Judgement { met_since: Some(met_since), verdict }
    }
}

fn later(from: Timestamp, seconds: u32) -> Timestamp {
    from.checked_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MAX)
}

/// How the devices of a wave fare; without those that are gone, and those whose failure an operator has put up with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Its devices.
    pub devices: usize,
    /// Those that run what they should.
    pub healthy: usize,
    /// Those that failed or went back.
    pub failed: usize,
}

/// What is known when a wave is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The devices of the wave.
    pub wave: Tally,
    /// Failures in this wave and all before it.
    pub failed: usize,
    /// The devices of the whole rollout.
    pub devices: usize,
    /// When the wave began, or the rollout was resumed.
    pub began_at: Timestamp,
    /// Since when the wave has succeeded.
    pub met_since: Option<Timestamp>,
    /// Now.
    pub now: Timestamp,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Since when the wave has succeeded.
    pub met_since: Option<Timestamp>,
    /// What is to be done.
    pub verdict: Verdict,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Wait(Waiting),
    /// The wave is over, and well.
    Succeeded,
    /// The rollout stops until an operator decides.
    Halt(Halt),
}

/// What a wave waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// More devices.
    Devices {
        /// Healthy ones.
        healthy: usize,
        /// Failed ones.
        failed: usize,
        /// All of the wave.
        devices: usize,
    },
    /// It has succeeded, and must go on to.
    Soak {
        /// Until then.
        until: Timestamp,
    },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices { healthy, failed, devices } => {
                write!(f, "its devices: {healthy} of {devices} are healthy, {failed} failed")
            }
            Self::Soak { until } => write!(f, "its soak time, until {until}"),
        }
    }
}

/// Why a rollout halts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// More failures than it bears.
    Budget {
        /// How many failed.
        failed: usize,
        /// How many may.
        budget: usize,
    },
    /// So many of the wave failed that it can no longer succeed.
    Hopeless {
        /// How many failed.
        failed: usize,
        /// All of the wave.
        devices: usize,
    },
    /// The wave took too long.
    Deadline,
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget { failed, budget } => {
                write!(f, "{failed} devices failed, and the failure budget is {budget}")
            }
            Self::Hopeless { failed, devices } => {
                write!(f, "{failed} of the {devices} devices of the wave failed: it can no longer succeed")
            }
            Self::Deadline => f.write_str("the wave did not succeed before its deadline"),
        }
    }
}

#[cfg(test)]
mod tests;
