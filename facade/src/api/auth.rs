//! Who is at the operator door.
//!
//! `api::gate` finds out by the token, and checks the role that the route needs. A handler says again in its first
//! line what it needs: two locks, of which either one holds.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::problem::Problem;
pub use crate::catalog::operators::{Role, Tokens};
use crate::facade::Facade;

/// An authenticated caller; only a valid token makes one.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The token's name, for the record.
    pub name: String,
    role: Role,
}

impl Caller {
    pub(crate) fn new(name: String, role: Role) -> Self {
        Self { name, role }
    }

    /// Whether the caller only pushes; what it pushes to, the handler has to ask.
    pub fn is_pusher(&self) -> bool {
        self.role == Role::Pusher
    }

    /// Goes on only if the caller's role is at least this one.
    pub fn require(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role {
            return Ok(());
        }
        let needed = role.as_str();
        Err(Problem::forbidden(format!("this needs a token with the role {needed}")))
    }
}

impl FromRequestParts<Arc<Facade>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _facade: &Arc<Facade>) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(Problem::unauthenticated)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_does_what_is_below_it_and_nothing_above() {
        let caller = |role| Caller::new(String::new(), role);
        assert!(caller(Role::Admin).require(Role::Operator).is_ok());
        assert!(caller(Role::Operator).require(Role::Operator).is_ok());
        assert!(caller(Role::Viewer).require(Role::Operator).is_err());
        assert!(caller(Role::Pusher).require(Role::Viewer).is_err());
        assert!(caller(Role::Operator).require(Role::Admin).is_err());
    }
}
