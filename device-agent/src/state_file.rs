//! The device's memory: small plain files that survive a power cut at any moment.
//!
//! The only place that writes below the state directory. A file is either its old or its new self, never half of each:
//! temporary file, fsync, rename, fsync of the directory. Every path is walked by directory handles that refuse symbolic
//! links, so that nobody who can write somewhere else makes us write there. Directories are 0700 and files 0600.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

mod fuse;
mod reserve;
mod whole;

pub use fuse::Fuse;

/// Largest file that is read back; the biggest one is a targets role.
pub const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Why the state directory cannot be used as it is.
#[derive(Debug, Error)]
pub enum StateError {
    /// The directory or a file below it could not be opened, read or written.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others may read or write it.
    #[error(
        "{path} has mode {mode:o}: others can read or change it; run: chmod {expected:o} {path}",
        path = path.display()
    )]
    TooOpen {
        /// Which file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        expected: u32,
    },
    /// It belongs to another user.
    #[error(
        "{path} belongs to user {owner}, not to the user who runs device-agent; run: chown -R {user} {path}",
        path = path.display()
    )]
    ForeignOwner {
        /// Which directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// A symbolic link or another special file stands where our file should be.
    #[error("{0} is a symbolic link or not a regular file; remove it")]
    NotRegular(PathBuf),
    /// The content is not what was written.
    #[error("{path} is damaged; {remedy}", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What the operator does about it.
        remedy: &'static str,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another agent works on this directory.
    #[error(
        "another device-agent is using {0}; stop it first (systemctl stop device-agent) or leave the work to it"
    )]
    Locked(PathBuf),
}

impl StateError {
    /// Whether there was no room.
    fn is_full(&self) -> bool {
        let full = [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Io { source, .. } if full.contains(&source.kind()))
    }
}

/// An open state directory.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    root: OwnedFd,
    fuse: Fuse,
}

/// Proof that no other agent works on the state directory; ends when dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "holds the flock open")] OwnedFd);

impl StateDir {
    /// Opens the directory, making it if it is missing. One that is there, empty and ours is made private: `mkdir` by hand
    /// leaves it open to others, and there is nothing in it yet that they could have read.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        if let Err(source) = std::fs::create_dir_all(path.parent().unwrap_or(path)) {
            return Err(failed("create the parent of", path, source));
        }
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => tighten(path)?,
            Err(errno) => return Err(failed("create", path, errno.into())),
        }
        Self::open_existing(path)
    }

    /// Opens the directory, which must be there.
    pub fn open_existing(path: &Path) -> Result<Self, StateError> {
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|errno| match errno {
            Errno::LOOP | Errno::NOTDIR => StateError::NotRegular(path.to_owned()),
            errno => failed("open", path, errno.into()),
        })?;
        let this = Self { path: path.to_owned(), root, fuse: Fuse::default() };
        this.check_ownership()?;
        Ok(this)
    }

    /// Everything below the directory that others can read or change, that is another user's, or that is a link.
    pub fn flaws(&self) -> Result<Vec<StateError>, StateError> {
        let user = rustix::process::geteuid().as_raw();
        let (mut flaws, mut left) = (Vec::new(), vec![self.path.clone()]);
        while let Some(directory) = left.pop() {
            let entries =
                std::fs::read_dir(&directory).map_err(|source| failed("list", &directory, source))?;
            for entry in entries {
                let path = entry.map_err(|source| failed("list", &directory, source))?.path();
                let found = match std::fs::symlink_metadata(&path) {
                    Ok(found) => found,
                    // The agent replaces its files while we look.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(source) => return Err(failed("examine", &path, source)),
                };
                let expected = if found.is_dir() { 0o700 } else { 0o600 };
                if !found.is_dir() && !found.is_file() {
                    flaws.push(StateError::NotRegular(path));
                } else if found.uid() != user {
                    flaws.push(StateError::ForeignOwner { path, owner: found.uid(), user });
                } else if let Err(flaw) = self.check_mode(&path, found.mode(), expected) {
                    flaws.push(flaw);
                } else if found.is_dir() {
                    left.push(path);
                }
            }
        }
        Ok(flaws)
    }

    /// Bytes that this user may still write where the directory is.
    pub fn free_bytes(&self) -> Result<u64, StateError> {
        let found = rustix::fs::fstatvfs(&self.root);
        let found = found.map_err(|errno| failed("examine the disk of", &self.path, errno.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// When a file was written, by the device's clock; `None` when it is not there.
    pub fn written(&self, name: &str) -> Option<jiff::Timestamp> {
        let modified = std::fs::symlink_metadata(self.path_of(name)).ok()?.modified().ok()?;
        modified.try_into().ok()
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The full path of a file in it, to be shown or given to another program.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What ends all changes at a step, in tests of what a cut there leaves behind.
    pub fn fuse(&self) -> &Fuse {
        &self.fuse
    }

    fn step(&self, path: &Path) -> Result<(), StateError> {
        if self.fuse.step() {
            return Ok(());
        }
        Err(failed("change", path, std::io::Error::other("the fuse has burnt")))
    }

    fn check_ownership(&self) -> Result<(), StateError> {
        let stat =
            rustix::fs::fstat(&self.root).map_err(|errno| failed("examine", &self.path, errno.into()))?;
        let user = rustix::process::geteuid().as_raw();
        if stat.st_uid != user {
            return Err(StateError::ForeignOwner { path: self.path.clone(), owner: stat.st_uid, user });
        }
        self.check_mode(&self.path, stat.st_mode, 0o700)
    }

    #[expect(clippy::unused_self, reason = "keeps the two checks side by side")]
    fn check_mode(&self, path: &Path, mode: u32, expected: u32) -> Result<(), StateError> {
        if mode.trailing_zeros() >= 6 {
            // Nothing for group and others.
            return Ok(());
        }
        Err(StateError::TooOpen { path: path.to_owned(), mode: mode & 0o7777, expected })
    }

    /// Takes the directory for this process alone, so that `run` and `sync` do not fight over it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        let path = self.path_of(LOCK_FILE);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.root, LOCK_FILE, flags, PRIVATE)
            .map_err(|errno| failed("open", &path, errno.into()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(file)),
            Err(Errno::WOULDBLOCK) => Err(StateError::Locked(self.path.clone())),
            Err(errno) => Err(failed("lock", &path, errno.into())),
        }
    }

    /// Reads a file; `None` when it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path_of(name);
        let Some((directory, last)) = self.walk(name, Missing::Report)? else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&directory, last, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(StateError::NotRegular(path)),
            Err(errno) => return Err(failed("open", &path, errno.into())),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed("examine", &path, errno.into()))?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(StateError::NotRegular(path));
        }
        let mut bytes = Vec::new();
        let read = File::from(file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
        match read {
            Ok(count) if count as u64 <= MAX_FILE_BYTES => Ok(Some(bytes)),
            Ok(_) => Err(StateError::Damaged {
                path,
                remedy: "it is far larger than anything device-agent writes; remove it",
                source: "file too large".into(),
            }),
            Err(source) => Err(failed("read", &path, source)),
        }
    }

    /// Reads a file that holds a secret; refuses it when others could have read it.
    pub fn read_private(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let Some((directory, last)) = self.walk(name, Missing::Report)? else {
            return Ok(None);
        };
        match rustix::fs::statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => self.check_mode(&self.path_of(name), stat.st_mode, 0o600)?,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed("examine", &self.path_of(name), errno.into())),
        }
        self.read(name)
    }

    /// Writes a file so that after a power cut it holds either the old or the new bytes; durable on return.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.replace(name, bytes, Durability::Durable)
    }

    /// Writes a file that may be lost in a power cut, sparing the flash: for what is only shown.
    pub fn write_volatile(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        self.replace(name, bytes, Durability::Volatile)
    }

    fn replace(&self, name: &str, bytes: &[u8], durability: Durability) -> Result<(), StateError> {
        match self.try_replace(name, bytes, durability) {
            // What is only shown is not worth the reserve.
            Err(error)
                if matches!(durability, Durability::Durable) && error.is_full() && self.spend_reserve() =>
            {
                tracing::warn!(file = name, "the disk is full; the state uses its reserve");
                self.try_replace(name, bytes, durability)
            }
            done => done,
        }
    }

    fn try_replace(&self, name: &str, bytes: &[u8], durability: Durability) -> Result<(), StateError> {
        let path = self.path_of(name);
        self.step(&path)?;
        let Some((directory, last)) = self.walk(name, Missing::Create)? else {
            return Err(StateError::NotRegular(path));
        };
        let temporary = format!(".{last}.new");
        let io = |doing| move |errno: Errno, path: &Path| failed(doing, path, errno.into());
        match rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(io("clear the way for")(errno, &path)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, &temporary, flags, PRIVATE)
            .map_err(|errno| io("create")(errno, &path))?;
        self.step(&path)?;
        let mut file = File::from(file);
        let written = file.write_all(bytes).and_then(|()| match durability {
            Durability::Durable => file.sync_all(),
            Durability::Volatile => Ok(()),
        });
        if let Err(source) = written {
            // On a full disk the half-written file is the first thing to give back.
            let _ = rustix::fs::unlinkat(&directory, &temporary, AtFlags::empty());
            return Err(failed("write", &path, source));
        }
        self.step(&path)?;
        rustix::fs::renameat(&directory, &temporary, &directory, last)
            .map_err(|errno| io("replace")(errno, &path))?;
        match durability {
            Durability::Durable => self.sync(&directory, &path),
            Durability::Volatile => Ok(()),
        }
    }

    /// Removes a file; durable on return. It may be gone already.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path_of(name);
        self.step(&path)?;
        let Some((directory, last)) = self.walk(name, Missing::Report)? else {
            return Ok(());
        };
        match rustix::fs::unlinkat(&directory, last, AtFlags::empty()) {
            Ok(()) => self.sync(&directory, &path),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("remove", &path, errno.into())),
        }
    }

    /// Moves a file over another; durable on return. Does nothing when `from` is gone already.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), StateError> {
        let path = self.path_of(to);
        self.step(&path)?;
        let Some((source, from)) = self.walk(from, Missing::Report)? else {
            return Ok(());
        };
        let Some((target, to)) = self.walk(to, Missing::Create)? else {
            return Err(StateError::NotRegular(path));
        };
        match rustix::fs::renameat(&source, from, &target, to) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("replace", &path, errno.into())),
        }
        // The new name first: a crash between the two leaves the file under both, never under neither.
        self.sync(&target, &path)?;
        self.sync(&source, &path)
    }

    fn sync(&self, directory: &OwnedFd, path: &Path) -> Result<(), StateError> {
        self.step(path)?;
        sync(directory, path)
    }

    /// Whether a file is there.
    pub fn has(&self, name: &str) -> Result<bool, StateError> {
        let Some((directory, last)) = self.walk(name, Missing::Report)? else {
            return Ok(false);
        };
        match rustix::fs::statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed("examine", &self.path_of(name), errno.into())),
        }
    }

    /// Reads a JSON file; `None` when it is not there.
    pub fn read_json<T: DeserializeOwned>(
        &self,
        name: &str,
        remedy: &'static str,
    ) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(None);
        };
        let Some(bytes) = whole::unsealed(&bytes) else {
            let source = "its bytes are not those that were written".into();
            return Err(StateError::Damaged { path: self.path_of(name), remedy, source });
        };
        serde_json::from_slice(bytes).map(Some).map_err(|source| StateError::Damaged {
            path: self.path_of(name),
            remedy,
            source: source.into(),
        })
    }

    /// Writes a JSON file, durable on return.
    pub fn write_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        self.write(name, &whole::sealed(to_json(self, name, value)?))
    }

    /// Writes a JSON file that may be lost in a power cut.
    pub fn write_json_volatile<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        self.write_volatile(name, &to_json(self, name, value)?)
    }

    /// Names of the files in a directory of ours, without temporary ones.
    pub fn list(&self, directory: &str) -> Result<Vec<String>, StateError> {
        let path = self.path_of(directory);
        let Some((parent, last)) = self.walk(directory, Missing::Report)? else {
            return Ok(Vec::new());
        };
        let handle = match rustix::fs::openat(&parent, last, DIRECTORY, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(errno) => return Err(failed("open", &path, errno.into())),
        };
        let entries = rustix::fs::Dir::new(handle).map_err(|errno| failed("list", &path, errno.into()))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|errno| failed("list", &path, errno.into()))?;
            let name = entry.file_name().to_string_lossy();
            if !name.starts_with('.') {
                names.push(name.into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens the directories on the way to a file, never through a symbolic link.
    fn walk<'a>(&self, name: &'a str, missing: Missing) -> Result<Option<(OwnedFd, &'a str)>, StateError> {
        let (parents, last) = name.rsplit_once('/').map_or(("", name), |(parents, last)| (parents, last));
        let mut here = self.root.try_clone().map_err(|source| failed("open", &self.path, source))?;
        for part in parents.split('/').filter(|part| !part.is_empty()) {
            if missing == Missing::Create {
                match rustix::fs::mkdirat(&here, part, Mode::RWXU) {
                    Ok(()) => sync(&here, &self.path)?,
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(failed("create", &self.path.join(parents), errno.into())),
                }
            }
            here = match rustix::fs::openat(&here, part, DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(StateError::NotRegular(self.path.join(parents)));
                }
                Err(errno) => return Err(failed("open", &self.path.join(parents), errno.into())),
            };
        }
        Ok(Some((here, last)))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Report,
}

#[derive(Clone, Copy)]
enum Durability {
    Durable,
    Volatile,
}

/// Makes an empty directory of ours private, and says so.
fn tighten(path: &Path) -> Result<(), StateError> {
    let io = |errno: Errno| failed("open", path, errno.into());
    let directory = match rustix::fs::open(path, DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::LOOP | Errno::NOTDIR) => return Err(StateError::NotRegular(path.to_owned())),
        Err(errno) => return Err(io(errno)),
    };
    let stat = rustix::fs::fstat(&directory).map_err(io)?;
    let private = stat.st_mode.trailing_zeros() >= 6;
    if private || stat.st_uid != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let entries = rustix::fs::Dir::read_from(&directory).map_err(io)?;
    let mut names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_bytes().to_vec());
    if names.any(|name| name != b"." && name != b"..") {
        return Ok(());
    }
    rustix::fs::fchmod(&directory, Mode::RWXU).map_err(|errno| failed("make private", path, errno.into()))?;
    tracing::info!(path = %path.display(), "the empty state directory was open to others; its mode is 0700 now");
    Ok(())
}

fn to_json<T: Serialize>(directory: &StateDir, name: &str, value: &T) -> Result<Vec<u8>, StateError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| failed("encode", &directory.path_of(name), source.into()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn sync(directory: &impl AsFd, path: &Path) -> Result<(), StateError> {
    rustix::fs::fsync(directory).map_err(|errno| failed("make durable", path, errno.into()))
}

fn failed(doing: &'static str, path: &Path, source: std::io::Error) -> StateError {
    StateError::Io { doing, path: path.to_owned(), source }
}

const LOCK_FILE: &str = "lock";
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn fresh() -> (tempfile::TempDir, StateDir) {
        let temporary = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temporary.path().join("state")).unwrap();
        (temporary, state)
    }

    #[test]
    fn writes_privately_and_reads_back() {
        let (_keep, state) = fresh();
        assert_eq!(state.read("metadata/images/root.json").unwrap(), None);
        state.write("metadata/images/root.json", b"one").unwrap();
        state.write("metadata/images/root.json", b"two").unwrap();
        assert_eq!(state.read("metadata/images/root.json").unwrap().as_deref(), Some(&b"two"[..]));
        let mode = |name: &str| std::fs::metadata(state.path_of(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("metadata/images/root.json"), 0o600);
        assert_eq!(mode("metadata/images"), 0o700);
        assert_eq!(state.list("metadata/images").unwrap(), ["root.json"]);
        state.remove("metadata/images/root.json").unwrap();
        state.remove("metadata/images/root.json").unwrap();
        assert!(!state.has("metadata/images/root.json").unwrap());
    }

    #[test]
    fn a_leftover_of_a_crash_does_not_disturb() {
        let (_keep, state) = fresh();
        std::fs::write(state.path_of(".state.json.new"), b"half").unwrap();
        assert_eq!(state.read("state.json").unwrap(), None);
        state.write("state.json", b"whole").unwrap();
        assert_eq!(state.read("state.json").unwrap().as_deref(), Some(&b"whole"[..]));
        assert!(!state.path_of(".state.json.new").exists());
    }

    #[test]
    fn rejects_symbolic_links_on_every_step() {
        let (keep, state) = fresh();
        let outside = keep.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), b"s").unwrap();
        symlink(&outside, state.path_of("metadata")).unwrap();
        symlink(outside.join("secret"), state.path_of("facade.json")).unwrap();
        assert!(matches!(state.write("metadata/root.json", b"x"), Err(StateError::NotRegular(_))));
        assert!(matches!(state.read("facade.json"), Err(StateError::NotRegular(_))));
        // Writing replaces the link itself and leaves its target alone.
        state.write("facade.json", b"ours").unwrap();
        assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"s");
        let link = keep.path().join("link");
        symlink(state.path(), &link).unwrap();
        assert!(matches!(StateDir::open(&link), Err(StateError::NotRegular(_))));
    }

    #[test]
    fn rejects_a_directory_and_keys_that_others_can_read() {
        let (_keep, state) = fresh();
        state.write("identity/key.pem", b"k").unwrap();
        assert!(state.read_private("identity/key.pem").unwrap().is_some());
        let open = |name: &str, mode| {
            std::fs::set_permissions(state.path_of(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open("identity/key.pem", 0o640);
        let error = state.read_private("identity/key.pem").unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        open("", 0o755);
        let error = StateDir::open(state.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn an_empty_directory_made_by_hand_is_made_private_and_one_with_something_in_it_is_not() {
        let keep = tempfile::tempdir().unwrap();
        let path = keep.path().join("state");
        let open = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::create_dir(&path).unwrap();
        open(0o755);
        StateDir::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(path.join("key.pem"), b"k").unwrap();
        open(0o755);
        assert!(matches!(StateDir::open(&path), Err(StateError::TooOpen { .. })));
    }

    #[test]
    fn finds_everything_that_is_not_the_agents_alone() {
        let (keep, state) = fresh();
        state.write("identity/key.pem", b"k").unwrap();
        assert!(state.flaws().unwrap().is_empty());
        let open = |name: &str, mode| {
            std::fs::set_permissions(state.path_of(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open("identity/key.pem", 0o644);
        state.write("metadata/root.json", b"r").unwrap();
        open("metadata", 0o750);
        symlink(keep.path(), state.path_of("link")).unwrap();
        let flaws: Vec<String> = state.flaws().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(flaws.len(), 3, "{flaws:?}");
        for word in ["chmod 600", "chmod 700", "symbolic link"] {
            assert!(flaws.iter().any(|flaw| flaw.contains(word)), "{word} in {flaws:?}");
        }
        assert!(state.free_bytes().unwrap() > 0 && state.written("metadata/root.json").is_some());
    }

    #[test]
    fn rejects_a_second_agent() {
        let (_keep, state) = fresh();
        let lock = state.lock().unwrap();
        let other = StateDir::open(state.path()).unwrap();
        assert!(matches!(other.lock(), Err(StateError::Locked(_))));
        drop(lock);
        other.lock().unwrap();
    }

    #[test]
    fn says_what_to_do_about_damage() {
        let (_keep, state) = fresh();
        for bytes in [&b""[..], b"{", b"\0\0\0", b"[]"] {
            state.write("facade.json", bytes).unwrap();
            let error = state
                .read_json::<std::collections::BTreeMap<String, String>>("facade.json", "enroll again")
                .unwrap_err();
            assert!(error.to_string().contains("is damaged; enroll again"), "{error}");
        }
    }

    #[test]
    fn renames_are_repeatable() {
        let (_keep, state) = fresh();
        state.write("identity/next/key.pem", b"new").unwrap();
        state.rename("identity/next/key.pem", "identity/key.pem").unwrap();
        state.rename("identity/next/key.pem", "identity/key.pem").unwrap();
        assert_eq!(state.read("identity/key.pem").unwrap().as_deref(), Some(&b"new"[..]));
    }
}
