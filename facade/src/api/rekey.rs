//! `/api/v1/rekey`

use axum::Json;

use super::auth::{Caller, Role};
use super::problem::Problem;
use super::types::RekeyReport;
use super::{Answer, State};
use crate::init::{self, RekeyError};

impl From<RekeyError> for Problem {
    fn from(error: RekeyError) -> Self {
        match &error {
            RekeyError::Files(_) => Self::internal(&error),
            RekeyError::NoNewKey(_) | RekeyError::OldKeyGone(_) => Self::conflict(error.to_string()),
        }
    }
}

/// Seals every secret anew under another key, while serving
#[utoipa::path(post, path = "/api/v1/rekey", tag = "keys",
    responses((status = 200, body = RekeyReport), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn rekey(state: State, caller: Caller) -> Answer<RekeyReport> {
    caller.require(Role::Admin)?;
    // Nobody can seal anything while this is held.
    let change = state.registries.change_keys().await;
    let (held, place) = (change.held().clone(), state.seal_key.clone());
    let previous = held.id();
    let next = tokio::task::spawn_blocking(move || {
        init::next_keyring(&place.data_dir, place.elsewhere.as_deref(), &held)
    });
    let next = next.await.map_err(|error| Problem::internal(&error))??;
    let key = next.id();
    let connections = change.switch_to(next).await?;
    tracing::warn!(by = %caller.name, key.id = %key, key.previous = %previous, connections, "sealing key changed");
    Ok(Json(RekeyReport { key_id: key.to_string(), previous_key_id: previous.to_string(), connections }))
}
