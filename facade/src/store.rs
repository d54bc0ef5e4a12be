//! The operator's records, as ordered tables of keys and values.
//!
//! [`Store`] is as narrow as two backends can share: point reads, ordered scans, and atomic batches with preconditions.
//! It knows no domain word; [`crate::catalog`] lives above it. A commit is acknowledged only when it is durable.

#[cfg(test)]
pub(crate) mod conformance;
mod dump;
pub mod sled;

use std::fmt;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// A namespace of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table(pub &'static str);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key within the table.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
}

/// Which records a scan returns, in ascending order of their keys.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Only keys that start with this.
    pub prefix: &'a str,
    /// Only keys greater than this.
    pub after: Option<&'a str>,
    /// At most this many.
    pub limit: usize,
}

impl Scan<'_> {
    /// Every record of the table.
    pub const ALL: Self = Self { prefix: "", after: None, limit: usize::MAX };
}

/// What went wrong with a record.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A precondition of a batch does not hold; nothing was written.
    #[error("record {key:?} of {table} was changed by someone else")]
    Conflict {
        /// The table.
        table: Table,
        /// The key.
        key: String,
    },
    /// Another process has the database open.
    #[error("the database in {path} is in use; is another facade running on this data directory?")]
    InUse {
        /// The directory.
        path: std::path::PathBuf,
    },
    /// The database could not be opened.
    #[error("cannot open the database in {path}")]
    Open {
        /// The directory.
        path: std::path::PathBuf,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The database failed; after this no write may be trusted and the process must end.
    #[error("the database failed while {action}")]
    Failed {
        /// What was being done.
        action: &'static str,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// A record is not what this version of the facade writes.
    #[error("record {key:?} of {table} cannot be read")]
    Unreadable {
        /// The table.
        table: Table,
        /// The key.
        key: String,
        /// What happened.
        #[source]
        source: serde_json::Error,
    },
    /// A value cannot be written as JSON.
    #[error("record {key:?} of {table} cannot be written")]
    Unwritable {
        /// The table.
        table: Table,
        /// The key.
        key: String,
        /// What happened.
        #[source]
        source: serde_json::Error,
    },
}

/// A set of changes that happens whole or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(crate) requirements: Vec<(Table, String, Option<Vec<u8>>)>,
    pub(crate) writes: Vec<(Table, String, Option<Vec<u8>>)>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing happens unless the record is absent.
    pub fn require_absent(&mut self, table: Table, key: &str) {
        self.requirements.push((table, key.to_owned(), None));
    }

    /// Nothing happens unless the record has just this value.
    pub fn require_value(&mut self, table: Table, key: &str, value: Vec<u8>) {
        self.requirements.push((table, key.to_owned(), Some(value)));
    }

    /// Writes a record.
    pub fn put(&mut self, table: Table, key: &str, value: Vec<u8>) {
        self.writes.push((table, key.to_owned(), Some(value)));
    }

    /// Writes a record as JSON.
    pub fn put_json<T: Serialize>(&mut self, table: Table, key: &str, value: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(value).map_err(|source| StoreError::Unwritable {
            table,
            key: key.to_owned(),
            source,
        })?;
        self.put(table, key, bytes);
        Ok(())
    }

    /// Adds everything that another batch does.
    pub fn append(&mut self, other: Self) {
        self.requirements.extend(other.requirements);
        self.writes.extend(other.writes);
    }

    /// Removes a record, if it is there.
    pub fn delete(&mut self, table: Table, key: &str) {
        self.writes.push((table, key.to_owned(), None));
    }
}

/// Ordered tables with atomic, durable batches.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one record.
    async fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Reads records in the order of their keys.
    async fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StoreError>;

    /// Applies a batch, and returns when it is durable.
    async fn commit(&self, batch: Batch) -> Result<(), StoreError>;
}

/// Reads one JSON record.
pub async fn get_json<T: DeserializeOwned>(
    store: &dyn Store,
    table: Table,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let Some(bytes) = store.get(table, key).await? else {
        return Ok(None);
    };
    decode(table, key, &bytes).map(Some)
}

/// Reads JSON records in the order of their keys.
pub async fn scan_json<T: DeserializeOwned>(
    store: &dyn Store,
    table: Table,
    scan: Scan<'_>,
) -> Result<Vec<(String, T)>, StoreError> {
    let entries = store.scan(table, scan).await?;
    entries
        .into_iter()
        .map(|entry| Ok((entry.key.clone(), decode(table, &entry.key, &entry.value)?)))
        .collect()
}

/// Reads a JSON value out of a record's bytes.
pub fn decode<T: DeserializeOwned>(table: Table, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Unreadable {
        table,
        key: key.to_owned(),
        source,
    })
}
