//! Answers challenges: which `Authorization` a request gets, exchanged, cached and renewed.
//!
//! Decides where credentials may go: only to the registry itself by Basic, and to a token server of the same owner
//! ([`Policy::trusts_realm`](super::address::Policy::trusts_realm)); never to whom a redirect led.

mod cache;
mod exchange;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64;
use http::{HeaderValue, StatusCode};
use pki::oci::RepositoryName;

pub(super) use cache::{Cache, Cached, Issued};
pub(super) use exchange::read_token;

use exchange::Exchanger;

use super::Limits;
use super::challenge::{Bearer, Challenge, reading_scope};
use super::client::{Answer, Authorization, Client};
use super::credential::{Credential, Login, Source};
use super::error::{Cause, UpstreamError};
use super::target::Target;
use crate::secret::Secret;

const MAX_LEARNED: usize = 4096;

/// What a request is for; registries ask for different scopes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// `/v2/` alone.
    Ping,
    /// Manifests and blobs.
    Pull(RepositoryName),
    /// The list of tags.
    List(RepositoryName),
}

impl Subject {
    fn scope(&self) -> String {
        match self {
            Self::Ping => String::new(),
            Self::Pull(name) | Self::List(name) => format!("repository:{name}:pull"),
        }
    }
}

/// A token that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wanted {
    realm: Target,
    service: Option<String>,
    scope: String,
}

/// How a subject is authorized, as its last challenge said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Way {
    Basic,
    Bearer(Wanted),
}

/// An authorization in use, and what to do when it is rejected.
#[derive(Debug)]
pub(super) struct InUse {
    pub(super) authorization: Authorization,
    way: Way,
    /// The exchanged token or login in it; none for a static password, which nothing can renew.
    cached: Option<Cached>,
}

/// Answers the challenges of one registry.
pub(super) struct Authorizer {
    shared: Arc<Exchanger>,
    tokens: Cache<Way>,
    learned: Mutex<HashMap<Subject, Way>>,
    limits: Limits,
}

impl Authorizer {
    pub(super) fn new(host: Box<str>, client: Client, source: Source, limits: Limits) -> Self {
        Self {
            shared: Arc::new(Exchanger { host, client, source }),
            tokens: Cache::new(),
            learned: Mutex::new(HashMap::new()),
            limits,
        }
    }

    /// Whether there is anything to prove.
    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self.shared.source.credential(), Credential::Anonymous)
    }

    /// The authorization that the last challenge for this subject called for, before there is a new one.
    pub(super) async fn ahead(&self, subject: &Subject) -> Result<Option<InUse>, UpstreamError> {
        let known = self.learned().get(subject).cloned();
        let Some(way) = known else { return Ok(None) };
        let outcome = self.authorize(way).await;
        self.unlearn_if_astray(subject, &outcome);
        outcome.map(Some)
    }

    /// The authorization that a 401, or a 403 for an expired short-lived credential, calls for.
    pub(super) async fn renew(
        &self,
        subject: &Subject,
        challenges: &[Challenge],
        rejected: Option<InUse>,
        answer: Answer,
    ) -> Result<InUse, UpstreamError> {
        let asked = challenges
            .iter()
            .next()
            .map(|challenge| self.way(subject, challenge, &answer.target));
        let way = match (asked, &rejected) {
            (Some(way), _) => way?,
            // ECR says 403 without a challenge when a token has expired.
            (None, Some(rejected)) => rejected.way.clone(),
            (None, None) => {
                return Err(answer.bad("asks for an authentication that the facade does not speak"));
            }
        };
        if let Some(rejected) = rejected {
            self.dismiss(challenges, rejected, answer).await?;
        }
        self.learn(subject, &way);
        let outcome = self.authorize(way).await;
        self.unlearn_if_astray(subject, &outcome);
        outcome
    }

    /// A challenge that led nowhere (a realm that is gone, or that one bad answer named) must not stand before every
    /// later request: the registry is asked afresh. A refusal was an answer, and keeps being remembered.
    fn unlearn_if_astray(&self, subject: &Subject, outcome: &Result<InUse, UpstreamError>) {
        if outcome.as_ref().is_err_and(|error| !is_refusal(error)) {
            self.learned().remove(subject);
        }
    }

    /// Forgets what was rejected; an error when there is nothing better to be had.
    async fn dismiss(
        &self,
        challenges: &[Challenge],
        rejected: InUse,
        answer: Answer,
    ) -> Result<(), UpstreamError> {
        match &rejected.cached {
            Some(cached) if !cached.is_fresh => match rejected.way {
                Way::Basic => self.shared.source.forget(cached),
                way @ Way::Bearer(_) => self.tokens.forget(&way, cached),
            },
            _ => {
                let error = self.rejected(challenges, answer).await;
                self.tokens.reject(&rejected.way, &error, self.limits.rejected);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn rejected(&self, challenges: &[Challenge], answer: Answer) -> UpstreamError {
        let host = self.shared.host.clone();
        let lacks_scope = |challenge: &Challenge| matches!(challenge, Challenge::Bearer(bearer) if bearer.error.as_deref() == Some("insufficient_scope"));
        let lacks_scope = challenges.iter().any(lacks_scope) || answer.status == StatusCode::FORBIDDEN;
        let source = answer.said().await;
        match (self.is_anonymous(), lacks_scope) {
            (true, _) => UpstreamError::Unauthenticated { host },
            (false, true) => UpstreamError::Forbidden {
                host,
                what: "this repository".into(),
                source,
            },
            (false, false) => UpstreamError::Denied { host, source },
        }
    }

    fn way(&self, subject: &Subject, challenge: &Challenge, from: &Target) -> Result<Way, UpstreamError> {
        match challenge {
            Challenge::Basic if self.is_anonymous() => Err(UpstreamError::Unauthenticated {
                host: self.shared.host.clone(),
            }),
            Challenge::Basic => Ok(Way::Basic),
            Challenge::Bearer(bearer) => self.wanted(subject, bearer, from).map(Way::Bearer),
        }
    }

    fn wanted(&self, subject: &Subject, bearer: &Bearer, from: &Target) -> Result<Wanted, UpstreamError> {
        let forbidden = |why: &str| UpstreamError::ForbiddenTarget {
            host: self.shared.host.clone(),
            source: Cause::new(why),
        };
        let realm = Target::parse(&bearer.realm).ok_or_else(|| forbidden("its token realm is not a URL"))?;
        let policy = self.shared.client.dialer().policy();
        policy.permits(&realm).map_err(forbidden)?;
        if realm.scheme() != from.scheme() && from.scheme() == super::target::Scheme::Https {
            return Err(forbidden("its token realm is not https"));
        }
        if !self.is_anonymous() && !policy.trusts_realm(&realm) {
            return Err(forbidden(&format!(
                "its token server is {}, which is not its own; if that is right, connect with --token-host {}",
                realm.host(),
                realm.host()
            )));
        }
        Ok(Wanted {
            realm,
            service: bearer.service.clone(),
            scope: reading_scope(bearer.scope.as_deref(), &subject.scope()),
        })
    }

    async fn authorize(&self, way: Way) -> Result<InUse, UpstreamError> {
        if let Some(error) = self.tokens.rejection(&way) {
            return Err(error);
        }
        match &way {
            Way::Basic => {
                let (login, cached) = self.shared.login().await?;
                Ok(InUse {
                    authorization: basic(&login),
                    way,
                    cached,
                })
            }
            Way::Bearer(wanted) => {
                let (exchanger, owned) = (Arc::clone(&self.shared), wanted.clone());
                let exchange = || async move { exchanger.exchange(&owned).await };
                let token = match self.tokens.get(&way, exchange).await {
                    Ok(token) => token,
                    Err(error) => return Err(self.remember(&way, error)),
                };
                Ok(InUse {
                    authorization: bearer(&token.value),
                    way,
                    cached: Some(token),
                })
            }
        }
    }

    fn remember(&self, way: &Way, error: UpstreamError) -> UpstreamError {
        if is_refusal(&error) && self.tokens.rejection(way).is_none() {
            self.tokens.reject(way, &error, self.limits.rejected);
        }
        error
    }

    /// Whether a 403 may mean that a short-lived credential has expired.
    pub(super) fn may_have_expired(&self, used: Option<&InUse>) -> bool {
        self.shared.source.is_short_lived()
            && used.is_some_and(|used| used.cached.as_ref().is_some_and(|cached| !cached.is_fresh))
    }

    fn learn(&self, subject: &Subject, way: &Way) {
        let mut learned = self.learned();
        if learned.len() >= MAX_LEARNED {
            learned.clear();
        }
        learned.insert(subject.clone(), way.clone());
    }

    fn learned(&self) -> MutexGuard<'_, HashMap<Subject, Way>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorizer")
            .field("host", &self.shared.host)
            .finish_non_exhaustive()
    }
}

/// Whether a token server heard us and said no.
fn is_refusal(error: &UpstreamError) -> bool {
    matches!(
        error,
        UpstreamError::Denied { .. }
            | UpstreamError::Unauthenticated { .. }
            | UpstreamError::Forbidden { .. }
    )
}

/// `Authorization: Basic` (RFC 7617).
pub(super) fn basic(login: &Login) -> Authorization {
    let pair = Secret::new(format!("{}:{}", login.username, login.password.expose()));
    let encoded = Secret::new(BASE64.encode(pair.expose().as_bytes()));
    Authorization {
        header: sensitive("Basic", &encoded),
        secrets: vec![encoded, login.password.clone()],
    }
}

fn bearer(token: &Secret) -> Authorization {
    Authorization {
        header: sensitive("Bearer", token),
        secrets: vec![token.clone()],
    }
}

/// A header value that the HTTP client keeps out of its logs and compression tables.
fn sensitive(scheme: &'static str, value: &Secret) -> HeaderValue {
    let text = Secret::new(format!("{scheme} {}", value.expose()));
    // Both kinds of value are printable by construction; if one were not, it is the registry that refuses.
    let mut header = HeaderValue::from_str(text.expose()).unwrap_or(HeaderValue::from_static(""));
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints_an_authorization() {
        let login = Login {
            username: "u".into(),
            password: Secret::new("hunter2".into()),
        };
        let shown = format!("{:?}", basic(&login));
        assert!(
            !shown.contains("hunter2") && !shown.contains("dTpodW50ZXIy"),
            "{shown}"
        );
        assert_eq!(basic(&login).header.to_str().unwrap(), "Basic dTpodW50ZXIy");
    }
}
