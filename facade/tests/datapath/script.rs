//! A registry that does what its script says, and counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use facade::pull::{Fetch, Incoming, PullError};
use facade::upstream::{Cause, UpstreamError};
use futures_util::StreamExt;
use futures_util::stream;
use pki::digest::{Algorithm, Digest, Hasher};
use tokio::sync::Semaphore;

const PIECE: usize = 64 * 1024;

/// What happens to one request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// The connection breaks at this byte of the content.
    CutAt(usize),
    /// The byte at this place is wrong.
    WrongAt(usize),
    /// The registry limits the rate.
    RateLimited(Option<Duration>),
    /// It has no such thing.
    Missing,
    /// It says another length.
    Total(u64),
    /// It sends more bytes after the end.
    Longer,
    /// It ignores where the request begins.
    FromZero,
    /// Nothing comes for this long.
    Delay(Duration),
}

#[derive(Default)]
pub(crate) struct Script {
    content: Mutex<HashMap<Digest, Bytes>>,
    /// Content that is made as it is sent, so that it takes no memory here.
    made: Mutex<HashMap<Digest, u64>>,
    faults: Mutex<Vec<Fault>>,
    gets: AtomicUsize,
    asked: Mutex<Vec<u64>>,
    /// Pieces that may go out, when they are held back.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

impl Script {
    pub(crate) fn serve(&self, content: &Bytes) {
        self.content.lock().unwrap().insert(Digest::sha256(content), content.clone());
    }

    /// Serves content of this length that is never in memory.
    pub(crate) fn make(&self, size_bytes: u64) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for at in (0..size_bytes).step_by(PIECE) {
            hasher.update(&made_piece(at, size_bytes));
        }
        let digest = hasher.finish();
        self.made.lock().unwrap().insert(digest, size_bytes);
        digest
    }

    /// The next requests meet these, one each.
    pub(crate) fn next(&self, faults: &[Fault]) {
        let mut queued = self.faults.lock().unwrap();
        queued.extend(faults.iter().rev().cloned());
    }

    pub(crate) fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    /// From which byte each request began.
    pub(crate) fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }

    /// Holds all pieces back until they are let go.
    pub(crate) fn hold(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    pub(crate) fn fetch(self: &Arc<Self>) -> Fetch {
        let script = Arc::clone(self);
        Arc::new(move |wanted, from| {
            script.gets.fetch_add(1, Ordering::SeqCst);
            script.asked.lock().unwrap().push(from);
            let digest = wanted.descriptor.digest;
            let host: Box<str> = wanted.repository.host().as_str().into();
            let upstream = move |source| PullError::Upstream { digest, source };
            let fault = script.faults.lock().unwrap().pop();
            let made = script.made.lock().unwrap().get(&digest).copied();
            let content = script.content.lock().unwrap().get(&digest).cloned();
            let gate = script.gate.lock().unwrap().clone();
            Box::pin(async move {
                if let Some(size_bytes) = made {
                    let starts = (from..size_bytes).step_by(PIECE);
                    let pieces = stream::iter(starts.map(move |at| Ok(made_piece(at, size_bytes)))).boxed();
                    return Ok(Incoming { starts_at: from, total: Some(size_bytes), mirror: None, pieces });
                }
                let missing = UpstreamError::NotFound { host: host.clone(), what: "it".into() };
                let Some(content) = content else {
                    return Err(upstream(missing));
                };
                let mut from = usize::try_from(from).unwrap();
                let (mut bytes, mut total, mut cut) = (content.to_vec(), content.len() as u64, None);
                match fault {
                    None => {}
                    Some(Fault::CutAt(at)) => cut = Some(at),
                    Some(Fault::WrongAt(at)) => bytes[at] ^= 1,
                    Some(Fault::RateLimited(retry_after)) => {
                        return Err(upstream(UpstreamError::RateLimited { host: host.clone(), retry_after }));
                    }
                    Some(Fault::Missing) => return Err(upstream(missing)),
                    Some(Fault::Total(said)) => total = said,
                    Some(Fault::Longer) => bytes.push(0),
                    Some(Fault::FromZero) => from = 0,
                    Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
                }
                let end = cut.unwrap_or(bytes.len());
                let mut pieces: Vec<_> =
                    bytes[from..end].chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
                if cut.is_some() {
                    let received_bytes = end as u64;
                    pieces.push(Err(UpstreamError::Interrupted {
                        host: host.clone(),
                        received_bytes,
                        source: Cause::new("cut"),
                    }));
                }
                let pieces = stream::iter(pieces).then(move |piece| {
                    let gate = gate.clone();
                    async move {
                        if let Some(gate) = gate {
                            gate.acquire().await.unwrap().forget();
                        }
                        piece
                    }
                });
                let total = Some(total);
                Ok(Incoming { starts_at: from as u64, total, mirror: None, pieces: pieces.boxed() })
            })
        })
    }
}

/// The piece of made content that begins at `at`.
fn made_piece(at: u64, size_bytes: u64) -> Bytes {
    let length = usize::try_from(size_bytes - at).unwrap().min(PIECE);
    let mut piece = vec![at.to_le_bytes()[2]; length];
    piece[..8.min(length)].copy_from_slice(&at.to_le_bytes()[..8.min(length)]);
    piece.into()
}
