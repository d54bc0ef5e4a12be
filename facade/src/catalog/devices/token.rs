//! Enrollment tokens as the facade keeps them: everything but the secret.

use jiff::Timestamp;
use pki::wire::{TokenId, TokenSecret};
use pki::x509::{DeviceId, Fingerprint};
use serde::{Deserialize, Serialize};

use crate::catalog::devices::group::Group;

/// How a device id is made for a token that names none: this much of the key's hash, in base32.
const KEY_PART: usize = 12;
/// A device id has at most 63 bytes, and a hyphen stands between its parts.
const MAX_PREFIX: usize = 63 - KEY_PART - 1;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// The one device that may enroll with it; otherwise the facade names the devices.
    pub device: Option<DeviceId>,
    /// The group that its devices are put in.
    pub group: Option<Group>,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How many enrollments it is good for.
    pub uses: u32,
    /// Whether an operator approves each device before it gets its certificate.
    pub approval: bool,
    /// Who asked for it.
    pub created_by: String,
}

/// One enrollment token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its name.
    pub id: TokenId,
    /// The SHA-256 of its secret.
    pub(super) secret_hash: Fingerprint,
    /// The one device that may enroll with it.
    pub device: Option<DeviceId>,
    /// The group that its devices are put in.
    pub group: Option<Group>,
    /// When it was made.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// How many enrollments it is still good for.
    pub uses_left: u32,
    /// Whether each device waits for approval.
    pub approval: bool,
    /// Whether an operator ended it.
    pub revoked: bool,
    /// The keys that used it last: a device whose answer was lost asks again with the same key, and that is no second
    /// use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) keys: Vec<Fingerprint>,
}

/// Whether a token can still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// It can.
    Valid,
    /// All its uses are gone.
    Used,
    /// Its time is over.
    Expired,
    /// An operator ended it.
    Revoked,
}

impl std::fmt::Display for TokenState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::Used => "used",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        })
    }
}

/// Keys that are remembered of one token.
const MAX_KEYS: usize = 64;

impl TokenRecord {
    /// Takes one use for a key.
    pub(super) fn spend(&mut self, key: Fingerprint) {
        self.uses_left = self.uses_left.saturating_sub(1);
        if self.keys.len() >= MAX_KEYS {
            self.keys.remove(0);
        }
        self.keys.push(key);
    }

    /// Whether it can still be used.
    pub fn state(&self, now: Timestamp) -> TokenState {
        if self.revoked {
            TokenState::Revoked
        } else if now >= self.expires_at {
            TokenState::Expired
        } else if self.uses_left == 0 {
            TokenState::Used
        } else {
            TokenState::Valid
        }
    }

    pub(super) fn has_secret(&self, secret: &TokenSecret) -> bool {
        same(self.secret_hash, secret.hash())
    }

    /// The id of the device that enrolls a key with this token. It is the token's, or made of the key: a request never
    /// names its sender, and one key never becomes two devices.
    pub(super) fn device_for(&self, key: Fingerprint) -> Option<DeviceId> {
        if let Some(device) = &self.device {
            return Some(device.clone());
        }
        let hash = data_encoding::BASE32_NOPAD.encode(key.as_bytes()).to_ascii_lowercase();
        let prefix = self.group.as_ref().map_or("device", Group::as_str);
        let prefix = prefix.get(..MAX_PREFIX).unwrap_or(prefix);
        format!("{prefix}-{}", hash.get(..KEY_PART)?).parse().ok()
    }
}

/// Compares without telling by its time how much agrees.
pub(super) fn same(one: Fingerprint, other: Fingerprint) -> bool {
    let difference =
        one.as_bytes().iter().zip(other.as_bytes()).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}
