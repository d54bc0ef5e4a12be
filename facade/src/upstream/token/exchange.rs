//! Exchanges a login, or nothing, for a registry token: the GET of the distribution specification, the POST of `OAuth2`.

use std::time::Duration;

use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::cache::{Cached, Issued};
use super::{Wanted, basic};
use crate::secret::Secret;
use crate::upstream::azure;
use crate::upstream::client::{Answer, Client, bad};
use crate::upstream::counters::Exchange;
use crate::upstream::credential::{Login, Source};
use crate::upstream::error::UpstreamError;
use crate::upstream::health::retry_after;
use crate::upstream::target::form;

const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// Token specification, `expires_in`: 60 seconds where the server does not say.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);
const CLIENT_ID: &str = "drayage";
const FORM: &str = "application/x-www-form-urlencoded";
/// The user name under which Docker's tools keep an identity (refresh) token.
const IDENTITY_TOKEN: &str = "<token>";

/// Exchanges the credential of one connection.
pub(super) struct Exchanger {
    pub(super) host: Box<str>,
    pub(super) client: Client,
    pub(super) source: Source,
}

impl Exchanger {
    pub(super) async fn login(&self) -> Result<(Login, Option<Cached>), UpstreamError> {
        self.source.login().await?.ok_or_else(|| UpstreamError::Unauthenticated { host: self.host.clone() })
    }

    /// Exchanges the connection's credential for a token.
    pub(super) async fn exchange(&self, wanted: &Wanted) -> Result<Issued, UpstreamError> {
        let outcome = self.issue(wanted).await;
        self.client.exchanged(Exchange::Registry, outcome)
    }

    async fn issue(&self, wanted: &Wanted) -> Result<Issued, UpstreamError> {
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
        if matches!(login.username.as_str(), IDENTITY_TOKEN | azure::USERNAME) {
            return match self.post(wanted, login, Grant::RefreshToken).await? {
                Posted::Issued(issued) => Ok(issued),
                Posted::Unsupported => self.get(wanted, Some(login)).await,
            };
        }
        match self.get(wanted, Some(login)).await {
            Err(UpstreamError::Unavailable { status: 404 | 405, .. }) => {
                match self.post(wanted, login, Grant::Password).await? {
                    Posted::Issued(issued) => Ok(issued),
                    Posted::Unsupported => Err(bad(&wanted.realm, "its token server issues no tokens")),
                }
            }
            outcome => outcome,
        }
    }

    /// Distribution token specification: GET with Basic.
    async fn get(&self, wanted: &Wanted, login: Option<&Login>) -> Result<Issued, UpstreamError> {
        let mut query = Vec::new();
        if let Some(service) = &wanted.service {
            query.push(("service", service.as_str()));
        }
        query.extend(wanted.scope.split_ascii_whitespace().map(|scope| ("scope", scope)));
        if login.is_some() {
            query.push(("client_id", CLIENT_ID));
        }
        let target = if query.is_empty() { wanted.realm.clone() } else { wanted.realm.with_query(query) };
        let authorization = login.map(basic);
        let answer = self.client.get(&target, &json(), authorization.as_ref()).await?;
        self.issued(answer, login.is_some()).await
    }

    /// `OAuth2`: POST of a form. Registries say in many ways that they do not have it.
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
        let answer = self.client.post(&wanted.realm, json(), FORM, body, secrets).await?;
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
                return Err(UpstreamError::Unauthenticated { host: self.host.clone() });
            }
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(UpstreamError::RateLimited {
                    host,
                    retry_after: retry_after(&answer.headers, self.source.now()),
                });
            }
            status => {
                return Err(UpstreamError::Unavailable { host, status: status.as_u16() });
            }
        }
        let target = answer.target;
        let body = answer.body.read("token", MAX_TOKEN_BYTES).await?;
        read_token(&body).ok_or_else(|| bad(&target, "its token server sent no usable token"))
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
pub(in crate::upstream) fn read_token(body: &[u8]) -> Option<Issued> {
    let document = pki::json::parse(body, MAX_TOKEN_BYTES).ok()?;
    let text = |name: &str| document.get(name)?.as_str().filter(|text| !text.is_empty());
    let token = text("token").or_else(|| text("access_token"))?;
    // It becomes a header value: a token with a line break would write further headers.
    let printable = token.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    let lifetime = document.get("expires_in").and_then(serde_json::Value::as_u64);
    printable.then(|| Issued {
        value: Secret::new(token.to_owned()),
        lifetime: lifetime.filter(|seconds| *seconds > 0).map_or(DEFAULT_LIFETIME, Duration::from_secs),
    })
}

fn json() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tokens_in_every_known_shape() {
        for (body, expected) in [
            (r#"{"token":"a","expires_in":300}"#, Some(("a", 300))),
            (r#"{"access_token":"b"}"#, Some(("b", 60))),
            (r#"{"token":"a","access_token":"b","expires_in":0}"#, Some(("a", 60))),
            (r#"{"token":"","access_token":"b","expires_in":-5}"#, Some(("b", 60))),
            (r#"{"token":"a","expires_in":"soon"}"#, Some(("a", 60))),
            (r#"{"token":"a\r\nX: y"}"#, None),
            (r#"{"token":null}"#, None),
            (r#"{"token":"a","token":"b"}"#, None),
            ("[]", None),
            ("", None),
        ] {
            let read = read_token(body.as_bytes());
            let read = read.as_ref().map(|issued| (issued.value.expose(), issued.lifetime.as_secs()));
            assert_eq!(read, expected, "{body}");
        }
    }
}
