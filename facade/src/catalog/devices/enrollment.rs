//! From a token to a device: minting, counting a use, recording what was issued for it.

use jiff::Timestamp;
use pki::wire::{TokenId, TokenSecret};
use pki::x509::{CsrError, DeviceId, Fingerprint, Issued};
use thiserror::Error;

use super::token::{self, TokenRecord, TokenRequest, TokenState};
use super::{
    ATTEMPTS, Certificate, CertificateError, Claim, DEVICES, Device, Devices, DevicesError, Group,
    LEFT_BEHIND, MAX_USES, Standing, Superseded, TOKENS,
};
use crate::store::{Batch, Scan, StoreError, decode, get_json, scan_json};

/// Why a token does not admit a device. The operator reads the reason in the log; the caller learns only that it is
/// refused.
#[derive(Debug, Error)]
pub enum RedeemError {
    /// The database.
    #[error("cannot use the records of tokens")]
    Store(#[source] StoreError),
    /// No such token.
    #[error("there is no such enrollment token")]
    Unknown,
    /// The secret is wrong.
    #[error("the secret is not that of the enrollment token")]
    WrongSecret,
    /// All uses are gone.
    #[error("the enrollment token is used up")]
    UsedUp,
    /// Its time is over.
    #[error("the enrollment token expired at {0}")]
    Expired(Timestamp),
    /// An operator ended it.
    #[error("the enrollment token is revoked")]
    Revoked,
    /// The device it is for is turned away.
    #[error("device {0} is {1} and cannot enroll")]
    TurnedAway(DeviceId, Standing),
    /// The request asks for what this device cannot have.
    #[error("the request is not one for device {0}")]
    Request(DeviceId, #[source] CsrError),
    /// The name made of the key belongs to a device with another key.
    #[error("device {0} exists with another key; enroll it with a token of its own (--device)")]
    OtherKey(DeviceId),
}

/// A use of a token that was counted: the right to one certificate. Only [`Devices::redeem`] makes it.
#[derive(Debug)]
pub struct Grant {
    device: DeviceId,
    group: Option<Group>,
    token: TokenId,
    key: Fingerprint,
}

impl Grant {
    /// The device that the certificate is for.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The token.
    pub fn token(&self) -> TokenId {
        self.token
    }
}

/// What a token gives.
#[derive(Debug)]
pub enum Redeemed {
    /// A certificate may be issued.
    Granted(Grant),
    /// An operator has to approve the device first; it is to ask again.
    Waiting(DeviceId),
}

impl Devices {
    /// Makes an enrollment token; its secret exists only in what this returns.
    pub async fn mint(
        &self,
        request: TokenRequest,
        now: Timestamp,
    ) -> Result<(TokenRecord, TokenSecret), DevicesError> {
        if request.uses == 0 || request.uses > MAX_USES {
            return Err(DevicesError::Uses(request.uses));
        }
        if let Some(device) = request.device.as_ref().filter(|_| request.uses > 1) {
            return Err(DevicesError::UsesOfOne(device.clone()));
        }
        if request.expires_at <= now {
            return Err(DevicesError::Expiry(request.expires_at));
        }
        let secret = TokenSecret::generate().map_err(|_| DevicesError::NoRandomness)?;
        let record = TokenRecord {
            id: TokenId::generate().map_err(|_| DevicesError::NoRandomness)?,
            secret_hash: secret.hash(),
            device: request.device,
            group: request.group,
            created_at: now,
            created_by: request.created_by,
            expires_at: request.expires_at,
            uses_left: request.uses,
            keys: Vec::new(),
            approval: request.approval,
            revoked: false,
        };
        let key = record.id.to_string();
        let mut batch = Batch::new();
        batch.require_absent(TOKENS, &key);
        batch.put_json(TOKENS, &key, &record).map_err(DevicesError::Store)?;
        self.store.commit(batch).await.map_err(DevicesError::Store)?;
        Ok((record, secret))
    }

    /// The tokens after one, in the order of their ids.
    pub async fn tokens(
        &self,
        after: Option<TokenId>,
        limit: usize,
    ) -> Result<Vec<TokenRecord>, DevicesError> {
        let after = after.map(|id| id.to_string());
        let scan = Scan { prefix: "", after: after.as_deref(), limit };
        let records = scan_json(&*self.store, TOKENS, scan).await;
        Ok(records.map_err(DevicesError::Store)?.into_iter().map(|(_, record)| record).collect())
    }

    /// Ends a token; ending it again changes nothing.
    pub async fn revoke_token(&self, id: TokenId) -> Result<TokenRecord, DevicesError> {
        let key = id.to_string();
        self.change(TOKENS, &key, |found: Option<TokenRecord>| {
            let mut record = found.ok_or(DevicesError::NoSuchToken(id))?;
            record.revoked = true;
            Ok(record)
        })
        .await
    }

    /// Counts one use of a token for a key, durably, before anything is signed. A use is not lost on a request that
    /// `suits` refuses for the device that it would be granted to.
    pub async fn redeem(
        &self,
        id: TokenId,
        secret: &TokenSecret,
        key: Fingerprint,
        suits: impl Fn(&DeviceId) -> Result<(), CsrError>,
        now: Timestamp,
    ) -> Result<Redeemed, RedeemError> {
        for _ in 0..ATTEMPTS {
            match self.try_redeem(id, secret, key, &suits, now).await {
                Err(RedeemError::Store(StoreError::Conflict { .. })) => {}
                outcome => return outcome,
            }
        }
        self.try_redeem(id, secret, key, &suits, now).await
    }

    async fn try_redeem(
        &self,
        id: TokenId,
        secret: &TokenSecret,
        key: Fingerprint,
        suits: &impl Fn(&DeviceId) -> Result<(), CsrError>,
        now: Timestamp,
    ) -> Result<Redeemed, RedeemError> {
        let token_key = id.to_string();
        let Some(token_bytes) = self.store.get(TOKENS, &token_key).await? else {
            // As much work as for a token that exists.
            token::same(Fingerprint::of(token_key.as_bytes()), secret.hash());
            return Err(RedeemError::Unknown);
        };
        let mut token: TokenRecord = decode(TOKENS, &token_key, &token_bytes)?;
        if !token.has_secret(secret) {
            return Err(RedeemError::WrongSecret);
        }
        let device = token.device_for(key).ok_or(RedeemError::Unknown)?;
        suits(&device).map_err(|refused| RedeemError::Request(device.clone(), refused))?;
        let known: Option<Device> = get_json(&*self.store, DEVICES, device.as_str()).await?;
        let claim = Claim { token: id, key };
        let admission = admit(&token, &device, known.as_ref(), &claim, now)?;
        let mut batch = Batch::new();
        if admission != Admission::Counted {
            token.spend(key);
            batch.require_value(TOKENS, &token_key, token_bytes);
            batch.put_json(TOKENS, &token_key, &token)?;
        }
        let group = token.group;
        if admission == Admission::AfterApproval {
            let mut pending = Device::new(device.clone(), Standing::Pending, now);
            pending.claim = Some(claim);
            pending.groups.extend(group.clone());
            batch.require_absent(DEVICES, device.as_str());
            batch.put_json(DEVICES, device.as_str(), &pending)?;
        }
        self.store.commit(batch).await?;
        let waits =
            known.map_or(admission == Admission::AfterApproval, |known| known.standing == Standing::Pending);
        Ok(if waits {
            Redeemed::Waiting(device)
        } else {
            Redeemed::Granted(Grant { device, group, token: id, key })
        })
    }

    /// Records the certificate that was issued for a counted use.
    pub async fn enroll(
        &self,
        grant: Grant,
        issued: &Issued,
        now: Timestamp,
    ) -> Result<Device, CertificateError> {
        let id = &grant.device;
        let left_behind: Option<Vec<Superseded>> = get_json(&*self.store, LEFT_BEHIND, id.as_str()).await?;
        // A device that enrolls anew counts its reports from one.
        self.change_uncounted(id, |found: Option<Device>| {
            let mut device = found.unwrap_or_else(|| Device::new(id.clone(), Standing::Active, now));
            if device.certificate.is_none() {
                device.succeed(left_behind.as_deref().unwrap_or_default());
            }
            // It may have been turned away since the token was redeemed.
            if device.standing != Standing::Active {
                return Err(CertificateError::TurnedAway(id.clone(), device.standing));
            }
            device.enrolled(Certificate::of(issued, grant.key), grant.group.clone(), now);
            Ok(device)
        })
        .await
    }
}

/// How a token admits a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    /// For one of its uses.
    ForAUse,
    /// For one of its uses, once an operator has approved.
    AfterApproval,
    /// The use was counted when the device first asked.
    Counted,
}

/// The rules of enrollment, in one place.
fn admit(
    token: &TokenRecord,
    id: &DeviceId,
    known: Option<&Device>,
    claim: &Claim,
    now: Timestamp,
) -> Result<Admission, RedeemError> {
    let turned_away = |standing| Err(RedeemError::TurnedAway(id.clone(), standing));
    if let Some(device) = known {
        let repeats = device.claim.as_ref() == Some(claim) && !token.revoked;
        match device.standing {
            // It asks again with the same request, as RFC 7030 4.2.3 tells it to.
            Standing::Pending | Standing::Active if repeats => return Ok(Admission::Counted),
            Standing::Active => {}
            Standing::Pending | Standing::Suspended | Standing::Quarantined | Standing::Revoked => {
                return turned_away(device.standing);
            }
        }
        // Only a token that names the device may give it another key.
        let same_key = device.certificate.as_ref().is_some_and(|current| current.key == claim.key);
        if token.device.is_none() && !same_key {
            return Err(RedeemError::OtherKey(id.clone()));
        }
    }
    let ended = matches!(token.state(now), TokenState::Expired | TokenState::Revoked);
    if !ended && token.keys.contains(&claim.key) {
        // The power went before the answer was stored. The request proves the same key, so nobody else gains by it.
        return Ok(Admission::Counted);
    }
    match token.state(now) {
        // A device that is enrolled was approved once; an operator made the token for it.
        TokenState::Valid if token.approval && known.is_none() => Ok(Admission::AfterApproval),
        TokenState::Valid => Ok(Admission::ForAUse),
        TokenState::Used => Err(RedeemError::UsedUp),
        TokenState::Expired => Err(RedeemError::Expired(token.expires_at)),
        TokenState::Revoked => Err(RedeemError::Revoked),
    }
}

impl From<StoreError> for RedeemError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}
