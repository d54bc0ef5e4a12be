//! What each device should have: assignments of artifacts to devices and groups.
//!
//! What is assigned of one repository in one step stands together; assigning of that repository again replaces it all. A
//! device's own assignment of a repository wins over its groups', and among its groups the newest wins. The answer for one device is computed from memory; the store is
//! written before memory changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Bound;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use pki::oci::{ArtifactName, Platform, Repository};
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::access::{Access, DeviceEntry};
use super::census::Census;
use super::devices::{Device, Group, Standing};
use super::fleet::{Facts, Fleet};
use super::selector::Selector;
use crate::store::{Batch, Scan, Store, StoreError, Table, scan_json};

/// How much one name must be like another to be offered in its place.
const ALIKE: f64 = 0.85;

const TABLE: Table = Table("assignments");

/// Whom an artifact is assigned to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One device.
    Device(DeviceId),
    /// The devices of a group, now and later.
    Group(Group),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "device/{device}"),
            Self::Group(group) => write!(f, "group/{group}"),
        }
    }
}

/// One assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Whom it is for.
    pub target: Target,
    /// What they should have.
    pub artifact: ArtifactName,
    /// When it was made.
    pub assigned_at: Timestamp,
    /// By whom.
    pub assigned_by: String,
}

impl Assignment {
    /// Its place in the list.
    pub fn key(&self) -> String {
        format!("{}/{}", self.target, self.artifact)
    }
}

/// Which assignments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// Those of one artifact.
    Of(ArtifactName),
    /// Those of one target itself.
    For(Target),
}

/// A place in the list of assignments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    target: Target,
    artifact: ArtifactName,
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(kind, rest)| {
            let (name, artifact) = rest.split_once('/')?;
            let target = match kind {
                "device" => Target::Device(name.parse().ok()?),
                "group" => Target::Group(name.parse().ok()?),
                _ => return None,
            };
            Some(Self { target, artifact: artifact.parse().ok()? })
        });
        parsed.ok_or("is not the `next` of a page")
    }
}

/// An assignment that was made or taken back, and the one it replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The assignment.
    pub assignment: Assignment,
    /// What the target had of the same repository before.
    pub replaces: Option<ArtifactName>,
}

/// When a target got what it has of one repository.
fn assigned_at(together: &Together) -> Option<Timestamp> {
    together.values().map(|assignment| assignment.assigned_at).max()
}

/// The assignments, and the devices they reach.
pub struct Assignments {
    store: Arc<dyn Store>,
    access: Arc<Access>,
    census: Census,
    state: RwLock<State>,
}

/// What a target has of one repository.
type Together = BTreeMap<ArtifactName, Assignment>;

#[derive(Default)]
struct State {
    assignments: BTreeMap<Target, BTreeMap<Repository, Together>>,
    /// Whom an artifact is assigned to.
    holders: HashMap<ArtifactName, BTreeSet<Target>>,
    members: HashMap<DeviceId, Member>,
    fleet: Fleet,
}

struct Member {
    standing: Standing,
    groups: BTreeSet<Group>,
    entry: DeviceEntry,
    news: Arc<Notify>,
}

impl State {
    fn wanted(&self, device: &DeviceId) -> BTreeSet<ArtifactName> {
        let groups = self.members.get(device).into_iter().flat_map(|member| &member.groups);
        let mut newest: BTreeMap<&Repository, &Together> = BTreeMap::new();
        for (repository, together) in
            groups.filter_map(|group| self.assignments.get(&Target::Group(group.clone()))).flatten()
        {
            let held = newest.entry(repository).or_insert(together);
            if assigned_at(together) > assigned_at(held) {
                *held = together;
            }
        }
        newest.extend(self.assignments.get(&Target::Device(device.clone())).into_iter().flatten());
        newest.into_values().flat_map(BTreeMap::keys).cloned().collect()
    }

    fn insert(&mut self, assignment: Assignment) {
        self.holders.entry(assignment.artifact.clone()).or_default().insert(assignment.target.clone());
        let target = self.assignments.entry(assignment.target.clone()).or_default();
        let together = target.entry(assignment.artifact.repository().clone()).or_default();
        together.insert(assignment.artifact.clone(), assignment);
    }

    fn remove(&mut self, assignment: &Assignment) {
        if let Some(holders) = self.holders.get_mut(&assignment.artifact) {
            holders.remove(&assignment.target);
            if holders.is_empty() {
                self.holders.remove(&assignment.artifact);
            }
        }
        let Some(target) = self.assignments.get_mut(&assignment.target) else {
            return;
        };
        let repository = assignment.artifact.repository();
        if let Some(together) = target.get_mut(repository) {
            together.remove(&assignment.artifact);
            if together.is_empty() {
                target.remove(repository);
            }
        }
    }

    fn find(&self, target: &Target, artifact: &ArtifactName) -> Option<&Assignment> {
        self.assignments.get(target)?.get(artifact.repository())?.get(artifact)
    }

    /// What new assignments take the place of.
    fn replaced_by(&self, assignments: &[Assignment]) -> Vec<Assignment> {
        let new_keys: HashSet<String> = assignments.iter().map(Assignment::key).collect();
        let mut replaced = BTreeMap::new();
        for new in assignments {
            let together =
                self.assignments.get(&new.target).and_then(|target| target.get(new.artifact.repository()));
            for old in together.into_iter().flat_map(BTreeMap::values) {
                let key = old.key();
                if !new_keys.contains(&key) {
                    replaced.insert(key, old.clone());
                }
            }
        }
        replaced.into_values().collect()
    }

    fn reached(&self, target: &Target) -> Vec<DeviceId> {
        match target {
            Target::Device(device) => vec![device.clone()],
            Target::Group(group) => {
                self.fleet.holders("group", group.as_str()).into_iter().flatten().cloned().collect()
            }
        }
    }
}

impl Assignments {
    /// Reads the assignments; devices are made known with [`Assignments::device_changed`].
    pub async fn load(store: Arc<dyn Store>, access: Arc<Access>) -> Result<Self, StoreError> {
        let mut state = State::default();
        for (_, assignment) in scan_json::<Assignment>(&*store, TABLE, Scan::ALL).await? {
            state.insert(assignment);
        }
        Ok(Self { store, access, census: Census::default(), state: RwLock::new(state) })
    }

    /// Assigns artifacts, and gives the changes and how many devices they reach.
    pub async fn assign(&self, assignments: Vec<Assignment>) -> Result<(Vec<Change>, usize), StoreError> {
        let replaced = self.state.read().unwrap_or_else(PoisonError::into_inner).replaced_by(&assignments);
        let mut batch = Batch::new();
        for old in &replaced {
            batch.delete(TABLE, &old.key());
        }
        for assignment in &assignments {
            batch.put_json(TABLE, &assignment.key(), assignment)?;
        }
        self.store.commit(batch).await?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for old in &replaced {
            state.remove(old);
        }
        let before: HashMap<(Target, Repository), ArtifactName> = replaced
            .into_iter()
            .rev()
            .map(|old| ((old.target, old.artifact.repository().clone()), old.artifact))
            .collect();
        let mut changes = Vec::new();
        for assignment in assignments {
            state.insert(assignment.clone());
            let place = (assignment.target.clone(), assignment.artifact.repository().clone());
            changes.push(Change { assignment, replaces: before.get(&place).cloned() });
        }
        let targets = changes.iter().map(|change| change.assignment.target.clone()).collect();
        let reached = self.apply(&state, &targets);
        Ok((changes, reached))
    }

    /// Takes assignments back; what was not assigned is passed over.
    pub async fn unassign(
        &self,
        wanted: &[(Target, ArtifactName)],
    ) -> Result<(Vec<Change>, usize), StoreError> {
        let found: Vec<Assignment> = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            wanted.iter().filter_map(|(target, artifact)| state.find(target, artifact).cloned()).collect()
        };
        let mut batch = Batch::new();
        for assignment in &found {
            batch.delete(TABLE, &assignment.key());
        }
        self.store.commit(batch).await?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for assignment in &found {
            state.remove(assignment);
        }
        let targets = found.iter().map(|assignment| assignment.target.clone()).collect();
        let reached = self.apply(&state, &targets);
        Ok((found.into_iter().map(|assignment| Change { assignment, replaces: None }).collect(), reached))
    }

    /// Takes back every assignment of an artifact.
    pub async fn withdraw(&self, artifact: &ArtifactName) -> Result<usize, StoreError> {
        let wanted: Vec<(Target, ArtifactName)> = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let holders = state.holders.get(artifact).into_iter().flatten();
            holders.map(|target| (target.clone(), artifact.clone())).collect()
        };
        self.unassign(&wanted).await.map(|(changes, _)| changes.len())
    }

    /// A page of assignments, ordered by target and artifact, after one place.
    pub fn list(&self, which: &Which, after: Option<&Place>, limit: usize) -> Vec<Assignment> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let later = |assignment: &&Assignment| {
            after.is_none_or(|after| {
                (&assignment.target, &assignment.artifact) > (&after.target, &after.artifact)
            })
        };
        // Where the first one may be: nothing before it is looked at.
        let from = after.map_or(Bound::Unbounded, |after| Bound::Included(&after.target));
        let range = (from, Bound::Unbounded);
        let found: Vec<&Assignment> = match which {
            Which::All => {
                let targets = state.assignments.range::<Target, _>(range);
                let held = targets.flat_map(|(_, held)| held.values().flat_map(BTreeMap::values));
                held.filter(later).take(limit).collect()
            }
            Which::Of(artifact) => {
                let holders = state.holders.get(artifact).into_iter();
                let targets = holders.flat_map(|holders| holders.range::<Target, _>(range));
                let held = targets.filter_map(|target| state.find(target, artifact));
                held.filter(later).take(limit).collect()
            }
            Which::For(target) => {
                let held = state.assignments.get(target).into_iter();
                let held = held.flat_map(|held| held.values().flat_map(BTreeMap::values));
                held.filter(later).take(limit).collect()
            }
        };
        found.into_iter().cloned().collect()
    }

    /// What is counted of the devices.
    pub fn census(&self) -> &Census {
        &self.census
    }

    /// What a device should have now.
    pub fn wanted(&self, device: &DeviceId) -> BTreeSet<ArtifactName> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).wanted(device)
    }

    /// The groups that a device is in.
    pub fn groups(&self, device: &DeviceId) -> BTreeSet<Group> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.members.get(device).map(|member| member.groups.clone()).unwrap_or_default()
    }

    /// Wakes the devices of a target, because something else than what they should have has changed for them; gives
    /// how many there are.
    pub fn touch(&self, target: &Target) -> usize {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        self.apply(&state, &BTreeSet::from([target.clone()]))
    }

    /// Wakes when something changes for the device. Ask for it before looking at what there is.
    pub fn news(&self, device: &DeviceId) -> Option<Arc<Notify>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.members.get(device).map(|member| Arc::clone(&member.news))
    }

    /// A page of a group's devices, by id.
    pub fn members(&self, group: &Group, after: Option<&DeviceId>, limit: usize) -> Vec<DeviceId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(members) = state.fleet.holders("group", group.as_str()) else {
            return Vec::new();
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        members.range::<DeviceId, _>((from, Bound::Unbounded)).take(limit).cloned().collect()
    }

    /// A device whose name is like one that nobody has: somebody mistyped it.
    pub fn resembling(&self, id: &DeviceId) -> Option<DeviceId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let known = state.members.keys().map(DeviceId::as_str);
        crate::config::nearest(id.as_str(), known, ALIKE).and_then(|known| known.parse().ok())
    }

    /// What is known of a device.
    pub fn facts(&self, device: &DeviceId) -> Option<Facts> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).fleet.get(device).cloned()
    }

    /// What a device is to us; none where it was deleted.
    pub fn standing(&self, device: &DeviceId) -> Option<Standing> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.fleet.get(device).map(|facts| facts.standing)
    }

    /// A page of the devices that a selector selects, by id; of those with one standing, if it is given.
    pub fn select(
        &self,
        selector: &Selector,
        standing: Option<Standing>,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Vec<(DeviceId, Facts)> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let selected = state.fleet.select(selector).filter(|(id, _)| after.is_none_or(|after| *id > after));
        let standing = |facts: &Facts| standing.is_none_or(|standing| facts.standing == standing);
        selected
            .filter(|(_, facts)| standing(facts))
            .take(limit)
            .map(|(id, facts)| (id.clone(), facts.clone()))
            .collect()
    }

    /// The groups that have devices, with how many.
    pub fn group_sizes(&self) -> BTreeMap<String, usize> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.fleet.groups().into_iter().map(|(group, size)| (group.to_owned(), size)).collect()
    }

    /// Takes over what a device reports of itself.
    pub fn reported(&self, id: &DeviceId, platform: &Platform, free_bytes: Option<u64>) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).fleet.reported(id, platform, free_bytes);
    }

    /// What is assigned to a device itself, of these repositories.
    pub fn own(&self, device: &DeviceId, repositories: &BTreeSet<Repository>) -> BTreeSet<ArtifactName> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let own = state.assignments.get(&Target::Device(device.clone())).into_iter().flatten();
        let own = own.filter(|(repository, _)| repositories.contains(*repository));
        own.flat_map(|(_, together)| together.keys()).cloned().collect()
    }

    /// Takes over a device that is new or has changed. Call it after the change is durable.
    pub fn device_changed(&self, device: &Device) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let id = device.id.clone();
        let groups: BTreeSet<Group> = device.groups.iter().cloned().collect();
        let news = state.members.remove(&id).map(|member| member.news).unwrap_or_default();
        state.fleet.changed(device);
        state
            .members
            .insert(id.clone(), Member { standing: device.standing, groups, entry: device.access(), news });
        self.refresh(&state, &id);
    }

    /// Forgets a device that was deleted.
    pub fn device_deleted(&self, id: &DeviceId) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.fleet.remove(id);
        if let Some(member) = state.members.remove(id) {
            member.news.notify_waiters();
        }
        self.access.remove_device(id);
        self.census.remove(id);
    }

    fn apply(&self, state: &State, targets: &BTreeSet<Target>) -> usize {
        let reached: BTreeSet<DeviceId> = targets.iter().flat_map(|target| state.reached(target)).collect();
        for device in &reached {
            self.refresh(state, device);
        }
        reached.len()
    }

    fn refresh(&self, state: &State, device: &DeviceId) {
        let Some(member) = state.members.get(device) else {
            return;
        };
        let wanted = state.wanted(device);
        let artifacts = wanted.iter().cloned().collect();
        self.census.set_device(device, member.standing, wanted);
        self.access.set_device(device.clone(), DeviceEntry { artifacts, ..member.entry.clone() });
        member.news.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
