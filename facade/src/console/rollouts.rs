//! Rollouts: the list with the form that makes one, and one rollout with its waves as a picture.

use askama::Template;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::response::{Html, IntoResponse, Response};

use super::bar::Bar;
use super::fields::{Fields, encoded};
use super::guard::{Change, Visit};
use super::page::{Failure, Frame, Outcome, html, page, short, size};
use crate::api::problem::Problem;
use crate::api::types::{
    AbortRequest, Artifact, Concern, Page, Rollout, RolloutDevice, RolloutPreview, RolloutRequest, Wave,
};

const HERE: &str = "/console/rollouts";
/// The fields of the form, which come back after a preview.
const FIELDS: [&str; 10] = [
    "name",
    "artifacts",
    "to",
    "waves",
    "approve",
    "success",
    "min_sample",
    "failure_budget",
    "soak",
    "deadline",
];

#[derive(Template)]
#[template(path = "console/rollouts.html")]
struct Listing {
    frame: Frame,
    rollouts: Page<Rollout>,
    artifacts: Vec<Artifact>,
    form: Fields,
}

impl Listing {
    /// What was filled in before a preview, or else a default.
    fn filled(&self, name: &str, otherwise: &str) -> String {
        self.form.filled(name).unwrap_or_else(|| otherwise.to_owned())
    }
}

#[derive(Template)]
#[template(path = "console/rollout_preview.html")]
struct Preview<'a> {
    preview: &'a RolloutPreview,
}

impl Preview<'_> {
    fn waves(&self) -> String {
        self.preview.waves.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    fn concerns(&self) -> Vec<(&'static str, &Concern)> {
        let all = [
            ("are left out, because they are not active", &self.preview.left_out),
            ("have a platform that there is no image for", &self.preview.no_platform),
            ("have not reported their platform yet", &self.preview.unknown_platform),
            ("may have too little free space", &self.preview.low_disk),
        ];
        all.into_iter().filter(|(_, concern)| concern.count > 0).collect()
    }
}

#[derive(Template)]
#[template(path = "console/rollout.html")]
struct Detail {
    frame: Frame,
    live: String,
    rollout: Rollout,
}

/// What changes while one looks.
#[derive(Template)]
#[template(path = "console/rollout_live.html")]
struct Live<'a> {
    rollout: &'a Rollout,
    devices: Page<RolloutDevice>,
    state: String,
}

pub(super) async fn list(visit: Visit) -> Result<Response, Failure> {
    let after = visit.query.query(&["after"]);
    let rollouts = visit.api.get(&format!("/api/v1/rollouts?limit=100{after}")).await?;
    let mut artifacts: Page<Artifact> = visit.api.get("/api/v1/artifacts?limit=200").await?;
    artifacts.items.retain(|artifact| artifact.revoked_at.is_none());
    let form = visit.query.clone();
    Ok(page(&Listing { frame: visit.frame("Rollouts", HERE), rollouts, artifacts: artifacts.items, form }))
}

pub(super) async fn create(change: Change) -> Response {
    let request = match request(&change.fields) {
        Ok(request) => request,
        Err(problem) => return change.back(&again(&change.fields), Err(problem)),
    };
    if change.fields.text("action") == "preview" {
        let preview = change.visit.api.send("/api/v1/rollouts/preview", &request).await;
        let told = preview.map(|preview: RolloutPreview| html(&Preview { preview: &preview }));
        return change.back(&again(&change.fields), told);
    }
    match change.visit.api.send::<Rollout>("/api/v1/rollouts", &request).await {
        Ok(rollout) => {
            let told = Outcome::done("The rollout is made. It has not started.").html();
            change.back(&address(&rollout.name), Ok(told))
        }
        Err(problem) => change.back(&again(&change.fields), Err(problem)),
    }
}

/// The list, with the form filled in as it was.
fn again(fields: &Fields) -> String {
    format!("{HERE}?{}", fields.query(&FIELDS).trim_start_matches('&'))
}

fn address(name: &str) -> String {
    format!("/console/rollout?name={}", encoded(name))
}

fn request(fields: &Fields) -> Result<RolloutRequest, Problem> {
    let number = |name: &str| -> Result<Option<u32>, Problem> {
        let parse = |text: String| {
            text.parse().map_err(|_| Problem::invalid(name, format!("{name} must be a whole number")))
        };
        fields.filled(name).map(parse).transpose()
    };
    let seconds = |name: &str| -> Result<Option<u32>, Problem> {
        let Some(text) = fields.filled(name) else {
            return Ok(None);
        };
        let time = crate::config::duration(&text).map_err(|reason| Problem::invalid(name, reason))?;
        Ok(Some(u32::try_from(time.as_secs()).unwrap_or(u32::MAX)))
    };
    let success = fields.text("success").trim_end_matches('%').parse();
    let success =
        success.map_err(|_| Problem::invalid("success", "the success must be a share such as 95%"))?;
    Ok(RolloutRequest {
        name: fields.text("name").to_owned(),
        artifacts: fields.text("artifacts").split_whitespace().map(str::to_owned).collect(),
        to: fields.text("to").to_owned(),
        waves: fields.text("waves").to_owned(),
        approve: fields.text("approve").to_owned(),
        success_percent: success,
        min_sample: number("min_sample")?,
        failure_budget: fields.filled("failure_budget"),
        soak_seconds: seconds("soak")?.unwrap_or(0),
        deadline_seconds: seconds("deadline")?,
    })
}

pub(super) async fn show(visit: Visit) -> Result<Response, Failure> {
    let (rollout, live) = look(&visit).await?;
    Ok(page(&Detail { frame: visit.frame(&rollout.name, HERE), live, rollout }))
}

/// The part of the page that changes, alone: a script asks for it when something has happened.
pub(super) async fn live(visit: Visit) -> Result<Response, Failure> {
    let (_, live) = look(&visit).await?;
    Ok(Html(live).into_response())
}

async fn look(visit: &Visit) -> Result<(Rollout, String), Failure> {
    let name = encoded(visit.query.text("name"));
    let state = visit.query.text("state").to_owned();
    let rollout: Rollout = visit.api.get(&format!("/api/v1/rollouts/{name}")).await?;
    let query = visit.query.query(&["state", "after"]);
    let devices = visit.api.get(&format!("/api/v1/rollouts/{name}/devices?limit=100{query}")).await?;
    let live = html(&Live { rollout: &rollout, devices, state });
    Ok((rollout, live))
}

pub(super) async fn change(Path(verb): Path<String>, change: Change) -> Response {
    let name = change.fields.text("name");
    let outcome = do_it(&change, &verb, name).await;
    let to = if verb == "delete" && outcome.is_ok() { HERE.to_owned() } else { address(name) };
    change.back(&to, outcome)
}

async fn do_it(change: &Change, verb: &str, name: &str) -> Result<String, Problem> {
    let path = format!("/api/v1/rollouts/{}", encoded(name));
    let api = &change.visit.api;
    let rollout: Rollout = match verb {
        "start" | "approve" | "pause" | "resume" => api.post(&format!("{path}/{verb}")).await?,
        "keep" | "revert" => {
            let request = AbortRequest { devices: verb.to_owned() };
            api.send(&format!("{path}/abort"), &request).await?
        }
        "delete" => api.delete(&path).await?,
        _ => return Err(Problem::not_found("there is no such change")),
    };
    let told = match verb {
        "delete" => format!("{} is deleted.", rollout.name),
        _ => format!("{} is {} now.", rollout.name, rollout.state),
    };
    Ok(Outcome::done(&told).html())
}

/// What happens, as it happens, for whoever is signed in.
pub(super) async fn events(visit: Visit, headers: HeaderMap) -> Response {
    visit.api.follow("/api/v1/events", headers.get("last-event-id")).await
}

impl Detail {
    /// Whether an action makes sense in the rollout's state.
    fn may(&self, verb: &str) -> bool {
        let state = self.rollout.state.as_str();
        match verb {
            "start" => state == "draft",
            "approve" => state == "awaiting-approval",
            "pause" => ["assigning", "running", "awaiting-approval"].contains(&state),
            "resume" => ["paused", "halted"].contains(&state),
            "abort" => ["assigning", "running", "awaiting-approval", "paused", "halted"].contains(&state),
            "delete" => ["draft", "completed", "aborted"].contains(&state),
            _ => false,
        }
    }
}

/// A wave as a picture.
fn picture(wave: &Wave) -> Bar {
    Bar::of_states(wave.devices, &wave.states)
}

/// The colour of a rollout's state.
pub(super) fn tone(state: &str) -> &'static str {
    match state {
        "completed" => "good",
        "halted" => "bad",
        _ => "",
    }
}

/// The colour of a device's state.
fn device_tone(state: &str) -> &'static str {
    match state {
        "healthy" => "good",
        "failed" | "rolled-back" => "bad",
        _ => "",
    }
}

/// Devices by state, in words.
pub(super) fn fare(states: &std::collections::BTreeMap<String, u64>) -> String {
    states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

/// How far a download is.
fn bytes(device: &RolloutDevice) -> String {
    match (device.done_bytes, device.total_bytes) {
        (Some(done), Some(total)) => format!("{} of {}", size(&done), size(&total)),
        _ => String::new(),
    }
}
