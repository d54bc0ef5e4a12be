//! Which groups a device is in, and which labels it carries.

use std::collections::BTreeMap;

use pki::x509::DeviceId;

use super::{DEVICES, Device, Devices, DevicesError, Group, LabelKey, LabelValue};

/// Most groups of one device.
const MAX_GROUPS: usize = 64;
/// Most labels of one device.
const MAX_LABELS: usize = 64;

impl Devices {
    /// Puts a device in a group.
    pub async fn join(&self, id: &DeviceId, group: &Group) -> Result<Device, DevicesError> {
        self.change(DEVICES, id.as_str(), |found: Option<Device>| {
            let mut device = found.ok_or_else(|| DevicesError::NoSuchDevice(id.clone()))?;
            if device.groups.insert(group.clone()) && device.groups.len() > MAX_GROUPS {
                return Err(DevicesError::TooManyGroups(id.clone()));
            }
            Ok(device)
        })
        .await
    }

    /// Sets labels of a device, and takes others away.
    pub async fn label(
        &self,
        id: &DeviceId,
        set: &BTreeMap<LabelKey, LabelValue>,
        remove: &[LabelKey],
    ) -> Result<Device, DevicesError> {
        self.change(DEVICES, id.as_str(), |found: Option<Device>| {
            let mut device = found.ok_or_else(|| DevicesError::NoSuchDevice(id.clone()))?;
            for key in remove {
                device.labels.remove(key);
            }
            device.labels.extend(set.clone());
            if device.labels.len() > MAX_LABELS {
                return Err(DevicesError::TooManyLabels(id.clone()));
            }
            Ok(device)
        })
        .await
    }

    /// Takes a device out of a group; one that is not in it stays as it is.
    pub async fn leave(&self, id: &DeviceId, group: &Group) -> Result<Device, DevicesError> {
        self.change(DEVICES, id.as_str(), |found: Option<Device>| {
            let mut device = found.ok_or_else(|| DevicesError::NoSuchDevice(id.clone()))?;
            device.groups.remove(group);
            Ok(device)
        })
        .await
    }
}
