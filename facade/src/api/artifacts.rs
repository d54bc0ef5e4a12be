//! `/api/v1/artifacts`

use axum::Json;
use pki::oci::Repository;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Role};
use super::extract::{Paging, Path, Query, field};
use super::problem::Problem;
use super::types::{Artifact, Content, Page};
use super::{Answer, State};
use crate::catalog::artifacts::{self, ArtifactsError};
use crate::catalog::events::Kind;
use crate::publish::PublishingError;
use crate::pull::PullError;
use crate::store::StoreError;

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { .. } => {
                Self::conflict("somebody else changed this at the same time; try again")
            }
            StoreError::InUse { .. }
            | StoreError::Open { .. }
            | StoreError::Failed { .. }
            | StoreError::Unreadable { .. }
            | StoreError::Unwritable { .. } => Self::internal(&error),
        }
    }
}

impl From<ArtifactsError> for Problem {
    fn from(error: ArtifactsError) -> Self {
        match error {
            ArtifactsError::NotFound(_) => Self::not_found(error.to_string()),
            ArtifactsError::Ambiguous(..) | ArtifactsError::Malformed(_) => {
                Self::invalid("artifact", error.to_string())
            }
            ArtifactsError::Store(error) => error.into(),
        }
    }
}

impl From<PublishingError> for Problem {
    fn from(error: PublishingError) -> Self {
        match &error {
            PublishingError::Behind { .. } | PublishingError::RootLost { .. } | PublishingError::Waiting => {
                Self::conflict(error.to_string())
            }
            PublishingError::NoRequest | PublishingError::NoPublisher(_) => {
                Self::not_found(error.to_string())
            }
            PublishingError::KnownPublisher(_)
            | PublishingError::Delegated { .. }
            | PublishingError::TooMany { .. }
            | PublishingError::Revoked(_) => Self::conflict(error.to_string()),
            PublishingError::Change(_)
            | PublishingError::OnlineOnly
            | PublishingError::Signature(_)
            | PublishingError::NoSigner { .. }
            | PublishingError::NotInRequest(_) => Self::invalid("keys", super::problem::chain(&error)),
            PublishingError::Store(_)
            | PublishingError::Sign { .. }
            | PublishingError::Unreadable { .. }
            | PublishingError::Vault(_)
            | PublishingError::Refused(_)
            | PublishingError::Key(_)
            | PublishingError::Name(_) => Self::internal(&error),
        }
    }
}

/// Which artifacts.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ArtifactsQuery {
    /// Only those of this repository
    repository: Option<String>,
}

/// Lists the signed artifacts
#[utoipa::path(get, path = "/api/v1/artifacts", params(ArtifactsQuery, Paging), tag = "artifacts",
    responses((status = 200, body = Page<Artifact>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(query): Query<ArtifactsQuery>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Artifact>> {
    caller.require(Role::Viewer)?;
    let repository: Option<Repository> =
        query.repository.as_deref().map(|text| field("repository", text)).transpose()?;
    let limit = paging.limit()?;
    let artifacts = state.artifacts.list(repository.as_ref(), paging.after.as_deref(), limit).await?;
    let next = artifacts.last().filter(|_| artifacts.len() == limit).map(|last| last.name().to_string());
    Ok(Json(Page { items: artifacts.iter().map(|artifact| view(&state, artifact)).collect(), next }))
}

/// Shows one artifact and what it consists of
#[utoipa::path(get, path = "/api/v1/artifacts/{artifact}", params(("artifact" = String, Path, description = "`REPOSITORY@sha256:…`, or an unambiguous prefix of the digest")), tag = "artifacts",
    responses((status = 200, body = Artifact), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn show(state: State, caller: Caller, Path(artifact): Path<String>) -> Answer<Artifact> {
    caller.require(Role::Viewer)?;
    let artifact = state.artifacts.find(&artifact).await?;
    let content =
        artifact.closure.documents.iter().chain(&artifact.closure.blobs).map(|descriptor| Content {
            digest: descriptor.digest.to_string(),
            media_type: descriptor.media_type.to_string(),
            size_bytes: descriptor.size,
        });
    Ok(Json(Artifact { content: content.collect(), ..view(&state, &artifact) }))
}

/// Revokes an artifact: devices can no longer pull it, and drop it from what they may install
#[utoipa::path(post, path = "/api/v1/artifacts/{artifact}/revoke", params(("artifact" = String, Path, description = "`REPOSITORY@sha256:…`, or an unambiguous prefix of the digest")), tag = "artifacts",
    responses((status = 200, body = Artifact), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn revoke(state: State, caller: Caller, Path(artifact): Path<String>) -> Answer<Artifact> {
    caller.require(Role::Operator)?;
    let artifact = state.artifacts.find(&artifact).await?;
    if artifact.revoked_at.is_none() {
        withdraw(&state, vec![artifact.clone()], &caller.name).await?;
    }
    let artifact = state.artifacts.get(artifact.name()).await?.unwrap_or(artifact);
    Ok(Json(view(&state, &artifact)))
}

/// Revokes artifacts. They are refused at once, whatever becomes of the signature: a revocation that waits must not go on
/// serving.
pub(super) async fn withdraw(
    state: &State,
    mut artifacts: Vec<artifacts::Artifact>,
    by: &str,
) -> Result<(), Problem> {
    let now = state.clock.now();
    for artifact in &mut artifacts {
        artifact.revoked_at = Some(now);
        state.access.remove_artifact(artifact.name());
    }
    let recorded = state.images.revoke(&artifacts).await;
    for artifact in &artifacts {
        state.pins.remove(artifact.name()).await?;
        state.assignments.withdraw(artifact.name()).await?;
        tracing::warn!(artifact = %artifact.name(), by = %by, "artifact revoked");
        state.events.raise(Kind::Revoked, artifact.name(), format!("revoked by {by}"));
    }
    Ok(recorded?)
}

/// Fetches all of an artifact into the cache, and keeps it there whatever becomes of it upstream
#[utoipa::path(post, path = "/api/v1/artifacts/{artifact}/pin", params(("artifact" = String, Path, description = "`REPOSITORY@sha256:…`, or an unambiguous prefix of the digest")), tag = "artifacts",
    responses((status = 200, body = Artifact), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem), (status = 502, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn pin(state: State, caller: Caller, Path(artifact): Path<String>) -> Answer<Artifact> {
    caller.require(Role::Operator)?;
    let artifact = state.artifacts.find(&artifact).await?;
    if artifact.revoked_at.is_some() {
        return Err(Problem::conflict(format!("{} is revoked", artifact.name())));
    }
    if !state.puller.caches() {
        return Err(Problem::conflict(
            "nothing can be pinned: the cache of this facade is switched off (cache_enabled)",
        ));
    }
    keep(&state, &artifact, &caller.name).await?;
    Ok(Json(view(&state, &artifact)))
}

/// Lets the cache drop an artifact again when it needs room
#[utoipa::path(post, path = "/api/v1/artifacts/{artifact}/unpin", params(("artifact" = String, Path, description = "`REPOSITORY@sha256:…`, or an unambiguous prefix of the digest")), tag = "artifacts",
    responses((status = 200, body = Artifact), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn unpin(state: State, caller: Caller, Path(artifact): Path<String>) -> Answer<Artifact> {
    caller.require(Role::Operator)?;
    let artifact = state.artifacts.find(&artifact).await?;
    state.pins.remove(artifact.name()).await?;
    tracing::info!(artifact = %artifact.name(), by = %caller.name, "artifact unpinned");
    Ok(Json(view(&state, &artifact)))
}

/// Pins an artifact. The pin comes first, so that nothing of it is evicted while the rest is fetched.
pub(super) async fn keep(state: &State, artifact: &artifacts::Artifact, by: &str) -> Result<(), Problem> {
    let was_pinned = state.pins.contains(artifact.name());
    state.pins.add(&artifact.closure, by, state.clock.now()).await?;
    if let Err(error) = state.prefetch(&artifact.closure).await {
        if !was_pinned {
            state.pins.remove(artifact.name()).await?;
        }
        // What is not connected was never asked: that is not the registry's failure.
        state.registries.registry(artifact.name().repository().host())?;
        let detail = super::problem::chain(&error);
        return Err(if error.is_wrong_content() {
            Problem::wrong_content(detail)
        } else if matches!(error, PullError::NoRoom { .. }) {
            Problem::busy(detail)
        } else {
            Problem::upstream(detail)
        });
    }
    tracing::info!(artifact = %artifact.name(), by = %by, "artifact pinned");
    Ok(())
}

fn view(state: &State, artifact: &artifacts::Artifact) -> Artifact {
    Artifact {
        name: artifact.name().to_string(),
        media_type: artifact.closure.root.media_type.to_string(),
        manifest_bytes: artifact.closure.root.size,
        size_bytes: artifact.closure.size_bytes(),
        platforms: artifact.platform_names(),
        tag: artifact.tag.as_ref().map(ToString::to_string).unwrap_or_default(),
        imported_at: artifact.imported_at.to_string(),
        imported_by: artifact.imported_by.clone(),
        pinned: state.pins.contains(artifact.name()),
        running_on: state.assignments.census().running(artifact.name()) as u64,
        revoked_at: artifact.revoked_at.map(|at| at.to_string()),
        content: Vec::new(),
    }
}
