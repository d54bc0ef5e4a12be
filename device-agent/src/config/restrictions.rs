//! `[download]` and the window of `[apply]`: when, how fast, and how long.

use pki::wire::{DevicePolicy, PolicyError, Window};

use super::Texts;
use crate::policy;

impl Texts {
    pub(super) fn policy(&mut self) -> DevicePolicy {
        let said = |error: PolicyError| error.to_string();
        DevicePolicy {
            download_window: self.take("download_window", None, window),
            apply_window: self.take("apply_window", None, window),
            rate_limit: self.take("download_rate", None, |text| text.parse().map(Some).map_err(said)),
            metered: self.take("download_metered", None, |text| text.parse().map(Some).map_err(said)),
            deadline: self.take("download_deadline", None, |text| text.parse().map(Some).map_err(said)),
        }
    }
}

/// A window whose time zone this device knows: one that it does not would never open.
fn window(text: &str) -> Result<Option<Window>, String> {
    let window: Window = text.parse().map_err(|error: PolicyError| error.to_string())?;
    policy::zone(window.zone())?;
    Ok(Some(window))
}
