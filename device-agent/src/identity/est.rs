//! The three requests of EST (RFC 7030, as amended by RFC 8951) that a device makes.

use std::time::Duration;

use data_encoding::BASE64;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use pki::wire::EnrollmentToken;
use pki::x509::est;
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::IdentityError;
use crate::facade_client::{Ask, FacadeClient};

const CACERTS: &str = "/.well-known/est/cacerts";
const SIMPLE_ENROLL: &str = "/.well-known/est/simpleenroll";
const SIMPLE_REENROLL: &str = "/.well-known/est/simplereenroll";
/// A handful of certificates in base64.
const MAX_ANSWER_BYTES: u64 = 256 * 1024;
/// No facade may ask a device to wait longer before it tries again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Nor to try again at once.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// What came of a request for a certificate.
pub(super) enum Issued {
    /// These certificates, ours among them.
    Certificates(Vec<CertificateDer<'static>>),
    /// An operator must approve first; ask again after this time (RFC 7030, 4.2.3).
    Later(Duration),
}

/// `GET cacerts`.
pub(super) async fn ca_certificates(
    client: &FacadeClient,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let body = client
        .get(CACERTS, MAX_ANSWER_BYTES)
        .await?
        .ok_or(IdentityError::Answer("it has no CA certificates"))?;
    decode(&body)
}

/// `POST simpleenroll` with the token as name and password.
pub(super) async fn enroll(
    client: &FacadeClient,
    request: &[u8],
    token: &EnrollmentToken,
) -> Result<Issued, IdentityError> {
    let pair = Zeroizing::new(format!("{}:{}", token.id, *token.secret.expose()));
    let basic = Zeroizing::new(format!("Basic {}", BASE64.encode(pair.as_bytes())));
    let mut value =
        HeaderValue::from_str(&basic).map_err(|_| IdentityError::Answer("the token has a strange name"))?;
    value.set_sensitive(true);
    let ask = ask(SIMPLE_ENROLL, request).with(AUTHORIZATION, value);
    match send(client, &ask).await {
        Err(IdentityError::Client(error)) if error.is_disowned() || is_forbidden(&error) => {
            Err(IdentityError::TokenRefused(error))
        }
        other => other,
    }
}

/// `POST simplereenroll` over a session that shows the certificate in use.
pub(super) async fn reenroll(client: &FacadeClient, request: &[u8]) -> Result<Issued, IdentityError> {
    send(client, &ask(SIMPLE_REENROLL, request)).await
}

fn is_forbidden(error: &crate::facade_client::ClientError) -> bool {
    error.class() == crate::facade_client::Class::NotAllowed
}

fn ask(path: &str, request: &[u8]) -> Ask {
    Ask::post(path, est::encode(request)).with(CONTENT_TYPE, HeaderValue::from_static(est::PKCS10))
}

async fn send(client: &FacadeClient, ask: &Ask) -> Result<Issued, IdentityError> {
    let answer = client.ask(ask).await?;
    match answer.status() {
        StatusCode::OK => Ok(Issued::Certificates(decode(&answer.whole(MAX_ANSWER_BYTES).await?)?)),
        StatusCode::ACCEPTED => {
            let wait = wait(answer.headers()).ok_or(IdentityError::Answer("202 without Retry-After"))?;
            Ok(Issued::Later(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT)))
        }
        _ => Err(IdentityError::Answer("an unexpected status")),
    }
}

/// How long we are told to wait (RFC 9110 10.2.3): seconds, or a date, which is held against the date of the same answer
/// because the clock here may be wrong.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let told = text(RETRY_AFTER)?;
    // More than fits is as long as it gets.
    if !told.is_empty() && told.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(told.parse().map_or(LONGEST_WAIT, Duration::from_secs));
    }
    let date = |text: &str| jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let apart = date(told)?.duration_since(text(DATE).and_then(date)?);
    Some(Duration::try_from(apart).unwrap_or_default())
}

/// Certs-only PKCS#7 in base64.
fn decode(body: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let der = est::decode(body).map_err(|_| IdentityError::Answer("it is not base64"))?;
    let certificates =
        pki::x509::pkcs7::decode(&der).map_err(|_| IdentityError::Answer("it is not certs-only PKCS#7"))?;
    Ok(certificates.into_iter().map(CertificateDer::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_as_it_is_told_in_either_form_and_within_reason() {
        let now = "Fri, 20 Nov 2026 12:00:00 GMT";
        let told = |text: &'static str, date: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            headers.extend(date.map(|date| (DATE, HeaderValue::from_static(date))));
            wait(&headers)
        };
        assert_eq!(told("10", None), Some(Duration::from_secs(10)));
        assert_eq!(told("Fri, 20 Nov 2026 12:02:00 GMT", Some(now)), Some(Duration::from_secs(120)));
        // In the past, and beyond every number.
        assert_eq!(told("Thu, 19 Nov 2026 12:00:00 GMT", Some(now)), Some(Duration::ZERO));
        assert_eq!(told("99999999999999999999999", None), Some(LONGEST_WAIT));
        for text in ["-1", "soon", "", "1.5", "Fri, 20 Nov 2026 12:02:00 GMT"] {
            assert_eq!(told(text, None), None, "{text:?}");
        }
        assert_eq!(wait(&HeaderMap::new()), None);
    }
}
