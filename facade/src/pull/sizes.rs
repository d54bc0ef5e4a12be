//! How long content really is, where a manifest says otherwise.
//!
//! Clients other than ours accept manifests with wrong sizes, so there are some. Such a manifest must spoil nothing for
//! those who have the right one: what is in the cache stays, and no registry is blamed for it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use pki::digest::{Digest, Hasher};

use super::source::Incoming;
use crate::upstream::UpstreamError;
use futures_util::StreamExt as _;

/// A fleet has few of these: starting over costs one more reading of each.
const MAX_KNOWN: usize = 1024;
/// The most that is read of a registry to find out who is wrong about a length.
pub(super) const MAX_EXAMINED_BYTES: u64 = 1024 * 1024 * 1024;

/// The lengths of contents that somebody was wrong about, by digest.
#[derive(Default)]
pub(super) struct Sizes(Mutex<HashMap<Digest, u64>>);

impl Sizes {
    /// The length of content, if it had to be found out.
    pub(super) fn known(&self, digest: Digest) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&digest).copied()
    }

    /// Remembers that this many bytes have that digest.
    pub(super) fn note(&self, digest: Digest, size_bytes: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(digest, size_bytes);
    }
}

/// Reads an answer of `total_bytes` to its end and says whether it is what the digest names, whatever its length.
pub(super) async fn agrees(
    digest: Digest,
    total_bytes: u64,
    mut incoming: Incoming,
    stall: std::time::Duration,
) -> Result<bool, UpstreamError> {
    let (mut hasher, mut read_bytes) = (Hasher::new(digest.algorithm()), 0_u64);
    while let Ok(Some(piece)) = tokio::time::timeout(stall, incoming.pieces.next()).await {
        let piece = piece?;
        read_bytes = read_bytes.saturating_add(piece.len() as u64);
        if read_bytes > total_bytes {
            return Ok(false);
        }
        hasher.update(&piece);
    }
    Ok(hasher.finish() == digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;

    #[tokio::test]
    async fn tells_a_wrong_length_from_wrong_bytes() {
        let bytes = Bytes::from_static(b"content");
        let agrees = async |digest, total| {
            agrees(digest, total, Incoming::whole(bytes.clone()), Duration::from_secs(1)).await.unwrap()
        };
        assert!(agrees(Digest::sha256(b"content"), 7).await);
        assert!(!agrees(Digest::sha256(b"content"), 6).await);
        assert!(!agrees(Digest::sha256(b"other"), 7).await);
    }

    #[test]
    fn stays_within_its_bound() {
        let sizes = Sizes::default();
        for number in 0..=MAX_KNOWN {
            sizes.note(Digest::sha256(&number.to_be_bytes()), 1);
        }
        assert!(sizes.0.lock().unwrap().len() <= MAX_KNOWN);
        assert_eq!(sizes.known(Digest::sha256(&MAX_KNOWN.to_be_bytes())), Some(1));
    }
}
