//! One change at the operator door, from what is written down before it to what is remembered after it.
//!
//! A change is not its caller's to cut short: once it is begun it goes on to its end, and to its record in the audit log,
//! whatever becomes of the connection it came on.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use super::problem::Problem;
use crate::catalog::audit::{Begun, Happening, Record};
use crate::catalog::replies::{Claim, Found, MAX_ANSWER_BYTES, Outcome};
use crate::facade::Facade;
use crate::store::Batch;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY_BYTES: usize = 255;

/// The routes whose answers hold a secret, which is shown once and kept nowhere.
pub(super) const SECRET_ANSWERS: [(&str, &str); 2] =
    [("POST", "/api/v1/enrollment-tokens"), ("POST", "/api/v1/operator-tokens")];

/// A change that its caller may ask for.
pub(super) struct Change {
    pub(super) facade: Arc<Facade>,
    pub(super) happening: Happening,
    /// Whether the answer holds a secret.
    pub(super) secret: bool,
    pub(super) parts: Parts,
    pub(super) body: Bytes,
    pub(super) next: Next,
}

impl Change {
    /// Makes the change, unless its key says that it was made.
    pub(super) async fn make(self) -> Result<Response, Problem> {
        let changes = self.facade.changes.clone();
        let made = changes.spawn(self.make_here().in_current_span()).await;
        made.map_err(|error| Problem::internal(&error))?
    }

    async fn make_here(self) -> Result<Response, Problem> {
        let claim = match key(&self.parts.headers)? {
            None => None,
            Some(key) => match self.find(key).await? {
                Found::New(claim) => Some(claim),
                Found::Before(outcome) => return replay(outcome),
                Found::UnderWay => return Err(Problem::under_way()),
                Found::OtherRequest => return Err(Problem::key_reused()),
            },
        };
        let Self { facade, happening, secret, parts, body, next } = self;
        let mut batch = Batch::new();
        if let Some(claim) = &claim {
            claim.begin(&mut batch)?;
        }
        let begun = facade.audit.begin(happening, batch).await?;
        let response = next.run(Request::from_parts(parts, Body::from(body))).await;
        // What has been answered has been told, whatever becomes of us.
        facade.events.flush().await;
        conclude(&facade, begun, claim, secret, response).await
    }

    async fn find(&self, key: &str) -> Result<Found, Problem> {
        let path = self.parts.uri.path_and_query().map_or("", |path| path.as_str());
        let request = [self.parts.method.as_str().as_bytes(), path.as_bytes(), &self.body];
        let happening = &self.happening;
        Ok(self.facade.replies.find(&happening.who, key, &request, happening.at).await?)
    }
}

/// Writes down how a change ended, and what its key is answered from now on.
async fn conclude(
    facade: &Facade,
    begun: Begun,
    claim: Option<Claim>,
    secret: bool,
    response: Response,
) -> Result<Response, Problem> {
    let mut batch = Batch::new();
    let status = response.status();
    let (response, outcome) = match &claim {
        Some(_) if status.is_success() && !secret => remember(response).await?,
        _ => (response, Outcome::Secret {}),
    };
    if let Some(claim) = &claim {
        if status.is_success() {
            claim.finish(&mut batch, outcome)?;
        } else {
            // What was refused or failed may be tried again with the same key.
            claim.forget(&mut batch);
        }
    }
    // A request that was turned down for what it says has changed nothing; one that failed may have.
    if status.is_client_error() {
        facade.audit.withdraw(begun, batch).await?;
    } else {
        log(&facade.audit.finish(begun, status.as_u16(), batch).await?);
    }
    Ok(response)
}

/// A log server that gets this notices when the whole chain is written anew.
pub(super) fn log(record: &Record) {
    tracing::info!(audit.sequence = record.sequence, audit.hash = %record.hash, "audit");
}

/// Reads an answer, to be given again.
async fn remember(response: Response) -> Result<(Response, Outcome), Problem> {
    let longest = MAX_ANSWER_BYTES as u64;
    if response.body().size_hint().exact().is_none_or(|length| length > longest) {
        return Ok((response, Outcome::TooLong {}));
    }
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, MAX_ANSWER_BYTES).await;
    let bytes = bytes.map_err(|error| Problem::internal(&error))?;
    let body = String::from_utf8_lossy(&bytes).into_owned();
    let outcome = Outcome::Answered { status: parts.status.as_u16(), body };
    Ok((Response::from_parts(parts, Body::from(bytes)), outcome))
}

/// Answers a request that came before as it was answered then.
fn replay(outcome: Outcome) -> Result<Response, Problem> {
    match outcome {
        Outcome::Answered { status, body } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
            let mut response = (status, body).into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Outcome::Begun {} => Err(Problem::conflict(
            "the facade stopped in the middle of the request with this Idempotency-Key: look at what became of it \
             (facade audit list), then ask again with a new key",
        )),
        Outcome::Secret {} => Err(Problem::conflict(
            "the request with this Idempotency-Key was done; its answer held a secret, which is shown once and kept \
             nowhere: if it was lost, revoke what was made (facade operator token list, facade device tokens) and ask \
             again with a new key",
        )),
        Outcome::TooLong {} => Err(Problem::conflict(
            "the request with this Idempotency-Key was done; its answer was too long to be kept",
        )),
    }
}

/// The key of a request: a string of RFC 9651, with or without its quotes.
fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let wrong = || {
        Problem::malformed(format!("Idempotency-Key must be 1 to {MAX_KEY_BYTES} printable ASCII characters"))
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(IDEMPOTENCY_KEY) { Err(wrong()) } else { Ok(None) };
    };
    let text = value.to_str().map_err(|_| wrong())?.trim();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let printable = bare.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    if printable && (1..=MAX_KEY_BYTES).contains(&bare.len()) { Ok(Some(bare)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&'static str]) -> Result<Option<String>, Problem> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static(value));
        }
        key(&headers).map(|key| key.map(str::to_owned))
    }

    #[test]
    fn reads_a_key_with_and_without_quotes() {
        assert_eq!(read(&[]).unwrap(), None);
        for text in ["8e03978e-40d5", "\"8e03978e-40d5\""] {
            assert_eq!(read(&[text]).unwrap().as_deref(), Some("8e03978e-40d5"));
        }
    }

    #[test]
    fn rejects_keys_that_are_none_or_two() {
        for values in [&["\"\""][..], &[""], &["a b"], &["a\"b"], &["a", "a"]] {
            assert!(read(values).is_err(), "{values:?}");
        }
    }

    #[test]
    fn no_answer_with_a_secret_is_kept() {
        let document = serde_json::to_value(crate::api::openapi()).unwrap();
        let mut secret = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
                let Some(name) = schema["$ref"].as_str().and_then(|text| text.rsplit('/').next()) else {
                    continue;
                };
                let fields = document["components"]["schemas"][name]["properties"].as_object().unwrap();
                if ["token", "secret", "password", "key"].iter().any(|field| fields.contains_key(*field)) {
                    secret.push((method.to_uppercase(), path.clone()));
                }
            }
        }
        let known = SECRET_ANSWERS.map(|(method, path)| (method.to_owned(), path.to_owned()));
        secret.sort();
        assert_eq!(secret, known);
    }
}
