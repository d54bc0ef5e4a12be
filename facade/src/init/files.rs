//! Files that only their owner may see, each there whole or not at all.
//!
//! A file is written beside its place, flushed, and moved in; then the directory is flushed. A link, another's file, or a file that others can read is refused: it would put the keys in other hands.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use zeroize::Zeroizing;

use super::InitError;

const MAX_BYTES: u64 = 64 * 1024;
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A data directory that was found to be private.
pub(super) struct Files {
    root: PathBuf,
    /// Whether it was open to others, empty, and made private.
    made_private: bool,
    /// Holds the lock of whoever changes the directory.
    _lock: Option<File>,
}

impl Files {
    /// Makes the directory if it is not there, and keeps every other `init` out while this lives.
    pub(super) fn create(root: &Path) -> Result<Self, InitError> {
        let made_private = tighten(root)?;
        make_directory(root)?;
        let failed = |source| failed("lock", root, source);
        let lock = File::open(root).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(InitError::Busy(root.to_owned())),
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(Self { root: root.to_owned(), made_private, _lock: Some(lock) })
    }

    /// Opens the directory to read it.
    pub(super) fn open(root: &Path) -> Result<Self, InitError> {
        if !root.exists() {
            return Err(InitError::Missing { path: root.to_owned(), data_dir: root.to_owned() });
        }
        check_directory(root)?;
        Ok(Self { root: root.to_owned(), made_private: false, _lock: None })
    }

    pub(super) fn made_private(&self) -> bool {
        self.made_private
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Reads a file that has to be there.
    pub(super) fn read(&self, name: &str) -> Result<Zeroizing<String>, InitError> {
        self.find(name)?
            .ok_or_else(|| InitError::Missing { path: self.path(name), data_dir: self.root.clone() })
    }

    /// Reads a file, if it is there.
    pub(super) fn find(&self, name: &str) -> Result<Option<Zeroizing<String>>, InitError> {
        let path = self.path(name);
        if let Some(parent) = path.parent().filter(|parent| parent.exists()) {
            check_directory(parent)?;
        }
        read_private(&path)
    }

    /// The names of the files in a directory.
    pub(super) fn list(&self, directory: &str) -> Result<Vec<String>, InitError> {
        let path = self.path(directory);
        if !path.exists() {
            return Ok(Vec::new());
        }
        check_directory(&path)?;
        let entries = fs::read_dir(&path).map_err(|source| failed("list", &path, source))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| failed("list", &path, source))?;
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file, if it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), InitError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, source)),
            _ => Ok(()),
        }
    }

    /// Puts a file in its place, where there must be none.
    pub(super) fn publish(&self, name: &str, content: &[u8]) -> Result<(), InitError> {
        self.put(name, content, RenameFlags::NOREPLACE)
    }

    /// Puts a file in the place of another; whoever reads meanwhile has the one or the other.
    pub(super) fn replace(&self, name: &str, content: &[u8]) -> Result<(), InitError> {
        self.put(name, content, RenameFlags::empty())
    }

    fn put(&self, name: &str, content: &[u8], how: RenameFlags) -> Result<(), InitError> {
        let path = self.path(name);
        let parent = path.parent().unwrap_or(&self.root);
        make_directory(parent)?;
        let draft = path.with_extension("draft");
        // What an interrupted run left is nobody's: the lock is ours.
        if draft.symlink_metadata().is_ok() {
            fs::remove_file(&draft).map_err(|source| failed("remove", &draft, source))?;
        }
        write_draft(&draft, content).map_err(|source| failed("write", &draft, source))?;
        renameat_with(CWD, &draft, CWD, &path, how)
            .map_err(|source| failed("put in place", &path, source.into()))?;
        sync_directory(parent)
    }
}

/// Reads a private file at any path; `None` if there is none.
pub(super) fn read_private(path: &Path) -> Result<Option<Zeroizing<String>>, InitError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("look at", path, source)),
        Ok(found) if found.is_symlink() => return Err(InitError::Link(path.to_owned())),
        Ok(_) => {}
    }
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|source| failed("open", path, source))?;
    read_judged(path, file, check_private).map(Some)
}

/// Reads a secret file that somebody else put there: the operator, systemd (`LoadCredential=`), Kubernetes. It may be
/// root's, and root's group may read it, as those leave it; it may be a link, since its name is the operator's word.
pub(super) fn read_elsewhere(path: &Path) -> Result<Option<Zeroizing<String>>, InitError> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => read_judged(path, file, check_credential).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("open", path, source)),
    }
}

type Judge = fn(&Path, &fs::Metadata, u32) -> Result<(), InitError>;

fn read_judged(path: &Path, file: File, judge: Judge) -> Result<Zeroizing<String>, InitError> {
    // The open file is judged, not the name: a name can change hands in between.
    let found = file.metadata().map_err(|source| failed("look at", path, source))?;
    if !found.is_file() || found.len() > MAX_BYTES {
        return Err(InitError::unusable(path, "not a small regular file"));
    }
    judge(path, &found, FILE_MODE)?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(|source| failed("read", path, source))?;
    Ok(text)
}

fn write_draft(draft: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(draft)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes an empty directory of ours private: `mkdir` by hand leaves it open to others, and there is nothing in it yet that
/// they could have read. Whether it did; anything else is left to be refused.
fn tighten(path: &Path) -> Result<bool, InitError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(false) };
    let exposed = matches!(check_private(path, &found, DIRECTORY_MODE), Err(InitError::Exposed { .. }));
    if !found.is_dir() || !exposed {
        return Ok(false);
    }
    let mut entries = fs::read_dir(path).map_err(|source| failed("list", path, source))?;
    if entries.next().is_some() {
        return Ok(false);
    }
    let private = fs::Permissions::from_mode(DIRECTORY_MODE);
    fs::set_permissions(path, private).map_err(|source| failed("make private", path, source))?;
    Ok(true)
}

fn make_directory(path: &Path) -> Result<(), InitError> {
    if !path.exists() {
        let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path);
        made.map_err(|source| failed("make", path, source))?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent)?;
        }
    }
    check_directory(path)
}

fn check_directory(path: &Path) -> Result<(), InitError> {
    let found = fs::symlink_metadata(path).map_err(|source| failed("look at", path, source))?;
    if found.is_symlink() {
        return Err(InitError::Link(path.to_owned()));
    }
    if !found.is_dir() {
        return Err(InitError::unusable(path, "not a directory"));
    }
    check_private(path, &found, DIRECTORY_MODE)
}

fn check_private(path: &Path, found: &fs::Metadata, wanted: u32) -> Result<(), InitError> {
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return Err(InitError::Foreign { path: path.to_owned(), owner: found.uid(), user });
    }
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(InitError::Exposed { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// Root can read every file anyhow; what it owns may be readable for its group, but for nobody else.
fn check_credential(path: &Path, found: &fs::Metadata, wanted: u32) -> Result<(), InitError> {
    let mode = found.mode() & 0o777;
    if found.uid() == 0 && mode | 0o740 == 0o740 {
        return Ok(());
    }
    check_private(path, found, wanted)
}

pub(super) fn sync_directory(path: &Path) -> Result<(), InitError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| failed("flush", path, source))
}

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> InitError {
    InitError::Io { action, path: path.to_owned(), source }
}
