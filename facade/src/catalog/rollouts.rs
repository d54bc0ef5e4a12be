//! What each device should have: assignments of artifacts to devices and groups.
//!
//! A target has at most one artifact of a repository: assigning another replaces it. A device's own assignment wins over
//! its groups', and among its groups the newest wins. The answer for one device is computed from memory; the store is
//! written before memory changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use pki::oci::{ArtifactName, Repository};
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::access::{Access, DeviceEntry};
use super::devices::{Device, Group};
use crate::store::{Batch, Scan, Store, StoreError, Table, scan_json};

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
    fn key(&self) -> String {
        key(&self.target, self.artifact.repository())
    }
}

fn key(target: &Target, repository: &Repository) -> String {
    format!("{target}/{repository}")
}

/// An assignment that was made or taken back, and the one it replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The assignment.
    pub assignment: Assignment,
    /// What the target had of the same repository before.
    pub replaces: Option<ArtifactName>,
}

/// The assignments, and the devices they reach.
pub struct Rollouts {
    store: Arc<dyn Store>,
    access: Arc<Access>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    assignments: BTreeMap<Target, BTreeMap<Repository, Assignment>>,
    members: HashMap<DeviceId, Member>,
    groups: HashMap<Group, BTreeSet<DeviceId>>,
}

struct Member {
    groups: BTreeSet<Group>,
    entry: DeviceEntry,
    news: Arc<Notify>,
}

impl State {
    fn wanted(&self, device: &DeviceId) -> BTreeSet<ArtifactName> {
        let groups = self
            .members
            .get(device)
            .into_iter()
            .flat_map(|member| &member.groups);
        let mut newest: BTreeMap<&Repository, &Assignment> = BTreeMap::new();
        for (repository, assignment) in groups
            .filter_map(|group| self.assignments.get(&Target::Group(group.clone())))
            .flatten()
        {
            let held = newest.entry(repository).or_insert(assignment);
            if assignment.assigned_at > held.assigned_at {
                *held = assignment;
            }
        }
        newest.extend(
            self.assignments
                .get(&Target::Device(device.clone()))
                .into_iter()
                .flatten(),
        );
        newest
            .into_values()
            .map(|assignment| assignment.artifact.clone())
            .collect()
    }

    fn reached(&self, target: &Target) -> Vec<DeviceId> {
        match target {
            Target::Device(device) => vec![device.clone()],
            Target::Group(group) => self.groups.get(group).into_iter().flatten().cloned().collect(),
        }
    }
}

impl Rollouts {
    /// Reads the assignments; devices are made known with [`Rollouts::device_changed`].
    pub async fn load(store: Arc<dyn Store>, access: Arc<Access>) -> Result<Self, StoreError> {
        let mut state = State::default();
        for (_, assignment) in scan_json::<Assignment>(&*store, TABLE, Scan::ALL).await? {
            let repository = assignment.artifact.repository().clone();
            state
                .assignments
                .entry(assignment.target.clone())
                .or_default()
                .insert(repository, assignment);
        }
        Ok(Self {
            store,
            access,
            state: RwLock::new(state),
        })
    }

    /// Assigns artifacts, and gives the changes and how many devices they reach.
    pub async fn assign(&self, assignments: Vec<Assignment>) -> Result<(Vec<Change>, usize), StoreError> {
        let mut batch = Batch::new();
        for assignment in &assignments {
            batch.put_json(TABLE, &assignment.key(), assignment)?;
        }
        self.store.commit(batch).await?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut changes = Vec::new();
        for assignment in assignments {
            let held = state.assignments.entry(assignment.target.clone()).or_default();
            let before = held.insert(assignment.artifact.repository().clone(), assignment.clone());
            let replaces = before
                .map(|before| before.artifact)
                .filter(|before| *before != assignment.artifact);
            changes.push(Change { assignment, replaces });
        }
        let targets = changes
            .iter()
            .map(|change| change.assignment.target.clone())
            .collect();
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
            let find = |(target, artifact): &(Target, ArtifactName)| {
                let held = state.assignments.get(target)?.get(artifact.repository())?;
                (held.artifact == *artifact).then(|| held.clone())
            };
            wanted.iter().filter_map(find).collect()
        };
        let mut batch = Batch::new();
        for assignment in &found {
            batch.delete(TABLE, &assignment.key());
        }
        self.store.commit(batch).await?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for assignment in &found {
            if let Some(held) = state.assignments.get_mut(&assignment.target) {
                held.remove(assignment.artifact.repository());
            }
        }
        let targets = found.iter().map(|assignment| assignment.target.clone()).collect();
        let reached = self.apply(&state, &targets);
        Ok((
            found
                .into_iter()
                .map(|assignment| Change {
                    assignment,
                    replaces: None,
                })
                .collect(),
            reached,
        ))
    }

    /// Takes back every assignment of an artifact.
    pub async fn withdraw(&self, artifact: &ArtifactName) -> Result<usize, StoreError> {
        let wanted: Vec<(Target, ArtifactName)> = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let all = state.assignments.values().flat_map(BTreeMap::values);
            all.filter(|held| held.artifact == *artifact)
                .map(|held| (held.target.clone(), artifact.clone()))
                .collect()
        };
        self.unassign(&wanted).await.map(|(changes, _)| changes.len())
    }

    /// A page of assignments, ordered by target and repository, after the one with key `after`.
    pub async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Assignment)>, StoreError> {
        scan_json(
            &*self.store,
            TABLE,
            Scan {
                prefix: "",
                after,
                limit,
            },
        )
        .await
    }

    /// What a device should have now.
    pub fn wanted(&self, device: &DeviceId) -> BTreeSet<ArtifactName> {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .wanted(device)
    }

    /// Wakes when something changes for the device. Ask for it before looking at what there is.
    pub fn news(&self, device: &DeviceId) -> Option<Arc<Notify>> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.members.get(device).map(|member| Arc::clone(&member.news))
    }

    /// A page of a group's devices, by id.
    pub fn members(&self, group: &Group, after: Option<&DeviceId>, limit: usize) -> Vec<DeviceId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(members) = state.groups.get(group) else {
            return Vec::new();
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        members
            .range::<DeviceId, _>((from, Bound::Unbounded))
            .take(limit)
            .cloned()
            .collect()
    }

    /// Takes over a device that is new or has changed. Call it after the change is durable.
    pub fn device_changed(&self, device: &Device) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let id = device.id.clone();
        let groups: BTreeSet<Group> = device.groups.iter().cloned().collect();
        let (before, news) = match state.members.remove(&id) {
            Some(member) => (member.groups, member.news),
            None => (BTreeSet::new(), Arc::default()),
        };
        for group in before.difference(&groups) {
            if let Some(members) = state.groups.get_mut(group) {
                members.remove(&id);
            }
        }
        for group in &groups {
            state.groups.entry(group.clone()).or_default().insert(id.clone());
        }
        state.members.insert(
            id.clone(),
            Member {
                groups,
                entry: device.access(),
                news,
            },
        );
        self.refresh(&state, &id);
    }

    /// Forgets a device that was deleted.
    pub fn device_deleted(&self, id: &DeviceId) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = state.members.remove(id) {
            for group in &member.groups {
                if let Some(members) = state.groups.get_mut(group) {
                    members.remove(id);
                }
            }
            member.news.notify_waiters();
        }
        self.access.remove_device(id);
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
        let artifacts = state.wanted(device).into_iter().collect();
        self.access.set_device(
            device.clone(),
            DeviceEntry {
                artifacts,
                ..member.entry.clone()
            },
        );
        member.news.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
