//! Bodies of `/api/v1/policies`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// When and how fast a device or the devices of a group may download and apply. What is not given stays as it is;
/// `none` takes it back.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyChange {
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When to download: `22:00-05:00 Europe/Berlin`, `Sat,Sun 00:00-24:00 local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_window: Option<String>,
    /// When to apply what was downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply_window: Option<String>,
    /// How fast to download: `2MiB/s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<String>,
    /// Whether to download over links that are paid by volume: `yes` or `no`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metered: Option<String>,
    /// How long a deployment may take to download, from when the device heard of it: `12h`, `3d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
}

/// What is said of a device or a group.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When to download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_window: Option<String>,
    /// When to apply what was downloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apply_window: Option<String>,
    /// How fast to download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<String>,
    /// Whether to download over links that are paid by volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metered: Option<String>,
    /// How long a deployment may take to download, from when the device heard of it: `12h`, `3d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
}
