//! `connection test`: which layer fails, said in one line.

use std::fmt;

use http::{HeaderMap, StatusCode};
use pki::oci::RepositoryName;
use serde::{Deserialize, Serialize};

use super::challenge::challenges;
use super::client::Answer;
use super::error::UpstreamError;
use super::health::retry_after;
use super::registry::Registry;
use super::target::Scheme;
use super::token::Subject;

/// A layer of a connection, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The name resolves, to an address that the connection may reach.
    Name,
    /// A TCP connection opens.
    Tcp,
    /// TLS is agreed on with a trusted certificate.
    Tls,
    /// `/v2/` is answered as by a registry.
    Api,
    /// The credentials are accepted.
    Credentials,
    /// They allow reading the repository.
    Permission,
    /// There is room left under the rate limit.
    RateLimit,
}

/// How one step went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// The step.
    pub step: Step,
    /// How it went.
    pub outcome: Outcome,
    /// What was seen, in one line.
    pub detail: String,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Well.
    Ok,
    /// Badly; no later step was tried.
    Failed,
    /// Not tried, because it does not apply.
    Skipped,
}

/// The outcome of a test of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Whether every step that applies went well.
    pub ok: bool,
    /// One line: that all is well, or the layer that fails and why.
    pub verdict: String,
    /// The steps that were tried.
    pub steps: Vec<StepResult>,
}

/// Tries every layer of a connection in turn, and stops at the first that fails.
pub(super) async fn run(registry: &Registry, repository: Option<&RepositoryName>) -> CheckReport {
    let mut steps = Vec::new();
    let failure = walk(registry, repository, &mut steps).await.err();
    let verdict = match &failure {
        None => format!("{} is fine", registry.definition().host),
        Some((step, error)) => format!("{step}: {}", error.line()),
    };
    if let Some((step, error)) = failure {
        steps.push(StepResult { step, outcome: Outcome::Failed, detail: error.line() });
    }
    CheckReport { ok: steps.iter().all(|result| result.outcome != Outcome::Failed), verdict, steps }
}

type Failure = (Step, UpstreamError);

async fn walk(
    registry: &Registry,
    repository: Option<&RepositoryName>,
    steps: &mut Vec<StepResult>,
) -> Result<(), Failure> {
    let outcome = talk(registry, repository, steps).await;
    let noted = outcome.as_ref().copied().map_err(|(_, error)| error.clone());
    let _ = registry.noted(noted);
    outcome?;
    budget(registry, steps)
}

async fn talk(
    registry: &Registry,
    repository: Option<&RepositoryName>,
    steps: &mut Vec<StepResult>,
) -> Result<(), Failure> {
    reach(registry, steps).await?;
    let asks = api(registry, steps).await?;
    if !registry.is_anonymous() && !asks {
        let seen = "the registry asks for none here; a wrong password would not be noticed";
        push(steps, Step::Credentials, Outcome::Skipped, seen);
    } else if registry.is_anonymous() {
        push(steps, Step::Credentials, Outcome::Skipped, "the connection is anonymous");
    } else {
        let (target, headers) = (registry.base(), HeaderMap::new());
        let ping = registry.get(&Subject::Ping, "/v2/", target, &headers).await;
        ping.map_err(|error| (step_of(&error, Step::Credentials), error))?;
        push(steps, Step::Credentials, Outcome::Ok, "accepted");
    }
    let Some(name) = repository else {
        push(steps, Step::Permission, Outcome::Skipped, "no repository was named");
        return Ok(());
    };
    let target = registry.base().at(&format!("/v2/{name}/tags/list?n=1"));
    let subject = Subject::List(name.clone());
    let listing = registry.get(&subject, name.as_str(), &target, &HeaderMap::new()).await;
    listing.map_err(|error| (step_of(&error, Step::Permission), error))?;
    push(steps, Step::Permission, Outcome::Ok, &format!("{name} can be read"));
    Ok(())
}

/// Name, TCP and TLS, each on its own.
async fn reach(registry: &Registry, steps: &mut Vec<StepResult>) -> Result<(), Failure> {
    let (dialer, target) = (registry.client().dialer(), registry.base());
    let addresses = dialer.addresses(target).await.map_err(|error| (Step::Name, error))?;
    match addresses.as_slice() {
        [] => push(steps, Step::Name, Outcome::Skipped, "the proxy looks the name up"),
        found => {
            let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
            push(steps, Step::Name, Outcome::Ok, &shown.join(", "));
        }
    }
    let link = dialer.link(target).await.map_err(|error| (Step::Tcp, error))?;
    push(steps, Step::Tcp, Outcome::Ok, &format!("port {} is open", target.port()));
    if target.scheme() == Scheme::Http {
        push(steps, Step::Tls, Outcome::Skipped, "the connection is without TLS (--plain-http)");
    } else {
        dialer.secure(target, link).await.map_err(|error| (Step::Tls, error))?;
        push(steps, Step::Tls, Outcome::Ok, "the certificate is trusted");
    }
    Ok(())
}

/// Whether `/v2/` is answered by a registry: 200, or 401 with a challenge that we can meet. Gives whether it asks for
/// credentials.
async fn api(registry: &Registry, steps: &mut Vec<StepResult>) -> Result<bool, Failure> {
    let answer = registry.client().get(registry.base(), &HeaderMap::new(), None).await;
    let answer = answer.map_err(|error| (step_of(&error, Step::Api), error))?;
    let asks = answer.status == StatusCode::UNAUTHORIZED;
    let detail = match answer.status {
        // Any web server answers any path with its front page.
        StatusCode::OK if is_web_page(&answer) => {
            return Err((Step::Api, answer.bad("is no registry: /v2/ is a web page")));
        }
        StatusCode::OK => "answers without credentials",
        StatusCode::UNAUTHORIZED if !challenges(&answer.headers).is_empty() => "asks for credentials",
        StatusCode::TOO_MANY_REQUESTS => {
            let error = UpstreamError::RateLimited {
                host: registry.definition().host.as_str().into(),
                retry_after: retry_after(&answer.headers, registry.now()),
            };
            return Err((Step::RateLimit, error));
        }
        status => {
            let what = format!("is no registry: /v2/ is answered with status {}", status.as_u16());
            return Err((Step::Api, answer.bad(&what)));
        }
    };
    push(steps, Step::Api, Outcome::Ok, detail);
    Ok(asks)
}

fn is_web_page(answer: &Answer) -> bool {
    let html = answer.content_type().is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/html"));
    html && answer.header("docker-distribution-api-version").is_none()
}

fn budget(registry: &Registry, steps: &mut Vec<StepResult>) -> Result<(), Failure> {
    let host = || registry.definition().host.as_str().into();
    match registry.health().budget {
        None => push(steps, Step::RateLimit, Outcome::Ok, "the registry tells of none"),
        Some(budget) if budget.remaining == 0 => {
            let error = UpstreamError::RateLimited { host: host(), retry_after: None };
            return Err((Step::RateLimit, error));
        }
        Some(budget) => {
            push(steps, Step::RateLimit, Outcome::Ok, &format!("{} requests left", budget.remaining));
        }
    }
    Ok(())
}

/// The layer that an error is about, when it is not about the layer being tried.
fn step_of(error: &UpstreamError, tried: Step) -> Step {
    match error {
        UpstreamError::RateLimited { .. } => Step::RateLimit,
        UpstreamError::Denied { .. } => Step::Credentials,
        UpstreamError::Forbidden { .. } => Step::Permission,
        UpstreamError::Tls { .. } => Step::Tls,
        UpstreamError::NotFound { .. }
        | UpstreamError::Unauthenticated { .. }
        | UpstreamError::Timeout { .. }
        | UpstreamError::Stalled { .. }
        | UpstreamError::Interrupted { .. }
        | UpstreamError::Unreachable { .. }
        | UpstreamError::Unavailable { .. }
        | UpstreamError::BadAnswer { .. }
        | UpstreamError::TooLarge { .. }
        | UpstreamError::DigestMismatch { .. }
        | UpstreamError::ForbiddenAddress { .. }
        | UpstreamError::ForbiddenTarget { .. } => tried,
    }
}

fn push(steps: &mut Vec<StepResult>, step: Step, outcome: Outcome, detail: &str) {
    steps.push(StepResult { step, outcome, detail: detail.to_owned() });
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "name",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Api => "registry API",
            Self::Credentials => "credentials",
            Self::Permission => "permission",
            Self::RateLimit => "rate limit",
        })
    }
}
