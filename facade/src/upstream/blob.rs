//! A blob on its way from a registry: bytes as they come, watched for stalls; not yet verified.

use bytes::Bytes;

use super::error::UpstreamError;

/// The bytes of a blob, from [`BlobStream::starts_at`] to its end.
#[derive(Debug)]
pub struct BlobStream {
    /// The offset of the first byte: what was asked for, or 0 where the registry does not serve ranges.
    pub starts_at: u64,
    /// The length of the whole blob, where the registry says it.
    pub total: Option<u64>,
}

impl BlobStream {
    /// The next bytes; none at the end. The content is not verified.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        todo!()
    }
}
