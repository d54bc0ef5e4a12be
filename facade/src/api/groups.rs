//! `/api/v1/groups`, `/api/v1/devices/{id}/groups/{group}` and `/api/v1/devices/{id}/labels`

use std::collections::BTreeMap;

use axum::Json;
use pki::x509::DeviceId;

use super::auth::{Caller, Role};
use super::devices::changed;
use super::extract::{Body, Paging, Path, Query, field};
use super::problem::Problem;
use super::types::{Device, GroupSize, LabelRequest, Page};
use super::{Answer, State};
use crate::catalog::devices::{Group, LabelKey, LabelValue};

/// Puts a device in a group
#[utoipa::path(put, path = "/api/v1/devices/{id}/groups/{group}", tag = "devices",
    params(("id" = String, Path, description = "The device's id"), ("group" = String, Path, description = "The group")),
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn join(
    state: State,
    caller: Caller,
    Path((id, group)): Path<(String, String)>,
) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let (id, group): (DeviceId, Group) = (field("id", &id)?, field("group", &group)?);
    let device = state.devices.join(&id, &group).await?;
    changed(&state, &caller, device).await
}

/// Takes a device out of a group
#[utoipa::path(delete, path = "/api/v1/devices/{id}/groups/{group}", tag = "devices",
    params(("id" = String, Path, description = "The device's id"), ("group" = String, Path, description = "The group")),
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn leave(
    state: State,
    caller: Caller,
    Path((id, group)): Path<(String, String)>,
) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let (id, group): (DeviceId, Group) = (field("id", &id)?, field("group", &group)?);
    let device = state.devices.leave(&id, &group).await?;
    changed(&state, &caller, device).await
}

/// Lists the groups that have devices
#[utoipa::path(get, path = "/api/v1/groups", params(Paging), tag = "devices",
    responses((status = 200, body = Page<GroupSize>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Answer<Page<GroupSize>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let after = paging.after.unwrap_or_default();
    let groups = state.assignments.group_sizes().into_iter().filter(|(name, _)| *name > after);
    let items: Vec<GroupSize> =
        groups.take(limit).map(|(name, size)| GroupSize { name, devices: size as u64 }).collect();
    let next = items.last().filter(|_| items.len() == limit).map(|last| last.name.clone());
    Ok(Json(Page { items, next }))
}

/// Sets labels of a device, and takes others away
#[utoipa::path(post, path = "/api/v1/devices/{id}/labels", request_body = LabelRequest, tag = "devices",
    params(("id" = String, Path, description = "The device's id")),
    responses((status = 200, body = Device), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn label(
    state: State,
    caller: Caller,
    Path(id): Path<String>,
    Body(request): Body<LabelRequest>,
) -> Answer<Device> {
    caller.require(Role::Operator)?;
    let id: DeviceId = field("id", &id)?;
    let mut set: BTreeMap<LabelKey, LabelValue> = BTreeMap::new();
    for (key, value) in &request.set {
        set.insert(field("set", key)?, field("set", value)?);
    }
    let remove: Result<Vec<LabelKey>, Problem> =
        request.remove.iter().map(|key| field("remove", key)).collect();
    let device = state.devices.label(&id, &set, &remove?).await?;
    changed(&state, &caller, device).await
}
