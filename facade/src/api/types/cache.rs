//! The bodies about the cache.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the cache takes and has left.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CacheUsage {
    /// Whole blobs.
    pub blobs: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// Bytes of blobs that are not whole yet.
    pub partial_bytes: u64,
    /// Bytes that could still be stored.
    pub free_bytes: u64,
}

/// One blob of the cache.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CachedBlob {
    /// Its digest.
    pub digest: String,
    /// Its length.
    pub size_bytes: u64,
    /// When it was last asked for, to within an hour (RFC 3339).
    pub last_used: String,
}

/// What to remove from the cache. What a device may have, is pinned or on its way always stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Only what nobody has asked for in so many seconds.
    #[serde(default)]
    pub unused_seconds: u64,
}

/// What was removed from the cache.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

/// What a check of every byte of the cache found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CacheChecked {
    /// Blobs that are what they should be.
    pub good: u64,
    /// Digests of those that were not; they are gone and come again when a device asks.
    pub damaged: Vec<String>,
}
