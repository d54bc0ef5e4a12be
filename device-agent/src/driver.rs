//! The loop: store the state, perform its effect, feed the event.
//!
//! Nothing is decided here that [`crate::lifecycle`] could decide; a state is durable before its effect begins, and an
//! effect that a crash or a shutdown cut is begun again. Renewal, reports and the watchdog run beside the effects, on the
//! same thread, and never change the state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use pki::oci::Platform;
use pki::wire::{DevicePolicy, MetadataVersions};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::{self, Backoff};
use crate::clock::Clock;
use crate::config::{Config, Sink};
use crate::facade_client::{Class, ClientError, FacadeClient};
use crate::identity::{Identity, IdentityError};
use crate::lifecycle::{Effect, Event, Fault, Release, State};
use crate::progress::Progress;
use crate::random;
use crate::report::{self, Reporter};
use crate::runtime::Runtime;
use crate::runtime::containerd::{Containerd, Settings};
use crate::runtime::oci_layout::OciLayout;
use crate::state_file::{Lock, StateDir, StateError};

pub mod aside;
mod custody;
mod deadline;
mod effects;
mod error;
mod news;
mod permission;
mod room;
pub mod shown;
mod stops;
mod way_back;
mod withheld;

pub use error::AgentError;

/// Where the life-cycle is stored.
pub const STATE_FILE: &str = "state.json";
/// The earliest time it can be, learnt from signatures.
const CLOCK_FILE: &str = "clock.json";

/// The agent of one device.
pub struct Agent {
    config: Config,
    clock: Clock,
    dir: StateDir,
    runtime: Box<dyn Runtime>,
    platform: Platform,
    progress: Arc<Progress>,
    shared: Mutex<Shared>,
    /// Something happened that a quiet loop should look at.
    wake: Notify,
}

/// What the loop and what runs beside it both see.
struct Shared {
    state: State,
    session: Option<Arc<Session>>,
    versions: MetadataVersions,
    expires: Option<Timestamp>,
    last_error: Option<String>,
    waiting: Option<String>,
    /// Why what is assigned is not taken.
    held_back: Option<String>,
    /// When and how fast to download and apply, as the facade signed it.
    policy: DevicePolicy,
    /// Bytes that were needed when there was no room.
    need_bytes: Option<u64>,
    last_check: Option<Timestamp>,
    /// What the clock showed at the last look, and when that was.
    clock_seen: Option<(Timestamp, Instant)>,
    /// Something of an attempt that was given up may lie about.
    untidy: bool,
    /// What is handed over is to be read back: the power was cut.
    unverified: bool,
    /// A release that is here and cannot be applied, and why.
    obstacle: Option<(Release, String)>,
    /// Why whoever runs the images did not take the old release back.
    not_taken_back: Option<String>,
}

/// An identity, and the client that shows it.
struct Session {
    identity: Identity,
    client: FacadeClient,
    renew_at: Timestamp,
}

/// How patient the effects are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// As long as it takes.
    Endless,
    /// A few tries: somebody waits for us to exit.
    Short,
}

/// How an effect ended: what to feed, and what to tell.
struct Outcome {
    event: Option<Event>,
    error: Option<AgentError>,
    /// Something has to be waited for that takes longer than anybody here waits.
    waits: bool,
}

impl Outcome {
    fn event(event: Event) -> Self {
        Self { event: Some(event), error: None, waits: false }
    }

    fn failed(fault: Fault, error: impl Into<AgentError>) -> Self {
        Self { event: Some(Event::Failed(fault)), error: Some(error.into()), waits: false }
    }

    /// Nothing is decided: the same effect again, after a while.
    fn again(error: impl Into<AgentError>) -> Self {
        Self { event: None, error: Some(error.into()), waits: false }
    }

    /// The same effect again, another time.
    fn later() -> Self {
        Self { event: None, error: None, waits: true }
    }
}

impl Agent {
    /// Puts the agent together; touches the state directory and nothing else.
    pub fn open(config: Config, clock: Clock) -> Result<Self, AgentError> {
        let dir = StateDir::open(&config.state_dir)?;
        let runtime: Box<dyn Runtime> = match &config.sink {
            Sink::Containerd => Box::new(Containerd::new(Settings {
                address: config.containerd_address.clone(),
                namespace: config.namespace.clone(),
                snapshotter: config.snapshotter.clone(),
            })),
            Sink::OciLayout(directory) => Box::new(OciLayout::new(directory.clone())),
        };
        Ok(Self::with_runtime(config, clock, dir, runtime))
    }

    /// The agent with this place for images.
    pub fn with_runtime(config: Config, clock: Clock, dir: StateDir, runtime: Box<dyn Runtime>) -> Self {
        let platform = config.platform.clone().unwrap_or_else(crate::platform::detect);
        // A facade that was restored from an older copy learns from the first report what was seen before.
        let versions = crate::refresh::stored_versions(&dir);
        Self {
            config,
            clock,
            dir,
            runtime,
            platform,
            progress: Arc::default(),
            wake: Notify::new(),
            shared: Mutex::new(Shared {
                state: State::default(),
                session: None,
                versions,
                expires: None,
                last_error: None,
                waiting: None,
                held_back: None,
                policy: DevicePolicy::default(),
                need_bytes: None,
                last_check: None,
                clock_seen: None,
                untidy: true,
                unverified: false,
                obstacle: None,
                not_taken_back: None,
            }),
        }
    }

    /// The platform that images are chosen for.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// The place for images.
    pub fn runtime(&self) -> &dyn Runtime {
        self.runtime.as_ref()
    }

    /// Does one round: enrolled, checked, brought in, handed over, reported.
    pub async fn sync(&self, shutdown: &CancellationToken) -> Result<(), AgentError> {
        let _lock = self.begin()?;
        let round = async {
            // A device that only ever syncs would otherwise outlive its certificate.
            self.renew_if_due().await;
            let mut result = self.round().await;
            // What is found to be lost comes in again at once, where anything comes in.
            if self.shared().unverified && self.read_back().await? && result.is_ok() {
                result = self.round().await;
            }
            // A facade that does not want this device any more may say so only here.
            match self.send_report().await {
                Err(error) if error.class() == Some(Class::NotAllowed) => result.and(Err(error.into())),
                Ok(_) | Err(_) => result,
            }
        };
        let result = tokio::select! {
            result = round => result,
            () = shutdown.cancelled() => Err(AgentError::Stopped),
        };
        self.note_stop();
        result
    }

    async fn round(&self) -> Result<(), AgentError> {
        let mut checked = false;
        let mut attempts = Backoff::default();
        let mut astray = None;
        loop {
            let state = self.state();
            if matches!(state, State::Idle { .. }) && checked {
                return astray.filter(|_| state.standing().is_astray()).map_or(Ok(()), Err);
            }
            if state.resume() == Effect::Sleep {
                self.feed(Event::Due)?;
                continue;
            }
            checked |= matches!(state, State::Checking { .. });
            let outcome = self.perform(Patience::Short).await;
            let waits = outcome.waits;
            let failed = self.settle(outcome)?;
            if let Some(error) = failed {
                if matches!(self.state(), State::Checking { .. }) && self.state().standing().is_astray() {
                    // What cannot be gone back from may still be replaced by what is assigned now.
                    astray = Some(error);
                    continue;
                }
                let undecided = self.state() == state;
                if !undecided || attempts.failures() >= SHORT_ATTEMPTS {
                    self.settle_down().await?;
                    return Err(error);
                }
                tokio::time::sleep(attempts.next(random::number())).await;
            }
            if waits {
                return astray.map_or(Ok(()), Err);
            }
        }
    }

    /// After a failure, lets a release that was half handed over go back before the round ends.
    async fn settle_down(&self) -> Result<(), AgentError> {
        for _ in 0..SHORT_ATTEMPTS {
            if !matches!(self.state(), State::RollingBack { .. }) {
                break;
            }
            let outcome = self.perform(Patience::Short).await;
            self.settle(outcome)?;
        }
        Ok(())
    }

    /// Runs until `shutdown`: waits for news, and does what they ask for.
    pub async fn run(&self, shutdown: &CancellationToken) -> Result<(), AgentError> {
        let mut lock = Some(self.begin()?);
        aside::ready();
        let work = async {
            let mut failures = Backoff::default();
            let mut news = news::News::default();
            loop {
                if matches!(self.state(), State::Unenrolled { .. }) && !self.can_enroll() {
                    // `device-agent enroll` needs the directory while we have no use for it.
                    self.note_stop();
                    lock = None;
                    self.wait_for_enrollment().await;
                    lock = Some(self.begin()?);
                }
                let error = self.turn(&mut news, &mut failures).await?;
                if let Some(error) = error {
                    self.wait_after(&error, &mut failures).await;
                }
            }
        };
        let result = tokio::select! {
            result = work => result,
            result = self.beside() => result,
            result = self.read_back_in_quiet() => result,
            () = shutdown.cancelled() => Ok(()),
        };
        // Without the lock the directory is not ours to write to.
        if lock.is_some() {
            self.note_stop();
        }
        drop(lock);
        result
    }

    /// One state's effect, and what comes of it.
    async fn turn(
        &self,
        news: &mut news::News,
        failures: &mut Backoff,
    ) -> Result<Option<AgentError>, AgentError> {
        self.renew_if_due().await;
        if self.state().resume() == Effect::Sleep {
            if matches!(self.state(), State::Idle { .. }) {
                self.wait_for_news(news, failures).await;
            }
            self.feed(Event::Due)?;
            return Ok(None);
        }
        let outcome = if matches!(self.state(), State::Fetching { .. }) {
            self.fetch_unless_news(news).await
        } else {
            self.perform(Patience::Endless).await
        };
        let error = self.settle(outcome)?;
        // A good check before a bad fetch is no progress; only being done is.
        if error.is_none() && matches!(self.state(), State::Idle { .. }) {
            failures.reset();
        }
        Ok(error)
    }

    async fn wait_after(&self, error: &AgentError, failures: &mut Backoff) {
        let told = error.client().and_then(ClientError::retry_after);
        let delay = told.unwrap_or_else(|| failures.next(random::number()));
        tracing::info!(delay_seconds = delay.as_secs(), "waiting before the next try");
        tokio::time::sleep(delay.min(self.config.poll.max(backoff::FIRST))).await;
    }

    /// Takes the directory and reads where we stood.
    fn begin(&self) -> Result<Lock, AgentError> {
        let lock = self.dir.lock()?;
        let state = self.load_state()?;
        raise_clock(&self.dir, &self.clock);
        {
            let mut shared = self.shared();
            shared.state = state;
            shared.session = None;
        }
        self.dir.keep_reserve();
        self.note_start()?;
        // What was assigned before we stopped may not be assigned any more: what is here stays, but is agreed on anew.
        if matches!(self.state(), State::Fetching { .. }) {
            self.feed(Event::Due)?;
        }
        Ok(lock)
    }

    /// The stored state. A damaged one is put aside: everything in it can be found again, except which releases failed.
    fn load_state(&self) -> Result<State, AgentError> {
        match self.dir.read_json(STATE_FILE, "it is set aside") {
            Ok(state) => Ok(state.unwrap_or_default()),
            Err(error @ StateError::Damaged { .. }) => {
                tracing::error!(
                    error = crate::error_chain(&error),
                    "the stored state is damaged; starting from what the facade assigns"
                );
                self.dir.rename(STATE_FILE, "state.json.damaged")?;
                Ok(State::default())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The next state, durable before anything acts on it.
    fn feed(&self, event: Event) -> Result<(), AgentError> {
        let before = self.state();
        let after = before.clone().on(event);
        if before == after {
            return Ok(());
        }
        self.dir.write_json(STATE_FILE, &after)?;
        tracing::info!(from = before.name(), to = after.name(), "state");
        self.shared().state = after;
        self.show();
        Ok(())
    }

    /// Feeds what an effect came to; gives back what went wrong.
    fn settle(&self, outcome: Outcome) -> Result<Option<AgentError>, AgentError> {
        let text = outcome.error.as_ref().map(|error| crate::error_chain(error));
        if let Some(text) = &text {
            tracing::warn!(error = text, state = self.state().name(), "effect failed");
        }
        self.note_obstacle(outcome.event.as_ref(), text.as_deref());
        self.shared().last_error = text;
        if let Some(event) = outcome.event {
            self.feed(event)?;
        }
        Ok(outcome.error)
    }

    /// What was in the way of applying a release is in its way until it was applied: that the device then went back, and
    /// that the next check went well, are no answers.
    fn note_obstacle(&self, event: Option<&Event>, text: Option<&str>) {
        let mut shared = self.shared();
        if let State::Activating { next, .. } = &shared.state {
            let blocked = event == Some(&Event::Failed(Fault::Circumstance));
            let text = text.filter(|_| blocked);
            shared.obstacle = text.map(|text| (next.clone(), text.to_owned()));
        }
    }

    fn state(&self) -> State {
        self.shared().state.clone()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reporter(&self) -> Reporter<'_> {
        Reporter { state: &self.dir }
    }

    /// The identity in use and its client; read once, and again after it changed.
    fn session(&self) -> Result<Arc<Session>, AgentError> {
        if let Some(session) = &self.shared().session {
            return Ok(Arc::clone(session));
        }
        let identity = Identity::load(&self.dir, &self.config.keys)?.ok_or(IdentityError::NotEnrolled)?;
        // A certificate tells by its signature the earliest time that it can be.
        self.learn(identity.certificate().not_before());
        let client = identity.client(&self.clock, self.config.proxy.as_ref())?;
        let renew_at = identity.renew_at(random::number());
        let session = Arc::new(Session { identity, client, renew_at });
        self.shared().session = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Raises the floor of time, and keeps it where that matters.
    fn learn(&self, signed: Timestamp) {
        self.clock.raise(signed);
        let kept: Option<Timestamp> = self.dir.read_json(CLOCK_FILE, "remove it").ok().flatten();
        let floor = self.clock.floor();
        let matters =
            kept.is_none_or(|kept| floor.duration_since(kept) > jiff::SignedDuration::from_hours(1));
        if matters {
            if let Err(error) = self.dir.write_json(CLOCK_FILE, &floor) {
                tracing::warn!(error = crate::error_chain(&error), "the time cannot be kept");
            }
        }
    }
}

/// Raises the floor of time to what this device once learnt.
pub fn raise_clock(dir: &StateDir, clock: &Clock) {
    if let Ok(Some(floor)) = dir.read_json::<Timestamp>(CLOCK_FILE, "remove it") {
        clock.raise(floor);
    }
}

/// Tries of an effect in `sync`.
const SHORT_ATTEMPTS: u32 = 5;
/// Nobody waits longer for a report than this.
const REPORT_PATIENCE: Duration = report::DEFAULT_EVERY;
