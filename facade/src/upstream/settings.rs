//! What all connections share; `config.rs` fills it in.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::counters::Counters;
use crate::clock::Clock;
use crate::secret::Secret;

/// What all connections share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How names become addresses.
    pub resolver: Resolver,
    /// The proxy to go through.
    pub proxy: ProxySettings,
    /// How long and how much.
    pub limits: Limits,
    /// Where the exchanges of cloud providers are, when not where they always are.
    pub endpoints: Endpoints,
    /// AWS credentials of the facade's own environment.
    pub aws_environment: AwsEnvironment,
    /// What is counted.
    pub counters: Counters,
    /// The time.
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolver: Resolver::System,
            proxy: ProxySettings::default(),
            limits: Limits::default(),
            endpoints: Endpoints::default(),
            aws_environment: AwsEnvironment::default(),
            counters: Counters::default(),
            clock: Clock::system(),
        }
    }
}

/// How names become addresses.
#[derive(Clone, Debug)]
pub enum Resolver {
    /// As the machine does it.
    System,
    /// From a table; no other name resolves.
    Table(BTreeMap<String, Vec<IpAddr>>),
    /// From a name server that gives each question another answer, the last one for ever.
    Changing(Arc<Mutex<VecDeque<Vec<IpAddr>>>>),
}

/// The proxy for upstream traffic; `config.rs` reads it from `HTTPS_PROXY` and `NO_PROXY`. Upstreams without TLS are at
/// private addresses and are never reached through it.
#[derive(Clone, Default)]
pub struct ProxySettings {
    /// The proxy's URL, with user and password if it wants them.
    pub https: Option<String>,
    /// Hosts that are reached directly, as curl reads it.
    pub no_proxy: Option<String>,
}

impl fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold the proxy's password.
        f.debug_struct("ProxySettings")
            .field("https", &self.https.as_ref().map(|_| "…"))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// How long and how much.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until a TCP connection with TLS must be there.
    pub connect: Duration,
    /// Until the head of an answer must be there.
    pub head: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// The window over which a body must keep [`Limits::min_bytes_per_window`].
    pub window: Duration,
    /// Bytes that must come in a window.
    pub min_bytes_per_window: u64,
    /// How long credentials that were rejected are not tried again.
    pub rejected: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            head: Duration::from_secs(20),
            idle: Duration::from_secs(30),
            window: Duration::from_mins(1),
            min_bytes_per_window: 60 * 1024,
            rejected: Duration::from_secs(10),
        }
    }
}

/// Where the exchanges of cloud providers are, when not where they always are. Only the facade's own configuration sets
/// these, never a connection.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Instead of `https://oauth2.googleapis.com/token`.
    pub google_token: Option<String>,
    /// Instead of `https://sts.<region>.amazonaws.com/`.
    pub aws_sts: Option<String>,
    /// Instead of `https://api.ecr.<region>.amazonaws.com/`.
    pub aws_ecr: Option<String>,
    /// Instead of `https://login.microsoftonline.com` and its like.
    pub azure_authority: Option<String>,
    /// Instead of `http://169.254.169.254/`.
    pub aws_imds: Option<String>,
}

/// AWS credentials of the facade's own environment, as `config.rs` found them.
#[derive(Clone, Debug, Default)]
pub struct AwsEnvironment {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: Option<Secret>,
    /// `AWS_SESSION_TOKEN`.
    pub session_token: Option<Secret>,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`.
    pub web_identity_token_file: Option<PathBuf>,
    /// `AWS_ROLE_ARN`, the role of the web identity.
    pub web_identity_role_arn: Option<String>,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`, or `_RELATIVE_URI` below `http://169.254.170.2`.
    pub container_credentials_url: Option<String>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, read each time: EKS replaces what is in it.
    pub container_authorization_file: Option<PathBuf>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`.
    pub container_authorization: Option<Secret>,
    /// Whether the instance metadata service may be asked (`AWS_EC2_METADATA_DISABLED` is not set).
    pub use_instance_metadata: bool,
}
