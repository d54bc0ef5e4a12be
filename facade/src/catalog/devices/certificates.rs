//! Which of its certificates a device may come with, and how two devices with one identity show.
//!
//! A copied identity cannot stay hidden: both copies renew, and one of them then comes with a certificate that was
//! replaced; both report, and their counters cannot both grow by one. Either puts the device in quarantine.

use jiff::Timestamp;
use pki::wire::{Report, ReportAnswer};
use pki::x509::{DeviceId, Fingerprint, Issued, Serial};
use thiserror::Error;

use super::{Certificate, DEVICES, Device, Devices, Presented, REPORTS, Received, Standing};
use crate::store::{StoreError, get_json};

/// How often a device reports when nothing happens.
const REPORT_EVERY_SECONDS: u32 = 300;

/// Why a certificate does not let its bearer go on.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The database.
    #[error("cannot use the records of devices")]
    Store(#[source] StoreError),
    /// Not enrolled here, or deleted.
    #[error("device {0} is not enrolled")]
    NotEnrolled(DeviceId),
    /// The device is turned away.
    #[error("device {0} is {1}")]
    TurnedAway(DeviceId, Standing),
    /// The device has enrolled anew since.
    #[error("the certificate is of a former enrollment of device {0}")]
    Former(DeviceId),
    /// Two seem to hold the device's identity: it is in quarantine from now on.
    #[error("device {} is in quarantine: {}", .0.id, .0.reason.as_deref().unwrap_or_default())]
    Quarantined(Box<Device>),
}

impl From<StoreError> for CertificateError {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

/// Why a report is not recorded.
#[derive(Debug, Error)]
enum Fork {
    #[error("cannot use the records of reports")]
    Store(#[source] StoreError),
    #[error(
        "a report came with counter {came} where {expected} was due ({}): either a copy of the device exists, or the \
         device was restored from a backup",
        if *.same_boot { "same boot" } else { "another boot" }
    )]
    Counter { came: u64, expected: u64, same_boot: bool },
}

impl From<StoreError> for Fork {
    fn from(source: StoreError) -> Self {
        Self::Store(source)
    }
}

impl Devices {
    /// Agrees if the device may renew with this certificate; puts it in quarantine if the certificate is superseded.
    pub async fn check_certificate(
        &self,
        id: &DeviceId,
        serial: &Serial,
        not_before: Timestamp,
    ) -> Result<Device, CertificateError> {
        let device = self.standing_in_good(id).await?;
        // Whoever held this name before it was enrolled anew must not be able to put its new holder in quarantine.
        let left_behind = device.superseded.iter().any(|old| old.former && old.serial == *serial);
        if left_behind || device.not_issued_before.is_some_and(|earliest| not_before < earliest) {
            return Err(CertificateError::Former(id.clone()));
        }
        match device.presented(serial) {
            Presented::Superseded => {
                let reason = format!(
                    "certificate {serial} was used after it had been replaced: either a copy of the device exists, or \
                     the device (or this facade) was restored from a backup"
                );
                Err(self.quarantine(id, reason).await)
            }
            Presented::Current | Presented::Previous => Ok(device),
        }
    }

    /// Records a renewal.
    pub async fn renew(
        &self,
        id: &DeviceId,
        serial: &Serial,
        issued: &Issued,
        key: Fingerprint,
        now: Timestamp,
    ) -> Result<Device, CertificateError> {
        self.change(DEVICES, id.as_str(), |found: Option<Device>| {
            let mut device = in_good_standing(id, found)?;
            match device.presented(serial) {
                // Another renewal with the same certificate was faster; who of the two is right shows next time.
                Presented::Superseded => {
                    return Err(CertificateError::TurnedAway(id.clone(), device.standing));
                }
                presented @ (Presented::Current | Presented::Previous) => {
                    device.renewed(presented, Certificate::of(issued, key), now);
                }
            }
            Ok(device)
        })
        .await
    }

    /// Takes note that a certificate was used; the device, if that ended the life of the one before.
    pub async fn confirm(
        &self,
        id: &DeviceId,
        serial: &Serial,
        now: Timestamp,
    ) -> Result<Option<Device>, CertificateError> {
        let mut device = self.standing_in_good(id).await?;
        if !device.confirmed(serial, now) {
            return Ok(None);
        }
        let changed = self.change(DEVICES, id.as_str(), |found: Option<Device>| {
            let mut device = in_good_standing(id, found)?;
            device.confirmed(serial, now);
            Ok::<_, CertificateError>(device)
        });
        changed.await.map(Some)
    }

    /// Records a report. A counter that does not grow is the mark of a second device with the same identity.
    pub async fn record_report(
        &self,
        report: Report,
        now: Timestamp,
    ) -> Result<ReportAnswer, CertificateError> {
        let id = report.device.clone();
        self.standing_in_good(&id).await?;
        let next_counter = report.counter.saturating_add(1);
        let received = Received { at: now, report };
        let outcome = self
            .change(REPORTS, id.as_str(), |found: Option<Received>| match found {
                // The answer was lost and the device says the same again.
                Some(last) if last.report == received.report => Ok(received.clone()),
                Some(last) if received.report.counter <= last.report.counter => Err(Fork::Counter {
                    came: received.report.counter,
                    expected: last.report.counter.saturating_add(1),
                    same_boot: received.report.boot_id == last.report.boot_id,
                }),
                Some(_) | None => Ok(received.clone()),
            })
            .await;
        match outcome {
            Ok(_) => Ok(ReportAnswer { next_counter, report_every_seconds: REPORT_EVERY_SECONDS }),
            Err(Fork::Store(source)) => Err(CertificateError::Store(source)),
            Err(fork @ Fork::Counter { .. }) => Err(self.quarantine(&id, fork.to_string()).await),
        }
    }

    async fn standing_in_good(&self, id: &DeviceId) -> Result<Device, CertificateError> {
        let found = get_json(&*self.store, DEVICES, id.as_str()).await;
        in_good_standing(id, found.map_err(CertificateError::Store)?)
    }

    async fn quarantine(&self, id: &DeviceId, reason: String) -> CertificateError {
        let changed = self
            .change(DEVICES, id.as_str(), |found: Option<Device>| {
                let mut device = in_good_standing(id, found)?;
                device.standing = Standing::Quarantined;
                device.reason = Some(reason.clone());
                Ok::<_, CertificateError>(device)
            })
            .await;
        match changed {
            Ok(device) => CertificateError::Quarantined(Box::new(device)),
            Err(error) => error,
        }
    }
}

fn in_good_standing(id: &DeviceId, found: Option<Device>) -> Result<Device, CertificateError> {
    match found {
        None => Err(CertificateError::NotEnrolled(id.clone())),
        Some(device) if device.standing != Standing::Active => {
            Err(CertificateError::TurnedAway(id.clone(), device.standing))
        }
        Some(device) => Ok(device),
    }
}
