//! `/api/v1/status`, `/readyz` and `/metrics`

use std::collections::BTreeMap;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::auth::{Caller, Role};
use super::problem::Problem;
use super::types::Status;
use super::{Answer, State};
use crate::catalog::devices::Standing;

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
        let health = state
            .registries
            .health(&connection.definition.host)
            .unwrap_or_default();
        if let Some(error) = health.last_error {
            warnings.push(format!("{}: {error}", connection.definition.host));
        }
    }
    let (devices, up_to_date) = count_devices(&state, &mut warnings).await?;
    let expires = state.images.expires().await;
    let expires = expires
        .into_iter()
        .map(|(role, at)| (format!("images/{role}"), at.to_string()))
        .collect();
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        connections: connections.len() as u64,
        artifacts: artifacts
            .iter()
            .filter(|artifact| artifact.revoked_at.is_none())
            .count() as u64,
        devices,
        devices_up_to_date: up_to_date,
        metadata_expires: expires,
        cache_bytes: state
            .cache_bytes()
            .await
            .map_err(|error| Problem::internal(&error))?,
        warnings,
    }))
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
            let wanted = state.rollouts.wanted(&device.id);
            if wanted
                .iter()
                .all(|wanted| running.iter().any(|running| running.artifact == *wanted))
            {
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
        warnings.push(format!(
            "{refusing} devices refuse something (facade device list)"
        ));
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
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics.text()).into_response()
}
