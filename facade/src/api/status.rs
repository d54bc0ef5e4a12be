//! `/api/v1/status`, `/readyz` and `/metrics`

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::auth::{Caller, Role};
use super::problem::Problem;
use super::types::Status;
use super::{Answer, State};
use crate::catalog::devices::Standing;
use crate::metrics::RoleLabels;

/// How many records one step of counting reads.
const STEP: usize = 1000;

/// Says whether all is well
#[utoipa::path(get, path = "/api/v1/status", tag = "status",
    responses((status = 200, body = Status), (status = 401, body = Problem)))]
pub(super) async fn status(state: State, caller: Caller) -> Answer<Status> {
    caller.require(Role::Viewer)?;
    let connections = state.registries.list(None, usize::MAX).await?;
    let artifacts = state.artifacts.list(None, None, usize::MAX).await?;
    let mut warnings = Vec::new();
    for connection in &connections {
        let health = state.registries.health(&connection.definition.host).unwrap_or_default();
        if let Some(error) = health.last_error {
            warnings.push(format!("{}: {error}", connection.definition.host));
        }
    }
    let (devices, up_to_date) = count_devices(&state, &mut warnings).await?;
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
        connections: connections.len() as u64,
        artifacts: artifacts.iter().filter(|artifact| artifact.revoked_at.is_none()).count() as u64,
        devices,
        devices_up_to_date: up_to_date,
        metadata_expires: expires,
        metadata_expires_in_seconds: countdown,
        cache_bytes: state.cache_bytes().await.map_err(|error| Problem::internal(&error))?,
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

async fn count_devices(
    state: &State,
    warnings: &mut Vec<String>,
) -> Result<(BTreeMap<String, u64>, u64), Problem> {
    let mut counts = BTreeMap::new();
    let mut up_to_date = 0;
    let mut refusing = 0_u64;
    let mut after = None;
    loop {
        let page = state.devices.list(after.as_ref(), STEP).await?;
        for device in &page {
            *counts.entry(device.standing.to_string()).or_insert(0) += 1;
            if device.standing != Standing::Active {
                continue;
            }
            let Some(received) = state.devices.report(&device.id).await? else {
                continue;
            };
            refusing += u64::from(!received.report.refused.is_empty());
            let running = &received.report.running;
            let wanted = state.assignments.wanted(&device.id);
            if wanted.iter().all(|wanted| running.iter().any(|running| running.artifact == *wanted)) {
                up_to_date += 1;
            }
        }
        match page.last() {
            Some(last) if page.len() == STEP => after = Some(last.id.clone()),
            _ => break,
        }
    }
    if let Some(count) = counts.get("quarantined") {
        warnings.push(format!("{count} devices are quarantined (facade device list)"));
    }
    if refusing > 0 {
        warnings.push(format!("{refusing} devices refuse something (facade device list)"));
    }
    Ok((counts, up_to_date))
}

/// Whether the facade can do its work: its store answers.
pub(super) async fn ready(state: State) -> Response {
    match state.registries.list(None, 1).await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => {
            tracing::error!(error = %super::problem::chain(&error), "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n").into_response()
        }
    }
}

/// The counters, as Prometheus reads them.
pub(super) async fn metrics(state: State) -> Response {
    for (role, at) in metadata_expires(&state).await {
        state.metrics.metadata_expires.get_or_create(&RoleLabels { role }).set(at.as_second());
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics.text()).into_response()
}
