//! Content that is still arriving: a local file, hashed as it grows.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pki::digest::{Digest, Mismatch, Verifier};
use thiserror::Error;

use super::{BlobsError, Content};

const REHASH_BYTES: usize = 256 * 1024;

/// Content that is still arriving. Dropping it keeps what is there, to be resumed.
pub struct Staging {
    digest: Digest,
    size_bytes: u64,
    path: PathBuf,
    file: Arc<File>,
    verifier: Verifier,
    /// How many bytes were there already, from before this process or this attempt.
    resumed_bytes: u64,
}

/// Content that arrived whole and is what its digest says.
pub struct Verified {
    pub(super) digest: Digest,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
}

/// Why bytes could not be added.
#[derive(Debug, Error)]
pub enum AppendError {
    /// They are not part of the promised content.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// They could not be written.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
}

impl Staging {
    /// Takes up the file at `path`; whatever is in it counts as the beginning of the content. Reads all of that.
    pub(super) fn resume(
        path: PathBuf,
        file: File,
        digest: Digest,
        size_bytes: u64,
    ) -> Result<Self, BlobsError> {
        let mut staging = Self {
            digest,
            size_bytes,
            path,
            file: Arc::new(file),
            verifier: Verifier::new(digest, size_bytes),
            resumed_bytes: 0,
        };
        let there = staging.file.metadata().map_err(|source| staging.io("inspect", source))?.len();
        if there > size_bytes || staging.rehash(there).is_err() {
            staging.restart()?;
        }
        staging.resumed_bytes = staging.verifier.received_bytes();
        Ok(staging)
    }

    fn rehash(&mut self, there: u64) -> Result<(), AppendError> {
        let mut buffer = vec![0; REHASH_BYTES];
        while self.verifier.received_bytes() < there {
            let offset = self.verifier.received_bytes();
            let count = self.file.read_at(&mut buffer, offset).map_err(|source| self.io("read", source))?;
            let bytes = buffer.get(..count).filter(|bytes| !bytes.is_empty());
            let bytes = bytes.ok_or_else(|| self.io("read", io::ErrorKind::UnexpectedEof.into()))?;
            self.verifier.update(bytes)?;
        }
        Ok(())
    }

    /// Throws away what is there and begins anew. The old file keeps its readers: it is replaced, not truncated.
    pub fn restart(&mut self) -> Result<(), BlobsError> {
        remove_if_there(&self.path).map_err(|source| self.io("remove", source))?;
        self.file = Arc::new(create(&self.path).map_err(|source| self.io("create", source))?);
        self.verifier = Verifier::new(self.digest, self.size_bytes);
        self.resumed_bytes = 0;
        Ok(())
    }

    /// Bytes that are there.
    pub fn received_bytes(&self) -> u64 {
        self.verifier.received_bytes()
    }

    /// Whether some of them are from an earlier attempt, so that nobody alive knows who sent them.
    pub fn is_resumed(&self) -> bool {
        self.resumed_bytes > 0
    }

    /// For reading what is there while more arrives.
    pub fn content(&self) -> Content {
        Content::new(Arc::clone(&self.file))
    }

    /// Adds the next bytes. Blocks.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), AppendError> {
        let offset = self.verifier.received_bytes();
        self.verifier.update(bytes)?;
        self.file.write_all_at(bytes, offset).map_err(|source| self.io("write", source))?;
        Ok(())
    }

    /// Agrees that the content is whole and right, or says how it differs. What differs is left in place.
    pub fn finish(&self) -> Result<Verified, Mismatch> {
        self.verifier.clone().finish()?;
        Ok(Verified { digest: self.digest, path: self.path.clone(), file: Arc::clone(&self.file) })
    }

    /// Removes the file; readers that have it open keep it.
    pub fn discard(self) -> Result<(), BlobsError> {
        remove_if_there(&self.path).map_err(|source| self.io("remove", source))
    }

    fn io(&self, action: &'static str, source: io::Error) -> BlobsError {
        BlobsError::Io { action, path: self.path.clone(), source }
    }
}

/// Creates a file that only we may read.
pub(super) fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
