//! Signing in with an operator token, and out.

use std::net::{IpAddr, Ipv4Addr};

use askama::Template;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use jiff::Timestamp;

use super::Console;
use super::guard::{self, Change};
use super::page::{Failure, page};
use super::session::set_cookie;
use crate::api::gate::Peer;
use crate::api::problem::Problem;
use crate::secret::Secret;

/// Longest token that is looked up.
const MAX_TOKEN_BYTES: usize = 4096;

#[derive(Template)]
#[template(path = "console/sign_in.html")]
struct SignIn {
    refusal: String,
    /// The identity provider, where there is one.
    provider: Option<String>,
    version: &'static str,
}

pub(super) async fn show(State(console): State<Console>) -> Response {
    form(&console, String::new())
}

pub(super) fn form(console: &Console, refusal: String) -> Response {
    let provider = console.oidc.as_ref().map(|oidc| oidc.name().to_owned());
    page(&SignIn { refusal, provider, version: env!("CARGO_PKG_VERSION") })
}

/// Counts an attempt to sign in: where it comes from, or what somebody gets who tries too often.
pub(super) fn attempt(
    console: &Console,
    peer: Option<Extension<Peer>>,
    now: Timestamp,
) -> Result<IpAddr, Box<Response>> {
    let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.0);
    console.attempts.take(address, now).map_err(|wait| {
        tracing::warn!(peer.address = %address, "too many attempts to sign in to the console");
        let seconds = wait.as_secs().max(0) + 1;
        let refusal = format!("Too many attempts from your address. Try again in {seconds} s.");
        Box::new((StatusCode::TOO_MANY_REQUESTS, form(console, refusal)).into_response())
    })?;
    Ok(address)
}

pub(super) async fn sign_in(
    State(console): State<Console>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Result<Response, Failure> {
    guard::check_origin(request.headers(), request.uri())?;
    let fields = guard::read(request.into_body()).await?;
    let now = console.clock.now();
    let address = match attempt(&console, peer, now) {
        Ok(address) => address,
        Err(refusal) => return Ok(*refusal),
    };
    let token = Secret::new(fields.text("token").to_owned());
    let caller = if token.expose().len() > MAX_TOKEN_BYTES {
        None
    } else {
        (console.who)(token.clone()).await.map_err(Problem::from)?
    };
    let Some(caller) = caller else {
        tracing::warn!(peer.address = %address, "a token that is not valid was tried at the console");
        let refusal = "This is not a valid token: it was mistyped, has ended, or was revoked.".to_owned();
        return Ok((StatusCode::UNAUTHORIZED, form(&console, refusal)).into_response());
    };
    console.attempts.give_back(address);
    let cookie = console.sessions.open(token, now).map_err(|error| Problem::internal(&error))?;
    tracing::info!(peer.address = %address, by = %caller.name, "signed in to the console");
    Ok(with_cookies(Redirect::to("/console").into_response(), &[set_cookie(&cookie, console.transport)]))
}

pub(super) async fn sign_out(State(console): State<Console>, change: Change) -> Response {
    change.visit.sign_out();
    with_cookies(Redirect::to("/console/sign-in").into_response(), &[set_cookie("", console.transport)])
}

pub(super) fn with_cookies(mut response: Response, cookies: &[String]) -> Response {
    for cookie in cookies {
        if let Ok(cookie) = HeaderValue::from_str(cookie) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    }
    response
}
