//! `facade connection …`

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::CliError;
use super::client::{Client, encode};
use super::output::{Output, fields, table};
use crate::api::types::{Connection, ConnectionCheck, ConnectionRequest};

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
    Test {
        /// The registry's host
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
    /// User name and token: GHCR, Quay, Harbor, JFrog, ACR, Docker Hub
    Static,
    /// No credentials: public registries
    Anonymous,
    /// Google service account, exchanged for short-lived tokens
    Google,
    /// AWS role, exchanged for short-lived tokens
    Aws,
}

impl Provider {
    fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Anonymous => "anonymous",
            Self::Google => "google",
            Self::Aws => "aws",
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// The registry's host, or a URL pasted from the browser
    host: String,
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
    /// Provider configuration: a Google service account's JSON key, or an AWS role
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Speak plain HTTP; only loopback and private addresses
    #[arg(long)]
    plain_http: bool,
    /// The registry has a private address
    #[arg(long)]
    allow_private: bool,
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
                output.result(&connection, |connection| {
                    format!("disconnected {}", connection.host)
                });
                Ok(())
            }
        }
    }
}

fn path(host: &str) -> String {
    format!("/api/v1/connections/{}", encode(host))
}

impl Add {
    async fn run(self, client: &Client, output: &mut Output) -> Result<(), CliError> {
        let request = self.request()?;
        let connection: Connection = client.post("/api/v1/connections", &request).await?;
        output.result(&connection, |connection| {
            format!("connected {} ({})", connection.host, connection.provider)
        });
        Ok(())
    }

    fn request(self) -> Result<ConnectionRequest, CliError> {
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
            host: self.host,
            provider: provider.name().to_owned(),
            username: self.username,
            password,
            config: self.config_file.as_ref().map(read_file).transpose()?,
            plain_http: self.plain_http,
            allow_private: self.allow_private,
            ca_pem: self.registry_ca_file.as_ref().map(read_file).transpose()?,
            client_certificate_pem: self.client_certificate_file.as_ref().map(read_file).transpose()?,
        })
    }
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
    let query = repository
        .map(|repository| format!("?repository={}", encode(repository)))
        .unwrap_or_default();
    let check: ConnectionCheck = client.post(&format!("{}/test{query}", path(host)), &()).await?;
    output.result(&check, |check| {
        let steps = check.steps.iter().map(|step| {
            [
                if step.ok { "ok" } else { "failed" }.to_owned(),
                step.step.clone(),
                step.detail.clone(),
            ]
        });
        format!("{}\n{}", table(["", "step", "seen"], steps), check.verdict)
    });
    if check.ok {
        Ok(())
    } else {
        Err(CliError::Failed(check.verdict))
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
            state(connection),
            budget(connection),
        ]
    });
    table(["host", "provider", "username", "state", "budget"], rows)
}

fn show(connection: &Connection) -> String {
    fields([
        ("host", connection.host.clone()),
        ("provider", connection.provider.clone()),
        ("username", connection.username.clone().unwrap_or_default()),
        (
            "plain http",
            if connection.plain_http {
                "yes".to_owned()
            } else {
                String::new()
            },
        ),
        (
            "private addresses",
            if connection.allow_private {
                "allowed".to_owned()
            } else {
                String::new()
            },
        ),
        ("connected", connection.created_at.clone()),
        (
            "last success",
            connection.last_success_at.clone().unwrap_or_default(),
        ),
        ("last error", connection.last_error.clone().unwrap_or_default()),
        ("budget", budget(connection)),
    ])
}

fn state(connection: &Connection) -> String {
    match (&connection.last_error, &connection.last_success_at) {
        (Some(error), _) => error.clone(),
        (None, Some(at)) => format!("ok {at}"),
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
