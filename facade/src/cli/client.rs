//! The HTTP client of the command line: one server, one token.

mod stream;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, http};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CliError;
use super::profile::{DEFAULT_SERVER, Target};
use crate::api::problem::{Problem, chain};
use crate::secret::Secret;

pub(super) use self::stream::Ended;

const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Longest wait for an answer. An import of many tags from a slow registry takes its time.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(30);

/// Pauses before a request is sent again whose connection was lost: a facade that restarts is back within them.
const RETRY_AFTER: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

pub(super) struct Client {
    http: HttpClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    server: String,
    token: Secret,
    /// Names this run of the command, so that no change of it is made twice.
    run: String,
    changes: AtomicU64,
}

impl Client {
    pub(super) fn new(target: &Target) -> Result<Self, CliError> {
        let server = target.server.as_deref().unwrap_or(DEFAULT_SERVER).trim_end_matches('/').to_owned();
        if !server.starts_with("http://") && !server.starts_with("https://") {
            return Err(CliError::Usage(format!(
                "--server {server:?} is not an address: did you mean http://{server} or https://{server}?"
            )));
        }
        let token = read_token(target.token_file.as_deref())?;
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|error| CliError::from_error(&error))?
        .with_root_certificates(roots(target.ca_file.as_deref())?)
        .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let mut run = [0; 16];
        getrandom::fill(&mut run).map_err(|error| CliError::from_error(&error))?;
        let (run, changes) = (HEXLOWER.encode(&run), AtomicU64::new(0));
        Ok(Self {
            http: HttpClient::builder(TokioExecutor::new()).build(connector),
            server,
            token,
            run,
            changes,
        })
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CliError> {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub(super) async fn put<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.ask(Method::PUT, path, None::<&()>).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        self.ask(Method::DELETE, path, None::<&()>).await
    }

    /// Every item of a paged list.
    pub(super) async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, CliError> {
        self.paged(path, usize::MAX).await
    }

    async fn paged<T: DeserializeOwned>(&self, path: &str, wanted: usize) -> Result<Vec<T>, CliError> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut after = String::new();
        while items.len() < wanted {
            let limit = wanted.saturating_sub(items.len()).min(500);
            let page: crate::api::types::Page<T> =
                self.get(&format!("{path}{separator}limit={limit}{after}")).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = format!("&after={}", encode(&next)),
                None => break,
            }
        }
        Ok(items)
    }

    /// The first items of a paged list.
    pub(super) async fn first<T: DeserializeOwned>(
        &self,
        path: &str,
        wanted: usize,
    ) -> Result<Vec<T>, CliError> {
        self.paged(path, wanted).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, CliError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| CliError::from_error(&error))?,
            None => Vec::new(),
        };
        let mut request = self.request(&method, path)?.header("content-type", "application/json");
        if method != Method::GET {
            let number = self.changes.fetch_add(1, Ordering::Relaxed);
            request = request.header("idempotency-key", format!("\"{}-{number}\"", self.run));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| CliError::Usage(format!("{}{path} is not an address", self.server)))?;
        let (status, bytes) =
            tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(&request)).await.map_err(|_| {
                self.unreachable(format!("no answer within {} minutes", ANSWER_TIMEOUT.as_secs() / 60))
            })??;
        if status.is_success() {
            let body: &[u8] = if bytes.is_empty() { b"null" } else { &bytes };
            return serde_json::from_slice(body).map_err(|error| {
                CliError::Failed(format!(
                    "{} does not answer as a facade of this version does: {error}",
                    self.server
                ))
            });
        }
        Err(problem(&self.server, status, &bytes))
    }

    fn request(&self, method: &Method, path: &str) -> Result<http::request::Builder, CliError> {
        let named = path.split('?').next().unwrap_or_default();
        if named.ends_with('/') || named.contains("//") {
            return Err(CliError::Usage("a name is empty".to_owned()));
        }
        let address = format!("{}{path}", self.server);
        let uri: hyper::Uri =
            address.parse().map_err(|_| CliError::Usage(format!("{address} is not an address")))?;
        let authorization = format!("Bearer {}", self.token.expose());
        Ok(Request::builder().method(method).uri(uri).header("authorization", authorization))
    }

    /// Sends a request until it is answered. Once it may have arrived, a lost connection does not mean that it was not
    /// done; its key keeps it from being done twice.
    async fn exchange(&self, request: &Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), CliError> {
        let mut pauses = RETRY_AFTER.iter();
        let mut arrived = false;
        loop {
            let lost = match self.exchange_once(request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(lost) => lost,
            };
            arrived |= lost.arrived;
            match pauses.next().filter(|_| arrived) {
                Some(pause) => tokio::time::sleep(*pause).await,
                None if arrived => return Err(self.unreachable(lost.cause)),
                None => {
                    let remedy = "is facade serve running there? --server or FACADE_SERVER names another";
                    return Err(self.unreachable(format!("{} ({remedy})", lost.cause)));
                }
            }
        }
    }

    async fn exchange_once(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Lost> {
        let sent = self.http.request(request).await;
        let response = sent.map_err(|error| Lost { arrived: !error.is_connect(), cause: chain(&error) })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let bytes = body.map_err(|error| Lost { arrived: true, cause: chain(&*error) })?.to_bytes();
        Ok((status, bytes))
    }

    fn unreachable(&self, cause: String) -> CliError {
        CliError::Unreachable { server: self.server.clone(), cause }
    }
}

/// A request without an answer.
struct Lost {
    /// Whether it may have reached the server.
    arrived: bool,
    cause: String,
}

/// What a server refused, by its own words where they are a facade's.
fn problem(server: &str, status: StatusCode, bytes: &[u8]) -> CliError {
    match serde_json::from_slice::<Problem>(bytes) {
        Ok(problem) => CliError::from_problem(problem),
        Err(_) => CliError::Failed(format!("{server} answers {status}; is it a facade?")),
    }
}

fn read_token(file: Option<&Path>) -> Result<Secret, CliError> {
    let Some(file) = file else {
        return Err(CliError::NotAllowed(
            "no token: name its file with --token-file, FACADE_TOKEN_FILE or a profile (facade init leaves the first one in DIR/admin.token)"
                .to_owned(),
        ));
    };
    let text = std::fs::read_to_string(file).map_err(|error| {
        CliError::Usage(format!("cannot read the token file {}: {error}", file.display()))
    })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CliError::Usage(format!("the token file {} holds no token", file.display())));
    }
    Ok(Secret::new(token.to_owned()))
}

fn roots(ca_file: Option<&Path>) -> Result<rustls::RootCertStore, CliError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = ca_file {
        let failed = |cause: String| CliError::Usage(format!("--ca-file {}: {cause}", file.display()));
        let pem = std::fs::read(file).map_err(|error| failed(error.to_string()))?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
    }
    Ok(roots)
}

/// A path with those of the filters that were given.
pub(super) fn filtered<const N: usize>(path: &str, filters: [(&str, Option<String>); N]) -> String {
    let given = filters.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(&value?))));
    let query = given.collect::<Vec<_>>().join("&");
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// A text as one segment of a path, or one value of a query.
pub(super) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
