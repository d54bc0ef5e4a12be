//! `/api/v1/assignments`

use axum::Json;
use serde::Deserialize;
use utoipa::IntoParams;

use super::audience::Audience;
use super::auth::{Caller, Role};
use super::extract::{Body, Paging, Query, field};
use super::problem::Problem;
use super::types::{Assignment, AssignmentReport, AssignmentRequest, Page};
use super::{Answer, State};
use crate::catalog::artifacts::Artifact;
use crate::catalog::assignments::{self, Change, Place, Target, Which};
use crate::catalog::events::Kind;

/// Which assignments; at most one of these.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AssignmentsQuery {
    /// Only those of this artifact: `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
    artifact: Option<String>,
    /// Only those of this device itself, without those of its groups
    device: Option<String>,
    /// Only those of this group
    group: Option<String>,
}

/// Lists what is assigned
#[utoipa::path(get, path = "/api/v1/assignments", params(AssignmentsQuery, Paging), tag = "assignments",
    responses((status = 200, body = Page<Assignment>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(query): Query<AssignmentsQuery>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Assignment>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let after: Option<Place> = paging.after.as_deref().map(|text| field("after", text)).transpose()?;
    let which = match (query.artifact, query.device, query.group) {
        (None, None, None) => Which::All,
        (Some(artifact), None, None) => Which::Of(state.artifacts.find(&artifact).await?.name().clone()),
        (None, Some(device), None) => Which::For(Target::Device(field("device", &device)?)),
        (None, None, Some(group)) => Which::For(Target::Group(field("group", &group)?)),
        _ => return Err(Problem::invalid("artifact", "give at most one of artifact, device and group")),
    };
    let assignments = state.assignments.list(&which, after.as_ref(), limit);
    let next = assignments.last().filter(|_| assignments.len() == limit).map(assignments::Assignment::key);
    let items = assignments.into_iter().map(|assignment| view(assignment, None)).collect();
    Ok(Json(Page { items, next }))
}

/// Says what a device or group should have
#[utoipa::path(post, path = "/api/v1/assignments", request_body = AssignmentRequest, tag = "assignments",
    responses((status = 200, body = AssignmentReport), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn assign(
    state: State,
    caller: Caller,
    Body(request): Body<AssignmentRequest>,
) -> Answer<AssignmentReport> {
    caller.require(Role::Operator)?;
    let (target, artifacts) = parse(&state, &request).await?;
    let audience = match &target {
        Target::Device(device) => Audience::of(&state, Some(device.clone()), None).await?,
        Target::Group(group) => Audience::of(&state, None, Some(group)).await?,
    };
    let (mut assignments, mut warnings) = (Vec::new(), Vec::new());
    for artifact in artifacts {
        if artifact.revoked_at.is_some() {
            return Err(Problem::conflict(format!("{} is revoked", artifact.name())));
        }
        if let Some(unsuited) = audience.unsuited(&artifact.platforms) {
            let (name, platforms) = (artifact.name(), artifact.platform_names().join(", "));
            warnings.push(format!(
                "{name} is for {platforms}, and {unsuited}: no update reaches them until it is taken back (facade unassign)"
            ));
        }
        assignments.push(assignments::Assignment {
            target: target.clone(),
            artifact: artifact.name().clone(),
            assigned_at: state.clock.now(),
            assigned_by: caller.name.clone(),
        });
    }
    let (changes, devices) = state.assignments.assign(assignments).await?;
    tracing::info!(assigned.to = %target, artifacts = changes.len(), devices, by = %caller.name, "assigned");
    for change in &changes {
        let detail = format!("{} by {}", change.assignment.artifact, caller.name);
        state.events.raise(Kind::Assigned, &target, detail);
    }
    Ok(Json(AssignmentReport { warnings, ..report(changes, devices) }))
}

/// Takes assignments back
#[utoipa::path(post, path = "/api/v1/assignments/remove", request_body = AssignmentRequest, tag = "assignments",
    responses((status = 200, body = AssignmentReport), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn unassign(
    state: State,
    caller: Caller,
    Body(request): Body<AssignmentRequest>,
) -> Answer<AssignmentReport> {
    caller.require(Role::Operator)?;
    let (target, artifacts) = parse(&state, &request).await?;
    let wanted: Vec<_> = artifacts.iter().map(|artifact| (target.clone(), artifact.name().clone())).collect();
    let (changes, devices) = state.assignments.unassign(&wanted).await?;
    if changes.is_empty() {
        return Err(Problem::not_found(format!("none of these artifacts is assigned to {target}")));
    }
    tracing::info!(assigned.to = %target, artifacts = changes.len(), devices, by = %caller.name, "unassigned");
    for change in &changes {
        let detail = format!("{} by {}", change.assignment.artifact, caller.name);
        state.events.raise(Kind::Unassigned, &target, detail);
    }
    Ok(Json(report(changes, devices)))
}

async fn parse(state: &State, request: &AssignmentRequest) -> Result<(Target, Vec<Artifact>), Problem> {
    let target = match (&request.device, &request.group) {
        (Some(device), None) => {
            let device = field("device", device)?;
            if state.devices.get(&device).await?.is_none() {
                return Err(Problem::not_found(format!("no device {device} (facade device list)")));
            }
            Target::Device(device)
        }
        (None, Some(group)) => Target::Group(field("group", group)?),
        _ => return Err(Problem::invalid("device", "give either a device or a group")),
    };
    if request.artifacts.is_empty() || request.artifacts.len() > 100 {
        return Err(Problem::invalid("artifacts", "must be 1 to 100 artifacts"));
    }
    let mut artifacts = Vec::new();
    for text in &request.artifacts {
        artifacts.push(state.artifacts.find(text).await?);
    }
    Ok((target, artifacts))
}

fn report(changes: Vec<Change>, devices: usize) -> AssignmentReport {
    let assignments = changes
        .into_iter()
        .map(|change| view(change.assignment, change.replaces.map(|replaced| replaced.to_string())));
    AssignmentReport { assignments: assignments.collect(), devices: devices as u64, warnings: Vec::new() }
}

fn view(assignment: assignments::Assignment, replaces: Option<String>) -> Assignment {
    let (device, group) = match assignment.target {
        Target::Device(device) => (Some(device.to_string()), None),
        Target::Group(group) => (None, Some(group.to_string())),
    };
    Assignment {
        artifact: assignment.artifact.to_string(),
        device,
        group,
        assigned_at: assignment.assigned_at.to_string(),
        assigned_by: assignment.assigned_by,
        replaces,
    }
}
