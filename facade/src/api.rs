//! The operator door: JSON under `/api/v1`, described by the OpenAPI document that this code generates.
//!
//! A handler parses, calls the catalog, and answers; what it may do is said by [`auth::Caller::require`] in its first
//! line. Secrets go in and never come out.

pub mod auth;
pub mod device_door;
pub mod enroll;
pub mod extract;
pub mod problem;
pub mod types;

mod artifacts;
mod assignments;
mod cache;
mod audit;
mod connections;
mod devices;
pub(crate) mod gate;
mod groups;
mod imports;
mod keys;
mod operators;
mod rekey;
mod status;
mod tags;

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, Ref, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::facade::Facade;
use problem::Problem;

/// What the handlers work with.
pub type State = axum::extract::State<Arc<Facade>>;

/// The result of a handler.
pub type Answer<T> = Result<axum::Json<T>, Problem>;

#[derive(OpenApi)]
#[openapi(
    info(title = "Drayage", description = "The operator API of a Drayage facade.", license(name = "Apache-2.0")),
    modifiers(&Security),
    security(("token" = [])),
)]
struct Document;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document
            .components
            .get_or_insert_with(Default::default)
            .add_security_scheme("token", bearer);
    }
}

fn documented() -> OpenApiRouter<Arc<Facade>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(connections::list, connections::add))
        .routes(routes!(connections::show, connections::remove))
        .routes(routes!(connections::test))
        .routes(routes!(tags::list))
        .routes(routes!(imports::import))
        .routes(routes!(artifacts::list))
        .routes(routes!(artifacts::show))
        .routes(routes!(artifacts::revoke))
        .routes(routes!(artifacts::pin))
        .routes(routes!(artifacts::unpin))
        .routes(routes!(rekey::rekey))
        .routes(routes!(assignments::list, assignments::assign))
        .routes(routes!(assignments::unassign))
        .routes(routes!(devices::list))
        .routes(routes!(devices::show, devices::delete))
        .routes(routes!(devices::approve))
        .routes(routes!(devices::revoke))
        .routes(routes!(devices::suspend))
        .routes(routes!(devices::restore))
        .routes(routes!(devices::list_tokens, devices::make_token))
        .routes(routes!(devices::revoke_token))
        .routes(routes!(keys::list))
        .routes(routes!(keys::rotate))
        .routes(routes!(keys::ceremony))
        .routes(routes!(keys::renew))
        .routes(routes!(keys::recover))
        .routes(routes!(keys::request))
        .routes(routes!(keys::sign))
        .routes(routes!(keys::drop_request))
        .routes(routes!(cache::usage))
        .routes(routes!(cache::list))
        .routes(routes!(cache::prune))
        .routes(routes!(cache::verify))
        .routes(routes!(groups::join, groups::leave))
        .routes(routes!(operators::list, operators::create))
        .routes(routes!(operators::revoke))
        .routes(routes!(audit::list))
        .routes(routes!(audit::verify))
        .routes(routes!(status::status))
}

/// The OpenAPI document, generated from the handlers.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = documented().into_openapi();
    describe_gate(&mut document);
    document
}

/// What the gate answers before any handler is reached is said once, for every operation.
fn describe_gate(document: &mut utoipa::openapi::OpenApi) {
    let refusals = [
        ("403", "The token's role does not allow this"),
        ("429", "Too many requests without a valid token"),
    ];
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            for (status, description) in refusals {
                let answer = || gate_refusal(description).into();
                operation
                    .responses
                    .responses
                    .entry(status.to_owned())
                    .or_insert_with(answer);
            }
        }
    }
}

fn gate_refusal(description: &str) -> utoipa::openapi::Response {
    let problem = Ref::from_schema_name("Problem");
    ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", Content::new(Some(problem)))
        .build()
}

/// Everything behind the operator door.
pub fn router(facade: Arc<Facade>) -> Router {
    let (router, mut document) = documented().split_for_parts();
    describe_gate(&mut document);
    let document = document.to_json().unwrap_or_default();
    router
        .route(
            "/api/openapi.json",
            get(move || async move { ([(header::CONTENT_TYPE, "application/json")], document).into_response() }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .fallback(|| async { Problem::not_found("there is nothing at this path; see /api/openapi.json") })
        .method_not_allowed_fallback(|| async { Problem::method() })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&facade), gate::gate))
        .with_state(facade)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_operation_is_described_with_its_refusals() {
        let document = serde_json::to_value(super::openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() > 10);
        for (path, operations) in paths {
            for (method, operation) in operations.as_object().unwrap() {
                let answers = operation["responses"].as_object().unwrap();
                for status in ["401", "403", "429"] {
                    assert!(answers.contains_key(status), "{method} {path} {status}");
                }
                assert!(operation["summary"].is_string(), "{method} {path}");
            }
        }
    }
}
