//! Every way in which metadata is refused, each with the role and the versions that an operator needs to see.

use jiff::Timestamp;
use thiserror::Error;

use super::names::HashMismatch;
use super::roles::Flaw;
use crate::canonical::CanonicalError;
use crate::json::JsonError;

/// Why metadata is not believed.
#[derive(Debug, Error)]
pub enum MetadataError {
    /// Not JSON with one reading, or not of the shape that TUF gives it.
    #[error("{role} metadata cannot be read")]
    Unreadable {
        /// The role.
        role: String,
        /// What is wrong.
        #[source]
        source: JsonError,
    },
    /// The signed part has no canonical bytes that a signature could be over.
    #[error("{role} metadata has no canonical form")]
    NotCanonical {
        /// The role.
        role: String,
        /// What is wrong.
        #[source]
        source: CanonicalError,
    },
    /// The file is of another kind than was asked for.
    #[error("{role} metadata is of type {found:?}, not {expected:?}")]
    WrongType {
        /// The role.
        role: String,
        /// The type that was asked for.
        expected: &'static str,
        /// The type that came.
        found: String,
    },
    /// The file follows another major version of the specification.
    #[error("{role} metadata follows specification {found:?}, not 1.x")]
    SpecVersion {
        /// The role.
        role: String,
        /// What it follows.
        found: String,
    },
    /// The file says something that no document may say.
    #[error("{role} metadata is flawed")]
    Flawed {
        /// The role.
        role: String,
        /// What is wrong.
        #[source]
        source: Flaw,
    },
    /// One key id signs twice, and could be counted twice.
    #[error("{role} metadata has two signatures of key {keyid}")]
    RepeatedSignature {
        /// The role.
        role: String,
        /// The key id.
        keyid: String,
    },
    /// There are more signatures than any honest document has.
    #[error("{role} metadata has more than {limit} signatures")]
    TooManySignatures {
        /// The role.
        role: String,
        /// The limit.
        limit: usize,
    },
    /// Too few distinct keys of the role have signed.
    #[error("{role} version {version} is signed by {valid} of the {threshold} keys that {delegator} demands")]
    UnmetThreshold {
        /// The role.
        role: String,
        /// The version that came.
        version: u64,
        /// Who names the keys: `root` with its version, or the delegating role.
        delegator: String,
        /// Distinct keys of the role that have signed.
        valid: u64,
        /// Keys that must have signed.
        threshold: u64,
    },
    /// The next root is not the next version.
    #[error("root version {found} does not follow version {trusted}")]
    RootVersion {
        /// The version that is trusted.
        trusted: u64,
        /// The version that came.
        found: u64,
    },
    /// A version goes down.
    #[error("{role} goes back from version {trusted} to {found}")]
    Rollback {
        /// The role.
        role: String,
        /// The version that was trusted before.
        trusted: u64,
        /// The version that came.
        found: u64,
    },
    /// A new timestamp lists an older snapshot.
    #[error("timestamp version {timestamp} lists snapshot {found} after snapshot {trusted}")]
    SnapshotListedRollback {
        /// The version of the new timestamp.
        timestamp: u64,
        /// The snapshot version that was listed before.
        trusted: u64,
        /// The snapshot version that it lists.
        found: u64,
    },
    /// A new snapshot lists an older targets file.
    #[error("snapshot version {snapshot} lists {file} {found} after {trusted}")]
    TargetsListedRollback {
        /// The version of the new snapshot.
        snapshot: u64,
        /// The file.
        file: String,
        /// The version that was listed before.
        trusted: u64,
        /// The version that it lists.
        found: u64,
    },
    /// A new snapshot no longer lists a file.
    #[error("snapshot version {snapshot} no longer lists {file}")]
    TargetsVanished {
        /// The version of the new snapshot.
        snapshot: u64,
        /// The file.
        file: String,
    },
    /// A file has another version than the one that lists it says: parts of two repository states.
    #[error("{role} has version {found} where version {listed} is listed")]
    MixAndMatch {
        /// The role.
        role: String,
        /// The version that is listed.
        listed: u64,
        /// The version that came.
        found: u64,
    },
    /// A file has another length than is listed.
    #[error("{role} is {found} bytes long where {listed} are listed")]
    Length {
        /// The role.
        role: String,
        /// The length that is listed.
        listed: u64,
        /// The length that came.
        found: u64,
    },
    /// A file has other hashes than are listed.
    #[error("{role} does not have its listed hashes")]
    Hashes {
        /// The role.
        role: String,
        /// How it differs.
        #[source]
        source: HashMismatch,
    },
    /// The file has ended being believed: either it is old, or someone holds back newer ones.
    #[error("{role} version {version} expired at {expires}, and it is {now}")]
    Expired {
        /// The role.
        role: String,
        /// Its version.
        version: u64,
        /// When it expired.
        expires: Timestamp,
        /// The time of this refresh.
        now: Timestamp,
    },
    /// A role is delegated to but not in the snapshot.
    #[error("{role} is not listed in snapshot version {snapshot}")]
    NotInSnapshot {
        /// The role.
        role: String,
        /// The version of the snapshot.
        snapshot: u64,
    },
    /// The server does not have a file that it must have.
    #[error("server has no {file}")]
    Missing {
        /// The file.
        file: String,
    },
    /// The file goes on past its limit.
    #[error("{file} is longer than {limit} bytes")]
    TooLong {
        /// The file.
        file: String,
        /// The limit.
        limit: u64,
    },
    /// The search for one target would visit more roles than it may.
    #[error("search for {target} visits more than {limit} roles")]
    SearchTooWide {
        /// The target.
        target: String,
        /// The limit.
        limit: usize,
    },
    /// The search for one target would follow more delegations in a row than it may.
    #[error("search for {target} is more than {limit} delegations deep")]
    SearchTooDeep {
        /// The target.
        target: String,
        /// The limit.
        limit: usize,
    },
    /// The work was given up before its end, or an earlier step of it failed.
    #[error("the refresh was not completed")]
    Incomplete,
}
