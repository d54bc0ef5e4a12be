//! What is trusted, and how each document is held against the ones before it (TUF 5.3 to 5.6).
//!
//! Each function takes what is already trusted and the bytes of the next file, and gives the next trusted document or says
//! which rule the file breaks. None of them decides what is fetched or stored; [`super::refresh`] calls them in order.

use std::collections::BTreeMap;

use jiff::Timestamp as Time;

use super::lookup::Lookup;
use super::names::{FileName, TargetPath};
use super::roles::{Document, FileMeta, Root, Snapshot, Targets, Timestamp};
use super::verify::{Authority, Signed, Verified};
use super::{Limits, MetadataError};
use crate::digest::Digest;

/// The trusted metadata of one repository after a whole refresh.
///
/// All of it is signed, of one repository state, not older than what was trusted before, and was not expired at the time
/// of the refresh. Only [`super::refresh::Refresh`] makes it.
#[derive(Clone, Debug)]
pub struct TrustedSet {
    pub(super) now: Time,
    pub(super) limits: Limits,
    pub(super) root: Verified<Root>,
    pub(super) timestamp: Verified<Timestamp>,
    pub(super) snapshot: Verified<Snapshot>,
    pub(super) targets: Verified<Targets>,
    /// Files of delegated roles as they lie on disk, by file name: bytes, not trust. Each search verifies them anew with
    /// the keys of the delegator that it came by (python-tuf #2977).
    pub(super) delegated: BTreeMap<String, Vec<u8>>,
}

impl TrustedSet {
    /// The root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The timestamp.
    pub fn timestamp(&self) -> &Timestamp {
        &self.timestamp
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The top-level targets.
    pub fn targets(&self) -> &Targets {
        &self.targets
    }

    /// The time at which all of it was judged.
    pub fn judged_at(&self) -> Time {
        self.now
    }

    /// What tells one repository from another: the digest of its root file.
    pub(super) fn identity(&self) -> Digest {
        Digest::sha256(self.root.bytes())
    }

    /// Begins the search for one target through all delegations that may list it.
    pub fn lookup(&mut self, path: TargetPath) -> Lookup<'_> {
        Lookup::new(self, path)
    }
}

/// TUF 5.2: a root that came out of band must be signed by its own keys; its expiry does not matter yet.
pub fn first_root(bytes: &[u8], limits: &Limits) -> Result<Verified<Root>, MetadataError> {
    Signed::<Root>::parse("root", bytes, limits.root_bytes)?.verify_by_itself()
}

/// TUF 5.3.4 and 5.3.5: the next root is signed by the keys of the trusted one and by its own, and is the next version
/// (tough CVE-2025-2885, python-tuf PYSEC-2020-145).
pub fn next_root(
    trusted: &Verified<Root>,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Verified<Root>, MetadataError> {
    let signed = Signed::<Root>::parse("root", bytes, limits.root_bytes)?;
    let delegator = format!("root version {}", trusted.version);
    signed.demand(trusted.authority(&delegator, &trusted.roles.root))?;
    let found = signed.document().version;
    if trusted.version.checked_add(1) != Some(found) {
        return Err(MetadataError::RootVersion { trusted: trusted.version, found });
    }
    signed.verify_by_itself()
}

/// Whether a root takes the timestamp or the snapshot role from a key that had it.
///
/// TUF 5.3.11: then the stored timestamp and snapshot are deleted, so that versions which a stolen key has driven up can
/// come down again. A key that is only added takes nothing from a thief, and gives nobody reason to go back.
pub fn retires_online_keys(old: &Root, new: &Root) -> bool {
    let retired = |old: &[_], new: &[_]| old.iter().any(|keyid| !new.contains(keyid));
    retired(&old.roles.timestamp.keyids, &new.roles.timestamp.keyids)
        || retired(&old.roles.snapshot.keyids, &new.roles.snapshot.keyids)
}

/// Refuses what has ended being believed (TUF 5.3.10, 5.4.4, 5.5.6, 5.6.5).
pub fn demand_fresh<T: Document>(role: &str, document: &T, now: Time) -> Result<(), MetadataError> {
    if now < document.expires() {
        return Ok(());
    }
    Err(MetadataError::Expired {
        role: role.to_owned(),
        version: document.version(),
        expires: document.expires(),
        now,
    })
}

/// A stored timestamp that the root still vouches for; it may be expired and still shows what a newer one may not go below.
pub fn stored_timestamp(
    root: &Verified<Root>,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Verified<Timestamp>, MetadataError> {
    let delegator = format!("root version {}", root.version);
    Signed::<Timestamp>::parse("timestamp", bytes, limits.timestamp_bytes)?
        .verify(root.authority(&delegator, &root.roles.timestamp))
}

/// TUF 5.4: the next timestamp, or `None` when it is the version that is trusted already.
pub fn next_timestamp(
    root: &Verified<Root>,
    trusted: Option<&Verified<Timestamp>>,
    bytes: &[u8],
    limits: &Limits,
    now: Time,
) -> Result<Option<Verified<Timestamp>>, MetadataError> {
    let next = stored_timestamp(root, bytes, limits)?;
    if let Some(trusted) = trusted {
        // TUF 5.4.3.1: an equal version is no news, even if its bytes differ.
        if next.version == trusted.version {
            return Ok(None);
        }
        demand_no_rollback("timestamp", trusted.version, next.version)?;
        // TUF 5.4.3.2, and before anything is stored: a timestamp kept here would refuse every honest one after it
        // (tough CVE-2025-2888).
        let (before, after) = (trusted.meta.snapshot.version, next.meta.snapshot.version);
        if after < before {
            return Err(MetadataError::SnapshotListedRollback {
                timestamp: next.version,
                trusted: before,
                found: after,
            });
        }
    }
    demand_fresh("timestamp", &*next, now)?;
    Ok(Some(next))
}

/// A stored snapshot that the root still vouches for, whatever its version and expiry.
pub fn stored_snapshot(
    root: &Verified<Root>,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Verified<Snapshot>, MetadataError> {
    let delegator = format!("root version {}", root.version);
    Signed::<Snapshot>::parse("snapshot", bytes, limits.snapshot_bytes)?
        .verify(root.authority(&delegator, &root.roles.snapshot))
}

/// TUF 5.5: the snapshot that the timestamp lists, not behind the one that was trusted before, even if that has expired.
pub fn next_snapshot(
    root: &Verified<Root>,
    timestamp: &Verified<Timestamp>,
    trusted: Option<&Verified<Snapshot>>,
    bytes: &[u8],
    limits: &Limits,
    now: Time,
) -> Result<Verified<Snapshot>, MetadataError> {
    demand_listed_bytes("snapshot", &timestamp.meta.snapshot, bytes)?;
    let next = stored_snapshot(root, bytes, limits)?;
    demand_listed_version("snapshot", &timestamp.meta.snapshot, next.version)?;
    if let Some(trusted) = trusted {
        demand_nothing_behind(trusted, &next)?;
    }
    demand_fresh("snapshot", &*next, now)?;
    Ok(next)
}

/// TUF 5.6, and 5.6.7.1 for delegated roles: the targets file of `role` that the snapshot lists, signed by those whom its
/// delegator on this path names. All checks hold for delegated roles too (tough CVE-2025-2887, CVE-2026-6967).
pub fn listed_targets(
    role: &str,
    authority: Authority<'_>,
    snapshot: &Verified<Snapshot>,
    bytes: &[u8],
    limits: &Limits,
    now: Time,
) -> Result<Verified<Targets>, MetadataError> {
    let meta = listed(role, snapshot)?;
    demand_listed_bytes(role, meta, bytes)?;
    let targets = Signed::<Targets>::parse(role, bytes, limits.targets_bytes)?.verify(authority)?;
    demand_listed_version(role, meta, targets.version)?;
    demand_fresh(role, &*targets, now)?;
    Ok(targets)
}

/// What the snapshot says of `role`; a role that it does not list is not asked for.
pub fn listed<'a>(role: &str, snapshot: &'a Snapshot) -> Result<&'a FileMeta, MetadataError> {
    let not_listed = || MetadataError::NotInSnapshot { role: role.to_owned(), snapshot: snapshot.version };
    snapshot.file(role).ok_or_else(not_listed)
}

/// Where a listed file lies on the wire, and how long it may be.
///
/// A listed length only ever lowers our own limit: whoever holds the online keys must not be able to fill a device's
/// memory.
pub(super) fn location(root: &Root, role: &str, meta: &FileMeta, limit: u64) -> (FileName, u64) {
    let file = if root.consistent_snapshot {
        FileName::versioned(meta.version, role)
    } else {
        FileName::current(role)
    };
    (file, meta.length.map_or(limit, |length| length.min(limit)))
}

/// Length and hashes over the raw bytes, before anything parses them (TUF 5.5.2, 5.6.2).
fn demand_listed_bytes(role: &str, meta: &FileMeta, bytes: &[u8]) -> Result<(), MetadataError> {
    let found = bytes.len() as u64;
    let listed = meta.length.unwrap_or(found);
    if listed != found {
        return Err(MetadataError::Length { role: role.to_owned(), listed, found });
    }
    let Some(hashes) = &meta.hashes else { return Ok(()) };
    hashes.verify(bytes).map_err(|source| MetadataError::Hashes { role: role.to_owned(), source })
}

fn demand_listed_version(role: &str, meta: &FileMeta, found: u64) -> Result<(), MetadataError> {
    if meta.version == found {
        return Ok(());
    }
    Err(MetadataError::MixAndMatch { role: role.to_owned(), listed: meta.version, found })
}

fn demand_no_rollback(role: &str, trusted: u64, found: u64) -> Result<(), MetadataError> {
    if found >= trusted {
        return Ok(());
    }
    Err(MetadataError::Rollback { role: role.to_owned(), trusted, found })
}

/// TUF 5.5.5: no targets file goes back or vanishes.
fn demand_nothing_behind(trusted: &Snapshot, next: &Snapshot) -> Result<(), MetadataError> {
    for (file, before) in &trusted.meta {
        let Some(after) = next.meta.get(file) else {
            return Err(MetadataError::TargetsVanished { snapshot: next.version, file: file.clone() });
        };
        if after.version < before.version {
            return Err(MetadataError::TargetsListedRollback {
                snapshot: next.version,
                file: file.clone(),
                trusted: before.version,
                found: after.version,
            });
        }
    }
    Ok(())
}
