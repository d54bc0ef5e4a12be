//! Operator tokens and the audit log.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An operator token to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorTokenRequest {
    /// Its name, for the audit log and for revoking.
    #[schema(example = "ci")]
    pub name: String,
    /// `admin`, `operator`, `viewer` or `pusher`.
    #[schema(example = "viewer")]
    pub role: String,
    /// How long it is valid, in seconds.
    #[schema(example = 86_400)]
    pub ttl_seconds: u64,
}

/// A new operator token. This answer is the only place where it appears.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewOperatorToken {
    /// Its name.
    pub name: String,
    /// The token.
    pub token: String,
    /// What it allows.
    pub role: String,
    /// When it ends (RFC 3339).
    pub expires_at: String,
}

/// An operator token, without its secret.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OperatorToken {
    /// Its name.
    pub name: String,
    /// What it allows.
    pub role: String,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// By whom.
    pub created_by: String,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
}

/// One record of the audit log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Its place, from 1.
    pub sequence: u64,
    /// When (RFC 3339).
    pub at: String,
    /// The name of the token that was used; `device/ID` where a device did it.
    pub who: String,
    /// Method and route; or what a device did: `device quarantined`, `renewal refused`.
    pub action: String,
    /// To what.
    pub subject: String,
    /// The address that asked.
    pub from: String,
    /// The HTTP status of the answer.
    pub result: u16,
    /// The request's id, as it is in the log.
    pub request_id: String,
    /// The hash of the record before.
    pub previous: String,
    /// The hash of this record.
    pub hash: String,
}

/// What a verification of the audit log found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditVerification {
    /// Whether every record is as it was written.
    pub whole: bool,
    /// The place of the newest record, or of the first that is not as it was written.
    pub sequence: u64,
    /// The hash of the newest record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// What is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
