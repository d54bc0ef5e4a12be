//! Rollouts: artifacts sent to many devices, wave by wave.
//!
//! A rollout drives assignments; what a device should have is said by [`super::assignments`] and nowhere else. One task
//! owns every change: operators' commands and the steps of running rollouts go through it one after another, and each is
//! stored before it has an effect. Steps may run twice: after a crash the task does the last one again. How devices fare
//! follows from their reports, is kept in memory and written down by the same task.

mod driver;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use jiff::Timestamp;
use pki::oci::{ArtifactName, Repository};
use pki::wire::Report;
use pki::x509::DeviceId;
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use self::record::{Member, Phase, Rollout, RolloutName, RolloutNameError, Step};
use super::artifacts::Artifacts;
use super::assignments::Assignments;
use super::devices::{Devices, DevicesError, Standing};
use super::events::{Events, Kind};
use super::fleet::Facts;
use super::selector::Selector;
use super::waves::{self, Condition, Plan, Seen, Tally};
use crate::clock::Clock;
use crate::store::{Scan, Store, StoreError, Table, get_json, scan_json};

/// The key is the rollout's name.
const ROLLOUTS: Table = Table("rollouts");
/// The key is `ROLLOUT/DEVICE`.
const MEMBERS: Table = Table("rollout-members");

/// Commands that wait for their turn.
const MAX_COMMANDS: usize = 64;

/// Why an operator's wish about rollouts is not done.
#[derive(Debug, Error)]
pub enum RolloutError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records of devices.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// No such rollout.
    #[error("no rollout {0} (facade rollout list)")]
    NotFound(RolloutName),
    /// There is one of that name.
    #[error("there is a rollout {0} already; delete it, or take another name")]
    Exists(RolloutName),
    /// It is not in a phase in which that can be done.
    #[error("rollout {name} is {phase}, so it cannot be {wish}")]
    Phase {
        /// The rollout.
        name: RolloutName,
        /// Where it stands.
        phase: &'static str,
        /// What was wished.
        wish: &'static str,
    },
    /// Nobody would get it.
    #[error("the selector {0} selects no active device (facade device list --selector)")]
    Nobody(Selector),
    /// Another rollout has some of its devices.
    #[error(
        "{device} and {others} other devices are in rollout {other}, which sends another version of {repository}; wait for its end, or abort it"
    )]
    Overlap {
        /// One of the devices.
        device: DeviceId,
        /// How many more.
        others: usize,
        /// The other rollout.
        other: RolloutName,
        /// What both send.
        repository: Repository,
    },
    /// What it sends was revoked.
    #[error("{0} is revoked")]
    Revoked(ArtifactName),
    /// The facade stops.
    #[error("the facade is stopping")]
    Stopping,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a rollout")]
    NoRandomness,
}

/// A rollout to be made.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: RolloutName,
    /// What it sends.
    pub artifacts: BTreeSet<ArtifactName>,
    /// To which devices.
    pub selector: Selector,
    /// How.
    pub plan: Plan,
}

/// What an operator wishes.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it, without starting it.
    Create(Box<Wanted>),
    /// Choose its devices and begin the first wave.
    Start(RolloutName),
    /// Let the next wave begin.
    Approve(RolloutName),
    /// Begin no further wave, and halt for nothing.
    Pause(RolloutName),
    /// Go on; failures so far no longer count.
    Resume(RolloutName),
    /// End it; devices keep what they have been assigned.
    AbortKeep(RolloutName),
    /// End it; devices get back what they had.
    AbortRevert(RolloutName),
    /// Forget one that is not running.
    Delete(RolloutName),
}

/// Devices, and what is known of them.
pub type Selected = Vec<(DeviceId, Facts)>;

type Asked = (Command, String, oneshot::Sender<Result<Rollout, RolloutError>>);

/// What rollouts work with.
pub struct Parts {
    /// Where they are kept.
    pub store: Arc<dyn Store>,
    /// What devices should have.
    pub assignments: Arc<Assignments>,
    /// What can be sent.
    pub artifacts: Artifacts,
    /// What devices reported.
    pub devices: Devices,
    /// Who is told.
    pub events: Events,
    /// The time.
    pub clock: Clock,
}

/// The rollouts.
pub struct Rollouts {
    parts: Parts,
    live: RwLock<BTreeMap<RolloutName, Live>>,
    /// Devices whose condition is not written down yet.
    unwritten: Mutex<BTreeSet<(RolloutName, DeviceId)>>,
    poke: Notify,
    progress: watch::Sender<u64>,
    commands: mpsc::Sender<Asked>,
    asked: tokio::sync::Mutex<mpsc::Receiver<Asked>>,
}

/// A rollout that has begun and is not over.
struct Live {
    rollout: Rollout,
    members: BTreeMap<DeviceId, Member>,
}

/// How far a rollout is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Devices by condition, for each wave.
    pub waves: Vec<BTreeMap<&'static str, usize>>,
    /// What it waits for, in words.
    pub waits_for: Option<String>,
}

impl Rollouts {
    /// Reads the rollouts; nothing happens until [`Rollouts::drive`].
    pub async fn load(parts: Parts) -> Result<Self, RolloutError> {
        let (commands, asked) = mpsc::channel(MAX_COMMANDS);
        let rollouts = Self {
            parts,
            live: RwLock::default(),
            unwritten: Mutex::default(),
            poke: Notify::new(),
            progress: watch::Sender::new(0),
            commands,
            asked: tokio::sync::Mutex::new(asked),
        };
        let all = scan_json::<Rollout>(&*rollouts.parts.store, ROLLOUTS, Scan::ALL).await?;
        for (_, rollout) in all.into_iter().filter(|(_, rollout)| rollout.phase.is_live()) {
            let members = rollouts.stored_members(&rollout.name, None, usize::MAX).await?;
            let mut members: BTreeMap<DeviceId, Member> =
                members.into_iter().map(|member| (member.device.clone(), member)).collect();
            for member in members.values_mut() {
                rollouts.catch_up(&rollout, member).await?;
            }
            rollouts.write_live().insert(rollout.name.clone(), Live { rollout, members });
        }
        Ok(rollouts)
    }

    /// Takes in what a device reported while nobody looked.
    async fn catch_up(&self, rollout: &Rollout, member: &mut Member) -> Result<(), RolloutError> {
        let Some(assigned_at) = member.assigned_at else {
            return Ok(());
        };
        let Some(received) = self.parts.devices.report(&member.device).await? else {
            return Ok(());
        };
        let condition = waves::observe(&member.condition, &rollout.artifacts, &received.report);
        // What it said before it was assigned says nothing of this time, but that it has it already.
        if received.at >= assigned_at || condition == Condition::Healthy {
            member.condition = condition;
        }
        Ok(())
    }

    /// Does what an operator wishes.
    pub async fn command(&self, command: Command, by: &str) -> Result<Rollout, RolloutError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.commands.send((command, by.to_owned(), answer)).await;
        sent.map_err(|_| RolloutError::Stopping)?;
        answered.await.map_err(|_| RolloutError::Stopping)?
    }

    /// Takes in what a device reports.
    pub fn observe(&self, report: &Report, now: Timestamp) {
        let mut live = self.write_live();
        let mut told = false;
        for (name, one) in &mut *live {
            let Some(member) = one.members.get_mut(&report.device) else {
                continue;
            };
            if member.assigned_at.is_none() {
                continue;
            }
            let condition = waves::observe(&member.condition, &one.rollout.artifacts, report);
            if condition == member.condition {
                continue;
            }
            told = true;
            if condition.name() != member.condition.name() {
                member.since = now;
                self.unwritten
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert((name.clone(), report.device.clone()));
                if let Condition::Failed { why } | Condition::RolledBack { why } = &condition {
                    let detail = format!("{} in rollout {name}: {why}", condition.name());
                    self.parts.events.raise_by(&report.device, Kind::RolloutDevice, detail);
                }
                self.poke.notify_one();
            }
            member.condition = condition;
        }
        drop(live);
        if told {
            self.tell();
        }
    }

    /// Wakes with every change of how rollouts and their devices fare.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    fn tell(&self) {
        self.progress.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// One rollout.
    pub async fn get(&self, name: &RolloutName) -> Result<Rollout, RolloutError> {
        let found = get_json(&*self.parts.store, ROLLOUTS, name.as_str()).await?;
        found.ok_or_else(|| RolloutError::NotFound(name.clone()))
    }

    /// A page of rollouts, by name.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Rollout>, RolloutError> {
        let page = scan_json(&*self.parts.store, ROLLOUTS, Scan { prefix: "", after, limit }).await?;
        Ok(page.into_iter().map(|(_, rollout)| rollout).collect())
    }

    /// The names of those that are running.
    pub fn running(&self) -> Vec<RolloutName> {
        self.read_live().keys().cloned().collect()
    }

    /// How far a rollout is; none if it has not begun or is over.
    pub fn progress(&self, name: &RolloutName) -> Option<Progress> {
        let live = self.read_live();
        let one = live.get(name)?;
        let mut waves = vec![BTreeMap::new(); one.rollout.ends.len()];
        for member in one.members.values() {
            if let Some(wave) = waves.get_mut(member.wave) {
                *wave.entry(member.condition.name()).or_insert(0) += 1;
            }
        }
        Some(Progress { waves, waits_for: self.waits_for(one) })
    }

    fn waits_for(&self, one: &Live) -> Option<String> {
        let wave = one.rollout.wave + 1;
        match &one.rollout.phase {
            Phase::Running => match one.rollout.plan.judge(&self.seen(one)).verdict {
                waves::Verdict::Wait(waiting) => Some(format!("wave {wave} waits for {waiting}")),
                waves::Verdict::Succeeded | waves::Verdict::Halt(_) => None,
            },
            Phase::AwaitingApproval => Some(format!(
                "wave {wave} has succeeded, and wave {} waits for approval (facade rollout approve {})",
                wave + 1,
                one.rollout.name
            )),
            Phase::Paused => {
                Some(format!("somebody to resume it (facade rollout resume {})", one.rollout.name))
            }
            Phase::Halted { why } => Some(format!(
                "it halted: {why} (facade rollout resume {name}, or abort {name} --revert)",
                name = one.rollout.name
            )),
            Phase::Draft | Phase::Assigning | Phase::Reverting | Phase::Completed | Phase::Aborted { .. } => {
                None
            }
        }
    }

    fn seen(&self, one: &Live) -> Seen {
        let (mut wave, mut failed, mut devices) = (Tally::default(), 0, 0);
        for member in one.members.values() {
            if self.is_gone(&member.device) {
                continue;
            }
            devices += 1;
            if member.wave > one.rollout.wave || member.excused && member.condition.is_failure() {
                continue;
            }
            failed += usize::from(member.condition.is_failure());
            if member.wave == one.rollout.wave {
                wave.devices += 1;
                wave.healthy += usize::from(member.condition == Condition::Healthy);
                wave.failed += usize::from(member.condition.is_failure());
            }
        }
        let Rollout { began_at, met_since, .. } = one.rollout;
        Seen { wave, failed, devices, began_at, met_since, now: self.parts.clock.now() }
    }

    /// Whether a device will never have it: it was deleted, or turned away for good.
    fn is_gone(&self, device: &DeviceId) -> bool {
        self.parts.assignments.standing(device).is_none_or(|standing| standing == Standing::Revoked)
    }

    /// A page of a rollout's devices, by id.
    pub async fn members(
        &self,
        name: &RolloutName,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Member>, RolloutError> {
        {
            let live = self.read_live();
            if let Some(one) = live.get(name) {
                let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
                let page = one.members.range::<DeviceId, _>((from, std::ops::Bound::Unbounded));
                return Ok(page.take(limit).map(|(_, member)| member.clone()).collect());
            }
        }
        self.stored_members(name, after, limit).await
    }

    async fn stored_members(
        &self,
        name: &RolloutName,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Member>, RolloutError> {
        let (prefix, after) = (format!("{name}/"), after.map(|device| member_key(name, device)));
        let scan = Scan { prefix: &prefix, after: after.as_deref(), limit };
        let page = scan_json(&*self.parts.store, MEMBERS, scan).await?;
        Ok(page.into_iter().map(|(_, member)| member).collect())
    }

    /// The active devices that a selector selects, and those that are not active, with what they are.
    pub fn audience(&self, selector: &Selector) -> (Selected, Selected) {
        let selected = self.parts.assignments.select(selector, None, None, usize::MAX);
        selected.into_iter().partition(|(_, facts)| facts.standing == Standing::Active)
    }

    /// A rollout that is running and sends another version of the same to some of these devices.
    pub fn overlap(&self, artifacts: &BTreeSet<ArtifactName>, devices: &[DeviceId]) -> Option<RolloutError> {
        let live = self.read_live();
        for (other, one) in &*live {
            let mut repositories = one.rollout.artifacts.iter().map(ArtifactName::repository);
            let sends_too = |theirs: &&Repository| artifacts.iter().any(|ours| ours.repository() == *theirs);
            let Some(repository) = repositories.find(sends_too) else {
                continue;
            };
            let mut shared = devices.iter().filter(|device| one.members.contains_key(*device));
            if let Some(device) = shared.next() {
                return Some(RolloutError::Overlap {
                    device: device.clone(),
                    others: shared.count(),
                    other: other.clone(),
                    repository: repository.clone(),
                });
            }
        }
        None
    }

    fn read_live(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<RolloutName, Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_live(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<RolloutName, Live>> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn member_key(name: &RolloutName, device: &DeviceId) -> String {
    format!("{name}/{device}")
}

#[cfg(test)]
mod tests;
