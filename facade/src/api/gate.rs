//! What every request to the API passes: it gets an id, its caller is known, the route allows the caller's role, and
//! what changes something is written to the audit log.
//!
//! Which role a route needs is one table. A route that is not in it is the admin's alone: who forgets a row locks people
//! out, and lets nobody in.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use pki::oci::without_user_info;
use tracing::Instrument;

use super::auth::{Caller, Role};
use super::change::{Change, SECRET_ANSWERS, log};
use super::extract::MAX_BODY_BYTES;
use super::problem::Problem;
use crate::catalog::audit::Happening;
use crate::facade::Facade;
use crate::trace::{self, TRACE};

const REQUEST_ID: &str = "x-request-id";
const MAX_REQUEST_ID_BYTES: usize = 64;
/// Longest subject of a record in the audit log.
const MAX_SUBJECT_CHARS: usize = 500;
/// The fields of a body that name what it is about; none of them can hold a secret.
const SUBJECT_FIELDS: [&str; 10] =
    ["host", "name", "repository", "repositories", "tags", "artifacts", "device", "group", "role", "keys"];

/// What each route needs; everything else needs [`Role::Admin`].
const ROLES: [(&str, &str, Role); 54] = [
    ("GET", "/api/v1/artifacts", Role::Viewer),
    ("GET", "/api/v1/artifacts/{artifact}", Role::Viewer),
    ("POST", "/api/v1/artifacts/{artifact}/revoke", Role::Operator),
    ("POST", "/api/v1/artifacts/{artifact}/pin", Role::Operator),
    ("POST", "/api/v1/artifacts/{artifact}/unpin", Role::Operator),
    ("GET", "/api/v1/assignments", Role::Viewer),
    ("POST", "/api/v1/assignments", Role::Operator),
    ("POST", "/api/v1/assignments/remove", Role::Operator),
    ("GET", "/api/v1/audit", Role::Viewer),
    ("GET", "/api/v1/audit/verification", Role::Viewer),
    ("GET", "/api/v1/connections", Role::Viewer),
    ("POST", "/api/v1/connections", Role::Operator),
    ("GET", "/api/v1/connections/{host}", Role::Viewer),
    ("DELETE", "/api/v1/connections/{host}", Role::Operator),
    ("POST", "/api/v1/connections/{host}/test", Role::Operator),
    ("GET", "/api/v1/delegations", Role::Viewer),
    ("GET", "/api/v1/devices", Role::Viewer),
    ("GET", "/api/v1/devices/{id}", Role::Viewer),
    ("DELETE", "/api/v1/devices/{id}", Role::Operator),
    ("POST", "/api/v1/devices/{id}/approve", Role::Operator),
    ("POST", "/api/v1/devices/{id}/restore", Role::Operator),
    ("POST", "/api/v1/devices/{id}/revoke", Role::Operator),
    ("POST", "/api/v1/devices/{id}/suspend", Role::Operator),
    ("PUT", "/api/v1/devices/{id}/groups/{group}", Role::Operator),
    ("DELETE", "/api/v1/devices/{id}/groups/{group}", Role::Operator),
    ("GET", "/api/v1/enrollment-tokens", Role::Viewer),
    ("POST", "/api/v1/enrollment-tokens", Role::Operator),
    ("DELETE", "/api/v1/enrollment-tokens/{id}", Role::Operator),
    ("GET", "/api/v1/events", Role::Viewer),
    ("POST", "/api/v1/devices/{id}/labels", Role::Operator),
    ("GET", "/api/v1/groups", Role::Viewer),
    ("POST", "/api/v1/imports", Role::Operator),
    ("GET", "/api/v1/keys", Role::Viewer),
    ("POST", "/api/v1/keys/renew", Role::Operator),
    ("GET", "/api/v1/policies", Role::Viewer),
    ("POST", "/api/v1/policies", Role::Operator),
    ("GET", "/api/v1/pulls", Role::Viewer),
    ("GET", "/api/v1/rollouts", Role::Viewer),
    ("POST", "/api/v1/rollouts", Role::Operator),
    ("POST", "/api/v1/rollouts/preview", Role::Operator),
    ("GET", "/api/v1/rollouts/{name}", Role::Viewer),
    ("DELETE", "/api/v1/rollouts/{name}", Role::Operator),
    ("GET", "/api/v1/rollouts/{name}/preview", Role::Viewer),
    ("GET", "/api/v1/rollouts/{name}/devices", Role::Viewer),
    ("POST", "/api/v1/rollouts/{name}/start", Role::Operator),
    ("POST", "/api/v1/rollouts/{name}/approve", Role::Operator),
    ("POST", "/api/v1/rollouts/{name}/pause", Role::Operator),
    ("POST", "/api/v1/rollouts/{name}/resume", Role::Operator),
    ("POST", "/api/v1/rollouts/{name}/abort", Role::Operator),
    ("GET", "/api/v1/signing-requests/{repository}", Role::Viewer),
    ("POST", "/api/v1/signing-requests/{repository}/signatures", Role::Operator),
    ("DELETE", "/api/v1/signing-requests/{repository}/{id}", Role::Operator),
    ("GET", "/api/v1/status", Role::Viewer),
    ("GET", "/api/v1/tags", Role::Viewer),
];

/// Where a pusher may knock too. It imports what is delegated to it and signs what waits for it, and nothing else: the
/// handlers ask.
const PUBLISHING: [(&str, &str); 3] = [
    ("POST", "/api/v1/imports"),
    ("GET", "/api/v1/signing-requests/{repository}"),
    ("POST", "/api/v1/signing-requests/{repository}/signatures"),
];

/// The address that a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

fn needed(method: &Method, path: &str) -> Role {
    let row = ROLES.iter().find(|(verb, route, _)| *verb == method.as_str() && *route == path);
    row.map_or(Role::Admin, |(_, _, role)| *role)
}

fn allow(caller: &Caller, method: &Method, path: &str) -> Result<(), Problem> {
    if caller.is_pusher() && PUBLISHING.contains(&(method.as_str(), path)) {
        return Ok(());
    }
    caller.require(needed(method, path))
}

/// Lets a request through, or answers it.
pub(super) async fn gate(State(facade): State<Arc<Facade>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let span = tracing::info_span!("operator request", request.id = %id);
    let traced = tracing::debug_span!(
        target: TRACE,
        "answer operator",
        otel.kind = "server",
        http.request.method = %request.method(),
        url.path = request.uri().path(),
        request.id = %id,
        http.response.status_code = tracing::field::Empty,
    );
    trace::take_up(&traced, request.headers());
    let admitted = async {
        match admit(&facade, request, next, &id).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        }
    };
    let mut response = admitted.instrument(traced.clone()).instrument(span).await;
    traced.record("http.response.status_code", response.status().as_u16());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

async fn admit(
    facade: &Arc<Facade>,
    mut request: Request,
    next: Next,
    id: &str,
) -> Result<Response, Problem> {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let Some(route) = route.filter(|route| route.as_str().starts_with("/api/v1/")) else {
        return Ok(next.run(request).await);
    };
    let address = request.extensions().get::<Peer>().map(|peer| peer.0);
    let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let caller = authenticate(facade, request.headers(), address).await?;
    request.extensions_mut().insert(caller.clone());
    let allowed = allow(&caller, request.method(), route.as_str());
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        allowed?;
        return Ok(next.run(request).await);
    }
    let mut happening = Happening {
        at: facade.clock.now(),
        who: caller.name.clone(),
        action: format!("{} {}", request.method(), route.as_str()),
        subject: subject(request.uri().path(), b""),
        from: address.to_string(),
        result: 403,
        request_id: id.to_owned(),
    };
    if let Err(problem) = allowed {
        log(&facade.audit.append(happening).await?);
        return Err(problem);
    }
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    happening.subject = subject(parts.uri.path(), &body);
    let secret = SECRET_ANSWERS.contains(&(parts.method.as_str(), route.as_str()));
    Change { facade: Arc::clone(facade), happening, secret, parts, body, next }.make().await
}

async fn authenticate(facade: &Facade, headers: &HeaderMap, address: IpAddr) -> Result<Caller, Problem> {
    let now = facade.clock.now();
    let caller = match bearer(headers) {
        Some(token) => facade.tokens.find(token, now).await?,
        None => None,
    };
    if let Some((name, role)) = caller {
        return Ok(Caller::new(name, role));
    }
    // Only a wrong token costs something, so nobody is locked out by what others try from the same address.
    match facade.refusals.take(address, now) {
        Ok(()) => Err(Problem::unauthenticated()),
        Err(_) => Err(Problem::too_many()),
    }
}

pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

async fn read(body: Body) -> Result<Bytes, Problem> {
    let body = axum::body::to_bytes(body, MAX_BODY_BYTES).await;
    body.map_err(|_| Problem::malformed(format!("the body is larger than {MAX_BODY_BYTES} bytes or was cut")))
}

/// The path, and what the body says it is about.
fn subject(path: &str, body: &[u8]) -> String {
    let path = path.strip_prefix("/api/v1/").unwrap_or(path);
    // An address may be pasted with a password in it, and what is logged here can never be taken out again.
    let mut text = match path.strip_prefix("connections/").and_then(|host| host.rsplit_once("%40")) {
        Some((_user, host)) => format!("connections/{host}"),
        None => path.to_owned(),
    };
    let body: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    for field in SUBJECT_FIELDS {
        if let Some(value) = body.as_ref().and_then(|body| body.get(field)) {
            let mut value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if field == "host" {
                (value, _) = without_user_info(&value);
            }
            // Writing to a string does not fail.
            let _ = write!(text, " {field}={value}");
        }
    }
    text.chars().take(MAX_SUBJECT_CHARS).collect()
}

/// The caller's own id if it is one, so that its log and ours meet; otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let given =
        given.filter(|text| (1..=MAX_REQUEST_ID_BYTES).contains(&text.len()) && text.bytes().all(allowed));
    given.map_or_else(new_id, str::to_owned)
}

fn new_id() -> String {
    let mut bytes = [0; 12];
    // An id that is not random is still an id.
    let _ = getrandom::fill(&mut bytes);
    HEXLOWER.encode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_of_the_api_has_its_role_and_no_other_does() {
        let document = serde_json::to_value(super::super::openapi()).unwrap();
        let mut routes = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for method in operations.as_object().unwrap().keys() {
                routes.push((method.to_uppercase(), path.clone()));
            }
        }
        for (method, path, _) in ROLES {
            let route = (method.to_owned(), path.to_owned());
            assert!(routes.contains(&route), "{method} {path} is no route");
        }
        for (method, path) in routes {
            let role = needed(&method.parse().unwrap(), &path);
            assert!(method == "GET" || role >= Role::Operator, "{method} {path}");
            assert!(role > Role::Pusher, "{method} {path}");
        }
    }

    #[test]
    fn a_pusher_knocks_where_something_is_published_and_nowhere_else() {
        let pusher = Caller::new("ci".to_owned(), Role::Pusher);
        for (method, path, _) in ROLES {
            let allowed = allow(&pusher, &method.parse().unwrap(), path).is_ok();
            assert_eq!(allowed, PUBLISHING.contains(&(method, path)), "{method} {path}");
        }
        let viewer = Caller::new("ci".to_owned(), Role::Viewer);
        assert!(allow(&viewer, &Method::POST, "/api/v1/imports").is_err());
    }

    #[test]
    fn a_route_that_nobody_thought_of_is_the_admins() {
        assert_eq!(needed(&Method::GET, "/api/v1/new"), Role::Admin);
        assert_eq!(needed(&Method::PUT, "/api/v1/status"), Role::Admin);
        assert_eq!(needed(&Method::GET, "/api/v1/operator-tokens"), Role::Admin);
    }

    #[test]
    fn the_subject_names_things_and_never_a_secret() {
        let body = br#"{"host": "ghcr.io", "password": "hunter2", "tags": ["v1", "v2"]}"#;
        let subject = subject("/api/v1/connections", body);
        assert_eq!(subject, r#"connections host=ghcr.io tags=["v1","v2"]"#);
        let subject = super::subject("/api/v1/connections", br#"{"host": "https://me:hunter2@ghcr.io/foo"}"#);
        assert_eq!(subject, "connections host=https://ghcr.io/foo");
        let path = "/api/v1/connections/https%3A%2F%2Fme%3Ahunter2%40ghcr.io%2Ffoo/test";
        assert_eq!(super::subject(path, b""), "connections/ghcr.io%2Ffoo/test");
    }

    #[test]
    fn rejects_request_ids_that_would_write_in_the_log() {
        let with = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(text));
            request_id(&headers)
        };
        assert_eq!(with("build-7.1"), "build-7.1");
        for text in ["", "a b", "a\"b"] {
            assert_ne!(with(text), text);
        }
    }
}
