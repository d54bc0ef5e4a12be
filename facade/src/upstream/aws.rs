//! Amazon ECR: base credentials, optionally a role assumed with them, exchanged for a registry password of twelve hours.

use pki::oci::RegistryHost;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::secret::Secret;

/// The user name that goes with an ECR password.
pub(super) const USERNAME: &str = "AWS";

/// How to become who may pull, without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Configuration {
    /// The access key to start from; without it the facade's own environment is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The role to assume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// The name under which the sessions show in the role's audit trail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// The region of STS; without it that of the registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl Configuration {
    /// The role, or else the access key.
    pub fn identity(&self) -> Option<&str> {
        self.role_arn.as_deref().or(self.access_key_id.as_deref())
    }
}

/// Why a configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigurationError {
    /// The host is not one of ECR's.
    #[error("{0} is not an ECR registry (expected 123456789012.dkr.ecr.eu-west-1.amazonaws.com)")]
    Host(RegistryHost),
}

/// A role with the secret of its access key.
#[derive(Clone, Debug)]
pub struct Role {}

impl Role {
    /// Checks every field.
    pub(super) fn open(
        _host: &RegistryHost,
        _configuration: &Configuration,
        _secret_access_key: Option<Secret>,
    ) -> Result<Self, ConfigurationError> {
        todo!()
    }

    /// Exchanges for a registry password.
    pub(super) async fn exchange(
        &self,
        _cloud: &super::credential::Cloud,
    ) -> Result<super::token::Issued, super::error::UpstreamError> {
        todo!()
    }
}
