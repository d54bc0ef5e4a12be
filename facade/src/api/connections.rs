//! `/api/v1/connections`

use axum::Json;
use pki::oci::{RegistryHost, Repository, RepositoryName, without_user_info};
use serde::Deserialize;
use utoipa::IntoParams;

use super::auth::{Caller, Role};
use super::extract::{Body, Paging, Path, Query, field};
use super::problem::Problem;
use super::types::{CheckStep, Connection, ConnectionCheck, ConnectionRequest, Page};
use super::{Answer, State};
use crate::catalog::registries::{self, RegistriesError};
use crate::secret::Secret;
use crate::upstream::{
    AwsConfiguration, AwsConfigurationError, AzurePrincipal, AzurePrincipalError, Definition,
    DefinitionError, GoogleAccount, Mirror, Outcome, Provider, Secrets,
};

impl From<RegistriesError> for Problem {
    fn from(error: RegistriesError) -> Self {
        match &error {
            RegistriesError::NotConnected(_) => Self::not_found(error.to_string()),
            RegistriesError::Definition(wrong) => definition_problem(wrong),
            RegistriesError::Reach(wrong) => Self::invalid("host", wrong.line()),
            RegistriesError::Seal { .. } | RegistriesError::Store(_) => Self::internal(&error),
        }
    }
}

/// Says which field of the request is wrong: the text of a wrong definition begins with its name.
fn definition_problem(wrong: &DefinitionError) -> Problem {
    let text = wrong.to_string();
    match (wrong, text.split_once(": ")) {
        (
            DefinitionError::Aws(AwsConfigurationError::Host(_))
            | DefinitionError::Azure(AzurePrincipalError::Host(_)),
            Some((_, detail)),
        ) => Problem::invalid("host", detail),
        (
            DefinitionError::Aws(_) | DefinitionError::Google(_) | DefinitionError::Azure(_),
            Some((_, detail)),
        ) => Problem::invalid("config", detail),
        (_, Some((field, detail))) => Problem::invalid(field, detail),
        (_, None) => Problem::malformed(text),
    }
}

/// Lists the connected registries
#[utoipa::path(get, path = "/api/v1/connections", params(Paging), tag = "connections",
    responses((status = 200, body = Page<Connection>), (status = 400, body = Problem), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list(
    state: State,
    caller: Caller,
    Query(paging): Query<Paging>,
) -> Answer<Page<Connection>> {
    caller.require(Role::Viewer)?;
    let limit = paging.limit()?;
    let connections = state.registries.list(paging.after.as_deref(), limit).await?;
    let next =
        (connections.len() == limit).then(|| connections.last().map(|last| last.definition.host.to_string()));
    let items = connections.iter().map(|connection| view(&state, connection)).collect();
    Ok(Json(Page { items, next: next.flatten() }))
}

/// Connects a registry, or replaces its connection
#[utoipa::path(post, path = "/api/v1/connections", request_body = ConnectionRequest, tag = "connections",
    responses((status = 200, body = Connection), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn add(
    state: State,
    caller: Caller,
    Body(request): Body<ConnectionRequest>,
) -> Answer<Connection> {
    caller.require(Role::Operator)?;
    let (definition, secrets) = parse(request)?;
    let connection = state.registries.add(definition, secrets, &caller.name, state.clock.now()).await?;
    tracing::info!(registry.host = %connection.definition.host, by = %caller.name, "registry connected");
    Ok(Json(view(&state, &connection)))
}

/// Shows one connection
#[utoipa::path(get, path = "/api/v1/connections/{host}", params(("host" = String, Path, description = "The registry's host")), tag = "connections",
    responses((status = 200, body = Connection), (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn show(state: State, caller: Caller, Path(host): Path<String>) -> Answer<Connection> {
    caller.require(Role::Viewer)?;
    let connection = state.registries.get(&parse_host(&host)?).await?;
    Ok(Json(view(&state, &connection)))
}

/// Disconnects a registry
#[utoipa::path(delete, path = "/api/v1/connections/{host}", params(("host" = String, Path, description = "The registry's host")), tag = "connections",
    responses((status = 200, body = Connection), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn remove(state: State, caller: Caller, Path(host): Path<String>) -> Answer<Connection> {
    caller.require(Role::Operator)?;
    let connection = state.registries.remove(&parse_host(&host)?).await?;
    tracing::info!(registry.host = %connection.definition.host, by = %caller.name, "registry disconnected");
    Ok(Json(view(&state, &connection)))
}

/// What to test a connection with.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TestQuery {
    /// A repository of the registry whose pull permission is tried too
    repository: Option<String>,
}

/// Tries a connection and says which layer fails
#[utoipa::path(post, path = "/api/v1/connections/{host}/test", params(("host" = String, Path, description = "The registry's host, or a repository of it whose pull permission is tried too"), TestQuery), tag = "connections",
    responses((status = 200, body = ConnectionCheck), (status = 400, body = Problem), (status = 401, body = Problem), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn test(
    state: State,
    caller: Caller,
    Path(host): Path<String>,
    Query(query): Query<TestQuery>,
) -> Answer<ConnectionCheck> {
    caller.require(Role::Operator)?;
    let (host, pasted) = (parse_host(&host)?, pasted_repository(&host)?);
    let registry = state.registries.registry(&host)?;
    let repository = match query.repository.as_deref() {
        Some(text) => Some(repository_of(&host, text)?),
        None => pasted,
    };
    let report = registry.check(repository.as_ref()).await;
    state.registries.keep_health().await?;
    let steps = report.steps.iter().map(|step| CheckStep {
        step: serde_json::to_value(step.step)
            .ok()
            .and_then(|step| step.as_str().map(str::to_owned))
            .unwrap_or_default(),
        ok: !matches!(step.outcome, Outcome::Failed),
        skipped: matches!(step.outcome, Outcome::Skipped),
        detail: step.detail.clone(),
    });
    Ok(Json(ConnectionCheck { ok: report.ok, verdict: report.verdict.clone(), steps: steps.collect() }))
}

fn parse_host(text: &str) -> Result<RegistryHost, Problem> {
    RegistryHost::from_pasted(text).map_err(|error| Problem::invalid("host", error.to_string()))
}

/// The repository behind the host, of `ghcr.io/owner/app` or a pasted page.
fn pasted_repository(text: &str) -> Result<Option<RepositoryName>, Problem> {
    let repository =
        Repository::from_pasted(text).map_err(|error| Problem::invalid("host", error.to_string()))?;
    Ok(repository.map(|repository| repository.name().clone()))
}

/// `team/app`, or the same behind its registry's host.
fn repository_of(host: &RegistryHost, text: &str) -> Result<RepositoryName, Problem> {
    let name = text.strip_prefix(host.as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
    let name = field("repository", name)?;
    // Docker Hub's official images have their prefix.
    Ok(Repository::new(host.clone(), name).name().clone())
}

fn parse(request: ConnectionRequest) -> Result<(Definition, Secrets), Problem> {
    let (host, has_password) = without_user_info(&request.host);
    if has_password {
        let detail = "it has a password in it; credentials are given as username and password";
        return Err(Problem::invalid("host", detail));
    }
    let host = parse_host(&host)?;
    let missing =
        |field: &str, provider: &str| Problem::invalid(field, format!("the {provider} provider needs it"));
    let mut secrets = Secrets { credential: request.password.map(Secret::new), client_key_pem: None };
    let provider = match request.provider.as_str() {
        "anonymous" => Provider::Anonymous {},
        "static" => {
            Provider::Static { username: request.username.ok_or_else(|| missing("username", "static"))? }
        }
        "google" => {
            let key_file = Secret::new(request.config.ok_or_else(|| missing("config", "google"))?);
            let (account, key) = GoogleAccount::from_key_file(&key_file)
                .map_err(|error| Problem::invalid("config", error.to_string()))?;
            secrets.credential = Some(key);
            Provider::Google(account)
        }
        "aws" => {
            let (configuration, key) = parse_aws(request.config)?;
            secrets.credential = key;
            Provider::Aws(configuration)
        }
        "azure" => {
            let file = Secret::new(request.config.ok_or_else(|| missing("config", "azure"))?);
            let (principal, secret) = AzurePrincipal::from_file(&file)
                .map_err(|error| Problem::invalid("config", error.to_string()))?;
            secrets.credential = Some(secret);
            Provider::Azure(principal)
        }
        other => {
            let known = ["static", "anonymous", "google", "aws", "azure"];
            let detail = format!("{other:?} is not one of {}", known.join(", "));
            return Err(Problem::invalid("provider", detail));
        }
    };
    let (certificate, key) = request.client_certificate_pem.as_deref().map(split_pem).unwrap_or_default();
    secrets.client_key_pem = key;
    let definition = Definition {
        plain_http: request.plain_http,
        allow_private: request.allow_private,
        token_host: request.token_host,
        mirror: mirror(request.mirror_of.as_deref(), request.mirror_below.as_deref())?,
        ca_pem: request.ca_pem,
        client_certificate_pem: certificate,
        provider,
        ..Definition::anonymous(host)
    };
    Ok((definition, secrets))
}

fn mirror(of: Option<&str>, below: Option<&str>) -> Result<Option<Mirror>, Problem> {
    let of = match of {
        Some(of) => RegistryHost::from_pasted(of),
        None if below.is_none() => return Ok(None),
        None => {
            return Err(Problem::invalid(
                "mirror_below",
                "it is for a mirror (mirror_of, for example docker.io)",
            ));
        }
    };
    let of = of.map_err(|error| Problem::invalid("mirror_of", error.to_string()))?;
    let below = below.map(|below| field("mirror_below", below)).transpose()?;
    Ok(Some(Mirror { of, below }))
}

/// A PEM text's certificates, and its private key apart from them.
fn split_pem(pem: &str) -> (Option<String>, Option<Secret>) {
    let (mut certificates, mut key) = (String::new(), String::new());
    let mut in_key = false;
    for line in pem.lines() {
        in_key |= line.starts_with("-----BEGIN") && line.contains("PRIVATE KEY");
        let part = if in_key { &mut key } else { &mut certificates };
        part.push_str(line);
        part.push('\n');
        in_key &= !line.starts_with("-----END");
    }
    let certificates = (!certificates.trim().is_empty()).then_some(certificates);
    (certificates, (!key.is_empty()).then(|| Secret::new(key)))
}

/// The configuration of an AWS role, as JSON or TOML, with its secret key apart.
fn parse_aws(config: Option<String>) -> Result<(AwsConfiguration, Option<Secret>), Problem> {
    let text = config.unwrap_or_else(|| "{}".to_owned());
    let wrong = |error: String| Problem::invalid("config", error);
    let mut value: serde_json::Map<String, serde_json::Value> = if text.trim_start().starts_with('{') {
        pki::json::parse_as(text.as_bytes(), 64 * 1024)
            .map_err(|error| wrong(super::problem::chain(&error)))?
    } else {
        toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?
    };
    let key = match value.remove("secret_access_key") {
        Some(serde_json::Value::String(key)) => Some(Secret::new(key)),
        Some(_) => return Err(wrong("secret_access_key must be a text".to_owned())),
        None => None,
    };
    let configuration = serde_json::from_value(value.into()).map_err(|error| wrong(error.to_string()))?;
    Ok((configuration, key))
}

fn view(state: &State, connection: &registries::Connection) -> Connection {
    let definition = &connection.definition;
    let health = state.registries.health(&definition.host).unwrap_or_default();
    Connection {
        host: definition.host.to_string(),
        provider: definition.provider.name().to_owned(),
        username: definition.provider.identity().map(str::to_owned),
        plain_http: definition.plain_http,
        allow_private: definition.allow_private,
        token_host: definition.token_host.clone(),
        mirror_of: definition.mirror.as_ref().map(ToString::to_string),
        created_at: connection.created_at.to_string(),
        last_success_at: health.last_success.map(|at| at.to_string()),
        last_failure_at: health.last_failure.map(|at| at.to_string()),
        last_error: health.current_error().map(str::to_owned),
        rate_limit_remaining: health.budget.as_ref().map(|budget| budget.remaining),
        rate_limit: health.budget.as_ref().and_then(|budget| budget.limit),
        wrong_bytes_at: health.wrong_bytes.as_ref().map(|wrong| wrong.at.to_string()),
        wrong_bytes: health.wrong_bytes.as_ref().map(|wrong| wrong.what.clone()),
        retry_at: health.retry_at.filter(|at| *at > state.clock.now()).map(|at| at.to_string()),
    }
}
