//! Who is at the operator door.
//!
//! A bearer token is looked up by its SHA-256; the token itself is stored nowhere. The role it carries is checked by
//! [`Caller::require`], the first line of every handler.

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;

use super::problem::Problem;
use crate::facade::Facade;
use crate::store::{Store, StoreError, Table, get_json};

const TABLE: Table = Table("operator-tokens");

/// What a caller may do. Each role may do all that the ones before it may, except the pusher, who only pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Push images to the facade's own repositories.
    Pusher,
    /// Look.
    Viewer,
    /// Change connections, artifacts, assignments and devices.
    Operator,
    /// Change keys and access.
    Admin,
}

/// A token as it is stored, under the SHA-256 of its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<jiff::Timestamp>,
}

/// The tokens that open the operator door.
pub struct Tokens {
    store: Arc<dyn Store>,
    /// SHA-256 of the first admin token, which `facade init` left in the data directory.
    first_admin: String,
}

impl Tokens {
    /// The tokens of a store, and the first one.
    pub fn new(store: Arc<dyn Store>, first_admin: String) -> Self {
        Self { store, first_admin }
    }

    /// Who a token belongs to; nobody, where it is not valid or no longer.
    pub(crate) async fn caller(
        &self,
        token: &str,
        now: jiff::Timestamp,
    ) -> Result<Option<Caller>, StoreError> {
        // Finding a token by its hash tells nothing about any token, whatever time it takes.
        let hash = HEXLOWER.encode(&Sha256::digest(token.as_bytes()));
        if hash == self.first_admin {
            return Ok(Some(Caller {
                name: "admin".to_owned(),
                role: Role::Admin,
            }));
        }
        let record: Option<Record> = get_json(&*self.store, TABLE, &hash).await?;
        let record = record.filter(|record| record.expires_at.is_none_or(|end| now < end));
        Ok(record.map(|record| Caller {
            name: record.name,
            role: record.role,
        }))
    }
}

/// An authenticated caller; only a valid token makes one.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's name, for the record.
    pub name: String,
    role: Role,
}

impl Caller {
    /// A caller without a token, for tests.
    #[cfg(test)]
    pub(crate) fn named(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
        }
    }

    /// Goes on only if the caller's role is at least this one.
    pub fn require(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        let needed = serde_json::to_value(role).ok();
        let needed = needed
            .as_ref()
            .and_then(serde_json::Value::as_str)
            .unwrap_or("higher");
        Err(Problem::forbidden(format!(
            "this needs a token with the role {needed}"
        )))
    }
}

impl FromRequestParts<Arc<Facade>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, facade: &Arc<Facade>) -> Result<Self, Problem> {
        let header = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let token = token.ok_or_else(Problem::unauthenticated)?;
        let caller = facade.tokens.caller(token, facade.clock.now()).await?;
        caller.ok_or_else(Problem::unauthenticated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_does_what_is_below_it_and_nothing_above() {
        let caller = |role| Caller {
            name: String::new(),
            role,
        };
        assert!(caller(Role::Admin).require(Role::Operator).is_ok());
        assert!(caller(Role::Operator).require(Role::Operator).is_ok());
        assert!(caller(Role::Viewer).require(Role::Operator).is_err());
        assert!(caller(Role::Pusher).require(Role::Viewer).is_err());
        assert!(caller(Role::Operator).require(Role::Admin).is_err());
    }
}
