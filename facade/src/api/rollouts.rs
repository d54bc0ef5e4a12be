//! `/api/v1/rollouts`

mod preview;

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use pki::x509::DeviceId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Role};
use super::extract::{Body, Paging, Path, Query, field};
use super::problem::Problem;
use super::types::{
    AbortRequest, Page, Rollout, RolloutDevice, RolloutPreview, RolloutRequest, RolloutStep, Wave,
};
use super::{Answer, State};
use crate::catalog::devices::Standing;
use crate::catalog::rollouts::{self, Command, Member, Phase, RolloutError, RolloutName, Wanted};
use crate::catalog::waves::{Approval, Condition, Plan};

/// Most artifacts of one rollout.
const MAX_ARTIFACTS: usize = 100;
/// How many devices one look for those in a state reads.
const STEP: usize = 1000;

impl From<RolloutError> for Problem {
    fn from(error: RolloutError) -> Self {
        match error {
            RolloutError::NotFound(_) => Self::not_found(error.to_string()),
            RolloutError::Exists(_)
            | RolloutError::Phase { .. }
            | RolloutError::Overlap { .. }
            | RolloutError::Nobody(_)
            | RolloutError::Revoked(_) => Self::conflict(error.to_string()),
            RolloutError::Stopping => Self::busy(error.to_string()),
            RolloutError::Store(error) => error.into(),
            RolloutError::Devices(error) => error.into(),
            RolloutError::NoRandomness => Self::internal(&error),
        }
    }
}

/// Lists the rollouts
#[utoipa::path(get, path = "/api/v1/rollouts", params(Paging), tag = "rollouts",
    responses((status = 200, body = Page<Rollout>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Answer<Page<Rollout>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let rollouts = state.rollouts.list(paging.after.as_deref(), limit).await?;
    let next = rollouts.last().filter(|_| rollouts.len() == limit).map(|last| last.name.to_string());
    Ok(Json(Page { items: rollouts.into_iter().map(|rollout| view(&state, rollout)).collect(), next }))
}

/// Makes a rollout, without starting it
#[utoipa::path(post, path = "/api/v1/rollouts", request_body = RolloutRequest, tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    state: State,
    caller: Caller,
    Body(request): Body<RolloutRequest>,
) -> Answer<Rollout> {
    caller.require(Role::Operator)?;
    let wanted = parse(&state, &request).await?;
    command(&state, &caller, Command::Create(Box::new(wanted))).await
}

/// Says what a rollout would do, without making it
#[utoipa::path(post, path = "/api/v1/rollouts/preview", request_body = RolloutRequest, tag = "rollouts",
    responses((status = 200, body = RolloutPreview), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn preview(
    state: State,
    caller: Caller,
    Body(request): Body<RolloutRequest>,
) -> Answer<RolloutPreview> {
    caller.require(Role::Operator)?;
    let wanted = parse(&state, &request).await?;
    Ok(Json(preview::of(&state, &wanted, None).await?))
}

/// Shows one rollout
#[utoipa::path(get, path = "/api/v1/rollouts/{name}", params(("name" = String, Path, description = "The rollout")), tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn show(state: State, caller: Caller, Path(name): Path<String>) -> Answer<Rollout> {
    caller.require(Role::Viewer)?;
    let rollout = state.rollouts.get(&field("name", &name)?).await?;
    Ok(Json(view(&state, rollout)))
}

/// Says what a rollout that was made would do if it were started now
#[utoipa::path(get, path = "/api/v1/rollouts/{name}/preview", params(("name" = String, Path, description = "The rollout")), tag = "rollouts",
    responses((status = 200, body = RolloutPreview), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn preview_of(
    state: State,
    caller: Caller,
    Path(name): Path<String>,
) -> Answer<RolloutPreview> {
    caller.require(Role::Viewer)?;
    let rollouts::Rollout { name, id, artifacts, selector, plan, .. } =
        state.rollouts.get(&field("name", &name)?).await?;
    Ok(Json(preview::of(&state, &Wanted { name, artifacts, selector, plan }, Some(&id)).await?))
}

/// Which devices of a rollout.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DevicesQuery {
    /// Only those in this state: `failed`, `waiting`…
    state: Option<String>,
}

/// Lists the devices of a rollout, and how they fare
#[utoipa::path(get, path = "/api/v1/rollouts/{name}/devices", params(("name" = String, Path, description = "The rollout"), DevicesQuery, Paging), tag = "rollouts",
    responses((status = 200, body = Page<RolloutDevice>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn devices(
    state: State,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<DevicesQuery>,
    Query(paging): Query<Paging>,
) -> Answer<Page<RolloutDevice>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let name: RolloutName = field("name", &name)?;
    state.rollouts.get(&name).await?;
    let mut after: Option<DeviceId> = paging.after.as_deref().map(|text| field("after", text)).transpose()?;
    let mut items = Vec::new();
    let next = loop {
        let page = state.rollouts.members(&name, after.as_ref(), STEP).await?;
        let full = page.len() == STEP;
        for member in page {
            after = Some(member.device.clone());
            if query.state.as_deref().is_none_or(|wanted| member.condition.name() == wanted) {
                items.push(member);
            }
            if items.len() == limit {
                break;
            }
        }
        if items.len() == limit {
            break after.as_ref().map(ToString::to_string);
        }
        if !full {
            break None;
        }
    };
    let mut shown = Vec::new();
    for member in items {
        shown.push(device_view(&state, member).await?);
    }
    Ok(Json(Page { items: shown, next }))
}

/// Chooses the devices and begins the first wave
#[utoipa::path(post, path = "/api/v1/rollouts/{name}/start", params(("name" = String, Path, description = "The rollout")), tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn start(state: State, caller: Caller, Path(name): Path<String>) -> Answer<Rollout> {
    caller.require(Role::Operator)?;
    command(&state, &caller, Command::Start(field("name", &name)?)).await
}

/// Lets the next wave begin
#[utoipa::path(post, path = "/api/v1/rollouts/{name}/approve", params(("name" = String, Path, description = "The rollout")), tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn approve(state: State, caller: Caller, Path(name): Path<String>) -> Answer<Rollout> {
    caller.require(Role::Operator)?;
    command(&state, &caller, Command::Approve(field("name", &name)?)).await
}

/// Holds a rollout: no further wave begins
#[utoipa::path(post, path = "/api/v1/rollouts/{name}/pause", params(("name" = String, Path, description = "The rollout")), tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn pause(state: State, caller: Caller, Path(name): Path<String>) -> Answer<Rollout> {
    caller.require(Role::Operator)?;
    command(&state, &caller, Command::Pause(field("name", &name)?)).await
}

/// Lets a rollout that was paused or halted go on; failures so far no longer count
#[utoipa::path(post, path = "/api/v1/rollouts/{name}/resume", params(("name" = String, Path, description = "The rollout")), tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn resume(state: State, caller: Caller, Path(name): Path<String>) -> Answer<Rollout> {
    caller.require(Role::Operator)?;
    command(&state, &caller, Command::Resume(field("name", &name)?)).await
}

/// Ends a rollout; its devices keep what they have been assigned, or get back what they had
#[utoipa::path(post, path = "/api/v1/rollouts/{name}/abort", params(("name" = String, Path, description = "The rollout")), request_body = AbortRequest, tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn abort(
    state: State,
    caller: Caller,
    Path(name): Path<String>,
    Body(request): Body<AbortRequest>,
) -> Answer<Rollout> {
    caller.require(Role::Operator)?;
    let name = field("name", &name)?;
    let wish = match request.devices.as_str() {
        "keep" => Command::AbortKeep(name),
        "revert" => Command::AbortRevert(name),
        _ => return Err(Problem::invalid("devices", "must be \"keep\" or \"revert\"")),
    };
    command(&state, &caller, wish).await
}

/// Forgets a rollout that is not running; what it has assigned stays
#[utoipa::path(delete, path = "/api/v1/rollouts/{name}", params(("name" = String, Path, description = "The rollout")), tag = "rollouts",
    responses((status = 200, body = Rollout), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete(state: State, caller: Caller, Path(name): Path<String>) -> Answer<Rollout> {
    caller.require(Role::Operator)?;
    command(&state, &caller, Command::Delete(field("name", &name)?)).await
}

async fn command(state: &State, caller: &Caller, command: Command) -> Answer<Rollout> {
    let rollout = state.rollouts.command(command, &caller.name).await?;
    Ok(Json(view(state, rollout)))
}

async fn parse(state: &State, request: &RolloutRequest) -> Result<Wanted, Problem> {
    if request.artifacts.is_empty() || request.artifacts.len() > MAX_ARTIFACTS {
        return Err(Problem::invalid("artifacts", format!("must be 1 to {MAX_ARTIFACTS} artifacts")));
    }
    if !(1..=100).contains(&request.success_percent) {
        return Err(Problem::invalid("success_percent", "must be between 1 and 100"));
    }
    let approval = match request.approve.as_str() {
        "each" => Approval::Each,
        "first" => Approval::First,
        "none" => Approval::None,
        _ => return Err(Problem::invalid("approve", "must be \"each\", \"first\" or \"none\"")),
    };
    let plan = Plan {
        waves: field("waves", &request.waves)?,
        approval,
        success_percent: request.success_percent,
        min_sample: request.min_sample,
        failure_budget: request
            .failure_budget
            .as_deref()
            .map(|text| field("failure_budget", text))
            .transpose()?,
        soak_seconds: request.soak_seconds,
        deadline_seconds: request.deadline_seconds,
    };
    let (name, selector) = (field("name", &request.name)?, field("to", &request.to)?);
    let mut artifacts = BTreeSet::new();
    for text in &request.artifacts {
        let artifact = state.artifacts.find(text).await?;
        if artifact.revoked_at.is_some() {
            return Err(Problem::conflict(format!("{} is revoked", artifact.name())));
        }
        artifacts.insert(artifact.name().clone());
    }
    Ok(Wanted { name, artifacts, selector, plan })
}

fn counts<K: ToString>(counts: impl IntoIterator<Item = (K, usize)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, count) in counts {
        *sums.entry(name.to_string()).or_insert(0) += count as u64;
    }
    sums
}

fn view(state: &State, rollout: rollouts::Rollout) -> Rollout {
    let progress = state.rollouts.progress(&rollout.name);
    let states = match &progress {
        Some(progress) => counts(progress.waves.iter().flatten().map(|(name, count)| (*name, *count))),
        None => counts(rollout.outcome.clone()),
    };
    let begins = std::iter::once(&0).chain(&rollout.ends);
    let waves = begins.zip(&rollout.ends).enumerate().map(|(index, (begin, end))| Wave {
        number: index as u64 + 1,
        stage: stage(&rollout, index).to_owned(),
        devices: end.saturating_sub(*begin) as u64,
        states: progress
            .as_ref()
            .and_then(|progress| progress.waves.get(index))
            .map(|wave| counts(wave.clone()))
            .unwrap_or_default(),
    });
    Rollout {
        waves: waves.collect(),
        state: rollout.phase.name().to_owned(),
        waits_for: progress.and_then(|progress| progress.waits_for),
        artifacts: rollout.artifacts.iter().map(ToString::to_string).collect(),
        to: rollout.selector.to_string(),
        approve: match rollout.plan.approval {
            Approval::Each => "each",
            Approval::First => "first",
            Approval::None => "none",
        }
        .to_owned(),
        success_percent: rollout.plan.success_percent,
        min_sample: rollout.plan.min_sample,
        failure_budget: rollout.plan.failure_budget.map(|budget| budget.to_string()),
        soak_seconds: rollout.plan.soak_seconds,
        deadline_seconds: rollout.plan.deadline_seconds,
        plan: rollout.plan.waves.to_string(),
        devices: rollout.devices() as u64,
        states,
        created_at: rollout.created_at.to_string(),
        created_by: rollout.created_by,
        history: rollout
            .history
            .into_iter()
            .map(|step| RolloutStep { at: step.at.to_string(), what: step.what })
            .collect(),
        name: rollout.name.to_string(),
    }
}

fn stage(rollout: &rollouts::Rollout, wave: usize) -> &'static str {
    if rollout.phase == Phase::Completed || wave < rollout.wave {
        "over"
    } else if wave == rollout.wave {
        "now"
    } else {
        "to come"
    }
}

async fn device_view(state: &State, member: Member) -> Result<RolloutDevice, Problem> {
    let why = why(state, &member).await?;
    let (done_bytes, total_bytes) = match member.condition {
        Condition::Downloading { done_bytes, total_bytes } => (Some(done_bytes), Some(total_bytes)),
        Condition::Pending
        | Condition::Waiting { .. }
        | Condition::Verifying
        | Condition::Applying
        | Condition::Healthy
        | Condition::RolledBack { .. }
        | Condition::Failed { .. } => (None, None),
    };
    Ok(RolloutDevice {
        wave: member.wave as u64 + 1,
        state: member.condition.name().to_owned(),
        why,
        done_bytes,
        total_bytes,
        since: member.since.to_string(),
        excused: member.excused,
        device: member.device.to_string(),
    })
}

/// Why a device is as it is; where it does not say so itself, what we know of it.
async fn why(state: &State, member: &Member) -> Result<Option<String>, Problem> {
    match &member.condition {
        Condition::RolledBack { why } | Condition::Failed { why } => return Ok(Some(why.clone())),
        Condition::Pending => return Ok(Some(format!("wave {} has not begun", member.wave + 1))),
        Condition::Waiting { why: Some(why) } => return Ok(Some(why.clone())),
        Condition::Downloading { .. } | Condition::Verifying | Condition::Applying | Condition::Healthy => {
            return Ok(None);
        }
        Condition::Waiting { why: None } => {}
    }
    let Some(facts) = state.assignments.facts(&member.device) else {
        return Ok(Some("it was deleted".to_owned()));
    };
    if facts.standing != Standing::Active {
        return Ok(Some(format!("it is {}", facts.standing)));
    }
    let Some(received) = state.devices.report(&member.device).await? else {
        return Ok(Some("it has never reported".to_owned()));
    };
    let heard = received.at;
    Ok(Some(if member.assigned_at.is_some_and(|assigned| heard < assigned) {
        format!("not heard of since {}", heard.strftime("%Y-%m-%dT%H:%M:%SZ"))
    } else {
        "it has heard of it and has not begun".to_owned()
    }))
}
