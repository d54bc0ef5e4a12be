//! The files of the access log: lines of JSON, in files that take turns. The newest is appended to; when it is full the
//! next one begins, and the oldest goes.
//!
//! Nothing is synced: a power cut costs the last moments. What it leaves half-written is cut off at the next start.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use super::{Filter, Found, Line, PullsError};

/// How many files there are at most.
const FILES: u64 = 16;
const MIN_FILE_BYTES: u64 = 4096;
/// How much one search reads at most; the next one goes on where it stopped.
const MAX_READ: u64 = 4 * 1024 * 1024;
/// How much is read at a time; longer than any line.
const STEP: u64 = 64 * 1024;

/// A place in the log: everything before it is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    file: u64,
    offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.file, self.offset)
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text
            .split_once('-')
            .and_then(|(file, offset)| Some(Self { file: file.parse().ok()?, offset: offset.parse().ok()? }));
        parsed.ok_or("is not the `next` of a page")
    }
}

pub(super) struct Files {
    directory: PathBuf,
    file_bytes: u64,
    end: Mutex<End>,
}

/// Where the log ends.
struct End {
    oldest: u64,
    place: Place,
    /// Opened with the first line that is appended to it.
    file: Option<File>,
}

impl Files {
    pub(super) fn open(directory: &Path, max_bytes: u64) -> Result<Self, PullsError> {
        let failed = |source| PullsError { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".jsonl")?.parse::<u64>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let oldest = numbers.first().copied().unwrap_or(1);
        let newest = numbers.last().copied().unwrap_or(1);
        let offset = cut_torn(&path(directory, newest)).map_err(failed)?;
        Ok(Self {
            directory: directory.to_owned(),
            file_bytes: (max_bytes / FILES).max(MIN_FILE_BYTES),
            end: Mutex::new(End { oldest, place: Place { file: newest, offset }, file: None }),
        })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn failed(&self, source: io::Error) -> PullsError {
        PullsError { path: self.directory.clone(), source }
    }

    /// Appends whole lines.
    pub(super) fn append(&self, lines: &[u8]) -> Result<(), PullsError> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let length = line.len() as u64;
            if end.place.offset > 0 && end.place.offset + length > self.file_bytes {
                self.turn(&mut end).map_err(|source| self.failed(source))?;
            }
            let file = match end.file.take() {
                Some(file) => file,
                None => self.to_append(end.place.file).map_err(|source| self.failed(source))?,
            };
            // A line that is not written whole is followed by no other: the next one begins a new file.
            match (&file).write_all(line) {
                Ok(()) => {
                    end.place.offset += length;
                    end.file = Some(file);
                }
                Err(source) => {
                    let _ = file.set_len(end.place.offset);
                    return Err(self.failed(source));
                }
            }
        }
        Ok(())
    }

    fn to_append(&self, number: u64) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(path(&self.directory, number))
    }

    /// Begins the next file; the oldest ones go.
    fn turn(&self, end: &mut End) -> io::Result<()> {
        end.file = None;
        end.place = Place { file: end.place.file + 1, offset: 0 };
        while end.place.file - end.oldest >= FILES {
            match fs::remove_file(path(&self.directory, end.oldest)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => end.oldest += 1,
            }
        }
        Ok(())
    }

    /// Reads backwards from a place, or from the end.
    pub(super) fn search(
        &self,
        filter: &Filter,
        from: Option<Place>,
        limit: usize,
    ) -> Result<Found, PullsError> {
        let (oldest, newest) = {
            let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            (end.oldest, end.place)
        };
        let mut at = from.map_or(newest, |from| from.min(newest));
        let mut found = Found::default();
        let mut read = 0;
        while at.file >= oldest {
            if at.offset == 0 {
                at = Place { file: at.file.saturating_sub(1), offset: u64::MAX };
                continue;
            }
            let step = match Step::read(&path(&self.directory, at.file), at.offset) {
                Ok(step) => step,
                // It went while it was looked for; so did all that are older.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(self.failed(source)),
            };
            read += step.bytes.len() as u64;
            at.offset = step.start;
            for (offset, line) in step.lines() {
                if filter.ends_at(&line) {
                    return Ok(found);
                }
                if !filter.takes(&line) {
                    continue;
                }
                if found.lines.len() == limit {
                    found.next = Some(Place { file: at.file, offset: offset + step.length_at(offset) });
                    return Ok(found);
                }
                found.lines.push(line);
            }
            if read >= MAX_READ {
                let more = at.offset > 0 || at.file > oldest;
                found.next = more.then_some(at);
                return Ok(found);
            }
        }
        Ok(found)
    }
}

/// Some whole lines of a file.
struct Step {
    start: u64,
    bytes: Vec<u8>,
}

impl Step {
    /// Reads the lines that end before an offset.
    fn read(path: &Path, before: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let before = before.min(file.metadata()?.len());
        let from = before.saturating_sub(STEP);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(before - from).read_to_end(&mut bytes)?;
        if from == 0 {
            return Ok(Self { start: 0, bytes });
        }
        // The first line may have begun before what was read. Without any end of a line there is nothing of ours.
        let begun = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
        bytes.drain(..begun);
        let start = if bytes.is_empty() { from } else { from + begun as u64 };
        Ok(Self { start, bytes })
    }

    /// The lines, the last first, with where they begin. A line that is not one of ours is passed over.
    fn lines(&self) -> impl Iterator<Item = (u64, Line)> {
        let mut end = self.bytes.len();
        let lines = self.bytes.split_inclusive(|byte| *byte == b'\n').rev();
        lines.filter_map(move |line| {
            end -= line.len();
            let offset = self.start + end as u64;
            serde_json::from_slice(line).ok().map(|line| (offset, line))
        })
    }

    /// The length of the line that begins there.
    fn length_at(&self, offset: u64) -> u64 {
        let begin = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        let rest = self.bytes.get(begin..).unwrap_or_default();
        rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1) as u64
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:08}.jsonl"))
}

/// Takes away what follows the last whole line, and gives the length of the rest.
fn cut_torn(path: &Path) -> io::Result<u64> {
    let mut file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let from = length.saturating_sub(STEP);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(from, |end| from + end as u64 + 1);
    if whole < length {
        file.set_len(whole)?;
    }
    Ok(whole)
}
