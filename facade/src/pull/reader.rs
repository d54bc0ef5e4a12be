//! One reader of content: at any offset, at its own pace, of a whole file or of one that still grows.

use std::sync::Arc;

use bytes::Bytes;
use pki::digest::Digest;
use tokio::sync::watch;

use super::PullError;
use super::flight::{Flight, Progress};
use crate::blobs::Content;

/// Where the bytes of a pull come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// They were here.
    Cache,
    /// Somebody else's flight was under way.
    Flight,
    /// This pull began a flight.
    Upstream,
}

impl Origin {
    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Flight => "flight",
            Self::Upstream => "upstream",
        }
    }
}

/// One reader of content.
pub struct Reader {
    digest: Digest,
    size_bytes: u64,
    origin: Origin,
    bytes: Held,
}

enum Held {
    Memory(Bytes),
    Whole(Content),
    /// The flight is held to the end: without a cache it is what keeps the content findable for others.
    Growing(Arc<Flight>, watch::Receiver<Progress>),
}

impl Reader {
    pub(super) fn of_cache(content: Content, digest: Digest, size_bytes: u64) -> Self {
        Self { digest, size_bytes, origin: Origin::Cache, bytes: Held::Whole(content) }
    }

    pub(super) fn of_memory(bytes: Bytes, digest: Digest) -> Self {
        let size_bytes = bytes.len() as u64;
        Self { digest, size_bytes, origin: Origin::Cache, bytes: Held::Memory(bytes) }
    }

    pub(super) fn of_flight(flight: Arc<Flight>, origin: Origin) -> Self {
        let watched = flight.watch();
        Self {
            digest: flight.digest,
            size_bytes: flight.size_bytes,
            origin,
            bytes: Held::Growing(flight, watched),
        }
    }

    /// The file, if it is whole.
    pub(super) fn into_content(self) -> Option<Content> {
        match self.bytes {
            Held::Whole(content) => Some(content),
            Held::Memory(_) | Held::Growing(..) => None,
        }
    }

    /// Where the bytes come from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Which content it is.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its whole length.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Waits until the byte at `offset` may go out; returns how many bytes from the start may.
    pub(crate) async fn available(&mut self, offset: u64) -> Result<u64, PullError> {
        let Held::Growing(_, watched) = &mut self.bytes else {
            return Ok(self.size_bytes);
        };
        loop {
            // Seen before it is looked at, so that no change between the two is missed.
            let progress = watched.borrow_and_update().clone();
            match progress.ended {
                _ if progress.verified => return Ok(self.size_bytes),
                Some(Ok(())) => return Ok(self.size_bytes),
                Some(Err(error)) => return Err(error),
                None if progress.available > offset => return Ok(progress.available),
                None => {}
            }
            if watched.changed().await.is_err() && watched.borrow().ended.is_none() {
                return Err(PullError::Died { digest: self.digest });
            }
        }
    }

    /// Waits for the end of the flight: content is then in the cache if there is one, not only right.
    pub(super) async fn landed(self) -> Result<(), PullError> {
        let Held::Growing(_, mut watched) = self.bytes else {
            return Ok(());
        };
        let ended = watched.wait_for(|progress| progress.ended.is_some()).await;
        let ended = ended.ok().and_then(|progress| progress.ended.clone());
        ended.unwrap_or(Err(PullError::Died { digest: self.digest }))
    }

    /// Reads from `offset` on into `buffer`, as much as is there and fits; waits while nothing is. Zero is the end.
    pub async fn read_at(&mut self, offset: u64, mut buffer: Vec<u8>) -> Result<(Vec<u8>, usize), PullError> {
        if offset >= self.size_bytes {
            return Ok((buffer, 0));
        }
        let available = self.available(offset).await?;
        let there = usize::try_from(available - offset).unwrap_or(usize::MAX);
        buffer.truncate(there);
        let content = match &self.bytes {
            Held::Memory(bytes) => return Ok(copy(bytes, offset, buffer)),
            Held::Whole(content) => content,
            Held::Growing(flight, _) => flight.content().ok_or(PullError::Died { digest: self.digest })?,
        };
        let wanted = buffer.len();
        let failed = |source| PullError::Read { digest: self.digest, source: Arc::new(source) };
        let (buffer, count) = content.read_at(offset, buffer).await.map_err(failed)?;
        if count < wanted {
            return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok((buffer, count))
    }
}

fn copy(bytes: &[u8], offset: u64, mut buffer: Vec<u8>) -> (Vec<u8>, usize) {
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    let count = rest.len().min(buffer.len());
    buffer.clear();
    buffer.extend_from_slice(rest.get(..count).unwrap_or_default());
    (buffer, count)
}
