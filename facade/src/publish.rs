//! Signs and stores the next metadata when an import, an assignment or time asks for it.
//!
//! [`images`] says which artifacts exist, [`director`] what one device should have. A file is served exactly as it was
//! signed and stored; metadata and the record it speaks of are written in one batch.

pub mod bins;
pub mod director;
pub mod images;
pub mod publishers;
pub mod request;
pub mod review;
#[cfg(test)]
mod tests;
pub mod trust;
pub mod witness;

use std::time::Duration;

use jiff::Timestamp;
use pki::key::{KeyError, KeyId};
use pki::metadata::MetadataError;
use pki::metadata::publish::{PublishError, sign};
use pki::metadata::roles::{Document, RoleKeys};
use pki::metadata::verify::Signed;
use pki::oci::Repository;
use serde_json::{Map, Value};
use thiserror::Error;

use self::publishers::PublisherName;
use self::trust::{KeyRing, RootChangeError};
use crate::init::InitError;
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
    /// Roots.
    pub root: Duration,
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
    /// The data directory cannot be written.
    #[error(transparent)]
    Vault(#[from] InitError),
    /// Metadata is not what devices would accept.
    #[error("metadata was refused")]
    Refused(#[source] MetadataError),
    /// A signature does not verify.
    #[error("the signature was refused")]
    Signature(#[source] PublishError),
    /// The key has no part in the file.
    #[error("key {keyid} does not sign {role} here")]
    NoSigner {
        /// The key.
        keyid: KeyId,
        /// The file's role.
        role: String,
    },
    /// The request has no such file.
    #[error("the signing request has no file of {0}")]
    NotInRequest(String),
    /// The request was changed or published meanwhile.
    #[error("there is no such signing request any more (facade keys pending)")]
    NoRequest,
    /// The keys of a role cannot be changed so.
    #[error("the keys cannot be changed")]
    Change(#[from] RootChangeError),
    /// The director signs by itself.
    #[error(
        "the director signs for every device when it asks; its keys for anything but roots have to be here"
    )]
    OnlineOnly,
    /// A change of keys waits for signatures; nothing else may come between.
    #[error("a change of keys waits for signatures (facade keys pending); sign it, or drop it, first")]
    Waiting,
    /// Somebody has seen more than we remember.
    #[error(
        "the {repository} repository is behind what was published before (timestamp {own}, seen {seen}): the database \
         was restored from an older copy; nothing is signed until an operator says so (facade keys recover {repository})"
    )]
    Behind {
        /// Which repository.
        repository: &'static str,
        /// Our version of its timestamp.
        own: u64,
        /// The version that was seen.
        seen: u64,
    },
    /// Devices trust a root that is not here.
    #[error(
        "root version {seen} of {repository} was published and is not here: restore tuf/ and keys/ of the data directory \
         from a newer backup"
    )]
    RootLost {
        /// Which repository.
        repository: &'static str,
        /// The version that was seen.
        seen: u64,
    },
    /// A new key could not be made.
    #[error("no key could be made")]
    Key(#[source] KeyError),
    /// What was revoked is not signed again.
    #[error("{0} was revoked; a revoked artifact is not signed again")]
    Revoked(String),
    /// There is no such publisher.
    #[error("there is no publisher {0} (facade keys delegations)")]
    NoPublisher(PublisherName),
    /// The name is in use.
    #[error(
        "there is a publisher {0} already (facade keys delegations); take it back first (facade keys revoke {0})"
    )]
    KnownPublisher(PublisherName),
    /// Two publishers of one repository: the first would answer for both.
    #[error("{repository} is delegated to {publisher} already (facade keys delegations)")]
    Delegated {
        /// The repository.
        repository: Repository,
        /// Whose it is.
        publisher: PublisherName,
    },
    /// More than a document should hold.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: usize,
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
        .map_err(|_| PublishingError::Unreadable { file: file.to_owned() })
}

const TIMESTAMP_FILE: &str = "timestamp.json";

/// When metadata that is signed now ends: whole seconds, as TUF writes times.
fn end_of(now: Timestamp, lifetime: Duration) -> Timestamp {
    let end = now.as_second().saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
    Timestamp::from_second(end).unwrap_or(Timestamp::MAX)
}

/// What a timestamp says of its own time: the floor below which a device with a wrong clock does not go.
fn signed_at(now: Timestamp) -> Map<String, Value> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Map::from_iter([("signed_at".to_owned(), now.to_string().into())])
}

/// Whether more than half of a life is over: time to sign again, long before a device would refuse it.
fn is_ageing(expires: Timestamp, now: Timestamp, lifetime: Duration) -> bool {
    let left = expires.as_second().saturating_sub(now.as_second());
    left < i64::try_from(lifetime.as_secs() / 2).unwrap_or(i64::MAX)
}

/// Signs a document with the keys of its role that are here, be they enough or not.
fn sign_with<T: Document>(
    document: &T,
    role: &str,
    keys: &RoleKeys,
    ring: &KeyRing,
) -> Result<Vec<u8>, PublishingError> {
    sign(document, &ring.signers(keys))
        .map_err(|source| PublishingError::Sign { file: versioned(document.version(), role), source })
}
