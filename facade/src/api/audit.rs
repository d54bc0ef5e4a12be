//! `/api/v1/audit`

use axum::Json;
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Role};
use super::extract::{Paging, Query, field};
use super::problem::Problem;
use super::types::{AuditRecord, AuditVerification, Page};
use super::{Answer, State};
use crate::catalog::audit::search::{Filter, Order};
use crate::catalog::audit::{AuditError, Record, Verdict};

impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        Self::internal(&error)
    }
}

/// Which records.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Only what the token of this name did
    who: Option<String>,
    /// Only what has this text in its action or subject
    text: Option<String>,
    /// Only what happened then or later (RFC 3339)
    since: Option<String>,
    /// Only what happened before then (RFC 3339)
    until: Option<String>,
    /// `oldest` (first, the default) or `newest`
    order: Option<String>,
}

impl AuditQuery {
    fn filter(&self) -> Result<Filter, Problem> {
        let time = |name, text: &Option<String>| text.as_deref().map(|text| field(name, text)).transpose();
        Ok(Filter {
            who: self.who.clone(),
            text: self.text.clone(),
            since: time("since", &self.since)?,
            until: time("until", &self.until)?,
        })
    }

    fn order(&self) -> Result<Order, Problem> {
        match self.order.as_deref() {
            None | Some("oldest") => Ok(Order::OldestFirst),
            Some("newest") => Ok(Order::NewestFirst),
            Some(_) => Err(Problem::invalid("order", "must be oldest or newest")),
        }
    }
}

/// Lists what was changed; a page can be short and yet have a next one, because a search reads a bounded part of the log
#[utoipa::path(get, path = "/api/v1/audit", params(AuditQuery, Paging), tag = "audit",
    responses((status = 200, body = Page<AuditRecord>), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(query): Query<AuditQuery>,
    Query(paging): Query<Paging>,
) -> Answer<Page<AuditRecord>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let after: Option<u64> = paging.after.as_deref().map(|text| field("after", text)).transpose()?;
    let found = state.audit.search(&query.filter()?, query.order()?, after, limit).await?;
    let items = found.records.into_iter().map(view).collect();
    Ok(Json(Page { items, next: found.next.map(|next| next.to_string()) }))
}

/// Says whether every record of the audit log is as it was written
#[utoipa::path(get, path = "/api/v1/audit/verification", tag = "audit",
    responses((status = 200, body = AuditVerification), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn verify(state: State, caller: Caller) -> Answer<AuditVerification> {
    caller.require(Role::Viewer)?;
    Ok(Json(match state.audit.verify().await? {
        Verdict::Whole(head) => {
            AuditVerification { whole: true, sequence: head.sequence, head: Some(head.hash), reason: None }
        }
        Verdict::Broken { sequence, reason } => {
            AuditVerification { whole: false, sequence, head: None, reason: Some(reason.to_owned()) }
        }
    }))
}

fn view(record: Record) -> AuditRecord {
    let happening = record.happening;
    AuditRecord {
        sequence: record.sequence,
        at: happening.at.to_string(),
        who: happening.who,
        action: happening.action,
        subject: happening.subject,
        from: happening.from,
        result: happening.result,
        request_id: happening.request_id,
        previous: record.previous,
        hash: record.hash,
    }
}
