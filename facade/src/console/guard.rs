//! What a request must show before a page is made for it: a session whose token still opens the door, and for a change
//! that it comes from a page of this console.
//!
//! [`Visit`] and [`Change`] are the evidence; a handler that takes one cannot have skipped the check.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use jiff::Timestamp;

use super::calls::Api;
use super::fields::Fields;
use super::page::{Failure, Frame, Outcome};
use super::session::{self, Opened};
use super::{Console, Transport};
use crate::api::auth::{Caller, Role};
use crate::api::gate::Peer;
use crate::api::problem::Problem;

/// Largest form in bytes.
const MAX_FORM_BYTES: usize = 1024 * 1024;

/// The name under which forms carry their session's token.
const CSRF_FIELD: &str = "csrf";

/// The name of a request, for its line in the log.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) String);

/// Somebody who is signed in looks at a page.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) api: Api,
    pub(super) caller: Caller,
    pub(super) now: Timestamp,
    /// What the query of the address says.
    pub(super) query: Fields,
    session: Opened,
    console: Console,
    request_id: String,
}

impl Visit {
    /// What surrounds a page; takes the notices that wait for it.
    pub(super) fn frame(&self, title: &str, section: &'static str) -> Frame {
        Frame {
            title: title.to_owned(),
            section,
            who: self.caller.name.clone(),
            may_change: self.caller.require(Role::Operator).is_ok(),
            csrf: self.session.csrf.clone(),
            notices: self.console.sessions.take(&self.session.key),
            now: self.now,
        }
    }

    /// Closes the session.
    pub(super) fn sign_out(&self) {
        (self.console.forget)(&self.session.token);
        self.console.sessions.close(&self.session.key);
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

impl FromRequestParts<Console> for Visit {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Response> {
        let elsewhere = || Redirect::to("/console/sign-in").into_response();
        let now = console.clock.now();
        let session = session(&parts.headers, console.transport)
            .and_then(|cookie| console.sessions.get(&cookie, now))
            .ok_or_else(elsewhere)?;
        let caller = (console.who)(session.token.clone()).await;
        let caller = caller.map_err(|error| Failure(error.into()).into_response())?;
        let Some(caller) = caller else {
            // The token was revoked or has ended: so has what was opened with it.
            console.sessions.close(&session.key);
            return Err(elsewhere());
        };
        let id = parts.extensions.get::<RequestId>().cloned();
        let id = id.map(|id| id.0).unwrap_or_default();
        let peer = parts.extensions.get::<Peer>().copied();
        Ok(Self {
            api: Api::new(console.api.clone(), session.token.clone(), peer, id.clone()),
            caller,
            now,
            query: Fields::parse(parts.uri.query().unwrap_or_default().as_bytes()),
            session,
            console: console.clone(),
            request_id: id,
        })
    }
}

/// Somebody who is signed in sent a form of ours.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) visit: Visit,
    pub(super) fields: Fields,
}

impl Change {
    /// Goes back to a page, which tells what came of it.
    pub(super) fn back(&self, to: &str, outcome: Result<String, Problem>) -> Response {
        let html = match outcome {
            Ok(html) => html,
            Err(problem) => {
                let id = &self.visit.request_id;
                tracing::warn!(request.id = %id, status = problem.status, detail = %problem.detail, "a form was refused");
                Outcome::refused(&problem, id).html()
            }
        };
        self.visit.console.sessions.leave(&self.visit.session.key, html);
        Redirect::to(to).into_response()
    }
}

impl FromRequest<Console> for Change {
    type Rejection = Response;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        check_origin(&parts.headers, &parts.uri).map_err(IntoResponse::into_response)?;
        let visit = Visit::from_request_parts(&mut parts, console).await?;
        let fields = read(body).await.map_err(IntoResponse::into_response)?;
        if !visit.session.wrote(fields.text(CSRF_FIELD)) {
            return Err(foreign().into_response());
        }
        Ok(Self { visit, fields })
    }
}

/// Reads a form.
pub(super) async fn read(body: axum::body::Body) -> Result<Fields, Failure> {
    let bytes = axum::body::to_bytes(body, MAX_FORM_BYTES).await;
    let bytes = bytes.map_err(|_| Failure(Problem::malformed("the form is larger than 1 MiB or was cut")))?;
    Ok(Fields::parse(&bytes))
}

/// Refuses a form that another site's page sent (cross-site request forgery). Browsers say where a form comes from.
pub(super) fn check_origin(headers: &HeaderMap, uri: &Uri) -> Result<(), Failure> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let site = headers.get("sec-fetch-site").map(axum::http::HeaderValue::as_bytes);
    if site.is_some_and(|site| site != b"same-origin") {
        return Err(foreign());
    }
    let host = text(header::HOST).or_else(|| uri.authority().map(axum::http::uri::Authority::as_str));
    let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://"));
    match (host, origin) {
        // The scheme is not compared: somebody else's TLS may stand before a console on loopback.
        (Some(host), Some((_, origin))) if origin.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(foreign()),
    }
}

fn foreign() -> Failure {
    Failure(Problem::forbidden(
        "this form was not sent by a page of this session; go back, load the page again and send it again",
    ))
}

fn session(headers: &HeaderMap, transport: Transport) -> Option<String> {
    let headers = headers.get_all(header::COOKIE).iter();
    let mut values = headers.filter_map(|header| session::cookie(header.to_str().ok()?, transport));
    values.next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        check_origin(&map, &Uri::from_static("/console/sign-in")).is_ok()
    }

    #[test]
    fn takes_a_form_of_its_own_page() {
        let own = [("host", "console:8080"), ("origin", "https://console:8080")];
        assert!(check(&own));
        assert!(check(&[own[0], own[1], ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn rejects_a_form_of_another_site() {
        let host = ("host", "console:8080");
        for origin in
            ["https://evil.example", "null", "https://console:9090", "https://evil.example/console:8080"]
        {
            assert!(!check(&[host, ("origin", origin)]), "{origin}");
        }
        let origin = ("origin", "https://console:8080");
        for site in ["cross-site", "same-site", "none"] {
            assert!(!check(&[host, origin, ("sec-fetch-site", site)]), "{site}");
        }
    }

    #[test]
    fn rejects_a_form_that_does_not_say_where_it_comes_from() {
        assert!(!check(&[("host", "console:8080")]));
        assert!(!check(&[]));
    }
}
