//! One whole refresh of a repository (TUF 5.2 to 5.6), as a machine that asks for what it needs.
//!
//! [`Refresh::step`] says what to fetch, store or remove next; the caller does it and comes back. What is stored is stored
//! before the next request is made, so that a crash, a lost connection or a lie at any point leaves a state from which the
//! next refresh goes on. `now` is fixed at the start.
//!
//! Order of requests: `N.root.json` until there is none, `timestamp.json`, and only what changed of snapshot and targets.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp as Time;

use super::names::FileName;
use super::roles::{Root, Snapshot, Targets, Timestamp};
use super::trusted::{self, TrustedSet};
use super::verify::Verified;
use super::{Limits, MetadataError};

/// The trusted metadata as it lies on disk.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// `root.json`.
    pub root: Vec<u8>,
    /// `timestamp.json`.
    pub timestamp: Option<Vec<u8>>,
    /// `snapshot.json`.
    pub snapshot: Option<Vec<u8>>,
    /// `targets.json`.
    pub targets: Option<Vec<u8>>,
    /// The files of delegated roles, by the file name under which they were stored.
    pub delegated: BTreeMap<String, Vec<u8>>,
}

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Fetch a file of at most so many bytes, then call `answer`.
    Fetch {
        /// The file's name on the wire, one path segment.
        file: String,
        /// Bytes after which to stop reading.
        max_bytes: u64,
    },
    /// Make these bytes durable under this name, then go on.
    Store {
        /// The file's name on disk.
        file: String,
        /// Its content.
        bytes: Vec<u8>,
    },
    /// Remove the file if it is there, durably, then go on.
    Remove {
        /// The file's name on disk.
        file: String,
    },
    /// Nothing is left to do.
    Done,
}

/// What a fetch came to. Any other outcome ends the refresh: the caller drops it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file.
    Bytes(Vec<u8>),
    /// The server said that there is no such file.
    Absent,
}

impl Fetched {
    /// The bytes of a file that must be there, within its limit.
    pub(super) fn demand(self, file: &str, limit: u64) -> Result<Vec<u8>, MetadataError> {
        match self {
            Self::Bytes(bytes) if bytes.len() as u64 <= limit => Ok(bytes),
            Self::Bytes(_) => Err(MetadataError::TooLong { file: file.to_owned(), limit }),
            Self::Absent => Err(MetadataError::Missing { file: file.to_owned() }),
        }
    }
}

/// A refresh under way.
#[derive(Debug)]
pub struct Refresh {
    now: Time,
    limits: Limits,
    stored: Stored,
    root: Verified<Root>,
    rotations: u64,
    timestamp: Option<Verified<Timestamp>>,
    snapshot: Option<Verified<Snapshot>>,
    targets: Option<Verified<Targets>>,
    phase: Phase,
    to_do: VecDeque<Step>,
    asked: Option<(String, u64)>,
    answer: Option<Fetched>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Root,
    Timestamp,
    Snapshot,
    Targets,
    Done,
    Failed,
}

impl Refresh {
    /// Begins from what is stored; the stored root must hold by itself.
    pub fn new(stored: Stored, now: Time, limits: Limits) -> Result<Self, MetadataError> {
        let root = trusted::first_root(&stored.root, &limits)?;
        Ok(Self {
            now,
            limits,
            stored,
            root,
            rotations: 0,
            timestamp: None,
            snapshot: None,
            targets: None,
            phase: Phase::Root,
            to_do: VecDeque::new(),
            asked: None,
            answer: None,
        })
    }

    /// The next thing to do. After a failure every further call fails.
    pub fn step(&mut self) -> Result<Step, MetadataError> {
        let step = self.advance();
        if step.is_err() {
            self.phase = Phase::Failed;
        }
        step
    }

    /// Takes what the last fetch came to.
    pub fn answer(&mut self, fetched: Fetched) {
        self.answer = Some(fetched);
    }

    /// The trusted metadata, once all is done.
    pub fn into_trusted(self) -> Result<TrustedSet, MetadataError> {
        let (Phase::Done, Some(timestamp), Some(snapshot), Some(targets)) =
            (self.phase, self.timestamp, self.snapshot, self.targets)
        else {
            return Err(MetadataError::Incomplete);
        };
        Ok(TrustedSet {
            now: self.now,
            limits: self.limits,
            root: self.root,
            timestamp,
            snapshot,
            targets,
            delegated: self.stored.delegated,
        })
    }

    fn advance(&mut self) -> Result<Step, MetadataError> {
        loop {
            if self.phase == Phase::Failed {
                return Err(MetadataError::Incomplete);
            }
            // What is to be stored is stored before anything else is judged or asked.
            if let Some(step) = self.to_do.pop_front() {
                return Ok(step);
            }
            match (self.asked.take(), self.answer.take()) {
                (Some((file, limit)), Some(fetched)) => self.judge(&file, limit, fetched)?,
                (Some((file, max_bytes)), None) => {
                    self.asked = Some((file.clone(), max_bytes));
                    return Ok(Step::Fetch { file, max_bytes });
                }
                (None, _) if self.phase == Phase::Done => return Ok(Step::Done),
                (None, _) => self.ask()?,
            }
        }
    }

    /// Notes what to fetch in this phase, or goes to the next phase if nothing is needed.
    fn ask(&mut self) -> Result<(), MetadataError> {
        match self.phase {
            Phase::Root => self.ask_root(),
            Phase::Timestamp => {
                self.asked = Some((FileName::current("timestamp").into(), self.limits.timestamp_bytes));
                Ok(())
            }
            Phase::Snapshot => self.ask_snapshot(),
            Phase::Targets => self.ask_targets(),
            Phase::Done | Phase::Failed => Ok(()),
        }
    }

    fn judge(&mut self, file: &str, limit: u64, fetched: Fetched) -> Result<(), MetadataError> {
        match (self.phase, fetched) {
            // TUF 5.3.3: only "there is none" ends the walk.
            (Phase::Root, Fetched::Absent) => self.end_root_walk(),
            (Phase::Root, fetched) => self.take_root(&fetched.demand(file, limit)?),
            (Phase::Timestamp, fetched) => self.take_timestamp(fetched.demand(file, limit)?),
            (Phase::Snapshot, fetched) => self.take_snapshot(&fetched.demand(file, limit)?),
            (Phase::Targets, fetched) => self.take_targets(&fetched.demand(file, limit)?),
            (Phase::Done | Phase::Failed, _) => Ok(()),
        }
    }

    fn ask_root(&mut self) -> Result<(), MetadataError> {
        let next = self.root.version.saturating_add(1);
        if self.rotations >= self.limits.root_rotations {
            return self.end_root_walk();
        }
        self.asked = Some((FileName::versioned(next, "root").into(), self.limits.root_bytes));
        Ok(())
    }

    fn take_root(&mut self, bytes: &[u8]) -> Result<(), MetadataError> {
        let next = trusted::next_root(&self.root, bytes, &self.limits)?;
        // TUF 5.3.8: stored at once, so that the walk survives whatever comes next.
        self.store("root", bytes);
        // TUF 5.3.11, with the root that retires a key rather than at the end of the walk: a connection lost in between
        // would otherwise lose the recovery with it.
        if trusted::retires_online_keys(&self.root, &next) {
            self.forget_online_roles();
        }
        self.root = next;
        self.rotations += 1;
        Ok(())
    }

    fn forget_online_roles(&mut self) {
        self.stored.timestamp = None;
        self.stored.snapshot = None;
        for role in ["timestamp", "snapshot"] {
            self.to_do.push_back(Step::Remove { file: FileName::current(role).into() });
        }
    }

    fn end_root_walk(&mut self) -> Result<(), MetadataError> {
        trusted::demand_fresh("root", &*self.root, self.now)?;
        // A stored timestamp that this root does not vouch for is no floor: its key may be the stolen one.
        self.timestamp = self
            .stored
            .timestamp
            .take()
            .and_then(|bytes| trusted::stored_timestamp(&self.root, &bytes, &self.limits).ok());
        self.phase = Phase::Timestamp;
        Ok(())
    }

    fn take_timestamp(&mut self, bytes: Vec<u8>) -> Result<(), MetadataError> {
        let trusted = self.timestamp.as_ref();
        let next = trusted::next_timestamp(&self.root, trusted, &bytes, &self.limits, self.now)?;
        match (next, trusted) {
            (Some(next), _) => {
                self.timestamp = Some(next);
                self.to_do.push_back(Step::Store { file: FileName::current("timestamp").into(), bytes });
            }
            // An expired timestamp that is served again and again is a freeze, not "no change".
            (None, Some(trusted)) => trusted::demand_fresh("timestamp", &**trusted, self.now)?,
            (None, None) => return Err(MetadataError::Incomplete),
        }
        self.phase = Phase::Snapshot;
        Ok(())
    }

    fn ask_snapshot(&mut self) -> Result<(), MetadataError> {
        let timestamp = self.timestamp.as_ref().ok_or(MetadataError::Incomplete)?;
        let meta = &timestamp.meta.snapshot;
        self.snapshot = self
            .stored
            .snapshot
            .take()
            .and_then(|bytes| trusted::stored_snapshot(&self.root, &bytes, &self.limits).ok());
        let current = self.snapshot.as_ref().is_some_and(|snapshot| {
            snapshot.version == meta.version
                && trusted::demand_fresh("snapshot", &**snapshot, self.now).is_ok()
        });
        if current {
            self.phase = Phase::Targets;
            return Ok(());
        }
        let (file, limit) = trusted::location(&self.root, "snapshot", meta, self.limits.snapshot_bytes);
        self.asked = Some((file.into(), limit));
        Ok(())
    }

    fn take_snapshot(&mut self, bytes: &[u8]) -> Result<(), MetadataError> {
        let timestamp = self.timestamp.as_ref().ok_or(MetadataError::Incomplete)?;
        let trusted = self.snapshot.as_ref();
        let next = trusted::next_snapshot(&self.root, timestamp, trusted, bytes, &self.limits, self.now)?;
        self.snapshot = Some(next);
        self.store("snapshot", bytes);
        self.phase = Phase::Targets;
        Ok(())
    }

    fn ask_targets(&mut self) -> Result<(), MetadataError> {
        let stored = self.stored.targets.take();
        if let Some(targets) = stored.and_then(|bytes| self.judge_targets(&bytes).ok()) {
            self.targets = Some(targets);
            self.phase = Phase::Done;
            return Ok(());
        }
        let snapshot = self.snapshot.as_ref().ok_or(MetadataError::Incomplete)?;
        let meta = trusted::listed("targets", snapshot)?;
        let (file, limit) = trusted::location(&self.root, "targets", meta, self.limits.targets_bytes);
        self.asked = Some((file.into(), limit));
        Ok(())
    }

    fn take_targets(&mut self, bytes: &[u8]) -> Result<(), MetadataError> {
        self.targets = Some(self.judge_targets(bytes)?);
        self.store("targets", bytes);
        self.phase = Phase::Done;
        Ok(())
    }

    fn judge_targets(&self, bytes: &[u8]) -> Result<Verified<Targets>, MetadataError> {
        let snapshot = self.snapshot.as_ref().ok_or(MetadataError::Incomplete)?;
        let delegator = format!("root version {}", self.root.version);
        let authority = self.root.authority(&delegator, &self.root.roles.targets);
        trusted::listed_targets("targets", authority, snapshot, bytes, &self.limits, self.now)
    }

    fn store(&mut self, role: &str, bytes: &[u8]) {
        self.to_do.push_back(Step::Store { file: FileName::current(role).into(), bytes: bytes.to_vec() });
    }
}

#[cfg(test)]
mod tests;
