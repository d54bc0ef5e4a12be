//! `logging-disk DIRECTORY MOUNTPOINT`: disks that remember what was written to them, and when it was flushed.
//!
//! Serves each `NAME.img` of DIRECTORY as a file in MOUNTPOINT, to be the backing file of a loop device, and appends every
//! write and every flush to DIRECTORY/log before it is acknowledged: what the kernel's dm-log-writes does, for kernels
//! without a device mapper. A loop device turns a flush of its file system into `fsync` of its backing file, so that the
//! log holds exactly what a card would have been told, in the order it was told. `harness::disk` reads it back.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use harness::disk::{self, Record};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, mountpoint] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    let served = Disks::open(Path::new(directory))
        .and_then(|disks| fuser::mount(disks, Path::new(mountpoint), &Config::default()));
    if let Err(error) = served {
        // A broken pipe for the reason leaves the exit code, which says the same.
        drop(writeln!(io::stderr(), "logging-disk: {error}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The disks, and the one log of what happens to all of them.
struct Disks {
    files: Vec<(String, File)>,
    log: Mutex<File>,
}

/// The number of the first file; the directory has the one before.
const FIRST: u64 = 2;
/// Nothing here changes its name or length.
const FOREVER: Duration = Duration::from_hours(1);

impl Disks {
    fn open(directory: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for name in disk::names(directory)? {
            let file = OpenOptions::new().read(true).write(true).open(directory.join(&name))?;
            files.push((name, file));
        }
        let log = OpenOptions::new().create(true).append(true).open(directory.join(disk::LOG_FILE))?;
        Ok(Self { files, log: Mutex::new(log) })
    }

    fn file(&self, number: INodeNo) -> Option<(u8, &File)> {
        let index = usize::try_from(number.0.checked_sub(FIRST)?).ok()?;
        Some((u8::try_from(index).ok()?, &self.files.get(index)?.1))
    }

    fn attributes(&self, number: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match self.file(number) {
            Some((_, file)) => (FileType::RegularFile, file.metadata().ok()?.len()),
            None if number == INodeNo::ROOT => (FileType::Directory, 0),
            None => return None,
        };
        let mine = fs::metadata("/proc/self").ok()?;
        Some(FileAttr {
            ino: number,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: if kind == FileType::Directory { 0o700 } else { 0o600 },
            nlink: 1,
            uid: std::os::unix::fs::MetadataExt::uid(&mine),
            gid: std::os::unix::fs::MetadataExt::gid(&mine),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// Before it is acknowledged, and one after another: the log's order is the order in which things happened.
    fn note(&self, record: &Record, act: impl FnOnce() -> io::Result<()>) -> Result<(), Errno> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = log.write_all(&record.encode()).and_then(|()| act());
        noted.map_err(|_| Errno::EIO)
    }
}

impl Filesystem for Disks {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = self.files.iter().zip(FIRST..).find(|((known, _), _)| name == known.as_str());
        match number.and_then(|(_, number)| self.attributes(INodeNo(number))) {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((_, file)) = self.file(number) else { return reply.error(Errno::ENOENT) };
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        match file.read_at(&mut bytes, offset) {
            Ok(count) => reply.data(bytes.get(..count).unwrap_or_default()),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some((disk, file)) = self.file(number) else { return reply.error(Errno::ENOENT) };
        let record = Record::Write { disk, offset, bytes: data.to_vec() };
        match self.note(&record, || file.write_all_at(data, offset)) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or_default()),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // That somebody closes the file says nothing about the disk.
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let Some((disk, _)) = self.file(number) else { return reply.error(Errno::ENOENT) };
        match self.note(&Record::Flush { disk }, || Ok(())) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }
}
