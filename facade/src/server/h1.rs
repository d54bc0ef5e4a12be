//! HTTP/1.1 for content, past hyper's body machinery: the bulk of what devices ask.
//!
//! Takes only what has one plain reading ([`head::parse`]): GET and HEAD of `/v2/`, without a body. The first request that
//! is anything else, or odd in any way, goes to hyper with all bytes read so far, and with it the rest of the connection.

mod head;
mod rewind;

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::RequestBody;
use super::answer::{Asked, answer};
use super::body::{Body, CHUNK_BYTES, Parts, Source};
use super::connection::{Connection, MAX_HEAD_BYTES, speak_http1};
use head::{Parsed, Plain};
use rewind::Rewind;

/// Bytes at a time for a reader that keeps up.
const MAX_CHUNK_BYTES: usize = 256 * 1024;
/// A reader that takes longer than this for a chunk does not keep up: it gets small ones, which hold less memory.
const SLOW_CHUNK: Duration = Duration::from_millis(20);
const FIRST_READ_BYTES: usize = 1024;

/// Serves a connection to its end.
pub(super) async fn serve(
    connection: Arc<Connection>,
    mut stream: TlsStream<TcpStream>,
    leave: &CancellationToken,
) {
    let mut received = Vec::new();
    loop {
        let plain = match next(&connection, &mut stream, &mut received, leave).await {
            Next::Plain(plain) => plain,
            Next::Odd => {
                let stream = Rewind::new(received, stream);
                return Box::pin(speak_http1(connection, stream, leave)).await;
            }
            Next::End => break,
        };
        let last = plain.close || leave.is_cancelled();
        let is_head = plain.method == Method::HEAD;
        let Plain { method, uri, headers, .. } = plain;
        let body = RequestBody(None);
        // Boxed, here and above, so that an idle connection does not hold the room for what it might do.
        let response = Box::pin(answer(&connection, Asked { method, uri, headers, body })).await;
        if Box::pin(send(&mut stream, response, is_head, last)).await.is_err() {
            // Cut short of the announced length: the peer sees that it is not whole. No TLS farewell, which would make
            // the end look wanted.
            return;
        }
        if last {
            break;
        }
    }
    let _ = stream.shutdown().await;
}

enum Next {
    Plain(Plain),
    Odd,
    End,
}

/// Reads the head of the next request; what follows it stays in `received`.
async fn next(
    connection: &Connection,
    stream: &mut TlsStream<TcpStream>,
    received: &mut Vec<u8>,
    leave: &CancellationToken,
) -> Next {
    if received.is_empty() {
        // An idle connection holds no buffer.
        *received = Vec::new();
        let mut first = [0];
        let read = tokio::select! {
            read = stream.read(&mut first) => read,
            () = leave.cancelled() => return Next::End,
        };
        match read {
            Ok(1) => received.extend_from_slice(&first),
            _ => return Next::End,
        }
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
    stream: &mut TlsStream<TcpStream>,
    response: Response<Body>,
    is_head: bool,
    last: bool,
) -> std::io::Result<()> {
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
            stream.write_all(&head).await?;
        }
        Parts::Content(source) => {
            stream.write_all(&head).await?;
            send_content(stream, *source).await?;
        }
    }
    stream.flush().await
}

async fn send_content(stream: &mut TlsStream<TcpStream>, source: Source) -> std::io::Result<()> {
    let Source { mut reader, start, end, throttle, mut serving, .. } = source;
    let (mut at, mut chunk) = (start, CHUNK_BYTES);
    let mut buffer = Vec::new();
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(chunk).min(chunk);
        buffer.resize(length, 0);
        throttle.wait(length).await;
        let (filled, count) = match reader.read_at(at, buffer).await {
            Ok(read) => read,
            Err(error) => {
                serving.failed(&error);
                return Err(std::io::Error::other(error));
            }
        };
        buffer = filled;
        let began = Instant::now();
        stream.write_all(buffer.get(..count).unwrap_or_default()).await?;
        at += count as u64;
        serving.sent(count as u64);
        chunk = if began.elapsed() > SLOW_CHUNK { CHUNK_BYTES } else { MAX_CHUNK_BYTES };
        if chunk < buffer.capacity() {
            buffer = Vec::new();
        }
    }
    Ok(())
}
