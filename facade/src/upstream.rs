//! Registries that images come from.
//!
//! A [`Registry`] is one connected registry: definition, secrets and HTTPS client. It speaks the distribution API, with
//! the challenge flow, limits and refusals that a hostile registry calls for, and hands out verified manifests and
//! unverified blob bytes. It knows no device, and nothing a registry says in words reaches one.

mod address;
mod aws;
mod azure;
mod blob;
mod challenge;
mod check;
mod client;
mod counters;
mod credential;
mod definition;
mod dial;
mod error;
mod google;
mod health;
mod registry;
mod settings;
mod tags;
mod target;
mod token;
mod web;

use std::fmt;
use std::sync::Arc;

use hyper_util::client::proxy::matcher::Matcher;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use aws::{Configuration as AwsConfiguration, ConfigurationError as AwsConfigurationError};
pub use azure::{Principal as AzurePrincipal, PrincipalError as AzurePrincipalError};
pub use blob::BlobStream;
pub use check::{CheckReport, Outcome, Step, StepResult};
pub use counters::Counters;
pub use credential::Credential;
pub use definition::{Definition, DefinitionError, Mirror, Provider, Secrets};
pub use error::{Cause, Layer, UpstreamError};
pub use google::{Account as GoogleAccount, AccountError as GoogleAccountError};
pub use health::{Budget, Health};
pub use registry::{Registry, Served};
pub use settings::{AwsEnvironment, Endpoints, Limits, ProxySettings, Resolver, Settings};
pub use tags::{BrowseLimits, Clipped, TagList};
pub use web::{Web, WebError};

use address::{Policy, Reach};
use client::Client;
use credential::{Cloud, Source};
use dial::Dialer;
use registry::Parts;
use token::Authorizer;

use crate::secret::Secret;

/// Makes registries out of definitions. Cheap to clone.
#[derive(Clone)]
pub struct Upstreams(Arc<Shared>);

struct Shared {
    settings: Settings,
    proxy: Option<Arc<Matcher>>,
    roots: RootCertStore,
    plain_tls: Arc<ClientConfig>,
    cloud: Cloud,
}

impl Upstreams {
    /// Prepares what all connections share: the machine's trusted roots, and the proxy.
    pub fn new(settings: Settings) -> Result<Self, rustls::Error> {
        let roots = trusted_roots();
        let plain_tls = Arc::new(tls_config(roots.clone(), None)?);
        let proxy = proxy(&settings.proxy);
        let dialer = Dialer::new(
            Policy::Fixed,
            settings.resolver.clone(),
            proxy.clone(),
            (Arc::clone(&plain_tls), Arc::clone(&plain_tls)),
            settings.limits.connect,
        );
        let cloud = Cloud {
            client: Client::new(dialer, settings.limits),
            endpoints: Arc::new(settings.endpoints.clone()),
            environment: Arc::new(settings.aws_environment.clone()),
            clock: settings.clock.clone(),
        };
        Ok(Self(Arc::new(Shared { settings, proxy, roots, plain_tls, cloud })))
    }

    /// Makes a registry of a definition and its secrets; asks nobody. Keep it: it caches tokens and connections.
    pub fn connect(&self, definition: Definition, secrets: Secrets) -> Result<Registry, DefinitionError> {
        let shared = &self.0;
        let credential = definition.credential(secrets.credential)?;
        let tls = Arc::new(shared.tls(&definition, secrets.client_key_pem.as_ref())?);
        let reach = Reach::of(
            &definition.host,
            definition.plain_http,
            definition.allow_private,
            definition.token_host.as_deref(),
        );
        let limits = shared.settings.limits;
        let dialer = Dialer::new(
            Policy::Connection(reach),
            shared.settings.resolver.clone(),
            shared.proxy.clone(),
            (tls, Arc::clone(&shared.plain_tls)),
            limits.connect,
        );
        let tally = shared.settings.counters.of(definition.host.as_str());
        let client = Client::new(dialer, limits).counted(tally);
        let source = Source::new(credential, shared.cloud.clone(), client.clone(), limits.rejected);
        let authorizer = Authorizer::new(definition.host.as_str().into(), client.clone(), source, limits);
        Registry::new(Parts { definition, client, authorizer, clock: shared.settings.clock.clone() })
    }
}

impl Shared {
    fn tls(
        &self,
        definition: &Definition,
        key_pem: Option<&Secret>,
    ) -> Result<ClientConfig, DefinitionError> {
        let mut roots = self.roots.clone();
        for authority in definition.authorities()? {
            roots.add(authority).map_err(|_| DefinitionError::CaPem)?;
        }
        let client = match (&definition.client_certificate_pem, key_pem) {
            (None, None) => None,
            (Some(pem), Some(key)) => {
                let chain = definition::certificates(pem).ok_or(DefinitionError::ClientCertificate)?;
                let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes());
                Some((chain, key.map_err(|_| DefinitionError::ClientCertificate)?))
            }
            _ => return Err(DefinitionError::HalfClientCertificate),
        };
        tls_config(roots, client).map_err(|_| DefinitionError::ClientCertificate)
    }
}

/// The machine's trusted roots, or Mozilla's where the machine has none (a container without a CA bundle).
fn trusted_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

type ClientIdentity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn tls_config(roots: RootCertStore, client: Option<ClientIdentity>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match client {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key),
        None => Ok(builder.with_no_client_auth()),
    }
}

fn proxy(settings: &ProxySettings) -> Option<Arc<Matcher>> {
    let https = settings.https.as_deref()?;
    let no_proxy = settings.no_proxy.as_deref().unwrap_or_default();
    let matcher = Matcher::builder().https(https).no(no_proxy).build();
    Some(Arc::new(matcher))
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstreams").field("settings", &self.0.settings).finish_non_exhaustive()
    }
}
