//! A disk that keeps what it is given only when a test lets it, or not at all, and is as full as a test wants.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use facade::blobs::fs::FsBlobs;
use facade::blobs::{Blobs, BlobsError, Content, Held, Staging, Total, Verified};
use pki::digest::Digest;
use tokio::sync::Semaphore;

/// What happens to content that is to be kept.
#[derive(Default)]
pub(crate) struct Disk {
    /// It waits for a permit.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// It is not kept: the disk fails.
    pub(crate) fails: bool,
    /// What is free, if that is not to be what really is.
    pub(crate) free_bytes: Option<u64>,
}

pub(crate) struct Disks {
    pub(crate) files: FsBlobs,
    pub(crate) disk: Arc<Mutex<Disk>>,
}

#[async_trait]
impl Blobs for Disks {
    async fn open(&self, digest: Digest) -> Result<Option<Content>, BlobsError> {
        self.files.open(digest).await
    }

    async fn stage(&self, digest: Digest, size_bytes: u64) -> Result<Staging, BlobsError> {
        self.files.stage(digest, size_bytes).await
    }

    async fn commit(&self, verified: Verified) -> Result<(), BlobsError> {
        let (gate, fails) = {
            let disk = self.disk.lock().unwrap();
            (disk.gate.clone(), disk.fails)
        };
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        if fails {
            return Err(BlobsError::Task { action: "commit content" });
        }
        self.files.commit(verified).await
    }

    async fn delete(&self, digest: Digest) -> Result<bool, BlobsError> {
        self.files.delete(digest).await
    }

    async fn list(&self) -> Result<Vec<Held>, BlobsError> {
        self.files.list().await
    }

    fn total(&self) -> Total {
        self.files.total()
    }

    async fn page(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Held>, BlobsError> {
        self.files.page(after, limit).await
    }

    fn is_partly_here(&self, digest: Digest) -> bool {
        self.files.is_partly_here(digest)
    }

    async fn list_partial(&self) -> Result<Vec<Held>, BlobsError> {
        self.files.list_partial().await
    }

    async fn delete_partial(&self, digest: Digest) -> Result<(), BlobsError> {
        self.files.delete_partial(digest).await
    }

    async fn free_bytes(&self) -> Result<u64, BlobsError> {
        let said = self.disk.lock().unwrap().free_bytes;
        match said {
            Some(free_bytes) => Ok(free_bytes),
            None => self.files.free_bytes().await,
        }
    }
}
