//! The files of a layout: where each is, and how one is written so that a power cut leaves the old or the new.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use pki::digest::{Digest, Mismatch, Verifier};
use pki::oci::{ArtifactName, Descriptor};
use rustix::fs::FlockOperation;

use super::super::{Cause, MAX_READ_BYTES, RuntimeError, Space, Verification};

/// The version of the format (OCI image specification, image-layout.md).
pub(super) const VERSION: &str = "1.0.0";

/// Bytes read at once while hashing.
const READ_BYTES: usize = 256 * 1024;

/// A layout directory. All methods block.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    directory: PathBuf,
}

impl Layout {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(super) fn address(&self) -> String {
        self.directory.display().to_string()
    }

    /// Creates what is not there.
    pub(super) fn create(&self) -> Result<(), RuntimeError> {
        let marker = self.directory.join("oci-layout");
        if marker.is_file() && self.ingests().is_dir() {
            return Ok(());
        }
        for directory in [self.directory.join("blobs"), self.ingests()] {
            fs::create_dir_all(&directory).map_err(|error| self.failed("creating its directories", error))?;
        }
        if !self.index_path().exists() {
            self.replace(&self.index_path(), index_of_nothing())?;
        }
        self.replace(&marker, format!("{{\"imageLayoutVersion\":\"{VERSION}\"}}").as_bytes())
    }

    pub(super) fn space(&self) -> Result<Space, RuntimeError> {
        let stat = rustix::fs::statvfs(&self.directory)
            .map_err(|error| self.failed("asking for free space", error.into()))?;
        Ok(Space {
            content_free_bytes: Some(stat.f_bavail.saturating_mul(stat.f_frsize)),
            unpacked_free_bytes: None,
            shared: false,
        })
    }

    pub(super) fn index_path(&self) -> PathBuf {
        self.directory.join("index.json")
    }

    pub(super) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs(digest.algorithm().name()).join(digest.hex())
    }

    pub(super) fn blobs(&self, algorithm: &str) -> PathBuf {
        self.directory.join("blobs").join(algorithm)
    }

    /// Where half-written content and leases are.
    pub(super) fn ingests(&self) -> PathBuf {
        self.directory.join(".ingest")
    }

    /// How much there is of half-written content.
    pub(super) fn begun(&self, digest: Digest) -> u64 {
        fs::metadata(self.ingest_path(digest)).map_or(0, |file| file.len())
    }

    /// Half-written content. The name has no `:`, which not every file system takes.
    pub(super) fn ingest_path(&self, digest: Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
        self.ingests().join(name)
    }

    fn lease_path(&self, artifact: &ArtifactName) -> PathBuf {
        let id = Digest::sha256(artifact.to_string().as_bytes()).hex();
        self.ingests().join(format!("{LEASE_PREFIX}{id}"))
    }

    pub(super) fn put_lease(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        let path = self.lease_path(artifact);
        if path.exists() {
            return Ok(());
        }
        self.replace(&path, artifact.to_string().as_bytes())
    }

    pub(super) fn remove_lease(&self, artifact: &ArtifactName) -> Result<(), RuntimeError> {
        self.remove(&self.lease_path(artifact))
    }

    /// Removes the leases of all other artifacts; says how many.
    pub(super) fn remove_other_leases(&self, keep: &[ArtifactName]) -> Result<usize, RuntimeError> {
        let keep: Vec<PathBuf> = keep.iter().map(|artifact| self.lease_path(artifact)).collect();
        let mut removed = 0;
        for path in self.files(&self.ingests())? {
            if file_name(&path).starts_with(LEASE_PREFIX) && !keep.contains(&path) {
                self.remove(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The artifacts that are being delivered.
    pub(super) fn leases(&self) -> Result<Vec<ArtifactName>, RuntimeError> {
        let mut leases = Vec::new();
        for path in self.files(&self.ingests())? {
            if file_name(&path).starts_with(LEASE_PREFIX) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                leases.extend(text.parse::<ArtifactName>());
            }
        }
        Ok(leases)
    }

    /// Whether content is there with its right length.
    pub(super) fn has(&self, content: &Descriptor) -> Result<bool, RuntimeError> {
        let (digest, expected_bytes) = (content.digest, content.size);
        let found = match fs::metadata(self.blob_path(digest)) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(self.failed(&format!("looking for {digest}"), error)),
        };
        if found == expected_bytes {
            return Ok(true);
        }
        let mismatch = if found > expected_bytes {
            Mismatch::Long { digest, expected_bytes }
        } else {
            Mismatch::Short { digest, received_bytes: found, expected_bytes }
        };
        Err(corrupt(digest, mismatch))
    }

    /// Reads small content and verifies it.
    pub(super) fn read(&self, content: &Descriptor) -> Result<Vec<u8>, RuntimeError> {
        let (digest, size_bytes) = (content.digest, content.size);
        if size_bytes > MAX_READ_BYTES {
            return Err(RuntimeError::TooLarge { digest, size_bytes });
        }
        let mut bytes = Vec::new();
        self.read_blob(content, |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }

    /// Reads all content back and hashes it.
    pub(super) fn verify(&self, contents: &[&Descriptor]) -> Result<Verification, RuntimeError> {
        let mut verification = Verification::default();
        for content in contents {
            match self.read_blob(content, |_| {}) {
                Ok(()) => verification.verified_bytes += content.size,
                Err(RuntimeError::Missing { digest }) => verification.missing.push(digest),
                Err(RuntimeError::Corrupt { digest, .. }) => verification.damaged.push(digest),
                Err(error) => return Err(error),
            }
        }
        Ok(verification)
    }

    fn read_blob(&self, content: &Descriptor, each: impl FnMut(&[u8])) -> Result<(), RuntimeError> {
        let digest = content.digest;
        let file = match File::open(self.blob_path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RuntimeError::Missing { digest });
            }
            Err(error) => return Err(self.failed(&format!("opening {digest}"), error)),
        };
        let mut verifier = Verifier::new(digest, content.size);
        // What cannot be read is damaged: a bad sector.
        feed(&file, &mut verifier, each).map_err(|source| RuntimeError::Corrupt { digest, source })?;
        verifier.finish().map_err(|mismatch| corrupt(digest, mismatch))
    }

    pub(super) fn remove_blob(&self, digest: Digest) -> Result<(), RuntimeError> {
        self.remove(&self.blob_path(digest))
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, path: &Path) -> Result<(), RuntimeError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed(&format!("removing {}", file_name(path)), error))
            }
            _ => Ok(()),
        }
    }

    /// The files in a directory; none if there is no such directory.
    pub(super) fn files(&self, directory: &Path) -> Result<Vec<PathBuf>, RuntimeError> {
        let action = "listing its files";
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(action, error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(|error| self.failed(action, error))?.path());
        }
        Ok(paths)
    }

    /// Puts a file in the place of another, whole or not at all.
    pub(super) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), RuntimeError> {
        let failed = |error| self.failed(&format!("writing {}", file_name(path)), error);
        let temporary = self.ingests().join(format!("new-{}", file_name(path)));
        let mut file = File::create(&temporary).map_err(failed)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&temporary, path).map_err(failed)?;
        sync_parent(path).map_err(failed)
    }

    /// Waits for the right to change `index.json` or to sweep; it ends with the returned file.
    pub(super) fn lock(&self) -> Result<File, RuntimeError> {
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(self.ingests().join("lock"));
        let lock = lock.map_err(|error| self.failed("locking it", error))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| self.failed("locking it", error.into()))?;
        Ok(lock)
    }

    pub(super) fn failed(&self, action: &str, error: io::Error) -> RuntimeError {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind());
        let (action, source) = (action.to_owned(), Cause::File(error));
        if full {
            return RuntimeError::NoSpace { action, source };
        }
        RuntimeError::Failed { address: self.address(), action, source }
    }

    /// File work that was cut off by the end of the process.
    pub(super) fn interrupted(&self) -> RuntimeError {
        RuntimeError::Unreachable {
            address: self.address(),
            action: "working on its files".to_owned(),
            source: Cause::Protocol("the work was interrupted"),
        }
    }
}

const LEASE_PREFIX: &str = "lease-";

fn index_of_nothing() -> &'static [u8] {
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#
}

/// Hashes the rest of a file.
pub(super) fn feed(
    mut file: &File,
    verifier: &mut Verifier,
    mut each: impl FnMut(&[u8]),
) -> Result<(), Cause> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let length = file.read(&mut buffer).map_err(Cause::File)?;
        let piece = buffer.get(..length).unwrap_or_default();
        if piece.is_empty() {
            return Ok(());
        }
        verifier.update(piece).map_err(Cause::Mismatch)?;
        each(piece);
    }
}

pub(super) fn corrupt(digest: Digest, mismatch: Mismatch) -> RuntimeError {
    RuntimeError::Corrupt { digest, source: Cause::Mismatch(mismatch) }
}

/// Makes a rename durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

pub(super) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
