//! One connected registry: manifests, blobs and lists of tags, as a caller asks for them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{ACCEPT, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use pki::digest::{Digest, Mismatch};
use pki::oci::manifest::MAX_DOCUMENT_BYTES;
use pki::oci::{MediaType, RepositoryName, Tag};
use tokio::time::Instant;

use super::blob::{BlobStream, ContentRange};
use super::challenge::challenges;
use super::check::{self, CheckReport};
use super::client::{Answer, Client};
use super::definition::{Definition, DefinitionError};
use super::error::UpstreamError;
use super::health::{Health, retry_after};
use super::tags::{BrowseLimits, Clipped, Pager, TagList};
use super::target::Target;
use super::token::{Authorizer, Subject};
use crate::clock::Clock;

/// One challenge, one renewal of what was cached, and one that lost a race against another's renewal.
const MAX_ATTEMPTS: usize = 4;
const ACCEPTED_DOCUMENTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or index, verified against the digest it was asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its digest, computed here.
    pub digest: Digest,
    /// What the registry says it is.
    pub media_type: MediaType,
    /// Its bytes.
    pub bytes: Bytes,
}

/// One connected registry. Cheap to clone; clones share tokens, connections and health.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    parts: Parts,
    base: Target,
    health: Mutex<Health>,
}

/// What a registry is made of.
pub(super) struct Parts {
    pub(super) definition: Definition,
    pub(super) client: Client,
    pub(super) authorizer: Authorizer,
    pub(super) clock: Clock,
}

impl Registry {
    pub(super) fn new(parts: Parts) -> Result<Self, DefinitionError> {
        let scheme = if parts.definition.plain_http { "http" } else { "https" };
        let authority = parts.definition.host.api_authority();
        let base = Target::parse(&format!("{scheme}://{authority}/v2/")).ok_or(DefinitionError::Host)?;
        Ok(Self(Arc::new(Inner { parts, base, health: Mutex::default() })))
    }

    /// What the connection is.
    pub fn definition(&self) -> &Definition {
        &self.0.parts.definition
    }

    /// The manifest that a tag names now. Its digest is computed here; a registry whose header disagrees is refused.
    pub async fn resolve(&self, name: &RepositoryName, tag: &Tag) -> Result<Served, UpstreamError> {
        let outcome = self.document(name, tag.as_str(), None).await;
        self.noted(outcome)
    }

    /// The manifest of a digest, verified.
    pub async fn manifest(&self, name: &RepositoryName, digest: Digest) -> Result<Served, UpstreamError> {
        let outcome = self.document(name, &digest.to_string(), Some(digest)).await;
        self.noted(outcome)
    }

    /// The bytes of a blob from an offset on, unverified.
    pub async fn blob(
        &self,
        name: &RepositoryName,
        digest: Digest,
        from: u64,
    ) -> Result<BlobStream, UpstreamError> {
        let outcome = self.open_blob(name, digest, from).await;
        self.noted(outcome)
    }

    /// The tags of a repository, as far as the limits go.
    pub async fn tags(&self, name: &RepositoryName, limits: &BrowseLimits) -> Result<TagList, UpstreamError> {
        let outcome = self.list(name, limits).await;
        self.noted(outcome)
    }

    /// Tries every layer in turn, and says which one fails.
    pub async fn check(&self, repository: Option<&RepositoryName>) -> CheckReport {
        check::run(self, repository).await
    }

    /// Goes on from what the connection had experienced before the facade started.
    pub fn remember(&self, health: Health) {
        *self.state() = health;
    }

    /// Whether the host is where the connection may go: known already for an address, now looked up for a name that is
    /// to be spoken to without TLS. Other names may come to exist later.
    pub async fn check_reach(&self) -> Result<(), UpstreamError> {
        let host = self.0.base.host().trim_matches(['[', ']']);
        if self.definition().plain_http || host.parse::<std::net::IpAddr>().is_ok() {
            self.client().dialer().addresses(&self.0.base).await?;
        }
        Ok(())
    }

    /// Marks the connection: what it sent was found out later not to be what it was named.
    pub fn served_wrong_bytes(&self, source: Mismatch) {
        let error = UpstreamError::DigestMismatch { host: self.host(), source };
        self.state().note_failure(&error, self.now());
    }

    /// What the connection has lately experienced.
    pub fn health(&self) -> Health {
        self.state().clone()
    }

    async fn document(
        &self,
        name: &RepositoryName,
        reference: &str,
        expected: Option<Digest>,
    ) -> Result<Served, UpstreamError> {
        let subject = Subject::Pull(name.clone());
        let target = self.0.base.at(&format!("/v2/{name}/manifests/{reference}"));
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(ACCEPTED_DOCUMENTS))]);
        let what = match expected {
            Some(digest) => format!("{name}@{digest}"),
            None => format!("{name}:{reference}"),
        };
        let answer = self.get(&subject, &what, &target, &headers).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.bad("sent a part where a whole manifest was asked for"));
        }
        let named = answer.header("docker-content-digest").map(str::parse::<Digest>);
        let Ok(named) = named.transpose() else {
            return Err(answer.bad("sent a Docker-Content-Digest header that is no digest"));
        };
        let stated = answer.content_type().and_then(|stated| stated.parse::<MediaType>().ok());
        let origin = answer.target.clone();
        let bytes = answer.body.read("manifest", MAX_DOCUMENT_BYTES).await?;
        for promised in expected.iter().chain(&named) {
            self.agree(*promised, &bytes)?;
        }
        let media_type = media_type(stated, &bytes)
            .ok_or_else(|| super::client::bad(&origin, "does not say what kind of manifest it serves"))?;
        Ok(Served { digest: expected.unwrap_or_else(|| Digest::sha256(&bytes)), media_type, bytes })
    }

    fn agree(&self, expected: Digest, bytes: &[u8]) -> Result<(), UpstreamError> {
        pki::digest::verify(expected, bytes)
            .map_err(|source: Mismatch| UpstreamError::DigestMismatch { host: self.host(), source })
    }

    async fn open_blob(
        &self,
        name: &RepositoryName,
        digest: Digest,
        from: u64,
    ) -> Result<BlobStream, UpstreamError> {
        let subject = Subject::Pull(name.clone());
        let target = self.0.base.at(&format!("/v2/{name}/blobs/{digest}"));
        let mut headers = HeaderMap::new();
        if from > 0 {
            headers.insert(RANGE, range_from(from));
        }
        let answer = self.get(&subject, &format!("{name}@{digest}"), &target, &headers).await?;
        if answer.status != StatusCode::PARTIAL_CONTENT {
            return Ok(BlobStream { starts_at: 0, total: answer.content_length(), body: answer.body });
        }
        let range = answer.header("content-range").and_then(ContentRange::parse);
        let length = answer.content_length();
        match range {
            Some(range)
                if from > 0
                    && range.is_rest_from(from)
                    && length.is_none_or(|length| length == range.last - range.first + 1) =>
            {
                Ok(BlobStream {
                    starts_at: from,
                    total: range.total.or(Some(range.last + 1)),
                    body: answer.body,
                })
            }
            // Bytes from elsewhere would be glued to those that are there already.
            _ => Err(answer.bad("sent another range of the blob than was asked for")),
        }
    }

    async fn list(&self, name: &RepositoryName, limits: &BrowseLimits) -> Result<TagList, UpstreamError> {
        let (mut pager, deadline) = (Pager::new(limits), Instant::now() + limits.time);
        while let Some(query) = pager.query() {
            let page = tokio::time::timeout_at(deadline, self.page(name, &query, pager.page_bytes()));
            match page.await {
                Ok(Ok((body, link))) => pager.take(&body, link.as_deref()),
                Ok(Err(error)) if pager.is_at_start() => return Err(error),
                Ok(Err(UpstreamError::TooLarge { .. })) => pager.clip(Clipped::Bytes { limit: limits.bytes }),
                Ok(Err(error)) => pager.fail(&error),
                Err(_) if pager.is_at_start() => {
                    return Err(UpstreamError::Timeout { host: self.host(), doing: "listing tags" });
                }
                Err(_) => pager.clip(Clipped::Time { limit_seconds: limits.time.as_secs() }),
            }
        }
        pager.finish().ok_or_else(|| super::client::bad(&self.0.base, "sent no list of tags"))
    }

    async fn page(
        &self,
        name: &RepositoryName,
        query: &str,
        max_bytes: usize,
    ) -> Result<(Bytes, Option<String>), UpstreamError> {
        let subject = Subject::List(name.clone());
        let target = self.0.base.at(&format!("/v2/{name}/tags/list?{query}"));
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
        let answer = self.get(&subject, name.as_str(), &target, &headers).await?;
        let links: Vec<_> =
            answer.headers.get_all("link").iter().filter_map(|link| link.to_str().ok()).collect();
        let link = (!links.is_empty()).then(|| links.join(", "));
        let body = answer.body.read("list of tags", max_bytes).await?;
        Ok((body, link))
    }

    /// Gets something, with whatever authorization the registry asks for, and judges the status of the answer.
    pub(super) async fn get(
        &self,
        subject: &Subject,
        what: &str,
        target: &Target,
        headers: &HeaderMap,
    ) -> Result<Answer, UpstreamError> {
        let now = self.0.parts.clock.now();
        if let Some(wait) = self.state().wait(now) {
            return Err(UpstreamError::RateLimited { host: self.host(), retry_after: Some(wait) });
        }
        let answer = self.authorized(subject, target, headers).await?;
        self.state().note_budget(&answer.headers);
        self.judge(what, answer).await
    }

    async fn authorized(
        &self,
        subject: &Subject,
        target: &Target,
        headers: &HeaderMap,
    ) -> Result<Answer, UpstreamError> {
        let Parts { client, authorizer, .. } = &self.0.parts;
        let mut used = authorizer.ahead(subject).await?;
        for _ in 0..MAX_ATTEMPTS {
            let authorization = used.as_ref().map(|used| &used.authorization);
            let answer = client.get(target, headers, authorization).await?;
            let rejected = match answer.status {
                StatusCode::UNAUTHORIZED => true,
                StatusCode::FORBIDDEN => authorizer.may_have_expired(used.as_ref()),
                _ => false,
            };
            // What a redirect led to has no claim to credentials.
            if !rejected || !answer.target.same_origin(&self.0.base) {
                return Ok(answer);
            }
            let asked = challenges(&answer.headers);
            used = Some(authorizer.renew(subject, &asked, used, answer).await?);
        }
        Err(super::client::bad(&self.0.base, "asks for other credentials again and again"))
    }

    async fn judge(&self, what: &str, answer: Answer) -> Result<Answer, UpstreamError> {
        let status = answer.status;
        let at_home = answer.target.same_origin(&self.0.base);
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            StatusCode::TOO_MANY_REQUESTS => Err(UpstreamError::RateLimited {
                host: self.host(),
                retry_after: retry_after(&answer.headers, self.0.parts.clock.now()),
            }),
            StatusCode::NOT_FOUND | StatusCode::GONE if at_home => {
                Err(UpstreamError::NotFound { host: self.host(), what: what.into() })
            }
            StatusCode::FORBIDDEN if at_home && self.0.parts.authorizer.is_anonymous() => {
                Err(UpstreamError::Unauthenticated { host: self.host() })
            }
            StatusCode::FORBIDDEN if at_home => Err(UpstreamError::Forbidden {
                host: self.host(),
                what: what.into(),
                source: answer.said().await,
            }),
            // Away from home the registry can lead us to a better place: a signed URL expires, a mirror fails.
            _ if status.is_server_error() || !at_home => Err(UpstreamError::Unavailable {
                host: answer.target.authority().into(),
                status: status.as_u16(),
            }),
            _ => Err(UpstreamError::BadAnswer { host: self.host(), source: answer.said().await }),
        }
    }

    pub(super) fn noted<T>(&self, outcome: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
        let now = self.0.parts.clock.now();
        match &outcome {
            Ok(_) => self.state().note_success(now),
            Err(error) => self.state().note_failure(error, now),
        }
        outcome
    }

    pub(super) fn base(&self) -> &Target {
        &self.0.base
    }

    pub(super) fn client(&self) -> &Client {
        &self.0.parts.client
    }

    pub(super) fn is_anonymous(&self) -> bool {
        self.0.parts.authorizer.is_anonymous()
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.parts.clock.now()
    }

    fn host(&self) -> Box<str> {
        self.0.parts.definition.host.as_str().into()
    }

    fn state(&self) -> MutexGuard<'_, Health> {
        self.0.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn range_from(from: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes={from}-")).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

/// What a document is: as the registry says, or, where it says nothing of use, as the document itself does.
fn media_type(stated: Option<MediaType>, bytes: &[u8]) -> Option<MediaType> {
    const SAYS_NOTHING: [&str; 3] = ["application/json", "application/octet-stream", "text/plain"];
    if let Some(stated) = stated.filter(|stated| !SAYS_NOTHING.contains(&stated.as_str())) {
        return Some(stated);
    }
    let document = pki::json::parse(bytes, MAX_DOCUMENT_BYTES).ok()?;
    document.get("mediaType")?.as_str()?.parse().ok()
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("definition", &self.0.parts.definition).finish_non_exhaustive()
    }
}
