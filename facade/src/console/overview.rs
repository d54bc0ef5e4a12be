//! Whether all is well, and what to do first.

use askama::Template;
use axum::response::Response;

use super::guard::Visit;
use super::page::{Failure, Frame, page, size};
use crate::api::types::Status;

#[derive(Template)]
#[template(path = "console/overview.html")]
struct Overview {
    frame: Frame,
    status: Status,
    devices: u64,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let status: Status = visit.api.get("/api/v1/status").await?;
    Ok(page(&Overview {
        frame: visit.frame("Overview", "/console"),
        devices: status.devices.values().sum(),
        status,
    }))
}
