//! Devices and the tokens by which they enroll.
//!
//! Every change is one batch that holds only if nothing changed in between; a lost race is run again. A use of a token
//! is stored before anything is signed for it, so that no crash and no race makes two certificates of one use. Whoever
//! changes a device gets it back as it is now, and must hand it to what answers requests from memory.

mod certificates;
mod enrollment;
mod group;
mod label;
mod membership;
mod record;
mod token;

use std::sync::Arc;

use jiff::Timestamp;
use pki::wire::TokenId;
use pki::x509::DeviceId;
use thiserror::Error;

pub use self::certificates::CertificateError;
pub use self::enrollment::{Grant, RedeemError, Redeemed};
pub use self::group::{Group, GroupError};
pub use self::label::{LabelError, LabelKey, LabelValue, is_value};
pub use self::record::{Certificate, Claim, Device, Presented, Received, Standing, Superseded};
pub use self::token::{TokenRecord, TokenRequest, TokenState};
use crate::store::{Batch, Scan, Store, StoreError, Table, decode, get_json, scan_json};

const DEVICES: Table = Table("devices");
const TOKENS: Table = Table("enrollment-tokens");
const REPORTS: Table = Table("device-reports");
/// The certificates that a deleted device has left behind, by its name.
const LEFT_BEHIND: Table = Table("devices-left-behind");

/// How often a change is tried again that somebody else overtook.
const ATTEMPTS: usize = 64;
const MAX_USES: u32 = 100_000;

/// Why an operator's wish about devices is not done.
#[derive(Debug, Error)]
pub enum DevicesError {
    /// The database.
    #[error("cannot use the records of devices")]
    Store(#[source] StoreError),
    /// No such device.
    #[error("there is no device {0}")]
    NoSuchDevice(DeviceId),
    /// No such token.
    #[error("there is no enrollment token {0}")]
    NoSuchToken(TokenId),
    /// The device's standing does not allow it.
    #[error("device {device} is {standing}, so it cannot be {wish}")]
    Standing {
        /// The device.
        device: DeviceId,
        /// What it is.
        standing: Standing,
        /// What was wished.
        wish: &'static str,
    },
    /// A number of uses that no token has.
    #[error("an enrollment token is good for 1 to {MAX_USES} uses, not {0}")]
    Uses(u32),
    /// A token that would be over at once.
    #[error("the enrollment token would have expired at {0} already")]
    Expiry(Timestamp),
    /// A token for one device with more than one use.
    #[error("an enrollment token for the one device {0} is good for one use")]
    UsesOfOne(DeviceId),
    /// More groups than one device needs.
    #[error("device {0} is in as many groups as a device can be")]
    TooManyGroups(DeviceId),
    /// More labels than one device needs.
    #[error("device {0} has as many labels as a device can have")]
    TooManyLabels(DeviceId),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for a token")]
    NoRandomness,
}

/// The records of devices and tokens.
#[derive(Clone)]
pub struct Devices {
    store: Arc<dyn Store>,
}

impl Devices {
    /// Over a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The newest report of a device.
    pub async fn report(&self, id: &DeviceId) -> Result<Option<Received>, DevicesError> {
        get_json(&*self.store, REPORTS, id.as_str()).await.map_err(DevicesError::Store)
    }

    /// One device.
    pub async fn get(&self, id: &DeviceId) -> Result<Option<Device>, DevicesError> {
        get_json(&*self.store, DEVICES, id.as_str()).await.map_err(DevicesError::Store)
    }

    /// The devices after one, in the order of their ids.
    pub async fn list(&self, after: Option<&DeviceId>, limit: usize) -> Result<Vec<Device>, DevicesError> {
        let scan = Scan { prefix: "", after: after.map(DeviceId::as_str), limit };
        let devices = scan_json(&*self.store, DEVICES, scan).await;
        Ok(devices.map_err(DevicesError::Store)?.into_iter().map(|(_, device)| device).collect())
    }

    /// Lets a waiting device have its certificate.
    pub async fn approve(&self, id: &DeviceId) -> Result<Device, DevicesError> {
        self.set_standing(id, "approved", Standing::Active, None, |standing| standing == Standing::Pending)
            .await
    }

    /// Turns a device away for good.
    pub async fn revoke(&self, id: &DeviceId, reason: Option<String>) -> Result<Device, DevicesError> {
        self.set_standing(id, "revoked", Standing::Revoked, reason, |_| true).await
    }

    /// Turns a device away until it is restored.
    pub async fn suspend(&self, id: &DeviceId, reason: Option<String>) -> Result<Device, DevicesError> {
        self.set_standing(id, "suspended", Standing::Suspended, reason, |standing| {
            matches!(standing, Standing::Active | Standing::Quarantined | Standing::Suspended)
        })
        .await
    }

    /// Takes back a device that was suspended or in quarantine. Where its counter stood is forgotten: an operator has
    /// decided which of the two is the device.
    pub async fn restore(&self, id: &DeviceId) -> Result<Device, DevicesError> {
        let allowed =
            |standing| matches!(standing, Standing::Suspended | Standing::Quarantined | Standing::Active);
        self.change_uncounted(id, |found: Option<Device>| {
            stand(id, found, "restored", Standing::Active, None, &allowed)
        })
        .await
    }

    /// Forgets a device. Its certificate is refused because nobody has that name any more.
    pub async fn delete(&self, id: &DeviceId) -> Result<(), DevicesError> {
        let device = self.get(id).await?.ok_or_else(|| DevicesError::NoSuchDevice(id.clone()))?;
        let mut batch = Batch::new();
        batch.put_json(LEFT_BEHIND, id.as_str(), &device.left_behind()).map_err(DevicesError::Store)?;
        batch.delete(DEVICES, id.as_str());
        batch.delete(REPORTS, id.as_str());
        self.store.commit(batch).await.map_err(DevicesError::Store)
    }

    async fn set_standing(
        &self,
        id: &DeviceId,
        wish: &'static str,
        standing: Standing,
        reason: Option<String>,
        allowed: impl Fn(Standing) -> bool,
    ) -> Result<Device, DevicesError> {
        self.change(DEVICES, id.as_str(), |found: Option<Device>| {
            stand(id, found, wish, standing, reason.clone(), &allowed)
        })
        .await
    }

    /// Changes one record: reads it, lets `edit` decide, and writes it if it is still as it was read.
    async fn change<T, E>(
        &self,
        table: Table,
        key: &str,
        edit: impl Fn(Option<T>) -> Result<T, E>,
    ) -> Result<T, E>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
        E: From<StoreError>,
    {
        self.change_and(table, key, edit, |_| ()).await
    }

    /// Changes a device, and forgets in the same batch where its reports stood: what comes next begins to count anew.
    async fn change_uncounted<E: From<StoreError>>(
        &self,
        id: &DeviceId,
        edit: impl Fn(Option<Device>) -> Result<Device, E>,
    ) -> Result<Device, E> {
        let uncount = |batch: &mut Batch| batch.delete(REPORTS, id.as_str());
        self.change_and(DEVICES, id.as_str(), edit, uncount).await
    }

    async fn change_and<T, E>(
        &self,
        table: Table,
        key: &str,
        edit: impl Fn(Option<T>) -> Result<T, E>,
        also: impl Fn(&mut Batch),
    ) -> Result<T, E>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
        E: From<StoreError>,
    {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let bytes = self.store.get(table, key).await?;
            let found = bytes.as_deref().map(|bytes| decode(table, key, bytes)).transpose()?;
            let record = edit(found)?;
            let mut batch = Batch::new();
            match bytes {
                Some(bytes) => batch.require_value(table, key, bytes),
                None => batch.require_absent(table, key),
            }
            batch.put_json(table, key, &record)?;
            also(&mut batch);
            match self.store.commit(batch).await {
                Ok(()) => return Ok(record),
                Err(StoreError::Conflict { .. }) if attempts < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The device in another standing, if its present one allows that.
fn stand(
    id: &DeviceId,
    found: Option<Device>,
    wish: &'static str,
    standing: Standing,
    reason: Option<String>,
    allowed: &impl Fn(Standing) -> bool,
) -> Result<Device, DevicesError> {
    let mut device = found.ok_or_else(|| DevicesError::NoSuchDevice(id.clone()))?;
    if !allowed(device.standing) {
        return Err(DevicesError::Standing { device: id.clone(), standing: device.standing, wish });
    }
    device.standing = standing;
    device.reason = reason;
    Ok(device)
}

impl From<StoreError> for DevicesError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

#[cfg(test)]
mod tests;
