//! TUF metadata: what its roles say, who must have signed it, and in which order it may be believed.
//!
//! Bytes and `now` go in, trusted values come out. Nothing here fetches or stores: [`refresh::Refresh`] and
//! [`lookup::Lookup`] say what to fetch and what to store, their caller carries the bytes. Only [`verify`] counts
//! signatures; what it lets through is a [`Verified`], and everything after it takes that.
//!
//! - [`roles`]: the documents; [`names`]: roles, target paths, hashes and times within them
//! - [`verify`]: threshold of distinct keys
//! - [`trusted`]: each document against the ones before it: rollback, freeze, mix-and-match
//! - [`refresh`], [`lookup`]: the client workflow of TUF 5, one request after another
//! - [`uptane`]: where director and images must agree
//! - [`publish`]: signing, next versions, root rotation

pub mod error;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod hostile;
pub mod lookup;
pub mod names;
pub mod publish;
pub mod refresh;
pub mod roles;
#[cfg(test)]
mod thief;
pub mod trusted;
pub mod uptane;
#[cfg(test)]
mod vectors;
pub mod verify;

pub use error::MetadataError;
pub use names::{FileName, Hashes, RoleName, TargetPath};
pub use roles::{DelegatedRole, Delegations, FileMeta, Root, Scope, Snapshot, Target, Targets, Timestamp};
pub use trusted::TrustedSet;
pub use verify::Verified;

/// What one refresh may cost, whatever a server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest root file.
    pub root_bytes: u64,
    /// Largest timestamp file.
    pub timestamp_bytes: u64,
    /// Largest snapshot file, also where the timestamp lists a greater length.
    pub snapshot_bytes: u64,
    /// Largest targets file, also where the snapshot lists a greater length.
    pub targets_bytes: u64,
    /// Most root files followed in one refresh (TUF 5.3.3); the next refresh goes on from there.
    pub root_rotations: u64,
    /// Most roles that the search for one target visits.
    pub visited_roles: usize,
    /// Deepest chain of delegations that the search for one target follows.
    pub delegation_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            root_bytes: 64 << 10,
            timestamp_bytes: 16 << 10,
            snapshot_bytes: 2 << 20,
            targets_bytes: 4 << 20,
            root_rotations: 1024,
            visited_roles: 32,
            delegation_depth: 16,
        }
    }
}
