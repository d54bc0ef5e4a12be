//! Content on its way into containerd: one `Write` stream, resumed where containerd's own file ends.
//!
//! containerd hashes what it writes and refuses at commit what has another digest; hashing here as well would cost the
//! device's processor a second time and find nothing more: nobody can see a blob, by any name, before containerd has
//! found that its bytes have the digest that was expected of them.
//!
//! Large messages cost containerd least, and all writers together keep to [`AT_RISK_BYTES`], for that is what a kill loses,
//! however many layers come in. So the next message is not gathered before containerd has written the last one; what comes
//! meanwhile waits in the kernel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use containerd_client::services::v1::{AbortRequest, StatusRequest, WriteAction, WriteContentResponse};
use pki::digest::{Digest, Mismatch};
use pki::oci::Descriptor;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::super::{Cause, Ingest, Lease, RuntimeError};
use super::connection::{Connection, WORK};
use super::leases;
use super::write_stream::{WriteMessage, WriteStream};
use crate::facade_client::UNREAD_BYTES;

/// How our half-written content is called in containerd.
pub(super) const REF_PREFIX: &str = "drayage-";

/// Bytes that are fetched and not in containerd's hands yet, of all writers together and with what lies unread in their
/// connections: so much is fetched again after a kill, and no more.
const AT_RISK_BYTES: usize = 1 << 20;
/// Smaller messages cost more processor time than they save bytes.
const MIN_MESSAGE_BYTES: usize = 64 * 1024;
/// Pieces per message, at most: each may hold on to a whole buffer of the connection, however short it is.
const MAX_PIECES: usize = 64;

/// How long a card may take to write one message.
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
        let refusal = match WriteStream::open(connection, lease, content).await? {
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

/// Content being written.
struct Writing {
    connection: Arc<Connection>,
    lease: Lease,
    content: Descriptor,
    stream: WriteStream,
    /// Bytes given to containerd, with those it has not acknowledged yet.
    sent: u64,
    unacknowledged: bool,
    /// What came and has not been given to containerd.
    gathered: Vec<Bytes>,
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

/// Bytes per message while so many write.
fn message_bytes(writers: usize) -> usize {
    (AT_RISK_BYTES / writers.max(1)).saturating_sub(UNREAD_BYTES).max(MIN_MESSAGE_BYTES)
}

impl Writing {
    fn new(
        connection: &Arc<Connection>,
        lease: &Lease,
        content: &Descriptor,
        stream: WriteStream,
        offset: u64,
    ) -> Self {
        Self {
            connection: Arc::clone(connection),
            lease: lease.clone(),
            content: content.clone(),
            stream,
            sent: offset,
            unacknowledged: false,
            gathered: Vec::new(),
            _turn: Turn::take(connection),
        }
    }

    fn action(&self) -> String {
        format!("writing {}", self.content.digest)
    }

    fn gathered_bytes(&self) -> usize {
        self.gathered.iter().map(Bytes::len).sum()
    }

    /// How much more goes into the message that is being gathered.
    fn room(&self) -> usize {
        if self.gathered.len() >= MAX_PIECES {
            return 0;
        }
        let limit = message_bytes(self.connection.writers.load(Ordering::Relaxed));
        limit.saturating_sub(self.gathered_bytes())
    }

    /// Waits until containerd has written the message that is on its way.
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

    async fn send_gathered(&mut self) -> Result<(), RuntimeError> {
        self.settle().await?;
        self.send(WriteAction::Write).await?;
        self.unacknowledged = true;
        self.settle().await
    }

    /// Sends what is gathered. Nothing of it is lost if the caller stops waiting.
    async fn send(&mut self, action: WriteAction) -> Result<(), RuntimeError> {
        if let Some(slot) = self.stream.ready().await {
            let (begins, ends) = (self.sent, self.offset());
            let data = std::mem::take(&mut self.gathered);
            slot.send(WriteMessage::new(action, &self.content, begins, data));
            self.sent = ends;
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
        match timeout(limit, self.stream.reply()).await {
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
        self.sent.saturating_add(self.gathered_bytes() as u64)
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), RuntimeError> {
        let end = self.offset().saturating_add(bytes.len() as u64);
        if end > self.content.size {
            let (digest, expected_bytes) = (self.content.digest, self.content.size);
            let source = Cause::Mismatch(Mismatch::Long { digest, expected_bytes });
            return Err(RuntimeError::Corrupt { digest, source });
        }
        let mut rest = bytes;
        loop {
            let room = self.room();
            if room == 0 {
                self.send_gathered().await?;
            } else if rest.is_empty() {
                return Ok(());
            } else {
                self.gathered.push(rest.split_to(rest.len().min(room)));
            }
        }
    }

    async fn flush(&mut self) -> Result<(), RuntimeError> {
        if self.gathered.is_empty() { self.settle().await } else { self.send_gathered().await }
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
        assert_eq!(message_bytes(1), 832 * 1024);
        // As many as there are by default; whoever lets more come in side by side has them lose more.
        for writers in 0..=3 {
            let at_risk = writers * (message_bytes(writers) + UNREAD_BYTES);
            assert!(at_risk <= AT_RISK_BYTES, "{writers} writers: {at_risk}");
        }
    }
}
