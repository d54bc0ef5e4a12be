//! Files of the data directory: private, whole or absent, on disk before they count.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::InitError;

const DIRECTORIES: [&str; 4] = ["ca", "tls", "keys", "tuf"];

/// The data directory.
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    /// Makes the directories that are not there.
    pub(super) fn create(root: &Path) -> Result<Self, InitError> {
        let files = Self {
            root: root.to_owned(),
        };
        files.make_directory(root)?;
        for directory in DIRECTORIES {
            files.make_directory(&root.join(directory))?;
        }
        for repository in super::REPOSITORIES {
            files.make_directory(&root.join("tuf").join(repository))?;
        }
        Ok(files)
    }

    /// Takes a directory that is there and safe.
    pub(super) fn open(root: &Path) -> Result<Self, InitError> {
        match fs::symlink_metadata(root) {
            Ok(_) => check_private(root, 0o700)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InitError::Missing(root.to_owned(), root.to_owned()));
            }
            Err(source) => {
                return Err(InitError::Io {
                    action: "look at",
                    path: root.to_owned(),
                    source,
                });
            }
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// The path of a file.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// Whether a file is there.
    pub(super) fn exists(&self, file: &str) -> Result<bool, InitError> {
        let path = self.path(file);
        path.try_exists().map_err(|source| InitError::Io {
            action: "look at",
            path,
            source,
        })
    }

    /// Reads a file that must be there.
    pub(super) fn read(&self, file: &str) -> Result<String, InitError> {
        self.read_optional(file)?
            .ok_or_else(|| InitError::Missing(self.path(file), self.root.clone()))
    }

    /// Reads a file if it is there.
    pub(super) fn read_optional(&self, file: &str) -> Result<Option<String>, InitError> {
        read_private(&self.path(file))
    }

    /// Writes a file that is not there yet.
    pub(super) fn write_new(&self, file: &str, bytes: &[u8]) -> Result<(), InitError> {
        let path = self.path(file);
        // A link that nobody else may place, to a name that is free: the file appears whole, and replaces nothing.
        let temporary = self.write_temporary(&path, bytes)?;
        let failed = |source| InitError::Io {
            action: "write",
            path: path.clone(),
            source,
        };
        fs::hard_link(&temporary, &path).map_err(failed)?;
        fs::remove_file(&temporary).map_err(failed)?;
        sync_directory(&path).map_err(failed)
    }

    /// Writes a file, in place of one that is there.
    pub(super) fn replace(&self, file: &str, bytes: &[u8]) -> Result<(), InitError> {
        let path = self.path(file);
        let temporary = self.write_temporary(&path, bytes)?;
        let failed = |source| InitError::Io {
            action: "write",
            path: path.clone(),
            source,
        };
        fs::rename(&temporary, &path).map_err(failed)?;
        sync_directory(&path).map_err(failed)
    }

    fn write_temporary(&self, path: &Path, bytes: &[u8]) -> Result<PathBuf, InitError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.new"));
        let failed = |source| InitError::Io {
            action: "write",
            path: temporary.clone(),
            source,
        };
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        Ok(temporary)
    }

    fn make_directory(&self, path: &Path) -> Result<(), InitError> {
        if fs::symlink_metadata(path).is_ok() {
            return check_private(path, 0o700);
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| InitError::Io {
            action: "make",
            path: path.to_owned(),
            source,
        })
    }
}

/// Reads a file that only its owner may read, if it is there.
pub(super) fn read_private(path: &Path) -> Result<Option<String>, InitError> {
    match fs::symlink_metadata(path) {
        Ok(_) => check_private(path, 0o600)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(InitError::Io {
                action: "look at",
                path: path.to_owned(),
                source,
            });
        }
    }
    let text = fs::read_to_string(path);
    text.map(Some).map_err(|source| InitError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// Refuses what is a link, or open to anybody but its owner.
fn check_private(path: &Path, wanted: u32) -> Result<(), InitError> {
    let metadata = fs::symlink_metadata(path);
    let metadata = metadata.map_err(|source| InitError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    if metadata.is_symlink() {
        return Err(InitError::Link(path.to_owned()));
    }
    let mode = metadata.mode() & 0o777;
    // systemd hands credentials over as 0440 files of a directory that only the service can enter.
    let credential = path.starts_with("/run/credentials") && mode & 0o337 == 0;
    if mode & !wanted & 0o777 != 0 && !credential {
        return Err(InitError::Exposed {
            path: path.to_owned(),
            mode,
            wanted,
        });
    }
    Ok(())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
