//! Devices: the list with its filters, one device, and its standing.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;

use super::fields::encoded;
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, page, short};
use crate::api::problem::Problem;
use crate::api::types::{AuditRecord, Device, LabelRequest, Page};

/// Devices on one page.
const SHOWN: usize = 100;

const STANDINGS: [&str; 5] = ["pending", "active", "suspended", "quarantined", "revoked"];

#[derive(Template)]
#[template(path = "console/devices.html")]
struct Listing {
    frame: Frame,
    selector: String,
    standing: String,
    /// The artifact that they run.
    running: String,
    standings: [&'static str; 5],
    devices: Vec<Device>,
    next: Option<String>,
}

#[derive(Template)]
#[template(path = "console/device.html")]
struct Detail {
    frame: Frame,
    device: Device,
    /// What operators did to it, newest first.
    history: Page<AuditRecord>,
}

pub(super) async fn list(visit: Visit) -> Result<Response, Failure> {
    // What links to a group is a selector like any other.
    let group = visit.query.filled("group").map(|group| format!("group={group}"));
    let selector = group.unwrap_or_else(|| visit.query.text("selector").to_owned());
    // What is no standing filters nothing.
    let standing = STANDINGS.into_iter().find(|standing| *standing == visit.query.text("standing"));
    let standing = standing.unwrap_or_default().to_owned();
    let running = visit.query.text("running").to_owned();
    let (devices, next) = search(&visit, &selector, &standing, &running).await?;
    Ok(page(&Listing {
        frame: visit.frame("Devices", "/console/devices"),
        selector,
        standing,
        running,
        standings: STANDINGS,
        devices,
        next,
    }))
}

/// A page of devices, and where the next one begins.
async fn search(
    visit: &Visit,
    selector: &str,
    standing: &str,
    running: &str,
) -> Result<(Vec<Device>, Option<String>), Problem> {
    let mut path = format!("/api/v1/devices?limit={SHOWN}");
    let filters = [
        ("selector", selector),
        ("standing", standing),
        ("running", running),
        ("after", visit.query.text("after")),
    ];
    for (name, value) in filters.iter().filter(|(_, value)| !value.is_empty()) {
        path = format!("{path}&{name}={}", encoded(value));
    }
    let page: Page<Device> = visit.api.get(&path).await?;
    Ok((page.items, page.next))
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let id = encoded(visit.query.text("id"));
    let device: Device = visit.api.get(&format!("/api/v1/devices/{id}")).await?;
    let about = encoded(&format!("devices/{}", device.id));
    let history = visit.api.get(&format!("/api/v1/audit?order=newest&limit=10&text={about}")).await?;
    Ok(page(&Detail { frame: visit.frame(&device.id, "/console/devices"), device, history }))
}

pub(super) async fn change(Path(verb): Path<String>, change: Change) -> Response {
    let id = change.fields.text("id");
    let outcome = do_it(&change, &verb, id).await;
    change.back(&format!("/console/device?id={}", encoded(id)), outcome)
}

async fn do_it(change: &Change, verb: &str, id: &str) -> Result<String, Problem> {
    match verb {
        "join" | "leave" => return group(change, verb, id).await,
        "label" | "unlabel" => return label(change, verb, id).await,
        _ => {}
    }
    if !["approve", "suspend", "restore", "revoke"].contains(&verb) {
        return Err(Problem::not_found("there is no such change"));
    }
    if verb == "revoke" && change.fields.text("confirmation") != id {
        return Err(Problem::invalid(
            "confirmation",
            "nothing was changed: type the device's id to revoke it",
        ));
    }
    let path = format!("/api/v1/devices/{}/{verb}", encoded(id));
    let device: Device = change.visit.api.post(&path).await?;
    Ok(Outcome::done(&format!("{} is {} now.", device.id, device.standing)).html())
}

/// Puts a device in a group, or takes it out.
async fn group(change: &Change, verb: &str, id: &str) -> Result<String, Problem> {
    let group = change.fields.text("group");
    let path = format!("/api/v1/devices/{}/groups/{}", encoded(id), encoded(group));
    let api = &change.visit.api;
    let device: Device = if verb == "join" { api.put(&path).await? } else { api.delete(&path).await? };
    let groups = if device.groups.is_empty() { "no group".to_owned() } else { device.groups.join(", ") };
    Ok(Outcome::done(&format!("{} is in {groups} now.", device.id)).html())
}

/// Gives a device a label, or takes one away.
async fn label(change: &Change, verb: &str, id: &str) -> Result<String, Problem> {
    let name = change.fields.text("name").to_owned();
    let mut request = LabelRequest::default();
    if verb == "label" {
        request.set.insert(name, change.fields.text("value").to_owned());
    } else {
        request.remove.push(name);
    }
    let path = format!("/api/v1/devices/{}/labels", encoded(id));
    let device: Device = change.visit.api.send(&path, &request).await?;
    let labels: Vec<String> = device.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let labels =
        if labels.is_empty() { "no labels".to_owned() } else { format!("the labels {}", labels.join(", ")) };
    Ok(Outcome::done(&format!("{} has {labels} now.", device.id)).html())
}

impl Detail {
    /// Why it does not run what it should, in words; nothing where it does.
    fn waits(&self) -> Option<&'static str> {
        let device = &self.device;
        match device.standing.as_str() {
            "pending" => return Some("It waits for approval: until then it has no certificate."),
            "suspended" => return Some("It is suspended: it is turned away until it is restored."),
            "quarantined" => {
                return Some(
                    "It is quarantined: two devices seem to use its identity. Find out which is the real one, then restore or revoke it.",
                );
            }
            "revoked" => {
                return Some("It is revoked for good. To bring it back, enroll it again under another id.");
            }
            _ => {}
        }
        if device.wanted.is_empty() {
            return Some("Nothing is assigned to it.");
        }
        if device.last_seen_at.is_none() {
            return Some("It has not reported yet: is its agent running?");
        }
        let missing = device.wanted.iter().any(|name| !device.running.contains(name));
        match (missing, device.refused.is_empty()) {
            (true, false) => Some("It refuses something: see below."),
            (true, true) => Some("It is on its way: it takes new assignments when it next asks."),
            (false, _) => None,
        }
    }
}

/// How much of what it should run a device says it runs.
fn met(device: &Device) -> usize {
    let wanted = device.wanted.iter();
    wanted.filter(|name| device.running.contains(name)).count()
}
