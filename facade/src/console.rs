//! The console: the pages that people see at the operator door.
//!
//! A page decides nothing. It asks the operator API, in this process and with the token of whoever signed in, and shows
//! what it answers; so no page can do what the API would refuse to that token. Everything works without JavaScript:
//! forms, and a redirect after each.

mod access;
mod artifacts;
mod assignments;
mod audit;
mod bar;
mod cache;
mod calls;
mod connections;
mod devices;
mod enrollment;
mod fields;
mod guard;
mod keys;
mod oidc;
mod overview;
mod page;
mod pulls;
mod repository;
mod rollouts;
mod session;
mod sign_in;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Redirect};
use axum::routing::{get, post};
use futures_util::future::BoxFuture;

use crate::api::auth::Caller;
use crate::api::enroll::limit::Limit;
use crate::clock::Clock;
use crate::config::Config;
use crate::facade::{Facade, StartError};
use crate::secret::Secret;
use crate::store::StoreError;
use session::Sessions;

/// Whether browsers reach the console over TLS of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    /// Cookies are for TLS only.
    Tls,
    /// On loopback, or behind somebody else's TLS.
    Plain,
}

/// Takes back a token that was lent for a session.
type Forget = Arc<dyn Fn(&Secret) + Send + Sync>;

type Who = Arc<dyn Fn(Secret) -> BoxFuture<'static, Result<Option<Caller>, StoreError>> + Send + Sync>;

/// What the pages work with.
#[derive(Clone)]
struct Console {
    api: Router,
    who: Who,
    forget: Forget,
    /// Sign-in with an identity provider, where one is configured.
    oidc: Option<Arc<oidc::Oidc>>,
    sessions: Arc<Sessions>,
    attempts: Arc<Limit>,
    clock: Clock,
    transport: Transport,
}

/// The operator door: the API, and the console in front of it.
pub fn with_api(facade: &Arc<Facade>, api: Router, config: &Config) -> Result<Router, StartError> {
    let clock = facade.clock.clone();
    let oidc = oidc::Oidc::configured(facade, config)?;
    let transport = match config.operator_tls_certificate {
        Some(_) => Transport::Tls,
        None => Transport::Plain,
    };
    let facade = Arc::clone(facade);
    let lender = Arc::clone(&facade);
    let who: Who = Arc::new(move |token| {
        let facade = Arc::clone(&facade);
        Box::pin(async move {
            let found = facade.tokens.find(token.expose(), facade.clock.now()).await?;
            Ok(found.map(|(name, role)| Caller::new(name, role)))
        })
    });
    let console = Console {
        api: api.clone(),
        who,
        forget: Arc::new(move |token| lender.tokens.take_back(token)),
        oidc,
        sessions: Arc::new(Sessions::default()),
        attempts: Arc::new(Limit::default()),
        clock,
        transport,
    };
    Ok(api.merge(pages(console)))
}

fn pages(console: Console) -> Router {
    Router::new()
        .route("/", get(|| async { Redirect::to("/console") }))
        .route("/console", get(overview::show))
        .route("/console/sign-in", get(sign_in::show).post(sign_in::sign_in))
        .route("/console/sign-in/oidc", get(oidc::begin))
        .route("/console/sign-in/oidc/callback", get(oidc::callback))
        .route("/console/sign-out", post(sign_in::sign_out))
        .route("/console/connections", get(connections::list).post(connections::add))
        .route("/console/connections/test", post(connections::test))
        .route("/console/connections/remove", post(connections::remove))
        .route("/console/repository", get(repository::show).post(repository::import))
        .route("/console/artifacts", get(artifacts::list))
        .route("/console/artifact", get(artifacts::show))
        .route("/console/artifact/{change}", post(artifacts::change))
        .route("/console/devices", get(devices::list))
        .route("/console/device", get(devices::show))
        .route("/console/device/{change}", post(devices::change))
        .route("/console/enrollment", get(enrollment::show).post(enrollment::make))
        .route("/console/enrollment/revoke", post(enrollment::revoke))
        .route("/console/assignments", get(assignments::list).post(assignments::assign))
        .route("/console/assignments/remove", post(assignments::take_back))
        .route("/console/cache", get(cache::show))
        .route("/console/cache/{change}", post(cache::change))
        .route("/console/keys", get(keys::show))
        .route("/console/access", get(access::show).post(access::make))
        .route("/console/access/revoke", post(access::revoke))
        .route("/console/audit", get(audit::show))
        .route("/console/pulls", get(pulls::show))
        .route("/console/rollouts", get(rollouts::list).post(rollouts::create))
        .route("/console/rollout", get(rollouts::show))
        .route("/console/rollout/live", get(rollouts::live))
        .route("/console/rollout/{change}", post(rollouts::change))
        .route("/console/events", get(rollouts::events))
        .route("/console/style.css", get(style))
        .route("/console/console.js", get(script))
        .route("/console/{*elsewhere}", get(page::nowhere))
        .layer(axum::middleware::from_fn(page::dress))
        .with_state(console)
}

async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", include_str!("console/assets/style.css"))
}

async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", include_str!("console/assets/console.js"))
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    // The pages name their version of the facade in the query.
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "public, max-age=86400")];
    (headers, text)
}
