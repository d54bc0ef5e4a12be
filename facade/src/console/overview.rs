//! Whether all is well, what is under way, and what to do first.

use askama::Template;
use axum::response::Response;

use super::bar::Bar;
use super::guard::Visit;
use super::page::{Failure, Frame, page, size};
use super::rollouts::{fare, tone};
use crate::api::types::{Connection, Event, Page, Rollout, Status};

/// How much is looked at for what is shown beside the figures.
const LOOKED_AT: usize = 200;
const EVENTS: usize = 8;
/// Rollouts that are over; whoever wants them goes to their own page.
const OVER: [&str; 3] = ["completed", "aborted", "draft"];

#[derive(Template)]
#[template(path = "console/overview.html")]
struct Overview {
    frame: Frame,
    status: Status,
    devices: u64,
    /// The fleet as a bar.
    health: Bar,
    rollouts: Vec<Rollout>,
    /// Registries that say how many pulls they leave.
    budgets: Vec<Connection>,
    /// What happened last, newest first.
    events: Vec<Event>,
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let status: Status = visit.api.get("/api/v1/status").await?;
    let mut rollouts: Page<Rollout> = visit.api.get(&format!("/api/v1/rollouts?limit={LOOKED_AT}")).await?;
    rollouts.items.retain(|rollout| !OVER.contains(&rollout.state.as_str()));
    let mut connections: Page<Connection> =
        visit.api.get(&format!("/api/v1/connections?limit={LOOKED_AT}")).await?;
    connections.items.retain(|connection| connection.rate_limit_remaining.is_some());
    let mut events: Page<Event> = visit.api.get(&format!("/api/v1/events?limit={EVENTS}")).await?;
    events.items.reverse();
    let devices: u64 = status.devices.values().sum();
    let active = status.devices.get("active").copied().unwrap_or(0);
    let good = status.devices_up_to_date.min(active);
    let health = Bar::of(devices, &[(good, "good"), (active - good, "wait"), (devices - active, "bad")]);
    Ok(page(&Overview {
        frame: visit.frame("Overview", "/console"),
        devices,
        health,
        rollouts: rollouts.items,
        budgets: connections.items,
        events: events.items,
        status,
    }))
}

/// How far a rollout is.
fn progress(rollout: &Rollout) -> Bar {
    Bar::of_states(rollout.devices, &rollout.states)
}
