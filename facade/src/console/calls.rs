//! Asks the operator API, in this process, as whoever is signed in.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Method, Request, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower_service::Service as _;

use crate::api::gate::Peer;
use crate::api::problem::Problem;
use crate::secret::Secret;

/// Largest answer in bytes: a list of 100,000 tags fits.
const MAX_ANSWER_BYTES: usize = 32 * 1024 * 1024;

/// The operator API, as one token sees it.
#[derive(Clone, Debug)]
pub(super) struct Api {
    router: Router,
    token: Secret,
    /// The API's audit log says where a change came from, and in which request.
    peer: Option<Peer>,
    request_id: String,
}

impl Api {
    pub(super) fn new(router: Router, token: Secret, peer: Option<Peer>, request_id: String) -> Self {
        Self { router, token, peer, request_id }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::GET, path, Body::empty()).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::DELETE, path, Body::empty()).await
    }

    pub(super) async fn put<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::PUT, path, Body::empty()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::POST, path, Body::empty()).await
    }

    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        let bytes = serde_json::to_vec(body).map_err(|error| Problem::internal(&error))?;
        self.call(Method::POST, path, Body::from(bytes)).await
    }

    /// A stream of events, as it comes.
    pub(super) async fn follow(&self, path: &str, last: Option<&HeaderValue>) -> Response {
        let request = Request::get(path)
            .header(header::ACCEPT, "text/event-stream")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.expose()))
            .header("x-request-id", &self.request_id);
        let request = match last {
            Some(last) => request.header("last-event-id", last),
            None => request,
        };
        match request.body(Body::empty()) {
            Ok(request) => self.ask(request).await,
            Err(_) => Problem::malformed("this is nothing that can be asked for").into_response(),
        }
    }

    async fn ask(&self, mut request: Request<Body>) -> Response {
        if let Some(peer) = self.peer {
            request.extensions_mut().insert(peer);
        }
        match self.router.clone().call(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        }
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, Problem> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token.expose()))
            .header("x-request-id", &self.request_id)
            .body(body)
            .map_err(|_| Problem::malformed("this is nothing that can be asked for"))?;
        let answer = self.ask(request).await;
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), MAX_ANSWER_BYTES)
            .await
            .map_err(|error| Problem::internal(&error))?;
        if status.is_success() {
            serde_json::from_slice(&bytes).map_err(|error| Problem::internal(&error))
        } else {
            Err(serde_json::from_slice(&bytes).unwrap_or_else(|error| Problem::internal(&error)))
        }
    }
}
