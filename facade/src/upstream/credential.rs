//! What a connection can prove, and the login it becomes when a request needs one.
//!
//! Long-lived secrets stay here; what goes out to a registry is a [`Login`], which for Google, AWS and Azure is short-lived,
//! exchanged when it is needed and kept until shortly before it expires.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::aws;
use super::azure;
use super::client::Client;
use super::counters::Exchange;
use super::error::{Cause, UpstreamError};
use super::google;
use super::target::Target;
use super::token::{Cache, Cached};
use super::{AwsEnvironment, Endpoints};
use crate::clock::Clock;
use crate::secret::Secret;

/// The credential of a connection, opened from its seal just before use.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Nothing.
    Anonymous,
    /// A user name and a password or token.
    Static {
        /// The user name.
        username: String,
        /// The password or token.
        password: Secret,
    },
    /// A Google service account, exchanged for an access token.
    ServiceAccount(google::ServiceAccount),
    /// A role of AWS, exchanged for an ECR password.
    Role(aws::Role),
    /// A service principal of Azure, exchanged for a refresh token of the registry.
    ServicePrincipal(azure::ServicePrincipal),
}

/// A user name and password as a registry or its token server takes them.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) username: String,
    pub(super) password: Secret,
}

/// What the exchanges of cloud providers need: a client for their fixed endpoints, and the facade's own settings.
#[derive(Clone, Debug)]
pub(super) struct Cloud {
    pub(super) client: Client,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) environment: Arc<AwsEnvironment>,
    pub(super) clock: Clock,
}

/// Makes logins out of a credential.
pub(super) struct Source {
    credential: Credential,
    cloud: Cloud,
    /// For exchanges that the registry itself makes, as the connection reaches it.
    registry: Client,
    exchanged: Cache<()>,
    rejected: Duration,
}

impl Source {
    /// `rejected` is how long a refused exchange is not tried again.
    pub(super) fn new(credential: Credential, cloud: Cloud, registry: Client, rejected: Duration) -> Self {
        Self { credential, cloud, registry, exchanged: Cache::new(), rejected }
    }

    pub(super) fn credential(&self) -> &Credential {
        &self.credential
    }

    pub(super) fn now(&self) -> Timestamp {
        self.cloud.clock.now()
    }

    /// Whether its logins expire, so that a rejection may only mean that it is time for a new one.
    pub(super) fn is_short_lived(&self) -> bool {
        matches!(
            self.credential,
            Credential::ServiceAccount(_) | Credential::Role(_) | Credential::ServicePrincipal(_)
        )
    }

    /// The login, if there is anything to prove, and what to forget when it is rejected.
    pub(super) async fn login(&self) -> Result<Option<(Login, Option<Cached>)>, UpstreamError> {
        let (cloud, registry) = (self.cloud.clone(), self.registry.clone());
        let (username, exchanged) = match &self.credential {
            Credential::Anonymous => return Ok(None),
            Credential::Static { username, password } => {
                let login = Login { username: username.clone(), password: password.clone() };
                return Ok(Some((login, None)));
            }
            Credential::ServiceAccount(account) => {
                let account = account.clone();
                let exchange = || async move {
                    let outcome = account.exchange(&cloud).await;
                    registry.exchanged(Exchange::Google, outcome)
                };
                (google::USERNAME, self.exchanged.get(&(), exchange).await)
            }
            Credential::Role(role) => {
                let role = role.clone();
                let exchange = || async move {
                    let outcome = role.exchange(&cloud).await;
                    registry.exchanged(Exchange::Aws, outcome)
                };
                (aws::USERNAME, self.exchanged.get(&(), exchange).await)
            }
            Credential::ServicePrincipal(principal) => {
                let principal = principal.clone();
                let exchange = || async move {
                    let outcome = principal.exchange(&cloud, &registry).await;
                    registry.exchanged(Exchange::Azure, outcome)
                };
                (azure::USERNAME, self.exchanged.get(&(), exchange).await)
            }
        };
        let exchanged = exchanged.inspect_err(|error| self.remember(error))?;
        let login = Login { username: username.to_owned(), password: exchanged.value.clone() };
        Ok(Some((login, Some(exchanged))))
    }

    fn remember(&self, error: &UpstreamError) {
        if matches!(error, UpstreamError::Denied { .. }) && self.exchanged.rejection(&()).is_none() {
            self.exchanged.reject(&(), error, self.rejected);
        }
    }

    /// Forgets a login that was rejected.
    pub(super) fn forget(&self, rejected: &Cached) {
        self.exchanged.forget(&(), rejected);
    }
}

/// An endpoint out of this code or of the facade's configuration.
pub(super) fn endpoint(url: &str) -> Result<Target, UpstreamError> {
    Target::parse(url).ok_or_else(|| UpstreamError::BadAnswer {
        host: "facade configuration".into(),
        source: Cause::new("an endpoint of a cloud provider is not a URL"),
    })
}
