//! Whom an artifact is meant for, and which of them cannot run it.

use pki::oci::Platform;
use pki::x509::DeviceId;

use super::State;
use crate::catalog::devices::{DevicesError, Group};

/// Devices asked for at once.
const MEMBERS: usize = 1000;

/// Devices, and their platforms as far as they have reported them.
pub(super) struct Audience(Vec<(DeviceId, Platform)>);

impl Audience {
    /// A device, the members of a group, or both.
    pub(super) async fn of(
        state: &State,
        device: Option<DeviceId>,
        group: Option<&Group>,
    ) -> Result<Self, DevicesError> {
        let mut members: Vec<DeviceId> = device.into_iter().collect();
        if let Some(group) = group {
            loop {
                let page = state.assignments.members(group, members.last(), MEMBERS);
                let last = page.len() < MEMBERS;
                members.extend(page);
                if last {
                    break;
                }
            }
        }
        let mut audience = Vec::new();
        for device in members {
            if let Some(received) = state.devices.report(&device).await? {
                audience.push((device, received.report.platform));
            }
        }
        Ok(Self(audience))
    }

    /// Says why none of the devices can run something for these platforms, if that is so.
    pub(super) fn refuses(&self, platforms: &[Platform]) -> Option<String> {
        let lacking = self.lacking(platforms);
        if lacking.is_empty() || lacking.len() < self.0.len() {
            return None;
        }
        Some(format!("it is for {}, and {}", names(platforms), describe(&lacking)))
    }

    /// Says which of the devices cannot run something for these platforms, if any.
    pub(super) fn unsuited(&self, platforms: &[Platform]) -> Option<String> {
        let lacking = self.lacking(platforms);
        (!lacking.is_empty()).then(|| describe(&lacking))
    }

    /// An artifact without platforms (a chart, a policy) is for every device.
    fn lacking(&self, platforms: &[Platform]) -> Vec<&(DeviceId, Platform)> {
        let suits = |device: &Platform| platforms.iter().any(|platform| platform.suits(device).is_some());
        self.0.iter().filter(|(_, device)| !platforms.is_empty() && !suits(device)).collect()
    }
}

fn names(platforms: &[Platform]) -> String {
    platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn describe(lacking: &[&(DeviceId, Platform)]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> =
        lacking.iter().take(SHOWN).map(|(device, platform)| format!("{device} is {platform}")).collect();
    let more = match lacking.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more cannot run it"),
    };
    format!("{}{more}", shown.join(", "))
}
