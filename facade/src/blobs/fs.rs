//! Content as files of a directory: `<algorithm>/<first two digits>/<hex>`, and `partial/<hex>` for what is arriving.
//!
//! A crash leaves every blob either whole and verified, or partial and resumable, or gone: a name under an algorithm
//! appears by rename, after the bytes are on disk, and is never written to again. The time of last use is the
//! modification time of the file.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use pki::digest::{Algorithm, Digest};

use super::staging::{create, remove_if_there};
use super::{Blobs, BlobsError, Content, Held, Staging, Total, Verified};
use crate::clock::Clock;

const PARTIAL: &str = "partial";
/// How exact the time of last use is: a hit writes to the file system at most this often.
const USE_RESOLUTION: Duration = Duration::from_hours(1);

/// Content as files of a directory.
#[derive(Clone)]
pub struct FsBlobs {
    directory: Arc<Path>,
    clock: Clock,
    total: Arc<Mutex<Total>>,
}

impl FsBlobs {
    /// Uses a directory, and makes it when it is not there. Reads no content.
    pub fn open(directory: &Path, clock: Clock) -> Result<Self, BlobsError> {
        for needed in [directory.to_path_buf(), directory.join(PARTIAL)] {
            make_directory(&needed).map_err(|source| failed("create", &needed, source))?;
        }
        let blobs = Self { directory: directory.into(), clock, total: Arc::default() };
        let held = blobs.list_now()?;
        let size_bytes = held.iter().map(|held| held.size_bytes).sum();
        *blobs.counted() = Total { blobs: held.len() as u64, size_bytes };
        Ok(blobs)
    }

    fn counted(&self) -> MutexGuard<'_, Total> {
        self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        let shard = hex.get(..2).unwrap_or_default();
        self.directory.join(digest.algorithm().name()).join(shard).join(&hex)
    }

    fn partial_path(&self, digest: Digest) -> PathBuf {
        self.directory.join(PARTIAL).join(digest.hex())
    }

    fn open_now(&self, digest: Digest) -> Result<Option<Content>, BlobsError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("open", &path, source)),
        };
        self.note_use(&file, &path)?;
        Ok(Some(Content::new(Arc::new(file))))
    }

    fn note_use(&self, file: &File, path: &Path) -> Result<(), BlobsError> {
        let inspect = |source| failed("inspect", path, source);
        let used = file.metadata().map_err(inspect)?.modified().map_err(inspect)?;
        let now = std::time::SystemTime::from(self.clock.now());
        if now.duration_since(used).is_ok_and(|ago| ago > USE_RESOLUTION) {
            // Losing this only makes the blob look older than it is.
            let _ = file.set_modified(now);
        }
        Ok(())
    }

    fn stage_now(&self, digest: Digest, size_bytes: u64) -> Result<Staging, BlobsError> {
        let path = self.partial_path(digest);
        let file = create(&path).map_err(|source| failed("create", &path, source))?;
        Staging::resume(path, file, digest, size_bytes)
    }

    fn commit_now(&self, verified: &Verified) -> Result<(), BlobsError> {
        let path = self.path(verified.digest);
        let directory = path.parent().unwrap_or(&self.directory);
        make_directory(directory).map_err(|source| failed("create", directory, source))?;
        verified
            .file
            .set_modified(self.clock.now().into())
            .map_err(|source| failed("date", &path, source))?;
        verified.file.sync_all().map_err(|source| failed("sync", &verified.path, source))?;
        let size_bytes = verified.file.metadata().map_err(|source| failed("inspect", &path, source))?.len();
        {
            let mut total = self.counted();
            let replaces = path.exists();
            fs::rename(&verified.path, &path).map_err(|source| failed("rename to", &path, source))?;
            if !replaces {
                total.blobs = total.blobs.saturating_add(1);
                total.size_bytes = total.size_bytes.saturating_add(size_bytes);
            }
        }
        sync_directory(directory)
    }

    fn delete_now(&self, digest: Digest) -> Result<bool, BlobsError> {
        let path = self.path(digest);
        let mut total = self.counted();
        let size_bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        match fs::remove_file(&path) {
            Ok(()) => {
                total.blobs = total.blobs.saturating_sub(1);
                total.size_bytes = total.size_bytes.saturating_sub(size_bytes);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("remove", &path, source)),
        }
    }

    /// Directories are by the first two digits, so a page reads few of them.
    fn page_now(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Held>, BlobsError> {
        let after = after.map(|digest| digest.to_string());
        let is_after = |name: &str| after.as_ref().is_none_or(|after| name > after.as_str());
        let mut page = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for shard in 0..=255_u8 {
                let shard = format!("{shard:02x}");
                // The last name that this directory could hold.
                if !is_after(&format!("{}:{shard}g", algorithm.name())) {
                    continue;
                }
                let mut held = Vec::new();
                collect(&self.directory.join(algorithm.name()).join(shard), &[algorithm], &mut held)?;
                held.retain(|held| is_after(&held.digest.to_string()));
                held.sort_by_key(|held| held.digest.hex());
                page.extend(held);
                if page.len() >= limit {
                    page.truncate(limit);
                    return Ok(page);
                }
            }
        }
        Ok(page)
    }

    fn list_now(&self) -> Result<Vec<Held>, BlobsError> {
        let mut held = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for shard in entries(&self.directory.join(algorithm.name()))? {
                collect(&shard, &[algorithm], &mut held)?;
            }
        }
        Ok(held)
    }

    fn list_partial_now(&self) -> Result<Vec<Held>, BlobsError> {
        let mut held = Vec::new();
        let directory = self.directory.join(PARTIAL);
        collect(&directory, &[Algorithm::Sha256, Algorithm::Sha512], &mut held)?;
        Ok(held)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Self) -> Result<T, BlobsError> + Send + 'static,
    ) -> Result<T, BlobsError> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        done.map_err(|_| BlobsError::Task { action })?
    }
}

#[async_trait]
impl Blobs for FsBlobs {
    async fn open(&self, digest: Digest) -> Result<Option<Content>, BlobsError> {
        // Two system calls on names that the kernel has cached: a trip to the blocking pool would cost more.
        self.open_now(digest)
    }

    async fn stage(&self, digest: Digest, size_bytes: u64) -> Result<Staging, BlobsError> {
        self.blocking("stage content", move |this| this.stage_now(digest, size_bytes)).await
    }

    async fn commit(&self, verified: Verified) -> Result<(), BlobsError> {
        self.blocking("commit content", move |this| this.commit_now(&verified)).await
    }

    async fn delete(&self, digest: Digest) -> Result<bool, BlobsError> {
        self.blocking("delete content", move |this| this.delete_now(digest)).await
    }

    async fn list(&self) -> Result<Vec<Held>, BlobsError> {
        self.blocking("list content", Self::list_now).await
    }

    fn total(&self) -> Total {
        *self.counted()
    }

    async fn page(&self, after: Option<Digest>, limit: usize) -> Result<Vec<Held>, BlobsError> {
        self.blocking("list content", move |this| this.page_now(after, limit)).await
    }

    fn is_partly_here(&self, digest: Digest) -> bool {
        self.partial_path(digest).exists()
    }

    async fn list_partial(&self) -> Result<Vec<Held>, BlobsError> {
        self.blocking("list partial content", Self::list_partial_now).await
    }

    async fn delete_partial(&self, digest: Digest) -> Result<(), BlobsError> {
        self.blocking("delete partial content", move |this| {
            let path = this.partial_path(digest);
            remove_if_there(&path).map_err(|source| failed("remove", &path, source))
        })
        .await
    }

    async fn free_bytes(&self) -> Result<u64, BlobsError> {
        self.blocking("measure free space", |this| {
            let space = rustix::fs::statvfs(&*this.directory)
                .map_err(|errno| failed("inspect", &this.directory, errno.into()))?;
            Ok(space.f_bavail.saturating_mul(space.f_frsize))
        })
        .await
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> BlobsError {
    BlobsError::Io { action, path: path.to_path_buf(), source }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sync_directory(path: &Path) -> Result<(), BlobsError> {
    let sync = File::open(path).and_then(|directory| directory.sync_all());
    sync.map_err(|source| failed("sync", path, source))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, BlobsError> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed("list", directory, source)),
    };
    let paths = listed.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<Result<_, _>>().map_err(|source| failed("list", directory, source))
}

/// Adds the files of a directory whose names are hashes; others are not ours and are left alone.
fn collect(directory: &Path, algorithms: &[Algorithm], held: &mut Vec<Held>) -> Result<(), BlobsError> {
    for path in entries(directory)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let parse = |algorithm: &Algorithm| format!("{}:{name}", algorithm.name()).parse().ok();
        let Some(digest) = algorithms.iter().find_map(parse) else {
            continue;
        };
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Deleted since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed("inspect", &path, source)),
        };
        let used = metadata.modified().map_err(|source| failed("inspect", &path, source))?;
        let last_used = Timestamp::try_from(used).unwrap_or(Timestamp::UNIX_EPOCH);
        held.push(Held { digest, size_bytes: metadata.len(), last_used });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::blobs::conformance;

    fn blobs(directory: &Path) -> FsBlobs {
        FsBlobs::open(&directory.join("blobs"), Clock::system()).unwrap()
    }

    #[tokio::test]
    async fn passes_the_suite_of_every_backend() {
        let directory = tempfile::tempdir().unwrap();
        conformance::run(&blobs(directory.path())).await;
    }

    #[tokio::test]
    async fn a_reopened_directory_has_whole_blobs_and_resumable_partials() {
        let directory = tempfile::tempdir().unwrap();
        let (whole, partial) = (b"whole".as_slice(), b"partially here".as_slice());
        {
            let blobs = blobs(directory.path());
            conformance::put(&blobs, whole).await;
            let mut staging = blobs.stage(Digest::sha256(partial), 14).await.unwrap();
            staging.append(&partial[..9]).unwrap();
        }
        let blobs = blobs(directory.path());
        assert!(blobs.open(Digest::sha256(whole)).await.unwrap().is_some());
        assert!(blobs.open(Digest::sha256(partial)).await.unwrap().is_none());
        let mut staging = blobs.stage(Digest::sha256(partial), 14).await.unwrap();
        assert_eq!((staging.received_bytes(), staging.is_resumed()), (9, true));
        assert!(
            blobs.is_partly_here(Digest::sha256(partial)) && !blobs.is_partly_here(Digest::sha256(whole))
        );
        staging.append(&partial[9..]).unwrap();
        blobs.commit(staging.finish().unwrap()).await.unwrap();
        assert_eq!(conformance::get(&blobs, partial).await.as_deref(), Some(partial));
        assert_eq!(blobs.list_partial().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_partial_longer_than_the_content_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = blobs(directory.path());
        let digest = Digest::sha256(b"abc");
        fs::write(blobs.partial_path(digest), b"abcdef").unwrap();
        assert_eq!(blobs.stage(digest, 3).await.unwrap().received_bytes(), 0);
    }

    #[tokio::test]
    async fn nobody_else_may_read_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = blobs(directory.path());
        conformance::put(&blobs, b"secret").await;
        let path = blobs.path(Digest::sha256(b"secret"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&directory.path().join("blobs/partial")), 0o700);
    }

    #[tokio::test]
    async fn a_hit_renews_the_time_of_last_use() {
        let directory = tempfile::tempdir().unwrap();
        let start = Timestamp::from_second(1_700_000_000).unwrap();
        let clock = Clock::manual(start);
        let blobs = FsBlobs::open(directory.path(), clock.clone()).unwrap();
        conformance::put(&blobs, b"x").await;
        clock.set(start + Duration::from_hours(2));
        assert_eq!(blobs.list().await.unwrap()[0].last_used, start);
        blobs.open(Digest::sha256(b"x")).await.unwrap();
        assert_eq!(blobs.list().await.unwrap()[0].last_used, clock.now());
    }
}
