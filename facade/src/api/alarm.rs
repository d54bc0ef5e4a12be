//! What devices do that operators must see: a copy that shows itself, and somebody who was turned away and comes back.
//!
//! It stands in the audit log beside what operators do, because it is what they have to act on. A device that was turned
//! away knocks for as long as it lives; of one reason it is written down once a day.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use pki::x509::DeviceId;

use super::problem::chain;
use crate::catalog::audit::Happening;
use crate::catalog::devices::CertificateError;
use crate::facade::Facade;

/// How long one alarm about one device stands for all that are like it.
const QUIET: SignedDuration = SignedDuration::from_hours(24);
/// More devices than this are not told apart; then each alarm is written down.
const MAX_REMEMBERED: usize = 65_536;

/// Something that operators must see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The device.
    pub device: DeviceId,
    /// What happened.
    pub event: Event,
    /// Why, for people.
    pub reason: String,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Two seem to have the identity of the device; it is in quarantine from now on.
    Quarantined,
    /// A device that was turned away, or a former holder of its name, wanted a new certificate.
    RenewalRefused,
}

impl Event {
    fn as_str(self) -> &'static str {
        match self {
            Self::Quarantined => "device quarantined",
            Self::RenewalRefused => "renewal refused",
        }
    }
}

impl Alarm {
    /// The alarm in a certificate that was refused, if there is one in it.
    pub(super) fn of(refused: &CertificateError) -> Option<Self> {
        let (device, event) = match refused {
            CertificateError::Quarantined(device) => (&device.id, Event::Quarantined),
            CertificateError::TurnedAway(id, _) | CertificateError::Former(id) => (id, Event::RenewalRefused),
            CertificateError::Store(_) | CertificateError::NotEnrolled(_) => return None,
        };
        Some(Self { device: device.clone(), event, reason: refused.to_string() })
    }
}

/// When each alarm was last raised.
#[derive(Debug, Default)]
pub(crate) struct Raised(Mutex<HashMap<(DeviceId, Event), Timestamp>>);

impl Raised {
    /// Whether the alarm is to be written down: it is new, or it was last written down long ago.
    fn is_news(&self, alarm: &Alarm, now: Timestamp) -> bool {
        if alarm.event == Event::Quarantined {
            // An operator has restored the device since the last time.
            return true;
        }
        let mut raised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        raised.retain(|_, at| now.duration_since(*at).abs() < QUIET);
        let key = (alarm.device.clone(), alarm.event);
        if raised.contains_key(&key) {
            return false;
        }
        if raised.len() < MAX_REMEMBERED {
            raised.insert(key, now);
        }
        true
    }
}

impl Facade {
    /// Writes an alarm down where operators look.
    pub(super) async fn raise(&self, alarm: Alarm, from: IpAddr, request_id: &str) {
        let now = self.clock.now();
        if !self.raised.is_news(&alarm, now) {
            return;
        }
        let happening = Happening {
            at: now,
            who: format!("device/{}", alarm.device),
            action: alarm.event.as_str().to_owned(),
            subject: format!("devices/{}: {}", alarm.device, alarm.reason),
            from: from.to_string(),
            result: 403,
            request_id: request_id.to_owned(),
        };
        let (device, event) = (&alarm.device, alarm.event.as_str());
        match self.audit.append(happening).await {
            Ok(record) => {
                let (sequence, hash) = (record.sequence, record.hash);
                tracing::warn!(device.id = %device, event, audit.sequence = sequence, audit.hash = hash, "alarm");
            }
            Err(error) => {
                // What raised the alarm is refused all the same.
                tracing::error!(device.id = %device, event, error = %chain(&error), "alarm not recorded");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alarm(device: &str, event: Event) -> Alarm {
        Alarm { device: device.parse().unwrap(), event, reason: String::new() }
    }

    #[test]
    fn a_device_that_keeps_knocking_is_news_once_a_day_and_a_quarantine_always() {
        let (raised, now) = (Raised::default(), "2026-11-20T12:00:00Z".parse().unwrap());
        let knock = alarm("pump-7", Event::RenewalRefused);
        assert!(raised.is_news(&knock, now));
        for _ in 0..3 {
            assert!(!raised.is_news(&knock, now + SignedDuration::from_hours(23)));
        }
        assert!(raised.is_news(&alarm("pump-8", Event::RenewalRefused), now));
        assert!(raised.is_news(&knock, now + QUIET));
        for _ in 0..2 {
            assert!(raised.is_news(&alarm("pump-7", Event::Quarantined), now));
        }
    }
}
