//! The access log: which device had what, newest first, with its filters.

use askama::Template;
use axum::response::Response;

use super::fields::next_page;
use super::guard::Visit;
use super::page::{Failure, Frame, page, size};
use crate::api::types::{Page, Pull};
use crate::catalog::pulls::Outcome;

/// The fields of the filter, which are those of the API.
const FILTER: [&str; 6] = ["device", "repository", "digest", "outcome", "since", "until"];

#[derive(Template)]
#[template(path = "console/pulls.html")]
struct Log {
    frame: Frame,
    device: String,
    repository: String,
    digest: String,
    outcome: String,
    since: String,
    until: String,
    outcomes: [&'static str; 5],
    filtered: bool,
    pulls: Page<Pull>,
    /// Where the next page is.
    next: Option<String>,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let filters = visit.query.query(&FILTER);
    let after = visit.query.query(&["after"]);
    let pulls: Page<Pull> = visit.api.get(&format!("/api/v1/pulls?limit=100{filters}{after}")).await?;
    let text = |name| visit.query.text(name).to_owned();
    Ok(page(&Log {
        device: text("device"),
        repository: text("repository"),
        digest: text("digest"),
        outcome: text("outcome"),
        since: text("since"),
        until: text("until"),
        outcomes: Outcome::ALL.map(Outcome::as_str),
        filtered: !filters.is_empty(),
        next: next_page(pulls.next.as_ref(), &filters),
        pulls,
        frame: visit.frame("Access log", "/console/pulls"),
    }))
}

/// How an outcome looks.
fn tone(outcome: &str) -> &'static str {
    match outcome {
        "served" => "good",
        "left" => "",
        _ => "bad",
    }
}

/// A digest that fits into a line.
fn brief(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// A span of time, as a person tells it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "templates hand fields over by reference")]
fn span(milliseconds: &u64) -> String {
    match *milliseconds {
        short @ 0..=9_999 => format!("{short} ms"),
        long => format!("{} s", long / 1000),
    }
}
