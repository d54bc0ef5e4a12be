//! Enrollment over Secure Transport (RFC 7030 as amended by RFC 8951): how a device gets its certificate.
//!
//! Two operations need no certificate: `cacerts`, and `simpleenroll` with a token. What the device is called is decided
//! by the token's record and never by the request. A refused token is refused in the same words whatever the reason; the
//! reason is in the log. Every answer that changed a device carries it, for what answers requests from memory.

pub(crate) mod limit;

use std::net::IpAddr;
use std::sync::Arc;

use data_encoding::BASE64;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use pki::wire::{EnrollmentToken, TokenId, TokenSecret};
use pki::x509::{Authority, Csr, Identity, IssueError, Issued, TrustDomain, est, pkcs7};
use tracing::{error, info, warn};
use zeroize::Zeroizing;

use self::limit::Limit;
use super::alarm::Alarm;
use super::problem::chain;
use crate::catalog::devices::{CertificateError, Device, Devices, Grant, RedeemError, Redeemed};

/// Longest body that is read: a request of 8 KiB in base64, with room for line ends.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// How soon a device that waits for approval asks again.
const RETRY_AFTER_SECONDS: i64 = 10;
const MAX_AUTHORIZATION_BYTES: usize = 8 * 1024;
const TEXT: &str = "text/plain; charset=utf-8";

/// How certificates are granted.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The domain of device identities.
    pub trust_domain: TrustDomain,
    /// How long a certificate is valid.
    pub lifetime: SignedDuration,
    /// How long after its end a certificate can still renew itself.
    pub grace: SignedDuration,
}

/// An answer, ready for whatever speaks HTTP.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The media type of the body; without a body there is none.
    pub content_type: Option<&'static str>,
    /// Other headers.
    pub headers: Vec<(http::HeaderName, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The device that was changed, to be made known to what answers from memory.
    pub changed: Option<Box<Device>>,
    /// What operators must see of it.
    pub alarm: Option<Alarm>,
}

/// What came with a request, apart from who sent it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The `Content-Type` header.
    pub content_type: Option<&'a str>,
    /// The body, at most [`MAX_BODY_BYTES`].
    pub body: &'a [u8],
}

/// The operations.
pub struct Est {
    authority: Arc<Authority>,
    /// What `cacerts` says: roots, then issuing authorities, the present ones first.
    authorities: Vec<Vec<u8>>,
    devices: Devices,
    policy: Policy,
    limit: Limit,
}

impl Est {
    /// Over an authority and the records of devices.
    pub fn new(
        authority: Arc<Authority>,
        authorities: Vec<Vec<u8>>,
        devices: Devices,
        policy: Policy,
    ) -> Self {
        Self { authority, authorities, devices, policy, limit: Limit::default() }
    }

    /// `GET cacerts`: every root and issuing certificate that is in use.
    pub fn cacerts(&self) -> Answer {
        let message = pkcs7::encode(self.authorities.iter().map(Vec::as_slice));
        Answer::certificates(est::PKCS7, &message)
    }

    /// `GET csrattrs`: there is nothing that a request should contain (RFC 7030 4.5.2).
    pub fn csrattrs(&self) -> Answer {
        Answer {
            status: StatusCode::NO_CONTENT,
            content_type: None,
            headers: Vec::new(),
            body: Vec::new(),
            changed: None,
            alarm: None,
        }
    }

    /// `POST simpleenroll`: a certificate for whoever holds a token.
    pub async fn enroll(
        &self,
        address: IpAddr,
        authorization: Option<&str>,
        request: Request<'_>,
        now: Timestamp,
    ) -> Answer {
        if let Err(wait) = self.limit.take(address, now) {
            let seconds = wait.as_secs() + 1;
            return Answer::refusal(
                StatusCode::TOO_MANY_REQUESTS,
                "too many failed attempts from this address",
            )
            .with(http::header::RETRY_AFTER, seconds.to_string());
        }
        let answer = self.try_enroll(address, authorization, request, now).await;
        let answer = answer.unwrap_or_else(|refusal| refusal);
        if answer.status.is_success() {
            self.limit.give_back(address);
        }
        answer
    }

    async fn try_enroll(
        &self,
        address: IpAddr,
        authorization: Option<&str>,
        request: Request<'_>,
        now: Timestamp,
    ) -> Result<Answer, Answer> {
        let (id, secret) = credentials(authorization).ok_or_else(Answer::unauthorized)?;
        let csr = read_request(request)?;
        self.demand_valid_authority(now)?;
        let domain = &self.policy.trust_domain;
        let redeemed = self
            .devices
            .redeem(id, &secret, csr.key(), |device| csr.check_names(device, domain), now)
            .await
            .map_err(|refused| refused_token(id, address, &refused))?;
        match redeemed {
            Redeemed::Waiting(device) => {
                info!(device.id = %device, token.id = %id, %address, "device waits for approval");
                Ok(Answer::refusal(StatusCode::ACCEPTED, "an operator has to approve this device")
                    .with(http::header::RETRY_AFTER, RETRY_AFTER_SECONDS.to_string()))
            }
            Redeemed::Granted(grant) => self.issue_first(grant, &csr, now).await,
        }
    }

    async fn issue_first(&self, grant: Grant, csr: &Csr, now: Timestamp) -> Result<Answer, Answer> {
        let token = grant.token();
        let issued = self
            .authority
            .issue_device(csr, grant.device(), &self.policy.trust_domain, now, self.policy.lifetime)
            .map_err(|refused| not_issued(&refused))?;
        let device = self.devices.enroll(grant, &issued, now).await.map_err(refused_device)?;
        info!(device.id = %device.id, token.id = %token, serial = %issued.serial, "device enrolled");
        Ok(Answer::issued(&issued, device))
    }

    /// `POST simplereenroll`: the next certificate of a device, which TLS has proved to hold the key of this one.
    pub async fn reenroll(&self, identity: &Identity, request: Request<'_>, now: Timestamp) -> Answer {
        let answer = self.try_reenroll(identity, request, now).await;
        answer.unwrap_or_else(|refusal| refusal)
    }

    async fn try_reenroll(
        &self,
        identity: &Identity,
        request: Request<'_>,
        now: Timestamp,
    ) -> Result<Answer, Answer> {
        let id = identity.id();
        self.demand_within_grace(identity, now)?;
        let csr = read_request(request)?;
        let domain = &self.policy.trust_domain;
        csr.check_subject(id)
            .and_then(|()| csr.check_names(id, domain))
            .map_err(|refused| Answer::refusal(StatusCode::BAD_REQUEST, &refused.to_string()))?;
        self.demand_valid_authority(now)?;
        self.devices
            .check_certificate(id, identity.serial(), identity.not_before())
            .await
            .map_err(refused_device)?;
        let issued = self
            .authority
            .issue_device(&csr, id, domain, now, self.policy.lifetime)
            .map_err(|refused| not_issued(&refused))?;
        let device = self
            .devices
            .renew(id, identity.serial(), &issued, csr.key(), now)
            .await
            .map_err(refused_device)?;
        info!(device.id = %id, replaced = %identity.serial(), serial = %issued.serial, "certificate renewed");
        Ok(Answer::issued(&issued, device))
    }

    /// An expired certificate proves its key as well as ever; for how long that is enough is the operator's choice.
    fn demand_within_grace(&self, identity: &Identity, now: Timestamp) -> Result<(), Answer> {
        let end =
            identity.not_after().saturating_add(self.policy.grace).unwrap_or_else(|_| identity.not_after());
        if now < identity.not_before() {
            return Err(Answer::refusal(StatusCode::FORBIDDEN, "the certificate is not valid yet"));
        }
        if now > end {
            warn!(device.id = %identity.id(), not_after = %identity.not_after(), "renewal refused beyond grace");
            let text =
                "the certificate expired too long ago to be renewed; the device needs a new enrollment token";
            return Err(Answer::refusal(StatusCode::FORBIDDEN, text));
        }
        Ok(())
    }

    /// Before a use is counted: a facade whose clock is wrong must not spend tokens.
    fn demand_valid_authority(&self, now: Timestamp) -> Result<(), Answer> {
        if self.authority.is_valid_at(now) {
            return Ok(());
        }
        error!(%now, "the issuing authority is not valid now; is the clock right?");
        Err(Answer::unavailable())
    }
}

impl Answer {
    fn certificates(content_type: &'static str, message: &[u8]) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: Some(content_type),
            headers: Vec::new(),
            body: est::encode(message).into_bytes(),
            changed: None,
            alarm: None,
        }
    }

    /// Only the certificate that was issued (RFC 7030 4.2.3); the chain is what `cacerts` is for.
    fn issued(issued: &Issued, device: Device) -> Self {
        let message = pkcs7::encode([issued.der.as_slice()]);
        Self { changed: Some(Box::new(device)), ..Self::certificates(est::PKCS7_CERTS_ONLY, &message) }
    }

    /// RFC 7030 4.2.3: the reason as plain text.
    fn refusal(status: StatusCode, text: &str) -> Self {
        Self {
            status,
            content_type: Some(TEXT),
            headers: Vec::new(),
            body: format!("{text}\n").into_bytes(),
            changed: None,
            alarm: None,
        }
    }

    fn unauthorized() -> Self {
        let realm = "Basic realm=\"drayage enrollment\", charset=\"UTF-8\"";
        Self::refusal(StatusCode::UNAUTHORIZED, "the enrollment token is not accepted")
            .with(http::header::WWW_AUTHENTICATE, realm.to_owned())
    }

    fn unavailable() -> Self {
        Self::refusal(StatusCode::SERVICE_UNAVAILABLE, "no certificate can be issued now; try again later")
            .with(http::header::RETRY_AFTER, RETRY_AFTER_SECONDS.to_string())
    }

    fn with(mut self, name: http::HeaderName, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// Reads HTTP Basic (RFC 7617): token id and secret, or no user and the whole token as password.
fn credentials(authorization: Option<&str>) -> Option<(TokenId, TokenSecret)> {
    let header = authorization.filter(|header| header.len() <= MAX_AUTHORIZATION_BYTES)?;
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let bytes = Zeroizing::new(BASE64.decode(encoded.trim().as_bytes()).ok()?);
    let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    if user.is_empty() {
        let token: EnrollmentToken = password.parse().ok()?;
        return Some((token.id, token.secret));
    }
    Some((user.parse().ok()?, password.parse().ok()?))
}

fn read_request(request: Request<'_>) -> Result<Csr, Answer> {
    let media_type = request.content_type.and_then(|value| value.split(';').next());
    if !media_type.is_some_and(|found| found.trim().eq_ignore_ascii_case(est::PKCS10)) {
        let text = "the content type of a certificate request is application/pkcs10";
        return Err(Answer::refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    if request.body.len() > MAX_BODY_BYTES {
        return Err(Answer::refusal(StatusCode::PAYLOAD_TOO_LARGE, "the certificate request is too long"));
    }
    let bad_request = |text: &str| Answer::refusal(StatusCode::BAD_REQUEST, text);
    let der = est::decode(request.body).map_err(|_| {
        bad_request("the body is not base64 of a certificate request in DER (PEM has no place here)")
    })?;
    Csr::parse(&der).map_err(|refused| bad_request(&refused.to_string()))
}

fn refused_token(id: TokenId, address: IpAddr, refused: &RedeemError) -> Answer {
    match refused {
        RedeemError::Store(_) => {
            error!(token.id = %id, error = %chain(refused), "enrollment failed");
            Answer::unavailable()
        }
        // Whoever gets this far has the secret, and can mend the request.
        RedeemError::Request(_, csr) => Answer::refusal(StatusCode::BAD_REQUEST, &csr.to_string()),
        RedeemError::Unknown
        | RedeemError::WrongSecret
        | RedeemError::UsedUp
        | RedeemError::Expired(_)
        | RedeemError::Revoked
        | RedeemError::TurnedAway(..)
        | RedeemError::OtherKey(_) => {
            warn!(token.id = %id, %address, reason = %refused, "enrollment refused");
            Answer::unauthorized()
        }
    }
}

fn refused_device(refused: CertificateError) -> Answer {
    let reason = chain(&refused);
    let alarm = Alarm::of(&refused);
    let text = "this device is turned away; ask its operator";
    let forbidden = Answer { alarm, ..Answer::refusal(StatusCode::FORBIDDEN, text) };
    match refused {
        CertificateError::Store(_) => {
            error!(error = %reason, "certificate not issued");
            Answer::unavailable()
        }
        CertificateError::Quarantined(device) => {
            error!(device.id = %device.id, %reason, "possible copy of a device");
            Answer { changed: Some(device), ..forbidden }
        }
        CertificateError::NotEnrolled(id)
        | CertificateError::TurnedAway(id, _)
        | CertificateError::Former(id) => {
            warn!(device.id = %id, %reason, "certificate refused");
            forbidden
        }
    }
}

fn not_issued(refused: &IssueError) -> Answer {
    error!(error = %chain(refused), "certificate not issued");
    Answer::unavailable()
}

#[cfg(test)]
mod tests;
