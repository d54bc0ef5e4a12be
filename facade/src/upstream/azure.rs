//! Azure: a service principal, exchanged with Entra ID for an access token, and that with the registry for a refresh
//! token, from which the registry's own token server makes tokens for repositories.
//!
//! The client secret goes to Microsoft's login host of the cloud that the registry is in, or to the one that the facade's
//! own configuration names; never to the registry.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use pki::oci::RegistryHost;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::client::{Answer, Client, bad};
use super::credential::{Cloud, endpoint};
use super::error::UpstreamError;
use super::health::retry_after;
use super::target::form;
use super::token::Issued;
use crate::secret::Secret;

/// The user name that goes with a refresh token.
pub(super) const USERNAME: &str = "00000000-0000-0000-0000-000000000000";

const SCOPE: &str = "https://containerregistry.azure.net/.default";
const FORM: &str = "application/x-www-form-urlencoded";
const MAX_FILE_BYTES: usize = 64 * 1024;
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// How long the registry's refresh tokens live; its answer does not say.
const REFRESH_LIFETIME: Duration = Duration::from_hours(3);

/// A service principal, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// The directory (tenant) it is in: an id or a domain.
    pub tenant_id: String,
    /// Its application (client) id.
    pub client_id: String,
}

/// Why a service principal cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrincipalError {
    /// The host is not one of ACR's.
    #[error("{0} is not a registry of Azure (expected for example myregistry.azurecr.io)")]
    Host(RegistryHost),
    /// Not a service principal.
    #[error(
        "not a service principal (expected tenant_id, client_id and client_secret, or what az ad sp create-for-rbac prints)"
    )]
    NotAPrincipal,
    /// A field is not what Azure gives.
    #[error("{0} is not valid (expected for example {1})")]
    Field(&'static str, &'static str),
}

/// What is read: our own names, those of `az ad sp create-for-rbac`, and those of its `--json-auth`.
#[derive(Deserialize)]
struct File {
    #[serde(alias = "tenant", alias = "tenantId")]
    tenant_id: String,
    #[serde(alias = "appId", alias = "clientId")]
    client_id: String,
    #[serde(alias = "password", alias = "clientSecret")]
    client_secret: String,
}

impl Principal {
    /// Takes a file apart, JSON or TOML: the principal, and its secret as the connection's.
    pub fn from_file(file: &Secret) -> Result<(Self, Secret), PrincipalError> {
        let text = file.expose();
        let read: Option<File> = if text.trim_start().starts_with('{') {
            pki::json::parse_as(text.as_bytes(), MAX_FILE_BYTES).ok()
        } else {
            toml::from_str(text).ok()
        };
        let File { tenant_id, client_id, client_secret } = read.ok_or(PrincipalError::NotAPrincipal)?;
        Ok((Self { tenant_id, client_id }, Secret::new(client_secret)))
    }
}

/// The login host of the cloud that a registry is in.
fn authority(host: &RegistryHost) -> Option<&'static str> {
    let domain = host.domain();
    let clouds = [
        (".azurecr.io", "https://login.microsoftonline.com"),
        (".azurecr.us", "https://login.microsoftonline.us"),
        (".azurecr.cn", "https://login.partner.microsoftonline.cn"),
    ];
    clouds.iter().find(|(suffix, _)| domain.ends_with(suffix)).map(|(_, authority)| *authority)
}

/// A service principal with its secret.
#[derive(Clone, Debug)]
pub struct ServicePrincipal {
    registry: RegistryHost,
    authority: &'static str,
    principal: Principal,
    secret: Secret,
}

impl ServicePrincipal {
    /// Checks every field.
    pub(super) fn open(
        registry: &RegistryHost,
        principal: &Principal,
        secret: Secret,
    ) -> Result<Self, PrincipalError> {
        let authority = authority(registry).ok_or_else(|| PrincipalError::Host(registry.clone()))?;
        if !is_tenant(&principal.tenant_id) {
            return Err(PrincipalError::Field("tenant_id", "72f988bf-86f1-41af-91ab-2d7cd011db47"));
        }
        if !is_id(&principal.client_id) {
            return Err(PrincipalError::Field("client_id", "04b07795-8ddb-461a-bbee-02f9e1bf7b46"));
        }
        let text = secret.expose();
        if text.is_empty() || text.len() > 1024 || text.chars().any(char::is_control) {
            return Err(PrincipalError::Field("client_secret", "the value that was shown when it was made"));
        }
        Ok(Self { registry: registry.clone(), authority, principal: principal.clone(), secret })
    }

    /// Exchanges for a refresh token of the registry, which is asked as the connection asks it.
    pub(super) async fn exchange(&self, cloud: &Cloud, registry: &Client) -> Result<Issued, UpstreamError> {
        let access = self.access_token(cloud).await?;
        let target = endpoint(&format!("https://{}/oauth2/exchange", self.registry.api_authority()))?;
        let body = form([
            ("grant_type", "access_token"),
            ("service", self.registry.domain()),
            ("tenant", self.principal.tenant_id.as_str()),
            ("access_token", access.expose()),
        ]);
        let answer = registry.post(&target, HeaderMap::new(), FORM, body.into(), vec![access]).await?;
        let answer = granted(cloud, answer).await?;
        let body = answer.body.read("refresh token", MAX_ANSWER_BYTES).await?;
        let value = text_of(&body, "refresh_token").ok_or_else(|| bad(&target, "sent no refresh token"))?;
        Ok(Issued { value, lifetime: REFRESH_LIFETIME })
    }

    /// Entra ID's access token for container registries (OAuth 2.0 client credentials, RFC 6749, section 4.4).
    async fn access_token(&self, cloud: &Cloud) -> Result<Secret, UpstreamError> {
        let base = cloud.endpoints.azure_authority.as_deref().unwrap_or(self.authority);
        let base = base.trim_end_matches('/');
        let target = endpoint(&format!("{base}/{}/oauth2/v2.0/token", self.principal.tenant_id))?;
        let body = form([
            ("grant_type", "client_credentials"),
            ("client_id", self.principal.client_id.as_str()),
            ("client_secret", self.secret.expose()),
            ("scope", SCOPE),
        ]);
        let secrets = vec![self.secret.clone()];
        let answer = cloud.client.post(&target, HeaderMap::new(), FORM, body.into(), secrets).await?;
        let answer = granted(cloud, answer).await?;
        let body = answer.body.read("access token", MAX_ANSWER_BYTES).await?;
        text_of(&body, "access_token").ok_or_else(|| bad(&target, "sent no access token"))
    }
}

/// The answer, if it grants what was asked.
async fn granted(cloud: &Cloud, answer: Answer) -> Result<Answer, UpstreamError> {
    let host = answer.target.authority().into();
    match answer.status {
        StatusCode::OK => Ok(answer),
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let source = answer.said().await;
            Err(UpstreamError::Denied { host, source })
        }
        StatusCode::TOO_MANY_REQUESTS => {
            let retry_after = retry_after(&answer.headers, cloud.clock.now());
            Err(UpstreamError::RateLimited { host, retry_after })
        }
        status => Err(UpstreamError::Unavailable { host, status: status.as_u16() }),
    }
}

/// A token out of an answer; one that cannot be a header's value is none.
fn text_of(body: &[u8], name: &str) -> Option<Secret> {
    let document = pki::json::parse(body, MAX_ANSWER_BYTES).ok()?;
    let text = document.get(name)?.as_str()?;
    let printable = !text.is_empty() && text.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    printable.then(|| Secret::new(text.to_owned()))
}

/// An id, or a domain such as `contoso.onmicrosoft.com`: it becomes a part of a path.
fn is_tenant(text: &str) -> bool {
    let label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(label) && !text.contains("..")
}

/// A UUID.
fn is_id(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "04b07795-8ddb-461a-bbee-02f9e1bf7b46";

    fn principal() -> Principal {
        Principal { tenant_id: "contoso.onmicrosoft.com".into(), client_id: ID.into() }
    }

    #[test]
    fn reads_what_azure_s_own_tool_prints_and_our_own_names() {
        for text in [
            format!(
                r#"{{"appId":"{ID}","displayName":"d","password":"s3cret","tenant":"contoso.onmicrosoft.com"}}"#
            ),
            format!(
                r#"{{"clientId":"{ID}","clientSecret":"s3cret","tenantId":"contoso.onmicrosoft.com","subscriptionId":"x"}}"#
            ),
            format!(
                "tenant_id = \"contoso.onmicrosoft.com\"\nclient_id = \"{ID}\"\nclient_secret = \"s3cret\"\n"
            ),
        ] {
            let (read, secret) = Principal::from_file(&Secret::new(text.clone())).unwrap();
            assert_eq!((read, secret.expose()), (principal(), "s3cret"), "{text}");
        }
        for text in ["", "{}", "tenant_id = 7", r#"{"appId":"x","tenant":"y"}"#] {
            let refused = Principal::from_file(&Secret::new(text.into())).unwrap_err();
            assert_eq!(refused, PrincipalError::NotAPrincipal, "{text}");
        }
    }

    #[test]
    fn rejects_hosts_and_fields_that_azure_does_not_have() {
        let open = |host: &str, principal: &Principal, secret: &str| {
            ServicePrincipal::open(&host.parse().unwrap(), principal, Secret::new(secret.into()))
        };
        for (host, login) in [
            ("mine.azurecr.io", "https://login.microsoftonline.com"),
            ("mine.azurecr.us", "https://login.microsoftonline.us"),
            ("mine.azurecr.cn", "https://login.partner.microsoftonline.cn"),
        ] {
            assert_eq!(open(host, &principal(), "s").unwrap().authority, login);
        }
        for host in ["azurecr.io", "mine.azurecr.io.evil.net", "evilazurecr.io", "ghcr.io"] {
            assert!(matches!(open(host, &principal(), "s"), Err(PrincipalError::Host(_))), "{host}");
        }
        for (principal, secret) in [
            (Principal { tenant_id: "../x".into(), ..principal() }, "s"),
            (Principal { tenant_id: "a/b".into(), ..principal() }, "s"),
            (Principal { tenant_id: String::new(), ..principal() }, "s"),
            (Principal { client_id: "drayage".into(), ..principal() }, "s"),
            (principal(), ""),
            (principal(), "a\nb"),
        ] {
            let refused = open("mine.azurecr.io", &principal, secret);
            assert!(matches!(refused, Err(PrincipalError::Field(..))), "{principal:?}");
        }
    }
}
