//! The keys that sign metadata: how many must sign, where they are, and when what they signed ends.

use askama::Template;
use axum::response::Response;

use super::guard::Visit;
use super::page::{Failure, Frame, page};
use crate::api::types::RoleKeys;

#[derive(Template)]
#[template(path = "console/keys.html")]
struct Keys {
    frame: Frame,
    roles: Vec<RoleKeys>,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let roles = visit.api.get("/api/v1/keys").await?;
    Ok(page(&Keys { frame: visit.frame("Keys", "/console/keys"), roles }))
}

/// What time is left, in a word that a chip has room for.
fn state(role: &RoleKeys) -> &'static str {
    const WEEK: i64 = 7 * 86_400;
    match role.expires_in_seconds {
        Some(left) if left <= 0 => "ended",
        // Timestamps live for a week: the facade signs them again long before.
        Some(left) if left < WEEK && role.role != "timestamp" => "ends soon",
        _ => "",
    }
}
