//! Signing in with the organisation's identity provider (OpenID Connect, code flow with PKCE).
//!
//! What the provider says decides who somebody is and which role they have, once, at sign-in. From then on they hold an
//! operator token that this process lends them for the session, so that everything behind is the same for them as for
//! whoever brought a token. What ties the ends of an attempt together: the browser by a cookie, the provider's answer by
//! `state`, the ID token by `nonce`, the exchange by PKCE; each attempt is good once, and for ten minutes.

mod id_token;
mod provider;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

use super::Console;
use super::fields::Fields;
use super::guard::RequestId;
use super::page::Failure;
use super::session::{self, Key};
use super::sign_in::{attempt, form, with_cookies};
use crate::api::gate::Peer;
use crate::api::problem::{Problem, chain};
use crate::catalog::audit::Happening;
use crate::catalog::operators::Role;
use crate::config::Config;
use crate::facade::{Facade, StartError};
use crate::secret::Secret;
use crate::upstream::{self, Web};
use id_token::{Claims, Expected, Mapping, MappingError, Person, TokenError};
use provider::{Attempt, Provider, ProviderError, Settings};

/// How long an attempt to sign in may take.
const PATIENCE: SignedDuration = SignedDuration::from_mins(10);
/// Most attempts under way; the oldest gives way.
const MAX_ATTEMPTS: usize = 1024;
const MAX_CODE_BYTES: usize = 4096;

/// Sign-in with one provider.
pub(super) struct Oidc {
    facade: Arc<Facade>,
    provider: Provider,
    mapping: Mapping,
    /// By the cookie of the browser that began it.
    attempts: Mutex<HashMap<Key, (Attempt, Timestamp)>>,
}

/// Why somebody does not get in.
#[derive(Debug, Error)]
enum Refusal {
    #[error(
        "this attempt to sign in is not one that began in this browser, or it took longer than ten minutes: try again"
    )]
    Unknown,
    #[error("the identity provider says: {0}")]
    Provider(String),
    #[error("the answer comes from another identity provider")]
    Issuer,
    #[error(transparent)]
    Unusable(#[from] ProviderError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Mapping(#[from] MappingError),
}

impl Oidc {
    /// Sign-in as it is configured; nothing where it is not.
    pub(super) fn configured(facade: &Arc<Facade>, config: &Config) -> Result<Option<Arc<Self>>, StartError> {
        let (Some(issuer), Some(client_id), Some(console)) =
            (&config.oidc_issuer, &config.oidc_client_id, &config.operator_url)
        else {
            return Ok(None);
        };
        let read = |path: &Option<std::path::PathBuf>| path.as_deref().map(read).transpose();
        let authorities = read(&config.oidc_ca_file)?;
        let settings = upstream::Settings {
            proxy: upstream::ProxySettings {
                https: config.https_proxy.clone(),
                no_proxy: config.no_proxy.clone(),
            },
            ..upstream::Settings::default()
        };
        let web =
            Web::new(&settings, authorities.as_deref()).map_err(|error| StartError::SignIn(chain(&error)))?;
        let settings = Settings {
            issuer: issuer.clone(),
            client_id: client_id.clone(),
            client_secret: read(&config.oidc_client_secret_file)?
                .map(|text| Secret::new(text.trim().to_owned())),
            scopes: config.oidc_scopes.clone(),
            redirect_uri: format!("{}/console/sign-in/oidc/callback", console.trim_end_matches('/')),
        };
        let roles = [
            (Role::Admin, config.oidc_admins.clone()),
            (Role::Operator, config.oidc_operators.clone()),
            (Role::Viewer, config.oidc_viewers.clone()),
        ];
        Ok(Some(Arc::new(Self {
            facade: Arc::clone(facade),
            provider: Provider::new(web, settings),
            mapping: Mapping {
                name_claim: config.oidc_name_claim.clone(),
                role_claim: config.oidc_role_claim.clone(),
                roles,
            },
            attempts: Mutex::default(),
        })))
    }

    /// The provider's name on the button.
    pub(super) fn name(&self) -> &str {
        let issuer = &self.provider.settings().issuer;
        let host = issuer.split_once("://").map_or(issuer.as_str(), |(_, rest)| rest);
        host.split('/').next().unwrap_or(host)
    }

    /// Remembers an attempt; gives what goes into the browser's cookie.
    fn begin(&self, attempt: Attempt, now: Timestamp) -> Result<String, getrandom::Error> {
        let cookie = session::random()?;
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.retain(|_, (_, end)| now < *end);
        if attempts.len() >= MAX_ATTEMPTS {
            let oldest = attempts.iter().min_by_key(|(_, (_, end))| *end).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| attempts.remove(&oldest));
        }
        let end = now.saturating_add(PATIENCE).unwrap_or(Timestamp::MAX);
        attempts.insert(session::key(&cookie), (attempt, end));
        Ok(cookie)
    }

    /// The attempt of a browser, which is over with this.
    fn end(&self, cookie: &str, state: &str, now: Timestamp) -> Option<Attempt> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let (attempt, end) = attempts.remove(&session::key(cookie))?;
        // Login CSRF: a link with somebody else's code must not sign a victim in to that somebody's session.
        let same = session::key(&attempt.state) == session::key(state);
        (same && now < end).then_some(attempt)
    }

    /// What somebody came back with from the provider, judged.
    async fn judge(
        &self,
        answer: &Fields,
        cookie: Option<String>,
        now: Timestamp,
    ) -> Result<Claims, Refusal> {
        let attempt = cookie.and_then(|cookie| self.end(&cookie, answer.text("state"), now));
        let attempt = attempt.ok_or(Refusal::Unknown)?;
        if let Some(error) = answer.filled("error") {
            let words = answer.filled("error_description").unwrap_or(error);
            return Err(Refusal::Provider(words.chars().filter(|c| !c.is_control()).take(300).collect()));
        }
        let code = Secret::new(answer.text("code").to_owned());
        if code.is_empty() || code.expose().len() > MAX_CODE_BYTES {
            return Err(Refusal::Provider("nothing (there is no code in its answer)".to_owned()));
        }
        let discovery = self.provider.discover().await?;
        let issuer = self.provider.settings().issuer.as_str();
        match answer.filled("iss") {
            Some(from) if from != issuer => return Err(Refusal::Issuer),
            None if discovery.names_itself => return Err(Refusal::Issuer),
            _ => {}
        }
        let token = self.provider.exchange(&discovery, &code, &attempt).await?;
        let keys = self.provider.keys(&discovery).await?;
        let client_id = self.provider.settings().client_id.as_str();
        let expected = Expected { issuer, client_id, nonce: &attempt.nonce, now };
        Ok(id_token::verify(&token, &keys, &expected)?)
    }

    /// Lends a token to somebody who may come in.
    fn lend(&self, person: &Person, now: Timestamp) -> Result<Secret, Problem> {
        let end = now.saturating_add(session::LIFETIME).unwrap_or(Timestamp::MAX);
        let lent = self.facade.tokens.lend(name(person), person.role, now, end);
        lent.map_err(|error| Problem::internal(&error))
    }

    /// Writes down who came in.
    async fn record(
        &self,
        person: &Person,
        from: IpAddr,
        request_id: &str,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let (role, subject) = (person.role.as_str(), &person.subject);
        let happening = Happening {
            at: now,
            who: name(person),
            action: "sign in to the console".to_owned(),
            subject: format!("role={role} sub={subject}"),
            from: from.to_string(),
            result: 200,
            request_id: request_id.to_owned(),
        };
        self.facade.audit.append(happening).await?;
        Ok(())
    }
}

/// Under which name somebody stands in the audit log; no operator token can have such a one.
fn name(person: &Person) -> String {
    format!("oidc/{}", person.name)
}

fn read(path: &Path) -> Result<String, StartError> {
    std::fs::read_to_string(path)
        .map_err(|error| StartError::SignIn(format!("cannot read {}: {error}", path.display())))
}

/// Sends somebody to the provider.
pub(super) async fn begin(
    State(console): State<Console>,
    peer: Option<Extension<Peer>>,
) -> Result<Response, Failure> {
    let oidc = console.oidc.as_ref().ok_or_else(not_configured)?;
    let now = console.clock.now();
    // Each attempt asks the provider: nobody makes us knock there without end.
    if let Err(refusal) = attempt(&console, peer, now) {
        return Ok(*refusal);
    }
    let discovery = match oidc.provider.discover().await {
        Ok(discovery) => discovery,
        Err(error) => {
            tracing::error!(error = %chain(&error), "nobody can sign in with the identity provider");
            return Ok((StatusCode::BAD_GATEWAY, form(&console, sentence(&error))).into_response());
        }
    };
    let random = || session::random().map_err(|error| Problem::internal(&error));
    let attempt = Attempt { state: random()?, nonce: random()?, verifier: Secret::new(random()?) };
    let there = oidc.provider.authorization(&discovery, &attempt);
    let cookie = oidc.begin(attempt, now).map_err(|error| Problem::internal(&error))?;
    let cookie = session::set_attempt(&cookie, console.transport, PATIENCE);
    Ok(with_cookies(Redirect::to(&there).into_response(), &[cookie]))
}

/// Takes somebody back from the provider.
pub(super) async fn callback(
    State(console): State<Console>,
    peer: Option<Extension<Peer>>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Failure> {
    let oidc = console.oidc.as_ref().ok_or_else(not_configured)?;
    let now = console.clock.now();
    let address = match attempt(&console, peer, now) {
        Ok(address) => address,
        Err(refusal) => return Ok(*refusal),
    };
    let answer = Fields::parse(uri.query().unwrap_or_default().as_bytes());
    let cookie = session::attempt(&headers, console.transport);
    let over = session::set_attempt("", console.transport, SignedDuration::ZERO);
    let judged = oidc.judge(&answer, cookie, now).await;
    let person = judged.and_then(|claims| Ok(claims.person(&oidc.mapping)?));
    let person = match person {
        Ok(person) => person,
        Err(refusal) => {
            let reason = chain(&refusal);
            tracing::warn!(request.id = %request_id, peer.address = %address, reason, "nobody was signed in");
            let page = (StatusCode::FORBIDDEN, form(&console, sentence(&refusal))).into_response();
            return Ok(with_cookies(page, &[over]));
        }
    };
    console.attempts.give_back(address);
    // Whoever is not written down does not come in.
    oidc.record(&person, address, &request_id, now).await?;
    let token = oidc.lend(&person, now)?;
    let cookie = console.sessions.open(token, now).map_err(|error| Problem::internal(&error))?;
    let role = person.role.as_str();
    tracing::info!(peer.address = %address, by = %name(&person), role, sub = %person.subject, "signed in to the console");
    let cookies = [session::set_cookie(&cookie, console.transport), over];
    Ok(with_cookies(Redirect::to("/console").into_response(), &cookies))
}

fn not_configured() -> Failure {
    Failure(Problem::not_found("this facade knows no identity provider (oidc_issuer in facade.toml)"))
}

/// What went wrong, without what only the log should have.
fn sentence(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", characters.as_str())
}
