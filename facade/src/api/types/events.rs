//! Events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its number; grows by one with each event.
    pub sequence: u64,
    /// When (RFC 3339).
    pub at: String,
    /// What kind of thing: `device-enrolled`, `imported`, `rollout`…
    pub kind: String,
    /// To what: a device, an artifact, a rollout.
    pub subject: String,
    /// What happened, in words.
    pub detail: String,
}

/// Devices of running rollouts have moved: ask for what you show.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RolloutsMoved {
    /// The rollouts that are running.
    pub rollouts: Vec<String>,
}

/// Why a stream of events does not go on without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventsGone {
    /// How many events are missing here.
    pub lost: u64,
}
