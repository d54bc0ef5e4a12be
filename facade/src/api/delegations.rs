//! `/api/v1/delegations`

use axum::Json;
use pki::key::{PublicKey, SigningKey};
use serde::Deserialize;
use utoipa::IntoParams;

use super::artifacts::withdraw;
use super::auth::{Caller, Role};
use super::extract::{Body, Path, Query, field};
use super::keys::outcome;
use super::problem::{Problem, chain};
use super::types::{Delegation, DelegationRequest, KeysOutcome};
use super::{Answer, State};
use crate::publish::PublishingError;
use crate::publish::images;
use crate::publish::publishers::{Publisher, PublisherName};

/// Lists the publishers: who may sign for which repositories without the targets keys
#[utoipa::path(get, path = "/api/v1/delegations", tag = "keys",
    responses((status = 200, body = Vec<Delegation>), (status = 401, body = Problem)))]
pub(super) async fn list(state: State, caller: Caller) -> Answer<Vec<Delegation>> {
    caller.require(Role::Viewer)?;
    Ok(Json(state.images.delegations().await.into_iter().map(view).collect()))
}

/// Lets a publisher sign for some repositories, with a key of its own
#[utoipa::path(post, path = "/api/v1/delegations", request_body = DelegationRequest, tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn add(
    state: State,
    caller: Caller,
    Body(request): Body<DelegationRequest>,
) -> Answer<KeysOutcome> {
    caller.require(Role::Admin)?;
    let repositories = request.repositories.iter().map(|text| field("repositories", text));
    let repositories: std::collections::BTreeSet<_> = repositories.collect::<Result<_, _>>()?;
    if repositories.is_empty() {
        return Err(Problem::invalid("repositories", "a publisher needs at least one repository"));
    }
    let (key, made) = if let Some(object) = request.key {
        let key = PublicKey::from_object(object);
        (key.map_err(|error| Problem::invalid("key", chain(&error)))?, None)
    } else {
        let made = SigningKey::generate().map_err(|error| Problem::internal(&PublishingError::Key(error)))?;
        (made.public().clone(), Some(made))
    };
    let name: PublisherName = field("name", &request.name)?;
    let publisher = Publisher { name, repositories, key };
    tracing::warn!(publisher = %publisher.name, key = %publisher.key.id(), repositories = ?publisher.repositories, by = %caller.name, "a publisher is let in");
    Ok(Json(outcome(state.images.delegate(publisher, made).await?)))
}

/// What becomes of what a publisher has signed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RemovalQuery {
    /// Sign it with the targets keys instead of revoking it
    #[serde(default)]
    keep_artifacts: bool,
}

/// Takes a delegation back, and revokes what only the publisher has signed
#[utoipa::path(delete, path = "/api/v1/delegations/{name}", params(("name" = String, Path, description = "The publisher's name"), RemovalQuery), tag = "keys",
    responses((status = 200, body = KeysOutcome), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn remove(
    state: State,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<RemovalQuery>,
) -> Answer<KeysOutcome> {
    caller.require(Role::Admin)?;
    let name: PublisherName = field("name", &name)?;
    if !query.keep_artifacts {
        let artifacts = state.images.signed_by(&name).await?;
        withdraw(&state, artifacts, &caller.name).await?;
    }
    tracing::warn!(publisher = %name, keep_artifacts = query.keep_artifacts, by = %caller.name, "a publisher is turned out");
    Ok(Json(outcome(state.images.undelegate(&name).await?)))
}

fn view(delegation: images::Delegation) -> Delegation {
    let publisher = delegation.publisher;
    Delegation {
        name: publisher.name.to_string(),
        repositories: publisher.repositories.iter().map(ToString::to_string).collect(),
        key: publisher.key.id().to_string(),
        place: if delegation.here { "here" } else { "offline" }.to_owned(),
        expires_at: delegation.expires.map(|at| at.to_string()),
    }
}
