//! The body of an answer: nothing, bytes at hand, or content streamed from a [`Reader`].
//!
//! A stream knows its length before it begins. If it cannot go on, the only legal word left is a reset: the body fails,
//! and hyper cuts the connection (HTTP/1.1) or the stream (HTTP/2) short of the announced length.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio_util::sync::ReusableBoxFuture;

use super::access_log::Serving;
use super::bandwidth::Throttle;
use crate::pull::{PullError, Reader};

/// Bytes that are read and sent at a time.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// Buffers that are kept for the next chunk.
const MAX_SPARE: usize = 64;

/// The body of an answer.
pub struct Body(Inner);

enum Inner {
    Whole(Option<Bytes>),
    Waiting(Option<Box<Source>>),
    Stream(Box<Stream>),
}

/// Content that is to be sent.
pub(super) struct Source {
    pub(super) reader: Reader,
    /// The first byte.
    pub(super) start: u64,
    /// After the last byte.
    pub(super) end: u64,
    pub(super) buffers: Buffers,
    pub(super) throttle: Throttle,
    pub(super) serving: Serving,
}

/// What a body is made of, for whoever sends it without this module's help.
pub(super) enum Parts {
    Whole(Bytes),
    Content(Box<Source>),
}

struct Stream {
    next: ReusableBoxFuture<'static, Read>,
    at: u64,
    end: u64,
    buffers: Buffers,
    throttle: Throttle,
    serving: Serving,
}

type Read = (Reader, Result<(Vec<u8>, usize), PullError>);

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self(Inner::Whole(None))
    }

    /// Bytes at hand.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self(Inner::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    /// Content, read when it is asked for.
    pub(super) fn content(source: Source) -> Self {
        Self(Inner::Waiting(Some(Box::new(source))))
    }

    /// What a body that nobody has polled is made of.
    pub(super) fn into_parts(self) -> Parts {
        match self.0 {
            Inner::Whole(bytes) => Parts::Whole(bytes.unwrap_or_default()),
            Inner::Waiting(Some(source)) => Parts::Content(source),
            Inner::Waiting(None) | Inner::Stream(_) => Parts::Whole(Bytes::new()),
        }
    }
}

async fn read_chunk(mut reader: Reader, at: u64, end: u64, buffers: Buffers, throttle: Throttle) -> Read {
    let buffer = buffers.take(usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES));
    throttle.wait(buffer.len()).await;
    let read = reader.read_at(at, buffer).await;
    (reader, read)
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = PullError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PullError>>> {
        let inner = &mut self.get_mut().0;
        if let Inner::Waiting(source) = inner
            && let Some(source) = source.take()
        {
            *inner = Inner::Stream(Box::new(Stream::begin(*source)));
        }
        match inner {
            Inner::Waiting(_) => Poll::Ready(None),
            Inner::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Stream(stream) => stream.poll_next(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Whole(bytes) => bytes.is_none(),
            Inner::Waiting(source) => source.is_none(),
            Inner::Stream(stream) => stream.at >= stream.end,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.0 {
            Inner::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Inner::Waiting(source) => {
                source.as_ref().map_or(0, |source| source.end.saturating_sub(source.start))
            }
            Inner::Stream(stream) => stream.end.saturating_sub(stream.at),
        })
    }
}

impl Stream {
    fn begin(source: Source) -> Self {
        let Source { reader, start, end, buffers, throttle, serving } = source;
        let next = ReusableBoxFuture::new(read_chunk(reader, start, end, buffers.clone(), throttle.clone()));
        Self { next, at: start, end, buffers, throttle, serving }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, PullError>>> {
        if self.at >= self.end {
            return Poll::Ready(None);
        }
        let (reader, read) = ready!(self.next.poll(context));
        let (buffer, count) = match read {
            Ok(read) => read,
            Err(error) => {
                self.end = self.at;
                self.serving.failed(&error);
                return Poll::Ready(Some(Err(error)));
            }
        };
        self.at += count as u64;
        self.serving.sent(count as u64);
        let next = read_chunk(reader, self.at, self.end, self.buffers.clone(), self.throttle.clone());
        self.next.set(next);
        let bytes = Bytes::from_owner(Chunk { buffer, buffers: self.buffers.clone() });
        Poll::Ready(Some(Ok(Frame::data(bytes.slice(..count)))))
    }
}

/// Buffers for chunks, used again and again instead of being allocated for every one.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// A buffer of this length.
    pub(super) fn take(&self, length: usize) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = spare.unwrap_or_else(|| Vec::with_capacity(length));
        buffer.resize(length, 0);
        buffer
    }

    /// Takes a buffer back for whoever needs one next: who used one last has it in the processor's cache.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() >= CHUNK_BYTES && spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    }
}

/// A chunk on its way out; its buffer returns when the last reference has gone.
struct Chunk {
    buffer: Vec<u8>,
    buffers: Buffers,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.buffers.give_back(std::mem::take(&mut self.buffer));
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::full(text)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::full(bytes)
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}
