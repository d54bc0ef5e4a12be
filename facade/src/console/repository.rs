//! The repository browser: look at tags, pick some, import them.

use askama::Template;
use axum::response::Response;

use super::fields::encoded;
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, html, page, short, size};
use crate::api::problem::Problem;
use crate::api::types::{Connection, ImportReport, ImportRequest, Page, Tags};

const HERE: &str = "/console/repository";

/// Tags shown at once; the filter finds the others.
const SHOWN: usize = 500;

#[derive(Template)]
#[template(path = "console/repository.html")]
struct Browser {
    frame: Frame,
    repository: String,
    filter: String,
    connections: Vec<Connection>,
    found: Option<Tags>,
    /// Why there is no list.
    refusal: Option<Problem>,
    /// Tags that the filter lets through, and how many of them are not shown.
    matching: usize,
    unshown: usize,
}

#[derive(Template)]
#[template(path = "console/imported.html")]
struct Imported<'a> {
    repository: &'a str,
    report: &'a ImportReport,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let repository = visit.query.text("repository").to_owned();
    let filter = visit.query.text("filter").to_owned();
    let connections: Page<Connection> = visit.api.get("/api/v1/connections?limit=100").await?;
    let (mut found, mut refusal) = (None, None);
    if !repository.is_empty() {
        let path = format!("/api/v1/tags?limit=10000&repository={}", encoded(&repository));
        match visit.api.get::<Tags>(&path).await {
            Ok(tags) => found = Some(tags),
            // What a registry says about itself belongs beside the form, not on an error page.
            Err(problem) if problem.status != 401 => refusal = Some(problem),
            Err(problem) => return Err(problem.into()),
        }
    }
    let mut matching = 0;
    if let Some(found) = &mut found {
        found.tags.retain(|tag| tag.contains(&filter));
        matching = found.tags.len();
        found.tags.truncate(SHOWN);
    }
    Ok(page(&Browser {
        frame: visit.frame("Repositories", HERE),
        repository,
        filter,
        connections: connections.items,
        found,
        refusal,
        matching,
        unshown: matching.saturating_sub(SHOWN),
    }))
}

pub(super) async fn import(change: Change) -> Response {
    let repository = encoded(change.fields.text("repository"));
    let outcome = freeze(&change).await;
    change.back(&format!("{HERE}?repository={repository}"), outcome)
}

async fn freeze(change: &Change) -> Result<String, Problem> {
    let repository = change.fields.text("repository");
    let mut tags = change.fields.all("tag");
    tags.retain(|tag| !tag.is_empty());
    if tags.is_empty() {
        return Ok(Outcome::done("No tag was picked, so nothing was imported.").html());
    }
    let request = ImportRequest {
        repository: repository.to_owned(),
        tags,
        pin: change.fields.ticked("pin"),
        dry_run: false,
        for_group: None,
        for_device: None,
    };
    let report: ImportReport = change.visit.api.send("/api/v1/imports", &request).await?;
    Ok(html(&Imported { repository, report: &report }))
}

/// What became of a tag, in words.
fn outcome(result: &crate::api::types::ImportResult) -> String {
    let text = serde_json::to_value(result.outcome).ok();
    text.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}
