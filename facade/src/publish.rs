//! Signs and stores the next metadata when an import, an assignment or time asks for it.
//!
//! [`images`] says which artifacts exist, [`director`] what one device should have. A file is served exactly as it was
//! signed and stored; metadata and the record it speaks of are written in one batch.

pub mod director;
pub mod images;

use std::time::Duration;

use jiff::Timestamp;
use pki::metadata::publish::PublishError;
use pki::metadata::roles::Document;
use pki::metadata::verify::Signed;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::store::StoreError;

/// How long signed metadata lives.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Timestamps.
    pub timestamp: Duration,
    /// Snapshots, and the director's targets.
    pub snapshot: Duration,
    /// The targets of the images repository.
    pub targets: Duration,
}

/// Why metadata could not be published.
#[derive(Debug, Error)]
pub enum PublishingError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Signing failed.
    #[error("cannot sign {file}")]
    Sign {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: PublishError,
    },
    /// A stored file is not what this facade wrote.
    #[error("stored metadata {file} cannot be read")]
    Unreadable {
        /// The file.
        file: String,
    },
    /// An artifact's name cannot be a target.
    #[error("{0} cannot be the name of a target")]
    Name(String),
}

/// Names of the files of a repository, as they are served.
fn versioned(version: u64, role: &str) -> String {
    format!("{version}.{role}.json")
}

/// Largest stored file that is read back.
const MAX_STORED_BYTES: u64 = 1 << 30;

/// Reads a document out of a file that this facade signed.
fn read<T: Document + Clone>(role: &str, file: &str, bytes: &[u8]) -> Result<T, PublishingError> {
    let signed = Signed::<T>::parse(role, bytes, MAX_STORED_BYTES);
    signed
        .map(|signed| signed.document().clone())
        .map_err(|_| PublishingError::Unreadable {
            file: file.to_owned(),
        })
}

const TIMESTAMP_FILE: &str = "timestamp.json";

/// When metadata that is signed now ends: whole seconds, as TUF writes times.
fn end_of(now: Timestamp, lifetime: Duration) -> Timestamp {
    let end = now
        .as_second()
        .saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
    Timestamp::from_second(end).unwrap_or(Timestamp::MAX)
}

/// What a timestamp says of its own time: the floor below which a device with a wrong clock does not go.
fn signed_at(now: Timestamp) -> Map<String, Value> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Map::from_iter([("signed_at".to_owned(), now.to_string().into())])
}

/// Whether more than half of a document's life is over: time to sign it again, long before a device would refuse it.
fn is_ageing(document: &impl Document, now: Timestamp, lifetime: Duration) -> bool {
    let left = document.expires().as_second().saturating_sub(now.as_second());
    left < i64::try_from(lifetime.as_secs() / 2).unwrap_or(i64::MAX)
}
