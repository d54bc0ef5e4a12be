//! The bodies of the operator API, shared by the server and the command line.
//!
//! Names and digests travel as text here and become types at once on either side.

mod cache;
mod events;
mod keys;
mod operators;
mod policies;
mod pulls;
mod rollouts;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::cache::*;
pub use self::events::*;
pub use self::keys::*;
pub use self::operators::*;
pub use self::policies::*;
pub use self::pulls::*;
pub use self::rollouts::*;

/// One page of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in a stable order.
    pub items: Vec<T>,
    /// Give this as `after` to get the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A registry to connect.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectionRequest {
    /// The registry, as a host or a pasted browser URL.
    #[schema(example = "ghcr.io")]
    pub host: String,
    /// `static`, `anonymous`, `google`, `aws` or `azure`.
    #[schema(example = "static")]
    pub provider: String,
    /// User name (`static`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password or token (`static`). Sealed at once; never shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Provider configuration (`google`: the service account's JSON key; `aws`: the role's TOML or JSON;
    /// `azure`: the service principal's). Sealed at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// Speak plain HTTP; only to loopback and private addresses.
    #[serde(default)]
    pub plain_http: bool,
    /// The registry, its token server and its redirects may have loopback and private addresses.
    #[serde(default)]
    pub allow_private: bool,
    /// Another host that may receive the credentials, because it issues this registry's tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "auth.example.com")]
    pub token_host: Option<String>,
    /// The registry whose content this one has too: it serves pulls that that one cannot serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "docker.io")]
    pub mirror_of: Option<String>,
    /// What the mirror has before the names of repositories, for example the project of a Harbor proxy cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_below: Option<String>,
    /// Further certificate authorities, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Client certificate chain and private key, PEM. The key is sealed at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_pem: Option<String>,
}

/// A connected registry, without its secrets.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// The registry.
    pub host: String,
    /// How it is authenticated.
    pub provider: String,
    /// User name, service account or role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Plain HTTP.
    pub plain_http: bool,
    /// Private addresses allowed.
    pub allow_private: bool,
    /// The further host that may receive the credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_host: Option<String>,
    /// The registry that it is a mirror of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror_of: Option<String>,
    /// When it was connected (RFC 3339).
    pub created_at: String,
    /// When the connection last worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_at: Option<String>,
    /// When it last failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure_at: Option<String>,
    /// The last thing that went wrong, in one line; absent when the last use worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Pulls left in the registry's window, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_remaining: Option<u64>,
    /// Pulls allowed in the registry's window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<u64>,
    /// Until when the registry asked to be left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<String>,
    /// When it last served bytes that were not what they were named; stays until it is connected anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong_bytes_at: Option<String>,
    /// What they were and should have been.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong_bytes: Option<String>,
}

/// What a test of a connection found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConnectionCheck {
    /// Whether everything works.
    pub ok: bool,
    /// The verdict in one line.
    pub verdict: String,
    /// Each step, in order.
    pub steps: Vec<CheckStep>,
}

/// One step of a test.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckStep {
    /// What was tried: `name`, `tcp`, `tls`, `registry`, `credentials`, `permission`, `rate limit`.
    pub step: String,
    /// Whether it worked, or was not tried.
    pub ok: bool,
    /// It was not tried, because it does not apply.
    #[serde(default)]
    pub skipped: bool,
    /// What was seen.
    pub detail: String,
}

/// What a change of the sealing key did.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RekeyReport {
    /// The key that secrets are sealed under now (a name, not the key).
    pub key_id: String,
    /// The key before.
    pub previous_key_id: String,
    /// Connections whose secrets were sealed anew.
    pub connections: u64,
}

/// The tags of a repository.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Tags {
    /// The repository in full.
    pub repository: String,
    /// Tags, newest likely first (best effort: registries give no dates).
    pub tags: Vec<String>,
    /// Signatures, attestations and digests that are kept as tags.
    pub hidden: Vec<String>,
    /// Why the list is not complete; absent when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<String>,
}

/// Tags to import.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The repository, as any docker reference without tag.
    #[schema(example = "ghcr.io/owner/app")]
    pub repository: String,
    /// Tags, or digests: `v1`, `sha256:…`, `v1@sha256:…` (the digest counts).
    pub tags: Vec<String>,
    /// Fetch every byte into the cache now, and keep it there.
    #[serde(default)]
    pub pin: bool,
    /// Look everything up and check it, but sign and keep nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// The group the artifacts are meant for: what none of its devices can run is not signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_group: Option<String>,
    /// The device the artifacts are meant for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_device: Option<String>,
}

/// What became of a batch of tags.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImportReport {
    /// One result a tag or digest, in the order asked. Of a dry run: what would have become of it.
    pub results: Vec<ImportResult>,
}

/// What became of one tag.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImportResult {
    /// The tag, or digest, as it was asked for.
    pub tag: String,
    /// `imported`, `unchanged`, `moved`, `missing`, `denied`, `rate-limited`, `unsupported`, `no-platform`,
    /// `too-large` or `failed`.
    pub outcome: ImportOutcome,
    /// The artifact, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    /// What the tag pointed at when it was last imported, when that was something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<String>,
    /// The platforms it runs on.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Bytes of everything it consists of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether all its bytes are in the cache, and stay there.
    #[serde(default)]
    pub pinned: bool,
    /// Which of the devices it is meant for cannot run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Why it was not imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What became of one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImportOutcome {
    /// A new artifact was signed.
    Imported,
    /// It was imported before, at this digest.
    Unchanged,
    /// There is an artifact; the tag pointed at another one when it was last imported.
    Moved,
    /// It waits for the operators' signatures (`facade keys sign`); until then it does not exist.
    Pending,
    /// The registry has no such tag, or a part of it is gone.
    Missing,
    /// The registry refuses.
    Denied,
    /// The registry asks to wait.
    RateLimited,
    /// What it is cannot be delivered to devices.
    Unsupported,
    /// None of the devices that it is meant for can run it.
    NoPlatform,
    /// It is larger than devices take.
    TooLarge,
    /// The bytes that came are not the bytes that were named.
    Mismatch,
    /// Anything else.
    Failed,
}

impl ImportOutcome {
    /// Whether there is an artifact now, or will be once it is signed.
    pub fn is_success(self) -> bool {
        matches!(self, Self::Imported | Self::Unchanged | Self::Moved | Self::Pending)
    }
}

/// A signed artifact.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Artifact {
    /// `REPOSITORY@sha256:…`.
    pub name: String,
    /// Media type of its manifest or index.
    pub media_type: String,
    /// Bytes of its manifest or index.
    pub manifest_bytes: u64,
    /// Bytes of everything it consists of.
    pub size_bytes: u64,
    /// The platforms it runs on.
    pub platforms: Vec<String>,
    /// The tag it was imported from, or that was named beside its digest; empty when there was none.
    pub tag: String,
    /// When (RFC 3339).
    pub imported_at: String,
    /// By whom.
    pub imported_by: String,
    /// Whether its bytes are kept in the cache until it is unpinned.
    #[serde(default)]
    pub pinned: bool,
    /// How many devices say that they run it.
    #[serde(default)]
    pub running_on: u64,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// Its manifests, configurations and layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub content: Vec<Content>,
}

/// A part of an artifact.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Content {
    /// Its digest.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its length.
    pub size_bytes: u64,
}

/// What should go where.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignmentRequest {
    /// Artifacts, each `REPOSITORY@sha256:…` or an unambiguous prefix of a digest.
    pub artifacts: Vec<String>,
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// What a device or group should have.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Assignment {
    /// The artifact.
    pub artifact: String,
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When it was assigned (RFC 3339).
    pub assigned_at: String,
    /// By whom.
    pub assigned_by: String,
    /// The artifact of the same repository that was assigned before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
}

/// The assignments that a change made or removed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AssignmentReport {
    /// One a change.
    pub assignments: Vec<Assignment>,
    /// Devices that are to change.
    pub devices: u64,
    /// Devices that cannot run what they are to have. They keep what they run until it is taken back: what a device is to
    /// have is one set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// An enrollment token to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrollmentTokenRequest {
    /// The device that enrolls with it; otherwise the facade chooses ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The group its devices are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How long it is valid, in seconds.
    #[schema(example = 3600)]
    pub ttl_seconds: u64,
    /// How many devices can enroll with it.
    #[schema(example = 1)]
    pub uses: u32,
    /// Whether an operator approves each device before it gets its certificate.
    #[serde(default)]
    pub approve: bool,
}

/// A new enrollment token. This answer is the only place where it appears.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct NewEnrollmentToken {
    /// The token.
    pub token: String,
    /// Its id, for listing and revoking.
    pub id: String,
    /// When it ends (RFC 3339).
    pub expires_at: String,
    /// How many devices can enroll with it.
    pub uses: u32,
    /// What to run on the device.
    pub command: String,
}

/// An enrollment token, without its secret.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EnrollmentToken {
    /// Its id.
    pub id: String,
    /// The device it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The group it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When it ends (RFC 3339).
    pub expires_at: String,
    /// How many more devices can enroll with it.
    pub uses_left: u32,
    /// `valid`, `used`, `expired` or `revoked`.
    pub state: String,
    /// Whether an operator approves each device before it gets its certificate.
    #[serde(default)]
    pub approve: bool,
}

/// A device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Its id.
    pub id: String,
    /// `pending`, `active`, `suspended`, `quarantined` or `revoked`.
    pub standing: String,
    /// Why it has that standing, where there is a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The groups it is in.
    pub groups: Vec<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// When it enrolled (RFC 3339).
    pub enrolled_at: String,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<String>,
    /// When its certificate ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_not_after: Option<String>,
    /// What it should have.
    #[serde(default)]
    pub wanted: Vec<String>,
    /// What it says it has.
    #[serde(default)]
    pub running: Vec<String>,
    /// What it says it refused, and why.
    #[serde(default)]
    pub refused: Vec<Refusal>,
    /// What failed on it and was left again for what ran before; it is not tried again.
    #[serde(default)]
    pub rolled_back: Vec<Refusal>,
    /// What it says it is doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// What it says it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Its platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The version of its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
}

/// Something that a device refused, or that failed on it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// What: an artifact or a metadata role.
    pub what: String,
    /// A stable code.
    pub code: String,
    /// Why, in words.
    pub reason: String,
}

/// Whether all is well.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the facade.
    pub version: String,
    /// Connected registries.
    pub connections: u64,
    /// Signed artifacts that are not revoked.
    pub artifacts: u64,
    /// Devices by standing.
    pub devices: std::collections::BTreeMap<String, u64>,
    /// Devices that have what they should.
    pub devices_up_to_date: u64,
    /// When each role's metadata ends (RFC 3339).
    pub metadata_expires: std::collections::BTreeMap<String, String>,
    /// Seconds until each role's metadata ends; negative once it has.
    #[serde(default)]
    pub metadata_expires_in_seconds: std::collections::BTreeMap<String, i64>,
    /// Bytes in the cache.
    pub cache_bytes: u64,
    /// Things that need somebody's attention.
    pub warnings: Vec<String>,
}
