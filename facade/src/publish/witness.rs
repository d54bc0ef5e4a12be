//! The witness: the highest versions that anybody has seen, kept outside the database.
//!
//! A database restored from an older copy would sign versions that devices have seen with other content, and every device
//! would refuse them. The witness notices, and so do devices that show a timestamp which our own key has signed; then
//! nothing is signed until an operator says so. A device that only says that it has seen more stops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use pki::metadata::{Limits, Root, Verified, trusted};
use pki::wire::RepositoryVersions;
use pki::x509::DeviceId;
use serde::{Deserialize, Serialize};

use super::PublishingError;
use crate::init::Vault;

/// No honest history is this much ahead of ours; whoever has signed it is a thief, and must not burn our versions.
const MAX_AHEAD: u64 = 1_000_000;

/// Devices whose word is remembered without a proof.
const MAX_DOUBTS: usize = 100;

/// The highest versions of one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Marks {
    /// Of the root.
    pub root: u64,
    /// Of the timestamp; in the director repository that of any device.
    pub timestamp: u64,
    /// Of the snapshot, which no targets file is above.
    pub snapshot: u64,
    /// How often the director repository was written.
    pub sequence: u64,
    /// Devices that have seen more than we remember.
    pub claimed_by: BTreeSet<DeviceId>,
}

impl Marks {
    /// The higher of both.
    fn raise(&mut self, other: &Self) {
        self.root = self.root.max(other.root);
        self.timestamp = self.timestamp.max(other.timestamp);
        self.snapshot = self.snapshot.max(other.snapshot);
        self.sequence = self.sequence.max(other.sequence);
    }

    /// Whether anything here is above `other`.
    pub fn is_above(&self, other: &Self) -> bool {
        self.root > other.root
            || self.timestamp > other.timestamp
            || self.snapshot > other.snapshot
            || self.sequence > other.sequence
    }

    /// What a device says it has seen, where that is more than `own`.
    pub fn claimed(seen: RepositoryVersions, own: &Self) -> Option<Self> {
        let claimed = Self {
            root: seen.root,
            timestamp: seen.timestamp,
            snapshot: seen.snapshot.max(seen.targets),
            ..Self::default()
        };
        claimed.is_above(own).then_some(claimed)
    }

    /// What a timestamp shows that the keys of `root` have signed, where that is more than `own`. A key that was retired
    /// shows nothing: retiring it is how versions that a thief has driven up come down again.
    pub fn proven(timestamp: &str, root: &Verified<Root>, own: &Self) -> Option<Self> {
        let signed = trusted::stored_timestamp(root, timestamp.as_bytes(), &Limits::default()).ok()?;
        let proven = Self {
            root: own.root,
            timestamp: signed.version,
            snapshot: signed.meta.snapshot.version,
            ..Self::default()
        };
        let near = |seen: u64, own: u64| seen <= own.saturating_add(MAX_AHEAD);
        let possible = near(proven.timestamp, own.timestamp) && near(proven.snapshot, own.snapshot);
        if !possible {
            tracing::error!(?proven, "a timestamp of an impossible version is signed: rotate its key");
        }
        let above = proven.timestamp > own.timestamp || proven.snapshot > own.snapshot;
        (possible && above).then_some(proven)
    }
}

/// What devices say they have seen without showing it: told to operators, and believed by nobody.
#[derive(Debug, Default)]
pub struct Doubts(BTreeMap<DeviceId, Marks>);

impl Doubts {
    /// Notes what a device claims now, or that it claims nothing.
    pub fn note(&mut self, device: &DeviceId, claimed: Option<Marks>) {
        let Some(claimed) = claimed else {
            self.0.remove(device);
            return;
        };
        if !self.0.contains_key(device) {
            tracing::warn!(device.id = %device, ?claimed, "a device claims newer metadata than there is, and does not show it");
            if self.0.len() >= MAX_DOUBTS {
                return;
            }
        }
        self.0.insert(device.clone(), claimed);
    }

    /// One line of what is to be looked into.
    pub fn warnings(&self, repository: &str) -> Option<String> {
        let (first, claimed) = self.0.first_key_value()?;
        let count = self.0.len();
        Some(format!(
            "{count} devices say that they have seen newer {repository} metadata than there is, and show nothing signed \
             (first: {first}, root {}, timestamp {}, snapshot {}): either a root was lost with an older data directory, \
             or they do not tell the truth; nothing is stopped by it",
            claimed.root, claimed.timestamp, claimed.snapshot
        ))
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    images: Marks,
    director: Marks,
}

/// Which repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repository {
    /// Which artifacts exist.
    Images,
    /// What each device should have.
    Director,
}

impl Repository {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Director => "director",
        }
    }
}

/// The witness of one data directory.
#[derive(Debug)]
pub struct Witness {
    vault: Vault,
    record: Mutex<Record>,
}

impl Witness {
    /// Reads what was seen so far.
    pub fn open(vault: Vault) -> Result<Self, PublishingError> {
        let record = match vault.witness()? {
            None => Record::default(),
            Some(text) => serde_json::from_str(&text)
                .map_err(|_| PublishingError::Unreadable { file: "witness.json".to_owned() })?,
        };
        Ok(Self { vault, record: Mutex::new(record) })
    }

    /// The highest versions of a repository.
    pub fn marks(&self, repository: Repository) -> Marks {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        match repository {
            Repository::Images => record.images.clone(),
            Repository::Director => record.director.clone(),
        }
    }

    /// Remembers what was published; whoever claimed less is answered by it.
    pub fn published(&self, repository: Repository, marks: &Marks) -> Result<(), PublishingError> {
        self.change(repository, |seen| seen.raise(marks))
    }

    /// Remembers that a device has shown more.
    pub fn claimed(
        &self,
        repository: Repository,
        device: &DeviceId,
        marks: &Marks,
    ) -> Result<(), PublishingError> {
        self.change(repository, |seen| {
            seen.raise(marks);
            seen.claimed_by.insert(device.clone());
        })
    }

    /// Sets the marks by an operator's word.
    pub fn settle(&self, repository: Repository, marks: Marks) -> Result<(), PublishingError> {
        self.change(repository, |seen| *seen = marks)
    }

    fn change(&self, repository: Repository, change: impl FnOnce(&mut Marks)) -> Result<(), PublishingError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = match repository {
            Repository::Images => &mut record.images,
            Repository::Director => &mut record.director,
        };
        let before = marks.clone();
        change(marks);
        if *marks == before {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(&*record).unwrap_or_default();
        Ok(self.vault.put_witness(&text)?)
    }
}
