//! Answers challenges: which `Authorization` a request gets, exchanged, cached and renewed.
//!
//! Decides where credentials may go: only to the registry itself by Basic, and to a token server of the same owner
//! ([`Policy::trusts_realm`](super::address::Policy::trusts_realm)); never to whom a redirect led.

mod cache;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use data_encoding::BASE64;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, StatusCode};
use pki::oci::RepositoryName;

pub(super) use cache::{Cache, Cached, Issued};

use super::Limits;
use super::challenge::{Bearer, Challenge, reading_scope};
use super::client::{Answer, Authorization, Client};
use super::credential::{Credential, Login, Source};
use super::error::{Cause, UpstreamError};
use super::target::{Target, form};
use crate::secret::Secret;

const MAX_TOKEN_BYTES: usize = 64 * 1024;
const MAX_LEARNED: usize = 4096;
/// Token specification, "expires_in": 60 seconds where the server does not say.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
const CLIENT_ID: &str = "drayage";
const FORM: &str = "application/x-www-form-urlencoded";
/// The user name under which Docker's tools keep an identity (refresh) token.
const IDENTITY_TOKEN: &str = "<token>";
/// The user name of Azure's refresh tokens.
const AZURE_REFRESH: &str = "00000000-0000-0000-0000-000000000000";

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

struct Exchanger {
    host: Box<str>,
    client: Client,
    source: Source,
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
        match known {
            Some(way) => self.authorize(way).await.map(Some),
            None => Ok(None),
        }
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
            .find_map(|challenge| self.way(subject, challenge, &answer.target));
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
        self.authorize(way).await
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

    fn way(
        &self,
        subject: &Subject,
        challenge: &Challenge,
        from: &Target,
    ) -> Option<Result<Way, UpstreamError>> {
        match challenge {
            Challenge::Basic if self.is_anonymous() => Some(Err(UpstreamError::Unauthenticated {
                host: self.shared.host.clone(),
            })),
            Challenge::Basic => Some(Ok(Way::Basic)),
            Challenge::Bearer(bearer) => Some(self.wanted(subject, bearer, from).map(Way::Bearer)),
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
        if matches!(
            error,
            UpstreamError::Denied { .. }
                | UpstreamError::Unauthenticated { .. }
                | UpstreamError::Forbidden { .. }
        ) && self.tokens.rejection(way).is_none()
        {
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

impl Exchanger {
    async fn login(&self) -> Result<(Login, Option<Cached>), UpstreamError> {
        self.source
            .login()
            .await?
            .ok_or_else(|| UpstreamError::Unauthenticated {
                host: self.host.clone(),
            })
    }

    /// Exchanges the connection's credential for a token.
    async fn exchange(&self, wanted: &Wanted) -> Result<Issued, UpstreamError> {
        let Some((login, cached)) = self.source.login().await? else {
            return self.get(wanted, None).await;
        };
        match (self.exchange_as(wanted, &login).await, cached) {
            // The login itself was out of the cache and may have been revoked: once more with a new one.
            (Err(UpstreamError::Denied { .. }), Some(cached)) if !cached.is_fresh => {
                self.source.forget(&cached);
                let (login, _) = self.login().await?;
                self.exchange_as(wanted, &login).await
            }
            (outcome, _) => outcome,
        }
    }

    async fn exchange_as(&self, wanted: &Wanted, login: &Login) -> Result<Issued, UpstreamError> {
        if matches!(login.username.as_str(), IDENTITY_TOKEN | AZURE_REFRESH) {
            return match self.post(wanted, login, Grant::RefreshToken).await? {
                Posted::Issued(issued) => Ok(issued),
                Posted::Unsupported => self.get(wanted, Some(login)).await,
            };
        }
        match self.get(wanted, Some(login)).await {
            Err(UpstreamError::Unavailable {
                status: 404 | 405, ..
            }) => match self.post(wanted, login, Grant::Password).await? {
                Posted::Issued(issued) => Ok(issued),
                Posted::Unsupported => Err(super::client::bad(
                    &wanted.realm,
                    "its token server issues no tokens",
                )),
            },
            outcome => outcome,
        }
    }

    /// Distribution token specification: GET with Basic.
    async fn get(&self, wanted: &Wanted, login: Option<&Login>) -> Result<Issued, UpstreamError> {
        let mut query = Vec::new();
        if let Some(service) = &wanted.service {
            query.push(("service", service.as_str()));
        }
        query.extend(
            wanted
                .scope
                .split_ascii_whitespace()
                .map(|scope| ("scope", scope)),
        );
        if login.is_some() {
            query.push(("client_id", CLIENT_ID));
        }
        let target = if query.is_empty() {
            wanted.realm.clone()
        } else {
            wanted.realm.with_query(query)
        };
        let authorization = login.map(basic);
        let answer = self.client.get(&target, &json(), authorization.as_ref()).await?;
        self.issued(answer, login.is_some()).await
    }

    /// OAuth2: POST of a form. Registries say in many ways that they do not have it.
    async fn post(&self, wanted: &Wanted, login: &Login, grant: Grant) -> Result<Posted, UpstreamError> {
        let secret = login.password.expose();
        let mut pairs = vec![("client_id", CLIENT_ID), ("scope", wanted.scope.as_str())];
        if let Some(service) = &wanted.service {
            pairs.push(("service", service.as_str()));
        }
        match grant {
            Grant::RefreshToken => pairs.extend([("grant_type", "refresh_token"), ("refresh_token", secret)]),
            Grant::Password => pairs.extend([
                ("grant_type", "password"),
                ("username", login.username.as_str()),
                ("password", secret),
            ]),
        }
        let body = form(pairs).into();
        let secrets = vec![login.password.clone()];
        let answer = self
            .client
            .post(&wanted.realm, json(), FORM, body, secrets)
            .await?;
        // 404 Google, 401 Artifactory, 400 Azure, 405 elsewhere: not necessarily about the credentials.
        if matches!(answer.status.as_u16(), 400 | 401 | 404 | 405) {
            return Ok(Posted::Unsupported);
        }
        self.issued(answer, true).await.map(Posted::Issued)
    }

    async fn issued(&self, answer: Answer, proven: bool) -> Result<Issued, UpstreamError> {
        let host: Box<str> = answer.target.authority().into();
        match answer.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if proven => {
                let source = answer.said().await;
                return Err(UpstreamError::Denied { host, source });
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(UpstreamError::Unauthenticated {
                    host: self.host.clone(),
                });
            }
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(UpstreamError::RateLimited {
                    host,
                    retry_after: super::health::retry_after(&answer.headers, self.source.now()),
                });
            }
            status => {
                return Err(UpstreamError::Unavailable {
                    host,
                    status: status.as_u16(),
                });
            }
        }
        let target = answer.target;
        let body = answer.body.read("token", MAX_TOKEN_BYTES).await?;
        read_token(&body).ok_or_else(|| super::client::bad(&target, "its token server sent no usable token"))
    }
}

enum Grant {
    RefreshToken,
    Password,
}

enum Posted {
    Issued(Issued),
    Unsupported,
}

/// `{"token" or "access_token", "expires_in"}`; a missing or senseless lifetime counts as the default.
pub(super) fn read_token(body: &[u8]) -> Option<Issued> {
    let document = pki::json::parse(body, MAX_TOKEN_BYTES).ok()?;
    let text = |name: &str| document.get(name)?.as_str().filter(|text| !text.is_empty());
    let token = text("token").or_else(|| text("access_token"))?;
    // It becomes a header value: a token with a line break would write further headers.
    let printable = token.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    let lifetime = document.get("expires_in").and_then(serde_json::Value::as_u64);
    printable.then(|| Issued {
        value: Secret::new(token.to_owned()),
        lifetime: lifetime
            .filter(|seconds| *seconds > 0)
            .map_or(DEFAULT_LIFETIME, Duration::from_secs),
    })
}

fn json() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))])
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
    fn reads_tokens_in_every_known_shape() {
        for (body, expected) in [
            (r#"{"token":"a","expires_in":300}"#, Some(("a", 300))),
            (r#"{"access_token":"b"}"#, Some(("b", 60))),
            (
                r#"{"token":"a","access_token":"b","expires_in":0}"#,
                Some(("a", 60)),
            ),
            (
                r#"{"token":"","access_token":"b","expires_in":-5}"#,
                Some(("b", 60)),
            ),
            (r#"{"token":"a","expires_in":"soon"}"#, Some(("a", 60))),
            (r#"{"token":"a\r\nX: y"}"#, None),
            (r#"{"token":null}"#, None),
            (r#"{"token":"a","token":"b"}"#, None),
            ("[]", None),
            ("", None),
        ] {
            let read = read_token(body.as_bytes());
            let read = read
                .as_ref()
                .map(|issued| (issued.value.expose(), issued.lifetime.as_secs()));
            assert_eq!(read, expected, "{body}");
        }
    }

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
