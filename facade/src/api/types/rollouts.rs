//! Rollouts, labels and groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Labels to set and to take away.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelRequest {
    /// Labels to set: name and value.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names of labels to take away.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A group that has devices.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GroupSize {
    /// The group.
    pub name: String,
    /// Its devices.
    pub devices: u64,
}

/// A rollout to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// Its name: 1 to 63 of a-z, 0-9, '.', '_', '-'.
    #[schema(example = "app-1.4.2")]
    pub name: String,
    /// Artifacts, each `REPOSITORY@sha256:…` or an unambiguous prefix of a digest; all of them or none.
    pub artifacts: Vec<String>,
    /// Which devices: `all`, `group=berlin,arch=arm64`, `stage in (canary,test)`…
    #[schema(example = "group=berlin")]
    pub to: String,
    /// How many devices have been reached when each wave is over; the last is 100%.
    #[serde(default = "default_waves")]
    #[schema(example = "1,10%,50%,100%", default = "1,10%,50%,100%")]
    pub waves: String,
    /// Which waves wait for approval: `each` (but the first), `first` (the second, once the first has been looked at) or
    /// `none`.
    #[serde(default = "default_approve")]
    #[schema(example = "none", default = "none")]
    pub approve: String,
    /// How many of a hundred devices of a wave must be healthy for the next one to begin.
    #[serde(default = "default_success")]
    #[schema(minimum = 1, maximum = 100, default = 95)]
    pub success_percent: u8,
    /// Judge a wave once so many of its devices are healthy or failed, by those alone; otherwise by all of its devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_sample: Option<u32>,
    /// More failures than this, a number or a share of all devices, halt the rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2%")]
    pub failure_budget: Option<String>,
    /// How long a wave must have succeeded before the next one begins, in seconds.
    #[serde(default)]
    pub soak_seconds: u32,
    /// A wave that has not succeeded so long after it began halts the rollout, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u32>,
}

fn default_waves() -> String {
    "1,10%,50%,100%".to_owned()
}

fn default_approve() -> String {
    "none".to_owned()
}

fn default_success() -> u8 {
    95
}

/// How a rollout is to end.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AbortRequest {
    /// `keep`: devices keep what they have been assigned; `revert`: they get back what they had.
    #[schema(example = "revert")]
    pub devices: String,
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    /// Its name.
    pub name: String,
    /// `draft`, `assigning`, `running`, `awaiting-approval`, `paused`, `halted`, `reverting`, `completed` or `aborted`.
    pub state: String,
    /// What it waits for, or why it halted, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// What it sends.
    pub artifacts: Vec<String>,
    /// To which devices.
    pub to: String,
    /// Its waves as they were planned.
    pub plan: String,
    /// Which waves wait for approval.
    pub approve: String,
    /// How many of a hundred devices of a wave must be healthy.
    pub success_percent: u8,
    /// By how many devices a wave is judged, where not by all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_sample: Option<u32>,
    /// How many failures it bears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_budget: Option<String>,
    /// How long a wave must have succeeded, in seconds.
    pub soak_seconds: u32,
    /// How long a wave may take, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u32>,
    /// Its devices; 0 before it starts.
    pub devices: u64,
    /// Devices by state.
    pub states: BTreeMap<String, u64>,
    /// Its waves, once it has started.
    pub waves: Vec<Wave>,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// By whom.
    pub created_by: String,
    /// What happened to it, oldest first.
    pub history: Vec<RolloutStep>,
}

/// One wave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Wave {
    /// Its number, from 1.
    pub number: u64,
    /// `over`, `now` or `to come`.
    pub stage: String,
    /// Its devices.
    pub devices: u64,
    /// Its devices by state; empty once the rollout is over.
    pub states: BTreeMap<String, u64>,
}

/// One step of a rollout's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutStep {
    /// When (RFC 3339).
    pub at: String,
    /// What.
    pub what: String,
}

/// How a device fares in a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutDevice {
    /// Which device.
    pub device: String,
    /// Its wave, from 1.
    pub wave: u64,
    /// `pending`, `waiting`, `downloading`, `verifying`, `applying`, `healthy`, `rolled-back` or `failed`.
    pub state: String,
    /// Why it waits, failed or went back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Bytes that are there, while it downloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_bytes: Option<u64>,
    /// Bytes in all, while it downloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Since when (RFC 3339).
    pub since: String,
    /// An operator has resumed the rollout though it had failed.
    #[serde(default)]
    pub excused: bool,
}

/// What a rollout would do if it were started now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RolloutPreview {
    /// Devices that it would reach.
    pub devices: u64,
    /// How many of them in each wave.
    pub waves: Vec<u64>,
    /// The devices of the first wave, up to 100, once the rollout is made: its order of devices is its own.
    pub first_wave: Vec<String>,
    /// Devices that have it already.
    pub up_to_date: u64,
    /// Selected devices that would be left out, because they are not active.
    pub left_out: Concern,
    /// Devices whose platform none of the artifacts' images is for.
    pub no_platform: Concern,
    /// Devices that have not reported their platform yet.
    pub unknown_platform: Concern,
    /// Devices that reported less free space than all of it could need.
    pub low_disk: Concern,
    /// Bytes that one device fetches at most.
    pub bytes_per_device: u64,
    /// What has to be fetched from registries, once for all devices.
    pub upstream: Vec<UpstreamNeed>,
    /// Why it could not be started now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// Devices about which there is something to say.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Concern {
    /// How many.
    pub count: u64,
    /// Some of them, up to 20, with what there is to say.
    pub examples: Vec<String>,
}

/// What has to be fetched from one registry.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UpstreamNeed {
    /// The registry.
    pub host: String,
    /// Requests for content that is not in the cache.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that are in the cache already.
    pub cached_bytes: u64,
    /// Requests that the registry says are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// Whether they suffice, as far as the registry tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffices: Option<bool>,
}
