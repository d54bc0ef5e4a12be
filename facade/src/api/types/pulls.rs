//! The access log.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One pull of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pull {
    /// When it ended (RFC 3339).
    pub at: String,
    /// The device.
    pub device: String,
    /// The repository under which it asked.
    pub repository: String,
    /// What it asked for.
    pub digest: String,
    /// Where the bytes came from: `cache`, `flight` (somebody else's pull of the same was under way) or `upstream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Bytes that were sent.
    pub size_bytes: u64,
    /// How long it took in milliseconds.
    pub duration_ms: u64,
    /// `served`, `left` (the device went away first), `cut` (it broke off), `failed` (there was nothing to send) or
    /// `refused` (the device may not have it).
    pub outcome: String,
    /// The request's id, for its line in the log.
    pub request_id: String,
    /// How many pulls of this device were not kept in the minute before, because there were too many.
    #[serde(default)]
    pub not_kept: u64,
}
