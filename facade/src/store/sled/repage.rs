//! A database whose pages are of another size, which sled cannot change in place: it is copied, and the copy takes its place.
//!
//! The old one is renamed away only when the copy is whole and on disk. A crash at any point leaves either the old one
//! where it was, or a whole copy that the next start moves into place; never an empty database.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::{Db, open_pages};

/// Entries per page that an earlier version had.
const EARLIER: usize = 1024;

/// Entries that are copied in one step.
const STEP: usize = 1000;

/// Copies the database in `path` to pages of today's size.
pub(super) fn repage(path: &Path) -> io::Result<()> {
    let copy = path.with_extension("copy");
    remove(&copy)?;
    let old: ::sled::Db<EARLIER> = open_pages(path)?;
    let new: Db = open_pages(&copy)?;
    let (mut batch, mut waiting) = (::sled::Batch::default(), 0);
    for entry in old.iter() {
        let (key, value) = entry?;
        batch.insert(key, value);
        waiting += 1;
        if waiting == STEP {
            new.apply_batch(std::mem::take(&mut batch))?;
            waiting = 0;
        }
    }
    new.apply_batch(batch)?;
    new.flush()?;
    drop((old, new));
    let (whole, earlier) = (path.with_extension("whole"), path.with_extension("earlier"));
    // Only a whole copy ever has this name.
    fs::rename(&copy, &whole)?;
    sync_around(path)?;
    fs::rename(path, &earlier)?;
    finish(path)
}

/// Completes a change of pages that a crash has cut short.
pub(super) fn finish(path: &Path) -> io::Result<()> {
    let (whole, earlier) = (path.with_extension("whole"), path.with_extension("earlier"));
    if whole.exists() {
        if path.exists() {
            // It was not yet renamed away, and may have changed since: it is copied anew.
            return remove(&whole);
        }
        fs::rename(&whole, path)?;
        sync_around(path)?;
    }
    remove(&earlier)
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_around(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::{Opened, SledStore};
    use crate::store::{Store as _, Table};

    fn earlier(path: &Path, entries: usize) {
        let db: ::sled::Db<EARLIER> = open_pages(path).unwrap();
        for number in 0..entries {
            db.insert(format!("t\0{number}"), format!("value {number}").as_bytes()).unwrap();
        }
        db.flush().unwrap();
    }

    async fn holds(path: &Path, entries: usize) {
        let (store, opened) = SledStore::open(path, &path.with_extension("dumps")).unwrap();
        assert_eq!(opened, Opened::Clean);
        for number in [0, entries - 1] {
            let value = store.get(Table("t"), &number.to_string()).await.unwrap();
            assert_eq!(value.as_deref(), Some(format!("value {number}").as_bytes()));
        }
        for gone in ["copy", "whole", "earlier"] {
            assert!(!path.with_extension(gone).exists(), "{gone}");
        }
    }

    #[tokio::test]
    async fn a_database_of_an_earlier_version_keeps_everything() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        earlier(&path, 2500);
        holds(&path, 2500).await;
        holds(&path, 2500).await;
    }

    #[tokio::test]
    async fn a_change_that_is_cut_short_anywhere_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        // Half a copy beside the old one.
        earlier(&path, 10);
        fs::create_dir(path.with_extension("copy")).unwrap();
        holds(&path, 10).await;
        // A whole copy beside the old one, which was still in use afterwards.
        fs::create_dir(path.with_extension("whole")).unwrap();
        holds(&path, 10).await;
        // The old one is renamed away, the copy not yet in its place.
        fs::rename(&path, path.with_extension("whole")).unwrap();
        fs::create_dir(path.with_extension("earlier")).unwrap();
        holds(&path, 10).await;
    }
}
