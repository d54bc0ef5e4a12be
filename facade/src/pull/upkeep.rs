//! Upkeep of the cache: what it holds, and whether the disk still has what was put there.

use std::time::Duration;

use pki::digest::{Digest, Verifier};

use super::Puller;
use super::evict::Policy;
use crate::blobs::{BlobsError, Content, Held};

const READ_BYTES: usize = 256 * 1024;

/// What the cache takes and has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Whole blobs.
    pub blobs: u64,
    /// Their bytes.
    pub size_bytes: u64,
    /// Bytes of blobs that are not whole yet.
    pub partial_bytes: u64,
    /// Bytes that could still be stored.
    pub free_bytes: u64,
}

/// What a check of the whole cache found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blobs that are what they should be.
    pub good: usize,
    /// Blobs that were not, and are gone now; they are fetched again when somebody asks.
    pub bad: Vec<Digest>,
}

impl Puller {
    /// What the cache takes and has left.
    pub async fn usage(&self) -> Result<Usage, BlobsError> {
        let (total, partial) = (self.0.blobs.total(), self.0.blobs.list_partial().await?);
        Ok(Usage {
            blobs: total.blobs,
            size_bytes: total.size_bytes,
            partial_bytes: partial.iter().map(|blob| blob.size_bytes).sum(),
            free_bytes: self.0.blobs.free_bytes().await?,
        })
    }

    /// What the cache holds after some content, in the order of the digests.
    pub async fn page(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Held>, BlobsError> {
        self.0.blobs.page(after, limit).await
    }

    /// Deletes what no device may have, what is neither pinned nor in flight, and has not been asked for in `unused_for`;
    /// returns what is gone.
    pub async fn prune(&self, unused_for: Duration) -> Result<Vec<Held>, BlobsError> {
        let mut kept = (self.0.pins)();
        kept.extend(self.0.flights.digests());
        let policy = Policy {
            max_size_bytes: None,
            max_age: Some(unused_for),
            min_free_bytes: 0,
            ..self.0.settings.policy.clone()
        };
        let mut held = self.0.blobs.list().await?;
        let victims = policy.victims(&mut held, &kept, u64::MAX, 0, self.0.clock.now());
        let mut gone = Vec::new();
        for victim in victims {
            if self.0.delete(victim.digest).await? {
                self.0.metrics.evicted_bytes.inc_by(victim.size_bytes);
                gone.push(victim);
            }
        }
        Ok(gone)
    }

    /// Reads every byte of the cache and deletes what is no longer what it was.
    pub async fn verify(&self) -> Result<Checked, BlobsError> {
        let mut checked = Checked::default();
        for held in self.0.blobs.list().await? {
            let Some(content) = self.0.blobs.open(held.digest).await? else {
                continue;
            };
            if is_intact(&content, held.digest, held.size_bytes).await {
                checked.good += 1;
                continue;
            }
            tracing::error!(blob.digest = %held.digest, "cached blob is damaged; deleted");
            self.0.delete(held.digest).await?;
            checked.bad.push(held.digest);
        }
        Ok(checked)
    }
}

/// A blob that cannot be read is as good as damaged.
pub(super) async fn is_intact(content: &Content, digest: Digest, size_bytes: u64) -> bool {
    let mut verifier = Verifier::new(digest, size_bytes);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let Ok((read, count)) = content.read_at(verifier.received_bytes(), buffer).await else {
            return false;
        };
        if count == 0 {
            return verifier.finish().is_ok();
        }
        if verifier.update(read.get(..count).unwrap_or_default()).is_err() {
            return false;
        }
        buffer = read;
        // Hashing is long work for a thread that also serves.
        tokio::task::yield_now().await;
    }
}
