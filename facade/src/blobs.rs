//! Content on disk, by digest.
//!
//! [`Blobs`] keeps verified content; what is still arriving is a [`Staging`], a local file that no reader of the store
//! can see. Only a [`Verified`] can be committed and only [`Staging::finish`] makes one, so that unverified bytes cannot
//! enter the store. Nothing here knows devices, registries or policy.

#[cfg(test)]
pub(crate) mod conformance;
pub mod fs;
mod staging;

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use pki::digest::Digest;
use rustix::io::{Errno, ReadWriteFlags};
use thiserror::Error;

pub use staging::{AppendError, Staging, Verified};

/// What went wrong with content.
#[derive(Debug, Error)]
pub enum BlobsError {
    /// A file or directory could not be used.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// A task on the blocking pool died.
    #[error("the task that was to {action} died")]
    Task {
        /// What was being done.
        action: &'static str,
    },
}

impl BlobsError {
    /// Whether the disk is full.
    pub fn is_storage_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Task { .. } => false,
        }
    }
}

/// Content that the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which content.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// When it was last asked for, to within an hour.
    pub last_used: Timestamp,
}

/// Everything that is held, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many contents.
    pub blobs: u64,
    /// Their bytes.
    pub size_bytes: u64,
}

/// Verified content, by digest.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Opens content that the store holds whole.
    async fn open(&self, digest: Digest) -> Result<Option<Content>, BlobsError>;

    /// Begins, or resumes, receiving content of `size_bytes` bytes. At most one staging per digest may exist at a time.
    async fn stage(&self, digest: Digest, size_bytes: u64) -> Result<Staging, BlobsError>;

    /// Makes content part of the store, durably.
    async fn commit(&self, verified: Verified) -> Result<(), BlobsError>;

    /// Removes content; says whether there was any. Open readers keep what they have open.
    async fn delete(&self, digest: Digest) -> Result<bool, BlobsError>;

    /// All content, without reading any of it.
    async fn list(&self) -> Result<Vec<Held>, BlobsError>;

    /// How much content there is, as it was counted when it came and went.
    fn total(&self) -> Total;

    /// The contents after one, in the order of their digests' text, without reading any of them or looking at the rest.
    async fn page(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Held>, BlobsError>;

    /// Whether some content is partly there; looks no further than at names.
    fn is_partly_here(&self, digest: Digest) -> bool;

    /// Content that is partly there and not being received, with what is there of it.
    async fn list_partial(&self) -> Result<Vec<Held>, BlobsError>;

    /// Removes what is partly there of some content.
    async fn delete_partial(&self, digest: Digest) -> Result<(), BlobsError>;

    /// Bytes that could still be stored.
    async fn free_bytes(&self) -> Result<u64, BlobsError>;
}

/// Open content: readable at any offset by any number of readers, also while it still grows, also after its name is gone.
#[derive(Clone, Debug)]
pub struct Content {
    file: Arc<std::fs::File>,
}

impl Content {
    /// Takes an open file.
    pub(crate) fn new(file: Arc<std::fs::File>) -> Self {
        Self { file }
    }

    /// How many bytes there are now.
    pub fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fills `buffer` from `offset` on and returns it with the number of bytes read, fewer than its length only at the end.
    ///
    /// What the page cache has is copied on the spot; only a read that has to wait for the disk moves to the blocking
    /// pool, so that one cold page does not hold up every connection of the worker thread.
    pub async fn read_at(&self, offset: u64, mut buffer: Vec<u8>) -> io::Result<(Vec<u8>, usize)> {
        match self.read_cached(offset, &mut buffer) {
            Ok(count) if count == buffer.len() => return Ok((buffer, count)),
            Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let count = read_full_at(&file, offset, &mut buffer)?;
            Ok((buffer, count))
        });
        read.await.map_err(io::Error::other)?
    }

    fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut buffers = [io::IoSliceMut::new(buffer)];
        rustix::io::preadv2(&*self.file, &mut buffers, offset, ReadWriteFlags::NOWAIT)
    }
}

fn read_full_at(file: &std::fs::File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
