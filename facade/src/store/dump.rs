//! Logical dumps of the database: JSON lines, and a last line with the SHA-256 of all before it.
//!
//! A dump is complete or it does not count; the newest complete one is what a damaged database is restored from.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use pki::digest::{Algorithm, Digest, Hasher};
use serde::{Deserialize, Serialize};

const KEEP: usize = 7;
const SUFFIX: &str = "jsonl";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Entry { key: String, value: String },
    End { entries: u64, digest: Digest },
}

/// Keys and values, as the database orders them.
pub(super) type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes a dump named `name` and removes all but the newest few. Names order as the dumps do.
pub(super) fn write(
    dumps: &Path,
    name: &str,
    entries: impl Iterator<Item = io::Result<(Vec<u8>, Vec<u8>)>>,
) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dumps)?;
    let path = dumps.join(format!("{name}.{SUFFIX}"));
    let temporary = dumps.join(format!(".{name}.tmp"));
    // A dump holds everything the database holds: only its owner may read it.
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let mut writer = BufWriter::new(file);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut count = 0;
    for entry in entries {
        let (key, value) = entry?;
        let line = line(&Line::Entry { key: BASE64.encode(&key), value: BASE64.encode(&value) })?;
        hasher.update(&line);
        writer.write_all(&line)?;
        count += 1;
    }
    writer.write_all(&line(&Line::End { entries: count, digest: hasher.finish() })?)?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(dumps)?.sync_all()?;
    remove_old(dumps)?;
    Ok(path)
}

fn line(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The newest dump that is complete, and what is in it.
pub(super) fn newest(dumps: &Path) -> io::Result<Option<(PathBuf, Entries)>> {
    for path in list(dumps)?.into_iter().rev() {
        if let Some(entries) = read(&path)? {
            return Ok(Some((path, entries)));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> io::Result<Option<Entries>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut entries = Vec::new();
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes)? == 0 {
            return Ok(None);
        }
        match serde_json::from_slice(&bytes) {
            Ok(Line::Entry { key, value }) => {
                hasher.update(&bytes);
                let (Ok(key), Ok(value)) = (BASE64.decode(key.as_bytes()), BASE64.decode(value.as_bytes()))
                else {
                    return Ok(None);
                };
                entries.push((key, value));
            }
            Ok(Line::End { entries: count, digest }) => {
                let whole = count == entries.len() as u64 && digest == hasher.finish();
                return Ok(whole.then_some(entries));
            }
            Err(_) => return Ok(None),
        }
    }
}

fn list(dumps: &Path) -> io::Result<Vec<PathBuf>> {
    let directory = match fs::read_dir(dumps) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in directory {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == SUFFIX) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn remove_old(dumps: &Path) -> io::Result<()> {
    let paths = list(dumps)?;
    let surplus = paths.len().saturating_sub(KEEP);
    paths.iter().take(surplus).try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(count: u8) -> Entries {
        (0..count).map(|number| (vec![b'k', number], vec![number, 0, 255])).collect()
    }

    fn dump(dumps: &Path, name: &str, count: u8) -> PathBuf {
        write(dumps, name, entries(count).into_iter().map(Ok)).unwrap()
    }

    #[test]
    fn reads_back_what_it_wrote_and_keeps_the_newest_few() {
        let dumps = tempfile::tempdir().unwrap();
        for number in 0..10 {
            dump(dumps.path(), &format!("2026-{number:02}"), number);
        }
        let (path, read) = newest(dumps.path()).unwrap().unwrap();
        assert!(path.ends_with("2026-09.jsonl"));
        assert_eq!(read, entries(9));
        assert_eq!(list(dumps.path()).unwrap().len(), KEEP);
    }

    #[test]
    fn rejects_a_dump_that_is_cut_or_changed_and_takes_the_one_before() {
        let dumps = tempfile::tempdir().unwrap();
        dump(dumps.path(), "1", 1);
        for (name, change) in [("2", true), ("3", false)] {
            let path = dump(dumps.path(), name, 5);
            let mut bytes = fs::read(&path).unwrap();
            if change {
                bytes[40] ^= 1;
            } else {
                bytes.truncate(bytes.len() / 2);
            }
            fs::write(&path, bytes).unwrap();
        }
        assert_eq!(newest(dumps.path()).unwrap().unwrap().1, entries(1));
    }
}
