//! Connected registries: connect, test, disconnect.

use askama::Template;
use axum::response::Response;

use super::fields::encoded;
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, html, page};
use crate::api::problem::Problem;
use crate::api::types::{Connection, ConnectionCheck, ConnectionRequest, Page};

const HERE: &str = "/console/connections";

#[derive(Template)]
#[template(path = "console/connections.html")]
struct Connections {
    frame: Frame,
    connections: Page<Connection>,
}

#[derive(Template)]
#[template(path = "console/check.html")]
struct Checked<'a> {
    host: &'a str,
    check: &'a ConnectionCheck,
}

pub(super) async fn list(visit: Visit) -> Result<Response, Failure> {
    let after = visit.query.query(&["after"]);
    let connections = visit.api.get(&format!("/api/v1/connections?limit=100{after}")).await?;
    Ok(page(&Connections { frame: visit.frame("Connections", HERE), connections }))
}

pub(super) async fn add(change: Change) -> Response {
    let outcome = connect(&change).await;
    change.back(HERE, outcome)
}

async fn connect(change: &Change) -> Result<String, Problem> {
    let fields = &change.fields;
    let request = ConnectionRequest {
        host: fields.text("host").to_owned(),
        provider: fields.text("provider").to_owned(),
        username: fields.filled("username"),
        password: fields.exact("password"),
        config: fields.filled("config"),
        plain_http: fields.ticked("plain_http"),
        allow_private: fields.ticked("allow_private"),
        token_host: fields.filled("token_host"),
        mirror_of: None,
        mirror_below: None,
        ca_pem: fields.filled("ca_pem"),
        client_certificate_pem: fields.filled("client_certificate_pem"),
    };
    let connection: Connection = change.visit.api.send("/api/v1/connections", &request).await?;
    let connected = format!("{} is connected.", connection.host);
    // Connected is not yet working: what a test says comes at once.
    let tested = try_out(change, &connection.host).await?;
    Ok(Outcome::done(&connected).html() + &tested)
}

pub(super) async fn test(change: Change) -> Response {
    let outcome = try_out(&change, change.fields.text("host")).await;
    change.back(HERE, outcome)
}

async fn try_out(change: &Change, host: &str) -> Result<String, Problem> {
    let path = format!("/api/v1/connections/{}/test", encoded(host));
    let check: ConnectionCheck = change.visit.api.post(&path).await?;
    Ok(html(&Checked { host, check: &check }))
}

pub(super) async fn remove(change: Change) -> Response {
    let outcome = disconnect(&change).await;
    change.back(HERE, outcome)
}

async fn disconnect(change: &Change) -> Result<String, Problem> {
    let path = format!("/api/v1/connections/{}", encoded(change.fields.text("host")));
    let connection: Connection = change.visit.api.delete(&path).await?;
    Ok(Outcome::done(&format!("{} is no longer connected.", connection.host)).html())
}
