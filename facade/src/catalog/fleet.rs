//! The devices in memory, found by what they have. ◇
//!
//! Each value of each key has the list of its devices, so that a selector looks at the devices of its rarest value and
//! not at all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pki::oci::Platform;
use pki::x509::DeviceId;

use super::devices::{Device, Group, Standing};
use super::selector::{Selector, Test};

/// What selectors and rollouts need to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// What it is to us.
    pub standing: Standing,
    /// The groups that it is in.
    pub groups: BTreeSet<Group>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its platform, once it has reported it.
    pub platform: Option<Platform>,
    /// Free bytes where its images go, as it last reported.
    pub free_bytes: Option<u64>,
}

impl Facts {
    fn pairs(&self, id: &DeviceId) -> Vec<(String, String)> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut pairs = vec![pair("id", id.as_str())];
        pairs.extend(self.groups.iter().map(|group| pair("group", group.as_str())));
        pairs.extend(self.labels.iter().map(|(key, value)| pair(key, value)));
        if let Some(platform) = &self.platform {
            pairs.push(pair("os", &platform.os));
            pairs.push(pair("arch", &platform.architecture));
            pairs.extend(platform.variant.iter().map(|variant| pair("variant", variant)));
        }
        pairs
    }
}

/// The devices.
#[derive(Debug, Default)]
pub struct Fleet {
    devices: BTreeMap<DeviceId, Facts>,
    holders: HashMap<(String, String), BTreeSet<DeviceId>>,
}

impl Fleet {
    /// Takes over a device that is new or has changed; what it last reported stays known.
    pub fn changed(&mut self, device: &Device) {
        let reported = self.devices.get(&device.id).map(|facts| (facts.platform.clone(), facts.free_bytes));
        let (platform, free_bytes) = reported.unwrap_or_default();
        let labels = device.labels.iter();
        let facts = Facts {
            standing: device.standing,
            groups: device.groups.clone(),
            labels: labels.map(|(key, value)| (key.as_str().to_owned(), value.as_str().to_owned())).collect(),
            platform,
            free_bytes,
        };
        self.put(&device.id, facts);
    }

    /// Takes over what a device reports of itself; whether anything is new.
    pub fn reported(&mut self, id: &DeviceId, platform: &Platform, free_bytes: Option<u64>) -> bool {
        let Some(known) = self.devices.get_mut(id) else {
            return false;
        };
        known.free_bytes = free_bytes;
        if known.platform.as_ref() == Some(platform) {
            return false;
        }
        let facts = Facts { platform: Some(platform.clone()), ..known.clone() };
        self.put(id, facts);
        true
    }

    /// Forgets a device.
    pub fn remove(&mut self, id: &DeviceId) {
        let Some(facts) = self.devices.remove(id) else {
            return;
        };
        for pair in facts.pairs(id) {
            if let Some(holders) = self.holders.get_mut(&pair) {
                holders.remove(id);
                if holders.is_empty() {
                    self.holders.remove(&pair);
                }
            }
        }
    }

    fn put(&mut self, id: &DeviceId, facts: Facts) {
        self.remove(id);
        for pair in facts.pairs(id) {
            self.holders.entry(pair).or_default().insert(id.clone());
        }
        self.devices.insert(id.clone(), facts);
    }

    /// What is known of a device.
    pub fn get(&self, id: &DeviceId) -> Option<&Facts> {
        self.devices.get(id)
    }

    /// The devices that have a value of a key, by id.
    pub fn holders(&self, key: &str, value: &str) -> Option<&BTreeSet<DeviceId>> {
        self.holders.get(&(key.to_owned(), value.to_owned()))
    }

    /// The groups that have devices, with how many.
    pub fn groups(&self) -> BTreeMap<&str, usize> {
        let groups = self.holders.iter().filter(|((key, _), _)| key == "group");
        groups.map(|((_, group), holders)| (group.as_str(), holders.len())).collect()
    }

    /// The devices that a selector selects, by id.
    pub fn select<'a>(
        &'a self,
        selector: &'a Selector,
    ) -> Box<dyn Iterator<Item = (&'a DeviceId, &'a Facts)> + 'a> {
        let matches = |(id, facts): &(&DeviceId, &Facts)| {
            let pairs = facts.pairs(id);
            selector.matches(|key, test| pairs.iter().any(|(name, value)| name == key && test(value)))
        };
        match self.rarest(selector) {
            Some(found) => {
                Box::new(found.into_iter().filter_map(|id| self.devices.get_key_value(id)).filter(matches))
            }
            None => Box::new(self.devices.iter().filter(matches)),
        }
    }

    /// The devices of the term that has fewest; none if no term names values.
    fn rarest(&self, selector: &Selector) -> Option<BTreeSet<&DeviceId>> {
        let mut rarest: Option<Vec<&BTreeSet<DeviceId>>> = None;
        let size = |lists: &[&BTreeSet<DeviceId>]| lists.iter().map(|list| list.len()).sum::<usize>();
        for term in selector.terms() {
            let Test::In(values) = &term.test else {
                continue;
            };
            let lists: Vec<_> = values.iter().filter_map(|value| self.holders(&term.key, value)).collect();
            if rarest.as_ref().is_none_or(|rarest| size(&lists) < size(rarest)) {
                rarest = Some(lists);
            }
        }
        rarest.map(|lists| lists.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn device(id: &str, groups: &[&str], labels: &[(&str, &str)]) -> Device {
        let mut device = Device::new(id.parse().unwrap(), Standing::Active, Timestamp::UNIX_EPOCH);
        device.groups = groups.iter().map(|group| group.parse().unwrap()).collect();
        device.labels =
            labels.iter().map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap())).collect();
        device
    }

    fn selected(fleet: &Fleet, selector: &str) -> Vec<String> {
        let selector = selector.parse().unwrap();
        fleet.select(&selector).map(|(id, _)| id.to_string()).collect()
    }

    #[test]
    fn finds_devices_by_what_they_have_and_forgets_what_they_had() {
        let mut fleet = Fleet::default();
        fleet.changed(&device("a", &["hall"], &[("stage", "canary")]));
        fleet.changed(&device("b", &["hall", "attic"], &[]));
        assert_eq!(selected(&fleet, "all"), ["a", "b"]);
        assert_eq!(selected(&fleet, "group=hall"), ["a", "b"]);
        assert_eq!(selected(&fleet, "group=hall,stage=canary"), ["a"]);
        assert_eq!(selected(&fleet, "group in (attic,cellar)"), ["b"]);
        assert_eq!(selected(&fleet, "!stage"), ["b"]);
        assert_eq!(selected(&fleet, "id=b"), ["b"]);
        assert_eq!(fleet.groups(), BTreeMap::from([("attic", 1), ("hall", 2)]));
        fleet.changed(&device("a", &["attic"], &[("stage", "prod")]));
        assert_eq!(selected(&fleet, "group=hall"), ["b"]);
        assert_eq!(selected(&fleet, "stage=canary"), [""; 0]);
        fleet.remove(&"b".parse().unwrap());
        assert_eq!(selected(&fleet, "group=attic"), ["a"]);
        assert_eq!(fleet.groups(), BTreeMap::from([("attic", 1)]));
    }

    #[test]
    fn what_a_device_reported_stays_known_when_an_operator_changes_it() {
        let mut fleet = Fleet::default();
        let (id, arm) = ("a".parse().unwrap(), Platform::new("linux", "arm", Some("v7")));
        assert!(!fleet.reported(&id, &arm, Some(7)), "nobody knows it");
        fleet.changed(&device("a", &[], &[]));
        assert!(fleet.reported(&id, &arm, Some(7)));
        assert!(!fleet.reported(&id, &arm, Some(8)));
        fleet.changed(&device("a", &["hall"], &[]));
        assert_eq!(selected(&fleet, "arch=arm,variant=v7,os=linux"), ["a"]);
        assert_eq!(fleet.get(&id).unwrap().free_bytes, Some(8));
    }
}
