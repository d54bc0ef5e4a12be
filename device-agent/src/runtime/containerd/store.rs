//! Reading from containerd's content store, and taking damaged content out of it.

use containerd_client::services::v1::{
    DeleteContentRequest, InfoRequest, ReadContentRequest, ReadContentResponse,
};
use pki::digest::{Digest, Mismatch, Verifier};
use pki::oci::Descriptor;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::super::{Cause, MAX_READ_BYTES, RuntimeError, Verification};
use super::connection::{Connection, WORK, is_gone};
use super::leases;

/// Whether content is there with its right length.
pub(super) async fn has(connection: &Connection, content: &Descriptor) -> Result<bool, RuntimeError> {
    let digest = content.digest;
    let message = InfoRequest { digest: digest.to_string() };
    let answer = match connection.content().await?.info(connection.request(message)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::NotFound => return Ok(false),
        Err(status) => return Err(connection.error(format!("looking for {digest}"), status)),
    };
    let found = answer.info.and_then(|info| u64::try_from(info.size).ok()).unwrap_or(0);
    if found == content.size {
        return Ok(true);
    }
    let expected_bytes = content.size;
    let source = Cause::Mismatch(if found > expected_bytes {
        Mismatch::Long { digest, expected_bytes }
    } else {
        Mismatch::Short { digest, received_bytes: found, expected_bytes }
    });
    Err(RuntimeError::Corrupt { digest, source })
}

/// Reads small content and verifies it.
pub(super) async fn read(connection: &Connection, content: &Descriptor) -> Result<Vec<u8>, RuntimeError> {
    let (digest, size_bytes) = (content.digest, content.size);
    if size_bytes > MAX_READ_BYTES {
        return Err(RuntimeError::TooLarge { digest, size_bytes });
    }
    let mut bytes = Vec::new();
    let mut reader = Reader::open(connection, content).await?;
    while let Some(piece) = reader.next().await? {
        bytes.extend_from_slice(&piece);
    }
    reader.finish()?;
    Ok(bytes)
}

/// Reads all content back and hashes it.
pub(super) async fn verify(
    connection: &Connection,
    contents: &[&Descriptor],
) -> Result<Verification, RuntimeError> {
    let mut verification = Verification::default();
    for content in contents {
        match verify_one(connection, content).await {
            Ok(()) => verification.verified_bytes += content.size,
            Err(RuntimeError::Missing { digest }) => verification.missing.push(digest),
            Err(RuntimeError::Corrupt { digest, .. }) => verification.damaged.push(digest),
            Err(error) => return Err(error),
        }
    }
    Ok(verification)
}

async fn verify_one(connection: &Connection, content: &Descriptor) -> Result<(), RuntimeError> {
    let mut reader = Reader::open(connection, content).await?;
    while reader.next().await?.is_some() {}
    reader.finish()
}

/// Deletes content and has its bytes collected, so that the next write starts from nothing instead of finding them.
pub(super) async fn discard(connection: &Connection, digest: Digest) -> Result<(), RuntimeError> {
    let message = DeleteContentRequest { digest: digest.to_string() };
    match connection.content().await?.delete(connection.request(message)).await {
        Ok(_) => {}
        Err(status) if status.code() == Code::NotFound => {}
        Err(status) => return Err(connection.error(format!("deleting {digest}"), status)),
    }
    leases::collect(connection).await
}

/// One content on its way out, held against its digest.
struct Reader<'a> {
    connection: &'a Connection,
    digest: Digest,
    pieces: Streaming<ReadContentResponse>,
    verifier: Verifier,
}

impl<'a> Reader<'a> {
    async fn open(connection: &'a Connection, content: &Descriptor) -> Result<Self, RuntimeError> {
        let digest = content.digest;
        let message = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let answer = connection.content().await?.read(connection.stream(message)).await;
        let pieces = answer.map_err(|status| refusal(connection, digest, status))?.into_inner();
        Ok(Self { connection, digest, pieces, verifier: Verifier::new(digest, content.size) })
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, RuntimeError> {
        let Ok(piece) = timeout(WORK, self.pieces.message()).await else {
            return Err(self.connection.broken(format!("reading {}", self.digest), "no answer in time"));
        };
        let piece = piece.map_err(|status| refusal(self.connection, self.digest, status))?;
        let Some(piece) = piece else { return Ok(None) };
        self.verifier.update(&piece.data).map_err(|mismatch| corrupt(self.digest, mismatch))?;
        Ok(Some(piece.data))
    }

    fn finish(self) -> Result<(), RuntimeError> {
        self.verifier.finish().map_err(|mismatch| corrupt(self.digest, mismatch))
    }
}

fn corrupt(digest: Digest, mismatch: Mismatch) -> RuntimeError {
    RuntimeError::Corrupt { digest, source: Cause::Mismatch(mismatch) }
}

/// Content that cannot be read although containerd is there is damaged: a bad sector, or a file cut short.
fn refusal(connection: &Connection, digest: Digest, status: Status) -> RuntimeError {
    if status.code() == Code::NotFound {
        return RuntimeError::Missing { digest };
    }
    let unreadable = [Code::Unknown, Code::Internal, Code::DataLoss, Code::OutOfRange];
    if unreadable.contains(&status.code()) && !is_gone(&status) {
        let source = Cause::Status(Box::new(status));
        return RuntimeError::Corrupt { digest, source };
    }
    connection.error(format!("reading {digest}"), status)
}
