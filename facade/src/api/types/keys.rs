//! The bodies about keys and signatures.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The keys of one role.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RoleKeys {
    /// `images` or `director`.
    pub repository: String,
    /// `root`, `targets`, `snapshot`, `timestamp` or `publisher-NAME`.
    pub role: String,
    /// How many of the keys must sign.
    pub threshold: u64,
    /// The keys.
    pub keys: Vec<RoleKey>,
    /// When the role's metadata ends (RFC 3339); absent where each device has its own, signed when it asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// Seconds until then; negative once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<i64>,
}

/// One key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RoleKey {
    /// Its id.
    pub id: String,
    /// `here`, in the data directory, or `offline`, with an operator.
    pub place: String,
}

/// A role whose online keys are to be replaced.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateRequest {
    /// `images` or `director`.
    pub repository: String,
    /// `root`, `targets`, `snapshot` or `timestamp`.
    pub role: String,
}

/// A change of the keys of a role.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CeremonyRequest {
    /// `images` or `director`.
    pub repository: String,
    /// `root`, or `targets` of `images`.
    pub role: String,
    /// Public keys that are added, as TUF key objects.
    #[serde(default)]
    #[schema(value_type = Vec<Object>)]
    pub add: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Ids of keys that go.
    #[serde(default)]
    pub remove: Vec<String>,
    /// How many must sign; by default as many as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
}

/// What became of a change.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct KeysOutcome {
    /// `published`, or `pending` while it waits for signatures.
    pub outcome: String,
}

/// A publisher: who may sign for some repositories without the targets keys.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Delegation {
    /// Its name.
    pub name: String,
    /// The repositories that it may sign for, and nothing else.
    pub repositories: Vec<String>,
    /// The id of its key.
    pub key: String,
    /// Where the key is: `here`, in the data directory, or `offline`, with the publisher.
    pub place: String,
    /// When what it has signed ends (RFC 3339); absent before it has signed anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

/// A publisher that is to be let in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DelegationRequest {
    /// Its name; an operator token of this name with the role `pusher` may import for it.
    pub name: String,
    /// The repositories.
    pub repositories: Vec<String>,
    /// Its public key as a TUF key object, where it holds the key itself; otherwise the facade makes one and signs with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub key: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A repository that is behind what was published before.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RecoverRequest {
    /// `images` or `director`.
    pub repository: String,
    /// Instead of signing above what devices say they have seen: they lie, it was never published.
    #[serde(default)]
    pub dismiss: bool,
}

/// Metadata that waits for signatures.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SigningRequest {
    /// `images`, `director` or `publisher-NAME`.
    pub repository: String,
    /// Tells it from the requests before it; a changed request has another.
    pub id: String,
    /// When it was last changed (RFC 3339).
    pub made_at: String,
    /// Why, in words; what counts are the files.
    pub reasons: Vec<String>,
    /// The files to sign.
    pub files: Vec<SigningFile>,
    /// Every root of the repository, oldest first, for those who trust an older one.
    pub roots: Vec<String>,
    /// The top-level targets in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<String>,
}

/// One file that waits for signatures.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SigningFile {
    /// `root`, `targets`, a bin or `publisher-NAME`.
    pub role: String,
    /// The file with the signatures so far. Signed are the canonical bytes of its `signed` member.
    pub file: String,
    /// The file in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Who must sign.
    pub signers: Vec<Signers>,
}

/// How many of a group have signed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Signers {
    /// Which keys.
    pub keys: String,
    /// How many have signed.
    pub have: u64,
    /// How many must.
    pub need: u64,
}

/// Signatures for a request.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Signatures {
    /// The request.
    pub id: String,
    /// One signature a file and key.
    pub signatures: Vec<FileSignature>,
}

/// One signature.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSignature {
    /// The role of the file.
    pub role: String,
    /// The key.
    pub keyid: String,
    /// The signature, hexadecimal.
    pub sig: String,
}
