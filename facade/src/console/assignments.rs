//! Assignments: what devices and groups should have.

use askama::Template;
use axum::response::Response;

use super::fields::{encoded, next_page};
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, page, short};
use crate::api::problem::Problem;
use crate::api::types::{Artifact, Assignment, AssignmentReport, AssignmentRequest, Page};

const HERE: &str = "/console/assignments";

#[derive(Template)]
#[template(path = "console/assignments.html")]
struct Listing {
    frame: Frame,
    assignments: Page<Assignment>,
    /// Artifacts that can be assigned, to be offered.
    artifacts: Vec<Artifact>,
    artifact: String,
    device: String,
    /// The artifact whose assignments are shown; empty: all are.
    of: String,
    /// Where the next page is.
    next: Option<String>,
}

pub(super) async fn list(visit: Visit) -> Result<Response, Failure> {
    let of = visit.query.text("of").to_owned();
    let only = if of.is_empty() { String::new() } else { format!("&artifact={}", encoded(&of)) };
    let after = visit.query.query(&["after"]);
    let assignments: Page<Assignment> =
        visit.api.get(&format!("/api/v1/assignments?limit=100{only}{after}")).await?;
    let next = next_page(assignments.next.as_ref(), &visit.query.query(&["of"]));
    let mut artifacts: Page<Artifact> = visit.api.get("/api/v1/artifacts?limit=200").await?;
    artifacts.items.retain(|artifact| artifact.revoked_at.is_none());
    Ok(page(&Listing {
        frame: visit.frame("Assignments", HERE),
        assignments,
        artifacts: artifacts.items,
        artifact: visit.query.text("artifact").to_owned(),
        device: visit.query.text("device").to_owned(),
        of,
        next,
    }))
}

pub(super) async fn assign(change: Change) -> Response {
    let outcome = send(&change, "/api/v1/assignments").await;
    let outcome = outcome.map(|report| told("Assigned", &report));
    change.back(HERE, outcome)
}

pub(super) async fn take_back(change: Change) -> Response {
    let outcome = send(&change, "/api/v1/assignments/remove").await;
    let outcome = outcome.map(|report| told("Taken back", &report));
    change.back(HERE, outcome)
}

async fn send(change: &Change, path: &str) -> Result<AssignmentReport, Problem> {
    let request = AssignmentRequest {
        artifacts: vec![change.fields.text("artifact").to_owned()],
        device: change.fields.filled("device"),
        group: change.fields.filled("group"),
    };
    change.visit.api.send(path, &request).await
}

fn told(what: &str, report: &AssignmentReport) -> String {
    let replaced = report.assignments.iter().any(|assignment| assignment.replaces.is_some());
    let replaced = if replaced { " It replaces another version of it." } else { "" };
    let devices = match report.devices {
        1 => "1 device is".to_owned(),
        number => format!("{number} devices are"),
    };
    Outcome::done(&format!("{what}: {devices} to change.{replaced}")).html()
}
