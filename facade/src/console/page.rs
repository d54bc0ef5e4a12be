//! What all pages have in common: their frame, how they tell times and sizes, their error page and their headers.

use std::fmt;

use askama::Template;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;

use super::guard::RequestId;
use super::session;
use crate::api::problem::Problem;

/// Nothing but our own files, nothing inline, nowhere else to send a form, and no frame around us.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Not `no-referrer`: with that, browsers hide where our own forms come from as well.
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The menu, by what somebody is about: address, name.
pub(super) const MENU: [(&str, &[(&str, &str)]); 4] = [
    (
        "Fleet",
        &[
            ("/console", "Overview"),
            ("/console/devices", "Devices"),
            ("/console/enrollment", "Enrollment"),
            ("/console/assignments", "Assignments"),
            ("/console/rollouts", "Rollouts"),
        ],
    ),
    (
        "Images",
        &[
            ("/console/connections", "Connections"),
            ("/console/repository", "Repositories"),
            ("/console/artifacts", "Artifacts"),
            ("/console/cache", "Cache"),
        ],
    ),
    ("Trust", &[("/console/keys", "Keys"), ("/console/access", "Operators")]),
    ("Records", &[("/console/pulls", "Access log"), ("/console/audit", "Audit log")]),
];

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What surrounds a page.
pub(super) struct Frame {
    pub(super) title: String,
    /// The entry of the menu that this page belongs to.
    pub(super) section: &'static str,
    pub(super) who: String,
    /// Whether forms are shown. What may be done is decided elsewhere, by the API.
    pub(super) may_change: bool,
    pub(super) csrf: String,
    /// HTML that a form before this page left, from our own templates.
    pub(super) notices: Vec<String>,
    pub(super) now: Timestamp,
}

impl Frame {
    /// A time, told from now.
    pub(super) fn when(&self, at: &str) -> When {
        When { at: at.parse().ok(), now: self.now }
    }

    /// The same, where there may be none.
    #[expect(clippy::ref_option, reason = "templates hand fields over by reference")]
    pub(super) fn maybe(&self, at: &Option<String>) -> When {
        self.when(at.as_deref().unwrap_or_default())
    }
}

/// A time as a person tells it, with the exact one behind it.
pub(super) struct When {
    at: Option<Timestamp>,
    now: Timestamp,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(at) = self.at else {
            return f.write_str("<span class=\"none\">never</span>");
        };
        let exact = at.strftime("%Y-%m-%dT%H:%M:%SZ");
        let told = told(at.duration_since(self.now).as_secs());
        write!(f, "<time datetime=\"{exact}\" title=\"{exact}\">{told}</time>")
    }
}

// Made of a parsed time and our own words.
impl askama::filters::HtmlSafe for When {}

/// A distance in time, in words.
fn told(seconds: i64) -> String {
    let (number, unit) = match seconds.unsigned_abs() {
        0..=9 => return "just now".to_owned(),
        seconds @ 10..=119 => (seconds, "s"),
        seconds @ 120..=7_199 => (seconds / 60, "min"),
        seconds @ 7_200..=172_799 => (seconds / 3_600, "h"),
        seconds => (seconds / 86_400, "days"),
    };
    if seconds < 0 { format!("{number} {unit} ago") } else { format!("in {number} {unit}") }
}

/// A size in bytes, as a person tells it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "templates hand fields over by reference")]
pub(super) fn size(bytes: &u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut tenths, mut unit) = (*bytes, 0, "B");
    for next in units {
        if whole < 1024 {
            break;
        }
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit = next;
    }
    if unit == "B" || whole >= 100 { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
}

/// An artifact's name with a digest that fits into a line.
pub(super) fn short(name: &str) -> String {
    match name.split_once("@sha256:") {
        Some((repository, hex)) => format!("{repository}@{}", hex.get(..12).unwrap_or(hex)),
        None => name.to_owned(),
    }
}

/// What came of a form, in a line.
#[derive(Template)]
#[template(path = "console/outcome.html")]
pub(super) struct Outcome<'a> {
    good: bool,
    text: &'a str,
    request_id: &'a str,
}

impl<'a> Outcome<'a> {
    pub(super) fn done(text: &'a str) -> Self {
        Self { good: true, text, request_id: "" }
    }

    pub(super) fn refused(problem: &'a Problem, request_id: &'a str) -> Self {
        Self { good: false, text: &problem.detail, request_id }
    }

    pub(super) fn html(&self) -> String {
        html(self)
    }
}

/// Writes a piece of HTML. Writing to memory does not fail.
pub(super) fn html(template: &impl Template) -> String {
    template.render().unwrap_or_else(|error| {
        tracing::error!(%error, "a page could not be written");
        String::new()
    })
}

/// Writes a page.
pub(super) fn page(template: &impl Template) -> Response {
    Html(html(template)).into_response()
}

/// A request that gets the error page instead.
#[derive(Debug)]
pub(super) struct Failure(pub(super) Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        // `dress` knows the request's id and writes the page.
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(self.0);
        response
    }
}

#[derive(Template)]
#[template(path = "console/error.html")]
struct ErrorPage<'a> {
    problem: &'a Problem,
    request_id: &'a str,
    version: &'static str,
}

/// There is no such page.
pub(super) async fn nowhere() -> Failure {
    Failure(Problem::not_found("there is no such page in the console"))
}

/// Gives a request its id and a response its headers, and writes the error page.
pub(super) async fn dress(mut request: Request, next: Next) -> Response {
    let id = session::request_id();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = refuse(&problem, &id, &method, &path);
    }
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Pages are for whoever is signed in; the files that are for everybody say so themselves.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", id);
    }
    response
}

fn refuse(problem: &Problem, id: &str, method: &Method, path: &str) -> Response {
    tracing::warn!(request.id = %id, %method, path, status = problem.status, detail = %problem.detail, "no page");
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let written = page(&ErrorPage { problem, request_id: id, version: VERSION });
    (status, written).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_times_from_now() {
        let cases = [
            (-5, "just now"),
            (-60, "60 s ago"),
            (3_600, "in 60 min"),
            (-7_200, "2 h ago"),
            (259_200, "in 3 days"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(told(seconds), expected);
        }
    }

    #[test]
    fn tells_sizes_in_the_largest_unit_that_fits() {
        for (bytes, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (204 << 20, "204 MiB"), (5 << 40, "5.0 TiB")]
        {
            assert_eq!(size(&bytes), expected);
        }
    }

    #[test]
    fn a_time_that_is_none_cannot_be_html() {
        let when = When { at: "<script>".parse().ok(), now: Timestamp::UNIX_EPOCH };
        assert_eq!(when.to_string(), "<span class=\"none\">never</span>");
    }
}
