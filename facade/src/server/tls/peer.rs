//! Who is at the other end, as the TLS layer established it.
//!
//! Only [`super`] can make a [`Device`]: a handler that needs one cannot be written without a verified session.

use std::sync::Arc;

use jiff::Timestamp;
use pki::x509::{DeviceId, Identity};

/// The other end of a connection on the device door.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A device that proved possession of the key of a certificate of ours.
    Device(Device),
    /// Somebody without a certificate: may enroll, and nothing else.
    Anonymous,
}

impl Peer {
    /// The device, if it is one.
    pub fn device(&self) -> Option<&Device> {
        match self {
            Self::Device(device) => Some(device),
            Self::Anonymous => None,
        }
    }
}

/// A device, by its verified certificate. That chain and signature are right does not mean that the certificate is still
/// valid: [`Device::validity_at`] and the standing of the device are judged on every request.
#[derive(Clone, Debug)]
pub struct Device(Arc<Identity>);

/// Where a moment lies within the life of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Its life has not begun.
    NotYet,
    /// It is valid.
    Valid,
    /// Its life is over; good for re-enrollment only, while the grace period lasts.
    Expired,
}

impl Device {
    pub(super) fn verified(identity: Arc<Identity>) -> Self {
        Self(identity)
    }

    /// Which device it is.
    pub fn id(&self) -> &DeviceId {
        self.0.id()
    }

    /// What else its certificate says.
    pub fn identity(&self) -> &Identity {
        &self.0
    }

    /// Where `now` lies within the life of its certificate.
    pub fn validity_at(&self, now: Timestamp) -> Validity {
        if now < self.0.not_before() {
            Validity::NotYet
        } else if now > self.0.not_after() {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }
}
