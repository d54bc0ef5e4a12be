//! Content on its way into containerd: one `Write` stream, resumed where containerd's own file ends.
//!
//! containerd hashes what it writes and refuses at commit what has another digest; hashing here as well would cost the
//! device's processor a second time and find nothing more: nobody can see a blob, by any name, before containerd has
//! found that its bytes have the digest that was expected of them. At most one piece is on its way while the next one
//! fills, and all writers together keep to [`AT_RISK_BYTES`]: that is what a kill loses, however many layers come in.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, StatusRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use futures_util::stream;
use pki::digest::{Digest, Mismatch};
use pki::oci::Descriptor;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status, Streaming};

use super::super::{Cause, Ingest, Lease, RuntimeError};
use super::connection::{Connection, WORK, under};
use super::leases;
use crate::facade_client::UNREAD_BYTES;

/// How our half-written content is called in containerd.
pub(super) const REF_PREFIX: &str = "drayage-";

/// Bytes that are fetched and not in containerd's hands yet, of all writers together and with what lies unread in their
/// connections: so much is fetched again after a kill, and no more.
const AT_RISK_BYTES: usize = 1 << 20;
/// Smaller messages cost more processor time than they save bytes.
const MIN_PIECE_BYTES: usize = 64 * 1024;
/// Larger ones only cost memory, on both sides.
const MAX_PIECE_BYTES: usize = 512 * 1024;

/// How long a card may take to write one piece.
const STALL: Duration = Duration::from_secs(5 * 60);

/// How long containerd may need to notice that an earlier writer of the same content is dead.
const UNLOCK: Duration = Duration::from_secs(5);
const UNLOCK_POLL: Duration = Duration::from_millis(50);

pub(super) fn reference(digest: Digest) -> String {
    format!("{REF_PREFIX}{digest}")
}

/// Starts or resumes.
pub(super) async fn begin(
    connection: &Arc<Connection>,
    lease: &Lease,
    content: &Descriptor,
) -> Result<Box<dyn Ingest>, RuntimeError> {
    let digest = content.digest;
    let mut renewed = false;
    let deadline = Instant::now() + UNLOCK;
    loop {
        let refusal = match Stream::open(connection, lease, content).await? {
            Ok((stream, offset)) if offset <= content.size => {
                return Ok(Box::new(Writing::new(connection, lease, content, stream, offset)));
            }
            // More than the whole: not a beginning of this content.
            Ok(_) => Status::out_of_range("half-written content is longer than the content"),
            Err(status) => status,
        };
        let code = refusal.code();
        if code == Code::AlreadyExists && leases::hold(connection, lease, content).await? {
            return Ok(Box::new(Present(content.size)));
        }
        if is_locked(&refusal) {
            if Instant::now() >= deadline {
                return Err(RuntimeError::Busy { digest });
            }
            sleep(UNLOCK_POLL).await;
            continue;
        }
        let error = connection.error(format!("starting to write {digest}"), refusal);
        if renewed || !matches!(error, RuntimeError::Failed { .. }) {
            return Err(error);
        }
        // The lease was removed under us, or a power cut left a half-written file that containerd cannot resume: take
        // the lease again and start the file anew, once.
        renewed = true;
        leases::open(connection, lease.artifact()).await?;
        if code != Code::NotFound {
            delete(connection, &reference(digest)).await?;
        }
    }
}

/// How much there is of half-written content.
pub(super) async fn begun(connection: &Connection, digest: Digest) -> Result<u64, RuntimeError> {
    let message = StatusRequest { r#ref: reference(digest) };
    match connection.content().await?.status(connection.request(message)).await {
        Ok(answer) => {
            let offset = answer.into_inner().status.map_or(0, |status| status.offset);
            Ok(u64::try_from(offset).unwrap_or_default())
        }
        Err(status) if status.code() == Code::NotFound => Ok(0),
        Err(status) => Err(connection.error(format!("looking for half-written {digest}"), status)),
    }
}

/// Deletes half-written content, if there is any.
pub(super) async fn delete(connection: &Connection, reference: &str) -> Result<(), RuntimeError> {
    let message = AbortRequest { r#ref: reference.to_owned() };
    let mut client = connection.content().await?;
    let deadline = Instant::now() + UNLOCK;
    loop {
        match client.abort(connection.request(message.clone())).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            // A writer that is just ending puts its last word into the directory that containerd is removing.
            Err(status) if status.message().contains("directory not empty") && Instant::now() < deadline => {
                sleep(UNLOCK_POLL).await;
            }
            Err(status) => return Err(connection.error(format!("deleting half-written {reference}"), status)),
        }
    }
}

fn is_locked(status: &Status) -> bool {
    std::error::Error::source(status).is_none() && status.message().contains("locked")
}

/// An open `Write` stream.
struct Stream {
    requests: mpsc::Sender<WriteContentRequest>,
    replies: Streaming<WriteContentResponse>,
}

impl Stream {
    /// Opens the stream and asks how much containerd has. The inner error is containerd's refusal.
    async fn open(
        connection: &Connection,
        lease: &Lease,
        content: &Descriptor,
    ) -> Result<Result<(Self, u64), Status>, RuntimeError> {
        let (requests, mut queue) = mpsc::channel(1);
        let question = message(WriteAction::Stat, content, 0, Vec::new());
        if requests.send(question).await.is_err() {
            return Err(connection.broken("opening a write stream", "the queue is closed"));
        }
        let outgoing = stream::poll_fn(move |context| queue.poll_recv(context));
        let request = under(lease, connection.stream(outgoing));
        let mut client = connection.content().await?;
        let opening = async {
            let mut replies = client.write(request).await?.into_inner();
            let reply = replies.message().await?;
            Ok::<_, Status>((replies, reply))
        };
        // Before it answers, containerd hashes what it has of the content.
        match timeout(WORK, opening).await {
            Err(_) => Err(connection.broken("opening a write stream", "no answer in time")),
            Ok(Err(status)) => Ok(Err(status)),
            Ok(Ok((_, None))) => Err(connection.broken("opening a write stream", "it ended at once")),
            Ok(Ok((replies, Some(reply)))) => {
                let offset = u64::try_from(reply.offset).unwrap_or(u64::MAX);
                Ok(Ok((Self { requests, replies }, offset)))
            }
        }
    }
}

fn message(action: WriteAction, content: &Descriptor, offset: u64, data: Vec<u8>) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: reference(content.digest),
        // A `Descriptor` holds sizes of 63 bits only.
        total: i64::try_from(content.size).unwrap_or(i64::MAX),
        expected: content.digest.to_string(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data,
        labels: std::collections::HashMap::default(),
    }
}

/// Content being written.
struct Writing {
    connection: Arc<Connection>,
    lease: Lease,
    content: Descriptor,
    stream: Stream,
    /// Bytes given to containerd, with those it has not acknowledged yet.
    sent: u64,
    unacknowledged: bool,
    buffer: Vec<u8>,
    _turn: Turn,
}

/// One of the writers that share [`AT_RISK_BYTES`].
struct Turn(Arc<Connection>);

impl Turn {
    fn take(connection: &Arc<Connection>) -> Self {
        connection.writers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.writers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes per message while so many write: one on its way and one that fills, of each.
fn piece_bytes(writers: usize) -> usize {
    let share = AT_RISK_BYTES / writers.max(1);
    (share.saturating_sub(UNREAD_BYTES) / 2).clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES)
}

impl Writing {
    fn new(
        connection: &Arc<Connection>,
        lease: &Lease,
        content: &Descriptor,
        stream: Stream,
        offset: u64,
    ) -> Self {
        Self {
            connection: Arc::clone(connection),
            lease: lease.clone(),
            content: content.clone(),
            stream,
            sent: offset,
            unacknowledged: false,
            buffer: Vec::new(),
            _turn: Turn::take(connection),
        }
    }

    fn action(&self) -> String {
        format!("writing {}", self.content.digest)
    }

    /// Waits until containerd has written the piece that is on its way.
    async fn settle(&mut self) -> Result<(), RuntimeError> {
        if !self.unacknowledged {
            return Ok(());
        }
        let reply =
            self.reply(STALL).await?.map_err(|status| self.connection.error(self.action(), status))?;
        self.unacknowledged = false;
        if u64::try_from(reply.offset) == Ok(self.sent) {
            Ok(())
        } else {
            Err(self.connection.broken(self.action(), "it stands at another offset than ours"))
        }
    }

    async fn send_buffer(&mut self) -> Result<(), RuntimeError> {
        self.settle().await?;
        self.send(WriteAction::Write).await?;
        self.unacknowledged = true;
        Ok(())
    }

    /// Sends what is buffered. Nothing of it is lost if the caller stops waiting.
    async fn send(&mut self, action: WriteAction) -> Result<(), RuntimeError> {
        if let Ok(slot) = self.stream.requests.reserve().await {
            let piece = std::mem::take(&mut self.buffer);
            let length = piece.len() as u64;
            slot.send(message(action, &self.content, self.sent, piece));
            self.sent = self.sent.saturating_add(length);
            return Ok(());
        }
        // The stream has ended; its last word says why.
        match self.reply(STALL).await? {
            Err(status) => Err(self.connection.error(self.action(), status)),
            Ok(_) => Err(self.connection.broken(self.action(), "it stopped reading")),
        }
    }

    /// The next answer. The inner error is containerd's refusal.
    async fn reply(&mut self, limit: Duration) -> Result<Result<WriteContentResponse, Status>, RuntimeError> {
        match timeout(limit, self.stream.replies.message()).await {
            Err(_) => Err(self.connection.broken(self.action(), "no answer in time")),
            Ok(Ok(None)) => Err(self.connection.broken(self.action(), "it ended the stream")),
            Ok(Ok(Some(reply))) => Ok(Ok(reply)),
            Ok(Err(status)) => Ok(Err(status)),
        }
    }

    async fn refuse(&self, source: Cause) -> RuntimeError {
        let digest = self.content.digest;
        // The wrong bytes must not be resumed. If this fails as well, the next commit will refuse them again.
        if let Err(error) = delete(&self.connection, &reference(digest)).await {
            tracing::debug!(blob.digest = %digest, error = %error, "cannot delete refused content");
        }
        RuntimeError::Corrupt { digest, source }
    }
}

#[async_trait]
impl Ingest for Writing {
    fn offset(&self) -> u64 {
        self.sent.saturating_add(self.buffer.len() as u64)
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), RuntimeError> {
        let end = self.offset().saturating_add(bytes.len() as u64);
        if end > self.content.size {
            let (digest, expected_bytes) = (self.content.digest, self.content.size);
            let source = Cause::Mismatch(Mismatch::Long { digest, expected_bytes });
            return Err(RuntimeError::Corrupt { digest, source });
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let piece_bytes = piece_bytes(self.connection.writers.load(Ordering::Relaxed));
            if self.buffer.capacity() == 0 {
                self.buffer.reserve_exact(piece_bytes);
            }
            let room = piece_bytes.saturating_sub(self.buffer.len()).min(rest.len());
            self.buffer.extend_from_slice(&rest.split_to(room));
            if self.buffer.len() >= piece_bytes {
                self.send_buffer().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RuntimeError> {
        if !self.buffer.is_empty() {
            self.send_buffer().await?;
        }
        self.settle().await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), RuntimeError> {
        let (digest, received_bytes, expected_bytes) =
            (self.content.digest, self.offset(), self.content.size);
        if received_bytes < expected_bytes {
            return Err(self
                .refuse(Cause::Mismatch(Mismatch::Short { digest, received_bytes, expected_bytes }))
                .await);
        }
        self.settle().await?;
        self.send(WriteAction::Commit).await?;
        match self.reply(WORK).await? {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                if leases::hold(&self.connection, &self.lease, &self.content).await? {
                    Ok(())
                } else {
                    Err(RuntimeError::Missing { digest })
                }
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(self.refuse(Cause::Status(Box::new(status))).await)
            }
            Err(status) => Err(self.connection.error(format!("committing {digest}"), status)),
        }
    }

    async fn abort(self: Box<Self>) -> Result<(), RuntimeError> {
        let Self { connection, content, stream, .. } = *self;
        drop(stream);
        delete(&connection, &reference(content.digest)).await
    }
}

/// Content that turned out to be there already.
struct Present(u64);

#[async_trait]
impl Ingest for Present {
    fn offset(&self) -> u64 {
        self.0
    }

    async fn write(&mut self, _bytes: Bytes) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn abort(self: Box<Self>) -> Result<(), RuntimeError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_writers_together_keep_to_what_a_kill_may_lose() {
        assert_eq!(piece_bytes(1), 416 * 1024);
        // As many as there are by default; whoever lets more come in side by side has them lose more.
        for writers in 0..=3 {
            let at_risk = writers * (2 * piece_bytes(writers) + UNREAD_BYTES);
            assert!(at_risk <= AT_RISK_BYTES, "{writers} writers: {at_risk}");
        }
    }
}
