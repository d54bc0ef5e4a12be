//! Signed artifacts: what there is, what one consists of, where it runs; pin and revoke.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;

use super::fields::encoded;
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, page, short, size};
use crate::api::problem::Problem;
use crate::api::types::{Artifact, Assignment, Device, Page};

/// How many devices and assignments one page shows.
const SHOWN: usize = 100;

#[derive(Template)]
#[template(path = "console/artifacts.html")]
struct Listing {
    frame: Frame,
    repository: String,
    artifacts: Page<Artifact>,
}

#[derive(Template)]
#[template(path = "console/artifact.html")]
struct Detail {
    frame: Frame,
    artifact: Artifact,
    assignments: Page<Assignment>,
    running: Page<Device>,
}

pub(super) async fn list(visit: Visit) -> Result<Response, Failure> {
    let repository = visit.query.text("repository").to_owned();
    let query = visit.query.query(&["repository", "after"]);
    let artifacts = visit.api.get(&format!("/api/v1/artifacts?limit=100{query}")).await?;
    Ok(page(&Listing { frame: visit.frame("Artifacts", "/console/artifacts"), repository, artifacts }))
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let name = encoded(visit.query.text("name"));
    let artifact: Artifact = visit.api.get(&format!("/api/v1/artifacts/{name}")).await?;
    let of = |list: &str, filter: &str| {
        format!("/api/v1/{list}?limit={SHOWN}&{filter}={}", encoded(&artifact.name))
    };
    Ok(page(&Detail {
        frame: visit.frame("Artifact", "/console/artifacts"),
        assignments: visit.api.get(&of("assignments", "artifact")).await?,
        running: visit.api.get(&of("devices", "running")).await?,
        artifact,
    }))
}

pub(super) async fn change(Path(verb): Path<String>, change: Change) -> Response {
    let name = encoded(change.fields.text("name"));
    let outcome = do_it(&change, &verb, &name).await;
    change.back(&format!("/console/artifact?name={name}"), outcome)
}

async fn do_it(change: &Change, verb: &str, name: &str) -> Result<String, Problem> {
    let done = match verb {
        "revoke" => "Revoked: devices can no longer pull it, and it is assigned to nobody.",
        "pin" => "Pinned: all of it is in the cache, and stays there.",
        "unpin" => "Unpinned: the cache may drop it when it needs room.",
        _ => return Err(Problem::not_found("there is no such change")),
    };
    let path = format!("/api/v1/artifacts/{name}/{verb}");
    let _: Artifact = change.visit.api.post(&path).await?;
    Ok(Outcome::done(done).html())
}
