//! The audit log: what operators changed and what they must know of devices, as a chain in which each record holds the hash of the one before.
//!
//! What is about to be done is written down before it is done, and becomes a record when it is known how it ended. What a
//! crash left open is recorded at the next start, as [`UNKNOWN`]: no change is without its record.
//!
//! A record is only ever added. Whoever edits, removes or swaps records in the database breaks the chain, and
//! [`Audit::verify`] says where; whoever can rewrite the whole database can also rewrite the chain, so each hash is
//! logged as well, for a log server out of that reach.

pub mod search;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::store::{Batch, Scan, Store, StoreError, Table, get_json, scan_json};

const TABLE: Table = Table("audit");
const HEAD_TABLE: Table = Table("audit-head");
/// What is under way, and what a crash left open.
const OPEN_TABLE: Table = Table("audit-open");
const HEAD: &str = "head";
/// What the first record holds as the hash of the one before.
const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// How many records are read at a time.
const STEP: usize = 1000;
/// The result of what was begun and never answered, because the facade stopped in its middle.
pub const UNKNOWN: u16 = 0;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// When.
    pub at: Timestamp,
    /// The name of the token that was used; `device/ID` where a device did it.
    pub who: String,
    /// What was asked for: method and path; or what a device did.
    pub action: String,
    /// To what.
    pub subject: String,
    /// The address that asked.
    pub from: String,
    /// The HTTP status of the answer, or [`UNKNOWN`].
    pub result: u16,
    /// The request's id, as it is in the log.
    pub request_id: String,
}

/// One record of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place, from 1.
    pub sequence: u64,
    /// What happened.
    #[serde(flatten)]
    pub happening: Happening,
    /// The hash of the record before.
    pub previous: String,
    /// SHA-256 of everything above.
    pub hash: String,
}

/// The end of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The place of the newest record; 0 where there is none.
    pub sequence: u64,
    /// Its hash.
    pub hash: String,
}

/// What a verification finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every record is as it was written.
    Whole(Head),
    /// One is not.
    Broken {
        /// The first place where the chain does not hold.
        sequence: u64,
        /// What is wrong there.
        reason: &'static str,
    },
}

/// Why a record cannot be hashed or stored.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The database.
    #[error("cannot use the audit log")]
    Store(#[from] StoreError),
    /// A record cannot be written as JSON.
    #[error("cannot write a record of the audit log")]
    Unwritable(#[source] serde_json::Error),
}

/// Something that was written down before it is done.
#[derive(Debug)]
#[must_use = "what was begun is open until it is finished"]
pub struct Begun {
    key: String,
    happening: Happening,
}

/// The audit log of a store.
pub struct Audit {
    store: Arc<dyn Store>,
    head: Mutex<Head>,
    begun: AtomicU64,
}

impl Audit {
    /// Opens the log where it ends, and records what the last run left open.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, AuditError> {
        let head = get_json(&*store, HEAD_TABLE, HEAD).await?;
        let head = head.unwrap_or_else(|| Head { sequence: 0, hash: BEGINNING.to_owned() });
        let open = scan_json::<Happening>(&*store, OPEN_TABLE, Scan::ALL).await?;
        let audit = Self { store, head: Mutex::new(head), begun: AtomicU64::new(0) };
        for (key, happening) in open {
            tracing::warn!(request.id = %happening.request_id, action = %happening.action, subject = %happening.subject, "the facade stopped in the middle of a change");
            audit.finish(Begun { key, happening }, UNKNOWN, Batch::new()).await?;
        }
        Ok(audit)
    }

    /// Writes down what is about to be done, together with what else the batch holds.
    pub async fn begin(&self, happening: Happening, mut batch: Batch) -> Result<Begun, AuditError> {
        let key = key(self.begun.fetch_add(1, Ordering::Relaxed));
        batch.require_absent(OPEN_TABLE, &key);
        batch.put_json(OPEN_TABLE, &key, &happening)?;
        self.store.commit(batch).await?;
        Ok(Begun { key, happening })
    }

    /// Records how it ended, together with what else the batch holds.
    pub async fn finish(&self, begun: Begun, result: u16, mut batch: Batch) -> Result<Record, AuditError> {
        batch.delete(OPEN_TABLE, &begun.key);
        self.append_with(Happening { result, ..begun.happening }, batch).await
    }

    /// Forgets what changed nothing, together with what else the batch holds.
    pub async fn withdraw(&self, begun: Begun, mut batch: Batch) -> Result<(), AuditError> {
        batch.delete(OPEN_TABLE, &begun.key);
        Ok(self.store.commit(batch).await?)
    }

    /// Adds a record, and returns when it is durable.
    pub async fn append(&self, happening: Happening) -> Result<Record, AuditError> {
        self.append_with(happening, Batch::new()).await
    }

    async fn append_with(&self, happening: Happening, mut batch: Batch) -> Result<Record, AuditError> {
        let mut head = self.head.lock().await;
        let sequence = head.sequence.saturating_add(1);
        let record = Record {
            hash: hash(sequence, &happening, &head.hash)?,
            previous: head.hash.clone(),
            sequence,
            happening,
        };
        let next = Head { sequence, hash: record.hash.clone() };
        batch.require_absent(TABLE, &key(sequence));
        batch.put_json(TABLE, &key(sequence), &record)?;
        batch.put_json(HEAD_TABLE, HEAD, &next)?;
        self.store.commit(batch).await?;
        *head = next;
        Ok(record)
    }

    /// A page of the log, oldest first.
    pub async fn list(&self, after: Option<u64>, limit: usize) -> Result<Vec<Record>, StoreError> {
        let after = after.map(key);
        let scan = Scan { prefix: "", after: after.as_deref(), limit };
        let records = scan_json(&*self.store, TABLE, scan).await?;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// Reads the whole log, and says whether every record is as it was written.
    pub async fn verify(&self) -> Result<Verdict, AuditError> {
        // What is added meanwhile is after this head, and is left for the next time.
        let head = self.head.lock().await.clone();
        let mut last = Head { sequence: 0, hash: BEGINNING.to_owned() };
        while last.sequence < head.sequence {
            let page = self.list(Some(last.sequence), STEP).await?;
            let missing = last.sequence.saturating_add(1);
            if page.is_empty() {
                return Ok(broken(missing, "a record is missing"));
            }
            for record in page.iter().take_while(|record| record.sequence <= head.sequence) {
                if let Some(broken) = check(&last, record)? {
                    return Ok(broken);
                }
                last = Head { sequence: record.sequence, hash: record.hash.clone() };
            }
            if last.sequence < missing {
                return Ok(broken(missing, "a record is missing"));
            }
        }
        let stored: Option<Head> = get_json(&*self.store, HEAD_TABLE, HEAD).await?;
        if last != head || (head.sequence > 0 && stored.is_none_or(|stored| stored.sequence < head.sequence))
        {
            return Ok(broken(head.sequence, "the log does not end with the newest record"));
        }
        Ok(Verdict::Whole(head))
    }
}

/// What is wrong with a record that follows `last`, if anything is.
fn check(last: &Head, record: &Record) -> Result<Option<Verdict>, AuditError> {
    let expected = last.sequence.saturating_add(1);
    let reason = if record.sequence != expected {
        "a record is missing or out of its place"
    } else if record.previous != last.hash {
        "the record does not follow the one before"
    } else if record.hash != hash(record.sequence, &record.happening, &record.previous)? {
        "the record was changed"
    } else {
        return Ok(None);
    };
    Ok(Some(broken(expected, reason)))
}

fn broken(sequence: u64, reason: &'static str) -> Verdict {
    Verdict::Broken { sequence, reason }
}

fn key(sequence: u64) -> String {
    format!("{sequence:020}")
}

fn hash(sequence: u64, happening: &Happening, previous: &str) -> Result<String, AuditError> {
    // A JSON array of these has one reading, whatever the texts in it contain.
    let text = serde_json::to_vec(&(sequence, happening, previous)).map_err(AuditError::Unwritable)?;
    Ok(HEXLOWER.encode(&Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    pub(super) fn happening(number: u32) -> Happening {
        Happening {
            at: "2026-11-20T12:00:00Z".parse::<Timestamp>().unwrap()
                + jiff::SignedDuration::from_mins(number.into()),
            who: if number.is_multiple_of(2) { "admin".to_owned() } else { "ci".to_owned() },
            action: "POST /api/v1/connections".to_owned(),
            subject: format!("host={number}.example"),
            from: "192.0.2.1".to_owned(),
            result: 200,
            request_id: format!("request-{number}"),
        }
    }

    struct Rig {
        store: Arc<dyn Store>,
        audit: Audit,
        _directory: tempfile::TempDir,
    }

    async fn five_records() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let (store, _) = SledStore::open(&path.join("store"), &path.join("dumps")).unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let audit = Audit::open(Arc::clone(&store)).await.unwrap();
        for number in 1..=5 {
            audit.append(self::happening(number)).await.unwrap();
        }
        Rig { store, audit, _directory: directory }
    }

    impl Rig {
        async fn read(&self, sequence: u64) -> Vec<u8> {
            self.store.get(TABLE, &key(sequence)).await.unwrap().unwrap()
        }

        async fn put(&self, sequence: u64, bytes: Vec<u8>) {
            let mut batch = Batch::new();
            batch.put(TABLE, &key(sequence), bytes);
            self.store.commit(batch).await.unwrap();
        }

        async fn broken_at(&self) -> Option<u64> {
            match self.audit.verify().await.unwrap() {
                Verdict::Whole(_) => None,
                Verdict::Broken { sequence, .. } => Some(sequence),
            }
        }
    }

    #[tokio::test]
    async fn goes_on_where_it_ended_and_is_whole() {
        let rig = five_records().await;
        assert_eq!(rig.broken_at().await, None);
        let again = Audit::open(Arc::clone(&rig.store)).await.unwrap();
        let happening = rig.audit.list(None, 1).await.unwrap().remove(0).happening;
        assert_eq!(again.append(happening).await.unwrap().sequence, 6);
        assert!(matches!(again.verify().await.unwrap(), Verdict::Whole(head) if head.sequence == 6));
        assert_eq!(again.list(Some(4), 10).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_a_crash_left_open_is_recorded_at_the_next_start() {
        let rig = five_records().await;
        let begun = rig.audit.begin(happening(6), Batch::new()).await.unwrap();
        let refused = rig.audit.begin(happening(7), Batch::new()).await.unwrap();
        let lost = rig.audit.begin(happening(8), Batch::new()).await.unwrap();
        rig.audit.withdraw(refused, Batch::new()).await.unwrap();
        rig.audit.finish(begun, 502, Batch::new()).await.unwrap();
        drop(lost);
        for _ in 0..2 {
            let again = Audit::open(Arc::clone(&rig.store)).await.unwrap();
            let records = again.list(Some(5), 10).await.unwrap();
            let results: Vec<(&str, u16)> = records
                .iter()
                .map(|record| (record.happening.request_id.as_str(), record.happening.result))
                .collect();
            assert_eq!(results, [("request-6", 502), ("request-8", UNKNOWN)]);
            assert!(matches!(again.verify().await.unwrap(), Verdict::Whole(_)));
        }
    }

    #[tokio::test]
    async fn finds_a_record_that_was_edited() {
        let rig = five_records().await;
        let text = String::from_utf8(rig.read(3).await).unwrap();
        rig.put(3, text.replace("3.example", "9.example").into_bytes()).await;
        assert_eq!(rig.broken_at().await, Some(3));
    }

    #[tokio::test]
    async fn finds_a_record_that_was_removed_in_the_middle_or_at_the_end() {
        for sequence in [1, 3, 5] {
            let rig = five_records().await;
            let mut batch = Batch::new();
            batch.delete(TABLE, &key(sequence));
            rig.store.commit(batch).await.unwrap();
            assert_eq!(rig.broken_at().await, Some(sequence));
        }
    }

    #[tokio::test]
    async fn finds_records_that_were_swapped() {
        let rig = five_records().await;
        let (second, third) = (rig.read(2).await, rig.read(3).await);
        rig.put(2, third).await;
        rig.put(3, second).await;
        assert_eq!(rig.broken_at().await, Some(2));
    }
}
