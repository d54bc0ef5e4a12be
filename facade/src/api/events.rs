//! `/api/v1/events`: what happened, as a page or as a stream of server-sent events.
//!
//! A follower holds nothing here but its place in the ring: one that reads too slowly finds that its place is gone, is
//! told so, and is dropped.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Frame, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa::IntoParams;

use super::State;
use super::auth::{Caller, Role};
use super::extract::{MAX_PAGE, Query, field};
use super::gate::bearer;
use super::problem::Problem;
use super::types::{Event, EventsGone, Page, RolloutsMoved};
use crate::catalog::events::{self, Following, Kind};
use crate::facade::Facade;

/// Between two signs of life on a stream on which nothing happens; with each, the follower's token is looked at again.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Between two words about how far rollouts are.
const PROGRESS: Duration = Duration::from_millis(500);
/// How many events a follower takes from the ring at a time.
const STEP: usize = 100;
/// Followers at a time.
pub(crate) const MAX_FOLLOWERS: usize = 128;
/// The longest list of kinds.
const MAX_KINDS: usize = 32;

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only events after this number; by default the newest ones, or as a stream what happens from now on
    since: Option<u64>,
    /// Only events of these kinds, separated by commas
    kind: Option<String>,
    /// Most events of a page, up to 1000
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: usize,
}

fn default_limit() -> usize {
    100
}

/// Lists what happened, oldest first; with `Accept: text/event-stream`, as it happens
///
/// Besides the events it has `progress` frames, without a number, when devices of running rollouts have moved.
/// The stream takes up after the `Last-Event-ID` of a request, or after `since`. A `gone` frame says how many events are
/// missing; a stream that reads too slowly gets one and ends.
#[utoipa::path(get, path = "/api/v1/events", params(EventsQuery), tag = "events",
    responses((status = 200, content((Page<Event> = "application/json"), (String = "text/event-stream"))), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    headers: HeaderMap,
    Query(query): Query<EventsQuery>,
) -> Result<Response, Problem> {
    caller.require(Role::Viewer)?;
    if !(1..=MAX_PAGE).contains(&query.limit) {
        return Err(Problem::invalid("limit", format!("must be between 1 and {MAX_PAGE}")));
    }
    if query.since.is_some_and(|since| i64::try_from(since).is_err()) {
        return Err(Problem::invalid("since", format!("must be at most {}", i64::MAX)));
    }
    let kinds = kinds(query.kind.as_deref())?;
    // Who asks after a change has been answered sees it.
    state.events.flush().await;
    if accepts_stream(&headers) {
        return follow(&state, &headers, query.since, kinds);
    }
    Ok(Json(page(&state.events, query.since, query.limit, &kinds)).into_response())
}

fn kinds(text: Option<&str>) -> Result<BTreeSet<Kind>, Problem> {
    let names = text.into_iter().flat_map(|text| text.split(',')).take(MAX_KINDS);
    names.map(|name| field("kind", name.trim())).collect()
}

fn accepts_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

fn page(events: &events::Events, since: Option<u64>, limit: usize, kinds: &BTreeSet<Kind>) -> Page<Event> {
    let wanted = |event: &events::Event| kinds.is_empty() || kinds.contains(&event.kind);
    let all = events.after(since.unwrap_or(0), usize::MAX).events;
    let found: Vec<Event> = all.into_iter().filter(wanted).map(view).collect();
    let more = found.len().saturating_sub(limit);
    let items: Vec<Event> = match since {
        Some(_) => found.into_iter().take(limit).collect(),
        None => found.into_iter().skip(more).collect(),
    };
    let next = items.last().filter(|_| since.is_some() && more > 0).map(|last| last.sequence.to_string());
    Page { items, next }
}

fn view(event: events::Event) -> Event {
    Event {
        sequence: event.sequence,
        at: event.at.to_string(),
        kind: event.kind.to_string(),
        subject: event.subject,
        detail: event.detail,
    }
}

fn follow(
    state: &State,
    headers: &HeaderMap,
    since: Option<u64>,
    kinds: BTreeSet<Kind>,
) -> Result<Response, Problem> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let last: Option<u64> = last.map(|id| field("Last-Event-ID", id.trim())).transpose()?;
    let place = Arc::clone(&state.followers).try_acquire_owned();
    let place = place.map_err(|_| Problem::busy("too many follow the events already; try again later"))?;
    let newest = state.events.watch();
    let follower = Follower {
        after: last.or(since).unwrap_or_else(|| state.events.newest()),
        facade: Arc::clone(state),
        kinds,
        credential: headers.get(header::AUTHORIZATION).cloned(),
        frames: VecDeque::from([Frame::default().retry(Duration::from_secs(2)).comment("following")]),
        newest,
        progress: state.rollouts.watch(),
        stage: Stage::Begun,
        _place: place,
    };
    let frames = stream::unfold(follower, |mut follower| async move {
        let frame = follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), follower))
    });
    // What stands between us and the follower must not keep what we send.
    Ok(([("x-accel-buffering", "no"), ("cache-control", "no-store")], Sse::new(frames)).into_response())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Events that are gone already are said to be gone, and the rest follows.
    Begun,
    /// It had its place in the ring, and must not lose it.
    Following,
    /// Nothing comes any more.
    Ended,
}

struct Follower {
    facade: Arc<Facade>,
    after: u64,
    kinds: BTreeSet<Kind>,
    credential: Option<header::HeaderValue>,
    frames: VecDeque<Frame>,
    newest: watch::Receiver<u64>,
    /// Moves with every device of a running rollout.
    progress: watch::Receiver<u64>,
    stage: Stage,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            if self.stage == Stage::Ended {
                return None;
            }
            self.newest.borrow_and_update();
            let following = self.facade.events.after(self.after, STEP);
            if following.events.is_empty() {
                self.wait().await;
            } else {
                self.take(following);
            }
        }
    }

    fn take(&mut self, following: Following) {
        if following.lost > 0 {
            self.frames.extend(frame("gone", None, &EventsGone { lost: following.lost }));
            if self.stage == Stage::Following {
                self.stage = Stage::Ended;
                return;
            }
        }
        self.stage = Stage::Following;
        for event in following.events {
            self.after = event.sequence;
            if self.kinds.is_empty() || self.kinds.contains(&event.kind) {
                let kind = event.kind.as_str();
                self.frames.extend(frame(kind, Some(event.sequence), &view(event)));
            }
        }
    }

    async fn wait(&mut self) {
        let stopping = self.facade.stopping.clone();
        tokio::select! {
            _ = self.newest.changed() => {}
            _ = self.progress.changed() => {
                // What moves all the time is told now and then, and never kept: it has no number.
                tokio::time::sleep(PROGRESS).await;
                let running = self.facade.rollouts.running();
                let names = running.iter().map(ToString::to_string).collect();
                self.frames.extend(frame("progress", None, &RolloutsMoved { rollouts: names }));
                self.progress.borrow_and_update();
            }
            () = stopping.cancelled() => {
                self.frames.push_back(Frame::default().comment("the facade stops"));
                self.stage = Stage::Ended;
            }
            () = tokio::time::sleep(HEARTBEAT) => {
                self.frames.push_back(Frame::default().comment("nothing new"));
                if !self.is_welcome().await {
                    self.stage = Stage::Ended;
                }
            }
        }
    }

    /// Whether the token with which this began still opens the door.
    async fn is_welcome(&self) -> bool {
        let mut headers = HeaderMap::new();
        headers.extend(self.credential.clone().map(|value| (header::AUTHORIZATION, value)));
        let Some(token) = bearer(&headers) else {
            return false;
        };
        let found = self.facade.tokens.find(token, self.facade.clock.now()).await;
        found.is_ok_and(|found| found.is_some_and(|(_, role)| role >= Role::Viewer))
    }
}

/// A frame. One that cannot be written is left out; texts and numbers always can.
fn frame<T: Serialize>(name: &str, id: Option<u64>, data: &T) -> Option<Frame> {
    let mut frame = Frame::default().event(name).json_data(data).ok()?;
    if let Some(id) = id {
        frame = frame.id(id.to_string());
    }
    Some(frame)
}
