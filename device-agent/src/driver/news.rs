//! What wakes a device that has nothing to do: the facade's news, the poll interval, and a certificate that must be renewed.

use std::time::Duration;

use http::StatusCode;
use pki::wire::WaitAnswer;
use tokio::time::Instant;

use super::{Agent, AgentError};
use crate::backoff::{self, Backoff};
use crate::facade_client::Ask;
use crate::identity::Identity;
use crate::identity::renew::{self, Renewal};
use crate::random;

/// What the facade last said of news.
#[derive(Debug, Default)]
pub(super) struct News {
    version: u64,
    /// Whether the facade answers the question at all.
    unknown: bool,
}

/// The facade holds the question for at most this long.
const LONGEST_POLL: Duration = Duration::from_secs(120);
/// A question that was answered sooner was not held.
const HELD: Duration = Duration::from_secs(5);
pub(super) const MAX_NEWS_BYTES: u64 = 64 * 1024;
/// A fleet that hears the same news at one moment spreads its questions over this time.
const NEWS_SPREAD: Duration = Duration::from_secs(1);

impl Agent {
    /// Waits until the facade has news, or it is time to ask anyway.
    pub(super) async fn wait_for_news(&self, news: &mut News, failures: &Backoff) {
        let poll = self.config.poll;
        let jittered = poll / 10 * 9 + backoff::within(poll / 5, random::number());
        if failures.failures() > 0 || self.shared().last_check.is_none() {
            return;
        }
        tokio::select! {
            () = self.heard_news(news) => {}
            () = self.wake.notified() => {}
            () = tokio::time::sleep(jittered) => {}
            () = tokio::time::sleep(self.until_renewal()) => {}
        }
    }

    pub(super) fn until_renewal(&self) -> Duration {
        let Ok(session) = self.session() else {
            return self.config.poll;
        };
        let until = session.renew_at.duration_since(self.clock.now());
        // A renewal that is overdue failed just now; it has its own next time.
        Duration::try_from(until).unwrap_or_default().max(RENEWAL_RETRY)
    }

    /// Returns when the facade says that something changed for this device.
    pub(super) async fn heard_news(&self, news: &mut News) {
        let mut failures = Backoff::default();
        loop {
            if news.unknown {
                // An older facade: only the poll interval is left.
                std::future::pending::<()>().await;
            }
            let asked = Instant::now();
            match self.ask_news(news).await {
                Ok(true) => {
                    tokio::time::sleep(backoff::within(NEWS_SPREAD, random::number())).await;
                    return;
                }
                Ok(false) if asked.elapsed() >= HELD => failures.reset(),
                // A facade that does not hold the question must not be asked without end.
                Ok(false) => tokio::time::sleep(failures.next(random::number())).await,
                Err(error) => {
                    tracing::debug!(error = crate::error_chain(&error), "no news");
                    tokio::time::sleep(failures.next(random::number())).await;
                }
            }
        }
    }

    /// One long poll; whether there is something new.
    async fn ask_news(&self, news: &mut News) -> Result<bool, AgentError> {
        let session = self.session()?;
        let path = format!("/v1/wait?since={}", news.version);
        let ask = Ask::get(path).patience(LONGEST_POLL);
        let answer = session.client.ask(&ask).await?;
        match answer.status() {
            StatusCode::OK => {
                let body = answer.whole(MAX_NEWS_BYTES).await?;
                let Ok(WaitAnswer { version }) = serde_json::from_slice(&body) else {
                    news.unknown = true;
                    return Ok(false);
                };
                // The first answer counts too: what changed since the last check is not known to be in it.
                let changed = version != news.version;
                news.version = version;
                Ok(changed)
            }
            StatusCode::NO_CONTENT => {
                answer.whole(MAX_NEWS_BYTES).await?;
                Ok(false)
            }
            _ => {
                news.unknown = true;
                Ok(false)
            }
        }
    }

    /// Renews the certificate when it is time. A failure is told and tried again; the old pair stays in use.
    pub(super) async fn renew_if_due(&self) {
        let Ok(session) = self.session() else { return };
        // A clock that is behind says too little, never too much: what it shows as due is due.
        if self.clock.now() < session.renew_at {
            return;
        }
        let renewed = renew::renew(self.surroundings(), &session.identity, &session.client).await;
        match renewed {
            Ok(Renewal::Done(identity)) => {
                tracing::info!(
                    device.id = %identity.device(),
                    not_after = %identity.certificate().not_after(),
                    "certificate renewed"
                );
                self.shared().session = None;
                self.doubt_clock_after(&identity);
            }
            Ok(Renewal::Later(wait)) => {
                tracing::info!(retry_seconds = wait.as_secs(), "renewal waits for an operator");
                self.postpone_renewal(wait);
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::error_chain(&error),
                    not_after = %session.identity.certificate().not_after(),
                    "certificate could not be renewed"
                );
                self.postpone_renewal(RENEWAL_RETRY);
            }
        }
    }

    /// A certificate that was issued a moment ago and would be due already: the clock of the device is far ahead, and
    /// without a pause it would renew without end.
    fn doubt_clock_after(&self, renewed: &Identity) {
        if self.clock.now() < renewed.renew_at(u64::MAX) {
            return;
        }
        tracing::error!(
            clock = %self.clock.now(),
            not_before = %renewed.certificate().not_before(),
            "the clock of this device is far ahead of the facade's"
        );
        self.postpone_renewal(RENEWAL_PAUSE);
    }

    fn postpone_renewal(&self, wait: Duration) {
        let Ok(session) = self.session() else { return };
        let jittered = wait + backoff::within(wait / 2, random::number());
        let at = jiff::SignedDuration::try_from(jittered)
            .ok()
            .and_then(|wait| self.clock.now().checked_add(wait).ok());
        let later = super::Session {
            identity: session.identity.clone(),
            client: session.client.clone(),
            renew_at: at.unwrap_or(session.renew_at),
        };
        self.shared().session = Some(std::sync::Arc::new(later));
    }
}

const RENEWAL_RETRY: Duration = Duration::from_secs(600);
const RENEWAL_PAUSE: Duration = Duration::from_secs(12 * 3600);
