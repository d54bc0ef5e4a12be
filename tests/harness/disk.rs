//! Disks whose power can be cut at any moment of their past.
//!
//! Two or more loop devices, formatted ext4, on backing files that `logging-disk` serves: it logs every write and every
//! flush. [`Log::survivors`] makes of the log what such cards hold when the power goes at one of its records: everything
//! that was flushed until then is there; of what was written since, nothing or a part, in whatever order the card liked.
//! A card that lies about flushing is not among them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::process::{self, Outcome, Process, as_root};

/// The log, beside the images.
pub const LOG_FILE: &str = "log";
const IMAGE_SUFFIX: &str = ".img";
/// The images before the first record.
const BEFORE: &str = "before";

/// The images in a directory, in the order of their numbers.
pub fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(IMAGE_SUFFIX) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// What happened to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Bytes were written, and may lie in the disk's own memory.
    Write {
        /// Which disk.
        disk: u8,
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Everything that was written before is on the disk.
    Flush {
        /// Which disk.
        disk: u8,
    },
}

impl Record {
    fn disk(&self) -> u8 {
        match self {
            Self::Write { disk, .. } | Self::Flush { disk } => *disk,
        }
    }

    /// The record as it stands in the log: disk, kind, offset, length, bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (disk, kind, offset, bytes): (u8, u8, u64, &[u8]) = match self {
            Self::Write { disk, offset, bytes } => (*disk, b'w', *offset, bytes),
            Self::Flush { disk } => (*disk, b'f', 0, &[]),
        };
        let mut encoded = vec![disk, kind];
        encoded.extend(offset.to_le_bytes());
        encoded.extend((bytes.len() as u64).to_le_bytes());
        encoded.extend(bytes);
        encoded
    }

    /// The first record, and the rest.
    fn decode(encoded: &[u8]) -> Option<(Self, &[u8])> {
        let ([disk, kind], rest) = encoded.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let (disk, offset) = (*disk, u64::from_le_bytes(*offset));
        let record = match kind {
            b'w' => Self::Write { disk, offset, bytes: bytes.to_vec() },
            _ => Self::Flush { disk },
        };
        Some((record, rest))
    }
}

/// Disks in use.
pub struct Disks {
    directory: Arc<TempDir>,
    mounts: Vec<Mount>,
    _daemon: Process,
}

impl Disks {
    /// Formats and mounts disks of these names, of so many bytes each.
    pub fn start(names: &[&str], bytes: u64) -> Self {
        let directory = Arc::new(TempDir::new().expect("make a directory"));
        let (images, served) = (directory.path().join("images"), directory.path().join("served"));
        fs::create_dir_all(&images).expect("make a directory");
        fs::create_dir_all(&served).expect("make a directory");
        for name in names {
            let path = images.join(format!("{name}{IMAGE_SUFFIX}"));
            File::create(&path).and_then(|file| file.set_len(bytes)).expect("make an image");
            let mut format = process::in_clean_environment(Command::new("mkfs.ext4"));
            // Zeroing tables later would be writes that nobody asked for.
            format.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]).arg(&path);
            Outcome::of(&mut format, b"").expect_success();
        }
        // What the log starts from.
        let mut copy = Command::new("cp");
        copy.args(["--recursive", "--sparse=always"]).arg(&images).arg(directory.path().join(BEFORE));
        Outcome::of(&mut copy, b"").expect_success();
        let mut command = as_root(process::program("logging-disk"));
        command.arg(&images).arg(&served);
        let mut daemon = Process::start("logging-disk", &mut command, &directory.path().join("daemon.log"));
        let first = served.join(format!("{}{IMAGE_SUFFIX}", names.first().expect("a disk")));
        daemon.wait_until_ready(|| {
            let mut look = as_root("test");
            Outcome::of(look.arg("-f").arg(&first), b"").code == 0
        });
        let mount = |name: &&str| {
            let image = served.join(format!("{name}{IMAGE_SUFFIX}"));
            Mount::of(&image, &directory.path().join("mounted").join(name))
        };
        let mounts = names.iter().map(mount).collect();
        Self { directory, mounts, _daemon: daemon }
    }

    /// Where a disk is mounted.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("mounted").join(name)
    }

    /// What happened to the disks until now.
    pub fn log(&self) -> Log {
        let directory = self.directory.path();
        let bytes = fs::read(directory.join("images").join(LOG_FILE)).expect("read the log");
        let (mut records, mut rest) = (Vec::new(), bytes.as_slice());
        while let Some((record, after)) = Record::decode(rest) {
            records.push(record);
            rest = after;
        }
        let names = names(&directory.join("images")).expect("list the images");
        Log { directory: Arc::clone(&self.directory), names, records }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.mounts.clear();
        let served = self.directory.path().join("served");
        drop(as_root("umount").arg(served).stderr(Stdio::null()).status());
    }
}

/// A file system on a loop device, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn of(image: &Path, at: &Path) -> Self {
        let user = format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        fs::create_dir_all(at).expect("make a directory");
        let script = "mount -o loop,nodiscard $1 $2; chown $3 $2; chmod 755 $2";
        let mut mount = as_root("sh");
        mount.args(["-euc", script, "mount"]).arg(image).arg(at).arg(user);
        Outcome::of(&mut mount, b"").expect_success();
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: what still uses it ends with its own value, and must not keep the test from its verdict.
        drop(as_root("umount").arg("--lazy").arg(&self.0).stderr(Stdio::null()).status());
    }
}

/// What happens to writes that were not flushed when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unflushed {
    /// All of them are lost.
    Lost,
    /// Each is lost or kept, as this number decides.
    Scattered(u64),
}

/// The past of disks.
pub struct Log {
    /// Where the images are as they were in the beginning.
    directory: Arc<TempDir>,
    names: Vec<String>,
    records: Vec<Record>,
}

impl Log {
    /// How long it is.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The moments right after a disk was told to flush: between two of them, what survives does not change for it.
    pub fn flushes(&self, name: &str) -> Vec<usize> {
        let number = self.names.iter().position(|known| *known == format!("{name}{IMAGE_SUFFIX}"));
        let flush =
            Record::Flush { disk: number.and_then(|number| u8::try_from(number).ok()).expect("a disk") };
        let after = self.records.iter().zip(1..).filter(|(record, _)| **record == flush);
        after.map(|(_, moment)| moment).collect()
    }

    /// The disks as they are when the power goes at a moment.
    pub fn survivors(&self, moment: usize, unflushed: Unflushed) -> Survivors {
        let directory = TempDir::new().expect("make a directory");
        let mut mounts = Vec::new();
        for (name, disk) in self.names.iter().zip(0_u8..) {
            let image = directory.path().join(name);
            let mut copy = Command::new("cp");
            Outcome::of(
                copy.arg("--sparse=always").arg(self.directory.path().join(BEFORE).join(name)).arg(&image),
                b"",
            )
            .expect_success();
            self.replay(&image, disk, moment, unflushed);
            let bare = name.strip_suffix(IMAGE_SUFFIX).unwrap_or(name);
            mounts.push(Mount::of(&image, &directory.path().join("mounted").join(bare)));
        }
        Survivors { _mounts: mounts, directory }
    }

    fn replay(&self, image: &Path, disk: u8, moment: usize, unflushed: Unflushed) {
        let image = File::options().write(true).open(image).expect("open an image");
        let past = self.records.get(..moment).expect("a moment of the past");
        let ours: Vec<&Record> = past.iter().filter(|record| record.disk() == disk).collect();
        let flushed = ours.iter().rposition(|record| matches!(record, Record::Flush { .. })).unwrap_or(0);
        let mut luck = match unflushed {
            Unflushed::Lost => None,
            Unflushed::Scattered(seed) => Some(seed | 1),
        };
        for (index, record) in ours.into_iter().enumerate() {
            let Record::Write { offset, bytes, .. } = record else { continue };
            let pieces = (*offset..).step_by(SECTOR).zip(bytes.chunks(SECTOR));
            for (at, piece) in pieces {
                if index < flushed || luck.as_mut().is_some_and(kept) {
                    image.write_all_at(piece, at).expect("write to an image");
                }
            }
        }
    }
}

/// A card writes these whole or not at all.
const SECTOR: usize = 4096;

/// Every second one, in no order that anybody could rely on (xorshift64).
fn kept(luck: &mut u64) -> bool {
    *luck ^= *luck << 13;
    *luck ^= *luck >> 7;
    *luck ^= *luck << 17;
    luck.count_ones().is_multiple_of(2)
}

/// Disks after the power came back.
pub struct Survivors {
    // Dropped in this order: a directory that holds a mounted file system cannot be removed.
    _mounts: Vec<Mount>,
    directory: TempDir,
}

impl Survivors {
    /// Where a disk is mounted.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("mounted").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_survives_and_what_was_not_may_not() {
        let directory = TempDir::new().unwrap();
        let image = directory.path().join("a.img");
        fs::write(&image, vec![0; 16 * SECTOR]).unwrap();
        let write = |sector: u64, byte| Record::Write {
            disk: 0,
            offset: sector * SECTOR as u64,
            bytes: vec![byte; SECTOR],
        };
        let scattered = (4..16).map(|sector| write(sector, 3));
        let records = [write(0, 1), Record::Flush { disk: 0 }, write(1, 2)].into_iter().chain(scattered);
        let log =
            Log { directory: Arc::new(directory), names: vec!["a.img".into()], records: records.collect() };
        assert_eq!(log.flushes("a"), [2]);
        log.replay(&image, 0, 3, Unflushed::Lost);
        let bytes = fs::read(&image).unwrap();
        assert_eq!((bytes[0], bytes[SECTOR]), (1, 0));
        log.replay(&image, 0, log.len(), Unflushed::Scattered(7));
        let survived = fs::read(&image).unwrap().chunks(SECTOR).filter(|sector| sector[0] == 3).count();
        assert!(survived > 0 && survived < 12, "{survived} of 12");
    }

    #[test]
    fn reads_the_records_that_it_wrote() {
        let records =
            [Record::Write { disk: 1, offset: 4096, bytes: b"abc".to_vec() }, Record::Flush { disk: 1 }];
        let encoded: Vec<u8> = records.iter().flat_map(Record::encode).collect();
        let (first, rest) = Record::decode(&encoded).unwrap();
        let (second, rest) = Record::decode(rest).unwrap();
        assert_eq!(([first, second], rest), (records, &[][..]));
        assert_eq!(Record::decode(&encoded[..10]), None);
    }
}
