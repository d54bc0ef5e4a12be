//! `/api/v1/pulls`: the access log.

use axum::Json;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Role};
use super::extract::{Paging, Query, field};
use super::problem::Problem;
use super::types::{Page, Pull};
use super::{Answer, State};
use crate::catalog::pulls::{Filter, Line, Place, PullsError};

impl From<PullsError> for Problem {
    fn from(error: PullsError) -> Self {
        Self::internal(&error)
    }
}

/// Which pulls.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PullsQuery {
    /// Only this device's
    device: Option<String>,
    /// Only those of repositories that have this text in their name
    repository: Option<String>,
    /// Only those of digests that begin like this: `sha256:3f2a…`
    digest: Option<String>,
    /// Only those that ended like this: `served`, `left`, `cut`, `failed` or `refused`
    outcome: Option<String>,
    /// Only those then or later (RFC 3339)
    since: Option<String>,
    /// Only those before then (RFC 3339)
    until: Option<String>,
}

impl PullsQuery {
    fn filter(self) -> Result<Filter, Problem> {
        fn parsed<T>(name: &str, text: Option<&str>) -> Result<Option<T>, Problem>
        where
            T: std::str::FromStr<Err: std::fmt::Display>,
        {
            text.map(|text| field(name, text)).transpose()
        }
        Ok(Filter {
            device: parsed("device", self.device.as_deref())?,
            outcome: parsed("outcome", self.outcome.as_deref())?,
            since: parsed("since", self.since.as_deref())?,
            until: parsed("until", self.until.as_deref())?,
            repository: self.repository,
            digest: self.digest,
        })
    }
}

/// Lists who pulled what, the newest first; a page can be short and yet have a next one, because a search reads a bounded
/// part of the log
#[utoipa::path(get, path = "/api/v1/pulls", params(PullsQuery, Paging), tag = "audit",
    responses((status = 200, body = Page<Pull>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(query): Query<PullsQuery>,
    Query(paging): Query<Paging>,
) -> Answer<Page<Pull>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let after: Option<Place> = paging.after.as_deref().map(|text| field("after", text)).transpose()?;
    let found = state.pulls.search(query.filter()?, after, limit).await?;
    let items = found.lines.into_iter().map(view).collect();
    Ok(Json(Page { items, next: found.next.map(|next| next.to_string()) }))
}

fn view(line: Line) -> Pull {
    Pull {
        at: line.at.to_string(),
        device: line.device,
        repository: line.repository,
        digest: line.digest,
        source: line.source,
        size_bytes: line.size_bytes,
        duration_ms: line.duration_ms,
        outcome: line.outcome.as_str().to_owned(),
        request_id: line.request_id,
        not_kept: line.not_kept,
    }
}
