//! `/api/v1/audit`

use axum::Json;

use super::auth::{Caller, Role};
use super::extract::{Paging, Query, field};
use super::problem::Problem;
use super::types::{AuditRecord, AuditVerification, Page};
use super::{Answer, State};
use crate::catalog::audit::{AuditError, Record, Verdict};

impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        Self::internal(&error)
    }
}

/// Lists what was changed, oldest first
#[utoipa::path(get, path = "/api/v1/audit", params(Paging), tag = "audit",
    responses((status = 200, body = Page<AuditRecord>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Answer<Page<AuditRecord>> {
    caller.require(Role::Admin)?;
    let limit = paging.limit()?;
    let after: Option<u64> = paging
        .after
        .as_deref()
        .map(|text| field("after", text))
        .transpose()?;
    let records = state.audit.list(after, limit).await?;
    let next = records
        .last()
        .filter(|_| records.len() == limit)
        .map(|last| last.sequence.to_string());
    let items = records.into_iter().map(view).collect();
    Ok(Json(Page { items, next }))
}

/// Says whether every record of the audit log is as it was written
#[utoipa::path(get, path = "/api/v1/audit/verification", tag = "audit",
    responses((status = 200, body = AuditVerification), (status = 401, body = Problem), (status = 403, body = Problem)))]
pub(super) async fn verify(state: State, caller: Caller) -> Answer<AuditVerification> {
    caller.require(Role::Admin)?;
    Ok(Json(match state.audit.verify().await? {
        Verdict::Whole(head) => AuditVerification {
            whole: true,
            sequence: head.sequence,
            head: Some(head.hash),
            reason: None,
        },
        Verdict::Broken { sequence, reason } => AuditVerification {
            whole: false,
            sequence,
            head: None,
            reason: Some(reason.to_owned()),
        },
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
