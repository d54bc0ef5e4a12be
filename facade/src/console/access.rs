//! Who may use the facade: operators' tokens, made, shown once, and revoked.

use askama::Template;
use axum::response::Response;

use super::fields::encoded;
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, html, page};
use crate::api::problem::Problem;
use crate::api::types::{NewOperatorToken, OperatorToken, OperatorTokenRequest, Page};

const HERE: &str = "/console/access";
const PATH: &str = "/api/v1/operator-tokens";

#[derive(Template)]
#[template(path = "console/access.html")]
struct Access {
    frame: Frame,
    tokens: Page<OperatorToken>,
}

#[derive(Template)]
#[template(path = "console/operator_token.html")]
struct Made<'a> {
    token: &'a NewOperatorToken,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let after = visit.query.query(&["after"]);
    let tokens = visit.api.get(&format!("{PATH}?limit=100{after}")).await?;
    Ok(page(&Access { frame: visit.frame("Operators", HERE), tokens }))
}

pub(super) async fn make(change: Change) -> Response {
    let outcome = create(&change).await;
    change.back(HERE, outcome)
}

async fn create(change: &Change) -> Result<String, Problem> {
    let fields = &change.fields;
    let request = OperatorTokenRequest {
        name: fields.text("name").to_owned(),
        role: fields.text("role").to_owned(),
        ttl_seconds: fields.number("ttl_seconds"),
    };
    let token: NewOperatorToken = change.visit.api.send(PATH, &request).await?;
    Ok(html(&Made { token: &token }))
}

pub(super) async fn revoke(change: Change) -> Response {
    let path = format!("{PATH}/{}", encoded(change.fields.text("name")));
    let revoked: Result<OperatorToken, Problem> = change.visit.api.delete(&path).await;
    let outcome = revoked.map(|token| Outcome::done(&format!("Token {} is revoked.", token.name)).html());
    change.back(HERE, outcome)
}
