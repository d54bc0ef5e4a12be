//! What a connection to a registry is, without its secrets: what the catalog stores and a listing may show.
//!
//! [`Definition::credential`] joins it with the secrets, opened from their seals, just before use.

use std::fmt;

use pki::oci::{RegistryHost, Repository, RepositoryName};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::aws;
use super::azure;
use super::credential::Credential;
use super::google;
use crate::secret::Secret;

const MAX_USERNAME_BYTES: usize = 256;
const MAX_PASSWORD_BYTES: usize = 16 * 1024;

/// A connection to a registry, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The registry, which also names the connection.
    pub host: RegistryHost,
    /// How the facade proves who it is.
    pub provider: Provider,
    /// Speak HTTP without TLS; only loopback and private addresses may have it.
    #[serde(default)]
    pub plain_http: bool,
    /// The registry, its token server and its redirects may be at loopback and private addresses.
    #[serde(default)]
    pub allow_private: bool,
    /// Another host that may receive the credentials, because it issues this registry's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_host: Option<String>,
    /// The registry whose content this one has too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// Certificates of further authorities to trust, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// The certificate chain to show to the registry, PEM; its key is a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_pem: Option<String>,
}

/// That a registry has the content of another one too, and serves pulls which that one cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The other registry.
    pub of: RegistryHost,
    /// What the mirror has before the names of the repositories: the project of a Harbor proxy cache, for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<RepositoryName>,
}

impl Mirror {
    /// What the mirror calls a repository of the other registry; none if it is another registry's, or too long a name.
    pub fn name_of(&self, repository: &Repository) -> Option<RepositoryName> {
        let name = repository.name();
        match &self.below {
            _ if *repository.host() != self.of => None,
            None => Some(name.clone()),
            Some(below) => format!("{below}/{name}").parse().ok(),
        }
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.below {
            Some(below) => write!(f, "{}, below {below}/", self.of),
            None => write!(f, "{}", self.of),
        }
    }
}

/// How the facade proves to a registry who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Provider {
    /// Not at all; the registry may still want an anonymous token.
    Anonymous {},
    /// A user name and a password or token.
    Static {
        /// The user name; `<token>` for an identity token.
        username: String,
    },
    /// A Google service account.
    Google(google::Account),
    /// A role of Amazon Web Services.
    Aws(aws::Configuration),
    /// A service principal of Azure.
    Azure(azure::Principal),
}

impl Provider {
    /// The word for it on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Anonymous {} => "anonymous",
            Self::Static { .. } => "static",
            Self::Google(_) => "google",
            Self::Aws(_) => "aws",
            Self::Azure(_) => "azure",
        }
    }

    /// Whom a listing shows: the user name, account or role.
    pub fn identity(&self) -> Option<&str> {
        match self {
            Self::Anonymous {} => None,
            Self::Static { username } => Some(username),
            Self::Google(account) => Some(&account.client_email),
            Self::Aws(configuration) => configuration.identity(),
            Self::Azure(principal) => Some(&principal.client_id),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The secrets of one connection.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// The password or token, the service account's private key (PEM), the AWS secret access key, or the
    /// Azure client secret.
    pub credential: Option<Secret>,
    /// The private key of the client certificate, PEM.
    pub client_key_pem: Option<Secret>,
}

/// Why a connection cannot be made as it is described; each names the field and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DefinitionError {
    /// A user name that cannot be sent.
    #[error(
        "username: must be 1 to {MAX_USERNAME_BYTES} printable characters without a colon (for example octocat)"
    )]
    Username,
    /// No secret for a provider that needs one.
    #[error("password: the {0} provider needs a secret (give it on standard input or in a file)")]
    NoSecret(&'static str),
    /// A secret that cannot be sent.
    #[error("password: must be at most {MAX_PASSWORD_BYTES} bytes on one line without control characters")]
    Password,
    /// A secret for a provider that has none.
    #[error("password: the anonymous provider takes no secret (did you mean --provider static?)")]
    NeedlessSecret,
    /// A CA bundle without a certificate.
    #[error("ca_pem: holds no certificate (expected PEM, -----BEGIN CERTIFICATE-----)")]
    CaPem,
    /// A client certificate that cannot be used.
    #[error(
        "client_certificate_pem: certificate and key do not make a pair (expected PEM chain and PEM key)"
    )]
    ClientCertificate,
    /// One half of a client certificate.
    #[error("client_certificate_pem: a certificate needs its private key, and a key its certificate")]
    HalfClientCertificate,
    /// A host that no URL can be made of.
    #[error("host: cannot be requested (expected for example ghcr.io)")]
    Host,
    /// A mirror of itself.
    #[error(
        "mirror_of: a registry is no mirror of itself (expected another registry, for example docker.io)"
    )]
    MirrorOfItself,
    /// A token host that is not one.
    #[error("token_host: must be a host name (for example auth.example.com)")]
    TokenHost,
    /// A service account key that is not one.
    #[error("google: {0}")]
    Google(#[from] google::AccountError),
    /// An AWS configuration that cannot work.
    #[error("aws: {0}")]
    Aws(#[from] aws::ConfigurationError),
    /// An Azure service principal that cannot work.
    #[error("azure: {0}")]
    Azure(#[from] azure::PrincipalError),
}

impl Definition {
    /// An anonymous connection with every option off.
    pub fn anonymous(host: RegistryHost) -> Self {
        Self {
            host,
            provider: Provider::Anonymous {},
            plain_http: false,
            allow_private: false,
            token_host: None,
            mirror: None,
            ca_pem: None,
            client_certificate_pem: None,
        }
    }

    /// Joins the definition with its secret to what can be proven to the registry; every field is checked here.
    pub fn credential(&self, secret: Option<Secret>) -> Result<Credential, DefinitionError> {
        if self.token_host.as_deref().is_some_and(|host| !is_host_name(host)) {
            return Err(DefinitionError::TokenHost);
        }
        if self.mirror.as_ref().is_some_and(|mirror| mirror.of == self.host) {
            return Err(DefinitionError::MirrorOfItself);
        }
        match (&self.provider, secret) {
            (Provider::Anonymous {}, None) => Ok(Credential::Anonymous),
            (Provider::Anonymous {}, Some(_)) => Err(DefinitionError::NeedlessSecret),
            (Provider::Static { username }, Some(password)) => login(username, password),
            (Provider::Static { .. }, None) => Err(DefinitionError::NoSecret("static")),
            (Provider::Google(account), Some(key)) => {
                Ok(Credential::ServiceAccount(google::ServiceAccount::open(account, &key)?))
            }
            (Provider::Google(_), None) => Err(DefinitionError::NoSecret("google")),
            (Provider::Aws(configuration), secret) => {
                Ok(Credential::Role(aws::Role::open(&self.host, configuration, secret)?))
            }
            (Provider::Azure(principal), Some(secret)) => {
                let principal = azure::ServicePrincipal::open(&self.host, principal, secret)?;
                Ok(Credential::ServicePrincipal(principal))
            }
            (Provider::Azure(_), None) => Err(DefinitionError::NoSecret("azure")),
        }
    }

    /// The certificates of the further authorities.
    pub(super) fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, DefinitionError> {
        match &self.ca_pem {
            Some(pem) => certificates(pem).ok_or(DefinitionError::CaPem),
            None => Ok(Vec::new()),
        }
    }
}

/// The certificates of a PEM text; none if it has none or is broken.
pub(super) fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    found.ok().filter(|certificates| !certificates.is_empty())
}

fn login(username: &str, password: Secret) -> Result<Credential, DefinitionError> {
    // RFC 7617, section 2: a user-id with a colon would be read as another user and password.
    let printable = !username.contains(':') && !username.chars().any(char::is_control);
    if username.is_empty() || username.len() > MAX_USERNAME_BYTES || !printable {
        return Err(DefinitionError::Username);
    }
    let text = password.expose();
    if text.is_empty() {
        return Err(DefinitionError::NoSecret("static"));
    }
    if text.len() > MAX_PASSWORD_BYTES || text.chars().any(char::is_control) {
        return Err(DefinitionError::Password);
    }
    Ok(Credential::Static { username: username.to_owned(), password })
}

fn is_host_name(text: &str) -> bool {
    format!("{text}:443").parse::<RegistryHost>().is_ok_and(|host| !host.is_docker_hub())
        && !text.contains([':', '/'])
}
