//! The cache: what it takes and has left, what is in it; prune and check.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;

use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, page, size};
use crate::api::problem::Problem;
use crate::api::types::{CacheChecked, CacheUsage, CachedBlob, Page, PruneRequest, Pruned};

const HERE: &str = "/console/cache";

#[derive(Template)]
#[template(path = "console/cache.html")]
struct Cache {
    frame: Frame,
    usage: CacheUsage,
    blobs: Page<CachedBlob>,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let usage = visit.api.get("/api/v1/cache").await?;
    let after = visit.query.query(&["after"]);
    let blobs = visit.api.get(&format!("/api/v1/cache/blobs?limit=100{after}")).await?;
    Ok(page(&Cache { frame: visit.frame("Cache", HERE), usage, blobs }))
}

pub(super) async fn change(Path(verb): Path<String>, change: Change) -> Response {
    let outcome = match verb.as_str() {
        "prune" => prune(&change).await,
        "verify" => verify(&change).await,
        _ => Err(Problem::not_found("there is no such change")),
    };
    change.back(HERE, outcome)
}

async fn prune(change: &Change) -> Result<String, Problem> {
    let asked = PruneRequest { unused_seconds: change.fields.number("unused_seconds") };
    let gone: Pruned = change.visit.api.send("/api/v1/cache/prune", &asked).await?;
    Ok(Outcome::done(&format!("Removed {} blobs ({}).", gone.blobs, size(&gone.freed_bytes))).html())
}

async fn verify(change: &Change) -> Result<String, Problem> {
    let checked: CacheChecked = change.visit.api.post("/api/v1/cache/verify").await?;
    let found = match checked.damaged.len() {
        0 => format!("All {} blobs are whole.", checked.good),
        damaged => format!(
            "{damaged} blobs were damaged and are removed; they come again when a device asks. {} are whole.",
            checked.good
        ),
    };
    Ok(Outcome::done(&found).html())
}
