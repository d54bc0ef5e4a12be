//! `/api/v1/cache`

use std::time::Duration;

use axum::Json;
use pki::digest::Digest;

use super::auth::{Caller, Role};
use super::extract::{Body, Paging, Query, field};
use super::problem::Problem;
use super::types::{CacheChecked, CacheUsage, CachedBlob, Page, PruneRequest, Pruned};
use super::{Answer, State};
use crate::blobs::BlobsError;

/// Longest time without use that can be asked for in seconds: a century.
const MAX_UNUSED_SECONDS: u64 = 100 * 366 * 86_400;

impl From<BlobsError> for Problem {
    fn from(error: BlobsError) -> Self {
        Self::internal(&error)
    }
}

/// Says what the cache takes and has left
#[utoipa::path(get, path = "/api/v1/cache", tag = "cache",
    responses((status = 200, body = CacheUsage), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn usage(state: State, caller: Caller) -> Answer<CacheUsage> {
    caller.require(Role::Viewer)?;
    let usage = state.puller.usage().await?;
    Ok(Json(CacheUsage {
        blobs: usage.blobs,
        size_bytes: usage.size_bytes,
        partial_bytes: usage.partial_bytes,
        free_bytes: usage.free_bytes,
    }))
}

/// Lists the blobs of the cache
#[utoipa::path(get, path = "/api/v1/cache/blobs", params(Paging), tag = "cache",
    responses((status = 200, body = Page<CachedBlob>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Answer<Page<CachedBlob>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let after: Option<Digest> = paging.after.as_deref().map(|text| field("after", text)).transpose()?;
    // One more than asked for says whether there is more.
    let mut held = state.puller.page(after, limit.saturating_add(1)).await?;
    let more = held.len() > limit;
    held.truncate(limit);
    let next = held.last().filter(|_| more).map(|last| last.digest.to_string());
    let items = held.iter().map(|held| CachedBlob {
        digest: held.digest.to_string(),
        size_bytes: held.size_bytes,
        last_used: held.last_used.to_string(),
    });
    Ok(Json(Page { items: items.collect(), next }))
}

/// Removes what no device may have from the cache
#[utoipa::path(post, path = "/api/v1/cache/prune", request_body = PruneRequest, tag = "cache",
    responses((status = 200, body = Pruned), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn prune(state: State, caller: Caller, Body(asked): Body<PruneRequest>) -> Answer<Pruned> {
    caller.require(Role::Operator)?;
    if asked.unused_seconds > MAX_UNUSED_SECONDS {
        return Err(Problem::invalid("unused_seconds", format!("must be at most {MAX_UNUSED_SECONDS}")));
    }
    let gone = state.puller.prune(Duration::from_secs(asked.unused_seconds)).await?;
    let pruned =
        Pruned { blobs: gone.len() as u64, freed_bytes: gone.iter().map(|held| held.size_bytes).sum() };
    tracing::info!(operator = %caller.name, blobs = pruned.blobs, size_bytes = pruned.freed_bytes, "cache pruned");
    Ok(Json(pruned))
}

/// Reads every byte of the cache and removes what is damaged
#[utoipa::path(post, path = "/api/v1/cache/verify", tag = "cache",
    responses((status = 200, body = CacheChecked), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn verify(state: State, caller: Caller) -> Answer<CacheChecked> {
    caller.require(Role::Operator)?;
    let checked = state.puller.verify().await?;
    Ok(Json(CacheChecked {
        good: checked.good as u64,
        damaged: checked.bad.iter().map(ToString::to_string).collect(),
    }))
}
