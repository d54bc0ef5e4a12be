//! `/api/v1/status`, `/readyz` and `/metrics`

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::auth::{Caller, Role};
use super::problem;
use super::types::Status;
use super::{Answer, State};
use crate::catalog::census::{Census, Mark};
use crate::catalog::devices::Standing;
use crate::metrics::{RoleLabels, StandingLabels};

/// Most connections that are named in the warnings.
const NAMED: usize = 20;
/// Room that the database and the log need in bytes; with less, nothing can be promised.
const LEAST_FREE_BYTES: u64 = 64 * 1024 * 1024;

/// Says whether all is well
#[utoipa::path(get, path = "/api/v1/status", tag = "status",
    responses((status = 200, body = Status), (status = 401, body = problem::Problem)))]
pub(super) async fn status(state: State, caller: Caller) -> Answer<Status> {
    caller.require(Role::Viewer)?;
    let mut warnings = Vec::new();
    for (name, outcome) in checks(&state).await {
        warnings.extend(outcome.err().map(|error| format!("{name}: {error}")));
    }
    let failing = state.registries.failing();
    warnings.extend(failing.iter().take(NAMED).map(|(host, error)| format!("{host}: {error}")));
    if failing.len() > NAMED {
        let others = failing.len() - NAMED;
        warnings.push(format!("{others} more connections fail (facade connection list)"));
    }
    let census = state.assignments.census();
    let devices: BTreeMap<String, u64> = standings(census).filter(|(_, count)| *count > 0).collect();
    for (mark, are) in
        [(Mark::Standing(Standing::Quarantined), "are quarantined"), (Mark::Refuses, "refuse something")]
    {
        match census.count(mark) {
            0 => {}
            count => warnings.push(format!("{count} devices {are} (facade device list)")),
        }
    }
    warnings.extend(state.images.warnings().await);
    warnings.extend(state.director.warnings().await);
    let expires = metadata_expires(&state).await;
    let now = state.clock.now();
    let countdown = expires
        .iter()
        .map(|(role, at)| (role.clone(), at.as_second().saturating_sub(now.as_second())))
        .collect();
    let expires = expires.into_iter().map(|(role, at)| (role, at.to_string())).collect();
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        connections: state.registries.count() as u64,
        artifacts: state.access.artifact_count() as u64,
        devices,
        devices_up_to_date: census.count(Mark::UpToDate) as u64,
        metadata_expires: expires,
        metadata_expires_in_seconds: countdown,
        cache_bytes: state.blobs.total().size_bytes,
        warnings,
    }))
}

/// When the metadata of each role ends; that of the director is signed for each device when it asks, but for the root.
async fn metadata_expires(state: &State) -> BTreeMap<String, Timestamp> {
    let images = state.images.expires().await.into_iter();
    let mut expires: BTreeMap<_, _> = images.map(|(role, at)| (format!("images/{role}"), at)).collect();
    let root = state.director.with_trust(|trust| trust.chain.current().expires).await;
    expires.insert("director/root".to_owned(), root);
    expires
}

/// How many devices have each standing.
fn standings(census: &Census) -> impl Iterator<Item = (String, u64)> {
    let count = |standing: Standing| census.count(Mark::Standing(standing)) as u64;
    Standing::ALL.into_iter().map(move |standing| (standing.to_string(), count(standing)))
}

/// Whether the facade can do its work, one line for each thing it needs.
pub(super) async fn ready(state: State) -> Response {
    let mut text = String::new();
    let mut status = StatusCode::OK;
    for (name, outcome) in checks(&state).await {
        match outcome {
            Ok(()) => text = format!("{text}{name}: ok\n"),
            // Whoever asks need not be signed in: the log has the rest.
            Err(error) => {
                tracing::error!(check = name, %error, "not ready");
                status = StatusCode::SERVICE_UNAVAILABLE;
                text = format!("{text}{name}: failed\n");
            }
        }
    }
    (status, text).into_response()
}

/// What the facade needs for its work, and whether it has it.
async fn checks(state: &State) -> [(&'static str, Result<(), String>); 4] {
    [
        ("store", check_store(state).await),
        ("sealing key", state.registries.seals().await.map_err(|error| error.to_string())),
        ("signed metadata", check_timestamp(state).await),
        ("disk", check_disk(state).await),
    ]
}

/// The store must take a write: one that only reads can neither enroll a device nor record a change.
async fn check_store(state: &State) -> Result<(), String> {
    state.probe.store(state.clock.now()).await.map_err(|error| problem::chain(&error))
}

/// The timestamp is signed by the facade itself, again and again: where it has ended, that has failed. What only an
/// operator's offline key can renew is a warning elsewhere; images that were taken go on being served.
async fn check_timestamp(state: &State) -> Result<(), String> {
    let expires = state.images.expires().await;
    match expires.get("timestamp") {
        Some(end) if *end > state.clock.now() => Ok(()),
        Some(end) => Err(format!("the timestamp ended {end}")),
        None => Err("there is no timestamp".to_owned()),
    }
}

async fn check_disk(state: &State) -> Result<(), String> {
    let free = state.blobs.free_bytes().await.map_err(|error| problem::chain(&error))?;
    if free < LEAST_FREE_BYTES { Err(format!("{free} bytes are free")) } else { Ok(()) }
}

/// The counters, as Prometheus reads them.
pub(super) async fn metrics(state: State) -> Response {
    let metrics = &state.metrics;
    for (role, at) in metadata_expires(&state).await {
        metrics.metadata_expires.get_or_create(&RoleLabels { role }).set(at.as_second());
    }
    let census = state.assignments.census();
    for (standing, count) in standings(census) {
        metrics.devices.get_or_create(&StandingLabels { standing }).set(gauge(count));
    }
    metrics.devices_up_to_date.set(gauge(census.count(Mark::UpToDate) as u64));
    metrics.devices_refusing.set(gauge(census.count(Mark::Refuses) as u64));
    metrics.registries.set(gauge(state.registries.count() as u64));
    metrics.registries_failing.set(gauge(state.registries.failing().len() as u64));
    metrics.artifacts.set(gauge(state.access.artifact_count() as u64));
    metrics.cache_bytes.set(gauge(state.blobs.total().size_bytes));
    if let Ok(free) = state.blobs.free_bytes().await {
        metrics.cache_free_bytes.set(gauge(free));
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.text()).into_response()
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
