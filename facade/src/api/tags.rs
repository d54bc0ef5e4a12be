//! `/api/v1/tags`

use axum::Json;
use pki::oci::Repository;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Role};
use super::extract::{Query, field};
use super::problem::Problem;
use super::types::Tags;
use super::{Answer, State};
use crate::upstream::{BrowseLimits, Clipped, UpstreamError};

/// Most tags one answer lists.
const MAX_TAGS: usize = 100_000;

/// Which tags.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TagsQuery {
    /// Any docker reference without tag
    #[param(example = "ghcr.io/owner/app")]
    repository: String,
    /// Most tags to read
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 100_000, default = 1000)]
    limit: usize,
}

fn default_limit() -> usize {
    1000
}

impl From<UpstreamError> for Problem {
    fn from(error: UpstreamError) -> Self {
        if matches!(error, UpstreamError::NotFound { .. }) {
            Self::not_found(error.line())
        } else {
            Self::upstream(error.line())
        }
    }
}

/// Lists the tags of a repository, newest likely first
#[utoipa::path(get, path = "/api/v1/tags", params(TagsQuery), tag = "import",
    responses((status = 200, body = Tags), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem), (status = 502, body = Problem)))]
pub(super) async fn list(state: State, caller: Caller, Query(query): Query<TagsQuery>) -> Answer<Tags> {
    caller.require(Role::Viewer)?;
    let repository: Repository = field("repository", &query.repository)?;
    if !(1..=MAX_TAGS).contains(&query.limit) {
        return Err(Problem::invalid(
            "limit",
            format!("must be between 1 and {MAX_TAGS}"),
        ));
    }
    let registry = state.registries.registry(repository.host())?;
    let limits = BrowseLimits {
        tags: query.limit,
        ..BrowseLimits::default()
    };
    let found = registry.tags(repository.name(), &limits).await?;
    Ok(Json(Tags {
        repository: repository.to_string(),
        tags: found.tags.iter().map(ToString::to_string).collect(),
        hidden: found.hidden.iter().map(ToString::to_string).collect(),
        clipped: found.clipped.as_ref().map(reason),
    }))
}

/// Why a list is not complete, in words.
fn reason(clipped: &Clipped) -> String {
    match clipped {
        Clipped::Pages { limit } => format!("the registry has more than {limit} pages"),
        Clipped::Tags { limit } => {
            format!("the repository has more than {limit} tags (raise the limit to see more)")
        }
        Clipped::Bytes { limit } => format!("the list is longer than {limit} bytes"),
        Clipped::Time { limit_seconds } => format!("the registry took longer than {limit_seconds} s"),
        Clipped::Loop {} => "the registry leads from page to page in a circle".to_owned(),
        Clipped::Failed { error } => format!("the registry stopped half-way: {error}"),
    }
}
