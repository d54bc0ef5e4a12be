//! Parses requests; whatever is wrong with one becomes a problem document.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::problem::Problem;

/// Largest body of a request in bytes.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024;

/// Most items of one page.
pub(super) const MAX_PAGE: usize = 1000;

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|_| {
            Problem::malformed(format!("the body is larger than {MAX_BODY_BYTES} bytes or was cut"))
        })?;
        match pki::json::parse_as(&bytes, MAX_BODY_BYTES) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Problem::malformed(super::problem::chain(&error))),
        }
    }
}

/// The parameters of a query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|rejection| Problem::malformed(rejection.body_text()))
    }
}

/// A segment of the path.
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|rejection| Problem::malformed(rejection.body_text()))
    }
}

/// Which page of a list.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// `next` of the page before
    pub after: Option<String>,
    /// Most items, up to 1000
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: usize,
}

fn default_limit() -> usize {
    100
}

impl Paging {
    /// The limit, checked.
    pub fn limit(&self) -> Result<usize, Problem> {
        if (1..=MAX_PAGE).contains(&self.limit) {
            Ok(self.limit)
        } else {
            Err(Problem::invalid("limit", format!("must be between 1 and {MAX_PAGE}")))
        }
    }
}

/// Parses one field of a request; its error names the field.
pub fn field<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|error: T::Err| Problem::invalid(name, error.to_string()))
}
