//! The one task that changes rollouts: an operator's command, or the next step of one that is running.

use std::time::Duration;

use jiff::Timestamp;
use pki::digest::Digest;
use tokio_util::sync::CancellationToken;

#[cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the other half of one noun, in a file of its own")
)]
use super::*;
use crate::api::problem::chain;
use crate::catalog::assignments::{Assignment, Target};
use crate::catalog::waves::Verdict;
use crate::store::Batch;

/// Soak times and deadlines are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Devices that are assigned, or written down, in one batch.
const STEP: usize = 500;

impl Rollouts {
    /// Does what operators wish and what running rollouts need, until `stopping`.
    pub async fn drive(self: Arc<Self>, stopping: CancellationToken) {
        let mut asked = self.asked.lock().await;
        loop {
            for name in self.running() {
                if let Err(error) = self.advance(&name).await {
                    tracing::error!(rollout = %name, error = %chain(&error), "a rollout does not go on");
                }
            }
            if let Err(error) = self.write_down().await {
                tracing::error!(error = %chain(&error), "how devices fare could not be written down");
            }
            tokio::select! {
                command = asked.recv() => {
                    if let Some((command, by, answer)) = command {
                        // Whoever asked may have gone; what was asked is done all the same.
                        let _ = answer.send(self.obey(command, &by).await);
                    }
                }
                () = self.poke.notified() => {}
                () = tokio::time::sleep(TICK) => {}
                () = stopping.cancelled() => break,
            }
        }
        asked.close();
        if let Err(error) = self.write_down().await {
            tracing::error!(error = %chain(&error), "how devices fare could not be written down");
        }
    }

    async fn obey(&self, command: Command, by: &str) -> Result<Rollout, RolloutError> {
        let done = match command {
            Command::Create(wanted) => self.create(*wanted, by).await,
            Command::Start(name) => self.start(&name, by).await,
            Command::Approve(name) => {
                self.change(&name, "approved", by, |rollout| {
                    let may = matches!(rollout.phase, Phase::AwaitingApproval);
                    if may {
                        (rollout.phase, rollout.approved) = (Phase::Running, true);
                    }
                    may
                })
                .await
            }
            Command::Pause(name) => {
                self.change(&name, "paused", by, |rollout| {
                    let may =
                        matches!(rollout.phase, Phase::Assigning | Phase::Running | Phase::AwaitingApproval);
                    if may {
                        rollout.phase = Phase::Paused;
                    }
                    may
                })
                .await
            }
            Command::Resume(name) => self.resume(&name, by).await,
            Command::AbortKeep(name) => self.abort(&name, Phase::Aborted { reverted: false }, by).await,
            Command::AbortRevert(name) => self.abort(&name, Phase::Reverting, by).await,
            Command::Delete(name) => self.delete(&name).await,
        };
        self.tell();
        let rollout = done?;
        tracing::info!(rollout = %rollout.name, phase = rollout.phase.name(), by, "rollout changed");
        if !rollout.phase.is_live() {
            return Ok(rollout);
        }
        // What follows at once is done when it is answered: the devices of the wave are assigned.
        self.advance(&rollout.name).await?;
        self.get(&rollout.name).await
    }

    async fn create(&self, wanted: Wanted, by: &str) -> Result<Rollout, RolloutError> {
        if get_json::<Rollout>(&*self.parts.store, ROLLOUTS, wanted.name.as_str()).await?.is_some() {
            return Err(RolloutError::Exists(wanted.name));
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| RolloutError::NoRandomness)?;
        let now = self.parts.clock.now();
        let mut rollout = Rollout {
            name: wanted.name,
            id: Digest::sha256(&random).hex().chars().take(32).collect(),
            artifacts: wanted.artifacts,
            selector: wanted.selector,
            plan: wanted.plan,
            phase: Phase::Draft,
            created_at: now,
            created_by: by.to_owned(),
            wave: 0,
            ends: Vec::new(),
            began_at: now,
            met_since: None,
            approved: false,
            outcome: BTreeMap::new(),
            history: Vec::new(),
        };
        rollout.note(now, &format!("created by {by}"));
        self.store(&rollout).await?;
        Ok(rollout)
    }

    async fn start(&self, name: &RolloutName, by: &str) -> Result<Rollout, RolloutError> {
        let mut rollout = self.get(name).await?;
        if rollout.phase != Phase::Draft {
            return Err(wrong_phase(&rollout, "started"));
        }
        if let Some(revoked) = self.revoked(&rollout).await? {
            return Err(RolloutError::Revoked(revoked));
        }
        let (audience, _) = self.audience(&rollout.selector);
        let devices = audience.into_iter().map(|(device, _)| device).collect();
        let devices = waves::order(&rollout.id, devices);
        if devices.is_empty() {
            return Err(RolloutError::Nobody(rollout.selector));
        }
        if let Some(overlap) = self.overlap(&rollout.artifacts, &devices) {
            return Err(overlap);
        }
        let now = self.parts.clock.now();
        rollout.ends = rollout.plan.waves.ends(devices.len());
        let members = members(&rollout, devices, now);
        // A start that was cut short left members of a draft, which count for nothing.
        self.drop_members(name).await?;
        self.put_members(name, members.values()).await?;
        rollout.phase = Phase::Assigning;
        rollout.began_at = now;
        let what = format!("started by {by}: {} devices in {} waves", members.len(), rollout.ends.len());
        self.settle(&mut rollout, &what).await?;
        self.write_live().insert(name.clone(), Live { rollout: rollout.clone(), members });
        Ok(rollout)
    }

    async fn resume(&self, name: &RolloutName, by: &str) -> Result<Rollout, RolloutError> {
        let excused: Vec<Member> = {
            let live = self.read_live();
            let members = live.get(name).into_iter().flat_map(|one| one.members.values());
            members.filter(|member| member.condition.is_failure()).cloned().collect()
        };
        let excused: Vec<Member> =
            excused.into_iter().map(|member| Member { excused: true, ..member }).collect();
        let rollout = self.get(name).await?;
        if !matches!(rollout.phase, Phase::Paused | Phase::Halted { .. }) {
            return Err(wrong_phase(&rollout, "resumed"));
        }
        self.put_members(name, excused.iter()).await?;
        if let Some(one) = self.write_live().get_mut(name) {
            for member in excused {
                one.members.insert(member.device.clone(), member);
            }
        }
        let now = self.parts.clock.now();
        self.change(name, "resumed", by, |rollout| {
            // What was being assigned when it stopped is assigned first.
            rollout.phase = Phase::Assigning;
            (rollout.began_at, rollout.met_since) = (now, None);
            true
        })
        .await
    }

    async fn abort(&self, name: &RolloutName, to: Phase, by: &str) -> Result<Rollout, RolloutError> {
        let rollout = self
            .change(name, "aborted", by, |rollout| {
                let may = rollout.phase.is_live() && rollout.phase != Phase::Reverting;
                if may {
                    rollout.phase = to.clone();
                }
                may
            })
            .await?;
        if rollout.phase == Phase::Reverting { Ok(rollout) } else { self.retire(name, rollout).await }
    }

    async fn delete(&self, name: &RolloutName) -> Result<Rollout, RolloutError> {
        let rollout = self.get(name).await?;
        if rollout.phase.is_live() {
            return Err(wrong_phase(&rollout, "deleted"));
        }
        let mut batch = Batch::new();
        batch.delete(ROLLOUTS, name.as_str());
        self.parts.store.commit(batch).await?;
        self.drop_members(name).await?;
        Ok(rollout)
    }

    /// Changes a rollout if `edit` says that it may be.
    async fn change(
        &self,
        name: &RolloutName,
        wish: &'static str,
        by: &str,
        edit: impl FnOnce(&mut Rollout) -> bool,
    ) -> Result<Rollout, RolloutError> {
        let mut rollout = self.get(name).await?;
        let before = rollout.clone();
        if !edit(&mut rollout) {
            return Err(wrong_phase(&before, wish));
        }
        self.settle(&mut rollout, &format!("{wish} by {by}")).await?;
        Ok(rollout)
    }

    /// Stores a rollout, tells of it, and only then lets memory have it.
    async fn settle(&self, rollout: &mut Rollout, what: &str) -> Result<(), RolloutError> {
        rollout.note(self.parts.clock.now(), what);
        if !rollout.phase.is_live() {
            rollout.outcome = self.outcome(&rollout.name);
        }
        self.store(rollout).await?;
        self.parts.events.raise(Kind::Rollout, &rollout.name, what);
        if let Some(one) = self.write_live().get_mut(&rollout.name) {
            one.rollout = rollout.clone();
        }
        self.tell();
        Ok(())
    }

    async fn store(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        batch.put_json(ROLLOUTS, rollout.name.as_str(), rollout)?;
        self.parts.store.commit(batch).await
    }

    /// How the devices of a rollout fare, all waves together.
    fn outcome(&self, name: &RolloutName) -> BTreeMap<String, usize> {
        let mut outcome = BTreeMap::new();
        let waves = self.progress(name).map(|progress| progress.waves).unwrap_or_default();
        for (condition, count) in waves.into_iter().flatten() {
            *outcome.entry(condition.to_owned()).or_insert(0) += count;
        }
        outcome
    }

    /// A rollout that is over leaves memory, once it is written down how its devices fared.
    async fn retire(&self, name: &RolloutName, rollout: Rollout) -> Result<Rollout, RolloutError> {
        self.write_down().await?;
        self.write_live().remove(name);
        self.tell();
        Ok(rollout)
    }

    /// Does the steps that a rollout needs now, one after another.
    async fn advance(&self, name: &RolloutName) -> Result<(), RolloutError> {
        loop {
            let Some((mut rollout, seen)) =
                self.read_live().get(name).map(|one| (one.rollout.clone(), self.seen(one)))
            else {
                return Ok(());
            };
            match rollout.phase {
                Phase::Assigning => {
                    self.assign_wave(&rollout).await?;
                    rollout.phase = Phase::Running;
                    let what = format!("wave {} of {} has begun", rollout.wave + 1, rollout.ends.len());
                    self.settle(&mut rollout, &what).await?;
                }
                Phase::Running | Phase::AwaitingApproval => {
                    if !self.judge(&mut rollout, &seen).await? {
                        return Ok(());
                    }
                }
                Phase::Reverting => {
                    self.revert(&rollout).await?;
                    rollout.phase = Phase::Aborted { reverted: true };
                    self.settle(&mut rollout, "every device has got back what it had").await?;
                    self.retire(name, rollout).await?;
                    return Ok(());
                }
                Phase::Completed | Phase::Aborted { .. } => {
                    // Stored as over, and cut short before it left memory.
                    self.retire(name, rollout).await?;
                    return Ok(());
                }
                Phase::Draft | Phase::Paused | Phase::Halted { .. } => return Ok(()),
            }
        }
    }

    /// Judges the wave that has begun; whether there is something to do at once.
    async fn judge(&self, rollout: &mut Rollout, seen: &Seen) -> Result<bool, RolloutError> {
        if let Some(revoked) = self.revoked(rollout).await? {
            return self.halt(rollout, format!("{revoked} was revoked")).await;
        }
        let judgement = rollout.plan.judge(seen);
        let news = judgement.met_since != rollout.met_since;
        rollout.met_since = judgement.met_since;
        let succeeded = match judgement.verdict {
            Verdict::Halt(why) => return self.halt(rollout, why.to_string()).await,
            Verdict::Wait(_) => false,
            Verdict::Succeeded => true,
        };
        let next = rollout.wave + 1;
        if succeeded && rollout.is_last_wave() {
            rollout.phase = Phase::Completed;
            self.settle(rollout, "completed: every wave has succeeded").await?;
            return Ok(true);
        }
        if succeeded && (rollout.approved || !rollout.plan.needs_approval(next)) {
            rollout.phase = Phase::Assigning;
            rollout.wave = next;
            (rollout.began_at, rollout.met_since, rollout.approved) = (seen.now, None, false);
            self.settle(rollout, &format!("wave {next} has succeeded")).await?;
            return Ok(true);
        }
        let phase = if succeeded { Phase::AwaitingApproval } else { Phase::Running };
        if phase != rollout.phase {
            let what = if succeeded {
                format!("wave {next} has succeeded, and wave {} waits for approval", next + 1)
            } else {
                format!("wave {next} does no longer succeed")
            };
            rollout.phase = phase;
            self.settle(rollout, &what).await?;
        } else if news {
            self.store(rollout).await?;
            if let Some(one) = self.write_live().get_mut(&rollout.name) {
                one.rollout = rollout.clone();
            }
        }
        Ok(false)
    }

    async fn halt(&self, rollout: &mut Rollout, why: String) -> Result<bool, RolloutError> {
        tracing::error!(rollout = %rollout.name, why, "a rollout halted");
        let what = format!("halted: {why}");
        rollout.phase = Phase::Halted { why };
        self.settle(rollout, &what).await?;
        Ok(false)
    }

    async fn revoked(&self, rollout: &Rollout) -> Result<Option<ArtifactName>, RolloutError> {
        for name in &rollout.artifacts {
            let artifact = self.parts.artifacts.get(name).await?;
            if artifact.is_none_or(|artifact| artifact.revoked_at.is_some()) {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// Gives the devices of the wave what the rollout sends; those of the waves before that were left half-way too.
    async fn assign_wave(&self, rollout: &Rollout) -> Result<(), RolloutError> {
        let repositories = repositories(rollout);
        let reached: Vec<Member> = {
            let live = self.read_live();
            let members = live.get(&rollout.name).into_iter().flat_map(|one| one.members.values());
            members.filter(|member| member.wave <= rollout.wave).cloned().collect()
        };
        for chunk in reached.chunks(STEP) {
            let mut chunk = chunk.to_vec();
            let now = self.parts.clock.now();
            for member in chunk.iter_mut().filter(|member| member.assigned_at.is_none()) {
                // What it had is stored before it gets something else.
                member.before = self.parts.assignments.own(&member.device, &repositories);
                member.assigned_at = Some(now);
                member.condition = Condition::Waiting { why: None };
                member.since = now;
                self.catch_up(rollout, member).await?;
            }
            self.put_members(&rollout.name, chunk.iter()).await?;
            self.assign(rollout, &repositories, &chunk, now).await?;
            if let Some(one) = self.write_live().get_mut(&rollout.name) {
                for member in chunk {
                    // What it has reported meanwhile is newer.
                    one.members.entry(member.device.clone()).and_modify(|held| {
                        if held.assigned_at.is_none() {
                            *held = member;
                        }
                    });
                }
            }
            self.tell();
        }
        Ok(())
    }

    async fn assign(
        &self,
        rollout: &Rollout,
        repositories: &BTreeSet<Repository>,
        chunk: &[Member],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut assignments = Vec::new();
        for member in chunk {
            // What somebody has assigned to the device since is not ours to undo.
            if self.parts.assignments.own(&member.device, repositories) != member.before {
                continue;
            }
            assignments.extend(rollout.artifacts.iter().map(|artifact| Assignment {
                target: Target::Device(member.device.clone()),
                artifact: artifact.clone(),
                assigned_at: now,
                assigned_by: rollout.assigns_as(),
            }));
        }
        self.parts.assignments.assign(assignments).await.map(drop)
    }

    /// Gives the devices back what they had of their own; who had nothing of its own has what its groups have.
    async fn revert(&self, rollout: &Rollout) -> Result<(), RolloutError> {
        let repositories = repositories(rollout);
        let members: Vec<Member> = {
            let live = self.read_live();
            let members = live.get(&rollout.name).into_iter().flat_map(|one| one.members.values());
            members.filter(|member| member.assigned_at.is_some()).cloned().collect()
        };
        let now = self.parts.clock.now();
        for chunk in members.chunks(STEP) {
            let (mut take, mut give) = (Vec::new(), Vec::new());
            for member in chunk {
                let own = self.parts.assignments.own(&member.device, &repositories);
                // What somebody has assigned to the device since stays; what was revoked has gone.
                if own != rollout.artifacts && !own.is_empty() {
                    continue;
                }
                let target = Target::Device(member.device.clone());
                let mut given = BTreeSet::new();
                for artifact in &member.before {
                    let held = self.parts.artifacts.get(artifact).await?;
                    if held.is_some_and(|held| held.revoked_at.is_none()) {
                        given.insert(artifact.repository());
                        give.push(Assignment {
                            target: target.clone(),
                            artifact: artifact.clone(),
                            assigned_at: now,
                            assigned_by: rollout.assigns_as(),
                        });
                    }
                }
                // Assigning replaces what there is of a repository; only what nothing replaces is taken back.
                let left = own.iter().filter(|artifact| !given.contains(artifact.repository()));
                take.extend(left.map(|artifact| (target.clone(), artifact.clone())));
            }
            self.parts.assignments.assign(give).await?;
            self.parts.assignments.unassign(&take).await?;
        }
        Ok(())
    }

    /// Writes down how devices fare.
    async fn write_down(&self) -> Result<(), StoreError> {
        let unwritten = std::mem::take(&mut *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner));
        let mut batch = Batch::new();
        {
            let live = self.read_live();
            for (name, device) in &unwritten {
                if let Some(member) = live.get(name).and_then(|one| one.members.get(device)) {
                    batch.put_json(MEMBERS, &member_key(name, device), member)?;
                }
            }
        }
        if unwritten.is_empty() { Ok(()) } else { self.parts.store.commit(batch).await }
    }

    async fn put_members<'a>(
        &self,
        name: &RolloutName,
        members: impl Iterator<Item = &'a Member>,
    ) -> Result<(), StoreError> {
        let members: Vec<&Member> = members.collect();
        for chunk in members.chunks(STEP) {
            let mut batch = Batch::new();
            for member in chunk {
                batch.put_json(MEMBERS, &member_key(name, &member.device), member)?;
            }
            self.parts.store.commit(batch).await?;
        }
        Ok(())
    }

    async fn drop_members(&self, name: &RolloutName) -> Result<(), RolloutError> {
        loop {
            let page = self.stored_members(name, None, STEP).await?;
            if page.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for member in &page {
                batch.delete(MEMBERS, &member_key(name, &member.device));
            }
            self.parts.store.commit(batch).await?;
        }
    }
}

fn repositories(rollout: &Rollout) -> BTreeSet<Repository> {
    rollout.artifacts.iter().map(|artifact| artifact.repository().clone()).collect()
}

fn members(rollout: &Rollout, devices: Vec<DeviceId>, now: Timestamp) -> BTreeMap<DeviceId, Member> {
    let wave_of = |place: usize| rollout.ends.iter().take_while(|end| **end <= place).count();
    let members = devices.into_iter().enumerate().map(|(place, device)| Member {
        device,
        wave: wave_of(place),
        before: BTreeSet::new(),
        assigned_at: None,
        condition: Condition::Pending,
        since: now,
        excused: false,
    });
    members.map(|member| (member.device.clone(), member)).collect()
}

fn wrong_phase(rollout: &Rollout, wish: &'static str) -> RolloutError {
    RolloutError::Phase { name: rollout.name.clone(), phase: rollout.phase.name(), wish }
}
