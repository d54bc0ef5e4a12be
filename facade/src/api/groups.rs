//! `/api/v1/devices/{id}/groups/{group}`

use pki::x509::DeviceId;

use super::auth::{Caller, Role};
use super::devices::changed;
use super::extract::{Path, field};
use super::problem::Problem;
use super::types::Device;
use super::{Answer, State};
use crate::catalog::devices::Group;

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
