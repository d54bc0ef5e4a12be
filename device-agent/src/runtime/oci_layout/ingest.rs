//! Content on its way into a layout: a locked file that gets its name when its bytes agree and are on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use pki::digest::{Digest, Mismatch, Verifier};
use pki::oci::Descriptor;
use rustix::fs::FlockOperation;

use super::super::{Ingest, RuntimeError};
use super::layout::{Layout, corrupt, feed, sync_parent};

/// Bytes per write to the disk.
const PIECE_BYTES: usize = 256 * 1024;

/// Content being written, or found to be there.
pub(super) struct Writing {
    layout: Layout,
    content: Descriptor,
    state: State,
    buffer: Vec<u8>,
}

enum State {
    /// The blob is there.
    Present,
    /// A part of it is there.
    Partial(Partial),
    /// A write failed half-way, or the content is done with; the next attempt asks the file.
    Ended,
}

impl Writing {
    pub(super) fn open(layout: &Layout, content: &Descriptor) -> Result<Self, RuntimeError> {
        let state = match layout.has(content) {
            Ok(true) => State::Present,
            Ok(false) | Err(RuntimeError::Corrupt { .. }) => State::Partial(Partial::open(layout, content)?),
            Err(error) => return Err(error),
        };
        Ok(Self { layout: layout.clone(), content: content.clone(), state, buffer: Vec::new() })
    }

    /// Does file work where it does not hold up the sockets.
    async fn run<F>(&mut self, work: F) -> Result<(), RuntimeError>
    where
        F: FnOnce(Partial) -> Result<State, RuntimeError> + Send + 'static,
    {
        let partial = match std::mem::replace(&mut self.state, State::Ended) {
            State::Partial(partial) => partial,
            State::Present => {
                self.state = State::Present;
                return Ok(());
            }
            State::Ended => return Err(self.layout.interrupted()),
        };
        match tokio::task::spawn_blocking(move || work(partial)).await {
            Ok(state) => {
                self.state = state?;
                Ok(())
            }
            Err(_) => Err(self.layout.interrupted()),
        }
    }
}

/// The locked file and what is known of its bytes.
struct Partial {
    layout: Layout,
    digest: Digest,
    file: File,
    verifier: Verifier,
}

impl Partial {
    fn open(layout: &Layout, content: &Descriptor) -> Result<Self, RuntimeError> {
        let digest = content.digest;
        let path = layout.ingest_path(digest);
        let failed = |error| layout.failed(&format!("opening half-written {digest}"), error);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).read(true).append(true);
        let file = options.open(&path).map_err(failed)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&file, &path)
        {
            return Err(RuntimeError::Busy { digest });
        }
        let mut verifier = Verifier::new(digest, content.size);
        // What a power cut left at the end may be anything; it is hashed like the rest, and refused at commit.
        if feed(&file, &mut verifier, |_| {}).is_err() {
            file.set_len(0).map_err(failed)?;
            verifier = Verifier::new(digest, content.size);
        }
        Ok(Self { layout: layout.clone(), digest, file, verifier })
    }

    fn append(mut self, bytes: &[u8]) -> Result<State, RuntimeError> {
        let action = format!("writing {}", self.digest);
        let written = self.file.write_all(bytes);
        written.map_err(|error| self.layout.failed(&action, error))?;
        let accepted = self.verifier.update(bytes);
        accepted.map_err(|mismatch| corrupt(self.digest, mismatch))?;
        Ok(State::Partial(self))
    }

    fn commit(self) -> Result<State, RuntimeError> {
        let (layout, digest) = (&self.layout, self.digest);
        let path = layout.ingest_path(digest);
        if let Err(mismatch) = self.verifier.finish() {
            layout.remove(&path)?;
            return Err(corrupt(digest, mismatch));
        }
        let blob = layout.blob_path(digest);
        let failed = |error| layout.failed(&format!("naming {digest}"), error);
        self.file.sync_all().map_err(failed)?;
        let directory = layout.blobs(digest.algorithm().name());
        if !directory.is_dir() {
            fs::create_dir_all(&directory).map_err(failed)?;
            sync_parent(&directory).map_err(failed)?;
        }
        fs::rename(&path, &blob).map_err(failed)?;
        sync_parent(&blob).map_err(failed)?;
        Ok(State::Ended)
    }

    fn abort(self) -> Result<State, RuntimeError> {
        self.layout.remove(&self.layout.ingest_path(self.digest))?;
        Ok(State::Ended)
    }
}

/// Whether a file that was opened is still the one with that name: another process may just have committed it.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(opened), Ok(named)) => opened.ino() == named.ino() && opened.dev() == named.dev(),
        _ => false,
    }
}

#[async_trait]
impl Ingest for Writing {
    fn offset(&self) -> u64 {
        match &self.state {
            State::Present => self.content.size,
            State::Partial(partial) => {
                partial.verifier.received_bytes().saturating_add(self.buffer.len() as u64)
            }
            State::Ended => 0,
        }
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), RuntimeError> {
        if matches!(self.state, State::Present) {
            return Ok(());
        }
        let end = self.offset().saturating_add(bytes.len() as u64);
        if end > self.content.size {
            let (digest, expected_bytes) = (self.content.digest, self.content.size);
            return Err(corrupt(digest, Mismatch::Long { digest, expected_bytes }));
        }
        self.buffer.extend_from_slice(&bytes);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RuntimeError> {
        let bytes = std::mem::take(&mut self.buffer);
        self.run(move |partial| partial.append(&bytes)).await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), RuntimeError> {
        self.flush().await?;
        self.run(Partial::commit).await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), RuntimeError> {
        self.run(Partial::abort).await
    }
}
