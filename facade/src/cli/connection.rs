//! `facade connection …`

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use pki::oci::{RegistryHost, without_user_info};
use serde::Serialize;

use super::CliError;
use super::client::{Client, encode};
use super::docker_config;
use super::output::{Output, fields, table};
use crate::api::types::{CheckStep, Connection, ConnectionCheck, ConnectionRequest};
use crate::secret::Secret;

/// Verbs on registry connections.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Connect a registry; again to replace its credentials
    Add(Add),
    /// List the connected registries
    List,
    /// Show one connection
    Show {
        /// The registry's host
        host: String,
    },
    /// Try a connection and say which layer fails
    #[command(after_help = TEST_EXAMPLES)]
    Test {
        /// The registry's host, or a repository of it, whose pull permission is tried too
        #[arg(value_name = "HOST[/REPOSITORY]")]
        host: String,
        /// A repository whose pull permission is tried too
        #[arg(long)]
        repository: Option<String>,
    },
    /// Disconnect a registry: nothing is pulled from it any more
    Remove {
        /// The registry's host
        host: String,
    },
}

/// How a registry is authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Provider {
    /// User name and token: GHCR, Quay, Harbor, Artifactory, ACR, Docker Hub
    Static,
    /// No credentials: public registries
    Anonymous,
    /// Google service account, exchanged for short-lived tokens
    Google,
    /// AWS role, exchanged for short-lived tokens
    Aws,
    /// Azure service principal, exchanged for short-lived tokens
    Azure,
}

impl Provider {
    fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Anonymous => "anonymous",
            Self::Google => "google",
            Self::Aws => "aws",
            Self::Azure => "azure",
        }
    }
}

const TEST_EXAMPLES: &str = "\
Examples:
  facade connection test ghcr.io
  facade connection test ghcr.io/octo/app             (may this repository be pulled too?)";

const EXAMPLES: &str = r#"Examples:
  facade connection add ghcr.io --username octo --password-stdin < token
  facade connection add quay.io                               (public images; no credentials)
  facade connection add europe-docker.pkg.dev --provider google --config-file key.json
  facade connection add 123456789012.dkr.ecr.eu-west-1.amazonaws.com --provider aws --config-file role.toml
  facade connection add myregistry.azurecr.io --provider azure --config-file principal.json
  facade connection add --from-docker-config ~/.docker/config.json
  facade connection add 10.0.0.5:5000 --plain-http
  facade connection add harbor.corp.example --mirror-of docker.io --mirror-below hub

Add it again to rotate its credentials; what is being pulled goes on.

--config-file for google: the service account's JSON key, as downloaded.
--config-file for aws, TOML or JSON, every key optional:
  role_arn = "arn:aws:iam::123456789012:role/pull"     role to assume
  external_id = "…"                                    what the role's trust policy wants
  session_name = "drayage"                             how CloudTrail names us
  access_key_id = "AKIA…", secret_access_key = "…"     otherwise the facade's environment, web identity or instance
--config-file for azure: what az ad sp create-for-rbac prints, or TOML or JSON:
  tenant_id = "…", client_id = "…", client_secret = "…""#;

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct Add {
    /// The registry's host, or a URL pasted from the browser
    #[arg(required_unless_present = "from_docker_config")]
    host: Option<String>,
    /// Take the credentials of HOST, or of every host, from a docker config.json or podman auth.json [default: where they
    /// keep it]
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with_all = ["provider", "username", "password_stdin", "password_file", "config_file"])]
    from_docker_config: Option<Vec<PathBuf>>,
    /// How it is authenticated [default: static with --username, otherwise anonymous]
    #[arg(long, value_enum)]
    provider: Option<Provider>,
    /// User name
    #[arg(long)]
    username: Option<String>,
    /// Read the password or token from standard input
    #[arg(long, conflicts_with = "password_file")]
    password_stdin: bool,
    /// Read the password or token from a file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Provider configuration: a Google service account's JSON key, an AWS role, or an Azure service
    /// principal
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Speak plain HTTP; only loopback and private addresses
    #[arg(long)]
    plain_http: bool,
    /// The registry has a private address
    #[arg(long)]
    allow_private: bool,
    /// Another host that may receive the credentials, because it issues this registry's tokens
    #[arg(long, value_name = "HOST")]
    token_host: Option<String>,
    /// The registry whose content this one has too: it serves pulls that that one cannot serve
    #[arg(long, value_name = "HOST")]
    mirror_of: Option<String>,
    /// What the mirror has before the names of repositories (the project of a Harbor proxy cache)
    #[arg(long, value_name = "PATH", requires = "mirror_of")]
    mirror_below: Option<String>,
    /// Further certificate authorities for this registry, PEM
    #[arg(long, value_name = "FILE")]
    registry_ca_file: Option<PathBuf>,
    /// Client certificate chain and private key for this registry, PEM
    #[arg(long, value_name = "FILE")]
    client_certificate_file: Option<PathBuf>,
}

impl Verb {
    pub(super) async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        match self {
            Self::Add(add) => add.run(client, output).await,
            Self::List => {
                let connections: Vec<Connection> = client.all("/api/v1/connections").await?;
                output.result(&connections, |connections| list(connections));
                Ok(())
            }
            Self::Show { host } => {
                let connection: Connection = client.get(&path(&host)).await?;
                output.result(&connection, show);
                Ok(())
            }
            Self::Test { host, repository } => test(client, output, &host, repository.as_deref()).await,
            Self::Remove { host } => {
                let connection: Connection = client.delete(&path(&host)).await?;
                output.result(&connection, |connection| format!("disconnected {}", connection.host));
                Ok(())
            }
        }
    }
}

fn path(host: &str) -> String {
    format!("/api/v1/connections/{}", encode(&without_user_info(host).0))
}

impl Add {
    async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        if self.from_docker_config.is_some() {
            return self.import(client, output).await;
        }
        let request = self.request()?;
        let connection: Connection = client.post("/api/v1/connections", &request).await?;
        output.result(&connection, |connection| {
            format!("connected {} ({})", connection.host, connection.provider)
        });
        Ok(())
    }

    /// Connects what a docker `config.json` has credentials for, each with its own outcome.
    async fn import(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let path = match self.from_docker_config.iter().flatten().next() {
            Some(path) => path.clone(),
            None => default_docker_config()?,
        };
        let text = Secret::new(read_file(&path)?);
        let entries = docker_config::entries(text.expose().as_bytes())
            .map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))?;
        let wanted = match &self.host {
            Some(host) => Some(pasted(host)?),
            None => None,
        };
        let mut results = Vec::new();
        for entry in entries {
            if wanted.as_ref().is_none_or(|wanted| *wanted == entry.host) {
                results.push(self.take(client, entry).await?);
            }
        }
        if results.is_empty() {
            let what = wanted.unwrap_or_else(|| "any registry".to_owned());
            return Err(CliError::Failed(format!("{} has no credentials for {what}", path.display())));
        }
        output.result(&results, |results| {
            let rows = results.iter().map(|taken| {
                let what = taken.reason.clone().or_else(|| taken.username.clone());
                [taken.host.clone(), taken.outcome.to_owned(), what.unwrap_or_default()]
            });
            table(["host", "outcome", "username or reason"], rows)
        });
        let total = results.len();
        match results.iter().filter(|taken| taken.reason.is_some()).count() {
            0 => Ok(()),
            failed if failed == total => Err(CliError::Failed("no registry was connected".to_owned())),
            failed => Err(CliError::Partly { failed, total }),
        }
    }

    async fn take(&self, client: &Client, entry: docker_config::Entry) -> Result<Taken, CliError> {
        let (username, reason) = match entry.login {
            Ok(login) => {
                let request = ConnectionRequest {
                    host: entry.host.clone(),
                    provider: Provider::Static.name().to_owned(),
                    username: Some(login.username.clone()),
                    password: Some(login.password.expose().to_owned()),
                    ..self.options()?
                };
                match client.post::<Connection>("/api/v1/connections", &request).await {
                    Ok(_) => (Some(login.username), None),
                    Err(CliError::Failed(reason) | CliError::Usage(reason)) => {
                        (Some(login.username), Some(reason))
                    }
                    Err(error) => return Err(error),
                }
            }
            Err(reason) => (None, Some(reason)),
        };
        let outcome = match (&username, &reason) {
            (_, None) => "connected",
            (Some(_), Some(_)) => "failed",
            (None, Some(_)) => "skipped",
        };
        Ok(Taken { host: entry.host, outcome, username, reason })
    }

    /// What holds whoever the credentials are from.
    fn options(&self) -> Result<ConnectionRequest, CliError> {
        Ok(ConnectionRequest {
            host: String::new(),
            provider: String::new(),
            username: None,
            password: None,
            config: None,
            plain_http: self.plain_http,
            allow_private: self.allow_private,
            token_host: self.token_host.clone(),
            mirror_of: self.mirror_of.clone(),
            mirror_below: self.mirror_below.clone(),
            ca_pem: self.registry_ca_file.as_ref().map(read_file).transpose()?,
            client_certificate_pem: self.client_certificate_file.as_ref().map(read_file).transpose()?,
        })
    }

    fn request(self) -> Result<ConnectionRequest, CliError> {
        let (host, has_password) = without_user_info(self.host.as_deref().unwrap_or_default());
        if has_password {
            // Not sent, and not repeated: what is sent is logged.
            return Err(CliError::Usage(
                "the address has a password in it: give --username and --password-stdin (or --password-file) instead"
                    .to_owned(),
            ));
        }
        let provider = match (self.provider, &self.username) {
            (Some(provider), _) => provider,
            (None, Some(_)) => Provider::Static,
            (None, None) => Provider::Anonymous,
        };
        let password = if self.password_stdin {
            Some(read_stdin()?)
        } else {
            self.password_file.as_ref().map(read_file).transpose()?
        };
        // What ends a line in a file or a pipe is not part of a password.
        let password = password.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        if provider == Provider::Static && (self.username.is_none() || password.is_none()) {
            return Err(CliError::Usage(
                "a static connection needs --username and --password-stdin or --password-file (for public registries: --provider anonymous)"
                    .to_owned(),
            ));
        }
        Ok(ConnectionRequest {
            provider: provider.name().to_owned(),
            password,
            config: self.config_file.as_ref().map(read_file).transpose()?,
            ..self.options()?
        })
        .map(|request| ConnectionRequest { host, username: self.username, ..request })
    }
}

/// What became of one entry of a docker `config.json`.
#[derive(Debug, Serialize)]
struct Taken {
    host: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The host as the server will have it.
fn pasted(host: &str) -> Result<String, CliError> {
    let host = RegistryHost::from_pasted(host).map_err(|error| CliError::Usage(error.to_string()))?;
    Ok(host.to_string())
}

/// Where podman and docker keep it (containers-auth.json(5), docker's `DOCKER_CONFIG`): the first that is there.
#[expect(clippy::disallowed_methods, reason = "these concern another program's file, not the configuration")]
fn default_docker_config() -> Result<PathBuf, CliError> {
    let below = |name: &str, rest: &str| std::env::var_os(name).map(|base| PathBuf::from(base).join(rest));
    if let Some(file) = std::env::var_os("REGISTRY_AUTH_FILE") {
        return Ok(PathBuf::from(file));
    }
    let places = [
        below("DOCKER_CONFIG", "config.json"),
        below("XDG_RUNTIME_DIR", "containers/auth.json"),
        below("HOME", ".docker/config.json"),
        below("HOME", ".config/containers/auth.json"),
    ];
    places.into_iter().flatten().find(|path| path.exists()).ok_or_else(|| {
        CliError::Usage(
            "neither docker nor podman keeps credentials here; name the file (--from-docker-config FILE)"
                .to_owned(),
        )
    })
}

fn read_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .take(1024 * 1024)
        .read_to_string(&mut text)
        .map_err(|error| CliError::Usage(format!("cannot read the password from standard input: {error}")))?;
    Ok(text)
}

fn read_file(path: &PathBuf) -> Result<String, CliError> {
    std::fs::read_to_string(path)
        .map_err(|error| CliError::Usage(format!("cannot read {}: {error}", path.display())))
}

async fn test(
    client: &Client,
    output: &mut Output,
    host: &str,
    repository: Option<&str>,
) -> Result<(), CliError> {
    let query =
        repository.map(|repository| format!("?repository={}", encode(repository))).unwrap_or_default();
    let check: ConnectionCheck = client.post(&format!("{}/test{query}", path(host)), &()).await?;
    output.result(&check, |check| {
        let steps =
            check.steps.iter().map(|step| [word(step).to_owned(), step.step.clone(), step.detail.clone()]);
        format!("{}\n{}", table(["", "step", "seen"], steps), check.verdict)
    });
    if check.ok { Ok(()) } else { Err(CliError::Failed(check.verdict)) }
}

fn word(step: &CheckStep) -> &'static str {
    match (step.ok, step.skipped) {
        (false, _) => "failed",
        (true, true) => "-",
        (true, false) => "ok",
    }
}

fn list(connections: &[Connection]) -> String {
    if connections.is_empty() {
        return "no registry is connected (facade connection add HOST)".to_owned();
    }
    let rows = connections.iter().map(|connection| {
        [
            connection.host.clone(),
            connection.provider.clone(),
            connection.username.clone().unwrap_or_default(),
            connection.last_success_at.clone().unwrap_or_default(),
            state(connection),
            budget(connection),
        ]
    });
    table(["host", "provider", "username", "last success", "state", "budget"], rows)
}

fn show(connection: &Connection) -> String {
    fields([
        ("host", connection.host.clone()),
        ("provider", connection.provider.clone()),
        ("username", connection.username.clone().unwrap_or_default()),
        ("plain http", if connection.plain_http { "yes".to_owned() } else { String::new() }),
        ("private addresses", if connection.allow_private { "allowed".to_owned() } else { String::new() }),
        ("mirror of", connection.mirror_of.clone().unwrap_or_default()),
        ("connected", connection.created_at.clone()),
        ("last success", connection.last_success_at.clone().unwrap_or_default()),
        ("last failure", connection.last_failure_at.clone().unwrap_or_default()),
        ("last error", connection.last_error.clone().unwrap_or_default()),
        ("served wrong bytes", connection.wrong_bytes_at.clone().unwrap_or_default()),
        ("wrong bytes", connection.wrong_bytes.clone().unwrap_or_default()),
        ("left alone until", connection.retry_at.clone().unwrap_or_default()),
        ("budget", budget(connection)),
    ])
}

fn state(connection: &Connection) -> String {
    if let Some(at) = &connection.wrong_bytes_at {
        return format!("served wrong bytes {at}");
    }
    match (&connection.last_error, &connection.last_success_at) {
        (Some(error), _) => error.clone(),
        (None, Some(_)) => "ok".to_owned(),
        (None, None) => "not tested".to_owned(),
    }
}

fn budget(connection: &Connection) -> String {
    match (connection.rate_limit_remaining, connection.rate_limit) {
        (Some(remaining), Some(limit)) => format!("{remaining} of {limit}"),
        (Some(remaining), None) => remaining.to_string(),
        (None, _) => String::new(),
    }
}
