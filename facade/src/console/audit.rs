//! The audit log: who changed what, newest first, with its filters, and whether it is whole.

use askama::Template;
use axum::response::Response;

use super::fields::next_page;
use super::guard::Visit;
use super::page::{Failure, Frame, page};
use crate::api::types::{AuditRecord, AuditVerification, Page};

/// The fields of the filter, which are those of the API.
const FILTER: [&str; 4] = ["who", "text", "since", "until"];

#[derive(Template)]
#[template(path = "console/audit.html")]
struct Log {
    frame: Frame,
    who: String,
    text: String,
    since: String,
    until: String,
    filtered: bool,
    records: Page<AuditRecord>,
    /// Where the next page is.
    next: Option<String>,
    checked: Option<AuditVerification>,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let filters = visit.query.query(&FILTER);
    let after = visit.query.query(&["after"]);
    let path = format!("/api/v1/audit?order=newest&limit=100{filters}{after}");
    let records: Page<AuditRecord> = visit.api.get(&path).await?;
    let checked = if visit.query.ticked("check") {
        Some(visit.api.get("/api/v1/audit/verification").await?)
    } else {
        None
    };
    let text = |name| visit.query.text(name).to_owned();
    Ok(page(&Log {
        who: text("who"),
        text: text("text"),
        since: text("since"),
        until: text("until"),
        filtered: !filters.is_empty(),
        next: next_page(records.next.as_ref(), &filters),
        records,
        checked,
        frame: visit.frame("Audit log", "/console/audit"),
    }))
}
