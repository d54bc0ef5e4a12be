//! The operator door: JSON under `/api/v1`, described by the OpenAPI document that this code generates.
//!
//! A handler parses, calls the catalog, and answers; what it may do is said by [`auth::Caller::require`] in its first
//! line. Secrets go in and never come out.

pub(crate) mod alarm;
pub mod auth;
pub mod device_door;
pub mod enroll;
pub mod extract;
pub mod problem;
pub mod types;

mod artifacts;
mod assignments;
mod audience;
mod audit;
mod cache;
mod change;
mod connections;
mod delegations;
mod devices;
mod document;
pub(crate) mod events;
pub(crate) mod gate;
mod groups;
mod imports;
mod keys;
mod operators;
mod policies;
mod pulls;
mod rekey;
mod rollouts;
mod status;
mod tags;

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi;
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
    security(("token" = [])),
)]
struct Document;

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
        .routes(routes!(policies::list, policies::change))
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
        .routes(routes!(delegations::list, delegations::add))
        .routes(routes!(delegations::remove))
        .routes(routes!(keys::request))
        .routes(routes!(keys::sign))
        .routes(routes!(keys::drop_request))
        .routes(routes!(cache::usage))
        .routes(routes!(cache::list))
        .routes(routes!(cache::prune))
        .routes(routes!(cache::verify))
        .routes(routes!(groups::list))
        .routes(routes!(groups::join, groups::leave))
        .routes(routes!(groups::label))
        .routes(routes!(rollouts::list, rollouts::create))
        .routes(routes!(rollouts::preview))
        .routes(routes!(rollouts::show, rollouts::delete))
        .routes(routes!(rollouts::preview_of))
        .routes(routes!(rollouts::devices))
        .routes(routes!(rollouts::start))
        .routes(routes!(rollouts::approve))
        .routes(routes!(rollouts::pause))
        .routes(routes!(rollouts::resume))
        .routes(routes!(rollouts::abort))
        .routes(routes!(operators::list, operators::create))
        .routes(routes!(operators::revoke))
        .routes(routes!(audit::list))
        .routes(routes!(audit::verify))
        .routes(routes!(pulls::list))
        .routes(routes!(events::list))
        .routes(routes!(status::status))
}

/// The OpenAPI document, generated from the handlers.
pub fn openapi() -> utoipa::openapi::OpenApi {
    let mut document = documented().into_openapi();
    document::complete(&mut document);
    document
}

/// Everything behind the operator door.
pub fn router(facade: Arc<Facade>) -> Router {
    let (router, mut document) = documented().split_for_parts();
    document::complete(&mut document);
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
