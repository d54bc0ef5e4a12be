//! `/api/v1/devices` and `/api/v1/enrollment-tokens`

use axum::Json;
use jiff::Timestamp;
use pki::wire::{EnrollmentToken as Token, Subject};
use pki::x509::DeviceId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Role};
use super::extract::{Body, Paging, Path, Query, field};
use super::problem::Problem;
use super::types::{Device, EnrollmentToken, EnrollmentTokenRequest, NewEnrollmentToken, Page, Refusal};
use super::{Answer, State};
use crate::catalog::census::Mark;
use crate::catalog::devices::{self, DevicesError, Group, Standing, TokenRecord, TokenRequest};
use crate::catalog::events::Kind;
use crate::catalog::selector::Selector;

/// Longest life of an enrollment token in seconds: 90 days.
const MAX_TTL_SECONDS: u64 = 90 * 86_400;
/// Longest life of one that names its device: it goes into the box at the factory, and waits there to be unpacked.
const MAX_BOUND_TTL_SECONDS: u64 = 2 * 366 * 86_400;

impl From<DevicesError> for Problem {
    fn from(error: DevicesError) -> Self {
        match error {
            DevicesError::NoSuchDevice(_) | DevicesError::NoSuchToken(_) => {
                Self::not_found(error.to_string())
            }
            DevicesError::Uses(_) | DevicesError::UsesOfOne(_) => Self::invalid("uses", error.to_string()),
            DevicesError::Expiry(_) => Self::invalid("ttl_seconds", error.to_string()),
            DevicesError::Store(error) => error.into(),
            DevicesError::Standing { .. }
            | DevicesError::TooManyGroups(_)
            | DevicesError::TooManyLabels(_) => Self::conflict(error.to_string()),
            DevicesError::NoRandomness => Self::internal(&error),
        }
    }
}

/// Which devices.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DevicesQuery {
    /// Only those of this group
    group: Option<String>,
    /// Only those with this standing: `pending`, `active`, `suspended`, `quarantined` or `revoked`
    standing: Option<String>,
    /// Only those that this selector selects: `group=berlin,arch=arm64`, `stage in (canary,test)`…
    selector: Option<String>,
    /// Only those that say that they run this artifact: `REPOSITORY@sha256:…`, or an unambiguous prefix of the digest
    running: Option<String>,
}

/// Lists the devices
#[utoipa::path(get, path = "/api/v1/devices", params(DevicesQuery, Paging), tag = "devices",
    responses((status = 200, body = Page<Device>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(query): Query<DevicesQuery>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Device>> {
    caller.require(Role::Viewer)?;
    let group: Option<Group> = query.group.as_deref().map(|text| field("group", text)).transpose()?;
    let after: Option<DeviceId> = paging.after.as_deref().map(|text| field("after", text)).transpose()?;
    let limit = paging.limit()?;
    let standing: Option<Standing> =
        query.standing.as_deref().map(|text| field("standing", text)).transpose()?;
    let selector: Option<Selector> =
        query.selector.as_deref().map(|text| field("selector", text)).transpose()?;
    if selector.is_some() && group.is_some() {
        let reason = "give either a selector or a group (group=… is a term of a selector)";
        return Err(Problem::invalid("selector", reason));
    }
    if query.running.is_some() && (selector.is_some() || group.is_some() || standing.is_some()) {
        return Err(Problem::invalid("running", "cannot be combined with other filters"));
    }
    let devices = match (&selector, &group, standing) {
        _ if let Some(artifact) = &query.running => {
            let artifact = state.artifacts.find(artifact).await?;
            let census = state.assignments.census();
            read_devices(&state, census.running_on(artifact.name(), after.as_ref(), limit)).await?
        }
        (None, None, None) => state.devices.list(after.as_ref(), limit).await?,
        (Some(selector), _, _) => {
            let selected = state.assignments.select(selector, standing, after.as_ref(), limit);
            read_devices(&state, selected.into_iter().map(|(id, _)| id).collect()).await?
        }
        (None, Some(group), standing) => {
            let ids = members_with(&state, group, standing, after, limit);
            read_devices(&state, ids).await?
        }
        (None, None, Some(standing)) => {
            let mark = Mark::Standing(standing);
            read_devices(&state, state.assignments.census().with(mark, after.as_ref(), limit)).await?
        }
    };
    let next = devices.last().filter(|_| devices.len() == limit).map(|last| last.id.to_string());
    let mut items = Vec::new();
    for device in devices {
        items.push(view(&state, device).await?);
    }
    Ok(Json(Page { items, next }))
}

/// A page of a group's devices that have a standing, from memory.
fn members_with(
    state: &State,
    group: &Group,
    standing: Option<Standing>,
    mut after: Option<DeviceId>,
    limit: usize,
) -> Vec<DeviceId> {
    let census = state.assignments.census();
    let has = |id: &DeviceId| standing.is_none_or(|standing| census.has(id, Mark::Standing(standing)));
    let mut found = Vec::new();
    loop {
        let page = state.assignments.members(group, after.as_ref(), limit);
        let more = page.len() == limit;
        after = page.last().cloned();
        found.extend(page.into_iter().filter(has));
        if found.len() >= limit || !more {
            found.truncate(limit);
            return found;
        }
    }
}

async fn read_devices(state: &State, ids: Vec<DeviceId>) -> Result<Vec<devices::Device>, Problem> {
    let mut devices = Vec::new();
    for id in ids {
        devices.extend(state.devices.get(&id).await?);
    }
    Ok(devices)
}

/// Shows one device
#[utoipa::path(get, path = "/api/v1/devices/{id}", params(("id" = String, Path, description = "The device's id")), tag = "devices",
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn show(state: State, caller: Caller, Path(id): Path<String>) -> Answer<Device> {
    caller.require(Role::Viewer)?;
    let id: DeviceId = field("id", &id)?;
    let device = state.devices.get(&id).await?.ok_or_else(|| not_found(&state, &id))?;
    Ok(Json(view(&state, device).await?))
}

/// Forgets a device
#[utoipa::path(delete, path = "/api/v1/devices/{id}", params(("id" = String, Path, description = "The device's id")), tag = "devices",
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn delete(state: State, caller: Caller, Path(id): Path<String>) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let id: DeviceId = field("id", &id)?;
    let device = state.devices.get(&id).await?.ok_or_else(|| not_found(&state, &id))?;
    let shown = view(&state, device).await?;
    state.devices.delete(&id).await?;
    state.assignments.device_deleted(&id);
    state.director.forget(&id).await?;
    tracing::warn!(device.id = %id, by = %caller.name, "device deleted");
    state.events.raise(Kind::DeviceChanged, &id, format!("deleted by {}", caller.name));
    Ok(Json(shown))
}

/// Revokes a device for good
#[utoipa::path(post, path = "/api/v1/devices/{id}/revoke", params(("id" = String, Path, description = "The device's id")), tag = "devices",
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn revoke(state: State, caller: Caller, Path(id): Path<String>) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let id: DeviceId = field("id", &id)?;
    let device = state.devices.revoke(&id, Some(format!("revoked by {}", caller.name))).await?;
    changed(&state, &caller, device).await
}

/// Turns a device away until it is restored
#[utoipa::path(post, path = "/api/v1/devices/{id}/suspend", params(("id" = String, Path, description = "The device's id")), tag = "devices",
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn suspend(state: State, caller: Caller, Path(id): Path<String>) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let id: DeviceId = field("id", &id)?;
    let device = state.devices.suspend(&id, Some(format!("suspended by {}", caller.name))).await?;
    changed(&state, &caller, device).await
}

/// Lets a device that waits for it have its certificate
#[utoipa::path(post, path = "/api/v1/devices/{id}/approve", params(("id" = String, Path, description = "The device's id")), tag = "devices",
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn approve(state: State, caller: Caller, Path(id): Path<String>) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let id: DeviceId = field("id", &id)?;
    let device = state.devices.approve(&id).await?;
    changed(&state, &caller, device).await
}

/// Takes a suspended or quarantined device back
#[utoipa::path(post, path = "/api/v1/devices/{id}/restore", params(("id" = String, Path, description = "The device's id")), tag = "devices",
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn restore(state: State, caller: Caller, Path(id): Path<String>) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let id: DeviceId = field("id", &id)?;
    let device = state.devices.restore(&id).await?;
    changed(&state, &caller, device).await
}

pub(super) async fn changed(state: &State, caller: &Caller, device: devices::Device) -> Answer<Device> {
    // Open streams of a device that is turned away are cut here.
    state.assignments.device_changed(&device);
    tracing::warn!(device.id = %device.id, standing = %device.standing, by = %caller.name, "device changed");
    let detail = format!("{}, by {}", describe(&device), caller.name);
    state.events.raise(Kind::DeviceChanged, &device.id, detail);
    Ok(Json(view(state, device).await?))
}

fn describe(device: &devices::Device) -> String {
    let groups: Vec<String> = device.groups.iter().map(ToString::to_string).collect();
    let groups =
        if groups.is_empty() { "in no group".to_owned() } else { format!("in {}", groups.join(", ")) };
    let labels: Vec<String> = device.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!(", labelled {}", labels.join(",")) };
    format!("is {}, {groups}{labels}", device.standing)
}

fn not_found(state: &State, id: &DeviceId) -> Problem {
    Problem::not_found(match state.assignments.resembling(id) {
        Some(known) => format!("no device {id}: did you mean {known}? (facade device list)"),
        None => format!("no device {id} (facade device list)"),
    })
}

/// Makes an enrollment token
#[utoipa::path(post, path = "/api/v1/enrollment-tokens", request_body = EnrollmentTokenRequest, tag = "devices",
    responses((status = 200, body = NewEnrollmentToken), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn make_token(
    state: State,
    caller: Caller,
    Body(request): Body<EnrollmentTokenRequest>,
) -> Answer<NewEnrollmentToken> {
    caller.require(Role::Operator)?;
    let longest = if request.device.is_some() { MAX_BOUND_TTL_SECONDS } else { MAX_TTL_SECONDS };
    if !(1..=longest).contains(&request.ttl_seconds) {
        let reason = "must be between one second and 90 days, or two years where the token names its device";
        return Err(Problem::invalid("ttl_seconds", reason));
    }
    let now = state.clock.now();
    let ttl = i64::try_from(request.ttl_seconds).unwrap_or(i64::MAX);
    let expires_at = Timestamp::from_second(now.as_second().saturating_add(ttl)).unwrap_or(Timestamp::MAX);
    let request = TokenRequest {
        device: request.device.as_deref().map(|text| field("device", text)).transpose()?,
        group: request.group.as_deref().map(|text| field("group", text)).transpose()?,
        expires_at,
        uses: request.uses,
        approval: request.approve,
        created_by: caller.name.clone(),
    };
    // Nobody could use it: an identity that was revoked does not come back under its old record.
    if let Some(id) = &request.device
        && state.devices.get(id).await?.is_some_and(|device| device.standing == Standing::Revoked)
    {
        return Err(Problem::conflict(format!(
            "{id} is revoked: delete it (facade device delete {id}), then enroll it anew"
        )));
    }
    let (record, secret) = state.devices.mint(request, now).await?;
    let token = Token {
        url: state.public_url.clone(),
        ca: state.ca_fingerprint,
        images_root: state.images.root_pin().await,
        director_root: state.director.root_pin().await,
        id: record.id,
        secret,
    };
    tracing::info!(token.id = %record.id, by = %caller.name, "enrollment token made");
    Ok(Json(NewEnrollmentToken {
        command: format!("device-agent enroll {token}"),
        token: token.to_string(),
        id: record.id.to_string(),
        expires_at: record.expires_at.to_string(),
        uses: record.uses_left,
    }))
}

/// Lists the enrollment tokens
#[utoipa::path(get, path = "/api/v1/enrollment-tokens", params(Paging), tag = "devices",
    responses((status = 200, body = Page<EnrollmentToken>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list_tokens(
    state: State,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Answer<Page<EnrollmentToken>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let after = paging.after.as_deref().map(|text| field("after", text)).transpose()?;
    let records = state.devices.tokens(after, limit).await?;
    let next = records.last().filter(|_| records.len() == limit).map(|last| last.id.to_string());
    let now = state.clock.now();
    Ok(Json(Page { items: records.iter().map(|record| token_view(record, now)).collect(), next }))
}

/// Revokes an enrollment token
#[utoipa::path(delete, path = "/api/v1/enrollment-tokens/{id}", params(("id" = String, Path, description = "The token's id")), tag = "devices",
    responses((status = 200, body = EnrollmentToken), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn revoke_token(
    state: State,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<EnrollmentToken> {
    caller.require(Role::Operator)?;
    let record = state.devices.revoke_token(field("id", &id)?).await?;
    tracing::info!(token.id = %record.id, by = %caller.name, "enrollment token revoked");
    Ok(Json(token_view(&record, state.clock.now())))
}

fn token_view(record: &TokenRecord, now: Timestamp) -> EnrollmentToken {
    EnrollmentToken {
        id: record.id.to_string(),
        device: record.device.as_ref().map(ToString::to_string),
        group: record.group.as_ref().map(ToString::to_string),
        expires_at: record.expires_at.to_string(),
        uses_left: record.uses_left,
        state: record.state(now).to_string(),
        approve: record.approval,
    }
}

async fn view(state: &State, device: devices::Device) -> Result<Device, Problem> {
    let received = state.devices.report(&device.id).await?;
    let wanted = state.assignments.wanted(&device.id);
    let mut shown = Device {
        id: device.id.to_string(),
        standing: device.standing.to_string(),
        reason: device.reason.clone(),
        groups: device.groups.iter().map(ToString::to_string).collect(),
        labels: device.labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        enrolled_at: device.enrolled_at.to_string(),
        last_seen_at: None,
        certificate_not_after: device
            .certificate
            .as_ref()
            .map(|certificate| certificate.not_after.to_string()),
        wanted: wanted.iter().map(ToString::to_string).collect(),
        running: Vec::new(),
        refused: Vec::new(),
        rolled_back: Vec::new(),
        state: None,
        waiting: None,
        platform: None,
        agent_version: None,
    };
    if let Some(received) = received {
        let report = received.report;
        shown.last_seen_at = Some(received.at.to_string());
        shown.running = report.running.iter().map(|running| running.artifact.to_string()).collect();
        shown.state =
            serde_json::to_value(report.state).ok().and_then(|state| state.as_str().map(str::to_owned));
        shown.waiting = report.waiting.as_ref().map(|waiting| waiting.as_str().to_owned());
        let rolled_back = report.rolled_back.iter().map(|failed| Refusal {
            what: failed.artifact.to_string(),
            code: failed.code.as_str().to_owned(),
            reason: failed.reason.as_str().to_owned(),
        });
        shown.rolled_back = rolled_back.collect();
        shown.platform = Some(report.platform.to_string());
        shown.agent_version = Some(report.agent_version.as_str().to_owned());
        shown.refused = report
            .refused
            .iter()
            .map(|refusal| Refusal {
                what: match &refusal.subject {
                    Subject::Artifact(name) => name.to_string(),
                    Subject::Metadata(file) => file.as_str().to_owned(),
                },
                code: refusal.code.as_str().to_owned(),
                reason: refusal.reason.as_str().to_owned(),
            })
            .collect();
    }
    Ok(shown)
}
