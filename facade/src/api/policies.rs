//! `/api/v1/policies`

use axum::Json;
use pki::wire::{DevicePolicy, Window};

use super::auth::{Caller, Role};
use super::extract::{Body, field};
use super::problem::Problem;
use super::types::{Page, Policy, PolicyChange};
use super::{Answer, State};
use crate::catalog::assignments::Target;
use crate::catalog::policies::with_rule;

/// What takes back what was said.
const NONE: &str = "none";

/// Lists when and how fast devices and groups may download and apply
#[utoipa::path(get, path = "/api/v1/policies", tag = "devices",
    responses((status = 200, body = Page<Policy>), (status = 401, body = Problem)))]
pub(super) async fn list(state: State, caller: Caller) -> Answer<Page<Policy>> {
    caller.require(Role::Viewer)?;
    let items = state.policies.all().into_iter().map(|(target, policy)| view(&target, &policy));
    Ok(Json(Page { items: items.collect(), next: None }))
}

/// Says when and how fast a device or a group may download and apply
#[utoipa::path(post, path = "/api/v1/policies", request_body = PolicyChange, tag = "devices",
    responses((status = 200, body = Policy), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn change(state: State, caller: Caller, Body(change): Body<PolicyChange>) -> Answer<Policy> {
    caller.require(Role::Operator)?;
    let target = target(&state, &change).await?;
    let before = state.policies.of(&target);
    let policy = DevicePolicy {
        download_window: merged(
            "download_window",
            change.download_window.as_deref(),
            before.download_window,
            window,
        )?,
        apply_window: merged("apply_window", change.apply_window.as_deref(), before.apply_window, window)?,
        rate_limit: merged("rate_limit", change.rate_limit.as_deref(), before.rate_limit, field)?,
        metered: merged("metered", change.metered.as_deref(), before.metered, field)?,
        deadline: merged("deadline", change.deadline.as_deref(), before.deadline, field)?,
    };
    state.policies.set(target.clone(), policy.clone()).await?;
    let devices = state.assignments.touch(&target);
    tracing::info!(policy.of = %target, devices, by = %caller.name, "policy changed");
    Ok(Json(view(&target, &policy)))
}

async fn target(state: &State, change: &PolicyChange) -> Result<Target, Problem> {
    match (&change.device, &change.group) {
        (Some(device), None) => {
            let device = field("device", device)?;
            if state.devices.get(&device).await?.is_none() {
                return Err(Problem::not_found(format!("no device {device} (facade device list)")));
            }
            Ok(Target::Device(device))
        }
        (None, Some(group)) => Ok(Target::Group(field("group", group)?)),
        _ => Err(Problem::invalid("device", "give either a device or a group")),
    }
}

fn merged<T>(
    name: &str,
    said: Option<&str>,
    before: Option<T>,
    parse: impl Fn(&str, &str) -> Result<T, Problem>,
) -> Result<Option<T>, Problem> {
    match said {
        None => Ok(before),
        Some(NONE) => Ok(None),
        Some(text) => parse(name, text).map(Some),
    }
}

fn window(name: &str, text: &str) -> Result<Window, Problem> {
    let window: Window = field(name, text)?;
    with_rule(window).map_err(|problem| Problem::invalid(name, problem))
}

fn view(target: &Target, policy: &DevicePolicy) -> Policy {
    // The rule beside the name of a zone is for devices.
    let window = |window: &Window| {
        let text = window.to_string();
        text.split_once('=').map_or(text.clone(), |(named, _)| named.to_owned())
    };
    let (device, group) = match target {
        Target::Device(device) => (Some(device.to_string()), None),
        Target::Group(group) => (None, Some(group.to_string())),
    };
    Policy {
        device,
        group,
        download_window: policy.download_window.as_ref().map(window),
        apply_window: policy.apply_window.as_ref().map(window),
        rate_limit: policy.rate_limit.map(|rate| rate.to_string()),
        metered: policy.metered.map(|metered| metered.to_string()),
        deadline: policy.deadline.map(|deadline| deadline.to_string()),
    }
}
