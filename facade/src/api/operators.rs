//! `/api/v1/operator-tokens`

use axum::Json;
use jiff::Timestamp;

use super::auth::{Caller, Role};
use super::extract::{Body, Paging, Path, Query, field};
use super::problem::Problem;
use super::types::{NewOperatorToken, OperatorToken, OperatorTokenRequest, Page};
use super::{Answer, State};
use crate::catalog::operators::{TokenRecord, TokensError};

/// Longest life of an operator token in seconds: two years.
const MAX_TTL_SECONDS: u64 = 2 * 366 * 86_400;

impl From<TokensError> for Problem {
    fn from(error: TokensError) -> Self {
        match error {
            TokensError::Store(error) => error.into(),
            TokensError::Name(_) => Self::invalid("name", error.to_string()),
            TokensError::Taken(_) | TokensError::First => Self::conflict(error.to_string()),
            TokensError::NoSuchToken(_) => Self::not_found(error.to_string()),
            TokensError::NoRandomness => Self::internal(&error),
        }
    }
}

/// Lists the operator tokens
#[utoipa::path(get, path = "/api/v1/operator-tokens", params(Paging), tag = "access",
    responses((status = 200, body = Page<OperatorToken>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Answer<Page<OperatorToken>> {
    caller.require(Role::Admin)?;
    let limit = paging.limit()?;
    let records = state.tokens.list(paging.after.as_deref(), limit).await?;
    let next = records
        .last()
        .filter(|_| records.len() == limit)
        .map(|last| last.name.clone());
    let items = records.into_iter().map(view).collect();
    Ok(Json(Page { items, next }))
}

/// Makes an operator token
#[utoipa::path(post, path = "/api/v1/operator-tokens", request_body = OperatorTokenRequest, tag = "access",
    responses((status = 200, body = NewOperatorToken), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn create(
    state: State,
    caller: Caller,
    Body(request): Body<OperatorTokenRequest>,
) -> Answer<NewOperatorToken> {
    caller.require(Role::Admin)?;
    let role: Role = field("role", &request.role)?;
    if !(1..=MAX_TTL_SECONDS).contains(&request.ttl_seconds) {
        let reason = "must be between one second and two years";
        return Err(Problem::invalid("ttl_seconds", reason));
    }
    let now = state.clock.now();
    let ttl = i64::try_from(request.ttl_seconds).unwrap_or(i64::MAX);
    let expires_at = Timestamp::from_second(now.as_second().saturating_add(ttl)).unwrap_or(Timestamp::MAX);
    let record = TokenRecord {
        name: request.name.clone(),
        role,
        created_at: now,
        created_by: caller.name.clone(),
        expires_at: Some(expires_at),
        last_used_at: None,
    };
    let token = state.tokens.create(record).await?;
    tracing::warn!(token.name = %request.name, role = role.as_str(), by = %caller.name, "operator token made");
    Ok(Json(NewOperatorToken {
        name: request.name,
        token: token.expose().to_owned(),
        role: role.as_str().to_owned(),
        expires_at: expires_at.to_string(),
    }))
}

/// Revokes an operator token
#[utoipa::path(delete, path = "/api/v1/operator-tokens/{name}", params(("name" = String, Path, description = "The token's name")), tag = "access",
    responses((status = 200, body = OperatorToken), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn revoke(state: State, caller: Caller, Path(name): Path<String>) -> Answer<OperatorToken> {
    caller.require(Role::Admin)?;
    let record = state.tokens.revoke(&name).await?;
    tracing::warn!(token.name = %record.name, by = %caller.name, "operator token revoked");
    Ok(Json(view(record)))
}

fn view(record: TokenRecord) -> OperatorToken {
    OperatorToken {
        name: record.name,
        role: record.role.as_str().to_owned(),
        created_at: record.created_at.to_string(),
        created_by: record.created_by,
        expires_at: record.expires_at.map(|at| at.to_string()),
        last_used_at: record.last_used_at.map(|at| at.to_string()),
    }
}
