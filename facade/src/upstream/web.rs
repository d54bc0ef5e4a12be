//! Endpoints that are no registries, and that the facade's own configuration names: an identity provider, a collector of
//! traces. They are reached as everything else is, through the proxy and with the machine's authorities.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;

use super::address::Policy;
use super::client::{Answer, Client};
use super::credential::endpoint;
use super::dial::Dialer;
use super::error::UpstreamError;
use super::{Settings, proxy, tls_config, trusted_roots};
use crate::secret::Secret;

/// Most bytes of an answer that nobody reads.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why there is no client.
#[derive(Debug, Error)]
pub enum WebError {
    /// The authorities are not certificates.
    #[error("the file holds no certificate authorities in PEM")]
    Authorities,
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// A client for such endpoints. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Web(Client);

impl Web {
    /// Prepares a client; `authorities` (PEM) are trusted besides the machine's.
    pub fn new(settings: &Settings, authorities: Option<&str>) -> Result<Self, WebError> {
        let mut roots = trusted_roots();
        if let Some(pem) = authorities {
            add(&mut roots, pem)?;
        }
        let tls: Arc<ClientConfig> = Arc::new(tls_config(roots, None).map_err(WebError::Tls)?);
        let dialer = Dialer::new(
            Policy::Fixed,
            settings.resolver.clone(),
            proxy(&settings.proxy),
            (Arc::clone(&tls), tls),
            settings.limits.connect,
        );
        Ok(Self(Client::new(dialer, settings.limits)))
    }

    /// Gets a document.
    pub(crate) async fn get(
        &self,
        url: &str,
        what: &'static str,
        max_bytes: usize,
    ) -> Result<Bytes, UpstreamError> {
        let answer = self.0.get(&endpoint(url)?, &HeaderMap::new(), None).await?;
        granted(answer).await?.body.read(what, max_bytes).await
    }

    /// Posts what a library has made, and gives whatever came back.
    pub(crate) async fn deliver(&self, request: Request<Bytes>) -> Result<Response<Bytes>, UpstreamError> {
        let (parts, body) = request.into_parts();
        let target = endpoint(&parts.uri.to_string())?;
        let answer = self.0.send(Method::POST, &target, parts.headers, body).await?;
        let answer = self.0.answer(target, answer, None)?;
        let mut response = Response::new(Bytes::new());
        (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.headers.clone());
        *response.body_mut() = answer.body.read("answer", MAX_ANSWER_BYTES).await?;
        Ok(response)
    }

    /// Posts something, and gives what came back where it was taken. The secrets in it are kept out of error texts.
    pub(crate) async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        (content_type, body): (&'static str, Vec<u8>),
        secrets: Vec<Secret>,
        (what, max_bytes): (&'static str, usize),
    ) -> Result<Bytes, UpstreamError> {
        let answer = self.0.post(&endpoint(url)?, headers, content_type, body.into(), secrets).await?;
        granted(answer).await?.body.read(what, max_bytes).await
    }
}

fn add(roots: &mut RootCertStore, pem: &str) -> Result<(), WebError> {
    let mut found = false;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| WebError::Authorities)?;
        roots.add(certificate).map_err(|_| WebError::Authorities)?;
        found = true;
    }
    if found { Ok(()) } else { Err(WebError::Authorities) }
}

async fn granted(answer: Answer) -> Result<Answer, UpstreamError> {
    let host = answer.target.authority().into();
    match answer.status {
        StatusCode::OK => Ok(answer),
        status if status.is_client_error() => {
            let source = answer.said().await;
            Err(UpstreamError::Denied { host, source })
        }
        status => Err(UpstreamError::Unavailable { host, status: status.as_u16() }),
    }
}
