//! Answers that are remembered by their `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a request that
//! was done is not done again when its answer was lost on the way.
//!
//! A key belongs to one caller and one request, for a day; it is stored as its SHA-256. That a request was begun is
//! written before anything is done for it, and its answer in the same batch as its record of the audit log; so after a
//! crash a key is either answered or known to have been left half-way, and never taken for new. An answer that holds a
//! secret is not kept: only that it was given.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::store::{Batch, Scan, Store, StoreError, Table, get_json, scan_json};

const TABLE: Table = Table("replies");

/// How long a key is remembered.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Most keys that are remembered; the oldest go first.
const MAX_KEYS: usize = 10_000;
/// Most bytes of all remembered answers together; the oldest go first.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// Longest answer that is remembered in bytes.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// Keys that one request removes at most: what is to go is spread over those that come.
const MAX_TRIMMED: usize = 16;

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Outcome {
    /// It was begun. Where it is not under way now, the facade stopped in its middle.
    Begun {},
    /// It was answered so.
    Answered {
        /// The HTTP status.
        status: u16,
        /// The JSON document.
        body: String,
    },
    /// It was done; the answer held a secret.
    Secret {},
    /// It was done; the answer was longer than [`MAX_ANSWER_BYTES`].
    TooLong {},
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    at: Timestamp,
    request: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// What a key says about a request that comes with it.
#[derive(Debug)]
pub enum Found {
    /// Nothing: the request is to be done.
    New(Claim),
    /// It was done, or begun, before.
    Before(Outcome),
    /// A request with this key is under way.
    UnderWay,
    /// The key came with another request.
    OtherRequest,
}

/// A key that one request holds while it is under way.
#[derive(Debug)]
pub struct Claim {
    key: String,
    at: Timestamp,
    request: String,
    /// When the key was last used, where that is too long ago to count.
    replaces: Option<Timestamp>,
    book: Arc<Mutex<Book>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.book).under_way.remove(&self.key);
    }
}

/// What is in the store, in the order of its age.
#[derive(Debug, Default)]
struct Book {
    sizes: BTreeMap<(Timestamp, String), usize>,
    bytes: usize,
    under_way: HashSet<String>,
}

impl Book {
    fn insert(&mut self, at: Timestamp, key: &str, size: usize) {
        let before = self.sizes.insert((at, key.to_owned()), size);
        self.bytes = self.bytes.saturating_add(size).saturating_sub(before.unwrap_or(0));
    }

    fn remove(&mut self, at: Timestamp, key: &str) {
        if let Some(size) = self.sizes.remove(&(at, key.to_owned())) {
            self.bytes = self.bytes.saturating_sub(size);
        }
    }

    /// Takes out what is too old or too much, a little at a time.
    fn trim(&mut self, now: Timestamp) -> Vec<String> {
        let mut gone = Vec::new();
        while gone.len() < MAX_TRIMMED
            && let Some((at, key)) = self.sizes.keys().next().cloned()
            && (is_over(at, now) || self.sizes.len() > MAX_KEYS || self.bytes > MAX_BYTES)
        {
            self.remove(at, &key);
            gone.push(key);
        }
        gone
    }
}

/// The answers that are remembered.
pub struct Replies {
    store: Arc<dyn Store>,
    book: Arc<Mutex<Book>>,
}

impl Replies {
    /// Reads what is remembered.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut book = Book::default();
        for (key, entry) in scan_json::<Entry>(&*store, TABLE, Scan::ALL).await? {
            book.insert(entry.at, &key, size(&entry.outcome));
        }
        Ok(Self { store, book: Arc::new(Mutex::new(book)) })
    }

    /// What is known of a caller's key, now that it comes with a request.
    pub async fn find(
        &self,
        caller: &str,
        key: &str,
        request: &[&[u8]],
        now: Timestamp,
    ) -> Result<Found, StoreError> {
        let key = hash(&[caller.as_bytes(), key.as_bytes()]);
        let request = hash(request);
        if !lock(&self.book).under_way.insert(key.clone()) {
            return Ok(Found::UnderWay);
        }
        // From here on it is let go when this is dropped.
        let mut claim = Claim { key, at: now, request, replaces: None, book: Arc::clone(&self.book) };
        let held: Option<Entry> = get_json(&*self.store, TABLE, &claim.key).await?;
        Ok(match held {
            None => Found::New(claim),
            Some(entry) if is_over(entry.at, now) => {
                claim.replaces = Some(entry.at);
                Found::New(claim)
            }
            Some(entry) if entry.request == claim.request => Found::Before(entry.outcome),
            Some(_) => Found::OtherRequest,
        })
    }
}

impl Claim {
    /// Writes that the request is begun.
    pub fn begin(&self, batch: &mut Batch) -> Result<(), StoreError> {
        let gone = {
            let mut book = lock(&self.book);
            if let Some(at) = self.replaces {
                book.remove(at, &self.key);
            }
            book.trim(self.at)
        };
        for key in &gone {
            batch.delete(TABLE, key);
        }
        self.put(batch, Outcome::Begun {})
    }

    /// Writes what became of it.
    pub fn finish(&self, batch: &mut Batch, outcome: Outcome) -> Result<(), StoreError> {
        self.put(batch, outcome)
    }

    /// Forgets the request: nothing was done, and it may come again.
    pub fn forget(&self, batch: &mut Batch) {
        batch.delete(TABLE, &self.key);
        lock(&self.book).remove(self.at, &self.key);
    }

    fn put(&self, batch: &mut Batch, outcome: Outcome) -> Result<(), StoreError> {
        lock(&self.book).insert(self.at, &self.key, size(&outcome));
        let entry = Entry { at: self.at, request: self.request.clone(), outcome };
        batch.put_json(TABLE, &self.key, &entry)
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_over(at: Timestamp, now: Timestamp) -> bool {
    now.duration_since(at) >= KEPT
}

fn size(outcome: &Outcome) -> usize {
    match outcome {
        Outcome::Answered { body, .. } => body.len(),
        Outcome::Begun {} | Outcome::Secret {} | Outcome::TooLong {} => 0,
    }
}

/// Each part behind its length, so that no two lists of parts are the same bytes.
fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    HEXLOWER.encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    fn now() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn store(directory: &std::path::Path) -> Arc<dyn Store> {
        Arc::new(SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap().0)
    }

    async fn find(replies: &Replies, caller: &str, key: &str, request: &str, at: Timestamp) -> Found {
        replies.find(caller, key, &[request.as_bytes()], at).await.unwrap()
    }

    async fn done(replies: &Replies, key: &str, outcome: Outcome, at: Timestamp) {
        let Found::New(claim) = find(replies, "ci", key, "import", at).await else { panic!("not new") };
        let mut batch = Batch::new();
        claim.begin(&mut batch).unwrap();
        claim.finish(&mut batch, outcome).unwrap();
        replies.store.commit(batch).await.unwrap();
    }

    fn answer() -> Outcome {
        Outcome::Answered { status: 200, body: "{}".to_owned() }
    }

    #[tokio::test]
    async fn gives_the_same_answer_to_the_same_request_of_the_same_caller() {
        let directory = tempfile::tempdir().unwrap();
        let replies = Replies::open(store(directory.path())).await.unwrap();
        done(&replies, "k", answer(), now()).await;
        assert!(
            matches!(find(&replies, "ci", "k", "import", now()).await, Found::Before(outcome) if outcome == answer())
        );
        assert!(matches!(find(&replies, "ci", "k", "other", now()).await, Found::OtherRequest));
        assert!(matches!(find(&replies, "another", "k", "import", now()).await, Found::New(_)));
    }

    #[tokio::test]
    async fn one_request_at_a_time_has_a_key() {
        let directory = tempfile::tempdir().unwrap();
        let replies = Replies::open(store(directory.path())).await.unwrap();
        let first = find(&replies, "ci", "k", "import", now()).await;
        assert!(matches!(first, Found::New(_)));
        assert!(matches!(find(&replies, "ci", "k", "import", now()).await, Found::UnderWay));
        drop(first);
        assert!(matches!(find(&replies, "ci", "k", "import", now()).await, Found::New(_)));
    }

    #[tokio::test]
    async fn knows_after_a_crash_what_was_left_half_way() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let replies = Replies::open(Arc::clone(&store)).await.unwrap();
        done(&replies, "k", Outcome::Begun {}, now()).await;
        drop(replies);
        let again = Replies::open(store).await.unwrap();
        assert!(matches!(find(&again, "ci", "k", "import", now()).await, Found::Before(Outcome::Begun {})));
    }

    #[tokio::test]
    async fn a_refused_request_may_come_again() {
        let directory = tempfile::tempdir().unwrap();
        let replies = Replies::open(store(directory.path())).await.unwrap();
        let Found::New(claim) = find(&replies, "ci", "k", "import", now()).await else { panic!("not new") };
        let mut batch = Batch::new();
        claim.begin(&mut batch).unwrap();
        claim.forget(&mut batch);
        replies.store.commit(batch).await.unwrap();
        drop(claim);
        assert!(matches!(find(&replies, "ci", "k", "other", now()).await, Found::New(_)));
    }

    #[tokio::test]
    async fn forgets_after_a_day_and_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let replies = Replies::open(store(directory.path())).await.unwrap();
        done(&replies, "old", answer(), now()).await;
        let later = now() + KEPT;
        assert!(matches!(find(&replies, "ci", "old", "import", later).await, Found::New(_)));
        done(&replies, "new", answer(), later).await;
        assert_eq!(replies.store.scan(TABLE, Scan::ALL).await.unwrap().len(), 1);
        let mut book = Book::default();
        for number in 0..=MAX_KEYS {
            book.insert(now(), &number.to_string(), 1);
        }
        assert_eq!(book.trim(now()).len(), 1);
        book.insert(now(), "large", MAX_BYTES);
        assert_eq!(book.trim(now()).len(), MAX_TRIMMED);
    }
}
