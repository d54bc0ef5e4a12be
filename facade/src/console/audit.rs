//! The audit log: who changed what, newest first, with its filters, and whether it is whole.

use askama::Template;
use axum::response::Response;

use super::fields::encoded;
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
    let mut query = String::new();
    for name in FILTER {
        if let Some(value) = visit.query.filled(name) {
            query = format!("{query}&{name}={}", encoded(&value));
        }
    }
    let after = visit.query.filled("after");
    let after = after.map(|after| format!("&after={}", encoded(&after))).unwrap_or_default();
    let path = format!("/api/v1/audit?order=newest&limit=100{query}{after}");
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
        filtered: !query.is_empty(),
        next: records.next.as_ref().map(|next| format!("?after={}{query}", encoded(next))),
        records,
        checked,
        frame: visit.frame("Audit log", "/console/audit"),
    }))
}
