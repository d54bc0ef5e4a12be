//! HTTP/1.1 for content, past hyper's body machinery: the bulk of what devices ask.
//!
//! Takes only what has one plain reading ([`head::parse`]): GET and HEAD of `/v2/`, without a body. The first request that
//! is anything else, or odd in any way, goes to hyper with all bytes read so far, and with it the rest of the connection.

mod head;
mod rewind;

use std::io;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::RequestBody;
use super::answer::{Asked, Judged, judge};
use super::body::{Body, Buffers, Parts, Source};
use super::connection::{Connection, MAX_HEAD_BYTES, UNSENT_BYTES};
use super::tls::Stream;
use head::{Parsed, Plain};
pub(super) use rewind::Rewind;

/// Bytes at a time, at first and for a reader that does not keep up: what is encrypted and not taken stays in memory.
const MIN_CHUNK_BYTES: usize = 64 * 1024;
/// Bytes at a time for a reader that keeps up. Larger ones fall out of the processor's cache before they are encrypted.
const MAX_CHUNK_BYTES: usize = 256 * 1024;
/// A reader that takes longer than this for a chunk does not keep up.
const SLOW_CHUNK: Duration = Duration::from_millis(50);
/// What a reader has taken without a pause before its chunks grow to a share of that: more than the sockets of both ends
/// hold for one that takes nothing.
const CHUNK_SHARE: usize = 8;
/// Bytes that may wait in the kernel for a reader that keeps up: fewer would wake the connection for every record.
const QUICK_UNSENT_BYTES: u32 = 384 * 1024;
const FIRST_READ_BYTES: usize = 1024;

/// Serves a connection to its end, or up to the first request that is not plain.
pub(super) async fn serve(
    connection: &Arc<Connection>,
    mut stream: Stream,
    leave: &CancellationToken,
) -> Option<Rewind> {
    let mut received = Vec::new();
    let mut pace = Pace::default();
    loop {
        let plain = match next(connection, &mut stream, &mut received, leave).await {
            Next::Plain(plain) => plain,
            Next::Odd => return Some(Rewind::new(received, stream)),
            Next::End => break,
        };
        let last = plain.close || leave.is_cancelled();
        let is_head = plain.method == Method::HEAD;
        let Plain { method, uri, headers, .. } = plain;
        let body = RequestBody(None);
        let response = match judge(connection, Asked { method, uri, headers, body }) {
            Judged::Answered(response) => response,
            // Boxed, as below, so that an idle connection does not hold the room for what it might do.
            Judged::Open(pending) => Box::pin(pending.answer()).await,
        };
        let scratch = &connection.shared.scratch;
        if send(&mut stream, response, is_head, last, scratch, &mut pace).await.is_err() || last {
            // Cut short of the announced length, the peer sees that it is not whole: no TLS farewell, which would make
            // the end look wanted. After the last answer it has had its farewell.
            return None;
        }
    }
    let _ = stream.shutdown().await;
    None
}

enum Next {
    Plain(Plain),
    Odd,
    End,
}

/// Reads the head of the next request; what follows it stays in `received`.
async fn next(
    connection: &Connection,
    stream: &mut Stream,
    received: &mut Vec<u8>,
    leave: &CancellationToken,
) -> Next {
    if received.is_empty() {
        // An idle connection holds no buffer, and a head that comes whole needs none.
        *received = Vec::new();
        let begun = tokio::select! {
            begun = stream.fill_buf() => begun.unwrap_or_default(),
            () = leave.cancelled() => return Next::End,
        };
        if begun.is_empty() {
            return Next::End;
        }
        if let Parsed::Plain(plain, length) = head::parse(begun) {
            stream.consume(length);
            return Next::Plain(plain);
        }
        received.extend_from_slice(begun);
        let length = begun.len();
        stream.consume(length);
    }
    let deadline = Instant::now() + connection.shared.door.limits.header;
    loop {
        match head::parse(received) {
            Parsed::Plain(plain, length) => {
                received.drain(..length);
                return Next::Plain(plain);
            }
            Parsed::Odd => return Next::Odd,
            Parsed::Partial if received.len() >= MAX_HEAD_BYTES => return Next::Odd,
            Parsed::Partial => {}
        }
        received.reserve(FIRST_READ_BYTES);
        match tokio::time::timeout_at(deadline, stream.read_buf(received)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => return Next::End,
        }
    }
}

async fn send(
    stream: &mut Stream,
    response: Response<Body>,
    is_head: bool,
    last: bool,
    scratch: &Buffers,
    pace: &mut Pace,
) -> io::Result<()> {
    let (parts, body) = response.into_parts();
    let body = body.into_parts();
    let length = match &body {
        // What a GET would send is in the head already.
        Parts::Whole(bytes) => bytes.len() as u64,
        Parts::Content(source) => source.end - source.start,
    };
    let mut head = head::write(&parts, length, last);
    match body {
        Parts::Whole(bytes) => {
            if !is_head && parts.status != StatusCode::NOT_MODIFIED {
                head.extend_from_slice(&bytes);
            }
            put(stream, &head).await?;
        }
        Parts::Content(source) => {
            put(stream, &head).await?;
            Box::pin(send_content(stream, source, scratch, pace)).await?;
        }
    }
    if last {
        // The farewell leaves in one piece with the answer.
        stream.get_mut().1.send_close_notify();
    }
    stream.flush().await
}

/// Encrypts bytes into the connection; what does not fit waits for the peer. Nothing is held here afterwards.
async fn put(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    loop {
        let count = stream.get_mut().1.writer().write(bytes)?;
        bytes = bytes.get(count..).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        stream.flush().await?;
    }
}

async fn send_content(
    stream: &mut Stream,
    source: Box<Source>,
    scratch: &Buffers,
    pace: &mut Pace,
) -> io::Result<()> {
    let Source { mut reader, start, end, throttle, mut serving, .. } = *source;
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(pace.chunk_bytes());
        throttle.wait(length).await;
        // Waited for without a buffer: a registry may be slow, and readers many.
        let read = match reader.available(at).await {
            Ok(_) => reader.read_at(at, scratch.take(length)).await,
            Err(error) => Err(error),
        };
        let (buffer, count) = match read {
            Ok(read) => read,
            Err(error) => {
                serving.failed(&error);
                return Err(io::Error::other(error));
            }
        };
        let began = Instant::now();
        put(stream, buffer.get(..count).unwrap_or_default()).await?;
        scratch.give_back(buffer);
        stream.flush().await?;
        if let Some(unsent_bytes) = pace.note(count, began.elapsed()) {
            socket2::SockRef::from(stream.get_ref().0).set_tcp_notsent_lowat(unsent_bytes)?;
        }
        at += count as u64;
        serving.sent(count as u64);
    }
    Ok(())
}

/// How fast a reader takes what it is sent.
#[derive(Default)]
struct Pace {
    /// Bytes that it has taken since it last kept us waiting.
    quick_bytes: usize,
}

impl Pace {
    fn chunk_bytes(&self) -> usize {
        (self.quick_bytes / CHUNK_SHARE).clamp(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES)
    }

    /// Notes how long some bytes took; says how many may wait in the kernel from now on, where that changes.
    fn note(&mut self, bytes: usize, took: Duration) -> Option<u32> {
        let before = self.chunk_bytes();
        self.quick_bytes = if took > SLOW_CHUNK { 0 } else { self.quick_bytes.saturating_add(bytes) };
        match self.chunk_bytes() {
            MAX_CHUNK_BYTES if before < MAX_CHUNK_BYTES => Some(QUICK_UNSENT_BYTES),
            now if now < before => Some(UNSENT_BYTES),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::tls::SEND_BUFFER_BYTES;

    #[test]
    fn only_readers_that_keep_up_get_large_chunks() {
        let mut pace = Pace::default();
        for _ in 0..6 {
            assert_eq!(pace.chunk_bytes(), MIN_CHUNK_BYTES);
            assert_eq!(pace.note(MIN_CHUNK_BYTES, Duration::ZERO), None);
        }
        let changes = (0..100).filter_map(|_| pace.note(pace.chunk_bytes(), Duration::ZERO));
        assert_eq!(changes.collect::<Vec<_>>(), [QUICK_UNSENT_BYTES]);
        assert_eq!(pace.chunk_bytes(), MAX_CHUNK_BYTES);
        assert_eq!(pace.note(MAX_CHUNK_BYTES, SLOW_CHUNK * 2), Some(UNSENT_BYTES));
        assert_eq!(pace.chunk_bytes(), MIN_CHUNK_BYTES);
    }

    #[test]
    fn a_chunk_and_its_head_fit_into_an_empty_connection() {
        const { assert!(MAX_CHUNK_BYTES + 16 * 1024 < SEND_BUFFER_BYTES) };
    }
}
