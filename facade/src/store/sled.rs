//! The embedded [`Store`]: sled, kept to the rules that its measured failures taught (one writer, one tree, one batch
//! per change, acknowledged after `flush`, every failure final).
//!
//! sled 1.0.0-alpha loses its way when two writers' batches overlap, so a mutex admits one writer at a time. A write
//! that makes no progress for 15 seconds ends the process: a service manager starts it again, and everything
//! that was acknowledged is on disk. A database that cannot be opened is moved aside, never deleted, and the newest
//! dump (see `store::dump`) takes its place.

mod repage;

use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{io, thread};

use async_trait::async_trait;

use super::{Batch, Entry, Scan, Store, StoreError, Table, dump};

/// Memory for cached pages. The records of a large fleet are small; sled's own default is 512 MiB.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

/// The room that must be on the disk before anything is written.
const RESERVE_BYTES: u64 = 8 * 1024 * 1024;

/// A writer that has not finished after this long never will.
const STALLED_AFTER: Duration = Duration::from_secs(15);

/// Entries per page. A page is compressed and written as a whole by every change in it, and the largest records, the bins
/// of the images metadata, have more than 100 KiB: with sled's own 1024 one import among 100,000 artifacts would write
/// 70 MiB, and so would every small record that shares the page. Fewer still would cost memory for each page's place.
const PAGE: usize = 32;

type Db = ::sled::Db<PAGE>;

/// A [`Store`] in a directory.
#[derive(Clone)]
pub struct SledStore(Arc<Inner>);

struct Inner {
    /// Where the files are.
    path: PathBuf,
    /// The one handle that writes; its lock is the writer's turn.
    writer: Mutex<Db>,
    /// Handles that read. A handle serves one thread at a time (sled's is `Send`, not `Sync`), so each read borrows one;
    /// the first stays, to make more from.
    readers: Mutex<(Db, Vec<Db>)>,
    /// Set by the first failed write. After a failed fsync nobody knows what is on disk (fsync errors are not
    /// retryable), so nothing is written any more.
    failed: AtomicBool,
    opened: Instant,
    /// Milliseconds since `opened` at which the current write began, plus one; zero when nobody writes.
    writing_since: AtomicU64,
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The database as it was left, or a new one.
    Clean,
    /// The database was damaged: it was moved aside and the dump restored.
    Restored {
        /// Where the damaged database is now.
        moved_to: PathBuf,
        /// The dump that took its place; `None` where there was none.
        dump: Option<PathBuf>,
    },
}

impl SledStore {
    /// Opens the database in `path`; a damaged one is replaced by the newest good dump in `dumps`.
    pub fn open(path: &Path, dumps: &Path) -> Result<(Self, Opened), StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        repage::finish(path).map_err(failed)?;
        match open_pages(path) {
            Ok(db) => Ok((Self::start(path, db), Opened::Clean)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::info!(path = %path.display(), "copying the database of an earlier version");
                repage::repage(path).map_err(failed)?;
                Ok((Self::start(path, open_pages(path).map_err(failed)?), Opened::Clean))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(StoreError::InUse { path: path.to_owned() })
            }
            Err(error) if is_damage(&error) => Self::recover(path, dumps),
            Err(source) => Err(failed(source)),
        }
    }

    fn start(path: &Path, db: Db) -> Self {
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            readers: Mutex::new((db.clone(), Vec::new())),
            writer: Mutex::new(db),
            failed: AtomicBool::new(false),
            opened: Instant::now(),
            writing_since: AtomicU64::new(0),
        });
        let watched = Arc::downgrade(&inner);
        thread::spawn(move || watch(&watched));
        Self(inner)
    }

    fn recover(path: &Path, dumps: &Path) -> Result<(Self, Opened), StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let moved_to = (0..10_000)
            .map(|attempt| path.with_extension(format!("damaged-{attempt}")))
            .find(|candidate| !candidate.exists())
            .unwrap_or_else(|| path.with_extension("damaged"));
        std::fs::rename(path, &moved_to).map_err(failed)?;
        let store = Self::start(path, open_pages(path).map_err(failed)?);
        let newest = dump::newest(dumps).map_err(failed)?;
        if let Some((_, entries)) = &newest {
            let mut batch = ::sled::Batch::default();
            for (key, value) in entries {
                batch.insert(key.as_slice(), value.as_slice());
            }
            store.0.apply(&store.0.writer(), batch).map_err(failed)?;
        }
        Ok((store, Opened::Restored { moved_to, dump: newest.map(|(path, _)| path) }))
    }

    /// Writes everything to a new dump in `dumps` and keeps the newest few.
    pub async fn dump(&self, dumps: &Path, name: &str) -> Result<PathBuf, StoreError> {
        let inner = Arc::clone(&self.0);
        let (dumps, name) = (dumps.to_owned(), name.to_owned());
        blocking("dumping", move || {
            // Holding the writer's turn makes the dump one moment's state.
            let db = inner.writer();
            let entries = db.iter().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())));
            dump::write(&dumps, &name, entries)
        })
        .await
    }
}

impl Inner {
    fn writer(&self) -> MutexGuard<'_, Db> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readers(&self) -> MutexGuard<'_, (Db, Vec<Db>)> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, work: impl FnOnce(&Db) -> io::Result<T>) -> io::Result<T> {
        let db = {
            let mut readers = self.readers();
            readers.1.pop().unwrap_or_else(|| readers.0.clone())
        };
        let result = work(&db);
        self.readers().1.push(db);
        result
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let fail = |source| StoreError::Failed { action: "writing", source };
        let db = self.writer();
        if self.failed.load(Ordering::SeqCst) {
            return Err(fail(io::Error::other("an earlier write failed; start the facade again")));
        }
        // A write that meets a full disk leaves the database unusable until the next start; one that is refused before
        // that is as good as none.
        let free_bytes = free_bytes(&self.path).map_err(fail)?;
        if free_bytes < RESERVE_BYTES {
            let full = format!("{free_bytes} bytes are free on its disk, {RESERVE_BYTES} must be");
            return Err(fail(io::Error::new(io::ErrorKind::StorageFull, full)));
        }
        for (table, key, expected) in &batch.requirements {
            let found = db.get(full_key(*table, key)).map_err(fail)?;
            if found.as_deref() != expected.as_deref() {
                return Err(StoreError::Conflict { table: *table, key: key.clone() });
            }
        }
        let mut writes = ::sled::Batch::default();
        for (table, key, value) in batch.writes {
            match value {
                Some(value) => writes.insert(full_key(table, &key), value),
                None => writes.remove(full_key(table, &key)),
            }
        }
        self.apply(&db, writes).map_err(fail)
    }

    fn apply(&self, db: &Db, writes: ::sled::Batch) -> io::Result<()> {
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.writing_since.store(since + 1, Ordering::SeqCst);
        let result = db.apply_batch(writes).and_then(|()| db.flush().map(drop));
        self.writing_since.store(0, Ordering::SeqCst);
        if result.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
        result
    }
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Ends the process when a write stalls: waiting callers would hang for ever, and a restart loses nothing acknowledged.
fn watch(inner: &Weak<Inner>) {
    while let Some(inner) = inner.upgrade() {
        let since = inner.writing_since.load(Ordering::SeqCst);
        let now = u64::try_from(inner.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        if since > 0
            && now.saturating_sub(since) > u64::try_from(STALLED_AFTER.as_millis()).unwrap_or(u64::MAX)
        {
            tracing::error!(
                stalled_seconds = STALLED_AFTER.as_secs(),
                "the database makes no progress; ending the process"
            );
            std::process::abort();
        }
        drop(inner);
        thread::sleep(Duration::from_secs(1));
    }
}

/// Whether the files themselves are wrong. A full disk or a missing permission is not damage: putting an older dump in
/// the place of a good database would lose what came after it.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Opens a database whose pages have so many entries.
fn open_pages<const ENTRIES: usize>(path: &Path) -> io::Result<::sled::Db<ENTRIES>> {
    let config = ::sled::Config::new().path(path).cache_capacity_bytes(CACHE_BYTES);
    // sled panics on some kinds of damage; to its caller that is one more way of failing to open.
    catch_unwind(AssertUnwindSafe(|| config.open::<ENTRIES>()))
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "the database is damaged")))
}

fn full_key(table: Table, key: &str) -> Vec<u8> {
    [table.0.as_bytes(), b"\0", key.as_bytes()].concat()
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|source| StoreError::Failed { action, source }),
        Err(panic) => Err(StoreError::Failed { action, source: io::Error::other(panic) }),
    }
}

#[async_trait]
impl Store for SledStore {
    async fn get(&self, table: Table, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let inner = Arc::clone(&self.0);
        let key = full_key(table, key);
        blocking("reading", move || inner.read(|db| Ok(db.get(key)?.map(|value| value.to_vec())))).await
    }

    async fn scan(&self, table: Table, scan: Scan<'_>) -> Result<Vec<Entry>, StoreError> {
        let inner = Arc::clone(&self.0);
        let prefix = full_key(table, scan.prefix);
        let start = match scan.after {
            Some(after) if full_key(table, after) >= prefix => Bound::Excluded(full_key(table, after)),
            _ => Bound::Included(prefix.clone()),
        };
        let limit = scan.limit;
        blocking("reading", move || {
            inner.read(|db| {
                let table_bytes = table.0.len() + 1;
                let mut entries = Vec::new();
                for entry in db.range::<Vec<u8>, _>((start, Bound::Unbounded)) {
                    let (key, value) = entry?;
                    if entries.len() >= limit || !key.starts_with(&prefix) {
                        break;
                    }
                    let key = key.get(table_bytes..).unwrap_or_default();
                    entries.push(Entry {
                        key: String::from_utf8_lossy(key).into_owned(),
                        value: value.to_vec(),
                    });
                }
                Ok(entries)
            })
        })
        .await
    }

    async fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || inner.commit(batch)).await {
            Ok(result) => result,
            Err(panic) => Err(StoreError::Failed { action: "writing", source: io::Error::other(panic) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance;

    fn open(directory: &Path) -> (SledStore, Opened) {
        SledStore::open(&directory.join("store"), &directory.join("dumps")).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn conforms() {
        let directory = tempfile::tempdir().unwrap();
        conformance::suite(Arc::new(open(directory.path()).0)).await;
    }

    #[tokio::test]
    async fn keeps_what_it_acknowledged_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let table = Table("t");
        {
            let (store, _) = open(directory.path());
            let mut batch = Batch::new();
            batch.put(table, "key", b"value".to_vec());
            store.commit(batch).await.unwrap();
        }
        let (store, opened) = open(directory.path());
        assert_eq!(opened, Opened::Clean);
        assert_eq!(store.get(table, "key").await.unwrap().as_deref(), Some(&b"value"[..]));
    }

    #[tokio::test]
    async fn replaces_a_damaged_database_by_its_newest_dump_and_keeps_the_damaged_one() {
        let directory = tempfile::tempdir().unwrap();
        let dumps = directory.path().join("dumps");
        let table = Table("t");
        {
            let (store, _) = open(directory.path());
            let mut batch = Batch::new();
            batch.put(table, "key", b"value".to_vec());
            store.commit(batch).await.unwrap();
            store.dump(&dumps, "1").await.unwrap();
        }
        damage(&directory.path().join("store"));
        let (store, opened) = open(directory.path());
        let Opened::Restored { moved_to, dump: Some(_) } = opened else { panic!("{opened:?}") };
        assert!(moved_to.exists());
        assert_eq!(store.get(table, "key").await.unwrap().as_deref(), Some(&b"value"[..]));
    }

    #[tokio::test]
    async fn rejects_a_database_that_is_in_use_and_leaves_it_alone() {
        let directory = tempfile::tempdir().unwrap();
        let _held = open(directory.path());
        let second = SledStore::open(&directory.path().join("store"), &directory.path().join("dumps"));
        assert!(matches!(second, Err(StoreError::InUse { .. })));
    }

    #[test]
    fn rejects_a_directory_that_cannot_be_opened_without_moving_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        std::fs::write(&path, "not a directory").unwrap();
        let refused = SledStore::open(&path, &directory.path().join("dumps"));
        assert!(matches!(refused, Err(StoreError::Open { .. })));
        assert!(path.exists());
    }

    fn damage(path: &Path) {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                damage(&path);
            } else {
                let length = std::fs::metadata(&path).unwrap().len();
                std::fs::write(&path, vec![0xa5; usize::try_from(length).unwrap()]).unwrap();
            }
        }
    }
}
