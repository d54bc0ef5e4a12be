//! What is recorded of a device, and the rules of its certificates.
//!
//! A device holds one current certificate. At renewal the one before stays good until the new one has been seen in use,
//! so that a device which lost power between the two is not lost. Any other certificate of the device is superseded: who
//! still comes with one holds a copy of its key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use pki::wire::{Report, TokenId};
use pki::x509::{DeviceId, Fingerprint, Issued, Serial};
use serde::{Deserialize, Serialize};

use crate::catalog::access;
use crate::catalog::devices::group::Group;
use crate::catalog::devices::label::{LabelKey, LabelValue};

/// More renewals than this within the life of one certificate do not happen.
const MAX_SUPERSEDED: usize = 32;

/// What a device is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Waits for an operator to approve it.
    Pending,
    /// Enrolled and welcome.
    Active,
    /// Turned away until an operator restores it.
    Suspended,
    /// Turned away because somebody else seems to hold its key, until an operator decides.
    Quarantined,
    /// Turned away for good.
    Revoked,
}

impl Standing {
    /// Every standing, in the order of a device's life.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Active, Self::Suspended, Self::Quarantined, Self::Revoked];
}

impl std::str::FromStr for Standing {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let standing = Self::ALL.into_iter().find(|standing| standing.to_string() == text);
        standing.ok_or("must be pending, active, suspended, quarantined or revoked")
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Quarantined => "quarantined",
            Self::Revoked => "revoked",
        })
    }
}

/// One certificate of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its serial number.
    pub serial: Serial,
    /// The SHA-256 of its DER.
    pub fingerprint: Fingerprint,
    /// The SHA-256 of its public key.
    pub key: Fingerprint,
    /// Its first valid moment.
    pub not_before: Timestamp,
    /// Its last valid moment.
    pub not_after: Timestamp,
}

impl Certificate {
    /// The record of a certificate that was just issued for a key.
    pub fn of(issued: &Issued, key: Fingerprint) -> Self {
        Self {
            serial: issued.serial.clone(),
            fingerprint: issued.fingerprint(),
            key,
            not_before: issued.not_before,
            not_after: issued.not_after,
        }
    }
}

/// A certificate that must not be seen again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseded {
    /// Its serial number.
    pub serial: Serial,
    /// Its last valid moment; after that TLS refuses it.
    pub not_after: Timestamp,
    /// Whether it is of a device of this name that was deleted: no word about the one that has the name now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub former: bool,
}

/// An enrollment that was counted against its token and is not finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The token.
    pub token: TokenId,
    /// The key for which a certificate is wanted.
    pub key: Fingerprint,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub id: DeviceId,
    /// The groups that it is in.
    pub groups: BTreeSet<Group>,
    /// What operators tell it apart by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// What it is to us.
    pub standing: Standing,
    /// Why, where an operator or the facade gave a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it enrolled first.
    pub enrolled_at: Timestamp,
    /// Its current certificate; `None` while it is pending.
    pub certificate: Option<Certificate>,
    /// The one before, good until the current one has been used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Certificate>,
    /// When its current enrollment began; certificates from before are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_issued_before: Option<Timestamp>,
    /// Certificates that are refused though they have not expired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub superseded: Vec<Superseded>,
    /// The enrollment that waits for approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
}

/// Which of its certificates a device comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    /// The current one.
    Current,
    /// The one before, which is still good.
    Previous,
    /// None that it should still have.
    Superseded,
}

impl Device {
    /// A device that has nothing yet.
    pub(in crate::catalog) fn new(id: DeviceId, standing: Standing, now: Timestamp) -> Self {
        Self {
            id,
            groups: BTreeSet::new(),
            labels: BTreeMap::new(),
            standing,
            reason: None,
            enrolled_at: now,
            certificate: None,
            previous: None,
            not_issued_before: None,
            superseded: Vec::new(),
            claim: None,
        }
    }

    /// Which certificate has this serial number.
    pub fn presented(&self, serial: &Serial) -> Presented {
        let is = |certificate: &Option<Certificate>| {
            certificate.as_ref().is_some_and(|known| known.serial == *serial)
        };
        if is(&self.certificate) {
            Presented::Current
        } else if is(&self.previous) {
            Presented::Previous
        } else {
            Presented::Superseded
        }
    }

    /// What requests need to know of the device; its artifacts are filled in by whoever assigns them.
    pub fn access(&self) -> access::DeviceEntry {
        access::DeviceEntry {
            standing: match self.standing {
                Standing::Active => access::Standing::Active,
                Standing::Pending => access::Standing::Unknown,
                Standing::Suspended | Standing::Quarantined | Standing::Revoked => access::Standing::Revoked,
            },
            not_issued_before: self.not_issued_before,
            refused_serials: self.superseded.iter().map(|superseded| superseded.serial.clone()).collect(),
            artifacts: Vec::new(),
        }
    }

    /// The device enrolls (again): every certificate that it had is superseded at once.
    pub(super) fn enrolled(&mut self, certificate: Certificate, group: Option<Group>, now: Timestamp) {
        for old in [self.previous.take(), self.certificate.take()].into_iter().flatten() {
            self.supersede(old, now);
        }
        // A device of this name that was deleted left certificates that nobody lists any more.
        self.not_issued_before = Some(certificate.not_before);
        self.certificate = Some(certificate);
        self.groups.extend(group);
        self.claim = None;
    }

    /// The device renews with a certificate that it may present.
    pub(super) fn renewed(&mut self, presented: Presented, certificate: Certificate, now: Timestamp) {
        let replaced = self.certificate.replace(certificate);
        if presented == Presented::Current {
            let before = std::mem::replace(&mut self.previous, replaced);
            if let Some(old) = before {
                self.supersede(old, now);
            }
        } else if let Some(unused) = replaced {
            // The answer to the renewal before was lost, and the certificate in it never used.
            self.supersede(unused, now);
        }
    }

    /// The current certificate has been used: the one before is done with. Whether anything changed.
    pub(super) fn confirmed(&mut self, serial: &Serial, now: Timestamp) -> bool {
        if self.presented(serial) != Presented::Current {
            return false;
        }
        let Some(old) = self.previous.take() else {
            return false;
        };
        self.supersede(old, now);
        true
    }

    fn supersede(&mut self, old: Certificate, now: Timestamp) {
        // What has expired is refused without a list.
        self.superseded.retain(|superseded| superseded.not_after >= now);
        self.superseded.push(Superseded { serial: old.serial, not_after: old.not_after, former: false });
        self.shorten();
    }

    /// Every certificate of a device that is deleted, to be refused from whoever gets its name.
    pub(super) fn left_behind(self) -> Vec<Superseded> {
        let own = [self.previous, self.certificate].into_iter().flatten();
        let own = own.map(|old| Superseded { serial: old.serial, not_after: old.not_after, former: true });
        let earlier = self.superseded.into_iter().map(|earlier| Superseded { former: true, ..earlier });
        earlier.chain(own).collect()
    }

    /// Takes over what the one that had this name before has left behind. The start of validity alone does not tell
    /// two certificates of the same second apart.
    pub(super) fn succeed(&mut self, left_behind: &[Superseded]) {
        self.superseded.extend_from_slice(left_behind);
        self.shorten();
    }

    fn shorten(&mut self) {
        let excess = self.superseded.len().saturating_sub(MAX_SUPERSEDED);
        self.superseded.drain(..excess);
    }
}

/// The newest report of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// When it came.
    pub at: Timestamp,
    /// What it says.
    pub report: Report,
}
