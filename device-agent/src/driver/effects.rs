//! The effects of the states, each of which may run twice.

use std::time::Duration;

use jiff::Timestamp;
use pki::wire::{DevicePolicy, EnrollmentToken, Line, Subject};

use super::custody::Grace;
use super::news::{MAX_NEWS_BYTES, News};
use super::permission::NotNow;
use super::{Agent, AgentError, Outcome, Patience, SHORT_ATTEMPTS, Session};
use crate::apply::{self, ApplyError, Direction};
use crate::fetch::{FetchError, Fetcher, Limits};
use crate::handover::{self, HandoverError};
use crate::identity::anchors;
use crate::identity::enroll::{Replace, Surroundings, enroll};
use crate::identity::{DISOWNED_FILE, Identity, IdentityError};
use crate::lifecycle::{Effect, Event, Fault, Offer, Release, Standing, State};
use crate::plan::NoRoom;
use crate::policy::Step;
use crate::refresh::{Agreed, RefreshError, Refresher, refusal_code};

impl Agent {
    /// Performs the effect of the state as it is stored.
    pub(super) async fn perform(&self, patience: Patience) -> Outcome {
        let state = self.state();
        match state.resume() {
            Effect::Sleep => Outcome::event(Event::Due),
            Effect::Enroll => self.enroll().await,
            Effect::Check => self.check().await,
            Effect::Fetch(release) => self.fetch(release, patience).await,
            Effect::Activate(release) => self.activate(&state, release).await,
            Effect::Probe(..) => self.confirm(&state).await,
            Effect::RollBack(_) => self.roll_back(&state).await,
        }
    }

    async fn enroll(&self) -> Outcome {
        match self.find_identity().await {
            Ok(()) => Outcome::event(Event::Enrolled),
            Err(error) => Outcome::failed(Fault::Circumstance, error),
        }
    }

    /// An identity that is there and not disowned, or one that the token file gives.
    async fn find_identity(&self) -> Result<(), AgentError> {
        let present = matches!(Identity::load(&self.dir, &self.config.keys), Ok(Some(_)));
        let disowned = self.dir.has(DISOWNED_FILE)?;
        if present && !disowned {
            self.session()?;
            return Ok(());
        }
        if let Some(token) = self.unattended_token() {
            let token: EnrollmentToken = token.parse().map_err(|error| {
                tracing::error!(error = crate::error_chain(&error), "the token file cannot be used");
                IdentityError::NotEnrolled
            })?;
            self.shared().session = None;
            let enrolled = enroll(self.surroundings(), &token, Replace::Existing).await;
            match enrolled {
                Ok(identity) => {
                    tracing::info!(device.id = %identity.device(), "enrolled");
                    return Ok(());
                }
                Err(error) if !present => return Err(error.into()),
                Err(error) => tracing::warn!(error = crate::error_chain(&error), "enrollment failed"),
            }
        }
        // A suspended device that was restored is welcome again with what it has.
        let session = self.session()?;
        session.client.get("/v2/", MAX_NEWS_BYTES).await?;
        self.dir.remove(DISOWNED_FILE)?;
        Ok(())
    }

    fn unattended_token(&self) -> Option<String> {
        let file = self.config.token_file.as_ref()?;
        std::fs::read_to_string(file).ok()
    }

    /// Whether an attempt to enroll could succeed now.
    pub(super) fn can_enroll(&self) -> bool {
        let enrolled = || matches!(Identity::read(&self.dir, &self.config.keys), Ok(Some(_)));
        self.unattended_token().is_some() || enrolled()
    }

    /// Looks now and then whether somebody has enrolled the device.
    pub(super) async fn wait_for_enrollment(&self) {
        self.shared().waiting = Some("enrollment: run device-agent enroll TOKEN".to_owned());
        self.show();
        tracing::info!("not enrolled; run: device-agent enroll TOKEN");
        while !self.can_enroll() {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        self.shared().waiting = None;
    }

    pub(super) fn surroundings(&self) -> Surroundings<'_> {
        let (proxy, keys) = (self.config.proxy.as_ref(), &self.config.keys);
        Surroundings { state: &self.dir, clock: &self.clock, proxy, keys }
    }

    async fn check(&self) -> Outcome {
        self.take_up_doubt();
        let session = match self.session() {
            Ok(session) => session,
            Err(error) => return Outcome::failed(Fault::Circumstance, error),
        };
        let refresher = Refresher { client: &session.client, state: &self.dir, clock: &self.clock };
        match refresher.check(session.identity.device()).await {
            Ok(agreed) => {
                self.learn(self.clock.floor());
                self.adopt_anchors(&session.identity, agreed.anchors.as_deref()).await;
                self.adopt_policy(agreed.policy.clone());
                // A place for images that does not answer now is not empty.
                if let Err(error) = self.miss().await {
                    tracing::warn!(
                        error = crate::error_chain(&error),
                        "it is not known whether all images are there"
                    );
                }
                let fetcher = self.fetcher(&session, &agreed.release, Patience::Short);
                let offer = self.offer(agreed.release.clone(), &fetcher).await;
                if self.note_agreement(&agreed, &offer) {
                    self.tidy(self.state().standing(), None, Grace::Kept).await;
                }
                let error = self.note_offer(&offer).map(AgentError::from);
                Outcome { event: Some(Event::Offered(offer)), error, waits: false }
            }
            Err(error) => self.check_failed(error),
        }
    }

    /// Trusts the facade by what the signed metadata says. What does not work is not taken, and tried again next time.
    async fn adopt_anchors(&self, identity: &Identity, pem: Option<&str>) {
        let Some(pem) = pem else { return };
        match anchors::adopt(self.surroundings(), identity, pem).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("the CA certificates of the facade have changed, as its signed metadata says");
                self.shared().session = None;
            }
            Err(error) => tracing::warn!(
                error = crate::error_chain(&error),
                "the CA certificates that the signed metadata names are not used"
            ),
        }
    }

    /// A policy that cannot be read is told of, and changes nothing.
    fn adopt_policy(&self, policy: Result<DevicePolicy, String>) {
        match policy {
            Ok(policy) => self.shared().policy = policy,
            Err(problem) => {
                let subject = Subject::Metadata(Line::shortened("director/targets.json"));
                if let Err(error) = self.reporter().refuse(subject, "policy_unreadable", &problem) {
                    tracing::warn!(error = crate::error_chain(&error), "the refusal cannot be kept");
                }
            }
        }
    }

    /// Notes what both repositories say; whether it is settled and something of earlier attempts may lie about.
    fn note_agreement(&self, agreed: &Agreed, offer: &Offer) -> bool {
        self.note_answers();
        let held_back = self.held_back(self.state().standing(), offer);
        let mut shared = self.shared();
        shared.versions = agreed.versions;
        shared.expires = Some(agreed.expires);
        shared.last_check = Some(self.clock.now());
        shared.held_back = held_back;
        let settled = agreed.release == shared.state.standing().current;
        settled && std::mem::take(&mut shared.untidy)
    }

    /// Why what is assigned is not taken, where it failed here before.
    fn held_back(&self, standing: &Standing, offer: &Offer) -> Option<String> {
        let Some(objection) = standing.objection(&offer.release) else {
            return self.given_up(offer);
        };
        let rejected = objection.without(&standing.current);
        let failed = self.reporter().rolled_back(&State::Idle { standing: standing.clone() });
        let why = failed.into_iter().find(|failed| rejected.has(&failed.artifact));
        Some(why.map_or_else(
            || "what is assigned failed here before; assign another version".to_owned(),
            |why| {
                format!(
                    "{} failed here and is not tried again ({}); assign another version",
                    why.artifact, why.reason
                )
            },
        ))
    }

    fn check_failed(&self, error: RefreshError) -> Outcome {
        if error.is_disowned() {
            return self.disowned(error.into());
        }
        if self.is_refusal(&error) {
            let subject = Subject::Metadata(Line::shortened(&subject(&error)));
            let refused = self.reporter().refuse(subject, refusal_code(&error), &crate::error_chain(&error));
            if let Err(error) = refused {
                tracing::warn!(error = crate::error_chain(&error), "the refusal cannot be kept");
            }
        }
        Outcome::failed(Fault::Circumstance, error)
    }

    /// The facade judged our certificate and will not have it.
    fn disowned(&self, error: AgentError) -> Outcome {
        let text = crate::error_chain(&error);
        if let Err(error) = self.dir.write(DISOWNED_FILE, text.as_bytes()) {
            return Outcome::failed(Fault::Circumstance, error);
        }
        self.shared().session = None;
        Outcome { event: Some(Event::Disowned), error: Some(error), waits: false }
    }

    pub(super) async fn fetch(&self, release: &Release, patience: Patience) -> Outcome {
        let session = match self.session() {
            Ok(session) => session,
            Err(error) => return Outcome::failed(Fault::Circumstance, error),
        };
        let fetcher = self.fetcher(&session, release, patience);
        // What is here needs no window to come in, and has no deadline any more.
        if !fetcher.is_complete(release).await {
            let unfinished = tokio::select! {
                came = self.bring_in(&fetcher, release, patience) => came.err(),
                () = self.until_overdue() => Some(self.give_up()),
            };
            if let Some(outcome) = unfinished {
                return outcome;
            }
        }
        self.shared().need_bytes = None;
        // What the state says is here must be here after a power cut.
        if let Err(error) = self.runtime.sync().await {
            return Outcome::again(error);
        }
        match self.until_allowed(Step::Apply, patience).await {
            Ok(()) => Outcome::event(Event::Fetched),
            Err(NotNow) => Outcome::later(),
        }
    }

    fn fetcher<'a>(&'a self, session: &'a Session, release: &Release, patience: Patience) -> Fetcher<'a> {
        Fetcher {
            client: &session.client,
            runtime: self.runtime.as_ref(),
            platform: &self.platform,
            limits: self.limits(release, patience),
            progress: &self.progress,
        }
    }

    /// Fetches when and as long as that is allowed: a window that closes stops what is on its way.
    async fn bring_in(
        &self,
        fetcher: &Fetcher<'_>,
        release: &Release,
        patience: Patience,
    ) -> Result<(), Outcome> {
        loop {
            if let Err(NotNow) = self.until_allowed(Step::Download, patience).await {
                return Err(Outcome::later());
            }
            let outcome = tokio::select! {
                outcome = fetcher.fetch(release) => outcome,
                () = self.until_hindered(Step::Download) => continue,
            };
            return match outcome {
                Ok(()) => Ok(()),
                Err(FetchError::NoRoom(shortage)) => Err(self.no_room(release, shortage).await),
                Err(error) => Err(self.fetch_failed(release, error)),
            };
        }
    }

    /// Gives back what is ours and not needed, and says what is missing. What runs, and what it would go back to, stays.
    async fn no_room(&self, release: &Release, shortage: NoRoom) -> Outcome {
        let had_leaving = self.shared().untidy;
        self.tidy(self.state().standing(), None, Grace::Over).await;
        self.shared().untidy = true;
        self.shared().need_bytes = Some(shortage.need_bytes);
        tracing::warn!(
            need_bytes = shortage.need_bytes,
            free_bytes = shortage.free_bytes,
            had_leaving,
            "no room"
        );
        let error = FetchError::NoRoom(shortage);
        self.refuse(release, None, "no_space", &error);
        Outcome::failed(Fault::Circumstance, error)
    }

    fn limits(&self, release: &Release, patience: Patience) -> Limits {
        Limits {
            parallel: self.config.parallel,
            stall: self.config.stall,
            minimum_rate: self.config.minimum_rate,
            rate_window: self.config.rate_window,
            rate: self.rate(),
            reserve_bytes: self.config.reserve_bytes,
            unpack_bytes: self.unpack_bytes(release),
            attempts: match patience {
                Patience::Endless => None,
                Patience::Short => Some(SHORT_ATTEMPTS),
            },
        }
    }

    fn fetch_failed(&self, release: &Release, error: FetchError) -> Outcome {
        self.shared().untidy = true;
        if error.is_disowned() {
            return self.disowned(error.into());
        }
        let code = match &error {
            FetchError::Corrupt { .. } => Some("content_digest"),
            FetchError::Document { .. } => Some("content_malformed"),
            FetchError::Plan { .. } => Some("content_unsuitable"),
            FetchError::Client { .. }
            | FetchError::Runtime(_)
            | FetchError::NoRoom(_)
            | FetchError::Vanishing => None,
        };
        if let Some(code) = code {
            self.refuse(release, error_artifact(&error), code, &error);
        }
        Outcome::failed(Fault::Circumstance, error)
    }

    /// Keeps a refusal about one artifact, or about all of a release where the error names none.
    pub(super) fn refuse(
        &self,
        release: &Release,
        artifact: Option<&pki::oci::ArtifactName>,
        code: &str,
        error: &dyn std::error::Error,
    ) {
        let about = release.assigned().filter(|about| artifact.is_none_or(|name| *name == about.artifact));
        self.refuse_for(&Release::new(about.cloned()), code, &crate::error_chain(error));
    }

    /// Keeps a refusal about each artifact of a release.
    pub(super) fn refuse_for(&self, release: &Release, code: &str, reason: &str) {
        for assigned in release.assigned() {
            let subject = Subject::Artifact(assigned.artifact.clone());
            if let Err(error) = self.reporter().refuse(subject, code, reason) {
                tracing::warn!(error = crate::error_chain(&error), "the refusal cannot be kept");
            }
        }
    }

    /// Fetches, but lets the facade's news, a renewal that is due, or a new identity come first.
    pub(super) async fn fetch_unless_news(&self, news: &mut News) -> Outcome {
        let state = self.state();
        let Some(release) = state.next() else {
            return Outcome::event(Event::Due);
        };
        let until_renewal = self.until_renewal();
        tokio::select! {
            outcome = self.fetch(release, Patience::Endless) => outcome,
            () = self.heard_news(news) => Outcome::event(Event::Due),
            // The loop renews and comes back; what was fetched stays.
            () = tokio::time::sleep(until_renewal) => Outcome { event: None, error: None, waits: false },
        }
    }

    async fn activate(&self, state: &State, release: &Release) -> Outcome {
        self.shared().untidy = true;
        let free = self.runtime.space().await.ok().and_then(|space| space.unpacked_free_bytes);
        match handover::activate(self.runtime.as_ref(), release, &self.platform).await {
            Ok(()) => {}
            Err(error) if error.is_transient() => return Outcome::again(error),
            Err(error) => {
                if let (true, Some(free)) = (error.is_full(), free) {
                    self.note_unpack(release, free);
                }
                self.throw_away(error.damaged()).await;
                return self.activation_failed(state, release, error);
            }
        }
        let changes = apply::changes(state.standing().may_run(), release, Direction::Forward);
        match self.config.apply.tell(&changes).await {
            Ok(()) => {
                let within = jiff::SignedDuration::try_from(self.config.probe.within).unwrap_or_default();
                let deadline = self.clock.now().checked_add(within).unwrap_or(Timestamp::MAX);
                Outcome::event(Event::Activated { deadline })
            }
            Err(error @ ApplyError::NotNow(_)) => Outcome::again(error),
            Err(error @ ApplyError::Untold(..)) => Outcome::failed(Fault::Circumstance, error),
            Err(error @ ApplyError::Unfit(..)) => self.unfit(state, "apply_failed", error),
        }
    }

    fn activation_failed(&self, state: &State, release: &Release, error: HandoverError) -> Outcome {
        let fault = error.fault();
        if fault == Fault::Release {
            self.refuse(release, Some(error.artifact()), "activation_failed", &error);
            self.blame(state, "activation_failed", &crate::error_chain(&error));
        }
        Outcome::failed(fault, error)
    }

    fn unfit(&self, state: &State, code: &str, error: impl Into<AgentError>) -> Outcome {
        let error = error.into();
        self.blame(state, code, &crate::error_chain(&error));
        Outcome { event: Some(Event::Unfit), error: Some(error), waits: false }
    }

    /// Keeps why what changes with a release failed here.
    pub(super) fn blame(&self, state: &State, code: &str, reason: &str) {
        let Some(next) = state.next() else { return };
        let changed = next.without(&state.standing().current);
        let blamed = if changed.is_empty() { next } else { &changed };
        if let Err(error) = self.reporter().failed_here(blamed, code, reason, self.clock.now()) {
            tracing::warn!(error = crate::error_chain(&error), "why the release failed cannot be kept");
        }
    }

    async fn confirm(&self, state: &State) -> Outcome {
        let Some(release) = state.next() else {
            return Outcome::event(Event::Healthy);
        };
        // Of nothing, nothing is to be seen.
        if !release.is_empty() {
            if let Err(error) = self.config.probe.until_healthy().await {
                return self.unfit(state, "probe_failed", error);
            }
        }
        if let Err(error) = self.reporter().handed_over(release, self.clock.now()) {
            return Outcome::again(error);
        }
        let confirmed = state.clone().on(Event::Healthy);
        // What is confirmed stays confirmed; what cannot be taken back now is, after the next check.
        self.tidy(confirmed.standing(), None, Grace::Kept).await;
        Outcome::event(Event::Healthy)
    }
}

fn error_artifact(error: &FetchError) -> Option<&pki::oci::ArtifactName> {
    match error {
        FetchError::Plan { artifact, .. } | FetchError::Document { artifact, .. } => Some(artifact),
        FetchError::Corrupt { .. }
        | FetchError::Client { .. }
        | FetchError::Runtime(_)
        | FetchError::NoRoom(_)
        | FetchError::Vanishing => None,
    }
}

/// Which file a refusal is about.
fn subject(error: &RefreshError) -> String {
    match error {
        RefreshError::Metadata { repository, file, .. } => {
            format!("{}/{}", repository.name(), file.as_deref().unwrap_or("metadata"))
        }
        RefreshError::Client { repository, file, .. } => format!("{}/{file}", repository.name()),
        RefreshError::Disagree(_)
        | RefreshError::NoRoot { .. }
        | RefreshError::Root { .. }
        | RefreshError::State(_) => "director/targets.json".to_owned(),
    }
}
